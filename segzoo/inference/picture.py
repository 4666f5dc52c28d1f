"""Pictures in any form to pixels a model can take, and back to files."""

from __future__ import annotations

import io
import math
import os
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, TypeGuard, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from segzoo._decoding import PictureError, lies, one_sentence, over_white, upright
from segzoo._errors import unknown_name
from segzoo._files import check_writable, write_whole

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Picture", "PictureLike", "image_format", "read_picture", "save_image"]

PictureLike: TypeAlias = "str | os.PathLike[str] | IO[bytes] | Image.Image | NDArray[np.generic] | Tensor"

SPARE = 2.0
"""How many times larger than what a model asks for a picture stays when it is decoded at a fraction of its size."""


class Picture:
    """Pixels, upright, 8 bit.

    Args:
        pixels: uint8 ``[H, W, C]``: C = 3 for pictures, or the bands that a model with other channels takes.
        alpha: uint8 ``[H, W]``, 255 opaque, where the picture has transparency; else None.
        icc_profile: The colour profile that the pixels are in, or None.
    """

    def __init__(
        self, pixels: NDArray[np.uint8], alpha: NDArray[np.uint8] | None = None, icc_profile: bytes | None = None
    ) -> None:
        self._pixels = pixels
        self.alpha = alpha
        self.icc_profile = icc_profile

    def __repr__(self) -> str:
        height, width = self.size
        return f"Picture({height}×{width} pixels{'' if self.alpha is None else ', with transparency'})"

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """uint8 ``[H, W, C]``."""
        return self._pixels

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def over_white(self) -> NDArray[np.uint8]:
        """The pixels as they look on a white page: what is transparent must not show through to a model."""
        return self.pixels if self.alpha is None else over_white(self.pixels, self.alpha)

    def seen(self, size: tuple[int, int]) -> NDArray[np.uint8]:
        """What to make a picture of that size (height, width) from: ``over_white``, or a smaller decoding of it."""
        return self.over_white()

    def rgb(self) -> Image.Image:
        """The pixels as an RGB image (the first three bands, or grey)."""
        bands = self.pixels if self.pixels.shape[2] >= 3 else self.pixels[:, :, [0, 0, 0]]
        return Image.fromarray(np.ascontiguousarray(bands[:, :, :3]))


class _SmallFirst(Picture):
    """A picture whose file was decoded at a fraction of its size, and is decoded whole if somebody asks for that.

    Args:
        small: The fraction.
        size: Height and width of the whole.
        whole: Decodes it; from bytes in memory, as the file may change or go away meanwhile.
    """

    def __init__(self, small: Picture, size: tuple[int, int], whole: Callable[[], Picture]) -> None:
        super().__init__(small.pixels, None, small.icc_profile)
        self._size = size
        self._decoded: NDArray[np.uint8] | None = None
        self._whole: Callable[[], Picture] | None = whole
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:  # to other processes, and for copies
        return Picture, (self.pixels, self.alpha, self.icc_profile)

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """uint8 ``[H, W, C]``, decoded by the first who asks."""
        with self._lock:
            if self._decoded is None:
                assert self._whole is not None
                self._decoded = self._whole().pixels
                self._whole = None
            return self._decoded

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self._size

    def seen(self, size: tuple[int, int]) -> NDArray[np.uint8]:
        """What to make a picture of that size (height, width) from: the fraction, if it is large enough."""
        enough = all(side >= SPARE * wanted for side, wanted in zip(self._pixels.shape, size))
        return self._pixels if enough else self.over_white()


def read_picture(
    source: PictureLike, *, in_channels: int = 3, at_least: int | tuple[int, int] | None = None
) -> Picture:
    """A picture in any usual form.

    Args:
        source: A path or an open binary file of any format that Pillow reads; a PIL image of any mode (grey, palette,
            CMYK, 16 bit, with transparency; EXIF rotation is applied); an array ``[H, W]``, ``[H, W, 1]``,
            ``[H, W, 3]`` (RGB) or ``[H, W, 4]`` (RGBA); a tensor ``[H, W]`` or ``[C, H, W]`` likewise. Arrays and
            tensors are uint8, uint16 (scaled down), bool, or floating point in 0…1.
        in_channels: Of the model. With 1, colours become grey; with another number than 1 and 3, only arrays and
            tensors of so many bands do.
        at_least: The size that a model will ask for: height and width, or one number for the shorter side. Of a JPEG
            file that is more than ``SPARE`` times as large only what the model needs is decoded at once (a half, a
            quarter or an eighth of each side, which takes a third of the time), and ``pixels``, of the whole size,
            when they are first asked for. None decodes the whole now.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no picture, broken, too large for Pillow's limit, or of another shape or range.
        TypeError: If it is none of the above forms.

    Examples:
        >>> read_picture(np.zeros((30, 40), np.uint8)).pixels.shape
        (30, 40, 3)
    """
    if isinstance(source, (str, os.PathLike)):
        return _from_file(source, f"{os.fspath(source)}", in_channels, at_least)
    if isinstance(source, Image.Image):
        return _decode(source, "the PIL image", in_channels)
    if _is_tensor(source):
        return _from_tensor(source, in_channels)
    if isinstance(source, np.ndarray):
        return _from_array(source, in_channels)
    if hasattr(source, "read"):
        return _from_file(cast("IO[bytes]", source), getattr(source, "name", "the stream"), in_channels, at_least)
    raise TypeError(
        f"a picture is a path, an open file, a PIL image, an array or a tensor; got {type(source).__name__} "
        "(several go in as a list, or through Predictor.stream)"
    )


def _is_tensor(source: object) -> TypeGuard[Tensor]:
    """Without importing torch, which takes seconds: where nobody has, nothing is a tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.Tensor)


def _from_file(
    source: str | os.PathLike[str] | IO[bytes],
    name: object,
    in_channels: int,
    at_least: int | tuple[int, int] | None,
) -> Picture:
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not name:
            raise ValueError("the picture's path is empty")
        if path.is_dir():
            raise ValueError(f"{name} is a folder, expected a picture (segzoo.inference.predict_folder takes folders)")
        if not path.exists():
            raise FileNotFoundError(f"there is no picture {name}")
    with one_sentence(name), Image.open(source) as image:
        fraction = 1 if at_least is None or in_channels not in (1, 3) else _fraction(image, at_least)
        return _decode(image, name, in_channels) if fraction == 1 else _small_first(image, name, in_channels, fraction)


def _fraction(image: Image.Image, at_least: int | tuple[int, int]) -> int:
    """Which part of its sides, 1/8 to 1/1, of an opened picture is enough for a model."""
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return 1
    width, height = image.size[::-1] if lies(image) else image.size
    if isinstance(at_least, int):
        shorter = min(height, width)
        at_least = (at_least * height // shorter, at_least * width // shorter)
    enough = min(height // max(1, math.ceil(SPARE * at_least[0])), width // max(1, math.ceil(SPARE * at_least[1])))
    return max(fraction for fraction in (1, 2, 4, 8) if fraction <= max(enough, 1))


def _small_first(image: JpegImagePlugin.JpegImageFile, name: object, in_channels: int, fraction: int) -> Picture:
    assert image.fp is not None
    image.fp.seek(0)
    content = image.fp.read()
    width, height = image.size[::-1] if lies(image) else image.size

    def whole() -> Picture:
        # Not by Image.open, which would warn a second time of what it warns.
        return _decode(JpegImagePlugin.JpegImageFile(io.BytesIO(content)), name, in_channels)

    small = JpegImagePlugin.JpegImageFile(io.BytesIO(content))
    small.draft(None, (image.width // fraction, image.height // fraction))
    small.load()
    return _SmallFirst(_decode(_exactly(small, image.size, fraction), name, in_channels), (height, width), whole)


def _exactly(small: Image.Image, size: tuple[int, int], fraction: int) -> Image.Image:
    """The fraction where it should be: of sizes that it does not divide, the last row or column reaches beyond."""
    width, height = ((side + fraction // 2) // fraction for side in size)
    box = (0, 0, size[0] / fraction, size[1] / fraction)
    if box == (0, 0, width, height):
        return small
    return small.resize((width, height), Image.Resampling.BICUBIC, box)


def _decode(image: Image.Image, name: object, in_channels: int) -> Picture:
    if 0 in image.size:
        raise PictureError(f"{name} has no pixels: {image.width}×{image.height}")
    if in_channels not in (1, 3):
        shapes = f"an array [H, W, {in_channels}] or a tensor [{in_channels}, H, W]"
        raise PictureError(f"{name}: this model takes {in_channels} bands; pass {shapes}")
    with one_sentence(name):
        image.load()
        return _from_image(upright(image), in_channels)


def _from_image(image: Image.Image, in_channels: int) -> Picture:
    profile = image.info.get("icc_profile") if image.mode in ("RGB", "RGBA") else None
    alpha = None
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image, alpha = _from_wide_grey(image)
    elif image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"))
    if alpha is not None and alpha.min() == 255:
        alpha = None
    image = _to_rgb(image)
    pixels = np.array(image.convert("L"))[:, :, None] if in_channels == 1 else np.array(image)
    return Picture(pixels, alpha, profile)


def _from_wide_grey(image: Image.Image) -> tuple[Image.Image, NDArray[np.uint8] | None]:
    """Grey of 16 bit (``I`` is what older Pillows call it) or floating point, as 8 bit; and its transparency."""
    values = np.asarray(image)
    transparent = image.info.get("transparency")  # one grey level, as PNG has it
    alpha = np.where(values == transparent, 0, 255).astype(np.uint8) if isinstance(transparent, int) else None
    if image.mode != "F":
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"grey of more than 16 bit: {values.min()} to {values.max()}")
        values = values.astype(np.uint16)
    return Image.fromarray(_to_8_bit(values)), alpha


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image  # convert would copy it
    profile = image.info.get("icc_profile")
    if image.mode == "CMYK" and profile:
        from PIL import ImageCms

        # Without its profile CMYK has no defined colours; with a broken one Pillow's plain formula has to do.
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            return converted if converted is not None else image.convert("RGB")
        except (OSError, ImageCms.PyCMSError):
            pass
    return image.convert("RGB")


def _to_8_bit(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """A copy: uint8 as it is, bool to 0/255, uint16 / 257, floating point in 0…1 × 255, rounded."""
    if values.dtype == np.uint8:
        return np.array(values, dtype=np.uint8, order="C")  # the caller may use the buffer again
    if values.dtype == np.bool_:
        return np.where(values, 255, 0).astype(np.uint8)
    if values.dtype == np.uint16:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if values.dtype.kind != "f":
        raise PictureError(f"pixels are uint8, uint16, bool or floating point in 0…1, got {values.dtype}")
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # also refuses NaN
        raise PictureError(f"floating point pixels lie in 0…1, got {low:g} to {high:g}: divide by 255, or pass uint8")
    return (values.astype(np.float32) * 255 + 0.5).astype(np.uint8)


def _from_tensor(tensor: Tensor, in_channels: int) -> Picture:
    if tensor.ndim not in (2, 3):
        raise ValueError(
            f"a picture is a tensor [H, W] or [C, H, W], got {list(tensor.shape)}; several pictures go in as a list"
        )
    values = tensor.detach().cpu()
    if values.is_floating_point():
        values = values.float()  # numpy has no bfloat16
    values = values if values.ndim == 2 else values.permute(1, 2, 0)
    return _from_array(values.numpy(), in_channels, hint=f"tensor [C, H, W], got {list(tensor.shape)}")


def _from_array(array: NDArray[np.generic], in_channels: int, hint: str | None = None) -> Picture:
    bands = array[:, :, None] if array.ndim == 2 else array
    hint = hint or f"array [H, W, C], got {list(array.shape)}"
    if bands.ndim != 3 or 0 in bands.shape:
        raise ValueError(f"a picture is an {hint}; several pictures go in as a list")
    count = bands.shape[2]
    if count != in_channels and not (in_channels in (1, 3) and count in (1, 3, 4)):
        expected = "1, 3 or 4 channels" if in_channels in (1, 3) else f"{in_channels} channels"
        raise ValueError(f"a picture for this model has {expected}: {hint}")
    pixels = _to_8_bit(bands)
    if count == in_channels:
        return Picture(pixels)
    return _from_image(Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if count == 1 else pixels)), in_channels)


def image_format(path: str | os.PathLike[str]) -> str:
    """The format that a file's ending names, as Pillow calls it.

    Raises:
        ValueError: For an ending that Pillow cannot write.

    Examples:
        >>> image_format("a/b.jpeg")
        'JPEG'
    """
    suffix = Path(path).suffix.lower()
    Image.preinit()  # Pillow's usual formats, which are there at once; the others take a while to import
    if suffix in Image.EXTENSION and Image.EXTENSION[suffix] in Image.SAVE:
        return Image.EXTENSION[suffix]
    known = {end: name for end, name in Image.registered_extensions().items() if name in Image.SAVE}
    if suffix not in known:
        common = [end for end in (".png", ".jpg", ".webp", ".tif") if end in known]
        if not suffix:
            raise ValueError(f"{path} has no ending that names a picture format, such as {', '.join(common)}")
        raise unknown_name("picture format", suffix, common)
    return known[suffix]


def save_image(
    image: Image.Image, path: str | os.PathLike[str] | IO[bytes], *, icc_profile: bytes | None = None
) -> None:
    """Write an image, whole or not at all, in the format its ending names (PNG to an open file).

    Args:
        image: With transparency only for formats that have it.
        path: Where to.
        icc_profile: Embedded where the format can carry it.

    Raises:
        ValueError: If the format is unknown or has no transparency.
        OSError: If the file cannot be written.
    """
    kind = format_for(image.mode, path) if isinstance(path, (str, os.PathLike)) else "PNG"
    options: dict[str, Any] = {"icc_profile": icc_profile} if icc_profile else {}
    if kind == "JPEG":
        options |= {"quality": 95, "subsampling": 0}
    if kind == "PNG":  # zlib's default takes three times as long for 2 % of a photo, and twice as long for a mask
        options |= {"compress_type": zlib.Z_RLE} if image.mode in ("1", "L", "P") else {"compress_level": 3}
    encoded = io.BytesIO()
    image.save(encoded, kind, **options)
    if isinstance(path, (str, os.PathLike)):
        with write_whole(path) as file:
            file.write(encoded.getbuffer())
    else:
        path.write(encoded.getbuffer())


def check_output(path: str | os.PathLike[str], mode: str) -> None:
    """Raise now what ``save_image`` would raise after the work: of an image of that mode, at that path.

    Args:
        path: Of the file to be.
        mode: As PIL names it: ``"RGBA"``, ``"RGB"``, ``"L"``.

    Raises:
        ValueError: If the format is unknown or has no transparency.
        OSError: If the folder is not there, or a file in it cannot be written.
    """
    format_for(mode, path)
    check_writable(path)


def format_for(mode: str, path: str | os.PathLike[str]) -> str:
    """``image_format``, refused with a ValueError where it cannot hold an image of that mode."""
    kind = image_format(path)
    if mode == "RGBA" and kind not in ("PNG", "WEBP", "TIFF", "GIF", "JPEG2000", "AVIF", "TGA", "ICO", "DDS", "SGI"):
        raise ValueError(f"{kind} has no transparency: write .png or .webp, or give a background colour")
    if mode == "P" and kind not in ("PNG", "GIF", "TIFF", "BMP"):
        raise ValueError(f"{kind} cannot hold class indices: write .png")
    return kind
