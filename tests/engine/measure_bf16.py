"""Where the fast engine's answers leave stock's: ``python tests/engine/measure_bf16.py``.

Greedy answers of both engines to the same requests, at the model's own precision. At the first
token that differs, stock's scores of the two tokens are compared: a difference of a few units in
the last place of bf16 is one that the order of additions decides.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch

import qvl_lab as ql
from qvl_lab.config import EngineSpec, ImagePolicy
from qvl_lab.engine.images import resize
from qvl_lab.engine.loop import Engine
from qvl_lab.engine.requests import Request, Sampling
from qvl_lab.workload import decode_image, load_workload

FRACTION_BITS = 7  # of bf16


@dataclass(frozen=True)
class Parting:
    """The first token that differs: stock's score less that of the other token, and their unit."""

    place: int
    gap: float
    unit: float


def stock_tokens(lab: Any, inputs: dict[str, torch.Tensor], sampling: Sampling) -> list[int]:
    out = lab.loaded.model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=sampling.max_new_tokens,
        min_new_tokens=sampling.min_new_tokens,
    )
    return out[0, inputs["input_ids"].shape[1] :].tolist()


def parting(
    lab: Any, inputs: dict[str, torch.Tensor], stock: list[int], fast: list[int]
) -> Parting | None:
    """None if the answers are the same."""
    pairs = list(zip(stock, fast, strict=False))
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if place is None:
        return None
    more = torch.tensor([stock[:place]], dtype=torch.int64, device=lab.loaded.device)
    given = dict(inputs)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        filled = {"input_ids": more, "attention_mask": torch.ones_like(more)}
        given[name] = torch.cat([inputs[name], filled.get(name, torch.zeros_like(more))], 1)
    scores = lab.loaded.model(**given, logits_to_keep=1).logits[0, -1].double()
    a, b = scores[stock[place]], scores[fast[place]]
    unit = 2.0 ** (a.abs().log2().floor().item() - FRACTION_BITS)
    return Parting(place, (a - b).item(), unit)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", default="tiny")
    options.add_argument("--precision", default="bf16")
    options.add_argument("--workload", default="evaluation")
    options.add_argument("--items", type=int, default=64)
    options.add_argument("--resolution", type=int, default=512)
    options.add_argument("--max-new-tokens", type=int, default=40)
    given = options.parse_args()
    lab = ql.load(given.model, precision=given.precision)
    policy = ImagePolicy(resolution=given.resolution)
    spec = EngineSpec(engine="fast", batch_size=given.items, max_new_tokens=given.max_new_tokens)
    sampling = Sampling.of(spec, lab.loaded.random_weights)
    items = load_workload(given.workload).sample(given.items, 0).items
    requests = [lab.reader.request(i, item, policy) for i, item in enumerate(items)]
    requests = [request for request in requests if isinstance(request, Request)]
    lengths = [lab.reader.length(r) + given.max_new_tokens for r in requests]
    engine = Engine(lab.reader, spec, policy, sum(lengths) + 16 * len(lengths), max(lengths))
    jobs = [engine.add_request(request, sampling) for request in requests]
    while engine.busy:
        engine.step()
    partings, tokens = [], 0
    with torch.inference_mode():
        for request, job in zip(requests, jobs, strict=True):
            picture = resize(decode_image(request.image, policy), request.size)
            inputs = dict(lab.stock.inputs([picture], [request]).items())
            inputs = {name: tensor.to(lab.loaded.device) for name, tensor in inputs.items()}
            stock = stock_tokens(lab, inputs, sampling)
            stock = stock[: len(job.tokens)] if len(stock) > len(job.tokens) else stock
            tokens += len(stock)
            found = parting(lab, inputs, stock, job.tokens)
            partings += [found] if found else []
    print(f"{len(requests)} answers, {tokens} tokens, {given.model} {given.precision}")
    print(f"  {len(partings)} answers part, {len(partings) / tokens:.2%} of tokens")
    units = sorted(round(p.gap / p.unit, 2) for p in partings)
    print(f"  stock's score less the other's there, in units of bf16's last place: {units}")


if __name__ == "__main__":
    main()
