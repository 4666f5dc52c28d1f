"""The bundled cut-out model, fine-tuned on pictures of your own.

python examples/finetune_cutout.py pictures masks --output my_model
python examples/finetune_cutout.py pictures masks --output my_model --epochs 20 --device cuda

A mask is a grey picture with its picture's name: white where the object is. Twenty pairs help already, a few hundred
are plenty. A fifth of the pairs, the last by name, is kept aside; figures before and after are of these, and so is
OUTPUT/before_after.png: picture, mask, cut-out before, cut-out after. The result is used as any model:

segzoo cutout --model local-dir:my_model/best photo.jpg out.png
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import train_salient
from _data import read_data
from _launch import launch
from _options import positive, positive_number
from _processes import Processes
from PIL import Image

import segzoo

TILE = 240
LEAST_UPDATES = 150  # fewer leave the weights where they are; more on few pictures learn these by heart


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, as train_salient has them."""
    about, commands, what, use = (__doc__ or "").split("\n\n", 3)
    parser = argparse.ArgumentParser(
        prog="finetune_cutout",
        description=about,
        epilog=f"{commands}\n\n{what}\n\n{use}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pictures", type=Path, help="a folder")
    parser.add_argument("masks", type=Path, help="a folder with a mask for each, of the same name")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the model and its figures go here")
    parser.add_argument("--model", default="u2net_lite.duts", help="what to start from (default: %(default)s)")
    parser.add_argument("--epochs", type=positive, help="(default: enough for 150 steps, at least 3)")
    parser.add_argument("--batch-size", type=positive, default=4, help="pictures at once (default: 4)")
    parser.add_argument("--lr", type=positive_number, default=1e-4, help="(default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--license", help="of the new weights, for the model card, such as mit")
    args = parser.parse_args(arguments)
    name, _, tag = args.model.partition(".")
    options = {
        "--images": args.pictures,
        "--masks": args.masks,
        "--holdout": 0.2,
        "--output": args.output,
        "--resume": "auto",
        "--model": name,
        "--weights": tag or "duts",
        "--batch-size": args.batch_size,
        "--lr": args.lr,
        "--device": args.device,
        "--seed": args.seed,
        "--cache": "memory",
        "--warmup": 0.5,
    }
    words = [str(word) for pair in options.items() for word in pair]
    full = train_salient.parse([*words, *(["--license", args.license] if args.license else [])])
    full.epochs = args.epochs
    return full


def main(args: argparse.Namespace, processes: Processes) -> None:
    """Fine-tune, and show what it did."""
    data = read_data(args, task="salient")
    if args.epochs is None:
        updates = max(1, len(data.train) // (args.batch_size * processes.count))
        args.epochs = max(3, math.ceil(LEAST_UPDATES / updates))
    train_salient.main(args, processes)
    if processes.main:
        show(data.held_out, args)
        print(f"the model is in {args.output / 'best'}, and {args.output / 'before_after.png'} shows what it does")


def show(held_out: Any, args: argparse.Namespace) -> None:
    """A row for each of the first pictures that were kept aside: picture, mask, cut-out before, cut-out after."""
    before = segzoo.Predictor(f"{args.model}.{args.weights}")
    after = segzoo.Predictor(f"local-dir:{args.output / 'best'}")
    rows = [
        [
            Image.open(sample.image).convert("RGB"),
            Image.open(sample.mask).convert("L"),
            *(predictor(sample.image).cutout(background="white") for predictor in (before, after)),
        ]
        for sample in held_out.samples[:6]
    ]
    sheet = Image.new("RGB", (4 * TILE, len(rows) * TILE), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            picture.thumbnail((TILE - 4, TILE - 4))
            sheet.paste(picture, (x * TILE, y * TILE))
    sheet.save(args.output / "before_after.png")


if __name__ == "__main__":
    options = parse()
    sys.exit(launch(main, options, "finetune_cutout"))
