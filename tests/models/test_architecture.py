"""Sizes read from configs, against parameters counted in real models on the meta device."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from qvl_lab.errors import ConfigError, UnknownNameError
from qvl_lab.models.architecture import MODEL_TYPES, Architecture, value_bytes
from qvl_lab.models.shapes import SHAPES, random_config

#: facts.md, section 2: billions of parameters in all, millions in the vision tower with mergers.
PUBLISHED = {
    "2b": (2.128, 407),
    "4b": (4.438, 415),
    "8b": (8.767, 576),
    "32b": (33.4, 595),
    "30b-a3b": (31.1, 539),
    "235b-a22b": (235.7, 576),
}
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
VISION = {"depth": 4, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
QWEN3 = {"deepstack_visual_indexes": [0, 2], "num_position_embeddings": 16, "out_hidden_size": 64}
SMALL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen3_vl": (TEXT | {"head_dim": 24}, VISION | QWEN3),
    "qwen3_vl_moe": (TEXT | EXPERTS | {"head_dim": 24}, VISION | QWEN3),
    "qwen2_5_vl": (TEXT, VISION | {"out_hidden_size": 64, "fullatt_block_indexes": [1, 3]}),
    "qwen2_vl": (
        TEXT,
        {"depth": 4, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 4, "num_heads": 2},
    ),
}


def small(kind: str, tied: bool = False, **text: Any) -> Any:
    sizes, vision = SMALL[kind]
    return AutoConfig.for_model(
        kind, text_config=sizes | text, vision_config=vision, tie_word_embeddings=tied
    )


def counted(config: Any) -> dict[str, int]:
    """Parameters of each part of a real model."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    tower, parts = model.model.visual, {}
    mergers = [tower.merger, *getattr(tower, "deepstack_merger_list", [])]
    parts["mergers"] = sum(p.numel() for merger in mergers for p in merger.parameters())
    parts["vision"] = sum(p.numel() for p in tower.parameters()) - parts["mergers"]
    parts["embedding"] = model.model.language_model.embed_tokens.weight.numel()
    text = sum(p.numel() for p in model.model.language_model.parameters())
    parts["text_layers"] = text - parts["embedding"]
    everything = sum(p.numel() for p in model.parameters())  # a tied head is counted once
    return parts | {"lm_head": everything - sum(parts.values())}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_every_part_of_a_small_model(kind, tied):
    config = small(kind, tied)
    assert Architecture.from_config(config.to_dict()).parameters() == counted(config)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("qwen3_vl", {"attention_bias": True}),
        ("qwen3_vl_moe", {"mlp_only_layers": [1]}),
        ("qwen3_vl_moe", {"decoder_sparse_step": 2}),
    ],
)
def test_rarer_settings_of_the_text_layers(kind, text):
    config = small(kind, **text)
    assert Architecture.from_config(config.to_dict()).parameters() == counted(config)


@pytest.mark.parametrize("size", SHAPES)
def test_published_shapes(size):
    config = random_config(f"random:{size}")
    parts = Architecture.from_config(config.to_dict()).parameters()
    billions, millions = PUBLISHED[size]
    assert sum(parts.values()) / 1e9 == pytest.approx(billions, rel=0.002)
    assert (parts["vision"] + parts["mergers"]) / 1e6 == pytest.approx(millions, abs=0.6)
    assert parts == counted(config)


def test_the_embedded_model(lab):
    model = lab.loaded.model
    parts = Architecture.from_config(model.config.to_dict()).parameters()
    assert sum(parts.values()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("size", "expected"), [("2b", 114_688), ("4b", 147_456), ("8b", 147_456)])
def test_cache_of_a_token_as_in_the_facts(size, expected):
    arch = Architecture.from_config(random_config(f"random:{size}").to_dict())
    assert arch.kv_bytes_per_token() == expected
    assert arch.kv_bytes_per_token(4) == 2 * expected


def test_int8_halves_the_matrices_of_the_text_layers_only():
    arch = Architecture.from_config(random_config("random:8b").to_dict())
    half, whole = arch.parameter_bytes("int8"), arch.parameter_bytes("bf16")
    saved = {part: whole[part] - half[part] for part in whole}
    norms = arch.parameters()["text_layers"] - arch.matrix_parameters
    assert norms == 36 * (2 * 4096 + 2 * 128) + 4096
    assert saved == dict.fromkeys(whole, 0) | {"text_layers": arch.matrix_parameters}


def test_bytes_of_a_value():
    assert value_bytes("fp32") == (4, 4)
    assert value_bytes("int8", "cuda:0") == (1, 2)
    assert value_bytes("int8", "cpu") == (1, 4)
    with pytest.raises(UnknownNameError, match="unknown precision 'int4'"):
        value_bytes("int4")


def test_windows_of_qwen2_5():
    """112 pixels are 8 patches of 14; two of the four blocks see whole images."""
    arch = Architecture.from_config(small("qwen2_5_vl").to_dict())
    assert (arch.window, arch.full_attention_blocks) == (64, 2)
    without = Architecture.from_config(small("qwen2_vl").to_dict())
    assert (without.window, without.full_attention_blocks) == (None, 4)


def test_text_fields_need_not_be_nested():
    nested = small("qwen2_vl").to_dict()
    flat = nested.pop("text_config") | nested
    assert Architecture.from_config(flat) == Architecture.from_config(small("qwen2_vl").to_dict())


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_goes_through_json_and_stays_small(kind):
    arch = Architecture.from_config(small(kind).to_dict())
    text = json.dumps(arch.to_dict())
    assert Architecture.from_dict(json.loads(text)) == arch
    assert len(text) < 800


def test_other_models_are_refused_by_name():
    with pytest.raises(UnknownNameError, match=r"'llava'.*qwen2_5_vl, qwen2_vl, qwen3_vl"):
        Architecture.from_config({"model_type": "llava"})


def test_a_missing_size_is_named():
    config = small("qwen3_vl").to_dict()
    del config["vision_config"]["depth"]
    with pytest.raises(ConfigError, match="qwen3_vl model has no 'depth'"):
        Architecture.from_config(config)


@pytest.mark.parametrize(
    ("change", "named"), [({"colour": 1}, r"unknown \['colour'\]"), ({"hidden": None}, "hidden")]
)
def test_records_of_another_version_are_refused(change, named):
    values = Architecture.from_config(small("qwen3_vl").to_dict()).to_dict() | change
    values = {
        name: value for name, value in values.items() if value is not None or name != "hidden"
    }
    with pytest.raises(ConfigError, match=f"{named}.*measure again"):
        Architecture.from_dict(values)
