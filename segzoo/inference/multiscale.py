"""The mean of what a model says about a picture at several sizes, and about its mirror image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from segzoo._errors import unknown_name
from segzoo._progress import progress_bar
from segzoo.inference._forward import LogitsModel, main_logits, place_of, to_probabilities
from segzoo.inference._sizes import SCALES, checked_scales, scaled_size
from segzoo.models.base import evaluating
from segzoo.ops import resize

__all__ = ["SCALES", "Average", "average_predictions", "checked_scales", "multi_scale", "scaled_size"]

Average = Literal["probabilities", "logits"]


def multi_scale(
    model: LogitsModel,
    x: Tensor,
    scales: Sequence[float] = SCALES,
    hflip: bool = True,
    average: Average = "probabilities",
    *,
    multilabel: bool | None = None,
    progress: bool = False,
) -> Tensor:
    """Probabilities averaged over copies of the input at several scales, each also mirrored.

    One copy goes through the model at a time: memory is that of the largest. No gradients; every module's mode stays
    as it was. With ``scales=(1.0,)`` and ``hflip=False`` it is ``model.predict(x)``.

    Args:
        model: A model of this library, or any module or function from ``[N, C, h, w]`` to logits ``[N, classes, …]`` of
            any size, a list that begins with them, or a dictionary with ``"out"`` or ``"logits"``.
        x: Normalised pictures ``[N, C, H, W]``, any H, W ≥ 1.
        scales: Factors of H and W; a copy is at least one pixel high and wide. Bilinear, without aliasing.
        hflip: Whether each copy is also seen mirrored left to right.
        average: The mean of ``"probabilities"``, or of ``"logits"``, from which probabilities are then made.
        multilabel: Whether classes may overlap; None asks the model, and means no where that does not know.
        progress: Whether to show a bar on stderr, where that is a terminal.

    Returns:
        float32 ``[N, classes, H, W]``.

    Raises:
        ValueError: If there is no scale, one is not positive and finite, ``average`` is unknown, or ``x`` is not
            ``[N, C, H, W]``.
        TypeError: If ``x`` is no floating point tensor, or the model returns no logits.

    Source:
        Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017, Section 4.1: scales from 0.5
        to 1.75 and mirrored copies at inference.

    Examples:
        >>> from segzoo import u2net_lite
        >>> multi_scale(u2net_lite(), torch.zeros(1, 3, 60, 80), scales=(0.5, 1.0)).shape
        torch.Size([1, 1, 60, 80])
    """
    scales = checked_scales(scales)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x is {kind}, expected a tensor [N, C, H, W] of normalised floating point values")
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"x is {list(x.shape)}, expected [N, C, H, W] without empty dimensions")
    height, width = x.shape[-2:]
    _, dtype = place_of(model)
    x = x if dtype is None else x.to(dtype)

    with progress_bar(len(scales), progress, unit="scales") as bar:

        def inputs() -> Iterator[Tensor]:
            for scale in scales:
                # Half precision cannot be resized everywhere.
                wide = x if x.dtype == torch.float64 else x.float()
                yield resize(wide, scaled_size((height, width), scale)).to(x.dtype)
                bar.update()

        return average_predictions(
            model, inputs(), (height, width), hflip=hflip, average=average, multilabel=multilabel
        )


@torch.no_grad()
def average_predictions(
    model: LogitsModel,
    inputs: Iterable[Tensor],
    size: tuple[int, int],
    *,
    hflip: bool = True,
    average: Average = "probabilities",
    multilabel: bool | None = None,
) -> Tensor:
    """What ``multi_scale`` ends in: probabilities averaged over any inputs that show the same pictures.

    Args:
        model: See ``multi_scale``.
        inputs: Normalised tensors ``[N, C, h, w]``, each of its own size; asked for one by one.
        size: Height and width of the result. Logits are resized to it before they become probabilities.
        hflip: See ``multi_scale``.
        average: See ``multi_scale``.
        multilabel: See ``multi_scale``.

    Returns:
        float32 ``[N, classes, *size]``.

    Raises:
        ValueError: If there is no input, or ``average`` is unknown.

    Examples:
        >>> average_predictions(torch.nn.Identity(), [torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 4, 4)], (1, 3))
        tensor([[[[0.5000, 0.5000, 0.5000]]]])
    """
    if average not in ("probabilities", "logits"):
        raise unknown_name("average", average, ["probabilities", "logits"])
    probabilities = to_probabilities(model, multilabel)
    total: Tensor | None = None
    count = 0
    with evaluating(model):
        for logits in _passes(model, inputs, hflip):
            term = resize(logits, size)
            term = probabilities(term) if average == "probabilities" else term
            # The first may be the model's own tensor, or its input.
            total = term if total is None else total + term if count == 1 else total.add_(term)
            count += 1
    if total is None:
        raise ValueError("there is no input to average predictions over")
    total = total / count
    return total if average == "probabilities" else probabilities(total)


def _passes(model: LogitsModel, inputs: Iterable[Tensor], hflip: bool) -> Iterator[Tensor]:
    """The logits of every input, and of its mirror image, mirrored back."""
    for x in inputs:
        yield main_logits(model, x)
        if hflip:
            yield main_logits(model, x.flip(-1)).flip(-1)
