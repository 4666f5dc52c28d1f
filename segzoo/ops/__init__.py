"""Pure functions with a mathematical definition."""

from segzoo.ops.resize import resize, resize_to

__all__ = ["resize", "resize_to"]
