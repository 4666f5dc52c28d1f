"""Models saved into a folder: everything comes back, nothing is mixed, and what cannot be is said."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import re
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import build
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_models import SMALLER

import segzoo
from segzoo import registry
from segzoo.encoders import get_encoder
from segzoo.layers import replace_norm
from segzoo.models import SegmentationModel, U2Net, UNet
from segzoo.models._pretrained import structure_of
from segzoo.models.base import build_model
from segzoo.weights import Preprocessing
from segzoo.weights.card import model_card
from segzoo.weights.saved import SavedModel

TERMS: dict[str, Any] = {"license": "cc-by-4.0", "training_data": {"our streets": "CC BY 4.0"}}
LARGE = {
    *("u2net_full", "isnet", "fcn_resnet50", "fcn_resnet101"),
    *("deeplabv3_resnet50", "deeplabv3_resnet101", "deeplabv3_mobilenet_v3_large", "fcn8s"),
}
NORMS = ["sync_batch", "frozen_batch", "instance", "evo_b0"]


def trained(name: str, **arguments: Any) -> Any:
    """A model none of whose numbers are those it is made with, statistics of norms included."""
    model = build(name, **arguments)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.mul_(1 + 0.3 * torch.rand(value.shape, generator=generator))
    return model.eval()


def pictures(model: Any) -> torch.Tensor:
    return torch.rand(1, model.in_channels, 40, 33, generator=torch.Generator().manual_seed(1))


def assert_same(model: Any, again: Any) -> None:
    """Bit by bit, and in everything that is beside the numbers."""
    assert type(again) is type(model)
    states = model.state_dict(), again.state_dict()
    assert [(key, value.dtype) for key, value in states[0].items()] == [(k, v.dtype) for k, v in states[1].items()]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    for name in ("num_classes", "in_channels", "multilabel", "classes", "preprocessing", "threshold"):
        assert getattr(again, name) == getattr(model, name), name
    assert structure_of(again) == structure_of(model)
    assert torch.equal(again.predict(pictures(model)), model.predict(pictures(model)))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("the network was asked for something")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small saved model that tests read, and copy before they break it."""
    folder = tmp_path_factory.mktemp("models") / "street"
    model = trained("unet", encoder="resnet10t", decoder_channels=(8, 8, 8, 8, 8), num_classes=3, norm="group")
    model.classes = ("road", "car", "sky")
    model.save_pretrained(
        folder, **TERMS, name="street", metrics={"our test": {"miou": 0.5}}, protocol="single scale, whole pictures"
    )
    return folder


@pytest.fixture
def broken(street: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(street, tmp_path / "street"))


# Everything comes back.


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else [])
        for name in segzoo.list_models(task="semantic") + segzoo.list_models(task="salient")
    ],
)
def test_every_model_comes_back_bit_by_bit(name: str, tmp_path: Path, offline: None) -> None:
    model = trained(name, **SMALLER.get(name, {}))
    model.save_pretrained(tmp_path / "a", **TERMS)
    again = segzoo.create_model(f"local-dir:{tmp_path / 'a'}")
    assert again.training  # as every model of a factory
    assert_same(model, again.eval())
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["README.md", "config.json", "model.safetensors"]


@pytest.mark.parametrize("name", segzoo.list_models())
def test_the_noted_arguments_make_the_same_network(name: str) -> None:
    with torch.device("meta"):
        model = build(name, **SMALLER.get(name, {}), num_classes=4, in_channels=2)
        noted = json.loads(json.dumps(model.made_by.arguments))
        again = build(name, **noted, num_classes=4, in_channels=2)
    assert model.made_by.architecture == name and again.made_by == model.made_by
    assert not model.made_by.refused
    elsewhere = {"weights", "encoder_weights", "num_classes", "in_channels", "progress", "arguments"}
    assert set(noted) == set(inspect.signature(registry.find_factory(name)).parameters) - elsewhere  # defaults, too


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("unet", {"encoder": "resnet10t", "fusion": "add", "upsample": "pixel_shuffle", "in_channels": 5}),
        ("unet", {"base_channels": 4, "norm": None, "in_channels": 1, "dropout": 0.4}),
        (
            "pspnet",
            {"encoder": "resnet10t", "decoder_channels": 8, "aux": False, "bins": (1, 3), "align_corners": True},
        ),
        ("pspnet", {"encoder": "resnet10t", "decoder_channels": 8, "output_stride": 16, "fuse_kernel_size": 1}),
        ("deeplabv3plus", {"encoder": "resnet10t", "decoder_channels": 8, "rates": (2, 3), "dilate_first": True}),
        ("lraspp_mobilenet_v3_large", {"norm": "layer", "num_classes": 1}),
        *(("u2net_lite", {"norm": norm, "num_classes": 2}) for norm in NORMS),
    ],
)
def test_arguments_of_every_kind_come_back(name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    model = trained(name, **arguments)
    model.multilabel = True
    model.threshold = 0.375
    model.classes = [f"class {i}" for i in range(model.num_classes)]
    channels = model.in_channels
    model.preprocessing = Preprocessing((48, 64), "bicubic", "max", (0.1,) * channels, (0.7,) * channels)
    model.save_pretrained(tmp_path, **TERMS)
    model.classes = tuple(model.classes)
    again = SegmentationModel.from_pretrained(tmp_path)
    assert not again.training
    assert_same(model, again)
    assert again.made_by == model.made_by
    for module, same in zip(model.modules(), again.modules()):
        assert getattr(module, "p", None) == getattr(same, "p", None)  # of dropout


@pytest.mark.slow
def test_a_detector_comes_back(tmp_path: Path) -> None:
    model = build("mask_rcnn_resnet50_fpn", num_classes=3, min_size=64, box_score_thresh=0.0, norm_eps=0.25)
    model.classes = ("background", "cat", "dog")
    model.score_threshold = 0.125
    model.save_pretrained(tmp_path, **TERMS)
    again: Any = segzoo.create_model(f"local-dir:{tmp_path}")
    x = torch.rand(3, 40, 50)
    first, second = model.eval()([x])[0], again.eval()([x])[0]
    assert len(first["scores"]) and all(torch.equal(first[key], second[key]) for key in first)
    assert (again.score_threshold, again.classes) == (0.125, model.classes)
    assert structure_of(again) == structure_of(model) and again.backbone.body.bn1.eps == 0.25
    assert "instance-segmentation" in (tmp_path / "README.md").read_text()
    with pytest.raises(ValueError, match="holds a MaskRCNN, which is no SegmentationModel: segzoo.create_model"):
        SegmentationModel.from_pretrained(tmp_path)


def test_other_peoples_checkpoints_keep_what_they_imply(tmp_path: Path) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    theirs = smp.PSPNet("resnet18", encoder_weights=None, classes=2)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    model = segzoo.pspnet("resnet18", weights=tmp_path / "theirs.pth", aux=False).eval()
    model.save_pretrained(tmp_path / "a", **TERMS)
    again = segzoo.create_model(f"local-dir:{tmp_path / 'a'}").eval()
    assert again.align_corners and again.made_by.arguments["head_kernel_size"] == 3
    assert_same(model, again)
    assert "the weights in theirs.pth" in (tmp_path / "a/README.md").read_text()


def test_a_factory_of_ones_own(tmp_path: Path) -> None:
    def small_net(weights=None, *, width=2, num_classes=None, in_channels=3, norm="batch", progress=True):  # type: ignore[no-untyped-def]
        return build_model(
            UNet, "small_net", weights, base_channels=2 * width, num_classes=num_classes, in_channels=in_channels,
            norm=norm, progress=progress,
        )  # fmt: skip

    factory = segzoo.register_model("salient")(small_net)
    try:
        model = factory(width=3, num_classes=1).eval()
        model.save_pretrained(tmp_path, **TERMS)
        again = segzoo.create_model(f"local-dir:{tmp_path}").eval()
        assert model.head.in_channels == 6
        assert_same(model, again)
    finally:
        del registry._factories["small_net"], registry._tasks["small_net"]
    with pytest.raises(ValueError, match="holds a 'small_net', which is no registered model: import what registers it"):
        segzoo.create_model(f"local-dir:{tmp_path}")


@pytest.mark.parametrize(
    "made",
    [
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: torch.optim.swa_utils.AveragedModel(model).module,
        lambda model: torch.nn.SyncBatchNorm.convert_sync_batchnorm(model),
        lambda model: replace_norm(model, "frozen_batch"),
        lambda model: model.to(memory_format=torch.channels_last),
        lambda model: model.requires_grad_(False).train(),
    ],
)
def test_what_training_makes_of_a_model_can_be_saved(made: Callable[[Any], Any], tmp_path: Path) -> None:
    model = trained("unet", base_channels=4)
    expected = model.predict(pictures(model))
    made(model).save_pretrained(tmp_path, **TERMS)
    again = UNet.from_pretrained(tmp_path)
    assert torch.equal(again.predict(pictures(model)), expected)


# The weights fit what the user changes, as those of other checkpoints.


def test_given_arguments_take_the_place_of_saved_ones(street: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved = segzoo.create_model(f"local-dir:{street}")
    model: Any = segzoo.unet(weights=f"local-dir:{street}", num_classes=7, in_channels=1, dropout=0.25)
    assert (model.num_classes, model.in_channels, model.dropout.p, model.classes) == (7, 1, 0.25, None)
    assert model.made_by.arguments["norm"] == "group" and model.made_by.arguments["encoder"] == "resnet10t"
    assert "another number of classes" in caplog.text and "3 input channels" in caplog.text
    assert len(model.preprocessing.mean) == 1
    kept = "decoder.0.convs.0.conv.weight"
    assert torch.equal(model.state_dict()[kept], saved.state_dict()[kept])
    with pytest.warns(UserWarning, match="has another norm: γ and β were kept") as caught:
        other = segzoo.create_model(f"unet.local-dir:{street}", norm="batch")
    assert other.made_by.arguments["norm"] == "batch" and len(caught) == 1
    with pytest.warns(UserWarning, match="another norm") as caught:
        segzoo.unet(weights=f"local-dir:{street}", norm="batch")
    assert caught[0].filename == __file__
    with pytest.raises(ValueError, match="does not fit this model"):
        segzoo.create_model(f"local-dir:{street}", encoder="resnet18")


def test_the_record_says_where_it_comes_from(street: Path, tmp_path: Path) -> None:
    model: Any = segzoo.create_model(f"local-dir:{street}")
    record = model.weights
    assert record.architecture == "unet" and record.license == "cc-by-4.0" and record.metrics["our test"]["miou"] == 0.5
    assert record.sources[0].sha256 in (street / "config.json").read_text()
    assert segzoo.create_model(record.name).weights == record
    model.save_pretrained(tmp_path / "b", license="mit", training_data={"more": "CC0"})
    card = (tmp_path / "b/README.md").read_text()
    assert 'started from "street" (cc-by-4.0), trained on our streets (CC BY 4.0)' in card
    assert "random weights" not in card and str(street) not in card  # no place on this machine
    segzoo.u2net_lite().save_pretrained(tmp_path / "c", **TERMS)
    assert "started from u2net_lite.duts (Apache-2.0), trained on DUTS-TR" in (tmp_path / "c/README.md").read_text()


def test_classes_are_checked_by_from_pretrained(street: Path) -> None:
    assert type(UNet.from_pretrained(f"local-dir:{street}", num_classes=3)) is UNet
    with pytest.raises(ValueError, match="holds a UNet, which is no U2Net"):
        U2Net.from_pretrained(street)
    with pytest.raises(ValueError, match="holds a unet, not a fpn: segzoo.create_model"):
        segzoo.fpn(weights=f"local-dir:{street}")
    with pytest.raises(TypeError, match="names its weights already"):
        segzoo.create_model(f"local-dir:{street}", weights=None)
    with pytest.raises(TypeError, match="colour"):
        segzoo.create_model(f"local-dir:{street}", colour="red")


def test_predictor_and_command_line_take_it(street: Path, coffee: Path, tmp_path: Path) -> None:
    from segzoo.cli import main

    with Image.open(coffee) as image:
        image.resize((60, 40)).save(tmp_path / "in.png")
    prediction = segzoo.Predictor(f"local-dir:{street}", device="cpu")(tmp_path / "in.png")
    assert prediction.classes == ("road", "car", "sky")
    arguments = ["predict", str(tmp_path / "in.png"), str(tmp_path / "out.png"), "--model", f"local-dir:{street}"]
    assert main([*arguments, "--device", "cpu"]) == 0
    with Image.open(tmp_path / "out.png") as mask:
        assert np.array_equal(np.asarray(mask), prediction.mask)


# Whole or not at all.


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_crash_in_between_never_mixes_two_models(renames: int, tmp_path: Path, monkeypatch: Any) -> None:
    old, new = (trained("unet", base_channels=2, num_classes=n) for n in (2, 2))
    new.load_state_dict({key: value * 2 for key, value in new.state_dict().items()})
    old.save_pretrained(tmp_path / "a", **TERMS)
    replace, left = Path.replace, [renames]

    def crash(self: Path, target: Path) -> Path:
        if not left[0]:
            raise OSError(5, "the machine is gone", str(self))
        left[0] -= 1
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", crash)
    for folder in ("a", "b"):
        left[0] = renames
        with pytest.raises(OSError, match="the machine is gone"):
            new.save_pretrained(tmp_path / folder, **TERMS)
    monkeypatch.undo()
    if renames < 2:  # the card alone is new: the old model is whole
        assert_same(old, SegmentationModel.from_pretrained(tmp_path / "a"))
    else:
        with pytest.raises(ValueError, match="cut short, damaged or of another model"):
            SegmentationModel.from_pretrained(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="no folder" if renames == 0 else "holds no model"):
        SegmentationModel.from_pretrained(tmp_path / "b")
    new.save_pretrained(tmp_path / "a", **TERMS)
    new.save_pretrained(tmp_path / "b", **TERMS)
    assert_same(new, SegmentationModel.from_pretrained(tmp_path / "a"))
    assert not list(tmp_path.rglob("*.part"))


def test_a_full_disk_leaves_the_older_model(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    model = segzoo.u2net_lite().eval()
    model.save_pretrained(tmp_path / "a", **TERMS)
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        for folder in ("a", "b/c"):
            with pytest.raises(OSError, match="File too large"):
                model.save_pretrained(tmp_path / folder, license="mit", training_data={"other": "CC0"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
    assert not (tmp_path / "b").exists()
    assert_same(model, U2Net.from_pretrained(tmp_path / "a"))


def test_who_reads_while_another_writes_gets_one_model_or_a_sentence(tmp_path: Path) -> None:
    models = [trained("unet", base_channels=2, num_classes=n, norm=norm) for n, norm in ((2, "batch"), (3, "group"))]
    sums = {n.num_classes: sum(float(v.double().sum()) for v in n.state_dict().values()) for n in models}
    models[0].save_pretrained(tmp_path, **TERMS)
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            for model in models:
                model.save_pretrained(tmp_path, **TERMS)

    writer = threading.Thread(target=write)
    writer.start()
    seen: dict[int, int] = {}
    try:
        for _ in range(12):
            try:
                model: Any = segzoo.create_model(f"local-dir:{tmp_path}")
            except ValueError as error:
                assert "of another model" in str(error)
                continue
            assert sum(float(v.double().sum()) for v in model.state_dict().values()) == sums[model.num_classes]
            assert model.made_by.arguments["norm"] == {2: "batch", 3: "group"}[model.num_classes]
            seen[model.num_classes] = seen.get(model.num_classes, 0) + 1
    finally:
        done.set()
        writer.join()
    assert sum(seen.values()) > 2


def test_other_peoples_files_stay(tmp_path: Path) -> None:
    model = build("unet", base_channels=2)
    for name in ("README.md", "config.json", "model.safetensors"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text('{"precious": 1}')
        with pytest.raises(FileExistsError, match=f"{name} is there and is not save_pretrained's: choose another"):
            model.save_pretrained(folder, **TERMS)
        assert [path.read_text() for path in folder.iterdir()] == ['{"precious": 1}']
    with pytest.raises(NotADirectoryError, match="is a file, expected a folder to save the model in"):
        model.save_pretrained(tmp_path / "README/README.md", **TERMS)


# What is refused.


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def flip(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-7] ^= 1
    (folder / "model.safetensors").write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (cut, ValueError, r"model.safetensors has [\d,]+ bytes, config.json says [\d,]+: cut short, damaged"),
        (flip, ValueError, "has sha256 .*, expected .* as config.json says: cut short, damaged or of another model"),
        (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, "has a config.json and no model.safetensors"),
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "holds no model, as it has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), ValueError, "config.json is not JSON that can be read"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), ValueError, "config.json is not JSON"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), ValueError, "config.json is not JSON"),
        (lambda f: (f / "config.json").write_text("[]"), ValueError, "holds a list, expected an object"),
        (edited(lambda c: c.pop("format")), ValueError, 'is not segzoo\'s: it has no "format": "segzoo"'),
        (edited(lambda c: c.update(format_version=2)), ValueError, r"newer segzoo \(format version 2, this one reads"),
        (edited(lambda c: c.update(format_version="1")), ValueError, "must be an int from 1 on, got '1'"),
        (edited(lambda c: c.update(weights={})), ValueError, "weights must be the file model.safetensors, its sha256"),
        (edited(lambda c: c["weights"].update(file="../a")), ValueError, "weights must be the file model.safetensors"),
        (edited(lambda c: c.update(colour=1, x=2)), ValueError, "unknown field colour, x, expected architecture"),
        (edited(lambda c: c.pop("license")), ValueError, "the field license is missing"),
        (edited(lambda c: c.update(license="")), ValueError, "license must be a licence's name, got ''"),
        (edited(lambda c: c.update(num_classes=True)), ValueError, "num_classes must be a positive int, got True"),
        (edited(lambda c: c.update(threshold=2)), ValueError, "threshold must be a number in 0…1, got 2"),
        (edited(lambda c: c.update(threshold=float("nan"))), ValueError, "not JSON that can be read .NaN is no number"),
        (edited(lambda c: c.update(classes=["a"])), ValueError, "classes must be 3 names or None, got 1"),
        (edited(lambda c: c.update(preprocessing=[])), ValueError, "preprocessing must be an object"),
        (edited(lambda c: c["preprocessing"].pop("std")), ValueError, "the field of preprocessing std is missing"),
        (edited(lambda c: c["preprocessing"].update(std=[1, 0, 1])), ValueError, "std must not be 0"),
        (edited(lambda c: c["preprocessing"].update(size=[3])), ValueError, r"size must be \(height, width\), an int"),
        (edited(lambda c: c["preprocessing"].update(scale=255)), ValueError, "scale must be 255 or max, got 255"),
        (edited(lambda c: c.update(architecture="unett")), ValueError, "'unett', which is no registered model"),
        (edited(lambda c: c["arguments"].update(widht=1)), ValueError, "arguments that unet does not take: widht"),
        (edited(lambda c: c["arguments"].update(norm="gruop")), ValueError, "norm 'gruop': did you mean 'group'"),
        (edited(lambda c: c["arguments"].update(encoder="resnet18")), ValueError, "local-dir:.* does not fit"),
        (edited(lambda c: c.update(protocol=None)), ValueError, "metrics come with a protocol"),
    ],
)  # fmt: skip
def test_a_damaged_folder_gets_one_sentence(
    damage: Callable[[Path], object], error: type[Exception], words: str, broken: Path
) -> None:
    damage(broken)
    with pytest.raises(error, match=words) as caught:
        segzoo.create_model(f"local-dir:{broken}")
    assert "\n" not in str(caught.value)
    assert str(broken) in str(caught.value) or "norm" in words


def test_a_file_with_the_right_sum_that_is_no_safetensors(broken: Path) -> None:
    (broken / "model.safetensors").write_bytes(b"nothing of the kind")
    import hashlib

    digest = hashlib.sha256(b"nothing of the kind").hexdigest()
    edited(lambda c: c["weights"].update(sha256=digest, bytes=19))(broken)
    with pytest.raises(ValueError, match="is not a safetensors file that can be read"):
        segzoo.create_model(f"local-dir:{broken}")


def test_wrong_paths_name_the_nearest(broken: Path) -> None:
    parent = broken.parent
    for path, error, words in [
        ("local-dir:", ValueError, "no folder is named, expected the path of one that save_pretrained wrote"),
        (f"local-dir:{parent / 'steret'}", FileNotFoundError, f"there is no folder .*: did you mean {broken}"),
        (f"local-dir:{parent / 'q'}", FileNotFoundError, "there is no folder .*, expected one that save_pretrained"),
        (f"local-dir:{parent}", FileNotFoundError, f"no config.json: did you mean {broken}"),
        (f"local-dir:{broken / 'config.json'}", NotADirectoryError, "is a file, expected the folder"),
        (str(broken), ValueError, f"is a folder: 'local-dir:{broken}' is the model that was saved in it"),
    ]:
        with pytest.raises(error, match=words):
            segzoo.create_model(path)
    with pytest.raises(ValueError, match=f"is a folder: weights='local-dir:{broken}' loads the model in it"):
        segzoo.unet(weights=broken)


def changed(model: Any) -> Any:
    model.decoder[0].convs[0].act = torch.nn.SiLU()
    return model


def wrong(name: str, value: object) -> Callable[[], Any]:
    def make() -> Any:
        model = build("unet", base_channels=2)
        setattr(model, name, value)
        return model

    return make


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: UNet(base_channels=2), "this UNet was made from its class, not by a factory"),
        (lambda: build("unet", base_channels=2, norm=torch.nn.BatchNorm2d), "its norm is a type, .*a norm by name"),
        (lambda: build("unet", base_channels=8, norm=lambda n: torch.nn.GroupNorm(1, n)), "its norm is a function"),
        (lambda: build("unet", encoder=get_encoder("resnet10t", weights=None)), "its encoder is a TimmEncoder.*a name"),
        (lambda: replace_norm(build("unet", base_channels=4), "group"), r"after unet.*batch norm.*became GroupNorm"),
        (lambda: changed(build("unet", base_channels=2)), r"decoder.0.convs.0.act .ReLU became SiLU"),
        (lambda: segzoo.inference.optimize_for_inference(build("unet", base_channels=2)), "changed after"),
        (lambda: build("unet", base_channels=2).to("meta"), "is on the meta device and has no weights"),
        (wrong("classes", ("a", "b")), "classes must be 21 names or None, got 2"),
        (wrong("threshold", "half"), "threshold must be a number in 0…1, got 'half'"),
        (wrong("preprocessing", None), "preprocessing must be a segzoo.weights.Preprocessing, got NoneType"),
        (wrong("preprocessing", Preprocessing(mean=(0.5,))), "mean must be 3 numbers, a channel each"),
    ],
)  # fmt: skip
def test_a_model_that_would_not_come_back_is_refused(make: Callable[[], Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        make().save_pretrained(tmp_path / "a", **TERMS)
    assert "\n" not in str(caught.value) and not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"license": "Apache"},
            "unknown licence 'Apache': did you mean 'apache-2.0'.* license='other' with a license_n",
        ),
        ({"license": None}, "unknown licence None"),
        ({"license": "other"}, "license='other' needs a license_name"),
        ({"license_name": "mine"}, "license_name is for license='other', got 'mine' with license='cc-by-4.0'"),
        ({"training_data": {}}, "training_data must be .* of at least one data set, as"),
        ({"training_data": {"CamVid": ""}}, "training_data must be .*name: its licence"),
        ({"training_data": "CamVid"}, "training_data must be"),
        ({"metrics": {"CamVid": {"miou": 0.5}}}, "metrics come with a protocol that says how they were measured"),
        ({"metrics": {"miou": 0.5}, "protocol": "x"}, "metrics must be {data set: {metric: number}}, as .*'miou': 0.5"),
        ({"metrics": {"CamVid": {"miou": "good"}}, "protocol": "x"}, "metrics must be"),
        ({"name": " "}, "name must be a text, got ' '"),
    ],
)
def test_what_a_card_needs_is_asked_for(arguments: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        build("unet", base_channels=2).save_pretrained(tmp_path / "a", **{**TERMS, **arguments})
    assert "\n" not in str(caught.value) and not (tmp_path / "a").exists()
    with pytest.raises(TypeError, match="license"):
        build("unet", base_channels=2).save_pretrained(tmp_path / "a", training_data={"a": "b"})


# The card.


def test_the_hub_reads_the_card(tmp_path: Path, offline: None) -> None:
    model = segzoo.u2net_lite()
    model.save_pretrained(
        tmp_path,
        license="other",
        license_name="house-rules",
        license_link="https://example.org/rules",
        training_data={"ECSSD": "research only", "My: cups | 2020": "CC0-1.0"},
        metrics={"ECSSD 0801–1000": {"mae": torch.tensor(0.25), "max_f": 0.943, "odd": float("nan")}},
        protocol="as 'pysod': 320 × 320 # not min-max",
        name="Cups: a model",
        description="Finds cups.",
        limits="No saucers.",
    )
    card = ModelCard.load(tmp_path / "README.md")
    data = card.data
    assert (data.license, data.license_name, data.license_link) == (
        "other", "house-rules", "https://example.org/rules",
    )  # fmt: skip
    assert (data.library_name, data.pipeline_tag, data.model_name) == ("segzoo", "image-segmentation", "Cups: a model")
    assert data.datasets == ["ECSSD", "my-cups-2020"] and {"u2net_lite", "background-removal"} <= set(data.tags)
    assert [(r.dataset_name, r.metric_type, r.metric_value) for r in data.eval_results] == [
        ("ECSSD 0801–1000", "mae", 0.25), ("ECSSD 0801–1000", "max_f", 0.943),
    ]  # fmt: skip
    assert data.eval_results[0].metric_args == {"protocol": "as 'pysod': 320 × 320 # not min-max"}
    for text in (
        *("Finds cups.", "No saucers.", "| My: cups \\| 2020 | CC0-1.0 |", "| odd | not defined |", "house-rules"),
        *("320 × 320 pixels", "DUTS-TR", "1,128,333 parameters"),
    ):
        assert text in card.text, text


def test_the_cards_lines_run(tmp_path: Path, coffee: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from segzoo.cli import main

    with Image.open(coffee) as image:
        image.resize((60, 40)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    street = trained("unet", base_channels=2, num_classes=3)
    street.preprocessing = Preprocessing((48, 64))
    street.save_pretrained("street", **TERMS)
    cups = segzoo.u2net_lite()
    cups.preprocessing = Preprocessing((64, 64))
    cups.save_pretrained("cups", **TERMS)
    for folder, result in (("street", "overlay.png"), ("cups", "cutout.png")):
        card = Path(folder, "README.md").read_text().replace("PATH", folder)
        exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], {})
        with Image.open(result) as image:
            pixels = np.array(image)
        Path(result).unlink()
        command = re.search(r"`segzoo ([^`]*)`", card)[1].split()
        assert main(command) == 0
        with Image.open(result) as image:
            np.testing.assert_array_equal(image, pixels)


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: text.strip() != "")


@given(
    training_data=st.dictionaries(texts, texts, min_size=1, max_size=3),
    metrics=st.dictionaries(texts, st.dictionaries(texts, st.floats(-1e9, 1e9), min_size=1, max_size=2), max_size=2),
    text=texts,
)
def test_any_text_goes_through_config_and_card(
    training_data: dict[str, str], metrics: dict[str, dict[str, float]], text: str
) -> None:
    saved = SavedModel(
        architecture="unet",
        arguments={"norm": text, "rates": (1, 2)},
        num_classes=1,
        in_channels=3,
        multilabel=False,
        classes=(text,),
        preprocessing=Preprocessing(),
        threshold=0.5,
        score_threshold=None,
        name=text,
        license="mit",
        license_name=None,
        license_link=None,
        training_data=training_data,
        started_from=None,
        metrics=metrics,
        protocol=text,
        description=None,
        limits=None,
    )
    again = SavedModel.from_json(json.loads(json.dumps(saved.to_json())))
    assert again == saved
    data = ModelCard(model_card(again, task="semantic", parameters=1)).data
    found = {(r.dataset_name, r.metric_type, r.metric_value) for r in data.eval_results or ()}
    assert found == {(d, m, x) for d, values in metrics.items() for m, x in values.items()}
    assert len(set(data.datasets)) == len(training_data)
