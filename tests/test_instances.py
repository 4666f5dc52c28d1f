"""Pictures through a detector: the Predictor's answer, its masks, pictures and files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import segzoo
from segzoo.inference import InstancePrediction, Picture, predict_folder, read_picture


def picture(height: int = 20, width: int = 30) -> Picture:
    return read_picture(np.full((height, width, 3), 100, np.uint8))


def two_objects(**arguments: object) -> InstancePrediction:
    """A sure square over a less sure one, and a third that nobody believes in."""
    masks = torch.zeros(3, 1, 20, 30)
    masks[0, 0, 8:16, 8:20] = 0.9
    masks[1, 0, 2:10, 2:12] = 0.8
    masks[2, 0, 0:2, 0:2] = 1
    detections = {
        "boxes": torch.tensor([[8.0, 8, 20, 16], [2, 2, 12, 10], [0, 0, 2, 2]]),
        "labels": torch.tensor([2, 1, 1]),
        "scores": torch.tensor([0.7, 0.95, 0.2]),
        "masks": masks,
    }
    return InstancePrediction(picture(), detections, classes=("background", "cat", "dog"), **arguments)  # type: ignore[arg-type]


def test_objects_come_surest_first_and_unsure_ones_not_at_all() -> None:
    found = two_objects()
    assert len(found) == 2 and found.names == ["cat", "dog"] and found.labels.tolist() == [1, 2]
    assert found.confidences.tolist() == pytest.approx([0.95, 0.7])
    assert found.boxes[0].tolist() == [2, 2, 12, 10]
    assert found.masks.shape == found.probabilities.shape == (2, 20, 30) and found.masks.dtype == bool
    assert repr(found) == "InstancePrediction(2 objects, 20×30 pixels)"
    assert len(two_objects(score_threshold=0.0)) == 3


def test_the_mask_numbers_them_with_the_surest_on_top() -> None:
    found = two_objects()
    assert found.mask.dtype == np.uint8 and found.mask.shape == (20, 30)
    assert found.mask[9, 9] == 1  # both are there
    assert found.mask[3, 3] == 1 and found.mask[12, 15] == 2 and found.mask[19, 29] == 0
    image = found.render("mask")
    assert image.mode == "P" and np.array_equal(np.asarray(image), found.mask)


def test_cutouts_keep_all_objects_or_those_of_a_class() -> None:
    found = two_objects()
    alpha = np.asarray(found.cutout())[..., 3]
    assert alpha[3, 3] == round(0.8 * 255) and alpha[12, 15] == round(0.9 * 255) and alpha[19, 29] == 0
    dogs = np.asarray(found.cutout(classes="dog", hard=True))[..., 3]
    assert dogs[3, 3] == 0 and dogs[12, 15] == 255
    assert np.array_equal(np.asarray(found.cutout(classes=[1, "dog"])), np.asarray(found.cutout()))
    assert found.overlay().mode == "RGB"
    with pytest.raises(ValueError, match="unknown class 'cow': .*Known: background, cat, dog"):
        found.cutout(classes="cow")
    with pytest.raises(ValueError, match="a detector gives one for each object"):
        found.render("probability")
    with pytest.raises(ValueError, match="are a cut-out's"):
        found.render("mask", hard=True)


def test_nothing_found_is_an_empty_picture() -> None:
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.long),
        "scores": torch.zeros(0),
        "masks": torch.zeros(0, 1, 20, 30),
    }
    found = InstancePrediction(picture(), empty)
    assert len(found) == 0 and not found.mask.any() and found.mask.shape == (20, 30)
    assert not np.asarray(found.cutout())[..., 3].any()
    assert np.array_equal(np.asarray(found.overlay()), found.picture.rgb())


@pytest.fixture(scope="module")
def predictor() -> segzoo.Predictor:
    torch.manual_seed(0)
    model = segzoo.mask_rcnn_resnet50_fpn(weights=None, num_classes=3, min_size=96, box_score_thresh=0.0)
    model.score_threshold = 0.0
    return segzoo.Predictor(model, device="cpu")


def test_the_predictor_takes_a_detector(predictor: segzoo.Predictor, coffee: Path, tmp_path: Path) -> None:
    small = tmp_path / "in"
    small.mkdir()
    with Image.open(coffee) as image:
        image.resize((90, 60)).save(small / "a.png")
        image.resize((50, 70)).save(small / "b.jpg")
    first, second = predictor([small / "a.png", small / "b.jpg"])
    assert isinstance(first, InstancePrediction) and first.masks.shape[1:] == (60, 90)
    assert isinstance(second, InstancePrediction) and second.masks.shape[1:] == (70, 50)
    with torch.no_grad():
        x = torch.from_numpy(np.asarray(Image.open(small / "a.png")).copy()).permute(2, 0, 1) / 255
        expected = predictor.model([x])[0]
    assert np.allclose(np.sort(first.confidences), np.sort(expected["scores"].numpy()), atol=1e-5)
    report = predict_folder(predictor, small, tmp_path / "out", kind="cutout")
    assert len(report.written) == 2 and not report.failed


def test_a_bad_picture_does_not_end_the_stream(predictor: segzoo.Predictor, coffee: Path) -> None:
    small = np.asarray(Image.open(coffee).resize((40, 30)))
    bad, good = predictor.stream(["/nonexistent.png", small], errors="return")
    assert isinstance(bad, FileNotFoundError) and isinstance(good, InstancePrediction)


def test_what_a_detector_cannot_is_said(predictor: segzoo.Predictor) -> None:
    for arguments in ({"precision": "bf16"}, {"min_max": True}):
        with pytest.raises(ValueError, match="a detector runs in float32, without min_max"):
            segzoo.Predictor(predictor.model, device="cpu", **arguments)
    with pytest.raises(TypeError, match="a name or a segzoo model, got Linear"):
        segzoo.Predictor(torch.nn.Linear(1, 1))
