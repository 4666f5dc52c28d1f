"""segzoo: a model zoo for image segmentation in PyTorch.

>>> from segzoo import u2net_lite
>>> u2net_lite().eval()  # doctest: +ELLIPSIS
U2Net(...
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segzoo import datasets, encoders, export, inference, layers, losses, metrics, models, ops, transforms, weights
    from segzoo.inference.prediction import Prediction
    from segzoo.inference.predictor import Predictor
    from segzoo.models.deeplab import (
        deeplabv3_mobilenet_v3_large,
        deeplabv3_resnet50,
        deeplabv3_resnet101,
        deeplabv3plus,
    )
    from segzoo.models.fcn import fcn8s, fcn_resnet50, fcn_resnet101
    from segzoo.models.fpn import fpn
    from segzoo.models.isnet import isnet
    from segzoo.models.lraspp import lraspp_mobilenet_v3_large
    from segzoo.models.mask_rcnn import mask_rcnn_resnet50_fpn
    from segzoo.models.parameters import param_groups
    from segzoo.models.pspnet import pspnet
    from segzoo.models.segformer import segformer
    from segzoo.models.u2net import u2net_full, u2net_lite
    from segzoo.models.unet import unet
    from segzoo.models.unet_plusplus import unet_plusplus
    from segzoo.registry import create_model, list_models, register_model
    from segzoo.weights.catalog import Weights, get_weights, list_weights

__version__ = "0.1.0.dev0"

_PACKAGES = (
    "datasets",
    "encoders",
    "export",
    "inference",
    "layers",
    "losses",
    "metrics",
    "models",
    "ops",
    "transforms",
    "weights",
)
_NAMES = {
    "Prediction": "segzoo.inference.prediction",
    "Predictor": "segzoo.inference.predictor",
    "Weights": "segzoo.weights.catalog",
    "create_model": "segzoo.registry",
    "get_weights": "segzoo.weights.catalog",
    "list_models": "segzoo.registry",
    "list_weights": "segzoo.weights.catalog",
    "param_groups": "segzoo.models.parameters",
    "register_model": "segzoo.registry",
}

__all__ = [
    "Prediction",
    "Predictor",
    "Weights",
    "create_model",
    "datasets",
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "deeplabv3plus",
    "encoders",
    "export",
    "fcn8s",
    "fcn_resnet50",
    "fcn_resnet101",
    "fpn",
    "get_weights",
    "inference",
    "isnet",
    "layers",
    "list_models",
    "list_weights",
    "losses",
    "lraspp_mobilenet_v3_large",
    "mask_rcnn_resnet50_fpn",
    "metrics",
    "models",
    "ops",
    "param_groups",
    "pspnet",
    "register_model",
    "segformer",
    "transforms",
    "u2net_full",
    "u2net_lite",
    "unet",
    "unet_plusplus",
    "weights",
]


def __getattr__(name: str) -> Any:
    """Import on first use (PEP 562): ``import segzoo`` alone imports nothing, not even torch."""
    if name in _PACKAGES:
        return importlib.import_module(f"segzoo.{name}")
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
    elif name in __all__:
        value = importlib.import_module("segzoo.registry").find_factory(name)
    else:
        raise AttributeError(f"module 'segzoo' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
