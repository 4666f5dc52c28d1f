"""Opening picture files: what breaks is one sentence that names the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

__all__ = ["PictureError", "one_sentence", "opened", "picture_suffixes", "upright"]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """The picture, decoded and upright as a model sees its pictures; what breaks is a ValueError that names it."""
    if not path.exists():
        raise FileNotFoundError(f"there is no picture {path}")
    with one_sentence(path), Image.open(path) as image:
        if 0 in image.size:
            raise PictureError(f"{path} has no pixels: {image.width}×{image.height}")
        kind = image.format
        image.load()
        turned = upright(image)
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
    try:
        # A picture that stands already would be copied.
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # a broken EXIF block says nothing about the pixels
        return image


def picture_suffixes() -> set[str]:
    """Endings, in lower case, of the picture files that Pillow decodes by itself."""
    known = Image.registered_extensions().items()
    return {end for end, name in known if name in Image.OPEN and name not in _NOT_PICTURES}


# Formats that Pillow recognises and only passes on: to another program, a plug-in of one's own, or not at all.
_NOT_PICTURES = {"MPEG", "HDF5", "GRIB", "BUFR", "WMF", "EPS", "PDF"}
