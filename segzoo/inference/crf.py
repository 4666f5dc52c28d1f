"""Masks that follow colours: mean field in a conditional random field in which a pixel knows a window around it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from segzoo.inference._arrays import Array, Kind, at_size, in_pixels, is_number, like, paired

__all__ = ["crf"]

_KEPT = 2**27  # so many values of the kernel are kept from one iteration to the next, 512 MiB; else they are made again
_BAND = 2**17  # pixels that the CPU works on at a time: so few stay in its cache
_FAINT = -60.0  # exp(-60) adds nothing to a message in float32, and far below it exp itself becomes slow
_DENSE = 8  # a wider window is looked at in steps
_LARGE = 2**20  # pixels of a picture from which on these are wider: its neighbours are the more alike


@torch.no_grad()
def crf(
    probabilities: Kind,
    image: Tensor | Array,
    *,
    iterations: int = 5,
    appearance: float = 3.0,
    smoothness: float = 3.0,
    theta_alpha: float = 0.1,
    theta_beta: float = 13.0,
    theta_gamma: float = 0.0075,
    radius: float = 0.015,
    stride: int | None = None,
    certainty: float = 0.999,
    multilabel: bool = False,
) -> Kind:
    """Probabilities after mean-field inference in a conditional random field of the picture's pixels.

    Pixels of similar colour, and pixels next to each other, are pulled towards the same class. The energy is that of
    the fully connected CRF: the negative logarithm of the probabilities, and a Potts model with two Gaussian kernels,

    - ``appearance · exp(-|Δp|² / 2θ_α² - |ΔI|² / 2θ_β²)`` over position p and colour I, and
    - ``smoothness · exp(-|Δp|² / 2θ_γ²)``.

    As in ConvCRF a kernel ends at a window, so that messages are sums over shifted maps: the first at ``radius``, the
    second at 3 θ_γ. Each is normalised symmetrically, ``k(i, j) / √(d(i) d(j))``, where d(i) is the sum of ``k(i, j)``
    over all j in the window, i included; a pixel sends no message to itself. One class is treated as two,
    it and the background.

    Lengths are in pixels, or, below 1, shares of the picture's longer side, as the defaults are: these were chosen on
    20 pictures of ECSSD.

    Args:
        probabilities: ``[h, w]``, ``[C, h, w]`` or ``[N, C, h, w]``, floating point in 0…1, an array or a tensor on any
            device. Of another size than the image they are resized to it bilinearly.
        image: The picture: an array ``[H, W]``, ``[H, W, B]`` or ``[N, H, W, B]``, or a tensor ``[H, W]``,
            ``[B, H, W]`` or ``[N, B, H, W]``; uint8, uint16, or floating point in 0…1. Any number of bands.
        iterations: Of the mean field; 0 returns the probabilities at the image's size.
        appearance: Weight of the first kernel, in units of the logit.
        smoothness: Weight of the second.
        theta_alpha: θ_α, a length.
        theta_beta: θ_β, in levels of an 8-bit picture.
        theta_gamma: θ_γ, a length.
        radius: Of the first kernel's window, from a pixel to the farthest row, a length.
        stride: The window is looked at in steps of so many pixels; this is what ConvCRF's blur is for, at the picture's
            full resolution. At most the radius; a radius that is a share limits it. None: 1 up to a radius of 8 pixels,
            and as many as keep 17 × 17 pixels beyond; 13 × 13 in pictures of more than 2²⁰ pixels.
        certainty: Probabilities are taken as at most this, and at least 1 - this: what a model is sure of may still be
            wrong.
        multilabel: Classes may overlap: each is one class against the rest.

    Returns:
        Probabilities at the image's size, ``[H, W]``, ``[C, H, W]`` or ``[N, C, H, W]``, of the same kind, float32
        (float64 for float64). Classes sum to 1, but for one class or ``multilabel``.

    Raises:
        ValueError: For shapes, ranges or arguments that do not fit, in one sentence that says which.

    Source:
        Krähenbühl, Koltun: Efficient inference in fully connected CRFs with Gaussian edge potentials, NIPS 2011,
        algorithm 1 and equation 3; the normalisation of their Parameter learning and convergent inference for dense
        random fields, ICML 2013. Teichmann, Cipolla: Convolutional CRFs for semantic segmentation, 2018.

    Examples:
        >>> import torch
        >>> image = torch.tensor([[0.2, 0.2, 0.2, 0.9, 0.9]])
        >>> crf(torch.tensor([[0.9, 0.9, 0.4, 0.1, 0.1]]), image, radius=2, theta_alpha=2, theta_gamma=1) > 0.5
        tensor([[ True,  True,  True, False, False]])
    """
    maps, picture = paired(probabilities, image)
    size = (picture.shape[-2], picture.shape[-1])
    _check(iterations, stride, certainty, theta_beta, appearance=appearance, smoothness=smoothness)
    alpha, gamma = (_length(name, x, size) for name, x in (("theta_alpha", theta_alpha), ("theta_gamma", theta_gamma)))
    reach = round(in_pixels("radius", radius, size))
    if stride is not None and stride > reach and radius >= 1:
        raise ValueError(f"stride is {stride}, expected at most the radius, which is {reach} pixels")
    maps = at_size(maps, size)
    if iterations == 0:
        return like(maps.clone().reshape(*probabilities.shape[:-2], *size), probabilities)
    kernels: list[tuple[float, _Kernel]] = []
    if appearance:
        wide = _DENSE if size[0] * size[1] <= _LARGE else _DENSE - 2
        step = min(stride, max(1, reach)) if stride else max(1, -(-reach // wide))
        kernels.append((appearance, _Appearance(picture * (255 / theta_beta), alpha, reach, step)))
    if smoothness:
        kernels.append((smoothness, _Smoothness(maps, gamma)))
    one = multilabel or maps.shape[1] == 1
    kept = maps.clamp(1 - certainty, certainty)
    unary = kept.logit_() if one else kept.log_()
    for _ in range(iterations):
        # What a class does not get from the others, w Σ k (1 - q), is but for a sum they share what it gives, -w Σ k q.
        state = 2 * maps - 1 if one else maps
        logits = unary.clone()
        for weight, kernel in kernels:
            logits.add_(kernel.messages(state), alpha=weight)
        maps = logits.sigmoid_() if one else logits.softmax(1)
    return like(maps.reshape(*probabilities.shape[:-2], *size), probabilities)


class _Kernel:
    """A symmetric, normalised kernel between pixels: ``messages`` are its sums over all other pixels."""

    def __init__(self, ones: Tensor) -> None:
        self.scale = self._sums(ones).add_(ones).rsqrt_()

    def messages(self, x: Tensor) -> Tensor:
        """``Σ_j k(i, j) x(j)``, j ≠ i, of maps ``[N, C, H, W]``."""
        return self._sums(x * self.scale).mul_(self.scale)

    def _sums(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class _Smoothness(_Kernel):
    """A Gaussian of the position, rows after columns.

    Args:
        maps: ``[N, C, H, W]``, for their size, dtype and device.
        theta: Its standard deviation, in pixels.
    """

    def __init__(self, maps: Tensor, theta: float) -> None:
        reach = min(math.ceil(3 * theta), max(maps.shape[-2:]) - 1)
        at = torch.arange(-reach, reach + 1, dtype=maps.dtype)
        self.weights = list(zip(range(-reach, reach + 1), torch.exp(-at.square() / (2 * theta**2)).tolist()))
        super().__init__(torch.ones_like(maps[:1, :1]))

    def _sums(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        across, sums = torch.zeros_like(x), torch.zeros_like(x)
        for band in _bands(x):  # a convolution with as many weights takes ten times as long
            for by, weight in self.weights:
                here, there = _reaching(slice(0, width), by, width)
                across[..., band, here].add_(x[..., band, there], alpha=weight)
        for band in _bands(x):
            for by, weight in self.weights:
                here, there = _reaching(band, by, height)
                sums[..., here, :].add_(across[..., there, :], alpha=weight)
        return sums.sub_(x)


class _Appearance(_Kernel):
    """A Gaussian of position and colour, on a lattice of offsets.

    Args:
        colours: ``[N, B, H, W]``, in units of their standard deviation.
        theta: Standard deviation of the position, in pixels.
        reach: Of the window, in pixels.
        step: Of the lattice, in pixels.
    """

    def __init__(self, colours: Tensor, theta: float, reach: int, step: int) -> None:
        height, width = colours.shape[-2:]
        far = range(-(reach // step) * step, reach + 1, step)
        self.colours, self.theta = colours, theta
        # The kernel is symmetric: half of the offsets are enough.
        self.offsets = [(y, x) for y in far for x in far if (y, x) > (0, 0) and y < height and abs(x) < width]
        fit = _KEPT // colours[:, 0].numel()
        self.kept = [torch.cat([self._weights(o, band) for band in _bands(colours)], -2) for o in self.offsets[:fit]]
        super().__init__(torch.ones_like(colours[:, :1]))

    def _sums(self, x: Tensor) -> Tensor:
        sums = torch.zeros_like(x)
        all_kept = len(self.kept) == len(self.offsets)
        for band in [slice(0, x.shape[-2])] if all_kept else _bands(x):
            for i, offset in enumerate(self.offsets):
                here, there = self._pairs(offset, band)
                weights = self.kept[i][..., here[1], :] if i < len(self.kept) else self._weights(offset, band)
                sums[here].addcmul_(weights, x[there])
                sums[there].addcmul_(weights, x[here])
        return sums

    def _weights(self, offset: tuple[int, int], band: slice) -> Tensor:
        here, there = self._pairs(offset, band)
        # Colour by colour: a difference of all and a sum over this dimension take three times as long.
        squares: list[Tensor] = [(c[here] - c[there]).square_() for c in self.colours.split(1, 1)]
        exponent = squares[0]
        for more in squares[1:]:
            exponent += more
        exponent += (offset[0] ** 2 + offset[1] ** 2) / self.theta**2
        return exponent.mul_(-0.5).clamp_(min=_FAINT).exp_()

    def _pairs(self, offset: tuple[int, int], band: slice) -> tuple[Any, Any]:
        """Where, in some rows, the pixels are that have one at ``offset``, and where these are."""
        height, width = self.colours.shape[-2:]
        rows, columns = _reaching(band, offset[0], height), _reaching(slice(0, width), offset[1], width)
        return (..., rows[0], columns[0]), (..., rows[1], columns[1])


def _bands(x: Tensor) -> list[slice]:
    """Rows to work on at a time."""
    height = x.shape[-2]
    rows = max(1, _BAND // x[..., 0, :].numel()) if x.device.type == "cpu" else height
    return [slice(top, min(top + rows, height)) for top in range(0, height, rows)]


def _reaching(span: slice, by: int, size: int) -> tuple[slice, slice]:
    """Which of some rows (or columns) have one ``by`` farther in a map of ``size``, and where these are."""
    start = max(span.start, -by)
    stop = max(start, min(span.stop, size - by))
    return slice(start, stop), slice(start + by, stop + by)


def _check(iterations: int, stride: int | None, certainty: float, theta_beta: float, **weights: float) -> None:
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"iterations is {iterations!r}, expected a whole number of at least 0")
    if stride is not None and (isinstance(stride, bool) or not isinstance(stride, int) or stride < 1):
        raise ValueError(f"stride is {stride!r}, expected a whole number of at least 1, or None")
    if not is_number(certainty) or not 0.5 < certainty < 1:
        raise ValueError(f"certainty is {certainty!r}, expected a number above 0.5 and below 1")
    if not is_number(theta_beta) or not theta_beta > 0:
        raise ValueError(f"theta_beta is {theta_beta!r}, expected a number above 0")
    for name, weight in weights.items():
        if not is_number(weight) or not 0 <= weight < math.inf:
            raise ValueError(f"{name} is {weight!r}, expected a finite number of at least 0")


def _length(name: str, length: float, size: tuple[int, int]) -> float:
    if length == 0:
        raise ValueError(f"{name} is 0, expected a length above 0")
    return in_pixels(name, length, size)
