"""A folder of pictures to masks, cut-outs or overlays, or to a table of one's own.

python examples/predict_folder.py examples/images masks
python examples/predict_folder.py examples/images cut --kind cutout --background white
python examples/predict_folder.py examples/images tinted --kind overlay --batch-size 8 --device cuda
python examples/predict_folder.py examples/images objects.csv            # a row for each object: area, box, confidence
python examples/predict_folder.py examples/images masks --skip-existing  # go on where a run stopped
torchrun --nproc-per-node 4 examples/predict_folder.py examples/images masks   # four processes, each on its own GPU

`segzoo predict` and `segzoo cutout` do the first three without a script; here they are two calls of the library. The
table shows what to change for needs of one's own: a loop over `predictor.stream`, which decodes ahead in threads, runs
batches and holds only a few pictures at a time. What becomes of each `Prediction` in that loop is yours.

Under `torchrun`, on one machine or on several that see the same folders, each process takes every n-th picture; the
files, and the table's rows, are those of one process. The first process shows the bar of its share, and at the end
says what failed in all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed
from tqdm import tqdm

import segzoo
from segzoo._files import check_writable, write_whole
from segzoo.inference import InstancePrediction, Prediction, predict_folder
from segzoo.ops import component_sizes, connected_components

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
COLUMNS = ["picture", "class", "pixels", "share", "left", "top", "right", "bottom", "confidence"]


@dataclass
class Share:
    """What one of the processes did.

    Args:
        rows: Of the table: a list for each picture, in order.
        failed: A sentence for each picture that was skipped.
        error: Why the process could not do its work at all.
    """

    rows: list[list[list[Any]]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    error: str | None = None

    def skip(self, picture: Path, reason: Exception) -> None:
        """Write down why a picture was skipped."""
        said = str(reason) or type(reason).__name__
        self.failed.append(said if str(picture) in said else f"{picture}: {said}")


class Processes:
    """This process and the others that `torchrun` started beside it; alone without `torchrun`."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.count = int(os.environ.get("WORLD_SIZE", 1))
        self.here = int(os.environ.get("LOCAL_RANK", self.rank))  # its number on this machine

    def __enter__(self) -> Processes:
        if self.count > 1:
            # The first to end waits for the last, however long that takes; when one dies, torchrun ends them all.
            distributed.init_process_group("gloo", timeout=timedelta(days=30))
        return self

    def __exit__(self, *exception: object) -> None:
        if self.count > 1:
            distributed.destroy_process_group()

    def device(self, asked: str) -> str:
        """Each its own GPU, as far as there are several."""
        if self.count > 1 and asked in ("auto", "cuda") and torch.cuda.is_available():
            return f"cuda:{self.here % torch.cuda.device_count()}"
        return asked

    def gather(self, share: Share) -> list[Share]:
        """The shares of all, in the first process; nothing in the others."""
        if self.count == 1:
            return [share]
        places = [Share()] * self.count if self.rank == 0 else None
        distributed.gather_object(share, places)
        return places or []

    def agree(self, code: int) -> int:
        """The first process's exit code: torchrun ends all as soon as one has ended with another than 0."""
        codes = [code]
        if self.count > 1:
            distributed.broadcast_object_list(codes)
        return codes[0]


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
            title: object = prediction.classes[index] if prediction.classes else label
            # The box as Python slices: right and bottom are the first pixels outside.
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            yield row(title, len(rows), mask.size, box, prediction.probabilities[index, rows, columns].mean())


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


def table_rows(predictor: segzoo.Predictor, folder: Path, min_pixels: int, processes: Processes) -> Share:
    """The rows of this process's share of the pictures."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    # Names that begin with a dot are other programs' notes, such as a Mac's ._1.jpg.
    pictures = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not pictures:
        raise ValueError(f"there is no picture in the folder {folder}")
    pictures = pictures[processes.rank :: processes.count]
    share = Share()
    outcomes = predictor.stream(pictures, errors="return")  # a bad picture gives its exception, the rest goes on
    quiet = None if processes.rank == 0 else True  # None: a bar where stderr is a terminal
    for picture, outcome in zip(pictures, tqdm(outcomes, total=len(pictures), unit=" pictures", disable=quiet)):
        found: list[list[Any]] = []
        if isinstance(outcome, Exception):
            share.skip(picture, outcome)
        else:
            found = [[picture.name, *row] for row in objects(outcome, min_pixels)]
        share.rows.append(found)
    return share


def write_table(table: Path, shares: Sequence[Share]) -> None:
    """A CSV file, whole or not at all, with the pictures in the order of one process."""
    in_turn = zip_longest(*(share.rows for share in shares), fillvalue=[])
    with write_whole(table) as file, io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(COLUMNS)
        for rows in chain.from_iterable(in_turn):
            writer.writerows(rows)


def work(args: argparse.Namespace, processes: Processes) -> Share:
    """This process's share of the pictures."""
    device = processes.device(args.device)
    predictor = segzoo.Predictor(args.model, device=device, batch_size=args.batch_size)
    if args.results.suffix == ".csv":
        check_writable(args.results)  # now, not after the work
        return table_rows(predictor, args.pictures, args.min_pixels, processes)
    report = predict_folder(
        predictor,
        args.pictures,
        args.results,
        args.kind,
        skip_existing=args.skip_existing,
        shard=(processes.rank, processes.count),
        background=args.background,
        progress=processes.rank == 0,
    )
    share = Share()
    for picture, reason in report.failed.items():
        share.skip(picture, reason)
    return share


def conclude(table: Path | None, shares: Sequence[Share]) -> int:
    """Write the table, if that is asked for, say what failed, and give the exit code."""
    errors = [share.error for share in shares if share.error]
    try:
        if table and not errors:
            write_table(table, shares)
    except OSError as error:
        errors.append(str(error))
    for sentence in dict.fromkeys(errors):  # most are the same in all processes
        print(f"predict_folder: error: {sentence}", file=sys.stderr)
    for sentence in chain.from_iterable(share.failed for share in shares):
        print(f"predict_folder: skipped: {sentence}", file=sys.stderr)
    return 2 if errors else int(any(share.failed for share in shares))


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
    parser.add_argument("--skip-existing", action="store_true", help="leave pictures alone whose result is there")
    processes = Processes()
    # A wrong argument is wrong in all processes, and said once.
    with contextlib.redirect_stderr(io.StringIO()) if processes.rank else contextlib.nullcontext():
        args = parser.parse_args(arguments)
        if args.background and args.kind != "cutout":
            parser.error("--background is for --kind cutout")
        if args.skip_existing and args.results.suffix == ".csv":
            parser.error("--skip-existing is for a folder of results: a table is written whole, at the end")
    with processes:
        try:
            share = work(args, processes)
        except (OSError, ValueError) as error:
            share = Share(error=str(error))
        shares = processes.gather(share)
        table = args.results if args.results.suffix == ".csv" else None
        return processes.agree(conclude(table, shares) if processes.rank == 0 else 0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is being written is written, or removed
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
