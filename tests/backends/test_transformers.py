"""The stock engine: batches answer like single requests, one bad item never stops the others."""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import qvl_lab as ql
from qvl_lab.analysis.quality.scoring import score
from qvl_lab.backends.transformers import TransformersBackend
from qvl_lab.config import ImagePolicy, SamplingParams, Transformers
from qvl_lab.errors import ConfigError, DeviceMemoryError, ModelError, UnknownNameError
from qvl_lab.probe import stages
from qvl_lab.probe.stages import outermost
from qvl_lab.runs.records import Work
from qvl_lab.session import Lab
from qvl_lab.workloads.items import Item
from qvl_lab.workloads.sources import load_workload

SMALL: dict[str, Any] = {"resolution": 128, "max_new_tokens": 6}


def png(color: str, size: tuple[int, int] = (96, 64)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A small PNG file whose header claims a size that it does not have."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT" + zlib.compress(bytes(1000)), b"IEND"]
    packed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def answers(generation) -> list[tuple[str | None, int]]:
    """Text and length of each answer, in order."""
    return [(a.text, a.new_tokens) for a in generation]


def nothing_left_behind(lab: Lab) -> bool:
    tower = lab.loaded.model.model.visual
    return not tower._forward_hooks and not tower._forward_pre_hooks and stages.hearing() == ()


@pytest.fixture
def as_ids(lab, monkeypatch) -> None:
    """Answers are token ids instead of text: different ids can decode to equal text."""

    def batch_decode(tokens, **_):
        return [" ".join(map(str, row.tolist())) for row in tokens]

    monkeypatch.setattr(lab.loaded.tokenizer, "batch_decode", batch_decode)


@pytest.fixture
def reference(lab, mixed, as_ids):
    """Eight items answered one by one."""
    return lab.generate_batch(mixed[:8], batch_size=1, **SMALL)


@pytest.fixture
def oom_above(lab, monkeypatch) -> Callable[..., list[int]]:
    """Let batches of more rows, or more prompt tokens, than stated run out of memory.

    No fast engine is kept whose memory could be taken first.
    """
    lab.fast.close()

    def limit(rows: int = 10**6, tokens: int = 10**6) -> list[int]:
        sizes: list[int] = []
        real = TransformersBackend._generate

        def generate(self, inputs, *settings):
            count, length = inputs["input_ids"].shape
            sizes.append(count)
            if count > rows or length > tokens:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
            return real(self, inputs, *settings)

        monkeypatch.setattr(TransformersBackend, "_generate", generate)
        return sizes

    return limit


# ---- answers


@pytest.mark.slow
@pytest.mark.parametrize("resolution", [256, 352])
def test_batches_of_eight_answer_like_single_requests(lab, mixed, as_ids, resolution):
    options = {"resolution": resolution, "max_new_tokens": 8}
    alone = lab.generate_batch(mixed[:24], batch_size=1, **options)
    together = lab.generate_batch(mixed[:24], batch_size=8, **options)
    assert answers(together) == answers(alone)
    assert [a.id for a in together] == [item.id for item in mixed[:24]]
    assert len(set(alone.texts)) >= 8  # equality says little about equal answers
    assert (len(alone.batch_s), len(together.batch_s)) == (24, 3)


@pytest.fixture(scope="module")
def asked(trained) -> dict[str, Any]:
    """Two evaluation questions of each task, answered by the trained model one by one."""
    items = load_workload("evaluation").sample(12).items
    options: dict[str, Any] = {"resolution": 512, "max_new_tokens": 40}
    alone = trained.generate_batch(items, batch_size=1, **options)
    return {"items": items, "options": options, "alone": alone}


@pytest.mark.slow
def test_batches_of_the_trained_model_answer_like_single_requests(trained, asked):
    together = trained.generate_batch(asked["items"], batch_size=12, **asked["options"])
    assert together.texts == asked["alone"].texts
    assert (len(asked["alone"].batch_s), len(together.batch_s)) == (12, 1)
    assert len({answer.new_tokens for answer in together}) > 2  # rows of a batch end apart


def test_the_trained_model_answers_most_questions_right(asked):
    items = asked["items"]
    scores = score([i.task for i in items], asked["alone"].texts, [i.reference for i in items])
    assert len(scores) == 6
    assert sum(value == 1.0 for found in scores.values() for value in found.values) >= 9
    assert scores["locate"].metric == "box_accuracy"
    assert scores["locate"].unparsed == 0


@pytest.mark.full
def test_batches_of_eight_answer_like_single_requests_at_native_size(lab, mixed, as_ids):
    options = {"resolution": "native", "max_new_tokens": 8}
    alone = lab.generate_batch(mixed, batch_size=1, **options)
    together = lab.generate_batch(mixed, batch_size=8, **options)
    assert answers(together) == answers(alone)
    assert len(set(alone.texts)) >= 8


def test_answers_do_not_depend_on_the_order_of_the_images(lab, mixed, reference):
    backwards = lab.generate_batch(mixed[:8][::-1], batch_size=3, **SMALL)
    assert answers(backwards) == answers(reference)[::-1]


def test_the_static_cache_gives_the_same_answers(lab, mixed, reference):
    static = lab.generate_batch(mixed[:8], batch_size=4, cache_implementation="static", **SMALL)
    assert answers(static) == answers(reference)


def test_paths_strings_bytes_and_pictures_give_the_same_answer(lab, tmp_path):
    path = tmp_path / "one.png"
    path.write_bytes(png("teal"))
    kinds = [path, str(path), path.read_bytes(), Image.open(path)]
    texts = lab.generate_batch(kinds, "What colour?", batch_size=2, **SMALL).texts
    assert texts[0]
    assert texts == [texts[0]] * 4
    assert [lab.generate_batch(kind, "What colour?", **SMALL).texts[0] for kind in kinds] == texts


def test_visual_tokens_are_those_that_visual_tokens_predicts(lab, mixed):
    generation = lab.generate_batch(mixed[:8], resolution=256, max_new_tokens=1)
    predicted = [ql.visual_tokens(item.image, 256, limits=lab.loaded.limits) for item in mixed[:8]]
    assert [a.visual_tokens for a in generation] == predicted
    assert all(0 < a.visual_tokens < a.prompt_tokens for a in generation)


def test_by_task_gives_each_task_its_own_number_of_pixels(lab):
    picture = Image.new("RGB", (1024, 1024), "navy")
    tasks = ["detection", "描述", None]
    table = {"detection": 256, "description": 128}
    generation = lab.generate_batch(
        [picture] * 2,
        tasks=tasks[:2],
        task_resolutions=table,
        resolution="by_task",
        max_new_tokens=1,
    )
    assert [a.visual_tokens for a in generation] == [64, 16]


def test_answers_have_as_many_tokens_as_asked_for(lab, mixed):
    for least, most in ((5, 5), (1, 3)):
        options = {"min_new_tokens": least, "max_new_tokens": most, "resolution": 128}
        generation = lab.generate_batch(mixed[:8], **options)
        assert all(least <= a.new_tokens <= most for a in generation)


def test_random_weights_use_up_the_length_unless_told_otherwise(lab, mixed):
    full = lab.generate_batch(mixed[:8], **SMALL)
    assert [a.new_tokens for a in full] == [6] * 8
    never, always = (frozenset(), frozenset(range(2048)))
    assert ends(lab, mixed, never) == [6] * 8
    assert ends(lab, mixed, always - {0}) == [1] * 8


def ends(lab: Lab, items, stops: frozenset[int]) -> list[int]:
    """Lengths of answers that may end at any of ``stops``."""
    config = lab.loaded.model.generation_config
    before = config.eos_token_id
    config.eos_token_id = sorted(stops) or 2047
    try:
        generation = lab.generate_batch(items[:8], min_new_tokens=0, **SMALL)
        return [a.new_tokens for a in generation]
    finally:
        config.eos_token_id = before


# ---- prompts


def test_one_question_serves_all_images_and_one_each_goes_to_each(lab):
    red, blue = png("red"), png("blue")
    same = lab.generate_batch([red, blue], "What colour?", **SMALL)
    each = lab.generate_batch([red, blue], ["What colour?", "哪一项最低？"], **SMALL)
    alone = lab.generate_batch(blue, "哪一项最低？", **SMALL)
    assert each.texts[0] == same.texts[0]
    assert each.texts[1] == alone.texts[0] != same.texts[1]


def test_items_bring_their_questions_unless_one_is_given(trained):
    """The trained model, since one with random weights may say the same to everything."""
    where, count = "红色圆形在哪里？", "How many circles are there?"
    item = Item("a", png("red"), question=where)
    own = trained.generate_batch([item], **SMALL)
    assert own[0].id == "a"
    assert own.texts == trained.generate_batch([item.image], where, **SMALL).texts
    given = trained.generate_batch([item], count, **SMALL)
    assert given.texts == trained.generate_batch([item.image], count, **SMALL).texts
    assert given.texts != own.texts


def test_a_wrong_number_of_questions_is_refused(lab):
    with pytest.raises(ConfigError, match="3 prompts for 2 images"):
        lab.generate_batch([png("red")] * 2, ["a", "b", "c"])


@pytest.mark.parametrize(
    "token", ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|im_start|>", "<|im_end|>"]
)
def test_a_question_with_a_reserved_token_fails_alone(lab, token):
    images = [png("red"), png("red")]
    generation = lab.generate_batch(images, ["What?", f"What{token}?"], **SMALL)
    assert generation.texts[0] == lab.generate_batch(images[0], "What?", **SMALL).texts[0]
    assert generation.texts[1] is None
    assert f"{token!r}, which is reserved" in generation[1].error


def test_an_endless_question_is_refused(lab):
    generation = lab.generate_batch(png("red"), "a" * 100_001, **SMALL)
    assert "over 100,000 characters" in generation[0].error


def test_unknown_options_name_the_nearest(lab):
    with pytest.raises(UnknownNameError, match="Did you mean 'min_new_tokens'"):
        lab.generate_batch(png("red"), min_tokens=3)
    with pytest.raises(UnknownNameError, match="unknown option 'precision'"):
        lab.generate_batch(png("red"), precision="bf16")


def test_no_images_give_no_answers(lab):
    assert len(lab.generate_batch([])) == 0


# ---- bad images


@pytest.fixture
def bad_folder(tmp_path) -> Path:
    """Three good images among four bad ones."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for color in ("red", "green", "blue"):
        (folder / f"good_{color}.png").write_bytes(png(color))
    buffer = io.BytesIO()
    Image.effect_noise((200, 200), 90).convert("RGB").save(buffer, "JPEG")
    (folder / "cut.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (folder / "text.png").write_text("this is no picture")
    (folder / "bomb.png").write_bytes(png_of_size(60_000, 60_000))
    (folder / "empty.png").write_bytes(b"")
    return folder


def test_bad_images_are_named_and_the_others_answered_as_without_them(lab, bad_folder):
    items = load_workload(bad_folder).items
    generation = lab.generate_batch(items, batch_size=4, **SMALL)
    assert len(generation) == len(items) == 7
    errors = {e["id"]: e["error"] for e in generation.errors}
    assert set(errors) == {"bomb.png", "cut.jpg", "empty.png", "text.png"}
    assert "pixels" in errors["bomb.png"]
    assert "truncated" in errors["cut.jpg"]
    assert "empty" in errors["empty.png"]
    assert "not an image" in errors["text.png"]
    good = [item for item in items if item.id.startswith("good")]
    alone = lab.generate_batch(good, batch_size=4, **SMALL)
    assert [t for t in generation.texts if t is not None] == alone.texts
    assert len(alone.texts) == 3


def test_a_missing_file_is_an_error_of_its_item(lab, tmp_path):
    generation = lab.generate_batch([tmp_path / "gone.png", png("red")], **SMALL)
    assert "cannot read the file" in generation[0].error
    assert generation[1].text is not None


def test_only_bad_images_give_only_errors(lab):
    generation = lab.generate_batch([b"", b"text"], **SMALL)
    assert generation.texts == [None, None]
    assert len(generation.errors) == 2
    assert all(a.ttft_s is None and a.e2e_s is None for a in generation)


# ---- out of memory


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_halved_and_order_kept(lab, mixed, reference, oom_above):
    sizes = oom_above(rows=3)
    generation = lab.generate_batch(mixed[:8], batch_size=8, **SMALL)
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert answers(generation) == answers(reference)
    assert [(e["batch_size"], e["continued_with"]) for e in generation.events] == [(8, 4), (4, 2)]
    assert len(generation.batch_s) == 4


@pytest.mark.slow
def test_one_item_too_large_even_alone_fails_alone(lab, oom_above):
    oom_above(tokens=60)
    images = [png("red"), png("blue", (1024, 1024)), png("green")]
    generation = lab.generate_batch(images, "What?", resolution=512, max_new_tokens=2)
    assert [text is None for text in generation.texts] == [False, True, False]
    assert "out of memory even alone, with 256 visual tokens" in generation[1].error


def test_without_halving_memory_running_out_is_raised(lab, mixed, oom_above):
    oom_above(rows=3)
    with pytest.raises(DeviceMemoryError, match=r"batch of 8: CUDA out of memory"):
        lab.run(mixed[:8], Transformers(), ImagePolicy(resolution=128), halve_on_oom=False)
    assert nothing_left_behind(lab)


def test_another_failure_of_the_model_is_a_model_error_and_cleans_up(lab, mixed, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("size mismatch")

    monkeypatch.setattr(lab.loaded.model.model.language_model, "forward", fail)
    with pytest.raises(ModelError, match="the model failed: RuntimeError: size mismatch"):
        lab.generate_batch(mixed[:2], **SMALL)
    assert nothing_left_behind(lab)


# ---- numbers that are none


def broken(lab: Lab, value: float, row: int | None = None) -> Lab:
    """A copy of the lab with a spoilt weight: of one token's embedding, or in the middle."""
    other = ql.load("random:tiny", device="cpu", precision="fp32")
    inner = other.loaded.model.model.language_model
    with torch.no_grad():
        if row is None:
            inner.layers[2].mlp.down_proj.weight[0, 0] = value
        else:
            inner.embed_tokens.weight[row, 0] = value
    return other


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_give_an_error_not_a_text(lab, mixed, value):
    generation = broken(lab, value).generate_batch(mixed[:2], **SMALL)
    assert generation.texts == [None, None]
    for answer in generation:
        assert "scores overflowed to inf or NaN in fp32" in answer.error


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_an_overflow_of_fp16_is_an_error_that_names_wider_precisions(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    half = ql.load("random:tiny", device=device, precision="fp16")
    with torch.no_grad():
        for layer in half.loaded.model.model.language_model.layers:
            layer.mlp.down_proj.weight.mul_(3e5)
    generation = half.generate_batch([png("red")] * 2, **SMALL)
    assert generation.texts == [None, None]
    assert "in fp16; use precision='bf16' or 'fp32'" in generation[0].error


def test_an_overflow_concerns_only_its_own_row(lab):
    token = lab.loaded.tokenizer("Ω", add_special_tokens=False)["input_ids"][0]
    spoilt = ql.load("random:tiny", device="cpu", precision="fp32")
    model = spoilt.loaded.model
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # untie
    with torch.no_grad():
        model.model.language_model.embed_tokens.weight[token] = float("nan")
    image = png("red")
    generation = spoilt.generate_batch([image, image], ["What?", "Ω?"], **SMALL)
    assert generation.texts[0] == lab.generate_batch(image, "What?", **SMALL).texts[0]
    assert generation.texts[1] is None
    assert "overflowed" in generation[1].error


# ---- times


def test_stages_add_up_to_the_wall_time_and_leave_little_over(lab, mixed):
    generation = lab.generate_batch(mixed[:8], batch_size=4, resolution=256, max_new_tokens=8)
    seconds = generation.stages_s
    assert sum(seconds.values()) == pytest.approx(generation.wall_s, rel=0.02)
    assert seconds["other"] < 0.15 * generation.wall_s
    for name in ("decode_image", "preprocess", "vision", "prefill", "decode", "detokenize"):
        assert seconds[name] > 0
    table = generation.stages().set_index("path")
    outer = table[[outermost(path) for path in table.index]]
    assert outer["seconds"].sum() == pytest.approx(generation.wall_s, rel=0.02)
    assert table.at["vision/merger", "calls"] == 2 * 3  # two batches; two DeepStack mergers
    assert table.at["decode/layers", "calls"] == 2 * 7  # the prefill gives the first token
    parts = {p: s for p, s in generation.parts_s.items() if p.startswith("decode/")}
    assert parts.keys() == {"decode/layers", "decode/lm_head", "decode/sampling"}
    assert 0.5 * seconds["decode"] < sum(parts.values()) <= seconds["decode"]
    assert table.at["vision", "tokens"] == sum(answer.visual_tokens for answer in generation)
    assert nothing_left_behind(lab)


def test_work_counts_what_there_was_to_compute(lab):
    images = [png("red", (64, 96)), png("blue", (128, 128)), png("red", (64, 64))]
    questions = ["One?", "What colour is it, all in all, would you say?", "One?"]
    generation = lab.generate_batch(
        images, questions, batch_size=2, resolution="native", max_new_tokens=5, min_new_tokens=5
    )
    prompts = [answer.prompt_tokens for answer in generation]
    long, short = sorted(prompts, reverse=True)[:2], min(prompts)
    expected = Work(
        images=3,
        batches=2,
        patches=24 + 64 + 16,
        patches_squared=24**2 + 64**2 + 16**2,
        prompt_tokens=sum(prompts),
        prompt_tokens_squared=sum(n**2 for n in prompts),
        padded_tokens=2 * long[0] + short,
        padded_tokens_squared=2 * long[0] ** 2 + short**2,
        decode_steps=8,
        decode_rows=12,
        context_tokens=2 * (4 * long[0] + 10) + 4 * short + 10,
    )
    assert generation.work == expected


def test_first_tokens_come_before_last_ones_within_the_batch_and_the_run(lab, mixed):
    started = time.perf_counter()
    generation = lab.generate_batch(mixed[:8], batch_size=4, **SMALL)
    seconds = time.perf_counter() - started
    for answer in generation:
        assert 0 < answer.queue_s < answer.ttft_s < answer.e2e_s <= seconds
        assert any(
            answer.e2e_s - answer.queue_s == pytest.approx(s, abs=1e-9) for s in generation.batch_s
        )
    assert sum(generation.batch_s) <= generation.wall_s


def test_longer_answers_lengthen_decoding_and_not_the_first_token(lab):
    images = [png("red")] * 4
    short = lab.generate_batch(images, "What?", batch_size=4, resolution=128, max_new_tokens=2)
    long = lab.generate_batch(images, "What?", batch_size=4, resolution=128, max_new_tokens=48)
    assert long.stages_s["decode"] > 5 * short.stages_s["decode"]
    assert long[0].ttft_s < long[0].e2e_s / 2


def test_a_warm_up_stops_after_its_batches_the_largest_first(lab):
    images = [png("red", (s, s)) for s in (64, 512, 128, 256)]
    items = [Item(str(i), image) for i, image in enumerate(images)]
    heard: list[str] = []
    generation = lab.run(
        items,
        Transformers(batch_size=1, sampling=SamplingParams(max_new_tokens=1)),
        ImagePolicy(),
        max_batches=2,
        on_answer=lambda index, answer: heard.append(answer.id),
    )
    assert heard == ["1", "3"]
    assert len(generation) == len(generation.batch_s) == 2


def test_answers_are_heard_as_they_come_with_their_place_in_the_input(lab, mixed):
    heard: dict[int, str] = {}
    generation = lab.run(
        mixed[:5],
        Transformers(batch_size=2, sampling=SamplingParams(max_new_tokens=2)),
        ImagePolicy(resolution=128),
        on_answer=lambda index, answer: heard.update({index: answer.text}),
    )
    assert [heard[i] for i in range(5)] == generation.texts


def test_the_frame_has_one_row_per_request(lab):
    generation = lab.generate_batch([png("red"), b""], **SMALL)
    frame = generation.frame()
    assert list(frame["error"].isna()) == [True, False]
    assert frame["text"][0] == generation.texts[0]


def test_load_takes_a_spec_and_changes_to_it():
    spec = ql.ModelSpec(model="tiny", device="cpu", precision="bf16", seed=3)
    assert ql.load(spec).spec == spec
    assert ql.load(spec, precision="fp32").spec == replace(spec, precision="fp32")


# ---- on a GPU

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.mark.gpu
@needs_cuda
def test_stages_add_up_on_the_gpu_within_five_percent(mixed):
    gpu = ql.load("tiny", device="cuda", precision="fp32")
    options = {"batch_size": 8, "resolution": 256, "max_new_tokens": 16}
    gpu.generate_batch(mixed[:16], **options)
    generation = gpu.generate_batch(mixed[:16], **options)
    assert sum(generation.stages_s.values()) == pytest.approx(generation.wall_s, rel=0.05)
    assert generation.stages_s["vision"] > 0
    assert generation.stages_s["decode"] > 0
    assert all(0 < a.ttft_s <= a.e2e_s for a in generation)


@pytest.mark.gpu
@needs_cuda
def test_a_limited_gpu_runs_out_of_memory_and_goes_on_with_smaller_batches():
    from qvl_lab.models.memory import memory_limit

    gpu = ql.load("random:2b", device="cuda", precision="bf16")
    held = torch.cuda.memory_reserved() / 2**30
    items = [Item(str(i), png("red", (512, 512))) for i in range(32)]
    engine = Transformers(batch_size=32, sampling=SamplingParams(max_new_tokens=4))
    with memory_limit("cuda", held + 0.75):
        with pytest.raises(DeviceMemoryError, match="batch of 32"):
            gpu.run(items, engine, ImagePolicy(), halve_on_oom=False)
        generation = gpu.run(items, engine, ImagePolicy())
    assert generation.events
    assert generation.errors == []
    assert torch.cuda.max_memory_reserved() / 2**30 <= held + 0.75
