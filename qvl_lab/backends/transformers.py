"""The stock backend: plain transformers, used as well as its documentation allows.

Batches are formed from requests of similar length, padded on the left, and answered with
``generate`` under inference mode; one by one is the same call with ``batch_size=1``. This is the
baseline of every comparison, so nothing here is faster than what a careful user would write.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from qvl_lab.backends.base import Answer, BackendStats, Request
from qvl_lab.backends.failures import halving_event, memory_shortage, overflow, too_large
from qvl_lab.backends.processor import InputProcessor
from qvl_lab.config import EngineSpec, ImagePolicy, SamplingParams, Transformers
from qvl_lab.errors import InputError
from qvl_lab.models.hooks import StepWatch, marks
from qvl_lab.models.load import base_dtype
from qvl_lab.models.memory import free
from qvl_lab.probe.stages import Recorder, end, stage, totals
from qvl_lab.runs.records import Work
from qvl_lab.workloads.decode import decode_image
from qvl_lab.workloads.items import Item
from qvl_lab.workloads.resize import resize


class TransformersBackend:
    """Answers with transformers' ``generate``; see ``Backend``.

    Parameters
    ----------
    processor : InputProcessor
    make_room : callable, optional
        Called when memory runs out. If it returns True, memory was given back elsewhere, and the
        batch is tried again before it is halved.
    """

    def __init__(
        self, processor: InputProcessor, make_room: Callable[[], bool] = lambda: False
    ) -> None:
        self.processor, self.loaded = processor, processor.loaded
        self._make_room = make_room
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
        """Yield (index, answer) as batches finish; see ``Backend``.

        Work on a request starts with the batch that answers it.
        """
        if handed_over_s is None:
            handed_over_s = time.perf_counter()
        stats = self._stats = BackendStats()
        sampling = sampling or spec.sampling.resolved(self.loaded.random_weights)
        size = stats.batch_size = spec.most_at_once
        for requests, refused in self.processor.windows(items, policy):
            yield from refused
            requests.sort(key=lambda r: r.length, reverse=True)  # an OOM then shows early
            totals(recorder.spans(), into=stats.totals)
            while requests:
                batch, requests = requests[:size], requests[size:]
                done: list[tuple[Request, Answer]] = []
                started_s = time.perf_counter()
                failure = memory_shortage(self._answer, batch, spec, policy, sampling, done)
                if failure is None:
                    yield from self._finish(done, recorder, handed_over_s, started_s)
                    if max_batches and len(stats.batch_s) >= max_batches:
                        return
                    continue
                recorder.forget()
                free(self.loaded.spec.device)
                if self._make_room():
                    requests = batch + requests
                elif halve_on_oom and len(batch) == 1:
                    yield batch[0].index, too_large(batch[0])
                else:
                    size = (len(batch) + 1) // 2
                    stats.events.append(halving_event(len(batch), size, failure, halve_on_oom))
                    requests = batch + requests

    def stats(self) -> BackendStats:
        """What the latest stream took; ``batch_s`` has one value per batch."""
        return self._stats

    def clear_caches(self) -> None:
        """There are none between calls."""

    def close(self) -> None:
        """Nothing is held between calls but the model, which is not this backend's."""

    def _answer(
        self,
        batch: Sequence[Request],
        spec: Transformers,
        policy: ImagePolicy,
        sampling: SamplingParams,
        done: list[tuple[Request, Answer]],
    ) -> None:
        """Decode, preprocess, generate and detokenize one batch; answers are added to ``done``."""
        requests, resized = [], []
        for request in batch:  # one full-size image in memory at a time
            try:
                with stage("decode_image", bytes=request.encoded_bytes):
                    picture = decode_image(request.image, policy)
            except InputError as e:
                done.append((request, Answer(id=request.item.id, error=str(e))))
                continue
            with stage("preprocess"):
                resized.append(resize(picture, request.size))
            requests.append(request)
        if not requests:
            return
        with stage("preprocess") as preprocess:
            inputs = self.inputs(resized, requests)
            preprocess.amounts["bytes"] = inputs["pixel_values"].nbytes
        prompt_tokens = inputs["attention_mask"].sum(1).tolist()
        patches = inputs["image_grid_thw"].prod(1).tolist()
        with stage("transfer", bytes=sum(value.nbytes for value in inputs.values())):
            inputs = {name: value.to(self.loaded.device) for name, value in inputs.items()}
            inputs["pixel_values"] = inputs["pixel_values"].to(base_dtype(self.loaded.spec))
        tokens, finite = self._generate(inputs, spec, sampling)
        with stage("detokenize", tokens=tokens.numel()):
            texts = self.loaded.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        self._stats.work += _work(
            patches, prompt_tokens, inputs["input_ids"].shape[1], tokens.shape[1]
        )
        for row, request in enumerate(requests):
            error = None if finite[row] else overflow(self.loaded.spec.precision)
            answer = Answer(
                id=request.item.id,
                text=None if error else texts[row].strip(),
                error=error,
                prompt_tokens=prompt_tokens[row],
                visual_tokens=request.visual_tokens,
                image_size=request.size,
                new_tokens=self._count(tokens[row]),
            )
            done.append((request, answer))

    def inputs(
        self, resized: list[Image.Image], requests: list[Request]
    ) -> dict[str, torch.Tensor]:
        """Tensors on the CPU: ``input_ids`` (batch, length), ``pixel_values`` (patches, 1536)."""
        loaded = self.loaded
        pad = loaded.tokenizer.convert_ids_to_tokens(loaded.model.config.image_token_id)
        texts = [r.text.replace(pad, pad * r.visual_tokens, 1) for r in requests]
        encoded = loaded.tokenizer(
            texts, padding=True, return_tensors="pt", add_special_tokens=False
        )
        pixels = loaded.image_processor(images=resized, do_resize=False, return_tensors="pt")
        ids = encoded["input_ids"]
        return {
            "input_ids": ids,
            "attention_mask": encoded["attention_mask"],
            "mm_token_type_ids": (ids == loaded.model.config.image_token_id).int(),
            "pixel_values": pixels["pixel_values"],
            "image_grid_thw": pixels["image_grid_thw"],
        }

    def _generate(
        self, inputs: dict[str, torch.Tensor], spec: Transformers, sampling: SamplingParams
    ) -> tuple[torch.Tensor, list[bool]]:
        """New token ids (batch, new) on the CPU, and per row whether all scores were finite."""
        static = spec.cache_implementation == "static"
        ids = inputs["input_ids"]
        watch = StepWatch(ids, sampling=not static)
        visual = len(inputs["pixel_values"]) // self.loaded.image_processor.merge_size**2
        amounts = {"vision": {"tokens": visual}, "prefill": {"tokens": ids.numel()}}
        options = _generate_options(sampling)
        if static:
            options["cache_implementation"] = "static"
        with (
            torch.inference_mode(),
            _seeded(sampling, self.loaded.device),
            marks(self.loaded.model, steps=not static, **amounts),
        ):
            sequences = self.loaded.model.generate(
                **inputs,
                logits_processor=[watch],
                **options,
            )
            end("sampling", gpu=True)
            end("decode", gpu=True, tokens=len(ids) * (watch.steps - 1))
        finite = watch.finite.tolist()
        return sequences[:, ids.shape[1] :].cpu(), finite

    def _count(self, tokens: torch.Tensor) -> int:
        """Tokens up to and including the first end-of-sequence token."""
        ended = torch.isin(tokens, torch.tensor(self.processor.stop_token_ids)).nonzero()
        return int(ended[0]) + 1 if len(ended) else len(tokens)

    def _finish(
        self,
        done: list[tuple[Request, Answer]],
        recorder: Recorder,
        handed_over_s: float,
        started_s: float,
    ) -> Iterator[tuple[int, Answer]]:
        """Sum up the batch's stages, and yield its answers with their times."""
        spans = recorder.spans()
        totals(spans, into=self._stats.totals)
        prefill_end_s = next((span.end_s for span in spans if span.path == "prefill"), None)
        ended_s = time.perf_counter()
        if any(answer.prompt_tokens for _, answer in done):  # some reached the model
            self._stats.batch_s.append(ended_s - started_s)
        ttft_s = None if prefill_end_s is None else prefill_end_s - handed_over_s
        for request, answer in done:
            if answer.text is not None:
                answer = replace(
                    answer,
                    queue_s=started_s - handed_over_s,
                    ttft_s=ttft_s,
                    e2e_s=ended_s - handed_over_s,
                )
            yield request.index, answer


def _generate_options(sampling: SamplingParams) -> dict[str, Any]:
    """Options of ``generate``, all said so that none comes from the model's own config."""
    drawn = sampling.do_sample
    return {
        "max_new_tokens": sampling.max_new_tokens,
        "min_new_tokens": sampling.min_new_tokens,
        "do_sample": drawn,
        "temperature": sampling.temperature if drawn else None,
        "top_p": sampling.top_p if drawn else None,
        "top_k": (sampling.top_k or 0) if drawn else None,
        "repetition_penalty": sampling.repetition_penalty,
    }


@contextmanager
def _seeded(sampling: SamplingParams, device: torch.device) -> Iterator[None]:
    """Seed torch while the block runs, if the sampling has a seed; its random states come back."""
    if not sampling.do_sample or sampling.seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(sampling.seed)
        yield


def _work(patches: list[int], prompts: list[int], length: int, new: int) -> Work:
    """The work of a batch.

    Parameters
    ----------
    patches, prompts : list of int
        Patches of each image, tokens of each prompt.
    length, new : int
        Tokens of the longest prompt, and generated tokens of each.
    """
    rows, steps = len(prompts), max(0, new - 1)  # the prefill gives the first token
    return Work(
        images=len(patches),
        batches=1,
        patches=sum(patches),
        patches_squared=sum(n * n for n in patches),
        prompt_tokens=sum(prompts),
        prompt_tokens_squared=sum(n * n for n in prompts),
        padded_tokens=rows * length,
        padded_tokens_squared=rows * length**2,
        decode_steps=steps,
        decode_rows=rows * steps,
        context_tokens=rows * (steps * length + steps * (steps + 1) // 2),
    )
