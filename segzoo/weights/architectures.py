"""How each architecture looks in our keys, and what of its arguments they show."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from segzoo.weights.encoder_names import mit_name, resnet_name, timm_name

__all__ = ["ARCHITECTURES", "Architecture", "has"]

State = Mapping[str, Tensor]


class Architecture(NamedTuple):
    """How an architecture looks in our keys, which are torchvision's for some.

    Args:
        name: The factory's; ``arguments`` may give another one, or ``""`` for what no factory makes.
        marks: How keys begin, all of which there must be.
        head: The key whose first dimension is the number of classes.
        stem: How the key of the convolution begins whose second dimension is the number of channels.
        arguments: From a state dict to those of the factory's arguments that are not its defaults; an encoder of None
            is one that does not show.
    """

    name: str
    marks: tuple[str, ...]
    head: str
    stem: str
    arguments: Callable[[State], dict[str, Any]]


def has(state: State, *marks: str) -> bool:
    """Whether for each of the marks there is a key that begins so.

    Examples:
        >>> import torch
        >>> has({"head.weight": torch.zeros(1)}, "head."), has({}, "head.")
        (True, False)
    """
    return all(any(key.startswith(mark) for key in state) for mark in marks)


def _unless(default: Any, **values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value != default}


def _first(state: State, key: str) -> int:
    return int(state[key].shape[0]) if key in state and state[key].ndim else 0


def _encoder(state: State) -> dict[str, Any]:
    return {"encoder": timm_name(state, "encoder.model.") or mit_name(state, "encoder.")}


def _u2net(state: State) -> dict[str, Any]:
    names = {(64, 32, 256): "u2net_full", (64, 16, 16): "u2net_lite"}
    place = "encode_modules.0.encode_modules.0.conv.weight"
    widths = (_first(state, "encode_modules.0.conv_in.conv.weight"), _first(state, place))
    deepest = _first(state, "encode_modules.5.encode_modules.0.conv.weight")
    return {"architecture": names.get((*widths, deepest), "")}


def _isnet(state: State) -> dict[str, Any]:
    return {"architecture": "isnet" if _u2net(state)["architecture"] == "u2net_full" else ""}


def _unet(state: State) -> dict[str, Any]:
    steps = len({key.split(".")[1] for key in state if re.match(r"decoder\.\d\.", key)})
    widths = [_first(state, f"decoder.{step}.convs.1.conv.weight") for step in range(steps)]
    if has(state, "encoder.blocks."):
        base = _first(state, "encoder.blocks.0.0.conv.weight")
        usual = [base * 2**k for k in reversed(range(steps))]
        return _unless(64, base_channels=base) | _unless(usual, decoder_channels=widths)
    return _encoder(state) | _unless([16 * 2**k for k in reversed(range(steps))], decoder_channels=widths)


def _unet_plusplus(state: State) -> dict[str, Any]:
    levels = max(int(match[1]) for key in state if (match := re.match(r"decoder\.x_(\d+)_", key))) + 1
    blocks = [f"decoder.x_{i}_{levels - i}" for i in reversed(range(levels))]
    blocks += sorted({key.rpartition(".convs")[0] for key in state if re.match(r"tail\.\d+\.convs", key)})
    widths = [_first(state, f"{block}.convs.1.conv.weight") for block in blocks]
    return _encoder(state) | _unless([16 * 2**k for k in reversed(range(len(blocks)))], decoder_channels=widths)


def _fpn(state: State) -> dict[str, Any]:
    pyramid, width = _first(state, "lateral.0.weight"), _first(state, "branches.0.0.conv.weight")
    merged = int(state["head.weight"].shape[1]) if "head.weight" in state else width
    sizes = _unless(256, pyramid_channels=pyramid) | _unless(128, decoder_channels=width)
    return _encoder(state) | sizes | ({"merge": "concat"} if merged > width else {})


def _pspnet(state: State) -> dict[str, Any]:
    sizes = _unless(512, decoder_channels=_first(state, "fuse.conv.weight"))
    return _encoder(state) | sizes | ({} if has(state, "aux_head.") else {"aux": False})


def _deeplabv3plus(state: State) -> dict[str, Any]:
    sizes = _unless(256, decoder_channels=_first(state, "head.weight") and int(state["head.weight"].shape[1]))
    return _encoder(state) | sizes | _unless(48, skip_channels=_first(state, "reduce.0.weight"))


def _fcn8s(state: State) -> dict[str, Any]:
    norm = {"norm": "batch"} if any(key.endswith("running_mean") for key in state) else {}
    name = (timm_name(state, "encoder.model.") or "").removesuffix("_bn") or None
    return {"encoder": name} | norm | _unless(4096, head_channels=_first(state, "fc7.0.weight"))


def _segformer(state: State) -> dict[str, Any]:
    name = mit_name(state, "encoder.")
    usual = 256 if name in ("mit_b0", "mit_b1") else 768
    return {"encoder": name} | _unless(usual, decoder_channels=_first(state, "decode_head.fuse.conv.weight"))


def _backbone(head: str) -> Callable[[State], dict[str, Any]]:
    def arguments(state: State) -> dict[str, Any]:
        resnet = resnet_name(state, "backbone.")
        backbone = "mobilenet_v3_large" if "backbone.0.0.weight" in state else resnet
        names = {"fcn": ("resnet50", "resnet101"), "deeplabv3": ("resnet50", "resnet101", "mobilenet_v3_large")}
        aux = {} if has(state, "aux_classifier.") else {"aux": False}
        return {"architecture": f"{head}_{backbone}" if backbone in names[head] else "", **aux}

    return arguments


def _none(state: State) -> dict[str, Any]:
    return {}


_STEM = "encode_modules.0.conv_in.conv.weight"
_BOXES = "roi_heads.box_predictor.cls_score.weight"
_CLASSES, _PIXELS = "classifier.4.weight", "decode_head.classifier.weight"
_LOW = "classifier.low_classifier.weight"
ARCHITECTURES = (
    Architecture("u2net_full", ("encode_modules.", "side_modules.", "out_conv."), "out_conv.weight", _STEM, _u2net),
    Architecture("isnet", ("conv_in.", "side_modules."), "side_modules.5.weight", "conv_in.weight", _isnet),
    Architecture("mask_rcnn_resnet50_fpn", ("roi_heads.mask_predictor.", "rpn."), _BOXES, "backbone.body.", _none),
    Architecture("lraspp_mobilenet_v3_large", ("backbone.", _LOW), _LOW, "backbone.", _none),
    Architecture(
        "deeplabv3_resnet50",
        ("backbone.", "classifier.0.convs."),
        "classifier.4.weight",
        "backbone.",
        _backbone("deeplabv3"),
    ),
    Architecture("fcn_resnet50", ("backbone.", "classifier.4."), _CLASSES, "backbone.", _backbone("fcn")),
    Architecture(
        "segformer",
        ("encoder.stages.", "decode_head."),
        "decode_head.classifier.weight",
        "encoder.stages.0.",
        _segformer,
    ),
    Architecture("unet_plusplus", ("encoder.", "decoder.x_"), "head.weight", "encoder.", _unet_plusplus),
    Architecture("fpn", ("encoder.", "lateral.", "branches."), "head.weight", "encoder.", _fpn),
    Architecture("pspnet", ("encoder.", "pooling."), "head.weight", "encoder.", _pspnet),
    Architecture("deeplabv3plus", ("encoder.", "aspp.", "reduce."), "head.weight", "encoder.", _deeplabv3plus),
    Architecture("fcn8s", ("encoder.", "fc6.", "score_pool4."), "score.weight", "encoder.", _fcn8s),
    Architecture("unet", ("encoder.", "decoder.0.convs."), "head.weight", "encoder.", _unet),
)
