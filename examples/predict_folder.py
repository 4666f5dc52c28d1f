"""A folder of pictures to masks, cut-outs or overlays, or to a table of one's own.

python examples/predict_folder.py examples/images masks
python examples/predict_folder.py examples/images cut --kind cutout --background white
python examples/predict_folder.py examples/images tinted --kind overlay --batch-size 8 --device cuda
python examples/predict_folder.py examples/images objects.csv            # a row for each object: area, box, confidence

`segzoo predict` and `segzoo cutout` do the first three without a script; here they are two calls of the library. The
table shows what to change for needs of one's own: a loop over `predictor.stream`, which decodes ahead in threads, runs
batches and holds only a few pictures at a time. What becomes of each `Prediction` in that loop is yours.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import segzoo
from segzoo.inference import InstancePrediction, Prediction, predict_folder
from segzoo.ops import component_sizes, connected_components

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
COLUMNS = ["picture", "class", "pixels", "share", "left", "top", "right", "bottom", "confidence"]


def objects(prediction: Prediction, min_pixels: int) -> Iterator[list[Any]]:
    """What is in the picture, a row for each: class, area, share of the picture, box, confidence.

    A detector's objects come as it found them, the surest first. Of other models these are the connected parts of the
    mask, the largest first, with their mean probability; where classes may overlap, class by class.
    """
    if isinstance(prediction, InstancePrediction):
        found = zip(prediction.names, prediction.masks, prediction.boxes, prediction.confidences)
        for name, inside, corners, confidence in found:
            if inside.sum() >= min_pixels:
                yield row(name, inside.sum(), inside.size, corners.round().astype(int), confidence)
        return
    masks = prediction.mask if prediction.multilabel else prediction.mask[None]
    for channel, mask in enumerate(masks):
        for rows, columns in parts(mask, min_pixels):
            label = channel if prediction.multilabel else int(mask[rows[0], columns[0]])
            index = label if len(prediction.scores) > 1 else 0  # a model of one class has the foreground only
            name = prediction.classes[index] if prediction.classes else label
            # The box as Python slices: right and bottom are the first pixels outside.
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            yield row(name, len(rows), mask.size, box, prediction.probabilities[index, rows, columns].mean())


def parts(mask: NDArray[np.uint8], min_pixels: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The connected parts of a mask, the largest first: the rows and the columns of their pixels."""
    # Class 0 is the background; background=None takes it for a class like the others, as Cityscapes' road is.
    labels, _ = connected_components(torch.from_numpy(mask))
    sizes = component_sizes(labels)
    for number in sizes[1:].argsort(descending=True, stable=True) + 1:
        if sizes[number] < min_pixels:
            return
        rows, columns = (labels == number).numpy().nonzero()
        yield rows, columns


def row(name: object, pixels: int, of: int, box: Iterable[int], confidence: float) -> list[Any]:
    """What stands in the table after the picture's name, in the order of ``COLUMNS``."""
    return [name, pixels, f"{pixels / of:.4f}", *box, f"{confidence:.3f}"]


def write_table(predictor: segzoo.Predictor, folder: Path, table: Path, min_pixels: int) -> dict[Path, Exception]:
    """A CSV file with a row for each object of each picture; returns what could not be read, and why."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    # Names that begin with a dot are other programs' notes, such as a Mac's ._1.jpg.
    pictures = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not pictures:
        raise ValueError(f"there is no picture in the folder {folder}")
    failed: dict[Path, Exception] = {}
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        outcomes = predictor.stream(pictures, errors="return")  # a bad picture gives its exception, the rest goes on
        for picture, outcome in zip(pictures, tqdm(outcomes, total=len(pictures), unit=" pictures", disable=None)):
            if isinstance(outcome, Exception):
                failed[picture] = outcome
            else:
                writer.writerows([picture.name, *row] for row in objects(outcome, min_pixels))
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 all done, 1 some pictures failed, 2 wrong arguments."""
    about, commands, change = (__doc__ or "").split("\n\n", 2)
    parser = argparse.ArgumentParser(
        prog="predict_folder",
        description=about,
        epilog=f"{commands}\n\n{change}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pictures", type=Path, help="a folder")
    parser.add_argument("results", type=Path, help="a folder, made if it is not there; or a .csv file for the table")
    parser.add_argument("--kind", choices=["mask", "probability", "cutout", "overlay"], default="mask")
    parser.add_argument("--background", metavar="COLOUR", help="behind a cut-out, instead of transparency")
    parser.add_argument("--min-pixels", type=int, default=50, help="smaller objects are not in the table (default: 50)")
    parser.add_argument("--model", default="u2net_lite.duts", help="see segzoo list (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    parser.add_argument("--batch-size", type=int, default=1, help="pictures at once (default: 1)")
    args = parser.parse_args(arguments)
    if args.background and args.kind != "cutout":
        parser.error("--background is for --kind cutout")
    try:
        predictor = segzoo.Predictor(args.model, device=args.device, batch_size=args.batch_size)
        failed: Mapping[Path, Exception]
        if args.results.suffix == ".csv":
            failed = write_table(predictor, args.pictures, args.results, args.min_pixels)
        else:
            report = predict_folder(
                predictor, args.pictures, args.results, args.kind, background=args.background, progress=True
            )
            failed = report.failed
    except (OSError, ValueError) as error:
        print(f"predict_folder: error: {error}", file=sys.stderr)
        return 2
    for reason in failed.values():
        print(f"predict_folder: skipped: {reason}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
