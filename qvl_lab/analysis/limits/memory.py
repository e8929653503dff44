"""What the peak of GPU memory must be, derived from what the code keeps alive.

The stock engine is transformers' ``generate``. Its memory has three candidates for a peak: inside a
block of the vision tower, inside the last layer of the prefill, and at the scores of the last
decoding step. Each is a sum of tensors that are alive together, read off ``modeling_qwen*_vl.py``,
``cache_utils.py`` and ``generation/utils.py`` of transformers 5.17 to 5.23 and ``attention.cpp`` of
torch, in the attention implementation "sdpa" with a dynamic cache. No factor is fitted there. What
the allocator reserves beyond it is not derived but a spread that was seen, so what it needs, and
the largest batch that fits, are intervals.

Left out: the scratch memory of convolution kernels, tensors of integers (some 100 bytes a token or
patch), and what the allocator rounds up (less than 1 MiB a tensor).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from qvl_lab.errors import ConfigError
from qvl_lab.models.architecture import Architecture, value_bytes
from qvl_lab.runs.records import Run, Work

#: cuBLAS's scratch memory on Hopper, which torch takes from its allocator; 8.1 MiB on older GPUs.
WORKSPACE_BYTES = 32 * 2**20
#: What a process holds besides torch's allocator (CUDA's context, kernels, libraries). 0.67 to
#: 0.88 GiB in ``reports/h200-8b``, growing while settings follow each other in a process: the
#: process's memory less what the allocator reserved.
CONTEXT_BYTES = int(0.8 * 2**30)
#: What the allocator holds and cannot use, as a share of what is allocated besides the weights:
#: the median of the 24 rows of the stock engine under ``reports`` where that is more than 1 GiB.
FRAGMENTATION = 0.36
#: The least and the most of these rows. Which it is depends on the order of the allocations.
FRAGMENTATION_SPREAD = (0.06, 0.52)
#: Where little is allocated besides the weights, up to so much more is reserved than the spread
#: says: the allocator reserves memory in blocks of 2 and 20 MiB.
BLOCKS_BYTES = int(0.2 * 2**30)
#: What a card gives of the bytes it is sold with, at worst: torch reports 22.0 to 22.2 GiB on an
#: A10G and an L4, of 24e9 bytes, which are 22.35 GiB.
CARD_SHARE = 0.984
PARTS = (
    "weights",
    "pixels",
    "vision_activations",
    "visual_features",
    "kv_cache",
    "prefill_activations",
    "decode_activations",
    "workspace",
)


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """One batch, and how it is run.

    Attributes
    ----------
    batch_size, visual_tokens, text_tokens, new_tokens : int
        Prompts; tokens of each one's image; other tokens of the longest prompt; tokens of answers.
    precision : str
        As :func:`qvl_lab.models.architecture.value_bytes` knows them.
    padded : bool
        Whether prompts differ in length, so that attention gets a mask.
    random_weights : bool
        Whether answers have a forced length and suppressed tokens, whose rules copy the scores.
    transformers : str
        Version. From 5.18 on visual features live until ``generate`` returns.
    workspace_bytes : int
        See ``WORKSPACE_BYTES``.
    """

    batch_size: int
    visual_tokens: int
    text_tokens: int
    new_tokens: int
    precision: str = "bf16"
    padded: bool = False
    random_weights: bool = False
    transformers: str = "5.23"
    workspace_bytes: int = WORKSPACE_BYTES

    def __post_init__(self) -> None:
        for name in ("batch_size", "visual_tokens", "new_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)!r}")

    @property
    def prompt_tokens(self) -> int:
        """Of one prompt, as long as the longest."""
        return self.visual_tokens + self.text_tokens

    @property
    def keeps_features(self) -> bool:
        """Whether transformers encodes images before ``forward`` and keeps what it encoded."""
        return self._version >= (5, 18)

    @property
    def repeats_kv(self) -> bool:
        """Whether a decoding step under a mask copies keys and values for each query head."""
        return self.padded and self._version < (5, 23)

    @property
    def _version(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.transformers.split(".")[:2])


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The bytes of tensors alive at a moment of a ``stage``, by part (see ``PARTS``)."""

    stage: str
    components: dict[str, int]

    @property
    def total_bytes(self) -> int:
        return sum(self.components.values())


def predict_peak(arch: Architecture, load: BatchShape) -> Peak:
    """The peak of allocated bytes of a batch, as ``memory["allocated"]`` of a Run counts it.

    For images of one size; of batches that differ, ask for the one with the most tokens. In the
    rows of the stock engine under ``reports`` 0.05 to 0.8% more was allocated, and up to 2.5% more
    in a process in which another engine had run before.

    Examples
    --------
    >>> load = Load(batch_size=8, visual_tokens=1024, text_tokens=17, new_tokens=128)
    >>> predict_peak(arch, load).total_bytes / 2**30  # doctest: +SKIP
    """
    return max(_candidates(arch, load), key=lambda peak: peak.total_bytes)


def candidate_peaks(arch: Architecture, load: BatchShape) -> pd.DataFrame:
    """All three candidates: one row per stage, the bytes of each part, ``total_bytes``."""
    peaks = _candidates(arch, load)
    table = pd.DataFrame([peak.components for peak in peaks], [p.stage for p in peaks], list(PARTS))
    table["total_bytes"] = table.sum(axis=1)
    return table.rename_axis("stage")


def batch_shape_of(run: Run) -> BatchShape:
    """The load of a run of the stock engine whose images have one size.

    Runs without ``work`` (older files) are taken to have prompts of one length.

    Raises
    ------
    ConfigError
        If nothing was measured, its work says that images differ in size, or it ran with another
        cache or attention than the one that is known here.
    """
    done = next((repeat for repeat in run.repeats if repeat.answered), None)
    if done is None:
        raise ConfigError(f"run {run.key} answered nothing, so its prompts' lengths are not known")
    known = {"engine": "stock", "cache_implementation": None, "attn_implementation": "sdpa"}
    for name, value in known.items():
        if run.config.get(name) not in (None, value):
            raise ConfigError(f"memory with {name}={run.config[name]!r} is not known, only default")
    work = Work(**done.work)
    if work.patches**2 != work.patches_squared * work.images:
        raise ConfigError(
            f"the images of run {run.key} differ in size; predict the peak of its largest batch "
            "with a Load of your own"
        )
    visual = round(done.visual_tokens / done.answered)
    length = work.padded_tokens / work.images if work.images else done.prompt_tokens / done.answered
    return BatchShape(
        batch_size=min((run.config | run.resolved)["batch_size"], done.answered),
        visual_tokens=visual,
        text_tokens=round(length) - visual,
        new_tokens=run.config["max_new_tokens"],
        precision=run.resolved.get("precision") or run.config["precision"],
        padded=work.padded_tokens != work.prompt_tokens,
        random_weights=bool(run.random_weights),
        transformers=run.environment.get("transformers") or BatchShape.transformers,
    )


def reserved_bytes(peak: Peak, fragmentation: float = FRAGMENTATION) -> int:
    """What torch's allocator needs for a peak: weights lie tight, the rest leaves gaps."""
    weights = peak.components["weights"]
    return round(weights + (peak.total_bytes - weights) * (1 + fragmentation))


def reserved_interval(
    peak: Peak, spread: tuple[float, float] = FRAGMENTATION_SPREAD
) -> tuple[int, int]:
    """The least and the most that the allocator reserves for a peak, by the spread that was seen.

    Parameters
    ----------
    spread : (float, float)
        Fragmentation at its least and at its most.
    """
    low, high = (reserved_bytes(peak, share) for share in spread)
    return low, high + BLOCKS_BYTES


def largest_batch(
    arch: Architecture,
    memory_bytes: float,
    load: BatchShape,
    *,
    context_bytes: int = CONTEXT_BYTES,
    fragmentation: float = FRAGMENTATION,
) -> int:
    """The largest batch that fits in a memory, 0 if none does; the load's own size is ignored.

    Room is left for CUDA's context and for what the allocator holds and cannot use; the defaults
    were measured on one H200. int8 needs the bf16 weights too while it loads, which is not counted.
    The fragmentation is in the middle of a wide spread: see :func:`largest_batch_interval`.

    Parameters
    ----------
    memory_bytes : float
        Of the card: ``Gpu.memory_gb * 1e9``. An H200 gives more, an A10G or an L4 0.7 to 1.6% less.
    context_bytes : int
        0 for a limit on torch's allocator alone, as ``memory_limit_gib`` sets it.
    """

    def fits(size: int) -> bool:
        peak = predict_peak(arch, replace(load, batch_size=size))
        return reserved_bytes(peak, fragmentation) + context_bytes <= memory_bytes

    above = 1
    while fits(above):
        above *= 2
    low, high = above // 2, above  # fits (or is 0), does not fit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def largest_batch_interval(
    arch: Architecture,
    memory_bytes: float,
    load: BatchShape,
    *,
    context_bytes: int = CONTEXT_BYTES,
    spread: tuple[float, float] = FRAGMENTATION_SPREAD,
) -> tuple[int, int]:
    """The largest batch at the worst and at the best of what was seen: the first should fit.

    Parameters
    ----------
    memory_bytes, context_bytes
        As :func:`largest_batch` has them. A card may give less than it is sold with.
    spread : (float, float)
        Fragmentation at its least and at its most.
    """
    given = memory_bytes * (CARD_SHARE if context_bytes else 1)
    worst, best = (
        largest_batch(arch, limit, load, context_bytes=held, fragmentation=share)
        for limit, held, share in (
            (given, context_bytes + BLOCKS_BYTES, spread[1]),
            (memory_bytes, context_bytes, spread[0]),
        )
    )
    return worst, best


def batches_by_card(
    arch: Architecture, load: BatchShape, cards_gb: Sequence[float] = (24, 40, 80)
) -> pd.DataFrame:
    """One row per card: ``memory_gb``, ``largest_batch``, and its ``peak_bytes`` (None if 0).

    ``largest_batch_low`` and ``largest_batch_high`` are those of :func:`largest_batch_interval`.
    """
    rows = []
    for memory_gb in cards_gb:
        size = largest_batch(arch, memory_gb * 1e9, load)
        low, high = largest_batch_interval(arch, memory_gb * 1e9, load)
        peak = predict_peak(arch, replace(load, batch_size=size)).total_bytes if size else None
        row = {"memory_gb": memory_gb, "largest_batch": size, "peak_bytes": peak}
        rows.append(row | {"largest_batch_low": low, "largest_batch_high": high})
    return pd.DataFrame(rows)


def _candidates(arch: Architecture, load: BatchShape) -> list[Peak]:
    weights = sum(arch.parameter_bytes(load.precision).values())
    held = {"weights": weights, "workspace": load.workspace_bytes}
    held["pixels"] = _patches(arch, load) * arch.patch_values * _width(load)
    found = {"vision": _vision(arch, load), "prefill": _prefill(arch, load)}
    found["decode"] = _decode(arch, load)
    empty = dict.fromkeys(PARTS, 0)
    return [Peak(stage=stage, components=empty | held | extra) for stage, extra in found.items()]


def _width(load: BatchShape) -> int:
    """Bytes of an activation."""
    return value_bytes(load.precision)[1]


def _patches(arch: Architecture, load: BatchShape) -> int:
    return load.batch_size * load.visual_tokens * arch.merged_patches


def _token_bytes(arch: Architecture, load: BatchShape) -> int:
    """Bytes of one vector of the text's width for each visual token."""
    return load.batch_size * load.visual_tokens * arch.hidden * _width(load)


def _vision(arch: Architecture, load: BatchShape) -> dict[str, int]:
    """Inside the last block; every DeepStack merger has run.

    Beside a block's own tensors live the rotary tables in fp32, the interpolated positions in fp32
    (Qwen3-VL) and, before 5.18, the embedded prompt.
    """
    width, hidden = _width(load), arch.vision_hidden
    tables = 2 * 4 * hidden // arch.vision_heads + (4 * hidden if arch.positions else 0)
    prompt = load.batch_size * load.prompt_tokens * arch.hidden * width
    return {
        "visual_features": arch.deepstack * _token_bytes(arch, load),
        "vision_activations": _patches(arch, load) * (tables + _block(arch, width))
        + (0 if load.keeps_features else prompt),
    }


def _block(arch: Architecture, width: int) -> int:
    """Bytes a patch of a vision block at its worst of three moments.

    - Rotation of the keys: input, its norm, QKV; in fp32 the queries rotated, and of the keys the
      cosine part, the turned halves and the sine part. Below fp32 also Q and K in fp32.
    - Projection of attention's output: input, its norm, QKV, rotated Q and K, each image's output,
      their concatenation, the projection.
    - MLP: input, attention's sum, its norm; and its inner width as input and output of GELU; with a
      gate, or QuickGELU, three times.
    """
    hidden, fp32_copies = arch.vision_hidden, 2 if width < 4 else 0
    rotation = 5 * hidden * width + (4 + fp32_copies) * hidden * 4
    projection = 10 * hidden * width
    inner = 2 if arch.qwen3 else 3
    mlp = (3 * hidden + inner * arch.vision_intermediate) * width
    return max(rotation, projection, mlp)


def _prefill(arch: Architecture, load: BatchShape) -> dict[str, int]:
    """Inside the last layer, its keys and values already in the cache.

    Of the vision tower stay: its last hidden states and its tokens (as long as something holds the
    whole output: Qwen2's classes before 5.18 do not), the tokens of all images concatenated, and
    those of the DeepStack mergers, concatenated once more from 5.18 on.
    """
    tokens, width = load.batch_size * load.prompt_tokens, _width(load)
    vectors = 1 + arch.deepstack * (2 if load.keeps_features else 1)
    features = vectors * _token_bytes(arch, load)
    if load.keeps_features or arch.qwen3:
        features += _tower_output(arch, load)
    prompt = tokens * (arch.hidden + 2 * arch.head_dim) * width  # embedded; cosines and sines
    mask = load.batch_size * load.prompt_tokens**2 if load.padded else 0
    layer = max(tokens * _mlp(arch, width), _attention(arch, load))
    if load.precision == "int8":  # a matrix in bf16 while it multiplies, before the second copy
        inner = 3 * arch.hidden + 2 * arch.intermediate
        layer = max(layer, tokens * inner * width + _int8_copy(arch, load))
    return {
        "visual_features": features,
        "kv_cache": tokens * arch.kv_bytes_per_token(width),
        "prefill_activations": prompt + mask + layer,
    }


def _tower_output(arch: Architecture, load: BatchShape) -> int:
    """The vision tower's last hidden states, and the visual tokens made of them."""
    hidden = _patches(arch, load) * arch.vision_hidden * _width(load)
    return hidden + _token_bytes(arch, load)


def _mlp(arch: Architecture, width: int) -> int:
    """Bytes a token: input, attention's sum, its norm, and the MLP's own.

    A dense MLP holds gate, up and product. Experts (implementation "grouped_mm") hold a row for
    each token and expert: its input, output, weighted output and that in the first order; or input,
    gate and up, activated gate and product; and the router's scores.
    """
    inner = 3 * arch.intermediate * width if arch.expert_layers < arch.layers else 0
    if arch.experts and arch.experts_per_token and arch.moe_intermediate:
        row = max(4 * arch.hidden, arch.hidden + 4 * arch.moe_intermediate)
        inner = max(inner, (arch.experts_per_token * row + arch.experts) * width)
    return 3 * arch.hidden * width + inner


def _attention(arch: Architecture, load: BatchShape) -> int:
    """Bytes of a layer's attention in the prefill at its worst moment.

    Fused kernels need little: input, its norm, and the rotation of queries and keys. A mask makes
    transformers repeat keys and values for each query head, and torch turn it into numbers and pad
    these. fp32 with grouped heads and no mask has no fused kernel in torch up to 2.11: scaled
    queries, repeated keys and values, and for each score itself, its softmax (both fp32) and a byte
    that says whether it is minus infinity.
    """
    width, length = _width(load), load.prompt_tokens
    tokens, pairs = load.batch_size * length, load.batch_size * length**2
    hidden, query, kv = arch.hidden, arch.query_size, arch.kv_size
    if load.padded:
        return tokens * (2 * hidden + 3 * query) * width + 2 * width * pairs
    if _scores_are_kept(arch, load):
        scores = 9 * arch.heads * pairs + 4 * length**2
        return tokens * (2 * hidden + 4 * query) * width + scores
    return tokens * (2 * hidden + 4 * query + 2 * kv) * width


def _scores_are_kept(arch: Architecture, load: BatchShape) -> bool:
    return load.precision == "fp32" and arch.heads > arch.kv_heads and not load.padded


def _decode(arch: Architecture, load: BatchShape) -> dict[str, int]:
    """The last step: at its scores, or inside its last layer.

    Scores are there as the model gives them and three times in fp32: of the last step, copied by
    the rule for the least length, and of the step before. Rules that suppress tokens and force a
    length add two. Inside a layer two of the step before are still there, beside the copy by which
    its cache grows, then what attention repeats, then an int8 matrix turned into bf16.
    """
    width, rows = _width(load), load.batch_size
    context = rows * (load.prompt_tokens + load.new_tokens - 1)
    fp32_scores = 4 * rows * arch.vocab
    scores = rows * arch.vocab * width + fp32_scores * (5 if load.random_weights else 3)
    repeated = 3 if _scores_are_kept(arch, load) else 2 if load.repeats_kv else 0
    copies = context * max(arch.kv_size, repeated * arch.query_size) * width
    layer = max(copies, _int8_copy(arch, load)) + 2 * fp32_scores
    features = arch.deepstack * _token_bytes(arch, load) + _tower_output(arch, load)
    return {
        "visual_features": features if load.keeps_features else 0,
        "kv_cache": context * arch.kv_bytes_per_token(width),
        "decode_activations": max(scores, layer),
    }


def _int8_copy(arch: Architecture, load: BatchShape) -> int:
    """torchao turns a whole int8 matrix into activations' type each time it multiplies."""
    return arch.hidden * arch.intermediate * _width(load) if load.precision == "int8" else 0
