"""Two drawn street scenes with Cityscapes' train ids: the data sets' own pictures may not be passed on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

SIZE = (320, 480)
ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, TREE, SKY, PERSON, CAR, BUS = 0, 1, 2, 3, 4, 5, 8, 10, 11, 13, 15


class Scene:
    """A picture and its labels, drawn with the same strokes.

    Args:
        seed: Of the colours' noise.
    """

    def __init__(self, seed: int) -> None:
        height, width = SIZE
        self.rng = np.random.default_rng(seed)
        self.picture = Image.new("RGB", (width, height), (150, 190, 225))
        self.labels = Image.new("L", (width, height), SKY)

    def polygon(self, label: int, colour: tuple[int, int, int], *points: tuple[int, int]) -> None:
        ImageDraw.Draw(self.picture).polygon(points, fill=colour)
        ImageDraw.Draw(self.labels).polygon(points, fill=label)

    def box(self, label: int, colour: tuple[int, int, int], x0: int, y0: int, x1: int, y1: int) -> None:
        self.polygon(label, colour, (x0, y0), (x1, y0), (x1, y1), (x0, y1))

    def disc(self, label: int, colour: tuple[int, int, int], x: int, y: int, radius: int) -> None:
        where = (x - radius, y - radius, x + radius, y + radius)
        ImageDraw.Draw(self.picture).ellipse(where, fill=colour)
        ImageDraw.Draw(self.labels).ellipse(where, fill=label)

    def done(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """uint8 ``[H, W, 3]`` with a little blur and noise, and uint8 ``[H, W]``."""
        soft = np.asarray(self.picture.filter(ImageFilter.GaussianBlur(0.7))).astype(np.float64)
        noisy = soft + self.rng.normal(0, 5, (*SIZE, 1)) + self.rng.normal(0, 2, (*SIZE, 3))
        return noisy.clip(0, 255).astype(np.uint8), np.array(self.labels)


def _ground(scene: Scene) -> None:
    scene.polygon(SIDEWALK, (176, 168, 160), (0, 215), (480, 215), (480, 320), (0, 320))
    scene.polygon(ROAD, (92, 92, 98), (190, 200), (290, 200), (440, 320), (40, 320))
    for y in range(212, 320, 26):
        half = (y - 190) // 26 + 1
        scene.polygon(
            ROAD, (225, 225, 220), (239 - half, y), (241 + half, y), (242 + half, y + 12), (238 - half, y + 12)
        )


def _house(scene: Scene, x0: int, x1: int, top: int, foot: int, colour: tuple[int, int, int]) -> None:
    scene.box(BUILDING, colour, x0, top, x1, foot)
    for y in range(top + 12, foot - 22, 30):
        for x in range(x0 + 10, x1 - 14, 26):
            scene.box(BUILDING, (225, 215, 160) if (x + y) % 4 else (70, 80, 95), x, y, x + 13, y + 18)


def _person(scene: Scene, x: int, foot: int, coat: tuple[int, int, int]) -> None:
    scene.box(PERSON, (50, 55, 80), x - 5, foot - 20, x + 5, foot)
    scene.box(PERSON, coat, x - 7, foot - 42, x + 7, foot - 18)
    scene.disc(PERSON, (215, 175, 145), x, foot - 48, 6)


def street(which: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Picture uint8 ``[320, 480, 3]`` and train ids uint8 ``[320, 480]``: 0 has a bus and a fence, 1 has neither."""
    scene = Scene(which)
    if which == 0:
        _house(scene, 0, 130, 40, 225, (168, 110, 88))
        _house(scene, 130, 200, 80, 212, (190, 180, 150))
        _house(scene, 300, 400, 70, 215, (140, 130, 150))
        scene.box(TREE, (96, 72, 50), 436, 150, 446, 225)
        scene.disc(TREE, (70, 120, 60), 441, 130, 40)
        _ground(scene)
        for x in range(330, 480, 14):
            scene.box(FENCE, (120, 84, 50), x, 205, x + 8, 245)
        scene.box(FENCE, (120, 84, 50), 330, 215, 480, 221)
        scene.box(BUS, (205, 60, 48), 178, 165, 268, 250)
        scene.box(BUS, (170, 205, 215), 186, 175, 260, 205)
        for x in (192, 244):
            scene.disc(BUS, (35, 35, 38), x + 5, 250, 9)
        _person(scene, 60, 275, (60, 120, 160))
    else:
        _house(scene, 0, 90, 60, 222, (150, 155, 165))
        _house(scene, 90, 185, 95, 212, (186, 140, 100))
        _house(scene, 310, 480, 30, 222, (160, 100, 100))
        scene.disc(TREE, (80, 130, 66), 265, 165, 34)
        scene.box(TREE, (96, 72, 50), 261, 180, 269, 205)
        _ground(scene)
        scene.box(CAR, (70, 110, 190), 140, 262, 210, 296)
        scene.polygon(CAR, (150, 185, 215), (152, 262), (162, 244), (192, 244), (202, 262))
        for x in (155, 195):
            scene.disc(CAR, (30, 30, 34), x, 296, 8)
        _person(scene, 420, 280, (190, 150, 60))
        scene.box(POLE, (70, 72, 76), 30, 110, 35, 262)
    return scene.done()
