"""Equal requests get one response, whoever they are."""

from __future__ import annotations

from qvl_lab.caching.lru import Lru
from qvl_lab.caching.response_cache import Response, ResponseCache


def cache() -> ResponseCache[str]:
    return ResponseCache(Lru[Response](2**20))


def test_a_response_is_found_again_under_its_key_alone():
    responses = cache()
    assert not responses.coalesce("k", "first")
    assert responses.ended("k", "first", ("text", 3)) == []
    assert responses.get("k") == ("text", 3)
    assert responses.get("other") is None
    assert (responses.hits, responses.misses) == (1, 1)


def test_those_who_wait_get_the_response_of_the_first():
    responses = cache()
    assert [responses.coalesce("k", member) for member in "abc"] == [False, True, True]
    assert responses.waiting == 2
    assert responses.ended("k", "a", ("text", 3)) == ["b", "c"]
    assert (responses.waiting, responses.hits, responses.misses) == (0, 2, 1)


def test_without_a_response_the_next_of_those_who_wait_is_computed():
    responses = cache()
    for member in "abc":
        responses.coalesce("k", member)
    assert responses.ended("k", "b", None) == []  # one that waited has left
    assert responses.ended("k", "a", None) == ["c"]
    assert responses.ended("k", "c", None) == []
    assert (responses.waiting, responses.misses) == (0, 2)
    assert not responses.coalesce("k", "d")  # nothing is left of the others


def test_a_request_without_a_key_shares_nothing():
    responses = cache()
    assert responses.get(None) is None
    assert not responses.coalesce(None, "a")
    assert not responses.coalesce(None, "b")
    assert responses.ended(None, "a", ("text", 3)) == []


def test_without_a_cache_nothing_is_shared():
    responses: ResponseCache[str] = ResponseCache(None)
    assert not responses.is_on
    assert [responses.coalesce("k", member) for member in "ab"] == [False, False]
    assert responses.ended("k", "a", ("text", 3)) == []
    assert responses.get("k") is None
