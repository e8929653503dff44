"""What stage marks cost: ``python tests/engine/measure_marks.py --model random:8b --rounds 20``.

Every round generates the same answers three ways, in a random order: without marks, with marks
that nobody hears, with marks that fill the stage table. The time of each is divided by the first's
in the same round; printed are the median over the rounds and its 95% interval.
"""

from __future__ import annotations

import argparse
import random
import time
from contextlib import nullcontext
from typing import Any

import torch

import qvl_lab as ql
from qvl_lab.analysis.stats import estimate
from qvl_lab.engine.images import resize
from qvl_lab.engine.marks import StepWatch, marks
from qvl_lab.engine.model import base_dtype
from qvl_lab.engine.stock import Lab
from qvl_lab.probe.stages import Recorder, end, listening, totals
from qvl_lab.workload import decode_image, load_workload


class Unmarked(StepWatch):
    """Looks at the scores as always, and marks nothing."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.finite &= torch.isfinite(scores.amax(-1))
        return scores


def inputs_of(lab: Lab, batch_size: int, side: int) -> dict[str, torch.Tensor]:
    """One batch of packaged images on the device."""
    requests = [
        lab._request(index, item, ql.ImagePolicy(resolution=side))
        for index, item in enumerate(load_workload("mixed").sample(batch_size).items)
    ]
    pictures = [resize(decode_image(r.image, ql.ImagePolicy()), r.size) for r in requests]
    inputs = {k: v.to(lab.loaded.device) for k, v in lab._inputs(pictures, requests).items()}
    return inputs | {"pixel_values": inputs["pixel_values"].to(base_dtype(lab.spec))}


def seconds(lab: Lab, inputs: dict[str, torch.Tensor], new_tokens: int, way: str) -> float:
    """Of one generation, until the device is idle and, for the table, the table is filled."""
    recorder = Recorder(cuda=lab.loaded.device.type == "cuda")
    watch = (Unmarked if way == "bare" else StepWatch)(inputs["input_ids"])
    heard: Any = listening(recorder) if way == "table" else nullcontext()
    hooks: Any = nullcontext() if way == "bare" else marks(lab.loaded.model)
    started = time.perf_counter()
    with torch.inference_mode(), heard, hooks:
        generate(lab, inputs, new_tokens, watch)
    totals(recorder.spans())
    return time.perf_counter() - started


def generate(lab: Lab, inputs: dict[str, torch.Tensor], new_tokens: int, watch: StepWatch) -> None:
    """Answer a batch as the stock engine does, and wait for the device."""
    lab.loaded.model.generate(
        **inputs,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        logits_processor=[watch],
    )
    end("sampling", gpu=True)
    end("decode", gpu=True)
    watch.finite.tolist()


def options(description: str, rounds: int) -> argparse.Namespace:
    """What the command line says about the batch."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=rounds)
    return parser.parse_args()


def main() -> None:
    args = options(__doc__.split("\n")[0], rounds=20)
    lab = ql.load(args.model)
    inputs = inputs_of(lab, args.batch_size, args.resolution)
    ways = ["bare", "unheard", "table"]

    def run(way: str) -> float:
        return seconds(lab, inputs, args.max_new_tokens, way)

    for way in ways:  # warm up
        run(way)
    order = random.Random(0)
    ratios: dict[str, list[float]] = {"unheard": [], "table": []}
    for _ in range(args.rounds):
        took = {way: run(way) for way in order.sample(ways, len(ways))}
        for way, values in ratios.items():
            values.append(took[way] / took["bare"])
    for way, values in ratios.items():
        found = estimate(values)
        low, high = (
            f"{bound - 1:+.2%}" if bound else "unknown" for bound in (found.low, found.high)
        )
        print(f"{way}: {found.value - 1:+.2%} ({low} to {high}), {args.rounds} rounds")


if __name__ == "__main__":
    main()
