"""Names of the classes: against torchvision's, those of the data sets here, and ADE20K's own numbers."""

from __future__ import annotations

import pytest

from segzoo.datasets import Cityscapes
from segzoo.weights import class_names

# From objectInfo150.txt of the scene parsing benchmark (https://github.com/CSAILVision/sceneparsing): number and name.
ADE20K_NUMBERS = {
    1: "wall", 4: "floor", 10: "grass", 13: "person", 20: "chair", 21: "car", 30: "field", 40: "cushion",
    50: "fireplace", 59: "screen door", 60: "stairway", 70: "bench", 80: "hovel", 81: "bus", 84: "truck",
    90: "television receiver", 100: "buffet", 110: "swimming pool", 117: "minibike", 120: "ball", 128: "bicycle",
    130: "dishwasher", 131: "screen", 137: "traffic light", 140: "fan", 142: "crt screen", 144: "monitor", 150: "flag",
}  # fmt: skip


@pytest.mark.parametrize("name", class_names.__all__)
def test_names_are_words_and_differ(name: str) -> None:
    classes = getattr(class_names, name)
    assert all(text == text.strip() != "" for text in classes)
    named = [text for text in classes if text != "N/A"]
    assert len(set(named)) == len(named)


def test_names_are_torchvisions() -> None:
    torchvision = pytest.importorskip("torchvision")
    voc = torchvision.models.segmentation.FCN_ResNet50_Weights.DEFAULT.meta["categories"]
    coco = torchvision.models.detection.MaskRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"]
    assert voc[0] == coco[0] == "__background__"
    assert class_names.VOC[0] == class_names.COCO[0] == "background"
    assert [text.replace(" ", "") for text in class_names.VOC[1:]] == voc[1:]
    assert list(class_names.COCO[1:]) == coco[1:]


def test_names_are_those_of_the_data_sets() -> None:
    by_train_id = sorted((label.train_id, label.name) for label in Cityscapes.table if label.train_id != 255)
    assert list(enumerate(class_names.CITYSCAPES)) == by_train_id


def test_ade20k_is_in_the_benchmarks_order() -> None:
    assert len(class_names.ADE20K) == 150
    assert {number: class_names.ADE20K[number - 1] for number in ADE20K_NUMBERS} == ADE20K_NUMBERS
