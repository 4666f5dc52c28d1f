"""Pure functions with a mathematical definition."""

from segzoo.ops.distance import distance_to, signed_distance
from segzoo.ops.resize import crop_to, resize, resize_to

__all__ = ["crop_to", "distance_to", "resize", "resize_to", "signed_distance"]
