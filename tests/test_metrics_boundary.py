"""BoundaryMetrics against its definitions by brute force, MONAI, SciPy and OpenCV."""

from __future__ import annotations

import copy
import io
import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segzoo.metrics import _surface
from segzoo.metrics._surface import CodeMap, Points, nearest_squares
from segzoo.metrics.boundary import BoundaryMetrics

Mask = NDArray[np.bool_]
DISTANCES = ("hausdorff", "hd95", "assd")
SHARES = ("surface_dice", "boundary_precision", "boundary_recall", "boundary_f1", "relaxed_f", "boundary_iou")
MEASURES = DISTANCES + SHARES
SPACINGS = [(1.0, 1.0), (0.5, 0.5), (1.0, 2.5), (3.0, 0.7)]


def around(y: int, x: int, height: int, width: int, reach: int) -> Iterator[tuple[int, int]]:
    for v in range(max(0, y - reach), min(height, y + reach + 1)):
        for u in range(max(0, x - reach), min(width, x + reach + 1)):
            yield v, u


def rim_by_definition(mask: Mask, counted: Mask) -> Mask:
    height, width = mask.shape
    rim = np.zeros_like(mask)
    for y, x in np.argwhere(mask & counted):
        border = y in (0, height - 1) or x in (0, width - 1)
        beside = [(v, u) for v, u in around(y, x, height, width, 1) if abs(v - y) + abs(u - x) == 1]
        rim[y, x] = border or any(counted[v, u] and not mask[v, u] for v, u in beside)
    return rim


def band_by_definition(mask: Mask, counted: Mask, reach: int) -> Mask:
    height, width = mask.shape
    band = np.zeros_like(mask)
    for y, x in np.argwhere(mask & counted):
        border = min(y, x, height - 1 - y, width - 1 - x) < reach
        band[y, x] = border or any(counted[p] and not mask[p] for p in around(y, x, height, width, reach))
    return band


def by_definition(mine: Mask, theirs: Mask, counted: Mask | None = None, **given: Any) -> dict[str, float]:
    """All measures in float64 from a table of all distances, with NumPy's own percentile."""
    spacing = np.array(given.get("spacing", (1.0, 1.0)))
    counted = np.ones_like(mine) if counted is None else counted
    result = dict.fromkeys(MEASURES, math.nan)
    reach = max(1, round(given.get("iou_dilation", 0.02) * math.hypot(*mine.shape)))
    bands = [band_by_definition(mask, counted, reach) for mask in (mine, theirs)]
    if (bands[0] | bands[1]).any():
        result["boundary_iou"] = (bands[0] & bands[1]).sum() / (bands[0] | bands[1]).sum()
    rims = [np.argwhere(rim_by_definition(mask, counted)) * spacing for mask in (mine, theirs)]
    if not len(rims[0]) and not len(rims[1]):
        return result
    if not len(rims[0]) or not len(rims[1]):
        return (
            dict.fromkeys(DISTANCES, math.inf) | dict.fromkeys(SHARES, 0.0) | {"boundary_iou": result["boundary_iou"]}
        )
    table = np.sqrt(((rims[0][:, None] - rims[1]) ** 2).sum(-1))
    there, back = table.min(1), table.min(0)
    percentile = given.get("percentile", 95)
    result["hausdorff"] = max(there.max(), back.max())
    result["hd95"] = max(np.percentile(there, percentile), np.percentile(back, percentile))
    if given.get("directed") == "pooled":
        result["hd95"] = np.percentile(np.concatenate((there, back)), percentile)
    result["assd"] = np.concatenate((there, back)).mean()
    for tolerance, beta2, keys in (
        (given.get("tolerance", 2.0), 1.0, SHARES[1:4]),
        (given.get("relaxed_tolerance", 3.0), 0.3, ("", "", "relaxed_f")),
    ):
        precision, recall = ((d <= tolerance + 1e-9).mean() for d in (there, back))
        f = (1 + beta2) * precision * recall / (beta2 * precision + recall) if precision * recall else 0.0
        result.update(zip(keys, (precision, recall, f)))
    del result[""]
    result["surface_dice"] = (np.concatenate((there, back)) <= given.get("tolerance", 2.0) + 1e-9).mean()
    return result


def measured(mine: Any, theirs: Any, **options: Any) -> dict[str, float]:
    metric = BoundaryMetrics(**options)
    metric.update(mine, theirs)
    return {("hd95" if k[:2] == "hd" else k): v.item() for k, v in metric.per_picture().items()}


def same(found: dict[str, float], expected: dict[str, float], tolerance: float = 1e-12) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=tolerance, abs=tolerance, nan_ok=True), name


def blob(rng: np.random.Generator, height: int, width: int, reach: float = 0.3) -> Mask:
    """A wobbly disc, somewhere about the middle."""
    y, x = np.mgrid[:height, :width]
    y, x = (y - height * rng.uniform(0.35, 0.65)) / height, (x - width * rng.uniform(0.35, 0.65)) / width
    angle = np.arctan2(y, x)
    wobble = sum(rng.normal() * np.sin(k * angle + rng.uniform(0, 6)) / k for k in range(2, 7))
    mask: Mask = np.hypot(y, x) < reach * (1 + 0.2 * wobble)
    return mask


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Mask, Mask, Mask]:
    """Two masks and what counts: mostly alike or not at all, full, empty or with holes."""
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    shape = draw(st.integers(1, 11)), draw(st.integers(1, 11))
    mine = rng.random(shape) < draw(st.sampled_from([0, 0.1, 0.5, 0.9, 1]))
    noise = rng.random(shape) < draw(st.sampled_from([0, 0.1, 0.5]))
    return mine, mine ^ noise, rng.random(shape) < draw(st.sampled_from([0.5, 0.9, 1]))


@settings(max_examples=150)
@given(
    masks=pairs(),
    spacing=st.sampled_from(SPACINGS),
    directed=st.sampled_from(["max", "pooled"]),
    percentile=st.sampled_from([0, 50, 95, 99.5, 100]),
    tolerance=st.sampled_from([0, 1, 2.5]),
    iou_dilation=st.sampled_from([0.02, 0.2, 1]),
)
def test_equals_the_definitions(masks: tuple[Mask, Mask, Mask], **options: Any) -> None:
    mine, theirs, _ = masks
    same(measured(mine, theirs, **options), by_definition(mine, theirs, **options))


@settings(max_examples=100)
@given(masks=pairs(), spacing=st.sampled_from(SPACINGS), iou_dilation=st.sampled_from([0.02, 0.2]))
def test_ignored_pixels_are_neither_object_nor_outside(masks: tuple[Mask, Mask, Mask], **options: Any) -> None:
    mine, theirs, counted = masks
    target = np.where(counted, theirs, 7)
    found = measured(mine, target, ignore_index=7, **options)
    same(found, by_definition(mine, theirs, counted, **options))
    assert str(measured(mine ^ ~counted, target, ignore_index=7, **options)) == str(found)


@settings(max_examples=60)
@given(seed=st.integers(0, 9999), size=st.integers(1, 12), classes=st.sampled_from([2, 3, 300]), ignoring=st.booleans())
def test_each_class_is_measured_as_an_object_of_its_own(seed: int, size: int, classes: int, ignoring: bool) -> None:
    rng = np.random.default_rng(seed)
    shown = sorted({0, 1, classes - 1})
    mine = rng.choice(shown, (2, size, 8))
    target = np.where(rng.random(mine.shape) < 0.7, mine, rng.choice(shown, mine.shape))
    target[rng.random(mine.shape) < 0.2 * ignoring] = 999
    metric = BoundaryMetrics(classes, classes=shown[-2:], ignore_index=999)
    metric.update(mine, target)
    for i, label in enumerate(shown[-2:]):
        alone = BoundaryMetrics(ignore_index=999)
        alone.update(mine == label, np.where(target == 999, 999, target == label))
        for name, values in alone.per_picture().items():
            assert metric.per_picture()[name][:, i].tolist() == pytest.approx(values[:, 0].tolist(), nan_ok=True), name


def coordinates(mask: Mask) -> Points:
    return Points(*np.nonzero(mask))


@given(
    seed=st.integers(0, 9999),
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    densities=st.tuples(*[st.sampled_from([0.001, 0.05, 0.6])] * 2),
    aspect=st.sampled_from([1.0, 0.3, 6.25]),
)
def test_every_way_to_the_nearest_point_gives_the_same_digits(
    seed: int, height: int, width: int, densities: tuple[float, float], aspect: float
) -> None:
    rng = np.random.default_rng(seed)
    masks = [rng.random((height, width)) < density for density in densities]
    for mask in masks:
        mask[rng.integers(height), rng.integers(width)] = True
    first, second = map(coordinates, masks)
    down, across = (getattr(first, v)[:, None] - getattr(second, v) for v in "yx")
    squares = down**2 + aspect * across.astype(float) ** 2
    size = (height, width)
    for points, sites, expected in ((first, second, squares.min(1)), (second, first, squares.min(0))):
        np.testing.assert_array_equal(_surface._by_pairs(points, sites, aspect, size)[0], expected)
        np.testing.assert_array_equal(_surface._by_pairs(sites, points, aspect, size)[1], expected)
        for search in (_surface._by_map, _surface._by_tree)[: 1 if _surface._tree() is None else 2]:
            close = search(points, sites, aspect, size)
            np.testing.assert_allclose(close, expected, rtol=1e-15 if aspect == 1 else 1e-12)
        for reaches in ((2,), (4, 16), (1, 2, 8, 64)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(_surface, "_REACHES", reaches)
                patch.setattr(_surface, "_SMALL", 0)
                found, left = _surface._by_columns(points, sites, aspect, size)
                near = np.setdiff1d(np.arange(len(points)), left)
                np.testing.assert_array_equal(found[near], expected[near])
                assert (expected[left] >= reaches[-1] ** 2 * min(1, aspect)).all()
                for cost in (0, 10**9):  # all by the map, all by pairs
                    patch.setattr(_surface, "_MAP_COST", cost)
                    whole = _surface._one_way(points, sites, aspect, size)
                    np.testing.assert_allclose(whole, expected, rtol=0 if aspect == 1 or cost else 1e-12)


def test_nearest_points_of_large_rims(rng: np.random.Generator) -> None:
    """As `nearest_squares` chooses by itself: near and far, in blocks, and where float32 would not be exact."""
    near = coordinates(rng.random((300, 400)) < 0.01)
    far = Points(near.y // 2 + 3100, near.x // 3 + 4001)
    for first, second in ((near, coordinates(rng.random((300, 400)) < 0.05)), (near, far), (far, near)):
        table = (first.y[:, None] - second.y) ** 2 + (first.x[:, None] - second.x) ** 2
        there, back = nearest_squares(first, second)
        np.testing.assert_array_equal(there, table.min(1))
        np.testing.assert_array_equal(back, table.min(0))


def test_rims_are_those_of_scipy(rng: np.random.Generator) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    for height, width in ((1, 1), (1, 9), (9, 1), (2, 2), (31, 47)):
        for mask in (blob(rng, height, width), rng.random((height, width)) < 0.8, np.ones((height, width), np.bool_)):
            (rim,) = CodeMap(mask.view(np.uint8), 1, False).rims()
            expected = np.argwhere(mask ^ ndimage.binary_erosion(mask))
            np.testing.assert_array_equal(np.stack((rim.y, rim.x), 1), expected)


@pytest.fixture(scope="module")
def monai_metrics() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("monai.metrics")


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
def test_equals_monai(monai_metrics: Any, spacing: tuple[float, float], rng: np.random.Generator) -> None:
    masks = np.stack([[blob(rng, 90, 120), blob(rng, 90, 120)] for _ in range(4)] + [[blob(rng, 90, 120)] * 2])
    masks[1] ^= rng.random(masks[1].shape) < 0.02
    masks[2, 0, :60] = True
    masks[3] = False
    masks[3, :, 5, 7], masks[3, 1, 80, 3:9] = True, True
    mine, theirs = torch.from_numpy(masks).unbind(1)
    metric = BoundaryMetrics(spacing=spacing, tolerance=3.3)
    metric.update(mine, theirs)
    one, other = mine[:, None].float(), theirs[:, None].float()
    options: dict[str, Any] = {"include_background": True, "spacing": spacing}
    expected = {
        "hausdorff": monai_metrics.compute_hausdorff_distance(one, other, **options),
        "hd95": monai_metrics.compute_hausdorff_distance(one, other, percentile=95, **options),
        "assd": monai_metrics.compute_average_surface_distance(one, other, symmetric=True, **options),
        "surface_dice": monai_metrics.compute_surface_dice(one, other, [3.3], use_subvoxels=False, **options),
    }
    for name, values in expected.items():
        torch.testing.assert_close(metric.per_picture()[name], values.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (8, 40), (60, 80), (300, 200)])
def test_boundary_iou_equals_the_authors_code(size: tuple[int, int], rng: np.random.Generator) -> None:
    cv2 = pytest.importorskip("cv2")

    def band(mask: Mask, share: float) -> Mask:
        width = max(1, round(share * math.hypot(*size)))
        padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
        eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
        return (mask - eroded).astype(np.bool_)

    for share in (0.02, 0.005, 0.15, 0.6):
        for mine in (np.ones(size, np.bool_), blob(rng, *size, 0.4), blob(rng, *size, 0.8), rng.random(size) < 0.97):
            theirs = mine ^ (rng.random(size) < 0.02)
            one, other = band(mine, share), band(theirs, share)
            expected = (one & other).sum() / (one | other).sum() if (one | other).any() else math.nan
            found = measured(mine, theirs, iou_dilation=share)["boundary_iou"]
            assert found == pytest.approx(expected, abs=1e-15, nan_ok=True)


def test_figures_worked_out_by_hand() -> None:
    target = np.zeros((20, 20), np.bool_)
    target[5, 3:13] = True  # ten pixels in a row, all of them rim
    mine = np.zeros_like(target)
    mine[9, 3:11] = True  # eight, four rows lower
    expected = {"hausdorff": math.sqrt(20), "assd": (16 * 4 + math.sqrt(17) + math.sqrt(20)) / 18}
    expected |= {"surface_dice": 16 / 18, "boundary_precision": 1.0, "boundary_recall": 0.8, "boundary_f1": 1.6 / 1.8}
    expected |= {"relaxed_f": 1.3 * 0.8 / (0.3 + 0.8), "boundary_iou": 0.0}
    expected["hd95"] = math.sqrt(17) + 0.55 * (math.sqrt(20) - math.sqrt(17))  # between the 9th and 10th of ten
    same(measured(mine, target, tolerance=4, relaxed_tolerance=4), expected)
    expected["hd95"] = 4 + 0.15 * (math.sqrt(17) - 4)  # between the 17th and 18th of eighteen
    found = measured(mine, target, tolerance=4, relaxed_tolerance=4, directed="pooled")
    expected["hd95"] = math.sqrt(17) + 0.15 * (math.sqrt(20) - math.sqrt(17))
    same(found, expected)


def test_a_tolerance_is_reached_whatever_the_spacing() -> None:
    mine = np.zeros((9, 9), np.bool_)
    mine[2, 2] = True
    for step in (0.1, 0.3, 0.7, 1.1):
        for distance in (1, 2, 3, 6):
            found = measured(mine, np.roll(mine, distance, 0), spacing=(step, step), tolerance=step * distance)
            assert found["surface_dice"] == 1 and found["hausdorff"] == pytest.approx(step * distance)
            found = measured(mine, np.roll(mine, distance, 0), spacing=(step, step), tolerance=step * distance - 1e-6)
            assert found["surface_dice"] == 0


EMPTY, FULL, DOT = (np.zeros((7, 9), np.bool_) for _ in range(3))
FULL[:] = True
DOT[3, 4] = True
CORNER = np.zeros_like(DOT)
CORNER[0, 0] = True
ABSENT = dict.fromkeys(MEASURES, math.nan)
MISSED = dict.fromkeys(DISTANCES, math.inf) | dict.fromkeys(SHARES, 0.0)
PERFECT = dict.fromkeys(DISTANCES, 0.0) | dict.fromkeys(SHARES, 1.0)


@pytest.mark.parametrize(
    ("mine", "theirs", "expected", "one_empty", "both_empty"),
    [
        (EMPTY, EMPTY, ABSENT, 0, 1),
        (EMPTY, DOT, MISSED, 1, 0),
        (FULL, EMPTY, MISSED, 1, 0),
        (DOT, DOT, PERFECT, 0, 0),
        (CORNER, CORNER, PERFECT, 0, 0),
        (FULL, FULL, PERFECT, 0, 0),
        (DOT, CORNER, dict.fromkeys(DISTANCES, 5.0) | dict.fromkeys(SHARES, 0.0), 0, 0),
        (DOT, np.full((7, 9), 255), ABSENT, 0, 1),
        (DOT, np.where(DOT, 255, 0), ABSENT, 0, 1),
        (DOT, np.where(DOT, 1, 255), ABSENT, 0, 1),  # it meets nothing but ignored pixels
        (np.where(DOT, 3, 1), np.where(DOT, 255, 1), PERFECT, 0, 0),
    ],
)
def test_corner_cases(
    mine: NDArray[Any], theirs: NDArray[Any], expected: dict[str, float], one_empty: int, both_empty: int
) -> None:
    metric = BoundaryMetrics(ignore_index=255)
    metric.update(mine, theirs)
    result = metric.compute()
    same({name: result[name] for name in MEASURES}, expected)
    assert (result["one_empty"].tolist(), result["both_empty"].tolist()) == ([one_empty], [both_empty])
    assert result["pictures"] == 1
    for name in DISTANCES:
        finite = expected[name] if math.isfinite(expected[name]) else math.nan
        assert result[f"{name}_finite"] == pytest.approx(finite, nan_ok=True)


def test_without_pictures_nothing_is_known() -> None:
    metric = BoundaryMetrics(3)
    for empty in (None, np.zeros((0, 4, 5), np.int64)):
        if empty is not None:
            metric.update(empty, empty)
        result = metric.compute()
        assert result["pictures"] == 0 and result["one_empty"].tolist() == [0, 0, 0]
        assert all(math.isnan(result[name]) for name in MEASURES)
        assert metric.per_picture()["assd"].shape == (0, 3)
        assert len(metric.table().splitlines()) == 6


def test_means_leave_out_the_absent_and_keep_the_infinite() -> None:
    target = np.zeros((3, 8, 8), np.int64)
    target[:, 2:5, 2:5] = 1
    target[1, 7, 7] = 2
    mine = np.where(target == 2, 0, target)
    mine[0, 2] = 0  # class 1 has lost a row
    metric = BoundaryMetrics(4, class_names=["ground", "cat", "dog", "cow"])
    metric.update(mine, target)
    result, every = metric.compute(), metric.per_picture()
    assert result["one_empty"].tolist() == [0, 0, 1, 0] and result["both_empty"].tolist() == [0, 0, 2, 3]
    assert (result["hausdorff"], result["hd95"], result["assd"]) == (math.inf,) * 3
    assert result["hausdorff_per_class"].isinf().tolist() == [False, False, True, False]
    per_class = [every["assd"][:, c].mean().item() for c in (0, 1)]
    assert per_class[1] > 0
    assert result["assd_per_class"][:2].tolist() == pytest.approx(per_class)
    assert result["assd_finite"] == pytest.approx(sum(per_class) / 2)
    assert result["assd_finite_per_class"][2].isnan() and result["assd_per_class"][3].isnan()
    dice = [every["surface_dice"][:, c].mean().item() for c in (0, 1)]
    assert result["surface_dice"] == pytest.approx((sum(dice) + 0) / 3)  # the dog counts as 0, the cow not at all
    assert result["surface_dice_per_class"][2] == 0
    lines = metric.table().splitlines()
    assert lines[3].split()[:5] == ["dog", "1", "1", "nan", "nan"]
    assert lines[5].split()[:3] == ["mean", "7", "1"]
    assert lines[6].startswith("1 of 7 distances are infinite")
    assert max(map(len, lines)) <= 100


def test_the_definition_names_what_was_measured() -> None:
    metric = BoundaryMetrics(percentile=90, directed="pooled", spacing=(0.5, 2), tolerance=1.5)
    assert metric.measures[1] == "hd90" and "hd90_finite" in metric.compute()
    for words in ("4-neighbour", "hd90: both directions together", "linear", "0.5 × 2", "within 1.5", "within 3"):
        assert words in metric.compute()["definition"]
    assert "maximum of the two directions" in BoundaryMetrics().definition


def some_pictures(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    target = rng.integers(0, 3, (7, 40, 30))
    target[2:] = (np.stack([blob(rng, 40, 30) for _ in range(5)])) * 2
    target[3, :5] = 255
    mine = np.where(rng.random(target.shape) < 0.03, 1, np.where(target == 255, 0, np.roll(target, 2, 1) % 255))
    mine[4] = 0
    return torch.from_numpy(mine), torch.from_numpy(target)


def digits(metric: BoundaryMetrics) -> str:
    torch.set_printoptions(precision=17)
    try:
        return repr(metric.compute())
    finally:
        torch.set_printoptions(profile="default")


def test_batches_merged_and_saved_give_the_same_digits(rng: np.random.Generator) -> None:
    mine, target = some_pictures(rng)
    whole, single, left, right = (BoundaryMetrics(3) for _ in range(4))
    whole.update(mine, target)
    for one, other in zip(mine, target):
        single.update(one, other)
    right.update(mine[:3], target[:3])
    left.update(mine[3:], target[3:])
    assert whole.compute()["one_empty"].sum() > 0
    assert digits(single) == digits(whole)
    assert digits(left.merge(right)) == digits(whole) == digits(BoundaryMetrics(3).merge(left))
    file = io.BytesIO()
    torch.save(single.state_dict(), file)
    file.seek(0)
    again = BoundaryMetrics(3)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert digits(again) == digits(whole)
    again.update(mine[0], target[0])
    assert again.compute()["pictures"] == 8 and whole.compute()["pictures"] == 7
    whole.reset()
    assert whole.compute()["pictures"] == 0
    for options in ({"spacing": (1, 2)}, {"classes": [1]}, {"directed": "pooled"}, {"tolerance": 1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            whole.merge(BoundaryMetrics(3, **options))


def test_swapping_prediction_and_target(rng: np.random.Generator) -> None:
    for spacing in SPACINGS:
        for _ in range(3):
            one, other = (blob(rng, 60, 50) ^ (rng.random((60, 50)) < 0.01) for _ in range(2))
            there, back = (measured(*pair, spacing=spacing) for pair in ((one, other), (other, one)))
            for name in (*DISTANCES, "surface_dice", "boundary_f1", "boundary_iou"):
                assert there[name] == back[name], name
            assert there["boundary_precision"] == back["boundary_recall"]
            turned = measured(one.T, other.T, spacing=spacing[::-1])
            same(turned, there)


def test_kinds_of_input(rng: np.random.Generator) -> None:
    mine, target = np.stack([blob(rng, 30, 40) for _ in range(4)]).reshape(2, 2, 30, 40)
    metric = BoundaryMetrics()
    metric.update(mine, target)
    expected = digits(metric)
    probabilities = np.where(mine, 0.5 + 0.5 * rng.random(mine.shape), 0.5 * rng.random(mine.shape)) + mine * 1e-3
    probabilities = probabilities.clip(0, 1)
    probabilities[~mine & (rng.random(mine.shape) < 0.2)] = 0.5  # not more than a half: no object
    read_only = probabilities.copy()
    read_only.flags.writeable = False
    predictions: list[Any] = [mine.astype(t) for t in ("uint8", "int16", "int64", "float16", "float32")]
    predictions += [torch.from_numpy(mine).to(t) for t in (torch.uint8, torch.int64, torch.bfloat16)]
    predictions += [probabilities, read_only, torch.from_numpy(probabilities).float().requires_grad_()]
    predictions += [torch.from_numpy(mine)[:, None], mine[:, None].astype(np.float64)]
    for prediction in predictions:
        for truth in (target, torch.from_numpy(target)[:, None].float()):
            kept = copy.deepcopy(prediction)
            metric.reset()
            metric.update(prediction, truth)
            assert digits(metric) == expected
            assert (kept == prediction).all()


def test_kinds_of_labels(rng: np.random.Generator) -> None:
    mine, target = some_pictures(rng)
    metric = BoundaryMetrics(3)
    metric.update(mine, target)
    expected = digits(metric)
    scores = torch.nn.functional.one_hot(mine, 3).movedim(-1, 1) + 0.9 * torch.rand(7, 3, 40, 30)
    flipped = np.ascontiguousarray(scores.numpy()[:, :, ::-1])[:, :, ::-1]  # strides below zero
    outside = torch.where(target == 255, -5, mine)  # at ignored pixels the prediction is not looked at
    unknown = torch.where((target == 255)[:, None], math.nan, scores)
    for prediction in (mine.to(torch.uint8), mine.numpy(), mine[:, None], scores, flipped, outside, unknown):
        metric.reset()
        metric.update(prediction, target.to(torch.int32)[:, None])
        assert digits(metric) == expected
    metric.reset()
    for prediction, truth in zip(scores, target):
        metric.update(prediction, truth)
    assert digits(metric) == expected


def checkerboard(size: int) -> Mask:
    board: Mask = np.indices((size, size)).sum(0) % 2 == 0
    return board


def test_large_rims() -> None:
    board = checkerboard(512)
    found = measured(board, ~board)
    assert (found["hausdorff"], found["assd"], found["surface_dice"], found["boundary_iou"]) == (1, 1, 1, 0)
    left, right = board.copy(), board.copy()
    left[:, 200:], right[:, :300] = False, False
    found = measured(left, right)  # too many pairs to look at each
    columns = np.arange(200)
    assert found["hausdorff"] == 312 and found["surface_dice"] == 0
    assert found["assd"] == pytest.approx(np.concatenate((300 - columns, np.arange(300, 512) - 199)).mean(), abs=0.01)
    dot = np.zeros((1024, 1024), np.bool_)
    dot[3, 5] = True
    assert measured(dot, checkerboard(1024))["hausdorff"] == pytest.approx(math.hypot(1020, 1018))
    assert measured(dot, dot[::-1, ::-1])["hausdorff"] == pytest.approx(math.hypot(1017, 1013))


@pytest.mark.gpu
def test_gpu_finds_the_same(rng: np.random.Generator) -> None:
    mine, target = some_pictures(rng)
    one, other = BoundaryMetrics(3), BoundaryMetrics(3)
    one.update(mine, target)
    other.update(mine.cuda(), target.cuda())
    assert digits(one) == digits(other)


def test_nothing_warns(rng: np.random.Generator) -> None:
    bad = np.full((4, 4), np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="prediction holds nan in picture 0, row 0, column 0"):
            BoundaryMetrics().update(bad, np.zeros((4, 4), np.bool_))
        BoundaryMetrics(ignore_index=9).update(bad, np.full((4, 4), 9))


def at(shape: tuple[int, ...], place: tuple[int, ...], value: float, dtype: torch.dtype) -> torch.Tensor:
    values = torch.zeros(shape, dtype=dtype)
    values[place] = value
    return values


LABELS = torch.zeros(2, 4, 5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("num_classes", "prediction", "target", "message"),
    [
        (1, at((2, 4, 5), (1, 2, 3), 2, torch.int64), LABELS, "prediction holds 2 in picture 1, row 2, column 3, exp"),
        (1, at((2, 4, 5), (1, 2, 3), -1, torch.int8), LABELS, "prediction holds -1 in picture 1, row 2, column 3"),
        (
            1,
            at((2, 4, 5), (0, 0, 1), math.nan, torch.float32),
            LABELS,
            "holds nan in picture 0, row 0, column 1, expec",
        ),
        (1, at((2, 4, 5), (0, 3, 1), -2.5, torch.float32), LABELS, r"holds -2.5 .* 0…1 \(of logits take the sigmoid\)"),
        (1, LABELS, at((2, 4, 5), (1, 1, 1), 255, torch.uint8), "target holds 255 in .*, expected 0 or 1: divide by"),
        (1, LABELS, at((2, 4, 5), (1, 1, 1), 0.5, torch.float32), "target holds 0.5 in picture 1, row 1, column 1"),
        (1, LABELS, at((2, 4, 5), (1, 1, 1), math.nan, torch.float32), "target holds nan in picture 1, row 1, colu"),
        (3, LABELS, at((2, 4, 5), (1, 1, 1), 3, torch.int64), "target holds 3 .* labels 0…2 or ignore_index=255"),
        (3, at((2, 4, 5), (0, 1, 4), 255, torch.uint8), LABELS, "prediction holds 255 in picture 0, row 1, column 4"),
        (3, at((2, 3, 4, 5), (1, 2, 3, 4), math.nan, torch.float32), LABELS, "holds nan in picture 1, row 3, column 4"),
        (3, LABELS.bool(), LABELS, "prediction is bool, expected integer labels or floating point scores"),
        (3, LABELS, LABELS.float(), "target is float32, expected integer labels"),
        (3, torch.zeros(2, 4, 4, 5), LABELS, r"prediction is \[2, 4, 4, 5\] and target \[2, 4, 5\], .* \[N, 3, H, W\]"),
        (3, LABELS.float(), LABELS, r"prediction is \[2, 4, 5\] and target \[2, 4, 5\], expected"),
        (1, LABELS[:1], LABELS, r"prediction is \[1, 4, 5\] and target \[2, 4, 5\], expected both"),
        (1, LABELS[:, None].expand(2, 2, 4, 5), LABELS, r"prediction is \[2, 2, 4, 5\] and target \[2, 4, 5\]"),
        (1, LABELS[0, 0], LABELS[0, 0], r"prediction is \[5\] and target \[5\]"),
        (1, LABELS[:, :0], LABELS[:, :0], "there are no pixels"),
        (1, LABELS.to(torch.complex64), LABELS, "prediction is complex64, expected bool, integers or floating point"),
    ],
)
def test_errors_say_what_and_where(num_classes: int, prediction: Any, target: Any, message: str) -> None:
    metric = BoundaryMetrics(num_classes)
    with pytest.raises(ValueError, match=message):
        metric.update(prediction, target)
    assert metric.compute()["pictures"] == 0


def test_an_ignored_class_is_not_measured() -> None:
    metric = BoundaryMetrics(3, ignore_index=0)
    metric.update(torch.ones_like(LABELS), at((2, 4, 5), (0, 1, 2), 1, torch.int64))
    assert metric.classes == (1, 2) and metric.compute()["both_empty"].tolist() == [2, 2]
    assert BoundaryMetrics(2).classes == (0, 1) and BoundaryMetrics(2, ignore_index=None).ignore_index is None


def test_other_errors() -> None:
    with pytest.raises(TypeError, match="target is a list, expected a tensor or a numpy array"):
        BoundaryMetrics().update(LABELS, [[0]])
    for options, message in (
        ({"num_classes": 0}, "num_classes is 0"),
        ({"num_classes": 2.0}, "num_classes is 2.0, expected an integer"),
        ({"ignore_index": 1}, "ignore_index is 1, expected another value than 0 and 1"),
        ({"num_classes": 3, "classes": [1, 3]}, r"classes are \[1, 3\], expected different ones of 0…2"),
        ({"num_classes": 3, "classes": [1, 1]}, "classes are"),
        ({"num_classes": 3, "classes": []}, "classes are"),
        ({"directed": "mean"}, "unknown directed 'mean'.* Known: max, pooled"),
        ({"spacing": (1.0, 0.0)}, r"spacing is \(1.0, 0.0\), expected two positive numbers"),
        ({"spacing": 2.0}, "spacing is 2.0"),
        ({"percentile": 101}, "percentile is 101, expected a number 0…100"),
        ({"percentile": math.nan}, "percentile is nan"),
        ({"tolerance": -1}, "tolerance is -1, expected a finite number of at least 0"),
        ({"relaxed_tolerance": math.inf}, "relaxed_tolerance is inf"),
        ({"iou_dilation": 2}, "iou_dilation is 2, expected a number 0…1"),
        ({"num_classes": 3, "class_names": ["a"]}, r"class_names are \['a'\], expected 3 names"),
        ({"class_names": "a"}, "class_names are 'a'"),
    ):
        with pytest.raises(ValueError, match=message):
            BoundaryMetrics(**options)
