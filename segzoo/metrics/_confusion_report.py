"""A confusion matrix for people: as a table in a terminal and as a picture."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from segzoo._files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["confusion_figure", "printed_table"]

_COLUMNS = {"IoU": "iou", "Dice": "dice", "Precision": "precision", "Recall": "recall"}
_MEANS = ("miou", "mean_dice", "mean_precision", "mean_recall")
_SINGLES = {
    "Pixel accuracy": "pixel_accuracy",
    "Mean pixel accuracy": "mean_pixel_accuracy",
    "Frequency-weighted IoU": "frequency_weighted_iou",
    "mIoU per picture": "miou_per_picture",
    "Mean Dice per picture": "mean_dice_per_picture",
    "Pixel accuracy per picture": "pixel_accuracy_per_picture",
}
_MOST_NUMBERED = 20  # classes; with more the numbers in the cells are too small to be read


def printed_table(values: Mapping[str, Any], names: Sequence[str]) -> str:
    """What ``SegmentationMetrics.compute`` returns, as text; a dash is NaN."""
    total = int(values["support"].sum())
    lines = [("Class", *_COLUMNS, "Support")]
    scores = torch.stack([values[key] for key in _COLUMNS.values()], 1).tolist()
    for name, row, support in zip(names, scores, values["support"].tolist()):
        lines.append((name, *map(_number, row), f"{support / total:.2%}" if total else "–"))
    lines.append(("Mean", *(_number(values[key]) for key in _MEANS), f"{total:,} px"))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(f"{cell:{'<' if i == 0 else '>'}{widths[i]}}" for i, cell in enumerate(line)) for line in lines]
    rule = "─" * len(text[0])
    wide = max(map(len, _SINGLES))
    singles = [f"{title:<{wide}}  {_number(values[key])}" for title, key in _SINGLES.items()]
    pictures = f"{'Pictures':<{wide}}  {values['pictures']:>6}"
    return "\n".join([text[0], rule, *text[1:-1], rule, text[-1], "", *singles, pictures])


def _number(value: float) -> str:
    return f"{'–':>6}" if math.isnan(value) else f"{value:.4f}"


def confusion_figure(
    matrix: Tensor, names: Sequence[str], normalize: bool, path: str | os.PathLike[str] | None
) -> Figure:
    """The matrix ``[C, C]`` as a matplotlib figure, also written to ``path`` where there is one."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot() draws with matplotlib, which is not installed: pip install matplotlib") from error
    rows = matrix.double()
    shown = rows / rows.sum(1, keepdim=True) if normalize else rows
    size = min(3 + 0.3 * len(names), 14)  # inches
    figure = Figure(figsize=(size + 1.5, size), layout="constrained")
    axes = figure.add_subplot()
    highest = 1.0 if normalize else max(1.0, shown.max().item())
    image = axes.imshow(shown.numpy(), cmap="Blues", vmin=0, vmax=highest)
    label = "share of the class's pixels" if normalize else "pixels"
    figure.colorbar(image, ax=axes, label=label, fraction=0.046, pad=0.02)
    ticks = list(range(len(names)))
    small = min(10, 0.6 * 72 * size / len(names))
    axes.set_xticks(ticks, names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize=small)
    axes.set_yticks(ticks, names, fontsize=small)
    axes.set_xlabel("prediction")
    axes.set_ylabel("target")
    axes.set_facecolor("0.9")  # the rows of classes that are not in the target have no shares
    if len(names) <= _MOST_NUMBERED:
        _number_cells(axes, shown, normalize, highest / 2)
    if path is not None:
        with write_whole(path) as file:
            figure.savefig(file, format=Path(path).suffix[1:].lower() or "png", dpi=150, bbox_inches="tight")
    return figure


def _number_cells(axes: Any, shown: Tensor, normalize: bool, middle: float) -> None:
    """Write into each cell what it holds, but not the many zeros; white on the dark ones."""
    for y, row in enumerate(shown.tolist()):
        for x, value in enumerate(row):
            if value >= (0.005 if normalize else 1):
                text = f"{value:.2f}".removeprefix("0") if normalize else _short(value)
                color = "white" if value > middle else "black"
                axes.text(x, y, text, ha="center", va="center", fontsize=7, color=color)


def _short(count: float) -> str:
    """At most four signs and a letter.

    Examples:
        >>> _short(950), _short(12_345), _short(2_097_152)
        ('950', '12k', '2.1M')
    """
    for letter in ("", "k", "M", "G"):
        if count < 999.5 or letter == "G":
            break
        count /= 1000
    return f"{count:.0f}{letter}" if count >= 9.95 or not letter else f"{count:.1f}{letter}"
