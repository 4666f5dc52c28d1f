"""Means over square windows, at a cost that hardly grows with the window."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["box_mean"]


def box_mean(x: Tensor, radius: tuple[int, int]) -> Tensor:
    """The mean of ``x`` ``[..., H, W]`` over the pixels at most ``radius`` rows and columns away, inside the map.

    Sums of 2, 4, 8 … neighbours are sums of two sums, and a window is put together from a few of them: nothing is
    subtracted, so that float32 keeps its digits, as it would not in a summed-area table.

    Args:
        x: Floating point.
        radius: Of rows and of columns, each at least 0.

    Examples:
        >>> box_mean(torch.tensor([[0.0, 3.0, 6.0, 9.0]]), (0, 1))
        tensor([[1.5000, 3.0000, 6.0000, 7.5000]])
    """
    for dim, reach in ((-1, radius[1]), (-2, radius[0])):
        size = x.shape[dim]
        reach = min(reach, size - 1)
        if reach < 1:
            continue
        at = torch.arange(size, device=x.device)
        count = (at + reach).clamp_(max=size - 1) - (at - reach).clamp_(min=0) + 1
        x = _window_sums(x, dim, reach) / (count if dim == -1 else count[:, None])
    return x


def _window_sums(x: Tensor, dim: int, reach: int) -> Tensor:
    size, window = x.shape[dim], 2 * reach + 1
    sums = F.pad(x, (reach, reach) if dim == -1 else (0, 0, reach, reach))
    total, start, step = sums.narrow(dim, 0, size).clone(), 1, 1  # a window is odd: its first pixel stands alone
    while 2 * step <= window:
        length = sums.shape[dim] - step
        sums = sums.narrow(dim, 0, length) + sums.narrow(dim, step, length)
        step *= 2
        if window & step:
            total += sums.narrow(dim, start, size)
            start += step
    return total
