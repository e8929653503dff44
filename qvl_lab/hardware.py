"""What the work runs on: the GPU table, and a fingerprint of this machine.

Reads NVML and package metadata only; torch is never imported here.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvl_lab.assets import asset


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One row of the GPU table: dense rates from data sheets.

    ``memory_gb`` and ``bandwidth_gb_s`` in 1e9 bytes, ``bf16_tflops`` and ``int8_tops`` in
    1e12 operations a second.
    """

    name: str
    memory_gb: float
    bandwidth_gb_s: float
    bf16_tflops: float
    int8_tops: float | None = None
    source: str


@functools.cache
def gpu_table() -> dict[str, Gpu]:
    """The packaged GPU table, by short name ("A10G", "H200")."""
    rows = tomllib.loads(asset("gpus.toml").read_text("utf-8"))["gpu"]
    return {row["name"]: Gpu(**row) for row in rows}


def find_gpu(device_name: str | None) -> Gpu | None:
    """The table's row for a driver's device name ("NVIDIA A100-SXM4-80GB"), or None.

    Memory sizes in the name decide between variants. An unknown GPU gives None, never a guess, and
    so do the slower forms of a known one (PCIe, NVL, laptop, a MIG slice).
    """
    if _OTHER_FORMS & set(re.split(r"[^A-Z0-9]+", (device_name or "").upper())):
        return None
    words = set(re.findall(r"[A-Z]*\d+[A-Z]*", (device_name or "").upper()))
    matches = [
        gpu
        for gpu in gpu_table().values()
        if set(re.findall(r"[A-Z]*\d+[A-Z]*", gpu.name.upper())) <= words
    ]
    return matches[0] if len(matches) == 1 else None


_OTHER_FORMS = {"PCIE", "NVL", "LAPTOP", "MOBILE", "MIG", "D", "3E", "SUPER", "TI"}


@functools.cache
def nvml() -> Any | None:
    """The initialised NVML binding, or None where there is no NVIDIA driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        return None
    return pynvml


def gpu_name(index: int = 0) -> str | None:
    """The driver's name of a GPU, or None."""
    lib = nvml()
    if lib is None or index >= lib.nvmlDeviceGetCount():
        return None
    return _text(lib.nvmlDeviceGetName(nvml_handle(lib, index)))


def nvml_handle(lib: Any, index: int = 0) -> Any:
    """NVML's handle of the GPU that CUDA calls ``index`` under CUDA_VISIBLE_DEVICES."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    visible = [name.strip() for name in listed if name.strip()]
    name = visible[index] if index < len(visible) else str(index)
    if name.isdecimal():
        return lib.nvmlDeviceGetHandleByIndex(int(name))
    return lib.nvmlDeviceGetHandleByUUID(name)


def cpu_label(environment: Mapping[str, Any]) -> str:
    """What a fingerprint says of the CPU, as the name of a device: "CPU: NAME, 2 threads"."""
    return f"CPU: {environment.get('cpu')}, {environment.get('cpu_count')} threads"


def gpu_index(device: str) -> int | None:
    """The number of torch's device "cuda:1"; None for a CPU."""
    return int(device.partition(":")[2] or 0) if device.startswith("cuda") else None


def fingerprint(device: str = "auto") -> dict[str, Any]:
    """What a number depends on besides its configuration.

    Parameters
    ----------
    device : str
        The device that the work runs on, as :class:`~qvl_lab.config.ModelSpec` names it.

    Returns
    -------
    dict
        ``gpu``, ``gpu_count``, ``driver``, ``cpu``, ``cpu_count``, ``platform``, ``python``,
        ``torch``, ``torchvision``, ``transformers``, ``qvl_lab``, ``commit``; None where unknown.
        ``gpu`` is the GPU that ``device`` names, the first one for "auto", "cuda" and "cpu".
        ``host`` is a digest that tells two machines of one kind apart; see
        :func:`qvl_lab.runs.records.environment_key`.
    """
    lib, index = nvml(), gpu_index(device) or 0
    return {
        "gpu": gpu_name(index),
        "gpu_count": lib.nvmlDeviceGetCount() if lib else 0,
        "driver": _text(lib.nvmlSystemGetDriverVersion()) if lib else None,
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": _version("torch"),
        "torchvision": _version("torchvision"),
        "transformers": _version("transformers"),
        "qvl_lab": _own_version(),
        "commit": commit(),
        "host": _host(index),
    }


@functools.cache
def _host(index: int) -> str:
    """A digest of the machine's and the GPU's identity, which do not leave the machine."""
    lib = nvml()
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/etc/machine-id").read_text("utf-8").strip())
    if lib and index < lib.nvmlDeviceGetCount():
        parts.append(_text(lib.nvmlDeviceGetUUID(nvml_handle(lib, index))))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:8]


@functools.cache
def commit() -> str | None:
    """The checkout's commit, with ``+`` and a digest of changes to the package's files; or None.

    A copy without ``.git`` (a container, a job's upload) can say it in ``QVL_LAB_COMMIT``.
    """
    root = Path(__file__).parents[1]
    head = _git(root, "rev-parse", "--short=12", "HEAD") if (root / ".git").exists() else ""
    if not head:
        return os.environ.get("QVL_LAB_COMMIT") or None
    changed = _git(root, "diff", "HEAD", "--", "qvl_lab").encode(
        "utf-8", "surrogateescape"
    ) + _untracked(root)
    return head + ("+" + hashlib.sha256(changed).hexdigest()[:6] if changed else "")


def _untracked(root: Path) -> bytes:
    """Names and contents of the package's files that git neither tracks nor ignores."""
    listed = _git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", "qvl_lab")
    found = b""
    for name in filter(None, listed.split("\0")):
        with contextlib.suppress(OSError):  # gone meanwhile
            found += name.encode("utf-8", "surrogateescape") + b"\0" + (root / name).read_bytes()
    return found


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "surrogateescape").strip()


def _cpu_name() -> str | None:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.processor() or None
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _own_version() -> str:
    from qvl_lab import __version__

    return __version__


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
