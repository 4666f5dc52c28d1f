"""Exported files give the model's own numbers at sizes that were not traced, and are written whole or not at all."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, build, shaken
from torch import Tensor, nn

import segzoo
from segzoo.encoders import get_encoder
from segzoo.export import _prepared, to_onnx, to_program
from segzoo.export import onnx as onnx_module
from segzoo.export.detection import compare_detections
from segzoo.models import U2Net, UNet
from segzoo.models.base import SegmentationModel
from segzoo.models.u2net import Stage
from segzoo.weights.record import Preprocessing

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = [(2, 33, 33), (1, 129, 75)]  # N, H, W: neither traced nor what the export itself compares


class Plain(SegmentationModel):
    """A model of somebody's own, with a head that only training needs."""

    heads = ("last.",)
    optional = ("aux.",)
    stem = "first.weight"
    default_num_classes = 2

    def __init__(self, num_classes: int = 2, in_channels: int = 3, *, multilabel: bool = False) -> None:
        super().__init__(num_classes, in_channels, multilabel=multilabel)
        self.first = nn.Conv2d(in_channels, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.last = nn.Conv2d(6, num_classes, 1)
        self.aux = nn.Conv2d(6, num_classes, 1)

    def forward(self, x: Tensor) -> Any:
        self.check_input(x)
        features = self.norm(self.first(x)).relu()
        return [self.last(features), self.aux(features)] if self.training else self.last(features)


SMALL: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "u2net": lambda: U2Net([Stage(3, 3, 2, 4), Stage("4F", 4, 2, 4)], [Stage(3, 8, 2, 4)]),
    "unet": lambda: UNet(
        get_encoder("resnet10t", weights=None, in_channels=4, depth=2),
        decoder_channels=(4, 4),
        in_channels=4,
        num_classes=3,
    ),
    "segformer": FAMILIES["segformer"],
}

MODELS = [pytest.param(name, marks=pytest.mark.slow) if name == "segformer" else name for name in SMALL]


def made(name: str) -> Any:
    return shaken(SMALL[name]())


def inputs(model: Any, sizes: list[tuple[int, int, int]] = SIZES) -> Iterator[Tensor]:
    for n, height, width in sizes:
        yield torch.randn(n, model.in_channels, height, width, generator=torch.Generator().manual_seed(height))


def run_onnx(path: Path, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"image": x.numpy()})
    return torch.from_numpy(y)


def metadata(path: Path) -> dict[str, str]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(session.get_modelmeta().custom_metadata_map)


def same(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    difference = float((got.double() - expected.double()).abs().max() / (expected.max() - expected.min()))
    assert difference <= 1e-4
    return difference


@pytest.mark.parametrize("name", MODELS)
def test_onnx_gives_the_models_numbers(name: str, tmp_path: Path) -> None:
    model, path = made(name), tmp_path / "model.onnx"
    assert to_onnx(model, path) <= 1e-4
    with torch.inference_mode():
        for x in inputs(model):
            same(run_onnx(path, x), model(x))
    proto = onnx.load(path)
    names = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in proto.graph.input]
    assert names == [["N", model.in_channels, "H", "W"]]
    assert [v.name for v in proto.graph.output] == ["logits"]
    assert not any("aux" in tensor.name for tensor in proto.graph.initializer)
    assert not any(node.op_type == "BatchNormalization" for node in proto.graph.node)
    assert b"site-packages" not in path.read_bytes() and b"segzoo/" not in path.read_bytes()


@pytest.mark.parametrize("name", MODELS)
def test_a_program_gives_the_models_numbers(name: str, tmp_path: Path) -> None:
    model, path = made(name), tmp_path / "model.pt2"
    to_program(model, path)
    files = {"segzoo.json": ""}
    program = torch.export.load(path, extra_files=files)
    assert json.loads(files["segzoo.json"])["num_classes"] == str(model.num_classes)
    assert not any("aux" in key for key in program.state_dict)
    smallest = 61 if name == "segformer" else 33  # whose attention leaves nothing of fewer, says torch
    taken = [x for x in inputs(model) if min(x.shape[2:]) >= smallest]
    assert taken
    with torch.inference_mode():
        for x in taken:
            same(program.module()(x), model(x))
    if callable(torch.export.Dim.DYNAMIC):
        with pytest.raises(AssertionError, match="33|61"):
            program.module()(torch.zeros(1, model.in_channels, 32, 40))


def test_metadata_say_all_that_is_known(tmp_path: Path) -> None:
    model = made("plain")
    model.preprocessing = Preprocessing(size=None, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0), scale="max")
    model.classes, model.threshold, model.multilabel = ("Straße", "field"), 0.25, True
    model.weights = segzoo.get_weights("u2net_lite.duts")
    to_onnx(model, tmp_path / "model.onnx", dynamic=False, size=(33, 40), batch=2, include_postprocessing=True)
    known = metadata(tmp_path / "model.onnx")
    read = Preprocessing(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in _json(known, "preprocessing").items()}
    )
    assert read == model.preprocessing and asdict(read) == asdict(model.preprocessing)
    assert _json(known, "classes") == ["Straße", "field"] and _json(known, "multilabel") is True
    assert known["producer"] == f"segzoo {segzoo.__version__}" and known["architecture"] == "Plain"
    assert (known["weights"], known["license"]) == ("u2net_lite.duts", "Apache-2.0")
    assert (known["num_classes"], known["in_channels"], known["threshold"]) == ("2", "3", "0.25")
    assert known["output"] == "probabilities"
    (x,) = inputs(model, [(2, 33, 40)])
    same(run_onnx(tmp_path / "model.onnx", x), model.predict(x))
    model.weights = model.classes = None
    known = _prepared.described(model, "logits")
    assert "weights" not in known and "license" not in known and _json(known, "classes") is None
    assert known["output"] == "logits"


def _json(known: dict[str, str], key: str) -> Any:
    return json.loads(known[key])


@pytest.mark.parametrize(("classes", "multilabel"), [(1, False), (3, False), (3, True)])
def test_postprocessing_is_what_predict_does(classes: int, multilabel: bool) -> None:
    model = shaken(Plain(classes, multilabel=multilabel))
    program = to_program(model, dynamic=False, size=(35, 34), include_postprocessing=True)
    (x,) = inputs(model, [(1, 35, 34)])
    torch.testing.assert_close(program.module()(x), model.predict(x))


def test_the_model_stays_as_it_is() -> None:
    model = made("plain").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    to_program(torch.compile(model, backend="eager"), dynamic=False, size=(33, 33))
    assert model.training and all(module.training for module in model.modules()) and model.aux is not None
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(random, torch.get_rng_state())


def test_nothing_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    to_onnx(made("plain"), tmp_path / "model.onnx", dynamic=False, size=(33, 34))
    assert capfd.readouterr() == ("", "")


class Depends(Plain):
    """Gives something else at other sizes than the traced one, or nothing at all."""

    wrong: float = 0.0
    stops = False

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        if self.stops:
            return y.reshape(2, 2, 96, 128)
        return y if torch.compiler.is_compiling() else y + self.wrong * y.std()


@pytest.mark.parametrize("export", [to_onnx, to_program])
def test_what_differs_is_not_written(export: Callable[..., Any], tmp_path: Path) -> None:
    model, path = shaken(Depends()), tmp_path / "model.bin"
    path.write_bytes(b"older")
    model.wrong = 0.01
    with pytest.raises(ValueError, match=r"at 97×161 differs by .*e-0. of the outputs' range, expected at most 1e-04"):
        export(model, path)
    model.wrong = float("nan")
    with pytest.raises(ValueError, match="differs by nan"):
        export(model, path)
    model.stops = True
    with pytest.raises(ValueError, match=r"torch 2.* cannot export this Depends with free sizes \(dynamic=False"):
        export(model, path)
    assert path.read_bytes() == b"older" and [p.name for p in tmp_path.iterdir()] == ["model.bin"]


@pytest.mark.parametrize("export", [to_onnx, to_program])
def test_a_full_disk_leaves_the_older_file(export: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"older")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            export(made("plain"), path, dynamic=False, size=(33, 33))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"older" and [p.name for p in tmp_path.iterdir()] == ["model.bin"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"opset": 17}, "opset is 18 to 23, got 17"),
        ({"opset": 24}, "opset is 18 to 23, got 24"),
        ({"size": (64, 64)}, r"size and batch are of a file with dynamic=False, got size=\(64, 64\), batch=1"),
        ({"batch": 2}, "size and batch are of a file with dynamic=False"),
        ({"dynamic": False, "size": (0, 64)}, "height must be a positive int, got 0"),
        ({"dynamic": False, "batch": 0, "size": (64, 64)}, "batch must be a positive int, got 0"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        to_onnx(made("plain"), tmp_path / "model.onnx", **arguments)
    assert not any(tmp_path.iterdir())


def test_what_cannot_be_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(TypeError, match=r"model is a name or a segzoo.models.SegmentationModel, got Conv2d"):
        to_onnx(nn.Conv2d(3, 3, 1), path)
    with pytest.raises(TypeError, match=r"float32 is exported, and first.weight of this model is bfloat16: give the"):
        to_onnx(made("plain").bfloat16(), path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        to_onnx(made("plain"), tmp_path / "no" / "model.onnx")
    model = made("plain")
    model.preprocessing = Preprocessing(size=520)
    with pytest.raises(ValueError, match=r"dynamic=False needs a size, as size=\(512, 512\)"):
        to_onnx(model, path, dynamic=False)
    monkeypatch.setattr(onnx_module, "_MOST", 100)
    with pytest.raises(ValueError, match="an ONNX file holds 2 GiB at most"):
        to_onnx(model, path)
    monkeypatch.setattr(onnx_module, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ImportError, match=r"onnxscript not installed: pip install 'segzoo\[export\]'"):
        to_onnx(model, path)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_openvino_reads_the_file(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    model, path = made("u2net"), tmp_path / "model.onnx"
    to_onnx(model, path)
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.inference_mode():
        for x in inputs(model):
            same(torch.from_numpy(compiled(x.numpy())[0]), model(x))


def test_detections_are_compared_by_pairs() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 20, 30]])
    found = (boxes, torch.tensor([1, 2]), torch.tensor([0.9, 0.8]), torch.rand(2, 1, 40, 50))
    assert compare_detections("it", found, tuple(x.flip(0) for x in found), 50) == 0
    moved = (boxes + 0.002, *found[1:])
    assert compare_detections("it", found, moved, 50) == pytest.approx(4e-5, rel=0.01)
    others = [
        (boxes + 0.1, *found[1:]),
        (boxes, torch.tensor([1, 3]), *found[2:]),
        (*found[:2], found[2] + 0.001, found[3]),
        (*found[:3], found[3] + 0.02),
        (*found[:3], found[3][..., 1:]),
        tuple(x[:1] for x in found),
        tuple(x[:0] for x in found),
    ]
    for other in others:
        with pytest.raises(ValueError, match=r"^it gives"):
            compare_detections("it", found, other, 50)
    assert compare_detections("it", others[-1], others[-1], 50) == 0


@pytest.mark.slow
@pytest.mark.parametrize("opset", onnx_module.OPSETS)
def test_every_opset(opset: int, tmp_path: Path) -> None:
    to_onnx(made("u2net"), tmp_path / "model.onnx", opset=opset)
    assert [entry.version for entry in onnx.load(tmp_path / "model.onnx").opset_import if not entry.domain] == [opset]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in segzoo.list_models() if name != "mask_rcnn_resnet50_fpn"])
def test_every_architecture(name: str, tmp_path: Path) -> None:
    model = shaken(build(name))
    to_onnx(model, tmp_path / "model.onnx")
    program = to_program(model, tmp_path / "model.pt2").module()
    with torch.inference_mode():
        for x in inputs(model, [(1, 97, 161), (2, 129, 75)]):
            expected = model(x)
            same(run_onnx(tmp_path / "model.onnx", x), expected)
            same(program(x), expected)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["evo_s0", "evo_b0", "instance", "layer", "frozen_batch"])
def test_other_norms(norm: str, tmp_path: Path) -> None:
    model = shaken(U2Net([Stage(3, 3, 8, 8), Stage("4F", 8, 8, 8)], [Stage(3, 16, 8, 8)], norm=norm))
    to_onnx(model, tmp_path / "model.onnx")
    with torch.inference_mode():
        for x in inputs(model):
            same(run_onnx(tmp_path / "model.onnx", x), model(x))


@pytest.mark.slow
def test_large_and_odd_sizes_of_the_bundled_model(tmp_path: Path) -> None:
    model = segzoo.u2net_lite().eval()
    to_onnx("u2net_lite", tmp_path / "model.onnx")
    program = to_program(model).module()
    with torch.inference_mode():
        for x in inputs(model, [(1, 33, 33), (1, 97, 161), (1, 320, 320), (1, 1000, 333)]):
            same(run_onnx(tmp_path / "model.onnx", x), model(x))
            same(program(x), model(x))


@pytest.mark.slow
def test_a_program_runs_where_this_library_is_not(tmp_path: Path) -> None:
    model = made("u2net")
    to_program(model, tmp_path / "model.pt2")
    (x,) = inputs(model, [(3, 47, 65)])
    torch.save(x, tmp_path / "x.pt")
    script = """
        import sys, torch
        y = torch.export.load("model.pt2").module()(torch.load("x.pt"))
        assert "segzoo" not in sys.modules
        torch.save(y.detach(), "y.pt")
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, cwd=tmp_path, env=environment)
    with torch.inference_mode():
        same(torch.load(tmp_path / "y.pt"), model(x))


@pytest.mark.slow
def test_a_killed_export_leaves_nothing(tmp_path: Path) -> None:
    script = """
        import os, signal, segzoo
        from segzoo.export import onnx
        onnx.session_of = lambda data: os.kill(os.getpid(), signal.SIGKILL)
        onnx.to_onnx("u2net_lite", "model.onnx", dynamic=False, size=(64, 64))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL and not any(tmp_path.iterdir())


@pytest.mark.slow
def test_windowed_transformers(tmp_path: Path) -> None:
    model = shaken(UNet("swin_tiny_patch4_window7_224", num_classes=2, decoder_channels=(16, 8, 8, 8, 8)))
    with pytest.raises(
        ValueError, match=r"cannot export this .* with free sizes \(dynamic=False and a size may work\)"
    ):
        to_onnx(model, tmp_path / "model.onnx")
    assert to_onnx(model, tmp_path / "model.onnx", dynamic=False, size=(97, 161), batch=2) <= 1e-4
    to_program(model, dynamic=False, size=(97, 161))


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [True, False])
def test_mask_rcnn(dynamic: bool, tmp_path: Path, coffee: Path) -> None:
    arguments = {"min_size": 160, "max_size": 256, "box_detections_per_img": 20, "box_score_thresh": 0.0}
    torch.manual_seed(0)
    model = build("mask_rcnn_resnet50_fpn", num_classes=5, **arguments).eval()
    path = tmp_path / "model.onnx"
    to_onnx(model, path, dynamic=dynamic, size=None if dynamic else (128, 192))
    assert metadata(path)["output"] == "detections"
    pixels = segzoo.inference.read_picture(coffee).over_white().astype(np.float32) / 255
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    x = nn.functional.interpolate(x, size=(150, 225) if dynamic else (128, 192), mode="area")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    got = tuple(map(torch.from_numpy, session.run(["boxes", "labels", "scores", "masks"], {"image": x.numpy()})))
    with torch.inference_mode():
        found = model([x[0]])[0]
    expected = tuple(found[name] for name in ("boxes", "labels", "scores", "masks"))
    assert len(expected[0]) == 20
    compare_detections("the file", expected, got, 225)


@pytest.mark.gpu
def test_a_model_on_a_gpu(tmp_path: Path) -> None:
    model = made("plain").cuda()
    to_onnx(model, tmp_path / "model.onnx")
    (x,) = inputs(model, [(2, 33, 40)])
    same(run_onnx(tmp_path / "model.onnx", x), model.cpu()(x).detach())
    assert next(model.parameters()).device.type == "cpu"


def test_nothing_but_the_range_counts() -> None:
    x = torch.linspace(-100, 100, 50)
    assert _prepared.compare("it", x, x + 0.01) == pytest.approx(5e-5, rel=1e-3)
    with pytest.raises(ValueError, match=r"it gives \[50\], the model \[49\]"):
        _prepared.compare("it", x[1:], x)
    assert _prepared.compare("it", torch.ones(3), torch.ones(3)) == 0
