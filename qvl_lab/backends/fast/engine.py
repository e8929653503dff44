"""The fast engine: continuous batching over a cache in blocks.

Each step reads some prompt tokens and generates one token for every running sequence. Finished
sequences leave and waiting ones enter between steps. Tokens are looked at one step late, so that
the GPU has its next step before the CPU knows what the last one said.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qvl_lab.backends.fast.decode_pool import DecodePool
from qvl_lab.backends.fast.input_batch import OVERFLOW
from qvl_lab.backends.fast.model_runner import ModelRunner, Prompt
from qvl_lab.backends.fast.response_cache import Answers
from qvl_lab.backends.fast.scheduler import Blocks, Chunk, Scheduler, Step
from qvl_lab.backends.fast.scheduler import Sequence as Scheduled
from qvl_lab.backends.fast.sequence import Job, Picture
from qvl_lab.backends.fast.vision_runner import VisionRunner
from qvl_lab.backends.processor import (
    InputProcessor,
    Request,
    as_model_error,
    overflow,
    too_large,
)
from qvl_lab.caching.keys import image_key, model_key, path_key
from qvl_lab.caching.lru import Lru
from qvl_lab.caching.tensor_cache import TensorCache
from qvl_lab.config import EngineSpec, ImagePolicy, SamplingParams
from qvl_lab.errors import DeviceMemoryError, InputError, QueueFullError
from qvl_lab.models.memory import first_line, free, out_of_memory
from qvl_lab.probe.stages import stage
from qvl_lab.runs.records import Work

#: A chunk of a prompt that does not fit in memory is not tried in smaller parts than this.
LEAST_CHUNK = 256
#: Steps without a shortage of memory after which twice as much is tried again.
RECOVERY_STEPS = 64


@dataclass(frozen=True)
class Caches:
    """What is remembered between requests; each may be None.

    Attributes
    ----------
    features : TensorCache
        The vision tower's, by image.
    answers : Lru
        Texts and numbers of tokens, by image, question and sampling.
    """

    features: TensorCache | None = None
    answers: Lru[tuple[str, int]] | None = None


@dataclass(frozen=True)
class _Flight:
    """Tokens on their way to the CPU, one for each job."""

    jobs: list[Job]
    tokens: Tensor
    landed: Any


class Engine:
    """Answers requests as they come: :meth:`add_request`, then :meth:`step` until not ``busy``.

    Parameters
    ----------
    reader : InputProcessor
        Of a loaded model.
    spec : EngineSpec
    policy : ImagePolicy
    tokens, longest : int
        Tokens that the cache has room for; most tokens of one sequence, prompt and answer.
    caches : Caches, optional
        Outlive the engine.

    Attributes
    ----------
    halve_on_oom : bool
        Go on with less at a time when memory runs out, rather than raise a DeviceMemoryError.
    answers : Answers
        Equal requests, and how often one answer served two.
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
        reader: InputProcessor,
        spec: EngineSpec,
        policy: ImagePolicy,
        tokens: int,
        longest: int,
        caches: Caches | None = None,
    ) -> None:
        self.reader, self.spec, self.policy = reader, spec, policy
        self.caches = caches or Caches()
        self.tokens, self.longest = tokens, longest
        blocks = Blocks(-(-tokens // spec.block_size), spec.block_size)
        with torch.inference_mode():
            self.forward = ModelRunner(reader, spec, blocks.count, blocks.needed(longest))
            self.forward.record()
        self.scheduler = Scheduler(
            spec.batch_size,
            blocks,
            spec.prefill_chunk,
            packing=spec.packing,
            prefix_cache=spec.prefix_cache,
        )
        cuda = self.forward.device.type == "cuda"
        pictures = DecodePool(policy, threads=spec.overlap, pinned=cuda)
        self.sight = VisionRunner(self.forward, pictures, spec, self.caches.features)
        self._incoming: deque[Job] = deque()
        self._jobs: dict[Scheduled, Job] = {}
        self._flights: deque[list[_Flight]] = deque()
        self._ended: list[Job] = []
        self.answers = Answers(self.caches.answers)
        self._reading: set[str] = set()  # images that a job on its way reads first
        keyed = spec.prefix_cache or self.caches.features or self.caches.answers is not None
        self._model_key = model_key(reader.loaded.spec) if keyed else ""
        self.halve_on_oom = True
        self._stops = frozenset(reader.stops)
        self._good_steps = 0
        self.work = Work()
        self.events: list[dict[str, Any]] = []

    @property
    def busy(self) -> bool:
        """Whether a request is still on its way."""
        return bool(self._incoming or self._jobs or self._ended)

    @property
    def queued(self) -> int:
        """Requests that have no slot yet."""
        return self.due + self.answers.waiting

    @property
    def due(self) -> int:
        """Of those ``queued``, all but those that wait for an equal request's answer."""
        return len(self._incoming) + len(self.scheduler.waiting)

    def add_request(self, request: Request, sampling: SamplingParams | None = None) -> Job:
        """Let a request wait for its turn.

        Raises
        ------
        InputError
            If it could never fit into the cache.
        QueueFullError
            If as many as ``max_queue_size`` wait already.
        """
        sampling = sampling or SamplingParams.of(self.spec, self.reader.loaded.random_weights)
        ids, image = self.reader.ids(request)
        self._check_room(len(ids), sampling.max_new_tokens)
        key = self._image_key(request) if self._model_key else None
        sequence = Scheduled(
            id=request.index,
            prompt=len(ids),
            limit=sampling.max_new_tokens,
            prefix=image.stop,
            prefix_key=key if self.spec.prefix_cache else None,
        )
        prompt = Prompt(ids, image, self.forward.patches.grid(request.size), sampling)
        job = Job(request, prompt, sequence, key)
        if self.answers.find(job):
            self._ended.append(job)
            return job
        if self.queued >= self.spec.max_queue_size:
            raise QueueFullError(
                f"{self.queued:,} requests wait already, as many as max_queue_size allows; step "
                "until some have ended, or raise it"
            )
        if not self.answers.joins(job):
            self._incoming.append(job)
            self._expect(job)
        return job

    def _expect(self, job: Job) -> None:
        """Have a job's image decoded, unless another job on its way reads it first."""
        shared = self.spec.prefix_cache or self.caches.features is not None
        if shared and job.key is not None:
            job.needs_image = job.key not in self._reading and not self.scheduler.has_prefix(
                job.sequence.prefix_key
            )
            self._reading.add(job.key)
        if job.needs_image and self.spec.overlap:
            self.sight.expect(job)

    def _image_key(self, request: Request) -> str:
        image = request.item.image
        if self.spec.cache_key == "path" and isinstance(image, str | Path):
            return path_key(str(image), request.size, self._model_key)
        return image_key(request.image, request.size, self._model_key)

    def step(self) -> list[Job]:
        """Launch one step and look at the one before; the jobs that have ended."""
        with torch.inference_mode():
            self.sight.begin()
            self._take_in()
            if self.scheduler.must_preempt():
                self._land(0)
            self._recover()
            step = self.scheduler.next()
            for sequence in step.preempted:
                self._jobs[sequence].read_again()
            if step:
                self._open_flight()
                self._launch(step)
            self._land(1 if step and self.spec.overlap else 0)
        ended, self._ended = self._ended, []
        return ended

    def cancel(self, job: Job, why: str = "cancelled") -> None:
        """End a job without its answer; what it held is free."""
        if job.answer is None:
            self._end(job, error=why)

    def close(self) -> None:
        """Cancel what is on its way and end the threads."""
        while unfinished := [*self._incoming, *self._jobs.values()]:
            for job in unfinished:  # which lets an equal one in
                self.cancel(job)
        self._flights.clear()
        self._ended.clear()
        self.scheduler.forget_prefixes()
        self.sight.close()

    def _check_room(self, prompt: int, new: int) -> None:
        if prompt + new > self.longest or not self.scheduler.fits(prompt, new):
            raise InputError(
                f"{prompt:,} prompt tokens and {new:,} new ones do not fit into a cache of "
                f"{self.tokens:,} tokens, {self.longest:,} a sequence; lower the resolution or "
                "raise kv_cache_gib"
            )

    def counts(self) -> dict[str, int]:
        """Hits and misses of every cache that is on, bytes of features held."""
        found: dict[str, int] = {}
        if self.caches.features is not None:
            stats = self.caches.features.stats
            found |= {"encoder_hits": stats.hits, "encoder_misses": stats.misses}
            found |= {"encoder_bytes": stats.bytes, "encoder_disk_hits": stats.disk_hits}
        if self.spec.prefix_cache:
            prefixes = self.scheduler.stats
            found |= {"prefix_hits": prefixes.hits, "prefix_misses": prefixes.misses}
            found["prefix_tokens_saved"] = prefixes.tokens_saved
        if self.caches.answers is not None:
            found |= {"response_hits": self.answers.hits, "response_misses": self.answers.misses}
        return found

    # ---- images

    def _take_in(self) -> None:
        """Let jobs whose image is decoded wait for a slot, in the order they came."""
        if self.sight.in_rounds and self.scheduler.waiting:
            return  # the more come at once, the more images are decoded at once
        while self._incoming and len(self.scheduler.waiting) < self.spec.batch_size:
            job = self._incoming[0]
            if job.needs_image and self._jobs and self.sight.late(job):
                return  # the device has something to do meanwhile
            if job.needs_image and not self._fetch(job):
                continue
            self._incoming.popleft()
            self._jobs[job.sequence] = job
            self.scheduler.add(job.sequence)

    def _fetch(self, job: Job) -> bool:
        """Wait for a job's picture; it ends if that cannot be had."""
        try:
            self.sight.fetch(job)
        except InputError as e:
            self.scheduler.forget(job.sequence.prefix_key)  # nobody will read it now
            self._end(job, error=str(e))
            return False
        return True

    # ---- the device

    def _launch(self, step: Step) -> None:
        self.forward.copy_blocks(step.copies)
        self.forward.update_block_tables(step.grown)
        if step.decodes:
            self._attempt(self._decode, step.decodes, self._undo_decodes)
        if step.chunks:
            self._attempt(self._read, step.chunks, self._undo_chunks)

    def _attempt(
        self,
        work: Callable[[list[Any]], None],
        parts: list[Any],
        undo: Callable[[list[Any], str], None],
    ) -> None:
        try:
            work(parts)
        except Exception as e:
            if not out_of_memory(e):
                raise as_model_error(e) from e
            failure = first_line(e)
            del e
            self._good_steps = 0
            self._land(0)
            self._open_flight()
            free(str(self.forward.device))
            self.scheduler.forget_prefixes()
            undo(parts, failure)

    def _decode(self, sequences: list[Scheduled]) -> None:
        jobs = [self._jobs[sequence] for sequence in sequences]
        sampled = any(job.prompt.sampling.do_sample for job in jobs)
        self._take_off(jobs, self.forward.decode(sequences, sampled))
        self.work += Work(
            decode_steps=1,
            decode_rows=len(jobs),
            context_tokens=sum(sequence.cached for sequence in sequences),
        )

    def _read(self, chunks: list[Chunk]) -> None:
        chunks = self._see(chunks)
        if not chunks:
            return
        jobs = [self._jobs[chunk.sequence] for chunk in chunks]
        tokens = self.forward.prefill(chunks, [job.prompt for job in jobs])
        for job, chunk in zip(jobs, chunks, strict=True):
            job.started_s = job.started_s or time.perf_counter()
            if chunk.stop >= job.prompt.image.stop:
                job.prompt.features = None
        if tokens is not None:
            self._take_off([j for j, c in zip(jobs, chunks, strict=True) if c.last], tokens)
        self._no_single_reads()
        self.work += _work_of(chunks)

    def _no_single_reads(self) -> None:
        """What did not fit in one step has been dealt with alone: read more at a time again."""
        least = min(LEAST_CHUNK, self.spec.prefill_chunk)
        self.scheduler.prefill_chunk = max(self.scheduler.prefill_chunk, least)

    def _see(self, chunks: list[Chunk]) -> list[Chunk]:
        """Features for the images that these chunks show; without the chunks of bad images."""
        seeing: list[Job] = []
        for chunk in chunks:
            job = self._jobs[chunk.sequence]
            job.started_s = job.started_s or time.perf_counter()
            if job.prompt.features is not None or chunk.start >= job.prompt.image.stop:
                continue
            if isinstance(job.picture, Picture) or self._fetch(job):
                seeing.append(job)
        self.work += self.sight.see(seeing, self.scheduler.prefill_chunk)
        return [chunk for chunk in chunks if chunk.sequence in self._jobs]

    # ---- tokens

    def _take_off(self, jobs: list[Job], tokens: Tensor) -> None:
        landed = None
        if tokens.is_cuda:
            host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            tokens = host.copy_(tokens, non_blocking=True)
            landed = torch.cuda.Event()  # type: ignore[no-untyped-call]
            landed.record()
        self._flights[-1].append(_Flight(jobs, tokens, landed))

    def _open_flight(self) -> None:
        self._flights.append([])
        self.sight.open_step()

    def _land(self, leave: int) -> None:
        """Look at the tokens of all steps but the last ``leave``."""
        while len(self._flights) > leave:
            for flight in self._flights.popleft():
                if flight.landed is not None:
                    flight.landed.synchronize()
                now = time.perf_counter()
                for job, token in zip(flight.jobs, flight.tokens.tolist(), strict=True):
                    if job.answer is None:
                        self._hear(job, token, now)
            self.sight.close_step()

    def _hear(self, job: Job, token: int, now: float) -> None:
        job.first_s = job.first_s or now
        if token == OVERFLOW:
            freed = self.scheduler.forget(job.sequence.prefix_key)
            self.forward.zero_blocks([*freed, *self.scheduler.own_blocks(job.sequence)])
            self._end(job, error=overflow(self.reader.loaded.spec.precision))
            return
        job.tokens.append(token)
        most = job.prompt.sampling.max_new_tokens
        if token in self._stops or len(job.tokens) >= most:
            self._end(job)

    def _end(self, job: Job, error: str | None = None) -> None:
        """Take a job out with its answer, or with an error."""
        text = None
        if error is None:
            with stage("detokenize", tokens=len(job.tokens)):
                tokenizer = self.reader.loaded.tokenizer
                text = tokenizer.decode(job.tokens, skip_special_tokens=True).strip()
        self.sight.drop(job)
        job.prompt.features = None
        self._take_out(job)
        job.finish(text, error)
        self._ended.append(job)
        for other in self.answers.ended(job):
            if other.answer is None:
                self._incoming.appendleft(other)
                self._expect(other)
            else:
                self._ended.append(other)

    def _take_out(self, job: Job) -> None:
        """From wherever it is; one that waits for an equal one's answer is nowhere here."""
        if self._jobs.pop(job.sequence, None):
            self.scheduler.finish(job.sequence)
        elif job in self._incoming:
            self._incoming.remove(job)
        else:
            return
        if job.key is not None:
            self._reading.discard(job.key)

    # ---- memory ran out

    def _recover(self) -> None:
        """After a while without a shortage, try twice as much at once."""
        self._good_steps += 1
        if self._good_steps % RECOVERY_STEPS == 0:
            scheduler, spec = self.scheduler, self.spec
            scheduler.most_running = min(spec.batch_size, 2 * scheduler.most_running)
            scheduler.prefill_chunk = min(spec.prefill_chunk, 2 * scheduler.prefill_chunk)

    def _undo_decodes(self, sequences: list[Scheduled], failure: str) -> None:
        """Half of the sequences, the newest, wait again."""
        running = [s for s in sequences if s in self._jobs]
        for sequence in running:
            sequence.launched -= 1
        if not running:
            return
        if len(running) == 1:
            self._end(self._jobs[running[0]], error=too_large(self._jobs[running[0]].request).error)
            return
        self.scheduler.most_running = len(running) // 2
        for sequence in reversed(running[len(running) // 2 :]):
            self._send_back(sequence)
        self._note(len(running), len(running) // 2, failure)

    def _undo_chunks(self, chunks: list[Chunk], failure: str) -> None:
        """The prompts are read from where they were, in smaller parts."""
        chunks = [chunk for chunk in chunks if chunk.sequence in self._jobs]
        tokens = sum(chunk.stop - chunk.start for chunk in chunks)
        if len(chunks) == 1 and tokens <= LEAST_CHUNK:
            job = self._jobs[chunks[0].sequence]
            self._end(job, error=too_large(job.request).error)
            self._no_single_reads()
            return
        for chunk in chunks:
            chunk.sequence.read, chunk.sequence.launched = chunk.start, 0
        first = chunks[0].stop - chunks[0].start  # alone next time
        self.scheduler.prefill_chunk = (
            max(LEAST_CHUNK, tokens // 2) if tokens > LEAST_CHUNK else first
        )
        self._note(len(chunks), max(1, len(chunks) // 2), failure)

    def _send_back(self, sequence: Scheduled) -> None:
        self.scheduler.preempt(sequence)
        self._jobs[sequence].read_again()

    def _note(self, tried: int, went_on_with: int, failure: str) -> None:
        if not self.halve_on_oom:
            raise DeviceMemoryError(f"batch of {tried}: {failure}")
        event = {"event": "oom", "batch_size": tried, "continued_with": went_on_with}
        self.events.append(event)


def _work_of(chunks: list[Chunk]) -> Work:
    """Of prompt tokens: squares are of tokens attended to, so that chunks of a prompt add up."""
    tokens = sum(chunk.stop - chunk.start for chunk in chunks)
    squared = sum(chunk.stop**2 - chunk.start**2 for chunk in chunks)
    return Work(
        batches=1,
        prompt_tokens=tokens,
        prompt_tokens_squared=squared,
        padded_tokens=tokens,
        padded_tokens_squared=squared,
    )
