"""A setting whose times are not to be relied on is hollow, and named where it is drawn."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Annotation, Text

from qvl_lab.analysis.frame import frame as table
from qvl_lab.analysis.money.cost import price
from qvl_lab.analysis.money.recommend import recommend
from qvl_lab.show import plots
from qvl_lab.show.plots import points
from qvl_lab.show.plots.shared import CELL, MARKERS, readings

COST = "cost_cny_per_100_images"


@pytest.fixture
def frame(on_cpu) -> pd.DataFrame:
    """The setting in batches of four at 256 px was measured beside another process."""
    runs = [
        on_cpu(1, 10.0),
        on_cpu(4, [4.0, 9.0, 8.6]),
        on_cpu(8, 3.0),
        on_cpu(8, 2.0, resolution=128),
        on_cpu(1, 8.0, resolution=128),
    ]
    return price(table(runs), per_hour=36.0, currency="CNY")


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def words(ax) -> list[str]:
    return [t.get_text() for t in ax.findobj(Text) if t.get_text()]


def named_at(ax) -> list[tuple[float, float]]:
    """Where "unstable" is written."""
    notes = [t for t in ax.findobj(Annotation) if t.get_text() == "unstable"]
    return [tuple(map(float, note.xy)) for note in notes]


def legend_texts(legend) -> list[str]:
    return [t.get_text() for t in legend.get_texts()]


def test_only_the_slow_row_is_unstable(frame):
    assert list(frame["unstable"]) == [False, True, False, False, False]


def test_a_scatter_names_the_unstable_point_and_leaves_it_hollow(frame):
    ax = plots.tradeoff(frame)
    row = frame[frame["unstable"]].iloc[0]
    (at,) = named_at(ax)
    assert at[0] == row[COST]
    faces = {
        tuple(map(float, place)): to_hex(face)
        for points in ax.collections
        for place, face in zip(points.get_offsets(), points.get_facecolors(), strict=True)
    }
    assert [place for place, face in faces.items() if face == "#ffffff"] == [at]
    assert "hollow: unstable or disturbed" in legend_texts(ax.get_legend())


def test_a_curve_names_the_unstable_point_and_leaves_it_hollow(frame):
    ax = plots.curve(frame, "cost")
    row = frame[frame["unstable"]].iloc[0]
    assert named_at(ax) == [(4.0, row[COST])]
    hollow = [line for line in ax.lines if line.get_markerfacecolor() == "white"]
    assert [list(line.get_xdata()) for line in hollow] == [[4]]
    assert "hollow: unstable or disturbed" in legend_texts(ax.get_legend())
    (legend,) = plots.curves(frame).legends
    assert "hollow: unstable or disturbed" in legend_texts(legend)


def test_curves_over_resolution_name_it_too(frame):
    rows = frame[frame["batch_size"] == 4]
    both = pd.concat([rows, rows.assign(resolution="128", unstable=False)], ignore_index=True)
    both.attrs = frame.attrs
    figure = plots.resolution_curves(both)
    assert all(len(named_at(ax)) == 1 for ax in figure.axes)
    assert "hollow: unstable or disturbed" in legend_texts(figure.legends[0])


def test_the_map_writes_it_into_the_cell(frame):
    ax = plots.feasible(frame).axes[0]
    (note,) = [t for t in ax.texts if t.get_text() == "unstable"]
    batches = [t.get_text() for t in ax.get_xticklabels()]
    assert batches[round(note.get_position()[0])] == "4"
    faces = [to_hex(p.get_facecolor()) for p in ax.patches if p.get_width() < 1]
    assert faces == ["#ffffff"]


def test_bars_of_stages_say_it_beside_the_setting(frame):
    ax = plots.stages(frame)
    names = [t.get_text() for t in ax.get_yticklabels()]
    assert [name.endswith("\nunstable") for name in names] == [False, True, False, False, False]
    pale = {bar.get_alpha() for stage in ax.containers for bar in [stage[1]]}
    assert pale == {0.35}


def test_the_waterfall_marks_bars_that_touch_an_unstable_setting(on_cpu):
    runs = [on_cpu(1, 10.0), on_cpu(4, [2.0, 3.4, 3.0]), on_cpu(4, 1.0, precision="bf16")]
    advice = recommend(table(runs), current={"batch_size": 1}, hold=())
    ax = plots.waterfall(advice)
    names = [t.get_text() for t in ax.get_xticklabels()]
    assert names[1] == "batch 1 → 4\nunstable" and names[2] == "fp32 → bf16\nunstable"
    bars = [c.patches[0] for c in ax.containers if hasattr(c, "patches")]
    assert [bool(bar.get_hatch()) for bar in bars] == [False, True, True, False]


def test_the_waterfall_does_not_call_noise_a_saving(on_cpu):
    runs = [on_cpu(1, [9.0, 10.0, 11.0]), on_cpu(4, [8.5, 9.9, 11.0])]
    ax = plots.waterfall(recommend(table(runs), hold=()))
    assert ax.get_title().endswith("within noise")
    assert ax.texts[-1].get_text().endswith("\nwithin noise")
    assert "batch 1 → 4\nwithin noise" in [t.get_text() for t in ax.get_xticklabels()]


def test_an_outlying_interval_does_not_flatten_the_waterfall(on_cpu):
    runs = [on_cpu(1, [9.0, 10.0]), on_cpu(4, 4.0)]
    frame = table(runs)
    frame.loc[0, "s_per_100_images_high"] = 900.0
    ax = plots.waterfall(recommend(frame, hold=()))
    assert ax.get_ylim()[1] < 200
    assert ax.texts[0].get_ha() == "left" and ax.texts[1].get_ha() == "center"


def test_the_ablation_says_it_beside_the_bar(ablated):
    frame = table(ablated())
    frame.loc[frame["batch_size"].eq(4).idxmax(), "unstable"] = True
    ax = plots.ablation(frame)
    assert sum(t.get_text().startswith("unstable · ") for t in ax.texts) == 1


def test_a_disturbed_row_is_named_in_chinese(frame):
    disturbed = frame.assign(unstable=False, disturbed=frame["batch_size"] == 4)
    ax = plots.tradeoff(disturbed, lang="zh")
    assert "受干扰" in words(ax) and "空心：不稳定或受干扰" in words(ax)


def test_a_setting_that_was_not_measurable_here_is_drawn_as_such(on_cpu):
    runs = [on_cpu(1, 10.0), on_cpu(4, status="busy", reason="others used the machine")]
    frame = price(table(runs), per_hour=36.0, currency="CNY")
    assert "machine busy" in legend_texts(plots.curve(frame, "cost").get_legend())
    assert "machine busy" in [t.get_text() for t in plots.feasible(frame).axes[0].texts]
    assert "machine busy" in [t.get_text() for t in plots.stages(frame).texts]
    assert not named_at(plots.tradeoff(frame))


# ---- marks that do not repeat


def settings(on_cpu, count: int) -> pd.DataFrame:
    return table([on_cpu(4, 4.0 + i, engine="fast", prefill_chunk=512 + i) for i in range(count)])


@pytest.mark.parametrize("count", [2, len(MARKERS), len(MARKERS) + 1, 20])
def test_no_two_kinds_of_settings_have_the_same_marker(on_cpu, count):
    frame = settings(on_cpu, count)
    markers = points.kind_markers(frame, readings(frame, "s_per_100_images", CELL, "en"), "en")
    shapes = [m if isinstance(m, str) else m.vertices.tobytes() for m in markers.values()]
    assert len(set(shapes)) == len(markers) == count
    plots.tradeoff(frame).figure.canvas.draw()


def test_engines_at_one_resolution_look_different_also_as_single_points(on_cpu):
    runs = [
        on_cpu(8, 4.0),
        on_cpu(8, 3.0, cache_implementation="static"),
        on_cpu(8, 2.0, engine="fast"),
    ]
    ax = plots.curve(table(runs), "images_per_s")
    looks = {(line.get_marker(), to_hex(line.get_color())) for line, *_ in ax.containers}
    assert len({marker for marker, _ in looks}) == len({colour for _, colour in looks}) == 3


def test_a_legend_of_long_names_lies_below_and_leaves_the_axes_their_width(on_cpu):
    runs = [on_cpu(4, 4.0, engine="fast"), on_cpu(4, 3.0, engine="fast", packing=False)]
    runs.append(on_cpu(4, 2.0, engine="fast", packing=False, overlap=False, prefix_cache=True))
    ax = plots.tradeoff(table(runs))
    figure = ax.figure
    figure.canvas.draw()
    legend, axes = ax.get_legend().get_window_extent(), ax.get_window_extent()
    assert figure.get_figwidth() <= 8.4
    assert axes.width > 0.6 * figure.bbox.width
    assert legend.y1 < axes.y0 and legend.x0 >= 0 and legend.x1 <= figure.bbox.width


# ---- axes and legends in words


def test_resolutions_by_task_say_whose_table_they_are(on_cpu):
    from qvl_lab.tasks import article_resolutions

    tables = [dict(article_resolutions()), {"colour": 128}]
    runs = [on_cpu(4, 4.0, resolution="by_task", task_resolutions=each) for each in tables]
    runs.append(on_cpu(4, 5.0))
    ax = plots.tradeoff(table(runs))
    said = legend_texts(ax.get_legend())
    assert said == ["256 px", "by task: proposed", "by task: the article's", "fp32"]
    curve = plots.curve(table(runs), "images_per_s")
    assert legend_texts(curve.get_legend())[:3] == said[:3]


def test_a_logarithmic_cost_says_so(on_cpu):
    wide = table([on_cpu(1, 100.0), on_cpu(4, 4.0)])
    assert plots.tradeoff(wide).get_xlabel() == "seconds per 100 images, logarithmic"
    assert plots.tradeoff(wide.iloc[:1]).get_xlabel() == "seconds per 100 images"


def test_memory_that_hardly_differs_is_not_drawn_from_zero(on_cpu):
    near = [on_cpu(n, 4.0 * n, memory={"process": (0.5 + n / 100) * 2**30}) for n in (1, 2, 4)]
    low, high = plots.tradeoff(table(near)).get_ylim()
    assert 0.4 < low < 0.51 and 0.54 < high < 0.65
    assert plots.tradeoff(table([on_cpu(1), on_cpu(8, 4.0)])).get_ylim()[0] == 0


def test_stages_that_cannot_be_seen_are_not_in_the_legend(on_cpu):
    ax = plots.stages(table([on_cpu()]))
    assert legend_texts(ax.get_legend()) == ["vision encoder", "other"]
    shares = plots.stages(table([on_cpu()]), normalise=True)
    assert shares.get_title() != ax.get_title()
