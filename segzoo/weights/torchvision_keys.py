"""torchvision's detectors as they were saved before 2022, in the keys that its modules have since."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

__all__ = ["mask_rcnn_from_older"]

_RULES = (
    (re.compile(r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.(weight|bias)"), r"backbone.fpn.\1_blocks.\2.0.\3"),
    (re.compile(r"rpn\.head\.conv\.(weight|bias)"), r"rpn.head.conv.0.0.\1"),
)
_MASK_BLOCK = re.compile(r"roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)")


def mask_rcnn_from_older(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Mask R-CNN's state dict in the keys of today's torchvision; what has them already comes back as it is.

    torchvision renames them while it loads, by a version that its files of tensors alone do not hold. The published
    COCO weights are such a file.

    Args:
        state: Keys as ``backbone.fpn.inner_blocks.0.weight``, ``rpn.head.conv.weight``,
            ``roi_heads.mask_head.mask_fcn1.weight``.

    Source: torchvision's ``FeaturePyramidNetwork``, ``RPNHead`` and ``MaskRCNNHeads``, version 2 of their state dicts.

    Examples:
        >>> list(mask_rcnn_from_older({"roi_heads.mask_head.mask_fcn1.bias": None, "rpn.head.conv.bias": None}))
        ['roi_heads.mask_head.0.0.bias', 'rpn.head.conv.0.0.bias']
    """
    return {_renamed(key): value for key, value in state.items()}


def _renamed(key: str) -> str:
    for pattern, replacement in _RULES:
        key = pattern.sub(replacement, key)
    if match := _MASK_BLOCK.fullmatch(key):
        return f"roi_heads.mask_head.{int(match[1]) - 1}.0.{match[2]}"
    return key
