"""EfficientNet-PyTorch's keys, in which EfficientNet-Lite0's ImageNet weights are published, in timm's."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

__all__ = ["efficientnet_to_timm"]

_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_EXCITE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}


def efficientnet_to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """EfficientNet-PyTorch's state dict in timm's keys; any other comes back as it is.

    Its blocks are numbered through, timm's within stages: a stage begins where the number of output channels changes.

    Source: Tan & Le, "EfficientNet", 2019 (arXiv 1905.11946), Table 1.

    Examples:
        >>> import torch
        >>> list(efficientnet_to_timm({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)}))
        ['conv_stem.weight']
    """
    if "_conv_stem.weight" not in state:
        return dict(state)
    places = _places(state)
    converted = {}
    for key, value in state.items():
        if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key):
            number, layer, parameter = int(match[1]), match[2], match[3]
            inverted = f"_blocks.{number}._expand_conv.weight" in state
            names = (_INVERTED if inverted else _SEPARABLE) | _EXCITE
            converted[f"blocks.{places[number]}.{names.get(layer, layer)}.{parameter}"] = value
        else:
            module, _, parameter = key.partition(".")
            converted[f"{_OUTSIDE.get(module, module)}.{parameter}"] = value
    return converted


def _places(state: Mapping[str, Tensor]) -> list[str]:
    """``"stage.block"`` of each numbered block: a stage begins where the number of output channels changes."""
    places: list[str] = []
    stage, block, channels = -1, 0, -1
    while (key := f"_blocks.{len(places)}._project_conv.weight") in state:
        width = state[key].shape[0]
        stage, block = (stage, block + 1) if width == channels else (stage + 1, 0)
        channels = width
        places.append(f"{stage}.{block}")
    return places
