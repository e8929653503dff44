"""The fork server must not open a CUDA context while it imports."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# torch as on a machine with a GPU that CUDA_VISIBLE_DEVICES can hide; touching it raises
PROGRAM = """
import os, torch
def touched(*_, **__):
    raise SystemExit("CUDA was touched during the import")
torch.cuda.is_available = lambda: os.environ.get("CUDA_VISIBLE_DEVICES") != ""
torch.version.cuda = "13.0"
for name in ("_lazy_init", "get_device_capability", "get_device_properties", "get_device_name"):
    setattr(torch.cuda, name, touched)
import {module}
print(os.environ.get("CUDA_VISIBLE_DEVICES"))
"""


def imported(module: str, visible: str | None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    environment |= {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    command = [sys.executable, "-c", PROGRAM.format(module=module)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_import_touches_no_gpu_and_restores_what_is_visible():
    result = imported("qvl_lab.bench.executors.preload", "3,1")
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split() == ["3,1"]


@pytest.mark.slow
def test_without_the_variable_it_stays_unset():
    result = imported("qvl_lab.bench.executors.preload", None)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split() == ["None"]
