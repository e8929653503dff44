"""What a device can do at most."""

from __future__ import annotations

import json
from itertools import count

import pytest

from qvl_lab.errors import InputError
from qvl_lab.probe import ceilings
from qvl_lab.probe.ceilings import (
    measure_ceilings,
    read_ceilings,
    save_ceilings,
    seconds_per_call,
)


@pytest.fixture
def rests(monkeypatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(ceilings.time, "sleep", slept.append)
    return slept


def test_a_call_is_timed_over_rounds_long_enough(monkeypatch, rests):
    clock = count()  # a second passes between two looks at it, however much was done
    monkeypatch.setattr(ceilings.time, "perf_counter", lambda: float(next(clock)))
    assert seconds_per_call(lambda: None, "cpu") == 1.0

    now = {"s": 0.0, "calls": 0}
    monkeypatch.setattr(ceilings.time, "perf_counter", lambda: now["s"])

    def work():
        now["s"] += 0.004
        now["calls"] += 1

    assert seconds_per_call(work, "cpu") == pytest.approx(0.004)
    assert now["calls"] >= 5 * 25  # five rounds of a tenth of a second
    assert now["s"] >= 1.0


def test_a_call_that_takes_seconds_is_made_a_few_times(monkeypatch, rests):
    """A CPU without instructions for bf16 takes 3 s for a product that fp32 does in 0.03 s."""
    now = {"s": 0.0}

    def work():
        now["s"] += 3.0

    monkeypatch.setattr(ceilings.time, "perf_counter", lambda: now["s"])
    assert seconds_per_call(work, "cpu") == 3.0
    assert now["s"] <= 9.0


def test_what_a_device_reaches_before_its_clocks_fall_is_its_ceiling(monkeypatch, rests):
    """Rested, 0.05 s are fast; after that a call takes twice as long until the next rest."""
    now = {"s": 0.0, "worked": 0.0}

    def sleep(seconds):
        now["s"] += seconds
        now["worked"] = 0.0

    def work():
        took = 0.002 if now["worked"] > 0.05 else 0.001
        now["s"] += took
        now["worked"] += took

    monkeypatch.setattr(ceilings.time, "sleep", sleep)
    monkeypatch.setattr(ceilings.time, "perf_counter", lambda: now["s"])
    assert seconds_per_call(work, "cpu") == pytest.approx(0.001)


@pytest.mark.slow
def test_ceilings_of_this_cpu_are_within_reason():
    found = measure_ceilings("cpu")
    assert set(found["flops_per_s"]) == {"fp32", "bf16"}
    assert all(1e9 < rate < 1e14 for rate in found["flops_per_s"].values())
    assert 1e8 < found["bytes_per_s"] < 1e12
    assert 1e-8 < found["launch_s"] < 1e-3
    assert found["device"].startswith("CPU: ")


def test_the_fastest_of_several_products_is_the_ceiling(monkeypatch):
    rates = dict.fromkeys(ceilings.CPU_PRODUCTS, 2e11) | {(4096, 512, 512): 3e11}
    monkeypatch.setattr(ceilings, "_product_flops_per_s", lambda shape, *_: rates[shape])
    monkeypatch.setattr(ceilings, "seconds_per_call", lambda *_: 0.5)
    found = measure_ceilings("cpu")
    assert found["flops_per_s"] == {"fp32": 3e11, "bf16": 3e11}
    assert found["bytes_per_s"] == 2 * 2**28 / 0.5


def test_a_product_counts_a_multiplication_and_an_addition_for_each_pair(monkeypatch):
    import torch

    seen = []

    def timed(work, device):
        seen.append(work())
        return 0.25

    monkeypatch.setattr(ceilings, "seconds_per_call", timed)
    assert ceilings._product_flops_per_s((4, 6, 8), torch.float32, "cpu") == 2 * 4 * 6 * 8 / 0.25
    assert seen[0].shape == (4, 6)


FOUND = {
    "device": "NVIDIA H200",
    "flops_per_s": {"bf16": 7.9e14},
    "bytes_per_s": 4.3e12,
    "launch_s": 5e-6,
}


def test_what_was_saved_is_read_again(tmp_path):
    save_ceilings(FOUND, tmp_path / "c.json")
    assert read_ceilings(tmp_path / "c.json") == FOUND


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        json.dumps(FOUND | {"bytes_per_s": 0}),
        json.dumps(FOUND | {"launch_s": None}),
        json.dumps(FOUND | {"flops_per_s": {"bf16": float("inf")}}),
        json.dumps(FOUND | {"flops_per_s": [1]}),
    ],
)
def test_other_files_hold_no_ceilings(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(InputError, match="qvl-lab doctor --ceilings"):
        read_ceilings(tmp_path / "c.json")
    with pytest.raises(InputError, match="cannot read"):
        read_ceilings(tmp_path / "none.json")


@pytest.mark.gpu
def test_a_gpu_reaches_half_of_its_data_sheet():
    from qvl_lab.hardware import find_gpu, gpu_name

    gpu = find_gpu(gpu_name())
    if gpu is None:
        pytest.skip("this GPU is not in the table")
    found = measure_ceilings("cuda")
    assert 0.5 < found["flops_per_s"]["bf16"] / (gpu.bf16_tflops * 1e12) < 1.05
    assert 0.5 < found["bytes_per_s"] / (gpu.bandwidth_gb_s * 1e9) < 1.05
