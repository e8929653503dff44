"""From today's setting to another one, lever by lever."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from qvl_lab.analysis.frame import SETTINGS, with_defaults
from qvl_lab.analysis.money.comparable import matching, spelled

#: The order in which levers are pulled from today's setting to the recommended one.
LEVERS = (
    *("batch_size", "cache_implementation", "engine", "prefix_cache"),
    *("attn_implementation", "precision"),
)


@dataclass(frozen=True, kw_only=True, repr=False)
class Step:
    """One lever pulled: which fields changed, and seconds per 100 images before and after."""

    changed: dict[str, Any]
    before_s: float
    after_s: float
    row: pd.Series

    def __repr__(self) -> str:
        changed = ", ".join(f"{name}={spelled(value)}" for name, value in self.changed.items())
        return f"<Step {changed}: {self.before_s:.3g} to {self.after_s:.3g} s per 100 images>"


def steps(rows: pd.DataFrame, current: pd.Series, best: pd.Series) -> list[Step]:
    """Pull the levers one after another, in the order of LEVERS and then the other settings.

    A setting between that was not measured is passed over: its change joins the next one.
    """
    rows = with_defaults(rows)
    current, best = (with_defaults(row.to_frame().T).iloc[0] for row in (current, best))
    names = [*LEVERS, *(n for n in SETTINGS if n not in LEVERS)]
    differing = [n for n in names if spelled(current[n]) != spelled(best[n])]
    position, changed, result = current, {}, []
    for i, name in enumerate(differing):
        changed[name] = best[name]
        pulled, rest = differing[: i + 1], differing[i + 1 :]
        wanted = {n: best[n] for n in pulled} | {n: current[n] for n in rest}
        same = {n: current[n] for n in names if n not in differing}
        measured_between = matching(rows, wanted | same)
        if measured_between.empty:
            continue
        row = measured_between.iloc[0]
        result.append(
            Step(
                changed=changed,
                before_s=float(position["s_per_100_images"]),
                after_s=float(row["s_per_100_images"]),
                row=row,
            )
        )
        position, changed = row, {}
    return result
