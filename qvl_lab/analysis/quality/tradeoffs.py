"""Quality across settings: agreement, what a precision loses, rows that differ in resolution.

Functions over the frame of :func:`qvl_lab.analysis.frame.frame`; two settings are compared item by
item, which needs rows of one workload.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from qvl_lab.analysis.frame import SETTINGS, quality_columns
from qvl_lab.analysis.money.comparable import ALIKE, matching
from qvl_lab.analysis.money.recommend import (
    REFERENCE_GROUP,
    baseline,
    precision_rank,
    quality_difference,
    with_quality,
)
from qvl_lab.analysis.quality.scoring import agreement
from qvl_lab.config import BY_TASK, NATIVE, check_name
from qvl_lab.errors import ConfigError


def with_agreement(frame: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """Fill the quality of rows of workloads whose true answers are not known.

    Quality is then the agreement with the answers of the most exact setting of the same model,
    workload and length of answers: smallest batch, most pixels, most exact precision.

    Parameters
    ----------
    frame : DataFrame
    answers : DataFrame
        From :meth:`qvl_lab.runs.store.Runs.answers`.
    """
    said = dict(list(answers.groupby(["run", "environment"])))
    pairs = zip(frame["key"], frame["environment"], strict=True)
    able = pd.Series([pair in said for pair in pairs], frame.index, dtype=bool)
    able &= (frame["status"] == "ok") & frame["s_per_100_images"].notna() & ~has_answers(frame)
    filled = frame.copy()
    for _, group in frame[able].groupby(list(REFERENCE_GROUP), dropna=False):
        best = baseline(group.reset_index(drop=True))
        reference = said[best["key"], best["environment"]].set_index("id")
        for index, row in group.iterrows():
            mine = said[row["key"], row["environment"]].set_index("id").reindex(reference.index)
            scores = agreement(
                _texts(mine["answer"]), _texts(reference["answer"]), _texts(reference["task"])
            )
            for name, value in quality_columns(scores, "agreement").items():
                if name not in filled:
                    filled[name] = None
                filled.at[index, name] = value
    return filled.infer_objects()


def has_answers(frame: pd.DataFrame) -> pd.Series:
    """For each row, whether the true answers of its workload are known and were scored."""
    return frame["quality"].notna().groupby(frame["workload_fingerprint"]).transform("any")


def precision_loss(frame: pd.DataFrame) -> pd.DataFrame:
    """What each precision loses against the most exact one, all else equal.

    Returns
    -------
    DataFrame
        One row per setting of a lower precision: ``precision``, ``against``, ``resolution``,
        ``batch_size``, ``difference`` (of quality, below 0 is a loss), ``low``, ``high`` (95%),
        ``p_value``, ``items``.
    """
    rows = with_quality(frame)
    ranks = precision_rank(rows["precision"])
    exact = rows[ranks == ranks.min()]
    columns = ["precision", "against", "resolution", "batch_size"]
    columns += ["difference", "low", "high", "p_value", "items"]
    found = []
    for _, row in rows[ranks > ranks.min()].iterrows():
        twins = matching(exact, row[_alike("precision")].to_dict())
        if twins.empty or (seen := quality_difference(twins.iloc[0], row)) is None:
            continue
        against = twins.iloc[0]["precision"]
        place = [row["precision"], against, row["resolution"], row["batch_size"]]
        found.append([*place, seen.difference, seen.low, seen.high, seen.p_value, seen.count])
    return pd.DataFrame(found, columns=columns)


def at_each_resolution(frame: pd.DataFrame, **settings: Any) -> pd.DataFrame:
    """One row with quality per resolution, the lowest first, all else equal.

    ``settings`` choose the rows. Among what they leave open it is the combination that was
    measured at most resolutions; of several the one of the most exact precision and the smallest
    batch.
    """
    rows = with_quality(frame)
    rows = rows[rows["resolution"] != BY_TASK]
    for name in settings:
        check_name(name, SETTINGS)
    rows = matching(rows, settings)
    if rows.empty:
        raise ConfigError(f"no setting with {settings or 'a uniform resolution'} has a quality")
    alike = rows[_alike("resolution", "task_resolutions")].map(str).agg("\n".join, axis=1)
    best = pd.DataFrame(
        {
            "sides": -alike.map(rows.groupby(alike)["resolution"].nunique()),
            "precision": precision_rank(rows["precision"]),
            "batch_size": rows["batch_size"],
        }
    ).sort_values(["sides", "precision", "batch_size"], kind="stable")
    rows = rows[alike == alike[best.index[0]]].drop_duplicates("resolution", keep="last")
    sides = rows["resolution"].map(lambda name: float("inf") if name == NATIVE else float(name))
    ordered: pd.DataFrame = rows.loc[sides.sort_values(kind="stable").index]
    return ordered


def _alike(*free: str) -> list[str]:
    """Columns that must agree where only ``free`` may differ."""
    names = dict.fromkeys([*SETTINGS, *ALIKE])
    return [name for name in names if name not in free]


def _texts(column: pd.Series) -> Sequence[str | None]:
    return [text if isinstance(text, str) else None for text in column]
