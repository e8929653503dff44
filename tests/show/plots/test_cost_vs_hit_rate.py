"""The figure and the report's section about caches by hit rate."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from IPython.display import HTML, Image, Markdown

from qvl_lab.analysis.frame import frame
from qvl_lab.analysis.levers.cache_savings import break_even
from qvl_lab.analysis.money.cost import price
from qvl_lab.errors import ConfigError
from qvl_lab.models.load import read_architecture
from qvl_lab.runs.records import Run, run_key
from qvl_lab.show import plots
from qvl_lab.show.report import sections
from qvl_lab.show.report.review import review

PRICE = {"per_hour": 36.0, "currency": "CNY"}
FIELDS: dict[str, dict[str, Any]] = {
    "off": {},
    "features": {"encoder_cache_gib": 1.0},
    "prefix": {"prefix_cache": True},
    "answers": {"response_cache_entries": 10},
}
#: Seconds that a hit of each cache saves, of ten for all.
SLOPES = {"off": 0.0, "features": 4.0, "prefix": 8.0, "answers": 9.5}


@pytest.fixture
def measured(on_cpu, make_repeat) -> Callable[..., list[Run]]:
    """Ten requests in ten seconds less what is saved; a run for each rate and cache."""

    def make(rates: Any = (0.0, 0.5, 0.9), caches: Any = tuple(FIELDS), **parts: Any) -> list[Run]:
        runs = []
        for rate in rates:
            seen = round(10 * (1 - rate))
            for cache in caches:
                counts = {"encoder_bytes": seen * 2_000_000} if cache == "features" else {}
                counts |= (
                    {"prefix_hits": 4, "prefix_tokens_saved": 256} if cache == "prefix" else {}
                )
                counts |= {"response_misses": seen} if cache == "answers" else {}
                wall_s = 10 - SLOPES[cache] * rate
                work = {"images": 10 if cache == "off" else seen}
                repeats = [
                    make_repeat(wall_s * s, work=work, caches=counts) for s in (0.999, 1, 1.001)
                ]
                known = {"engine": "fast", "repeats": repeats, **FIELDS[cache]}
                known |= {"architecture": read_architecture("tiny").to_dict()}
                name = f"album, {100 * rate:.0f}% repeated"
                workload = {"name": name, "fingerprint": f"{rate}", "items": 10, "images": 10}
                key = run_key({"cache": cache}, workload, {})
                runs.append(on_cpu(**(known | {"workload": workload, "key": key} | parts)))
        return runs

    return make


@pytest.fixture
def priced(measured) -> pd.DataFrame:
    table = price(frame(measured()), **PRICE)
    table.attrs["price"] = table.attrs["price"] | {"gpu": "A10G"}
    return table


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def words(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def lines(ax) -> dict[str, list[list[float]]]:
    """Coordinates of lines by their colour."""
    found: dict[str, list[list[float]]] = {}
    for line in ax.get_lines():
        found.setdefault(str(line.get_color()), []).append(list(map(float, line.get_ydata())))
    return found


def test_each_cache_has_its_points_and_its_line(priced):
    ax = plots.hit_rates(priced)
    blue, *_ = (line for line in ax.get_lines() if line.get_color() == "#0072B2")
    assert list(blue.get_xdata()) == pytest.approx([0, 50, 90])
    assert list(blue.get_ydata()) == pytest.approx([1.0, 0.8, 0.64], abs=0.001)
    fitted = [y for y in lines(ax)["#0072B2"] if len(y) == 2]
    assert any(y == pytest.approx([1.0, 0.64], abs=0.001) for y in fitted)
    assert ax.get_xlabel().endswith("as measured (%)")
    assert ax.get_ylabel() == "¥ per 100 images"
    assert ax.get_ylim()[0] == 0


def test_the_claim_and_no_cache_are_lines_across(priced):
    ax = plots.hit_rates(priced)
    across = [y for y in lines(ax)["#555555"] if len(y) == 2]
    assert across[:2] == [pytest.approx([1.0, 1.0], abs=0.001), pytest.approx([0.6] * 2, abs=0.001)]
    assert "the article's claim: −40%" in words(ax)
    other = plots.hit_rates(priced, claim=0.25)
    assert "the article's claim: −25%" in words(other)


def test_break_even_is_marked_where_analysis_finds_it(priced):
    ax = plots.hit_rates(priced)
    found = break_even(priced)["break_even"]
    marks = [
        line for line in ax.get_lines() if line.get_marker() == "D" and line.get_markersize() == 7
    ]
    at = sorted(float(line.get_xdata()[0]) for line in marks)
    assert at == pytest.approx(sorted(100 * found))
    assert "pays for 100 images' memory from here" in words(ax)
    assert "pays for 7 images' memory from here" in words(plots.hit_rates(priced, images=7))


def test_where_the_card_is_not_known_nothing_is_marked(measured):
    table = price(frame(measured(environment={"gpu": None})), **PRICE)
    assert not any("pays for" in text for text in words(plots.hit_rates(table)))
    marked = plots.hit_rates(table, memory_gb=24)
    assert any("pays for" in text for text in words(marked))


def test_without_a_price_seconds_are_drawn(measured):
    ax = plots.hit_rates(frame(measured()))
    assert ax.get_ylabel() == "seconds per 100 images"
    assert ax.get_title() == "Time per 100 images and hit rate"


def test_given_axes_are_used_and_chinese_is_chinese(priced):
    _, given = plt.subplots(layout="constrained")
    assert plots.hit_rates(priced, given, lang="zh") is given
    assert given.get_title() == "每 100 张图成本与缓存命中率"
    assert words(given)[2:5] == ["视觉特征", "前缀（图像的 KV）", "完整答案"]


def test_an_outlying_interval_does_not_flatten_the_figure(measured, make_repeat):
    runs = measured()
    work = {"images": 5}
    runs[5] = measured(
        rates=[0.5],
        caches=["features"],
        repeats=[make_repeat(w, work=work) for w in (8.0, 0.1, 90.0)],
    )[0]
    ax = plots.hit_rates(price(frame(runs), **PRICE))
    assert ax.get_ylim()[1] < 2


def test_a_frame_without_caches_is_refused(on_cpu):
    with pytest.raises(ConfigError, match="no measured row of the fast engine"):
        plots.hit_rates(price(frame([on_cpu()]), **PRICE))


# ---- the report


def section(path: Path, **options: Any) -> tuple[str, list[str], int]:
    """The section's words, the cells of its table, and how many pictures it has."""
    shown = sections.hit_rates(review(path, gpu="A10G", provider="article", **options))
    said = "\n".join(part.data for part in shown if isinstance(part, Markdown))
    tables = "\n".join(part.data for part in shown if isinstance(part, HTML))
    return said, re.findall(r"<td>(.*?)</td>", tables), sum(isinstance(p, Image) for p in shown)


def test_the_report_says_what_each_cache_saves_and_from_where_it_pays(measured, runs_file):
    said, cells, pictures = section(runs_file(*measured()))
    assert pictures == 1
    assert "### What caches save, by hit rate" in said
    assert "A cache of 100 images" in said and "caching saves at least 40%" in said
    rows = [cells[i : i + 5] for i in range(0, len(cells), 5)]
    assert [row[0] for row in rows] == [
        "vision features",
        "prefix (KV of the image)",
        "whole answers",
    ]
    assert [row[1] for row in rows] == ["36% at 90%", "72% at 90%", "86% at 90%"]
    assert rows[0][2] == "191 MiB, 0.83%"  # 200 MB of 24 GB
    assert rows[0][3].startswith("2% (")
    assert [row[4].split(" (")[0] for row in rows] == ["not reached up to 90%", "50%", "42%"]


@pytest.mark.slow
def test_the_report_is_in_chinese_too(measured, runs_file):
    said, cells, _ = section(runs_file(*measured()), lang="zh")
    assert "不同命中率下各种缓存能省多少" in said
    assert "至 90% 仍未达到" in cells


def test_a_run_file_of_another_kind_has_no_such_section(measured, on_cpu, runs_file):
    assert section(runs_file(on_cpu(1), on_cpu(4, 5.0))) == ("", [], 0)
    assert section(runs_file(*measured(caches=["features"]))) == ("", [], 0)  # nothing to compare


def test_rows_of_other_settings_are_left_out_of_the_section(measured, runs_file):
    older = measured(batch_size=4, started_at="2020-01-01T00:00:00+00:00")
    path = runs_file(*[replace(run, key=f"older {run.key}") for run in older], *measured())
    _, cells, _ = section(path)
    assert cells[1] == "36% at 90%"
