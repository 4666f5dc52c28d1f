"""Pictures decoded at a fraction of their size, and masks without the probabilities of all pixels: the same results."""

from __future__ import annotations

import copy
import io
import pickle
import struct
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageCms
from test_u2net import tiny

import segzoo
from segzoo.inference import Picture, picture, predict_folder, preprocess, read_picture
from segzoo.inference._masking import classes_at, mask_at
from segzoo.inference._resizing import resize_maps
from segzoo.inference.picture import SPARE, save_image
from segzoo.inference.preprocessing import normalise
from segzoo.weights import Preprocessing

LEAST = (20, 24)


def scene(height: int = 200, width: int = 310) -> Image.Image:
    """Smooth colours and one sharp square, no two corners alike."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 / width, y * 255 / height, 127 + 100 * np.sin(x / 30 + y / 50)], 2)
    pixels[height // 8 : height // 3, width // 6 : width // 2] = (250, 30, 60)
    return Image.fromarray(pixels.astype(np.uint8))


def jpeg(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 90, **options})
    return file.getvalue()


def read(content: bytes, least: int | tuple[int, int] | None = LEAST, channels: int = 3) -> Picture:
    return read_picture(io.BytesIO(content), in_channels=channels, at_least=least)


def is_reduced(found: Picture) -> bool:
    return found.seen((1, 1)).shape[:2] != found.size


def close(small: np.ndarray, whole: np.ndarray) -> bool:
    """Whether both show the same, compared where both are small."""
    side = (24, 24)
    a, b = (
        np.asarray(Image.fromarray(v.squeeze()).resize(side, Image.Resampling.BOX)).astype(int) for v in (small, whole)
    )
    return bool(np.abs(a - b).mean() < 4)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_fraction_shows_the_whole_picture_upright(mode: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = jpeg(scene().convert(mode), exif=exif, progressive=orientation % 2 == 0)
    for channels in (1, 3):
        whole, found = read(content, None, channels), read(content, channels=channels)
        assert is_reduced(found) and not is_reduced(whole)
        assert found.size == whole.size == ((310, 200) if orientation > 4 else (200, 310))
        seen = found.seen(LEAST)
        assert seen.shape[2] == channels and all(n >= SPARE * m for n, m in zip(seen.shape, LEAST))
        assert close(seen, whole.pixels)
        np.testing.assert_array_equal(found.pixels, whole.pixels)
        np.testing.assert_array_equal(found.rgb(), whole.rgb())
        assert found.alpha is None


@given(
    h=st.integers(1, 130),
    w=st.integers(1, 130),
    least=st.one_of(st.integers(1, 40), st.tuples(st.integers(1, 40), st.integers(1, 40))),
)
@settings(max_examples=60)
def test_a_fraction_of_any_size_is_enough(h: int, w: int, least: int | tuple[int, int]) -> None:
    content = jpeg(scene(h, w))
    found, whole = read(content, least), read(content, None)
    size = Preprocessing(size=least).size_for((h, w))
    seen = found.seen(size)
    assert found.size == (h, w)
    if is_reduced(found):
        assert all(n >= SPARE * m for n, m in zip(seen.shape, size))
        fraction = round(h / seen.shape[0]) if h >= w else round(w / seen.shape[1])
        assert all(abs(n * fraction - m) <= fraction / 2 for n, m in zip(seen.shape, (h, w)))
    else:
        np.testing.assert_array_equal(seen, whole.pixels)
        if isinstance(least, tuple):
            assert min(h / (2 * SPARE * least[0]), w / (2 * SPARE * least[1])) < 1
    np.testing.assert_array_equal(found.pixels, whole.pixels)
    rule = Preprocessing(size=least, scale="max")
    assert preprocess(found, rule).shape == preprocess(whole, rule).shape


def test_what_needs_more_than_the_fraction_gets_the_whole() -> None:
    content = jpeg(scene())
    found, whole = read(content), read(content, None)
    assert is_reduced(found)
    for size in [(150, 200), (200, 310), (400, 20)]:
        np.testing.assert_array_equal(found.seen(size), whole.pixels)
    rule = Preprocessing(size=(100, 120))
    torch.testing.assert_close(preprocess(found, rule), preprocess(whole, rule), atol=0, rtol=0)


def test_other_formats_and_small_pictures_are_decoded_as_ever() -> None:
    file = io.BytesIO()
    scene().save(file, "PNG")
    assert not is_reduced(read(file.getvalue()))
    assert not is_reduced(read_picture(scene(), at_least=LEAST))
    assert not is_reduced(read(jpeg(scene(60, 60))))
    assert not is_reduced(read(jpeg(scene()), None))


def test_a_profile_is_kept_and_several_pictures_in_one_file_are_the_first() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert read(jpeg(scene(), icc_profile=srgb)).icc_profile == srgb
    file = io.BytesIO()
    scene().save(file, "MPO", save_all=True, append_images=[scene(100, 100)], quality=90)
    with Image.open(io.BytesIO(file.getvalue())) as image:
        assert image.format == "MPO"
    found, whole = read(file.getvalue()), read(file.getvalue(), None)
    assert is_reduced(found) and close(found.seen(LEAST), whole.pixels)
    np.testing.assert_array_equal(found.pixels, whole.pixels)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_file_is_refused_at_once_with_the_same_words(progressive: bool) -> None:
    content = jpeg(scene(), progressive=progressive)
    for kept in [30, len(content) // 3, len(content) - 200, len(content) - 20, len(content) - 2]:
        told = []
        for least in (None, LEAST):
            try:
                read(content[:kept], least)
                told.append("")
            except ValueError as error:
                told.append(str(error))
        assert told[0] == told[1], kept
        assert kept > len(content) - 20 or "the stream is" in told[0]


@given(st.data())
@settings(max_examples=60)
def test_damaged_bytes_are_refused_now_or_never(data: st.DataObject) -> None:
    content = bytearray(jpeg(scene(90, 90), progressive=data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(2, len(content) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damaged metadata
        try:
            found = read(bytes(content))
        except ValueError as error:
            assert "the stream" in str(error)
            return
        assert found.pixels.shape[:2] == found.size


def test_the_file_may_change_or_go_away_after_it_was_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(scene()))
    expected = read_picture(path).pixels
    removed, changed = read_picture(path, at_least=LEAST), read_picture(path, at_least=LEAST)
    with path.open("rb") as file:
        closed = read_picture(file, at_least=LEAST)
    path.write_bytes(b"something else")
    np.testing.assert_array_equal(changed.pixels, expected)
    path.unlink()
    np.testing.assert_array_equal(removed.pixels, expected)
    np.testing.assert_array_equal(closed.pixels, expected)


def test_the_whole_is_decoded_once_by_whoever_asks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    found = read(jpeg(scene()))
    decoded, decode = [], picture._decode
    monkeypatch.setattr(picture, "_decode", lambda *a: decoded.append(a) or decode(*a))
    together = threading.Barrier(8)

    def ask(_: int) -> np.ndarray:
        together.wait()
        return found.pixels

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(ask, range(8)))
    assert len(decoded) == 1 and all(result is results[0] for result in results)


def test_pictures_travel() -> None:
    found = read(jpeg(scene()))
    for again in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found), copy.copy(found)):
        np.testing.assert_array_equal(again.pixels, found.pixels)
        assert again.size == found.size
    assert repr(found) == "Picture(200×310 pixels)"
    assert repr(Picture(np.zeros((1, 2, 3), np.uint8), np.zeros((1, 2), np.uint8))).endswith("with transparency)")


def test_a_warning_of_a_large_picture_comes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    with pytest.warns(Image.DecompressionBombWarning):
        found = read(jpeg(scene()))
    assert found.pixels.shape == (200, 310, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(ValueError, match="too large to open unasked"):
        read(jpeg(scene()))


@pytest.mark.parametrize("tta", [None, "flip", (0.5, 1.0, 2.0)])
def test_predictions_have_the_pictures_own_pixels(tta: object, tmp_path: Path) -> None:
    model = tiny()
    model.preprocessing = Preprocessing(size=(32, 32))
    predictor = segzoo.Predictor(model, tta=tta)
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(scene(600, 800)))
    found, whole = predictor(path), predictor(read_picture(path).pixels)
    assert is_reduced(found.picture)
    assert found.mask.shape == (600, 800)
    assert np.abs(found.probabilities - whole.probabilities).mean() < 0.01
    np.testing.assert_array_equal(np.asarray(found.cutout())[:, :, :3], whole.picture.pixels)
    path.unlink()
    assert found.refined().scores.shape == (1, 600, 800)
    tiled = segzoo.Predictor(model, tile=32)
    path.write_bytes(jpeg(scene(64, 96)))
    assert not is_reduced(tiled(path).picture)


def test_a_photo_enlarged_has_almost_the_same_mask(coffee: Path) -> None:
    with Image.open(coffee) as image:
        content = jpeg(image.resize((2400, 1600), Image.Resampling.BICUBIC))
    predictor = segzoo.Predictor("u2net_lite.duts")
    found, whole = predictor(io.BytesIO(content)), predictor(read(content, None).pixels)
    assert is_reduced(found.picture)
    assert (found.scores - whole.scores).abs().mean() < 0.003
    assert ((found.scores > 0.5) != (whole.scores > 0.5)).float().mean() < 0.003


def test_folders_of_large_pictures_and_broken_ones(tmp_path: Path) -> None:
    model = tiny()
    model.preprocessing = Preprocessing(size=(16, 16))
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(scene(300 + i, 200)))
    (tmp_path / "bad.jpg").write_bytes(jpeg(scene(300, 200))[:2000])
    report = predict_folder(segzoo.Predictor(model), tmp_path, tmp_path / "out", "cutout")
    assert [path.name for path in report.failed] == ["bad.jpg"] and len(report.written) == 3
    for source, target in report.written.items():
        with Image.open(target) as image:
            np.testing.assert_array_equal(np.asarray(image)[:, :, :3], read_picture(source).pixels)


# Preprocessing and results.


def test_normalise_leaves_what_it_is_given_and_is_the_formula() -> None:
    x = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    before, rule = x.clone(), Preprocessing(scale="max")
    found = normalise(x, rule, brightest=200)
    assert torch.equal(x, before)
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (rule.mean, rule.std))
    assert torch.equal(found, (before.float() / 200 - mean) / std)
    already = before.float()
    normalise(already, rule, brightest=200)
    assert torch.equal(already, before.float())


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_png_files_are_the_pictures(mode: str, tmp_path: Path) -> None:
    image = scene().convert("RGB").convert(mode) if mode != "RGBA" else scene().convert("RGBA")
    save_image(image, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as again:
        assert again.mode == mode
        np.testing.assert_array_equal(np.asarray(again), np.asarray(image))


MAPS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)),
    elements=st.floats(0, 1, width=32) | st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    fill=st.sampled_from([0.0, 0.5, 1.0]),
)
SIZES = st.tuples(st.integers(1, 300), st.integers(1, 600))


@given(maps=MAPS, size=SIZES, threshold=st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]), same=st.booleans())
@settings(max_examples=60)
def test_masks_are_the_probabilities_beyond_the_threshold(
    maps: np.ndarray, size: tuple[int, int], threshold: float, same: bool
) -> None:
    size = maps.shape[1:] if same else size
    full = resize_maps(maps, size)
    found = mask_at(maps, size, threshold)
    sure = np.abs(full - threshold) > 1e-6  # rounding decides the rest
    np.testing.assert_array_equal(found[sure], (full > threshold)[sure])
    classes, best = classes_at(maps, size), full.max(0)
    chosen = np.take_along_axis(full, classes[None].astype(int), 0)[0]
    assert classes.dtype == np.uint8 and (best - chosen < 1e-6).all()


def test_a_broken_tag_beside_the_orientation_turns_nothing_back(tmp_path: Path) -> None:
    """Rewriting such a block fails; reading the orientation does not."""
    exif = Image.Exif()
    exif[0x0112] = 6
    content = io.BytesIO()
    pixels = np.zeros((1400, 2000, 3), np.uint8)
    pixels[:700] = 255
    Image.fromarray(pixels).save(content, "JPEG", exif=_with_broken_unit(exif.tobytes()))
    whole = read_picture(io.BytesIO(content.getvalue()))
    small = read_picture(io.BytesIO(content.getvalue()), at_least=64)
    assert whole.size == small.size == (2000, 1400) == small.pixels.shape[:2]
    assert whole.pixels[:, :600].mean() < 5 and whole.pixels[:, 800:].mean() > 250  # what was on top lies right


def _with_broken_unit(exif: bytes) -> bytes:
    """The block with a ResolutionUnit that is text, which Pillow reads and cannot write."""
    order = ">" if exif[6:8] == b"MM" else "<"
    at = 6 + struct.unpack(f"{order}I", exif[10:14])[0]
    (count,) = struct.unpack(f"{order}H", exif[at : at + 2])
    entry = struct.pack(f"{order}HHI4s", 0x0128, 2, 4, b"abc\0")
    return exif[:at] + struct.pack(f"{order}H", count + 1) + exif[at + 2 : at + 2 + 12 * count] + entry + bytes(4)
