"""Losses over whole regions: the overlap of prediction and truth as one number for each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from segzoo.losses._inputs import Auto, Inputs, Loss, check_choice, is_number, listed, nonnegative_weights, safe_divide
from segzoo.losses._kernels import SigmoidOverlap, SoftmaxOverlap, evaluate

__all__ = ["DiceLoss", "FocalTverskyLoss", "JaccardLoss", "RegionLoss", "TverskyLoss"]

Classes = Literal["all", "present"] | Sequence[int]
_FLOOR = 1e-7


class RegionLoss(Loss):
    """The base of the losses over regions: which classes and pictures count, and for how much.

    Args:
        mode: ``"multiclass"``, ``"binary"`` or ``"multilabel"``.
        per_image: Sum over each picture by itself and take the mean of the pictures that have a counted pixel,
            instead of summing over the whole batch.
        classes: ``"all"``; ``"present"``, those that occur among the counted targets; or a list of class indices.
        weight: One number for each class, at least 0.
        ignore_index: The label that does not count; ``"auto"``: 255 in multiclass, None elsewhere.
    """

    def __init__(
        self,
        mode: str,
        *,
        per_image: bool,
        classes: Classes,
        weight: Tensor | Sequence[float] | None,
        ignore_index: int | Auto | None,
    ) -> None:
        super().__init__(mode, ignore_index)
        self.per_image = per_image
        self.classes = checked_classes(classes)
        self.weight: Tensor | None
        self.register_buffer("weight", nonnegative_weights("weight", weight))

    def _class_weights(self, inputs: Inputs, present: Tensor) -> Tensor:
        """What each class of each group counts for, ``[G, C]``; ``present`` is bool ``[G, C]``."""
        channels = inputs.logits.shape[1]
        weights = torch.ones_like(present, dtype=inputs.dtype)
        if self.weight is not None:
            weights = weights * self.weight.to(inputs.dtype)
        if inputs.valid is not None and self.mode == "multilabel":  # a class without a counted entry says nothing
            counted = inputs.valid.any(2)
            weights = weights * (counted if self.per_image else counted.any(0, keepdim=True))
        if self.classes == "present":
            return weights * present
        if self.classes != "all":
            weights = weights * chosen(self.classes, channels, inputs.logits.device).to(inputs.dtype)
        return weights

    def _mean(self, losses: Tensor, weights: Tensor, inputs: Inputs) -> Tensor:
        """Losses ``[G, C]`` of groups (the pictures, or one: the batch) and classes, as one number."""
        groups = safe_divide((losses * weights).sum(1), weights.sum(1))
        if not self.per_image:
            return groups.sum()
        some = torch.ones_like(groups)
        if inputs.valid is not None:
            some = inputs.valid.flatten(1).any(1).to(groups.dtype)
        return safe_divide((groups * some).sum(), some.sum())

    def _settings(self) -> dict[str, object]:
        return {
            "per_image": self.per_image or None,
            "classes": self.classes if self.mode != "binary" else None,
            "weight": listed(self.weight),
        }


class _OverlapLoss(RegionLoss):
    """A loss that is a function of ``Σ p t``, ``Σ p`` and ``Σ t``."""

    def __init__(
        self,
        mode: Literal["multiclass", "binary", "multilabel"] = "multiclass",
        *,
        smooth: float = 1.0,
        per_image: bool = False,
        classes: Classes = "all",
        weight: Tensor | Sequence[float] | None = None,
        log: bool = False,
        ignore_index: int | Auto | None = "auto",
    ) -> None:
        super().__init__(mode, per_image=per_image, classes=classes, weight=weight, ignore_index=ignore_index)
        self.smooth = checked_number("smooth", smooth)
        self.log = log

    def _terms(self, true: Tensor, predicted: Tensor, actual: Tensor) -> tuple[Tensor, Tensor]:
        """Numerator and denominator of the score, without ``smooth``, from ``Σ p t``, ``Σ p`` and ``Σ t``."""
        raise NotImplementedError

    def _loss(self, score: Tensor) -> Tensor:
        return -score.clamp_min(_FLOOR).log() if self.log else 1 - score

    def forward(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss of logits ``[N, C, H, W]``; ``mask`` bool ``[N, H, W]``: False does not count either."""
        inputs = self._inputs(logits, target, mask)
        kernel = SoftmaxOverlap() if self.mode == "multiclass" else SigmoidOverlap()
        true, predicted = evaluate(kernel, inputs.logits, inputs.target, inputs.valid).unbind(1)
        actual = target_sums(inputs, self.mode)
        if not self.per_image:
            true, predicted, actual = (sums.sum(0, keepdim=True) for sums in (true, predicted, actual))
        above, below = self._terms(true, predicted, actual)
        score = safe_divide(above + self.smooth, below + self.smooth, otherwise=1.0)
        return self._mean(self._loss(score), self._class_weights(inputs, actual > 0), inputs)

    def _settings(self) -> dict[str, object]:
        return {"smooth": self.smooth, "log": self.log or None, **super()._settings()}


class DiceLoss(_OverlapLoss):
    """Soft Dice loss, ``1 - (2 Σ p t + s) / (Σ p + Σ t + s)``, the mean over the classes.

    Goes to 0 for a perfect prediction, and to ``1 - s / (Σ p + Σ t + s)`` for the worst; an empty target with an empty
    prediction is 0. Sums run over the batch (or each picture: ``per_image``), so that batches split over processes
    average to the same gradient only with ``per_image`` and equally many counted pictures each.

    It is segmentation_models_pytorch's with ``smooth=s/2`` but for absent classes, which that one leaves at 0 while
    dividing by all (here they are in, ``classes="all"``, or out, ``"present"``). MONAI's, with s as ``smooth_nr`` and
    ``smooth_dr``, is the one with ``per_image=True``, or with its ``batch=True`` this one; of weights it divides by
    C, not their sum. For soft targets segmentation_models_pytorch takes ``Σ min(p, t)`` for ``Σ p t``.

    Args:
        mode: ``"multiclass"`` (softmax, integer target ``[N, H, W]``), ``"binary"`` or ``"multilabel"`` (sigmoid, 0…1).
        smooth: s, at least 0, in numerator and denominator. 0: a class that is nowhere, 0/0, has the score 1.
        per_image: Sum over each picture by itself and take the mean of the pictures that have a counted pixel.
        classes: ``"all"``; ``"present"``, those that occur among the counted targets; or a list of class indices.
        weight: One number for each class: the mean over the classes is weighted.
        log: ``-log`` of the score (at least 1e-7, so at most 16.12) instead of 1 - score.
        ignore_index: The label that does not count; ``"auto"``: 255 in multiclass, None elsewhere.

    Raises:
        ValueError: For arguments, shapes, dtypes or labels that do not fit, in one sentence that says which.

    Source:
        Milletari, Navab, Ahmadi: V-Net, 3DV 2016 (there with squares in the denominator); Sudre et al., DLMIA 2017.

    Examples:
        >>> import torch
        >>> target = torch.tensor([[[0, 1], [1, 255]]])
        >>> DiceLoss()(torch.zeros(1, 2, 2, 2), target)
        tensor(0.3810)
    """

    def _terms(self, true: Tensor, predicted: Tensor, actual: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * true, predicted + actual


class JaccardLoss(_OverlapLoss):
    """Soft Jaccard (IoU) loss, ``1 - (Σ p t + s) / (Σ p + Σ t - Σ p t + s)``, the mean over the classes.

    Goes to 0 for a perfect prediction, and to ``1 - s / (Σ p + Σ t + s)`` for the worst; an empty target with an empty
    prediction is 0. Batches split over processes average to the same gradient only with ``per_image`` and equally many
    counted pictures each. segmentation_models_pytorch's (same
    ``smooth``) differs in absent classes as its Dice does (see :class:`DiceLoss`); MONAI's,
    ``DiceLoss(jaccard=True)``, has twice the ``smooth``.

    Args:
        mode: ``"multiclass"`` (softmax, integer target ``[N, H, W]``), ``"binary"`` or ``"multilabel"`` (sigmoid, 0…1).
        smooth: s, at least 0, in numerator and denominator. 0: a class that is nowhere, 0/0, has the score 1.
        per_image: Sum over each picture by itself and take the mean of the pictures that have a counted pixel.
        classes: ``"all"``; ``"present"``, those that occur among the counted targets; or a list of class indices.
        weight: One number for each class: the mean over the classes is weighted.
        log: ``-log`` of the score (at least 1e-7, so at most 16.12) instead of 1 - score.
        ignore_index: The label that does not count; ``"auto"``: 255 in multiclass, None elsewhere.

    Raises:
        ValueError: For arguments, shapes, dtypes or labels that do not fit, in one sentence that says which.

    Source:
        Rahman, Wang: Optimizing Intersection-Over-Union in Deep Neural Networks for Image Segmentation, ISVC 2016.

    Examples:
        >>> import torch
        >>> JaccardLoss("binary")(torch.zeros(1, 1, 2, 2), torch.ones(1, 2, 2))  # 1 - (2 + 1) / (4 + 1)
        tensor(0.4000)
    """

    def _terms(self, true: Tensor, predicted: Tensor, actual: Tensor) -> tuple[Tensor, Tensor]:
        return true, predicted + actual - true


class TverskyLoss(_OverlapLoss):
    """Tversky loss: ``1 - (TP + s) / (TP + α FP + β FN + s)``, soft counts, the mean over the classes.

    α = β = 1/2 is :class:`DiceLoss` with ``2 s``, α = β = 1 is :class:`JaccardLoss`. Goes to 0 for a perfect
    prediction, and to ``1 - s / (α FP + β FN + s)`` for the worst; an empty target with an empty prediction is 0.
    Batches split over processes average to the same gradient only with ``per_image`` and equally many counted
    pictures each. segmentation_models_pytorch's treats absent classes as its Dice does; MONAI's is the one with
    ``per_image=True``.

    Args:
        mode: ``"multiclass"`` (softmax, integer target ``[N, H, W]``), ``"binary"`` or ``"multilabel"`` (sigmoid, 0…1).
        alpha: α, what a false positive counts for.
        beta: β, what a false negative counts for: above α, small objects are missed less often.
        smooth: s, at least 0, in numerator and denominator. 0: a class that is nowhere, 0/0, has the score 1.
        per_image: Sum over each picture by itself and take the mean of the pictures that have a counted pixel.
        classes: ``"all"``; ``"present"``, those that occur among the counted targets; or a list of class indices.
        weight: One number for each class: the mean over the classes is weighted.
        log: ``-log`` of the score (at least 1e-7, so at most 16.12) instead of 1 - score.
        ignore_index: The label that does not count; ``"auto"``: 255 in multiclass, None elsewhere.

    Raises:
        ValueError: For arguments, shapes, dtypes or labels that do not fit, in one sentence that says which.

    Source:
        Salehi, Erdogmus, Gholipour: Tversky loss function for image segmentation using 3D fully convolutional deep
        networks, MLMI 2017.

    Examples:
        >>> import torch
        >>> TverskyLoss("binary")(torch.zeros(1, 1, 2, 2), torch.ones(1, 2, 2))  # 1 - (2 + 1) / (2 + 0.7 · 2 + 1)
        tensor(0.3182)
    """

    def __init__(
        self,
        mode: Literal["multiclass", "binary", "multilabel"] = "multiclass",
        alpha: float = 0.3,
        beta: float = 0.7,
        *,
        smooth: float = 1.0,
        per_image: bool = False,
        classes: Classes = "all",
        weight: Tensor | Sequence[float] | None = None,
        log: bool = False,
        ignore_index: int | Auto | None = "auto",
    ) -> None:
        super().__init__(
            mode, smooth=smooth, per_image=per_image, classes=classes, weight=weight, log=log, ignore_index=ignore_index
        )
        self.alpha = checked_number("alpha", alpha)
        self.beta = checked_number("beta", beta)

    def _terms(self, true: Tensor, predicted: Tensor, actual: Tensor) -> tuple[Tensor, Tensor]:
        return true, true + self.alpha * (predicted - true) + self.beta * (actual - true)

    def _settings(self) -> dict[str, object]:
        return {"alpha": self.alpha, "beta": self.beta, **super()._settings()}


class FocalTverskyLoss(TverskyLoss):
    """Focal Tversky loss: ``(1 - Tversky index)^(1/γ)`` of each class, the mean over the classes.

    For γ above 1 a class that is nearly solved still pulls. The exponent is the paper's 1/γ;
    segmentation_models_pytorch's ``gamma`` is the exponent itself, and is taken of the mean over the classes. Its
    range, its empty cases and its behaviour in processes are those of :class:`TverskyLoss`.

    Args:
        mode: ``"multiclass"`` (softmax, integer target ``[N, H, W]``), ``"binary"`` or ``"multilabel"`` (sigmoid, 0…1).
        alpha: α, what a false positive counts for (the paper's 1 - α).
        beta: β, what a false negative counts for (the paper's α).
        gamma: γ, above 0; the paper's range is 1…3.
        smooth: s, at least 0, in numerator and denominator. 0: a class that is nowhere, 0/0, has the score 1.
        per_image: Sum over each picture by itself and take the mean of the pictures that have a counted pixel.
        classes: ``"all"``; ``"present"``, those that occur among the counted targets; or a list of class indices.
        weight: One number for each class: the mean over the classes is weighted.
        ignore_index: The label that does not count; ``"auto"``: 255 in multiclass, None elsewhere.

    Raises:
        ValueError: For arguments, shapes, dtypes or labels that do not fit, in one sentence that says which.

    Source:
        Abraham, Khan: A Novel Focal Tversky Loss Function with Improved Attention U-Net for Lesion Segmentation, ISBI
        2019, equation 4.

    Examples:
        >>> import torch
        >>> FocalTverskyLoss("binary")(torch.zeros(1, 1, 2, 2), torch.ones(1, 2, 2))  # 0.3182 ^ (3/4)
        tensor(0.4236)
    """

    def __init__(
        self,
        mode: Literal["multiclass", "binary", "multilabel"] = "multiclass",
        alpha: float = 0.3,
        beta: float = 0.7,
        gamma: float = 4 / 3,
        *,
        smooth: float = 1.0,
        per_image: bool = False,
        classes: Classes = "all",
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int | Auto | None = "auto",
    ) -> None:
        super().__init__(
            mode,
            alpha,
            beta,
            smooth=smooth,
            per_image=per_image,
            classes=classes,
            weight=weight,
            ignore_index=ignore_index,
        )
        self.gamma = checked_number("gamma", gamma)
        if not self.gamma:
            raise ValueError("gamma is 0, expected a number above 0")

    def _loss(self, score: Tensor) -> Tensor:
        # At a score of 1 the slope of the root is infinite, and its product with the score's slope, 0, is not a number.
        missing = 1 - score
        return torch.where(missing > 0, torch.where(missing > 0, missing, 1) ** (1 / self.gamma), 0)

    def _settings(self) -> dict[str, object]:
        return {"gamma": round(self.gamma, 6), **super()._settings()}


def target_sums(inputs: Inputs, mode: str) -> Tensor:
    """``Σ t`` over the counted pixels of each picture, ``[N, C]``."""
    if mode != "multiclass":
        return inputs.target.sum(2, dtype=inputs.dtype)
    counted = torch.ones_like(inputs.target) if inputs.valid is None else inputs.valid.long()
    return counted.new_zeros(inputs.logits.shape[:2]).scatter_add(1, inputs.target, counted).to(inputs.dtype)


def checked_classes(classes: Classes) -> Literal["all", "present"] | list[int]:
    """``"all"``, ``"present"``, or a list of different class indices; anything else: ValueError."""
    if isinstance(classes, str):
        check_choice("classes", classes, ("all", "present"))
        return "present" if classes == "present" else "all"
    if not isinstance(classes, list | tuple | range) or not classes:
        raise ValueError(f"classes is {classes!r}, expected 'all', 'present' or a list of class indices")
    if any(type(index) is not int or index < 0 for index in classes) or len(set(classes)) != len(classes):
        raise ValueError(f"classes is {classes!r}, expected different integers of at least 0")
    return list(classes)


def chosen(classes: Sequence[int], channels: int, device: torch.device) -> Tensor:
    """bool ``[C]``: which of the channels are among ``classes``."""
    if max(classes) >= channels:
        raise ValueError(f"classes has {max(classes)}, but the logits have {channels} classes")
    index = torch.arange(channels, device=device)
    return torch.stack([index == wanted for wanted in classes]).any(0)


def checked_number(name: str, value: float) -> float:
    """A finite number of at least 0; anything else: ValueError."""
    if not is_number(value) or not 0 <= value < float("inf"):
        raise ValueError(f"{name} is {value!r}, expected a finite number of at least 0")
    return float(value)
