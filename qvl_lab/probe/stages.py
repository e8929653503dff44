"""Stage marks: who spends the time, without asking the GPU to stop and tell.

Code that does work says where it is with :func:`stage` or :func:`begin` and :func:`end`; it does
not know who listens. Listeners belong to a context (:mod:`contextvars`), so a listener hears the
marks of the thread that subscribed it and of no other: calls in two threads never mix. A thread
that is started later hears nothing unless the context is handed to it, as ``asyncio.to_thread``
does. With nobody listening a mark costs a look at an empty tuple. A :class:`Recorder` listens: it
notes CPU times, and for GPU stages drops CUDA events into the stream, which are read only after
the work is done.

Stages nest. A stage that begins inside another is named by its path, "decode/lm_head".
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

if TYPE_CHECKING:
    import pandas as pd

#: Stages whose events a recorder holds before it looks for an idle moment to read them.
MOST_EVENTS = 4096


class Listener(Protocol):
    """Hears every mark made in its context while it is subscribed."""

    def begin(self, name: str, gpu: bool, **amounts: int) -> None: ...

    def end(self, name: str, gpu: bool, **amounts: int) -> None: ...


_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("stage listeners", default=())
#: Those that hear every thread.
_everywhere: tuple[Listener, ...] = ()


@contextmanager
def listening(listener: Listener, *, all_threads: bool = False) -> Iterator[None]:
    """Subscribe a listener in this context for the duration of a ``with`` block.

    The block may end in another context, as a notebook's cell does; the first is gone then. With
    ``all_threads`` the listener hears every thread of the process, and must tell them apart.
    """
    global _everywhere
    if all_threads:
        _everywhere = (*_everywhere, listener)
    else:
        _listeners.set((*_listeners.get(), listener))
    try:
        yield
    finally:
        _everywhere = tuple(other for other in _everywhere if other is not listener)
        _listeners.set(tuple(other for other in _listeners.get() if other is not listener))


def hearing() -> tuple[Listener, ...]:
    """All who hear a mark that is made here and now."""
    return _listeners.get() + _everywhere


def begin(name: str, *, gpu: bool = False, **amounts: int) -> None:
    """A stage starts here.

    ``gpu`` says that its work is queued on the current CUDA stream; ``amounts`` what goes through
    it, such as ``tokens`` or ``bytes``.
    """
    for listener in hearing():
        listener.begin(name, gpu, **amounts)


def end(name: str, *, gpu: bool = False, **amounts: int) -> None:
    """The stage that was begun last under this name ends here, and all that is open in it."""
    for listener in hearing():
        listener.end(name, gpu, **amounts)


class stage:  # noqa: N801 - reads as a statement: with stage("decode"): ...
    """``with stage("vision", gpu=True): ...`` marks a block; it ends also when the block raises.

    What goes through may be said at the end: ``with stage("load") as load: ...;
    load.amounts["bytes"] = 10``.
    """

    __slots__ = ("amounts", "gpu", "name")

    def __init__(self, name: str, *, gpu: bool = False, **amounts: int) -> None:
        self.name, self.gpu, self.amounts = name, gpu, amounts

    def __enter__(self) -> Self:
        if hearing():
            begin(self.name, gpu=self.gpu, **self.amounts)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if hearing():
            end(self.name, gpu=self.gpu, **self.amounts)


@dataclass(frozen=True)
class Span:
    """One stage, in seconds on the recorder's clock; GPU spans are placed on the same clock.

    Attributes
    ----------
    path : str
        Its name, after those of the stages around it: "decode/lm_head".
    start_s, end_s : float
        When the work was done.
    cpu_start_s, cpu_end_s : float
        When the CPU passed the marks; for GPU work, when it was queued.
    amounts : dict
        What went through: ``tokens``, ``bytes``.
    on_gpu : bool
        Whether CUDA events timed it.
    """

    path: str
    start_s: float
    end_s: float
    cpu_start_s: float
    cpu_end_s: float
    amounts: dict[str, int] = field(default_factory=dict)
    on_gpu: bool = False

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def cpu_s(self) -> float:
        return self.cpu_end_s - self.cpu_start_s


class _Point(NamedTuple):
    cpu_s: float
    event: Any


class _Open(NamedTuple):
    name: str
    path: str
    start: _Point
    amounts: dict[str, int]


class Recorder:
    """Notes marks and resolves them to spans on one clock.

    The first GPU mark after a pause anchors CUDA event times to the CPU clock: the stream is idle
    then, so the event happens when it is queued. A recorder that listens for long reads its
    events whenever it finds the stream idle, so that they don't pile up.

    Parameters
    ----------
    cuda : bool
        Record CUDA events for GPU stages; otherwise CPU times are used for all.
    clock : callable
        Seconds, increasing; replaced in tests.
    """

    def __init__(
        self, *, cuda: bool = False, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._cuda, self._clock = cuda, clock
        self._open: list[_Open] = []
        self._closed: list[tuple[_Open, _Point]] = []
        self._resolved: list[Span] = []

    def begin(self, name: str, gpu: bool, **amounts: int) -> None:
        if len(self._closed) >= MOST_EVENTS and not self._open and self._idle():
            self._resolve()
        path = f"{self._open[-1].path}/{name}" if self._open else name
        self._open.append(_Open(name, path, self._now(gpu), amounts))

    def end(self, name: str, gpu: bool, **amounts: int) -> None:
        for i in reversed(range(len(self._open))):
            if self._open[i].name == name:
                opened = self._open[i]
                del self._open[i:]
                opened.amounts.update(amounts)
                self._closed.append((opened, self._now(gpu)))
                return

    def spans(self) -> list[Span]:
        """Closed spans so far, then forget them. Call when the device is idle."""
        self._resolve()
        self._open.clear()
        spans, self._resolved = self._resolved, []
        return spans

    def forget(self) -> None:
        """Drop what was noted, without asking the device about it."""
        self._open.clear()
        self._closed.clear()

    def _idle(self) -> bool:
        last = next((stop.event for _, stop in reversed(self._closed) if stop.event), None)
        return last is None or bool(last.query())

    def _resolve(self) -> None:
        closed, self._closed = self._closed, []
        starts = [opened.start for opened, _ in closed if opened.start.event is not None]
        anchor = min(
            starts, default=None, key=lambda point: point.cpu_s
        )  # inner stages close first
        self._resolved += [
            Span(
                opened.path,
                _place(opened.start, anchor),
                _place(stop, anchor),
                opened.start.cpu_s,
                stop.cpu_s,
                opened.amounts,
                opened.start.event is not None,
            )
            for opened, stop in closed
        ]

    def _now(self, gpu: bool) -> _Point:
        if not (gpu and self._cuda):
            return _Point(self._clock(), None)
        import torch

        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return _Point(self._clock(), event)


def _place(point: _Point, anchor: _Point | None) -> float:
    if point.event is None or anchor is None:
        return point.cpu_s
    return anchor.cpu_s + float(anchor.event.elapsed_time(point.event)) / 1e3


@dataclass
class Total:
    """All spans of one path: how many, seconds of work and of the CPU, what went through."""

    calls: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    amounts: Counter[str] = field(default_factory=Counter)

    def add(self, span: Span) -> None:
        """Count one more."""
        self.calls += 1
        self.seconds += span.duration_s
        self.cpu_s += span.cpu_s
        self.amounts.update(span.amounts)


def totals(spans: Iterable[Span], into: dict[str, Total] | None = None) -> dict[str, Total]:
    """Spans summed by path, in order of first appearance; added to ``into`` if that is given."""
    sums = {} if into is None else into
    for span in spans:
        sums.setdefault(span.path, Total()).add(span)
    return sums


def stage_table(sums: Mapping[str, Total], wall_s: float) -> pd.DataFrame:
    """Totals as a table: one row per stage, below it one per stage within, "other" last.

    ``path``; ``calls``; ``seconds`` of work; ``share`` of ``wall_s``; ``cpu_s`` that the CPU took,
    on a GPU to queue it; ``tokens`` and ``bytes`` through it, NaN where not said. The outer stages
    and "other", which no stage covers, sum to ``wall_s``.
    """
    import pandas as pd

    order = list(dict.fromkeys(path.split("/")[0] for path in sums))
    rows = [
        {
            "path": path,
            "calls": total.calls,
            "seconds": total.seconds,
            "cpu_s": total.cpu_s,
            **{unit: total.amounts.get(unit) for unit in ("tokens", "bytes")},
        }
        for path, total in sorted(
            sums.items(), key=lambda at: (order.index(at[0].split("/")[0]), at[0])
        )
    ]
    other_s = max(0.0, wall_s - sum(sums[path].seconds for path in order if path in sums))
    columns = ["path", "calls", "seconds", "share", "cpu_s", "tokens", "bytes"]
    table = pd.DataFrame([*rows, {"path": "other", "seconds": other_s}], columns=columns)
    table["share"] = table["seconds"] / wall_s if wall_s else float("nan")
    return table


def outermost(path: str) -> bool:
    """Whether a path names a stage that is not part of another."""
    return "/" not in path
