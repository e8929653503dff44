"""Stage marks on every family of models: what they see, and that they leave nothing behind."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from qvl_lab.models.hooks import StepWatch, marks
from qvl_lab.probe.stages import Recorder, end, listening, stage, totals

IMAGE, START, END, EOS = 5, 6, 7, 1
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 64,
    "eos_token_id": EOS,
    "pad_token_id": 0,
}
IDS = {
    "image_token_id": IMAGE,
    "video_token_id": 8,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}
QWEN2 = dict(TEXT, rope_scaling={"type": "mrope", "mrope_section": [2, 3, 3]})
QWEN3 = dict(
    TEXT,
    head_dim=16,
    rope_scaling={"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True},
)
VISION3 = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 16,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}
MODELS = {
    "qwen3_vl": (QWEN3, VISION3),
    "qwen3_vl_moe": (
        dict(QWEN3, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
        VISION3,
    ),
    "qwen2_5_vl": (
        QWEN2,
        {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        },
    ),
    "qwen2_vl": (
        QWEN2,
        {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    torch.manual_seed(0)
    text, vision = MODELS[request.param]
    config = AutoConfig.for_model(request.param, text_config=text, vision_config=vision, **IDS)
    return AutoModelForImageTextToText.from_config(config).eval()


@pytest.fixture
def inputs(model):
    """Two images of 4 x 4 patches, four visual tokens each."""
    vision = model.config.vision_config
    width = vision.patch_size**2 * vision.temporal_patch_size * 3
    ids = torch.tensor([[START, *[IMAGE] * 4, END, 20, 21], [START, *[IMAGE] * 4, END, 22, 23]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE).int(),
        "pixel_values": torch.randn(32, width, generator=torch.Generator().manual_seed(1)),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * 2),
    }


def generated(model, inputs, **options):
    """Token ids and scores of four steps."""
    with torch.inference_mode():
        found = model.generate(
            **inputs,
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            **options,
        )
    return found.sequences, torch.stack(found.logits)


def test_every_part_is_marked_and_the_model_computes_the_same(model, inputs):
    plain = generated(model, inputs)
    before = [dict(vars(module)) for module in model.modules()]
    recorder, watch = Recorder(), StepWatch(inputs["input_ids"])
    amounts = {"vision": {"tokens": 8}, "prefill": {"tokens": 16}}
    with listening(recorder), marks(model, **amounts):
        marked = generated(model, inputs, logits_processor=[watch])
        end("sampling", gpu=True)
        end("decode", gpu=True)
    for mine, theirs in zip(marked, plain, strict=True):
        assert torch.equal(mine, theirs)
    sums = totals(recorder.spans())
    mergers = 2 if hasattr(model.model.visual, "deepstack_merger_list") else 1
    assert {path: total.calls for path, total in sums.items()} == {
        "vision/patch_embed": 1,
        "vision/merger": mergers,
        "vision": 1,
        "prefill/layers": 1,
        "prefill/lm_head": 1,
        "prefill": 1,
        "decode/sampling": 4,
        "decode/layers": 3,
        "decode/lm_head": 3,
        "decode": 1,
    }
    assert sums["vision"].amounts == {"tokens": 8}
    assert sums["prefill"].amounts == {"tokens": 16}
    assert (watch.steps, watch.finite.tolist()) == (4, [True, True])
    after = [dict(vars(module)) for module in model.modules()]
    assert [module.keys() for module in after] == [module.keys() for module in before]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_without_steps_only_the_outer_stages_and_the_tower_are_marked(model, inputs):
    recorder, watch = Recorder(), StepWatch(inputs["input_ids"], sampling=False)
    with listening(recorder), marks(model, steps=False):
        generated(model, inputs, logits_processor=[watch])
        end("decode", gpu=True)
    paths = {span.path for span in recorder.spans()}
    assert paths == {"vision/patch_embed", "vision/merger", "vision", "prefill", "decode"}


def test_hooks_come_off_and_stages_end_when_the_model_fails(model, inputs):
    recorder = Recorder()
    with listening(recorder):
        with pytest.raises(RuntimeError), marks(model):
            generated(model, inputs | {"pixel_values": torch.zeros(32, 7)})
        with stage("next"):
            pass
    assert [span.path for span in recorder.spans()] == ["vision", "next"]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_inf_and_nan_are_remembered_row_by_row():
    watch = StepWatch(torch.zeros(3, 1, dtype=torch.long))
    scores = torch.zeros(3, 8)
    watch(None, scores)
    scores[1, 2] = float("nan")
    watch(None, scores)
    scores[1, 2], scores[2, 0] = 0.0, float("inf")
    watch(None, scores)
    assert watch.finite.tolist() == [True, False, False]
