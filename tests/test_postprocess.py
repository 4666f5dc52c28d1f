"""Thresholds, largest components, specks and holes: against scikit-image and SciPy, and by their properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segzoo.inference import largest_component, remove_small, threshold

pytestmark = pytest.mark.usefixtures("one_thread")


def noise(seed: int, shape: tuple[int, ...], classes: int = 2, coarse: bool = True) -> np.ndarray:
    """Label maps of random blobs."""
    rng = np.random.default_rng(seed)
    fields = rng.random((classes, *shape))
    if coarse:
        for axis in (-1, -2):
            fields = fields + np.roll(fields, 1, axis) + np.roll(fields, 2, axis)
    return fields.argmax(0)


shapes = st.tuples(st.integers(1, 14), st.integers(1, 17))


@given(shapes, st.integers(0, 999), st.sampled_from([4, 8]), st.integers(2, 4), st.booleans())
def test_largest_component_is_scipys(
    size: tuple[int, int], seed: int, connectivity: int, classes: int, coarse: bool
) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    maps = noise(seed, (2, *size), classes, coarse)
    structure = np.ones((3, 3)) if connectivity == 8 else None
    expected = np.zeros_like(maps)
    for labels, result in zip(maps, expected):
        for value in range(1, classes):
            components, count = ndimage.label(labels == value, structure)  # numbered in reading order
            if count:
                areas = np.bincount(components.ravel())[1:]
                result[components == areas.argmax() + 1] = value
    found = largest_component(maps, connectivity)
    assert isinstance(found, np.ndarray) and found.dtype == maps.dtype
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(largest_component(found, connectivity), found)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint16, np.int64])
@pytest.mark.parametrize("clean", [largest_component, lambda mask: remove_small(mask, 3)])
def test_kind_shape_and_dtype_stay(dtype: type, clean: object) -> None:
    mask = noise(0, (2, 3, 9, 11)).astype(dtype)
    if dtype in (np.uint8, np.uint16):
        mask *= np.iinfo(dtype).max
    before = mask.copy()
    found = clean(mask)
    assert found.dtype == mask.dtype and found.shape == mask.shape and set(np.unique(found)) <= set(np.unique(mask))
    tensor = clean(torch.from_numpy(mask))
    assert tensor.dtype == torch.from_numpy(mask).dtype
    np.testing.assert_array_equal(tensor.numpy(), found)
    np.testing.assert_array_equal(clean(mask[0, 1]), found[0, 1])  # every picture is by itself
    np.testing.assert_array_equal(mask, before)


def test_empty_masks_and_ties() -> None:
    assert not largest_component(np.zeros((4, 5), bool)).any()
    assert largest_component(np.array([[1, 0, 1]], np.uint8)).tolist() == [[1, 0, 0]]
    assert largest_component(np.zeros((0, 4, 5), bool)).shape == (0, 4, 5)
    assert largest_component(np.ones((3, 0), bool)).shape == remove_small(np.ones((3, 0), bool), 2).shape == (3, 0)


@given(shapes, st.integers(0, 999), st.sampled_from([4, 8]), st.integers(0, 9), st.booleans())
def test_remove_small_is_scikit_images(
    size: tuple[int, int], seed: int, connectivity: int, area: int, coarse: bool
) -> None:
    measure = pytest.importorskip("skimage.measure")
    mask = noise(seed, size, 2, coarse).astype(bool)

    def small(mask: np.ndarray, connectivity: int) -> np.ndarray:
        labels = measure.label(mask, connectivity=1 if connectivity == 4 else 2)
        return mask & (np.bincount(labels.ravel())[labels] < area)

    expected = mask & ~small(mask, connectivity)
    np.testing.assert_array_equal(remove_small(mask, area, holes=0, connectivity=connectivity), expected)
    if expected.any():
        expected = expected | small(~expected, 12 - connectivity)
    found = remove_small(mask, area, connectivity=connectivity)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(remove_small(mask * np.uint8(255), area, connectivity=connectivity) > 0, found)


@given(shapes, st.integers(0, 999), st.integers(0, 9), st.sampled_from([None, 2, 0]))
def test_patches_of_a_label_map_become_the_nearest_label(
    size: tuple[int, int], seed: int, area: int, ignore_index: int | None
) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    labels = noise(seed, size, 4)
    found = remove_small(labels, area, ignore_index=ignore_index)
    if len(set(np.unique(labels)) - {0, ignore_index}) < 2:
        return
    small = np.zeros(labels.shape, bool)
    for value in np.unique(labels):
        components, _ = ndimage.label(labels == value, np.ones((3, 3)))
        small |= (labels == value) & (np.bincount(components.ravel())[components] < area)
    ignored = np.zeros(labels.shape, bool) if ignore_index is None else labels == ignore_index
    stays = ~small & ~ignored
    expected = labels.copy()
    if stays.any():
        nearest = ndimage.distance_transform_edt(~stays, return_distances=False, return_indices=True)
        expected = np.where(small & ~ignored, labels[tuple(nearest)], labels)
    np.testing.assert_array_equal(found, expected)


def test_a_mask_with_ignored_pixels_keeps_them() -> None:
    mask = np.array([[1, 1, 1, 255, 0], [1, 0, 1, 255, 1], [1, 1, 1, 0, 0]])
    assert remove_small(mask, 2, ignore_index=255).tolist() == [[1, 1, 1, 255, 0], [1, 1, 1, 255, 0], [1, 1, 1, 0, 0]]
    assert largest_component(mask, ignore_index=255)[1].tolist() == [1, 0, 1, 255, 0]


def test_areas_are_pixels_or_shares_and_a_picture_without_foreground_gets_none() -> None:
    mask = np.zeros((10, 10), bool)
    mask[:4, :5] = mask[9, 9] = True
    assert remove_small(mask, 0.2)[:4, :5].all() and remove_small(mask, 0.2).sum() == 20
    assert not remove_small(mask, 21).any()  # and the background, smaller than the picture, is no hole in nothing
    assert not remove_small(mask, 1000).any()
    assert remove_small(~mask, 0, holes=2).sum() == (~mask).sum() + 1


@given(st.integers(0, 999), st.sampled_from([np.float32, np.float64]))
def test_otsu_is_scikit_images(seed: int, dtype: type) -> None:
    filters = pytest.importorskip("skimage.filters")
    rng = np.random.default_rng(seed)
    levels = rng.beta(*rng.uniform(0.3, 4, 2), (2, 9, 13))
    maps = ((np.floor(levels * 256).clip(0, 255) + 0.5) / 256).astype(dtype)
    found = threshold(maps, "otsu")
    for one, mask in zip(maps, found):
        counts = np.bincount((one * 256).astype(int).ravel(), minlength=256)
        at = filters.threshold_otsu(hist=(counts, np.arange(256)))  # the level that is still below
        np.testing.assert_array_equal(mask, (one * 256).astype(int) > at)


def test_thresholds() -> None:
    maps = torch.tensor([[[0.1, 0.5, 0.6]], [[0.2, 0.2, 0.2]], [[0.9, 0.9, 0.9]]])
    assert threshold(maps).tolist() == [[[False, False, True]], [[False] * 3], [[True] * 3]]
    assert threshold(maps, 0.15)[0].tolist() == [[False, True, True]]
    assert threshold(maps[:1], "adaptive").tolist() == [[[False, False, False]]]
    assert threshold(maps[:1] / 3 + torch.tensor([0, 0, 0.5]), "adaptive").tolist() == [[[False, False, True]]]
    for at in ("adaptive", "otsu"):  # nothing to split
        assert threshold(maps[1:], at).tolist() == [[[False] * 3], [[True] * 3]]
    assert isinstance(threshold(maps.numpy(), "otsu"), np.ndarray)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: largest_component(np.zeros((3, 3))), "threshold"),
        (lambda: largest_component(np.zeros(3, bool)), "expected \\[..., H, W\\]"),
        (lambda: largest_component(np.zeros((3, 3), bool), 6), "expected 4 or 8"),
        (lambda: remove_small(np.zeros((3, 3), bool), -1), "the area is -1"),
        (lambda: remove_small(np.zeros((3, 3), bool), 2, holes=float("nan")), "the area is nan"),
        (lambda: remove_small(torch.zeros(3, 3), 2), "threshold"),
        (lambda: threshold(np.zeros((3, 3), np.uint8)), "floating point"),
        (lambda: threshold(np.full((3, 3), np.nan)), "0…1, got nan"),
        (lambda: threshold(np.zeros((3, 3)), "otzu"), "did you mean 'otsu'"),
        (lambda: threshold(np.zeros((3, 3)), 127), "the threshold is 127"),
        (lambda: threshold(np.zeros((3, 3)), None), "the threshold is None"),
        (lambda: threshold(np.zeros((3, 3)), [0.5]), "the threshold is \\[0.5\\]"),
    ],
)
def test_errors(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="mask is a list, expected a NumPy array or a tensor"):
        largest_component([[1, 0]])


@given(shapes, st.integers(0, 999), st.sampled_from([4, 8]), st.integers(0, 9), st.sampled_from([None, 3, 0]))
def test_a_batch_is_its_pictures_one_by_one(
    size: tuple[int, int], seed: int, connectivity: int, area: int, ignore_index: int | None
) -> None:
    """Masks of different values, label maps and empty ones in one batch."""
    values = [[0, 1], [0, 2], [0, 3, 2], [0, 0], [1, 2], [-5, 4], [0, 2, 1, 3]]
    maps = np.stack([np.take(v, noise(seed + i, size, len(v))) for i, v in enumerate(values)])
    options = {"connectivity": connectivity, "ignore_index": ignore_index}
    for labels in (None, True):
        together = remove_small(maps, area, labels=labels, **options)
        alone = [remove_small(one, area, labels=labels, **options) for one in maps]
        np.testing.assert_array_equal(together, np.stack(alone))
    np.testing.assert_array_equal(
        largest_component(maps, **options), np.stack([largest_component(one, **options) for one in maps])
    )


def test_whether_it_is_a_label_map_can_be_said() -> None:
    """A ring that is too small goes from a mask, with what it encloses; a label map keeps what is large enough."""
    ring = np.zeros((8, 8), np.int64)
    ring[1:5, 1:5] = 1
    ring[2:4, 2:4] = 0
    assert remove_small(ring, 5)[2:4, 2:4].all()
    assert remove_small(ring, 5, labels=False)[2:4, 2:4].all()
    np.testing.assert_array_equal(remove_small(ring, 4, labels=True), ring)
    both = ring.copy()
    both[7] = 2
    inside = (slice(2, 4), slice(2, 4))
    other = remove_small(both, 5)[inside]
    np.testing.assert_array_equal(remove_small(ring, 5, labels=True)[inside], other)
    np.testing.assert_array_equal(remove_small(ring > 0, 5, labels=True)[inside], other > 0)
    with pytest.raises(ValueError, match="one value beside 0 in a picture, this one has several"):
        remove_small(both, 5, labels=False)
    for maps, labels in ((both, None), (ring, True), (np.stack((ring, both)), None)):
        with pytest.raises(ValueError, match="holes are a mask's, this is a label map"):
            remove_small(maps, 5, holes=0, labels=labels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.uint16, torch.bool])
@pytest.mark.parametrize("ignore_index", [-1, -256, 255 + 256, 2**40])
def test_a_label_that_the_dtype_cannot_hold_is_nowhere(dtype: torch.dtype, ignore_index: int) -> None:
    highest = 1 if dtype == torch.bool else torch.iinfo(dtype).max
    values = [1, 0, 1, 1] if dtype == torch.bool else [highest, 0, highest, highest, 0, 0]
    if ignore_index == 255 + 256 and dtype == torch.uint16:
        return
    if ignore_index in (-1,) and dtype == torch.int8:
        return
    mask = torch.tensor([values]).to(dtype)
    for clean in (lambda m, **o: remove_small(m, 2, **o), largest_component):
        assert torch.equal(clean(mask, ignore_index=ignore_index), clean(mask))


def test_the_largest_of_many_labels() -> None:
    """Each label of a thousand twice: the larger part stays, of equals the first, in one pass."""
    ids = np.arange(1, 1001).reshape(25, 40)
    maps = np.zeros((2, 100, 160), np.int64)
    maps[:, ::4, ::4] = ids
    maps[:, 2::4, 2::4] = ids
    maps[1, 2::4, 3::4] = ids
    found = largest_component(maps)
    expected = np.zeros_like(maps)
    expected[0, ::4, ::4] = expected[1, 2::4, 2::4] = expected[1, 2::4, 3::4] = ids
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@given(st.integers(0, 999), st.integers(1, 8), st.integers(2, 40))
def test_otsu_of_values_on_the_borders_of_levels(dtype: torch.dtype, seed: int, step: int, width: int) -> None:
    filters = pytest.importorskip("skimage.filters")
    level = np.random.default_rng(seed).integers(100, 101 + 2 * step, (3, width)).clip(0, 255)
    maps = torch.from_numpy(level / 256).to(dtype)  # exact: eight bits
    if level.min() == level.max():
        return
    at = filters.threshold_otsu(hist=(np.bincount(level.ravel(), minlength=256), np.arange(256)))
    found = threshold(maps, "otsu").numpy()
    assert level[found].min() > level[~found].max()

    def spread(mask: np.ndarray) -> float:
        return float(sum(((group - group.mean()) ** 2).sum() for group in (level[mask], level[~mask])))

    np.testing.assert_allclose(spread(found), spread(level > at), atol=1e-9)  # of equally good splits either


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    mask = torch.from_numpy(noise(0, (2, 60, 70), 3))
    for clean in (largest_component, lambda m: remove_small(m, 9), lambda m: remove_small(m > 0, 9)):
        assert torch.equal(clean(mask.cuda()).cpu(), clean(mask))
