"""FLOPs against torch's own counter; bytes, ceilings and gains by hand."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForImageTextToText, DynamicCache

from qvl_lab.analysis.limits.roofline import (
    Ceilings,
    biggest_wins,
    bytes_moved,
    ceilings,
    flops,
    measured_ceilings,
    raised,
    roofline,
)
from qvl_lab.errors import ConfigError, UnknownNameError
from qvl_lab.hardware import gpu_table
from qvl_lab.models.architecture import Architecture
from qvl_lab.models.shapes import random_config
from qvl_lab.runs.records import Work
from qvl_lab.session import load

IMAGE = 5
TEXT = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 640,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 2, 2]},
}
VISION = {"depth": 4, "hidden_size": 64, "intermediate_size": 112, "num_heads": 4}
VISION |= {"out_hidden_size": 96}
QWEN3 = {"deepstack_visual_indexes": [0, 2], "num_position_embeddings": 64}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40}
SMALL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen3_vl": (TEXT | {"head_dim": 16}, VISION | QWEN3),
    "qwen3_vl_moe": (TEXT | {"head_dim": 16} | EXPERTS, VISION | QWEN3),
    "qwen2_5_vl": (TEXT, VISION | {"fullatt_block_indexes": [1, 3]}),
    "qwen2_vl": (
        TEXT,
        {"depth": 4, "embed_dim": 64, "hidden_size": 96, "mlp_ratio": 2, "num_heads": 4},
    ),
}
#: Grids of patches, and text tokens, of the prompts of a batch.
BATCHES = [
    ([(8, 8)], [5]),
    ([(16, 24)], [300]),
    ([(8, 12), (16, 8), (24, 24)], [6, 40, 17]),
]


def build(kind: str) -> Any:
    """A small model in which every matrix product is one that the counter knows."""
    text, vision = SMALL[kind]
    tokens = {"image_token_id": IMAGE, "video_token_id": 6, "vision_start_token_id": 7}
    config = AutoConfig.for_model(
        kind, text_config=text, vision_config=vision, vision_end_token_id=8, **tokens
    )
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(
        config, attn_implementation="eager", experts_implementation=experts(config)
    ).eval()


def experts(config: Any) -> str | None:
    return "batched_mm" if "moe" in config.model_type else None


def inputs(arch: Architecture, grids: list[tuple[int, int]], texts: list[int]) -> dict[str, Any]:
    """A batch padded on the left: (batch, length) ids, (patches, values) pixels."""
    pairs = zip(grids, texts, strict=True)
    prompts = [[20] * 2 + [IMAGE] * (h * w // 4) + [30] * n for (h, w), n in pairs]
    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in prompts])
    patches = sum(h * w for h, w in grids)
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "mm_token_type_ids": (ids == IMAGE).int(),
        "pixel_values": torch.zeros(patches, arch.patch_values),
        "image_grid_thw": torch.tensor([[1, h, w] for h, w in grids]),
    }


def work_of(batch: dict[str, Any]) -> Work:
    lengths, patches = batch["attention_mask"].sum(1), batch["image_grid_thw"].prod(1)
    rows, padded = batch["input_ids"].shape
    return Work(
        images=rows,
        batches=1,
        patches=int(patches.sum()),
        patches_squared=int((patches**2).sum()),
        prompt_tokens=int(lengths.sum()),
        prompt_tokens_squared=int((lengths**2).sum()),
        padded_tokens=rows * padded,
        padded_tokens_squared=rows * padded**2,
    )


def counted(run: Any) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def modules(arch: Architecture, model: Any, batch: dict[str, Any], steps: int) -> dict[str, int]:
    """What torch counts in a prefill and some steps, by our stages' names."""
    cache = DynamicCache(config=model.config.text_config)
    tower = model.model.visual
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**batch, past_key_values=cache, logits_to_keep=1)
    by_module = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}

    def of(*names: str) -> int:
        ends = tuple(f".{name}" for name in names)
        return sum(n for name, n in by_module.items() if f".{name}".endswith(ends))

    found = {"vision": counted(lambda: tower(batch["pixel_values"], batch["image_grid_thw"]))}
    found["vision/patch_embed"] = of("visual.patch_embed")
    mergers = [f"visual.deepstack_merger_list.{i}" for i in range(arch.deepstack)]
    found["vision/merger"] = of("visual.merger", *mergers)
    found["prefill"] = counter.get_total_flops() - found["vision"]
    found["prefill/lm_head"] = of("lm_head")
    rows, length = batch["input_ids"].shape

    def decode() -> None:
        for step in range(1, steps + 1):
            mask = torch.ones(rows, length + step, dtype=torch.long)
            positions = torch.full((3, rows, 1), length + step)
            ids = torch.full((rows, 1), 9)
            model(input_ids=ids, attention_mask=mask, past_key_values=cache, position_ids=positions)

    return found | {"decode": counted(decode)}


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize(("grids", "texts"), BATCHES)
def test_flops_agree_with_torchs_counter(kind, grids, texts):
    """Exact but for rotation tables, which transformers 5.17 computes as a matrix product."""
    model, steps = build(kind), 3
    arch = Architecture.from_config(model.config.to_dict())
    batch = inputs(arch, grids, texts)
    rows, length = batch["input_ids"].shape
    work = work_of(batch) + Work(
        decode_steps=steps, decode_rows=steps * rows, context_tokens=rows * (3 * length + 1 + 2 + 3)
    )
    ours = flops(arch, work, causal=False)
    for stage, count in modules(arch, model, batch, steps).items():
        assert ours[stage] == pytest.approx(count, rel=0.001), stage


@pytest.mark.slow
@pytest.mark.parametrize("size", ["2b", "8b", "30b-a3b"])
def test_flops_of_published_shapes(size):
    config = random_config(f"random:{size}")
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(
            config,
            dtype=torch.bfloat16,
            attn_implementation="eager",
            experts_implementation=experts(config),
        ).eval()
        arch = Architecture.from_config(config.to_dict())
        work = Work(images=2, batches=1, patches=1088, patches_squared=640**2 + 448**2)
        work += Work(padded_tokens=700, padded_tokens_squared=2 * 350**2)
        work += Work(decode_steps=1, decode_rows=2, context_tokens=702)
        pixels = torch.empty(1088, 1536, dtype=torch.bfloat16)
        positions = {
            "position_ids": torch.zeros(1088, 2, dtype=torch.long),
            "interp_indices": torch.zeros(1088, 4, dtype=torch.long),
            "interp_weights": torch.zeros(1088, 4),
        }
        embedded = torch.empty(2, 350, arch.hidden, dtype=torch.bfloat16)
        places = torch.zeros(3, 2, 350, dtype=torch.long)
    grid = torch.tensor([[1, 32, 20], [1, 16, 28]])
    cache = DynamicCache(config=model.config.text_config)

    def text(length: int) -> None:
        states = model.model.language_model(
            inputs_embeds=embedded[:, :length],
            position_ids=places[:, :, :length],
            past_key_values=cache,
        ).last_hidden_state
        model.lm_head(states[:, -1:])

    ours = flops(arch, work, causal=False)
    assert ours["vision"] == counted(lambda: model.model.visual(pixels, grid, **positions))
    assert ours["prefill"] == pytest.approx(counted(lambda: text(350)), rel=1e-5)
    assert ours["decode"] == pytest.approx(counted(lambda: text(1)), rel=1e-5)


def test_the_engines_sums_give_what_the_engine_computes(mixed):
    """Images of several sizes, padded batches, the last one smaller."""
    lab = load("random:tiny", precision="fp32", device="cpu", attn_implementation="eager")
    arch = Architecture.from_config(lab.loaded.model.config.to_dict())
    runs: list[Any] = []
    options = {"batch_size": 3, "resolution": 128, "max_new_tokens": 4}
    count = counted(lambda: runs.append(lab.generate_batch(mixed[:5], **options)))
    ours = flops(arch, runs[0].work, causal=False)
    assert runs[0].work.padded_tokens > runs[0].work.prompt_tokens
    total = ours["vision"] + ours["prefill"] + ours["decode"]
    assert total == pytest.approx(count, rel=0.001)


def test_windows_count_margins_as_full():
    """12 patches a side do not fill windows of 8: ours is an upper bound."""
    model = build("qwen2_5_vl")
    arch = Architecture.from_config(model.config.to_dict())
    batch = inputs(arch, [(12, 12)], [4])
    count = counted(lambda: model.model.visual(batch["pixel_values"], batch["image_grid_thw"]))
    assert count < flops(arch, work_of(batch))["vision"] < 1.1 * count


@pytest.fixture
def arch() -> Architecture:
    return Architecture.from_config(build("qwen3_vl").config.to_dict())


@pytest.fixture
def large() -> Architecture:
    return Architecture.from_config(random_config("random:8b").to_dict())


@pytest.fixture
def moe() -> Architecture:
    return Architecture.from_config(build("qwen3_vl_moe").config.to_dict())


def test_a_causal_prefill_attends_to_half_the_square_and_itself(arch):
    """Two prompts of 10 and 6 tokens: 55 and 21 pairs of 136; each costs 4 q in 3 layers."""
    work = Work(padded_tokens=16, padded_tokens_squared=136)
    whole = flops(arch, work, causal=False)["prefill"]
    assert whole - flops(arch, work)["prefill"] == (136 - 55 - 21) * 4 * 96 * 3


def test_padding_counts_or_not(arch):
    work = Work(images=2, padded_tokens=20, padded_tokens_squared=200)
    work += Work(prompt_tokens=16, prompt_tokens_squared=136)
    alone = replace(work, padded_tokens=16, padded_tokens_squared=136)
    assert flops(arch, work, padded=False) == flops(arch, alone)
    assert flops(arch, work)["prefill"] > flops(arch, alone)["prefill"]
    assert bytes_moved(arch, work, 2, 2, padded=False) == bytes_moved(arch, alone, 2, 2)


def test_parts_make_up_their_stages(arch):
    work = Work(images=3, batches=1, patches=64, patches_squared=2000, padded_tokens=40)
    work += Work(decode_steps=2, decode_rows=6, context_tokens=90)
    for amounts in (flops(arch, work), bytes_moved(arch, work, 2, 2)):
        for stage in ("prefill", "decode"):
            parts = amounts[f"{stage}/layers"] + amounts[f"{stage}/lm_head"]
            assert amounts[stage] == parts


def test_bytes_of_a_decoding_step_by_hand(arch):
    """Weights once, 7 + 1 and 9 + 1 tokens' cache read, two written, vectors in, scores out."""
    counts = arch.parameters()
    work = Work(decode_steps=1, decode_rows=2, context_tokens=18)
    cache = 20 * 3 * 2 * 2 * 16
    values = counts["text_layers"] + counts["lm_head"] + cache + 2 * (96 + 96 + 640)
    assert bytes_moved(arch, work, 2, 2)["decode"] == 2 * values
    half = bytes_moved(arch, work, 1, 2)["decode"]
    assert half == 2 * values - arch.matrix_parameters


def test_bytes_of_the_vision_tower_by_hand(arch):
    """Two batches read the weights twice; 48 patches of 1536 values in, 3 x 12 tokens out."""
    counts = arch.parameters()
    work = Work(images=2, batches=2, patches=48)
    values = 2 * (counts["vision"] + counts["mergers"]) + 48 * 1536 + 3 * 12 * 96
    assert bytes_moved(arch, work, 2, 4)["vision"] == 4 * values


@pytest.mark.parametrize(("rows", "touched"), [(1, 3), (2, 3 + 3 * 5 / 8), (10_000, 8)])
def test_experts_that_a_step_touches(moe, rows, touched):
    """3 of 8 experts a token: the second token finds 3/8 of its own already read."""
    one, none = (
        bytes_moved(moe, Work(decode_steps=1, decode_rows=rows), size, 2)["decode"]
        for size in (1, 0)
    )
    read = moe.matrix_parameters - moe.expert_layers * (8 - touched) * moe.expert_parameters
    assert one - none == pytest.approx(read)


def test_random_routing_touches_so_many(moe):
    """The formula's expectation against drawn experts."""
    draw = np.random.default_rng(0)
    seen = [
        len({int(e) for _ in range(5) for e in draw.choice(8, 3, replace=False)})
        for _ in range(4000)
    ]
    one, none = (
        bytes_moved(moe, Work(decode_steps=1, decode_rows=5), size, 2)["decode"] for size in (1, 0)
    )
    missed = (moe.matrix_parameters - (one - none)) / (moe.expert_layers * moe.expert_parameters)
    assert 8 - missed == pytest.approx(np.mean(seen), rel=0.01)


def test_ceilings_of_the_table():
    h200 = gpu_table()["H200"]
    assert ceilings(h200, "bf16") == Ceilings(
        flops_per_s=989e12, bytes_per_s=4800e9, source=h200.source
    )
    rates = {precision: ceilings(h200, precision).flops_per_s for precision in ("fp16", "int8")}
    assert rates == {"fp16": 989e12, "int8": 989e12}  # int8 holds weights, and computes in bf16
    fp32 = ceilings(h200, "fp32")
    assert (fp32.flops_per_s, fp32.bytes_per_s) == (None, 4800e9)
    assert "no rate for fp32" in fp32.source
    with pytest.raises(UnknownNameError, match="int4"):
        ceilings(h200, "int4")


def test_an_unknown_gpu_has_no_ceilings_but_a_way_to_measure_them():
    unknown = ceilings(None, "bf16")
    assert (unknown.flops_per_s, unknown.bytes_per_s) == (None, None)
    assert "qvl-lab doctor --ceilings" in unknown.source


@pytest.mark.parametrize(
    ("device", "precision", "rate"),
    [("NVIDIA L4", "int8", 90e12), ("CPU", "int8", 1e12), ("NVIDIA L4", "fp16", None)],
)
def test_measured_ceilings(device, precision, rate):
    values = {"device": device, "flops_per_s": {"fp32": 1e12, "bf16": 90e12}}
    found = measured_ceilings(values | {"bytes_per_s": 2e11, "launch_s": 4e-6}, precision)
    assert (found.flops_per_s, found.bytes_per_s) == (rate, 2e11)
    assert device in found.source


#: Ten 1024-pixel images in one batch, 17 text tokens and 128 new ones each.
WORK = Work(
    images=10,
    batches=1,
    patches=10 * 4096,
    patches_squared=10 * 4096**2,
    prompt_tokens=10 * 1041,
    prompt_tokens_squared=10 * 1041**2,
    padded_tokens=10 * 1041,
    padded_tokens_squared=10 * 1041**2,
    decode_steps=127,
    decode_rows=10 * 127,
    context_tokens=10 * sum(range(1042, 1042 + 127)),
)
STAGES_S = {"decode_image": 1.0, "vision": 2.0, "prefill": 3.0, "decode": 3.5, "other": 0.5}
STAGES_S |= {"vision/merger": 0.25, "decode/sampling": 0.1}


@pytest.fixture
def measured(make_run, make_repeat, large) -> Any:
    """Three passes over ten images, 9, 10 and 11 s, that slow down in decoding alone."""
    repeats = [
        make_repeat(
            wall, stages_s=STAGES_S | {"decode": STAGES_S["decode"] + wall - 10}, work=asdict(WORK)
        )
        for wall in (9.0, 10.0, 11.0)
    ]
    return make_run(repeats, precision="bf16", architecture=large.to_dict())


def limits(arch: Architecture, vision_s: float, decode_s: float) -> Ceilings:
    """Ceilings at which the vision tower's FLOPs and decoding's bytes take so long."""
    return Ceilings(
        flops_per_s=flops(arch, WORK)["vision"] / vision_s,
        bytes_per_s=bytes_moved(arch, WORK, 2, 2)["decode"] / decode_s,
        source="test",
    )


def test_a_run_beside_its_least_times(measured, large):
    table = roofline(measured, limits(large, vision_s=0.5, decode_s=0.7))
    assert list(table.index) == [
        "decode_image", "vision", "vision/merger", "prefill", "decode", "decode/sampling", "other",
    ]  # fmt: skip
    wanted = {"images_per_s": 1.0, "wall_s": 10.0, "images": 10, "ceilings": "test"}
    assert table.attrs == wanted
    assert dict(table["seconds"]) == STAGES_S
    assert table.at["vision", "flops"] == flops(large, WORK)["vision"]
    assert table.at["decode", "bytes"] == bytes_moved(large, WORK, 2, 2)["decode"]
    vision, decode = table.loc["vision"], table.loc["decode"]
    assert (vision["bound"], decode["bound"]) == ("compute", "memory")
    assert (vision["least_s"], vision["mfu"], vision["times_slower"]) == pytest.approx(
        (0.5, 0.25, 4)
    )
    assert (decode["least_s"], decode["bandwidth_share"]) == pytest.approx((0.7, 0.2))
    assert decode["times_slower"] == pytest.approx(5)


def test_a_ceiling_is_never_below_what_a_stage_reached(measured, large):
    low = limits(large, vision_s=4.0, decode_s=7.0)  # the stages took 2 and 3.5 s
    table = roofline(measured, low)
    assert table.attrs["raised_by"].keys() == {"flops_per_s", "bytes_per_s"}
    assert table[["mfu", "bandwidth_share", "reached"]].max().tolist() == pytest.approx([1, 1, 1])
    assert table["times_slower"].min() == pytest.approx(1)
    up = raised(low, [measured])
    for name, column in (("flops_per_s", "mfu"), ("bytes_per_s", "bandwidth_share")):
        stage = up.raised_by[name]
        assert table.at[stage, column] == pytest.approx(1)
        assert getattr(up, name) > getattr(low, name)


def test_a_ceiling_is_not_raised_by_what_is_too_short_to_time(make_run, make_repeat, large):
    """An engine that overlaps batches gives a merger 1 ms, and so a rate that no device has."""
    parts = {"vision/merger": 0.001}
    repeats = [make_repeat(10.0, stages_s=STAGES_S, parts_s=parts, work=asdict(WORK))]
    run = make_run(repeats, precision="bf16", architecture=large.to_dict())
    high = limits(large, vision_s=0.5, decode_s=0.7)
    assert raised(high, [run]) == high
    assert roofline(run, high).at["vision/merger", "mfu"] > 1


def test_runs_of_older_files_and_unknown_ceilings_raise_nothing(measured, make_run, make_repeat):
    unknown = Ceilings(flops_per_s=None, bytes_per_s=None, source="unknown GPU")
    runs = [measured, make_run([make_repeat(1.0)]), make_run(status="oom")]
    assert raised(unknown, runs) == unknown


def test_what_each_stage_could_win(measured, large):
    """10 images in 10 s; the vision tower at its ceiling would take 1.5 s less, and so on."""
    table = roofline(measured, limits(large, vision_s=0.5, decode_s=0.7))
    gains = table["images_per_s_if"]
    assert gains["vision"] == pytest.approx(10 / 8.5)
    assert gains["decode"] == pytest.approx(10 / (10 - 2.8))
    assert gains["decode_image"] == pytest.approx(10 / 9)
    assert dict(table["goal"]) == {
        "decode_image": "hidden",
        "vision": "ceiling",
        "vision/merger": "ceiling",
        "prefill": "ceiling",
        "decode": "ceiling",
        "decode/sampling": None,
        "other": "hidden",
    }
    assert np.isnan(gains["decode/sampling"])


def test_work_of_the_cpu_can_be_hidden_beside_a_gpu_and_not_below_its_own_time(
    make_run, make_repeat, large
):
    stages = STAGES_S | {"decode_image": 7.0}
    repeats = [make_repeat(16.0, stages_s=stages, work=asdict(WORK))]
    caps = limits(large, vision_s=0.5, decode_s=0.7)
    cuda = make_run(repeats, precision="bf16", architecture=large.to_dict())
    assert roofline(cuda, caps).at["decode_image", "images_per_s_if"] == pytest.approx(10 / 9)
    slower = [make_repeat(22.0, stages_s=stages | {"decode_image": 13.0}, work=asdict(WORK))]
    cuda = make_run(slower, precision="bf16", architecture=large.to_dict())
    assert roofline(cuda, caps).at["decode_image", "images_per_s_if"] == pytest.approx(10 / 13)
    cpu = {"device": "cpu", "precision": "fp32"}
    alone = make_run(repeats, architecture=large.to_dict(), resolved=cpu)
    table = roofline(alone, caps)
    assert np.isnan(table.at["decode_image", "images_per_s_if"])
    assert table.at["decode_image", "goal"] is None


def test_a_stage_that_had_nothing_to_do_has_no_limit(make_run, make_repeat, large):
    none = replace(WORK, decode_steps=0, decode_rows=0, context_tokens=0)
    repeats = [make_repeat(10.0, stages_s=STAGES_S, work=asdict(none))]
    run = make_run(repeats, precision="bf16", architecture=large.to_dict())
    row = roofline(run, limits(large, 0.5, 0.7)).loc["decode"]
    assert np.isnan(row["least_s"]) and np.isnan(row["times_slower"])


def test_the_biggest_win_comes_first(measured, large):
    """2.8, 1.7, 1.5, 1 and 0.5 s less; parts are left to their stages."""
    wins = biggest_wins(roofline(measured, limits(large, vision_s=0.5, decode_s=0.7)))
    assert list(wins.index) == ["decode", "prefill", "vision", "decode_image", "other"]


def test_without_a_rate_only_what_needs_none_is_known(measured, large):
    known = limits(large, vision_s=0.5, decode_s=0.7)
    table = roofline(measured, replace(known, flops_per_s=None))
    gpu = table.loc[["vision", "prefill", "decode"]]
    assert gpu[["least_s", "mfu", "times_slower", "images_per_s_if"]].isna().all(axis=None)
    assert gpu[["bound", "goal"]].isna().all(axis=None)
    assert table.at["decode", "bandwidth_share"] == pytest.approx(0.2)
    assert list(biggest_wins(table).index) == ["decode_image", "other"]


def test_int8_on_a_cpu_has_fp32_activations(make_run, make_repeat, large):
    repeats = [make_repeat(10.0, stages_s=STAGES_S, work=asdict(WORK))]
    resolved = {"device": "cpu", "precision": "int8"}
    run = make_run(repeats, architecture=large.to_dict(), resolved=resolved)
    table = roofline(run, limits(large, 0.5, 0.7))
    assert table.at["decode", "bytes"] == bytes_moved(large, WORK, 1, 4)["decode"]


@pytest.mark.parametrize("missing", ["architecture", "work"])
def test_an_older_run_must_be_measured_again(measured, large, missing):
    if missing == "architecture":
        older = replace(measured, architecture={})
    else:
        older = replace(measured, repeats=[replace(r, work={}) for r in measured.repeats])
    with pytest.raises(ConfigError, match="measure it again"):
        roofline(older, limits(large, 0.5, 0.7))


def test_a_run_without_answers_has_no_roofline(make_run, large):
    with pytest.raises(ConfigError, match="answered nothing"):
        roofline(make_run(status="oom"), limits(large, 0.5, 0.7))
