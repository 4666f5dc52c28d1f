"""Masks made of probabilities, and rid of what is too small: thresholds, the largest component, specks and holes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from segzoo._errors import unknown_name
from segzoo.inference._arrays import Array, Kind, as_tensor, is_number, like
from segzoo.ops import distance_to
from segzoo.ops.components import component_sizes, connected_components, where_equal

__all__ = ["largest_component", "of_nearest", "remove_small", "threshold"]


def threshold(probabilities: Kind, at: float | Literal["otsu", "adaptive"] = 0.5) -> Kind:
    """The mask of what is more probable than a threshold, which may be chosen for each map by itself.

    Args:
        probabilities: ``[..., H, W]``, floating point in 0…1, a tensor on any device or an array.
        at: The threshold; or ``"otsu"``: the one of 256 levels that splits the map's values into two groups of the
            least variance; or ``"adaptive"``: twice the map's mean, at most 1, the field's adaptive threshold. A map
            that has one value only has nothing to split: 0.5 holds.

    Returns:
        A bool mask ``[..., H, W]`` of the same kind; true where the probability exceeds the threshold, with
        ``"otsu"`` where its level does (``"adaptive"`` also where it is equal, as `SaliencyMetrics` has it).

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
        return like(torch.where(constant, maps > 0.5, _otsu(flat).view_as(maps)), probabilities)
    if not is_number(at) or not 0 <= at <= 1:
        raise ValueError(f"the threshold is {at!r}, expected a number in 0…1, 'otsu' or 'adaptive'")
    return like(maps > at, probabilities)


def _otsu(maps: Tensor) -> Tensor:
    """Where values of each row of ``[..., P]`` are above the level that splits it best, the first of equally good."""
    rows = maps.reshape(-1, maps.shape[-1])
    level = (rows * 256).long().clamp_(max=255)
    numbered = level + torch.arange(len(rows), device=rows.device)[:, None] * 256
    count = torch.bincount(numbered.view(-1), minlength=256 * len(rows)).view(-1, 256).cpu().double()
    below = count.cumsum(1)
    weight = (count * torch.arange(256)).cumsum(1)
    total, mass = below[:, -1:], weight[:, -1:]
    # The variance between the groups is (mass · below - weight · total)² / (below · above · total²).
    between = (mass * below - weight * total).square() / (below * (total - below)).clamp_(min=1)
    return (level > between.argmax(1, keepdim=True).to(level.device)).view(maps.shape)


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
    value = torch.zeros_like(sizes).scatter_(1, components.flatten(1), labels.flatten(1).long())
    picture, number = (sizes * (torch.arange(sizes.shape[1], device=sizes.device) > 0)).nonzero().unbind(1)
    size, value = sizes[picture, number], value[picture, number]
    # By picture, value, falling size; sorts are stable and components numbered in reading order.
    order = size.argsort(descending=True, stable=True)
    for key in (value, picture):
        order = order[key[order].argsort(stable=True)]
    picture, number, value = picture[order], number[order], value[order]
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = (picture[1:] != picture[:-1]) | (value[1:] != value[:-1])
    largest = torch.zeros_like(sizes, dtype=torch.bool)
    largest[picture[first], number[first]] = True
    kept = largest.gather(1, components.flatten(1)).view_as(labels) | _ignored(labels, ignore_index)
    return _same(torch.where(kept, labels, 0), mask)


def remove_small(
    mask: Kind,
    min_area: float,
    *,
    holes: float | None = None,
    connectivity: int = 8,
    labels: bool | None = None,
    ignore_index: int | None = None,
) -> Kind:
    """A mask without specks and holes, or a label map without patches, that are smaller than an area.

    In a mask, which has one value beside 0 (each picture its own), specks become 0 first, then holes take the value
    around them. With ``connectivity`` 8 a foreground connected across corners separates what it encloses, so holes are
    connected across sides alone, and the other way round: scikit-image's convention. In a label map, which has several
    values beside 0, a small patch of any label, 0 included, becomes the label of the nearest pixel that stays.

    Args:
        mask: ``[..., H, W]``, bool or integer, a tensor on any device or an array; every leading index is a picture of
            its own.
        min_area: Smaller areas go: in pixels, or, below 1, as a share of the picture.
        holes: The same for the holes of a mask; None: as ``min_area``, 0: they stay. Not of a label map, whose holes
            are patches as any other.
        connectivity: 8 if pixels of an object that share a corner are connected, 4 if only those that share a side are.
        labels: Whether it is a label map, also where a picture happens to show one class only, or a mask. None: each
            picture is what it has values for, by itself; of a video's frames say which.
        ignore_index: A label that stays where it is and is lent to no other pixel, or None.

    Returns:
        The mask, of the same kind, shape and dtype. A picture that is all one component, or has no pixel left to take
        a label from, stays as it is; only specks vanish without one.

    Raises:
        ValueError: For floating point (take a ``threshold``), fewer than two dimensions, a negative area, another
            connectivity, ``holes`` of a label map, or ``labels=False`` with several values beside 0.

    Examples:
        >>> import torch
        >>> remove_small(torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 0, 1], [1, 1, 1, 0, 0]]), 2)
        tensor([[1, 1, 1, 0, 0],
                [1, 1, 1, 0, 0],
                [1, 1, 1, 0, 0]])
        >>> remove_small(torch.tensor([[1, 1, 1, 0, 2, 2, 2]]), 2)
        tensor([[1, 1, 1, 1, 2, 2, 2]])
    """
    maps = _labels(mask)
    area, hole_area = (_area(x, maps) for x in (min_area, min_area if holes is None else holes))
    ignored = _ignored(maps, ignore_index)
    least, value = _range(maps, ~ignored & (maps != 0))
    several = least < value
    if labels is False and several.any():
        raise ValueError("a mask has one value beside 0 in a picture, this one has several: it is a label map")
    patches = several if labels is None else torch.full_like(several, labels)
    if holes is not None and (labels or patches.any()):
        raise ValueError("holes are a mask's, this is a label map: leave them out, min_area is for all its patches")
    result = torch.empty_like(maps)
    if patches.any():
        result[patches] = _relabelled(maps[patches], ignored[patches], area, connectivity)
    if not patches.all():
        rest = ~patches
        result[rest] = _cleaned(maps[rest], value[rest], ignored[rest], (area, hole_area), connectivity)
    return _same(result, mask)


def _range(maps: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest of some values of each map ``[N, H, W]``; 0 and 0 where there are none."""
    if not maps.numel():
        return maps.new_zeros(len(maps), dtype=torch.int64), maps.new_zeros(len(maps), dtype=torch.int64)
    limits = torch.iinfo(torch.int64)
    values, some = maps.long().flatten(1), which.flatten(1)
    found = some.any(1)
    least = torch.where(some, values, limits.max).amin(1)
    most = torch.where(some, values, limits.min).amax(1)
    return torch.where(found, least, 0), torch.where(found, most, 0)


def _cleaned(maps: Tensor, value: Tensor, ignored: Tensor, areas: tuple[float, float], connectivity: int) -> Tensor:
    """Masks ``[N, H, W]`` of one value each, ``[N]``, without specks and then without holes."""
    value = value.to(maps.dtype)[:, None, None]
    inside = (maps == value) & ~ignored & (maps != 0)
    inside &= ~_small(inside, areas[0], connectivity)
    holes = _small(~inside & ~ignored, areas[1], 12 - connectivity)
    holes &= inside.any(-1, keepdim=True).any(-2, keepdim=True)
    return torch.where(ignored, maps, torch.where(inside | holes, value, 0).to(maps.dtype))


def _relabelled(labels: Tensor, ignored: Tensor, area: float, connectivity: int) -> Tensor:
    """Label maps ``[N, H, W]`` whose small patches have the nearest label."""
    components, sizes = _components(labels, connectivity, background=None)
    small = (sizes.gather(1, components.flatten(1)).view_as(components) < area) & ~ignored
    if not small.any():
        return labels
    stays = ~small & ~ignored
    lent = of_nearest(labels, stays)
    return torch.where(small & stays.any(-1, keepdim=True).any(-2, keepdim=True), lent, labels)


def of_nearest(values: Tensor, sites: Tensor) -> Tensor:
    """Of every pixel of ``[N, H, W]`` the value at the nearest of the sites; anything in a map that has none.

    Examples:
        >>> of_nearest(torch.tensor([[[1, 2, 3, 4]]]), torch.tensor([[[True, False, False, True]]]))
        tensor([[[1, 1, 4, 4]]])
    """
    row, column = distance_to(sites, return_indices=True)[1].unbind(-3)
    nearest = (row * sites.shape[-1] + column).clamp_(min=0).flatten(1)
    return values.flatten(1).gather(1, nearest).view_as(values)


def _ignored(labels: Tensor, ignore_index: int | None) -> Tensor:
    return torch.zeros_like(labels, dtype=torch.bool) if ignore_index is None else where_equal(labels, ignore_index)


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
    if not is_number(area) or not area >= 0:
        raise ValueError(f"the area is {area!r}, expected pixels, or a share of the picture below 1")
    pixels = labels.shape[-2] * labels.shape[-1]
    return round(float(area) * pixels, 6) if area < 1 else float(area)
