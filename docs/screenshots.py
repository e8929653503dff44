"""TensorBoard's pages of a profile as pictures: ``python docs/screenshots.py PROFILE``.

PROFILE is the folder of ``qvl-lab profile --out PROFILE``, with one trace of a GPU in it. The pages
are driven as in tests/browser/test_tensorboard.py, where plain tables stand in for Google Charts;
the pictures leave those out.
"""

from __future__ import annotations

import io
import runpy
import sys
from pathlib import Path
from typing import Any

from PIL import Image

HERE = Path(__file__).parent
BROWSER = runpy.run_path(str(HERE.parent / "tests" / "browser" / "test_tensorboard.py"))
COLOURS = 64


def save(png: bytes, name: str) -> None:
    """With few colours, so that the repository stays small."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    path = HERE / name
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {picture.width} x {picture.height}, {path.stat().st_size / 1e3:.0f} kB")


def table(views: Any, name: str, rows: int, columns: int) -> None:
    """The first rows and columns of the large table."""
    views.page.mouse.move(0, 0)  # no hints over it
    views.page.wait_for_timeout(1000)
    head = views.frame.locator(".ant-table-wrapper thead").bounding_box()
    row = views.frame.locator(".ant-table-wrapper tbody tr.ant-table-row").nth(rows - 1)
    last = row.locator("td").nth(columns - 1).bounding_box()
    clip = {"x": head["x"], "y": head["y"]}
    clip["width"] = last["x"] + last["width"] - clip["x"]
    clip["height"] = last["y"] + last["height"] - clip["y"]
    save(views.page.screenshot(clip=clip), name)


def operators(views: Any) -> None:
    """Operators and stages, the longest time on the device first."""
    views.choose(1, "Operator")
    views.rows()
    heading = views.frame.locator(".ant-table-wrapper thead").get_by_text("Device Total")
    heading.click()  # ascending
    heading.click()
    table(views, "tensorboard-operators.png", rows=14, columns=6)


def kernels(views: Any) -> None:
    """Kernels of matrix products, each with the operator that it stands under."""
    views.choose(1, "GPU Kernel")
    views.rows()
    views.group("Kernel Properties + Op Name")
    views.frame.locator("input[type=search]:not([readonly])").first.fill("nvjet")
    table(views, "tensorboard-kernels.png", rows=6, columns=11)


def trace(views: Any) -> None:
    """The trace view: all of it, and two layers of a decoding step."""
    views.choose(1, "Trace")
    views.trace()
    place = views.frame.locator("iframe").bounding_box()
    clip = {**place, "height": 440}
    for name, times in (("trace", 1), ("layers", 13)):
        views.page.mouse.move(place["x"] + 0.6 * place["width"], place["y"] + 100)
        for _ in range(times):
            views.page.keyboard.press("w")  # zooms in around the mouse
            views.page.wait_for_timeout(500)
        views.page.wait_for_timeout(2000)
        save(views.page.screenshot(clip=clip), f"tensorboard-{name}.png")


def main() -> None:
    with (
        BROWSER["serving"](sys.argv[1]) as address,
        BROWSER["chromium"]() as browser,
        BROWSER["opened"](browser, address, width=1800, height=2000) as views,
    ):
        views.frame.get_by_text("GPU Summary", exact=True).first.wait_for()
        operators(views)
        kernels(views)
        trace(views)


if __name__ == "__main__":
    main()
