"""Runs to a table: one row per configuration, medians and intervals over the repeats."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import pandas as pd

from qvl_lab.analysis.levers.cache_savings import cache_columns
from qvl_lab.analysis.quality.scoring import TaskScores
from qvl_lab.analysis.quality.shared import SharedScores
from qvl_lab.analysis.stats.estimates import Estimate, estimate
from qvl_lab.analysis.stats.intervals import interval
from qvl_lab.config import AUTO, BY_TASK, ENGINES, default_of, digest, engines_with
from qvl_lab.runs.records import PARTS, STAGES, Repeat, Run, environment_key

#: Columns that say what was run; a sweep's axes are those that vary.
SETTINGS = (
    "model",
    "precision",
    "resolution",
    "task_resolutions",
    "batch_size",
    "engine",
    "cache_implementation",
    "attn_implementation",
    "max_new_tokens",
    "min_new_tokens",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "sampling_seed",
    "memory_limit_gib",
    "prefill_chunk",
    "block_size",
    "kv_cache_gib",
    "prefix_cache",
    "encoder_cache_gib",
    "encoder_cache_entries",
    "encoder_cache_dir",
    "encoder_cache_dir_gib",
    "encoder_cache_max_age_s",
    "cache_key",
    "response_cache_entries",
    "max_queue_size",
    "packing",
    "overlap",
    "cuda_graphs",
    "fused_kernels",
    "max_image_pixels",
    "max_image_bytes",
    "revision",
    "device",
    "seed",
)

#: Fields of a plan that say how often something was timed, or scored, not what.
_HOW_OFTEN = ("repeats", "warmup", "min_pass_s", "phase", "quality")
#: A setting whose slowest pass took this many times its fastest is unstable.
UNSTABLE = 1.5


def frame(runs: Iterable[Run]) -> pd.DataFrame:
    """A table of runs.

    Returns
    -------
    DataFrame
        Settings; ``status`` and ``reason``; ``images_per_s`` and ``s_per_100_images`` (median,
        ``_low`` and ``_high`` of the 95% interval over repeats), which count answers, so they
        hold for images where each is asked one question; ``questions_per_image``, what tells the
        two apart in money (see :func:`qvl_lab.price`); the columns of :func:`time_columns`;
        ``new_tokens_per_s``; per-image seconds of each stage as ``stage_NAME_s``, and of each
        stage within a stage as :func:`part_column`; peak bytes as ``peak_NAME_bytes``;
        ``gpu_utilisation`` (0-1), ``power_w``, ``energy_j_per_100_images``; ``load_s``,
        ``warmup_s``, ``start_s`` (see :func:`start_s`); ``encoder_hit_rate``,
        ``prefix_hit_rate``, ``response_hit_rate`` (0-1) of the caches that were on, and the
        columns of ``cache_columns``;
        workload and environment columns; ``environment`` names the environment as a whole; the
        columns of :func:`quality_columns` and :func:`normalised_columns`; ``failed_share`` (0-1)
        of the items that had no answer, in the timed passes or where answers were scored,
        whichever is more. ``round_s`` maps the rounds of a sweep to the seconds
        per 100 images that the setting took in them, and ``confirmed_s`` those of a confirmation,
        which gives no row of its own. ``passes_thrown_away`` counts passes
        beside which others used the machine, ``disturbed`` says that such passes are among the
        numbers, ``unstable`` that the slowest pass took more than 1.5 times the fastest;
        ``cut_answers`` counts those that ended at the limit of tokens. ``quality_from`` names the
        keys of the runs whose scores a row shares, see :mod:`qvl_lab.analysis.quality.shared`.
        Unknown is NaN or None.
    """
    every = list(runs)
    confirmed = {_setting(run): _rounds(run) for run in every if _confirms(run)}
    shared = SharedScores(every)
    return pd.DataFrame(
        [
            _row(run, shared) | {"confirmed_s": confirmed.get(_setting(run))}
            for run in every
            if not _confirms(run)
        ]
    )


def _confirms(run: Run) -> bool:
    """Whether it was measured to confirm what another run showed."""
    return bool(run.plan.get("phase") == "confirmation")


def _setting(run: Run) -> tuple[str, str, str]:
    """Equal for a run and the one that confirms it."""
    workload = str(run.workload.get("fingerprint"))
    return digest(run.config), workload, environment_key(run.environment)


def _rounds(run: Run) -> dict[int, float] | None:
    """Seconds per 100 images by round; None where nothing was measured in rounds."""
    rounds = {
        r.round: 100 * r.wall_s / r.answered
        for r in run.repeats
        if r.round is not None and r.answered
    }
    return rounds or None


def _how_measured(run: Run) -> dict[str, Any]:
    rates = [r.answered / r.wall_s for r in run.repeats if r.answered]
    return {
        "round_s": _rounds(run),
        "passes_thrown_away": run.contention.get("thrown_away"),
        "cut_answers": run.cut_answers,
        "disturbed": any(r.disturbed for r in run.repeats),
        "unstable": bool(rates) and max(rates) > UNSTABLE * min(rates),
    }


#: What is timed of each answer.
TIMES = ("queue", "ttft", "e2e")
#: Percentiles of all items, and how many items it takes for one of them to lie above.
_TAILS = {95: 20, 99: 100}


def time_columns(repeats: Sequence[Repeat]) -> dict[str, float | None]:
    """How long answers took from the moment they were asked for, in seconds.

    ``queue_s``, ``ttft_s`` and ``e2e_s`` are medians of the passes' medians, with ``_low`` and
    ``_high`` of the 95% interval over passes. ``queue_p95_s``, ``queue_p99_s`` and so on are the
    values that 95% and 99% of all items of all passes do not exceed. They are None with fewer than
    20 or 100 items, where they would be the slowest one. A pass hands over all its items at once,
    so the more items it has, the longer the last one waits.

    Older files know only the time from the start of an item's batch, or of its prefill in the fast
    engine, to its first token: that is ``batch_ttft_s``, and all other columns are None.
    """
    row: dict[str, float | None] = {}
    of_today = [r for r in repeats if r.e2e_s]
    for name in TIMES:
        passes = [found for r in of_today if (found := getattr(r, f"{name}_s"))]
        row |= _columns(f"{name}_s", [median(found) for found in passes])
        values = sorted(value for found in passes for value in found)
        for share, least in _TAILS.items():
            known = len(values) >= least
            row[f"{name}_p{share}_s"] = percentile(values, share) if known else None
    older = [r.ttft_s for r in repeats if r.ttft_s and not r.e2e_s]
    return row | _columns("batch_ttft_s", [median(found) for found in older])


def percentile(values: Sequence[float], share: int) -> float:
    """The least of sorted values that ``share`` percent of them do not exceed."""
    return values[-(-share * len(values) // 100) - 1]


_TAKEN = (
    "low",
    "high",
    "kind",
    "items",
    "missing",
    "unparsed",
    "normalised",
    "fractions",
    "pixels",
)


def task_column(task: str) -> str:
    """The column of a task's mean score: "quality_colour"."""
    return f"quality_task_{task}" if task in _TAKEN else f"quality_{task}"


def quality_columns(scores: Mapping[str, TaskScores], kind: str) -> dict[str, Any]:
    """What a row says about its answers.

    ``quality`` (0-1), the mean over tasks of each task's mean score, with ``_low`` and ``_high``
    of its 95% interval over the items; the same for each task in :func:`task_column`;
    ``quality_kind``, "answers" if they were compared with true ones, "agreement" if with those of
    another setting; ``quality_items``, ``quality_missing``, ``quality_unparsed``: how many items
    were scored, had no answer, had an answer without a readable box; ``scores``, task to its
    scores item by item, and ``score_images``, task to the images that these are about, where that
    is known. An item without an answer scores 0.
    """
    row: dict[str, Any] = dict.fromkeys(("quality", "quality_low", "quality_high"))
    row |= {"quality_kind": None, "quality_items": None, "quality_missing": None}
    row |= {"quality_unparsed": None, "scores": None, "score_images": None}
    if not any(found.count for found in scores.values()):
        return row
    images = _images(scores)
    groups = {"quality": list(scores)} | {task_column(task): [task] for task in scores}
    for name, tasks in groups.items():
        bounds = interval(
            [scores[task].scored for task in tasks],
            images=[images[task] for task in tasks] if images else None,
        )
        row |= zip((name, f"{name}_low", f"{name}_high"), bounds, strict=True)
    row |= {"quality_kind": kind, "scores": {task: s.scored for task, s in scores.items()}}
    row["score_images"] = images
    row["quality_items"] = sum(found.count for found in scores.values())
    row["quality_missing"] = sum(found.missing for found in scores.values())
    row["quality_unparsed"] = sum(found.unparsed for found in scores.values())
    return row


def normalised_columns(scores: Mapping[str, TaskScores]) -> dict[str, Any]:
    """The quality of what the answers say, however they are written, beside the strict one.

    ``quality_normalised`` with ``_low`` and ``_high``, as ``quality`` of :func:`quality_columns`;
    ``quality_normalised_TASK``, the mean of a task's; ``quality_fractions`` and ``quality_pixels``,
    how many answers had boxes in another form than 0-1000. None in older files, and where nothing
    was answered.
    """
    names = ("normalised", "normalised_low", "normalised_high", "fractions", "pixels")
    row: dict[str, Any] = {f"quality_{name}": None for name in names}
    known = all(len(found.normalised) == len(found.values) for found in scores.values())
    if not known or not any(found.count for found in scores.values()):
        return row
    values = {task: [v or 0.0 for v in found.normalised] for task, found in scores.items()}
    images = _images(scores)
    bounds = interval(list(values.values()), images=list(images.values()) if images else None)
    row |= zip((f"quality_{n}" for n in names[:3]), bounds, strict=True)
    row |= {f"quality_normalised_{task}": found.normalised_mean for task, found in scores.items()}
    for name in ("fractions", "pixels"):
        row[f"quality_{name}"] = sum(getattr(found, name) for found in scores.values())
    return row


def _images(scores: Mapping[str, TaskScores]) -> dict[str, tuple[int, ...]] | None:
    """Task to the images of its scores; None unless all are known."""
    known = {task: found.images for task, found in scores.items() if found.images is not None}
    return known if len(known) == len(scores) else None


def with_defaults(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with defaults where a row's engine does not have a setting.

    Rows of different engines can then be compared: what only one of them has is at its default in
    the other.
    """
    filled = frame.copy()
    for name in SETTINGS:
        if name in frame and (others := set(ENGINES) - set(engines_with(name))):
            pairs = zip(frame["engine"], frame[name], strict=True)
            values = [default_of(name) if engine in others else value for engine, value in pairs]
            filled[name] = pd.Series(values, index=frame.index)  # finds the type again
    return filled


def _row(run: Run, shared: SharedScores) -> dict[str, Any]:
    config = run.config | run.resolved
    row: dict[str, Any] = {"key": run.key, "status": run.status, "reason": run.reason}
    row |= {name: config.get(name) for name in SETTINGS}
    if row["batch_size"] == AUTO:  # not known where nothing was measured
        row["batch_size"] = None
    row["resolution"] = str(config.get("resolution"))
    by_task = config.get("task_resolutions") if row["resolution"] == BY_TASK else None
    row["task_resolutions"] = by_task and json.dumps(by_task, ensure_ascii=False)
    row["plan"] = digest(what_is_timed(run.plan))
    row |= _speed(run) | _stages(run)
    row |= {f"peak_{kind}_bytes": run.memory.get(kind) for kind in _MEMORY}
    row |= {name: run.power.get(name) for name in ("gpu_utilisation", "power_w")}
    row["energy_j_per_100_images"] = _energy(run)
    row |= {"load_s": run.cold.get("load_s"), "warmup_s": run.cold.get("warmup_s")}
    row["start_s"] = start_s(run)
    row |= _how_measured(run)
    row |= _hit_rates(run) | cache_columns(run)
    row |= {"cache_state": run.cache_state, "random_weights": run.random_weights}
    row["started_at"] = run.started_at
    found, sources = shared.of(run)
    scores = {task: TaskScores.from_dict(values) for task, values in found.items()}
    row |= quality_columns(scores, "answers") | normalised_columns(scores)
    row["quality_from"] = None if sources in ([], [run.key]) else sources
    row["failed_share"] = _failed_share(row, run)
    row |= {"workload": run.workload.get("name"), "workload_items": run.workload.get("items")}
    row["workload_fingerprint"] = run.workload.get("fingerprint")
    items, images = run.workload.get("items"), run.workload.get("images")
    row["questions_per_image"] = items / images if items and images else None
    row |= {f"env_{name}": value for name, value in run.environment.items()}
    row["environment"] = environment_key(run.environment)
    return row


def start_s(run: Run) -> float | None:
    """Seconds from nothing to the first answer at full speed, at most.

    Loading and warming up, less the passes that warming up surely ran: their work is no start.
    How many it ran is not on record, so this is an upper bound. None if it was not measured.
    """
    load_s, warmup_s = run.cold.get("load_s"), run.cold.get("warmup_s")
    done = [r for r in run.repeats if r.answered]
    if load_s is None or warmup_s is None or not done:
        return None
    call_s = median(r.wall_s / r.calls for r in done)
    if run.plan.get("min_pass_s"):  # whole passes, two of them unless the first took ten seconds
        worked_s = call_s * (2 if warmup_s < 10 else 1)
    elif run.config.get("cache_implementation") == "static":
        worked_s = call_s
    else:  # a number of batches
        batch_s = median(s for r in done for s in r.batch_s) if done[0].batch_s else 0.0
        worked_s = min(call_s, batch_s * run.plan.get("warmup", 1))
    return float(load_s + max(0.0, warmup_s - worked_s))


def what_is_timed(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a plan that says what a pass answers; equal plans time the same thing.

    How often it is timed is left out, and so is the seed where nothing is drawn.
    """
    chosen = {k: v for k, v in plan.items() if k not in _HOW_OFTEN and v not in (None, {})}
    if not chosen.keys() & {"timed_items", "batches"}:
        chosen.pop("seed", None)
    return chosen


def _failed_share(row: Mapping[str, Any], run: Run) -> float | None:
    """Of the items, those without an answer, timed or scored; not those of shared scores."""
    failed, answered = (sum(getattr(r, n) for r in run.repeats) for n in ("failed", "answered"))
    shares = [failed / (failed + answered)] if failed + answered else []
    if row["quality_items"] and row["quality_from"] is None:
        shares.append(row["quality_missing"] / row["quality_items"])
    return max(shares, default=None)


def _hit_rates(run: Run) -> dict[str, float | None]:
    """Hits per request of each cache over all repeats; None where it was off."""
    row: dict[str, float | None] = {}
    for cache in ("encoder", "prefix", "response"):
        hits, misses = (
            sum(r.caches.get(f"{cache}_{what}", 0) for r in run.repeats)
            for what in ("hits", "misses")
        )
        row[f"{cache}_hit_rate"] = hits / (hits + misses) if hits + misses else None
    return row


_MEMORY = ("allocated", "reserved", "process", "device")


def _speed(run: Run) -> dict[str, Any]:
    done = [r for r in run.repeats if r.answered]
    row: dict[str, Any] = {"repeats": len(run.repeats)}
    row["answered"] = median(r.answered for r in done) if done else None
    row["failed"] = median(r.failed for r in run.repeats) if run.repeats else None
    row |= _columns("s_per_100_images", [100 * r.wall_s / r.answered for r in done])
    row |= _columns("images_per_s", [r.answered / r.wall_s for r in done])
    row |= time_columns(done)
    for name in ("prompt_tokens", "visual_tokens", "new_tokens"):
        values = [getattr(r, name) / r.answered for r in done]
        row[f"{name}_per_image"] = median(values) if values else None
    rates = [r.new_tokens / r.wall_s for r in done]
    row["new_tokens_per_s"] = median(rates) if rates else None
    return row


def _stages(run: Run) -> dict[str, float | None]:
    done = [r for r in run.repeats if r.answered]
    row: dict[str, float | None] = {}
    for name in (*STAGES, "other"):
        values = [r.stages_s.get(name, 0.0) / r.answered for r in done]
        row[f"stage_{name}_s"] = median(values) if values else None
    for path in PARTS:
        known = [r.parts_s[path] / r.answered for r in done if path in r.parts_s]
        row[part_column(path)] = median(known) if known else None
    return row


def part_column(path: str) -> str:
    """The column of a stage within a stage: "part_vision_merger_s"."""
    return f"part_{path.replace('/', '_')}_s"


def _energy(run: Run) -> float | None:
    energy, answered = run.power.get("energy_j"), sum(r.answered for r in run.repeats)
    return None if energy is None or not answered else 100 * energy / answered


def _columns(name: str, values: list[float]) -> dict[str, float | None]:
    result = (
        estimate(values) if all(v > 0 for v in values) else Estimate(median(values), None, None)
    )
    result = result or Estimate(float("nan"), None, None)
    return {name: result.value, f"{name}_low": result.low, f"{name}_high": result.high}
