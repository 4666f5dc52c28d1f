"""Whose checkpoint of which network a state dict is, by its keys and shapes alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from segzoo.weights.architectures import ARCHITECTURES, has
from segzoo.weights.convert import unified
from segzoo.weights.encoder_names import mit_name, resnet_name
from segzoo.weights.segformer_keys import segformer_from_others
from segzoo.weights.smp_keys import (
    deeplabv3plus_from_smp,
    fpn_from_smp,
    is_smp,
    pspnet_from_smp,
    unet_from_smp,
    unet_plusplus_from_smp,
)

__all__ = ["NO_ENCODER", "OWN_ENCODER", "Found", "identify"]

State = Mapping[str, Tensor]

NO_ENCODER = "its encoder does not show in its keys: name it, as encoder='resnet34' (timm's name, without smp's tu-)"
OWN_ENCODER = "its encoder is one of smp's own, in keys of its own; ResNets and tu- encoders (encoder=) are converted"
_SMP = "segmentation_models_pytorch"
_UNKNOWN = "its keys are those of no network that is known here"


class Found(NamedTuple):
    """What a state dict is.

    Args:
        format: Whose keys: ``"official U²-Net"``, ``"torchvision"``, ``"segmentation_models_pytorch"`` …, ``"segzoo"``,
            ``"unknown"``.
        architecture: The factory's name, or None: it does not show.
        arguments: Of that factory, as far as they show and are not its defaults.
        num_classes: Channels of its head, or None.
        in_channels: Channels of the pictures it takes, or None.
        notes: What else there is to know, a sentence each.
    """

    format: str
    architecture: str | None = None
    arguments: Mapping[str, Any] = {}
    num_classes: int | None = None
    in_channels: int | None = None
    notes: tuple[str, ...] = ()


def identify(state: State) -> Found:
    """What a state dict is, by its keys and shapes.

    Args:
        state: As ``segzoo.weights.convert.read_raw`` reads it: without wrappers, in the keys of whoever saved it.

    Returns:
        What was found; of an unknown one the format ``"unknown"`` and why.

    Examples:
        >>> import torch
        >>> identify({"fc.weight": torch.zeros(1000, 512)}).format
        'unknown'
    """
    if {"outconv.weight", "side1.weight"} <= state.keys():
        return _in_our_keys("official U²-Net", unified(state))
    if {"conv_in.weight", "side1.weight"} <= state.keys():
        return _in_our_keys("official IS-Net", unified(state))
    if {"encode_modules.0.conv_in.conv.bias", "side_modules.0.weight"} <= state.keys():
        return _in_our_keys("tutorial U²-Net", unified(state))
    if is_smp(state):
        return _of_smp(state)
    if (kind := _segformer_kind(state)) is not None:
        return _in_our_keys(kind, segformer_from_others(state))
    torchvisions = any(key.startswith("backbone.") for key in state)
    return _in_our_keys("torchvision" if torchvisions else "segzoo", unified(state))


def _in_our_keys(kind: str, state: State, encoder: str | None = None) -> Found:
    row = next((each for each in ARCHITECTURES if has(state, *each.marks)), None)
    if row is None:
        known = kind not in ("segzoo", "torchvision")
        return Found(kind if known else "unknown", notes=(_why_unknown(state),))
    arguments = row.arguments(state) | ({} if encoder is None else {"encoder": encoder})
    name = arguments.pop("architecture", row.name) or None
    notes: list[str] = []
    if name is None:
        notes.append(f"its keys are {_kind_of(row.name)}, of widths or depths that no factory here has")
    if "encoder" in arguments and arguments["encoder"] is None:
        del arguments["encoder"]
        notes.append(NO_ENCODER)
    if _is_folded(state):
        notes.append("its batch norms are folded: exact as it is, to be calibrated before it is trained further")
    if row.name == "mask_rcnn_resnet50_fpn":
        notes.append(
            "torchvision computes its published COCO weights, and so what is fine-tuned from them, with norm_eps=0.0: "
            "give it for such"
        )
    if kind == "segzoo" and not any(key.endswith("running_mean") for key in state):
        notes.append("it has no running statistics: name the norm that it was trained with, as norm='group'")
    head, stem = state.get(row.head), _stem(state, row.stem)
    return Found(
        kind,
        name,
        arguments,
        None if head is None or head.ndim == 0 else int(head.shape[0]),
        None if stem is None else int(stem.shape[1]),
        tuple(notes),
    )


def _stem(state: State, start: str) -> Tensor | None:
    return next((value for key, value in state.items() if key.startswith(start) and value.ndim == 4), None)


def _kind_of(name: str) -> str:
    return {"u2net_full": "a U²-Net's", "isnet": "an IS-Net's"}.get(name, f"a {name}'s")


def _why_unknown(state: State) -> str:
    if mit := mit_name(segformer_from_others(state), "encoder."):
        return f"it is the encoder {mit} alone: segzoo.segformer(encoder={mit!r}, encoder_weights=…) takes it"
    if resnet := resnet_name(state, "") or resnet_name({k: v for k, v in state.items() if k[:3] != "fc."}, ""):
        return f"it is the backbone {resnet} alone: a factory with encoder={resnet!r} takes it as encoder_weights="
    return _UNKNOWN


def _is_folded(state: State) -> bool:
    """Whether batch norms do nothing but to add: whether the first of them has a mean of 0 and a variance of 1."""
    mean = next((key for key in state if key.endswith("running_mean")), None)
    if mean is None or mean.removesuffix("mean") + "var" not in state:
        return False
    variance, weight = state[mean.removesuffix("mean") + "var"], state.get(mean.removesuffix("running_mean") + "weight")
    if weight is None or weight.is_meta or not weight.numel():
        return False
    # a fresh norm has a γ of 1: what makes up for ε is a little more
    made_up = bool((weight == weight.flatten()[0]).all()) and 1 <= float(weight.flatten()[0]) < 1.0001
    bias = state.get(mean.removesuffix("running_mean") + "bias")
    made_up = made_up and (
        float(weight.flatten()[0]) > 1 or (bias is not None and bool(bias.any()))
    )  # 1 in half precision
    return made_up and not bool(state[mean].any()) and bool((variance == 1).all())


# Other people's keys.

_SMP_KINDS: tuple[tuple[str, str, Callable[[State], dict[str, Tensor]]], ...] = (
    (r"decoder\.blocks\.x_\d", "unet_plusplus", unet_plusplus_from_smp),
    (r"decoder\.blocks\.\d\.conv1\.0\.", "unet", unet_from_smp),
    (r"decoder\.seg_blocks\.", "fpn", fpn_from_smp),
    (r"decoder\.psp\.blocks\.\d\.pool\.", "pspnet", pspnet_from_smp),
    (r"decoder\.aspp\.0\.convs\.", "deeplabv3plus", deeplabv3plus_from_smp),
)
_SMP_EXTRAS = {  # what some of its models have and ours have not
    r"decoder\.blocks\..*attention\d\.": "attention in its decoder (decoder_attention_type)",
    r"decoder\.center\.": "a block in its centre, as those on VGG have",
    r"decoder\.(?:hl_conv|blocks\.\d\.hl_conv)": "MAnet's blocks",
}


_NEAREST = "how its decoder enlarges maps does not show in its keys: smp's default, nearest, is taken"
_SMP_UNSEEN = {  # what keys do not tell, and what is taken
    "unet": (f"{_NEAREST} unless upsample='bilinear' is given",),
    "unet_plusplus": (f"{_NEAREST}, the only one here: another would give other maps",),
    "fpn": (f"{_NEAREST}, the only one here: another would give other maps",),
    "deeplabv3plus": (
        "its rates do not show in its keys: smp's (12, 24, 36) are taken unless rates= is given",
        "its encoder's stride does not show in its keys: smp's default, 16, is taken unless output_stride= is given",
    ),
}


def _of_smp(state: State) -> Found:
    for pattern, extra in _SMP_EXTRAS.items():
        if any(re.match(pattern, key) for key in state):
            return Found(_SMP, notes=(f"it has {extra}, which the models here have not",))
    for pattern, architecture, convert in _SMP_KINDS:
        if any(re.match(pattern, key) for key in state):
            # PSPNet's last stages, which it does not use, tell a ResNet's depth.
            found = _in_our_keys(_SMP, convert(state), encoder=resnet_name(state, "encoder."))
            tu = any(key.startswith("encoder.model.") for key in state)
            notes = tuple(OWN_ENCODER if note is NO_ENCODER and not tu else note for note in found.notes)
            notes += _SMP_UNSEEN.get(architecture, ())
            return found._replace(architecture=architecture, notes=notes)
    known = "Unet, UnetPlusPlus, FPN, PSPNet and DeepLabV3Plus"
    return Found(_SMP, notes=(f"its decoder is of another model than {known}, which are converted",))


def _segformer_kind(state: State) -> str | None:
    """Whose SegFormer it is, if it is one with a head."""
    if not has(state, "decode_head."):
        return None
    kinds = (
        (r"segformer\.encoder\.block\.", "transformers 4 SegFormer"),
        (r"segformer\.stages\.", "transformers 5 SegFormer"),
        (r"(?:backbone|encoder)\.block\d\.", "NVIDIA SegFormer"),
        (r"encoder\.stages\.\d\.blocks\.", "segzoo"),
    )
    return next((kind for pattern, kind in kinds if any(re.match(pattern, key) for key in state)), None)
