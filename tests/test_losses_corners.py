"""Corners of the losses: many blocks, logits at the end of their range, other libraries' losses as parts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from loss_cases import ONE_EACH, Case
from torch import Tensor, nn

from segzoo.losses import (
    BCELoss,
    BoundaryLoss,
    CombinedLoss,
    CrossEntropyLoss,
    DeepSupervisionLoss,
    DiceLoss,
    FocalLoss,
    LovaszLoss,
    SSIMLoss,
    _kernels,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def inputs(mode: str, h: int = 23, w: int = 31) -> tuple[Tensor, Tensor, Tensor]:
    """Logits that are a slice of more channels, a target, and a mask."""
    generator = torch.Generator().manual_seed(0)
    channels = {"multiclass": 4, "binary": 1, "multilabel": 3}[mode]
    logits = torch.randn(2, channels + 2, h, w, generator=generator)[:, 1:-1]
    target = torch.randint(0, channels if mode == "multiclass" else 2, (2, h, w), generator=generator)
    if mode == "multilabel":
        target = target.unsqueeze(1).expand(2, channels, h, w)
    return logits, target, torch.rand(2, h, w, generator=generator) < 0.8


def value_and_gradient(loss: nn.Module, logits: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    x = logits.detach().requires_grad_()
    value = loss(x, target, mask)
    (value.sum() * 65536).backward()
    assert x.grad is not None
    return value, x.grad


@pytest.mark.parametrize("size", [40, 2**20])
@pytest.mark.parametrize("case", ONE_EACH, ids=str)
def test_ignored_logits_change_no_bit_in_any_block(case: Case, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_kernels._BLOCK, "cpu", size)
    logits, target, mask = inputs(case.mode)
    loss = case.build()
    expected, gradient = value_and_gradient(loss, logits, target, mask)
    ignored = ~mask.unsqueeze(1)
    assert gradient.masked_select(ignored).eq(0).all()
    for anything in (torch.nan, torch.inf, -torch.inf, 3e38, -3e38, 1e30):
        held = torch.where(ignored, anything, logits)
        value, of_held = value_and_gradient(loss, held, target, mask)
        assert torch.equal(value, expected) and torch.equal(of_held, gradient), anything


@pytest.mark.parametrize("case", ONE_EACH, ids=str)
def test_blocks_make_no_difference(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, target, mask = inputs(case.mode)
    whole = value_and_gradient(case.build(), logits.double(), target, mask)
    monkeypatch.setitem(_kernels._BLOCK, "cpu", 40)
    for ours, expected in zip(value_and_gradient(case.build(), logits.double(), target, mask), whole):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("loss", [BCELoss(), FocalLoss("binary"), FocalLoss("binary", normalized=True)], ids=repr)
@pytest.mark.parametrize("label", [0, 1])
def test_solved_pixels_keep_their_digits(loss: nn.Module, label: int) -> None:
    logits = torch.full((1, 1, 4, 4), -14.0 if label == 0 else 14.0)
    target = torch.full((1, 4, 4), label)
    torch.testing.assert_close(loss(logits, target).double(), loss(logits.double(), target), rtol=1e-5, atol=0)


def test_soft_targets_get_no_gradient() -> None:
    logits, target = torch.randn(1, 1, 4, 4), torch.rand(1, 4, 4, requires_grad=True)
    for loss in (DiceLoss("binary"), BCELoss(), BCELoss(reduction="none"), SSIMLoss(), FocalLoss("binary")):
        assert not loss(logits, target).requires_grad


@pytest.mark.parametrize(("dtype", "classes"), [(torch.uint8, 300), (torch.int8, 150)])
def test_narrow_labels_of_many_classes(dtype: torch.dtype, classes: int) -> None:
    logits, target = torch.randn(1, classes, 3, 4), torch.randint(0, 120, (1, 3, 4))
    torch.testing.assert_close(CrossEntropyLoss()(logits, target.to(dtype)), F.cross_entropy(logits, target))


def test_alpha_of_a_softmax_is_for_each_class() -> None:
    with pytest.raises(ValueError, match="alpha has 1 numbers, but the logits have 4 classes"):
        FocalLoss(alpha=[0.25])(torch.zeros(1, 4, 2, 2), torch.zeros(1, 2, 2).long())


def test_normalized_without_focus_divides_by_the_count() -> None:
    logits, target, mask = inputs("multiclass")
    options = {"alpha": [1.0, 2.0, 3.0, 4.0], "normalized": True}
    nearly = FocalLoss(gamma=1e-6, **options)(logits, target, mask)
    torch.testing.assert_close(FocalLoss(gamma=0.0, **options)(logits, target, mask), nearly, rtol=1e-4, atol=0)


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("loss", [DiceLoss, LovaszLoss])
def test_a_class_without_a_counted_entry_says_nothing(loss: type, per_image: bool) -> None:
    logits, target, _ = inputs("multilabel")
    mask = torch.tensor([True, False, False]).view(1, 3, 1, 1).expand_as(target)
    whole = loss("multilabel", classes="all", per_image=per_image)(logits, target, mask)
    alone = loss("multilabel", classes="all", per_image=per_image)(logits[:, :1], target[:, :1])
    torch.testing.assert_close(whole, alone)


def test_other_libraries_losses_are_parts() -> None:
    logits, target, mask = inputs("multiclass")
    theirs, ours = nn.CrossEntropyLoss(), CrossEntropyLoss()
    torch.testing.assert_close(CombinedLoss({"ce": (theirs, 2.0)})(logits, target), 2 * ours(logits, target))
    torch.testing.assert_close(DeepSupervisionLoss(theirs)([logits, logits], target), 2 * ours(logits, target))
    with pytest.raises(ValueError, match="'mask'"):
        CombinedLoss({"mask": (ours, 1.0)})


def test_maps_stay_maps() -> None:
    logits, target, mask = inputs("multiclass")
    part = CrossEntropyLoss(reduction="none")
    loss = CombinedLoss({"ce": (part, 1.0), "focal": (FocalLoss(gamma=0.0, reduction="none"), 1.0)})
    torch.testing.assert_close(loss(logits, target, mask), 2 * part(logits, target, mask))
    torch.testing.assert_close(DeepSupervisionLoss(part)([logits, logits], target), 2 * part(logits, target))


def test_a_given_distance_may_hold_anything_where_it_does_not_count() -> None:
    logits, target, mask = inputs("multiclass")
    distance = torch.randn_like(logits)
    held = distance.clone()
    held[:, 0], held[:, :, ~mask[0]] = torch.inf, torch.nan
    mask = mask[:1].expand_as(mask)
    loss = BoundaryLoss(classes=[1, 3])
    assert torch.equal(loss(logits, target, mask, distance=held), loss(logits, target, mask, distance=distance))
    with pytest.raises(ValueError, match="distance is a list"):
        loss(logits, target, distance=[1.0])
