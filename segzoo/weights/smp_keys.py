"""segmentation_models_pytorch's checkpoints in our keys. Functions from state dict to state dict, knowing no model.

Its "native" ResNet encoders have timm's keys without the ``model.`` that timm's ``features_only`` module sits under
here; its ``tu-`` encoders are timm's as they are. Its other native encoders (VGG, EfficientNet …) have keys of their
own, which a model then refuses by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from segzoo.weights.convert import StateDict, norm_that_adds

__all__ = [
    "deeplabv3plus_from_smp",
    "fpn_from_smp",
    "has_timm_encoder",
    "is_smp",
    "pspnet_depth",
    "pspnet_from_smp",
    "unet_from_smp",
    "unet_plusplus_from_smp",
]

Rules = tuple[tuple[str, str], ...]  # (pattern at the start of a key, what takes its place); the first that fits counts

_UNUSED = "classification_head."  # smp's aux_params: a classifier of whole pictures
_ENCODER: Rules = ((r"encoder\.(?!model\.)", "encoder.model."), (r"segmentation_head\.0\.", "head."))

_CONVS: Rules = tuple(
    (rf"(decoder|tail)(?:\.blocks)?\.(\w+)\.conv{k + 1}\.{part}\.", rf"\1.\2.convs.{k}.{name}.")
    for k in range(2)
    for part, name in enumerate(("conv", "bn"))
)

_FPN: Rules = (
    (r"decoder\.p5\.", "lateral.0."),
    *((rf"decoder\.p{5 - k}\.skip_conv\.", f"lateral.{k}.") for k in range(1, 4)),
    *(
        (rf"decoder\.seg_blocks\.(\d)\.block\.(\d)\.block\.{part}\.", rf"branches.\1.\2.{name}.")
        for part, name in enumerate(("conv", "bn"))
    ),
)

_DEEPLABV3PLUS: Rules = (
    (r"decoder\.aspp\.0\.", "aspp."),
    (r"decoder\.aspp\.1\.", "refine.0."),
    (r"decoder\.aspp\.2\.", "refine.1."),
    (r"decoder\.block1\.", "reduce."),
    (r"decoder\.block2\.", "fuse."),
)

_PSPNET: Rules = tuple(
    rule
    for part, name in enumerate(("conv", "bn"))
    for rule in (
        (rf"decoder\.psp\.blocks\.(\d)\.pool\.1\.{part}\.", rf"pooling.branches.\1.{name}."),
        (rf"decoder\.conv\.{part}\.", f"fuse.{name}."),
    )
)


def is_smp(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the keys of a model of segmentation_models_pytorch.

    Examples:
        >>> import torch
        >>> is_smp({"segmentation_head.0.weight": torch.zeros(1)}), is_smp({"head.weight": torch.zeros(1)})
        (True, False)
    """
    return "segmentation_head.0.weight" in state


def has_timm_encoder(state: Mapping[str, Tensor]) -> bool:
    """Whether the encoder of an smp model is a ``tu-`` one, timm's own.

    Examples:
        >>> import torch
        >>> has_timm_encoder({"encoder.model.conv1.weight": torch.zeros(1)})
        True
    """
    return any(key.startswith("encoder.model.") for key in state)


def rename(state: Mapping[str, Tensor], rules: Rules) -> StateDict:
    """The state dict with the start of each key replaced by the first rule that fits, if one does.

    A classifier of whole pictures beside the masks is left out.

    Examples:
        >>> list(rename({"encoder.conv1.weight": None, "other": None}, ((r"encoder\\.", "encoder.model."),)))
        ['encoder.model.conv1.weight', 'other']
    """
    return {_renamed(key, rules): value for key, value in state.items() if not key.startswith(_UNUSED)}


def _renamed(key: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        if match := re.match(pattern, key):
            return match.expand(replacement) + key[match.end() :]
    return key


def unet_from_smp(state: Mapping[str, Tensor]) -> StateDict:
    """The state dict of an smp ``Unet`` in our keys.

    Args:
        state: Keys as ``encoder.conv1.weight``, ``decoder.blocks.0.conv1.0.weight``, ``segmentation_head.0.weight``.
    """
    return rename(state, _ENCODER + _CONVS)


def unet_plusplus_from_smp(state: Mapping[str, Tensor]) -> StateDict:
    """The state dict of an smp ``UnetPlusPlus`` in our keys.

    smp's ``x_{d}_{l}`` is on the l-th level from the coarsest, the d-th from the last of that level; ours are the
    paper's X^{i,j}, i the level from the finest, j the place from the encoder's map. Levels without a map of the
    encoder have one block, ``x_0_{l}``, which is in the tail here.

    Args:
        state: Keys as ``encoder.conv1.weight``, ``decoder.blocks.x_0_0.conv1.0.weight``.
    """
    block = re.compile(r"decoder\.blocks\.x_(\d+)_(\d+)\.")
    levels = len({match[1] for key in state if (match := block.match(key)) and match[1] == match[2]})

    def place(match: re.Match[str]) -> str:
        d, level = int(match[1]), int(match[2])
        return f"decoder.x_{levels - 1 - level}_{level - d + 1}." if level < levels else f"tail.{level - levels}."

    return rename({block.sub(place, key): value for key, value in state.items()}, _ENCODER + _CONVS)


def fpn_from_smp(state: Mapping[str, Tensor]) -> StateDict:
    """The state dict of an smp ``FPN`` in our keys.

    Args:
        state: Keys as ``encoder.conv1.weight``, ``decoder.p5.weight``, ``decoder.seg_blocks.0.block.0.block.0.weight``.
    """
    return rename(state, _ENCODER + _FPN)


def deeplabv3plus_from_smp(state: Mapping[str, Tensor]) -> StateDict:
    """The state dict of an smp ``DeepLabV3Plus`` in our keys.

    Args:
        state: Keys as ``encoder.conv1.weight``, ``decoder.aspp.0.convs.0.0.weight``, ``decoder.block1.0.weight``.
    """
    return rename(state, _ENCODER + _DEEPLABV3PLUS)


def pspnet_depth(state: Mapping[str, Tensor]) -> int:
    """The ``encoder_depth`` of an smp ``PSPNet``, as its pooling's width tells; where it does not, 3: smp's default.

    Args:
        state: Keys as ``encoder.layer2.0.bn1.weight``, ``decoder.conv.0.weight``.
    """
    pooled = state["decoder.conv.0.weight"].shape[1] // 2
    for stage in (1, 2, 3, 4):
        norms = [value for key, value in state.items() if re.match(rf"encoder\.layer{stage}\..*bn\d\.weight", key)]
        if norms and len(norms[-1]) == pooled:
            return stage + 1
    return 3


def pspnet_from_smp(state: Mapping[str, Tensor]) -> StateDict:
    """The state dict of an smp ``PSPNet`` in our keys.

    Its branch of one bin has a bias in the place of the batch norm: that becomes a norm whose statistics do nothing.
    The stages of a ResNet beyond the one that is used are left out: smp keeps them, with nothing to do.

    Args:
        state: Keys as ``encoder.conv1.weight``, ``decoder.psp.blocks.0.pool.1.0.weight``, ``decoder.conv.0.weight``.
    """
    beyond = tuple(f"encoder.layer{stage}." for stage in range(pspnet_depth(state), 5))
    used = {key: value for key, value in state.items() if not key.startswith(beyond)}
    converted = rename(used, _ENCODER + _PSPNET)
    for key in [key for key in converted if re.fullmatch(r"pooling\.branches\.\d\.conv\.bias", key)]:
        norm = key.removesuffix("conv.bias") + "bn"
        converted |= norm_that_adds(converted.pop(key), norm)
    return converted
