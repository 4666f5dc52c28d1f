"""The colours of what is cut out, without the background that shines through its rim."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from segzoo.inference._arrays import Array, Kind, as_pictures, as_tensor, in_pixels, like, to_unit
from segzoo.inference._box import box_mean

__all__ = ["estimate_foreground"]

_TILE = 1024  # pixels along a side: tiles without a rim are passed over
_OPAQUE = {torch.uint8: 255, torch.uint16: 65535}
_EPS = 1e-5  # the paper's: where there is no foreground within reach, its mean is a quotient of zeros


@torch.no_grad()
def estimate_foreground(image: Kind, alpha: Tensor | Array, *, radii: Sequence[float] = (0.05, 0.01)) -> Kind:
    """The colours of the foreground, so that the rim of a cut-out does not show the background it stood on.

    A pixel at the rim mixes both: ``I = α F + (1 - α) B``. F and B are means of what lies around, weighted with α and
    1 - α, and then moved so that they mix to I; this again with a smaller window, which keeps the detail. It works
    block by block, on blocks that have a rim.

    Args:
        image: Array ``[H, W]``, ``[H, W, B]`` or ``[N, H, W, B]``, or tensor ``[H, W]``, ``[B, H, W]`` or
            ``[N, B, H, W]`` on any device; uint8, uint16, or floating point in 0…1.
        alpha: Its opacity, ``[H, W]``, ``[N, H, W]`` or ``[N, 1, H, W]``, an array or a tensor: floating point in 0…1,
            uint8 (255 is opaque) or bool.
        radii: Of the windows, from a pixel to the farthest row: pixels, or, below 1, shares of the picture's longer
            side. The first should reach pixels that are surely foreground.

    Returns:
        The image with other colours where α is below 1, of the same kind, shape and dtype. Opaque pixels, and pixels
        farther from any foreground than the last radius, are exactly as they were.

    Raises:
        ValueError: For shapes, sizes, ranges or radii that do not fit, in one sentence that says which.

    Source:
        Forte: Approximate fast foreground colour estimation, ICIP 2021 ("blur fusion", twice; there with windows of 90
        and 6 pixels).

    Examples:
        >>> import torch
        >>> alpha = torch.tensor([[1.0, 1.0, 0.5, 0.0, 0.0]])  # white before black: the pixel between was grey
        >>> estimate_foreground(alpha.clone(), alpha, radii=(2, 1))
        tensor([[1., 1., 1., 1., 0.]])
    """
    if isinstance(radii, str) or not isinstance(radii, Iterable):
        raise ValueError(f"radii are {radii!r}, expected one or more lengths above 0, as in (0.05, 0.01)")
    pictures = as_pictures(image)
    size = (pictures.shape[-2], pictures.shape[-1])
    opacity = _opacity(alpha, len(pictures), size).to(pictures.device)
    reach = [max(1, round(in_pixels("a radius", radius, size))) for radius in radii]
    if not reach or min(radii) == 0:
        raise ValueError(f"radii are {list(radii)}, expected one or more lengths above 0")
    colours = pictures.clone()
    for picture, layer, result in zip(pictures, opacity, colours):
        for tile in _tiles(size):
            if layer[0][tile].min() < _OPAQUE.get(layer.dtype, 1) and layer[0][_around(tile, reach[-1])].any():
                _unmix(picture, layer, tile, reach, result)
    if not isinstance(image, Tensor) and image.ndim > 2:
        colours = colours.movedim(1, -1)
    return like(colours.reshape(image.shape), image)


def _unmix(picture: Tensor, layer: Tensor, tile: tuple[slice, slice], reach: list[int], result: Tensor) -> None:
    """Write the foreground's colours to a tile of ``result`` ``[B, H, W]``."""
    around = _around(tile, sum(reach))
    dtype = torch.float64 if picture.dtype == torch.float64 else torch.float32
    mixed, alpha = (to_unit(x[:, around[0], around[1]], dtype) for x in (picture, layer))
    foreground = background = mixed
    for radius in reach:
        foreground, background = _fused(mixed, alpha, foreground, background, min(radius, max(mixed.shape)))
    near = box_mean((alpha > 0).to(dtype), (reach[-1], reach[-1])) > 0
    rows, columns = (slice(t.start - a.start, t.stop - a.start) for t, a in zip(tile, around))
    found = torch.where(near & (alpha < 1), foreground, mixed)[:, rows, columns]
    result[:, tile[0], tile[1]] = _from_unit(found, picture.dtype)


def _fused(mixed: Tensor, alpha: Tensor, foreground: Tensor, background: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """One blur fusion: equations 4 to 7 of the paper, for colours ``[B, H, W]`` and alpha ``[1, H, W]``."""
    window = (radius, radius)
    share = box_mean(alpha, window)
    front = box_mean(foreground * alpha, window).div_(share + _EPS)
    back = box_mean(background * (1 - alpha), window).div_(1 - share + _EPS)
    missing = mixed - alpha * front - (1 - alpha) * back
    return front.addcmul_(alpha, missing).clamp_(0, 1), back


def _opacity(alpha: Tensor | Array, count: int, size: tuple[int, int]) -> Tensor:
    """``[N, 1, H, W]`` as given: floating point, uint8 or bool."""
    layers = as_tensor("alpha", alpha)
    expected = f"[{size[0]}, {size[1]}]" if count == 1 else f"[{count}, {size[0]}, {size[1]}]"
    if layers.ndim not in (2, 3, 4) or tuple(layers.shape[-2:]) != size or layers.numel() != count * size[0] * size[1]:
        raise ValueError(f"alpha is {list(layers.shape)}, expected {expected}, the size of the image")
    if layers.is_floating_point():
        low, high = layers.min().item(), layers.max().item()
        if not (low >= 0 and high <= 1):  # also refuses NaN
            raise ValueError(f"alpha lies in 0…1, got {low:g} to {high:g}")
    elif layers.dtype not in (torch.uint8, torch.bool):
        raise ValueError(f"alpha is {layers.dtype}, expected floating point in 0…1, uint8 or bool")
    return layers.reshape(count, 1, *size)


def _tiles(size: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    for top in range(0, size[0], _TILE):
        for left in range(0, size[1], _TILE):
            yield slice(top, min(top + _TILE, size[0])), slice(left, min(left + _TILE, size[1]))


def _around(tile: tuple[slice, slice], reach: int) -> tuple[slice, slice]:
    """A tile and what is up to ``reach`` pixels away from it; slices may end outside of the picture."""
    rows, columns = (slice(max(0, s.start - reach), s.stop + reach) for s in tile)
    return rows, columns


def _from_unit(values: Tensor, dtype: torch.dtype) -> Tensor:
    highest = _OPAQUE.get(dtype)
    return values.to(dtype) if highest is None else values.mul(highest).round_().to(dtype)
