"""torchvision's Mask R-CNN as a class of this library. In a file of its own: importing torchvision takes a second."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torchvision
from torch import Tensor
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN

from segzoo.encoders.torchvision_encoders import load_imagenet, set_stem
from segzoo.layers.norm import FrozenBatchNorm, Norm
from segzoo.layers.replace import replace_norm
from segzoo.models._pretrained import Pretrained
from segzoo.models.base import check_positive
from segzoo.weights.catalog import Preprocessing, Weights

__all__ = ["MaskRCNN"]


class MaskRCNN(Pretrained, TorchvisionMaskRCNN):  # type: ignore[misc]
    """torchvision's Mask R-CNN on a ResNet-50 with a feature pyramid, with its conventions and keys.

    ``model(list of [C, H, W] in 0…1)`` gives a list of dictionaries in eval mode (``boxes`` ``[n, 4]``, ``labels``
    ``[n]``, ``scores`` ``[n]``, ``masks`` ``[n, 1, H, W]``); in train mode it takes ``targets`` too and gives a
    dictionary of losses. Class 0 is the background and counts.

    Args:
        num_classes: With the background.
        in_channels: Input channels.
        norm: Of the ResNet; the pyramid and the heads have none.
        norm_eps: Of frozen norms. None means 1e-5.
        encoder_weights: ``"imagenet"``, a path, or None.
        **arguments: torchvision's, as ``box_score_thresh``, ``box_detections_per_img``, ``min_size``.

    Attributes:
        score_threshold: Detections below it are left out by ``segzoo.Predictor``.
        threshold: Of a pixel's probability, for masks.

    Source: He et al., "Mask R-CNN", 2017 (arXiv 1703.06870); torchvision's ``maskrcnn_resnet50_fpn``.
    """

    heads = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")
    optional = ()
    stem = "backbone.body.conv1.weight"
    default_num_classes = 91
    default_preprocessing = Preprocessing(size=None)

    def __init__(
        self,
        *,
        num_classes: int = 91,
        in_channels: int = 3,
        norm: Norm = "frozen_batch",
        norm_eps: float | None = None,
        encoder_weights: Any = None,
        **arguments: Any,
    ) -> None:
        check_positive(num_classes=num_classes, in_channels=in_channels)
        built = torchvision.models.detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
        normalised = self.default_preprocessing.for_channels(in_channels)
        super().__init__(
            built.backbone,
            num_classes,
            **{"image_mean": list(normalised.mean), "image_std": list(normalised.std), **arguments},
        )
        set_stem(self.backbone.body, "conv1", in_channels)
        if encoder_weights is not None:
            load_imagenet(self.backbone.body, "resnet50", encoder_weights, in_channels=in_channels, without=("fc.",))
        replace_norm(self.backbone.body, norm)
        for module in self.backbone.body.modules():
            if norm_eps is not None and isinstance(module, FrozenBatchNorm):
                module.eps = norm_eps
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.weights: Weights | None = None
        # The network normalises by itself: a picture has only to be scaled to 0…1.
        plain = Preprocessing(size=None, mean=(0.0,) * in_channels, std=(1.0,) * in_channels)
        self.preprocessing = plain
        self.score_threshold = 0.5
        self.threshold = 0.5
        self.classes: tuple[str, ...] | None = None

    def stems(self) -> list[str]:
        """The key of the first convolution's weight."""
        return [self.stem]

    @classmethod
    def convert(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The keys are torchvision's own."""
        return dict(state)

    @classmethod
    def implied(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Nothing is."""
        return {}
