"""Normalisation of pictures, ``(x / scale - mean) / std``, and the way back for showing them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from segzoo._errors import unknown_name
from segzoo.transforms._inputs import checked_unit

__all__ = ["Normalization", "NormalizationLike", "denormalize"]

NormalizationLike: TypeAlias = "Literal['imagenet', '0_1', '-1_1'] | tuple[Sequence[float], Sequence[float]] | Any"

_NAMED: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "0_1": ((0.0,), (1.0,)),
    "-1_1": ((0.5,), (0.5,)),
}
# Of integers, what is 1 when they are scaled.
_WHITE = {torch.bool: 1, torch.uint8: 255, torch.int16: 32767, torch.uint16: 65535}


@dataclass(frozen=True)
class Normalization:
    """What a picture's values become: ``(x / scale - mean) / std``, for each channel.

    Args:
        mean: Per channel, or one for all; in the values after scaling.
        std: Likewise, above 0.
        scale: ``"255"``: 8-bit values are divided by 255, 16-bit ones by 65535 (int16: 32767), floating ones, which
            have to lie in 0…1 (what is at most 1e-3 outside is cut), by 1. ``"max"``: by the picture's own largest
            value over all its channels (at least 1/255 of white). None: values stay in their own unit, which is then
            that of ``mean`` and ``std``: for bands with statistics of their own.

    Raises:
        ValueError: For numbers that do not fit, in one sentence.

    Examples:
        >>> import torch
        >>> Normalization((0.5,), (0.5,))(torch.tensor([[[0, 255]]], dtype=torch.uint8))
        tensor([[[-1.,  1.]]])
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: Literal["255", "max"] | None = "255"

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} numbers and std {len(self.std)}, expected as many")
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std}, expected numbers above 0")
        if self.scale not in ("255", "max", None):
            raise unknown_name("scale", self.scale, ["255", "max", "None"])

    @staticmethod
    def of(given: NormalizationLike) -> Normalization:
        """The normalisation that is meant.

        Args:
            given: ``"imagenet"`` (ImageNet's mean and standard deviation of RGB), ``"0_1"`` (values in 0…1), ``"-1_1"``
                (values in −1…1), a pair (mean, std) of values in 0…1, or anything with ``mean`` and ``std`` (and
                ``scale``), such as a model's ``preprocessing``.

        Examples:
            >>> Normalization.of("-1_1").mean
            (0.5,)
        """
        if isinstance(given, Normalization):
            return given
        if isinstance(given, str):
            if given not in _NAMED:
                raise unknown_name("normalization", given, _NAMED)
            return Normalization(*_NAMED[given])
        if isinstance(given, Sequence) and len(given) == 2:
            return Normalization(*given)
        if hasattr(given, "mean") and hasattr(given, "std") and not isinstance(given, Tensor):
            return Normalization(given.mean, given.std, getattr(given, "scale", "255"))
        raise ValueError(
            f"normalize is {given!r}, expected {', '.join(map(repr, _NAMED))}, a pair (mean, std) or what has both"
        )

    def checked(self, image: Tensor) -> tuple[Tensor, float]:
        """The picture, and the value of its kind that becomes 1; 1 where values stay in their own unit.

        Floating values that rounding took out of 0…1, by at most 1e-3, are cut (on the CPU).

        Raises:
            ValueError: For integers whose white is not known, and for floating values further outside (on the CPU).
        """
        if self.scale is None:
            return image, 1.0
        if not image.is_floating_point():
            if image.dtype not in _WHITE:
                raise ValueError(
                    f"image is {image.dtype}, expected uint8, uint16, int16 or floating values in 0…1 "
                    "(or normalize=Normalization(mean, std, scale=None))"
                )
            return image, float(_WHITE[image.dtype])
        if image.device.type == "cpu":  # elsewhere the device would have to be waited for
            image = checked_unit("image", image, "normalize=Normalization(mean, std, scale=None)")
        return image, 1.0

    def __call__(self, image: Tensor, white: float | None = None) -> Tensor:
        """The picture ``[..., C, H, W]`` of any kind as float32, normalised.

        Args:
            image: Every leading index is a picture of its own.
            white: What becomes 1, where ``image`` is no longer of the kind it was; None: what :meth:`checked` says.
        """
        if white is None:
            image, white = self.checked(image)
        mean, std = self._for_channels(image.shape[-3], image.device)
        x = image.to(torch.float32)
        scale: float | Tensor = white
        if self.scale == "max":
            scale = x.amax((-3, -2, -1), keepdim=True).clamp_min(white / 255)
        # One new tensor is enough: large ones take longer to get than to fill.
        x = x / scale if x is image else x.div_(scale)
        return x.sub_(mean).div_(std).contiguous()

    def invert(self, image: Tensor) -> Tensor:
        """See :func:`denormalize`."""
        mean, std = self._for_channels(image.shape[-3], image.device)
        x = image.to(torch.float32) * std + mean
        return x if self.scale is None else x.mul_(255).round_().clamp_(0, 255).to(torch.uint8)

    def _for_channels(self, channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
        mean, std = self.mean, self.std
        if (mean, std) == _NAMED["imagenet"] and channels != 3:
            # As Preprocessing.for_channels: a model for other bands sees in training what it sees in use.
            more = channels - 3
            mean, std = (v + (a,) * more if more > 0 else (a,) * channels for v, a in ((mean, 0.449), (std, 0.226)))
        if len(mean) not in (1, channels):
            raise ValueError(f"mean and std are of {len(mean)} channels, but the picture has {channels}")
        both = torch.tensor((mean, std), dtype=torch.float32, device=device)
        return both[0].view(-1, 1, 1), both[1].view(-1, 1, 1)


def denormalize(image: Tensor, normalize: NormalizationLike = "imagenet") -> Tensor:
    """A normalised picture as it can be shown.

    Args:
        image: ``[..., C, H, W]``, as the transforms return it.
        normalize: With what it was normalised, as the transforms take it.

    Returns:
        uint8 of the same shape, rounded and cut to 0…255; after ``scale="max"`` the picture's largest value is 255.
        Where ``scale`` is None, float32 in the picture's own unit.

    Examples:
        >>> import torch
        >>> denormalize(torch.zeros(3, 1, 1)).flatten()
        tensor([124, 116, 104], dtype=torch.uint8)
    """
    return Normalization.of(normalize).invert(image.as_subclass(Tensor))


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    listed = values.tolist() if hasattr(values, "tolist") else values
    listed = (listed,) if isinstance(listed, Real) else tuple(listed) if isinstance(listed, Sequence) else ()
    fine = all(isinstance(v, Real) and not isinstance(v, bool) and math.isfinite(v) for v in listed)
    if not listed or not fine:
        raise ValueError(f"{name} is {values!r}, expected a finite number for each channel")
    return tuple(float(v) for v in listed)
