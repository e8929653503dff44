"""The disk tier: bit for bit, whole or not at all, bounded, and off rather than in the way."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qvl_lab.caching import disk
from qvl_lab.caching.disk import MAX_HEADER_BYTES, UNFINISHED_S, DiskTier
from qvl_lab.errors import ConfigError

KEY = "a key"
ROOM = 10**6
TENSORS = {
    "fp32": torch.tensor([[1.5, float("nan"), -0.0], [float("inf"), 1e-45, 3e38]]),
    "bf16": torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).bfloat16(),
    "fp16": torch.linspace(-6e4, 6e4, 7).half(),
    "int8": torch.arange(-128, 128).to(torch.int8).reshape(2, 2, 64),
    "int64": torch.tensor([2**62, -1]),
    "0-d": torch.tensor(7.25),
    "empty": torch.empty(0, 4, dtype=torch.bfloat16),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
}


def same(a, b):
    """Equal bit for bit, NaN and the sign of zero included."""
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype
        and a[n].shape == b[n].shape
        and torch.equal(a[n].reshape(-1).view(torch.uint8), b[n].reshape(-1).view(torch.uint8))
        for n in a
    )


def path_of(folder, key=KEY):
    return folder / f"{sha256(key.encode()).hexdigest()}.safetensors"


@pytest.fixture
def tier(tmp_path, clock):
    return DiskTier(tmp_path, ROOM, clock=clock)


@pytest.fixture(autouse=True)
def no_unexpected_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_what_was_saved_comes_back_bit_for_bit(tier, tmp_path):
    tier.save(KEY, TENSORS, 0.125)
    found, cost_s = DiskTier(tmp_path, ROOM).load(KEY)
    assert same(found, TENSORS)
    assert cost_s == 0.125
    assert tier.bytes == path_of(tmp_path).stat().st_size > 0


def test_one_tensor_under_two_names(tier):
    whole = torch.arange(8.0)
    tensors = {"a": whole, "b": whole, "part": whole[2:5]}
    tier.save(KEY, tensors, 1.0)
    assert same(tier.load(KEY)[0], tensors)


def test_an_unknown_key_is_a_miss(tier):
    tier.save(KEY, TENSORS, 1.0)
    assert tier.load("another key") is None


def test_a_later_save_replaces_an_earlier_one(tier, tmp_path):
    tier.save(KEY, {"x": torch.zeros(3)}, 1.0)
    tier.save(KEY, {"x": torch.ones(4)}, 2.0)
    found, cost_s = tier.load(KEY)
    assert same(found, {"x": torch.ones(4)})
    assert cost_s == 2.0
    assert len(list(tmp_path.iterdir())) == 1


def test_only_the_owner_may_look_into_the_folder(tmp_path):
    tier = DiskTier(tmp_path / "deep" / "cache", ROOM)
    tier.save(KEY, TENSORS, 1.0)
    assert tier.folder.stat().st_mode & 0o777 == 0o700
    assert path_of(tier.folder).stat().st_mode & 0o077 == 0


def _foreign(path):
    save_file({"x": torch.ones(2)}, path)


def _flip(position):
    def damage(path):
        data = bytearray(path.read_bytes())
        data[position] ^= 1
        path.write_bytes(data)

    return damage


def _rewrite(change):
    return lambda path: path.write_bytes(change(path.read_bytes()))


def _another_version(path):
    old = b'"version":"%d"' % disk.VERSION
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, b'"version":"%d"' % (disk.VERSION + 1)))


def _another_key(path):
    DiskTier(path.parent, ROOM).save("another key", TENSORS, 1.0)
    path_of(path.parent, "another key").replace(path)


def _header_of(text):
    return lambda data: len(text).to_bytes(8, "little") + text + data


def _link(path):
    path.rename(path.parent / "elsewhere")
    path.symlink_to(path.parent / "elsewhere")


def _pipe(path):
    path.unlink()
    os.mkfifo(path)


DAMAGE = {
    "empty": (_rewrite(lambda data: b""), "truncated"),
    "four bytes": (_rewrite(lambda data: data[:4]), "truncated"),
    "half of the header": (_rewrite(lambda data: data[:100]), "truncated"),
    "last byte lost": (_rewrite(lambda data: data[:-1]), "damaged or truncated"),
    "a byte more": (_rewrite(lambda data: data + b"x"), "damaged or truncated"),
    "last byte flipped": (_flip(-1), "checksum"),
    "header flipped": (_flip(8), "header"),
    "a text file": (_rewrite(lambda data: b"Dear diary, today I cached a cat."), "no safetensors"),
    "another version": (_another_version, "version"),
    "another key": (_another_key, "another key"),
    "huge header length": (
        _rewrite(lambda data: (2**62).to_bytes(8, "little") + data[8:]),
        "no safetensors",
    ),
    "large header": (_rewrite(_header_of(b" " * (MAX_HEADER_BYTES + 1))), "truncated or no"),
    "nested header": (_rewrite(_header_of(b"[" * 100_000)), "header"),
    "header that is a list": (_rewrite(_header_of(b"[1, 2]")), "version"),
    "metadata that is a list": (_rewrite(_header_of(b'{"__metadata__": [1]}')), "version"),
    "somebody's safetensors": (_foreign, "version"),
    "larger than the cache": (lambda path: os.truncate(path, 2**40), "over the limit"),
    "a link": (_link, "ordinary"),
    "a pipe": (_pipe, "ordinary"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_file_that_is_not_ours_or_not_whole_is_deleted_with_a_warning(name, tmp_path):
    damage, why = DAMAGE[name]
    tier = DiskTier(tmp_path, 2 * MAX_HEADER_BYTES)
    tier.save(KEY, TENSORS, 1.0)
    path = path_of(tmp_path)
    damage(path)
    with pytest.warns(UserWarning, match=why) as told:
        assert tier.load(KEY) is None
    assert len(told) == 1
    assert str(path) in str(told[0].message)
    assert not os.path.lexists(path)
    assert tier.off is None
    tier.save(KEY, TENSORS, 1.0)
    assert same(tier.load(KEY)[0], TENSORS)


def test_no_flipped_bit_goes_unnoticed(tier, tmp_path):
    """Header and data: cost and time of writing are under the checksum too."""
    path = path_of(tmp_path)
    tier.save(KEY, {"x": torch.arange(5.0), "y": torch.ones(3).bfloat16()}, 1.5)
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match="was deleted"):
            assert tier.load(KEY) is None, f"byte {position} of {len(whole)}"
    path.write_bytes(whole)
    assert tier.load(KEY)[1] == 1.5


class _Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_nothing_is_ever_unpickled(tier, tmp_path):
    path, trace = path_of(tmp_path), tmp_path / "trace"
    torch.save({"x": _Bomb(trace)}, path)
    with pytest.warns(UserWarning, match="safetensors"):
        assert tier.load(KEY) is None
    path.write_bytes(pickle.dumps(_Bomb(trace)))
    with pytest.warns(UserWarning, match="safetensors"):
        assert tier.load(KEY) is None
    assert not trace.exists()


def test_an_old_entry_is_a_miss_and_deleted(tmp_path, clock):
    tier = DiskTier(tmp_path, ROOM, max_age_s=60, clock=clock)
    tier.save(KEY, TENSORS, 1.0)
    clock.wait(59)
    assert tier.load(KEY)
    clock.wait(2)  # its use a moment ago makes it no younger
    assert tier.load(KEY) is None
    assert not path_of(tmp_path).exists()


def test_saving_deletes_what_is_old(tmp_path, clock):
    tier = DiskTier(tmp_path, ROOM, max_age_s=60, clock=clock)
    tier.save("old", TENSORS, 1.0)
    clock.wait(61)
    tier.save("new", TENSORS, 1.0)
    assert [p.name for p in tmp_path.iterdir()] == [path_of(tmp_path, "new").name]


def _entry_bytes(folder, clock):
    tier = DiskTier(folder, ROOM, clock=clock)
    tier.save("0", {"x": torch.zeros(1000)}, 1.0)
    return tier.bytes


def test_the_least_recently_used_entries_make_room(tmp_path, clock):
    size = _entry_bytes(tmp_path / "try", clock)
    tier = DiskTier(tmp_path / "cache", 3 * size, clock=clock)
    for number in range(3):
        tier.save(str(number), {"x": torch.full((1000,), float(number))}, 1.0)
        clock.wait(1)
    assert tier.load("0")  # now 1 is the one unused for longest
    clock.wait(1)
    tier.save("3", {"x": torch.full((1000,), 3.0)}, 1.0)
    assert {key for key in "0123" if tier.load(key)} == {"0", "2", "3"}
    assert tier.bytes == 3 * size


def test_a_smaller_bound_holds_from_the_start(tmp_path, clock):
    size = _entry_bytes(tmp_path, clock)
    clock.wait(1)
    DiskTier(tmp_path, ROOM, clock=clock).save("1", {"x": torch.ones(1000)}, 1.0)
    tier = DiskTier(tmp_path, size + 1, clock=clock)
    assert tier.bytes == size
    assert tier.load("1")


def test_what_is_over_the_bound_alone_is_not_written_and_drives_nothing_out(tmp_path, clock):
    size = _entry_bytes(tmp_path, clock)
    tier = DiskTier(tmp_path, size, clock=clock)
    tier.save("large", {"x": torch.empty(10**12, device="meta")}, 1.0)  # copying it would fail
    tier.save("just too large", {"x": torch.zeros(size // 4)}, 1.0)  # with its header
    assert tier.load("large") is None
    assert tier.load("just too large") is None
    assert tier.load("0")


def test_other_files_are_neither_touched_nor_counted(tmp_path, clock):
    sha = "ab" * 32
    names = ["notes.txt", "model.safetensors", f"{sha}.bin", f"{sha.upper()}.safetensors"]
    names += [f"{sha}.safetensors.bak", f"{sha}.tmp", "x.y.tmp"]
    for name in names:
        (tmp_path / name).write_bytes(b"x" * 5000)
        os.utime(tmp_path / name, (1, 1))
    (tmp_path / f"{sha}.safetensors").mkdir()
    (tmp_path / f"{'cd' * 32}.safetensors").symlink_to(tmp_path / "notes.txt")
    clock.wait(10 * UNFINISHED_S)
    tier = DiskTier(tmp_path, 2000, max_age_s=60, clock=clock)
    assert tier.bytes == 0
    tier.save(KEY, {"x": torch.zeros(10)}, 1.0)
    assert tier.load(KEY)
    assert all((tmp_path / name).read_bytes() == b"x" * 5000 for name in names)
    assert (tmp_path / f"{sha}.safetensors").is_dir()
    assert (tmp_path / f"{'cd' * 32}.safetensors").is_symlink()


def test_what_dead_processes_left_unfinished_goes_when_it_is_old(tmp_path, clock):
    tier = DiskTier(tmp_path, ROOM, clock=clock)
    left = tmp_path / f"{'ab' * 32}.x_1.tmp"
    left.write_bytes(b"half")
    os.utime(left, (clock(), clock()))
    clock.wait(UNFINISHED_S - 1)
    tier.save(KEY, TENSORS, 1.0)
    assert left.exists()  # somebody may still be writing it
    clock.wait(2)
    tier.save(KEY, TENSORS, 1.0)
    assert not left.exists()


@pytest.mark.parametrize("use", ["load", "save"])
def test_a_file_that_another_process_deletes_meanwhile(tier, tmp_path, monkeypatch, use):
    """Between being listed, or looked at, and being opened."""
    tier.save(KEY, TENSORS, 1.0)
    tier.save("other", TENSORS, 1.0)
    lstat, unlinked = Path.lstat, []

    def and_gone(path):
        status = lstat(path)
        path.unlink()
        unlinked.append(path)
        return status

    if use == "load":
        monkeypatch.setattr(Path, "lstat", and_gone)
        assert tier.load(KEY) is None
        assert unlinked == [path_of(tmp_path)]
    else:
        fullmatch = disk._ENTRY.fullmatch

        class Deleting:
            def fullmatch(self, name):
                if found := fullmatch(name):
                    (tmp_path / name).unlink()
                    unlinked.append(name)
                return found

        monkeypatch.setattr(disk, "_ENTRY", Deleting())
        tier.save("third", TENSORS, 1.0)
        assert len(unlinked) == 3
    assert tier.off is None


def _fail(number):
    def fsync(handle):
        raise OSError(number, os.strerror(number))

    return fsync


def test_a_full_disk_turns_the_tier_off_with_one_warning(tier, tmp_path, monkeypatch):
    tier.save(KEY, TENSORS, 1.0)
    monkeypatch.setattr(os, "fsync", _fail(errno.ENOSPC))
    with pytest.warns(UserWarning, match="off for the rest of this run.*No space left") as told:
        tier.save("more", TENSORS, 1.0)
        monkeypatch.undo()
        tier.save("still more", TENSORS, 1.0)
        assert tier.load(KEY) is None
    assert len(told) == 1
    assert "No space left" in tier.off
    assert tier.bytes == 0
    assert [p.name for p in tmp_path.iterdir()] == [path_of(tmp_path).name]


def test_threads_that_meet_a_full_disk_together_warn_once(tier, monkeypatch):
    together = threading.Barrier(4)

    def fsync(handle):
        together.wait()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.warns(UserWarning, match="off for the rest") as told, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda key: tier.save(key, TENSORS, 1.0), "abcd"))
    assert len(told) == 1


FILE_SIZE_LIMIT = """
import resource, sys, warnings, torch
from pathlib import Path
from qvl_lab.caching.disk import DiskTier
tier = DiskTier(Path(sys.argv[1]), 10**6)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    tier.save("small", {"x": torch.ones(10)}, 1.0)
    found = tier.load("small")
    tier.save("large", {"x": torch.ones(10_000)}, 1.0)
    tier.save("small too", {"x": torch.ones(10)}, 1.0)
print(len(told), found is not None, tier.off, len(list(Path(sys.argv[1]).iterdir())), sep="|")
"""


@pytest.mark.slow
def test_a_write_that_the_system_cuts_short_leaves_nothing_behind(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", FILE_SIZE_LIMIT, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    told, found, off, files = ran.stdout.strip().split("|")
    assert (told, found, files) == ("1", "True", "1")
    assert "File too large" in off


def _remove(folder):
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def _make_a_file(folder):
    _remove(folder)
    folder.write_text("in the way")


def _make_a_folder(folder):
    path_of(folder).unlink()
    path_of(folder).mkdir()


@pytest.mark.parametrize("use", ["load", "save", "bytes"])
@pytest.mark.parametrize("spoil", [_remove, _make_a_file, _make_a_folder])
def test_a_folder_that_becomes_unusable_turns_the_tier_off(spoil, use, tmp_path):
    tier = DiskTier(tmp_path / "cache", ROOM)
    tier.save(KEY, TENSORS, 1.0)
    spoil(tier.folder)
    uses = {
        "load": lambda: tier.load(KEY),
        "save": lambda: tier.save(KEY, TENSORS, 1.0),
        "bytes": lambda: tier.bytes,
    }
    harmless = {(_remove, "load"), (_make_a_folder, "bytes")}  # a miss; nothing to count
    if (spoil, use) in harmless:
        assert not uses[use]()
        assert tier.off is None
        return
    with pytest.warns(UserWarning, match=f"{tier.folder} is off for the rest") as told:
        assert not uses[use]()
        assert not any(action() for action in uses.values())
    assert len(told) == 1


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_file_that_cannot_be_read_turns_the_tier_off(number, tier, tmp_path, monkeypatch):
    tier.save(KEY, TENSORS, 1.0)

    def refuse(path, mode):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.warns(UserWarning, match=os.strerror(number)):
        assert tier.load(KEY) is None
    assert tier.off
    assert path_of(tmp_path).exists()


def test_a_folder_that_cannot_be_made_is_refused_with_advice(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(ConfigError, match="Give a folder that this user may write to"):
            DiskTier(folder, ROOM)


def test_a_folder_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(ConfigError, match="may not be read or written"):
        DiskTier(tmp_path, ROOM)


ENTRY_BYTES = 1_001_000  # rounded up


def _content(key, writer):
    return {"x": torch.arange(125_000) * key, "by": torch.tensor(writer)}


def _write_and_read(folder, writer):
    """Hits and misses; any warning would be an error, and end this process's part."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    tier, choose = DiskTier(Path(folder), 5 * ENTRY_BYTES), random.Random(writer)
    counts = {"hit": 0, "miss": 0, "other's": 0}
    for _ in range(200):
        key = choose.randrange(8)
        if choose.random() < 0.5:
            tier.save(str(key), _content(key, writer), key / 10)
        elif (found := tier.load(str(key))) is None:
            counts["miss"] += 1
        else:
            by = int(found[0]["by"])
            assert same(found[0], _content(key, by))
            assert found[1] == key / 10
            counts["hit"] += 1
            counts["other's"] += by != writer
    assert tier.off is None
    return counts


@pytest.mark.slow
def test_two_processes_write_read_and_evict_in_one_folder(tmp_path):
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        counts = list(pool.map(_write_and_read, [str(tmp_path)] * 2, range(2)))
    assert all(count["hit"] and count["miss"] for count in counts)
    assert sum(count["other's"] for count in counts)
    assert all(path.suffix == ".safetensors" for path in tmp_path.iterdir())
    assert 0 < DiskTier(tmp_path, 100 * ROOM).bytes <= 5 * ENTRY_BYTES


def test_the_header_says_what_the_file_is(tier, tmp_path):
    tier.save(KEY, TENSORS, 0.5)
    data = path_of(tmp_path).read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    checksum = header.pop("checksum")
    assert header == {"version": "1", "key": KEY, "cost_s": "0.5", "created": "100.0"}
    assert len(checksum) == 64
