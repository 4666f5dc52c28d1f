"""What pictures go through before a model sees them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["Preprocessing", "check_preprocessing", "is_count", "is_number"]


@dataclass(frozen=True)
class Preprocessing:
    """What a picture goes through before a model sees it.

    The picture (8 bit) is resized, divided by ``scale``, and normalised per channel: (x − mean) / std.

    Args:
        size: Height and width in pixels that the picture is resized to; or one int: its shorter side; or None to keep
            its own size.
        interpolation: ``"bilinear"`` (with anti-aliasing when the picture shrinks).
        scale: ``"255"``, or ``"max"``: the picture's own largest value, over all its channels (1 if it is all black).
        mean: Per channel, subtracted after scaling.
        std: Per channel.
    """

    size: tuple[int, int] | int | None = (320, 320)
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    scale: Literal["255", "max"] = "255"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def size_for(self, size: tuple[int, int]) -> tuple[int, int]:
        """The height and width that a picture of ``size`` (height, width) is resized to.

        Examples:
            >>> Preprocessing(size=520).size_for((1040, 2081))
            (520, 1040)
        """
        if self.size is None:
            return size
        if isinstance(self.size, int):
            shorter = min(size)
            height, width = (self.size * side // shorter for side in size)
            return height, width
        return self.size

    def for_channels(self, channels: int) -> Preprocessing:
        """The same for another number of channels: further ones, or all of fewer, get the average mean and std.

        Examples:
            >>> Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2)).for_channels(1).mean
            (0.5,)
        """
        if channels == len(self.mean):
            return self
        mean, std = (self._extended(values, channels) for values in (self.mean, self.std))
        return replace(self, mean=mean, std=std)

    @staticmethod
    def _extended(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
        average = (round(sum(values) / len(values), 6),)
        more = channels - len(values)
        return values + average * more if more > 0 else average * channels


def is_count(value: object) -> bool:
    """Whether a value is a positive int."""
    return type(value) is int and value >= 1


def is_number(value: object) -> bool:
    """Whether a value is a finite number, and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_preprocessing(given: object, channels: int) -> None:
    """Raise ValueError unless these are all fields of a preprocessing for so many channels.

    Examples:
        >>> check_preprocessing(Preprocessing(std=(0.0, 1.0, 1.0)), 3)
        Traceback (most recent call last):
        ValueError: the preprocessing's std must not be 0, got (0.0, 1.0, 1.0)
    """
    if not isinstance(given, Preprocessing):
        raise ValueError(f"preprocessing must be a segzoo.weights.Preprocessing, got {type(given).__name__}")
    size = given.size
    sides = (size,) if isinstance(size, int) else size
    pair = sides is None or (isinstance(sides, tuple) and len(sides) == (1 if isinstance(size, int) else 2))
    if not pair or not all(map(is_count, sides or ())):
        raise ValueError(f"the preprocessing's size must be (height, width), an int or None, got {size!r}")
    for name, known in (("interpolation", ("bilinear", "bicubic", "nearest")), ("scale", ("255", "max"))):
        if getattr(given, name) not in known:
            raise ValueError(f"the preprocessing's {name} must be {' or '.join(known)}, got {getattr(given, name)!r}")
    for name in ("mean", "std"):
        values = getattr(given, name)
        if not isinstance(values, tuple) or len(values) != channels or not all(map(is_number, values)):
            raise ValueError(f"the preprocessing's {name} must be {channels} numbers, a channel each, got {values!r}")
    if 0 in given.std:
        raise ValueError(f"the preprocessing's std must not be 0, got {given.std!r}")
