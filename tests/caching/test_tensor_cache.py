"""Caches: what is kept and forgotten, what hits save, and keys that mean one thing each."""

from __future__ import annotations

import errno
import gc
import io
import os
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from qvl_lab.caching import tensor_cache as cache
from qvl_lab.caching.disk import DiskTier
from qvl_lab.caching.tensor_cache import (
    CacheStats,
    Lru,
    TensorCache,
    answer_key,
    image_key,
    model_key,
    path_key,
)
from qvl_lab.config import ImagePolicy, ModelSpec
from qvl_lab.errors import ConfigError, ImageError, ModelError
from qvl_lab.workloads.decode import decode_image

ROOM = 10**6


def kept(lru, keys):
    """Which keys are there; asking changes the order, so ask last."""
    return "".join(key for key in keys if lru.get(key) is not None)


def test_the_least_recently_used_value_goes_first():
    lru = Lru(max_bytes=30)
    for key in "abc":
        lru.put(key, key.upper(), 10)
    assert lru.get("a") == "A"
    lru.put("d", "D", 10)
    assert kept(lru, "abcd") == "acd"
    assert (lru.bytes, len(lru), lru.evictions) == (30, 3, 1)


def test_a_large_value_drives_out_as_many_as_it_takes():
    lru = Lru(max_bytes=30)
    for key in "abc":
        lru.put(key, key, 10)
    lru.put("d", "d", 15)
    assert kept(lru, "abcd") == "cd"
    assert (lru.bytes, lru.evictions) == (25, 2)


def test_a_bound_on_entries():
    lru = Lru(max_bytes=ROOM, max_entries=2)
    for key in "abc":
        lru.put(key, key, 1)
    assert kept(lru, "abc") == "bc"


def test_a_value_over_the_budget_is_not_kept_and_drives_nothing_out():
    lru = Lru(max_bytes=30)
    lru.put("a", "a", 30)
    lru.put("b", "b", 31)
    assert kept(lru, "ab") == "a"
    assert lru.evictions == 0


def test_putting_again_replaces_the_value_its_size_and_its_age():
    lru = Lru(max_bytes=30)
    for key in "abc":
        lru.put(key, key, 10)
    lru.put("a", "new", 5)
    assert lru.bytes == 25
    lru.put("d", "d", 10)
    assert kept(lru, "abcd") == "acd"
    assert lru.get("a") == "new"
    lru.put("a", "too large", 31)  # the value before is stale
    assert lru.get("a") is None
    assert lru.bytes == 20


def test_clear_forgets_everything():
    lru = Lru(max_bytes=30)
    lru.put("a", "a", 10)
    lru.clear()
    assert (lru.get("a"), lru.bytes, len(lru)) == (None, 0, 0)


@given(
    st.lists(st.tuples(st.sampled_from("abcde"), st.none() | st.integers(0, 12))),
    st.integers(0, 20),
    st.none() | st.integers(0, 4),
)
def test_lru_does_as_a_list_does(steps, max_bytes, max_entries):
    """A step is (key, None) to get or (key, bytes) to put; the list has the oldest first."""
    lru, listed = Lru(max_bytes, max_entries), []
    limit = len("abcde") if max_entries is None else max_entries
    for number, (key, size) in enumerate(steps):
        before = next((entry for entry in listed if entry[0] == key), None)
        listed = [entry for entry in listed if entry[0] != key]
        if size is None:
            assert lru.get(key) == (before and before[1])
            listed += [before] if before else []
            continue
        lru.put(key, number, size)
        if size <= max_bytes:
            listed.append((key, number, size))
        while sum(entry[2] for entry in listed) > max_bytes or len(listed) > limit:
            listed.pop(0)
        assert lru.bytes == sum(entry[2] for entry in listed)
        assert len(lru) == len(listed)


class SlowSize(int):
    """A size that lets another thread on whenever it is compared."""

    def __gt__(self, other):
        time.sleep(0.001)
        return int(self) > other


def test_threads_leave_the_accounts_right():
    lru = Lru(max_bytes=50)

    def work(thread):
        for step in range(50):
            key = str((thread + step) % 12)
            assert lru.get(key) in (None, key)
            lru.put(key, key, SlowSize(1 + int(key)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    found = [key for key in map(str, range(12)) if lru.get(key)]
    assert len(found) == len(lru)
    assert lru.bytes == sum(1 + int(key) for key in found) <= 50


def features(value=1.0, count=100):
    return {"visual": torch.full((count,), value), "deepstack": torch.full((3, count), value)}


FEATURE_BYTES = 4 * 4 * 100


def test_hits_know_what_they_saved():
    tensors = TensorCache(ROOM)
    assert tensors.stats == CacheStats()
    assert tensors.stats.hit_rate is None
    assert tensors.get("a") is None
    tensors.put("a", features(), cost_s=0.5)
    for _ in range(3):
        assert torch.equal(tensors.get("a")["visual"], torch.ones(100))
    stats = tensors.stats
    assert stats == CacheStats(hits=3, misses=1, bytes=FEATURE_BYTES, saved_s=1.5)
    assert stats.hit_rate == 0.75


def test_the_cache_keeps_its_budgets():
    tensors = TensorCache(2 * FEATURE_BYTES)
    for key in "abc":
        tensors.put(key, features(), 1.0)
    assert tensors.get("a") is None
    assert (tensors.stats.evictions, tensors.stats.bytes) == (1, 2 * FEATURE_BYTES)
    one = TensorCache(ROOM, max_entries=1)
    for key in "abc":
        one.put(key, features(), 1.0)
    assert (one.stats.evictions, one.stats.bytes) == (2, FEATURE_BYTES)
    tensors.clear()
    assert tensors.get("c") is None
    assert tensors.stats.bytes == 0


def test_eviction_leaves_what_somebody_holds_and_frees_what_nobody_does():
    tensors = TensorCache(FEATURE_BYTES)
    tensors.put("a", features(7.0), 1.0)
    held = tensors.get("a")
    alive = weakref.ref(held["visual"])
    tensors.put("b", features(8.0), 1.0)
    assert tensors.get("a") is None
    gc.collect()
    assert torch.equal(held["visual"], torch.full((100,), 7.0))
    del held
    gc.collect()
    assert alive() is None


def test_what_a_caller_does_to_its_dict_stays_with_the_caller():
    tensors, given_in = TensorCache(ROOM), features()
    tensors.put("a", given_in, 1.0)
    given_in.clear()
    tensors.get("a").pop("visual")
    assert tensors.get("a").keys() == features().keys()


def test_a_part_of_a_batch_does_not_keep_the_batch():
    batch = torch.arange(1000.0)
    alive = weakref.ref(batch.untyped_storage())
    tensors = TensorCache(ROOM)
    tensors.put("a", {"x": batch[10:20]}, 1.0)
    storage = tensors.get("a")["x"].untyped_storage()
    assert storage.nbytes() == tensors.stats.bytes == 40
    assert storage.data_ptr() != batch[10:20].data_ptr()
    assert torch.equal(tensors.get("a")["x"], batch[10:20])
    del batch
    gc.collect()
    assert alive() is None


def test_a_whole_tensor_is_not_copied():
    tensors, mine = TensorCache(ROOM), torch.ones(10)
    tensors.put("a", {"x": mine}, 1.0)
    assert tensors.get("a")["x"].data_ptr() == mine.data_ptr()


def test_a_disk_hit_goes_to_the_device_and_stays_in_memory(tmp_path):
    TensorCache(ROOM, disk=DiskTier(tmp_path, ROOM)).put("a", features(), 0.5)
    disk = DiskTier(tmp_path, ROOM)
    tensors = TensorCache(ROOM, disk=disk, device="meta")
    assert {t.device.type for t in tensors.get("a").values()} == {"meta"}
    first = tensors.stats
    assert (first.hits, first.disk_hits, first.misses, first.saved_s) == (1, 1, 0, 0.5)
    assert first.disk_load_s > 0
    assert first.disk_bytes == disk.bytes > first.bytes == FEATURE_BYTES
    assert tensors.get("a")
    second = tensors.stats
    assert (second.hits, second.disk_hits, second.saved_s) == (2, 1, 1.0)
    assert second.disk_load_s == first.disk_load_s


def test_what_memory_forgot_the_disk_still_knows(tmp_path):
    tensors = TensorCache(FEATURE_BYTES, disk=DiskTier(tmp_path, ROOM))
    tensors.put("a", features(1.0), 1.0)
    tensors.put("b", features(2.0), 1.0)
    assert torch.equal(tensors.get("a")["visual"], torch.ones(100))
    assert (tensors.stats.disk_hits, tensors.stats.evictions) == (1, 2)


def test_what_is_too_large_for_memory_is_still_kept_on_disk(tmp_path):
    tensors = TensorCache(10, disk=DiskTier(tmp_path, ROOM))
    tensors.put("a", features(3.0), 1.0)
    assert tensors.stats.bytes == 0
    assert torch.equal(tensors.get("a")["visual"], torch.full((100,), 3.0))


def test_memory_goes_on_when_the_disk_is_full(tmp_path, monkeypatch):
    def fsync(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    tensors = TensorCache(ROOM, disk=DiskTier(tmp_path, ROOM))
    with pytest.warns(UserWarning, match="off for the rest of this run") as told:
        for key in "abc":
            tensors.put(key, features(), 1.0)
    assert len(told) == 1
    assert all(tensors.get(key) for key in "abc")
    assert tensors.stats == CacheStats(hits=3, bytes=3 * FEATURE_BYTES, saved_s=3.0)


def test_a_damaged_file_is_computed_again(tmp_path):
    TensorCache(ROOM, disk=DiskTier(tmp_path, ROOM)).put("a", features(), 1.0)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    tensors = TensorCache(ROOM, disk=DiskTier(tmp_path, ROOM))
    with pytest.warns(UserWarning, match="was deleted"):
        assert tensors.get("a") is None
    assert (tensors.stats.misses, tensors.stats.saved_s) == (1, 0.0)
    tensors.put("a", features(), 1.0)
    assert file.exists()
    assert tensors.get("a")


OUT_OF_MEMORY = [MemoryError(), torch.OutOfMemoryError("out of memory")]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_without_memory_for_a_copy_nothing_is_found_or_kept(tmp_path, monkeypatch, error):
    tensors = TensorCache(ROOM, disk=DiskTier(tmp_path, ROOM))
    tensors.put("a", features(), 1.0)
    tensors.clear()

    def fail(*args, **options):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "to", fail)
        assert tensors.get("a") is None
        tensors.put("b", features(), 1.0)
    assert tensors.get("b") is None
    assert tensors.get("a")
    assert tensors.stats.misses == 2


def test_other_failures_are_not_hidden(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    tensors = TensorCache(ROOM, disk=DiskTier(tmp_path, ROOM))
    tensors.put("a", features(), 1.0)
    tensors.clear()
    monkeypatch.setattr(torch.Tensor, "to", fail)
    with pytest.raises(RuntimeError, match="illegal"):
        tensors.get("a")
    with pytest.raises(RuntimeError, match="illegal"):
        tensors.put("a", features(), 1.0)


@pytest.mark.gpu
def test_a_gpu_cache_holds_and_finds_on_the_gpu(tmp_path):
    tensors = TensorCache(ROOM, disk=DiskTier(tmp_path, ROOM), device="cuda")
    tensors.put("a", features(4.0), 1.0)
    tensors.clear()
    found = tensors.get("a")["visual"]
    assert found.device.type == "cuda"
    assert torch.equal(found.cpu(), torch.full((100,), 4.0))


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
    keys = [answer_key(image, question, {"o": option}) for image, question, option in (one, other)]
    assert (keys[0] == keys[1]) == (one == other)


def test_an_answer_key_knows_every_option_but_not_their_order():
    key = answer_key("image", "why?", {"max_new_tokens": 1, "temperature": None})
    assert key == answer_key("image", "why?", {"temperature": None, "max_new_tokens": 1})
    others = [{"max_new_tokens": 1}, {"max_new_tokens": 1, "temperature": 0}]
    others += [{"max_new_tokens": "1", "temperature": None}]
    assert len({key} | {answer_key("image", "why?", options) for options in others}) == 4
    with pytest.raises(ConfigError, match="options must be text"):
        answer_key("image", "why?", {"stop": object()})


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
    monkeypatch.setattr(cache, "asset", lambda name: folder)
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
