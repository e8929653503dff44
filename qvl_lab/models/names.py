"""What a model may be called, checked without importing torch."""

from __future__ import annotations

from pathlib import Path

from qvl_lab.errors import ModelError, UnknownNameError

#: The name of the embedded model, and of its shape after ``random:``.
TINY = "tiny"
RANDOM = "random:"
#: Sizes of the published checkpoints whose shapes are known, and of the embedded model.
SIZES = (TINY, "2b", "4b", "8b", "32b", "30b-a3b", "235b-a22b")


def check_name(model: str) -> None:
    """Refuse a model whose name or folder is wrong; a hub id is not looked up.

    Raises
    ------
    UnknownNameError
        If it is neither a known name, nor a folder, nor of the form ``owner/name``.
    ModelError
        If the folder does not exist or is no model.
    """
    size = model.removeprefix(RANDOM)
    if size == model:
        if model != TINY:
            locate(model)
    elif size.lower() not in SIZES:
        raise UnknownNameError("model", model, [f"{RANDOM}{size}" for size in SIZES])


def locate(model: str) -> Path | str:
    """A folder, or a hub id unchanged; raises as :func:`check_name`."""
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ModelError(f"{path} holds no config.json, so it is no model folder")
        return path
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        if "/" in model:
            raise ModelError(f"model folder {model} does not exist")
        known = [TINY, *(f"{RANDOM}{size}" for size in SIZES)]
        raise UnknownNameError("model", model, [*known, "a folder", "owner/name on the hub"])
    return model
