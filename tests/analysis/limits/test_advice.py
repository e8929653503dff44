"""Every rule of the advice: what makes it speak, and what keeps it silent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from qvl_lab.analysis.limits import advice
from qvl_lab.analysis.limits.advice import Case, Finding, advise
from qvl_lab.analysis.limits.roofline import HIDEABLE, Ceilings
from qvl_lab.errors import ConfigError
from qvl_lab.models.architecture import Architecture
from qvl_lab.runs.records import Run, Work

WALL_S, IMAGES = 10.0, 20
PROMPTS = {"prompt_tokens": 1000, "padded_tokens": 1000, "decode_steps": 100}


@pytest.fixture
def case(make_run, make_repeat):
    """A case of 20 images in 10 s, from the seconds of its stages and what they reach."""

    def make(
        seconds: dict[str, float] | None = None,
        *,
        others: list[Run] | None = None,
        power: dict[str, Any] | None = None,
        work: dict[str, int] | None = None,
        device: str = "cuda",
        reached: dict[str, dict[str, Any]] | None = None,
        **settings: Any,
    ) -> Case:
        stages = {"vision": 1.0, "prefill": 1.0, "decode": 1.0} | (seconds or {})
        outer = {name: s for name, s in stages.items() if "/" not in name}
        repeat = make_repeat(WALL_S, IMAGES, stages_s=outer, work=PROMPTS | (work or {}))
        precision = settings.get("precision", "bf16")
        resolved = {"device": device, "precision": precision}
        run = make_run(
            [repeat], power=power or {}, resolved=resolved, **{"precision": precision} | settings
        )
        return Case(run=run, table=roofline_table(stages, reached or {}), others=others or [])

    return make


def roofline_table(seconds: dict[str, float], reached: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """As :func:`qvl_lab.analysis.limits.roofline.roofline` gives; every stage at half its limit."""
    table = pd.DataFrame({"seconds": seconds})
    computes = ~table.index.isin(HIDEABLE)
    table["times_slower"] = np.where(computes, 2.0, np.nan)
    table["mfu"], table["bandwidth_share"] = np.where(computes, 0.5, np.nan), 0.1
    table["bound"] = "compute"
    for stage, values in reached.items():
        for column, value in values.items():
            table.loc[stage, column] = value
    table["least_s"] = table["seconds"] / table["times_slower"]
    saved_s = np.where(computes, table["seconds"] - table["least_s"], table["seconds"])
    table["images_per_s_if"] = IMAGES / (WALL_S - saved_s)
    table.attrs = {"images_per_s": IMAGES / WALL_S, "wall_s": WALL_S, "ceilings": "hand"}
    return table


def test_preparing_images_on_the_cpu_while_the_gpu_waits(case):
    slow = case({"decode_image": 1.0, "preprocess": 3.0})
    found = advice.preparing(slow)
    assert found == Finding(
        "preparing",
        {"share": pytest.approx(0.4), "stage": "preprocess", "stage_share": 0.3},
        pytest.approx(1 / 0.6),
    )
    most = advice.preparing(case({"preprocess": 8.0}))
    assert most.gain == pytest.approx(1 / 0.8)  # preparing itself takes that long
    assert advice.preparing(case({"preprocess": 1.4})) is None
    assert advice.preparing(case({"preprocess": 5.0}, device="cpu")) is None  # one machine does all
    for overlap, rule in ((True, "preparing_beside"), (False, "preparing")):
        fast = case({"preprocess": 4.0}, engine="fast", overlap=overlap)
        assert advice.preparing(fast).rule == rule  # what it does already is not advised


def test_steps_that_take_as_long_for_more_rows_wait_for_launches(case, make_run, make_repeat):
    def other(batch_size: int, decode_s: float, **settings: Any) -> Run:
        repeat = make_repeat(5.0, IMAGES, stages_s={"decode": decode_s}, work=PROMPTS)
        return make_run([repeat], batch_size=batch_size, precision="bf16", **settings)

    far = {"decode": {"times_slower": 6.0, "mfu": 0.02, "bandwidth_share": 0.15}}
    settings = {"batch_size": 8, "reached": far}
    found = advice.waiting_decode(case({"decode": 6.0}, others=[other(32, 6.5)], **settings))
    assert found.rule == "waiting_decode"
    assert found.evidence == {
        "step_ms": pytest.approx(60),
        "least_ms": pytest.approx(10),
        "rows": 8,
        "more": 32,
        "option": "cache_implementation=static",
    }
    assert found.gain == pytest.approx(WALL_S / (WALL_S - 5))
    for device, cache in (("cpu", None), ("cuda", "static")):  # where nothing waits for launches
        settings_here = settings | {"cache_implementation": cache}
        like = [other(32, 6.5, cache_implementation=cache)]
        there = case({"decode": 6.0}, others=like, device=device, **settings_here)
        assert advice.waiting_decode(there).rule == "far_decode"
    for others in ([], [other(32, 12.0)], [other(12, 6.0)], [other(32, 6.0, resolution=64)]):
        alone = advice.waiting_decode(case({"decode": 6.0}, others=others, **settings))
        assert (alone.rule, alone.gain) == ("far_decode", found.gain)  # far, but why is not known
    for graphs, rule in ((True, "far_decode"), (False, "waiting_decode")):
        fast = {"engine": "fast", "cuda_graphs": graphs}
        there = case({"decode": 6.0}, others=[other(32, 6.5, **fast)], **settings, **fast)
        assert advice.waiting_decode(there).rule == rule
    assert advice.waiting_decode(there).evidence["option"] == "cuda_graphs=true"
    near = {"decode": {"times_slower": 1.9}}
    assert advice.waiting_decode(case({"decode": 6.0}, batch_size=8, reached=near)) is None
    assert advice.waiting_decode(case({"decode": 0.9}, **settings)) is None
    unknown = {"decode": {"times_slower": np.nan}}
    assert advice.waiting_decode(case({"decode": 6.0}, reached=unknown)) is None


def test_decoding_near_the_bandwidth_reads_weights_for_few_rows(case):
    near = {"bound": "memory", "bandwidth_share": 0.7}
    found = advice.reading_weights(case({"decode": 6.0}, batch_size=2, reached={"decode": near}))
    assert found == Finding("reading_weights", {"bandwidth_share": 0.7, "rows": 2})
    for values in (near | {"bandwidth_share": 0.5}, near | {"bound": "compute"}):
        assert advice.reading_weights(case({"decode": 6.0}, reached={"decode": values})) is None
    assert advice.reading_weights(case({"decode": 0.5}, reached={"decode": near})) is None


def test_the_stage_far_from_its_flops_that_is_worth_most_is_named(case):
    reached = {
        "vision": {"times_slower": 4.0, "mfu": 0.25},
        "prefill": {"times_slower": 3.0, "mfu": 0.33},
    }
    found = advice.far_from_limit(case({"vision": 4.0, "prefill": 2.0}, reached=reached))
    assert found == Finding("far_vision", {"times_slower": 4.0}, pytest.approx(10 / 7))
    found = advice.far_from_limit(case({"vision": 0.9, "prefill": 2.0}, reached=reached))
    assert found.rule == "far_prefill"
    packed = case({"vision": 4.0, "prefill": 2.0}, reached=reached, engine="fast", packing=True)
    assert advice.far_from_limit(packed).rule == "far_vision_packed"
    assert advice.far_from_limit(case({"vision": 4.0, "prefill": 2.0})) is None


def test_a_patch_embedding_that_takes_more_than_its_place(case):
    far = {"vision/patch_embed": {"times_slower": 4.0}}
    slow = {"vision": 4.0, "vision/patch_embed": 2.0}
    found = advice.slow_patch_embedding(case(slow, reached=far))
    assert found == Finding("slow_patch_embedding", {"share": 0.5}, pytest.approx(10 / 8.5))
    assert advice.slow_patch_embedding(case(slow)) is None  # it has that much to do
    assert advice.slow_patch_embedding(case({"vision": 4.0, "vision/patch_embed": 0.3})) is None
    assert advice.slow_patch_embedding(case({"vision": 0.9, "vision/patch_embed": 0.8})) is None
    assert advice.slow_patch_embedding(case({"vision": 4.0})) is None


def test_the_largest_stage_at_its_limit_can_only_do_less(case):
    near = {"prefill": {"mfu": 0.72}}
    found = advice.at_limit(case({"prefill": 5.0}, reached=near))
    assert found == Finding("at_limit", {"stage": "prefill", "mfu": 0.72, "share": 0.5})
    assert advice.at_limit(case({"prefill": 5.0})) is None
    assert advice.at_limit(case({"prefill": 3.0}, reached=near)) is None
    assert advice.at_limit(case({"prefill": 5.0}, reached={"prefill": {"mfu": np.nan}})) is None


def test_padding_of_unequal_prompts(case):
    found = advice.padding(case({"prefill": 4.0}, work={"padded_tokens": 2000}))
    assert found == Finding("padding", {"padded": 0.5}, pytest.approx(1.25))
    assert advice.padding(case({"prefill": 4.0}, work={"padded_tokens": 1050})) is None
    assert advice.padding(case({"prefill": 4.0}, work={"prompt_tokens": 0})) is None


def measured(make_run, make_repeat, images_per_s: float, **settings: Any) -> Run:
    parts = {"resolved": {"device": "cuda", "precision": settings["precision"]}}
    return make_run([make_repeat(IMAGES / images_per_s, IMAGES)], **parts, **settings)


def test_fp32_where_half_precision_was_measured_faster(case, make_run, make_repeat):
    faster = measured(make_run, make_repeat, 6.0, precision="fp16")
    slower = measured(make_run, make_repeat, 2.1, precision="bf16")
    found = advice.fp32(case(precision="fp32", others=[slower, faster]))
    assert found == Finding("fp32", {"precision": "fp16"}, pytest.approx(3.0), measured=True)
    assert advice.fp32(case(precision="fp32", others=[slower])) is None
    assert advice.fp32(case(precision="fp32")) is None
    assert advice.fp32(case(precision="bf16", others=[faster])) is None
    elsewhere = measured(make_run, make_repeat, 6.0, precision="bf16", batch_size=16)
    assert advice.fp32(case(precision="fp32", others=[elsewhere])) is None


def test_the_fast_engine_where_it_was_measured_faster(case, make_run, make_repeat):
    def of(images_per_s: float, **settings: Any) -> Run:
        settings = {"engine": "fast", "precision": "bf16"} | settings
        return measured(make_run, make_repeat, images_per_s, **settings)

    found = advice.fast_engine(case(engine="stock", others=[of(5.0)]))
    assert found == Finding("fast_engine", {}, pytest.approx(2.5), measured=True)
    for others in ([], [of(2.1)], [of(5.0, batch_size=16)]):
        assert advice.fast_engine(case(engine="stock", others=others)) is None
    assert advice.fast_engine(case(engine="fast", others=[of(5.0)])) is None


def test_a_larger_batch_that_was_measured_faster(case, make_run, make_repeat):
    def of(batch_size: int, images_per_s: float) -> Run:
        return measured(
            make_run, make_repeat, images_per_s, batch_size=batch_size, precision="bf16"
        )

    found = advice.larger_batch(case(batch_size=4, others=[of(8, 3.0), of(16, 5.0), of(2, 9.0)]))
    sizes = {"rows": 4, "more": 16}
    assert found == Finding("larger_batch", sizes, pytest.approx(2.5), measured=True)
    assert advice.larger_batch(case(batch_size=4, others=[of(8, 2.1), of(2, 9.0)])) is None
    assert advice.larger_batch(case(batch_size=4)) is None


def test_a_gpu_that_is_idle_much_of_the_time(case):
    found = advice.idle(case(power={"gpu_utilisation": 0.55}))
    assert found == Finding("idle", {"busy": 0.55})
    assert advice.idle(case(power={"gpu_utilisation": 0.75})) is None
    assert advice.idle(case(power={"gpu_utilisation": None})) is None


def test_clocks_that_were_slowed():
    def of(*reasons: Any) -> pd.DataFrame:
        return pd.DataFrame({"throttled": list(reasons)})

    found = advice.throttled(of("power cap", "power cap", "thermal, by software", "", ""))
    assert found == Finding("throttled", {"share": 0.6, "reason": "power cap"})
    assert advice.throttled(of(*[""] * 99, "power cap")) is None
    assert advice.throttled(of(np.nan, np.nan)) is None


def test_pauses_of_the_gpu_between_stages():
    pauses = pd.DataFrame({"seconds": [1.0, 2.0, 1.5], "meanwhile": ["a", "preprocess", "a"]})
    pauses.attrs["wall_s"] = 10.0
    found = advice.pausing(pauses)
    assert found == Finding("pausing", {"share": 0.45, "stage": "a"}, pytest.approx(1 / 0.55))
    assert advice.pausing(pauses[:0]) is None
    pauses.attrs["wall_s"] = 100.0
    assert advice.pausing(pauses) is None


def test_kernels_with_pauses_between_them_wait_for_launches():
    def of(**stages: tuple[int, float, float]) -> pd.DataFrame:
        rows = [(name.replace("__", "/"), *values) for name, values in stages.items()]
        return pd.DataFrame(rows, columns=["stage", "kernels", "gpu_s", "gap_s"])

    seen = of(
        transfer=(3, 0.001, 9.0),
        vision=(10, 1.0, 9.0),
        decode__layers=(800, 0.004, 0.01),
        decode=(200, 2.0, 3.0),
    )
    found = advice.launching(seen)
    evidence = {"stage": "decode", "share": pytest.approx(3.01 / 5.014), "kernels": 1000}
    assert found == Finding("launching", evidence | {"mean_us": pytest.approx(2004)})
    assert advice.launching(of(decode=(10, 2.0, 0.5))) is None
    assert advice.launching(of(decode=(10, np.nan, np.nan))) is None
    assert advice.launching(seen[:0]) is None


def test_every_rule_has_been_tried_here():
    source = Path(__file__).read_text("utf-8")
    assert all(f"advice.{rule.__name__}(" in source for rule in advice.RULES)


# ---- all together


SIZES = dict.fromkeys(
    "hidden intermediate layers heads kv_heads head_dim vocab vision_depth vision_hidden "
    "vision_intermediate vision_heads patch temporal_patch channels merge "
    "full_attention_blocks".split(),
    2,
)


@pytest.fixture
def slow(make_run, make_repeat) -> Run:
    """Much preprocessing, unequal prompts, fp32."""
    work = Work(
        images=20, batches=5, patches=800, patches_squared=32000, prompt_tokens=400,
        prompt_tokens_squared=8000, padded_tokens=800, padded_tokens_squared=32000,
        decode_steps=45, decode_rows=180, context_tokens=5000,
    )  # fmt: skip
    stages = {"preprocess": 4.0, "vision": 1.0, "prefill": 4.0, "decode": 0.5, "other": 0.5}
    repeat = make_repeat(WALL_S, IMAGES, stages_s=stages, work=vars(work))
    sizes = Architecture(model_type="qwen3_vl", tied=True, **SIZES)
    return make_run([repeat], precision="fp32", architecture=sizes.to_dict())


def test_advice_begins_with_the_largest_known_gain(slow, make_run, make_repeat):
    half = measured(make_run, make_repeat, 20.0, precision="bf16")
    limits = Ceilings(flops_per_s=1e9, bytes_per_s=1e9, source="hand")
    found = advise(slow, limits, others=[slow, half])
    gains = [finding.gain or 0 for finding in found]
    assert gains == sorted(gains, reverse=True)
    assert found[0].rule == "fp32"
    assert {"fp32", "preparing", "padding"} <= {finding.rule for finding in found}
    elsewhere = measured(
        make_run, make_repeat, 20.0, precision="bf16", environment={"gpu": "NVIDIA H200"}
    )
    assert "fp32" not in {finding.rule for finding in advise(slow, limits, others=[elsewhere])}


def test_without_ceilings_only_what_needs_none_is_said(slow):
    unknown = Ceilings(flops_per_s=None, bytes_per_s=None, source="unknown GPU")
    assert {finding.rule for finding in advise(slow, unknown)} == {"preparing", "padding"}


def test_a_profile_adds_what_it_saw(slow):
    unknown = Ceilings(flops_per_s=None, bytes_per_s=None, source="unknown GPU")
    samples = pd.DataFrame({"throttled": ["power cap"] * 3})
    pauses = pd.DataFrame({"seconds": [5.0], "meanwhile": ["preprocess"]})
    pauses.attrs["wall_s"] = WALL_S
    found = advise(slow, unknown, samples=samples, pauses=pauses)
    assert found[0].rule == "pausing"
    assert found[-1].rule == "throttled"


def test_an_older_run_cannot_be_advised(make_run, make_repeat):
    unknown = Ceilings(flops_per_s=None, bytes_per_s=None, source="unknown GPU")
    with pytest.raises(ConfigError, match="measure it again"):
        advise(make_run([make_repeat()]), unknown)
