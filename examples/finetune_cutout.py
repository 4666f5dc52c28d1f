"""The bundled cut-out model, fine-tuned on pictures of your own.

python examples/finetune_cutout.py pictures masks --output my_model
python examples/finetune_cutout.py pictures masks --output my_model --epochs 20 --device cuda

A mask is a grey picture with its picture's name: white where the object is. Twenty pairs are a start. A fifth of the
pairs, the last by name, is kept aside; figures before and after are of these, and so is OUTPUT/before_after.png:
picture, mask, cut-out before, cut-out after. Steps are small, and batch norms keep the statistics of the many pictures
they have seen: those of small batches drift away from them. The result, OUTPUT/best, is the start itself where no epoch
was better. It is used as any model, and --model local-dir:my_model/best fine-tunes it further:

segzoo cutout --model local-dir:my_model/best photo.jpg out.png
"""

from __future__ import annotations

import argparse
import inspect
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import train_salient
from _data import read_data
from _launch import launch
from _options import make_parser, positive, positive_number
from _processes import Processes
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

import segzoo
from segzoo.registry import find_factory
from segzoo.weights import Preprocessing, get_weights
from segzoo.weights.folder import LOCAL_DIR, read_folder

TILE = 240
LEAST_UPDATES = 150  # fewer leave the weights where they are; more on few pictures learn these by heart


class Start(NamedTuple):
    """The model that is fine-tuned.

    Args:
        architecture: Its factory's name.
        weights: A tag, or ``"local-dir:FOLDER"``.
        size: The side of the square that it sees.
        norm: Its norms, by name; None: it has no such argument.
    """

    architecture: str
    weights: str
    size: int
    norm: str | None


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, as train_salient has them."""
    parser = make_parser("finetune_cutout", __doc__)
    parser.add_argument("pictures", type=Path, help="a folder")
    parser.add_argument("masks", type=Path, help="a folder with a mask for each, of the same name")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the model and its figures go here")
    parser.add_argument(
        "--model", default="u2net_lite.duts",
        help="what to start from: a model of one class such as isnet, or local-dir:FOLDER (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--epochs", type=positive, help="(default: enough for 150 steps, at least 3)")
    parser.add_argument("--batch-size", type=positive, default=4, help="pictures at once (default: 4)")
    parser.add_argument(
        "--lr", type=positive_number, default=2e-6, help="more forgets what the model knew (default: %(default)s)"
    )
    parser.add_argument(
        "--norm",
        help="(default: frozen_batch where the model has batch norms: in small batches of few pictures their running "
        "statistics drift away from what the weights were trained with; else the model's own)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--license", help="of the new weights, for the model card, such as mit")
    args = parser.parse_args(arguments)
    try:
        start = find_start(args.model)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    options = {
        "--images": args.pictures,
        "--masks": args.masks,
        "--holdout": 0.2,
        "--output": args.output,
        "--resume": "auto",
        "--model": start.architecture,
        "--weights": start.weights,
        "--resize": start.size,
        "--crop": crop_of(start.size),
        "--batch-size": args.batch_size,
        "--lr": args.lr,
        "--device": args.device,
        "--seed": args.seed,
        "--cache": "memory",
        "--warmup": 0.5,
    }
    norm = args.norm or ("frozen_batch" if start.norm in ("batch", "sync_batch") else None)
    options |= {name: value for name, value in {"--norm": norm, "--license": args.license}.items() if value}
    full = train_salient.parse([str(word) for pair in options.items() for word in pair])
    full.epochs = args.epochs
    return full


def find_start(name: str) -> Start:
    """The model that a name means: with a tag, without one (its default weights), or in a folder.

    Raises:
        ValueError: There is no such model, or it has no weights, or other than one class.
        FileNotFoundError: There is no such folder.
    """
    if name.startswith(LOCAL_DIR):
        saved = read_folder(name).saved
        architecture, weights, classes, preprocessing = saved.architecture, name, saved.num_classes, saved.preprocessing
    else:
        architecture, _, weights = name.partition(".")
    factory = find_factory(architecture)
    if factory is None:
        segzoo.create_model(name)  # says which names are near
        raise ValueError(f"there is no model {name!r}")
    known = inspect.signature(factory).parameters
    norm = known["norm"].default if "norm" in known else None
    if name.startswith(LOCAL_DIR):
        norm = saved.arguments.get("norm", norm)
    else:
        weights = weights or known["weights"].default
        if weights is None:
            raise ValueError(
                f"{name} has no weights to start from, expected a model such as u2net_lite.duts, or local-dir:FOLDER"
            )
        record = get_weights(f"{architecture}.{weights}")
        classes, preprocessing = record.num_classes, record.preprocessing
    if classes != 1:
        raise ValueError(f"{name} has {classes} classes, expected a model of one class, such as u2net_lite.duts")
    return Start(architecture, weights, side_of(preprocessing), norm)


def side_of(preprocessing: Preprocessing) -> int:
    """The side of the square that pictures become: the longer one of the model's own size; 320 where it has none."""
    size = preprocessing.size
    return 320 if size is None else size if isinstance(size, int) else max(size)


def crop_of(side: int) -> int:
    """Nine tenths of a picture, to the nearest multiple of 32, which most networks halve five times, if one fits.

    Examples:
        >>> crop_of(320), crop_of(1024), crop_of(20)
        (288, 928, 18)
    """
    part = 0.9 * side
    return min(max(32, 32 * round(part / 32)), side // 32 * 32) if side >= 32 else max(1, round(part))


def main(args: argparse.Namespace, processes: Processes) -> None:
    """Fine-tune, and show what it did."""
    data = read_data(args, task="salient")
    if args.epochs is None:
        updates = max(1, len(data.train) // (args.batch_size * processes.count))
        args.epochs = max(3, math.ceil(LEAST_UPDATES / updates))
    train_salient.main(args, processes)
    if processes.main:
        show(data.held_out, args, processes.device)
        print(f"the model is in {args.output / 'best'}, and {args.output / 'before_after.png'} shows what it does")


def show(held_out: Any, args: argparse.Namespace, device: torch.device) -> None:
    """A row for each of the first pictures that were kept aside: picture, mask, cut-out before, cut-out after."""
    names = f"{args.model}.{args.weights}", f"{LOCAL_DIR}{args.output / 'best'}"
    before, after = (segzoo.Predictor(name, device=device) for name in names)
    rows = []
    for i in range(min(6, len(held_out))):
        picture = as_picture(held_out.image(i))
        cutouts = (predictor(picture).cutout(background="white") for predictor in (before, after))
        rows.append([picture.copy(), as_picture(held_out.mask(i).float()[None]), *cutouts])
    sheet = Image.new("RGB", (4 * TILE, len(rows) * TILE), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            picture.thumbnail((TILE - 4, TILE - 4))
            sheet.paste(picture, (x * TILE, y * TILE))
    sheet.save(args.output / "before_after.png")


def as_picture(pixels: Tensor) -> Image.Image:
    """A picture or a mask as the data set has it, upright, in RGB."""
    plain = pixels.as_subclass(Tensor)  # what is a Mask to torchvision is not scaled
    picture: Image.Image = functional.to_pil_image(functional.to_dtype(plain, torch.uint8, scale=True))
    return picture.convert("RGB")


if __name__ == "__main__":
    options = parse()
    sys.exit(launch(main, options, "finetune_cutout"))
