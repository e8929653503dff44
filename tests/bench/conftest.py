"""A folder of small pictures to sweep over, and the environment that users measure in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Eight different pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(8):
        Image.new("RGB", (96 + 32 * (i % 3), 96), (30 * i, 0, 90)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def users_environment() -> dict[str, str]:
    """The environment without what the tests' own command sets for its workers."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("OMP_") and name != "QVL_LAB_ON_BUSY"
    }
