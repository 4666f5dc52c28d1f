"""The table of segzoo's losses × modes × options, and the small pictures that the tests of the losses share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import loss_references
import numpy as np
import torch
from torch import Tensor, nn

import segzoo.losses

CHANNELS = {"multiclass": 4, "binary": 1, "multilabel": 3}
WEIGHT = {"multiclass": (0.5, 2.0, 1.0, 0.25), "binary": (2.0,), "multilabel": (0.5, 2.0, 0.25)}
SOFT = {"BCELoss", "FocalLoss", "DiceLoss", "JaccardLoss", "TverskyLoss", "FocalTverskyLoss", "SSIMLoss"}
SOFT |= {"HybridSaliencyLoss"}
KINKED = {"OhemCrossEntropyLoss", "LovaszLoss"}  # not twice differentiable
NEIGHBOURS = {"BoundaryLoss", "SSIMLoss", "HybridSaliencyLoss"}  # a pixel's loss depends on the pixels around it


@dataclass(frozen=True)
class Case:
    """One loss in one mode with some options."""

    loss: str
    mode: str
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        options = ",".join(f"{key}={value}" for key, value in self.options.items()).replace(" ", "")
        return f"{self.loss}-{self.mode}" + (f"-{options}" if options else "")

    def build(self, **more: Any) -> nn.Module:
        return getattr(segzoo.losses, self.loss)(self.mode, **{**self.options, **more})

    def reference(
        self, logits: Tensor, target: Tensor, mask: Tensor | None = None, ignore_index: float | None = None
    ) -> Any:
        """The slow reference's value of the same tensors."""
        labels = target.numpy()
        if self.mode == "binary" and labels.ndim == 3:
            labels = labels[:, None]
        counts = loss_references.counted(labels, None if mask is None else mask.numpy(), ignore_index)
        labels = np.where(counts, labels, 0)
        function = loss_references.REFERENCES[self.loss]
        return function(self.mode, logits.detach().double().numpy(), labels, counts, **self.options)


def _region(mode: str, *, log: bool = True) -> list[dict[str, Any]]:
    weight = {"weight": WEIGHT[mode]}
    options: list[dict[str, Any]] = [
        {},
        {"smooth": 0.0},
        {"per_image": True},
        {"smooth": 0.0, "per_image": True, **weight},
    ]
    if mode != "binary":
        options += [{"classes": "present"}, {"classes": [0, 2], "smooth": 0.5}, {"classes": [2, 1], **weight}]
        options += [{"classes": "present", "per_image": True, **weight}]
    if log:
        options += [{"log": True}, {"log": True, "smooth": 0.0, "per_image": True}]
    return options


def _lovasz(mode: str) -> list[dict[str, Any]]:
    options: list[dict[str, Any]] = [{}, {"per_image": True}, {"weight": WEIGHT[mode], "per_image": True}]
    if mode != "binary":
        options += [
            {"classes": "all"},
            {"classes": [0, 2], "weight": WEIGHT[mode]},
            {"classes": "all", "per_image": True},
        ]
    return options


_MANY = ("multiclass", "binary", "multilabel")
_W = WEIGHT["multiclass"]
# The first options of each row are the ones for the tests that are slow.
TABLE: dict[str, dict[str, list[dict[str, Any]]]] = {
    "CrossEntropyLoss": {
        "multiclass": [
            {"weight": _W, "label_smoothing": 0.25},
            {},
            {"weight": _W},
            {"label_smoothing": 0.1},
            {"weight": _W, "reduction": "sum"},
            {"weight": _W, "label_smoothing": 0.1, "reduction": "none"},
        ]
    },
    "OhemCrossEntropyLoss": {
        "multiclass": [
            {"min_kept": 7, "threshold": 0.2, "weight": _W},
            {},
            {"min_kept": 5},
            {"min_kept": 1, "threshold": 0.3},
        ],
        "binary": [{"min_kept": 5, "threshold": 0.3}, {}, {"min_kept": 2, "threshold": 0.4, "weight": (0.5, 2.0)}],
    },
    "BCELoss": {
        "binary": [{"pos_weight": 3.0}, {}, {"reduction": "sum"}, {"reduction": "none"}],
        "multilabel": [{"pos_weight": WEIGHT["multilabel"]}, {}, {"pos_weight": 2.0, "reduction": "none"}],
    },
    "FocalLoss": {
        "multiclass": [
            {"alpha": _W},
            {},
            {"gamma": 0.0, "alpha": _W},
            {"gamma": 0.5},
            {"gamma": 3.5, "alpha": _W, "reduction": "sum"},
            {"alpha": _W, "reduction": "none"},
            {"normalized": True},
            {"normalized": True, "alpha": _W, "gamma": 1.0},
        ],
        "binary": [
            {"alpha": 0.25},
            {},
            {"gamma": 0.0},
            {"gamma": 0.5, "alpha": 0.875},
            {"reduction": "sum"},
            {"reduction": "none", "alpha": 0.0},
            {"normalized": True, "alpha": 0.25},
        ],
        "multilabel": [
            {"alpha": (0.125, 0.5, 0.875)},
            {},
            {"alpha": 0.25, "gamma": 1.5},
            {"reduction": "none", "alpha": (0.125, 0.5, 0.875)},
            {"normalized": True, "alpha": (0.125, 0.5, 0.875)},
        ],
    },
    "DiceLoss": {mode: _region(mode) for mode in _MANY},
    "JaccardLoss": {mode: _region(mode) for mode in _MANY},
    "TverskyLoss": {mode: [*_region(mode), {"alpha": 0.875, "beta": 0.25}] for mode in _MANY},
    "FocalTverskyLoss": {
        mode: [*_region(mode, log=False), {"gamma": 2.0}, {"gamma": 0.75, "alpha": 0.6, "beta": 0.4}] for mode in _MANY
    },
    "LovaszLoss": {mode: _lovasz(mode) for mode in _MANY},
    "BoundaryLoss": {
        "multiclass": [{}, {"classes": [1, 3]}],
        "binary": [{}],
        "multilabel": [{}, {"classes": [0, 2]}],
    },
    "SSIMLoss": {mode: [{}, {"window_size": 5, "sigma": 0.75}] for mode in ("binary", "multilabel")},
    "HybridSaliencyLoss": {"binary": [{}, {"bce": 2.0, "ssim": 0.5, "iou": 0.25}]},
}
CASES = [Case(loss, mode, options) for loss, rows in TABLE.items() for mode, row in rows.items() for options in row]
ONE_EACH = [Case(loss, mode, row[0]) for loss, rows in TABLE.items() for mode, row in rows.items()]


def pictures(
    mode: str,
    seed: int = 0,
    n: int = 2,
    h: int = 5,
    w: int = 6,
    *,
    soft: bool = False,
    dtype: torch.dtype = torch.float64,
    scale: float = 2.0,
) -> tuple[Tensor, Tensor]:
    """Random logits and a random target; the label 1 is seldom, so that pictures without it occur."""
    generator = torch.Generator().manual_seed(seed)
    c = CHANNELS[mode]
    logits = (torch.randn(n, c, h, w, generator=generator, dtype=torch.float64) * scale).to(dtype)
    if mode == "multiclass":
        target = torch.randint(0, c, (n, h, w), generator=generator)
        return logits, torch.where((target == 1) & (torch.rand(n, 1, 1, generator=generator) < 0.6), 0, target)
    shape = (n, h, w) if mode == "binary" else (n, c, h, w)
    share = torch.rand(n, *(1,) * (len(shape) - 1), generator=generator, dtype=torch.float64)
    values = torch.rand(shape, generator=generator, dtype=torch.float64)
    return logits, values if soft else (values < share).double()


def some_mask(target: Tensor, seed: int, share: float = 0.7, *, by_entry: bool = False) -> Tensor:
    """A random mask `[N, H, W]`, or of every entry of the target."""
    shape = target.shape if by_entry else (target.shape[0], *target.shape[-2:])
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed + 1)) < share


def value_and_gradient(loss: nn.Module, logits: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """The loss and the gradient of its sum (a sum over one number, but for reduction="none")."""
    logits = logits.detach().requires_grad_()
    value = loss(logits, *args, **kwargs)
    value.sum().backward()
    assert logits.grad is not None
    return value.detach(), logits.grad
