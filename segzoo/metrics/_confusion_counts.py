"""How often each pair of target and predicted label occurs: inputs to label maps, and label maps to counts."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["LabelMaps", "count_pairs", "first_stray", "label_maps"]

_WIDER = {torch.bool: torch.uint8, torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}
# Neighbours mostly share a code, and a count waits for the one before it in the same place: so they have four places.
_PLACES = 4


class LabelMaps(NamedTuple):
    """Prediction and target as integers ``[N, H, W]``, and what they were given as."""

    prediction: Tensor
    """-1 where what was given says nothing: NaN, or no probability."""
    target: Tensor
    given_prediction: Tensor
    given_target: Tensor


def label_maps(prediction: Any, target: Any, num_classes: int, threshold: float, from_logits: bool) -> LabelMaps:
    """Bring both to label maps; wrong types and shapes are errors, values are not looked at.

    Args:
        prediction: Float ``[N, C, H, W]`` or ``[C, H, W]``, for one class ``[N, 1, H, W]``, ``[N, H, W]`` or
            ``[H, W]``; or a label map like ``target``.
        target: Bool or integers ``[N, H, W]``, ``[N, 1, H, W]`` or ``[H, W]``.
        num_classes: The number of channels; one is compared with ``threshold``.
        threshold: A probability.
        from_logits: Whether one channel holds logits.
    """
    prediction, target = _tensor(prediction, "prediction"), _tensor(target, "target")
    if target.is_floating_point() and num_classes > 1:
        raise TypeError(f"target is {target.dtype}, expected bool or integers")
    if prediction.device != target.device:
        raise ValueError(f"prediction is on {prediction.device}, target is on {target.device}: move one to the other")
    truth = _pictures(target, "target")
    if truth.is_floating_point():  # what is no whole number is no label
        truth = torch.where(truth == truth.round(), truth, 2.0**31).clamp_(-(2**31), 2**31).long()
    if prediction.is_floating_point() and num_classes > 1:
        scores = prediction.unsqueeze(0) if prediction.ndim == 3 else prediction
        if scores.ndim != 4 or scores.shape[1] != num_classes:
            forms = f"float [N, {num_classes}, H, W] or integers [N, H, W]"
            hint = ": num_classes=1 is for one channel" if num_classes == 2 and scores.shape[1:2] == (1,) else ""
            raise ValueError(f"prediction is {_form(prediction)}, expected {forms}{hint}")
        size = (scores.shape[0], *scores.shape[2:])
    else:
        scores = _pictures(prediction, "prediction")
        size = tuple(scores.shape)
    if size != truth.shape:
        resize = (
            f": resize the prediction to {truth.shape[1]} × {truth.shape[2]}" if size[1:] != truth.shape[1:] else ""
        )
        raise ValueError(f"prediction {list(prediction.shape)} does not fit target {list(target.shape)}{resize}")
    if not scores.is_floating_point():
        labels = scores
    elif num_classes > 1:
        highest, labels = scores.max(1)  # a NaN is the highest of all
        labels.masked_fill_(highest.isnan(), -1)
    else:
        labels = _above(scores, threshold, from_logits)
    labels, truth = _wider(labels), _wider(truth)
    if truth.device.type == "mps":  # it has no float64 to go on with
        labels, truth = labels.cpu(), truth.cpu()
    return LabelMaps(labels, truth, prediction, target)


def _wider(labels: Tensor) -> Tensor:
    """Labels in a dtype that can be computed with; what is beyond int64 is out of any range."""
    wide = labels.to(_WIDER.get(labels.dtype, labels.dtype))
    return wide.masked_fill_(wide < 0, 2**62) if labels.dtype == torch.uint64 else wide


def _tensor(values: Any, name: str) -> Tensor:
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "biuf" or values.dtype.itemsize > 8:
            raise TypeError(f"{name} is {values.dtype}, expected bool, integers or floating point of up to 64 bits")
        odd = not values.flags.writeable or min(values.strides, default=0) < 0
        values = torch.from_numpy(values.astype(values.dtype.newbyteorder("="), order="C", copy=odd))
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} is a {type(values).__name__}, expected a tensor or a NumPy array")
    if values.is_complex():
        raise TypeError(f"{name} is {values.dtype}, expected real numbers")
    return values.detach()


def _pictures(maps: Tensor, name: str) -> Tensor:
    """``[N, H, W]``."""
    pictures = maps.squeeze(1) if maps.ndim == 4 else maps.unsqueeze(0) if maps.ndim == 2 else maps
    if pictures.ndim != 3:
        raise ValueError(f"{name} is {_form(maps)}, expected [N, H, W], [N, 1, H, W] or [H, W]")
    return pictures


def _form(maps: Tensor) -> str:
    return f"{str(maps.dtype).removeprefix('torch.')} {list(maps.shape)}"


def _above(scores: Tensor, threshold: float, from_logits: bool) -> Tensor:
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))  # a threshold rounded to 8 bits is another
    if from_logits:
        valid = ~scores.isnan()
        threshold = math.log(threshold / (1 - threshold))
    else:
        valid = (scores >= 0) & (scores <= 1)
    return (scores > threshold).to(torch.int8).masked_fill_(~valid, -1)


def count_pairs(prediction: Tensor, target: Tensor, classes: int, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """Confusion matrices of label maps ``[N, H, W]``, on their device and without waiting for it.

    Returns:
        int64 ``[N, C, C]``, rows are the target; and the number of pixels that do not belong there, 0-dimensional:
        their target is neither a class nor ``ignore_index``, or their prediction is not a class while the target is.
    """
    # Three rows before and after those of the classes hold what is beyond ignore_index, ignore_index itself, and what
    # is between it and the classes; a column before and after, labels that are too low and too high.
    rows, columns = classes + 6, classes + 2
    codes = _codes(prediction, target, classes, ignore_index).flatten(1)
    count = _by_bincount if codes.device.type == "cpu" else _by_scatter
    pairs = count(codes, rows * columns).unflatten(1, (rows, columns))
    matrices = pairs[:, 3:-3, 1:-1]
    strangers = target.numel() - matrices.sum()
    if ignore_index is None:
        return matrices, strangers
    if 0 <= ignore_index < classes:
        row = 3 + ignore_index
        strangers = strangers - pairs[:, row, 0].sum() - pairs[:, row, -1].sum()
        pairs[:, row] = 0
        return matrices, strangers
    row = 1 if ignore_index < 0 else rows - 2
    return matrices, strangers - pairs[:, row].sum()


def _codes(prediction: Tensor, target: Tensor, classes: int, ignore_index: int | None) -> Tensor:
    """A number for place, row and column at every pixel, in the narrowest dtype it fits."""
    rows, columns = classes + 6, classes + 2
    index = -1 if ignore_index is None or 0 <= ignore_index < classes else ignore_index
    low, high = min(-1, index - 1), max(classes, index + 1)
    reach = max(_PLACES * rows * columns, 2 * high, -2 * low)
    dtype = next(dtype for dtype in (torch.int16, torch.int32, torch.int64) if reach <= torch.iinfo(dtype).max)
    codes = labels = _narrowed(target, low, high, dtype)
    if index >= classes:
        codes = labels.clamp(-1, classes).add_(labels.sub_(index - 1).clamp_(0, 2))
    elif index == ignore_index:
        codes = labels.clamp(-1, classes).add_(labels.sub_(index + 1).clamp_(-2, 0))
    places = torch.arange(target.shape[-1], dtype=torch.int32, device=target.device).remainder_(_PLACES)
    origin = places.mul_(rows * columns).add_(3 * columns + 1).to(dtype)
    return _narrowed(prediction, -1, classes, dtype).add_(codes, alpha=columns).add_(origin)


def _narrowed(labels: Tensor, low: int, high: int, dtype: torch.dtype) -> Tensor:
    """A copy in ``dtype``, in which a label that is too low or too high is ``low`` or ``high``."""
    if labels.dtype.itemsize < dtype.itemsize:
        return labels.to(dtype).clamp_(low, high)
    if labels.device.type == "cpu" and labels.numel():  # most need no second copy, and to look costs less
        lowest, highest = labels.aminmax()
        if low <= lowest and highest <= high:
            return labels.to(dtype, copy=True)
    return labels.clamp(low, high).to(dtype)


def _by_bincount(codes: Tensor, size: int) -> Tensor:
    counts = codes.new_empty((len(codes), size), dtype=torch.int64)
    for count, code in zip(counts, codes):
        torch.sum(torch.bincount(code, minlength=_PLACES * size).view(_PLACES, size), 0, out=count)
    return counts


def _by_scatter(codes: Tensor, size: int) -> Tensor:
    # bincount looks for the highest code before it starts, and a GPU would be waited for.
    pictures = torch.arange(len(codes), device=codes.device)[:, None]
    index = (codes.long() + pictures * (_PLACES * size)).view(-1)
    counts = codes.new_zeros(len(codes) * _PLACES * size, dtype=torch.int64)
    return counts.scatter_add_(0, index, torch.ones_like(index)).view(len(codes), _PLACES, size).sum(1)


def first_stray(maps: LabelMaps, classes: int, ignore_index: int | None, num_classes: int) -> ValueError:
    """The error that says where the first pixel is that does not belong, of maps that have one."""
    target = maps.target.long()
    wrong = (target < 0) | (target >= classes)
    if ignore_index is not None:
        wrong &= target != ignore_index
    if wrong.any():
        given = maps.given_target
        index = wrong.reshape(given.shape).nonzero()[0].tolist()
        value = given[tuple(index)].item()
        ignored = "" if ignore_index is None else f" or ignore_index {ignore_index}"
        hint = ": divide by 255" if num_classes == 1 and value == 255 else ""
        return ValueError(f"target{index} is {value}, expected 0 … {classes - 1}{ignored}{hint}")
    wrong = (maps.prediction < 0) | (maps.prediction >= classes)
    if ignore_index is not None:
        wrong &= target != ignore_index
    given = maps.given_prediction
    if not given.is_floating_point():
        index = wrong.reshape(given.shape).nonzero()[0].tolist()
        value = int(given[tuple(index)])
        hint = ": divide by 255" if num_classes == 1 and value == 255 else ""
        return ValueError(f"prediction{index} is {value}, expected 0 … {classes - 1}{hint}")
    if num_classes > 1:
        n, y, x = wrong.nonzero()[0].tolist()
        where = f"{n}, :, {y}, {x}" if given.ndim == 4 else f":, {y}, {x}"
        return ValueError(f"prediction[{where}] has a NaN where the target counts")
    index = wrong.reshape(given.shape).nonzero()[0].tolist()
    score = float(given[tuple(index)])
    hint = "" if math.isnan(score) else ", or from_logits=True for logits"
    return ValueError(f"prediction{index} is {score:g}, expected probabilities 0 … 1{hint}")
