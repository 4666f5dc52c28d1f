"""PSPNet: a dilated encoder and pyramid pooling.

Source: Zhao et al., "Pyramid Scene Parsing Network", 2016 (arXiv 1612.01105).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from segzoo.encoders import Encoder, get_encoder
from segzoo.layers.conv import ConvNormAct
from segzoo.layers.norm import Norm
from segzoo.layers.ppm import PyramidPooling
from segzoo.models.base import EncoderModel, build_model, check_positive
from segzoo.models.fcn import FCNHead
from segzoo.registry import register_model
from segzoo.weights.catalog import SEMANTIC_PREPROCESSING
from segzoo.weights.smp_keys import is_smp, pspnet_depth, pspnet_from_smp

__all__ = ["PSPNet", "pspnet"]


class PSPNet(EncoderModel):
    """PSPNet: pyramid pooling on the last map, an auxiliary head on the one before.

    Args:
        encoder: A timm name or an ``Encoder``.
        encoder_weights: ``"imagenet"``, a path, or None.
        encoder_depth: How many times the input is halved at most. None means 5.
        output_stride: Strides beyond it become dilations. None means the paper's 8.
        aux: Whether there is an auxiliary head. In train mode its logits come second; the paper's weight of their loss
            is 0.4.
        bins: Of the pyramid.
        decoder_channels: Of the convolution after the pooling.
        fuse_kernel_size: Of that convolution. None means the paper's 3.
        head_kernel_size: Of the last convolution. None means the paper's 1.
        dropout: Of whole channels, before the last convolution.
        align_corners: Of all resizing, see ``segzoo.ops.resize_to``. None means False.
        num_classes: Output channels.
        in_channels: Input channels.
        norm: See ``segzoo.layers.get_norm``.
        multilabel: Whether classes may overlap: probabilities are then a sigmoid each.

    Source: arXiv 1612.01105, Fig. 3 and (auxiliary loss) Fig. 4.

    Examples:
        >>> import torch
        >>> model = PSPNet("resnet10t", decoder_channels=16, num_classes=5)
        >>> [list(y.shape) for y in model(torch.zeros(1, 3, 33, 47))]
        [[1, 5, 33, 47], [1, 5, 33, 47]]
    """

    heads = ("head.", "aux_head.4.")
    optional = ("aux_head.",)
    default_num_classes = 21
    default_preprocessing = SEMANTIC_PREPROCESSING

    def __init__(
        self,
        encoder: str | Encoder = "resnet50",
        *,
        encoder_weights: str | os.PathLike[str] | None = None,
        encoder_depth: int | None = None,
        output_stride: int | None = None,
        aux: bool = True,
        bins: Sequence[int] = (1, 2, 3, 6),
        decoder_channels: int = 512,
        fuse_kernel_size: int | None = None,
        head_kernel_size: int | None = None,
        dropout: float = 0.1,
        align_corners: bool | None = None,
        num_classes: int = 21,
        in_channels: int = 3,
        norm: Norm = "batch",
        multilabel: bool = False,
    ) -> None:
        super().__init__(num_classes, in_channels, multilabel=multilabel)
        fuse_kernel_size = 3 if fuse_kernel_size is None else fuse_kernel_size
        head_kernel_size = 1 if head_kernel_size is None else head_kernel_size
        check_positive(
            decoder_channels=decoder_channels, fuse_kernel_size=fuse_kernel_size, head_kernel_size=head_kernel_size
        )
        self.encoder = get_encoder(
            encoder,
            weights=encoder_weights,
            in_channels=in_channels,
            norm=norm,
            depth=5 if encoder_depth is None else encoder_depth,
            output_stride=8 if output_stride is None else output_stride,
        )
        if aux and len(self.encoder.channels) < 2:
            raise ValueError("the auxiliary head needs an encoder with two maps or more: pass aux=False")
        self.encoder.train_for((-2, -1) if aux else (-1,))
        self.align_corners = bool(align_corners)
        self.pooling = PyramidPooling(self.encoder.channels[-1], bins, norm=norm, align_corners=self.align_corners)
        self.fuse = ConvNormAct(self.pooling.out_channels, decoder_channels, fuse_kernel_size, norm=norm)
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(decoder_channels, num_classes, head_kernel_size, padding=head_kernel_size // 2)
        self.aux_head = FCNHead(self.encoder.channels[-2], num_classes, norm=norm) if aux else None

    @classmethod
    def convert(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """segmentation_models_pytorch's ``PSPNet`` in our keys; ours come back as they are."""
        return pspnet_from_smp(state) if is_smp(state) else dict(state)

    @classmethod
    def implied(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """What segmentation_models_pytorch does otherwise than the paper."""
        if not is_smp(state):
            return {}
        depth = pspnet_depth(state)
        return {
            "encoder_depth": depth,
            "output_stride": 32,
            "fuse_kernel_size": 1,
            "head_kernel_size": 3,
            "align_corners": True,
        }

    def decode(self, features: list[Tensor], x: Tensor) -> list[Tensor]:
        """Logits at the strides of the encoder's maps."""
        logits = [self.head(self.dropout(self.fuse(self.pooling(features[-1]))))]
        if self.training and self.aux_head is not None:
            logits.append(self.aux_head(features[-2]))
        return logits


@register_model("semantic")
def pspnet(
    encoder: str | Encoder = "resnet50",
    *,
    encoder_weights: str | os.PathLike[str] | None = "imagenet",
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    in_channels: int = 3,
    norm: Norm = "batch",
    encoder_depth: int | None = None,
    output_stride: int | None = None,
    aux: bool = True,
    bins: Sequence[int] = (1, 2, 3, 6),
    decoder_channels: int = 512,
    fuse_kernel_size: int | None = None,
    head_kernel_size: int | None = None,
    dropout: float = 0.1,
    align_corners: bool | None = None,
    progress: bool = True,
) -> PSPNet:
    """PSPNet on any encoder.

    Args:
        encoder: A timm name, ``"mit_b0"`` … (with ``output_stride=32``), or a ``segzoo.encoders.Encoder``.
        encoder_weights: ``"imagenet"`` (timm's, downloaded on first use), a path, or None: random initialisation.
        weights: ``"hf-hub:org/repo[@revision]"``, ``"local-dir:PATH"``, a path, or None. A state dict of
            segmentation_models_pytorch's ``PSPNet`` is converted, and what it does otherwise (a shallow encoder, no
            dilation, kernel sizes, ``align_corners``) is done likewise unless given.
        num_classes: None means the checkpoint's, or 21.
        in_channels: Input channels.
        norm: See ``segzoo.layers.get_norm``.
        encoder_depth: How many times the input is halved at most. None means 5.
        output_stride: Strides beyond it become dilations. None means the paper's 8.
        aux: Whether there is an auxiliary head on the map before the last; in train mode its logits come second.
        bins: Of the pyramid.
        decoder_channels: Of the convolution after the pooling.
        fuse_kernel_size: Of that convolution. None means the paper's 3.
        head_kernel_size: Of the last convolution. None means the paper's 1.
        dropout: Of whole channels, before the last convolution.
        align_corners: Of all resizing. None means False.
        progress: Whether a download shows a progress bar.

    Raises:
        ValueError: For an unknown encoder, with the nearest name, or weights that do not fit.
        ConnectionError: If weights could not be downloaded.

    Source: arXiv 1612.01105, Fig. 3.

    Examples:
        >>> pspnet("resnet10t", encoder_weights=None, num_classes=11).encoder.strides
        (2, 4, 8, 8, 8)
    """
    return build_model(
        PSPNet,
        "pspnet",
        weights,
        encoder=encoder,
        encoder_weights=encoder_weights,
        encoder_depth=encoder_depth,
        output_stride=output_stride,
        aux=aux,
        bins=bins,
        decoder_channels=decoder_channels,
        fuse_kernel_size=fuse_kernel_size,
        head_kernel_size=head_kernel_size,
        dropout=dropout,
        align_corners=align_corners,
        num_classes=num_classes,
        in_channels=in_channels,
        norm=norm,
        progress=progress,
    )
