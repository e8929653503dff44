"""What a piece of work took: a meter that hears its stages, and the table that the meter gives.

``%%qvl`` and ``watch`` are two ways to start and stop one.
"""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pandas as pd

from qvl_lab.analysis.money.prices import Price
from qvl_lab.probe.power import Sampler
from qvl_lab.probe.stages import Recorder, Total, hearing, listening, stage_table, totals
from qvl_lab.show.quantities import money, number

#: How the values of a stage table's column are written; unknown ones are "".
_FORMATS = {
    "calls": ",.0f",
    "seconds": ",.3f",
    "share": ".1%",
    "cpu_s": ",.3f",
    "tokens": ",.0f",
    "bytes": ",.0f",
}


@dataclass(frozen=True, kw_only=True, repr=False)
class Summary:
    """A stage table with a line below it; shows itself as text or HTML.

    Attributes
    ----------
    frame : DataFrame
        See :func:`qvl_lab.probe.stages.stage_table`.
    wall_s : float
        Seconds, until the GPU was done.
    where : str or None
        The stage that runs, if the work goes on.
    new_tokens : int or None
        Tokens that were turned into text; a row that ended before the others of its batch counts
        as long as they. None if no stage says.
    memory : str
        What ``memory_bytes`` is: the peak of what torch allocated on a GPU, or of samples of the
        process's memory; while the work goes on, the last of these samples.
    memory_bytes : float or None
    gpu_busy : float or None
        Share of the time (0-1) in which any kernel ran, by NVML.
    price : Price or None
        What ``cost`` rests on.
    notes : tuple of str
        What else there is to know.
    """

    frame: pd.DataFrame
    wall_s: float
    where: str | None = None
    new_tokens: int | None = None
    memory: str = "peak process memory"
    memory_bytes: float | None = None
    gpu_busy: float | None = None
    price: Price | None = None
    notes: tuple[str, ...] = ()

    @property
    def cost(self) -> float | None:
        """The wall time's share of the hourly price, in ``price.currency``."""
        return self.price.of(self.wall_s) if self.price else None

    @property
    def line(self) -> str:
        """Time, stage, tokens, memory, utilisation and cost, as far as they are known."""
        parts = [f"{number(self.wall_s)} s"]
        if self.where:
            parts.append(f"in {self.where}")
        if self.new_tokens:
            rate = number(self.new_tokens / self.wall_s)
            parts.append(f"{self.new_tokens:,} new tokens, {rate} tokens/s")
        if not pd.isna(self.memory_bytes):
            parts.append(f"{self.memory} {number(self.memory_bytes / 2**30)} GiB")
        if not pd.isna(self.gpu_busy):
            parts.append(f"GPU busy {self.gpu_busy:.0%}")
        if self.price and self.cost is not None:
            parts.append(money(self.cost, self.price.currency))
        return " · ".join(parts)

    def __repr__(self) -> str:
        return "\n".join([self._written().to_string(), self.line, *self.notes])

    def _repr_html_(self) -> str:
        below = "".join(f"<div>{html.escape(note)}</div>" for note in self.notes)
        return f"{self._written().to_html(border=0)}<b>{html.escape(self.line)}</b>{below}"

    def _written(self) -> pd.DataFrame:
        columns = {
            name: ["" if pd.isna(value) else format(value, form) for value in self.frame[name]]
            for name, form in _FORMATS.items()
        }
        return pd.DataFrame(columns, index=list(self.frame["path"]))


def cuda_in_use() -> Any | None:
    """``torch.cuda`` if this process has begun to use it; torch is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch and torch.cuda.is_initialized() else None


class Tally(Recorder):
    """A recorder that may start before CUDA does, and sums whenever the device is idle.

    Attributes
    ----------
    sums : dict
        Totals by path of what was heard and summed; another thread may copy it.
    peak_bytes : int or None
        The most that torch allocated on a GPU. It is asked at every end of an outer stage, since
        the work may start new peaks in between.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__(clock=clock)
        self.sums: dict[str, Total] = {}
        self.peak_bytes: int | None = None

    @property
    def where(self) -> str | None:
        """The path of the stage that runs."""
        opened = self._open[-1:]  # a copy: the work's thread goes on
        return opened[0].path if opened else None

    def begin(self, name: str, gpu: bool, **amounts: int) -> None:
        self._cuda = cuda_in_use() is not None
        super().begin(name, gpu, **amounts)

    def end(self, name: str, gpu: bool, **amounts: int) -> None:
        super().end(name, gpu, **amounts)
        if not self._open:
            self.read_peak()
            if self._idle():
                self.add_up()

    def read_peak(self) -> None:
        """Note the most that was allocated on the current GPU since a peak was last started."""
        if cuda := cuda_in_use():
            self.peak_bytes = max(self.peak_bytes or 0, cuda.max_memory_allocated())

    def add_up(self) -> None:
        """Add all closed stages to the sums. Call when the device is idle."""
        totals(self.spans(), into=self.sums)


def is_metered() -> bool:
    """Whether a meter hears what is done here and now."""
    return any(isinstance(listener, Tally) for listener in hearing())


class _Gauge(Sampler):
    @property
    def latest(self) -> dict[str, Any]:
        return self._samples[-1]


class Meter:
    """Measures from :meth:`start` to :meth:`stop`; any thread may ask for the :meth:`summary`.

    Starting one starts torch's peak statistics anew.

    Parameters
    ----------
    gpu : int, optional
        Whose utilisation to sample; by default torch's current GPU, if one is in use.
    interval_s : float
        Pause between samples.
    clock : callable
        Seconds, increasing; replaced in tests.
    """

    def __init__(
        self,
        gpu: int | None = None,
        interval_s: float = 0.05,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if gpu is None and (cuda := cuda_in_use()):
            gpu = cuda.current_device()
        self._gauge, self._tally = _Gauge(gpu, interval_s), Tally(clock)
        self._clock, self._running = clock, ExitStack()
        self._wall_s: float | None = None
        self._notes: list[str] = []

    def start(self) -> None:
        """Listen and sample from now on."""
        if cuda := cuda_in_use():
            cuda.synchronize()  # what was queued before is not this work's
            for index in range(cuda.device_count()):
                cuda.reset_peak_memory_stats(index)
        self._running.enter_context(self._gauge)
        self._running.enter_context(listening(self._tally))
        self._started_s = self._clock()

    def stop(self) -> None:
        """Wait for the GPU and sum up; whatever happens, nothing is left listening."""
        with self._running:
            try:
                if cuda := cuda_in_use():
                    cuda.synchronize()
                self._tally.read_peak()
                self._tally.add_up()
            except RuntimeError as e:  # a lost GPU, which must not hide the error that lost it
                reason = str(e).partition("\n")[0]
                self._notes.append(f"stage times are incomplete, the GPU does not answer: {reason}")
            self._wall_s = self._clock() - self._started_s

    def summary(self, price: Price | None = None, notes: tuple[str, ...] = ()) -> Summary:
        """What was measured so far, or in all once it has been stopped."""
        running = self._wall_s is None
        wall_s = self._clock() - self._started_s if self._wall_s is None else self._wall_s
        sums = self._tally.sums.copy()
        readings = self._gauge.latest if running else self._gauge.summary()
        memory = "process memory" if running else "peak process memory"
        memory_bytes = readings["process_memory_bytes"]
        if self._tally.peak_bytes is not None:
            memory, memory_bytes = "peak allocated VRAM", self._tally.peak_bytes
        texts = (t for path, t in sums.items() if path.split("/")[-1] == "detokenize")
        unheard = () if sums or running else ("no stage was marked in this process",)
        return Summary(
            frame=stage_table(sums, wall_s),
            wall_s=wall_s,
            where=self._tally.where,
            new_tokens=sum(total.amounts["tokens"] for total in texts) or None,
            memory=memory,
            memory_bytes=memory_bytes,
            gpu_busy=readings["gpu_utilisation"],
            price=price,
            notes=(*self._notes, *unheard, *notes),
        )
