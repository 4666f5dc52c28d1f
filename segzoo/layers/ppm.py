"""Pyramid pooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segzoo.layers.conv import ConvNormAct
from segzoo.layers.norm import Norm
from segzoo.ops import resize_to

__all__ = ["PyramidPooling"]

_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # torch 2.6 has the latter only


class PyramidPooling(nn.Module):
    """A map beside its own averages over grids of several sizes, each convolved and resized to the map.

    Args:
        in_channels: Channels of the input ``[N, in_channels, H, W]``, any H, W ≥ 1.
        bins: The grids: 2 is 2×2 averages.
        branch_channels: Of each branch; None means ``in_channels // len(bins)``.
        norm: See ``segzoo.layers.get_norm``.
        align_corners: Of the resizing, see ``segzoo.ops.resize_to``.

    Attributes:
        out_channels: Of the output ``[N, out_channels, H, W]``: each branch's and the input's, in this order.

    Source: Zhao et al., "Pyramid Scene Parsing Network", 2016 (arXiv 1612.01105), Section 3.2 and Fig. 3 (c).

    Examples:
        >>> PyramidPooling(16).eval()(torch.zeros(1, 16, 4, 5)).shape
        torch.Size([1, 32, 4, 5])
    """

    def __init__(
        self,
        in_channels: int,
        bins: Sequence[int] = (1, 2, 3, 6),
        branch_channels: int | None = None,
        *,
        norm: Norm = "batch",
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(bins, Sequence) or not bins or any(not isinstance(n, int) or n < 1 for n in bins):
            raise ValueError(f"bins are positive ints, got {bins!r}")
        if branch_channels is None:
            branch_channels = max(1, in_channels // len(bins))
        self.bins = tuple(bins)
        self.align_corners = align_corners
        self.out_channels = in_channels + branch_channels * len(bins)
        self.branches = nn.ModuleList(ConvNormAct(in_channels, branch_channels, 1, norm=norm) for _ in bins)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W]`` to ``[N, out_channels, H, W]``."""
        pooled = [branch(average_grid(x, n)) for n, branch in zip(self.bins, self.branches)]
        return torch.cat([*(resize_to(y, x, align_corners=self.align_corners) for y in pooled), x], 1)


def average_grid(x: Tensor, bins: int) -> Tensor:
    """``F.adaptive_avg_pool2d(x, bins)``, in a form that can also be exported while H and W are not known.

    Examples:
        >>> x = torch.randn(1, 3, 7, 10)
        >>> torch.allclose(average_grid(x, 3), F.adaptive_avg_pool2d(x, 3), atol=1e-6)
        True
    """
    if bins == 1:
        return x.mean((2, 3), keepdim=True)
    if not (_is_exporting() or torch.onnx.is_in_onnx_export()):
        return F.adaptive_avg_pool2d(x, bins)
    rows, columns = (_averaging(x.shape[dim], bins, x) for dim in (2, 3))
    return rows @ x @ columns.transpose(0, 1)


def _averaging(size: int, bins: int, like: Tensor) -> Tensor:
    """``[bins, size]``: row i averages the pixels ⌊i·size/bins⌋ to ⌈(i+1)·size/bins⌉ − 1, as adaptive pooling does."""
    i = torch.arange(bins, device=like.device)[:, None]
    pixel = torch.arange(size, device=like.device)
    start, end = i * size // bins, -(-(i + 1) * size // bins)
    inside = ((pixel >= start) & (pixel < end)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)
