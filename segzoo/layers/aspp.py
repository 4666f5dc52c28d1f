"""Atrous spatial pyramid pooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segzoo.layers.conv import conv_norm_act
from segzoo.layers.norm import Norm

__all__ = ["ASPP"]


class ImagePooling(nn.Sequential):
    """The mean of the whole map, convolved, at every pixel again."""

    def __init__(self, in_channels: int, out_channels: int, norm: Norm) -> None:
        # The first slot is where torchvision has its pooling layer: a mean exports at any size.
        super().__init__(nn.Identity(), *conv_norm_act(in_channels, out_channels, 1, norm=norm))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W]`` to ``[N, out_channels, H, W]``."""
        pooled: Tensor = super().forward(x.mean((2, 3), keepdim=True))
        return pooled.expand(-1, -1, *x.shape[-2:])


class ASPP(nn.Module):
    """A map seen at several rates at once: a 1×1 convolution, a dilated 3×3 one for each rate, and the map's mean.

    Args:
        in_channels: Channels of the input ``[N, in_channels, H, W]``, any H, W ≥ 1.
        rates: Of the dilated convolutions, as many as wanted.
        out_channels: Of each branch, and of the output ``[N, out_channels, H, W]``.
        separable: Whether the dilated convolutions are depthwise separable, as in DeepLabV3+.
        norm: See ``segzoo.layers.get_norm``.
        dropout: After the projection.

    Raises:
        ValueError: For rates that are no positive ints.

    State-dict keys: torchvision's (``convs.0.0.weight`` … ``project.0.weight``).

    Source: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017 (arXiv 1706.05587),
    Section 3.3 and Fig. 5; the separable form: arXiv 1802.02611, Section 3.2.

    Examples:
        >>> ASPP(16, (6, 12), 8).eval()(torch.zeros(1, 16, 3, 5)).shape
        torch.Size([1, 8, 3, 5])
    """

    def __init__(
        self,
        in_channels: int,
        rates: Sequence[int] = (12, 24, 36),
        out_channels: int = 256,
        *,
        separable: bool = False,
        norm: Norm = "batch",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if not isinstance(rates, Sequence) or any(not isinstance(rate, int) or rate < 1 for rate in rates):
            raise ValueError(f"rates are positive ints, got {rates!r}")
        self.convs = nn.ModuleList(
            [
                conv_norm_act(in_channels, out_channels, 1, norm=norm),
                *(conv_norm_act(in_channels, out_channels, dilation=r, separable=separable, norm=norm) for r in rates),
                ImagePooling(in_channels, out_channels, norm),
            ]
        )
        self.project = nn.Sequential(
            *conv_norm_act(len(self.convs) * out_channels, out_channels, 1, norm=norm), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W]`` to ``[N, out_channels, H, W]``."""
        out: Tensor = self.project(torch.cat([conv(x) for conv in self.convs], 1))
        return out
