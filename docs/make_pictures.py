"""The pictures of the documentation, made from the pictures in examples/images.

python docs/make_pictures.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

import segzoo

ROOT = Path(__file__).resolve().parent.parent
GAP = 12


def checkerboard(size: tuple[int, int], square: int = 12) -> Image.Image:
    """The grey squares that stand for transparency."""
    x, y = np.meshgrid(np.arange(size[0]) // square, np.arange(size[1]) // square)
    return Image.fromarray(np.where((x + y) % 2, 204, 255).astype(np.uint8)).convert("RGBA")


def before_after(predictor: segzoo.Predictor, picture: Path) -> Image.Image:
    """The picture, its mask and its cut-out, side by side."""
    prediction = predictor(picture)
    cutout = prediction.cutout()
    behind = checkerboard(cutout.size)
    behind.alpha_composite(cutout)
    parts = [prediction.picture.rgb(), prediction.render("mask"), behind]
    width, height = cutout.size
    sheet = Image.new("RGB", (3 * width + 2 * GAP, height), "white")
    for i, part in enumerate(parts):
        sheet.paste(part.convert("RGB"), (i * (width + GAP), 0))
    return sheet


def main() -> None:
    """Write docs/images/before_after.jpg."""
    sheet = before_after(segzoo.Predictor("u2net_lite.duts"), ROOT / "examples/images/coffee.jpg")
    sheet.thumbnail((1200, 1200), Image.Resampling.LANCZOS)
    (ROOT / "docs/images").mkdir(exist_ok=True)
    sheet.save(ROOT / "docs/images/before_after.jpg", quality=88)


if __name__ == "__main__":
    main()
