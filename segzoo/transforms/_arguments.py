"""Checks of the transforms' arguments: each gives the value back, or raises one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

__all__ = [
    "checked_count",
    "checked_label",
    "checked_number",
    "checked_positive",
    "checked_probability",
    "checked_range",
    "checked_size",
]


def checked_count(name: str, value: Any) -> int:
    """A whole number from 1 up.

    Examples:
        >>> checked_count("min_area", 64)
        64
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} is {value!r}, expected a whole number from 1 up")
    return int(value)


def checked_label(name: str, value: Any) -> int:
    """A whole number.

    Examples:
        >>> checked_label("ignore_index", 255)
        255
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} is {value!r}, expected a whole number")
    return int(value)


def checked_number(name: str, value: Any, low: float = 0.0, high: float = math.inf) -> float:
    """A finite number from ``low`` to ``high``, both included.

    Examples:
        >>> checked_number("rotation", 10, high=180)
        10.0
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= float(value) <= high or math.isinf(value):
        limits = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
        raise ValueError(f"{name} is {value!r}, expected a number {limits}")
    return float(value)


def checked_positive(name: str, value: Any) -> float:
    """A finite number above 0.

    Examples:
        >>> checked_positive("alpha", 1)
        1.0
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise ValueError(f"{name} is {value!r}, expected a positive number")
    return float(value)


def checked_probability(name: str, value: Any) -> float:
    """A number from 0 to 1.

    Examples:
        >>> checked_probability("hflip", 0.5)
        0.5
    """
    return checked_number(name, value, high=1.0)


def checked_range(name: str, value: Any) -> tuple[float, float]:
    """Two positive, finite numbers, the lower first.

    Examples:
        >>> checked_range("scale", (0.75, 2))
        (0.75, 2.0)
    """
    numbers = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else ()
    fine = all(isinstance(number, Real) and 0 < float(number) < math.inf for number in numbers)
    if len(numbers) != 2 or not fine or numbers[0] > numbers[1]:
        raise ValueError(f"{name} is {value!r}, expected two positive numbers, the lower first")
    return float(numbers[0]), float(numbers[1])


def checked_size(name: str, value: Any) -> tuple[int, int]:
    """Height and width in pixels, from the pair or from one whole number for both.

    Examples:
        >>> checked_size("size", 320)
        (320, 320)
    """
    pair = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value, value)
    if len(pair) != 2 or any(isinstance(n, bool) or not isinstance(n, Integral) or n < 1 for n in pair):
        raise ValueError(f"{name} is {value!r}, expected a whole number of pixels, or two: height and width")
    return int(pair[0]), int(pair[1])
