"""From a model to masks: the Predictor and what it is made of."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segzoo.inference.crf import crf
    from segzoo.inference.edges import refine_edges
    from segzoo.inference.evaluation import Evaluation, evaluate
    from segzoo.inference.folder import FolderReport, predict_folder
    from segzoo.inference.foreground import estimate_foreground
    from segzoo.inference.instances import InstancePrediction
    from segzoo.inference.multiscale import average_predictions, multi_scale
    from segzoo.inference.optimize import optimize_for_inference
    from segzoo.inference.picture import Picture, read_picture
    from segzoo.inference.postprocess import largest_component, remove_small, threshold
    from segzoo.inference.prediction import Prediction
    from segzoo.inference.predictor import Predictor
    from segzoo.inference.preprocessing import preprocess
    from segzoo.inference.runtimes import FileModel
    from segzoo.inference.tiling import sliding_window

_MODULES = {
    "Evaluation": "evaluation",
    "FileModel": "runtimes",
    "FolderReport": "folder",
    "InstancePrediction": "instances",
    "Picture": "picture",
    "Prediction": "prediction",
    "Predictor": "predictor",
    "average_predictions": "multiscale",
    "crf": "crf",
    "estimate_foreground": "foreground",
    "evaluate": "evaluation",
    "largest_component": "postprocess",
    "multi_scale": "multiscale",
    "optimize_for_inference": "optimize",
    "predict_folder": "folder",
    "preprocess": "preprocessing",
    "read_picture": "picture",
    "refine_edges": "edges",
    "remove_small": "postprocess",
    "sliding_window": "tiling",
    "threshold": "postprocess",
}

__all__ = [
    "Evaluation",
    "FileModel",
    "FolderReport",
    "InstancePrediction",
    "Picture",
    "Prediction",
    "Predictor",
    "average_predictions",
    "crf",
    "estimate_foreground",
    "evaluate",
    "largest_component",
    "multi_scale",
    "optimize_for_inference",
    "predict_folder",
    "preprocess",
    "read_picture",
    "refine_edges",
    "remove_small",
    "sliding_window",
    "threshold",
]


class _Package(ModuleType):
    """Keeps ``crf`` a function: an import of the module of that name would put the module in its place."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _MODULES and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """Import on first use (PEP 562): a predictor of an ONNX file needs nothing of torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
