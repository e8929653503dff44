"""A command line run in this process, and a folder of good and bad images."""

from __future__ import annotations

import io
import shlex
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from qvl_lab import cli


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def qvl(monkeypatch, capsys, tmp_path) -> Callable[[str], Result]:
    """Run a command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(line: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["qvl-lab", *shlex.split(line)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return Result(int(stopped.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def photos(tmp_path) -> Path:
    """Three good images, four bad ones, and a file that is no image at all."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for color in ("red", "green", "blue"):
        Image.new("RGB", (96, 64), color).save(folder / f"{color}.png")
    buffer = io.BytesIO()
    Image.effect_noise((200, 200), 90).convert("RGB").save(buffer, "JPEG")
    (folder / "cut.jpg").write_bytes(buffer.getvalue()[:4000])
    (folder / "text.png").write_text("this is no picture")
    (folder / "empty.png").write_bytes(b"")
    (folder / "bomb.png").write_bytes(bomb(60_000))
    (folder / "notes.txt").write_text("not meant to be one")
    return folder


def bomb(side: int) -> bytes:
    """A small PNG file that claims to be very large."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT" + zlib.compress(bytes(1000)), b"IEND"]
    packed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)
