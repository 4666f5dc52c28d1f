"""Mean, spread and range of each band of a data set's pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from segzoo._progress import progress_bar
from segzoo.datasets.base import pictures_of

__all__ = ["BandStatistics", "band_statistics"]


@dataclass(frozen=True)
class BandStatistics:
    """What is known of each band. Merging two of them is as good as having counted at once.

    Attributes:
        count: Values that counted, ``[C]``.
        minimum: Their least, NaN where there are none.
        maximum: Their greatest.
        sums: Their sum, exactly.
        squares: The sum of their squares, exactly.
    """

    count: tuple[int, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    sums: tuple[Fraction, ...]
    squares: tuple[Fraction, ...]

    @property
    def scale(self) -> None:
        """None: ``mean`` and ``std`` are in the files' units, and transforms must not divide by 255 before."""
        return None

    @property
    def mean(self) -> Tensor:
        """Float64 ``[C]``, in the files' units."""
        return _tensor([float(s / n) if n else math.nan for s, n in zip(self.sums, self.count)])

    @property
    def std(self) -> Tensor:
        """Of all values (dividing by their count), float64 ``[C]``."""
        return _tensor(
            [math.sqrt((q - s * s / n) / n) if n else math.nan for s, q, n in zip(self.sums, self.squares, self.count)]
        )

    @property
    def min(self) -> Tensor:
        """Float64 ``[C]``."""
        return _tensor(self.minimum)

    @property
    def max(self) -> Tensor:
        """Float64 ``[C]``."""
        return _tensor(self.maximum)

    def merge(self, other: BandStatistics) -> BandStatistics:
        """Of both together, as of pictures that different machines have counted."""
        if len(self.count) != len(other.count):
            raise ValueError(f"one has {len(self.count)} bands and the other {len(other.count)}, expected as many")
        return BandStatistics(
            tuple(a + b for a, b in zip(self.count, other.count)),
            tuple(float(np.fmin(a, b)) for a, b in zip(self.minimum, other.minimum)),
            tuple(float(np.fmax(a, b)) for a, b in zip(self.maximum, other.maximum)),
            tuple(a + b for a, b in zip(self.sums, other.sums)),
            tuple(a + b for a, b in zip(self.squares, other.squares)),
        )

    def __str__(self) -> str:
        rows = zip(self.mean.tolist(), self.std.tolist(), self.minimum, self.maximum, self.count)
        lines = [
            f"{i:>4} {m:>12.6g} {s:>12.6g} {a:>12.6g} {b:>12.6g} {n:>16,}" for i, (m, s, a, b, n) in enumerate(rows)
        ]
        return "\n".join([f"{'band':>4} {'mean':>12} {'std':>12} {'min':>12} {'max':>12} {'values':>16}", *lines])


def _tensor(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def band_statistics(dataset: Dataset[Any], *, nodata: float | None = None, progress: bool = False) -> BandStatistics:
    """Mean, standard deviation, least and greatest value of each band, over all pixels of all pictures.

    One pass, exact: sums of integers are integers, and those of floating point values carry no error from one picture
    to the next. Transforms do not run, and masks are not read.

    Args:
        dataset: A `SegmentationDataset`, or a torch ``Subset`` or ``ConcatDataset`` of such.
        nodata: The value that stands for no measurement, NaN perhaps, and does not count. None: all count.
        progress: Whether to show a bar on stderr, where that is a terminal.

    Raises:
        TypeError: It is no such data set.
        ValueError: Pictures have different numbers of bands, or a value that counts is not finite.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from segzoo.datasets import PairedFolder
        >>> file = Path(tempfile.mkdtemp()) / "a.npy"
        >>> np.save(file, np.array([[[0, 5], [2, 5], [4, 8]]], np.uint16))
        >>> found = band_statistics(PairedFolder(file, None))
        >>> found.mean, found.max
        (tensor([2., 6.], dtype=torch.float64), tensor([4., 8.], dtype=torch.float64))
    """
    pictures = list(pictures_of(dataset))
    total: BandStatistics | None = None
    with progress_bar(len(pictures), progress) as bar:
        for part, index in pictures:
            values = part.image(index).numpy()
            path = part.samples[index].image
            found = BandStatistics(*zip(*(_of_band(band.ravel(), nodata, path) for band in values)))
            if total is not None and len(found.count) != len(total.count):
                raise ValueError(f"{path} has {len(found.count)} bands and those before {len(total.count)}")
            total = found if total is None else total.merge(found)
            bar.update()
    if total is None:
        raise ValueError("the data set is empty, expected at least one picture")
    return total


def _of_band(values: NDArray[Any], nodata: float | None, path: Path) -> tuple[int, float, float, Fraction, Fraction]:
    """Count, least, greatest, sum and sum of squares of one band of one picture."""
    if nodata is not None:
        values = values[~np.isnan(values) if math.isnan(nodata) else values != nodata]
    if values.size == 0:
        return 0, math.nan, math.nan, Fraction(0), Fraction(0)
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{path} has values that are not finite; nodata= names the one that does not count")
    if values.dtype.kind in "iu":
        wide = values.astype(np.int64)
        return values.size, low, high, Fraction(int(wide.sum())), Fraction(int(wide @ wide))
    real = values.astype(np.float64)
    near = float(real.mean())
    real -= near  # squares of what is left are small, so that little is rounded; the rest is exact
    sums, squares, centre = Fraction(float(real.sum())), Fraction(float(real @ real)), Fraction(near)
    count = values.size
    return count, low, high, count * centre + sums, squares + 2 * centre * sums + count * centre * centre
