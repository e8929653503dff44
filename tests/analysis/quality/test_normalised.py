"""What an answer says, however it is written."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvl_lab.analysis.quality.boxes import MAX_PARSED_CHARS
from qvl_lab.analysis.quality.metrics import METRICS, exact_match
from qvl_lab.analysis.quality.normalised import (
    marked_answer,
    normalised,
    same_answer,
    without_reasoning,
)

TEXT_METRICS = sorted(set(METRICS) - {"iou", "box_accuracy"})


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The star is red.", "red"),
        ("The star is **red**.", "red"),
        ("It's a triangle. Answer: red", "red"),
        ("The colour of the star is: red", "red"),
        ("星星是红色的。", "红色"),
        ("答案是：红色", "红色"),
        ("图中五角星的颜色为红色。", "红色"),
        ("The label reads WC-65695.", "WC-65695"),
        ("<answer>Rome</answer>", "Rome"),
        ("\\boxed{Rome}", "rome"),
        ("The lowest bar is Rome. It stands at 12.", "Rome"),
        ("Yes, there is a dog.", "yes"),
        ("No, there isn't.", "no"),
        ("是的，有一只狗。", "是"),
        ("没有，图里只有猫。", "没有"),
        ("the receipt", "receipt"),
    ],
)
def test_a_sentence_says_the_short_answer(answer, expected):
    assert same_answer(answer, expected)
    assert not exact_match(answer, expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The star is not red.", "red"),
        ("The star isn't red.", "red"),
        ("五角星不是红色", "红色"),
        ("The star is red or blue.", "red"),
        ("It is unclear whether the star is red.", "red"),
        ("The star is dark red.", "red"),
        ("It is a red star.", "red"),
        ("The star is blue. The circle is red.", "red"),
        ("**blue**, then **red**", "red"),
        ("Answer: blue. The circle is red", "red"),
        ("Not yes", "yes"),
        ("Yes", "no"),
        ("red green blue", "red"),
        ("", "red"),
        ("是否红色", "红色"),
    ],
)
def test_naming_the_answer_is_not_saying_it(answer, expected):
    assert not same_answer(answer, expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("12.50 USD", "12.50"),
        ("US$12.50", "12.50"),
        ("RMB 12.50", "12.50"),
        ("12.50 dollars", "12.50"),
        ("人民币12.50元", "12.50"),
        ("1.027,40", "1027.40"),
        ("1 027,40", "1027.40"),
        ("1\u202f027,40 €", "1027.40"),
        ("1'027.40", "1027.40"),
        ("27,40", "27.40"),
        ("27.4", "27.40"),
        ("The total is $1,027.40.", "1027.40"),
        ("three", "3"),
        ("There are three circles.", "3"),
        ("There are 3 (three) circles.", "3"),
        ("twenty-one", "21"),
        ("3", "three"),
        ("none", "0"),
        ("There are no circles.", "0"),
        ("3个", "3"),
        ("三个", "3"),
        ("两个圆形", "2"),
        ("图中有十二个圆。", "12"),
        ("二十一", "21"),
        ("图中一共有3个", "3"),
        ("答案：三", "3"),
        ("The code is 0472.", "0472"),
        ("-5 degrees", "-5"),
        ("50 percent", "50%"),
        ("It says 12.50 at the top; the total is **27.40**", "27.40"),
    ],
)
def test_a_number_is_its_value_however_it_is_written(answer, expected):
    assert same_answer(answer, expected)
    assert not exact_match(answer, expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("10²", "102"),
        ("10^2", "102"),
        ("(5)", "5"),
        ("(5)", "-5"),
        ("(12.50)", "12.50"),
        ("3 or 4", "3"),
        ("3 circles and 2 squares", "3"),
        ("more than 3", "3"),
        ("not 3", "3"),
        ("at least three", "3"),
        ("50%", "50"),
        ("5 million", "5"),
        ("5万", "5"),
        ("1/2", "1"),
        ("12:30", "12"),
        ("2025-03-04", "2025"),
        ("A5", "5"),
        ("WC-65695", "65695"),
        ("3rd", "3"),
        ("472", "0472"),
        ("1,2345", "12345"),
        ("1.027", "1027"),
        ("第三个", "3"),
        ("一些圆形", "1"),
        ("the one on the left", "1"),
        ("星期三", "3"),
        ("", "0"),
        ("9" * 60, "9" * 59 + "8"),
    ],
)
def test_another_number_is_not_the_same(answer, expected):
    assert not same_answer(answer, expected)


@pytest.mark.parametrize(
    ("answer", "rest"),
    [
        ("<think>Is it blue? [1, 2, 3, 4]</think>red", "red"),
        ("It may be blue.</think>\nred", "\nred"),
        ("<think>It may be", ""),
        ("<think>a</think>b<think>c</think>red", "red"),
        ("red", "red"),
        (" 1 < 2 ", " 1 < 2 "),
    ],
)
def test_what_is_thought_aloud_is_no_answer(answer, rest):
    assert without_reasoning(answer) == rest


@pytest.mark.parametrize(
    ("answer", "marked"),
    [("a **b** c", "b"), ("**a** **b**", "**a** **b**"), ("Answer: a\nb", "a"), ("a", "a")],
)
def test_the_marked_part_is_the_answer(answer, marked):
    assert marked_answer(answer) == marked


@pytest.mark.parametrize("metric", TEXT_METRICS)
@given(
    st.text(max_size=30) | st.from_regex(r"(The total is )?[$(]?[0-9.,' ]{1,9}( USD|个|%)?\)?"),
    st.text(max_size=30) | st.from_regex(r"[0-9.,]{1,6}", fullmatch=True),
)
@settings(max_examples=60, deadline=None)
def test_normalised_scores_are_never_below_the_strict_ones(metric, answer, expected):
    value = normalised(metric, answer, expected)
    assert METRICS[metric](answer, expected) <= value <= 1


@pytest.mark.parametrize("metric", TEXT_METRICS)
def test_any_metric_of_texts_gives_full_marks_for_the_same_answer(metric):
    assert normalised(metric, "12.50 USD", "12.50") == 1
    assert normalised(metric, "99", "12.50") == METRICS[metric]("99", "12.50") < 1


@pytest.mark.parametrize(
    "piece", "1 111|1,111|1.111|**|answer:|三|twenty-|is |(|<think>|-".split("|")
)
def test_hostile_text_takes_no_time(piece):
    text = piece * (10 * MAX_PARSED_CHARS // len(piece))
    started = time.perf_counter()
    same_answer(text, "3")
    same_answer(text, "red")
    without_reasoning(text)
    assert time.perf_counter() - started < 0.5
