"""Segmentation metrics: against the definitions, scikit-learn and torchmetrics, and the same digits however dealt."""

from __future__ import annotations

import io
import math
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from segzoo.metrics import _confusion_counts, confusion
from segzoo.metrics.confusion import SegmentationMetrics

pytestmark = pytest.mark.usefixtures("one_thread")

MEANS = ("miou", "mean_dice", "mean_precision", "mean_recall", "mean_f1")
PER_CLASS = ("iou", "dice", "precision", "recall", "f1")
PER_PICTURE = ("miou_per_picture", "mean_dice_per_picture", "pixel_accuracy_per_picture")
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)


def maps(
    rng: np.random.Generator, classes: int, shape: tuple[int, ...], ignored: int | None = None
) -> tuple[Tensor, Tensor]:
    """Prediction and target that mostly agree; some pixels are ignored."""
    target = rng.integers(0, classes, shape)
    prediction = np.where(rng.random(shape) < 0.6, target, rng.integers(0, classes, shape))
    if ignored is not None:
        target[rng.random(shape) < 0.2] = ignored
    return torch.from_numpy(prediction), torch.from_numpy(target)


def values_of(prediction: Any, target: Any, classes: int, **settings: Any) -> dict[str, Any]:
    metric = SegmentationMetrics(classes, **settings)
    metric.update(prediction, target)
    return metric.compute()


def assert_identical(some: dict[str, Any], others: dict[str, Any]) -> None:
    """Bit for bit; NaN is NaN."""
    assert list(some) == list(others)
    for name, value in some.items():
        other = others[name]
        if isinstance(value, Tensor):
            assert value.dtype == other.dtype and value.device == other.device, name
            assert torch.equal(value.nan_to_num(-7.0), other.nan_to_num(-7.0)), name
        else:
            assert type(value) is type(other) and (value == other or (value != value and other != other)), name


# The definitions, pixel by pixel and in fractions.


def mean(values: list[Fraction | None]) -> float:
    kept = [value for value in values if value is not None]
    return float(sum(kept) / len(kept)) if kept else math.nan


def by_definition(
    prediction: np.ndarray, target: np.ndarray, classes: int, ignored: int | None, absent: float | None
) -> dict[str, Any]:
    pixels = [(t, p) for t, p in zip(target.ravel().tolist(), prediction.ravel().tolist()) if t != ignored]
    score: dict[str, list[Fraction | None]] = {name: [] for name in PER_CLASS}
    in_target, weighted = [], Fraction(0)
    for c in range(classes):
        tp = sum(t == c == p for t, p in pixels)
        fp = sum(p == c != t for t, p in pixels)
        fn = sum(t == c != p for t, p in pixels)
        if c == ignored or not pixels:
            for name in PER_CLASS:
                score[name].append(None)
        elif tp + fp + fn == 0:
            for name in PER_CLASS:
                score[name].append(None if absent is None else Fraction(absent))
        else:
            score["iou"].append(Fraction(tp, tp + fp + fn))
            score["dice"].append(Fraction(2 * tp, 2 * tp + fp + fn))
            score["precision"].append(Fraction(tp, tp + fp) if tp + fp else Fraction(0))
            score["recall"].append(Fraction(tp, tp + fn) if tp + fn else Fraction(0))
            score["f1"].append(score["dice"][-1])
            weighted += Fraction(tp, tp + fp + fn) * (tp + fn)
            in_target += [Fraction(tp, tp + fn)] if tp + fn else []
    return {
        **{name: [math.nan if value is None else float(value) for value in score[name]] for name in PER_CLASS},
        **{name: mean(score[of]) for name, of in zip(MEANS, PER_CLASS)},
        "pixel_accuracy": mean([Fraction(int(t == p)) for t, p in pixels]),
        "mean_pixel_accuracy": mean(in_target),
        "frequency_weighted_iou": float(weighted / len(pixels)) if pixels else math.nan,
        "support": [sum(t == c for t, _ in pixels) for c in range(classes)],
        "confusion_matrix": [[pixels.count((t, p)) for p in range(classes)] for t in range(classes)],
    }


@given(
    classes=st.integers(2, 5),
    ignored=st.sampled_from([None, 255, -1, -100, 0, 1, 5, 6]),
    absent=st.sampled_from([None, 0.0, 1.0]),
    pictures=st.integers(0, 3),
    height=st.integers(1, 4),
    width=st.integers(1, 5),
    skip=st.integers(0, 2),
    seed=st.integers(0, 9999),
)
def test_follows_the_definitions(
    classes: int,
    ignored: int | None,
    absent: float | None,
    pictures: int,
    height: int,
    width: int,
    skip: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    prediction = rng.integers(0, classes - min(skip, classes - 1), (pictures, height, width))
    target = rng.integers(min(skip, classes - 1), classes, prediction.shape)
    if ignored is not None:
        target[rng.random(target.shape) < rng.choice([0.0, 0.3, 1.0])] = ignored
    metric = SegmentationMetrics(classes, ignore_index=ignored, absent=absent)
    metric.update(torch.from_numpy(prediction), torch.from_numpy(target))
    found, each = metric.compute(), metric.per_picture()
    for name, value in by_definition(prediction, target, classes, ignored, absent).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-14, atol=0, err_msg=name)
    alone = [by_definition(p, t, classes, ignored, absent) for p, t in zip(prediction, target)]
    assert found["pictures"] == pictures
    for name in PER_PICTURE:
        own = [values[name.removesuffix("_per_picture")] for values in alone]
        np.testing.assert_allclose(each[name], np.array(own, dtype=float), rtol=1e-14, atol=0, err_msg=name)
        own = [value for value in own if value == value]
        np.testing.assert_allclose(found[name], np.mean(own) if own else math.nan, rtol=1e-14, atol=0, err_msg=name)


# Other people's.


def test_scikit_learn_has_the_same(rng: np.random.Generator) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    prediction, target = maps(rng, 6, (3, 40, 50), ignored=255)
    prediction[prediction == 5] = 4  # 5 is never predicted, …
    target[target == 2] = 3  # … 2 not in the target
    found = values_of(prediction, target, 7)
    valid = target != 255
    t, p = target[valid].numpy(), prediction[valid].numpy()
    expected = metrics.confusion_matrix(t, p, labels=range(7))
    np.testing.assert_array_equal(found["confusion_matrix"], expected)
    scores = metrics.precision_recall_fscore_support(t, p, labels=range(6), zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), scores):
        np.testing.assert_allclose(found[name][:6], values, rtol=1e-15, err_msg=name)
    iou = metrics.jaccard_score(t, p, labels=range(6), average=None, zero_division=0)
    np.testing.assert_allclose(found["iou"][:6], iou, rtol=1e-15)
    assert found["iou"][6].isnan() and found["pixel_accuracy"] == metrics.accuracy_score(t, p)
    macro = metrics.jaccard_score(t, p, average="macro")
    np.testing.assert_allclose(found["miou"], macro, rtol=1e-15)


@pytest.mark.parametrize("ignored", [None, 255, -1, 1])
def test_torchmetrics_has_the_same(ignored: int | None, rng: np.random.Generator) -> None:
    theirs = pytest.importorskip("torchmetrics.classification")
    arguments = {"num_classes": 7, "ignore_index": ignored}
    prediction, target = maps(rng, 6, (3, 40, 50), ignored=ignored)
    prediction[prediction == 5] = 4
    target[target == 2] = 3
    found = values_of(prediction, target, 7, ignore_index=ignored)

    def other(name: str, **more: Any) -> Tensor:
        return getattr(theirs, f"Multiclass{name}")(**arguments, **more)(prediction, target)

    assert torch.equal(found["confusion_matrix"], other("ConfusionMatrix"))
    # Theirs are float32; divisions of small integers are rounded alike, and absent classes are 0.
    assert torch.equal(found["iou"].nan_to_num().float(), other("JaccardIndex", average="none"))
    torch.testing.assert_close(found["miou"], other("JaccardIndex").item(), rtol=1e-6, atol=0)
    for name, ours in (("F1Score", "f1"), ("Precision", "precision"), ("Recall", "recall"), ("Accuracy", "recall")):
        torch.testing.assert_close(found[ours].nan_to_num().float(), other(name, average="none"), rtol=2e-7, atol=0)
        if ignored != 1:  # in their means it is a class that scores 0
            torch.testing.assert_close(found[f"mean_{ours}"], other(name, average="macro").item(), rtol=1e-6, atol=0)
    micro = other("Accuracy", average="micro").item()
    torch.testing.assert_close(found["pixel_accuracy"], micro, rtol=1e-6, atol=0)


# How it is dealt does not matter.


def batch_of_three(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    prediction, target = maps(rng, 19, (3, 60, 70), ignored=255)
    target[1, :50] = 255
    return prediction, target


def test_in_batches_and_one_by_one(rng: np.random.Generator) -> None:
    prediction, target = batch_of_three(rng)
    expected = values_of(prediction, target, 19)
    single = SegmentationMetrics(19)
    for p, t in zip(prediction, target):
        single.update(p, t)
    assert_identical(single.compute(), expected)
    assert_identical(single.compute(), expected)  # looking changes nothing
    parts = SegmentationMetrics(19)
    parts.update(prediction[:2], target[:2, None])
    parts.update(prediction[2:], target[2])
    assert_identical(parts.compute(), expected)
    assert_identical(parts.per_picture(), single.per_picture())
    alone = [values_of(p, t, 19) for p, t in zip(prediction, target)]
    assert torch.equal(sum(values["confusion_matrix"] for values in alone), expected["confusion_matrix"])
    for name in PER_PICTURE:  # a picture's own value is what a metric that saw nothing else says
        of_one = [values[name.removesuffix("_per_picture")] for values in alone]
        assert single.per_picture()[name].tolist() == of_one
        assert expected[name] == math.fsum(of_one) / 3


@given(order=st.permutations(range(5)), cut=st.tuples(st.integers(0, 5), st.integers(0, 5)), seed=st.integers(0, 99))
def test_merging_is_associative(order: list[int], cut: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    pictures = [maps(rng, 4, (int(rng.integers(1, 9)), int(rng.integers(2, 9))), ignored=255) for _ in range(5)]
    a, b, c = (SegmentationMetrics(4) for _ in range(3))
    everything = SegmentationMetrics(4)
    for position, i in enumerate(order):
        (a, b, c)[(position >= min(cut)) + (position >= max(cut))].update(*pictures[i])
    for picture in pictures:
        everything.update(*picture)
    left, right = SegmentationMetrics(4), SegmentationMetrics(4)
    left.merge(a).merge(b).merge(c)
    right.merge(c).merge(SegmentationMetrics(4).merge(b).merge(a))
    assert_identical(left.compute(), everything.compute())
    assert_identical(right.compute(), everything.compute())


def test_goes_on_from_a_checkpoint(rng: np.random.Generator) -> None:
    prediction, target = batch_of_three(rng)
    settings: dict[str, Any] = {"ignore_index": 255, "absent": 0.5}
    metric = SegmentationMetrics(19, **settings)
    metric.update(prediction[:2], target[:2])
    file = io.BytesIO()
    torch.save(metric.state_dict(), file)
    file.seek(0)
    later = SegmentationMetrics(19, **settings, class_names=[f"class {i}" for i in range(19)])
    later.load_state_dict(torch.load(file, weights_only=True))
    for each in (metric, later):
        each.update(prediction[2], target[2])
    assert_identical(later.compute(), metric.compute())
    for other in ({"ignore_index": None, "absent": 0.5}, {"ignore_index": 255}):
        with pytest.raises(ValueError, match="the state to load has"):
            SegmentationMetrics(19, **other).load_state_dict(metric.state_dict())
        with pytest.raises(ValueError, match="the metric to merge has"):
            SegmentationMetrics(19, **other).merge(metric)
    metric.load_state_dict({**metric.state_dict(), "synced": True})
    with pytest.raises(RuntimeError, match=r"reset\(\) it before update\(\)"):
        metric.update(prediction, target)
    metric.reset()
    assert_identical(metric.compute(), SegmentationMetrics(19, **settings).compute())


def test_sums_have_one_order(rng: np.random.Generator) -> None:
    values = torch.from_numpy(rng.random((40, 19)))
    expected = confusion._sum(values)
    np.testing.assert_allclose(expected, [math.fsum(row) for row in values.tolist()], rtol=1e-15)
    assert torch.equal(confusion._sum(values.T.contiguous().T), expected)
    assert torch.equal(torch.stack([confusion._sum(row) for row in values]), expected)


# What goes in.


@pytest.mark.parametrize("dtype", INTEGERS)
def test_any_integers(dtype: torch.dtype, rng: np.random.Generator) -> None:
    ignored = 255 if torch.iinfo(dtype).max >= 255 else -1
    prediction, target = maps(rng, 19, (2, 20, 30), ignored=ignored)
    expected = values_of(prediction, target, 19, ignore_index=ignored)
    narrow, labels = torch.where(target == ignored, target, prediction).to(dtype), target.to(dtype)
    assert_identical(values_of(narrow, labels, 19, ignore_index=ignored), expected)
    assert_identical(values_of(prediction, labels, 19, ignore_index=ignored), expected)
    assert torch.equal(labels.long(), target) and torch.equal(
        narrow.long()[target != ignored], prediction[target != ignored]
    )
    arrays = narrow.numpy(), labels.numpy()
    assert_identical(values_of(*arrays, 19, ignore_index=ignored), expected)
    for array in arrays:
        array.flags.writeable = False
    assert_identical(values_of(*arrays, 19, ignore_index=ignored), expected)
    flipped = [array[:, ::-1].astype(array.dtype.newbyteorder(">"))[:, ::-1] for array in arrays]
    assert_identical(values_of(*flipped, 19, ignore_index=ignored), expected)


@pytest.mark.parametrize("classes", [2, 87, 300])
@pytest.mark.parametrize("ignored", [None, 0, 1, -1, -100, 300, 127, 255, 16383, -16384, 2**20, -(2**40)])
def test_any_ignore_index(ignored: int | None, classes: int, rng: np.random.Generator) -> None:
    prediction, target = maps(rng, classes, (2, 9, 7))
    if ignored is not None:
        target[0, 2:] = ignored
        prediction[0, 2:4] = -(2**50)
        prediction[0, 4:6] = 2**50
        prediction[0, 6:] = ignored
    metric = SegmentationMetrics(classes, ignore_index=ignored)
    metric.update(prediction, target)
    valid = torch.ones_like(target, dtype=torch.bool) if ignored is None else target != ignored
    expected = torch.bincount(target[valid] * classes + prediction[valid], minlength=classes**2)
    assert torch.equal(metric.compute()["confusion_matrix"], expected.view(classes, classes))
    fine = torch.full((1, 1, 3), 1 if ignored == 0 else 0)
    nearby = set() if ignored is None else {ignored - 1, ignored + 1}
    for dtype in (torch.uint8, torch.int16, torch.int64):
        limits = torch.iinfo(dtype)
        for stray in {-1, classes, limits.min, limits.max} | nearby:
            if not limits.min <= stray <= limits.max or stray == ignored or 0 <= stray < classes:
                continue
            wrong = fine.clone()
            wrong[0, 0, 1] = stray
            for name, pair in (("target", (fine, wrong)), ("prediction", (wrong, fine))):
                with pytest.raises(ValueError, match=rf"{name}\[0, 0, 1\] is {stray}, expected 0 … {classes - 1}"):
                    metric.update(*(labels.to(dtype) for labels in pair))
    assert metric.compute()["pictures"] == 2


def test_any_layout(rng: np.random.Generator) -> None:
    prediction, target = maps(rng, 19, (3, 20, 30), ignored=255)
    expected = values_of(prediction, target, 19)
    strided = torch.stack((target, target), -1)[..., 0]
    assert_identical(values_of(prediction.permute(2, 0, 1).contiguous().permute(1, 2, 0), strided, 19), expected)
    one_row = target[:1, :1].expand(3, 20, 30)
    assert_identical(values_of(prediction, one_row, 19), values_of(prediction, one_row.contiguous(), 19))
    sizes = SegmentationMetrics(19)
    for side in (1, 2, 5, 64):
        sizes.update(torch.zeros(side, 2 * side, dtype=torch.uint8), torch.zeros(side, 2 * side, dtype=torch.int64))
    assert sizes.compute()["support"][0] == 2 * (1 + 4 + 25 + 4096) and sizes.compute()["pictures"] == 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_highest_logit_is_the_prediction(dtype: torch.dtype, rng: np.random.Generator) -> None:
    logits = torch.from_numpy(rng.integers(-3, 4, (2, 5, 12, 14))).to(dtype)  # with many equals
    logits[0, 3, 2] = math.inf
    logits[0, :, 3] = -math.inf
    target = torch.from_numpy(rng.integers(0, 5, (2, 12, 14)))
    target[1, 5:] = 255
    expected = values_of(torch.from_numpy(logits.double().numpy().argmax(1)), target, 5)
    assert_identical(values_of(logits, target, 5), expected)
    assert_identical(values_of(logits.requires_grad_(), target, 5), expected)
    nan = logits.detach().clone()
    nan[1, 2, 5:] = math.nan
    assert_identical(values_of(nan, target, 5), expected)
    assert_identical(values_of(nan.to(memory_format=torch.channels_last), target[:, None], 5), expected)
    assert_identical(values_of(logits[0], target[0], 5), values_of(logits[:1], target[:1], 5))
    if dtype == torch.float32:
        assert_identical(values_of(nan.numpy(), target.numpy(), 5), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_one_channel(threshold: float, dtype: torch.dtype, rng: np.random.Generator) -> None:
    probabilities = torch.from_numpy(rng.random((2, 1, 12, 14))).to(dtype)
    probabilities[0, 0, :2] = threshold  # is not above it, unless rounded up
    target = torch.from_numpy(rng.integers(0, 2, (2, 12, 14)))
    target[1, 5:] = 255
    wide = torch.promote_types(dtype, torch.float32)
    above = probabilities[:, 0].to(wide) > torch.tensor(threshold, dtype=wide)
    expected = values_of(above, target, 1, threshold=threshold, ignore_index=255)["confusion_matrix"]
    probabilities[1, 0, 5:] = torch.tensor([math.nan, -3.0] * 7, dtype=dtype)
    for scores in (probabilities, probabilities[:, 0]):
        found = values_of(scores, target, 1, threshold=threshold, ignore_index=255)
        assert found["confusion_matrix"].shape == (2, 2) and torch.equal(found["confusion_matrix"], expected)
    logits = torch.from_numpy(rng.normal(size=(2, 12, 14))).to(dtype)
    logits[0, 0] = math.inf
    logits[1, 5:] = math.nan
    found = values_of(logits, target, 1, threshold=threshold, ignore_index=255, from_logits=True)
    labels = (logits.to(wide) > math.log(threshold / (1 - threshold))).to(torch.uint8)
    assert_identical(values_of(labels, target, 1, threshold=threshold, ignore_index=255), found)
    with pytest.raises(ValueError, match="target\\[1, 5, 0\\] is 255, expected 0 … 1: divide by 255"):
        SegmentationMetrics(1).update(labels, target)
    one = target[0] == 1
    assert values_of(labels[0].bool(), one, 1)["confusion_matrix"].sum() == one.numel()


# What does not go in.


def test_errors_say_where(rng: np.random.Generator) -> None:
    prediction, target = maps(rng, 19, (3, 20, 40), ignored=255)
    target[2, 15, 30] = prediction[2, 15, 30] = 3
    target[2, 15, 31] = 4
    metric = SegmentationMetrics(19)
    metric.update(prediction, target)
    before = metric.compute()
    bad = target.clone()
    bad[2, 15, 30] = 37
    with pytest.raises(ValueError, match=r"^target\[2, 15, 30\] is 37, expected 0 … 18 or ignore_index 255$"):
        metric.update(prediction, bad)
    with pytest.raises(ValueError, match=r"^target\[2, 0, 15, 30\] is 37, expected 0 … 18 or ignore_index 255$"):
        metric.update(prediction, bad[:, None].to(torch.uint8))
    with pytest.raises(ValueError, match=r"^target\[15, 30\] is 37, expected 0 … 18 or ignore_index 255$"):
        metric.update(prediction[2], bad[2])
    bad = prediction.clone()
    bad[2, 15, 30:] = 255
    with pytest.raises(ValueError, match=r"^prediction\[2, 15, 30\] is 255, expected 0 … 18$"):
        metric.update(bad, target)
    logits = torch.zeros(3, 19, 20, 40)
    logits[2, 7, 15, 30] = math.nan
    with pytest.raises(ValueError, match=r"^prediction\[2, :, 15, 30\] has a NaN where the target counts$"):
        metric.update(logits, target)
    with pytest.raises(ValueError, match=r"^prediction\[:, 15, 30\] has a NaN where the target counts$"):
        metric.update(logits[2], target[2])
    assert_identical(metric.compute(), before)
    binary = SegmentationMetrics(1, ignore_index=None)
    mask = torch.tensor([[0, 255]])
    with pytest.raises(ValueError, match=r"^target\[0, 1\] is 255, expected 0 … 1: divide by 255$"):
        binary.update(mask > 0, mask)
    with pytest.raises(ValueError, match=r"^prediction\[0, 1\] is 255, expected 0 … 1: divide by 255$"):
        binary.update(mask, mask > 0)
    with pytest.raises(
        ValueError, match=r"^prediction\[0, 0, 0, 1\] is 2.5, expected probabilities 0 … 1, or from_logits=True"
    ):
        binary.update(torch.tensor([[[[0.5, 2.5]]]]), mask > 0)
    with pytest.raises(ValueError, match=r"^prediction\[0, 0\] is -0.1, expected probabilities 0 … 1, or from_logits"):
        binary.update(torch.tensor([[-0.1, 0.0]]), mask > 0)
    with pytest.raises(ValueError, match=r"^prediction\[0, 1\] is nan, expected probabilities 0 … 1$"):
        binary.update(torch.tensor([[0.5, math.nan]], requires_grad=True), mask > 0)
    assert binary.compute()["pictures"] == 0


def test_errors_about_shapes_and_types() -> None:
    metric = SegmentationMetrics(3)
    labels = torch.zeros(2, 4, 5, dtype=torch.int64)
    for prediction, target, error, match in (
        (
            torch.zeros(2, 3, 4, 6),
            labels,
            ValueError,
            r"\[2, 3, 4, 6\] does not fit target \[2, 4, 5\]: resize .* 4 × 5",
        ),
        (labels[:1], labels, ValueError, r"prediction \[1, 4, 5\] does not fit target \[2, 4, 5\]$"),
        (torch.zeros(2, 4, 4, 5), labels, ValueError, r"float32 \[2, 4, 4, 5\], expected float \[N, 3, H, W\] or"),
        (
            torch.zeros(2, 3, 4, 5).long(),
            labels,
            ValueError,
            r"prediction is int64 \[2, 3, 4, 5\], expected \[N, H, W\]",
        ),
        (labels, labels[0, 0], ValueError, r"target is int64 \[5\], expected \[N, H, W\], \[N, 1, H, W\] or \[H, W\]"),
        (labels, labels.float(), TypeError, r"target is torch.float32, expected bool or integers"),
        (labels.tolist(), labels, TypeError, r"prediction is a list, expected a tensor or a NumPy array"),
        (labels, torch.zeros(2, 4, 5, dtype=torch.complex64), TypeError, r"expected real numbers"),
        (labels, labels.to("meta"), ValueError, r"prediction is on cpu, target is on meta"),
    ):
        with pytest.raises(error, match=match):
            metric.update(prediction, target)
    with pytest.raises(ValueError, match="num_classes=1 is for one channel"):
        SegmentationMetrics(2).update(torch.zeros(2, 1, 4, 5), labels)
    assert metric.compute()["pictures"] == 0


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"num_classes": 0}, ValueError, "num_classes is 0, expected an integer of at least 1"),
        ({"num_classes": True}, ValueError, "num_classes is True"),
        ({"num_classes": 2.0}, ValueError, "num_classes is 2.0"),
        ({"ignore_index": 0.5}, ValueError, "ignore_index is 0.5, expected an integer"),
        ({"ignore_index": 2**62}, ValueError, "of at most 61 bits, or None"),
        ({"absent": math.nan}, ValueError, "absent is nan, expected a finite number"),
        ({"absent": "0"}, ValueError, "absent is '0'"),
        ({"threshold": 1.0}, ValueError, "threshold is 1.0, expected a probability between 0 and 1"),
        ({"threshold": math.nan}, ValueError, "threshold is nan"),
        ({"class_names": ["a", "b"]}, ValueError, "class_names has 2 names, expected 3"),
        ({"class_names": "abc"}, TypeError, "class_names is 'abc', expected a list of strings"),
        ({"class_names": ["object"], "num_classes": 1}, ValueError, r"1 names, expected 2 \(background and object\)"),
    ],
)
def test_errors_about_arguments(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        SegmentationMetrics(**{"num_classes": 3, **arguments})


# Empty cases.


@pytest.mark.parametrize("absent", [None, 1.0])
def test_without_a_counted_pixel_all_is_nan(absent: float | None) -> None:
    metric = SegmentationMetrics(3, absent=absent)
    nothing = torch.full((2, 3, 4), 255)
    for prediction, target, pictures in (
        (nothing[:0], nothing[:0], 0),
        (nothing, nothing, 2),
        (nothing[:, :0], nothing[:, :0], 4),
        (torch.zeros(1, 3, 3, 0), nothing[:1, :, :0], 5),
    ):
        metric.update(prediction, target)
        found = metric.compute()
        assert found["pictures"] == pictures and len(metric.per_picture()["miou_per_picture"]) == pictures
        for name, value in found.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                assert value.isnan().all(), name
            elif isinstance(value, float):
                assert math.isnan(value), name
        assert not found["support"].any() and not found["confusion_matrix"].any()
        assert "–" in metric.table()
    picture = torch.tensor([[0, 0, 1, 1]])
    metric.update(picture, picture)
    found = metric.compute()
    assert found["pictures"] == 6 and found["miou_per_picture"] == found["miou"] == 1.0
    assert found["iou"][2].isnan() if absent is None else found["iou"][2] == absent


# A device that is not waited for: its path on the CPU, and on a GPU.


def test_counting_without_waiting_is_the_same(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    for classes, ignored, shape in (
        (19, 255, (3, 20, 31)),
        (2, -1, (1, 5, 7)),
        (120, 3, (2, 20, 9)),
        (5, None, (0, 2, 2)),
    ):
        codes = _confusion_counts._codes(*maps(rng, classes, shape, ignored), classes, ignored).flatten(1)
        size = (classes + 6) * (classes + 2)
        expected = _confusion_counts._by_bincount(codes, size)
        assert torch.equal(_confusion_counts._by_scatter(codes, size), expected)
    monkeypatch.setattr(confusion, "_checks_at_once", lambda matrices: False)
    prediction, target = batch_of_three(rng)
    metric = SegmentationMetrics(19)
    metric.update(prediction, target)
    metric.compute()
    target[0, 0, :3] = 77
    target[0, 1, 0] = 0
    prediction[0, 1, 0] = 19
    metric.update(prediction, target)
    state = metric.state_dict()
    merged = SegmentationMetrics(19).merge(metric)
    restored = SegmentationMetrics(19)
    restored.load_state_dict(state)
    for each in (metric, merged, restored):
        for look in (each.compute, each.per_picture, each.table):
            with pytest.raises(ValueError, match="4 pixels had a label out of range, a NaN or what is no probability"):
                look()
    metric.reset()
    metric.update(prediction[1:], target[1:])
    assert metric.compute()["pictures"] == 2


@pytest.mark.gpu
def test_gpu_finds_the_same_without_waiting(rng: np.random.Generator) -> None:
    prediction, target = batch_of_three(rng)
    logits = torch.from_numpy(rng.normal(size=(3, 19, 60, 70))).float()
    expected, metric = SegmentationMetrics(19), SegmentationMetrics(19)
    expected.update(prediction, target)
    expected.update(logits, target)
    on_gpu = prediction.to(torch.uint8).cuda(), logits.cuda(), target.cuda()
    metric.update(on_gpu[0], on_gpu[2])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        metric.update(on_gpu[1], on_gpu[2])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert metric._counts["confusion"].is_cuda
    assert_identical(metric.compute(), expected.compute())
    assert_identical(metric.per_picture(), expected.per_picture())
    for each in (metric, expected):  # one goes on on the other device
        each.update(prediction, target)
    assert metric._counts["confusion"].is_cuda
    expected.update(on_gpu[1], on_gpu[2])
    metric.update(on_gpu[1], on_gpu[2])
    assert_identical(metric.compute(), expected.compute())
    binary = SegmentationMetrics(1, from_logits=True)
    binary.update(on_gpu[1][:, 0], on_gpu[2] == 0)
    other = SegmentationMetrics(1, from_logits=True)
    other.update(logits[:, 0], target == 0)
    assert_identical(binary.compute(), other.compute())
    metric.update(on_gpu[0], torch.full_like(on_gpu[2], 40))
    with pytest.raises(ValueError, match=f"{target.numel()} pixels had a label out of range"):
        metric.compute()


# For people.


def example() -> SegmentationMetrics:
    metric = SegmentationMetrics(4, class_names=["road", "traffic light", "sky", "train"])
    metric.update(torch.tensor([[[0, 0, 1, 2]]] * 2), torch.tensor([[[0, 0, 2, 2]], [[1, 255, 2, 2]]]))
    return metric


def test_table() -> None:
    assert example().table() == "\n".join(
        [
            "Class             IoU    Dice  Precision  Recall  Support",
            "─────────────────────────────────────────────────────────",
            "road           0.6667  0.8000     0.6667  1.0000   28.57%",
            "traffic light  0.0000  0.0000     0.0000  0.0000   14.29%",
            "sky            0.5000  0.6667     1.0000  0.5000   57.14%",
            "train               –       –          –       –    0.00%",
            "─────────────────────────────────────────────────────────",
            "Mean           0.3889  0.4889     0.5556  0.5000     7 px",
            "",
            "Pixel accuracy              0.5714",
            "Mean pixel accuracy         0.5000",
            "Frequency-weighted IoU      0.4762",
            "mIoU per picture            0.3333",
            "Mean Dice per picture       0.3889",
            "Pixel accuracy per picture  0.5417",
            "Pictures                         2",
        ]
    )


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "confusion.png"
    figure = example().plot(path)
    assert path.read_bytes().startswith(b"\x89PNG") and [file.name for file in tmp_path.iterdir()] == [path.name]
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["road", "traffic light", "sky", "train"]
    shown = axes.images[0].get_array()
    np.testing.assert_allclose(shown[2].filled(-1), [0, 0.5, 0.5, 0])
    assert shown.mask[3].all()
    assert [text.get_text() for text in axes.texts] == ["1.00", "1.00", ".50", ".50"]
    counts = example().plot(normalize=False).axes[0]
    assert [text.get_text() for text in counts.texts] == ["2", "1", "2", "2"]
    SegmentationMetrics(40).plot(tmp_path / "empty.svg", normalize=False)
    assert b"<svg" in (tmp_path / "empty.svg").read_bytes()
    with pytest.raises(ValueError, match="supported formats"):
        example().plot(tmp_path / "confusion.doc")
    assert not (tmp_path / "confusion.doc").exists()


def test_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        example().plot()


def test_odd_arrays_are_taken_as_they_are() -> None:
    labels, target = np.array([[[0, 1], [1, 1]]]), np.array([[[0, 1], [0, 1]]])
    expected = values_of(torch.from_numpy(labels), torch.from_numpy(target), 2)
    for view in (lambda a: a[::-1], lambda a: a.astype(">i4"), lambda a: a.astype(np.uint64), np.asfortranarray):
        metric = SegmentationMetrics(2)
        metric.update(view(labels), view(target))
        assert_identical(metric.compute(), expected)
    binary = SegmentationMetrics(1)
    binary.update(labels, target.astype(np.float32))
    assert torch.equal(binary.compute()["confusion_matrix"], expected["confusion_matrix"])
    with pytest.raises(ValueError, match="target\\[0, 0, 0\\] is 0.25, expected 0 … 1"):
        SegmentationMetrics(1).update(labels, target + 0.25)
    with pytest.raises(ValueError, match="target\\[0, 0, 0\\] is"):
        SegmentationMetrics(2, ignore_index=-1).update(labels, np.full_like(target, -1).astype(np.uint64))
    with pytest.raises(TypeError, match="target is <U21, expected bool, integers or floating point"):
        SegmentationMetrics(2).update(labels, target.astype(str))
