"""The ablation's figure draws what plain arithmetic gives."""

from __future__ import annotations

from dataclasses import fields

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.container import BarContainer
from matplotlib.text import Text

from qvl_lab.analysis.frame import frame as table
from qvl_lab.analysis.levers.ablation import ablation_rows
from qvl_lab.analysis.money.cost import price
from qvl_lab.config import Fast
from qvl_lab.errors import ConfigError
from qvl_lab.show import fonts, plots, quantities

LEVERS = ["batch_size", *(f.name for f in fields(Fast) if f.default is True)]
COUNT = len(LEVERS)


@pytest.fixture
def runs(ablated):
    return ablated()


@pytest.fixture
def frame(runs):
    return price(table(runs), per_hour=36.0)  # a cent a second


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def bar_ends(ax) -> list[float]:
    bars = [bar for group in ax.containers if isinstance(group, BarContainer) for bar in group]
    return [bar.get_x() + bar.get_width() for bar in bars]


def words(ax) -> list[str]:
    """What stands beside the bars, from the top."""
    return [t.get_text() for t in sorted(ax.texts, key=lambda t: t.xy[1])]


def names(ax) -> list[str]:
    return [t.get_text() for t in ax.get_yticklabels()]


def test_bars_are_seconds_of_each_variant_with_intervals(frame):
    ax = plots.ablation(frame)
    rows = ablation_rows(frame)
    assert bar_ends(ax) == pytest.approx(list(rows["s_per_100_images"]))
    intervals = [line for line in ax.collections if line.get_segments()]
    for line, (_, row) in zip(intervals, rows.iterrows(), strict=True):
        (ends,) = line.get_segments()
        low, high = (row[f"s_per_100_images_{end}"] for end in ("low", "high"))
        np.testing.assert_allclose(ends[:, 0], [low, high])


def test_bars_are_named_from_stock_to_all(frame):
    said = names(plots.ablation(frame))
    assert said[:4] == [
        "stock engine, one at a time",
        "stock engine, batch 4",
        "fast engine, none of these",
        "only batch 4",
    ]
    assert said[3 + COUNT] == "all but batch 4"
    assert said[-1] == "fast engine, all of these"
    assert {"only packing", "all but packing", "only CUDA graphs"} <= set(said)


def test_words_are_seconds_money_and_factor(frame):
    said = words(plots.ablation(frame))
    assert said[0] == "960 s · ¥9.60"  # 64 s x 1.5 for ten images
    assert said[2] == "640 s · ¥6.40"
    assert said[3 : 3 + COUNT] == ["320 s · ¥3.20 · 2.00x as fast as none"] * COUNT
    all_s = 640 / 2**COUNT
    assert {w.split(" · ")[2] for w in said[3 + COUNT : -1]} == {"2.00x the time of all"}
    assert said[-1].startswith(f"{quantities.number(all_s)} s · ")
    assert said[-1].endswith(f"{quantities.number(2**COUNT)}x as fast as none")


def test_without_a_price_there_is_no_money(runs):
    ax = plots.ablation(table(runs))
    assert words(ax)[3] == "320 s · 2.00x as fast as none"
    assert not any("¥" in said for said in words(ax))


def test_a_wide_range_is_logarithmic_and_said_to_be(frame, ablated):
    ax = plots.ablation(frame)
    assert ax.get_xscale() == "log"
    assert ax.get_xlabel() == "seconds per 100 images, logarithmic"
    fast = [run for run in ablated(["packing"]) if run.config["engine"] == "fast"]
    narrow = plots.ablation(table(fast))
    assert narrow.get_xscale() == "linear" and narrow.get_xlim()[0] == 0
    assert narrow.get_xlabel() == "seconds per 100 images"


@pytest.mark.parametrize("scale", ["log", "linear"])
def test_words_end_within_the_axes(ablated, scale):
    runs = ablated(None if scale == "log" else ["packing", "overlap"])
    fast = [run for run in runs if run.config["engine"] == "fast"]
    ax = plots.ablation(price(table(runs if scale == "log" else fast), per_hour=36.0))
    assert ax.get_xscale() == scale
    figure = ax.get_figure()
    figure.canvas.draw()
    right = ax.get_window_extent().x1
    assert all(t.get_window_extent().x1 <= right for t in ax.texts)
    ticks = ax.get_xticks()
    assert len(ticks) > 1 and max(ticks) <= ax.get_xlim()[1] / 1.3  # none under the words


def test_what_was_not_measured_keeps_its_place_and_says_why(runs, on_cpu):
    nothing = next(run for run in runs if run.config.get("packing") is False)
    everything = runs[-1]
    oom = on_cpu(4, status="oom", reason="full", engine="fast")
    assert oom.key == everything.key
    left = [run for run in runs if run not in (nothing, everything)]
    ax = plots.ablation(table([*left, oom]))
    assert len(names(ax)) == len(runs)
    said = dict(zip(names(ax), words(ax), strict=True))
    assert said["fast engine, none of these"] == "not measured"
    assert said["fast engine, all of these"] == "out of memory"
    assert said["only packing"] == "320 s"  # nothing to compare with
    assert np.isnan(bar_ends(ax)[-1])


def test_the_setting_is_in_the_title_and_axes_may_be_given(frame):
    figure, given = plt.subplots(layout="constrained")
    ax = plots.ablation(frame, given)
    assert ax is given and ax.get_figure() is figure
    assert ax.get_title() == "What each lever of the fast engine is worth · fp32 · 256 px"


def test_the_interval_is_explained_where_there_is_one(runs, ablated, make_repeat):
    legend = plots.ablation(table(runs)).get_legend()
    assert [t.get_text() for t in legend.get_texts()] == ["95% interval over repeats"]
    once = plots.ablation(table(ablated(repeats=[make_repeat(5.0)])))
    assert once.get_legend() is None


def test_in_chinese_every_word_is_chinese_or_a_name(frame):
    ax = plots.ablation(frame, lang="zh")
    said = [ax.get_title(), ax.get_xlabel(), *names(ax), *words(ax)]
    assert all(any("一" <= letter <= "鿿" for letter in s) for s in said)
    assert names(ax)[3] == "仅开：批量 4"
    assert {t.get_fontfamily()[0] for t in ax.findobj(Text) if t.get_text()} == {fonts.CHINESE}


def test_a_frame_without_an_ablation_is_refused(on_cpu):
    with pytest.raises(ConfigError, match="qvl-lab ablate"):
        plots.ablation(table([on_cpu(1), on_cpu(4)]))
