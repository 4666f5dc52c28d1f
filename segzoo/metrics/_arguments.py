"""What numbers the metrics' arguments may be: Python's and NumPy's, but no bool."""

from __future__ import annotations

from numbers import Integral, Real

__all__ = ["is_integer", "is_real"]


def is_integer(value: object) -> bool:
    """Whether it is a whole number of any kind.

    Examples:
        >>> is_integer(3), is_integer(True), is_integer(3.0)
        (True, False, False)
    """
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value: object) -> bool:
    """Whether it is a number of any kind that has an order; NaN is one.

    Examples:
        >>> is_real(0.5), is_real(1), is_real(False), is_real("1")
        (True, True, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool)
