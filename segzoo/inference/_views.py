"""How a picture is shown to a model: at which sizes, mirrored or not, whole or in windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from segzoo._errors import unknown_name
from segzoo.inference._sizes import SCALES, checked_scales, scaled_size, size_pair
from segzoo.inference.picture import Picture
from segzoo.weights.preprocessing import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor

# torch is imported where it computes: the plain look of a model that runs without it does not wait for it.

__all__ = ["Input", "TestTime", "Views", "parse_tta"]

TestTime: TypeAlias = 'Literal["flip", "multi-scale"] | Sequence[float] | None'


class Input(NamedTuple):
    """A picture at one size.

    Args:
        x: ``[C, h, w]``: float32, normalised; or uint8, whose windows will be. An array for a model in a file.
        brightest: The largest of all its pixels, before normalisation.
    """

    x: Tensor | NDArray[np.float32]
    brightest: int

    @property
    def tensor(self) -> Tensor:
        """``x``, of a model that computes in torch."""
        return cast("Tensor", self.x)


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

    def sizes(self, picture: Picture, preprocessing: Preprocessing) -> tuple[tuple[int, int], ...]:
        """Height and width of the picture at each scale."""
        size = self._rule(preprocessing).size_for(picture.size)
        return tuple(scaled_size(size, scale) for scale in self.scales)

    def largest(self, preprocessing: Preprocessing) -> int | tuple[int, int] | None:
        """What `read_picture` calls ``at_least``, for the largest scale."""
        size, scale = self._rule(preprocessing).size, max(self.scales)
        return math.ceil(size * scale) if isinstance(size, int) else size and scaled_size(size, scale)

    def at(self, picture: Picture, preprocessing: Preprocessing, scale: float) -> Input:
        """The picture at a scale, resized from its own pixels."""
        from segzoo.inference.preprocessing import normalise, resized_pixels

        pixels = resized_pixels(picture, self._rule(preprocessing), scale)
        brightest = int(pixels.max())
        whole = self.tile is None  # pixels of windows stay 8 bit: the picture may be as large as memory allows
        return Input(normalise(pixels, preprocessing, brightest=brightest) if whole else pixels, brightest)

    def first(self, picture: Picture, preprocessing: Preprocessing) -> Input:
        """What can be made before the model is free; the other scales are made one at a time when they are wanted."""
        return self.at(picture, preprocessing, self.scales[0])

    def probabilities(
        self,
        model: Any,
        batch: Sequence[tuple[Picture, Input]],
        to_device: Callable[[Tensor], Tensor],
        *,
        batch_size: int,
        progress: bool,
    ) -> Tensor:
        """float32 ``[N, classes, h, w]`` of pictures of the same sizes: at the largest, or with a tile their own.

        Args:
            model: A ``SegmentationModel``.
            batch: Pictures and their first inputs.
            to_device: Puts what a model takes where the model is, in its floating point type.
            batch_size: Of windows.
            progress: Whether windows show a bar.
        """
        import torch

        from segzoo.inference.multiscale import average_predictions

        rule = model.preprocessing

        def inputs(pictures: Sequence[tuple[Picture, Input]]) -> Iterator[list[Input]]:
            for i, scale in enumerate(self.scales):
                yield [first if i == 0 else self.at(picture, rule, scale) for picture, first in pictures]

        if self.tile is None:
            size = max(self.sizes(batch[0][0], rule), key=lambda s: s[0] * s[1])
            stacked = (to_device(torch.stack([one.tensor for one in ones])) for ones in inputs(batch))
            return average_predictions(model, stacked, size, hflip=self.hflip, multilabel=model.multilabel)
        found = []
        for picture, first in batch:
            windows = _Windows(model, self.tile, to_device, batch_size, progress)
            shown = (windows.of(ones[0]) for ones in inputs([(picture, first)]))
            found.append(
                average_predictions(windows, shown, picture.size, hflip=self.hflip, multilabel=model.multilabel)
            )
        return torch.cat(found)

    def _rule(self, preprocessing: Preprocessing) -> Preprocessing:
        return preprocessing if self.tile is None else replace(preprocessing, size=None)


class _Windows:
    """The logits of a whole picture, from 8-bit pixels ``[1, C, H, W]``, window by window."""

    def __init__(
        self, model: Any, tile: tuple[int, int], to_device: Callable[[Tensor], Tensor], batch_size: int, progress: bool
    ) -> None:
        self.model, self.tile, self.to_device = model, tile, to_device
        self.batch_size, self.progress = batch_size, progress
        self.brightest = 0

    def of(self, one: Input) -> Tensor:
        """The pixels of an input, which the next calls are about."""
        self.brightest = one.brightest
        return one.tensor[None]

    def __call__(self, x: Tensor) -> Tensor:
        from segzoo.inference.tiling import sliding_window

        return sliding_window(
            self.model,
            x,
            self.tile,
            batch_size=self.batch_size,
            pad=getattr(self.model, "size", None) is not None,  # a file that takes one size only
            prepare=self._prepare,
            device="cpu",
            progress=self.progress,
        )

    def _prepare(self, windows: Tensor) -> Tensor:
        from segzoo.inference.preprocessing import normalise

        return self.to_device(normalise(windows, self.model.preprocessing, brightest=self.brightest))


def parse_tta(tta: TestTime, tile: int | tuple[int, int] | None) -> Views:
    """Views from the words and numbers that `Predictor` takes.

    Raises:
        ValueError: For an unknown word, scales that are no positive numbers, or a tile that is no size.

    Examples:
        >>> parse_tta("flip", None), parse_tta((0.5, 1), 64)
        (Views(scales=(1.0,), hflip=True, tile=None), Views(scales=(0.5, 1.0), hflip=True, tile=(64, 64)))
    """
    window = None if tile is None else size_pair("tile", tile)
    if tta is None or tta == "flip":
        return Views(hflip=tta is not None, tile=window)
    if isinstance(tta, str):
        if tta != "multi-scale":
            raise unknown_name("tta", tta, ["flip", "multi-scale"])
        return Views(SCALES, hflip=True, tile=window)
    return Views(checked_scales(tta), hflip=True, tile=window)
