"""Boxes in whatever form a model writes them: as shares, in pixels, by names of corners, labelled.

The strict metrics of :mod:`qvl_lab.analysis.quality.boxes` read numbers as 0-1000, as questions ask
for; a right box in another form is a wrong one to them. Here forms are told apart, and a form is
converted where nothing else can be meant.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qvl_lab.analysis.quality.boxes import (
    HALF_WIDTH,
    MAX_PARSED_CHARS,
    Box,
    best_pairs,
    box_of,
    f1_of_half,
    mean_overlap,
    overlaps_of,
    read_numbers,
    wanted_boxes,
)

THOUSANDTHS, FRACTIONS, PIXELS = "thousandths", "fractions", "pixels"
#: A box in pixels may reach this much beyond the image, by rounding.
MARGIN = 1.02
#: Names under which a box's numbers stand one by one, opposite corners first.
_CORNERS = (
    ("x1", "y1", "x2", "y2"),
    ("x_1", "y_1", "x_2", "y_2"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("left", "top", "right", "bottom"),
)
_LABEL_KEYS = ("label", "name", "class", "object", "标签")
_OBJECT_REF = re.compile(r"<\|object_ref_start\|>([^<]{1,200})<\|object_ref_end\|>")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")
#: JSON that is nested deeper than this is not searched for boxes.
_DEEPEST = 4


@dataclass(frozen=True, kw_only=True)
class NamedBoxes:
    """The boxes of an answer in 0-1000, each with its label or None, and the form they had.

    ``form`` is "thousandths", "fractions" (0-1) or "pixels". Boxes in pixels are converted where
    the image's size is known; otherwise ``converted`` is False and they are read as 0-1000.
    """

    boxes: list[Box]
    labels: list[str | None]
    form: str = THOUSANDTHS
    converted: bool = True


def read_boxes(
    text: str, size: tuple[int, int] | None = None, *, pixels: bool = False
) -> NamedBoxes | None:
    """Boxes of an answer, with their labels and in which form they were.

    Read is what :func:`qvl_lab.analysis.quality.boxes.parse_boxes` reads, and JSON that names the
    corners: ``{"x1": .., "y1": .., "x2": .., "y2": ..}``. All boxes of an answer have one form:

    - fractions if no number is above 1 and one is no whole number;
    - pixels if ``pixels`` says so, or a number is above 1000, and the boxes fit the image;
    - thousandths otherwise. A model that writes pixels of an image that is smaller than 1000 pixels
      cannot be told from one that writes thousandths, unless ``pixels`` says so.

    Parameters
    ----------
    size : (int, int), optional
        Width and height in pixels of the image as the model saw it.
    pixels : bool
        Whether this model is known to write pixels, as Qwen2.5-VL does.
    """
    found = _named(text[:MAX_PARSED_CHARS])
    if found is None:
        numbers = read_numbers(text)
        if numbers is None:
            return None
        labels = _OBJECT_REF.findall(text[:MAX_PARSED_CHARS])
        alone: list[str | None] = [None] * len(numbers)
        found = numbers, labels if len(labels) == len(numbers) else alone
    numbers, labels = found
    form = _form(numbers, size, pixels)
    scales = {FRACTIONS: (1000.0, 1000.0)}
    if size:
        scales[PIXELS] = (1000 / size[0], 1000 / size[1])
    x, y = scales.get(form, (1.0, 1.0))
    boxes = [box_of((a * x, b * y, c * x, d * y)) for a, b, c, d in numbers]
    converted = form == THOUSANDTHS or form in scales
    return NamedBoxes(boxes=boxes, labels=labels, form=form, converted=converted)


def compare_boxes(metric: str, found: NamedBoxes | None, expected: str) -> float:
    """Score boxes by a metric of boxes; those whose labels contradict each other are no pair.

    Parameters
    ----------
    metric : str
        "box_accuracy" or "iou".
    found : NamedBoxes or None
        From :func:`read_boxes`; None counts as one wrong box.
    """
    counted = {"box_accuracy": f1_of_half, "iou": mean_overlap}[metric]
    wanted = wanted_boxes(expected)
    if found is None:
        return counted(np.zeros(0), 1, len(wanted))
    named = read_boxes(expected)
    labels = named.labels if named and len(named.labels) == len(wanted) else [None] * len(wanted)
    overlaps = overlaps_of(found.boxes, wanted)
    for i, mine in enumerate(found.labels):
        for j, theirs in enumerate(labels):
            if contradict(mine, theirs):
                overlaps[i, j] = 0
    return counted(best_pairs(overlaps), len(found.boxes), len(wanted))


def contradict(one: str | None, other: str | None) -> bool:
    """Whether two labels cannot name the same thing.

    "circle" and "red circle" can, "blue circle" and "red circle" cannot. Labels in two scripts are
    not compared.
    """
    if not one or not other or bool(_CJK.search(one)) != bool(_CJK.search(other)):
        return False
    if _CJK.search(one):
        a, b = (re.sub(r"[\W_的]", "", label) for label in (one, other))
        return not (a in b or b in a)
    mine, theirs = (set(re.findall(r"\w+", label.casefold())) for label in (one, other))
    return not (mine <= theirs or theirs <= mine)


def _form(numbers: Sequence[Box], size: tuple[int, int] | None, pixels: bool) -> str:
    values = [value for box in numbers for value in box]
    if not values:
        return THOUSANDTHS
    if min(values) >= 0 and max(values) <= 1 and any(0 < value < 1 for value in values):
        return FRACTIONS
    if not pixels and max(values) <= 1000:
        return THOUSANDTHS
    if size is None:
        return PIXELS
    fits = all(
        max(a, c) <= MARGIN * size[0] and max(b, d) <= MARGIN * size[1] for a, b, c, d in numbers
    )
    return PIXELS if fits else THOUSANDTHS


def _named(text: str) -> tuple[list[Box], list[str | None]] | None:
    """Boxes and labels of an answer in JSON; None if it is none, or has no box."""
    text = text.translate(HALF_WIDTH)
    starts = [place for place in (text.find("["), text.find("{")) if place >= 0]
    ends = max(text.rfind("]"), text.rfind("}"))
    try:
        value = json.loads(text[min(starts, default=0) : ends + 1])
    except (ValueError, RecursionError):
        return None
    boxes, labels = [], []
    for entry in _entries(value, 0):
        if (box := _corners(entry)) is not None:
            boxes.append(box)
            labels.append(_label(entry))
    return (boxes, labels) if boxes else None


def _entries(value: Any, depth: int) -> Iterator[Mapping[str, Any]]:
    if depth > _DEEPEST:
        return
    if isinstance(value, dict):
        yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in inner:
        yield from _entries(part, depth + 1)


def _corners(entry: Mapping[str, Any]) -> Box | None:
    lists = [value for value in entry.values() if isinstance(value, list)]
    named = [[entry[n] for n in names] for names in _CORNERS if all(n in entry for n in names)]
    for values in (*lists, *named):
        if len(values) == 4 and all(_is_number(value) for value in values):
            x1, y1, x2, y2 = map(float, values)
            return x1, y1, x2, y2
    return None


def _is_number(value: Any) -> bool:
    """A number that is neither infinite nor true or false; JSON knows NaN in Python."""
    return type(value) in (int, float) and abs(value) < 1e9


def _label(entry: Mapping[str, Any]) -> str | None:
    labels = [entry[key] for key in _LABEL_KEYS if isinstance(entry.get(key), str)]
    return labels[0] if labels else None
