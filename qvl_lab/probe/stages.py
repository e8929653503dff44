"""Stage marks: who spends the time, without asking the GPU to stop and tell.

Code that does work says where it is with :func:`stage` or :func:`begin` and :func:`end`; it does
not know who listens. With nobody listening a mark is one test of an empty tuple. A
:class:`Recorder` listens: it notes CPU times, and for GPU stages drops CUDA events into the
stream, which are read only after the work is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol


class Listener(Protocol):
    """Hears every mark made while it is subscribed."""

    def begin(self, name: str, gpu: bool) -> None: ...

    def end(self, name: str, gpu: bool) -> None: ...


_listeners: tuple[Listener, ...] = ()


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Subscribe a listener for the duration of a ``with`` block."""
    global _listeners
    _listeners = (*_listeners, listener)
    try:
        yield
    finally:
        _listeners = tuple(other for other in _listeners if other is not listener)


def begin(name: str, *, gpu: bool = False) -> None:
    """A stage starts here; ``gpu`` says that its work is queued on the current CUDA stream."""
    for listener in _listeners:
        listener.begin(name, gpu)


def end(name: str, *, gpu: bool = False) -> None:
    """The stage that was begun last under this name ends here."""
    for listener in _listeners:
        listener.end(name, gpu)


class stage:  # noqa: N801 - reads as a statement: with stage("decode"): ...
    """``with stage("vision", gpu=True): ...`` marks a block; it ends also when the block raises."""

    __slots__ = ("gpu", "name")

    def __init__(self, name: str, *, gpu: bool = False) -> None:
        self.name, self.gpu = name, gpu

    def __enter__(self) -> None:
        if _listeners:
            begin(self.name, gpu=self.gpu)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if _listeners:
            end(self.name, gpu=self.gpu)


@dataclass(frozen=True)
class Span:
    """One stage, in seconds on the recorder's clock; GPU spans are placed on the same clock."""

    name: str
    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


class Recorder:
    """Notes marks and resolves them to spans on one clock.

    The first GPU mark after a pause anchors CUDA event times to the CPU clock: the stream is idle
    then, so the event happens when it is queued.

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
        self._open: dict[str, tuple[float, Any]] = {}
        self._closed: list[tuple[str, tuple[float, Any], tuple[float, Any]]] = []

    def begin(self, name: str, gpu: bool) -> None:
        self._open[name] = self._now(gpu)

    def end(self, name: str, gpu: bool) -> None:
        if name in self._open:
            self._closed.append((name, self._open.pop(name), self._now(gpu)))

    def spans(self) -> list[Span]:
        """Closed spans so far, then forget them. Call when the device is idle."""
        closed, self._closed = self._closed, []
        self._open.clear()
        starts = [start for _, start, _ in closed if start[1] is not None]
        anchor = min(starts, key=lambda start: start[0], default=None)  # inner stages close first
        return [
            Span(name, self._place(start, anchor), self._place(stop, anchor))
            for name, start, stop in closed
        ]

    def forget(self) -> None:
        """Drop what was noted, without asking the device about it."""
        self._open.clear()
        self._closed.clear()

    def _now(self, gpu: bool) -> tuple[float, Any]:
        if not (gpu and self._cuda):
            return self._clock(), None
        import torch

        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return self._clock(), event

    @staticmethod
    def _place(point: tuple[float, Any], anchor: tuple[float, Any] | None) -> float:
        cpu_s, event = point
        if event is None or anchor is None:
            return cpu_s
        return anchor[0] + float(anchor[1].elapsed_time(event)) / 1e3


def totals(spans: list[Span]) -> dict[str, float]:
    """Seconds per stage name, in order of first appearance."""
    sums: dict[str, float] = {}
    for span in spans:
        sums[span.name] = sums.get(span.name, 0.0) + span.duration_s
    return sums
