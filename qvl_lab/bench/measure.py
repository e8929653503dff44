"""One configuration to one Run: load, warm up, repeat, and keep every reading."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from qvl_lab.analysis.quality.metrics import Metric
from qvl_lab.analysis.quality.scoring import TaskScores, score_items
from qvl_lab.backends.generation import Generation
from qvl_lab.bench.protocol import Gate, Quiet, quiet_pass
from qvl_lab.bench.run_builder import RunBuilder
from qvl_lab.bench.trial import CALLS, Trial
from qvl_lab.config import ImagePolicy, ModelSpec
from qvl_lab.errors import ConfigError, DeviceMemoryError, ImageError, ModelError
from qvl_lab.hardware import gpu_index
from qvl_lab.models.architecture import PIXEL_BOXES
from qvl_lab.models.load import load_model, quiet, resolve
from qvl_lab.models.memory import first_line, free, memory_limit, out_of_memory
from qvl_lab.probe.contention import Contention, Monitor
from qvl_lab.probe.power import Sampler
from qvl_lab.probe.vram import peak_bytes, reset_peak
from qvl_lab.runs.records import Run
from qvl_lab.session import Lab
from qvl_lab.workloads.decode import read_bytes
from qvl_lab.workloads.items import Item, Workload

Reading = tuple[list[Generation], dict[str, float | None]]
#: Two warm-up passes agree within this share, or warming up ends after so many seconds.
AGREE, WARM_UP_S = 0.1, 10.0


def load(spec: ModelSpec) -> Lab:
    """Load a model without a progress bar, which would cut through the sweep's own, and without the
    warnings that the sweep has given once for all of its settings.
    """
    with quiet():
        return Lab(load_model(spec))


def measure(
    trial: Trial,
    get_lab: Callable[[ModelSpec], Lab] = load,
    *,
    in_turns: Callable[[], None] | None = None,
) -> Run:
    """Measure one configuration.

    Out of memory and a failing model are results, not exceptions: the Run says so and keeps the
    repeats that were finished.

    Parameters
    ----------
    trial : Trial
    get_lab : callable
        Loads a model; an executor passes one that remembers.
    in_turns : callable, optional
        Waits for this trial's turn; called before each of its timed calls, of which there are
        :data:`qvl_lab.bench.trial.CALLS`. By default a pass is made of calls back to back.
    """
    builder = RunBuilder(trial)
    try:
        spec = resolve(trial.config.model)
        builder.resolved(spec)
        with memory_limit(spec.device, trial.config.engine.memory_limit_gib):
            lab = get_lab(trial.config.model)
            builder.loaded(lab.loaded)
            _measure(trial, lab, builder, in_turns)
    except DeviceMemoryError as e:
        return builder.run("oom", str(e))
    except (ModelError, ConfigError) as e:
        return builder.run("error", str(e))
    except Exception as e:
        if out_of_memory(e):
            return builder.run("oom", f"while loading: {first_line(e)}")
        return builder.run("error", f"{type(e).__name__}: {e}")
    return builder.finished()


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
    trial: Trial, lab: Lab, builder: RunBuilder, in_turns: Callable[[], None] | None
) -> None:
    config, device = trial.config, lab.spec.device
    if config.engine.engine != "fast":
        lab.fast.close()  # its cache is not part of this setting's peak
    free(device)  # what an earlier setting in this process left reserved is not this one's peak
    items = _timed_items(trial)
    builder.drawn(len(items))

    def once(max_batches: int | None = None) -> Generation:
        lab.clear_caches()  # hits are those that the items themselves bring
        return lab.run(
            items, config.engine, config.images, halve_on_oom=False, max_batches=max_batches
        )

    started = perf_counter()
    _warm_up(trial, once)
    builder.warmed_up(perf_counter() - started)
    reset_peak(device)
    passed: list[Generation] = []
    for _ in range(trial.passes):
        passed = _pass(trial, once, device, builder, in_turns)
        if not passed:
            return
    builder.peaked(peak_bytes(device))
    if trial.plan.quality and not trial.round and not lab.loaded.random_weights:
        _score(trial, lab, passed[-1], builder)


def _warm_up(trial: Trial, once: Callable[..., Generation]) -> None:
    """Run untimed passes.

    Without a least length of a pass, the plan's batches are run once. With one, whole passes are
    run, so that every shape occurs, until two in a row agree or :data:`WARM_UP_S` have gone by.
    """
    if not trial.plan.warmup:
        return
    if not trial.plan.min_pass_s:
        static = trial.config.flat().get("cache_implementation") == "static"
        once(None if static else trial.plan.warmup)
        return
    started = perf_counter()
    last_s = once().wall_s
    while perf_counter() - started < WARM_UP_S:
        before_s, last_s = last_s, once().wall_s
        if abs(last_s / before_s - 1) < AGREE:
            break


def _pass(
    trial: Trial,
    once: Callable[[], Generation],
    device: str,
    builder: RunBuilder,
    in_turns: Callable[[], None] | None,
) -> list[Generation]:
    """One timed pass that nobody disturbed, call by call; empty if the machine stayed busy.

    In turns each call is watched for itself, since other trials have theirs between two of them.
    """
    tries: list[Quiet[Reading]] = []
    parts = 1 if in_turns is None else CALLS
    for _ in range(parts):
        if in_turns is not None:
            in_turns()
        tries.append(_quiet_calls(trial, once, device, trial.plan.min_pass_s / parts))
        builder.disturbed(tries[-1])
    kept = [found for found in tries if found.value is not None or trial.insist]
    if not kept:
        return []
    generations = [generation for found in kept for generation in found.last[0]]
    notes = [found.disturbed[-1] for found in kept if found.value is None]
    builder.repeated(generations, disturbed=(notes or [""])[0] if trial.gate else None)
    for found in kept:
        builder.sampled(found.last[1])
    return generations


def _quiet_calls(
    trial: Trial, once: Callable[[], Generation], device: str, least_s: float
) -> Quiet[Reading]:
    """Calls back to back for at least so many seconds, tried until nobody disturbs them."""

    def timed() -> tuple[Reading, Contention]:
        monitor = Monitor(device) if trial.gate else None
        with monitor or nullcontext(), Sampler(gpu_index(device)) as sampler:
            generations = [once()]
            while sum(g.wall_s for g in generations) < least_s:
                generations.append(once())
        return (generations, sampler.summary()), monitor.seen if monitor else Contention()

    return quiet_pass(timed, trial.gate or Gate(), trial.best_canary_s)


def _score(trial: Trial, lab: Lab, generation: Generation, builder: RunBuilder) -> None:
    """Keep the answers to all items, and score them unless the sweep does that itself.

    A pass over the items that were not timed is paid for only if there is something to score.
    """
    items, config = trial.workload.items, trial.config
    if len(generation) < len(items):
        if all(item.reference is None for item in items):
            return
        everything = _in_memory(trial.workload, config.images)
        generation = lab.run(everything, config.engine, config.images, halve_on_oom=False)
    metrics = trial.plan.metrics
    scores = {} if trial.answers_only else scores_of(generation, items, lab, metrics)
    builder.scored(generation, scores)


def scores_of(
    generation: Generation,
    items: Sequence[Item],
    lab: Lab,
    metrics: Mapping[str, str | Metric] | None = None,
) -> dict[str, TaskScores]:
    """The scores of a lab's answers to items, with boxes read in the form that its model writes."""
    sizes = [answer.image_size for answer in generation]
    pixels = lab.loaded.model.config.model_type in PIXEL_BOXES
    return score_items(items, generation.texts, metrics, sizes=sizes, pixels=pixels)


def _timed_items(trial: Trial) -> list[Item]:
    """The items of one pass with their encoded bytes in memory."""
    plan = trial.plan
    workload = trial.workload.sample(plan.timed_items, plan.seed)
    if plan.batches is not None:
        workload = workload.sample(plan.batches * trial.config.engine.most_at_once, plan.seed)
    return _in_memory(workload, trial.config.images)


def _in_memory(workload: Workload, policy: ImagePolicy) -> list[Item]:
    """Items with the encoded bytes of their files, so that disk time is not measured.

    Each item keeps its file's path, by which a cache may know it. Each image is read once.
    """
    by_path: dict[str, Any] = {}
    items = []
    for item in workload.items:
        image = item.image
        if not isinstance(image, str | Path):
            items.append(item)
            continue
        if str(image) not in by_path:
            try:
                by_path[str(image)] = read_bytes(image, policy)
            except ImageError:
                by_path[str(image)] = image  # the backend reports it
        items.append(replace(item, image=by_path[str(image)], path=str(image)))
    return items
