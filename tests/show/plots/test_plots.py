"""Figures draw what plain pandas reads from the frame."""

from __future__ import annotations

import warnings
from dataclasses import replace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex

from qvl_lab.analysis.frame import frame as table
from qvl_lab.analysis.money.cost import price
from qvl_lab.analysis.money.recommend import recommend
from qvl_lab.errors import ConfigError, UnknownNameError
from qvl_lab.runs.records import STAGES, Repeat, Run
from qvl_lab.show import plots, wording

BATCHES, RESOLUTIONS, PRECISIONS = (1, 2, 4, 8, 16), ("native", "512", "256"), ("bf16", "fp32")
PIXELS = {"256": 0.25, "512": 0.5, "1024": 1.0, "native": 1.6, "by_task": 0.7}


def repeat(batch: int, resolution: str, precision: str, nth: int) -> Repeat:
    slow = {"fp32": 1.0, "bf16": 0.4}[precision] * (1 + 0.02 * nth)
    stages = dict.fromkeys(STAGES, 0.01)
    stages |= {"vision": slow * PIXELS[resolution], "decode": 8 * slow / batch, "other": 0.05}
    return Repeat(
        wall_s=sum(stages.values()),
        answered=4,
        failed=0,
        prompt_tokens=400,
        visual_tokens=int(400 * PIXELS[resolution]),
        new_tokens=64,
        stages_s=stages,
        ttft_s=[0.1 * batch * slow] * 4,
        e2e_s=[1.0] * 4,
        batch_s=[1.0],
    )


def make(batch, resolution, precision, status="ok", repeats=3, memory="reserved", **config) -> Run:
    size = int((4 + batch * PIXELS[resolution]) * 2**30 * (1 if precision == "fp32" else 0.5))
    config = {"batch_size": batch, "resolution": resolution, "precision": precision} | config
    ok = status == "ok"
    return Run(
        key=str(config),
        status=status,
        started_at="2025-01-01T00:00:00Z",
        config={"engine": "stock", "seed": 0} | config,
        workload={"name": "mixed", "items": 4, "images": 4, "fingerprint": "f"},
        repeats=[repeat(batch, resolution, precision, i) for i in range(repeats if ok else 0)],
        memory={memory: size} if ok and memory else {},
    )


def status_of(batch: int, resolution: str, precision: str) -> str:
    if (resolution, precision) != ("native", "fp32") or batch < 4:
        return "ok"
    return "oom" if batch == 4 else "skipped"


def grid(
    batches=BATCHES, resolutions=RESOLUTIONS, precisions=PRECISIONS, **options
) -> pd.DataFrame:
    cells = [(b, r, p) for p in precisions for r in resolutions for b in batches]
    return table([make(*c, **({"status": status_of(*c)} | options)) for c in cells])


@pytest.fixture
def unpriced():
    return grid()


@pytest.fixture
def frame(unpriced):
    return price(unpriced, per_hour=36, currency="CNY")


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def shown(figure) -> list[str]:
    figure.canvas.draw()
    return [t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_text().strip()]


def legend_texts(legend) -> list[str]:
    return [t.get_text() for t in legend.get_texts()]


def cell_texts(ax) -> dict[tuple[int, int], str]:
    return {(int(t.get_position()[0]), int(t.get_position()[1])): t.get_text() for t in ax.texts}


# ---- curve


def test_a_first_token_by_an_older_clock_is_not_drawn():
    run = make(8, "512", "bf16")
    older = replace(run, repeats=[replace(r, e2e_s=[]) for r in run.repeats])
    assert not plots.curve(table([older]), "ttft_s").containers


COLUMNS = {
    "images_per_s": "images_per_s",
    "cost": "cost_cny_per_100_images",
    "ttft_s": "ttft_s",
    "s_per_100_images": "s_per_100_images",
}


@pytest.mark.parametrize("metric", COLUMNS)
def test_curve_draws_medians_and_intervals(frame, metric):
    rows = frame[frame["precision"] == "fp32"]
    ax = plots.curve(rows, metric)
    assert len(ax.containers) == 3
    for resolution, bars in zip(("256", "512", "native"), ax.containers, strict=True):
        want = rows[(rows["resolution"] == resolution) & (rows["status"] == "ok")]
        want = want.sort_values("batch_size")
        line, _, (intervals,) = bars
        np.testing.assert_array_equal(line.get_xdata(), want["batch_size"])
        np.testing.assert_allclose(line.get_ydata(orig=False), want[COLUMNS[metric]].astype(float))
        ends = np.array([segment[:, 1] for segment in intervals.get_segments()])
        np.testing.assert_allclose(ends[:, 0], want[f"{COLUMNS[metric]}_low"])
        np.testing.assert_allclose(ends[:, 1], want[f"{COLUMNS[metric]}_high"])
        assert (ends[:, 1] > ends[:, 0]).all()


def test_curve_of_memory_is_in_gib_and_says_which(frame):
    rows = frame[(frame["precision"] == "bf16") & (frame["resolution"] == "512")]
    ax = plots.curve(rows, "vram")
    np.testing.assert_allclose(
        ax.containers[0][0].get_ydata(orig=False), rows["peak_reserved_bytes"].astype(float) / 2**30
    )
    assert ax.get_title() == "Peak VRAM"
    assert ax.get_ylabel() == "peak VRAM (GiB)"
    process = plots.curve(grid(memory="process"), "vram")
    assert process.get_title() == "Peak process memory"


def test_curve_axes_have_measured_batches_and_money(frame):
    ax = plots.curve(frame, "cost")
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "2", "4", "8", "16"]
    assert ax.get_xscale() == "log" and ax.xaxis.get_transform().base == 2
    assert ax.get_ylabel() == "¥ per 100 images"
    cost = frame["cost_cny_per_100_images"]
    assert cost.max() / cost.min() > 8 and ax.get_yscale() == "log"
    assert ax.yaxis.get_major_formatter()(0.5, 0) == "¥0.5"


def test_curve_is_linear_from_zero_when_the_range_is_narrow(frame):
    narrow = frame[(frame["batch_size"] <= 2) & (frame["precision"] == "bf16")]
    ax = plots.curve(narrow, "cost")
    assert ax.get_yscale() == "linear" and ax.get_ylim()[0] == 0


def test_curve_marks_and_hatches_what_was_not_measured(frame):
    ax = plots.curve(frame[frame["precision"] == "fp32"], "images_per_s")
    marks = {(line.get_marker(), x) for line in ax.lines[-3:] for x in line.get_xdata()}
    assert marks == {("x", 4), ("o", 8), ("o", 16)}
    (region,) = [p for p in ax.patches if p.get_hatch()]
    assert region.get_x() == pytest.approx(np.sqrt(2 * 4))  # half a step before batch 4
    names = legend_texts(ax.get_legend())
    assert names[:3] == ["256 px", "512 px", "native"]
    assert {"out of memory", "skipped"} <= set(names)
    assert ax.get_legend().get_title().get_text() == "resolution"


def test_curve_without_failures_has_no_such_legend(frame):
    ax = plots.curve(frame[frame["precision"] == "bf16"], "images_per_s")
    assert legend_texts(ax.get_legend())[:3] == ["256 px", "512 px", "native"]
    assert not {"out of memory", "skipped"} & set(legend_texts(ax.get_legend()))
    assert not [p for p in ax.patches if p.get_hatch()]


def test_curve_leaves_out_what_a_failed_run_got_done(frame):
    failed = frame.copy()
    failed.loc[failed["batch_size"] == 2, "status"] = "error"
    ax = plots.curve(failed[failed["precision"] == "bf16"], "images_per_s")
    assert list(ax.containers[0][0].get_xdata(orig=False)) == [1, 4, 8, 16]
    assert "failed" in legend_texts(ax.get_legend())


def test_resolutions_are_in_order_of_size():
    frame = grid(batches=(1,), resolutions=("by_task", "native", "1024", "256"))
    ax = plots.curve(frame[frame["precision"] == "bf16"], "images_per_s")
    assert legend_texts(ax.get_legend())[:4] == ["256 px", "1024 px", "native", "by task"]
    heat = plots.feasible(frame).axes[0]
    names = [t.get_text() for t in heat.get_yticklabels()]
    assert names == ["256 px", "1024 px", "native", "by task"]


def test_curve_never_joins_different_settings(frame):
    ax = plots.curve(frame, "images_per_s")
    assert len(ax.containers) == 6
    assert "256 px · bf16" in legend_texts(ax.get_legend())


def test_curve_draws_into_given_axes(frame):
    figure, axes = plt.subplots(1, 2)
    assert plots.curve(frame, "ttft_s", axes[1]) is axes[1]
    assert axes[1].has_data() and not axes[0].has_data()
    assert plt.get_fignums() == [figure.number]


def test_single_repeats_have_no_interval(unpriced):
    ax = plots.curve(grid(repeats=1, precisions=("bf16",)), "images_per_s")
    ax.figure.canvas.draw()
    ends = np.array([s for c in ax.containers for s in c[2][0].get_segments()])
    assert ends.size == 0 or np.isnan(ends[..., 1]).all()
    assert "95% interval over repeats" not in legend_texts(ax.get_legend())


def test_unknown_names_list_the_allowed_ones(frame, unpriced):
    with pytest.raises(UnknownNameError, match=r"'vrma'.*mean 'vram'.*images_per_s"):
        plots.curve(frame, "vrma")
    with pytest.raises(UnknownNameError, match="Allowed: en, zh"):
        plots.curves(frame, lang="fr")
    with pytest.raises(UnknownNameError, match="Allowed: bf16, fp32"):
        plots.feasible(frame, precision="fp8")
    with pytest.raises(ConfigError, match="price"):
        plots.curve(unpriced, "cost")
    with pytest.raises(ConfigError, match="no rows"):
        plots.curve(frame.iloc[:0], "images_per_s")


# ---- curves


def test_curves_have_a_row_per_metric_and_a_column_per_precision(frame):
    figure = plots.curves(frame)
    panels = np.array(figure.axes).reshape(3, 2)
    assert [ax.get_title() for ax in panels[0]] == ["fp32", "bf16"]
    assert panels[2, 0].get_ylabel() == "¥ per 100 images"
    for row in panels:
        assert row[0].get_ylim() == row[1].get_ylim()
    assert len(figure.legends) == 1 and not any(ax.get_legend() for ax in figure.axes)
    want = frame[(frame["precision"] == "bf16") & (frame["resolution"] == "native")]
    drawn = panels[0, 1].containers[2][0].get_ydata(orig=False)
    np.testing.assert_allclose(drawn, want["images_per_s"])


def test_curves_leave_cost_out_of_unpriced_frames(unpriced):
    assert len(plots.curves(unpriced).axes) == 2 * 2
    with pytest.raises(ConfigError, match="price"):
        plots.curves(unpriced, metrics=("cost",))


def test_figures_are_not_left_in_pyplot(frame):
    plots.curves(frame)
    plots.feasible(frame)
    assert plt.get_fignums() == []


# ---- feasible


def test_feasible_writes_each_cell(frame):
    fp32, bf16, _bar = plots.feasible(frame).axes
    assert [t.get_text() for t in fp32.get_yticklabels()] == ["256 px", "512 px", "native"]
    costs = frame[frame["precision"] == "bf16"].set_index(["resolution", "batch_size"])
    costs = costs["cost_cny_per_100_images"]
    for (x, y), words in cell_texts(bf16).items():
        assert float(words) == pytest.approx(
            costs[("256", "512", "native")[y], BATCHES[x]], rel=0.05
        )
    assert len(cell_texts(bf16)) == 15
    assert [cell_texts(fp32)[x, 2] for x in (2, 3, 4)] == ["OOM", "skipped", "skipped"]
    assert len([p for p in fp32.patches if p.get_hatch()]) == 3


def test_feasible_draws_the_boundary(frame):
    ax = plots.feasible(frame, precision="fp32").axes[0]
    (lines,) = [c for c in ax.collections if isinstance(c, LineCollection)]
    edges = {tuple(map(tuple, segment)) for segment in lines.get_segments()}
    assert edges == {
        ((1.5, 1.5), (1.5, 2.5)),  # native: batch 2 fits, 4 does not
        *(((x - 0.5, 1.5), (x + 0.5, 1.5)) for x in (2, 3, 4)),  # 512 px fits at 4, 8, 16
    }


def test_feasible_shows_throughput_of_unpriced_frames(unpriced):
    ax = plots.feasible(unpriced, precision="bf16").axes[0]
    rows = unpriced[(unpriced["precision"] == "bf16") & (unpriced["resolution"] == "256")]
    want = rows.set_index("batch_size")["images_per_s"]
    got = [float(cell_texts(ax)[x, 0]) for x in range(5)]
    np.testing.assert_allclose(got, want[list(BATCHES)], rtol=0.01)


def test_feasible_keeps_the_best_of_a_cell_and_says_so(frame):
    worse = frame.copy()
    worse["engine"] = "slow"
    worse["cost_cny_per_100_images"] *= 7
    both = pd.concat([worse, frame])  # with a repeated index
    figure = plots.feasible(both)
    assert cell_texts(figure.axes[1]) == cell_texts(plots.feasible(frame).axes[1])
    assert "best of several settings per cell (engine)" in shown(figure)


def test_feasible_leaves_unmeasured_cells_blank(frame):
    ax = plots.feasible(frame.drop(index=0), precision="bf16").axes[0]  # native, batch 1
    assert (0, 2) not in cell_texts(ax) and len(cell_texts(ax)) == 14


def test_feasible_names_failures():
    failed = table([make(1, "256", "fp32"), make(2, "256", "fp32", status="error")])
    assert cell_texts(plots.feasible(failed).axes[0])[1, 0] == "failed"


# ---- stages


def test_stages_sum_to_the_written_totals(unpriced):
    rows = unpriced[(unpriced["status"] == "ok") & (unpriced["batch_size"] == 2)]
    ax = plots.stages(rows)
    names = [f"stage_{name}_s" for name in (*STAGES, "other")]
    widths = np.array([[bar.get_width() for bar in stage] for stage in ax.containers])
    np.testing.assert_allclose(widths.T, rows[names].astype(float))
    ends = [bar.get_x() + bar.get_width() for bar in ax.containers[-1]]
    np.testing.assert_allclose(ends, widths.sum(axis=0))
    totals = [float(t.get_text().removesuffix(" s")) for t in ax.texts]
    np.testing.assert_allclose(totals, widths.sum(axis=0), rtol=0.02)
    assert ax.get_yticklabels()[0].get_text() == "bf16 · native · batch 2"
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first row on top
    assert len(legend_texts(ax.get_legend())) == len(STAGES) + 1


def test_stages_as_shares(unpriced):
    ax = plots.stages(unpriced.iloc[:2], normalise=True)
    widths = np.array([[bar.get_width() for bar in stage] for stage in ax.containers])
    np.testing.assert_allclose(widths.sum(axis=0), 100)
    plain = plots.stages(unpriced.iloc[:2])
    assert [t.get_text() for t in ax.texts] == [t.get_text() for t in plain.texts]


def test_stages_keep_a_place_for_what_was_not_measured(unpriced):
    rows = unpriced[unpriced["status"].isin(["oom", "skipped"])].iloc[:2]
    assert [t.get_text() for t in plots.stages(rows).texts] == ["out of memory", "skipped"]


def test_a_stage_has_one_colour_each():
    assert len(set(plots.STAGE_COLOURS.values())) == len(STAGES) + 1


# ---- waterfall


def spans(ax) -> list[tuple[float, float]]:
    """Where each bar begins and ends; a falling one ends lower."""
    bars = [c.patches[0] for c in ax.containers if hasattr(c, "patches")]
    return [(b.get_y(), b.get_y() + b.get_height()) for b in bars]


def test_waterfall_goes_from_todays_to_the_recommended_cost(frame):
    advice = recommend(frame[frame["resolution"] == "512"], hold=())
    ax = plots.waterfall(advice)
    first, *steps, last = spans(ax)
    column = "cost_cny_per_100_images"
    np.testing.assert_allclose(first, (0, advice.current[column]))
    np.testing.assert_allclose(last, (0, advice.best[column]))
    assert len(steps) == len(advice.steps) == 2
    path = [first[1], *(end for _, end in steps)]
    np.testing.assert_allclose([start for start, _ in steps], path[:-1])
    assert path[-1] == pytest.approx(last[1])
    np.testing.assert_allclose(path[1:], [step.row[column] for step in advice.steps])
    names = [t.get_text() for t in ax.get_xticklabels()]
    assert names[1:3] == ["batch 1 → 16", "fp32 → bf16"]
    change = 100 * (advice.best[column] / advice.current[column] - 1)
    assert ax.get_title().endswith(f"−{abs(change):.0f}%")


def test_waterfall_step_that_makes_it_dearer_rises_in_another_colour(frame):
    advice = recommend(frame[frame["resolution"] == "512"], hold=())
    one, two = advice.steps
    dearer = replace(one, after_s=2 * one.before_s)
    ax = plots.waterfall(replace(advice, steps=[dearer, replace(two, before_s=dearer.after_s)]))
    colours = [to_hex(c.patches[0].get_facecolor()) for c in ax.containers if hasattr(c, "patches")]
    assert colours[1] != colours[2] and spans(ax)[1][1] == pytest.approx(2 * spans(ax)[1][0])
    words = ax.texts[1].get_text()
    assert words.startswith("+¥") and words.endswith("+100%")


def test_waterfall_of_an_unpriced_frame_is_in_seconds(unpriced):
    advice = recommend(unpriced)
    ax = plots.waterfall(advice)
    assert ax.get_ylabel() == "seconds per 100 images"
    np.testing.assert_allclose(spans(ax)[-1], (0, advice.best["s_per_100_images"]))


def test_waterfall_says_when_nothing_can_be_gained(frame):
    advice = recommend(frame[(frame["batch_size"] == 1) & (frame["precision"] == "fp32")])
    ax = plots.waterfall(advice)
    assert "already" in ax.get_title() and len(spans(ax)) == 2


def test_waterfall_names_settings_of_the_fast_engine_only_between_two_of_it():
    def named(today: str) -> str:
        before = make(1, "512", "fp32", engine=today, prefill_chunk=8192)
        after = make(16, "512", "fp32", engine="fast", prefill_chunk=32768)
        ax = plots.waterfall(recommend(table([before, after]), current={"batch_size": 1}))
        return ax.get_xticklabels()[1].get_text()

    assert named("stock") == "batch 1 → 16\nengine stock → fast"
    assert named("fast") == "batch 1 → 16\nprefill chunk 8192 → 32768"


# ---- tradeoff


def test_tradeoff_draws_every_measured_setting(frame):
    ax = plots.tradeoff(frame)
    points = np.concatenate([c.get_offsets() for c in ax.collections])
    rows = frame[frame["status"] == "ok"]
    want = np.column_stack(
        [rows["cost_cny_per_100_images"], rows["peak_reserved_bytes"].astype(float) / 2**30]
    )
    np.testing.assert_allclose(sorted(map(tuple, points)), sorted(map(tuple, want)))


def test_tradeoff_front_is_what_no_setting_beats(frame):
    (front,) = plots.tradeoff(frame).lines
    rows = frame[frame["status"] == "ok"]
    cost, memory = rows["cost_cny_per_100_images"], rows["peak_reserved_bytes"].astype(float)
    beaten = [
        ((cost <= c) & (memory <= m) & ((cost < c) | (memory < m))).any()
        for c, m in zip(cost, memory, strict=True)
    ]
    want = sorted(cost[~np.array(beaten)])
    np.testing.assert_allclose(front.get_xdata(), want)
    assert 1 < len(want) < len(rows)


def test_tradeoff_names_todays_and_the_recommended_point(frame):
    advice = recommend(frame, hold=("resolution",))
    ax = plots.tradeoff(frame, advice)
    column = "cost_cny_per_100_images"
    assert [note.xy[0] for note in ax.texts] == [advice.current[column], advice.best[column]]
    assert ax.texts[0].get_text().startswith("today: ¥")
    assert "bf16" in ax.texts[1].get_text()


def test_a_setting_that_is_todays_and_the_best_is_named_once(frame):
    only = frame[(frame["batch_size"] == 1) & (frame["precision"] == "fp32")]
    ax = plots.tradeoff(only, recommend(only))
    (note,) = ax.texts
    assert note.get_text().startswith("today and recommended: ¥")


def test_one_setting_that_beats_all_others_has_no_front(frame):
    ax = plots.tradeoff(frame[(frame["batch_size"] == 1) & (frame["precision"] == "fp32")])
    assert not ax.lines and "Pareto front" not in legend_texts(ax.get_legend())


def test_engines_have_markers_of_their_own():
    runs = [make(1, "256", "bf16", engine=engine) for engine in ("stock", "fast")]
    ax = plots.tradeoff(table(runs))
    assert {"bf16 · fast engine", "bf16 · stock engine"} <= set(legend_texts(ax.get_legend()))
    assert len({tuple(c.get_paths()[0].vertices.ravel()) for c in ax.collections}) == 2


# ---- over resolution


def test_one_batch_size_is_drawn_over_resolution(frame):
    rows = frame[frame["batch_size"] == 2]
    figure = plots.resolution_curves(rows)
    assert [ax.get_title() for ax in figure.axes] == [
        "Throughput",
        "Peak VRAM",
        "Cost per 100 images",
    ]
    speed = figure.axes[0]
    assert [tick.get_text() for tick in speed.get_xticklabels()] == ["256", "512", "native"]
    drawn = {c.get_label(): c[0].get_ydata(orig=False) for c in speed.containers}
    assert list(drawn) == ["fp32", "bf16"]
    wanted = rows[rows["precision"] == "bf16"].set_index("resolution")["images_per_s"]
    np.testing.assert_allclose(drawn["bf16"], wanted[["256", "512", "native"]])


# ---- limits


def test_limits_say_how_far_each_stage_is_and_over_how_many_images():
    rows = {"vision": (2.0, 1.0, 0.5), "prefill": (1.0, 1.02, 1.02)}
    stages = pd.DataFrame(rows, index=["seconds", "least_s", "reached"]).T
    stages = stages.assign(times_slower=1 / stages["reached"], bound="compute")
    stages.attrs["images"] = 32
    ax = plots.limits(stages)
    assert [note.get_text() for note in ax.texts] == [
        "2.00 s · 2.0x the least · 50% of compute",
        "1.00 s · at the ceiling",
    ]
    assert ax.get_xlabel() == "seconds of one pass over 32 images"


# ---- frames with little in them


def everything(frame, lang="en"):
    """Every figure of a frame."""
    figures = [plots.curves(frame, lang=lang), plots.feasible(frame, lang=lang)]
    axes = [plots.tradeoff(frame, lang=lang), plots.stages(frame, lang=lang)]
    return [*figures, *(ax.figure for ax in axes)]


@pytest.mark.parametrize(
    "options",
    [
        {"batches": (4,)},
        {"resolutions": ("512",)},
        {"batches": (1,), "resolutions": ("by_task",), "precisions": ("bf16",)},
        {"repeats": 1},
        {"memory": None},
    ],
    ids=str,
)
def test_small_frames_draw_without_warnings(options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in everything(price(grid(**options), per_hour=1, currency="USD")):
            figure.canvas.draw()


@pytest.mark.slow
def test_a_frame_of_failures_says_so():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curves, heat, points, _ = everything(price(grid(status="oom"), per_hour=1))
        words = "no setting was measured to the end"
        assert shown(curves).count(words) == 6 and words in shown(points)
        assert shown(heat).count("OOM") == 30


def test_unknown_memory_says_not_measured():
    frame = grid(memory=None)
    assert shown(plots.curve(frame, "vram").figure).count("not measured") == 1
    assert "not measured" in shown(plots.tradeoff(frame).figure)


@pytest.mark.parametrize(("currency", "sign"), [("USD", "$"), ("AUD", "AUD")])
def test_any_currency(unpriced, currency, sign):
    frame = price(unpriced, per_hour=36, currency=currency)
    assert plots.curve(frame, "cost").get_ylabel() == f"{sign} per 100 images"
    words = plots.waterfall(recommend(frame)).texts[0].get_text()
    assert words.startswith(sign)


# ---- Chinese


def is_chinese(words: str) -> bool:
    return any("一" <= letter <= "鿿" for letter in words)


@pytest.mark.slow
def test_chinese_figures_have_every_glyph(frame):
    advice = recommend(frame)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = [*everything(frame, "zh"), plots.waterfall(advice, lang="zh").figure]
        for figure in figures:
            assert any(is_chinese(words) for words in shown(figure))
    ax = plots.curve(frame, "cost", lang="zh")
    assert is_chinese(ax.get_title()) and is_chinese(ax.get_xlabel())
    assert "¥" in ax.get_ylabel() and "原始尺寸·fp32" in legend_texts(ax.get_legend())


def test_chinese_in_axes_that_were_made_without_the_font(frame):
    _, ax = plt.subplots()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.stages(frame.iloc[:2], ax, lang="zh")
        ax.figure.canvas.draw()
    assert is_chinese(ax.get_yticklabels()[0].get_text())


def test_one_table_of_resolutions_is_told_by_the_resolution_and_two_by_where_they_differ():
    def others(*tables: str | None) -> list[str]:
        sides = ["512" if table is None else "by_task" for table in tables]
        frame = pd.DataFrame({"resolution": sides, "task_resolutions": tables})
        return wording.others(frame, ["resolution"], "en")

    assert others(None, '{"a": 1}', '{"a": 1}') == ["", "", ""]
    assert others('{"colour": 128}', '{"colour": 256}') == ["colour 128 px", "colour 256 px"]
