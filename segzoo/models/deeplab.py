"""DeepLabV3, as torchvision has it, and DeepLabV3+ on any encoder.

Source: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017 (arXiv 1706.05587), and
"Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", 2018 (arXiv 1802.02611).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segzoo.encoders import Encoder, MobileNetV3Encoder, ResNetEncoder, get_encoder
from segzoo.layers.aspp import ASPP
from segzoo.layers.conv import conv_norm_act
from segzoo.layers.norm import Norm
from segzoo.models.base import EncoderModel, build_model, check_positive
from segzoo.models.fcn import BackboneModel
from segzoo.ops import resize_to
from segzoo.registry import register_model
from segzoo.weights.catalog import SEMANTIC_PREPROCESSING
from segzoo.weights.smp_keys import deeplabv3plus_from_smp, has_timm_encoder, is_smp

__all__ = [
    "DeepLabV3",
    "DeepLabV3Plus",
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "deeplabv3plus",
]


class DeepLabV3(BackboneModel):
    """DeepLabV3: a dilated backbone and atrous spatial pyramid pooling.

    Args:
        encoder: ``"mobilenet_v3_large"`` or a torchvision ResNet: ``"resnet50"``, ``"resnet101"`` …
        encoder_weights: ``"imagenet"``, a path, or None.
        aux: Whether there is an auxiliary head on an earlier map.
        output_stride: None means 8 for a ResNet, 16 for the MobileNet.
        rates: Of the dilated convolutions: the paper's are (6, 12, 18) at output stride 16, twice that at 8;
            torchvision takes (12, 24, 36) for all.
        dropout: In the pooling's projection.
        num_classes: Output channels.
        in_channels: Input channels.
        norm: See ``segzoo.layers.get_norm``.
        multilabel: Whether classes may overlap: probabilities are then a sigmoid each.

    State-dict keys: torchvision's.

    Source: arXiv 1706.05587, Fig. 5.

    Examples:
        >>> DeepLabV3("mobilenet_v3_large", num_classes=5).eval()(torch.zeros(1, 3, 33, 47)).shape
        torch.Size([1, 5, 33, 47])
    """

    def __init__(
        self,
        encoder: str = "resnet50",
        *,
        encoder_weights: str | os.PathLike[str] | None = None,
        aux: bool = True,
        output_stride: int | None = None,
        rates: Sequence[int] = (12, 24, 36),
        dropout: float = 0.5,
        num_classes: int = 21,
        in_channels: int = 3,
        norm: Norm = "batch",
        multilabel: bool = False,
    ) -> None:
        check_positive(num_classes=num_classes, in_channels=in_channels)
        common: dict[str, Any] = {"weights": encoder_weights, "in_channels": in_channels, "norm": norm}
        backbone: Encoder
        if isinstance(encoder, str) and encoder == "mobilenet_v3_large":
            backbone = MobileNetV3Encoder(output_stride=16 if output_stride is None else output_stride, **common)
            aux_map = 2
        else:
            backbone = ResNetEncoder(encoder, output_stride=8 if output_stride is None else output_stride, **common)
            aux_map = 3
        channels = 256
        head = nn.Sequential(
            ASPP(backbone.channels[-1], rates, channels, norm=norm, dropout=dropout),
            *conv_norm_act(channels, channels, norm=norm),
            nn.Conv2d(channels, num_classes, 1),
        )
        super().__init__(
            backbone,
            head,
            aux_map if aux else None,
            num_classes=num_classes,
            in_channels=in_channels,
            norm=norm,
            multilabel=multilabel,
        )


class DeepLabV3Plus(EncoderModel):
    """DeepLabV3+: separable ASPP on the last map, fused with the map at stride 4.

    Args:
        encoder: A timm name or an ``Encoder``.
        encoder_weights: ``"imagenet"``, a path, or None.
        output_stride: 16 or 8 (or 32: no dilation).
        rates: Of ASPP. None means the paper's: (6, 12, 18) at output stride 16, twice that at 8.
        decoder_channels: Of ASPP and of the decoder.
        skip_channels: That the map at stride 4 is reduced to.
        dropout: In ASPP's projection.
        align_corners: Of all resizing, see ``segzoo.ops.resize_to``. None means False.
        dilate_first: See ``segzoo.encoders.TimmEncoder``. None means False.
        num_classes: Output channels.
        in_channels: Input channels.
        norm: See ``segzoo.layers.get_norm``.
        multilabel: Whether classes may overlap: probabilities are then a sigmoid each.

    Source: arXiv 1802.02611, Fig. 2; the decoder has one separable convolution before and one after the fusion.

    Examples:
        >>> model = DeepLabV3Plus("resnet10t", decoder_channels=16, num_classes=5).eval()
        >>> model(torch.zeros(1, 3, 33, 47)).shape
        torch.Size([1, 5, 33, 47])
    """

    heads = ("head.",)
    default_num_classes = 21
    default_preprocessing = SEMANTIC_PREPROCESSING

    def __init__(
        self,
        encoder: str | Encoder = "resnet50",
        *,
        encoder_weights: str | os.PathLike[str] | None = None,
        output_stride: int = 16,
        rates: Sequence[int] | None = None,
        decoder_channels: int = 256,
        skip_channels: int = 48,
        dropout: float = 0.5,
        align_corners: bool | None = None,
        dilate_first: bool | None = None,
        num_classes: int = 21,
        in_channels: int = 3,
        norm: Norm = "batch",
        multilabel: bool = False,
    ) -> None:
        super().__init__(num_classes, in_channels, multilabel=multilabel)
        check_positive(decoder_channels=decoder_channels, skip_channels=skip_channels)
        self.encoder = get_encoder(
            encoder,
            weights=encoder_weights,
            in_channels=in_channels,
            norm=norm,
            output_stride=output_stride,
            dilate_first=bool(dilate_first),
        )
        if 4 not in self.encoder.strides:
            raise ValueError(f"DeepLabV3+ needs an encoder with a map at stride 4, this one has {self.encoder.strides}")
        self.skip = self.encoder.strides.index(4)
        self.encoder.train_for((self.skip, -1))
        self.align_corners = bool(align_corners)
        if rates is None:
            rates = (12, 24, 36) if self.encoder.strides[-1] == 8 else (6, 12, 18)
        channels = decoder_channels
        self.aspp = ASPP(self.encoder.channels[-1], rates, channels, separable=True, norm=norm, dropout=dropout)
        self.refine = conv_norm_act(channels, channels, separable=True, norm=norm)
        self.reduce = conv_norm_act(self.encoder.channels[self.skip], skip_channels, 1, norm=norm)
        self.fuse = conv_norm_act(skip_channels + channels, channels, separable=True, norm=norm)
        self.head = nn.Conv2d(channels, num_classes, 1)

    @classmethod
    def convert(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """segmentation_models_pytorch's ``DeepLabV3Plus`` in our keys; ours come back as they are."""
        return deeplabv3plus_from_smp(state) if is_smp(state) else dict(state)

    @classmethod
    def implied(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """What segmentation_models_pytorch does otherwise than the paper."""
        if not is_smp(state):
            return {}
        return {"rates": (12, 24, 36), "align_corners": True, "dilate_first": not has_timm_encoder(state)}

    def decode(self, features: list[Tensor], x: Tensor) -> list[Tensor]:
        """Logits at stride 4."""
        skip = self.reduce(features[self.skip])
        coarse = resize_to(self.refine(self.aspp(features[-1])), skip, align_corners=self.align_corners)
        return [self.head(self.fuse(torch.cat([coarse, skip], 1)))]


@register_model("semantic")
def deeplabv3_resnet50(
    weights: str | os.PathLike[str] | None = "coco_voc",
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    norm: Norm = "batch",
    aux: bool = True,
    output_stride: int = 8,
    rates: Sequence[int] = (12, 24, 36),
    dropout: float = 0.5,
    encoder_weights: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> DeepLabV3:
    """DeepLabV3 on ResNet-50, by default with torchvision's weights: COCO pictures, Pascal VOC's 21 classes.

    Args:
        weights: ``"coco_voc"``, ``"hf-hub:org/repo[@revision]"``, ``"local-dir:PATH"``, a path (torchvision's own files
            load as they are), or None: random initialisation.
        num_classes: None means the checkpoint's, or 21. Another number starts the heads' last layers afresh.
        in_channels: Another number than 3 adapts the first convolution.
        norm: Another than ``"batch"`` keeps γ and β, drops the statistics, and warns.
        aux: Whether there is an auxiliary head on the third stage; in train mode its logits come second.
        output_stride: 8, 16 or 32.
        rates: Of the dilated convolutions.
        dropout: In the pooling's projection.
        encoder_weights: With ``weights=None``: ``"imagenet"``, a path, or None.
        progress: Whether a download shows a progress bar.

    Raises:
        ValueError: For unknown weights, with the nearest name, or a file that does not fit, with the keys.
        ConnectionError: If weights are not on this machine and could not be downloaded.

    Source: arXiv 1706.05587, Fig. 5; torchvision's ``deeplabv3_resnet50``.

    Examples:
        >>> deeplabv3_resnet50(weights=None, norm="evo_s0", num_classes=19).num_classes
        19
    """
    return build_model(
        DeepLabV3,
        "deeplabv3_resnet50",
        weights,
        encoder="resnet50",
        encoder_weights=encoder_weights,
        aux=aux,
        output_stride=output_stride,
        rates=rates,
        dropout=dropout,
        num_classes=num_classes,
        in_channels=in_channels,
        norm=norm,
        progress=progress,
    )


@register_model("semantic")
def deeplabv3_resnet101(
    weights: str | os.PathLike[str] | None = "coco_voc",
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    norm: Norm = "batch",
    aux: bool = True,
    output_stride: int = 8,
    rates: Sequence[int] = (12, 24, 36),
    dropout: float = 0.5,
    encoder_weights: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> DeepLabV3:
    """DeepLabV3 on ResNet-101; arguments, errors and source as of ``deeplabv3_resnet50``.

    Examples:
        >>> deeplabv3_resnet101(weights=None, output_stride=16).encoder.strides
        (2, 4, 8, 16, 16)
    """
    return build_model(
        DeepLabV3,
        "deeplabv3_resnet101",
        weights,
        encoder="resnet101",
        encoder_weights=encoder_weights,
        aux=aux,
        output_stride=output_stride,
        rates=rates,
        dropout=dropout,
        num_classes=num_classes,
        in_channels=in_channels,
        norm=norm,
        progress=progress,
    )


@register_model("semantic")
def deeplabv3_mobilenet_v3_large(
    weights: str | os.PathLike[str] | None = "coco_voc",
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    norm: Norm = "batch",
    aux: bool = True,
    output_stride: int = 16,
    rates: Sequence[int] = (12, 24, 36),
    dropout: float = 0.5,
    encoder_weights: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> DeepLabV3:
    """DeepLabV3 on MobileNetV3-Large (output stride 16 or 32); else as ``deeplabv3_resnet50``.

    Examples:
        >>> deeplabv3_mobilenet_v3_large(weights=None).encoder.strides
        (2, 4, 8, 16, 16)
    """
    return build_model(
        DeepLabV3,
        "deeplabv3_mobilenet_v3_large",
        weights,
        encoder="mobilenet_v3_large",
        encoder_weights=encoder_weights,
        aux=aux,
        output_stride=output_stride,
        rates=rates,
        dropout=dropout,
        num_classes=num_classes,
        in_channels=in_channels,
        norm=norm,
        progress=progress,
    )


@register_model("semantic")
def deeplabv3plus(
    encoder: str | Encoder = "resnet50",
    *,
    encoder_weights: str | os.PathLike[str] | None = "imagenet",
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    in_channels: int = 3,
    norm: Norm = "batch",
    output_stride: int = 16,
    rates: Sequence[int] | None = None,
    decoder_channels: int = 256,
    skip_channels: int = 48,
    dropout: float = 0.5,
    align_corners: bool | None = None,
    dilate_first: bool | None = None,
    progress: bool = True,
) -> DeepLabV3Plus:
    """DeepLabV3+ on any encoder.

    Args:
        encoder: A timm name, ``"mit_b0"`` … (with ``output_stride=32``), or a ``segzoo.encoders.Encoder``.
        encoder_weights: ``"imagenet"`` (timm's, downloaded on first use), a path, or None: random initialisation.
        weights: ``"hf-hub:org/repo[@revision]"``, ``"local-dir:PATH"``, a path, or None. A state dict of
            segmentation_models_pytorch's ``DeepLabV3Plus`` is converted, and what it does otherwise (``rates``,
            ``align_corners``, ``dilate_first``) is done likewise unless given.
        num_classes: None means the checkpoint's, or 21.
        in_channels: Input channels.
        norm: See ``segzoo.layers.get_norm``.
        output_stride: 16 or 8 (or 32: no dilation).
        rates: Of ASPP. None means the paper's: (6, 12, 18) at output stride 16, twice that at 8.
        decoder_channels: Of ASPP and of the decoder.
        skip_channels: That the map at stride 4 is reduced to.
        dropout: In ASPP's projection.
        align_corners: Of all resizing. None means False.
        dilate_first: Whether the first block of a dilated stage is dilated too. None means False.
        progress: Whether a download shows a progress bar.

    Raises:
        ValueError: For an unknown encoder, with the nearest name, or weights that do not fit.
        ConnectionError: If weights could not be downloaded.

    Source: arXiv 1802.02611, Fig. 2.

    Examples:
        >>> model = deeplabv3plus("mobilenetv3_small_050", encoder_weights=None, output_stride=8)
        >>> model.encoder.strides
        (2, 4, 8, 8, 8)
    """
    return build_model(
        DeepLabV3Plus,
        "deeplabv3plus",
        weights,
        encoder=encoder,
        encoder_weights=encoder_weights,
        output_stride=output_stride,
        rates=rates,
        decoder_channels=decoder_channels,
        skip_channels=skip_channels,
        dropout=dropout,
        align_corners=align_corners,
        dilate_first=dilate_first,
        num_classes=num_classes,
        in_channels=in_channels,
        norm=norm,
        progress=progress,
    )
