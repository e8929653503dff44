"""A folder of small pictures to sweep over."""

from __future__ import annotations

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
