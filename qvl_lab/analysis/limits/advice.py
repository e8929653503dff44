"""What a measured run should change first: findings, each with its evidence and what it is worth.

A rule looks at measurements and says nothing without one. Findings are names and numbers; the
sentences, in two languages, are in ``assets/locale``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import pandas as pd

from qvl_lab.analysis.limits.roofline import HIDEABLE, Ceilings, roofline
from qvl_lab.analysis.money.comparable import alike
from qvl_lab.claims import claim
from qvl_lab.config import FIELDS, default_of, engines_with
from qvl_lab.runs.records import Run

#: A stage below this share of the time is not worth a finding.
WORTH_SAYING = 0.1
#: Images, transfers and text may take so much of the wall time before somebody should hide them.
PREPARING = 0.15
#: A stage may take so many times its least time before it is called far from the limit.
FAR = 2.0
#: The share of a ceiling from which a stage is called at its limit.
AT_LIMIT = 0.6
#: Prompts may be so much longer with padding before it is worth avoiding.
PADDING = 0.1
#: Steps of two batch sizes within this of each other take the same time.
SAME_STEP = 0.15
#: Below the lower end of the article's aim, utilisation (0-1) is worth a finding.
BUSY = claim("gpu_busy").number / 100
#: The share of the samples with slowed clocks from which the device is called throttled.
THROTTLED = 0.05
_STATIC = "cache_implementation=static"
#: Idle between kernels may take so much of a stage before launches are said to hold it.
LAUNCHING = 0.3


@dataclass(frozen=True)
class Finding:
    """One thing to change.

    Attributes
    ----------
    rule : str
        What was found, as the name of its sentence.
    evidence : dict
        The measurements that say so, as the sentence names them.
    gain : float or None
        How many times the images per second if it were mended; None if that is not known. Gains
        of several findings overlap: they do not multiply.
    measured : bool
        Whether the gain was measured; otherwise it is the most that there can be.
    """

    rule: str
    evidence: dict[str, Any] = field(default_factory=dict)
    gain: float | None = None
    measured: bool = False


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run, its roofline, and other runs of the same sweep, as the rules look at them."""

    run: Run
    table: pd.DataFrame
    others: Sequence[Run] = ()

    def share(self, stage: str) -> float:
        """Of the wall time; 0 for a stage that was not there."""
        seconds = self.table["seconds"].get(stage, 0.0)
        return float(seconds / self.table.attrs["wall_s"])

    def gain(self, stage: str) -> float:
        """How many times the images per second if the stage reached its goal."""
        goal = self.table.at[stage, "images_per_s_if"]
        return float(goal / self.table.attrs["images_per_s"])

    def value(self, stage: str, column: str) -> float:
        """Of the roofline table; NaN where it is not known."""
        return float(self.table[column].get(stage, float("nan")))


def advise(
    run: Run,
    limits: Ceilings,
    *,
    others: Iterable[Run] = (),
    samples: pd.DataFrame | None = None,
    pauses: pd.DataFrame | None = None,
    stage_kernels: pd.DataFrame | None = None,
) -> list[Finding]:
    """What to change about a run, the largest known gain first.

    Parameters
    ----------
    run : Run
        Measured, with ``architecture`` and ``work``.
    limits : Ceilings
        Of its device and precision.
    others : iterable of Run
        Runs to compare with; those that are not like this one in model, workload, length of
        answers, what a pass answers and environment are left out.
    samples, pauses, stage_kernels : DataFrame, optional
        ``power``, ``pauses`` and ``stage_kernels`` of a profile of the same setting.

    Raises
    ------
    ConfigError
        As :func:`qvl_lab.analysis.limits.roofline.roofline`.
    """
    like = [o for o in others if o.status == "ok" and o.key != run.key and alike(o, run)]
    case = Case(run=run, table=roofline(run, limits), others=like)
    found = [finding for rule in RULES if (finding := rule(case))]
    if samples is not None:
        found += filter(None, [throttled(samples)])
    if pauses is not None:
        found += filter(None, [pausing(pauses)])
    if stage_kernels is not None:
        found += filter(None, [launching(stage_kernels)])
    return sorted(found, key=lambda finding: -(finding.gain or 0.0))


# ---- rules: each says what it found, or nothing


def preparing(case: Case) -> Finding | None:
    """Images and text take time in which the GPU waits."""
    seconds = case.table["seconds"]
    prepared = {name: float(seconds.get(name, 0.0)) for name in HIDEABLE}
    share = sum(map(case.share, prepared))
    if not _on_gpu(case.run) or share < PREPARING:
        return None
    most = max(prepared, key=lambda name: prepared[name])
    evidence = {"share": share, "stage": most, "stage_share": case.share(most)}
    if _has(case.run, "overlap"):
        return Finding("preparing_beside", evidence)
    return Finding("preparing", evidence, _overlapped(share))


def waiting_decode(case: Case) -> Finding | None:
    """A step takes as long for more rows, far from both ceilings: it waits for launches."""
    step_s = _step_s(case.run)
    if case.share("decode") < WORTH_SAYING or not case.value("decode", "times_slower") > FAR:
        return None
    like = [(_rows(o), _step_s(o)) for o in _only_differs(case, "batch_size")]
    same = [
        rows for rows, s in like if rows >= 2 * _rows(case.run) and s < step_s * (1 + SAME_STEP)
    ]
    evidence: dict[str, Any] = {
        "step_ms": 1000 * step_s,
        "least_ms": 1000 * step_s / case.value("decode", "times_slower"),
        "rows": _rows(case.run),
    }
    option = _graphs_option(case.run)
    if same and option and _on_gpu(case.run):
        evidence |= {"more": max(same), "option": option}
        return Finding("waiting_decode", evidence, case.gain("decode"))
    return Finding("far_decode", evidence, case.gain("decode"))


def reading_weights(case: Case) -> Finding | None:
    """Decoding is near the bandwidth: a step reads all weights for few rows."""
    share = case.value("decode", "bandwidth_share")
    memory_bound = case.table["bound"].get("decode") == "memory"
    if case.share("decode") < WORTH_SAYING or not (memory_bound and share > AT_LIMIT):
        return None
    return Finding("reading_weights", {"bandwidth_share": share, "rows": _rows(case.run)})


def far_from_limit(case: Case) -> Finding | None:
    """The vision tower or the prefill takes far longer than its FLOPs need."""
    far = [
        stage
        for stage in ("vision", "prefill")
        if case.share(stage) > WORTH_SAYING and case.value(stage, "times_slower") > FAR
    ]
    if not far:
        return None
    worst = max(far, key=case.gain)
    evidence = {"times_slower": case.value(worst, "times_slower")}
    packed = "_packed" if _has(case.run, "packing") else ""
    return Finding(f"far_{worst}{packed}", evidence, case.gain(worst))


def slow_patch_embedding(case: Case) -> Finding | None:
    """The 3D convolution of the patch embedding takes more than its place."""
    part = "vision/patch_embed"
    share = case.share(part) / (case.share("vision") or 1)
    small = case.share("vision") < WORTH_SAYING or share < WORTH_SAYING
    if small or not case.value(part, "times_slower") > FAR:
        return None
    return Finding("slow_patch_embedding", {"share": share}, case.gain(part))


def at_limit(case: Case) -> Finding | None:
    """The largest stage computes near the device's rate: only less work makes it faster."""
    stage = max(("vision", "prefill", "decode"), key=case.share)
    mfu = case.value(stage, "mfu")
    if case.share(stage) < 1 / 3 or not mfu > AT_LIMIT:
        return None
    return Finding("at_limit", {"stage": stage, "mfu": mfu, "share": case.share(stage)})


def padding(case: Case) -> Finding | None:
    """Prompts of unequal length are padded to their batch's longest."""
    work = [repeat.work for repeat in case.run.repeats if repeat.answered]
    prompts, padded = (sum(w[name] for w in work) for name in ("prompt_tokens", "padded_tokens"))
    if not prompts or padded / prompts - 1 < PADDING:
        return None
    wasted = 1 - prompts / padded
    return Finding("padding", {"padded": wasted}, 1 / (1 - wasted * case.share("prefill")))


def fp32(case: Case) -> Finding | None:
    """The same setting in half precision was measured, and is faster."""
    if case.run.resolved.get("precision") != "fp32":
        return None
    halves = [o for o in _only_differs(case, "precision") if o.resolved["precision"] != "fp32"]
    if not halves:
        return None
    best = max(halves, key=_images_per_s)
    gain = _images_per_s(best) / _images_per_s(case.run)
    if gain < 1 + WORTH_SAYING:
        return None
    return Finding("fp32", {"precision": best.resolved["precision"]}, gain, measured=True)


def fast_engine(case: Case) -> Finding | None:
    """The same setting was measured with the fast engine, and is faster."""
    if case.run.config.get("engine") == "fast":
        return None
    fast = [o for o in _only_differs(case, "engine") if o.config.get("engine") == "fast"]
    gain = max(map(_images_per_s, fast), default=0.0) / _images_per_s(case.run)
    return Finding("fast_engine", {}, gain, measured=True) if gain >= 1 + WORTH_SAYING else None


def larger_batch(case: Case) -> Finding | None:
    """A larger batch was measured, fits and is faster."""
    larger = [o for o in _only_differs(case, "batch_size") if _rows(o) > _rows(case.run)]
    if not larger:
        return None
    best = max(larger, key=_images_per_s)
    gain = _images_per_s(best) / _images_per_s(case.run)
    if gain < 1 + WORTH_SAYING:
        return None
    sizes = {"rows": _rows(case.run), "more": _rows(best)}
    return Finding("larger_batch", sizes, gain, measured=True)


def idle(case: Case) -> Finding | None:
    """The driver saw no kernel running for much of the time."""
    busy = case.run.power.get("gpu_utilisation")
    if busy is None or busy >= BUSY:
        return None
    return Finding("idle", {"busy": busy})


RULES: tuple[Callable[[Case], Finding | None], ...] = (
    preparing,
    waiting_decode,
    reading_weights,
    far_from_limit,
    slow_patch_embedding,
    at_limit,
    padding,
    fp32,
    fast_engine,
    larger_batch,
    idle,
)


def throttled(samples: pd.DataFrame) -> Finding | None:
    """The device slowed its clocks while it worked; ``power`` of a profile."""
    reasons = samples["throttled"].dropna()
    slowed = reasons[reasons != ""]
    if reasons.empty or len(slowed) / len(reasons) < THROTTLED:
        return None
    share = len(slowed) / len(reasons)
    return Finding("throttled", {"share": share, "reason": slowed.mode().iloc[0]})


def pausing(pauses: pd.DataFrame) -> Finding | None:
    """The GPU had nothing to do between stages; ``pauses`` of a profile, with its wall time."""
    share = float(pauses["seconds"].sum()) / pauses.attrs["wall_s"]
    if share < WORTH_SAYING:
        return None
    stage = pauses.groupby("meanwhile")["seconds"].sum().idxmax()
    return Finding("pausing", {"share": share, "stage": stage}, _overlapped(share))


def launching(stage_kernels: pd.DataFrame) -> Finding | None:
    """A stage's kernels run with pauses between them; ``stage_kernels`` of a profile.

    A profiler makes launches slower, so the pauses are longer than without it. Only stages that
    follow another one's work on the GPU are looked at: the pause before the vision tower is the
    CPU's, which prepares its images.
    """
    known = stage_kernels.dropna(subset=["stage", "gpu_s"])
    known = known[known["stage"].str.match("(prefill|decode)(/|$)").astype(bool)]
    outer = known["stage"].str.split("/").str[0]
    sums = known.groupby(outer)[["kernels", "gpu_s", "gap_s"]].sum().to_dict("index")
    busy = {stage: found for stage, found in sums.items() if found["gpu_s"]}
    if not busy:
        return None
    stage, most = max(busy.items(), key=lambda at: at[1]["gpu_s"] + at[1]["gap_s"])
    share = float(most["gap_s"] / (most["gpu_s"] + most["gap_s"]))
    if share < LAUNCHING:
        return None
    kernels = int(most["kernels"])
    evidence = {"stage": stage, "share": share, "kernels": kernels}
    return Finding("launching", evidence | {"mean_us": 1e6 * float(most["gpu_s"]) / kernels})


# ---- what runs have in common


def _on_gpu(run: Run) -> bool:
    return str(run.resolved.get("device", "")).startswith("cuda")


def _has(run: Run, name: str) -> bool:
    """Whether the fast engine answered, with this switch on."""
    return run.config.get("engine") == "fast" and bool(run.config.get(name, True))


def _graphs_option(run: Run) -> str:
    """The setting that would replay CUDA graphs, "" if they are on."""
    if run.config.get("engine") == "fast":
        return "" if _has(run, "cuda_graphs") else "cuda_graphs=true"
    return "" if run.config.get("cache_implementation") == "static" else _STATIC


def _only_differs(case: Case, name: str) -> list[Run]:
    """Other runs with the same settings but for one.

    What only one of two engines has is at its default in the other.
    """

    def rest(config: Mapping[str, Any]) -> dict[str, Any]:
        lacking = [n for n in FIELDS if config.get("engine") not in engines_with(n)]
        whole = {**{n: default_of(n) for n in lacking}, **config}
        return {key: value for key, value in whole.items() if key != name}

    return [o for o in case.others if rest(o.config) == rest(case.run.config)]


def _rows(run: Run) -> int:
    return int((run.config | run.resolved)["batch_size"])


def _images_per_s(run: Run) -> float:
    return median(r.answered / r.wall_s for r in run.repeats if r.answered)


def _step_s(run: Run) -> float:
    """Seconds of a decoding step; NaN if there was none."""
    done = [r for r in run.repeats if r.answered and r.work.get("decode_steps")]
    steps = [r.stages_s["decode"] / r.work["decode_steps"] for r in done]
    return median(steps) if steps else float("nan")


def _overlapped(share: float) -> float:
    """The gain if two parts of the time, one of this share, ran beside each other."""
    return 1 / max(share, 1 - share)
