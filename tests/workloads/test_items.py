"""Reading workloads, and decoding images that nobody vouches for."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from qvl_lab.analysis.quality.metrics import parse_boxes
from qvl_lab.analysis.quality.scoring import score
from qvl_lab.config import ImagePolicy
from qvl_lab.errors import ImageError, UnknownNameError, WorkloadError
from qvl_lab.workloads.items import (
    DEFAULT_QUESTION,
    REPEATED,
    Item,
    Workload,
    decode_image,
    image_size,
    load_workload,
    read_bytes,
)

POLICY = ImagePolicy()
RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encoded(image, fmt="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def picture(width=40, height=20, colour=RED):
    return Image.new("RGB", (width, height), colour)


def noise(width=64, height=64):
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def chunk(kind, data):
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png_header(width, height):
    """A complete PNG that claims any size and holds ten bytes of pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(10))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in chunks)


def pixels(data):
    """All pixels of a decoded image, row by row."""
    image = decode_image(data, POLICY)
    assert image.mode == "RGB"
    return [tuple(p) for p in np.asarray(image).reshape(-1, 3).tolist()]


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
    assert (item.question, item.task, item.answer) == ("几个?", "detection", None)


def test_a_folder_without_images_says_what_an_image_is(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(WorkloadError, match=r"no usable item; images end in \.bmp, .*\.webp"):
        load_workload(tmp_path)


def test_file_names_need_not_be_utf8(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).write_bytes(encoded(picture()))
    workload = load_workload(tmp_path)
    assert len(workload) == 1
    assert len(workload.fingerprint) == 16


def test_three_good_images_among_four_bad_ones(tmp_path):
    for name in ("a.png", "b.jpg", "c.webp"):
        noise().save(tmp_path / name)
    jpeg = encoded(noise(), "JPEG")
    (tmp_path / "d_truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (tmp_path / "e_text.png").write_text("this is no picture")
    (tmp_path / "f_bomb.png").write_bytes(png_header(50_000, 50_000))
    (tmp_path / "g_empty.jpg").write_bytes(b"")
    workload = load_workload(tmp_path)
    decoded, errors = [], {}
    for item in workload.items:
        try:
            decoded.append(decode_image(read_bytes(item.image, POLICY), POLICY).size)
        except ImageError as e:
            errors[item.id] = str(e)
    assert len(workload) == 7
    assert decoded == [(64, 64)] * 3
    assert list(errors) == ["d_truncated.jpg", "e_text.png", "f_bomb.png", "g_empty.jpg"]
    for why, error in zip(
        ("truncated", "not an image of a known format", "too many pixels", "empty"),
        errors.values(),
        strict=True,
    ):
        assert why in error


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
    assert [item.answer for item in load_workload(path).items] == ["007", "NA"]


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
    message = "no column 'image' .allowed: id, image, question, answer, task.; found picture, que"
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


def test_repeated_ids_are_made_unique(tmp_path):
    rows = [{"id": name, "image": "a.png"} for name in ("x", "y", "x")]
    workload = load_workload(jsonl(tmp_path / "set.jsonl", *rows))
    assert [item.id for item in workload.items] == ["0:x", "1:y", "2:x"]


# ---- other sources ----


def test_the_packaged_set_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workload = load_workload("mixed")
    assert workload.name == "mixed"
    assert workload.errors == ()
    assert all(item.image.is_file() and item.answer and item.task for item in workload.items)


def test_the_packaged_evaluation_has_questions_that_can_be_scored():
    workload = load_workload("evaluation")
    items = workload.items
    assert workload.errors == ()
    assert len(items) >= 300
    assert len({item.image for item in items}) == len(set(workload.contents)) >= 100
    assert len({item.id for item in items}) == len(items)
    assert len({(item.image, item.question) for item in items}) == len(items)
    counts = tasks(workload)
    assert set(counts) == {"count", "locate", "read_large", "read_small", "colour", "total"}
    assert min(counts.values()) >= 40
    assert all(item.question.strip() == item.question != "" for item in items)
    assert {item.question.isascii() for item in items} == {True, False}  # in two languages


def test_every_answer_of_the_packaged_evaluation_scores_1_against_itself():
    items = load_workload("evaluation").items
    answers = [item.answer for item in items]
    scores = score([item.task for item in items], answers, answers)
    metrics = {task: found.metric for task, found in scores.items()}
    assert metrics.pop("locate") == "box_accuracy"
    assert set(metrics.values()) == {"exact_match"}
    assert {found.mean for found in scores.values()} == {1.0}
    assert sum(found.count for found in scores.values()) == len(items)


def test_boxes_of_the_packaged_evaluation_lie_within_the_picture():
    for item in load_workload("evaluation").items:
        if item.task != "locate":
            assert parse_boxes(item.answer) is None
            continue
        (written,) = json.loads(item.answer)
        x1, y1, x2, y2 = written["bbox_2d"]
        assert 0 <= x1 < x2 <= 1000, item
        assert 0 <= y1 < y2 <= 1000, item
        assert parse_boxes(item.answer) == [(x1, y1, x2, y2)]
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


# ---- fingerprints and samples ----


def three(question="Q", order=(0, 1, 2), data=b"c", **last):
    items = [Item("a", b"a", "Q"), Item("b", b"b", "Q"), Item("c", data, question, **last)]
    return Workload("w", tuple(items[i] for i in order))


@pytest.mark.parametrize(
    "changed",
    [
        three(data=b"C"),
        three(question="R"),
        three(order=(1, 0, 2)),
        three(order=(0, 1)),
        three(answer="x"),
        three(task="x"),
    ],
    ids=["bytes", "question", "order", "count", "answer", "task"],
)
def test_fingerprint_changes_with_the_content(changed):
    assert changed.fingerprint != three().fingerprint


def test_fingerprint_is_that_of_the_bytes_wherever_they_lie(tmp_path):
    data = encoded(picture())
    prints = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(data)
        prints.add(load_workload(tmp_path / name).fingerprint)
    prints.add(Workload("hand", (Item("a.png", data),)).fingerprint)
    assert len(prints) == 1


def test_fingerprint_of_images_in_hand_sees_pixels_and_size():
    images = [picture(), picture(colour=BLUE), picture(20, 40), picture().convert("L")]
    assert len({load_workload([image]).fingerprint for image in images}) == 4


@pytest.mark.parametrize("image", ["missing.png", "nul\0.png"])
def test_fingerprint_of_an_unreadable_file_does_not_stop(image):
    assert len(Workload("w", (Item("a", image),)).fingerprint) == 16


def test_sample_is_seeded_and_keeps_the_order():
    workload = Workload("w", tuple(Item(f"{i:02}", b"x") for i in range(50)))
    drawn = [item.id for item in workload.sample(10, seed=1).items]
    assert len(set(drawn)) == 10
    assert drawn == sorted(drawn)
    assert drawn == [item.id for item in workload.sample(10, seed=1).items]
    assert drawn != [item.id for item in workload.sample(10, seed=2).items]


def test_sample_has_a_fingerprint_of_its_own():
    workload = three()
    assert workload.fingerprint == three().fingerprint
    assert workload.sample(2).fingerprint != workload.fingerprint


def tasks(workload):
    return Counter(item.task for item in workload.items)


@pytest.fixture
def mixture():
    """Fifty items of one task, thirty of another and twenty of none, well mixed."""
    kinds = (["read"] * 5 + ["locate"] * 3 + [None] * 2) * 10
    return Workload("w", tuple(Item(f"{i:03}", b"x", task=t) for i, t in enumerate(kinds)))


@pytest.mark.parametrize(
    ("count", "shares"),
    [(10, (5, 3, 2)), (20, (10, 6, 4)), (7, (4, 2, 1)), (3, (1, 1, 1)), (1, (1, 0, 0))],
)
def test_tasks_keep_their_shares_in_a_sample(mixture, count, shares):
    """Of 7 the exact shares are 3.5, 2.1 and 1.4."""
    for seed in range(3):
        drawn = mixture.sample(count, seed)
        assert tasks(drawn) == +Counter(dict(zip(("read", "locate", None), shares, strict=True)))


def test_a_sample_is_as_large_as_asked_for_and_no_share_is_off_by_a_whole_item(mixture):
    for count in range(1, 100):
        drawn = tasks(mixture.sample(count))
        assert drawn.total() == count
        for task, share in (("read", 0.5), ("locate", 0.3), (None, 0.2)):
            assert abs(drawn[task] - count * share) < 1


def test_a_sample_of_tasks_is_seeded_and_keeps_the_order(mixture):
    drawn = mixture.sample(40, seed=1)
    ids = [item.id for item in drawn.items]
    assert ids == sorted(set(ids))
    assert drawn == mixture.sample(40, seed=1)
    assert drawn != mixture.sample(40, seed=2)
    assert {item.id for item in mixture.sample(40, seed=2).items} - set(ids)


@pytest.mark.parametrize("count", [None, 3, 99])
def test_sample_of_everything_is_the_workload(count):
    workload = three()
    assert workload.sample(count) is workload


# ---- requests that repeat ----


def album(images=20, each=1):
    """Different images, asked about once or more; every question is another one."""
    return Workload(
        "album",
        tuple(
            Item(f"{i}.{n}", bytes([i]), f"Q{i}.{n}", answer="a", task=f"t{i}")
            for i in range(images)
            for n in range(each)
        ),
    )


def repeats(workload):
    """Whether each request's image came before."""
    return [item.image in {i.image for i in workload.items[:n]} for n, item in
            enumerate(workload.items)]  # fmt: skip


def test_distinct_keeps_the_first_item_of_every_image():
    assert [item.id for item in album(3, each=2).distinct().items] == ["0.0", "1.0", "2.0"]


@pytest.mark.parametrize("rate", [0, 0.1, 0.3, 0.5, 0.9, 0.95])
@pytest.mark.parametrize("same_question", [False, True])
def test_so_many_requests_repeat_an_earlier_image(rate, same_question):
    repeated = album().repeating(rate, same_question=same_question)
    assert len(repeated) == 20
    assert sum(repeats(repeated)) == round(20 * rate)
    assert repeated.info()["unique_images"] == 20 - round(20 * rate)
    assert len({item.id for item in repeated.items}) == 20
    asked = Counter((item.image, item.question) for item in repeated.items)
    assert len(asked) == (20 - round(20 * rate) if same_question else 20)
    images = Counter(item.image for item in repeated.items)
    assert max(images.values()) - min(images.values()) <= 1
    assert repeated.name == f"album, {100 * rate:.0f}% repeated"
    assert REPEATED.search(repeated.name)


def test_a_repeated_question_keeps_its_answer_and_another_one_has_none():
    whole, another = (album().repeating(0.5, same_question=same) for same in (True, False))
    known = {item.image: item for item in album().items}
    for item, again in zip(whole.items, repeats(whole), strict=True):
        first = known[item.image]
        assert (item.question, item.answer, item.task) == (first.question, "a", first.task)
        assert (" again " in item.id) == again
    for item, again in zip(another.items, repeats(another), strict=True):
        assert (item.answer is None) == again  # the question was asked of another image
        assert (item.question == known[item.image].question) != again
        assert item.task == known[item.image].task  # resolution and cache key go by the task


def test_where_questions_run_out_they_are_numbered():
    items = tuple(Item(str(i), bytes([i]), "Q") for i in range(4))
    questions = {item.question for item in Workload("w", items).repeating(0.75).items}
    assert questions == {"Q", "Q (2)", "Q (3)", "Q (4)"}


def test_repeats_are_seeded_and_shuffled():
    workload = album()
    assert workload.repeating(0.5, seed=1) == workload.repeating(0.5, seed=1)
    assert workload.repeating(0.5, seed=1) != workload.repeating(0.5, seed=2)
    apart = repeats(workload.repeating(0.5))
    assert apart != sorted(apart)  # not all first ones before all repeats


@pytest.mark.parametrize(
    ("images", "each", "rate", "message"),
    [
        (20, 1, 1.0, "from 0 to under 1, not 1.0"),
        (20, 1, -0.1, "from 0 to under 1, not -0.1"),
        (20, 1, float("nan"), "from 0 to under 1, not nan"),
        (20, 1, True, "from 0 to under 1, not True"),
        (20, 1, "half", "from 0 to under 1, not 'half'"),
        (4, 1, 0.1, "0.1 cannot be made of 4 requests"),
        (4, 1, 0.9, "0.9 cannot be made of 4 requests"),
        (1, 1, 0.5, "0.5 cannot be made of 1 requests"),
        (4, 2, 0.25, "in 8 requests needs 6 different images, and workload 'album' has 4"),
    ],
)
def test_a_hit_rate_that_cannot_be_made_is_refused(images, each, rate, message):
    with pytest.raises(WorkloadError, match=message):
        album(images, each).repeating(rate)


def test_info_counts_items_images_answers_and_tasks():
    items = (
        Item("a", b"1", answer="x", task="ocr"),
        Item("b", b"1", task="ocr"),
        Item("c", b"2"),
    )
    info = Workload("w", items).info()
    assert info == {
        "name": "w",
        "fingerprint": Workload("other", items).fingerprint,
        "items": 3,
        "unique_images": 2,
        "with_answer": 1,
        "tasks": {"ocr": 2, "none": 1},
    }


# ---- decoding ----


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_rotation_is_applied_and_the_header_agrees(fmt, orientation):
    image = picture(48, 16, BLUE)
    image.paste(RED, (0, 0, 16, 16))  # the left third
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, fmt, exif=exif)
    upright = decode_image(data, POLICY)
    # where the stored left end belongs, by the EXIF standard
    red_end = {1: "left", 2: "right", 3: "right", 4: "left"}.get(
        orientation, "top" if orientation in (5, 6) else "bottom"
    )
    spots = {"left": (4, 8), "right": (43, 8), "top": (8, 4), "bottom": (8, 43)}
    assert upright.size == image_size(data, POLICY) == ((48, 16) if orientation < 5 else (16, 48))
    assert upright.getpixel(spots[red_end])[0] > 200
    assert upright.getpixel((upright.width // 2, upright.height // 2))[2] > 200


def test_exif_behind_the_pixels_of_a_png_is_seen():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture(40, 20))
    late = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    data = data[:-12] + late + data[-12:]  # IEND has 12 bytes
    assert decode_image(data, POLICY).size == image_size(data, POLICY) == (20, 40)


def test_a_png_size_needs_no_decoding(monkeypatch):
    data = encoded(noise(512, 256))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    assert image_size(data, POLICY) == (512, 256)


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
def test_a_damaged_exif_block_does_not_spoil_the_image(fmt):
    data = encoded(picture(40, 20), fmt, exif=b"Exif\0\0garbage")
    assert decode_image(data, POLICY).size == image_size(data, POLICY) == (40, 20)


def test_transparency_is_laid_over_white():
    image = Image.new("RGBA", (3, 1))
    image.putdata([(0, 0, 0, 0), (255, 0, 0, 255), (0, 0, 0, 128)])
    assert pixels(encoded(image)) == [WHITE, RED, (127, 127, 127)]


def test_grey_with_alpha_is_laid_over_white():
    image = Image.new("LA", (2, 1))
    image.putdata([(0, 0), (10, 255)])
    assert pixels(encoded(image)) == [WHITE, (10, 10, 10)]


def test_transparent_palette_entry_is_white():
    image = Image.new("P", (3, 1))
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    assert pixels(encoded(image, transparency=0)) == [WHITE, RED, BLUE]
    assert pixels(encoded(image)) == [(0, 0, 0), RED, BLUE]


def test_transparent_grey_and_colour_keys_are_white():
    grey = Image.new("L", (2, 1))
    grey.putdata([7, 8])
    assert pixels(encoded(grey, transparency=7)) == [WHITE, (8, 8, 8)]
    colour = Image.new("RGB", (2, 1))
    colour.putdata([RED, BLUE])
    assert pixels(encoded(colour, transparency=RED)) == [WHITE, BLUE]


@pytest.mark.parametrize("fmt", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(fmt):
    samples = np.array([[0, 257, 32768, 65535]], np.uint16)
    levels = [r for r, _, _ in pixels(encoded(Image.fromarray(samples), fmt))]
    assert levels == [0, 1, 127, 255]  # 32768 / 257 = 127.5


def test_grey_becomes_rgb():
    assert pixels(encoded(Image.new("L", (1, 1), 77))) == [(77, 77, 77)]


def test_cmyk_jpeg_becomes_rgb():
    (pixel,) = pixels(encoded(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "JPEG", quality=100))
    assert pixel == pytest.approx(RED, abs=6)


def test_animation_gives_its_first_frame():
    frames = [picture(colour=c) for c in (RED, BLUE)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert set(pixels(data)) == {RED}


def test_images_in_hand_are_converted_too():
    assert pixels(Image.new("RGBA", (1, 1), (0, 0, 0, 0))) == [WHITE]
    assert image_size(picture(), POLICY) == (40, 20)


# ---- refusals ----


def eps():
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    return text.encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encoded(noise(), "JPEG")[:1500], "cannot be decoded, truncated or damaged"),
        (encoded(noise())[:1500], "cannot be decoded, truncated or damaged"),
        (b"this is no picture", "not an image of a known format .JPEG, PNG, WEBP, BMP, GIF, TIFF"),
        (eps(), "not an image of a known format"),
        (b"P6 1 1 255\n\0\0\0", "not an image of a known format"),
        (png_header(50_000, 50_000), "too many pixels"),
        (png_header(10_000, 10_000), "10000 x 10000 = 100,000,000 pixels .* limit of 80,000,000"),
        (png_header(100, 100), "cannot be decoded, truncated or damaged"),
        (Image.new("RGB", (0, 5)), "0 x 5: the image has no pixels"),
    ],
    ids=["jpeg", "png", "text", "eps", "ppm", "bomb", "large", "short", "nothing"],
)
def test_bad_images_are_image_errors_that_say_why(data, message):
    with pytest.raises(ImageError, match=message):
        decode_image(data, POLICY)


def test_no_other_program_is_started_for_eps(monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: pytest.fail("a program was started"))
    Image.init()  # registers all of Pillow's formats, as other code may
    with pytest.raises(ImageError):
        decode_image(eps(), POLICY)


@pytest.mark.parametrize("read", [decode_image, image_size])
def test_the_pixel_limit_is_the_policys(read):
    data = encoded(picture(40, 20))
    with pytest.raises(ImageError, match=r"40 x 20 = 800 pixels .* of 799; raise max_image_pixels"):
        read(data, ImagePolicy(max_image_pixels=799))
    read(data, ImagePolicy(max_image_pixels=800))


def test_the_pixel_limit_is_checked_before_decoding(monkeypatch):
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="max_image_pixels"):
        decode_image(encoded(picture()), ImagePolicy(max_image_pixels=10))


@pytest.mark.parametrize("as_file", [True, False])
def test_the_byte_limit_is_the_policys(as_file, tmp_path):
    (tmp_path / "a.png").write_bytes(bytes(2000))
    image = tmp_path / "a.png" if as_file else bytes(2000)
    with pytest.raises(ImageError, match=r"2,000 bytes .* limit of 1,999; raise max_image_bytes"):
        read_bytes(image, ImagePolicy(max_image_bytes=1999))
    assert read_bytes(image, ImagePolicy(max_image_bytes=2000)) == bytes(2000)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.png", "cannot read the file: No such file"),
        (".", "not a regular file"),
        ("nul\0.png", "cannot read the file: embedded null byte"),
    ],
)
def test_unreadable_files_are_image_errors(name, message, tmp_path):
    with pytest.raises(ImageError, match=message):
        read_bytes(f"{tmp_path}/{name}", POLICY)


def test_empty_bytes_and_files_are_refused(tmp_path):
    (tmp_path / "a.png").touch()
    for image in (b"", tmp_path / "a.png"):
        with pytest.raises(ImageError, match="the file is empty"):
            read_bytes(image, POLICY)


def test_images_in_hand_pass_through():
    image = picture()
    assert read_bytes(image, POLICY) is image
