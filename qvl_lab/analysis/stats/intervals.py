"""How sure a score is, and whether two settings differ: the bootstrap and the permutation test.

The score of several tasks together is the macro mean, the mean of the tasks' means, so that no
task counts for more because it has more items.

Questions about one image fail together when the image does, so images are resampled and exchanged,
with all their questions, where it is known which questions share one (``images``). Otherwise every
question stands for itself.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import product
from numbers import Real
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvl_lab.errors import ConfigError

Groups = Sequence[Sequence[float | None]]
#: For each score of each group, which image it is about.
Images = Sequence[Sequence[Hashable]]
Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]

#: A difference whose p-value is at least this may be chance.
NOISE_FROM = 0.05
#: Non-zero differences up to which every assignment of signs is counted.
EXACT_UP_TO = 12
#: Assignments of signs drawn where there are more.
SIGN_DRAWS = 9_999


@dataclass(frozen=True)
class Comparison:
    """Two settings over the same items.

    Attributes
    ----------
    difference, low, high : float
        The second's macro mean less the first's, with its 95% interval; NaN without pairs.
    p_value : float
        How often a difference as large would come about if both were equally good.
    count : int
        Items that both have a score for.
    worse, better : int
        On how many of them the second's score is lower, and higher.
    """

    difference: float
    low: float
    high: float
    p_value: float
    count: int
    worse: int = 0
    better: int = 0

    @property
    def within_noise(self) -> bool:
        """Whether the difference may be chance, at the usual 5%."""
        return self.p_value >= NOISE_FROM


def interval(
    groups: Groups,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    *,
    images: Images | None = None,
) -> tuple[float, float, float]:
    """Macro mean of scores with its interval, over the choice of items.

    The Bayesian bootstrap (Rubin 1981, Annals of Statistics 9): within each group the scores get
    random Dirichlet weights. Two imagined items join in, one of score 0 and one of score 1, shared
    among the groups, so that 20 right answers of 20 do not pass for certainty; the plain bootstrap
    would have an interval of no width there. For right-or-wrong scores of one group this is the
    interval of a proportion under a uniform prior, Beta(right + 1, wrong + 1). Shared as in Price
    and Bonett (2004, Computational Statistics & Data Analysis 45), the two do not pull every group
    to the middle anew. Scores that lie close together need less of them: their weight is
    the share that the scores' variance has of the largest possible around the same means.

    Parameters
    ----------
    groups : sequence of sequences of float or None
        Scores from 0 to 1, a group per task. None and empty groups are left out.
    level : float
        Share of such intervals that hold the true mean. At 0.95, 0.92 to 0.98 do for most means of
        0.5 to 0.98 and 20 to 100 items a group, by simulation, some of which the tests repeat;
        with 5 or 10 items, 0.83 to 0.97 do.
    images : sequence of sequences, optional
        Of each score, which image it is about: images get the weights, and the imagined items
        have as many questions as an image of their group has.

    Returns
    -------
    tuple of float
        Mean, low, high; NaN without any score. Both bounds take in the mean.
    """
    _check_settings(level, resamples)
    scores, numbers = _with_images(
        [[None if v is None else _score_value(v) for v in group] for group in groups], images
    )
    draws = _draws(scores, numbers, (0.0, 1.0), _spread(scores), resamples, seed)
    return _mean_and_bounds(scores, draws, level)


def compare(
    a: Groups,
    b: Groups,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    *,
    images: Images | None = None,
) -> Comparison:
    """How much better the second setting is than the first, over the same items.

    The interval is that of :func:`interval` for the differences of the pairs. The two imagined
    items, in full (as Bonett and Price 2012, Journal of Educational and Behavioral Statistics 37),
    have the largest difference seen and its opposite, or 1 and -1 if all pairs are equal. The
    p-value is of the paired permutation test, which exchanges the two scores of an item at random:
    exact up to :data:`EXACT_UP_TO` unequal pairs, which for right-or-wrong scores of one group is
    McNemar's exact test, and drawn beyond, (k + 1) / (n + 1). Where few pairs differ the test is
    the stricter of the two: an interval without 0 alone does not show a difference.

    Parameters
    ----------
    a, b : sequence of sequences of float or None
        Scores from 0 to 1, a group per task, aligned by position. A pair with a None is left out.
    images : sequence of sequences, optional
        Of each pair, which image it is about: all scores of an image are exchanged together.

    Raises
    ------
    ConfigError
        If the two do not have the same groups and items.
    """
    _check_settings(level, resamples)
    pairs, numbers = _with_images(_differences(a, b), images)
    draws = _draws(pairs, numbers, _ends(pairs), 1.0, resamples, seed)
    return Comparison(
        *_mean_and_bounds(pairs, draws, level),
        p_value=_sign_flip_test(pairs, numbers, seed),
        count=sum(d.size for d in pairs),
        worse=sum(int((d < 0).sum()) for d in pairs),
        better=sum(int((d > 0).sum()) for d in pairs),
    )


def chance_below(
    a: Groups,
    b: Groups,
    limit: float,
    resamples: int = 2000,
    seed: int = 0,
    *,
    images: Images | None = None,
) -> float:
    """How likely it is (0-1) that the true difference of :func:`compare` is below ``limit``.

    NaN without pairs.
    """
    pairs, numbers = _with_images(_differences(a, b), images)
    if not pairs:
        return math.nan
    return float((_draws(pairs, numbers, _ends(pairs), 1.0, resamples, seed) < limit).mean())


def _ends(pairs: Sequence[Floats]) -> tuple[float, float]:
    """The differences of the two imagined items."""
    largest = max((float(np.abs(d).max()) for d in pairs), default=0.0) or 1.0
    return -largest, largest


def _with_images(
    groups: Groups, images: Images | None
) -> tuple[list[Floats], list[Numbers] | None]:
    """Groups without None and the empty ones, and the number of each score's image.

    No numbers where every score has an image of its own.
    """
    if images is None:
        scored = [np.array([v for v in group if v is not None], float) for group in groups]
        return [group for group in scored if group.size], None
    if [len(group) for group in groups] != [len(group) for group in images]:
        raise ConfigError("images must name one image for each score of each group")
    kept = [
        [(value, image) for value, image in zip(group, about, strict=True) if value is not None]
        for group, about in zip(groups, images, strict=True)
    ]
    kept = [group for group in kept if group]
    scored = [np.array([value for value, _ in group], float) for group in kept]
    order: dict[Hashable, int] = {}
    numbers = [
        np.array([order.setdefault(image, len(order)) for _, image in group]) for group in kept
    ]
    return scored, numbers if len(order) < sum(map(len, kept)) else None


def _spread(groups: Sequence[Floats]) -> float:
    """Variance as a share of the largest that scores with these means could have; 0 to 1.

    One item of the largest variance of all, 1/4, counts with them: where no score differs from
    its group's mean, the share is not 0 (and for scores of 1 alone not undefined).
    """
    actual = sum(float(((g - g.mean()) ** 2).sum()) for g in groups)
    largest = sum(float(g.size * g.mean() * (1 - g.mean())) for g in groups)
    return (actual + 0.25) / (largest + 0.25)


def _mean_and_bounds(
    groups: Sequence[Floats], draws: Floats, level: float
) -> tuple[float, float, float]:
    """Macro mean with the bounds that the draws give; NaN without any score."""
    if not groups:
        return math.nan, math.nan, math.nan
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    mean = fmean(float(group.mean()) for group in groups)
    return mean, min(float(low), mean), max(float(high), mean)


def _draws(
    groups: Sequence[Floats],
    numbers: Sequence[Numbers] | None,
    ends: tuple[float, float],
    weight: float,
    resamples: int,
    seed: int,
) -> Floats:
    """Resampled macro means; an item of ``weight`` at both ends is shared among the groups."""
    rng = np.random.default_rng(seed)
    extra = weight / max(1, len(groups))
    if numbers is None:
        means = [_weighted_means(group, ends, extra, resamples, rng) for group in groups]
    else:
        count = 1 + max(int(group.max()) for group in numbers)
        weights = rng.standard_gamma(1.0, (resamples, count))  # an image's, in all groups
        means = [
            _means_by_image(group, images, weights, ends, extra, rng)
            for group, images in zip(groups, numbers, strict=True)
        ]
    total: Floats = sum(means, np.zeros(resamples)) / max(1, len(means))
    return total


def _weighted_means(
    values: Floats,
    ends: tuple[float, float],
    extra: float,
    resamples: int,
    rng: np.random.Generator,
) -> Floats:
    """Means under Dirichlet weights: gamma variates over their sum, equal values drawn at once."""
    atoms, counts = np.unique(values, return_counts=True)
    total, weighted = np.zeros(resamples), np.zeros(resamples)
    for atom, shape in [*zip(atoms, counts, strict=True), *((end, extra) for end in ends)]:
        weight = rng.standard_gamma(shape, resamples)
        total += weight
        weighted += weight * atom
    return np.clip(weighted / total, *ends)


def _means_by_image(
    values: Floats,
    images: Numbers,
    weights: Floats,
    ends: tuple[float, float],
    extra: float,
    rng: np.random.Generator,
) -> Floats:
    """Means where all scores of an image have its weight, a column of ``weights``."""
    resamples, count = weights.shape
    total = weights @ np.bincount(images, minlength=count)
    weighted = weights @ np.bincount(images, values, minlength=count)
    questions = values.size / np.unique(images).size
    for end in ends:
        weight = questions * rng.standard_gamma(extra, resamples)
        total += weight
        weighted += weight * end
    return np.clip(weighted / total, *ends)


def _differences(a: Groups, b: Groups) -> list[list[float | None]]:
    if [len(group) for group in a] != [len(group) for group in b]:
        sizes = [[len(group) for group in groups] for groups in (a, b)]
        raise ConfigError(
            f"pairs need the same items in both, not groups of {sizes[0]} and {sizes[1]}; "
            "compare scores of one workload"
        )
    return [
        [
            None if x is None or y is None else _score_value(y) - _score_value(x)
            for x, y in zip(first, second, strict=True)
        ]
        for first, second in zip(a, b, strict=True)
    ]


def _sign_flip_test(
    groups: Sequence[Floats], numbers: Sequence[Numbers] | None, seed: int
) -> float:
    """Share of sign assignments under which the macro mean is at least as far from zero."""
    terms = np.concatenate([d / d.size for d in groups]) if groups else np.zeros(0)
    if numbers is not None:
        terms = np.bincount(np.concatenate(numbers), terms)
    sizes = np.abs(terms[np.abs(terms) > 1e-12])
    # sums of the same terms in another order differ in the last digits
    observed = abs(float(terms.sum())) - 1e-9 * float(sizes.sum())
    if sizes.size <= EXACT_UP_TO:
        signs = np.array(list(product((-1, 1), repeat=sizes.size)))
        return float((np.abs(signs @ sizes) >= observed).mean())
    rng = np.random.default_rng(seed)
    sums = np.zeros(SIGN_DRAWS)
    for size, count in zip(*np.unique(sizes, return_counts=True), strict=True):
        sums += size * (2 * rng.binomial(count, 0.5, SIGN_DRAWS) - count)
    return float((np.sum(np.abs(sums) >= observed) + 1) / (SIGN_DRAWS + 1))


def _score_value(value: Any) -> float:
    if isinstance(value, Real) and 0 <= float(value) <= 1:
        return float(value)
    raise ConfigError(f"a score must be a number from 0 to 1, not {value!r}")


def _check_settings(level: float, resamples: int) -> None:
    if not 0 < level < 1:
        raise ConfigError(f"level must be above 0 and below 1, not {level!r}")
    if resamples < 1:
        raise ConfigError(f"resamples must be 1 or more, not {resamples!r}")
