"""The model that a training script is given: any of the zoo's, as a factory's arguments say."""

from __future__ import annotations

import argparse
import ast
import inspect
import logging
from typing import Any

import segzoo
from segzoo.models.base import SegmentationModel
from segzoo.registry import find_factory


def add_model_arguments(parser: argparse.ArgumentParser, model: str) -> None:
    """The options that name a model."""
    group = parser.add_argument_group("the model")
    group.add_argument("--model", default=model, help="see segzoo list (default: %(default)s)")
    group.add_argument(
        "--weights", default="none",
        help="to start from: a tag such as duts, a file, local-dir:FOLDER; none: random (default: none)",
    )  # fmt: skip
    group.add_argument("--encoder", metavar="NAME", help="for models that have one: any of timm's, such as resnet34")
    group.add_argument("--encoder-weights", default="none", metavar="imagenet|FILE|none", help="(default: none)")
    group.add_argument("--norm", help="batch, group, instance, evo_s0, … (default: the model's own)")
    group.add_argument("--dropout", type=float, help="before the classifier (default: the model's own)")
    group.add_argument(
        "--model-option", action="append", default=[], metavar="NAME=VALUE",
        help="any further argument of the model's factory, such as output_stride=16; may be given several times",
    )  # fmt: skip


def build(args: argparse.Namespace, num_classes: int) -> SegmentationModel:
    """The model that the options name, with their weights or random ones.

    Raises:
        ValueError: There is no such model, or it has no such argument.
    """
    factory = find_factory(args.model)
    if factory is None:
        segzoo.create_model(args.model)  # says which names are near
        raise ValueError(f"--model is {args.model!r}, expected a name without a tag: its weights are --weights")
    given: dict[str, Any] = {"weights": args.weights, "encoder_weights": args.encoder_weights}
    given = {name: None if value == "none" else value for name, value in given.items()}
    given |= {"encoder": args.encoder, "norm": args.norm, "dropout": args.dropout}
    known = inspect.signature(factory).parameters
    # What was not said is left to the factory, but for weights: what a run starts from is in its options.
    given = {name: value for name, value in given.items() if value is not None or name.endswith("weights")}
    given = {name: value for name, value in given.items() if value is not None or name in known}
    given |= dict(_option(text) for text in args.model_option)
    for name in given:
        if name not in known:
            options = ", ".join(name for name in known if name not in ("weights", "num_classes", "progress"))
            raise ValueError(f"{args.model} has no argument {name}, expected some of {options}")
    if isinstance(given.get("weights"), str) and "encoder_weights" in known:
        given["encoder_weights"] = None  # the whole model's bring the encoder's
    logging.getLogger("segzoo").setLevel(logging.INFO)  # what was fitted to other classes or channels is worth a line
    model = segzoo.create_model(args.model, num_classes=num_classes, **given)
    if not isinstance(model, SegmentationModel):
        raise ValueError(f"{args.model} finds objects, expected a model of classes: see segzoo list --task semantic")
    return model


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--model-option is {text!r}, expected NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value
