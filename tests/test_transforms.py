"""The presets: pictures and masks stay aligned, nothing is invented, chance is what was asked for."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage, stats
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from segzoo.inference import preprocess, read_picture
from segzoo.ops import resize
from segzoo.transforms import Normalization, SalientEval, SalientTrain, SemanticEval, SemanticTrain, denormalize
from segzoo.transforms._colour import adjust_colours, gaussian_blur
from segzoo.transforms._geometry import View, nearest
from segzoo.weights import get_weights
from segzoo.weights.catalog import Preprocessing

OFF: dict[str, Any] = {
    "scale": (1, 1), "hflip": 0, "rotation": 0, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "blur": 0,
}  # fmt: skip
COLOURS_OFF = dict.fromkeys(("brightness", "contrast", "saturation", "hue", "blur"), 0)
OUTSIDE = -1
SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


def ramp(height: int, width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A picture that says where each of its pixels is (in parts of 64), and a mask that numbers them."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return (torch.stack((y, x)) / 64).to(dtype), torch.arange(height * width).view(height, width)


def places(x: Tensor, target: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """What a transformed ramp says: where pixels are by the picture and by the mask, and which lie inside."""
    inside = target != OUTSIDE
    return x * 64, torch.stack((target // width, target % width)) + 0.5, inside


def inner(inside: Tensor, rim: int) -> Tensor:
    """Pixels with nothing but the picture around them."""
    return torch.from_numpy(ndimage.binary_erosion(inside.numpy(), np.ones((3, 3)), iterations=rim))


# Alignment


@given(
    size=SIZES,
    crop=SIZES,
    scale=st.tuples(st.floats(0.4, 3), st.floats(0.4, 3)).map(sorted),
    rotation=st.sampled_from([0, 10, 180]),
    hflip=st.sampled_from([0, 0.5, 1]),
    seed=st.integers(0, 2**31),
)
def test_picture_and_mask_show_the_same_places(
    size: tuple[int, int], crop: tuple[int, int], scale: list[float], rotation: int, hflip: float, seed: int
) -> None:
    image, mask = ramp(*size)
    torch.manual_seed(seed)
    transform = SemanticTrain(
        crop, scale=tuple(scale), rotation=rotation, hflip=hflip, **COLOURS_OFF, ignore_index=OUTSIDE, normalize="0_1"
    )
    x, target = transform(image, mask)
    assert x.shape == (2, *crop) and target.shape == crop and target.dtype == torch.int64
    seen, centres, inside = places(x, target, size[1])
    shrunk = max(1.0, *(round(length / scale[0]) / length for length in crop))
    # The picture at a place is a mean of neighbours: at a rim of those that there are.
    assert ((seen - centres).abs() <= 0.5 + shrunk)[:, inside].all()
    away = inner(inside, 2)
    assert ((seen - centres).abs() <= 0.5 + 2e-3)[:, away].all()
    assert (x[:, ~inside] == 0).all()


@pytest.mark.parametrize("angle", [0.0, 7.0, -33.0, 90.0, 180.0])
@pytest.mark.parametrize("hflip", [False, True])
@pytest.mark.parametrize(
    ("window", "size"), [((3, -4, 20, 30), (41, 60)), ((-5, 2, 33, 17), (33, 17)), ((8, 9, 11, 8), (30, 30))]
)
def test_a_view_is_what_float64_says(
    window: tuple[int, int, int, int], size: tuple[int, int], angle: float, hflip: bool, rng: np.random.Generator
) -> None:
    """By the definition, pixel by pixel: rotate the centre, take the pixel below it and the mean of the four around."""
    image, mask = rng.random((3, 24, 31)), rng.integers(0, 2**40, (24, 31))
    view = View(*window, size, angle, hflip)
    x, labels, outside = view(torch.from_numpy(image).float(), torch.from_numpy(mask))
    top, left, height, width = window
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    # Interpolation of a window that is not turned ends at its rim, of a turned one at the picture's.
    low, high = ((top, left), (top + height, left + width)) if angle == 0 else ((0, 0), (24, 31))
    v = (((np.arange(size[0]) + 0.5) / size[0] - 0.5) * height)[:, None]
    u = ((np.arange(size[1]) + 0.5) / size[1] - 0.5) * width * (-1 if hflip else 1)
    y, x_ = top + height / 2 + cosine * v + sine * u, left + width / 2 + cosine * u - sine * v
    sure = (abs(y - np.round(y)) > 1e-4) & (abs(x_ - np.round(x_)) > 1e-4)  # not between two pixels
    inside = (y >= 0) & (y < 24) & (x_ >= 0) & (x_ < 31)
    found = np.zeros(size, bool) if outside is None else outside.numpy()
    np.testing.assert_array_equal(found[sure], ~inside[sure])
    sure &= inside
    assert sure.sum() > 50
    y, x_ = y[sure], x_[sure]
    np.testing.assert_array_equal(labels.numpy()[sure], mask[np.floor(y).astype(int), np.floor(x_).astype(int)])
    expected = np.zeros((3, len(y)))
    for row in (np.floor(y - 0.5), np.floor(y - 0.5) + 1):
        for column in (np.floor(x_ - 0.5), np.floor(x_ - 0.5) + 1):
            weight = (1 - abs(y - 0.5 - row)) * (1 - abs(x_ - 0.5 - column))
            i = row.clip(low[0], high[0] - 1).clip(0, 23).astype(int)
            j = column.clip(low[1], high[1] - 1).clip(0, 30).astype(int)
            expected += weight * image[:, i, j]
    np.testing.assert_allclose(x.numpy()[:, sure], expected, atol=2e-5)


@pytest.mark.parametrize("angle", [0.0, 3.0])
def test_what_shrinks_does_not_alias(angle: float) -> None:
    """A fine chessboard is even grey from far away; a coarse sampling of it would flicker."""
    board = (torch.arange(200)[:, None] + torch.arange(200)) % 2
    x, _, _ = View(0, 0, 200, 200, (40, 40), angle)(board[None].float(), None)
    assert (x[:, 4:-4, 4:-4] - 0.5).abs().max() < 0.02


@given(size=SIZES, smaller=SIZES)
def test_nearest_takes_the_pixel_below_the_centre(size: tuple[int, int], smaller: tuple[int, int]) -> None:
    _, mask = ramp(*size)
    rows, columns = ([((2 * i + 1) * old) // (2 * new) for i in range(new)] for old, new in zip(size, smaller))
    assert torch.equal(nearest(mask, smaller), mask[rows][:, columns])


@given(size=SIZES, labels=st.sampled_from([2, 20, 256]), seed=st.integers(0, 2**31), rotation=st.sampled_from([0, 30]))
def test_painted_labels_stay_under_their_paint(size: tuple[int, int], labels: int, seed: int, rotation: int) -> None:
    """Each label has a grey of its own, in blocks; all labels are there, 255, ignored, too."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, labels, (-(-size[0] // 8), -(-size[1] // 8))).astype(np.uint8)
    mask = torch.from_numpy(np.kron(blocks, np.ones((8, 8), np.uint8))[: size[0], : size[1]])
    torch.manual_seed(seed)
    transform = SemanticTrain((48, 56), rotation=rotation, **COLOURS_OFF, normalize="0_1")
    x, target = transform(mask.expand(3, -1, -1), mask)
    assert set(target.unique().tolist()) <= {*mask.unique().tolist(), 255}
    paint = x[0] * 255
    # A neighbour beyond the crop may be of any label.
    most, least = (
        of_neighbours(target.numpy(), 5, mode="constant", cval=-1)
        for of_neighbours in (ndimage.maximum_filter, ndimage.minimum_filter)
    )
    smooth = torch.from_numpy(most == least)
    outside = (x == 0).all(0)
    assert ((paint - target).abs() < 1e-3)[smooth & ~outside].all()
    assert (target == 255)[outside & (target != 0)].all()


@given(size=SIZES, result=st.tuples(st.integers(1, 3), st.integers(1, 3)), channels=st.integers(1, 4))
def test_pictures_of_8_bits_shrink_to_a_pixel(size: tuple[int, int], result: tuple[int, int], channels: int) -> None:
    """As contiguous floating values do: torch's filter is wrong one pixel wide, for 8 bits and for channels last."""
    image, transform = (
        torch.randint(256, (2, channels, *size), dtype=torch.uint8),
        SemanticEval(result, normalize="0_1"),
    )
    last = image.contiguous(memory_format=torch.channels_last)
    expected = resize(image.reshape(-1, 1, *size) / 255, result).view(2, channels, *result)
    for picture in (image, last, image / 255, last / 255):
        torch.testing.assert_close(transform(picture), expected, atol=1.1 / 255, rtol=0)


@pytest.mark.parametrize("rotation", [0, 10])
@pytest.mark.parametrize("scale", [0.001, 0.004, 0.05])
def test_windows_may_be_vast(scale: float, rotation: int) -> None:
    """What is seen of the picture lies in one place, as large as it should be; nothing else is made."""
    image, mask = torch.full((3, 375, 500), 128, dtype=torch.uint8), torch.ones(375, 500, dtype=torch.uint8)
    torch.manual_seed(0)
    transform = SemanticTrain(512, scale=(scale, scale), rotation=rotation, **COLOURS_OFF, normalize="-1_1")
    for _ in range(3):
        x, target = transform(image, mask)
        inside = target == 1
        assert abs(int(inside.sum()) - 375 * 500 * scale**2) <= 2 * (875 * scale + 1)
        assert (target[~inside] == 255).all() and (x[:, ~inside] == 0).all()
        torch.testing.assert_close(x[:, inside], torch.full_like(x[:, inside], 1 / 255), atol=1e-5, rtol=0)


def test_a_vast_window_is_what_a_smaller_one_shows() -> None:
    """The other way of making it shows the same places."""
    image, mask = ramp(128, 96)
    view = View(-400, -500, 1064, 1048, (133, 131))
    x, labels, outside = view(image, mask)
    torch.testing.assert_close(labels[~outside], view._straight(image, mask)[1][~outside])
    expected, _, same = view._straight(image, None)
    assert torch.equal(outside, same)
    inside = inner(~outside, 2)
    assert inside.sum() >= 64
    torch.testing.assert_close((x * 64)[:, inside], (expected * 64)[:, inside], atol=0.05, rtol=0)


def test_what_shrinks_and_turns_is_right_to_its_rim() -> None:
    """A turned view well inside a ramp: its corners too see pixels that the filter finds all neighbours of."""
    image, mask = ramp(300, 320)
    view = View(60, 70, 160, 160, (20, 20), 30.0)
    x, labels, outside = view(image, mask)
    assert outside is None
    y, x_ = view._coordinates(image.device)
    torch.testing.assert_close(x * 64, torch.stack((y, x_)), atol=0.05, rtol=0)
    assert torch.equal(labels, mask[y.long(), x_.long()])


def test_half_planes_are_cut_at_the_same_line(rng: np.random.Generator) -> None:
    """Bilinear interpolation of a step is above the middle exactly where the nearest pixel is on the high side."""
    compared = 0
    for _ in range(30):
        step = torch.zeros(60, 70, dtype=torch.uint8)
        step[:, int(rng.integers(20, 50)) :] = 1
        step = step.mT if rng.random() < 0.5 else step
        transform = SemanticTrain(64, scale=(1, 2.5), rotation=45, **COLOURS_OFF, normalize="0_1")
        x, target = transform(step.expand(3, -1, -1) * 255, step)
        sure = (target != 255) & ((x[0] - 0.5).abs() > 2e-3)
        assert torch.equal(x[0][sure] > 0.5, target[sure] == 1)
        compared += int(((x[0] > 0) & (x[0] < 1) & sure).sum())
    assert compared > 1000  # pixels between the two sides, where half a pixel would show


def test_outside_is_zero_and_mixed_into_nothing() -> None:
    """Bright on dark ground would show any mixing of what is outside."""
    image, mask = torch.full((3, 20, 30), 200, dtype=torch.uint8), torch.full((20, 30), 7, dtype=torch.uint8)
    inside_value = SemanticEval()(image)[:, :1, :1]
    for rotation in (0, 25):
        x, target = SemanticTrain(64, rotation=rotation, **COLOURS_OFF, ignore_index=-100)(image, mask)
        inside = target == 7
        assert inside.any() and (target[~inside] == -100).all()
        assert (x[:, ~inside] == 0).all()
        assert torch.allclose(x[:, inside], inside_value[:, 0], atol=1e-5)


def test_without_augmentation_training_is_evaluation(rng: np.random.Generator) -> None:
    image = torch.from_numpy(rng.integers(0, 256, (3, 20, 30), dtype=np.uint8))
    mask = torch.from_numpy(rng.integers(0, 256, (20, 30), dtype=np.uint8))
    for normalize in ("imagenet", "-1_1", get_weights("u2net_lite.duts").preprocessing):
        found, expected = (t(image, mask) for t in (
            SemanticTrain((20, 30), **OFF, normalize=normalize), SemanticEval(normalize=normalize)
        ))  # fmt: skip
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    found, expected = SalientTrain(None, None, hflip=0)(image, mask % 2), SalientEval(None)(image, mask % 2)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@given(size=SIZES, vflip=st.integers(0, 1), hflip=st.integers(0, 1), seed=st.integers(0, 2**31))
def test_salient_training_keeps_pairs(size: tuple[int, int], vflip: int, hflip: int, seed: int) -> None:
    torch.manual_seed(seed)
    image, mask = ramp(*size)[0], torch.rand(size) < 0.5
    transform = SalientTrain((32, 48), (24, 40), hflip=hflip, vflip=vflip, normalize="0_1")
    for dtype in (torch.bool, torch.uint8):
        x, target = transform(image, mask.to(dtype))
        assert x.shape == (2, 24, 40) and target.shape == (1, 24, 40) and target.dtype == torch.float32
        # Where the picture grows its ramp says which pixel it was; which rows were cropped is not known otherwise.
        if size[0] <= 32 and size[1] <= 48:
            rows, columns = ((x[0, :, 0] * 64), (x[1, 0] * 64))
            sure = (rows - rows.round()).abs()[:, None] > 1e-3
            sure = sure & ((columns - columns.round()).abs() > 1e-3)
            expected = mask[rows.long().clamp_max(size[0] - 1)][:, columns.long().clamp_max(size[1] - 1)]
            assert torch.equal(target[0][sure] == 1, expected[sure])
    soft, seen = torch.rand(size), transform
    state = torch.get_rng_state()
    _, target = seen(image, soft)
    torch.set_rng_state(state)
    _, of_picture = seen(soft.expand(1, *size), soft)
    picture = seen.__class__((32, 48), (24, 40), hflip=hflip, vflip=vflip, normalize="0_1")
    torch.set_rng_state(state)
    x = picture(soft[None])
    assert torch.equal(target, of_picture) and torch.allclose(x, target, atol=1e-6)


# What comes in and goes out


@given(
    size=SIZES,
    channels=st.integers(1, 5),
    dtype=st.sampled_from(
        [torch.uint8, torch.uint16, torch.int16, torch.bool, torch.float16, torch.float32, torch.float64]
    ),
    labels=st.sampled_from([torch.bool, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.int64]),
    batch=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 2**31),
)
def test_any_size_channels_and_dtype(
    size: tuple[int, int], channels: int, dtype: torch.dtype, labels: torch.dtype, batch: int | None, seed: int
) -> None:
    torch.manual_seed(seed)
    lead = () if batch is None else (batch,)
    image = torch.rand(*lead, channels, *size)
    if not dtype.is_floating_point:
        image = image * (1 if dtype == torch.bool else torch.iinfo(dtype).max)
    image, mask = image.to(dtype), (torch.rand(*lead, *size) < 0.5).to(labels)
    kept = image.clone(), mask.clone()
    for transform, shape, target_shape, kind in (
        (SemanticTrain((17, 13)), (17, 13), (17, 13), torch.int64),
        (SemanticEval((9, 7)), (9, 7), size, torch.int64),
        (SemanticEval(5, resize_mask=True), None, None, torch.int64),
        (SalientTrain(16, 12), (12, 12), (1, 12, 12), torch.float32),
        (SalientEval(16), (16, 16), (1, *size), torch.float32),
    ):
        x, target = transform(image, mask)
        assert x.dtype == torch.float32 and target.dtype == kind and x.isfinite().all()
        if shape is None:
            shape = target_shape = tuple(5 * side // min(size) for side in size)
        assert x.shape == (*lead, channels, *shape) and target.shape == (*lead, *target_shape)
        assert transform(image).shape == x.shape
        assert x.is_contiguous() and type(x) is Tensor and type(target) is Tensor
        assert set(target.unique().tolist()) <= {0, 1, 255}
    assert torch.equal(image, kept[0]) and torch.equal(mask, kept[1])


PRESETS: dict[str, Callable[[], Any]] = {
    "semantic train": lambda: SemanticTrain((24, 20), rotation=30, blur=0.5, max_class_share=0.9),
    "semantic eval": lambda: SemanticEval((24, 20), resize_mask=True),
    "salient train": lambda: SalientTrain(32, 24, vflip=0.5, normalize=get_weights("u2net_lite.duts").preprocessing),
    "salient eval": lambda: SalientEval(32, resize_mask=True),
}


def noise(count: int = 5, *, kind: torch.dtype = torch.uint8) -> tuple[Tensor, Tensor]:
    torch.manual_seed(99)
    images = torch.randint(256, (count, 3, 30, 40), dtype=torch.uint8)
    return images if kind == torch.uint8 else images / 255, (torch.rand(count, 30, 40) < 0.6).to(torch.uint8)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_a_batch_is_its_pictures_one_after_the_other(name: str, kind: torch.dtype) -> None:
    images, masks = noise(kind=kind)
    transform = PRESETS[name]()
    torch.manual_seed(1)
    x, target = transform(images, masks)
    torch.manual_seed(1)
    for i in range(len(images)):
        alone = transform(images[i], masks[i])
        assert torch.equal(x[i], alone[0]) and torch.equal(target[i], alone[1])
    torch.manual_seed(1)
    with_channel = transform(images, masks[:, None])
    assert torch.equal(with_channel[0], x) and torch.equal(with_channel[1], target)
    if "train" in name:
        same = images[:1].expand(8, -1, -1, -1)
        assert len({transform(same)[i].sum().item() for i in range(8)}) > 5  # draws of their own


@pytest.mark.parametrize("name", PRESETS)
def test_all_kinds_of_pictures_are_one(name: str) -> None:
    images, masks = noise(1)
    image, mask, transform = images[0], masks[0], PRESETS[name]()
    pictures = Image.fromarray(image.permute(1, 2, 0).numpy()), Image.fromarray(mask.numpy())
    palette = pictures[1].copy()
    palette.putpalette([0, 0, 0, 200, 10, 20])
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side: turned by a quarter when shown
    sideways = pictures[0].transpose(Image.Transpose.ROTATE_90)
    sideways.getexif()[0x0112] = 6
    given = {
        "PIL": pictures,
        "palette": (pictures[0], palette),
        "mode 1": (pictures[0], Image.fromarray(mask.bool().numpy())),
        "EXIF": (sideways, pictures[1]),
        "strided": (image.permute(1, 2, 0).contiguous().permute(2, 0, 1), mask.mT.contiguous().mT),
        "int64": (image, mask.long()),
        "tv_tensors": (tv_tensors.Image(image), tv_tensors.Mask(mask)),
    }
    torch.manual_seed(2)
    expected = transform(image, mask)
    for kind, pair in given.items():
        torch.manual_seed(2)
        found = transform(*pair)
        for ours, wanted, wrapper in zip(found, expected, (tv_tensors.Image, tv_tensors.Mask)):
            assert torch.equal(ours, wanted), kind
            assert type(ours) is (wrapper if kind == "tv_tensors" else Tensor)
            assert ours.is_contiguous()


def test_further_transforms_of_torchvision_follow() -> None:
    """They flip picture and mask together, because both are still what they were."""
    images, masks = noise(1)
    pair = tv_tensors.Image(images[0]), tv_tensors.Mask(masks[0])
    flipped = v2.Compose([SemanticEval(), v2.RandomHorizontalFlip(1.0)])(*pair)
    plain = SemanticEval()(images[0], masks[0])
    assert torch.equal(flipped[0], plain[0].flip(-1)) and torch.equal(flipped[1], plain[1].flip(-1))


# Normalisation


@pytest.mark.parametrize("record", ["u2net_lite.duts", "deeplabv3_resnet50.coco_voc", "isnet.general"])
def test_evaluation_is_what_the_predictor_does(record: str, rng: np.random.Generator) -> None:
    preprocessing = get_weights(record).preprocessing
    kind = SemanticEval if isinstance(preprocessing.size, int) else SalientEval
    transform = kind(preprocessing.size, normalize=preprocessing)
    # Black, dark and bright: the largest value counts where "max" does.
    for height, width, dark in ((1, 1, 1), (60, 90, 70), (700, 333, 200), (320, 320, 256), (200, 1100, 2)):
        pixels = rng.integers(0, dark, (height, width, 3), dtype=np.uint8)
        expected = preprocess(read_picture(pixels), preprocessing)
        strided = torch.from_numpy(pixels).permute(2, 0, 1)
        for image in (Image.fromarray(pixels), strided, strided.contiguous()):
            assert torch.equal(transform(image), expected)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_other_channels_are_what_the_predictor_does(channels: int, rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (50, 61, channels), dtype=np.uint8)
    for base in (Preprocessing(size=(40, 37)), Preprocessing(size=(80, 90), scale="max")):
        preprocessing = base.for_channels(channels)
        expected = preprocess(read_picture(pixels, in_channels=channels), preprocessing)
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        assert torch.equal(SalientEval(preprocessing.size, normalize=preprocessing)(image), expected)
        if base.scale == "255":  # "imagenet" is extended in the same way
            assert torch.equal(SemanticEval(preprocessing.size)(image), expected)


def test_sizes_of_evaluation() -> None:
    images, masks = noise(1)
    assert SemanticEval()(images[0]).shape == (3, 30, 40)
    assert SemanticEval(15)(images[0]).shape == (3, 15, 20)
    assert SemanticEval((15, 15))(images[0]).shape == (3, 15, 15)
    assert SalientEval(15)(images[0]).shape == (3, 15, 15)
    assert torch.equal(SemanticEval(15)(images[0], masks[0])[1], masks[0].long())
    small = SemanticEval(15, resize_mask=True)(images[0], masks[0])[1]
    assert torch.equal(small, masks[0, 1::2, 1::2].long())
    soft = torch.rand(30, 40, dtype=torch.float64)
    assert torch.equal(SalientEval(20)(images[0], soft)[1], soft[None].float())
    small = SalientEval(20, resize_mask=True)(images[0], soft)[1]
    assert torch.equal(small, resize(soft[None, None].float(), (20, 20))[0])
    above = False
    for size in range(8, 20):
        above |= bool(resize(torch.ones(1, 1, 37, 50), (size, size)).max() > 1)
        assert SalientEval(size, resize_mask=True)(torch.ones(3, 37, 50), torch.ones(37, 50))[1].max() == 1
        assert SalientTrain(size, None)(torch.ones(3, 37, 50), torch.ones(37, 50))[1].max() == 1
    assert above  # else nothing was tried


@pytest.mark.parametrize(
    "normalize",
    ["imagenet", "0_1", "-1_1", ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), (0.5, 0.25), SimpleNamespace(mean=[0.4], std=[2])],
)
def test_every_value_comes_back(normalize: Any) -> None:
    image = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, -1, -1)
    assert torch.equal(denormalize(SemanticEval(normalize=normalize)(image), normalize), image)
    assert torch.equal(SemanticEval(normalize=normalize)(image), SemanticEval(normalize=normalize)(image / 255))
    wide = image.to(torch.int32).mul(257).to(torch.uint16)
    assert torch.equal(denormalize(SemanticEval(normalize=normalize)(wide), normalize), image)
    batch = SemanticEval(normalize=normalize)(image[None].expand(2, -1, -1, -1))
    assert torch.equal(denormalize(batch, normalize)[1], image)


def test_ranges_of_named_normalisations() -> None:
    image = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 2)
    for name, low, high in (("0_1", 0, 1), ("-1_1", -1, 1)):
        assert SemanticEval(normalize=name)(image).flatten().tolist() == [low, high]
    x = SemanticEval()(image.expand(3, 1, 2))
    assert torch.equal(x, tv.normalize(image.expand(3, 1, 2) / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


def test_bands_in_their_own_unit(rng: np.random.Generator) -> None:
    bands = torch.from_numpy(rng.normal(3000, 800, (6, 20, 30)))
    mean, std = bands.mean((1, 2)), bands.std((1, 2))
    own = Normalization(mean, std, scale=None)
    x = SemanticEval(normalize=own)(bands)
    np.testing.assert_allclose(x.numpy(), ((bands - mean[:, None, None]) / std[:, None, None]).numpy(), atol=1e-4)
    np.testing.assert_allclose(denormalize(x, own).numpy(), bands.numpy(), rtol=1e-5)
    assert Normalization.of(SimpleNamespace(mean=mean, std=std, scale=None)) == own
    for kind in (torch.int32, torch.int16, torch.uint16):
        assert torch.equal(
            SemanticEval(normalize=own)(bands.to(kind)), SemanticEval(normalize=own)(bands.to(kind).float())
        )
    x, target = SemanticTrain(64, normalize=own)(bands, torch.zeros(20, 30, dtype=torch.uint8))
    assert (x[:, target == 255] == 0).all() and x.abs().max() < 6


@pytest.mark.parametrize("channels", [1, 3])
def test_bands_in_their_own_unit_are_not_recoloured(channels: int, rng: np.random.Generator) -> None:
    """Heights of 2000 ± 10 m, times a factor, would be heights of another country."""
    heights = torch.from_numpy(rng.normal(2000, 10, (channels, 20, 30)))
    own = Normalization(heights.mean((1, 2)), heights.std((1, 2)), scale=None)
    strong = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.5}
    x = SemanticTrain((20, 30), **OFF | strong, normalize=own)(heights)
    assert torch.equal(x, SemanticEval(normalize=own)(heights))
    x = SemanticTrain(16, scale=(1, 1), rotation=0, normalize=own)(heights.expand(20, -1, -1, -1))
    assert x.mean((1, 2, 3)).abs().max() < 0.5 and x.abs().max() < 6  # blurred at most


def test_rounding_out_of_0_to_1_is_cut() -> None:
    """As torchvision's Resize leaves a white picture: a ten-millionth above 1."""
    white = torch.ones(3, 37, 50)
    for excess in (1e-7, 9e-4):
        for value, exact in ((1 + excess, 1.0), (-excess, 0.0)):
            image, mask = white * value, white[0] * value
            assert torch.equal(Normalization.of("0_1")(image), white * exact)
            for transform in (SemanticEval(normalize="0_1"), SemanticTrain((37, 50), **OFF, normalize="0_1")):
                assert torch.equal(transform(image), white * exact)
            for salient in (SalientEval(None, normalize="0_1"), SalientTrain(None, None, normalize="0_1")):
                x, target = salient(image, mask)
                assert torch.equal(x, white * exact) and torch.equal(target, white[:1] * exact)
            assert image[0, 0, 0] == mask[0, 0] == torch.tensor(value)  # not in place
    resized = [v2.functional.resize(torch.ones(3, 375, 500), [200 + i, 300 + i]) for i in range(5)]
    for image in resized:
        assert SalientEval(None)(image, image[0])[1].max() <= 1
    for value, shown in ((1.0011, "1.0011"), (-0.0011, "-0.0011"), (1.5, "1.5")):
        with pytest.raises(ValueError, match=rf"image is torch.float32 and holds .*{shown}, expected|{shown} to 0"):
            SemanticEval()(torch.tensor([0, value]).view(1, 1, 2))
        with pytest.raises(ValueError, match=rf"mask is torch.float32 and holds .*{shown}, expected|{shown} to 0"):
            SalientEval(None)(torch.zeros(1, 1, 2), torch.tensor([[0, value]]))


def test_largest_value_is_that_of_each_picture() -> None:
    normalize = Normalization((0.0,), (1.0,), "max")
    images = torch.stack([torch.full((3, 4, 4), value, dtype=torch.uint8) for value in (0, 1, 50, 255)])
    images[:, 0] //= 2
    assert SemanticEval(normalize=normalize)(images).amax((1, 2, 3)).tolist() == [0, 1, 1, 1]
    assert SemanticEval(normalize=normalize)(images / 255).amax((1, 2, 3)).tolist() == pytest.approx([0, 1, 1, 1])


# Colours and blur


def test_colours_are_torchvisions_where_nothing_is_cut(rng: np.random.Generator) -> None:
    image = torch.from_numpy(rng.uniform(0.35, 0.6, (3, 20, 30))).float()
    for factor in (0.7, 1.0, 1.3):
        for name in ("brightness", "contrast", "saturation"):
            expected = getattr(tv, f"adjust_{name}")(image, factor)
            torch.testing.assert_close(adjust_colours(image, **{name: factor}), expected, atol=2e-4, rtol=0)
    one = tv.adjust_brightness(tv.adjust_contrast(tv.adjust_saturation(image, 0.8), 1.2), 1.1)
    other = tv.adjust_saturation(tv.adjust_contrast(tv.adjust_brightness(image, 1.1), 1.2), 0.8)
    for expected in (one, other):  # order makes no difference
        torch.testing.assert_close(adjust_colours(image, 1.1, 1.2, 0.8), expected, atol=3e-4, rtol=0)
    grey = image[:1]
    for name in ("brightness", "contrast"):
        expected = getattr(tv, f"adjust_{name}")(grey, 1.2)
        torch.testing.assert_close(adjust_colours(grey, **{name: 1.2}), expected, atol=1e-6, rtol=0)
    assert adjust_colours(image * 2, 2.0).max() == 1 and adjust_colours(image * 2, 2.0, white=9).max() > 1
    bands = torch.rand(4, 5, 6)
    assert adjust_colours(bands, 2.0, 2.0, 2.0, 0.5) is bands


def test_hue_turns_colours_and_keeps_luma_and_grey(rng: np.random.Generator) -> None:
    image = torch.from_numpy(rng.uniform(0.3, 0.7, (3, 20, 30))).float()
    luma = image.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    red = torch.tensor([0.6, 0.5, 0.5]).view(3, 1, 1)
    for turn in (-0.5, -0.2, 0.05, 1 / 3):
        turned = adjust_colours(image, hue=turn)
        torch.testing.assert_close((turned * luma).sum(0), (image * luma).sum(0))
        back = adjust_colours(turned, hue=-turn)
        torch.testing.assert_close(back, image)
        grey = image[:1].expand(3, -1, -1)
        torch.testing.assert_close(adjust_colours(grey, hue=turn), grey)
        # The angle about the grey axis, in float64.
        chroma = adjust_colours(red, hue=turn).flatten().double()
        angle = math.atan2(math.sqrt(3) * float(chroma[1] - chroma[2]), float(2 * chroma[0] - chroma[1] - chroma[2]))
        assert math.remainder(angle / (2 * math.pi) - turn, 1) == pytest.approx(0, abs=1e-5)
    assert adjust_colours(red, hue=1 / 3).flatten().argmax() == 1  # towards green


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.3, 2.0, 6.0])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (30, 40)])
def test_blur_is_scipys(size: tuple[int, int], sigma: float, rng: np.random.Generator) -> None:
    image = rng.random((2, *size))
    radius = max(1, math.ceil(3 * sigma))
    expected = ndimage.gaussian_filter(image, sigma, mode="nearest", radius=(0, radius, radius))
    kept = torch.from_numpy(image).clone()
    np.testing.assert_allclose(gaussian_blur(kept.float(), sigma).numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("sigma", [5e-324, 1e-200, 1e-3])
def test_a_blur_of_nearly_nothing_is_none(sigma: float) -> None:
    image = torch.rand(3, 5, 6)
    assert torch.equal(gaussian_blur(image, sigma), image)


def test_colours_leave_the_target_and_the_outside_alone() -> None:
    images, masks = noise(1)
    torch.manual_seed(0)
    x, target = SemanticTrain(64)(images[0], masks[0])
    torch.manual_seed(0)
    plain, same = SemanticTrain(64, **COLOURS_OFF)(images[0], masks[0])
    assert torch.equal(target, same) and not torch.equal(x, plain)
    assert (x[:, target == 255] == 0).all() and (target == 255).any()


# Chance


@pytest.mark.parametrize("name", ["semantic train", "salient train"])
def test_seeds_reproduce_and_only_torchs_generator_counts(name: str) -> None:
    images, masks = noise()
    transform = PRESETS[name]()
    torch.manual_seed(5)
    first = transform(images, masks)
    second = transform(images, masks)
    torch.manual_seed(5)
    np.random.seed(0)  # noqa: NPY002
    again = transform(images, masks)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize("kind", [partial(SemanticTrain, 24), partial(SalientTrain, 32, 24)])
def test_a_generator_of_ones_own(kind: Any) -> None:
    images, masks = noise()
    torch.manual_seed(7)
    expected = kind()(images, masks)
    state = torch.get_rng_state()
    found = kind(generator=torch.Generator().manual_seed(7))(images, masks)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_switched_off_leaves_the_rest_as_it_was() -> None:
    image, mask = ramp(60, 60)
    for off in ({"hflip": 0}, {"blur": 0}, {"hue": 0}):
        torch.manual_seed(3)
        both = SemanticTrain(24, normalize="0_1")(image, mask)[1]
        torch.manual_seed(3)
        found = SemanticTrain(24, normalize="0_1", **off)(image, mask)[1]
        assert torch.equal(found, both) or torch.equal(found.flip(-1), both)


class Same(Dataset[Any]):
    """One picture, many times, as the data sets give it."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        image, mask = ramp(40, 60)
        return self.transform(tv_tensors.Image(image), tv_tensors.Mask((mask % 2).to(torch.uint8)))


@pytest.mark.parametrize("transform", [SemanticTrain(24), SalientTrain(96, 48)], ids=["semantic", "salient"])
def test_workers_draw_for_themselves(transform: Any) -> None:
    def epochs() -> list[Tensor]:
        torch.manual_seed(11)
        loader = DataLoader(Same(transform), batch_size=2, num_workers=2)
        batches = [batch for _ in range(2) for batch in loader]
        assert type(batches[0][0]) is Tensor and batches[0][1].shape[0] == 2
        return [x for batch, _ in batches for x in batch]

    first = epochs()
    assert len({x.numpy().tobytes() for x in first}) == 16
    assert all(torch.equal(a, b) for a, b in zip(first, epochs()))


def test_chance_is_what_was_asked_for() -> None:
    """Seen from the outside: a ramp's slopes say by how much it was enlarged, turned, flipped, and from where."""
    torch.manual_seed(0)
    image, _ = ramp(60, 50)
    transform = SemanticTrain(20, scale=(0.5, 2.0), rotation=30, hflip=0.3, **COLOURS_OFF, normalize="0_1")
    across, down = [], []
    for x in transform(image.expand(1500, -1, -1, -1)).double() * 64:
        across.append(((x[:, 10, 12] - x[:, 10, 7]) / 5).tolist())
        down.append(((x[:, 12, 10] - x[:, 7, 10]) / 5).tolist())
    slopes = np.stack((across, down), -1)  # [N, (y, x), (across, down)]
    flipped = np.linalg.det(slopes) > 0
    assert stats.binomtest(int(flipped.sum()), 1500, 0.3).pvalue > 0.01
    angles = np.degrees(np.arctan2(-slopes[:, 1, 1], slopes[:, 0, 1]))
    assert stats.kstest(angles, stats.uniform(-30, 60).cdf).pvalue > 0.01
    scales = 1 / np.linalg.norm(slopes[:, :, 1], axis=1)
    assert np.abs(scales).max() < 2.01 and scales.min() > 0.49
    # The window has whole pixels, which is what uniform scales are rounded to.
    expected = 20 / np.round(20 / np.random.default_rng(1).uniform(0.5, 2, 100_000))
    assert stats.ks_2samp(np.round(scales, 2), np.round(expected, 2)).pvalue > 0.01


def test_windows_and_crops_lie_anywhere() -> None:
    torch.manual_seed(0)
    image, mask = ramp(13, 11)
    large = SemanticTrain((8, 16), **OFF, ignore_index=OUTSIDE, normalize="0_1")
    targets = large(image.expand(1800, -1, -1, -1), mask.expand(1800, -1, -1))[1].numpy()
    assert set((targets != OUTSIDE).sum((1, 2))) == {8 * 11}
    counts = np.zeros((6, 6))  # the window's first row, and columns to the left of the picture
    np.add.at(counts, (targets[:, 0].max(1) // 11, (targets[:, 0] != OUTSIDE).argmax(1)), 1)
    assert stats.chisquare(counts.ravel()).pvalue > 0.01
    crops = SalientTrain(None, (8, 6), hflip=0, normalize="0_1")(image.expand(1800, -1, -1, -1))
    corners = np.rint(crops[:, :, 0, 0].numpy() * 64 - 0.5).astype(int)
    counts = np.zeros((6, 6))
    np.add.at(counts, tuple(corners.T), 1)
    assert stats.chisquare(counts.ravel()).pvalue > 0.01


def test_flips_of_salient_training_are_counted() -> None:
    torch.manual_seed(0)
    x = SalientTrain(None, None, hflip=0.2, vflip=0.7, normalize="0_1")(ramp(4, 4)[0].expand(2000, -1, -1, -1))
    vertical, horizontal = (x[:, 0, 0, 0] > x[:, 0, 3, 0]), (x[:, 1, 0, 0] > x[:, 1, 0, 3])
    assert stats.binomtest(int(vertical.sum()), 2000, 0.7).pvalue > 0.01
    assert stats.binomtest(int(horizontal.sum()), 2000, 0.2).pvalue > 0.01
    assert stats.binomtest(int((vertical & horizontal).sum()), 2000, 0.14).pvalue > 0.01


def test_crops_of_one_class_are_rare_if_asked_for() -> None:
    image, mask = torch.zeros(3, 60, 60), torch.zeros(60, 60, dtype=torch.uint8)
    mask[30:, 30:] = 1
    mask[0] = 255

    def share(count: int = 200, **settings: Any) -> list[float]:
        transform, shares = SemanticTrain(20, **OFF | settings), []
        for seed in range(count):
            torch.manual_seed(seed)
            target = transform(image, mask)[1]
            shares.append(max((target == label).sum().item() for label in (0, 1)) / (target != 255).sum().item())
        return shares

    plain, varied = np.array(share()), np.array(share(max_class_share=0.75))
    assert np.mean(plain > 0.75) > 0.7 and np.mean(varied > 0.75) < 0.4
    assert np.array_equal(plain[plain <= 0.75], varied[plain <= 0.75])  # fine at once: as it was
    # Ignored pixels are no class, and not of those that count: here they are most, and the two classes are as many.
    mask = torch.full((60, 60), 255, dtype=torch.uint8)
    mask[::3, ::2], mask[1::3, ::2] = 0, 1
    assert share(40) == share(40, max_class_share=0.6)
    # Half of what counts is one class, all of it where the rest is ignored: there another window is looked for.
    mask = torch.zeros(60, 60, dtype=torch.uint8)
    mask[:, ::2] = 255
    mask[30:, 1::4] = 1
    plain, varied = np.array(share(60)), np.array(share(60, max_class_share=0.7))
    assert np.mean(plain > 0.7) > 0.5 and np.mean(varied > 0.7) < 0.2
    blank = torch.full((60, 60), 255, dtype=torch.uint8)
    assert (SemanticTrain(20, max_class_share=0.5)(image, blank)[1] == 255).all()


# Odds and ends


@pytest.mark.parametrize("name", PRESETS)
def test_settings_are_shown_and_travel(name: str) -> None:
    transform = PRESETS[name]()
    text = repr(transform)
    assert text.startswith(type(transform).__name__ + "(") and "normalize=Normalization(mean=(0.485" in text
    images, masks = noise(2)
    torch.manual_seed(0)
    expected = transform(images, masks)
    torch.manual_seed(0)
    assert torch.equal(pickle.loads(pickle.dumps(transform))(images, masks)[0], expected[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size is 0, expected a whole number of pixels, or two: height and width"),
        ({"size": (3, 4, 5)}, r"size is \(3, 4, 5\), expected a whole number"),
        ({"size": 2.5}, "size is 2.5, expected a whole number"),
        ({"size": "32"}, "size is '32', expected a whole number"),
        ({"scale": (2, 0.5)}, r"scale is \(2, 0.5\), expected two positive numbers, the lower first"),
        ({"scale": 1.0}, "scale is 1.0, expected two positive numbers"),
        ({"scale": (1e-5, 1)}, r"scale is \(1e-05, 1\), expected factors of at least 0.001"),
        ({"scale": (0, 1)}, r"scale is \(0, 1\), expected two positive numbers"),
        ({"hflip": 1.5}, "hflip is 1.5, expected a number from 0 to 1"),
        ({"hflip": True}, "hflip is True, expected a number from 0 to 1"),
        ({"rotation": -3}, "rotation is -3, expected a number from 0 to 180"),
        ({"brightness": float("nan")}, "brightness is nan, expected a number of at least 0"),
        ({"contrast": "much"}, "contrast is 'much', expected a number of at least 0"),
        ({"saturation": float("inf")}, "saturation is inf, expected a number of at least 0"),
        ({"hue": 0.6}, "hue is 0.6, expected a number from 0 to 0.5"),
        ({"blur": -0.1}, "blur is -0.1, expected a number from 0 to 1"),
        ({"blur_sigma": (0, 2)}, r"blur_sigma is \(0, 2\), expected two positive numbers"),
        ({"max_class_share": 2}, "max_class_share is 2, expected a number from 0 to 1"),
        ({"ignore_index": 2.0}, "ignore_index is 2.0, expected a whole number"),
        ({"normalize": "imagnet"}, "unknown normalization 'imagnet': did you mean 'imagenet'?"),
        ({"normalize": 3}, "normalize is 3, expected 'imagenet', '0_1', '-1_1', a pair"),
        ({"normalize": ((0.5,), (0.0,))}, r"std is \(0.0,\), expected numbers above 0"),
        ({"normalize": ((0.5, 0.5), (1.0,))}, "mean has 2 numbers and std 1, expected as many"),
        ({"normalize": (("a",), (1.0,))}, r"mean is \('a',\), expected a finite number for each channel"),
        ({"normalize": SimpleNamespace(mean=0, std=1, scale="256")}, "unknown scale '256'"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SemanticTrain(**{"size": 8, **arguments})


def test_wrong_pictures_are_named() -> None:
    images, masks = noise(2)
    semantic, salient = SemanticEval(), SalientEval(8)
    for transform, pair, message in (
        (semantic, (images[0, 0], None), r"image is torch.uint8 \[30, 40\], expected \[C, H, W\] or"),
        (semantic, (images[:0], None), r"\[0, 3, 30, 40\], expected .* with pixels"),
        (semantic, (images[0], masks), r"mask is torch.uint8 \[2, 30, 40\], which is no mask \[H, W\] of the image"),
        (semantic, (images, masks[:1]), r"no mask \[N, H, W\] of the image \[2, 3, 30, 40\]"),
        (semantic, (images[0], masks[0].mT), r"mask is torch.uint8 \[40, 30\]"),
        (semantic, (images[0], masks[0].float()), "mask is torch.float32, expected integers, the labels"),
        (semantic, (images[0].int(), None), "image is torch.int32, expected uint8, uint16, int16 or floating"),
        (semantic, (images[0].float(), None), r"holds 0 to 255, expected values in 0…1 \(divide by 255"),
        (semantic, (torch.full((3, 2, 2), torch.nan), None), "holds nan to nan, expected values in 0…1"),
        (semantic, (images[0] + 0j, None), r"image is torch.complex64"),
        (SemanticEval(normalize=((0, 0), (1, 1))), (images[0], None), "of 2 channels, but the picture has 3"),
        (semantic, (Image.new("CMYK", (4, 4)), None), "image is a PIL image of mode CMYK, expected RGB or L"),
        (semantic, (images[0], Image.new("RGB", (40, 30))), "mask is a PIL image of mode RGB, expected 1 or L or P"),
        (
            salient,
            (images[0], masks[0] * 255),
            r"mask is torch.uint8 and holds 255, expected 0 and 1 \(divide by 255, or ignore_index=255 if such",
        ),
        (salient, (images[0], -masks[0].long()), "mask is torch.int64 and holds -1, expected 0 and 1"),
        (salient, (images[0], masks[0] * 1.5), "mask is torch.float32 and holds 0 to 1.5, expected values in 0…1$"),
        (salient, (images[0], masks[0] * 255.0), r"holds 0 to 255, expected values in 0…1 \(divide by 255\)$"),
        (salient, (images[0], masks[0].int() * 1234567), "holds 1234567, expected 0 and 1$"),
        (salient, (images[0], masks[0] * torch.nan), "holds nan to nan, expected values in 0…1"),
        (SalientEval(8, ignore_index=9), (images[0], masks[0] * 255), "holds 255, expected 0 and 1 and 9"),
        (SalientTrain(None, 50), (images[0], None), r"image is \[30, 40\], smaller than crop, \(50, 50\)"),
    ):
        with pytest.raises(ValueError, match=message):
            transform(*pair)
    with pytest.raises(TypeError, match="image is a ndarray, expected a tensor or a PIL image"):
        semantic(images[0].numpy())
    with pytest.raises(TypeError, match="mask is a list, expected a tensor or a PIL image"):
        semantic(images[0], [1, 2])
    with pytest.raises(ValueError, match=r"crop is \(9, 9\), which is larger than resize, \(8, 8\)"):
        SalientTrain(8, 9)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_what_comes_back_is_ones_own(kind: torch.dtype, wrapped: bool) -> None:
    """An in-place change of a result must not reach what was given, whatever it needed no change for."""
    image, labels, soft = torch.rand(3, 24, 20).to(kind), torch.ones(24, 20, dtype=torch.int64), torch.rand(24, 20)
    kept = image.clone(), labels.clone(), soft.clone()
    cases = [(SemanticEval((24, 20), resize_mask=resize_mask), labels) for resize_mask in (False, True)]
    cases += [(SalientEval((24, 20), resize_mask=resize_mask), soft) for resize_mask in (False, True)]
    cases += [(SemanticTrain((24, 20), **OFF), labels), (SalientTrain(None, None, hflip=0), soft)]
    for transform, mask in cases:
        transform.normalize = Normalization((0.0,), (1.0,), None)
        for lead in ((), (1,)):
            pair = image.view(*lead, 3, 24, 20), mask.view(*lead, 24, 20)
            pair = (tv_tensors.Image(pair[0]), tv_tensors.Mask(pair[1])) if wrapped else pair
            for part in transform(*pair):
                part.fill_(7)
            assert torch.equal(image, kept[0]) and torch.equal(labels, kept[1]) and torch.equal(soft, kept[2])


def test_salient_masks_may_have_an_ignored_label() -> None:
    images, masks = noise(1)
    masks[0, :5] = 255
    for transform in (SalientEval(None, ignore_index=255), SalientTrain(None, None, hflip=0, ignore_index=255)):
        assert torch.equal(transform(images[0], masks[0])[1], masks.float())


@pytest.mark.gpu
@pytest.mark.parametrize("name", PRESETS)
def test_gpu_sees_the_same(name: str) -> None:
    images, masks = noise()
    for kind in (images, images / 255):
        torch.manual_seed(1)
        expected = PRESETS[name]()(kind, masks)
        torch.manual_seed(1)
        found = PRESETS[name]()(kind.cuda(), masks.cuda())
        assert found[0].is_cuda and found[1].is_cuda
        assert (found[1].cpu() != expected[1]).float().mean() < 1e-3  # centres between two pixels
        torch.testing.assert_close(found[0].cpu(), expected[0], atol=0.04, rtol=0)
