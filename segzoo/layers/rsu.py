"""Residual U-blocks, the stages of U²-Net: a small U-Net inside a residual connection."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segzoo.layers.conv import ConvNormAct
from segzoo.layers.norm import Norm
from segzoo.ops import resize_to

__all__ = ["RSU", "RSU4F"]


class _ResidualU(nn.Module):
    """An encoder-decoder of 3×3 convolutions, its output added to that of its input convolution.

    The blocks below differ only in the dilations, one per level down and then from the deepest level but one up, and
    in whether the levels between the first and the deepest are pooled.
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        *,
        encode_dilations: Sequence[int],
        decode_dilations: Sequence[int],
        pooled: bool,
        norm: Norm,
    ) -> None:
        super().__init__()
        self.conv_in = ConvNormAct(in_channels, out_channels, norm=norm)
        self.encode_modules = nn.ModuleList(
            ConvNormAct(mid_channels if level else out_channels, mid_channels, dilation=dilation, norm=norm)
            for level, dilation in enumerate(encode_dilations)
        )
        last = len(decode_dilations) - 1
        self.decode_modules = nn.ModuleList(
            ConvNormAct(2 * mid_channels, mid_channels if i < last else out_channels, dilation=dilation, norm=norm)
            for i, dilation in enumerate(decode_dilations)
        )
        self.pool = nn.MaxPool2d(2, stride=2, ceil_mode=True) if pooled else None
        self.in_place = False  # whether the sum overwrites the last output: for inference, where nobody else has it

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W]`` to ``[N, out_channels, H, W]``."""
        residual: Tensor = self.conv_in(x)
        x = residual
        levels: list[Tensor] = []
        deepest = len(self.encode_modules) - 1
        for i, encode in enumerate(self.encode_modules):
            if self.pool is not None and 0 < i < deepest:
                x = self.pool(x)
            x = encode(x)
            levels.append(x)
        skips = reversed(levels[:-1])
        for i, (decode, skip) in enumerate(zip(self.decode_modules, skips)):
            if self.pool is not None and i > 0:
                x = resize_to(x, skip)
            x = decode(torch.cat([x, skip], 1))
        looked_at = len(self.decode_modules[-1]._forward_hooks) > 0 or (torch.is_grad_enabled() and x.requires_grad)
        overwrite = self.in_place and x.dtype == residual.dtype and not looked_at
        return x.add_(residual) if overwrite else x + residual


class RSU(_ResidualU):
    """RSU-L(C_in, M, C_out): a U-Net of L levels in a residual connection.

    Level 1 has the input's size; each further level pools the one above by 2 (sizes rounded up), but the last, which
    keeps the size of the one above it and has dilation 2.

    Args:
        height: L, the number of levels, at least 2. U²-Net uses 7, 6, 5 and 4.
        in_channels: C_in of the input ``[N, in_channels, H, W]``.
        mid_channels: M, the channels inside the U.
        out_channels: C_out of the output ``[N, out_channels, H, W]``.
        norm: See ``segzoo.layers.get_norm``.

    Raises:
        ValueError: If ``height`` is below 2.

    Source: Qin et al., "U²-Net", 2020 (arXiv 2005.09007), Fig. 2(e).

    Examples:
        >>> RSU(7, 3, 32, 64)(torch.zeros(1, 3, 33, 47)).shape
        torch.Size([1, 64, 33, 47])
    """

    def __init__(
        self, height: int, in_channels: int, mid_channels: int, out_channels: int, *, norm: Norm = "batch"
    ) -> None:
        if height < 2:
            raise ValueError(f"an RSU has at least 2 levels, got height={height}")
        super().__init__(
            in_channels,
            mid_channels,
            out_channels,
            encode_dilations=[1] * (height - 1) + [2],
            decode_dilations=[1] * (height - 1),
            pooled=True,
            norm=norm,
        )


class RSU4F(_ResidualU):
    """RSU-4F(C_in, M, C_out): four levels at one resolution, with dilations 1, 2, 4, 8 down and 4, 2, 1 up.

    Args:
        in_channels: C_in of the input ``[N, in_channels, H, W]``.
        mid_channels: M, the channels inside the U.
        out_channels: C_out of the output ``[N, out_channels, H, W]``.
        norm: See ``segzoo.layers.get_norm``.

    Source: Qin et al., "U²-Net", 2020 (arXiv 2005.09007), Section 3.2 and Fig. 5.

    Examples:
        >>> RSU4F(512, 256, 512)(torch.zeros(1, 512, 3, 2)).shape
        torch.Size([1, 512, 3, 2])
    """

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int, *, norm: Norm = "batch") -> None:
        super().__init__(
            in_channels,
            mid_channels,
            out_channels,
            encode_dilations=[1, 2, 4, 8],
            decode_dilations=[4, 2, 1],
            pooled=False,
            norm=norm,
        )
