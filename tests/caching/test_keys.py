"""Cache keys: each stands for one thing."""

from __future__ import annotations

import io
import os

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from qvl_lab.caching import keys
from qvl_lab.caching.keys import image_key, model_key, path_key, response_key
from qvl_lab.caching.tensor_cache import TensorCache
from qvl_lab.config import ImagePolicy, ModelSpec
from qvl_lab.errors import ConfigError, ImageError, ModelError
from qvl_lab.workloads.decode import decode_image

ROOM = 10**6


def features(value=1.0, count=100):
    return {"visual": torch.full((count,), value)}


SIDES = st.integers(1, 12) | st.integers(1, 10**6)
#: Short and alike, so that a border that could move would move: (1, 12) beside (11, 2).
ASKED = st.tuples(st.binary(max_size=3), st.tuples(SIDES, SIDES), st.text("0123456789", max_size=3))


@given(ASKED, ASKED)
@example((b"a", (1, 12), "3"), (b"a", (11, 2), "3"))
@example((b"a", (1, 12), "3"), (b"a", (1, 1), "23"))
@example((b"a1", (1, 1), ""), (b"a", (11, 1), ""))
def test_different_images_sizes_and_models_have_different_keys(one, other):
    assert (image_key(*one) == image_key(*other)) == (one == other)
    named = [(image.hex(), size, model) for image, size, model in (one, other)]
    assert (path_key(*named[0]) == path_key(*named[1])) == (one == other)
    assert image_key(*one) != path_key(*named[0])


@given(st.tuples(*[st.text(max_size=3)] * 3), st.tuples(*[st.text(max_size=3)] * 3))
@example(("a", "bc", ""), ("ab", "c", ""))
@example(("", "\ud800", ""), ("", "?", ""))
def test_different_questions_have_different_keys(one, other):
    keys = [
        response_key(image, question, {"o": option}) for image, question, option in (one, other)
    ]
    assert (keys[0] == keys[1]) == (one == other)


def test_a_response_key_knows_every_option_but_not_their_order():
    key = response_key("image", "why?", {"max_new_tokens": 1, "temperature": None})
    assert key == response_key("image", "why?", {"temperature": None, "max_new_tokens": 1})
    others = [{"max_new_tokens": 1}, {"max_new_tokens": 1, "temperature": 0}]
    others += [{"max_new_tokens": "1", "temperature": None}]
    assert len({key} | {response_key("image", "why?", options) for options in others}) == 4
    with pytest.raises(ConfigError, match="options must be text"):
        response_key("image", "why?", {"stop": object()})


def encoded(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_the_article_way_finds_the_old_picture_and_ours_does_not(tmp_path):
    """Same path, new content."""
    path = tmp_path / "photo.png"
    by_path, by_content = TensorCache(ROOM), TensorCache(ROOM)
    path.write_bytes(encoded(Image.new("RGB", (32, 32), "red")))
    for_path = path_key(str(path), (32, 32), "m")
    by_path.put(for_path, features(1.0), 1.0)
    by_content.put(image_key(path.read_bytes(), (32, 32), "m"), features(1.0), 1.0)
    path.write_bytes(encoded(Image.new("RGB", (32, 32), "blue")))
    assert path_key(str(path), (32, 32), "m") == for_path
    assert by_path.get(path_key(str(path), (32, 32), "m")) is not None  # of the red one
    assert by_content.get(image_key(path.read_bytes(), (32, 32), "m")) is None


def test_the_content_key_does_not_mind_where_the_bytes_came_from(tmp_path):
    data = encoded(Image.new("RGB", (32, 32), "red"))
    (tmp_path / "a.png").write_bytes(data)
    (tmp_path / "b.png").write_bytes(data)
    keys = {image_key(file.read_bytes(), (32, 32), "m") for file in tmp_path.iterdir()}
    assert len(keys) == 1


def with_palette(colour):
    image = Image.new("P", (2, 3))
    image.putpalette(colour)
    return image


def with_info(**info):
    image = Image.new("L", (2, 3))
    image.info |= info
    return image


def turned(orientation):
    image = Image.new("RGB", (2, 3))
    image.putpixel((0, 0), (255, 0, 0))
    image.getexif()[0x0112] = orientation
    return image


PICTURES = {
    "black": lambda: Image.new("RGB", (2, 3)),
    "one red pixel": lambda: turned(1),
    "turned": lambda: turned(6),
    "upside down": lambda: turned(3),
    "of other colours": lambda: Image.new("YCbCr", (2, 3)),
    "lying": lambda: Image.new("RGB", (3, 2)),
    "grey": lambda: Image.new("L", (2, 3)),
    "grey, of as many bytes": lambda: Image.new("L", (6, 3)),
    "see-through": lambda: with_info(transparency=0),
    "clear": lambda: Image.new("RGBA", (2, 3)),
    "red palette": lambda: with_palette([255, 0, 0]),
    "blue palette": lambda: with_palette([0, 0, 255]),
    "deep": lambda: Image.new("I;16", (2, 3), 300),
}


def test_pil_images_have_one_key_each_however_often_they_are_made():
    first, second = (
        {name: image_key(make(), (32, 32), "m") for name, make in PICTURES.items()}
        for _ in range(2)
    )
    assert first == second
    assert len(set(first.values())) == len(PICTURES)


def test_pil_images_that_decode_differently_differ_in_more_than_their_pixels():
    """What the key must look at beside mode, size and bytes, since decoding does."""
    for one, other in [("one red pixel", "turned"), ("red palette", "blue palette")]:
        images = PICTURES[one](), PICTURES[other]()
        assert images[0].tobytes() == images[1].tobytes()
        shown = [decode_image(image, ImagePolicy()) for image in images]
        assert (shown[0].size, shown[0].tobytes()) != (shown[1].size, shown[1].tobytes())


def test_one_changed_pixel_changes_the_key():
    image = Image.new("RGB", (50, 50))
    before = image_key(image, (32, 32), "m")
    image.putpixel((49, 49), (0, 0, 1))
    assert image_key(image, (32, 32), "m") != before


def test_a_picture_that_cannot_be_decoded_has_no_key():
    noise = Image.effect_noise((64, 64), 50)
    with (
        pytest.raises(ImageError, match="truncated"),
        Image.open(io.BytesIO(encoded(noise)[:-1000])) as opened,
    ):
        image_key(opened, (32, 32), "m")


def spec(**fields):
    return ModelSpec(**({"model": "random:tiny", "device": "cpu"} | fields))


def test_models_that_compute_differently_have_different_keys():
    specs = [spec(), spec(seed=1), spec(precision="bf16"), spec(attn_implementation="eager")]
    specs += [spec(model="random:2b"), spec(model="tiny"), spec(model="tiny", precision="bf16")]
    specs += [spec(model="owner/name"), spec(model="owner/name", revision="v2")]
    assert len({model_key(s) for s in specs}) == len(specs)


def test_what_does_not_change_a_model_does_not_change_its_key():
    assert model_key(spec(precision="auto")) == model_key(spec(precision="fp32"))
    assert model_key(spec(device="auto", model="tiny", precision="fp32")) == model_key(
        spec(model="tiny", precision="fp32", seed=5)
    )


@pytest.fixture
def folder(tmp_path):
    for name in ("config.json", "a.safetensors", "preprocessor_config.json", "README.md"):
        (tmp_path / name).write_text("{}")
        os.utime(tmp_path / name, ns=(10**18, 10**18))
    return tmp_path


@pytest.mark.parametrize("name", ["config.json", "a.safetensors", "preprocessor_config.json"])
def test_a_changed_file_makes_a_folder_another_model(folder, name):
    keys = [model_key(spec(model=str(folder)))]
    os.utime(folder / name, ns=(10**18, 10**18 + 1))
    keys.append(model_key(spec(model=str(folder))))
    (folder / name).write_text("{ }")
    os.utime(folder / name, ns=(10**18, 10**18))
    keys.append(model_key(spec(model=str(folder))))
    (folder / name).rename(folder / f"x{name}")
    keys.append(model_key(spec(model=str(folder))))
    assert len(set(keys)) == 4


def test_a_changed_readme_does_not(folder):
    before = model_key(spec(model=str(folder)))
    (folder / "README.md").write_text("# Changed")
    assert model_key(spec(model=str(folder))) == before


def test_the_embedded_model_counts_by_its_file(folder, monkeypatch):
    before = model_key(spec(model="tiny"))
    monkeypatch.setattr(keys, "asset", lambda name: folder)
    changed = model_key(spec(model="tiny"))
    os.utime(folder / "a.safetensors", ns=(10**18, 5))
    assert len({before, changed, model_key(spec(model="tiny"))}) == 3


def test_a_hub_model_counts_by_the_commit_that_its_branch_stands_for(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    keys = [model_key(spec(model="owner/name"))]
    for commit in ("a" * 40, "b" * 40):
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "config.json").write_text("{}")
        (repository / "refs" / "main").write_text(commit)
        keys.append(model_key(spec(model="owner/name")))
    assert len(set(keys)) == 3


def test_a_name_that_is_no_model_is_refused():
    with pytest.raises(ModelError, match="neither a model folder nor a hub id"):
        model_key(spec(model="/no/such/folder"))
