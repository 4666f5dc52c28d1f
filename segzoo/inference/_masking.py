"""Masks at a picture's size, without the probabilities of all its pixels in memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from segzoo.inference._resizing import _blocks, resize_maps

__all__ = ["classes_at", "mask_at"]

_TILE = 256  # columns at once: a product so small runs in one thread, the model has the others
_ROUNDING = 1e-5  # a mean of values that differ from the threshold by more lies on the same side of it


def mask_at(maps: NDArray[np.float32], size: tuple[int, int], threshold: float) -> NDArray[np.bool_]:
    """Where maps ``[C, h, w]`` in 0…1 exceed the threshold once they are at ``size``: ``resize_maps(…) > threshold``.

    Examples:
        >>> mask_at(np.array([[[0.0, 1.0]]], np.float32), (1, 4), 0.5)
        array([[[False, False,  True,  True]]])
    """
    if threshold >= 1:
        return np.zeros((len(maps), *size), np.bool_)
    wide = resize_maps(maps, (maps.shape[1], size[1]))
    above, below = wide > threshold + _ROUNDING, wide < threshold - _ROUNDING
    mask = np.empty((len(maps), *size), np.bool_)
    for rows, of, weights in _rows(maps.shape[1], size[0]):
        for start in range(0, size[1], _TILE):
            some = slice(start, start + _TILE)
            for value, up, down, result in zip(wide[:, of, some], above[:, of, some], below[:, of, some], mask):
                if up.all() or down.all():  # far from every rim there is nothing to compute
                    result[rows, some] = up[0, 0]
                else:
                    np.greater(weights @ value, threshold, out=result[rows, some])
    return mask


def classes_at(maps: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8]:
    """``[H, W]``: which of maps ``[C, h, w]`` is largest once they are resized to ``size``; the first of equal ones.

    Examples:
        >>> classes_at(np.array([[[0.0, 1.0]], [[1.0, 0.0]]], np.float32), (1, 4))
        array([[1, 1, 0, 0]], dtype=uint8)
    """
    wide = resize_maps(maps, (maps.shape[1], size[1]))
    classes = np.empty(size, np.uint8)
    for rows, of, weights in _rows(maps.shape[1], size[0]):
        for start in range(0, size[1], _TILE):
            some = slice(start, start + _TILE)
            classes[rows, some] = (weights @ wide[:, of, some]).argmax(0)
    return classes


def _rows(before: int, after: int) -> Iterator[tuple[slice, slice, NDArray[np.float32]]]:
    """Some rows of the result, the rows that they are made from, and the matrix between them."""
    if before != after:
        yield from _blocks(before, after, "bilinear", np.dtype(np.float32))
        return
    for start in range(0, after, 64):
        rows = slice(start, min(start + 64, after))
        yield rows, rows, np.eye(rows.stop - start, dtype=np.float32)
