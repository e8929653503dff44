"""Predicted peaks against an H200's and against the tensors that real code keeps alive."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForImageTextToText, LogitsProcessor

from qvl_lab.analysis.limits.memory import (
    BLOCKS_BYTES,
    CONTEXT_BYTES,
    FRAGMENTATION,
    FRAGMENTATION_SPREAD,
    PARTS,
    BatchShape,
    Peak,
    batch_shape_of,
    batches_by_card,
    candidate_peaks,
    largest_batch,
    largest_batch_interval,
    predict_peak,
    reserved_bytes,
    reserved_interval,
)
from qvl_lab.errors import ConfigError
from qvl_lab.models.architecture import Architecture
from qvl_lab.models.shapes import random_config
from qvl_lab.runs.records import Run, Work
from qvl_lab.runs.store import Runs

REPORTS = Path(__file__).parents[3] / "reports"
IMAGE = 5
TEXT = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 6,  # the last ones are past the DeepStack features
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 4, 4]},
}
VISION = {"depth": 4, "hidden_size": 96, "intermediate_size": 192, "num_heads": 2}
VISION |= {"out_hidden_size": 128}
QWEN3 = {"deepstack_visual_indexes": [0, 1, 2], "num_position_embeddings": 64}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 4, "moe_intermediate_size": 80}
SMALL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "qwen3_vl": (TEXT | {"head_dim": 32}, VISION | QWEN3),
    "qwen3_vl_moe": (TEXT | {"head_dim": 32} | EXPERTS, VISION | QWEN3),
    "qwen2_5_vl": (TEXT, VISION | {"fullatt_block_indexes": [1, 3]}),
    "qwen2_vl": (
        TEXT,
        {"depth": 4, "embed_dim": 96, "hidden_size": 128, "mlp_ratio": 2, "num_heads": 2},
    ),
}


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors alive, and the most of them in each phase.

    Integers are not counted: they do not grow with a model's width, and are nothing in a real one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.bytes, self.phase, self.peaks = 0, "inputs", Counter[str]()

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if tensor.dtype in (torch.int32, torch.int64):
            return
        if storage._cdata not in self.sizes:
            self.sizes[storage._cdata] = storage.nbytes()
            self.bytes += storage.nbytes()
            weakref.finalize(storage, self._gone, storage._cdata)
        self.peaks[self.phase] = max(self.peaks[self.phase], self.bytes)

    def _gone(self, key: int) -> None:
        self.bytes -= self.sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor)
        return out


class _Decoding(LogitsProcessor):  # type: ignore[misc]
    def __init__(self, alive: Alive) -> None:
        self.alive = alive

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.alive.phase = "decode"
        return scores


def build(kind: str, dtype: torch.dtype) -> Any:
    text, vision = SMALL[kind]
    tokens = {"image_token_id": IMAGE, "video_token_id": 6, "vision_start_token_id": 7}
    config = AutoConfig.for_model(
        kind, text_config=text, vision_config=vision, vision_end_token_id=8, **tokens
    )
    model = AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = 1023
    return model


def traced(model: Any, load: BatchShape) -> tuple[dict[str, int], dict[str, int]]:
    """Peaks beside the weights in each phase: as the code has them, and as predicted.

    Kernels of a CPU take less than a GPU's; "math" is the attention that a GPU uses in fp32.
    """
    arch = Architecture.from_config(model.config.to_dict())
    side = round((load.visual_tokens * 4) ** 0.5)
    ids = torch.full((load.batch_size, load.prompt_tokens), 20)
    ids[:, 2 : 2 + load.visual_tokens] = IMAGE
    mask = torch.ones_like(ids)
    if load.padded:
        mask[0, 0] = ids[0, 0] = 0
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": (ids == IMAGE).int(),
        "pixel_values": torch.zeros(
            load.batch_size * side**2, arch.patch_values, dtype=model.dtype
        ),
        "image_grid_thw": torch.tensor([[1, side, side]] * load.batch_size),
    }
    alive = Alive()
    tower = model.model.visual
    tower.register_forward_pre_hook(lambda *_: setattr(alive, "phase", "vision"))
    tower.register_forward_hook(lambda *_: setattr(alive, "phase", "prefill"))
    for tensor in [*model.parameters(), *model.buffers()]:
        for part in (tensor.qdata, tensor.scale) if hasattr(tensor, "qdata") else (tensor,):
            alive.add(part)
    weights = alive.bytes
    for tensor in inputs.values():
        alive.add(tensor)
    options: dict[str, Any] = {"max_new_tokens": load.new_tokens, "do_sample": False}
    options["min_new_tokens"] = load.new_tokens if load.random_weights else 0
    options["suppress_tokens"] = [IMAGE, 6] if load.random_weights else None
    math = load.precision == "fp32" and not load.padded
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH) if math else nullcontext(), alive:
        model.generate(**inputs, logits_processor=[_Decoding(alive)], **options)
    here = replace(load, transformers=transformers.__version__, workspace_bytes=0)
    table = candidate_peaks(arch, here)
    predicted = dict(table["total_bytes"] - table["weights"])
    return {phase: alive.peaks[phase] - weights for phase in predicted}, predicted


LARGE = BatchShape(batch_size=4, visual_tokens=256, text_tokens=9, new_tokens=2)
LONG = BatchShape(batch_size=8, visual_tokens=4, text_tokens=6, new_tokens=90)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SMALL)
def test_vision_and_prefill_as_the_code_keeps_them(kind):
    found, predicted = traced(build(kind, torch.bfloat16), LARGE)
    assert predicted["vision"] == pytest.approx(found["vision"], rel=0.01)
    assert predicted["prefill"] == pytest.approx(found["prefill"], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SMALL)
def test_a_mask_counts(kind):
    found, predicted = traced(build(kind, torch.bfloat16), replace(LARGE, padded=True))
    assert predicted["prefill"] == pytest.approx(found["prefill"], rel=0.01)
    assert predicted["prefill"] > traced(build(kind, torch.bfloat16), LARGE)[1]["prefill"]


@pytest.mark.parametrize("kind", ["qwen3_vl", "qwen2_5_vl"])
def test_fp32_keeps_the_scores_of_grouped_heads(kind):
    """The byte of each score that says minus infinity is inside an operator, and not seen here."""
    load = replace(LARGE, precision="fp32")
    found, predicted = traced(build(kind, torch.float32), load)
    inside = 4 * load.batch_size * load.prompt_tokens**2
    assert predicted["prefill"] - inside == pytest.approx(found["prefill"], rel=0.01)
    assert predicted["decode"] == pytest.approx(found["decode"], rel=0.01)


@pytest.mark.parametrize(
    ("load", "phase"),
    [
        (BatchShape(batch_size=1, visual_tokens=4, text_tokens=6, new_tokens=3), "prefill"),
        (BatchShape(batch_size=1, visual_tokens=4, text_tokens=6, new_tokens=3), "decode"),
        (LARGE, "prefill"),
    ],
)
def test_int8_needs_a_matrix_to_multiply_with(load, phase):
    quantization = pytest.importorskip("torchao.quantization")
    model = build("qwen3_vl", torch.bfloat16)
    quantization.quantize_(
        model.model.language_model,
        quantization.Int8WeightOnlyConfig(),
        filter_fn=lambda module, _: isinstance(module, torch.nn.Linear),
    )
    found, predicted = traced(model, replace(load, precision="int8"))
    assert predicted[phase] == pytest.approx(found[phase], rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("forced", [False, True])
def test_decoding_as_the_code_keeps_it(kind, forced):
    found, predicted = traced(build(kind, torch.bfloat16), replace(LONG, random_weights=forced))
    assert predicted["decode"] == pytest.approx(found["decode"], rel=0.01)


def rows(name: str, status: str = "ok") -> Iterator[Run]:
    for file in sorted((REPORTS / name).glob("*.jsonl")):
        for line in file.read_text("utf-8").splitlines():
            if (run := Run.from_json(line)).status == status:
                yield run


MEASURED = [*rows("h200-8b"), *rows("h200-8b-24gib")]


@pytest.fixture(scope="module")
def large() -> Architecture:
    return Architecture.from_config(random_config("random:8b").to_dict())


def label(run: Run) -> str:
    return "-".join(str(run.config[n]) for n in ("precision", "resolution", "batch_size"))


@pytest.mark.parametrize("run", MEASURED, ids=label)
def test_every_measured_row(run, large):
    """What is missing is what the allocator rounds up: under 50 MiB, 13 of it for bf16 weights."""
    predicted = predict_peak(large, batch_shape_of(run)).total_bytes
    missing = run.memory["allocated"] - predicted
    assert 0 < missing < 50 * 2**20
    assert missing < 0.005 * run.memory["allocated"]


def test_the_measured_rows_are_all_there():
    assert len(MEASURED) == 27 + 2 + 4


@pytest.mark.parametrize("run", [r for r in MEASURED if r.config["batch_size"] == 32], ids=label)
def test_what_is_not_weights_is_right_too(run, large):
    """In these rows it is 1 to 26 GiB, so that weights cannot hide an error."""
    peak = predict_peak(large, batch_shape_of(run))
    measured = run.memory["allocated"] - peak.components["weights"]
    assert peak.total_bytes - peak.components["weights"] == pytest.approx(measured, rel=0.025)


def test_where_24_gib_run_out(large):
    """Batch 16 fitted and 32 did not; the limit was the allocator's, without CUDA's context."""
    fitted = max(run.config["batch_size"] for run in rows("h200-8b-24gib"))
    (failed,) = [run.config["batch_size"] for run in rows("h200-8b-24gib", "oom")]
    load = batch_shape_of(next(rows("h200-8b-24gib")))
    assert fitted <= largest_batch(large, 24 * 2**30, load, context_bytes=0) < failed


@pytest.mark.parametrize(
    "run", [r for r in rows("h200-8b-24gib") if r.config["batch_size"] >= 8], ids=label
)
def test_room_for_what_the_allocator_cannot_use(run, large):
    reserved = reserved_bytes(predict_peak(large, batch_shape_of(run)))
    assert reserved == pytest.approx(run.memory["reserved"], rel=0.01)


# ---- rows that had no part in a constant


def stock_rows(files: Mapping[str, Path]) -> Iterator[tuple[str, Run]]:
    """Rows of the stock engine with a known peak, by file; a setting's turns are one row."""
    for name, file in files.items():
        for run in Runs.load(file):
            measured = run.status == "ok" and run.memory.get("reserved")
            measured = measured and run.plan.get("phase") != "confirmation"
            if measured and run.config["engine"] == "stock":
                yield name, run


@cache
def sizes_of(model: str) -> Architecture:
    return Architecture.from_config(random_config(model).to_dict())


@pytest.fixture(scope="module")
def peaks(run_files) -> list[tuple[str, Run, Peak]]:
    """File, run and predicted peak of every row of the stock engine."""
    found = []
    for name, run in stock_rows(run_files):
        with suppress(ConfigError):  # images of several sizes
            found.append(
                (name, run, predict_peak(sizes_of(run.config["model"]), batch_shape_of(run)))
            )
    return found


def fragmentation(run: Run, peak: Peak) -> float | None:
    """As a share of what is not weights; None where that is too little to tell."""
    besides = peak.total_bytes - peak.components["weights"]
    return (run.memory["reserved"] - peak.total_bytes) / besides if besides > 2**30 else None


def seen(rows: Iterable[tuple[str, Run, Peak]]) -> list[float]:
    shares = [fragmentation(run, peak) for _, run, peak in rows]
    return [share for share in shares if share is not None]


def test_the_spread_is_that_of_the_committed_rows_of_an_h200(peaks):
    shares = seen(row for row in peaks if row[0].startswith("h200"))
    assert len(shares) == 24
    assert pytest.approx((min(shares), max(shares)), abs=0.005) == FRAGMENTATION_SPREAD
    assert pytest.approx(median(shares), abs=0.005) == FRAGMENTATION


def test_reserved_memory_is_within_the_interval(peaks):
    """Of a process in which another engine had run before, more is reserved than can be known."""
    outside = [
        (name, label(run))
        for name, run, peak in peaks
        if not (ends := reserved_interval(peak))[0] <= run.memory["reserved"] <= ends[1]
    ]
    assert outside == [("h200-fast/w1.jsonl", "bf16-1024-1")]


def test_the_interval_holds_for_files_that_had_no_part_in_it(peaks):
    """Each file against the spread of all others: only fp32 needs less than others said, none more.

    fp32 rows, whose few large blocks leave the fewest gaps, are all in one file.
    """
    below, above, count = [], [], 0
    for left_out in sorted({name for name, _, _ in peaks}):
        shares = seen(row for row in peaks if row[0] != left_out)
        for name, run, peak in peaks:
            if name != left_out or fragmentation(run, peak) is None:
                continue
            count += 1
            low, high = reserved_interval(peak, (min(shares), max(shares)))
            below += [label(run)] if run.memory["reserved"] < low else []
            above += [label(run)] if run.memory["reserved"] > high else []
    assert (below, above, count) == (["fp32-1024-8", "fp32-1024-32"], [], 25)


def test_where_24_gib_run_out_without_the_rows_of_that_card(peaks, large):
    """Batch 16 fitted and 32 ran out of memory; from 15 to 23 is what the other files say."""
    shares = seen(row for row in peaks if not row[0].startswith("h200-8b-24gib"))
    load = batch_shape_of(next(rows("h200-8b-24gib")))
    (failed,) = [run.config["batch_size"] for run in rows("h200-8b-24gib", "oom")]
    fitted = max(run.config["batch_size"] for run in rows("h200-8b-24gib"))
    low, high = largest_batch_interval(
        large, 24 * 2**30, load, context_bytes=0, spread=(min(shares), max(shares))
    )
    assert (low, high) == (15, 23)
    assert low <= fitted <= high < failed


def test_a_card_may_give_less_than_it_is_sold_with(large, load):
    """An A10G or an L4 gives 22.0 GiB of 24e9 bytes, so that 11 images fit where 12 were said."""
    sold, given = 24e9, 22.0 * 2**30
    low, high = largest_batch_interval(large, sold, load)
    at_worst = largest_batch(
        large, given, load, context_bytes=CONTEXT_BYTES + BLOCKS_BYTES, fragmentation=0.52
    )
    assert low <= at_worst <= largest_batch(large, sold, load) <= high


@pytest.fixture
def load() -> BatchShape:
    return BatchShape(batch_size=8, visual_tokens=1024, text_tokens=17, new_tokens=128)


def test_the_peak_is_the_largest_candidate_and_its_parts_add_up(large, load):
    table, peak = candidate_peaks(large, load), predict_peak(large, load)
    assert list(table.index) == ["vision", "prefill", "decode"]
    assert peak.stage == table["total_bytes"].idxmax() == "prefill"
    assert peak.total_bytes == table["total_bytes"].max() == sum(peak.components.values())
    assert tuple(peak.components) == PARTS
    assert dict(table.loc["prefill", list(PARTS)]) == peak.components


def test_cache_and_pixels_by_hand(large, load):
    parts = predict_peak(large, load).components
    assert parts["kv_cache"] == 8 * 1041 * 147_456
    assert parts["pixels"] == 8 * 4096 * 1536 * 2
    long = candidate_peaks(large, replace(load, new_tokens=4000)).loc["decode"]
    assert long["kv_cache"] == 8 * (1041 + 3999) * 147_456


def test_newer_transformers_keeps_features_longer(large, load):
    older, newer = (
        candidate_peaks(large, replace(load, transformers=version))
        for version in ("5.17.0", "5.18")
    )
    copies = 3 * 8 * 1024 * 4096 * 2
    grown = newer["visual_features"] - older["visual_features"]
    assert grown["prefill"] == copies
    assert older.at["decode", "visual_features"] == 0
    assert grown["decode"] == copies + 8 * (4096 * 1152 + 1024 * 4096) * 2


def test_int8_halves_the_text_layers(large, load):
    bf16, int8 = (candidate_peaks(large, replace(load, precision=p)) for p in ("bf16", "int8"))
    assert (bf16 - int8).at["decode", "weights"] == large.matrix_parameters


def test_the_largest_batch_fits_and_the_next_does_not(large, load):
    memory_bytes = 40e9
    size = largest_batch(large, memory_bytes, load, context_bytes=10**9, fragmentation=0.2)
    needs = [
        reserved_bytes(predict_peak(large, replace(load, batch_size=n)), 0.2) + 10**9
        for n in (size, size + 1)
    ]
    assert needs[0] <= memory_bytes < needs[1]


def test_cards_in_a_table(large, load):
    table = batches_by_card(large, load, cards_gb=(16, 24, 40, 80))
    assert table["largest_batch"].iloc[0] == 0  # the weights alone take 17.5 GB
    assert table["peak_bytes"].isna().tolist() == [True, False, False, False]
    assert table["largest_batch"].is_monotonic_increasing
    assert (table["largest_batch_low"] <= table["largest_batch"]).all()
    assert (table["largest_batch"] <= table["largest_batch_high"]).all()
    assert (table["peak_bytes"].iloc[1:] < table["memory_gb"].iloc[1:] * 1e9).all()


def worked(work: Work, make_run: Any, make_repeat: Any, **parts: Any) -> Run:
    repeat = make_repeat(answered=2, visual_tokens=128, prompt_tokens=148, work=asdict(work))
    return make_run([repeat], batch_size=8, max_new_tokens=7, precision="bf16", **parts)


EQUAL = Work(images=2, batches=1, patches=512, patches_squared=2 * 256**2)
EQUAL += Work(prompt_tokens=148, prompt_tokens_squared=72**2 + 76**2)
EQUAL += Work(padded_tokens=152, padded_tokens_squared=2 * 76**2)


def test_the_load_of_a_run(make_run, make_repeat):
    """Two prompts of 72 and 76 tokens with 64 visual ones: a batch of 2, padded to 76."""
    environment = {"transformers": "5.17.0"}
    run = worked(EQUAL, make_run, make_repeat, environment=environment, random_weights=True)
    assert batch_shape_of(run) == BatchShape(
        batch_size=2,
        visual_tokens=64,
        text_tokens=12,
        new_tokens=7,
        precision="bf16",
        padded=True,
        random_weights=True,
        transformers="5.17.0",
    )


def test_no_load_where_the_largest_batch_is_not_known(make_run, make_repeat):
    uneven = replace(EQUAL, patches_squared=192**2 + 320**2)
    with pytest.raises(ConfigError, match="differ in size"):
        batch_shape_of(worked(uneven, make_run, make_repeat))
    with pytest.raises(ConfigError, match="cache_implementation='static'"):
        batch_shape_of(worked(EQUAL, make_run, make_repeat, cache_implementation="static"))
    with pytest.raises(ConfigError, match="answered nothing"):
        batch_shape_of(make_run(status="oom"))


def test_a_load_without_prompts_is_refused():
    with pytest.raises(ConfigError, match="batch_size must be at least 1, not 0"):
        BatchShape(batch_size=0, visual_tokens=64, text_tokens=9, new_tokens=1)
