"""Quality across settings: references, losses and proposals, on scores that can be counted."""

from __future__ import annotations

import pandas as pd
import pytest

from qvl_lab.analysis.frame import frame
from qvl_lab.analysis.money.recommend import quality_difference
from qvl_lab.analysis.quality.resolutions import propose_resolutions
from qvl_lab.analysis.quality.scoring import TaskScores
from qvl_lab.analysis.quality.tradeoffs import at_each_resolution, precision_loss, with_agreement
from qvl_lab.analysis.stats.intervals import compare
from qvl_lab.errors import ConfigError, UnknownNameError
from qvl_lab.runs.store import Runs


def right(count, of=10):
    """Scores of which the first ``count`` are 1."""
    return [1.0] * count + [0.0] * (of - count)


@pytest.fixture
def setting(make_run, make_repeat):
    """A run by its scores, task by task, or by the texts that it answered."""

    def build(scores=None, said=None, status="ok", **settings):
        settings = {"precision": "fp32", "batch_size": 1, "resolution": 512} | settings
        side = settings["resolution"]
        tokens = 4096 if isinstance(side, str) else (side // 32) ** 2
        repeats = [make_repeat(visual_tokens=10 * tokens)] if status == "ok" else []
        known = {
            t: TaskScores("exact_match", tuple(v)).to_dict() for t, v in (scores or {}).items()
        }
        answers = [
            {"id": f"item {i}", "task": "read", "question": "?", "expected": None, "answer": text}
            for i, text in enumerate(said or [])
        ]
        weights = settings.pop("random_weights", False)
        return make_run(
            repeats, status, scores=known, answers=answers, random_weights=weights, **settings
        )

    return build


def agreed(*runs):
    """The runs' frame with its quality filled from their answers."""
    return with_agreement(frame(runs), Runs(runs).answers())


# ---- agreement


def test_agreement_is_with_the_serial_run_of_most_pixels_and_most_exact_precision(setting):
    found = agreed(
        setting(said="1 2 x x".split(), batch_size=8),
        setting(said="1 x x x".split(), resolution=256),
        setting(said="1 2 3 x".split(), precision="bf16"),
        setting(said="1 2 3 4".split()),
        setting(status="oom", batch_size=64),
    )
    assert (
        found["quality"].tolist()[:4] == found["quality_read"].tolist()[:4] == [0.5, 0.25, 0.75, 1]
    )
    assert found["quality_kind"].tolist()[:4] == ["agreement"] * 4
    assert found["scores"][1] == {"read": (1.0, 0.0, 0.0, 0.0)}
    assert found.loc[4, ["quality", "quality_kind", "scores", "quality_items"]].isna().all()
    assert found["quality"].dtype == found["quality_low"].dtype == float
    assert (found["quality_low"][:4] < found["quality"][:4]).all()


@pytest.mark.parametrize(
    ("reference", "other"),
    [
        (
            {"batch_size": 1, "resolution": 256, "precision": "int8"},
            {"batch_size": 2, "resolution": 512, "precision": "fp32"},
        ),
        ({"resolution": 512, "precision": "int8"}, {"resolution": 256, "precision": "fp32"}),
        ({"resolution": "native"}, {"resolution": 512}),
        ({"precision": "bf16"}, {"precision": "fp16"}),
        ({"precision": "fp16"}, {"precision": "int8"}),
    ],
    ids=["batch", "pixels", "native", "bf16", "fp16"],
)
def test_batch_counts_before_pixels_and_pixels_before_precision(setting, reference, other):
    """Items without an answer of the reference are left out, those of others are missing."""
    first, second = setting(said=["1", None], **reference), setting(said=["1", "2"], **other)
    for runs in ((first, second), (second, first)):
        found = agreed(*runs)
        assert found["quality"].tolist() == [1.0, 1.0]
        assert found["quality_items"].tolist() == [1, 1]
        assert found["quality_missing"].tolist() == [0, 0]


def test_missing_answers_are_counted_and_score_nothing(setting):
    found = agreed(setting(said=["1", "2", "3"]), setting(said=["1", None, "x"], batch_size=2))
    assert found["scores"][1] == {"read": (1.0, 0.0, 0.0)}
    assert found.loc[1, ["quality", "quality_items", "quality_missing"]].tolist() == [
        pytest.approx(1 / 3),
        3,
        1,
    ]


def test_items_are_paired_by_id_and_not_by_place(setting):
    backwards = setting(said=["1", "2"], batch_size=2)
    backwards.answers.reverse()
    assert agreed(setting(said=["1", "2"]), backwards)["quality"].tolist() == [1.0, 1.0]


def test_without_answers_nothing_is_filled(setting):
    runs = [setting(), setting(batch_size=2)]
    assert Runs(runs).answers().empty
    pd.testing.assert_frame_equal(agreed(*runs), frame(runs))
    some = agreed(setting(said=["1"], batch_size=4), *runs)
    assert some["quality"].notna().tolist() == [True, False, False]


@pytest.mark.parametrize(
    "other",
    [
        {"model": "tiny", "revision": "old"},
        {"model": "random:2b"},
        {"max_new_tokens": 8},
        {"environment": {"gpu": "NVIDIA H200"}},
    ],
    ids=str,
)
def test_other_models_lengths_and_machines_have_a_reference_of_their_own(setting, other):
    runs = [setting(said=said, batch_size=b) for said, b in ((["1", "2"], 1), (["1", "x"], 2))]
    runs += [
        setting(said=said, batch_size=b, **other) for said, b in ((["a", "b"], 1), (["x", "y"], 2))
    ]
    found = agreed(*runs)
    assert found["quality"].tolist() == [1.0, 0.5, 1.0, 0.0]


def test_true_answers_of_one_workload_leave_the_agreement_of_another(setting):
    """Rows of both lie in one file; no row of the first is compared with a reference."""
    hand = {"name": "hand", "items": 2}
    unknown = [
        setting(said=said, batch_size=b, workload=hand | {"fingerprint": "unknown"}, key=f"{b}")
        for said, b in ((["1", "2"], 1), (["1", "x"], 2))
    ]
    known = [setting({"read": [1.0, 0.0]}, ["1", "2"]), setting(status="oom", batch_size=2)]
    found = Runs([*known, *unknown]).frame()
    assert found["quality_kind"].dropna().tolist() == ["answers", "agreement", "agreement"]
    assert pd.isna(found["quality"][1])
    assert found["quality"].tolist()[2:] == [1.0, 0.5]
    assert found["quality"][0] == 0.5


# ---- precision


def test_what_a_precision_loses_is_counted_pair_by_pair(setting):
    found = precision_loss(
        frame(
            [
                setting({"read": right(3, 4)}, precision="bf16"),
                setting({"read": right(4, 4)}),
                setting({"read": right(0, 4)}, precision="int8"),
                setting({"read": right(4, 4)}, resolution=256, precision="bf16"),
                setting(precision="fp16", status="oom"),
            ]
        )
    )
    assert found.columns.tolist() == (
        "precision against resolution batch_size difference low high p_value items".split()
    )
    assert found["precision"].tolist() == ["bf16", "int8"]
    assert set(found["against"]) == {"fp32"}
    assert found["difference"].tolist() == [-0.25, -1.0]
    assert found["p_value"].tolist() == [1.0, 2 / 2**4]  # McNemar's: one and four of a kind
    assert found["items"].tolist() == [4, 4]
    for row, count in zip(found.itertuples(), (3, 0), strict=True):
        pair = compare([right(4, 4)], [right(count, 4)])
        assert (row.low, row.high) == (pair.low, pair.high)
        assert (row.resolution, row.batch_size) == ("512", 1)


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 8},
        {"resolution": 256},
        {"cache_implementation": "static"},
        {"max_new_tokens": 8},
        {"model": "random:2b"},
        {"attn_implementation": "eager"},
    ],
    ids=str,
)
def test_precisions_are_compared_all_else_equal(setting, change):
    """The other row of fp32, which comes first, would say −0.5."""
    rows = [
        setting({"read": right(10)}),
        setting({"read": right(6)}, **change),
        setting({"read": right(5)}, precision="bf16", **change),
    ]
    assert precision_loss(frame(rows))["difference"].tolist() == [pytest.approx(-0.1)]
    assert precision_loss(frame([rows[0], rows[2]])).empty


def test_the_most_exact_precision_measured_is_what_others_are_compared_with(setting):
    rows = [setting({"read": right(n)}, precision=p) for n, p in ((9, "int8"), (10, "bf16"))]
    found = precision_loss(frame(rows))
    assert found[["precision", "against"]].to_numpy().tolist() == [["int8", "bf16"]]


def test_one_precision_alone_loses_nothing_but_has_the_columns(setting):
    found = precision_loss(frame([setting({"read": right(9)})]))
    assert found.empty
    assert {"precision", "difference", "p_value", "items"} <= set(found.columns)


def test_an_agreement_loses_too(setting):
    found = precision_loss(
        agreed(setting(said=["1", "2"]), setting(said=["1", "x"], precision="bf16"))
    )
    assert found["difference"].tolist() == [-0.5]


# ---- one row per resolution


def test_native_is_higher_than_any_number_and_numbers_do_not_sort_as_words(setting):
    order = ["native", 4096, 64, 512]
    rows = at_each_resolution(frame([setting({"read": right(5)}, resolution=r) for r in order]))
    assert rows["resolution"].tolist() == ["64", "512", "4096", "native"]


@pytest.mark.parametrize(
    ("weights", "words"),
    [(True, "the weights are random"), (False, "give the workload an 'answer' column")],
)
def test_without_quality_it_is_said_what_is_missing(setting, weights, words):
    rows = [setting(resolution=side, random_weights=weights) for side in (128, 512)]
    for function in (propose_resolutions, at_each_resolution, precision_loss):
        with pytest.raises(ConfigError, match=f"no setting has a quality: {words}"):
            function(frame(rows))


def chosen(rows):
    return rows[["resolution", "precision", "batch_size"]].to_numpy().tolist()


@pytest.fixture
def grid(setting):
    """bf16 in batches of 8 at three resolutions, all others at two."""
    cells = [("bf16", 8, 512), ("bf16", 8, 256), ("bf16", 8, 128)]
    cells += [(p, b, r) for p in ("bf16", "fp32") for b in (4, 1) for r in (512, 256)]
    return frame(
        [setting({"read": right(5)}, precision=p, batch_size=b, resolution=r) for p, b, r in cells]
    )


def test_what_was_measured_at_most_resolutions_is_shown(grid):
    assert chosen(at_each_resolution(grid)) == [[r, "bf16", 8] for r in ("128", "256", "512")]


def test_of_several_the_most_exact_precision_and_the_smallest_batch_are_shown(grid):
    rows = grid[grid["resolution"] != "128"]
    assert chosen(at_each_resolution(rows)) == [["256", "fp32", 1], ["512", "fp32", 1]]


def test_settings_choose_the_rows(grid):
    for chosen_ones in ({"precision": "bf16", "batch_size": 4}, {"batch_size": 4}):
        precision = chosen_ones.get("precision", "fp32")
        rows = at_each_resolution(grid, **chosen_ones)
        assert chosen(rows) == [["256", precision, 4], ["512", precision, 4]]
    assert propose_resolutions(grid, precision="fp32").table["looks_enough"].tolist() == ["256"]
    with pytest.raises(ConfigError, match=r"no setting with \{'batch_size': 3\} has a quality"):
        at_each_resolution(grid, batch_size=3)
    with pytest.raises(UnknownNameError, match="Did you mean 'precision'"):
        at_each_resolution(grid, precison="fp32")


def test_each_resolution_has_one_row_all_else_equal(setting):
    """At 128 only the static cache was measured: the row beside it is static too."""
    cells = [(512, None), (256, None), (512, "static"), (256, "static"), (128, "static")]
    rows = at_each_resolution(
        frame(
            [
                setting({"read": right(5)}, resolution=side, cache_implementation=cache)
                for side, cache in cells
            ]
        )
    )
    assert rows["resolution"].tolist() == ["128", "256", "512"]
    assert set(rows["cache_implementation"]) == {"static"}


# ---- two settings


def test_two_settings_are_compared_over_the_same_items(setting):
    before = {"read": [1.0, 1.0, 0.0, 0.0], "colour": [0.5, None]}
    after = {"read": [1.0, 1.0, 1.0, 0.0], "colour": [1.0, 1.0]}
    rows = frame([setting(before), setting(after, batch_size=2)])
    found = quality_difference(rows.iloc[0], rows.iloc[1])
    before["colour"] = [0.5, 0.0]  # no answer is a wrong one
    assert found == compare(list(before.values()), list(after.values()))
    assert (found.difference, found.count) == (pytest.approx((0.25 + 0.75) / 2), 6)
    back = quality_difference(rows.iloc[1], rows.iloc[0])
    assert back.difference == -found.difference


def test_settings_without_common_items_are_not_compared(setting):
    workload = {"name": "other", "fingerprint": "other", "items": 3}
    rows = frame(
        [
            setting({"read": right(5)}),
            setting(batch_size=2, precision="bf16"),
            setting({"read": right(9)}, workload=workload, batch_size=4),
        ]
    )
    assert quality_difference(rows.iloc[0], rows.iloc[0]).difference == 0
    for other in (1, 2):
        assert quality_difference(rows.iloc[0], rows.iloc[other]) is None
        assert quality_difference(rows.iloc[other], rows.iloc[0]) is None


def test_agreements_with_different_references_are_not_compared(setting):
    rows = agreed(
        setting(said=["1", "2"]),
        setting(said=["1", "x"], batch_size=2),
        setting(said=["1", "2"], model="random:2b"),
    )
    assert quality_difference(rows.iloc[0], rows.iloc[1]).difference == -0.5
    assert quality_difference(rows.iloc[0], rows.iloc[2]) is None
