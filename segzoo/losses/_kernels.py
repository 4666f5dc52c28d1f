"""Sums and maps over ``[N, C, H·W]`` logits that never hold a second tensor of that size, but for the gradient.

A kernel is two pure functions of a block of pixels: its value (a map or a sum), and the gradient of the logits given
the gradient of that value. :func:`evaluate` goes through the pixels block by block, forward and again backward
(softmax is cheaper to compute twice than to write to memory and read again), so that what lies between logits and
loss stays in the cache. Where a graph of the gradient is asked for (double backward, ``torch.func``) the same two
functions see all pixels at once and are differentiated as they stand; under ``torch.compile`` and ``torch.export``
so is the value."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "BinaryCrossEntropy", "FocalSigmoid", "Kernel", "LogLikelihood", "SigmoidOverlap", "SoftmaxOverlap",
    "SoftmaxProduct", "blocks", "evaluate", "fold", "keep", "masked", "modulation",
]  # fmt: skip

# Elements of a block. On the CPU a few of them fit the caches; on a GPU fewer launches count for more.
_BLOCK = {"cpu": 2**20}
_BLOCK_ELSEWHERE = 2**24


class Kernel(ABC):
    """A function of logits, and its gradient, pixel by pixel; made anew for every evaluation.

    Where a pixel is ignored the target is 0. Sums do not depend on the logits there, unless these make them infinite or
    NaN (then they are evaluated again with logits of 0); in a map such a pixel's own value is anything. Its gradient is
    set to 0 by :func:`evaluate`.
    """

    maps: ClassVar[bool] = False
    """Whether the value is a map ``[n, K, l]`` of the pixels, or sums ``[n, …]`` over them."""
    planes: ClassVar[bool] = False
    """Whether a block has to hold all pixels of its pictures."""
    guarded = False
    """Whether ignored logits were not finite: nothing may be computed of them."""

    @abstractmethod
    def value(self, x: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        """The value at a block.

        Args:
            x: Logits ``[n, C, l]``, in float32 or float64.
            target: ``[n, l]`` labels, or ``[n, C, l]``.
            valid: bool of the target's shape, or None where all counts.
        """

    @abstractmethod
    def gradient(self, x: Tensor, target: Tensor, valid: Tensor | None, grad: Tensor) -> Tensor:
        """The gradient of ``x``, given that of the value; the block's own part of ``grad`` where that is a map."""


def evaluate(kernel: Kernel, logits: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
    """The kernel's value for all pixels: a map ``[N, K, L]``, or sums ``[N, …]``, in float32 (float64 for float64)."""
    with torch.autocast(logits.device.type, enabled=False):
        if torch.compiler.is_compiling():
            return kernel.value(keep(_computable(logits), valid), target, valid)
        value: Tensor = _Blockwise.apply(kernel, logits, target, valid)
        return value


def keep(x: Tensor, valid: Tensor | None) -> Tensor:
    """``x`` ``[…, C, l]`` with 0 where a pixel is ignored, whatever it held, and no gradient there."""
    return x if valid is None else x.masked_fill(~_beside(valid, x), 0)


def masked(x: Tensor, valid: Tensor | None, *, out: Tensor | None = None) -> Tensor:
    """The same of finite ``x``, by a product, which costs a third; written into ``out`` if that is given."""
    if valid is None:
        return x if out is None else out.copy_(x)
    return torch.mul(x, _beside(valid, x).to(x.dtype), out=out)


def _beside(valid: Tensor, x: Tensor) -> Tensor:
    """``[…, l]`` or ``[…, C, l]`` as what broadcasts to ``x`` ``[…, C, l]``."""
    return valid if valid.ndim == x.ndim else valid.unsqueeze(-2)


def _computable(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def blocks(x: Tensor, *, planes: bool = False) -> Iterator[tuple[slice, slice]]:
    """Slices of pictures and of pixels that cut ``x`` ``[N, C, L]`` into blocks; ``planes``: of whole pictures."""
    pictures, channels, pixels = x.shape
    size = _BLOCK.get(x.device.type, _BLOCK_ELSEWHERE)
    if planes:  # a window makes several maps of each
        size //= 4
    width = pixels if planes else max(1, min(pixels, size // channels))
    height = max(1, size // (channels * width)) if width == pixels and width else 1
    for n in range(0, pictures, height):
        for start in range(0, pixels, max(1, width)):
            yield slice(n, n + height), slice(start, start + width)


class _Blockwise(torch.autograd.Function):
    @staticmethod
    def forward(kernel: Kernel, logits: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        parts = [
            (n, pixels, _value(kernel, *_block(kernel, logits, target, valid, n, pixels)))
            for n, pixels in blocks(logits, planes=kernel.planes)
        ]
        if not parts:  # a batch of nothing
            return kernel.value(_computable(logits), target, valid)
        _, _, some = parts[0]
        if kernel.maps:
            value = some.new_empty(logits.shape[0], some.shape[1], logits.shape[2])
            for n, pixels, part in parts:
                value[n, :, pixels] = part
        else:
            value = some.new_zeros(logits.shape[0], *some.shape[1:])
            for n, _, part in parts:
                value[n] += part
        return value

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        kernel, logits, target, valid = inputs
        ctx.kernel = kernel
        ctx.save_for_backward(logits, target, valid)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        kernel = ctx.kernel
        logits, target, valid = ctx.saved_tensors
        with torch.autocast(logits.device.type, enabled=False):
            if torch.is_grad_enabled():
                x = keep(_computable(logits), valid)
                return None, keep(kernel.gradient(x, target, valid, grad).to(logits.dtype), valid), None, None
            result = torch.empty_like(logits)
            for n, pixels in blocks(logits, planes=kernel.planes):
                x, t, v = _block(kernel, logits, target, valid, n, pixels)
                slope = kernel.gradient(x, t, v, grad[n, ..., pixels] if kernel.maps else grad[n])
                masked(slope, v, out=result[n, :, pixels])
        return None, result, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        """The mapped axis becomes part of the batch: pictures do not know of each other."""
        size = info.batch_size
        kernel, *tensors = inputs
        return _Blockwise.apply(kernel, *fold(size, tensors, in_dims[1:])).unflatten(0, (size, -1)), 0


def fold(size: int, tensors: Sequence[Tensor | None], in_dims: Sequence[int | None]) -> list[Tensor | None]:
    """What vmap hands over, with the mapped axis of ``size`` folded into the first one."""
    return [
        None if x is None else (x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)
        for x, dim in zip(tensors, in_dims)
    ]


def _block(
    kernel: Kernel, logits: Tensor, target: Tensor, valid: Tensor | None, n: slice, pixels: slice
) -> tuple[Tensor, Tensor, Tensor | None]:
    # Contiguous: the last bit of some functions depends on how their input lies.
    x = _computable(logits[n, :, pixels]).contiguous()
    t, v = target[n, ..., pixels], None if valid is None else valid[n, ..., pixels]
    if v is None or (v.device.type == "cpu" and v.all()):
        return x, t, None
    # To look costs a GPU more than to write: there what is ignored is set to 0 always.
    return keep(x, v) if kernel.guarded or x.device.type != "cpu" else x, t, v


def _value(kernel: Kernel, x: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
    value = kernel.value(x, target, valid)
    if valid is None or kernel.guarded or x.device.type != "cpu" or value.isfinite().all():
        return value
    kernel.guarded = True
    return kernel.value(keep(x, valid), target, valid)


class LogLikelihood(Kernel):
    """Map ``[n, 1 or 2, l]``: log p of the true class; if ``share`` ``[C]`` is given also ``Σ share_c log p_c``."""

    maps = True

    def __init__(self, share: Tensor | None = None) -> None:
        self.share = share

    def value(self, x: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        log_p = F.log_softmax(x, 1)
        result = log_p.gather(1, target.unsqueeze(1))
        if self.share is not None:
            result = torch.cat([result, (log_p * _column(self.share, x)).sum(1, keepdim=True)], 1)
        return result

    def gradient(self, x: Tensor, target: Tensor, valid: Tensor | None, grad: Tensor) -> Tensor:
        of_target = grad[:, :1]
        if self.share is None:
            return (F.softmax(x, 1) * -of_target).scatter_add_(1, target.unsqueeze(1), of_target)
        share = _column(self.share, x)
        of_mean = grad[:, 1:]
        result = of_mean * share - F.softmax(x, 1) * (of_target + of_mean * share.sum())
        return result.scatter_add_(1, target.unsqueeze(1), of_target)


class SoftmaxOverlap(Kernel):
    """Sums ``[n, 2, C]`` of each picture: of p_c where the label is c, and of p_c everywhere; p = softmax."""

    def value(self, x: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        p = masked(F.softmax(x, 1), valid)
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            # One after the other, a million additions in float32 would lose more than half precision does.
            of_target = p.gather(1, target.unsqueeze(1)).squeeze(1).double()
            true = of_target.new_zeros(p.shape[:2]).scatter_add(1, target, of_target).to(p.dtype)
        else:  # the order of a scatter's additions is random on a GPU
            classes = torch.arange(x.shape[1], device=x.device).unsqueeze(1)
            true = torch.where(target.unsqueeze(1) == classes, p, 0).sum(2)
        return torch.stack([true, p.sum(2)], 1)

    def gradient(self, x: Tensor, target: Tensor, valid: Tensor | None, grad: Tensor) -> Tensor:
        p = F.softmax(x, 1)
        of_true, of_all = grad.unbind(1)
        label = target.unsqueeze(1)
        true = p.gather(1, label) * of_true.gather(1, target).unsqueeze(1)
        slope = p * of_all.unsqueeze(2)
        mean = slope.sum(1, keepdim=True) + true
        return slope.addcmul_(p, mean, value=-1).scatter_add_(1, label, true)


class SigmoidOverlap(Kernel):
    """Sums ``[n, 2, C]`` of each picture: of p·t and of p; p = sigmoid of the logits. ``t`` may be any number."""

    def value(self, x: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        p = masked(x.sigmoid(), valid)
        return torch.stack([(p * target.to(p.dtype)).sum(2), p.sum(2)], 1)

    def gradient(self, x: Tensor, target: Tensor, valid: Tensor | None, grad: Tensor) -> Tensor:
        p = x.sigmoid()
        of_product, of_all = grad.unsqueeze(3).unbind(1)
        return p * (1 - p) * (target.to(p.dtype) * of_product + of_all)


class SoftmaxProduct(Kernel):
    """Sums ``[n]`` of each picture: ``Σ p_c · t_c`` with p = softmax of the logits and any map t ``[n, C, l]``."""

    def value(self, x: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        return (F.softmax(x, 1) * keep(target.to(x.dtype), valid)).sum((1, 2))

    def gradient(self, x: Tensor, target: Tensor, valid: Tensor | None, grad: Tensor) -> Tensor:
        p = F.softmax(x, 1)
        product = p * keep(target.to(x.dtype), valid)
        return product.addcmul(p, product.sum(1, keepdim=True), value=-1) * grad.reshape(-1, 1, 1)


class BinaryCrossEntropy(Kernel):
    """Sums ``[n]`` of each picture: ``-(w t log σ(x) + (1 - t) log σ(-x))``, with ``pos_weight`` w ``[C]`` or [1]."""

    def __init__(self, pos_weight: Tensor | None = None) -> None:
        self.pos_weight = pos_weight

    def map(self, x: Tensor, t: Tensor) -> Tensor:
        """The loss of each element ``[n, C, l]``, exact where it is tiny on either side."""
        positive = t * F.logsigmoid(x)
        if self.pos_weight is not None:
            positive = positive * _column(self.pos_weight, x)
        return (t - 1) * F.logsigmoid(-x) - positive

    def value(self, x: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        return masked(self.map(x, target.to(x.dtype)), valid).sum((1, 2))

    def gradient(self, x: Tensor, target: Tensor, valid: Tensor | None, grad: Tensor) -> Tensor:
        t = target.to(x.dtype)
        if self.pos_weight is None:
            slope = x.sigmoid() - t
        else:
            weighted = t * _column(self.pos_weight, x)
            slope = x.sigmoid() * (weighted + 1 - t) - weighted
        return slope * grad.reshape(-1, 1, 1)


class FocalSigmoid(Kernel):
    """Sums ``[n, 2]`` of each picture: of ``α_t q^γ · BCE``, and of the factor ``q^γ``; q = |t - σ(x)| for a hard t."""

    def __init__(self, gamma: float, alpha: Tensor | None) -> None:
        self.gamma = gamma
        self.alpha = alpha

    def map(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and factor of each element ``[n, C, l]``."""
        factor = modulation(_missing(x, t), self.gamma)
        loss = factor * BinaryCrossEntropy().map(x, t)
        return (loss if self.alpha is None else loss * self._balance(x, t)), factor

    def value(self, x: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        loss, factor = self.map(x, target.to(x.dtype))
        return torch.stack([masked(loss, valid).sum((1, 2)), masked(factor, valid).sum((1, 2))], 1)

    def gradient(self, x: Tensor, target: Tensor, valid: Tensor | None, grad: Tensor) -> Tensor:
        t = target.to(x.dtype)
        missing = _missing(x, t)
        p = x.sigmoid()
        of_loss, of_factor = grad.reshape(-1, 2, 1, 1).unbind(1)
        if self.alpha is not None:
            of_loss = of_loss * self._balance(x, t)
        slope = of_loss * modulation(missing, self.gamma) * (p - t)
        if self.gamma != 0:
            missing = missing.clamp_min(torch.finfo(x.dtype).tiny)
            change = p * (1 - p) * (1 - 2 * t)
            # The small factor first: the cross entropy may be as large as the logit.
            of_missing = change * BinaryCrossEntropy().map(x, t) * of_loss + change * of_factor
            slope = slope + of_missing * self.gamma * missing ** (self.gamma - 1)
        return slope

    def _balance(self, x: Tensor, t: Tensor) -> Tensor:
        assert self.alpha is not None
        alpha = _column(self.alpha, x)
        return 1 - alpha + (2 * alpha - 1) * t


def modulation(missing: Tensor, gamma: float) -> Tensor:
    """``missing ** gamma`` with a finite gradient at 0."""
    if gamma == 0:
        return torch.ones_like(missing)
    return missing.clamp_min(torch.finfo(missing.dtype).tiny) ** gamma


def _missing(x: Tensor, t: Tensor) -> Tensor:
    """The probability of what is not the target, ``1 - p_t``, exact where it is tiny."""
    return t * (-x).sigmoid() + (1 - t) * x.sigmoid()


def _column(per_class: Tensor, x: Tensor) -> Tensor:
    return per_class.to(x.dtype).reshape(-1, 1)
