"""The resolution of each task: what is proposed, with how many questions, and how often wrongly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qvl_lab.analysis.frame import frame
from qvl_lab.analysis.quality.resolutions import MOST_CHANCE, propose_resolutions
from qvl_lab.analysis.quality.scoring import TaskScores
from qvl_lab.analysis.stats.intervals import compare
from qvl_lab.errors import ConfigError

#: Scores of the embedded model on the packaged questions, in fp32 with the stock engine: task to
#: image numbers, and side in pixels to scores.
TINY = Path(__file__).with_name("tiny_scores.json")


def right(count, of=100):
    """Scores of which the first ``count`` are 1."""
    return [1.0] * count + [0.0] * (of - count)


@pytest.fixture
def setting(make_run, make_repeat):
    """A run by its scores, task by task; ``images`` names the images of each task's."""

    def build(scores, images=None, **settings):
        settings = {"precision": "fp32", "batch_size": 1, "resolution": 512} | settings
        told = {
            task: TaskScores(
                "exact_match", tuple(v), images=images and tuple(images[task])
            ).to_dict()
            for task, v in scores.items()
        }
        return make_run([make_repeat()], scores=told, random_weights=False, **settings)

    return build


@pytest.fixture
def sides(setting):
    """Right answers of a hundred by task and resolution; out of order, as rows may be."""
    counts = {
        "native": {"read": 80, "colour": 100, "locate": 90},
        128: {"read": 20, "colour": 100, "locate": 50},
        256: {"read": 80, "colour": 100, "locate": 60},
    }
    return frame(
        [
            setting({task: right(n) for task, n in tasks.items()}, resolution=side)
            for side, tasks in counts.items()
        ]
    )


def test_each_task_gets_the_lowest_resolution_that_keeps_its_quality(sides):
    found = propose_resolutions(sides)
    assert found.task_resolutions == {"read": 256, "colour": 128, "locate": "native"}
    assert found.tolerance == 0.02
    table = found.table.set_index("task")
    assert table["resolution"].tolist() == ["256", "128", "native"]
    assert table["quality"].tolist() == [0.8, 1.0, 0.9]
    assert set(table["reference_resolution"]) == {"native"}
    assert table["reference_quality"].tolist() == [0.8, 1.0, 0.9]
    assert table["difference"].tolist() == table["judged"].tolist() == [0, 0, 0]
    assert table["looks_enough"].tolist() == table["resolution"].tolist()
    assert table["more_items"].tolist() == [0, 0, 0]
    assert (table["chance"] <= MOST_CHANCE).all()
    assert (table["chance"]["locate"], set(table["items"])) == (0, {100})
    row = sides[sides["resolution"] == "256"].iloc[0]
    assert table.loc["read", ["low", "high"]].tolist() == [
        row["quality_read_low"],
        row["quality_read_high"],
    ]


def test_a_larger_tolerance_goes_lower_and_says_what_it_loses(sides):
    found = propose_resolutions(sides, tolerance=0.35)
    assert found.task_resolutions == {"read": 256, "colour": 128, "locate": 256}
    row = found.table.set_index("task").loc["locate"]
    assert row["difference"] == pytest.approx(-0.3)
    assert row["p_value"] == compare([right(90)], [right(60)]).p_value
    assert 0 < row["chance"] < MOST_CHANCE
    assert propose_resolutions(sides, tolerance=0.5).task_resolutions["locate"] == 128


@pytest.mark.parametrize(
    ("lost", "of", "side", "more"),
    [
        (0, 6, 512, True),
        (0, 36, 512, True),
        (0, 60, 128, False),
        (1, 80, 128, False),
        (1, 60, 512, True),
        (2, 80, 512, None),
        (4, 70, 512, None),
    ],
)
def test_a_task_goes_lower_only_with_questions_enough_to_know(setting, lost, of, side, more):
    """Six right answers of six look enough at 128 pixels, and say nearly nothing."""
    rows = [setting({"read": right(of - n, of)}, resolution=r) for n, r in ((lost, 128), (0, 512))]
    found = propose_resolutions(frame(rows))
    assert found.task_resolutions == {"read": side}
    row = found.table.iloc[0]
    assert row["looks_enough"] == ("512" if more is None else "128")
    assert (row["more_items"] > 0) == bool(more)
    if not lost and more:
        assert of + row["more_items"] == pytest.approx(60, abs=3)


def test_the_items_that_are_asked_for_are_enough(setting):
    def proposed(of):
        rows = [setting({"read": right(of, of)}, resolution=r) for r in (128, 512)]
        return propose_resolutions(frame(rows))

    few = proposed(20)
    assert few.task_resolutions == {"read": 512}
    assert proposed(20 + few.table["more_items"][0]).task_resolutions == {"read": 128}


def test_questions_about_few_images_are_few_questions(setting):
    """Ninety questions about thirty images say as much as thirty questions."""
    images = {"read": [n // 3 for n in range(90)]}
    rows = [setting({"read": right(90, 90)}, resolution=r) for r in (128, 512)]
    assert propose_resolutions(frame(rows)).task_resolutions == {"read": 128}
    rows = [setting({"read": right(90, 90)}, images, resolution=r) for r in (128, 512)]
    assert propose_resolutions(frame(rows)).task_resolutions == {"read": 512}


def test_what_is_judged_on_other_images_is_not_too_good(setting):
    """Two sizes that are equally good: by luck one looks better where it is chosen."""
    rng = np.random.default_rng(5)
    seen, judged = [], []
    for _ in range(60):
        scores = [(rng.random(60) < 0.9).astype(float) for _ in range(4)]
        rows = [
            setting({"read": s}, resolution=r)
            for s, r in zip(scores, (64, 128, 256, 512), strict=True)
        ]
        row = propose_resolutions(frame(rows), tolerance=0.0).table.iloc[0]
        means = [scores[i].mean() - scores[-1].mean() for i in range(4)]
        seen.append(next(m for m in means if m >= -1e-9))
        judged.append(row["judged"])
    assert np.mean(seen) > 0.01
    assert abs(np.mean(judged)) < np.mean(seen)


def test_a_lower_resolution_may_be_better_than_the_highest(setting):
    rows = [setting({"read": right(n)}, resolution=r) for n, r in ((90, 128), (70, 512))]
    found = propose_resolutions(frame(rows))
    assert found.task_resolutions == {"read": 128}
    assert found.table["difference"][0] == pytest.approx(0.2)


@pytest.mark.parametrize("scores", [[0.0] * 100, [None] * 100], ids=["wrong", "no answer"])
def test_a_task_that_nothing_is_right_in_has_no_proposal(setting, scores):
    rows = [setting({"read": right(90), "total": scores}, resolution=side) for side in (128, 512)]
    found = propose_resolutions(frame(rows))
    assert found.task_resolutions == {"read": 128}
    row = found.table.set_index("task").loc["total"]
    assert row[["resolution", "quality", "chance", "looks_enough"]].isna().all()
    assert row["reference_quality"] == 0


def test_a_task_called_like_a_count_gets_its_resolution_by_its_scores(setting):
    rows = [
        setting({"items": right(n)}, resolution=r) for n, r in ((20, 128), (88, 256), (90, 512))
    ]
    found = propose_resolutions(frame(rows), tolerance=0.1)
    assert found.task_resolutions == {"items": 256}
    assert found.table[["quality", "reference_quality"]].to_numpy().tolist() == [[0.88, 0.9]]


def test_one_resolution_proposes_nothing(setting):
    rows = [
        setting({"read": right(9)}),
        setting({"read": right(9)}, cache_implementation="static"),
        setting({"read": right(9)}, resolution="by_task"),
    ]
    with pytest.raises(ConfigError, match=r"two resolutions or more; sweep resolution=\["):
        propose_resolutions(frame(rows))


# ---- simulated sweeps


@pytest.fixture(scope="module")
def population():
    """Task to images and, side by side, scores: every question that is packaged."""
    found = json.loads(TINY.read_text())
    return {
        task: (np.array(t["images"]), {int(s): np.array(v) for s, v in t["scores"].items()})
        for task, t in found.items()
    }


def true_table(population, tolerance=0.02):
    table = {}
    for task, (_, scores) in population.items():
        means = {side: scores[side].mean() for side in sorted(scores)}
        table[task] = next(s for s in means if means[s] >= means[max(means)] - tolerance - 1e-9)
    return table


def swept(population, setting, places):
    """The proposal of a sweep that asked the questions at these places of each task."""
    sides = sorted(next(iter(population.values()))[1])
    runs = [
        setting(
            {task: scores[side][places[task]] for task, (_, scores) in population.items()},
            {task: range(len(at)) for task, at in places.items()},
            resolution=side,
        )
        for side in sides
    ]
    return propose_resolutions(frame(runs)).task_resolutions


def broken(population, table, tolerance=0.02):
    """Tasks that truly lose more than the tolerance."""
    lost = {t: s[max(s)].mean() - s[table[t]].mean() for t, (_, s) in population.items()}
    return [task for task, loss in lost.items() if loss > tolerance + 1e-9]


def drawn(population, count, rng):
    """Places of ``count`` questions, tasks in their shares, none twice."""
    whole = sum(len(images) for images, _ in population.values())
    return {
        task: rng.choice(len(images), round(len(images) * count / whole), replace=False)
        for task, (images, _) in population.items()
    }


def test_the_true_table_of_the_packaged_questions_is_proposed_from_all_of_them(population, setting):
    """In whatever order they are asked: all of ten sweeps, where at least 80% are wanted."""
    table = true_table(population)
    assert table["colour"] == table["read_large"] == 256
    assert table["locate"] == table["count"] == table["total"] == table["read_small"] == 512
    for seed in range(10):
        everything = drawn(population, 420, np.random.default_rng(seed))
        assert swept(population, setting, everything) == table


@pytest.mark.slow
@pytest.mark.parametrize("count", [36, 72, 150, 300])
def test_at_most_a_tenth_of_simulated_sweeps_propose_a_table_that_breaks_its_promise(
    population, setting, count
):
    rng = np.random.default_rng(count)
    tables = [swept(population, setting, drawn(population, count, rng)) for _ in range(60)]
    assert np.mean([bool(broken(population, table)) for table in tables]) <= 0.1
