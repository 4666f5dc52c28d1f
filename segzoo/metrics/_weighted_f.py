"""The weighted F-measure's two sums over places, as fast as they can be had and exact."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from segzoo.metrics._saliency_measures import EPS, Array, Levels
from segzoo.ops import distance_to

__all__ = ["weighted_f"]

# Beyond so many pixels from the object, 2 - 2**(-distance / 5) is 2 in double precision.
_FAR = 280
# OpenCV computes in single precision: up to this height and width it was compared, and is exact up to `_FAR`.
_OPENCV_MOST = 20000
_STRIP_PIXELS = 2**16  # what stays in the cache
_WINDOW = 3  # the Gaussian's reach, 7×7
_RING = 4  # how far to either side a pixel can lie that is nearer than the window's corners, √18
_STRIP = 16  # rows and columns that one small matrix product blurs at once


def weighted_f(levels: Levels, mask: npt.NDArray[np.bool_], beta: float = 1.0) -> float:
    """Weighted F-measure of one picture; 0 for an empty mask.

    Args:
        levels: The prediction.
        mask: Bool ``[H, W]``.
        beta: β².
    """
    box = _box(mask)
    if box is None:
        return 0.0
    outside, inside = _error_outside(levels, mask, box), _error_inside(levels, mask, box)
    pixels = int(np.count_nonzero(mask))
    recall = 1 - inside / pixels
    precision = (pixels - inside) / (pixels - inside + outside + EPS)
    return (1 + beta) * recall * precision / (recall + beta * precision + EPS)


@functools.lru_cache(maxsize=1)
def _opencv() -> Any:
    """OpenCV if it is installed: faster here, and equal but for the last bits of a double."""
    try:
        import cv2
    except ImportError:
        return None
    return cv2


def _box(pixels: npt.NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """First and one past the last row and column that have a pixel."""
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    if len(rows) == 0:
        return None
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


# ---------------------------------------------------------------------------------------------------------------------
# Outside: errors weigh up to twice as much, the further from the object.
# ---------------------------------------------------------------------------------------------------------------------


def _error_outside(levels: Levels, mask: npt.NDArray[np.bool_], box: tuple[int, int, int, int]) -> float:
    """The sum of the weighted errors."""
    wrong_box = _box((levels.codes > levels.zero if levels.exact is None else levels.exact != 0) & ~mask)
    if wrong_box is None:
        return 0.0
    rows, columns = (slice(min(box[i], wrong_box[i]), max(box[i + 1], wrong_box[i + 1])) for i in (0, 2))
    distance = _distance(mask[rows, columns])
    weights = _weights()
    strip = max(1, _STRIP_PIXELS // distance.shape[1])
    total = 0.0
    for top in range(0, len(distance), strip):
        squared = np.minimum(distance[top : top + strip], np.float32(_FAR)).ravel()
        squared = (squared * squared + np.float32(0.5)).astype(np.int32)
        here = (slice(rows.start + top, min(rows.start + top + strip, rows.stop)), columns)
        if levels.exact is None:
            error = (levels.codes[here] - levels.zero).ravel().astype(np.float64)
        else:
            error = levels.exact[here].ravel().astype(np.float64, copy=False)
        # Not by BLAS: NumPy's threads and torch's would wait for each other.
        total += float(np.einsum("i,i", error, weights.take(squared, mode="clip")))
    return total * levels.step


def _distance(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Distances to the mask, exact to float32's rounding at least up to `_FAR`."""
    cv2 = _opencv()
    if cv2 is None or max(mask.shape) > _OPENCV_MOST:
        return distance_to(torch.from_numpy(np.ascontiguousarray(mask))).numpy()
    rest = (~mask).view(np.uint8)
    return np.asarray(cv2.distanceTransform(rest, cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32)


@functools.lru_cache(maxsize=1)
def _weights() -> Array:
    """2 - 2**(-√n / 5) for each squared distance n up to where it is 2; but 0 for 0, inside the object."""
    weights = 2 - np.exp(np.log(0.5) / 5 * np.sqrt(np.arange(_FAR**2 + 1)))
    weights[0] = 0
    return np.asarray(weights)


# ---------------------------------------------------------------------------------------------------------------------
# Inside: an error among correct pixels is forgiven in part, being blurred.
# ---------------------------------------------------------------------------------------------------------------------


def _error_inside(levels: Levels, mask: npt.NDArray[np.bool_], box: tuple[int, int, int, int]) -> float:
    """The sum over the object of its error or, where that is less, of its error blurred."""
    place = tuple(slice(max(box[i] - _WINDOW, 0), box[i + 1] + _WINDOW) for i in (0, 2))
    inside = mask[place]
    if levels.exact is None:
        one = np.uint8(levels.zero + round(1 / levels.step))
        error = (one - levels.codes[place]) * inside
    else:
        error = (1 - levels.exact[place].astype(np.float64)) * inside
    if not error.any():
        return 0.0
    spread = error.copy()
    rim, nearest = _rim(inside)
    spread.reshape(-1)[rim] = error.reshape(-1)[nearest]
    return _sum_of_smaller(spread, error) * levels.step


def _sum_of_smaller(spread: npt.NDArray[Any], error: npt.NDArray[Any]) -> float:
    """The sum of the error or, where that is less, the other one under a Gaussian of 7 × 7 taps, σ = 5."""
    cv2 = _opencv()
    if cv2 is not None:
        blurred = cv2.sepFilter2D(spread, cv2.CV_64F, _taps(), _taps(), borderType=cv2.BORDER_CONSTANT)
        rows = max(1, _STRIP_PIXELS // error.shape[1])
        strips = [slice(top, top + rows) for top in range(0, len(error), rows)]
        return float(sum(np.minimum(blurred[strip], error[strip]).sum() for strip in strips))
    # Products with a band matrix, some rows and then some columns at a time: far faster than a convolution of double
    # precision in torch.
    height, width = error.shape
    rows, columns = (-(-length // _STRIP) * _STRIP for length in (height, width))
    wide = columns + 2 * _WINDOW
    padded = torch.zeros(rows + 2 * _WINDOW, wide, dtype=torch.float64, device="cpu")
    padded[_WINDOW : _WINDOW + height, _WINDOW : _WINDOW + width] = torch.from_numpy(spread)
    own = torch.zeros(rows, columns, dtype=torch.float64, device="cpu")
    own[:height, :width] = torch.from_numpy(error)
    parts = padded.as_strided((rows // _STRIP, _STRIP + 2 * _WINDOW, wide), (_STRIP * wide, wide, 1))
    down = torch.matmul(_band(), parts).view(rows, wide)
    parts = down.as_strided((columns // _STRIP, rows, _STRIP + 2 * _WINDOW), (_STRIP, wide, 1))
    blurred = torch.matmul(parts, _band().t())
    own = own.as_strided((columns // _STRIP, rows, _STRIP), (_STRIP, columns, 1))
    return float(torch.minimum(blurred, own).sum())


@functools.lru_cache(maxsize=1)
def _taps() -> Array:
    taps = np.exp(-(np.arange(-_WINDOW, _WINDOW + 1) ** 2) / (2 * 5.0**2))
    return np.asarray(taps / taps.sum())


@functools.lru_cache(maxsize=1)
def _band() -> torch.Tensor:
    """The matrix that blurs `_STRIP` values of a line, given `_WINDOW` more on either side."""
    band = np.zeros((_STRIP, _STRIP + 2 * _WINDOW))
    for i, row in enumerate(band):
        row[i : i + 2 * _WINDOW + 1] = _taps()
    return torch.from_numpy(band)


def _rim(mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The pixels outside that the blur reaches from inside, and for each the nearest pixel inside, as flat indices.

    Of equally near ones the one in the leftmost column, there the topmost: SciPy's choice, and so the reference's.
    """
    height, width = mask.shape
    stride = width + 2 * _RING
    padded = np.zeros((height + 2 * _RING, stride), bool)
    padded[_RING:-_RING, _RING:-_RING] = mask
    edge = _RING - _WINDOW
    near = padded[edge:-edge, edge:-edge]
    for axis in (0, 1):
        for shift in (1, 2, 3):  # with the pixel itself seven wide
            low, high = [slice(None)] * 2, [slice(None)] * 2
            low[axis], high[axis] = slice(None, -shift), slice(shift, None)
            near = near[tuple(low)] | near[tuple(high)]
    outside = np.flatnonzero(near & ~mask)
    place = outside + (outside // width) * 2 * _RING + _RING * (stride + 1)
    flat = padded.ravel()
    nearest = np.zeros(len(outside), np.int64)
    left = np.arange(len(outside))
    for ring in _rings(stride):
        here, site = place[left], nearest[left]
        for step in reversed(ring):  # so that the first in the ring has the last word
            there = here + step
            np.copyto(site, there, where=flat.take(there, mode="clip"))
        nearest[left] = site
        left = left[site == 0]
    row, column = np.divmod(nearest, stride)
    return outside, (row - _RING) * width + column - _RING


@functools.lru_cache(maxsize=8)
def _rings(stride: int) -> list[list[int]]:
    """Steps to all that is as near as the window's corners, in rings of one distance: left to right, top to bottom."""
    reach = range(-_RING, _RING + 1)
    rings: dict[int, list[int]] = {}
    for across in reach:
        for down in reach:
            rings.setdefault(across**2 + down**2, []).append(down * stride + across)
    return [rings[squared] for squared in range(1, 2 * _WINDOW**2 + 1) if squared in rings]
