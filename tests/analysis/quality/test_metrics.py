"""Metrics of text and boxes."""

from __future__ import annotations

import json
import re
import string
import subprocess
import sys
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl_lab.analysis.quality import boxes as box_metrics
from qvl_lab.analysis.quality import metrics as text_metrics
from qvl_lab.analysis.quality.boxes import box_accuracy, iou, parse_boxes
from qvl_lab.analysis.quality.metrics import (
    METRICS,
    anls,
    character_accuracy,
    character_error_rate,
    chrf,
    exact_match,
    token_f1,
)
from qvl_lab.errors import ConfigError

TEXT_METRICS = sorted(set(METRICS) - {"iou", "box_accuracy"})
BOX = '[{"bbox_2d": [100, 200, 300, 400], "label": "cat"}]'
COORDINATE = st.integers(0, 1000)
BOXES = st.lists(st.tuples(*[COORDINATE] * 4), max_size=5)
#: Pieces of box answers, for texts that look almost like one.
PIECES = st.lists(
    st.sampled_from(
        "[ ] { } ( ) , : \" ' ``` json bbox_2d box <|box_start|> <|box_end|> 1 20 -3 4.5 9999 . and"
        " to （ ， １ １.５ label".split()
    )
    | st.just(" "),
    max_size=60,
).map("".join)


def as_json(boxes) -> str:
    return json.dumps([{"bbox_2d": list(box), "label": "x"} for box in boxes])


# ---- text


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Red", "red"),
        (" dark \n\t blue ", "Dark Blue"),
        ("“Yes.”", "yes"),
        ("**green**", "green"),
        ("是。", "是"),
        ("「白天」！", "白天"),
        ("ＡＢ－１２", "AB-12"),
        ("Straße", "STRASSE"),
        ("10–20", "10-20"),
        ("−5", "-5"),
        ("¥27.40", "27.40"),
        ("27.40元", "27.40"),
        ("￥ 1,027.40", "1027.40"),
        ("-$5", "-5"),
        ("1,234,567", "1234567"),
        ("1,234, 5", "1234, 5"),
        ("57.", "57"),
        ("$.50", ".50"),
        ("...", "..."),
        ("10²", "10^2"),
        ("H₂O", "H2O"),
        ("(5)", "(5)."),
        ("(red)", "red"),
        ("[5]", "5"),
    ],
)
def test_the_same_answer_printed_differently_matches(answer, expected):
    assert exact_match(answer, expected) == exact_match(expected, answer) == 1.0


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("27.4", "27.40"),
        ("5", "-5"),
        ("5", ".5"),
        ("50%", "50"),
        ("1,2", "12"),
        ("12,34", "1234"),
        ("0,123", "0123"),
        ("1,2345", "12345"),
        ("yes, it is", "yes"),
        ("", "red"),
        ("。", "red"),
        ("...", ""),
        ("元", ""),
        ("10²", "102"),
        ("10⁻³", "10-3"),
        ("x²", "x2"),
        ("(5)", "5"),
        ("($ 5.00)", "5.00"),
    ],
)
def test_another_answer_does_not_match(answer, expected):
    assert exact_match(answer, expected) == exact_match(expected, answer) == 0.0


@pytest.mark.parametrize(
    ("answer", "expected", "value"),
    [
        ("The cat sat.", "a cat sat", 1.0),
        ("cat sat down", "the cat", 2 * (1 / 3) * 1 / (1 / 3 + 1)),
        ("the the cat cat", "cat", 2 / 3),
        ("dog", "cat", 0.0),
        ("an", "the", 1.0),
        ("", "cat", 0.0),
        ("白天", "夜天", 0.5),
        ("一只red猫。", "一只 red 猫", 1.0),
        ("ひらカナ", "カナ", 2 / 3),
        ("고양이 두 마리", "고양이", 0.5),
        ("10²", "102", 0.0),
    ],
)
def test_token_f1_by_hand(answer, expected, value):
    assert token_f1(answer, expected) == pytest.approx(value)


def squad_f1(prediction: str, truth: str) -> float:
    """The published evaluation of SQuAD 2.0, for one answer."""

    def tokens(text: str) -> list[str]:
        text = "".join(ch for ch in text.lower() if ch not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split()).split()

    predicted, true = tokens(prediction), tokens(truth)
    same = sum((Counter(predicted) & Counter(true)).values())
    if not predicted or not true:
        return float(predicted == true)
    if not same:
        return 0.0
    precision, recall = same / len(predicted), same / len(true)
    return 2 * precision * recall / (precision + recall)


SENTENCE = st.lists(
    st.sampled_from("the a an The cat's mat $27.40 U.S. re-use (x) Ann 3% -- and, .".split())
).map(" ".join)


@given(SENTENCE | st.text(string.printable), SENTENCE)
def test_token_f1_is_that_of_squad(answer, expected):
    assert token_f1(answer, expected) == pytest.approx(squad_f1(answer, expected))


def edits(a: str, b: str) -> int:
    """Levenshtein distance, by the textbook."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


@pytest.mark.parametrize(
    ("answer", "expected", "value"),
    [
        ("WC-65695", "wc-65695", 1.0),
        ("WC-65698", "WC-65695", 7 / 8),
        ("ab", "abc", 2 / 3),
        ("abc", "abxyz", 0.0),
        ("abxx", "abcd", 0.0),
        ("abcxx", "abcde", 3 / 5),
        ("", "", 1.0),
        ("", "a", 0.0),
        ("折线图", "折线 图", 3 / 4),
    ],
)
def test_anls_by_hand(answer, expected, value):
    """Half the characters wrong is 0 already: the threshold of the paper is not included."""
    assert anls(answer, expected) == pytest.approx(value)


@given(st.text("abAB 1", max_size=12), st.text("abAB 1", min_size=1, max_size=12))
@settings(deadline=None)
def test_anls_is_the_formula_of_the_paper(answer, expected):
    a, b = (" ".join(text.lower().split()) for text in (answer, expected))
    distance = edits(a, b) / max(len(a), len(b), 1)
    assert anls(answer, expected) == pytest.approx(1 - distance if distance < 0.5 else 0)


@pytest.mark.parametrize(
    ("answer", "expected", "rate"),
    [
        ("kitten", "sitting", 3 / 7),
        ("abcdef", "ab", 2.0),
        ("", "abc", 1.0),
        ("", "", 0.0),
        ("abc", "", 3.0),
        ("AB", "ab", 1.0),
        ("a  b\n", "a b", 0.0),
        ("１２３", "123", 0.0),
        ("10²", "102", 1 / 3),
    ],
)
def test_character_error_rate_by_hand(answer, expected, rate):
    assert character_error_rate(answer, expected) == pytest.approx(rate)
    assert character_accuracy(answer, expected) == pytest.approx(max(0, 1 - rate))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("a cat on a mat", "the cat sat on the mat"), ("a cat", "dog"), ("一只猫", "两只猫在睡觉")],
)
def test_chrf_is_that_of_sacrebleu(answer, expected):
    sacrebleu = pytest.importorskip("sacrebleu")
    reference = sacrebleu.sentence_chrf(answer, [expected]).score / 100
    assert chrf(answer, expected) == pytest.approx(reference)


def test_chrf_by_hand():
    """Characters: 2 of 3 found, 2 of 2 right. Pairs: 1 of 2, 1 of 1. Triples: none in the answer.

    Of the orders that both have, mean precision 1 and mean recall 7/12; recall counts double.
    """
    assert chrf("ab", "abc") == pytest.approx(5 * (7 / 12) / (4 + 7 / 12), rel=1e-6)
    assert chrf("", "") == 1.0
    assert chrf(" ", "a") == chrf("a", " ") == 0.0


@pytest.mark.parametrize("metric", TEXT_METRICS)
@given(answer=st.text(max_size=30), expected=st.text(max_size=30))
@settings(max_examples=60, deadline=None)  # the first call imports a package
def test_scores_of_texts_are_bounded(metric, answer, expected):
    assert 0 <= METRICS[metric](answer, expected) <= 1


@pytest.mark.parametrize("metric", TEXT_METRICS)
@given(text=st.text(min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)  # the first call imports a package
def test_an_answer_agrees_with_itself(metric, text):
    assert METRICS[metric](text, text) == pytest.approx(1)


# ---- boxes


@pytest.mark.parametrize(
    "text",
    [
        BOX,
        '{"bbox_2d": [100, 200, 300, 400]}',
        f"```json\n{BOX}\n```",
        f"Here it is:\n```json\n{BOX}\n```\nAnything else?",
        "[{'bbox': [100, 200, 300, 400], 'label': 'the cat\\'s (1) tail'}]",
        '{"label": "cat", "box": [100.0, 200.0, 300.00, 400]}',
        '[{"bbox_2d": [100, 200, 300, 400], "label": "cat"}, {"bbox_2d": [5, 6, 7',
        '[{"bbox_2d": [100, 200, 300, 400], "label": "cat"}, {"bbox_2d": [5, 6, 7, 8',
        '"[{\\"bbox_2d\\": [100,200,300,400]}]"',
        "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(100,200),(300,400)<|box_end|>",
        "<|box_start|>(100, 200), (300, 400)",
        "<box>(100,200),(300,400)</box>",
        "(100,200),(300,400)",
        "from (100, 200) to (300, 400)",
        "[[100, 200], [300, 400]]",
        "[100, 200, 300, 400]",
        "[[100, 200, 300, 400]]",
        "100,200,300,400",
        "The cat is at 100, 200, 300, 400.",
        "(100, 200, 300, 400)",
        "（１００，２００），（300，400）",
        "[300, 400, 100, 200]",
        "[100, 400, 300, 200]",
    ],
)
def test_every_form_of_one_box_is_read(text):
    assert parse_boxes(text) == [(100, 200, 300, 400)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I see no cat.",
        "2",
        "[1, 2, 3]",
        "[1, 2, 3, 4, 5]",
        "1, 2, 3, 4, 5",
        '{"bbox_2d": [1, 2, 3, 4',
        '{"bbox_2d": []}',
        '{"bbox_2d": [a, b, c, d]}',
        "(1, 2)",
        "2025-03-03",
    ],
)
def test_what_is_no_box_is_none(text):
    assert parse_boxes(text) is None


@pytest.mark.parametrize("text", ["[]", "[ ]", "```json\n[]\n```", "There is none: []"])
def test_an_empty_list_is_no_boxes(text):
    assert parse_boxes(text) == []


def test_several_boxes_keep_their_order():
    assert parse_boxes(as_json([(5, 6, 7, 8), (1, 2, 3, 4)])) == [(5, 6, 7, 8), (1, 2, 3, 4)]
    pairs = "<|box_start|>(5,6),(7,8)<|box_end|><|box_start|>(1,2),(3,4)<|box_end|>"
    assert parse_boxes(pairs) == [(5, 6, 7, 8), (1, 2, 3, 4)]


def test_coordinates_outside_are_clipped():
    assert parse_boxes("[-5, 20.5, 1024, 99999]") == [(0, 20.5, 1000, 1000)]
    assert parse_boxes(f"[0, 0, {'9' * 5000}, 7]") == [(0, 0, 1000, 7)]


@given(st.text() | PIECES)
def test_reading_boxes_never_raises(text):
    for box in parse_boxes(text) or []:
        assert 0 <= box[0] <= box[2] <= 1000
        assert 0 <= box[1] <= box[3] <= 1000


@given(BOXES)
@settings(deadline=None)
def test_what_is_written_is_read(boxes):
    ordered = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in boxes]
    assert parse_boxes(as_json(boxes)) == ordered
    assert iou(as_json(boxes), as_json(boxes)) == 1
    assert box_accuracy(as_json(boxes), as_json(boxes)) == 1


@pytest.mark.parametrize(
    "piece",
    ["[", "[1,", "[1,1,1,1", "1", "1,", "(1,1) and ", " ", "<|", "-", "1.", "[ 1 , ", "{'bbox':["],
)
def test_hostile_text_takes_no_time(piece):
    """A hundred times the limit; a quadratic search of the limit alone would take seconds."""
    text = "[" + piece * (100 * box_metrics.MAX_PARSED_CHARS // len(piece))
    start = time.perf_counter()
    parse_boxes(text)
    assert time.perf_counter() - start < 0.3


def test_only_the_beginning_is_searched():
    assert parse_boxes(" " * box_metrics.MAX_PARSED_CHARS + BOX) is None


@pytest.mark.parametrize(
    ("found", "wanted", "overlap", "f1"),
    [
        ([(0, 0, 10, 10)], [(0, 0, 10, 10)], 1, 1),
        ([(0, 0, 10, 10)], [(5, 0, 15, 10)], 1 / 3, 0),
        ([(0, 0, 10, 5)], [(0, 0, 10, 10)], 1 / 2, 1),
        ([(0, 0, 10, 10)], [(20, 20, 30, 30)], 0, 0),
        ([(0, 0, 10, 10), (50, 50, 60, 60)], [(0, 0, 10, 10)], 1 / 2, 2 / 3),
        ([(0, 0, 10, 10)], [(0, 0, 10, 10), (50, 50, 60, 60)], 1 / 2, 2 / 3),
        ([(50, 50, 60, 60), (0, 0, 10, 10)], [(0, 0, 10, 10), (50, 50, 60, 60)], 1, 1),
        ([(7, 7, 7, 7)], [(7, 7, 7, 7)], 1, 1),
        ([(7, 7, 7, 7)], [(8, 8, 8, 8)], 0, 0),
        ([], [], 1, 1),
        ([], [(0, 0, 10, 10)], 0, 0),
        ([(0, 0, 10, 10)], [], 0, 0),
    ],
)
def test_overlap_and_accuracy_by_hand(found, wanted, overlap, f1):
    assert iou(as_json(found), as_json(wanted)) == pytest.approx(overlap)
    assert box_accuracy(as_json(found), as_json(wanted)) == pytest.approx(f1)


def test_the_matching_is_the_best_one_and_not_the_first():
    """The first box overlaps both: taking its best partner would leave the second with none."""
    wanted = [(0, 0, 10, 10), (0, 0, 10, 8)]
    found = [(0, 0, 10, 9), (0, 0, 10, 12)]
    assert iou(as_json(found), as_json(wanted)) == pytest.approx((8 / 9 + 10 / 12) / 2)


def test_an_unreadable_answer_is_wrong_even_where_no_box_is_wanted():
    assert iou("somewhere", BOX) == box_accuracy("somewhere", BOX) == 0
    assert iou("somewhere", "[]") == box_accuracy("somewhere", "[]") == 0


@pytest.mark.parametrize("metric", [iou, box_accuracy])
def test_an_expected_answer_without_boxes_is_an_error(metric):
    with pytest.raises(ConfigError, match=r"no box .* 'left'.*bbox_2d.*metrics="):
        metric(BOX, "left")


@given(BOXES, BOXES)
@settings(deadline=None)
def test_scores_of_boxes_are_bounded_and_symmetric(found, wanted):
    for metric in (iou, box_accuracy):
        value = metric(as_json(found), as_json(wanted))
        assert 0 <= value <= 1
        assert value == pytest.approx(metric(as_json(wanted), as_json(found)))


# ---- packages


def test_importing_loads_nothing_slow():
    code = (
        "import sys, qvl_lab.analysis.quality.scoring;"
        "print(*{'torch', 'scipy', 'rapidfuzz', 'sacrebleu', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_without_optional_packages_the_rest_works_and_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidfuzz.distance.Levenshtein", None)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    text_metrics._chrf.cache_clear()
    for metric in (anls, character_accuracy, character_error_rate):
        with pytest.raises(ConfigError, match="pip install rapidfuzz;"):
            metric("a", "b")
    with pytest.raises(ConfigError, match="pip install sacrebleu;"):
        chrf("a", "b")
    assert exact_match("a", "A") == token_f1("a cat", "cat") == 1
    assert iou(BOX, BOX) == box_accuracy(BOX, BOX) == 1
