"""Resizing of maps and pictures: one rule for where the pixels lie (half-pixel centres, ``align_corners=False``)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["crop_to", "resize", "resize_to"]


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
    # One pixel wide torch 2.15 gives wrong values or errors, by layout and type; not so lying down, in floats.
    if size[1] == 1 < size[0]:
        return resize(x.mT.contiguous(), (1, size[0]), mode).mT
    if size == (1, 1) and x.dtype == torch.uint8:
        return resize(x.float(), size, mode).round_().clamp_(0, 255).to(torch.uint8)
    return F.interpolate(x, size=size, mode=mode, align_corners=False, antialias=True)


def resize_to(x: Tensor, reference: Tensor, mode: str = "bilinear", *, align_corners: bool = False) -> Tensor:
    """``x`` resized to the H × W of ``reference``, as a network's decoder does (no anti-aliasing).

    Args:
        x: ``[N, C, h, w]``.
        reference: ``[…, H, W]``; only its size counts.
        mode: ``"bilinear"`` or ``"nearest"``.
        align_corners: Of ``"bilinear"``: whether the centres of the corner pixels fall on each other, as some published
            checkpoints were trained, or the corners themselves.

    Examples:
        >>> import torch
        >>> resize_to(torch.zeros(1, 3, 4, 4), torch.zeros(1, 8, 7, 9)).shape
        torch.Size([1, 3, 7, 9])
    """
    size = reference.shape[-2:]
    if mode == "nearest":
        return F.interpolate(x, size=size, mode="nearest")
    return F.interpolate(x, size=size, mode=mode, align_corners=align_corners)


def crop_to(x: Tensor, reference: Tensor, scale: int) -> Tensor:
    """``x``, just enlarged ``scale`` times, at the size of ``reference``: pixels stay where they are, as after pooling.

    Args:
        x: ``[N, C, h, w]``.
        reference: ``[…, H, W]``; only its size counts.
        scale: By how much the sizes may differ. What is too much is cropped at the bottom and the right, what is
            missing repeats the last row and column; where the difference is larger, ``x`` is resized.

    Examples:
        >>> import torch
        >>> crop_to(torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 7, 9), 2).shape
        torch.Size([1, 3, 7, 9])
    """
    height, width = reference.shape[-2:]
    missing = (height - x.shape[-2], width - x.shape[-1])
    if any(abs(pixels) > scale for pixels in missing):
        return resize_to(x, reference)
    # An exported program must not depend on whether the size it was made with was odd: it pads always, and by one more
    # than can be missing, so that there always is something to crop.
    if torch.compiler.is_compiling() or max(missing) > 0:
        x = F.pad(x, (0, scale + 1, 0, scale + 1), mode="replicate")
    return x[..., :height, :width]
