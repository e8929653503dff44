"""The content of a cost review: its sentences and tables against numbers worked out by hand."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from IPython.display import HTML, Image, Markdown
from typer.testing import CliRunner

from qvl_lab.analysis.stats.intervals import compare
from qvl_lab.claims import claim
from qvl_lab.errors import ConfigError, LimitError, QvlError, StoreError, UnknownNameError
from qvl_lab.hardware import fingerprint
from qvl_lab.runs.records import Run
from qvl_lab.runs.store import Runs
from qvl_lab.show import plots
from qvl_lab.show.quantities import points
from qvl_lab.show.report import render as report
from qvl_lab.show.report import sections
from qvl_lab.show.report.commands import report_command, run_command
from qvl_lab.show.report.context import ReportContext
from qvl_lab.show.report.review import review
from qvl_lab.show.report.sections.first_page import first_line
from qvl_lab.show.report.sections.provenance import facts
from qvl_lab.show.report.sections.quality import quality_sentences
from qvl_lab.tasks import article_resolutions

#: At this price a second costs a cent, so ten images in 10 s make 1 yuan per 100 images.
CENT_A_SECOND = {"per_hour": 36.0, "currency": "CNY"}


@pytest.fixture
def grid(on_cpu) -> list[Run]:
    """10 s one by one, 4 s in batches of four; at 128 pixels 2 s."""
    return [
        on_cpu(1, 10.0),
        on_cpu(4, 4.0),
        on_cpu(4, 2.0, resolution=128),
        on_cpu(1, 9.0, precision="bf16"),
    ]


def text(parts: Any) -> str:
    """Everything that a page's section says, markup and all."""
    shown = parts if isinstance(parts, list) else [parts]
    return "\n".join(part.data for part in shown if isinstance(part, Markdown | HTML))


def whole(page: ReportContext) -> str:
    return "\n".join(text(section(page)) for section in sections.SECTIONS)


def cells(page: str) -> list[str]:
    return re.findall(r"<td>(.*?)</td>", page)


# ---- the first page


def test_the_headline_has_costs_saving_and_interval(grid):
    page = review(Runs(grid), **CENT_A_SECOND)
    headline = text(sections.headline(page)).split("\n\n")[1]
    assert headline.startswith(
        "## ¥1.00 per 100 images today, ¥0.40 with fp32 · 256 px · batch 4: 60% less ("
    )
    low, high = map(int, re.search(r"\((\d+)% to (\d+)%\)", headline).groups())
    assert 55 <= low < 60 < high <= 65


def test_the_first_page_compares_today_recommended_and_cheapest(grid):
    page = text(sections.headline(review(Runs(grid), **CENT_A_SECOND, monthly_images=50_000)))
    rows = [row for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL) if "<td>" in row]
    today, best, cheapest = (cells(row) for row in rows)
    assert [today[0], best[0], cheapest[0]] == ["Today", "Recommended", "Cheapest of all"]
    assert [today[2], best[2], cheapest[2]] == ["¥1.00", "¥0.40", "¥0.20"]
    assert [today[4], best[4], cheapest[4]] == ["-", "−60%", "−80%"]
    assert [today[5], best[5], cheapest[5]] == ["1.00", "2.50", "5.00"]  # images a second
    assert "At 50,000 images a month that is ¥500 today and ¥200 with" in page
    assert "With fp32 · 128 px · batch 4 it would be ¥0.20 (−80% against today)" in page
    assert "The weights are random" in page
    assert "medians of 3 timed passes" in page


def test_utilisation_and_exchange_rates_go_into_the_cost(grid):
    half = review(Runs(grid), **CENT_A_SECOND, utilisation=0.5)
    assert half.cost_of(half.recommendation.current) == "¥2.00"
    page = review(
        Runs(grid), gpu="A10G", provider="aws", currency="CNY", exchange_rates={"USD": 10.0}
    )
    assert page.recommendation.current[page.cost] == pytest.approx(100 * 1.006 * 10 / 3600)
    assert "1 USD = 10 CNY" in text(sections.provenance(page))
    assert "50% of the paid time" in text(sections.provenance(half))


def test_todays_setting_can_be_named(grid, on_cpu):
    runs = Runs([*grid, on_cpu(4, 3.0, precision="bf16")])
    page = review(runs, **CENT_A_SECOND, current={"batch_size": 1, "precision": "bf16"})
    assert "## ¥0.90 per 100 images today, ¥0.30" in text(sections.headline(page))


def test_a_single_repeat_gives_no_interval(on_cpu):
    page = review(Runs([on_cpu(1, [10.0]), on_cpu(4, [4.0])]), **CENT_A_SECOND)
    said = text(sections.headline(page))
    assert "60% less, from a single repeat, so without an interval" in said
    assert "one timed pass after a warm-up, over 10 items with today's setting and 10" in said
    assert "95% intervals" not in said


def test_a_difference_within_noise_is_called_noise(on_cpu):
    noisy = [on_cpu(1, [9.0, 10.0, 11.0]), on_cpu(4, [8.5, 9.9, 11.0])]
    headline = text(sections.headline(review(Runs(noisy), **CENT_A_SECOND)))
    assert "is within noise" in headline
    assert "% less" not in headline


def test_where_nothing_is_cheaper_that_is_said(on_cpu):
    page = review(Runs([on_cpu(1, 4.0), on_cpu(4, 10.0)]), **CENT_A_SECOND)
    said = text(sections.headline(page))
    assert "¥0.40 per 100 images today, and no measured setting is cheaper." in said
    rows = [row for row in re.findall(r"<tr>(.*?)</tr>", said, re.DOTALL) if "<td>" in row]
    assert [cells(row)[0] for row in rows] == ["Today and recommended"]
    month = text(sections.headline(replace(page, options=replace(page.options, monthly_images=99))))
    assert "At 99 images a month that is ¥0.40, billed by use." in month  # once: no other setting
    assert "each over 10 items." in said and "saving" not in said
    for section in (sections.waterfall, sections.article):
        assert not any(isinstance(part, Image) for part in section(page))
    assert "no steps to show" in text(sections.waterfall(page))
    assert "today's setting, which is the recommended one" in text(sections.article(page))


def test_why_todays_setting_stays_is_said(on_cpu):
    fewer_pixels = Runs([on_cpu(1, 4.0), on_cpu(1, 2.0, resolution=128)])
    said = text(sections.headline(review(fewer_pixels, **CENT_A_SECOND)))
    assert "at this resolution and precision no measured setting is cheaper. Others are," in said
    assert "With fp32 · 128 px · batch 1 it would be ¥0.20 (−50% against today)" in said
    large = Runs([on_cpu(1, 4.0), on_cpu(4, 2.0)])
    said = text(sections.headline(review(large, max_vram_gib=2.0, **CENT_A_SECOND)))
    assert "no measured setting that keeps the limits is cheaper" in said


def test_how_today_was_chosen_is_said(grid):
    assert "Today's setting was not named" in text(sections.headline(review(Runs(grid))))
    named = text(sections.headline(review(Runs(grid), current={"batch_size": 4})))
    assert "Today's setting is the one that was named." in named


def test_real_weights_are_told_to_compare_answers(on_cpu):
    page = review(Runs([on_cpu(1, random_weights=False)]), **CENT_A_SECOND)
    assert "compare answers on your own images" in text(sections.headline(page))
    assert "random" not in text(sections.headline(page))


def test_chinese_has_the_same_numbers(grid):
    page = text(sections.headline(review(Runs(grid), **CENT_A_SECOND, lang="zh")))
    assert "当前每 100 张图 ¥1.00；改用 fp32·256 px·批量 4 后为 ¥0.40，节省 60%" in page
    for english in ("Today", "recommended", "images a month"):
        assert english not in page


# ---- prices


def test_a_price_of_another_gpu_than_the_measured_is_warned_of(grid, on_cpu):
    cpu = text(sections.headline(review(Runs(grid), gpu="H100", provider="aws")))
    assert "⚠ The seconds were measured on CPU" in cpu
    assert "the price is that of H100" in cpu
    here = fingerprint() | {"gpu": "NVIDIA H100 80GB HBM3"}
    gpu = {"environment": here, "resolved": {"device": "cuda", "precision": "fp32"}}
    measured = Runs([on_cpu(1, **gpu), on_cpu(4, 4.0, **gpu)])
    assert "⚠" not in text(sections.headline(review(measured, gpu="H100", provider="aws")))
    assert "that of A10G" in text(sections.headline(review(measured, gpu="A10G")))


def test_a_cpu_run_on_a_machine_with_the_priced_gpu_is_warned_of_too(on_cpu):
    here = fingerprint() | {"gpu": "NVIDIA H100 80GB HBM3"}
    page = review(Runs([on_cpu(environment=here)]), gpu="H100", provider="aws")
    assert "⚠ The seconds were measured on CPU" in text(sections.headline(page))


def test_a_price_of_ones_own_for_the_machine_is_not_warned_of(grid):
    assert "⚠" not in text(sections.headline(review(Runs(grid), per_hour=3.5)))
    assert "⚠" in text(sections.headline(review(Runs(grid), per_hour=3.5, gpu="A10G")))


def test_without_a_gpu_what_was_measured_is_priced(grid, on_cpu):
    assert review(Runs(grid)).frame.attrs["price"]["gpu"] == f"{fingerprint()['cpu_count']} vCPU"
    here = fingerprint() | {"gpu": "NVIDIA H100 80GB HBM3"}
    on_gpu = on_cpu(environment=here, resolved={"device": "cuda:0", "precision": "fp32"})
    assert review(Runs([on_gpu])).frame.attrs["price"]["gpu"] == "H100"


# ---- evidence


@pytest.mark.slow
def test_every_section_has_its_figure(grid):
    page = review(Runs(grid), **CENT_A_SECOND)
    drawn = ("waterfall", "tradeoff", "curves", "feasible", "stages")
    for name in drawn:
        pictures = [part for part in getattr(sections, name)(page) if isinstance(part, Image)]
        assert len(pictures) == (2 if name == "stages" else 1)  # in seconds and in shares
        assert all(picture.data.startswith(b"\x89PNG") for picture in pictures)
    assert "¥" in text(sections.article(page))


def test_the_article_is_compared_in_its_own_price(grid):
    said = text(sections.article(review(Runs(grid), **CENT_A_SECOND)))
    assert "100 s per 100 images today, 40.0 s with" in said
    assert "would be ¥1.33 and ¥0.53" in said  # 0.8 / 60 a second


def test_the_articles_split_stands_beside_the_measured_shares(on_cpu, make_repeat):
    stages = {"preprocess": 1.0, "vision": 4.0, "prefill": 2.0, "decode": 2.95, "other": 0.05}
    marked = make_repeat(10.0, stages_s=stages, parts_s={"vision/merger": 0.5})
    whole_tower = make_repeat(5.0, stages_s={name: s / 2 for name, s in stages.items()})
    runs = [on_cpu(1, repeats=[marked]), on_cpu(4, repeats=[whole_tower], engine="fast")]
    (split,) = table_rows(text(sections.article(review(Runs(runs), **CENT_A_SECOND))))
    shares = [
        claim(f"{name}_share").written for name in ("image_encoder", "text_encoder", "fusion")
    ]
    assert split == [
        ["the article", "computation", *shares, "-", "-"],
        ["fp32 · 256 px · batch 1", "time", "35%", "20%", "5%", "30%", "10%"],
        [
            *("fp32 · 256 px · batch 4 · fast engine", "time"),
            *("40%", "20%", "in the image encoder", "30%", "10%"),
        ],
    ]


def test_the_articles_split_is_quoted_as_it_stands(grid):
    said = text(sections.article(review(Runs(grid), **CENT_A_SECOND)))
    assert "an image encoder (60–70%), a text encoder (20–30%) and fusion (10–20%)" in said
    assert "20–30%), decoding" not in said and "does not mention decoding" in said
    assert "“Qwen3-VL多模态开发秘籍:5个技巧提升云端GPU利用率” (2026-02-01)" in said


def test_one_batch_size_is_drawn_over_resolution(on_cpu):
    sides = [on_cpu(4, 4.0), on_cpu(4, 2.0, resolution=128)]
    shown = sections.curves(review(Runs(sides), **CENT_A_SECOND))
    assert "over resolution" in text(shown) and isinstance(shown[-1], Image)
    alone = sections.curves(review(Runs(sides[:1]), **CENT_A_SECOND))
    assert "there is no curve to draw" in text(alone)
    assert not any(isinstance(part, Image) for part in alone)


def test_the_stages_of_all_settings_are_drawn_if_they_are_few(grid, on_cpu, monkeypatch):
    drawn = []
    stages = plots.stages

    def seen(rows, **options):
        drawn.append(list(zip(rows["resolution"], rows["batch_size"], strict=True)))
        return stages(rows, **options)

    monkeypatch.setattr(plots, "stages", seen)
    sections.stages(review(Runs(grid), **CENT_A_SECOND))
    assert drawn[0] == drawn[1] == [("256", 1), ("128", 4), ("256", 1), ("256", 4)]  # bf16 first
    many = [*grid, *(on_cpu(size, 20.0) for size in (2, 3, 5))]
    sections.stages(review(Runs(many), **CENT_A_SECOND))
    assert drawn[2] == [("256", 1), ("256", 4)]  # today's and the recommended
    assert len(sections.stages(review(Runs(grid[:1]), **CENT_A_SECOND))) == 2  # no shares of one


def test_the_table_lists_the_cheapest_first(grid):
    page = text(sections.settings(review(Runs(grid), **CENT_A_SECOND)))
    assert "The cheapest measured settings: 4 of 4" in page
    rows = [row for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL) if "<td>" in row]
    assert [cells(row)[1] for row in rows] == ["¥0.20", "¥0.40", "¥0.90", "¥1.00"]


def test_limits_rule_settings_out_and_say_how_many(grid):
    page = review(Runs(grid), **CENT_A_SECOND, max_vram_gib=2.0)
    assert page.recommendation.best["batch_size"] == 1
    assert "settings over the memory limit: 2" in text(sections.waterfall(page))


def test_what_was_not_measured_is_listed_with_reasons(grid, on_cpu):
    more = [
        on_cpu(8, status="oom", reason="batch of 8: out of memory"),
        on_cpu(16, status="skipped", reason="a smaller setting ran out of memory"),
        on_cpu(2, status="error", reason="the model failed: ValueError"),
    ]
    page = text(sections.settings(review(Runs([*grid, *more]), **CENT_A_SECOND)))
    assert (
        "Settings without a number: out of memory: 1; skipped because a smaller one ran out of "
        "memory: 1; failed: 1." in page
    )
    assert "batch of 8: out of memory" in page
    assert "the model failed: ValueError" in page
    assert "fp32 · 256 px · batch 8" in page


def test_items_without_an_answer_are_counted(on_cpu, make_repeat):
    run = on_cpu(1, repeats=[make_repeat(10.0, answered=8, failed=2)] * 2)
    assert "could not be used or got no answer, at most in one setting: 2" in text(
        sections.settings(review(Runs([run]), **CENT_A_SECOND))
    )


def test_where_every_setting_ran_out_of_memory_the_page_still_says_what_happened(on_cpu):
    page = review(
        Runs(
            [
                on_cpu(1, status="oom", reason="batch of 1: out of memory"),
                on_cpu(4, status="skipped", reason="a smaller setting ran out of memory"),
            ]
        ),
        **CENT_A_SECOND,
    )
    assert page.recommendation is None
    assert "No setting was measured to the end" in text(sections.headline(page))
    said = whole(page)
    assert "batch of 1: out of memory" in said
    assert "¥" not in said


# ---- quality


def forty(right: int, *more: float | None) -> list[float | None]:
    """Scores of forty items, so many of them right."""
    return [1.0] * right + [0.0] * (40 - right - len(more)) + list(more)


@pytest.fixture
def scored(on_cpu, make_repeat) -> Callable[..., Run]:
    """A run of trained weights with scores by task; finer resolutions have more visual tokens."""

    def make(
        batch_size: int,
        wall_s: float,
        scores: dict[str, list[float | None]],
        unparsed: int = 0,
        **parts: Any,
    ) -> Run:
        told = {
            task: {"metric": "exact_match", "values": values, "unparsed": unparsed}
            for task, values in scores.items()
        }
        side = parts.setdefault("resolution", 256)
        tokens = {"visual_tokens": 400 if side == "by_task" else side}
        parts["repeats"] = [make_repeat(wall_s * f, **tokens) for f in (0.99, 1, 1.01)]
        return on_cpu(batch_size, scores=told, random_weights=False, **parts)

    return make


def quality_of(*runs: Run, lang: str = "en", **options: Any) -> str:
    page = review(Runs(runs), **CENT_A_SECOND, lang=lang, **options)
    return "\n".join(quality_sentences(page, page.recommendation))


TODAY = {"read_small": forty(36), "colour": forty(40)}


def test_a_difference_within_noise_is_said_with_its_interval(scored):
    best = {"read_small": forty(35), "colour": forty(40)}
    runs = scored(1, 10.0, TODAY), scored(4, 4.0, best)
    pair = compare(list(TODAY.values()), list(best.values()))
    low, high = points(pair.low), points(pair.high)
    assert (points(pair.difference), pair.p_value) == ("−1.2", 1.0)
    loose = {"max_quality_loss": 0.1}
    assert quality_of(*runs, **loose) == (
        f"Quality: 0.94 against 0.95 today: the difference of −1.2 points ({low} to {high}) is "
        "within noise (p = 1; mean score over the tasks, 80 answers compared with the true ones).\n"
        "What it gives up: read, small print 0.90 → 0.88."
    )
    assert quality_of(*runs, lang="zh", **loose) == (
        f"质量：0.94，当前 0.95：相差 −1.2 个百分点（{low} 至 {high}），在噪声范围内（p = 1；"
        "各任务得分的平均，80 个答案与标准答案比较）。\n损失所在：小字编号 0.90 → 0.88。"
    )


def test_a_difference_beyond_noise_is_said_with_what_it_costs_each_task(scored):
    best = {"read_small": forty(16), "colour": forty(30)}
    runs = scored(1, 10.0, TODAY), scored(4, 4.0, best)
    pair = compare(list(TODAY.values()), list(best.values()))
    low, high = points(pair.low), points(pair.high)
    said = quality_of(*runs, min_quality=0.5)
    assert said.startswith(
        f"Quality: 0.57 against 0.95 today: −37.5 points ({low} to {high}; p = {pair.p_value:.2g}; "
    )
    assert "noise" not in said
    assert "What it gives up: read, small print 0.90 → 0.40, colour 1.00 → 0.75." in said
    chinese = quality_of(*runs, min_quality=0.5, lang="zh")
    assert f"质量：0.57，当前 0.95：−37.5 个百分点（{low} 至 {high}；p = " in chinese
    assert "损失所在：小字编号 0.90 → 0.40、颜色 1.00 → 0.75。" in chinese


def test_a_gain_has_its_sign_and_gives_nothing_up(scored):
    said = quality_of(scored(1, 10.0, {"colour": forty(30)}), scored(4, 4.0, {"colour": forty(40)}))
    assert "Quality: 1.00 against 0.75 today: +25.0 points (+" in said
    assert "gives up" not in said


def test_todays_setting_has_its_quality_alone(scored):
    run = scored(1, 4.0, TODAY)
    kind = "mean score over the tasks, 80 answers compared with the true ones"
    assert quality_of(run) == f"Quality: 0.95 ({kind})."
    assert quality_of(run, lang="zh").startswith("质量：0.95（各任务得分的平均，80 个答案")


def test_what_was_not_scored_is_counted(scored):
    run = scored(1, 4.0, {"locate": forty(20, None, None)}, unparsed=3)
    assert quality_of(run).splitlines()[1] == ("Scored as wrong: items without an answer (2).")
    assert quality_of(run).splitlines()[2] == (
        "Scored as wrong: answers from which no box could be read (3)."
    )
    assert "没有得到答案的请求（2 个）" in quality_of(run, lang="zh")
    assert "box" not in quality_of(scored(1, 4.0, {"locate": forty(20, None, None)}))


def test_both_qualities_are_told_where_wording_makes_a_difference(scored):
    read = {"metric": "exact_match", "values": [0.5] * 40, "unparsed": 0}
    same, other = (read | {"normalised": [value] * 40} for value in (0.5, 0.75))
    assert "however they are written" not in quality_of(with_scores(scored, {"read": same}))
    told = quality_of(with_scores(scored, {"read": other}))
    assert "however they are written, quality is 0.75 today and 0.75 recommended; limits" in told
    boxes = other | {"metric": "box_accuracy", "fractions": 3, "pixels": 1}
    assert "in pixels: 4 answers." in quality_of(with_scores(scored, {"locate": boxes}))
    assert "不计写法" in quality_of(with_scores(scored, {"read": other}), lang="zh")


def with_scores(scored: Callable[..., Run], told: dict[str, Any]) -> Run:
    return replace(scored(1, 4.0, {"read": [0.5] * 40}), scores=told)


def test_random_and_unscored_answers_are_not_called_quality(grid, scored):
    assert "The weights are random" in quality_of(*grid)
    assert "权重为随机初始化" in quality_of(*grid, lang="zh")
    assert "compare answers on your own images" in quality_of(scored(1, 4.0, {}))
    assert "请先用自己的图片比较答案" in quality_of(scored(1, 4.0, {}), lang="zh")


def test_an_agreement_is_called_one(scored):
    def answered(batch_size: int, wall_s: float, *texts: str) -> Run:
        rows = [
            {"id": f"{i}", "task": "read", "question": "?", "expected": None, "answer": text}
            for i, text in enumerate(texts)
        ]
        return scored(batch_size, wall_s, {}, answers=rows)

    runs = answered(1, 10.0, *"abcd" * 10), answered(4, 4.0, *"abcx" * 10)
    said = quality_of(*runs, min_quality=0.5)
    assert "Quality: 0.75 against 1.00 today" in said
    assert "agreement of 40 answers with those of the most exact setting" in said
    assert "40 个答案与最精确配置的答案的一致程度；没有标准答案" in quality_of(
        *runs, min_quality=0.5, lang="zh"
    )


def test_the_page_says_which_settings_the_limit_ruled_out(scored):
    runs = [
        scored(1, 10.0, TODAY),
        scored(4, 4.0, TODAY),
        scored(4, 2.0, {"read_small": forty(4), "colour": forty(40)}, resolution=128),
    ]
    page = review(Runs(runs), **CENT_A_SECOND)
    assert page.recommendation.best["resolution"] == "256"
    assert "settings that lose quality, or are not shown to keep it to 0.93: 1" in text(
        sections.waterfall(page)
    )
    said = text(sections.headline(page))
    assert (
        "The cheapest setting of all, fp32 · 128 px · batch 4, would cost ¥0.20 (−80% against "
        "today), but its quality is 0.55." in said
    )
    rows = [cells(row) for row in re.findall(r"<tr>(.*?)</tr>", said, re.DOTALL)]
    assert [row[2].split(" (")[0] for row in rows if row] == ["0.95", "0.95", "0.55"]
    assert "<th>quality</th>" in said
    low = page.frame["quality_low"][0]
    assert f"0.95 ({low:.2f}–" in said


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_quality_out_of_reach_is_the_headline_with_the_best_there_is(scored, lang):
    runs = [
        scored(1, 10.0, TODAY),
        scored(4, 4.0, TODAY),
        scored(4, 2.0, {"read_small": forty(4), "colour": forty(40)}, resolution=128),
    ]
    page = review(Runs(runs), **CENT_A_SECOND, min_quality=0.99, lang=lang)
    first, rest = {
        "en": ("No measured setting reaches a quality of 0.99; the best has 0.95.", "¥1.00 per"),
        "zh": ("没有实测配置达到质量 0.99，最高为 0.95。", "当前每 100 张图 ¥1.00"),
    }[lang]
    assert text(sections.headline(page)).split("\n\n")[1].startswith(f"## {first} {rest}")
    assert (page.recommendation.best["batch_size"], page.recommendation.min_quality) == (4, 0.95)
    assert page.recommendation.best["resolution"] == "256"
    assert "--min-quality 0.99" in report_command(page)
    within = review(Runs(runs), **CENT_A_SECOND, min_quality=0.95, lang=lang)
    assert first[:10] not in first_line(within)


def test_where_other_limits_rule_out_the_best_quality_it_is_an_error(scored):
    runs = [scored(1, 10.0, TODAY), scored(4, 4.0, {"colour": forty(40)})]
    with pytest.raises(LimitError, match=r"min_quality rules out 1, max_vram_gib rules out 1"):
        review(Runs(runs[::-1]), min_quality=0.99, max_vram_gib=2)


def test_resolution_is_kept_where_todays_quality_is_not_known(scored):
    """As where only the large batches of a time-saving sweep saw all items."""
    runs = [
        scored(1, 10.0, {}, precision="bf16"),
        scored(4, 4.0, {}, precision="bf16"),
        scored(4, 2.0, TODAY, resolution=128, precision="bf16"),
    ]
    page = review(Runs(runs), **CENT_A_SECOND)
    assert page.recommendation.best["resolution"] == "256"
    assert "Quality: not measured." in text(sections.headline(page))


@pytest.mark.slow
def test_figures_of_quality_are_as_many_as_there_is_something_to_compare(scored, grid):
    def pictures(*runs: Run) -> int:
        parts = sections.quality(review(Runs(runs), **CENT_A_SECOND))
        assert all(isinstance(part, Image) for part in parts[1:])
        assert not parts or "What the answers are worth" in text(parts)
        return len(parts[1:])

    one, lower = scored(1, 10.0, TODAY), scored(1, 5.0, TODAY, resolution=128)
    assert pictures(one) == 1
    assert pictures(one, lower) == 2
    worse = {"read_small": forty(36), "colour": forty(20)}
    assert pictures(one, lower, scored(1, 4.0, worse, precision="bf16")) == 3
    assert pictures(*grid) == 0


# ---- a resolution for each task


@pytest.fixture
def sides(scored) -> list[Run]:
    """Small print needs 512 pixels, colours 128; then both tables as settings."""
    right = {128: (4, 40), 256: (20, 40), 512: (36, 39)}
    runs = [
        scored(
            1,
            side / 64,
            {"read_small": forty(small) * 2, "colour": forty(colour) * 2},
            resolution=side,
        )
        for side, (small, colour) in right.items()
    ]
    tables = (
        (article_resolutions(), 5.0, 37, 38),
        ({"read_small": 512, "colour": 128}, 4.0, 36, 40),
    )
    return runs + [
        scored(
            1,
            seconds,
            {"read_small": forty(small) * 2, "colour": forty(colour) * 2},
            resolution="by_task",
            task_resolutions=table,
        )
        for table, seconds, small, colour in tables
    ]


def table_rows(page: str) -> list[list[list[str]]]:
    """The rows of each table on a page."""
    tables = re.findall(r"<tbody>(.*?)</tbody>", page, re.DOTALL)
    return [[cells(r) for r in re.findall(r"<tr>(.*?)</tr>", t, re.DOTALL)] for t in tables]


def without_intervals(row: list[str]) -> list[str]:
    return [re.sub(r" \(.*–.*\)$", "", cell) for cell in row]


def test_each_task_has_its_resolution_beside_the_articles(sides):
    page = text(sections.resolutions(review(Runs(sides), **CENT_A_SECOND)))
    assert "### A resolution for each task" in page
    assert "stays within 2 points of the highest one" in page
    tasks, settings = table_rows(page)
    assert [without_intervals(row) for row in tasks] == [
        ["read, small print", "512 px", "0%", "0.90", "native", "0.93", "0.90"],
        ["colour", "128 px", tasks[1][2], "1.00", "256 px", "0.95", "0.97"],
    ]
    assert re.fullmatch(r"\d%", tasks[1][2])
    assert re.fullmatch(r"0\.90 \(0\.\d\d–0\.9\d\)", tasks[0][3])
    assert [row[0] for row in settings] == [
        "fp32 · by task: proposed · batch 1 (recommended)",
        "fp32 · by task: the article's · batch 1",
    ]
    assert [row[2] for row in settings] == ["¥0.40", "¥0.50"]


def test_the_articles_resolutions_need_not_be_measured_as_a_setting(sides):
    """Then its numbers are those of the same resolution for all tasks, where there is one."""
    (tasks,) = table_rows(text(sections.resolutions(review(Runs(sides[:3]), **CENT_A_SECOND))))
    assert [without_intervals(row)[4:6] for row in tasks] == [["native", "?"], ["256 px", "1.00"]]
    (tasks,) = table_rows(text(sections.resolutions(review(Runs(sides[::2][:2]), **CENT_A_SECOND))))
    assert [without_intervals(row)[4:6] for row in tasks] == [["native", "?"], ["256 px", "?"]]


def test_resolutions_are_proposed_in_chinese_too(sides):
    page = text(sections.resolutions(review(Runs(sides), **CENT_A_SECOND, lang="zh")))
    tasks, settings = table_rows(page)
    assert "### 按任务选择分辨率" in page
    assert [row[:2] for row in tasks] == [["小字编号", "512 px"], ["颜色", "128 px"]]
    assert [row[0] for row in settings] == [
        "fp32·按任务：建议的表·批量 1（推荐）",
        "fp32·按任务：文章的表·批量 1",
    ]
    words = re.findall(r"[A-Za-z]{4,}", re.sub(r"<[^>]*>", "", page))
    assert set(words) == {"token"}


@pytest.mark.parametrize("count", [0, 1])
def test_with_less_than_two_resolutions_nothing_is_proposed(grid, sides, count):
    runs = sides[:count] + sides[3:] if count else grid
    assert sections.resolutions(review(Runs(runs), **CENT_A_SECOND)) == []


def test_a_setting_by_task_is_recommended_with_its_table(sides):
    from qvl_lab import cli

    page = review(Runs(sides), **CENT_A_SECOND)
    best = page.recommendation.best
    assert json.loads(best["task_resolutions"]) == {"read_small": 512, "colour": 128}
    command = run_command(best)
    assert command.endswith("--task-resolution read_small=512 --task-resolution colour=128")
    assert "--resolution by_task" in command
    assert accepts(cli.app, shlex.split(command)[1:]) == ""
    assert command in text(sections.headline(page)).replace(" \\\n  ", " ")
    assert "--task-resolution" not in run_command(page.recommendation.current)
    assert "task_resolutions" not in text(sections.headline(page))


# ---- provenance


def test_provenance_names_price_workload_machine_and_file(grid, runs_file):
    path = runs_file(*grid)
    found = facts(review(path, gpu="A10G", provider="article"))
    assert found["prov_price"] == "48 CNY/h: A10G, article, on demand, undated"
    assert found["prov_workload"].startswith("hand: 10 items")
    assert fingerprint()["torch"] in found["prov_software"]
    assert fingerprint()["cpu"] in found["prov_machine"]
    assert Runs.load(path).file_sha256[:16] in found["prov_file"]
    assert found["prov_notes"] == ""


def test_of_several_environments_the_newest_is_used_and_the_others_counted(on_cpu, runs_file):
    old = {"torch": "1.0.old", "cpu": "Old CPU", "gpu": None}
    path = runs_file(
        on_cpu(1, 500.0, environment=old, started_at="2025-01-01T00:00:00+00:00"),
        on_cpu(4, 400.0, environment=old, started_at="2025-01-01T00:10:00+00:00"),
        on_cpu(1, 10.0, started_at="2026-01-01T00:00:00+00:00"),
        on_cpu(4, 4.0, started_at="2026-01-01T00:10:00+00:00"),
    )
    page = review(path, **CENT_A_SECOND)
    assert "## ¥1.00 per 100 images today" in text(sections.headline(page))
    said = text(sections.provenance(page))
    assert "rows of other environments (machine or versions): 2" in said
    assert "1.0.old" not in said
    assert "Old CPU" not in said
    assert "2026-01-01T00:00:00+00:00 - 2026-01-01T00:10:00+00:00" in said
    assert len(page.runs) == 2


def test_rows_of_another_workload_are_left_out_and_counted(grid, on_cpu, runs_file):
    other = {"name": "other", "fingerprint": "0" * 16, "items": 10, "images": 10}
    before = "2025-01-01T00:00:00+00:00"
    path = runs_file(on_cpu(1, 1.0, workload=other, key="other", started_at=before), *grid)
    page = review(path, **CENT_A_SECOND)
    assert len(page.frame) == 4
    assert "rows of another workload, model or way of measuring: 1" in text(
        sections.provenance(page)
    )


def test_rows_that_are_not_compared_are_named_at_the_top(on_cpu, runs_file):
    """A quarter of the price, for passes that answer other items: no saving, and no secret."""
    before = {"started_at": "2020-01-01T00:00:00+00:00", "plan": {"batches": None}}
    cheap = on_cpu(1, [20.0] * 3, key="whole", **before)
    cheap = replace(cheap, repeats=[replace(r, answered=80) for r in cheap.repeats])
    path = runs_file(cheap, on_cpu(1, 10.0, plan={"batches": 1}))
    said = text(sections.headline(review(path, **CENT_A_SECOND)))
    assert "no measured setting is cheaper" not in said
    assert "¥1.00 per 100 images today, and no setting that was measured alike is cheaper." in said
    assert "Not compared: 1 rows of this file, since they differ in what they answer" in said
    assert "(passes over 80 items)" in said
    assert (
        "The cheapest of them costs ¥0.25 per 100 images where today's setting costs ¥1.00" in said
    )
    chinese = text(sections.headline(review(path, **CENT_A_SECOND, lang="zh")))
    assert "未参与比较：本文件中的 1 行" in chinese
    assert "每遍 80 个请求" in chinese


def test_the_committed_file_with_a_row_at_a_quarter_of_the_price_names_it():
    page = review("reports/h200-fast/w2.jsonl", **CENT_A_SECOND)
    said = text(sections.headline(page))
    assert "no measured setting is cheaper" not in said
    assert "passes over 480 items" in said
    assert len(page.recommendation.left_out) == 1


def test_todays_setting_may_be_named_that_was_timed_otherwise_than_the_newest(runs_file, on_cpu):
    other = on_cpu(2, 30.0, plan={"timed_items": 1}, started_at="2020-01-01T00:00:00+00:00")
    path = runs_file(other, on_cpu(1), on_cpu(4, 4.0))
    page = review(path, **CENT_A_SECOND, current={"batch_size": 2})
    assert (page.recommendation.current["batch_size"], len(page.frame)) == (2, 1)


def test_quality_that_is_not_shown_to_be_kept_is_flagged_in_the_headline(scored):
    runs = scored(1, 10.0, {"colour": forty(40)}), scored(4, 4.0, {"colour": forty(40)})
    page = review(Runs(runs), **CENT_A_SECOND)
    first = first_line(page)
    assert "60% less" in first
    assert first.endswith("That quality is kept is not shown: the answers are too few to tell.")
    said = "\n".join(quality_sentences(page, page.recommendation))
    assert "none of 40 answers got worse, but so few allow for a true change of −6.7" in said
    assert re.search(r"About \d+0 more scored answers would tell", said)
    assert "尚未证明质量得到保持" in first_line(review(Runs(runs), **CENT_A_SECOND, lang="zh"))


def test_a_setting_with_a_worse_answer_stays_out_and_says_how_many_questions_would_tell(scored):
    many, fewer = {"colour": [1.0] * 200}, {"colour": [1.0] * 199 + [0.0]}
    page = review(Runs([scored(1, 10.0, many), scored(4, 4.0, fewer)]), **CENT_A_SECOND)
    assert page.recommendation.best["batch_size"] == 1
    said = text(sections.headline(page))
    assert "200 answers are too few to show that it keeps today's" in said
    assert "more scored answers would tell" in said


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ({"colour": [0.0] * 40}, "Hardly an answer is right"),
        ({"colour": [1.0, 1.0]}, "So few answers cannot guide a choice"),
    ],
)
def test_quality_that_cannot_guide_is_said_and_keeps_resolution_and_precision(
    scored, scores, words
):
    runs = [
        scored(1, 10.0, scores),
        scored(1, 5.0, scores, resolution=128),
        scored(1, 6.0, scores, precision="bf16"),
    ]
    page = review(Runs(runs), **CENT_A_SECOND)
    assert page.recommendation.best["key"] == page.recommendation.current["key"]
    said = text(sections.headline(page))
    assert words in said
    assert "-0.02" not in said and "−0.02" not in said


def test_damaged_lines_are_named(grid, runs_file):
    path = runs_file(*grid)
    with path.open("ab") as file:
        file.write(b'{"torn')
    assert "line 5 of runs.jsonl is left out" in text(sections.provenance(review(path)))


def by_an_older_clock(run: Run) -> Run:
    return replace(run, repeats=[replace(r, queue_s=[], e2e_s=[]) for r in run.repeats])


def test_the_report_says_which_percentile_of_the_first_token_it_shows(grid, runs_file):
    assert "time to first token (median)" in text(sections.headline(review(runs_file(*grid))))


def test_the_report_of_an_older_file_says_that_it_cannot_tell_the_first_token(grid, runs_file):
    older = [by_an_older_clock(run) for run in grid]
    page = review(runs_file(*older))
    assert "time to first token (median)" not in text(sections.headline(page))
    measured = sum(run.status == "ok" for run in grid)
    assert f"from the start of the batch, without the wait before it: {measured}" in text(
        sections.provenance(page)
    )
    with pytest.raises(LimitError, match=f"not known of {measured}: fewer than 20 answers, or"):
        review(runs_file(*older), max_ttft_s=1.0)


def test_the_report_says_that_the_limit_on_the_first_token_is_on_a_percentile(grid, runs_file):
    page = review(runs_file(by_an_older_clock(grid[0]), *grid[1:]), max_ttft_s=1.0)
    said = text(sections.waterfall(page))
    assert "time to first token (95th percentile) is over its limit or unknown: 1" in said


def test_the_commands_in_the_report_are_accepted_by_the_command_line(grid, runs_file):
    from qvl_lab import cli

    page = review(
        runs_file(*grid),
        gpu="A10G",
        provider="aws",
        kind="on_demand",
        currency="CNY",
        exchange_rates={"USD": 7.1},
        prices_file=report.asset("prices.toml"),
        utilisation=0.5,
        current={"batch_size": 1},
        monthly_images=1000,
        max_vram_gib=20.0,
        max_ttft_s=5.0,
    )
    limited = replace(page.options, min_quality=0.5)  # random weights have none to limit
    own = report_command(replace(page, options=limited))
    assert "USD=7.1" in own
    recommended = run_command(page.recommendation.best)
    assert "--batch-size 4" in recommended
    assert "--lang" not in own  # English is the default
    for command in (own, recommended):
        assert accepts(cli.app, shlex.split(command)[1:]) == "", command


def test_the_report_command_names_the_file_from_here_and_no_defaults(grid, runs_file, monkeypatch):
    path = runs_file(*grid)
    assert report_command(review(path)) == f"qvl-lab report {path.resolve()}"
    monkeypatch.chdir(path.parent.parent)
    own = report_command(review(path, lang="zh", utilisation=0.5))
    assert own == f"qvl-lab report {path.parent.name}/runs.jsonl --utilisation 0.5 --lang zh"


def test_the_command_of_a_fast_setting_names_its_engine(on_cpu):
    from qvl_lab import cli

    fast = {"engine": "fast", "prefix_cache": True, "packing": True, "prefill_chunk": 512}
    page = review(Runs([on_cpu(1), on_cpu(4, 4.0, **fast)]), **CENT_A_SECOND)
    command = run_command(page.recommendation.best)
    assert command.endswith("--set engine=fast --set prefill_chunk=512 --set prefix_cache=True")
    assert accepts(cli.app, shlex.split(command)[1:]) == ""
    assert "batch 4 · fast engine" in text(sections.headline(page))
    assert "engine" not in run_command(page.recommendation.current)


def accepts(app: Any, arguments: list[str]) -> str:
    """What the command line has against these arguments; it is not run."""
    result = CliRunner().invoke(app, [*arguments, "--help"])
    usage = CliRunner().invoke(app, [*arguments, "--no-such-option"])
    assert result.exit_code == 0
    complaint = re.search(r"No such option: (\S+)", usage.output)
    assert complaint, usage.output
    return "" if complaint[1] == "--no-such-option" else complaint[1]


# ---- refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gpu": "A1OG"}, "Did you mean 'A10G'"),
        ({"gpu": "A10G", "provider": "awss"}, "Did you mean 'aws'"),
        ({"utilisation": 0.0}, "utilisation must be above 0"),
        ({"utilisation": 90}, "utilisation must be above 0"),
        ({"per_hour": -1.0}, "per_hour must be a number above 0"),
        ({"currency": "yuan"}, "three capital letters"),
        ({"gpu": "A10G", "provider": "aws", "currency": "CHF"}, "no exchange rate"),
        ({"current": {"batch_size": 3}}, "no measured setting has batch_size=3"),
        ({"current": {"batch": 1}}, "Did you mean 'batch_size'"),
        ({"max_vram_gib": 0.001}, "no measured setting passes"),
        ({"min_quality": 0.5}, "no setting has a quality: the weights are random"),
        ({"min_quality": 95}, "min_quality must be a number from 0 to 1"),
        ({"lang": "fr"}, "unknown language 'fr'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(grid, options, words):
    with pytest.raises(ConfigError, match=words):
        review(Runs(grid), **options)


def test_unknown_names_are_their_own_kind_of_error(grid):
    with pytest.raises(UnknownNameError):
        review(Runs(grid), gpu="A1OG")


def test_a_file_without_runs_is_refused(tmp_path):
    with pytest.raises(StoreError, match="cannot read the run file"):
        review(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(QvlError, match="holds no runs"):
        review(tmp_path / "empty.jsonl")


def test_the_frame_behind_the_page_is_that_of_the_runs(grid):
    page = review(Runs(grid), **CENT_A_SECOND)
    expected = Runs(grid).frame()["s_per_100_images"] / 100
    pd.testing.assert_series_equal(page.frame[page.cost], expected, check_names=False)


def test_a_limit_that_todays_setting_breaks_is_paid_for_and_said(runs_file, on_cpu):
    page = review(
        runs_file(on_cpu(4, 4.0), on_cpu(1, 10.0)),
        current={"batch_size": 4},
        max_vram_gib=2,
        **CENT_A_SECOND,
    )
    said = text(sections.headline(page))
    assert "¥0.40 per 100 images today" in said
    assert "costs ¥1.00: 150% more" in said
    assert "noise" not in said


def test_names_from_a_run_file_are_text_and_not_markup(runs_file, on_cpu):
    evil = "x<img src=x onerror=alert(1)>"
    page = review(runs_file(on_cpu(1, model=evil), on_cpu(4, 4.0, model=evil)), **CENT_A_SECOND)
    assert "<img" not in text(sections.headline(page)).replace("```\nqvl-lab run IMAGES", "")[:400]
    assert "x&lt;img" in text(sections.headline(page))


def test_rows_measured_another_way_are_left_out_and_counted(runs_file, on_cpu):
    other = on_cpu(2, 30.0, plan={"timed_items": 1}, started_at="2020-01-01T00:00:00+00:00")
    page = review(runs_file(other, on_cpu(1), on_cpu(4, 4.0)), **CENT_A_SECOND)
    assert len(page.frame) == 2
    assert "rows of another workload, model or way of measuring: 1" in text(
        sections.provenance(page)
    )


def test_the_first_row_need_not_have_loaded_to_name_the_device(runs_file, make_run):
    gpu = {"environment": {"gpu": "NVIDIA H200"}, "resolved": {"device": "cuda"}}
    lost = make_run(status="oom", batch_size=1, environment=gpu["environment"])
    page = review(runs_file(lost, make_run(batch_size=2, **gpu), make_run(batch_size=4, **gpu)))
    assert page.device == "NVIDIA H200"
    assert page.frame.attrs["price"]["gpu"] == "H200"


def test_settings_timed_a_different_number_of_times_are_told_apart(on_cpu):
    page = review(Runs([on_cpu(1, [10.0]), on_cpu(4, [2.0, 2.1])]), **CENT_A_SECOND)
    said = text(sections.headline(page))
    assert "1 over 10 items with today's setting, 2 over 10 with the recommended one" in said
    assert "medians of" not in said
