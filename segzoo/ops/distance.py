"""Exact Euclidean distance maps, on the device of the mask: to the nearest pixel of an object, and signed."""

from __future__ import annotations

import math
from typing import Any, Literal, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["distance_to", "signed_distance"]

# Maps are worked on in blocks of so many pixels: operations on few take as long as it takes to start them. What is done
# for every pixel of a block is done in strips, which take about 60 bytes a pixel on the way. On the CPU they stay in
# the cache, and their memory is not asked of the system again each time.
_BLOCK = 2**22
_CPU_STRIP = 2**17


@overload
def distance_to(
    mask: Tensor, *, spacing: tuple[float, float] = (1.0, 1.0), return_indices: Literal[False] = False
) -> Tensor: ...


@overload
def distance_to(
    mask: Tensor, *, spacing: tuple[float, float] = (1.0, 1.0), return_indices: Literal[True]
) -> tuple[Tensor, Tensor]: ...


def distance_to(
    mask: Tensor, *, spacing: tuple[float, float] = (1.0, 1.0), return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Exact Euclidean distance from every pixel's centre to the nearest site, a nonzero pixel, of its own map.

    Nearest sites in each column first, then per row the lower envelope of the columns' parabolas. Nothing is
    approximated: with ``spacing`` 1 the distance is the correctly rounded square root of the integer it is the root of.
    The mask needs no gradient and gets none; to ``torch.compile`` and ``torch.func`` this is one operator.

    Args:
        mask: ``[..., H, W]``, bool or integer. Every leading index is a map of its own.
        spacing: Height and width of a pixel, in the unit the distance shall have.
        return_indices: Also return which site is the nearest.

    Returns:
        Distances ``[..., H, W]`` float32, ``inf`` all over a map that has no site. With ``return_indices`` also row and
        column of the nearest site, ``[..., 2, H, W]`` int64, -1 where there is none. Of sites equally near it is the
        one in the leftmost column and there the topmost: SciPy's ``distance_transform_edt`` chooses the same.

    Raises:
        ValueError: ``mask`` is not a bool or integer tensor with two or more dimensions, or a spacing is not positive
            and finite.

    Source:
        Felzenszwalb, Huttenlocher, "Distance Transforms of Sampled Functions", 2012, Section 2.1. The parabolas of the
        lower envelope are the vertices of a lower convex hull, which is found here for all rows at once.

    Examples:
        >>> import torch
        >>> distance_to(torch.tensor([[0, 0, 1], [0, 0, 0]]))
        tensor([[2.0000, 1.0000, 0.0000],
                [2.2361, 1.4142, 1.0000]])
    """
    _check(mask)
    rows, columns = (float(step) for step in spacing)
    if not (0 < rows < math.inf and 0 < columns < math.inf):
        raise ValueError(f"spacing is {spacing}, but height and width of a pixel are positive and finite")
    distance, indices = _distance_to(mask, rows, columns, return_indices)
    return (distance, indices) if return_indices else distance


def signed_distance(mask: Tensor, valid: Tensor | None = None) -> Tensor:
    """Signed distance to the boundary of an object: positive outside, zero or negative inside, in pixels.

    Outside it is the distance to the nearest pixel of the object, inside 1 less the distance to the nearest pixel that
    is not: 0 on the object's outermost pixels, -1 on the next. Where there is no boundary, because the object is empty
    or fills its map, it is 0 everywhere.

    Args:
        mask: ``[..., H, W]``, bool or integer; nonzero is the object. Every leading index is a map of its own.
        valid: Bool, broadcastable to ``mask``. An invalid pixel belongs neither to the object nor to the rest: no
            distance is measured to it and its own value is 0, whatever the mask says there.

    Returns:
        ``[..., H, W]`` float32.

    Raises:
        ValueError: ``mask`` is not a bool or integer tensor with two or more dimensions, or ``valid`` is not a bool
            tensor that broadcasts to it.

    Source:
        Kervadec et al., "Boundary loss for highly unbalanced segmentation", MIDL 2019: the level set function of the
        ground truth, in the convention of the authors' code (``one_hot2dist`` of github.com/LIVIAETS/boundary-loss).

    Examples:
        >>> import torch
        >>> signed_distance(torch.tensor([[0, 0, 1, 1, 1]]))
        tensor([[ 2.,  1.,  0., -1., -2.]])
    """
    _check(mask)
    inside = mask.to(torch.bool)
    outside = ~inside
    if valid is not None:
        if valid.dtype != torch.bool:
            raise ValueError(f"valid is {valid.dtype}, expected torch.bool")
        if valid.ndim > mask.ndim or any(a not in (1, b) for a, b in zip(reversed(valid.shape), reversed(mask.shape))):
            raise ValueError(f"valid is {list(valid.shape)}, which does not broadcast to the mask's {list(mask.shape)}")
        inside, outside = inside & valid, outside & valid
    to_object = distance_to(inside)
    to_rest = distance_to(outside)
    # Where one kind of pixel is missing the distance to it is infinite all over the map.
    distance = torch.where(outside, to_object, torch.where(inside, 1 - to_rest, 0.0))
    return distance.masked_fill(to_object.isinf() | to_rest.isinf(), 0.0)


def _check(mask: Tensor) -> None:
    if mask.is_floating_point() or mask.is_complex():
        raise ValueError(f"mask is {mask.dtype}, expected bool or integers")
    if mask.ndim < 2:
        raise ValueError(f"mask is {list(mask.shape)}, expected [..., H, W]")


# One operator for the compiler and for torch.func: what is done inside depends on the values.
@torch.library.custom_op("segzoo::distance_to", mutates_args=())
def _distance_to(mask: Tensor, rows: float, columns: float, return_indices: bool) -> tuple[Tensor, Tensor]:
    if mask.device.type == "mps":  # it has no float64
        distance, indices = _distance_to(mask.cpu(), rows, columns, return_indices)
        return distance.to(mask.device), indices.to(mask.device)
    height, width = mask.shape[-2:]
    distance, indices = _outputs(mask, return_indices)
    if mask.numel() == 0:
        return distance, indices
    maps = mask.reshape(-1, height, width)
    flat_distance = distance.view(maps.shape)
    flat_indices = indices.view(-1, 2, height, width) if return_indices else None
    strip = _CPU_STRIP if mask.device.type == "cpu" else _BLOCK
    # A map larger than a block is cut in stripes: of columns for the first pass, of rows for the second.
    count, stripe, breadth = (max(1, _BLOCK // size) for size in (height * width, width, height))
    for first in range(0, len(maps), count):
        some = slice(first, first + count)
        parts = [_sites_in_column(part) for part in maps[some].split(max(1, min(breadth, strip // height)), -1)]
        above, below = (torch.cat(part, -1) for part in zip(*parts))
        for top in range(0, height, stripe):
            here = slice(top, top + stripe)
            row = torch.arange(height, dtype=above.dtype, device=mask.device)[here, None]
            outputs = [flat_distance[some, here]]
            if flat_indices is not None:
                outputs += [flat_indices[some, 0, here], flat_indices[some, 1, here]]
            _nearest(above[:, here], below[:, here], row, -height, (rows, columns), strip, outputs)
    return distance, indices


def _outputs(mask: Tensor, return_indices: bool) -> tuple[Tensor, Tensor]:
    shape = (*mask.shape[:-2], 2, *mask.shape[-2:]) if return_indices else (0,)
    return mask.new_empty(mask.shape, dtype=torch.float32), mask.new_empty(shape, dtype=torch.int64)


@_distance_to.register_fake
def _(mask: Tensor, rows: float, columns: float, return_indices: bool) -> tuple[Tensor, Tensor]:
    return _outputs(mask, return_indices)


@_distance_to.register_vmap
def _(
    info: object, in_dims: tuple[int | None, ...], mask: Tensor, rows: float, columns: float, return_indices: bool
) -> tuple[tuple[Tensor, Tensor], tuple[int, int | None]]:
    assert in_dims[0] is not None
    # Leading dimensions are maps of their own anyway.
    outputs = _distance_to(mask.movedim(in_dims[0], 0), rows, columns, return_indices)
    return outputs, (0, 0 if return_indices else None)


def _sites_in_column(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the next sites above and below in a pixel's own column, itself included: -2H and 4H where there is none.

    To every row -2H is nearer than 4H, and any site is nearer than both.
    """
    height = mask.shape[-2]
    dtype = torch.int16 if 4 * height <= torch.iinfo(torch.int16).max else torch.int32
    row = torch.arange(height, dtype=dtype, device=mask.device)[:, None]
    sites = mask.to(torch.bool).to(dtype)
    # The maximum over a window that reaches from any row to the end of the column, by maxima of maxima.
    steps = [2**i for i in reversed(range((height - 1).bit_length()))]
    above = F.pad(sites * (row + 2 * height), (0, 0, sum(steps), 0))
    below = F.pad(sites * (4 * height - row), (0, 0, 0, sum(steps)))
    for step in steps:
        above = torch.maximum(above[:, step:], above[:, :-step])
        below = torch.maximum(below[:, step:], below[:, :-step])
    return above - 2 * height, 4 * height - below


def _nearest(
    above: Tensor,
    below: Tensor,
    row: Tensor,
    none: int,
    spacing: tuple[float, float],
    strip: int,
    outputs: list[Tensor],
) -> None:
    """Write distances and, if asked for, rows and columns of the nearest sites in the rows ``row``, ``[N, h, W]``.

    Args:
        above: Of `_sites_in_column` the part in these rows, like ``below``.
        below: See ``above``.
        row: Their numbers, ``[h, 1]``.
        none: What is as far or further, counted negative, is no site.
        spacing: Height and width of a pixel.
        strip: How many pixels to look at together.
        outputs: What to write to: distances, or distances, rows and columns.
    """
    count, height, width = above.shape
    # Squares of whole numbers, and sums of two, are exact in float32 up to 2**24. Slopes are rounded, but none that is
    # less than an even integer, all that decides in `_lower_envelope`, is rounded to it: they differ by 1 / W or more.
    exact = spacing == (1, 1) and none**2 + width**2 <= 2**23
    across = torch.arange(width + 1, dtype=torch.float32 if exact else torch.float64, device=above.device)
    maps, rows = max(1, strip // (height * width)), max(1, strip // width)
    strips = [
        (slice(one, one + maps), slice(top, top + rows))
        for one in range(0, count, maps)
        for top in range(0, height, rows)
    ]
    candidates = []
    first = 0
    for some, here in strips:
        gap = torch.maximum(above[some, here] - row[here], row[here] - below[some, here])
        points = (_fall(gap, none, spacing[0], across.dtype) / spacing[1]).square_().add_(across.square())
        site = gap.view(-1, width) == 0
        candidates.append(_candidates(_light(points.view(-1, width + 1)), _light(site), _light(across), first))
        first += points.numel()
    start, column, length = _lower_envelope(candidates, width, first)
    first = 0
    for some, here in strips:
        gap = torch.maximum(above[some, here] - row[here], row[here] - below[some, here])
        fall = _fall(gap, none, spacing[0], across.dtype)
        low, high = torch.searchsorted(start, start.new_tensor([first, first + fall.numel()])).tolist()
        mine = slice(low, high)
        down = fall.view(-1).index_select(0, start[mine] + column[mine].long() - first).square_()
        owner = torch.repeat_interleave(length[mine], output_size=fall.numel())
        far = column[mine].index_select(0, owner).view(fall.shape).sub_(across).mul_(spacing[1])
        squared = far.square_().add_(down.index_select(0, owner).view(fall.shape))
        # Sites may not be on the envelope, see there.
        squared = torch.minimum(squared, fall.square_(), out=squared)[..., :width]
        if squared.device.type == "cpu":
            np.sqrt(squared.numpy(), out=outputs[0][some, here].numpy(), casting="same_kind")
        else:  # torch does not round square roots in float32 correctly
            outputs[0][some, here] = squared.double().sqrt_()
        if len(outputs) > 1:
            site_column = column[mine].long().index_select(0, owner).view(fall.shape)[..., :width]
            site_column = torch.where(gap == 0, torch.arange(width, device=above.device), site_column)
            site_row = torch.where(above[some, here] == row[here] + gap, above[some, here], below[some, here])
            site_row = site_row.gather(-1, site_column).clamp_(min=-1)
            site_column[site_row[:, 0, 0] < 0] = -1  # if one pixel of a map has no nearest site, none has
            outputs[1][some, here], outputs[2][some, here] = site_row, site_column
        first += fall.numel()


def _fall(gap: Tensor, none: int, height: float, dtype: torch.dtype) -> Tensor:
    """Distances to the nearest site in the column, negative, infinite where there is none: ``[N, h, W + 1]``.

    The last column is NaN: no comparison with it holds, so that rows can lie one after another in one array.
    """
    fall = torch.full((*gap.shape[:-1], gap.shape[-1] + 1), math.nan, dtype=dtype, device=gap.device)
    torch.mul(F.threshold(gap.to(dtype), none, -math.inf, inplace=True), height, out=fall[..., :-1])
    return fall


def _light(tensor: Tensor) -> Any:
    """NumPy's view of a tensor on the CPU: the same operations start sooner there."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def _candidates(points: Any, site: Any, across: Any, first: int) -> tuple[Any, Any, Any]:
    """Of the parabolas of some rows those that may be the lowest somewhere: start of the row, column and point of each.

    Args:
        points: ``s + c²`` for the parabolas ``s[r, c] + (x - c)²``, ``[R, W + 1]``; infinite where there is none. The
            last column is NaN. An array or a tensor, as the others.
        site: ``[R, W]``, where ``s`` is 0. Inside a run of sites each is its own lowest, is the lowest nowhere else,
            and is left out.
        across: ``c``, ``[W + 1]``.
        first: How many points lie before these.
    """
    width = site.shape[-1]
    keep = points != -1  # all True
    keep[:, 1 : width - 1] = ~(site[:, 2:] & site[:, 1:-1] & site[:, :-2])
    # Most points are ruled out by chords over them, before all that are left are looked at one by one.
    doubled = points * 2
    for reach in (1, 2, 4, 8, 16, 32):
        if width > 2 * reach:
            chord = points[:, : width - 2 * reach] + points[:, 2 * reach : width]
            keep[:, reach : width - reach] &= chord > doubled[:, reach : width - reach]
    position = _true(keep.reshape(-1))
    start = position // (width + 1) * (width + 1)
    return start + first, across[position - start], points.reshape(-1)[position]


def _lower_envelope(candidates: list[tuple[Any, Any, Any]], width: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which of the parabolas ``s[r, c] + (x - c)²`` is the lowest at each ``[r, x]``, the first of equals.

    It is a vertex of the lower convex hull of the points ``(c, s + c²)``, and half the slopes of the vertex's two edges
    enclose ``x``.

    Args:
        candidates: `_candidates` of all rows.
        width: ``W``; the point there, the last of each row, is NaN.
        size: Of all rows together, with that point: ``R (W + 1)``.

    Returns:
        For each vertex, ``[V]``: the start of its row, its column, and for how many ``x`` from there on it is the
        lowest, after the vertices before. Inside a run of sites the result is not defined.
    """
    if isinstance(candidates[0][0], Tensor):
        start, column, slope = _lower_hull(*(torch.cat(part) for part in zip(*candidates)))
    else:
        with np.errstate(all="ignore"):  # infinite values, and rows that follow each other
            hull = _lower_hull(*(np.concatenate(part) for part in zip(*candidates)))
        start, column, slope = (torch.from_numpy(values) for values in hull)
    # The first integer right of each crossing. At the ends of a row, where the slope is NaN, it is the point's own.
    first = (slope / 2).floor_().add_(1).clamp_(0, width)
    first = torch.cat((column[:1], torch.where(first.isnan(), column[1:], first))).long().add_(start)
    return start, column, torch.diff(first, append=first.new_tensor([size]))


def _lower_hull(row: Any, x: Any, y: Any) -> tuple[Any, Any, Any]:
    """The lower convex hulls of points ``[N]``, row by row: ``row`` and ``x`` of the vertices, slopes of their edges.

    A point on or above a line between two others is no vertex. All for which such a line is found go at once: each is
    a mean of others, so that no vertex goes with them.

    Args:
        row: Ascending; what is the same for the points of a row. An array or a tensor, as the others.
        x: Ascending in each row.
        y: NaN in the last point of a row, infinite at most in the first and the one before the last.
    """
    while True:
        slope = (y[1:] - y[:-1]) / (x[1:] - x[:-1])
        out = y < y  # all False
        out[1:-1] = slope[1:] <= slope[:-1]
        border = _true(out[1:] != out[:-1])
        if len(border) == 0:
            return row, x, slope
        # Those that go leave gaps. Often many points beside a gap lie above lines to its other side: look further, the
        # fewer gaps there are.
        left, right = border[0::2, None], border[1::2, None] + 1
        depth = min(64, len(x) // (4 * len(left)))
        if depth:
            beside = _steps(depth, y)
            for point, end, edge in (
                ((left - beside).clip(1, len(x)), right, -1),
                ((right + beside).clip(0, len(x) - 2), left, 0),
            ):
                line = (y.take(end) - y.take(point)) / (x.take(end) - x.take(point))
                other = slope.take(point + edge)
                above = (line <= other if edge else other <= line) & (row.take(point) == row.take(end))
                out[point[above]] = True
        kept = _true(~out)
        row, x, y = row[kept], x[kept], y[kept]


def _true(mask: Any) -> Any:
    """The places of True in an array or a tensor."""
    return mask.nonzero().view(-1) if isinstance(mask, Tensor) else mask.nonzero()[0]


def _steps(count: int, like: Any) -> Any:
    """0, 1, … as an array or a tensor."""
    return torch.arange(count, device=like.device) if isinstance(like, Tensor) else np.arange(count)
