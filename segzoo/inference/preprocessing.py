"""From a picture to the tensor its model was trained on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from segzoo.inference.picture import Picture
from segzoo.ops import resize
from segzoo.weights.catalog import Preprocessing

__all__ = ["preprocess"]


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
    x = torch.from_numpy(np.require(picture.over_white(), requirements=["C", "W"])).permute(2, 0, 1)[None]
    x = resize(x, preprocessing.size_for(picture.size), preprocessing.interpolation)[0]
    scale = max(int(x.max()), 1) if preprocessing.scale == "max" else 255
    mean = torch.tensor(preprocessing.mean).reshape(-1, 1, 1)
    std = torch.tensor(preprocessing.std).reshape(-1, 1, 1)
    return (x.float() / scale - mean) / std
