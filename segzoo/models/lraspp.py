"""LR-ASPP: the light head of MobileNetV3."""

from __future__ import annotations

import os

from torch import Tensor, nn

from segzoo.encoders import MobileNetV3Encoder
from segzoo.layers.conv import conv_norm_act
from segzoo.layers.norm import Norm
from segzoo.models.base import build_model, check_positive
from segzoo.models.fcn import BackboneModel
from segzoo.ops import resize_to
from segzoo.registry import register_model

__all__ = ["LRASPP", "LRASPPHead", "lraspp_mobilenet_v3_large"]


class LRASPPHead(nn.Module):
    """The coarse map, weighted by its own mean, scored and added to the scores of a finer one.

    Args:
        low_channels: Of the finer map.
        high_channels: Of the coarse one.
        num_classes: Channels of the output, which has the finer map's size.
        inter_channels: In between.
        norm: See ``segzoo.layers.get_norm``.
        dropout: Before the coarse map is scored.

    State-dict keys: torchvision's (``cbr``, ``scale``, ``low_classifier``, ``high_classifier``).

    Source: Howard et al., "Searching for MobileNetV3", 2019 (arXiv 1905.02244), Section 6.4 and Fig. 10.

    Examples:
        >>> import torch
        >>> LRASPPHead(8, 16, 5)(torch.zeros(2, 8, 8, 6), torch.zeros(2, 16, 4, 3)).shape
        torch.Size([2, 5, 8, 6])
    """

    def __init__(
        self,
        low_channels: int,
        high_channels: int,
        num_classes: int,
        inter_channels: int = 128,
        *,
        norm: Norm = "batch",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.cbr = conv_norm_act(high_channels, inter_channels, 1, norm=norm)
        # The first slot is where torchvision has its pooling layer: a mean exports at any size.
        self.scale = nn.Sequential(nn.Identity(), nn.Conv2d(high_channels, inter_channels, 1, bias=False), nn.Sigmoid())
        self.dropout = nn.Dropout(dropout)
        self.low_classifier = nn.Conv2d(low_channels, num_classes, 1)
        self.high_classifier = nn.Conv2d(inter_channels, num_classes, 1)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """``[N, low_channels, H, W]`` and ``[N, high_channels, h, w]`` to ``[N, num_classes, H, W]``."""
        weighted = self.cbr(high) * self.scale(high.mean((2, 3), keepdim=True))
        scores: Tensor = self.high_classifier(self.dropout(resize_to(weighted, low))) + self.low_classifier(low)
        return scores


class LRASPP(BackboneModel):
    """MobileNetV3-Large with an LR-ASPP head.

    Args:
        encoder_weights: ``"imagenet"``, a path, or None.
        inter_channels: Of the head.
        dropout: In the head.
        num_classes: Output channels.
        in_channels: Input channels.
        norm: See ``segzoo.layers.get_norm``.
        multilabel: Whether classes may overlap: probabilities are then a sigmoid each.

    State-dict keys: torchvision's.

    Examples:
        >>> import torch
        >>> LRASPP(num_classes=5, norm="group").eval()(torch.zeros(1, 3, 33, 47)).shape
        torch.Size([1, 5, 33, 47])
    """

    heads = ("classifier.low_classifier.", "classifier.high_classifier.")
    optional = ()

    def __init__(
        self,
        *,
        encoder_weights: str | os.PathLike[str] | None = None,
        inter_channels: int = 128,
        dropout: float = 0.0,
        num_classes: int = 21,
        in_channels: int = 3,
        norm: Norm = "batch",
        multilabel: bool = False,
    ) -> None:
        check_positive(num_classes=num_classes, in_channels=in_channels, inter_channels=inter_channels)
        backbone = MobileNetV3Encoder(weights=encoder_weights, in_channels=in_channels, norm=norm)
        head = LRASPPHead(
            backbone.channels[2], backbone.channels[-1], num_classes, inter_channels, norm=norm, dropout=dropout
        )
        super().__init__(
            backbone, head, None, num_classes=num_classes, in_channels=in_channels, norm=norm, multilabel=multilabel
        )

    def encode(self, x: Tensor) -> list[Tensor]:
        """The maps at stride 8 and 16."""
        maps: list[Tensor] = self.backbone(x, (2, 4))
        return maps

    def decode(self, features: list[Tensor], x: Tensor) -> list[Tensor]:
        """Logits at stride 8."""
        return [self.classifier(features[0], features[-1])]


@register_model("semantic")
def lraspp_mobilenet_v3_large(
    weights: str | os.PathLike[str] | None = "coco_voc",
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    norm: Norm = "batch",
    dropout: float = 0.0,
    encoder_weights: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> LRASPP:
    """LR-ASPP on MobileNetV3-Large, by default with torchvision's weights: COCO pictures, Pascal VOC's 21 classes.

    Args:
        weights: ``"coco_voc"``, ``"hf-hub:org/repo[@revision]"``, ``"local-dir:PATH"``, a path (torchvision's own files
            load as they are), or None: random initialisation.
        num_classes: None means the checkpoint's, or 21. Another number starts the heads' last layers afresh.
        in_channels: Another number than 3 adapts the first convolution.
        norm: Another than ``"batch"`` keeps γ and β, drops the statistics, and warns.
        dropout: In the head.
        encoder_weights: With ``weights=None``: ``"imagenet"``, a path, or None.
        progress: Whether a download shows a progress bar.

    Raises:
        ValueError: For unknown weights, with the nearest name, or a file that does not fit, with the keys.
        ConnectionError: If weights are not on this machine and could not be downloaded.

    Source: arXiv 1905.02244, Section 6.4 and Fig. 10; torchvision's ``lraspp_mobilenet_v3_large``.

    Examples:
        >>> lraspp_mobilenet_v3_large(weights=None, num_classes=11).num_classes
        11
    """
    return build_model(
        LRASPP,
        "lraspp_mobilenet_v3_large",
        weights,
        encoder_weights=encoder_weights,
        dropout=dropout,
        num_classes=num_classes,
        in_channels=in_channels,
        norm=norm,
        progress=progress,
    )
