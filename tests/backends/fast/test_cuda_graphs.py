"""Steps for any number of rows, with and without CUDA graphs."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import Tensor

from qvl_lab.backends.fast.cuda_graphs import CudaGraphRunner, sizes
from qvl_lab.session import load


@pytest.mark.parametrize(
    ("slots", "expected"),
    [
        (1, [2]),
        (2, [2]),
        (3, [2, 3]),
        (8, [2, 4, 8]),
        (30, [2, 4, 8, 16, 24, 30]),
        (100, [2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 100]),
    ],
)
def test_sizes_grow_with_the_batch_and_end_with_all_slots(slots, expected):
    assert sizes(slots) == expected


def test_less_than_half_of_a_recorded_batch_is_filled_up():
    for slots in range(1, 200):
        found = sizes(slots)
        assert found == sorted(set(found))
        for batch in range(1, slots + 1):
            assert batch <= min(n for n in found if n >= batch) <= max(2, 2 * batch - 1)


class Counter:
    """A step that adds one to a counter of each row and returns ten times it."""

    def __init__(self, slots: int, device: str) -> None:
        self.counts = torch.zeros(slots + 1, dtype=torch.int64, device=device)
        self.calls = 0

    def __call__(self, rows: Tensor) -> Tensor:
        self.calls += 1
        counts = self.counts[rows] + 1
        self.counts.index_copy_(0, rows, counts)
        return counts * 10


def test_without_graphs_rows_are_passed_on():
    for graphs in (True, False):
        counter = Counter(4, "cpu")
        steps = CudaGraphRunner(counter, 4, graphs, torch.device("cpu"))
        steps.record()  # there is nothing to record on a CPU
        assert counter.calls == 0
        assert steps(torch.tensor([2, 0])).tolist() == [10, 10]
        assert steps(torch.tensor([2])).tolist() == [20]
        assert counter.counts.tolist() == [1, 0, 2, 0, 0]


@pytest.mark.gpu
def test_replayed_steps_are_those_that_were_recorded():
    slots = 20
    counters = [Counter(slots, "cuda") for _ in range(2)]
    recorded, plain = (
        CudaGraphRunner(counter, slots, graphs, torch.device("cuda"))
        for counter, graphs in zip(counters, (True, False), strict=True)
    )
    recorded.record()
    calls = counters[0].calls
    assert calls == 2 * len(sizes(slots))  # once to warm up, once to record
    assert not counters[0].counts[:slots].any()
    generator = torch.Generator().manual_seed(0)
    for batch in (3, 20, 1, 4, 17, 5, 8, 2, 9, 1, 20):
        rows = torch.randperm(slots, generator=generator)[:batch].cuda()
        assert torch.equal(recorded(rows), plain(rows))
        assert torch.equal(counters[0].counts[:slots], counters[1].counts[:slots])
    assert counters[0].calls == calls


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 3, 6])
def test_answers_with_replayed_steps_are_those_without(batch):
    """In fp32, where filled up batches of other shapes do not round otherwise."""
    lab = load("tiny", precision="fp32", device="cuda")
    images = [Image.new("RGB", (64 + 32 * i, 96), (40 * i, 90, 200)) for i in range(batch)]
    options = {"engine": "fast", "max_new_tokens": 12, "min_new_tokens": 12, "batch_size": 6}
    with_graphs, without = (
        lab.generate_batch(images, "描述这张图片", cuda_graphs=graphs, **options).texts
        for graphs in (True, False)
    )
    assert None not in with_graphs
    assert with_graphs == without
