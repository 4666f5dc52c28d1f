"""TIFFs with any number of bands: through Pillow where it reads them whole, else through tifffile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from segzoo._decoding import PictureError, one_sentence, opened

__all__ = ["TIFF_ENDINGS", "read_tiff"]

TIFF_ENDINGS = {".tif", ".tiff"}
Pixels = NDArray[Any]

# TIFFs that Pillow reads whole and exactly: photometric interpretation, bits and kind of numbers, to its modes. Of the
# others it drops bits, bands or pages, or refuses them.
_PILLOW_TIFFS: dict[tuple[int, tuple[int, ...], int], set[str]] = {
    **{(grey, (8,), 1): {"L"} for grey in (0, 1)},
    **{(grey, (1,), 1): {"1"} for grey in (0, 1)},
    (1, (16,), 1): {"I;16", "I;16B", "I;16L"},
    (1, (16,), 2): {"I"},
    (1, (32,), 3): {"F"},
    (2, (8, 8, 8), 1): {"RGB"},
    (2, (8, 8, 8, 8), 1): {"RGBA", "RGBX", "RGBa"},
    (3, (8,), 1): {"P"},
    (5, (8, 8, 8, 8), 1): {"CMYK"},
    (6, (8, 8, 8), 1): {"RGB", "YCbCr"},
}
_WHITE_IS_ZERO = 0
_ORIENTATION = 274


def read_tiff(path: Path) -> Pixels:
    """All bands or pages as they are stored, ``[H, W]`` or ``[H, W, C]``, upright; greys whose 0 is white, inverted.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is broken, pages are missing, or it needs tifffile, which is not installed.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no picture {path}")
    modes = _PILLOW_TIFFS.get(_kind(path) or (-1, (), 0))
    if modes is not None:
        with opened(path) as image:
            if image.mode in modes:
                if image.mode == "I":
                    return np.array(image).astype(np.int16)
                return np.array(image.convert("RGB") if image.mode in ("P", "YCbCr") else image)
    _check_pages(path)
    return _read_elsewhere(path)


def _kind(path: Path) -> tuple[int, tuple[int, ...], int] | None:
    """Photometric interpretation, bits of each sample and kind of numbers; None: several pages, or no such file.

    By the tags alone: opening the file, Pillow would log an error for each that has many bands.
    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
            tags = ImageFileDirectory_v2(head + file.read(8) if head[2:3] == b"+" or head[3:4] == b"+" else head)
            file.seek(tags.next)
            tags.load(file)
            bits = tuple(tags.get(258, (1,)))
            kinds = set(tags.get(339, (1,)))
            if tags.next or len(bits) != tags.get(277, 1) or len(kinds) != 1:
                return None
            return tags.get(262, 1), bits, kinds.pop()
    except Exception:  # tifffile may know more of it, and Pillow has the words if not
        return None


def _check_pages(path: Path) -> None:
    """Refuse a file that ends before its last page: tifffile would take the pages before it for all."""
    with path.open("rb") as file:
        head = file.read(16)
        order: Any = {b"II": "little", b"MM": "big"}.get(head[:2])
        if order is None:
            return
        big = int.from_bytes(head[2:4], order) == 43
        width, entry, count = (8, 20, 8) if big else (4, 12, 2)  # bytes of an offset, of a tag, of the number of tags
        offset, seen = int.from_bytes(head[8:16] if big else head[4:8], order), set[int]()
        while offset and offset not in seen:
            seen.add(offset)
            file.seek(offset)
            number = file.read(count)
            file.seek(entry * int.from_bytes(number, order), 1)
            following = file.read(width)
            if len(number) < count or len(following) < width:
                raise PictureError(f"{path} is broken: it ends before its page {len(seen)} (from 1)")
            offset = int.from_bytes(following, order)


def _read_elsewhere(path: Path) -> Pixels:
    try:
        import tifffile
    except ImportError:
        with opened(path):  # what is broken says so
            pass
        raise PictureError(
            f"{path} has more bands, pages or bits than Pillow reads: install tifffile (pip install tifffile)"
        ) from None
    with one_sentence(path), tifffile.TiffFile(path) as file:
        series, page = file.series[0], file.pages[0].aspage()
        values, axes = series.asarray(), series.axes
        used = [i for i, (axis, length) in enumerate(zip(axes, values.shape)) if axis in "YX" or length > 1]
        values, axes = values.reshape([values.shape[i] for i in used]), "".join(axes[i] for i in used)
        if "Y" not in axes or "X" not in axes or len(axes) > 3:
            raise PictureError(f"{path} has the axes {axes} {list(values.shape)}, expected rows, columns and bands")
        order = [axes.index("Y"), axes.index("X"), *(i for i, axis in enumerate(axes) if axis not in "YX")]
        pixels: Pixels = np.asarray(values).transpose(order)
        if page.photometric == _WHITE_IS_ZERO and pixels.dtype.kind == "u":
            pixels = pixels.dtype.type(2**page.bitspersample - 1) - pixels
        return _upright(pixels, page.tags.valueof(_ORIENTATION, 1))


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turned as Pillow turns the TIFFs that it reads."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels
