"""U-Net: the network of 2015, and its decoder on any encoder.

Source: Ronneberger, Fischer & Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", 2015
(arXiv 1505.04597), Fig. 1.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn

from segzoo.encoders import Encoder, get_encoder
from segzoo.layers import ConvNormAct, SkipFusion
from segzoo.layers.fusion import Fusion, Upsampling
from segzoo.layers.norm import Norm
from segzoo.models.base import EncoderModel, build_model, check_positive
from segzoo.registry import register_model
from segzoo.weights.catalog import SEMANTIC_PREPROCESSING
from segzoo.weights.smp_keys import is_smp, unet_from_smp

__all__ = ["UNet", "UNetEncoder", "unet"]


class DoubleConv(nn.Sequential):
    """Two 3×3 convolutions, each with its norm and ReLU: a blue box of the paper's Fig. 1 and the next.

    Args:
        in_channels: Channels of the input ``[N, in_channels, H, W]``.
        out_channels: Channels of the output ``[N, out_channels, H, W]``.
        norm: See ``segzoo.layers.get_norm``.
    """

    def __init__(self, in_channels: int, out_channels: int, *, norm: Norm = "batch") -> None:
        blocks = [ConvNormAct(channels, out_channels, norm=norm) for channels in (in_channels, out_channels)]
        super().__init__(*blocks)
        for block in blocks:  # the paper's Section 3: a Gaussian of variance 2 / incoming nodes
            nn.init.kaiming_normal_(block.conv.weight, nonlinearity="relu")


class UNetEncoder(Encoder):
    """The contracting path of the 2015 U-Net: two 3×3 convolutions a level, 2×2 max pooling from one to the next.

    Args:
        in_channels: Input channels.
        channels: Of each level.
        norm: See ``segzoo.layers.get_norm``.

    Source: arXiv 1505.04597, Fig. 1, the left half.

    Examples:
        >>> import torch
        >>> [list(y.shape) for y in UNetEncoder(1, (8, 16, 32))(torch.zeros(1, 1, 21, 40))]
        [[1, 8, 21, 40], [1, 16, 11, 20], [1, 32, 6, 10]]
    """

    def __init__(
        self, in_channels: int = 3, channels: Sequence[int] = (64, 128, 256, 512, 1024), *, norm: Norm = "batch"
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.channels = tuple(channels)
        self.strides = tuple(2**level for level in range(len(channels)))
        self.blocks = nn.ModuleList(DoubleConv(i, o, norm=norm) for i, o in pairwise((in_channels, *channels)))
        self.pool = nn.MaxPool2d(2, ceil_mode=True)

    def forward(self, x: Tensor) -> list[Tensor]:
        """``[N, in_channels, H, W]`` to the maps, the finest first."""
        maps: list[Tensor] = []
        for block in self.blocks:
            maps.append(block(self.pool(maps[-1]) if maps else x))
        return maps


class UNetBlock(nn.Module):
    """One step up the U: upsampling, fusion with the skip, two 3×3 convolutions.

    Args:
        in_channels: Channels of the coarser map ``[N, in_channels, h, w]``.
        skip_channels: Channels of the skip ``[N, skip_channels, H, W]``; 0: there is none, and only its size counts.
        out_channels: Channels of the output ``[N, out_channels, H, W]``.
        upsample: See ``segzoo.layers.SkipFusion``.
        fusion: See ``segzoo.layers.SkipFusion``.
        scale: H / h, as far as the upsampling is learned.
        norm: See ``segzoo.layers.get_norm``.
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        *,
        upsample: Upsampling = "nearest",
        fusion: Fusion = "concat",
        scale: int = 2,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        self.fuse = SkipFusion(in_channels, skip_channels, fusion=fusion, upsample=upsample, scale=scale)
        self.convs = DoubleConv(self.fuse.out_channels, out_channels, norm=norm)

    def forward(self, x: Tensor, *skips: Tensor) -> Tensor:
        """The coarser map and the skips, which all have one size, to ``[N, out_channels, H, W]``."""
        out: Tensor = self.convs(self.fuse(x, *skips))
        return out


def steps_up(strides: Sequence[int]) -> list[int]:
    """The strides a decoder passes on its way up: those of the encoder above its last, then halves, down to 1.

    Examples:
        >>> steps_up((4, 8, 16, 32)), steps_up((1, 2, 2))
        ([16, 8, 4, 2, 1], [2, 1])
    """
    steps = list(reversed(strides[:-1]))
    stride = strides[0]
    while stride > 1:
        stride //= 2
        steps.append(stride)
    return steps


def decoder_widths(channels: Sequence[int] | None, steps: Sequence[int]) -> tuple[int, ...]:
    """``channels`` if there is one for each step, or by default … 256, 128, 64, 32, 16.

    Examples:
        >>> decoder_widths(None, steps_up((2, 4, 8)))
        (64, 32, 16)
    """
    if channels is None:
        return tuple(16 * 2**k for k in reversed(range(len(steps))))
    widths = tuple(channels) if isinstance(channels, Sequence) else ()
    if len(widths) != len(steps) or not all(isinstance(width, int) and width > 0 for width in widths):
        raise ValueError(
            f"decoder_channels must be {len(steps)} positive ints, one for each step up to strides "
            f"{', '.join(map(str, steps))}; got {channels!r}"
        )
    return widths


class UNet(EncoderModel):
    """U-Net: the one of 2015, or its decoder on any encoder.

    Args:
        encoder: None is the 2015 network: 64 to 1024 channels, transposed 2×2 up-convolutions, a 1×1 head; its
            convolutions are padded here, so that the output has the input's size, and have batch norms, of which the
            paper knew nothing (``norm=None`` leaves them out). A timm name or an ``Encoder``: nearest upsampling and a
            3×3 head, as segmentation_models_pytorch has it.
        encoder_weights: ``"imagenet"``, a path, or None; there are none for the 2015 network.
        decoder_channels: Of the output of each step up, the coarsest first. None means 512, 256, 128, 64 (2015), or
            … 256, 128, 64, 32, 16 with 16 at the input's size.
        upsample: ``"bilinear"``, ``"nearest"``, ``"transposed"`` or ``"pixel_shuffle"``, see
            ``segzoo.layers.SkipFusion``. None means ``"transposed"`` (2015) or ``"nearest"``.
        fusion: ``"concat"`` or ``"add"``.
        base_channels: Of the 2015 network's first level; each level below has twice as many.
        dropout: Probability that a channel is left out before the head.
        num_classes: Output channels.
        in_channels: Input channels.
        norm: See ``segzoo.layers.get_norm``.
        multilabel: Whether classes may overlap: probabilities are then a sigmoid each.

    The decoder has a step for every map of the encoder but the last, and goes on without skips where the finest is not
    at the input's size. Maps of one size (a dilated encoder) are fused without upsampling.

    State-dict keys: ``encoder.*``, ``decoder.{step}.fuse.up.*``, ``decoder.{step}.convs.{0,1}.*``, ``head.*``.

    Source: arXiv 1505.04597, Fig. 1.

    Examples:
        >>> import torch
        >>> model = UNet("resnet10t", decoder_channels=(16, 8, 8, 8, 8), num_classes=5).eval()
        >>> model(torch.zeros(1, 3, 33, 47)).shape
        torch.Size([1, 5, 33, 47])
    """

    heads = ("head.",)
    default_num_classes = 21
    default_preprocessing = SEMANTIC_PREPROCESSING

    def __init__(
        self,
        encoder: str | Encoder | None = None,
        *,
        encoder_weights: str | os.PathLike[str] | None = None,
        decoder_channels: Sequence[int] | None = None,
        upsample: Upsampling | None = None,
        fusion: Fusion = "concat",
        base_channels: int = 64,
        dropout: float = 0.0,
        num_classes: int = 21,
        in_channels: int = 3,
        norm: Norm = "batch",
        multilabel: bool = False,
    ) -> None:
        super().__init__(num_classes, in_channels, multilabel=multilabel)
        check_positive(base_channels=base_channels)
        plain = encoder is None
        if plain and encoder_weights not in (None, "imagenet"):
            raise ValueError(f"the 2015 U-Net (encoder=None) takes no encoder_weights, got {encoder_weights!r}")
        if not plain and base_channels != 64:
            raise ValueError(f"base_channels is for the 2015 U-Net (encoder=None), got {base_channels} with an encoder")
        if encoder is None:
            encoder = UNetEncoder(in_channels, [base_channels * 2**level for level in range(5)], norm=norm)
        self.encoder = get_encoder(encoder, weights=encoder_weights, in_channels=in_channels, norm=norm)
        deepest, *skips = reversed(self.encoder.channels)
        self.steps = steps_up(self.encoder.strides)
        strides = [self.encoder.strides[-1], *self.steps]
        if plain and decoder_channels is None:
            decoder_channels = skips
        widths = [deepest, *decoder_widths(decoder_channels, self.steps)]
        self.decoder = nn.ModuleList(
            UNetBlock(
                widths[step],
                skips[step] if step < len(skips) else 0,
                widths[step + 1],
                upsample=upsample or ("transposed" if plain else "nearest"),
                fusion=fusion,
                scale=round(strides[step] / strides[step + 1]),
                norm=norm,
            )
            for step in range(len(self.steps))
        )
        self.dropout = nn.Dropout2d(dropout)
        kernel_size = 1 if plain else 3
        self.head = nn.Conv2d(widths[-1], num_classes, kernel_size, padding=kernel_size // 2)

    @classmethod
    def convert(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """segmentation_models_pytorch's ``Unet`` in our keys; ours come back as they are."""
        return unet_from_smp(state) if is_smp(state) else dict(state)

    def decode(self, features: list[Tensor], x: Tensor) -> list[Tensor]:
        """Logits at stride 1."""
        y, *skips = reversed(features)
        for step, block in enumerate(self.decoder):
            # Where there is no skip, a view of the input has the size that is wanted.
            stride = self.steps[step]
            y = block(y, skips[step] if step < len(skips) else x[..., ::stride, ::stride])
        return [self.head(self.dropout(y))]


@register_model("semantic")
def unet(
    encoder: str | Encoder | None = None,
    *,
    encoder_weights: str | os.PathLike[str] | None = "imagenet",
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    in_channels: int = 3,
    norm: Norm = "batch",
    dropout: float = 0.0,
    decoder_channels: Sequence[int] | None = None,
    upsample: Upsampling | None = None,
    fusion: Fusion = "concat",
    base_channels: int = 64,
    progress: bool = True,
) -> UNet:
    """U-Net: the one of 2015, or its decoder on any encoder.

    Args:
        encoder: None (the 2015 network), a timm name such as ``"resnet34"``, or a ``segzoo.encoders.Encoder``, a
            ``segzoo.layers.LateFusion`` of several included.
        encoder_weights: ``"imagenet"`` (timm's, downloaded on first use), a path, or None: random initialisation.
            There are none for the 2015 network, which always starts afresh.
        weights: ``"hf-hub:org/repo[@revision]"``, ``"local-dir:PATH"``, a path, or None. A state dict of
            segmentation_models_pytorch's ``Unet`` is converted.
        num_classes: None means the checkpoint's, or 21.
        in_channels: Input channels.
        norm: Of encoder and decoder. None, for the 2015 network, is the paper's: it had no norm.
        dropout: Probability that a channel is left out before the head.
        decoder_channels: Of the output of each step up, the coarsest first. None means (512, 256, 128, 64) for the
            2015 network, (256, 128, 64, 32, 16) for an encoder of stride 32.
        upsample: ``"bilinear"``, ``"nearest"``, ``"transposed"`` or ``"pixel_shuffle"``, see
            ``segzoo.layers.SkipFusion``. None means ``"transposed"`` for the 2015 network, else ``"nearest"``.
        fusion: ``"concat"`` or ``"add"``.
        base_channels: Of the 2015 network's first level.
        progress: Whether a download shows a progress bar.

    Raises:
        ValueError: For an unknown encoder, with the nearest name, or weights that do not fit, with the keys.
        ConnectionError: If weights could not be downloaded.

    Source: arXiv 1505.04597, Fig. 1.

    Examples:
        >>> model = unet(in_channels=1, num_classes=2, norm=None)
        >>> [block.convs[1].conv.out_channels for block in model.decoder]
        [512, 256, 128, 64]
    """
    return build_model(
        UNet,
        "unet",
        weights,
        encoder=encoder,
        encoder_weights=encoder_weights,
        decoder_channels=decoder_channels,
        upsample=upsample,
        fusion=fusion,
        base_channels=base_channels,
        dropout=dropout,
        num_classes=num_classes,
        in_channels=in_channels,
        norm=norm,
        progress=progress,
    )
