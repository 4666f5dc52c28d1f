"""One small model of each architecture, for tests that go through all of them with numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from segzoo.encoders.mit import MiT, Variant
from segzoo.models import FCN, LRASPP, DeepLabV3, ISNet, SegFormer, U2Net
from segzoo.models.u2net import Stage
from segzoo.registry import create_untrained, find_factory

NORMS = ["batch", "sync_batch", "frozen_batch", "group", "instance", "layer", "evo_s0", "evo_b0"]

_NESTED = (
    (
        Stage(7, 3, 4, 8),
        Stage(6, 8, 4, 8),
        Stage(5, 8, 4, 8),
        Stage(4, 8, 4, 8),
        Stage("4F", 8, 4, 8),
        Stage("4F", 8, 4, 8),
    ),
    (Stage("4F", 16, 4, 8), Stage(4, 16, 4, 8), Stage(5, 16, 4, 8), Stage(6, 16, 4, 8), Stage(7, 16, 4, 8)),
)
_ISNET = ((Stage(7, 8, 4, 8), *_NESTED[0][1:]), _NESTED[1])
_DECODER = (16, 8, 8, 8, 8)


def _segformer(**arguments: Any) -> SegFormer:
    encoder = MiT(Variant((8, 16, 24, 32), (1, 1, 1, 1), (1, 1, 2, 2)), in_channels=arguments.get("in_channels", 3))
    return SegFormer(encoder, decoder_channels=16, **arguments)


def _made(name: str, given: tuple[Any, ...], arguments: dict[str, Any]) -> nn.Module:
    """As the factory makes it; ``multilabel`` is an argument of the class only."""
    multilabel = arguments.pop("multilabel", False)
    model = find_factory(name)(*given, encoder_weights=None, **arguments)
    model.multilabel = multilabel
    return model


def _factory(name: str, *given: Any, **small: Any) -> Callable[..., nn.Module]:
    return lambda **arguments: _made(name, given, {**small, **arguments})


FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "u2net": lambda **arguments: U2Net(*_NESTED, **arguments),
    "isnet": lambda **arguments: ISNet(*_ISNET, **arguments),
    "unet_2015": _factory("unet", base_channels=4),
    "unet": _factory("unet", "mobilenetv3_small_050", decoder_channels=_DECODER),
    "unet_plusplus": _factory("unet_plusplus", "resnet10t", decoder_channels=_DECODER),
    "fpn": _factory("fpn", "resnet10t", pyramid_channels=16, decoder_channels=8),
    "fcn": lambda **arguments: FCN("resnet18", output_stride=32, **arguments),
    "fcn8s": _factory("fcn8s", "vgg11", head_channels=16),
    "deeplabv3": lambda **arguments: DeepLabV3("mobilenet_v3_large", **arguments),
    "deeplabv3plus": _factory("deeplabv3plus", "resnet10t", decoder_channels=16),
    "pspnet": _factory("pspnet", "resnet10t", decoder_channels=16),
    "lraspp": lambda **arguments: LRASPP(**arguments),
    "segformer": _segformer,
}


def build(name: str, **arguments: Any) -> nn.Module:
    """A registered model with random weights, its encoder's too."""
    return create_untrained(name, **arguments)


def outputs_of(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The outputs as a list, whether or not there are side outputs."""
    out = model(x)
    return out if isinstance(out, list) else [out]


def shaken(model: nn.Module) -> nn.Module:
    """The model in eval mode, with norms whose statistics and parameters all count."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()
