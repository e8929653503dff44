"""How far a measured run is from what the hardware allows.

A stage takes at least its FLOPs at the device's rate, and at least its bytes at the bandwidth. Both
follow from the model's sizes and from the sums that a ``Work`` keeps. Stages
are named as in ``stages_s``; a part ("vision/merger", of ``parts_s``)
counts in its stage too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from qvl_lab.errors import ConfigError, UnknownNameError
from qvl_lab.hardware import Gpu
from qvl_lab.models.architecture import VALUE_BYTES, Architecture, value_bytes
from qvl_lab.runs.records import STAGES, Repeat, Run, Work

HOW_TO_MEASURE = "measure it with 'qvl-lab doctor --ceilings FILE' on that machine"
#: Stages without FLOPs, which a pipeline can run while the GPU computes for another batch.
HIDEABLE = (*(name for name in STAGES if name not in ("vision", "prefill", "decode")), "other")
#: What takes less of a pass is not timed well enough to raise a ceiling: an engine that overlaps
#: batches gave a patch embedding of 1 ms up to 1.9 times the rate of an H200.
TIMED_WELL_S = 0.005


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What a device does at most; None is unknown.

    ``flops_per_s`` in matrix products of one precision, ``bytes_per_s`` read and written,
    ``source`` says where the figures are from, or what to do. ``raised_by`` names for a figure the
    stage that did more than was known before, and set it.
    """

    flops_per_s: float | None
    bytes_per_s: float | None
    source: str
    raised_by: Mapping[str, str] = field(default_factory=dict)


def ceilings(gpu: Gpu | None, precision: str) -> Ceilings:
    """Dense rates of the GPU table; for a GPU that is not in it, None and how to measure.

    bf16 and fp16 run at the table's bf16 rate, which is the same on these GPUs. int8 quantises
    weights only and computes in bf16. fp32 is unknown: torch does not use TF32 unless told to, and
    the table has no rate for it. fp8 has no one rate: the text layers' matrices run at that of 8
    bits, the rest at that of 16.

    Raises
    ------
    UnknownNameError
        If the precision is unknown.
    """
    _check_precision(precision)
    if gpu is None:
        source = f"a device that is not in the table of GPUs; {HOW_TO_MEASURE}"
        return Ceilings(flops_per_s=None, bytes_per_s=None, source=source)
    rate = None if precision in ("fp32", "fp8") else gpu.bf16_tflops * 1e12
    source = gpu.source if rate else f"{gpu.source}; no rate for {precision}, {HOW_TO_MEASURE}"
    return Ceilings(flops_per_s=rate, bytes_per_s=gpu.bandwidth_gb_s * 1e9, source=source)


def measured_ceilings(values: Mapping[str, Any], precision: str) -> Ceilings:
    """The same from what :func:`qvl_lab.probe.ceilings.measure_ceilings` returned.

    int8 computes in bf16 on a GPU and in fp32 on a CPU.
    """
    _check_precision(precision)
    device = str(values["device"])
    computes_in = (
        ("fp32" if device.startswith("CPU") else "bf16") if precision == "int8" else precision
    )
    return Ceilings(
        flops_per_s=values["flops_per_s"].get(computes_in),
        bytes_per_s=values["bytes_per_s"],
        source=f"measured on {device}",
    )


def raised(limits: Ceilings, runs: Iterable[Run]) -> Ceilings:
    """Ceilings that are nowhere below what a stage of these runs reached.

    No matrix product or copy is the fastest that there can be, and a stage cannot do more than its
    device does.

    Parameters
    ----------
    runs : iterable of Run
        Of the ceilings' device and precision; those without sizes or sums are left out.
    """
    for run in runs:
        answered = [repeat for repeat in run.repeats if repeat.answered]
        if not answered or not run.architecture or not all(repeat.work for repeat in answered):
            continue
        table = _median_pass(run)
        timed = table[table["seconds"] >= TIMED_WELL_S]
        for name, column in (("flops_per_s", "flops"), ("bytes_per_s", "bytes")):
            known, rates = getattr(limits, name), (timed[column] / timed["seconds"]).dropna()
            if known is not None and len(rates) and rates.max() > known:
                found: dict[str, Any] = {name: float(rates.max())}
                found["raised_by"] = {**limits.raised_by, name: str(rates.idxmax())}
                limits = replace(limits, **found)
    return limits


def flops(
    arch: Architecture, work: Work, *, padded: bool = True, causal: bool = True
) -> dict[str, float]:
    """Floating point operations of matrix products by stage, a multiplication and an addition each.

    With P patches, N visual tokens, S prompt tokens, vision width v and inner width w, text width h
    and inner width i, queries q and keys k values wide, L layers, context c, vocabulary V:

    - vision: ``2 P c t p^2 v`` for the patch embedding (colours, frames, patch side);
      ``depth P (8 v^2 + 4 v w)`` (6 v w with a gate) and ``4 v P^2`` for each block, P^2 summed
      image by image; ``2 N ((4v)^2 + 4 v h)`` for each merger.
    - prefill: ``L (2h (q + 2k) + 2 q h + 6 h i)`` a token, for experts ``6 h e m + 2 h E`` in place
      of ``6 h i`` (e of E experts of width m); attention ``2 L q S (S + 1)``.
    - decode: the same a token, attention ``4 L q c``.
    - LM head: ``2 h V`` a prompt (``generate`` asks for one position) and a decoded token.

    Source: the shapes of matrices in transformers' ``modeling_qwen*_vl.py``. Norms, rotations,
    activations, softmax and the interpolation of positions are no matrix products. In windows of
    Qwen2.5-VL every patch is taken to have a full window (an image's margins have less).

    Parameters
    ----------
    padded : bool
        Count what the engine computes, or the prompts without their padding.
    causal : bool
        Count the half of the prefill's attention that is needed, or the whole square, as
        :class:`torch.utils.flop_counter.FlopCounterMode` does.

    Returns
    -------
    dict
        "vision" and of it "vision/patch_embed" and "vision/merger" (all mergers); "prefill" and
        "decode", and of each "/layers" and "/lm_head".
    """
    embed = 2.0 * work.patches * arch.patch_values * arch.vision_hidden
    merger = 2.0 * _visual_tokens(arch, work) * arch.merger_parameters * (1 + arch.deepstack)
    head = 2.0 * arch.hidden * arch.vocab
    tokens, squares = _prompt(work, padded)
    pairs = (squares + tokens) / 2 if causal else squares
    score = 4.0 * arch.layers * arch.query_size  # of one token with another: once q k, once p v
    linear = _linear_flops(arch)
    return _by_stage(
        vision=(embed + merger + _block_flops(arch, work), embed, merger),
        prefill=(tokens * linear + score * pairs, head * work.images),
        decode=(work.decode_rows * linear + score * work.context_tokens, head * work.decode_rows),
    )


def bytes_moved(
    arch: Architecture,
    work: Work,
    bytes_per_weight: int,
    bytes_per_activation: int,
    *,
    padded: bool = True,
) -> dict[str, float]:
    """The least bytes that each stage reads and writes; keys as in :func:`flops`.

    Weights once in a forward pass; keys and values as they are written, and as decoding reads them;
    what enters and leaves the stage (pixels, visual tokens, a vector for each prompt token,
    scores). What passes between a stage's kernels could stay on the chip and is not counted.

    Of E experts with e for each token, n tokens in a pass touch ``E (1 - (1 - e/E)^n)`` if the
    router spreads them evenly; a router with favourites touches fewer.

    Parameters
    ----------
    bytes_per_weight : int
        Of the text layers' matrices, which int8 quantises.
    bytes_per_activation : int
        Of activations, keys and values, and all other weights.
    """
    sizes = bytes_per_weight, bytes_per_activation
    tokens, _ = _prompt(work, padded)
    inputs = (tokens + arch.deepstack * _visual_tokens(arch, work)) * arch.hidden
    rows, steps = work.decode_rows, work.decode_steps
    return _by_stage(
        vision=_vision_bytes(arch, work, bytes_per_activation),
        prefill=(
            _layer_bytes(arch, sizes, work.batches, tokens, tokens, inputs),
            _head_bytes(arch, work.batches, work.images) * bytes_per_activation,
        ),
        decode=(
            _layer_bytes(arch, sizes, steps, rows, rows + work.context_tokens, rows * arch.hidden),
            _head_bytes(arch, steps, rows) * bytes_per_activation,
        ),
    )


def roofline(run: Run, limits: Ceilings, *, padded: bool = True) -> pd.DataFrame:
    """A run's stages beside the least time that the device needs for them.

    Parameters
    ----------
    run : Run
        Measured, with ``architecture`` and ``work``.
    limits : Ceilings
        From :func:`ceilings` or :func:`measured_ceilings`, for the run's precision.
    padded : bool
        Whether padding counts as work to be done.

    Returns
    -------
    DataFrame
        One row per measured stage, in the order of ``STAGES``, its parts after
        it. ``seconds`` (median of a pass), ``flops``, ``bytes``; ``least_s``, the larger of both at
        their ceilings, and ``bound``, which one ("compute", "memory"); ``mfu`` and
        ``bandwidth_share``, the shares (0-1) of the ceilings that were reached; ``times_slower``,
        measured by least time; ``reached``, the share of the ceiling that bounds it.
        ``images_per_s_if``: images per second if this stage took no more than ``least_s`` and all
        others what they took; for a stage without FLOPs beside a GPU, if it ran while the GPU
        computes. ``goal`` says which: "ceiling", "hidden", or None where neither is known. NaN
        where a ceiling is unknown.
        ``attrs``: ``images_per_s`` as measured, ``wall_s`` and ``images`` of a pass, ``ceilings``
        (their source), and ``raised_by`` of :class:`Ceilings` where a stage passed them.

    Raises
    ------
    ConfigError
        If the run answered nothing, or its file has neither sizes nor sums: measure again.
    """
    _, repeats = _readable(run)
    limits = raised(limits, [run])
    table = _median_pass(run, padded)
    table = table.loc[sorted(table.index, key=_order)].rename_axis("stage")
    images_per_s = float(np.median([r.answered / r.wall_s for r in repeats]))
    wall_s = float(np.median([r.wall_s for r in repeats]))
    table = _against(table, limits)
    on_gpu = run.resolved["device"].startswith("cuda")
    hidden = table.index.isin(HIDEABLE) & on_gpu
    rest_s = wall_s - table["seconds"]
    beside_s = np.maximum(rest_s, table["seconds"])  # the longer of both
    table["images_per_s_if"] = (
        images_per_s * wall_s / np.where(hidden, beside_s, rest_s + table["least_s"])
    )
    table["goal"] = None
    table.loc[table["least_s"].notna(), "goal"] = "ceiling"
    table.loc[hidden, "goal"] = "hidden"
    images = int(np.median([r.answered for r in repeats]))
    table.attrs |= {"images_per_s": images_per_s, "wall_s": wall_s, "images": images}
    table.attrs["ceilings"] = limits.source
    if limits.raised_by:
        table.attrs["raised_by"] = dict(limits.raised_by)
    return table


def biggest_wins(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of :func:`roofline`, the stage with the most to win first.

    Parts are left out, since their stage counts them, and so are stages without a goal.
    """
    whole = table[~table.index.str.contains("/") & table["images_per_s_if"].notna()]
    return whole.sort_values("images_per_s_if", ascending=False, kind="stable")


def _by_stage(
    vision: tuple[float, float, float], prefill: tuple[float, float], decode: tuple[float, float]
) -> dict[str, float]:
    """From (all, patch embedding, mergers) and twice (layers, LM head) to amounts by path."""
    found = dict(zip(("vision", "vision/patch_embed", "vision/merger"), vision, strict=True))
    for stage, (layers, head) in (("prefill", prefill), ("decode", decode)):
        found |= {stage: layers + head, f"{stage}/layers": layers, f"{stage}/lm_head": head}
    return found


def _check_precision(precision: str) -> None:
    if precision not in VALUE_BYTES:
        raise UnknownNameError("precision", precision, VALUE_BYTES)


def _visual_tokens(arch: Architecture, work: Work) -> int:
    return work.patches // arch.merged_patches


def _prompt(work: Work, padded: bool) -> tuple[int, int]:
    """Tokens of all prompts, and their squares summed."""
    if padded:
        return work.padded_tokens, work.padded_tokens_squared
    return work.prompt_tokens, work.prompt_tokens_squared


def _block_flops(arch: Architecture, work: Work) -> float:
    hidden, wide = arch.vision_hidden, arch.vision_intermediate
    linear = 8 * hidden**2 + (6 if arch.vision_gated else 4) * hidden * wide
    pairs = arch.full_attention_blocks * work.patches_squared
    if arch.window:
        seen = min(arch.window * work.patches, work.patches_squared)
        pairs += (arch.vision_depth - arch.full_attention_blocks) * seen
    return float(arch.vision_depth * work.patches * linear + 4 * hidden * pairs)


def _linear_flops(arch: Architecture) -> float:
    """Of one token in all text layers, attention among tokens left out."""
    idle = (arch.experts or 0) - (arch.experts_per_token or 0)
    unused = arch.expert_layers * idle * arch.expert_parameters
    return 2.0 * (arch.matrix_parameters - unused)


def _vision_bytes(arch: Architecture, work: Work, value: int) -> tuple[float, float, float]:
    """Of the vision tower with its mergers, of the patch embedding, of the mergers."""
    counts, outputs = arch.parameters(), 1 + arch.deepstack
    pixels, hidden = work.patches * arch.patch_values, work.patches * arch.vision_hidden
    visual = outputs * _visual_tokens(arch, work) * arch.hidden
    everything = work.batches * (counts["vision"] + counts["mergers"]) + pixels + visual
    embed = work.batches * arch.patch_values * arch.vision_hidden + pixels + hidden
    mergers = work.batches * counts["mergers"] + outputs * hidden + visual
    return float(everything * value), float(embed * value), float(mergers * value)


def _layer_bytes(
    arch: Architecture, sizes: tuple[int, int], passes: int, rows: int, cached: int, inputs: int
) -> float:
    """Of the text layers: ``rows`` tokens in all passes, ``cached`` ones written or read."""
    matrix, value = sizes
    vectors = arch.parameters()["text_layers"] - arch.matrix_parameters
    weights = passes * (_matrices_touched(arch, passes, rows) * matrix + vectors * value)
    return weights + cached * arch.kv_bytes_per_token(value) + inputs * value


def _head_bytes(arch: Architecture, passes: int, rows: int) -> float:
    """Values that the LM head reads and writes: the whole of it in each pass, a row's own."""
    return float(passes * arch.vocab * arch.hidden + rows * (arch.hidden + arch.vocab))


def _matrices_touched(arch: Architecture, passes: int, tokens: int) -> float:
    """Parameters of the text layers' matrices that a pass of average size reads."""
    if not arch.experts or not arch.experts_per_token or not passes:
        return arch.matrix_parameters
    missed = (1 - arch.experts_per_token / arch.experts) ** (tokens / passes)
    experts = arch.expert_layers * arch.experts * arch.expert_parameters
    return float(arch.matrix_parameters - experts * missed)


def _readable(run: Run) -> tuple[Architecture, list[Repeat]]:
    repeats = [repeat for repeat in run.repeats if repeat.answered]
    if not repeats:
        raise ConfigError(f"run {run.key} ({run.status}) answered nothing, so there is no roofline")
    if not run.architecture or not all(repeat.work for repeat in repeats):
        raise ConfigError(
            f"run {run.key} does not say how large its model was and how much there was to "
            "compute: an older qvl_lab wrote it; measure it again"
        )
    return Architecture.from_dict(run.architecture), repeats


def _median_pass(run: Run, padded: bool = True) -> pd.DataFrame:
    """``seconds``, ``flops`` and ``bytes`` of each stage, medians over the passes."""
    arch, repeats = _readable(run)
    sizes = value_bytes(run.resolved["precision"], run.resolved["device"])
    passes = [_pass(arch, repeat, sizes, padded) for repeat in repeats]
    return pd.concat(passes).groupby(level=0).median()


def _pass(arch: Architecture, repeat: Repeat, sizes: tuple[int, int], padded: bool) -> pd.DataFrame:
    """``seconds``, ``flops`` and ``bytes`` of the stages of one pass."""
    work, seconds = Work(**repeat.work), repeat.stages_s | repeat.parts_s
    columns = {
        "seconds": seconds,
        "flops": flops(arch, work, padded=padded),
        "bytes": bytes_moved(arch, work, *sizes, padded=padded),
    }
    return pd.DataFrame(columns, index=list(seconds), dtype=float)


def _order(path: str) -> tuple[int, str]:
    stages = (*STAGES, "other")
    stage = path.partition("/")[0]
    return (stages.index(stage) if stage in stages else len(stages), path)


def _against(table: pd.DataFrame, limits: Ceilings) -> pd.DataFrame:
    """Add what follows from the ceilings."""
    rate, bandwidth = (
        np.nan if limit is None else limit for limit in (limits.flops_per_s, limits.bytes_per_s)
    )
    compute_s, memory_s = table["flops"] / rate, table["bytes"] / bandwidth
    both = pd.DataFrame({"compute": compute_s, "memory": memory_s}).dropna()
    least_s = both.max(axis=1).reindex(table.index)
    least_s = least_s.where(least_s > 0)  # a stage that had nothing to do has no limit
    return table.assign(
        least_s=least_s,
        bound=both.idxmax(axis=1).reindex(table.index).astype(object),
        mfu=compute_s / table["seconds"],
        bandwidth_share=memory_s / table["seconds"],
        times_slower=table["seconds"] / least_s,
        reached=least_s / table["seconds"],
    )
