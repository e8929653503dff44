"""The table of tasks."""

from __future__ import annotations

import pytest

from qvl_lab.claims import claim
from qvl_lab.config import ImagePolicy
from qvl_lab.tasks import BY_NAME, TASKS, article_resolutions, find_task


def test_no_two_tasks_share_a_name_and_all_names_are_in_lower_case():
    names = [name for task in TASKS for name in (task.name, *task.aliases)]
    assert len(names) == len(set(names)) == len(BY_NAME)
    assert names == [name.casefold().strip() for name in names]


def test_kinds_are_the_articles_three():
    kinds = {task.article_kind for task in TASKS} - {None}
    assert kinds == set(article_resolutions()) == set(ImagePolicy().task_resolutions)


def test_the_articles_resolutions_are_its_claims():
    assert article_resolutions() == {
        "detection": claim("detection_resolution").number,
        "description": claim("description_resolution").number,
        "fine_analysis": "native",
    }


@pytest.mark.parametrize(
    ("given", "name"),
    [(" Color ", "colour"), ("定位", "locate"), ("OCR", "ocr"), ("描述", "description")],
)
def test_a_task_is_found_by_any_of_its_names(given, name):
    found = find_task(given)
    assert found is not None
    assert found.name == name


def test_an_unknown_task_is_none():
    assert find_task("invoice") is None
