"""Sizes and scales that users give, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["SCALES", "checked_scales", "scaled_size", "size_pair"]

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.2)


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Height and width times a scale, rounded, at least 1.

    Examples:
        >>> scaled_size((320, 1), 0.25)
        (80, 1)
    """
    height, width = (max(1, math.floor(side * scale + 0.5)) for side in size)
    return height, width


def checked_scales(scales: Sequence[float]) -> tuple[float, ...]:
    """``scales`` as a tuple, or a ValueError: they are one or more positive, finite numbers.

    Examples:
        >>> checked_scales([1, 0])
        Traceback (most recent call last):
        ValueError: scales must be one or more positive, finite numbers, got [1, 0]
    """
    try:
        factors = tuple(float(scale) for scale in scales)
    except (TypeError, ValueError):
        factors = ()
    if not factors or not all(0 < factor < math.inf for factor in factors):
        raise ValueError(f"scales must be one or more positive, finite numbers, got {scales!r}")
    return factors


def size_pair(name: str, value: object, least: int = 1) -> tuple[int, int]:
    """Height and width of a pair, or of one number for both; else a ValueError that says what ``name`` must be.

    Examples:
        >>> size_pair("tile", 512)
        (512, 512)
    """
    both = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    whole = (int, np.integer)
    if len(both) != 2 or not all(isinstance(v, whole) and not isinstance(v, bool) and v >= least for v in both):
        kind = "a positive int" if least else "an int of at least 0"
        raise ValueError(f"{name} must be {kind} or a pair of them (height, width), got {value!r}")
    return int(both[0]), int(both[1])
