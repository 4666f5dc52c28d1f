"""What is wrong is a ValueError that says which; under compile and on a GPU a label out of range is a RuntimeError."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from loss_cases import CHANNELS, ONE_EACH, SOFT, Case, pictures, some_mask

import segzoo.losses
from segzoo.losses import BCELoss, CombinedLoss, CrossEntropyLoss, DeepSupervisionLoss, DiceLoss, class_weights

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = sorted({case.loss for case in ONE_EACH})
WRONG_OPTIONS: list[tuple[str, str, dict[str, Any], str]] = [
    # modes
    *[(name, "multiclas", {}, "multiclas") for name in NAMES],
    ("DiceLoss", "binray", {}, "did you mean 'binary'"),
    ("CrossEntropyLoss", "binary", {}, "mode|binary"),
    ("OhemCrossEntropyLoss", "multilabel", {}, "mode|multilabel"),
    ("BCELoss", "multiclass", {}, "mode|multiclass"),
    ("SSIMLoss", "multiclass", {}, "mode|multiclass"),
    ("HybridSaliencyLoss", "multilabel", {}, "mode|multilabel"),
    # reductions, classes, ignored labels
    ("CrossEntropyLoss", "multiclass", {"reduction": "avg"}, "reduction 'avg'"),
    ("CrossEntropyLoss", "multiclass", {"reduction": "Mean"}, "did you mean 'mean'"),
    ("BCELoss", "binary", {"reduction": "summ"}, "did you mean 'sum'"),
    ("FocalLoss", "binary", {"reduction": None}, "reduction"),
    ("FocalLoss", "binary", {"normalized": True, "reduction": "sum"}, "normalized"),
    *[(name, "multiclass", {"classes": "presnt"}, "presnt") for name in ("DiceLoss", "LovaszLoss")],
    ("BoundaryLoss", "multiclass", {"classes": "present"}, "classes|present"),
    ("JaccardLoss", "multiclass", {"classes": []}, "classes"),
    ("JaccardLoss", "multiclass", {"classes": [-1]}, "classes|class"),
    ("DiceLoss", "multiclass", {"ignore_index": "none"}, "ignore_index"),
    # weights
    *[
        (name, "multiclass", {"weight": weight}, "weight")
        for name in ("CrossEntropyLoss", "OhemCrossEntropyLoss", "DiceLoss", "FocalTverskyLoss", "LovaszLoss")
        for weight in ([1, 2, 3, math.nan], [1, -1, 1, 1], [1, 1, math.inf, 1])
    ],
    ("CrossEntropyLoss", "multiclass", {"weight": [[1, 1], [1, 1]]}, "weight"),
    ("BCELoss", "binary", {"pos_weight": math.nan}, "pos_weight"),
    ("BCELoss", "multilabel", {"pos_weight": [1, -1, 1]}, "pos_weight"),
    ("BCELoss", "binary", {"pos_weight": math.inf}, "pos_weight"),
    ("FocalLoss", "multiclass", {"alpha": 0.25}, "alpha"),
    ("FocalLoss", "multiclass", {"alpha": [1, 2, math.nan, 1]}, "alpha"),
    ("FocalLoss", "binary", {"alpha": 1.5}, "alpha"),
    ("FocalLoss", "binary", {"alpha": -0.5}, "alpha"),
    ("FocalLoss", "multilabel", {"alpha": [0.5, 2, 0.5]}, "alpha"),
    ("FocalLoss", "binary", {"alpha": math.nan}, "alpha"),
    # numbers
    ("FocalLoss", "binary", {"gamma": -1.0}, "gamma"),
    ("FocalLoss", "binary", {"gamma": math.nan}, "gamma"),
    ("CrossEntropyLoss", "multiclass", {"label_smoothing": 1.5}, "label_smoothing"),
    ("CrossEntropyLoss", "multiclass", {"label_smoothing": -0.1}, "label_smoothing"),
    ("OhemCrossEntropyLoss", "multiclass", {"min_kept": -1}, "min_kept"),
    ("OhemCrossEntropyLoss", "multiclass", {"threshold": 1.5}, "threshold"),
    *[(name, "binary", {"smooth": -1.0}, "smooth") for name in ("DiceLoss", "JaccardLoss", "TverskyLoss")],
    ("TverskyLoss", "binary", {"alpha": -1.0}, "alpha"),
    ("TverskyLoss", "binary", {"beta": math.nan}, "beta"),
    ("FocalTverskyLoss", "binary", {"gamma": 0.0}, "gamma"),
    ("SSIMLoss", "binary", {"window_size": 4}, "window_size"),
    ("SSIMLoss", "binary", {"window_size": -1}, "window_size"),
    ("SSIMLoss", "binary", {"sigma": 0.0}, "sigma"),
    ("HybridSaliencyLoss", "binary", {"bce": math.inf}, "bce|weight"),
    ("HybridSaliencyLoss", "binary", {"iou": math.nan}, "iou|weight"),
]


@pytest.mark.parametrize(("loss", "mode", "options", "message"), WRONG_OPTIONS, ids=lambda value: str(value))
def test_wrong_options(loss: str, mode: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Case(loss, mode, options).build()


@pytest.mark.parametrize(
    "case",
    [
        Case("CrossEntropyLoss", "multiclass", {"weight": [1, 2, 3]}),
        Case("OhemCrossEntropyLoss", "multiclass", {"weight": [1, 2, 3, 4, 5]}),
        Case("OhemCrossEntropyLoss", "binary", {"weight": [1, 1, 1]}),
        Case("FocalLoss", "multiclass", {"alpha": [1, 2, 3]}),
        Case("FocalLoss", "multilabel", {"alpha": [0.5, 0.5]}),
        Case("BCELoss", "multilabel", {"pos_weight": [1, 2]}),
        Case("BCELoss", "binary", {"pos_weight": [1, 2]}),
        Case("DiceLoss", "multiclass", {"weight": [1, 2, 3]}),
        Case("JaccardLoss", "binary", {"weight": [1, 2]}),
        Case("TverskyLoss", "multilabel", {"weight": [1, 2, 3, 4]}),
        Case("LovaszLoss", "multilabel", {"weight": [1, 2]}),
        Case("DiceLoss", "multiclass", {"classes": [0, 4]}),
        Case("LovaszLoss", "multilabel", {"classes": [3]}),
        Case("BoundaryLoss", "multiclass", {"classes": [7]}),
    ],
    ids=str,
)
def test_options_for_another_number_of_classes(case: Case) -> None:
    logits, target = pictures(case.mode)
    with pytest.raises(ValueError, match=next(iter(case.options)) + "|class"):
        case.build()(logits, target)


@pytest.mark.parametrize("case", ONE_EACH, ids=str)
def test_wrong_logits(case: Case) -> None:
    logits, target = pictures(case.mode)
    loss = case.build()
    for wrong in (logits[0], logits[..., 0], logits[None], logits.long(), logits > 0, logits.to(torch.complex64)):
        with pytest.raises(ValueError, match="logits"):
            loss(wrong, target)
    for wrong in ([1.0], None):
        with pytest.raises((ValueError, TypeError), match="logits"):
            loss(wrong, target)


@pytest.mark.parametrize("case", ONE_EACH, ids=str)
def test_wrong_numbers_of_channels(case: Case) -> None:
    logits, target = pictures(case.mode)
    if case.mode == "multiclass":
        with pytest.raises(ValueError, match="(?i)class|channel"):
            Case(case.loss, "multiclass").build()(logits[:, :1], target.clamp_max(0))
    else:
        more = torch.cat([logits, logits], dim=1)
        with pytest.raises(ValueError, match="(?i)channel|target|logits"):
            Case(case.loss, case.mode).build()(more, target)


@pytest.mark.parametrize("case", ONE_EACH, ids=str)
@settings(max_examples=12)
@given(shape=st.lists(st.integers(1, 6), min_size=0, max_size=5))
def test_wrong_shapes(case: Case, shape: list[int]) -> None:
    logits, target = pictures(case.mode)
    loss, c = case.build(), CHANNELS[case.mode]
    right = {"multiclass": [[2, 5, 6]], "binary": [[2, 5, 6], [2, 1, 5, 6]], "multilabel": [[2, c, 5, 6]]}[case.mode]
    assume(shape not in right)
    with pytest.raises(ValueError, match="target"):
        loss(logits, torch.zeros(shape, dtype=target.dtype))
    masks = [[2, 5, 6], [2, 1, 5, 6], *([[2, c, 5, 6]] if case.mode == "multilabel" else [])]
    if shape not in masks:
        with pytest.raises(ValueError, match="mask"):
            loss(logits, target, torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("case", ONE_EACH, ids=str)
def test_nearly_right_shapes(case: Case) -> None:
    logits, target = pictures(case.mode)
    loss = case.build()
    for wrong in (target[:1], target[..., :5], target.mT, torch.cat([target, target]), target[None]):
        with pytest.raises(ValueError, match="target"):
            loss(logits, wrong)
    mask = some_mask(target, 0)
    for wrong in (mask.float(), mask.long(), mask[:1], mask[..., :1], mask.mT, mask[0], mask[None]):
        with pytest.raises(ValueError, match="mask"):
            loss(logits, target, wrong)


@pytest.mark.parametrize("case", [case for case in ONE_EACH if case.mode == "multiclass"], ids=str)
@settings(max_examples=10)
@given(
    label=st.one_of(st.integers(4, 254), st.integers(256, 2**31 - 1), st.integers(-(2**31), -1)),
    at=st.tuples(st.integers(0, 1), st.integers(0, 4), st.integers(0, 5)),
)
def test_labels_out_of_range(case: Case, label: int, at: tuple[int, int, int]) -> None:
    logits, target = pictures(case.mode)
    target[at] = label
    loss = case.build()
    with pytest.raises(ValueError, match=f"target|label|{label}"):
        loss(logits, target)
    mask = torch.ones_like(target, dtype=torch.bool)
    mask[at] = False
    loss(logits, target, mask)
    case.build(ignore_index=label)(logits, target)
    with pytest.raises(ValueError, match=f"target|label|{label}"):
        loss(logits, target, torch.ones_like(mask))


@pytest.mark.parametrize("case", [case for case in ONE_EACH if case.mode == "multiclass"], ids=str)
def test_other_wrong_targets_of_classes(case: Case) -> None:
    logits, target = pictures(case.mode)
    loss = case.build()
    for wrong in (target.float(), target.double(), target > 0):
        with pytest.raises(ValueError, match="target"):
            loss(logits, wrong)
    with pytest.raises(ValueError, match="255"):
        case.build(ignore_index=None)(logits, torch.full_like(target, 255))
    minus = target.to(torch.int8)
    minus[0, 0, 0] = -1  # the bits of 255
    with pytest.raises(ValueError, match="target|label|-1"):
        loss(logits, minus)


@pytest.mark.parametrize("case", [case for case in ONE_EACH if case.mode != "multiclass"], ids=str)
def test_wrong_targets_of_0_and_1(case: Case) -> None:
    logits, target = pictures(case.mode)
    loss = case.build()
    for dtype in (torch.uint8, torch.float32, torch.int64):
        with pytest.raises(ValueError, match="255"):
            loss(logits, (target * 255).to(dtype))
    for wrong in (1.5, -0.5, -1.0, 2.0, math.nan, math.inf, -math.inf):
        other = target.clone()
        other[0, ..., 2, 3] = wrong
        with pytest.raises(ValueError, match="target|label"):
            loss(logits, other)
        mask = torch.ones(2, 5, 6, dtype=torch.bool)
        mask[0, 2, 3] = False
        loss(logits, other, mask)  # who ignores it may have it
    if case.loss not in SOFT:
        with pytest.raises(ValueError, match="target|hard|soft"):
            loss(logits, torch.full_like(target, 0.5))
    else:
        assert loss(logits, torch.full_like(target, 0.5)).isfinite().all()
    with pytest.raises(ValueError, match="target"):
        loss(logits, target.to(torch.complex64))


def test_a_given_distance_has_the_shape_of_the_logits() -> None:
    for mode in ("multiclass", "binary", "multilabel"):
        logits, target = pictures(mode)
        loss = Case("BoundaryLoss", mode).build()
        for wrong in (torch.zeros(2, 5, 6), torch.zeros(1, 1, 5, 6), torch.zeros(logits.shape).mT, logits.long()):
            with pytest.raises(ValueError, match="distance"):
                loss(logits, target, distance=wrong)


def test_composition() -> None:
    logits, target = pictures("multiclass")
    ce, dice = CrossEntropyLoss(), DiceLoss()
    for parts in ({}, {"ce": ce}, {"ce": (ce,)}, {"ce": (ce, "1")}, {"ce": (1.0, ce)}):
        with pytest.raises((ValueError, TypeError)):
            CombinedLoss(parts)
    for weight in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="ce|weight"):
            CombinedLoss({"ce": (ce, weight)})
    loss = CombinedLoss({"ce": (ce, 1.0), "dice": (dice, 0.5)})
    with pytest.raises(ValueError, match="boundary"):
        loss(logits, target, boundary={"distance": logits})
    with pytest.raises(ValueError, match=r"(?s)2.*3|3.*2"):
        DeepSupervisionLoss(ce, weights=[1.0, 0.5, 0.25])([logits, logits], target)
    for weights in ([1.0, math.nan], [1.0, math.inf]):
        with pytest.raises(ValueError, match="weight"):
            DeepSupervisionLoss(ce, weights=weights)
    with pytest.raises(ValueError):
        DeepSupervisionLoss(ce)([], target)


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ([1, -1], {}, "count"),
        ([1.0, math.nan], {}, "count"),
        ([1.0, math.inf], {}, "count"),
        ([[1, 2], [3, 4]], {}, "count"),
        ([0, 0], {}, "count"),
        ([1, 2], {"method": "enett"}, "did you mean 'enet'"),
        ([1, 2], {"method": "effective_number", "beta": 1.0}, "beta"),
        ([1, 2], {"method": "effective_number", "beta": -0.1}, "beta"),
    ],
)
def test_class_weights(counts: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_weights(torch.tensor(counts), **options)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_label_on_a_gpu_is_no_silence(name: str) -> None:
    """In a process of its own: a failed assertion on the device ends its CUDA context."""
    mode = next(case.mode for case in ONE_EACH if case.loss == name)
    code = f"""
import sys; sys.path.insert(0, "tests")
import torch
from loss_cases import Case, pictures
logits, target = (x.cuda() for x in pictures("{mode}"))
target[0, 0, 0] = 9
try:
    Case("{name}", "{mode}").build().cuda()(logits, target)
    torch.cuda.synchronize()
except RuntimeError as error:
    print("RuntimeError", error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "RuntimeError" in run.stdout and "assert" in (run.stdout + run.stderr).lower()


def test_messages_are_one_sentence_with_what_was_given() -> None:
    logits, target = pictures("binary")
    with pytest.raises(ValueError, match=r"divide.*255") as caught:
        BCELoss()(logits, (target * 255).byte())
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"\(?2, 5, 7\)?|\[2, 5, 7\]"):
        BCELoss()(logits, torch.zeros(2, 5, 7))
    assert set(segzoo.losses.__all__) >= {*NAMES, "CombinedLoss", "DeepSupervisionLoss", "class_weights"}
