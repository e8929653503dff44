"""Boxes in other forms than the one that is asked for."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl_lab.analysis.quality.box_forms import compare_boxes, contradict, read_boxes
from qvl_lab.analysis.quality.boxes import MAX_PARSED_CHARS, box_accuracy, iou, parse_boxes

BOX = '[{"bbox_2d": [100, 200, 300, 400], "label": "red cat"}]'
COORDINATE = st.integers(0, 1000)
BOXES = st.lists(st.tuples(*[COORDINATE] * 4), max_size=4)


@pytest.mark.parametrize(
    ("text", "size", "pixels", "form", "converted"),
    [
        (BOX, None, False, "thousandths", True),
        (BOX, (512, 512), False, "thousandths", True),
        ("[0.1, 0.2, 0.3, 0.4]", None, False, "fractions", True),
        ("[[0.1, 0.2], [0.3, 0.4]]", (512, 512), True, "fractions", True),
        ("[200, 300, 600, 600]", (2000, 1500), True, "pixels", True),
        ("[200, 300, 600, 600]", (2000, 1500), False, "thousandths", True),
        ("[200, 300, 600, 1200]", None, False, "pixels", False),
        ("[0, 0, 1, 1]", None, False, "thousandths", True),
        ("[100, 200, 300, 1010]", (512, 512), False, "thousandths", True),
    ],
)
def test_a_form_is_told_where_nothing_else_can_be_meant(text, size, pixels, form, converted):
    found = read_boxes(text, size, pixels=pixels)
    assert (found.form, found.converted) == (form, converted)


def test_fractions_and_pixels_become_thousandths():
    wanted = [pytest.approx((100, 200, 300, 400))]
    assert read_boxes("[0.1, 0.2, 0.3, 0.4]").boxes == wanted
    assert read_boxes("[200, 300, 600, 600]", (2000, 1500), pixels=True).boxes == wanted
    large = "[1100, 300, 1300, 600]"
    assert read_boxes(large, (2000, 1500)).boxes == [pytest.approx((550, 200, 650, 400))]
    assert read_boxes(large).boxes == parse_boxes(large) == [(1000, 300, 1000, 600)]


@pytest.mark.parametrize(
    "names",
    ["x1 y1 x2 y2", "x_1 y_1 x_2 y_2", "xmin ymin xmax ymax", "left top right bottom"],
)
def test_corners_by_their_names_are_read(names):
    entry = dict(zip(names.split(), (100, 200, 300, 400), strict=True)) | {"name": "cat"}
    for text in (json.dumps(entry), f"```json\n{json.dumps([entry])}\n```"):
        found = read_boxes(text)
        assert (found.boxes, found.labels) == ([(100, 200, 300, 400)], ["cat"])
        assert parse_boxes(text) is None


def test_boxes_inside_an_object_are_found_with_their_labels():
    text = json.dumps({"objects": json.loads(BOX)})
    assert read_boxes(text).labels == ["red cat"]
    qwen2 = (
        "<|object_ref_start|>the cat<|object_ref_end|><|box_start|>(100,200),(300,400)<|box_end|>"
    )
    assert read_boxes(qwen2).labels == ["the cat"]


@pytest.mark.parametrize(
    ("one", "other", "wrong"),
    [
        ("red circle", "Red circle", False),
        ("circle", "red circle", False),
        ("the red circle", "red circle", False),
        ("blue circle", "red circle", True),
        ("红色圆形", "圆形", False),
        ("红色的圆形", "红色圆形", False),
        ("蓝色圆形", "红色圆形", True),
        ("red circle", "红色圆形", False),
        (None, "red circle", False),
        ("", "red circle", False),
    ],
)
def test_labels_contradict_if_they_cannot_name_one_thing(one, other, wrong):
    assert contradict(one, other) == contradict(other, one) == wrong


def test_a_box_with_the_wrong_label_is_no_partner():
    wrong = BOX.replace("red", "blue")
    assert box_accuracy(wrong, BOX) == iou(wrong, BOX) == 1
    for metric in ("box_accuracy", "iou"):
        assert compare_boxes(metric, read_boxes(wrong), BOX) == 0
        assert compare_boxes(metric, read_boxes("[100, 200, 300, 400]"), BOX) == 1
        assert compare_boxes(metric, None, BOX) == 0
        assert compare_boxes(metric, read_boxes("[]"), "[]") == 1


def test_labels_decide_which_boxes_are_partners():
    two = [{"bbox_2d": [0, 0, 100, 100], "label": "a"}, {"bbox_2d": [0, 0, 100, 90], "label": "b"}]
    swapped = [two[0] | {"label": "b"}, two[1] | {"label": "a"}]
    assert iou(json.dumps(swapped), json.dumps(two)) == 1
    found = read_boxes(json.dumps(swapped))
    assert compare_boxes("iou", found, json.dumps(two)) == pytest.approx(0.9)


@given(BOXES, BOXES)
@settings(deadline=None)
def test_without_labels_thousandths_score_as_they_do_strictly(found, wanted):
    answer, expected = (
        json.dumps([{"bbox_2d": list(box)} for box in boxes]) for boxes in (found, wanted)
    )
    if (boxes := read_boxes(answer)) and boxes.form == "thousandths":
        assert compare_boxes("iou", boxes, expected) == pytest.approx(iou(answer, expected))


@given(st.text() | st.text('[]{}":,.0123456789 xy', max_size=80))
def test_reading_never_raises(text):
    found = read_boxes(text, (640, 480), pixels=True)
    for box in found.boxes if found else []:
        assert 0 <= box[0] <= box[2] <= 1000
        assert 0 <= box[1] <= box[3] <= 1000


@pytest.mark.parametrize(
    "text", ['{"x1": NaN, "y1": 1, "x2": 2, "y2": 3}', '{"b": [true, 1, 2, 3]}', "[" * 10_000]
)
def test_what_is_no_number_is_no_box(text):
    assert not (found := read_boxes(text)) or not found.boxes


@pytest.mark.parametrize("piece", ["[", "{", '{"a":', "]", "<|object_ref_start|>"])
def test_hostile_text_takes_no_time(piece):
    started = time.perf_counter()
    read_boxes(piece * (10 * MAX_PARSED_CHARS // len(piece)))
    assert time.perf_counter() - started < 0.3
