"""Layers that make one map of several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["SideFusion"]


class SideFusion(nn.Conv2d):
    """U²-Net's saliency-map fusion: a learned weighted sum (1×1 convolution) of the side maps.

    Args:
        num_maps: How many side maps there are.
        num_classes: Channels of each of them, and of the fused map.

    State-dict keys: ``weight`` ``[num_classes, num_maps · num_classes, 1, 1]`` and ``bias``.

    Source: Qin et al., "U²-Net", 2020 (arXiv 2005.09007), Section 3.2, S_fuse in Fig. 5.

    Examples:
        >>> SideFusion(6, 1)([torch.zeros(2, 1, 5, 7)] * 6).shape
        torch.Size([2, 1, 5, 7])
    """

    def __init__(self, num_maps: int, num_classes: int) -> None:
        super().__init__(num_maps * num_classes, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        """``num_maps`` tensors ``[N, num_classes, H, W]`` of one size to one such tensor."""
        return super().forward(torch.cat(list(maps), 1))
