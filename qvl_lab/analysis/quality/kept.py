"""Whether a cheaper setting keeps the quality of today's, as far as the questions can tell.

Both settings answered the same questions. Three things can be true of the difference:

- "shown": even the low end of its 95% interval is above the loss that is allowed.
- "lost": even the high end is below zero, and the loss may be more than is allowed.
- "not shown": the questions are too few to tell.

A setting of the first kind may be recommended and one of the second never. One of the third may
only if no answer at all got worse, and then it is said how many more questions would tell. Zero
worse answers of 36 allow for a true loss of 8 points; for one of 2 points, 150 are needed.
"""

from __future__ import annotations

import math
from typing import Literal

import pandas as pd

from qvl_lab.analysis.stats.intervals import Comparison

Kept = Literal["shown", "not shown", "lost"]
Unusable = Literal["random weights", "not scored", "few answers", "nothing right"]

#: With fewer scored answers than these, quality is as good as unknown.
FEWEST_SCORED = 20


def quality_kept(pair: Comparison, max_loss: float) -> Kept:
    """What a comparison with today's setting says about a loss of at most ``max_loss``.

    Parameters
    ----------
    pair : Comparison
        The other setting's scores less today's.
    max_loss : float
        In quality (0-1), 0.02 for two points.
    """
    if pair.low > -max_loss:
        return "shown"
    return "lost" if pair.high < 0 else "not shown"


def may_be_recommended(pair: Comparison, max_loss: float) -> bool:
    """Whether a setting may be recommended by its answers."""
    kept = quality_kept(pair, max_loss)
    return kept == "shown" or (kept == "not shown" and not pair.worse)


def more_answers(pair: Comparison, max_loss: float) -> int | None:
    """About how many more scored answers would show that quality is kept.

    If more answers fall out like these did: where no pair differs, the interval shrinks as
    their number grows, otherwise as the root of it. Rounded up to tens; 0 where it is shown, None
    where the difference itself is a larger loss than is allowed, which more answers would confirm.
    """
    if pair.low > -max_loss:
        return 0
    if not pair.count or not max_loss > max(0.0, -pair.difference):
        return None
    if pair.worse or pair.better:
        reach = (pair.difference - pair.low) / (pair.difference + max_loss)
        more = pair.count * (reach**2 - 1)
    else:
        more = (pair.count + 2) * (-pair.low / max_loss - 1)  # two imagined items count too
    return 10 * math.ceil(more / 10)


def why_unusable(rows: pd.DataFrame, today: pd.Series, max_loss: float) -> Unusable | None:
    """Why the quality of these rows cannot guide a choice; None if it can.

    Parameters
    ----------
    rows : DataFrame
        That are compared.
    today : Series
        The one of them that others are compared with.
    max_loss : float
        What may be lost (0-1). Where today's quality is no more than that, all of it might be.
    """
    if pd.isna(today["quality"]):
        return "random weights" if today["random_weights"] else "not scored"
    if today["quality_items"] < FEWEST_SCORED:
        return "few answers"
    nothing = rows["quality"].max() <= 0 or today["quality"] <= max_loss
    return "nothing right" if nothing else None
