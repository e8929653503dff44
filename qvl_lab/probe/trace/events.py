"""A trace as tables of events: who ran on the CPU, what ran on the GPU, who launched what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from qvl_lab.errors import InputError
from qvl_lab.probe.trace.reading import Trace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

#: What the names of stage ranges begin with.
STAGE = "stage: "
#: Categories of Kineto: calls into CUDA, and work on the device.
CALLS = ("cuda_runtime", "cuda_driver")
WORK = ("kernel", "gpu_memcpy", "gpu_memset")

_WANTED = {*CALLS, *WORK, "cpu_op", "user_annotation", "gpu_user_annotation"}
_TEXTS = ["category", "name", "process", "lane"]
_NUMBERS = ["start_s", "end_s", "correlation", "bytes", "occupancy"]


@dataclass(frozen=True)
class Events:
    """Events of one trace. Times are seconds since the first of them.

    All have ``name``, ``thread`` (a number for a CPU thread, or for a stream of a device),
    ``start_s``, ``end_s``.

    Attributes
    ----------
    operators : DataFrame
        ATen operators and the like.
    calls : DataFrame
        Calls of the CUDA runtime and driver, with ``correlation``.
    stages, device_stages : DataFrame
        Ranges of stages: when the CPU was in them, and when the work launched in them ran.
    work : DataFrame
        Kernels, copies and memsets, with ``device``, ``bytes``, ``occupancy`` (0-1),
        ``launch_thread`` and ``launch_s`` (of the call that launched it; -1 and NaN if unknown)
        and ``stage`` (missing if it belongs to none).
    seconds : float
        From the first event's start to the last one's end.
    """

    operators: pd.DataFrame
    calls: pd.DataFrame
    stages: pd.DataFrame
    device_stages: pd.DataFrame
    work: pd.DataFrame
    seconds: float


def parse(trace: Trace | Events) -> Events:
    """The events of a trace; tables take either, so that a large trace is parsed once.

    Raises
    ------
    InputError
        The trace has no list of events, or an event without name, place or times.
    """
    if isinstance(trace, Events):
        return trace
    events = timed(trace)
    ours = events[events["name"].str.startswith(STAGE)]
    ours = ours.assign(name=ours["name"].str.removeprefix(STAGE))
    stages, device_stages = (_of(ours, f"{side}user_annotation") for side in ("", "gpu_"))
    calls = _of(events, *CALLS)
    return Events(
        operators=_of(events, "cpu_op"),
        calls=calls,
        stages=stages,
        device_stages=device_stages,
        work=_attributed(_of(events, *WORK), calls, stages, device_stages),
        seconds=float(events["end_s"].max()) if len(events) else 0.0,
    )


def timed(trace: Trace) -> pd.DataFrame:
    """Everything of a trace that takes time on the CPU or the GPU.

    Returns
    -------
    DataFrame
        By position in ``traceEvents``: ``category``, ``name``, ``process``, ``lane`` (Kineto's
        ``pid`` and ``tid``), ``thread`` (a number for the two), ``start_s``, ``end_s``,
        ``correlation``, ``bytes``, ``occupancy`` (0-1).
    """
    listed = trace.get("traceEvents") if isinstance(trace, dict) else None
    if not isinstance(listed, list):
        raise InputError(
            "this is no trace: a dict with a list under 'traceEvents' is needed; "
            "take Recording.trace, or read a file with qvl_lab.probe.trace.read"
        )
    try:
        rows = {
            position: _row(event)
            for position, event in enumerate(listed)
            if event.get("ph") == "X" and event.get("cat") in _WANTED
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"this trace has an event without name, place or times ({error!r}); "
            "record it again, or read it with qvl_lab.probe.trace.read"
        ) from error
    events = pd.DataFrame(list(rows.values()), list(rows), _TEXTS + _NUMBERS)
    events = events.astype(dict.fromkeys(_TEXTS, "str") | dict.fromkeys(_NUMBERS, "float64"))
    # the times are of 1970 or of the host's start: taken off before they lose digits
    times = events[["start_s", "end_s"]]
    events[["start_s", "end_s"]] = (times - times["start_s"].min()) / 1e6
    events["thread"] = events.groupby(["process", "lane"], sort=False).ngroup()
    return events


def _row(event: dict[str, Any]) -> tuple[Any, ...]:
    args = event.get("args") or {}
    start_us = float(event["ts"])
    place = event["name"], str(event["pid"]), str(event["tid"])
    return (
        event["cat"],
        *place,
        start_us,
        start_us + float(event.get("dur", 0)),
        _number(args.get("correlation")),
        _number(args.get("bytes")),
        _number(args.get("est. achieved occupancy %")) / 100,
    )


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _of(events: pd.DataFrame, *categories: str) -> pd.DataFrame:
    return events[events["category"].isin(categories)].reset_index(drop=True)


def _attributed(
    work: pd.DataFrame, calls: pd.DataFrame, stages: pd.DataFrame, device_stages: pd.DataFrame
) -> pd.DataFrame:
    """Work with its launch and its stage: the one around the launch, else the GPU's own range."""
    launches = calls.dropna(subset="correlation").drop_duplicates("correlation")
    launches = launches.set_index("correlation")
    work["device"] = work["process"]
    work["launch_s"] = work["correlation"].map(launches["start_s"]).astype("float64")
    thread = work["correlation"].map(launches["thread"])
    work["launch_thread"] = thread.fillna(-1).astype("int64")
    on_cpu = Nest(stages).innermost(work["launch_thread"], work["launch_s"])
    middle_s = (work["start_s"] + work["end_s"]) / 2
    on_gpu = Nest(device_stages).innermost(work["thread"], middle_s)
    launched_in = named(stages, on_cpu)
    work["stage"] = launched_in.where(launched_in.notna(), named(device_stages, on_gpu))
    return work


def named(ranges: pd.DataFrame, positions: Ints) -> pd.Series[str]:
    """Names of ranges by position; missing where it is -1."""
    return ranges["name"].reindex(positions).reset_index(drop=True)


class Nest:
    """Ranges that lie within one another or apart, on each thread.

    Parameters
    ----------
    ranges : DataFrame
        ``thread``, ``start_s``, ``end_s``.

    Attributes
    ----------
    parent : array of int
        Position of the range that directly encloses each, -1 for the outermost.
    """

    def __init__(self, ranges: pd.DataFrame) -> None:
        start, end = (ranges[column].to_numpy("float64") for column in ("start_s", "end_s"))
        thread = ranges["thread"].to_numpy("int64")
        order = np.lexsort((-end, start, thread))
        self.parent = _parents(order, thread, start, end)
        self._end = np.append(end, np.inf)  # position -1, "no range", never ends
        self._lanes = {
            int(lane): (order[thread[order] == lane], start[order][thread[order] == lane])
            for lane in np.unique(thread)
        }

    def innermost(self, threads: pd.Series[int], times_s: pd.Series[float]) -> Ints:
        """Position of the innermost range around each point in time of a thread, or -1."""
        lanes, times = threads.to_numpy("int64"), times_s.fillna(-1.0).to_numpy("float64")
        found = np.full(len(lanes), -1, np.int64)
        for lane in set(lanes.tolist()) & set(self._lanes):
            found[lanes == lane] = self._started_last(lane, times[lanes == lane])
        while (over := self._end[found] < times).any():
            found[over] = self.parent[found[over]]
        return found

    def _started_last(self, lane: int, times: Floats) -> Ints:
        order, starts = self._lanes[lane]
        last = np.searchsorted(starts, times, side="right") - 1
        return np.where(last >= 0, order[last], -1)


def _parents(order: Ints, thread: Ints, start: Floats, end: Floats) -> Ints:
    parent = np.full(len(order), -1, np.int64)
    opened: list[int] = []
    for i in order.tolist():
        while opened and (thread[opened[-1]] != thread[i] or end[opened[-1]] <= start[i]):
            opened.pop()
        if opened:
            parent[i] = opened[-1]
        opened.append(i)
    return parent
