"""Weights of classes from how often they occur."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from segzoo.losses._inputs import check_choice

__all__ = ["class_weights"]

Method = Literal["inverse", "median_frequency", "effective_number", "enet"]
_METHODS = ("inverse", "median_frequency", "effective_number", "enet")


def class_weights(
    counts: Tensor | Sequence[float], method: Method = "median_frequency", *, beta: float = 0.9999
) -> Tensor:
    """Weights of the classes, for a loss's ``weight``, from the number of pixels of each.

    Args:
        counts: How many pixels each class has in the training set, ``[C]``, at least 0.
        method: With n_c the counts, n their sum, f_c = n_c / n, and only the classes that occur:

            - ``"inverse"``: n / (C n_c), scikit-learn's "balanced".
            - ``"median_frequency"``: median of f / f_c.
            - ``"effective_number"``: (1 - β) / (1 - β^n_c), scaled to a mean of 1. Counts far above 1 / (1 - β) all get
              nearly the same weight: for pixels choose β accordingly, such as 1 - 1 / (mean of the counts).
            - ``"enet"``: 1 / ln(1.02 + f_c), between 1.4 and 50.5.
        beta: β of ``"effective_number"``, 0…1, below 1.

    Returns:
        float32 ``[C]``, on the CPU. A class that never occurs has 0, since there is nothing to weigh (``"enet"``:
        its formula's 50.5).

    Raises:
        ValueError: For counts that are negative, not numbers, or all 0; for an unknown method.

    Source:
        King, Zeng: Logistic Regression in Rare Events Data, 2001; Eigen, Fergus, ICCV 2015, section 6.3.2
        (frequencies there over the pictures that have the class); Cui et al.: Class-Balanced Loss, CVPR 2019; Paszke
        et al.: ENet, 2016.

    Examples:
        >>> class_weights([900, 90, 10], "median_frequency")
        tensor([0.1000, 1.0000, 9.0000])
    """
    check_choice("method", method, _METHODS)
    n = torch.as_tensor(counts).detach().cpu().double()
    if n.ndim != 1 or not len(n):
        raise ValueError(f"counts have the shape {list(n.shape)}, expected one number for each class")
    if not (n.isfinite() & (n >= 0)).all() or not n.any():
        raise ValueError(f"counts are {n.tolist()}, expected finite numbers of at least 0, not all of them 0")
    if not 0 <= beta < 1:
        raise ValueError(f"beta is {beta!r}, expected a number of at least 0 and below 1")
    seen = n > 0
    frequency = n / n.sum()
    if method == "enet":
        return (1 / (1.02 + frequency).log()).float()
    if method == "inverse":
        weights = 1 / (frequency * seen.sum())
    elif method == "median_frequency":
        weights = frequency[seen].quantile(0.5) / frequency
    else:
        # 1 - β^n without cancellation: β^n is a number next to 1 for small counts.
        weights = (1 - beta) / -torch.expm1(n * torch.tensor(beta, dtype=torch.float64).log())
        weights = weights / weights[seen].mean()
    return torch.where(seen, weights, 0).float()
