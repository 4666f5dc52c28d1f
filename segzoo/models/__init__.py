"""The architectures, one file each: its class, then its factories. Factories are found through ``segzoo`` itself."""

from segzoo.models.base import SegmentationModel
from segzoo.models.u2net import U2Net

__all__ = ["SegmentationModel", "U2Net"]
