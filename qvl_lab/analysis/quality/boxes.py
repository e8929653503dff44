"""Boxes in an answer, as strict as the form that is asked for: read, and compared one to one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from qvl_lab.errors import ConfigError

Box = tuple[float, float, float, float]
Floats = NDArray[np.float64]

#: Characters of an answer that are searched for boxes.
MAX_PARSED_CHARS = 20_000

# Whitespace is collapsed beforehand and numbers are possessive, so every match looks at each
# character a bounded number of times.
_NUMBER = r"([-+]?[0-9]++(?:\.[0-9]++)?+)"
_JOIN = r"(?: ?[\])] ?(?:,|and|to|至|到)? ?[\[(] ?| ?, ?)"
_BRACKETED = re.compile(
    rf"[\[(] ?{_NUMBER} ?, ?{_NUMBER}{_JOIN}{_NUMBER} ?, ?{_NUMBER} ?[\])]",
)
#: Four numbers in running text: not five, and not the rest of a list that was cut off.
_UNBRACKETED = re.compile(
    rf"(?<![\[(0-9.,+-])(?<![\[(,] ){_NUMBER} ?, ?{_NUMBER} ?, ?{_NUMBER} ?, ?{_NUMBER}"
    r"(?! ?,? ?[-+0-9])"
)
_SPECIAL_TOKEN = re.compile(r"<\|[a-z_]{1,30}\|>")
_BOX_NAME = re.compile(r"<\|box_start\|>|[\"'](?:bbox_2d|box_2d|bbox|box)\\?[\"']")
_EMPTY_LIST = re.compile(r"\[ ?\]")
#: Nothing but brackets and numbers, in a code fence or not.
_ONLY_BOXES = re.compile(r"(?:```(?:json)? ?)?[\[(][\[\](){}0-9.,+\- ]*(?:```)?")
HALF_WIDTH = str.maketrans("（），［］：０１２３４５６７８９", "(),[]:0123456789")


def parse_boxes(text: str) -> list[Box] | None:
    """The boxes that an answer names, as (x1, y1, x2, y2) in 0-1000.

    Reads what Qwen models write: JSON with ``bbox_2d`` (or any other name), fenced, with text
    around it, in single quotes, or cut off (its complete boxes); ``<|box_start|>(x1,y1),(x2,y2)
    <|box_end|>`` with or without the special tokens; four numbers in brackets or bare. Corners are
    put in order and coordinates clipped. Only the first :data:`MAX_PARSED_CHARS` are looked at.

    Returns
    -------
    list of tuple or None
        Empty if the answer says that there are none, ``[]``; None if no box can be read.
    """
    found = read_numbers(text)
    return None if found is None else [box_of(numbers) for numbers in found]


def read_numbers(text: str) -> list[Box] | None:
    """The four numbers of each box as they are written; see :func:`parse_boxes`."""
    text = _SPECIAL_TOKEN.sub(" ", text[:MAX_PARSED_CHARS].translate(HALF_WIDTH))
    text = " ".join(text.split())
    found = _BRACKETED.findall(text) or _UNBRACKETED.findall(text)
    if not found:
        named_none = _EMPTY_LIST.search(text) and not _BOX_NAME.search(text)
        return [] if named_none else None
    return [(float(a), float(b), float(c), float(d)) for a, b, c, d in found]


def iou(answer: str, expected: str) -> float:
    """Mean overlap (intersection over union) of the boxes, matched one to one.

    The matching is the best one; a box without a partner, expected or not, counts as 0.

    Raises
    ------
    ConfigError
        If no box can be read from the expected answer.
    """
    return mean_overlap(*_matched(answer, expected))


def box_accuracy(answer: str, expected: str) -> float:
    """F1 of the boxes that overlap their partner by half or more; labels are not compared.

    Boxes are matched as in :func:`iou`, and errors are the same.
    """
    return f1_of_half(*_matched(answer, expected))


def box_of(numbers: Iterable[float]) -> Box:
    """Corners in order, within 0-1000."""
    x1, y1, x2, y2 = (min(max(number, 0.0), 1000.0) for number in numbers)
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def is_box_answer(text: str) -> bool:
    """Whether a text is boxes rather than words in which four numbers happen to occur."""
    if parse_boxes(text) is None:
        return False
    return bool(_BOX_NAME.search(text) or _ONLY_BOXES.fullmatch(" ".join(text.split())))


def mean_overlap(overlaps: Floats, found: int, wanted: int) -> float:
    """Of the matched pairs, for the larger number of boxes."""
    return float(overlaps.sum() / max(found, wanted)) if max(found, wanted) else 1.0


def f1_of_half(overlaps: Floats, found: int, wanted: int) -> float:
    """F1 of the pairs that overlap by half or more."""
    return 2 * int((overlaps >= 0.5).sum()) / (found + wanted) if found + wanted else 1.0


def wanted_boxes(expected: str) -> list[Box]:
    """The boxes of an expected answer.

    Raises
    ------
    ConfigError
        If no box can be read from it.
    """
    wanted = parse_boxes(expected)
    if wanted is None:
        raise ConfigError(no_box(expected))
    return wanted


def best_pairs(overlaps: Floats) -> Floats:
    """The overlaps of the one-to-one matching with the largest sum."""
    from scipy.optimize import linear_sum_assignment

    best: Floats = overlaps[linear_sum_assignment(overlaps, maximize=True)]
    return best


def _matched(answer: str, expected: str) -> tuple[Floats, int, int]:
    """Overlaps of the matched pairs, and how many boxes were found and wanted."""
    wanted = wanted_boxes(expected)
    found = parse_boxes(answer)
    if found is None:
        # unreadable is wrong even where no box is wanted, so it counts as one wrong box
        return np.zeros(0), 1, len(wanted)
    return best_pairs(overlaps_of(found, wanted)), len(found), len(wanted)


def overlaps_of(found: Sequence[Box], wanted: Sequence[Box]) -> Floats:
    """Intersection over union of every box found with every one wanted."""
    a, b = np.reshape(found, (-1, 4))[:, None], np.reshape(wanted, (-1, 4))[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    both = sides.clip(0).prod(-1)
    either = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - both
    # boxes without area overlap if they are the same
    same = (a == b).all(-1).astype(float)
    overlaps: Floats = np.divide(both, either, out=same, where=either > 0)
    return overlaps


def no_box(expected: str) -> str:
    return (
        f"no box can be read from the expected answer {expected[:80]!r}; write it as "
        '[{"bbox_2d": [x1, y1, x2, y2], "label": "..."}] in 0-1000, or give its task another '
        'metric: metrics={"task": "exact_match"}'
    )
