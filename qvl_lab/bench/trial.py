"""What a worker is handed: one configuration, its workload, and how to measure it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from qvl_lab.config import Config
from qvl_lab.hardware import fingerprint
from qvl_lab.runs.records import Run, run_key
from qvl_lab.workloads.items import Workload


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to measure: timed passes, warm-up batches, how many items and batches a pass has at
    most, and how answers are scored.
    """

    repeats: int = 3
    warmup: int = 1
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
    """

    config: Config
    workload: Workload
    plan: Plan
    answers_only: bool = False

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
        }
        return Run(status=status, reason=reason, **(known | fields))


def now() -> str:
    """The time of day in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
