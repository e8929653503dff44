"""Traces as files: in the vocabulary of TensorBoard's PyTorch profiler, and for Perfetto."""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from qvl_lab.errors import ConfigError
from qvl_lab.probe.trace.events import CALLS, WORK, Nest, timed
from qvl_lab.probe.trace.reading import Trace

#: Files and bytes left in a TensorBoard folder unless told otherwise.
KEEP = 10
KEEP_BYTES = 2 * 2**30

_OURS = re.compile(r"[\w-]+\.(?P<time_ms>\d{13})\.pt\.trace\.json\.gz")
# torch-tb-profiler 0.4.3 knows the category names of 2021.
_CATEGORIES = {
    **dict.fromkeys(CALLS, "Runtime"),
    "fwdbwd": "forward_backward",
    "user_annotation": "cpu_op",
}
# Kineto writes "inf" blocks per SM and "N/A" GB/s; the reader computes with them, and fails.
_NO_NUMBERS = ("inf", "N/A")


def chrome(trace: Trace, path: str | Path) -> Path:
    """Write a trace as it is, for https://ui.perfetto.dev or chrome://tracing.

    Parameters
    ----------
    trace : Trace
        A trace.
    path : path
        Where to; gzipped if the name ends in ".gz". What is there is replaced.

    Returns
    -------
    Path
        The file.
    """
    return _write(trace, trace["traceEvents"], Path(path))


def tensorboard(
    trace: Trace,
    folder: str | Path,
    worker: str | None = None,
    keep: int = KEEP,
    keep_bytes: int = KEEP_BYTES,
) -> Path:
    """Write a trace where ``tensorboard --logdir`` finds it, as torch-tb-profiler 0.4.3 reads it.

    That reader knows CUDA calls as "Runtime", finds the operator of a kernel by equal "External
    id", and shows no user ranges. Here every call and kernel gets the id of the innermost
    operator or range around its launch, and ranges become operators, so that stages have a row in
    the operator view and kernels of a CUDA graph belong to the stage that launched it.

    Parameters
    ----------
    trace : Trace
        A trace; it is not changed.
    folder : path
        Made if it is missing. TensorBoard calls it a run.
    worker : str, optional
        Whose trace it is: letters, digits, "_" and "-"; the name of this machine if left out.
        Traces of one worker in one folder are its spans.
    keep, keep_bytes : int
        Afterwards the oldest files of the form ``WORKER.TIME_MS.pt.trace.json.gz`` are deleted
        until no more than this are left, in number and in bytes; the new one always stays, and no
        file of another form is touched.

    Returns
    -------
    Path
        The file, ``FOLDER/WORKER.TIME_MS.pt.trace.json.gz``.

    Raises
    ------
    ConfigError
        A worker's name that cannot be used, or a limit below 1.
    InputError
        No trace.
    """
    worker = re.sub(r"[^\w-]", "_", socket.gethostname()) if worker is None else worker
    if not re.fullmatch(r"[\w-]+", worker):
        raise ConfigError(
            f"worker {worker!r} cannot be part of a file name here; allowed are letters, digits, "
            "'_' and '-'; leave it out for the name of this machine"
        )
    if min(keep, keep_bytes) < 1:
        raise ConfigError(
            f"keep and keep_bytes must be 1 or more, not {keep!r} and {keep_bytes!r}; "
            "the newest file always stays"
        )
    converted = _converted(trace)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    time_ms = time.time_ns() // 1_000_000
    while (path := folder / f"{worker}.{time_ms}.pt.trace.json.gz").exists():
        time_ms += 1
    _write(trace, converted, path)
    _retain(path, keep, keep_bytes)
    return path


def _converted(trace: Trace) -> Iterator[dict[str, Any]]:
    owners = _owners(trace)
    return (
        _renamed(event, owners.get(position))
        for position, event in enumerate(trace["traceEvents"])
        # the reader takes the GPU's range of a step for another step of the CPU
        if event.get("cat") != "gpu_user_annotation" or not _is_step(event)
    )


def _owners(trace: Trace) -> dict[int, int]:
    """The id that each event is to carry, by its position in the trace.

    Operators and ranges have numbers of their own, CUDA calls and GPU work that of the innermost
    one around the launch; 0 is the reader's "belongs to nobody".
    """
    events = timed(trace)
    category = events["category"]
    ranges = events[category.isin(("cpu_op", "user_annotation"))]
    calls, work = events[category.isin(CALLS)], events[category.isin(WORK)]
    inside = Nest(ranges).innermost(calls["thread"], calls["start_s"]) + 1
    launched = dict(zip(calls["correlation"], inside.tolist(), strict=True))
    owner = work["correlation"].map(launched).fillna(0).astype("int64")
    return {
        **dict(zip(ranges.index.tolist(), range(1, len(ranges) + 1), strict=True)),
        **dict(zip(calls.index.tolist(), inside.tolist(), strict=True)),
        **dict(zip(work.index.tolist(), owner.tolist(), strict=True)),
    }


def _renamed(event: dict[str, Any], owner: int | None) -> dict[str, Any]:
    category = event.get("cat")
    if category in _CATEGORIES and not _is_step(event):
        event = {**event, "cat": _CATEGORIES[category]}
    if owner is None:
        return event
    args = event.get("args") or {}
    known = {key: value for key, value in args.items() if value not in _NO_NUMBERS}
    return {**event, "args": {**known, "External id": owner}}


def _is_step(event: dict[str, Any]) -> bool:
    return str(event.get("name")).startswith("ProfilerStep#")


def _write(trace: Trace, events: Iterable[dict[str, Any]], path: Path) -> Path:
    """Complete or not at all: a reader that watches the folder must not see half a file."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with _new(part, zipped=path.suffix == ".gz") as file:
            _dump(trace, events, file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _new(path: Path, *, zipped: bool) -> TextIO:
    if zipped:
        return gzip.open(path, "wt", encoding="utf-8", compresslevel=6)
    return path.open("w", encoding="utf-8")


def _dump(trace: Trace, events: Iterable[dict[str, Any]], file: TextIO) -> None:
    """Events last: TensorBoard's reader puts its counters before the last "]" of the file."""
    others = {key: value for key, value in trace.items() if key != "traceEvents"}
    head = json.dumps(others)[:-1]
    file.write(f'{head}{", " if others else ""}"traceEvents": [')
    for number, event in enumerate(events):
        file.write(f"{',' if number else ''}\n{json.dumps(event)}")
    file.write("\n]}")


def _retain(newest: Path, keep: int, keep_bytes: int) -> None:
    """Delete the oldest of our files, never ``newest``."""
    ours = [
        (int(match["time_ms"]), path)
        for path in newest.parent.iterdir()
        if (match := _OURS.fullmatch(path.name)) and path.is_file() and path != newest
    ]
    used = newest.stat().st_size
    for kept, (_, path) in enumerate(sorted(ours, reverse=True), start=1):
        used += path.stat().st_size
        if kept >= keep or used > keep_bytes:
            path.unlink(missing_ok=True)
