"""Mask R-CNN: torchvision's own, in this library's registry.

Source: He et al., "Mask R-CNN", 2017 (arXiv 1703.06870).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

from segzoo.layers.norm import Norm
from segzoo.models.base import build_model
from segzoo.registry import register_model

if TYPE_CHECKING:
    from segzoo.models._detection import MaskRCNN

__all__ = ["mask_rcnn_resnet50_fpn"]


@register_model("instance")
def mask_rcnn_resnet50_fpn(
    weights: str | os.PathLike[str] | None = "coco",
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    norm: Norm = "frozen_batch",
    norm_eps: float | None = None,
    encoder_weights: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **arguments: Any,
) -> MaskRCNN:
    """torchvision's Mask R-CNN on ResNet-50, by default with its weights of COCO.

    Args:
        weights: ``"coco"``, ``"hf-hub:org/repo[@revision]"``, ``"local-dir:PATH"``, a path (torchvision's own files
            load as they are), or None: random initialisation.
        num_classes: With the background, as torchvision counts. None means the checkpoint's, or 91.
        in_channels: Another number than 3 adapts the first convolution.
        norm: Of the ResNet. ``"frozen_batch"``, as detectors see few pictures at a time; another drops the statistics.
        norm_eps: Of frozen norms. None means 0 with torchvision's weights, as torchvision has it for them, else 1e-5.
        encoder_weights: With ``weights=None``: ``"imagenet"``, a path, or None.
        progress: Whether a download shows a progress bar.
        **arguments: torchvision's, as ``box_score_thresh``, ``box_detections_per_img``, ``min_size``.

    Returns:
        A model that takes a list of pictures ``[C, H, W]`` in 0…1 and gives a list of dictionaries (``boxes``,
        ``labels``, ``scores``, ``masks``): torchvision's conventions, not those of the other models here.
        ``segzoo.Predictor`` takes it.

    Raises:
        ValueError: For unknown weights, with the nearest name, or a file that does not fit, with the keys.
        ConnectionError: If weights are not on this machine and could not be downloaded.

    Source: arXiv 1703.06870; torchvision's ``maskrcnn_resnet50_fpn``.

    Examples:
        >>> import torch
        >>> model = mask_rcnn_resnet50_fpn(weights=None, num_classes=3, min_size=64).eval()
        >>> sorted(model([torch.zeros(3, 60, 80)])[0])
        ['boxes', 'labels', 'masks', 'scores']
    """
    from segzoo.models._detection import MaskRCNN

    model = build_model(
        cast(Any, MaskRCNN),
        "mask_rcnn_resnet50_fpn",
        weights,
        encoder_weights=encoder_weights,
        num_classes=num_classes,
        in_channels=in_channels,
        norm=norm,
        norm_eps=norm_eps,
        progress=progress,
        **arguments,
    )
    return cast("MaskRCNN", model)
