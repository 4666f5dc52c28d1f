"""The pictures of the documentation, made from the pictures in examples/images and two drawn streets.

python docs/make_pictures.py            # all of them
python docs/make_pictures.py mix rims   # some
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from street import street

import segzoo
from segzoo.datasets import Cityscapes
from segzoo.inference import Prediction, read_picture
from segzoo.transforms import CopyBlob, CutMix, SalientEval, SalientTrain, SemanticTrain, denormalize

ROOT = Path(__file__).resolve().parent.parent
GAP = 12


def checkerboard(size: tuple[int, int], square: int = 12) -> Image.Image:
    """The grey squares that stand for transparency."""
    x, y = np.meshgrid(np.arange(size[0]) // square, np.arange(size[1]) // square)
    return Image.fromarray(np.where((x + y) % 2, 204, 255).astype(np.uint8)).convert("RGBA")


def sheet(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Pictures of one size in rows and columns on white."""
    width, height = rows[0][0].size
    columns = len(rows[0])
    page = Image.new("RGB", (columns * (width + GAP) - GAP, len(rows) * (height + GAP) - GAP), "white")
    for i, row in enumerate(rows):
        for j, part in enumerate(row):
            page.paste(part.convert("RGB"), (j * (width + GAP), i * (height + GAP)))
    return page


def coloured(labels: NDArray[np.generic]) -> Image.Image:
    """Train ids in Cityscapes' colours; what does not count is black."""
    palette = np.zeros((256, 3), np.uint8)
    for label in Cityscapes.table:
        if label.train_id != 255:
            palette[label.train_id] = label.colour
    return Image.fromarray(palette[labels])


def seen(x: torch.Tensor) -> Image.Image:
    """What a model is shown, as a picture again."""
    return Image.fromarray(denormalize(x).permute(1, 2, 0).contiguous().numpy())


def before_after() -> Image.Image:
    """The picture, its mask and its cut-out, side by side."""
    prediction = segzoo.Predictor("u2net_lite.duts")(ROOT / "examples/images/coffee.jpg")
    cutout = prediction.cutout()
    behind = checkerboard(cutout.size)
    behind.alpha_composite(cutout)
    return sheet([[prediction.picture.rgb(), prediction.render("mask"), behind]])


def semantic_train() -> Image.Image:
    """A street and its labels, and six draws of SemanticTrain, labels below."""
    picture, labels = street(0)
    image, mask = torch.from_numpy(picture).permute(2, 0, 1), torch.from_numpy(labels)
    transform = SemanticTrain(picture.shape[:2], generator=torch.Generator().manual_seed(3))
    draws = [transform(image, mask) for _ in range(6)]
    first = [Image.fromarray(picture), *(seen(x) for x, _ in draws)]
    second = [coloured(labels), *(coloured(target.numpy()) for _, target in draws)]
    return sheet([first[:4], second[:4], [first[0], *first[4:]], [second[0], *second[4:]]])


OFF = {
    "scale": (1, 1), "hflip": 0, "rotation": 0, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "blur": 0,
}  # fmt: skip
ALONE: tuple[tuple[str, dict[str, object]], ...] = (
    ("as it is", {}),
    ("scale=(0.6, 0.6)", {"scale": (0.6, 0.6)}),
    ("scale=(2, 2)", {"scale": (2, 2)}),
    ("hflip=1", {"hflip": 1}),
    ("rotation=30", {"rotation": 30}),
    ("brightness=0.6", {"brightness": 0.6}),
    ("contrast=0.8", {"contrast": 0.8}),
    ("saturation=1", {"saturation": 1.0}),
    ("hue=0.1", {"hue": 0.1}),
    ("blur=1", {"blur": 1, "blur_sigma": (4, 4)}),
    ("SalientTrain()", {}),
    ("SalientEval()", {}),
)


def augmentations() -> Image.Image:
    """Each step of SemanticTrain alone, and SalientTrain and SalientEval, on a photograph, with their names."""
    picture = read_picture(ROOT / "examples/images/coffee.jpg").pixels
    image = torch.from_numpy(picture).permute(2, 0, 1)
    parts = []
    for name, options in ALONE:
        generator = torch.Generator().manual_seed(9)
        if name.startswith("Salient"):
            transform = SalientTrain(generator=generator) if name == "SalientTrain()" else SalientEval()
        else:
            transform = SemanticTrain((400, 600), **{**OFF, **options}, generator=generator)  # type: ignore[arg-type]
        part = seen(transform(image))
        part.thumbnail((292, 195))
        panel = Image.new("RGB", (292, 215), "white")
        panel.paste(part, (0, 20))
        ImageDraw.Draw(panel).text((2, 3), name, fill="black", font=ImageFont.load_default(14))
        parts.append(panel)
    return sheet([parts[i : i + 4] for i in range(0, len(parts), 4)])


def looks() -> Image.Image:
    """The picture; one look, flip, three scales, eight scales: probabilities."""
    picture = ROOT / "examples/images/coffee.jpg"
    maps = [
        segzoo.Predictor("u2net_lite.duts", tta=tta)(picture) for tta in (None, "flip", (0.75, 1, 1.25), "multi-scale")
    ]
    return sheet([[maps[0].picture.rgb(), *(p.render("probability") for p in maps)]])


def mix() -> Image.Image:
    """Two streets; CutMix and CopyBlob of them, labels below."""
    pairs = [street(0), street(1)]
    images = torch.stack([torch.from_numpy(picture).permute(2, 0, 1) for picture, _ in pairs])
    labels = torch.stack([torch.from_numpy(mask) for _, mask in pairs])
    mixed = CutMix(generator=torch.Generator().manual_seed(5))(images, labels)
    copied = CopyBlob("cityscapes", generator=torch.Generator().manual_seed(1))(images, labels)
    batches = [(images[:1], labels[:1]), (images[1:], labels[1:]), (mixed[0][:1], mixed[1][:1])]
    batches.append((copied[0][1:], copied[1][1:]))
    return sheet(
        [
            [Image.fromarray(x[0].permute(1, 2, 0).numpy()) for x, _ in batches],
            [coloured(y[0].numpy()) for _, y in batches],
        ]
    )


def on(colour: str, cutout: Image.Image, box: tuple[int, int, int, int], size: tuple[int, int]) -> Image.Image:
    """A part of a cut-out before a colour, enlarged."""
    behind = Image.new("RGBA", cutout.size, colour)
    behind.alpha_composite(cutout)
    return behind.convert("RGB").crop(box).resize(size, Image.Resampling.NEAREST)


def rims() -> Image.Image:
    """The rim of the cup on the table: the picture; plain, guided filter, CRF."""
    prediction = segzoo.Predictor("u2net_lite.duts")(ROOT / "examples/images/coffee.jpg")
    box, size = (370, 40, 490, 140), (480, 400)
    picture = prediction.picture.rgb().crop(box).resize(size, Image.Resampling.NEAREST)
    maps = [prediction, prediction.refined("guided"), prediction.refined("crf")]
    parts = [p.render("probability").crop(box).resize(size, Image.Resampling.NEAREST) for p in maps]
    return sheet([[picture, *parts]])


def tidied() -> Image.Image:
    """A drawn prediction with specks and a hole; without them; its largest object."""
    y, x = np.mgrid[:200, :300]
    discs = [(90, 90, 60), (120, 220, 38), (30, 250, 7), (170, 30, 5), (185, 160, 6)]
    near = np.minimum.reduce([np.hypot(y - row, x - column) - radius for row, column, radius in discs])
    near = np.maximum(near, 9 - np.hypot(y - 100, x - 80))
    scores = torch.from_numpy(1 / (1 + np.exp(near / 1.5))).float()[None]
    found = Prediction(read_picture(np.zeros((200, 300, 3), np.uint8)), scores)
    maps = [found, found.tidied(min_area=300), found.tidied(min_area=300, largest=True)]
    return sheet([[p.render("probability") for p in maps]])


def clean_rim() -> Image.Image:
    """Part of a cut-out on two colours, with the old background in the rim and without."""
    prediction = segzoo.Predictor("u2net_lite.duts")(ROOT / "examples/images/astronaut.jpg")
    cutouts = [prediction.cutout(clean_rim=clean) for clean in (False, True)]
    box, size = (90, 60, 250, 200), (480, 420)
    return sheet([[on(colour, cutout, box, size) for cutout in cutouts for colour in ("#00c853",)]])


PICTURES: dict[str, tuple[Callable[[], Image.Image], str]] = {
    "before_after": (before_after, "jpg"),
    "semantic_train": (semantic_train, "jpg"),
    "augmentations": (augmentations, "jpg"),
    "mix": (mix, "jpg"),
    "looks": (looks, "png"),
    "rims": (rims, "png"),
    "tidied": (tidied, "png"),
    "clean_rim": (clean_rim, "png"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write docs/images."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of: {', '.join(PICTURES)} (default: all)")
    names = parser.parse_args(arguments).names or list(PICTURES)
    (ROOT / "docs/images").mkdir(exist_ok=True)
    for name in names:
        if name not in PICTURES:
            parser.error(f"unknown picture {name!r}: expected some of {', '.join(PICTURES)}")
        make, ending = PICTURES[name]
        page = make()
        page.thumbnail((1200, 1200), Image.Resampling.LANCZOS)
        page.save(ROOT / f"docs/images/{name}.{ending}", quality=88)


if __name__ == "__main__":
    main()
