"""What an evaluation found, as text, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from segzoo._files import write_whole
from segzoo.metrics.boundary import BoundaryMetrics
from segzoo.metrics.confusion import SegmentationMetrics
from segzoo.metrics.saliency import SaliencyMetrics

__all__ = ["Evaluation", "one_line"]


@dataclass
class Evaluation:
    """What ``segzoo.inference.evaluate`` found.

    Args:
        metric: The metric over all scored pictures: its ``compute``, ``table`` and ``plot`` say more.
        boundary: That of the rims, where it was asked for.
        per_picture: The values of each scored picture, by its path in the folder without the ending, in natural order.
            Of classes, a value for each, as ``iou_road``.
        failed: The files that could not be read or scored, and why.
        unmatched_predictions: The predictions (or pictures) without a mask.
        unmatched_masks: The masks without a prediction (or picture).
        resized: The pictures whose prediction was resized to its mask.
        settings: What was evaluated and how, as plain values.
    """

    metric: SaliencyMetrics | SegmentationMetrics
    boundary: BoundaryMetrics | None = None
    per_picture: dict[str, dict[str, float]] = field(default_factory=dict)
    failed: dict[Path, Exception] = field(default_factory=dict)
    unmatched_predictions: list[Path] = field(default_factory=list)
    unmatched_masks: list[Path] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every file had its partner and every picture was scored."""
        return not (self.failed or self.unmatched_predictions or self.unmatched_masks)

    @property
    def results(self) -> dict[str, Any]:
        """The metric's values over all scored pictures; those of the rims under ``"boundary"``."""
        values = self.metric.compute()
        return values if self.boundary is None else {**values, "boundary": self.boundary.compute()}

    def table(self) -> str:
        """The values as text, what was compared, and how many pictures were not."""
        parts = [self.metric.table()]
        if self.boundary is not None:
            parts.append(f"{self.boundary.table()}\n{self.boundary.definition}")
        settings = self.settings
        pictures = "picture" if settings["model"] else "prediction"
        counts = [
            (len(self.per_picture), "{} scored"),
            (len(self.failed), "{} failed"),
            (len(self.unmatched_predictions), f"{{}} {pictures}{{}} without a mask"),
            (len(self.unmatched_masks), f"{{}} mask{{}} without a {pictures}"),
            (len(self.resized), "{} prediction{} resized to the mask"),
        ]
        lines = [
            (f"{pictures}s", settings["predictions"]),
            ("masks", settings["masks"]),
            ("weights", settings.get("weights")),
            ("scored are", settings["scored"]),
            ("counts", ", ".join(text.format(n, "s" * (n != 1)) for i, (n, text) in enumerate(counts) if n or not i)),
        ]
        parts.append("\n".join(f"{title:<13}{words}" for title, words in lines if words))
        return "\n\n".join(parts)

    def to_json(self) -> str:
        """Everything as JSON: what is not a number (NaN) is null, and an infinite distance the string ``"inf"``."""
        import segzoo

        content = {
            "segzoo": segzoo.__version__,
            "settings": self.settings,
            "pictures": len(self.per_picture),
            "results": self.results,
            "per_picture": self.per_picture,
            "failed": {str(path): one_line(error) for path, error in self.failed.items()},
            "unmatched_predictions": list(map(str, self.unmatched_predictions)),
            "unmatched_masks": list(map(str, self.unmatched_masks)),
            "resized": self.resized,
        }
        return json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_csv(self) -> str:
        """A row for each scored picture: its name and values; NaN is an empty cell, an infinite distance ``inf``."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        columns = list(next(iter(self.per_picture.values()), {}))
        writer.writerow(["picture", *columns])
        for name, values in self.per_picture.items():
            writer.writerow([name, *("" if math.isnan(values[c]) else repr(values[c]) for c in columns)])
        return text.getvalue()

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write `to_json` to a file, whole or not at all."""
        with write_whole(path) as file:
            file.write(self.to_json().encode(errors="backslashreplace"))

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """Write `to_csv` to a file, whole or not at all."""
        with write_whole(path) as file:
            file.write(self.to_csv().encode(errors="backslashreplace"))


def one_line(error: Exception) -> str:
    """An error's message, or its name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _plain(value: Any) -> Any:
    """Tensors as lists, and floats as JSON can have them."""
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
