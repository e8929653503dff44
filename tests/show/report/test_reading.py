"""What makes a report readable: marked rows, words, folds, pictures with words, Chinese."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
from IPython.display import HTML, Image, Markdown

from qvl_lab.runs.records import Run
from qvl_lab.runs.store import Runs
from qvl_lab.show.report import sections
from qvl_lab.show.report.commands import in_lines, run_command
from qvl_lab.show.report.review import review
from qvl_lab.show.report.sections.provenance import facts

PRICE = {"per_hour": 36.0, "currency": "CNY"}


def text(parts: Any) -> str:
    return "\n".join(part.data for part in parts if isinstance(part, Markdown | HTML))


def table_rows(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    return [re.findall(r"<td>(.*?)</td>", row) for row in rows if "<td>" in row]


@pytest.fixture
def many(on_cpu) -> list[Run]:
    """Fifteen settings, today's the dearest of all."""
    return [on_cpu(n, 20.0 / n) for n in range(1, 16)]


def test_todays_and_the_recommended_row_are_marked_and_never_left_out(many):
    page = review(Runs(many), **PRICE)
    short, whole = text(sections.settings(page)).split("<details>")
    listed = [row[0] for row in table_rows(short)]
    assert listed[0] == "fp32 · 256 px · batch 15 (recommended)"
    assert listed[-1] == "fp32 · 256 px · batch 1 (today)" and len(listed) == 13
    assert "The cheapest measured settings: 12 of 15" in short
    assert "<summary>Measured settings, all of them: 15</summary>" in whole
    assert len(table_rows(whole)) == 15


def test_settings_below_the_limit_on_quality_are_marked(on_cpu):
    def scored(batch: int, wall_s: float, right: int, **parts: Any) -> Run:
        values = [1.0] * right + [0.0] * (40 - right)
        told = {"colour": {"metric": "exact_match", "values": values, "unparsed": 0}}
        return on_cpu(batch, wall_s, scores=told, random_weights=False, **parts)

    runs = [scored(1, 10.0, 40), scored(4, 4.0, 40), scored(4, 2.0, 10, resolution=128)]
    page = review(Runs(runs), **PRICE, current={"batch_size": 1})
    rows = table_rows(text(sections.settings(page)))
    assert [row[0] for row in rows] == [
        "fp32 · 128 px · batch 4 (quality too low)",
        "fp32 · 256 px · batch 4 (recommended)",
        "fp32 · 256 px · batch 1 (today)",
    ]


def test_an_agreement_is_not_called_quality_in_the_tables(on_cpu):
    def answered(batch: int, wall_s: float, *texts: str) -> Run:
        rows = [
            {"id": f"{i}", "task": "read", "question": "?", "expected": None, "answer": said}
            for i, said in enumerate(texts)
        ]
        return on_cpu(batch, wall_s, answers=rows, random_weights=False)

    said = text(sections.headline(review(Runs([answered(1, 9.0, *"ab"), answered(4, 4.0, *"ab")]))))
    assert "<th>agreement</th>" in said and "<th>quality</th>" not in said


def test_fields_of_today_that_were_not_named_are_told(on_cpu):
    runs = [on_cpu(1, 10.0), on_cpu(1, 5.0, resolution=128), on_cpu(4, 4.0)]
    said = text(sections.headline(review(Runs(runs), **PRICE, current={"batch_size": 1})))
    assert "Today's setting is the one that was named. Not named: resolution;" in said
    whole = review(Runs(runs), **PRICE, current={"batch_size": 1, "resolution": 256})
    assert "Not named" not in text(sections.headline(whole))


def test_a_value_and_its_bounds_have_the_same_digits(on_cpu):
    page = review(Runs([on_cpu(1, 1.8), on_cpu(4, 4.0)]), **PRICE)
    row = page.frame.iloc[0].copy()
    row[[page.cost, f"{page.cost}_low", f"{page.cost}_high"]] = 0.18, 0.088, 0.46
    assert page.cost_interval(row) == "¥0.09 – ¥0.46"


def test_a_size_is_not_broken_from_its_unit(on_cpu):
    rows = table_rows(text(sections.headline(review(Runs([on_cpu()]), **PRICE))))
    assert rows[0][-1] == "1.00\u00a0GiB"


def test_a_long_command_is_broken_before_its_options_alone(on_cpu):
    fast = {"engine": "fast", "prefill_chunk": 512, "prefix_cache": True, "model": "my model"}
    runs = [on_cpu(1, model="my model"), on_cpu(4, 4.0, **fast)]
    page = review(Runs(runs), **PRICE)
    command = run_command(page.recommendation.best)
    lines = in_lines(command).split(" \\\n")
    assert len(lines) > 1 and all(len(line) <= 76 for line in lines)
    assert all(line.startswith("  --") for line in lines[1:])
    assert shlex.split(" ".join(lines)) == shlex.split(command)
    assert in_lines(command) in text(sections.headline(page))


# ---- precision


def measured_at(on_cpu, precision: str, side: int, right: int) -> Run:
    values = [1.0] * right + [0.0] * (40 - right)
    told = {"colour": {"metric": "exact_match", "values": values, "unparsed": 0}}
    wall_s = 10.0 if precision == "fp32" else 8.0
    return on_cpu(
        1, wall_s, precision=precision, resolution=side, scores=told, random_weights=False
    )


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_precisions_that_change_nothing_beyond_noise_are_one_sentence(on_cpu, lang):
    runs = [
        measured_at(on_cpu, precision, side, 40 - (precision == "bf16" and side == 256))
        for precision in ("fp32", "bf16")
        for side in (128, 256)
    ]
    shown = sections.quality(review(Runs(runs), **PRICE, lang=lang))
    assert sum(isinstance(part, Image) for part in shown) == 2
    said = {
        "en": "Lower precision (bf16 against fp32) changed quality by −2.5 to ±0.0 points in 2 "
        "comparisons, none of them beyond noise (least p = 1).",
        "zh": "降低精度（bf16，相对 fp32）使质量变化 −2.5 至 ±0.0 个百分点，共 2 组比较，均在噪声"
        "范围内（最小 p = 1）。",
    }
    assert said[lang] in text(shown)


def test_a_precision_that_loses_answers_has_its_figure(on_cpu):
    runs = [measured_at(on_cpu, "fp32", 256, 40), measured_at(on_cpu, "bf16", 256, 20)]
    shown = sections.quality(review(Runs(runs), **PRICE))
    assert isinstance(shown[-1], Image) and "beyond noise" not in text(shown)


# ---- pictures


@pytest.mark.slow
def test_every_picture_says_what_it_shows(many):
    page = review(Runs(many), **PRICE)
    pictures = [p for name in sections.SECTIONS for p in name(page) if isinstance(p, Image)]
    assert len(pictures) > 4 and all(len(picture.alt) > 15 for picture in pictures)
    (waterfall,) = [p for p in sections.waterfall(page) if isinstance(p, Image)]
    assert waterfall.alt.startswith("From today's setting to the recommended one: −93%; percent: ")


# ---- Chinese


def test_chinese_provenance_is_chinese(on_cpu):
    runs = Runs([on_cpu(), on_cpu(4, 4.0)])
    found = facts(review(runs, gpu="A10G", provider="article", lang="zh"))
    assert found["prov_price"] == "48 CNY/小时：A10G，文章，按需，无日期"
    assert found["prov_source"].startswith("本项目所依据的文章；")
    converted = review(
        Runs([on_cpu()]),
        gpu="A10G",
        provider="aws",
        currency="CNY",
        exchange_rates={"USD": 7.0},
        lang="zh",
    )
    assert facts(converted)["prov_rate"].startswith("1 USD = 7 CNY（")
    assert ", " not in found["prov_software"]


def test_the_chinese_title_has_no_brackets_within_brackets(on_cpu):
    title = text(sections.headline(review(Runs([on_cpu()]), **PRICE, lang="zh"))).split("\n")[0]
    assert re.fullmatch(r"# Qwen3-VL 成本评审：[^（）]+（CPU [^（）]+）", title)
