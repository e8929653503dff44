"""Shapes of the published checkpoints, and models of these shapes with random weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoConfig,
    GenerationConfig,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from qvl_lab.assets import asset
from qvl_lab.errors import UnknownNameError
from qvl_lab.models.names import TINY

_TEXT = {"head_dim": 128, "num_key_value_heads": 8, "vocab_size": 151936}
_VISION_SMALL = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "deepstack_visual_indexes": [5, 11, 17],
}
_VISION_LARGE = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "deepstack_visual_indexes": [8, 16, 24],
}


def _shape(
    hidden: int, inter: int, layers: int, heads: int, vision: dict[str, Any], **more: Any
) -> dict[str, Any]:
    text = dict(
        _TEXT,
        hidden_size=hidden,
        intermediate_size=inter,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        **more,
    )
    return {"text": text, "vision": dict(vision, out_hidden_size=hidden)}


def _moe(inter: int) -> dict[str, Any]:
    return {
        "moe_intermediate_size": inter,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_key_value_heads": 4,
    }


#: Shapes of the published checkpoints, read from derivatives' config files; the parameter counts
#: agree with the published ones (tests/models/test_load.py).
SHAPES: dict[str, dict[str, Any]] = {
    "2b": _shape(2048, 6144, 28, 16, _VISION_SMALL, tie_word_embeddings=True),
    "4b": _shape(2560, 9728, 36, 32, _VISION_SMALL, tie_word_embeddings=True),
    "8b": _shape(4096, 12288, 36, 32, _VISION_LARGE),
    "32b": _shape(5120, 25600, 64, 64, _VISION_LARGE),
    "30b-a3b": _shape(2048, 6144, 48, 32, _VISION_LARGE, **_moe(768)),
    "235b-a22b": _shape(4096, 12288, 94, 64, _VISION_LARGE, **_moe(1536)),
}


def random_config(name: str) -> Any:
    """The config of a model such as ``"random:8b"``.

    Raises
    ------
    UnknownNameError
        If the shape is neither "tiny" nor one of ``SHAPES``.
    """
    size = name.removeprefix("random:").lower()
    tiny = AutoConfig.from_pretrained(asset(TINY))
    if size == TINY:
        return tiny
    if size not in SHAPES:
        raise UnknownNameError("model", name, [f"random:{s}" for s in (TINY, *SHAPES)])
    shape = SHAPES[size]
    moe = "num_experts" in shape["text"]
    text = dict(
        shape["text"],
        max_position_embeddings=262144,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
        },
        pad_token_id=tiny.text_config.pad_token_id,
        eos_token_id=tiny.text_config.eos_token_id,
    )
    cls = Qwen3VLMoeConfig if moe else Qwen3VLConfig
    return cls(
        text_config=text,
        vision_config=dict(shape["vision"], num_heads=16, num_position_embeddings=2304),
        image_token_id=tiny.image_token_id,
        video_token_id=tiny.video_token_id,
        vision_start_token_id=tiny.vision_start_token_id,
        vision_end_token_id=tiny.vision_end_token_id,
        tie_word_embeddings=text.get("tie_word_embeddings", False),
    )


def build(config: Any, dtype: torch.dtype, device: str, attention: str | None, seed: int) -> Any:
    """Make a model of ``config`` with seeded random weights, on the device itself.

    The random states of torch, of the CPU and of the device, are what they were afterwards.
    """
    moe = "moe" in config.model_type
    cls = Qwen3VLMoeForConditionalGeneration if moe else Qwen3VLForConditionalGeneration
    options = {"attn_implementation": attention} if attention else {}
    on_cuda = torch.device(device).type == "cuda"
    with torch.random.fork_rng([device] if on_cuda else []), torch.device(device):
        torch.manual_seed(seed)
        return cls._from_config(config, dtype=dtype, **options)


def random_generation_config(config: Any) -> GenerationConfig:
    """The generation config of a model with random weights, which suppresses image tokens."""
    special = {
        config.image_token_id,
        config.video_token_id,
        config.vision_start_token_id,
        config.vision_end_token_id,
    }
    return GenerationConfig(
        eos_token_id=config.text_config.eos_token_id,
        pad_token_id=config.text_config.pad_token_id,
        suppress_tokens=sorted(special),  # random weights would emit them, and they decode to ""
    )
