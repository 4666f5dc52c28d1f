"""Multi-scale prediction against the mean written out, and what it leaves as it was."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from resizing import resized
from torch import Tensor, nn

from segzoo import u2net_lite
from segzoo.inference import average_predictions, multi_scale, preprocess, read_picture
from segzoo.models.base import SegmentationModel

pytestmark = pytest.mark.usefixtures("one_thread")


class Tiny(SegmentationModel):
    """Few weights, side outputs in train mode, and a dropout that must not be in force."""

    def __init__(self, num_classes: int = 3, *, multilabel: bool = False) -> None:
        super().__init__(num_classes, 3, multilabel=multilabel)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Conv2d(4, num_classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        self.check_input(x)
        logits = self.head(self.body(x))
        return [logits, logits * 2] if self.training else logits


@pytest.fixture(autouse=True)
def same_weights() -> None:
    torch.manual_seed(0)


def by_hand(
    model: SegmentationModel, x: Tensor, scales: list[float], hflip: bool, average: str, sigmoid: bool
) -> np.ndarray:
    """The mean over scales and flips in float64, resized by torchvision."""
    height, width = x.shape[-2:]
    terms = []
    for scale in scales:
        size = [max(1, int(np.floor(side * scale + 0.5))) for side in (height, width)]
        scaled = resized(x, size)
        for flipped in (False, True) if hflip else (False,):
            logits = model(scaled.flip(3) if flipped else scaled)
            logits = resized(logits.flip(3) if flipped else logits, [height, width])
            terms.append(logits.detach().numpy())

    def probabilities(logits: np.ndarray) -> np.ndarray:
        if sigmoid:
            return 1 / (1 + np.exp(-logits))
        e = np.exp(logits - logits.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    if average == "logits":
        return probabilities(np.mean(terms, 0))
    return np.mean([probabilities(term) for term in terms], 0)


@given(
    batch=st.integers(1, 2),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    scales=st.lists(st.sampled_from([0.1, 0.5, 0.75, 1.0, 1.3, 2.2]), min_size=1, max_size=3),
    hflip=st.booleans(),
    average=st.sampled_from(["probabilities", "logits"]),
    kind=st.sampled_from(["one class", "classes", "multilabel"]),
)
def test_it_is_the_mean_written_out(
    batch: int, height: int, width: int, scales: list[float], hflip: bool, average: str, kind: str
) -> None:
    torch.manual_seed(height * 20 + width)
    model = Tiny(1 if kind == "one class" else 3, multilabel=kind == "multilabel").eval()
    x = torch.randn(batch, 3, height, width)
    found = multi_scale(model, x, scales, hflip, average)
    assert found.shape == (batch, model.num_classes, height, width) and found.dtype == torch.float32
    expected = by_hand(model.double(), x.double(), scales, hflip, average, kind != "classes")
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("num_classes", [1, 3])
def test_one_scale_and_no_flip_is_predict(average: str, num_classes: int) -> None:
    for model in (Tiny(num_classes), Tiny(num_classes, multilabel=True)):
        for size in ((1, 1), (17, 24)):
            x = torch.randn(2, 3, *size)
            assert torch.equal(multi_scale(model, x, (1.0,), False, average), model.predict(x))
            half = x.bfloat16()
            narrow = model.bfloat16()
            assert torch.equal(multi_scale(narrow, half, [1], False, average), narrow.predict(half))
            model.float()


def test_of_a_model_of_the_zoo(coffee: Path) -> None:
    model = u2net_lite()
    x = preprocess(read_picture(coffee), replace(model.preprocessing, size=(64, 96)))[None]
    plain = model.predict(x)
    assert torch.equal(multi_scale(model, x, (1.0,), False), plain) and model.training
    assert plain.max() > 0.9 and (multi_scale(model, x, (1.0, 1.5)) - plain).abs().mean() < 0.1


def test_defaults_are_eight_scales_and_a_flip() -> None:
    model, x = Tiny(), torch.randn(1, 3, 20, 30)
    found = multi_scale(model, x)
    assert torch.equal(found, multi_scale(model, x, (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.2), True, "probabilities"))
    assert not torch.allclose(found, model.predict(x), atol=1e-3)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_a_mirrored_picture_has_the_mirrored_result(average: str) -> None:
    model, x = Tiny(), torch.randn(2, 3, 15, 22)
    found = multi_scale(model, x, (0.5, 1.0, 1.7), True, average)
    torch.testing.assert_close(multi_scale(model, x.flip(3), (0.5, 1.0, 1.7), True, average), found.flip(3))
    one_sided = multi_scale(model, x, (0.5, 1.0, 1.7), False, average)
    assert not torch.allclose(one_sided, multi_scale(model, x.flip(3), (0.5, 1.0, 1.7), False, average).flip(3))


def test_the_two_means_differ_and_each_is_the_one_it_says() -> None:
    four, zero = torch.full((1, 1, 2, 2), 4.0), torch.zeros(1, 1, 3, 3)
    for average, expected in (
        ("probabilities", (four[0, 0, 0, 0].sigmoid() + 0.5) / 2),
        ("logits", 1 / (1 + np.exp(-2))),
    ):
        found = average_predictions(nn.Identity(), [four, zero], (2, 5), hflip=False, average=average)
        torch.testing.assert_close(found, torch.full((1, 1, 2, 5), float(expected)))


@given(value=st.floats(-5, 5, width=32), height=st.integers(1, 9), width=st.integers(1, 9))
def test_a_model_that_always_says_the_same_still_does(value: float, height: int, width: int) -> None:
    def model(x: Tensor) -> Tensor:
        return torch.cat((x[:, :1] * 0 + value, x[:, :1] * 0), 1)

    found = multi_scale(model, torch.randn(1, 3, height, width))
    torch.testing.assert_close(found[:, 0], torch.full((1, height, width), value).sigmoid())


OUTPUTS: dict[str, Callable[[Tensor], object]] = {
    "tensor": lambda y: y,
    "list": lambda y: [y, y + 100],
    "tuple": lambda y: (y, y + 100),
    "torchvision": lambda y: {"out": y, "aux": y + 100},
    "transformers": lambda y: {"loss": None, "logits": y},
    "coarser": lambda y: nn.functional.avg_pool2d(y, 4, ceil_mode=True),
}


@pytest.mark.parametrize("output", OUTPUTS)
def test_any_model_will_do(output: str) -> None:
    model, x = Tiny().eval(), torch.randn(2, 3, 21, 18)
    found = multi_scale(lambda x: OUTPUTS[output](model(x)), x, (0.5, 1.0))
    assert found.shape == (2, 3, 21, 18)
    torch.testing.assert_close(found.sum(1), torch.ones(2, 21, 18))
    if output != "coarser":
        assert torch.equal(found, multi_scale(model, x, (0.5, 1.0)))


def test_multilabel_is_asked_for_or_known() -> None:
    overlapping, x = Tiny(multilabel=True).eval(), torch.randn(1, 3, 9, 8)
    found = multi_scale(overlapping, x, (1.0, 2.0))
    assert not torch.allclose(found.sum(1), torch.ones(1, 9, 8), atol=0.1)
    assert torch.equal(multi_scale(lambda x: overlapping(x), x, (1.0, 2.0), multilabel=True), found)
    exclusive = multi_scale(overlapping, x, (1.0, 2.0), multilabel=False)
    torch.testing.assert_close(exclusive.sum(1), torch.ones(1, 9, 8))


def test_modes_stay_as_they_were() -> None:
    model, x = Tiny().train(), torch.randn(2, 3, 16, 16)
    model.body[1].eval()
    modes = [module.training for module in model.modules()]
    statistics = model.body[1].running_mean.clone()
    found = multi_scale(model, x, (0.5, 1.0))
    assert [module.training for module in model.modules()] == modes and isinstance(model(x), list)
    assert torch.equal(model.body[1].running_mean, statistics)
    assert torch.equal(found, multi_scale(model.eval(), x, (0.5, 1.0)))
    model.train()
    with pytest.raises(ValueError, match="the model takes"):
        multi_scale(model, x[:, :2])
    assert model.training


def test_no_gradients_and_nothing_of_the_callers_changes() -> None:
    x = torch.randn(1, 2, 8, 8, requires_grad=True)
    kept = x.detach().clone()
    for average in ("probabilities", "logits"):
        found = multi_scale(nn.Identity(), x, (1.0, 1.0, 2.0), True, average)
        assert not found.requires_grad and torch.equal(x, kept)
    assert torch.is_grad_enabled()


def test_one_scale_at_a_time() -> None:
    """Inputs of other scales than the present one are gone."""
    seen: list[weakref.ref[Tensor]] = []
    most = 0

    def model(x: Tensor) -> Tensor:
        nonlocal most
        seen.append(weakref.ref(x))
        most = max(most, sum(one() is not None for one in seen))
        return x[:, :1].clone()

    x = torch.randn(1, 3, 16, 16)
    multi_scale(model, x, (0.5, 1.5, 2.0, 2.5))
    assert len(seen) == 8 and most <= 2  # the copy and its mirror image


def test_inputs_may_come_from_anywhere() -> None:
    """As Predictor hands them in: each resized from the original."""
    model, x = Tiny().eval(), torch.randn(2, 3, 12, 10)
    inputs = [torch.randn(2, 3, 24, 20), x]
    found = average_predictions(model, iter(inputs), (12, 10), hflip=False)
    first = resized(model(inputs[0]), [12, 10]).softmax(1).float()
    torch.testing.assert_close(found, ((first + model.predict(x)) / 2).detach())


def test_autocast_and_narrow_models() -> None:
    model, x = Tiny().eval(), torch.randn(1, 3, 20, 14)
    wide = multi_scale(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        found = multi_scale(model, x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wide, atol=0.02, rtol=0)
    narrow = multi_scale(model.bfloat16(), x.bfloat16())
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow, wide, atol=0.03, rtol=0)


def test_errors_say_what_was_given() -> None:
    model, x = Tiny(), torch.randn(1, 3, 8, 8)
    for scales in ((), (1.0, 0.0), (-1.0,), (float("inf"),), (float("nan"),), 2.0, "ab"):
        with pytest.raises(ValueError, match=r"scales must be one or more positive, finite numbers, got"):
            multi_scale(model, x, scales)
    with pytest.raises(ValueError, match=r"unknown average 'logit': did you mean 'logits'\?"):
        multi_scale(model, x, average="logit")
    for wrong in (x[0], x[:, :, :0]):
        with pytest.raises(ValueError, match=r"x is \[.*\], expected \[N, C, H, W\] without empty dimensions"):
            multi_scale(model, wrong)
    with pytest.raises(TypeError, match=r"x is torch.uint8, expected a tensor \[N, C, H, W\] of normalised"):
        multi_scale(model, x.to(torch.uint8))
    with pytest.raises(TypeError, match=r"x is ndarray, expected a tensor"):
        multi_scale(model, x.numpy())
    with pytest.raises(TypeError, match=r"the model's output must be logits, .* got str"):
        multi_scale(lambda x: "logits", x)
    with pytest.raises(TypeError, match=r"the model's output must be logits, .* got dict"):
        multi_scale(lambda x: {"aux": x}, x)
    with pytest.raises(ValueError, match=r"the model's logits must be \[1, classes, h, w\], got \[8, 8\]"):
        multi_scale(lambda x: x[0, 0], x, (1.0,))
    with pytest.raises(ValueError, match="there is no input to average predictions over"):
        average_predictions(model, [], (8, 8))


@pytest.mark.gpu
def test_gpu_finds_the_same() -> None:
    model, x = Tiny().eval(), torch.randn(2, 3, 40, 30)
    expected = multi_scale(model, x)
    torch.testing.assert_close(multi_scale(model.cuda(), x.cuda()).cpu(), expected, atol=1e-3, rtol=0)
