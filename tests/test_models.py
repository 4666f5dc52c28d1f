"""Every model of the registry against the contract, so that a new one is tested the day it is registered."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from families import build, outputs_of
from safetensors.torch import save_file

import segzoo
from segzoo.models import SegmentationModel

MODELS = segzoo.list_models(task="semantic") + segzoo.list_models(task="salient")
# Where a factory lets its model be smaller, it is: the full ones are in test_architectures.py, by their shapes.
SMALLER: dict[str, dict[str, object]] = {
    "deeplabv3plus": {"encoder": "resnet10t", "decoder_channels": 32},
    "fcn8s": {"encoder": "vgg11", "head_channels": 32},
    "fpn": {"encoder": "resnet10t"},
    "pspnet": {"encoder": "resnet10t", "decoder_channels": 32},
    "unet": {"base_channels": 8},
    "unet_plusplus": {"encoder": "resnet10t", "decoder_channels": (32, 16, 16, 8, 8)},
}


def create(name: str, **arguments: object) -> SegmentationModel:
    model = build(name, **SMALLER.get(name, {}), **arguments)
    assert isinstance(model, SegmentationModel)
    return model


@pytest.fixture(params=MODELS, scope="module")
def model(request: pytest.FixtureRequest) -> SegmentationModel:
    torch.manual_seed(0)
    return create(request.param)


def test_there_are_models() -> None:
    assert {"u2net_full", "u2net_lite"} <= set(MODELS)


def test_eval_gives_logits_of_the_inputs_size(model: SegmentationModel) -> None:
    with torch.no_grad():
        out = model.eval()(torch.randn(2, 3, 65, 47))
    assert isinstance(out, torch.Tensor)
    assert out.shape == (2, model.num_classes, 65, 47) and out.isfinite().all()


def test_train_gives_the_main_output_first(model: SegmentationModel) -> None:
    outputs = outputs_of(model.train(), torch.randn(1, 3, 33, 47))
    assert all(o.shape == (1, model.num_classes, 33, 47) for o in outputs)


@pytest.mark.parametrize("size", [(1, 1), (33, 40)])
def test_every_parameter_gets_a_gradient(model: SegmentationModel, size: tuple[int, int]) -> None:
    trained = copy.deepcopy(model).train()
    sum(o.sum() for o in outputs_of(trained, torch.randn(1, 3, *size))).backward()
    assert [name for name, p in trained.named_parameters() if p.grad is None] == []


def test_predict_gives_probabilities_and_leaves_the_modes(model: SegmentationModel) -> None:
    model.train()
    frozen = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)][:1]  # FCN-8s has none
    for norm in frozen:
        norm.eval()
    modes = [m.training for m in model.modules()]
    statistics = [norm.running_mean.clone() for norm in frozen]
    out = model.predict(torch.randn(1, 3, 40, 50))
    assert out.dtype == torch.float32 and not out.requires_grad
    assert out.min() >= 0 and out.max() <= 1
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(frozen, statistics))
    with pytest.raises(ValueError, match="got"):
        model.predict(torch.zeros(3, 40, 50))
    assert [m.training for m in model.modules()] == modes


def test_save_and_load_is_bit_equal(model: SegmentationModel, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    name = request.node.callspec.params["model"]
    x = torch.randn(1, 3, 50, 40)
    expected = model.eval().predict(x)
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    torch.save({"model": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "m.pth")
    for file in ("m.safetensors", "m.pth"):
        again = create(name, weights=tmp_path / file)
        assert torch.equal(again.predict(x), expected), file


@pytest.mark.parametrize("name", MODELS)
def test_any_number_of_classes_and_channels(name: str) -> None:
    model = create(name, num_classes=5, in_channels=4).eval()
    out = model.predict(torch.randn(1, 4, 33, 33))
    assert out.shape == (1, 5, 33, 33)
    torch.testing.assert_close(out.sum(1), torch.ones(1, 33, 33))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("argument", ["num_classes", "in_channels"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "3"])
def test_nonsense_numbers_are_refused(name: str, argument: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{argument} must be a positive int, got"):
        create(name, **{argument: value})


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (torch.zeros(1, 4, 8, 8), ValueError, r"takes \[N, 3, H, W\] with H, W ≥ 1, got \[1, 4, 8, 8\]"),
        (torch.zeros(3, 8, 8), ValueError, r"got \[3, 8, 8\]"),
        (torch.zeros(1, 3, 0, 8), ValueError, r"got \[1, 3, 0, 8\]"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), TypeError, "normalised floating point values, got torch.uint8"),
        ("photo.jpg", TypeError, r"takes a tensor .* got str; segzoo.Predictor takes pictures"),
    ],
)
def test_bad_inputs_get_one_sentence(model: SegmentationModel, x: object, error: type, words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        model(x)
    assert "\n" not in str(caught.value)


def test_a_pickled_copy_predicts_the_same(model: SegmentationModel) -> None:
    x = torch.randn(1, 3, 20, 20)
    assert torch.equal(copy.deepcopy(model).predict(x), model.predict(x))
