"""Sweeps: run a grid, keep every row, go on where it stopped."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Hashable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tqdm.auto import tqdm

from qvl_lab.analysis.quality.scoring import metric_names, score
from qvl_lab.analysis.setting_words import in_words
from qvl_lab.bench.executors import EXECUTORS
from qvl_lab.bench.executors.side_by_side import measure_side_by_side
from qvl_lab.bench.planning import (
    check,
    check_models,
    chosen_spec,
    closed_by,
    is_settled,
    smallest_first,
)
from qvl_lab.bench.protocol import Gate, Rounds, Visit, in_rounds
from qvl_lab.bench.trial import Plan, Trial
from qvl_lab.config import Config, SweepSpec
from qvl_lab.config.settings import PARTS
from qvl_lab.config.signatures import names_settings
from qvl_lab.errors import ConfigError, StoreError, UnknownNameError
from qvl_lab.hardware import fingerprint
from qvl_lab.models.architecture import PIXEL_BOXES
from qvl_lab.runs.records import Run, environment_key
from qvl_lab.runs.store import Runs, Store
from qvl_lab.workloads.items import Workload
from qvl_lab.workloads.sources import load_workload

log = logging.getLogger(__name__)
ON_OTHER_ENVIRONMENT = ("refuse", "keep", "fresh")


@names_settings(SweepSpec, *PARTS, axes=PARTS, without=("axes", "base"))
def sweep(
    spec: SweepSpec | None = None,
    *,
    out: str | Path = "runs.jsonl",
    on_other_environment: str = "refuse",
    retry_errors: bool = False,
    progress: bool = True,
    **settings: Any,
) -> Runs:
    """Measure every configuration of a grid that ``out`` does not hold yet.

    Parameters
    ----------
    spec : SweepSpec, optional
        The grid. Without it ``settings`` make one: fields of a configuration (a list is an axis)
        and options of :class:`~qvl_lab.config.SweepSpec` such as ``workload`` and ``repeats``.
    out : path
        The run file, by default "runs.jsonl" as for ``qvl-lab sweep``. Each finished row is on
        disk before the next starts, so the same call goes on after a crash or Ctrl-C.
    on_other_environment : str
        If ``out`` holds rows of another machine or other versions: ``"refuse"``; ``"keep"`` them
        beside the new ones, told apart by the column ``environment``; ``"fresh"`` moves the old
        rows to another file first, also without such a difference.
    retry_errors : bool
        Measure again what failed last time. Out of memory is a result and stays; settings whose
        worker process died are measured again in any case.
    progress : bool
        Show a progress bar with an estimate of the time left.

    Returns
    -------
    Runs
        All rows of the grid, old and new.

    Raises
    ------
    ConfigError, WorkloadError, ModelError, StoreError
        Before anything is measured.
    """
    spec = chosen_spec(spec, settings)
    return measure_each(
        spec.configurations(),
        spec,
        out=out,
        on_other_environment=on_other_environment,
        retry_errors=retry_errors,
        progress=progress,
    )


def measure_each(
    configs: Sequence[Config],
    spec: SweepSpec,
    *,
    out: str | Path,
    on_other_environment: str,
    retry_errors: bool,
    progress: bool,
    scored: Sequence[Config] | None = None,
) -> Runs:
    """Measure configurations that ``out`` does not hold yet; options as of :func:`sweep`.

    Workload, plan and isolation are those of ``spec``; its axes and its base are not looked at.
    If it scores answers, then those of the configurations ``scored``, by default of all.
    """
    if on_other_environment not in ON_OTHER_ENVIRONMENT:
        raise UnknownNameError("choice", on_other_environment, ON_OTHER_ENVIRONMENT)
    workload = load_workload(spec.workload, question=spec.question).sample(spec.items, spec.seed)
    check(configs, spec, workload)
    trials = trials_of(smallest_first(configs), spec, workload, scored)
    keys = {trial.key for trial in trials}
    with Store(out) as store:
        for note in store.runs.notes:
            log.warning("%s", note)
        _check_environment(store, on_other_environment)
        known = _here(store.runs)
        settled = {run.key for run in known if is_settled(run, retry_errors=retry_errors)}
        pending = [trial for trial in trials if trial.key not in settled]
        check_models(pending)
        _tell_kept_errors([run for run in known if run.key in keys & settled])
        closing = [run for run in known if run.workload["fingerprint"] == workload.fingerprint]
        with Turns(pending, store, spec, closing, progress=progress) as turns:
            in_rounds(
                [trial.key for trial in pending],
                turns.visit,
                rounds_of(spec),
                rivals=turns.answers_alike,
                known=turns.known,
                seed=spec.seed,
            )
        mine = [run for run in _here(store.runs) if run.key in keys]
        _tell_nothing_measured(mine)
        _tell_cut(mine)
        return Runs(mine, path=store.path, notes=store.runs.notes)


def trials_of(
    configs: Sequence[Config],
    spec: SweepSpec,
    workload: Workload,
    scored: Sequence[Config] | None = None,
) -> list[Trial]:
    """What to measure, each the first turn of its setting."""
    chosen = {f.name: getattr(spec, f.name) for f in fields(Plan) if f.name != "phase"}
    shared: dict[str, Any] = {"workload": workload, "round": 0}
    plan = Plan(**chosen | {"metrics": metric_names(spec.metrics)})
    gates = {"wait": Gate(), "keep": Gate(tries=2, wait_s=0.0), "ignore": None}
    shared |= {"gate": gates[spec.on_busy]}
    shared |= {"insist": spec.on_busy == "keep", "answers_only": _scores_here(spec)}
    unscored = replace(plan, quality=False)
    plans = [plan if scored is None or config in scored else unscored for config in configs]
    return [Trial(config=c, plan=p, **shared) for c, p in zip(configs, plans, strict=True)]


def rounds_of(spec: SweepSpec) -> Rounds:
    """How often the settings of a spec take turns."""
    return Rounds(
        least=spec.repeats,
        most=max(spec.repeats, spec.max_repeats),
        half_width=spec.half_width,
        budget_s=spec.budget_s,
    )


class Turns:
    """Measures settings in turns, and stores each turn before the next one starts.

    A setting whose turns were all disturbed is given up after as many as it would have had.

    Parameters
    ----------
    trials : sequence of Trial
    closing : sequence of Run
        Earlier runs; larger settings than those that ran out of memory are skipped.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        store: Store,
        spec: SweepSpec,
        closing: Sequence[Run],
        *,
        progress: bool,
    ) -> None:
        self._trials = {trial.key: trial for trial in trials}
        self._store = store
        self._oom = [run for run in closing if run.status == "oom"]
        self._best_canary_s: float | None = None
        self._busy: Counter[str] = Counter()
        self._spec, self._scores_here = spec, _scores_here(spec)
        #: Seconds per item by round, of what an earlier call measured.
        self.known = {run.key: by_round(run) for run in _here(store.runs)}
        self._waiting: deque[Trial] = deque()
        # an executor asks for a trial when the last one's result was taken
        self._results = EXECUTORS[spec.isolation](iter(self._waiting.popleft, None), spec.timeout_s)
        self._bar = tqdm(
            total=len(trials) * spec.repeats,
            initial=sum(min(len(self.known.get(key, {})), spec.repeats) for key in self._trials),
            disable=not progress,
            unit="pass",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._results.close()
        if kind is None:  # what needed fewer turns than were expected is done as well
            self._bar.total = self._bar.n
        self._bar.close()

    def answers_alike(self, key: str) -> Hashable:
        """Equal for settings whose answers differ by chance at most, so that the faster wins."""
        config = self._trials[key].config
        return config.model, config.images

    def visit(self, key: str, number: int) -> Visit:
        """Measure a turn of a setting."""
        trial = self._trials[key]
        if number == 0 and (cause := closed_by(trial.config, self._oom)):
            reason = f"a smaller setting ran out of memory: {in_words(cause.config)}"
            self._store.append(trial.result("skipped", reason, resolved=cause.resolved))
            return self._seen(Visit(seconds=None, again=False))
        self._bar.set_postfix_str(f"measuring {in_words(trial.config.flat())}")
        self._waiting.append(self._turn(key, number))
        return self._taken(key, number, next(self._results))

    def visit_each(self, keys: Sequence[str], number: int) -> dict[str, Visit]:
        """Measure a turn of several settings, one after another."""
        return {key: self.visit(key, number) for key in keys}

    def visit_side_by_side(self, keys: Sequence[str], number: int) -> dict[str, Visit]:
        """Measure a turn of several settings, whose calls alternate."""
        self._bar.set_postfix_str(f"measuring {len(keys)} settings side by side")
        turns = [self._turn(key, number) for key in keys]
        runs = measure_side_by_side(turns, self._spec.timeout_s)
        return {key: self._taken(key, number, run) for key, run in zip(keys, runs, strict=True)}

    def _turn(self, key: str, number: int) -> Trial:
        return replace(self._trials[key], round=number, best_canary_s=self._best_canary_s)

    def _taken(self, key: str, number: int, run: Run) -> Visit:
        """Store a turn's run, and say what it gave."""
        if self._scores_here and run.answers:
            run = _scored(run, self._spec)
        self._store.append(run)
        if run.status == "oom":
            self._oom.append(run)
        self._note_canary(run)
        self._bar.set_postfix_str(f"{in_words(run.config)}: {run.status}")
        seconds = by_round(run).get(number)
        self._busy[key] += run.status == "busy"
        busy = run.status == "busy" and self._busy[key] < self._spec.repeats
        return self._seen(Visit(seconds=seconds, again=busy or seconds is not None))

    def _seen(self, visit: Visit) -> Visit:
        self._bar.total = max(self._bar.total or 0, self._bar.n + 1)
        self._bar.update()
        return visit

    def _note_canary(self, run: Run) -> None:
        seen = (run.contention.get("canary_s"), self._best_canary_s)
        self._best_canary_s = min((s for s in seen if s is not None), default=None)


def by_round(run: Run) -> dict[int, float]:
    """Seconds per answered item of the passes that were measured in rounds, by round."""
    return {
        repeat.round: repeat.wall_s / repeat.answered
        for repeat in run.repeats
        if repeat.round is not None and repeat.answered
    }


def _scores_here(spec: SweepSpec) -> bool:
    """Whether a metric is a function, which may not be found in a worker process."""
    return any(callable(metric) for metric in spec.metrics.values())


def _scored(run: Run, spec: SweepSpec) -> Run:
    """The run with its answers scored here, where the metrics' functions are at hand.

    One that cannot be scored becomes an error, and keeps its answers.
    """
    tasks, answers, expected = (
        [row[name] for row in run.answers] for name in ("task", "answer", "expected")
    )
    sizes = [row.get("image_size") for row in run.answers]
    pixels = run.architecture.get("model_type") in PIXEL_BOXES
    try:
        scores = score(tasks, answers, expected, spec.metrics, sizes=sizes, pixels=pixels)
    except ConfigError as e:
        return replace(run, status="error", reason=str(e))
    return replace(run, scores={task: found.to_dict() for task, found in scores.items()})


def _tell_kept_errors(kept: Sequence[Run]) -> None:
    if failed := [run for run in kept if run.status == "error"]:
        log.warning(
            "%d settings failed in an earlier sweep and are kept as errors; "
            "retry_errors=True (--retry-errors) measures them again",
            len(failed),
        )


def _tell_cut(runs: Sequence[Run]) -> None:
    """Say where answers ended for want of tokens: a box that is cut off scores 0."""
    cut = [run for run in runs if run.cut_answers]
    if cut:
        most = max(cut, key=lambda run: run.cut_answers or 0)
        log.warning(
            "in %d of %d settings answers ended at max_new_tokens and may be cut off, at most %d "
            "(%s); raise max_new_tokens (--max-new-tokens) above %s",
            len(cut),
            len(runs),
            most.cut_answers,
            in_words(most.config),
            most.config["max_new_tokens"],
        )


def _tell_nothing_measured(runs: Sequence[Run]) -> None:
    if runs and all(run.status == "error" for run in runs):
        log.warning(
            "none of the %d settings could be measured; the first, %s, failed: %s",
            len(runs),
            in_words(runs[0].config),
            runs[0].reason,
        )


def _here(runs: Sequence[Run]) -> list[Run]:
    """The runs that were measured in this environment, on the device that each one names."""
    keys = {device: environment_key(now) for device, now in _environments(runs).items()}
    return [run for run in runs if environment_key(run.environment) == keys[_device(run)]]


def _environments(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """This environment for each device that the runs name."""
    return {device: fingerprint(device) for device in {_device(run) for run in runs}}


def _device(run: Run) -> str:
    return str(run.config.get("device", "auto"))


def _check_environment(store: Store, choice: str) -> None:
    if choice == "fresh" and len(store.runs):
        log.warning("earlier rows moved to %s", store.set_aside())
    now = _environments(store.runs)
    here = _here(store.runs)
    if any(run.environment.get("host") != now[_device(run)]["host"] for run in here):
        log.warning("%s goes on on another machine of the same kind", store.path)
    ours = {id(run) for run in here}
    others = [run for run in store.runs if id(run) not in ours]
    if not others or choice == "keep":
        return
    then = others[-1].environment
    differing = [
        f"{name}: {then.get(name)} then, {value} now"
        for name, value in now[_device(others[-1])].items()
        if then.get(name) != value and name != "host"
    ]
    raise StoreError(
        f"{store.path} holds rows of another environment ({'; '.join(differing)}). "
        "Choose another file, keep both (--on-other-environment keep), or move the old rows aside "
        "(--on-other-environment fresh)"
    )
