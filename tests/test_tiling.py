"""Windows over a picture: blended as written out by hand, exact where the model sees no further than the margin."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from segzoo import u2net_lite
from segzoo.inference import multi_scale, preprocess, read_picture, sliding_window
from segzoo.inference.tiling import check_tiling

pytestmark = pytest.mark.usefixtures("one_thread")

BLENDS = ("gaussian", "constant")


def convolutions(radius: int, in_channels: int = 2, classes: int = 2) -> nn.Sequential:
    """Zero padded, with biases, and a receptive radius of exactly so many pixels."""
    torch.manual_seed(radius)
    layers: list[nn.Module] = [nn.Conv2d(in_channels, 4, 1)]
    for _ in range(radius):
        layers += [nn.Conv2d(4, 4, 3, padding=1), nn.Tanh()]
    return nn.Sequential(*layers, nn.Conv2d(4, classes, 1)).requires_grad_(False)


def by_hand(
    model: Callable[[Tensor], Tensor],
    x: np.ndarray,
    size: int,
    overlap: float,
    margin: int,
    blend: str,
    multiple: int,
) -> np.ndarray:
    """One picture ``[C, H, W]``: a weight map for every window, their sum, and a division, in float64."""
    height, width = x.shape[-2:]
    stride = max(1, int(round(size * (1 - overlap), 6)))
    grid = next(multiple // 2**i for i in range(9) if multiple // 2**i <= stride)
    stride -= stride % grid

    def starts(side: int) -> list[int]:
        last = int(np.ceil(max(0, side - size) / grid)) * grid
        return sorted({min(i * stride, last) for i in range(side)})

    total: np.ndarray | float = 0.0
    weights = np.zeros((height, width))
    for top in starts(height):
        for left in starts(width):
            rows, columns = min(size, height - top), min(size, width - left)
            y, z = np.mgrid[:rows, :columns].astype(np.float64)
            weight = np.ones((rows, columns))
            if blend == "gaussian":
                weight = np.exp(-((y - (rows - 1) / 2) ** 2) / (2 * (rows / 8) ** 2))
                weight = weight * np.exp(-((z - (columns - 1) / 2) ** 2) / (2 * (columns / 8) ** 2))
            inside = np.ones((rows, columns), bool)
            inside &= (y >= margin) | (top == 0)
            inside &= (y < rows - margin) | (top + rows == height)
            inside &= (z >= margin) | (left == 0)
            inside &= (z < columns - margin) | (left + columns == width)
            place = (slice(top, top + rows), slice(left, left + columns))
            (logits,) = model(torch.from_numpy(x[None])[:, :, place[0], place[1]]).numpy()
            weighted = np.zeros((len(logits), height, width))
            weighted[:, place[0], place[1]] = logits * (weight * inside)
            weights[place] += weight * inside
            total = total + weighted
    return total / weights


tilings = st.tuples(
    st.integers(1, 12), st.sampled_from([0, 0.2, 0.25, 0.5, 0.7, 0.8]), st.integers(0, 3), st.sampled_from(BLENDS)
)


def allowed(size: int, overlap: float, margin: int) -> int:
    """The margin, or the largest there may be."""
    return min(margin, (size - max(1, int(round(size * (1 - overlap), 6)))) // 2)


@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    tiling=tilings,
    batch_size=st.sampled_from([1, 2, 5]),
    multiple=st.sampled_from([1, 2, 3, 4, 32]),
    seed=st.integers(0, 99),
)
def test_it_is_the_blend_written_out(
    height: int, width: int, tiling: tuple[int, float, int, str], batch_size: int, multiple: int, seed: int
) -> None:
    size, overlap, margin, blend = tiling
    margin = allowed(size, overlap, margin)
    x = np.random.default_rng(seed).normal(size=(2, height, width))
    model = convolutions(4)  # looks further than the margin: each window has another opinion
    found = sliding_window(
        model, torch.from_numpy(x).float(), size, overlap, margin, blend, batch_size=batch_size, multiple=multiple
    )
    assert found.shape == (2, height, width) and found.dtype == torch.float32
    expected = by_hand(model.double(), x, size, overlap, margin, blend, multiple)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-6)


@given(
    batch=st.integers(1, 2),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    radius=st.integers(0, 3),
    more=st.integers(0, 9),
    overlap=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.66, 0.9]),
    blend=st.sampled_from(BLENDS),
    batch_size=st.sampled_from([1, 3, 8]),
)
def test_exact_where_the_margin_covers_what_the_model_sees(
    batch: int, height: int, width: int, radius: int, more: int, overlap: float, blend: str, batch_size: int
) -> None:
    """Up to the picture's own rim, where windows are zero padded as the whole picture is."""
    size = next(
        s for s in range(2 * radius + 1 + more, 99) if allowed(s, max(overlap, 0.1 * (radius > 0)), 9) >= radius
    )
    overlap = max(overlap, 0.1 * (radius > 0))
    model, x = convolutions(radius), torch.randn(batch, 2, height, width)
    found = sliding_window(model, x, size, overlap, radius, blend, batch_size=batch_size)
    torch.testing.assert_close(found, model(x), atol=1e-5, rtol=0)


class Strided(nn.Module):
    """Sees four pixels as one on its way; a receptive radius below 12."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(nn.functional.max_pool2d(self.first(x), 4, ceil_mode=True))
        return nn.functional.interpolate(y, scale_factor=4)[..., : x.shape[-2], : x.shape[-1]]


@given(
    height=st.integers(1, 130), width=st.integers(1, 130), size=st.integers(36, 70), batch_size=st.sampled_from([1, 3])
)
def test_exact_with_strides_where_windows_begin_on_their_grid(
    height: int, width: int, size: int, batch_size: int
) -> None:
    model, x = Strided().requires_grad_(False), torch.randn(1, 1, height, width)
    found = sliding_window(model, x, size, 0.7, 12, multiple=4, batch_size=batch_size)
    torch.testing.assert_close(found, model(x), atol=1e-5, rtol=0)


def test_off_the_grid_of_strides_it_would_not_be() -> None:
    """What `multiple` is for; its default serves strides up to 32."""
    model, x = Strided().requires_grad_(False), torch.randn(1, 1, 202, 202)
    assert (sliding_window(model, x, 64, margin=12, multiple=1) - model(x)).abs().max() > 0.1
    torch.testing.assert_close(sliding_window(model, x, 64, margin=12), model(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("blend", BLENDS)
def test_exact_with_the_default_margin(blend: str) -> None:
    model, x = convolutions(4), torch.randn(1, 2, 70, 111)
    expected = model(x)
    torch.testing.assert_close(sliding_window(model, x, 32, blend=blend), expected, atol=1e-5, rtol=0)
    too_small = sliding_window(model, x, 32, 0.5, 2, blend)
    assert (too_small - expected).abs().max() > 1e-4


def test_one_window_as_large_as_the_picture_is_the_model() -> None:
    model, x = convolutions(3), torch.randn(2, 2, 9, 14)
    for size in ((9, 14), 14, 1000):
        assert torch.equal(sliding_window(model, x, size, batch_size=2), model(x))


@given(height=st.integers(1, 20), width=st.integers(1, 20), tiling=tilings, value=st.floats(-10, 10, width=32))
def test_what_is_the_same_in_every_window_stays_so(
    height: int, width: int, tiling: tuple[int, float, int, str], value: float
) -> None:
    size, overlap, margin, blend = tiling
    found = sliding_window(
        lambda x: torch.full_like(x, value), torch.zeros(1, 1, height, width), size, overlap, None, blend
    )
    torch.testing.assert_close(found, torch.full((1, 1, height, width), value))


@given(size=st.integers(1, 300), overlap=st.floats(0, 0.99), length=st.integers(1, 900))
def test_defaults_always_fit_and_the_overlap_is_at_least_that(size: int, overlap: float, length: int) -> None:
    (window, _), (stride, _), (margin, _) = check_tiling(size, overlap)
    assert window == size and 1 <= stride <= size and 0 <= margin <= size // 8
    assert stride == 1 or stride <= size * (1 - overlap) + 1e-5
    assert stride + 2 * margin <= size
    check_tiling(size, overlap, (size - stride) // 2)
    with pytest.raises(ValueError, match=f"choose at most {(size - stride) // 2}"):
        check_tiling(size, overlap, (size - stride) // 2 + 1)


def test_windows_begin_at_multiples_of_the_stride_and_the_last_end_with_the_picture() -> None:
    positions = torch.arange(100.0).expand(1, 1, 3, 100)
    seen: list[int] = []

    def model(x: Tensor) -> Tensor:
        seen.extend(x[:, 0, 0, 0].int().tolist())
        return x

    def starts(*arguments: object, **options: object) -> list[int]:
        seen.clear()
        sliding_window(model, positions, *arguments, **options)  # type: ignore[arg-type]
        return seen

    assert starts((3, 40), 0.5, multiple=1) == [0, 20, 40, 60]
    assert starts((3, 42), 0.5, multiple=1, batch_size=3) == [0, 21, 42, 58]
    assert starts((3, 10), 0.8, multiple=1)[:3] == [0, 2, 4]
    assert starts((3, 40), 0.5) == [0, 16, 32, 48, 64]  # a stride of 20 begins on 16
    assert starts((3, 42), 0.2, multiple=8) == [0, 32, 64]
    assert starts((3, 64), 0.5, multiple=8) == [0, 32, 40]


def test_what_is_not_finite_in_the_margin_does_not_count() -> None:
    def model(x: Tensor) -> Tensor:
        y = x.clone()
        y[..., 0], y[..., -1] = float("nan"), float("inf")
        return y

    found = sliding_window(model, torch.zeros(1, 1, 3, 50), (3, 16), 0.5, (0, 2))
    assert found[..., 1:-1].isfinite().all() and not found[..., 0].isfinite().any()


def test_height_and_width_have_their_own_windows_and_margins() -> None:
    shapes = set()

    def model(x: Tensor) -> Tensor:
        shapes.add(tuple(x.shape))
        y = torch.zeros_like(x)
        y[:, :, :2] = y[:, :, -2:] = 1
        return y

    found = sliding_window(model, torch.zeros(1, 1, 40, 60), (12, 30), 0.5, (2, 0), batch_size=2, multiple=1)
    assert {shape[2:] for shape in shapes} == {(12, 30)} and max(shape[0] for shape in shapes) == 2
    assert not found[:, :, 2:-2].any() and found[:, :, :2].all()


SOURCES: dict[str, Callable[[np.ndarray], object]] = {
    "array": lambda a: a,
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "other byte order": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "strided": lambda a: np.repeat(a, 2, 1)[:, ::2],
    "backwards": lambda a: a[::-1].copy()[::-1],
    "tensor": lambda a: torch.from_numpy(a).permute(2, 0, 1),
    "batch": lambda a: torch.from_numpy(a).permute(2, 0, 1)[None],
}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64", "float16"])
@pytest.mark.parametrize("source", SOURCES)
def test_pictures_in_any_form(source: str, dtype: str, rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (33, 40, 3)).astype(dtype)
    model = convolutions(1, in_channels=3)
    expected = model(torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None] / 255)
    found = sliding_window(model, SOURCES[source](pixels), 16, prepare=lambda w: w.float() / 255)
    assert found.shape == (expected.shape if source == "batch" else expected.shape[1:])
    torch.testing.assert_close(found.reshape(expected.shape), expected, atol=1e-5, rtol=0)
    if dtype.startswith("float"):  # as they are, they go to the type of the model
        found = sliding_window(model, SOURCES[source]((pixels / 255).astype(dtype)), 16)
        torch.testing.assert_close(found.reshape(expected.shape), expected, atol=1e-3, rtol=0)


def test_a_grey_array() -> None:
    found = sliding_window(nn.Identity(), np.arange(20, dtype=np.float32).reshape(4, 5), 3)
    torch.testing.assert_close(found, torch.arange(20.0).reshape(1, 4, 5))


def test_only_windows_of_the_picture_are_read_and_little_memory_is_held(tmp_path: Path) -> None:
    """A mapped picture and result; what the model is given is a window each, and gone when the next comes."""
    pixels = np.memmap(tmp_path / "x", np.uint8, "w+", shape=(300, 400, 3))
    pixels[:] = np.random.default_rng(0).integers(0, 256, pixels.shape)
    read: list[tuple[int, ...]] = []

    class Watched(np.memmap):
        def astype(self, *args: object, **options: object) -> np.ndarray:
            read.append(self.shape)
            return super().astype(*args, **options)

        def __array__(self, *args: object, **options: object) -> np.ndarray:
            raise AssertionError("converted as a whole")

    seen: list[weakref.ref[Tensor]] = []
    alive = []

    def prepare(windows: Tensor) -> Tensor:
        assert windows.dtype == torch.uint8 and windows.shape[1:] == (3, 64, 64) and len(windows) <= 4
        seen.append(weakref.ref(windows))
        alive.append(sum(one() is not None for one in seen))
        return windows.float() / 255

    out = np.memmap(tmp_path / "y", np.float32, "w+", shape=(2, 300, 400))
    out[:] = np.nan  # what was there before does not count
    model = convolutions(2, in_channels=3)
    found = sliding_window(model, pixels.view(Watched), 64, batch_size=4, multiple=1, prepare=prepare, out=out)
    assert set(read) == {(64, 64, 3)} and len(seen) == -(-len(read) // 4) and max(alive) <= 2
    assert found.data_ptr() == out.ctypes.data
    expected = model(torch.from_numpy(pixels / 255).float().permute(2, 0, 1)[None])[0]
    torch.testing.assert_close(torch.from_numpy(out), expected, atol=1e-5, rtol=0)


def test_out_is_used_whatever_is_in_it() -> None:
    model, x = convolutions(1), torch.randn(2, 2, 30, 20)
    expected = model(x)
    out = torch.full((2, 2, 30, 20), float("nan"))
    assert sliding_window(model, x, 12, out=out) is out
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    narrow = torch.empty(30, 20, 2, dtype=torch.bfloat16).permute(2, 0, 1)
    assert sliding_window(model, x[1], 12, out=narrow).dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), expected[1], atol=0.05, rtol=0)
    backing = np.empty((30, 20, 2), np.float64)
    sliding_window(model, x[1], 12, out=np.moveaxis(backing, 2, 0))
    torch.testing.assert_close(torch.from_numpy(backing).permute(2, 0, 1).float(), expected[1], atol=1e-5, rtol=0)


def test_the_result_lies_where_it_is_asked_for() -> None:
    model, x = convolutions(0), torch.randn(1, 2, 9, 9)
    assert sliding_window(model, x, 4, device="cpu").device.type == "cpu"
    assert sliding_window(model, x, 4, device="meta").device.type == "meta"


def test_padding_gives_the_model_one_size_only() -> None:
    model, x = convolutions(2), torch.randn(1, 2, 9, 30)
    shapes = set()

    def fixed(windows: Tensor) -> Tensor:
        shapes.add(tuple(windows.shape))
        return model(windows)

    found = sliding_window(fixed, x, 16, batch_size=2, pad=True)
    assert shapes == {(2, 2, 16, 16)} and found.shape == (1, 2, 9, 30)
    # Zeros beside a picture are what a convolution pads with, but for the biases of layers before.
    torch.testing.assert_close(found[:, :, :7, :28], model(x)[:, :, :7, :28], atol=1e-5, rtol=0)
    sliding_window(fixed, torch.randn(1, 2, 3, 3), 16, batch_size=2, pad=True)
    assert len(shapes) == 1


def test_an_exported_program_of_one_size() -> None:
    model, x = convolutions(2), torch.randn(1, 2, 20, 37)
    program = torch.export.export(model.eval(), (torch.zeros(2, 2, 16, 16),)).module()
    found = sliding_window(program, x, 16, batch_size=2, pad=True)
    torch.testing.assert_close(found[..., :18, :35], model(x)[..., :18, :35], atol=1e-5, rtol=0)
    small = sliding_window(program, x[..., :5, :6], 16, batch_size=2, pad=True)
    assert small.shape == (1, 2, 5, 6)


def test_models_with_several_outputs_stay_in_train_mode() -> None:
    class SideOutputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(convolutions(1), nn.BatchNorm2d(2), nn.Dropout(0.5))

        def forward(self, x: Tensor) -> Tensor | list[Tensor]:
            y = self.net(x)
            return [y, y * 2] if self.training else y

    model, x = SideOutputs().train(), torch.randn(2, 2, 20, 20)
    model.net[1].eval()
    found = sliding_window(model, x, 8)
    assert model.training and model.net[2].training and not model.net[1].training
    torch.testing.assert_close(found, model.eval()(x), atol=1e-5, rtol=0)
    assert not found.requires_grad
    for output in (lambda x: [x, x + 1], lambda x: {"out": x}, lambda x: x[:, :, ::2, ::2]):
        assert sliding_window(output, x, 8).shape == x.shape
    model.train()
    with pytest.raises(RuntimeError):
        sliding_window(model, x[:, :1], 8)
    assert model.training


def test_a_model_that_works_in_place_does_not_change_the_picture() -> None:
    x = torch.randn(1, 1, 12, 12)
    kept = x.clone()
    found = sliding_window(lambda windows: windows.relu_(), x, 12)
    assert torch.equal(x, kept) and torch.equal(found, kept.relu())


def test_narrow_models_and_autocast() -> None:
    model, x = convolutions(2), torch.randn(1, 2, 40, 30)
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = sliding_window(model, x, 16)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)
    found = sliding_window(model.bfloat16(), x, 16)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)


def test_a_model_of_the_zoo_nearly_agrees_with_itself(coffee: Path) -> None:
    """Its receptive field is larger than any margin: results are near where windows show the whole object."""
    model = u2net_lite()
    x = preprocess(read_picture(coffee), replace(model.preprocessing, size=(96, 128)))[None]
    found, expected = sliding_window(model, x, (96, 120)), model.predict(x)
    assert model.training and expected.max() > 0.9
    assert (model.probabilities(found) - expected).abs().mean() < 0.1


def test_windows_inside_scales() -> None:
    model, x = convolutions(2), torch.randn(1, 2, 30, 40)
    found = multi_scale(lambda scaled: sliding_window(model, scaled, 16, 0.5, 4), x, (0.5, 1.0, 1.5))
    torch.testing.assert_close(found, multi_scale(model, x, (0.5, 1.0, 1.5)), atol=1e-5, rtol=0)


def test_errors_say_what_was_given() -> None:
    model, x = convolutions(0), torch.randn(1, 2, 8, 8)
    for size in (0, -3, 4.0, True, (4, 0), (4, 4, 4), "4", None):
        with pytest.raises(ValueError, match=r"size must be a positive int or a pair of them \(height, width\), got"):
            sliding_window(model, x, size)
    for overlap in (1, -0.1, 1.5, float("nan"), "half", True):
        with pytest.raises(ValueError, match="overlap must be a number from 0 to less than 1, got"):
            sliding_window(model, x, 4, overlap)
    for margin in (-1, 0.5, (1, -1)):
        with pytest.raises(ValueError, match="margin must be an int of at least 0 or a pair of them"):
            sliding_window(model, x, 4, 0.5, margin)
    sentence = (
        r"^margin is 2, but beyond 1 there are pixels that count in no window of 4×4 with overlap 0.5: choose at most "
        "1, or a larger overlap$"
    )
    with pytest.raises(ValueError, match=sentence):
        sliding_window(model, x, 4, 0.5, 2)
    with pytest.raises(ValueError, match=r"choose at most \(1, 2\)"):
        sliding_window(model, x, (4, 8), 0.5, 2)
    with pytest.raises(ValueError, match=r"unknown blend 'gausian': did you mean 'gaussian'\?"):
        sliding_window(model, x, 4, blend="gausian")
    with pytest.raises(ValueError, match="batch_size must be a positive int, got 0"):
        sliding_window(model, x, 4, batch_size=0)
    for shape in ((8, 8), (1, 2, 0, 8), (1, 1, 2, 8, 8)):
        with pytest.raises(ValueError, match=r"x is a tensor \[.*\], expected \[N, C, H, W\] or \[C, H, W\]"):
            sliding_window(model, torch.zeros(shape), 4)
    with pytest.raises(ValueError, match=r"x is an array \[1, 2, 8, 8\], expected \[H, W\] or \[H, W, C\]"):
        sliding_window(model, x.numpy(), 4)
    with pytest.raises(TypeError, match="x is str, expected a tensor or an array; segzoo.Predictor takes pictures"):
        sliding_window(model, "photo.jpg", 4)
    for whole in (x.to(torch.uint8), x[0].numpy().astype(np.int16)):
        with pytest.raises(
            TypeError, match="x is .*int.*, and a model takes normalised floating point values: pass prep"
        ):
            sliding_window(model, whole, 4)
    with pytest.raises(ValueError, match=r"prepare must return windows of .* \[1, 2, 4, 4\], got \[1, 2, 2, 2\]"):
        sliding_window(model, x, 4, prepare=lambda w: w[:, :, :2, :2])
    with pytest.raises(TypeError, match="prepare must return a tensor, got ndarray"):
        sliding_window(model, x, 4, prepare=lambda w: w.numpy())
    with pytest.raises(TypeError, match="the model's output must be logits, .* got NoneType"):
        sliding_window(lambda w: None, x, 4)
    for shape in ((2, 8, 8), (1, 2, 8, 7), (1, 3, 8, 8)):
        with pytest.raises(ValueError, match=r"out is \[.*\], but the result is \[1, (classes|2), 8, 8\]"):
            sliding_window(model, x, 4, out=torch.zeros(shape))
    with pytest.raises(TypeError, match="out is torch.int32, expected a tensor or an array of floating point numbers"):
        sliding_window(model, x, 4, out=np.zeros((1, 2, 8, 8), np.int32))
    with pytest.raises(ValueError, match="out is an array that cannot be written to"):
        sliding_window(model, x, 4, out=np.frombuffer(bytes(512), np.float32).reshape(1, 2, 8, 8))


@pytest.mark.gpu
def test_windows_go_to_the_model_and_the_result_stays_with_the_picture() -> None:
    x = torch.randn(1, 2, 60, 50)
    expected = sliding_window(convolutions(2), x, 16)
    model = convolutions(2).cuda()
    found = sliding_window(model, x, 16, batch_size=4)
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    on_gpu = sliding_window(model, x.cuda(), 16, batch_size=4)
    assert on_gpu.device.type == "cuda"
    assert torch.equal(sliding_window(model, x.cuda(), 16, batch_size=4, device="cpu"), on_gpu.cpu())
