"""Several encoders as one: each sees channels of its own, and their maps are fused level by level."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from segzoo._errors import unknown_name
from segzoo.encoders.base import Encoder
from segzoo.layers.conv import ConvNormAct
from segzoo.layers.norm import Norm
from segzoo.ops import resize_to

__all__ = ["LateFusion"]

Fusion = Literal["concat", "add", "max"]


class LateFusion(Encoder):
    """Two or more encoders, as of a colour picture and its depth, or of an optical and a radar one, fused into one.

    It is an encoder itself, for any model that takes one: ``unet(LateFusion([…]), in_channels=4)``. The first
    encoder's pyramid is the measure: its widths and sizes are the result's.

    Args:
        encoders: Their strides must be the same; the same encoder twice shares its weights.
        fusion: ``"concat"`` (and a 1×1 convolution, norm, ReLU back to the first encoder's width), ``"add"`` or
            ``"max"``, element by element, for which the encoders must have the same channels.
        norm: Of ``"concat"``: see ``segzoo.layers.get_norm``.

    The input is ``[N, in_channels, H, W]``, the encoders' channels one after the other, in their order.

    ``freeze`` and ``unfreeze`` are those of each encoder; the fusion stays in training.

    Raises:
        ValueError: For fewer than two encoders, other strides, other channels where they must agree, or an unknown
            ``fusion``, with the nearest name.

    State-dict keys: ``encoders.{i}.*`` and, with "concat", ``fuse.{level}.*``.

    Source: two encoders summed level by level: Hazirbas et al., "FuseNet", ACCV 2016 (there the sums feed the
    first encoder on; here the encoders stay apart).

    Examples:
        >>> from segzoo.encoders import get_encoder
        >>> colour, depth = (get_encoder("resnet10t", weights=None, in_channels=c) for c in (3, 1))
        >>> [list(y.shape) for y in LateFusion([colour, depth])(torch.zeros(2, 4, 40, 64))][:2]
        [[2, 64, 20, 32], [2, 64, 10, 16]]
    """

    def __init__(self, encoders: Sequence[Encoder], *, fusion: Fusion = "concat", norm: Norm = "batch") -> None:
        super().__init__()
        if fusion not in get_args(Fusion):
            raise unknown_name("fusion", fusion, get_args(Fusion))
        if any(not isinstance(encoder, Encoder) for encoder in encoders):
            kinds = ", ".join(type(encoder).__name__ for encoder in encoders)
            raise TypeError(f"LateFusion is of segzoo.encoders.Encoder, as get_encoder gives them, got {kinds}")
        if len(encoders) < 2:
            raise ValueError(f"LateFusion is of two encoders or more, got {len(encoders)}")
        first, *others = encoders
        for other in others:
            if other.strides != first.strides:
                raise ValueError(f"the encoders must have the same strides, got {first.strides} and {other.strides}")
            if fusion != "concat" and other.channels != first.channels:
                raise ValueError(
                    f"fusion={fusion!r} needs encoders of the same channels (fusion='concat' does not), "
                    f"got {first.channels} and {other.channels}"
                )
        self.encoders = nn.ModuleList(encoders)
        self.fusion = fusion
        self.in_channels = sum(encoder.in_channels for encoder in encoders)
        self.channels = first.channels
        self.strides = first.strides
        self.min_size = max(encoder.min_size for encoder in encoders)
        multiple = math.lcm(*(encoder.size_multiple for encoder in encoders))
        self.size_multiple = 1 if multiple == 1 else multiple * math.ceil(self.min_size / multiple)
        levels = zip(*(encoder.channels for encoder in encoders)) if fusion == "concat" else ()
        self.fuse = nn.ModuleList(ConvNormAct(sum(widths), widths[0], 1, norm=norm) for widths in levels)

    def stems(self) -> list[str]:
        """The keys of the weights of all convolutions that see the picture."""
        return [f"encoders.{i}.{key}" for i, encoder in enumerate(self._encoders()) for key in encoder.stems()]

    def forward(self, x: Tensor) -> list[Tensor]:
        """``[N, in_channels, H, W]`` to the fused maps, the finest first."""
        encoders = self._encoders()
        parts = x.split([encoder.in_channels for encoder in encoders], 1)
        pyramids = [encoder(part) for encoder, part in zip(encoders, parts)]
        return [self._fused(level, maps) for level, maps in enumerate(zip(*pyramids))]

    def _fused(self, level: int, maps: tuple[Tensor, ...]) -> Tensor:
        first = maps[0]
        # One encoder may round a size up where another rounds it down.
        same = [y if y.shape[-2:] == first.shape[-2:] else resize_to(y, first) for y in maps]
        if self.fusion == "concat":
            fused: Tensor = self.fuse[level](torch.cat(same, 1))
            return fused
        return functools.reduce(torch.add if self.fusion == "add" else torch.maximum, same)

    def freeze(self, upto: int | None = None) -> LateFusion:
        """Stop training the first levels of every encoder: see ``Encoder.freeze``."""
        for encoder in self._encoders():
            encoder.freeze(upto)
        return self

    def unfreeze(self) -> LateFusion:
        """Train again what ``freeze`` had stopped."""
        for encoder in self._encoders():
            encoder.unfreeze()
        return self

    def _encoders(self) -> list[Encoder]:
        return cast(list[Encoder], list(self.encoders))
