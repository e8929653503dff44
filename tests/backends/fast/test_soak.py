"""Ten thousand requests through the fast engine while everything that can go wrong does."""

from __future__ import annotations

import gc
import random
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from qvl_lab.backends.base import Answer
from qvl_lab.backends.fast.engine import Caches, Engine
from qvl_lab.backends.fast.model_runner import ModelRunner
from qvl_lab.backends.fast.sequence import Sequence
from qvl_lab.caching import disk
from qvl_lab.caching.disk import DiskTier
from qvl_lab.caching.lru import Lru
from qvl_lab.caching.tensor_cache import TensorCache
from qvl_lab.config import Fast, ImagePolicy, SamplingParams
from qvl_lab.workloads.items import Item

QUESTIONS = ("What is this?", "描述这张图片", "Count. " * 20, "?")


def soak(lab, mixed, folder: Path, count: int, monkeypatch) -> tuple[list[Sequence], Counter[str]]:
    """Sequences as they ended, and how often each fault was made."""
    draw, faults = random.Random(5), Counter()
    policy = ImagePolicy(resolution=96)
    for method in ("encode_images", "prefill", "decode"):
        real = getattr(ModelRunner, method)

        def failing(self, first, *rest, real=real, method=method):
            if draw.random() < 0.01 and len(first) > 1:
                faults[f"memory in {method}"] += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
            return real(self, first, *rest)

        monkeypatch.setattr(ModelRunner, method, failing)
    tier = DiskTier(folder, max_bytes=2**20)
    caches = Caches(TensorCache(2**19, disk=tier), Lru(2**20, max_entries=50))
    spec = Fast(batch_size=6, prefix_cache=True, prefill_chunk=64)
    engine = Engine(lab.processor, spec, policy, num_tokens=400, max_model_len=200, caches=caches)
    sequences: list[Sequence] = []
    ended: list[Sequence] = []
    made = refused = 0
    while made < count or engine.busy:
        while made < count and engine.queued < 20:
            item = replace(draw.choice(mixed), id=str(made), question=draw.choice(QUESTIONS))
            if draw.random() < 0.03:
                faults["bad image"] += 1
                item = Item(str(made), item.image.read_bytes()[:200], item.question)
            made += 1
            request = lab.processor.request(made, item, policy)
            if isinstance(request, Answer):
                refused += 1
                continue
            most = draw.randint(1, 6)
            sequences.append(engine.add_request(request, SamplingParams(max_new_tokens=most)))
        if sequences and draw.random() < 0.02:
            faults["cancelled"] += 1
            engine.cancel(draw.choice(sequences[-30:]))
        if draw.random() < 0.005 and (files := sorted(folder.glob("*.safetensors"))):
            faults["corrupt file"] += 1
            draw.choice(files).write_bytes(b"corrupt")
        if made >= count // 2 and not faults["disk full"]:
            faults["disk full"] += 1
            monkeypatch.setattr(disk, "_write", _full)
        for sequence in engine.step():
            sequence.request = replace(
                sequence.request, image=b""
            )  # ten thousand files need not be held
            ended.append(sequence)
    assert len(sequences) + refused == count
    assert Counter(map(id, ended)) == Counter(map(id, sequences))
    assert tier.off is not None
    engine.evict_prefixes()
    assert engine.is_idle
    assert engine.scheduler.blocks.num_free == engine.scheduler.blocks.num_blocks
    engine.close()
    faults["preemption"] = engine.scheduler.preemptions
    return ended, faults


def _full(*_) -> None:
    raise OSError(28, "No space left on device")


def check(lab, sequences: list[Sequence]) -> None:
    """Every answer is the stock engine's, every error one of those that were asked for."""
    alone: dict[tuple[Path, str], str] = {}
    for sequence in sequences:
        answer, item = sequence.answer, sequence.request.item
        if answer.error is not None:
            assert answer.text is None
            assert answer.error == "cancelled" or "truncated" in answer.error, answer.error
            continue
        if (key := (item.image, item.question)) not in alone:
            full = lab.generate_batch([item], resolution=96, max_new_tokens=6, min_new_tokens=6)
            alone[key] = full[0].text
        assert f"{alone[key]} ".startswith(f"{answer.text} "), (item, answer.text)


@pytest.mark.full
def test_ten_thousand_requests_under_faults_end_once_each_and_hold_nothing(
    lab, mixed, tmp_path, monkeypatch, ids_of
):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        soak(ids_of(lab), mixed, tmp_path / "warm", 300, monkeypatch)
        monkeypatch.undo()
        ids_of(lab)
        gc.collect()
        before = psutil.Process().memory_info().rss
        ended, faults = soak(lab, mixed, tmp_path / "disk", 10_000, monkeypatch)
    print(dict(faults), Counter("error" if s.answer.error else "text" for s in ended))
    check(ids_of(lab), ended)
    assert set(faults) == {
        *("bad image", "cancelled", "corrupt file", "disk full", "preemption"),
        *("memory in encode_images", "memory in prefill", "memory in decode"),
    }
    assert all(faults.values())
    del ended
    gc.collect()
    assert psutil.Process().memory_info().rss - before < 64 * 2**20


@pytest.mark.slow
def test_three_hundred_requests_under_faults(lab, mixed, tmp_path, monkeypatch, ids_of):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ended, faults = soak(ids_of(lab), mixed, tmp_path, 300, monkeypatch)
    check(lab, ended)
    assert faults["bad image"] > 2
    assert faults["cancelled"] > 2
