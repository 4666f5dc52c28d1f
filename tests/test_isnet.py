"""IS-Net: the published table, a second writing of the official forward, its checkpoints, any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from safetensors.torch import save_file
from test_u2net import tiny as tiny_u2net
from test_weights import folded_convolutions, official_state, trained_tiny, write_onnx
from torch import Tensor

import segzoo
from segzoo.models import ISNet
from segzoo.models.u2net import Stage
from segzoo.weights.convert import isnet_from_official, isnet_from_onnx, read_state_dict, u2net_from_onnx

Table = dict[str, tuple[Any, int, int, int]]  # stage: height ("4F" is dilated, not pooled), channels in, inside, out

PUBLISHED: Table = {
    "1": (7, 64, 32, 64),
    "2": (6, 64, 32, 128),
    "3": (5, 128, 64, 256),
    "4": (4, 256, 128, 512),
    "5": ("4F", 512, 256, 512),
    "6": ("4F", 512, 256, 512),
    "5d": ("4F", 1024, 256, 512),
    "4d": (4, 1024, 128, 256),
    "3d": (5, 512, 64, 128),
    "2d": (6, 256, 32, 64),
    "1d": (7, 128, 16, 64),
}
NARROW: Table = {
    "1": (7, 6, 2, 4),
    "2": (6, 4, 3, 6),
    "3": (5, 6, 2, 8),
    "4": (4, 8, 3, 10),
    "5": ("4F", 10, 4, 8),
    "6": ("4F", 8, 3, 8),
    "5d": ("4F", 16, 3, 10),
    "4d": (4, 20, 2, 8),
    "3d": (5, 16, 3, 6),
    "2d": (6, 12, 2, 4),
    "1d": (7, 8, 3, 4),
}
SIDES = ["1d", "2d", "3d", "4d", "5d", "6"]  # the stages under side1 … side6
PUBLISHED_FILE_BYTES = 178_648_008  # rembg's isnet-general-use.onnx, its norms folded


def narrow(**kwargs: Any) -> ISNet:
    torch.manual_seed(0)
    rows = [Stage(*row) for row in NARROW.values()]
    return ISNet(rows[:6], rows[6:], **kwargs)


# The official module, written again: its names, its order of execution, no module of ours.


def blocks(table: Table) -> dict[str, tuple[int, int]]:
    """Channels in and out of every convolution with a norm."""
    found = {}
    for stage, (height, given, inside, out) in table.items():
        levels = 4 if height == "4F" else height
        channels = {"in": (given, out), "1": (out, inside)}
        channels |= {f"{level}": (inside, inside) for level in range(2, levels + 1)}
        channels |= {f"{level}d": (2 * inside, inside if level > 1 else out) for level in range(levels - 1, 0, -1)}
        found |= {f"stage{stage}.rebnconv{name}": value for name, value in channels.items()}
    return found


def random_official_state(table: Table, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random weights, and norms whose statistics and biases all count."""
    torch.manual_seed(0)
    state: dict[str, Tensor] = {}

    def conv(name: str, given: int, out: int) -> None:
        state[f"{name}.weight"] = torch.randn(out, given, 3, 3, dtype=dtype) * (2 / (9 * given)) ** 0.5
        state[f"{name}.bias"] = torch.rand(out, dtype=dtype) - 0.5

    conv("conv_in", 3, table["1"][1])
    for name, (given, out) in blocks(table).items():
        conv(f"{name}.conv_s1", given, out)
        for parameter in ("weight", "running_var"):
            state[f"{name}.bn_s1.{parameter}"] = torch.rand(out, dtype=dtype) + 0.5
        for parameter in ("bias", "running_mean"):
            state[f"{name}.bn_s1.{parameter}"] = torch.rand(out, dtype=dtype) - 0.5
        state[f"{name}.bn_s1.num_batches_tracked"] = torch.tensor(7)
    for k, stage in enumerate(SIDES, 1):
        conv(f"side{k}", table[stage][3], 1)
    return state


class Eager:
    """What the official forward is made of, run by torch."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def conv(self, x: Tensor, name: str, stride: int = 1, dilation: int = 1) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return F.conv2d(x, weight, bias, stride=stride, padding=dilation, dilation=dilation)

    def block(self, x: Tensor, name: str, dilation: int = 1) -> Tensor:
        parameters = [self.state[f"{name}.bn_s1.{p}"] for p in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(self.conv(x, f"{name}.conv_s1", dilation=dilation), *parameters))

    def pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2, stride=2, ceil_mode=True)

    def up(self, x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)

    def cat(self, x: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([x, skip], 1)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Graph:
    """The same as ONNX nodes, the norms folded into their convolutions; a value is its name and its H, W."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, values: Tensor) -> str:
        name = f"c{len(self.initializers)}"
        kind = TensorProto.INT64 if values.dtype == torch.int64 else TensorProto.FLOAT
        self.initializers.append(helper.make_tensor(name, kind, values.shape, values.numpy().tobytes(), raw=True))
        return name

    def node(self, kind: str, inputs: list[str], size: tuple[int, int], **attributes: Any) -> tuple[str, Any]:
        out = f"x{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [out], **attributes))
        return out, size

    def convolution(self, x: Any, weight: Tensor, bias: Tensor, stride: int = 1, dilation: int = 1) -> Any:
        size = tuple(-(-n // stride) for n in x[1])
        attributes = {"strides": [stride] * 2, "pads": [dilation] * 4, "dilations": [dilation] * 2}
        return self.node("Conv", [x[0], self.constant(weight), self.constant(bias)], size, **attributes)

    def conv(self, x: Any, name: str, stride: int = 1) -> Any:
        return self.convolution(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], stride)

    def block(self, x: Any, name: str, dilation: int = 1) -> Any:
        conv, norm = (
            {k: self.state[f"{name}.{layer}.{k}"] for k in ("weight", "bias")} for layer in ("conv_s1", "bn_s1")
        )
        slope = norm["weight"] / (self.state[f"{name}.bn_s1.running_var"] + 1e-5).sqrt()
        bias = norm["bias"] + slope * (conv["bias"] - self.state[f"{name}.bn_s1.running_mean"])
        y = self.convolution(x, conv["weight"] * slope[:, None, None, None], bias, dilation=dilation)
        return self.node("Relu", [y[0]], y[1])

    def pool(self, x: Any) -> Any:
        size = tuple(-(-n // 2) for n in x[1])
        return self.node("MaxPool", [x[0]], size, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)

    def up(self, x: Any, like: Any) -> Any:
        channels = self.node("Shape", [x[0]], x[1], start=0, end=2)[0]
        whole = self.node("Concat", [channels, self.constant(torch.tensor(like[1]))], x[1], axis=0)[0]
        return self.node("Resize", [x[0], "", "", whole], like[1], mode="linear")

    def cat(self, x: Any, skip: Any) -> Any:
        return self.node("Concat", [x[0], skip[0]], skip[1], axis=1)

    def add(self, x: Any, y: Any) -> Any:
        return self.node("Add", [x[0], y[0]], x[1])


def residual_u(ops: Any, x: Any, stage: str, height: Any) -> Any:
    flat, levels = height == "4F", 4 if height == "4F" else height
    dilations = [1, 2, 4, 8] if flat else [1] * (levels - 1) + [2]
    residual = x = ops.block(x, f"stage{stage}.rebnconvin")
    skips = []
    for level in range(1, levels + 1):
        x = ops.block(x, f"stage{stage}.rebnconv{level}", dilations[level - 1])
        skips.append(x)
        if not flat and level < levels - 1:
            x = ops.pool(x)
    for level in range(levels - 1, 0, -1):
        skip = skips[level - 1]
        x = x if flat or level == levels - 1 else ops.up(x, skip)
        x = ops.block(ops.cat(x, skip), f"stage{stage}.rebnconv{level}d", dilations[level - 1])
    return ops.add(x, residual)


def official_forward(ops: Any, picture: Any, table: Table) -> list[Any]:
    """d1 … d6 before the sigmoid."""
    x = ops.conv(picture, "conv_in", stride=2)
    outs = {}
    for k in "123456":
        x = outs[k] = residual_u(ops, x if k == "1" else ops.pool(x), k, table[k][0])
    for k in "54321":
        x = outs[f"{k}d"] = residual_u(ops, ops.cat(ops.up(x, outs[k]), outs[k]), f"{k}d", table[f"{k}d"][0])
    return [ops.up(ops.conv(outs[stage], f"side{k}"), picture) for k, stage in enumerate(SIDES, 1)]


def write_official_onnx(path: Path, state: dict[str, Tensor], table: Table, size: tuple[int, int]) -> None:
    """The file as the official module is exported: six outputs, each after a sigmoid."""
    graph = Graph(state)
    maps = [graph.node("Sigmoid", [x[0]], x[1])[0] for x in official_forward(graph, ("input", size), table)]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, *size])
        for n, c in [("input", 3), *((m, 1) for m in maps)]
    ]
    whole = helper.make_graph(graph.nodes, "isnet", ends[:1], ends[1:], initializer=graph.initializers)
    onnx.save(helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def run_onnx(path: Path, x: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(path)
    return [torch.from_numpy(np.asarray(y)) for y in session.run(None, {"input": x.numpy()})]


# The architecture.


def test_parameters_are_those_of_the_published_table() -> None:
    convolutions = 9 * sum(given * out for given, out in blocks(PUBLISHED).values())
    channels = sum(out for _, out in blocks(PUBLISHED).values())
    ends = 64 * (9 * 3 + 1) + sum(9 * PUBLISHED[stage][3] + 1 for stage in SIDES)
    with torch.device("meta"):
        model = segzoo.isnet(weights=None)
    assert sum(p.numel() for p in model.parameters()) == convolutions + 2 * channels + ends == 44_032_390
    folded = 4 * (convolutions + channels + ends)  # float32, a weight and a bias each
    assert 0.98 * PUBLISHED_FILE_BYTES < folded < PUBLISHED_FILE_BYTES  # the rest is the graph


def test_state_dict_keys_are_u2nets_with_conv_in_and_no_out_conv() -> None:
    with torch.device("meta"):
        keys, u2net = (set(model(weights=None).state_dict()) for model in (segzoo.isnet, segzoo.u2net_full))
    assert keys - u2net == {"conv_in.weight", "conv_in.bias"}
    assert u2net - keys == {"out_conv.weight", "out_conv.bias"}


@pytest.mark.parametrize("size", [(1, 1), (1, 17), (33, 47), (64, 64)])
@pytest.mark.parametrize(
    "norm",
    ["batch", "sync_batch", "frozen_batch", "group", "instance", "layer", "evo_s0", "evo_b0"],
)
def test_any_size_and_norm(size: tuple[int, int], norm: str) -> None:
    model = narrow(norm=norm, num_classes=2)
    x = torch.rand(1, 3, *size)
    assert model.predict(x).shape == (1, 2, *size)
    outputs = model.train()(x)
    assert [o.shape for o in outputs] == [(1, 2, *size)] * 6
    sum(o.sum() for o in outputs).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_train_outputs_are_d1_to_d6_and_eval_gives_d1() -> None:
    model = narrow(norm="group")
    with torch.no_grad():
        for i, head in enumerate(model.side_modules):  # deepest first
            head.weight.zero_()
            head.bias.fill_(6.0 - i)
        x = torch.rand(2, 3, 20, 20)
        assert [round(float(o.mean())) for o in model.train()(x)] == [1, 2, 3, 4, 5, 6]
        assert torch.equal(model.train()(x)[0], model.eval()(x))


def test_compiles_exports_and_autocasts() -> None:
    model = narrow().eval()
    x = torch.rand(1, 3, 96, 128)  # the U's deepest map, 1/64 of it, is larger than one value
    expected = model(x)
    dynamic = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(model, (x,), dynamic_shapes=(dynamic,)).module()
    for inputs in (x, torch.rand(1, 3, 165, 70)):
        torch.testing.assert_close(program(inputs), model(inputs), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (model(x).float() - expected).abs().max() < 0.1


# The official checkpoints.


@pytest.mark.parametrize("size", [(1, 1), (33, 47), (96, 70)])
def test_the_official_forward_agrees_in_all_six_maps(size: tuple[int, int]) -> None:
    state = random_official_state(NARROW, torch.float64)
    model = narrow().double().eval()
    model.load_state_dict(isnet_from_official(state))
    x = torch.rand(2, 3, *size, dtype=torch.float64) - 0.5
    expected = official_forward(Eager(state), x, NARROW)
    with torch.no_grad():
        maps = model.side_maps(model.features(x), x)
        torch.testing.assert_close(model(x), expected[0], atol=1e-9, rtol=1e-9)
    assert len(maps) == len(expected) == 6 and all(m.std() > 1e-3 for m in expected if size != (1, 1))
    for ours, theirs in zip(maps, expected):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_official_files_are_recognised(tmp_path: Path) -> None:
    state = random_official_state(NARROW)
    expected = isnet_from_official(state)
    assert set(expected) == set(narrow().state_dict())
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "run.pth")
    save_file(state, tmp_path / "isnet.safetensors")
    save_file(expected, tmp_path / "ours.safetensors")
    for file in ("run.pth", "isnet.safetensors", "ours.safetensors"):
        found = read_state_dict(tmp_path / file)
        assert found.keys() == expected.keys() and all(torch.equal(v, expected[k]) for k, v in found.items()), file


def test_official_states_that_are_none_are_refused() -> None:
    state = random_official_state(NARROW)
    with pytest.raises(ValueError, match=r"official IS-Net: 2 unknown keys, outconv.weight, outconv.bias"):
        isnet_from_official({**state, "outconv.weight": torch.zeros(1), "outconv.bias": torch.zeros(1)})
    del state["stage5d.rebnconv1d.bn_s1.running_mean"]
    with pytest.raises(
        ValueError, match=r"official IS-Net: decode_modules.0.decode_modules.2.bn.running_mean is missing"
    ):
        isnet_from_official(state)


def test_onnx_with_folded_norms_gives_onnxruntimes_maps(tmp_path: Path) -> None:
    state = random_official_state(NARROW)
    write_official_onnx(tmp_path / "narrow.onnx", state, NARROW, (70, 50))
    x = torch.rand(1, 3, 70, 50) - 0.5
    model = narrow().eval()
    model.load_state_dict(isnet_from_onnx(tmp_path / "narrow.onnx"))
    expected = run_onnx(tmp_path / "narrow.onnx", x)
    with torch.no_grad():
        maps = model.side_maps(model.features(x), x)
    for ours, theirs, official in zip(maps, expected, official_forward(Eager(state), x, NARROW)):
        torch.testing.assert_close(ours.sigmoid(), theirs, atol=1e-5, rtol=0)
        torch.testing.assert_close(official.sigmoid(), theirs, atol=1e-5, rtol=0)


def test_the_factory_takes_an_onnx_file_of_the_published_width(tmp_path: Path) -> None:
    path = tmp_path / "isnet-general-use.onnx"
    write_official_onnx(path, random_official_state(PUBLISHED), PUBLISHED, (64, 96))
    x = torch.rand(1, 3, 64, 96) - 0.5
    expected = run_onnx(path, x)[0]
    model = segzoo.isnet(weights=path)
    assert abs(path.stat().st_size / PUBLISHED_FILE_BYTES - 1) < 0.02
    path.unlink()  # 176 MB, which pytest would keep
    assert expected.std() > 1e-2
    torch.testing.assert_close(model.predict(x), expected, atol=1e-4, rtol=0)


def test_the_one_net_is_not_loaded_into_the_other(tmp_path: Path) -> None:
    isnet_state, u2net = random_official_state(NARROW), trained_tiny()
    torch.save(isnet_state, tmp_path / "isnet.pth")
    torch.save(official_state(u2net, bias=True), tmp_path / "u2net.pth")
    write_official_onnx(tmp_path / "isnet.onnx", isnet_state, NARROW, (32, 32))
    write_onnx(tmp_path / "u2net.onnx", folded_convolutions(u2net), raw=True)
    for suffix in ("pth", "onnx"):
        messages = []
        with pytest.raises(ValueError, match=r"u2net.* does not fit this model: 2 missing keys \(conv_in") as caught:
            segzoo.isnet(tmp_path / f"u2net.{suffix}")
        messages.append(str(caught.value))
        with pytest.raises(ValueError, match=r"isnet.* does not fit this model: 2 missing keys \(out_conv") as caught:
            segzoo.u2net_lite(tmp_path / f"isnet.{suffix}")
        messages.append(str(caught.value))
        assert not any("\n" in message for message in messages)
    with pytest.raises(ValueError, match=r"is no IS-Net with folded norms: .* last with kernel \[1, 1\], expected 119"):
        isnet_from_onnx(tmp_path / "u2net.onnx")
    with pytest.raises(ValueError, match=r"is no U²-Net with folded norms: .* last with kernel \[3, 3\], expected 119"):
        u2net_from_onnx(tmp_path / "isnet.onnx")
    write_onnx(tmp_path / "other.onnx", [(torch.rand(2, 2, 1, 1), torch.rand(2))] * 3, raw=True)
    with pytest.raises(ValueError, match=r"other.onnx is no U²-Net or IS-Net with folded norms: it has 3 convolutions"):
        segzoo.isnet(tmp_path / "other.onnx")
    assert set(tiny_u2net().state_dict()) == set(read_state_dict(tmp_path / "u2net.onnx"))


# The published weights' record.


def test_the_records_preprocessing_is_the_official_codes() -> None:
    record = segzoo.get_weights("isnet.general")
    p = record.preprocessing
    assert (p.size, p.scale, set(p.mean), set(p.std)) == ((1024, 1024), "255", {0.5}, {1.0})
    assert ISNet.default_preprocessing == p
    assert record.calibration is None and not record.published_metrics


def test_another_number_of_classes_and_channels_from_a_file(tmp_path: Path) -> None:
    save_file(segzoo.isnet(weights=None).state_dict(), tmp_path / "isnet.safetensors")
    model = segzoo.isnet(tmp_path / "isnet.safetensors", num_classes=3, in_channels=1)
    (tmp_path / "isnet.safetensors").unlink()
    assert model.conv_in.weight.shape == (64, 1, 3, 3)
    assert model.predict(torch.rand(1, 1, 20, 20)).shape == (1, 3, 20, 20)
    assert model.preprocessing.mean == (0.5,) and model.preprocessing.size == (1024, 1024)
