"""Distance maps: against brute force on small masks, SciPy on large ones, under torch's compilers and transforms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from segzoo.ops import distance, distance_to, signed_distance

pytestmark = pytest.mark.usefixtures("one_thread")


def brute_force(mask: np.ndarray, spacing: tuple[float, float] = (1, 1)) -> tuple[np.ndarray, np.ndarray]:
    """Distance in float64, and row and column of the nearest site: of several the leftmost, there the topmost."""
    height, width = mask.shape
    by_column = np.argwhere(mask.T)[:, ::-1]
    if len(by_column) == 0:
        return np.full(mask.shape, np.inf), np.full((2, *mask.shape), -1)
    y, x = np.mgrid[:height, :width]
    squared = ((y[..., None] - by_column[:, 0]) * spacing[0]) ** 2 + (
        (x[..., None] - by_column[:, 1]) * spacing[1]
    ) ** 2
    return np.sqrt(squared.min(-1)), np.moveaxis(by_column[squared.argmin(-1)], -1, 0)


def edt(sites: np.ndarray, **options: object) -> tuple[np.ndarray, np.ndarray]:
    """The same by SciPy, for a mask that has a site."""
    ndimage = pytest.importorskip("scipy.ndimage")
    return ndimage.distance_transform_edt(~sites, return_indices=True, **options)


def blobs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    mask = np.zeros((height, width), bool)
    for _ in range(4):
        angle = np.arctan2(y - (row := rng.uniform(0, height)), x - (column := rng.uniform(0, width)))
        radius = rng.uniform(0.05, 0.2) * min(height, width) * (1 + 0.4 * np.sin(5 * angle))
        mask |= (y - row) ** 2 + (x - column) ** 2 <= radius**2
    return mask


def one_pixel(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[rng.integers(height), rng.integers(width)] = True
    return mask


def frame(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[[0, -1]] = mask[:, [0, -1]] = True
    return mask


def diagonal(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return np.eye(height, width, dtype=bool)


MASKS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "blobs": blobs,
    "surroundings": lambda rng, height, width: ~blobs(rng, height, width),
    "outlines": lambda rng, height, width: (mask := blobs(rng, height, width)) ^ np.roll(mask, 1, 0),
    "sparse": lambda rng, height, width: rng.random((height, width)) < 2e-4,
    "noise": lambda rng, height, width: rng.random((height, width)) < 0.3,
    "checkers": lambda rng, height, width: np.indices((height, width)).sum(0) % 2 == 0,
    "one_pixel": one_pixel,
    "frame": frame,
    "diagonal": diagonal,
}


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 20),
    leading=st.sampled_from([(), (1,), (3,), (2, 0), (2, 1, 3)]),
    density=st.sampled_from([0, 0.02, 0.1, 0.5, 0.95, 1]),
    seed=st.integers(0, 999),
)
def test_matches_brute_force(height: int, width: int, leading: tuple[int, ...], density: float, seed: int) -> None:
    masks = np.random.default_rng(seed).random((*leading, height, width)) < density
    found, sites = distance_to(torch.from_numpy(masks), return_indices=True)
    assert found.shape == masks.shape and found.dtype == torch.float32
    assert sites.shape == (*leading, 2, height, width) and sites.dtype == torch.int64
    flat = found.view(-1, height, width).numpy(), sites.view(-1, 2, height, width).numpy()
    for mask, ours, our_sites in zip(masks.reshape(-1, height, width), *flat):
        expected, expected_sites = brute_force(mask)
        np.testing.assert_array_equal(ours, expected.astype(np.float32))
        np.testing.assert_array_equal(our_sites, expected_sites)


@given(
    height=st.integers(1, 12),
    width=st.integers(1, 30),
    spacing=st.sampled_from([(1, 2), (0.5, 0.25), (3.7, 0.9), (0.013, 1), (1, 0.0071), (1e-5, 1e3), (1e4, 1e-4)]),
    density=st.sampled_from([0.02, 0.1, 0.5]),
    seed=st.integers(0, 999),
)
def test_spacing(height: int, width: int, spacing: tuple[float, float], density: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < density
    found, sites = distance_to(torch.from_numpy(mask), spacing=spacing, return_indices=True)
    expected, _ = brute_force(mask, spacing)
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-7)
    if mask.any():
        away = (np.indices(mask.shape) - sites.numpy()) * np.reshape(spacing, (2, 1, 1))
        np.testing.assert_allclose(np.sqrt((away**2).sum(0)), expected, rtol=2e-7)
        assert mask[sites[0].numpy(), sites[1].numpy()].all()


@pytest.mark.parametrize("size", [(211, 300), (300, 131)])
@pytest.mark.parametrize("name", MASKS)
def test_matches_scipy(name: str, size: tuple[int, int], rng: np.random.Generator) -> None:
    mask = MASKS[name](rng, *size)
    expected, expected_sites = edt(mask)
    found, sites = distance_to(torch.from_numpy(mask), return_indices=True)
    np.testing.assert_array_equal(found.numpy(), expected.astype(np.float32))
    np.testing.assert_array_equal(sites.numpy(), expected_sites)
    expected, _ = edt(mask, sampling=(1.7, 0.6))
    np.testing.assert_allclose(distance_to(torch.from_numpy(mask), spacing=(1.7, 0.6)).numpy(), expected, rtol=2e-7)


def test_of_equally_near_sites_scipys_is_chosen(rng: np.random.Generator) -> None:
    ties = 0
    for _ in range(60):
        height, width = rng.integers(1, 24, 2)
        masks = rng.random((60, height, width)) < rng.choice([0.02, 0.05, 0.2, 0.5])
        masks[~masks.any((1, 2)), 0, 0] = True
        found, sites = distance_to(torch.from_numpy(masks), return_indices=True)
        for mask, ours in zip(masks, sites.numpy()):
            np.testing.assert_array_equal(ours, edt(mask)[1])
        # A transposed mask has the same distances, and another choice only where two sites are equally near.
        flipped = distance_to(torch.from_numpy(masks).mT, return_indices=True)
        assert torch.equal(flipped[0].mT, found)
        ties += int((flipped[1].flip(-3).mT != sites).any(-3).sum())
    assert ties > 10_000


@pytest.mark.parametrize("size", [(9000, 5), (5, 9000)])
def test_long_maps(size: tuple[int, int], rng: np.random.Generator) -> None:
    for density in (1e-4, 1e-2):
        mask = rng.random(size) < density
        expected, sites = edt(mask)
        ours, our_sites = distance_to(torch.from_numpy(mask), return_indices=True)
        np.testing.assert_array_equal(ours.numpy(), expected.astype(np.float32))
        np.testing.assert_array_equal(our_sites.numpy(), sites)


@pytest.mark.parametrize(("block", "strip"), [(1, 1), (500, 90), (4000, 500), (4000, 2**17)])
def test_the_size_of_the_blocks_changes_nothing(
    block: int, strip: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = torch.from_numpy(np.stack([MASKS[name](rng, 30, 41) for name in MASKS]))
    expected = distance_to(masks, return_indices=True)
    monkeypatch.setattr(distance, "_BLOCK", block)
    monkeypatch.setattr(distance, "_CPU_STRIP", strip)
    for found, whole in zip(distance_to(masks, return_indices=True), expected):
        assert torch.equal(found, whole)


def test_a_batch_is_its_maps(rng: np.random.Generator) -> None:
    masks = torch.from_numpy(np.stack([MASKS[name](rng, 50, 40) for name in MASKS]))
    masks = torch.cat((masks, torch.zeros(1, 50, 40, dtype=torch.bool), torch.ones(1, 50, 40, dtype=torch.bool)))
    found, sites = distance_to(masks, return_indices=True)
    for i, mask in enumerate(masks):
        alone = distance_to(mask, return_indices=True)
        assert torch.equal(found[i], alone[0]) and torch.equal(sites[i], alone[1])
    assert torch.equal(signed_distance(masks), torch.stack([signed_distance(mask) for mask in masks]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_any_nonzero_integer_is_a_site(dtype: torch.dtype, rng: np.random.Generator) -> None:
    labels = torch.from_numpy(rng.integers(0, 4, (6, 7))).to(dtype)
    if dtype.is_signed:
        labels = -labels
    assert torch.equal(distance_to(labels), distance_to(labels != 0))
    assert torch.equal(signed_distance(labels), signed_distance(labels != 0))


def test_any_layout(rng: np.random.Generator) -> None:
    mask = torch.from_numpy(rng.random((2, 40, 60, 4)) < 0.05)
    for view in (mask.permute(0, 3, 1, 2), mask[:, ::3, 1::2, 0].mT, mask[:, :, :1].expand(2, 40, 5, 4)):
        kept = view.clone()
        assert torch.equal(distance_to(view), distance_to(view.contiguous()))
        assert torch.equal(view, kept)


def test_without_sites_and_without_pixels() -> None:
    found, sites = distance_to(torch.zeros(2, 3, 4, dtype=torch.bool), return_indices=True)
    assert (found == torch.inf).all() and (sites == -1).all()
    assert not distance_to(torch.ones(3, 4, dtype=torch.bool)).any()
    for shape in ((0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0)):
        found, sites = distance_to(torch.zeros(shape, dtype=torch.bool), return_indices=True)
        assert found.shape == shape and sites.shape == (*shape[:-2], 2, *shape[-2:])
        assert signed_distance(torch.zeros(shape, dtype=torch.bool)).shape == shape


def kervadec(mask: np.ndarray) -> np.ndarray:
    """``one_hot2dist`` of github.com/LIVIAETS/boundary-loss for one map, by its definition."""
    if not mask.any() or mask.all():
        return np.zeros(mask.shape, np.float32)
    return edt(mask)[0] * ~mask - (edt(~mask)[0] - 1) * mask


@pytest.mark.parametrize("name", MASKS)
def test_signed_distance_follows_the_authors_code(name: str, rng: np.random.Generator) -> None:
    mask = MASKS[name](rng, 120, 90)
    expected = kervadec(mask).astype(np.float32)
    np.testing.assert_allclose(signed_distance(torch.from_numpy(mask)).numpy(), expected, rtol=1e-6)


def test_signed_distance_of_an_empty_and_a_full_map_is_zero() -> None:
    assert not signed_distance(torch.zeros(3, 4, dtype=torch.bool)).any()
    assert not signed_distance(torch.ones(3, 4, dtype=torch.bool)).any()


@given(
    height=st.integers(1, 8),
    width=st.integers(1, 8),
    density=st.sampled_from([0, 0.1, 0.5, 1]),
    validity=st.sampled_from([0, 0.1, 0.6, 1]),
    seed=st.integers(0, 999),
)
def test_only_valid_pixels_are_measured(height: int, width: int, density: float, validity: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask, valid = rng.random((2, height, width)) < density, rng.random((height, width)) < validity
    found = signed_distance(torch.from_numpy(mask), torch.from_numpy(valid))
    for ours, inside in zip(found.numpy(), mask):
        inside, outside = inside & valid, ~inside & valid
        expected = np.zeros((height, width))
        if inside.any() and outside.any():
            expected = np.where(outside, brute_force(inside)[0], 0) + np.where(inside, 1 - brute_force(outside)[0], 0)
        np.testing.assert_allclose(ours, expected, rtol=1e-6)
    other = torch.from_numpy(np.where(valid, mask, rng.random(mask.shape) < 0.5))
    assert torch.equal(signed_distance(other, torch.from_numpy(valid)), found)


def test_valid_everywhere_changes_nothing(rng: np.random.Generator) -> None:
    mask = torch.from_numpy(rng.random((2, 3, 20, 30)) < 0.1)
    for shape in ((20, 30), (1, 1), (2, 1, 20, 30)):
        assert torch.equal(signed_distance(mask, torch.ones(shape, dtype=torch.bool)), signed_distance(mask))


@pytest.mark.parametrize("return_indices", [False, True])
def test_operator_is_sound(return_indices: bool, rng: np.random.Generator) -> None:
    mask = torch.from_numpy(rng.random((2, 9, 11)) < 0.1)
    torch.library.opcheck(torch.ops.segzoo.distance_to.default, (mask, 1.0, 2.0, return_indices))


def weighted(weight: Tensor, mask: Tensor) -> Tensor:
    far, sites = distance_to(mask, return_indices=True)
    return (weight * (signed_distance(mask) + far + sites[..., 1, :, :])).sum()


def test_compiles_without_a_break(rng: np.random.Generator) -> None:
    mask = torch.from_numpy(rng.random((2, 30, 20)) < 0.1)
    weight = torch.rand(mask.shape, requires_grad=True)
    compiled = torch.compile(weighted, fullgraph=True, backend="aot_eager")
    (gradient,) = torch.autograd.grad(compiled(weight, mask), weight)
    (expected,) = torch.autograd.grad(weighted(weight, mask), weight)
    assert torch.equal(gradient, expected)


def test_under_grad_and_vmap(rng: np.random.Generator) -> None:
    masks = torch.from_numpy(rng.random((4, 3, 20, 10)) < 0.1)
    weights = torch.rand(masks.shape)
    gradients = torch.func.vmap(torch.func.grad(weighted))(weights, masks)
    for weight, mask, gradient in zip(weights, masks, gradients):
        assert torch.equal(torch.func.grad(weighted)(weight, mask), gradient)
    inner = torch.func.vmap(torch.func.vmap(distance_to), in_dims=2)(masks.movedim(0, 2))
    assert torch.equal(inner, distance_to(masks))


def test_exports(rng: np.random.Generator) -> None:
    class Distance(torch.nn.Module):
        def forward(self, mask: Tensor) -> Tensor:
            return signed_distance(mask)

    size = {0: torch.export.Dim("n", min=2), 1: torch.export.Dim("h", min=2)}
    program = torch.export.export(Distance(), (torch.zeros(3, 8, 9, dtype=torch.bool),), dynamic_shapes=(size,))
    mask = torch.from_numpy(rng.random((2, 20, 9)) < 0.1)
    assert torch.equal(program.module()(mask), signed_distance(mask))


@pytest.mark.gpu
def test_gpu_finds_the_same(rng: np.random.Generator) -> None:
    for size in ((1, 1), (200, 300), (9000, 4)):
        masks = torch.from_numpy(np.stack([MASKS[name](rng, *size) for name in MASKS]))
        for found, expected in zip(
            distance_to(masks.cuda(), return_indices=True), distance_to(masks, return_indices=True)
        ):
            assert torch.equal(found.cpu(), expected)
        assert torch.equal(signed_distance(masks.cuda()).cpu(), signed_distance(masks))


def test_errors_name_what_was_given() -> None:
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"mask is torch.float32, expected bool or integers"):
        distance_to(mask.float())
    with pytest.raises(ValueError, match=r"mask is \[4\], expected \[..., H, W\]"):
        signed_distance(mask[0, 0])
    for spacing in ((0.0, 1.0), (1.0, -1.0), (float("inf"), 1.0), (1.0, float("nan"))):
        with pytest.raises(ValueError, match="height and width of a pixel are positive and finite"):
            distance_to(mask, spacing=spacing)
    with pytest.raises(ValueError, match=r"valid is torch.uint8, expected torch.bool"):
        signed_distance(mask, mask.to(torch.uint8))
    for shape in ((2, 1), (5, 2, 3, 4)):
        with pytest.raises(ValueError, match=r"which does not broadcast to the mask's \[2, 3, 4\]"):
            signed_distance(mask, torch.ones(shape, dtype=torch.bool))
