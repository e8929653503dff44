"""Reading workloads: folders, tables, packaged sets, images in hand."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from qvl_lab.analysis.quality.boxes import parse_boxes
from qvl_lab.analysis.quality.scoring import score
from qvl_lab.errors import InputError, UnknownNameError, WorkloadError
from qvl_lab.workloads.items import DEFAULT_QUESTION, Item, Workload
from qvl_lab.workloads.sources import load_workload


def encoded(image, fmt="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def picture(width=40, height=20):
    return Image.new("RGB", (width, height), (255, 0, 0))


def jsonl(path, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


# ---- folders ----


@pytest.fixture
def folder(tmp_path):
    """Two images, one of them nested, beside hidden and other files."""
    root = tmp_path / "shop"
    for name in ("b.png", "sub/A.JPG", ".hidden.png", ".cache/c.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture().save(root / name)
    (root / "notes.txt").write_text("hello")
    (root / "sub" / "rows.csv").write_text("image\n")
    return root


def test_a_folder_is_searched_with_its_subfolders(folder):
    workload = load_workload(folder)
    assert workload.name == "shop"
    assert [item.id for item in workload.items] == ["b.png", "sub/A.JPG"]
    assert [item.image for item in workload.items] == [folder / "b.png", folder / "sub" / "A.JPG"]
    assert {item.question for item in workload.items} == {DEFAULT_QUESTION}


def test_files_that_are_no_images_are_listed_and_hidden_ones_are_not(folder):
    assert load_workload(folder).ignored == ("notes.txt", "sub/rows.csv")


def test_question_and_task_apply_to_a_folder(folder):
    item = load_workload(folder, question="几个?", task="detection").items[0]
    assert (item.question, item.task, item.reference) == ("几个?", "detection", None)


def test_a_folder_without_images_says_what_an_image_is(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(WorkloadError, match=r"no usable item; images end in \.bmp, .*\.webp"):
        load_workload(tmp_path)


def test_file_names_need_not_be_utf8(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).write_bytes(encoded(picture()))
    workload = load_workload(tmp_path)
    assert len(workload) == 1
    assert len(workload.fingerprint) == 16


# ---- tables ----


def test_csv_with_a_byte_order_mark_and_empty_cells(tmp_path):
    path = tmp_path / "set.csv"
    text = "id,image,question,answer,task,price\none,a.png,几个?,3,detection,9\n,b.png,,,,\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    workload = load_workload(path, question="What?", task="description")
    assert workload.name == "set"
    assert workload.items == (
        Item("one", tmp_path / "a.png", "几个?", "3", "detection"),
        Item("set.csv:3", tmp_path / "b.png", "What?", None, "description"),
    )
    assert workload.errors == ()


def test_csv_numbers_stay_as_written(tmp_path):
    path = tmp_path / "set.csv"
    path.write_text("image,answer\na.png,007\nb.png,NA\n")
    assert [item.reference for item in load_workload(path).items] == ["007", "NA"]


def test_several_reference_answers_are_a_list(tmp_path):
    rows = [["12.50", "12.5"], ["red"], [], [{"bbox_2d": [1, 2, 3, 4]}], "2"]
    lines = [json.dumps({"image": "a.png", "answer": answer}) for answer in rows]
    (tmp_path / "set.jsonl").write_text("\n".join(lines))
    found = [item.reference for item in load_workload(tmp_path / "set.jsonl").items]
    assert found == ['["12.50", "12.5"]', "red", "[]", "[{'bbox_2d': [1, 2, 3, 4]}]", "2"]


def test_the_true_answer_is_read_from_reference_or_answer(tmp_path):
    for column in ("reference", "answer"):
        (tmp_path / "set.csv").write_text(f"image,{column}\na.png,red\n")
        assert load_workload(tmp_path / "set.csv").items[0].reference == "red"
    (tmp_path / "set.csv").write_text("image,answer,reference\na.png,red,blue\nb.png,2,\nc.png,3,3")
    workload = load_workload(tmp_path / "set.csv")
    assert [item.reference for item in workload.items] == ["2", "3"]
    assert "'reference' and 'answer' differ" in workload.errors[0]["error"]


def test_csv_rows_are_numbered_by_line(tmp_path):
    path = tmp_path / "set.csv"
    path.write_text('image,question\na.png,"two\nlines"\n\n,no image\nb.png,x\n')
    workload = load_workload(path)
    assert [item.id for item in workload.items] == ["set.csv:3", "set.csv:6"]
    assert [error["id"] for error in workload.errors] == ["set.csv:5"]
    assert "no column 'image'" in workload.errors[0]["error"]
    assert "found question" in workload.errors[0]["error"]


def test_csv_trailing_commas_do_not_shift_the_columns(tmp_path):
    path = tmp_path / "set.csv"
    path.write_text("image,question\na.png,hi,\nb.png,ho,\n")
    rows = [(item.image.name, item.question) for item in load_workload(path).items]
    assert rows == [("a.png", "hi"), ("b.png", "ho")]


def test_csv_row_with_an_unquoted_comma_is_one_error(tmp_path):
    path = tmp_path / "set.csv"
    path.write_text("image,question\na.png,red, or blue?\nb.png,ok\n")
    workload = load_workload(path)
    assert [item.question for item in workload.items] == ["ok"]
    (error,) = workload.errors
    assert error["id"] == "set.csv:2"
    assert "more values than columns" in error["error"]


def test_csv_without_an_image_column_lists_the_columns(tmp_path):
    path = tmp_path / "set.csv"
    path.write_text("picture,question\na.png,hi\n")
    message = (
        "no column 'image' .allowed: id, image, question, reference, answer, task.; "
        "found picture, question"
    )
    with pytest.raises(WorkloadError, match=message):
        load_workload(path)


@pytest.mark.parametrize("text", [b"", b"image,question\n"])
def test_csv_without_rows_has_no_usable_item(tmp_path, text):
    (tmp_path / "set.csv").write_bytes(text)
    with pytest.raises(WorkloadError, match="'set' has no usable item"):
        load_workload(tmp_path / "set.csv")


def test_csv_must_be_utf8(tmp_path):
    (tmp_path / "set.csv").write_bytes("image,question\na.png,é\n".encode("latin-1"))
    with pytest.raises(WorkloadError, match="not a readable CSV in UTF-8"):
        load_workload(tmp_path / "set.csv")


def test_jsonl_goes_on_after_bad_lines(tmp_path):
    path = jsonl(
        tmp_path / "set.jsonl",
        {"id": "one", "image": "sub/a.png", "question": "Q", "answer": 3, "task": None},
        "{broken",
        "",
        "[1, 2]",
        {"question": "no image"},
        {"image": ""},
        {"image": "/abs/b.png", "answer": None, "question": ""},
    )
    workload = load_workload(path)
    assert workload.items == (
        Item("one", tmp_path / "sub" / "a.png", "Q", "3", None),
        Item("set.jsonl:7", Path("/abs/b.png"), DEFAULT_QUESTION, None, None),
    )
    errors = {error["id"]: error["error"] for error in workload.errors}
    assert list(errors) == [f"set.jsonl:{line}" for line in (2, 4, 5, 6)]
    assert "not valid JSON" in errors["set.jsonl:2"]
    assert errors["set.jsonl:4"] == "not an object: [1, 2]"
    assert "found question" in errors["set.jsonl:5"]
    assert "no column 'image'" in errors["set.jsonl:6"]


def test_jsonl_without_a_good_line_gives_the_first_reason(tmp_path):
    with pytest.raises(WorkloadError, match="'set' has no usable item: not valid JSON"):
        load_workload(jsonl(tmp_path / "set.jsonl", "{broken"))


def test_jsonl_may_start_with_a_byte_order_mark(tmp_path):
    (tmp_path / "set.jsonl").write_bytes(b'\xef\xbb\xbf{"image": "a.png"}\n')
    assert [item.image.name for item in load_workload(tmp_path / "set.jsonl").items] == ["a.png"]


def test_repeated_ids_are_made_unique_the_others_stay_and_it_is_said(tmp_path, caplog):
    rows = [{"id": name, "image": "a.png"} for name in ("x", "y", "x")]
    workload = load_workload(jsonl(tmp_path / "set.jsonl", *rows))
    assert [item.id for item in workload.items] == ["x", "y", "x#2"]
    assert "1 repeated ids were renamed, such as 'x' to 'x#2'" in caplog.text


def test_paths_of_the_same_name_are_told_apart_by_their_folders(caplog):
    workload = load_workload(["a/x.png", "b/x.png", Path("c/y.png"), "a/x.png"])
    ids = [item.id for item in workload.items]
    assert ids == ["a/x.png", "b/x.png", "y.png", "a/x.png#2"]
    assert not caplog.text  # no id of the user's own was changed


def test_a_table_of_chinese_excel_is_read(tmp_path, caplog):
    path = tmp_path / "set.csv"
    path.write_bytes("image,question\na.png,图里有几个红色的圆？\n".encode("gbk"))
    assert load_workload(path).items[0].question == "图里有几个红色的圆？"
    assert "not UTF-8; it is read as GB18030" in caplog.text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "gb18030"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_columns_may_be_divided_as_spreadsheets_do(tmp_path, delimiter, encoding):
    lines = [["Image", " QUESTION", "Answer"], ["a.png", "几个?", "3"], ["b.png", "x", ""]]
    text = "\r\n".join(delimiter.join(line) for line in lines)
    (tmp_path / "set.csv").write_bytes(text.encode(encoding))
    workload = load_workload(tmp_path / "set.csv")
    assert [(i.image.name, i.question, i.reference) for i in workload.items] == [
        ("a.png", "几个?", "3"),
        ("b.png", "x", None),
    ]


def test_a_comma_in_a_question_does_not_divide_a_table_of_semicolons(tmp_path):
    (tmp_path / "set.csv").write_text("image;question\na.png;red, or blue?\n")
    assert load_workload(tmp_path / "set.csv").items[0].question == "red, or blue?"


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "set.csv").write_text("image,Image\na.png,b.png\n")
    with pytest.raises(WorkloadError, match="the column 'image' more than once"):
        load_workload(tmp_path / "set.csv")


@pytest.mark.parametrize("name", ["set.json", "set.jsonl"])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_list_of_rows_is_a_table(tmp_path, name, indent):
    rows = [{"image": "a.png", "answer": 3}, {"image": ""}, {"image": "b.png"}]
    (tmp_path / name).write_text(json.dumps(rows, indent=indent))
    workload = load_workload(tmp_path / name)
    assert [(item.id, item.reference) for item in workload.items] == [
        (f"{name}:1", "3"),
        (f"{name}:3", None),
    ]
    assert [error["id"] for error in workload.errors] == [f"{name}:2"]


def test_deep_json_is_an_error_not_a_crash(tmp_path):
    (tmp_path / "set.json").write_bytes(b"[" * 200_000)
    with pytest.raises(WorkloadError, match="not valid JSON"):
        load_workload(tmp_path / "set.json")


@pytest.mark.parametrize("url", ["https://x.org/a.png", "s3://b/a.png", "data:image/png;base64,AA"])
def test_urls_are_refused_by_name_wherever_they_stand(tmp_path, url):
    workload = load_workload(jsonl(tmp_path / "set.jsonl", {"image": url}, {"image": "a.png"}))
    assert f"{url} is a URL, which is not read: download it" in workload.errors[0]["error"]
    for source in (url, [url]):
        with pytest.raises(InputError, match="is a URL, which is not read"):
            load_workload(source)


def test_a_row_with_several_images_is_refused_by_name(tmp_path):
    rows = [{"image": ["a.png", "b.png"]}, {"image": {"path": "a.png"}}, {"image": "a.png"}]
    errors = load_workload(jsonl(tmp_path / "set.jsonl", *rows)).errors
    assert "several images in one item are not supported" in errors[0]["error"]
    assert "must hold a path, not an object" in errors[1]["error"]


@pytest.mark.parametrize("name", ["set.csv", "set.json", "set.jsonl"])
def test_an_empty_table_says_that_it_is_empty(tmp_path, name):
    (tmp_path / name).write_bytes(b"\n")
    with pytest.raises(WorkloadError, match=f"{name} is empty"):
        load_workload(tmp_path / name)


def test_photos_in_formats_that_are_not_supported_are_errors_that_say_what_to_do(folder):
    (folder / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    workload = load_workload(folder)
    assert workload.errors == (
        {"id": "IMG_1.HEIC", "error": "HEIC is not supported: export the photo as JPEG"},
    )
    assert "IMG_1.HEIC" not in workload.ignored


def test_a_frame_is_a_table():
    image = picture()
    frame = pd.DataFrame(
        {"image": ["a.png", "/b.png", image], "answer": [3, None, 7], "id": ["x", None, "z"]}
    )
    assert [(i.id, i.image, i.reference) for i in load_workload(frame).items] == [
        ("x", Path("a.png"), "3"),
        ("row:1", Path("/b.png"), None),
        ("z", image, "7"),
    ]


def test_iterators_series_and_arrays_of_paths_are_sequences_too(folder):
    paths = sorted(str(path) for path in folder.glob("*.png"))
    for source in (folder.glob("*.png"), pd.Series(paths), np.array(paths)):
        assert sorted(str(item.image) for item in load_workload(source).items) == paths
    assert load_workload(picture()).items[0].id == "image 0"
    with pytest.raises(WorkloadError, match="array of float64 \\(2, 2, 3\\); give uint8"):
        load_workload([np.zeros((2, 2, 3))])


# ---- other sources ----


def test_the_packaged_set_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workload = load_workload("mixed")
    assert workload.name == "mixed"
    assert workload.errors == ()
    assert all(item.image.is_file() and item.reference and item.task for item in workload.items)


def test_the_packaged_evaluation_has_questions_that_can_be_scored():
    workload = load_workload("evaluation")
    items = workload.items
    assert workload.errors == ()
    assert len(items) >= 300
    assert len({item.image for item in items}) == len(set(workload.contents)) >= 100
    assert len({item.id for item in items}) == len(items)
    assert len({(item.image, item.question) for item in items}) == len(items)
    counts = Counter(item.task for item in workload.items)
    assert set(counts) == {"count", "locate", "read_large", "read_small", "colour", "total"}
    assert min(counts.values()) >= 40
    assert all(item.question.strip() == item.question != "" for item in items)
    assert {item.question.isascii() for item in items} == {True, False}  # in two languages


def test_every_answer_of_the_packaged_evaluation_scores_1_against_itself():
    items = load_workload("evaluation").items
    answers = [item.reference for item in items]
    scores = score([item.task for item in items], answers, answers)
    metrics = {task: found.metric for task, found in scores.items()}
    assert metrics.pop("locate") == "box_accuracy"
    assert set(metrics.values()) == {"exact_match"}
    assert {found.mean for found in scores.values()} == {1.0}
    assert sum(found.count for found in scores.values()) == len(items)


def test_boxes_of_the_packaged_evaluation_lie_within_the_picture():
    for item in load_workload("evaluation").items:
        if item.task != "locate":
            assert parse_boxes(item.reference) is None
            continue
        (written,) = json.loads(item.reference)
        x1, y1, x2, y2 = written["bbox_2d"]
        assert 0 <= x1 < x2 <= 1000, item
        assert 0 <= y1 < y2 <= 1000, item
        assert parse_boxes(item.reference) == [(x1, y1, x2, y2)]
        assert written["label"]


def test_one_image_is_a_workload(tmp_path):
    picture().save(tmp_path / "a.png")
    workload = load_workload(str(tmp_path / "a.png"), question="Q")
    assert workload.items == (Item("a.png", tmp_path / "a.png", "Q"),)


def test_images_in_hand_keep_their_order():
    hand = [b"bytes", picture(), "dir/a.png", Path("b.png")]
    workload = load_workload(hand, question="Q")
    assert [item.image for item in workload.items] == hand
    assert [item.id for item in workload.items] == ["image 0", "image 1", "a.png", "b.png"]


def test_a_workload_passes_through():
    workload = Workload("w", (Item("a", b"x"),))
    assert load_workload(workload) is workload


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere/at/all", "nowhere/at/all does not exist; give a folder, a .csv"),
        ("none.png", "none.png does not exist"),
        ("none.csv", "cannot read none.csv: No such file"),
        ("none.jsonl", "cannot read none.jsonl: No such file"),
        ([], "'images' has no usable item"),
    ],
)
def test_sources_that_do_not_exist(source, message):
    with pytest.raises(WorkloadError, match=message):
        load_workload(source)


def test_a_packaged_name_with_a_slip_is_corrected():
    with pytest.raises(UnknownNameError, match=r"'mixd'. Did you mean 'mixed'"):
        load_workload("mixd")
