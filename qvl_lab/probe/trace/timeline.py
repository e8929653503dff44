"""Who was busy when: CPU against GPU, and the times in which the GPU waited."""

from __future__ import annotations

import numpy as np
import pandas as pd

from qvl_lab.errors import ConfigError
from qvl_lab.probe.trace.events import Bools, Events, Floats, Nest, named, parse
from qvl_lab.probe.trace.reading import Trace

#: How a moment of the wall time can be, in the order of the overlap table.
STATES = ("GPU and CPU", "GPU only", "CPU only", "neither")

# Calls in which the CPU does nothing but wait for the GPU.
_WAITING = "Synchronize"
_ENDING = ["stage", "name", "launch_s", "launch_thread"]


def overlap(trace: Trace | Events) -> pd.DataFrame:
    """The wall time split by who was busy, a device at a time.

    The CPU is busy while an operator or a call into CUDA runs on any recorded thread, except a
    call that only waits for the GPU. "neither" is what torch does not see: Python between
    operators, preprocessing outside torch, and waiting.

    Returns
    -------
    DataFrame
        ``device`` (Kineto's number; missing where the trace has no GPU work), ``state`` (one of
        "GPU and CPU", "GPU only", "CPU only", "neither"), ``seconds``, ``share`` of the time
        from the first event to the last.
    """
    events = parse(trace)
    devices = events.work["device"].unique().tolist() or [None]
    return pd.concat([_states(events, device) for device in devices], ignore_index=True)


def _states(events: Events, device: str | None) -> pd.DataFrame:
    work = events.work[events.work["device"] == device]
    running = pd.concat([events.operators, events.calls])
    marks = [frame[["start_s", "end_s"]].to_numpy().ravel() for frame in (running, work)]
    edges = np.unique(np.concatenate([[0.0, events.seconds], *marks]))
    middles, lengths = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
    cpu, gpu = _cpu_busy(running, middles), _inside(work, middles)
    states = (gpu & cpu, gpu & ~cpu, cpu & ~gpu, ~cpu & ~gpu)
    seconds = [float(lengths[state].sum()) for state in states]
    table = pd.DataFrame({"state": STATES, "seconds": seconds})
    table.insert(0, "device", pd.Series([device] * len(STATES), dtype="str"))
    return table.assign(share=table["seconds"] / (events.seconds or np.nan))


def _cpu_busy(running: pd.DataFrame, times: Floats) -> Bools:
    busy = np.zeros(len(times), np.bool_)
    for _, thread in running.groupby("thread"):
        waiting = thread["name"].str.contains(_WAITING, regex=False)
        busy |= _inside(thread[~waiting], times) & ~_inside(thread[waiting], times)
    return busy


def _inside(ranges: pd.DataFrame, times: Floats) -> Bools:
    starts, ends = merged(ranges)
    begun, over = (np.searchsorted(marks, times, "right") for marks in (starts, ends))
    return np.asarray(begun > over, np.bool_)


def merged(ranges: pd.DataFrame) -> tuple[Floats, Floats]:
    """Starts and ends of the union of ranges, in order, no two of them touching."""
    ordered = ranges.sort_values("start_s")
    starts, ends = ordered["start_s"].to_numpy("float64"), ordered["end_s"].to_numpy("float64")
    if not len(starts):
        return starts, ends
    reached = np.maximum.accumulate(ends)
    first = np.concatenate([[True], starts[1:] > reached[:-1]])
    last = np.concatenate([first[1:], [True]])
    return starts[first], reached[last]


def idle(events: Events) -> pd.DataFrame:
    """Every time that a device did nothing between its first and its last work.

    Returns
    -------
    DataFrame
        Device by device, in order of time: ``device``, ``start_s``, ``seconds``; of the work
        that ended it: ``stage``, ``kernel``, ``launch_s``, ``launch_thread``.
    """
    waits = [_waits(work) for _, work in events.work.groupby("device", sort=False)]
    return pd.concat(waits or [_waits(events.work)], ignore_index=True)


def _waits(work: pd.DataFrame) -> pd.DataFrame:
    """The waits of one device."""
    starts, ends = merged(work)
    # a merged range starts where the work that ended the wait does
    by_start = work.sort_values("start_s", kind="stable").drop_duplicates("start_s")
    ending = by_start[by_start["start_s"].isin(starts[1:])][["device", "start_s", *_ENDING]]
    ending = ending.reset_index(drop=True)
    ending["seconds"] = starts[1:] - ends[:-1]
    ending["start_s"] = ends[:-1]
    return ending.rename(columns={"name": "kernel"})


def gaps(trace: Trace | Events, limit: int = 20) -> pd.DataFrame:
    """The longest times in which the GPU waited between two pieces of work, and for whom.

    Parameters
    ----------
    trace : Trace or Events
        A trace.
    limit : int
        How many rows at most, 1 or more.

    Returns
    -------
    DataFrame
        Longest first: ``device``; ``start_s`` since the first event; ``seconds``; ``stage`` and
        ``kernel`` of the work that ended the gap; ``operator``, in which the CPU thread that
        launched that work spent most of the gap, not counting operators inside it; missing if it
        was in none (Python, or waiting); ``lead_s``, how long before the gap that launch began:
        below zero the CPU came late and the GPU waited for it; ``cpu``, "ahead" or "late"
        accordingly. Missing where the launch was not recorded.
    """
    if limit < 1:
        raise ConfigError(f"limit must be 1 or more gaps, not {limit!r}; leave it out for 20")
    events = parse(trace)
    waits = idle(events).sort_values("seconds", ascending=False, kind="stable")
    table = waits.head(limit).reset_index(drop=True)
    table["lead_s"] = table["start_s"] - table["launch_s"]
    ahead = pd.Series(np.where(table["lead_s"] >= 0, "ahead", "late"), dtype="str")
    table["cpu"] = ahead.where(table["lead_s"].notna())
    nest = Nest(events.operators)
    spans = zip(table["launch_thread"], table["start_s"], table["seconds"], strict=True)
    meanwhile = [
        _meanwhile(events, nest, int(thread), start_s, start_s + seconds)
        for thread, start_s, seconds in spans
    ]
    table["operator"] = pd.Series(meanwhile, dtype="str")
    columns = ["device", "start_s", "seconds", "stage", "kernel", "operator", "lead_s", "cpu"]
    return table[columns]


def _meanwhile(events: Events, nest: Nest, thread: int, start_s: float, end_s: float) -> str | None:
    """The operator that a thread spent most of a time in, itself and not what it called."""
    ran = events.operators
    ran = ran[(ran["thread"] == thread) & (ran["start_s"] < end_s) & (ran["end_s"] > start_s)]
    marks = np.concatenate([[start_s, end_s], ran[["start_s", "end_s"]].to_numpy().ravel()])
    edges = np.unique(np.clip(marks, start_s, end_s))
    middles = pd.Series((edges[:-1] + edges[1:]) / 2)
    found = nest.innermost(pd.Series(thread, middles.index), middles)
    names = named(events.operators, found)
    seconds = pd.Series(np.diff(edges)).groupby(names, dropna=False, sort=False).sum()
    longest = seconds.index[int(seconds.to_numpy().argmax())]
    return None if pd.isna(longest) else str(longest)
