"""From pixels to visual tokens."""

from __future__ import annotations

import io
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qvl_lab.config import ImagePolicy
from qvl_lab.errors import ImageError, UnknownNameError
from qvl_lab.workloads.resize import (
    PixelLimits,
    canonical_task,
    fit,
    resize,
    resolution_for,
    target_size,
    visual_tokens,
)

SIDES = st.integers(1, 9000)
RESOLUTIONS = st.one_of(st.just("native"), st.integers(32, 5000))


@st.composite
def sizes(draw):
    """Any width and height that are at most 200:1."""
    short = draw(st.integers(1, 3000))
    long = draw(st.integers(short, 200 * short))
    return draw(st.permutations((short, long)))


@pytest.fixture(scope="module")
def smart_resize():
    module = "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl"
    return pytest.importorskip(module).smart_resize


def budget(resolution, limits):
    side = math.inf if resolution == "native" else resolution
    return min(side**2, limits.max_pixels)


@given(sizes(), RESOLUTIONS)
@settings(max_examples=500)
def test_sides_are_multiples_of_32_within_the_budget(size, resolution):
    limits = PixelLimits()
    width, height = target_size(tuple(size), resolution, limits)
    assert width % 32 == height % 32 == 0
    assert width >= 32
    assert height >= 32
    assert width * height <= budget(resolution, limits)


@given(sizes(), RESOLUTIONS)
@settings(max_examples=500)
def test_a_turned_image_costs_the_same(size, resolution):
    width, height = size
    assert (
        target_size((height, width), resolution) == target_size((width, height), resolution)[::-1]
    )


@given(sizes(), st.integers(1024, 2**24), st.integers(1, 2**17))
@settings(max_examples=500)
def test_fit_equals_smart_resize_where_that_keeps_its_budget(
    smart_resize, size, max_pixels, min_pixels
):
    width, height = size
    min_pixels = min(min_pixels, max_pixels)
    theirs = smart_resize(height, width, 32, min_pixels, max_pixels)[::-1]
    if theirs[0] * theirs[1] <= max_pixels:
        assert fit(width, height, min_pixels, max_pixels) == theirs


@pytest.mark.parametrize("side", [256, 320, 512, 1000])
def test_fit_rounds_like_smart_resize_where_sides_divide_evenly(smart_resize, side):
    """Sizes whose scaled sides are whole: the last bit of a quotient decides."""
    for short in range(32, 1400, 8):
        for ratio in (1, 1.5, 2, 4):
            size = int(short * ratio), short
            theirs = smart_resize(size[1], size[0], 32, 1024, side**2)[::-1]
            if theirs[0] * theirs[1] <= side**2:
                assert fit(*size, 1024, side**2) == theirs


@given(SIDES, SIDES)
@settings(max_examples=50)
def test_only_up_to_200_to_1_is_accepted(width, height):
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(ImageError, match=f"{width} x {height} is longer than 200:1"):
            target_size((width, height), "native")
    else:
        assert target_size((width, height), "native")


@pytest.mark.parametrize(
    ("size", "resolution", "tokens"),
    [
        ((1024, 1024), "native", 32 * 32),
        ((4032, 3024), "native", 126 * 94),  # 3024 / 32 = 94.5 goes to the even 94
        ((3024, 4032), "native", 126 * 94),
        ((1920, 1088), "native", 60 * 34),
        ((1920, 1080), "native", 60 * 34),  # 33.75 goes to 34
        ((100, 100), "native", 8 * 8),  # raised to 65,536 pixels
        ((1, 1), "native", 8 * 8),
        ((8000, 8000), "native", 128 * 128),  # cut to 16,777,216 pixels
        ((1024, 1024), 512, 16 * 16),
        ((1024, 1024), 128, 4 * 4),
        ((100, 100), 128, 4 * 4),  # raised to the budget, which is below 65,536 pixels
        ((4032, 3024), 256, 9 * 6),  # 295.6 x 221.7
        ((300, 300), 512, 9 * 9),  # never enlarged to the budget
        ((6400, 32), 512, 200),
        ((6400, 32), 256, 64),  # the longer side is cut to 65,536 pixels
        ((5, 1000), 32, 1),
    ],
)
def test_token_counts_worked_by_hand(size, resolution, tokens):
    assert visual_tokens(size, resolution) == tokens


def test_limits_are_the_models():
    limits = PixelLimits(min_pixels=1024, max_pixels=64 * 64, factor=16)
    assert visual_tokens((1000, 1000), limits=limits) == 4 * 4
    assert visual_tokens((16, 16), limits=limits) == 2 * 2


def test_tokens_of_an_upright_file_from_its_header(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image, path, buffer = Image.new("RGB", (640, 320)), tmp_path / "a.jpg", io.BytesIO()
    image.save(path, exif=exif)
    image.save(buffer, "PNG")
    for source in (path, str(path), buffer.getvalue(), image, (640, 320)):
        assert visual_tokens(source) == 20 * 10


def test_tokens_under_a_policy():
    policy = ImagePolicy(resolution="by_task", max_image_pixels=10**6)
    assert visual_tokens((1024, 1024), "native", policy=policy, task="检测") == 16 * 16
    assert visual_tokens((1024, 1024), policy=policy, task="caption") == 8 * 8
    assert visual_tokens((1024, 1024), policy=policy) == 32 * 32
    with pytest.raises(ImageError, match="max_image_pixels"):
        visual_tokens(Image.new("L", (1001, 1000)), policy=policy)


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("detection", "detection"),
        (" Detection ", "detection"),
        ("检测", "detection"),
        ("目标检测", "detection"),
        ("Grounding", "detection"),
        ("描述", "description"),
        ("图像描述", "description"),
        ("caption", "description"),
        ("精细分析", "fine_analysis"),
        ("文字识别", "fine_analysis"),
        ("OCR", "fine_analysis"),
    ],
)
def test_tasks_have_names_in_both_languages(task, name):
    assert canonical_task(task, ["detection", "description", "fine_analysis"]) == name


@pytest.mark.parametrize(("task", "name"), [("定位", "locate"), ("颜色", "Colour")])
def test_a_table_may_name_a_task_that_the_workload_calls_otherwise(task, name):
    assert canonical_task(task, ["detection", "description", name]) == name


@pytest.mark.parametrize(
    ("task", "resolution"),
    [("detection", 512), ("描述", 256), ("精细分析", "native"), (None, "native")],
)
def test_by_task_uses_the_articles_table(task, resolution):
    assert resolution_for(ImagePolicy(resolution="by_task"), task) == resolution


def test_by_task_uses_the_users_table():
    policy = ImagePolicy(resolution="by_task", task_resolutions={"检测": 640, "Tables": "native"})
    assert resolution_for(policy, "检测") == 640
    assert resolution_for(policy, "tables") == "native"


def test_items_without_a_task_are_native_unless_the_table_names_them():
    def side(**table):
        policy = ImagePolicy(resolution="by_task", task_resolutions={"detection": 512} | table)
        return resolution_for(policy, None), resolution_for(policy, "detection")

    assert side() == ("native", 512)
    assert side(none=128) == (128, 512)


def test_a_fixed_resolution_ignores_the_task():
    assert resolution_for(ImagePolicy(resolution=320), "no such task") == 320


def test_unknown_tasks_list_the_names_of_the_table():
    policy = ImagePolicy(resolution="by_task", task_resolutions={"detection": 512, "tables": 256})
    with pytest.raises(
        UnknownNameError, match=r"unknown task 'tabels'. Did you mean 'tables'"
    ) as e:
        resolution_for(policy, "tabels")
    assert {"detection", "tables", "检测", "grounding"} <= set(e.value.allowed)
    assert "描述" not in e.value.allowed  # leads to a task that this table lacks


def test_resize_is_bicubic_and_leaves_the_right_size_alone():
    image = Image.linear_gradient("L").convert("RGB")
    assert resize(image, (256, 256)) is image
    expected = image.resize((64, 32), Image.Resampling.BICUBIC)
    assert resize(image, (64, 32)).tobytes() == expected.tobytes()
