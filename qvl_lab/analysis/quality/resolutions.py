"""The resolution that each task needs, as far as the questions can tell.

A table of resolutions makes a promise: no task loses more than the tolerance against the highest
resolution measured. Whichever size happens to look good on few questions does not keep it, so a
task goes lower only if it was asked about 60 images or more, and if the chance that it loses more
is below a third. With fewer, the highest resolution is proposed and it is said how many more would
tell. Both numbers are from simulated sweeps, which draw 36 to 420 of the packaged questions: at
most a tenth of the tables break their promise on all 420, and all 420 give the true table.
"""

from __future__ import annotations

import math
import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import Any

import pandas as pd

from qvl_lab.analysis.frame import task_column
from qvl_lab.analysis.quality.tradeoffs import at_each_resolution
from qvl_lab.analysis.stats.intervals import Comparison, chance_below, compare
from qvl_lab.errors import ConfigError

#: A task goes to a lower resolution if its chance of losing more than the tolerance is no higher,
MOST_CHANCE = 0.32
#: and if it was asked about so many images.
FEWEST_IMAGES = 60
#: Parts of a task's images, each judged at what the others would choose.
_FOLDS = 5
#: Draws for a chance, so that it is good to half a point.
_RESAMPLES = 8000


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A resolution for each task.

    Attributes
    ----------
    task_resolutions : dict
        Task to side in pixels or "native", as ``ImagePolicy`` takes it, of the tasks that have a
        proposal.
    table : DataFrame
        One row per task: ``task``, ``items`` that were scored, ``resolution`` (None where nothing
        was right at any size, or nothing scored), ``quality``, ``low``, ``high``,
        ``reference_resolution``, ``reference_quality``, ``difference`` and its ``p_value``;
        ``chance`` (0-1) that the task loses more than the tolerance; ``looks_enough``, the lowest
        resolution within the tolerance on these very items; ``judged``, the difference where each
        fifth of the images judges what the others alone would choose; ``more_items``, about
        how many more items would let the task go to ``looks_enough``, if they fall out like
        these; None where no number would.
    tolerance : float
        How much a task's quality may fall below the reference.
    """

    task_resolutions: dict[str, int | str]
    table: pd.DataFrame
    tolerance: float


def propose_resolutions(
    frame: pd.DataFrame, *, tolerance: float = 0.02, **settings: Any
) -> Proposal:
    """The lowest resolution that keeps each task's quality within ``tolerance`` of the highest.

    Parameters
    ----------
    frame : DataFrame
        With quality, at two resolutions or more.
    tolerance : float
        In quality (0-1). A task goes to a resolution if it was asked about
        :data:`FEWEST_IMAGES` images, and the chance that its true mean there is more than this
        below the one at the highest resolution measured is at most :data:`MOST_CHANCE`.
    settings
        Which rows to look at, ``precision="bf16"``; by default those that
        :func:`qvl_lab.analysis.quality.tradeoffs.at_each_resolution` chooses.

    Raises
    ------
    ConfigError
        If quality was not measured, or at one resolution only.
    """
    rows = at_each_resolution(frame, **settings)
    if len(rows) < 2:
        raise ConfigError(
            "a resolution for each task needs quality at two resolutions or more; sweep "
            "resolution=[256, 512, 'native'] over a workload with answers"
        )
    tasks = [_Task.of(task, rows) for task in rows.iloc[-1]["scores"]]
    found = [_proposed(task, rows, tolerance) for task in tasks]
    sides = {r["task"]: _side(r["resolution"]) for r in found if r["resolution"] is not None}
    return Proposal(task_resolutions=sides, table=pd.DataFrame(found), tolerance=tolerance)


@dataclass(frozen=True, kw_only=True)
class _Task:
    """One task's scores at each resolution, the lowest first, and the image of each score."""

    name: str
    scores: Sequence[Sequence[float]]
    images: Sequence[Hashable]

    @classmethod
    def of(cls, name: str, rows: pd.DataFrame) -> _Task:
        reference = rows.iloc[-1]
        known = reference["score_images"]
        count = len(reference["scores"][name])
        images = known[name] if isinstance(known, Mapping) else range(count)
        return cls(name=name, scores=[found[name] for found in rows["scores"]], images=images)

    def lowest(self, places: Sequence[int], tolerance: float) -> int:
        """The lowest resolution whose mean over these scores is within the tolerance."""
        means = [fmean(scores[place] for place in places) for scores in self.scores]
        return next(i for i, mean in enumerate(means) if mean >= means[-1] - tolerance - 1e-9)

    def judged(self, tolerance: float) -> float | None:
        """The mean difference where each part of the images is judged at what the others choose.

        None where there are too few images for parts.
        """
        images = list(dict.fromkeys(self.images))
        if len(images) < _FOLDS:
            return None
        random.Random(0).shuffle(images)
        part = {image: number % _FOLDS for number, image in enumerate(images)}
        places = range(len(self.images))
        differences = []
        for fold in range(_FOLDS):
            others = [place for place in places if part[self.images[place]] != fold]
            chosen = self.scores[self.lowest(others, tolerance)]
            differences += [
                chosen[place] - self.scores[-1][place]
                for place in places
                if part[self.images[place]] == fold
            ]
        return fmean(differences)

    def chosen(self, tolerance: float) -> tuple[int, float]:
        """The resolution to propose, and its chance of losing more than the tolerance."""
        highest = len(self.scores) - 1
        if len(set(self.images)) < FEWEST_IMAGES:
            return highest, 0.0
        for number in range(self.lowest(range(len(self.images)), tolerance), highest):
            chance = self.chance(number, tolerance)
            if chance <= MOST_CHANCE:
                return number, chance
        return highest, 0.0

    def chance(self, number: int, tolerance: float) -> float:
        """That the true loss at a resolution is more than the tolerance."""
        pair = [self.scores[-1]], [self.scores[number]]
        return chance_below(*pair, -tolerance, _RESAMPLES, images=[self.images])


def _proposed(task: _Task, rows: pd.DataFrame, tolerance: float) -> dict[str, Any]:
    """The row of a proposal's table."""
    column, reference = task_column(task.name), rows.iloc[-1]
    row: dict[str, Any] = {"task": task.name, "items": len(task.images), "resolution": None}
    row |= {"reference_resolution": reference["resolution"]}
    row |= {"reference_quality": reference[column]}
    unknown = ("quality", "low", "high", "difference", "p_value", "chance", "judged")
    row |= dict.fromkeys((*unknown, "looks_enough", "more_items"))
    if not any(value > 0 for scores in task.scores for value in scores):
        return row
    number, chance = task.chosen(tolerance)
    chosen, lowest = rows.iloc[number], task.lowest(range(len(task.images)), tolerance)
    pair, nearest = (
        compare([task.scores[-1]], [task.scores[n]], images=[task.images]) for n in (number, lowest)
    )
    row |= {"resolution": chosen["resolution"], "quality": chosen[column]}
    row |= {end: chosen[f"{column}_{end}"] for end in ("low", "high")}
    row |= {"difference": pair.difference, "p_value": pair.p_value, "chance": chance}
    row |= {"judged": task.judged(tolerance), "looks_enough": rows.iloc[lowest]["resolution"]}
    return row | {"more_items": 0 if lowest == number else _more_items(nearest, tolerance)}


def _more_items(pair: Comparison, tolerance: float) -> int | None:
    """About how many more items would let a task go to a resolution, if they fall out like these.

    Of a normal law, where pairs differ; where none does, of the two imagined items that
    :func:`qvl_lab.analysis.stats.intervals.compare` adds. None where no number would.
    """
    room = tolerance + pair.difference
    if room <= 0:
        return None
    if pair.worse or pair.better:
        deviation = (pair.difference - pair.low) / NormalDist().inv_cdf(0.975)
        needed = pair.count * (NormalDist().inv_cdf(1 - MOST_CHANCE) * deviation / room) ** 2
    else:
        needed = math.log(0.5 / MOST_CHANCE) / room - 2
    return max(1, math.ceil(max(needed, FEWEST_IMAGES)) - pair.count)


def _side(resolution: str) -> int | str:
    return int(resolution) if resolution.isdigit() else resolution
