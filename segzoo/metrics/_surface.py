"""The rims of objects in label maps, the bands along them, and exact distances from one rim to another."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segzoo.ops.distance import distance_to

__all__ = ["CodeMap", "Points", "band_overlaps", "nearest_squares"]

# Maps are arrays of codes: class c is c + 1, and 0 is what lies outside of the picture (for a single class also what is
# not of the object). The highest code of the dtype is a pixel that does not count.
Codes = NDArray[Any]

# How far, in pixels, nearest points are looked for near a point before all points are looked at.
_REACHES = (4, 16, 64)
_NO_SITE = 2 * _REACHES[-1]  # further than the last reach, and with half of that added still a uint8
_BLOCK = 2**15  # pairs that are looked at together: they stay in the cache
# What it costs to compare all pairs, and to make the distance map of a pixel, in pairs: measured.
_SMALL = 2**14
_MAP_COST = 64


@dataclass(frozen=True)
class Points:
    """Pixels of a picture, in the order of its rows: int64 ``y`` and ``x``, ``[n]``."""

    y: NDArray[np.int64]
    x: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, chosen: NDArray[Any]) -> Points:
        return Points(self.y[chosen], self.x[chosen])


class CodeMap:
    """A label map with a frame of outside round it, in which a neighbour is a fixed number of places away.

    Args:
        codes: ``[H, W]``, see the top of this file; uint8 for one class, else any integers.
        classes: How many classes there are.
        ignoring: Whether some pixels do not count.
    """

    def __init__(self, codes: Codes, classes: int, ignoring: bool) -> None:
        self.height, self.width = codes.shape
        self.classes = classes
        # One column is frame enough on both sides, as the rows follow each other.
        self.pitch = self.width + 1
        framed = np.zeros((self.height + 2, self.pitch), codes.dtype)
        framed[1:-1, : self.width] = codes
        self.flat: Codes = framed.reshape(-1)
        self.counted = self.flat != np.iinfo(codes.dtype).max if ignoring else None

    def rims(self) -> list[Points]:
        """The rim of every class: pixels with a counted 4-neighbour of another class, or at the picture's border."""
        rim = np.zeros(self.flat.shape, np.bool_)
        for step in (1, self.pitch):
            differ = self.flat[step:] != self.flat[:-step]
            if self.counted is not None:
                differ &= self.counted[step:]
                differ &= self.counted[:-step]
            rim[step:] |= differ
            rim[:-step] |= differ
        rim &= self.flat.view(np.bool_) if self.classes == 1 and self.counted is None else self.flat != 0
        place = np.flatnonzero(rim)
        points = Points(place // self.pitch - 1, place % self.pitch)
        if self.classes == 1:
            return [points]
        code = self.flat[place]
        order = np.argsort(code, kind="stable")
        ends = np.searchsorted(code[order], np.arange(1, self.classes + 2))
        return [points.take(order[first:last]) for first, last in pairwise(ends)]

    def band(self, width: int) -> NDArray[np.bool_]:
        """Pixels that have a counted one of another class, or the outside, in the square of ``2 width + 1`` pixels."""
        other: NDArray[np.bool_] = self.flat != self._extreme(self.flat, width, np.minimum)
        if self.classes > 1:
            seen = self.flat if self.counted is None else self.flat * self.counted
            other |= self.flat != self._extreme(seen, width, np.maximum)
        if self.counted is not None:
            other &= self.counted
        return other

    def _extreme(self, flat: Codes, width: int, choose: np.ufunc) -> Codes:
        """Lowest or highest code in the square about each pixel; outside where the square reaches out of the frame."""
        found = flat
        for step in (self.pitch, 1):
            length = 1
            while length <= width:  # windows of 1, 2, 4 … pixels, each from two of the length before
                found = choose(found[: -length * step or None], found[length * step :])
                length *= 2
            rest = (2 * width + 1 - length) * step
            found = choose(found[: len(found) - rest], found[rest:]) if rest < len(found) else found[:0]
        result = np.zeros_like(flat)
        first = width * (self.pitch + 1)
        result[first : first + len(found)] = found
        return result


def band_overlaps(prediction: CodeMap, target: CodeMap, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of every class, how many pixels the bands of the two maps have in common, and how many they have together."""
    mine, theirs = prediction.band(width), target.band(width)
    both = mine & theirs
    if prediction.classes == 1:
        common = np.array([np.count_nonzero(both)])
        return common, np.count_nonzero(mine) + np.count_nonzero(theirs) - common
    both &= prediction.flat == target.flat

    def per_class(codes: Codes, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(codes[chosen], minlength=prediction.classes + 1)[1:].astype(np.int64)

    common = per_class(prediction.flat, both)
    return common, per_class(prediction.flat, mine) + per_class(target.flat, theirs) - common


def nearest_squares(
    first: Points, second: Points, aspect: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each point of either set the least ``dy² + aspect · dx²`` to a point of the other; neither set is empty.

    Exact: with ``aspect`` 1 the results are whole numbers, and however they are found they are the same digits.
    """
    top, left = min(first.y.min(), second.y.min()), min(first.x.min(), second.x.min())
    first, second = (Points(points.y - top, points.x - left) for points in (first, second))
    size = int(max(first.y[-1], second.y[-1])) + 1, int(max(first.x.max(), second.x.max())) + 1
    if len(first) * len(second) <= max(_SMALL, size[0] * size[1]):
        return _by_pairs(first, second, aspect, size)
    return _one_way(first, second, aspect, size), _one_way(second, first, aspect, size)


def _one_way(points: Points, sites: Points, aspect: float, size: tuple[int, int]) -> NDArray[np.float64]:
    """The least squares of the points, by what is nearby, then for the points with nothing near by all sites."""
    squares, left = _by_columns(points, sites, aspect, size)
    if len(left):
        rest = points.take(left)
        cheap = len(rest) * len(sites) <= _MAP_COST * size[0] * size[1]
        search = _by_tree if _tree() is not None else _by_map
        squares[left] = _by_pairs(rest, sites, aspect, size)[0] if cheap else search(rest, sites, aspect, size)
    return squares


def _by_columns(
    points: Points, sites: Points, aspect: float, size: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The least squares of points with a site near, and the indices of the points that have none.

    A table says how many rows away the next site in a pixel's column is; a point looks at the columns to both sides.
    """
    margin = _REACHES[-1] - 1
    pitch = size[1] + margin  # of two rows that follow each other, the one's margin is the other's
    table = np.full(margin + size[0] * pitch, _NO_SITE, np.uint8)
    rows = table[margin:]
    rows[sites.y * pitch + sites.x] = 0
    place = points.y * pitch + points.x + margin
    squares = np.empty(len(points))
    left = np.arange(len(points))
    known = 1  # sites less than so many rows away are in the table
    for reach in _REACHES:
        while known < reach:
            step = known * pitch
            if step < len(rows):
                farther = rows + np.uint8(known)
                np.minimum(rows[:-step], farther[step:], out=rows[:-step])
                np.minimum(rows[step:], farther[:-step], out=rows[step:])
            known *= 2
        columns = np.arange(1 - reach, reach)
        across = _typed(columns**2, aspect)[:, None]
        block = max(1, _BLOCK // len(columns))
        found = [
            _squared(table.take(place[left[i : i + block]] + columns[:, None]), across).min(0)
            for i in range(0, len(left), block)
        ]
        squares[left] = np.concatenate(found)
        # What has not been looked at is as far as the reach or farther.
        left = left[squares[left] > reach**2 * min(1.0, aspect)]
        if not len(left) or len(left) * len(sites) <= _SMALL:
            break
    return squares, left


def _typed(squares: NDArray[np.int64], aspect: float) -> NDArray[Any]:
    return squares.astype(np.uint16) if aspect == 1 else squares * aspect


def _squared(down: NDArray[np.uint8], across: NDArray[Any]) -> NDArray[Any]:
    square = np.multiply(down, down, dtype=across.dtype)
    square += across
    return square


def _by_pairs(
    points: Points, sites: Points, aspect: float, size: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The least squares of the points and of the sites, from all pairs."""
    # Whole numbers are exact in float32 up to 2**24.
    dtype = np.float32 if aspect == 1 and size[0] ** 2 + size[1] ** 2 <= 2**24 else np.float64
    y, x, site_y, site_x = (v.astype(dtype) for v in (points.y, points.x, sites.y, sites.x))
    there = np.empty(len(points))
    back = np.full(len(sites), np.inf, dtype)
    width = min(len(sites), _BLOCK)
    height = max(1, _BLOCK // width)
    for i in range(0, len(points), height):
        here = slice(i, i + height)
        best = np.full(len(y[here]), np.inf, dtype)
        for j in range(0, len(sites), width):
            some = slice(j, j + width)
            square = y[here, None] - site_y[some]
            square *= square
            across = x[here, None] - site_x[some]
            across *= across
            if aspect != 1:
                across *= aspect
            square += across
            np.minimum(best, square.min(1), out=best)
            np.minimum(back[some], square.min(0), out=back[some])
        there[here] = best
    return there, back.astype(np.float64)


@functools.lru_cache(maxsize=1)
def _tree() -> Any:
    """SciPy's k-d tree, if SciPy is installed: for many points that are far apart it is many times faster."""
    try:
        from scipy.spatial import KDTree
    except ImportError:
        return None
    return KDTree


def _by_tree(points: Points, sites: Points, aspect: float, size: tuple[int, int]) -> NDArray[np.float64]:
    """The least squares of the points, from a tree of the sites."""
    places = [np.stack((some.y, some.x * aspect**0.5), 1) for some in (sites, points)]
    nearest = _tree()(places[0]).query(places[1])[1]
    square: NDArray[np.float64] = (sites.y[nearest] - points.y) ** 2 + aspect * (sites.x[nearest] - points.x) ** 2.0
    return square


def _by_map(points: Points, sites: Points, aspect: float, size: tuple[int, int]) -> NDArray[np.float64]:
    """The least squares of the points, from the distance map of the sites."""
    mask = torch.zeros(size, dtype=torch.bool, device="cpu")
    mask[torch.from_numpy(sites.y), torch.from_numpy(sites.x)] = True
    _, nearest = distance_to(mask, spacing=(1.0, aspect**0.5), return_indices=True)
    y, x = nearest.numpy()[:, points.y, points.x]
    # The map's own distances are rounded to float32.
    square: NDArray[np.float64] = (y - points.y) ** 2 + aspect * (x - points.x) ** 2.0
    return square
