"""Where numbers come from: the catalogue of checkpoints, fetching, converting and fitting them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segzoo.weights.calibrate import recalibrate
    from segzoo.weights.catalog import get_weights, list_weights
    from segzoo.weights.record import Preprocessing, Source, Weights
    from segzoo.weights.resolve import download

_MODULES = {
    "Preprocessing": "record",
    "Source": "record",
    "Weights": "record",
    "download": "resolve",
    "get_weights": "catalog",
    "list_weights": "catalog",
    "recalibrate": "calibrate",
}

__all__ = ["Preprocessing", "Source", "Weights", "download", "get_weights", "list_weights", "recalibrate"]


def __getattr__(name: str) -> Any:
    """Import on first use (PEP 562): what is known of weights can be asked without torch, which reads them."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
