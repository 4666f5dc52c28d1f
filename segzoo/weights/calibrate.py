"""Statistics for batch norms that had been folded into their convolutions, measured on pictures.

A checkpoint whose norms were folded comes back (``segzoo.weights.convert``) with norms that do nothing. That is the
same function in eval mode, and ruin in train mode, where each batch is normalised to mean 0 and variance 1 all the
same. Measuring what each convolution gives out, and making that the running statistics, mends it: ``recalibrate`` does
it with pictures, ``calibrate`` with batches for any module.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import length_hint
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from segzoo.weights.convert import norm_that_adds, write_state_dict

if TYPE_CHECKING:
    from segzoo.inference.picture import PictureLike
    from segzoo.models.base import SegmentationModel

__all__ = ["calibrate", "has_folded_norms", "recalibrate"]

Pictures: TypeAlias = "PictureLike | Iterable[PictureLike]"


def recalibrate(model: SegmentationModel, pictures: Pictures, *, batch_size: int = 1, progress: bool = False) -> int:
    """Make a model fit to train whose norms its publisher folded into the convolutions; eval output stays the same.

    For ``u2net_full.duts``, ``isnet.general`` and any ``.onnx`` file, before fine-tuning them. The pictures go through
    the model's ``preprocessing``, a batch at a time; every batch norm is then put around the mean and variance it met
    (see ``calibrate``). If a picture cannot be read, the model stays as it was.

    Args:
        model: Of this library; changed in place, and left in the mode it was in.
        pictures: Such as you will train on; some dozens do. What ``segzoo.Predictor`` takes: a path, an open file, a
            PIL image, a uint8 array or tensor; or any iterable of them, a generator too; or the path of a folder: all
            pictures in it.
        batch_size: How many pictures of one size go through the model at once. The result is the same.
        progress: Whether to show a bar on stderr, where that is a terminal.

    Returns:
        The number of pictures measured.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If there is no picture, one is broken (its file is named), or the model has no batch norm with
            running statistics.
        TypeError: If ``model`` is not of this library, or a picture in none of those forms.

    Examples:
        >>> import numpy as np
        >>> from segzoo import u2net_lite
        >>> recalibrate(u2net_lite(), [np.zeros((60, 80, 3), np.uint8)])
        1
    """
    from segzoo._progress import progress_bar
    from segzoo.models.base import SegmentationModel, check_positive

    if not isinstance(model, SegmentationModel):
        raise TypeError(
            f"recalibrate takes a model of this library, got {type(model).__name__}; "
            "segzoo.weights.calibrate.calibrate takes any module, with preprocessed batches"
        )
    check_positive(batch_size=batch_size)
    each = _one_by_one(pictures)
    with progress_bar(length_hint(each), progress) as bar:
        return calibrate(model, _batches(model, each, batch_size, bar.update))


def _one_by_one(pictures: Pictures) -> Iterable[PictureLike]:
    """Single pictures, whatever they came in."""
    import numpy as np

    if isinstance(pictures, (str, os.PathLike)) and Path(pictures).is_dir():
        from segzoo._pairs import pictures_in

        folder = Path(pictures)
        found = [folder / path for path in pictures_in(folder, folder, recursive=False)]
        if not found:
            raise ValueError(f"there is no picture in the folder {folder}")
        return found
    is_one = isinstance(pictures, (str, os.PathLike, Tensor, np.ndarray)) or hasattr(pictures, "read")
    several = not is_one and isinstance(pictures, Iterable)
    return cast("Iterable[PictureLike]", pictures if several else [pictures])


def _batches(
    model: SegmentationModel, pictures: Iterable[PictureLike], most: int, done: Callable[[int], object]
) -> Iterator[Tensor]:
    """Pictures as the model takes them ``[N, C, H, W]``, neighbours of one size together."""
    from segzoo.inference.picture import read_picture
    from segzoo.inference.preprocessing import preprocess

    place = next(model.parameters())
    waiting: list[Tensor] = []
    for picture in pictures:
        x = preprocess(read_picture(picture, in_channels=model.in_channels), model.preprocessing)
        if waiting and (len(waiting) == most or waiting[0].shape != x.shape):
            yield torch.stack(waiting).to(place)
            done(len(waiting))
            waiting = []
        waiting.append(x)
    if waiting:
        yield torch.stack(waiting).to(place)
        done(len(waiting))


def has_folded_norms(model: nn.Module) -> bool:
    """Whether all batch norms are as ``segzoo.weights.convert`` makes them of folded ones: train mode would be ruin.

    Frozen batch norms are none of them: they stay the same in train mode. Looks no further than the first norm that
    differs, which in a model that was trained, or is new, is the very first.

    Args:
        model: Any module.

    Examples:
        >>> from segzoo import u2net_lite
        >>> has_folded_norms(u2net_lite())  # the bundled weights were calibrated
        False
    """
    one, _, zero, _, _ = norm_that_adds(torch.zeros(1), "norm").values()
    adds = False
    for norm in _batch_norms(model):
        mean, variance = norm.running_mean, norm.running_var
        # What has no values to look at (on the meta device, of a tracer) says nothing.
        if mean is None or variance is None or type(mean) is not Tensor or mean.is_meta:
            return False
        statistics = ((mean, zero), (variance, torch.ones_like(zero)), (norm.weight, one))
        if any(bool((value.float() != expected.to(value).float()).any()) for value, expected in statistics):
            return False
        adds = adds or norm.weight.element_size() > 2 or bool((norm.bias != 0).any())
    return adds  # a new norm in half precision, where what makes up for ε is rounded to 1, adds nothing


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Re-parametrise every batch norm around the statistics of its input, in place; eval output stays the same.

    For a norm that maps z to a·z + b in eval mode, with measured mean m and biased variance s² of z:
    ``running_mean = m``, ``running_var = s²``, ``weight = a·√(s² + ε)``, ``bias = b + a·m``. The statistics are over
    all pixels of all batches, summed in float64.

    Args:
        model: Any module with batch norms; it is left in the mode it was in.
        batches: Preprocessed pictures ``[N, C, H, W]`` as the model takes them.

    Returns:
        The number of pictures measured.

    Raises:
        ValueError: If there was no picture, or no batch norm with running statistics.

    Examples:
        >>> norm = nn.BatchNorm2d(3).eval()
        >>> calibrate(norm, [torch.full((2, 3, 4, 4), 5.0)]), norm.running_mean.tolist()
        (2, [5.0, 5.0, 5.0])
    """
    moments = {norm: _Moments(norm.num_features) for norm in _batch_norms(model)}
    if not moments:
        raise ValueError(
            "there is no batch norm with running statistics to calibrate in this model; other norms, frozen ones too, "
            "need no calibration"
        )
    hooks = [norm.register_forward_pre_hook(lambda norm, args: moments[norm].add(args[0])) for norm in moments]
    modes = {module: module.training for module in model.modules()}
    pictures = 0
    try:
        model.eval()
        for batch in batches:
            model(batch)
            pictures += len(batch)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    if pictures == 0:
        raise ValueError("calibration needs at least one picture")
    for norm, measured in moments.items():
        if measured.count:
            _recentre(norm, measured.mean(), measured.variance())
    return pictures


def _batch_norms(model: nn.Module) -> Iterator[_BatchNorm]:
    """Those that normalise by the batch in train mode and by running statistics in eval mode."""
    norms = (module for module in model.modules() if isinstance(module, _BatchNorm))
    return (norm for norm in norms if norm.running_mean is not None and norm.affine)


class _Moments:
    """Count, sum and sum of squares per channel, about a shift so that the squares do not cancel."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.shift: Tensor | None = None
        self.sum = torch.zeros(channels, dtype=torch.float64)
        self.squares = torch.zeros(channels, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        x = x.cpu() if x.device.type == "mps" else x  # which has no float64
        values = x.to(torch.float64, copy=True).transpose(0, 1).flatten(1)  # a copy: it is shifted in place
        if self.shift is None:
            self.shift = values.mean(1)
        values -= self.shift[:, None]
        self.count += values.shape[1]
        self.sum += values.sum(1).cpu()
        self.squares += values.square_().sum(1).cpu()

    def mean(self) -> Tensor:
        assert self.shift is not None
        return self.shift.cpu() + self.sum / self.count

    def variance(self) -> Tensor:
        return (self.squares / self.count - (self.sum / self.count).square()).clamp_min(0)


def _recentre(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    device = norm.running_mean.device
    mean, variance = mean.to(device), variance.to(device)
    slope = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    intercept = norm.bias.double() - slope * norm.running_mean.double()
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    # From the rounded statistics, so that rounding them does not move the eval output.
    norm.weight.copy_(slope * (norm.running_var.double() + norm.eps).sqrt())
    norm.bias.copy_(intercept + slope * norm.running_mean.double())


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the bundled file: ``python -m segzoo.weights.calibrate u2netp.onnx ECSSD_IMAGES OUT.safetensors``."""
    from segzoo import u2net_lite

    parser = argparse.ArgumentParser(prog="python -m segzoo.weights.calibrate", description=main.__doc__)
    parser.add_argument("onnx", type=Path, help="the published u2netp.onnx")
    parser.add_argument("pictures", type=Path, help="a folder of pictures; those of ECSSD made the bundled file")
    parser.add_argument("out", type=Path, help="the safetensors file to write")
    parser.add_argument("--count", type=int, default=200, help="how many pictures (default: %(default)s)")
    parser.add_argument("--step", type=int, default=4, help="take every n-th by name (default: %(default)s)")
    args = parser.parse_args(arguments)

    model = u2net_lite(weights=str(args.onnx)).eval()
    count = recalibrate(model, sorted(args.pictures.iterdir())[:: args.step][: args.count])
    digest = write_state_dict(model.state_dict(), args.out, {"weights": "u2net_lite.duts", "license": "Apache-2.0"})
    sys.stdout.write(f"{args.out}: calibrated with {count} pictures, sha256 {digest}\n")


if __name__ == "__main__":
    main()
