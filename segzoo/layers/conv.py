"""Convolution, norm and activation as one block."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from segzoo.layers.norm import Norm, get_norm

__all__ = ["ConvNormAct", "conv_norm_act"]

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
        self.conv = _same_conv(
            in_channels, out_channels, kernel_size, stride=stride, dilation=dilation, groups=groups, bias=norm is None
        )
        self.bn = get_norm(norm, out_channels, act=act is not None)
        self.act = _activation_after(self.bn, act)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W]`` to ``[N, out_channels, ⌈H/stride⌉, ⌈W/stride⌉]``."""
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out


def conv_norm_act(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    *,
    stride: int = 1,
    dilation: int = 1,
    separable: bool = False,
    norm: Norm = "batch",
    act: Callable[[], nn.Module] | None = RELU,
) -> nn.Sequential:
    """``ConvNormAct`` as an ``nn.Sequential``, for the models whose keys are torchvision's: ``0.*`` and ``1.*``.

    Args:
        in_channels: Channels of the input ``[N, in_channels, H, W]``.
        out_channels: Channels of the output.
        kernel_size: Odd.
        stride: Of the convolution.
        dilation: Of the convolution; the padding grows with it.
        separable: A depthwise convolution (``0.0.*``), then a 1×1 one (``0.1.*``) with nothing in between.
        norm: See ``segzoo.layers.get_norm``.
        act: As in ``ConvNormAct``. Its slot stays where it is left out, so that what follows keeps its number.

    Examples:
        >>> list(conv_norm_act(3, 8, separable=True, norm="group").state_dict())
        ['0.0.weight', '0.1.weight', '1.weight', '1.bias']
    """
    bias = norm is None
    if separable:
        spatial = {"stride": stride, "dilation": dilation}
        conv: nn.Module = nn.Sequential(
            _same_conv(in_channels, in_channels, kernel_size, groups=in_channels, bias=False, **spatial),
            _same_conv(in_channels, out_channels, 1, bias=bias),
        )
    else:
        conv = _same_conv(in_channels, out_channels, kernel_size, stride=stride, dilation=dilation, bias=bias)
    normed = get_norm(norm, out_channels, act=act is not None)
    return nn.Sequential(conv, normed, _activation_after(normed, act))


def _same_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    bias: bool,
) -> nn.Conv2d:
    """A convolution that keeps H × W at stride 1."""
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, to keep the size, got {kernel_size}")
    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=dilation * (kernel_size // 2),
        dilation=dilation,
        groups=groups,
        bias=bias,
    )


def _activation_after(norm: nn.Module, act: Callable[[], nn.Module] | None) -> nn.Module:
    return nn.Identity() if act is None or getattr(norm, "includes_act", False) else act()
