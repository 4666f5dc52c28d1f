"""Half precision where it does no harm.

A channel that is nearly constant and large, 226 ± 0.2 say, which a bias takes away again, is lost in a type with a step
of 1 there. Such channels show with any picture, since they hardly depend on it. What makes and what takes them stays in
float32; all else becomes narrow.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segzoo.models.base import SegmentationModel

__all__ = ["find_sensitive", "narrow"]

_HARM = 0.1  # of an output's standard deviation, by the rounding of one input channel: others add up to less
_SWALLOWED = 0.25  # of a channel's own standard deviation, by its rounding
_SAME = 0.01  # relative difference of two means, of one channel before and after a resizing
_SIDE = 128


class _Channels(NamedTuple):
    """Mean and standard deviation of each channel of a convolution's input or output."""

    mean: Tensor
    deviation: Tensor


@torch.no_grad()
def find_sensitive(model: SegmentationModel, dtype: torch.dtype, pictures: Tensor | None = None) -> list[nn.Conv2d]:
    """The convolutions that must not be computed in ``dtype``: those that take a nearly constant channel and make one.

    Args:
        model: In eval mode, in float32, its norms folded.
        dtype: bfloat16 or float16.
        pictures: ``[N, C, H, W]``, preprocessed. None: one that is made up, of soft spots and noise.

    Examples:
        >>> from segzoo import u2net_lite
        >>> model = u2net_lite().eval()
        >>> found = find_sensitive(model, torch.bfloat16)
        >>> [name for name, module in model.named_modules() if module in found][-1]
        'decode_modules.4.decode_modules.4.conv'
    """
    step = torch.finfo(dtype).eps / 2  # the largest relative error of rounding
    taken: dict[nn.Conv2d, list[float]] = {}  # means of the channels that are harmed
    made: dict[nn.Conv2d, _Channels] = {}

    def look(conv: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x, y = _channels(inputs[0]), _channels(output)
        made[conv] = y
        error = (step * x.mean.abs()).view(conv.groups, 1, -1)  # of each input channel, by group
        reach = conv.weight.detach().float().abs().flatten(2).sum(2).unflatten(0, (conv.groups, -1))
        spread = y.deviation.clamp_min(torch.finfo(torch.float32).tiny).view(conv.groups, -1, 1)
        harm = (error * reach / spread).amax(1).flatten()
        harmed = (harm > _HARM) & (step * x.mean.abs() > _SWALLOWED * x.deviation)
        if harmed.any():
            taken.setdefault(conv, []).extend(x.mean[harmed].tolist())

    convs = [module for module in model.modules() if type(module) is nn.Conv2d]
    hooks = [conv.register_forward_hook(look) for conv in convs]
    place = next(model.parameters())
    try:
        model((_made_up(model.in_channels) if pictures is None else pictures).to(place))
    finally:
        for hook in hooks:
            hook.remove()
    means = torch.tensor([mean for found in taken.values() for mean in found])
    makers = [conv for conv, y in made.items() if any(_has(y, float(mean), step) for mean in means)]
    return [conv for conv in convs if conv in taken or conv in makers]


def _channels(x: Tensor) -> _Channels:
    values = x.detach().float().transpose(0, 1).flatten(1)
    deviation, mean = torch.std_mean(values, 1, correction=0)
    return _Channels(mean, deviation)


def _has(y: _Channels, mean: float, step: float) -> bool:
    """Whether one of the output channels is that nearly constant one."""
    same = (y.mean - mean).abs() <= _SAME * abs(mean)
    return bool((same & (step * y.mean.abs() > _SWALLOWED / 2 * y.deviation)).any())


def _made_up(channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    spots = torch.randn(1, channels, 10, 10, generator=generator)
    soft = F.interpolate(spots, size=(_SIDE, _SIDE), mode="bicubic")
    return soft + 0.2 * torch.randn(1, channels, _SIDE, _SIDE, generator=generator)


def narrow(model: SegmentationModel, dtype: torch.dtype, sensitive: list[nn.Conv2d]) -> None:
    """Make a model narrow in place, but for these convolutions: they take and give float32.

    What comes after them takes it as it is, or rounds it itself: every module with parameters casts what it is given.

    Args:
        model: In float32.
        dtype: bfloat16 or float16.
        sensitive: From ``find_sensitive``.
    """
    if not sensitive:
        model.to(dtype)
        return
    wide = {id(tensor) for conv in sensitive for tensor in conv.parameters()}
    model._apply(lambda x: x.to(dtype) if x.is_floating_point() and id(x) not in wide else x)
    for module in model.modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_pre_hook(_cast_to(torch.float32 if module in sensitive else dtype))


def _cast_to(dtype: torch.dtype) -> Any:
    def cast(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)

    return cast
