"""A model made ready for prediction: the same function, in the precision that was checked, on the device asked for."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import platform
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import segzoo
from segzoo.inference import optimize, optimize_for_inference
from segzoo.inference._fused import ConvReLU, fuse_activations
from segzoo.inference.optimize import fold_norms
from segzoo.layers import ConvNormAct, SideFusion
from segzoo.layers.fusion import FusedSides
from segzoo.models.u2net import LITE_DECODER, LITE_ENCODER, Stage, U2Net
from segzoo.ops import resize_to


def narrow_u2net(**options: object) -> U2Net:
    """All eleven stages, four channels inside."""
    encoder = [Stage(row.height, 8 if i else 3, 4, 8) for i, row in enumerate(LITE_ENCODER)]
    decoder = [Stage(row.height, 16, 4, 8) for row in LITE_DECODER]
    torch.manual_seed(0)
    return U2Net(encoder, decoder, **options).eval()  # type: ignore[arg-type]


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=4),
    st.sampled_from([1, 2, 9]),
    st.integers(1, 2),
    st.booleans(),
)
def test_heads_and_their_fusion_are_one(
    shapes: list[tuple[int, int, int]], classes: int, batch: int, channels_last: bool
) -> None:
    sides = [nn.Conv2d(c, classes, 3, padding=1, bias=i % 2 == 0) for i, (c, _, _) in enumerate(shapes)]
    fusion = SideFusion(len(sides), classes)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    features = [torch.randn(batch, *shape).contiguous(memory_format=layout) for shape in shapes]
    picture = torch.zeros(batch, 3, 6, 5)
    with torch.no_grad():
        maps = [resize_to(side(x).double(), picture.double()).float() for side, x in zip(sides, features)]
        expected = fusion(list(reversed(maps)))
        got = FusedSides(sides, fusion)(features, picture)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (33, 47)])
def test_u2net_is_the_same_function(classes: int, size: tuple[int, int]) -> None:
    model = narrow_u2net(num_classes=classes)
    keys = {key for key in model.state_dict() if key.startswith(("side_modules", "out_conv"))}
    ready = optimize_for_inference(model, "fp32")
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(ready(x), model(x), atol=1e-5, rtol=1e-5)
    assert sum(type(module) is ConvReLU for module in ready.modules()) == sum(
        type(module) is ConvNormAct for module in model.modules()
    )
    assert keys <= set(ready.state_dict()) and not any("fused" in key for key in ready.state_dict())
    assert ready.fused_sides is not None and model.fused_sides is None


def test_the_bundled_model_to_a_ten_thousandth_of_its_range() -> None:
    model = segzoo.u2net_lite().eval()
    x = torch.rand(1, 3, 97, 61)
    with torch.no_grad():
        expected, got = model(x), optimize_for_inference(model, "fp32")(x)
    assert (got - expected).abs().max() < 1e-4 * (expected.max() - expected.min())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_activations(dtype: torch.dtype) -> None:
    block = ConvNormAct(5, 6, dilation=2, norm=None).to(dtype).requires_grad_(False)
    fused = copy.deepcopy(block)
    assert fuse_activations(fused) == 1 and fuse_activations(fused) == 0
    x = torch.randn(2, 5, 9, 11).to(dtype)
    for layout in (torch.contiguous_format, torch.channels_last):
        for picture in (x, x[:0], x[:, :, :1, :1]):
            given_picture = picture.contiguous(memory_format=layout)
            torch.testing.assert_close(fused(given_picture), block(given_picture))
    kept = [ConvNormAct(5, 6), ConvNormAct(5, 6, norm=None, act=nn.SiLU), ConvNormAct(5, 6, norm=None, act=None)]
    assert [fuse_activations(other) for other in kept] == [0, 0, 0]


def test_gradients_of_the_picture_are_right() -> None:
    model = narrow_u2net().requires_grad_(False)
    x = torch.rand(1, 3, 24, 32, dtype=torch.float64)
    grads = []
    for ready in (model, optimize_for_inference(model, "fp32")):
        picture = x.float().requires_grad_()
        ready(picture).square().sum().backward()
        grads.append(picture.grad)
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-3)


def test_a_chain_that_ends_in_a_side_head_stays_wide() -> None:
    """A maker whose output goes into the residual sum, and a head that takes the constant away again."""
    model = narrow_u2net()
    stage, head = model.decode_modules[4], model.side_modules[5]
    with torch.no_grad():
        fold_norms(model)
        stage.conv_in.conv.weight[3] *= 0.02
        stage.conv_in.conv.bias[3] = 226.4
        head.weight[:, 3] = 0.0
        head.weight[:, 3, 1, 1] = 1.0
        head.bias -= 226.4
    x = torch.rand(1, 3, 64, 96)
    ready = optimize_for_inference(model, "bf16")
    with torch.no_grad():
        expected, got, plain = model(x), ready(x), copy.deepcopy(model).bfloat16()(x.bfloat16())
    assert (got - expected).abs().mean() < 0.05 * expected.std() < (plain - expected).abs().mean()


def test_what_is_ready_can_be_pickled_and_take_other_weights() -> None:
    x = torch.rand(1, 3, 20, 30)
    for precision in ("fp32", "bf16"):
        ready = optimize_for_inference(narrow_u2net(), precision)  # type: ignore[arg-type]
        again = pickle.loads(pickle.dumps(ready))
        torch.testing.assert_close(again(x=x), ready(x), atol=1e-5, rtol=1e-5)
    other = narrow_u2net()
    torch.nn.init.normal_(other.side_modules[2].weight)
    ready = optimize_for_inference(narrow_u2net(), "fp32")
    ready.load_state_dict(optimize_for_inference(other, "fp32").state_dict())
    torch.testing.assert_close(ready(x), other(x), atol=1e-5, rtol=1e-5)


def test_hooks_see_what_a_block_gave() -> None:
    model = narrow_u2net()
    seen: list[torch.Tensor] = []
    x = torch.rand(1, 3, 20, 30)
    for candidate in (model, optimize_for_inference(model, "fp32")):
        candidate.encode_modules[0].decode_modules[-1].register_forward_hook(lambda m, a, output: seen.append(output))
        candidate(x)
    torch.testing.assert_close(*seen, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("checked", "fast", "expected"),
    [
        (("fp32",), {torch.bfloat16, torch.float16}, torch.float32),
        (("fp32", "bf16"), {torch.bfloat16}, torch.bfloat16),
        (("fp32", "bf16"), set(), torch.float32),
        (("fp32", "fp16"), {torch.bfloat16, torch.float16}, torch.float16),
        (("fp32", "bf16", "fp16"), {torch.bfloat16, torch.float16}, torch.bfloat16),
        (None, {torch.bfloat16, torch.float16}, torch.float32),
    ],
)
def test_auto_is_narrow_where_that_was_checked_and_is_fast(
    monkeypatch: pytest.MonkeyPatch, checked: tuple[str, ...] | None, fast: set[torch.dtype], expected: torch.dtype
) -> None:
    model = segzoo.u2net_lite()
    assert model.weights is not None
    model.weights = None if checked is None else dataclasses.replace(model.weights, precision_ok=checked)
    monkeypatch.setattr(optimize, "is_fast", lambda dtype, device: dtype in fast)
    ready = optimize_for_inference(model)
    assert ready.inference_dtype == expected
    with torch.no_grad():
        model.side_modules[0].bias.add_(0.01)  # trained since: nobody checked these
    assert optimize_for_inference(model).inference_dtype == torch.float32
    assert segzoo.u2net_lite(num_classes=2).checked_precisions() == ()
    assert ready(torch.rand(1, 3, 20, 30)).isfinite().all()  # of float32, whatever the model is


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_that_is_ready_stays_as_it_is(precision: str) -> None:
    ready = optimize_for_inference(narrow_u2net(), precision)  # type: ignore[arg-type]
    x = torch.rand(1, 3, 20, 30)
    for again in (optimize_for_inference(ready), segzoo.Predictor(ready, device="cpu").model, copy.deepcopy(ready)):
        assert again is not ready
        torch.testing.assert_close(again(x), ready(x), atol=1e-5, rtol=1e-5)
    other = {"fp32": "bf16", "bf16": "fp32"}[precision]
    with pytest.raises(ValueError, match="was made .*already"):
        optimize_for_inference(ready, other)  # type: ignore[arg-type]


def test_bad_arguments_are_one_sentence() -> None:
    model = narrow_u2net()
    with pytest.raises(ValueError, match="unknown precision 'bf61'.*bf16"):
        optimize_for_inference(model, "bf61")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        optimize_for_inference(model, device="gpu")
    with pytest.raises(TypeError, match="got Conv2d"):
        optimize_for_inference(nn.Conv2d(3, 1, 1))  # type: ignore[arg-type]
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="was asked for and is not there"):
            optimize_for_inference(model, device="cuda")


FAULTS = """
import resource, sys, torch
from segzoo.inference._allocator import tune_allocator
tuned = sys.argv[1] == "tuned" and tune_allocator()
def work(): return torch.nn.functional.max_pool2d(torch.ones(1, 64, 512, 512), 2).sum()
faults = []
for _ in range(12):  # the first ones find their places
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is glibc's")
def test_a_tuned_allocator_takes_no_pages_twice() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True, text=True).stdout)
        for how in ("plain", "tuned")
    }
    assert faults["tuned"] < 200 < 2_000 < faults["plain"]


@pytest.mark.slow
def test_compiled() -> None:
    model = narrow_u2net()
    x = torch.rand(1, 3, 64, 96)
    for precision, tolerance in (("fp32", 1e-5), ("bf16", 0.1)):
        ready = optimize_for_inference(model, precision, compile=True)  # type: ignore[arg-type]
        with torch.inference_mode():
            torch.testing.assert_close(ready(x), model(x), atol=tolerance, rtol=tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_on_a_gpu(precision: str) -> None:
    model = segzoo.u2net_lite().eval()
    x = torch.rand(2, 3, 160, 128)
    expected = model.predict(x)
    got = optimize_for_inference(model, precision, device="cuda").predict(x.cuda()).cpu()  # type: ignore[arg-type]
    assert (got - expected).abs().mean() < (1e-3 if precision == "fp32" else 0.02)
