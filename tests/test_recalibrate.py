"""recalibrate and has_folded_norms: checkpoints whose norms were folded, made fit to train."""

from __future__ import annotations

import copy
import io
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from families import FAMILIES
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import segzoo
from segzoo.inference import preprocess, read_picture
from segzoo.layers import ConvNormAct
from segzoo.models.base import SegmentationModel
from segzoo.weights.calibrate import calibrate, has_folded_norms, recalibrate
from segzoo.weights.catalog import Preprocessing

PICTURES = ROOT / "examples/images"
NAMES = ["u2net", "isnet"]

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:this model's norms were folded"),
]


def photographs(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Views into a real photograph: each another place."""
    image = np.asarray(Image.open(PICTURES / "coffee.jpg").convert("RGB"))
    places = np.random.default_rng(0).integers(
        (image.shape[0] - 4 * height, image.shape[1] - 4 * width), size=(count, 2)
    )
    return [np.ascontiguousarray(image[y : y + 4 * height : 4, x : x + 4 * width : 4]) for y, x in places]


def inputs(model: SegmentationModel, pictures: list[Any]) -> Tensor:
    return torch.stack(
        [preprocess(read_picture(p, in_channels=model.in_channels), model.preprocessing) for p in pictures]
    )


class Tiny(SegmentationModel):
    """Two blocks and a head: for what needs any model, and does not care which."""

    heads = ("head.",)

    def __init__(self) -> None:
        super().__init__(1, 3)
        self.blocks = nn.Sequential(ConvNormAct(3, 6), ConvNormAct(6, 4, dilation=2))
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x))


def trained(model: nn.Module, pictures: list[Any]) -> SegmentationModel:
    """The model, whose norms know these pictures now, as if it had been trained on them."""
    assert isinstance(model, SegmentationModel)
    model.preprocessing = Preprocessing(size=(48, 64)).for_channels(model.in_channels)
    for norm in norms_of(model):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 1.0)
        norm.register_forward_hook(remember)
    with torch.no_grad():
        model.train()(inputs(model, pictures).to(norm.weight))
    for norm in norms_of(model):
        norm._forward_hooks.clear()
    return model.eval()


def remember(norm: nn.BatchNorm2d, args: tuple[Tensor], output: Tensor) -> None:
    norm.running_mean.copy_(args[0].mean((0, 2, 3)))
    norm.running_var.copy_(args[0].var((0, 2, 3), correction=0))


def norms_of(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def folded(model: SegmentationModel) -> SegmentationModel:
    """The same function as it comes from a file whose exporter folded the norms."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for block in model.modules():
            if isinstance(block, ConvNormAct):
                slope = block.bn.weight / (block.bn.running_var + block.bn.eps).sqrt()
                block.conv.weight *= slope[:, None, None, None]
                block.bn.bias -= slope * block.bn.running_mean
                block.bn.running_mean.zero_()
                block.bn.running_var.fill_(1)
                block.bn.weight.fill_((1 + 1e-5) ** 0.5)
    return model


def in_train_mode(model: SegmentationModel, x: Tensor) -> Tensor:
    """Probabilities in train mode, the model itself left alone."""
    with torch.no_grad():
        return model.probabilities(copy.deepcopy(model).train()(x)[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("arguments", [{}, {"num_classes": 3, "in_channels": 1}])
def test_it_is_again_what_it_was_before_its_norms_were_folded(name: str, arguments: dict[str, int]) -> None:
    torch.manual_seed(0)
    pictures = photographs(3)
    original = trained(FAMILIES[name](**arguments).double(), pictures)
    model = folded(original)
    x, others = inputs(model, pictures).double(), torch.rand(2, model.in_channels, 50, 70, dtype=torch.float64)
    assert has_folded_norms(model)
    assert (in_train_mode(model, x) - original.predict(x)).abs().mean() > 0.03
    assert recalibrate(model, pictures, batch_size=2) == 3
    assert not has_folded_norms(model)
    torch.testing.assert_close(model.predict(others), original.predict(others), atol=1e-6, rtol=0)
    torch.testing.assert_close(in_train_mode(model, x), original.predict(x), atol=1e-6, rtol=0)
    for found, lost in zip(norms_of(model), norms_of(original)):
        spread = lost.running_var / (lost.running_var + lost.eps)  # ε was folded in, and comes back a second time
        torch.testing.assert_close(found.weight, (lost.weight.square() * spread + lost.eps).sqrt(), atol=1e-6, rtol=0)
        torch.testing.assert_close(found.bias, lost.bias, atol=1e-6, rtol=0)


def test_the_published_file_becomes_fit_to_train(u2netp_onnx: Path) -> None:
    """On other views of the cup than those it was measured on; smaller than it is used, to take less time."""
    model = segzoo.u2net_lite(u2netp_onnx)
    model.preprocessing = replace(model.preprocessing, size=(160, 160))
    cup = Image.open(PICTURES / "coffee.jpg").convert("RGB")
    x = inputs(model, [cup.crop((0, 0, 560, 380)), cup.crop((40, 20, 600, 400)).rotate(4)])
    before, ruin = model.predict(x), in_train_mode(model, x)
    assert has_folded_norms(model)
    assert recalibrate(model.train(), [cup, cup.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]) == 2
    assert model.training and not has_folded_norms(model)
    torch.testing.assert_close(model.predict(x), before, atol=1e-4, rtol=0)
    assert (ruin - before).abs().mean() > 0.1
    assert (in_train_mode(model, x) - before).abs().mean() < 0.05


# What it takes.


def forms(folder: Path) -> dict[str, Callable[[list[np.ndarray]], Any]]:
    """The same pictures in all forms."""

    def saved(pictures: list[np.ndarray]) -> list[Path]:
        (folder / "further").mkdir(parents=True)
        paths = [folder / f"{i}.png" for i in range(len(pictures))]
        for path, picture in zip(paths, pictures):
            Image.fromarray(picture).save(path)
        Image.fromarray(pictures[0]).save(folder / "further/below.png")
        (folder / "notes.txt").write_text("no picture")
        return paths

    return {
        "arrays": list,
        "a tuple of tensors": lambda pictures: tuple(torch.from_numpy(p).permute(2, 0, 1) for p in pictures),
        "a generator of images": lambda pictures: (Image.fromarray(p) for p in pictures),
        "paths": saved,
        "strings": lambda pictures: [str(path) for path in saved(pictures)],
        "open files": lambda pictures: [io.BytesIO(path.read_bytes()) for path in saved(pictures)],
        "a folder": lambda pictures: saved(pictures)[0].parent,
        "a folder's name": lambda pictures: str(saved(pictures)[0].parent),
        "an array of arrays": lambda pictures: iter(np.stack(pictures)),
    }


@pytest.fixture(scope="module")
def small() -> SegmentationModel:
    torch.manual_seed(0)
    return folded(trained(Tiny(), photographs(3)))


@pytest.mark.parametrize("form", list(forms(Path())))
def test_every_form_of_pictures_gives_the_same(form: str, small: SegmentationModel, tmp_path: Path) -> None:
    pictures = photographs(3)
    expected, model = copy.deepcopy(small), copy.deepcopy(small)
    calibrate(expected, [x[None] for x in inputs(small, pictures)])
    assert recalibrate(model, forms(tmp_path / "pictures")[form](pictures)) == 3
    for key, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


@pytest.mark.parametrize("form", ["array", "tensor", "image", "path", "file"])
def test_one_picture_needs_no_list(form: str, small: SegmentationModel, coffee: Path) -> None:
    array = photographs(1)[0]
    with coffee.open("rb") as file:
        one: dict[str, Any] = {
            "array": array,
            "tensor": torch.from_numpy(array).permute(2, 0, 1),
            "image": Image.fromarray(array),
            "path": coffee,
            "file": file,
        }
        assert recalibrate(copy.deepcopy(small), one[form]) == 1


def test_batches_change_the_time_not_the_result(small: SegmentationModel) -> None:
    """Pictures of several sizes that keep theirs, too: only neighbours of one size go together."""
    pictures = [*photographs(3), *photographs(2, 40, 40), *photographs(2)]
    states, sizes = [], []
    for batch_size in (1, 2, 100):
        model = copy.deepcopy(small)
        model.preprocessing = Preprocessing(size=None)
        hook = model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
        assert recalibrate(model, pictures, batch_size=batch_size) == 7
        hook.remove()
        states.append(model.state_dict())
    assert sizes == [1] * 7 + [2, 1, 2, 2] + [3, 2, 2]
    for state in states[1:]:
        for key, value in state.items():
            torch.testing.assert_close(value, states[0][key], atol=2e-5, rtol=2e-4)


def test_an_endless_album_would_fit_into_memory(small: SegmentationModel) -> None:
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def album() -> Iterator[np.ndarray]:
        nonlocal most
        for picture in photographs(6):
            mine = picture.copy()
            alive.append(weakref.ref(mine))
            yield mine
            del mine
            most = max(most, sum(ref() is not None for ref in alive))

    assert recalibrate(copy.deepcopy(small), album(), batch_size=2) == 6
    assert 1 <= most <= 2


def test_the_bar_counts_pictures(small: SegmentationModel, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, bool]] = []
    counted: list[int] = []

    class Bar:
        update = staticmethod(counted.append)

    def bar(total: int, show: bool) -> AbstractContextManager[Bar]:
        shown.append((total, show))
        return nullcontext(Bar())

    monkeypatch.setattr("segzoo._progress.progress_bar", bar)
    recalibrate(copy.deepcopy(small), photographs(5), batch_size=2, progress=True)
    assert shown == [(5, True)] and counted == [2, 2, 1]


def test_modes_and_a_wider_float_stay(small: SegmentationModel) -> None:
    model = copy.deepcopy(small).double().train()
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    pictures = photographs(2)
    recalibrate(model, pictures)
    assert [module.training for module in model.modules()] == modes
    assert {value.dtype for value in model.state_dict().values() if value.is_floating_point()} == {torch.float64}
    narrow = copy.deepcopy(small)
    recalibrate(narrow, pictures)
    for key, value in narrow.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key].to(value.dtype), value, atol=1e-5, rtol=1e-4)


@pytest.mark.gpu
def test_on_a_gpu(small: SegmentationModel) -> None:
    narrow, model = copy.deepcopy(small), copy.deepcopy(small).cuda()
    assert has_folded_norms(model)
    for one in (narrow, model):
        assert recalibrate(one, photographs(3), batch_size=2) == 3
    for key, value in narrow.state_dict().items():
        assert model.state_dict()[key].is_cuda
        torch.testing.assert_close(model.state_dict()[key].cpu(), value, atol=1e-3, rtol=1e-2)  # TF32 convolutions


# What it refuses.


def no_pictures(folder: Path) -> Path:
    (folder / "notes.txt").write_text("no picture")
    return folder


def broken(folder: Path) -> list[Any]:
    (folder / "broken.png").write_bytes((PICTURES / "coffee.jpg").read_bytes()[:3000])
    return [photographs(1)[0], folder / "broken.png"]


REFUSED: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "an empty list": (lambda folder: [], ValueError, "at least one picture"),
    "an empty generator": (lambda folder: iter(()), ValueError, "at least one picture"),
    "a folder without": (no_pictures, ValueError, "there is no picture in the folder "),
    "a broken one": (broken, ValueError, r"broken\.png is broken or cannot be decoded"),
    "a missing one": (lambda folder: folder / "cat.jpg", FileNotFoundError, r"there is no picture .*cat\.jpg"),
    "a folder in a list": (lambda folder: [folder], ValueError, "is a folder, expected a picture"),
    "a batch": (lambda folder: torch.zeros(2, 3, 8, 8), ValueError, r"several pictures go in as a list"),
    "pairs": (lambda folder: [(photographs(1)[0], 0)], TypeError, "a picture is a path.* got tuple"),
    "a number": (lambda folder: 3, TypeError, "a picture is a path.* got int"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_picture_is_refused_and_nothing_changes(case: str, small: SegmentationModel, tmp_path: Path) -> None:
    make, kind, message = REFUSED[case]
    model = copy.deepcopy(small).train()
    with pytest.raises(kind, match=message):
        recalibrate(model, make(tmp_path))
    for key, value in small.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    assert model.training and not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True, "2"])
def test_batch_sizes_are_positive(batch_size: Any, small: SegmentationModel) -> None:
    with pytest.raises(ValueError, match="batch_size must be a positive int"):
        recalibrate(small, photographs(1), batch_size=batch_size)


def test_models_without_batch_norms_are_refused_before_any_picture(coffee: Path) -> None:
    def never() -> Iterator[np.ndarray]:
        raise AssertionError
        yield

    for norm in ("frozen_batch", "group", "evo_b0", "instance"):
        with pytest.raises(ValueError, match="no batch norm with running statistics .* frozen ones too, need no"):
            recalibrate(FAMILIES["u2net"](norm=norm), never())
    with pytest.raises(TypeError, match="takes a model of this library, got Sequential; segzoo.weights.calibrate"):
        recalibrate(nn.Sequential(nn.BatchNorm2d(3)), coffee)
    with pytest.raises(TypeError, match="takes a model of this library, got str"):
        recalibrate("u2net_lite.duts", coffee)


# has_folded_norms.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("arguments", [{}, {"num_classes": 7}, {"in_channels": 5}, {"norm": "sync_batch"}])
def test_folded_norms_stay_so_for_other_classes_channels_and_processes(name: str, arguments: dict[str, Any]) -> None:
    source = folded(FAMILIES[name]())
    model = FAMILIES[name](**arguments)
    assert not has_folded_norms(model)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    fitting = {key: value for key, value in source.state_dict().items() if value.shape == shapes[key]}
    model.load_state_dict(fitting, strict=False)
    assert has_folded_norms(model) and has_folded_norms(copy.deepcopy(model).double())


@pytest.mark.parametrize("arguments", [{}, {"num_classes": 7}, {"in_channels": 4}, {"norm": "sync_batch"}])
def test_the_published_file_has_folded_norms(arguments: dict[str, Any], u2netp_onnx: Path) -> None:
    assert has_folded_norms(segzoo.u2net_lite(u2netp_onnx, **arguments))


def test_frozen_ones_may_train(u2netp_onnx: Path) -> None:
    model = segzoo.u2net_lite(u2netp_onnx, norm="frozen_batch")
    assert not has_folded_norms(model)
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(in_train_mode(model, x), model.predict(x))


@pytest.mark.parametrize("name", ["u2net", "unet_2015", "segformer"])
def test_a_new_model_has_none(name: str) -> None:
    model = FAMILIES[name]()
    assert not has_folded_norms(model)
    assert not has_folded_norms(copy.deepcopy(model).half())  # where 1.000005 would be 1
    assert not has_folded_norms(copy.deepcopy(model).to("meta"))


def test_one_norm_that_knows_something_is_enough() -> None:
    source = folded(Tiny())
    for name, value in (("running_mean", 1e-7), ("running_var", 1 + 2e-7), ("weight", 1.0)):
        model = copy.deepcopy(source)
        last = norms_of(model)[-1]
        with torch.no_grad():
            getattr(last, name)[-1] = value
        assert not has_folded_norms(model), name
    assert has_folded_norms(source)


def test_it_looks_no_further_than_the_first_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = segzoo.u2net_lite()
    looked = []
    norms = norms_of(model)
    monkeypatch.setattr(nn.Module, "modules", lambda self: (looked.append(norm) or norm for norm in norms))
    assert not has_folded_norms(model) and len(looked) == 1


def test_train_mode_warns_once_until_it_is_mended(small: SegmentationModel, recwarn: pytest.WarningsRecorder) -> None:
    warnings.simplefilter("always")
    model = copy.deepcopy(small)
    model.predict(torch.rand(1, 3, 16, 16))
    model.eval()
    assert not recwarn.list
    model.train().eval().train()
    assert ["segzoo.weights.recalibrate(model, pictures) first" in str(w.message) for w in recwarn.list] == [True]
    assert recwarn.pop().filename == __file__
    mended = copy.deepcopy(small)
    recalibrate(mended, photographs(1))
    mended.train()
    FAMILIES["u2net"](norm="frozen_batch").train()
    assert not recwarn.list


# calibrate, beside what test_weights.py has of it.


@given(st.integers(1, 4), st.sampled_from([torch.float32, torch.float64]), st.integers(0, 10**6))
def test_after_it_train_mode_is_eval_mode_on_what_was_measured(batch: int, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    norm = nn.BatchNorm2d(3, dtype=dtype)
    for values in (norm.weight.data, norm.bias.data, norm.running_mean):
        values.normal_(generator=generator)
    norm.running_var.uniform_(0.1, 2, generator=generator)
    x = 3 * torch.randn(batch, 3, 5, 7, generator=generator).to(dtype) + torch.tensor([[[[-2.0]], [[0.0]], [[9.0]]]])
    x = x.to(dtype)
    kept, expected = x.clone(), norm.eval()(x)
    calibrate(norm, [x])
    assert torch.equal(x, kept)
    tight = {"atol": 1e-4, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 1e-10, "rtol": 1e-10}
    torch.testing.assert_close(norm.eval()(x), expected, **tight)
    torch.testing.assert_close(norm.train()(x), expected, **tight)


def test_what_is_measured_goes_on_unchanged_in_float64() -> None:
    """A batch of one in float64 needs no copy to be summed: its own values must not be shifted."""
    network = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2)).double()
    x = torch.rand(1, 2, 4, 4, dtype=torch.float64) + 5
    calibrate(network, [x])
    assert network[1].running_mean.min() > 5 / (1 + 1e-5) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_folded_norms_show_in_half_precision(dtype: torch.dtype, u2netp_onnx: Path) -> None:
    assert has_folded_norms(segzoo.u2net_lite(u2netp_onnx).to(dtype))
    assert not has_folded_norms(segzoo.u2net_lite(None).to(dtype))


def test_models_whose_norms_are_folded_come_in_eval_mode(u2netp_onnx: Path) -> None:
    assert not segzoo.u2net_lite(u2netp_onnx).training and segzoo.u2net_lite().training
