"""The measuring protocol on a machine that is made up: a clock that the test turns, a drift, an
effect of each process, noise of each pass, and neighbours that come and go.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from random import Random

from qvl_lab.analysis.stats.estimates import paired_ratio
from qvl_lab.bench.protocol import (
    Gate,
    Rounds,
    Visit,
    head_to_head,
    in_rounds,
    quiet_pass,
)
from qvl_lab.probe.contention import Contention

START_S, CANARY_S = 1.0, 0.1


class Machine:
    """A machine with a clock of its own, on which passes take time.

    Parameters
    ----------
    busy : float
        Share of the time in which another program eats a core.
    drift, process, noise : float
        Standard deviations, as shares of a time: of a speed that changes within minutes, of what
        is particular to a process, of a pass.
    """

    def __init__(self, seed, busy=0.0, drift=0.05, process=0.04, noise=0.03):
        self.random = Random(seed)
        self.now_s = 0.0
        self.busy, self.drift, self.process, self.noise = busy, drift, process, noise
        self._spells = self._draw_spells()
        self._starts = [start for start, _, _ in self._spells]
        self._speed, self._speed_at_s = self.random.gauss(0, drift), 0.0

    def _draw_spells(self, until_s=20_000.0):
        """Spells of the neighbour: start, end, and how much slower work is meanwhile."""
        spells, at_s = [], 0.0
        while self.busy and at_s < until_s:
            lasts_s = self.random.uniform(2, 20)
            at_s += self.random.expovariate(1 / (lasts_s * (1 - self.busy) / self.busy))
            spells.append((at_s, at_s + lasts_s, self.random.choice([1.3, 2, 5, 10])))
            at_s += lasts_s
        return spells

    def clock(self):
        return self.now_s

    def sleep(self, seconds):
        self.now_s += seconds

    def work(self, seconds):
        """Do so much work; returns the time it took and how long the neighbour was there."""
        begun_s, beside_s = self.now_s, 0.0
        at = max(0, bisect_right(self._starts, self.now_s) - 1)
        while seconds > 1e-12:
            start_s, end_s, factor = self._spells[at] if at < len(self._spells) else (1e9, 1e9, 1)
            if self.now_s >= end_s:
                at += 1
                continue
            slow = self.now_s >= start_s
            here_s = (end_s if slow else start_s) - self.now_s
            rate = 1 / factor if slow else 1.0
            took_s = min(here_s, seconds / rate)
            self.now_s += took_s
            seconds -= took_s * rate
            beside_s += took_s * slow
        return self.now_s - begun_s, beside_s

    def speed(self):
        """The drift now, which forgets itself within ten minutes."""
        kept = math.exp(-(self.now_s - self._speed_at_s) / 600)
        step = self.random.gauss(0, self.drift * math.sqrt(1 - kept**2))
        self._speed, self._speed_at_s = kept * self._speed + step, self.now_s
        return math.exp(self._speed)

    def visit(self, true_s, gate=Gate(), insist=False):
        """A turn of a setting: start a process, warm up, measure a quiet pass."""
        self.work(START_S + true_s)
        effect = math.exp(self.random.gauss(0, self.process))

        def once():
            before_s, near = self.work(CANARY_S)
            scale = self.speed() * effect * math.exp(self.random.gauss(0, self.noise))
            took_s, beside_s = self.work(true_s * scale)
            after_s, near_after = self.work(CANARY_S)
            canary_s = max(before_s, after_s) if near or near_after else CANARY_S
            cores = 0.02 + 0.9 * beside_s / took_s
            return took_s, Contention(others_cores=cores, stolen_cores=0.0, canary_s=canary_s)

        quiet = quiet_pass(once, gate, CANARY_S, self.sleep)
        return Visit(seconds=quiet.value)


def confirmed(machine, times_s, rounds=Rounds(), confirm=Rounds(least=5, most=8)):
    """Measure settings in rounds, pick the fastest, and confirm it against the first and the
    runner-up: the pick, and the ratio of its time to the first setting's.
    """
    readings = in_rounds(
        range(len(times_s)),
        lambda s, number: machine.visit(times_s[s]),
        rounds,
        clock=machine.clock,
    )
    known = {s: r for s, r in readings.items() if len(r) >= 2}
    ranked = sorted(known, key=lambda s: sum(map(math.log, known[s].values())) / len(known[s]))
    finalists = [0, *[s for s in ranked if s != 0][:2]]
    final = head_to_head(
        finalists,
        lambda s, number: machine.visit(times_s[s]),
        confirm,
        clock=machine.clock,
    )
    shared = sorted(set.intersection(*(set(r) for r in final.values())))
    if len(shared) < confirm.least:
        return None
    ratios = {
        s: paired_ratio([final[0][n] for n in shared], [final[s][n] for n in shared])
        for s in finalists[1:]
    }
    pick, runner_up = finalists[1:]
    against = paired_ratio([final[pick][n] for n in shared], [final[runner_up][n] for n in shared])
    if against.high < 1:
        pick = runner_up
    return pick, ratios[pick]


def covered(seeds, busy, times_s):
    """Shares of simulated runs: the interval holds the true ratio, and a number was given."""
    holds = given = 0
    for seed in seeds:
        machine = Machine(seed, busy)
        if (found := confirmed(machine, times_s(Random(seed)))) is None:
            continue
        pick, ratio = found
        times = times_s(Random(seed))
        given += 1
        holds += ratio.low <= times[pick] / times[0] <= ratio.high
    return holds / given, given / len(seeds)


def spread_out(random):
    """Twelve settings of 2 to 10 s, the first of them the slowest."""
    return [10.0, *sorted(random.uniform(2, 10) for _ in range(11))]
