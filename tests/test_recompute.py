"""Recomputing instead of keeping: the same bits, less memory, and nothing else changed."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_u2net import tiny
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.checkpoint import checkpoint

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))
# isort: split
from speed import Living

import segzoo
from segzoo.layers import RSU, ConvNormAct, recompute
from segzoo.layers.recompute import recompute_activations
from segzoo.models.u2net import Stage

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def nothing_is_small(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The tests' maps are small; what is recomputed of large ones shall be recomputed of theirs."""
    if "true_sizes" not in request.fixturenames:
        monkeypatch.setattr(recompute, "SMALL", 64)


@pytest.fixture
def true_sizes() -> None:
    pass


def small(norm: str = "batch") -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(RSU(4, 3, 2, 4, norm=norm), nn.Conv2d(4, 1, 1))


def loss_of(outputs: Any) -> Tensor:
    outputs = list(outputs.values()) if isinstance(outputs, dict) else outputs
    return sum(
        (o.float() * o.float().detach().cos()).mean() for o in (outputs if isinstance(outputs, list) else [outputs])
    )


def trained(model: nn.Module, *inputs: Tensor, steps: int = 1) -> list[Tensor]:
    """Everything that forward and backward give: outputs, gradients, buffers."""
    torch.manual_seed(3)
    results: list[Tensor] = []
    for _ in range(steps):
        inputs = tuple(x.detach().clone().requires_grad_() for x in inputs)
        loss = loss_of(model(*inputs))
        loss.backward()
        results += [loss.detach(), *(x.grad for x in inputs if x.grad is not None)]
    results += [p.grad for p in model.parameters() if p.grad is not None]
    return results + [b.clone() for b in model.buffers()]


def same_bits(model: nn.Module, *inputs: Tensor, steps: int = 1) -> None:
    expected = trained(copy.deepcopy(model), *inputs, steps=steps)
    got = trained(recompute_activations(copy.deepcopy(model)), *inputs, steps=steps)
    assert len(got) == len(expected) > 0
    for a, b in zip(got, expected):
        torch.testing.assert_close(a, b, atol=0, rtol=0, equal_nan=True)


def notes_taken(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The operations that are run again."""
    ran: list[Any] = []
    run = recompute._Step.run

    def counting(self: Any, made: Any) -> Any:
        if not self.values and self not in made:
            ran.append(self.func)
        return run(self, made)

    monkeypatch.setattr(recompute._Step, "run", counting)
    return ran


# The same bits.


@pytest.mark.parametrize(
    "norm",
    ["batch", "sync_batch", "frozen_batch", "group", "instance", "layer", "evo_s0", "evo_b0", torch.nn.BatchNorm2d],
)
def test_any_norm_gives_the_same_bits(norm: Any) -> None:
    torch.manual_seed(0)
    same_bits(RSU(4, 3, 4, 6, norm=norm).train(), torch.rand(2, 3, 21, 18), steps=2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_u2net_gives_the_same_bits_in_both_layouts(layout: torch.memory_format) -> None:
    model = tiny().train().to(memory_format=layout)
    same_bits(model, torch.rand(2, 3, 70, 50).contiguous(memory_format=layout))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("lraspp_mobilenet_v3_large", 40),
        pytest.param("deeplabv3_resnet50", 33, marks=pytest.mark.slow),
        pytest.param("segformer", 64, marks=pytest.mark.slow),
        pytest.param("fcn_resnet50", 40, marks=pytest.mark.slow),
        pytest.param("deeplabv3_mobilenet_v3_large", 40, marks=pytest.mark.slow),
        pytest.param("pspnet", 64, marks=pytest.mark.slow),
        pytest.param("unet_plusplus", 64, marks=pytest.mark.slow),
        pytest.param("isnet", 64, marks=pytest.mark.slow),
        pytest.param("mit_drop", 64, marks=pytest.mark.slow),
    ],
)
def test_the_zoos_models_give_the_same_bits(name: str, size: int) -> None:
    torch.manual_seed(0)
    if name == "mit_drop":
        model = segzoo.segformer(encoder="mit_b1", encoder_weights=None)
    else:
        model = segzoo.registry.create_untrained(name)
    same_bits(model.train(), torch.rand(2, 3, size, size))


@pytest.mark.parametrize("encoder", ["resnet18", pytest.param("tf_efficientnet_lite0", marks=pytest.mark.slow)])
def test_an_encoder_of_timm_gives_the_same_bits(encoder: str) -> None:
    torch.manual_seed(0)
    same_bits(segzoo.unet(encoder=encoder, encoder_weights=None).train(), torch.rand(2, 3, 32, 64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", ["batch", "evo_s0"])
def test_autocast_gives_the_same_bits(dtype: torch.dtype, norm: str) -> None:
    torch.manual_seed(0)
    model = RSU(5, 3, 4, 6, norm=norm).train()

    class Cast(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype):
                return self.inner(x)

    x = torch.rand(2, 3, 40, 40)
    same_bits(Cast(model), x)
    with torch.autocast("cpu", dtype):  # around the backward pass too, as one should not
        same_bits(model, x)


def test_a_model_in_bfloat16_whose_backward_pass_is_within_autocast() -> None:
    results = []
    x = torch.rand(2, 3, 40, 40, dtype=torch.bfloat16)
    for enable in (False, True):
        model = recompute_activations(small("group").bfloat16(), enable)
        loss = loss_of(model(x))
        with torch.autocast("cpu", torch.float16):
            loss.backward()
        results.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_on_a_gpu_the_gradients_are_as_close_as_two_runs_are(dtype: torch.dtype | None) -> None:
    model = segzoo.u2net_lite().cuda().train().to(memory_format=torch.channels_last)
    x = torch.rand(2, 3, 128, 96, device="cuda").contiguous(memory_format=torch.channels_last)
    both = []
    for enable in (False, True):
        with torch.autocast("cuda", dtype, enabled=dtype is not None):
            both.append(trained(recompute_activations(copy.deepcopy(model), enable), x))
    for a, b in zip(*both):
        torch.testing.assert_close(a, b, atol=1e-3 if dtype is None else 3e-2, rtol=1e-2)


class Random(nn.Module):
    """Everything random that segmentation networks have."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(ConvNormAct(3, 8), nn.Dropout(0.3), ConvNormAct(8, 8), nn.Dropout2d(0.3))
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Sequential(nn.Conv2d(8, 8, 1), nn.RReLU(), nn.AlphaDropout(0.2), nn.Conv2d(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        dropped = torch.rand(len(x), 1, 1, 1).add_(0.5).floor_()  # stochastic depth, written out
        return self.head(F.dropout(self.norm(x * dropped), 0.5, self.training, inplace=True))


def test_what_is_random_is_drawn_once() -> None:
    torch.manual_seed(0)
    same_bits(Random().train(), torch.rand(2, 3, 16, 16), steps=2)


def test_a_single_value_per_channel_and_an_empty_batch() -> None:
    same_bits(tiny().train(), torch.rand(1, 3, 1, 1))
    same_bits(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 1)), torch.rand(0, 3, 9, 9))


def affine(x: Tensor) -> Tensor:
    return x.mul(1.5).sub_(0.25)


STEPS: dict[str, Callable[[Tensor, Tensor, nn.ModuleList], Tensor]] = {
    "conv": lambda x, y, m: m[0](x),
    "conv again": lambda x, y, m: m[1](x),
    "norm": lambda x, y, m: m[2](x),
    "instance": lambda x, y, m: m[3](x),
    "relu_": lambda x, y, m: F.relu_(x * 1),
    "norm, relu_": lambda x, y, m: F.relu_(m[2](x)),
    "norm, silu_": lambda x, y, m: F.silu(m[2](x), inplace=True),
    "norm, hardswish_": lambda x, y, m: F.hardswish(m[2](x), inplace=True),
    "gelu": lambda x, y, m: F.gelu(x),
    "add": lambda x, y, m: x + y,
    "add_": lambda x, y, m: m[2](x).add_(y),
    "mul": lambda x, y, m: x * y.sigmoid(),
    "cat": lambda x, y, m: m[4](torch.cat([x, y], 1)),
    "down and up": lambda x, y, m: F.interpolate(F.max_pool2d(x, 2, ceil_mode=True), x.shape[2:], mode="bilinear"),
    "average": lambda x, y, m: F.interpolate(F.avg_pool2d(x, 2), x.shape[2:], mode="nearest"),
    "pad and crop": lambda x, y, m: F.pad(x, (1, 1, 1, 1), mode="reflect")[..., 1:-1, 1:-1],
    "halves in place": lambda x, y, m: in_place_on_a_view(m[2](x)),
    "view of what changes": lambda x, y, m: changed_after_a_view(m[2](x), m),
    "transposed": lambda x, y, m: (x + 0).mT.relu_().mT.clone(),
    "chunks": lambda x, y, m: torch.cat(m[2](x).chunk(2, 1)[::-1], 1),
    "used before it changes": lambda x, y, m: m[4](used_before_it_changes(m[2](x))),
    "used before a part of it changes": lambda x, y, m: m[4](used_before_a_part_changes(m[2](x))),
    "unbound": lambda x, y, m: torch.stack(affine(x).unbind(1)[::-1], 1),
    "type": lambda x, y, m: m[2](x).double().tanh().to(x.dtype),
    "detached": lambda x, y, m: x * m[2](x).detach().relu(),
    "no gradient": lambda x, y, m: x * without_gradient(y, m),
    "attention": lambda x, y, m: F.scaled_dot_product_attention(x, y, m[2](x)),
    "softmax": lambda x, y, m: affine(x).softmax(1) * y,
    "chain": lambda x, y, m: chain(x),
    "layer norm": lambda x, y, m: F.layer_norm(x, x.shape[-1:]),
    "checkpointed": lambda x, y, m: checkpoint(lambda z: F.relu(m[3](z)), x, use_reentrant=False),
    "linear": lambda x, y, m: m[5](x.permute(0, 2, 3, 1)).relu_().permute(0, 3, 1, 2),
}


def in_place_on_a_view(x: Tensor) -> Tensor:
    x[:, :2].mul_(2.0)
    return x.tanh()


def used_before_it_changes(x: Tensor) -> Tensor:
    double = x * 2
    return torch.cat([x.relu_(), double], 1)


def used_before_a_part_changes(x: Tensor) -> Tensor:
    double = x * 2
    part = x[:, :2]
    part.relu_()
    return torch.cat([part, double[:, :2], part, double[:, 2:]], 1)


def changed_after_a_view(x: Tensor, m: nn.ModuleList) -> Tensor:
    front = x[:, :2]
    x.sub_(0.5)
    return m[0](x * front.mean(1, keepdim=True))


def without_gradient(x: Tensor, m: nn.ModuleList) -> Tensor:
    with torch.no_grad():
        return m[3](x).relu_()


def chain(x: Tensor) -> Tensor:
    for _ in range(30):
        x = (x * 0.9).tanh()
    return x


class Program(nn.Module):
    """A network drawn at random; ``y`` is what an earlier step gave."""

    def __init__(self, steps: list[tuple[str, int]]) -> None:
        super().__init__()
        self.steps = steps
        torch.manual_seed(1)
        layers = [nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)]
        self.layers = nn.ModuleList([*layers, nn.InstanceNorm2d(4, affine=True), nn.Conv2d(8, 4, 1), nn.Linear(4, 4)])

    def forward(self, x: Tensor) -> list[Tensor]:
        values = [self.layers[0](x)]
        for name, back in self.steps:
            values.append(STEPS[name](values[-1], values[-1 - back % len(values)], self.layers))
        return values[-3:]


@settings(max_examples=40)
@given(steps=st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 5)), min_size=1, max_size=9))
def test_random_programs_give_the_same_bits(steps: list[tuple[str, int]]) -> None:
    same_bits(Program(steps).train(), torch.rand(2, 4, 6, 5))


@pytest.mark.parametrize("name", sorted(STEPS))
def test_each_step_twice_gives_the_same_bits(name: str) -> None:
    same_bits(Program([(name, 0), ("norm, relu_", 0), (name, 1), (name, 2)]).train(), torch.rand(2, 4, 6, 5))


# Less memory.


@pytest.mark.parametrize("autocast", [False, True])
def test_less_than_half_is_kept(true_sizes: None, autocast: bool) -> None:
    """Of all that is made in the forward pass, what is still there after it."""
    encoder = [Stage(h, 3 if i == 0 else 24, 8, 24) for i, h in enumerate([7, 6, 5, 4, "4F", "4F"])]
    model = segzoo.models.U2Net(encoder, [Stage(h, 48, 8, 24) for h in ["4F", 4, 5, 6, 7]]).train()
    x = torch.rand(1, 3, 112, 112)
    kept = []
    for enable in (False, True):
        recompute_activations(model, enable)
        with Living() as living, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = model(x)
        kept.append(living.bytes(model))
        loss_of(outputs).backward()
        del outputs
        assert living.bytes(model) == 0
    assert kept[1] < 0.4 * kept[0]


def test_nothing_is_left_of_a_graph_that_is_dropped() -> None:
    """Without the garbage collector: what is noted makes no cycles."""
    model = recompute_activations(tiny()).train()
    gc.disable()
    try:
        with Living() as living:
            outputs = model(torch.rand(2, 3, 48, 48))
            assert living.bytes(model) > 0
            del outputs
        assert living.bytes(model) == 0
    finally:
        gc.enable()


def test_no_convolution_is_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = notes_taken(monkeypatch)
    trained(recompute_activations(tiny()), torch.rand(2, 3, 48, 48))
    names = {func._schema.name.removeprefix("aten::") for func in ran}
    assert {"native_batch_norm", "relu_", "cat", "max_pool2d_with_indices", "upsample_bilinear2d", "add"} <= names
    assert "convolution" not in names
    # Each of the 112 activations for itself, and for what is made of it: a concatenation, a pooling.
    relus = sum(func._schema.name == "aten::relu_" for func in ran)
    assert 112 <= relus <= 3 * 112


def test_a_long_chain_of_sums_is_not_followed_to_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(ConvNormAct(4, 4) for _ in range(60))

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = torch.relu(x + block(x))
            return x

    ran = notes_taken(monkeypatch)
    same_bits(Residual(), torch.rand(1, 4, 16, 16))
    assert 0 < len(ran) < 60 * 20


class Sum(nn.Module):
    """The sum of two linear maps is as large as either: keeping both instead would gain nothing."""

    def __init__(self, used: bool) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Conv2d(8, 8, 1, bias=False) for _ in range(3))
        self.used = used

    def forward(self, x: Tensor) -> Tensor:
        x = self.maps[0](x) + self.maps[1](x)
        return self.maps[2](x) if self.used else x


@pytest.mark.parametrize("used", [True, False])
def test_what_is_not_kept_otherwise_is_not_kept_for_a_note(used: bool) -> None:
    """``used``: the sum is kept for the convolution after it; else neither it nor what it is made of."""
    x = torch.rand(2, 8, 32, 32)
    model = recompute_activations(Sum(used))
    with Living() as living:
        out = model(x)
    assert living.bytes(model) == (2 if used else 1) * out.untyped_storage().nbytes()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_of_a_process_falls() -> None:
    code = (
        "import sys, torch, segzoo\n"
        "from pathlib import Path\n"
        "from segzoo.layers.recompute import recompute_activations\n"
        "def peak():\n"
        "    return int(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])\n"
        "model = recompute_activations(segzoo.u2net_lite().train(), enable=sys.argv[1] == 'on')\n"
        "sum(o.mean() for o in model(torch.rand(1, 3, 16, 16))).backward()\n"
        "before = peak()\n"
        "sum(o.mean() for o in model(torch.rand(1, 3, 288, 288))).backward()\n"
        "print(peak() - before)\n"
    )
    off, on = (int(subprocess.check_output([sys.executable, "-c", code, what])) for what in ("off", "on"))
    assert on < 0.6 * off


# Nothing else changed.


def test_running_statistics_are_updated_once() -> None:
    model = recompute_activations(small()).train()
    trained(model, torch.rand(2, 3, 40, 40), steps=3)
    assert {int(b) for name, b in model.named_buffers() if name.endswith("num_batches_tracked")} == {3}


def test_keys_modes_and_predictions_stay() -> None:
    plain = small()
    model = recompute_activations(copy.deepcopy(plain))
    assert list(model.state_dict()) == list(plain.state_dict()) and repr(model) == repr(plain)
    x = torch.rand(1, 3, 33, 47)
    with torch.no_grad():
        assert torch.equal(model.train()(x), plain.train()(x))
    with torch.inference_mode():
        assert torch.equal(model.eval()(x), plain.eval()(x))


def test_without_gradients_no_notes_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model = recompute_activations(small())
    monkeypatch.setattr(recompute, "_Notes", None)
    with torch.no_grad():
        model(torch.rand(1, 3, 20, 20))
    with pytest.raises(TypeError):
        model(torch.rand(1, 3, 20, 20))


def test_off_again_and_twice_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small().train()
    ran = notes_taken(monkeypatch)
    assert recompute_activations(recompute_activations(model)) is model
    trained(model, torch.rand(1, 3, 32, 32))
    assert ran
    assert recompute_activations(model, enable=False) is model and "forward" not in vars(model)
    ran.clear()
    trained(model, torch.rand(1, 3, 32, 32))
    assert not ran
    assert recompute_activations(model, enable=False) is model


def test_copies_recompute_too_and_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    model = recompute_activations(small()).train()
    ran = notes_taken(monkeypatch)
    for twin in (copy.deepcopy(model), torch.optim.swa_utils.AveragedModel(model).module):
        ran.clear()
        trained(twin, torch.rand(1, 3, 32, 32))
        assert ran and all(p.grad is None for p in model.parameters())
        assert all(p.grad is not None for p in twin.parameters())
    loaded = pickle.loads(pickle.dumps(model))
    ran.clear()
    trained(loaded, torch.rand(1, 3, 32, 32))
    assert not ran
    trained(recompute_activations(loaded), torch.rand(1, 3, 32, 32))
    assert ran


def test_a_model_in_a_model_and_a_module_used_twice() -> None:
    torch.manual_seed(0)
    inner = ConvNormAct(3, 3)
    model = nn.Sequential(inner, nn.MaxPool2d(2), inner, recompute_activations(ConvNormAct(3, 5)), nn.Conv2d(5, 1, 1))
    same_bits(model, torch.rand(2, 3, 16, 16), steps=2)


def test_two_forwards_before_one_backward() -> None:
    results = []
    for enable in (False, True):
        model = recompute_activations(small(), enable).train()
        torch.manual_seed(5)
        losses = [loss_of(model(torch.rand(2, 3, 24, 24))) for _ in range(2)]
        (losses[0] + losses[1] * 2).backward()
        results.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_backward_twice_and_through_the_gradient() -> None:
    results = []
    x = torch.rand(2, 3, 20, 20)
    for enable in (False, True):
        torch.manual_seed(0)
        model = recompute_activations(nn.Sequential(ConvNormAct(3, 6, act=nn.SiLU), ConvNormAct(6, 1)), enable)
        loss = loss_of(model(x))
        parameters = list(model.parameters())
        first = torch.autograd.grad(loss, parameters[:1], retain_graph=True)  # a part of them only
        again = torch.autograd.grad(loss, parameters, create_graph=True)
        penalty = sum(g.pow(2).sum() for g in again)
        results.append([*first, *again, *torch.autograd.grad(penalty, parameters)])
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_results_are_let_go_when_all_who_wait_have_come() -> None:
    model = recompute_activations(small()).train()
    with Living() as living:
        loss = loss_of(model(torch.rand(2, 3, 48, 48)))
        kept = living.bytes(model)
        for _ in range(2):
            loss.backward(retain_graph=True)
            model.zero_grad()
            assert living.bytes(model) == kept


def test_a_change_in_place_is_noticed_as_autograd_does() -> None:
    class Spoilt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            out = self.norm(y).relu_()
            y.mul_(2)
            return out * out

    for enable in (False, True):
        loss = recompute_activations(Spoilt(), enable)(torch.rand(1, 3, 9, 9)).sum()
        with pytest.raises(RuntimeError, match="expected version 0"):
            loss.backward()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_forward_that_breaks_off_leaves_nothing_behind(error: type[BaseException]) -> None:
    def broken(*args: object) -> None:
        raise error

    model = recompute_activations(small())
    hook = model[0].decode_modules[1].register_forward_hook(broken)
    with pytest.raises(error):
        model(torch.rand(1, 3, 20, 20))
    assert _get_current_dispatch_mode() is None
    hook.remove()
    trained(model, torch.rand(1, 3, 20, 20))


def test_threads_do_not_disturb_each_other() -> None:
    models = [small().train() for _ in range(3)]
    x = torch.rand(2, 3, 40, 40)
    expected = trained(copy.deepcopy(models[0]), x)
    results: dict[int, list[Tensor]] = {}

    def work(i: int) -> None:
        inputs = x.clone().requires_grad_()
        loss = loss_of(models[i](inputs))
        loss.backward()
        gradients = [p.grad for p in models[i].parameters() if p.grad is not None]
        assert inputs.grad is not None
        results[i] = [loss.detach(), inputs.grad, *gradients, *models[i].buffers()]

    for model in models:
        recompute_activations(model)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(3):
        assert all(torch.equal(a, b) for a, b in zip(results[i], expected))


def test_compiles_as_before() -> None:
    x = torch.rand(1, 3, 48, 64)
    plain = nn.Sequential(ConvNormAct(3, 4), ConvNormAct(4, 2)).train()
    model = recompute_activations(copy.deepcopy(plain))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for a, b in zip(trained(compiled, x), trained(plain, x)):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
def test_exports_as_before(strict: bool) -> None:
    x = torch.rand(1, 3, 48, 64)
    plain = small().eval()
    model = recompute_activations(copy.deepcopy(plain))
    dynamic = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(model, (x,), dynamic_shapes=(dynamic,), strict=strict).module()
    other = torch.rand(1, 3, 101, 35)
    torch.testing.assert_close(program(other), plain(other))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own, of the plain model too
def test_a_compiled_part_of_a_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(ConvNormAct(3, 4), torch.compile(ConvNormAct(4, 4), backend="aot_eager"), nn.Conv2d(4, 1, 1))
    x = torch.rand(2, 3, 20, 20)
    expected = trained(model, x)[:2]
    got = trained(recompute_activations(model), x)[:2]
    for a, b in zip(got, expected):
        torch.testing.assert_close(a, b)


def test_within_torch_func_it_steps_aside() -> None:
    model = recompute_activations(small(norm="group")).eval()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    x = torch.rand(1, 3, 24, 24)

    def mean(values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, values, (x,)).mean()

    gradients = torch.func.grad(mean)(parameters)
    model(x).mean().backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(gradients[name], p.grad)


def test_data_parallel_processes(tmp_path: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = small(norm="group").train()
        x = torch.rand(2, 3, 40, 40)
        expected = trained(copy.deepcopy(model), x)
        wrapped = nn.parallel.DistributedDataParallel(recompute_activations(model))
        assert all(torch.equal(a, b) for a, b in zip(trained(wrapped, x), expected))
    finally:
        torch.distributed.destroy_process_group()


def test_tensors_of_other_kinds_pass() -> None:
    class Kinds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            sparse = (torch.eye(6).to_sparse() * 2.0).coalesce()
            return torch.sparse.mm(sparse, self.linear(x).relu()) * (scale * 2 + 1)

    with torch.inference_mode():
        scale = torch.rand(6, 6)
    model = recompute_activations(Kinds())
    x = torch.rand(6, 6)
    torch.testing.assert_close(model(x, scale.clone()), 2 * model.linear(x).relu() * (scale * 2 + 1))
    model(x, scale.clone()).sum().backward()
    model(x, scale).sum().backward()


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"takes a torch.nn.Module, got str"):
        recompute_activations("u2net_lite")  # type: ignore[arg-type]
    model = small()
    model.forward = lambda x: x  # type: ignore[method-assign, assignment]
    with pytest.raises(ValueError, match="Sequential's forward has been replaced already"):
        recompute_activations(model)
