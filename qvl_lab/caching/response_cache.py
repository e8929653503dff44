"""Responses that were given before, and equal requests that wait for one response."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from qvl_lab.caching.lru import Lru

#: The text of an answer and its number of tokens.
Response = tuple[str, int]
Member = TypeVar("Member", bound=Hashable)


class ResponseCache(Generic[Member]):
    """Gives equal requests one response; without a cache it does nothing.

    A request is a key, None if it may not share a response, and a member, which is whatever stands
    for the request where it is computed.

    Parameters
    ----------
    cache : Lru or None
        Responses by key.

    Attributes
    ----------
    hits, misses : int
        Requests that got a response from here; those that had to be computed.
    waiting : int
        Requests that wait for the response of an equal one.
    """

    def __init__(self, cache: Lru[Response] | None) -> None:
        self._cache = cache
        #: By key, in order of arrival; the first is computed, the others wait for it.
        self._on_their_way: dict[str, dict[Member, None]] = {}
        self.hits = self.misses = self.waiting = 0

    @property
    def is_on(self) -> bool:
        """Whether responses are kept."""
        return self._cache is not None

    def get(self, key: str | None) -> Response | None:
        """The response that an equal request got before."""
        found = self._cache.get(key) if self._cache is not None and key is not None else None
        self.hits += found is not None
        return found

    def coalesce(self, key: str | None, member: Member) -> bool:
        """Whether an equal request is being computed, which the member waits for from now on."""
        if self._cache is None or key is None:
            return False
        members = self._on_their_way.setdefault(key, {})
        members[member] = None
        first = len(members) == 1
        self.misses += first
        self.waiting += not first
        return not first

    def ended(self, key: str | None, member: Member, response: Response | None) -> list[Member]:
        """A member has its response, or ended without one.

        Returns
        -------
        list of Member
            Members that need not wait any more. With a response, all that waited for it. Without
            one, the next of them, which has to be computed: an error is one request's own.
        """
        members = self._on_their_way.get(key) if key is not None else None
        if key is None or not members or member not in members:
            return []
        first = next(iter(members)) == member
        del members[member]
        if not first:
            self.waiting -= 1
            return []
        if response is None and members:
            self.waiting -= 1
            self.misses += 1
            return [next(iter(members))]
        del self._on_their_way[key]
        if response is None:
            return []
        assert self._cache is not None
        self._cache.put(key, response, len(response[0].encode()))
        self.waiting -= len(members)
        self.hits += len(members)
        return list(members)
