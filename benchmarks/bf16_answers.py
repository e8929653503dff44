"""Where the fast engine's answers leave stock's: ``python benchmarks/bf16_answers.py``.

Greedy answers of both engines to the same requests, at the model's own precision. At the first
token that differs, stock's score of its token less its score of the other tells how sure stock
was. How sure it may be is measured too: for every generated token the gap between the two best
scores is taken again from the same weights in fp32, and the difference is the precision's error.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import qvl_lab as ql
from qvl_lab.backends.base import Request
from qvl_lab.backends.fast.engine import Engine
from qvl_lab.config import Fast, ImagePolicy, SamplingParams
from qvl_lab.workloads.decode import decode_image
from qvl_lab.workloads.resize import resize
from qvl_lab.workloads.sources import load_workload


@dataclass(frozen=True)
class Compared:
    """One request: what stock was given, what both answered, stock's two best tokens each time.

    ``best`` and ``gap`` are (tokens, 2) and (tokens,); ``parting`` is the first place that
    differs, and stock's score there less that of the fast engine's token.
    """

    inputs: dict[str, Tensor]
    stock: list[int]
    best: Tensor
    gap: Tensor
    parting: tuple[int, float] | None


def compare(
    lab: Any, inputs: dict[str, Tensor], sampling: SamplingParams, fast: list[int]
) -> Compared:
    out = lab.loaded.model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=sampling.max_new_tokens,
        min_new_tokens=sampling.min_new_tokens,
    )
    stock = out[0, inputs["input_ids"].shape[1] :].tolist()[: len(fast)]
    found = scores(lab, inputs, stock)
    best = found.topk(2)
    places = [i for i, (a, b) in enumerate(zip(stock, fast, strict=False)) if a != b]
    parting = None
    if places:
        row = found[places[0]]
        parting = places[0], (row[stock[places[0]]] - row[fast[places[0]]]).item()
    return Compared(inputs, stock, best.indices, best.values[:, 0] - best.values[:, 1], parting)


def scores(lab: Any, inputs: dict[str, Tensor], answer: list[int]) -> Tensor:
    """Of every token of an answer, given those before it, (tokens, vocabulary)."""
    more = torch.tensor([answer[:-1]], dtype=torch.int64, device=lab.loaded.device)
    given = dict(inputs)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        filled = {"input_ids": more, "attention_mask": torch.ones_like(more)}
        given[name] = torch.cat([inputs[name], filled.get(name, torch.zeros_like(more))], 1)
    logits: Tensor = lab.loaded.model(**given, logits_to_keep=len(answer)).logits[0]
    return logits.double()


def fast_answers(
    lab: Any,
    requests: list[Request],
    spec: Fast,
    policy: ImagePolicy,
    sampling: SamplingParams,
) -> list[list[int]]:
    lengths = [lab.processor.num_tokens(r) + sampling.max_new_tokens for r in requests]
    engine = Engine(lab.processor, spec, policy, sum(lengths) + 16 * len(lengths), max(lengths))
    sequences = [engine.add_request(request, sampling) for request in requests]
    while engine.busy:
        engine.step()
    engine.close()
    return [sequence.output_ids for sequence in sequences]


def errors(lab: Any, compared: list[Compared]) -> Tensor:
    """By how much each gap between the two best scores is off, measured in fp32; sorted."""
    lab.loaded.model.float()
    found = []
    for one in compared:
        inputs = {n: t.float() if t.is_floating_point() else t for n, t in one.inputs.items()}
        exact = scores(lab, inputs, one.stock).gather(1, one.best)
        found.append((exact[:, 0] - exact[:, 1] - one.gap).abs())
    return torch.cat(found).sort().values


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
    spec = Fast(
        batch_size=given.items, sampling=SamplingParams(max_new_tokens=given.max_new_tokens)
    )
    sampling = spec.sampling.resolved(lab.loaded.random_weights)
    items = load_workload(given.workload).sample(given.items, 0).items
    requests = [lab.processor.request(i, item, policy) for i, item in enumerate(items)]
    requests = [request for request in requests if isinstance(request, Request)]
    answers = fast_answers(lab, requests, spec, policy, sampling)
    compared = []
    with torch.inference_mode():
        for request, answer in zip(requests, answers, strict=True):
            picture = resize(decode_image(request.image, policy), request.size)
            inputs = dict(lab.stock.inputs([picture], [request]).items())
            inputs = {name: tensor.to(lab.loaded.device) for name, tensor in inputs.items()}
            compared.append(compare(lab, inputs, sampling, answer))
        off = errors(lab, compared)
    same = sum(one.parting[0] if one.parting else len(one.stock) for one in compared)
    gaps = sorted(one.parting[1] for one in compared if one.parting)
    print(f"{len(compared)} answers, {given.model} in {given.precision}")
    print(f"  {len(gaps)} part from stock's, one in {same / max(1, len(gaps)):.0f} tokens")
    print("  stock's score less the other's there:", " ".join(f"{gap:.4f}" for gap in gaps))
    at = {share: off[int(share * (len(off) - 1))].item() for share in (0.5, 0.95, 1.0)}
    print(
        f"  {given.precision}'s error in the gap of the two best, of {len(off)} tokens: "
        + ", ".join(f"{share:.0%} at most {value:.4f}" for share, value in at.items())
    )


if __name__ == "__main__":
    main()
