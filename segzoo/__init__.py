"""segzoo: a model zoo for image segmentation in PyTorch.

>>> from segzoo import u2net_lite
>>> u2net_lite().eval()  # doctest: +ELLIPSIS
U2Net(...
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segzoo import inference, layers, models, ops, weights
    from segzoo.inference.prediction import Prediction
    from segzoo.inference.predictor import Predictor
    from segzoo.models.u2net import u2net_full, u2net_lite
    from segzoo.registry import create_model, list_models, register_model
    from segzoo.weights.catalog import Weights, get_weights, list_weights

__version__ = "0.1.0.dev0"

_PACKAGES = ("inference", "layers", "models", "ops", "weights")
_NAMES = {
    "Prediction": "segzoo.inference.prediction",
    "Predictor": "segzoo.inference.predictor",
    "Weights": "segzoo.weights.catalog",
    "create_model": "segzoo.registry",
    "get_weights": "segzoo.weights.catalog",
    "list_models": "segzoo.registry",
    "list_weights": "segzoo.weights.catalog",
    "register_model": "segzoo.registry",
}

__all__ = [
    "Prediction",
    "Predictor",
    "Weights",
    "create_model",
    "get_weights",
    "inference",
    "layers",
    "list_models",
    "list_weights",
    "models",
    "ops",
    "register_model",
    "u2net_full",
    "u2net_lite",
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
