"""Label maps that are coded as colours."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

from segzoo._decoding import PictureError, opened

__all__ = ["ColourLabels"]


class ColourLabels:
    """Label maps whose files hold a colour for each class.

    Args:
        palette: The colours in the order of their classes, or a mapping from colours to labels. A colour is three
            numbers 0…255, or a string that Pillow knows (``"#ff8000"``).

    Raises:
        ValueError: A colour that is none, or twice.
    """

    def __init__(self, palette: Sequence[Any] | Mapping[Any, int]) -> None:
        pairs = palette.items() if isinstance(palette, Mapping) else [(c, i) for i, c in enumerate(palette)]
        self.labels: dict[tuple[int, int, int], int] = {}
        for colour, label in pairs:
            rgb = _rgb(colour)
            if self.labels.setdefault(rgb, int(label)) != int(label) or int(label) < 0:
                raise ValueError(f"palette has the colour {rgb} as label {self.labels[rgb]} and {label}")
        if not self.labels:
            raise ValueError("palette is empty, expected a colour for each class")
        self._table: NDArray[Any] | None = None
        self._dtype = np.uint8 if max(self.labels.values()) <= 255 else np.int32

    def colours(self, ignore_index: int | None) -> list[tuple[int, int, int]] | None:
        """The first colour of each label from 0 on, or None where a label has none."""
        first: dict[int, tuple[int, int, int]] = {}
        for rgb, label in self.labels.items():
            if label != ignore_index:
                first.setdefault(label, rgb)
        return [first[i] for i in range(len(first))] if set(first) == set(range(len(first))) else None

    def read(self, path: Path) -> NDArray[Any]:
        """The labels in a picture file, ``[H, W]``.

        Raises:
            ValueError: The file is broken, a JPEG, which alters colours, or has a colour that no class has.
        """
        with opened(path) as image:
            if image.format in ("JPEG", "MPO"):
                raise PictureError(f"{path} is a JPEG, which alters colours: expected a PNG of the palette's colours")
            if image.mode.startswith("I") or image.mode == "F":
                raise PictureError(f"{path} holds no 8-bit colours ({image.mode}), expected those of the palette")
            if image.mode in ("P", "PA"):
                image = image.convert("RGBA")
            if image.mode != "RGB":
                image = image.convert("RGB")
            # Four bytes a pixel are one number: red lowest, and the fourth, which is padding, highest.
            codes = np.frombuffer(image.tobytes("raw", "RGBX"), "<u4") & np.uint32(0xFFFFFF)
            shape = image.height, image.width
        if self._table is None:
            self._table = self._codes_to_labels()
        labels = self._table[codes].reshape(shape)
        if not labels.all():
            y, x = np.argwhere(labels == 0)[0]
            code = int(codes[y * shape[1] + x])
            rgb = code & 255, code >> 8 & 255, code >> 16
            raise PictureError(f"{path} has the colour {rgb} at row {y}, column {x}, which the palette has not")
        indices: NDArray[Any] = labels - 1
        return indices.astype(self._dtype, copy=False)

    def _codes_to_labels(self) -> NDArray[Any]:
        """Labels plus one for all 2²⁴ colours; 0: no class. Only the pages of memory that are used become real."""
        table = np.zeros(1 << 24, np.uint16 if max(self.labels.values()) < 65535 else np.int32)
        for (red, green, blue), label in self.labels.items():
            table[red | green << 8 | blue << 16] = label + 1
        return table

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}  # a worker makes its own in no time

    def __repr__(self) -> str:
        return f"ColourLabels({self.labels})"


def _rgb(colour: Any) -> tuple[int, int, int]:
    try:
        values = ImageColor.getrgb(colour)[:3] if isinstance(colour, str) else tuple(map(operator.index, colour))
    except (TypeError, ValueError):
        values = ()
    if len(values) != 3 or not all(0 <= value <= 255 for value in values):
        raise ValueError(f"palette has {colour!r}, expected colours of three integers 0 … 255")
    return values[0], values[1], values[2]
