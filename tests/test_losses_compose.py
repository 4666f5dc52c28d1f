"""Losses of losses: CombinedLoss, DeepSupervisionLoss, HybridSaliencyLoss and their parts by name."""

from __future__ import annotations

import copy
import math

import loss_references
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import pictures, some_mask, value_and_gradient
from torch import nn

import segzoo
from segzoo.losses import (
    BCELoss,
    BoundaryLoss,
    CombinedLoss,
    CrossEntropyLoss,
    DeepSupervisionLoss,
    DiceLoss,
    HybridSaliencyLoss,
    JaccardLoss,
    SSIMLoss,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), first=st.floats(0, 10), second=st.floats(0, 10))
def test_combined_is_the_weighted_sum(seed: int, first: float, second: float) -> None:
    logits, target = pictures("multiclass", seed)
    mask = some_mask(target, seed)
    ce, dice = CrossEntropyLoss(), DiceLoss(classes="present")
    loss = CombinedLoss({"ce": (ce, first), "dice": (dice, second)})
    value, gradient = value_and_gradient(loss, logits, target, mask)
    one, other = (value_and_gradient(part, logits, target, mask) for part in (ce, dice))
    torch.testing.assert_close(value, first * one[0] + second * other[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient, first * one[1] + second * other[1], rtol=1e-12, atol=1e-14)
    total, parts = loss(logits.requires_grad_(), target, mask, return_parts=True)
    assert torch.equal(total, value) and total.requires_grad
    assert list(parts) == ["ce", "dice"]
    assert torch.equal(parts["ce"], one[0]) and torch.equal(parts["dice"], other[0])
    assert not any(part.requires_grad for part in parts.values())


def test_combined_passes_options_to_a_part_by_its_name() -> None:
    logits, target = pictures("multiclass")
    distance = torch.randn(logits.shape, dtype=torch.float64)
    loss = CombinedLoss({"ce": (CrossEntropyLoss(), 1.0), "boundary": (BoundaryLoss(), 0.5)})
    total, parts = loss(logits, target, return_parts=True, boundary={"distance": distance})
    expected = BoundaryLoss()(logits, target, distance=distance)
    assert torch.equal(parts["boundary"], expected) and expected != BoundaryLoss()(logits, target)
    torch.testing.assert_close(total, CrossEntropyLoss()(logits, target) + 0.5 * expected)


def test_combined_nested_and_as_a_module() -> None:
    logits, target = pictures("binary", dtype=torch.float32)
    weighted = CombinedLoss({"bce": (BCELoss(pos_weight=2.0), 1.0), "ssim": (SSIMLoss(), 0.5)})
    nested = CombinedLoss({"both": (weighted, 2.0), "dice": (DiceLoss("binary"), 1.0)})
    expected = 2 * weighted(logits, target) + DiceLoss("binary")(logits, target)
    torch.testing.assert_close(nested(logits, target), expected)
    twin = copy.deepcopy(nested)
    twin.load_state_dict(nested.state_dict())
    torch.testing.assert_close(twin.double()(logits.double(), target).float(), expected)
    assert "bce" in repr(nested) and "BCELoss" in repr(nested) and "dice" in repr(nested)
    for transformed in (torch.compile(weighted, fullgraph=True, backend="aot_eager"), weighted):
        value, parts = transformed(logits, target, return_parts=True)
        torch.testing.assert_close(value, weighted(logits, target))
        assert set(parts) == {"bce", "ssim"}


def test_nothing_counted_is_0_in_each_part() -> None:
    logits, target = pictures("binary")
    logits[:] = math.nan
    nowhere = torch.zeros(2, 5, 6, dtype=torch.bool)
    for loss in (HybridSaliencyLoss(), CombinedLoss({"bce": (BCELoss(), 1.0), "dice": (DiceLoss("binary"), 1.0)})):
        for wrapped in (loss, DeepSupervisionLoss(loss)):
            value, gradient = value_and_gradient(wrapped, logits, target, nowhere)
            assert value == 0 and not gradient.any()


def test_hybrid_saliency_is_its_three_parts() -> None:
    logits, target = pictures("binary", 3, soft=True)
    mask = some_mask(target, 3)
    loss = HybridSaliencyLoss(bce=1.0, ssim=0.5, iou=2.0)
    total, parts = loss(logits, target, mask, return_parts=True)
    losses = {"bce": BCELoss(), "ssim": SSIMLoss(), "iou": JaccardLoss("binary", smooth=0.0, per_image=True)}
    assert list(parts) == list(losses)
    for name, part in losses.items():
        torch.testing.assert_close(parts[name], part(logits, target, mask), rtol=1e-12, atol=0)
        assert not parts[name].requires_grad
    torch.testing.assert_close(total, parts["bce"] + 0.5 * parts["ssim"] + 2 * parts["iou"], rtol=1e-12, atol=0)
    counts = loss_references.counted(target[:, None].numpy(), mask.numpy())
    expected = loss_references.hybrid_saliency_parts("binary", logits.numpy(), target[:, None].numpy(), counts)
    assert {name: part.item() for name, part in parts.items()} == pytest.approx(expected, rel=1e-9)


def test_deep_supervision_of_a_u2net() -> None:
    torch.manual_seed(0)
    model = segzoo.u2net_lite(weights=None).train()
    x, target = torch.rand(2, 3, 32, 32), (torch.rand(2, 32, 32) < 0.4).float()
    outputs = model(x)
    assert isinstance(outputs, list) and len(outputs) == 7
    plain = DeepSupervisionLoss(BCELoss())
    torch.testing.assert_close(plain(outputs, target), sum(BCELoss()(output, target) for output in outputs))
    torch.testing.assert_close(plain(tuple(outputs), target), plain(outputs, target))
    weights = [1.0, 0.5, 0.25, 0.0, 0.125, 0.5, 2.0]
    loss = DeepSupervisionLoss(HybridSaliencyLoss(), weights=weights)
    total, parts = loss(outputs, target, return_parts=True)
    each = [HybridSaliencyLoss()(output, target, return_parts=True) for output in outputs]
    torch.testing.assert_close(total, sum(w * value for w, (value, _) in zip(weights, each)))
    for name in ("bce", "ssim", "iou"):
        torch.testing.assert_close(parts[name], sum(w * p[name] for w, (_, p) in zip(weights, each)))
        assert not parts[name].requires_grad
    total.backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is None or g.isfinite().all() for g in gradients) and any(g is not None and g.any() for g in gradients)


def test_deep_supervision_of_one_tensor_is_the_loss() -> None:
    logits, target = pictures("multiclass")
    mask = some_mask(target, 0)
    for weights in (None, [0.5, 2.0]):
        loss = DeepSupervisionLoss(CrossEntropyLoss(), weights=weights)
        expected = value_and_gradient(CrossEntropyLoss(), logits, target, mask)
        value, gradient = value_and_gradient(loss, logits, target, mask)
        assert torch.equal(value, expected[0]) and torch.equal(gradient, expected[1])
    model = segzoo.u2net_lite(weights=None).eval()
    with torch.no_grad():
        output = model(torch.rand(1, 3, 32, 32))
    hard = (torch.rand(1, 32, 32) < 0.5).float()
    assert torch.equal(DeepSupervisionLoss(BCELoss())(output, hard), BCELoss()(output, hard))


def test_deep_supervision_passes_everything_on() -> None:
    logits, target = pictures("binary")
    mask = some_mask(target, 1)
    distance = torch.randn(logits.shape, dtype=torch.float64)
    inner = CombinedLoss({"bce": (BCELoss(), 1.0), "boundary": (BoundaryLoss("binary"), 0.5)})
    options = {"boundary": {"distance": distance}}
    loss = DeepSupervisionLoss(inner, weights=[1.0, 0.25])
    total, parts = loss([logits, -logits], target, mask, return_parts=True, **options)
    one, parts_of_one = inner(logits, target, mask, return_parts=True, **options)
    other, parts_of_other = inner(-logits, target, mask, return_parts=True, **options)
    torch.testing.assert_close(total, one + 0.25 * other)
    for name, part in parts.items():
        torch.testing.assert_close(part, parts_of_one[name] + 0.25 * parts_of_other[name])
    boundary = DeepSupervisionLoss(BoundaryLoss("binary"))
    expected = 2 * BoundaryLoss("binary")(logits, target, distance=distance)
    torch.testing.assert_close(boundary([logits, logits], target, distance=distance), expected)


def test_training_with_each_combination_goes_down() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 16, 16)
    target = (x.mean(1) > 0.5).float()
    loss = DeepSupervisionLoss(CombinedLoss({"hybrid": (HybridSaliencyLoss(), 1.0), "dice": (DiceLoss("binary"), 1.0)}))
    heads = nn.ModuleList(nn.Conv2d(3, 1, 1) for _ in range(2))
    optimizer = torch.optim.Adam(heads.parameters(), 0.3)
    values = []
    for _ in range(25):
        optimizer.zero_grad()
        value = loss([head(x) for head in heads], target)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.6 * values[0]
