"""What the pictures of train_semantic.py go through: their sizes, augmentations, and what is mixed within a batch."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from _data import Data
from _options import positive, positive_number
from torch import Tensor

from segzoo._errors import unknown_name
from segzoo.transforms import CopyBlob, CutMix, SemanticEval, SemanticTrain
from segzoo.weights.catalog import Preprocessing

Size = int | tuple[int, int]

_BLOBS = {"camvid": "camvid", "cityscapes": "cityscapes", "minicity": "cityscapes"}


def add_picture_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of sizes and augmentations."""
    sizes = parser.add_argument_group("sizes, in pixels: one number is the shorter side, H,W height and width")
    sizes.add_argument(
        "--train-size", type=size, metavar="SIZE", help="of training pictures before augmentation (default: their own)"
    )
    sizes.add_argument(
        "--crop-size", type=size, metavar="SIZE",
        help="what a step sees of them; one number: a square (default: the train size, or the first picture's)",
    )  # fmt: skip
    sizes.add_argument(
        "--test-size", type=size, metavar="SIZE",
        help="what the model sees in evaluation (default: the train size, or the pictures' own); figures are always "
        "at the labels' size",
    )  # fmt: skip
    group = parser.add_argument_group("augmentation")
    group.add_argument(
        "--scale", type=two_numbers, default=(0.75, 2.0), metavar="LOW,HIGH", help="enlarged by (default: 0.75,2)"
    )
    group.add_argument("--hflip", type=float, default=0.5, metavar="P", help="how often mirrored (default: 0.5)")
    group.add_argument("--rotation", type=float, default=10.0, metavar="DEGREES", help="at most (default: 10)")
    group.add_argument(
        "--jitter", type=float, default=0.3, metavar="X",
        help="of brightness, contrast and saturation, which become 1 - X to 1 + X times theirs (default: 0.3)",
    )  # fmt: skip
    group.add_argument("--hue", type=float, default=0.05, metavar="X", help="turned by at most (default: 0.05)")
    group.add_argument("--blur", type=float, default=0.2, metavar="P", help="how often blurred (default: 0.2)")
    group.add_argument(
        "--max-class-share", type=positive_number, metavar="X", help="of one class in a crop, such as 0.75"
    )
    group.add_argument(
        "--cutmix", type=float, default=0.0, metavar="P", help="how often a box is another picture's (default: 0)"
    )
    group.add_argument("--cutmix-alpha", type=positive_number, default=1.0, metavar="X", help="(default: 1)")
    group.add_argument(
        "--copyblob", type=float, default=0.0, metavar="P",
        help="how often objects of rare classes are copied onto what they stand on (default: 0)",
    )  # fmt: skip
    group.add_argument(
        "--copyblob-pairs", metavar="CLASS:GROUND,…",
        help="by name or number, such as pedestrian:pavement,10:3 (default: those for camvid or cityscapes)",
    )  # fmt: skip
    group.add_argument(
        "--copyblob-area", type=positive, default=64, metavar="N", help="pixels of the smallest object (default: 64)"
    )


def size(text: str) -> Size:
    """For argparse: a number of pixels, or height and width."""
    numbers = [int(number) for number in text.split(",")]
    if len(numbers) > 2 or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no size, expected such as 360 or 360,480")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def two_numbers(text: str) -> tuple[float, float]:
    """For argparse: two numbers."""
    numbers = [float(number) for number in text.split(",")]
    if len(numbers) != 2:
        raise argparse.ArgumentTypeError(f"{text} is not two numbers, expected such as 0.75,2")
    return numbers[0], numbers[1]


class Resized:
    """A transform of pictures that are resized before.

    Args:
        size: As of ``SemanticEval``.
        then: The transform.
    """

    def __init__(self, size: Size, then: SemanticTrain) -> None:
        self.resize, self.then = SemanticEval(size, resize_mask=True, normalize="0_1"), then

    @property
    def generator(self) -> torch.Generator | None:
        """Of the transform."""
        return self.then.generator

    @generator.setter
    def generator(self, generator: torch.Generator | None) -> None:
        self.then.generator = generator

    def __call__(self, image: Tensor, mask: Tensor) -> Any:
        """The pair that the transform makes."""
        return self.then(*self.resize(image, mask))


class Mixes:
    """Several mixes of a batch, one after the other, with one generator."""

    def __init__(self, *parts: CutMix | CopyBlob) -> None:
        self.parts = parts
        self.generator: torch.Generator | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix a batch."""
        for part in self.parts:
            part.generator = self.generator
            images, labels = part(images, labels)
        return images, labels


def seen_in_training(args: argparse.Namespace, data: Data, normalize: Preprocessing, ignore_index: int) -> Any:
    """The transform of training pictures; with ``--overfit`` it only resizes."""
    image = data.train.image(0)
    whole = Preprocessing(size=args.train_size).size_for((image.shape[-2], image.shape[-1]))
    crop = args.crop_size or whole
    if args.overfit:
        exact = (crop, crop) if isinstance(crop, int) else crop
        return SemanticEval(exact, resize_mask=True, normalize=normalize)
    train = SemanticTrain(
        crop,
        scale=args.scale,
        hflip=args.hflip,
        rotation=args.rotation,
        brightness=args.jitter,
        contrast=args.jitter,
        saturation=args.jitter,
        hue=args.hue,
        blur=args.blur,
        max_class_share=args.max_class_share,
        ignore_index=ignore_index,
        normalize=normalize,
    )
    return train if args.train_size is None else Resized(args.train_size, train)


def mixed(args: argparse.Namespace, classes: tuple[str, ...] | None, num_classes: int) -> Mixes | None:
    """What is mixed within a batch, or None: objects first, then boxes.

    Raises:
        ValueError: The options do not fit together, or there is no such class.
    """
    parts: list[CutMix | CopyBlob] = []
    if args.copyblob:
        preset = _BLOBS.get(args.dataset)
        if args.copyblob_pairs is None and preset is None:
            raise ValueError(f"--copyblob with --dataset {args.dataset} needs --copyblob-pairs, such as 7:4,9:4")
        pairs = preset if args.copyblob_pairs is None else _pairs(args.copyblob_pairs, classes, num_classes)
        parts.append(CopyBlob(pairs or (), args.copyblob, min_area=args.copyblob_area))
    elif args.copyblob_pairs is not None:
        raise ValueError("--copyblob-pairs needs --copyblob, how often, such as 0.5")
    if args.cutmix:
        parts.append(CutMix(args.cutmix, args.cutmix_alpha))
    return Mixes(*parts) if parts and not args.overfit else None


def _pairs(text: str, classes: tuple[str, ...] | None, num_classes: int) -> list[tuple[int, int]]:
    pairs = []
    for pair in text.split(","):
        label, colon, ground = (part.strip() for part in pair.partition(":"))
        if not colon:
            raise ValueError(f"--copyblob-pairs is {text!r}, expected CLASS:GROUND,…, such as 7:4,9:4")
        pairs.append((_label(label, classes, num_classes), _label(ground, classes, num_classes)))
    return pairs


def _label(text: str, classes: tuple[str, ...] | None, num_classes: int) -> int:
    if classes is not None and text in classes:
        return classes.index(text)
    if not text.isdecimal():
        raise unknown_name("class", text, classes or [str(number) for number in range(num_classes)])
    if int(text) >= num_classes:
        raise ValueError(f"--copyblob-pairs has the class {text}, expected 0 … {num_classes - 1}")
    return int(text)
