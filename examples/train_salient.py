"""Train a model of one class: salient objects, backgrounds, anything that is there or is not.

python examples/train_salient.py --dataset duts --data DUTS --output runs/lite --epochs 100
python examples/train_salient.py --data mine --output runs/mine --weights duts --lr 1e-4     # mine/images, mine/masks
torchrun --nproc-per-node 4 examples/train_salient.py --dataset duts --data DUTS --output runs/full --model u2net_full

Every epoch gives a line such as "[epoch: 10] train_loss: 1.1108 lr: 0.000998 MAE: 0.111 maxF1: 0.729", measured on
pictures that are held out of the training data; the best of these epochs is in OUTPUT/best, the last in OUTPUT/last,
and both are scored on the test pictures, where there are any, in OUTPUT/results.json. Either is a model for
`segzoo cutout --model local-dir:OUTPUT/best photo.jpg out.png`. Interrupted runs go on with --resume auto.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from _data import Data, add_data_arguments, read_data
from _engine import Recipe, Run
from _evaluation import forward_all
from _launch import launch
from _model import add_model_arguments, build
from _options import add_arguments, make_parser
from _processes import Processes
from _report import export, finish
from torch import Tensor, nn

from segzoo.losses import BCELoss, CombinedLoss, DeepSupervisionLoss, DiceLoss, FocalLoss, HybridSaliencyLoss
from segzoo.metrics import SaliencyMetrics
from segzoo.ops import resize
from segzoo.transforms import SalientEval, SalientTrain

PROTOCOL = "the probabilities as they are, at the masks' size; max F of the mean precision and recall curves, β² = 0.3"
LABELS = {"mae": "MAE", "max_f": "maxF1"}
LOSSES: dict[str, Any] = {
    "bce": BCELoss,
    "bce+dice": lambda: CombinedLoss({"bce": (BCELoss(), 1.0), "dice": (DiceLoss(mode="binary"), 1.0)}),
    "focal": lambda: FocalLoss(mode="binary"),
    "hybrid": HybridSaliencyLoss,
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = make_parser("train_salient", __doc__)
    add_data_arguments(parser, "salient")
    add_model_arguments(parser, model="u2net_lite")
    what_is_learned = parser.add_argument_group("what is learned")
    what_is_learned.add_argument(
        "--loss", choices=sorted(LOSSES), default="bce",
        help="of each output, added up (default: bce); hybrid: BCE + SSIM + IoU",
    )  # fmt: skip
    what_is_learned.add_argument("--resize", type=int, default=320, help="pictures become squares (default: 320)")
    what_is_learned.add_argument("--crop", type=int, default=288, help="a random part of them (default: 288)")
    what_is_learned.add_argument("--hflip", type=float, default=0.5, help="how often mirrored (default: 0.5)")
    what_is_learned.add_argument("--vflip", type=float, default=0.0, help="how often upside down (default: 0)")
    what_is_learned.add_argument(
        "--select", choices=["max_f", "mae"], default="max_f", help="what the best epoch is best at (default: max_f)"
    )
    add_arguments(parser, optimizer="adamw", lr=1e-3, weight_decay=1e-4, schedule="cosine", warmup=1.0)
    return parser.parse_args(arguments)


def evaluate(
    model: nn.Module, dataset: Any, transform: SalientEval, args: argparse.Namespace, processes: Processes
) -> dict[str, float]:
    """MAE and the maximum of F over all pictures, at the masks' size, of the probabilities as they are.

    Max F is that of the mean precision and recall curves, as in the U²-Net paper.
    """
    metrics = SaliencyMetrics("paper", normalize=False, measures=("mae", "f_measure"))
    for logits, mask in forward_all(model, dataset, transform, args, processes):
        probabilities = resize(logits.sigmoid(), (mask.shape[-2], mask.shape[-1]))
        metrics.update(probabilities[0].clamp(0, 1), mask > 0.5)
    figures = metrics.sync().compute()
    return {name: float(figures[name]) for name in ("mae", "max_f")}


def accuracy(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """How many pixels are right, and how many there are."""
    right = (logits > 0) == (target > 0.5)
    return right.sum(), torch.ones_like(right).sum()


def main(args: argparse.Namespace, processes: Processes) -> None:
    """One run, from its options to its results."""
    data: Data = read_data(args, task="salient") if args.dataset == "folder" else read_data(args)
    model = build(args, num_classes=1)
    if model.num_classes != 1:
        raise ValueError(f"{args.model} has {model.num_classes} classes, expected one: see train_semantic.py")
    model.classes = data.train.classes
    model.preprocessing = replace(model.preprocessing, size=(args.resize, args.resize))
    seen = SalientEval(args.resize, normalize=model.preprocessing)
    train: Any = SalientTrain(args.resize, args.crop, hflip=args.hflip, vflip=args.vflip, normalize=model.preprocessing)
    if args.overfit:
        train = SalientEval(args.resize, resize_mask=True, normalize=model.preprocessing)

    def judged(part: Any) -> Any:
        return None if part is None else lambda model: evaluate(model, part, seen, args, processes)

    recipe = Recipe(
        model=model,
        loss=DeepSupervisionLoss(LOSSES[args.loss]()),
        dataset=data.train,
        transform=train,
        metric=args.select,
        evaluate=judged(data.held_out),
        maximize=args.select == "max_f",
        labels=LABELS,
        accuracy=accuracy,
        export=export(data, args, PROTOCOL),
        from_start=args.weights != "none",
    )
    run = Run(recipe, args, processes)
    run.fit()
    finish(run, data, judged(data.test))


if __name__ == "__main__":
    options = parse()
    sys.exit(launch(main, options, "train_salient"))
