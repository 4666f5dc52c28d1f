"""What the presets take and give back: pictures and masks of several kinds, one or a batch, as tensors of one shape."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image as PilImage
from PIL import ImageOps
from torch import Tensor
from torchvision import tv_tensors

__all__ = [
    "ImageLike",
    "Pair",
    "as_given",
    "checked_labels",
    "checked_salient",
    "checked_unit",
    "read_pair",
    "stacked",
    "uniform",
]

_SLACK = 1e-3  # by how much rounding, of half precision too, may take values out of 0…1

ImageLike: TypeAlias = "Tensor | PilImage.Image"
Pair: TypeAlias = tuple[Tensor, "Tensor | None"]


def read_pair(image: ImageLike, mask: ImageLike | None) -> Pair:
    """Plain tensors ``[N, C, H, W]`` and ``[N, H, W]`` of a picture, or a batch of them, and its mask.

    Raises:
        TypeError: For other types.
        ValueError: For shapes, or PIL modes, that do not fit.
    """
    x = _tensor("image", image, ("RGB", "L"))
    if x.ndim not in (3, 4) or 0 in x.shape or x.is_complex():
        raise ValueError(f"image is {x.dtype} {list(x.shape)}, expected [C, H, W] or [N, C, H, W] with pixels")
    images = x if x.ndim == 4 else x[None]
    if mask is None:
        return images, None
    y = _tensor("mask", mask, ("1", "L", "P", "I", "I;16"))
    if isinstance(mask, PilImage.Image):
        y = y[0]
    size = images.shape[-2:]
    shapes = [size, (1, *size)] if x.ndim == 3 else [(len(x), *size), (len(x), 1, *size)]
    if tuple(y.shape) not in [tuple(shape) for shape in shapes] or y.is_complex():
        raise ValueError(
            f"mask is {y.dtype} {list(y.shape)}, which is no mask [{'N, ' * (x.ndim == 4)}H, W] of the image "
            f"{list(x.shape)}"
        )
    if y.device != x.device:
        raise ValueError(f"image is on {x.device} and mask on {y.device}, expected one device")
    if y.dtype in (torch.uint16, torch.uint32, torch.uint64):  # for which torch has few operations
        y = y.to(torch.int64)
    return images, y.reshape(len(images), *size)


def as_given(image: Any, mask: Any, images: Tensor, masks: Tensor | None) -> Any:
    """The results, ``[N, C, h, w]`` and ``[N, …]``, as many and of such a class as what came in."""
    single = isinstance(image, PilImage.Image) or image.ndim == 3
    x = images[0] if single else images
    x = tv_tensors.Image(x) if isinstance(image, tv_tensors.Image) else x
    if masks is None:
        return x
    y = masks[0] if single else masks
    return x, tv_tensors.Mask(y) if isinstance(mask, tv_tensors.Mask) else y


def _tensor(name: str, given: ImageLike, modes: tuple[str, ...]) -> Tensor:
    if isinstance(given, Tensor):
        return given.as_subclass(Tensor)
    if not isinstance(given, PilImage.Image):
        raise TypeError(f"{name} is a {type(given).__name__}, expected a tensor or a PIL image")
    if given.mode not in modes:
        raise ValueError(f"{name} is a PIL image of mode {given.mode}, expected {' or '.join(modes)}")
    pixels = np.array(ImageOps.exif_transpose(given))
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def checked_labels(masks: Tensor) -> Tensor:
    """Label maps: integers, or bool.

    Raises:
        ValueError: For floating point.
    """
    if masks.is_floating_point():
        raise ValueError(f"mask is {masks.dtype}, expected integers, the labels")
    return masks


def checked_unit(name: str, values: Tensor, otherwise: str = "") -> Tensor:
    """Floating values in 0…1 on the CPU; those at most 1e-3 outside, as rounding leaves them, become 0 or 1.

    Args:
        name: Whose values they are, for the message.
        values: Of any shape.
        otherwise: What else the message advises.

    Raises:
        ValueError: For values further outside.
    """
    low, high = (float(value) for value in values.aminmax())
    if 0 <= low <= high <= 1:
        return values
    if -_SLACK <= low <= high <= 1 + _SLACK:
        return values.clamp(0, 1)
    advice = ", or ".join(part for part in ("divide by 255" if high == 255 else "", otherwise) if part)
    hint = f" ({advice})" if advice else ""
    raise ValueError(f"{name} is {values.dtype} and holds {low:.7g} to {high:.7g}, expected values in 0…1{hint}")


def checked_salient(masks: Tensor, ignore_index: int | None) -> Tensor:
    """Masks of an object: bool, integers 0 and 1 (and ``ignore_index``), or floating values in 0…1, cut if need be.

    Raises:
        ValueError: For other values; checked on the CPU, elsewhere by an assertion on the device.
    """
    if masks.dtype == torch.bool:
        return masks
    if masks.is_floating_point():
        if masks.device.type == "cpu":
            return checked_unit("mask", masks)
        torch._assert_async(((masks >= -_SLACK) & (masks <= 1 + _SLACK)).all(), "a salient mask holds more than 0…1")
        return masks.clamp(0, 1)
    if masks.device.type == "cpu":
        low, high = masks.aminmax()
        if 0 <= low <= high <= 1:
            return masks
    fine = (masks >= 0) & (masks <= 1)
    if ignore_index is not None:
        fine |= masks == ignore_index
    if masks.device.type != "cpu":
        torch._assert_async(fine.all(), "a salient mask holds more than 0 and 1")
    elif not fine.all():
        wrong = masks[~fine].flatten()[0].item()
        also = "" if ignore_index is None else f" and {ignore_index}"
        hint = " (divide by 255, or ignore_index=255 if such pixels do not count)" if wrong == 255 else ""
        raise ValueError(f"mask is {masks.dtype} and holds {wrong}, expected 0 and 1{also}{hint}")
    return masks


def stacked(parts: list[Tensor]) -> Tensor:
    """The pictures as a batch; one is not copied."""
    return parts[0][None] if len(parts) == 1 else torch.stack(parts)


def uniform(count: int, generator: torch.Generator | None) -> list[float]:
    """So many random numbers from 0 to 1, without 1, on the CPU unless the generator is elsewhere."""
    device = "cpu" if generator is None else generator.device
    return torch.rand(count, dtype=torch.float64, generator=generator, device=device).tolist()
