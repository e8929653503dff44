"""The fast engine behind :class:`~qvl_lab.session.Lab`: its cache sized by the work at hand."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from qvl_lab.backends.fast.engine import Caches, Engine
from qvl_lab.backends.fast.model.qwen3_vl import MODEL_TYPES
from qvl_lab.backends.processor import Answer, Generation, InputProcessor, Request
from qvl_lab.caching.disk import DiskTier
from qvl_lab.caching.lru import Lru
from qvl_lab.caching.tensor_cache import TensorCache
from qvl_lab.config import EngineSpec, ImagePolicy, SamplingParams
from qvl_lab.errors import ConfigError, InputError, ModelError
from qvl_lab.models.load import read_architecture
from qvl_lab.models.memory import free
from qvl_lab.probe.stages import Recorder, totals
from qvl_lab.workloads.items import Item

#: The share of free memory that a cache may take, if nothing else is said.
MOST_OF_FREE = 0.6
MOST_ANSWER_BYTES = 2**30
_CACHE_SETTINGS = (
    *("encoder_cache_gib", "encoder_cache_entries", "encoder_cache_dir", "encoder_cache_dir_gib"),
    *("encoder_cache_max_age_s", "cache_key", "response_cache_entries"),
)


def runs_fast(model: str) -> bool:
    """Whether the fast engine knows a model's family; False where its config cannot be read."""
    try:
        return read_architecture(model).model_type in MODEL_TYPES
    except (ConfigError, ModelError):
        return False


class Fast:
    """Answers with :class:`~qvl_lab.backends.fast.engine.Engine`, which is kept between runs."""

    def __init__(self, reader: InputProcessor) -> None:
        self.reader = reader
        self._engine: Engine | None = None
        self._caches: tuple[tuple[Any, ...], Caches] | None = None

    def stream(
        self,
        items: Sequence[Item],
        spec: EngineSpec,
        policy: ImagePolicy,
        result: Generation,
        recorder: Recorder,
        halve: bool,
        max_batches: int | None = None,
    ) -> Iterator[tuple[int, Answer]]:
        """Yield (index, answer) as they come; ``result`` gathers times, work and events.

        ``max_batches`` ends it after so many times ``batch_size`` answers.
        """
        sampling = SamplingParams.of(spec, self.reader.loaded.random_weights)
        for requests, refused in self.reader.windows(items, policy):
            yield from refused
            if not requests:
                continue
            engine = self._sized(requests, spec, policy, sampling)
            engine.halve_on_oom = halve
            if max_batches:
                requests = requests[: max_batches * spec.batch_size]
            yield from self._serve(engine, requests, sampling, result)
            totals(recorder.spans(), into=result.totals)
            if max_batches:
                return

    def forget(self) -> None:
        """Empty the caches in memory; a folder of features keeps its files."""
        if self._engine is not None:
            self._engine.scheduler.forget_prefixes()
        caches = self._caches[1] if self._caches else Caches()
        for cache in (caches.features, caches.answers):
            if cache is not None:
                cache.clear()

    def close(self) -> None:
        """Give back the cache's memory, once features that wait for the disk are written."""
        if self._caches and self._caches[1].features is not None:
            self._caches[1].features.flush()
        if self._engine is not None:
            self._engine.close()
            self._engine = None
            free(self.reader.loaded.spec.device)

    def _serve(
        self, engine: Engine, requests: list[Request], sampling: SamplingParams, result: Generation
    ) -> Iterator[tuple[int, Answer]]:
        waiting = deque(requests)
        # those that wait for an equal request's answer need no slot and are not due
        most_due, most_queued = 2 * engine.spec.batch_size, engine.spec.max_queue_size
        work, events, counts = engine.work, len(engine.events), engine.counts()
        try:
            while waiting or engine.busy:
                while waiting and engine.due < most_due and engine.queued < most_queued:
                    request = waiting.popleft()
                    try:
                        engine.add_request(request, sampling)
                    except InputError as e:
                        yield request.index, Answer(id=request.item.id, error=str(e))
                for job in engine.step():
                    assert job.answer is not None
                    yield job.request.index, job.answer
        except BaseException:
            self.close()  # what is half done holds slots and blocks
            raise
        result.work += engine.work - work
        result.events += engine.events[events:]
        for name, count in engine.counts().items():
            if name.endswith("_bytes"):
                result.caches[name] = count
            else:
                result.caches[name] = result.caches.get(name, 0) + count - counts[name]

    def _sized(
        self,
        requests: list[Request],
        spec: EngineSpec,
        policy: ImagePolicy,
        sampling: SamplingParams,
    ) -> Engine:
        """The engine that there is, if it has the settings and the room; otherwise a new one."""
        spec = replace(spec, max_new_tokens=1, min_new_tokens=None)  # said request by request
        new = sampling.max_new_tokens
        lengths = sorted((self.reader.length(r) + new for r in requests), reverse=True)
        whole = [-(-n // spec.block_size) * spec.block_size for n in lengths]
        wanted = sum(whole[: spec.batch_size]) * (2 if spec.prefix_cache else 1)
        kept = self._engine
        same = kept and (kept.spec, kept.policy) == (spec, policy) and kept.longest >= whole[0]
        if kept and same and kept.tokens >= self._room(spec, wanted, kept.tokens):
            return kept
        self.close()
        tokens = self._room(spec, wanted, 0)
        longest = min(whole[0], tokens)
        self._engine = Engine(self.reader, spec, policy, tokens, longest, self._remembered(spec))
        return self._engine

    def _remembered(self, spec: EngineSpec) -> Caches:
        """Caches of these settings, kept from run to run."""
        settings = tuple(getattr(spec, name) for name in _CACHE_SETTINGS)
        if self._caches is None or self._caches[0] != settings:
            if self._caches and self._caches[1].features is not None:
                self._caches[1].features.flush()
            features = answers = disk = None
            if spec.encoder_cache_dir:
                most = int(spec.encoder_cache_dir_gib * 2**30)
                disk = DiskTier(Path(spec.encoder_cache_dir), most, spec.encoder_cache_max_age_s)
            if spec.encoder_cache_gib is not None:
                features = TensorCache(
                    int(spec.encoder_cache_gib * 2**30),
                    spec.encoder_cache_entries,
                    disk,
                    self.reader.loaded.device,
                )
            if spec.response_cache_entries:
                answers = Lru[tuple[str, int]](MOST_ANSWER_BYTES, spec.response_cache_entries)
            self._caches = settings, Caches(features, answers)
        return self._caches[1]

    def _room(self, spec: EngineSpec, wanted: int, held: int) -> int:
        """Tokens that the cache gets, of those ``wanted``; ``held`` are in memory already."""
        loaded = self.reader.loaded
        token_bytes = loaded.kv_bytes_per_token
        if spec.kv_cache_gib is not None:
            return int(spec.kv_cache_gib * 2**30 / token_bytes)
        if loaded.device.type == "cuda":
            available = torch.cuda.mem_get_info(loaded.device)[0]
        else:
            available = psutil.virtual_memory().available
        return min(wanted, held + int(MOST_OF_FREE * available / token_bytes))
