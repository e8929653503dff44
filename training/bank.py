"""Pictures with their truth as arrays, drawn by all cores before and during training."""

from __future__ import annotations

import math
import mmap
import multiprocessing
import os
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scenes import (
    COLOURS,
    MOST_LABELS,
    PURPOSES,
    RECEIPT,
    SCENE,
    SHAPES,
    Picture,
    ask,
    generator,
    receipt,
    scene,
    sheet,
)
from tokenizers import Encoding, Tokenizer

ASSETS = Path(__file__).parents[1] / "qvl_lab" / "assets" / "tiny"
CHARACTERS = "0123456789."
MOST_SHAPES, MOST_CHARACTERS = 6, 6
#: Turns of a scene and of a receipt, long ones first, and the longest of each kind in tokens.
LONG, SHORT = ("locate",) * 3, ("colour",) * 2 + ("count",) * 2 + ("read",) * 2
RECEIPT_SHORT = ("total",) * 4
DRAWERS = {"scene": scene, "receipt": receipt, "sheet": sheet}
SIZES = {"scene": SCENE, "receipt": RECEIPT, "sheet": SCENE}
TURNS = {"scene": (LONG, SHORT), "receipt": ((), RECEIPT_SHORT), "sheet": ((), ())}
TEXTS = {"scene": 1, "receipt": 1, "sheet": MOST_LABELS}
LONG_TOKENS, SHORT_TOKENS = 64, 24
#: ``look``: nowhere, at shape 1-6, or at character 1-6 of the printed text.
NOWHERE, FIRST_SHAPE, FIRST_CHARACTER = 0, 1, 1 + MOST_SHAPES
#: How much a token counts: template of a box, its digits by place, a token of a short answer.
TEMPLATE, UNITS, TENS, HUNDREDS, WORD = 1, 1, 4, 6, 4


@dataclass
class Turns:
    """Question, template and answer of k turns on each of n pictures, padded with 0.

    Attributes
    ----------
    ids : (n, k, tokens) int16
    weight : (n, k, tokens) uint8
        How much predicting this token counts; 0 outside answers.
    look : (n, k, tokens) int8
        Where in the picture the token is to be found.
    """

    ids: Any
    weight: Any
    look: Any


@dataclass
class Bank:
    """Pictures of one size.

    Attributes
    ----------
    images : (n, height, width, 3) uint8
    shapes : (n, 6, 6) float32
        Form and colour, counted from 1, 0 for none; box as shares of width and height.
    characters : (n, 6 * texts, 3) float32
        For each place in each printed text: character, counted from 1; centre as shares.
    long, short : Turns
    """

    images: Any
    shapes: Any
    characters: Any
    long: Turns
    short: Turns

    @classmethod
    def empty(cls, kind: str, n: int) -> Bank:
        """Zeros in memory that forked processes share."""
        width, height = SIZES[kind]
        long, short = map(len, TURNS[kind])
        return cls(
            images=_shared((n, height, width, 3), np.uint8),
            shapes=_shared((n, MOST_SHAPES, 6), np.float32),
            characters=_shared((n, MOST_CHARACTERS * TEXTS[kind], 3), np.float32),
            long=_turns((n, long, LONG_TOKENS)),
            short=_turns((n, short, SHORT_TOKENS)),
        )

    def clear(self) -> None:
        """Zeros again, but for the images, which are overwritten."""
        for array in self.arrays()[1:]:
            array[...] = 0

    def copy_(self, other: Bank) -> None:
        """Overwrite with another bank of the same size, on whatever device."""
        for mine, theirs in zip(self.arrays(), other.arrays(), strict=True):
            mine.copy_(torch.from_numpy(theirs))

    def arrays(self) -> list[Any]:
        """Every array, ``images`` first."""
        turns = (getattr(t, f.name) for t in (self.long, self.short) for f in fields(t))
        return [self.images, self.shapes, self.characters, *turns]

    def to(self, device: str) -> Bank:
        """The same on a device, as tensors."""
        moved: Bank = _moved(self, device)
        return moved

    def __len__(self) -> int:
        return len(self.images)


def _moved(arrays: Any, device: str) -> Any:
    if not isinstance(arrays, Bank | Turns):
        return torch.from_numpy(arrays).to(device)
    moved = {f.name: _moved(getattr(arrays, f.name), device) for f in fields(arrays)}
    return type(arrays)(**moved)


def _turns(shape: tuple[int, int, int]) -> Turns:
    return Turns(_shared(shape, np.int16), _shared(shape, np.uint8), _shared(shape, np.int8))


def _shared(shape: tuple[int, ...], dtype: type) -> Any:
    size = max(1, math.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, size), dtype)[: math.prod(shape)].reshape(shape)


class Supply:
    """New pictures while training goes on: a round is drawn while the last is trained on.

    Pictures are in memory that processes share, twice: as the next round on the host, as this
    round on the device. The processes are forked, so make this before the device is touched.
    Linux only.

    Parameters
    ----------
    counts : pictures a round of each kind, "scene", "receipt" or "sheet"
    seed, purpose : of :func:`scenes.generator`; round ``r`` has pictures ``r * n`` to
        ``(r + 1) * n - 1``
    """

    def __init__(self, counts: dict[str, int], seed: int, purpose: str = PURPOSES[0]) -> None:
        self._counts, self._seed, self._purpose, self._round = counts, seed, purpose, 0
        self._host = {kind: Bank.empty(kind, n) for kind, n in counts.items()}
        self._device: dict[str, Bank] = {}
        context = multiprocessing.get_context("fork")
        # fork hands the banks over as they are: nothing is pickled
        workers = max(1, _cores() - 1)  # one goes on training
        self._pool = context.Pool(workers, _share, (self._host,))
        self._begin()

    def _begin(self) -> None:
        jobs = [
            (kind, row, self._purpose, self._round * n + row, self._seed)
            for kind, n in self._counts.items()
            for row in range(n)
        ]
        self._drawing = self._pool.starmap_async(_fill_shared, jobs, chunksize=32)
        self._round += 1

    def next(self, device: str, last: bool = False) -> dict[str, Bank]:
        """Wait for the round, copy it to the device, begin the following one unless ``last``."""
        self._drawing.get()
        for kind, bank in self._host.items():
            if kind in self._device:
                self._device[kind].copy_(bank)
            else:
                self._device[kind] = bank.to(device)
        if last:
            self._pool.terminate()
        else:
            for bank in self._host.values():
                bank.clear()
            self._begin()
        return self._device


_banks: dict[str, Bank] = {}


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _share(banks: dict[str, Bank]) -> None:
    _banks.update(banks)


def _fill_shared(kind: str, row: int, *picture: Any) -> None:
    purpose, index, seed = picture
    fill(_banks[kind], kind, row, generator(purpose, index, seed, kind))


def fill(bank: Bank, kind: str, row: int, rng: np.random.Generator) -> None:
    """Draw a picture and write it and its truth into a row of the bank."""
    picture = DRAWERS[kind](rng)
    bank.images[row] = np.asarray(picture.image)
    sides = np.array(picture.image.size, np.float32)
    for k, shape in enumerate(picture.shapes):
        form, colour = list(SHAPES).index(shape.form) + 1, list(COLOURS).index(shape.colour) + 1
        bank.shapes[row, k] = (form, colour, *(np.array(shape.box) / np.tile(sides, 2)))
    for t, text in enumerate(picture.prints):
        for k, (character, centre) in enumerate(zip(text.text, text.centres, strict=True)):
            known = CHARACTERS.index(character) + 1
            bank.characters[row, t * MOST_CHARACTERS + k] = (known, *(np.array(centre) / sides))
    for turns, names in zip((bank.long, bank.short), TURNS[kind], strict=True):
        for k, task in enumerate(names):
            _write_turn(
                rng, picture, task, turns.ids[row, k], turns.weight[row, k], turns.look[row, k]
            )


def _write_turn(
    rng: np.random.Generator, picture: Picture, task: str, ids: Any, weight: Any, look: Any
) -> None:
    """Fill the rows (tokens,) with one turn, as the chat template would word it."""
    question = ask(rng, task, picture)
    before = encode(question.text + "<|im_end|>\n<|im_start|>assistant\n").ids
    answer = encode(question.answer + "<|im_end|>")
    span = slice(len(before), len(before) + len(answer.ids))
    ids[: span.stop] = before + answer.ids  # raises if a turn is too long
    if task == "locate":
        weight[span], inside = _box_weights(question.answer, answer)
        look[span] = inside * (FIRST_SHAPE + picture.shapes.index(question.about))
    else:
        weight[span] = WORD
    if task == "colour":
        look[span] = FIRST_SHAPE + picture.shapes.index(question.about)
    if task in ("read", "total"):
        look[span.start : span.stop - 1] = FIRST_CHARACTER + np.arange(len(question.answer))


def _box_weights(text: str, answer: Encoding) -> tuple[list[int], Any]:
    """Weights of an answer's tokens, and 1 where a token lies within the box's numbers."""
    start, stop = text.index(" [") + 2, text.index("]")
    inside = np.array([start <= left < stop for left, _ in answer.offsets])
    weights = []
    for (left, right), within in zip(answer.offsets, inside, strict=True):
        digits = within and text[left:right].isdigit()
        place = len(text[left:stop].split(",")[0])  # 3 for hundreds, 1 for units
        weights.append({3: HUNDREDS, 2: TENS}.get(place, UNITS) if digits else TEMPLATE)
    return weights, inside


@cache
def _tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(ASSETS / "tokenizer.json"))


def encode(text: str) -> Encoding:
    """Text to tokens, special ones included."""
    return _tokenizer().encode(text, add_special_tokens=False)
