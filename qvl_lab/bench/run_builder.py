"""A Run in the making: each reading is kept as soon as it is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeVar

from qvl_lab.analysis.quality.scoring import TaskScores
from qvl_lab.backends.generation import Generation
from qvl_lab.bench.protocol import Quiet
from qvl_lab.bench.trial import Trial, now
from qvl_lab.config import AUTO, ModelSpec
from qvl_lab.errors import ConfigError
from qvl_lab.models.load import LoadedModel
from qvl_lab.runs.records import Repeat, Run

MAX_FAILURES_KEPT = 100
Number = TypeVar("Number", int, float)


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
        self._readings: list[Mapping[str, float | None]] = []
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

    def disturbed(self, quiet: Quiet[Any]) -> None:
        """A pass was tried until nobody disturbed it, or in vain."""
        if self._trial.gate is None:
            return
        seen = self._known.setdefault("contention", {"thrown_away": 0, "reason": None})
        seen["thrown_away"] += len(quiet.disturbed)
        seen["reason"] = quiet.disturbed[-1] if quiet.disturbed else seen["reason"]
        seen["canary_s"] = quiet.best_canary_s

    def repeated(self, generations: Sequence[Generation], disturbed: str | None = None) -> None:
        """One timed pass is done, in one call or several."""
        number = self._trial.round
        passed = _repeat(generations)
        self._repeats.append(replace(passed, round=number, disturbed=disturbed))
        generation = generations[-1]
        self._known["failures"] = self._failures(generation)
        self._known["cut_answers"] = self._cut(generation)
        if self._trial.config.engine.batch_size == AUTO:
            self._known["resolved"]["batch_size"] = generation.batch_size
        if generation.caches:
            kept_on_disk = self._trial.config.flat().get("encoder_cache_dir")
            self._known["cache_state"] = "warm" if kept_on_disk else "cold"

    def sampled(self, readings: Mapping[str, float | None]) -> None:
        """The sampler's summary of a pass."""
        self._readings.append(readings)

    def peaked(self, peak_bytes: Mapping[str, int | None]) -> None:
        """All timed passes are done: the allocator's peaks."""
        peaks = {
            kind: _whole(_top([r[f"{kind}_memory_bytes"] for r in self._readings]))
            for kind in ("process", "device")
        }
        self._known["memory"] = dict(peak_bytes) | peaks
        power: dict[str, float | None] = {}
        for name in ("gpu_utilisation", "power_w", "energy_j"):
            values = [r[name] for r in self._readings]
            total = None if None in values else sum(v for v in values if v is not None)
            each = 1 if name == "energy_j" else len(values)
            power[name] = None if total is None else total / each
        self._known["power"] = power

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
                    "answer": answer.text,
                    "image_size": answer.image_size and list(answer.image_size),
                }
                for item, answer in zip(items, generation, strict=True)
            ],
            "scores": {task: found.to_dict() for task, found in scores.items()},
            "failures": self._failures(generation),
            "cut_answers": self._cut(generation),
        }

    def run(self, status: str, reason: str | None = None) -> Run:
        """The Run of a trial that ends here."""
        known = self._known | {"cold": self._cold_s, "repeats": self._repeats}
        return self._trial.result(status, reason, **known)

    def finished(self) -> Run:
        """The Run of a trial that came to its end: an error if no item was answered."""
        if any(repeat.answered for repeat in self._repeats):
            return self.run("ok")
        if not self._repeats:
            seen = self._known["contention"]
            return self.run(
                "busy",
                f"not measurable here: {seen['reason']}, and as much in all of "
                f"{seen['thrown_away']} tries. Measure on a machine of your own, or take the "
                "numbers as they come with on_busy='keep' (--on-busy keep)",
            )
        first = self._known["failures"][0]
        return self.run(
            "error", f"no item was answered; the first, {first['id']}: {first['error']}"
        )

    def _cut(self, generation: Generation) -> int | None:
        """Answers that may be cut off; None for random weights, which never end by themselves."""
        if self._known.get("random_weights"):
            return None
        return generation.at_limit(self._trial.config.engine.sampling.max_new_tokens)

    def _failures(self, generation: Generation) -> list[dict[str, str]]:
        """What could not become an item, and the items without an answer."""
        return [*self._trial.workload.errors, *generation.errors][:MAX_FAILURES_KEPT]


def _architecture(model: LoadedModel) -> dict[str, Any]:
    """The model's sizes, empty for a family whose sizes are not known."""
    try:
        return model.sizes.to_dict()
    except ConfigError:
        return {}


def _repeat(generations: Sequence[Generation]) -> Repeat:
    answers = [answer for generation in generations for answer in generation]
    answered = [a for a in answers if a.text is not None]
    return Repeat(
        wall_s=sum(g.wall_s for g in generations),
        answered=len(answered),
        failed=len(answers) - len(answered),
        prompt_tokens=sum(a.prompt_tokens for a in answered),
        visual_tokens=sum(a.visual_tokens for a in answered),
        new_tokens=sum(a.new_tokens for a in answered),
        stages_s=_sums(g.stages_s for g in generations),
        parts_s=_sums(g.parts_s for g in generations),
        work=_sums(asdict(g.work) for g in generations),
        queue_s=[a.queue_s for a in answered if a.queue_s is not None],
        ttft_s=[a.ttft_s for a in answered if a.ttft_s is not None],
        e2e_s=[a.e2e_s for a in answered if a.e2e_s is not None],
        batch_s=[s for g in generations for s in g.batch_s],
        caches=_sums(g.caches for g in generations),
        calls=len(generations),
    )


def _sums(groups: Iterable[Mapping[str, Number]]) -> dict[str, Number]:
    """Name by name, the sum over the groups that have it."""
    sums: dict[str, Number] = {}
    for group in groups:
        for name, value in group.items():
            sums[name] = sums.get(name, 0) + value  # type: ignore[assignment]
    return sums


def _top(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
