"""Mix Transformers (MiT), SegFormer's encoders.

Source: Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers", 2021
(arXiv 2105.15203), Section 3.1 and Table 6.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segzoo._errors import unknown_name
from segzoo.encoders.base import Encoder
from segzoo.weights.adapt import adapt_state_dict
from segzoo.weights.convert import read_state_dict
from segzoo.weights.hub import hub_file
from segzoo.weights.segformer_keys import mit_from_others

__all__ = ["VARIANTS", "MiT", "Variant"]


class Variant(NamedTuple):
    """One row of the paper's Table 6, by stages."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...] = (1, 2, 5, 8)
    reductions: tuple[int, ...] = (8, 4, 2, 1)  # of the keys' and values' map, per side


VARIANTS = {
    "mit_b0": Variant((32, 64, 160, 256), (2, 2, 2, 2)),
    "mit_b1": Variant((64, 128, 320, 512), (2, 2, 2, 2)),
    "mit_b2": Variant((64, 128, 320, 512), (3, 4, 6, 3)),
    "mit_b3": Variant((64, 128, 320, 512), (3, 4, 18, 3)),
    "mit_b4": Variant((64, 128, 320, 512), (3, 8, 27, 3)),
    "mit_b5": Variant((64, 128, 320, 512), (3, 6, 40, 3)),
}
EXPANSION = 4  # of the Mix-FFN: in all of the authors' code and checkpoints


class MiT(Encoder):
    """A Mix Transformer: maps ``[N, C, ⌈H/s⌉, ⌈W/s⌉]`` at strides s of 4, 8, 16 and 32, from any H, W ≥ 1.

    Its norms are layer norms, part of the architecture; their ε is torch's 1e-5, as in transformers (the authors' code
    has 1e-6 in the blocks and after each stage). Where a map is smaller than the kernel that makes fewer keys of it (a
    side below 29 pixels), it is padded to it with zeros; of larger ones, what does not fill a kernel gives no keys, as
    in the authors' code.

    Args:
        name: ``"mit_b0"`` … ``"mit_b5"``, or a ``Variant`` of your own.
        weights: ``"imagenet"``, the path of a file with a MiT in it (in transformers', NVIDIA's or our keys, with or
            without a head), or None: random initialisation. The ImageNet weights come from the Hugging Face Hub
            (``nvidia/mit-b0`` …) under the NVIDIA Source Code License: **for non-commercial use only**.
        in_channels: Input channels; another number than the weights' adapts the first convolution.
        drop_path_rate: Stochastic depth: the last block's chance to be left out in training, falling linearly to 0 at
            the first.

    Raises:
        ValueError: For an unknown name, with the nearest one, or a file that does not fit, with the keys.
        ConnectionError: If the ImageNet weights are not on this machine and could not be downloaded.

    Source: arXiv 2105.15203, Section 3.1 and Table 6.

    Examples:
        >>> encoder = MiT("mit_b0", in_channels=4)
        >>> [list(y.shape) for y in encoder(torch.zeros(1, 4, 33, 64))]
        [[1, 32, 9, 16], [1, 64, 5, 8], [1, 160, 3, 4], [1, 256, 2, 2]]
    """

    def __init__(
        self,
        name: str | Variant = "mit_b0",
        *,
        weights: str | os.PathLike[str] | None = None,
        in_channels: int = 3,
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__()
        variant = _variant(name)
        self.in_channels = in_channels
        self.channels = variant.widths
        self.strides = tuple(4 * 2**i for i in range(len(variant.widths)))
        rates = torch.linspace(0, drop_path_rate, sum(variant.depths), device="cpu").tolist()
        stages = []
        for i, (width, depth, heads, reduction) in enumerate(zip(*variant)):
            stages.append(Stage(in_channels, width, i == 0, heads, reduction, rates[:depth]))
            in_channels, rates = width, rates[depth:]
        self.stages = nn.ModuleList(stages)
        self.apply(_initialise)
        if weights is not None:
            state = mit_from_others(read_state_dict(_download(name) if weights == "imagenet" else weights))
            origin = f"{name}.imagenet" if weights == "imagenet" else os.fspath(weights)
            self.load_state_dict(adapt_state_dict(state, self.state_dict(), heads=(), stem=self.stem, origin=origin))

    def forward(self, x: Tensor) -> list[Tensor]:
        """``[N, in_channels, H, W]`` to the four maps, the finest first."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Stage(nn.Module):
    """Overlapping patches, transformer blocks, a norm: ``[N, in_channels, H, W]`` to ``[N, width, ⌈H/s⌉, ⌈W/s⌉]``.

    In between, maps are ``[N, H, W, C]``, which linear layers and layer norms take as it is.

    Args:
        in_channels: Channels of the input.
        width: Channels of the output.
        first: Whether it reads the picture: then s is 4, else 2.
        heads: Of each attention.
        reduction: Of the keys' and values' map, per side.
        drop_path: Each block's chance to be left out.
    """

    def __init__(
        self, in_channels: int, width: int, first: bool, heads: int, reduction: int, drop_path: Sequence[float]
    ) -> None:
        super().__init__()
        self.embed = PatchEmbedding(in_channels, width, *((7, 4) if first else (3, 2)))
        self.blocks = nn.Sequential(*(Block(width, heads, reduction, rate) for rate in drop_path))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W]`` to ``[N, width, ⌈H/s⌉, ⌈W/s⌉]``."""
        y: Tensor = self.norm(self.blocks(self.embed(x)))
        return y.permute(0, 3, 1, 2)


class PatchEmbedding(nn.Module):
    """A strided convolution, whose patches overlap, and a norm: ``[N, C, H, W]`` to ``[N, ⌈H/s⌉, ⌈W/s⌉, width]``."""

    def __init__(self, in_channels: int, width: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel_size, stride=stride, padding=kernel_size // 2)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in_channels, H, W]`` to ``[N, ⌈H/stride⌉, ⌈W/stride⌉, width]``."""
        y: Tensor = self.norm(self.proj(x).permute(0, 2, 3, 1))
        return y


class Block(nn.Module):
    """Attention and Mix-FFN, each normed before and added to its input; keeps ``[N, H, W, width]``."""

    def __init__(self, width: int, heads: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        from timm.layers.drop import DropPath

        self.norm1 = nn.LayerNorm(width)
        self.attn = EfficientAttention(width, heads, reduction)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MixFFN(width, EXPANSION * width)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``[N, H, W, width]`` to the same."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        y: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return y


class EfficientAttention(nn.Module):
    """Self-attention from every pixel to a map of keys and values that is smaller by ``reduction`` per side.

    Args:
        width: C of the input ``[N, H, W, C]``.
        heads: Divides ``width``.
        reduction: 1 is plain self-attention.

    Source: arXiv 2105.15203, Section 3.1, equations 1 and 2.

    Examples:
        >>> EfficientAttention(8, heads=2, reduction=4)(torch.zeros(1, 5, 2, 8)).shape
        torch.Size([1, 5, 2, 8])
    """

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} cannot be split into {heads} heads")
        self.heads = heads
        self.reduction = reduction
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        if reduction > 1:
            self.sr = nn.Conv2d(width, width, reduction, stride=reduction)
            self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, H, W, C]`` to the same."""
        q = self._split(self.q(x))
        k, v = (self._split(y) for y in self.kv(self._reduce(x)).chunk(2, -1))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        out: Tensor = self.proj(y)
        return out

    def _split(self, x: Tensor) -> Tensor:
        """``[N, H, W, C]`` to ``[N, heads, H·W, C/heads]``."""
        heads: Tensor = x.flatten(1, 2).unflatten(-1, (self.heads, -1))
        return heads.transpose(1, 2)

    def _reduce(self, x: Tensor) -> Tensor:
        if self.reduction == 1:
            return x
        height, width = x.shape[1:3]
        if height < self.reduction or width < self.reduction:
            x = F.pad(x, (0, 0, 0, max(0, self.reduction - width), 0, max(0, self.reduction - height)))
        reduced: Tensor = self.norm(self.sr(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return reduced


class MixFFN(nn.Module):
    """Two linear layers with a depthwise 3×3 convolution in between, which tells where a pixel is by its padding.

    Args:
        width: C of the input ``[N, H, W, C]``.
        hidden: Channels in between.

    Source: arXiv 2105.15203, Section 3.1, equation 3.

    Examples:
        >>> MixFFN(8, 32)(torch.zeros(1, 5, 2, 8)).shape
        torch.Size([1, 5, 2, 8])
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, H, W, C]`` to the same."""
        hidden = self.dwconv(self.fc1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y: Tensor = self.fc2(F.gelu(hidden))
        return y


def _variant(name: str | Variant) -> Variant:
    if not isinstance(name, Variant):
        if not isinstance(name, str) or name not in VARIANTS:
            raise unknown_name("encoder", name, VARIANTS)
        return VARIANTS[name]
    if len({len(values) for values in name}) != 1:
        raise ValueError(f"a Variant has one value of each kind per stage, got {name}")
    return name


def _initialise(module: nn.Module) -> None:
    """As the authors do: linear layers from a truncated normal of 0.02, convolutions by He's rule on their outputs."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d) and module.bias is not None:
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        nn.init.zeros_(module.bias)


def _download(name: str | Variant) -> Path:
    """The file of NVIDIA's ImageNet weights, from the Hub's cache or the Hub."""
    if not isinstance(name, str):
        raise ValueError(f"there are no ImageNet weights of {name}: pass encoder_weights=None, or the path of a file")
    repository = f"nvidia/{name.replace('_', '-')}"
    try:
        try:
            return hub_file(repository, "model.safetensors")
        except FileNotFoundError:
            return hub_file(repository, "pytorch_model.bin")
    except OSError as error:
        raise ConnectionError(
            f"could not get the ImageNet weights {repository} from the Hugging Face Hub ({error}); "
            "pass encoder_weights=None, or the path of a file"
        ) from error
