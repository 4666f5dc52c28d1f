"""How often each class occurs in a data set: exact counts, as a table and as a picture."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from segzoo._decoding import PictureError
from segzoo._files import write_whole
from segzoo._maps import read_ahead
from segzoo._progress import progress_bar
from segzoo.datasets.base import SegmentationDataset, pictures_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PixelCounts", "count_pixels"]

_MOST_LABELS = 0xFFFF  # of 16 bits
Picture: TypeAlias = tuple[SegmentationDataset, int]


@dataclass(frozen=True, eq=False)
class PixelCounts:
    """What `count_pixels` found. C is the number of classes; all counts are exact, int64 ``[C]``.

    Args:
        classes: The classes' names.
        counts: The pixels of each class, without the ignored ones: what ``segzoo.losses.class_weights`` takes.
        pictures: The pictures in which each class occurs.
        neighbourhood: The counted pixels of the pictures in which each class occurs, of whatever class they are.
        num_pictures: How many pictures were counted.
        ignored: How many pixels were ignored.
        unlabelled: How many pictures have no mask, as in a test set: they are in none of the counts.
        colours: Of the bars in `plot`, uint8 ``[C, 3]``, or None.

    Examples:
        >>> import torch
        >>> counts = torch.tensor([900, 90, 10])
        >>> found = PixelCounts(("road", "car", "bus"), counts, torch.tensor([9, 5, 1]), counts, 9)
        >>> found.frequencies
        tensor([0.9000, 0.0900, 0.0100], dtype=torch.float64)
    """

    classes: tuple[str, ...]
    counts: Tensor
    pictures: Tensor
    neighbourhood: Tensor
    num_pictures: int
    ignored: int = 0
    unlabelled: int = 0
    colours: NDArray[np.uint8] | None = None

    @property
    def frequencies(self) -> Tensor:
        """The share of each class in the counted pixels, float64 ``[C]``; NaN where nothing was counted."""
        return self.counts.double() / self.counts.sum()

    @property
    def frequencies_where_present(self) -> Tensor:
        """The share of each class in the pictures that have it, float64 ``[C]``; 0 where none has.

        ``class_weights(found.frequencies_where_present, "median_frequency")`` is Eigen and Fergus' weighting as they
        (and SegNet) define it; with ``counts`` a class that is in few pictures weighs more.
        """
        return self.counts.double() / self.neighbourhood.clamp(min=1)

    def table(self, *, markdown: bool = False) -> str:
        """A row for each class: its pixels, their share, the pictures that have it and its share in those.

        Args:
            markdown: Whether to write a Markdown table instead of plain text.
        """
        lines: list[tuple[str, ...]] = [("Class", "Pixels", "Share", "Pictures", "of them", "Share there")]
        shares = zip(self.frequencies.tolist(), self.frequencies_where_present.tolist())
        for name, pixels, pictures, (share, there) in zip(
            self.classes, self.counts.tolist(), self.pictures.tolist(), shares
        ):
            of_them = pictures / self.num_pictures if self.num_pictures else math.nan
            cells = _percent(share), f"{pictures:,}", _percent(of_them), _percent(there if pictures else math.nan)
            lines.append((name, f"{pixels:,}", *cells))
        return _markdown(lines, self._totals()) if markdown else _plain_text(lines, self._totals())

    def _totals(self) -> str:
        counted = int(self.counts.sum())
        words = [f"{self.num_pictures:,} picture{'s' * (self.num_pictures != 1)}", f"{counted:,} pixels counted"]
        if self.ignored:
            words.append(f"{self.ignored:,} ignored ({_percent(self.ignored / (self.ignored + counted))})")
        if self.unlabelled:
            words.append(f"{self.unlabelled:,} without a mask")
        return ", ".join(words)

    def __str__(self) -> str:
        return self.table()

    def to_json(self) -> str:
        """Everything as JSON."""
        content = {
            "pictures": self.num_pictures,
            "unlabelled": self.unlabelled,
            "ignored": self.ignored,
            "classes": [
                {"name": name, "pixels": pixels, "pictures": pictures, "pixels_of_these_pictures": around}
                for name, pixels, pictures, around in zip(
                    self.classes, self.counts.tolist(), self.pictures.tolist(), self.neighbourhood.tolist()
                )
            ],
        }
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """The shares as bars on a logarithmic axis, the most frequent class on top, in the data set's colours.

        Args:
            path: Of a picture to write as well; its ending says which format.

        Returns:
            A matplotlib figure.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("plot() draws with matplotlib, which is not installed: pip install matplotlib") from error
        order = self.counts.argsort(stable=True).tolist()
        shares = self.frequencies.nan_to_num().tolist()
        height = min(1.2 + 0.28 * len(order), 40)  # inches
        figure = Figure(figsize=(8, height), layout="constrained")
        axes = figure.add_subplot()
        colours = None if self.colours is None else [tuple(self.colours[i] / 255) for i in order]
        low = min(-2, math.floor(math.log10(0.7 * min((share for share in shares if share), default=1))))
        axes.set_xscale("log")
        axes.set_xlim(10.0**low, 4)  # beyond 1, for the words at the longest bar
        axes.barh(range(len(order)), [shares[i] for i in order], color=colours, edgecolor="0.3", linewidth=0.5)
        axes.set_yticks(range(len(order)), [self.classes[i] for i in order])
        axes.set_ylim(-0.6, len(order) - 0.4)
        axes.set_xticks([10.0**k for k in range(low, 1)], [f"{10.0 ** (k + 2):g}%" for k in range(low, 1)])
        axes.minorticks_off()
        axes.set_xlabel(f"share of the counted pixels ({self._totals()})", fontsize=8)
        for row, i in enumerate(order):
            words = f" {_percent(shares[i])}, in {int(self.pictures[i]):,} pictures" if shares[i] else " never"
            axes.text(max(shares[i], 10.0**low), row, words, va="center", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines["bottom"].set_bounds(10.0**low, 1)
        if path is not None:
            with write_whole(path) as file:
                figure.savefig(file, format=Path(path).suffix[1:].lower() or "png", dpi=150, bbox_inches="tight")
        return figure


def count_pixels(dataset: Dataset[Any], *, workers: int = 0, progress: bool = False) -> PixelCounts:
    """Count the pixels of each class in the masks of a data set.

    Only masks are read, and as they are on disk: pictures are not opened, and ``transforms`` do not run, so that the
    counts do not depend on chance. A salient mask counts as two classes, background and object; of a soft one the
    object is what is above 0.5.

    Args:
        dataset: A `SegmentationDataset`, or a torch ``Subset`` or ``ConcatDataset`` of such. Without ``classes`` there
            are as many as the largest label says.
        workers: Threads that decode, worth it for large masks; 0: the caller's own. The counts are the same.
        progress: Whether to show a bar on stderr, where that is a terminal.

    Raises:
        TypeError: It is no such data set.
        ValueError: A mask is broken, or holds a label that is no class; no picture has a mask; the parts of a
            ``ConcatDataset`` have different classes.

    Examples:
        >>> import tempfile, numpy as np
        >>> from PIL import Image
        >>> from segzoo.datasets import PairedFolder
        >>> from segzoo.losses import class_weights
        >>> file = Path(tempfile.mkdtemp()) / "a.png"
        >>> Image.fromarray(np.array([[0, 0, 0, 1, 255]], np.uint8)).save(file)
        >>> found = count_pixels(PairedFolder(file, file, classes=["ground", "tree"]))
        >>> found.counts, found.ignored, class_weights(found.counts, "inverse")
        (tensor([3, 1]), 1, tensor([0.6667, 2.0000]))
    """
    if workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    pictures = list(pictures_of(dataset))
    labelled = [(part, index) for part, index in pictures if part.samples[index].mask is not None]
    if not labelled:
        raise ValueError(f"there is nothing to count: none of the {len(pictures)} pictures has a mask")
    first = labelled[0][0]
    for part, _ in labelled:
        if part is not first and (part.classes, part.num_classes) != (first.classes, first.num_classes):
            raise ValueError(f"the data sets have different classes: {first.classes} and {part.classes}")
    totals = np.zeros((3, _rows(first) or 0), np.int64)
    ignored = 0
    with progress_bar(len(labelled), progress, unit="masks") as bar:
        for histogram, skipped in _histograms(labelled, workers):
            missing = max(0, len(histogram) - totals.shape[1])
            totals = np.pad(totals, ((0, 0), (0, missing)))
            seen = histogram > 0
            totals[:, : len(histogram)] += np.stack([histogram, seen, seen * histogram.sum()])
            ignored += skipped
            bar.update()
    counts, present, around = torch.from_numpy(totals)
    names = _names(first, len(counts))
    colours = first.colours if first.colours is not None and len(first.colours) == len(names) else None
    unlabelled = len(pictures) - len(labelled)
    return PixelCounts(names, counts, present, around, len(labelled), ignored, unlabelled, colours)


def _histograms(pictures: list[Picture], workers: int) -> Iterator[tuple[NDArray[np.int64], int]]:
    if workers == 0:
        yield from map(_histogram, pictures)
        return
    for found in read_ahead(_histogram, pictures, workers):
        if isinstance(found, Exception):
            raise found
        yield found


def _histogram(picture: Picture) -> tuple[NDArray[np.int64], int]:
    """The pixels of each class in one mask, and how many are ignored."""
    dataset, index = picture
    mask = dataset.mask(index).numpy()
    if mask.dtype.kind == "i":
        labels = mask[mask != dataset.ignore_index]  # which may be negative, or so high that counting fills the memory
        low, high = labels.min(initial=0), labels.max(initial=0)
        if low < 0 or high > _MOST_LABELS:
            raise PictureError(
                f"{dataset.samples[index].mask} has the label {low if low < 0 else high}, expected 0 … {_MOST_LABELS}"
            )
        return np.bincount(labels).astype(np.int64), mask.size - labels.size
    counts = _label_counts(mask > 0.5 if mask.dtype.kind == "f" else mask)
    ignored = 0
    if dataset.ignore_index is not None and 0 <= dataset.ignore_index < len(counts):
        ignored = int(counts[dataset.ignore_index])
        counts[dataset.ignore_index] = 0
    highest = int(counts.nonzero()[0].max(initial=-1))
    return counts[: highest + 1], ignored


def _label_counts(labels: NDArray[Any]) -> NDArray[np.int64]:
    if labels.dtype == bool:
        labels = labels.view(np.uint8)
    return np.array(Image.fromarray(labels).histogram(), np.int64)  # without a copy of the mask in wide integers


def _rows(dataset: SegmentationDataset) -> int | None:
    """How many rows the counts have: one channel stands for two classes. None: the labels will show."""
    return 2 if dataset.num_classes == 1 else dataset.num_classes


def _names(dataset: SegmentationDataset, rows: int) -> tuple[str, ...]:
    if dataset.classes is not None and len(dataset.classes) == rows:
        return dataset.classes
    return ("background", "object") if dataset.num_classes == 1 else tuple(map(str, range(rows)))


def _percent(share: float) -> str:
    """Two decimals, more where they would all be 0.

    Examples:
        >>> _percent(0.25), _percent(0.0000321), _percent(0)
        ('25.00%', '0.0032%', '0.00%')
    """
    if math.isnan(share):
        return "–"
    return f"{share:.2%}" if share >= 0.001 or not share else f"{100 * share:.2g}%"


def _plain_text(lines: list[tuple[str, ...]], totals: str) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(f"{cell:{'<' if i == 0 else '>'}{widths[i]}}" for i, cell in enumerate(line)) for line in lines]
    return "\n".join([text[0], "─" * len(text[0]), *text[1:], "", totals])


def _markdown(lines: list[tuple[str, ...]], totals: str) -> str:
    rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([rows[0], "|:--" + "|--:" * (len(lines[0]) - 1) + "|", *rows[1:], "", totals])
