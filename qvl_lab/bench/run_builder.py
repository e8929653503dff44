"""A Run in the making: each reading is kept as soon as it is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from qvl_lab.analysis.quality.scoring import TaskScores
from qvl_lab.backends.generation import Generation
from qvl_lab.bench.trial import Trial, now
from qvl_lab.config import AUTO, ModelSpec
from qvl_lab.errors import ConfigError
from qvl_lab.models.load import LoadedModel
from qvl_lab.runs.records import Repeat, Run

MAX_FAILURES_KEPT = 100


class RunBuilder:
    """Collects the readings of one trial, in the order in which they become known.

    A trial can end at any point: :meth:`run` makes a Run of what is known by then.

    Parameters
    ----------
    trial : Trial
    """

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._cold_s: dict[str, float | None] = {}
        self._repeats: list[Repeat] = []
        self._known: dict[str, Any] = {"started_at": now()}

    def resolved(self, spec: ModelSpec) -> None:
        """The settings that said "auto" are chosen."""
        self._known["resolved"] = {"device": spec.device, "precision": spec.precision}

    def loaded(self, model: LoadedModel) -> None:
        """The model is on its device."""
        self._known["random_weights"] = model.random_weights
        self._known["architecture"] = _architecture(model)
        self._cold_s["load_s"] = model.load_s

    def drawn(self, measured_items: int) -> None:
        """The items of a timed pass are chosen and their bytes in memory."""
        info = self._trial.workload.info()
        self._known["workload"] = info | {"measured_items": measured_items}

    def warmed_up(self, seconds: float) -> None:
        """The untimed batches are done."""
        self._cold_s["warmup_s"] = seconds

    def repeated(self, generation: Generation) -> None:
        """One timed pass is done."""
        self._repeats.append(_repeat(generation))
        self._known["failures"] = self._failures(generation)
        if self._trial.config.engine.batch_size == AUTO:
            self._known["resolved"]["batch_size"] = generation.batch_size
        if generation.caches:
            kept_on_disk = self._trial.config.flat().get("encoder_cache_dir")
            self._known["cache_state"] = "warm" if kept_on_disk else "cold"

    def sampled(
        self, peak_bytes: Mapping[str, int | None], readings: Mapping[str, float | None]
    ) -> None:
        """All timed passes are done: the allocator's peaks, and the sampler's summary."""
        peaks = {kind: _whole(readings[f"{kind}_memory_bytes"]) for kind in ("process", "device")}
        self._known["memory"] = dict(peak_bytes) | peaks
        power = ("gpu_utilisation", "power_w", "energy_j")
        self._known["power"] = {name: readings[name] for name in power}

    def scored(self, generation: Generation, scores: Mapping[str, TaskScores]) -> None:
        """All items of the workload are answered, and the answers scored task by task."""
        items = self._trial.workload.items
        self._known |= {
            "answers": [
                {
                    "id": item.id,
                    "task": item.task,
                    "question": item.question,
                    "expected": item.reference,
                    "answer": text,
                }
                for item, text in zip(items, generation.texts, strict=True)
            ],
            "scores": {task: found.to_dict() for task, found in scores.items()},
            "failures": self._failures(generation),
        }

    def run(self, status: str, reason: str | None = None) -> Run:
        """The Run of a trial that ends here."""
        known = self._known | {"cold": self._cold_s, "repeats": self._repeats}
        return self._trial.result(status, reason, **known)

    def finished(self) -> Run:
        """The Run of a trial that came to its end: an error if no item was answered."""
        if any(repeat.answered for repeat in self._repeats):
            return self.run("ok")
        first = self._known["failures"][0]
        return self.run(
            "error", f"no item was answered; the first, {first['id']}: {first['error']}"
        )

    def _failures(self, generation: Generation) -> list[dict[str, str]]:
        """What could not become an item, and the items without an answer."""
        return [*self._trial.workload.errors, *generation.errors][:MAX_FAILURES_KEPT]


def _architecture(model: LoadedModel) -> dict[str, Any]:
    """The model's sizes, empty for a family whose sizes are not known."""
    try:
        return model.sizes.to_dict()
    except ConfigError:
        return {}


def _repeat(generation: Generation) -> Repeat:
    answered = [a for a in generation if a.text is not None]
    return Repeat(
        wall_s=generation.wall_s,
        answered=len(answered),
        failed=len(generation) - len(answered),
        prompt_tokens=sum(a.prompt_tokens for a in answered),
        visual_tokens=sum(a.visual_tokens for a in answered),
        new_tokens=sum(a.new_tokens for a in answered),
        stages_s=generation.stages_s,
        parts_s=generation.parts_s,
        work=asdict(generation.work),
        ttft_s=[a.ttft_s for a in answered if a.ttft_s is not None],
        batch_s=generation.batch_s,
        caches=generation.caches,
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
