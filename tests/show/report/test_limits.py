"""The report's section about the device's limit."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from IPython.display import HTML, Image, Markdown

from qvl_lab.errors import ConfigError, InputError
from qvl_lab.hardware import cpu_label, fingerprint
from qvl_lab.models.load import read_architecture
from qvl_lab.probe.ceilings import save_ceilings
from qvl_lab.runs.records import Run, Work
from qvl_lab.runs.store import Runs
from qvl_lab.show.report import sections
from qvl_lab.show.report.review import review
from qvl_lab.show.report.sections.limits import beside
from qvl_lab.show.report.sections.provenance import facts

PRICE = {"per_hour": 36.0, "currency": "CNY"}
CPU = {
    "device": cpu_label(fingerprint()),
    "flops_per_s": {"fp32": 1e11},
    "bytes_per_s": 2e10,
    "launch_s": 3e-6,
}
WORK = Work(
    images=10, batches=10, patches=640, patches_squared=40960, prompt_tokens=300,
    prompt_tokens_squared=9000, padded_tokens=300, padded_tokens_squared=9000, decode_steps=40,
    decode_rows=40, context_tokens=1300,
)  # fmt: skip
STAGES = {"preprocess": 2.0, "vision": 4.0, "prefill": 1.0, "decode": 2.0, "other": 1.0}


@pytest.fixture
def measured(on_cpu, make_repeat) -> Callable[..., Run]:
    """A run of ten images in ten seconds, and what there was to compute."""

    def make(batch_size: int = 1, wall_s: float = 10.0, **parts: Any) -> Run:
        stages = {name: s * wall_s / 10 for name, s in STAGES.items()}
        inner = {"vision/merger": wall_s / 20, "decode/sampling": wall_s / 50}
        repeat = make_repeat(wall_s, stages_s=stages, parts_s=inner, work=vars(WORK))
        known = {"repeats": [repeat] * 3, "architecture": read_architecture("tiny").to_dict()}
        return on_cpu(batch_size, **(known | parts))

    return make


def section(page: Any) -> tuple[str, list[str], int]:
    """The section's words, the cells of its tables, and how many pictures it has."""
    shown = sections.limits(page)
    words = "\n".join(part.data for part in shown if isinstance(part, Markdown))
    tables = "\n".join(part.data for part in shown if isinstance(part, HTML))
    return words, re.findall(r"<td>(.*?)</td>", tables), sum(isinstance(p, Image) for p in shown)


@pytest.mark.slow
def test_each_stage_stands_beside_its_least_time(measured, runs_file):
    path = runs_file(measured(1), measured(4, 5.0))
    save_ceilings(CPU, beside(path))
    words, cells, pictures = section(review(path, **PRICE))
    assert pictures == 2  # today's and the recommended setting
    assert "The device does at most 0.10 TFLOP/s in fp32 and 0.020 TB/s: measured on CPU: " in words
    assert "runs.ceilings.json. Seconds are of one pass over 10 images." in words
    assert "Today" in words and "Recommended" in words
    assert "Batch 4 was measured with the same settings" in words
    assert "(measured: 2.0x the images per second)" in words
    row = cells[cells.index("vision encoder") :][:7]
    assert row[1:3] == ["4.00", "40.0%"]
    assert row[4] and float(row[4]) > 1 and row[5] in ("compute", "bandwidth")
    assert "– mergers" in cells and "– sampling" in cells
    chinese, cells, _ = section(review(path, lang="zh", **PRICE))
    assert "离极限有多远" in chinese and "视觉编码" in cells
    assert "上实测，见 runs.ceilings.json" in chinese and "measured on" not in chinese


def test_a_stage_that_passes_the_ceiling_is_at_it(measured, runs_file):
    path = runs_file(measured())
    save_ceilings(CPU | {"flops_per_s": {"fp32": 1e3}, "bytes_per_s": 1e3}, beside(path))
    words, cells, _ = section(review(path, **PRICE))
    said = re.findall(r"limit on (\S+) is raised to what a stage reached here: (.+?)\.", words)
    assert [figure for figure, _ in said] == ["TFLOP/s", "TB/s"]
    for _, stage in said:
        place = next(n for n, cell in enumerate(cells) if cell.removeprefix("– ") == stage)
        assert cells[place + 6] == "at the ceiling"
    assert not any(re.fullmatch(r"\d{3,}%", cell) for cell in cells)
    save_ceilings(CPU, beside(path))
    assert "raised" not in section(review(path, **PRICE))[0]


def test_the_ceilings_of_each_precision_are_among_the_sources(measured, runs_file):
    path = runs_file(
        measured(), measured(precision="bf16", resolved={"device": "cpu", "precision": "bf16"})
    )
    save_ceilings(CPU, beside(path))
    said = facts(review(path, **PRICE))
    assert "0.10 TFLOP/s in fp32" in said["prov_ceilings"]
    assert "at most in bf16 is not known" in said["prov_ceilings"]
    assert said["prov_pixels"].startswith(
        "today 0.016 megapixels an image"
    )  # 64 patches of 16 x 16


def test_without_ceilings_no_limit_is_made_up(measured, runs_file):
    words, cells, pictures = section(review(runs_file(measured()), **PRICE))
    assert "qvl-lab doctor --ceilings" in words
    assert pictures == 1
    row = cells[cells.index("vision encoder") :][:7]
    assert row == ["vision encoder", "4.00", "40.0%", "", "", "", ""]


def test_the_table_of_gpus_is_used_where_nothing_was_measured(measured, runs_file):
    resolved = {"device": "cuda", "precision": "bf16"}
    run = measured(precision="bf16", resolved=resolved, environment={"gpu": "NVIDIA H200"})
    words, cells, _ = section(review(runs_file(run), **PRICE))
    assert "989 TFLOP/s in bf16 and 4.80 TB/s: from the table of GPUs, " in words
    assert "data sheet" in words
    assert cells[cells.index("vision encoder") + 5] in ("compute", "bandwidth")


def test_on_a_gpu_the_largest_batch_of_each_card_is_told(measured, runs_file):
    gpu = {"resolved": {"device": "cuda", "precision": "bf16"}, "precision": "bf16"}
    run = measured(environment={"gpu": "NVIDIA H200"}, **gpu)
    shown = sections.feasible(review(runs_file(run), **PRICE))
    (table,) = (part.data for part in shown if isinstance(part, HTML))
    assert re.findall(r"<th>(.*?)</th>", table) == ["setting", "24 GB", "40 GB", "80 GB"]
    told = [cell.replace(",", "") for cell in re.findall(r"<td>(.*?)</td>", table)[1:]]
    ends = [re.fullmatch(r"(\d+) \((\d+)–(\d+)\)", cell).groups() for cell in told]
    assert all(int(low) < int(size) < int(high) for size, low, high in ends)
    sizes = [int(size) for size, _, _ in ends]
    assert re.findall(r"<td>(.*?)</td>", table)[0] == "bf16 · 256 px"  # the batch is the answer
    assert sizes == sorted(sizes) and sizes[0] > 100  # a model of 15 MB
    uneven = measured(environment={"gpu": "NVIDIA H200"}, **gpu)
    uneven.repeats[0].work["patches_squared"] += 1
    assert len(sections.feasible(review(runs_file(uneven), **PRICE))) == len(shown) - 2
    assert not any(
        isinstance(p, HTML) for p in sections.feasible(review(Runs([measured()]), **PRICE))
    )


def test_ceilings_of_another_device_are_refused_if_named_and_ignored_if_not(measured, runs_file):
    path = runs_file(measured())
    save_ceilings(CPU | {"device": "NVIDIA H200"}, beside(path))
    assert "is not known" in section(review(path, **PRICE))[0]
    with pytest.raises(ConfigError, match="the ceilings of NVIDIA H200, and the runs are of CPU: "):
        review(path, ceilings=beside(path), **PRICE)
    with pytest.raises(InputError, match="cannot read"):
        review(path, ceilings="none.json", **PRICE)


def test_older_runs_say_that_they_must_be_measured_again(on_cpu):
    words, cells, pictures = section(review(Runs([on_cpu()]), **PRICE))
    assert "measure it again" in words
    assert (cells, pictures) == ([], 0)


def test_nothing_measured_has_no_section(on_cpu):
    assert sections.limits(review(Runs([on_cpu(status="oom", reason="full")]), **PRICE)) == []
