"""PairedFolder: files of every kind as Pillow, numpy and tifffile hold them, paired by name, or refused by name."""

from __future__ import annotations

import logging
import math
import pickle
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Subset
from torchvision import tv_tensors
from torchvision.transforms import v2

from segzoo.datasets import BandStatistics, PairedFolder, Sample, SegmentationDataset, band_statistics
from segzoo.datasets._reading import reduce_zero

BANDS = [np.uint8, np.uint16, np.int16, np.float32]


def save(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, pixels)
    else:
        Image.fromarray(pixels).save(path, **options)
    return path


def rgb_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def one(tmp_path: Path, image: np.ndarray | Path, mask: np.ndarray | Path, **options: Any) -> PairedFolder:
    """A data set of one pair of PNG files, or of files that are there."""
    image = image if isinstance(image, Path) else save(tmp_path / "image.png", image)
    mask = mask if isinstance(mask, Path) else save(tmp_path / "mask.png", mask)
    return PairedFolder(image, mask, **options)


@pytest.fixture
def photo(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (6, 9, 3)).astype(np.uint8)


@pytest.fixture
def labels(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 3, (6, 9)).astype(np.uint8)


@pytest.fixture
def folders(tmp_path: Path, photo: np.ndarray, labels: np.ndarray) -> tuple[Path, Path]:
    for i, name in enumerate(["b10", "b9", "a. é", "x.y"]):
        save(tmp_path / "images" / f"{name}.{'jpg' if i % 2 else 'png'}", photo)
        save(tmp_path / "masks" / f"{name}.png", labels)
    return tmp_path / "images", tmp_path / "masks"


# --- pairing


def test_pairs_by_name_in_natural_order(folders: tuple[Path, Path], photo: np.ndarray, labels: np.ndarray) -> None:
    dataset = PairedFolder(*folders)
    assert dataset.names == ["a. é", "b9", "b10", "x.y"] and len(dataset) == 4 and dataset.unpaired == ([], [])
    image, mask = dataset[0]
    assert type(image) is tv_tensors.Image and type(mask) is tv_tensors.Mask
    assert image.dtype == mask.dtype == torch.uint8 and image.is_contiguous() and mask.is_contiguous()
    assert torch.equal(image, torch.from_numpy(photo).permute(2, 0, 1))
    assert all(torch.equal(mask, torch.from_numpy(labels)) for _, mask in dataset)  # ends by IndexError
    assert torch.equal(dataset[-1][0], torch.from_numpy(rgb_of(folders[0] / "x.y.jpg").copy()).permute(2, 0, 1))
    assert dataset.num_classes is None and repr(dataset).startswith("PairedFolder\n    4 pictures in ")
    with pytest.raises(TypeError):
        dataset[0:2]


def test_suffixes_in_one_folder_and_folders_in_folders(tmp_path: Path, photo: np.ndarray, labels: np.ndarray) -> None:
    for place in ("zurich", "bern/old", "."):
        save(tmp_path / place / "one.png", photo)
        save(tmp_path / place / "one_labels.png", labels)
        save(tmp_path / place / "one_color.gif", labels)
    with pytest.raises(ValueError, match="one_color.gif"):
        PairedFolder(tmp_path, tmp_path, mask_suffix="_labels")
    for path in tmp_path.rglob("*_color.gif"):
        path.unlink()
    assert PairedFolder(tmp_path, tmp_path, mask_suffix="_labels").names == ["one"]
    deep = PairedFolder(tmp_path, tmp_path, mask_suffix="_labels", recursive=True)
    assert deep.names == ["bern/old/one", "one", "zurich/one"]
    assert deep.samples[0] == Sample(
        "bern/old/one", tmp_path / "bern/old/one.png", tmp_path / "bern/old/one_labels.png"
    )
    other = PairedFolder(tmp_path, tmp_path, image_suffix="_labels", mask_suffix="")
    assert [s.image.name for s in other.samples] == ["one_labels.png"]
    with pytest.raises(ValueError, match="both in .*expected an image_suffix or a mask_suffix"):
        PairedFolder(tmp_path, tmp_path)


def test_what_has_no_partner(
    folders: tuple[Path, Path], photo: np.ndarray, labels: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    images, masks = folders
    save(images / "alone.png", photo)
    save(masks / "lost.png", labels)
    with pytest.raises(ValueError, match=r"1 picture has no mask: .*alone.png; 1 mask has no picture: .*lost.png"):
        PairedFolder(*folders)
    with caplog.at_level(logging.WARNING, "segzoo"):
        skipped = PairedFolder(*folders, missing="skip")
    assert "alone.png" in caplog.text and "lost.png" in caplog.text
    assert skipped.unpaired.images == [images / "alone.png"] and skipped.unpaired.masks == [masks / "lost.png"]
    assert len(skipped) == 4 and "alone" not in skipped.names
    allowed = PairedFolder(*folders, missing="allow")
    i = allowed.names.index("alone")
    assert allowed.samples[i].mask is None and len(allowed) == 5
    assert allowed[i][1].shape == (6, 9) and set(allowed[i][1].unique().tolist()) == {255}
    assert torch.equal(allowed.mask(i), allowed[i][1])
    with pytest.raises(ValueError, match="alone.png has no mask, and there is no ignore_index"):
        PairedFolder(*folders, missing="allow", task="salient")
    alone = PairedFolder(images, None)
    assert len(alone) == 5 and (alone[0][1] == 255).all()
    wide = PairedFolder(images, None, ignore_index=1000)
    assert wide[0][1].dtype == torch.int64 and (wide[0][1] == 1000).all()


def test_names_twice_and_folders_that_do_not_fit(folders: tuple[Path, Path], labels: np.ndarray) -> None:
    images, masks = folders
    save(masks / "b9.bmp", labels)
    with pytest.raises(ValueError, match=r"b9.bmp and .*b9.png have one name: which of them is 'b9'"):
        PairedFolder(*folders)
    with pytest.raises(FileNotFoundError, match="no folder or mask .*nowhere"):
        PairedFolder(images, masks / "nowhere")
    with pytest.raises(ValueError, match="is a folder and .* a file, expected two"):
        PairedFolder(images, masks / "b9.png")
    empty = images / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="there is no picture in the folder .*empty"):
        PairedFolder(empty, masks)
    with pytest.raises(ValueError, match=r"no picture whose name ends in '_img' in the folder .*recursive follows"):
        PairedFolder(images, masks, image_suffix="_img")
    save(empty / "other.png", labels)
    with pytest.raises(ValueError, match="no picture has the name of a mask: .*other.png and .* called 'b10'"):
        (masks / "b9.bmp").unlink()
        [path.unlink() for path in masks.glob("[ax]*")]
        (masks / "b9.png").unlink()
        PairedFolder(empty, masks)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "semantc"}, "unknown task 'semantc': did you mean 'semantic'"),
        ({"missing": "ignore"}, "unknown missing 'ignore'"),
        ({"task": "salient", "palette": ["red"]}, "expected neither"),
        ({"task": "salient", "classes": ["a", "b"]}, "classes has 2 names, expected one"),
        ({"soft": True}, "soft masks are those of task='salient'"),
        ({"reduce_zero_label": True, "ignore_index": None}, "expected one, and no palette"),
        ({"palette": ["red", "red"]}, r"the colour \(255, 0, 0\) as label 0 and 1"),
        ({"palette": []}, "palette is empty"),
        ({"palette": [(1, 2)]}, r"palette has \(1, 2\), expected colours"),
        ({"palette": [(1, 2, 300)]}, "three integers 0 … 255"),
        ({"palette": ["rde"]}, "palette has 'rde'"),
        ({"palette": [(1.0, 0, 0.9)]}, r"palette has \(1.0, 0, 0.9\), expected colours of three integers"),
        ({"task": "salient", "ignore_index": 300}, r"ignore_index is 300, expected a grey 2 … 255"),
        ({"task": "salient", "ignore_index": -1}, r"ignore_index is -1, expected a grey 2 … 255"),
        ({"task": "salient", "ignore_index": 1}, r"ignore_index is 1, expected a grey 2 … 255"),
        ({"classes": [str(i) for i in range(256)]}, "255 unless given, which is one of the 256 classes: .*such as -1"),
        ({"palette": [(i, 0, 0) for i in range(256)]}, "255 unless given, which is one of the 256 classes"),
        ({"palette": {"red": 300}}, "255 unless given, which is one of the 301 classes"),
        ({"palette": {"red": "raod"}, "classes": ["road"]}, "unknown class in palette 'raod': did you mean 'road'"),
        ({"palette": {"red": 2}, "classes": ["a", "b"]}, "the label 2, expected those of 2 classes, or 255"),
        ({"bands": []}, "at least one index"),
        ({"bands": [-1]}, "at least one index"),
        ({"classes": ["a", "a"]}, "each of them once"),
        ({"classes": "road"}, "expected a sequence of names"),
        ({"cache": ""}, "expected 'memory', a folder or None"),
    ],
)
def test_arguments_that_do_not_fit(folders: tuple[Path, Path], options: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        PairedFolder(*folders, **options)


# --- pictures


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_of_pillow_is_rgb(tmp_path: Path, photo: np.ndarray, labels: np.ndarray, mode: str) -> None:
    image = Image.fromarray(photo).convert(mode)
    ending = {"CMYK": "jpg", "YCbCr": "jpg"}.get(mode, "png")
    path = tmp_path / f"a.{ending}"
    image.save(path)
    found, _ = one(tmp_path, path, labels)[0]
    assert found.shape == (3, 6, 9)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), rgb_of(path))


def test_a_palette_with_transparency_is_seen_on_white_without_a_warning(tmp_path: Path, labels: np.ndarray) -> None:
    image = Image.fromarray(labels)
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "a.png", transparency=bytes([0, 128, 255]))
    found, _ = one(tmp_path, tmp_path / "a.png", labels)[0]
    expected = torch.tensor([255, round(50 * 128 / 255 + 127), 80], dtype=torch.uint8)
    assert torch.equal(found[1], expected[torch.from_numpy(labels).long()])


def test_wide_greys_keep_their_bits(tmp_path: Path, labels: np.ndarray, rng: np.random.Generator) -> None:
    grey = rng.integers(0, 65536, (6, 9)).astype(np.uint16)
    found, _ = one(tmp_path, grey, labels)[0]
    assert found.dtype == torch.uint16 and np.array_equal(found[0].numpy(), grey)
    save(tmp_path / "f.tif", rng.normal(size=(6, 9)).astype(np.float32))
    assert one(tmp_path, tmp_path / "f.tif", labels)[0][0].dtype == torch.float32


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_turned_photographs_fit_masks_of_what_people_see(tmp_path: Path, photo: np.ndarray, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turns = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]
    path = save(tmp_path / "a.png", photo, exif=exif)
    seen = np.rot90(photo, turns)
    found, mask = one(tmp_path, path, np.zeros(seen.shape[:2], np.uint8))[0]
    assert np.array_equal(found.permute(1, 2, 0).numpy(), seen) and mask.shape == found.shape[-2:]
    if turns % 2:
        with pytest.raises(ValueError, match=r"a.png has 6 × 9 pixels and its mask .*mask.png 9 × 6, turned"):
            one(tmp_path, path, np.zeros(photo.shape[:2], np.uint8))[0]


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 13)),
    st.sampled_from(BANDS),
    st.sampled_from(["npy", "npy first", "tif", "tif planes", "tif zlib", "tif big"]),
    st.integers(0, 2**32 - 1),
)
def test_bands_come_back_as_they_were(shape: tuple[int, int, int], dtype: Any, kind: str, seed: int) -> None:
    tifffile = pytest.importorskip("tifffile")
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (*shape[:2], shape[2] * np.dtype(dtype).itemsize), np.uint8).view(dtype)
    pixels = np.nan_to_num(pixels) if dtype == np.float32 else pixels
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / ("a.npy" if kind.startswith("npy") else "a.tiff")
        options: dict[str, Any] = {"channels_first": kind == "npy first"}
        if kind.startswith("npy"):
            np.save(path, pixels.transpose(2, 0, 1) if options["channels_first"] else pixels)
        elif kind == "tif planes" and shape[2] > 1:
            tifffile.imwrite(path, pixels.transpose(2, 0, 1), planarconfig="separate", photometric="minisblack")
        else:
            extra = {"tif zlib": {"compression": "zlib"}, "tif big": {"byteorder": ">"}}.get(kind, {})
            several = {"planarconfig": "contig"} if shape[2] > 1 else {}
            tifffile.imwrite(
                path, np.squeeze(pixels, 2) if shape[2] == 1 else pixels, photometric="minisblack", **several, **extra
            )
        found = PairedFolder(path, None, **options).image(0)
        assert np.array_equal(found.numpy(), pixels.transpose(2, 0, 1)) and found.is_contiguous()
        chosen = [shape[2] - 1, 0]
        picked = PairedFolder(path, None, bands=chosen, **options).image(0)
        assert np.array_equal(picked.numpy(), pixels.transpose(2, 0, 1)[chosen])
        with pytest.raises(ValueError, match=rf"a\..* has {shape[2]} bands, expected band 13"):
            PairedFolder(path, None, bands=[13], **options).image(0)


def test_pages_are_bands_and_common_tiffs_need_no_tifffile(
    tmp_path: Path, photo: np.ndarray, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile = pytest.importorskip("tifffile")
    pages = rng.integers(0, 65536, (5, 6, 9)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "pages.tif", pages)
    assert np.array_equal(PairedFolder(tmp_path / "pages.tif", None).image(0).numpy(), pages)
    tifffile.imwrite(tmp_path / "rgb16.tif", pages[:3].transpose(1, 2, 0), photometric="rgb")  # Pillow drops 8 bits
    assert np.array_equal(PairedFolder(tmp_path / "rgb16.tif", None).image(0).numpy(), pages[:3])
    tifffile.imwrite(tmp_path / "5d.tif", np.zeros((2, 3, 4, 5), np.uint8), photometric="minisblack")
    with pytest.raises(ValueError, match="5d.tif has the axes .*expected rows, columns and bands"):
        PairedFolder(tmp_path / "5d.tif", None).image(0)
    broken = tmp_path / "broken.tif"
    broken.write_bytes((tmp_path / "rgb16.tif").read_bytes()[:100])
    with pytest.raises(ValueError, match="broken.tif"):
        PairedFolder(broken, None).image(0)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    for name in ("pages", "rgb16"):
        with pytest.raises(ValueError, match=rf"{name}.tif has more bands, pages or bits .*pip install tifffile"):
            PairedFolder(tmp_path / f"{name}.tif", None).image(0)
    with pytest.raises(ValueError, match="broken.tif is broken"):
        PairedFolder(broken, None).image(0)
    for array in (photo, photo[:, :, 0], pages[0], pages[0].astype(np.int16), pages[0].astype(np.float32)):
        if array.dtype == np.int16:
            tifffile_path = tmp_path / "i16.tif"
            Image.fromarray(array.astype(np.int32)).save(tifffile_path)
            continue  # 32-bit integers are no pixels that tensors have
        path = save(tmp_path / "plain.tif", array)
        found = PairedFolder(path, None).image(0)
        assert np.array_equal(found.numpy(), np.atleast_3d(array).transpose(2, 0, 1)), array.dtype
    with Image.fromarray(photo[:, :, 0]) as image:
        image.putpalette(list(range(256)) * 3)
        image.save(tmp_path / "palette.tif")
    assert PairedFolder(tmp_path / "palette.tif", None).image(0).shape == (3, 6, 9)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 2), np.int64), "holds int64, expected uint8"),
        (np.zeros((2, 2), np.complex64), "no array of numbers"),
        (np.zeros((2, 2, 2, 2), np.uint8), r"has the shape \[2, 2, 2, 2\]"),
        (np.zeros((0, 2), np.uint8), "no pixels"),
        (np.array([{}]), "broken or cannot be decoded"),
    ],
)
def test_arrays_that_are_no_pictures(tmp_path: Path, array: np.ndarray, words: str) -> None:
    path = save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=rf"a.npy.*{words}"):
        PairedFolder(path, None).image(0)


def test_native_types_go_through_loader_and_transforms(tmp_path: Path, rng: np.random.Generator) -> None:
    for dtype in BANDS:
        path = save(tmp_path / f"{np.dtype(dtype)}.npy", rng.integers(0, 100, (8, 8, 5)).astype(dtype))
        dataset = PairedFolder(path, None, transforms=v2.Compose([v2.RandomCrop(4), v2.ToDtype(torch.float32)]))
        images, masks = next(iter(DataLoader(ConcatDataset([dataset, dataset]), batch_size=2)))
        assert images.shape == (2, 5, 4, 4) and masks.shape == (2, 4, 4)


# --- broken and mismatched files


def test_broken_files_name_themselves_and_their_partner(tmp_path: Path, photo: np.ndarray, labels: np.ndarray) -> None:
    big = np.kron(photo, np.ones((30, 30, 1), np.uint8))
    whole = save(tmp_path / "whole.jpg", big).read_bytes()
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut.jpg is broken"):
        one(tmp_path, cut, labels)[0]
    text = tmp_path / "text.png"
    text.write_text("no picture")
    with pytest.raises(ValueError, match=r"text.png is not a picture .*the mask of .*image.png"):
        one(tmp_path, photo, text)[0]
    with pytest.raises(ValueError, match=r"image.png has 9 × 6 pixels and its mask .*mask.png 8 × 6$"):
        one(tmp_path, photo, labels[:, 1:])[0]
    dataset = one(tmp_path, photo, labels)
    (tmp_path / "image.png").unlink()
    with pytest.raises(FileNotFoundError, match="image.png"):
        dataset[0]


# --- label maps


def test_palette_pictures_are_their_indices(tmp_path: Path, photo: np.ndarray, labels: np.ndarray) -> None:
    image = Image.fromarray(labels)
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "p.png")
    _, mask = one(tmp_path, photo, tmp_path / "p.png", classes=["a", "b", "c"])[0]
    assert np.array_equal(mask.numpy(), labels)
    _, mask = one(tmp_path, photo, tmp_path / "p.png", palette=["blue", "red", (0, 255, 0)])[0]
    assert np.array_equal(mask.numpy(), np.array([1, 2, 0], np.uint8)[labels])


@pytest.mark.parametrize("ending", ["png", "tif", "npy"])
def test_wide_labels(tmp_path: Path, photo: np.ndarray, labels: np.ndarray, ending: str) -> None:
    wide = save(tmp_path / f"wide.{ending}", labels.astype(np.uint16) * 300)
    _, mask = one(tmp_path, photo, wide)[0]
    assert mask.dtype == torch.int64 and np.array_equal(mask.numpy(), labels.astype(int) * 300)
    many = one(tmp_path, photo, wide, classes=[str(i) for i in range(601)], ignore_index=None)
    assert many[0][1].dtype == torch.int64
    small = save(tmp_path / f"small.{ending}", labels.astype(np.uint16))
    assert one(tmp_path, photo, small)[0][1].dtype == torch.int64  # as others of its kind may need
    assert one(tmp_path, photo, small, classes=["a", "b", "c"])[0][1].dtype == torch.uint8
    with pytest.raises(
        ValueError, match=rf"wide.{ending} has the label \d00 at row \d, column \d, expected 0 … 2, or 255"
    ):
        one(tmp_path, photo, wide, classes=["a", "b", "c"])[0]


def test_labels_that_are_no_class(tmp_path: Path, photo: np.ndarray, labels: np.ndarray) -> None:
    labels = labels.copy()
    labels[3, 4] = 255
    assert one(tmp_path, photo, labels, classes=["a", "b", "c"])[0][1][3, 4] == 255
    with pytest.raises(ValueError, match=r"mask.png has the label 255 at row 3, column 4, expected 0 … 2 .the mask of"):
        one(tmp_path, photo, labels, classes=["a", "b", "c"], ignore_index=None)[0]
    negative = save(tmp_path / "n.npy", np.where(labels == 255, -1, labels.astype(np.int16)))
    with pytest.raises(ValueError, match="n.npy has the label -1 at row 3"):
        one(tmp_path, photo, negative, classes=["a", "b", "c"])[0]
    assert (one(tmp_path, photo, negative, classes=["a", "b", "c"], ignore_index=-1)[0][1] == -1).sum() == 1
    with pytest.raises(ValueError, match="expected class indices: integers"):
        one(tmp_path, photo, save(tmp_path / "f.npy", labels.astype(np.float32)))[0]
    with pytest.raises(ValueError, match=r"holds colours .*the mask of"):
        one(tmp_path, photo, photo)[0]


def test_jpegs_hold_no_labels(tmp_path: Path, photo: np.ndarray, labels: np.ndarray) -> None:
    for pixels, options in ((labels, {}), (photo, {"palette": ["red"]})):
        path = save(tmp_path / "mask.jpg", pixels)
        with pytest.raises(ValueError, match="mask.jpg is a JPEG, which alters"):
            one(tmp_path, photo, path, **options)[0]


@given(st.integers(0, 2**32 - 1), st.sampled_from([np.uint8, np.int32]), st.sampled_from([255, 0, 7, 300, -1]))
def test_reduce_zero_label(seed: int, dtype: Any, ignore: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 256, (40, 40)).astype(dtype)
    slow = [[ignore if v in (0, ignore) else v - 1 for v in row] for row in labels.tolist()]
    assert reduce_zero(labels, ignore).tolist() == slow


def test_ade20k(tmp_path: Path, photo: np.ndarray, labels: np.ndarray) -> None:
    dataset = one(tmp_path, photo, labels, reduce_zero_label=True, classes=["wall", "building"])
    assert np.array_equal(dataset[0][1].numpy(), np.array([255, 0, 1])[labels])


# --- colours


def slow_labels(pixels: np.ndarray, palette: dict[tuple[int, int, int], int]) -> list[list[int]]:
    return [[palette[tuple(rgb)] for rgb in row] for row in pixels.tolist()]


@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.booleans())
def test_colours_against_a_slow_reading(seed: int, count: int, extra: bool) -> None:
    rng = np.random.default_rng(seed)
    colours = np.unique(rng.integers(0, 256, (count, 3)).astype(np.uint8), axis=0)
    colours = rng.permutation(colours)
    palette = {tuple(map(int, c)): i for i, c in enumerate(colours)}
    pixels = colours[rng.integers(0, len(colours), (7, 8))]
    with tempfile.TemporaryDirectory() as place:
        path = save(Path(place) / "a.png", pixels)
        dataset = PairedFolder(path, path, palette=colours.tolist(), ignore_index=None)
        dataset = pickle.loads(pickle.dumps(dataset))
        mask = dataset[0][1]
        assert mask.tolist() == slow_labels(pixels, palette) and np.array_equal(dataset.colours, colours)
        assert dataset.num_classes == len(colours)
        if extra and len(palette) > 1:
            y, x = rng.integers(0, 7), rng.integers(0, 8)
            unknown = tuple(int(v) for v in pixels[y, x])
            del palette[unknown]
            first = np.argwhere((pixels == unknown).all(2))[0]
            expected = rf"a.png has the colour {unknown} at row {first[0]}, column {first[1]}, which".replace(
                "(", r"\("
            )
            with pytest.raises(ValueError, match=expected.replace(")", r"\)")):
                PairedFolder(path, path, palette=palette, ignore_index=None)[0]


def test_several_colours_of_a_class_names_and_ignored(tmp_path: Path, photo: np.ndarray, labels: np.ndarray) -> None:
    colours = np.array([[255, 0, 0], [128, 0, 0], [0, 0, 1], [0, 0, 0]], np.uint8)
    index = np.where(labels > 1, 3, labels)
    index[0, 0] = 2
    palette = {"#f00": "road", (128, 0, 0): "road", (0, 0, 1): 1, "black": 255}
    dataset = one(tmp_path, photo, colours[index], palette=palette, classes=["road", "car"])
    assert np.array_equal(dataset[0][1].numpy(), np.array([0, 0, 1, 255])[index])
    assert dataset.colours is not None and dataset.colours.tolist() == [[255, 0, 0], [0, 0, 1]]
    translucent = np.dstack([colours[index], np.full(labels.shape, 7, np.uint8)])
    assert torch.equal(one(tmp_path, photo, translucent, palette=palette, classes=["road", "car"])[0][1], dataset[0][1])
    with pytest.raises(ValueError, match="no 8-bit colours"):
        one(tmp_path, photo, labels.astype(np.uint16), palette=palette, classes=["road", "car"])[0]


# --- salient objects


def test_salient_masks_of_any_range(tmp_path: Path, photo: np.ndarray, labels: np.ndarray) -> None:
    soft = np.array([0, 120, 200], np.uint8)[labels]
    files = {
        "grey.png": soft,
        "ones.png": (labels == 2).astype(np.uint8),
        "wide.png": soft.astype(np.uint16) * 257,
        "grey.npy": soft,
        "float.npy": soft.astype(np.float64) / 255,
        "bool.npy": labels == 2,
        "long.npy": soft.astype(np.int64),
    }
    for name, pixels in files.items():
        path = save(tmp_path / name, pixels)
        dataset = one(tmp_path, photo, path, task="salient")
        assert (dataset.classes, dataset.num_classes, dataset.ignore_index) == (("object",), 1, None)
        mask = dataset[0][1]
        assert mask.dtype == torch.uint8 and np.array_equal(mask.numpy(), labels == 2), name
        mask = one(tmp_path, photo, path, task="salient", soft=True)[0][1]
        exact = labels == 2 if name in ("ones.png", "bool.npy") else soft / 255
        assert mask.dtype == torch.float32 and np.allclose(mask.numpy(), exact, atol=1e-7), name
    kept = one(tmp_path, photo, tmp_path / "grey.png", task="salient", ignore_index=120)[0][1]
    assert np.array_equal(kept.numpy(), np.array([0, 120, 1])[labels])
    for name, pixels in (("high.npy", soft * 1.0), ("long.npy", soft.astype(np.int64) * 2), ("rgb.png", photo)):
        with pytest.raises(ValueError, match=name):
            one(tmp_path, photo, save(tmp_path / name, pixels), task="salient")[0]


# --- the base


def test_samples_of_ones_own(tmp_path: Path, photo: np.ndarray, labels: np.ndarray) -> None:
    class Halved(SegmentationDataset):
        def read_image(self, path: Path) -> np.ndarray:
            return super().read_image(path)[::2, ::2]

        def read_mask(self, path: Path) -> np.ndarray:
            return super().read_mask(path)[::2, ::2]

    samples = [Sample("a", save(tmp_path / "a.png", photo), save(tmp_path / "m.png", labels))]
    colours = [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    options: dict[str, Any] = {"classes": ["a", "b", "c"], "ignore_index": 255, "colours": colours}
    dataset = Halved(samples, transforms=lambda image, mask: (image[:, 1:], mask[1:], "more"), **options)
    image, mask, more = dataset[0]
    assert np.array_equal(image.permute(1, 2, 0).numpy(), photo[::2, ::2][1:]) and more == "more"
    assert np.array_equal(mask.numpy(), labels[::2, ::2][1:]) and dataset.num_classes == 3
    for changed, words in (
        ({"colours": colours[:2]}, "2 rows, expected one for each of the 3"),
        ({"colours": [[0, 0, 256]] * 3}, "expected 0 … 255"),
        ({"colours": [[0.5, 0, 0]] * 3}, "expected integers"),
    ):
        with pytest.raises(ValueError, match=words):
            SegmentationDataset(samples, **{**options, **changed})
    with pytest.raises(ValueError, match="samples is empty"):
        SegmentationDataset([], **options)


# --- statistics of bands


@given(st.integers(0, 2**32 - 1), st.sampled_from(BANDS), st.sampled_from([None, 3]))
def test_band_statistics_against_numpy(seed: int, dtype: Any, nodata: int | None) -> None:
    rng = np.random.default_rng(seed)
    shapes = [(int(h), int(w), 3) for h, w in rng.integers(1, 6, (4, 2))]
    offset = 0 if dtype != np.float32 else 1e6  # where a careless variance cancels
    arrays = [(rng.integers(0, 20, shape) + offset).astype(dtype) for shape in shapes]
    with tempfile.TemporaryDirectory() as place:
        for i, array in enumerate(arrays):
            save(Path(place) / f"{i}.npy", array)
        dataset = PairedFolder(place, None)
        found = band_statistics(dataset, nodata=nodata)
        parts = [band_statistics(Subset(dataset, part), nodata=nodata) for part in ([3, 0], [1, 2])]
    assert parts[0].merge(parts[1]) == found if not any(map(math.isnan, found.minimum)) else True
    for band in range(3):
        values = np.concatenate([a[..., band].ravel() for a in arrays]).astype(np.float64)
        values = values[values != nodata] if nodata is not None else values
        assert found.count[band] == values.size
        if values.size:
            expected = values.mean(), values.std(), values.min(), values.max()
            got = [float(x[band]) for x in (found.mean, found.std, found.min, found.max)]
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def test_band_statistics_of_what_does_not_count(tmp_path: Path) -> None:
    array = np.array([[1.0, np.nan], [3.0, np.nan]], np.float32)[:, :, None].repeat(2, 2)
    array[:, :, 1] = np.nan
    dataset = PairedFolder(save(tmp_path / "a.npy", array), None)
    found = band_statistics(dataset, nodata=math.nan)
    assert found.count == (2, 0) and float(found.mean[0]) == 2 and float(found.std[0]) == 1
    assert math.isnan(found.mean[1]) and math.isnan(found.std[1])
    assert str(found).splitlines()[1].split() == ["0", "2", "1", "1", "3", "2"]
    with pytest.raises(ValueError, match="a.npy has values that are not finite"):
        band_statistics(dataset)
    other = PairedFolder(save(tmp_path / "b.npy", array[:, :, :1]), None)
    with pytest.raises(ValueError, match="b.npy has 1 bands and those before 2"):
        band_statistics(ConcatDataset([dataset, other]), nodata=math.nan)
    with pytest.raises(ValueError, match="one has 2 bands and the other 1"):
        found.merge(band_statistics(other, nodata=math.nan))
    with pytest.raises(TypeError, match="expected a SegmentationDataset"):
        band_statistics([array])  # type: ignore[arg-type]
    assert isinstance(found, BandStatistics)


@pytest.mark.data
def test_real_pictures_as_torchvision_reads_them(data: Path) -> None:
    folder = PairedFolder(data / "ecssd/images", data / "ecssd/masks", task="salient")
    assert len(folder) == 1000
    for index in (0, 500, 999):
        image, mask = folder[index]
        with Image.open(folder.samples[index].image) as plain:
            assert torch.equal(image, tv_tensors.Image(plain.convert("RGB")))
        with Image.open(folder.samples[index].mask) as plain:
            assert np.array_equal(mask.numpy(), np.asarray(plain.convert("L")) > 127)
