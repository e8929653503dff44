"""The fast engine: continuous batching over a key-value cache in blocks.

Each step prefills some prompt tokens and generates one token for every running sequence. Finished
sequences leave and waiting ones enter between steps. The tokens of a step are read one step late,
so that the GPU has its next step before the CPU knows what the last one generated.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from qvl_lab.backends.base import Request
from qvl_lab.backends.failures import halving_event, memory_shortage, overflow, too_large
from qvl_lab.backends.fast.async_outputs import AsyncOutputs
from qvl_lab.backends.fast.block_manager import BlockManager
from qvl_lab.backends.fast.decode_pool import DecodePool
from qvl_lab.backends.fast.encoder_cache import EncoderCache
from qvl_lab.backends.fast.input_batch import OVERFLOW
from qvl_lab.backends.fast.model_runner import ModelRunner
from qvl_lab.backends.fast.scheduler import Chunk, Scheduler, Step
from qvl_lab.backends.fast.sequence import DecodedImage, Sequence
from qvl_lab.backends.fast.vision_runner import VisionRunner
from qvl_lab.backends.processor import InputProcessor
from qvl_lab.caching.keys import image_key, model_key, path_key, response_key
from qvl_lab.caching.lru import Lru
from qvl_lab.caching.response_cache import Response, ResponseCache
from qvl_lab.caching.tensor_cache import TensorCache
from qvl_lab.config import Fast, ImagePolicy, SamplingParams
from qvl_lab.errors import ClosedError, InputError, QueueFullError
from qvl_lab.models.memory import free, out_of_memory
from qvl_lab.probe.stages import stage
from qvl_lab.runs.records import Work


@dataclass(frozen=True)
class Caches:
    """What is kept between requests and outlives an engine; each may be None.

    Attributes
    ----------
    encoder : TensorCache
        Features of the vision tower, by image.
    responses : Lru
        Texts and numbers of tokens, by image, question and sampling.
    """

    encoder: TensorCache | None = None
    responses: Lru[Response] | None = None


class Engine:
    """Answers requests as they come: :meth:`add_request`, then :meth:`step` until not ``busy``.

    Parameters
    ----------
    processor : InputProcessor
        Of a loaded model.
    spec : Fast
    policy : ImagePolicy
    num_tokens, max_model_len : int
        Tokens that the cache has room for; most tokens of one sequence, prompt and answer.
    caches : Caches, optional

    Attributes
    ----------
    halve_on_oom : bool
        Go on with less at a time when memory runs out, rather than raise a DeviceMemoryError.
    responses : ResponseCache
        Equal requests, and how often one response served two.
    work : Work
        What there was to compute so far.
    events : list of dict
        What was done about memory running out.

    Raises
    ------
    ConfigError
        For a model of a family that it does not run.
    """

    def __init__(
        self,
        processor: InputProcessor,
        spec: Fast,
        policy: ImagePolicy,
        num_tokens: int,
        max_model_len: int,
        caches: Caches | None = None,
    ) -> None:
        self.processor, self.spec, self.policy = processor, spec, policy
        self.num_tokens, self.max_model_len = num_tokens, max_model_len
        caches = caches or Caches()
        blocks = BlockManager(
            -(-num_tokens // spec.block_size), spec.block_size, prefix_cache=spec.prefix_cache
        )
        with torch.inference_mode():
            width = blocks.needed(max_model_len)
            self.model_runner = ModelRunner(processor, spec, blocks.num_blocks, width)
            self.model_runner.record()
        self.scheduler = Scheduler(
            spec.most_at_once, blocks, spec.prefill_chunk, packing=spec.packing
        )
        self._encoder_cache = EncoderCache(caches.encoder)
        on_gpu = self.model_runner.device.type == "cuda"
        self.decode_pool = DecodePool(
            policy,
            threads=spec.overlap,
            pinned=on_gpu,
            in_rounds=not on_gpu,
            round_size=spec.most_at_once,
            find_features=self._encoder_cache.get,
        )
        self._vision_runner = VisionRunner(
            self.model_runner, self._encoder_cache, packing=spec.packing
        )
        self.responses: ResponseCache[Sequence] = ResponseCache(caches.responses)
        self._caches = caches
        keyed = spec.prefix_cache or caches.encoder or caches.responses is not None
        self._model_key = model_key(processor.loaded.spec) if keyed else ""
        self._incoming: deque[Sequence] = deque()
        self._outputs = AsyncOutputs()
        self._ended: list[Sequence] = []
        #: Images that a sequence on its way computes for others, by key.
        self._being_computed: set[str] = set()
        self._stop_token_ids = frozenset(processor.stop_token_ids)
        self._is_closed = False
        self._step_started_s = time.perf_counter()
        self.halve_on_oom = True
        self.work = Work()
        self.events: list[dict[str, Any]] = []

    @property
    def busy(self) -> bool:
        """Whether a request is still on its way."""
        return bool(self._incoming or self._has_scheduled or self._ended)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is held for any request: no image, no block, no place in a queue."""
        blocks = self.scheduler.blocks
        return (
            not self.busy
            and blocks.num_free + blocks.num_kept == blocks.num_blocks
            and self.decode_pool.is_idle
            and self._encoder_cache.is_idle
            and not self._being_computed
        )

    @property
    def queued(self) -> int:
        """Requests that have no slot yet."""
        return self.due + self.responses.waiting

    @property
    def due(self) -> int:
        """Those of ``queued`` that need a slot, not an equal request's response."""
        return len(self._incoming) + len(self.scheduler.waiting)

    # ---- requests

    def add_request(
        self,
        request: Request,
        sampling: SamplingParams | None = None,
        *,
        handed_over_s: float | None = None,
    ) -> Sequence:
        """Let a request wait for its turn, which comes with the step that begins to prefill it.

        Parameters
        ----------
        handed_over_s : float, optional
            When the request was handed over, on the clock of :func:`time.perf_counter`; by default
            now. The times of its answer run from there.

        Raises
        ------
        ClosedError
            After :meth:`close`.
        InputError
            If it could never fit into the cache.
        QueueFullError
            If ``max_queue_size`` requests wait already.
        """
        handed_over_s = time.perf_counter() if handed_over_s is None else handed_over_s
        if self._is_closed:
            raise ClosedError("this engine was closed and takes no requests; make a new one")
        loaded = self.processor.loaded
        sampling = sampling or self.spec.sampling.resolved(loaded.random_weights)
        token_ids, image_tokens = self.processor.token_ids(request)
        self._check_fits(len(token_ids), sampling.max_new_tokens)
        key = self._image_key(request) if self._model_key else None
        sequence = Sequence(
            request,
            sampling,
            token_ids,
            image_tokens,
            self.model_runner.patchify.grid(request.size),
            image_key=key,
            prefix_key=key if self.spec.prefix_cache else None,
            response_key=self._response_key(request, sampling, key),
            handed_over_s=handed_over_s,
        )
        if (response := self.responses.get(sequence.response_key)) is not None:
            sequence.finish(*response)
            self._ended.append(sequence)
            return sequence
        if self.queued >= self.spec.max_queue_size:
            raise QueueFullError(
                f"{self.queued:,} requests wait already, as many as max_queue_size allows; step "
                "until some have ended, or raise it"
            )
        if not self.responses.coalesce(sequence.response_key, sequence):
            self._incoming.append(sequence)
            self._prefetch(sequence)
        return sequence

    def step(self) -> list[Sequence]:
        """Launch one step and read the tokens of the one before; the sequences that have ended."""
        self._step_started_s = time.perf_counter()
        with torch.inference_mode():
            self.decode_pool.start_ahead()
            self._admit_incoming()
            if self.scheduler.must_preempt():
                self._collect(leave=0)
            step = self.scheduler.next()
            if step:
                self._open_step()
                self._launch(step)
            self._collect(leave=1 if step and self.spec.overlap else 0)
        ended, self._ended = self._ended, []
        return ended

    def cancel(self, sequence: Sequence, why: str = "cancelled") -> None:
        """End a sequence without its answer and free what it held."""
        if sequence.answer is None:
            self._end(sequence, error=why)

    def close(self) -> None:
        """Cancel all requests, evict all prefixes and end the threads."""
        self._is_closed = True
        while self._incoming or self._has_scheduled:
            scheduler = self.scheduler
            for sequence in [*self._incoming, *scheduler.waiting, *scheduler.running]:
                self.cancel(sequence)  # which lets an equal one in
        self._outputs.clear()
        self._ended.clear()
        self.evict_prefixes()
        self.decode_pool.close()
        self._encoder_cache.drop_steps()

    def evict_prefixes(self) -> None:
        """Free the blocks of all prefixes that no running sequence shares."""
        self.scheduler.blocks.evict_prefixes()

    def cache_counts(self) -> dict[str, int]:
        """Hits and misses of every cache that is on, bytes of features held."""
        counts: dict[str, int] = {}
        if self._caches.encoder is not None:
            stats = self._caches.encoder.stats
            counts |= {"encoder_hits": stats.hits, "encoder_misses": stats.misses}
            counts |= {"encoder_bytes": stats.bytes, "encoder_disk_hits": stats.disk_hits}
        if self.spec.prefix_cache:
            prefixes = self.scheduler.blocks.stats
            counts |= {"prefix_hits": prefixes.hits, "prefix_misses": prefixes.misses}
            counts["prefix_tokens_saved"] = prefixes.tokens_saved
        if self.responses.is_on:
            counts |= {
                "response_hits": self.responses.hits,
                "response_misses": self.responses.misses,
            }
        return counts

    @property
    def _has_scheduled(self) -> bool:
        return bool(self.scheduler.waiting or self.scheduler.running)

    def _check_fits(self, prompt_tokens: int, new_tokens: int) -> None:
        too_long = prompt_tokens + new_tokens > self.max_model_len
        if too_long or not self.scheduler.fits(prompt_tokens, new_tokens):
            raise InputError(
                f"{prompt_tokens:,} prompt tokens and {new_tokens:,} new ones do not fit into a "
                f"cache of {self.num_tokens:,} tokens, {self.max_model_len:,} a sequence; lower "
                "the resolution or raise kv_cache_gib"
            )

    def _image_key(self, request: Request) -> str:
        image = request.item.image
        path = str(image) if isinstance(image, str | Path) else request.item.path
        if self.spec.caches.cache_key == "path" and path is not None:
            return path_key(path, request.size, self._model_key)
        return image_key(request.image, request.size, self._model_key)

    def _response_key(
        self, request: Request, sampling: SamplingParams, key: str | None
    ) -> str | None:
        """None where a response may not be given twice, or is not kept."""
        if not self.responses.is_on or key is None or sampling.do_sample:
            return None
        return response_key(key, request.text, asdict(sampling))

    # ---- images

    def _prefetch(self, sequence: Sequence) -> None:
        """Have a sequence's image decoded, unless another sequence on its way computes it first."""
        key = sequence.image_key
        if key is not None and (self.spec.prefix_cache or self._encoder_cache.is_on):
            has_prefix = self.scheduler.blocks.has_prefix(sequence.prefix_key)
            sequence.needs_image = key not in self._being_computed and not has_prefix
            self._being_computed.add(key)
        if sequence.needs_image:
            self.decode_pool.prefetch(sequence)

    def _admit_incoming(self) -> None:
        """Let sequences whose image is decoded wait for a slot, in the order they came."""
        waiting = self.scheduler.waiting
        if self.decode_pool.in_rounds and waiting:
            return  # the more come at once, the more images are decoded at once
        while self._incoming and len(waiting) < self.spec.most_at_once:
            sequence = self._incoming[0]
            if sequence.needs_image:
                if self._has_scheduled and self.decode_pool.not_ready(sequence):
                    return  # the device has something to do meanwhile
                if not self._fetch(sequence):
                    continue
            self._incoming.popleft()
            self.scheduler.add(sequence)

    def _fetch(self, sequence: Sequence) -> bool:
        """Wait for a sequence's image; False if there is none, which ends the sequence."""
        try:
            self.decode_pool.fetch(sequence)
        except Exception as e:
            if not isinstance(e, InputError) and not out_of_memory(e):
                raise
            error = str(e) if isinstance(e, InputError) else too_large(sequence.request).error
        else:
            return True
        # nobody computes its prefix now
        self.scheduler.blocks.evict_prefix(sequence.prefix_key)
        self._end(sequence, error=error)
        return False

    def _encode_images(self, chunks: list[Chunk]) -> list[Chunk]:
        """Compute the features that chunks need; returns the chunks whose images are good."""
        unknown: list[Sequence] = []
        for chunk in chunks:
            sequence = chunk.sequence
            sequence.started_s = sequence.started_s or self._step_started_s
            if sequence.features is not None or chunk.start >= sequence.image_tokens.stop:
                continue
            if isinstance(sequence.decoded, DecodedImage) or self._fetch(sequence):
                unknown.append(sequence)
        self.work += self._vision_runner.encode(unknown, self.scheduler.prefill_chunk)
        for sequence in unknown:
            self.decode_pool.drop(sequence)
        return [chunk for chunk in chunks if chunk.sequence.answer is None]

    # ---- the device

    def _launch(self, step: Step) -> None:
        self.model_runner.copy_blocks(step.copies)
        self.model_runner.update_block_tables(step.grown)
        if step.decodes and (failure := memory_shortage(self._decode, step.decodes)):
            self._recover(failure, decodes=step.decodes)
        if step.chunks and (failure := memory_shortage(self._prefill, step.chunks)):
            self._recover(failure, chunks=step.chunks)

    def _decode(self, sequences: list[Sequence]) -> None:
        plain = all(sequence.sampling.is_plain_greedy for sequence in sequences)
        self._outputs.add(sequences, self.model_runner.decode(sequences, plain))
        self.work += Work(
            decode_steps=1,
            decode_rows=len(sequences),
            context_tokens=sum(sequence.num_computed_tokens for sequence in sequences),
        )

    def _prefill(self, chunks: list[Chunk]) -> None:
        chunks = self._encode_images(chunks)
        if not chunks:
            return
        tokens = self.model_runner.prefill(chunks)
        for chunk in chunks:
            if chunk.stop >= chunk.sequence.image_tokens.stop:
                chunk.sequence.features = None
        if tokens is not None:
            self._outputs.add([chunk.sequence for chunk in chunks if chunk.last], tokens)
        self.work += _prefill_work(chunks)

    def _recover(self, failure: str, **planned: Any) -> None:
        """Memory ran out: know all tokens, free what can be freed, take the plan back."""
        self._collect(leave=0)
        self._open_step()
        free(str(self.model_runner.device))
        rollback = self.scheduler.rollback(**planned)
        if rollback is None:
            return
        if rollback.too_large is not None:
            self._end(rollback.too_large, error=too_large(rollback.too_large.request).error)
            return
        tried, continued_with = rollback.tried, rollback.continued_with
        self.events.append(halving_event(tried, continued_with, failure, self.halve_on_oom))

    # ---- tokens

    def _open_step(self) -> None:
        self._outputs.open_step()
        self._encoder_cache.open_step()

    def _collect(self, leave: int) -> None:
        """Read the tokens of all steps but the last ``leave``."""
        while len(self._outputs) > leave:
            for output in self._outputs.collect():
                now = time.perf_counter()
                for sequence, token in output:
                    if sequence.answer is None:
                        self._append_token(sequence, token, now)
            self._encoder_cache.close_step()

    def _append_token(self, sequence: Sequence, token: int, now: float) -> None:
        sequence.first_token_s = sequence.first_token_s or now
        if token == OVERFLOW:
            blocks = self.scheduler.blocks
            freed = blocks.evict_prefix(sequence.prefix_key)
            self.model_runner.zero_blocks([*freed, *blocks.own_blocks(sequence)])
            self._end(sequence, error=overflow(self.processor.loaded.spec.precision))
            return
        sequence.token_ids.append(token)
        most = sequence.sampling.max_new_tokens
        if token in self._stop_token_ids or sequence.num_output_tokens >= most:
            self._end(sequence)

    # ---- the end of a sequence

    def _end(self, sequence: Sequence, error: str | None = None) -> None:
        """Take a sequence out with its answer, or with an error."""
        text = None if error is not None else self._detokenize(sequence)
        self.decode_pool.drop(sequence)
        sequence.features = None
        self._take_out(sequence)
        sequence.finish(text, error=error)
        self._ended.append(sequence)
        response = None if text is None else (text, sequence.num_output_tokens)
        for other in self.responses.ended(sequence.response_key, sequence, response):
            if response is None:  # it is computed instead
                self._incoming.appendleft(other)
                self._prefetch(other)
            else:
                other.finish(*response)
                self._ended.append(other)

    def _detokenize(self, sequence: Sequence) -> str:
        with stage("detokenize", tokens=sequence.num_output_tokens):
            tokenizer = self.processor.loaded.tokenizer
            text: str = tokenizer.decode(sequence.output_ids, skip_special_tokens=True)
        return text.strip()

    def _take_out(self, sequence: Sequence) -> None:
        """Take a sequence from the scheduler or the incoming ones, if it is among them.

        One that waits for an equal request's response is in neither.
        """
        if not self.scheduler.finish(sequence):
            if sequence not in self._incoming:
                return
            self._incoming.remove(sequence)
        if sequence.image_key is not None:
            self._being_computed.discard(sequence.image_key)


def _prefill_work(chunks: list[Chunk]) -> Work:
    """Work of prompt tokens. Squares count tokens attended to: chunks of a prompt add up."""
    tokens = sum(map(len, chunks))
    squared = sum(chunk.stop**2 - chunk.start**2 for chunk in chunks)
    return Work(
        batches=1,
        prompt_tokens=tokens,
        prompt_tokens_squared=squared,
        padded_tokens=tokens,
        padded_tokens_squared=squared,
    )
