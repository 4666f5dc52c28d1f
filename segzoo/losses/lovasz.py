"""The Lovász extension of the Jaccard loss: sorting instead of soft counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from segzoo.losses._inputs import Auto, Inputs
from segzoo.losses._kernels import blocks, fold, keep
from segzoo.losses.region import Classes, RegionLoss, target_sums

__all__ = ["LovaszLoss"]


class LovaszLoss(RegionLoss):
    """Lovász loss: the convex extension of 1 - IoU, which is what it optimises, exactly.

    ``"multiclass"`` is the Lovász softmax, 0 for a perfect prediction and 1 for the worst; ``"binary"`` and
    ``"multilabel"`` are the Lovász hinge of the logits, without an upper end. Absent classes are left out of the
    mean (``"present"``), or pull their largest probability down (``"all"``). segmentation_models_pytorch's is
    the same but for ``"multilabel"``, where it sorts all channels together. Batches split over processes average to
    the same gradient only with ``per_image`` and equally many counted pictures each.

    Args:
        mode: ``"multiclass"`` (integer target ``[N, H, W]``), ``"binary"`` or ``"multilabel"`` (0 and 1).
        per_image: Sort each picture by itself and take the mean of the pictures that have a counted pixel.
        classes: ``"present"``, those that occur among the counted targets; ``"all"``; or a list of class indices. In
            binary there is one, and it always counts.
        weight: One number for each class: the mean over the classes is weighted.
        ignore_index: The label that does not count; ``"auto"``: 255 in multiclass, None elsewhere.

    Raises:
        ValueError: For arguments, shapes, dtypes or labels that do not fit, in one sentence that says which.

    Source:
        Berman, Rannen Triki, Blaschko: The Lovász-Softmax loss, CVPR 2018, equations 8 to 12.

    Examples:
        >>> import torch
        >>> LovaszLoss()(torch.zeros(1, 2, 2, 2), torch.tensor([[[0, 1], [1, 255]]]))  # every error is 1/2
        tensor(0.5000)
    """

    hard_targets = True

    def __init__(
        self,
        mode: Literal["multiclass", "binary", "multilabel"] = "multiclass",
        *,
        per_image: bool = False,
        classes: Classes = "present",
        weight: Tensor | Sequence[float] | None = None,
        ignore_index: int | Auto | None = "auto",
    ) -> None:
        super().__init__(mode, per_image=per_image, classes=classes, weight=weight, ignore_index=ignore_index)

    def forward(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss of logits ``[N, C, H, W]``; ``mask`` bool ``[N, H, W]``: False does not count either."""
        inputs = self._inputs(logits, target, mask)
        present = self._grouped_sums(inputs) > 0
        weights = self._class_weights(inputs, present if self.mode != "binary" else torch.ones_like(present))
        x, t, valid = (None if y is None else self._grouped(y) for y in (inputs.logits, inputs.target, inputs.valid))
        assert x is not None and t is not None
        with torch.autocast(logits.device.type, enabled=False):
            if torch.compiler.is_compiling():
                losses = _plain(x, t, valid)
            else:
                losses, _ = _Lovasz.apply(x, t, valid, weights > 0, torch.is_grad_enabled())
        return self._mean(losses, weights, inputs)

    def _grouped(self, x: Tensor) -> Tensor:
        """``[N, …]`` as ``[G, n, …]``: the pixels of a group are sorted together."""
        return x.unsqueeze(1 if self.per_image else 0)

    def _grouped_sums(self, inputs: Inputs) -> Tensor:
        sums = target_sums(inputs, self.mode)
        return sums if self.per_image else sums.sum(0, keepdim=True)


class _Lovasz(torch.autograd.Function):
    """Losses ``[G, C]`` of logits ``[G, n, C, L]``: softmax for labels ``[G, n, L]``, hinge for masks ``[G, n, C, L]``.

    The second result is the derivative of the losses by the probabilities (of the hinge: by the logits), a constant
    almost everywhere; the order of the pixels is known only while they are sorted.
    """

    @staticmethod
    def forward(
        logits: Tensor, target: Tensor, valid: Tensor | None, wanted: Tensor, with_slopes: bool
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        groups, _, channels, _ = logits.shape
        softmax = target.ndim == 3
        losses = torch.zeros(groups, channels, dtype=dtype, device=logits.device)
        slopes = torch.zeros_like(logits, dtype=dtype) if with_slopes else losses.new_empty(0)
        skip = ~wanted if wanted.device.type == "cpu" else torch.zeros_like(wanted, device="cpu")
        highest, total = _softmax_terms(logits, valid) if softmax else (None, None)
        for g in range(groups):
            for c in range(channels):
                if skip[g, c]:
                    continue
                x = logits[g, :, c].to(dtype)
                if softmax:
                    assert highest is not None and total is not None
                    truth = target[g] == c
                    p = (x - highest[g]).exp_().div_(total[g])
                    errors = torch.where(truth, 1 - p, p)
                    counted = valid
                else:
                    truth = target[g, :, c] == 1
                    errors = torch.where(truth, 1 - x, 1 + x).clamp_min_(0)
                    counted = None if valid is None else valid[:, :, c]
                if counted is not None:
                    errors = torch.where(counted[g], errors, 0)
                    truth = truth & counted[g]
                weights = _jaccard_weights(errors.flatten(), truth.flatten()).view_as(errors)
                losses[g, c] = (errors * weights).sum()
                if with_slopes:
                    slopes[g, :, c] = torch.where(truth, -weights, weights).masked_fill_(errors == 0, 0)
        return losses, slopes

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        logits, target, valid, _, _ = inputs
        ctx.softmax = target.ndim == 3
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # no zeros for the second result
        ctx.save_for_backward(logits, valid, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad is None:
            return None, None, None, None, None
        logits, valid, slopes = ctx.saved_tensors
        if torch.is_grad_enabled():
            slopes = slopes * grad[:, None, :, None]
            if ctx.softmax:
                p = F.softmax(keep(logits.to(slopes.dtype), valid), 2)
                slopes = keep(p * (slopes - (p * slopes).sum(2, keepdim=True)), valid)
            return slopes.to(logits.dtype), None, None, None, None
        result = torch.empty_like(logits)
        for g in range(len(logits)):
            x, y = logits[g], slopes[g]
            for n, pixels in blocks(x):
                slope = y[n, :, pixels] * grad[g].unsqueeze(1)
                if ctx.softmax:
                    v = None if valid is None else valid[g, n, pixels]
                    p = F.softmax(keep(x[n, :, pixels].to(y.dtype), v), 1)
                    slope = p * (slope - (p * slope).sum(1, keepdim=True))
                result[g, n, :, pixels] = slope
        return result, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        """The mapped axis becomes part of the groups."""
        size = info.batch_size
        *tensors, with_slopes = inputs
        losses, slopes = _Lovasz.apply(*fold(size, tensors, in_dims), with_slopes)
        return (losses.unflatten(0, (size, -1)), slopes.unflatten(0, (size, -1))), (0, 0)


def _plain(logits: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
    """The same losses ``[G, C]``, all classes at once, for a compiler to fuse."""
    x = keep(logits.to(torch.promote_types(logits.dtype, torch.float32)), valid)
    if target.ndim == 3:
        truth = target.unsqueeze(2) == torch.arange(x.shape[2], device=x.device).unsqueeze(1)
        p = F.softmax(x, 2)
        errors = torch.where(truth, 1 - p, p)
    else:
        truth = target == 1
        errors = F.relu(torch.where(truth, 1 - x, 1 + x))
    if valid is not None:
        counted = valid if valid.ndim == 4 else valid.unsqueeze(2)
        errors, truth = torch.where(counted, errors, 0), truth & counted
    errors, truth = errors.transpose(1, 2).flatten(2), truth.transpose(1, 2).flatten(2)
    return (errors * _jaccard_weights(errors.detach(), truth)).sum(2)


def _jaccard_weights(errors: Tensor, truth: Tensor) -> Tensor:
    """By how much the Jaccard loss grows when a pixel, from the largest error down, becomes wrong; ``[…, M]``.

    The difference of two Jaccard losses in closed form, which does not cancel: with F true and B other pixels among the
    wrong ones and T true ones in all, 1 - (T - F) / (T + B) grows by 1 / (T + B) with a true pixel, and by
    (T - F) / ((T + B) (T + B - 1)) with another, B counting it.
    """
    order = _descending(errors)
    true = truth.gather(-1, order)
    left = true.cumsum(-1, dtype=torch.int32)
    of_all = left[..., -1:].clone()
    union = torch.arange(1, errors.shape[-1] + 1, dtype=torch.int32, device=errors.device) - left
    union = union.add_(of_all).to(errors.dtype)
    true |= union == 1  # the first pixel of a class that is absent
    left = left.neg_().add_(of_all).to(errors.dtype)
    growth = left.div_((union - 1).clamp_min_(1).mul_(union))
    growth = torch.where(true, union.reciprocal_(), growth)
    del left, union
    return torch.zeros_like(errors).scatter_(-1, order, growth)


def _descending(errors: Tensor) -> Tensor:
    """The order of errors of at least 0, the largest first."""
    if torch.compiler.is_compiling():
        return errors.argsort(-1, descending=True)
    # Read as integers, floats of one sign keep their order, and for those torch has a radix sort on the CPU.
    integers = torch.int32 if errors.dtype == torch.float32 else torch.int64
    return errors.view(integers).bitwise_not().sort(-1).indices


def _softmax_terms(logits: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """The maps ``[G, n, L]`` that make a probability of a logit: the pixel's maximum, and its sum of exponentials."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    groups, pictures, _, pixels = logits.shape
    highest = torch.empty(groups, pictures, pixels, dtype=dtype, device=logits.device)
    total = torch.empty_like(highest)
    for g in range(groups):
        for n, part in blocks(logits[g]):
            x = keep(logits[g, n, :, part].to(dtype), None if valid is None else valid[g, n, part])
            largest = x.amax(1, keepdim=True)
            highest[g, n, part] = largest.squeeze(1)
            total[g, n, part] = (x - largest).exp_().sum(1)
    return highest, total
