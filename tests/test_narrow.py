"""Half precision: what has to stay wide is found by measurement, and stays so."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import segzoo
from segzoo.inference import optimize_for_inference, preprocess, read_picture
from segzoo.inference._narrow import find_sensitive
from segzoo.inference.optimize import fold_norms
from segzoo.models import SegmentationModel


def names_of(model: nn.Module, modules: list[nn.Conv2d]) -> list[str]:
    return [name for name, module in model.named_modules() if module in modules]


def test_the_bundled_models_chain_is_found_and_keeps_its_masks(coffee: Path) -> None:
    model = segzoo.u2net_lite()
    x = preprocess(read_picture(coffee), model.preprocessing)[None]
    full = model.eval().requires_grad_(False)
    fold_norms(full)
    found = find_sensitive(full, torch.bfloat16)
    assert names_of(full, found) == [f"decode_modules.3.decode_modules.{conv}.conv" for conv in (3, 4)]
    assert names_of(full, find_sensitive(full, torch.bfloat16, x)) == names_of(full, found)  # any picture shows them

    narrow = optimize_for_inference(model, precision="bf16")
    everywhere = copy.deepcopy(full).to(torch.bfloat16)
    expected, close, far = full.predict(x), narrow.predict(x), everywhere.predict(x.bfloat16())
    error, plain = ((y - expected).abs().mean() for y in (close, far))
    assert error < 0.002 and plain > 3 * error
    again = copy.deepcopy(narrow).predict(x.bfloat16())  # whose casting is the model's own first step
    assert torch.equal(again, close)
    wide = {name for name, p in narrow.named_parameters() if p.dtype == torch.float32}
    assert wide == {f"{name}.{p}" for name in names_of(full, found) for p in ("weight", "bias")}


class Small(SegmentationModel):
    """Two convolutions and what lies between them: a channel of ``offset``, which a bias takes away again."""

    heads, stem, default_num_classes = ("second.",), "first.weight", 1

    def __init__(self, offset: float, groups: int) -> None:
        super().__init__(4, 3)
        torch.manual_seed(0)
        self.first, self.aside = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.second, self.last = nn.Conv2d(8, 4, 1, groups=groups), nn.Conv2d(4, 4, 1)
        with torch.no_grad():
            self.first.weight[2] *= 0.05
            self.first.bias[2] = offset
            place = 2 % (8 // groups)
            self.second.weight[:, place] = 1.0
            self.second.bias.fill_(0.5)
            self.last.weight.abs_()  # so that no two errors cancel
            self.second.bias -= self.second.weight[:, place, 0, 0] * offset
            if groups == 2:  # only the first group takes it
                self.second.bias[2:] += self.second.weight[2:, place, 0, 0] * offset

    def forward(self, x: Tensor) -> Tensor:
        up = nn.functional.interpolate(self.first(x).relu(), scale_factor=2.0, mode="bilinear")
        skip = nn.functional.interpolate(self.aside(x), scale_factor=2.0)
        y: Tensor = self.last(self.second(torch.cat([up, skip], 1)).relu())
        return nn.functional.avg_pool2d(y, 2)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_chain_through_resizing_and_concatenation(groups: int) -> None:
    model = Small(226.4, groups).eval()
    assert names_of(model, find_sensitive(model, torch.bfloat16)) == ["first", "second"]
    narrow = optimize_for_inference(model, precision="bf16")
    x = torch.randn(1, 3, 24, 32)
    with torch.no_grad():
        expected, got, plain = model(x), narrow(x.bfloat16()), copy.deepcopy(model).bfloat16()(x.bfloat16())
    scale = expected.std()
    assert (got - expected).abs().mean() < 0.02 * scale < 0.1 * scale < (plain - expected).abs().mean()


def test_where_nothing_is_sensitive_nothing_stays_wide() -> None:
    model = Small(1.0, 1).eval()
    assert find_sensitive(model, torch.bfloat16) == []
    narrow = optimize_for_inference(model, precision="bf16")
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}
    assert not any(module._forward_pre_hooks for module in narrow.children())
