"""``with profile(lab) as p: lab.generate_batch(...)``: where the time and the memory went.

Listeners hear the stage marks: a recorder for the table, ranges for the trace, a memory timeline;
a thread samples the device. After the block the same calls run once more without any of them, and
the difference is the profile's own overhead. Caches are emptied before that, so that the repeated
calls have the same work to do; where they find other entries all the same, the overhead is unknown.
"""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pandas as pd
import torch

from qvl_lab.analysis.limits.memory import BatchShape, candidate_peaks
from qvl_lab.backends.generation import Generation
from qvl_lab.errors import ConfigError
from qvl_lab.hardware import gpu_index
from qvl_lab.probe import trace
from qvl_lab.probe.idle import idle
from qvl_lab.probe.power import Sampler
from qvl_lab.probe.stages import Recorder, Span, listening, outermost, stage_table, totals
from qvl_lab.probe.trace import Events
from qvl_lab.probe.vram import Timeline
from qvl_lab.runs.records import Work
from qvl_lab.session import Lab

#: Whether a profile is under way, in this thread or task.
_profiling: ContextVar[bool] = ContextVar("profiling", default=False)
#: Held while kernels are recorded: torch.profiler does one recording at a time in a process.
_recording_kernels = threading.Lock()


class profile:  # noqa: N801 - reads as a statement: with profile(lab) as p: ...
    """Profile the calls of a lab in a block; the tables are there when it has ended.

    If the block raises, everything is taken off again and the tables hold what was seen.

    Parameters
    ----------
    lab : Lab
        Its calls in the block are profiled, as far as the thread of the block makes them.
    kernels : bool
        Record operators and kernels with torch.profiler. Without, only the stages, memory and
        power are read, which costs next to nothing.
    overhead : bool
        Repeat the calls of the block without the profile, to know what it cost.
    interval_s : float
        Pause between samples of the device.
    options
        As :class:`qvl_lab.probe.trace.Recording`: ``shapes``, ``memory``, ``modules``, ``nvtx``,
        ``max_events``, ``max_bytes``.

    Attributes
    ----------
    stages : DataFrame
        Where the time went; see :func:`qvl_lab.probe.stages.stage_table`.
    spans : DataFrame
        Each stage as it came: ``path``, ``start_s`` and ``end_s`` from the start of the block,
        ``cpu_s``.
    pauses : DataFrame
        When the GPU had nothing to do between stages; see :func:`qvl_lab.probe.idle.idle`.
        ``seconds`` is without ``profile_s``, what the profile's own marks took meanwhile.
    operators, kernels, stage_kernels, overlap, gaps : DataFrame
        Of the trace; see :mod:`qvl_lab.probe.trace`, ``stage_kernels`` its ``stages``. Empty
        without ``kernels``.
    vram : DataFrame
        Memory by stage; see :class:`qvl_lab.probe.vram.Timeline`.
    power : DataFrame
        Samples of the device; see :class:`qvl_lab.probe.power.Sampler`; with ``stage``.

        Times in ``spans``, ``pauses``, ``gaps``, ``vram`` and ``power`` count from the start of the
        block.
    work : Work
        How much there was to compute.
    wall_s, profiled_s, plain_s : float
        Seconds of the block; of the lab's calls in it; of the same calls without the profile, or
        None if they were not repeated.
    notes : list of str
        What is unknown, and why.

    Raises
    ------
    ConfigError
        On entering the block inside another profile's block, or while another thread records
        kernels.
    """

    #: The attributes that are tables.
    TABLES = (
        "stages",
        "spans",
        "pauses",
        "operators",
        "kernels",
        "stage_kernels",
        "overlap",
        "gaps",
        "vram",
        "power",
    )

    def __init__(
        self,
        lab: Lab,
        *,
        kernels: bool = True,
        overhead: bool = True,
        interval_s: float = 0.02,
        **options: Any,
    ) -> None:
        self._lab, self._device = lab, lab.spec.device
        self._repeat = overhead
        self._recorder = Recorder(cuda=self._device.startswith("cuda"))
        self._timeline = Timeline(self._device)
        self._reached, self._left = _Moments(), _Moments()
        self._sampler = Sampler(gpu_index(self._device), interval_s, detail=True)
        self._recording = trace.Recording(device=self._device, **options) if kernels else None
        self._calls: list[tuple[dict[str, Any], Generation]] = []
        self._first = not lab.used
        self.plain_s: float | None = None
        self.notes: list[str] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(_alone(kernels=self._recording is not None))
            self._thread = threading.get_ident()
            self._lab.listeners.append(self._hear)
            stack.callback(self._lab.listeners.remove, self._hear)
            stack.enter_context(listening(self._reached))  # first, and last of those who listen
            if self._recording:
                stack.enter_context(self._recording)
            stack.enter_context(self._sampler)
            for listener in (self._timeline, self._recorder, self._left):
                stack.enter_context(listening(listener))
            self._started = time.perf_counter()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.wall_s = time.perf_counter() - self._started
        self._stack.close()
        if error is not None:
            _settle(self._device)
        self._read()
        if self._repeat and self._calls and error is None:
            self._run_plain()
        self._explain()

    def _hear(self, call: dict[str, Any], done: Generation) -> None:
        if threading.get_ident() == self._thread:
            self._calls.append((call, done))

    def _run_plain(self) -> None:
        """Repeat the calls from empty caches; what they took counts if the caches hit as before."""
        self._lab.clear_caches()
        plain = [self._lab.run(**call) for call, _ in self._calls]
        profiled = [done for _, done in self._calls]
        if [_hits(done) for done in plain] == [_hits(done) for done in profiled]:
            self.plain_s = sum(done.wall_s for done in plain)
        else:
            self.notes.append(
                "the repeated calls found other entries in the caches than the profiled ones, so "
                "they cannot be compared; call lab.clear_caches() before the block, or turn caches "
                "off"
            )

    @property
    def overhead(self) -> float | None:
        """How much longer the calls took under the profile, as a share; None if not measured."""
        return None if self.plain_s is None else self.profiled_s / self.plain_s - 1

    @property
    def trace(self) -> trace.Trace:
        """The recorded trace.

        Raises
        ------
        ConfigError
            The block has not ended, or kernels were not recorded.
        """
        return (self._recording or trace.Recording()).trace

    def peak(self) -> pd.DataFrame:
        """What must hold the peak of GPU memory, from the model's sizes and the largest batch.

        One row per candidate for the peak, a column per part; see
        ``candidate_peaks``. ``vram`` has what was measured. Images of
        a batch are taken to have the mean of their sizes.

        Raises
        ------
        ConfigError
            If nothing was answered, or the model is of a family whose sizes are not known.
        """
        largest = max((_largest_batch(call, done) for call, done in self._calls), default=None)
        if largest is None or not largest[0]:
            raise ConfigError("nothing was answered in this block, so no batch had a peak")
        rows, visual, longest, new = largest
        load = BatchShape(
            batch_size=rows,
            visual_tokens=visual,
            text_tokens=max(0, longest - visual),
            new_tokens=new,
            precision=self._lab.spec.precision,
            random_weights=self._lab.loaded.random_weights,
            transformers=version("transformers"),
        )
        return candidate_peaks(self._lab.loaded.sizes, load)

    def tensorboard(self, folder: str | Path, **options: Any) -> Path:
        """Write the trace for TensorBoard; see :func:`qvl_lab.probe.trace.tensorboard`."""
        return trace.tensorboard(self.trace, folder, **options)

    def chrome(self, path: str | Path) -> Path:
        """Write the trace for Perfetto or chrome://tracing."""
        return trace.chrome(self.trace, path)

    def __repr__(self) -> str:
        if not hasattr(self, "stages"):
            return "<profile: the block has not ended>"
        table = self.stages.to_string(index=False, na_rep="", float_format="{:.4g}".format)
        return "\n".join([table, *self._said()])

    def _repr_html_(self) -> str:
        if not hasattr(self, "stages"):
            return html.escape(repr(self))
        table: str = self.stages.to_html(index=False, na_rep="", float_format="{:.4g}".format)
        return table + "".join(f"<p>{html.escape(line)}</p>" for line in self._said())

    def _said(self) -> list[str]:
        """What the profile cost, and what is unknown."""
        if self.overhead is None:
            return ["overhead of the profile: unknown", *self.notes]
        noise = " (not slower than without it)" if self.overhead < 0 else ""
        return [f"overhead of the profile: {self.overhead:+.1%}{noise}", *self.notes]

    def _read(self) -> None:
        spans = self._recorder.spans()
        self.profiled_s = sum(done.wall_s for _, done in self._calls)
        self.work = sum((done.work for _, done in self._calls), Work())
        self.stages = stage_table(totals(spans), self.wall_s)
        self.spans = _spans(spans)
        self.pauses = _without_marks(idle(spans), self._reached.times_s, self._left.times_s)
        self.vram = self._timeline.frame()
        self.power = _with_stages(self._sampler.frame(), spans)
        seen = self._recording.trace if self._recording else {"traceEvents": []}
        events = trace.parse(seen)
        self.operators, self.kernels = trace.operators(events), trace.kernels(events)
        self.stage_kernels = trace.stages(events)
        self.overlap, self.gaps = trace.overlap(events), trace.gaps(events)
        self._on_one_clock(events)

    def _on_one_clock(self, events: Events) -> None:
        """Times of all tables from the start of the block."""
        for table in (self.spans, self.pauses, self.vram, self.power):
            moments = [name for name in ("start_s", "end_s", "time_s") if name in table]
            table[moments] -= self._started
        self.pauses.attrs["wall_s"] = self.wall_s
        if self._reached.times_s and len(events.stages):  # the range of the first mark follows it
            first_s = self._reached.times_s[0] - self._started
            self.gaps["start_s"] += first_s - events.stages["start_s"].min()

    def _explain(self) -> None:
        if self._first:
            self.notes.append(
                "these were the lab's first calls: they include what only first calls do; "
                "run a batch before profiling"
            )
        if not self._device.startswith("cuda"):
            self.notes.append(
                "no GPU: kernels, pauses, utilisation and allocated memory are unknown"
            )
            return
        if self.power["gpu_utilisation"].isna().all():
            self.notes.append("NVML does not answer: utilisation, power and clocks are unknown")
        if self._recording and self.kernels.empty:
            self.notes.append(
                "torch.profiler saw no kernel: the driver or another profiler refuses; "
                "set KINETO_LOG_LEVEL=0 to see what it says"
            )


@contextmanager
def _alone(*, kernels: bool) -> Iterator[None]:
    """Hold the place of the one profile that can be under way."""
    if _profiling.get():
        raise ConfigError(
            "a profile is running already, and profiles do not nest; end its block first, or "
            "profile all calls in one block"
        )
    if kernels and not _recording_kernels.acquire(blocking=False):
        raise ConfigError(
            "another thread is recording kernels, and torch.profiler makes one recording at a "
            "time; wait for it, or use kernels=False"
        )
    token = _profiling.set(True)
    try:
        yield
    finally:
        _profiling.reset(token)
        if kernels:
            _recording_kernels.release()


def _hits(done: Generation) -> dict[str, int]:
    """What a call found in the caches and what it did not."""
    return {name: n for name, n in done.caches.items() if name.endswith(("hits", "misses"))}


class _Moments:
    """A listener that notes when it hears a mark."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def begin(self, name: str, gpu: bool, **_: int) -> None:
        self.times_s.append(time.perf_counter())

    end = begin


def _settle(device: str) -> None:
    """Wait for a GPU whose work was broken off, so that its events can be read."""
    if device.startswith("cuda"):
        with suppress(RuntimeError):  # it may be lost, and its error is on its way already
            torch.cuda.synchronize(device)


def _largest_batch(call: dict[str, Any], done: Generation) -> tuple[int, int, int, int]:
    """Rows, mean visual tokens, longest prompt, new tokens of a call's first, longest batch."""
    longest = sorted(done, key=lambda answer: answer.prompt_tokens, reverse=True)
    batch = [answer for answer in longest if answer.text is not None][: call["engine"].most_at_once]
    if not batch:
        return 0, 0, 0, 0
    visual = round(sum(answer.visual_tokens for answer in batch) / len(batch))
    return len(batch), visual, batch[0].prompt_tokens, max(answer.new_tokens for answer in batch)


def _spans(spans: list[Span]) -> pd.DataFrame:
    rows = [(s.path, s.start_s, s.end_s, s.cpu_s) for s in spans]
    frame = pd.DataFrame(rows, columns=["path", "start_s", "end_s", "cpu_s"])
    return frame.sort_values("start_s", ignore_index=True)


def _without_marks(
    pauses: pd.DataFrame, reached_s: list[float], left_s: list[float]
) -> pd.DataFrame:
    """Pauses without the time that the listeners to the marks took, in ``profile_s``."""
    marks = np.array(list(zip(reached_s, left_s, strict=False))).reshape(-1, 2)
    taken_s = np.append(0.0, np.diff(marks).cumsum())  # by all marks up to each
    edges_s, taken_s = np.append(0.0, marks.ravel()), np.repeat(taken_s, 2)[:-1]
    ends_s = pauses["start_s"] + pauses["seconds"]
    own_s = np.interp(ends_s, edges_s, taken_s) - np.interp(pauses["start_s"], edges_s, taken_s)
    pauses = pauses.assign(seconds=pauses["seconds"] - own_s, profile_s=own_s)
    return pauses[pauses["seconds"] > 0].reset_index(drop=True)


def _with_stages(samples: pd.DataFrame, spans: list[Span]) -> pd.DataFrame:
    """Samples with the outermost ``stage`` that was under way, "" between stages."""
    outer = sorted((s for s in spans if outermost(s.path)), key=lambda span: span.start_s)
    starts = np.array([span.start_s for span in outer])
    at = np.searchsorted(starts, samples["time_s"], "right") - 1
    stages = [
        outer[i].path if i >= 0 and moment <= outer[i].end_s else ""
        for i, moment in zip(at, samples["time_s"], strict=True)
    ]
    return samples.assign(stage=stages)
