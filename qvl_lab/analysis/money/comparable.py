"""Like with like: which rows may be compared, and what is left out.

Rows that differ in what was asked (model, questions, length of answers), in what a timed pass
answers or in where they ran are not compared unless somebody asks for it: the difference between
them is not what a setting saves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from qvl_lab.analysis.frame import what_is_timed
from qvl_lab.config import check_name
from qvl_lab.errors import ConfigError
from qvl_lab.runs.records import Run, environment_key

#: Columns that rows must agree in to be compared, the plainest difference first.
ALIKE = (
    *("model", "revision", "workload_fingerprint", "max_new_tokens", "min_new_tokens"),
    *("plan", "environment"),
)


@dataclass(frozen=True, kw_only=True, repr=False)
class LeftOut:
    """Rows that are not compared, all for the same reason.

    Attributes
    ----------
    differs : tuple of str
        In which of :data:`ALIKE` they differ from those that are.
    rows : DataFrame
    """

    differs: tuple[str, ...]
    rows: pd.DataFrame

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def cheapest(self) -> pd.Series | None:
        """The one that takes the least time per 100 images; None if none was measured."""
        seconds = self.rows["s_per_100_images"].where(self.rows["status"] == "ok").astype(float)
        return None if seconds.isna().all() else self.rows.iloc[int(seconds.argmin())]

    def named(self) -> dict[str, list[str]]:
        """What differs, to the values that these rows have, as a reader knows them.

        A workload goes by its name, a plan by how many items its passes answer, and an
        environment, which has no short name, by none.
        """
        columns: dict[str, str | None] = {
            "workload_fingerprint": "workload",
            "plan": "answered",
            "environment": None,
        }
        found: dict[str, list[str]] = {}
        for name in self.differs:
            column = columns.get(name, name)
            values = [] if column is None else list(self.rows[column].dropna().map(spelled))
            found[name] = list(dict.fromkeys(values))
        return found

    def __repr__(self) -> str:
        words = {
            "workload_fingerprint": "of workload {}",
            "plan": "of passes over {} items",
            "environment": "of another machine or other versions",
            "max_new_tokens": "of at most {} new tokens",
            "min_new_tokens": "of at least {} new tokens",
        }
        parts = [
            words.get(name, f"of {name} {{}}").format(", ".join(values) or "unknown")
            for name, values in self.named().items()
        ]
        return f"<{len(self)} {'row' if len(self) == 1 else 'rows'} {' and '.join(parts)}>"


def comparable(
    frame: pd.DataFrame, like: pd.Series | None = None, across: Sequence[str] = ()
) -> tuple[pd.Series, list[LeftOut]]:
    """Which rows may be compared with one, and the others by what they differ in.

    Parameters
    ----------
    frame : DataFrame
    like : Series, optional
        The row that the others must be like, by default the newest.
    across : sequence of str
        Names of :data:`ALIKE` in which rows may differ all the same, ``("model",)``.

    Returns
    -------
    Series of bool, list of LeftOut

    Raises
    ------
    UnknownNameError
        If ``across`` names something else.
    ConfigError
        If the frame has no rows.
    """
    for name in across:
        check_name(name, ALIKE)
    if frame.empty:
        raise ConfigError("there are no rows to compare")
    like = frame.iloc[int(frame["started_at"].argmax())] if like is None else like
    free = {*across, *(("revision",) if "model" in across else ())}
    names = [name for name in ALIKE if name not in free]
    other = pd.DataFrame({name: frame[name].map(spelled) != spelled(like[name]) for name in names})
    differs = [tuple(n for n in names if row[n]) for row in other.to_dict("records")]
    left = [
        LeftOut(differs=reason, rows=frame[[found == reason for found in differs]])
        for reason in dict.fromkeys(differs)
        if reason
    ]
    return ~other.any(axis=1), left


def alike(run: Run, other: Run) -> bool:
    """Whether two runs may be compared, as :func:`comparable` says it of rows."""
    return _identity(run) == _identity(other)


def _identity(run: Run) -> tuple[str, ...]:
    config = run.config | run.resolved
    known: dict[str, Any] = {name: config.get(name) for name in ALIKE}
    known["workload_fingerprint"] = run.workload.get("fingerprint")
    known["plan"] = sorted(what_is_timed(run.plan).items())
    known["environment"] = environment_key(run.environment)
    return tuple(spelled(value) if name != "plan" else str(value) for name, value in known.items())


def matching(rows: pd.DataFrame, wanted: Mapping[str, Any]) -> pd.DataFrame:
    """The rows whose columns have these values, however pandas spells them."""
    for name, value in wanted.items():
        rows = rows[rows[name].map(spelled) == spelled(value)]
    return rows


def spelled(value: Any) -> str:
    """One spelling for equal settings: in a column, pandas makes None NaN and 4 4.0."""
    if pd.isna(value):
        return "None"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
