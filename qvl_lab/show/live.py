"""``with ql.watch(lab): ...``: what goes on in a long run, while it goes on and after it.

The marks of the stages only add to a dict. A thread looks at it every so often, reads the
device's memory, and shows both: as widgets in a notebook, as a line on stderr elsewhere. The
widgets give way to a table that stays in the notebook's file.
"""

from __future__ import annotations

import math
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import pandas as pd
from IPython import get_ipython
from IPython.display import display
from tqdm import tqdm

from qvl_lab.errors import ConfigError
from qvl_lab.hardware import gpu_name
from qvl_lab.probe.power import Sampler
from qvl_lab.probe.stages import Span, Total, listening, outermost, stage_table, totals
from qvl_lab.show.magic import OUT, Summary, cuda_in_use, gib, stage_name

#: Samples in the little history, and the blocks that draw it.
_HISTORY = 40
_BLOCKS = "▁▂▃▄▅▆▇█"
#: Pause between lines where the terminal cannot overwrite one, such as a log file.
_LINE_EVERY_S = 10.0


def watch(lab_or_device: Any = None, *, interval_s: float = 0.5) -> Watch:
    """Show what goes on while a block runs.

    Parameters
    ----------
    lab_or_device : Lab, str or torch.device, optional
        Whose memory to show: that of a lab's device, "cuda:0" or "cpu". By default the first GPU,
        or this process if there is none.
    interval_s : float
        Pause between updates, in seconds.

    Returns
    -------
    Watch
        A context manager. In a notebook it shows widgets, which give way to a table; elsewhere a
        line on stderr. What runs in other processes is not seen: ``sweep(isolation="none")``.

    Raises
    ------
    ConfigError
        If the device or the interval cannot be used.

    Examples
    --------
    >>> with ql.watch(lab):  # doctest: +SKIP
    ...     lab.generate_batch(images, "What is this?")
    """
    if not 0 < interval_s < math.inf:
        raise ConfigError(f"interval_s must be a number of seconds above 0, not {interval_s!r}")
    return Watch(_device(lab_or_device), interval_s)


def _device(lab_or_device: Any) -> str:
    if lab_or_device is None:
        return "cuda" if gpu_name() else "cpu"
    spec = getattr(lab_or_device, "spec", None)
    name = str(getattr(spec, "device", lab_or_device))
    kind, _, index = name.partition(":")
    if kind not in ("cuda", "cpu") or not (index == "" or index.isdecimal()):
        raise ConfigError(f"watch a lab, 'cuda', 'cuda:0' or 'cpu', not {lab_or_device!r}")
    return name


# ---- what is known ----


class _Open(NamedTuple):
    name: str
    path: str
    start_s: float
    amounts: dict[str, int]


class Heard:
    """A listener that sums as it hears, by the CPU's clock; another thread may read it.

    Attributes
    ----------
    sums : dict
        Totals by path.
    images : int
        Encoded images that were decoded.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.sums: dict[str, Total] = {}
        self.images = 0
        self._clock = clock
        self._open: list[_Open] = []

    def begin(self, name: str, gpu: bool, **amounts: int) -> None:
        path = f"{self._open[-1].path}/{name}" if self._open else name
        self._open.append(_Open(name, path, self._clock(), amounts))

    def end(self, name: str, gpu: bool, **amounts: int) -> None:
        for i in reversed(range(len(self._open))):
            if self._open[i].name == name:
                opened, now_s = self._open[i], self._clock()
                times = (opened.start_s, now_s, opened.start_s, now_s)
                totals([Span(opened.path, *times, opened.amounts | amounts)], into=self.sums)
                self.images += name == "decode_image" and "bytes" in amounts
                del self._open[i:]
                return

    def finish(self) -> str | None:
        """Count what is still open up to now; the path of the innermost, if there is one."""
        where = self.where
        for opened in reversed(self._open.copy()):
            self.end(opened.name, False)
        return where

    @property
    def where(self) -> str | None:
        """The stage that runs, as a path."""
        opened = self._open[-1:]
        return opened[0].path if opened else None

    @property
    def seconds(self) -> dict[str, float]:
        """By outer stage, with what the running one has taken so far."""
        seconds = {path: t.seconds for path, t in self.sums.copy().items() if outermost(path)}
        for opened in self._open[:1]:
            so_far_s = self._clock() - opened.start_s
            seconds[opened.path] = seconds.get(opened.path, 0.0) + so_far_s
        return seconds

    @property
    def progress(self) -> list[str]:
        """Counts in words: batches from the prefills, images from what was decoded."""
        sums = self.sums.copy().items()
        batches = sum(total.calls for path, total in sums if stage_name(path) == "prefill")
        tokens = sum(t.amounts["tokens"] for path, t in sums if stage_name(path) == OUT)
        counts = {
            ("batch", "batches"): batches,
            ("image decoded", "images decoded"): self.images,
            ("new token", "new tokens"): tokens,
        }
        return [f"{n:,} {words[n != 1]}" for words, n in counts.items() if n]


class Gauge(Sampler):
    """Reads a device's memory and utilisation when it is asked to, and remembers the peaks.

    Attributes
    ----------
    peaks : dict
        By what :meth:`read` gave, the highest.
    busy : deque of float
        The last utilisations, 0-1; ``memory`` likewise the last bytes.
    """

    def __init__(self, device: str) -> None:
        kind, _, index = device.partition(":")
        super().__init__(int(index or 0) if kind == "cuda" else None)
        self._name = device
        self.peaks: dict[str, float] = {}
        self.busy: deque[float] = deque(maxlen=_HISTORY)
        self.memory: deque[float] = deque(maxlen=_HISTORY)

    def read(self) -> dict[str, float]:
        """Bytes of ``device``, ``process`` and ``allocated`` VRAM, or of the process's ``memory``
        where no driver tells; what is unknown is left out.
        """
        sample = self._sample()
        kind = "process" if self._lib else "memory"
        found = {"device": sample["device_memory_bytes"], kind: sample["process_memory_bytes"]}
        if self._name != "cpu" and (cuda := cuda_in_use()):
            found["allocated"] = cuda.memory_allocated(self._name)
        known = {name: value for name, value in found.items() if not pd.isna(value)}
        for name, value in known.items():
            self.peaks[name] = max(value, self.peaks.get(name, 0))
        self.memory.extend(list(known.values())[:1])
        if not pd.isna(sample["gpu_utilisation"]):
            self.busy.append(sample["gpu_utilisation"])
        return known


@dataclass(frozen=True, kw_only=True, repr=False)
class Watched(Summary):
    """What remains of a watched run: the stages, and the peaks of memory that samples saw.

    Attributes
    ----------
    progress : tuple of str
        Batches, images, tokens, as far as marks tell.
    peaks : dict
        Bytes: ``device``, ``process``, ``allocated`` of VRAM, or ``memory`` of the process.
    stopped_by : str or None
        The exception that ended the run, and in which stage.
    """

    progress: tuple[str, ...]
    peaks: Mapping[str, float]
    stopped_by: str | None

    @property
    def parts(self) -> list[str]:
        """What the line below the table says: only what is known."""
        stopped = [f"stopped by {self.stopped_by}"] if self.stopped_by else []
        memory = [f"peak {_memory(self.peaks)}"] if self.peaks else []
        return [*super().parts, *stopped, *self.progress, *memory]


# ---- how it is shown ----


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What a view shows at one time."""

    elapsed_s: float
    where: str | None
    seconds: Mapping[str, float]
    progress: Sequence[str]
    device: str

    @property
    def head(self) -> str:
        """ "0:42 · prefill/layers · 3 batches"."""
        return " · ".join([_clock_time(self.elapsed_s), self.where or "…", *self.progress])


class _View(Protocol):
    def show(self, moment: Moment) -> None: ...

    def finish(self, summary: Watched) -> None: ...


class Box:
    """Widgets in a notebook: a bar for each stage, and lines around them."""

    def __init__(self) -> None:
        import ipywidgets  # type: ignore[import-untyped]

        self._make = ipywidgets
        self._head = ipywidgets.Label()
        self._foot = ipywidgets.Label(style={"text_color": "gray"})
        self._bars = ipywidgets.VBox()
        self._rows: dict[str, Any] = {}
        self._box = ipywidgets.VBox([self._head, self._bars, self._foot])
        self._handle = display(self._box, display_id=True)

    def show(self, moment: Moment) -> None:
        self._head.value, self._foot.value = moment.head, moment.device
        for path, seconds in moment.seconds.items():
            if path not in self._rows:
                self._rows[path] = self._row(path)
                self._bars.children = tuple(self._rows.values())
            share = min(seconds / moment.elapsed_s, 1.0) if moment.elapsed_s else 0.0
            _, bar, words = self._rows[path].children
            bar.value, words.value = share, f"{seconds:,.1f} s, {100 * share:.0f}%"

    def finish(self, summary: Watched) -> None:
        """Put the table in the widgets' place, so that it stays when the kernel has gone."""
        self._handle.update(summary)
        _close(self._box)

    def _row(self, path: str) -> Any:
        name = self._make.Label(path, layout={"width": "10em"})
        bar = self._make.FloatProgress(max=1.0, layout={"width": "24em"})
        return self._make.HBox([name, bar, self._make.Label()])


def _close(widget: Any) -> None:
    """Close a widget and all that belongs to it, so that neither side keeps their models."""
    for child in getattr(widget, "children", ()):
        _close(child)
    for part in (getattr(widget, "style", None), widget.layout, widget):
        if part is not None:
            part.close()


class Line:
    """A line on stderr that is overwritten; a new one now and then where that cannot be."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._next_s = 0.0
        if sys.stderr.isatty():
            self._bar = tqdm(total=0, bar_format="{desc}", file=sys.stderr, leave=False)

    def show(self, moment: Moment) -> None:
        line = f"{moment.head} · {moment.device}"
        if self._bar is not None:
            self._bar.set_description_str(line[: shutil.get_terminal_size().columns - 1])
        elif moment.elapsed_s >= self._next_s:
            self._next_s = moment.elapsed_s + _LINE_EVERY_S
            print(line, file=sys.stderr)

    def finish(self, summary: Watched) -> None:
        if self._bar is not None:
            self._bar.close()
        print(summary, file=sys.stderr)


def _in_notebook() -> bool:
    return getattr(get_ipython(), "kernel", None) is not None


def _memory(known: Mapping[str, float]) -> str:
    """ "VRAM: device 12.3 GiB, process 11.0 GiB, allocated 10.2 GiB", as far as known."""
    if "memory" in known:
        return f"process memory {gib(known['memory'])}"
    sizes = (f"{name} {gib(known[name])}" for name in known)
    return f"VRAM: {', '.join(sizes)}" if known else "memory unknown"


def _history(values: Sequence[float], top: float) -> str:
    """Values from 0 to ``top`` as a row of blocks."""
    highest = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round(highest * min(v / top, 1))] for v in values) if top else ""


def _failure(error: Exception) -> str:
    return f"the display stopped: {type(error).__name__}: {error}"


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# ---- the context manager ----


class Watch:
    """Made by :func:`watch`.

    Attributes
    ----------
    summary : Watched or None
        What remains, once the block has ended.
    """

    def __init__(self, device: str, interval_s: float) -> None:
        self.summary: Watched | None = None
        self._device, self._interval_s = device, interval_s
        self._heard, self._gauge = Heard(), Gauge(device)
        self._stop, self._error = threading.Event(), ""
        self._thread = threading.Thread(target=self._loop, name="qvl-lab watch", daemon=True)

    def __enter__(self) -> Self:
        self._view: _View = Box() if _in_notebook() else Line()
        self._started_s = time.perf_counter()
        with ExitStack() as stack:
            stack.enter_context(listening(self._heard))
            stack.callback(self._thread.join)
            stack.callback(self._stop.set)
            self._thread.start()
            self._running = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        wall_s = time.perf_counter() - self._started_s
        self._running.close()
        if not self._error:
            self._update()  # a short run has been seen once at least
        progress = tuple(
            self._heard.progress
        )  # before open stages are counted as if they had ended
        where = self._heard.finish()
        stopped_by = kind.__name__ + (f" in {where}" if where else "") if kind else None
        self.summary = Watched(
            frame=stage_table(self._heard.sums, wall_s).drop(columns="cpu_s"),
            wall_s=wall_s,
            progress=progress,
            peaks=self._gauge.peaks,
            stopped_by=stopped_by,
            notes=tuple(self._notes()),
        )
        try:
            self._view.finish(self.summary)
        except Exception as e:  # the run is done; what it was worth must not be lost for a display
            print(f"{self.summary}\n{_failure(e)}", file=sys.stderr)

    def _loop(self) -> None:
        """Show until told to stop; an error ends the display, never the run."""
        while self._update() and not self._stop.wait(self._interval_s):
            continue

    def _update(self) -> bool:
        try:
            self._view.show(self._moment())
        except Exception as e:
            self._error = _failure(e)
            return False
        return True

    def _moment(self) -> Moment:
        known, gauge = self._gauge.read(), self._gauge
        parts = [_memory(known), _history(gauge.memory, max(gauge.memory, default=0))]
        if gauge.busy:
            parts += [f"GPU {100 * gauge.busy[-1]:.0f}%", _history(gauge.busy, 1.0)]
        return Moment(
            elapsed_s=time.perf_counter() - self._started_s,
            where=self._heard.where,
            seconds=self._heard.seconds,
            progress=self._heard.progress,
            device=" ".join(parts),
        )

    def _notes(self) -> list[str]:
        notes = [] if self._heard.sums else ["no stage was marked in this process"]
        notes.append(f"memory is the highest of samples every {self._interval_s:g} s")
        if self._device != "cpu" and cuda_in_use():
            notes.append("by the CPU's clock: the GPU's work counts where it was waited for")
        return [*notes, *([self._error] if self._error else [])]
