"""Models in ONNX files: the predictions are torch's, whatever runs them; and a plain one never waits for torch."""

from __future__ import annotations

import copy
import importlib
import json
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import segzoo
from segzoo.cli import main
from segzoo.inference import FileModel, Prediction, evaluate, predict_folder, preprocess, read_picture
from segzoo.inference import _sessions as sessions
from segzoo.inference._resizing import resize_maps, resize_pixels
from segzoo.inference._without_torch import preprocessed, to_probabilities
from segzoo.models.base import SegmentationModel
from segzoo.ops import resize
from segzoo.weights import Preprocessing

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("one_thread")

RULE = Preprocessing(size=(24, 32), scale="max")
RUNTIMES = ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)]


class Filter(SegmentationModel):
    """One convolution."""

    heads = ("conv.",)
    stem = "conv.weight"
    default_num_classes = 1

    def __init__(self, num_classes: int = 1, in_channels: int = 3, multilabel: bool = False) -> None:
        super().__init__(num_classes, in_channels, multilabel=multilabel)
        self.conv = nn.Conv2d(in_channels, num_classes, 3, padding=1)
        generator = torch.Generator().manual_seed(num_classes)
        nn.init.normal_(self.conv.weight, generator=generator)
        self.preprocessing = RULE.for_channels(in_channels)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.conv(x)
        return logits


def written(
    path: Path,
    model: Filter,
    *,
    output: str = "logits",
    size: tuple[Any, Any] = ("H", "W"),
    batch: int | str = "N",
    metadata: dict[str, str] | None = None,
    several: bool = False,
) -> Path:
    """The same network as an ONNX file, made node by node; with what the exporter says of a file, or other metadata."""
    helper = onnx.helper
    weights = [onnx.numpy_helper.from_array(v.detach().numpy(), n) for n, v in model.conv.named_parameters()]
    nodes = [helper.make_node("Conv", ["image", "weight", "bias"], ["logits"], pads=[1, 1, 1, 1])]
    if output == "probabilities":
        softmax = model.num_classes > 1 and not model.multilabel
        nodes.append(
            helper.make_node(
                "Softmax" if softmax else "Sigmoid", ["logits"], [output], **{"axis": 1} if softmax else {}
            )
        )
    if several:
        nodes.append(helper.make_node("Neg", [output], ["another"]))

    def tensor(name: str, channels: int) -> Any:
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [batch, channels, *size])

    outputs = [tensor(name, model.num_classes) for name in ([output, "another"] if several else [output])]
    graph = helper.make_graph(nodes, "g", [tensor("image", model.in_channels)], outputs, weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    said = {
        "producer": "segzoo, by a test",
        "classes": json.dumps(model.classes),
        "num_classes": str(model.num_classes),
        "multilabel": json.dumps(model.multilabel),
        "preprocessing": json.dumps(asdict(model.preprocessing)),
        "threshold": str(model.threshold),
        "output": output,
    }
    theirs = {"producer": said["producer"], **metadata} if metadata else {}
    helper.set_model_props(proto, said if metadata is None else theirs)
    onnx.save(proto, path)
    return path


def picture(height: int = 30, width: int = 40, seed: int = 0, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, (height, width, channels), dtype=np.uint8)


def assert_same(found: Prediction, expected: Prediction) -> None:
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-4)
    assert isinstance(found.scores, Tensor) and found.scores.shape == expected.scores.shape
    assert (found.threshold, found.classes, found.multilabel) == (
        expected.threshold,
        expected.classes,
        expected.multilabel,
    )


# The same predictions.


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("classes", "multilabel"), [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize("output", ["logits", "probabilities"])
def test_predictions_are_torchs(tmp_path: Path, runtime: Any, classes: int, multilabel: bool, output: str) -> None:
    model = Filter(classes, multilabel=multilabel)
    model.threshold, model.classes = 0.4, ("a", "b", "c")[:classes]
    path = written(tmp_path / "m.onnx", model, output=output)
    pictures = [picture(seed=i) for i in range(3)] + [picture(9, 50)]
    for options in (
        {},
        {"min_max": True},
        {"tta": "flip"},
        *([{"tta": (0.5, 1.0)}, {"tile": 24}, {"tta": (0.5,), "tile": (24, 32)}] if output == "logits" else []),
        {"postprocess": lambda p: p.refined("guided", radius=2).tidied(min_area=3)},
    ):
        ours = segzoo.Predictor(path, backend=runtime, batch_size=2, **options)
        theirs = segzoo.Predictor(model, batch_size=2, **options)
        for found, expected in zip(ours(pictures), theirs(pictures)):
            assert_same(found, expected)
        assert_same(ours(pictures[0]), theirs(pictures[0]))
    assert ours.backend == runtime and ours.device == "cpu" and theirs.backend == "torch"
    assert ours.shares_pixels == theirs.shares_pixels


def test_pictures_made_of_a_prediction_are_torchs(tmp_path: Path) -> None:
    for model in (Filter(), Filter(3)):
        found = segzoo.Predictor(written(tmp_path / "m.onnx", model))(picture())
        expected = segzoo.Predictor(model)(picture())
        chosen = {"classes": [1, 2]} if model.num_classes > 1 else {}
        for kind, options in (("mask", {}), ("overlay", {}), ("cutout", chosen), ("cutout", {"hard": True, **chosen})):
            shown, wanted = (np.asarray(p.render(kind, **options)).astype(int) for p in (found, expected))
            assert shown.shape == wanted.shape and (np.abs(shown - wanted) > 1).mean() < 1e-3
        if model.num_classes == 1:
            assert np.abs(found.evaluation_map().astype(int) - expected.evaluation_map()).max() <= 1


def test_folders_and_evaluation_take_a_file(tmp_path: Path) -> None:
    from PIL import Image

    model = Filter()
    path = written(tmp_path / "m.onnx", model)
    for folder in ("in", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(3):
        Image.fromarray(picture(seed=i)).save(tmp_path / f"in/{i}.png")
        Image.fromarray((picture(seed=9 + i)[:, :, 0] > 100).astype(np.uint8) * 255).save(tmp_path / f"masks/{i}.png")
    report = predict_folder(segzoo.Predictor(path, batch_size=2), tmp_path / "in", tmp_path / "out")
    assert len(report.written) == 3 and not report.failed
    found, expected = (evaluate(tmp_path / "in", tmp_path / "masks", model=m) for m in (path, model))
    assert found.results["mae"] == pytest.approx(expected.results["mae"], abs=1e-4)
    assert found.settings["model"] == str(path) and found.settings["backend"] == "onnxruntime"
    assert (found.settings["device"], found.settings["precision"]) == ("cpu", "float32")


def test_a_model_is_exported_first_and_the_log_says_how_to_keep_the_file(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Filter(2)
    # The exporter takes seconds and has tests of its own.
    monkeypatch.setattr("segzoo.export.to_onnx", lambda given, path: written(path, given))
    with caplog.at_level(logging.WARNING, "segzoo.inference.runtimes"):
        predictor = segzoo.Predictor(model, backend="onnxruntime")
    assert "segzoo.export.to_onnx keeps the file" in caplog.text
    assert_same(predictor(picture()), segzoo.Predictor(model)(picture()))
    assert_same(pickle.loads(pickle.dumps(predictor))(picture()), segzoo.Predictor(model)(picture()))


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_bundled_model_by_name(runtime: Any, coffee: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip(runtime)
    expected = segzoo.Predictor("u2net_lite.duts", precision="fp32")(coffee)
    with caplog.at_level(logging.WARNING, "segzoo.inference.runtimes"):
        predictor = segzoo.Predictor("u2net_lite.duts", backend=runtime)
    assert "segzoo export u2net_lite.duts u2net_lite.duts.onnx keeps the file" in caplog.text
    assert_same(predictor(coffee), expected)
    assert predictor.model.weights.name == "u2net_lite.duts"


def test_the_published_file_is_known(u2netp_onnx: Path, coffee: Path) -> None:
    predictor = segzoo.Predictor(u2netp_onnx)
    model = predictor.model
    assert (model.output, model.size, model.batch, model.weights.name) == (
        "probabilities",
        (320, 320),
        1,
        "u2net_lite.duts",
    )
    assert_same(predictor(coffee), segzoo.Predictor("u2net_lite.duts", precision="fp32")(coffee))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("batch", [1, 2, "N"])
def test_files_of_one_size(tmp_path: Path, runtime: Any, batch: int | str) -> None:
    """Batches go in turns, pictures are resized, windows filled up."""
    model = Filter(2)
    path = written(tmp_path / "m.onnx", model, size=(40, 48), batch=batch)
    model.preprocessing = Preprocessing(size=(40, 48), scale="max")
    pictures = [picture(seed=i) for i in range(3)]
    for options in ({}, {"tta": "flip"}, {"tile": (40, 48)}):
        ours, theirs = (segzoo.Predictor(m, batch_size=3, **options) for m in (path, model))
        large = [picture(60, 70)] if "tile" in options else pictures
        if options or runtime == "onnxruntime":
            ours = segzoo.Predictor(path, batch_size=3, backend=runtime, **options)
        for found, expected in zip(ours(large), theirs(large)):
            inside = np.s_[:, :-2, :-2] if "tile" in options else np.s_[:]  # the model sees zeros beyond the rim there
            np.testing.assert_allclose(found.probabilities[inside], expected.probabilities[inside], atol=1e-4)
    file = segzoo.Predictor(path, backend=runtime).model
    assert file.size == (40, 48) == file.preprocessing.size and file.batch == (None if batch == "N" else batch)
    with pytest.raises(ValueError, match=r"takes 40×48 pixels only, got 40×40"):
        file.predict(np.zeros((1, 3, 40, 40), np.float32))
    for options in ({"tile": 24}, {"tta": (0.5, 1.0)}, {"tta": "multi-scale"}):
        with pytest.raises(ValueError, match="takes 40×48 pixels only: expected that as tile"):
            segzoo.Predictor(path, backend=runtime, **options)


def test_bands_other_than_colours(tmp_path: Path) -> None:
    model = Filter(2, in_channels=5)
    x = picture(channels=5)
    assert_same(segzoo.Predictor(written(tmp_path / "m.onnx", model))(x), segzoo.Predictor(model)(x))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_threads_copies_and_pickles(tmp_path: Path, runtime: Any) -> None:
    pytest.importorskip(runtime)
    predictor = segzoo.Predictor(written(tmp_path / "m.onnx", Filter()), backend=runtime)
    predictor.model.threshold = 0.3
    inputs = [np.full((1, 3, 8, 8), i, np.float32) for i in range(40)]
    expected = [predictor.model.predict(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(predictor.model.predict, inputs), expected):
            np.testing.assert_array_equal(found, wanted)
    for other in (copy.deepcopy(predictor), pickle.loads(pickle.dumps(predictor))):
        np.testing.assert_array_equal(other.model.predict(inputs[3]), expected[3])
        assert other.model.threshold == 0.3


def test_a_file_that_says_nothing_is_taken_with_what_is_known_of_it(tmp_path: Path) -> None:
    model = Filter(3)
    path = written(tmp_path / "m.onnx", model, output="probabilities", metadata={}, several=True)
    with pytest.raises(
        ValueError, match=r"m\.onnx does not say its preprocessing and output, .*FileModel takes it with"
    ):
        segzoo.Predictor(path)
    file = FileModel(path, preprocessing=RULE, output="probabilities", classes=("a", "b", "c"))
    model.classes = ("a", "b", "c")
    predictor = segzoo.Predictor(file)
    assert predictor.model is file and predictor.backend == "onnxruntime"
    assert_same(predictor(picture()), segzoo.Predictor(model)(picture()))
    wrong = FileModel(written(tmp_path / "l.onnx", model), output="probabilities")
    with pytest.raises(ValueError, match="these are logits, no probabilities"):
        wrong.predict(np.full((1, 3, 8, 8), 9, np.float32))


# NumPy for torch: the same digits.


@given(
    before=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    after=st.tuples(st.integers(2, 90), st.integers(2, 90)),
    channels=st.sampled_from([1, 3]),
    mode=st.sampled_from(["bilinear", "bicubic", "nearest"]),
    seed=st.integers(0, 9),
)
def test_pixels_are_resized_to_torchs_digits(
    before: tuple[int, int], after: tuple[int, int], channels: int, mode: str, seed: int
) -> None:
    pixels = picture(*before, seed, channels)
    expected = resize(torch.from_numpy(pixels).permute(2, 0, 1)[None], after, mode)[0].numpy()
    np.testing.assert_array_equal(resize_pixels(pixels, after, mode), expected)


@given(
    before=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    after=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    seed=st.integers(0, 9),
)
def test_maps_are_resized_as_in_torch(before: tuple[int, int], after: tuple[int, int], seed: int) -> None:
    maps = np.random.default_rng(seed).random((2, *before), dtype=np.float32)
    found = resize_maps(maps, after)
    np.testing.assert_allclose(found, resize(torch.from_numpy(maps)[None], after)[0].numpy(), atol=2e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    "rule", [RULE, Preprocessing(size=17), Preprocessing(size=None), Preprocessing((9, 7), "bicubic")]
)
def test_inputs_are_torchs_digit_for_digit(rule: Preprocessing, coffee: Path) -> None:
    grey = picture(channels=1)
    transparent = np.concatenate([picture(), grey], 2)
    for source in (coffee, picture(), grey[:, :, 0], transparent, np.zeros((5, 6, 3), np.uint8)):
        seen = read_picture(source)
        np.testing.assert_array_equal(preprocessed(seen, rule)[0], preprocess(seen, rule).numpy())


@pytest.mark.parametrize(("classes", "multilabel"), [(1, False), (4, False), (4, True)])
def test_probabilities_are_torchs(classes: int, multilabel: bool) -> None:
    logits = np.random.default_rng(0).normal(0, 60, (2, classes, 9, 9)).astype(np.float32)
    logits[0, 0, 0] = [-np.inf, np.inf, -1e4, 1e4, 0, 88.8, -88.8, 1, -1] if multilabel or classes == 1 else 0
    exact = torch.from_numpy(logits).double()
    expected = exact.sigmoid() if multilabel or classes == 1 else exact.softmax(1)
    np.testing.assert_allclose(to_probabilities(logits, multilabel), expected.numpy(), atol=1e-7, rtol=1e-5)


# Without torch.


def run(*arguments: object) -> str:
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_plain_look_of_a_file_does_without_torch(tmp_path: Path, coffee: Path) -> None:
    path = written(tmp_path / "m.onnx", Filter(), size=(24, 32))
    heavy = ["torch", "torchvision", "timm", "scipy", "huggingface_hub", "safetensors"]
    code = (
        "import sys, numpy as np, segzoo; from segzoo.cli import main\n"
        f"assert main(['cutout', {str(coffee)!r}, {str(tmp_path / 'out.png')!r}, '--model', {str(path)!r}]) == 0\n"
        f"p = segzoo.Predictor({str(path)!r}, min_max=True)(np.zeros((9, 8, 3), np.uint8))\n"
        "p.mask, p.probabilities, p.overlay(), p.evaluation_map()\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    assert run("-c", code) == "[]"
    assert (tmp_path / "out.png").stat().st_size > 100_000
    assert main(["cutout", str(coffee), str(tmp_path / "again.png"), "--model", str(path)]) == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "out.png").read_bytes()


def test_every_name_is_where_it_was() -> None:
    for package in (segzoo.inference, segzoo.weights):
        assert set(package.__all__) <= set(dir(package))
        for name in package.__all__:
            assert not isinstance(getattr(package, name), ModuleType), name
        with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
            package.nonsense  # noqa: B018
    assert segzoo.weights.Preprocessing is Preprocessing is segzoo.weights.record.Preprocessing
    for module, names in (("multiscale", ("SCALES", "checked_scales", "scaled_size")), ("tiling", ("size_pair",))):
        assert all(hasattr(importlib.import_module(f"segzoo.inference.{module}"), name) for name in names)
    # What the import system does after a first import of the module that is called as a function is:
    segzoo.inference.crf = importlib.import_module("segzoo.inference.crf")
    assert callable(segzoo.inference.crf)


# What is refused, in one sentence.


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_broken_files(tmp_path: Path, runtime: Any) -> None:
    pytest.importorskip(runtime)
    whole = written(tmp_path / "m.onnx", Filter()).read_bytes()
    bad = tmp_path / "bad.onnx"
    for content in (b"", b"no ONNX at all", whole[:200], b"\x00" * 500):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.onnx cannot be loaded by \w+ \(.+\)$"):
            segzoo.Predictor(bad, backend=runtime)
    with pytest.raises(FileNotFoundError, match="there is no ONNX file .*none.onnx"):
        segzoo.Predictor(tmp_path / "none.onnx", backend=runtime)
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ValueError, match="is a folder, expected an ONNX file"):
        segzoo.Predictor(tmp_path / "folder.onnx", backend=runtime)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "onnx"}, "unknown backend 'onnx': did you mean 'onnxruntime'"),
        ({"backend": "torch"}, "torch does not run .*: expected backend 'onnxruntime' or 'openvino'"),
        ({"precision": "bf16"}, "precision is 'bf16', and onnxruntime computes as the file says"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"device": "tpu"}, "unknown device of onnxruntime 'tpu'"),
        ({"device": "cpu:0"}, "unknown device of onnxruntime 'cpu:0'"),
    ],
)
def test_what_a_file_cannot_do(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = written(tmp_path / "m.onnx", Filter())
    with pytest.raises(ValueError, match=message):
        segzoo.Predictor(path, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_gpu_that_was_asked_for_and_is_not_there_is_an_error(
    tmp_path: Path, runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(runtime)
    path = written(tmp_path / "m.onnx", Filter())
    monkeypatch.setattr("segzoo.export.to_onnx", lambda *_: pytest.fail("asked after the work"))
    for model in (path, "u2net_lite"):
        with pytest.raises(ValueError, match="device 'cuda' was asked for and is not there"):
            segzoo.Predictor(model, backend=runtime, device="cuda")


@pytest.mark.slow
def test_openvino_is_not_narrowed_unless_asked(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path = written(tmp_path / "m.onnx", Filter())
    able = __import__("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for precision in ("auto", "fp32", "bf16"):
        if precision == "bf16" and "BF16" not in able:
            with pytest.raises(ValueError, match="OpenVINO's CPU has it not here"):
                FileModel(path, "openvino", precision=precision)
            continue
        file = FileModel(path, "openvino", precision=precision)
        hint = str(file._session._for_size((8, 8))._compiled.get_property("INFERENCE_PRECISION_HINT"))
        assert ("bf16" in hint or "bfloat16" in hint) == (precision == "bf16")
        assert file.precision == ("bfloat16" if precision == "bf16" else "float32")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"preprocessing": "{", "output": "logits"}, "says of itself what cannot be read"),
        ({"preprocessing": '{"colour": 1}', "output": "logits"}, "says of itself what cannot be read"),
        ({"preprocessing": '{"std": [0, 1, 1]}', "output": "logits"}, "std must not be 0"),
        ({"preprocessing": "{}", "output": "labels"}, "says that its output is 'labels', expected logits or prob"),
        ({"preprocessing": "{}", "output": "logits", "num_classes": "7"}, "says 7 classes, and has 2 channels"),
        ({"preprocessing": "{}"}, "does not say its output"),
    ],
)
def test_metadata_that_cannot_be(tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    path = written(tmp_path / "m.onnx", Filter(2), metadata=metadata)
    with pytest.raises(ValueError, match=message):
        segzoo.Predictor(path)


def test_a_missing_runtime_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "m.onnx", Filter())
    for package in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, package, None)
        for model in (path, "u2net_lite"):
            with pytest.raises(ImportError, match=f"^{package} is not installed: pip install {package}$"):
                segzoo.Predictor(model, backend=package)  # type: ignore[arg-type]


def test_arguments_of_a_file_model(tmp_path: Path) -> None:
    path = written(tmp_path / "m.onnx", Filter(2))
    wrong: list[tuple[Callable[[], object], str]] = [
        (lambda: FileModel(path, "torch"), "unknown backend of an ONNX file 'torch'"),  # type: ignore[arg-type]
        (lambda: FileModel(path, output="scores"), "unknown output 'scores'"),  # type: ignore[arg-type]
        (lambda: FileModel(path, classes=("a",)), "classes are 1 names, and .* has 2 classes"),
        (lambda: segzoo.Predictor(FileModel(path), backend="torch"), "runs in onnxruntime already"),
        (lambda: segzoo.Predictor(FileModel(path), device="cuda"), "are a FileModel's own"),
        (lambda: FileModel(path).predict(np.zeros((1, 4, 8, 8), np.float32)), r"takes \[N, 3, H, W\] with H, W ≥ 1"),
    ]
    for call, message in wrong:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("asked", "set_in_torch", "processors", "expected"),
    [("", 8, 8, None), ("2", 8, 8, 2), ("", 3, 8, 3), ("9", 8, 8, None), ("nonsense", 8, 8, None), ("", 8, 16, 8)],
)
def test_no_more_threads_than_the_user_wants(
    monkeypatch: pytest.MonkeyPatch, asked: str, set_in_torch: int, processors: int, expected: int | None
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr(torch, "get_num_threads", lambda: set_in_torch)
    monkeypatch.setattr(sessions.os, "cpu_count", lambda: processors)
    monkeypatch.setattr(sessions.os, "sched_getaffinity", lambda _: set(range(processors)), raising=False)
    assert sessions._threads() == expected


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], coffee: Path) -> None:
    path = written(tmp_path / "m.onnx", Filter())
    out = tmp_path / "mask.png"
    assert (
        main(["predict", str(coffee), str(out), "--model", str(path), "--backend", "onnxruntime", "--tta", "flip"]) == 0
    )
    assert out.is_file()
    for arguments, message in (
        (["--model", str(path), "--backend", "torch"], "torch does not run"),
        (["--model", str(path), "--weights", "a.pth"], "--weights is for a model by name, and"),
        (["--model", str(tmp_path / "no.onnx")], "there is no ONNX file"),
    ):
        assert main(["cutout", str(coffee), str(tmp_path / "o.png"), *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
