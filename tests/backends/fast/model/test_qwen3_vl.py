"""The packed forward pass beside transformers' own, dense and with a mixture of experts."""

from __future__ import annotations

import random
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import Qwen3VLMoeConfig

from qvl_lab.backends.base import Request
from qvl_lab.backends.fast.model.attention import Lengths
from qvl_lab.backends.fast.model.qwen3_vl import KVCache, PackedPrompts, Qwen3VLModel
from qvl_lab.errors import ConfigError
from qvl_lab.models.linear import FEW_ROWS
from qvl_lab.models.shapes import build
from qvl_lab.workloads.items import Item

CLOSE = {"atol": 2e-4, "rtol": 1e-4}
SIZES = [(96, 64), (64, 160), (64, 160), (32, 32)]
QUESTIONS = ["What?", "描述这张图片", "Count the shapes, one by one.", "?"]
BLOCK, BLOCKS = 4, 60


def with_experts(config: Any) -> Qwen3VLMoeConfig:
    """Of the same sizes, but every other decoder layer is a mixture of four experts."""
    values = config.to_dict()
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    experts = {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2}
    return Qwen3VLMoeConfig(
        text_config=values["text_config"]
        | experts
        | {"model_type": "qwen3_vl_moe_text", "decoder_sparse_step": 2},
        vision_config=values["vision_config"] | {"model_type": "qwen3_vl_moe_vision"},
        tie_word_embeddings=False,
        **{name: values[name] for name in ids},
    )


@pytest.fixture(scope="module", params=["dense", "experts"])
def model(request, lab) -> Any:
    config = lab.loaded.model.config
    config = config if request.param == "dense" else with_experts(config)
    model = build(config, torch.float32, "cpu", None, seed=1).eval()
    for parameter in model.parameters():  # logits that differ, and norms and biases that count
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def network(model) -> Qwen3VLModel:
    return Qwen3VLModel(model, to_device=None)


@dataclass
class Text:
    """A prompt with an image, and what transformers makes of it."""

    inputs: dict[str, Tensor]  # of the prompt with some tokens more
    prompt: int
    positions: Tensor
    logits: Tensor
    blocks: list[int]

    @property
    def ids(self) -> Tensor:
        return self.inputs["input_ids"][0]

    @property
    def image(self) -> Tensor:
        """Places of the image's tokens."""
        return self.inputs["mm_token_type_ids"][0].nonzero()[:, 0]

    @property
    def grid(self) -> tuple[int, int]:
        return tuple(self.inputs["image_grid_thw"][0, 1:].tolist())

    @property
    def patches(self) -> Tensor:
        """One frame of two that are the same."""
        return self.inputs["pixel_values"].view(-1, 3, 2, 256)[:, :, 0].flatten(1)

    def slot_mapping(self, start: int, stop: int) -> Tensor:
        place = torch.arange(start, stop)
        return torch.tensor(self.blocks)[place // BLOCK] * BLOCK + place % BLOCK


@pytest.fixture(scope="module")
def texts(lab, model) -> list[Text]:
    """Four prompts, each followed by six tokens, in shuffled blocks."""
    torch.manual_seed(0)
    blocks = random.Random(0).sample(range(BLOCKS), BLOCKS)
    made = []
    for size, question in zip(SIZES, QUESTIONS, strict=True):
        picture = Image.effect_noise(size, 80).convert("RGB")
        tokens = size[0] * size[1] // 1024
        text = lab.processor.prompt(question)
        request = Request(0, Item("it", picture), picture, size, tokens, text)
        inputs = lab.stock.inputs([picture], [request])
        prompt = inputs["input_ids"].shape[1]
        more = torch.randint(20, 2000, (1, 6))
        inputs["input_ids"] = torch.cat([inputs["input_ids"], more], 1)
        kinds = inputs["mm_token_type_ids"]
        inputs["mm_token_type_ids"] = torch.cat(
            [kinds, torch.zeros_like(more, dtype=kinds.dtype)], 1
        )
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        positions, _ = model.model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=inputs["image_grid_thw"],
        )
        with torch.inference_mode():
            logits = model(**inputs).logits[0]
        own = [blocks.pop() for _ in range(-(-logits.shape[0] // BLOCK))]
        made.append(Text(inputs, prompt, positions[:, 0], logits, own))
    return made


def seen(network: Qwen3VLModel, texts: list[Text]) -> list[Tensor]:
    """Features of each text's image."""
    features = network.encode_images(torch.cat([t.patches for t in texts]), [t.grid for t in texts])
    return list(features.split([len(t.image) for t in texts], 1))


def prompts_of(parts: list[tuple[Text, Tensor, int, int]]) -> PackedPrompts:
    """Parts of texts, each with its image's features, from one token to another."""
    begun = any(start for _, _, start, _ in parts)
    images, features, last, first = [], [], [], 0
    for text, own, start, stop in parts:
        inside = (text.image >= start) & (text.image < stop)
        images.append(text.image[inside] - start + first)
        features.append(own[:, inside])
        first += stop - start
        last.append(first - 1)
    return PackedPrompts(
        ids=torch.cat([t.ids[start:stop] for t, _, start, stop in parts]),
        positions=torch.cat([t.positions[:, start:stop] for t, _, start, stop in parts], 1),
        slot_mapping=torch.cat([t.slot_mapping(start, stop) for t, _, start, stop in parts]),
        image_index=torch.cat(images),
        features=torch.cat(features, 1),
        lengths=Lengths.of(
            [stop - start for *_, start, stop in parts], [stop for *_, stop in parts], causal=True
        ),
        context_slots=torch.cat([t.slot_mapping(0, stop) for t, *_, stop in parts])
        if begun
        else None,
        last=torch.tensor(last),
    )


@pytest.fixture
def cache(network) -> KVCache:
    cache = network.allocate_cache(BLOCKS, BLOCK)
    for half in (cache.keys, cache.values):
        half.fill_(1e3)  # what was there before must not matter
    return cache


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.inference_mode():
        yield


# ---- the tower


def test_features_of_mixed_sizes_are_those_of_the_tower(model, network, texts):
    found = seen(network, texts)
    assert network.feature_levels == 3
    for text, features in zip(texts, found, strict=True):
        expected = model.model.visual(
            text.inputs["pixel_values"], grid_thw=text.inputs["image_grid_thw"]
        )
        torch.testing.assert_close(features[0], expected.pooler_output, **CLOSE)
        for layer, deep in zip(features[1:], expected.deepstack_features, strict=True):
            torch.testing.assert_close(layer, deep, **CLOSE)
        assert features[0].std() > 0.01  # zeros would be close to zeros


def test_an_image_is_seen_the_same_whatever_is_beside_it(network, texts):
    together = seen(network, texts)
    for text, features in zip(texts, together, strict=True):
        torch.testing.assert_close(seen(network, [text])[0], features, **CLOSE)


# ---- prompts


def test_scores_of_whole_prompts_are_those_of_the_model(network, texts, cache):
    features = seen(network, texts)
    parts = [(t, own, 0, t.prompt) for t, own in zip(texts, features, strict=True)]
    found = network.prefill(prompts_of(parts), cache)
    expected = torch.stack([t.logits[t.prompt - 1] for t in texts])
    torch.testing.assert_close(found, expected, **CLOSE)
    assert len(found.argmax(-1).unique()) > 1


@pytest.mark.parametrize("chunk", [1, 5, 13])
def test_scores_do_not_depend_on_how_a_prompt_is_cut(network, texts, cache, chunk):
    """One prompt starts later than the other, so that parts of both kinds go together."""
    late, early = ((t, own) for t, own in zip(texts[:2], seen(network, texts[:2]), strict=True))
    for first in range(0, texts[1].prompt + 2 * chunk, chunk):
        parts = []
        for (text, own), start in ((early, first), (late, first - 2 * chunk)):
            if 0 <= start < text.prompt:
                parts.append((text, own, start, min(start + chunk, text.prompt)))
        if not parts:
            continue
        found = network.prefill(prompts_of(parts), cache)
        expected = torch.stack([text.logits[stop - 1] for text, _, _, stop in parts])
        torch.testing.assert_close(found, expected, **CLOSE)


def test_no_score_is_computed_that_nobody_asks_for(network, texts, cache):
    (own,) = seen(network, texts[:1])
    prompts = prompts_of([(texts[0], own, 0, 8)])
    nothing = PackedPrompts(**{**vars(prompts), "last": torch.tensor([], dtype=torch.int64)})
    assert network.prefill(nothing, cache).shape == (0, network.lm_head.out_features)


def test_steps_after_a_prompt_are_as_if_all_had_been_read(network, texts, cache):
    features = seen(network, texts)
    network.prefill(
        prompts_of([(t, own, 0, t.prompt) for t, own in zip(texts, features, strict=True)]), cache
    )
    most = max(len(t.blocks) for t in texts)
    block_table = torch.tensor([t.blocks + [BLOCKS - 1] * (most - len(t.blocks)) for t in texts])
    for more in range(6):
        at = [t.prompt + more for t in texts]
        found = network.decode(
            torch.stack([t.ids[place] for t, place in zip(texts, at, strict=True)]),
            torch.stack([t.positions[0, place] for t, place in zip(texts, at, strict=True)]),
            torch.tensor(at),
            block_table,
            cache,
        )
        expected = torch.stack([t.logits[place] for t, place in zip(texts, at, strict=True)])
        torch.testing.assert_close(found, expected, **CLOSE)


# ---- the model stays what it was


def test_the_models_own_forward_and_weights_are_unchanged(model, texts):
    fresh = build(model.config, torch.float32, "cpu", None, seed=2).eval()
    weights = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    named = dict(fresh.named_parameters())
    before = fresh(**texts[0].inputs).logits
    for _ in range(2):  # a second engine joins what is joined
        Qwen3VLModel(fresh, to_device=None)
    assert torch.equal(fresh(**texts[0].inputs).logits, before)
    after = fresh.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weights[name]) for name in weights)
    assert all(found is named[name] for name, found in fresh.named_parameters())


def test_a_model_can_be_saved_with_its_joined_weights(lab, tmp_path):
    model = build(lab.loaded.model.config, torch.float32, "cpu", None, seed=2).eval()
    Qwen3VLModel(model, to_device=None)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    expected = model.state_dict()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_other_families_are_refused():
    other = SimpleNamespace(config=SimpleNamespace(model_type="qwen2_vl"))
    with pytest.raises(ConfigError, match="not qwen2_vl; use engine='stock'"):
        Qwen3VLModel(other, to_device=None)


def test_a_warm_up_reads_few_tokens_and_many_and_writes_in_one_place(network, monkeypatch):
    counts = []
    prefill = Qwen3VLModel.prefill
    monkeypatch.setattr(
        Qwen3VLModel, "prefill", lambda self, p, c: counts.append(len(p.ids)) or prefill(self, p, c)
    )
    cache = network.allocate_cache(3, BLOCK)
    with torch.inference_mode():
        network.warm_up(cache, 2 * BLOCK)
    assert counts[0] < FEW_ROWS < counts[-1]
    written = cache.keys.flatten(1, 2).abs().sum((2, 3)).nonzero()[:, 1].unique()
    assert written.tolist() == [2 * BLOCK]
