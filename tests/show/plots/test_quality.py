"""Figures of quality draw what plain pandas reads from the frame."""

from __future__ import annotations

import warnings
from itertools import combinations, pairwise

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

from qvl_lab.analysis.frame import frame as table
from qvl_lab.analysis.money.cost import price
from qvl_lab.analysis.money.recommend import recommend
from qvl_lab.analysis.quality.scoring import TaskScores
from qvl_lab.analysis.quality.tradeoffs import precision_loss
from qvl_lab.errors import ConfigError
from qvl_lab.show import plots

SIDES, COST = ("128", "256", "512", "native"), "cost_cny_per_100_images"
#: Right answers of 20, by task and resolution.
RIGHT = {
    "read_small": {"128": 0, "256": 4, "512": 12, "native": 18, "by_task": 17},
    "count": {"128": 15, "256": 18, "512": 19, "native": 20, "by_task": 20},
    "mystery": {"128": 9, "256": 9, "512": 13, "native": 14, "by_task": 12},
}
#: What a precision gets wrong beyond that, and how fast it is.
LOST = {"fp32": 0, "bf16": 1, "int8": 8}
SPEED = {"fp32": 1.0, "bf16": 2.0, "int8": 1.4}
PIXELS = {"128": 1, "256": 2, "512": 5, "native": 12, "by_task": 7}


def scores(precision: str, resolution: str, tasks=tuple(RIGHT)) -> dict:
    found = {}
    for task in tasks:
        right = max(0, RIGHT[task][resolution] - LOST[precision])
        values = (1.0,) * right + (0.0,) * (20 - right)
        found[task] = TaskScores("exact_match", values).to_dict()
    return found


@pytest.fixture
def measure(make_run, make_repeat):
    """A priced frame of these precisions, resolutions and batch sizes."""

    def run(precision, resolution, batch, tasks, repeats):
        wall = PIXELS[resolution] * (1 + 2 / batch) / SPEED[precision]
        tokens = {"visual_tokens": 100 * PIXELS[resolution]}
        done = [make_repeat(wall * (1 + 0.01 * i), **tokens) for i in range(repeats)]
        chosen = {"precision": precision, "resolution": resolution, "batch_size": batch}
        told = scores(precision, resolution, tasks) if tasks else {}
        return make_run(done, key=f"{chosen}", scores=told, **chosen)

    def build(
        precisions=("fp32", "bf16"),
        resolutions=SIDES,
        batches=(1, 8),
        tasks=tuple(RIGHT),
        repeats=3,
    ):
        cells = [(p, r, b) for p in precisions for r in resolutions for b in batches]
        rows = table([run(*cell, tasks, repeats) for cell in cells])
        return price(rows, per_hour=36, currency="CNY")

    return build


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def drawn(ax) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Each line by its label: x, y, and the ends of its bars."""
    found = {}
    for container in ax.containers:
        line, _, (bars,) = container
        ends = np.array([bar[:, 1] for bar in bars.get_segments() if len(bar)])
        found[container.get_label()] = (line.get_xdata(), line.get_ydata(), ends)
    return found


def legend_texts(ax) -> list[str]:
    return [t.get_text() for t in ax.get_legend().get_texts()]


def shown(ax) -> list[str]:
    return [t.get_text() for t in ax.texts]


def is_chinese(words: str) -> bool:
    return any("一" <= letter <= "鿿" for letter in words)


# ---- quality over resolution

NAMES = {"read, small print": "read_small", "count": "count", "mystery": "mystery"}


def test_quality_draws_every_task_and_their_mean_with_intervals(measure):
    frame = measure().sample(frac=1, random_state=3)  # in no order
    lines = drawn(plots.quality(frame))
    want = frame[(frame["precision"] == "fp32") & (frame["batch_size"] == 1)]
    want = want.set_index("resolution").loc[list(SIDES)]
    assert set(lines) == {"mean of the tasks", *NAMES}
    for name, (_, y, ends) in lines.items():
        column = f"quality_{NAMES[name]}" if name in NAMES else "quality"
        np.testing.assert_allclose(y, want[column].astype(float))
        np.testing.assert_allclose(ends[:, 0], want[f"{column}_low"].astype(float))
        np.testing.assert_allclose(ends[:, 1], want[f"{column}_high"].astype(float))
        assert (ends[:, 0] < ends[:, 1]).all()
    np.testing.assert_allclose(lines["count"][1], [0.75, 0.9, 0.95, 1])
    np.testing.assert_allclose(lines["mean of the tasks"][1][0], (0 + 0.75 + 0.45) / 3)


def test_quality_has_a_tick_for_each_resolution_and_points_beside_each_other(measure):
    ax = plots.quality(measure())
    ticks = ax.get_xticks()
    assert [t.get_text() for t in ax.get_xticklabels()] == ["128", "256", "512", "native"]
    np.testing.assert_allclose(ticks[:3], [7, 8, 9])  # doublings
    assert ticks[3] > ticks[2]
    places = np.array([x for x, _, _ in drawn(ax).values()])
    assert np.abs(places - ticks).max() < 0.5 * np.diff(ticks).min()
    assert all(len(set(column)) == len(places) for column in places.T)


def test_quality_says_what_it_shows(measure):
    ax = plots.quality(measure())
    assert ax.get_title() == "Quality by resolution · fp32 · batch 1 · 60 items"
    assert ax.get_ylabel() == "mean score (0–1)"
    assert "resolution (px" in ax.get_xlabel()
    assert ax.get_ylim()[0] <= 0 and ax.get_ylim()[1] >= 1
    assert legend_texts(ax) == ["mean of the tasks", *NAMES, "95% interval over items"]
    mean, *tasks = [container[0] for container in ax.containers]
    assert all(mean.get_linewidth() > 2 * line.get_linewidth() for line in tasks)
    assert len({to_hex(line.get_color()) for line in (mean, *tasks)}) == 4


def test_quality_of_chosen_settings(measure):
    frame = measure()
    ax = plots.quality(frame, precision="bf16", batch_size=8)
    assert "bf16 · batch 8" in ax.get_title()
    np.testing.assert_allclose(drawn(ax)["count"][1], [14 / 20, 17 / 20, 18 / 20, 19 / 20])
    with pytest.raises(ConfigError, match="int8"):
        plots.quality(frame, precision="int8")


def test_quality_leaves_by_task_settings_out(measure):
    ax = plots.quality(measure(resolutions=("256", "by_task")))
    assert [t.get_text() for t in ax.get_xticklabels()] == ["256"]


def test_quality_of_one_task_has_no_line_of_means_upon_it(measure):
    ax = plots.quality(measure(tasks=("count",)))
    assert list(drawn(ax)) == ["count"]
    np.testing.assert_allclose(drawn(ax)["count"][0], ax.get_xticks())


def test_quality_range_of_items_where_answers_are_missing(measure):
    frame = measure()
    frame.loc[frame["resolution"] == "native", "quality_items"] = 57
    assert plots.quality(frame).get_title().endswith("57–60 items")


def test_quality_without_intervals_has_no_bars(measure):
    frame = measure()
    bounds = [c for c in frame if c.startswith("quality") and c.endswith(("_low", "_high"))]
    frame[bounds] = None
    ax = plots.quality(frame)
    ax.figure.canvas.draw()
    assert "95% interval over items" not in legend_texts(ax)
    assert all(np.isnan(ends).all() for _, _, ends in drawn(ax).values())
    assert all(np.isfinite(y).all() for _, y, _ in drawn(ax).values())


def test_agreement_is_not_called_a_score(measure):
    frame = measure().assign(quality_kind="agreement")
    assert plots.quality(frame).get_ylabel() == "agreement with the reference setting (0–1)"
    assert plots.quality_cost(frame).get_ylabel() == plots.quality(frame).get_ylabel()
    assert plots.precision_loss(frame).get_ylabel() == "change in agreement (percentage points)"
    frame.loc[0, "quality_kind"] = "answers"
    assert plots.quality_cost(frame).get_ylabel() == "quality (0–1)"


def test_quality_of_a_frame_without_it_is_refused(measure):
    frame = measure(tasks=())
    for draw in (plots.quality, plots.precision_loss):
        with pytest.raises(ConfigError, match="no setting has a quality"):
            draw(frame)


def test_names_of_close_resolutions_do_not_overlap(make_run, make_repeat):
    names = ("448", "480", "512", "1024", "2048", "native")
    told = scores("fp32", "256")
    runs = [make_run([make_repeat()], key=n, scores=told, resolution=n) for n in names]
    ax = plots.quality(table(runs).assign(precision="fp32"))
    ax.figure.canvas.draw()
    boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
    assert len(boxes) == 6 and all(a.x1 < b.x0 for a, b in pairwise(boxes))
    lines = [line for line, _, _ in ax.containers]
    assert all((np.diff(line.get_xdata()) > 0).all() for line in lines)


def test_many_tasks_look_different_and_keep_to_their_resolution(make_run, make_repeat):
    told = {f"task {i}": TaskScores("exact_match", (1.0, 0.0)).to_dict() for i in range(16)}
    parts = {"scores": told, "precision": "fp32"}
    runs = [make_run([make_repeat()], resolution=side, **parts) for side in (256, 512)]
    lines = [container[0] for container in plots.quality(table(runs)).containers]
    assert len({(to_hex(line.get_color()), line.get_marker()) for line in lines}) == 17
    left, right = np.array([line.get_xdata() for line in lines]).T
    assert len(set(left)) == 17 and left.max() < right.min()


def test_the_mean_of_two_tasks_stands_between_them_at_its_tick(measure):
    ax = plots.quality(measure(tasks=("count", "mystery")))
    (_, mean), (_, count), (_, mystery) = ((k, v[0]) for k, v in drawn(ax).items())
    np.testing.assert_allclose(mean, ax.get_xticks())
    assert (count < mean).all() and (mean < mystery).all()


# ---- quality against cost


def offsets(ax) -> list[tuple[float, float]]:
    """Where settings are drawn; rings around named ones are not."""
    points = [c for c in ax.collections if len(c.get_facecolor()) and hasattr(c, "get_sizes")]
    return sorted(tuple(map(float, at)) for c in points for at in c.get_offsets())


def bars(ax) -> set[tuple[float, float, float]]:
    """x, low and high of each bar."""
    (container,) = ax.containers
    return {
        (round(s[0, 0], 9), round(s[0, 1], 9), round(s[1, 1], 9)) for s in bar_segments(container)
    }


def bar_segments(container) -> list[np.ndarray]:
    return container[2][0].get_segments()


def intervals(rows: pd.DataFrame) -> set[tuple[float, float, float]]:
    columns = rows[[COST, "quality_low", "quality_high"]].astype(float)
    return {tuple(round(v, 9) for v in row) for row in columns.to_numpy()}


def unbeaten(rows: pd.DataFrame) -> pd.DataFrame:
    """Settings without another one that is as cheap and as good, and either cheaper or better."""
    cost, good = rows[COST].astype(float), rows["quality"].astype(float)
    beaten = [
        ((cost <= c) & (good >= q) & ((cost < c) | (good > q))).any()
        for c, q in zip(cost, good, strict=True)
    ]
    return rows[~np.array(beaten)].sort_values(COST)


def test_quality_cost_draws_every_setting_with_a_quality(measure):
    frame = measure(precisions=("fp32", "bf16", "int8"), resolutions=(*SIDES, "by_task"))
    frame.loc[3, "quality"] = None
    frame.loc[5, "status"] = "error"
    ax = plots.quality_cost(frame)
    rows = frame.drop(index=[3, 5])
    want = sorted(zip(rows[COST], rows["quality"].astype(float), strict=True))
    np.testing.assert_allclose(offsets(ax), want)
    assert legend_texts(ax) == [
        *("128 px", "256 px", "512 px", "native", "by task: the article's"),
        *("fp32", "bf16", "int8"),
        *("Pareto front", "95% interval over items"),
    ]
    colours = [handle.get_color() for handle in ax.get_legend().legend_handles[:5]]
    assert len(set(colours)) == 5
    assert ax.get_title() == "Cost per 100 images and quality of the answers · 60 items"
    wide = "¥ per 100 images, logarithmic"
    assert (ax.get_xlabel(), ax.get_ylabel()) == (wide, "mean score (0–1)")


def test_quality_cost_front_is_what_no_setting_beats(measure):
    frame = measure(precisions=("fp32", "bf16", "int8"))
    ax = plots.quality_cost(frame)
    (front,) = [line for line in ax.lines if line.get_label() == "Pareto front"]
    want = unbeaten(frame)
    np.testing.assert_allclose(front.get_xdata(), want[COST])
    np.testing.assert_allclose(front.get_ydata(), want["quality"].astype(float))
    assert front.get_drawstyle() == "steps-post"
    assert 2 < len(want) < len(frame) / 2


def test_quality_cost_has_bars_on_the_front_and_the_named_points_alone(measure):
    frame = measure(precisions=("fp32", "bf16", "int8"))
    assert bars(plots.quality_cost(frame)) == intervals(unbeaten(frame))
    advice = recommend(frame)
    named = frame[frame["key"] == advice.current["key"]]
    assert not set(named.index) & set(unbeaten(frame).index)
    want = intervals(unbeaten(frame)) | intervals(named) | intervals(advice.best.to_frame().T)
    assert bars(plots.quality_cost(frame, advice)) == want


def test_quality_cost_without_intervals(measure):
    frame = measure()
    frame[["quality_low", "quality_high"]] = None
    ax = plots.quality_cost(frame)
    assert all(np.isnan(bar).all() for bar in bar_segments(ax.containers[0]))
    assert "95% interval over items" not in legend_texts(ax)


def test_quality_cost_names_todays_and_the_recommended_point(measure):
    frame = measure()
    advice = recommend(frame)
    ax = plots.quality_cost(frame, advice)
    rows = [advice.current, advice.best]
    assert [note.xy for note in ax.texts] == [(r[COST], r["quality"]) for r in rows]
    today, best = shown(ax)
    assert today.startswith("today: ¥") and "fp32 · native\nbatch 1" in today
    assert best.startswith("recommended: ¥")
    ax.figure.canvas.draw()
    highest = ax.transData.transform((0, 1))[1]
    boxes = [Text.get_window_extent(note) for note in ax.texts]  # without their lines
    assert all(box.y0 > highest for box in boxes) and boxes[1].x1 < boxes[0].x0


def limits(ax) -> list[float]:
    found = [line for line in ax.lines if str(line.get_label()).startswith("lowest quality")]
    return [line.get_ydata()[0] for line in found]


def test_quality_cost_draws_the_limit(measure):
    frame = measure()
    assert limits(plots.quality_cost(frame)) == []
    ax = plots.quality_cost(frame, min_quality=0.8)
    assert limits(ax) == [0.8] and "lowest quality allowed: 0.80" in legend_texts(ax)
    advice = recommend(frame, min_quality=0.5)
    assert limits(plots.quality_cost(frame, advice)) == [0.5]
    assert limits(plots.quality_cost(frame, advice, min_quality=0.7)) == [0.7]
    with pytest.raises(ConfigError, match="from 0 to 1, not 80"):
        plots.quality_cost(frame, min_quality=80)


def test_quality_cost_of_an_unpriced_frame_is_in_seconds(measure):
    frame = measure().drop(columns=COST)
    ax = plots.quality_cost(frame, recommend(frame))
    assert ax.get_xlabel() == "seconds per 100 images, logarithmic"
    assert {x for x, _ in offsets(ax)} == set(frame["s_per_100_images"])
    assert shown(ax)[0].split("\n")[0].endswith(" s")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quality": None}, "quality was not measured"),
        ({"status": "oom"}, "no setting was measured to the end"),
    ],
)
def test_quality_cost_without_a_point_says_why(measure, changes, words):
    frame = measure()
    advice = recommend(frame)
    ax = plots.quality_cost(frame.assign(**changes), advice, min_quality=0.5)
    assert shown(ax) == [words] and not ax.collections
    assert ax.get_title() == "Cost per 100 images and quality of the answers"


# ---- lower precision


def test_precision_loss_in_percentage_points(measure):
    frame = measure(precisions=("int8", "bf16", "fp32"), batches=(1,))
    ax = plots.precision_loss(frame)
    means = frame.pivot(index="resolution", columns="precision", values="quality").astype(float)
    means = means.loc[list(SIDES)]
    table = precision_loss(frame).set_index(["precision", "resolution"])
    points = {}
    for line, _, (segments,) in ax.containers:
        side = ["", "bf16", "int8"][{"s": 1, "D": 2}[line.get_marker()]]
        for x, y, bar in zip(
            line.get_xdata(), line.get_ydata(), segments.get_segments(), strict=True
        ):
            points[side, SIDES[round(x)]] = y
            row = table.loc[side, SIDES[round(x)]]
            np.testing.assert_allclose(bar[:, 1], [100 * row["low"], 100 * row["high"]])
            filled = to_hex(line.get_markerfacecolor()) != "#ffffff"
            assert filled == (row["p_value"] < 0.05)
    assert len(points) == 8 and {p < 0.05 for p in table["p_value"]} == {True, False}
    for (precision, side), y in points.items():
        assert y == pytest.approx(100 * (means[precision] - means["fp32"])[side])


def test_precision_loss_says_what_it_shows(measure):
    ax = plots.precision_loss(measure(precisions=("fp32", "bf16", "int8"), batches=(8,)))
    assert ax.get_title() == "Change in quality by lower precision, against fp32 · 60 items"
    assert ax.get_ylabel() == "change in mean score (percentage points)"
    assert [t.get_text() for t in ax.get_xticklabels()] == list(SIDES)
    zero = [line for line in ax.lines if list(line.get_ydata()) == [0, 0]]
    assert len(zero) == 1 and ax.get_ylim()[0] < 0 < ax.get_ylim()[1]
    assert ax.yaxis.get_major_formatter()(-2, 0) == "−2"
    assert ax.yaxis.get_major_formatter()(2, 0) == "+2"
    assert legend_texts(ax) == [
        *("bf16", "int8", "difference with p < 0.05", "within noise (p ≥ 0.05)"),
        "95% interval over items",
    ]
    assert ax.get_legend().get_title().get_text() == "batch 8"


def test_precision_loss_batches_stand_side_by_side(measure):
    ax = plots.precision_loss(measure(batches=(1, 8, 32)))
    at = {}
    for line, _, _ in ax.containers:
        for x in line.get_xdata():
            at.setdefault(round(x), []).append((x, line.get_markersize()))
    assert list(at) == [0, 1, 2, 3]
    for points in at.values():
        assert len({x for x, _ in points}) == 3
        sizes = [size for _, size in sorted(points)]
        assert sizes == sorted(set(sizes))  # the smallest batch first
        assert max(abs(b - a) for (a, _), (b, _) in combinations(points, 2)) < 0.5
    assert ax.get_legend().get_title().get_text() == "larger marker: larger batch"


def test_precision_loss_of_settings_by_task(measure):
    frame = measure(resolutions=("native", "by_task", "128"), batches=(1,))
    ax = plots.precision_loss(frame)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["128", "native", "by task"]


@pytest.mark.parametrize("cells", [{"precisions": ("bf16",)}, {"batches": (1,)}], ids=str)
def test_precision_loss_with_nothing_to_compare_says_so(measure, cells):
    frame = measure(**cells)
    twins = frame["precision"].eq("bf16") & frame["resolution"].eq("512")
    lonely = frame["precision"].eq("fp32") & frame["resolution"].eq("256")
    ax = plots.precision_loss(frame[twins | lonely])
    assert shown(ax) == ["no setting was measured in two precisions: nothing to compare"]
    assert not ax.containers and ax.get_title()


# ---- all three


def everything(frame, lang="en"):
    return [
        plots.quality(frame, lang=lang),
        plots.quality_cost(frame, recommend(frame), lang=lang),
        plots.precision_loss(frame, lang=lang),
    ]


@pytest.mark.parametrize(
    "cells",
    [
        {"resolutions": ("512",)},
        {"resolutions": ("native",), "batches": (1,)},
        {"precisions": ("bf16",)},
        {"repeats": 1},
        {"tasks": ("mystery",)},
    ],
    ids=str,
)
def test_small_frames_draw_without_warnings(measure, cells):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for ax in everything(measure(**cells)):
            ax.figure.canvas.draw()


def test_given_axes_are_drawn_into(measure):
    frame = measure()
    figure, axes = plt.subplots(1, 4)
    assert plots.quality(frame, axes[0]) is axes[0]
    assert plots.quality_cost(frame, None, axes[1]) is axes[1]
    assert plots.precision_loss(frame, axes[2]) is axes[2]
    assert [ax.has_data() for ax in axes] == [True, True, True, False]
    assert plt.get_fignums() == [figure.number]


@pytest.mark.slow
def test_chinese_figures_have_every_word_and_glyph(measure):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        axes = everything(measure(precisions=("fp32", "bf16", "int8")), "zh")
        for ax in axes:
            ax.figure.canvas.draw()
            assert all(map(is_chinese, (ax.get_title(), ax.get_xlabel(), ax.get_ylabel())))
    over_resolution, against_cost, lower = axes
    assert legend_texts(over_resolution)[:4] == ["各任务平均", "小字编号", "计数", "mystery"]
    assert over_resolution.get_title() == "各分辨率下的质量·fp32·批量 1·60 题"
    assert over_resolution.get_xticklabels()[-1].get_text() == "原始尺寸"
    assert any(words.startswith("质量下限：") for words in legend_texts(against_cost))
    assert "在噪声范围内（p ≥ 0.05）" in legend_texts(lower)


def test_chinese_empty_panels(measure):
    frame = measure(precisions=("bf16",))
    assert shown(plots.precision_loss(frame, lang="zh")) == ["没有配置用两种精度测量，无法比较"]
    assert shown(plots.quality_cost(frame.assign(quality=None), lang="zh")) == ["未测量质量"]
