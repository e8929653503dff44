"""A setting in plain words, for progress bars and terminals; pages have two languages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from qvl_lab.config import Fast


def in_words(config: Mapping[str, Any]) -> str:
    """A flat configuration: "bf16, 512 px, batch 8, fast without packing"."""
    side = str(config["resolution"])
    pixels = f"{side} px" if side.isdecimal() else side.replace("_", " ")
    parts = [config["precision"], pixels, f"batch {config['batch_size']}", _engine(config)]
    return ", ".join(filter(None, parts))


def _engine(config: Mapping[str, Any]) -> str:
    """The fast engine and what it does without; "" for the stock one."""
    if config["engine"] != "fast":
        return ""
    off = [f.name for f in fields(Fast) if f.default is True and config.get(f.name) is False]
    return f"fast without {', '.join(off)}" if off else "fast"
