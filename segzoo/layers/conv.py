"""Convolution, norm and activation as one block."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from segzoo.layers.norm import Norm, get_norm

__all__ = ["ConvNormAct"]

RELU = partial(nn.ReLU, inplace=True)  # in place: the norm's output is nobody else's


class ConvNormAct(nn.Module):
    """Convolution → norm → activation, each of the last two optional; keeps H × W at stride 1.

    Args:
        in_channels: Channels of the input ``[N, in_channels, H, W]``.
        out_channels: Channels of the output ``[N, out_channels, ⌈H/stride⌉, ⌈W/stride⌉]``.
        kernel_size: Odd.
        stride: Of the convolution.
        dilation: Of the convolution; the padding grows with it.
        groups: Of the convolution.
        norm: See ``segzoo.layers.get_norm``. With None the convolution has a bias, else it has none.
        act: The activation, as a callable without arguments (default: ReLU in place), or None. An
            EvoNorm is norm and activation in one: the activation is then left out.

    Raises:
        ValueError: If ``kernel_size`` is even.

    State-dict keys: ``conv.*`` and ``bn.*`` (whatever the norm is).

    Examples:
        >>> import torch
        >>> ConvNormAct(3, 8, dilation=2, norm="evo_s0")(torch.zeros(1, 3, 5, 7)).shape
        torch.Size([1, 8, 5, 7])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        norm: Norm = "batch",
        act: Callable[[], nn.Module] | None = RELU,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, to keep the size, got {kernel_size}")
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=groups,
            bias=norm is None,
        )
        self.bn = get_norm(norm, out_channels, act=act is not None)
        self.act = nn.Identity() if act is None or getattr(self.bn, "includes_act", False) else act()

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W]`` to ``[N, out_channels, ⌈H/stride⌉, ⌈W/stride⌉]``."""
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out
