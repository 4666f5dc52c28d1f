"""Augmentation of images together with their masks."""

from segzoo.transforms.mix import CopyBlob, CutMix
from segzoo.transforms.normalize import Normalization, denormalize
from segzoo.transforms.presets import SalientEval, SalientTrain, SemanticEval, SemanticTrain

__all__ = [
    "CopyBlob",
    "CutMix",
    "Normalization",
    "SalientEval",
    "SalientTrain",
    "SemanticEval",
    "SemanticTrain",
    "denormalize",
]
