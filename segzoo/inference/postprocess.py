"""Masks made of probabilities, and rid of what is too small: thresholds, the largest component, specks and holes."""

from __future__ import annotations

from numbers import Real
from typing import Literal

import torch
from torch import Tensor

from segzoo._errors import unknown_name
from segzoo.inference._arrays import Array, Kind, as_tensor, like
from segzoo.ops import distance_to
from segzoo.ops.components import component_sizes, connected_components

__all__ = ["largest_component", "remove_small", "threshold"]


def threshold(probabilities: Kind, at: float | Literal["otsu", "adaptive"] = 0.5) -> Kind:
    """The mask of what is more probable than a threshold, which may be chosen for each map by itself.

    Args:
        probabilities: ``[..., H, W]``, floating point in 0…1, a tensor on any device or an array.
        at: The threshold; or ``"otsu"``: the one of 256 levels that splits the map's values into two groups of the
            least variance; or ``"adaptive"``: twice the map's mean, at most 1, the field's adaptive threshold. A map
            that has one value only has nothing to split: 0.5 holds.

    Returns:
        A bool mask ``[..., H, W]`` of the same kind; true where the probability exceeds the threshold (with
        ``"adaptive"`` also where it is equal, as `SaliencyMetrics` has it).

    Raises:
        ValueError: For probabilities or a threshold out of 0…1, or an unknown name.

    Source:
        Otsu: A threshold selection method from gray-level histograms, 1979. Achanta et al.: Frequency-tuned salient
        region detection, CVPR 2009 (twice the mean).

    Examples:
        >>> import torch
        >>> threshold(torch.tensor([[0.1, 0.1, 0.2, 0.4]]), "otsu")
        tensor([[False, False, False,  True]])
    """
    maps = as_tensor("probabilities", probabilities)
    if not maps.is_floating_point() or maps.ndim < 2:
        raise ValueError(f"probabilities are {maps.dtype} {list(maps.shape)}, expected floating point [..., H, W]")
    if maps.numel() and not (maps.min() >= 0 and maps.max() <= 1):  # also refuses NaN
        raise ValueError(f"probabilities lie in 0…1, got {maps.min().item():g} to {maps.max().item():g}")
    if isinstance(at, str):
        if at not in ("otsu", "adaptive"):
            raise unknown_name("threshold", at, ["otsu", "adaptive"])
        if not maps.numel():
            return like(maps > 0.5, probabilities)
        flat = maps.flatten(-2)
        constant = (flat.amin(-1) == flat.amax(-1))[..., None, None]
        if at == "adaptive":
            chosen = (2 * maps.mean((-2, -1), keepdim=True)).clamp_(max=1)
            return like(torch.where(constant, maps > 0.5, maps >= chosen), probabilities)
        return like(maps > torch.where(constant, 0.5, _otsu(flat)[..., None, None]), probabilities)
    if isinstance(at, bool) or not 0 <= at <= 1:
        raise ValueError(f"the threshold is {at!r}, expected a number in 0…1, 'otsu' or 'adaptive'")
    return like(maps > at, probabilities)


def _otsu(maps: Tensor) -> Tensor:
    """The threshold of each row of ``[..., P]``: the upper border of the first of equally good levels."""
    rows = maps.reshape(-1, maps.shape[-1])
    level = (rows * 256).long().clamp_(max=255)
    level += torch.arange(len(rows), device=rows.device)[:, None] * 256
    count = torch.bincount(level.view(-1), minlength=256 * len(rows)).view(-1, 256).cpu().double()
    below = count.cumsum(1)
    weight = (count * torch.arange(256)).cumsum(1)
    total, mass = below[:, -1:], weight[:, -1:]
    # The variance between the groups is (mass · below - weight · total)² / (below · above · total²).
    between = (mass * below - weight * total).square() / (below * (total - below)).clamp_(min=1)
    chosen = (between.argmax(1) + 1) / 256
    return chosen.to(maps.device, maps.dtype).reshape(maps.shape[:-1])


def largest_component(mask: Kind, connectivity: int = 8, *, ignore_index: int | None = None) -> Kind:
    """Of every object only its largest connected component; the rest becomes background, 0.

    Every value but 0 is an object: the foreground of a mask (of bool, of 0 and 1, of 0 and 255), each class of a label
    map.

    Args:
        mask: ``[..., H, W]``, bool or integer, a tensor on any device or an array; every leading index is a picture of
            its own.
        connectivity: 8 if pixels that share a corner are connected, 4 if only those that share a side are.
        ignore_index: A label that stays where it is, or None.

    Returns:
        The mask, of the same kind, shape and dtype. Of components of the same size the first in reading order stays;
        an empty mask stays empty.

    Raises:
        ValueError: For floating point (take a ``threshold``), fewer than two dimensions, or another connectivity.

    Examples:
        >>> import torch
        >>> largest_component(torch.tensor([[1, 1, 0, 1], [0, 0, 0, 2]]))
        tensor([[1, 1, 0, 0],
                [0, 0, 0, 2]])
    """
    labels = _labels(mask)
    components, sizes = _components(labels, connectivity, background=0)
    kept = torch.zeros_like(labels, dtype=torch.bool)
    for value in labels.unique().tolist():
        if value in (0, ignore_index):
            kept |= labels == value
            continue
        # argmax takes the first of equals, and components are numbered in reading order.
        here = labels == value
        present = torch.zeros_like(sizes, dtype=torch.bool)
        present.scatter_(1, torch.where(here, components, 0).flatten(1), True)
        present[:, 0] = False
        best = (sizes * present).argmax(1)
        kept |= here & (components == best[:, None, None])
    return _same(torch.where(kept, labels, 0), mask)


def remove_small(
    mask: Kind,
    min_area: float,
    *,
    holes: float | None = None,
    connectivity: int = 8,
    ignore_index: int | None = None,
) -> Kind:
    """A mask without specks and holes, or a label map without patches, that are smaller than an area.

    In a mask, which has one value beside 0, specks become 0 first, then holes take the value around them. With
    ``connectivity`` 8 a foreground connected across corners separates what it encloses, so holes are connected across
    sides alone, and the other way round: scikit-image's convention. In a label map, which has several values beside 0,
    a small patch of any label, 0 included, becomes the label of the nearest pixel that stays.

    Args:
        mask: ``[..., H, W]``, bool or integer, a tensor on any device or an array; every leading index is a picture of
            its own.
        min_area: Smaller areas go: in pixels, or, below 1, as a share of the picture.
        holes: The same for the holes of a mask; None: as ``min_area``, 0: they stay. A label map has none of its own.
        connectivity: 8 if pixels of an object that share a corner are connected, 4 if only those that share a side are.
        ignore_index: A label that stays where it is and is lent to no other pixel, or None.

    Returns:
        The mask, of the same kind, shape and dtype. A picture that is all one component, or has no pixel left to take
        a label from, stays as it is; only specks vanish without one.

    Raises:
        ValueError: For floating point (take a ``threshold``), fewer than two dimensions, a negative area, or another
            connectivity.

    Examples:
        >>> import torch
        >>> remove_small(torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 0, 1], [1, 1, 1, 0, 0]]), 2)
        tensor([[1, 1, 1, 0, 0],
                [1, 1, 1, 0, 0],
                [1, 1, 1, 0, 0]])
        >>> remove_small(torch.tensor([[1, 1, 1, 0, 2, 2, 2]]), 2)
        tensor([[1, 1, 1, 1, 2, 2, 2]])
    """
    labels = _labels(mask)
    area, hole_area = (_area(x, labels) for x in (min_area, min_area if holes is None else holes))
    values = [v for v in labels.unique().tolist() if v not in (0, ignore_index)]
    if len(values) > 1:
        return _same(_relabelled(labels, area, connectivity, ignore_index), mask)
    if values:
        ignored = torch.zeros_like(labels, dtype=torch.bool) if ignore_index is None else labels == ignore_index
        inside = labels == values[0]
        inside = inside & ~_small(inside, area, connectivity)
        outside = ~inside & ~ignored
        filled = _small(outside, hole_area, 12 - connectivity) & inside.any(-1, keepdim=True).any(-2, keepdim=True)
        labels = torch.where(ignored, labels, torch.where(inside | filled, values[0], 0))
    return _same(labels, mask)


def _relabelled(labels: Tensor, area: float, connectivity: int, ignore_index: int | None) -> Tensor:
    """Label maps ``[N, H, W]`` whose small patches have the nearest label."""
    components, sizes = _components(labels, connectivity, background=None)
    small = sizes.gather(1, components.flatten(1)).view_as(components) < area
    stays = ~small if ignore_index is None else ~small & (labels != ignore_index)
    if ignore_index is not None:
        small &= labels != ignore_index
    row, column = distance_to(stays, return_indices=True)[1].unbind(-3)
    nearest = (row * labels.shape[-1] + column).clamp_(min=0).flatten(1)
    lent = labels.flatten(1).gather(1, nearest).view_as(labels)
    return torch.where(small & stays.any(-1, keepdim=True).any(-2, keepdim=True), lent, labels)


def _small(mask: Tensor, area: float, connectivity: int) -> Tensor:
    """Where a component of a bool mask ``[N, H, W]`` is smaller than ``area``."""
    components, sizes = _components(mask, connectivity, background=0)
    return mask & (sizes.gather(1, components.flatten(1)).view_as(components) < area)


def _components(labels: Tensor, connectivity: int, *, background: int | None) -> tuple[Tensor, Tensor]:
    """The component of every pixel ``[N, H, W]``, and the size of each ``[N, components + 1]``."""
    components, _ = connected_components(labels, connectivity, background=background)
    return components, component_sizes(components)


def _labels(mask: Tensor | Array) -> Tensor:
    """``[N, H, W]`` of ``[..., H, W]``, in a dtype that torch computes with."""
    labels = as_tensor("mask", mask)
    if labels.is_floating_point():
        raise ValueError(f"mask is {labels.dtype}, expected bool or integers: make one with threshold(probabilities)")
    if labels.ndim < 2:
        raise ValueError(f"mask is {list(labels.shape)}, expected [..., H, W]")
    if labels.dtype in (torch.uint16, torch.uint32, torch.uint64):
        labels = labels.long()
    return labels.reshape(labels.shape[:-2].numel(), *labels.shape[-2:])


def _same(labels: Tensor, mask: Kind) -> Kind:
    """``labels`` with the shape, dtype and kind of what was given."""
    result = labels.reshape(mask.shape)
    return result.to(mask.dtype) if isinstance(mask, Tensor) else result.numpy().astype(mask.dtype)


def _area(area: float, labels: Tensor) -> float:
    if isinstance(area, bool) or not isinstance(area, Real) or not area >= 0:
        raise ValueError(f"the area is {area!r}, expected pixels, or a share of the picture below 1")
    pixels = labels.shape[-2] * labels.shape[-1]
    return round(float(area) * pixels, 6) if area < 1 else float(area)
