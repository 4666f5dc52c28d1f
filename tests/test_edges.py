"""The guided filter: against its definition, window by window, and by what it leaves as it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from segzoo.inference import edges, refine_edges
from segzoo.inference._box import box_mean

pytestmark = pytest.mark.usefixtures("one_thread")


def windows(size: tuple[int, int], radius: tuple[int, int]) -> dict[tuple[int, int], tuple[slice, slice]]:
    return {
        (y, x): (slice(max(0, y - radius[0]), y + radius[0] + 1), slice(max(0, x - radius[1]), x + radius[1] + 1))
        for y in range(size[0])
        for x in range(size[1])
    }


def by_definition(
    maps: np.ndarray, guide: np.ndarray, radius: tuple[int, int], eps: float
) -> tuple[np.ndarray, np.ndarray]:
    """Means of a ``[C, B, H, W]`` and b ``[C, H, W]`` over windows, for maps ``[C, H, W]`` and guide ``[H, W, B]``."""
    size, bands = maps.shape[1:], guide.shape[2]
    around = windows(size, radius)
    a, b = np.zeros((len(maps), bands, *size)), np.zeros((len(maps), *size))
    for (y, x), window in around.items():
        colours, values = guide[window].reshape(-1, bands), maps[:, window[0], window[1]].reshape(len(maps), -1)
        mean, off = colours.mean(0), colours - colours.mean(0)
        covariance = off.T @ off / len(off) + eps * np.eye(bands)
        a[:, :, y, x] = np.linalg.solve(covariance, off.T @ (values - values.mean(1, keepdims=True)).T / len(off)).T
        b[:, y, x] = values.mean(1) - a[:, :, y, x] @ mean
    mean_a, mean_b = np.zeros_like(a), np.zeros_like(b)
    for (y, x), window in around.items():
        mean_a[..., y, x] = a[..., window[0], window[1]].mean((-2, -1))
        mean_b[..., y, x] = b[..., window[0], window[1]].mean((-2, -1))
    return mean_a, mean_b


def softmax_maps(rng: np.random.Generator, classes: int, size: tuple[int, int]) -> np.ndarray:
    scores = np.exp(3 * rng.random((classes, *size)))
    return scores / scores.sum(0) if classes > 1 else rng.random((1, *size))


@given(
    st.integers(1, 9),
    st.integers(1, 12),
    st.integers(1, 4),
    st.sampled_from([(1, 1), (3, 1), (3, 3), (5, 2)]),
    st.sampled_from([1e-2, 1e-4, 1e-6]),
    st.integers(0, 99),
)
def test_is_the_papers(height: int, width: int, radius: int, channels: tuple[int, int], eps: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bands, classes = channels
    guide, maps = rng.random((height, width, bands)), softmax_maps(rng, classes, (height, width))
    a, b = by_definition(maps, guide, (radius, radius), eps)
    expected = (np.einsum("cbhw,hwb->chw", a, guide) + b).clip(0, 1)
    if classes > 1:
        np.testing.assert_allclose(
            refine_edges(maps, guide, radius=radius, eps=eps, multilabel=True), expected, atol=1e-9
        )
        expected = expected / expected.sum(0)
    found = refine_edges(maps, guide, radius=radius, eps=eps)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-9)
    single = refine_edges(maps.astype(np.float32), guide.astype(np.float32), radius=radius, eps=eps)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, atol=2e-4 if eps < 1e-5 else 1e-5)


@pytest.mark.parametrize("grid", [(6, 9), (13, 5), (1, 1)])
def test_the_fast_form_is_the_papers(grid: tuple[int, int], rng: np.random.Generator) -> None:
    """Coefficients at the maps' own size, enlarged, with the picture's own pixels."""
    guide, maps = rng.random((13, 18, 3)), rng.random((2, *grid))
    small = F.interpolate(torch.from_numpy(guide).permute(2, 0, 1)[None], size=grid, mode="bilinear", antialias=True)[0]
    radius = tuple(max(1, round(4 * little / large)) for little, large in zip(grid, (13, 18)))
    a, b = by_definition(maps, small.permute(1, 2, 0).numpy(), radius, 1e-3)
    a, b = (
        F.interpolate(torch.from_numpy(x.reshape(1, -1, *grid)), size=(13, 18), mode="bilinear")[0].numpy()
        for x in (a, b)
    )
    expected = (np.einsum("cbhw,hwb->chw", a.reshape(2, 3, 13, 18), guide) + b).clip(0, 1)
    found = refine_edges(maps, guide, radius=4, eps=1e-3, multilabel=True)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_bands_do_not_show(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    guide, maps = rng.random((47, 31, 3)).astype(np.float32), rng.random((1, 47, 31)).astype(np.float32)
    whole = refine_edges(maps, guide, radius=2), refine_edges(maps, guide, radius=4, subsample=3)
    monkeypatch.setattr(edges, "_BAND", 31 * 5)
    np.testing.assert_array_equal(refine_edges(maps, guide, radius=2), whole[0])
    np.testing.assert_array_equal(refine_edges(maps, guide, radius=4, subsample=3), whole[1])


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 40), st.integers(0, 40))
def test_box_means(height: int, width: int, down: int, across: int) -> None:
    x = np.random.default_rng(height * width).random((2, height, width))
    expected = np.zeros_like(x)
    for (row, column), window in windows((height, width), (down, across)).items():
        expected[:, row, column] = x[:, window[0], window[1]].mean((1, 2))
    np.testing.assert_allclose(box_mean(torch.from_numpy(x), (down, across)).numpy(), expected, rtol=1e-12)


def test_a_flat_map_stays_and_a_flat_picture_only_smooths(rng: np.random.Generator) -> None:
    guide, flat = rng.random((20, 30, 3)), np.full((1, 20, 30), 0.3)
    np.testing.assert_allclose(refine_edges(flat, guide), flat)
    maps = rng.random((1, 20, 30))
    twice = box_mean(box_mean(torch.from_numpy(maps), (2, 2)), (2, 2)).numpy()
    np.testing.assert_allclose(refine_edges(maps, np.zeros((20, 30, 3)), radius=2), twice)


def test_a_blurred_rim_gets_sharp_where_the_picture_has_an_edge() -> None:
    x = np.arange(80)
    image = np.broadcast_to(np.where(x < 40, 200, 60).astype(np.uint8)[None, :, None], (60, 80, 3))
    soft = np.broadcast_to(1 / (1 + np.exp((x - 41) / 3)), (60, 80)).astype(np.float32)
    found = refine_edges(soft, image, radius=8)
    assert found.shape == (60, 80)  # as it was given
    assert found[30, 39] - found[30, 40] > 4 * (soft[30, 39] - soft[30, 40])


@pytest.mark.parametrize("eps", [1e-6, 1e-8, 1e-10, 1e-16, 1e-30, 1e-300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_grey_picture_stored_as_rgb_stays_finite(eps: float, dtype: type, rng: np.random.Generator) -> None:
    """Its bands are the same: of their covariance only ε is left in two directions."""
    grey = rng.integers(0, 256, (40, 50, 1), np.uint8).repeat(3, 2)
    grey[:, 25:] = 77
    maps = rng.random((1, 40, 50)).astype(dtype)
    for options in ({}, {"subsample": 2}):
        found = refine_edges(maps, grey, radius=3, eps=eps, **options)
        assert found.dtype == dtype and np.isfinite(found).all() and found.min() >= 0 and found.max() <= 1
        if eps >= 1e-10:  # three equal bands are one with a third of ε
            one = refine_edges(maps.astype(np.float64), grey[..., 0], radius=3, eps=eps / 3, **options)
            np.testing.assert_allclose(found, one, atol=2e-3)


def test_kinds_and_shapes(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (40, 50, 3), np.uint8)
    low = torch.rand(1, 8, 9)
    found = refine_edges(low, image)
    assert isinstance(found, torch.Tensor) and found.shape == (1, 40, 50) and found.dtype == torch.float32
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].repeat(2, 1, 1, 1)
    both = refine_edges(low.expand(2, -1, -1, -1), batch)
    torch.testing.assert_close(both, found.expand(2, -1, -1, -1))
    torch.testing.assert_close(refine_edges(low.expand(2, -1, -1, -1), image), both)  # one image for all
    as_float = refine_edges(low, image / np.float32(255))
    torch.testing.assert_close(as_float, found)
    wide = refine_edges(low, image.astype(np.uint16) * 257)
    torch.testing.assert_close(wide, found)
    assert isinstance(refine_edges(low.numpy(), torch.from_numpy(image[..., 0].copy())), np.ndarray)
    assert refine_edges(low.half(), image).dtype == torch.float32
    read_only = image.copy()
    read_only.flags.writeable = False
    torch.testing.assert_close(refine_edges(low, read_only), found)
    classes = refine_edges(torch.rand(3, 8, 9).mul(3).softmax(0), image)
    torch.testing.assert_close(classes.sum(0), torch.ones(40, 50))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"probabilities": np.full((1, 4, 4), 3.0)}, "lie in 0…1, got 3 to 3"),
        ({"probabilities": np.full((1, 4, 4), np.nan)}, "lie in 0…1, got nan"),
        ({"probabilities": np.zeros((1, 4, 4), np.uint8)}, "expected floating point"),
        ({"probabilities": np.zeros(4)}, r"expected \[h, w\]"),
        ({"image": np.zeros((8, 8, 3), np.int64)}, "image is torch.int64"),
        ({"image": np.full((8, 8, 3), 200.0)}, "divide by 255"),
        ({"image": np.zeros((0, 8, 3))}, r"expected \[H, W\]"),
        ({"image": np.zeros((2, 8, 8, 3))}, "2 images for the probabilities of 1 pictures"),
        ({"radius": -1}, "radius is -1"),
        ({"eps": 0}, "eps is 0"),
        ({"eps": "a"}, "eps is 'a'"),
        ({"eps": None}, "eps is None"),
        ({"subsample": 0.5}, "subsample is 0.5"),
    ],
)
def test_errors(change: dict[str, object], words: str) -> None:
    arguments = {"probabilities": np.zeros((1, 4, 4)), "image": np.zeros((8, 8, 3), np.uint8), **change}
    with pytest.raises(ValueError, match=words):
        refine_edges(**arguments)


@pytest.mark.gpu
def test_on_a_gpu(rng: np.random.Generator) -> None:
    image, maps = rng.integers(0, 256, (60, 70, 3), np.uint8), torch.rand(2, 30, 35)
    for options in ({}, {"subsample": 1}):
        torch.testing.assert_close(
            refine_edges(maps.cuda(), image, **options).cpu(), refine_edges(maps, image, **options), atol=1e-5, rtol=0
        )
