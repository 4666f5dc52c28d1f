"""Metrics: the field's own numbers, from counts and rows that add up exactly over batches and processes."""

from segzoo.metrics.base import Metric
from segzoo.metrics.boundary import BoundaryMetrics
from segzoo.metrics.confusion import SegmentationMetrics
from segzoo.metrics.saliency import SaliencyMetrics

__all__ = ["BoundaryMetrics", "Metric", "SaliencyMetrics", "SegmentationMetrics"]
