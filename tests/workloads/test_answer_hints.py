"""Questions that say how to answer."""

from __future__ import annotations

import pytest

from qvl_lab.errors import UnknownNameError
from qvl_lab.workloads.answer_hints import HINTS, answer_hint, with_hint
from qvl_lab.workloads.items import Item, Workload
from qvl_lab.workloads.sources import load_workload


@pytest.mark.parametrize(
    ("reference", "form"),
    [
        ("3", "number"),
        ("1,027.40", "number"),
        ("0472", "number"),
        ('["12.50", "12.5"]', "number"),
        ("red", "words"),
        ("红色", "words"),
        ("WC-65695", "words"),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "cat"}]', "boxes"),
        ("[]", "boxes"),
        ("[{'bbox': [1, 2, 3, 4]}]", "boxes"),
    ],
)
def test_the_hint_depends_on_the_form_of_the_answer_and_the_language(reference, form):
    english, chinese = HINTS[form]
    assert answer_hint("What is it?", reference) == english
    assert answer_hint("这是什么？", reference) == chinese
    assert with_hint("What is it?", reference) == f"What is it? {english}"
    assert with_hint("这是什么？", reference) == f"这是什么？{chinese}"


def test_a_hint_says_nothing_of_the_answer_itself():
    assert answer_hint("How many?", "3") == answer_hint("How many?", "4")


def test_a_question_without_a_known_answer_keeps_its_words():
    items = (Item("a", b"1", "Describe it."), Item("b", b"2", "How many?", "3"))
    hinted = Workload("mine", items).with_answer_hints()
    assert hinted.items[0].question == "Describe it."
    assert hinted.items[1].question.startswith("How many? Answer")
    assert hinted.name == "mine+hints"
    assert hinted.fingerprint != Workload("mine", items).fingerprint


def test_packaged_sets_have_a_name_with_hints():
    plain, hinted = load_workload("evaluation"), load_workload("evaluation+hints")
    assert hinted.name == "evaluation+hints" and len(hinted) == len(plain)
    for a, b in zip(plain.items, hinted.items, strict=True):
        assert b.question.startswith(a.question) and len(b.question) > len(a.question)
        assert (a.id, a.reference, a.task) == (b.id, b.reference, b.task)
    with pytest.raises(UnknownNameError):
        load_workload("nothing+hints")


def test_the_packaged_questions_are_those_that_the_embedded_model_knows():
    """Its answers were trained on these words: with any hint it scores 0.00 instead of 1.00."""
    questions = {item.question for item in load_workload("evaluation").items}
    assert {"How many diamonds are there?", "总计是多少？"} <= questions
    assert not any("nswer" in question or "只回答" in question for question in questions)
