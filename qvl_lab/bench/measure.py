"""One configuration to one Run: load, warm up, repeat, and keep every reading."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

from qvl_lab.analysis.quality.scoring import score_items
from qvl_lab.backends.generation import Generation
from qvl_lab.config import AUTO, Config, ModelSpec
from qvl_lab.errors import ConfigError, DeviceMemoryError, ImageError, ModelError
from qvl_lab.hardware import fingerprint, gpu_index
from qvl_lab.models.load import resolve
from qvl_lab.models.memory import first_line, free, memory_limit, out_of_memory
from qvl_lab.probe.power import Sampler
from qvl_lab.probe.vram import peak_bytes, reset_peak
from qvl_lab.runs.records import Repeat, Run, run_key
from qvl_lab.session import Lab, load
from qvl_lab.workloads.decode import read_bytes
from qvl_lab.workloads.items import Item, Workload

MAX_FAILURES_KEPT = 100


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
    """All that a worker needs to measure one configuration."""

    config: Config
    workload: Workload
    plan: Plan

    @property
    def key(self) -> str:
        """Equal for equal settings, workload and plan."""
        workload = {"fingerprint": self.workload.fingerprint}
        return run_key(self.config.flat(), workload, asdict(self.plan))

    def result(self, status: str, reason: str | None = None, **parts: Any) -> Run:
        """A Run of this job; ``parts`` override what is known without measuring."""
        known = {
            "key": self.key,
            "started_at": _now(),
            "config": self.config.flat(),
            "workload": self.workload.info(),
            "plan": asdict(self.plan),
            "environment": fingerprint(),
            "failures": list(self.workload.errors),
        }
        return Run(status=status, reason=reason, **(known | parts))


def measure(job: Trial, get_lab: Callable[[ModelSpec], Lab] = load) -> Run:
    """Measure one configuration.

    Out of memory and a failing model are results, not exceptions: the Run says so and keeps the
    repeats that were finished.

    Parameters
    ----------
    job : Trial
    get_lab : callable
        Loads a model; an executor passes one that remembers.
    """
    cold: dict[str, float | None] = {}
    repeats: list[Repeat] = []
    parts: dict[str, Any] = {"started_at": _now(), "cold": cold, "repeats": repeats}
    try:
        spec = resolve(job.config.model)
        parts["resolved"] = {"device": spec.device, "precision": spec.precision}
        with memory_limit(spec.device, job.config.engine.memory_limit_gib):
            lab = get_lab(job.config.model)
            parts["random_weights"] = lab.loaded.random_weights
            parts["architecture"] = _architecture(lab)
            cold["load_s"] = lab.loaded.load_s
            _measure(job, lab, cold, repeats, parts)
    except DeviceMemoryError as e:
        return job.result("oom", str(e), **parts)
    except (ModelError, ConfigError) as e:
        return job.result("error", str(e), **parts)
    except Exception as e:
        if out_of_memory(e):
            return job.result("oom", f"while loading: {first_line(e)}", **parts)
        return job.result("error", f"{type(e).__name__}: {e}", **parts)
    if not any(repeat.answered for repeat in repeats):
        first = parts["failures"][0]
        reason = f"no item was answered; the first, {first['id']}: {first['error']}"
        return job.result("error", reason, **parts)
    return job.result("ok", **parts)


def remember() -> Callable[[ModelSpec], Lab]:
    """A loader that keeps the last model, so that a grid over batches loads it once."""
    kept: dict[ModelSpec, Lab] = {}

    def get_lab(spec: ModelSpec) -> Lab:
        if spec not in kept:
            kept.clear()
            free(spec.device)
            kept[spec] = load(spec)
        return kept[spec]

    return get_lab


def _measure(
    job: Trial,
    lab: Lab,
    cold: dict[str, float | None],
    repeats: list[Repeat],
    parts: dict[str, Any],
) -> None:
    config, device = job.config, lab.spec.device
    if config.engine.engine != "fast":
        lab.fast.close()  # its cache is not part of this setting's peak
    free(device)  # what an earlier setting in this process left reserved is not this one's peak
    items = _items(job)
    parts["workload"] = job.workload.info() | {"measured_items": len(items)}

    def once(max_batches: int | None = None) -> Generation:
        return lab.run(
            items, config.engine, config.images, halve_on_oom=False, max_batches=max_batches
        )

    started = perf_counter()
    if job.plan.warmup:
        static = config.flat().get("cache_implementation") == "static"
        once(None if static else job.plan.warmup)
    cold["warmup_s"] = perf_counter() - started
    reset_peak(device)
    with Sampler(gpu_index(device)) as sampler:
        for _ in range(job.plan.repeats):
            lab.forget()  # hits are those that the items themselves bring
            generation = once()
            repeats.append(_repeat(generation))
            parts["failures"] = _failures(job, generation)
    if config.engine.batch_size == AUTO:
        parts["resolved"]["batch_size"] = generation.batch_size
    if generation.caches:
        parts["cache_state"] = "warm" if config.flat().get("encoder_cache_dir") else "cold"
    readings = sampler.summary()
    parts["memory"] = peak_bytes(device) | {
        kind: _whole(readings[f"{kind}_memory_bytes"]) for kind in ("process", "device")
    }
    parts["power"] = {k: readings[k] for k in ("gpu_utilisation", "power_w", "energy_j")}
    if job.plan.quality and not lab.loaded.random_weights:
        parts |= _judged(job, lab, generation)


def _judged(job: Trial, lab: Lab, generation: Generation) -> dict[str, Any]:
    """The answers to all items, and their scores where the true answer is known.

    A pass over the items that were not timed is paid for only if there is something to score.
    """
    items, config = job.workload.items, job.config
    if len(generation) < len(items):
        if all(item.reference is None for item in items):
            return {}
        everything = _loaded(job.workload, config)
        generation = lab.run(everything, config.engine, config.images, halve_on_oom=False)
    rows = [
        {
            "id": i.id,
            "task": i.task,
            "question": i.question,
            "expected": i.reference,
            "answer": text,
        }
        for i, text in zip(items, generation.texts, strict=True)
    ]
    scores = score_items(items, generation.texts, job.plan.metrics)
    return {
        "answers": rows,
        "scores": {task: found.to_dict() for task, found in scores.items()},
        "failures": _failures(job, generation),
    }


def _architecture(lab: Lab) -> dict[str, Any]:
    """The model's sizes, empty for a family whose sizes are not known."""
    try:
        return lab.loaded.sizes.to_dict()
    except ConfigError:
        return {}


def _failures(job: Trial, generation: Generation) -> list[dict[str, str]]:
    """What could not become an item, and the items without an answer."""
    return [*job.workload.errors, *generation.errors][:MAX_FAILURES_KEPT]


def _items(job: Trial) -> list[Item]:
    """The items of one pass with their encoded bytes in memory: disk time is not measured."""
    workload = job.workload.sample(job.plan.timed_items, job.plan.seed)
    if job.plan.batches is not None:
        workload = workload.sample(job.plan.batches * job.config.engine.most_at_once, job.plan.seed)
    return _loaded(workload, job.config)


def _loaded(workload: Workload, config: Config) -> list[Item]:
    loaded: dict[str, Any] = {}
    items = []
    for item in workload.items:
        name = str(item.image) if not isinstance(item.image, bytes) else item.id
        if name not in loaded:
            try:
                loaded[name] = read_bytes(item.image, config.images)
            except ImageError:
                loaded[name] = item.image  # the engine reports it
        items.append(replace(item, image=loaded[name]))
    return items


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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
