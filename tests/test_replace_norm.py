"""replace_norm on models of torchvision, timm and segzoo, and on small ones made to trip it."""

from __future__ import annotations

import copy
import logging
import pickle
import threading
from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from test_layers import NORMS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import segzoo
from segzoo.layers import BatchNorm, EvoNormB0, EvoNormS0, FrozenBatchNorm, GroupNorm, get_norm, replace_norm
from segzoo.layers.leave_out import SharedActivation
from segzoo.layers.trace import trace_activations

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU)
STATISTICS = ("running_mean", "running_var", "num_batches_tracked", ".v")
# How many norms; activations run in one forward; after EvoNorms: norms of γ and β only, activations run, modules left.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int, int, int]]] = {
    # 16 residual blocks, 4 of them with a projection: the ReLU after the sum is each block's only one.
    "resnet50": (lambda: torchvision.models.resnet50(weights=None), (53, 49, 16 + 4, 16, 16)),
    "timm_resnet50": (lambda: timm.create_model("resnet50"), (53, 49, 16 + 4, 16, 16)),
    # 15 blocks end without an activation; 8 squeeze-and-excitations and the head have one after a linear layer.
    "mobilenet_v3_large": (
        lambda: torchvision.models.mobilenet_v3_large(weights=None),
        (46, 31 + 9, 15, 9, 9),
    ),
    "timm_mobilenetv2_100": (lambda: timm.create_model("mobilenetv2_100"), (52, 35, 17, 0, 0)),
}


pytestmark = pytest.mark.usefixtures("one_thread")


def run_activations(model: nn.Module, x: Tensor) -> int:
    ran: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, ACTIVATIONS):
            module.register_forward_hook(lambda module, args, out: ran.append(module))
    model.eval()(x)
    return len(ran)


def randomise(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in ((module.weight, 0.5, 1.5), (module.bias, -0.5, 0.5)):
                nn.init.uniform_(values, low, high)
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
    return model


def count(model: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", MODELS)
def test_every_norm_is_replaced_and_evo_norms_take_the_inner_activations(name: str, norm: str) -> None:
    build, (norms, ran, affine_only, ran_after, left) = MODELS[name]
    with torch.device("meta"):
        model = build()
        wanted = type(get_norm(norm, 8))
        x = torch.empty(1, 3, 64, 64)
    before, keys = count(model, ACTIVATIONS), set(model.state_dict())
    assert replace_norm(model, norm) is model
    assert count(model, wanted) == norms
    assert count(model, nn.modules.batchnorm._BatchNorm) == (norms if norm in ("batch", "sync_batch") else 0)
    assert {k for k in keys if not k.endswith(STATISTICS)} == {
        k for k in model.state_dict() if not k.endswith(STATISTICS)
    }
    if norm.startswith("evo"):
        assert sum(m.act is False for m in model.modules() if isinstance(m, wanted)) == affine_only
        assert (run_activations(model, x), count(model, ACTIVATIONS)) == (ran_after, left)
    else:
        assert (run_activations(model, x), count(model, ACTIVATIONS)) == (ran, before)
    if norm == "batch":
        assert set(model.state_dict()) == keys


@pytest.mark.parametrize(
    "build",
    [
        lambda: torchvision.models.resnet18(weights=None),
        lambda: timm.create_model("resnet18"),
        MODELS["mobilenet_v3_large"][0],
        MODELS["timm_mobilenetv2_100"][0],
    ],
)
@torch.no_grad()
def test_batch_norms_keep_the_function(build: Callable[[], nn.Module]) -> None:
    model = randomise(build()).eval()
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)
    for norm in (
        "frozen_batch",
        "batch",
        "sync_batch",
        "frozen_batch",
    ):  # from torch's, and from one of ours to the next
        assert torch.equal(replace_norm(model, norm)(x), expected), norm
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("norm", NORMS)
def test_u2net_becomes_what_its_factory_builds(norm: str) -> None:
    replaced = replace_norm(randomise(segzoo.u2net_lite(weights=None, norm="batch")), norm).eval()
    built = segzoo.u2net_lite(weights=None, norm=norm).eval()
    assert repr(replaced) == repr(built)
    assert list(replaced.state_dict()) == list(built.state_dict())
    built.load_state_dict(replaced.state_dict())
    x = torch.randn(1, 3, 16, 24)
    assert torch.equal(replaced(x), built(x))


@pytest.mark.parametrize("norm", [*NORMS, lambda channels: GroupNorm(channels, groups=2)])
def test_weight_and_bias_stay_the_same_parameters(norm: str | Callable[[int], nn.Module]) -> None:
    old = randomise(nn.BatchNorm2d(8, eps=1e-3, momentum=None)).double().eval()
    old.bias.requires_grad_(False)
    new = replace_norm(old, norm)
    if norm == "frozen_batch":
        assert torch.equal(new.weight, old.weight) and not list(new.parameters())
    else:
        assert new.weight is old.weight and new.bias is old.bias
    assert not new.training and not new.bias.requires_grad
    assert all(x.dtype == torch.float64 for x in new.state_dict().values() if x.is_floating_point())
    if isinstance(new, (BatchNorm, FrozenBatchNorm)):
        assert new.eps == 1e-3 and new.running_mean is old.running_mean
    if isinstance(new, BatchNorm):
        assert new.momentum is None and new.num_batches_tracked is old.num_batches_tracked
        assert new.train()(torch.zeros(1, 8, 1, 1, dtype=torch.float64)).isfinite().all()
        assert replace_norm(new, "batch") is new


def test_options_of_batch_norms() -> None:
    plain = nn.BatchNorm2d(4, affine=False, track_running_stats=False)
    kept = replace_norm(plain, "batch")
    x = torch.randn(2, 4, 3, 3)
    assert not kept.state_dict() and torch.equal(kept.eval()(x), plain.eval()(x))
    group = replace_norm(nn.BatchNorm2d(4, affine=False), "group")
    assert group.weight.tolist() == [1] * 4 and group.bias.tolist() == [0] * 4
    for frozen in (torchvision.ops.FrozenBatchNorm2d(4, eps=0.1), FrozenBatchNorm(4, eps=0.1)):
        frozen.weight.fill_(2)
        expected = frozen(x)
        thawed = replace_norm(frozen, "batch")
        torch.testing.assert_close(thawed.eval()(x), expected)
        assert thawed.weight.requires_grad
    assert isinstance(replace_norm(nn.BatchNorm2d(4), None), nn.Identity)


def test_other_norms_stay_and_shared_ones_stay_shared(caplog: pytest.LogCaptureFixture) -> None:
    shared = nn.BatchNorm2d(8)
    others = [nn.BatchNorm1d(8), nn.BatchNorm3d(8), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8), nn.LayerNorm(8)]
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.ReLU()), "c": nn.ModuleList(others)})
    with caplog.at_level(logging.INFO, "segzoo"):
        replace_norm(model, "group")
    assert model["a"] is model["b"][0] and type(model["a"]) is GroupNorm and list(model["c"]) == others
    (record,) = caplog.records
    assert "replaced 1 norms by group; skipped 1 BatchNorm1d, 1 BatchNorm3d, 1 GroupNorm" in record.getMessage()
    with caplog.at_level(logging.INFO, "segzoo"):
        replace_norm(torchvision.models.resnet18(weights=None), "evo_b0")
    assert (
        caplog.records[1].getMessage()
        == "replaced 20 norms by evo_b0 (11 of them γ and β only); left out 9 activations"
    )


# Small models, each with one trap. `takes`: for each norm whether the EvoNorm has its activation.


class Block(nn.Module):
    """One ReLU for all, as in torchvision."""

    def __init__(self, act: nn.Module, drop: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.drop = drop or nn.Identity()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv(self.act(self.drop(self.bn1(self.conv(x))))))
        out += x
        return self.act(out)


class Functional(Block):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.conv(x)), inplace=True) + self.bn2(x).relu_()


class Twice(Block):
    def forward(self, x: Tensor) -> Tensor:
        raw, other = self.bn1(self.conv(x)), self.bn2(x)
        return self.act(raw) + raw.mean((2, 3), keepdim=True) + self.act(other * 1)


class RawResult(Block):
    def forward(self, x: Tensor) -> list[Tensor]:
        raw = self.bn1(x)
        return [raw, self.act(raw), self.act(self.bn2(x))]


class Repeated(Block):
    """bn1 is followed once of two times, bn2 each time."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn2(self.act(self.bn1(self.conv(x))))) + self.bn1(self.act(self.bn2(x)))


class TrainOnly(Block):
    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        out = self.act(self.bn1(self.conv(x)))
        return [out, self.act(self.bn2(out))] if self.training else out


class OtherOrder(Block):
    """The second call follows a norm in train mode, a sum in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(self.conv(x)))
        if self.training:
            out = self.act(self.bn2(out))
        return self.act(out + x)


class Overwritten(Block):
    def forward(self, x: Tensor) -> Tensor:
        first, second = self.bn1(self.conv(x)), self.bn2(x)
        first += x
        second[:, :1] = 0
        return self.act(first) + self.act(second)


class DataDependent(Block):
    """No meta tensor can run it, and it keeps what it saw."""

    seen: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.sum().item()
        return super().forward(x)


TRAPS = {
    "shared": (lambda: Block(nn.ReLU()), [True, False]),
    "shared in place": (lambda: Block(nn.ReLU(inplace=True)), [True, False]),
    "dropout between": (lambda: Block(nn.SiLU(), nn.Dropout2d(0.5)), [True, False]),
    "gate": (lambda: Block(nn.Sigmoid()), [False, False]),
    "parameters cannot be shared": (lambda: Block(nn.PReLU()), [False, False]),
    "twice": (lambda: Twice(nn.ReLU()), [False, False]),
    "raw result": (lambda: RawResult(nn.ReLU()), [False, True]),
    "repeated": (lambda: Repeated(nn.ReLU()), [False, True]),
    "train only": (lambda: TrainOnly(nn.ReLU(inplace=True)), [True, True]),
    "other order": (lambda: OtherOrder(nn.ReLU()), [False, False]),
    "overwritten": (lambda: Overwritten(nn.ReLU(inplace=True)), [False, False]),
    "data dependent": (lambda: DataDependent(nn.ReLU()), [True, False]),
}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", TRAPS)
def test_an_activation_counts_where_it_directly_follows(name: str, inside: bool) -> None:
    build, takes = TRAPS[name]
    block = build()
    model = nn.Sequential(nn.Conv2d(1, 4, 1), block) if inside else block
    replace_norm(model, "evo_s0")
    assert [block.bn1.act, block.bn2.act] == takes
    # Each call of the activation is left out or kept, as written by hand here with a fresh activation.
    reference = copy.deepcopy(block).eval()
    act = block.act.act if isinstance(block.act, SharedActivation) else nn.ReLU()
    queue = {
        "shared": [nn.Identity(), act],
        "shared in place": [nn.Identity(), act],
        "dropout between": [nn.Identity(), act],
        "data dependent": [nn.Identity(), act],
        "raw result": [act, nn.Identity()],
        "repeated": [act, nn.Identity(), nn.Identity()],
        "train only": [nn.Identity()],
    }.get(name)
    if queue is not None:
        calls = iter(queue)
        del reference._modules["act"]
        reference._forward_pre_hooks.clear()
        object.__setattr__(reference, "act", lambda x: next(calls)(x))
        x = torch.randn(1, 4, 5, 5)
        torch.testing.assert_close(block.eval()(x.clone()), reference(x.clone()), rtol=0, atol=0)


def test_an_activation_written_as_a_function_stays_with_a_warning() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Functional(nn.ReLU()))
    with pytest.warns(UserWarning, match=r"the activation after 1\.bn1, 1\.bn2 is written as a function") as caught:
        replace_norm(model, "evo_s0")
    assert caught[0].filename == __file__
    assert model[1].bn1.act and model[1].bn2.act


def test_evo_everywhere_and_callables() -> None:
    model = replace_norm(torchvision.models.resnet18(weights=None), "evo_b0", evo_everywhere=True)
    assert all(module.act for module in model.modules() if isinstance(module, EvoNormB0))
    assert run_activations(model, torch.zeros(1, 3, 32, 32)) == 8
    model = replace_norm(torchvision.models.resnet18(weights=None), lambda channels: EvoNormS0(channels, groups=4))
    assert run_activations(model, torch.zeros(1, 3, 32, 32)) == 8
    assert isinstance(model.relu, nn.Identity) and model.layer1[0].relu.skip == (True, False)
    assert replace_norm(nn.BatchNorm2d(4), "evo_s0").act is False


def test_one_activation_for_a_whole_model() -> None:
    act = nn.SiLU(inplace=True)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), act),
        nn.Sequential(nn.Conv2d(4, 4, 1), act),
        nn.Sequential(nn.BatchNorm2d(4), act, nn.Conv2d(4, 4, 1), act),
    )
    replace_norm(model, "evo_s0")
    assert isinstance(model[0][2], nn.Identity) and model[1][1] is act
    assert model[2][1] is model[2][3] and model[2][1].skip == (True, False)
    assert run_activations(model, torch.zeros(1, 3, 5, 5)) == 2


def test_norms_that_hold_dropout_and_activation() -> None:
    def build() -> nn.Module:
        return timm.layers.BatchNormAct2d(8, drop_layer=nn.Dropout, act_layer=nn.PReLU)

    group_norm_act = partial(timm.layers.GroupNormAct, num_groups=2)
    x = torch.randn(2, 8, 4, 4)
    for norm in ("batch", "group", None, group_norm_act):
        new = replace_norm(build(), norm).eval()
        assert isinstance(new.drop, nn.Dropout) and isinstance(new.act, nn.PReLU)
        assert "act.weight" in new.state_dict()
        inner = copy.deepcopy(new)
        inner._forward_hooks.clear()
        if norm is not group_norm_act:  # which runs them itself
            torch.testing.assert_close(new(x), new.act(inner(x)))
        new.act = nn.Threshold(1e9, 7.0)
        assert (new(x) == 7).all()
    evo = replace_norm(build(), "evo_s0")
    assert evo.v is not None and isinstance(evo.drop, nn.Dropout)
    evo.drop = nn.Threshold(1e9, 7.0)
    assert (evo(x) == 7).all()
    frozen = timm.layers.FrozenBatchNormAct2d(8)
    frozen.running_mean.fill_(0.5)
    expected = frozen(x)
    torch.testing.assert_close(replace_norm(frozen, "frozen_batch")(x), expected)
    synced = timm.layers.convert_sync_batchnorm(build())
    assert isinstance(replace_norm(synced, "sync_batch").act, nn.PReLU)


@pytest.mark.parametrize("kind", [torchvision.models.resnet18, DataDependent])
def test_the_trial_run_leaves_no_trace(kind: Callable[..., nn.Module]) -> None:
    model = kind(nn.ReLU()) if kind is DataDependent else kind(weights=None)
    for i, module in enumerate(model.modules()):
        module.training = i % 2 == 0
    state, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    attributes = [dict(module.__dict__) for module in model.modules()]
    random_state = torch.get_rng_state()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {call.norm for call in trace_activations(model, norms).norms} == set(norms)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [module.__dict__ for module in model.modules()] == attributes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_replaced_model_copies_pickles_compiles_and_exports() -> None:
    model = replace_norm(torchvision.models.resnet18(weights=None), "evo_s0").eval()
    x = torch.randn(1, 3, 33, 47)
    expected = model(x)
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.compile(copy.deepcopy(model), fullgraph=True, backend="eager"),
    ):
        for _ in range(2):
            torch.testing.assert_close(other(x), expected, rtol=0, atol=0)
    program = torch.export.export(model, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), expected)
    assert sum("relu" in str(node.target) for node in program.graph.nodes) == 8
    held = nn.Sequential(nn.Conv2d(3, 8, 1), replace_norm(timm.layers.BatchNormAct2d(8), "group")).eval()
    for other in (torch.compile(held, fullgraph=True, backend="eager"), pickle.loads(pickle.dumps(held))):
        torch.testing.assert_close(other(x), held(x))
    torch.testing.assert_close(torch.export.export(held, (x,), strict=False).module()(x), held(x))


def test_the_shared_activation_knows_where_it_is() -> None:
    """Whatever happened before: a forward that broke off, other threads, a forward run again in the backward pass."""
    block = replace_norm(Block(nn.ReLU()), "evo_s0")
    x = torch.randn(1, 4, 5, 5)
    expected = block(x)
    hook = block.bn2.register_forward_pre_hook(lambda module, args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        block(x)
    hook.remove()
    assert torch.equal(block(x), expected)

    right: list[bool] = []
    threads = [
        threading.Thread(target=lambda: right.extend(torch.equal(block(x), expected) for _ in range(20)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 80

    def gradients(run: Callable[[Tensor], Tensor]) -> list[Tensor]:
        block.zero_grad()
        run(x.clone().requires_grad_()).square().sum().backward()
        return [p.grad.clone() for p in block.parameters()]

    for reentrant in (False, True):
        checkpointed = gradients(partial(checkpoint, block, use_reentrant=reentrant))
        assert all(torch.equal(a, b) for a, b in zip(checkpointed, gradients(block)))


def test_a_replaced_model_trains_on_one_small_picture() -> None:
    model = replace_norm(torchvision.models.resnet18(weights=None), "evo_s0").train()
    model(torch.randn(1, 3, 33, 47)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_an_example_for_models_that_take_no_pictures() -> None:
    class Pair(Block):
        def forward(self, x: Tensor, y: list[Tensor]) -> Tensor:  # type: ignore[override]
            return super().forward(x + y[0])

    for example in ((torch.zeros(1, 4, 3, 3), [torch.zeros(1, 4, 3, 3)]), None):
        model = Pair(nn.ReLU())
        keys, norm = list(model.state_dict()), model.bn1
        if example is not None:
            assert replace_norm(model, "evo_s0", example=example).act.skip == (True, False)
            continue
        with pytest.raises(ValueError, match=r"reached 0 of 2 norms, not bn1, bn2: give example="):
            replace_norm(model, "evo_s0")
        assert model.bn1 is norm and list(model.state_dict()) == keys


def test_errors() -> None:
    with pytest.raises(ValueError, match="unknown norm 'evo_s1': did you mean 'evo_s0'"):
        replace_norm(nn.ReLU(), "evo_s1")
    with pytest.raises(TypeError, match="a callable or None, not int"):
        replace_norm(nn.ReLU(), 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="norm must give a module for a number of channels, not int"):
        replace_norm(nn.BatchNorm2d(4), lambda channels: channels)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match=r"^1 is a lazy batch norm without channels yet"):
        replace_norm(nn.Sequential(nn.Conv2d(3, 4, 1), nn.LazyBatchNorm2d()), "group")
    with pytest.raises(ValueError, match="the model has no running statistics to freeze"):
        replace_norm(nn.BatchNorm2d(4, track_running_stats=False), "frozen_batch")
    with pytest.raises(ValueError, match="0.weight has no shape yet: run the model once"):
        replace_norm(nn.Sequential(nn.LazyConv2d(4, 1), nn.BatchNorm2d(4)), "evo_s0")
