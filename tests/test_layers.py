"""Norms, ConvNormAct, RSU, SideFusion: shapes, structure and values against plain float64 transcriptions."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from segzoo.layers import (
    RSU,
    RSU4F,
    BatchNorm,
    ConvNormAct,
    EvoNormB0,
    EvoNormS0,
    FrozenBatchNorm,
    GroupNorm,
    SideFusion,
    get_norm,
)
from segzoo.layers.conv import conv_norm_act
from segzoo.layers.norm import legal_groups

NORMS = ["batch", "sync_batch", "frozen_batch", "group", "instance", "layer", "evo_s0", "evo_b0"]


@given(channels=st.integers(1, 600), asked=st.integers(1, 64))
def test_groups_are_the_largest_legal_divisor(channels: int, asked: int) -> None:
    legal = [d for d in range(1, channels + 1) if channels % d == 0 and d <= asked and channels // d >= 2]
    assert legal_groups(channels, asked) == (max(legal) if legal else 1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (5, 7)])
@pytest.mark.parametrize("channels", [1, 3, 16])
def test_every_norm_trains_on_every_map(norm: str, size: tuple[int, int], channels: int) -> None:
    layer = get_norm(norm, channels).train()
    x = torch.randn(1, channels, *size, requires_grad=True)
    out = layer(x)
    assert out.shape == x.shape and out.isfinite().all()
    out.square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize("norm", ["batch", "sync_batch", "evo_b0"])
def test_one_value_uses_the_running_statistics_and_leaves_them(norm: str) -> None:
    layer = get_norm(norm, 4).train()
    for _ in range(3):
        layer(torch.randn(8, 4, 3, 3) * 2 + 1)
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(1, 4, 1, 1)
    torch.testing.assert_close(layer(x), layer.eval()(x))
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("norm", ["instance", "group", "layer"])
def test_one_value_passes_with_weight_and_bias_alone(norm: str) -> None:
    layer = get_norm(norm, 1 if norm != "instance" else 3)
    nn.init.uniform_(layer.weight, 0.5, 2)
    nn.init.uniform_(layer.bias, -1, 1)
    x = torch.randn(2, len(layer.weight), 1, 1)
    torch.testing.assert_close(layer(x), x * layer.weight[:, None, None] + layer.bias[:, None, None])


def test_batch_norm_is_torchs_where_torch_has_an_answer() -> None:
    ours, theirs = BatchNorm(5).train(), nn.BatchNorm2d(5).train()
    for size in [(2, 1, 1), (1, 3, 4)]:
        x = torch.randn(size[0], 5, *size[1:])
        assert torch.equal(ours(x), theirs(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values()))


def test_frozen_batch_norm_takes_a_batch_norms_state_and_never_moves() -> None:
    norm = nn.BatchNorm2d(4)
    norm.train()(torch.randn(8, 4, 5, 5) * 3 + 2)
    nn.init.uniform_(norm.weight)
    frozen = FrozenBatchNorm(4).train()
    frozen.load_state_dict(norm.state_dict())
    x = torch.randn(3, 4, 6, 6)
    torch.testing.assert_close(frozen(x), norm.eval()(x))
    assert not list(frozen.parameters())


def _evo_s0(x: np.ndarray, v: np.ndarray, gamma: np.ndarray, beta: np.ndarray, groups: int) -> np.ndarray:
    n, c, h, w = x.shape
    out = np.empty_like(x)
    for i in range(n):
        for g in range(groups):
            channels = range(g * c // groups, (g + 1) * c // groups)
            variance = x[i, list(channels)].var()
            for k in channels:
                out[i, k] = x[i, k] / (1 + np.exp(-v[k] * x[i, k])) / np.sqrt(variance + 1e-5) * gamma[k] + beta[k]
    return out


def test_evo_s0_is_the_papers_equation() -> None:
    layer = EvoNormS0(12, groups=4).double()
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -1, 1)
    x = torch.randn(2, 12, 5, 3, dtype=torch.float64, requires_grad=True)
    expected = _evo_s0(*(t.detach().numpy() for t in (x, layer.v, layer.weight, layer.bias)), groups=4)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-12)
    assert torch.autograd.gradcheck(layer, (x,))


def test_evo_b0_is_the_papers_equation_and_keeps_running_variance() -> None:
    layer = EvoNormB0(3, momentum=0.5).double().train()
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -1, 1)
    x = torch.randn(4, 3, 5, 3, dtype=torch.float64)
    a = x.numpy()
    v, gamma, beta = (p.detach().numpy().reshape(1, 3, 1, 1) for p in (layer.v, layer.weight, layer.bias))
    batch_var = a.var((0, 2, 3), keepdims=True)

    def expected(batch_var: np.ndarray) -> np.ndarray:
        instance = np.sqrt(a.var((2, 3), keepdims=True) + 1e-5)
        return a / np.maximum(np.sqrt(batch_var + 1e-5), v * a + instance) * gamma + beta

    np.testing.assert_allclose(layer(x).detach().numpy(), expected(batch_var), rtol=1e-12)
    running = 0.5 * 1 + 0.5 * batch_var
    np.testing.assert_allclose(layer.running_var.numpy(), running.ravel(), rtol=1e-12)
    np.testing.assert_allclose(layer.eval()(x).detach().numpy(), expected(running), rtol=1e-12)


def test_evo_norm_takes_the_activations_place() -> None:
    with_act = ConvNormAct(3, 8, norm="evo_s0")
    assert isinstance(with_act.act, nn.Identity) and with_act.bn.v is not None
    without = ConvNormAct(3, 8, norm="evo_b0", act=None)
    assert without.bn.v is None and without.bn.running_var is None
    x = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(without(x), without.conv(x))


def test_a_callable_norm_and_none() -> None:
    block = ConvNormAct(3, 8, norm=lambda channels: GroupNorm(channels, groups=2))
    assert block.bn.num_groups == 2 and block.conv.bias is None
    assert ConvNormAct(3, 8, norm=None).conv.bias is not None


def test_unknown_norms_name_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown norm 'bacth': did you mean 'batch'"):
        get_norm("bacth", 8)
    with pytest.raises(TypeError, match="a callable or None, not int"):
        get_norm(3, 8)  # type: ignore[arg-type]


@pytest.mark.parametrize("dilation", [1, 2, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_conv_norm_act_sizes(stride: int, dilation: int) -> None:
    block = ConvNormAct(3, 4, stride=stride, dilation=dilation)
    assert block(torch.zeros(1, 3, 7, 10)).shape[-2:] == (-(-7 // stride), -(-10 // stride))
    assert list(block.state_dict())[:3] == ["conv.weight", "bn.weight", "bn.bias"]


@given(height=st.integers(2, 7), h=st.integers(1, 70), w=st.integers(1, 70))
def test_rsu_keeps_any_size(height: int, h: int, w: int) -> None:
    assert RSU(height, 3, 2, 4)(torch.rand(1, 3, h, w)).shape == (1, 4, h, w)


def test_rsu_is_the_papers_figure() -> None:
    block = RSU(5, 3, 2, 4)
    assert len(block.encode_modules) == 5 and len(block.decode_modules) == 4
    assert [m.conv.dilation[0] for m in block.encode_modules] == [1, 1, 1, 1, 2]
    sizes: list[int] = []
    for module in [*block.encode_modules, *block.decode_modules]:
        module.register_forward_hook(lambda m, i, out: sizes.append(out.shape[-1]))
    block(torch.rand(1, 3, 21, 21))
    assert sizes == [21, 11, 6, 3, 3, 3, 6, 11, 21]  # halved and rounded up, the last level not pooled


def test_rsu4f_is_dilated_and_never_pooled() -> None:
    block = RSU4F(3, 2, 4)
    assert [m.conv.dilation[0] for m in block.encode_modules] == [1, 2, 4, 8]
    assert [m.conv.dilation[0] for m in block.decode_modules] == [4, 2, 1]
    assert block.pool is None
    assert block(torch.rand(1, 3, 1, 5)).shape == (1, 4, 1, 5)


def test_rsu_adds_its_input_convolution() -> None:
    block = RSU(4, 3, 2, 4).eval()
    for parameter in block.decode_modules[-1].parameters():
        nn.init.zeros_(parameter)
    x = torch.rand(1, 3, 9, 9)
    torch.testing.assert_close(block(x), block.conv_in(x))
    with pytest.raises(ValueError, match="at least 2 levels, got height=1"):
        RSU(1, 3, 2, 4)


def test_side_fusion_is_a_weighted_sum() -> None:
    fusion = SideFusion(3, 1)
    maps = [torch.randn(2, 1, 4, 5) for _ in range(3)]
    weights = fusion.weight.flatten()
    torch.testing.assert_close(fusion(maps), sum(w * m for w, m in zip(weights, maps)) + fusion.bias)


@pytest.mark.parametrize("kind", ["s0", "b0"])
def test_evo_norms_are_timms_where_the_definitions_agree(kind: str) -> None:
    """In eval mode; in training timm's B0 keeps an unbiased running variance, and its eps is 1e-3 by default."""
    from timm.layers import EvoNorm2dB0, EvoNorm2dS0

    ours = EvoNormS0(16, groups=8) if kind == "s0" else EvoNormB0(16)
    theirs = EvoNorm2dS0(16, groups=8) if kind == "s0" else EvoNorm2dB0(16, eps=1e-5)
    for parameter in ours.parameters():
        nn.init.uniform_(parameter, -1, 1)
    if kind == "b0":
        nn.init.uniform_(ours.running_var, 0.5, 2)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 16, 6, 5)
    a, b = (x.clone().requires_grad_() for _ in range(2))
    out, expected = ours.eval()(a), theirs.eval()(b)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    out.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("norm", ["batch", "evo_s0", None])
def test_the_sequential_form_keeps_its_slots(norm: str | None, separable: bool) -> None:
    block = conv_norm_act(3, 8, stride=2, dilation=2, separable=separable, norm=norm)
    assert len(block) == 3 and isinstance(block[2], nn.Identity) == (norm == "evo_s0")
    assert block(torch.zeros(2, 3, 9, 12)).shape == (2, 8, 5, 6)
    convs = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
    assert [c.bias is not None for c in convs] == [False] * (len(convs) - 1) + [norm is None]
    if not separable:
        named = ConvNormAct(3, 8, stride=2, dilation=2, norm=norm)
        named.conv.load_state_dict(block[0].state_dict())
        x = torch.randn(2, 3, 9, 12)
        torch.testing.assert_close(named(x), block(x))
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        conv_norm_act(3, 8, 4)
