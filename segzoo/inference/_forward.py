"""Any model for its main logits alone: wherever its output keeps them, in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

__all__ = ["LogitsModel", "main_logits", "place_of", "to_probabilities"]

LogitsModel: TypeAlias = "nn.Module | Callable[[Tensor], Any]"
"""From ``[N, C, H, W]`` to logits ``[N, classes, h, w]``, or a list or dictionary of which they are the main part."""


def main_logits(model: LogitsModel, x: Tensor) -> Tensor:
    """The model's main output for ``x`` ``[N, C, H, W]``: logits ``[N, classes, h, w]`` in float32.

    Args:
        model: Returns a tensor; a list or tuple, the main output first; or a dictionary with ``"out"`` (torchvision) or
            ``"logits"`` (transformers).
        x: What it takes.

    Raises:
        TypeError: If it returns anything else.
        ValueError: If the logits are not ``[N, classes, h, w]``.

    Examples:
        >>> main_logits(lambda x: [x[:, :2], x[:, 2:]], torch.zeros(1, 3, 4, 5)).shape
        torch.Size([1, 2, 4, 5])
    """
    output: Any = model(x)
    if isinstance(output, Mapping):
        output = next((output[key] for key in ("out", "logits") if key in output), output)
    elif isinstance(output, (list, tuple)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise TypeError(
            "the model's output must be logits, a list that begins with them, or a dictionary that has them as 'out' "
            f"or 'logits', got {type(output).__name__}"
        )
    if output.ndim != 4 or len(output) != len(x) or 0 in output.shape:
        raise ValueError(f"the model's logits must be [{len(x)}, classes, h, w], got {list(output.shape)}")
    return output.float()


def to_probabilities(model: LogitsModel, multilabel: bool | None) -> Callable[[Tensor], Tensor]:
    """What makes probabilities of a model's logits: its own ``probabilities``, or a sigmoid or softmax.

    Args:
        model: Any.
        multilabel: None asks the model, and means False where that does not know.

    Examples:
        >>> to_probabilities(nn.Identity(), None)(torch.zeros(1, 4, 1, 1)).flatten()
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    own: Callable[[Tensor], Tensor] | None = getattr(model, "probabilities", None)
    if multilabel is None and own is not None:
        return own

    def probabilities(logits: Tensor) -> Tensor:
        logits = logits.float()
        return logits.sigmoid() if multilabel or logits.shape[1] == 1 else logits.softmax(1)

    return probabilities


def place_of(model: LogitsModel) -> tuple[torch.device | None, torch.dtype | None]:
    """Device and floating point type of a model's parameters; None where it has none."""
    if not isinstance(model, nn.Module):
        return None, None
    values = list(chain(model.parameters(), model.buffers()))
    device = values[0].device if values else None
    return device, next((value.dtype for value in values if value.is_floating_point()), None)
