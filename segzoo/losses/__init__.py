"""Losses under one contract: logits in, the same targets and modes everywhere, what is ignored changes nothing."""

from segzoo.losses.boundary import BoundaryLoss
from segzoo.losses.combine import CombinedLoss, DeepSupervisionLoss
from segzoo.losses.imbalance import class_weights
from segzoo.losses.lovasz import LovaszLoss
from segzoo.losses.pixel import BCELoss, CrossEntropyLoss, FocalLoss, OhemCrossEntropyLoss
from segzoo.losses.region import DiceLoss, FocalTverskyLoss, JaccardLoss, TverskyLoss
from segzoo.losses.structure import HybridSaliencyLoss, SSIMLoss

__all__ = [
    "BCELoss",
    "BoundaryLoss",
    "CombinedLoss",
    "CrossEntropyLoss",
    "DeepSupervisionLoss",
    "DiceLoss",
    "FocalLoss",
    "FocalTverskyLoss",
    "HybridSaliencyLoss",
    "JaccardLoss",
    "LovaszLoss",
    "OhemCrossEntropyLoss",
    "SSIMLoss",
    "TverskyLoss",
    "class_weights",
]
