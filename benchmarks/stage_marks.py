"""What stage marks cost: ``python benchmarks/stage_marks.py --model random:8b --seconds 300``.

Two parts, half of the time each; both print medians over rounds with a 95% interval.

- paired: every round generates the same answers three ways, in a random order: without marks, with
  marks that nobody hears, with marks that fill the stage table. The time of each is divided by the
  first's in the same round. Large prompts and few new tokens let the GPU set the pace: decoding is
  bound by kernel launches, and a host's noise hides what marks do there.
- direct: marks are counted in a generation with many new tokens, and as many are timed in a tight
  loop, on a module that does nothing else. Their time divided by that of the generation in the same
  round is an estimate of the CPU time that marks add: it leaves out what events cost the GPU, and a
  loop finds its caches warm. Where the CPU sets the pace, this is what throughput loses.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from statistics import median
from typing import Any
from unittest import mock

import torch
from scipy.stats import binom

import qvl_lab as ql
from qvl_lab.models.hooks import StepWatch, marks
from qvl_lab.probe.stages import Recorder, begin, end, listening, totals
from qvl_lab.workloads.sources import load_workload

Inputs = dict[str, torch.Tensor]
WAYS = ("unheard", "table")


class Unmarked(StepWatch):
    """Looks at the scores as always, and marks nothing."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.finite &= torch.isfinite(scores.amax(-1))
        return scores


class Count:
    """A listener that counts what it hears."""

    def __init__(self) -> None:
        self.marks = 0

    def begin(self, name: str, gpu: bool, **amounts: int) -> None:
        self.marks += 1

    end = begin


def inputs_of(lab: Any, batch_size: int, side: int) -> Inputs:
    """What the stock engine hands to ``generate`` for one batch of packaged images."""
    model, items = lab.loaded.model, load_workload("mixed").sample(batch_size).items
    with mock.patch.object(model, "generate", wraps=model.generate) as called:
        lab.generate_batch(
            items, batch_size=batch_size, resolution=side, max_new_tokens=1, engine="stock"
        )
    options = called.call_args.kwargs
    return {name: value for name, value in options.items() if isinstance(value, torch.Tensor)}


def generate(lab: Any, inputs: Inputs, new_tokens: int, watch: StepWatch) -> None:
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


def seconds(lab: Any, inputs: Inputs, new_tokens: int, way: str) -> float:
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


def counted(lab: Any, inputs: Inputs, new_tokens: int) -> int:
    """Marks of one generation, beginnings and ends."""
    count = Count()
    with torch.inference_mode(), listening(count), marks(lab.loaded.model):
        generate(lab, inputs, new_tokens, StepWatch(inputs["input_ids"]))
    return count.marks


def added_s(pairs: int, way: str, cuda: bool) -> float:
    """CPU seconds that so many pairs of marks add to a module's calls."""
    recorder, module = Recorder(cuda=cuda), torch.nn.Identity()
    heard: Any = listening(recorder) if way == "table" else nullcontext()
    unmarked_s = _calls_s(module, pairs)
    module.register_forward_pre_hook(lambda *_: begin("layers", gpu=True))
    module.register_forward_hook(lambda *_: end("layers", gpu=True))
    with heard:
        begin("decode", gpu=True)  # so that paths are nested, as they are in a model
        marked_s = _calls_s(module, pairs)
        end("decode", gpu=True)
    if cuda:
        torch.cuda.synchronize()  # a generation waits for its answers anyway
    started = time.perf_counter()
    totals(recorder.spans())
    return marked_s - unmarked_s + time.perf_counter() - started


def _calls_s(module: torch.nn.Module, calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        module(None)
    return time.perf_counter() - started


def rounds(work: Callable[[], dict[str, float]], budget_s: float) -> list[dict[str, float]]:
    """What ``work`` returns after a warm-up, as often as fits the time, once in any case.

    Python's garbage collector rests: it would strike one way or another at random.
    """
    found: list[dict[str, float]] = []
    started = time.perf_counter()
    work()
    longest_s = 0.0
    with _uncollected():
        while not found or time.perf_counter() - started + longest_s < budget_s:
            before = time.perf_counter()
            found.append(work())
            longest_s = max(longest_s, time.perf_counter() - before)
    return found


@contextmanager
def _uncollected() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95% of a median, whatever the distribution; None for fewer than six values.

    Between the k-th smallest and the k-th largest, k from the binomial distribution of how many
    values lie below the true median.
    """
    ordered = sorted(values)
    k = int(binom.ppf(0.025, len(ordered), 0.5))
    return (ordered[k - 1], ordered[-k]) if k else None


def percent(shares: Sequence[float]) -> str:
    """Their median and its interval."""
    found = interval(shares)
    bounds = f"{found[0]:+.3%} to {found[1]:+.3%}" if found else "interval unknown"
    return f"{median(shares):+.3%} ({bounds}), {len(shares)} rounds"


def parser(description: str) -> argparse.ArgumentParser:
    """Options that both measuring scripts have."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--model", default="tiny")
    made.add_argument("--batch-size", type=int, default=8)
    return made


def paired(lab: Any, args: argparse.Namespace) -> None:
    """Print by how much generations with marks take longer."""
    inputs, order = inputs_of(lab, args.batch_size, args.resolution), random.Random(0)

    def once() -> dict[str, float]:
        ways = order.sample(["bare", *WAYS], 1 + len(WAYS))
        return {way: seconds(lab, inputs, args.max_new_tokens, way) for way in ways}

    found = rounds(once, args.seconds / 2)
    bare_s = median(took["bare"] for took in found)
    print(
        f"paired: {args.resolution} px, {args.max_new_tokens} new tokens, {bare_s:.3f} s unmarked"
    )
    for way in WAYS:
        print(f"  {way}: {percent([took[way] / took['bare'] - 1 for took in found])}")


def direct(lab: Any, args: argparse.Namespace) -> None:
    """Print the CPU time of marks beside that of the generation they belong to."""
    cuda = lab.loaded.device.type == "cuda"
    inputs = inputs_of(lab, args.batch_size, args.direct_resolution)
    made = counted(lab, inputs, args.direct_max_new_tokens)
    order = random.Random(0)

    def once() -> dict[str, float]:
        took = {way: added_s((made + 1) // 2, way, cuda) for way in order.sample(WAYS, len(WAYS))}
        return took | {"bare": seconds(lab, inputs, args.direct_max_new_tokens, "bare")}

    found = rounds(once, args.seconds / 2)
    bare_s = median(took["bare"] for took in found)
    print(
        f"direct, an estimate of added CPU time: {args.direct_resolution} px, "
        f"{args.direct_max_new_tokens} new tokens, {bare_s:.3f} s unmarked, {made} marks"
    )
    for way in WAYS:
        each_us = 1e6 * median(took[way] for took in found) / made
        share = percent([took[way] / took["bare"] for took in found])
        print(f"  {way}: {each_us:.2f} us a mark, {share}")


def main() -> None:
    options = parser(__doc__.split("\n")[0])
    options.add_argument("--seconds", type=float, default=240.0, help="for both parts together")
    options.add_argument("--resolution", type=int, default=1024, help="of the paired part")
    options.add_argument("--max-new-tokens", type=int, default=2, help="of the paired part")
    options.add_argument("--direct-resolution", type=int, default=512)
    options.add_argument("--direct-max-new-tokens", type=int, default=32)
    args = options.parse_args()
    lab = ql.load(args.model)
    paired(lab, args)
    direct(lab, args)


if __name__ == "__main__":
    main()
