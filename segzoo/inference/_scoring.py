"""What an evaluation does with one picture: salient objects by their grey maps, classes by their label maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from segzoo._maps import Map, above_half, mask_foreground, read_grey, read_labels, resize_map
from segzoo.inference.prediction import Prediction
from segzoo.metrics.boundary import BoundaryMetrics
from segzoo.metrics.confusion import SegmentationMetrics
from segzoo.metrics.saliency import SaliencyMetrics

__all__ = ["SalientScorer", "Scorer", "SemanticScorer"]

_IGNORED = 255  # what stands for any ignore_index in masks of one class


class Scorer(ABC):
    """Reads and scores the pictures of one task, and adds them up.

    Attributes:
        metric: Of all pictures so far.
        boundary: The same for the rims, or None.
        settings: What was asked for, as plain values.
    """

    metric: SaliencyMetrics | SegmentationMetrics
    boundary: BoundaryMetrics | None
    settings: dict[str, Any]
    labels = False  # whether predictions are labels, which have no values between them

    @abstractmethod
    def read_prediction(self, path: Path) -> Map:
        """The prediction in a file."""

    @abstractmethod
    def read_mask(self, path: Path) -> Map:
        """The mask in a file."""

    @abstractmethod
    def from_model(self, prediction: Prediction) -> Map:
        """The prediction of a model."""

    @abstractmethod
    def describe(self, model: str | None) -> str:
        """What predictions are, in words."""

    @abstractmethod
    def score(self, prediction: Map, mask: Map) -> dict[str, float]:
        """Take in one picture, in all metrics or in none, and return its own values."""

    def resized(self, prediction: Map, size: tuple[int, int]) -> Map:
        """The prediction at a mask's size."""
        return resize_map(prediction, size, labels=self.labels)


class SalientScorer(Scorer):
    """Grey maps against masks, by ``SaliencyMetrics``; the rims are those of the halves above 0.5."""

    def __init__(self, protocol: str, normalize: bool | None, boundary: bool, tolerance: float) -> None:
        self.metric: SaliencyMetrics = SaliencyMetrics(protocol, normalize=normalize)
        self.boundary = BoundaryMetrics(tolerance=tolerance, class_names=["object"]) if boundary else None
        self.settings = {"task": "salient", "protocol": protocol, "normalize": self.metric.normalize}

    def read_prediction(self, path: Path) -> Map:
        """Grey, by its colours where it has a palette."""
        return read_grey(path)

    def read_mask(self, path: Path) -> Map:
        """The same."""
        return read_grey(path)

    def from_model(self, prediction: Prediction) -> Map:
        """The map that papers score, or the probabilities where nothing is to be stretched."""
        return prediction.evaluation_map() if self.metric.normalize else prediction.probabilities[0]

    def describe(self, model: str | None) -> str:
        """What predictions are, in words."""
        if model is None:
            return "the grey values of the files"
        if self.metric.normalize:
            return (
                f"maps of {model} stretched to 0…1 at the size they come at, made 8 bit and resized to the picture's "
                "(U²-Net's own evaluation)"
            )
        return f"probabilities of {model} resized to the picture's size"

    def score(self, prediction: Map, mask: Map) -> dict[str, float]:
        """Take in one picture, in all metrics or in none, and return its own values."""
        metric = SaliencyMetrics(self.metric.protocol, normalize=self.metric.normalize)
        metric.update(prediction, mask)
        row = {name: float(values[0]) for name, values in metric.per_picture().items()}
        if self.boundary is not None:
            rims = BoundaryMetrics(tolerance=self.boundary.tolerance)
            rims.update(above_half(prediction, stretched=self.metric.normalize), mask_foreground(mask))
            row |= {name: float(values[0, 0]) for name, values in rims.per_picture().items()}
            self.boundary.merge(rims)
        self.metric.merge(metric)
        return row


class SemanticScorer(Scorer):
    """Label maps by ``SegmentationMetrics``. With one class, predictions and masks may be 0/1 or 0…255 alike."""

    labels = True

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None,
        ignore_index: int | Literal["auto"] | None,
        boundary: bool,
        tolerance: float,
    ) -> None:
        if ignore_index == "auto":
            ignore_index = None if num_classes == 1 else 255
        self.binary = num_classes == 1
        self.ignored = ignore_index
        index = _IGNORED if self.binary and ignore_index is not None else ignore_index
        self._arguments: dict[str, Any] = {"num_classes": num_classes, "ignore_index": index}
        self.metric: SegmentationMetrics = SegmentationMetrics(**self._arguments, class_names=class_names)
        self._rims: dict[str, Any] = {**self._arguments, "tolerance": tolerance}
        names = self.metric.class_names
        self.boundary = None
        if boundary:
            self.boundary = BoundaryMetrics(**self._rims, class_names=names[1:] if self.binary else names)
        if twice := [name for i, name in enumerate(names) if name in names[:i]]:
            raise ValueError(f"class_names has {twice[0]!r} twice, expected different names")
        self.settings = {
            "task": "semantic",
            "num_classes": num_classes,
            "class_names": list(names),
            "ignore_index": ignore_index,
        }

    def read_prediction(self, path: Path) -> Map:
        """Class indices; of one class a mask, 0 and 1."""
        if not self.binary:
            return read_labels(path)
        return mask_foreground(read_grey(path, indices=True)).astype(np.uint8)

    def read_mask(self, path: Path) -> Map:
        """Class indices; of one class 0, 1 and what is ignored."""
        if not self.binary:
            return read_labels(path)
        grey = read_grey(path, indices=True)
        if self.ignored is None:
            return mask_foreground(grey).astype(np.uint8)
        if grey.dtype.kind == "f":
            raise ValueError(f"{path} is 16-bit grey, which has no ignore_index {self.ignored}: write it with 8 bit")
        ignored = grey == self.ignored
        labels: Map = mask_foreground(np.where(ignored, 0, grey).astype(grey.dtype)).astype(np.uint8)
        labels[ignored] = _IGNORED
        return labels

    def from_model(self, prediction: Prediction) -> Map:
        """The mask: the class index, or 0 and 1."""
        return prediction.mask

    def describe(self, model: str | None) -> str:
        """What predictions are, in words."""
        if model is None:
            return "objects above half of the grey values" if self.binary else "the class indices of the files"
        return f"masks of {model}"

    def score(self, prediction: Map, mask: Map) -> dict[str, float]:
        """Take in one picture, in all metrics or in none, and return its own values."""
        metric = SegmentationMetrics(**self._arguments)
        metric.update(prediction, mask)
        values = metric.compute()
        row = {name.removesuffix("_per_picture"): float(value[0]) for name, value in metric.per_picture().items()}
        names = self.metric.class_names
        for measure in ("iou", "dice"):
            row |= _by_class(measure, names, values[measure])
        if self.boundary is not None:
            rims = BoundaryMetrics(**self._rims)
            rims.update(prediction, mask)
            measured = [self.boundary.class_names[c] for c in rims.classes] if self.boundary.class_names else []
            for measure, found in rims.per_picture().items():
                row |= _by_class(measure, measured, found[0])
            self.boundary.merge(rims)
        self.metric.merge(metric)
        return row


def _by_class(measure: str, names: Sequence[str], values: Tensor) -> dict[str, float]:
    return {f"{measure}_{name}": value for name, value in zip(names, values.tolist())}
