"""How a picture is shown to a model: at which sizes, mirrored or not, whole or in windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from segzoo._errors import unknown_name
from segzoo.inference.multiscale import SCALES, average_predictions, checked_scales
from segzoo.inference.picture import Picture
from segzoo.inference.preprocessing import normalise, resized_pixels
from segzoo.inference.tiling import check_tiling, sliding_window
from segzoo.weights.catalog import Preprocessing

__all__ = ["Input", "TestTime", "Views", "parse_tta"]

TestTime: TypeAlias = 'Literal["flip", "multi-scale"] | Sequence[float] | None'


@dataclass(frozen=True)
class Input:
    """A picture at one size.

    Args:
        x: ``[C, h, w]``: float32, normalised; or uint8, whose windows will be.
        brightest: The largest of all its pixels, before normalisation.
    """

    x: Tensor
    brightest: int


@dataclass(frozen=True)
class Views:
    """What the mean is taken over, and the windows.

    Args:
        scales: Of the size that the model's preprocessing asks for, or with a ``tile`` of the picture's own.
        hflip: Whether each is also seen mirrored.
        tile: Height and width of the windows, or None for whole pictures.
    """

    scales: tuple[float, ...] = (1.0,)
    hflip: bool = False
    tile: tuple[int, int] | None = None

    @property
    def plain(self) -> bool:
        """Whether a picture goes through the model just once, whole, as its preprocessing has it."""
        return self == Views()

    def of(self, picture: Picture, preprocessing: Preprocessing) -> list[Input]:
        """The picture at each scale, resized from its own pixels."""
        if self.tile is not None:
            preprocessing = replace(preprocessing, size=None)
        found = []
        for scale in self.scales:
            pixels = resized_pixels(picture, preprocessing, scale)
            brightest = int(pixels.max())
            whole = self.tile is None  # pixels of windows stay 8 bit: the picture may be as large as memory allows
            found.append(Input(normalise(pixels, preprocessing, brightest=brightest) if whole else pixels, brightest))
        return found

    def probabilities(
        self,
        model: Any,
        batch: Sequence[Sequence[Input]],
        to_device: Callable[[Tensor], Tensor],
        *,
        batch_size: int,
        progress: bool,
    ) -> Tensor:
        """float32 ``[N, classes, h, w]`` of pictures whose inputs have the same sizes, at the largest of these.

        Args:
            model: A ``SegmentationModel``.
            batch: The inputs of each picture.
            to_device: Puts what a model takes where the model is, in its floating point type.
            batch_size: Of windows.
            progress: Whether windows show a bar.
        """
        sizes = [(one.x.shape[-2], one.x.shape[-1]) for one in batch[0]]
        size = max(sizes, key=lambda s: s[0] * s[1])
        if self.tile is None:
            inputs = (to_device(torch.stack([views[i].x for views in batch])) for i in range(len(sizes)))
            return average_predictions(model, inputs, size, hflip=self.hflip, multilabel=model.multilabel)
        found = []
        for views in batch:  # a picture that needs windows is enough at once
            windows = partial(
                self._windows, model, to_device=to_device, views=views, batch_size=batch_size, progress=progress
            )
            inputs = (one.x[None] for one in views)
            found.append(average_predictions(windows, inputs, size, hflip=self.hflip, multilabel=model.multilabel))
        return torch.cat(found)

    def _windows(
        self,
        model: Any,
        x: Tensor,
        *,
        to_device: Callable[[Tensor], Tensor],
        views: Sequence[Input],
        batch_size: int,
        progress: bool,
    ) -> Tensor:
        assert self.tile is not None
        brightest = next(one.brightest for one in views if one.x.shape[-2:] == x.shape[-2:])

        def prepare(windows: Tensor) -> Tensor:
            return to_device(normalise(windows, model.preprocessing, brightest=brightest))

        return sliding_window(
            model, x, self.tile, batch_size=batch_size, prepare=prepare, device="cpu", progress=progress
        )


def parse_tta(tta: TestTime, tile: int | tuple[int, int] | None) -> Views:
    """Views from the words and numbers that `Predictor` takes.

    Raises:
        ValueError: For an unknown word, scales that are no positive numbers, or a tile that is no size.

    Examples:
        >>> parse_tta("flip", None), parse_tta((0.5, 1), 64)
        (Views(scales=(1.0,), hflip=True, tile=None), Views(scales=(0.5, 1.0), hflip=True, tile=(64, 64)))
    """
    try:
        window = None if tile is None else check_tiling(tile)[0]
    except ValueError:
        raise ValueError(f"tile must be a positive int or a pair of them (height, width), got {tile!r}") from None
    if tta is None or tta == "flip":
        return Views(hflip=tta is not None, tile=window)
    if isinstance(tta, str):
        if tta != "multi-scale":
            raise unknown_name("tta", tta, ["flip", "multi-scale"])
        return Views(SCALES, hflip=True, tile=window)
    return Views(checked_scales(tta), hflip=True, tile=window)
