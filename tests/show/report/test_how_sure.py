"""What the page says of how sure it is: confirmation, two widths, unstable and busy settings."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from IPython.display import HTML, Markdown

from qvl_lab.analysis.money.recommend import recommend
from qvl_lab.runs.records import Run
from qvl_lab.runs.store import Runs
from qvl_lab.show.report import sections
from qvl_lab.show.report.review import review
from qvl_lab.show.report.sections.how_sure import DAYS_PERCENT, HOSTS_PERCENT

PRICE = {"per_hour": 36.0, "currency": "CNY"}
REPORTS = Path(__file__).parents[3] / "reports"


def text(parts: Any) -> str:
    return "\n".join(part.data for part in parts if isinstance(part, Markdown | HTML))


def first_page(*runs: Run, **options: Any) -> str:
    return text(sections.headline(review(Runs(runs), **PRICE, **options)))


@pytest.fixture
def in_rounds(on_cpu, make_repeat):
    """A run that took part in so many rounds."""

    def make(batch_size: int, wall_s: float, rounds: int = 5, phase: str = "sweep") -> Run:
        repeats = [
            make_repeat(wall_s * (1 + 0.01 * n), round=n, stages_s={"vision": wall_s})
            for n in range(rounds)
        ]
        return on_cpu(batch_size, repeats=repeats, plan={"phase": phase})

    return make


def test_a_confirmed_saving_says_in_how_many_rounds(in_rounds):
    swept = in_rounds(1, 10.0), in_rounds(4, 4.0)
    again = in_rounds(1, 10.0, 6, "confirmation"), in_rounds(4, 4.2, 6, "confirmation")
    said = first_page(*swept, *again)
    assert "How sure: confirmed head to head, in 6 rounds in which today's setting and" in said
    assert "not confirmed" not in said and "58% less" in said
    chinese = first_page(*swept, *again, lang="zh")
    assert "可信度：已作对比确认，选定之后当前配置与推荐配置轮流计时 6 轮。" in chinese


def test_a_confirmation_whose_rounds_scatter_is_not_called_one(in_rounds, on_cpu, make_repeat):
    wall_s = (4.0, 6.0, 3.0, 5.5, 3.5, 5.0)
    scattered = [make_repeat(s, round=n, stages_s={"vision": s}) for n, s in enumerate(wall_s)]
    again = on_cpu(4, repeats=scattered, plan={"phase": "confirmation"})
    runs = in_rounds(1, 10.0), in_rounds(4, 4.0), in_rounds(1, 10.0, 6, "confirmation"), again
    assert not recommend(Runs(runs).frame()).confirmed
    said = first_page(*runs)
    assert re.search(r"How sure: not confirmed\. .* in 6 rounds, .* known to ±\d\d% only", said)
    assert "±10% is asked for" in said
    assert re.search(
        "轮流对比 6 轮.*只能确定到 ±\\d\\d%，而要求在 ±10% 以内", first_page(*runs, lang="zh")
    )


def test_a_saving_of_the_sweep_alone_is_not_called_confirmed(in_rounds, on_cpu):
    said = first_page(in_rounds(1, 10.0), in_rounds(4, 4.0))
    assert "How sure: not confirmed head to head; the saving is that of 5 rounds" in said
    assert "looks a little cheaper than it is" in said
    older = first_page(on_cpu(1, 10.0), on_cpu(4, 4.0))
    assert "How sure: not confirmed head to head; medians of 3 timed passes" in older


def test_both_widths_are_said(on_cpu):
    said = first_page(on_cpu(1, 10.0), on_cpu(4, 4.0))
    assert (
        "That is this machine now: on other days equal settings took 5–19% more or less time, on "
        "other hosts of the same kind 11–37%." in said
    )
    assert "换一天，同样配置的耗时相差 5–19%；换一台同类机器，相差 11–37%" in first_page(
        on_cpu(1, 10.0), on_cpu(4, 4.0), lang="zh"
    )


def seconds(file: str, **setting: Any) -> float:
    frame = Runs.load(REPORTS / file).frame()
    for name, value in setting.items():
        frame = frame[frame[name] == value]
    return float(frame["s_per_100_images"].iloc[0])


def test_the_second_width_is_what_the_committed_run_files_show():
    def apart(first: str, second: str, **setting: Any) -> float:
        return 100 * (seconds(second, **setting) / seconds(first, **setting) - 1)

    pair = "h200-8b/runs.jsonl", "h200-8b/second-machine.jsonl"
    same = {"precision": "fp32", "resolution": "256"}
    hosts = sorted(apart(*pair, batch_size=n, **same) for n in (1, 8))
    pair = "h200-8b/runs.jsonl", "h200-fast/w1.jsonl"
    same = {"precision": "bf16", "resolution": "1024", "engine": "stock"}
    days = sorted(apart(*pair, batch_size=n, **same) for n in (1, 32))
    for seen, said in ((hosts, HOSTS_PERCENT), (days, DAYS_PERCENT)):
        assert all(abs(a - b) < 1 for a, b in zip(seen, said, strict=True)), (seen, said)
    readme = (REPORTS / "README.md").read_text("utf-8")
    assert "11–37% between hosts and 5–19% between days" in readme


# ---- what is not to be relied on


def test_unstable_settings_are_named_on_the_first_page_and_in_the_tables(on_cpu):
    page = review(Runs([on_cpu(1, 10.0), on_cpu(4, [4.0, 9.0, 8.6]), on_cpu(8, 3.0)]), **PRICE)
    said = text(sections.headline(page))
    assert "⚠ Unstable, drawn hollow: the slowest pass took more than 1.5 times" in said
    assert "with fp32 · 256 px · batch 4." in said
    assert "<td>fp32 · 256 px · batch 4 (unstable)</td>" in text(sections.settings(page))
    steady = review(Runs([on_cpu(1, 10.0), on_cpu(4, 4.0)]), **PRICE)
    assert "nstable" not in text(sections.headline(steady)) + text(sections.settings(steady))


def test_a_recommended_setting_that_was_disturbed_says_so_in_the_first_table(on_cpu, make_repeat):
    repeats = [make_repeat(4.0 * f, disturbed="another process") for f in (0.99, 1, 1.01)]
    said = first_page(on_cpu(1, 10.0), on_cpu(4, repeats=repeats))
    assert "<td>fp32 · 256 px · batch 4 (disturbed)</td>" in said
    assert "⚠ Disturbed, drawn hollow: others used the machine while these were timed" in said


def test_passes_that_were_thrown_away_are_counted(on_cpu):
    runs = on_cpu(1, 10.0, contention={"thrown_away": 2}), on_cpu(4, 4.0)
    assert "Passes thrown away because others used the machine beside them: 2." in first_page(*runs)
    assert "thrown away" not in first_page(on_cpu(1, 10.0), on_cpu(4, 4.0))


def test_a_setting_that_could_not_be_measured_here_is_counted_and_listed(on_cpu):
    busy = on_cpu(8, status="busy", reason="others used 1.2 cores")
    said = text(sections.settings(review(Runs([on_cpu(), busy]), **PRICE)))
    assert "not measurable, because others used the machine: 1" in said
    assert "<td>machine busy</td>" in said and "others used 1.2 cores" in said


# ---- savings within noise


def test_a_saving_within_noise_is_not_repeated_as_one_lower_down(on_cpu):
    runs = Runs([on_cpu(1, [9.0, 10.0, 11.0]), on_cpu(4, [8.5, 9.9, 11.0])])
    page = review(runs, **PRICE)
    assert "is within noise" in text(sections.headline(page)).split("\n\n")[1]
    shown = sections.headline, sections.waterfall, sections.article, sections.settings
    said = "\n".join(text(section(page)) for section in shown)
    assert not re.findall(r"[−+]\d+%", said)
    assert said.count("<td>within noise</td>") == 2  # first page, table of settings


def test_other_days_are_said_also_where_today_stays(on_cpu):
    said = first_page(on_cpu(1, 4.0), on_cpu(4, 10.0))
    assert "each over 10 items. That is this machine now" in said


def test_a_row_that_lacks_the_newer_columns_is_no_reason_to_doubt(on_cpu):
    page = review(Runs([on_cpu(1, 10.0), on_cpu(4, 4.0)]), **PRICE)
    lacking = page.frame.assign(unstable=None, disturbed=None, passes_thrown_away=None)
    old = replace(page, frame=lacking)
    assert "⚠ " not in text(sections.headline(old)).replace("> ⚠ The seconds", "")
