"""segzoo.losses beside the losses of torch, torchvision, segmentation_models_pytorch, MONAI and published code.

Where a definition differs, the test says by which arguments or factor the two become equal.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import WEIGHT, pictures, some_mask, value_and_gradient
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from segzoo.losses import (
    BCELoss,
    BoundaryLoss,
    CrossEntropyLoss,
    DiceLoss,
    FocalLoss,
    FocalTverskyLoss,
    HybridSaliencyLoss,
    JaccardLoss,
    LovaszLoss,
    SSIMLoss,
    TverskyLoss,
    class_weights,
)

pytestmark = pytest.mark.usefixtures("one_thread")

MODES = ["multiclass", "binary", "multilabel"]
W = WEIGHT["multiclass"]


class Peer(nn.Module):
    """A function of logits and target as a module, for value_and_gradient."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.function(logits, target)


def assert_same(ours: nn.Module, theirs: Any, logits: Tensor, target: Tensor, *args: Any, rtol: float = 1e-9) -> None:
    """Value and gradient, `theirs` without further arguments."""
    expected = value_and_gradient(Peer(theirs), logits, target)
    value = value_and_gradient(ours, logits, target, *args)
    torch.testing.assert_close(value, expected, rtol=rtol, atol=rtol * 1e-2)


@pytest.fixture(scope="module")
def smp() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("segmentation_models_pytorch").losses


@pytest.fixture(scope="module")
def monai() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("monai.losses")


# torch and torchvision


@settings(max_examples=20)
@given(
    seed=st.integers(0, 10**6),
    weighted=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    ignore_index=st.sampled_from([255, -100, 2]),
)
def test_cross_entropy_is_torchs(
    seed: int, weighted: bool, smoothing: float, reduction: str, ignore_index: int
) -> None:
    logits, target = pictures("multiclass", seed)
    target = torch.where(some_mask(target, seed), target, ignore_index)
    weight = torch.tensor(W, dtype=torch.float64) if weighted else None
    options = {"weight": weight, "label_smoothing": smoothing, "ignore_index": ignore_index, "reduction": reduction}
    assert_same(CrossEntropyLoss(**options), nn.CrossEntropyLoss(**options), logits, target)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("pos_weight", [None, 2.5, WEIGHT["multilabel"]])
def test_bce_is_torchs(reduction: str, pos_weight: float | tuple[float, ...] | None) -> None:
    for mode in ("binary", "multilabel"):
        if mode == "binary" and isinstance(pos_weight, tuple):
            continue
        logits, target = pictures(mode, soft=True)
        factor = None if pos_weight is None else torch.tensor(pos_weight, dtype=torch.float64).view(-1, 1, 1)

        def theirs(x: Tensor, t: Tensor, factor: Tensor | None = factor) -> Tensor:
            return F.binary_cross_entropy_with_logits(x, t.view_as(x), pos_weight=factor, reduction=reduction)

        assert_same(BCELoss(mode, pos_weight=pos_weight, reduction=reduction), theirs, logits, target)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("alpha", [None, 0.0, 0.25])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_sigmoid_focal_is_torchvisions(reduction: str, alpha: float | None, gamma: float) -> None:
    for mode in ("binary", "multilabel"):
        for soft in (False, True):
            logits, target = pictures(mode, soft=soft)

            def theirs(x: Tensor, t: Tensor) -> Tensor:
                return sigmoid_focal_loss(x, t.view_as(x), -1 if alpha is None else alpha, gamma, reduction)

            assert_same(FocalLoss(mode, gamma, alpha, reduction=reduction), theirs, logits, target)


# segmentation_models_pytorch


def with_all_classes(mode: str, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """smp's loss of a class that the batch does not have is 0; ours is its false positives. So let all be there."""
    logits, target = pictures(mode, seed, 3, 6, 7, dtype=dtype)
    target[..., :2] = torch.arange(12).view(6, 2).remainder(4 if mode == "multiclass" else 2)
    return logits, target


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("smooth", [0.0, 0.5])
@pytest.mark.parametrize("ignore", [False, True])
def test_region_losses_are_smps(smp: Any, mode: str, log: bool, smooth: float, ignore: bool) -> None:
    logits, target = with_all_classes(mode, 1)
    ignore_index = 255 if ignore else None
    if ignore:
        target[:, ..., 3:] = torch.where(some_mask(target, 2, by_entry=True), target, 255)[..., 3:]
    for options in [{}] if mode == "binary" else [{}, {"classes": [0, 2]}, {"weight": WEIGHT[mode]}]:
        theirs = {"log_loss": log, "ignore_index": ignore_index, "classes": options.get("classes")}
        if "weight" in options:
            theirs["class_weights"] = list(options["weight"])
        ours = {"log": log, "ignore_index": ignore_index, **options}
        # smp's Dice is (I + s) / ((P + T) / 2 + s): its smooth is half of ours
        pairs = [
            (DiceLoss(mode, smooth=2 * smooth, **ours), smp.DiceLoss(mode, smooth=smooth, **theirs)),
            (JaccardLoss(mode, smooth=smooth, **ours), smp.JaccardLoss(mode, smooth=smooth, **theirs)),
            (
                TverskyLoss(mode, smooth=smooth, **ours),
                smp.TverskyLoss(mode, smooth=smooth, alpha=0.3, beta=0.7, **theirs),
            ),
        ]
        for one, other in pairs:
            assert_same(one, other, logits, target, rtol=1e-6)  # smp has its class weights in float32


def test_where_smps_region_losses_differ(smp: Any) -> None:
    """A class that is nowhere: smp counts it as 0 in the mean, "all" by its false positives, "present" not at all."""
    logits, target = with_all_classes("multiclass", 1)
    target = target.remainder(3)
    theirs = smp.DiceLoss("multiclass")(logits, target)
    torch.testing.assert_close(theirs, DiceLoss(smooth=0.0, classes="present")(logits, target) * 3 / 4)
    torch.testing.assert_close(theirs, DiceLoss(smooth=0.0)(logits, target) - 1 / 4)
    # soft targets: smp's intersection is the sum of min(p, t), not of p * t
    logits, target = pictures("binary", soft=True)
    p = logits.sigmoid()[:, 0]
    expected = 1 - 2 * torch.minimum(p, target).sum() / (p + target).sum()
    torch.testing.assert_close(smp.DiceLoss("binary")(logits, target), expected)


@pytest.mark.parametrize("gamma", [1.0, 4 / 3, 2.0])
def test_focal_tversky_is_smps_for_one_class(smp: Any, gamma: float) -> None:
    """smp raises the mean of the classes to the power gamma (not 1 / gamma), not each class."""
    logits, target = pictures("binary", 1)
    theirs = smp.TverskyLoss("binary", smooth=1.0, alpha=0.3, beta=0.7, gamma=1 / gamma)
    assert_same(FocalTverskyLoss("binary", gamma=gamma), theirs, logits, target)


@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_focal_loss_is_smps(smp: Any, alpha: float | None, gamma: float) -> None:
    for ignore_index in (None, 255):
        logits, target = pictures("binary", 1)
        if ignore_index:
            target = torch.where(some_mask(target, 1), target, 255)
        ours, theirs = {"ignore_index": ignore_index}, {"ignore_index": ignore_index, "gamma": gamma, "alpha": alpha}
        assert_same(FocalLoss("binary", gamma, alpha, **ours), smp.FocalLoss("binary", **theirs), logits, target)
        # normalized: smp divides by the number of pixels too, unless it sums
        normalized = smp.FocalLoss("binary", normalized=True, reduction="sum", **theirs)
        assert_same(FocalLoss("binary", gamma, alpha, normalized=True, **ours), normalized, logits, target)
    # smp's "multiclass" focal loss is a sigmoid for each class: our multilabel of the one-hot target
    logits, target = pictures("multiclass", 1)
    hot = F.one_hot(target, 4).movedim(-1, 1)
    theirs = smp.FocalLoss("multiclass", gamma=gamma, alpha=alpha)(logits, target)
    torch.testing.assert_close(FocalLoss("multilabel", gamma, alpha)(logits, hot), theirs, rtol=1e-9, atol=0)


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("mode", ["multiclass", "binary"])
def test_lovasz_is_smps_and_so_bermans(smp: Any, mode: str, per_image: bool) -> None:
    """smp has Berman's published code; it works in float32 only. Its multilabel is one hinge over all channels."""
    for ignore_index in (None, 255):
        for seed in range(4):
            logits, target = pictures(mode, seed, 3, dtype=torch.float32)
            if ignore_index:
                target = torch.where(some_mask(target, seed), target, 255)
            theirs = smp.LovaszLoss(mode, per_image, ignore_index)
            if mode == "binary":
                theirs = Peer(lambda x, t, loss=theirs: loss(x, t[:, None]))
            assert_same(
                LovaszLoss(mode, per_image=per_image, ignore_index=ignore_index), theirs, logits, target, rtol=1e-4
            )
    logits, target = pictures("multilabel", 1, dtype=torch.float32)
    channels = [LovaszLoss("binary")(logits[:, [c]], target[:, c]) for c in range(3)]
    torch.testing.assert_close(LovaszLoss("multilabel", classes="all")(logits, target), sum(channels) / 3)


# MONAI


def column(target: Tensor) -> Tensor:
    return target if target.ndim == 4 else target[:, None]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("smooth", [1.0, 0.25])
def test_dice_jaccard_and_tversky_are_monais(monai: Any, mode: str, per_image: bool, smooth: float) -> None:
    for ignore in (False, True):
        logits, target = pictures(mode, 2, soft=mode != "multiclass" and not ignore)
        theirs = {"smooth_nr": smooth, "smooth_dr": smooth, "batch": not per_image}
        theirs |= {"softmax": True, "to_onehot_y": True} if mode == "multiclass" else {"sigmoid": True}
        ours = {"per_image": per_image}
        if ignore:
            if mode == "multilabel":
                continue  # MONAI takes an all-zero column of a multilabel target for ignored
            target = torch.where(some_mask(target, 2), target, 255)
            theirs["ignore_index"] = ours["ignore_index"] = 255
        # MONAI's Jaccard is (2I + s) / (2 (P + T - I) + s): its smooth is twice ours
        pairs = [
            (DiceLoss(mode, smooth=smooth, **ours), monai.DiceLoss(**theirs)),
            (JaccardLoss(mode, smooth=smooth / 2, **ours), monai.DiceLoss(jaccard=True, **theirs)),
            (TverskyLoss(mode, smooth=smooth, **ours), monai.TverskyLoss(alpha=0.3, beta=0.7, **theirs)),
        ]
        for one, other in pairs:
            assert_same(one, lambda x, t, other=other: other(x, column(t)), logits, target)


def test_monais_weights_and_background(monai: Any) -> None:
    logits, target = pictures("multiclass", 3)
    options = {"softmax": True, "to_onehot_y": True, "smooth_nr": 1.0, "smooth_dr": 1.0, "batch": True}
    theirs = monai.DiceLoss(include_background=False, **options)(logits, column(target))
    torch.testing.assert_close(DiceLoss(classes=[1, 2, 3])(logits, target), theirs, rtol=1e-9, atol=0)
    # MONAI divides the weighted losses by the number of classes, not by the weights' sum
    theirs = monai.DiceLoss(weight=list(W), **options)(logits, column(target)) * 4 / sum(W)
    torch.testing.assert_close(DiceLoss(weight=W)(logits, target), theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_is_monais(monai: Any, gamma: float) -> None:
    """MONAI computes in float32; of hard targets (its modulating factor of soft ones is another than torchvision's)."""
    for mode in ("binary", "multilabel"):
        logits, target = pictures(mode, 1)
        for alpha in (None, 0.25):
            theirs = monai.FocalLoss(gamma=gamma, alpha=alpha)
            ours = FocalLoss(mode, gamma, alpha)
            assert_same(ours, lambda x, t, f=theirs: f(x, column(t)).double(), logits, target, rtol=1e-4)
    # an alpha for each channel: MONAI leaves the negatives as they are, ours have 1 - alpha
    alpha, kept = (0.125, 0.5, 0.875), {"reduction": "none"}
    theirs = monai.FocalLoss(gamma=gamma, alpha=alpha, **kept)(logits, target).double()
    factor = torch.tensor(alpha, dtype=torch.float64).view(3, 1, 1)
    expected = torch.where(target == 1, theirs, theirs * (1 - factor))
    ours = FocalLoss("multilabel", gamma, alpha, **kept)(logits, target)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-7)
    # softmax: MONAI's mean is over all N * C * H * W entries, ours over the pixels
    logits, target = pictures("multiclass", 1)
    for alpha in (None, W):
        theirs = monai.FocalLoss(gamma=gamma, alpha=alpha, use_softmax=True, to_onehot_y=True, reduction="none")
        ours = FocalLoss("multiclass", gamma, alpha, reduction="sum")
        assert_same(ours, lambda x, t, f=theirs: f(x, column(t)).sum().double(), logits, target, rtol=1e-4)


def padded(mode: str, seed: int, n: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits and target; their pictures with 5 zeros around."""
    logits, target = pictures(mode, seed, n, 12, 9, soft=True)
    return logits, target, *(F.pad(x, (5, 5, 5, 5)) for x in (logits.sigmoid(), column(target)))


@pytest.mark.parametrize("mode", ["binary", "multilabel"])
def test_ssim_is_monais_of_padded_pictures(monai: Any, mode: str) -> None:
    """MONAI has no padding, and computes in float32."""
    logits, target, p, t = padded(mode, 1)
    theirs = monai.SSIMLoss(2)(p, t).double()
    torch.testing.assert_close(SSIMLoss(mode)(logits, target), theirs, rtol=1e-4, atol=0)


# Others


def test_ssim_is_scikit_images_inside() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    logits, target, p, t = padded("binary", 2, 1)
    _, similarity = metrics.structural_similarity(
        p[0, 0].numpy(),
        t[0, 0].numpy(),
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    expected = 1 - similarity[5:-5, 5:-5].mean()
    assert SSIMLoss("binary")(logits, target).item() == pytest.approx(expected, rel=1e-9)


def basnet_ssim(a: Tensor, b: Tensor, size: int = 11) -> Tensor:
    """`_ssim` of github.com/xuebinqin/BASNet's pytorch_ssim."""
    line = torch.tensor([np.exp(-((x - size // 2) ** 2) / (2 * 1.5**2)) for x in range(size)], dtype=a.dtype)
    line = line / line.sum()
    window = (line[:, None] @ line[None])[None, None]

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(x, window, padding=size // 2)

    mu1, mu2 = blur(a), blur(b)
    sigma1_sq, sigma2_sq, sigma12 = blur(a * a) - mu1**2, blur(b * b) - mu2**2, blur(a * b) - mu1 * mu2
    c1, c2 = 0.01**2, 0.03**2
    return (
        ((2 * mu1 * mu2 + c1) * (2 * sigma12 + c2)) / ((mu1**2 + mu2**2 + c1) * (sigma1_sq + sigma2_sq + c2))
    ).mean()


def basnet_iou(p: Tensor, t: Tensor) -> Tensor:
    """`_iou` of BASNet's pytorch_iou."""
    loss = 0.0
    for i in range(len(p)):
        both = (t[i] * p[i]).sum()
        loss = loss + (1 - both / (t[i].sum() + p[i].sum() - both))
    return loss / len(p)


def test_hybrid_saliency_loss_is_basnets() -> None:
    logits, target = pictures("binary", 3, 3, 14, 13)

    def basnet(x: Tensor, t: Tensor) -> Tensor:
        p, t = x.sigmoid(), t[:, None]
        return F.binary_cross_entropy(p, t) + (1 - basnet_ssim(p, t)) + basnet_iou(p, t)

    assert_same(HybridSaliencyLoss(), basnet, logits, target, rtol=1e-8)
    assert_same(SSIMLoss(), lambda x, t: 1 - basnet_ssim(x.sigmoid(), t[:, None]), logits, target, rtol=1e-8)
    loss = JaccardLoss("binary", smooth=0.0, per_image=True)
    assert_same(loss, lambda x, t: basnet_iou(x.sigmoid(), t[:, None]), logits, target)


def one_hot2dist(seg: np.ndarray) -> np.ndarray:
    """`one_hot2dist` of github.com/LIVIAETS/boundary-loss."""
    edt = pytest.importorskip("scipy.ndimage").distance_transform_edt
    res = np.zeros(seg.shape)
    for k in range(len(seg)):
        posmask = seg[k].astype(bool)
        if posmask.any():
            negmask = ~posmask
            res[k] = edt(negmask) * negmask - (edt(posmask) - 1) * posmask
    return res


@pytest.mark.parametrize("mode", MODES)
def test_boundary_loss_is_kervadecs(mode: str) -> None:
    """A map that is full apart: without a zero scipy measures to a point outside the picture; ours is 0."""
    logits, target = pictures(mode, 4, 2, 16, 17)
    hot = F.one_hot(target, 4).movedim(-1, 1) if mode == "multiclass" else column(target)
    distance = torch.tensor(np.stack([one_hot2dist(picture) for picture in hot.numpy()]))

    def theirs(x: Tensor, t: Tensor) -> Tensor:
        p = x.softmax(1) if mode == "multiclass" else x.sigmoid()
        return torch.einsum("bkwh,bkwh->bkwh", p, distance).mean()

    assert_same(BoundaryLoss(mode), theirs, logits, target, rtol=1e-6)  # distances may be float32
    assert_same(BoundaryLoss(mode), lambda x, t: BoundaryLoss(mode)(x, t, distance=distance), logits, target, rtol=1e-6)


def test_inverse_class_weights_are_scikit_learns_balanced() -> None:
    compute_class_weight = pytest.importorskip("sklearn.utils.class_weight").compute_class_weight
    labels = np.repeat([0, 1, 3], [7, 100, 29])
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    weights = class_weights(torch.tensor([7, 100, 0, 29]), "inverse")
    assert weights[[0, 1, 3]].tolist() == pytest.approx(expected.tolist()) and weights[2] == 0
