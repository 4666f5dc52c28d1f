"""Mean field: against the full pairwise sums of the definition, and by what it does to masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segzoo.inference import crf
from segzoo.inference.crf import _Appearance

pytestmark = pytest.mark.usefixtures("one_thread")


def by_definition(
    maps: np.ndarray,
    image: np.ndarray,
    *,
    iterations: int,
    appearance: float,
    smoothness: float,
    theta_alpha: float,
    theta_beta: float,
    theta_gamma: float,
    radius: int,
    stride: int,
    certainty: float,
) -> np.ndarray:
    """Algorithm 1 with all pairs of pixels written out, for maps ``[C, H, W]`` that sum to 1 and image 0…255."""
    classes, height, width = maps.shape
    y, x = (a.ravel() for a in np.mgrid[:height, :width])
    colours = image.reshape(height * width, -1).astype(float)
    down, across = np.abs(y[:, None] - y), np.abs(x[:, None] - x)
    apart = down**2 + across**2
    contrast = ((colours[:, None] - colours) ** 2).sum(-1)
    far = np.exp(-apart / (2 * theta_alpha**2) - contrast / (2 * theta_beta**2))
    far *= (down <= radius) & (across <= radius) & (down % stride == 0) & (across % stride == 0)
    reach = np.ceil(3 * theta_gamma)
    near = np.exp(-apart / (2 * theta_gamma**2)) * ((down <= reach) & (across <= reach))
    kernel = 0
    for weight, k in ((appearance, far), (smoothness, near)):
        total = k.sum(1)
        kernel = kernel + weight * k / np.sqrt(total[:, None] * total)
    np.fill_diagonal(kernel, 0)
    unary = -np.log(maps.reshape(classes, -1).clip(1 - certainty, certainty))
    q = maps.reshape(classes, -1)
    for _ in range(iterations):
        message = q @ kernel  # of each class
        pairwise = np.stack([np.delete(message, label, 0).sum(0) for label in range(classes)])  # Potts
        q = np.exp(-unary - pairwise)
        q /= q.sum(0)
    return q.reshape(maps.shape)


@given(
    st.integers(1, 9),
    st.integers(1, 8),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([1, 3, 4]),
    st.sampled_from([(9, 1), (2, 1), (4, 2), (5, 3)]),
    st.integers(0, 99),
)
def test_is_the_mean_field_of_all_pairs(
    height: int, width: int, classes: int, bands: int, window: tuple[int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = np.exp(6 * rng.random((max(classes, 2), height, width)))
    maps = scores / scores.sum(0)
    image = (rng.integers(0, 3, (height, width, bands)) * 20 + rng.integers(0, 9, (height, width, bands))).astype(
        np.uint8
    )
    options = {
        "iterations": 3,
        "appearance": rng.uniform(0, 8),
        "smoothness": rng.uniform(0, 4),
        "theta_alpha": rng.uniform(1, 9),
        "theta_beta": rng.uniform(3, 30),
        "theta_gamma": rng.uniform(1, 3),
        "radius": window[0],
        "stride": window[1],
        "certainty": 0.97,
    }
    expected = by_definition(maps, image, **options)
    given_maps = maps[1:] if classes == 1 else maps  # one class is two, it and the background
    found = crf(given_maps, image, **options)
    np.testing.assert_allclose(found, expected[1:] if classes == 1 else expected, atol=1e-9)
    single = crf(torch.from_numpy(given_maps).float(), image, **options)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), found, atol=1e-4)


def test_multilabel_is_each_class_against_the_rest(rng: np.random.Generator) -> None:
    maps, image = rng.random((3, 12, 14)), rng.integers(0, 256, (12, 14, 3), np.uint8)
    found = crf(maps, image, multilabel=True, radius=3)
    for one, result in zip(maps, found):
        np.testing.assert_allclose(crf(one, image, radius=3), result)


def test_kernels_that_are_not_kept_are_the_same(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    maps, image = rng.random((1, 20, 25)).astype(np.float32), rng.integers(0, 256, (20, 25, 3), np.uint8)
    kept = crf(maps, image, radius=4)
    for keep in (0, 20 * 25 * 7):  # none, and the first seven
        monkeypatch.setitem(_Appearance.__init__.__globals__, "_KEPT", keep)
        np.testing.assert_array_equal(crf(maps, image, radius=4), kept)


@pytest.mark.parametrize("keep", [0, 2 * 20 * 25 * 7, 2**27])
def test_bands_do_not_show(keep: int, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    maps, image = rng.random((2, 3, 20, 25)), rng.integers(0, 256, (2, 20, 25, 3), np.uint8)
    options = {"radius": 4, "theta_gamma": 4}
    whole = crf(maps, image, **options)
    monkeypatch.setitem(_Appearance.__init__.__globals__, "_KEPT", keep)
    for rows in (1, 3, 7):
        monkeypatch.setitem(_Appearance.__init__.__globals__, "_BAND", 2 * 3 * 25 * rows)
        np.testing.assert_allclose(crf(maps, image, **options), whole, rtol=1e-10)


def test_a_large_picture_is_looked_at_in_wider_steps(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    maps, image = rng.random((40, 50)), rng.integers(0, 256, (40, 50, 3), np.uint8)
    monkeypatch.setitem(_Appearance.__init__.__globals__, "_LARGE", 40 * 50 - 1)
    np.testing.assert_array_equal(crf(maps, image, radius=18), crf(maps, image, radius=18, stride=3))
    monkeypatch.setitem(_Appearance.__init__.__globals__, "_LARGE", 40 * 50)
    np.testing.assert_array_equal(crf(maps, image, radius=30), crf(maps, image, radius=30, stride=4))


def test_opposite_colours_weigh_nothing(rng: np.random.Generator) -> None:
    """Far below exp(-60) the exponential is not computed as such, and nothing shows it."""
    x = rng.random((1, 1, 9, 9)).astype(np.float32)
    colours = torch.from_numpy((rng.random((1, 3, 9, 9)) > 0.5) * np.float32(300))
    kernel = _Appearance(colours, 3.0, 2, 1)
    apart = (colours[..., 1:] - colours[..., :-1]).abs().amax(1, keepdim=True) > 0
    weights = next(w for o, w in zip(kernel.offsets, kernel.kept) if o == (0, 1))
    assert apart.any() and weights[apart].max() < 1e-25 and weights[apart].min() > 0
    assert torch.isfinite(kernel.messages(torch.from_numpy(x))).all()


def test_a_stride_does_not_skip_the_window(rng: np.random.Generator) -> None:
    maps, image = rng.random((12, 14)), rng.integers(0, 256, (12, 14, 3), np.uint8)
    with pytest.raises(ValueError, match="stride is 5, expected at most the radius, which is 3 pixels"):
        crf(maps, image, radius=3, stride=5)
    share = crf(maps, image, radius=0.2, stride=5)  # 3 pixels of this picture
    np.testing.assert_array_equal(share, crf(maps, image, radius=3, stride=3))


def test_no_iterations_return_the_input(rng: np.random.Generator) -> None:
    maps, image = rng.random((2, 9, 8)), np.zeros((9, 8, 3), np.uint8)
    found = crf(maps, image, iterations=0)
    np.testing.assert_array_equal(found, maps)
    found[:] = 0
    assert maps.any()  # and not the input itself
    np.testing.assert_array_equal(
        crf(maps, image, appearance=0, smoothness=0, multilabel=True).round(9), maps.clip(0.001, 0.999).round(9)
    )


def test_a_rim_moves_to_the_edge_of_the_picture_and_noise_goes(rng: np.random.Generator) -> None:
    y, x = np.mgrid[:60, :80]
    truth = (y - 30) ** 2 + (x - 40) ** 2 < 20**2
    image = np.where(truth[..., None], [180, 60, 40], [70, 90, 120]) + rng.normal(0, 6, (60, 80, 3))
    image = image.clip(0, 255).astype(np.uint8)
    shifted = np.roll(truth, (2, 2), (0, 1))
    maps = np.where(shifted, 0.8, 0.2) + 0.15 * rng.normal(size=truth.shape)
    maps = maps.clip(0, 1)
    found = crf(maps, image, radius=8)
    assert ((found > 0.5) != truth).mean() < 0.5 * ((maps > 0.5) != truth).mean()
    blind = crf(maps, np.zeros_like(image), radius=8)  # without colours the rim stays where it was
    assert ((blind > 0.5) != truth).mean() > 1.5 * ((found > 0.5) != truth).mean()


def test_sizes_shapes_and_a_wide_window(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (40, 50, 3), np.uint8)
    low = torch.rand(1, 8, 9)
    found = crf(low, image)
    assert isinstance(found, torch.Tensor) and found.shape == (1, 40, 50)
    batch = crf(torch.stack((low, 1 - low)), torch.from_numpy(image).permute(2, 0, 1)[None].expand(2, -1, -1, -1))
    torch.testing.assert_close(batch, torch.stack((found, 1 - found)), atol=1e-5, rtol=0)
    wide = crf(low, image, radius=30)
    torch.testing.assert_close(wide, crf(low, image, radius=30, stride=4))
    sums = crf(low.expand(3, -1, -1) / 3, image).sum(0)
    torch.testing.assert_close(sums, torch.ones(40, 50))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"iterations": -1}, "iterations is -1"),
        ({"iterations": 2.0}, "iterations is 2.0"),
        ({"stride": 0}, "stride is 0"),
        ({"certainty": 1.0}, "certainty is 1.0"),
        ({"appearance": -1}, "appearance is -1"),
        ({"smoothness": float("inf")}, "smoothness is inf"),
        ({"theta_alpha": 0}, "theta_alpha is 0"),
        ({"theta_beta": 0}, "theta_beta is 0"),
        ({"theta_beta": "a"}, "theta_beta is 'a'"),
        ({"certainty": "a"}, "certainty is 'a'"),
        ({"appearance": "a"}, "appearance is 'a'"),
        ({"smoothness": None}, "smoothness is None"),
        ({"theta_gamma": -1}, "theta_gamma is -1"),
        ({"radius": float("nan")}, "radius is nan"),
        ({"probabilities": np.full((1, 4, 4), -1.0)}, "lie in 0…1, got -1"),
        ({"image": np.zeros((2, 8, 8, 3))}, "2 images"),
    ],
)
def test_errors(change: dict[str, object], words: str) -> None:
    arguments = {"probabilities": np.zeros((1, 4, 4)), "image": np.zeros((8, 8, 3), np.uint8), **change}
    with pytest.raises(ValueError, match=words):
        crf(**arguments)


@pytest.mark.gpu
def test_on_a_gpu(rng: np.random.Generator) -> None:
    image, maps = rng.integers(0, 256, (60, 70, 3), np.uint8), torch.rand(2, 60, 70)
    torch.testing.assert_close(crf(maps.cuda(), image).cpu(), crf(maps, image), atol=1e-4, rtol=0)
