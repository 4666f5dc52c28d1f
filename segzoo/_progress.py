"""The bar that long work shows."""

from __future__ import annotations

from typing import Any

__all__ = ["progress_bar"]


def progress_bar(total: int, show: bool, unit: str = "pictures") -> Any:
    """tqdm's bar on stderr, where that is a terminal and ``show`` is true.

    Args:
        total: How many units there are.
        show: Whether there is a bar at all.
        unit: What is counted.

    Examples:
        >>> with progress_bar(3, show=False) as bar:
        ...     bar.update()
    """
    from tqdm import tqdm

    return tqdm(total=total, unit=f" {unit}", disable=None if show else True)  # None: only on a terminal
