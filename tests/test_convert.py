"""Converting checkpoints: identified by their keys, and the outputs of whoever's model they were."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from conftest import ROOT, U2NETP_SHA256
from families import shaken
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import segzoo
from segzoo.encoders.mit import VARIANTS
from segzoo.models._conversion import Conversion, convert_checkpoint
from segzoo.registry import create_untrained
from segzoo.weights.convert import _ISNET, _U2NET, read_arguments, read_raw, read_state_dict
from segzoo.weights.encoder_names import resnet_name
from segzoo.weights.identify import Found, identify

pytestmark = pytest.mark.usefixtures("one_thread")


def of_torchvision(name: str, **arguments: Any) -> nn.Module:
    return torchvision.models.get_model(name, weights=None, weights_backbone=None, **arguments)


def of_smp(name: str, encoder: str, **arguments: Any) -> nn.Module:
    smp = pytest.importorskip("segmentation_models_pytorch")
    return getattr(smp, name)(encoder, encoder_weights=None, **{"classes": 3, **arguments})


def official_u2net(monkeypatch: pytest.MonkeyPatch, lite: bool) -> nn.Module:
    """The authors' module, written again for the benchmarks; its one table is changed for the small one."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    sys.modules.pop("_official_u2net", None)
    import _official_u2net as official

    if lite:
        for table, given in ((official.DOWN, 64), (official.UP, 128)):
            rows = {stage: (row[0], given, 16, 64) for stage, row in table.items()}
            monkeypatch.setattr(official, "DOWN" if table is official.DOWN else "UP", rows)
        official.DOWN["stage1"] = (7, 3, 16, 64)
    return official.OfficialU2Net()


def built(made: Conversion) -> nn.Module:
    """The model that the report says to build."""
    model: nn.Module = eval(made.call(), {"segzoo": segzoo})
    return model.eval()


def main_output(output: Any) -> Tensor:
    output = output["out"] if isinstance(output, dict) else getattr(output, "logits", output)
    return output[0] if isinstance(output, (list, tuple)) else output


def assert_same(made: Conversion, theirs: nn.Module, source: Path, size: tuple[int, int] = (64, 64)) -> None:
    """Their outputs, and the bits that loading the source itself gives."""
    arguments = {**made.arguments, "in_channels": made.in_channels}
    ours, direct = built(made), segzoo.create_model(made.architecture, weights=source, **arguments).eval()
    x = torch.randn(2, made.in_channels, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found, same = main_output(theirs(x)), ours(x), direct(x)
    assert expected.std() > 0
    torch.testing.assert_close(found, expected, atol=1e-5 * max(1, expected.abs().max().item()), rtol=0)
    assert torch.equal(found, same)


PEERS: list[tuple[Callable[[], nn.Module], str, str, dict[str, Any]]] = [
    (lambda: of_torchvision("fcn_resnet50", num_classes=7, aux_loss=True), "torchvision", "fcn_resnet50", {}),
    (
        lambda: of_torchvision("deeplabv3_mobilenet_v3_large", num_classes=7),
        "torchvision",
        "deeplabv3_mobilenet_v3_large",
        {"aux": False},
    ),
    (
        lambda: of_torchvision("lraspp_mobilenet_v3_large", num_classes=1),
        "torchvision",
        "lraspp_mobilenet_v3_large",
        {},
    ),
    (
        lambda: of_smp("Unet", "resnet18", in_channels=4, decoder_channels=(64, 32, 16, 16, 8)),
        "segmentation_models_pytorch",
        "unet",
        {"encoder": "resnet18", "decoder_channels": [64, 32, 16, 16, 8]},
    ),
    (
        lambda: of_smp("Unet", "tu-resnet18", aux_params={"classes": 5}),
        "segmentation_models_pytorch",
        "unet",
        {"encoder": "resnet18"},
    ),
    (
        lambda: of_smp("UnetPlusPlus", "resnet18", decoder_channels=(64, 32, 16, 16, 8)),
        "segmentation_models_pytorch",
        "unet_plusplus",
        {"encoder": "resnet18", "decoder_channels": [64, 32, 16, 16, 8]},
    ),
    (
        lambda: of_smp("FPN", "resnet18", decoder_merge_policy="cat", decoder_pyramid_channels=64),
        "segmentation_models_pytorch",
        "fpn",
        {"encoder": "resnet18", "merge": "concat", "pyramid_channels": 64},
    ),
    (
        lambda: of_smp("PSPNet", "resnet18", psp_out_channels=64),
        "segmentation_models_pytorch",
        "pspnet",
        {
            **{"encoder": "resnet18", "decoder_channels": 64, "aux": False, "encoder_depth": 3, "output_stride": 32},
            **{"fuse_kernel_size": 1, "head_kernel_size": 3, "align_corners": True},
        },
    ),
    (
        lambda: of_smp("DeepLabV3Plus", "resnet34"),
        "segmentation_models_pytorch",
        "deeplabv3plus",
        {"encoder": "resnet34", "rates": (12, 24, 36), "align_corners": True, "dilate_first": True},
    ),
]


QUICK = (2, 7)  # of each kind one; the others are slow


@pytest.mark.parametrize(
    "case",
    [pytest.param(row, id=row[2], marks=[pytest.mark.slow] * (i not in QUICK)) for i, row in enumerate(PEERS)],
)
def test_peers_outputs_after_conversion(case: Any, tmp_path: Path) -> None:
    make, kind, architecture, arguments = case
    theirs = shaken(make())
    torch.save({"state_dict": theirs.state_dict(), "epoch": 3}, tmp_path / "theirs.pth")
    made = convert_checkpoint(tmp_path / "theirs.pth", tmp_path / "ours.safetensors")
    assert (made.format, made.architecture, dict(made.arguments)) == (kind, architecture, arguments)
    assert made.num_classes == main_output(theirs(torch.zeros(1, made.in_channels, 64, 64))).shape[1]
    assert_same(made, theirs, tmp_path / "theirs.pth")
    # nothing is lost in silence
    values = {value.data_ptr() for value in theirs.state_dict().values()}
    assert made.converted + len(made.dropped) == len(theirs.state_dict()) and values
    for key, reason in made.dropped.items():
        assert key.startswith(("encoder.layer3", "encoder.layer4", "classification_head")), (key, reason)


def test_a_converted_file_brings_its_arguments(tmp_path: Path) -> None:
    """Nothing has to be named: encoder, smp's rates and its alignment are the file's."""
    theirs = shaken(of_smp("DeepLabV3Plus", "tu-mobilenetv3_small_050", decoder_atrous_rates=(2, 4, 6)))
    source, file = tmp_path / "theirs.pth", tmp_path / "ours.safetensors"
    torch.save(theirs.state_dict(), source)
    with pytest.raises(ValueError, match=r"theirs\.pth cannot be converted: its encoder does not show.*encoder='resn"):
        convert_checkpoint(source, file)
    with pytest.raises(ValueError, match="unknown encoder 'mobilenetv3_small_05'.* did you mean"):
        convert_checkpoint(source, file, encoder="mobilenetv3_small_05")
    assert not file.exists()
    made = convert_checkpoint(source, file, encoder="mobilenetv3_small_050", rates=(2, 4, 6))
    (note,) = made.notes  # what was asked for was given
    assert "output_stride= is given" in note
    assert any(
        "its rates do not show in its keys: smp's (12, 24, 36)" in n for n in identify(theirs.state_dict()).notes
    )
    assert list(made.arguments) == ["encoder", "rates", "align_corners", "dilate_first"]
    assert read_arguments(file) == json.loads(json.dumps(dict(made.arguments)))
    x = torch.randn(1, 3, 64, 64)
    model = segzoo.deeplabv3plus(weights=file).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(x), theirs(x), atol=1e-5, rtol=0)
    with torch.device("meta"):  # what is given counts
        other = segzoo.deeplabv3plus(weights=file, rates=(1, 2, 3))
    rates = [m.dilation[0] for m in other.aspp.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert rates == [1, 2, 3] and other.align_corners


@pytest.mark.parametrize(
    "form",
    [
        "transformers 4",
        "NVIDIA",
        *(pytest.param(form, marks=pytest.mark.slow) for form in ("transformers 5", "segzoo")),
    ],
)
def test_segformers_outputs_after_conversion(form: str, tmp_path: Path) -> None:
    from test_segformer import reference
    from test_segformer import shaken as shaken_all

    theirs = shaken_all(reference(VARIANTS["mit_b0"], 256, 5))
    if form == "transformers 4":
        theirs.save_pretrained(tmp_path / "theirs")
        source = tmp_path / "theirs/model.safetensors"
    else:
        source = tmp_path / "theirs.pth"
        state = theirs.state_dict()
        if form == "segzoo":
            model = segzoo.segformer(num_classes=5)
            model.load_state_dict(type(model).convert(state))
            state = model.state_dict()
        if form == "NVIDIA":
            theirs.save_pretrained(tmp_path / "theirs")
            state = nvidia_keys(load_file(tmp_path / "theirs/model.safetensors"))
        torch.save(state, source)
    made = convert_checkpoint(source, tmp_path / "ours.safetensors")
    assert made.format == (form if form == "segzoo" else f"{form} SegFormer")
    assert made.architecture == "segformer" and made.arguments == {"encoder": "mit_b0"} and made.num_classes == 5
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = nn.functional.interpolate(theirs(x).logits, size=(64, 96), mode="bilinear", align_corners=False)
        torch.testing.assert_close(built(made)(x), expected, atol=1e-5, rtol=0)
        assert torch.equal(built(made)(x), segzoo.segformer(weights=source).eval()(x))
    assert list(made.dropped) == (
        ["decode_head.conv_seg.weight", "decode_head.conv_seg.bias"] if form == "NVIDIA" else []
    )


def nvidia_keys(file: dict[str, Tensor]) -> dict[str, Tensor]:
    import test_segformer

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(test_segformer, "TINY", VARIANTS["mit_b0"])
        return test_segformer.nvidia_keys(file)


def test_the_official_u2nets_outputs_after_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = shaken(official_u2net(monkeypatch, lite=True))
    torch.save({f"module.{key}": value for key, value in theirs.state_dict().items()}, tmp_path / "u2netp.pth")
    made = convert_checkpoint(tmp_path / "u2netp.pth", tmp_path / "ours.safetensors")
    assert (made.format, made.architecture, made.arguments) == ("official U²-Net", "u2net_lite", {})
    assert made.parameters == 1_128_333 and (made.num_classes, made.in_channels) == (1, 3)
    assert_same(made, theirs, tmp_path / "u2netp.pth", (96, 80))
    assert len(made.dropped) == 112 and set(made.dropped.values()) == {
        "folded into the running mean of the norm after it"
    }
    assert made.converted + 112 == len(theirs.state_dict())
    assert "left out: 112 tensors (stage1.rebnconvin.conv_s1.bias, stage1" in made.report()


@pytest.mark.parametrize("bias", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_tutorials_u2nets_outputs_after_conversion(bias: bool, tmp_path: Path) -> None:
    """Its keys are ours; its author's older checkpoints have biases before the norms."""
    model = shaken(segzoo.u2net_lite(weights=None))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for key in [key for key in state if key.endswith(".bn.running_mean")] if bias else []:
        shift = torch.randn_like(state[key])
        state[key.replace("bn.running_mean", "conv.bias")] = shift
        state[key] += shift  # the bias is taken away again
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "a.pth")
    made = convert_checkpoint(tmp_path / "a.pth", tmp_path / "ours.safetensors")
    assert (made.format, made.architecture) == ("tutorial U²-Net" if bias else "segzoo", "u2net_lite")
    assert_same(made, model, tmp_path / "a.pth")
    lacking = {key: value for key, value in state.items() if key != "encode_modules.2.conv_in.bn.running_mean"}
    torch.save(lacking, tmp_path / "lacking.pth")
    with pytest.raises(ValueError, match=r"encode_modules\.2\.conv_in\.bn\.running_mean"):
        convert_checkpoint(tmp_path / "lacking.pth", tmp_path / "lacking.safetensors")


def test_the_published_onnx_file_is_converted(u2netp_onnx: Path, tmp_path: Path) -> None:
    made = convert_checkpoint(u2netp_onnx, tmp_path / "ours.safetensors")
    assert (made.format, made.architecture, made.source_sha256) == ("ONNX", "u2net_lite", U2NETP_SHA256)
    assert any("norms are folded" in note for note in made.notes)
    assert any("the published weights u2net_lite.duts" in note for note in made.notes)
    x = torch.rand(1, 3, 96, 96)
    model = built(made)
    with torch.no_grad():
        assert torch.equal(model(x), segzoo.u2net_lite(u2netp_onnx).eval()(x))
    torch.testing.assert_close(model.predict(x), segzoo.u2net_lite().predict(x), atol=1e-5, rtol=0)


# What is identified, by shapes alone.


def on_meta(make: Callable[[], nn.Module]) -> dict[str, Tensor]:
    with torch.device("meta"):
        return make().state_dict()


DEFAULT_ENCODERS = {
    **{"unet_plusplus": "resnet34", "fpn": "resnet34", "deeplabv3plus": "resnet50", "pspnet": "resnet50"},
    **{"segformer": "mit_b0", "fcn8s": "vgg16"},
}


COVERED = ("pspnet", "deeplabv3plus", "fpn", "unet_plusplus", "fcn_resnet101", "deeplabv3_resnet101")  # below, smaller


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in COVERED)) for name in segzoo.list_models()],
)
def test_models_of_ours_are_identified(name: str) -> None:
    extra = {"in_channels": 4} if name != "mask_rcnn_resnet50_fpn" else {}
    state = on_meta(lambda: create_untrained(name, num_classes=6, **extra))
    found = identify(state)
    kind = "torchvision" if name.startswith(("fcn_", "deeplabv3_", "lraspp", "mask")) else "segzoo"
    assert (found.format, found.architecture, found.num_classes) == (kind, name, 6)
    assert found.in_channels == (4 if extra else 3)
    assert not [note for note in found.notes if "encoder" in note]
    if found.arguments != {"encoder": DEFAULT_ENCODERS.get(name)}:
        again = on_meta(lambda: create_untrained(name, num_classes=6, **extra, **found.arguments))
        assert {key: value.shape for key, value in again.items()} == {key: value.shape for key, value in state.items()}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("unet", {"base_channels": 32, "decoder_channels": [64, 64, 32, 8]}),
        ("unet", {"encoder": "resnet101", "decoder_channels": [64, 32, 16, 16, 8]}),
        ("unet_plusplus", {"encoder": "resnet18", "decoder_channels": [64, 32, 16, 16, 8]}),
        ("fpn", {"encoder": "resnet18", "pyramid_channels": 64, "decoder_channels": 32, "merge": "concat"}),
        ("pspnet", {"encoder": "resnet18", "aux": False, "decoder_channels": 64}),
        ("deeplabv3plus", {"encoder": "resnet18", "decoder_channels": 64, "skip_channels": 24}),
        ("segformer", {"encoder": "mit_b1"}),
        ("segformer", {"encoder": "mit_b3", "decoder_channels": 256}),
        ("fcn8s", {"encoder": "vgg13", "norm": "batch", "head_channels": 64}),
        ("fcn_resnet101", {"aux": False}),
        ("deeplabv3_resnet101", {"aux": False}),
    ],
)
def test_arguments_that_show_are_found(name: str, arguments: dict[str, Any]) -> None:
    found = identify(on_meta(lambda: create_untrained(name, **arguments)))
    assert (found.architecture, dict(found.arguments)) == (name, arguments)


@pytest.mark.parametrize("lite", [True, False])
def test_official_u2nets_are_identified(lite: bool) -> None:
    ours = on_meta(lambda: create_untrained("u2net_lite" if lite else "u2net_full"))
    official = {theirs: ours[mine] for theirs, mine in _U2NET.keys().items() if mine in ours}
    for key in [key for key in official if key.endswith("running_mean")]:
        official[key.replace("bn_s1.running_mean", "conv_s1.bias")] = official[key]
    found = identify(official)
    assert found == Found("official U²-Net", "u2net_lite" if lite else "u2net_full", {}, 1, 3)
    isnet = on_meta(lambda: create_untrained("isnet", num_classes=2))
    official = {theirs: isnet[mine] for theirs, mine in _ISNET.keys().items() if mine in isnet}
    assert identify(official) == Found("official IS-Net", "isnet", {}, 2, 3)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnet152",
        "resnext50_32x4d",
        "resnext101_32x8d",
        "wide_resnet50_2",
    ],
)
def test_resnets_are_named(name: str) -> None:
    state = on_meta(lambda: getattr(torchvision.models, name)())
    state = {f"encoder.{key}": value for key, value in state.items() if not key.startswith("fc.")}
    assert resnet_name(state, "encoder.") == name
    begun = {key: value for key, value in state.items() if not key.startswith(("encoder.layer3", "encoder.layer4"))}
    alike = ("resnet50", "resnet101", "resnext50_32x4d", "wide_resnet50_2")  # the same as another until there
    assert resnet_name(begun, "encoder.") == (None if name in alike else name)
    odd = {**state, "encoder.layer1.0.se.fc1.weight": state["encoder.conv1.weight"]}
    assert resnet_name(odd, "encoder.") is None


@pytest.mark.slow
@pytest.mark.parametrize("form", ["", "tu-"])
@pytest.mark.parametrize("depth", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d"])
def test_smps_encoders_are_named(depth: str, form: str) -> None:
    names = {"Unet": "unet", "FPN": "fpn", "DeepLabV3Plus": "deeplabv3plus", "PSPNet": "pspnet"}
    for theirs in ("Unet", "PSPNet") if depth == "resnet18" else ("Unet",):
        found = identify(on_meta(lambda theirs=theirs: of_smp(theirs, form + depth)))
        assert (found.format, found.architecture) == ("segmentation_models_pytorch", names[theirs])
        assert found.arguments["encoder"] == depth and (found.num_classes, found.in_channels) == (3, 3)
    if form == "" and depth in ("resnet50", "resnet101"):  # the stages that PSPNet has no use for tell them apart
        assert identify(on_meta(lambda: of_smp("PSPNet", depth))).arguments["encoder"] == depth


def test_segformers_of_all_sizes_are_identified() -> None:
    from test_segformer import reference

    for name, decoder in (("mit_b0", 256), ("mit_b2", 768), ("mit_b5", 768)):
        found = identify(on_meta(lambda name=name, decoder=decoder: reference(VARIANTS[name], decoder, 19)))
        assert found == Found("transformers 5 SegFormer", "segformer", {"encoder": name}, 19, 3), found


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: of_smp("Unet", "resnet18", decoder_attention_type="scse"), "attention in its decoder"),
        (lambda: of_smp("Linknet", "resnet18"), "another model than Unet, UnetPlusPlus, FPN, PSPNet and DeepLabV3Plus"),
        (lambda: of_smp("DeepLabV3", "resnet18"), "another model than Unet"),
        (lambda: of_smp("MAnet", "resnet18"), "which the models here have not"),
        (lambda: torchvision.models.resnet50(), "it is the backbone resnet50 alone"),
        (lambda: nn.Linear(2, 2), "no network that is known here"),
        (lambda: of_torchvision("deeplabv3_resnet50").backbone, "it is the backbone resnet50 alone"),
    ],
)
def test_what_is_not_converted_says_so(make: Callable[[], nn.Module], words: str, tmp_path: Path) -> None:
    assert words in identify(on_meta(make)).notes[0]
    assert identify(on_meta(make)).architecture is None


# What is refused, and what is written.


@pytest.fixture(scope="module")
def lite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lite") / "lite.pth"
    torch.save({"model": segzoo.u2net_lite().state_dict()}, path)
    return path


def test_what_is_written(lite: Path, tmp_path: Path) -> None:
    made = convert_checkpoint(lite, tmp_path / "a.safetensors")
    again = convert_checkpoint(lite, tmp_path / "b.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    assert made.sha256 == hashlib.sha256(content).hexdigest() == again.sha256
    assert made.source_sha256 == hashlib.sha256(lite.read_bytes()).hexdigest()
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {
            "format": "pt",
            "segzoo_architecture": "u2net_lite",
            "segzoo_arguments": "{}",
            "converted_from": "segzoo",
            "source_sha256": made.source_sha256,
        }
    written, original = load_file(tmp_path / "a.safetensors"), segzoo.u2net_lite().state_dict()
    assert written.keys() == original.keys() and all(torch.equal(v, original[k]) for k, v in written.items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.format = "other"  # type: ignore[misc]
    assert json.loads(json.dumps(made.to_json()))["architecture"] == "u2net_lite"
    report = made.report().splitlines()
    assert report[0].endswith("segzoo, u2net_lite, 1 class, 3 channels, 1,128,333 parameters")
    assert report[-1] == f"use: segzoo.u2net_lite(weights={str(made.out)!r})"
    # what was converted can be converted
    assert convert_checkpoint(made.out, tmp_path / "c.safetensors").architecture == "u2net_lite"


def test_half_precision_views_and_names_of_one_tensor_stay_what_they_are(lite: Path, tmp_path: Path) -> None:
    state = read_state_dict(lite)
    state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    shared = torch.rand(3, 64).half()
    state |= {f"encode_modules.{i}.conv_in.bn.bias": shared[1] for i in (1, 2)}
    torch.save(state, tmp_path / "half.pth")
    made = convert_checkpoint(tmp_path / "half.pth", tmp_path / "half.safetensors")
    written = load_file(made.out)
    assert all(value.dtype == state[key].dtype and torch.equal(value, state[key]) for key, value in written.items())


def test_counters_come_and_go(lite: Path, tmp_path: Path) -> None:
    old = {key: value for key, value in read_state_dict(lite).items() if "num_batches" not in key}
    torch.save(old, tmp_path / "old.pth")
    made = convert_checkpoint(tmp_path / "old.pth", tmp_path / "new.safetensors")
    assert len(made.added) == 112 and "added: 112 counters" in made.report() and made.converted == len(old)
    x = torch.rand(1, 3, 40, 40)
    assert torch.equal(built(made).predict(x), segzoo.u2net_lite().predict(x))


def test_where_the_result_may_go(lite: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.pth: what is written is a safetensors file and must end in \.safete"):
        convert_checkpoint(lite, tmp_path / "a.pth")
    out = tmp_path / "a.safetensors"
    convert_checkpoint(lite, out)
    before = out.read_bytes()
    with pytest.raises(FileExistsError, match=r"a\.safetensors is there already: .* overwrite=True"):
        convert_checkpoint(lite, out)
    for same in (out, tmp_path / "link.safetensors"):
        if same != out:
            same.symlink_to(out)
        with pytest.raises(ValueError, match="is the file that is to be converted"):
            convert_checkpoint(out, same, overwrite=True)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        convert_checkpoint(lite, tmp_path / "none" / "a.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder, expected a file to write"):
        convert_checkpoint(lite, tmp_path / "folder.safetensors")
    with pytest.raises(FileNotFoundError, match="there is no weights file"):
        convert_checkpoint(tmp_path / "none.pth", tmp_path / "b.safetensors")
    assert out.read_bytes() == before
    assert convert_checkpoint(lite, out, overwrite=True).sha256 == hashlib.sha256(before).hexdigest()


def test_what_does_not_fit_is_not_written(lite: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    state = read_state_dict(lite)
    key = "encode_modules.1.conv_in.conv.weight"
    broken = {
        "missing keys": {k: v for k, v in state.items() if k != key},
        "unexpected keys": {**state, "fc.weight": torch.zeros(1)},
        "other shapes": {**state, key: state[key][:, :2]},
    }
    for words, content in broken.items():
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(
            ValueError, match=rf"a\.pth \(as u2net_lite\) does not fit this model: 1 {words} \((enc|fc)"
        ):
            convert_checkpoint(tmp_path / "a.pth", out)
    with pytest.raises(ValueError, match=r"\(as u2net_full\) does not fit this model: \d+ other shapes"):
        convert_checkpoint(lite, out, architecture="u2net_full")
    with pytest.raises(ValueError, match="unknown model 'u2net_litte': did you mean 'u2net_lite'"):
        convert_checkpoint(lite, out, architecture="u2net_litte")
    for arguments, words in (
        ({"encoder": "resnet18"}, "u2net_lite takes no argument 'encoder'"),
        ({"num_classes": 2}, "num_classes is none of a conversion's arguments"),
        ({"weights": "duts"}, "weights is none of a conversion's arguments"),
        ({"norm": nn.BatchNorm2d}, "norm cannot be written into a file"),
    ):
        with pytest.raises(TypeError, match=words):
            convert_checkpoint(lite, out, **arguments)
    save_file({"fc.weight": torch.zeros(2, 2)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"b\.safetensors cannot be converted: .* known here; .*give its architecture"):
        convert_checkpoint(tmp_path / "b.safetensors", out)
    assert not out.exists() and not [p for p in tmp_path.iterdir() if p.suffix == ".part"]


def test_another_norm_is_named(tmp_path: Path) -> None:
    model = segzoo.u2net_lite(weights=None, norm="group").eval()
    torch.save(model.state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match="does not fit this model"):
        convert_checkpoint(tmp_path / "a.pth", tmp_path / "a.safetensors")
    assert "name the norm" in identify(read_raw(tmp_path / "a.pth").state).notes[0]
    made = convert_checkpoint(tmp_path / "a.pth", tmp_path / "a.safetensors", norm="group")
    assert made.arguments == {"norm": "group"}
    x = torch.rand(1, 3, 40, 40)
    assert torch.equal(built(made).predict(x), model.predict(x))


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["resnet50", "tu-resnet34"])
@pytest.mark.parametrize("name", ["Unet", "UnetPlusPlus", "FPN", "PSPNet", "DeepLabV3Plus"])
def test_more_of_smps_outputs(name: str, encoder: str, tmp_path: Path) -> None:
    theirs = shaken(of_smp(name, encoder, in_channels=4))
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    made = convert_checkpoint(tmp_path / "theirs.pth", tmp_path / "ours.safetensors")
    assert_same(made, theirs, tmp_path / "theirs.pth")


@pytest.mark.slow
def test_larger_networks_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [official_u2net(monkeypatch, lite=False), of_torchvision("fcn_resnet101", aux_loss=True)]
    models.append(of_torchvision("deeplabv3_resnet101", num_classes=3))
    for i, theirs in enumerate(map(shaken, models)):
        torch.save(theirs.state_dict(), tmp_path / f"{i}.pth")
        assert_same(
            convert_checkpoint(tmp_path / f"{i}.pth", tmp_path / f"{i}.safetensors"), theirs, tmp_path / f"{i}.pth"
        )


@pytest.mark.slow
def test_mask_rcnns_outputs(tmp_path: Path) -> None:
    small = {"min_size": 64, "box_score_thresh": 0.0}
    torch.manual_seed(0)
    theirs = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=4, **small
    )
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    made = convert_checkpoint(tmp_path / "theirs.pth", tmp_path / "ours.safetensors")
    assert (made.architecture, made.num_classes) == ("mask_rcnn_resnet50_fpn", 4)
    assert set(made.dropped.values()) == {"a counter that the norms of this model have not"}
    pictures = [torch.rand(3, 60, 80)]
    with torch.no_grad():
        expected = theirs.eval()(pictures)[0]
        found = segzoo.mask_rcnn_resnet50_fpn(made.out, **small).eval()(pictures)[0]
    assert len(expected["boxes"]) > 0
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "options", "argument"),
    [
        ("Unet", {"decoder_interpolation": "bilinear"}, {"upsample": "bilinear"}),
        ("DeepLabV3Plus", {"encoder_output_stride": 8}, {"output_stride": 8}),
        ("FPN", {"decoder_interpolation": "bilinear"}, None),
        ("UnetPlusPlus", {"decoder_interpolation": "bilinear"}, None),
    ],
)
def test_what_keys_do_not_tell_is_said_and_can_be_given(
    kind: str, options: dict[str, Any], argument: dict[str, Any] | None, tmp_path: Path
) -> None:
    theirs = shaken(of_smp(kind, "resnet18", **options)).eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    made = convert_checkpoint(tmp_path / "theirs.pth", tmp_path / "a.safetensors")
    word = next(iter(argument)) if argument else "another would give other maps"
    assert any(word in note for note in made.notes)
    if argument is not None:
        made = convert_checkpoint(tmp_path / "theirs.pth", tmp_path / "b.safetensors", **argument)
        assert not any(word in note for note in made.notes)
        x = torch.randn(1, 3, 64, 64)
        ours = segzoo.create_model(made.architecture, weights=tmp_path / "b.safetensors").eval()
        with torch.no_grad():
            expected = theirs(x)
            assert (ours(x) - expected).abs().max() <= 1e-5 * expected.abs().max().clamp_min(1)


def test_published_weights_bring_what_their_record_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's Mask R-CNN has other norms with its published weights than with any others."""
    record = segzoo.get_weights("mask_rcnn_resnet50_fpn.coco")
    monkeypatch.setattr("segzoo.models._conversion._published", lambda sha256: [record])
    torch.save(
        torchvision.models.detection.maskrcnn_resnet50_fpn(weights_backbone=None).state_dict(), tmp_path / "a.pth"
    )
    made = convert_checkpoint(tmp_path / "a.pth", tmp_path / "a.safetensors")
    assert made.arguments["norm_eps"] == 0.0 and not any("norm_eps=0.0" in note for note in made.notes)
    model: Any = segzoo.create_model("mask_rcnn_resnet50_fpn", weights=tmp_path / "a.safetensors")
    assert {m.eps for m in model.backbone.body.modules() if "FrozenBatchNorm" in type(m).__name__} == {0.0}
