"""A picture with any number of bands to a label map, window by window: satellite scenes, multi-spectral or medical.

python examples/predict_bands.py --make-demo scene.npy                            # six bands of 16 bit to try it on
python examples/predict_bands.py scene.npy labels.png --classes 4 --window 256    # without weights: a random model
python examples/predict_bands.py scene.tif labels.png --classes 4 --weights mine.safetensors --statistics train/
python examples/predict_bands.py scene.npy labels.npy --classes 4 --weights mine.pth --statistics train.json --nodata 0

A .npy file [H, W, bands] is memory-mapped, and the logits lie in a temporary file beside the result: with statistics
from a .json file, 100 megapixels need little more memory than the model, a few windows and the labels. TIFFs are read
whole; those that Pillow cannot read take the package tifffile (where a GeoTIFF lies on the map is not carried over).

A model wants the bands scaled as in its training: --statistics is the folder of pictures it was trained on, or a file
{"mean": [...], "std": [...]} of what was measured there. Without it the picture's own are measured: for a quick look.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

import segzoo
from segzoo.datasets import PairedFolder, band_statistics
from segzoo.inference import sliding_window
from segzoo.inference.colours import colour_map

NOTHING = 255  # the label of pixels without data
ROWS = 256  # at once, in what goes over the whole picture
Values = TypeVar("Values", NDArray[Any], torch.Tensor)


def open_picture(path: Path, channels_first: bool) -> NDArray[Any]:
    """An array ``[H, W, bands]`` in the file's own type; of a .npy file only what is looked at is read."""
    if not path.exists():
        raise FileNotFoundError(f"there is no picture {path}")
    if path.suffix == ".npy":
        values = np.load(path, mmap_mode="r")
        if values.ndim != 3 or values.dtype.kind not in "uif":
            layout = "[bands, H, W]" if channels_first else "[H, W, bands]"
            raise ValueError(f"{path} is {values.dtype} {list(values.shape)}, expected numbers {layout}")
        return values.transpose(1, 2, 0) if channels_first else values
    image, _ = PairedFolder(path, None)[0]
    return image.permute(1, 2, 0).numpy()


def measured(values: Values, nodata: float) -> Values:
    """Where the values are not ``nodata``, which may be NaN: that is not even equal to itself."""
    return values == values if math.isnan(nodata) else values != nodata


def has_data(pixels: NDArray[Any], nodata: float | None) -> NDArray[np.bool_]:
    """Which of the pixels ``[h, w, bands]`` are not ``nodata`` in every band."""
    return np.ones(pixels.shape[:2], bool) if nodata is None else measured(pixels, nodata).any(2)


def statistics(args: argparse.Namespace, bands: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each band: of a .json file, or measured."""
    place = args.statistics or args.picture
    if place.suffix == ".json":
        found = json.loads(place.read_text())
        mean, std = found["mean"], found["std"]
    else:
        pictures = PairedFolder(place, None, channels_first=args.channels_first)
        bands_found = band_statistics(pictures, nodata=args.nodata, progress=True)
        mean, std = bands_found.mean.tolist(), bands_found.std.tolist()
    if not len(mean) == len(std) == bands:
        raise ValueError(f"{place} has {len(mean)} means and {len(std)} deviations, the picture {bands} bands")
    return mean, std


def build_model(args: argparse.Namespace, bands: int) -> torch.nn.Module:
    """The model that is asked for, with as many input channels as there are bands: yours goes here."""
    if args.weights is None:
        print("predict_bands: no --weights: the model is random and its labels mean nothing", file=sys.stderr)
        torch.manual_seed(0)
    more = {"encoder": args.encoder, "encoder_weights": None} if args.encoder else {}
    model = segzoo.create_model(args.model, weights=args.weights, in_channels=bands, num_classes=args.classes, **more)
    return segzoo.inference.optimize_for_inference(model, device=args.device)


def predict(args: argparse.Namespace, picture: NDArray[Any], scratch: Path) -> NDArray[np.uint8]:
    """Labels ``[H, W]``; the logits are gathered in the file ``scratch``."""
    height, width, bands = picture.shape
    mean, std = statistics(args, bands)

    def prepare(windows: torch.Tensor) -> torch.Tensor:
        """``[B, bands, h, w]`` as stored to what the model takes; pixels without data become the mean."""
        centre, scale = (torch.tensor(v, device=windows.device).reshape(-1, 1, 1) for v in (mean, std))
        values = windows.float()
        normalised = (values - centre) / scale.clamp_min(1e-6)
        if args.nodata is None:
            return normalised
        # In the type of the file, where it can be: float32 does not hold every double. Integers come as floats, as
        # torch does not compare all of their types.
        stored = windows if windows.is_floating_point() else values
        return torch.where(measured(stored, args.nodata), normalised, 0)

    model = build_model(args, bands)
    logits = np.memmap(scratch, np.float32, "w+", shape=(args.classes, height, width))
    sliding_window(
        model,
        picture,
        args.window,
        args.overlap,
        batch_size=args.batch_size,
        prepare=prepare,
        out=logits,
        progress=True,
    )
    labels = np.empty((height, width), np.uint8)
    for top in range(0, height, ROWS):
        rows = slice(top, top + ROWS)
        labels[rows] = logits[0, rows] > 0 if args.classes == 1 else logits[:, rows].argmax(0)
        labels[rows][~has_data(picture[rows], args.nodata)] = NOTHING
    return labels


def save(labels: NDArray[np.uint8], target: Path) -> None:
    """A palette PNG, or the numbers as .npy; whole or not at all."""
    with whole(target) as part:
        if target.suffix == ".npy":
            np.save(part, labels)
        else:
            image = Image.fromarray(labels)
            image.putpalette(colour_map().tobytes())
            image.save(part)


@contextlib.contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A path beside the target, which takes its place when the block ends well and is removed otherwise."""
    part = target.with_name(f".{uuid.uuid4().hex}{target.suffix}")
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def make_demo(path: Path) -> None:
    """Six bands of 16 bit out of a photograph: its colours, and what no camera sees."""
    photograph = Image.open(Path(__file__).parent / "images/coffee.jpg")
    red, green, blue = np.moveaxis(np.asarray(photograph, np.float64) * 40, 2, 0)
    invented = [np.hypot(red, green), np.abs(red - blue), np.sqrt(green * blue)]
    np.save(path, np.stack([red, green, blue, *invented], 2).astype(np.uint16))


def check(args: argparse.Namespace) -> None:
    """Refuse now what could not be done later."""
    if args.target.suffix not in (".png", ".npy"):
        raise ValueError(f"labels are written as .png or .npy, got {args.target.name}")
    if not args.target.resolve().parent.is_dir():
        raise FileNotFoundError(f"{args.target} cannot be written: there is no folder {args.target.parent}")
    if args.target.exists() and args.target.samefile(args.picture):
        raise ValueError(f"{args.target} is the picture itself: choose another target")
    if not 1 <= args.classes <= NOTHING:
        raise ValueError(f"--classes lies in 1…{NOTHING}, got {args.classes}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    about, _, commands = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="predict_bands", description=about, epilog=commands, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("picture", type=Path, help="a .npy file [H, W, bands], or a TIFF")
    parser.add_argument(
        "target", type=Path, nargs="?", help="a .png file with a palette, or .npy: labels, uint8 [H, W]"
    )
    parser.add_argument("--make-demo", action="store_true", help="write a picture to try it on, and nothing else")
    parser.add_argument("--channels-first", action="store_true", help="the .npy file is [bands, H, W]")
    parser.add_argument(
        "--nodata",
        type=float,
        metavar="VALUE",
        help=f"of pixels without data, which get the label {NOTHING}: a number, with = if it is negative, as in "
        "--nodata=-9999, or nan",
    )
    parser.add_argument(
        "--statistics", type=Path, metavar="PLACE", help="training pictures, or a .json of mean and std"
    )
    parser.add_argument("--model", default="u2net_lite", help="see segzoo list (default: %(default)s)")
    parser.add_argument("--encoder", help="of a model that takes one, such as unet's resnet18")
    parser.add_argument("--weights", metavar="FILE", help="trained with as many bands and classes")
    parser.add_argument("--classes", type=int, default=1, metavar="N", help="how many the model has (default: 1)")
    parser.add_argument("--window", type=int, default=512, help="pixels (default: 512)")
    parser.add_argument("--overlap", type=float, default=0.5, help="of neighbouring windows (default: 0.5)")
    parser.add_argument("--batch-size", type=int, default=1, help="windows at once (default: 1)")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default: %(default)s)"
    )
    args = parser.parse_args(arguments)
    if args.target is None and not args.make_demo:
        parser.error("say where the labels go: predict_bands.py PICTURE TARGET")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 not done, and why; Ctrl-C gives 130."""
    args = parse(arguments)
    try:
        if args.make_demo:
            make_demo(args.picture)
            return 0
        check(args)
        picture = open_picture(args.picture, args.channels_first)
        with tempfile.TemporaryDirectory(prefix=".logits-", dir=args.target.parent) as folder:
            labels = predict(args, picture, Path(folder) / "logits")
        save(labels, args.target)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        print(f"predict_bands: error: {error}", file=sys.stderr)
        return 2
    for label, count in zip(*np.unique(labels, return_counts=True)):
        print(f"{'no data' if label == NOTHING else f'class {label}'}: {count / labels.size:.1%}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
