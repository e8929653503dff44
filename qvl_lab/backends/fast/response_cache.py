"""Whole answers: those that were given before, and those that several requests wait for."""

from __future__ import annotations

from dataclasses import asdict, replace

from qvl_lab.backends.fast.sequence import Job
from qvl_lab.caching.keys import response_key
from qvl_lab.caching.lru import Lru


class Answers:
    """Gives equal greedy requests one answer; without a cache it does nothing.

    Parameters
    ----------
    cache : Lru or None
        Texts and numbers of tokens, by image, question and sampling.

    Attributes
    ----------
    hits, misses : int
        Requests that got an answer from here; those that had to be computed.
    waiting : int
        Requests that wait for the answer of an equal one.
    """

    def __init__(self, cache: Lru[tuple[str, int]] | None) -> None:
        self._cache = cache
        self._asked: dict[str, dict[Job, None]] = {}  # the first is computed, the others wait
        self.hits = self.misses = self.waiting = 0

    def find(self, job: Job) -> bool:
        """Whether an equal request was answered; the job has its answer then."""
        key = self._key(job)
        found = self._cache.get(key) if self._cache is not None and key is not None else None
        if found is not None:
            self._give(job, *found)
        return found is not None

    def joins(self, job: Job) -> bool:
        """Whether an equal request is being computed; the job waits for it then."""
        key = self._key(job)
        if key is None:
            return False
        others = self._asked.setdefault(key, {})
        others[job] = None
        first = len(others) == 1
        self.misses += first
        self.waiting += not first
        return not first

    def ended(self, job: Job) -> list[Job]:
        """Jobs that wait no more, now that this one has ended.

        If it has a text, all that waited for it, and they have it too. If not, the next of them,
        which has to be computed: an error is one request's own.
        """
        key = self._key(job)
        others = self._asked.get(key) if key is not None else None
        if not others or job not in others:
            return []
        first = next(iter(others)) is job
        del others[job]
        if not first:
            self.waiting -= 1
            return []
        assert job.answer is not None
        assert self._cache is not None
        text = job.answer.text
        if text is None and others:
            self.waiting -= 1
            self.misses += 1
            return [next(iter(others))]
        del self._asked[str(key)]
        if text is None:
            return []
        self._cache.put(str(key), (text, len(job.tokens)), len(text.encode()))
        self.waiting -= len(others)
        for other in others:
            self._give(other, text, len(job.tokens))
        return list(others)

    def _give(self, job: Job, text: str, tokens: int) -> None:
        self.hits += 1
        job.finish(text)
        job.answer = replace(job.answer, new_tokens=tokens)  # type: ignore[type-var]

    def _key(self, job: Job) -> str | None:
        """None where an answer may not be given twice, or answers are not kept."""
        sampling = job.prompt.sampling
        if self._cache is None or job.key is None or sampling.do_sample:
            return None
        return response_key(job.key, job.request.text, asdict(sampling))
