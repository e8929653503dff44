"""The sizes of a Qwen vision-language model, and what follows from them alone.

They are read from the dict of a Hugging Face config; four families of models are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from qvl_lab.errors import ConfigError, UnknownNameError

MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
#: Those that write boxes in pixels of the resized image; others write thousandths of its sides.
PIXEL_BOXES = ("qwen2_5_vl",)
#: Bytes of a value in the text layers' linear weights, and of any other value.
VALUE_BYTES = {"fp32": (4, 4), "bf16": (2, 2), "fp16": (2, 2), "int8": (1, 2), "fp8": (1, 2)}


def value_bytes(precision: str, device: str = "cuda") -> tuple[int, int]:
    """Bytes of a value in the text layers' linear weights, and of any other weight or activation.

    int8 and fp8 quantise the text layers' linear weights and nothing else; all else is bf16 on a
    GPU and fp32 on a CPU (see :func:`qvl_lab.models.load.base_dtype`).

    Raises
    ------
    UnknownNameError
        If the precision is not in ``VALUE_BYTES``.
    """
    if precision not in VALUE_BYTES:
        raise UnknownNameError("precision", precision, VALUE_BYTES)
    matrix, other = VALUE_BYTES[precision]
    return matrix, (4 if precision in ("int8", "fp8") and device.startswith("cpu") else other)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes of a model; compare the table in transformers' ``configuration_*.py`` of its type.

    Attributes
    ----------
    model_type : str
        One of ``MODEL_TYPES``.
    hidden, intermediate, layers, heads, kv_heads, head_dim, vocab : int
        Sizes of the language model.
    tied : bool
        Whether the LM head is the embedding.
    attention_bias : bool
        Whether the projections of Qwen3's attention have biases (those of Qwen2's always do).
    experts, experts_per_token, moe_intermediate : int or None
        Sizes of a mixture of experts; None in a dense model.
    dense_layers : int
        Layers of a mixture of experts that have one MLP of ``intermediate`` instead.
    vision_depth, vision_hidden, vision_intermediate, vision_heads : int
        Sizes of the vision tower.
    patch, temporal_patch, channels, merge : int
        Pixels of a patch's side, frames, colours; patches of a visual token's side.
    positions : int
        Rows of the learned table of patch positions; 0 without one.
    deepstack : int
        Mergers besides the last one, whose tokens are added to the first text layers.
    vision_gated : bool
        Whether the vision tower's MLP has three linear layers (Qwen2.5-VL) or two.
    window : int or None
        Patches in a window of the vision tower's attention, where it has windows.
    full_attention_blocks : int
        Blocks of the vision tower in which all patches of an image see each other.
    """

    model_type: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    attention_bias: bool = False
    experts: int | None = None
    experts_per_token: int | None = None
    moe_intermediate: int | None = None
    dense_layers: int = 0
    vision_depth: int
    vision_hidden: int
    vision_intermediate: int
    vision_heads: int
    patch: int
    temporal_patch: int
    channels: int
    merge: int
    positions: int = 0
    deepstack: int = 0
    vision_gated: bool = False
    window: int | None = None
    full_attention_blocks: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read the sizes from ``model.config.to_dict()``.

        Raises
        ------
        UnknownNameError
            If the model's type is not in ``MODEL_TYPES``.
        ConfigError
            If a size is missing.
        """
        kind = config.get("model_type")
        if kind not in MODEL_TYPES:
            raise UnknownNameError("model type", kind, MODEL_TYPES)
        text = config.get("text_config") or config  # older files of Qwen2-VL hold it unnested
        try:
            values = _text(text) | _vision(kind, config["vision_config"])
        except KeyError as e:
            raise ConfigError(
                f"the config of this {kind} model has no {e}; give the dict of its "
                "config.to_dict(), which fills in what its file leaves out"
            ) from e
        return cls(model_type=kind, tied=bool(config.get("tie_word_embeddings")), **values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read the dict that :meth:`to_dict` returned.

        Raises
        ------
        ConfigError
            If a field is missing or unknown: another version wrote it.
        """
        unknown = set(values) - {field.name for field in fields(cls)}
        try:
            if not unknown:
                return cls(**values)
        except TypeError as e:
            raise ConfigError(f"no record of a model's sizes ({e}); measure again") from e
        raise ConfigError(f"no record of a model's sizes: unknown {sorted(unknown)}; measure again")

    def to_dict(self) -> dict[str, Any]:
        """The fields, for :attr:`qvl_lab.runs.records.Run.architecture`."""
        return asdict(self)

    @property
    def query_size(self) -> int:
        """Values of a token's queries."""
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Values of a token's keys in one layer, and as many of its values."""
        return self.kv_heads * self.head_dim

    @property
    def patch_values(self) -> int:
        """Values of a patch of the processor's ``pixel_values``."""
        return self.channels * self.temporal_patch * self.patch**2

    @property
    def merged_patches(self) -> int:
        """Patches of a visual token."""
        return self.merge**2

    @property
    def qwen3(self) -> bool:
        """Whether the model is a Qwen3-VL, which changed norms, biases and positions."""
        return self.model_type.startswith("qwen3")

    @property
    def expert_layers(self) -> int:
        """Text layers with experts."""
        return self.layers - self.dense_layers if self.experts else 0

    @property
    def expert_parameters(self) -> int:
        """Parameters of one expert of one layer: its gate, up and down projections."""
        return 3 * self.hidden * (self.moe_intermediate or 0)

    @property
    def matrix_parameters(self) -> int:
        """Parameters of the text layers' linear weights, which is all but norms and biases."""
        attention = 2 * self.hidden * (self.query_size + self.kv_size)
        experts = (self.experts or 0) * (self.expert_parameters + self.hidden)
        dense = (self.layers - self.expert_layers) * 3 * self.hidden * self.intermediate
        return self.layers * attention + self.expert_layers * experts + dense

    @property
    def merger_parameters(self) -> int:
        """Parameters of the linear weights of one merger."""
        merged = self.merged_patches * self.vision_hidden
        return merged * (merged + self.hidden)

    def parameters(self) -> dict[str, int]:
        """How many parameters each part has.

        Returns
        -------
        dict
            "vision" (without mergers), "mergers", "text_layers" (with the last norm), "embedding",
            "lm_head" (0 if it is the embedding).
        """
        return {
            "vision": self._vision_parameters(),
            "mergers": self._mergers_parameters(),
            "text_layers": self.matrix_parameters + self._text_vectors(),
            "embedding": self.vocab * self.hidden,
            "lm_head": 0 if self.tied else self.vocab * self.hidden,
        }

    def parameter_bytes(self, precision: str, device: str = "cuda") -> dict[str, int]:
        """Bytes of each part of :meth:`parameters`; int8's scales, one a row, are left out."""
        matrix, other = value_bytes(precision, device)
        found = {part: count * other for part, count in self.parameters().items()}
        found["text_layers"] += self.matrix_parameters * (matrix - other)
        return found

    def kv_bytes_per_token(self, dtype_bytes: int = 2) -> int:
        """Bytes of the keys and values of a token in all layers."""
        return 2 * self.layers * self.kv_size * dtype_bytes

    def _text_vectors(self) -> int:
        norms = 2 * self.hidden + (2 * self.head_dim if self.qwen3 else 0)
        qkv = self.query_size + 2 * self.kv_size
        bias = qkv + self.hidden if self.attention_bias else (0 if self.qwen3 else qkv)
        return self.layers * (norms + bias) + self.hidden

    def _vision_parameters(self) -> int:
        hidden, wide = self.vision_hidden, self.vision_intermediate
        attention = 4 * hidden * (hidden + 1)
        mlp = hidden * wide * (3 if self.vision_gated else 2) + hidden
        mlp += wide * (2 if self.vision_gated else 1)
        norms = 2 * hidden * (1 if self.vision_gated else 2)  # RMS norms have no bias
        embedding = hidden * (self.patch_values + self.positions + self.qwen3)
        return self.vision_depth * (attention + mlp + norms) + embedding

    def _mergers_parameters(self) -> int:
        merged = self.merged_patches * self.vision_hidden
        each = self.merger_parameters + merged + self.hidden
        norm = self.vision_hidden * (1 if self.vision_gated else 2)
        return (1 + self.deepstack) * each + norm + self.deepstack * 2 * merged


def _text(text: Mapping[str, Any]) -> dict[str, Any]:
    heads, layers = text["num_attention_heads"], text["num_hidden_layers"]
    values = {
        "hidden": text["hidden_size"],
        "intermediate": text["intermediate_size"],
        "layers": layers,
        "heads": heads,
        "kv_heads": text["num_key_value_heads"],
        "head_dim": text.get("head_dim") or text["hidden_size"] // heads,
        "vocab": text["vocab_size"],
        "attention_bias": bool(text.get("attention_bias")),
    }
    if not text.get("moe_intermediate_size"):
        return values
    experts = text["num_local_experts"] if "num_local_experts" in text else text["num_experts"]
    step, dense = text.get("decoder_sparse_step", 1), text.get("mlp_only_layers") or ()
    sparse = sum((i + 1) % step == 0 and i not in dense for i in range(layers))
    return values | {
        "experts": experts,
        "experts_per_token": text["num_experts_per_tok"],
        "moe_intermediate": text["moe_intermediate_size"],
        "dense_layers": layers - sparse,
    }


def _vision(kind: str, vision: Mapping[str, Any]) -> dict[str, Any]:
    old = kind == "qwen2_vl"  # names the tower's width embed_dim, and the text's hidden_size
    hidden = vision["embed_dim"] if old else vision["hidden_size"]
    side, window, full = vision["patch_size"], None, vision["depth"]
    if kind == "qwen2_5_vl":
        units = vision["window_size"] // vision["spatial_merge_size"] // side
        window = (units * vision["spatial_merge_size"]) ** 2
        full = len(vision["fullatt_block_indexes"])
    return {
        "vision_depth": vision["depth"],
        "vision_hidden": hidden,
        "vision_intermediate": (
            int(hidden * vision["mlp_ratio"]) if old else vision["intermediate_size"]
        ),
        "vision_heads": vision["num_heads"],
        "patch": side,
        "temporal_patch": vision["temporal_patch_size"],
        "channels": vision.get("in_channels", 3),
        "merge": vision["spatial_merge_size"],
        "positions": vision.get("num_position_embeddings", 0),
        "deepstack": len(vision.get("deepstack_visual_indexes", ())),
        "vision_gated": kind == "qwen2_5_vl",
        "window": window,
        "full_attention_blocks": full,
    }
