"""The measures of one salient-object picture, from counts of levels: what `SaliencyMetrics` adds up.

A prediction of 8 bits has 256 values, so that counts of them, apart for the mask's two sides and the four quadrants
around its centroid, hold all that MAE, F, S and E ask for. Only the weighted F looks at places, in ``_weighted_f``.
Where the reference code's answer hangs on how a mean of equal values was rounded, that very mean is taken here too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Levels", "Regions", "adaptive_counts", "e_measure", "f_curve", "regions", "s_measure"]

Array = npt.NDArray[np.float64]
EPS = float(np.spacing(1.0))


@dataclass
class Levels:
    """A prediction of which every pixel has one of 256 codes.

    Attributes:
        codes: uint8 ``[H, W]``.
        values: float64 ``[256]``: what each code stands for, where ``exact`` is None.
        bins: ``[256]``, which of the thresholds' bins each code falls into; ascending.
        zero: The code that stands for 0, and ``step`` the difference of one code: ``values = step * (codes - zero)``.
        step: See ``zero``.
        exact: The prediction itself, floating ``[H, W]``, where the codes only say its bins; its ``step`` is 1.
    """

    codes: npt.NDArray[np.uint8]
    values: Array
    bins: npt.NDArray[np.int64]
    zero: np.uint8
    step: float
    exact: npt.NDArray[np.floating] | None

    def dense(self) -> npt.NDArray[np.floating]:
        """The prediction, ``[H, W]``, as the reference code has it."""
        return self.values[self.codes] if self.exact is None else self.exact


@dataclass
class Regions:
    """Counts and moments of the eight regions: four quadrants (left top, right top, left bottom, right bottom) × mask.

    Attributes:
        shape: ``(H, W)``.
        centre: Row and column where the quadrants meet: the first of the lower and of the right ones.
        counts: int64 ``[4, 2, 256]``: pixels of each code outside (0) and inside (1) the mask.
        size: ``[4, 2]`` pixels.
        mean: ``[4, 2]`` mean predictions, 0 where there is no pixel.
        spread: ``[4, 2]`` sums of squared differences from the mean.
        constant: ``[4]``: whether a quadrant's predictions are all the same.
    """

    shape: tuple[int, int]
    centre: tuple[int, int]
    counts: npt.NDArray[np.int64]
    size: Array
    mean: Array
    spread: Array
    constant: list[bool]

    def whole(self, side: int) -> tuple[float, float, float]:
        """Pixels, mean and sum of squared differences of one side of the mask, all quadrants together."""
        return _pooled([part[:, side].tolist() for part in (self.size, self.mean, self.spread)])

    def quadrants(self) -> list[tuple[slice, slice]]:
        return _quadrants(self.centre)


def regions(levels: Levels, mask: npt.NDArray[np.bool_]) -> Regions:
    """Count everything, in one pass over the picture."""
    centre = _centroid(mask)
    joint = levels.codes + mask * np.uint16(256)
    joint[:, centre[1] :] += 512
    joint[centre[0] :] += 1024
    counts = _counts(joint).reshape(4, 2, 256)
    size = counts.sum(2).astype(np.float64)
    used = np.count_nonzero(counts.sum(1), axis=1)
    if levels.exact is None:
        mean = counts @ levels.values / np.maximum(size, 1)
        spread = (counts * (levels.values - mean[:, :, None]) ** 2).sum(2)
        constant = (used <= 1).tolist()
        return Regions(mask.shape, centre, counts, size, mean, spread, constant)
    mean, spread, constant = np.zeros((4, 2)), np.zeros((4, 2)), []
    for i, place in enumerate(_quadrants(centre)):
        exact, inside = levels.exact[place], mask[place]
        for side in (0, 1):
            values = exact[inside if side else ~inside].astype(np.float64, copy=False)
            if len(values):
                mean[i, side] = values.mean()
                values = values - mean[i, side]
                spread[i, side] = np.einsum("i,i", values, values)
        constant.append(bool(used[i] == 0 or (used[i] == 1 and exact.min() == exact.max())))
    return Regions(mask.shape, centre, counts, size, mean, spread, constant)


def f_curve(
    true: Array, false: Array, foreground: float, slack: tuple[float, float] = (0.0, 0.0)
) -> tuple[Array, Array, Array]:
    """Precision, recall and F for each threshold, from the pixels at or above it, ``[T]``; 0 for 0 / 0.

    ``slack`` is added to the denominators of precision and recall, and of F.
    """
    precision = true / np.maximum(true + false + slack[0], 1)
    recall = true / max(foreground + slack[0], 1.0)
    return precision, recall, f_measure(precision, recall, slack[1])


def f_measure(precision: Array, recall: Array, slack: float = 0.0) -> Array:
    """(1 + β²) P R / (β² P + R + slack), 0 where P or R is 0; β² = 0.3 since Achanta et al. 2009."""
    over = 1.3 * precision * recall
    return np.asarray(over / np.where(over == 0, 1, 0.3 * precision + recall + slack))


def e_measure(true: Array, false: Array, foreground: float, size: int) -> Array:
    """Enhanced alignment of masks that have ``true`` and ``false`` pixels inside and outside the object, ``[T]``."""
    found = true + false
    if foreground == 0:
        total = size - found
    elif foreground == size:
        total = found
    else:
        parts = (true, false, foreground - true, size - found - (foreground - true))
        level, object_level = found / size, foreground / size
        total = np.zeros_like(found)
        for i, pixels in enumerate(parts):
            ours, theirs = (1 - i // 2) - level, (1 - i % 2) - object_level
            aligned = 2 * (ours * theirs) / (ours**2 + theirs**2 + EPS)
            total = total + (aligned + 1) ** 2 / 4 * pixels
    return np.asarray(total / (max(size - 1, 1) + EPS), np.float64)


def s_measure(found: Regions, levels: Levels, alpha: float = 0.5) -> float:
    """Structure-measure: α times the object's score and 1 - α times the regions'."""
    inside, mean_inside, spread_inside = found.whole(1)
    outside, mean_outside, spread_outside = found.whole(0)
    if inside == 0:
        return 1 - mean_outside
    if outside == 0:
        return mean_inside
    share = inside / (inside + outside)
    object_score = share * _object_score(inside, mean_inside, spread_inside)
    object_score += (1 - share) * _object_score(outside, 1 - mean_outside, spread_outside)
    return max(0.0, alpha * object_score + (1 - alpha) * _region_score(found, levels))


def adaptive_counts(
    found: Regions, levels: Levels, mask: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Pixels inside and outside the mask that are at or above the adaptive threshold, twice the mean, at most 1."""
    if levels.exact is not None:
        above = levels.exact >= min(2 * levels.exact.mean(), 1)
        true = np.count_nonzero(above & mask)
        return np.array([true], np.float64), np.array([np.count_nonzero(above) - true], np.float64)
    counts = found.counts.sum(0)
    both = counts.sum(0)
    threshold = 2 * float(both @ levels.values) / mask.size
    if np.abs(levels.values[both > 0] - threshold).min() < 1e-9:  # a tie: the mean as the reference rounds it
        threshold = 2 * float(levels.dense().mean())
    above = levels.values >= min(threshold, 1)
    return counts[1, above].sum(keepdims=True).astype(np.float64), counts[0, above].sum(keepdims=True).astype(
        np.float64
    )


def _counts(codes: npt.NDArray[np.uint16]) -> npt.NDArray[np.int64]:
    """How often each of 2048 codes occurs; twice as fast as NumPy's, which makes int64 of them first."""
    flat = torch.from_numpy(codes.view(np.int16).reshape(-1))
    counts = torch.zeros(2048, dtype=torch.int64, device="cpu")
    for part in flat.split(2**15 - 64):  # for more, torch takes several threads, which then stay in OpenCV's way
        counts += torch.bincount(part, minlength=2048)
    return counts.numpy()


def _centroid(mask: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """One past the mask's mean row and column, rounded half to even: the original is MATLAB, which counts from 1."""
    height, width = mask.shape
    rows = np.count_nonzero(mask, axis=1)
    pixels = int(rows.sum())
    if pixels == 0:
        return round(height / 2) + 1, round(width / 2) + 1
    columns = np.zeros(width, np.int64)
    for top in range(0, height, 255):  # a column of 255 still fits into 8 bits
        columns += mask[top : top + 255].view(np.uint8).sum(0, dtype=np.uint8)
    return round(int(rows @ np.arange(height)) / pixels) + 1, round(int(columns @ np.arange(width)) / pixels) + 1


def _quadrants(centre: tuple[int, int]) -> list[tuple[slice, slice]]:
    row, column = centre
    return [
        (rows, columns) for rows in (slice(row), slice(row, None)) for columns in (slice(column), slice(column, None))
    ]


def _pooled(parts: list[list[float]]) -> tuple[float, float, float]:
    """Pixels, mean and sum of squared differences of several regions together; ``parts`` has a list of each."""
    sizes, means, spreads = parts
    total = sum(sizes)
    if total == 0:
        return 0.0, 0.0, 0.0
    middle = sum(size * mean for size, mean in zip(sizes, means)) / total
    return total, middle, sum(spreads) + sum(size * (mean - middle) ** 2 for size, mean in zip(sizes, means))


def _object_score(pixels: float, mean: float, spread: float) -> float:
    deviation = (spread / (pixels - 1)) ** 0.5 if pixels > 1 else 0.0
    return 2 * mean / (mean**2 + 1 + deviation + EPS)


def _region_score(found: Regions, levels: Levels) -> float:
    area = found.shape[0] * found.shape[1]
    score, rest = 0.0, 1.0
    for i, place in enumerate(found.quadrants()):
        outside, inside = found.size[i].tolist()
        # As the reference has it: the last quadrant gets what is left of 1.
        weight = (outside + inside) / area if i < 3 else rest
        rest -= weight
        if outside + inside:  # none of an object at the border; the reference is NaN there
            score += weight * _similarity(found, levels, i, place)
    return score


def _similarity(found: Regions, levels: Levels, i: int, place: tuple[slice, slice]) -> float:
    """The structural similarity of prediction and mask in one quadrant."""
    sizes, means, spreads = (part[i].tolist() for part in (found.size, found.mean, found.spread))
    (outside, inside), (mean_outside, mean_inside) = sizes, means
    pixels = outside + inside
    y = inside / pixels
    if found.constant[i] and y in (0.0, 1.0):
        return 1.0 if _mean_is_exact(found, levels, place) else 0.0
    _, x, spread = _pooled([sizes, means, spreads])
    freedom = pixels - 1 + EPS
    variance = spread / freedom
    variance_mask = (inside * (1 - y) ** 2 + outside * y**2) / freedom
    covariance = (inside * (mean_inside - x) * (1 - y) - outside * (mean_outside - x) * y) / freedom
    over = 4 * x * y * covariance
    under = (x**2 + y**2) * (variance + variance_mask)
    return float(over / (under + EPS)) if over != 0 else float(under == 0)


def _mean_is_exact(found: Regions, levels: Levels, place: tuple[slice, slice]) -> bool:
    """Whether the mean of a quadrant's equal predictions is that prediction, when it is added up and divided.

    If so, the reference sees no variance and gives 1, else a little and gives 0.
    """
    part = levels.codes[place]
    if levels.exact is None:
        value: np.floating = levels.values[part[0, 0]]
        if value in (0, 1):
            return True
        values = np.full(found.shape, value)[place]
    else:
        value = levels.exact[place][0, 0]
        values = levels.exact[place]
    return bool(values.mean() == value)
