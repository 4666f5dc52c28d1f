"""The data set that a training script is given: what it learns, what chooses the best epoch, and what it is tested on.

These three never overlap. Where a data set has no part of its own for choosing, the last tenth of the training
pictures, in the order of their names, is held out: neighbours are often frames of one film, and a random tenth would be
their twins.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segzoo.datasets import (
    DUTS,
    ECSSD,
    VOC,
    CamVid,
    Cityscapes,
    MiniCity,
    PairedFolder,
    SegmentationDataset,
)


@dataclass(frozen=True)
class Known:
    """A data set that is known by name.

    Args:
        title: Its name in a model card.
        kind: Its class.
        task: ``"semantic"`` or ``"salient"``.
        licence: Of its pictures, for a model card.
        train: The split to learn; None where there are no splits.
        held_out: The split that chooses the best epoch; None: a part of the training pictures.
        test: The split to report; None: there is none.
        train_names: The first and last name to learn, where one folder has it all.
        test_names: The first and last name to report.
    """

    title: str
    kind: Callable[..., SegmentationDataset]
    task: str
    licence: str
    train: str | None = "train"
    held_out: str | None = None
    test: str | None = None
    train_names: str | None = None
    test_names: str | None = None


KNOWN = {
    "camvid": Known("CamVid", CamVid, "semantic", "CC BY-NC 4.0", held_out="val", test="test"),
    "cityscapes": Known("Cityscapes", Cityscapes, "semantic", "Cityscapes' own, non-commercial", test="val"),
    "minicity": Known("MiniCity", MiniCity, "semantic", "Cityscapes' own, non-commercial", test="val"),
    "voc": Known("PASCAL VOC 2012", VOC, "semantic", "Flickr's terms of use", test="val"),
    "duts": Known("DUTS", DUTS, "salient", "for research, by its authors", test="test"),
    "ecssd": Known(
        "ECSSD", ECSSD, "salient", "for research, by its authors",
        train=None, train_names="0001:0800", test_names="0801:1000",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Data:
    """What a run reads.

    Args:
        train: Pictures to learn.
        held_out: Pictures that choose the best epoch, or None.
        test: Pictures to report, or None.
        title: What it is called in a model card, with the part that was learned.
        licence: Of the pictures.
    """

    train: SegmentationDataset
    held_out: SegmentationDataset | None
    test: SegmentationDataset | None
    title: str
    licence: str


def add_data_arguments(parser: argparse.ArgumentParser, task: str) -> None:
    """The options that name the data of a task."""
    names = [name for name, known in KNOWN.items() if known.task == task]
    data = parser.add_argument_group("the data")
    data.add_argument("--dataset", choices=[*names, "folder"], default="folder", help="(default: folder)")
    data.add_argument("--data", type=Path, metavar="DIR", help="where the data set is; a folder has images/ and masks/")
    data.add_argument("--images", type=Path, metavar="DIR", help="of --dataset folder, if not DATA/images")
    data.add_argument("--masks", type=Path, metavar="DIR", help="of --dataset folder, if not DATA/masks")
    data.add_argument("--test-images", type=Path, metavar="DIR", help="of --dataset folder: pictures to report on")
    data.add_argument("--test-masks", type=Path, metavar="DIR", help="and their masks")
    data.add_argument("--train-split", metavar="NAME", help="such as trainval (default: the data set's train)")
    data.add_argument("--train-names", metavar="A:B", help="only pictures named A to B (ecssd: 0001:0800)")
    data.add_argument("--test-names", metavar="A:B", help="likewise to report on (ecssd: 0801:1000)")
    data.add_argument(
        "--holdout", metavar="SHARE|none",
        help="of the training pictures, the last, that choose the best epoch (default: the data set's val split where "
        "it is not the test, else 0.1)",
    )  # fmt: skip
    data.add_argument("--data-licence", metavar="TEXT", help="of a folder's pictures, for the model card")


def read_data(args: argparse.Namespace, **folder: Any) -> Data:
    """The pictures that the options name.

    Args:
        args: The parsed options of ``add_data_arguments`` and ``add_arguments``.
        **folder: Further arguments of ``PairedFolder``.

    Raises:
        FileNotFoundError: A folder is not there.
        ValueError: The options do not fit together.
    """
    if args.dataset == "folder":
        known, train, test = _folder(args, folder)
        held_out = None
    else:
        known, train, held_out, test = _known(args)
    share = _share(args.holdout)
    if share is not None or held_out is None:
        train, held_out = _held_out(train, 0.1 if share is None else share)
    _check_apart(train, held_out, test)
    if args.overfit:
        train = held_out = _kept(train, range(min(args.overfit, len(train))))
    first, last = train.names[0], train.names[-1]
    title = f"{known.title}, {len(train)} pictures ({first} to {last})"
    return Data(train, held_out, test, title, known.licence)


def _known(
    args: argparse.Namespace,
) -> tuple[Known, SegmentationDataset, SegmentationDataset | None, SegmentationDataset | None]:
    known = KNOWN[args.dataset]
    if args.data is None:
        raise ValueError(f"--dataset {args.dataset} needs --data, the folder it is in")
    if args.images or args.masks or args.test_images or args.test_masks:
        raise ValueError(f"--images and --masks are for --dataset folder, got --dataset {args.dataset}")

    def part(split: str | None, names: str | None) -> SegmentationDataset:
        splits = () if known.train is None else (split,)
        dataset = known.kind(args.data, *splits, cache=args.cache)
        return dataset if names is None else _named(dataset, names)

    if known.train is None and args.train_split:
        raise ValueError(f"{known.title} has no splits, expected --train-names instead of --train-split")
    learned = args.train_split or known.train
    train = part(learned, args.train_names or known.train_names)
    own = known.held_out if args.holdout is None and learned == known.train and not args.train_names else None
    held_out = None if own is None else part(own, None)
    test_names = args.test_names or known.test_names
    test = part(known.test, test_names) if known.test or test_names else None
    return known, train, held_out, test


def _folder(
    args: argparse.Namespace, options: dict[str, Any]
) -> tuple[Known, SegmentationDataset, SegmentationDataset | None]:
    if args.data is None and (args.images is None or args.masks is None):
        raise ValueError("--dataset folder needs --images and --masks, or --data with images/ and masks/ in it")
    if args.train_split:
        raise ValueError("--train-split is for data sets that have splits, got --dataset folder")
    if (args.test_images is None) != (args.test_masks is None):
        raise ValueError("--test-images and --test-masks go together")
    images, masks = args.images or args.data / "images", args.masks or args.data / "masks"
    everything = PairedFolder(images, masks, cache=args.cache, **options)
    known = Known(Path(images).resolve().parent.name, PairedFolder, "", args.data_licence or "not stated")
    train: SegmentationDataset = everything
    if args.train_names is not None:
        train = _named(everything, args.train_names)
    if args.test_images is not None:
        test = PairedFolder(args.test_images, args.test_masks, cache=args.cache, **options)
        return known, train, test if args.test_names is None else _named(test, args.test_names)
    if args.test_names is None:
        return known, train, None
    test = _named(everything, args.test_names)
    return known, train, test


def _check_apart(*parts: SegmentationDataset | None) -> None:
    """Raise ValueError if a picture is in two of what is learned, what chooses the best epoch, and what is reported."""
    roles = ("to be learned", "to choose the best epoch", "to be reported on")
    seen: dict[Path, str] = {}
    for part, role in zip(parts, roles):
        for sample in part.samples if part is not None else ():
            place = sample.image.resolve()
            if place in seen:
                raise ValueError(
                    f"{sample.image} is {seen[place]} and {role}: the test pictures, --train-split, --train-names and "
                    "--test-names must leave the parts apart"
                )
            seen[place] = role


def _share(text: str | None) -> float | None:
    if text is None or text == "none":
        return None if text is None else 0.0
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise ValueError(f"--holdout is {text!r}, expected a share of at least 0 and below 1, or none")
    return share


def _held_out(train: SegmentationDataset, share: float) -> tuple[SegmentationDataset, SegmentationDataset | None]:
    """The first pictures to learn, and the last, by name, that are not."""
    if share == 0:
        return train, None
    count = max(1, round(share * len(train)))
    if count >= len(train):
        raise ValueError(f"too few training pictures to hold any out, {len(train)}: --holdout none learns all")
    return _kept(train, range(len(train) - count)), _kept(train, range(len(train) - count, len(train)))


def _named(dataset: SegmentationDataset, names: str) -> SegmentationDataset:
    first, colon, last = names.partition(":")
    chosen = [i for i, name in enumerate(dataset.names) if colon and first <= name <= (last or name)]
    if not chosen:
        where = f"{dataset.names[0]} to {dataset.names[-1]}"
        raise ValueError(f"no picture is named {names!r}, expected FIRST:LAST of the names, which are {where}")
    return _kept(dataset, chosen)


def _kept(dataset: SegmentationDataset, indices: Any) -> SegmentationDataset:
    part = copy.copy(dataset)
    part.samples = [dataset.samples[i] for i in indices]
    return part
