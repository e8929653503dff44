"""The stock engine: plain transformers, used as well as its documentation allows.

Batches are formed from requests of similar length, padded on the left, and answered with
``generate`` under inference mode; one by one is the same call with ``batch_size=1``. This is the
baseline of every comparison, so nothing here is faster than what a careful user would write.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from qvl_lab.backends.processor import (
    Answer,
    Generation,
    InputProcessor,
    Request,
    as_model_error,
    overflow,
    too_large,
)
from qvl_lab.config import EngineSpec, ImagePolicy, SamplingParams
from qvl_lab.errors import DeviceMemoryError, InputError
from qvl_lab.models.hooks import StepWatch, marks
from qvl_lab.models.load import base_dtype
from qvl_lab.models.memory import first_line, free, out_of_memory
from qvl_lab.probe.stages import Recorder, end, stage, totals
from qvl_lab.runs.records import Work
from qvl_lab.workloads.decode import decode_image
from qvl_lab.workloads.items import Item
from qvl_lab.workloads.resize import resize


class Stock:
    """Answers with transformers' ``generate``."""

    def __init__(self, reader: InputProcessor) -> None:
        self.reader, self.loaded = reader, reader.loaded

    def stream(
        self,
        items: Sequence[Item],
        engine: EngineSpec,
        policy: ImagePolicy,
        result: Generation,
        recorder: Recorder,
        halve: bool,
        max_batches: int | None = None,
    ) -> Iterator[tuple[int, Answer]]:
        """Yield (index, answer) as batches finish; ``result`` gathers times and events.

        ``max_batches`` ends it after so many.
        """
        size = engine.batch_size
        for requests, refused in self.reader.windows(items, policy):
            yield from refused
            requests.sort(key=lambda r: r.length, reverse=True)  # an OOM then shows early
            self._note(result, recorder)
            while requests:
                batch, requests = requests[:size], requests[size:]
                try:
                    done = self._answer(batch, engine, policy, result)
                except Exception as e:
                    if not out_of_memory(e):
                        raise as_model_error(e) from e
                    failure = first_line(e)
                else:
                    yield from self._finish(done, result, recorder)
                    if max_batches and len(result.batch_s) >= max_batches:
                        return
                    continue
                recorder.forget()
                free(self.loaded.spec.device)
                if not halve:
                    raise DeviceMemoryError(f"batch of {len(batch)}: {failure}")
                if len(batch) == 1:
                    yield batch[0].index, too_large(batch[0])
                    continue
                size = (len(batch) + 1) // 2
                result.events.append(
                    {"event": "oom", "batch_size": len(batch), "continued_with": size}
                )
                requests = batch + requests

    def _answer(
        self,
        batch: Sequence[Request],
        engine: EngineSpec,
        policy: ImagePolicy,
        result: Generation,
    ) -> list[tuple[Request, Answer]]:
        """Decode, preprocess, generate and detokenize one batch; ``result`` hears of the work."""
        started = time.perf_counter()
        failed: list[tuple[Request, Answer]] = []
        requests: list[Request] = []
        pictures: list[Image.Image] = []
        for request in batch:  # one full-size image in memory at a time
            try:
                with stage("decode_image", bytes=request.encoded_bytes):
                    picture = decode_image(request.image, policy)
            except InputError as e:
                failed.append((request, Answer(id=request.item.id, error=str(e))))
                continue
            with stage("preprocess"):
                pictures.append(resize(picture, request.size))
            requests.append(request)
        if not requests:
            return failed
        with stage("preprocess") as preprocess:
            inputs = self.inputs(pictures, requests)
            preprocess.amounts["bytes"] = inputs["pixel_values"].nbytes
        prompt_tokens = inputs["attention_mask"].sum(1).tolist()
        patches = inputs["image_grid_thw"].prod(1).tolist()
        with stage("transfer", bytes=sum(value.nbytes for value in inputs.values())):
            inputs = {name: value.to(self.loaded.device) for name, value in inputs.items()}
            inputs["pixel_values"] = inputs["pixel_values"].to(base_dtype(self.loaded.spec))
        tokens, finite = self._generate(inputs, engine)
        with stage("detokenize", tokens=tokens.numel()):
            texts = self.loaded.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        latency_s = time.perf_counter() - started
        result.work += _work(patches, prompt_tokens, inputs["input_ids"].shape[1], tokens.shape[1])
        answers = []
        for row, request in enumerate(requests):
            count = self._count(tokens[row])
            error = None if finite[row] else overflow(self.loaded.spec.precision)
            answer = Answer(
                id=request.item.id,
                text=None if error else texts[row].strip(),
                error=error,
                prompt_tokens=prompt_tokens[row],
                visual_tokens=request.visual_tokens,
                new_tokens=count,
                latency_s=latency_s,
            )
            answers.append((request, answer))
        return failed + answers

    def inputs(
        self, pictures: list[Image.Image], requests: list[Request]
    ) -> dict[str, torch.Tensor]:
        """Tensors on the CPU: ``input_ids`` (batch, length), ``pixel_values`` (patches, 1536)."""
        loaded = self.loaded
        pad = loaded.tokenizer.convert_ids_to_tokens(loaded.model.config.image_token_id)
        texts = [r.text.replace(pad, pad * r.visual_tokens, 1) for r in requests]
        encoded = loaded.tokenizer(
            texts, padding=True, return_tensors="pt", add_special_tokens=False
        )
        pixels = loaded.image_processor(images=pictures, do_resize=False, return_tensors="pt")
        ids = encoded["input_ids"]
        return {
            "input_ids": ids,
            "attention_mask": encoded["attention_mask"],
            "mm_token_type_ids": (ids == loaded.model.config.image_token_id).int(),
            "pixel_values": pixels["pixel_values"],
            "image_grid_thw": pixels["image_grid_thw"],
        }

    def _generate(
        self, inputs: dict[str, torch.Tensor], engine: EngineSpec
    ) -> tuple[torch.Tensor, list[bool]]:
        """New token ids (batch, new) on the CPU, and per row whether all scores were finite."""
        static = engine.cache_implementation == "static"
        ids = inputs["input_ids"]
        watch = StepWatch(ids, sampling=not static)
        visual = len(inputs["pixel_values"]) // self.loaded.image_processor.merge_size**2
        amounts = {"vision": {"tokens": visual}, "prefill": {"tokens": ids.numel()}}
        sampling = SamplingParams.of(engine, self.loaded.random_weights)
        options: dict[str, Any] = {}
        if static:
            options["cache_implementation"] = "static"
        with torch.inference_mode(), marks(self.loaded.model, steps=not static, **amounts):
            sequences = self.loaded.model.generate(
                **inputs,
                max_new_tokens=sampling.max_new_tokens,
                min_new_tokens=sampling.min_new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                logits_processor=[watch],
                **options,
            )
            end("sampling", gpu=True)
            end("decode", gpu=True, tokens=len(ids) * (watch.steps - 1))
        finite = watch.finite.tolist()
        return sequences[:, ids.shape[1] :].cpu(), finite

    def _count(self, tokens: torch.Tensor) -> int:
        """Tokens up to and including the first end-of-sequence token."""
        ended = torch.isin(tokens, torch.tensor(self.reader.stops)).nonzero()
        return int(ended[0]) + 1 if len(ended) else len(tokens)

    @staticmethod
    def _note(result: Generation, recorder: Recorder) -> float | None:
        """Add the recorder's spans to the result; returns when the prefill ended, if it did."""
        spans = recorder.spans()
        totals(spans, into=result.totals)
        first_token_s = next((span.end_s for span in spans if span.path == "prefill"), None)
        if first_token_s is None:
            return None
        return first_token_s - min(span.start_s for span in spans)

    def _finish(
        self, done: list[tuple[Request, Answer]], result: Generation, recorder: Recorder
    ) -> Iterator[tuple[int, Answer]]:
        ttft_s = self._note(result, recorder)
        result.batch_s.extend({a.latency_s for _, a in done if a.latency_s is not None})
        for request, answer in done:
            yield request.index, replace(answer, ttft_s=ttft_s if answer.text is not None else None)


def _work(patches: list[int], prompts: list[int], length: int, new: int) -> Work:
    """Of a batch: patches of each image, tokens of each prompt, of all padded, and generated."""
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
