"""Generate the image workloads of qvl_lab. Every answer is true by construction.

mixed:   56 images of many kinds, sizes and formats, and mixed.jsonl with 1-2 questions each.
uniform: COUNT photograph-like JPEGs of one size, and uniform.jsonl with one prompt each.

The same seed gives the same rows and the same pixels. Each image has its own random
generator, made from (seed, index), so a cell appended to PLAN changes no earlier image.

Example:
    python data/make_workload.py mixed --out data/mixed
    python data/make_workload.py uniform --out /tmp/uniform --count 96 --width 1024 --height 1024
"""

from __future__ import annotations

import argparse
import colorsys
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

# A cell is: kind, upright size, format. The format's suffix names the pixel mode, or the EXIF
# orientation under which the upright image is stored.
PLAN = """
receipt 480x900 jpg       |bar 800x600 png       |shapes 640x480 png      |day 1280x853 jpg
invoice 1240x1754 jpg     |line 1000x700 jpg     |icon 100x100 png-rgba   |texture 512x512 jpg
ticket 1600x220 png       |bar 2400x320 jpg      |shapes 1024x1024 webp   |sunset 3000x500 jpg
receipt 4032x3024 jpg     |line 640x480 png-pal  |shapes 3024x4032 jpg    |day 4032x3024 jpg
receipt 300x1800 png-l    |bar 480x960 webp      |shapes 200x1400 png     |texture 128x96 png
invoice 1000x1400 webp    |line 1920x1080 png    |icon 128x128 png-pal    |sunset 853x1280 jpg-exif6
receipt 900x1200 jpg-exif8|bar 700x700 png-i16   |shapes 900x600 jpg-exif8|texture 1200x800 jpg-l
ticket 100x100 png        |line 900x600 jpg-l    |shapes 1800x240 png-rgba|night 360x270 png-i16
invoice 1400x1000 jpg-cmyk|bar 1280x720 png-pal  |icon 100x100 jpg        |day 960x640 jpg-cmyk
receipt 720x1280 webp     |line 960x1280 jpg-exif6|shapes 1600x1200 jpg   |sunset 1024x1024 webp
ticket 900x300 png-rgba   |bar 1500x1000 jpg     |shapes 800x800 png-rgba |texture 400x1600 jpg
invoice 800x1100 png-l    |line 1800x360 png     |shapes 1280x720 jpg-cmyk|night 3024x4032 jpg
receipt 600x800 png-pal   |bar 320x240 png       |icon 224x224 webp       |texture 300x200 png-l
invoice 2480x3508 jpg-l   |line 3000x2000 jpg    |shapes 500x700 png-pal  |day 1600x1067 jpg-exif3
"""
EXIF_ORIENTATION = 0x0112
STORED = {  # orientation: how the upright image is turned before it is stored
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}
Rgb = tuple[int, int, int]
Box = tuple[float, float, float, float]
Field = NDArray[np.float32]
Row = dict[str, str | None]

COLOURS: dict[str, tuple[str, Rgb]] = {
    "red": ("红色", (215, 38, 45)), "green": ("绿色", (40, 160, 70)),
    "blue": ("蓝色", (35, 90, 210)), "yellow": ("黄色", (250, 205, 30)),
    "orange": ("橙色", (245, 130, 25)), "purple": ("紫色", (130, 60, 175)),
    "pink": ("粉色", (245, 130, 185)), "brown": ("棕色", (120, 72, 40)),
}  # fmt: skip
SHAPES: dict[str, tuple[str, int]] = {  # Chinese name, corners
    "circle": ("圆形", 180), "square": ("正方形", 4), "triangle": ("三角形", 3),
    "star": ("五角星", 10), "diamond": ("菱形", 4), "hexagon": ("六边形", 6),
}  # fmt: skip
SKIES: dict[str, tuple[str, Rgb, Rgb, Rgb]] = {  # Chinese name, sky top, horizon, disc
    "day": ("白天", (60, 125, 215), (190, 220, 245), (255, 240, 150)),
    "sunset": ("日落", (95, 60, 130), (250, 150, 60), (255, 225, 120)),
    "night": ("夜晚", (6, 8, 28), (28, 34, 72), (235, 235, 220)),
}
GROUNDS: dict[str, tuple[str, Rgb]] = {
    "green": ("绿色", (70, 135, 50)), "brown": ("棕色", (130, 88, 52)),
}  # fmt: skip
GOODS = (
    "Green tea,Coffee beans,Rye bread,Butter,Apples,Bananas,Rice 2 kg,Olive oil,Eggs x12,Milk,"
    "Yogurt,Tomatoes,Carrots,Salmon,Tofu,Noodles,Soy sauce,Honey,Almonds,Soap,Batteries,Notebook,"
    "Pencils,Umbrella,Light bulb,Orange juice"
).split(",")
FILLER = (
    "Please keep this page for your records. Goods may be returned within thirty days in their "
    "original packing. Payment is due on the date shown above. Late payment may carry a fee. "
    "Questions go to the service desk, which is open on weekdays from nine to five."
).split()
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug")
CITIES = ("Oslo", "Rome", "Lima", "Cairo", "Delhi", "Paris", "Tokyo", "Bern")
PICTURES = {
    "receipt": "收据", "invoice": "发票", "ticket": "票券", "bar": "柱状图", "line": "折线图",
}  # fmt: skip
INK: Rgb = (32, 34, 44)


@dataclass(frozen=True)
class Spec:
    """One planned image; the size is that of the upright image."""

    kind: str
    size: tuple[int, int]
    fmt: str

    @property
    def grey(self) -> bool:
        return self.fmt.endswith(("-l", "-i16"))

    @property
    def clear(self) -> bool:
        return self.fmt.endswith("-rgba")


@dataclass(frozen=True)
class Qa:
    """A question in both languages, with its answer; zh_answer only where it differs."""

    task: str
    en: str
    zh: str
    answer: str
    zh_answer: str | None = None


Made = tuple[Image.Image, list[Qa]]


def parse_plan(plan: str) -> list[Spec]:
    specs = []
    for cell in plan.strip().replace("\n", "|").split("|"):
        kind, size, fmt = cell.split()
        width, height = map(int, size.split("x"))
        specs.append(Spec(kind, (width, height), fmt))
    return specs


# ---- questions ----


def read(en: str, zh: str, answer: str) -> Qa:
    return Qa("fine_analysis", en, zh, answer)


def describe(en: str, zh: str, answer: str, zh_answer: str | None = None) -> Qa:
    return Qa("description", en, zh, answer, zh_answer)


def count(en: str, zh: str, n: int) -> Qa:
    return Qa("detection", f"How many {en} are there?", f"图中有几{zh}？", str(n))


def locate(en: str, zh: str, box: Box, size: tuple[int, int]) -> Qa:
    """A grounding question; the answer is in Qwen's form, 0-1000 of the upright image."""
    scaled = [round(1000 * v / side) for v, side in zip(box, size * 2, strict=True)]
    answer, zh_answer = (
        json.dumps([{"bbox_2d": scaled, "label": label}], ensure_ascii=False) for label in (en, zh)
    )
    form = "bbox_2d (0-1000) and label"
    zh_form = "bbox_2d（0-1000）和 label"
    question = f"Where is the {en}? Give JSON with {form}."
    return Qa("detection", question, f"{zh}在哪里？请用 JSON 给出 {zh_form}。", answer, zh_answer)


def what_picture(kind: str) -> Qa:
    en = "What is this: receipt, invoice, ticket, bar chart or line chart?"
    zh = "这是什么：收据、发票、票券、柱状图还是折线图？"
    return describe(en, zh, f"{kind} chart" if kind in ("bar", "line") else kind, PICTURES[kind])


# ---- drawing tools ----


def font(size: float) -> ImageFont.FreeTypeFont:
    face = ImageFont.load_default(size=max(9, round(size)))
    assert isinstance(face, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return face


def code(rng: random.Random) -> str:
    return "".join(rng.choices("ACDEFHKLMNPRTUVWXY", k=2)) + f"-{rng.randint(10000, 99999)}"


def date(rng: random.Random) -> str:
    return f"2025-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def money(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02d}"


def noise(gen: np.random.Generator, size: tuple[int, int], base: int, octaves: int) -> Field:
    """Multi-octave value noise in 0..1; base is the number of cells along the short side."""
    width, height = size
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        cells = base * 2**octave / min(size)
        shape = tuple(max(2, min(side, round(cells * side))) for side in (height, width))
        grid = Image.fromarray(gen.random(shape, dtype=np.float32))
        total += np.asarray(grid.resize(size, Image.Resampling.BICUBIC)) * 0.5**octave
    total -= total.min()
    return total / max(float(total.max()), 1e-6)


def blend(low: Rgb, high: Rgb, weight: Field) -> Field:
    start, end = np.array(low, np.float32), np.array(high, np.float32)
    return start + (end - start) * weight[..., None]


def working_size(size: tuple[int, int]) -> tuple[int, int]:
    """Noise is made at most 1400 px long and then enlarged."""
    scale = min(1.0, 1400 / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def finish(gen: np.random.Generator, pixels: Field, size: tuple[int, int]) -> Image.Image:
    """Bring a field to its final size; smaller images get sensor grain."""
    if size[0] * size[1] <= 1_300_000:
        pixels = pixels + (gen.random((*pixels.shape[:2], 1), dtype=np.float32) - 0.5) * 14
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def texture_image(rng: random.Random, size: tuple[int, int], colour: Rgb) -> Image.Image:
    gen = np.random.default_rng(rng.getrandbits(64))
    field = noise(gen, working_size(size), rng.randint(2, 5), 6)
    return finish(gen, blend((0, 0, 0), colour, 0.5 + 0.6 * field), size)


def landscape_image(
    rng: random.Random, size: tuple[int, int], top: Rgb, low: Rgb, ground: Rgb, clouds: float
) -> Image.Image:
    """Sky gradient with clouds over textured hills; the top half is always sky."""
    gen = np.random.default_rng(rng.getrandbits(64))
    width, height = working_size(size)
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    ridge = rng.uniform(0.56, 0.66) + 0.2 * noise(gen, (width, 48), 1, 4)[24]
    veil = np.clip(noise(gen, (width, height), 2, 6) * 2.2 - 1, 0, 1) * clouds
    sky = blend(top, low, np.clip(y / 0.65, 0, 1))
    sky = sky + (245 - sky) * veil[..., None]
    shade = 0.55 + 0.6 * noise(gen, (width, height), 5, 6) * (0.7 + 0.5 * y)
    land = np.array(ground, np.float32) * shade[..., None]
    mask = np.clip((y - ridge) * height / 2, 0, 1)[..., None]
    return finish(gen, sky + (land - sky) * mask, size)


def outline(shape: str, x: float, y: float, r: float) -> list[tuple[float, float]]:
    """Polygon of a shape around (x, y); all corners lie within r."""
    corners = SHAPES[shape][1]
    start = math.pi / 4 if shape == "square" else -math.pi / 2
    squeeze = 0.65 if shape == "diamond" else 1
    points = []
    for i in range(corners):
        reach = r * 0.42 if shape == "star" and i % 2 else r
        angle = start + 2 * math.pi * i / corners
        points.append((x + reach * squeeze * math.cos(angle), y + reach * math.sin(angle)))
    return points


def bounds(points: Sequence[tuple[float, float]]) -> Box:
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def scatter(
    rng: random.Random, size: tuple[int, int], n: int, fill: float
) -> list[tuple[float, float, float]]:
    """Place n circles (x, y, r) that neither overlap nor leave the image."""
    unit = min(math.sqrt(size[0] * size[1] / n) * fill, min(size) * 0.42)
    placed: list[tuple[float, float, float]] = []
    while len(placed) < n:
        r = unit * rng.uniform(0.65, 1)
        x, y = (rng.uniform(r * 1.1, side - r * 1.1) for side in size)
        if all(math.hypot(x - a, y - b) > 1.12 * (r + c) for a, b, c in placed):
            placed.append((x, y, r))
        else:
            unit *= 0.995
    return placed


# ---- documents ----


def receipt(rng: random.Random, spec: Spec) -> Made:
    """A paper slip on a brown table; large frames show it small."""
    width, height = spec.size
    image = texture_image(rng, spec.size, (140, 100, 66))
    draw = ImageDraw.Draw(image)
    ph = height * 0.95
    pw = min(width * 0.94, ph * (0.62 if width * height < 4e6 else 0.45))
    x0, y0 = (width - pw) / 2, (height - ph) / 2
    draw.rectangle((x0, y0, x0 + pw, y0 + ph), (250, 249, 244))
    n = max(4, min(20, round(ph / pw * 7)))
    left, right, step = x0 + pw * 0.07, x0 + pw * 0.93, ph / (n + 10)
    size = min(pw / 16, step / 1.45)
    big, mid, small = font(size * 1.5), font(size), font(max(size * 0.7, 11))

    items = [(name, rng.randint(80, 2999)) for name in rng.sample(GOODS, n)]
    net = sum(price for _, price in items)
    order, back, tax = code(rng), code(rng), round(net * 0.08)
    total = money(net + tax)
    lines = [("CORNER STORE", "", big), (f"Order {order}", "", rng.choice((big, mid, small)))]
    lines += [(date(rng), "", mid)]
    lines += [(name, money(price), mid) for name, price in items]
    lines += [("Subtotal", money(net), mid), ("Tax 8%", money(tax), mid), ("TOTAL", total, big)]
    lines += [(f"Return code {back}", "", small), ("Thank you. Keep this slip.", "", small)]
    for i, (text, amount, face) in enumerate(lines):
        y = y0 + step * (i + 1.2)
        draw.text((left, y), text, INK, face, anchor="lm")
        draw.text((right, y), amount, INK, face, anchor="rm")
        if i in (2, n + 2):
            rule = (left, y + step / 2, right, y + step / 2)
            draw.line(rule, (90, 90, 90), max(1, int(pw / 400)))
    y = y0 + step * (n + 5 + 1.2)
    _, top, _, bottom = draw.textbbox((left, y), f"TOTAL {total}", big, anchor="lm")
    name, price = rng.choice(items)
    return image, [
        read("What is the TOTAL?", "TOTAL 的金额是多少？", total),
        read("What is the order code?", "订单号（Order）是什么？", order),
        read("What is the return code?", "Return code 是什么？", back),
        read(f"What is the price of {name}?", f"{name} 的价格是多少？", money(price)),
        locate("TOTAL line", "TOTAL 一行", (left, top, right, bottom), spec.size),
        what_picture(spec.kind),
    ]


def invoice(rng: random.Random, spec: Spec) -> Made:
    """A full page: heading, table, small print, and a batch code in the footer."""
    width, height = spec.size
    image = Image.new("RGB", spec.size, (253, 253, 251))
    draw = ImageDraw.Draw(image)
    size = min(width / 36, height / 40)
    left, right, y = width * 0.08, width * 0.92, height * 0.05

    def row(cells: Sequence[str], scale: float) -> None:
        nonlocal y
        for i, cell in enumerate(cells):
            x = left + (right - left) * i / max(1, len(cells) - 1)
            draw.text((x, y), cell, INK, font(size * scale), anchor="ra" if i else "la")
        y += size * scale * 1.6

    number, batch, due = code(rng), code(rng), date(rng)
    items = [(name, rng.randint(2, 9), rng.randint(150, 4999)) for name in rng.sample(GOODS, 6)]
    total = money(sum(quantity * price for _, quantity, price in items))
    draw.rectangle((0, 0, width, height * 0.02), rng.choice([rgb for _, rgb in COLOURS.values()]))
    row(["INVOICE", number], 2.2)
    row([f"Issued by Harbour Supply    Due {due}"], 1)
    y += size
    row(["Item", "Qty", "Price", "Amount"], 1)
    for name, quantity, price in items:
        draw.line((left, y - size * 0.3, right, y - size * 0.3), (200, 200, 205))
        row([name, str(quantity), money(price), money(quantity * price)], 1)
    row(["TOTAL", total], 1.5)
    y += size
    small, shift = max(0.75, 11 / size), rng.randrange(len(FILLER))
    while y < height * 0.93 - size * 2:
        text = ""
        while draw.textlength(text, font(size * small)) < (right - left) * 0.9:
            text += FILLER[shift % len(FILLER)] + " "
            shift += 1
        row([text], small)
    y = height * 0.95
    row([f"Batch {batch}", "page 1 of 1"], max(0.6, 11 / size))
    name, quantity, _ = rng.choice(items)
    return image, [
        read("What is the TOTAL?", "TOTAL 的金额是多少？", total),
        read("What is the invoice number?", "发票右上角的编号是什么？", number),
        read("What is the batch code?", "页脚的 Batch 编号是什么？", batch),
        read("What is the due date?", "Due 日期是哪一天？", due),
        read(f"What is the quantity of {name}?", f"{name} 的数量是多少？", str(quantity)),
        what_picture(spec.kind),
    ]


def ticket(rng: random.Random, spec: Spec) -> Made:
    """Four labelled fields in a row, or two of them stacked when the image is not wide."""
    width, height = spec.size
    image = Image.new("RGBA", spec.size, (0, 0, 0, 0) if spec.clear else (236, 226, 200, 255))
    draw = ImageDraw.Draw(image)
    pad = min(spec.size) * 0.03
    edge = (pad, pad, width - pad, height - pad)
    draw.rounded_rectangle(edge, pad * 3, (255, 250, 235), (120, 60, 50), max(1, int(pad / 3)))
    fields = {"GATE": f"{rng.choice('ACDEFHK')}{rng.randint(2, 9)}"}
    fields |= {"PRICE": money(rng.randint(500, 9900)), "CODE": code(rng), "DATE": date(rng)}
    wide = width > height * 1.5
    shown = list(fields.items())[: 4 if wide else 2]
    size = min(height / 4, width / 30) if wide else height / 5.5
    for i, (label, value) in enumerate(shown):
        at = 0.04 + 0.92 * (i + 0.5) / len(shown)
        x, y = (width * at, height / 2) if wide else (width / 2, height * at)
        draw.text((x, y - size * 0.7), label, (130, 70, 60), font(size * 0.6), anchor="mm")
        draw.text((x, y + size * 0.3), value, INK, font(size), anchor="mm")
    asks = [read(f"What is the {a.lower()}?", f"票上的 {a} 是什么？", b) for a, b in shown]
    return image if spec.clear else image.convert("RGB"), [*asks, what_picture(spec.kind)]


# ---- charts ----


def chart_frame(
    rng: random.Random, spec: Spec, names: Sequence[str]
) -> tuple[Image.Image, float, list[float], Callable[[float], float]]:
    """Title, axes, grid and labels; returns the text size, slot centres and value-to-y."""
    (width, height), n = spec.size, len(names)
    image = Image.new("RGB", spec.size, (255, 255, 255))
    draw = ImageDraw.Draw(image)
    size = max(10.0, min(height / 22, width / (n * 4.2)))
    x0, y0, x1, y1 = size * 3.2, size * 3.2, width - size * 2.5, height - size * 2.4
    title = rng.choice(("Visitors per day", "Units sold", "Average score", "Energy use, kWh"))
    draw.text((width / 2, size * 1.2), title, INK, font(size * 1.3), anchor="mm")

    def to_y(value: float) -> float:
        return y1 - (y1 - y0) * value / 100

    for tick in range(0, 101, 20):
        draw.line((x0, to_y(tick), x1, to_y(tick)), (215, 215, 222), max(1, int(size / 14)))
        draw.text((x0 - size / 2, to_y(tick)), str(tick), (80, 80, 90), font(size), anchor="rm")
    draw.line([(x0, y0), (x0, y1), (x1, y1)], INK, max(1, int(size / 8)))
    centres = [x0 + (x1 - x0) * (i + 0.5) / n for i in range(n)]
    for x, name in zip(centres, names, strict=True):
        draw.text((x, y1 + size), name, INK, font(size), anchor="mm")
    return image, size, centres, to_y


def bar(rng: random.Random, spec: Spec) -> Made:
    n = 4 if max(spec.size) < 400 else rng.randint(5, 8)
    names, values = rng.choice((MONTHS, CITIES))[:n], rng.sample(range(12, 98), n)
    image, size, centres, to_y = chart_frame(rng, spec, names)
    draw = ImageDraw.Draw(image)
    colour = "blue" if spec.grey else rng.choice(list(COLOURS))
    half = (centres[1] - centres[0]) * 0.32
    boxes = [(x - half, to_y(v), x + half, to_y(0)) for x, v in zip(centres, values, strict=True)]
    for x, box, value in zip(centres, boxes, values, strict=True):
        draw.rectangle(box, COLOURS[colour][1])
        draw.text((x, box[1] - size * 0.2), str(value), INK, font(size), anchor="mb")
    pick = rng.randrange(n)
    name, top = names[pick], names[values.index(max(values))]
    bottom = names[values.index(min(values))]
    asks = [
        read(f"What is the value of {name}?", f"{name} 的数值是多少？", str(values[pick])),
        read("Which category is highest?", "哪一项最高？", top),
        read("Which category is lowest?", "哪一项最低？", bottom),
        count("bars", "根柱子", n),
        locate(f"bar of {name}", f"{name} 的柱子", boxes[pick], spec.size),
        what_picture(spec.kind),
    ]
    if not spec.grey:
        asks.append(
            describe("What colour are the bars?", "柱子是什么颜色？", colour, COLOURS[colour][0])
        )
    return image, asks


def line(rng: random.Random, spec: Spec) -> Made:
    """Two lines, each named at its right end, with the value at every point."""
    names = MONTHS[: rng.randint(5, 7)]
    n = len(names)
    image, size, centres, to_y = chart_frame(rng, spec, names)
    draw = ImageDraw.Draw(image)
    upper, lower = rng.sample(("North", "South", "East", "West"), 2)
    en, zh = "How many points does each line have?", "每条折线有几个数据点？"
    asks = [Qa("detection", en, zh, str(n)), what_picture(spec.kind)]
    bands = ((upper, range(66, 95), (225, 110, 30)), (lower, range(12, 39), (30, 80, 190)))
    for name, band, ink in bands:
        values = rng.sample(band, n)
        points = [(x, to_y(v)) for x, v in zip(centres, values, strict=True)]
        draw.line(points, ink, max(2, int(size / 6)), joint="curve")
        for i, (x, y) in enumerate(points):
            near = values[max(0, i - 1) : i + 2]
            below = values[i] < sum(near) / len(near)  # keep the number off the line
            at, anchor = (y + size / 2, "mt") if below else (y - size / 2, "mb")
            draw.circle((x, y), size / 4, ink)
            draw.text((x, at), str(values[i]), INK, font(size), anchor=anchor)
        draw.text((x + size * 0.6, y), name, ink, font(size), anchor="lm")
        pick, when = rng.randrange(n), names[values.index(max(values))]
        en, zh = f"the value of {name} in {names[pick]}", f"{name} 在 {names[pick]} 的数值"
        asks.append(read(f"What is {en}?", f"{zh}是多少？", str(values[pick])))
        asks.append(read(f"In which month is {name} highest?", f"{name} 哪个月最高？", when))
    return image, asks


# ---- shapes and photographs ----


def shapes(rng: random.Random, spec: Spec) -> Made:
    """Coloured shapes, each (colour, shape) pair at most once; an icon has a single one."""
    n = 1 if spec.kind == "icon" else 14 if max(spec.size) > 3000 else rng.randint(5, 9)
    scale = 2 if math.prod(spec.size) <= 2_000_000 else 1  # drawn larger for smooth edges
    canvas = (spec.size[0] * scale, spec.size[1] * scale)
    image = Image.new("RGBA", canvas, (0, 0, 0, 0))
    if not spec.clear:
        pale = [Image.new("RGB", canvas, tuple(rng.choices(range(222, 256), k=3))) for _ in "ab"]
        image = Image.composite(pale[0], pale[1], Image.linear_gradient("L").resize(canvas))
    draw = ImageDraw.Draw(image)
    pairs = rng.sample(list(product(COLOURS, SHAPES)), n)
    colours, forms = [c for c, _ in pairs], [s for _, s in pairs]
    asks = []
    for (colour, form), (x, y, r) in zip(pairs, scatter(rng, spec.size, n, 0.32), strict=True):
        (zh, rgb), zh_form = COLOURS[colour], SHAPES[form][0]
        points = outline(form, x, y, r)
        draw.polygon([(a * scale, b * scale) for a, b in points], rgb)
        asks.append(locate(f"{colour} {form}", zh + zh_form, bounds(points), spec.size))
        if forms.count(form) == 1:
            en = f"What colour is the {form}?"
            asks.append(describe(en, f"图中的{zh_form}是什么颜色？", colour, zh))
        if colours.count(colour) == 1:
            en = f"What shape is the {colour} object?"
            asks.append(describe(en, f"图中{zh}的物体是什么形状？", form, zh_form))
    if n > 1:
        asks.append(count(f"{forms[0]}s", f"个{SHAPES[forms[0]][0]}", forms.count(forms[0])))
        asks.append(count("shapes", "个图形", n))
    return image.reduce(scale), asks


def scene(rng: random.Random, spec: Spec) -> Made:
    """A landscape with the sun or the moon; the kind names the time of day."""
    width, height = spec.size
    sky_zh, top, low, disc = SKIES[spec.kind]
    ground, (ground_zh, rgb) = rng.choice(list(GROUNDS.items()))
    day, night = spec.kind == "day", spec.kind == "night"
    land = rgb if day else (34, 28, 40)
    image = landscape_image(rng, spec.size, top, low, land, 0.25 if night else 0.8)
    draw = ImageDraw.Draw(image)
    for _ in range(60 if night else 0):
        star = rng.uniform(0, width), rng.uniform(0, height / 2)
        draw.circle(star, max(0.6, min(spec.size) / 700), (225, 225, 235))
    r = min(spec.size) * rng.uniform(0.05, 0.09)
    x, y = rng.uniform(2 * r, width - 2 * r), rng.uniform(1.5 * r, height * 0.45 - r)
    draw.circle((x, y), r, disc)
    name, zh = ("moon", "月亮") if night else ("sun", "太阳")
    en, zh_time = "Is this scene at day, sunset or night?", "画面是白天、日落还是夜晚？"
    asks = [
        locate(name, zh, (x - r, y - r, x + r, y + r), spec.size),
        describe(en, zh_time, spec.kind, sky_zh),
    ]
    if day and not spec.grey:
        asks.append(describe("What colour is the ground?", "地面是什么颜色？", ground, ground_zh))
    return image, asks


def texture(rng: random.Random, spec: Spec) -> Made:
    """A noise texture of one hue under a few white discs."""
    colour = rng.choice(("red", "green", "blue", "orange", "purple"))
    zh, rgb = COLOURS[colour]
    image = texture_image(rng, spec.size, (130, 130, 130) if spec.grey else rgb)
    n = rng.randint(2, 7)
    for x, y, r in scatter(rng, spec.size, n, 0.16):
        ImageDraw.Draw(image).circle((x, y), r, (250, 250, 250))
    tint = ("grey", "灰色") if spec.grey else (colour, zh)
    main = describe("What colour is the background?", "背景是什么颜色？", *tint)
    return image, [main, count("white discs", "个白色圆盘", n)]


BUILDERS: dict[str, Callable[[random.Random, Spec], Made]] = {
    "receipt": receipt, "invoice": invoice, "ticket": ticket, "bar": bar, "line": line,
    "shapes": shapes, "icon": shapes, "texture": texture, **dict.fromkeys(SKIES, scene),
}  # fmt: skip


def uniform_image(rng: random.Random, size: tuple[int, int], caption: str) -> Image.Image:
    def colour(saturation: float, value: float) -> Rgb:
        r, g, b = colorsys.hsv_to_rgb(rng.random(), saturation, value)
        return round(r * 255), round(g * 255), round(b * 255)

    if rng.random() < 0.3:
        image = texture_image(rng, size, colour(0.6, 0.9))
    else:
        sky = colour(0.6, rng.uniform(0.3, 0.9)), colour(0.3, 0.9)
        image = landscape_image(rng, size, *sky, colour(0.5, 0.7), rng.uniform(0.2, 0.9))
    draw = ImageDraw.Draw(image)
    for x, y, r in scatter(rng, size, rng.randint(2, 6), 0.2):
        rgb = rng.choice(list(COLOURS.values()))[1]
        draw.polygon(outline(rng.choice(list(SHAPES)), x, y, r), rgb)
    pad, face = min(size) * 0.03, font(min(size) / 24)
    edge: dict[str, Any] = {"stroke_width": max(1, min(size) // 400), "stroke_fill": (0, 0, 0)}
    draw.text((pad, size[1] - pad), caption, (255, 255, 255), face, anchor="lb", **edge)
    return image


# ---- writing ----


def save(image: Image.Image, stem: Path, fmt: str) -> Path:
    """Store the upright image under fmt; exifN stores it turned, with the tag that undoes it."""
    ext, _, mode = fmt.partition("-")
    path = stem.with_suffix(f".{ext}")
    quality = 70 if image.width * image.height > 4_000_000 else 85
    options: dict[str, Any] = {"optimize": True} if ext == "png" else {"quality": quality}
    if mode.startswith("exif"):
        turn = int(mode.removeprefix("exif"))
        image, exif = image.transpose(STORED[turn]), Image.Exif()
        exif[EXIF_ORIENTATION] = turn
        options["exif"] = exif
    elif mode == "i16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif mode == "pal":
        image = image.quantize(64)
    elif mode in ("l", "cmyk"):
        image = image.convert(mode.upper())
    image.save(path, **options)
    return path


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="\n")


def make_mixed(out: Path, seed: int) -> list[Row]:
    rows: list[Row] = []
    for index, spec in enumerate(parse_plan(PLAN)):
        rng = random.Random(f"mixed:{seed}:{index}")
        image, asks = BUILDERS[spec.kind](rng, spec)
        name = f"{index:02d}_{spec.kind}"
        file = f"images/{save(image, out / 'images' / name, spec.fmt).name}"
        few = index % 8 in (2, 7)  # some shapes and photographs get one question only
        for k, qa in enumerate(rng.sample(asks, 1 if few else 2)):
            chinese = (index + k) % 2 == 1
            text = qa.zh if chinese else qa.en
            answer = (qa.zh_answer or qa.answer) if chinese else qa.answer
            row: Row = {"id": f"{name}_q{k}", "image": file, "question": text, "answer": answer}
            rows.append(row | {"task": qa.task})
    return rows


def make_uniform(out: Path, seed: int, count: int, size: tuple[int, int]) -> list[Row]:
    rows: list[Row] = []
    for index in range(count):
        rng = random.Random(f"uniform:{seed}:{index}")
        name, file = f"uniform_{index:04d}", f"images/{index:04d}.jpg"
        uniform_image(rng, size, f"Frame {index:04d}  {code(rng)}").save(out / file, quality=90)
        row: Row = {"id": name, "image": file, "question": "Describe this image in detail."}
        rows.append(row | {"answer": None, "task": "description"})
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    mixed = commands.add_parser("mixed", help="56 images of many kinds and formats")
    uniform = commands.add_parser("uniform", help="COUNT JPEGs of one size")
    for command in (mixed, uniform):
        command.add_argument("--out", type=Path, required=True, help="folder to write to")
        command.add_argument("--seed", type=int, default=0, help="default 0")
    for option, default in (("--count", 96), ("--width", 1024), ("--height", 1024)):
        uniform.add_argument(option, type=int, default=default, help=f"default {default}")
    args = parser.parse_args(argv)
    start = time.perf_counter()
    (args.out / "images").mkdir(parents=True, exist_ok=True)
    if args.command == "mixed":
        rows = make_mixed(args.out, args.seed)
    else:
        rows = make_uniform(args.out, args.seed, args.count, (args.width, args.height))
    write_rows(args.out / f"{args.command}.jsonl", rows)
    print(f"{len(rows)} rows in {args.out}, {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
