"""What post-processing takes, as tensors and back: arrays and tensors alike, maps and pictures of any usual shape."""

from __future__ import annotations

from numbers import Real
from typing import Any, TypeAlias, TypeGuard, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segzoo.ops import resize

__all__ = [
    "Array",
    "Kind",
    "as_pictures",
    "as_probabilities",
    "as_tensor",
    "at_size",
    "in_pixels",
    "is_number",
    "like",
    "paired",
    "to_unit",
]

Array: TypeAlias = NDArray[Any]
Kind = TypeVar("Kind", Tensor, Array)  # what comes in as a tensor or an array comes out as one


def as_tensor(name: str, values: Tensor | Array) -> Tensor:
    """``values`` as a tensor, without a copy where that is possible."""
    if isinstance(values, Tensor):
        return values.detach()
    if not isinstance(values, np.ndarray):
        raise TypeError(f"{name} is a {type(values).__name__}, expected a NumPy array or a tensor")
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{name} is {values.dtype}, expected numbers")
    values = values.astype(values.dtype.newbyteorder("="), copy=False)  # torch knows no other byte order
    return torch.from_numpy(np.require(values, requirements=["C", "W"]))


def like(result: Tensor, given: Kind) -> Kind:
    """``result`` as the kind that was given: an array for an array."""
    return result if isinstance(given, Tensor) else result.numpy()


def as_probabilities(values: Tensor | Array) -> Tensor:
    """``[N, C, h, w]``, floating point in 0…1, of ``[h, w]``, ``[C, h, w]`` or ``[N, C, h, w]``."""
    maps = as_tensor("probabilities", values)
    if maps.ndim not in (2, 3, 4) or 0 in maps.shape:
        raise ValueError(f"probabilities are {list(maps.shape)}, expected [h, w], [C, h, w] or [N, C, h, w]")
    if not maps.is_floating_point():
        raise ValueError(f"probabilities are {maps.dtype}, expected floating point in 0…1")
    low, high = maps.min().item(), maps.max().item()
    if not (low >= 0 and high <= 1):  # also refuses NaN
        raise ValueError(f"probabilities lie in 0…1, got {low:g} to {high:g} (of logits take the sigmoid or softmax)")
    maps = maps if maps.dtype == torch.float64 else maps.float()
    return maps.reshape(*(1,) * (4 - maps.ndim), *maps.shape)


def as_pictures(values: Tensor | Array) -> Tensor:
    """``[N, B, H, W]`` of an array ``[H, W]``, ``[H, W, B]`` or ``[N, H, W, B]`` or a tensor with the bands first."""
    pictures = as_tensor("image", values)
    order = "[H, W], [B, H, W] or [N, B, H, W]" if isinstance(values, Tensor) else "[H, W], [H, W, B] or [N, H, W, B]"
    if pictures.ndim not in (2, 3, 4) or 0 in pictures.shape:
        raise ValueError(f"image is {list(pictures.shape)}, expected {order}")
    if not isinstance(values, Tensor) and pictures.ndim > 2:
        pictures = pictures.movedim(-1, -3)
    if pictures.is_floating_point():
        low, high = pictures.min().item(), pictures.max().item()
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"a floating point image lies in 0…1, got {low:g} to {high:g}: divide by 255, or pass uint8"
            )
    elif pictures.dtype not in (torch.uint8, torch.uint16, torch.bool):
        raise ValueError(f"image is {pictures.dtype}, expected uint8, uint16, bool or floating point in 0…1")
    return pictures.reshape(*(1,) * (4 - pictures.ndim), *pictures.shape)


def to_unit(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Pixels of any kind as floating point in 0…1."""
    highest = {torch.uint8: 255, torch.uint16: 65535}.get(values.dtype)
    return values.to(dtype) if highest is None else values.to(dtype).div_(highest)


def paired(probabilities: Tensor | Array, image: Tensor | Array) -> tuple[Tensor, Tensor]:
    """Maps ``[N, C, h, w]`` and their pictures ``[N, B, H, W]`` in 0…1, on the maps' device and in their dtype."""
    maps, pictures = as_probabilities(probabilities), as_pictures(image)
    if len(pictures) not in (1, len(maps)):
        raise ValueError(f"there are {len(pictures)} images for the probabilities of {len(maps)} pictures")
    pictures = to_unit(pictures.to(maps.device), maps.dtype)
    return maps, pictures.expand(len(maps), -1, -1, -1)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a number of any kind, but no bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def in_pixels(name: str, length: float, size: tuple[int, int]) -> float:
    """A length given in pixels, or, below 1, as a share of the picture's longer side."""
    if not is_number(length) or not 0 <= length < float("inf"):
        raise ValueError(f"{name} is {length!r}, expected pixels, or a share of the picture's longer side below 1")
    return float(length) * max(size) if length < 1 else float(length)


def at_size(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps ``[N, C, h, w]`` resized bilinearly; probabilities stay in 0…1."""
    return resize(maps, size).clamp_(0, 1) if tuple(maps.shape[-2:]) != size else maps
