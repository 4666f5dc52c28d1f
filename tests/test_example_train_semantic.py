"""examples/train_semantic.py: in this process, on small pictures made here."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import segzoo
from segzoo.datasets import PairedFolder
from segzoo.inference.colours import colour_map
from segzoo.losses import CrossEntropyLoss, DiceLoss
from segzoo.transforms import SemanticEval, SemanticTrain

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = ("ground", "red", "blue")
COLOURS = np.array([[0, 0, 0], [250, 10, 10], [10, 10, 250]], np.uint8)
PAINT = ((40, 40, 40), (200, 40, 40), (40, 60, 210))
IGNORED = 255


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Iterator[SimpleNamespace]:
    """The script, and what it is made of, as modules."""
    level = logging.getLogger("segzoo").level
    sys.path.insert(0, str(ROOT / "examples"))
    names = {"script": "train_semantic", "losses": "_semantic_losses", "pictures": "_semantic_pictures"}
    names |= {"launch": "_launch", "processes": "_processes"}
    yield SimpleNamespace(**{short: importlib.import_module(name) for short, name in names.items()})
    sys.path.remove(str(ROOT / "examples"))
    logging.getLogger("segzoo").setLevel(level)


@pytest.fixture(scope="module")
def train(scripts: SimpleNamespace) -> Callable[..., int]:
    """The script, called with words; its exit status."""

    def run(*words: object) -> int:
        args = scripts.script.parse([str(word) for word in words])
        status: int = scripts.launch.launch(scripts.script.main, args, "train_semantic")
        return status

    return run


def make(
    folder: Path,
    count: int,
    sizes: tuple[tuple[int, int], ...] = ((48, 48),),
    seed: int = 0,
    coloured: bool = False,
    ignored: bool = False,
) -> Path:
    """Pictures of a red and a blue rectangle on grey, and their masks; with ``ignored`` some pixels do not count."""
    random = np.random.default_rng(seed)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for k in range(count):
        height, width = sizes[k % len(sizes)]
        picture, mask = np.full((height, width, 3), PAINT[0], np.uint8), np.zeros((height, width), np.uint8)
        for label in (1, 2):
            top, left = random.integers(height // 2), random.integers(width // 2)
            below, right = (
                top + random.integers(height // 3, height // 2),
                left + random.integers(width // 3, width // 2),
            )
            picture[top:below, left:right], mask[top:below, left:right] = PAINT[label], label
        if ignored:
            mask[random.random(mask.shape) < 0.1] = IGNORED
        picture = (picture + random.normal(0, 12, picture.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"images/{k:03d}.png")
        Image.fromarray(COLOURS[mask] if coloured else mask).save(folder / f"masks/{k:03d}.png")
    return folder


def small(output: Path, *words: object) -> list[object]:
    """The words of a run of a small U-Net."""
    return [
        *("--output", output, "--model", "unet", "--model-option", "base_channels=8"),
        *("--device", "cpu", "--batch-size", 5, "--epochs", 1, "--rotation", 0, *words),
    ]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("tiny") / "data", 12)


@pytest.fixture(scope="module")
def solved(train: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on 20 pictures with coloured masks, 18 of them learned, and 6 to report on."""
    folder = tmp_path_factory.mktemp("solved")
    make(folder / "data", 20, coloured=True)
    make(folder / "test", 6, seed=1, coloured=True)
    assert train(*words_of(folder), "--mst-scales", "1,1.5") == 0
    return folder


def words_of(folder: Path) -> list[object]:
    palette = ",".join("#" + bytes(colour).hex() for colour in COLOURS.tolist())
    return small(
        folder / "run", "--data", folder / "data", "--classes", ",".join(CLASSES), "--palette", palette,
        *("--test-images", folder / "test/images", "--test-masks", folder / "test/masks"),
        *("--batch-size", 3, "--epochs", 12, "--lr", 5e-3, "--jitter", 0.1, "--eval-every", 2),
        *("--predict", folder / "maps", "--mst"),
    )  # fmt: skip


def results_of(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return values


def confusion(prediction: NDArray[Any], target: NDArray[Any], classes: int = 3) -> NDArray[np.int64]:
    counted = target != IGNORED
    pairs = target[counted].astype(int) * classes + prediction[counted]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def figures_of(matrix: NDArray[np.int64]) -> dict[str, Any]:
    """Long et al.'s figures, written out."""
    right, there, said = np.diag(matrix).astype(float), matrix.sum(1), matrix.sum(0)
    iou, recall = right / (there + said - right), right / there
    return {
        "miou": iou.mean(),
        "pixel_accuracy": right.sum() / matrix.sum(),
        "mean_pixel_accuracy": recall.mean(),
        "iou": dict(zip(CLASSES, iou)),
        "accuracy": dict(zip(CLASSES, recall)),
    }


def normalised(path: Path) -> Tensor:
    pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None].float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (pixels - mean[:, None, None]) / std[:, None, None]


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name


# The tiny task


def test_it_is_solved(solved: Path) -> None:
    results = results_of(solved / "run")
    assert results["test"]["pictures"] == 6
    for which in ("last", "best"):
        assert results["test"][which]["miou"] > 0.9
        assert results["test_mst"][which]["miou"] > 0.9
    assert results["training"]["held_out"] == 2
    assert list(results["test"]["last"]["iou"]) == list(CLASSES)


def test_log_lines(solved: Path) -> None:
    lines = (solved / "run/train.log").read_text().splitlines()
    start = r"\[epoch: (\d+)\] train_loss: \d\.\d{4} lr: 0\.\d{6} train_accuracy: [01]\.\d{3}"
    for number, line in enumerate(lines, 1):
        judged = r" mIoU: [01]\.\d{3} acc: [01]\.\d{3}" if number % 2 == 0 else ""
        match = re.fullmatch(start + judged, line)
        assert match and int(match[1]) == number, line
    best = max(results_of(solved / "run")["history"], key=lambda row: row.get("miou", 0))
    assert results_of(solved / "run")["best"] == best


def test_figures_of_the_saved_model_by_hand(solved: Path) -> None:
    """The last model, from its folder: logits, argmax, and a confusion matrix of NumPy's."""
    model = segzoo.create_model(f"local-dir:{solved / 'run/last'}").eval()
    assert model.classes == CLASSES and model.preprocessing.size is None
    matrix = np.zeros((3, 3), np.int64)
    for path in sorted((solved / "test/images").iterdir()):
        with torch.no_grad():
            labels = model(normalised(path)).argmax(1)[0].numpy()
        painted = np.array(Image.open(solved / "test/masks" / path.name))
        target = (painted[:, :, None] == COLOURS).all(-1).argmax(-1)
        matrix += confusion(labels, target)
        saved = Image.open(solved / "maps" / path.name)
        assert np.array_equal(np.array(saved), labels)
        assert np.array_equal(np.array(saved.convert("RGB")), COLOURS[labels])
    same(results_of(solved / "run")["test"]["last"], figures_of(matrix))


def test_the_best_epoch_is_not_the_last(solved: Path, train: Callable[..., int], tmp_path: Path) -> None:
    """Weights that fit are judged as they come; steps that are far too long then spoil them."""
    words = ("--weights", f"local-dir:{solved / 'run/last'}", "--optimizer", "sgd", "--lr", 10, "--epochs", 1)
    assert (
        train(*words_of(solved), "--output", tmp_path, *words, "--mst-scales", 1, "--predict", tmp_path / "maps") == 0
    )
    results, before = results_of(tmp_path), results_of(solved / "run")
    assert (results["best"]["epoch"], results["last"]["epoch"]) == (0, 1)
    same(results["test"]["best"], before["test"]["last"])
    assert results["test"]["last"]["miou"] < 0.5 < results["test_mst"]["best"]["miou"]


def test_predictor_gives_the_same_maps(solved: Path) -> None:
    predictor = segzoo.Predictor(f"local-dir:{solved / 'run/last'}", device="cpu")
    for path in sorted((solved / "test/images").iterdir())[:2]:
        assert np.array_equal(predictor(path).mask, np.array(Image.open(solved / "maps" / path.name)))


def test_table(solved: Path) -> None:
    text = (solved / "run/results.txt").read_text()
    results = results_of(solved / "run")
    rows = {line[:16].strip(): line[16:].split() for line in text.splitlines()}
    parts = [results[part][which] for part in ("test", "test_mst") for which in ("last", "best")]
    assert "test last  test best  test_mst last  test_mst best" in text
    for name in CLASSES:
        assert rows[name] == [f"{100 * part['iou'][name]:.2f}" for part in parts]
    assert rows["mIoU"] == [f"{100 * part['miou']:.2f}" for part in parts]
    assert rows["pixel accuracy"] == [f"{100 * part['pixel_accuracy']:.2f}" for part in parts]
    assert rows["mean accuracy"] == [f"{100 * part['mean_pixel_accuracy']:.2f}" for part in parts]


def test_a_finished_run_is_judged_anew(solved: Path, train: Callable[..., int]) -> None:
    """What has no part in training may be other when a run goes on: here nothing is left to do but the figures."""
    before = results_of(solved / "run")
    assert train(*words_of(solved), "--resume", "auto", "--mst-scales", "0.5") == 0
    after = results_of(solved / "run")
    assert after["test"] == before["test"] and after["history"] == before["history"]
    assert after["test_mst"]["last"]["miou"] != before["test_mst"]["last"]["miou"]


# How figures are measured


class Colours(nn.Module):
    """Logits from a picture's colours, so that sizes matter and nothing has to be learned."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(3, 3, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.conv(x), x.shape[-2:], mode="bilinear")


@pytest.fixture
def mixed_sizes(tmp_path: Path) -> PairedFolder:
    folder = make(tmp_path / "sizes", 5, ((40, 30), (40, 30), (23, 51)), ignored=True)
    return PairedFolder(folder / "images", folder / "masks", classes=CLASSES)


def arguments(scripts: SimpleNamespace, *words: object) -> argparse.Namespace:
    parsed: argparse.Namespace = scripts.script.parse(["--output", "x", *map(str, words)])
    return parsed


def alone(scripts: SimpleNamespace) -> Any:
    return scripts.processes.Processes(0, 1, torch.device("cpu"))


@pytest.mark.parametrize("size", [None, 32, (20, 60)])
def test_figures_are_at_the_labels_size(scripts: SimpleNamespace, mixed_sizes: PairedFolder, size: Any) -> None:
    args, model, seen = arguments(scripts, "--batch-size", 2), Colours(), SemanticEval(size)
    found = scripts.script.evaluate(model, mixed_sizes, seen, args, alone(scripts), 3)
    matrix = np.zeros((3, 3), np.int64)
    for index, sample in enumerate(mixed_sizes.samples):
        x, target = seen(*mixed_sizes.read(index))
        with torch.no_grad():
            logits = model(x[None].as_subclass(Tensor))
        larger = logits.shape[-2] > target.shape[-2] or logits.shape[-1] > target.shape[-1]
        logits = F.interpolate(logits.double(), tuple(target.shape), mode="bilinear", antialias=larger)
        labels = logits.argmax(1)[0].numpy()
        matrix += confusion(labels, np.array(Image.open(sample.mask)))
    same(found, figures_of(matrix))


def test_several_scales_by_hand(scripts: SimpleNamespace, mixed_sizes: PairedFolder) -> None:
    args, model, seen, scales = arguments(scripts), Colours(), SemanticEval(32), (0.5, 1.0, 1.75)
    forward = lambda model, x: segzoo.inference.multi_scale(model, x, scales)  # noqa: E731
    found = scripts.script.evaluate(model, mixed_sizes, seen, args, alone(scripts), 3, forward)
    matrix = np.zeros((3, 3), np.int64)
    for index, sample in enumerate(mixed_sizes.samples):
        x, target = seen(*mixed_sizes.read(index))
        x = x[None].as_subclass(Tensor)
        total = torch.zeros(1, 3, *x.shape[-2:])
        for scale in scales:
            shape = [round(side * scale) for side in x.shape[-2:]]
            smaller = F.interpolate(x, shape, mode="bilinear", antialias=True)
            for flips in ([], [-1]):
                with torch.no_grad():
                    logits = model(smaller.flip(flips)).flip(flips)
                total += F.interpolate(logits, x.shape[-2:], mode="bilinear", antialias=True).softmax(1)
        labels = F.interpolate(total, tuple(target.shape), mode="bilinear", antialias=True).argmax(1)[0].numpy()
        matrix += confusion(labels, np.array(Image.open(sample.mask)))
    expected = figures_of(matrix)
    assert found["miou"] == pytest.approx(expected["miou"], abs=1e-3)  # of scores that tie but for rounding
    assert found["miou"] != scripts.script.evaluate(model, mixed_sizes, seen, args, alone(scripts), 3)["miou"]


@pytest.mark.parametrize(("bias", "iou"), [(-1e4, "–"), (1e4, "0.00")], ids=["never said", "said everywhere"])
def test_a_class_that_is_nowhere(scripts: SimpleNamespace, tmp_path: Path, bias: float, iou: str) -> None:
    folder = make(tmp_path / "some", 2)
    dataset = PairedFolder(folder / "images", folder / "masks", classes=(*CLASSES, "green"))
    model = nn.Conv2d(3, 4, 1)
    nn.init.constant_(model.bias[3:], bias)
    found = scripts.script.evaluate(model, dataset, SemanticEval(), arguments(scripts), alone(scripts), 4)
    assert np.isnan(found["accuracy"]["green"])
    figures = {"test": {"pictures": 2, "last": found}}
    (row,) = [line for line in scripts.script.table(figures, "t").splitlines() if line.startswith("green")]
    assert row.split() == ["green", iou]


def test_maps_have_the_field_s_colours_where_the_data_have_none(
    scripts: SimpleNamespace, mixed_sizes: PairedFolder, tmp_path: Path
) -> None:
    args = arguments(scripts, "--predict", tmp_path / "maps")
    scripts.script.predict(Colours(), mixed_sizes, SemanticEval(), args, alone(scripts))
    for index, name in enumerate(mixed_sizes.names):
        picture = Image.open(tmp_path / f"maps/{name}.png")
        assert np.array_equal(np.array(picture.convert("RGB")), colour_map()[np.array(picture)])
        assert picture.size == mixed_sizes.image(index).shape[:0:-1]


# What is learned

LOSSES = ["ce", "focal", "ohem", "dice", "jaccard", "tversky", "focal_tversky", "lovasz"]
NORMS = ["batch", "group", "instance", "evo_s0"]
MIXES = [
    (),
    ("--cutmix", 1),
    ("--copyblob", 1, "--copyblob-pairs", "1:0,2:0", "--copyblob-area", 4),
    ("--cutmix", 0.5, "--copyblob", 0.5, "--copyblob-pairs", "red:ground", "--copyblob-area", 4),
]
RUNS = [
    (loss, NORMS[k % 4], MIXES[(k + k // 4) % 4], optimizer)
    for k, (loss, optimizer) in enumerate(
        zip([*LOSSES, *(f"weighted_{name}" for name in LOSSES)], ["sgd", "adam", "adamw"] * 6)
    )
]
EXTRA = {
    "ce": ("--label-smoothing", 0.1, "--schedule", "step", "--l1", 1e-6),
    "focal": ("--focal-gamma", 1, "--schedule", "cosine"),
    "ohem": ("--ohem-min-kept", 100, "--ohem-threshold", 0.6),
    "weighted_ce": ("--class-weights", "inverse", "--batch-size", 1, "--overfit", 2),
    "weighted_dice": ("--class-weights", "effective_number", "--train-size", 24, "--crop-size", 20),
    "weighted_focal": ("--class-weights", "enet", "--test-size", 30, "--dropout", 0.1),
}


@pytest.mark.parametrize(("loss", "norm", "mix", "optimizer"), RUNS, ids=[run[0] for run in RUNS])
def test_an_epoch(
    train: Callable[..., int], tiny: Path, tmp_path: Path, loss: str, norm: str, mix: Any, optimizer: str
) -> None:
    extra = EXTRA.get(loss, ())
    words = small(
        tmp_path, "--data", tiny, "--classes", ",".join(CLASSES), "--loss", loss, "--norm", norm, *mix, *extra,
        *("--optimizer", optimizer),
    )  # fmt: skip
    assert train(*words) == 0
    (row,) = results_of(tmp_path)["history"]
    assert np.isfinite(row["train_loss"]) and 0 <= row["train_accuracy"] <= 1
    held_out = results_of(tmp_path)["held_out"]
    assert held_out["pictures"] == results_of(tmp_path)["training"]["held_out"] in (1, 2)
    assert held_out["last"]["miou"] == row["miou"] and "held_out last" in (tmp_path / "results.txt").read_text()


def test_an_epoch_of_a_model_with_side_outputs(train: Callable[..., int], tiny: Path, tmp_path: Path) -> None:
    """And without classes' names: as many as the masks have labels."""
    words = ["--data", tiny, "--model", "u2net_lite", "--train-size", 32, "--overfit", 2, "--batch-size", 2]
    assert train("--output", tmp_path, *words, "--epochs", 1, "--device", "cpu", "--aux-weight", 0.5) == 0
    assert list(results_of(tmp_path)["held_out"]["last"]["iou"]) == ["0", "1", "2"]
    model = segzoo.create_model(f"local-dir:{tmp_path / 'last'}")
    assert model.num_classes == 3 and model.preprocessing.size == 32 and model.preprocessing.scale == "max"


def test_frozen_parts_stay(train: Callable[..., int], tiny: Path, tmp_path: Path, scripts: SimpleNamespace) -> None:
    words = ("--data", tiny, "--classes", ",".join(CLASSES), "--lr", 0.01, "--holdout", "none")
    assert train(*small(tmp_path / "a", *words)) == 0
    start = f"local-dir:{tmp_path / 'a/last'}"
    assert train(*small(tmp_path / "b", *words, "--weights", start, "--freeze", "encoder,decoder.0")) == 0
    before = segzoo.create_model(start).state_dict()
    after = segzoo.create_model(f"local-dir:{tmp_path / 'b/last'}").state_dict()
    frozen = {name for name in before if torch.equal(before[name], after[name])}
    assert frozen == {name for name in before if name.startswith(("encoder.", "decoder.0."))} != set(before)
    assert "held_out" not in results_of(tmp_path / "b") and not (tmp_path / "b/results.txt").exists()


def test_normalisation_is_the_encoder_s(train: Callable[..., int], tiny: Path, tmp_path: Path) -> None:
    for name, mean, std in (("inception", 0.5, 0.5), ("unit", 0.0, 1.0)):
        assert train(*small(tmp_path / name, "--data", tiny, "--normalize", name, "--overfit", 2)) == 0
        rule = segzoo.create_model(f"local-dir:{tmp_path / name / 'last'}").preprocessing
        assert (rule.mean, rule.std, rule.scale) == ((mean,) * 3, (std,) * 3, "255")


class Given(Exception):
    """Instead of a run."""


def test_options_reach_the_run(
    scripts: SimpleNamespace, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(recipe: Any, *rest: Any) -> None:
        raise Given(recipe)

    monkeypatch.setattr(scripts.script, "Run", stop)
    words = small(tmp_path, "--data", tiny, "--cutmix", 0.3, *MIXES[2], "--l1", 0.01, "--loss", "dice")
    with pytest.raises(Given) as given:
        scripts.script.main(scripts.script.parse([str(word) for word in words]), alone(scripts))
    recipe = given.value.args[0]
    assert recipe.l1 == 0.01 and recipe.metric == "miou" and recipe.maximize and not recipe.from_start
    assert [type(part).__name__ for part in recipe.mix.parts] == ["CopyBlob", "CutMix"] and recipe.mix.parts[1].p == 0.3
    logits, target = torch.randn(2, 3, 6, 5), torch.randint(3, (2, 6, 5))
    assert recipe.loss(logits, target) == DiceLoss()(logits, target)


def test_encoder_is_what_a_model_calls_its_own(scripts: SimpleNamespace) -> None:
    model = nn.ModuleDict({"backbone": nn.Sequential(nn.Conv2d(3, 3, 1)), "classifier": nn.Conv2d(3, 2, 1)})
    assert scripts.script.modules_to_freeze(model, "encoder") == [model["backbone"]]
    assert scripts.script.modules_to_freeze(model, "class,backbone.0") == [model["classifier"], model["backbone"][0]]
    with pytest.raises(ValueError, match="clasifier"):
        scripts.script.modules_to_freeze(model, "clasifier")


# Losses and class weights


def loss_of(scripts: SimpleNamespace, *words: object, weight: Tensor | None = None, ignore: int = IGNORED) -> Any:
    return scripts.losses.make_loss(arguments(scripts, *words), lambda: weight, ignore)


def test_sums_of_losses(scripts: SimpleNamespace) -> None:
    logits, target = torch.randn(2, 3, 6, 5), torch.randint(3, (2, 6, 5))
    target[:, 0] = IGNORED
    weight = torch.tensor([0.5, 1.0, 2.0])
    found = loss_of(scripts, "--loss", "weighted_ce+0.25*dice", weight=weight)(logits, target)
    expected = F.cross_entropy(logits, target, weight, ignore_index=IGNORED) + 0.25 * DiceLoss()(logits, target)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss_of(scripts, "--loss", "3*dice")(logits, target) == 3 * DiceLoss()(logits, target)
    found = loss_of(scripts, "--label-smoothing", 0.2, ignore=0)(logits, target.clamp(max=2))
    expected = F.cross_entropy(logits, target.clamp(max=2), label_smoothing=0.2, ignore_index=0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_auxiliary_outputs(scripts: SimpleNamespace) -> None:
    outputs, target = list(torch.randn(3, 2, 3, 4, 4)), torch.randint(3, (2, 4, 4))
    each = [CrossEntropyLoss()(output, target).item() for output in outputs]
    assert loss_of(scripts)(outputs, target).item() == pytest.approx(each[0] + 0.4 * (each[1] + each[2]), rel=1e-6)
    found = loss_of(scripts, "--aux-weight", 0)(outputs, target)
    assert found.item() == pytest.approx(each[0]) == loss_of(scripts)(outputs[0], target).item()


def test_plain_losses_count_nothing(scripts: SimpleNamespace) -> None:
    def never() -> Tensor:
        raise AssertionError

    scripts.losses.make_loss(arguments(scripts, "--loss", "ce+dice+lovasz"), never, IGNORED)


@pytest.mark.parametrize("method", ["inverse", "median_frequency", "effective_number", "enet"])
def test_class_weights_are_counted(scripts: SimpleNamespace, mixed_sizes: PairedFolder, method: str) -> None:
    masks = [np.array(Image.open(sample.mask)) for sample in mixed_sizes.samples]
    masks[0][masks[0] == 2] = 0  # a picture that lacks a class: shares of the pictures that have it are others
    Image.fromarray(masks[0]).save(mixed_sizes.samples[0].mask)
    counts = np.array([sum((mask == label).sum() for mask in masks) for label in range(3)], float)
    around = [sum((mask != IGNORED).sum() for mask in masks if (mask == label).any()) for label in range(3)]
    share = counts / counts.sum()
    expected = {
        "inverse": 1 / (3 * share),
        "median_frequency": np.median(counts / around) / (counts / around),
        "enet": 1 / np.log(1.02 + share),
        "effective_number": 1 / (1 - (1 - 1 / counts.mean()) ** counts),
    }[method]
    if method == "effective_number":
        expected /= expected.mean()
    args = arguments(scripts, "--loss", "weighted_ce", "--class-weights", method)
    found = scripts.losses.counted_weights(args, mixed_sizes, 3, alone(scripts))
    assert found.numpy() == pytest.approx(expected, rel=1e-5)


def test_processes_count_a_part_each(scripts: SimpleNamespace, mixed_sizes: PairedFolder) -> None:
    counted = []

    class One(scripts.processes.Processes):
        def added(self, values: Tensor) -> Tensor:
            counted.append(values.clone())
            return torch.ones_like(values)

    args = arguments(scripts)
    whole = torch.tensor([[0]])
    for count in (1, 3, 8):  # some of eight have no picture
        counted.clear()
        for rank in range(count):
            scripts.losses.counted_weights(args, mixed_sizes, 3, One(rank, count, torch.device("cpu")))
        total = torch.stack(counted).sum(0)
        whole = total if count == 1 else whole
        assert torch.equal(total, whole) and total.shape == (2, 3)


# Pictures


def test_pictures_are_resized_before_they_are_augmented(scripts: SimpleNamespace, mixed_sizes: PairedFolder) -> None:
    data, normalize = SimpleNamespace(train=mixed_sizes), segzoo.unet(weights=None, base_channels=1).preprocessing
    still = ("--scale", "1,1", "--rotation", 0, "--jitter", 0, "--hue", 0, "--blur", 0, "--hflip", 0)
    for words, shape in (
        ((), (40, 30)),
        (("--crop-size", 16), (16, 16)),
        (("--crop-size", "16,24"), (16, 24)),
        (("--train-size", 15), (20, 15)),
        (("--train-size", "20,12"), (20, 12)),
        (("--train-size", 15, "--crop-size", "16,12"), (16, 12)),
    ):
        transform = scripts.pictures.seen_in_training(arguments(scripts, *words), data, normalize, -1)
        for index in range(3):
            x, target = transform(*mixed_sizes.read(index))
            assert x.shape[-2:] == target.shape == shape
        transform = scripts.pictures.seen_in_training(arguments(scripts, *words, *still), data, normalize, -1)
        x, target = transform(*mixed_sizes.read(0))
        if "--crop-size" not in words:
            size = None if not words else shape
            exact, labels = SemanticEval(size, resize_mask=True, normalize=normalize)(*mixed_sizes.read(0))
            assert torch.equal(target, labels) and (x - exact).abs().max() < 0.02  # of uint8, rounded


def test_outside_of_pictures_does_not_count(scripts: SimpleNamespace, mixed_sizes: PairedFolder) -> None:
    args = arguments(scripts, "--scale", "0.5,0.5", "--rotation", 0)
    data, normalize = SimpleNamespace(train=mixed_sizes), SemanticTrain(8).normalize
    for ignored in (-1, 7):
        _, target = scripts.pictures.seen_in_training(args, data, normalize, ignored)(*mixed_sizes.read(0))
        assert (target == ignored).float().mean() == 0.75


def test_generators_reach_what_draws(scripts: SimpleNamespace, mixed_sizes: PairedFolder) -> None:
    args = arguments(scripts, "--train-size", 20, "--cutmix", 1, *MIXES[2])
    data, normalize = SimpleNamespace(train=mixed_sizes), SemanticTrain(8).normalize
    transform = scripts.pictures.seen_in_training(args, data, normalize, IGNORED)
    mixes = scripts.pictures.mixed(args, CLASSES, 3)
    seen = []
    for seed in (1, 1, 2):
        transform.generator = torch.Generator().manual_seed(seed)
        pairs = [transform(*mixed_sizes.read(index)) for index in (0, 1)]
        mixes.generator = torch.Generator().manual_seed(seed)
        batch = [torch.stack([pair[k].as_subclass(Tensor) for pair in pairs]) for k in (0, 1)]
        seen.append((*batch, *mixes(*batch)))
    assert all(torch.equal(one, two) for one, two in zip(seen[0], seen[1]))
    assert not any(torch.equal(one, two) for one, two in zip(seen[0], seen[2]))
    assert not torch.equal(seen[0][1], seen[0][3])


@pytest.mark.parametrize(
    ("dataset", "pairs"), [("camvid", [(7, 4), (9, 4), (10, 3)]), ("minicity", [(3, 1), (4, 1), (15, 0), (16, 0)])]
)
def test_known_data_sets_have_pairs(scripts: SimpleNamespace, dataset: str, pairs: Any) -> None:
    mixes = scripts.pictures.mixed(arguments(scripts, "--dataset", dataset, "--copyblob", 0.5), None, 19)
    (blobs,) = mixes.parts
    assert list(blobs.pairs) == pairs and blobs.p == 0.5
    args = arguments(scripts, "--dataset", dataset, "--copyblob", 0.5, "--copyblob-pairs", "red: ground,2:0")
    assert list(scripts.pictures.mixed(args, CLASSES, 3).parts[0].pairs) == [(1, 0), (2, 0)]
    assert scripts.pictures.mixed(arguments(scripts, "--cutmix", 1, "--overfit", 1), None, 3) is None


def test_overfit_sees_what_evaluation_sees(scripts: SimpleNamespace, mixed_sizes: PairedFolder) -> None:
    data, normalize = SimpleNamespace(train=mixed_sizes), segzoo.unet(weights=None, base_channels=1).preprocessing
    transform = scripts.pictures.seen_in_training(arguments(scripts, "--overfit", 2), data, normalize, IGNORED)
    x, target = transform(*mixed_sizes.read(0))
    expected, labels = SemanticEval(normalize=normalize)(*mixed_sizes.read(0))
    assert torch.equal(x, expected) and torch.equal(target, labels)


@pytest.mark.parametrize(("ignored", "expected"), [(IGNORED, (2, 3)), (0, (1, 4)), (-1, (2, 5))])
def test_accuracy_leaves_out_what_does_not_count(scripts: SimpleNamespace, ignored: int, expected: Any) -> None:
    target = torch.tensor([[[0, 1, 2, IGNORED, IGNORED]]])
    logits = F.one_hot(torch.tensor([[[0, 1, 1, 0, 2]]]), 3).permute(0, 3, 1, 2).float()
    right, counted = scripts.script.accuracy(ignored)(logits, target)
    assert (right.item(), counted.item()) == expected


# What goes wrong, and what is said of it


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--loss", "weighted_dise"], "weighted_dice"),
        (["--loss", "ce+ce"], "once"),
        (["--loss", "ce+x*dice"], "'x' is no number"),
        (["--loss", "dice", "--label-smoothing", 0.1], "--label-smoothing is for --loss ce"),
        (["--focal-gamma", 3], "--focal-gamma is for --loss focal"),
        (["--class-weights", "enet"], "weighted_ce"),
        (["--cutmix", 2], "from 0 to 1"),
        (["--copyblob", 0.5], "--copyblob-pairs"),
        (["--copyblob", 0.5, "--copyblob-pairs", "1:7"], "expected 0 … 2"),
        (["--copyblob", 0.5, "--copyblob-pairs", "read:ground"], "red"),
        (["--copyblob", 0.5, "--copyblob-pairs", "1"], "CLASS:GROUND"),
        (["--copyblob-pairs", "1:0"], "needs --copyblob"),
        (["--freeze", "encodr"], "encoder"),
        (["--hflip", 3], "hflip"),
        (["--holdout", "none", "--predict", "x"], "no pictures"),
        (["--holdout", "none", "--mst"], "no pictures"),
        (["--dataset", "voc"], "--classes is for --dataset folder"),
        (["--palette", "#000000,#ffffff"], "palette"),
        (["--classes", "ground,red"], "label 2"),
        (["--model", "unett"], "unet"),
    ],
)
def test_one_sentence(
    train: Callable[..., int], tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: Any, said: str
) -> None:
    start = small(tmp_path / "run", "--data", tiny, "--classes", ",".join(CLASSES))
    assert train(*start, *words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("train_semantic: error: ") and said in lines[0], lines


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--crop-size", "1,2,3"], "360,480"),
        (["--test-size", "0"], "360,480"),
        (["--scale", "1"], "0.75,2"),
        (["--mst-scales", "1,-2"], "0.5,1,2"),
        (["--class-weights", "median"], "median_frequency"),
    ],
)
def test_wrong_values(scripts: SimpleNamespace, capsys: pytest.CaptureFixture[str], words: Any, said: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        arguments(scripts, *words)
    assert said in capsys.readouterr().err


def test_one_class_is_another_script_s(train: Callable[..., int], tiny: Path, tmp_path: Path, capsys: Any) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in (tiny / "masks").iterdir():
        Image.new("L", (48, 48)).save(masks / path.name)
    assert train(*small(tmp_path / "run", "--images", tiny / "images", "--masks", masks)) == 2
    assert "train_salient.py" in capsys.readouterr().err


def test_predictions_have_a_place_before_training_starts(
    train: Callable[..., int], tiny: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "file").write_text("")
    words = small(tmp_path / "run", "--data", tiny, "--predict", tmp_path / "file/maps")
    assert train(*words) == 2
    assert "file" in capsys.readouterr().err and not (tmp_path / "run/history.csv").exists()
