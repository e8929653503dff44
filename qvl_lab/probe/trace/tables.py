"""Operators, kernels and stages of a trace, summed up by name."""

from __future__ import annotations

import numpy as np
import pandas as pd

from qvl_lab.probe.trace.events import Bools, Events, Floats, Ints, Nest, parse
from qvl_lab.probe.trace.groups import group
from qvl_lab.probe.trace.reading import Trace
from qvl_lab.probe.trace.timeline import idle, merged

#: The name of the kernels table's rows for the time between kernels.
GAPS = "launch gaps"


def operators(trace: Trace | Events) -> pd.DataFrame:
    """Operators of the CPU and the GPU work below them, longest CPU time first.

    Returns
    -------
    DataFrame
        ``name``; ``calls``; ``cpu_s``, with the operators called inside (one inside another of
        the same name counts once); ``self_cpu_s``, without them; ``gpu_s``, kernels, copies and
        memsets launched inside, NaN where the trace has no GPU work. Launches in a CUDA graph
        belong to whoever launched the graph.
    """
    events = parse(trace)
    table = events.operators[["name"]].copy()
    nest = Nest(events.operators)
    seconds = (events.operators["end_s"] - events.operators["start_s"]).to_numpy("float64")
    inside = nest.parent >= 0
    children = np.bincount(nest.parent[inside], seconds[inside], minlength=len(seconds))
    outermost = _outermost(table["name"], nest.parent)
    table["calls"] = 1
    table["cpu_s"] = np.where(outermost, seconds, 0.0)
    table["self_cpu_s"] = seconds - children[: len(seconds)]
    table["gpu_s"] = np.where(outermost, _launched_inside(events, nest), 0.0)
    if events.work.empty:
        table["gpu_s"] = np.nan
    sums = table.groupby("name", sort=False).sum(min_count=1).reset_index()
    return sums.sort_values("cpu_s", ascending=False, kind="stable", ignore_index=True)


def _outermost(names: pd.Series[str], parent: Ints) -> Bools:
    """Whether a call is inside no other of the same name."""
    codes = names.astype("category").cat.codes.to_numpy()
    result, above = np.ones(len(parent), np.bool_), parent.copy()
    while (open_ := above >= 0).any():
        result[open_] &= codes[above[open_]] != codes[open_]
        above[open_] = parent[above[open_]]
    return result


def _launched_inside(events: Events, nest: Nest) -> Floats:
    """Seconds of GPU work launched inside each operator, whoever below it launched them."""
    work, total = events.work, np.zeros(len(events.operators))
    seconds = (work["end_s"] - work["start_s"]).to_numpy("float64")
    above = nest.innermost(work["launch_thread"], work["launch_s"])
    while (open_ := above >= 0).any():
        total += np.bincount(above[open_], seconds[open_], minlength=len(total))
        above[open_] = nest.parent[above[open_]]
    return total


def kernels(trace: Trace | Events) -> pd.DataFrame:
    """What ran on the GPU, by name and stage, longest first, and the gaps between.

    Returns
    -------
    DataFrame
        ``name``; ``group``, one of :data:`~qvl_lab.probe.trace.GROUPS`; ``stage``, in which it
        was launched, missing if in none; ``calls``; ``gpu_s``; ``share`` of the sum of this
        column; ``mean_s`` of a call; ``bytes`` moved, where Kineto knows them (copies and
        memsets); ``occupancy`` (0-1), Kineto's estimate, weighted by time. The rows named
        "launch gaps" are idle seconds of the GPU between its first and its last work, with the
        stage whose work ended them. Empty without GPU work.
    """
    events = parse(trace)
    work = events.work[["name", "stage", "bytes", "occupancy"]].copy()
    work["group"] = work["name"].map(group).astype("str")
    work["gpu_s"] = events.work["end_s"] - events.work["start_s"]
    work["weight_s"] = work["gpu_s"].where(work["occupancy"].notna())
    work["weighted"] = work["occupancy"] * work["weight_s"]
    between = idle(events)
    gaps = pd.DataFrame({"stage": between["stage"], "gpu_s": between["seconds"]})
    rows = pd.concat([work, gaps.assign(name=GAPS, group="gap")], ignore_index=True)
    by_name = rows.groupby(["name", "group", "stage"], dropna=False, sort=False)
    table = by_name[["bytes", "weight_s", "weighted", "gpu_s"]].sum(min_count=1)
    table.insert(0, "calls", by_name.size())
    table["share"] = table["gpu_s"] / table["gpu_s"].sum()
    table["mean_s"] = table["gpu_s"] / table["calls"]
    table["occupancy"] = table["weighted"] / table["weight_s"]
    columns = ["name", "group", "stage", "calls", "gpu_s", "share", "mean_s", "bytes", "occupancy"]
    ordered = table.reset_index()[columns]
    return ordered.sort_values("gpu_s", ascending=False, kind="stable", ignore_index=True)


def stages(trace: Trace | Events) -> pd.DataFrame:
    """Stages as the CPU went through them, and the GPU work that belongs to each.

    Returns
    -------
    DataFrame
        In order of first appearance: ``stage``, its path; ``calls``; ``cpu_s`` between its
        marks; ``kernels``, how many kernels, copies and memsets were launched in it and in no
        stage inside it; their ``gpu_s``; ``gap_s``, idle seconds of the GPU that ended with one
        of them; ``gpu_span_s``, the time that Kineto's own GPU-side ranges of the stage cover,
        from the first to the last work that was launched directly in a call. A last row without a
        name holds GPU work of no stage, if there is any. GPU columns are missing where the
        trace has no GPU work.
    """
    events = parse(trace)
    work = events.work
    cpu = _seconds_by(events.stages, "name")
    gpu = _seconds_by(work, "stage")
    names = [*cpu.index, *(name for name in gpu.index if name not in cpu.index)]
    table = pd.DataFrame({"stage": pd.Series(names, dtype="str")})
    table["calls"] = table["stage"].map(cpu["calls"]).fillna(0).astype("int64")
    table["cpu_s"] = table["stage"].map(cpu["seconds"]).astype("float64")
    columns = {
        "kernels": gpu["calls"],
        "gpu_s": gpu["seconds"],
        "gap_s": idle(events).groupby("stage", dropna=False)["seconds"].sum(),
    }
    for column, values in columns.items():
        known = table["stage"].map(values).astype("float64")
        table[column] = np.nan if work.empty else known.fillna(0.0)
    table["kernels"] = table["kernels"].astype("Int64")
    spans = {name: _covered_s(ranges) for name, ranges in events.device_stages.groupby("name")}
    table["gpu_span_s"] = table["stage"].map(spans).astype("float64")
    return table


def _covered_s(ranges: pd.DataFrame) -> float:
    starts, ends = merged(ranges)
    return float((ends - starts).sum())


def _seconds_by(events: pd.DataFrame, key: str) -> pd.DataFrame:
    """``calls`` and ``seconds`` of each name, in order of first start."""
    ordered = events.sort_values("start_s", kind="stable")
    seconds = (ordered["end_s"] - ordered["start_s"]).groupby(
        ordered[key], sort=False, dropna=False
    )
    return pd.DataFrame({"calls": seconds.size(), "seconds": seconds.sum()})
