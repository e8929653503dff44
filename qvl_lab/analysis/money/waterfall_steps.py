"""Which steps between today's setting and the recommended one may be shown as such."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from qvl_lab.analysis.money.confirmed import saving
from qvl_lab.analysis.money.steps import Step


def sure_steps(current: pd.Series, steps: Sequence[Step]) -> list[Step]:
    """Steps whose saving's 95% interval leaves no doubt about its sign.

    A step in doubt is merged into the next one, and at the end into the one before. One between
    settings that were timed once has no interval and stays.

    Parameters
    ----------
    current : Series
        Today's setting, from which the first step starts.
    steps : sequence of Step
        Of :func:`qvl_lab.analysis.money.recommend.recommend`.
    """
    kept: list[Step] = []
    open_steps: list[Step] = []
    position = current
    for step in steps:
        open_steps.append(step)
        if not saving(position, step.row).holds_zero:
            kept.append(_merged(open_steps))
            position, open_steps = step.row, []
    if open_steps:
        kept[-1:] = [_merged([*kept[-1:], *open_steps])]
    return kept


def _merged(steps: Sequence[Step]) -> Step:
    """Several steps as one."""
    changed = {name: value for step in steps for name, value in step.changed.items()}
    return replace(steps[-1], changed=changed, before_s=steps[0].before_s)
