"""Losses that look at each pixel by itself: cross entropy, its binary form, focal loss and hard-example mining."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from segzoo.losses._inputs import Auto, Inputs, Loss, check_choice, is_number, listed, nonnegative_weights, safe_divide
from segzoo.losses._kernels import BinaryCrossEntropy, FocalSigmoid, LogLikelihood, evaluate, keep, modulation

__all__ = ["BCELoss", "CrossEntropyLoss", "FocalLoss", "OhemCrossEntropyLoss"]

Reduction = Literal["mean", "sum", "none"]
_REDUCTIONS = ("mean", "sum", "none")


class CrossEntropyLoss(Loss):
    """Cross entropy of the softmax, as :func:`torch.nn.functional.cross_entropy`, with less memory.

    The mean divides by the sum of the counted pixels' class weights, which is PyTorch's definition: batches split over
    processes average to the same gradient only where these sums are equal (no weights, equally many counted pixels);
    ``reduction="sum"`` always adds up.

    Args:
        mode: ``"multiclass"``: logits ``[N, C, H, W]``, integer target ``[N, H, W]``. For one channel:
            :class:`BCELoss`.
        weight: One number for each class, at least 0; :func:`class_weights` makes them from pixel
            counts.
        label_smoothing: 0…1; this share of the target is spread evenly over all classes.
        ignore_index: The label that does not count; None: every pixel counts. ``"auto"``: 255.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for a map ``[N, H, W]`` that is 0 at ignored pixels.

    Raises:
        ValueError: For arguments, shapes, dtypes or labels that do not fit, in one sentence that says which.

    Examples:
        >>> import torch
        >>> logits, target = torch.zeros(1, 4, 2, 2), torch.tensor([[[0, 1], [3, 255]]])
        >>> CrossEntropyLoss()(logits, target)  # log 4
        tensor(1.3863)
    """

    modes = ("multiclass",)

    def __init__(
        self,
        mode: Literal["multiclass"] = "multiclass",
        *,
        weight: Tensor | Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int | Auto | None = "auto",
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(mode, ignore_index)
        self.weight: Tensor | None
        self.register_buffer("weight", nonnegative_weights("weight", weight))
        self.label_smoothing = _fraction("label_smoothing", label_smoothing)
        self.reduction = check_choice("reduction", reduction, _REDUCTIONS)

    def forward(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss of logits ``[N, C, H, W]``; ``mask`` bool ``[N, H, W]``: False does not count either."""
        inputs = self._inputs(logits, target, mask)
        if not self.label_smoothing:
            (log_p,) = _log_likelihood(inputs)
            return _reduced(-log_p, inputs, self.weight, self.reduction)
        channels = logits.shape[1]
        share = torch.full((channels,), 1 / channels, dtype=inputs.dtype, device=logits.device)
        log_p, smooth = _log_likelihood(inputs, share if self.weight is None else share * self.weight)
        weights = _label_weights(inputs, self.weight)
        loss = -(1 - self.label_smoothing) * (log_p if weights is None else log_p * weights)
        return _reduced(loss - self.label_smoothing * smooth, inputs, self.weight, self.reduction, weigh=False)

    def _settings(self) -> dict[str, object]:
        return {
            "weight": listed(self.weight),
            "label_smoothing": self.label_smoothing or None,
            "reduction": self.reduction,
        }


class OhemCrossEntropyLoss(Loss):
    """Cross entropy of the hardest pixels only: online hard example mining.

    A pixel is kept where the probability of its true class is below ``threshold``; where these are fewer than
    ``min_kept``, the ``min_kept`` pixels with the lowest such probability are (all of those that tie for the last
    place). The mean divides by the sum of the kept pixels' weights. The pixels of one process compete with each
    other: batches split over processes keep others, and do not average to the same gradient.

    Args:
        mode: ``"multiclass"``, or ``"binary"`` with a target of 0 and 1.
        threshold: Probability, 0…1, from which on a pixel is easy.
        min_kept: How many pixels of a batch to keep at least. In batches of no more pixels than that it is the plain
            cross entropy.
        weight: One number for each class, at least 0 (in binary: background, object).
        ignore_index: The label that does not count; ``"auto"``: 255 in multiclass, None in binary.

    Source:
        Shrivastava, Gupta, Girshick: Training Region-based Object Detectors with Online Hard Example Mining, CVPR 2016;
        per pixel as in Yuan et al., OCNet, 2018.

    Examples:
        >>> import torch
        >>> logits, target = torch.tensor([[[[9.0, 0.0]], [[0.0, 0.0]]]]), torch.tensor([[[0, 0]]])
        >>> OhemCrossEntropyLoss(min_kept=1)(logits, target)  # the second pixel: log 2
        tensor(0.6931)
    """

    modes = ("multiclass", "binary")
    hard_targets = True

    def __init__(
        self,
        mode: Literal["multiclass", "binary"] = "multiclass",
        *,
        threshold: float = 0.7,
        min_kept: int = 100_000,
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int | Auto | None = "auto",
    ) -> None:
        super().__init__(mode, ignore_index)
        self.threshold = _fraction("threshold", threshold)
        if type(min_kept) is not int or min_kept < 1:
            raise ValueError(f"min_kept is {min_kept!r}, expected an integer of at least 1")
        self.min_kept = min_kept
        self.weight: Tensor | None
        self.register_buffer("weight", nonnegative_weights("weight", weight))

    def forward(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss of logits ``[N, C, H, W]``; ``mask`` bool ``[N, H, W]``: False does not count either."""
        inputs = self._inputs(logits, target, mask)
        if self.mode == "binary":
            inputs = Inputs(
                inputs.logits,
                inputs.target.squeeze(1).long(),
                None if inputs.valid is None else inputs.valid.squeeze(1),
                inputs.size,
            )
            x = keep(inputs.logits.to(inputs.dtype), inputs.valid).squeeze(1)
            log_p = F.logsigmoid(torch.where(inputs.target == 1, x, -x))
        else:
            (log_p,) = _log_likelihood(inputs)
        hard = self._hard(log_p.detach(), inputs.valid)
        weights = hard.to(log_p.dtype)
        if self.weight is not None:
            weights = weights * self.weight.to(log_p.dtype)[inputs.target]
        return safe_divide((-log_p * weights).sum(), weights.sum())

    def _hard(self, log_p: Tensor, valid: Tensor | None) -> Tensor:
        """Which pixels are kept, bool of the shape of ``log_p``."""
        p = log_p.exp()
        if valid is not None:
            p = p.masked_fill(~valid, torch.inf)
        kept = p < self.threshold
        if p.numel():
            last = p.flatten().kthvalue(min(self.min_kept, p.numel())).values  # infinite: fewer than that count
            kept = kept | (p <= last)
        return kept if valid is None else kept & valid

    def _classes_of_weight(self, channels: int) -> int:
        return 2 if self.mode == "binary" else channels

    def _settings(self) -> dict[str, object]:
        return {"threshold": self.threshold, "min_kept": self.min_kept, "weight": listed(self.weight)}


class BCELoss(Loss):
    """Binary cross entropy of the sigmoid, with logits, as ``torch.nn.BCEWithLogitsLoss``; targets may be soft.

    The mean divides by the number of counted entries: batches split over processes average to the same gradient where
    each has equally many of them.

    Args:
        mode: ``"binary"``: logits ``[N, 1, H, W]``; ``"multilabel"``: ``[N, C, H, W]``. The target has 0…1.
        pos_weight: What a positive entry counts for: one number, or one for each class.
        ignore_index: The target's value that does not count; ``"auto"``: None.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for a map of the logits' shape that is 0 where ignored.

    Raises:
        ValueError: For arguments, shapes, dtypes or targets that do not fit, in one sentence that says which.

    Examples:
        >>> import torch
        >>> BCELoss()(torch.zeros(1, 1, 2, 2), torch.ones(1, 2, 2))  # log 2
        tensor(0.6931)
    """

    modes = ("binary", "multilabel")

    def __init__(
        self,
        mode: Literal["binary", "multilabel"] = "binary",
        *,
        pos_weight: float | Tensor | Sequence[float] | None = None,
        ignore_index: int | Auto | None = "auto",
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(mode, ignore_index)
        self.pos_weight: Tensor | None
        self.register_buffer("pos_weight", nonnegative_weights("pos_weight", _listed_number(pos_weight)))
        self.reduction = check_choice("reduction", reduction, _REDUCTIONS)

    def forward(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss of logits ``[N, C, H, W]``; ``mask`` bool ``[N, H, W]``: False does not count either."""
        inputs = self._inputs(logits, target, mask)
        _check_length("pos_weight", self.pos_weight, logits.shape[1])
        kernel = BinaryCrossEntropy(self.pos_weight)
        if self.reduction == "none":
            x = keep(inputs.logits.to(inputs.dtype), inputs.valid)
            return inputs.map(keep(kernel.map(x, inputs.target.to(x.dtype)), inputs.valid))
        total = evaluate(kernel, inputs.logits, inputs.target, inputs.valid).sum()
        return total if self.reduction == "sum" else safe_divide(total, inputs.counted())

    def _settings(self) -> dict[str, object]:
        return {"pos_weight": listed(self.pos_weight), "reduction": self.reduction}


class FocalLoss(Loss):
    r"""Focal loss: cross entropy in which a pixel counts the less the surer it is already.

    ``FL = -α_t (1 - p_t)^γ log p_t``, with ``p_t`` the probability given to the truth, and the gradient going
    through the factor too. In ``"multiclass"`` p is the softmax (segmentation_models_pytorch's is one sigmoid
    against the rest for each class; MONAI's, with ``use_softmax=True``, is this one, divided by all elements ``N C H
    W`` rather than pixels), and ``gamma=0`` is :class:`CrossEntropyLoss` with ``weight=alpha``, to the bit. In
    ``"binary"`` and ``"multilabel"`` it is torchvision's ``sigmoid_focal_loss``; with ``gamma=0`` and no alpha it is
    :class:`BCELoss`.

    The mean divides by the sum of the counted pixels' α (multiclass), else by the number of counted entries: as there,
    batches split over processes average to the same gradient where these are equal; with ``normalized`` they do not.

    Args:
        mode: ``"multiclass"``, ``"binary"`` or ``"multilabel"``.
        gamma: γ, the exponent of focusing, at least 0.
        alpha: α. Multiclass: one number for each class. Binary: one number in 0…1 for the positive
            entries, the others get 1 - α; multilabel: likewise, or one for each class. None: no weights.
        normalized: The sum is divided by the sum of the factors ``(1 - p_t)^γ`` instead, so that a picture that is
            nearly solved keeps its weight (only ``reduction="mean"``; segmentation_models_pytorch's mean divides by the
            number of pixels once more, its ``reduction="sum"`` is this).
        ignore_index: The label that does not count; ``"auto"``: 255 in multiclass, None elsewhere.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for a map (``[N, H, W]`` in multiclass, else the logits' shape).

    Raises:
        ValueError: For arguments, shapes, dtypes or labels that do not fit, in one sentence that says which.

    Source:
        Lin et al.: Focal Loss for Dense Object Detection, ICCV 2017, equation 5; ``normalized``: Sofiiuk, Barinova,
        Konushin: AdaptIS, ICCV 2019.

    Examples:
        >>> import torch
        >>> logits, target = torch.zeros(1, 4, 2, 2), torch.tensor([[[0, 1], [3, 255]]])
        >>> FocalLoss(gamma=2.0)(logits, target)  # (3/4)² log 4
        tensor(0.7798)
    """

    def __init__(
        self,
        mode: Literal["multiclass", "binary", "multilabel"] = "multiclass",
        gamma: float = 2.0,
        alpha: float | Tensor | Sequence[float] | None = None,
        *,
        normalized: bool = False,
        ignore_index: int | Auto | None = "auto",
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(mode, ignore_index)
        if not is_number(gamma) or not 0 <= gamma < float("inf"):
            raise ValueError(f"gamma is {gamma!r}, expected a number of at least 0")
        self.gamma = float(gamma)
        self.alpha: Tensor | None
        if mode == "multiclass" and is_number(alpha):
            raise ValueError(f"alpha is {alpha}, mode 'multiclass' expects one number for each class")
        values = nonnegative_weights("alpha", _listed_number(alpha))
        if values is not None and mode != "multiclass" and values.max() > 1:
            raise ValueError(f"alpha is {values.tolist()}, mode {mode!r} expects numbers in 0…1")
        self.register_buffer("alpha", values)
        self.normalized = normalized
        self.reduction = check_choice("reduction", reduction, _REDUCTIONS)
        if normalized and reduction != "mean":
            raise ValueError(f"normalized=True is a mean, but reduction is {reduction!r}")

    def forward(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss of logits ``[N, C, H, W]``; ``mask`` bool ``[N, H, W]``: False does not count either."""
        inputs = self._inputs(logits, target, mask)
        _check_length("alpha", self.alpha, logits.shape[1], one_for_all=self.mode != "multiclass")
        return self._softmax(inputs) if self.mode == "multiclass" else self._sigmoid(inputs)

    def _softmax(self, inputs: Inputs) -> Tensor:
        (log_p,) = _log_likelihood(inputs)
        loss, factor = -log_p, torch.ones_like(log_p)
        if self.gamma:
            factor = modulation(-torch.expm1(log_p), self.gamma)
            loss = loss * factor
        if not self.normalized:
            return _reduced(loss, inputs, self.alpha, self.reduction)
        weights = _label_weights(inputs, self.alpha)
        total = _counted_sum(loss if weights is None else loss * weights, inputs.valid)
        return safe_divide(total, _counted_sum(factor, inputs.valid))

    def _sigmoid(self, inputs: Inputs) -> Tensor:
        logits, target, valid = inputs.logits, inputs.target, inputs.valid
        kernel = FocalSigmoid(self.gamma, self.alpha)
        if self.reduction == "none":
            x = keep(logits.to(inputs.dtype), valid)
            return inputs.map(keep(kernel.map(x, target.to(x.dtype))[0], valid))
        if self.gamma == 0 and self.alpha is None:
            total = evaluate(BinaryCrossEntropy(), logits, target, valid).sum()
        else:
            total, factors = evaluate(kernel, logits, target, valid).sum(0).unbind()
            if self.normalized:
                return safe_divide(total, factors)
        return total if self.reduction == "sum" else safe_divide(total, inputs.counted())

    def _settings(self) -> dict[str, object]:
        return {
            "gamma": self.gamma,
            "alpha": listed(self.alpha),
            "normalized": self.normalized or None,
            "reduction": self.reduction,
        }


def _log_likelihood(inputs: Inputs, share: Tensor | None = None) -> tuple[Tensor, ...]:
    """Maps ``[N, H·W]``: log p of the true class; with ``share`` ``[C]`` also ``Σ share_c log p_c``."""
    return evaluate(LogLikelihood(share), inputs.logits, inputs.target, inputs.valid).unbind(1)


def _label_weights(inputs: Inputs, weight: Tensor | None) -> Tensor | None:
    """The class weight of each pixel's label, ``[N, H·W]``."""
    return None if weight is None else weight.to(inputs.dtype)[inputs.target]


def _reduced(loss: Tensor, inputs: Inputs, weight: Tensor | None, reduction: str, *, weigh: bool = True) -> Tensor:
    """A map of losses ``[N, H·W]`` weighted by its labels (unless that is done) and reduced as PyTorch does."""
    weights = _label_weights(inputs, weight)
    if weights is not None and weigh:
        loss = loss * weights
    if reduction == "none":
        return inputs.map(loss if inputs.valid is None else torch.where(inputs.valid, loss, 0))
    total = _counted_sum(loss, inputs.valid)
    if reduction == "sum":
        return total
    return safe_divide(total, inputs.counted() if weights is None else _counted_sum(weights, inputs.valid))


def _counted_sum(values: Tensor, valid: Tensor | None) -> Tensor:
    return (values if valid is None else torch.where(valid, values, 0)).sum()


def _fraction(name: str, value: float) -> float:
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{name} is {value!r}, expected a number in 0…1")
    return float(value)


def _listed_number(values: float | Tensor | Sequence[float] | None) -> Tensor | Sequence[float] | None:
    if isinstance(values, int | float):
        return [float(values)]
    return values.reshape(1) if isinstance(values, Tensor) and values.ndim == 0 else values


def _check_length(name: str, values: Tensor | None, channels: int, *, one_for_all: bool = True) -> None:
    if values is not None and len(values) != channels and not (one_for_all and len(values) == 1):
        raise ValueError(f"{name} has {len(values)} numbers, but the logits have {channels} classes")
