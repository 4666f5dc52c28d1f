"""Resizing of maps and pictures: one rule for where the pixels lie (half-pixel centres, ``align_corners=False``)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["resize", "resize_to"]


def resize(x: Tensor, size: tuple[int, int], mode: str = "bilinear") -> Tensor:
    """``x`` ``[N, C, H, W]`` resized to ``size`` (height, width), without aliasing when it shrinks.

    Args:
        x: Floating point, or uint8 on the CPU (the result is rounded).
        size: Height and width of the result, in pixels.
        mode: ``"bilinear"`` or ``"bicubic"``: the filter is widened by the factor of reduction, as Pillow does.
            ``"nearest"`` for label maps.

    Examples:
        >>> import torch
        >>> resize(torch.zeros(1, 3, 40, 60), (32, 32)).shape
        torch.Size([1, 3, 32, 32])
    """
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    if mode == "nearest":
        return F.interpolate(x, size=size, mode="nearest-exact")
    return F.interpolate(x, size=size, mode=mode, align_corners=False, antialias=True)


def resize_to(x: Tensor, reference: Tensor) -> Tensor:
    """``x`` resized bilinearly to the H × W of ``reference``, as a network's decoder does (no anti-aliasing).

    Examples:
        >>> import torch
        >>> resize_to(torch.zeros(1, 3, 4, 4), torch.zeros(1, 8, 7, 9)).shape
        torch.Size([1, 3, 7, 9])
    """
    return F.interpolate(x, size=reference.shape[-2:], mode="bilinear", align_corners=False)
