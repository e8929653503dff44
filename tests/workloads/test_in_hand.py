"""Images in hand: whatever holds them, and the questions about them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from qvl_lab.errors import ConfigError, WorkloadError
from qvl_lab.workloads.in_hand import images_in_hand, items_in_hand
from qvl_lab.workloads.items import Item, Workload
from qvl_lab.workloads.sources import load_workload

RED = np.full((6, 9, 3), (255, 0, 0), np.uint8)


def asked(*given):
    return [(item.id, item.question) for item in items_in_hand(*given)]


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        Image.fromarray(RED).save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.mark.parametrize(
    "holding",
    [
        list,
        tuple,
        iter,
        pd.Series,
        np.array,
        lambda paths: pd.Series(paths, index=[7] * len(paths)),
        lambda paths: (Path(path) for path in paths),
        lambda paths: dict.fromkeys(paths).keys(),
    ],
)
def test_whatever_gives_paths_one_after_the_other_holds_images(holding, folder):
    paths = [str(folder / "a.png"), str(folder / "b.png")]
    assert [str(image) for image in images_in_hand(holding(paths))] == paths
    assert asked(holding(paths), ["q", "r"]) == [("a.png", "q"), ("b.png", "r")]
    assert [item.id for item in load_workload(holding(paths)).items] == ["a.png", "b.png"]


def test_a_glob_is_taken_as_it_is(folder):
    assert sorted(id for id, _ in asked(folder.glob("*.png"), "q")) == ["a.png", "b.png"]


@pytest.mark.parametrize("one", ["a.png", Path("a.png"), b"bytes", Item("x", "a.png"), RED])
def test_one_image_need_not_be_in_a_list(one):
    assert len(images_in_hand(one)) == 1


def test_arrays_are_images_with_red_first():
    (picture,) = images_in_hand(RED)
    assert picture.size == (9, 6)
    assert picture.getpixel((0, 0)) == (255, 0, 0)
    assert [image.size for image in images_in_hand(np.stack([RED, RED]))] == [(9, 6)] * 2
    assert [image.mode for image in images_in_hand([RED[..., 0], RED])] == ["L", "RGB"]


def test_a_workload_gives_its_items(folder):
    workload = load_workload(folder)
    assert items_in_hand(workload) == list(workload.items)
    assert load_workload(list(workload.items)).items == workload.items
    assert isinstance(load_workload(folder.glob("*.png")), Workload)


@pytest.mark.parametrize(
    ("images", "complaint"),
    [
        (RED.astype(float), r"image 0 is an array of float64 \(6, 9, 3\); give uint8"),
        ([RED, RED.transpose(2, 0, 1)], r"image 1 is an array of uint8 \(3, 6, 9\)"),
        (["a.png", None], "image 1 is of type NoneType; give a path, bytes, a PIL image"),
        (pd.Series(["a.png", float("nan")]), "image 1 is of type float"),
        (7, "image 0 is of type int"),
        (pd.DataFrame({"image": ["a.png"]}), r"give load_workload\(table\)"),
    ],
)
def test_what_is_no_image_is_named(images, complaint):
    with pytest.raises(WorkloadError, match=complaint):
        images_in_hand(images)


def test_an_id_is_the_files_name_or_its_path_where_two_have_that_name():
    images = ["a/x.png", "b/x.png", Path("b/y.png"), b"1", Item("own", "c/x.png")]
    assert [id for id, _ in asked(images)] == ["a/x.png", "b/x.png", "y.png", "image 3", "own"]
    assert [id for id, _ in asked(["x.png", "x.png"])] == ["x.png", "x.png#2"]


@pytest.mark.parametrize(
    ("images", "prompts", "expected"),
    [
        ("x.png", ["q", "r"], [("x.png", "q"), ("x.png#2", "r")]),
        ("x.png", pd.Series(["q", "r"]), [("x.png", "q"), ("x.png#2", "r")]),
        (["x.png"], [["q", "r"]], [("x.png", "q"), ("x.png#2", "r")]),
        (["x.png", "y.png"], [["q", "r"], "s"], [("x.png", "q"), ("x.png#2", "r"), ("y.png", "s")]),
        (["x.png", "y.png"], "q", [("x.png", "q"), ("y.png", "q")]),
        (["x.png", "y.png"], (q for q in "qr"), [("x.png", "q"), ("y.png", "r")]),
        ([], "q", []),
    ],
)
def test_questions_are_for_all_images_or_each_or_several_about_one(images, prompts, expected):
    assert asked(images, prompts) == expected


@pytest.mark.parametrize(
    ("images", "prompts", "complaint"),
    [
        (
            ["x.png"],
            ["q", "r"],
            "2 prompts for 1 image; give one for all, or one each; for several",
        ),
        (["x.png", "y.png"], ["q"], "1 prompts for 2 images"),
        (["x.png"], [3], "a prompt must be text, not 3"),
        (["x.png"], [["q", None]], "a prompt must be text, not None"),
    ],
)
def test_prompts_that_do_not_fit_the_images_are_refused(images, prompts, complaint):
    with pytest.raises(ConfigError, match=complaint):
        asked(images, prompts)


def test_a_task_is_for_an_image_and_all_its_questions():
    items = items_in_hand(["x.png", "y.png"], [["q", "r"], "s"], ["ocr", None])
    assert [item.task for item in items] == ["ocr", "ocr", None]
    with pytest.raises(ConfigError, match=r"1 tasks for 2 images; give one for all, or one each$"):
        items_in_hand(["x.png", "y.png"], "q", ["ocr"])
