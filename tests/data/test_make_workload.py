"""The generated sample images: reproducible, and of all the kinds that must be decoded."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qvl_lab.assets import asset
from qvl_lab.config import ImagePolicy
from qvl_lab.tasks import article_resolutions
from qvl_lab.workloads.decode import decode_image, image_size, read_bytes
from qvl_lab.workloads.sources import load_workload

SCRIPT = Path(__file__).parents[2] / "data" / "make_workload.py"
MIXED = asset("data/mixed")
PLAN = """
receipt 96x180 jpg|bar 160x120 png-i16|shapes 64x48 png-rgba|day 128x84 jpg-exif6
invoice 124x175 jpg-cmyk|line 160x100 png-pal|icon 50x50 webp|texture 64x64 jpg-l
"""


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_workload", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_workload"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["make_workload"]


@pytest.fixture(scope="module")
def rows():
    return [json.loads(line) for line in (MIXED / "mixed.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def stored(rows):
    """Format, mode, EXIF orientation and stored size of every packaged image."""
    found = {}
    for name in sorted({row["image"] for row in rows}):
        with Image.open(MIXED / name) as image:
            found[name] = image.format, image.mode, image.getexif().get(0x0112), image.size
    return found


def contents(folder):
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def test_equal_seeds_give_equal_files_and_others_do_not(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "PLAN", PLAN)
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        script.main(["mixed", "--out", str(tmp_path / name), "--seed", seed])
    first, second, other = (contents(tmp_path / name) for name in "abc")
    assert len(first) == 9
    assert first == second
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first)


def test_a_cell_appended_to_the_plan_changes_no_earlier_image(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "PLAN", PLAN)
    script.main(["mixed", "--out", str(tmp_path / "short")])
    monkeypatch.setattr(script, "PLAN", PLAN + "bar 160x120 png")
    script.main(["mixed", "--out", str(tmp_path / "long")])
    short, long = contents(tmp_path / "short"), contents(tmp_path / "long")
    assert len(long) == len(short) + 1
    assert all(long[name] == short[name] for name in short if name != "mixed.jsonl")


@pytest.mark.slow
def test_the_packaged_rows_are_those_of_seed_0(script, tmp_path, rows):
    """Three seconds: this draws all 56 images."""
    (tmp_path / "images").mkdir()
    assert script.make_mixed(tmp_path, 0) == rows
    policy = ImagePolicy()
    for name in {row["image"] for row in rows if row["image"].endswith(".png")}:
        drawn, kept = (
            decode_image((root / name).read_bytes(), policy) for root in (tmp_path, MIXED)
        )
        assert drawn.tobytes() == kept.tobytes()


def test_uniform_images_differ_and_have_one_size(script, tmp_path):
    command = ["uniform", "--out", str(tmp_path), "--count", "3", "--width", "96", "--height", "64"]
    script.main(command)
    workload = load_workload(tmp_path / "uniform.jsonl")
    sizes = {image_size(read_bytes(i.image, ImagePolicy()), ImagePolicy()) for i in workload.items}
    assert sizes == {(96, 64)}
    assert workload.info()["unique_images"] == len(workload) == 3
    assert {(item.question, item.reference) for item in workload.items} == {
        ("Describe this image in detail.", None)
    }


def test_every_packaged_image_exists_and_decodes_to_its_header_size(rows):
    policy = ImagePolicy()
    images = {row["image"] for row in rows}
    assert len(images) >= 48
    for name in images:
        data = read_bytes(MIXED / name, policy)
        image = decode_image(data, policy)
        assert image.mode == "RGB"
        assert image.size == image_size(data, policy)
        assert len(np.unique(np.asarray(image)[::4, ::4])) > 1  # it is not one flat colour


@pytest.mark.parametrize(
    ("fmt", "mode", "orientation"),
    [
        ("JPEG", "RGB", None),
        ("JPEG", "RGB", 6),
        ("JPEG", "RGB", 8),
        ("JPEG", "RGB", 3),
        ("JPEG", "L", None),
        ("JPEG", "CMYK", None),
        ("PNG", "RGB", None),
        ("PNG", "RGBA", None),
        ("PNG", "I;16", None),
        ("PNG", "L", None),
        ("PNG", "P", None),
        ("WEBP", "RGB", None),
    ],
)
def test_the_packaged_set_has_every_format(stored, fmt, mode, orientation):
    assert (fmt, mode, orientation) in {kind[:3] for kind in stored.values()}


def test_the_packaged_set_has_very_large_and_very_small_images(stored):
    sizes = [kind[3] for kind in stored.values()]
    assert {(4032, 3024), (3024, 4032)} <= set(sizes)  # 12 megapixels, both ways
    assert any(max(size) <= 100 for size in sizes)
    assert any(max(size) >= 5 * min(size) for size in sizes)


def test_sixteen_bit_images_use_their_range(stored):
    deep = [name for name, kind in stored.items() if kind[1] == "I;16"]
    assert deep
    for name in deep:
        values = np.asarray(Image.open(MIXED / name))
        assert values.max() > 50_000  # most of it is white if clipped at 255
        image = decode_image((MIXED / name).read_bytes(), ImagePolicy())
        assert np.abs(np.asarray(image)[..., 0] - values / 257).max() <= 1


def test_transparent_images_become_white(stored):
    clear = [name for name, kind in stored.items() if kind[1] == "RGBA"]
    assert clear
    for name in clear:
        alpha = np.asarray(Image.open(MIXED / name))[..., 3]
        decoded = np.asarray(decode_image((MIXED / name).read_bytes(), ImagePolicy()))
        assert (alpha == 0).any()
        assert (decoded[alpha == 0] == 255).all()


def test_rows_are_complete_and_unique(rows):
    assert all(set(row) == {"id", "image", "question", "answer", "task"} for row in rows)
    assert all(all(row.values()) for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)
    assert {row["task"] for row in rows} == set(article_resolutions())
    chinese = Counter(any("\u4e00" <= c <= "\u9fff" for c in row["question"]) for row in rows)
    assert min(chinese[True], chinese[False]) > len(rows) / 3


def test_boxes_lie_within_the_image(rows):
    boxes = [box for row in rows if "bbox_2d" in row["answer"] for box in json.loads(row["answer"])]
    assert boxes
    for box in boxes:
        x1, y1, x2, y2 = box["bbox_2d"]
        assert 0 <= x1 < x2 <= 1000
        assert 0 <= y1 < y2 <= 1000
        assert box["label"]


def test_the_readme_counts_the_images(stored):
    text = (SCRIPT.parent / "README.md").read_text("utf-8")
    assert f"{len(stored)} images" in text
    size_mb = sum((MIXED / name).stat().st_size for name in stored) / 1e6
    assert f"about {size_mb:.1f} MB" in text
