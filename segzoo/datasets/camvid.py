"""CamVid: street scenes of Cambridge in 11 classes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from segzoo.datasets._layout import check_split, find_layout, named_files, paired
from segzoo.datasets.base import SegmentationDataset, Transforms

__all__ = ["CamVid"]

_CLASSES = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (0, 0, 192),
    "tree": (128, 128, 0),
    "sign_symbol": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
_UNLABELLED = len(_CLASSES)
_SPLITS = {"train": ("train",), "val": ("val",), "test": ("test",), "trainval": ("train", "val")}
_LAYOUTS = ("{0}/images", "{0}/labels"), ("{0}", "{0}annot")


class CamVid(SegmentationDataset):
    """CamVid in the release that SegNet made: 367, 101 and 233 pictures of 480 × 360, 11 classes.

    The files' label 11, unlabelled, becomes 255: the ``ignore_index`` that losses and metrics have by default. Names in
    order are frames in order, so neighbours look alike. The 32 classes of the original release are in colours: for
    these there is ``PairedFolder(palette=…)``.

    Args:
        root: The folder that has ``train/images`` and ``train/labels`` and so on, or SegNet's ``train`` and
            ``trainannot``.
        split: ``"train"``, ``"val"``, ``"test"``, or ``"trainval"``, both of the first.
        transforms: Called with picture and mask. See `SegmentationDataset`.
        cache: ``"memory"``, a folder, or None. See `SegmentationDataset`.

    Raises:
        FileNotFoundError: The root has neither layout.
        ValueError: For an unknown split, or a picture or mask without its partner.

    Source:
        Brostow, Fauqueur, Cipolla: Semantic Object Classes in Video, Pattern Recognition Letters 2009 (the colours);
        Badrinarayanan, Kendall, Cipolla: SegNet, 2017 (the classes and splits). For research, CC BY-NC 4.0.

    Examples:
        >>> camvid = CamVid("data/camvid", "val")  # doctest: +SKIP
        >>> image, mask = camvid[0]  # doctest: +SKIP
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        *,
        transforms: Transforms | None = None,
        cache: Literal["memory"] | str | os.PathLike[str] | None = None,
    ) -> None:
        check_split(split, _SPLITS)
        samples = []
        for part in _SPLITS[split]:
            layouts = [tuple(place.format(part) for place in layout) for layout in _LAYOUTS]
            images, masks = find_layout(root, layouts, f"CamVid's split {part!r}")
            samples += paired(named_files(images), named_files(masks), "CamVid")
        super().__init__(
            samples,
            classes=tuple(_CLASSES),
            ignore_index=255,
            colours=tuple(_CLASSES.values()),
            transforms=transforms,
            cache=cache,
        )

    def read_mask(self, path: Path) -> NDArray[Any]:
        """The labels in a mask file, ``[H, W]``, with 255 where the file says unlabelled."""
        labels = super().read_mask(path)
        labels[labels == _UNLABELLED] = self.ignore_index
        return labels
