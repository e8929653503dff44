"""The fast engine as a backend: made for the work at hand, and kept from call to call."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from qvl_lab.backends.base import Answer, BackendStats, Request
from qvl_lab.backends.fast.engine import Caches, Engine
from qvl_lab.backends.fast.sizing import size_cache, token_budget
from qvl_lab.backends.processor import InputProcessor
from qvl_lab.caching.disk import DiskTier
from qvl_lab.caching.lru import Lru
from qvl_lab.caching.response_cache import Response
from qvl_lab.caching.tensor_cache import TensorCache
from qvl_lab.config import CacheSettings, EngineSpec, Fast, ImagePolicy, SamplingParams
from qvl_lab.errors import InputError
from qvl_lab.models.memory import free
from qvl_lab.probe.stages import Recorder, totals
from qvl_lab.workloads.items import Item

MOST_RESPONSE_BYTES = 2**30


class FastBackend:
    """Answers with :class:`~qvl_lab.backends.fast.engine.Engine`; see ``Backend``.

    Attributes
    ----------
    engine : Engine or None
        The one that answered last. It is kept while its settings and its size fit.
    """

    def __init__(self, processor: InputProcessor) -> None:
        self.processor = processor
        self.engine: Engine | None = None
        self._caches: tuple[CacheSettings, Caches] | None = None
        self._stats = BackendStats()

    def stream(
        self,
        items: Sequence[Item],
        spec: EngineSpec,
        policy: ImagePolicy,
        recorder: Recorder,
        *,
        sampling: SamplingParams | None = None,
        halve_on_oom: bool = True,
        max_batches: int | None = None,
        handed_over_s: float | None = None,
    ) -> Iterator[tuple[int, Answer]]:
        """Yield (index, answer) as they come; see ``Backend``.

        A batch, for ``max_batches``, is as many requests as run at once.
        """
        assert isinstance(spec, Fast)
        if handed_over_s is None:
            handed_over_s = time.perf_counter()
        stats = self._stats = BackendStats()
        sampling = sampling or spec.sampling.resolved(self.processor.loaded.random_weights)
        for requests, refused in self.processor.windows(items, policy):
            yield from refused
            if not requests:
                continue
            stats.batch_size = self._prepare(requests, spec, policy, sampling, halve_on_oom)
            if max_batches:
                requests = requests[: max_batches * stats.batch_size]
            yield from self._serve(requests, sampling, stats, handed_over_s)
            totals(recorder.spans(), into=stats.totals)
            if max_batches:
                return

    def stats(self) -> BackendStats:
        """What the latest stream took; ``batch_size`` says how many sequences ran at once."""
        return self._stats

    def clear_caches(self) -> None:
        """Empty the caches in memory; a folder of features keeps its files."""
        if self.engine is not None:
            self.engine.evict_prefixes()
        caches = self._caches[1] if self._caches else Caches()
        for cache in (caches.encoder, caches.responses):
            if cache is not None:
                cache.clear()

    def close(self) -> None:
        """Give back the engine's memory and end its threads; the caches are kept.

        It waits until features on their way to a folder are written.
        """
        self._flush()
        if self.engine is not None:
            self.engine.close()
            self.engine = None
            free(self.processor.loaded.spec.device)

    def _serve(
        self,
        requests: list[Request],
        sampling: SamplingParams,
        stats: BackendStats,
        handed_over_s: float,
    ) -> Iterator[tuple[int, Answer]]:
        engine, waiting = self.engine, deque(requests)
        assert engine is not None
        # those that wait for an equal request's response need no slot and are not due
        most_due, most_queued = 2 * engine.spec.most_at_once, engine.spec.max_queue_size
        work, events, counts = engine.work, len(engine.events), engine.cache_counts()
        try:
            while waiting or engine.busy:
                while waiting and engine.due < most_due and engine.queued < most_queued:
                    request = waiting.popleft()
                    try:
                        engine.add_request(request, sampling, handed_over_s=handed_over_s)
                    except InputError as e:
                        yield request.index, Answer(id=request.item.id, error=str(e))
                for sequence in engine.step():
                    assert sequence.answer is not None
                    yield sequence.request.index, sequence.answer
        except BaseException:
            self.close()  # what is half done holds slots and blocks
            raise
        stats.work += engine.work - work
        stats.events += engine.events[events:]
        for name, count in engine.cache_counts().items():
            if name.endswith("_bytes"):
                stats.caches[name] = count
            else:
                stats.caches[name] = stats.caches.get(name, 0) + count - counts[name]

    def _prepare(
        self,
        requests: list[Request],
        spec: Fast,
        policy: ImagePolicy,
        sampling: SamplingParams,
        halve_on_oom: bool,
    ) -> int:
        """Have an engine with these settings and room for these requests; its number of slots.

        An engine that does not fit is closed, and nothing refers to it any more, before free memory
        is read and the new one takes its cache.
        """
        lengths = [self.processor.num_tokens(r) + sampling.max_new_tokens for r in requests]
        if self.engine is None or not self._fits(self.engine, spec, policy, lengths):
            self.close()
            size = size_cache(lengths, spec, token_budget(self.processor.loaded, spec))
            self.engine = Engine(
                self.processor,
                _with_slots(spec, size.slots),
                policy,
                size.num_tokens,
                size.max_model_len,
                self._kept_caches(spec),
            )
        self.engine.halve_on_oom = halve_on_oom
        return self.engine.spec.most_at_once

    def _fits(self, engine: Engine, spec: Fast, policy: ImagePolicy, lengths: list[int]) -> bool:
        """Whether an engine has these settings, and the room that a new one would have."""
        slots = engine.spec.most_at_once
        if (engine.spec, engine.policy) != (_with_slots(spec, slots), policy):
            return False
        budget = token_budget(self.processor.loaded, spec, engine.num_tokens)
        size = size_cache(lengths, spec, budget)
        enough = slots >= size.slots if isinstance(spec.batch_size, str) else slots == size.slots
        longest = max(lengths)
        return enough and engine.num_tokens >= size.num_tokens and engine.max_model_len >= longest

    def _kept_caches(self, spec: Fast) -> Caches:
        """Caches of these settings, kept from call to call."""
        settings = spec.caches
        if self._caches is None or self._caches[0] != settings:
            self._flush()
            encoder = responses = disk = None
            if settings.encoder_cache_dir:
                most = int(settings.encoder_cache_dir_gib * 2**30)
                folder = Path(settings.encoder_cache_dir)
                disk = DiskTier(folder, most, settings.encoder_cache_max_age_s)
            if settings.encoder_cache_gib is not None:
                encoder = TensorCache(
                    int(settings.encoder_cache_gib * 2**30),
                    settings.encoder_cache_entries,
                    disk,
                    self.processor.loaded.device,
                )
            if settings.response_cache_entries:
                responses = Lru[Response](MOST_RESPONSE_BYTES, settings.response_cache_entries)
            self._caches = settings, Caches(encoder, responses)
        return self._caches[1]

    def _flush(self) -> None:
        if self._caches and self._caches[1].encoder is not None:
            self._caches[1].encoder.flush()


def _with_slots(spec: Fast, slots: int) -> Fast:
    """An engine's settings: sampling is left out, since each request brings its own."""
    return replace(spec, batch_size=slots, sampling=SamplingParams())
