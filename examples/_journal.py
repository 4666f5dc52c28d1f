"""What a run writes down: a line for each epoch, history.csv, and curves for TensorBoard."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segzoo._files import write_whole

Row = dict[str, float]


def line(row: Mapping[str, float], labels: Mapping[str, str]) -> str:
    """An epoch as a line of the log.

    Examples:
        >>> line({"epoch": 10, "train_loss": 1.11081, "lr": 0.000998, "mae": 0.1112}, {"mae": "MAE"})
        '[epoch: 10] train_loss: 1.1108 lr: 0.000998 MAE: 0.111'
    """
    words = [f"[epoch: {row['epoch']:g}]"]
    for name, value in row.items():
        if name == "epoch" or (isinstance(value, float) and math.isnan(value) and name not in labels):
            continue
        if name == "lr":
            words.append(f"lr: {value:.3g}" if value < 1e-4 else f"lr: {value:.6f}")
        elif name == "train_loss":
            words.append(f"train_loss: {value:.4f}")
        elif name in labels:
            words.append(f"{labels[name]}: {value:.3f}")
    return " ".join(words)


def write_history(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """All epochs as a table; whole, so that a run that goes on after an interruption has no epoch twice."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: repr(value) for name, value in row.items()} for row in rows)
    with write_whole(path) as file:
        file.write(text.getvalue().encode())


class Curves:
    """The epochs' figures for TensorBoard, where ``tensorboard`` is installed; else nothing.

    Args:
        folder: Where the event files go.
        rows: The epochs that were before. Only the last is written again: a run may have been ended after its
            checkpoint and before its curves. What came later is taken back.
    """

    def __init__(self, folder: Path, rows: Sequence[Row]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._writer = None
        else:
            self._writer = SummaryWriter(str(folder), purge_step=int(rows[-1]["epoch"]) if rows else 0)
            if rows:
                self.add(rows[-1])

    def add(self, row: Row) -> None:
        """Take in an epoch."""
        if self._writer is None:
            return
        for name, value in row.items():
            if name != "epoch" and not math.isnan(value):
                self._writer.add_scalar(name, value, int(row["epoch"]))
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()
