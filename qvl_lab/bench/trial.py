"""What a worker is handed: one configuration, its workload, and how to measure it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from qvl_lab.bench.protocol import Gate
from qvl_lab.config import Config
from qvl_lab.hardware import fingerprint
from qvl_lab.runs.records import Run, run_key
from qvl_lab.workloads.items import Workload

#: Calls of a pass whose calls take turns with those of other trials.
CALLS = 4


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to measure: timed passes and their least length in seconds, warm-up batches, how many
    items and batches a pass has at most, and how answers are scored. ``phase`` is "sweep", or
    "confirmation" where a few settings are measured head to head.
    """

    repeats: int = 3
    warmup: int = 1
    min_pass_s: float = 0.0
    phase: str = "sweep"
    timed_items: int | None = None
    batches: int | None = None
    seed: int = 0
    quality: bool = True
    metrics: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """All that a worker needs to measure one configuration. It can be pickled.

    With ``answers_only`` answers are kept and not scored: the sweep does that itself, where a
    metric is a function, of which the plan knows the name alone.

    Attributes
    ----------
    round : int or None
        Which turn of the setting this is; a turn has one pass. None measures all of the plan's
        passes here, one after another.
    gate : Gate or None
        What a pass must not have had beside it; None does not look.
    insist : bool
        Keep a disturbed pass, marked as such, where no try was quiet.
    best_canary_s : float or None
        The best time of the canary that earlier turns saw.
    """

    config: Config
    workload: Workload
    plan: Plan
    answers_only: bool = False
    round: int | None = None
    gate: Gate | None = None
    insist: bool = False
    best_canary_s: float | None = None

    @property
    def passes(self) -> int:
        """Timed passes of this turn."""
        return self.plan.repeats if self.round is None else 1

    @property
    def key(self) -> str:
        """Equal for equal settings, workload and plan."""
        workload = {"fingerprint": self.workload.fingerprint}
        return run_key(self.config.flat(), workload, asdict(self.plan))

    def result(self, status: str, reason: str | None = None, **fields: Any) -> Run:
        """A Run of this trial; ``fields`` override what is known without measuring."""
        known = {
            "key": self.key,
            "started_at": now(),
            "config": self.config.flat(),
            "workload": self.workload.info(),
            "plan": asdict(self.plan),
            "environment": fingerprint(self.config.model.device),
            "failures": list(self.workload.errors),
            "round": self.round,
        }
        return Run(status=status, reason=reason, **(known | fields))


def now() -> str:
    """The time of day in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
