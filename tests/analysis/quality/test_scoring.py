"""Scores of answers, task by task."""

from __future__ import annotations

import json
import re

import pytest

from qvl_lab.analysis.quality.metrics import METRICS, chrf
from qvl_lab.analysis.quality.scoring import (
    TaskScores,
    agreement,
    image_numbers,
    metric_for,
    metric_names,
    score,
    score_items,
)
from qvl_lab.errors import ConfigError, UnknownNameError
from qvl_lab.tasks import BY_NAME, TASKS
from qvl_lab.workloads.items import Item

BOX = '[{"bbox_2d": [100, 200, 300, 400], "label": "cat"}]'


# ---- tasks


def test_tasks_have_known_metrics():
    assert {task.metric for task in TASKS} <= set(METRICS)
    assert {"颜色", "计数", "定位", "检测", "描述", "精细分析", "文字识别"} <= set(BY_NAME)


@pytest.mark.parametrize(
    ("task", "expected", "metric"),
    [
        ("count", "2", "exact_match"),
        ("Fine_Analysis ", "27.40", "anls"),
        ("locate", "[1, 2, 3, 4]", "box_accuracy"),
        ("定位", "1,2,3,4", "box_accuracy"),
        ("detection", "2", "exact_match"),
        ("detection", BOX, "box_accuracy"),
        ("detection", "[]", "box_accuracy"),
        ("my task", BOX, "box_accuracy"),
        (None, "red", "exact_match"),
        ("", "red", "exact_match"),
        (None, BOX, "box_accuracy"),
        (None, "<|box_start|>(1,2),(3,4)<|box_end|>", "box_accuracy"),
        ("read", "12,34,56,78", "exact_match"),
        ("qa", "the values (1, 2, 3, 4) in order", "token_f1"),
    ],
)
def test_the_metric_of_a_task(task, expected, metric):
    assert metric_for(task, expected) == metric


def test_own_metrics_come_first():
    assert metric_for("count", "2", {"count": "anls"}) == "anls"
    assert metric_for("零件", "A3", {"零件": "anls"}) == "anls"
    assert metric_for("Parts", "A3", {"parts": "anls"}) == "anls"
    assert metric_for(None, "red", {"none": "chrf"}) == "chrf"
    assert metric_for("detection", BOX, {"detection": "exact_match"}) == "exact_match"


def test_an_own_metric_of_boxes_leaves_the_other_items_of_its_task():
    assert metric_for("detection", BOX, {"detection": "iou"}) == "iou"
    assert metric_for("detection", "2", {"detection": "iou"}) == "exact_match"
    with pytest.raises(ConfigError, match="task 'parts': no box can be read"):
        metric_for("parts", "2", {"parts": "iou"})


def test_an_unknown_task_says_how_to_name_a_metric():
    with pytest.raises(ConfigError) as caught:
        metric_for("detecton", "2")
    message = str(caught.value)
    assert "'detecton'" in message
    assert "Did you mean 'detection'?" in message
    assert 'metrics={"detecton": "anls"}' in message
    assert all(name in message for name in METRICS)


def test_an_unknown_metric_is_named_even_if_no_item_needs_it():
    with pytest.raises(UnknownNameError, match=r"unknown metric 'f1'.*token_f1"):
        score(["count"], ["2"], ["2"], {"qa": "f1"})


# ---- functions of one's own


def same_number(answer: str, expected: str) -> bool:
    return float(answer) == float(expected)


def test_a_function_scores_the_answers_of_its_task():
    metrics = {"Invoice": same_number, "qa": lambda answer, expected: len(answer) / 4}
    found = score(["invoice", "invoice", "qa"], ["1.50", None, "a"], ["1.5", "2", BOX], metrics)
    assert found["invoice"] == TaskScores("same_number", (1.0, None), normalised=(1.0, None))
    assert found["qa"] == TaskScores("<lambda>", (0.25,), normalised=(0.25,))


@pytest.mark.parametrize("nonsense", [None, "0.5", 1.5, -0.1, float("nan"), [1], {}])
def test_a_score_that_is_no_number_from_0_to_1_is_refused_with_the_answer(nonsense):
    words = r"the metric odd\('4', '2'\) gave .*; a score is a number from 0 to 1"

    def odd(answer: str, expected: str) -> object:
        return nonsense

    with pytest.raises(ConfigError, match=words):
        score(["count"], ["4"], ["2"], {"count": odd})


def test_a_function_that_raises_is_named_with_the_answer():
    with pytest.raises(ConfigError, match=r"same_number\('two', '2'\) raised ValueError: could"):
        score(["count"], ["two"], ["2"], {"count": same_number})


def test_the_recorded_name_of_a_function_changes_with_its_source():
    def one(source):
        scope = {}
        exec(source, scope)
        return metric_names({"qa": scope["f"], "ocr": "anls"})

    names = [one(f"def f(a, b): return {x}") for x in ("0.5", "0.5", "1.0")]
    assert names[0] == names[1] != names[2]
    assert names[0]["ocr"] == "anls"
    assert re.fullmatch("f@[0-9a-f]{8}", names[0]["qa"])
    same = metric_names({"qa": same_number})
    assert same == metric_names({"qa": same_number})


def test_a_location_that_is_expected_in_words_is_an_error():
    with pytest.raises(ConfigError, match=r"task 'locate': no box .* 'left'"):
        metric_for("locate", "left")


def test_scores_by_task_in_the_order_of_the_items():
    found = score(
        ["qa", "count", None, "qa", "count", "count", "caption"],
        ["the cat", "2", "Red.", None, "4", "9", "x"],
        ["cat", "2", "red", "dog", "3", None, None],
    )
    assert list(found) == ["qa", "count", "none"]
    assert found["qa"] == TaskScores("token_f1", (1.0, None), normalised=(1.0, None))
    assert found["count"] == TaskScores("exact_match", (1.0, 0.0), normalised=(1.0, 0.0))
    assert found["none"] == TaskScores("exact_match", (1.0,), normalised=(1.0,))


def test_counts_and_mean_of_scores():
    scores = TaskScores("anls", (1.0, None, 0.5))
    assert (scores.count, scores.missing, scores.mean) == (3, 1, 0.5)
    assert scores.scored == (1.0, 0.0, 0.5)
    assert TaskScores("anls", (None,)).mean == 0.0
    assert TaskScores("anls", ()).mean is None


def test_a_task_with_counts_and_boxes_names_both_metrics():
    answers = [BOX, "2", "on the left", None]
    found = score(["detection"] * 4, answers, [BOX, "2", BOX, BOX])["detection"]
    values = (1.0, 1.0, 0.0, None)
    assert found == TaskScores("box_accuracy+exact_match", values, unparsed=1, normalised=values)


def test_scores_are_rounded():
    assert score(["ocr"], ["ab"], ["abc"])["ocr"].values == (0.666667,)


def test_columns_of_different_length_are_an_error():
    with pytest.raises(ConfigError, match=r"'tasks': 1, 'answers': 2, 'expected': 1"):
        score(["qa"], ["a", "b"], ["a"])


def test_nothing_expected_gives_no_scores():
    assert score(["qa"], ["a"], [None]) == score([], [], []) == {}


def test_scores_survive_json():
    scores = TaskScores("iou", (1.0, None, 0.25), 3, (1.0, None, 0.5), fractions=2, pixels=1)
    assert TaskScores.from_dict(json.loads(json.dumps(scores.to_dict()))) == scores
    assert "images" not in scores.to_dict()  # as in files from before they were known
    about = TaskScores("iou", (1.0, None, 0.25), 3, images=(0, 0, 4))
    assert TaskScores.from_dict(json.loads(json.dumps(about.to_dict()))) == about


def test_scores_know_which_questions_are_about_one_image(tmp_path):
    from PIL import Image

    picture = Image.new("RGB", (8, 8))
    images = ["a.png", tmp_path / "a.png", "a.png", b"bytes", b"bytes", picture, picture]
    items = [
        Item(id=f"{i}", image=image, task="read" if i % 2 else "count", reference="1")
        for i, image in enumerate(images)
    ]
    assert image_numbers(items) == [0, 1, 0, 2, 2, 3, 3]
    read_from = [Item(id="x", image=b"1", path="a.png"), Item(id="y", image="a.png")]
    assert image_numbers(read_from) == [0, 0]
    found = score_items(items, ["1"] * 7)
    assert found["count"].images == (0, 0, 2, 3)
    assert found["read"].images == (1, 2, 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"metric": "iou", "values": [1]}, "need metric, values, unparsed"),
        ({"metric": "iou", "values": ["x"], "unparsed": 0}, "could not convert"),
        ({"metric": "iou", "value": [], "unparsed": 0}, "Did you mean 'values'"),
        ({"metric": "iou", "values": [1], "unparsed": 0, "images": [1, 2]}, "2 images for 1 score"),
        ({"metric": "iou", "values": [1], "unparsed": 0, "images": ["x"]}, "invalid literal"),
    ],
)
def test_scores_of_another_shape_are_an_error(values, message):
    with pytest.raises(ConfigError, match=message):
        TaskScores.from_dict(values)


def test_agreement_with_a_reference():
    reference = [BOX, "2", "a cat on a mat", "I cannot see it", None, "red", "red"]
    tasks = ["scene", "count", "own", "locate", "qa", None, "none"]
    found = agreement(reference, reference, tasks)
    assert {task: scores.metric for task, scores in found.items()} == {
        "scene": "box_accuracy",
        "count": "exact_match",
        "own": "chrf",
        "locate": "chrf",
        "none": "chrf",
    }
    assert all(set(scores.values) == {1.0} for scores in found.values())


def test_agreement_without_tasks():
    found = agreement([None, "a dog", "[0, 0, 1, 1]"], ["a cat", "a cat", BOX])["none"]
    assert found.metric == "box_accuracy+chrf"
    assert found.values == (None, pytest.approx(chrf("a dog", "a cat"), abs=1e-6), 0.0)
    with pytest.raises(ConfigError, match="one entry per item"):
        agreement(["a"], ["a", "b"])


# ---- beside the strict scores


def test_normalised_scores_stand_beside_the_strict_ones():
    answers = ["The star is red.", "blue", None, "red"]
    scores = score(["colour"] * 4, answers, ["red"] * 4)["colour"]
    assert scores.values == (0, 0, None, 1)
    assert scores.normalised == (1, 0, None, 1)


def test_what_a_model_thinks_aloud_is_not_scored():
    answers = ["<think>red? blue.</think>red", f"<think>{BOX}</think>[1, 2, 3, 4]", "<think>red"]
    scores = score(["colour", "locate", "colour"], answers, ["red", BOX, "red"])
    assert scores["colour"].values == (1, 0)
    assert scores["locate"].values == (0,)
    assert agreement(["<think>a</think>cat"], ["cat"])["none"].values == (1,)


def test_any_of_several_references_is_right():
    several = json.dumps(["12.50", "12.5"])
    scores = score(["total"] * 3, ["12.5", "12.50", "13"], [several] * 3)["total"]
    assert scores.values == (1, 1, 0)
    boxes = json.dumps([BOX, '[{"bbox_2d": [500, 500, 600, 600]}]'])
    found = score(["locate"] * 2, [BOX, "[500, 500, 600, 600]"], [boxes] * 2)["locate"]
    assert found.metric == "box_accuracy"
    assert found.values == found.normalised == (1, 1)


def test_a_list_of_boxes_is_one_reference():
    two = '[{"bbox_2d": [0, 0, 9, 9]}, {"bbox_2d": [50, 50, 90, 90]}]'
    assert score(["locate"], [two], [two])["locate"].values == (1,)
    assert score(["locate"], ["[]"], ["[]"])["locate"].values == (1,)


def test_boxes_in_other_forms_are_counted_apart_and_right_where_they_are_unambiguous():
    answers = ["[0.1, 0.2, 0.3, 0.4]", "[1100, 400, 1300, 800]", "[100, 200, 300, 400]", "?"]
    wanted = [BOX, "[550, 200, 650, 400]", BOX, BOX]
    scores = score(["locate"] * 4, answers, wanted, sizes=[None, (2000, 2000), None, None])
    found = scores["locate"]
    assert found.values == (0, 0, 1, 0)
    assert found.normalised == (1, 1, 1, 0)
    assert (found.fractions, found.pixels, found.unparsed) == (1, 1, 1)


def test_a_model_that_writes_pixels_is_read_in_pixels():
    answers = ["[51.2, 102.4, 153.6, 204.8]"]
    found = score(["locate"], answers, [BOX], sizes=[(512, 512)], pixels=True)["locate"]
    assert (found.values, found.normalised, found.pixels) == ((0,), (1,), 1)


def test_a_function_of_ones_own_is_not_normalised():
    found = score(["colour"], ["The star is red."], ["red"], {"colour": lambda a, b: 0.5})
    assert found["colour"].values == found["colour"].normalised == (0.5,)


def test_scores_of_an_older_file_have_no_normalised_ones():
    old = {"metric": "exact_match", "values": [1.0, None], "unparsed": 0}
    assert TaskScores.from_dict(old).normalised == ()
