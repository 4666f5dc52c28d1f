"""Building blocks with no opinion about a task."""

from segzoo.layers.conv import ConvNormAct
from segzoo.layers.fusion import SideFusion
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
from segzoo.layers.rsu import RSU, RSU4F

__all__ = [
    "RSU",
    "RSU4F",
    "BatchNorm",
    "ConvNormAct",
    "EvoNormB0",
    "EvoNormS0",
    "FrozenBatchNorm",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "SideFusion",
    "SyncBatchNorm",
    "get_norm",
]
