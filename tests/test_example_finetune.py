"""examples/finetune_cutout.py: from a tiny saved model, on pictures made here."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_examples import load

import segzoo
from segzoo.models.base import SegmentationModel
from segzoo.weights import Preprocessing

SIDE = 48


@pytest.fixture(scope="module")
def finetune() -> ModuleType:
    return load("finetune_cutout")


def tiny(folder: Path, **options: Any) -> str:
    """A saved model of one class and four channels."""
    torch.manual_seed(0)
    model = segzoo.create_model("unet", **{"num_classes": 1, "base_channels": 4, "encoder_weights": None} | options)
    assert isinstance(model, SegmentationModel)
    model.preprocessing = Preprocessing(size=(SIDE, SIDE))
    model.save_pretrained(folder, license="mit", training_data={"made here": "mit"})
    return f"local-dir:{folder}"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Six bright squares; the last picture lies on its side in its file, and its mask is of 0 and 1."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "masks").mkdir()
    for i in range(6):
        mask = np.zeros((SIDE, 36), np.uint8)
        mask[4 : 20 + i, 8:24] = 255
        picture = Image.fromarray(np.stack([mask // 2 + 60, mask, mask // 4], axis=-1))
        if i == 5:
            exif = Image.Exif()
            exif[0x0112] = 6  # to be turned right to be seen
            picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / f"pictures/{i}.png", exif=exif)
            Image.fromarray(mask // 255).save(tmp_path / f"masks/{i}.png")
        else:
            picture.save(tmp_path / f"pictures/{i}.png")
            Image.fromarray(mask).save(tmp_path / f"masks/{i}.png")
    return tmp_path


def words(pairs: Path, *more: str) -> list[str]:
    return [str(pairs / "pictures"), str(pairs / "masks"), "--output", str(pairs / "out"), *more]


def test_a_saved_model_learns_and_shows_what_it_learned(
    finetune: ModuleType, pairs: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices, predictor = [], segzoo.Predictor

    def watched(name: str, *, device: Any) -> Any:
        devices.append(str(device))
        return predictor(name, device=device)

    monkeypatch.setattr(segzoo, "Predictor", watched)
    name = tiny(pairs / "start")
    args = finetune.parse(words(pairs, "--model", name, "--epochs", "2", "--device", "cpu", "--lr", "1e-2"))
    assert (args.model, args.weights, args.resize, args.crop, args.norm) == ("unet", name, SIDE, 32, "frozen_batch")
    assert finetune.launch(finetune.main, args, "finetune_cutout") == 0
    assert devices == ["cpu", "cpu"]

    before, after = (segzoo.create_model(place) for place in (name, f"local-dir:{pairs / 'out/last'}"))
    assert isinstance(after, SegmentationModel) and after.preprocessing.size == (SIDE, SIDE)
    changed = [key for key, value in before.state_dict().items() if not value.equal(after.state_dict().get(key, value))]
    assert changed and not any("running" in key for key in changed)
    # The model saved again starts a further run as it is.
    assert finetune.parse(words(pairs, "--model", f"local-dir:{pairs / 'out/last'}")).norm is None

    sheet = np.asarray(Image.open(pairs / "out/before_after.png").convert("L")).astype(int)
    assert sheet.shape == (finetune.TILE, 4 * finetune.TILE)
    tile = finetune.TILE
    picture, mask = sheet[:SIDE, :36], sheet[:SIDE, tile : tile + 36]
    expected = np.zeros((SIDE, 36), bool)
    expected[4:25, 8:24] = True
    assert ((mask == 255) == expected).all() and set(np.unique(mask)) == {0, 255}
    assert ((picture > 100) == expected).all()
    assert (sheet[SIDE:, :tile] == 255).all() and (sheet[:, 36:tile] == 255).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("u2net_lite.duts", ("u2net_lite", "duts", 320, 288)),
        ("u2net_lite", ("u2net_lite", "duts", 320, 288)),
        ("u2net_full", ("u2net_full", "duts", 320, 288)),
        ("isnet", ("isnet", "general", 1024, 928)),
        ("isnet.general", ("isnet", "general", 1024, 928)),
    ],
)
def test_a_published_model_starts_at_its_own_size(
    finetune: ModuleType, pairs: Path, name: str, expected: tuple[str, str, int, int]
) -> None:
    args = finetune.parse(words(pairs, "--model", name))
    assert (args.model, args.weights, args.resize, args.crop) == expected
    assert (args.norm, args.lr, args.license) == ("frozen_batch", 2e-6, None)
    assert finetune.parse(words(pairs, "--model", name, "--norm", "batch", "--license", "mit")).norm == "batch"


def test_only_batch_norms_are_frozen(finetune: ModuleType, pairs: Path) -> None:
    assert finetune.parse(words(pairs, "--model", tiny(pairs / "group", norm="group"))).norm is None
    assert finetune.find_start(tiny(pairs / "batch")).norm == "batch"


@pytest.mark.parametrize(
    ("size", "side", "crop"),
    [
        (None, 320, 288),
        (256, 256, 224),
        ((384, 512), 512, 448),
        ((40, 40), 40, 32),
        ((33, 20), 33, 32),
        ((20, 20), 20, 18),
    ],
)
def test_the_size_is_the_models(finetune: ModuleType, size: Any, side: int, crop: int) -> None:
    assert finetune.side_of(Preprocessing(size=size)) == side
    assert finetune.crop_of(side) == crop <= side


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("u2net_lit", "did you mean 'u2net_lite'?"),
        ("u2net_lite.dut", "did you mean 'u2net_lite.duts'?"),
        ("unet", "unet has no weights to start from, expected a model such as u2net_lite.duts, or local-dir:FOLDER"),
        ("fcn_resnet50", "fcn_resnet50 has 21 classes, expected a model of one class"),
        ("local-dir:nowhere", "there is no folder nowhere"),
        ("local-dir:{}", "three has 3 classes, expected a model of one class"),
    ],
)
def test_what_cannot_be_started_from_is_one_sentence(
    finetune: ModuleType, pairs: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "{}" in name:
        name = tiny(pairs / "three", num_classes=3)
    with pytest.raises(SystemExit) as error:
        finetune.parse(words(pairs, "--model", name))
    last = capsys.readouterr().err.splitlines()[-1]
    assert error.value.code == 2 and last.startswith("finetune_cutout: error: ") and message in last
