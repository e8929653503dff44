"""What each lever of the fast engine is worth: alone, and missing from all the others.

A lever is a field of :class:`~qvl_lab.config.Fast` that can be switched off (:data:`OFF`).
An ablation measures no lever, each alone, all but each, and all, with all else equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import pandas as pd

from qvl_lab.analysis.frame import SETTINGS, with_defaults
from qvl_lab.analysis.money.cost import cost_column
from qvl_lab.config import Fast
from qvl_lab.errors import ConfigError

#: Every lever, and its value when it is off.
OFF: dict[str, Any] = {"batch_size": 1} | {
    f.name: False for f in fields(Fast) if isinstance(f.default, bool)
}
#: Variants of one lever each; the others are "stock_serial", "stock", "nothing" and "all".
ONE_LEVER = ("alone", "all_but")
_ENDS = ("", "_low", "_high")


def ablation(frame: pd.DataFrame) -> pd.DataFrame:
    """Each lever alone, and all but each, against none and all of them.

    Returns
    -------
    DataFrame
        One row per ``lever``. For each of "alone" and "all_but": ``alone_images_per_s``,
        ``alone_s_per_100_images`` and, of a priced frame, ``alone_cost_CUR_per_100_images``.
        ``gained``: images per second of the lever alone over those without any lever; ``lost``:
        those of all levers over those of all but this one. Each has ``_low`` and ``_high``: the
        95% interval over repeats; that of a factor combines the worst ends of both rows' and is
        wider. NaN where a row was not measured, or its interval is not known.

    Raises
    ------
    ConfigError
        As :func:`ablation_rows`.
    """
    rows = ablation_rows(frame)
    nothing, everything = (_of(rows, name).iloc[0] for name in ("nothing", "all"))
    sides = {name: _of(rows, name).set_index("lever") for name in ONE_LEVER}
    columns = [name + end for name in _measures(rows) for end in _ENDS]
    factors = {
        "gained": [times_as_fast(row, nothing) for _, row in sides["alone"].iterrows()],
        "lost": [times_as_fast(everything, row) for _, row in sides["all_but"].iterrows()],
    }
    parts = [
        *(part[columns].add_prefix(f"{name}_") for name, part in sides.items()),
        *(
            pd.DataFrame(values, index=sides["alone"].index, columns=[name + end for end in _ENDS])
            for name, values in factors.items()
        ),
    ]
    table = pd.concat(parts, axis=1).astype(float).reset_index()
    table.attrs = dict(frame.attrs)
    return table


def ablation_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The settings that make up an ablation, in the order in which they are read.

    Of the rows that differ only in levers and engine, those with the most lever switched off are
    looked at. Levers are what was switched both on and off there; the batch size is one if a
    lever was off at a batch of one too. "all" is at the largest batch at which a lever was off.

    Returns
    -------
    DataFrame
        The frame's columns, and before them ``variant``, one of "stock_serial" (stock engine, one
        at a time), "stock" (at the batch size of "all"), "nothing", "alone", "all_but", "all",
        and ``lever``, known for "alone" and "all_but". A row that is missing is there, with its
        levers' values and otherwise None or NaN; numbers of rows that are not "ok" are NaN too.

    Raises
    ------
    ConfigError
        If no lever but the batch size was switched both on and off, or settings are not among
        the columns.
    """
    group, flags = _group(frame)
    fast = group[group["engine"] == "fast"]
    off = fast[flags].eq(False)
    batch = int(fast.loc[off.any(axis=1), "batch_size"].max())
    serial = bool(fast.loc[off.any(axis=1), "batch_size"].eq(1).any())
    on = ({"batch_size": batch} if serial and batch > 1 else {}) | dict.fromkeys(flags, True)
    none = {name: OFF[name] for name in on}
    settings: list[tuple[str, str | None, dict[str, Any]]] = [
        *([("stock_serial", None, {"batch_size": 1})] if batch > 1 else []),
        ("stock", None, {}),
        ("nothing", None, none),
        *(("alone", name, none | {name: on[name]}) for name in on),
        *(("all_but", name, on | {name: none[name]}) for name in on),
        ("all", None, on),
    ]
    found = [
        {"variant": variant, "lever": lever}
        | _row(group, "stock" if "stock" in variant else "fast", {"batch_size": batch} | wanted)
        for variant, lever, wanted in settings
    ]
    rows = pd.DataFrame(found, columns=["variant", "lever", *frame.columns])
    known = [name + end for name in _measures(rows) for end in _ENDS]
    rows[known] = rows[known].astype(float).where(rows["status"] == "ok")
    rows.attrs = dict(frame.attrs)
    return rows


def times_as_fast(after: pd.Series, before: pd.Series) -> tuple[float, float, float]:
    """How many times as fast one row is as another; low and high are the widest that their
    intervals allow.
    """
    name = "images_per_s"
    return (
        after[name] / before[name],
        after[f"{name}_low"] / before[f"{name}_high"],
        after[f"{name}_high"] / before[f"{name}_low"],
    )


def _group(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Rows that differ in levers and engine only, and the levers of on and off among them."""
    names = (*SETTINGS, "plan", "workload_fingerprint", "environment")
    alike = [name for name in names if name not in (*OFF, "engine")]
    flags = [name for name in OFF if OFF[name] is False]
    if absent := {*alike, *flags} - set(frame):  # rows that differ in them would look the same
        raise ConfigError(
            f"the frame lacks {', '.join(sorted(absent))}; make it with Runs.frame(), or with "
            "qvl_lab.analysis.frame.frame"
        )
    best: tuple[int, pd.DataFrame, list[str]] = (0, frame, [])
    key = with_defaults(frame)[alike].map(str).agg("\n".join, axis=1)
    for _, group in frame.groupby(key, sort=False):
        fast = group[group["engine"] == "fast"]
        varied = [name for name in flags if {True, False} <= set(fast[name])]
        count = int(fast[varied].eq(False).any(axis=1).sum())
        if count > best[0]:
            best = count, group, varied
    if not best[0]:
        raise ConfigError(
            f"no lever of the fast engine ({', '.join(flags)}) was measured both on and off with "
            "all else equal; measure an ablation with 'qvl-lab ablate'"
        )
    return best[1:]


def _row(group: pd.DataFrame, engine: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The row of an engine with these levers; only the batch size matters to the stock engine."""
    names = ["batch_size"] if engine == "stock" else list(wanted)
    rows = group[group["engine"] == engine]
    for name in names:
        rows = rows[rows[name].eq(wanted[name])]
    if rows.empty:
        return {"engine": engine} | dict(wanted)
    return dict(rows.iloc[0])


def _measures(rows: pd.DataFrame) -> Sequence[str]:
    """The columns of speed, time and, if the frame was priced, money."""
    try:
        return ("images_per_s", "s_per_100_images", cost_column(rows))
    except ConfigError:
        return ("images_per_s", "s_per_100_images")


def _of(rows: pd.DataFrame, variant: str) -> pd.DataFrame:
    return rows[rows["variant"] == variant]
