"""The least recently used cache: what it keeps and what it evicts."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from qvl_lab.caching.lru import Lru

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
