"""What every export begins with and ends with: the model as it predicts, what is known of it, and the comparison."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import threading
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from segzoo import __version__
from segzoo._errors import shown
from segzoo.inference.optimize import fold_norms
from segzoo.models.base import SegmentationModel, check_positive
from segzoo.registry import create_model

__all__ = [
    *("SMALLEST", "TOLERANCE", "Exported", "compare", "compared_shapes", "described"),
    *("noise", "opened", "prepared", "quiet", "reason", "single", "traced_shape"),
]

SMALLEST = 33  # pixels of either side of an export with free sizes: U²-Net halves five times
TOLERANCE = 1e-4  # of the range of the outputs
_TRACED = (2, 96, 128)  # N, H, W; a batch of 1 would be taken for a constant
_ONE_AT_A_TIME = (
    threading.RLock()
)  # torch's exporters are not for several threads, and what is silenced is the process's
_LOGGERS = ("torch", "onnxscript", "onnx_ir")


class Exported(nn.Module):
    """The network that is exported: logits, or probabilities.

    Args:
        model: In eval mode.
        probabilities: Whether a sigmoid or a softmax comes after it.
    """

    def __init__(self, model: SegmentationModel, probabilities: bool) -> None:
        super().__init__()
        self.model = model
        self.has_probabilities = probabilities

    @property
    def output(self) -> str:
        """What it gives."""
        return "probabilities" if self.has_probabilities else "logits"

    def forward(self, image: Tensor) -> Tensor:
        """``[N, in_channels, H, W]``, normalised, to ``[N, num_classes, H, W]``."""
        logits: Tensor = self.model(image)
        return self.model.probabilities(logits) if self.has_probabilities else logits


def prepared(model: str | SegmentationModel, probabilities: bool) -> Exported:
    """A copy of the model on the CPU, in eval mode, its norms folded, without what only training needs.

    Raises:
        TypeError: For what is no model of this library, or is in another type than float32.
    """
    loaded = opened(model)
    if hasattr(loaded, "roi_heads"):
        raise TypeError("a detector gives boxes and masks, no logits: to_onnx takes it, nothing else here does")
    if not isinstance(loaded, SegmentationModel):
        raise TypeError(f"model is a name or a segzoo.models.SegmentationModel, got {type(loaded).__name__}")
    own = single(loaded)
    for prefix in own.optional:  # auxiliary heads
        setattr(own, prefix.rstrip("."), None)
    fold_norms(own)
    return Exported(own, probabilities).eval()


def opened(model: Any) -> Any:
    """The model of that name, or the model itself, without what ``torch.compile`` put around it."""
    loaded: Any = create_model(model) if isinstance(model, str) else model
    return getattr(loaded, "_orig_mod", loaded)


def single(model: Any) -> Any:
    """A copy on the CPU in eval mode, of a model whose numbers are all float32.

    Raises:
        TypeError: If they are not: what was narrowed cannot be widened again.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise TypeError(
                f"float32 is exported, and {name} of this model is {str(tensor.dtype).removeprefix('torch.')}: "
                "give the model as it was before it was narrowed"
            )
    own = copy.deepcopy(model).to("cpu", memory_format=torch.contiguous_format)
    return own.eval().requires_grad_(False)


def described(model: Any, output: str) -> dict[str, str]:
    """What goes into a file's metadata: strings all; what is not known is left out."""
    record, pruned = model.weights, getattr(model, "pruned", False)
    known: dict[str, str | None] = {
        "producer": f"segzoo {__version__}",
        "architecture": model.made_by.architecture if model.made_by else type(model).__name__,
        "weights": record.name if record and not pruned else None,
        "pruned": "true" if pruned else None,
        "license": record.license if record else None,
        "classes": json.dumps(model.classes, ensure_ascii=False),
        "num_classes": str(model.num_classes),
        "in_channels": str(model.in_channels),
        "multilabel": json.dumps(getattr(model, "multilabel", None)),
        "preprocessing": json.dumps(asdict(model.preprocessing)),
        "threshold": str(float(model.threshold)),
        "score_threshold": str(model.score_threshold) if hasattr(model, "score_threshold") else None,
        "output": output,
    }
    return {name: value for name, value in known.items() if value}


def traced_shape(model: Any, dynamic: bool, size: tuple[int, int] | None, batch: int) -> tuple[int, int, int, int]:
    """The shape to trace with: the file's own, or with free sizes any."""
    if dynamic:
        if size is not None or batch != 1:
            raise ValueError(f"size and batch are of a file with dynamic=False, got size={size}, batch={batch}")
        return (_TRACED[0], model.in_channels, *_TRACED[1:])
    check_positive(batch=batch)
    size = model.preprocessing.size if size is None else size
    if size is None or isinstance(size, int):
        raise ValueError("dynamic=False needs a size, as size=(512, 512): this model's preprocessing has no fixed one")
    height, width = size
    check_positive(height=height, width=width)
    return (batch, model.in_channels, height, width)


def compared_shapes(
    traced: tuple[int, int, int, int], dynamic: bool, smallest: int = SMALLEST
) -> list[tuple[int, int, int, int]]:
    """Shapes to compare on: two that were not traced, of odd sizes and other batches; or only the traced one."""
    return [(1, traced[1], 97, 161), (3, traced[1], max(65, smallest), max(79, smallest))] if dynamic else [traced]


def noise(shape: tuple[int, ...]) -> Tensor:
    """The same each time, and nobody's random state changes."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def compare(name: str, expected: Tensor, got: Tensor) -> float:
    """The largest difference as a share of the range.

    Raises:
        ValueError: If it is above 1e-4, or the shapes differ.
    """
    if expected.shape != got.shape:
        raise ValueError(f"{name} gives {list(got.shape)}, the model {list(expected.shape)}")
    spread = float(expected.max() - expected.min()) or 1.0
    difference = float((expected - got).abs().max()) / spread
    if not difference <= TOLERANCE:
        raise ValueError(f"{name} differs by {difference:.1e} of the outputs' range, expected at most {TOLERANCE:.0e}")
    return difference


def reason(error: BaseException) -> str:
    """What an error that may be pages long, and has others behind it, comes from: the first line of the first."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shown(lines[0] if lines else type(error).__name__)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside the block torch's exporters say nothing: their warnings are for their authors, errors are raised."""
    with _ONE_AT_A_TIME:
        yield from _quiet()


def _quiet() -> Iterator[None]:
    known = [*_LOGGERS, *logging.root.manager.loggerDict]
    loggers = [logging.getLogger(name) for name in known if name.partition(".")[0] in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
