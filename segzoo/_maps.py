"""Predictions and masks as files hold them: grey maps and label maps, exactly, or refused."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segzoo._decoding import PictureError, opened

__all__ = ["Map", "above_half", "mask_foreground", "read_ahead", "read_grey", "read_labels", "resize_map"]

Map: TypeAlias = NDArray[Any]
Item = TypeVar("Item")
Result = TypeVar("Result")


def read_grey(path: Path, *, indices: bool = False) -> Map:
    """A grey picture as it is: bool, uint8, or floating 0…1 of 16-bit greys, ``[H, W]``.

    Colour pictures pass where they hold nothing but grey, and 16-bit greys where they use more than the first 8 bits.

    Args:
        path: Of any format that Pillow reads.
        indices: Whether a palette picture is read as its indices; else as its colours.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no picture, or holds colours, transparency or values out of range.
    """
    with opened(path, one_page=True) as image:
        if image.mode == "P" and indices:
            return np.array(image)
        if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
            hint = "predict --kind probability writes a grey picture where cutout writes a transparent one"
            raise PictureError(f"{path} has transparency, expected grey: segzoo {hint}")
        if image.mode in ("1", "L"):
            return np.array(image)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            return _wide_grey(np.array(image), path)
        if image.mode not in ("LA", "P", "PA", "RGB", "RGBA", "RGBX"):
            raise PictureError(f"{path} holds colours ({image.mode}), expected a grey picture")
        colours = np.asarray(image.convert("RGB"))
        grey = colours[:, :, 0]
        if (colours != grey[:, :, None]).any():
            raise PictureError(
                f"{path} holds colours ({image.mode}), expected a grey picture: photos need a model to predict "
                "with, label maps the number of classes"
            )
        return np.ascontiguousarray(grey)


def read_labels(path: Path) -> Map:
    """A label map as it is, uint8 or int32 ``[H, W]``: of a palette picture the indices, never the colours.

    Greys are the numbers that the file stores: 0…15 where it has 4 bits, and not inverted where a TIFF's 0 is white.

    Args:
        path: Of any format that Pillow reads and that keeps labels as they are.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no picture, or none that holds labels.
    """
    with opened(path, one_page=True, as_stored=True) as image:
        if image.format in ("JPEG", "MPO"):
            raise PictureError(f"{path} is a JPEG, which alters labels: expected a PNG of class indices")
        if image.mode == "1":
            return np.array(image).astype(np.uint8)
        if image.mode in ("L", "P"):
            return np.array(image)
        if image.mode == "I" or image.mode.startswith("I;16"):
            return np.array(image).astype(np.int32)
        if image.mode == "F":
            raise PictureError(f"{path} holds floating point values, expected class indices: integers")
        raise PictureError(
            f"{path} holds colours ({image.mode}), expected class indices: one 8-bit channel, or a palette picture"
        )


def _wide_grey(values: Map, path: Path) -> Map:
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        if not (low >= 0 and high <= 1):
            raise PictureError(f"{path} holds floating point values {low:g} to {high:g}, expected 0…1")
        return values
    if low < 0 or high > 65535:
        raise PictureError(f"{path} holds values {low} to {high}, expected grey of 8 or 16 bit")
    if 0 < high <= 255:  # all but black in 16 bit: surely meant as 8 bit, or as 0 and 1
        raise PictureError(f"{path} is 16-bit grey, of 65535, with nothing above {high}: write it with 8 bit")
    scaled: Map = values.astype(np.float64) / 65535
    return scaled


def above_half(values: Map, *, stretched: bool = False) -> NDArray[np.bool_]:
    """Where a grey map is above half of its range, or of its own range if it is stretched to 0…1 first.

    Examples:
        >>> above_half(np.array([[10, 30, 40]], np.uint8), stretched=True)
        array([[False,  True,  True]])
    """
    if values.dtype == bool:
        return values
    low, high = values.min(), values.max()
    half: NDArray[np.bool_]
    if stretched and low != high:
        wide = values.astype(np.float64)
        half = 2 * (wide - float(low)) > float(high) - float(low)
    else:
        half = values > (0.5 if values.dtype.kind == "f" else 127)
    return half


def mask_foreground(values: Map) -> NDArray[np.bool_]:
    """What is object in a mask of 0 and 1, or of greys: above half of their range.

    Examples:
        >>> mask_foreground(np.array([[0, 1]], np.uint8)), mask_foreground(np.array([[0, 1, 200]], np.uint8))
        (array([[False,  True]]), array([[False, False,  True]]))
    """
    if values.dtype == np.uint8 and values.max() <= 1:
        return values.astype(bool)
    return above_half(values)


def resize_map(values: Map, size: tuple[int, int], *, labels: bool) -> Map:
    """A map at another size ``(H, W)``: labels by the nearest, greys bilinearly, as Pillow does it."""
    if values.dtype == bool:
        values = values.astype(np.uint8) * np.uint8(255)
    floating = values.dtype.kind == "f"
    image = Image.fromarray(values.astype(np.float32) if floating else values)
    how = Image.Resampling.NEAREST if labels else Image.Resampling.BILINEAR
    resized = np.array(image.resize((size[1], size[0]), how))
    return np.clip(resized, 0, 1) if floating else resized


def read_ahead(read: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result | Exception]:
    """``read(item)`` of each, in order, or the exception it raised; threads read no more than ``workers`` ahead."""
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="segzoo-read")
    try:
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) > workers:
                yield _outcome(waiting.popleft())
        while waiting:
            yield _outcome(waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _outcome(future: Future[Any]) -> Any:
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, Exception):
        return error
    raise error
