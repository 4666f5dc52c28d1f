"""Connected components of masks and label maps, exactly, on the device of the mask: their numbers and their sizes."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["component_sizes", "connected_components"]


def connected_components(mask: Tensor, connectivity: int = 8, *, background: int | None = 0) -> tuple[Tensor, Tensor]:
    """Number the connected components of every map: the areas of equal value in which neighbours lead everywhere.

    Pixels in a row with the same value are a run; runs that touch in neighbouring rows are joined in rounds, each of
    which leaves at most half of those that still touch another, so that spirals and noise take no more than O(log)
    rounds. ``scipy.ndimage.label`` gives the same numbers to a mask.

    Args:
        mask: ``[..., H, W]``, bool or integer. Every leading index is a map of its own. Different values are different
            components, even where they touch.
        connectivity: 8 if pixels that share a corner are neighbours, 4 if only those that share a side are.
        background: The value that belongs to no component; None, or one that the dtype cannot hold, if all values do.

    Returns:
        The component of every pixel, ``[..., H, W]`` int64, and how many components each map has, ``[...]`` int64.
        Components are numbered 1 to n in reading order of their first pixels; the background is 0.

    Raises:
        ValueError: ``mask`` is not a bool or integer tensor with two or more dimensions, or ``connectivity`` is
            neither 4 nor 8.

    Source:
        Rosenfeld, Pfaltz, "Sequential operations in digital picture processing", 1966: the definition. Runs are joined
        as in Borůvka's algorithm, with pointer jumping (Shiloach, Vishkin, "An O(log n) parallel connectivity
        algorithm", 1982).

    Examples:
        >>> import torch
        >>> labels, count = connected_components(torch.tensor([[1, 0, 0, 1], [0, 1, 0, 1]]))
        >>> labels
        tensor([[1, 0, 0, 2],
                [0, 1, 0, 2]])
        >>> count
        tensor(2)
    """
    if mask.is_floating_point() or mask.is_complex():
        raise ValueError(f"mask is {mask.dtype}, expected bool or integers")
    if mask.ndim < 2:
        raise ValueError(f"mask is {list(mask.shape)}, expected [..., H, W]")
    if connectivity not in (4, 8):
        raise ValueError(f"connectivity is {connectivity!r}, expected 4 or 8")
    if mask.device.type == "mps":  # its scatters do not take int64
        labels, counts = connected_components(mask.cpu(), connectivity, background=background)
        return labels.to(mask.device), counts.to(mask.device)
    if mask.numel() == 0:
        return mask.new_zeros(mask.shape, dtype=torch.int64), mask.new_zeros(mask.shape[:-2], dtype=torch.int64)
    values = mask.reshape(-1, *mask.shape[-2:]).contiguous()
    if values.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch cannot compare these everywhere
        values = values.to(torch.int64)
    inside = None if background is None else ~where_equal(values, background)
    run, starts, upper, lower = _runs(values, inside, connectivity == 8)
    first = _join(starts, upper, lower)
    labels, counts = _number(run, first, starts, inside)
    return labels.view(mask.shape), counts.view(mask.shape[:-2])


def component_sizes(labels: Tensor) -> Tensor:
    """How many pixels each component has, from the numbers that `connected_components` gives.

    Args:
        labels: ``[..., H, W]``, integers from 0 up.

    Returns:
        ``[..., n + 1]`` int64, where n is the largest number in all the maps: at ``[..., i]`` the pixels numbered i,
        at 0 the background. Numbers that a map does not have are 0.

    Raises:
        ValueError: ``labels`` is not an integer tensor with two or more dimensions.

    Examples:
        >>> import torch
        >>> component_sizes(torch.tensor([[1, 0, 0, 2], [0, 1, 0, 2]]))
        tensor([4, 2, 2])
    """
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool or labels.ndim < 2:
        raise ValueError(f"labels are {labels.dtype} {list(labels.shape)}, expected integers [..., H, W]")
    leading = labels.shape[:-2]
    maps = leading.numel()
    most = int(labels.max()) + 1 if labels.numel() else 1
    flat = (
        labels.reshape(maps, labels.shape[-2] * labels.shape[-1]).long()
        + torch.arange(maps, device=labels.device)[:, None] * most
    )
    return torch.bincount(flat.view(-1), minlength=maps * most).view(*leading, most)


def where_equal(values: Tensor, number: int) -> Tensor:
    """Where bool or integer ``values`` are a number: nowhere, if their dtype cannot hold it.

    Examples:
        >>> import torch
        >>> where_equal(torch.tensor([255], dtype=torch.uint8), -1)  # which compares as 255
        tensor([False])
    """
    if values.dtype != torch.bool:
        limits = torch.iinfo(values.dtype)
        if not limits.min <= number <= limits.max:
            return torch.zeros_like(values, dtype=torch.bool)
    return values == number


def _runs(values: Tensor, inside: Tensor | None, corners: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs of equal values in the rows of ``[N, H, W]``, and which of them touch in neighbouring rows.

    Returns:
        The number of the run that a pixel is in or, outside, the last before it, ``[N, H, W]``; how many runs begin in
        each map and those before, ``[N]``; the upper and the lower run of every two that touch, ``[E]`` each.
    """
    start = torch.ones_like(values, dtype=torch.bool)
    torch.ne(values[..., 1:], values[..., :-1], out=start[..., 1:])
    end = torch.ones_like(start)
    end[..., :-1] = start[..., 1:]
    if inside is not None:
        start &= inside
        end &= inside
    run = start.view(-1).cumsum(0, dtype=torch.int32 if start.numel() < 2**31 else torch.int64).view(start.shape)
    run -= 1

    width = values.shape[-1]
    touching = torch.zeros_like(start)
    upper, lower = [], []

    def add(to_upper: int, to_lower: int) -> None:
        place = touching.view(-1).nonzero().view(-1)
        upper.append(run.view(-1).index_select(0, place - to_upper))
        lower.append(run.view(-1).index_select(0, place - to_lower))

    # Two runs that overlap do so first where one of them starts.
    overlap = touching[:, 1:]
    torch.eq(values[:, :-1], values[:, 1:], out=overlap)
    overlap &= start[:, :-1] | start[:, 1:]
    if inside is not None:
        overlap &= inside[:, 1:]
    add(width, 0)
    if corners:  # those that do not overlap touch where one ends and the other starts
        touching[..., 0] = False
        corner = touching[:, 1:, 1:]
        torch.eq(values[:, :-1, :-1], values[:, 1:, 1:], out=corner)
        corner &= end[:, :-1, :-1]
        corner &= start[:, 1:, 1:]
        add(width + 1, 0)
        torch.eq(values[:, :-1, 1:], values[:, 1:, :-1], out=corner)
        corner &= start[:, :-1, 1:]
        corner &= end[:, 1:, :-1]
        add(width, 1)
    return run, run[:, -1, -1].long() + 1, torch.cat(upper).long(), torch.cat(lower).long()


def _join(starts: Tensor, upper: Tensor, lower: Tensor) -> Tensor:
    """The first run of the component that each run belongs to, ``[R]``."""
    runs = int(starts[-1])
    # First every run is joined to one above it, whichever: who only goes up never comes back to where he was.
    parent = torch.arange(runs, device=starts.device)
    parent[lower] = upper
    steps = []
    while True:
        step, roots = _contract(parent)
        steps.append(step)
        upper, lower = step.index_select(0, upper), step.index_select(0, lower)
        apart = (upper != lower).nonzero().view(-1)
        if len(apart) == 0:
            break
        upper, lower = upper.index_select(0, apart), lower.index_select(0, apart)
        # To the smallest neighbour: on a circle of such steps every second one would be no larger than the one before,
        # so that a circle has two members, of which the smaller stays where it is.
        parent = torch.arange(roots, device=starts.device)
        smallest = torch.full_like(parent, roots)
        smallest.scatter_reduce_(0, upper, lower, "amin").scatter_reduce_(0, lower, upper, "amin")
        smallest = torch.where(smallest == roots, parent, smallest)
        stays = (smallest.index_select(0, smallest) == parent) & (parent < smallest)
        parent = torch.where(stays, parent, smallest)
    component = steps.pop()
    while steps:
        component = component.index_select(0, steps.pop())
    first = torch.full((roots,), runs, device=starts.device)
    first.scatter_reduce_(0, component, torch.arange(runs, device=starts.device), "amin")
    return first.index_select(0, component)


def _contract(parent: Tensor) -> tuple[Tensor, int]:
    """Number the roots of a forest 0 to n - 1: the root of every node, and n."""
    while True:
        further = parent.index_select(0, parent)
        if torch.equal(further, parent):
            break
        parent = further
    number = (parent == torch.arange(len(parent), device=parent.device)).cumsum(0)
    return (number - 1).index_select(0, parent), int(number[-1]) if len(number) else 0


def _number(run: Tensor, first: Tensor, starts: Tensor, inside: Tensor | None) -> tuple[Tensor, Tensor]:
    """Labels and counts from the first run of each run's component."""
    is_first = first == torch.arange(len(first), device=first.device)
    number = torch.cat((starts.new_zeros(1), is_first.cumsum(0)))  # of components before a run
    ends = number[starts]
    before = torch.cat((ends.new_zeros(1), ends[:-1]))
    number = number[1:].index_select(0, first)
    if len(starts) > 1:
        sizes = torch.diff(starts, prepend=starts.new_zeros(1))
        number = number - before.repeat_interleave(sizes, output_size=len(first))
    if inside is None:
        labels = number.index_select(0, run.view(-1)).view(run.shape)
    else:
        number = torch.cat((number, number.new_zeros(1)))
        labels = number.index_select(0, run.masked_fill(~inside, len(first)).view(-1)).view(run.shape)
    return labels, ends - before
