"""Pure functions with a mathematical definition."""

from segzoo.ops.resize import crop_to, resize, resize_to

__all__ = ["crop_to", "resize", "resize_to"]
