"""Pictures in every form people have them, in and out."""

from __future__ import annotations

import io
import os
import stat
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageCms

from segzoo._files import write_whole
from segzoo.inference import Picture, preprocess, read_picture
from segzoo.inference.colours import colour_map
from segzoo.inference.picture import check_output, image_format, save_image
from segzoo.weights import Preprocessing


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    """A picture in which every pixel tells where it was."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 5, y * 7, (x + y) * 3], 2).astype(np.uint8))


def bytes_of(image: Image.Image, kind: str = "PNG", **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM"])
def test_files_of_any_format(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"ein Bild ü.{kind.lower()}"
    gradient().save(path, kind, **({"lossless": True} if kind == "WEBP" else {}))
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    for source in (path, str(path), io.BytesIO(path.read_bytes())):
        picture = read_picture(source)
        np.testing.assert_array_equal(picture.pixels, expected)
        assert picture.alpha is None and picture.size == (30, 40)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "YCbCr", "CMYK", "HSV"])
def test_pil_images_of_any_mode(mode: str) -> None:
    image = gradient().convert(mode)
    np.testing.assert_array_equal(read_picture(image).pixels, np.asarray(image.convert("RGB")))


def test_grey_is_the_same_three_times_and_one_channel_for_grey_models() -> None:
    grey = gradient().convert("L")
    assert (read_picture(grey).pixels == np.asarray(grey)[:, :, None]).all()
    np.testing.assert_array_equal(read_picture(gradient(), in_channels=1).pixels[:, :, 0], np.asarray(grey))


@pytest.mark.parametrize("form", ["RGBA", "LA", "P", "tRNS"])
def test_transparency_is_kept_and_seen_on_white(form: str) -> None:
    alpha = np.zeros((30, 40), np.uint8)
    alpha[:, 20:] = 255
    image = gradient().convert("L" if form == "LA" else "RGB")
    if form == "P":
        indexed = gradient().convert("P")
        file = bytes_of(indexed, transparency=indexed.getpixel((0, 0)))
        expected = np.asarray(Image.open(file).convert("RGBA"))[:, :, 3]
        file.seek(0)
        picture = read_picture(file)
    elif form == "tRNS":
        picture = read_picture(bytes_of(gradient(), transparency=(0, 0, 0)))
        expected = np.full((30, 40), 255, np.uint8)
        expected[0, 0] = 0
    else:
        image.putalpha(Image.fromarray(alpha))
        picture, expected = read_picture(bytes_of(image)), alpha
    np.testing.assert_array_equal(picture.alpha, expected)
    assert (picture.over_white()[expected == 0] == 255).all()
    np.testing.assert_array_equal(picture.over_white()[expected == 255], picture.pixels[expected == 255])


def test_half_transparency_is_blended_and_full_opacity_is_no_transparency() -> None:
    black = Image.new("RGBA", (2, 2), (0, 0, 0, 51))
    assert (read_picture(black).over_white() == 204).all()
    assert read_picture(Image.new("RGBA", (2, 2), (9, 9, 9, 255))).alpha is None


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled(kind: str) -> None:
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    picture = read_picture(bytes_of(Image.fromarray(values), kind))
    assert picture.pixels[0, :, 0].tolist() == [0, 1, 128, 255]
    assert picture.pixels.shape == (1, 4, 3)
    assert read_picture(values).pixels[0, :, 2].tolist() == [0, 1, 128, 255]
    assert read_picture(Image.fromarray(values.astype(np.int32))).pixels[0, :, 2].tolist() == [0, 1, 128, 255]
    assert read_picture(Image.fromarray(values), in_channels=1).pixels[0, :, 0].tolist() == [0, 1, 128, 255]
    floats = Image.fromarray((values / 65535).astype(np.float32))
    assert read_picture(floats).pixels[0, :, 1].tolist() == [0, 1, 128, 255]


def test_sixteen_bits_with_a_transparent_level() -> None:
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    picture = read_picture(bytes_of(Image.fromarray(values), "PNG", transparency=257))
    assert picture.pixels[0, :, 0].tolist() == [0, 1, 128, 255]
    assert picture.alpha is not None and picture.alpha.tolist() == [[255, 0, 255, 255]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation: int) -> None:
    upright = gradient()
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)
    stored = upright.transpose(turn) if turn is not None else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(read_picture(bytes_of(stored, exif=exif)).pixels, np.asarray(upright))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_not_a_broken_picture() -> None:
    file = bytes_of(gradient(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert read_picture(file).size == (30, 40)


def test_the_colour_profile_is_kept_for_rgb_and_used_for_cmyk() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert read_picture(bytes_of(gradient(), icc_profile=srgb)).icc_profile == srgb
    assert read_picture(bytes_of(gradient().convert("L"))).icc_profile is None
    cmyk = bytes_of(gradient().convert("CMYK"), "JPEG", icc_profile=b"not a profile", quality=95)
    plain = np.asarray(Image.open(cmyk).convert("RGB"))
    cmyk.seek(0)
    np.testing.assert_array_equal(read_picture(cmyk).pixels, plain)


@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))),
)
def test_arrays_and_tensors_are_one_picture(array: np.ndarray) -> None:
    expected = np.broadcast_to(array, (*array.shape[:2], 3))
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for source in (array, tensor, array.astype(np.float32) / 255, tensor.double() / 255, (tensor / 255.0).half()):
        np.testing.assert_allclose(read_picture(source).pixels.astype(int), expected, atol=0)
    if array.shape[2] == 1:
        np.testing.assert_array_equal(read_picture(array[:, :, 0]).pixels, expected)


def test_bool_arrays_and_more_bands() -> None:
    assert read_picture(np.array([[True, False]])).pixels[0, :, 0].tolist() == [255, 0]
    bands = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5)
    np.testing.assert_array_equal(read_picture(bands, in_channels=5).pixels, bands)
    np.testing.assert_array_equal(read_picture(torch.from_numpy(bands).permute(2, 0, 1), in_channels=5).pixels, bands)


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        (np.zeros((3, 4, 5), np.uint8), ValueError, r"has 1, 3 or 4 channels: array \[H, W, C\], got \[3, 4, 5\]"),
        (np.zeros((2, 3, 4, 3), np.uint8), ValueError, "several pictures go in as a list"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"got \[0, 4, 3\]"),
        (np.zeros(3, np.uint8), ValueError, r"got \[3\]"),
        (torch.zeros(7, 5, 2), ValueError, r"channels: tensor \[C, H, W\], got \[7, 5, 2\]"),
        (torch.zeros(1, 3, 4, 5), ValueError, r"tensor \[H, W\] or \[C, H, W\], got \[1, 3, 4, 5\]"),
        (np.full((2, 2), 200.0), ValueError, r"lie in 0…1, got 200 to 200: divide by 255, or pass uint8"),
        (np.full((2, 2), np.nan), ValueError, "lie in 0…1, got nan"),
        (np.zeros((2, 2), np.int64), ValueError, "pixels are uint8, uint16, bool .*, got int64"),
        (torch.zeros(3, 2, 2).long(), ValueError, "got int64"),
        (Image.fromarray(np.full((2, 2), 70000, np.int32)), ValueError, "grey of more than 16 bit: 70000 to 70000"),
        (Image.fromarray(np.full((2, 2), 200, np.float32)), ValueError, "divide by 255"),
        (Image.new("RGB", (0, 5)), ValueError, "has no pixels: 0×5"),
        ("", ValueError, "path is empty"),
        (np.zeros((2, 2), complex), ValueError, "got complex128"),
        (np.array([["a"]]), ValueError, "pixels are uint8"),
        (42, TypeError, "a path, an open file, a PIL image, an array or a tensor; got int"),
    ],
)
def test_bad_arrays_get_one_sentence(source: object, error: type, words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        read_picture(source)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it has 10 gigapixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\x00" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bad_files(coffee: Path) -> dict[str, tuple[bytes, str]]:
    jpeg = coffee.read_bytes()
    png = bytes_of(gradient(200, 200)).getvalue()
    return {
        "text.jpg": (b"this is not a picture", "is not a picture in a format that Pillow reads"),
        "empty.png": (b"", "is not a picture in a format that Pillow reads"),
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "is broken or cannot be decoded"),
        "truncated.png": (png[: len(png) // 2], "is broken or cannot be decoded"),
        "header.jpg": (jpeg[:20], "Pillow reads|cannot be decoded"),
        "bomb.png": (bomb(), "too large to open unasked .* raise PIL.Image.MAX_IMAGE_PIXELS"),
    }


BAD = ["text.jpg", "empty.png", "truncated.jpg", "truncated.png", "header.jpg", "bomb.png"]


@pytest.mark.parametrize("name", BAD)
def test_bad_files_get_one_sentence(name: str, coffee: Path, tmp_path: Path) -> None:
    content, words = bad_files(coffee)[name]
    path = tmp_path / name
    path.write_bytes(content)
    for source in (path, io.BytesIO(path.read_bytes())):
        with pytest.raises(ValueError, match=words) as caught:
            read_picture(source)
        name = "the stream" if isinstance(source, io.BytesIO) else str(path)
        assert str(caught.value).startswith(name) and "\n" not in str(caught.value)


@given(st.data())
def test_no_bytes_at_all_raise_anything_but_value_error(coffee: Path, data: st.DataObject) -> None:
    source = data.draw(st.sampled_from([bytes_of(gradient(), k).getvalue() for k in ("PNG", "JPEG", "GIF", "TIFF")]))
    content = bytearray(source[: data.draw(st.integers(0, len(source)))])
    for _ in range(data.draw(st.integers(0, 6))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of damaged metadata
            read_picture(io.BytesIO(bytes(content)))
    except ValueError as error:
        assert "the stream" in str(error)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no picture .*nothing.jpg"):
        read_picture(tmp_path / "nothing.jpg")
    with pytest.raises(ValueError, match="is a folder, expected a picture"):
        read_picture(tmp_path)


# Preprocessing.


def test_preprocessing_is_the_officials() -> None:
    """Resize, divide by the maximum, normalise: against Pillow and float64."""
    picture = read_picture(gradient(500, 375))
    resized = np.asarray(gradient(500, 375).resize((320, 320), Image.Resampling.BILINEAR)).astype(float)
    expected = (resized / resized.max() - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    x = preprocess(picture, Preprocessing(scale="max")).permute(1, 2, 0).numpy()
    # torch's and Pillow's fixed-point filters may differ by one grey level
    assert np.abs(x - expected).max() < 1.5 / resized.max() / 0.224
    assert np.abs(x - expected).mean() < 0.1 / resized.max() / 0.224


def test_black_white_and_own_size() -> None:
    black = preprocess(read_picture(np.zeros((5, 4, 3), np.uint8)), Preprocessing(scale="max"))
    assert black.isfinite().all() and black.shape == (3, 320, 320)
    torch.testing.assert_close(black[:, 0, 0], -torch.tensor([0.485 / 0.229, 0.456 / 0.224, 0.406 / 0.225]))
    grey = np.full((5, 4, 3), 100, np.uint8)
    own = preprocess(read_picture(grey), Preprocessing(size=None, mean=(0.0,) * 3, std=(1.0,) * 3))
    assert own.shape == (3, 5, 4)
    torch.testing.assert_close(own, torch.full((3, 5, 4), 100 / 255))


@given(h=st.integers(1, 400), w=st.integers(1, 400), channels=st.sampled_from([1, 2, 3, 4, 13]))
def test_preprocessing_of_any_size_and_bands(h: int, w: int, channels: int) -> None:
    picture = Picture(np.full((h, w, channels), 51, np.uint8))
    rules = Preprocessing(size=(64, 48), mean=(0.0,) * channels, std=(1.0,) * channels)
    torch.testing.assert_close(preprocess(picture, rules), torch.full((channels, 64, 48), 0.2))


# Files.


def test_write_whole_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(FileNotFoundError) as caught, write_whole(tmp_path / "no" / "a.bin"):
        pass
    assert caught.value.filename == str(tmp_path / "no" / "a.bin")
    with pytest.raises(RuntimeError), write_whole(path) as file:
        file.write(b"half of the new")
        raise RuntimeError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with write_whole(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_write_whole_follows_links_keeps_modes_and_spares_devices(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    with write_whole(link) as file:
        file.write(b"x")
    assert link.is_symlink() and target.read_bytes() == b"x"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask
    target.chmod(0o640)
    with write_whole(target) as file:
        file.write(b"y")
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    longest = tmp_path / ("写" * 80 + ".png")
    with write_whole(longest) as file:
        file.write(b"z")
    assert longest.read_bytes() == b"z"
    with write_whole(os.devnull) as file:
        file.write(b"x")
    assert not Path(os.devnull).is_file()


def test_outputs_are_checked_before_the_work(tmp_path: Path) -> None:
    assert image_format("a.JPG") == "JPEG"
    check_output(tmp_path / "a.png", "RGBA")
    for path, mode, error, words in [
        (tmp_path / "a.jpg", "RGBA", ValueError, "JPEG has no transparency: write .png"),
        (tmp_path / "a", "RGB", ValueError, "no ending that names a picture format, such as .png"),
        (tmp_path / "a.pgn", "RGB", ValueError, "unknown picture format '.pgn': did you mean '.png'"),
        (tmp_path / "b" / "a.png", "RGB", FileNotFoundError, "there is no folder .*b"),
        (tmp_path, "RGB", ValueError, "no ending"),
    ]:
        with pytest.raises(error, match=words):
            check_output(path, mode)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.jpg", "a.tif"])
def test_saved_images_are_read_again(name: str, tmp_path: Path) -> None:
    image = gradient() if name.endswith("jpg") else gradient().convert("RGBA")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    save_image(image, tmp_path / name, icc_profile=profile)
    with Image.open(tmp_path / name) as again:
        assert again.size == (40, 30) and again.info["icc_profile"] == profile
    with pytest.raises(ValueError, match="JPEG has no transparency"):
        save_image(gradient().convert("RGBA"), tmp_path / "b.jpg")
    assert not (tmp_path / "b.jpg").exists()


def test_the_palette_is_pascals() -> None:
    assert colour_map()[[1, 2, 15, 20, 255]].tolist() == [
        [128, 0, 0],
        [0, 128, 0],
        [192, 128, 128],
        [0, 64, 128],
        [224, 224, 192],
    ]
    assert len(np.unique(colour_map(), axis=0)) == 256
