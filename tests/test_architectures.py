"""Every architecture × every norm × every size, with numbers on small models and shapes alone on the full ones."""

from __future__ import annotations

import pytest
import torch
import torchvision
from families import FAMILIES, NORMS, build, outputs_of, shaken
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import segzoo
from segzoo.inference.optimize import fold_norms
from segzoo.models import SegmentationModel

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = [(1, 1), (33, 47), (65, 127)]
PAIRS = [(size, training) for size in SIZES for training in (True, False)]
NAMES = segzoo.list_models(task="semantic") + segzoo.list_models(task="salient")

_cache: dict[str, nn.Module] = {}


def small(family: str) -> nn.Module:
    """A small model of the family in eval mode, made once."""
    if family not in _cache:
        torch.manual_seed(0)
        _cache[family] = FAMILIES[family](num_classes=3).eval()
    return _cache[family].eval()


def test_every_semantic_and_salient_class_has_a_small_model() -> None:
    with torch.device("meta"):
        classes = {type(build(name)) for name in NAMES}
    assert classes == {type(small(family)) for family in FAMILIES}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_any_norm_any_size(family: str, norm: str) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family](num_classes=3, norm=norm)
    for size in SIZES:
        x = torch.randn(1, 3, *size)
        outputs = outputs_of(model.train(), x)
        sum(out.sum() for out in outputs).backward()
        for out in outputs:
            assert out.shape == (1, 3, *size) and out.isfinite().all(), size
        without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert without == [], size
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            out = model.eval()(x)
        assert out.shape == (1, 3, *size) and out.isfinite().all(), size


# A third of the pairs, in which each name and each norm occurs; the others are marked slow.
NAMES_AND_NORMS = [
    pytest.param(name, norm, marks=[] if (i + j) % 3 == 0 else pytest.mark.slow)
    for i, name in enumerate(NAMES)
    for j, norm in enumerate([*NORMS, None])
]


@pytest.mark.parametrize(("name", "norm"), NAMES_AND_NORMS)
def test_full_models_by_shape(name: str, norm: str | None) -> None:
    """On the meta device: nothing is computed, but shapes and gradients are what they would be."""
    # Pairwise: each name meets each norm, each size and both modes; each norm each size in each mode.
    size, training = PAIRS[(NAMES.index(name) + [*NORMS, None].index(norm)) % len(PAIRS)]
    with torch.device("meta"):
        model = build(name, norm=norm, num_classes=5, in_channels=4).train(training)
        outputs = outputs_of(model, torch.zeros(1, 4, *size))
        assert all(out.shape == (1, 5, *size) for out in outputs)
        if training:
            sum(out.sum() for out in outputs).backward()
            assert [key for key, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_at_will(family: str) -> None:
    model = small(family)

    @settings(max_examples=8)
    @given(height=st.integers(1, 80), width=st.integers(1, 80))
    def check(height: int, width: int) -> None:
        with torch.no_grad():
            out = model(torch.zeros(1, 3, height, width))
        assert out.shape == (1, 3, height, width) and out.isfinite().all()

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_autocast(family: str) -> None:
    x = torch.randn(1, 3, 65, 47)
    model = small(family)
    with torch.no_grad():
        plain = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(x)
    assert out.shape == plain.shape and out.isfinite().all()
    # bfloat16 keeps 8 bits: the two agree roughly, over the whole map
    assert (out.float() - plain).abs().mean() <= 0.05 * plain.abs().mean() + 0.05 * plain.std()


@pytest.mark.parametrize("family", FAMILIES)
def test_compiles_as_one_graph(family: str) -> None:
    model = small(family)
    x = torch.randn(1, 3, 65, 47)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


@pytest.mark.parametrize("family", FAMILIES)
def test_exports_at_any_size(family: str) -> None:
    model = small(family)
    free = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(1, 3, 128, 160),), dynamic_shapes=(free,), strict=False)
        for size in [(97, 161), (192, 131)]:
            x = torch.randn(1, 3, *size)
            torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_folding_norms_keeps_the_outputs(family: str) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family](num_classes=3).eval()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.normal_(norm.running_mean, 0, 0.1)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    x = torch.randn(1, 3, 65, 47)
    with torch.no_grad():
        expected = model(x)
        folded = fold_norms(model)
        assert (folded > 0) == bool(norms) and folded <= len(norms)
        assert (model(x) - expected).abs().max() <= 1e-4 * expected.abs().max().clamp_min(1)


class Folding(nn.Module):
    """Convolutions and norms of every kind, by a forward of one's own: six can be folded, five not."""

    def __init__(self) -> None:
        from timm.layers import BatchNormAct2d

        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(8))  # apart from their convolutions
        self.dilated = nn.Conv2d(3, 4, 3, padding=2, dilation=2)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.transposed = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.grouped = nn.ConvTranspose2d(4, 4, 3, padding=1, groups=2)
        self.plain = nn.Conv2d(4, 4, 1)
        self.acted = BatchNormAct2d(4)
        self.twice, self.forked, self.skipped, self.changed = (nn.Conv2d(4, 4, 1) for _ in range(4))
        self.line = nn.Conv1d(4, 4, 3, padding=1)
        self.line_norm = nn.BatchNorm1d(4)
        self.group = nn.Sequential(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norms[0](self.dilated(x))
        x = self.norms[1](nn.functional.dropout(self.depthwise(x), training=self.training))
        x = self.norms[2](self.transposed(x))
        x = self.norms[3](self.grouped(x))
        x = self.acted(self.plain(x))
        x = self.norms[4](self.twice(x)) + self.norms[4](self.twice(-x))  # one of each, both times: the same
        forked = self.forked(x)
        x = self.norms[5](forked) + forked
        x = self.norms[6](self.skipped(x) + x)
        x = self.norms[7](self.changed(x).mul_(2.0))
        lines = self.line(x.flatten(2))
        x = (self.line_norm(lines) + self.norms[7](x).flatten(2)).view_as(x)
        result: torch.Tensor = self.group(x)
        return result


def test_what_goes_into_a_norm_alone_is_folded_and_nothing_else() -> None:
    torch.manual_seed(0)
    model = shaken(Folding().double())
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
        assert fold_norms(model) == 7
        torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)
    left = [name for name, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert left == ["norms.5", "norms.6", "norms.7"] and isinstance(model.acted, nn.ReLU)


def test_models_of_others_are_folded_too() -> None:
    """torchvision's blocks have convolutions and norms side by side, by names of their own."""
    torch.manual_seed(0)
    for name in ("resnet18", "mobilenet_v3_small", "densenet121", "googlenet"):
        options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
        model = shaken(torchvision.models.get_model(name, weights=None, **options))
        x = torch.randn(1, 3, 65, 47)
        norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
        with torch.no_grad():
            expected = model(x)
            folded = fold_norms(model)
            assert folded == norms if name != "densenet121" else 0 < folded < norms  # its norms come before
            assert (model(x) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_what_cannot_be_run_stays_as_it_is() -> None:
    conv = nn.Conv2d(3, 3, 1)
    shared = nn.Sequential(nn.Sequential(conv, nn.BatchNorm2d(3)), nn.Sequential(conv, nn.BatchNorm2d(3)))
    assert fold_norms(shared.eval()) == 0
    assert fold_norms(nn.ModuleList([conv, nn.BatchNorm2d(3)]).eval()) == 0


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "evo_s0"])
@pytest.mark.parametrize("name", NAMES)
def test_full_models_compile_and_export(name: str, norm: str) -> None:
    with torch.device("meta"), torch.no_grad():
        model = build(name, norm=norm).eval()
        x = torch.zeros(1, 3, 65, 127)
        expected = model(x).shape
        assert torch.compile(model, fullgraph=True, backend="eager")(x).shape == expected
        free = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
        program = torch.export.export(model, (torch.zeros(1, 3, 256, 320),), dynamic_shapes=(free,), strict=False)
        assert program.module()(torch.zeros(1, 3, 225, 351)).shape[-2:] == (225, 351)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_an_argument_and_does_something(family: str) -> None:
    if family in ("u2net", "isnet"):
        pytest.skip("the paper's network has no dropout and no head to put it in")
    torch.manual_seed(0)
    model = FAMILIES[family](num_classes=3, dropout=0.9, norm="group").train()
    x = torch.randn(1, 3, 65, 65)
    first, second = outputs_of(model, x)[0], outputs_of(model, x)[0]
    assert not torch.equal(first, second)
    assert torch.equal(model.eval()(x), model(x))


@pytest.mark.parametrize("family", FAMILIES)
def test_multilabel_probabilities_do_not_sum_to_one(family: str) -> None:
    model = FAMILIES[family](num_classes=3, multilabel=True)
    assert isinstance(model, SegmentationModel)
    x = torch.randn(1, 3, 33, 33)
    torch.testing.assert_close(model.predict(x), model.eval()(x).sigmoid().detach())
