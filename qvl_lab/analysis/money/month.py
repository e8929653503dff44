"""A month of traffic: billed by use, or as machines that are kept on; and when a start pays.

A month has 730 hours, a twelfth of a year.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from qvl_lab.errors import ConfigError

HOURS_A_MONTH = 730.0
DAYS_A_MONTH = HOURS_A_MONTH / 24


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a setting takes: the rate at which it answers, its start, and the price of an hour.

    Parameters
    ----------
    s_per_image : float
        Seconds of one GPU for an image with all of its questions.
    start_s : float
        Seconds of a cold start; 0 where it was not measured.
    per_hour : float
        What an hour of one GPU costs.
    gpus_per_machine : int
        How many GPUs are rented together.
    """

    s_per_image: float
    per_hour: float
    start_s: float = 0.0
    gpus_per_machine: int = 1

    @property
    def images_a_month(self) -> float:
        """What one GPU does at most, working around the clock."""
        return HOURS_A_MONTH * 3600 / self.s_per_image

    @property
    def machine_month(self) -> float:
        """What a machine costs that is kept on for a month."""
        return self.per_hour * self.gpus_per_machine * HOURS_A_MONTH


@dataclass(frozen=True, kw_only=True)
class Month:
    """What a month of traffic takes with one setting.

    Attributes
    ----------
    by_use : float
        Money where seconds of work and of starts are billed and nothing else.
    gpus, spare : int
        GPUs kept on, and how many of them are not needed for the work.
    busy : float
        Share (0-1) of the time of all GPUs kept on that goes into the work.
    kept_on : float
        Money for the machines that have these GPUs, around the clock.
    """

    by_use: float
    gpus: int
    spare: int
    busy: float
    kept_on: float


def month(
    setting: Setting,
    images: float,
    *,
    utilisation: float = 1.0,
    starts: float = DAYS_A_MONTH,
    spare: int = 1,
    peak_hour_images: float | None = None,
) -> Month:
    """What so many images a month take.

    Parameters
    ----------
    utilisation : float
        Share (0-1] of the billed time that does this work, for the sum billed by use.
    starts : float
        Cold starts a month that are billed by use; by default one a day.
    spare : int
        GPUs kept on beyond those that the work needs, for a failure or a restart.
    peak_hour_images : float, optional
        Images of the busiest hour; by default the month's images come evenly.
    """
    for name, value in {"images": images, "peak_hour_images": peak_hour_images}.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"{name} must be a number above 0, not {value!r}")
    evenly = images / HOURS_A_MONTH
    needed = math.ceil(max(evenly, peak_hour_images or 0.0) * setting.s_per_image / 3600 - 1e-9)
    per_machine = setting.gpus_per_machine
    machines = math.ceil((max(needed, 1) + spare) / per_machine)
    gpus = machines * per_machine
    hours = images * setting.s_per_image / 3600
    by_use = (hours / utilisation + starts * setting.start_s / 3600) * setting.per_hour
    return Month(
        by_use=by_use,
        gpus=gpus,
        spare=gpus - max(needed, 1),
        busy=hours / (gpus * HOURS_A_MONTH),
        kept_on=machines * setting.machine_month,
    )


def pays_from(before: Setting, after: Setting) -> float | None:
    """From how many images a start on ``after`` pays in spite of a longer start.

    Returns
    -------
    float or None
        0 if it starts as fast; None if it never pays, since it answers no faster.
    """
    longer_s = after.start_s - before.start_s
    gained_s = before.s_per_image - after.s_per_image
    if longer_s <= 0:
        return 0.0 if gained_s >= 0 else None
    return longer_s / gained_s if gained_s > 0 else None


def setting_of(row: pd.Series, per_hour: float, gpus_per_machine: int = 1) -> Setting:
    """A measured row at a price; an image takes as many answers as it has questions.

    Where the row does not say how many those are, its answers are counted.
    """
    questions, start_s = row.get("questions_per_image"), row.get("start_s")
    return Setting(
        s_per_image=row["s_per_100_images"] / 100 * (1 if pd.isna(questions) else questions),
        per_hour=per_hour,
        start_s=0.0 if pd.isna(start_s) else float(start_s),
        gpus_per_machine=gpus_per_machine,
    )
