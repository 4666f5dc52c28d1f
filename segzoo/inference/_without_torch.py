"""What a plain look at a picture takes beside the network, in NumPy: the same digits, without a second for torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from segzoo.inference._resizing import resize_pixels

if TYPE_CHECKING:
    from segzoo.inference.picture import Picture
    from segzoo.weights.preprocessing import Preprocessing

__all__ = ["preprocessed", "to_probabilities"]


def preprocessed(picture: Picture, preprocessing: Preprocessing) -> tuple[NDArray[np.float32], int]:
    """What ``segzoo.inference.preprocess`` makes of a picture, float32 ``[C, h, w]``, and its largest value before.

    Examples:
        >>> from segzoo.inference import read_picture
        >>> from segzoo.weights import Preprocessing
        >>> preprocessed(read_picture(np.zeros((30, 40, 3), np.uint8)), Preprocessing())[0].shape
        (3, 320, 320)
    """
    size = preprocessing.size_for(picture.size)
    pixels = resize_pixels(picture.seen(size), size, preprocessing.interpolation)
    brightest = int(pixels.max())
    scale = max(brightest, 1) if preprocessing.scale == "max" else 255
    mean, std = (np.array(v, np.float32).reshape(-1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    x = pixels.astype(np.float32)
    x /= np.float32(scale)
    x -= mean
    x /= std
    return x, brightest


def to_probabilities(logits: NDArray[np.float32], multilabel: bool) -> NDArray[np.float32]:
    """Logits ``[N, C, h, w]`` to probabilities: a sigmoid for one class or ``multilabel``, a softmax else.

    Examples:
        >>> to_probabilities(np.zeros((1, 4, 1, 1), np.float32), False).ravel()
        array([0.25, 0.25, 0.25, 0.25], dtype=float32)
    """
    if multilabel or logits.shape[1] == 1:
        small = np.exp(-np.abs(logits))  # of the magnitude: what overflows would be a warning
        found: NDArray[np.float32] = np.where(logits < 0, small, np.float32(1)) / (1 + small)
        return found
    powers = np.exp(logits - logits.max(1, keepdims=True))
    found = powers / powers.sum(1, keepdims=True)
    return found
