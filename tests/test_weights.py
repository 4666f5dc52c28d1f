"""Weights: the catalogue, reading and converting files, fitting them to a model, calibration."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import logging
import pickle
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from safetensors.torch import save_file
from test_u2net import TINY_DECODER, TINY_ENCODER, tiny
from torch import Tensor, nn

import segzoo
from segzoo.layers import ConvNormAct
from segzoo.models import U2Net
from segzoo.weights import Preprocessing
from segzoo.weights.adapt import adapt_state_dict
from segzoo.weights.calibrate import calibrate
from segzoo.weights.calibrate import main as make_bundled_file
from segzoo.weights.convert import read_state_dict, u2net_from_official, u2net_from_onnx
from segzoo.weights.onnx_reader import read_convolutions

HEIGHTS = {"1": 7, "2": 6, "3": 5, "4": 4, "5": 4, "6": 4, "5d": 4, "4d": 4, "3d": 5, "2d": 6, "1d": 7}


# The catalogue.


@pytest.mark.parametrize("name", segzoo.list_weights())
def test_every_record_is_whole(name: str) -> None:
    record = segzoo.get_weights(name)
    assert record.architecture in segzoo.list_models(pretrained=True)
    assert f"{record.architecture}.{record.tag}" == name
    for text in (record.license, record.source, record.training_data, record.paper, record.protocol):
        assert text.strip()
    # torchvision publishes the first 8 digits, in the file's name; the source says so
    digits = "[0-9a-f]{8}" if "torchvision" in record.source else "[0-9a-f]{64}"
    # NVIDIA publishes none, but the Hub has its own of every file
    unknown = {s.kind for s in record.sources if s.sha256 is None}
    assert unknown <= ({"hub"} if record.architecture == "segformer" else set())
    assert record.sources and all(re.fullmatch(digits, s.sha256) for s in record.sources if s.sha256 is not None)
    assert len(record.classes) == record.num_classes
    assert len(record.preprocessing.mean) == len(record.preprocessing.std) == record.in_channels
    for source in record.sources:
        if source.kind == "bundled":
            path = Path(segzoo.weights.__file__).with_name(source.location)
            assert hashlib.sha256(path.read_bytes()).hexdigest() == source.sha256


def test_records_are_immutable_and_travel() -> None:
    record = segzoo.get_weights("u2net_lite.duts")
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.license = "MIT"  # type: ignore[misc]
    with pytest.raises(TypeError):
        record.published_metrics["ECSSD"]["mae"] = 0  # type: ignore[index]
    assert pickle.loads(pickle.dumps(record)) == copy.deepcopy(record) == record
    assert hash(record) == hash(copy.deepcopy(record))


def test_default_weights_of_every_factory_are_published() -> None:
    import inspect

    from segzoo.registry import find_factory

    for name in segzoo.list_models(pretrained=True):
        default = inspect.signature(find_factory(name)).parameters["weights"].default
        if name == "segformer":  # for non-commercial use only, all of them: nobody gets them without asking
            assert default is None
        else:
            assert f"{name}.{default}" in segzoo.list_weights(name)


def test_unknown_names_name_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown weights 'u2net_lite.dust': did you mean 'u2net_lite.duts'"):
        segzoo.get_weights("u2net_lite.dust")
    with pytest.raises(ValueError, match="unknown weights for u2net_lite 'dust': did you mean 'duts'"):
        segzoo.u2net_lite("dust")
    with pytest.raises(ValueError, match="unknown model 'u2net_litte': did you mean 'u2net_lite'"):
        segzoo.create_model("u2net_litte.duts")
    with pytest.raises(ValueError, match="unknown task 'salent': did you mean 'salient'"):
        segzoo.list_models(task="salent")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="names its weights already"):
        segzoo.create_model("u2net_lite.duts", weights=None)


def test_forms_of_one_name_are_one_model() -> None:
    models = [
        segzoo.u2net_lite(),
        segzoo.create_model("u2net_lite"),
        segzoo.create_model("u2net_lite.duts"),
        segzoo.u2net_lite("u2net_lite.duts"),
    ]
    first = models[0].state_dict()
    for model in models[1:]:
        assert all(torch.equal(v, first[k]) for k, v in model.state_dict().items())
        assert model.weights is segzoo.get_weights("u2net_lite.duts")
    assert segzoo.u2net_lite(weights=None).weights is None


# Other people's files.


def official_state(model: U2Net, bias: bool) -> dict[str, Tensor]:
    """Our state dict in the official module's names, with random biases that its batch norms take away again."""
    ours = model.state_dict()
    official = {}
    for stage, height in HEIGHTS.items():
        number = int(stage[0])
        place = f"decode_modules.{5 - number}" if "d" in stage else f"encode_modules.{number - 1}"
        blocks = {"in": "conv_in"}
        blocks |= {f"{j}": f"encode_modules.{j - 1}" for j in range(1, height + 1)}
        blocks |= {f"{j}d": f"decode_modules.{height - 1 - j}" for j in range(1, height)}
        for theirs, mine in blocks.items():
            for key in [k for k in ours if k.startswith(f"{place}.{mine}.")]:
                layer, parameter = key.removeprefix(f"{place}.{mine}.").split(".")
                official[f"stage{stage}.rebnconv{theirs}.{layer}_s1.{parameter}"] = ours[key].clone()
            if bias:
                prefix = f"stage{stage}.rebnconv{theirs}"
                shift = torch.randn(len(official[f"{prefix}.bn_s1.bias"]))
                official[f"{prefix}.conv_s1.bias"] = shift
                official[f"{prefix}.bn_s1.running_mean"] += shift
    for parameter in ("weight", "bias"):
        official |= {f"side{k}.{parameter}": ours[f"side_modules.{6 - k}.{parameter}"] for k in range(1, 7)}
        official[f"outconv.{parameter}"] = ours[f"out_conv.{parameter}"]
    return official


def trained_tiny() -> U2Net:
    """A tiny U²-Net whose norms have seen something."""
    model = tiny()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("bias", [True, False])
def test_official_state_dicts_convert(bias: bool, tmp_path: Path) -> None:
    model = trained_tiny()
    official = official_state(model, bias)
    converted = u2net_from_official(official)
    assert set(converted) == set(model.state_dict())
    again = tiny().eval()
    again.load_state_dict(converted)
    x = torch.rand(1, 3, 70, 50)
    torch.testing.assert_close(again(x), model(x), atol=1e-5, rtol=1e-5)
    torch.save(official, tmp_path / "u2netp.pth")
    save_file(official, tmp_path / "u2netp.safetensors")
    for file in ("u2netp.pth", "u2netp.safetensors"):
        assert all(torch.equal(v, converted[k]) for k, v in read_state_dict(tmp_path / file).items())
    for prefix, wrapper in (("module.", "model"), ("_orig_mod.", "state_dict"), ("model.", "model_state_dict")):
        torch.save({wrapper: {prefix + k: v for k, v in official.items()}, "epoch": 3}, tmp_path / "run.ckpt")
        assert all(torch.equal(v, converted[k]) for k, v in read_state_dict(tmp_path / "run.ckpt").items())
    lacking = {k: v for k, v in official.items() if k != "stage3.rebnconv2.bn_s1.running_mean"}
    if bias:
        with pytest.raises(ValueError, match=r"encode_modules.2.encode_modules.1.bn.running_mean is missing"):
            u2net_from_official(lacking)


def test_strange_keys_are_listed() -> None:
    with pytest.raises(ValueError, match=r"3 unknown keys, stage9.*, stage1.rebnconv1.fc_s1.weight, fc.weight"):
        u2net_from_official(
            {k: torch.zeros(1) for k in ("stage9.rebnconvin.bn_s1.bias", "stage1.rebnconv1.fc_s1.weight", "fc.weight")}
        )


def folded_convolutions(model: U2Net) -> list[tuple[Tensor, Tensor]]:
    """(weight, bias) with the norms folded, in the official order of execution: found by running the model."""
    blocks: list[ConvNormAct] = []
    hooks = [
        m.register_forward_hook(lambda module, args, out: blocks.append(module))
        for m in model.modules()
        if isinstance(m, ConvNormAct)
    ]
    model.eval()(torch.rand(1, 3, 40, 40))
    for hook in hooks:
        hook.remove()
    pairs = []
    for block in blocks:
        slope = block.bn.weight / (block.bn.running_var + block.bn.eps).sqrt()
        pairs.append((block.conv.weight * slope[:, None, None, None], block.bn.bias - slope * block.bn.running_mean))
    heads = [*reversed(model.side_modules), model.out_conv]
    return [(w.detach(), b.detach()) for w, b in [*pairs, *((h.weight, h.bias) for h in heads)]]


def write_onnx(path: Path, convolutions: list[tuple[Tensor, Tensor]], raw: bool) -> None:
    nodes, initializers = [], []
    for i, pair in enumerate(convolutions):
        nodes.append(helper.make_node("Relu", [f"x{i}"], [f"r{i}"]))
        nodes.append(helper.make_node("Conv", [f"r{i}", f"w{i}", f"b{i}"], [f"x{i + 1}"]))
        for name, tensor in zip("wb", pair):
            values = tensor.numpy().tobytes() if raw else tensor.flatten().tolist()
            initializers.append(helper.make_tensor(f"{name}{i}", TensorProto.FLOAT, tensor.shape, values, raw=raw))
    initializers.append(helper.make_tensor("shape", TensorProto.INT64, [2], [1, -1]))
    graph = helper.make_graph(nodes, "g", [], [], initializer=initializers[::-1])
    onnx.save(helper.make_model(graph, producer_name="test"), path)


@pytest.mark.parametrize("raw", [True, False])
def test_onnx_with_folded_norms_converts(raw: bool, tmp_path: Path) -> None:
    model = trained_tiny()
    write_onnx(tmp_path / "tiny.onnx", folded_convolutions(model), raw)
    again = tiny().eval()
    again.load_state_dict(u2net_from_onnx(tmp_path / "tiny.onnx"))
    x = torch.rand(1, 3, 70, 50)
    torch.testing.assert_close(again(x), model(x), atol=1e-5, rtol=1e-4)


def test_the_published_file_is_read_as_the_onnx_package_reads_it(u2netp_onnx: Path) -> None:
    graph = onnx.load(u2netp_onnx).graph
    values = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    expected = [[values[name] for name in node.input[1:]] for node in graph.node if node.op_type == "Conv"]
    ours = read_convolutions(u2netp_onnx)
    assert len(ours) == len(expected) == 119
    for (weight, bias), (w, b) in zip(ours, expected):
        np.testing.assert_array_equal(weight.numpy(), w)
        np.testing.assert_array_equal(bias.numpy(), b)


def test_the_bundled_file_is_made_again(u2netp_onnx: Path) -> None:
    """The convolutions of the bundled file are the published ones, and its norms undo themselves in eval mode."""
    published = u2net_from_onnx(u2netp_onnx)
    bundled = segzoo.u2net_lite().state_dict()
    for key, value in published.items():
        if key.endswith(".weight") and ".bn." not in key:
            assert torch.equal(value, bundled[key]), key
    for key in [k.removesuffix("bias") for k in published if k.endswith(".bn.bias")]:
        mean, var, weight, bias = (bundled[key + k].double() for k in ("running_mean", "running_var", "weight", "bias"))
        slope = weight / (var + 1e-5).sqrt()
        torch.testing.assert_close(slope, torch.ones_like(slope), atol=1e-6, rtol=0)
        scale = mean.abs() + published[key + "bias"].double().abs() + 1e-3
        assert ((bias - slope * mean - published[key + "bias"].double()).abs() / scale).max() < 1e-6


@given(st.data())
def test_broken_onnx_files_never_get_further_than_one_sentence(tmp_path_factory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("onnx") / "broken.onnx"
    write_onnx(path, [(torch.rand(2, 2, 1, 1), torch.rand(2))], raw=True)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        read_convolutions(path)
    except ValueError as error:
        assert str(path) in str(error)


class Malicious:
    def __reduce__(self):
        return print, ("this must not be printed",)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.safetensors", b"\x10" * 50, "is not a safetensors file that can be read"),
        ("a.pth", b"not a checkpoint", "cannot be loaded as plain tensors"),
        ("a.pth", pickle.dumps(Malicious()), "cannot be loaded as plain tensors"),
        ("a.onnx", b"not found", "is not an ONNX file"),
        ("a.tar", b"", "a weights file ends in .safetensors, .pth, .pt, .ckpt, .bin, .onnx"),
    ],
)
def test_files_that_are_no_weights(name: str, content: bytes, words: str, tmp_path: Path, capsys) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        segzoo.u2net_lite(weights=tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "printed" not in capsys.readouterr().out


def test_a_missing_file_and_a_list_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no weights file .*nothing\.pth"):
        segzoo.u2net_lite(weights=tmp_path / "nothing.pth")
    torch.save(tiny(), tmp_path / "whole.pth")
    with pytest.raises(ValueError, match=r"whole.pth .* save model.state_dict\(\), not the model"):
        segzoo.u2net_lite(weights=tmp_path / "whole.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        segzoo.u2net_lite(weights=tmp_path / "list.pth")


# Fitting.


def test_another_number_of_classes_starts_the_heads_afresh_and_keeps_the_rest(caplog) -> None:
    caplog.set_level(logging.INFO, "segzoo")
    model = segzoo.u2net_lite(num_classes=7)
    pretrained = segzoo.u2net_lite().state_dict()
    for key, value in model.state_dict().items():
        if key.startswith(("side_modules", "out_conv")):
            assert value.shape[0] == 7
        else:
            assert torch.equal(value, pretrained[key]), key
    assert "side_modules, out_conv start afresh" in caplog.text
    assert model.classes is None and segzoo.u2net_lite().classes == ("foreground",)


def test_a_file_brings_its_number_of_classes(tmp_path: Path) -> None:
    save_file(segzoo.u2net_lite(weights=None, num_classes=4).state_dict(), tmp_path / "four.safetensors")
    assert segzoo.u2net_lite(tmp_path / "four.safetensors").num_classes == 4
    assert segzoo.u2net_lite(tmp_path / "four.safetensors", num_classes=2).num_classes == 2


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_another_number_of_channels_adapts_the_stem(channels: int) -> None:
    model = segzoo.u2net_lite(in_channels=channels)
    key = "encode_modules.0.conv_in.conv.weight"
    stem, original = model.state_dict()[key], segzoo.u2net_lite().state_dict()[key]
    assert stem.shape[1] == channels
    if channels == 1:
        torch.testing.assert_close(stem, original.sum(1, keepdim=True))
    else:
        expected = torch.stack([original[:, i % 3] for i in range(channels)], 1) * (3 / channels)
        torch.testing.assert_close(stem, expected)
    assert len(model.preprocessing.mean) == channels
    assert model.predict(torch.rand(1, channels, 40, 40)).isfinite().all()


@pytest.mark.parametrize("norm", ["group", "instance", "layer", "evo_s0", "evo_b0"])
def test_another_norm_keeps_weight_and_bias_and_warns(norm: str) -> None:
    with pytest.warns(UserWarning, match=r"u2net_lite\.duts has another norm: .* needs fine-tuning"):
        model = segzoo.u2net_lite(norm=norm)
    pretrained = segzoo.u2net_lite().state_dict()
    state = model.state_dict()
    assert not any(k.endswith(("running_mean", "num_batches_tracked")) for k in state)
    for key, value in state.items():
        if key in pretrained and "running" not in key:
            assert torch.equal(value, pretrained[key]), key


@pytest.mark.parametrize("norm", ["sync_batch", "frozen_batch"])
def test_norms_of_the_batch_family_take_everything_in_silence(norm: str, recwarn: pytest.WarningsRecorder) -> None:
    x = torch.rand(1, 3, 60, 60)
    torch.testing.assert_close(segzoo.u2net_lite(norm=norm).predict(x), segzoo.u2net_lite().predict(x))
    assert not recwarn.list


def test_back_to_batch_norm_from_another_warns(tmp_path: Path) -> None:
    save_file(tiny(norm="group").state_dict(), tmp_path / "group.safetensors")
    state = read_state_dict(tmp_path / "group.safetensors")
    target = tiny().state_dict()
    with pytest.warns(UserWarning, match="another norm"):
        fitted = adapt_state_dict(state, target, heads=U2Net.heads, stem=U2Net.stem)
    assert set(fitted) == set(target)


def test_anything_else_is_an_error_that_lists_the_keys(tmp_path: Path) -> None:
    target = tiny().state_dict()
    missing = {k: v for k, v in target.items() if k != "encode_modules.1.conv_in.conv.weight"}
    with pytest.raises(ValueError, match=r"1 missing keys \(encode_modules.1.conv_in.conv.weight\)"):
        adapt_state_dict(missing, target, heads=U2Net.heads, stem=U2Net.stem)
    with pytest.raises(ValueError, match=r"1 unexpected keys \(fc.weight\)"):
        adapt_state_dict({**target, "fc.weight": torch.zeros(1)}, target, heads=U2Net.heads, stem=U2Net.stem)
    save_file(segzoo.u2net_lite(weights=None).state_dict(), tmp_path / "lite.safetensors")
    with pytest.raises(
        ValueError, match=r"lite.safetensors does not fit this model: \d+ other shapes \(encode_modules"
    ):
        segzoo.u2net_full(tmp_path / "lite.safetensors")
    misshapen = {**target, "side_modules.2.weight": target["side_modules.2.weight"][:, :2]}
    with pytest.raises(ValueError, match=r"1 other shapes \(side_modules.2.weight"):
        adapt_state_dict(misshapen, target, heads=U2Net.heads, stem=U2Net.stem)
    headless = {k: v for k, v in target.items() if not k.startswith("out_conv")}
    with pytest.raises(ValueError, match="missing keys .out_conv"):
        adapt_state_dict(headless, target, heads=U2Net.heads, stem=U2Net.stem)


@pytest.mark.parametrize(
    "lost", ["bn.weight", ".bn.", "encode_modules.2.conv_in.bn.", "encode_modules.2.conv_in.bn.running_var"]
)
@pytest.mark.parametrize("norm", ["batch", "group", "evo_s0"])
def test_a_damaged_norm_is_no_other_norm(lost: str, norm: str, recwarn: pytest.WarningsRecorder) -> None:
    target = tiny(norm=norm).state_dict()
    damaged = {k: v for k, v in tiny().state_dict().items() if lost not in k}
    with pytest.raises(ValueError, match="does not fit this model"):
        adapt_state_dict(damaged, target, heads=U2Net.heads, stem=U2Net.stem)
    assert not recwarn.list  # nor is it said to have another norm


def test_preprocessing_for_other_channels() -> None:
    p = Preprocessing(mean=(0.2, 0.4, 0.6), std=(0.1, 0.2, 0.3))
    assert p.for_channels(3) is p
    assert p.for_channels(2).mean == (0.4, 0.4) and p.for_channels(1).std == (0.2,)
    assert p.for_channels(5).mean == (0.2, 0.4, 0.6, 0.4, 0.4) and p.for_channels(5).std == (0.1, 0.2, 0.3, 0.2, 0.2)


# Calibration.


def identity_norms(model: U2Net) -> U2Net:
    """The model as it comes from a file with folded norms."""
    plain = U2Net(TINY_ENCODER, TINY_DECODER)
    state = plain.state_dict()
    pairs = iter(folded_convolutions(model)[:-7])
    order: list[str] = []
    hooks = [
        m.register_forward_hook(lambda module, args, out, name=name: order.append(name))
        for name, m in plain.named_modules()
        if isinstance(m, ConvNormAct)
    ]
    plain.eval()(torch.rand(1, 3, 40, 40))
    for hook in hooks:
        hook.remove()
    for name, (weight, bias) in zip(order, pairs):
        state[f"{name}.conv.weight"], state[f"{name}.bn.bias"] = weight, bias
        state[f"{name}.bn.weight"] = torch.full_like(bias, (1 + 1e-5) ** 0.5)
    state |= {k: v for k, v in model.state_dict().items() if k.startswith(U2Net.heads)}
    plain.load_state_dict(state)
    return plain


def test_calibration_keeps_eval_and_gives_train_mode_its_sense_back() -> None:
    model = identity_norms(trained_tiny())
    batches = [torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    x = torch.rand(8, 3, 64, 64)
    before = model.predict(x)
    with pytest.warns(UserWarning, match="norms were folded .*recalibrate"):
        model.train()
    assert calibrate(model, batches) == 16
    assert model.training
    torch.testing.assert_close(model.predict(x), before, atol=1e-5, rtol=1e-4)
    statistics = model.encode_modules[0].conv_in
    with torch.no_grad():
        z = torch.cat([statistics.conv(b) for b in batches]).double()
    torch.testing.assert_close(statistics.bn.running_mean.double(), z.mean((0, 2, 3)), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(statistics.bn.running_var.double(), z.var((0, 2, 3), correction=0), atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        trained = model.train()(torch.cat(batches))[0].sigmoid()
    assert (trained - model.predict(torch.cat(batches))).abs().mean() < 0.01


def test_calibration_is_exact_for_large_means() -> None:
    norm = nn.BatchNorm2d(1).eval()
    norm.bias.data.fill_(-1361.0)
    x = 1361 + 0.01 * torch.randn(4, 1, 32, 32)
    expected = copy.deepcopy(norm).double()(x.double())
    calibrate(norm, [x])
    assert abs(norm.running_var.item() / x.double().var(correction=0).item() - 1) < 1e-5
    assert (norm(x) - expected).abs().max() < 2e-4  # a unit in the last place of 1361 is 1.2e-4


def test_calibration_needs_something() -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        calibrate(nn.BatchNorm2d(3), [])
    with pytest.raises(ValueError, match="no batch norm"):
        calibrate(nn.Conv2d(3, 3, 1), [torch.zeros(1, 3, 4, 4)])


def test_the_command_that_makes_the_bundled_file(u2netp_onnx: Path, coffee: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "lite.safetensors"
    make_bundled_file([str(u2netp_onnx), str(coffee.parent), str(out), "--step", "1", "--count", "2"])
    assert "calibrated with 2 pictures" in capsys.readouterr().out
    x = torch.rand(1, 3, 96, 96)
    torch.testing.assert_close(segzoo.u2net_lite(out).predict(x), segzoo.u2net_lite().predict(x), atol=1e-5, rtol=0)
    assert [p.name for p in tmp_path.iterdir()] == ["lite.safetensors"]


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(1200)
def test_the_bundled_file_comes_out_again(u2netp_onnx: Path, data: Path, tmp_path: Path) -> None:
    """All 200 pictures: the same statistics, to what another machine's convolutions may differ by."""
    make_bundled_file([str(u2netp_onnx), str(data / "ecssd/images"), str(tmp_path / "lite.safetensors")])
    bundled = segzoo.u2net_lite().state_dict()
    for key, value in read_state_dict(tmp_path / "lite.safetensors").items():
        torch.testing.assert_close(value, bundled[key], atol=1e-4, rtol=1e-4, msg=key)
