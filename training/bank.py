"""Pictures with their truth as arrays, drawn by all cores before training."""

from __future__ import annotations

import math
import mmap
import multiprocessing
import os
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scenes import COLOURS, RECEIPT, SCENE, SHAPES, Picture, ask, generator, receipt, scene
from tokenizers import Encoding, Tokenizer

ASSETS = Path(__file__).parents[1] / "qvl_lab" / "assets" / "tiny"
CHARACTERS = "0123456789."
MOST_SHAPES, MOST_CHARACTERS = 6, 6
#: Turns of a scene and of a receipt, long ones first, and the longest of each kind in tokens.
LONG, SHORT = ("locate",) * 3, ("colour",) * 2 + ("count",) * 2 + ("read",) * 2
RECEIPT_SHORT = ("total",) * 4
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
    characters : (n, 6, 3) float32
        For each place in the printed text: character, counted from 1; centre as shares.
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
        width, height = SCENE if kind == "scene" else RECEIPT
        long, short = (len(LONG), len(SHORT)) if kind == "scene" else (0, len(RECEIPT_SHORT))
        return cls(
            images=_shared((n, height, width, 3), np.uint8),
            shapes=_shared((n, MOST_SHAPES, 6), np.float32),
            characters=_shared((n, MOST_CHARACTERS, 3), np.float32),
            long=_turns((n, long, LONG_TOKENS)),
            short=_turns((n, short, SHORT_TOKENS)),
        )

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


def draw(kind: str, n: int, purpose: str, seed: int) -> Bank:
    """``n`` pictures of a kind ("scene" or "receipt"), drawn by all cores; Linux only."""
    bank = Bank.empty(kind, n)
    global _fill_one  # what a forked process inherits need not be pickled
    _fill_one = partial(fill, bank, kind, purpose, seed)
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        pool.map(_call, range(n), chunksize=64)
    return bank


_fill_one: Any = None


def _call(index: int) -> None:
    _fill_one(index)


def fill(bank: Bank, kind: str, purpose: str, seed: int, index: int) -> None:
    """Draw picture ``index`` and write it and its truth into the bank."""
    rng = generator(purpose, index, seed, kind)
    picture = scene(rng) if kind == "scene" else receipt(rng)
    bank.images[index] = np.asarray(picture.image)
    sides = np.array(picture.image.size, np.float32)
    for k, shape in enumerate(picture.shapes):
        form, colour = list(SHAPES).index(shape.form) + 1, list(COLOURS).index(shape.colour) + 1
        bank.shapes[index, k] = (form, colour, *(np.array(shape.box) / np.tile(sides, 2)))
    for k, centre in enumerate(picture.print.centres):
        character = CHARACTERS.index(picture.print.text[k]) + 1
        bank.characters[index, k] = (character, *(np.array(centre) / sides))
    tasks = (LONG, SHORT) if kind == "scene" else ((), RECEIPT_SHORT)
    for turns, names in zip((bank.long, bank.short), tasks, strict=True):
        for k, task in enumerate(names):
            rows = (turns.ids[index, k], turns.weight[index, k], turns.look[index, k])
            _write_turn(rng, picture, task, *rows)


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
