"""ASPP, pyramid pooling, FCN-8s, DeepLabV3+, PSPNet and parameter groups: values, structure, smp's checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import shaken
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import segzoo
from segzoo.layers import ASPP, PyramidPooling
from segzoo.layers.ppm import average_grid
from segzoo.models.fcn import Upscore


@given(height=st.integers(1, 20), width=st.integers(1, 20), bins=st.integers(1, 7))
def test_the_exportable_average_is_adaptive_pooling(height: int, width: int, bins: int) -> None:
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    expected = F.adaptive_avg_pool2d(x, bins)
    torch.testing.assert_close(average_grid(x, bins), expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segzoo.layers.ppm._is_exporting", lambda: True)
        torch.testing.assert_close(average_grid(x, bins), expected)


def test_pyramid_pooling_is_the_papers_figure() -> None:
    """Against plain float64 loops: averages of the grid's cells, a 1×1 convolution, bilinear back."""
    layer = PyramidPooling(8, (1, 2, 3), norm=None).double()
    assert layer.out_channels == 8 + 3 * 2
    x = torch.randn(1, 8, 6, 6, dtype=torch.float64)
    out = layer(x)
    torch.testing.assert_close(out[:, 6:], x)
    for i, bins in enumerate((1, 2, 3)):
        cell = 6 // bins
        a = x[0].numpy()
        pooled = np.zeros((8, bins, bins))
        for r, k in np.ndindex(bins, bins):
            pooled[:, r, k] = a[:, r * cell : (r + 1) * cell, k * cell : (k + 1) * cell].mean((1, 2))
        conv = layer.branches[i].conv
        mixed = np.einsum("oc,cij->oij", conv.weight.detach().numpy()[:, :, 0, 0], pooled)
        mixed = np.maximum(mixed + conv.bias.detach().numpy()[:, None, None], 0)
        up = F.interpolate(torch.from_numpy(mixed)[None], size=(6, 6), mode="bilinear", align_corners=False)
        torch.testing.assert_close(out[:, 2 * i : 2 * i + 2], up)
    for bad in ((), (0,), (1.5,)):
        with pytest.raises(ValueError, match="bins are positive ints"):
            PyramidPooling(8, bad)  # type: ignore[arg-type]


def test_pyramid_pooling_exports_at_a_dynamic_size() -> None:
    layer = PyramidPooling(8).eval()
    free = {2: torch.export.Dim("height", min=2), 3: torch.export.Dim("width", min=2)}
    program = torch.export.export(layer, (torch.randn(1, 8, 11, 13),), dynamic_shapes=(free,))
    for size in [(7, 5), (24, 9)]:
        x = torch.randn(1, 8, *size)
        torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize("rates", [(), (6,), (12, 24, 36), (1, 2, 3, 4)])
@pytest.mark.parametrize("separable", [False, True])
def test_aspp_takes_any_rates_and_map(rates: tuple[int, ...], separable: bool) -> None:
    layer = ASPP(6, rates, 4, separable=separable).train()
    assert len(layer.convs) == len(rates) + 2
    dilations = [m.dilation[0] for m in layer.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert dilations == list(rates)
    for size in [(1, 1), (1, 5), (7, 3)]:
        out = layer(torch.randn(1, 6, *size))
        assert out.shape == (1, 4, *size) and out.isfinite().all()
    assert any(m.groups == 6 for m in layer.modules() if isinstance(m, nn.Conv2d)) == (separable and bool(rates))


def test_upscore_starts_as_bilinear_interpolation() -> None:
    x = torch.randn(1, 3, 6, 7)
    up = Upscore(3)(x, torch.zeros(1, 1, 12, 14))
    expected = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(up[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])  # at the rim it meets zeros


def test_fcn8s_is_the_papers_network() -> None:
    """The layers of VGG-16 and of the paper's Fig. 3, counted from the published table."""
    with torch.device("meta"):
        model = segzoo.fcn8s(encoder_weights=None)
    vgg = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512), *[(512, 512)] * 5]
    convolutions = sum(9 * i * o + o for i, o in vgg)
    fully = 49 * 512 * 4096 + 4096 + 4096 * 4096 + 4096
    scores = sum(channels * 21 + 21 for channels in (4096, 512, 256)) + 2 * 16 * 21 * 21
    assert sum(p.numel() for p in model.parameters()) == convolutions + fully + scores
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    with torch.device("meta"):
        normed = segzoo.fcn8s(encoder_weights=None, norm="group")
    assert sum(isinstance(m, nn.GroupNorm) for m in normed.modules()) == 13 + 2
    with pytest.raises(ValueError, match="the encoder of FCN-8s is a VGG"):
        segzoo.fcn8s("resnet18", encoder_weights=None)
    with pytest.raises(ValueError, match="vgg11_bn has batch norms: give norm='batch'"):
        segzoo.fcn8s("vgg11_bn", encoder_weights=None)
    with torch.device("meta"):
        tagged = segzoo.fcn8s("vgg11.tv_in1k", encoder_weights=None, norm="batch", head_channels=8)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in tagged.modules()) == 8 + 2


def test_deeplabv3plus_takes_the_papers_rates() -> None:
    def rates(**arguments: object) -> list[int]:
        with torch.device("meta"):
            model = segzoo.deeplabv3plus("resnet10t", encoder_weights=None, **arguments)  # type: ignore[arg-type]
        return [m.dilation[0] for m in model.aspp.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]

    assert rates() == [6, 12, 18]
    assert rates(output_stride=8) == [12, 24, 36]
    assert rates(rates=(2, 4)) == [2, 4]


def smp_model(name: str, encoder: str, **arguments: object) -> nn.Module:
    """Of segmentation_models_pytorch, with weights and statistics that are not 0 and 1."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    return shaken(getattr(smp, name)(encoder, encoder_weights=None, classes=5, **arguments))


@pytest.mark.parametrize("encoder", ["resnet34", "tu-mobilenetv3_small_050"])
@pytest.mark.parametrize(
    ("name", "factory", "theirs", "ours"),
    [
        ("DeepLabV3Plus", segzoo.deeplabv3plus, {}, {}),
        ("DeepLabV3Plus", segzoo.deeplabv3plus, {"encoder_output_stride": 8}, {"output_stride": 8}),
        ("DeepLabV3Plus", segzoo.deeplabv3plus, {"decoder_atrous_rates": (2, 4, 6)}, {"rates": (2, 4, 6)}),
        ("PSPNet", segzoo.pspnet, {}, {}),
        ("PSPNet", segzoo.pspnet, {"encoder_depth": 4}, {"encoder_depth": 4}),
    ],
)
def test_smp_state_dicts_convert_and_agree(
    encoder: str, name: str, factory: Callable[..., nn.Module], theirs: dict, ours: dict, tmp_path: Path
) -> None:
    if theirs.get("encoder_depth") == 4:
        theirs = {**theirs, "upsampling": 16}
    reference = smp_model(name, encoder, **theirs)
    torch.save(reference.state_dict(), tmp_path / "smp.pth")
    model = factory(encoder.removeprefix("tu-"), weights=tmp_path / "smp.pth", **ours).eval()
    assert model.num_classes == 5
    for size in [(64, 96), (96, 64)]:
        x = torch.randn(1, 3, *size)
        with torch.no_grad():
            expected, out = reference(x), model(x)
        assert (out - expected).abs().max() <= 1e-5 * expected.abs().max().clamp_min(1)


def test_pspnets_auxiliary_head_is_on_the_map_before(tmp_path: Path) -> None:
    model = segzoo.pspnet("resnet10t", encoder_weights=None, num_classes=3)
    model.eval()
    x = torch.randn(1, 3, 65, 65)
    features = model.encoder(x)
    model.training = True
    main, auxiliary = model(x)
    torch.testing.assert_close(
        auxiliary, F.interpolate(model.aux_head(features[-2]), size=(65, 65), mode="bilinear", align_corners=False)
    )
    assert main.shape == auxiliary.shape
    without = segzoo.pspnet("resnet10t", encoder_weights=None, aux=False).train()
    assert isinstance(without(x), torch.Tensor)


def test_parameter_groups_are_a_partition() -> None:
    model = segzoo.deeplabv3plus("resnet10t", encoder_weights=None, norm="evo_s0")
    groups = segzoo.param_groups(model, lr=0.1, weight_decay=0.05, encoder_lr_scale=0.2)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped)) and set(grouped) == {id(p) for p in model.parameters()}
    names = {id(p): name for name, p in model.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["lr"] == pytest.approx(0.02 if name.startswith("encoder.") else 0.1)
            plain = parameter.ndim == 1  # γ, β, v and biases
            assert group["weight_decay"] == (0.0 if plain else 0.05), name
    torch.optim.AdamW(groups)
    model.encoder.freeze()
    assert not any(group["name"].startswith("encoder") for group in segzoo.param_groups(model))


@pytest.mark.parametrize("name", ["u2net_lite", "fcn_resnet50", "segformer"])
def test_parameter_groups_of_any_model(name: str, caplog: pytest.LogCaptureFixture) -> None:
    from segzoo.registry import create_untrained

    model = create_untrained(name)
    groups = segzoo.param_groups(model, weight_decay=0.1)
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in model.parameters())
    assert {g["name"].partition(",")[0] for g in groups} == ({"rest"} if name == "u2net_lite" else {"encoder", "rest"})
    assert all("lr" not in group for group in groups) and not caplog.text
    segzoo.param_groups(model, encoder_lr_scale=0.1)
    assert "pass lr as well" in caplog.text
    caplog.clear()
    wrapped = segzoo.param_groups(nn.DataParallel(model), lr=1.0, encoder_lr_scale=0.1)
    assert (0.1 in [group["lr"] for group in wrapped]) == (name != "u2net_lite")
    assert ("has no encoder" in caplog.text) == (name == "u2net_lite")
    for bad in ({"lr": "1e-3"}, {"lr": -1}, {"weight_decay": -0.1}, {"encoder_lr_scale": float("nan")}):
        with pytest.raises(ValueError, match="must be a number that is not negative"):
            segzoo.param_groups(model, **bad)


@pytest.mark.parametrize(
    ("factory", "arguments", "words"),
    [
        (segzoo.deeplabv3plus, {"decoder_channels": 0}, "decoder_channels must be a positive int, got 0"),
        (segzoo.deeplabv3plus, {"rates": (6, 0)}, r"rates are positive ints, got \(6, 0\)"),
        (segzoo.pspnet, {"bins": ()}, r"bins are positive ints, got \(\)"),
        (segzoo.pspnet, {"head_kernel_size": 1.5}, "head_kernel_size must be a positive int, got 1.5"),
        (segzoo.pspnet, {"fuse_kernel_size": 2}, "kernel_size must be odd, to keep the size, got 2"),
        (segzoo.pspnet, {"encoder_depth": 0}, "depth is 1 to 5, got 0"),
        (segzoo.pspnet, {"bins": 6}, "bins are positive ints, got 6"),
        (segzoo.deeplabv3plus, {"rates": 12}, "rates are positive ints, got 12"),
        (segzoo.pspnet, {"encoder_depth": 9}, "depth is 1 to 5, got 9"),
        (segzoo.deeplabv3plus, {"norm": "grup"}, "unknown norm 'grup': did you mean 'group'"),
        (segzoo.deeplabv3plus, {"weights": "coco"}, "unknown weights for deeplabv3plus 'coco'"),
    ],
)
def test_mistakes_get_one_sentence(factory: Callable[..., nn.Module], arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        factory("resnet10t", encoder_weights=None, **arguments)
    assert "\n" not in str(caught.value)
