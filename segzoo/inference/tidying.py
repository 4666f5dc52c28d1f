"""Specks, holes and further objects taken out of probabilities, soft rims and all."""

from __future__ import annotations

import torch
from torch import Tensor

from segzoo.inference.postprocess import largest_component, of_nearest, remove_small

__all__ = ["tidied_probabilities"]


def tidied_probabilities(
    probabilities: Tensor, *, threshold: float | None, largest: bool, min_area: float, holes: float | None
) -> Tensor:
    """Probabilities ``[C, H, W]`` whose masks are tidy.

    Args:
        probabilities: float32, of masks that may overlap, or of classes that share each pixel.
        threshold: Of each mask; None: the most probable class counts.
        largest: Whether only the largest component of each mask stays.
        min_area: See ``remove_small``.
        holes: See ``remove_small``; of masks only.

    Returns:
        A copy. What goes from a mask becomes 0, with the soft rim around it; a hole becomes 1, with the soft rim
        around it; a patch becomes wholly the class it goes to.

    Examples:
        >>> tidied_probabilities(torch.tensor([[[0.9, 0.9, 0.2, 0.1, 0.3, 0.8]]]), threshold=0.5, largest=True,
        ...                      min_area=0, holes=None)
        tensor([[[0.9000, 0.9000, 0.2000, 0.1000, 0.0000, 0.0000]]])
    """
    if threshold is None:
        labels = probabilities.argmax(0)
        tidy = remove_small(labels, min_area, holes=holes, labels=True)  # also where a frame has one class only
        whole = torch.zeros_like(probabilities).scatter_(0, tidy[None], 1.0)
        return torch.where(tidy == labels, probabilities, whole)
    masks = probabilities > threshold
    tidy = remove_small(masks, min_area, holes=holes, labels=False)
    if largest:
        tidy = largest_component(tidy)
    gone = _with_rim(masks & ~tidy, masks) & ~tidy
    filled = _with_rim(tidy & ~masks, ~masks) & tidy
    return probabilities.masked_fill(gone, 0.0).masked_fill_(filled, 1.0)


def _with_rim(some: Tensor, sites: Tensor) -> Tensor:
    """Where ``some`` of the ``sites`` are nearer than any other, bool ``[C, H, W]``; both are."""
    return of_nearest(some, sites) if some.any() else some
