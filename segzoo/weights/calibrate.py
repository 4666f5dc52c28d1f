"""Statistics for batch norms that had been folded into their convolutions, measured on pictures.

A checkpoint whose norms were folded comes back (``segzoo.weights.convert``) with norms that do nothing. That is the
same function in eval mode, and ruin in train mode, where each batch is normalised to mean 0 and variance 1 all the
same. Measuring what each convolution gives out, and making that the running statistics, mends it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["calibrate"]


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
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None and m.affine]
    if not norms:
        raise ValueError("there is no batch norm with running statistics to calibrate in this model")
    moments = {norm: _Moments(norm.num_features) for norm in norms}
    hooks = [norm.register_forward_pre_hook(lambda norm, args: moments[norm].add(args[0])) for norm in norms]
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
    for norm in norms:
        if moments[norm].count:
            _recentre(norm, moments[norm].mean(), moments[norm].variance())
    return pictures


class _Moments:
    """Count, sum and sum of squares per channel, about a shift so that the squares do not cancel."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.shift: Tensor | None = None
        self.sum = torch.zeros(channels, dtype=torch.float64)
        self.squares = torch.zeros(channels, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        values = x.double().transpose(0, 1).flatten(1).cpu()
        if self.shift is None:
            self.shift = values.mean(1)
        values -= self.shift[:, None]
        self.count += values.shape[1]
        self.sum += values.sum(1)
        self.squares += values.square().sum(1)

    def mean(self) -> Tensor:
        assert self.shift is not None
        return self.shift + self.sum / self.count

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
    from segzoo.inference.picture import read_picture
    from segzoo.inference.preprocessing import preprocess
    from segzoo.weights.convert import write_state_dict

    parser = argparse.ArgumentParser(prog="python -m segzoo.weights.calibrate", description=main.__doc__)
    parser.add_argument("onnx", type=Path, help="the published u2netp.onnx")
    parser.add_argument("pictures", type=Path, help="a folder of pictures; those of ECSSD made the bundled file")
    parser.add_argument("out", type=Path, help="the safetensors file to write")
    parser.add_argument("--count", type=int, default=200, help="how many pictures (default: %(default)s)")
    parser.add_argument("--step", type=int, default=4, help="take every n-th by name (default: %(default)s)")
    args = parser.parse_args(arguments)

    model = u2net_lite(weights=str(args.onnx)).eval()
    paths = sorted(args.pictures.iterdir())[:: args.step][: args.count]
    batches = (preprocess(read_picture(path), model.preprocessing)[None] for path in paths)
    count = calibrate(model, batches)
    digest = write_state_dict(model.state_dict(), args.out, {"weights": "u2net_lite.duts", "license": "Apache-2.0"})
    sys.stdout.write(f"{args.out}: calibrated with {count} pictures, sha256 {digest}\n")


if __name__ == "__main__":
    main()
