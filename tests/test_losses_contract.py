"""What every loss of segzoo promises: ignored pixels, half precision, transforms of torch, layouts, options, copies."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import (
    CASES,
    CHANNELS,
    NEIGHBOURS,
    ONE_EACH,
    SOFT,
    WEIGHT,
    Case,
    pictures,
    some_mask,
    value_and_gradient,
)
from torch import Tensor, nn

import segzoo.losses

pytestmark = pytest.mark.usefixtures("one_thread")

SEEDS = st.integers(0, 10**6)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
GARBAGE = torch.tensor([1e30, -1e30, math.inf, -math.inf, math.nan], dtype=torch.float64)
LABELS = torch.tensor([255.0, -1.0, 1e6])


def any_of(values: Tensor, like: Tensor, generator: torch.Generator) -> Tensor:
    """A picture of the given values, in any order."""
    return values[torch.randint(0, len(values), like.shape, generator=generator)].to(like.dtype)


def by_entry(mode: str, mask: Tensor, logits: Tensor) -> Tensor:
    """The mask of a target's entries as a mask of the logits."""
    return mask if mode == "multilabel" and mask.ndim == 4 else mask[:, None].expand_as(logits)


def assert_same_bits(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(first[0], second[0]), (first[0], second[0])
    assert torch.equal(first[1], second[1]), (first[1] - second[1]).abs().max()


# 1. Ignored pixels


@pytest.mark.parametrize("case", CASES, ids=str)
@settings(max_examples=5)
@given(
    seed=SEEDS,
    h=st.integers(1, 6),
    w=st.integers(1, 7),
    share=st.sampled_from([0.1, 0.5, 0.9]),
    dtype=st.sampled_from(DTYPES),
    label=st.sampled_from([255, -1, 10**6]),
)
def test_an_ignored_pixel_holds_anything(
    case: Case, seed: int, h: int, w: int, share: float, dtype: torch.dtype, label: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, target = pictures(case.mode, seed, 2, h, w, soft=case.loss in SOFT and seed % 2 == 0, dtype=dtype)
    mask = some_mask(target, seed, share, by_entry=seed % 3 > 0)
    entries = by_entry(case.mode, mask, logits)
    of_target = mask if mask.ndim == target.ndim else mask[:, None].expand_as(target)

    loss, by_label = case.build(), case.build(ignore_index=label)
    clean = value_and_gradient(loss, logits, target, mask)
    assert clean[0].isfinite().all() and clean[1].isfinite().all()
    assert not clean[1][~entries].any()

    wild = torch.where(entries, logits, any_of(GARBAGE, logits, generator))
    labels = LABELS if case.mode == "multiclass" else torch.cat([LABELS, GARBAGE.float()])
    wild_target = torch.where(of_target, target, any_of(labels, target, generator))
    assert_same_bits(value_and_gradient(loss, wild, wild_target, mask), clean)
    assert_same_bits(value_and_gradient(loss, wild, target, mask if mask.ndim == 4 else mask[:, None]), clean)
    labelled = torch.where(of_target, target, label)
    assert_same_bits(value_and_gradient(by_label, wild, labelled), clean)
    half = torch.rand(target.shape, generator=generator) < 0.5  # some by the mask, some by their label
    half_target = torch.where(half, wild_target, labelled)
    assert_same_bits(value_and_gradient(by_label, wild, half_target, of_target | ~half), clean)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_everything_ignored_is_0_with_a_gradient_of_zeros(case: Case) -> None:
    for dtype in DTYPES:
        logits, target = pictures(case.mode, dtype=dtype)
        logits = any_of(GARBAGE, logits, torch.Generator().manual_seed(0))
        nowhere = torch.zeros(2, 5, 6, dtype=torch.bool)
        for loss, labels, mask in [
            (case.build(), target, nowhere),
            (case.build(), torch.full_like(target, 10**6), nowhere[:, None]),
            (case.build(ignore_index=255), torch.full_like(target, 255), None),
            (case.build(ignore_index=-1), torch.full_like(target, -1).to(torch.int16), None),
        ]:
            value, gradient = value_and_gradient(loss, logits, labels, mask)
            assert not value.any() and not gradient.any(), dtype
            assert gradient.shape == logits.shape and gradient.dtype == dtype


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_batch_of_nothing_is_0(case: Case) -> None:
    logits, target = pictures(case.mode)
    for options in ({}, {"mask": torch.ones(0, 5, 6, dtype=torch.bool)}):
        value, gradient = value_and_gradient(case.build(), logits[:0], target[:0], **options)
        assert not value.any() and gradient.shape == (0, *logits.shape[1:])


@pytest.mark.parametrize("mode", ["multiclass", "binary", "multilabel"])
def test_a_valid_label_can_be_the_ignored_one(mode: str) -> None:
    for case in ONE_EACH:
        if case.mode == mode:
            logits, target = pictures(mode)
            ignored = value_and_gradient(case.build(ignore_index=0), logits, target)
            assert_same_bits(ignored, value_and_gradient(case.build(), logits, target, target != 0))


def test_255_is_ignored_in_multiclass_unless_one_says_otherwise() -> None:
    logits, target = pictures("multiclass")
    target[0, 0] = 255
    for case in ONE_EACH:
        if case.mode == "multiclass":
            expected = case.build()(logits, target, target != 255)
            assert torch.equal(case.build()(logits, target), expected)
            assert torch.equal(case.build(ignore_index=255)(logits, target), expected)
            with pytest.raises(ValueError, match="255"):
                case.build(ignore_index=None)(logits, target)


# 4. Half precision: sums in float32

HALF = [
    Case("CrossEntropyLoss", "multiclass", {"weight": (0.5, 2.0), "label_smoothing": 0.1}),
    Case("OhemCrossEntropyLoss", "binary"),
    Case("BCELoss", "binary", {"pos_weight": 3.0}),
    Case("FocalLoss", "multiclass", {"alpha": (0.5, 2.0)}),
    Case("FocalLoss", "binary", {"alpha": 0.25, "normalized": True}),
    Case("DiceLoss", "multiclass"),
    Case("DiceLoss", "binary"),
    Case("JaccardLoss", "multiclass", {"per_image": True}),
    Case("TverskyLoss", "multilabel", {"log": True}),
    Case("FocalTverskyLoss", "binary"),
    Case("LovaszLoss", "multiclass"),
    Case("LovaszLoss", "binary"),
    Case("BoundaryLoss", "binary"),
]
WINDOWED = [Case("SSIMLoss", "binary"), Case("HybridSaliencyLoss", "binary")]


@functools.lru_cache(maxsize=1)
def disc(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """`rows` of 2048 × 2048: a disc with a noisy edge; logits that are the same numbers in float16 and bfloat16."""
    line = torch.linspace(-1, 1, 2048, dtype=torch.float64)
    column = line[1024 - rows // 2 : 1024 + rows // 2, None]
    field = 0.5 - (column**2 + line**2).sqrt() + 0.05 * (line * 999).sin() * (column * 777).cos()
    target = ((column**2 + (line - 0.03) ** 2).sqrt() < 0.45).long()
    return (field * 80).round() / 8, target, ((column + line).abs() > 0.01)[None]


def large_pictures(mode: str, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    logits, target, mask = disc(rows)
    if mode == "multiclass":
        return torch.stack([-logits, logits])[None] / 2, target[None], mask
    return logits[None, None], target[None] if mode == "binary" else target[None, None], mask


@pytest.mark.parametrize(
    ("case", "rows"),
    [
        *[pytest.param(case, 2048, id=str(case)) for case in HALF],
        *[pytest.param(case, 128, id=f"{case}-128rows") for case in WINDOWED],
        *[pytest.param(case, 2048, id=str(case), marks=pytest.mark.slow) for case in WINDOWED],
    ],
)
def test_half_precision_of_4_million_pixels(case: Case, rows: int) -> None:
    logits, target, mask = large_pictures(case.mode, rows)
    loss = case.build()
    with torch.no_grad():
        expected = loss(logits, target, mask)
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(logits.to(dtype).double(), logits)
        value, gradient = value_and_gradient(loss, logits.to(dtype), target, mask)
        assert value.dtype == torch.float32 and gradient.dtype == dtype
        assert value.double().item() == pytest.approx(expected.item(), rel=1e-3) and abs(expected) > 1e-3
        assert gradient.isfinite().all()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_half_precision_is_that_of_the_same_logits(case: Case) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        logits, target = pictures(case.mode, 3, dtype=dtype)
        loss = case.build()
        value, gradient = value_and_gradient(loss, logits, target)
        expected, in_float32 = value_and_gradient(loss, logits.float(), target)
        assert value.dtype == expected.dtype == torch.float32
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient.float(), in_float32, rtol=1e-2, atol=1e-5)


# 7. Transforms


@pytest.mark.parametrize("case", ONE_EACH, ids=str)
def test_compiled_is_eager(case: Case) -> None:
    logits, target = pictures(case.mode, 2, dtype=torch.float32)
    mask = some_mask(target, 2)
    expected = value_and_gradient(case.build(), logits, target, mask)
    compiled = torch.compile(case.build(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(value_and_gradient(compiled, logits, target, mask), expected, rtol=1e-5, atol=1e-7)
    wrong = target.clone()
    wrong[0, ..., 0] = 9
    with pytest.raises(RuntimeError):
        compiled(logits.requires_grad_(), wrong, torch.ones_like(mask)).sum().item()
    torch.testing.assert_close(compiled(logits, target, mask), expected[0])


@pytest.mark.parametrize(
    "case",
    [
        Case("CrossEntropyLoss", "multiclass"),
        Case("DiceLoss", "multiclass", {"per_image": True}),
        pytest.param(Case("LovaszLoss", "multiclass", {"per_image": True}), marks=pytest.mark.slow),
        pytest.param(Case("HybridSaliencyLoss", "binary"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_compiled_for_pictures_of_all_sizes(case: Case) -> None:
    compiled = torch.compile(case.build(), fullgraph=True, backend="aot_eager")
    for n, h, w in ((2, 5, 6), (3, 7, 9), (1, 12, 4)):  # the second size makes torch compile for any size
        logits, target = pictures(case.mode, 2, n, h, w, dtype=torch.float32)
        expected = value_and_gradient(case.build(), logits, target)
        torch.testing.assert_close(value_and_gradient(compiled, logits, target), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[] if case.loss == "DiceLoss" else pytest.mark.slow)
        for case in ONE_EACH
        if case.mode == "multiclass" or case.loss == "HybridSaliencyLoss"
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Skipping serialization of:UserWarning")  # of inductor, in torch 2.6
def test_compiled_by_inductor_is_eager(case: Case) -> None:
    logits, target = pictures(case.mode, 2, dtype=torch.float32)
    expected = value_and_gradient(case.build(), logits, target)
    compiled = torch.compile(case.build(), fullgraph=True)
    torch.testing.assert_close(value_and_gradient(compiled, logits, target), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", ONE_EACH, ids=str)
def test_autocast(case: Case) -> None:
    logits, target = pictures(case.mode, 3, dtype=torch.float32)
    x = torch.randn(2, 8, 5, 6, generator=torch.Generator().manual_seed(1))
    layer = nn.Conv2d(8, CHANNELS[case.mode], 1)
    loss = case.build()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = layer(x)
        value = loss(outputs, target)
        inside = value_and_gradient(loss, logits, target)
    assert outputs.dtype == torch.bfloat16 and value.dtype == torch.float32
    assert_same_bits(value_and_gradient(loss, outputs, target)[:1] * 2, (value, value))
    assert_same_bits(inside, value_and_gradient(loss, logits, target))
    value.backward()
    assert layer.weight.grad is not None and layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("case", ONE_EACH, ids=str)
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # of vmap, in torch 2.6
def test_functional_gradients(case: Case) -> None:
    logits, target = pictures(case.mode, 4, 3)
    mask = some_mask(target, 4)
    loss = case.build()
    _, gradient = value_and_gradient(loss, logits, target, mask)
    torch.testing.assert_close(torch.func.grad(loss)(logits, target, mask), gradient, rtol=1e-12, atol=1e-14)

    def one(x: Tensor, t: Tensor, m: Tensor) -> Tensor:
        return loss(x[None], t[None], m[None])

    rows = torch.func.vmap(torch.func.grad(one))(logits, target, mask)
    expected = [value_and_gradient(loss, logits[[i]], target[[i]], mask[[i]])[1][0] for i in range(3)]
    torch.testing.assert_close(rows, torch.stack(expected), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("case", ONE_EACH, ids=str)
def test_no_gradient_is_wanted_or_several(case: Case) -> None:
    logits, target = pictures(case.mode, 5)
    loss = case.build()
    value, gradient = value_and_gradient(loss, logits, target)
    with torch.no_grad():
        assert torch.equal(loss(logits, target), value)
    with torch.inference_mode():
        assert torch.equal(loss(logits, target), value)
    leaf = logits.clone().requires_grad_()
    (3 * loss(leaf, target) + loss(leaf.flip(-1), target.flip(-1))).backward()
    again = value_and_gradient(loss, logits.flip(-1), target.flip(-1))[1].flip(-1)
    torch.testing.assert_close(leaf.grad, 3 * gradient + again, rtol=1e-10, atol=1e-14)
    twice = loss(leaf, target).sum()
    first = torch.autograd.grad(twice, leaf, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(twice, leaf)[0]) and torch.equal(first, gradient)


# Layouts, dtypes of the target, masks


@pytest.mark.parametrize("case", CASES, ids=str)
def test_memory_layouts_and_inputs_stay_as_they_were(case: Case) -> None:
    logits, target = pictures(case.mode, 6)
    mask = some_mask(target, 6)
    loss = case.build()
    expected = value_and_gradient(loss, logits, target, mask)
    before = logits.clone(), target.clone(), mask.clone()
    every_other = torch.full((2, logits.shape[1], 10, 12), math.nan, dtype=torch.float64)
    every_other[:, :, ::2, ::2] = logits
    for same in (
        logits.contiguous(memory_format=torch.channels_last),
        logits.mT.contiguous().mT,
        every_other[:, :, ::2, ::2],
        logits.transpose(0, 1).contiguous().transpose(0, 1),
    ):
        result = value_and_gradient(loss, same, target.mT.contiguous().mT, mask.mT.contiguous().mT)
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-13)
    one = logits[:, :, :1, :1].expand_as(logits)
    flat = value_and_gradient(loss, one, target, mask)[0]
    torch.testing.assert_close(flat, loss(one.contiguous(), target, mask), rtol=1e-10, atol=1e-13)
    assert all(torch.equal(x, y) for x, y in zip(before, (logits, target, mask)))


@pytest.mark.parametrize("case", ONE_EACH, ids=str)
def test_dtypes_and_shapes_of_target_and_mask(case: Case) -> None:
    logits, target = pictures(case.mode, 7, dtype=torch.float32)
    mask = some_mask(target, 7)
    loss = case.build()
    expected = value_and_gradient(loss, logits, target, mask)
    dtypes = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
    if case.mode != "multiclass":
        dtypes += [torch.bool, torch.float16, torch.bfloat16, torch.float32, torch.float64]
    for dtype in dtypes:
        assert_same_bits(value_and_gradient(loss, logits, target.to(dtype), mask), expected)
    if case.mode == "multiclass":  # int8 has no 255: nothing is ignored, and nothing wraps around
        assert torch.equal(loss(logits, target.to(torch.int8)), loss(logits, target))
    else:
        for dtype in (torch.bool, torch.uint8):  # an ignored label that the dtype cannot hold
            assert_same_bits(value_and_gradient(case.build(ignore_index=-1), logits, target.to(dtype), mask), expected)
            assert_same_bits(value_and_gradient(case.build(ignore_index=256), logits, target.to(dtype), mask), expected)
    assert_same_bits(value_and_gradient(loss, logits, target, mask[:, None]), expected)
    if case.mode == "binary":
        assert_same_bits(value_and_gradient(loss, logits, target[:, None], mask), expected)
    if case.mode == "multilabel":
        assert_same_bits(value_and_gradient(loss, logits, target, mask[:, None].expand_as(target)), expected)
    everything = torch.ones_like(mask)
    assert_same_bits(value_and_gradient(loss, logits, target, everything), value_and_gradient(loss, logits, target))


@pytest.mark.parametrize("mode", ["multiclass", "binary", "multilabel"])
def test_dtypes_that_torch_hardly_knows_work_or_are_value_errors(mode: str) -> None:
    logits, target = pictures(mode)
    for case in ONE_EACH:
        for dtype in (torch.uint16, torch.uint32, torch.uint64):
            if case.mode == mode:
                try:
                    assert torch.equal(case.build()(logits, target.to(dtype)), case.build()(logits, target))
                except ValueError as error:
                    assert "target" in str(error) and str(dtype).removeprefix("torch.") in str(error)


def test_uint8_labels_above_127() -> None:
    logits = torch.randn(1, 200, 3, 4, generator=torch.Generator().manual_seed(0))
    target = torch.arange(150, 162).view(1, 3, 4)
    for name in ("CrossEntropyLoss", "FocalLoss", "DiceLoss", "LovaszLoss"):
        loss = Case(name, "multiclass").build()
        assert_same_bits(
            value_and_gradient(loss, logits, target.to(torch.uint8)), value_and_gradient(loss, logits, target)
        )


# Modules: weights, copies, signatures


def weighted(case: Case) -> bool:
    return bool({"weight", "alpha", "pos_weight"} & set(case.options))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_copies_dtypes_and_state(case: Case) -> None:
    logits, target = pictures(case.mode, 8, dtype=torch.float32)
    loss = case.build()
    value = loss(logits, target)
    twin = case.build()
    twin.load_state_dict(loss.state_dict(), strict=True)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), twin, loss.eval(), nn.Sequential(loss)[0]):
        assert torch.equal(other(logits, target), value)
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        torch.testing.assert_close(case.build().to(dtype)(logits, target), value, rtol=2e-2, atol=1e-3)
    assert not list(loss.parameters())
    text = repr(loss)
    assert text.startswith(case.loss) and case.mode in text and "object at" not in text
    for name in case.options:
        assert name in text, text


def test_weights_may_be_lists_or_tensors() -> None:
    logits, target = pictures("multiclass", dtype=torch.float32)
    for name in ("CrossEntropyLoss", "OhemCrossEntropyLoss", "DiceLoss", "TverskyLoss", "LovaszLoss"):
        values = [
            Case(name, "multiclass", {"weight": weight}).build()(logits, target)
            for weight in (
                list(WEIGHT["multiclass"]),
                WEIGHT["multiclass"],
                torch.tensor(WEIGHT["multiclass"]),
                torch.tensor(WEIGHT["multiclass"], dtype=torch.float64),
            )
        ]
        assert all(torch.equal(value, values[0]) for value in values), name
        unweighted = Case(name, "multiclass").build()(logits, target)
        ones = Case(name, "multiclass", {"weight": [1, 1, 1, 1]}).build()(logits, target)
        torch.testing.assert_close(ones, unweighted)
        assert values[0] != unweighted


def test_signatures_are_alike() -> None:
    """mode first, ignore_index="auto" by keyword, forward(logits, target, mask=None)."""
    for name in {case.loss for case in CASES}:
        arguments = list(inspect.signature(getattr(segzoo.losses, name)).parameters.values())
        assert arguments[0].name == "mode" and arguments[0].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD, name
        by_name = {argument.name: argument for argument in arguments}
        assert by_name["ignore_index"].default == "auto", name
        assert by_name["ignore_index"].kind is inspect.Parameter.KEYWORD_ONLY, name
        forward = list(inspect.signature(getattr(segzoo.losses, name).forward).parameters)
        assert forward[:4] == ["self", "logits", "target", "mask"], name


def test_docstrings_say_what_one_must_know() -> None:
    for name in {case.loss for case in CASES}:
        text = inspect.getdoc(getattr(segzoo.losses, name)) or ""
        assert "process" in text, f"{name}: do batches split over processes average to the same gradient?"
        assert "Args:" in text and ">>>" in text, name


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_gpu_has_the_values_of_the_cpu(case: Case) -> None:
    logits, target = pictures(case.mode, 9)
    mask = some_mask(target, 9)
    expected = value_and_gradient(case.build(), logits, target, mask)
    loss = case.build().cuda()
    value, gradient = value_and_gradient(loss, logits.cuda(), target.cuda(), mask.cuda())
    assert value.is_cuda
    torch.testing.assert_close((value.cpu(), gradient.cpu()), expected, rtol=1e-6, atol=1e-9)
    logits, target = pictures(case.mode, 9, 2, 300, 200, dtype=torch.float32)
    if case.loss not in NEIGHBOURS:
        expected = value_and_gradient(case.build(), logits, target)
        value, gradient = value_and_gradient(loss, logits.cuda(), target.cuda())
        torch.testing.assert_close((value.cpu(), gradient.cpu()), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_gpu_is_not_waited_for(case: Case) -> None:
    logits, target = pictures(case.mode, 9, dtype=torch.float32)
    mask = some_mask(target, 9).cuda()
    logits, target, loss = logits.cuda().requires_grad_(), target.cuda(), case.build().cuda()
    loss(logits, target, mask).sum().backward()  # what is made once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss(logits, target, mask).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
