"""What a review rests on: rows that compare, and what is recommended."""

from __future__ import annotations

from functools import partial

import pandas as pd

from qvl_lab.analysis.money.recommend import Recommendation, find_row, measured, recommend
from qvl_lab.errors import ConfigError, LimitError
from qvl_lab.hardware import Gpu, cpu_label, find_gpu
from qvl_lab.show.locale import label
from qvl_lab.show.report.options import ReviewOptions

#: Rows that differ in these answer different questions and are not compared.
_COMPARABLE = (
    *("model", "revision", "workload_fingerprint", "plan"),
    *("max_new_tokens", "min_new_tokens"),
)
#: Never varied to save money: answers of another length are other answers.
_HELD = ("max_new_tokens", "min_new_tokens")


def comparable(frame: pd.DataFrame, lang: str) -> tuple[pd.Series, list[str]]:
    """Which rows are like the newest in machine, versions, model and workload; notes on others.

    Returns
    -------
    Series of bool, list of str
    """
    newest = frame.iloc[int(frame["started_at"].argmax())]
    here = frame["environment"] == newest["environment"]
    same = here.copy()
    for name in _COMPARABLE:
        same &= frame[name].map(str) == str(newest[name])
    notes = []
    if left := int((~here).sum()):
        notes.append(label("note_environments", lang, n=left))
    if left := int((here & ~same).sum()):
        notes.append(label("note_workloads", lang, n=left))
    return same, notes


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


def recommended(frame: pd.DataFrame, options: ReviewOptions) -> Recommendation | None:
    """What to run instead; None if nothing was measured.

    Where no quality is as high as was asked for, the best one there is is kept.
    """
    try:
        rows = measured(frame)
    except ConfigError:
        return None
    current, min_quality = options.current or None, options.min_quality
    today = find_row(rows, current or {})
    # without today's quality nothing says what fewer pixels would lose
    unknown = min_quality is None and pd.isna(today["quality"])
    choose = partial(
        recommend,
        frame,
        current=current,
        hold=("resolution", *_HELD) if unknown else _HELD,
        max_vram_gib=options.max_vram_gib,
        max_ttft_s=options.max_ttft_s,
    )
    try:
        return choose(min_quality=min_quality)
    except LimitError:
        best = rows["quality"].max()
        if min_quality is None or best >= min_quality:
            raise
        return choose(min_quality=float(best))
