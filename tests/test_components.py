"""Connected components: against SciPy and scikit-image, on shapes that are hard to join, and batches of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segzoo.ops import component_sizes, connected_components
from segzoo.ops.components import _join

pytestmark = pytest.mark.usefixtures("one_thread")

ndimage = pytest.importorskip("scipy.ndimage")
measure = pytest.importorskip("skimage.measure")


def by_scipy(mask: np.ndarray, connectivity: int) -> tuple[np.ndarray, int]:
    return ndimage.label(mask, np.ones((3, 3)) if connectivity == 8 else None)


def spiral(height: int, width: int) -> np.ndarray:
    """One line, a pixel wide, that winds to the centre with a pixel between its turns."""
    mask = np.zeros((height, width), bool)
    row, column, (down, right) = 0, 0, (0, 1)
    mask[0, 0] = True
    turned = 0
    while turned < 2:
        ahead = row + 2 * down, column + 2 * right
        step = row + down, column + right
        free = 0 <= step[0] < height and 0 <= step[1] < width
        if free and not (0 <= ahead[0] < height and 0 <= ahead[1] < width and mask[ahead]):
            row, column = step
            mask[row, column] = True
            turned = 0
        else:
            down, right = right, -down
            turned += 1
    return mask


def comb(height: int, width: int) -> np.ndarray:
    """Teeth that only the last row joins: until there each is a component of its own."""
    mask = np.zeros((height, width), bool)
    mask[:, ::2] = mask[-1] = True
    return mask


def tree(height: int, width: int) -> np.ndarray:
    """Teeth that are joined two by two, these again, and so on."""
    row, column = np.mgrid[:height, :width]
    apart = 2 ** (row // 2 + 1).clip(max=30)
    return np.where(row % 2 == 0, column % apart == 0, column % (2 * apart) <= apart)


MASKS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "spiral": lambda rng, height, width: spiral(height, width),
    "comb": lambda rng, height, width: comb(height, width),
    "comb upside down": lambda rng, height, width: comb(height, width)[::-1],
    "comb on its side": lambda rng, height, width: comb(width, height).T,
    "tree": lambda rng, height, width: tree(height, width),
    "tree upside down": lambda rng, height, width: tree(height, width)[::-1],
    "checkers": lambda rng, height, width: np.indices((height, width)).sum(0) % 2 == 0,
    "dots": lambda rng, height, width: (np.indices((height, width)) % 2 == 0).all(0),
    "zigzag": lambda rng, height, width: np.abs(np.arange(height) % 20 - 10)[:, None] == np.arange(width) % 10,
    "sparse noise": lambda rng, height, width: rng.random((height, width)) < 0.407,
    "noise": lambda rng, height, width: rng.random((height, width)) < 0.593,
    "blobs": lambda rng, height, width: ndimage.gaussian_filter(rng.standard_normal((height, width)), 3) > 0,
    "empty": lambda rng, height, width: np.zeros((height, width), bool),
    "full": lambda rng, height, width: np.ones((height, width), bool),
}


@pytest.mark.parametrize("connectivity", [4, 8])
@given(
    height=st.integers(1, 10),
    width=st.integers(1, 14),
    leading=st.sampled_from([(), (1,), (3,), (2, 0), (2, 1, 3)]),
    density=st.sampled_from([0, 0.1, 0.4, 0.6, 0.8, 1]),
    seed=st.integers(0, 999),
)
def test_numbers_a_mask_as_scipy_does(
    connectivity: int, height: int, width: int, leading: tuple[int, ...], density: float, seed: int
) -> None:
    masks = np.random.default_rng(seed).random((*leading, height, width)) < density
    labels, counts = connected_components(torch.from_numpy(masks), connectivity)
    assert labels.shape == masks.shape and labels.dtype == torch.int64
    assert counts.shape == leading and counts.dtype == torch.int64
    flat = masks.reshape(-1, height, width)
    for mask, ours, count in zip(flat, labels.view(flat.shape).numpy(), counts.view(-1).tolist()):
        expected, number = by_scipy(mask, connectivity)
        np.testing.assert_array_equal(ours, expected)
        assert count == number


@pytest.mark.parametrize("connectivity", [4, 8])
@given(
    height=st.integers(1, 10),
    width=st.integers(1, 14),
    classes=st.integers(1, 5),
    background=st.sampled_from([0, None, 2, -3]),
    dtype=st.sampled_from([torch.uint8, torch.int16, torch.uint16, torch.int64]),
    seed=st.integers(0, 999),
)
def test_numbers_a_label_map_as_skimage_does(
    connectivity: int, height: int, width: int, classes: int, background: int | None, dtype: torch.dtype, seed: int
) -> None:
    values = np.random.default_rng(seed).integers(0, classes, (height, width))
    expected, number = measure.label(
        values, background=-1 if background is None else background, return_num=True, connectivity=connectivity // 4
    )
    labels, count = connected_components(torch.from_numpy(values).to(dtype), connectivity, background=background)
    np.testing.assert_array_equal(labels.numpy(), expected)
    assert count == number


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("name", MASKS)
def test_shapes_that_are_hard_to_join(name: str, connectivity: int, rng: np.random.Generator) -> None:
    for size in ((150, 260), (260, 150), (1, 300), (300, 1)):
        mask = MASKS[name](rng, *size).copy()
        labels, count = connected_components(torch.from_numpy(mask), connectivity)
        expected, number = by_scipy(mask, connectivity)
        np.testing.assert_array_equal(labels.numpy(), expected)
        assert count == number


def test_the_shapes_are_what_their_names_say(rng: np.random.Generator) -> None:
    for name in ("spiral", "comb", "comb on its side"):
        mask = MASKS[name](rng, 100, 151)
        assert by_scipy(mask, 4)[1] == 1 and 0.4 < mask.mean() < 0.6, name
    assert [by_scipy(tree(height, 256), 4)[1] for height in (1, 2, 3, 4, 6, 100)] == [128, 64, 64, 32, 16, 1]


def test_every_round_leaves_half(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    """However the runs touch: also paths with numbers in any order, stars, and all with all."""
    sizes: list[int] = []
    contract = _join.__globals__["_contract"]

    def counted(parent: torch.Tensor) -> tuple[torch.Tensor, int]:
        step, roots = contract(parent)
        sizes.append(roots)
        return step, roots

    monkeypatch.setitem(_join.__globals__, "_contract", counted)
    count = 1000
    order = torch.from_numpy(rng.permutation(count))
    graphs = {
        "path": (order[1:], order[:-1]),
        "star": (order[:1].expand(count - 1), order[1:]),
        "pairs": (order[: count // 2], order[count // 2 :]),
        "random": tuple(torch.from_numpy(rng.integers(0, count, (2, count)))),
        "comb": (torch.arange(count - 1), torch.full((count - 1,), count - 1)),
    }
    for name, (one, other) in graphs.items():
        sizes.clear()
        upper, lower = torch.minimum(one, other), torch.maximum(one, other)
        first = _join(torch.tensor([count]), upper[upper != lower], lower[upper != lower])
        assert torch.equal(first[upper], first[lower]), name
        apart = len(first.unique())
        connected = [size - apart for size in sizes]
        assert all(2 * after <= before + 1 for before, after in pairwise(connected)), (name, sizes)
        graph = pytest.importorskip("scipy.sparse").coo_matrix((np.ones(len(one)), (one, other)), (count, count))
        assert apart == pytest.importorskip("scipy.sparse.csgraph").connected_components(graph, directed=False)[0]


def test_a_batch_is_its_maps(rng: np.random.Generator) -> None:
    masks = torch.from_numpy(np.stack([MASKS[name](rng, 50, 40) for name in MASKS]))
    labels, counts = connected_components(masks.view(2, -1, 50, 40))
    for mask, ours, count in zip(masks, labels.flatten(0, 1), counts.flatten()):
        alone, number = connected_components(mask)
        assert torch.equal(ours, alone) and count == number


@pytest.mark.parametrize("background", [-1, 256, 300, 2**40])
def test_a_background_that_the_dtype_cannot_hold_is_none(background: int, rng: np.random.Generator) -> None:
    values = torch.from_numpy(rng.choice(np.array([0, 44, 255], np.uint8), (20, 30)))
    for mask in (values, values > 0):
        labels, count = connected_components(mask, background=background)
        expected, number = connected_components(mask, background=None)
        assert torch.equal(labels, expected) and count == number and labels.all()


def test_any_layout(rng: np.random.Generator) -> None:
    mask = torch.from_numpy(rng.random((2, 40, 60, 4)) < 0.5)
    for view in (mask.permute(0, 3, 1, 2), mask[:, ::3, 1::2, 0].mT, mask[:, :, :1].expand(2, 40, 5, 4)):
        kept = view.clone()
        for ours, expected in zip(connected_components(view), connected_components(view.contiguous())):
            assert torch.equal(ours, expected)
        assert torch.equal(view, kept)


@given(
    height=st.integers(1, 10),
    width=st.integers(1, 10),
    leading=st.sampled_from([(), (3,), (0,), (2, 2)]),
    density=st.sampled_from([0, 0.3, 0.7, 1]),
    seed=st.integers(0, 999),
)
def test_sizes_are_counts(height: int, width: int, leading: tuple[int, ...], density: float, seed: int) -> None:
    mask = torch.from_numpy(np.random.default_rng(seed).random((*leading, height, width)) < density)
    labels, counts = connected_components(mask)
    sizes = component_sizes(labels)
    most = int(counts.max()) if counts.numel() else 0
    assert sizes.shape == (*leading, most + 1) and sizes.dtype == torch.int64
    for ours, numbers in zip(sizes.view(-1, most + 1), labels.view(-1, height * width)):
        assert ours.tolist() == [int((numbers == i).sum()) for i in range(most + 1)]


def test_without_pixels() -> None:
    for shape in ((0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0)):
        labels, counts = connected_components(torch.ones(shape, dtype=torch.bool))
        assert labels.shape == shape and counts.shape == shape[:-2] and not counts.any()
        assert component_sizes(labels).shape == (*shape[:-2], 1)


@pytest.mark.gpu
@pytest.mark.parametrize("connectivity", [4, 8])
def test_gpu_finds_the_same(connectivity: int, rng: np.random.Generator) -> None:
    for size in ((1, 1), (200, 300), (9000, 4)):
        masks = torch.from_numpy(np.stack([MASKS[name](rng, *size) for name in MASKS]))
        expected = connected_components(masks, connectivity)
        found = connected_components(masks.cuda(), connectivity)
        assert all(torch.equal(ours.cpu(), theirs) for ours, theirs in zip(found, expected))
        assert torch.equal(component_sizes(found[0]).cpu(), component_sizes(expected[0]))


def test_errors_name_what_was_given() -> None:
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"mask is torch.float32, expected bool or integers"):
        connected_components(mask.float())
    with pytest.raises(ValueError, match=r"mask is \[4\], expected \[..., H, W\]"):
        connected_components(mask[0, 0])
    with pytest.raises(ValueError, match=r"connectivity is 6, expected 4 or 8"):
        connected_components(mask, 6)
    for labels in (mask, mask.float(), mask[0, 0].long()):
        with pytest.raises(ValueError, match=r"expected integers \[..., H, W\]"):
            component_sizes(labels)
