"""The name of an encoder from its state dict: as far as counts and widths of its blocks tell it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

__all__ = ["mit_name", "resnet_name", "timm_name"]

_RESNETS = {  # (bottlenecks, blocks of each stage, width and inputs of the 3×3 convolutions of the first)
    (False, (2, 2, 2, 2), (64, 64)): "resnet18",
    (False, (3, 4, 6, 3), (64, 64)): "resnet34",
    (True, (3, 4, 6, 3), (64, 64)): "resnet50",
    (True, (3, 4, 23, 3), (64, 64)): "resnet101",
    (True, (3, 8, 36, 3), (64, 64)): "resnet152",
    (True, (3, 4, 6, 3), (128, 4)): "resnext50_32x4d",
    (True, (3, 4, 23, 3), (128, 4)): "resnext101_32x4d",
    (True, (3, 4, 23, 3), (256, 8)): "resnext101_32x8d",
    (True, (3, 4, 6, 3), (128, 128)): "wide_resnet50_2",
    (True, (3, 4, 23, 3), (128, 128)): "wide_resnet101_2",
}
_RESNET_KEY = re.compile(r"(?:conv1|bn1)\.\w+|layer\d\.\d+\.(?:(?:conv|bn)\d\.\w+|downsample\.[01]\.\w+)")
_VGGS = {8: "vgg11", 10: "vgg13", 13: "vgg16", 16: "vgg19"}  # by their convolutions
_MITS = {  # (the first two widths, blocks of each stage)
    ((32, 64), (2, 2, 2, 2)): "mit_b0",
    ((64, 128), (2, 2, 2, 2)): "mit_b1",
    ((64, 128), (3, 4, 6, 3)): "mit_b2",
    ((64, 128), (3, 4, 18, 3)): "mit_b3",
    ((64, 128), (3, 8, 27, 3)): "mit_b4",
    ((64, 128), (3, 6, 40, 3)): "mit_b5",
}


def resnet_name(state: Mapping[str, Tensor], prefix: str) -> str | None:
    """``"resnet50"`` … for the keys after ``prefix``, or None if they are no ResNet's or one of another kind.

    A depth whose last stages are left out (smp's PSPNet) is told by those that are there, if only one has such.

    Examples:
        >>> import torch
        >>> resnet_name({"encoder.conv_stem.weight": torch.zeros(1)}, "encoder.") is None
        True
    """
    keys = [key.removeprefix(prefix) for key in state if key.startswith(prefix)]
    if not all(_RESNET_KEY.fullmatch(key) for key in keys) or f"{prefix}conv1.weight" not in state:
        return None
    first = state.get(f"{prefix}layer1.0.conv2.weight")
    if first is None or state[f"{prefix}conv1.weight"].shape[-1] != 7:
        return None
    width = (int(first.shape[0]), int(first.shape[1]))
    bottleneck = f"{prefix}layer1.0.conv3.weight" in state
    blocks = _counts(keys, r"layer(\d)\.(\d+)\.")
    names = [name for (b, n, w), name in _RESNETS.items() if (b, n[: len(blocks)], w) == (bottleneck, blocks, width)]
    return names[0] if len(names) == 1 else None


def mit_name(state: Mapping[str, Tensor], prefix: str) -> str | None:
    """``"mit_b0"`` … for our keys after ``prefix``, or None.

    Examples:
        >>> import torch
        >>> mit_name({"encoder.stages.0.norm.weight": torch.zeros(24)}, "encoder.") is None
        True
    """
    keys = [key.removeprefix(prefix) for key in state if key.startswith(prefix)]
    widths = [state[key] for key in (f"{prefix}stages.{i}.norm.weight" for i in range(2)) if key in state]
    return _MITS.get((tuple(len(w) for w in widths), _counts(keys, r"stages\.(\d)\.blocks\.(\d+)\.")))  # type: ignore[arg-type]


def timm_name(state: Mapping[str, Tensor], prefix: str) -> str | None:
    """timm's name for its keys after ``prefix``, of a ResNet or a VGG; None for any other network.

    Examples:
        >>> import torch
        >>> timm_name({"encoder.model.conv_stem.weight": torch.zeros(32, 3, 3, 3)}, "encoder.model.") is None
        True
    """
    convolutions = [key for key, value in state.items() if key.startswith(f"{prefix}features_") and value.ndim == 4]
    if convolutions:
        name = _VGGS.get(len(convolutions))
        with_norms = any(key.startswith(prefix) and key.endswith("running_mean") for key in state)
        return f"{name}_bn" if name and with_norms else name
    return resnet_name(state, prefix)


def _counts(keys: list[str], pattern: str) -> tuple[int, ...]:
    """How many blocks each stage has, of keys with the numbers of stage and block."""
    blocks: dict[int, set[int]] = {}
    for key in keys:
        if match := re.match(pattern, key):
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    return tuple(len(blocks[stage]) for stage in sorted(blocks))
