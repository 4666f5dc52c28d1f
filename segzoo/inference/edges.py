"""Soft masks drawn to the edges of the picture: the guided filter."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segzoo.inference._arrays import Array, Kind, at_size, in_pixels, is_number, like, paired
from segzoo.inference._box import box_mean
from segzoo.ops import resize

__all__ = ["refine_edges"]

_BAND = 2**19  # pixels that are worked on at a time
_FINE = 1e-6  # for a smaller ε variances are computed in float64: in float32 their own rounding would be an edge


@torch.no_grad()
def refine_edges(
    probabilities: Kind,
    image: Tensor | Array,
    *,
    radius: float = 0.005,
    eps: float = 1e-4,
    subsample: int | None = None,
    multilabel: bool = False,
) -> Kind:
    """Probabilities whose rims follow the edges of the picture: the guided filter.

    In every window the probabilities are replaced by the linear function of the picture's colours that fits them best.
    Where the probabilities come at a smaller size than the picture, as a model gives them (``prediction.scores``), the
    functions are found at that size and applied to the picture's own pixels, which is fast for large pictures and
    brings back detail that the model did not see.

    Args:
        probabilities: ``[h, w]``, ``[C, h, w]`` or ``[N, C, h, w]``, floating point in 0…1, an array or a tensor on any
            device.
        image: The picture: an array ``[H, W]``, ``[H, W, B]`` or ``[N, H, W, B]``, or a tensor ``[H, W]``,
            ``[B, H, W]`` or ``[N, B, H, W]``; uint8, uint16, or floating point in 0…1. Any number of bands: of one the
            filter is that with a grey guide.
        radius: Of the windows, from a pixel to the farthest row: pixels, or, below 1, a share of the picture's longer
            side; at most what the probabilities' rims are off or blurred by.
        eps: ε, against which the variance of the colours, in units of their range, counts as an edge. Below it rims
            are only smoothed.
        subsample: Find the functions on a picture that is so many times smaller; 1: at the full size. None: at the
            size of the probabilities, or the picture's where that is smaller.
        multilabel: Classes may overlap: they are not made to sum to 1.

    Returns:
        Probabilities in 0…1 at the image's size, ``[H, W]``, ``[C, H, W]`` or ``[N, C, H, W]``, of the same kind,
        float32 (float64 for float64). Several classes sum to 1.

    Raises:
        ValueError: For shapes, ranges or arguments that do not fit, in one sentence that says which.

    Source:
        He, Sun, Tang: Guided image filtering, PAMI 2013, equations 14 to 16 (5, 6 and 8 for one band). He, Sun: Fast
        guided filter, 2015.

    Examples:
        >>> import torch
        >>> image = torch.tensor([[0.2, 0.2, 0.2, 0.9, 0.9, 0.9]])
        >>> refine_edges(torch.tensor([[1.0, 1.0, 0.7, 0.3, 0.0, 0.0]]), image, radius=2)
        tensor([[0.90, 0.89, 0.85, 0.15, 0.11, 0.10]])
    """
    maps, picture = paired(probabilities, image)
    size = (picture.shape[-2], picture.shape[-1])
    reach = in_pixels("radius", radius, size)
    if not is_number(eps) or not 0 < eps < float("inf"):
        raise ValueError(f"eps is {eps!r}, expected a finite number above 0")
    dtype = maps.dtype
    if eps < _FINE:
        maps, picture = maps.double(), picture.double()
    grid = _grid((maps.shape[-2], maps.shape[-1]), size, subsample)
    if grid == size:
        refined = _full(at_size(maps, size), picture, round(reach), eps)
    else:
        refined = _fast(at_size(maps, grid), picture, grid, reach, eps)
    if maps.shape[1] > 1 and not multilabel:
        refined /= refined.sum(1, keepdim=True).clamp_(min=torch.finfo(refined.dtype).tiny)
    return like(refined.to(dtype).reshape(*probabilities.shape[:-2], *size), probabilities)


def _grid(given: tuple[int, int], size: tuple[int, int], subsample: int | None) -> tuple[int, int]:
    """Height and width of the maps that the filter's coefficients are computed on."""
    if subsample is None:
        return min(given[0], size[0]), min(given[1], size[1])
    if isinstance(subsample, bool) or not isinstance(subsample, int) or subsample < 1:
        raise ValueError(f"subsample is {subsample!r}, expected a whole number of at least 1")
    return -(-size[0] // subsample), -(-size[1] // subsample)


def _full(maps: Tensor, picture: Tensor, reach: int, eps: float) -> Tensor:
    """The guided filter at the picture's size, in bands of rows."""
    height, width = picture.shape[-2:]
    refined = torch.empty_like(maps)
    rows = max(_BAND // width, 4 * reach, 1)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        # A row's result asks for coefficients up to `reach` rows away, and those for pixels as far from there.
        start, stop = max(0, top - reach), min(height, bottom + reach)
        first, last = max(0, start - reach), min(height, stop + reach)
        a, b = _coefficients(picture[..., first:last, :], maps[..., first:last, :], (reach, reach), eps)
        a, b = (box_mean(x[..., start - first : stop - first, :], (reach, reach)) for x in (a, b))
        a, b = (x[..., top - start : bottom - start, :] for x in (a, b))
        refined[..., top:bottom, :] = _applied(a, b, picture[..., top:bottom, :])
    return refined


def _fast(maps: Tensor, picture: Tensor, grid: tuple[int, int], reach: float, eps: float) -> Tensor:
    """Coefficients on a coarser grid, enlarged bilinearly and applied to the picture itself."""
    height, width = picture.shape[-2:]
    radius = (max(1, round(reach * grid[0] / height)), max(1, round(reach * grid[1] / width)))
    a, b = _coefficients(resize(picture, grid), maps, radius, eps)
    a, b = box_mean(a, radius).flatten(1, 2), box_mean(b, radius)
    refined = maps.new_empty(*maps.shape[:2], height, width)
    rows = max(_BAND // width, 1)
    for top in range(0, height, rows):
        band = slice(top, min(top + rows, height))
        wide = (_rows(x, band, height, width) for x in (a, b))
        here = next(wide).unflatten(1, (maps.shape[1], -1))
        refined[..., band, :] = _applied(here, next(wide), picture[..., band, :])
    return refined


def _rows(x: Tensor, band: slice, height: int, width: int) -> Tensor:
    """Some rows of ``x`` ``[N, C, h, w]`` enlarged bilinearly to ``height`` × ``width``."""
    at = (torch.arange(band.start, band.stop, device=x.device, dtype=x.dtype) + 0.5) * (x.shape[-2] / height) - 0.5
    at = at.clamp_(0, x.shape[-2] - 1)
    above = at.long().clamp_(max=max(0, x.shape[-2] - 2))
    below = (above + 1).clamp_(max=x.shape[-2] - 1)
    rows = torch.lerp(x[..., above, :], x[..., below, :], (at - above)[:, None])
    return F.interpolate(rows, size=(rows.shape[-2], width), mode="bilinear", align_corners=False)


def _coefficients(picture: Tensor, maps: Tensor, radius: tuple[int, int], eps: float) -> tuple[Tensor, Tensor]:
    """``a`` ``[N, C, B, h, w]`` and ``b`` ``[N, C, h, w]`` of equation 14 and 15: in each window ``p ≈ a·I + b``."""
    bands = picture.shape[1]
    eps = max(eps, torch.finfo(maps.dtype).eps)  # what is smaller than the rounding makes no matrix positive definite
    guide = picture - 0.5  # smaller squares: their differences are the more exact
    guides = [guide[:, i : i + 1] for i in range(bands)]
    means = [box_mean(g, radius) for g in guides]
    mean = box_mean(maps, radius)
    covariance = [
        [box_mean(guides[i] * guides[j], radius) - means[i] * means[j] + (eps if i == j else 0) for j in range(i + 1)]
        for i in range(bands)
    ]
    a = _solved(covariance, [box_mean(g * maps, radius) - m * mean for g, m in zip(guides, means)], eps)
    b = mean.clone()
    for one, m in zip(a, means):
        b -= one * (m + 0.5)
    return torch.stack(a, 2), b


def _solved(matrix: list[list[Tensor]], right: list[Tensor], least: float) -> list[Tensor]:
    """Solve ``matrix @ x = right`` in every pixel: elimination, which needs no pivots in a positive definite matrix.

    Args:
        matrix: Its lower triangle, as planes that the solution overwrites.
        right: Planes of one or more right sides.
        least: Of its eigenvalues. No pivot is smaller but by rounding: of a grey picture with three equal bands.
    """
    for k in range(len(right)):
        matrix[k][k].clamp_(min=least)
        for i in range(k + 1, len(right)):
            factor = matrix[i][k] / matrix[k][k]
            right[i] = right[i] - factor * right[k]
            for j in range(k + 1, i + 1):
                matrix[i][j] = matrix[i][j] - factor * matrix[j][k]
    for i in reversed(range(len(right))):
        for k in range(i + 1, len(right)):
            right[i] = right[i] - matrix[k][i] * right[k]
        right[i] = right[i] / matrix[i][i]
    return right


def _applied(a: Tensor, b: Tensor, picture: Tensor) -> Tensor:
    return torch.einsum("ncbhw,nbhw->nchw", a, picture).add_(b).clamp_(0, 1)
