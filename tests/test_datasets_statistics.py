"""``count_pixels``: against NumPy's counts, however data sets are put together, and what is made of the counts."""

from __future__ import annotations

import io
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from segzoo.datasets import ECSSD, CamVid, Sample, SegmentationDataset, count_pixels, statistics
from segzoo.losses import class_weights

NAMES = ("road", "car", "bus", "tree")


class InMemory(SegmentationDataset):
    """Masks that are in no file; pictures that must not be opened."""

    def __init__(self, masks: list[np.ndarray | None], classes: tuple[str, ...] | None = NAMES, **options: Any) -> None:
        self.masks = masks
        samples = [
            Sample(str(i), Path("no picture"), Path(str(i)) if mask is not None else None)
            for i, mask in enumerate(masks)
        ]
        super().__init__(samples, classes=classes, **{"ignore_index": 255, **options})

    def read_image(self, path: Path) -> np.ndarray:
        raise AssertionError("count_pixels opened a picture")

    def read_mask(self, path: Path) -> np.ndarray:
        return self.masks[int(path.name)].copy()


def by_hand(masks: list[np.ndarray], rows: int, ignore_index: int | None) -> dict[str, np.ndarray | int]:
    """Class by class, and picture by picture."""
    counted = [mask[mask != ignore_index] if ignore_index is not None else mask.ravel() for mask in masks]
    has = np.array([[bool((values == c).any()) for values in counted] for c in range(rows)]).reshape(rows, -1)
    return {
        "counts": np.bincount(np.concatenate(counted).astype(np.int64), minlength=rows),
        "pictures": has.sum(1),
        "neighbourhood": (has * np.array([values.size for values in counted])).sum(1),
        "ignored": sum(mask.size for mask in masks) - sum(values.size for values in counted),
    }


def check(found: statistics.PixelCounts, expected: dict[str, np.ndarray | int]) -> None:
    for key, values in expected.items():
        assert np.array_equal(np.asarray(getattr(found, key)), values), key
    assert all(getattr(found, key).dtype == torch.int64 for key in ("counts", "pictures", "neighbourhood"))


label_maps = st.lists(
    hnp.arrays(
        st.sampled_from([np.uint8, np.int32]),
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=7),
        elements=st.sampled_from([0, 1, 2, 3, 255]),
    ),
    min_size=1,
    max_size=5,
)


@given(label_maps, st.sampled_from([0, 2]))
def test_counts_are_numpys(masks: list[np.ndarray], workers: int) -> None:
    check(count_pixels(InMemory(masks), workers=workers), by_hand(masks, len(NAMES), 255))


@given(label_maps)
def test_without_names_the_labels_say_how_many_classes_there_are(masks: list[np.ndarray]) -> None:
    expected = by_hand(masks, 1, 255)
    found = count_pixels(InMemory(masks, classes=None))
    assert found.classes == tuple(map(str, range(len(found.counts))))
    check(found, by_hand(masks, len(expected["counts"]) if expected["counts"].any() else 0, 255))


def test_nothing_is_ignored_where_no_label_is(rng: np.random.Generator) -> None:
    masks = [rng.integers(0, 256, (9, 7)).astype(np.uint8)]
    check(count_pixels(InMemory(masks, tuple(map(str, range(256))), ignore_index=None)), by_hand(masks, 256, None))
    wide = [rng.integers(0, 3000, (9, 7)).astype(np.int32)]
    check(count_pixels(InMemory(wide, tuple(map(str, range(3000))), ignore_index=None)), by_hand(wide, 3000, None))


def test_an_ignored_class_counts_nowhere(rng: np.random.Generator) -> None:
    masks = [rng.integers(0, 4, (9, 7)).astype(np.uint8) for _ in range(3)]
    found = count_pixels(InMemory(masks, ignore_index=0))
    check(found, by_hand(masks, 4, 0))
    assert found.counts[0] == 0 < found.ignored


@pytest.mark.parametrize("soft", [False, True])
def test_a_salient_mask_is_two_classes(rng: np.random.Generator, soft: bool) -> None:
    grey = rng.choice(np.array([0, 0.2, 0.5, 0.6, 1], np.float32), (5, 8, 9))
    hard = (grey > 0.5).astype(np.uint8)
    found = count_pixels(InMemory(list(grey if soft else hard), ("object",), ignore_index=None))
    assert found.classes == ("background", "object")
    check(found, by_hand(list(hard), 2, None))


def test_subsets_and_several_data_sets(rng: np.random.Generator) -> None:
    masks = [rng.choice(np.array([0, 1, 3, 255], np.uint8), (4 + i, 5)) for i in range(7)]
    first, second = InMemory(masks[:4]), InMemory(masks[4:])
    together = ConcatDataset([Subset(first, [2, 0]), Subset(Subset(second, [2, 1]), [1])])
    for workers in (0, 3):
        check(count_pixels(together, workers=workers), by_hand([masks[2], masks[0], masks[5]], 4, 255))
    with pytest.raises(ValueError, match="different classes"):
        count_pixels(ConcatDataset([first, InMemory(masks, ("a", "b", "c", "d"))]))
    with pytest.raises(TypeError, match="got TensorDataset"):
        count_pixels(TensorDataset(torch.zeros(3)))
    with pytest.raises(ValueError, match="workers must be at least 0, got -1"):
        count_pixels(first, workers=-1)


def test_transforms_do_not_run_and_pictures_without_masks_are_said(rng: np.random.Generator) -> None:
    def refuse(image: object, mask: object) -> object:
        raise AssertionError("count_pixels ran the transforms")

    masks = [rng.integers(0, 4, (3, 4)).astype(np.uint8), None]
    found = count_pixels(InMemory(masks, transforms=refuse))
    check(found, by_hand(masks[:1], 4, 255))
    assert (found.num_pictures, found.unlabelled) == (1, 1) and "1 without a mask" in found.table()
    with pytest.raises(ValueError, match="none of the 2 pictures has a mask"):
        count_pixels(InMemory([None, None]))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_label_that_is_no_class_and_a_broken_file(tmp_path: Path, workers: int) -> None:
    masks = [np.zeros((2, 2), np.uint8), np.full((2, 2), 4, np.uint8)]
    with pytest.raises(ValueError, match="1 has the label 4 at row 0, column 0, expected 0 … 3"):
        count_pixels(InMemory(masks), workers=workers)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    sample = Sample("a", tmp_path / "a.jpg", tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png is .*a\.jpg"):
        count_pixels(SegmentationDataset([sample], classes=NAMES, ignore_index=255), workers=workers)


def test_they_feed_class_weights() -> None:
    masks = [np.array([[0] * 6 + [1] * 2], np.uint8), np.array([[0] * 7 + [2, 255]], np.uint8)]
    found = count_pixels(InMemory(masks))
    assert found.counts.tolist() == [13, 2, 1, 0] and found.neighbourhood.tolist() == [16, 8, 8, 0]
    share = np.array([13, 2, 1]) / 16
    weights = class_weights(found.counts, "median_frequency")
    np.testing.assert_allclose(weights.numpy(), [*(np.median(share) / share), 0], rtol=1e-6)
    there = np.array([13 / 16, 2 / 8, 1 / 8])  # Eigen and Fergus: over the pictures that have the class
    weights = class_weights(found.frequencies_where_present, "median_frequency")
    np.testing.assert_allclose(weights.numpy(), [*(np.median(there) / there), 0], rtol=1e-6)
    for method in ("inverse", "effective_number", "enet"):
        assert class_weights(found.counts, method).shape == (4,)


def test_the_table_and_json() -> None:
    masks = [np.array([[0] * 9996 + [1] * 3 + [255]], np.uint8), np.zeros((1, 10_000), np.uint8)]
    found = count_pixels(InMemory(masks))
    expected = (
        "Class  Pixels   Share  Pictures  of them  Share there\n"
        "─────────────────────────────────────────────────────\n"
        "road   19,996  99.98%         2  100.00%       99.98%\n"
        "car         3  0.015%         1   50.00%        0.03%\n"
        "bus         0   0.00%         0    0.00%            –\n"
        "tree        0   0.00%         0    0.00%            –\n"
        "\n"
        "2 pictures, 19,999 pixels counted, 1 ignored (0.005%)"
    )
    assert str(found) == found.table() == expected
    lines = found.table(markdown=True).splitlines()
    assert lines[0] == "| Class | Pixels | Share | Pictures | of them | Share there |"
    assert lines[1].count("|") == lines[0].count("|") == lines[2].count("|") and "| 19,996 | 99.98% |" in lines[2]
    content = json.loads(found.to_json())
    assert [row["pixels"] for row in content["classes"]] == found.counts.tolist()
    assert [row["name"] for row in content["classes"]] == list(NAMES)
    assert (content["pictures"], content["ignored"], content["unlabelled"]) == (2, 1, 0)


def test_the_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    colours = [[9, 9, 9], [200, 0, 0], [0, 200, 0], [0, 0, 200]]
    found = count_pixels(InMemory([np.array([[0] * 900 + [1] * 10 + [2]], np.uint8)], colours=colours))
    figure = found.plot(tmp_path / "shares.png")
    (axes,) = figure.axes
    widths = {label.get_text(): bar.get_width() for label, bar in zip(axes.get_yticklabels(), axes.patches)}
    assert widths == pytest.approx(dict(zip(NAMES, found.frequencies.tolist())))
    faces = {label.get_text(): bar.get_facecolor()[:3] for label, bar in zip(axes.get_yticklabels(), axes.patches)}
    assert faces["car"] == pytest.approx((200 / 255, 0, 0))
    with Image.open(tmp_path / "shares.png") as image:
        assert image.format == "PNG" and min(image.size) > 100
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        found.plot()


def test_nothing_counted_is_no_error(tmp_path: Path) -> None:
    found = count_pixels(InMemory([np.full((2, 3), 255, np.uint8)]))
    assert found.counts.tolist() == [0, 0, 0, 0] and found.ignored == 6 and found.frequencies.isnan().all()
    assert "–" in found.table()
    if "matplotlib" in sys.modules:
        found.plot(tmp_path / "empty.png")


def test_the_bar_counts_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    dataset = InMemory([np.zeros((2, 2), np.uint8)] * 3)
    count_pixels(dataset)
    assert terminal.getvalue() == ""
    count_pixels(dataset, progress=True, workers=1)
    assert "3/3" in terminal.getvalue() and "masks" in terminal.getvalue()


@pytest.mark.data
def test_real_masks(data: Path) -> None:
    camvid, ecssd = CamVid(data / "camvid", "test"), ECSSD(data / "ecssd")
    chosen = random.Random(1).sample(range(200), 25)
    cases: list[tuple[SegmentationDataset, int, Callable[[np.ndarray], np.ndarray], int | None]] = [
        (camvid, 11, lambda pixels: np.where(pixels == 11, 255, pixels), 255),
        (ecssd, 2, lambda pixels: pixels > 127, None),
    ]
    for dataset, rows, meaning, ignore_index in cases:
        masks = []
        for i in chosen:
            with Image.open(dataset.samples[i].mask) as file:
                masks.append(meaning(np.array(file)))
        found = [count_pixels(Subset(dataset, chosen), workers=workers) for workers in (0, 2)]
        check(found[0], by_hand(masks, rows, ignore_index))
        assert found[0].table() == found[1].table() and found[0].to_json() == found[1].to_json()
