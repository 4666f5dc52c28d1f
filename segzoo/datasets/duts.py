"""DUTS and ECSSD: pictures with salient objects."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from segzoo.datasets._layout import check_split, find_layout, named_files, paired
from segzoo.datasets._reading import read_foreground, read_soft
from segzoo.datasets.base import SegmentationDataset, Transforms

__all__ = ["DUTS", "ECSSD"]

_SPLITS = {"train": "DUTS-TR", "test": "DUTS-TE"}


class _Salient(SegmentationDataset):
    """Folders of pictures and of masks that are grey, or black and white."""

    def __init__(
        self,
        images: Path,
        masks: Path,
        name: str,
        *,
        soft: bool,
        transforms: Transforms | None,
        cache: Literal["memory"] | str | os.PathLike[str] | None,
    ) -> None:
        self.soft = soft
        samples = paired(named_files(images), named_files(masks), name)
        super().__init__(samples, classes=("object",), ignore_index=None, transforms=transforms, cache=cache)

    def read_mask(self, path: Path) -> NDArray[Any]:
        """The mask ``[H, W]``: uint8 0 and 1, or soft, float32 0…1."""
        return read_soft(path) if self.soft else read_foreground(path)

    def reading(self) -> tuple[object, ...]:
        """What decides, beside the files, what is read."""
        return *super().reading(), self.soft


class DUTS(_Salient):
    """DUTS: salient objects, 10,553 pictures to train on (DUTS-TR) and 5,019 to test (DUTS-TE), of about 400 × 300.

    Masks are 0 and 1, the object what is above half: along its rim the files are grey.

    Args:
        root: The folder that has ``DUTS-TR/DUTS-TR-Image`` and ``DUTS-TR/DUTS-TR-Mask``, and ``DUTS-TE`` likewise.
        split: ``"train"`` or ``"test"``.
        soft: Whether masks are float32 0…1, grey rims as they are.
        transforms: Called with picture and mask. See `SegmentationDataset`.
        cache: ``"memory"``, a folder, or None. See `SegmentationDataset`.

    Raises:
        FileNotFoundError: The folders are not there.
        ValueError: For an unknown split, or a picture or mask without its partner.

    Source:
        Wang et al.: Learning to Detect Salient Objects with Image-level Supervision, CVPR 2017.

    Examples:
        >>> duts = DUTS("data/DUTS", "train")  # doctest: +SKIP
        >>> image, mask = duts[0]  # doctest: +SKIP
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        *,
        soft: bool = False,
        transforms: Transforms | None = None,
        cache: Literal["memory"] | str | os.PathLike[str] | None = None,
    ) -> None:
        check_split(split, _SPLITS)
        part = _SPLITS[split]
        name = f"DUTS' split {split!r}"
        inside = f"{part}-Image", f"{part}-Mask"
        images, masks = find_layout(root, [tuple(f"{part}/{folder}" for folder in inside), inside], name)
        super().__init__(images, masks, name, soft=soft, transforms=transforms, cache=cache)


class ECSSD(_Salient):
    """ECSSD: 1,000 pictures with salient objects, of about 400 × 300: a test set.

    Whoever trains on a part of it says so and evaluates on the rest: ``torch.utils.data.Subset(dataset, range(800))``.

    Args:
        root: The folder that has ``images``, and ``ground_truth_mask`` (as published) or ``masks``.
        soft: Whether masks are float32 0…1, grey pixels as they are.
        transforms: Called with picture and mask. See `SegmentationDataset`.
        cache: ``"memory"``, a folder, or None. See `SegmentationDataset`.

    Raises:
        FileNotFoundError: The folders are not there.
        ValueError: A picture or mask is without its partner.

    Source:
        Shi, Yan, Xu, Jia: Hierarchical Image Saliency Detection on Extended CSSD, TPAMI 2016.

    Examples:
        >>> ecssd = ECSSD("data/ecssd")  # doctest: +SKIP
        >>> image, mask = ecssd[0]  # doctest: +SKIP
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        soft: bool = False,
        transforms: Transforms | None = None,
        cache: Literal["memory"] | str | os.PathLike[str] | None = None,
    ) -> None:
        images, masks = find_layout(root, [("images", "ground_truth_mask"), ("images", "masks")], "ECSSD")
        super().__init__(images, masks, "ECSSD", soft=soft, transforms=transforms, cache=cache)
