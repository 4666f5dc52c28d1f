"""U-Net++: a U-Net whose skips are U-Nets.

Source: Zhou et al., "UNet++: A Nested U-Net Architecture for Medical Image Segmentation", 2018 (arXiv 1807.10165),
Fig. 1.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn

from segzoo.encoders import Encoder, get_encoder
from segzoo.layers.fusion import Upsampling
from segzoo.layers.norm import Norm
from segzoo.models.base import EncoderModel, build_model
from segzoo.models.unet import UNetBlock, decoder_widths, steps_up
from segzoo.registry import register_model
from segzoo.weights.catalog import SEMANTIC_PREPROCESSING
from segzoo.weights.smp_keys import is_smp, unet_plusplus_from_smp

__all__ = ["UNetPlusPlus", "unet_plusplus"]


class UNetPlusPlus(EncoderModel):
    """U-Net++ on any encoder.

    The node X^{i,j}, on the i-th level from the finest, sees all nodes before it on its level and, upsampled, the one
    below: X^{i,0} … X^{i,j-1} and X^{i+1,j-1}. X^{i,0} are the encoder's maps. Nodes are as wide as the encoder's map
    of their level, but for the last of each level, which make up the decoder.

    Args:
        encoder: A timm name or an ``Encoder``.
        encoder_weights: ``"imagenet"``, a path, or None.
        decoder_channels: Of the last node of each level, the coarsest first, then of the steps that lead, without
            skips, from the finest map to the input's size. None means … 256, 128, 64, 32, 16.
        upsample: ``"bilinear"``, ``"nearest"``, ``"transposed"`` or ``"pixel_shuffle"``, see
            ``segzoo.layers.SkipFusion``.
        dropout: Probability that a channel is left out before the head.
        num_classes: Output channels.
        in_channels: Input channels.
        norm: See ``segzoo.layers.get_norm``.
        multilabel: Whether classes may overlap: probabilities are then a sigmoid each.

    As in segmentation_models_pytorch, there is one head, on the last node: the paper's deep supervision is left out.

    State-dict keys: ``encoder.*``, ``decoder.x_{i}_{j}.*``, ``tail.{step}.*``, ``head.*``.

    Source: arXiv 1807.10165, Fig. 1a and Eq. 1.

    Examples:
        >>> import torch
        >>> model = UNetPlusPlus("resnet10t", decoder_channels=(16, 8, 8, 8, 8), num_classes=5).eval()
        >>> model(torch.zeros(1, 3, 33, 47)).shape, sorted(model.decoder)[:5]
        (torch.Size([1, 5, 33, 47]), ['x_0_1', 'x_0_2', 'x_0_3', 'x_0_4', 'x_1_1'])
    """

    heads = ("head.",)
    default_num_classes = 21
    default_preprocessing = SEMANTIC_PREPROCESSING

    def __init__(
        self,
        encoder: str | Encoder = "resnet34",
        *,
        encoder_weights: str | os.PathLike[str] | None = None,
        decoder_channels: Sequence[int] | None = None,
        upsample: Upsampling = "nearest",
        dropout: float = 0.0,
        num_classes: int = 21,
        in_channels: int = 3,
        norm: Norm = "batch",
        multilabel: bool = False,
    ) -> None:
        super().__init__(num_classes, in_channels, multilabel=multilabel)
        self.encoder = get_encoder(encoder, weights=encoder_weights, in_channels=in_channels, norm=norm)
        channels, strides = self.encoder.channels, self.encoder.strides
        last = len(channels) - 1  # the coarsest level
        steps = steps_up(strides)
        widths = decoder_widths(decoder_channels, steps)

        def width(i: int, j: int) -> int:
            return widths[last - 1 - i] if j and i + j == last else channels[i]

        self.decoder = nn.ModuleDict(
            {
                f"x_{i}_{j}": UNetBlock(
                    width(i + 1, j - 1),
                    channels[i] * j,
                    width(i, j),
                    upsample=upsample,
                    scale=round(strides[i + 1] / strides[i]),
                    norm=norm,
                )
                for j in range(1, last + 1)
                for i in range(last + 1 - j)
            }
        )
        self.tail_strides = steps[last:]
        tail = zip(pairwise([width(0, last), *widths[last:]]), pairwise([strides[0], *self.tail_strides]))
        self.tail = nn.ModuleList(
            UNetBlock(before, 0, after, upsample=upsample, scale=round(coarse / fine), norm=norm)
            for (before, after), (coarse, fine) in tail
        )
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d([width(0, last), *widths[last:]][-1], num_classes, 3, padding=1)

    @classmethod
    def convert(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """segmentation_models_pytorch's ``UnetPlusPlus`` in our keys; ours come back as they are."""
        return unet_plusplus_from_smp(state) if is_smp(state) else dict(state)

    def decode(self, features: list[Tensor], x: Tensor) -> list[Tensor]:
        """Logits at stride 1."""
        nodes = [[feature] for feature in features]  # nodes[i][j] is X^{i,j}
        for j in range(1, len(features)):
            for i in range(len(features) - j):
                nodes[i].append(self.decoder[f"x_{i}_{j}"](nodes[i + 1][j - 1], *reversed(nodes[i])))
        y = nodes[0][-1]
        for block, stride in zip(self.tail, self.tail_strides):
            y = block(y, x[..., ::stride, ::stride])  # of the view, only the size counts
        return [self.head(self.dropout(y))]


@register_model("semantic")
def unet_plusplus(
    encoder: str | Encoder = "resnet34",
    *,
    encoder_weights: str | os.PathLike[str] | None = "imagenet",
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    in_channels: int = 3,
    norm: Norm = "batch",
    dropout: float = 0.0,
    decoder_channels: Sequence[int] | None = None,
    upsample: Upsampling = "nearest",
    progress: bool = True,
) -> UNetPlusPlus:
    """U-Net++ on any encoder.

    Args:
        encoder: A timm name, or a ``segzoo.encoders.Encoder``.
        encoder_weights: ``"imagenet"`` (timm's, downloaded on first use), a path, or None: random initialisation.
        weights: ``"hf-hub:org/repo[@revision]"``, ``"local-dir:PATH"``, a path, or None. A state dict of
            segmentation_models_pytorch's ``UnetPlusPlus`` is converted.
        num_classes: None means the checkpoint's, or 21.
        in_channels: Input channels.
        norm: Of encoder and decoder.
        dropout: Probability that a channel is left out before the head.
        decoder_channels: Of the last node of each level, the coarsest first, and of the steps after it. None means
            (256, 128, 64, 32, 16) for an encoder of stride 32.
        upsample: ``"bilinear"``, ``"nearest"``, ``"transposed"`` or ``"pixel_shuffle"``, see
            ``segzoo.layers.SkipFusion``.
        progress: Whether a download shows a progress bar.

    Raises:
        ValueError: For an unknown encoder, with the nearest name, or weights that do not fit, with the keys.
        ConnectionError: If weights could not be downloaded.

    Source: arXiv 1807.10165, Fig. 1.

    Examples:
        >>> len(unet_plusplus("resnet10t", encoder_weights=None).decoder)
        10
    """
    return build_model(
        UNetPlusPlus,
        "unet_plusplus",
        weights,
        encoder=encoder,
        encoder_weights=encoder_weights,
        decoder_channels=decoder_channels,
        upsample=upsample,
        dropout=dropout,
        num_classes=num_classes,
        in_channels=in_channels,
        norm=norm,
        progress=progress,
    )
