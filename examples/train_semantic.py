"""Train a model of several classes: street scenes, or anything where each pixel belongs to one of them.

python examples/train_semantic.py --dataset camvid --data CAMVID --output runs/unet --model unet --encoder resnet34
python examples/train_semantic.py --data mine --classes sky,grass,cow --output runs/mine     # mine/images, mine/masks
torchrun --nproc-per-node 4 examples/train_semantic.py --dataset cityscapes --data CITYSCAPES --train-size 512 \\
    --crop-size 512,1024 --model deeplabv3plus --loss ohem --output runs/streets
python examples/train_semantic.py --data mine --output runs/check --overfit 4     # does it learn 4 pictures by heart?

Every evaluated epoch gives a line such as
"[epoch: 10] train_loss: 0.4108 lr: 0.000909 train_accuracy: 0.861 mIoU: 0.612 acc: 0.894", measured on pictures that
are held out of the training data; the best of these epochs is in OUTPUT/best, the last in OUTPUT/last, and both are
scored on the test pictures, where there are any: each class in OUTPUT/results.txt and OUTPUT/results.json. Either is a
model for `segzoo predict --model local-dir:OUTPUT/best photo.jpg out.png`. Interrupted runs go on with --resume auto.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from _data import Data, add_data_arguments, read_data
from _engine import Recipe, Run
from _evaluation import Forward
from _launch import launch
from _model import add_model_arguments, build
from _options import add_arguments, make_parser
from _processes import Processes
from _report import export, finish
from _semantic_figures import FIGURES, evaluate, predict, table
from _semantic_losses import add_loss_arguments, counted_weights, make_loss, terms
from _semantic_pictures import add_picture_arguments, mixed, seen_in_training
from torch import Tensor, nn
from torch.utils.data import ConcatDataset

from segzoo._errors import unknown_name
from segzoo._files import check_writable, write_whole
from segzoo.datasets import SegmentationDataset, count_pixels
from segzoo.inference import multi_scale
from segzoo.inference.multiscale import SCALES, checked_scales
from segzoo.models.base import SegmentationModel
from segzoo.transforms import SemanticEval
from segzoo.weights.catalog import Preprocessing

LABELS = {"train_accuracy": "train_accuracy", "miou": "mIoU", "pixel_accuracy": "acc"}
NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5,) * 3, (0.5,) * 3),
    "unit": ((0.0,) * 3, (1.0,) * 3),
}
NO_LABEL = -1  # outside of pictures, where the data set ignores no label


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = make_parser("train_semantic", __doc__)
    add_data_arguments(parser, "semantic")
    folder = parser.add_argument_group("the masks of --dataset folder")
    folder.add_argument(
        "--classes", metavar="NAME,…|FILE",
        help="in the order of the labels, or a file with a name a line (default: as many as the masks have labels)",
    )  # fmt: skip
    folder.add_argument("--palette", metavar="COLOUR,…", help="masks are in these colours, such as #ff0000,#00ff00")
    folder.add_argument("--ignore-index", type=int, metavar="LABEL", help="does not count (default: 255)")
    add_model_arguments(parser, model="deeplabv3plus")
    tuning = parser.add_argument_group("fine-tuning")
    tuning.add_argument(
        "--freeze", metavar="NAME,…", help="parts that stay as they are: encoder, or names of modules of the model"
    )
    tuning.add_argument(
        "--normalize", choices=list(NORMALIZATIONS),
        help="of pictures, as the encoder's weights are used to; inception: to -1 … 1, as of tf_efficientnet_lite0; "
        "unit: to 0 … 1 (default: the model's own, mostly imagenet)",
    )  # fmt: skip
    add_loss_arguments(parser)
    add_picture_arguments(parser)
    judged = parser.add_argument_group("after the last epoch")
    judged.add_argument(
        "--mst", action="store_true", help="figures at several scales, each also mirrored, beside those at one"
    )
    judged.add_argument(
        "--mst-scales", type=_scales, default=SCALES, metavar="X,…",
        help=f"of the test size (default: {','.join(f'{scale:g}' for scale in SCALES)})",
    )  # fmt: skip
    judged.add_argument(
        "--predict", type=Path, metavar="DIR",
        help="write the test pictures' (else the held-out ones') label maps there, in the classes' colours, as the "
        "last epoch's model sees them",
    )  # fmt: skip
    add_arguments(parser, optimizer="adamw", lr=1e-3, weight_decay=1e-4, schedule="poly", warmup=1.0)
    return parser.parse_args(arguments)


def _scales(text: str) -> tuple[float, ...]:
    try:
        return checked_scales([float(scale) for scale in text.split(",")])
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of scales, expected such as 0.5,1,2") from None


def read(args: argparse.Namespace) -> tuple[Data, int]:
    """What is learned and reported on, and how many classes it has.

    Raises:
        FileNotFoundError: A folder is not there.
        ValueError: The options do not fit together, or there is one class only.
    """
    given = {name: getattr(args, name) for name in ("classes", "palette", "ignore_index")}
    given = {name: value for name, value in given.items() if value is not None}
    if given and args.dataset != "folder":
        option = "--" + next(iter(given)).replace("_", "-")
        raise ValueError(f"{option} is for --dataset folder, got --dataset {args.dataset}")
    if args.classes is not None:
        file = Path(args.classes)
        names = file.read_text("utf-8").splitlines() if file.is_file() else args.classes.split(",")
        given["classes"] = [name.strip() for name in names if name.strip()]
    if args.palette is not None:
        given["palette"] = args.palette.split(",")
    data = read_data(args, **given) if args.dataset == "folder" else read_data(args)
    classes = data.train.num_classes
    if classes is None:
        parts = [part for part in (data.train, data.held_out, data.test) if part is not None]
        classes = len(count_pixels(ConcatDataset(parts), workers=args.workers).counts)
    if classes < 2:
        raise ValueError("there is one class only, expected several: train_salient.py is for one")
    return data, classes


def modules_to_freeze(model: nn.Module, names: str | None) -> list[nn.Module]:
    """The modules that ``--freeze`` names: by their own name, or all whose names begin so.

    Raises:
        ValueError: There is no such module.
    """
    known = {name: module for name, module in model.named_modules() if name}
    found = []
    for name in names.split(",") if names else []:
        if name == "encoder" and name not in known and "backbone" in known:
            name = "backbone"  # what torchvision's architectures call theirs
        some = [known[name]] if name in known else [known[other] for other in known if other.startswith(name)]
        if not some or not name:
            raise unknown_name("module to freeze", name, known)
        found += some
    return found


def accuracy(ignore_index: int) -> Any:
    """A function that says how many pixels are right, and how many count."""

    def count(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        counted = target != ignore_index
        return ((logits.argmax(1) == target) & counted).sum(), counted.sum()

    return count


def preprocessing(args: argparse.Namespace, model: SegmentationModel) -> Preprocessing:
    """What a picture goes through before the model sees it, in training (but for the size) as in use."""
    rule = model.preprocessing
    if args.normalize is not None:
        mean, std = NORMALIZATIONS[args.normalize]
        rule = replace(rule, mean=mean, std=std, scale="255").for_channels(model.in_channels)
    return replace(rule, size=args.train_size if args.test_size is None else args.test_size, interpolation="bilinear")


def check(args: argparse.Namespace, data: Data, classes: int) -> None:
    """What would only show after the last epoch is said before the first.

    Raises:
        ValueError: There are no pictures to predict, or too many classes for label maps.
        OSError: The folder for predictions cannot be made.
    """
    if args.predict is not None:
        if data.test is None and data.held_out is None:
            raise ValueError("--predict has no pictures: there are neither test pictures nor held-out ones")
        if classes > 256:
            raise ValueError(f"--predict writes label maps of at most 256 classes, and there are {classes}")
        args.predict.mkdir(parents=True, exist_ok=True)
        check_writable(args.predict / "a.png")
    if args.mst and data.test is None and data.held_out is None:
        raise ValueError("--mst has no pictures: there are neither test pictures nor held-out ones")


def main(args: argparse.Namespace, processes: Processes) -> None:
    """One run, from its options to its results."""
    terms(args)  # before anything is read
    data, classes = read(args)
    check(args, data, classes)
    model = build(args, classes)
    model.classes = data.train.classes
    model.preprocessing = preprocessing(args, model)
    seen = SemanticEval(model.preprocessing.size, normalize=model.preprocessing)
    ignored = NO_LABEL if data.train.ignore_index is None else data.train.ignore_index

    def judged(part: SegmentationDataset | None, forward: Forward | None = None) -> Any:
        return None if part is None else lambda model: evaluate(model, part, seen, args, processes, classes, forward)

    def held_out(model: nn.Module) -> dict[str, float]:
        figures = judged(data.held_out)(model)
        return {name: figures[name] for name in FIGURES}

    def at_several_scales(model: nn.Module, x: Tensor) -> Tensor:
        return multi_scale(model, x, args.mst_scales)

    recipe = Recipe(
        model=model,
        loss=make_loss(args, lambda: counted_weights(args, data.train, classes, processes), ignored),
        dataset=data.train,
        transform=seen_in_training(args, data, model.preprocessing, ignored),
        metric="miou",
        evaluate=None if data.held_out is None else held_out,
        labels=LABELS,
        mix=mixed(args, data.train.classes, classes),
        frozen=modules_to_freeze(model, args.freeze),
        l1=args.l1,
        accuracy=accuracy(ignored),
        export=export(data, args, "mIoU over all classes, at the labels' own size, of one look at each picture"),
        from_start=model.weights is not None and model.weights.num_classes == classes,
    )
    run = Run(recipe, args, processes)
    run.fit()
    part, name = (data.held_out, "held_out") if data.test is None else (data.test, "test")
    more = {} if name == "test" else {"held_out": judged(part)}
    if args.mst:
        more[f"{name}_mst"] = judged(part, at_several_scales)
    results = finish(run, data, judged(data.test), **more)
    if part is not None and processes.main:
        title = f"{data.title}; {len(part)} {name.replace('_', '-')} pictures; {args.model}, {args.epochs} epochs"
        with write_whole(args.output / "results.txt") as file:
            file.write(table(results, title).encode())
    if args.predict is not None and part is not None:
        predict(run.evaluated, part, seen, args, processes)


if __name__ == "__main__":
    options = parse()
    sys.exit(launch(main, options, "train_semantic"))
