"""From a picture to the tensor its model was trained on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from segzoo.inference._sizes import scaled_size
from segzoo.inference.picture import Picture
from segzoo.ops import resize
from segzoo.weights.record import Preprocessing

__all__ = ["normalise", "preprocess", "resized_pixels"]


def preprocess(picture: Picture, preprocessing: Preprocessing) -> Tensor:
    """A picture as a model takes it.

    Args:
        picture: From ``segzoo.inference.read_picture``; transparent parts are seen on white.
        preprocessing: The resize rule, the scale, mean and std; as many channels as the picture has.

    Returns:
        float32 ``[C, H, W]``, at ``preprocessing.size`` or the picture's own.

    Examples:
        >>> import numpy as np
        >>> from segzoo.inference import read_picture
        >>> preprocess(read_picture(np.zeros((30, 40, 3), np.uint8)), Preprocessing()).shape
        torch.Size([3, 320, 320])
    """
    x = resized_pixels(picture, preprocessing)
    return normalise(x, preprocessing, brightest=int(x.max()))


def resized_pixels(picture: Picture, preprocessing: Preprocessing, scale: float = 1.0) -> Tensor:
    """The first half of ``preprocess``: uint8 ``[C, H, W]``, at ``scale`` times the size the rule asks for.

    Examples:
        >>> import numpy as np
        >>> from segzoo.inference import read_picture
        >>> resized_pixels(read_picture(np.zeros((30, 40, 3), np.uint8)), Preprocessing(size=None), 1.5).shape
        torch.Size([3, 45, 60])
    """
    size = scaled_size(preprocessing.size_for(picture.size), scale)
    pixels = np.require(picture.seen(size), requirements=["C", "W"])
    return resize(torch.from_numpy(pixels).permute(2, 0, 1)[None], size, preprocessing.interpolation)[0]


def normalise(x: Tensor, preprocessing: Preprocessing, *, brightest: int) -> Tensor:
    """The second half: float32 from uint8 ``[…, C, H, W]``, which may be a part of a picture.

    Args:
        x: Pixels, on any device.
        preprocessing: The scale, mean and std.
        brightest: The largest value of the whole picture, which ``scale="max"`` divides by.

    Examples:
        >>> rule = Preprocessing(mean=(0.5,), std=(0.5,), scale="max")
        >>> normalise(torch.full((1, 1, 1), 100, dtype=torch.uint8), rule, brightest=200)
        tensor([[[0.]]])
    """
    scale = max(brightest, 1) if preprocessing.scale == "max" else 255
    mean = torch.tensor(preprocessing.mean, device=x.device).reshape(-1, 1, 1)
    std = torch.tensor(preprocessing.std, device=x.device).reshape(-1, 1, 1)
    # In place: fresh memory costs more here than the arithmetic.
    return x.to(torch.float32, copy=True).div_(scale).sub_(mean).div_(std)
