"""The pixels of picture and mask files: RGB, or bands as they are stored; labels, and foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segzoo._decoding import PictureError, one_sentence, opened, over_white
from segzoo._maps import mask_foreground, read_grey, read_labels
from segzoo.datasets._tiff import TIFF_ENDINGS, read_tiff

__all__ = [
    "ARRAY_ENDING",
    "read_bands",
    "read_foreground",
    "read_indices",
    "read_picture",
    "read_soft",
    "reduce_zero",
]

ARRAY_ENDING = ".npy"
Pixels = NDArray[Any]


def read_picture(path: Path) -> Pixels:
    """A picture, upright: uint8 RGB ``[H, W, 3]``; 16-bit and floating greys as they are, ``[H, W, 1]``.

    What is transparent is seen on white, as a predictor shows it to a model. The array is a view of planes, which is
    the order that batches have.
    """
    with opened(path) as image:
        if image.mode.startswith("I;16") or image.mode in ("I", "F"):
            return _wide(image, path)
        if image.mode in ("La", "RGBa"):  # premultiplied
            image = image.convert("LA" if image.mode == "La" else "RGBA")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            alpha = np.asarray(image.getchannel("A"))
            if alpha.min() < 255:
                return over_white(np.asarray(image.convert("RGB")), alpha)
        if image.mode != "RGB":
            image = image.convert("RGB")
        planes = bytearray().join(image.tobytes("raw", band) for band in "RGB")  # faster than moving pixels apart
        pixels: Pixels = np.frombuffer(planes, np.uint8).reshape(3, image.height, image.width).transpose(1, 2, 0)
        return pixels


def _wide(image: Image.Image, path: Path) -> Pixels:
    """Greys of more than 8 bits in the smallest type that tensors have for them."""
    values = np.array(image)
    if image.mode == "I" and values.size:
        fitting = next((t for t in (np.uint16, np.int16) if _fits(values, t)), None)
        if fitting is None:
            raise PictureError(f"{path} holds values {values.min()} to {values.max()}, expected 8 or 16 bit")
        values = values.astype(fitting)
    return _plain(values, path)[:, :, None]


def _fits(values: Pixels, dtype: type) -> bool:
    bounds = np.iinfo(dtype)
    return bool(values.min() >= bounds.min and values.max() <= bounds.max)


def read_bands(path: Path, *, channels_first: bool = False) -> Pixels:
    """All bands of a TIFF or .npy file as they are stored, ``[H, W, C]``; other pictures as `read_picture` has them.

    Args:
        path: The file.
        channels_first: Whether .npy files hold ``[C, H, W]``.
    """
    ending = path.suffix.lower()
    if ending == ARRAY_ENDING:
        values = _read_array(path)
        if values.ndim not in (2, 3):
            layout = "[bands, H, W]" if channels_first else "[H, W, bands]"
            raise PictureError(f"{path} has the shape {list(values.shape)}, expected [H, W] or {layout}")
        if channels_first and values.ndim == 3:
            values = values.transpose(1, 2, 0)
    elif ending in TIFF_ENDINGS:
        values = read_tiff(path)
    else:
        return read_picture(path)
    values = _plain(values, path)
    return values if values.ndim == 3 else values[:, :, None]


def _read_array(path: Path) -> Pixels:
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    with one_sentence(path):
        values: Pixels = np.load(path, allow_pickle=False)
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf":
        raise PictureError(f"{path} holds no array of numbers")
    if values.size == 0:
        raise PictureError(f"{path} has no pixels: its shape is {list(values.shape)}")
    return values


def _plain(values: Pixels, path: Path) -> Pixels:
    """In a type that tensors have: uint8, uint16, int16 or float32, in the byte order of this machine."""
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind == "f":
        with np.errstate(over="ignore"):
            narrow = values.astype(np.float32, copy=False)
        if size > 4 and (np.isinf(narrow) & np.isfinite(values)).any():
            raise PictureError(f"{path} holds values beyond the range of float32, such as {np.nanmax(abs(values)):g}")
        return narrow
    if kind == "b":
        return values.astype(np.uint8)
    if (kind, size) in (("u", 1), ("u", 2), ("i", 2)):
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    raise PictureError(f"{path} holds {values.dtype}, expected uint8, uint16, int16 or floating point")


def read_indices(path: Path) -> Pixels:
    """Labels as a file holds them, ``[H, W]``: of a palette picture the indices; of .npy any integers."""
    if path.suffix.lower() != ARRAY_ENDING:
        return read_labels(path)
    labels = _flat(_read_array(path), path)
    if labels.dtype.kind == "f":
        raise PictureError(f"{path} holds {labels.dtype}, expected class indices: integers")
    return labels


def _flat(values: Pixels, path: Path) -> Pixels:
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim != 2:
        raise PictureError(f"{path} has the shape {list(values.shape)}, expected [H, W]")
    return values


def reduce_zero(labels: Pixels, ignore_index: int) -> Pixels:
    """Labels that begin at 1, as ADE20K's do: 0 is ignored, k becomes k − 1, what was ignored stays.

    Examples:
        >>> reduce_zero(np.array([[0, 1, 150, 255]], np.uint8), 255)
        array([[255,   0, 149, 255]], dtype=uint8)
    """
    if labels.dtype == np.uint8 and 0 <= ignore_index <= 255:
        table = (np.arange(256) - 1).astype(np.uint8)
        table[[0, ignore_index]] = ignore_index
        labels = table[labels]
        return labels
    wide = labels.astype(np.int64)
    reduced: Pixels = np.where((wide == 0) | (wide == ignore_index), ignore_index, wide - 1)
    return reduced


def _grey(path: Path) -> Pixels:
    return _flat(_read_array(path), path) if path.suffix.lower() == ARRAY_ENDING else read_grey(path)


def read_foreground(path: Path, ignored: int | None = None) -> Pixels:
    """1 where a mask of 0 and 1, or of greys, is above half of its range, else 0; uint8 ``[H, W]``.

    Args:
        path: Of a grey picture, or a .npy file of 0 and 1, of uint8 greys or of floating 0…1.
        ignored: A value of the file that is kept as it is.

    Raises:
        ValueError: The file is broken, or does not say what the object is: see `_checked_mask`.
    """
    values = _checked_mask(_unit_checked(_grey(path), path), path, ignored)
    if ignored is None:
        return mask_foreground(values).view(np.uint8)
    unused = values == ignored
    binary = mask_foreground(np.where(unused, values.dtype.type(0), values)).astype(np.uint8)
    binary[unused] = ignored
    return binary


def read_soft(path: Path) -> Pixels:
    """A grey mask as float32 0…1 ``[H, W]``; a mask of 0 and 1 stays that."""
    values = _checked_mask(_unit_checked(_grey(path), path), path)
    if values.dtype == np.uint8 and values.max() > 1:
        values = values / np.float32(255)
    return values.astype(np.float32, copy=False)


def _unit_checked(values: Pixels, path: Path) -> Pixels:
    """Bool, uint8 or floating 0…1, which is what greys are; other integers pass where they are 0 and 1."""
    if values.dtype in (np.uint8, np.bool_):
        return values
    low, high = values.min(), values.max()
    if values.dtype.kind == "f" and not (low >= 0 and high <= 1):
        raise PictureError(f"{path} holds floating point values {low:g} to {high:g}, expected 0…1")
    if values.dtype.kind in "iu":
        if low < 0 or high > 255:
            raise PictureError(f"{path} holds values {low} to {high}, expected 0 and 1, or 0 … 255")
        return values.astype(np.uint8)
    return values


def _checked_mask(values: Pixels, path: Path, ignored: int | None = None) -> Pixels:
    """A mask, once its 8 bits are 0 and 1 or greys: three labels, as of a trimap, leave open which is the object."""
    if values.dtype != np.uint8:
        return values
    if ignored is None and np.count_nonzero(values) == np.count_nonzero(values == 255):
        return values  # black and white, as most are: a histogram takes longer
    held = {value for value, count in enumerate(Image.fromarray(values).histogram()) if count}
    if ignored == 255 and (held - {0, 1, 255} or held & {1, 255} == {255}):
        raise PictureError(
            f"{path} holds {_listed(held)}, expected 0, 1 for the object and {ignored} for ignored, as ignore_index "
            "says: leave that out, or give another, where 255 is the object"
        )
    held.discard(-1 if ignored is None else ignored)
    highest = max(held, default=0)
    if 1 < highest < 128:
        raise PictureError(
            f"{path} holds nothing above {highest}, expected 0 and 1, or greys up to 255: are these labels?"
        )
    if {1, 255} <= held <= {0, 1, 255}:
        raise PictureError(
            f"{path} holds 1 and 255 and no grey between, expected 0 and 1, or greys up to 255: are these labels? "
            "(PairedFolder's ignore_index=255 ignores 255)"
        )
    return values


def _listed(values: set[int]) -> str:
    first = sorted(values)
    return " and ".join(map(str, first)) if len(first) <= 3 else f"{len(first)} values, {first[0]} to {first[-1]}"
