"""Models as files for other runtimes, with the same numbers."""

from segzoo.export.onnx import to_onnx
from segzoo.export.program import to_program
from segzoo.export.prune import prune
from segzoo.export.quantize import QuantizationReport, quantize

__all__ = ["QuantizationReport", "prune", "quantize", "to_onnx", "to_program"]
