"""Pure functions with a mathematical definition."""

from segzoo.ops.components import component_sizes, connected_components
from segzoo.ops.distance import distance_to, signed_distance
from segzoo.ops.resize import crop_to, resize, resize_to

__all__ = [
    "component_sizes",
    "connected_components",
    "crop_to",
    "distance_to",
    "resize",
    "resize_to",
    "signed_distance",
]
