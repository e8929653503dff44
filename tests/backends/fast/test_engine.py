"""The fast engine: the stock engine's answers, whatever happens on the way."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import GenerationConfig, Qwen3VLMoeConfig

from qvl_lab.backends.fast.decode_pool import DecodePool
from qvl_lab.backends.fast.engine import Caches, Engine
from qvl_lab.backends.fast.model_runner import ModelRunner
from qvl_lab.backends.generation import Generation
from qvl_lab.caching.lru import Lru
from qvl_lab.config import (
    CacheSettings,
    Config,
    Fast,
    ImagePolicy,
    ModelSpec,
    SamplingParams,
    Transformers,
)
from qvl_lab.errors import ClosedError, ConfigError, DeviceMemoryError, ModelError, QueueFullError
from qvl_lab.models.load import resolve
from qvl_lab.models.shapes import build
from qvl_lab.runs.records import Work
from qvl_lab.session import Lab
from qvl_lab.workloads.items import Item
from qvl_lab.workloads.sources import load_workload

SMALL: dict[str, Any] = {"resolution": 128, "max_new_tokens": 6}
QUESTIONS = ("What is this?", "描述这张图片", "Count. " * 30, "?")
#: Each switches something off, or leaves so little room that sequences are preempted.
SETTINGS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "prefixes": {"prefix_cache": True},
    "small chunks": {"prefill_chunk": 37},
    "one at a time": {"packing": False, "overlap": False},
    "odd blocks": {"block_size": 7},
    "little room": {"kv_cache_gib": 1.2e-3},
    "little room for prefixes": {"kv_cache_gib": 1.4e-3, "block_size": 5, "prefix_cache": True},
}
#: Those that ``make test`` takes.
BRIEF = ("as it comes", "little room")


def png(color: str, size: tuple[int, int] = (96, 64)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def experts(lab) -> Lab:
    """A mixture of experts with random weights, around the embedded model's processors."""
    values = lab.loaded.model.config.to_dict()
    text = values["text_config"] | {
        "moe_intermediate_size": 96,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "model_type": "qwen3_vl_moe_text",
    }
    kept = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    config = Qwen3VLMoeConfig(
        text_config=text,
        vision_config=values["vision_config"] | {"model_type": "qwen3_vl_moe_vision"},
        tie_word_embeddings=True,
        **{name: values[name] for name in kept},
    )
    model = build(config, torch.float32, "cpu", None, seed=1).eval()
    model.generation_config = GenerationConfig(**lab.loaded.model.generation_config.to_dict())
    return Lab(replace(lab.loaded, model=model))


@pytest.fixture
def requests(mixed) -> list[Item]:
    """Images of many sizes with questions of many lengths; each image comes up several times."""
    shuffled = random.Random(0)
    return [
        replace(shuffled.choice(mixed[:12]), id=f"{i}", question=shuffled.choice(QUESTIONS))
        for i in range(30)
    ]


@pytest.fixture(scope="module")
def stock_answers() -> Callable[..., Generation]:
    """The stock engine's answers to the same requests, asked for once."""
    asked: list[Generation] = []

    def answers(lab: Lab, requests: list[Item], **options: Any) -> Generation:
        if not asked:
            asked.append(lab.generate_batch(requests, **options))
        return asked[0]

    return answers


def engine_of(lab: Lab, caches: Caches | None = None, **fields: Any) -> Engine:
    spec = Config().replace(engine="fast", **({"batch_size": 4} | fields)).engine
    policy = ImagePolicy(resolution=128)
    return Engine(lab.processor, spec, policy, num_tokens=2000, max_model_len=500, caches=caches)


def finish(engine: Engine, most: int = 2000) -> list[Any]:
    """Step until nothing is left; more steps than ``most`` are a livelock."""
    ended = []
    for _ in range(most):
        if not engine.busy:
            return ended
        ended += engine.step()
    raise AssertionError("the engine does not come to an end")


def nothing_held(engine: Engine) -> bool:
    engine.evict_prefixes()
    blocks = engine.scheduler.blocks
    return engine.is_idle and blocks.num_free == blocks.num_blocks


# ---- the same answers


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(chosen, id=name, marks=[] if name in BRIEF else pytest.mark.slow)
        for name, chosen in SETTINGS.items()
    ],
)
def test_tokens_are_those_of_the_stock_engine(lab, ids_of, requests, stock_answers, settings):
    ids_of(lab)
    options = {"resolution": 160, "max_new_tokens": 9, "batch_size": 5}
    stock = stock_answers(lab, requests, **options)
    fast = lab.generate_batch(requests, engine="fast", **options, **settings)
    assert fast.texts == stock.texts
    assert len(set(stock.texts)) > 8  # equality says little about equal answers
    assert [a.id for a in fast] == [item.id for item in requests]
    assert [a.prompt_tokens for a in fast] == [a.prompt_tokens for a in stock]
    assert [a.image_size for a in fast] == [a.image_size for a in stock]
    assert {a.image_size is None for a in stock} == {False}
    engine = lab.fast.engine
    assert ("little room" in str(settings) or "kv_cache_gib" in settings) == bool(
        engine.scheduler.preemptions
    )
    assert nothing_held(engine)


@pytest.mark.slow
def test_tokens_of_a_mixture_of_experts_are_those_of_the_stock_engine(experts, ids_of, requests):
    ids_of(experts)
    options = {"resolution": 128, "max_new_tokens": 8, "batch_size": 4}
    stock = experts.generate_batch(requests, **options)
    fast = experts.generate_batch(requests, engine="fast", **options)
    assert fast.texts == stock.texts
    assert len(set(stock.texts)) > 8  # equality says little about equal answers


@pytest.mark.slow
def test_answers_of_the_trained_model_end_where_the_stock_engines_do(trained):
    items = load_workload("evaluation").sample(24).items
    options = {"resolution": 256, "max_new_tokens": 40}
    stock = trained.generate_batch(items, **options)
    fast = trained.generate_batch(items, engine="fast", **options)
    assert fast.texts == stock.texts
    assert [a.new_tokens for a in fast] == [a.new_tokens for a in stock]
    assert len({a.new_tokens for a in fast}) > 2


@pytest.mark.full
@pytest.mark.parametrize("which", ["lab", "experts"])
def test_tokens_of_200_requests_in_any_order_are_those_of_single_requests(
    which, request, ids_of, mixed
):
    lab = ids_of(request.getfixturevalue(which))
    draw = random.Random(1)
    items = [
        replace(draw.choice(mixed), id=str(i), question=draw.choice(QUESTIONS)) for i in range(200)
    ]
    options = {"resolution": 192, "max_new_tokens": 10}
    alone = dict(zip(items, lab.generate_batch(items, batch_size=1, **options).texts, strict=True))
    for settings in SETTINGS.values():
        draw.shuffle(items)
        size = draw.choice([1, 3, 8])
        fast = lab.generate_batch(items, engine="fast", batch_size=size, **options, **settings)
        assert fast.texts == [alone[item] for item in items], settings


def test_requests_come_at_any_time_with_settings_of_their_own(lab, ids_of, requests):
    ids_of(lab)
    policy, draw = ImagePolicy(resolution=128), random.Random(3)
    engine = engine_of(lab, prefix_cache=True, prefill_chunk=60)
    sequences = {}
    for index, item in enumerate(requests):
        most = draw.randint(1, 12)
        request = lab.processor.request(index, item, policy)
        sequence = engine.add_request(
            request, SamplingParams(max_new_tokens=most, min_new_tokens=most)
        )
        sequences[item.id] = sequence, most
        for _ in range(draw.randint(0, 4)):
            engine.step()
    finish(engine)
    for item in requests:
        sequence, most = sequences[item.id]
        alone = lab.generate_batch([item], resolution=128, max_new_tokens=most, batch_size=1)
        assert sequence.answer.text == alone[0].text
    assert nothing_held(engine)


# ---- bad input


def test_bad_images_fail_alone(lab, tmp_path):
    images = [png("red"), b"", b"text", png("blue")[:60], tmp_path / "gone.png", png("green")]
    for settings in ({}, {"overlap": False}, {"prefix_cache": True}):
        stock = lab.generate_batch(images, "What?", **SMALL)
        fast = lab.generate_batch(images, "What?", engine="fast", **SMALL, **settings)
        assert fast.texts == stock.texts
        assert fast.errors == stock.errors
        assert [e["id"] for e in fast.errors] == ["image 1", "image 2", "image 3", "gone.png"]
        assert nothing_held(lab.fast.engine)


def test_a_broken_image_that_others_wait_for_fails_all_that_show_it(lab):
    cut = png("blue", (200, 200))[:150]
    images = [cut, cut, png("red"), cut]
    fast = lab.generate_batch(
        images, "What?", engine="fast", prefix_cache=True, **SMALL, batch_size=2
    )
    assert [text is None for text in fast.texts] == [True, True, False, True]
    assert nothing_held(lab.fast.engine)


def test_a_full_queue_refuses_one_more_and_loses_nothing(lab):
    engine = engine_of(lab, batch_size=1, max_queue_size=2, overlap=False, max_new_tokens=3)

    def add(index: int) -> Any:
        item = Item(str(index), png("red"), "What?")
        return engine.add_request(lab.processor.request(index, item, engine.policy))

    sequences = [add(0), add(1)]
    with pytest.raises(QueueFullError, match="2 requests wait already, as many as max_queue_size"):
        add(2)
    engine.step()  # the first has a slot now
    sequences.append(add(2))
    finish(engine)
    assert [sequence.answer.error for sequence in sequences] == [None] * 3
    assert nothing_held(engine)


def test_a_short_queue_serves_any_number(lab):
    fast = lab.generate_batch(
        [png("red")] * 7, "What?", engine="fast", batch_size=4, max_queue_size=1, max_new_tokens=3
    )
    assert [answer.error for answer in fast] == [None] * 7


def test_a_prompt_too_long_for_the_cache_is_refused_by_name_before_any_work(lab):
    images = [png("red"), png("blue", (1024, 1024)), png("green")]
    fast = lab.generate_batch(
        images, "What?", engine="fast", resolution=512, max_new_tokens=4, kv_cache_gib=1e-3
    )
    assert [text is None for text in fast.texts] == [False, True, False]
    assert "do not fit into a cache of" in fast[1].error
    assert "kv_cache_gib" in fast[1].error
    assert fast.work.images == 2


def test_sampling_out_of_bounds_is_refused():
    for wrong in (
        {"max_new_tokens": 0},
        {"min_new_tokens": 9, "max_new_tokens": 8},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
    ):
        with pytest.raises(ConfigError):
            SamplingParams(**wrong)


def test_other_families_are_refused_with_the_engine_to_use(lab, monkeypatch):
    monkeypatch.setattr(lab.loaded.model.config, "model_type", "qwen2_vl")
    with pytest.raises(ConfigError, match="engine='stock'"):
        lab.generate_batch([png("red")], engine="fast", **SMALL)


def test_the_stock_engines_cache_is_refused():
    with pytest.raises(ConfigError, match="stock engine's"):
        Config().replace(engine="fast", cache_implementation="static")


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("packing", [True, False])
def test_an_image_whose_decoding_runs_out_of_memory_fails_alone(lab, monkeypatch, overlap, packing):
    real = DecodePool.pixels

    def pixels(self: DecodePool, request: Any) -> Any:
        if request.index == 1:
            raise MemoryError
        return real(self, request)

    monkeypatch.setattr(DecodePool, "pixels", pixels)
    options = {"overlap": overlap, "packing": packing, **SMALL}
    fast = lab.generate_batch([png("red"), png("blue"), png("green")], engine="fast", **options)
    assert [text is None for text in fast.texts] == [False, True, False]
    assert "out of memory" in fast[1].error
    assert nothing_held(lab.fast.engine)


def test_a_closed_engine_takes_no_requests_and_says_so(lab):
    engine = engine_of(lab)
    engine.close()
    with pytest.raises(ClosedError, match="closed and takes no requests; make a new one"):
        asking(engine, lab, ["red"])
    assert nothing_held(engine)


# ---- on the way


@pytest.mark.slow
def test_a_cancelled_request_ends_once_wherever_it_is(lab, requests):
    policy = ImagePolicy(resolution=128)
    for steps in range(8):
        engine = engine_of(lab, prefix_cache=bool(steps % 2), prefill_chunk=30)
        sequences = [
            engine.add_request(lab.processor.request(i, item, policy))
            for i, item in enumerate(requests[:8])
        ]
        for _ in range(steps):
            engine.step()
        for sequence in sequences[::2]:
            engine.cancel(sequence)
            engine.cancel(sequence)
        ended = finish(engine)
        assert all(sequence.answer is not None for sequence in sequences)
        assert len({id(sequence) for sequence in ended}) == len(ended)
        assert all(sequence.answer.error in ("cancelled", None) for sequence in sequences[::2])
        assert all(sequence.answer.error is None for sequence in sequences[1::2])
        assert nothing_held(engine)


@pytest.mark.slow
def test_an_interrupt_frees_the_cache_and_the_next_call_works(lab, requests):
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    options = {"engine": Fast(sampling=SamplingParams(max_new_tokens=4))}
    with pytest.raises(KeyboardInterrupt):
        lab.run(requests, policy=ImagePolicy(resolution=96), on_answer=interrupt, **options)
    assert lab.fast.engine is None
    assert None not in lab.run(requests, policy=ImagePolicy(resolution=96), **options).texts


@pytest.mark.slow
def test_the_engine_is_kept_while_it_fits_also_when_stock_is_asked_in_between(lab):
    options = {"engine": "fast", "batch_size": 2, **SMALL}
    lab.generate_batch([png("red")] * 3, **options)
    first = lab.fast.engine
    lab.generate_batch([png("blue")], **options)
    lab.generate_batch([png("blue")], **SMALL)
    lab.generate_batch([png("blue")], **options)
    assert lab.fast.engine is first
    lab.generate_batch([png("blue", (900, 900))] * 2, **options | {"resolution": 256})
    assert lab.fast.engine is not first


@pytest.mark.slow
def test_stock_takes_the_fast_engines_memory_before_it_halves_a_batch(lab, monkeypatch):
    lab.generate_batch([png("red")], engine="fast", **SMALL)
    real, sizes = type(lab.stock)._generate, []

    def generate(self, inputs, *rest):
        sizes.append(len(inputs["input_ids"]))
        if lab.fast.engine is not None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return real(self, inputs, *rest)

    monkeypatch.setattr(type(lab.stock), "_generate", generate)
    for halve in (True, False):
        lab.generate_batch([png("red")], engine="fast", **SMALL)
        items = [Item(color, png(color)) for color in ("red", "blue")]
        stock = lab.run(items, Transformers(), ImagePolicy(resolution=128), halve_on_oom=halve)
        assert None not in stock.texts
        assert stock.events == []
        assert lab.fast.engine is None
    assert sizes == [2, 2] * 2


# ---- memory runs out


def out_of_memory_at(monkeypatch, method: str, when: Any) -> list[int]:
    """Let a method of ModelRunner run out of memory when its count and first argument say so."""
    real, seen = getattr(ModelRunner, method), []

    def failing(self: ModelRunner, first: Any, *rest: Any) -> Any:
        seen.append(len(first))
        if when(len(seen), len(first)):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return real(self, first, *rest)

    monkeypatch.setattr(ModelRunner, method, failing)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("method", ["decode", "prefill", "encode_images"])
@pytest.mark.parametrize("prefix_cache", [False, True])
def test_running_out_of_memory_loses_nothing(
    lab, ids_of, requests, monkeypatch, method, prefix_cache
):
    ids_of(lab)
    options = {"batch_size": 5, **SMALL}
    stock = lab.generate_batch(requests, **options)
    out_of_memory_at(monkeypatch, method, lambda count, size: size > 2)
    lab.fast.close()  # one that ran out of memory before has less at a time
    options |= {"prefix_cache": prefix_cache, "overlap": False}  # so that all come at once
    fast = lab.generate_batch(requests, engine="fast", **options)
    assert fast.texts == stock.texts
    assert fast.events
    assert all(e["event"] == "oom" for e in fast.events)
    assert nothing_held(lab.fast.engine)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["decode", "prefill", "encode_images"])
def test_what_does_not_fit_even_alone_fails_with_its_size(lab, monkeypatch, method):
    out_of_memory_at(monkeypatch, method, lambda count, size: True)
    fast = lab.generate_batch([png("red"), png("blue")], "What?", engine="fast", **SMALL)
    assert [text is None for text in fast.texts] == [True, True]
    assert "out of memory even alone" in fast[0].error
    assert nothing_held(lab.fast.engine)


@pytest.mark.slow
def test_after_one_shortage_prompts_are_read_many_at_a_time_again(lab, monkeypatch, requests):
    sizes = out_of_memory_at(monkeypatch, "prefill", lambda count, size: count == 1)
    engine = engine_of(lab, overlap=False, prefill_chunk=512)
    for index, item in enumerate(requests):
        engine.add_request(lab.processor.request(index, item, ImagePolicy(resolution=128)))
    assert all(sequence.answer.error is None for sequence in finish(engine))
    assert sizes[0] > 1
    assert engine.scheduler.prefill_chunk >= 256
    assert max(sizes[3:]) > 1


def test_the_model_can_be_trained_after_the_fast_engine_ran(lab):
    lab.generate_batch([png("red")], engine="fast", **SMALL)
    assert not any(weight.is_inference() for weight in lab.loaded.model.parameters())


@pytest.mark.slow
def test_without_halving_memory_running_out_is_an_error(lab, monkeypatch, requests):
    out_of_memory_at(monkeypatch, "decode", lambda count, size: size > 1)
    spec = Fast(sampling=SamplingParams(max_new_tokens=4))
    with pytest.raises(DeviceMemoryError, match="batch of"):
        lab.run(requests, spec, ImagePolicy(resolution=96), halve_on_oom=False)
    assert lab.fast.engine is None


def test_a_failing_model_is_an_error_of_ours(lab, monkeypatch):
    def broken(*_: Any) -> None:
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(ModelRunner, "prefill", broken)
    with pytest.raises(ModelError, match="device-side assert"):
        lab.generate_batch([png("red")], engine="fast", **SMALL)


def test_an_overflow_is_its_requests_error_and_poisons_no_other(trained, monkeypatch):
    items = load_workload("evaluation").sample(12).items
    options: dict[str, Any] = {"resolution": 128, "max_new_tokens": 12, "batch_size": 4}
    clean = trained.generate_batch(items, engine="fast", **options)
    real = ModelRunner.encode_images

    def poisoned(self: ModelRunner, pixels: Any, sequences: Any) -> None:
        real(self, pixels, sequences)
        for sequence in sequences:
            if sequence.grid == bad:
                sequence.features = torch.full_like(sequence.features, torch.inf)

    grids = [
        trained.fast.engine.model_runner.patchify.grid(
            trained.processor.request(0, item, ImagePolicy(resolution=128)).size
        )
        for item in items
    ]
    bad = grids[0]
    monkeypatch.setattr(ModelRunner, "encode_images", poisoned)
    fast = trained.generate_batch(items, engine="fast", **options)
    for grid, found, expected in zip(grids, fast, clean, strict=True):
        if grid == bad:
            assert "overflowed to inf or NaN in fp32" in found.error
        else:
            assert found.text == expected.text
    assert any(grid != bad for grid in grids)


# ---- what is measured


def test_stages_and_work_say_what_was_done(lab):
    images = [png("red", (128, 128)), png("blue", (128, 64)), png("green", (128, 128))]
    started = time.perf_counter()
    fast = lab.generate_batch(
        images, "What?", engine="fast", resolution=128, max_new_tokens=5, batch_size=2
    )
    seconds = time.perf_counter() - started
    stock = lab.generate_batch(images, "What?", resolution=128, max_new_tokens=5, batch_size=1)
    done, alone = fast.work, stock.work
    for name in ("images", "patches", "patches_squared", "prompt_tokens", "decode_rows"):
        assert getattr(done, name) == getattr(alone, name)
    assert done.prompt_tokens_squared == alone.prompt_tokens_squared
    assert done.context_tokens == alone.context_tokens
    assert {"decode_image", "vision", "prefill", "decode", "detokenize"} <= set(fast.stages_s)
    assert sum(fast.stages_s.values()) == pytest.approx(fast.wall_s, rel=1e-6)
    assert fast.totals["decode"].amounts["tokens"] == done.decode_rows
    assert all(0 <= a.queue_s < a.ttft_s <= a.e2e_s <= seconds for a in fast)


def test_a_known_prefix_is_neither_decoded_nor_seen_nor_read_again(lab):
    image = png("red", (128, 128))
    options = {"prefix_cache": True, "kv_cache_gib": 0.01, **SMALL}
    once = lab.generate_batch([image], "What?", engine="fast", **options)
    engine = lab.fast.engine
    before = engine.work
    lab.generate_batch([image] * 3, "Which?", engine="fast", **options)
    again = engine.work - before
    assert (once.work.images, again.images, again.patches) == (1, 0, 0)
    assert engine.scheduler.blocks.stats.hits == 3
    assert again.prompt_tokens < once.work.prompt_tokens


def test_work_is_added_and_taken_away():
    work = Work(images=3, patches=10)
    assert work + Work(images=1) - Work(images=1) == work


def test_spec_of_the_embedded_model_resolves():
    assert resolve(ModelSpec(model="tiny", device="cpu")).precision == "fp32"


# ---- what is remembered

CACHES: dict[str, dict[str, Any]] = {
    "features": {"encoder_cache_gib": 0.1},
    "few features": {"encoder_cache_gib": 0.1, "encoder_cache_entries": 2},
    "features and prefixes": {"encoder_cache_gib": 0.1, "prefix_cache": True},
    "answers": {"response_cache_entries": 1000},
    "without threads": {"encoder_cache_gib": 0.1, "overlap": False, "packing": False},
}


@pytest.mark.slow
@pytest.mark.parametrize("settings", CACHES.values(), ids=CACHES.keys())
def test_answers_are_the_same_with_a_cache_cold_and_warm(lab, ids_of, requests, settings):
    ids_of(lab)
    options = {"resolution": 160, "max_new_tokens": 7, "batch_size": 4}
    stock = lab.generate_batch(requests, **options)
    cold = lab.generate_batch(requests, engine="fast", **options, **settings)
    warm = lab.generate_batch(requests[::-1], engine="fast", **options, **settings)
    assert cold.texts == stock.texts
    assert warm.texts == stock.texts[::-1]
    assert [a.new_tokens for a in warm] == [a.new_tokens for a in stock][::-1]
    name = "response" if "response_cache_entries" in settings else "encoder"
    name = "prefix" if "prefix_cache" in settings else name
    assert warm.caches[f"{name}_hits"] > 0
    if settings in (CACHES["features"], CACHES["without threads"]):
        assert (cold.work.images, warm.work.images) == (len({i.image for i in requests}), 0)
        assert warm.caches["encoder_misses"] == 0
    if name == "response":
        assert warm.work.decode_rows == 0
    assert nothing_held(lab.fast.engine)


@pytest.mark.slow
@pytest.mark.parametrize("settings", CACHES.values(), ids=CACHES.keys())
def test_what_is_forgotten_is_not_found(lab, ids_of, requests, settings):
    ids_of(lab)
    lab.clear_caches()  # with nothing to clear
    options = {"resolution": 160, "max_new_tokens": 7, "batch_size": 4, "overlap": False} | settings
    first = lab.generate_batch(requests, engine="fast", **options)
    engine = lab.fast.engine
    lab.clear_caches()
    again = lab.generate_batch(requests, engine="fast", **options)
    assert lab.fast.engine is engine
    assert again.texts == first.texts
    assert again.work.images == first.work.images > 0
    lab.clear_caches()
    assert lab.fast.engine.scheduler.blocks.num_free == lab.fast.engine.scheduler.blocks.num_blocks
    assert lab.fast.engine.cache_counts().get("encoder_bytes", 0) == 0


@pytest.mark.slow
def test_features_on_disk_serve_the_next_run(lab, ids_of, requests, tmp_path):
    ids_of(lab)
    options = {"engine": "fast", "encoder_cache_gib": 0.1, "encoder_cache_dir": str(tmp_path)}
    first = lab.generate_batch(requests, **options, **SMALL)
    lab.fast.close()
    lab.fast._caches = None  # another process
    again = lab.generate_batch(requests, **options, **SMALL)
    assert again.texts == first.texts
    assert again.work.images == 0
    assert again.caches["encoder_disk_hits"] == len({i.image for i in requests})
    files = sorted(tmp_path.glob("*.safetensors"))
    files[0].write_bytes(b"foreign")
    files[1].write_bytes(files[1].read_bytes()[:-7])
    lab.fast.close()
    lab.fast._caches = None
    with pytest.warns(UserWarning) as warned:
        third = lab.generate_batch(requests, **options, **SMALL, overlap=False)
    said = " ".join(str(warning.message) for warning in warned)
    assert [file.name in said for file in files] == [True, True] + [False] * (len(files) - 2)
    assert third.texts == first.texts
    assert third.work.images == 2


def test_a_cache_by_path_gives_the_old_picture_where_one_by_content_does_not(trained, tmp_path):
    """The flaw of the article's cache by path: the file changes, the features do not."""
    file = tmp_path / "shape.png"
    by_answer = {i.reference: i for i in load_workload("evaluation").items if i.task == "colour"}
    red, blue = by_answer["red"], by_answer["blue"]
    for key, second in (("content", "blue"), ("path", "red")):
        options = {"engine": "fast", "resolution": 256, "max_new_tokens": 8, "cache_key": key}
        for item, answer in ((red, "red"), (blue, second)):
            file.write_bytes(item.image.read_bytes())
            question = red.question if answer == "red" else blue.question
            found = trained.generate_batch(
                [file], question, encoder_cache_gib=0.1, encoder_cache_entries=100, **options
            )
            assert found.texts == [answer], key


def test_sampled_answers_are_not_given_twice(lab):
    engine = Engine(
        lab.processor,
        Fast(caches=CacheSettings(response_cache_entries=10)),
        ImagePolicy(resolution=128),
        num_tokens=500,
        max_model_len=300,
        caches=lab.fast._kept_caches(Fast(caches=CacheSettings(response_cache_entries=10))),
    )
    item = Item("a", png("red"), question="What?")
    request = lab.processor.request(0, item, ImagePolicy(resolution=128))
    sampled = SamplingParams(max_new_tokens=12, min_new_tokens=12, do_sample=True)
    texts = set()
    for _ in range(3):
        sequence = engine.add_request(request, sampled)
        finish(engine)
        texts.add(sequence.answer.text)
    assert len(texts) == 3
    assert engine.responses.hits == 0


# ---- equal requests at the same time


def asking(engine: Engine, lab: Lab, colors: list[str], **fields: Any) -> list[Any]:
    """Jobs of one question about pictures of these colors, added at once."""
    items = [Item(str(i), png(color), question="What?") for i, color in enumerate(colors)]
    requests = [lab.processor.request(i, item, engine.policy) for i, item in enumerate(items)]
    return [engine.add_request(request, **fields) for request in requests]


def remembering(lab: Lab, **fields: Any) -> Engine:
    return engine_of(lab, Caches(responses=Lru[tuple[str, int]](2**20)), **fields)


@pytest.mark.parametrize("overlap", [True, False])
def test_equal_requests_on_their_way_are_computed_once(lab, overlap):
    colors = ["red", "blue", "red", "green", "red", "blue"]
    images = [png(color) for color in colors]
    stock = lab.generate_batch(images, "What?", resolution=128, max_new_tokens=7)
    engine = remembering(lab, overlap=overlap)
    sequences = asking(engine, lab, colors, sampling=SamplingParams(max_new_tokens=7))
    assert (engine.due, engine.queued) == (3, 6)
    assert {id(sequence) for sequence in finish(engine)} == set(map(id, sequences))
    assert engine.work.images == 3
    assert (engine.responses.hits, engine.responses.misses) == (3, 3)
    answers = [sequence.answer for sequence in sequences]
    assert [(a.text, a.new_tokens) for a in answers] == [(a.text, a.new_tokens) for a in stock]
    assert [a.id for a in answers] == [sequence.request.item.id for sequence in sequences]
    assert nothing_held(engine)


def test_sampled_requests_on_their_way_are_computed_each(lab):
    engine = remembering(lab)
    sampling = SamplingParams(max_new_tokens=12, min_new_tokens=12, do_sample=True)
    sequences = asking(engine, lab, ["red"] * 3, sampling=sampling)
    finish(engine)
    assert len({sequence.answer.text for sequence in sequences}) == 3
    assert (engine.responses.hits, engine.responses.misses) == (0, 0)


@pytest.mark.slow
def test_when_one_of_equal_requests_is_cancelled_the_others_are_answered(lab):
    for gone in (0, 1, 2):
        for steps in (0, 1, 2):
            engine = remembering(lab)
            sequences = asking(engine, lab, ["red"] * 3)
            ended = [sequence for _ in range(steps) for sequence in engine.step()]
            engine.cancel(sequences[gone])
            ended += finish(engine)
            assert sorted(sequence.request.index for sequence in ended) == [0, 1, 2]
            errors = [sequence.answer.error for sequence in sequences]
            assert errors == ["cancelled" if i == gone else None for i in range(3)]
            assert nothing_held(engine)
            assert engine.responses.waiting == 0


def test_each_of_equal_requests_has_its_own_error(lab, tmp_path):
    engine, image = remembering(lab), png("red")
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(image[:-30])
    items = [Item(name, tmp_path / f"{name}.png", "What?") for name in "ab"]
    whole = lab.processor.request(0, Item("whole", image, "What?"), engine.policy)
    cut = [replace(whole, index=i, item=item, image=image[:-30]) for i, item in enumerate(items)]
    sequences = [engine.add_request(request) for request in cut]
    finish(engine)
    for sequence in sequences:
        assert sequence.answer.text is None
        assert sequence.answer.id == sequence.request.item.id
        assert "truncated" in sequence.answer.error
    assert (engine.responses.hits, engine.responses.misses) == (0, 2)
    assert nothing_held(engine)


def test_requests_that_wait_for_an_equal_one_count_in_the_queue(lab):
    engine = remembering(lab, max_queue_size=2)
    asking(engine, lab, ["red", "red"])
    with pytest.raises(QueueFullError, match="2 requests wait already"):
        asking(engine, lab, ["red"])
    finish(engine)
    assert nothing_held(engine)


def test_closing_ends_equal_requests_too(lab):
    engine = remembering(lab)
    sequences = asking(engine, lab, ["red", "red", "blue", "red"])
    engine.step()
    engine.close()
    assert all(sequence.answer is not None for sequence in sequences)
    assert engine.responses.waiting == 0


@pytest.mark.slow
def test_on_a_cpu_images_are_decoded_many_at_a_time_but_not_beside_the_model(lab, monkeypatch):
    decoding, together, beside = set(), [0], []
    real = DecodePool.pixels

    def pixels(self, request):
        decoding.add(request.index)
        together.append(len(decoding))
        time.sleep(0.02)  # long enough that others begin
        try:
            return real(self, request)
        finally:
            decoding.discard(request.index)

    monkeypatch.setattr(DecodePool, "pixels", pixels)
    for method in ("encode_images", "prefill", "decode"):
        work = getattr(ModelRunner, method)
        monkeypatch.setattr(
            ModelRunner,
            method,
            lambda *args, work=work: beside.append(len(decoding)) or work(*args),
        )
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    engine = engine_of(lab, batch_size=2)
    sequences = asking(engine, lab, ["red", "blue", "green", "black", "white", "grey"])
    finish(engine)
    assert [sequence.answer.error for sequence in sequences] == [None] * 6
    assert max(together) > 1
    assert set(beside) == {0}
    assert nothing_held(engine)


def test_requests_about_one_image_show_it_to_the_tower_once_however_it_groups_them(
    lab, monkeypatch
):
    monkeypatch.setattr("qvl_lab.backends.fast.vision_runner.CPU_TOKENS", 1)
    fast = lab.generate_batch(
        [png("red"), png("blue")] * 3, "What?", engine="fast", encoder_cache_gib=0.1, **SMALL
    )
    assert [answer.error for answer in fast] == [None] * 6
    assert fast.work.images == 2


def test_the_next_of_equal_requests_takes_the_place_of_one_that_is_cancelled(lab):
    engine = remembering(lab, batch_size=1)
    sequences = asking(engine, lab, ["red", "red", "red", "blue"])
    engine.cancel(sequences[0])
    assert [sequence.request.index for sequence in engine._incoming] == [1, 3]
    assert (engine.responses.waiting, engine.responses.misses) == (1, 3)
    ended = finish(engine)
    assert [sequence.request.index for sequence in ended][:1] == [0]
    assert [sequence.answer.error for sequence in sequences] == ["cancelled", None, None, None]
    assert nothing_held(engine)


def test_an_image_stays_on_its_way_when_an_equal_request_is_cancelled(lab):
    engine = remembering(lab, prefix_cache=True)
    first, equal = asking(engine, lab, ["red", "red"])
    engine.cancel(equal)
    item = Item("other", png("red"), question="Which colour?")
    other = engine.add_request(lab.processor.request(2, item, engine.policy))
    assert (first.needs_image, other.needs_image) == (True, False)
    finish(engine)
    assert nothing_held(engine)


def test_with_answers_alone_each_question_has_its_image_decoded_in_a_thread(lab):
    engine = remembering(lab)
    items = [Item(question, png("red"), question=question) for question in QUESTIONS]
    sequences = [
        engine.add_request(lab.processor.request(i, item, engine.policy))
        for i, item in enumerate(items)
    ]
    assert all(sequence.needs_image for sequence in sequences)
    finish(engine)
    assert nothing_held(engine)


def test_pixels_decoded_in_rounds_are_bounded(lab, monkeypatch):
    picture_bytes = 96 * 64 * 4
    monkeypatch.setattr("qvl_lab.backends.fast.decode_pool.AHEAD_BYTES", 2 * picture_bytes)
    engine = engine_of(lab, batch_size=8)
    sequences = asking(engine, lab, ["red", "blue", "green", "black", "white", "grey"])
    held = []
    fetch = engine.decode_pool.fetch
    monkeypatch.setattr(
        engine.decode_pool,
        "fetch",
        lambda sequence: (fetch(sequence), held.append(engine.decode_pool.ahead_bytes)),
    )
    finish(engine)
    assert [sequence.answer.error for sequence in sequences] == [None] * 6
    assert 0 < max(held) <= 2 * picture_bytes
    assert nothing_held(engine)
