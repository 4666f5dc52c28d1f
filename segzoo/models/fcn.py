"""Fully convolutional networks: the first, on VGG-16, and torchvision's, on dilated ResNets.

Source: Long, Shelhamer & Darrell, "Fully Convolutional Networks for Semantic Segmentation", 2015 (arXiv 1411.4038).
"""

from __future__ import annotations

import os
from typing import ClassVar

import torch
from torch import Tensor, nn

from segzoo.encoders import Encoder, ResNetEncoder, TimmEncoder
from segzoo.layers.conv import conv_norm_act
from segzoo.layers.norm import Norm
from segzoo.models.base import EncoderModel, build_model, check_positive
from segzoo.ops import crop_to
from segzoo.registry import register_model
from segzoo.weights.catalog import SEMANTIC_PREPROCESSING

__all__ = ["FCN", "BackboneModel", "FCN8s", "FCNHead", "fcn8s", "fcn_resnet50", "fcn_resnet101"]


class FCNHead(nn.Sequential):
    """A 3×3 convolution to a quarter of the channels (or ``mid_channels``), dropout, and a 1×1 one to the classes.

    Args:
        in_channels: Channels of the input ``[N, in_channels, h, w]``.
        num_classes: Channels of the output ``[N, num_classes, h, w]``.
        norm: See ``segzoo.layers.get_norm``.
        dropout: Before the last convolution.
        mid_channels: None means ``in_channels // 4``.

    State-dict keys: torchvision's (``0``, ``1`` and ``4``).

    Examples:
        >>> FCNHead(64, 5).eval()(torch.zeros(1, 64, 3, 4)).shape
        torch.Size([1, 5, 3, 4])
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        norm: Norm = "batch",
        dropout: float = 0.1,
        mid_channels: int | None = None,
    ) -> None:
        mid = max(1, in_channels // 4) if mid_channels is None else mid_channels
        block = conv_norm_act(in_channels, mid, norm=norm)
        super().__init__(*block, nn.Dropout(dropout), nn.Conv2d(mid, num_classes, 1))


class BackboneModel(EncoderModel):
    """torchvision's layout: ``backbone``, ``classifier`` on its last map, ``aux_classifier`` on an earlier one.

    Args:
        backbone: The encoder.
        classifier: From the backbone's last map to logits.
        aux: Index of the map that the auxiliary head is on, or None: no such head.
        num_classes: Output channels.
        in_channels: Input channels.
        norm: Of the auxiliary head.
        multilabel: Whether classes may overlap: probabilities are then a sigmoid each.

    In eval mode ``model(x)`` gives logits ``[N, num_classes, H, W]``; in train mode, with an auxiliary head, the list
    ``[main, auxiliary]``.
    """

    heads: ClassVar[tuple[str, ...]] = ("classifier.4.", "aux_classifier.4.")
    optional: ClassVar[tuple[str, ...]] = ("aux_classifier.",)
    default_num_classes = 21
    default_preprocessing = SEMANTIC_PREPROCESSING

    def __init__(
        self,
        backbone: Encoder,
        classifier: nn.Module,
        aux: int | None,
        *,
        num_classes: int,
        in_channels: int,
        norm: Norm,
        multilabel: bool = False,
    ) -> None:
        super().__init__(num_classes, in_channels, multilabel=multilabel)
        self.backbone = backbone
        self.classifier = classifier
        self.aux_classifier = None if aux is None else FCNHead(backbone.channels[aux], num_classes, norm=norm)
        self.aux = aux

    @property
    def encoder(self) -> Encoder:  # type: ignore[override]
        """The backbone, under the name that the other models have for it."""
        return self.backbone

    def stems(self) -> list[str]:
        """The keys of the weights of all convolutions that see the picture."""
        return [f"backbone.{key}" for key in self.backbone.stems()]

    def encode(self, x: Tensor) -> list[Tensor]:
        """The last map, and before it in train mode the one of the auxiliary head."""
        last = len(self.backbone.channels) - 1
        wanted = (self.aux, last) if self.training and self.aux is not None else (last,)
        maps: list[Tensor] = self.backbone(x, wanted)
        return maps

    def decode(self, features: list[Tensor], x: Tensor) -> list[Tensor]:
        """Logits at the strides of the backbone's maps."""
        logits: list[Tensor] = [self.classifier(features[-1])]
        if self.training and self.aux_classifier is not None:
            logits.append(self.aux_classifier(features[0]))
        return logits


class FCN(BackboneModel):
    """torchvision's FCN: a dilated ResNet and one head, with nothing skipped.

    Args:
        encoder: A torchvision ResNet: ``"resnet50"``, ``"resnet101"`` …
        encoder_weights: ``"imagenet"``, a path, or None.
        aux: Whether there is an auxiliary head on the third stage.
        output_stride: 8, 16 or 32.
        dropout: In the head.
        num_classes: Output channels.
        in_channels: Input channels.
        norm: See ``segzoo.layers.get_norm``.
        multilabel: Whether classes may overlap: probabilities are then a sigmoid each.

    State-dict keys: torchvision's.

    Examples:
        >>> FCN("resnet50", num_classes=5).eval()(torch.zeros(1, 3, 33, 47)).shape
        torch.Size([1, 5, 33, 47])
    """

    def __init__(
        self,
        encoder: str = "resnet50",
        *,
        encoder_weights: str | os.PathLike[str] | None = None,
        aux: bool = True,
        output_stride: int = 8,
        dropout: float = 0.1,
        num_classes: int = 21,
        in_channels: int = 3,
        norm: Norm = "batch",
        multilabel: bool = False,
    ) -> None:
        check_positive(num_classes=num_classes, in_channels=in_channels)
        backbone = ResNetEncoder(
            encoder, weights=encoder_weights, in_channels=in_channels, norm=norm, output_stride=output_stride
        )
        head = FCNHead(backbone.channels[-1], num_classes, norm=norm, dropout=dropout)
        super().__init__(
            backbone,
            head,
            3 if aux else None,
            num_classes=num_classes,
            in_channels=in_channels,
            norm=norm,
            multilabel=multilabel,
        )


class FCN8s(EncoderModel):
    """FCN-8s: VGG-16 made convolutional, its scores fused with those of pool4 and pool3, upsampled in three steps.

    As the paper's Fig. 3, with two differences: convolutions keep their size (the paper pads the picture by 100 pixels
    and crops), and pooling rounds up, so that any size works.

    Args:
        encoder: ``"vgg16"`` or another of timm's VGGs.
        encoder_weights: ``"imagenet"``, a path, or None.
        head_channels: Of the two convolutions that were VGG's fully connected layers: 4096 in the paper.
        dropout: After each of them.
        num_classes: Output channels.
        in_channels: Input channels.
        norm: None, as VGG-16 has none; any other takes VGG's variant with norms (``"vgg16_bn"``).
        multilabel: Whether classes may overlap: probabilities are then a sigmoid each.

    Source: arXiv 1411.4038, Section 4 and Fig. 3.

    Examples:
        >>> model = FCN8s("vgg11", head_channels=16, num_classes=5).eval()
        >>> model(torch.zeros(1, 3, 33, 47)).shape
        torch.Size([1, 5, 33, 47])
    """

    heads: ClassVar[tuple[str, ...]] = ("score.", "score_pool4.", "score_pool3.", "up_pool5.", "up_pool4.")
    default_num_classes = 21
    default_preprocessing = SEMANTIC_PREPROCESSING

    def __init__(
        self,
        encoder: str = "vgg16",
        *,
        encoder_weights: str | os.PathLike[str] | None = None,
        head_channels: int = 4096,
        dropout: float = 0.5,
        num_classes: int = 21,
        in_channels: int = 3,
        norm: Norm = None,
        multilabel: bool = False,
    ) -> None:
        super().__init__(num_classes, in_channels, multilabel=multilabel)
        if not (isinstance(encoder, str) and encoder.startswith("vgg")):
            given = repr(encoder) if isinstance(encoder, str) else type(encoder).__name__
            raise ValueError(f"the encoder of FCN-8s is a VGG, as 'vgg16', got {given}")
        name, dot, tag = encoder.partition(".")
        if norm is None and name.endswith("_bn"):
            raise ValueError(f"{encoder} has batch norms: give norm='batch' (or another), or take {name[:-3]}")
        check_positive(head_channels=head_channels)
        if norm is not None and not name.endswith("_bn"):
            encoder = f"{name}_bn{dot}{tag}"
        self.encoder = TimmEncoder(encoder, weights=encoder_weights, in_channels=in_channels, norm=norm)
        # The encoder's maps are those before each pooling, but for the last: the paper fuses those after.
        pool3, pool4, _, pool5 = self.encoder.channels[-4:]
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.fc6 = conv_norm_act(pool5, head_channels, 7, norm=norm)
        self.fc7 = conv_norm_act(head_channels, head_channels, 1, norm=norm)
        self.dropout = nn.Dropout2d(dropout)
        self.score = nn.Conv2d(head_channels, num_classes, 1)
        self.score_pool4 = nn.Conv2d(pool4, num_classes, 1)
        self.score_pool3 = nn.Conv2d(pool3, num_classes, 1)
        self.up_pool5 = Upscore(num_classes)
        self.up_pool4 = Upscore(num_classes)

    def decode(self, features: list[Tensor], x: Tensor) -> list[Tensor]:
        """The fused scores at stride 8; the last step to the picture is plain bilinear, as in the paper."""
        pool3, pool4 = (self.pool(y) for y in features[-4:-2])
        pool5 = features[-1]
        scores = self.score(self.dropout(self.fc7(self.dropout(self.fc6(pool5)))))
        scores = self.up_pool5(scores, pool4) + self.score_pool4(pool4)
        return [self.up_pool4(scores, pool3) + self.score_pool3(pool3)]


class Upscore(nn.ConvTranspose2d):
    """Twice the size by a transposed 4×4 convolution that is bilinear to begin with and learned.

    Args:
        num_classes: Channels in and out.

    Source: arXiv 1411.4038, Section 3.3 and 4.1.

    Examples:
        >>> Upscore(2)(torch.ones(1, 2, 3, 4), torch.zeros(1, 5, 5, 8))[0, 0, 2:4, 2:4]
        tensor([[1.0, 1.0],
                [1.0, 1.0]], grad_fn=<SliceBackward0>)
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, num_classes, 4, stride=2, padding=1, bias=False)
        ramp = torch.tensor([0.25, 0.75, 0.75, 0.25])
        with torch.no_grad():
            self.weight.copy_(torch.eye(num_classes)[:, :, None, None] * ramp[:, None] * ramp)

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:  # type: ignore[override]
        """``[N, num_classes, h, w]`` to the size of ``reference``, which is 2h × 2w or a pixel less."""
        return crop_to(super().forward(x), reference, 2)


@register_model("semantic")
def fcn_resnet50(
    weights: str | os.PathLike[str] | None = "coco_voc",
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    norm: Norm = "batch",
    aux: bool = True,
    output_stride: int = 8,
    dropout: float = 0.1,
    encoder_weights: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> FCN:
    """FCN on a dilated ResNet-50, by default with torchvision's weights: COCO pictures, Pascal VOC's 21 classes.

    Args:
        weights: ``"coco_voc"``, ``"hf-hub:org/repo[@revision]"``, ``"local-dir:PATH"``, a path (torchvision's own files
            load as they are), or None: random initialisation.
        num_classes: None means the checkpoint's, or 21. Another number starts the heads' last layers afresh.
        in_channels: Another number than 3 adapts the first convolution.
        norm: Another than ``"batch"`` keeps γ and β, drops the statistics, and warns.
        aux: Whether there is an auxiliary head on the third stage; in train mode its logits come second.
        output_stride: 8, 16 or 32.
        dropout: In the head.
        encoder_weights: With ``weights=None``: ``"imagenet"``, a path, or None.
        progress: Whether a download shows a progress bar.

    Raises:
        ValueError: For unknown weights, with the nearest name, or a file that does not fit, with the keys.
        ConnectionError: If weights are not on this machine and could not be downloaded.

    Source: arXiv 1411.4038, on the dilated ResNet of arXiv 1706.05587; torchvision's ``fcn_resnet50``.

    Examples:
        >>> model = fcn_resnet50(weights=None, norm="group", num_classes=19)
        >>> model.eval()(torch.zeros(1, 3, 33, 47)).shape
        torch.Size([1, 19, 33, 47])
    """
    return build_model(
        FCN,
        "fcn_resnet50",
        weights,
        encoder="resnet50",
        encoder_weights=encoder_weights,
        aux=aux,
        output_stride=output_stride,
        dropout=dropout,
        num_classes=num_classes,
        in_channels=in_channels,
        norm=norm,
        progress=progress,
    )


@register_model("semantic")
def fcn_resnet101(
    weights: str | os.PathLike[str] | None = "coco_voc",
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    norm: Norm = "batch",
    aux: bool = True,
    output_stride: int = 8,
    dropout: float = 0.1,
    encoder_weights: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> FCN:
    """FCN on a dilated ResNet-101; arguments, errors and source as of ``fcn_resnet50``.

    Examples:
        >>> fcn_resnet101(weights=None, aux=False).num_classes
        21
    """
    return build_model(
        FCN,
        "fcn_resnet101",
        weights,
        encoder="resnet101",
        encoder_weights=encoder_weights,
        aux=aux,
        output_stride=output_stride,
        dropout=dropout,
        num_classes=num_classes,
        in_channels=in_channels,
        norm=norm,
        progress=progress,
    )


@register_model("semantic")
def fcn8s(
    encoder: str = "vgg16",
    *,
    encoder_weights: str | os.PathLike[str] | None = "imagenet",
    weights: str | os.PathLike[str] | None = None,
    num_classes: int | None = None,
    in_channels: int = 3,
    norm: Norm = None,
    head_channels: int = 4096,
    dropout: float = 0.5,
    progress: bool = True,
) -> FCN8s:
    """FCN-8s on VGG-16, as in the first paper on fully convolutional networks.

    Args:
        encoder: ``"vgg16"`` or another of timm's VGGs.
        encoder_weights: ``"imagenet"`` (timm's, downloaded on first use), a path, or None: random initialisation.
        weights: ``"hf-hub:org/repo[@revision]"``, ``"local-dir:PATH"``, a path, or None.
        num_classes: None means the checkpoint's, or 21.
        in_channels: Input channels.
        norm: None, as VGG-16 has none; any other takes VGG's variant with norms.
        head_channels: Of the two convolutions that were VGG's fully connected layers.
        dropout: After each of them.
        progress: Whether a download shows a progress bar.

    Raises:
        ValueError: For an encoder that is no VGG, or weights that do not fit.
        ConnectionError: If weights could not be downloaded.

    Source: arXiv 1411.4038, Section 4 and Fig. 3.

    Examples:
        >>> fcn8s(encoder_weights=None, head_channels=64, num_classes=11).num_classes
        11
    """
    return build_model(
        FCN8s,
        "fcn8s",
        weights,
        encoder=encoder,
        encoder_weights=encoder_weights,
        head_channels=head_channels,
        dropout=dropout,
        num_classes=num_classes,
        in_channels=in_channels,
        norm=norm,
        progress=progress,
    )
