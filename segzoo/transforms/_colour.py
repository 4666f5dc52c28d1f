"""Random looks of a picture that leave its pixels where they are: colours and blur."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

__all__ = ["adjust_colours", "gaussian_blur"]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def adjust_colours(
    image: Tensor,
    brightness: float = 1.0,
    contrast: float = 1.0,
    saturation: float = 1.0,
    hue: float = 0.0,
    white: float = 1.0,
) -> Tensor:
    """The picture with other colours, by one 3 × 3 matrix.

    Brightness, contrast and saturation are torchvision's: times a factor, away from the picture's mean luma, away from
    the pixel's own luma. Hue is a rotation about the grey axis, set back to the pixel's luma: linear, where HSV's
    is not, and many times faster. None of the four changes what another goes by, so their order makes no difference;
    only the result is cut to 0…white.

    Args:
        image: Floating point ``[C, H, W]``: three channels, or one, which has only brightness and contrast; with any
            other number it comes back as it is.
        brightness: Factor, 1 changes nothing.
        contrast: Likewise.
        saturation: Likewise; 0 is grey.
        hue: In turns, from red towards green.
        white: The largest value.

    Examples:
        >>> import torch
        >>> adjust_colours(torch.tensor([[[1.0]], [[0.5]], [[0.25]]]), saturation=0.0).flatten()
        tensor([0.6210, 0.6210, 0.6210])
    """
    channels = image.shape[0]
    if channels not in (1, 3) or (brightness, contrast, saturation, hue) == (1.0, 1.0, 1.0, 0.0):
        return image
    mean = image.mean((1, 2))
    if channels == 1:
        adjusted = image * (brightness * contrast)
    else:
        mean = (mean * mean.new_tensor(_LUMA)).sum()
        rows = image.new_tensor(_matrix(brightness * contrast, saturation, hue)).view(3, 3, 1, 1)
        adjusted = image[0] * rows[:, 0]
        adjusted.addcmul_(image[1], rows[:, 1]).addcmul_(image[2], rows[:, 2])
    adjusted.add_(mean * (brightness * (1 - contrast)))
    return adjusted.clamp_(0, white)


def _matrix(factor: float, saturation: float, hue: float) -> list[list[float]]:
    """``factor`` times: the pixel's luma, and what it differs from it, turned and times ``saturation``."""
    turn = 2 * math.pi * hue
    across = math.sin(turn) / math.sqrt(3)  # the rotation about (1, 1, 1) has the cross product with it
    along = math.cos(turn)
    turned = [[along, -across, across], [across, along, -across], [-across, across, along]]
    luma = [sum(_LUMA[row] * turned[row][column] for row in range(3)) for column in range(3)]
    return [
        [factor * (_LUMA[column] + saturation * (turned[row][column] - luma[column])) for column in range(3)]
        for row in range(3)
    ]


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """The picture blurred: a Gaussian cut at 3 sigma, the rim repeated outside.

    Args:
        image: Floating point ``[C, H, W]``.
        sigma: Standard deviation in pixels, positive; far below one the picture stays as it is.

    Examples:
        >>> import torch
        >>> gaussian_blur(torch.ones(3, 1, 1), 2.0).flatten()
        tensor([1., 1., 1.])
    """
    radius = max(1, math.ceil(3 * sigma))
    # A quotient times itself becomes infinite where its power would raise.
    weights = [math.exp(-0.5 * (offset / sigma) * (offset / sigma)) for offset in range(-radius, radius + 1)]
    total = sum(weights)
    for dim, padding in ((1, (0, 0, radius, radius)), (2, (radius, radius, 0, 0))):
        size = image.shape[dim]
        padded = F.pad(image, padding, mode="replicate")
        image = padded.narrow(dim, 0, size) * (weights[0] / total)
        for offset, weight in enumerate(weights[1:], 1):
            image.add_(padded.narrow(dim, offset, size), alpha=weight / total)
    return image
