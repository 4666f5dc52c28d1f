"""Colours: a palette for class indices, and names for people."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

from segzoo._errors import unknown_name

__all__ = ["colour_map", "parse_colour"]


def colour_map() -> NDArray[np.uint8]:
    """uint8 ``[256, 3]``: PASCAL VOC's colours, class 0 black; neighbouring indices look different.

    Source: the VOC development kit: the bits of an index are dealt out to red, green and blue, highest first.

    Examples:
        >>> colour_map()[:4].tolist()
        [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    """
    index = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= ((index >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def parse_colour(colour: str) -> tuple[int, int, int]:
    """A colour's name or ``#rrggbb`` to red, green and blue.

    Raises:
        ValueError: For a name that nobody knows, with the nearest one.

    Examples:
        >>> parse_colour("white"), parse_colour("#20a0ff")
        ((255, 255, 255), (32, 160, 255))
    """
    if not isinstance(colour, str):
        raise TypeError(f"a colour is a name or '#rrggbb', got {type(colour).__name__}")
    try:
        red, green, blue, *alpha = ImageColor.getrgb(colour)
    except ValueError:
        raise unknown_name("colour", colour, ["#rrggbb", *ImageColor.colormap]) from None
    if alpha:
        raise ValueError(f"a colour behind has no transparency: got {colour!r}, expected #rrggbb")
    return red, green, blue
