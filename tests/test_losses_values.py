"""Values of segzoo.losses: those of slow references written from the equations; gradients by finite differences."""

from __future__ import annotations

import math

import loss_references
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import CASES, KINKED, NEIGHBOURS, ONE_EACH, SOFT, WEIGHT, Case, pictures, some_mask, value_and_gradient
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from segzoo.losses import (
    BCELoss,
    BoundaryLoss,
    CrossEntropyLoss,
    DiceLoss,
    FocalLoss,
    FocalTverskyLoss,
    JaccardLoss,
    LovaszLoss,
    OhemCrossEntropyLoss,
    SSIMLoss,
    TverskyLoss,
    class_weights,
)

pytestmark = pytest.mark.usefixtures("one_thread")

SEEDS = st.integers(0, 10**6)


def assert_equal_reference(value: Tensor, expected: object, rtol: float = 1e-9) -> None:
    torch.testing.assert_close(value, torch.as_tensor(expected, dtype=value.dtype), rtol=rtol, atol=rtol * 1e-2)


@pytest.mark.parametrize("case", CASES, ids=str)
@settings(max_examples=5)
@given(
    seed=SEEDS,
    n=st.integers(1, 3),
    h=st.integers(1, 6),
    w=st.integers(1, 7),
    ignored=st.sampled_from(["nothing", "by mask", "by entry", "by label", "a picture"]),
)
def test_values_are_the_references(case: Case, seed: int, n: int, h: int, w: int, ignored: str) -> None:
    logits, target = pictures(case.mode, seed, n, h, w, soft=case.loss in SOFT and seed % 2 == 0)
    mask, ignore_index = None, "auto"
    if ignored == "by mask":
        mask = some_mask(target, seed)
    elif ignored == "by entry":
        mask = some_mask(target, seed, by_entry=True)
        mask = mask[:, None] if mask.ndim == 3 and seed % 3 == 0 else mask
    elif ignored == "by label":
        ignore_index = 255
        target = torch.where(some_mask(target, seed, by_entry=True), target, 255)
    elif ignored == "a picture":
        mask = some_mask(target, seed)
        mask[seed % n] = False
    value = case.build(ignore_index=ignore_index)(logits, target, mask)
    assert value.dtype == torch.float64
    reference = case.reference(logits, target, mask, 255 if ignored == "by label" else None)
    # Distance maps are float32.
    assert_equal_reference(value, reference, rtol=1e-7 if case.loss == "BoundaryLoss" else 1e-9)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 7), (33, 5)])
def test_odd_sizes_in_float32_and_integer_targets(case: Case, h: int, w: int) -> None:
    if case.loss in {"LovaszLoss", "SSIMLoss", "HybridSaliencyLoss"} and h * w > 100 and case not in ONE_EACH:
        pytest.skip("the slow reference of this size is for the first options only")
    logits, target = pictures(case.mode, h * w, 2, h, w, dtype=torch.float32)
    value = case.build()(logits, target.to(torch.uint8))
    assert value.dtype == torch.float32
    assert_equal_reference(value, case.reference(logits, target), rtol=2e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_finite_differences(case: Case) -> None:
    logits, target = pictures(case.mode, 3, 2, 3, 3, soft=case.loss in SOFT)
    mask = some_mask(target, 3)
    loss = case.build()
    assert gradcheck(
        lambda x: loss(x, target, mask), logits.requires_grad_(), atol=1e-7, rtol=1e-5, fast_mode=case not in ONE_EACH
    )


@pytest.mark.parametrize("case", [case for case in CASES if case.loss not in KINKED], ids=str)
def test_second_derivatives_are_finite_differences(case: Case) -> None:
    logits, target = pictures(case.mode, 5, 2, 2, 3, soft=case.loss in SOFT)
    mask = some_mask(target, 5)
    loss = case.build()
    assert gradgradcheck(lambda x: loss(x, target, mask), logits.requires_grad_(), atol=1e-6, rtol=1e-4, fast_mode=True)


# Mean reductions divide by what counted


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.loss not in NEIGHBOURS and c.options.get("reduction") != "none"], ids=str
)
@settings(max_examples=4)
@given(seed=SEEDS, h=st.integers(1, 5), w=st.integers(1, 6))
def test_ignoring_pixels_is_leaving_them_out(case: Case, seed: int, h: int, w: int) -> None:
    n = 1 if case.options.get("per_image") else 2
    logits, target = pictures(case.mode, seed, n, h, w, soft=case.loss in SOFT)
    mask = some_mask(target, seed)
    mask.view(-1)[seed % mask.numel()] = True
    left = logits.movedim(1, 0)[:, mask][None, :, None]
    left_target = (
        target.movedim(1, 0)[:, mask][None, :, None] if case.mode == "multilabel" else target[mask][None, None]
    )
    torch.testing.assert_close(
        case.build()(logits, target, mask), case.build()(left, left_target), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("loss", [DiceLoss, JaccardLoss, TverskyLoss, FocalTverskyLoss, LovaszLoss])
def test_a_picture_without_a_counted_pixel_is_not_in_the_mean(loss: type[nn.Module]) -> None:
    for mode in ("multiclass", "binary", "multilabel"):
        logits, target = pictures(mode, 1, 3)
        mask = torch.tensor([True, False, True])[:, None, None].expand(3, 5, 6)
        expected = loss(mode, per_image=True)(logits[::2], target[::2])
        torch.testing.assert_close(loss(mode, per_image=True)(logits, target, mask), expected, rtol=1e-12, atol=0)


# A perfect prediction, the worst, and the way between them


def certain(mode: str, target: Tensor, right: bool, size: float) -> Tensor:
    """Logits `size` for the target's classes and `-size` for others, or the contrary."""
    if mode == "multiclass":
        hot = torch.nn.functional.one_hot(target if right else (target + 1) % 4, 4).movedim(-1, 1)
    else:
        hot = target if right else 1 - target
        hot = hot[:, None] if mode == "binary" else hot
    return (hot.double() * 2 - 1) * size


def largest(case: Case, size: float) -> float | None:
    """The loss of the worst prediction by `size`, from the definitions; None: no short form."""
    options = case.options
    if case.loss in {"CrossEntropyLoss", "OhemCrossEntropyLoss", "FocalLoss", "BCELoss"}:
        odd = {"label_smoothing", "reduction", "pos_weight", "normalized"} & set(options)
        if odd or (case.mode != "multiclass" and "alpha" in options):
            return None
        return 2 * size if case.mode == "multiclass" else size
    if case.loss in {"DiceLoss", "JaccardLoss", "TverskyLoss", "FocalTverskyLoss"} and options.get("smooth") == 0:
        return -math.log(1e-7) if options.get("log") else 1.0
    if case.loss == "LovaszLoss":
        return 1.0 if case.mode == "multiclass" else 1 + size
    return None


@pytest.mark.parametrize("case", [case for case in CASES if case.loss != "BoundaryLoss"], ids=str)
def test_a_perfect_prediction_is_0_and_the_worst_the_documented_maximum(case: Case) -> None:
    _, target = pictures(case.mode, 8, 2, 6, 7)
    target[..., :2] = torch.arange(12).view(6, 2).remainder(4 if case.mode == "multiclass" else 2)  # all classes
    size, loss = 60.0, case.build()
    perfect, gradient = value_and_gradient(loss, certain(case.mode, target, True, size), target)
    assert gradient.isfinite().all()
    if "label_smoothing" in case.options:  # its floor is not at certain logits
        assert_equal_reference(perfect, case.reference(certain(case.mode, target, True, size), target))
    else:  # 1 - score has rounding errors of 1e-16, of which FocalTversky may take the root
        assert perfect.abs().max() <= (1e-7 if case.loss == "FocalTverskyLoss" else 1e-11), perfect
    worst, gradient = value_and_gradient(loss, certain(case.mode, target, False, size), target)
    assert gradient.isfinite().all() and (worst > 0).any()
    expected = largest(case, size)
    if expected is not None:
        torch.testing.assert_close(worst, torch.tensor(expected, dtype=worst.dtype), rtol=1e-9, atol=0)
        other = pictures(case.mode, 9, 2, 6, 7, scale=5)[0].clamp(-size, size)
        assert loss(other, target) <= expected * (1 + 1e-12)


def test_the_perfect_prediction_of_a_boundary_loss_is_its_floor() -> None:
    for mode in ("binary", "multilabel", "multiclass"):
        _, target = pictures(mode, 2, 2, 6, 7)
        loss = BoundaryLoss(mode)
        perfect = loss(certain(mode, target, True, 60.0), target)
        worst = loss(certain(mode, target, False, 60.0), target)
        assert perfect < 0 < worst
        for seed in range(10):
            logits, _ = pictures(mode, seed, 2, 6, 7, scale=seed)
            assert perfect - 1e-12 <= loss(logits, target), seed
            if mode != "multiclass":
                assert loss(logits, target) <= worst + 1e-12


@pytest.mark.parametrize("loss", [DiceLoss, JaccardLoss, TverskyLoss, FocalTverskyLoss])
@pytest.mark.parametrize("smooth", [0.0, 1.0])
@pytest.mark.parametrize("per_image", [False, True])
def test_nothing_predicted_where_nothing_is_costs_nothing(
    loss: type[nn.Module], smooth: float, per_image: bool
) -> None:
    for mode in ("binary", "multilabel"):
        logits, target = pictures(mode)
        for size in (100.0, 1e4):  # sigmoid(-100) is 4e-44, sigmoid(-1e4) is 0
            value, gradient = value_and_gradient(
                loss(mode, smooth=smooth, per_image=per_image), torch.full_like(logits, -size), torch.zeros_like(target)
            )
            assert gradient.isfinite().all()
            if smooth or size == 1e4:
                assert value <= 1e-30, (mode, size)
    # multiclass: classes 1 to 3 are neither there nor predicted
    logits, target = pictures("multiclass")
    logits = torch.full_like(logits, -1e4)
    logits[:, 0] = 0
    value, gradient = value_and_gradient(
        loss("multiclass", smooth=smooth, per_image=per_image), logits, torch.zeros_like(target)
    )
    assert value <= 1e-12 and gradient.isfinite().all()


@pytest.mark.parametrize(
    "case",
    [
        Case("CrossEntropyLoss", "multiclass", {"weight": WEIGHT["multiclass"]}),
        Case("FocalLoss", "multiclass", {"gamma": 2.0, "alpha": WEIGHT["multiclass"]}),
        Case("FocalLoss", "multiclass", {"gamma": 0.5}),
        Case("FocalLoss", "binary", {"alpha": 0.25}),
        Case("FocalLoss", "multilabel", {"gamma": 0.5}),
        Case("BCELoss", "binary", {"pos_weight": 3.0}),
        Case("BCELoss", "multilabel"),
        Case("DiceLoss", "binary", {"smooth": 0.0}),
        Case("JaccardLoss", "multilabel"),
        Case("TverskyLoss", "binary"),
        Case("LovaszLoss", "binary"),
    ],
    ids=str,
)
@settings(max_examples=15)
@given(seed=SEEDS, step=st.floats(1e-3, 50), pixel=st.tuples(st.integers(0, 1), st.integers(0, 4), st.integers(0, 5)))
def test_a_better_logit_never_raises_the_loss(case: Case, seed: int, step: float, pixel: tuple[int, int, int]) -> None:
    logits, target = pictures(case.mode, seed, scale=4)
    n, y, x = pixel
    better = logits.clone()
    if case.mode == "multiclass":
        better[n, target[n, y, x], y, x] += step
    elif case.mode == "binary":
        better[n, 0, y, x] += step * (2 * target[n, y, x] - 1)
    else:
        better[n, :, y, x] += step * (2 * target[n, :, y, x] - 1)
    loss = case.build()
    before, after = loss(logits, target), loss(better, target)
    assert after <= before + 1e-14
    if case.loss in {"CrossEntropyLoss", "BCELoss"}:
        assert after < before or step < 0.01


# Saturated logits


@pytest.mark.parametrize("case", [case for case in CASES if case.loss != "BoundaryLoss"], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_huge_logits_are_no_nan(case: Case, dtype: torch.dtype) -> None:
    logits, target = pictures(case.mode, 4, dtype=dtype)
    for size in (30.0, 1e4):
        value, gradient = value_and_gradient(case.build(), logits.sign() * size, target)
        assert value.isfinite().all() and gradient.isfinite().all(), size


def test_gamma_0_is_the_weighted_cross_entropy_bit_for_bit() -> None:
    logits, target = pictures("multiclass", dtype=torch.float32)
    for alpha in (None, WEIGHT["multiclass"]):
        for reduction in ("mean", "sum", "none"):
            ours = value_and_gradient(FocalLoss("multiclass", 0.0, alpha, reduction=reduction), logits, target)
            expected = value_and_gradient(CrossEntropyLoss(weight=alpha, reduction=reduction), logits, target)
            assert torch.equal(ours[0], expected[0]) and torch.equal(ours[1], expected[1]), reduction
    for mode in ("binary", "multilabel"):
        logits, target = pictures(mode, dtype=torch.float32, soft=True)
        ours = value_and_gradient(FocalLoss(mode, gamma=0.0), logits, target)
        expected = value_and_gradient(BCELoss(mode), logits, target)
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-9)


# Pictures of more than one block


@pytest.mark.parametrize("case", ONE_EACH, ids=str)
def test_large_pictures_are_many_small_ones(case: Case) -> None:
    """The same 4 small pictures again and again: what is a mean or a ratio of sums does not change."""
    if case.loss in NEIGHBOURS or case.loss == "OhemCrossEntropyLoss":
        pytest.skip("has its own test below")
    options = {"smooth": 0.0} if case.loss in {"DiceLoss", "JaccardLoss", "TverskyLoss", "FocalTverskyLoss"} else {}
    case = Case(case.loss, case.mode, {**case.options, **options})
    logits, target = pictures(case.mode, 7, 2, 8, 5)
    many, many_targets = (x.repeat(*(1,) * (x.ndim - 2), 51, 81) for x in (logits, target))
    value, gradient = value_and_gradient(case.build(), many, many_targets)
    expected, small = value_and_gradient(case.build(), logits, target)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    blocks = gradient.unflatten(2, (51, 8)).unflatten(4, (81, 5)).sum((2, 4))
    if case.loss != "LovaszLoss":  # of equal errors any share is a subgradient
        torch.testing.assert_close(blocks, small, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_large_pictures_against_plain_torch(threads: int, smoothing: float) -> None:
    torch.set_num_threads(threads)
    logits, target = pictures("multiclass", 1, 2, 400, 401)
    target = torch.where(some_mask(target, 1), target, 255)
    weight = torch.tensor(WEIGHT["multiclass"], dtype=torch.float64)
    plain = nn.CrossEntropyLoss(weight, ignore_index=255, label_smoothing=smoothing)
    expected = value_and_gradient(plain, logits, target)
    ours = CrossEntropyLoss(weight=weight, label_smoothing=smoothing)
    torch.testing.assert_close(value_and_gradient(ours, logits, target), expected, rtol=1e-9, atol=1e-15)
    value, gradient = value_and_gradient(ours, logits.float(), target)
    torch.testing.assert_close((value.double(), gradient.double()), expected, rtol=1e-4, atol=1e-10)
    torch.set_num_threads(1)


def test_ohem_of_a_large_picture_keeps_the_hardest() -> None:
    logits, target = pictures("multiclass", 1, 2, 400, 401)
    target = torch.where(some_mask(target, 1), target, 255)
    p = logits.softmax(1).gather(1, target.where(target < 4, 0)[:, None])[:, 0][target < 4].sort().values
    for kept, threshold in ((1000, 0.0), (10, 0.5), (10**6, 0.5)):
        hardest = p[: max(min(kept, len(p)), int((p < threshold).sum()))]
        value, gradient = value_and_gradient(OhemCrossEntropyLoss(min_kept=kept, threshold=threshold), logits, target)
        torch.testing.assert_close(value, -hardest.log().mean(), rtol=1e-9, atol=0)
        assert (gradient != 0).any(1).sum() == len(hardest)


def test_ohem_keeps_all_ties() -> None:
    logits = torch.zeros(1, 2, 2, 6, dtype=torch.float64)
    logits[0, 0, 0, :2] = -3
    logits[0, 0, 1] = 5
    target = torch.zeros(1, 2, 6, dtype=torch.long)
    _, gradient = value_and_gradient(OhemCrossEntropyLoss(threshold=0.0, min_kept=3), logits, target)
    assert (gradient != 0).any(1).sum() == 6  # two with p = .05, and all four with p = .5
    _, gradient = value_and_gradient(OhemCrossEntropyLoss(threshold=0.0, min_kept=1), logits, target)
    assert (gradient != 0).any(1).sum() == 2


def test_sums_of_a_large_picture_in_plain_torch() -> None:
    logits, target = pictures("binary", 2, 2, 600, 601)
    p, t = logits.sigmoid()[:, 0], target
    both = (p * t).sum((1, 2))
    for per_image in (False, True):
        a, b, c = (x if per_image else x.sum() for x in (both, p.sum((1, 2)), t.sum((1, 2))))
        expected = 1 - ((2 * a + 1) / (b + c + 1)).mean()
        assert_equal_reference(DiceLoss("binary", per_image=per_image)(logits, target), expected)


# One by one


def test_the_distance_of_a_boundary_loss_may_be_given() -> None:
    for mode in ("multiclass", "binary", "multilabel"):
        logits, target = pictures(mode, 6)
        mask = some_mask(target, 6)
        distance = torch.randn(logits.shape, dtype=torch.float64)
        case = Case("BoundaryLoss", mode)
        value, gradient = value_and_gradient(case.build(), logits, target, mask, distance=distance)
        p, t, m = loss_references.per_class(
            mode,
            logits.numpy(),
            target.numpy()[:, None] if mode == "binary" else target.numpy(),
            loss_references.counted(target[:, None].numpy() if mode == "binary" else target.numpy(), mask.numpy()),
        )
        assert_equal_reference(value, (distance.numpy() * p)[m].mean())
        assert (gradient.movedim(1, -1)[~mask] == 0).all() and gradient.any()
        again = case.build()(logits, target, mask, distance=distance.float())
        torch.testing.assert_close(again, value, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("size", [(40, 31), (1, 50), (64, 64)])
def test_distances_of_larger_pictures_by_brute_force(size: tuple[int, int]) -> None:
    """A blob, a line, far corners: with logits 0, the loss is half the mean of the distances."""
    target = torch.zeros(1, *size)
    target[0, size[0] // 3 : size[0] // 3 + 9, 3:12] = 1
    target[0, -1, -1] = 1
    phi = loss_references.signed_distance(target[0].numpy() == 1, np.ones(size, bool))
    value, gradient = value_and_gradient(BoundaryLoss("binary"), torch.zeros(1, 1, *size, dtype=torch.float64), target)
    assert_equal_reference(value, phi.mean() / 2, rtol=1e-6)
    torch.testing.assert_close(gradient[0, 0].numpy() * 4 * phi.size, phi, rtol=1e-5, atol=1e-5)


def test_ssim_is_symmetric_and_at_most_2() -> None:
    board = torch.arange(12)[:, None].add(torch.arange(13)).remainder(2).double()[None]
    loss = SSIMLoss("binary")
    worst = loss((1 - board[:, None] * 2) * 60, board)
    assert 1.5 < worst < 2
    a, b = torch.rand(2, 1, 9, 8, dtype=torch.float64) * 0.9 + 0.05
    torch.testing.assert_close(loss(a.logit()[None], b), loss(b.logit()[None], a), rtol=1e-10, atol=0)


# Class weights


@settings(max_examples=40)
@given(
    counts=st.lists(st.one_of(st.just(0), st.integers(1, 10**10)), min_size=1, max_size=9).filter(any),
    method=st.sampled_from(["inverse", "median_frequency", "effective_number", "enet"]),
    as_floats=st.booleans(),
)
def test_class_weights_are_the_references(counts: list[int], method: str, as_floats: bool) -> None:
    given_counts = torch.tensor(counts, dtype=torch.float64 if as_floats else torch.int64)
    weights = class_weights(given_counts, method)
    assert weights.dtype == torch.float32 and weights.shape == (len(counts),)
    expected = torch.tensor(loss_references.class_weights(counts, method))
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=0)
    if method != "enet":
        assert ((weights == 0) == (given_counts == 0)).all()


def test_class_weights_by_hand() -> None:
    counts = torch.tensor([100, 300, 0, 600])
    assert class_weights(counts).tolist() == pytest.approx([3, 1, 0, 0.5])
    assert class_weights(counts, "inverse").tolist() == pytest.approx([10 / 3, 10 / 9, 0, 10 / 18])
    assert class_weights(counts, "enet").tolist() == pytest.approx(
        [1 / math.log(1.12), 1 / math.log(1.32), 1 / math.log(1.02), 1 / math.log(1.62)]
    )
    assert class_weights(counts, "effective_number", beta=0.0).tolist() == [1, 1, 0, 1]
    effective = class_weights(counts, "effective_number", beta=0.99)
    assert effective[effective > 0].mean() == pytest.approx(1) and effective[0] > effective[1] > effective[3]
    logits, target = pictures("multiclass")
    assert CrossEntropyLoss(weight=class_weights(counts))(logits, target).isfinite()
