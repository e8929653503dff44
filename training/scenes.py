"""Draw the pictures that the embedded model learns from and is tested on, with true answers.

A scene is 512 x 512 pixels: two to six coloured shapes that do not overlap, and a label with a
code of four digits in print from 13 to 64 pixels. A receipt is 384 x 640 pixels: items, prices,
and their true total. A sheet is 512 x 512 pixels of labels, for training alone. The random
generator decides everything, so a seed names a picture; training and evaluation use seeds that
cannot meet (:func:`generator`).
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SCENE = (512, 512)
RECEIPT = (384, 640)
PURPOSES = ("train", "evaluate")  # a seed of one is never a seed of the other
SMALL_PRINT, LARGE_PRINT = range(14, 19), range(36, 57)  # font sizes in pixels
MOST_LABELS = 12  # of a sheet

Rgb = tuple[int, int, int]
Box = tuple[float, float, float, float]

COLOURS: dict[str, tuple[str, Rgb]] = {
    "red": ("红色", (215, 38, 45)), "green": ("绿色", (40, 160, 70)),
    "blue": ("蓝色", (35, 90, 210)), "yellow": ("黄色", (250, 205, 30)),
    "orange": ("橙色", (245, 130, 25)), "purple": ("紫色", (130, 60, 175)),
    "pink": ("粉色", (245, 130, 185)), "brown": ("棕色", (120, 72, 40)),
}  # fmt: skip
SHAPES: dict[str, str] = {
    "circle": "圆形", "square": "正方形", "triangle": "三角形", "star": "五角星", "diamond": "菱形",
}  # fmt: skip
FACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSerif")
SHOPS = "Corner Shop,Green Grocer,City Market,Tea House,Book Store,Bakery,Hardware,Cafe Luna".split(
    ","
)
GOODS = (
    "Green tea,Coffee,Rye bread,Butter,Apples,Bananas,Rice 2 kg,Olive oil,Eggs x12,Milk,Yogurt,"
    "Tomatoes,Carrots,Salmon,Tofu,Noodles,Soy sauce,Honey,Almonds,Soap,Batteries,Notebook,Pencils"
).split(",")
#: Phrasings in English and Chinese; the answer is in the language of the question.
QUESTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "colour": (
        ("What colour is the {en}?", "What color is the {en}?"),
        ("图中的{zh}是什么颜色？", "{zh}是什么颜色？"),
    ),
    "count": (
        ("How many {en}s are there?", "Count the {en}s."),
        ("图中有几个{zh}？", "数一数{zh}的数量。"),
    ),
    "locate": (
        ("Where is the {en}? Give JSON with bbox_2d (0-1000) and label.", "Locate the {en}."),
        ("{zh}在哪里？请用 JSON 给出 bbox_2d（0-1000）和 label。", "定位{zh}。"),
    ),
    "read": (
        ("What is the code?", "Read the code on the label."),
        ("编号是多少？", "请读出标签上的编号。"),
    ),
    "total": (
        ("What is the total?", "What is the total amount on the receipt?"),
        ("总计是多少？", "收据的合计金额是多少？"),
    ),
}


@dataclass(frozen=True)
class Shape:
    """One drawn shape; the box is (left, top, right, bottom) in pixels."""

    form: str
    colour: str
    box: Box


@dataclass(frozen=True)
class Print:
    """The text to be read: its font size and the centre of each character, in pixels."""

    text: str
    size: int
    centres: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Picture:
    """A drawn picture with all that is true about it."""

    image: Image.Image
    shapes: tuple[Shape, ...]
    prints: tuple[Print, ...]


@dataclass(frozen=True)
class Question:
    """A question with its true answer, and the shape that it is about, if it is about one."""

    task: str
    text: str
    answer: str
    about: Shape | None = None


def generator(purpose: str, index: int, seed: int = 0, kind: str = "scene") -> np.random.Generator:
    """The random generator of one picture; purposes and kinds never share a stream."""
    start = {"scene": 0, "sheet": 2**30, "receipt": 2**31}[kind]
    return np.random.default_rng([seed, PURPOSES.index(purpose), start + index])


# ---- questions


def ask(rng: np.random.Generator, task: str, picture: Picture) -> Question:
    """A question of ``task`` in a random language and phrasing.

    ``colour`` asks about a shape that is there once, ``locate`` about any, ``count`` about a form
    or all shapes.
    """
    zh = bool(rng.integers(2))
    phrasing = str(rng.choice(QUESTIONS[task][zh]))
    if task in ("read", "total"):
        return Question(task, phrasing, picture.prints[0].text)
    if task == "count":
        return _count(rng, phrasing, picture.shapes, zh)
    if task == "colour":
        forms = [shape.form for shape in picture.shapes]
        shape = _pick(rng, [s for s in picture.shapes if forms.count(s.form) == 1])
        text = phrasing.format(en=shape.form, zh=SHAPES[shape.form])
        return Question(task, text, COLOURS[shape.colour][0] if zh else shape.colour, shape)
    shape = _pick(rng, picture.shapes)
    en, name = f"{shape.colour} {shape.form}", COLOURS[shape.colour][0] + SHAPES[shape.form]
    sides = picture.image.size * 2
    scaled = [round(1000 * v / side) for v, side in zip(shape.box, sides, strict=True)]
    answer = json.dumps([{"bbox_2d": scaled, "label": name if zh else en}], ensure_ascii=False)
    return Question(task, phrasing.format(en=en, zh=name), answer, shape)


def _count(
    rng: np.random.Generator, phrasing: str, shapes: tuple[Shape, ...], zh: bool
) -> Question:
    if rng.random() < 0.2:
        return Question("count", phrasing.format(en="shape", zh="图形"), str(len(shapes)))
    forms = [shape.form for shape in shapes]
    form = str(rng.choice(forms if rng.random() < 0.7 else list(SHAPES)))
    text = phrasing.format(en=form, zh=SHAPES[form])
    return Question("count", text, str(forms.count(form)))


def _pick(rng: np.random.Generator, shapes: list[Shape] | tuple[Shape, ...]) -> Shape:
    return shapes[int(rng.integers(len(shapes)))]


# ---- scenes


def scene(rng: np.random.Generator, sizes: range | None = None) -> Picture:
    """Shapes and a label; ``sizes`` are the font sizes that its code may have."""
    image = _background(rng, SCENE)
    label = _Label.any(rng, _sizes(rng) if sizes is None else sizes)
    plate = label.somewhere(rng)
    shapes = _shapes(rng, image, plate)
    text = label.stick(rng, image, plate)
    return Picture(_photographed(rng, image), shapes, (text,))


def _sizes(rng: np.random.Generator) -> range:
    """Font sizes of small, middle or large print."""
    kind: int = rng.choice(3, p=[0.55, 0.2, 0.25])
    return (range(13, 20), range(20, 36), range(36, 65))[kind]


@dataclass(frozen=True)
class _Label:
    """A plate with a text on it."""

    text: str
    face: ImageFont.FreeTypeFont
    pad: int

    @classmethod
    def any(cls, rng: np.random.Generator, sizes: range, money: bool = False) -> _Label:
        size = int(rng.choice(sizes))
        face = _font(str(rng.choice(FACES)), size)
        code = "".join(map(str, rng.integers(0, 10, 4)))
        text = _money(int(rng.integers(100, 30000))) if money else code
        return cls(text, face, 4 + size // 5)

    def somewhere(self, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """A random place for the plate on a scene."""
        width = math.ceil(self.face.getlength(self.text)) + 2 * self.pad
        height = round(self.face.size) + 2 * self.pad
        left, top = (
            int(rng.integers(4, side - s - 4))
            for side, s in zip(SCENE, (width, height), strict=True)
        )
        return left, top, left + width, top + height

    def stick(
        self, rng: np.random.Generator, image: Image.Image, plate: tuple[int, int, int, int]
    ) -> Print:
        light, dark = (tuple(int(v) for v in rng.integers(*r, 3)) for r in ((225, 256), (0, 70)))
        paper, ink = (light, dark) if rng.random() < 0.75 else (dark, light)
        draw = ImageDraw.Draw(image)
        draw.rounded_rectangle(plate, self.pad, paper)
        left, top = plate[0] + self.pad, plate[1] + self.pad
        return _write(draw, self.text, left, top, self.face, ink)


def _shapes(rng: np.random.Generator, image: Image.Image, plate: Box) -> tuple[Shape, ...]:
    """Two to six shapes, each (form, colour) at most once and one form only once."""
    wanted = int(rng.integers(2, 7))
    forms = [str(form) for form in rng.choice(list(SHAPES), 3, replace=False)]
    pairs = [(forms[0], str(rng.choice(list(COLOURS))))]
    others = [(form, colour) for form in forms[1:] for colour in COLOURS]
    pairs += [others[i] for i in rng.choice(len(others), wanted - 1, replace=False)]
    taken, shapes = [plate], []
    for form, colour in pairs:
        place = _free_place(rng, taken)
        if place is None:
            continue
        x, y, r = place
        taken.append((x - r, y - r, x + r, y + r))
        shapes.append(_draw_shape(rng, image, form, colour, x, y, r))
    return tuple(shapes)


def _free_place(rng: np.random.Generator, taken: list[Box]) -> tuple[int, int, int] | None:
    for _ in range(60):
        r = int(rng.integers(20, 61))
        x, y = (int(v) for v in rng.integers(r + 4, SCENE[0] - r - 4, 2))
        if all(
            x - r > right + 5 or x + r < left - 5 or y - r > bottom + 5 or y + r < top - 5
            for left, top, right, bottom in taken
        ):
            return x, y, r
    return None


def _draw_shape(
    rng: np.random.Generator, image: Image.Image, form: str, colour: str, x: int, y: int, r: int
) -> Shape:
    mask = Image.new("L", (4 * r, 4 * r))  # drawn at twice the size for smooth edges
    ImageDraw.Draw(mask).polygon(
        [(2 * r * (1 + a), 2 * r * (1 + b)) for a, b in _outline(form)], 255
    )
    mask = mask.resize((2 * r, 2 * r), Image.Resampling.BOX)
    rgb = np.clip(np.array(COLOURS[colour][1]) + rng.integers(-12, 13, 3), 0, 255)
    image.paste(tuple(int(v) for v in rgb), (x - r, y - r), mask)
    left, top, right, bottom = mask.getbbox() or (0, 0, 2 * r, 2 * r)
    return Shape(form, colour, (x - r + left, y - r + top, x - r + right, y - r + bottom))


@functools.cache
def _outline(form: str) -> tuple[tuple[float, float], ...]:
    """Corners of a form within the square from -1 to 1."""
    if form == "square":
        return ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9))
    corners = {"circle": 90, "triangle": 3, "diamond": 4, "star": 10}[form]
    radii = [1.0, 0.42] if form == "star" else [1.0, 1.0]
    angles = [2 * math.pi * k / corners for k in range(corners)]
    return tuple(
        (radii[k % 2] * math.sin(a), -radii[k % 2] * math.cos(a)) for k, a in enumerate(angles)
    )


# ---- sheets


def sheet(rng: np.random.Generator) -> Picture:
    """Up to twelve labels, codes and prices: for learning to read, many texts a picture.

    No two characters of different labels come within 40 pixels in both directions, so that
    each visual token sees one text, at 384 pixels too.
    """
    image = _background(rng, SCENE)
    labels: list[_Label] = []
    plates: list[tuple[int, int, int, int]] = []
    for _ in range(MOST_LABELS):
        label = _Label.any(rng, _sizes(rng), money=rng.random() < 0.3)
        plate = _place_apart(rng, label, plates)
        if plate is not None:
            labels.append(label)
            plates.append(plate)
    pairs = zip(labels, plates, strict=True)
    texts = tuple(label.stick(rng, image, plate) for label, plate in pairs)
    return Picture(_photographed(rng, image), (), texts)


def _place_apart(
    rng: np.random.Generator, label: _Label, plates: list[tuple[int, int, int, int]]
) -> tuple[int, int, int, int] | None:
    for _ in range(20):
        plate = label.somewhere(rng)
        left, top, right, bottom = (v + d for v, d in zip(plate, (-24, -24, 24, 24), strict=True))
        if all(left > r or right < x or top > b or bottom < y for x, y, r, b in plates):
            return plate
    return None


# ---- receipts


def receipt(rng: np.random.Generator) -> Picture:
    """Items with prices, and their sum behind TOTAL."""
    width, height = RECEIPT
    image = _background(rng, RECEIPT, low=228)
    draw = ImageDraw.Draw(image)
    name = str(rng.choice(FACES))
    body, bold = _font(name, int(rng.integers(15, 20))), _font(name, int(rng.integers(20, 31)))
    ink = tuple(int(v) for v in rng.integers(0, 60, 3))
    margin, y = int(rng.integers(18, 40)), float(rng.integers(16, 40))
    draw.text((width / 2, y), str(rng.choice(SHOPS)), ink, _font(name, 30), anchor="ma")
    y += 44
    date = f"2025-{rng.integers(1, 13):02d}-{rng.integers(1, 29):02d}"
    draw.text((width / 2, y), date, ink, body, anchor="ma")
    y += 34
    cents = rng.integers(100, 4000, int(rng.integers(3, 9)))
    for price, good in zip(cents, rng.choice(GOODS, len(cents), replace=False), strict=True):
        _line(draw, str(good), _money(int(price)), margin, y, body, ink)
        y += body.size * 1.6
    draw.line((margin, y + 4, width - margin, y + 4), ink, 2)
    y += 14
    total = _money(int(cents.sum()))
    start = width - margin - bold.getlength(total)
    draw.text((margin, y), "TOTAL", ink, bold)
    text = _write(draw, total, start, y, bold, ink)
    y += bold.size * 1.7
    if rng.random() < 0.5:
        paid = math.ceil(int(cents.sum()) / 1000) * 1000
        _line(draw, "Cash", _money(paid), margin, y, body, ink)
        change = _money(paid - int(cents.sum()))
        _line(draw, "Change", change, margin, y + body.size * 1.6, body, ink)
        y += body.size * 3.2
    draw.text((width / 2, y + 14), "Thank you", ink, body, anchor="ma")
    assert y + 14 + body.size < height
    return Picture(_photographed(rng, image), (), (text,))


def _line(
    draw: ImageDraw.ImageDraw, left: str, right: str, margin: int, y: float,
    font: ImageFont.FreeTypeFont, ink: tuple[int, ...],
) -> None:  # fmt: skip
    draw.text((margin, y), left, ink, font)
    draw.text((RECEIPT[0] - margin, y), right, ink, font, anchor="ra")


def _money(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02d}"


# ---- drawing


def _write(
    draw: ImageDraw.ImageDraw, text: str, x: float, y: float,
    font: ImageFont.FreeTypeFont, ink: tuple[int, ...],
) -> Print:  # fmt: skip
    draw.text((x, y), text, ink, font)
    top, bottom = font.getbbox("0")[1::2]
    ends = [font.getlength(text[:i]) for i in range(len(text) + 1)]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(ends)]
    centres = tuple((x + middle, y + (top + bottom) / 2) for middle in middles)
    return Print(text, round(font.size), centres)


@functools.cache
def _font(face: str, size: int) -> ImageFont.FreeTypeFont:
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"
    return ImageFont.truetype(str(path), size)


def _background(rng: np.random.Generator, size: tuple[int, int], low: int = 110) -> Image.Image:
    """A pale, uneven ground: a coarse grid of greys with a tint, enlarged."""
    level = rng.integers(low, 240)
    grid = level + rng.integers(-14, 15, (1, 1, 3)) + rng.integers(-12, 13, (5, 5, 1))
    small = Image.fromarray(np.clip(grid, 0, 255).astype(np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def _photographed(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Half of the pictures pass through a JPEG file."""
    if rng.random() < 0.5:
        return image
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(rng.integers(75, 96)))
    return Image.open(file).convert("RGB")
