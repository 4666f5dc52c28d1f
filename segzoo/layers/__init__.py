"""Building blocks with no opinion about a task."""

from __future__ import annotations

import importlib
from typing import Any

from segzoo.layers.aspp import ASPP
from segzoo.layers.conv import ConvNormAct
from segzoo.layers.fusion import SideFusion, SkipFusion
from segzoo.layers.norm import (
    BatchNorm,
    EvoNormB0,
    EvoNormS0,
    FrozenBatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    SyncBatchNorm,
    get_norm,
)
from segzoo.layers.ppm import PyramidPooling
from segzoo.layers.recompute import recompute_activations
from segzoo.layers.replace import replace_norm
from segzoo.layers.rsu import RSU, RSU4F

__all__ = [
    "ASPP",
    "RSU",
    "RSU4F",
    "BatchNorm",
    "ConvNormAct",
    "EvoNormB0",
    "EvoNormS0",
    "FrozenBatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LateFusion",
    "LayerNorm",
    "PyramidPooling",
    "SideFusion",
    "SkipFusion",
    "SyncBatchNorm",
    "get_norm",
    "recompute_activations",
    "replace_norm",
]


def __getattr__(name: str) -> Any:
    """``LateFusion`` is an encoder made of encoders, which are made of layers: it is imported when it is asked for."""
    if name == "LateFusion":
        return importlib.import_module("segzoo.encoders.late_fusion").LateFusion
    raise AttributeError(f"module 'segzoo.layers' has no attribute {name!r}")
