"""``segzoo evaluate`` and the call behind it: real files, the metrics' own digits, and nothing dropped in silence."""

from __future__ import annotations

import csv
import gc
import io
import json
import math
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import segzoo
from segzoo.cli import main
from segzoo.inference import _scoring, evaluate
from segzoo.metrics import BoundaryMetrics, SaliencyMetrics, SegmentationMetrics

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("a2", "a10", "b")  # in the order that people count in


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]):
    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["evaluate", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def save(path: Path, pixels: np.ndarray, palette: list[int] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette)
    image.save(path)
    return path


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


@pytest.fixture
def salient(tmp_path: Path, rng: np.random.Generator) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Grey maps in ``maps/`` and masks in ``masks/``, of different sizes; and what is in them."""
    pictures = {}
    for i, name in enumerate(NAMES):
        mask = np.zeros((30 + i, 40), np.uint8)
        mask[8:20, 5 + i : 25] = 255
        grey = np.clip(mask * 0.6 + rng.integers(10, 90, mask.shape), 0, 255).astype(np.uint8)
        grey = grey // 2 if name == "b" else grey  # nothing above half of 255
        save(tmp_path / "maps" / f"{name}.png", grey)
        save(tmp_path / "masks" / f"{name}.bmp", mask)
        pictures[name] = grey, mask
    return pictures


@pytest.fixture
def labels(tmp_path: Path, rng: np.random.Generator) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Label maps of 4 classes with 255 in the masks; the colours of their palettes say nothing of the classes."""
    pictures = {}
    palette = rng.integers(0, 256, 768).tolist()
    for name in NAMES:
        target = rng.integers(0, 3, (5, 6)).repeat(6, 0).repeat(5, 1).astype(np.uint8)
        prediction = np.where(rng.random(target.shape) < 0.8, target, 3).astype(np.uint8)
        target[0, :9] = 255
        save(tmp_path / "maps" / f"{name}.png", prediction, palette)
        save(tmp_path / "masks" / f"{name}.png", target, palette if name == "b" else None)
        pictures[name] = prediction, target
    return pictures


def agree(found: Any, expected: dict[str, Any]) -> None:
    assert set(found) == set(expected)
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(found[key].nan_to_num(-1), value.nan_to_num(-1)), key
        else:
            assert found[key] == value or (math.isnan(found[key]) and math.isnan(value)), key


@pytest.mark.parametrize("protocol", ["pysod", "paper", "tutorial"])
@pytest.mark.parametrize("normalize", [None, False])
def test_salient_files_have_the_metrics_digits(salient, tmp_path: Path, protocol: str, normalize: bool | None) -> None:
    metrics, rims = SaliencyMetrics(protocol, normalize=normalize), BoundaryMetrics(tolerance=1)
    for grey, mask in salient.values():
        metrics.update(grey, mask)
        values = grey / 255
        if metrics.normalize:
            values = (values - values.min()) / (values.max() - values.min())
        rims.update(values > 0.5, mask > 127)
    options: dict[str, Any] = {"protocol": protocol, "normalize": normalize, "boundary": True, "tolerance": 1}
    found = evaluate(tmp_path / "maps", tmp_path / "masks", **options)
    results = found.results
    agree(results.pop("boundary"), rims.compute())
    agree(results, metrics.compute())
    assert found.complete and list(found.per_picture) == list(NAMES)
    for i, row in enumerate(found.per_picture.values()):
        expected = {**metrics.per_picture(), **{k: v[:, 0] for k, v in rims.per_picture().items()}}
        assert row == {name: float(values[i]) for name, values in expected.items()}
    assert metrics.table() in found.table() and "3 scored" in found.table()


def test_label_maps_by_index(labels, said, tmp_path: Path) -> None:
    names = ["road", "car", "sky", "dog"]
    metric = SegmentationMetrics(4, class_names=names)
    rims = BoundaryMetrics(4, class_names=names)
    for prediction, target in labels.values():
        metric.update(torch.from_numpy(prediction), torch.from_numpy(target))
        rims.update(prediction, target)
    found = evaluate(tmp_path / "maps", tmp_path / "masks", num_classes=4, class_names=names, boundary=True)
    results = found.results
    agree(results.pop("boundary"), rims.compute())
    agree(results, metric.compute())
    row = found.per_picture["a2"]
    assert row["miou"] == float(metric.per_picture()["miou_per_picture"][0])
    one = SegmentationMetrics(4)
    one.update(*map(torch.from_numpy, labels["a2"]))
    assert row["iou_car"] == one.compute()["iou"][1] and row["dice_sky"] == one.compute()["dice"][2]
    assert row["hausdorff_sky"] == rims.per_picture()["hausdorff"][0, 2] and row["hausdorff_dog"] == math.inf
    code, out, err = said(tmp_path / "maps", tmp_path / "masks", "--classes", "road,car,sky, dog", "--boundary")
    assert (code, err) == (0, "") and out == found.table() + "\n" and metric.table() in out


def test_ignored_labels(labels, tmp_path: Path) -> None:
    found = evaluate(tmp_path / "maps", tmp_path / "masks", num_classes=4, ignore_index=None)
    assert len(found.failed) == 3 and "target[0, 0] is 255, expected 0 … 3" in str(next(iter(found.failed.values())))
    assert math.isnan(found.results["miou"]) and not found.complete
    metric = SegmentationMetrics(256, ignore_index=2)
    for prediction, target in labels.values():
        metric.update(torch.from_numpy(prediction), torch.from_numpy(target))
    found = evaluate(tmp_path / "maps", tmp_path / "masks", num_classes=256, ignore_index=2)
    agree(found.results, metric.compute())


@pytest.mark.parametrize("ignore_index", ["auto", 128])
def test_one_class_in_any_range(tmp_path: Path, rng: np.random.Generator, ignore_index: Any) -> None:
    """Masks of 0/255 and of 0/1, and an ignored grey: all are 0 and 1 to the metrics."""
    metric, rims = SegmentationMetrics(1, ignore_index=255), BoundaryMetrics(ignore_index=255)
    for name, high in (("x", 255), ("y", 1)):
        target, prediction = rng.random((2, 20, 20)) > 0.4
        mask, labels = np.where(target, high, 0).astype(np.uint8), target.astype(np.uint8)
        if ignore_index == 128 and high == 255:
            mask[:5], labels[:5] = 128, 255
        save(tmp_path / "maps" / f"{name}.png", np.where(prediction, high, 0).astype(np.uint8))
        save(tmp_path / "masks" / f"{name}.png", mask)
        metric.update(torch.from_numpy(prediction), torch.from_numpy(labels))
        rims.update(prediction, labels)
    found = evaluate(tmp_path / "maps", tmp_path / "masks", num_classes=1, ignore_index=ignore_index, boundary=True)
    results = found.results
    agree(results.pop("boundary"), rims.compute())
    agree(results, metric.compute())
    assert found.settings["ignore_index"] == (128 if ignore_index == 128 else None)
    assert {"iou_object", "iou_background", "hausdorff_object"} < set(found.per_picture["x"])


def test_forms_of_grey(tmp_path: Path, rng: np.random.Generator) -> None:
    grey = rng.integers(0, 256, (20, 24)).astype(np.uint8)
    mask = save(tmp_path / "mask.png", np.where(grey > 140, 255, 0).astype(np.uint8))
    expected = SaliencyMetrics()
    expected.update(grey, pixels_of(mask))
    image = Image.fromarray(grey)
    palette = image.copy()
    palette.putpalette([i for i in range(256) for _ in range(3)])
    forms = {"L": image, "RGB": image.convert("RGB"), "RGBA": image.convert("RGBA"), "P": palette}
    for mode, form in forms.items():
        assert form.mode == mode
        form.save(tmp_path / "form.png")
        agree(evaluate(tmp_path / "form.png", mask).results, expected.compute())
    save(tmp_path / "form.png", grey.astype(np.uint16) * 257)
    results = evaluate(tmp_path / "form.png", mask).results
    assert results["mae"] == pytest.approx(expected.compute()["mae"], abs=1e-12)
    Image.fromarray(grey > 127).save(tmp_path / "form.png")
    expected.reset()
    expected.update(grey > 127, pixels_of(mask))
    agree(evaluate(tmp_path / "form.png", mask).results, expected.compute())


def test_table_json_and_csv_from_a_process_of_its_own(salient, tmp_path: Path) -> None:
    save(tmp_path / "masks" / "empty.png", np.zeros((9, 9), np.uint8))
    save(tmp_path / "maps" / "empty.png", np.zeros((9, 9), np.uint8))
    save(tmp_path / "masks" / "half.png", np.zeros((9, 9), np.uint8))
    save(tmp_path / "maps" / "half.png", np.eye(9, dtype=np.uint8) * 255)
    arguments = ["maps", "masks", "--boundary", "--json", "all.json", "--csv", "all.csv"]
    command = [sys.executable, "-m", "segzoo", "evaluate", *arguments]
    done = subprocess.run(command, capture_output=True, timeout=120, cwd=tmp_path, text=True)
    found = evaluate(tmp_path / "maps", tmp_path / "masks", boundary=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.replace("maps", "").replace("masks", "") == (found.table() + "\n").replace(
        str(tmp_path / "maps"), ""
    ).replace(str(tmp_path / "masks"), "").replace("masks", "")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "all.csv").read_text())))
    assert [row.pop("picture") for row in rows] == ["a2", "a10", "b", "empty", "half"]
    for row, values in zip(rows, found.per_picture.values()):
        assert {k: float(v or "nan") for k, v in row.items()} == pytest.approx(values, nan_ok=True, abs=0)
    assert rows[3]["hausdorff"] == "" and rows[4]["hausdorff"] == "inf"
    content = json.loads((tmp_path / "all.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert content["segzoo"] == segzoo.__version__ and content["pictures"] == 5
    assert content["settings"]["protocol"] == "pysod" and content["settings"]["predictions"] == "maps"
    assert content["results"]["f_curve"] == found.results["f_curve"].tolist()
    assert content["results"]["boundary"]["hausdorff"] == "inf"
    assert content["per_picture"]["empty"]["hausdorff"] is None
    assert content["per_picture"]["half"]["hausdorff"] == "inf"
    assert content["per_picture"]["a2"]["mae"] == found.per_picture["a2"]["mae"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all.csv", "all.json", "maps", "masks"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", np.eye(5, dtype=np.uint8) * 255).rename(tmp_path / "b\udcff.png")
    found = evaluate(path, path)
    found.write_json(tmp_path / "all.json")
    found.write_csv(tmp_path / "all.csv")
    assert list(json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))["per_picture"]) == ["b\udcff"]
    assert "\nb\\udcff,0.0," in (tmp_path / "all.csv").read_text(encoding="utf-8")


def test_to_standard_output(salient, said, tmp_path: Path) -> None:
    code, out, err = said(tmp_path / "maps", tmp_path / "masks", "--json", "-")
    assert code == 0 and json.loads(out)["pictures"] == 3 and err == ""
    code, out, err = said(tmp_path / "maps", tmp_path / "masks", "--csv", "-", "--quiet")
    assert code == 0 and len(list(csv.reader(io.StringIO(out)))) == 4


def small(model: Any) -> segzoo.Predictor:
    """A predictor that looks at little pictures, which saves time."""
    predictor = segzoo.Predictor(model, precision="fp32")
    predictor.model.preprocessing = replace(predictor.model.preprocessing, size=(96, 96))
    return predictor


def test_a_model_on_a_data_set(coffee: Path, said, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cup.jpg").write_bytes(coffee.read_bytes())
    mask = np.zeros((400, 600), np.uint8)
    mask[90:330, 130:460] = 255
    save(tmp_path / "masks" / "cup.png", mask)
    predictor = small("u2net_lite.duts")
    prediction = predictor(coffee)
    for normalize, values in ((None, prediction.evaluation_map()), (False, prediction.probabilities[0])):
        metrics = SaliencyMetrics(normalize=normalize)
        metrics.update(values, mask)
        found = evaluate(tmp_path / "in", tmp_path / "masks", model=predictor, normalize=normalize)
        agree(found.results, metrics.compute())
        assert found.settings["model"] == "u2net_lite.duts"
        assert ("stretched" in found.settings["scored"]) == (normalize is None)
    assert 0.5 < found.results["max_f"] < 1
    metric = SegmentationMetrics(1)
    metric.update(prediction.mask, mask // 255)
    agree(evaluate(tmp_path / "in", tmp_path / "masks", model=predictor, num_classes=1).results, metric.compute())
    (tmp_path / "in" / "broken.jpg").write_bytes(coffee.read_bytes()[:5000])
    save(tmp_path / "masks" / "broken.png", mask)
    save(tmp_path / "masks" / "zoom.png", mask[:200])
    (tmp_path / "in" / "zoom.jpg").write_bytes(coffee.read_bytes())
    save(tmp_path / "masks" / "nobody.png", mask)
    metrics = SaliencyMetrics(normalize=False)
    metrics.update(segzoo.Predictor("u2net_lite", precision="fp32")(coffee).probabilities[0], mask)
    arguments = ["--model", "u2net_lite.duts", "--batch-size", 2, "--no-normalize"]
    code, out, err = said(tmp_path / "in", tmp_path / "masks", *arguments)
    assert code == 1 and err.count("\n") == 3 and metrics.table() in out and "probabilities of u2net_lite.duts" in out
    assert f"skipped: {tmp_path / 'in' / 'broken.jpg'} is broken" in err
    assert f"zoom.jpg is 600×400 and its mask {tmp_path / 'masks' / 'zoom.png'} 600×200" in err
    assert "nobody.png has no picture" in err


def test_a_model_of_classes(tmp_path: Path, rng: np.random.Generator) -> None:
    torch.manual_seed(0)
    model = small(segzoo.u2net_lite(num_classes=3)).model
    model.classes = ("road", "car", "sky")
    picture = save(tmp_path / "p.png", rng.integers(0, 256, (40, 50, 3)).astype(np.uint8))
    target = rng.integers(0, 3, (40, 50)).astype(np.uint8)
    mask = save(tmp_path / "m.png", target)
    metric = SegmentationMetrics(3)
    predicted = segzoo.Predictor(model)(picture).mask
    assert len(np.unique(predicted)) > 1
    metric.update(predicted, target)
    found = evaluate(picture, mask, model=model)
    agree(found.results, metric.compute())
    assert found.settings["class_names"] == ["road", "car", "sky"] and "iou_sky" in found.per_picture["p"]
    with pytest.raises(ValueError, match="num_classes is 4, this model has 3"):
        evaluate(picture, mask, model=model, num_classes=4)
    model.multilabel = True
    with pytest.raises(ValueError, match="classes overlap"):
        evaluate(picture, mask, model=model)


@pytest.mark.data
def test_on_ecssd(data: Path, said, tmp_path: Path) -> None:
    for number in (1, 400, 1000):
        for kind, name in (("images", f"{number:04}.jpg"), ("masks", f"{number:04}.png")):
            (tmp_path / kind).mkdir(exist_ok=True)
            (tmp_path / kind / name).write_bytes((data / "ecssd" / kind / name).read_bytes())
    code, out, err = said(tmp_path / "images", tmp_path / "masks", "--model", "u2net_lite.duts", "--json", "-")
    results = json.loads(out)["results"]
    assert (code, err) == (0, "") and results["pictures"] == 3
    assert results["max_f"] > 0.85 and results["mae"] < 0.12 and results["s_measure"] > 0.8


def test_sizes_that_differ(salient, labels, said, tmp_path: Path) -> None:
    grey = np.arange(200, dtype=np.uint8).reshape(10, 20)
    mask = save(tmp_path / "m.png", np.where(np.arange(40) > 20, 255, 0).astype(np.uint8)[None].repeat(30, 0))
    small = save(tmp_path / "p.png", grey)
    code, out, err = said(small, mask)
    assert code == 1 and err == (
        f"segzoo: skipped: {small} is 20×10 and its mask {mask} 40×30 (width × height): "
        "resize makes predictions the size of their masks\n"
    )
    metrics = SaliencyMetrics()
    metrics.update(Image.fromarray(grey).resize((40, 30), Image.Resampling.BILINEAR), pixels_of(mask))
    code, out, err = said(small, mask, "--resize")
    assert (code, err) == (0, "") and metrics.table() in out and "1 prediction resized" in out
    label = save(tmp_path / "p.png", grey % 3)
    target = save(tmp_path / "m.png", np.zeros((31, 47), np.uint8))
    found = evaluate(label, target, num_classes=3, resize=True)
    nearest = np.array(Image.fromarray(grey % 3).resize((47, 31), Image.Resampling.NEAREST))
    assert found.results["confusion_matrix"][0].tolist() == np.bincount(nearest.ravel()).tolist()


def test_the_rest_is_scored(salient, said, tmp_path: Path) -> None:
    maps, masks = tmp_path / "maps", tmp_path / "masks"
    whole = evaluate(maps, masks)
    (maps / "bad.png").write_bytes(b"no picture")
    save(masks / "bad.png", np.zeros((4, 4), np.uint8))
    save(maps / "colour.png", np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    save(masks / "colour.png", np.zeros((4, 4), np.uint8))
    save(maps / "alone.png", np.zeros((4, 4), np.uint8))
    save(masks / "missed.png", np.zeros((4, 4), np.uint8))
    code, out, err = said(maps, masks, "--json", tmp_path / "all.json", "--csv", tmp_path / "all.csv")
    assert code == 1 and err.count("\n") == 4
    for words in (
        f"skipped: {maps / 'bad.png'} is not a picture in a format",
        f"skipped: {maps / 'colour.png'} holds colours (RGB), expected a grey picture",
        f"skipped: {maps / 'alone.png'} has no mask",
        f"skipped: {masks / 'missed.png'} has no prediction",
    ):
        assert words in err
    assert whole.metric.table() in out
    assert "3 scored, 2 failed, 1 prediction without a mask, 1 mask without a prediction" in out
    content = json.loads((tmp_path / "all.json").read_text())
    assert list(content["failed"]) == [str(maps / "bad.png"), str(maps / "colour.png")]
    assert content["unmatched_predictions"] == [str(maps / "alone.png")]
    assert content["unmatched_masks"] == [str(masks / "missed.png")]
    assert (tmp_path / "all.csv").read_text() == whole.to_csv()
    for i in range(25):
        save(masks / f"z{i}.png", np.zeros((4, 4), np.uint8))
    code, out, err = said(maps, masks)
    assert code == 1 and err.count("has no prediction") == 20 and "6 more have no prediction" in err


def test_a_label_that_is_no_class_costs_its_picture_only(labels, tmp_path: Path) -> None:
    maps, masks = tmp_path / "maps", tmp_path / "masks"
    save(maps / "a10.png", np.full((30, 30), 7, np.uint8))
    found = evaluate(maps, masks, num_classes=4, boundary=True)
    assert list(found.per_picture) == ["a2", "b"]
    sentence = str(found.failed[maps / "a10.png"])
    assert str(masks / "a10.png") in sentence and "prediction[0, 9] is 7, expected 0 … 3" in sentence
    assert found.results["pictures"] == found.results["boundary"]["pictures"] == 2


def test_folders_in_folders(salient, tmp_path: Path) -> None:
    save(tmp_path / "maps" / "x" / "b.png", np.zeros((3, 3), np.uint8))
    save(tmp_path / "masks" / "x" / "b.png", np.zeros((3, 3), np.uint8))
    assert list(evaluate(tmp_path / "maps", tmp_path / "masks").per_picture) == ["a2", "a10", "b"]
    found = evaluate(tmp_path / "maps", tmp_path / "masks", recursive=True)
    assert list(found.per_picture) == ["a2", "a10", "b", "x/b"]


WRONG = {
    "missing folder": (["{tmp}/no", "{tmp}/masks"], "there is no folder or prediction {tmp}/no"),
    "missing masks": (["{tmp}/maps", "{tmp}/no"], "there is no folder or mask {tmp}/no"),
    "missing pictures": (["{tmp}/no", "{tmp}/masks", "--model", "u2net_lite"], "there is no folder or picture"),
    "empty path": (["", "{tmp}/masks"], "a path is empty"),
    "empty folder": (["{tmp}/void", "{tmp}/masks"], "there is no picture in the folder {tmp}/void"),
    "a file and a folder": (["{tmp}/maps/b.png", "{tmp}/masks"], "b.png is a file and {tmp}/masks a folder"),
    "no pair": (["{tmp}/other", "{tmp}/masks"], "no prediction has the name of a mask: {tmp}/other/q.png and"),
    "one name twice": (["{tmp}/twice", "{tmp}/masks"], "{tmp}/twice/b.bmp and {tmp}/twice/b.png have one name"),
    "protocol": (["{tmp}/maps", "{tmp}/masks", "--protocol", "pysot"], "'pysot': did you mean 'pysod'"),
    "json nowhere": (["{tmp}/maps", "{tmp}/masks", "--json", "{tmp}/no/a.json"], "there is no folder {tmp}/no"),
    "csv is a folder": (["{tmp}/maps", "{tmp}/masks", "--csv", "{tmp}/void"], "{tmp}/void is a folder"),
    "one file for two": (["{tmp}/maps", "{tmp}/masks", "--csv", "-", "--json", "-"], "--json and --csv are both -"),
    "device of no model": (["{tmp}/maps", "{tmp}/masks", "--device", "cpu"], "--device is for a model"),
    "model": (["{tmp}/maps", "{tmp}/masks", "--model", "u2net_lit"], "'u2net_lit': did you mean 'u2net_lite'"),
    "ignored": (["{tmp}/maps", "{tmp}/masks", "--num-classes", "3", "--ignore-index", "x"], "is 'x', expected a label"),
    "ignored without classes": (["{tmp}/maps", "{tmp}/masks", "--ignore-index", "3"], "give num_classes, too"),
    "protocol of classes": (["{tmp}/maps", "{tmp}/masks", "--num-classes", "3", "--protocol", "paper"], "protocol and"),
    "tolerance of nothing": (["{tmp}/maps", "{tmp}/masks", "--tolerance", "3"], "give boundary, too"),
    "names": (["{tmp}/maps", "{tmp}/masks", "--num-classes", "3", "--classes", "a,b"], "class_names has 2 names"),
    "a name twice": (["{tmp}/maps", "{tmp}/masks", "--classes", "a,b,a"], "class_names has 'a' twice"),
    "no class": (["{tmp}/maps", "{tmp}/masks", "--num-classes", "0"], "num_classes is 0"),
    "workers": (["{tmp}/maps", "{tmp}/masks", "--workers", "0"], "workers must be at least 1"),
    "batch size": (["{tmp}/maps", "{tmp}/masks", "--model", "u2net_lite", "--batch-size", "0"], "batch_size must be"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_get_one_sentence(salient, said, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "void").mkdir()
    save(tmp_path / "other" / "q.png", np.zeros((3, 3), np.uint8))
    for name in ("b.png", "b.bmp"):
        save(tmp_path / "twice" / name, np.zeros((3, 3), np.uint8))
    before = sorted(tmp_path.rglob("*"))
    arguments, words = WRONG[case]
    code, out, err = said(*(a.format(tmp=tmp_path) for a in arguments))
    assert code == 2 and out == "" and err.count("\n") == 1 and err.startswith("segzoo: error: ")
    assert words.format(tmp=tmp_path) in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("mode", "pixels", "options", "words"),
    [
        ("png", np.full((4, 4, 4), 100, np.uint8), {}, "has transparency, expected grey"),
        ("png", np.full((4, 4), 200, np.uint16), {}, "is 16-bit grey, of 65535, with nothing above 200"),
        ("tif", np.full((4, 4), 2, np.float32), {}, "holds floating point values 2 to 2, expected 0…1"),
        ("png", np.zeros((4, 4, 3), np.uint8), {"num_classes": 3}, "holds colours (RGB), expected class indices"),
        ("jpg", np.zeros((4, 4), np.uint8), {"num_classes": 3}, "is a JPEG, which alters labels"),
    ],
)
def test_pictures_that_are_no_maps(tmp_path: Path, mode: str, pixels: np.ndarray, options: Any, words: str) -> None:
    path = save(tmp_path / f"p.{mode}", pixels)
    mask = save(tmp_path / "m.png", np.zeros((4, 4), np.uint8))
    found = evaluate(path, mask, **options)
    assert words in str(found.failed[path]) and str(path) in str(found.failed[path])
    found = evaluate(mask, path, **options)
    assert words in str(found.failed[path])


def test_files_appear_whole_or_not_at_all(salient, said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "all.json"
    target.write_text("older")
    monkeypatch.setattr(
        "segzoo.inference._evaluation_report.json.dumps", lambda *_, **__: (_ for _ in ()).throw(OSError(28))
    )
    code, _, err = said(tmp_path / "maps", tmp_path / "masks", "--json", target)
    assert code == 2 and target.read_text() == "older"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all.json", "maps", "masks"]


def test_no_picture_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive, most, read_grey = [0], [0], _scoring.read_grey

    def gone() -> None:
        alive[0] -= 1

    def counted(path: Path) -> np.ndarray:
        values = read_grey(path)
        weakref.finalize(values, gone)
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        return values

    for i in range(40):
        save(tmp_path / "maps" / f"{i}.png", np.eye(16, 16 + (i == 7), dtype=np.uint8) * 255)
        save(tmp_path / "masks" / f"{i}.png", np.eye(16, dtype=np.uint8) * 255)
    monkeypatch.setattr(_scoring, "read_grey", counted)
    found = evaluate(tmp_path / "maps", tmp_path / "masks", workers=2, boundary=True)
    gc.collect()
    assert len(found.per_picture) == 39 and len(found.failed) == 1
    assert most[0] <= 2 * 5 and alive[0] == 0  # two read ahead, one being scored, one let go, one to spare


def test_the_bar_is_on_standard_error(salient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for arguments, expected in (([], True), (["--quiet"], False)):
        monkeypatch.setattr(sys, "stderr", Terminal())
        assert main(["evaluate", str(tmp_path / "maps"), str(tmp_path / "masks"), *arguments]) == 0
        assert ("3/3" in sys.stderr.getvalue()) == expected


def test_help_needs_no_torch() -> None:
    code = "import sys; from segzoo.cli import main\ntry: main(['evaluate', '--help'])\n"
    code += "finally: assert 'torch' not in sys.modules and 'PIL' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, text=True)
    assert done.returncode == 0 and done.stderr == "" and "segzoo evaluate maps/ masks/" in done.stdout
