"""Stages beside bare modules: ``python tests/engine/measure_modules.py --model random:8b``.

The vision tower, the prefill and the decoding steps are timed alone, called by hand with the same
inputs between CUDA events (on a CPU, between readings of the clock), and printed beside what the
stage table says about the same batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from measure_marks import generate, inputs_of, options
from transformers import DynamicCache

import qvl_lab as ql
from qvl_lab.engine.marks import StepWatch, marks
from qvl_lab.engine.stock import Lab
from qvl_lab.probe.stages import Recorder, listening, totals


def seconds(work: Callable[[], Any], cuda: bool) -> float:
    """Of a call, from the device's point of view."""
    if not cuda:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    torch.cuda.synchronize()
    events[0].record()
    work()
    events[1].record()
    torch.cuda.synchronize()
    return float(events[0].elapsed_time(events[1])) / 1e3


def bare(lab: Lab, inputs: dict[str, torch.Tensor], new_tokens: int) -> dict[str, float]:
    """Seconds of the tower, of the language model over the prompt, and of its steps."""
    model, cuda = lab.loaded.model, lab.loaded.device.type == "cuda"
    pixels, grid = inputs["pixel_values"], inputs["image_grid_thw"]
    tower = seconds(lambda: model.model.visual(pixels, grid_thw=grid), cuda)
    cache, scores = DynamicCache(config=model.config.get_text_config()), None

    def prompt() -> None:
        nonlocal scores
        scores = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits

    def step() -> None:
        nonlocal scores, mask
        token = scores[:, -1].argmax(-1, keepdim=True)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        out = model(
            input_ids=token,
            attention_mask=mask,
            # where exactly makes no difference to the time
            position_ids=token.new_full((3, len(token), 1), mask.shape[1] - 1),
            past_key_values=cache,
            use_cache=True,
        )
        scores = out.logits

    mask = inputs["attention_mask"]
    prefill = seconds(prompt, cuda) - tower  # the model runs its tower too
    decode = seconds(lambda: [step() for _ in range(new_tokens - 1)], cuda)
    return {"vision": tower, "prefill": prefill, "decode": decode}


def staged(lab: Lab, inputs: dict[str, torch.Tensor], new_tokens: int) -> dict[str, float]:
    """The same from the marks around ``generate``."""
    recorder = Recorder(cuda=lab.loaded.device.type == "cuda")
    watch = StepWatch(inputs["input_ids"])
    with listening(recorder), marks(lab.loaded.model):
        generate(lab, inputs, new_tokens, watch)
    return {path: total.seconds for path, total in totals(recorder.spans()).items()}


def main() -> None:
    args = options(__doc__.split("\n")[0], rounds=5)
    lab = ql.load(args.model)
    inputs = inputs_of(lab, args.batch_size, args.resolution)
    found: dict[str, list[dict[str, float]]] = {"bare": [], "staged": []}
    with torch.inference_mode():
        for i in range(args.rounds + 1):
            for name, measure in (("bare", bare), ("staged", staged)):
                values = measure(lab, inputs, args.max_new_tokens)
                found[name] += [values] if i else []  # the first round warms up
    for stage in ("vision", "prefill", "decode"):
        alone, inside = (median(v[stage] for v in found[name]) for name in ("bare", "staged"))
        print(f"{stage}: bare {alone:.4f} s, staged {inside:.4f} s, {inside / alone - 1:+.1%}")
    parts = {path: median(v[path] for v in found["staged"]) for path in found["staged"][0]}
    print({path: round(s, 4) for path, s in sorted(parts.items())})


if __name__ == "__main__":
    main()
