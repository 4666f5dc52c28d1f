"""Half precision where it does no harm.

A channel that is nearly constant and large, 226 ± 0.2 say, which a bias takes away again, is lost in a type with a step
of 1 there. Such channels show with any picture, since they hardly depend on it. From the convolution that makes one to
those that take it everything stays in float32; all else becomes narrow.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segzoo.models.base import SegmentationModel

__all__ = ["CastInputs", "Chains", "find_chains", "find_sensitive", "narrow"]

_HARM = 0.25  # of an output's standard deviation, by the rounding of one input channel: others add up to less
_SWALLOWED = 0.25  # of a channel's own standard deviation, by its rounding
_SAME = 0.01  # relative difference of two means, of one channel before and after a resizing
_SIDE = 128


class Chains(NamedTuple):
    """The convolutions at both ends of the nearly constant channels; one may be at both.

    Args:
        makers: Those that make such a channel, in the model's order.
        takers: Those that take one.
    """

    makers: list[nn.Conv2d]
    takers: list[nn.Conv2d]


class _Channels(NamedTuple):
    """Mean and standard deviation of each channel of a convolution's input or output."""

    mean: Tensor
    deviation: Tensor


@torch.no_grad()
def find_chains(model: SegmentationModel, step: float, pictures: Tensor | None = None) -> Chains:
    """The convolutions that take a channel whose rounding shows in their output, and those that make it.

    Args:
        model: In eval mode, in float32, its norms folded.
        step: The largest relative error of rounding: 2⁻⁸ of bfloat16.
        pictures: ``[N, C, H, W]``, preprocessed. None: two that are made up, of soft spots and noise.

    Examples:
        >>> from segzoo import u2net_lite
        >>> model = u2net_lite().eval()
        >>> takers = find_chains(model, 2**-8).takers
        >>> [name for name, module in model.named_modules() if module in takers]
        ['decode_modules.3.decode_modules.4.conv']
    """
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
    return Chains([conv for conv in convs if conv in makers], [conv for conv in convs if conv in taken])


def find_sensitive(model: SegmentationModel, dtype: torch.dtype, pictures: Tensor | None = None) -> list[nn.Conv2d]:
    """The makers and takers of ``find_chains`` together, for the rounding of ``dtype``, in the model's order."""
    chains = find_chains(model, torch.finfo(dtype).eps / 2, pictures)
    return [module for module in model.modules() if module in chains.makers or module in chains.takers]


def _channels(x: Tensor) -> _Channels:
    values = x.detach().float().transpose(0, 1).flatten(1)
    deviation, mean = torch.std_mean(values, 1, correction=0)
    return _Channels(mean, deviation)


def _has(y: _Channels, mean: float, step: float) -> bool:
    """Whether one of the output channels is that nearly constant one."""
    same = (y.mean - mean).abs() <= _SAME * abs(mean)
    return bool((same & (step * y.mean.abs() > _SWALLOWED / 2 * y.deviation)).any())


def _made_up(channels: int) -> Tensor:
    """Two pictures: what is one number all over each of them, as pooled features are, differs between the two."""
    generator = torch.Generator().manual_seed(0)
    spots = torch.randn(2, channels, 10, 10, generator=generator)
    soft = F.interpolate(spots, size=(_SIDE, _SIDE), mode="bicubic")
    return soft + 0.2 * torch.randn(2, channels, _SIDE, _SIDE, generator=generator)


def narrow(model: SegmentationModel, dtype: torch.dtype, chains: Chains) -> None:
    """Make a model narrow in place, but for what lies between the two ends of these chains.

    Makers and takers compute in float32. What comes after a maker takes that as it is, or rounds it itself: every
    module with parameters casts what it is given. A taker's output is rounded: the large constant is gone from it.

    Args:
        model: In float32.
        dtype: bfloat16 or float16.
        chains: From ``find_chains``.
    """
    wide = {id(tensor) for conv in (*chains.makers, *chains.takers) for tensor in conv.parameters()}
    if not wide:
        model.to(dtype)
        return
    model._apply(lambda x: x.to(dtype) if x.is_floating_point() and id(x) not in wide else x)
    for module in model.modules():
        parameters = list(module.parameters(recurse=False))
        if parameters:
            module.register_forward_pre_hook(CastInputs(parameters[0].dtype), with_kwargs=True)
        if module in chains.takers and module not in chains.makers:
            module.register_forward_hook(_CastOutput(dtype))


class CastInputs:
    """A module's pre-hook that casts what is floating point; a class, as functions in functions cannot be pickled."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the module is given instead."""
        return tuple(map(self._cast, args)), {name: self._cast(x) for name, x in kwargs.items()}

    def _cast(self, x: Any) -> Any:
        return x.to(self.dtype) if isinstance(x, Tensor) and x.is_floating_point() else x


class _CastOutput:
    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output.to(self.dtype)
