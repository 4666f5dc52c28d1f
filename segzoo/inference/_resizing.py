"""``segzoo.ops.resize`` for arrays, to the same digits: a first picture does not wait for torch to be imported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["resize_maps", "resize_pixels"]

Array: TypeAlias = NDArray[Any]
_BLOCK = 16  # rows or columns of a result that are one matrix product
# Multiplications in one product: a larger one would be shared out to threads, which then wait busily for more, at the
# cost of whatever runs beside them or comes next.
_MOST = 1 << 17


def resize_maps(maps: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """float32 maps ``[C, h, w]`` at ``size`` (height, width), bilinearly, without aliasing.

    Examples:
        >>> resize_maps(np.array([[[0.0, 1.0]]], np.float32), (1, 4))
        array([[[0.  , 0.25, 0.75, 1.  ]]], dtype=float32)
    """
    for axis, length in ((2, size[1]), (1, size[0])):
        if maps.shape[axis] == length:
            continue
        resized = np.empty((*maps.shape[:axis], length, *maps.shape[axis + 1 :]), np.float32)
        for rows, columns, weights in _blocks(maps.shape[axis], length, "bilinear", np.dtype(np.float32)):
            for part in _parts(maps.shape[3 - axis], weights):
                if axis == 2:
                    resized[:, part, rows] = maps[:, part, columns] @ weights.T
                else:
                    resized[:, rows, part] = weights @ maps[:, columns, part]
        maps = resized
    return maps


def resize_pixels(pixels: NDArray[np.uint8], size: tuple[int, int], mode: str = "bilinear") -> NDArray[np.uint8]:
    """uint8 pixels ``[H, W, C]`` as ``[C, *size]``, without aliasing: first along the rows, rounded, then the columns.

    Weights are whole numbers of at most 15 bits, as torch has them for pixels, and all sums are exact.

    Args:
        pixels: Of a picture.
        size: Height and width of the result.
        mode: ``"bilinear"``, ``"bicubic"`` or ``"nearest"``.

    Examples:
        >>> resize_pixels(np.array([[[0], [100]]], np.uint8), (1, 4)).tolist()
        [[[0, 25, 75, 100]]]
    """
    if mode == "nearest":
        rows, columns = (_nearest(before, after) for before, after in zip(pixels.shape, size))
        return np.ascontiguousarray(pixels[rows[:, None], columns].transpose(2, 0, 1))
    planes = pixels.transpose(2, 0, 1)
    for axis, length in ((2, size[1]), (1, size[0])):
        if planes.shape[axis] == length:
            continue
        shape = (*planes.shape[:axis], length, *planes.shape[axis + 1 :])
        resized = np.empty(shape, np.uint8)
        for some, of, weights in _blocks(planes.shape[axis], length, mode, np.dtype(np.uint8)):
            for part in _parts(planes.shape[3 - axis], weights):
                if axis == 2:
                    resized[:, part, some] = _rounded(planes[:, part, of].astype(np.float64) @ weights.T)
                else:
                    resized[:, some, part] = _rounded(weights @ planes[:, of, part].astype(np.float64))
        planes = resized
    return np.ascontiguousarray(planes)


def _parts(length: int, weights: Array) -> Iterator[slice]:
    """The other axis, cut so that products stay small."""
    step = max(1, _MOST // weights.size)
    return (slice(start, start + step) for start in range(0, length, step))


def _rounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    values += 0.5
    np.floor(values, out=values)
    return np.clip(values, 0, 255, out=values)


def _nearest(before: int, after: int) -> Array:
    step = np.float32(before) / np.float32(after)
    found: Array = np.floor((np.arange(after, dtype=np.float32) + np.float32(0.5)) * step).astype(np.intp)
    return found.clip(max=before - 1)


def _blocks(before: int, after: int, mode: str, dtype: np.dtype[Any]) -> Iterator[tuple[slice, slice, Array]]:
    """Which pixels of a resized axis, from which, and the matrix between them.

    Args:
        before: Pixels along the axis.
        after: Those of the result.
        mode: ``"bilinear"`` or ``"bicubic"``.
        dtype: Of the values: of uint8 weights are rounded.
    """
    kind = np.float64 if dtype == np.uint8 else np.float32
    first, last, weights = _weights(before, after, mode, kind)
    if dtype == np.uint8:
        largest, precision = float(weights.max()), 0
        while precision < 22 and int(0.5 + largest * (1 << (precision + 1))) < 1 << 15:
            precision += 1
        weights = np.trunc(weights * (1 << precision) + np.copysign(0.5, weights)) / (1 << precision)
    taps = np.arange(weights.shape[1])
    for start in range(0, after, _BLOCK):
        some = slice(start, min(start + _BLOCK, after))
        low, high = int(first[some].min()), int(last[some].max())
        matrix = np.zeros((some.stop - start, high - low), kind)
        at = first[some, None] - low + taps
        inside = taps < (last - first)[some, None]
        matrix[np.nonzero(inside)[0], at[inside]] = weights[some][inside]
        yield some, slice(low, high), matrix


def _weights(before: int, after: int, mode: str, kind: Any) -> tuple[Array, Array, Array]:
    """The first pixel that counts for each of the result, one more than the last, and what each counts."""
    step = kind(before) / kind(after)
    reach = kind(1 if mode == "bilinear" else 2)
    support, inverse = (reach * step, kind(1) / step) if step >= 1 else (reach, kind(1))
    centre = step * (np.arange(after, dtype=kind) + kind(0.5))
    first = np.maximum((centre - support + kind(0.5)).astype(np.intp), 0)
    last = np.minimum((centre + support + kind(0.5)).astype(np.intp), before)
    taps = np.arange((last - first).max())
    away = np.abs((taps + first[:, None] - centre[:, None] + kind(0.5)).astype(kind) * inverse)
    weights = (np.maximum(1 - away, 0) if mode == "bilinear" else _cubic(away)).astype(kind)
    weights[taps >= (last - first)[:, None]] = 0
    return first, last, weights / weights.sum(1, keepdims=True)


def _cubic(x: Array) -> Array:
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))
