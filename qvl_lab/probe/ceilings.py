"""What a device can do at most, measured on the spot: matrix products, copies, launches.

Data sheets give peaks that no program reaches, and tables lack many GPUs; large matrix products
and a large copy are what the best program can come near to. Which product is fastest differs from
device to device, so several are tried.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, TypedDict

from qvl_lab.errors import InputError
from qvl_lab.hardware import cpu_label, fingerprint

#: A product or a copy is timed for a second in all, in rounds as short as a stage's work is, each
#: after a rest: under a lasting load a GPU lowers its clocks to stay within its power. One H100
#: reached 796 to 820 TFLOP/s in bf16 in such rounds, 718 to 750 in rounds of 0.1 s without a rest.
LEAST_S, ROUND_S, REST_S = 1.0, 0.03, 0.05
#: Rounds at least, unless a call is so long that they would take twice the least time.
ROUNDS = 5
#: Rounds in which calls are queued without waiting for the device.
LAUNCH_ROUNDS = 5
#: Rows, columns and inner size of the products that are tried.
GPU_PRODUCTS = (
    *((4096, 4096, 4096), (8192, 8192, 8192), (16384, 16384, 16384)),
    *((8192, 4096, 4096), (16384, 8192, 4096), (8192, 4096, 16384)),
)
CPU_PRODUCTS = ((512, 512, 512), (1024, 1024, 1024), (4096, 512, 512))


class MeasuredCeilings(TypedDict):
    """``flops_per_s`` by precision; ``bytes_per_s`` read and written; seconds to queue a kernel."""

    device: str
    flops_per_s: dict[str, float]
    bytes_per_s: float
    launch_s: float


def measure_ceilings(device: str = "cpu") -> MeasuredCeilings:
    """Measure a device: about 25 seconds on a CPU, a minute on a GPU, with up to 4 GiB free there.

    Each figure is the best of rounds of 0.03 s that take at least a second together, after a
    warm-up, on random data: zeros run faster than what anybody computes. Of matrix products of
    several shapes the fastest counts.

    Parameters
    ----------
    device : str
        "cpu", "cuda" or "cuda:1".
    """
    import torch

    on_gpu = device.startswith("cuda")
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if on_gpu:
        kinds["fp16"] = torch.float16
    shapes, copied_bytes = (GPU_PRODUCTS, 2**30) if on_gpu else (CPU_PRODUCTS, 2**28)
    flops = {
        name: max(_product_flops_per_s(shape, kind, device) for shape in shapes)
        for name, kind in kinds.items()
    }
    source = torch.rand(copied_bytes // 4, device=device)
    goal = torch.empty_like(source)
    copy_s = seconds_per_call(lambda: goal.copy_(source), device)
    small = torch.zeros(1, device=device)
    launch_s = _queue_s(lambda: small.add_(1), device)
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else cpu_label(fingerprint()),
        "flops_per_s": flops,
        "bytes_per_s": 2 * copied_bytes / copy_s,
        "launch_s": launch_s,
    }


def beside(runs: Path) -> Path:
    """Where the ceilings of the runs' device are kept: ``runs.ceilings.json``."""
    return runs.with_suffix(".ceilings.json")


def save_ceilings(found: MeasuredCeilings, path: str | Path) -> None:
    """Write them as JSON, for :func:`read_ceilings`."""
    Path(path).write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def read_ceilings(path: str | Path) -> MeasuredCeilings:
    """Read what :func:`save_ceilings` wrote.

    Raises
    ------
    InputError
        If the file cannot be read or holds anything else.
    """
    how = "make it with 'qvl-lab doctor --ceilings FILE'"
    try:
        found = json.loads(Path(path).read_bytes())
        rates = {str(name): float(rate) for name, rate in found["flops_per_s"].items()}
        values = [float(found[name]) for name in ("bytes_per_s", "launch_s")]
        device = str(found["device"])
    except OSError as e:
        raise InputError(f"cannot read {path}: {e.strerror}; {how}") from e
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise InputError(f"{path} holds no ceilings ({type(e).__name__}: {e}); {how}") from e
    if not all(0 < value < float("inf") for value in (*rates.values(), *values)):
        raise InputError(f"{path}: a ceiling must be a number above 0; {how}")
    return {
        "device": device,
        "flops_per_s": rates,
        "bytes_per_s": values[0],
        "launch_s": values[1],
    }


def _product_flops_per_s(shape: tuple[int, int, int], dtype: Any, device: str) -> float:
    import torch

    rows, columns, inner = shape
    sides = (rows, inner), (inner, columns), (rows, columns)
    a, b, out = (torch.randn(side, device=device).to(dtype) for side in sides)
    took_s = seconds_per_call(lambda: torch.mm(a, b, out=out), device)
    return 2 * rows * columns * inner / took_s


def seconds_per_call(work: Callable[[], Any], device: str) -> float:
    """Least seconds of a call, the device's queue waited for at the ends of a round only."""
    _round_s(work, 1, device)  # loads kernels
    calls = 1
    while (took_s := _round_s(work, calls, device)) < ROUND_S:
        calls = max(2 * calls, round(calls * ROUND_S / max(took_s, 1e-6)))
    rounds = [took_s]
    while sum(rounds) < LEAST_S or (len(rounds) < ROUNDS and sum(rounds) < 2 * LEAST_S):
        rounds.append(_rested_round_s(work, calls, device))
    return min(rounds) / calls


def _rested_round_s(work: Callable[[], Any], calls: int, device: str) -> float:
    _wait(device)
    time.sleep(REST_S)
    return _round_s(work, calls, device)


def _round_s(work: Callable[[], Any], calls: int, device: str) -> float:
    _wait(device)
    started = time.perf_counter()
    for _ in range(calls):
        work()
    _wait(device)
    return time.perf_counter() - started


def _queue_s(work: Callable[[], Any], device: str, calls: int = 500) -> float:
    """Median seconds for the CPU to queue a call, the device not waited for."""
    rounds = []
    for _ in range(LAUNCH_ROUNDS + 1):
        _wait(device)
        started = time.perf_counter()
        for _ in range(calls):
            work()
        rounds.append((time.perf_counter() - started) / calls)
    return median(rounds[1:])


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)
