"""Stages beside bare modules: ``python benchmarks/stages_vs_modules.py --model random:8b``.

The vision tower, the prefill and the decoding steps are timed alone, called by hand with the same
inputs between CUDA events (on a CPU, between readings of the clock), and printed beside what the
stage table says about the same batch. The stage ``decode`` holds more than its steps: what
``generate`` does between them is printed apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from measure_marks import Inputs, generate, inputs_of, parser
from transformers import DynamicCache

import qvl_lab as ql
from qvl_lab.models.hooks import StepWatch, marks
from qvl_lab.probe.stages import Recorder, listening, totals

#: What runs a bare module in the stage table.
STAGES = {
    "vision": ("vision",),
    "prefill": ("prefill",),
    "decode": ("decode/layers", "decode/lm_head"),
}


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


def bare(lab: Any, inputs: Inputs, new_tokens: int) -> dict[str, float]:
    """Seconds of the tower, of the language model over the prompt, and of its steps.

    A step is the language model's layers and the LM head, nothing else, and the device is waited
    for after each: ``generate`` does so too, to know whether to stop.
    """
    model, cuda = lab.loaded.model, lab.loaded.device.type == "cuda"
    pixels, grid, mask = (
        inputs[name] for name in ("pixel_values", "image_grid_thw", "attention_mask")
    )
    tower = seconds(lambda: model.model.visual(pixels, grid_thw=grid), cuda)
    cache = DynamicCache(config=model.config.get_text_config())
    prompt = partial(model, **inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    prefill = seconds(prompt, cuda) - tower  # the model runs its tower too
    # which token and where exactly makes no difference to the time
    token = model.get_input_embeddings()(inputs["input_ids"][:, -1:])

    def step(mask: torch.Tensor, place: torch.Tensor) -> None:
        out = model.model.language_model(
            inputs_embeds=token,
            attention_mask=mask,
            position_ids=place,
            past_key_values=cache,
            use_cache=True,
        )
        model.lm_head(out.last_hidden_state)

    decode = 0.0
    for _ in range(new_tokens - 1):  # the prompt gave the first
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        place = mask.new_full((3, len(mask), 1), mask.shape[1] - 1)
        decode += seconds(partial(step, mask, place), cuda)
    return {"vision": tower, "prefill": prefill, "decode": decode}


def staged(lab: Any, inputs: Inputs, new_tokens: int) -> dict[str, float]:
    """The same from the marks around ``generate``."""
    recorder = Recorder(cuda=lab.loaded.device.type == "cuda")
    watch = StepWatch(inputs["input_ids"])
    with listening(recorder), marks(lab.loaded.model):
        generate(lab, inputs, new_tokens, watch)
    return {path: total.seconds for path, total in totals(recorder.spans()).items()}


def report(alone: dict[str, float], marked: dict[str, float]) -> None:
    """Print bare modules beside the stages that run them, and what ``generate`` adds."""
    for name, parts in STAGES.items():
        inside = sum(marked[part] for part in parts)
        print(
            f"{name}: bare {alone[name]:.4f} s, {' + '.join(parts)} {inside:.4f} s, "
            f"{inside / alone[name] - 1:+.1%}"
        )
    sampling = marked["decode/sampling"]
    added = marked["decode"] - sum(marked[part] for part in STAGES["decode"])
    print(
        f"generate adds {added:.4f} s to decode: sampling {sampling:.4f} s, the rest, such as "
        f"embeddings, positions and logits processors, {added - sampling:.4f} s"
    )
    print({path: round(s, 4) for path, s in sorted(marked.items())})


def main() -> None:
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--resolution", type=int, default=512)
    options.add_argument("--max-new-tokens", type=int, default=32)
    options.add_argument("--rounds", type=int, default=5)
    args = options.parse_args()
    lab = ql.load(args.model)
    inputs = inputs_of(lab, args.batch_size, args.resolution)
    found: dict[str, list[dict[str, float]]] = {"bare": [], "staged": []}
    with torch.inference_mode():
        for i in range(args.rounds + 1):
            for name, measure in (("bare", bare), ("staged", staged)):
                values = measure(lab, inputs, args.max_new_tokens)
                found[name] += [values] if i else []  # the first round warms up
    alone, marked = (
        {path: median(values[path] for values in all_rounds) for path in all_rounds[0]}
        for all_rounds in found.values()
    )
    report(alone, marked)


if __name__ == "__main__":
    main()
