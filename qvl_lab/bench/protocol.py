"""How a number is measured so that it holds: quiet passes, rounds, and a confirmation.

Passes one after another in one process agree with each other and with nothing else: what differs
between processes, minutes and neighbours moves them all alike, so their interval is too narrow.
Here a pass beside another program is thrown away (:func:`quiet_pass`), settings take turns in
rounds, each time in a process of its own (:func:`in_rounds`), and what a headline compares is
measured once more head to head (:func:`head_to_head`), since the best of many settings is partly
the luckiest.

Nothing here knows what a pass is: callers give functions, and tests a clock that they turn.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import fmean, stdev
from typing import Generic, TypeVar

from qvl_lab.analysis.money.confirmed import FEWEST_ROUNDS
from qvl_lab.analysis.stats.estimates import (
    SIGNED_RANKS_FROM,
    in_both,
    paired_ratio,
    ratio_half_width,
    student_t,
    surely_less,
)
from qvl_lab.probe.contention import Contention

#: Rounds of a confirmation in which the runner-up takes part: as few as a saving is told from.
ALL_TAKE_PART = FEWEST_ROUNDS
Value = TypeVar("Value")
Setting = TypeVar("Setting", bound=Hashable)
#: Seconds by round.
Readings = dict[int, float]


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a pass must not have had beside it.

    Attributes
    ----------
    others_cores, stolen_cores : float
        Most cores that other processes, or the hypervisor, may have kept away on the mean.
        Without anybody 0.02 were counted on two cores, beside one busy process 0.6 to 1.5.
    canary_ratio : float
        Most that the canary may have taken of its best time. On two virtual cores without any
        other program it changed by up to 1.9 times within minutes, and no counter said why. Such
        changes meet all settings alike, as they take turns.
    gpu_processes : int
        Most other processes on the GPU.
    tries : int
        How often a disturbed pass is measured again.
    wait_s : float
        How long to wait before that.
    """

    others_cores: float = 0.1
    stolen_cores: float = 0.1
    canary_ratio: float = 2.5
    gpu_processes: int = 0
    tries: int = 4
    wait_s: float = 5.0

    def fault(self, seen: Contention, best_canary_s: float | None) -> str | None:
        """Why a pass that saw this does not count, in words; None if it does."""
        if (cores := seen.others_cores or 0.0) > self.others_cores:
            return f"other programs used {cores:.1f} cores"
        if (cores := seen.stolen_cores or 0.0) > self.stolen_cores:
            return f"the hypervisor gave {cores:.1f} cores to other machines"
        if (processes := seen.gpu_processes or 0) > self.gpu_processes:
            return f"{processes} other processes were on the GPU"
        if seen.slowdowns:
            return f"the GPU lowered its clocks: {seen.slowdowns}"
        if seen.canary_s and best_canary_s:
            ratio = seen.canary_s / best_canary_s
            if ratio > self.canary_ratio:
                return f"a fixed computation took {ratio:.2f} times as long as at best"
        return None


@dataclass(frozen=True, kw_only=True)
class Quiet(Generic[Value]):
    """A pass and what it took to get it undisturbed.

    Attributes
    ----------
    value : object or None
        What the pass gave; None if every try was disturbed.
    disturbed : list of str
        Why each pass that was thrown away did not count.
    best_canary_s : float or None
        The best time of the canary so far.
    last : object
        What the last try gave, disturbed or not.
    """

    value: Value | None
    disturbed: list[str]
    best_canary_s: float | None
    last: Value


def quiet_pass(
    once: Callable[[], tuple[Value, Contention]],
    gate: Gate,
    best_canary_s: float | None = None,
    sleep: Callable[[float], None] | None = None,
) -> Quiet[Value]:
    """Measure until nobody disturbs it, at most ``gate.tries`` times.

    Parameters
    ----------
    once : callable
        One pass; returns what it gave and what others did meanwhile.
    best_canary_s : float, optional
        The best time of the canary on this machine so far.
    sleep : callable, optional
        Waits so many seconds; by default :func:`time.sleep`.
    """
    disturbed: list[str] = []
    while True:
        value, seen = once()
        known = [s for s in (seen.canary_s, best_canary_s) if s is not None]
        best_canary_s = min(known, default=None)
        fault = gate.fault(seen, best_canary_s)
        if fault is None:
            return Quiet(value=value, disturbed=disturbed, best_canary_s=best_canary_s, last=value)
        disturbed.append(fault)
        if len(disturbed) >= gate.tries:
            return Quiet(value=None, disturbed=disturbed, best_canary_s=best_canary_s, last=value)
        (sleep or time.sleep)(gate.wait_s)


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What one turn of a setting gave: seconds per item, or why there are none.

    ``again`` is False where another turn would give nothing either, as after running out of
    memory.
    """

    seconds: float | None
    again: bool = True


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """How often settings take turns.

    Attributes
    ----------
    least, most : int
        Turns that each setting has at least, and at most.
    half_width : float
        Go on until the 95% interval of a setting is this share of its value to either side.
    budget_s : float or None
        Begin no further round after this time; the least number is measured in any case.
    widest : float or None
        Head to head, an interval that still reaches further has twice that time.
    """

    least: int = 3
    most: int = 10
    half_width: float = 0.05
    budget_s: float | None = None
    widest: float | None = None


@dataclass
class Race(Generic[Setting]):
    """The readings of all settings, and which of them need another turn."""

    settings: Sequence[Setting]
    rounds: Rounds
    rivals: Callable[[Setting], Hashable]
    readings: dict[Setting, Readings]
    ended: set[Setting] = field(default_factory=set)

    def open(self, number: int) -> list[Setting]:
        """The settings that take part in a round."""
        waiting = [s for s in self.settings if s not in self.ended]
        if number < self.rounds.least:
            return waiting
        noise = pooled_noise([[math.log(s) for s in r.values()] for r in self.readings.values()])
        return [s for s in waiting if self._needs_more(s, noise)]

    def _needs_more(self, setting: Setting, noise: tuple[float, int] | None) -> bool:
        count = len(self.readings[setting])
        if count < self.rounds.least or noise is None:
            return True
        sd, freedom = noise
        half_width = student_t(freedom) * sd / math.sqrt(count)
        if half_width <= self.rounds.half_width:
            return False
        return not self._beaten(setting, noise)

    def _beaten(self, setting: Setting, noise: tuple[float, int]) -> bool:
        """Whether a rival is surely faster: the interval of the paired log ratios is above 0."""
        sd, freedom = noise
        mine = self.readings[setting]
        for other in self.settings:
            if other == setting or self.rivals(other) != self.rivals(setting):
                continue
            theirs = self.readings[other]
            if len(shared := mine.keys() & theirs.keys()) < 2:
                continue
            behind = fmean(math.log(mine[n] / theirs[n]) for n in shared)
            if behind > student_t(freedom) * sd * math.sqrt(2 / len(shared)):
                return True
        return False


def in_rounds(
    settings: Sequence[Setting],
    visit: Callable[[Setting, int], Visit],
    rounds: Rounds,
    *,
    rivals: Callable[[Setting], Hashable] = lambda setting: None,
    known: Mapping[Setting, Readings] | None = None,
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> dict[Setting, Readings]:
    """Measure settings in turns until each is known well enough, or cannot win any more.

    The first round keeps the order given, later ones are shuffled, so that a drift of the machine
    meets all settings alike. After ``rounds.least`` rounds a setting leaves when its interval is
    narrow enough, or when a rival is surely faster: it cannot win any more, and has its readings.

    Parameters
    ----------
    settings : sequence of hashable
    visit : callable
        Measures a setting in a round.
    rivals : callable, optional
        Settings for which this gives the same compete; by default all do.
    known : mapping, optional
        Readings of an earlier call that are not measured again.

    Returns
    -------
    dict of setting to {round: seconds}
    """
    readings = {s: dict((known or {}).get(s, {})) for s in settings}
    race = Race(settings, rounds, rivals, readings)
    shuffle = Random(seed)
    started_s = clock()
    for number in range(rounds.most):
        open_ = race.open(number)
        spent = rounds.budget_s is not None and clock() - started_s > rounds.budget_s
        if not open_ or (spent and number >= rounds.least):
            break
        for setting in shuffle.sample(open_, len(open_)) if number else open_:
            if number in readings[setting]:
                continue
            seen = visit(setting, number)
            if seen.seconds is not None:
                readings[setting][number] = seen.seconds
            if not seen.again:
                race.ended.add(setting)
    return readings


def head_to_head(
    settings: Sequence[Setting],
    visit: Callable[[Sequence[Setting], int], Mapping[Setting, Visit]],
    rounds: Rounds,
    *,
    known: Mapping[Setting, Readings] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[Setting, Readings]:
    """Measure a few settings in alternation: A B C, C B A, A B C and so on.

    After three rounds only the first two go on, A B, B A, until the 95% interval of their ratio is
    narrow enough: it is what a headline claims. The third takes the second's place where those
    rounds leave no doubt that it is faster. Only rounds in which both were measured count;
    disturbed ones are made up for by as many more.

    Parameters
    ----------
    visit : callable
        Measures settings in a round, in this order or side by side.

    Other parameters and the result are those of :func:`in_rounds`.
    """
    readings = {s: dict((known or {}).get(s, {})) for s in settings}
    started_s = clock()
    for number in range(2 * rounds.most):
        complete = len(set.intersection(*(set(found) for found in readings.values())))
        compared = _compared(settings, readings)
        pairs = in_both(*(readings[setting] for setting in compared))
        if complete >= ALL_TAKE_PART and _is_enough(rounds, pairs, clock() - started_s):
            break
        turns = settings if complete < ALL_TAKE_PART else compared
        order = turns if number % 2 == 0 else turns[::-1]
        waiting = [setting for setting in order if number not in readings[setting]]
        seen = visit(waiting, number) if waiting else {}
        for setting, visited in seen.items():
            if visited.seconds is not None:
                readings[setting][number] = visited.seconds
        if not all(visited.again for visited in seen.values()):
            break
    return readings


def _compared(
    settings: Sequence[Setting], readings: Mapping[Setting, Readings]
) -> Sequence[Setting]:
    """The two of a headline: the first, and of the others the second unless the third is faster.

    What decides is the rounds that those two have in common, of which there are no more once one
    of them has left, so that a recommendation made of the readings later decides alike.
    """
    for other in settings[2:]:
        if surely_less(readings[settings[1]], readings[other], ALL_TAKE_PART):
            return [settings[0], other]
    return settings[:2]


def _is_enough(rounds: Rounds, pairs: tuple[list[float], list[float]], took_s: float) -> bool:
    """Whether the ratio is known as wanted; or its rounds, or its time, are at an end."""
    if len(pairs[0]) < rounds.least:
        return False
    if len(pairs[0]) >= rounds.most or _told_apart(pairs, rounds.half_width):
        return True
    if rounds.budget_s is None or took_s <= rounds.budget_s:
        return False
    is_wide = rounds.widest is not None and not _told_apart(pairs, rounds.widest)
    return not is_wide or took_s > 2 * rounds.budget_s


def _told_apart(pairs: tuple[list[float], list[float]], half_width: float) -> bool:
    """Whether the ratio of two settings, in rounds of both, is known to the wanted half-width.

    A few pairs may agree by chance, and an interval that ends a measurement because it is narrow
    is too narrow. Where there are too few for ranks it must be half as wide as wanted; without
    that the intervals of five pairs held the truth in 74% of simulated confirmations.
    """
    half_width *= 1.0 if len(pairs[0]) >= SIGNED_RANKS_FROM else 0.5
    return ratio_half_width(paired_ratio(*pairs)) <= half_width


def pooled_noise(groups: Sequence[Sequence[float]]) -> tuple[float, int] | None:
    """Standard deviation within groups and its degrees of freedom; None without two values."""
    known = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in known)
    if not freedom:
        return None
    squares = sum(stdev(group) ** 2 * (len(group) - 1) for group in known)
    return math.sqrt(squares / freedom), freedom
