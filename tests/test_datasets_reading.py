"""What files hold, and not what it looks like: greys of few bits, TIFFs, masks of labels, transparency."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segzoo._decoding import PictureError
from segzoo.datasets import PairedFolder, Sample, SegmentationDataset, band_statistics, count_pixels
from segzoo.inference import read_picture


def png(path: Path, values: np.ndarray, bits: int) -> Path:
    """A grey PNG of so many bits, which Pillow does not write."""
    rows = np.unpackbits(values[..., None].astype(np.uint8), axis=2)[:, :, 8 - bits :].reshape(len(values), -1)
    raw = b"".join(b"\0" + row.tobytes() for row in np.packbits(rows, axis=1))
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    parts = (b"IHDR", head), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


def mask_of(path: Path, **options: Any) -> torch.Tensor:
    """The mask in a file, with a picture of no interest."""
    return PairedFolder(path, path, **options).mask(0)


def grey(path: Path, *values: int) -> Path:
    Image.fromarray(np.array([values], np.uint8)).save(path)
    return path


# --- labels


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_labels_of_few_bits_are_the_numbers_stored(tmp_path: Path, bits: int, rng: np.random.Generator) -> None:
    labels = rng.integers(0, 2**bits, (5, 7)).astype(np.uint8)
    assert np.array_equal(mask_of(png(tmp_path / "a.png", labels, bits)).numpy(), labels)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_labels_whose_0_is_white_are_the_numbers_stored(tmp_path: Path, compression: str | None) -> None:
    tifffile = pytest.importorskip("tifffile")
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    tifffile.imwrite(tmp_path / "a.tif", labels, photometric="miniswhite", compression=compression)
    assert np.array_equal(mask_of(tmp_path / "a.tif").numpy(), labels)
    Image.fromarray(labels > 5).save(tmp_path / "1.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "1.tif") as image:
        shown, inverted = np.asarray(image), image.tag_v2[262] == 0
    assert np.array_equal(mask_of(tmp_path / "1.tif").numpy(), shown ^ inverted)


def test_masks_have_one_page_and_no_fractions(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    pages = [Image.fromarray(np.full((4, 4), i, np.uint8)) for i in range(2)]
    pages[0].save(tmp_path / "two.tif", save_all=True, append_images=pages[1:])
    for options in ({}, {"task": "salient"}):
        with pytest.raises(PictureError, match="two.tif has 2 pages, expected one"):
            mask_of(tmp_path / "two.tif", **options)
    with tifffile.TiffWriter(tmp_path / "overview.tif") as file:
        file.write(np.full((4, 4), 3, np.uint8))
        file.write(np.full((2, 2), 9, np.uint8), subfiletype=1)
    assert torch.equal(mask_of(tmp_path / "overview.tif"), torch.full((4, 4), 3, dtype=torch.uint8))
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(PictureError, match="f.tif holds floating point values, expected class indices: integers"):
        mask_of(tmp_path / "f.tif")


def test_a_label_that_is_none_is_named_as_the_file_has_it(tmp_path: Path) -> None:
    path = grey(tmp_path / "ade.png", 1, 0, 151)
    with pytest.raises(PictureError, match=r"has the label 151 at row 0, column 2, expected 1 … 150, or 255 for ign"):
        mask_of(path, reduce_zero_label=True, classes=[str(i) for i in range(150)])


# --- masks of objects


@pytest.mark.parametrize("values", [(0, 1, 2), (1, 2, 3), (0, 50, 127), (0, 2)])
@pytest.mark.parametrize("soft", [False, True])
def test_labels_are_no_mask_of_an_object(tmp_path: Path, values: tuple[int, ...], soft: bool) -> None:
    path = grey(tmp_path / "a.png", *values)
    with pytest.raises(PictureError, match=rf"holds nothing above {max(values)}, expected 0 and 1, .* labels\?"):
        mask_of(path, task="salient", soft=soft)


@pytest.mark.parametrize("soft", [False, True])
def test_0_1_and_255_leave_open_what_255_is(tmp_path: Path, soft: bool) -> None:
    path = grey(tmp_path / "a.png", 0, 1, 255)
    with pytest.raises(PictureError, match=r"holds 1 and 255 and no grey between.*ignore_index=255 ignores 255"):
        mask_of(path, task="salient", soft=soft)
    rim = mask_of(grey(tmp_path / "rim.png", 0, 1, 130, 255), task="salient", soft=soft)
    assert rim.tolist() == (
        [[0, float(np.float32(1 / 255)), float(np.float32(130 / 255)), 1]] if soft else [[0, 0, 1, 1]]
    )


def test_a_label_of_masks_that_is_ignored(tmp_path: Path) -> None:
    def read(*values: int, ignore_index: int) -> list[int]:
        path = grey(tmp_path / "a.png", *values)
        return mask_of(path, task="salient", ignore_index=ignore_index)[0].tolist()

    assert read(0, 1, 255, ignore_index=255) == [0, 1, 255] and read(0, 0, ignore_index=255) == [0, 0]
    assert read(0, 1, 2, ignore_index=2) == [0, 1, 2] and read(0, 128, 255, ignore_index=128) == [0, 128, 1]
    for values, words in (((0, 255), "0 and 255"), ((0, 7, 9, 255), "4 values, 0 to 255"), ((255,), "255")):
        with pytest.raises(PictureError, match=rf"holds {words}, expected 0, 1 for the object and 255 for ignored"):
            read(*values, ignore_index=255)
    with pytest.raises(PictureError, match="holds nothing above 3"):
        read(1, 2, 3, ignore_index=2)


# --- pictures


def test_what_is_transparent_is_white_as_predictors_see_it(tmp_path: Path, rng: np.random.Generator) -> None:
    colours = rng.integers(0, 256, (6, 9, 4)).astype(np.uint8)
    colours[0, :, 3] = 0
    for mode in ("RGBA", "LA", "P"):
        path = tmp_path / f"{mode}.png"
        Image.fromarray(colours).convert(mode).save(path)
        found = PairedFolder(path, None).image(0).permute(1, 2, 0).numpy()
        assert np.array_equal(found, read_picture(path).over_white())
    assert (PairedFolder(tmp_path / "RGBA.png", None).image(0)[:, 0] == 255).all()


def test_tiffs_that_lost_pages(tmp_path: Path, rng: np.random.Generator) -> None:
    tifffile = pytest.importorskip("tifffile")
    bands = rng.integers(0, 4000, (8, 16, 16)).astype(np.uint16)
    for big in (False, True):
        path = tmp_path / f"{big}.tif"
        tifffile.imwrite(path, bands, photometric="minisblack", compression="zlib", bigtiff=big)
        assert np.array_equal(PairedFolder(path, None).image(0).numpy(), bands)
        data = path.read_bytes()
        for share in (0.2, 0.5, 0.7, 0.99):
            path.write_bytes(data[: int(share * len(data))])
            with pytest.raises(PictureError, match=rf"{big}.tif is broken"):
                PairedFolder(path, None).image(0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiffs_are_turned_whoever_reads_them(tmp_path: Path, orientation: int) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    found = []
    for dtype in (np.uint8, np.uint16):
        path = tmp_path / f"{dtype.__name__}.tif"
        tag = (274, 3, 1, orientation, True)
        tifffile.imwrite(path, pixels.astype(dtype), photometric="rgb", extratags=[tag])
        found.append(PairedFolder(path, None).image(0))
    assert [image.dtype for image in found] == [torch.uint8, torch.uint16]
    assert np.array_equal(found[0].numpy(), found[1].numpy())


def test_tiffs_whose_0_is_white_look_alike_whoever_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels = np.array([[0, 1, 255]])
    for dtype, most in ((np.uint8, 255), (np.uint16, 65535)):
        path = tmp_path / f"{dtype.__name__}.tif"
        tifffile.imwrite(path, pixels.astype(dtype), photometric="miniswhite")
        assert np.array_equal(PairedFolder(path, None).image(0)[0].numpy(), most - pixels)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    assert PairedFolder(tmp_path / "uint8.tif", None).image(0).tolist() == [[[255, 254, 0]]]


def test_inks_and_signed_numbers_need_no_tifffile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inks = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    Image.frombytes("CMYK", (3, 2), inks.tobytes()).save(tmp_path / "inks.tif")
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "signed.tif", np.array([[0, 5]], np.int16), photometric="minisblack")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    assert np.array_equal(PairedFolder(tmp_path / "inks.tif", None).image(0).numpy(), inks.transpose(2, 0, 1))
    assert PairedFolder(tmp_path / "signed.tif", None).image(0).dtype == torch.int16  # negative or not


def test_sizes_that_differ_since_bands_are_pages(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels = np.zeros((7, 5, 4), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", planarconfig=None)
    np.save(tmp_path / "a.npy", pixels.transpose(2, 0, 1))
    Image.new("L", (5, 7)).save(tmp_path / "mask.png")
    for name, words in (
        ("a.tif", "its 7 pages rows of 4 bands.*planarconfig='contig'"),
        ("a.npy", "channels_first=True"),
    ):
        with pytest.raises(ValueError, match=words):
            PairedFolder(tmp_path / name, tmp_path / "mask.png")[0]


def test_numbers_beyond_float32(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[1e300, np.inf, np.nan]]))
    with pytest.raises(PictureError, match="a.npy holds values beyond the range of float32"):
        PairedFolder(tmp_path / "a.npy", None)[0]
    np.save(tmp_path / "a.npy", np.array([[1e30, np.inf, np.nan]]))
    assert PairedFolder(tmp_path / "a.npy", None).image(0).dtype == torch.float32


# --- files and samples


def test_arrays_are_listed_as_pictures_are(tmp_path: Path) -> None:
    for name in ("a.NPY", ".hidden.npy", ".cache/b.npy", "deep/c.npy"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            np.save(file, np.zeros((1, 3, 3), np.uint8))
    (tmp_path / "folder.npy").mkdir()
    assert PairedFolder(tmp_path, None).names == ["a"]
    assert PairedFolder(tmp_path, None, recursive=True).names == ["a", "deep/c"]
    for paths in (("", None), (tmp_path, "")):
        with pytest.raises(ValueError, match="a path is empty, expected a folder of pictures"):
            PairedFolder(*paths)


def test_samples_of_strings_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    grey(tmp_path / "a.png", 1, 2)
    samples = [Sample("a", "a.png", str(tmp_path / "a.png")), Sample("b", str(tmp_path / "a.png"), None)]  # type: ignore[arg-type]
    dataset = SegmentationDataset(samples, classes=None, ignore_index=255)
    assert dataset[0][1].tolist() == [[1, 2]] and samples[0].image == Path("a.png") and samples[1].mask is None
    assert repr(dataset).splitlines()[1].split(" in ")[1] == os.fspath(tmp_path)
    assert "1 picture in .\n" in repr(SegmentationDataset(samples[:1], classes=None, ignore_index=None))


# --- counts


@pytest.mark.parametrize("ignored", [-1, 2**31 - 1, 300])
def test_ignored_labels_of_any_size_are_counted(tmp_path: Path, ignored: int) -> None:
    np.save(tmp_path / "m.npy", np.array([[0, 1, 1, ignored]], np.int64))
    found = count_pixels(PairedFolder(tmp_path / "m.npy", tmp_path / "m.npy", classes=("a", "b"), ignore_index=ignored))
    assert found.counts.tolist() == [1, 2] and found.ignored == 1
    if ignored != 300:
        with pytest.raises(PictureError, match=rf"m.npy has the label {ignored}, expected 0 … 65535"):
            count_pixels(PairedFolder(tmp_path / "m.npy", tmp_path / "m.npy"))


def test_a_small_spread_far_from_zero(tmp_path: Path, rng: np.random.Generator) -> None:
    values = (2.0**24 + 2 * rng.integers(0, 9, (50, 40))).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    found = band_statistics(PairedFolder(tmp_path / "a.npy", None))
    shifted = values.astype(np.float64) - 2.0**24
    np.testing.assert_allclose(float(found.std[0]), shifted.std(), rtol=1e-12)
    np.testing.assert_allclose(float(found.mean[0]) - 2.0**24, shifted.mean(), rtol=1e-7)
