"""Foreground colours: against the paper's equations, on mixtures whose parts are known, tile by tile."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segzoo.inference import estimate_foreground, foreground

pytestmark = pytest.mark.usefixtures("one_thread")


def mean_around(x: np.ndarray, radius: int) -> np.ndarray:
    result = np.empty_like(x)
    for row, column in np.ndindex(x.shape[:2]):
        near = x[max(0, row - radius) : row + radius + 1, max(0, column - radius) : column + radius + 1]
        result[row, column] = near.mean((0, 1))
    return result


def by_definition(image: np.ndarray, alpha: np.ndarray, radii: tuple[int, ...]) -> np.ndarray:
    front = back = image
    alpha = alpha[..., None]
    for radius in radii:
        share = mean_around(alpha, radius)
        mean_front = mean_around(front * alpha, radius) / (share + 1e-5)
        back = mean_around(back * (1 - alpha), radius) / (1 - share + 1e-5)
        front = (mean_front + alpha * (image - alpha * mean_front - (1 - alpha) * back)).clip(0, 1)
    near = mean_around((alpha > 0).astype(float), radii[-1]) > 0
    return np.where(near & (alpha < 1), front, image)


def mixture(rng: np.random.Generator, size: int = 96) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A bright object on a dark ground, its alpha with a soft rim, and both mixed, in 0…1."""
    y, x = np.mgrid[:size, :size] / size
    front = np.stack([0.8 + 0.15 * np.sin(5 * x), 0.6 + 0.2 * y, 0.5 + 0.1 * np.cos(7 * y)], -1)
    back = np.stack([0.1 + 0.1 * x, 0.2 + 0.1 * np.sin(6 * y), 0.4 - 0.2 * x], -1)
    distance = np.hypot(y - 0.5, x - 0.5) - 0.3
    alpha = (0.5 - distance * size / 8).clip(0, 1)
    return front, alpha, alpha[..., None] * front + (1 - alpha[..., None]) * back


@given(
    st.integers(1, 12),
    st.integers(1, 14),
    st.sampled_from([1, 3]),
    st.sampled_from([(4, 1), (3,), (20, 3, 1)]),
    st.integers(0, 99),
)
def test_is_the_papers(height: int, width: int, bands: int, radii: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    image, alpha = rng.random((height, width, bands)), (2 * rng.random((height, width)) - 0.5).clip(0, 1)
    alpha[: height // 2, : width // 2] = 0
    found = estimate_foreground(image, alpha, radii=radii)
    np.testing.assert_allclose(found, by_definition(image, alpha, radii), atol=1e-9)
    single = estimate_foreground(image.astype(np.float32), alpha.astype(np.float32), radii=radii)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, found, atol=2e-3)  # quotients of small shares
    assert np.abs(single - found).mean() < 1e-5


def test_the_rim_shows_less_of_the_background(rng: np.random.Generator) -> None:
    front, alpha, mixed = mixture(rng)
    image = (mixed * 255 + 0.5).astype(np.uint8)
    found = estimate_foreground(image, alpha, radii=(0.1, 0.01))
    assert found.dtype == np.uint8 and found.shape == image.shape
    rim = (alpha > 0.05) & (alpha < 1)

    def error(colours: np.ndarray) -> float:
        return float((alpha[..., None] * np.abs(colours / 255 - front))[rim].mean())

    assert error(found) < 0.3 * error(image)
    np.testing.assert_array_equal(found[alpha == 1], image[alpha == 1])


def test_tiles_do_not_show(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    _, alpha, mixed = mixture(rng)
    alpha[:20] = 0
    image = (mixed * 255).astype(np.uint8)
    whole = estimate_foreground(image, alpha, radii=(9, 3))
    monkeypatch.setattr(foreground, "_TILE", 17)
    calls = []
    unmix = foreground._unmix
    monkeypatch.setattr(foreground, "_unmix", lambda *args: calls.append(unmix(*args)))
    np.testing.assert_array_equal(estimate_foreground(image, alpha, radii=(9, 3)), whole)
    assert 0 < len(calls) < 30  # of 36: some have no rim


@pytest.mark.parametrize("value", [0, 1])
def test_nothing_changes_without_a_rim(value: int, rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (12, 15, 3), np.uint8)
    for alpha in (
        np.full((12, 15), value, np.uint8) * 255,
        np.full((12, 15), bool(value)),
        np.full((12, 15), float(value)),
    ):
        found = estimate_foreground(image, alpha)
        np.testing.assert_array_equal(found, image)
        assert found is not image


def test_kinds_and_shapes(rng: np.random.Generator) -> None:
    image, alpha = rng.integers(0, 256, (30, 40, 3), np.uint8), rng.integers(0, 256, (30, 40), np.uint8)
    found = estimate_foreground(image, alpha)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    as_tensor = estimate_foreground(tensor, torch.from_numpy(alpha))
    assert isinstance(as_tensor, torch.Tensor) and as_tensor.dtype == torch.uint8
    np.testing.assert_array_equal(as_tensor.permute(1, 2, 0).numpy(), found)
    both = estimate_foreground(torch.stack((tensor, tensor)), torch.from_numpy(np.stack((alpha, alpha)))[:, None])
    assert torch.equal(both, torch.stack((as_tensor, as_tensor)))
    as_float = estimate_foreground(image, (alpha / np.float32(255)))
    np.testing.assert_array_equal(as_float, found)
    grey = estimate_foreground(image[..., 0], alpha)
    assert grey.shape == (30, 40)
    wide = estimate_foreground(image.astype(np.uint16) * 257, alpha)
    assert wide.dtype == np.uint16 and np.abs(wide / 257 - found).max() < 0.51
    stacked = estimate_foreground(np.stack((image, image)), np.stack((alpha, alpha)))
    np.testing.assert_array_equal(stacked, np.stack((found, found)))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"alpha": np.zeros((8, 9))}, r"alpha is \[8, 9\], expected \[8, 8\]"),
        ({"alpha": np.full((8, 8), 2.0)}, "alpha lies in 0…1, got 2 to 2"),
        ({"alpha": np.zeros((8, 8), np.int64)}, "alpha is torch.int64"),
        ({"radii": ()}, "radii are"),
        ({"radii": (4, 0)}, "radii are"),
        ({"radii": 0.05}, "radii are 0.05, expected one or more lengths above 0"),
        ({"radii": "ab"}, "radii are 'ab'"),
        ({"radii": ("a",)}, "a radius is 'a'"),
        ({"radii": None}, "radii are None"),
        ({"radii": (-4,)}, "a radius is -4"),
        ({"image": np.full((8, 8, 3), 7.0)}, "divide by 255"),
    ],
)
def test_errors(change: dict[str, object], words: str) -> None:
    arguments = {"image": np.zeros((8, 8, 3), np.uint8), "alpha": np.zeros((8, 8)), **change}
    with pytest.raises(ValueError, match=words):
        estimate_foreground(**arguments)


@pytest.mark.gpu
def test_on_a_gpu(rng: np.random.Generator) -> None:
    _, alpha, mixed = mixture(rng)
    image = torch.from_numpy(mixed).permute(2, 0, 1).float()
    found = estimate_foreground(image.cuda(), alpha).cpu()
    torch.testing.assert_close(found, estimate_foreground(image, alpha), atol=1e-4, rtol=0)
