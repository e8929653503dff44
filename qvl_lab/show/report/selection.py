"""What a review rests on: rows that compare, and what is recommended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pandas as pd

from qvl_lab.analysis.money.comparable import LeftOut, comparable
from qvl_lab.analysis.money.recommend import Recommendation, measured, recommend, todays_row
from qvl_lab.errors import ConfigError, LimitError
from qvl_lab.hardware import Gpu, cpu_label, find_gpu
from qvl_lab.show.locale import label
from qvl_lab.show.report.options import ReviewOptions


def compared(
    frame: pd.DataFrame, options: ReviewOptions
) -> tuple[pd.Series, list[LeftOut], list[str]]:
    """Which rows are compared: those like today's setting; the others, and notes on them.

    Where nothing was measured, those like the newest.

    Returns
    -------
    Series of bool, list of LeftOut, list of str
    """
    try:
        rows = measured(frame)
    except ConfigError:
        today = None
    else:
        today = todays_row(rows, options.current)
    same, left_out = comparable(frame, today)
    notes = []
    elsewhere = [left for left in left_out if "environment" in left.differs]
    if count := sum(map(len, elsewhere)):
        notes.append(label("note_environments", options.lang, n=count))
    if here := [left for left in left_out if "environment" not in left.differs]:
        named = left_out_words(here, options.lang)
        notes.append(f"{label('note_workloads', options.lang, n=sum(map(len, here)))} ({named})")
    return same, left_out, notes


def left_out_words(left_out: Sequence[LeftOut], lang: str) -> str:
    """What rows that are not compared differ in: "model random:2b; workload other"."""
    words = [
        label("and", lang).join(
            label(f"alike_{name}", lang, values=", ".join(values) or "?")
            for name, values in left.named().items()
        )
        for left in left_out
    ]
    return "; ".join(dict.fromkeys(words))


def older_clock(frame: pd.DataFrame, lang: str) -> list[str]:
    """A note on rows whose time to first token was taken by another clock, if there are any."""
    count = int(frame["batch_ttft_s"].notna().sum())
    return [label("note_older_clock", lang, n=count)] if count else []


def on_gpu(frame: pd.DataFrame) -> bool:
    """Whether the runs used one."""
    return bool(frame["device"].dropna().astype(str).str.startswith("cuda").any())


def device(frame: pd.DataFrame) -> str:
    """The GPU's name as the driver says it, or the CPU's."""
    if on_gpu(frame):
        return environment(frame, "gpu") or "?"
    return cpu_label({name: environment(frame, name) for name in ("cpu", "cpu_count")})


def environment(frame: pd.DataFrame, name: str) -> str | None:
    """A field of the machine's fingerprint."""
    value = frame.iloc[0][f"env_{name}"]
    return None if pd.isna(value) else str(value)


def measured_gpu(frame: pd.DataFrame) -> Gpu | None:
    """The GPU that the runs used; None if they used none, or one that the table does not know."""
    return find_gpu(environment(frame, "gpu")) if on_gpu(frame) else None


def recommended(
    frame: pd.DataFrame, options: ReviewOptions, left_out: Sequence[LeftOut] = ()
) -> Recommendation | None:
    """What to run instead; None if nothing was measured.

    Where no quality is as high as was asked for, the best one there is is kept.

    Parameters
    ----------
    frame : DataFrame
        The rows that are compared.
    options : ReviewOptions
    left_out : sequence of LeftOut
        The others.
    """
    try:
        rows = measured(frame)
    except ConfigError:
        return None
    min_quality = options.min_quality
    choose = partial(
        recommend,
        frame,
        current=options.current or None,
        max_quality_loss=options.max_quality_loss,
        max_vram_gib=options.max_vram_gib,
        max_ttft_s=options.max_ttft_s,
        max_failed_share=options.max_failed_share,
    )
    try:
        advice = choose(min_quality=min_quality)
    except LimitError:
        best = rows["quality"].max()
        if min_quality is None or best >= min_quality:
            raise
        advice = choose(min_quality=float(best))
    return replace(advice, left_out=list(left_out))
