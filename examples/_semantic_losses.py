"""The losses of train_semantic.py by name, and the weights of the classes, counted from the training data."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import torch
from _options import positive, positive_number
from _processes import Processes
from torch import Tensor, nn
from torch.utils.data import Subset

from segzoo._errors import unknown_name
from segzoo.datasets import SegmentationDataset, count_pixels
from segzoo.losses import (
    CombinedLoss,
    CrossEntropyLoss,
    DeepSupervisionLoss,
    DiceLoss,
    FocalLoss,
    FocalTverskyLoss,
    JaccardLoss,
    LovaszLoss,
    OhemCrossEntropyLoss,
    TverskyLoss,
    class_weights,
)

_WEIGHTED = "weighted_"
_METHODS = "inverse", "median_frequency", "effective_number", "enet"


def _cross_entropy(args: argparse.Namespace, **options: Any) -> nn.Module:
    return CrossEntropyLoss(label_smoothing=args.label_smoothing or 0.0, **options)


def _focal(args: argparse.Namespace, weight: Tensor | None, **options: Any) -> nn.Module:
    return FocalLoss(gamma=2.0 if args.focal_gamma is None else args.focal_gamma, alpha=weight, **options)


def _ohem(args: argparse.Namespace, **options: Any) -> nn.Module:
    given = {"threshold": args.ohem_threshold, "min_kept": args.ohem_min_kept}
    return OhemCrossEntropyLoss(**{name: value for name, value in given.items() if value is not None}, **options)


LOSSES: dict[str, Callable[..., nn.Module]] = {
    "ce": _cross_entropy,
    "dice": lambda args, **options: DiceLoss(**options),
    "focal": _focal,
    "focal_tversky": lambda args, **options: FocalTverskyLoss(**options),
    "jaccard": lambda args, **options: JaccardLoss(**options),
    "lovasz": lambda args, **options: LovaszLoss(**options),
    "ohem": _ohem,
    "tversky": lambda args, **options: TverskyLoss(**options),
}
# What is of no use without a certain loss, and would be ignored silently.
_NEEDS = {"label_smoothing": "ce", "focal_gamma": "focal", "ohem_threshold": "ohem", "ohem_min_kept": "ohem"}


def add_loss_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that name a loss."""
    group = parser.add_argument_group("the loss")
    group.add_argument(
        "--loss", default="ce", metavar="NAME[+NAME]",
        help=f"{', '.join(LOSSES)}; each also as weighted_NAME, whose classes count the more the rarer they are; and "
        "sums, such as ce+dice or ce+0.5*lovasz (default: ce)",
    )  # fmt: skip
    group.add_argument(
        "--class-weights", choices=_METHODS,
        help="of a weighted loss, from the training pixels; median_frequency: SegNet's (default), effective_number: "
        "with beta from the mean number of pixels",
    )  # fmt: skip
    group.add_argument("--label-smoothing", type=float, metavar="X", help="of ce: share spread evenly (default: 0)")
    group.add_argument("--focal-gamma", type=float, metavar="X", help="of focal (default: 2)")
    group.add_argument(
        "--ohem-threshold", type=positive_number, metavar="P", help="of ohem: surer pixels are easy (default: 0.7)"
    )
    group.add_argument("--ohem-min-kept", type=positive, metavar="N", help="pixels of a batch (default: 100000)")
    group.add_argument(
        "--aux-weight", type=float, default=0.4, metavar="X",
        help="of each auxiliary or side output's loss, of models that have such (default: 0.4)",
    )  # fmt: skip
    group.add_argument("--l1", type=float, default=0.0, metavar="X", help="times the sum of |weights| (default: 0)")


def terms(args: argparse.Namespace) -> dict[str, float]:
    """The names in ``--loss`` and what each counts for.

    Raises:
        ValueError: A name is unknown or there twice, or another option is for a loss that is not there.
    """
    found: dict[str, float] = {}
    for text in args.loss.split("+"):
        factor, star, name = (part.strip() for part in text.rpartition("*"))
        if name.removeprefix(_WEIGHTED) not in LOSSES:
            raise unknown_name("loss", name, [*LOSSES, *(_WEIGHTED + known for known in LOSSES)])
        try:
            number = float(factor) if star else 1.0
        except ValueError:
            raise ValueError(
                f"--loss is {args.loss!r}, expected such as ce+0.5*dice: {factor!r} is no number"
            ) from None
        if name in found:
            raise ValueError(f"--loss is {args.loss!r}, expected {name} once, such as 2*{name}")
        found[name] = number
    plain = {name.removeprefix(_WEIGHTED) for name in found}
    for option, loss in _NEEDS.items():
        if getattr(args, option) is not None and loss not in plain:
            raise ValueError(f"--{option.replace('_', '-')} is for --loss {loss}, got --loss {args.loss}")
    if args.class_weights and plain == {name for name in found if not name.startswith(_WEIGHTED)}:
        raise ValueError(f"--class-weights is for a weighted loss, such as weighted_ce, got --loss {args.loss}")
    return found


def make_loss(
    args: argparse.Namespace, weight: Callable[[], Tensor], ignore_index: int
) -> Callable[[Any, Tensor], Tensor]:
    """The loss that the options name, of a model's output or outputs.

    Args:
        args: The options of ``add_loss_arguments``.
        weight: Gives the classes' weights; called only where a loss is weighted.
        ignore_index: The target's label that does not count.
    """
    found = terms(args)
    weights = weight() if any(name.startswith(_WEIGHTED) for name in found) else None
    parts = {}
    for name, factor in found.items():
        of_class = weights if name.startswith(_WEIGHTED) else None
        make = LOSSES[name.removeprefix(_WEIGHTED)]
        parts[name] = (make(args, weight=of_class, ignore_index=ignore_index), factor)
    (first, factor), *others = parts.values()
    loss = CombinedLoss(parts) if others or factor != 1 else first
    if weights is not None:
        loss.to(weights.device)

    @functools.cache
    def supervised(outputs: int) -> DeepSupervisionLoss:
        return DeepSupervisionLoss(loss, [1.0] + [args.aux_weight] * (outputs - 1))

    def of_outputs(outputs: Any, target: Tensor) -> Tensor:
        value: Tensor = supervised(1 if isinstance(outputs, Tensor) else len(outputs))(outputs, target)
        return value

    return of_outputs


def counted_weights(
    args: argparse.Namespace, dataset: SegmentationDataset, num_classes: int, processes: Processes
) -> Tensor:
    """The classes' weights, float32 ``[num_classes]`` on the device, each process counting its part of the masks.

    Args:
        args: The options: ``class_weights``, ``workers``.
        dataset: What is learned.
        num_classes: How many there are.
        processes: This process and the others.
    """
    share = processes.share(len(dataset))
    found = torch.zeros(2, num_classes, dtype=torch.int64)
    if share:
        part = count_pixels(Subset(dataset, share), workers=args.workers)
        found[:, : len(part.counts)] += torch.stack([part.counts, part.neighbourhood])
    counts, around = processes.added(found.to(processes.device)).cpu()
    method: Any = args.class_weights or "median_frequency"
    if method == "effective_number":
        # 1 / (1 - β) pixels are what a class has on average: with far more than that all weigh the same.
        weights = class_weights(counts, method, beta=1 - 1 / max(1.0, counts.double().mean().item()))
    elif method == "median_frequency":
        # Eigen and Fergus', as SegNet uses it: frequencies in the pictures that have the class.
        weights = class_weights(counts.double() / around.clamp(min=1), method)
    else:
        weights = class_weights(counts, method)
    return weights.to(processes.device)
