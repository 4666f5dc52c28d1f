"""How train_semantic.py judges a model: figures over all pictures and of each class, their table, and label maps."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from _evaluation import Forward, forward_all
from _processes import Processes
from PIL import Image
from torch import nn

from segzoo.datasets import SegmentationDataset
from segzoo.inference.colours import colour_map
from segzoo.inference.picture import save_image
from segzoo.metrics import SegmentationMetrics
from segzoo.ops import resize
from segzoo.transforms import SemanticEval

FIGURES = {"miou": "mIoU", "pixel_accuracy": "pixel accuracy", "mean_pixel_accuracy": "mean accuracy"}


def evaluate(
    model: nn.Module,
    dataset: SegmentationDataset,
    seen: SemanticEval,
    args: argparse.Namespace,
    processes: Processes,
    classes: int,
    forward: Forward | None = None,
) -> dict[str, Any]:
    """mIoU, pixel accuracy and mean accuracy over all pictures, and each class's IoU and accuracy, by its name.

    The logits (with ``forward``, what it gives) are resized to the labels' own size, bilinearly.
    """
    metrics = SegmentationMetrics(classes, ignore_index=dataset.ignore_index, class_names=dataset.classes)
    for logits, mask in forward_all(model, dataset, seen, args, processes, forward):
        metrics.update(resize(logits, (mask.shape[-2], mask.shape[-1])), mask[None])
    found = metrics.sync().compute()
    recall = torch.where(found["support"] > 0, found["recall"], torch.nan)
    details = {"iou": found["iou"], "accuracy": recall}
    return {name: found[name] for name in FIGURES} | {
        name: dict(zip(metrics.class_names, values.tolist())) for name, values in details.items()
    }


def predict(
    model: nn.Module, dataset: SegmentationDataset, seen: SemanticEval, args: argparse.Namespace, processes: Processes
) -> None:
    """Write a label map for each picture into ``--predict``: pixels are labels, in the classes' colours."""
    colours = colour_map() if dataset.colours is None else dataset.colours
    maps = forward_all(model, dataset, seen, args, processes)
    for index, (logits, mask) in zip(processes.share(len(dataset)), maps):
        labels = resize(logits, (mask.shape[-2], mask.shape[-1])).argmax(1)[0]
        picture = Image.fromarray(labels.to(torch.uint8).cpu().numpy())
        picture.putpalette(colours.tobytes())
        path = args.predict / f"{dataset.names[index]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(picture, path)


def table(results: dict[str, Any], title: str) -> str:
    """The judged epochs' figures in percent: a row for each class, then the means."""
    columns = {
        f"{part} {which}": results[part][which]
        for part in ("held_out", "held_out_mst", "test", "test_mst")
        for which in ("last", "best")
        if which in results.get(part, {})
    }
    names = list(next(iter(columns.values()))["iou"])
    first = max(map(len, ["class", *names, *FIGURES.values()]))
    widths = [max(8, len(column)) for column in columns]

    def row(name: str, cells: Sequence[str]) -> str:
        return "  ".join([name.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, widths))])

    def percent(value: float) -> str:
        return "–" if value != value else f"{100 * value:.2f}"

    head = row("class", list(columns))
    lines = [title, "IoU of each class and the means, in percent", "", head, "─" * len(head)]
    lines += [row(name, [percent(column["iou"][name]) for column in columns.values()]) for name in names]
    lines += ["─" * len(head)]
    lines += [row(said, [percent(column[name]) for column in columns.values()]) for name, said in FIGURES.items()]
    return "\n".join(lines) + "\n"
