"""Layers that make one map of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segzoo._errors import unknown_name
from segzoo.ops import crop_to, resize_to

__all__ = ["FusedSides", "SideFusion", "SkipFusion"]

Fusion = Literal["concat", "add"]
Upsampling = Literal["bilinear", "nearest", "transposed", "pixel_shuffle"]


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


class FusedSides(nn.Module):
    """Side heads and their fusion as one, for inference: both are linear, so that a head can carry its fusion's weight.

    A 3×3 convolution with one output channel keeps a processor waiting for memory. Here it is a matrix product, one
    plane for each of its nine taps, and the sum of the planes, shifted.

    Args:
        sides: The 3×3 convolutions, each ``[N, C_i, h_i, w_i]`` to ``[N, num_classes, h_i, w_i]``.
        fusion: Of their resized outputs, those of the last head first.

    State-dict keys: none; the heads and the fusion keep theirs.

    Source: Qin et al., "U²-Net", 2020 (arXiv 2005.09007), Fig. 5: S_fuse.

    Examples:
        >>> sides, features = [nn.Conv2d(4, 1, 3, padding=1) for _ in range(2)], [torch.ones(1, 4, 2, 3)] * 2
        >>> FusedSides(sides, SideFusion(2, 1))(features, torch.zeros(1, 3, 5, 7)).shape
        torch.Size([1, 1, 5, 7])
    """

    bias: Tensor

    @torch.no_grad()
    def __init__(self, sides: Sequence[nn.Conv2d], fusion: SideFusion) -> None:
        super().__init__()
        self.num_classes = fusion.out_channels
        shares = fusion.weight.flatten(1).double().unflatten(1, (len(sides), -1)).flip(1)  # [class, side, its class]
        bias = torch.zeros_like(fusion.weight[:, 0, 0, 0]).double() if fusion.bias is None else fusion.bias.double()
        for i, side in enumerate(sides):
            taps = torch.einsum("kj,jcyx->yxkc", shares[:, i], side.weight.double()).flatten(0, 2)  # [9 · classes, C]
            self.register_buffer(f"weight{i}", taps.to(side.weight.dtype), persistent=False)
            if side.bias is not None:
                bias = bias + shares[:, i] @ side.bias.double()
        self.register_buffer("bias", bias.float().view(-1, 1, 1), persistent=False)

    def forward(self, features: Sequence[Tensor], picture: Tensor) -> Tensor:
        """What each head sees, and the picture, whose size counts, to float32 logits ``[N, num_classes, H, W]``."""
        fused = self.bias.float()
        for i, x in enumerate(features):
            fused = fused + resize_to(self._head(x, getattr(self, f"weight{i}")), picture)
        return fused

    def _head(self, x: Tensor, taps: Tensor) -> Tensor:
        x = x.to(taps.dtype)
        if x.device.type != "cpu" or self.num_classes >= _WIDE_ENOUGH:
            weight = taps.view(3, 3, self.num_classes, -1).permute(2, 3, 0, 1)
            return F.conv2d(x, weight, padding=1).float()
        n, _, height, width = x.shape
        rows = x.flatten(2)  # of channels-last a view, whose transpose is the matrix that lies in memory
        planes = torch.bmm(taps.expand(n, -1, -1), rows).float().view(n, 3, 3, self.num_classes, height, width)
        planes = F.pad(planes, (1, 1, 1, 1))
        shifted = [planes[:, y, x, :, y : y + height, x : x + width] for y in range(3) for x in range(3)]
        return sum(shifted[1:], shifted[0])


_WIDE_ENOUGH = 8  # output channels that a convolution is fast with


class SkipFusion(nn.Module):
    """A coarse map brought to the size of a finer one, the skip, and merged with it.

    Args:
        in_channels: Channels of the coarse map ``[N, in_channels, h, w]``.
        skip_channels: Channels of the skip ``[N, skip_channels, H, W]``; of several skips all together with "concat",
            each with "add". 0: only the size of the skip counts, nothing is merged.
        fusion: ``"concat"``, or ``"add"``: the coarse map is then brought to ``skip_channels`` too, where they differ
            by a 1×1 convolution if the upsampling has none of its own.
        upsample: ``"bilinear"`` or ``"nearest"`` interpolation; ``"transposed"``, a convolution as wide as its stride;
            or ``"pixel_shuffle"``, a 1×1 convolution whose channels become pixels and which starts as nearest
            interpolation. The last two halve the channels, as U-Net's up-convolution (with "add" they give
            ``skip_channels``).
        align_corners: Of ``"bilinear"``: see ``segzoo.ops.resize_to``.
        scale: H / h, for the last two. What they give too much is cropped at the bottom and the right, a missing last
            row or column repeats the one before; where the sizes are not of that ratio, the map is resized.

    Attributes:
        out_channels: Channels of the result ``[N, out_channels, H, W]``.

    Raises:
        ValueError: For an unknown ``fusion`` or ``upsample``, with the nearest name, or a ``scale`` below 1.

    State-dict keys: ``up.*``; none where nothing is learned.

    Source: Ronneberger et al., "U-Net", 2015 (arXiv 1505.04597), Fig. 1: copy and crop, up-conv 2×2. Shi et al., 2016
    (arXiv 1609.05158), Eq. 4: pixel shuffle; Aitken et al., 2017 (arXiv 1707.02937), Section 4: its initialisation.

    Examples:
        >>> fuse = SkipFusion(64, 16, upsample="transposed")
        >>> fuse(torch.zeros(1, 64, 3, 4), torch.zeros(1, 16, 5, 8)).shape, fuse.out_channels
        (torch.Size([1, 48, 5, 8]), 48)
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        *,
        fusion: Fusion = "concat",
        upsample: Upsampling = "bilinear",
        align_corners: bool = False,
        scale: int = 2,
    ) -> None:
        super().__init__()
        for kind, given, known in (("fusion", fusion, Fusion), ("upsample", upsample, Upsampling)):
            if given not in get_args(known):
                raise unknown_name(kind, given, get_args(known))
        if scale < 1:
            raise ValueError(f"scale must be at least 1, got {scale}")
        self.skip_channels = skip_channels
        self.fusion = fusion
        self.upsample = upsample
        self.align_corners = align_corners
        self.scale = scale
        adds = fusion == "add" and skip_channels > 0
        halved = in_channels if upsample in ("bilinear", "nearest") else max(1, in_channels // 2)
        channels = skip_channels if adds else halved
        self.out_channels = channels if adds else channels + skip_channels
        self.up = _upsampling(upsample, in_channels, channels, scale)

    def forward(self, x: Tensor, skip: Tensor, *more: Tensor) -> Tensor:
        """``x`` ``[N, in_channels, h, w]`` and skips of one size ``[N, …, H, W]`` to ``[N, out_channels, H, W]``."""
        x = self.up(x)
        if self.upsample in ("bilinear", "nearest"):
            x = resize_to(x, skip, self.upsample, align_corners=self.align_corners)
        else:
            x = crop_to(x, skip, self.scale)
        if self.skip_channels == 0:
            return x
        if self.fusion == "concat":
            return torch.cat([x, skip, *more], 1)
        return sum(more, x + skip)


def _upsampling(kind: Upsampling, in_channels: int, channels: int, scale: int) -> nn.Module:
    """What is learned of an upsampling."""
    if kind == "transposed":
        return nn.ConvTranspose2d(in_channels, channels, scale, stride=scale)
    if kind == "pixel_shuffle":
        conv = nn.Conv2d(in_channels, channels * scale**2, 1)
        with torch.no_grad():  # the scale² channels that make one start equal, so that no checkerboard shows
            for parameter in conv.parameters():
                parameter.copy_(parameter[:: scale**2].repeat_interleave(scale**2, 0))
        return nn.Sequential(conv, nn.PixelShuffle(scale))
    return nn.Identity() if channels == in_channels else nn.Conv2d(in_channels, channels, 1)
