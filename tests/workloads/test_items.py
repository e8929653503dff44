"""Items and workloads: fingerprints, samples, requests that repeat."""

from __future__ import annotations

import io
from collections import Counter

import pytest
from PIL import Image

from qvl_lab.errors import WorkloadError
from qvl_lab.workloads.items import REPEATED, Item, Workload, unique
from qvl_lab.workloads.sources import load_workload

RED, BLUE = (255, 0, 0), (0, 0, 255)


def encoded(image, fmt="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def picture(width=40, height=20, colour=RED):
    return Image.new("RGB", (width, height), colour)


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
        three(reference="x"),
        three(task="x"),
    ],
    ids=["bytes", "question", "order", "count", "reference", "task"],
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
            Item(f"{i}.{n}", bytes([i]), f"Q{i}.{n}", reference="a", task=f"t{i}")
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


def test_images_are_different_ones_but_a_repeated_request_brings_its_own():
    assert album(3, each=2).info()["images"] == 3
    assert len(album(3, each=2)) == 6
    assert album().repeating(0.9).info()["images"] == 20


def test_a_repeated_question_keeps_its_answer_and_another_one_has_none():
    whole, another = (album().repeating(0.5, same_question=same) for same in (True, False))
    known = {item.image: item for item in album().items}
    for item, again in zip(whole.items, repeats(whole), strict=True):
        first = known[item.image]
        assert (item.question, item.reference, item.task) == (first.question, "a", first.task)
        assert (" again " in item.id) == again
    for item, again in zip(another.items, repeats(another), strict=True):
        assert (item.reference is None) == again  # the question was asked of another image
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


def test_items_of_one_id_are_told_apart_where_a_workload_is_made(caplog):
    items = [Item(name, bytes([n])) for n, name in enumerate(["q", "q", "q#2", "p", "q"], 1)]
    workload = Workload("w", tuple(items))
    assert [item.id for item in workload.items] == ["q", "q#3", "q#2", "p", "q#4"]
    assert [item.image for item in workload.items] == [item.image for item in items]
    assert "2 repeated ids were renamed, such as 'q' to 'q#3'" in caplog.text


def test_many_equal_ids_are_told_apart_quickly():
    assert unique(["q"] * 50_000)[-1] == "q#50000"


def test_info_counts_items_images_answers_and_tasks():
    items = (
        Item("a", b"1", reference="x", task="ocr"),
        Item("b", b"1", task="ocr"),
        Item("c", b"2"),
    )
    info = Workload("w", items).info()
    assert info == {
        "name": "w",
        "fingerprint": Workload("other", items).fingerprint,
        "items": 3,
        "unique_images": 2,
        "images": 2,
        "with_reference": 1,
        "tasks": {"ocr": 2, "none": 1},
    }
