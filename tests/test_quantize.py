"""Eight bits: what would be ruined stays in float, the rest is quantised, and the report says what it costs."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

import segzoo
from segzoo.export._heads import split_heads
from segzoo.export._sensitive import _reach, channels_of, ranges_of, sensitive_nodes
from segzoo.export.quantize import QuantizationReport, quantize
from segzoo.inference.runtimes import FileModel
from segzoo.weights.record import Preprocessing

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("one_thread")

RULE = Preprocessing(size=(24, 32))
CHAIN = ["first", "relu", "up", "cat", "second"]


def network(offset: float = 226.4, opset: int = 20) -> Any:
    """Two convolutions and what lies between them: a channel of ``offset``, which a bias takes away again."""
    make, rng = onnx.helper.make_node, np.random.default_rng(0)

    def weights(*shape: int) -> NDArray[np.float32]:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    values = {"w1": weights(4, 3, 3, 3), "b1": np.zeros(4, np.float32), "w2": weights(4, 3, 1, 1)}
    values |= {"w3": weights(6, 8, 1, 1), "b3": np.zeros(6, np.float32), "w4": 4 * weights(1, 6, 3, 3)}
    values |= {"b4": np.full(1, 0.5, np.float32), "scales": np.array([1, 1, 2, 2], np.float32)}
    values["w1"][2] *= 0.1
    values["b1"][2] = offset
    values["w3"][:, 2] = 0.7
    values["b3"] -= values["w3"][:, 2, 0, 0] * offset
    nodes = [
        make("MaxPool", ["image"], ["half"], "half", kernel_shape=[2, 2], strides=[2, 2]),
        make("Conv", ["half", "w1", "b1"], ["y1"], "first", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        make("Relu", ["y1"], ["r1"], "relu"),
        make("Resize", ["r1", "", "scales"], ["u1"], "up", mode="linear"),
        make("Conv", ["half", "w2"], ["y2"], "aside", kernel_shape=[1, 1]),
        make("Resize", ["y2", "", "scales"], ["u2"], "up_aside", mode="linear"),
        make("Concat", ["u2", "u1"], ["both"], "cat", axis=1),
        make("Conv", ["both", "w3", "b3"], ["y3"], "second", kernel_shape=[1, 1]),
        make("Relu", ["y3"], ["r3"], "relu_2"),
        make("Conv", ["r3", "w4", "b4"], ["logits"], "head", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    ]
    values["w3"] = np.ascontiguousarray(values["w3"][:, [4, 5, 6, 7, 0, 1, 2, 3]])  # the constant is in the second part
    info, floats = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    made = onnx.helper.make_model(
        onnx.helper.make_graph(
            nodes,
            "g",
            [info("image", floats, ["N", 3, "H", "W"])],
            [info("logits", floats, ["N", 1, "H", "W"])],
            [onnx.numpy_helper.from_array(value, name) for name, value in values.items()],
        ),
        opset_imports=[onnx.helper.make_opsetid("", opset)],
        ir_version=9,
    )
    known = {
        "producer": "segzoo",
        "num_classes": "1",
        "in_channels": "3",
        "output": "logits",
        "license": "Apache-2.0",
        "threshold": "0.4",
    }
    onnx.helper.set_model_props(made, {**known, "preprocessing": json.dumps(asdict(RULE))})
    return onnx.shape_inference.infer_shapes(made)


@pytest.fixture(scope="module")
def pictures() -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(1)
    spots = torch.from_numpy(rng.random((9, 3, 5, 6)))
    soft = F.interpolate(spots, (48, 64), mode="bicubic").clamp(0, 1)
    return [np.asarray(x * 255, np.uint8) for x in soft.permute(0, 2, 3, 1).numpy()]


@pytest.fixture
def original(tmp_path: Path) -> Path:
    onnx.save(network(), tmp_path / "float.onnx")
    return tmp_path / "float.onnx"


def run(path: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": x})
    return np.asarray(found)


def test_the_chain_stays_in_float_and_the_rest_is_quantised(
    original: Path, pictures: list[NDArray[np.uint8]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handlers = list(logging.getLogger().handlers)
    report = quantize(original, pictures, tmp_path / "int8.onnx")
    assert not caplog.records and logging.getLogger().handlers == handlers and not logging.getLogger().filters
    assert list(report.kept) == [*CHAIN, "head/sum"]
    assert report.kept["first"].startswith("makes a channel of 226 ± ")
    assert report.kept["up"].startswith("hands on") and report.kept["second"].startswith("takes")
    assert (report.calibrated, report.compared, report.held_out) == (7, 2, True)
    ruined = quantize(original, pictures, tmp_path / "throughout.onnx", keep_float=())
    assert list(ruined.kept) == ["head/sum"]
    assert report.difference < 0.01 < 5 * report.difference < ruined.difference
    assert report.flipped < 0.02 and ruined.flipped > report.flipped

    before, after = onnx.load(original), onnx.load(tmp_path / "int8.onnx")
    onnx.checker.check_model(after, full_check=True)
    said = {entry.key: entry.value for entry in after.metadata_props}
    assert json.loads(said.pop("quantization"))["float"] == list(report.kept)
    assert said == {entry.key: entry.value for entry in before.metadata_props}
    assert (report.float_bytes, report.int8_bytes) == tuple(
        path.stat().st_size for path in (original, tmp_path / "int8.onnx")
    )
    constants = {value.name: onnx.numpy_helper.to_array(value) for value in after.graph.initializer}
    quantised = {node.input[0]: node for node in after.graph.node if node.op_type == "QuantizeLinear"}
    assert {constants[node.input[2]].dtype for node in quantised.values()} == {np.dtype(np.uint8)}
    assert "both" not in quantised and "u1" not in quantised and {"half", "y2", "r3"} <= set(quantised)
    weight = next(node for node in after.graph.node if node.input[0] == "w2_quantized")
    assert constants["w2_quantized"].dtype == np.int8 and constants[weight.input[1]].shape == (4,)


def test_n_h_and_w_stay_free(original: Path, pictures: list[NDArray[np.uint8]], tmp_path: Path) -> None:
    quantize(original, pictures, tmp_path / "int8.onnx")
    x = np.random.default_rng(0).uniform(-1, 1, (3, 3, 18, 40)).astype(np.float32)  # within what pictures gave
    expected, got = run(original, x), run(tmp_path / "int8.onnx", x)
    assert got.shape == (3, 1, 18, 40)
    assert np.abs(expected - got).mean() < 0.15 * expected.std()


def test_the_report_is_what_the_files_give_on_pictures_held_out(
    original: Path, pictures: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    report = quantize(original, pictures, tmp_path / "int8.onnx", most=5)
    wide, narrow = FileModel(original), FileModel(tmp_path / "int8.onnx")
    x = segzoo.inference.preprocess(segzoo.inference.read_picture(pictures[6]), RULE)[None].numpy()  # 0 2 4 6 8
    expected, got = wide.predict(x), narrow.predict(x)
    assert report.compared == 1 and report.calibrated == 4
    assert report.difference == pytest.approx(np.abs(expected - got).mean(), rel=1e-4)
    assert report.flipped == pytest.approx(((expected > 0.4) != (got > 0.4)).mean(), abs=1e-6)
    assert narrow.threshold == 0.4 and narrow.preprocessing == wide.preprocessing
    lines = str(report).splitlines()
    assert lines[0] == "calibrated on 4 pictures, compared with float32 on 1 held-out:"
    assert any(line.strip().startswith("first: makes a channel") for line in lines)
    few = quantize(original, pictures[:2], tmp_path / "few.onnx")
    assert (few.calibrated, few.compared, few.held_out) == (2, 2, False) and "of the same" in str(few)


def test_a_folder_and_twice_the_same(original: Path, pictures: list[NDArray[np.uint8]], tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, picture in enumerate(pictures[:4]):
        segzoo.inference.Picture(picture).rgb().save(folder / f"{i}.png")
    for name in ("a.onnx", "b.onnx"):
        quantize(original, folder, tmp_path / name, reduce_range=name == "c.onnx")
    quantize(original, folder, tmp_path / "c.onnx", reduce_range=True)
    first, second, seven = ((tmp_path / f"{name}.onnx").read_bytes() for name in "abc")
    assert first == second != seven
    weights = {
        value.name: onnx.numpy_helper.to_array(value) for value in onnx.load_from_string(seven).graph.initializer
    }
    assert np.abs(weights["w2_quantized"].astype(int)).max() <= 64


def test_a_small_offset_needs_nothing_in_float(pictures: list[NDArray[np.uint8]], tmp_path: Path) -> None:
    onnx.save(network(offset=1.0), tmp_path / "float.onnx")
    report = quantize(tmp_path / "float.onnx", pictures[:4], tmp_path / "int8.onnx")
    assert list(report.kept) == ["head/sum"] and report.difference < 0.01


def test_what_is_measured(pictures: list[NDArray[np.uint8]]) -> None:
    made = network()
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((n, 3, 16, 20)).astype(np.float32) for n in (1, 2)]
    ranges, channels = ranges_of(made, inputs), channels_of(made, inputs)
    stacked = np.concatenate(inputs).astype(np.float64)
    assert ranges["image"] == pytest.approx((stacked.min(), stacked.max()))
    np.testing.assert_allclose(channels["image"].mean, stacked.mean((0, 2, 3)), atol=1e-6)
    weight = next(onnx.numpy_helper.to_array(v) for v in made.graph.initializer if v.name == "w1")
    half = F.max_pool2d(torch.from_numpy(stacked), 2)
    exact = F.conv2d(half, torch.from_numpy(weight.astype(np.float64)), padding=1)
    deviation = exact.transpose(0, 1).flatten(1).std(1, correction=0).numpy()
    np.testing.assert_allclose(channels["y1"].deviation, deviation, rtol=2e-3)  # 226 ± 0.1, in float32
    assert set(ranges) == set(channels) >= {"image", "half", "y1", "r1", "u1", "both", "logits"}


@pytest.mark.parametrize("joined", ["Add", "ConvTranspose"])
def test_other_ways_of_a_constant(joined: str) -> None:
    made = network()
    rng = np.random.default_rng(0)
    if joined == "Add":  # the constant comes from one of two summands
        node = next(node for node in made.graph.node if node.name == "up")
        node.CopyFrom(onnx.helper.make_node("Add", ["r1", "y2"], ["sum"], "add"))
        node.input[0] = "r1"
        up = onnx.helper.make_node("Resize", ["sum", "", "scales"], ["u1"], "up", mode="linear")
        nodes = [n for n in made.graph.node if n.name != "add"]
        place = next(i for i, n in enumerate(nodes) if n.name == "up_aside")
        nodes[place:place] = [node.__class__.FromString(node.SerializeToString()), up]
        expected = ["first", "relu", "add", "up", "cat", "second"]
    else:
        nodes = list(made.graph.node)
        taker = next(node for node in nodes if node.name == "second")
        taker.op_type = "ConvTranspose"
        weight = next(value for value in made.graph.initializer if value.name == "w3")
        turned = np.ascontiguousarray(onnx.numpy_helper.to_array(weight).swapaxes(0, 1))
        weight.CopyFrom(onnx.numpy_helper.from_array(turned, "w3"))
        expected = CHAIN
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del made.graph.node[:], made.graph.value_info[:]
    made.graph.node.extend(nodes)
    made = onnx.shape_inference.infer_shapes(made)
    onnx.checker.check_model(made)
    inputs = [rng.standard_normal((1, 3, 16, 20)).astype(np.float32)]
    assert list(sensitive_nodes(made, ranges_of(made, inputs), channels_of(made, inputs))) == expected


def test_reach_is_the_gain_of_each_channel_alone() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 2, 3, 3))
    groups = onnx.helper.make_node("Conv", ["x", "w"], ["y"], group=3)
    x = np.abs(weight).reshape(3, 2, 2, 9).sum(-1)  # [group, output, input]
    np.testing.assert_allclose(_reach(weight, groups), x)
    back = onnx.helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=3)
    np.testing.assert_allclose(_reach(weight, back), x.transpose(0, 2, 1))


@pytest.mark.parametrize("pads", [[1, 1, 1, 1], [0, 0, 0, 0]])
def test_split_heads_give_the_same(pads: list[int], tmp_path: Path) -> None:
    made = network()
    made.graph.node[-1].attribute[-1].CopyFrom(onnx.helper.make_attribute("pads", pads))
    del made.graph.output[0].type.tensor_type.shape.dim[:]
    onnx.save(made, tmp_path / "a.onnx")
    assert split_heads(made) == (["head/sum"] if pads[0] else [])
    assert {value.name for value in made.graph.initializer} >= {"b4"} and (
        any(value.name == "w4" for value in made.graph.initializer) != bool(pads[0])
    )
    onnx.save(made, tmp_path / "b.onnx")
    x = np.random.default_rng(0).standard_normal((2, 3, 10, 14)).astype(np.float32)
    np.testing.assert_allclose(run(tmp_path / "b.onnx", x), run(tmp_path / "a.onnx", x), atol=1e-5)


def _old(folder: Path) -> Path:
    made = network()
    made.opset_import[0].version = 12
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(0, np.float32), "roi"))
    for node in made.graph.node:
        if node.op_type == "Resize":
            node.input[1] = "roi"
    onnx.save(made, folder / "old.onnx")
    return folder / "old.onnx"


REFUSALS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"calibration_pictures": []}, ValueError, "no picture to calibrate with"),
    ({"calibration_pictures": 3}, TypeError, "a folder or a list of pictures, got int"),
    ({"calibration_pictures": "no such folder"}, FileNotFoundError, "no folder no such folder"),
    ({"calibration_pictures": ["nothing.png"]}, FileNotFoundError, "no picture nothing.png"),
    ({"most": 0}, ValueError, "most must be at least 1, got 0"),
    ({"keep_float": ["frist"]}, ValueError, "unknown node 'frist': did you mean 'first'"),
    ({"keep_float": "first"}, TypeError, "a list of names, got the string 'first'"),
    ({"model": "nothing.onnx"}, FileNotFoundError, "nothing.onnx"),
    ({"model": "int8"}, ValueError, "quantised already"),
    ({"model": "old"}, ValueError, "of opset 12, expected at least 13"),
    ({"model": 3}, TypeError, "model"),
]


@pytest.mark.parametrize(("changed", "error", "words"), REFUSALS)
def test_errors_are_one_sentence_and_leave_what_was_there(
    changed: dict[str, Any],
    error: type[Exception],
    words: str,
    original: Path,
    pictures: list[NDArray[np.uint8]],
    tmp_path: Path,
) -> None:
    if changed.get("model") == "int8":
        quantize(original, pictures[:1], tmp_path / "int8.onnx", keep_float=())
        changed = {"model": tmp_path / "int8.onnx"}
    elif changed.get("model") == "old":
        changed = {"model": _old(tmp_path)}
    elif changed.get("model") == 3:
        pytest.importorskip("onnxscript")
    target = tmp_path / "out.onnx"
    target.write_bytes(b"as it was")
    arguments = {"model": original, "calibration_pictures": pictures[:1], "path": target} | changed
    with pytest.raises(error, match=words) as caught:
        quantize(**arguments)
    assert "\n" not in str(caught.value) and target.read_bytes() == b"as it was"
    assert not list(tmp_path.glob(".*"))


def test_without_onnxruntime_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("segzoo.export.quantize")
    real: Callable[[str], object] = module.find_spec
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "onnxruntime" else real(name))
    with pytest.raises(ImportError, match=r"^onnxruntime is not installed: pip install 'segzoo\[export\]'$"):
        quantize("u2net_lite", [], "out.onnx")


def test_a_report_without_float_nodes() -> None:
    report = QuantizationReport(3, 1, True, 0.00123, 0.0456, 5_300_000, 2_100_000, {})
    assert str(report).endswith("  5.3 MB became 2.1 MB\n  in float: no nodes")
    assert "0.0012 on average, 4.56% of" in str(report)


@pytest.mark.slow
def test_the_bundled_model_keeps_its_masks(data: Path, coffee: Path, tmp_path: Path) -> None:
    pictures = [coffee, *sorted((data / "camvid/train/images").iterdir())[::60][:5]]
    report = quantize("u2net_lite", pictures, tmp_path / "int8.onnx")
    chain = [name for name in report.kept if not name.endswith("/sum")]
    assert len(chain) == 5 and len(report.kept) == 11  # two convolutions and between them relu, resize, concat
    assert sum("226" in why for why in report.kept.values()) == 5
    full, narrow = segzoo.Predictor("u2net_lite"), FileModel(tmp_path / "int8.onnx")
    x = segzoo.inference.preprocess(segzoo.inference.read_picture(data / "ecssd/images/0001.jpg"), narrow.preprocessing)
    expected, got = full.scores(x[None]), narrow.predict(x[None])
    assert (expected - got).abs().mean() < 0.01


@pytest.mark.slow
def test_openvino_gives_the_same_masks(data: Path, coffee: Path, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    quantize("u2net_lite", [coffee], tmp_path / "int8.onnx")
    model = FileModel(tmp_path / "int8.onnx")
    x = segzoo.inference.preprocess(segzoo.inference.read_picture(data / "ecssd/images/0001.jpg"), model.preprocessing)
    network = openvino.Core().read_model(tmp_path / "int8.onnx")
    network.reshape([-1, 3, 320, 320])  # with H and W free its CPU plugin (2026.4) overwrites what it joins
    compiled = openvino.Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    other = torch.from_numpy(compiled([x[None].numpy()])[0]).sigmoid()
    assert (model.predict(x[None]) - other).abs().mean() < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", ["isnet", "deeplabv3_mobilenet_v3_large", "unet"])
def test_other_architectures(name: str, coffee: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"encoder": "resnet34", "encoder_weights": None} if name == "unet" else {}
    torch.manual_seed(0)
    model = segzoo.create_model(name, weights=None, num_classes=2 if name != "isnet" else 1, **options)
    model.preprocessing = Preprocessing(size=(96, 128))
    model.train()
    x = torch.stack([torch.randn(3, 96, 128), torch.rand(3, 96, 128)])
    with torch.no_grad():
        for _ in range(8):  # running statistics that fit, as trained models have
            model(x)
    report = quantize(model.eval(), [coffee], tmp_path / "int8.onnx")
    if "mobilenet" not in name:  # untrained it has many constant channels, whose chains stay in float
        assert report.int8_bytes < 0.4 * report.float_bytes
    assert report.difference < 0.05
    session = FileModel(tmp_path / "int8.onnx")
    assert session.predict(np.zeros((2, 3, 65, 97), np.float32)).shape == (2, model.num_classes, 65, 97)
