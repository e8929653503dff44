"""Traces from files, held to a size: what is over it is cut from the end of the recording."""

from __future__ import annotations

import gzip
import heapq
import json
import math
import re
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from qvl_lab.errors import ConfigError, InputError

#: A Chrome trace as Kineto writes it: metadata, and ``traceEvents`` with times in microseconds.
Trace = dict[str, Any]

#: Events and bytes of JSON that are read unless told otherwise: about a hundred eager decode
#: steps of an 8B model, some gigabytes as Python objects.
MAX_EVENTS = 1_000_000
MAX_BYTES = 512 * 2**20

_CHUNK = 2**20
_OPENING = re.compile(r'"traceEvents"\s*:\s*\[')
_SEPARATORS = re.compile(r"[\s,]*")


def read(path: str | Path, *, max_events: int = MAX_EVENTS, max_bytes: int = MAX_BYTES) -> Trace:
    """Read a trace, plain or gzipped, in bounded memory.

    Over a limit the events that start last are left out, with a warning that says how many and
    which seconds; the trace then carries ``truncated`` with ``events``, ``from_s``, ``to_s``
    (seconds since its first event).

    Parameters
    ----------
    path : path
        A file that torch.profiler, :func:`chrome` or :func:`tensorboard` wrote.
    max_events, max_bytes : int
        Limits on events, and on their size as JSON.

    Raises
    ------
    InputError
        The file is no Chrome trace, or ends in the middle.
    ConfigError
        A limit below 1.
    """
    check_limits(max_events, max_bytes)
    path = Path(path)
    try:
        with _opened(path) as file:
            scan = _Scan(file)
            kept = _Kept(max_events, max_bytes)
            for event, size in scan.events():
                kept.add(event, size)
            trace: Trace = {**scan.metadata(), "traceEvents": kept.events()}
    except (OSError, EOFError, ValueError, TypeError, zlib.error) as error:
        raise InputError(
            f"{path} is not a whole Chrome trace ({error}); allowed is the JSON that "
            "torch.profiler's export_chrome_trace writes, plain or gzipped; record it again"
        ) from error
    missing = kept.missing()
    if missing:
        trace["truncated"] = missing
        warnings.warn(_said(path, missing, kept.seen), stacklevel=2)
    return trace


def check_limits(max_events: int, max_bytes: int) -> None:
    """Refuse limits below 1 with a ConfigError."""
    if min(max_events, max_bytes) < 1:
        raise ConfigError(
            f"limits of a trace must be 1 or more, not max_events={max_events!r}, "
            f"max_bytes={max_bytes!r}; leave them out for {MAX_EVENTS} and {MAX_BYTES}"
        )


def _opened(path: Path) -> TextIO:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    if zipped:
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


class _Scan:
    """Events one by one, so that a file larger than memory can be read."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._text, self._at, self._head = file, "", 0, ""
        self._decode = json.JSONDecoder(strict=False).raw_decode

    def events(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Each event with the length of its JSON."""
        while not (opening := _OPENING.search(self._text)):
            if not self._more():
                raise ValueError("it has no traceEvents")
        self._head, self._at = self._text[: opening.end()], opening.end()
        while self._skip() != "]":
            try:
                event, end = self._decode(self._text, self._at)
            except json.JSONDecodeError:
                if not self._more():
                    raise
                continue
            if not isinstance(event, dict):
                raise ValueError(f"an event is {type(event).__name__}, not an object")
            yield event, end - self._at
            self._at = end

    def metadata(self) -> Trace:
        """All but the events; once they are read."""
        while self._more():
            pass
        whole = json.loads(self._head + self._text[self._at :], strict=False)
        del whole["traceEvents"]
        return dict(whole)

    def _skip(self) -> str:
        """Go to the next character that is no separator; "" is never returned."""
        while True:
            found = _SEPARATORS.match(self._text, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                raise ValueError("it ends within traceEvents")

    def _more(self) -> bool:
        chunk = self._file.read(_CHUNK)
        self._text, self._at = self._text[self._at :] + chunk, 0
        return bool(chunk)


class _Kept:
    """The events that start first, as many as the limits allow, in the order of the file."""

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self._limits = max_events, max_bytes
        self._heap: list[tuple[float, int, int, dict[str, Any]]] = []  # the latest on top
        self._bytes, self._first, self._cut, self._last = 0, math.inf, math.inf, -math.inf
        self.seen = 0

    def add(self, event: dict[str, Any], size: int) -> None:
        # names of processes and threads carry no time of their own: they are kept
        timed = event.get("ph") != "M" and "ts" in event
        start_us = float(event["ts"]) if timed else -math.inf
        heapq.heappush(self._heap, (-start_us, self.seen, size, event))
        self.seen += 1
        self._bytes += size
        if timed:
            self._first = min(self._first, start_us)
            self._last = max(self._last, start_us + float(event.get("dur", 0)))
        while len(self._heap) > self._limits[0] or self._bytes > self._limits[1]:
            negative_us, _, dropped, _ = heapq.heappop(self._heap)
            self._bytes -= dropped
            self._cut = min(self._cut, -negative_us)

    def events(self) -> list[dict[str, Any]]:
        return [event for _, _, _, event in sorted(self._heap, key=lambda item: item[1])]

    def missing(self) -> dict[str, float] | None:
        dropped = self.seen - len(self._heap)
        if not dropped:
            return None
        from_us, to_us = max(self._cut, self._first), max(self._last, self._first)
        return {
            "events": dropped,
            "from_s": (from_us - self._first) / 1e6,
            "to_s": (to_us - self._first) / 1e6,
        }


def _said(path: Path, missing: dict[str, float], seen: int) -> str:
    return (
        f"{path.name}: {missing['events']} of {seen} events are left out, those that start "
        f"between second {missing['from_s']:.6g} and {missing['to_s']:.6g}, because the trace "
        "is over its limit; record less work, or raise max_events or max_bytes"
    )
