"""What this machine can do: one line each, with the command that mends what is missing."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass

from qvl_lab.hardware import find_gpu, fingerprint


@dataclass(frozen=True)
class Check:
    """``needed`` checks decide the exit code; the others only widen what can be done."""

    name: str
    ok: bool
    detail: str
    needed: bool = False


def checks() -> list[Check]:
    """All checks, in the order to read them."""
    here = fingerprint()
    return [
        Check("python", True, f"{here['python']} on {here['platform']}"),
        Check("torch", bool(here["torch"]), here["torch"] or "pip install torch", needed=True),
        _package("transformers", here["transformers"]),
        Check("commit", True, here["commit"] or "not a checkout"),
        _gpu(here),
        _cuda(),
        _optional("torchao", "int8 weights", "pip install 'qvl-lab[int8]'"),
        _optional("torchvision", "the faster image processor", "pip install torchvision"),
        _font(),
        _disk(),
    ]


def _package(name: str, version: str | None) -> Check:
    return Check(name, bool(version), version or f"pip install {name}", needed=True)


def _gpu(here: dict[str, object]) -> Check:
    if not here["gpu"]:
        return Check("nvml", False, "no NVIDIA driver: utilisation and power stay unknown")
    row = find_gpu(str(here["gpu"]))
    known = f"{row.memory_gb:g} GB, {row.bf16_tflops:g} TFLOP/s bf16" if row else "not in the table"
    return Check(
        "nvml", True, f"{here['gpu_count']} x {here['gpu']}, driver {here['driver']}: {known}"
    )


def _cuda() -> Check:
    try:
        import torch
    except ImportError as e:
        return Check("cuda", False, f"torch cannot be imported: {e}", needed=True)
    if not torch.cuda.is_available():
        return Check("cuda", False, "torch sees no CUDA device: runs go to the CPU")
    major, minor = torch.cuda.get_device_capability()
    free, total = torch.cuda.mem_get_info()
    bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
    return Check(
        "cuda",
        True,
        f"compute capability {major}.{minor}, {bf16}, {free / 2**30:.1f} of {total / 2**30:.1f} "
        "GiB free",
    )


def _optional(name: str, gives: str, command: str) -> Check:
    found = importlib.util.find_spec(name) is not None
    return Check(name, found, gives if found else f"would add {gives}: {command}")


def _font() -> Check:
    from qvl_lab.show.fonts import CHINESE, chinese_families

    helpers = chinese_families()[1:]
    rare = f"{helpers[0]} draws" if helpers else "no installed font draws"
    return Check("chinese font", True, f"{CHINESE} (packaged); {rare} characters outside GB 2312")


def _disk() -> Check:
    free = shutil.disk_usage(".").free / 2**30
    return Check("disk", free > 1, f"{free:.1f} GiB free here")
