"""Where the pixels of a result lie in a picture: one rule for the picture and its mask (half-pixel centres)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from segzoo.ops import resize

__all__ = ["View", "nearest", "resize_image"]

_VAST = 16  # how many times more pixels than picture and result together a window may have to be made as it is


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures ``[N, C, H, W]`` resized without aliasing; uint8 stays uint8, rounded, on any device."""
    eight_bits, same = image.dtype == torch.uint8, tuple(image.shape[-2:]) == size
    if eight_bits and (same or image.device.type == "cpu"):
        return resize(image, size)
    seen = resize(image.to(torch.float32), size)
    return seen.round_().to(torch.uint8) if eight_bits else seen


def nearest(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks ``[..., H, W]`` of any dtype at ``size``: each pixel from the one that its centre falls into.

    In whole numbers: a centre that falls exactly between two pixels takes the one below or to the right.
    """
    if tuple(mask.shape[-2:]) == size:
        return mask
    for dim, length in zip((-2, -1), size):
        mask = mask.index_select(dim, _places(0, mask.shape[dim], length, mask.device))
    return mask


def _places(first: int, extent: int, length: int, device: torch.device) -> Tensor:
    """Into which pixels the centres fall, when ``extent`` pixels from ``first`` on become ``length``."""
    return (torch.arange(1, 2 * length, 2, device=device) * extent).div_(2 * length, rounding_mode="floor").add_(first)


@dataclass(frozen=True)
class View:
    """A window of a picture, turned about its centre, seen at another size.

    Args:
        top: First row of the window, in pixels of the picture; may lie outside.
        left: First column.
        height: Of the window.
        width: Of the window.
        size: Height and width of what is seen.
        angle: By how much what is seen is turned counter-clockwise, in degrees.
        hflip: Whether left and right of what is seen are exchanged, last of all.
    """

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]
    angle: float = 0.0
    hflip: bool = False

    def __call__(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The picture ``[C, H, W]`` and mask ``[H, W]`` seen so: bilinear and nearest, at the same places.

        Returns:
            The picture, uint8 or float32 ``[C, h, w]``; the mask ``[h, w]`` in its own dtype; and bool ``[h, w]``: what
            lies outside the picture, or None where nothing does. There both repeat their rim.
        """
        # Of a window that is nearly empty only the picture is made, as if it were turned.
        seen = image.shape[-2] * image.shape[-1] + self.size[0] * self.size[1]
        vast = self.height * self.width > _VAST * seen
        return self._turned(image, mask) if self.angle or vast else self._straight(image, mask)

    def _straight(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        rows, columns = image.shape[-2:]
        bottom, right = self.top + self.height, self.left + self.width
        within = min(self.top, self.left) >= 0 and bottom <= rows and right <= columns
        if within:
            image = image[:, self.top : bottom, self.left : right]
        else:
            image = image.index_select(1, torch.arange(self.top, bottom, device=image.device).clamp_(0, rows - 1))
            image = image.index_select(2, torch.arange(self.left, right, device=image.device).clamp_(0, columns - 1))
        image = resize_image(image[None], self.size)[0]
        if self.hflip:
            image = image.flip(-1)
        if mask is None and within:
            return image, None, None
        down = _places(self.top, self.height, self.size[0], image.device)
        across = _places(self.left, self.width, self.size[1], image.device)
        across = across.flip(0) if self.hflip else across
        if mask is not None:
            mask = mask.index_select(0, down.clamp(0, rows - 1)).index_select(1, across.clamp(0, columns - 1))
        outside = None if within else ((down < 0) | (down >= rows))[:, None] | (across < 0) | (across >= columns)
        return image, mask, outside

    def _turned(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        rows, columns = image.shape[-2:]
        above, below, before, behind = self._bounds()
        top, bottom = _span(above, below, rows, self.height / self.size[0])
        left, right = _span(before, behind, columns, self.width / self.size[1])
        y, x = self._coordinates(image.device)
        within = min(above, before) >= 0 and below <= rows and behind <= columns
        outside = None if within else (y < 0) | (y >= rows) | (x < 0) | (x >= columns)
        # In parts of what is needed, -1…1, places are the same whatever its resolution is.
        grid = torch.stack((x.sub_(left).mul_(2 / (right - left)), y.sub_(top).mul_(2 / (bottom - top))), -1).sub_(1)
        if mask is not None:
            part = mask[top:bottom, left:right]
            # Labels stay exact: float32 holds 24 bits.
            dtype = torch.float32 if part.element_size() <= 2 else torch.float64
            mask = F.grid_sample(part[None, None].to(dtype), grid[None].to(dtype), "nearest", "border", False)[0, 0]
            mask = mask.to(part.dtype)
        seen = image[:, top:bottom, left:right][None]
        down, across = min(1.0, self.size[0] / self.height), min(1.0, self.size[1] / self.width)
        smaller = (max(1, round(seen.shape[2] * down)), max(1, round(seen.shape[3] * across)))
        seen = resize_image(seen, smaller).to(torch.float32)  # what shrinks must not alias
        return F.grid_sample(seen, grid[None], "bilinear", "border", False)[0], mask, outside

    def _coordinates(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Row and column, ``[h, w]`` in pixels of the picture, 0 its upper and left rim, of each centre."""
        cosine, sine = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        down, across = (
            (torch.arange(length, dtype=torch.float64, device=device) + 0.5) * (extent / length) - extent / 2
            for length, extent in zip(self.size, (self.height, self.width))
        )
        across = -across if self.hflip else across
        row, column = self.top + self.height / 2, self.left + self.width / 2
        y = (row + cosine * down).to(torch.float32)[:, None] + (sine * across).to(torch.float32)
        x = (column + cosine * across).to(torch.float32) - (sine * down).to(torch.float32)[:, None]
        return y, x

    def _bounds(self) -> tuple[float, float, float, float]:
        """First and last row and column, as lengths from the picture's upper left corner, of what is seen."""
        cosine, sine = abs(math.cos(math.radians(self.angle))), abs(math.sin(math.radians(self.angle)))
        tall, wide = cosine * self.height + sine * self.width, cosine * self.width + sine * self.height
        row, column = self.top + self.height / 2, self.left + self.width / 2
        return row - tall / 2, row + tall / 2, column - wide / 2, column + wide / 2


def _span(low: float, high: float, length: int, shrinks: float) -> tuple[int, int]:
    """The pixels, of so many, from ``low`` to ``high``, with a rim to interpolate and to shrink from; at least one."""
    rim = 2 + 2 * math.ceil(max(1.0, shrinks))
    first = min(max(0, math.floor(low) - rim), length - 1)
    return first, max(first + 1, min(length, math.ceil(high) + rim))
