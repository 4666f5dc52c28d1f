"""Opening picture files: what breaks is one sentence that names the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

__all__ = ["PictureError", "lies", "one_sentence", "opened", "over_white", "picture_suffixes", "upright"]


@contextlib.contextmanager
def opened(path: Path, *, one_page: bool = False, as_stored: bool = False) -> Iterator[Image.Image]:
    """The picture, decoded and upright as a model sees its pictures; what breaks is a ValueError that names it.

    Args:
        path: The file.
        one_page: Whether a TIFF of several pages is refused, as a mask is; smaller copies of the first do not count.
        as_stored: Whether greys are the numbers in the file, as labels are: 0…3 of 2 bits, and 0 even if 0 is white.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no picture {path}")
    with one_sentence(path), Image.open(path) as image:
        if 0 in image.size:
            raise PictureError(f"{path} has no pixels: {image.width}×{image.height}")
        kind, raw = image.format, _raw_mode(image)
        if one_page:
            _refuse_pages(image, path)
        image.load()
        turned = _as_stored(upright(image), raw) if as_stored else upright(image)
        turned.format = kind
        yield turned


@contextlib.contextmanager
def one_sentence(name: object) -> Iterator[None]:
    """Whatever Pillow's openers and decoders raise on bad bytes, as one ValueError that names the picture."""
    try:
        yield
    except (MemoryError, PictureError):
        raise
    except UnidentifiedImageError:
        raise PictureError(f"{name} is not a picture in a format that Pillow reads") from None
    except Image.DecompressionBombError as error:
        raise PictureError(
            f"{name} is too large to open unasked ({_reason(error)}); "
            "raise PIL.Image.MAX_IMAGE_PIXELS for pictures you trust"
        ) from None
    except PermissionError:
        raise PictureError(f"{name} cannot be read: permission denied") from None
    except Exception as error:
        raise PictureError(f"{name} is broken or cannot be decoded ({_reason(error)})") from error


class PictureError(ValueError):
    """A picture that cannot be read, and why, in one sentence that names it."""


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def upright(image: Image.Image) -> Image.Image:
    """The picture as its EXIF block says that it is held."""
    try:
        turn = _TURNS.get(_orientation(image))
    except Exception:  # a broken EXIF block says nothing about the pixels
        return image
    if turn is None:
        return image
    # Not ImageOps.exif_transpose, which rewrites the block, and fails where any other tag in it is broken.
    turned = image.transpose(turn)
    for said in _SAYING_SO:
        turned.info.pop(said, None)
    return turned


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SAYING_SO = ("exif", "raw profile type exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp", "parsed_exif")


def lies(image: Image.Image) -> bool:
    """Whether a picture's width becomes its height when it is turned upright."""
    try:
        return _orientation(image) in (5, 6, 7, 8)
    except Exception:
        return False


def _orientation(image: Image.Image) -> Any:
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _refuse_pages(image: Image.Image, path: Path) -> None:
    from PIL import TiffImagePlugin

    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.n_frames > 1:
        for page in range(1, image.n_frames):
            image.seek(page)
            if not image.tag_v2.get(_PAGE_KIND, 0) & _SMALLER_OR_MASK:
                raise PictureError(f"{path} has {image.n_frames} pages, expected one")
        image.seek(0)


_PAGE_KIND = 254  # TIFF's NewSubfileType
_SMALLER_OR_MASK = 0b101


def _raw_mode(image: Image.Image) -> str:
    """How the file packs its pixels, in Pillow's words, before they are decoded."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _as_stored(image: Image.Image, raw: str) -> Image.Image:
    """Greys without what Pillow does to show them: it stretches 2 and 4 bits, and inverts those whose 0 is white."""
    packing = raw.partition(";")[2]
    step, inverted = {"2": 85, "4": 17}.get(packing[:1], 1), "I" in packing
    if image.mode not in ("1", "L") or (step == 1 and not inverted):
        return image
    return image.point([(255 - value if inverted else value) // step for value in range(256)])


def over_white(pixels: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels ``[H, W, C]`` as they look on a white page: what is transparent must not show through to a model.

    Examples:
        >>> over_white(np.array([[[9, 9, 9]] * 2], np.uint8), np.array([[0, 255]], np.uint8))[0, :, 0]
        array([255,   9], dtype=uint8)
    """
    wide = alpha[:, :, None].astype(np.uint16)
    blended = (pixels * wide + 255 * (255 - wide) + 127) // 255
    return blended.astype(np.uint8)


def picture_suffixes() -> set[str]:
    """Endings, in lower case, of the picture files that Pillow decodes by itself."""
    known = Image.registered_extensions().items()
    return {end for end, name in known if name in Image.OPEN and name not in _NOT_PICTURES}


# Formats that Pillow recognises and only passes on: to another program, a plug-in of one's own, or not at all.
_NOT_PICTURES = {"MPEG", "HDF5", "GRIB", "BUFR", "WMF", "EPS", "PDF"}
