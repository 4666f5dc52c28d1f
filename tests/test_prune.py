"""segzoo.export.prune: what goes, what stays tied together, and that the numbers are those of the model without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import segzoo
from segzoo.export.prune import _layers, prune
from segzoo.layers._channels import trace_channels
from segzoo.models.base import SegmentationModel
from segzoo.registry import create_untrained

SMALL: dict[str, dict[str, Any]] = {
    "u2net_lite": {},
    "unet": {"base_channels": 8},
    "fpn": {"encoder": "resnet10t"},
    "lraspp_mobilenet_v3_large": {},
}
EACH = [pytest.param(name, marks=[] if name in ("u2net_lite", "unet") else pytest.mark.slow) for name in SMALL]
pytestmark = pytest.mark.usefixtures("one_thread")


def made(name: str, **options: Any) -> Any:
    """A model whose norms do something."""
    torch.manual_seed(0)
    model = create_untrained(name, **{**SMALL.get(name, {}), **options}).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            assert module.running_mean is not None and module.running_var is not None
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def size_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def flops(model: nn.Module, x: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops()


def apart(expected: Tensor, got: Tensor) -> float:
    """The largest difference, by the range."""
    assert expected.shape == got.shape
    return float((expected - got).abs().max() / (expected.max() - expected.min()))


MODELS: dict[str, Any] = {}


@pytest.mark.parametrize("name", EACH)
@settings(max_examples=2, phases=[Phase.generate])
@given(data=st.data())
def test_channels_that_are_zero_go_and_nothing_changes(name: str, data: st.DataObject) -> None:
    if name not in MODELS:
        model = made(name)
        MODELS[name] = model, trace_channels(model)
    model, channels = MODELS[name]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    pairs = channels.shifts.items()
    normed = {number for scale, _ in pairs for number in channels.numbers[scale]} - channels.fixed
    zero = set(data.draw(st.lists(st.sampled_from(sorted(normed)), min_size=1, max_size=60, unique=True)))
    layers = [slot for slot in channels.made if not zero.isdisjoint(channels.numbers[slot])]
    gone = sum(number in zero for slot in layers for number in channels.numbers[slot])
    if any(zero.issuperset(channels.numbers[slot]) for slot in layers):
        return  # one stays in any case
    tensors = dict(model.named_parameters())
    x = torch.randn(1, 3, 64, 48, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    with torch.no_grad():
        for scale, shift in pairs:
            picked = [i for i, number in enumerate(channels.numbers[scale]) if number in zero]
            for slot in (scale, shift):
                tensors[slot.name][picked] = 0
        every = _layers(channels)
        width = sum(layer.widths.get(number, 0) for layer in every for number in zero)  # of a norm's group: several
        amount = (width + 0.5) / sum(layer.size for layer in every)
        smaller = prune(model, amount, scope="global", round_to=1)
        expected, got = model(x), smaller(x)
        model.load_state_dict(state)
    by_name = dict(smaller.named_parameters())
    assert sum(len(channels.numbers[slot]) - by_name[slot.name].shape[slot.dim] for slot in layers) == gone
    assert apart(expected, got) <= 1e-5


class Residual(nn.Module):
    """A depthwise convolution, a sum, a concatenation and a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.spatial = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point = nn.Conv2d(16, 16, 1, bias=False)
        self.beside = nn.Conv2d(16, 8, 1)
        self.grouped = nn.Conv2d(24, 12, 1, groups=4)
        self.up = nn.ConvTranspose2d(16, 10, 2, stride=2)
        self.head = nn.Conv2d(10, 2, 1)
        self.other = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.stem(x))
        x = x + self.point(self.spatial(x))
        grouped = self.grouped(torch.cat([x, self.beside(x)], 1))
        return self.head(self.up(F.max_pool2d(x, 2))), self.other(grouped)


def test_what_is_tied_goes_together_and_grouped_ones_stay() -> None:
    model = Residual()
    with torch.no_grad():
        model.beside.weight[[1, 6]] *= 1e-3
        model.up.weight[:, [0, 4, 9]] *= 1e-3
    smaller = prune(model, 0.3, by="l1", round_to=1)
    shapes = {
        name: (module.in_channels, module.out_channels, module.groups) for name, module in smaller.named_children()
    }
    # The grouped convolution takes all that the stem, its depthwise and pointwise ones and the one beside them make.
    assert shapes == {
        **{name: (m.in_channels, m.out_channels, m.groups) for name, m in model.named_children()},
        "up": (16, 7, 1),
        "head": (7, 2, 1),
    }
    assert smaller.up.weight.equal(model.up.weight[:, [1, 2, 3, 5, 6, 7, 8]])
    assert smaller.head.weight.equal(model.head.weight[:, [1, 2, 3, 5, 6, 7, 8]])

    model.grouped = nn.Conv2d(24, 12, 1)
    model.other.requires_grad_(False)
    smaller = prune(model, 0.25, by="l2", round_to=1)
    assert (smaller.spatial.groups, smaller.spatial.in_channels, smaller.stem.out_channels) == (12, 12, 12)
    assert smaller.grouped.in_channels == 12 + 6 and smaller.beside.in_channels == 12
    assert not smaller.other.weight.requires_grad and smaller.stem.weight.requires_grad
    strengths = torch.stack([model.stem.weight.flatten(1).norm(dim=1), model.point.weight.flatten(1).norm(dim=1)])
    kept = strengths.mean(0).topk(12).indices.sort().values
    assert smaller.stem.weight.equal(model.stem.weight[kept])
    assert smaller.point.weight.equal(model.point.weight[kept][:, kept])
    assert smaller.stem.bias is not None and smaller.stem.bias.equal(model.stem.bias[kept])  # type: ignore[index]


class Others(nn.Module):
    """A convolution that is used twice, group norm, a linear layer, squeeze and excitation, a split."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.again = nn.Conv2d(16, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.squeeze = nn.Linear(16, 6)
        self.excite = nn.Linear(6, 16)
        self.split = nn.Conv2d(16, 8, 1)
        self.heads = nn.ModuleList([nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.again(self.again(x))
        x = F.silu(self.norm(x))
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3)))))
        x = x * gate.sigmoid()[:, :, None, None]
        halves = self.split(x).chunk(2, 1)
        out: Tensor = self.heads[0](halves[0]) + self.heads[1](halves[1])
        return out


def test_groups_of_a_norm_go_whole_and_what_is_split_stays() -> None:
    model = Others()
    smaller = prune(model, 0.5, round_to=1)
    assert (smaller.stem.out_channels, smaller.again.in_channels, smaller.again.out_channels) == (8, 8, 8)
    assert (smaller.norm.num_groups, smaller.norm.num_channels) == (2, 8)
    assert smaller.squeeze.weight.shape == (3, 8) and smaller.excite.weight.shape == (8, 3)
    assert (smaller.squeeze.in_features, smaller.squeeze.out_features) == (8, 3)
    assert (smaller.split.in_channels, smaller.split.out_channels) == (8, 8)


def test_shared_parameters_stay_shared() -> None:
    model = nn.Sequential(*(nn.Conv2d(c, 8, 1) for c in (3, 8, 8)), nn.Conv2d(8, 1, 1))
    model[2].weight = model[1].weight
    smaller = prune(model, 0.5, round_to=1)
    assert smaller[2].weight is smaller[1].weight and smaller[1].weight.shape == (4, 4, 1, 1)


def test_scale_takes_the_smallest_gamma_and_filters_where_all_are_alike() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
    )
    model.append(nn.Conv2d(8, 1, 1))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, -0.1, 0.6, 0.05, 0.7, 0.8, -0.9, 1.0]))
        model[0].weight[0] *= 1e-3
        model[3].weight[[2, 5]] *= 1e-3
    smaller = prune(model, 0.25, round_to=1)
    assert smaller[1].weight.equal(model[1].weight[[0, 2, 4, 5, 6, 7]])
    assert smaller[3].weight.equal(model[3].weight[[0, 1, 3, 4, 6, 7]][:, [0, 2, 4, 5, 6, 7]])
    everywhere = prune(model, 0.25, by="l1", scope="global", round_to=1)
    assert not any(model[0].weight[0].equal(row) for row in everywhere[0].weight)
    assert everywhere[0].out_channels + everywhere[3].out_channels == 12


@pytest.mark.parametrize(("amount", "kept"), [(0.1, 64), (0.3, 48), (0.5, 32), (0.97, 8)])
def test_what_stays_is_a_multiple_and_never_nothing(amount: float, kept: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 1), nn.ReLU(), nn.Conv2d(64, 6, 1), nn.ReLU(), nn.Conv2d(6, 1, 1))
    if kept == 64:
        with pytest.raises(ValueError, match="amount=0.1 with round_to=64 leaves all 70 channels"):
            prune(model, amount, round_to=64)
        return
    smaller = prune(model, amount)
    assert (smaller[0].out_channels, smaller[2].out_channels) == (kept, 6)


@pytest.mark.parametrize("name", EACH)
def test_it_is_smaller_trains_and_the_whole_one_stays(name: str) -> None:
    model = made(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = torch.randn(1, 3, 40, 56)
    whole = model(x)
    smaller = prune(model, 0.5, round_to=4)
    assert size_of(smaller) < 0.4 * size_of(model) and flops(smaller, x) < 0.5 * flops(model, x)
    assert smaller(x).shape == whole.shape and not smaller.training
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    outputs = smaller.train()(x)
    sum(y.mean() for y in (outputs if isinstance(outputs, list) else [outputs])).backward()
    assert all(parameter.grad is not None for parameter in smaller.parameters())
    same = prune(model, 0)
    assert same is not model and same(x).equal(whole)


def test_a_pruned_model_is_saved_and_loaded(tmp_path: Path) -> None:
    model = made("unet", num_classes=3)
    terms: dict[str, Any] = {"license": "mit", "training_data": {"none": "random weights"}}
    model.save_pretrained(tmp_path / "whole", **terms)
    assert "pruned" not in json.loads((tmp_path / "whole/config.json").read_text())
    smaller = prune(prune(model, 0.3, round_to=1), 0.3, round_to=1)  # again
    smaller.save_pretrained(tmp_path / "smaller", **terms)
    loaded = SegmentationModel.from_pretrained(tmp_path / "smaller")
    x = torch.randn(2, 3, 33, 47)
    assert loaded(x).equal(smaller(x)) and str(loaded) == str(smaller)  # type: ignore[operator]
    loaded.save_pretrained(tmp_path / "again", **terms)
    assert segzoo.create_model(f"local-dir:{tmp_path / 'again'}").eval()(x).equal(smaller(x))

    other = segzoo.create_model(f"local-dir:{tmp_path / 'smaller'}", num_classes=5, in_channels=4, norm="frozen_batch")
    assert other(torch.randn(1, 4, 33, 47)).shape == (1, 5, 33, 47)
    assert other.head.in_channels == smaller.head.in_channels and other.head.out_channels == 5


def test_what_was_changed_before_cannot_be_saved_after(tmp_path: Path) -> None:
    model = made("unet", num_classes=1)
    model.head = nn.Conv2d(model.head.in_channels, 1, 3, padding=1)
    with pytest.raises(ValueError, match=r"was changed after unet\(\) had made it"):
        prune(model, 0.5).save_pretrained(tmp_path / "model", license="mit", training_data={"a": "b"})


class Cheat(nn.Module):
    """Its output depends on how many channels there are."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers[0](x)
        out: Tensor = self.layers[2](y) / y.shape[1]
        return out


class Fixed(Cheat):
    """It counts on eight channels."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers[2](self.layers[0](x).view(x.shape[0], 8, x.shape[2], x.shape[3]))
        return out


def test_what_was_cut_wrong_is_not_given_out() -> None:
    with pytest.raises(RuntimeError, match="the pruned Cheat differs by .* its forward uses them in a way"):
        prune(Cheat(), 0.5, round_to=1)
    with pytest.raises(RuntimeError, match="the pruned Fixed does not run"):
        prune(Fixed(), 0.5, round_to=1)


def test_errors() -> None:
    model = made("unet")
    for amount in (-0.1, 1, float("nan")):
        with pytest.raises(ValueError, match="amount is the share of the channels that go"):
            prune(model, amount)
    with pytest.raises(ValueError, match="'scales'.*did you mean 'scale'"):
        prune(model, 0.5, by="scales")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown scope 'all'"):
        prune(model, 0.5, scope="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="round_to must be a positive int"):
        prune(model, 0.5, round_to=0)
    with pytest.raises(TypeError, match=r"prune takes a torch.nn.Module, got str"):
        prune("unet", 0.5)  # type: ignore[type-var]
    with pytest.raises(ValueError, match="no channel of this Conv2d can go"):
        prune(nn.Conv2d(3, 8, 1), 0.5)
    with pytest.raises(ValueError, match="Sequential does not run without values in train mode"):
        prune(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(7, 8, 1)), 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("name", segzoo.list_models())
def test_every_model_loses_half_and_comes_back(name: str, tmp_path: Path) -> None:
    model = create_untrained(name).eval()
    smaller = prune(model, 0.5)
    transformer, detector = name == "segformer", name.startswith("mask_rcnn")
    assert size_of(smaller) < (0.75 if transformer else 0.6 if detector else 0.3) * size_of(model)
    smaller.save_pretrained(tmp_path / "model", license="mit", training_data={"none": "random weights"})
    loaded = segzoo.create_model(f"local-dir:{tmp_path / 'model'}")
    assert all(value.equal(loaded.state_dict()[key]) for key, value in smaller.state_dict().items())


@pytest.mark.slow
def test_a_pruned_model_is_exported(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from segzoo.export import to_onnx

    to_onnx(prune(segzoo.u2net_lite(), 0.5), tmp_path / "smaller.onnx")
    assert (tmp_path / "smaller.onnx").stat().st_size < 2_000_000
