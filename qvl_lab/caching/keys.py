"""Cache keys: hashes of everything that the cached value depends on.

A stale value is therefore never found, rather than found and checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from PIL import Image

from qvl_lab.assets import asset
from qvl_lab.config import ModelSpec
from qvl_lab.errors import ConfigError, ImageError, ModelError
from qvl_lab.models.load import base_dtype, resolve
from qvl_lab.models.names import TINY

#: Suffixes of the files that decide what a model computes: weights, settings, templates, code.
MODEL_FILES = frozenset({".json", ".safetensors", ".jinja", ".txt", ".py"})
_EXIF_ORIENTATION = 0x0112


def model_key(spec: ModelSpec) -> str:
    """The key of a model, as a part of keys of what it computes; call it once the model is loaded.

    It covers the names, sizes and times of change of a folder's or the embedded model's files, and
    the commit in the local hub cache of a hub id. Random weights are drawn on their device, so
    their key covers the device too.

    Raises
    ------
    ConfigError, PrecisionError
        If this machine lacks the device or the precision.
    ModelError
        If the name is neither a folder nor a possible hub id.
    """
    spec = resolve(spec)
    described = {
        "name": spec.model,
        "revision": spec.revision,
        "trust_remote_code": spec.trust_remote_code,
        "precision": spec.precision,
        "dtype": str(base_dtype(spec)),  # int8 computes in fp32 on a CPU and in bf16 on a GPU
        "attention": spec.attn_implementation,
        "weights": _weights(spec),
    }
    return _digest("model", json.dumps(described, sort_keys=True))


def image_key(image: bytes | Image.Image, size: tuple[int, int], model: str) -> str:
    """The key of an image as a model sees it, by content.

    Parameters
    ----------
    image : bytes or PIL image
        Encoded bytes, or a PIL image, whose pixels, palette, transparency and orientation count.
        The same picture given in both ways has two keys.
    size : (int, int)
        Width and height in pixels that it is resized to.
    model : str
        From :func:`model_key`.

    Raises
    ------
    ImageError
        If a PIL image that was opened lazily cannot be decoded.
    """
    content = (b"encoded", image) if isinstance(image, bytes) else (b"pixels", *_pixels(image))
    return _digest("image", *content, *map(str, size), model)


def path_key(path: str, size: tuple[int, int], model: str) -> str:
    """The key of an image by its path alone, as in the article's ``lru_cache``.

    Such a key costs no hash of the file's content, although the file is read all the same for its
    size. It has a flaw: when the file at that path changes, the key does not, and the features of
    the old picture are found. :func:`image_key` does not have this flaw.
    """
    return _digest("path", path, *map(str, size), model)


def response_key(image: str, question: str, options: Mapping[str, object]) -> str:
    """The key of a whole response.

    Parameters
    ----------
    image : str
        From :func:`image_key`, so it stands for the model too.
    question : str
        The prompt.
    options : mapping
        All else that decides on the response, in values that JSON has; order does not matter.

    Raises
    ------
    ConfigError
        If an option has another type, for which equality is not defined.
    """
    try:
        text = json.dumps(dict(options), sort_keys=True)
    except (TypeError, ValueError) as e:
        raise ConfigError(f"options must be text, numbers, lists or None to make a key: {e}") from e
    return _digest("response", image, question, text)


def _digest(*parts: str | bytes) -> str:
    """SHA-256 over parts and their lengths, so that ("ab", "c") and ("a", "bc") differ."""
    total = sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()


def _pixels(image: Image.Image) -> tuple[str | bytes, ...]:
    """All that :func:`qvl_lab.workloads.decode.decode_image` looks at in a PIL image."""
    try:
        raw, palette = image.tobytes(), bytes(image.getpalette("RGBA") or ())
    except Exception as e:  # decoders fail on foreign bytes in many ways
        raise ImageError(f"cannot be decoded, truncated or damaged: {e}") from e
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block turns nothing
        orientation = 1
    transparency = image.info.get("transparency")
    return image.mode, str(image.size), raw, palette, repr(transparency), str(orientation)


def _weights(spec: ModelSpec) -> Any:
    """The part of a model's key that tells models of one name apart, ready for JSON."""
    if spec.model.startswith("random:"):
        on_gpu = spec.device.startswith("cuda")
        return [spec.seed, torch.cuda.get_device_name(spec.device) if on_gpu else "cpu"]
    folder = asset(TINY) if spec.model == TINY else Path(spec.model).expanduser()
    if folder.is_dir():
        files = sorted(path for path in folder.iterdir() if path.suffix in MODEL_FILES)
        status = [(path.name, path.stat()) for path in files]
        return [[name, file.st_size, file.st_mtime_ns] for name, file in status]
    try:
        found = try_to_load_from_cache(spec.model, "config.json", revision=spec.revision or "main")
    except ValueError as e:
        raise ModelError(f"{spec.model} is neither a model folder nor a hub id: {e}") from e
    return Path(found).parent.name if isinstance(found, str) else None
