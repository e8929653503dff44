"""Pillow's pixels as a tensor, without a copy that holds Python's lock.

``numpy.array(picture)`` takes about 2 ms for a million pixels, during which no other thread runs
Python, and so none launches work on a GPU. Pillow also shows its memory through Arrow's C data
interface, which takes no time; numpy then copies it without the lock.

Source: https://arrow.apache.org/docs/format/CDataInterface.html
"""

from __future__ import annotations

import ctypes
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class _Array(ctypes.Structure):
    """``struct ArrowArray``."""

    _fields_: ClassVar[list[Any]] = [
        ("length", ctypes.c_int64),
        ("null_count", ctypes.c_int64),
        ("offset", ctypes.c_int64),
        ("n_buffers", ctypes.c_int64),
        ("n_children", ctypes.c_int64),
        ("buffers", ctypes.POINTER(ctypes.c_void_p)),
        ("children", ctypes.POINTER(ctypes.c_void_p)),
        ("dictionary", ctypes.c_void_p),
        ("release", ctypes.c_void_p),
        ("private_data", ctypes.c_void_p),
    ]


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def pixels(picture: Image.Image, *, pinned: bool = False) -> Tensor:
    """An RGB picture's pixels, (height, width, 3), or 4 where the last channel is filling.

    Parameters
    ----------
    pinned : bool
        In memory that a GPU reads by itself.
    """
    try:
        _, capsule = picture.__arrow_c_array__()  # type: ignore[attr-defined]
    except (AttributeError, ValueError):  # Pillow before 11.3; a picture in several pieces
        found = torch.from_numpy(np.array(picture))
        return found.pin_memory() if pinned else found
    array = _Array.from_address(_pointer(capsule, b"arrow_array"))
    values = _Array.from_address(array.children[0])
    start = values.buffers[1] + values.offset
    shape = picture.height, picture.width, values.length // (picture.height * picture.width)
    memory = (ctypes.c_uint8 * values.length).from_address(start)
    found = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
    # numpy copies in this thread alone; torch would start a team of threads for each of ours
    np.copyto(found.numpy(), np.ctypeslib.as_array(memory).reshape(shape))
    return found  # the capsule lives until here
