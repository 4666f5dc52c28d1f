"""PASCAL VOC and SBD, which adds to it: things in 20 classes, and the background."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from segzoo._decoding import one_sentence
from segzoo._errors import some_of, unknown_name
from segzoo.datasets._layout import check_split, find_layout
from segzoo.datasets.base import Sample, SegmentationDataset, Transforms

__all__ = ["SBD", "VOC"]

_CLASSES = {
    "background": (0, 0, 0),
    "aeroplane": (128, 0, 0),
    "bicycle": (0, 128, 0),
    "bird": (128, 128, 0),
    "boat": (0, 0, 128),
    "bottle": (128, 0, 128),
    "bus": (0, 128, 128),
    "car": (128, 128, 128),
    "cat": (64, 0, 0),
    "chair": (192, 0, 0),
    "cow": (64, 128, 0),
    "dining table": (192, 128, 0),
    "dog": (64, 0, 128),
    "horse": (192, 0, 128),
    "motorbike": (64, 128, 128),
    "person": (192, 128, 128),
    "potted plant": (0, 64, 0),
    "sheep": (128, 64, 0),
    "sofa": (0, 192, 0),
    "train": (128, 192, 0),
    "tv monitor": (0, 64, 128),
}
_CONTENT: dict[str, Any] = {"classes": tuple(_CLASSES), "colours": tuple(_CLASSES.values()), "ignore_index": 255}
_YEARS = tuple(str(year) for year in range(2007, 2013))
_LISTS = {  # of each split, where its list of names may be; the augmented set was never released as one
    "trainaug": ("Segmentation/trainaug", "Segmentation/train_aug", "SegmentationAug/train_aug"),
    **{split: (f"Segmentation/{split}",) for split in ("train", "val", "trainval", "test")},
}


class VOC(SegmentationDataset):
    """PASCAL VOC's segmentation: 21 classes with the background, and 255, ignored, along the rims of things.

    In 2012: 1464 pictures to train on, 1449 to validate, both 2913, and 1456 to test, whose masks are not public: there
    every pixel is ignored. ``"trainaug"`` are the 10,582 that papers train on, with SBD's masks.

    Args:
        root: The folder that has ``VOCdevkit/VOC2012`` (torchvision's root), or ``VOC2012``, or what is in it.
        split: ``"train"``, ``"val"``, ``"trainval"``, ``"test"``, or ``"trainaug"``, which needs ``trainaug.txt`` in
            ``ImageSets/Segmentation`` and the masks in ``SegmentationClassAug``.
        year: 2007 to 2012.
        transforms: Called with picture and mask. See `SegmentationDataset`.
        cache: ``"memory"``, a folder, or None. See `SegmentationDataset`.

    Raises:
        FileNotFoundError: The folders, the split's list or files in it are not there.
        ValueError: For an unknown split or year.

    Source:
        Everingham et al.: The PASCAL Visual Object Classes Challenge, IJCV 2015; for ``"trainaug"`` Hariharan et al.,
        see `SBD`. Pictures and masks are those of ``torchvision.datasets.VOCSegmentation``.

    Examples:
        >>> voc = VOC("data", "val")  # doctest: +SKIP
        >>> image, mask = voc[0]  # doctest: +SKIP
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        *,
        year: str | int = "2012",
        transforms: Transforms | None = None,
        cache: Literal["memory"] | str | os.PathLike[str] | None = None,
    ) -> None:
        if str(year) not in _YEARS:
            raise unknown_name("year of PASCAL VOC", str(year), _YEARS)
        check_split(split, _LISTS)
        name = f"PASCAL VOC {year}'s split {split!r}"
        masks_in = "SegmentationClassAug" if split == "trainaug" else "SegmentationClass"
        needed = ("JPEGImages",) if split == "test" else ("JPEGImages", masks_in)
        layouts = [
            tuple(f"{place}{part}" for part in (f"ImageSets/{names}.txt", *needed))
            for place in (f"VOCdevkit/VOC{year}/", f"VOC{year}/", "", f"TrainVal/VOCdevkit/VOC{year}/")
            for names in _LISTS[split]
        ]
        names, images, *_ = find_layout(root, layouts, name)
        samples = _listed(names, images, ".jpg", images.parent / masks_in, ".png", without_masks=split == "test")
        super().__init__(samples, **_CONTENT, transforms=transforms, cache=cache)


class SBD(SegmentationDataset):
    """The Semantic Boundaries Dataset: 11,355 pictures of VOC with VOC's classes, and no rims of 255.

    Its masks are MATLAB's files: reading them needs SciPy. Its splits are other than VOC's: to evaluate on VOC's
    ``"val"`` train on ``"train_noval"``, which has none of it.

    Args:
        root: The folder that has ``img``, ``cls`` and ``train.txt`` (torchvision's root), or ``benchmark_RELEASE``.
        split: ``"train"``, ``"val"`` or ``"train_noval"``, whose list is a file of its own.
        transforms: Called with picture and mask. See `SegmentationDataset`.
        cache: ``"memory"``, a folder, or None. See `SegmentationDataset`.

    Raises:
        FileNotFoundError: The folders, the split's list or files in it are not there.
        ImportError: SciPy is not installed.
        ValueError: For an unknown split.

    Source:
        Hariharan et al.: Semantic Contours from Inverse Detectors, ICCV 2011. Pictures and masks are those of
        ``torchvision.datasets.SBDataset`` with ``mode="segmentation"``.

    Examples:
        >>> sbd = SBD("data/sbd", "train_noval")  # doctest: +SKIP
        >>> image, mask = sbd[0]  # doctest: +SKIP
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        *,
        transforms: Transforms | None = None,
        cache: Literal["memory"] | str | os.PathLike[str] | None = None,
    ) -> None:
        check_split(split, ("train", "val", "train_noval"))
        parts = f"{split}.txt", "img", "cls"
        layouts = [tuple(place + part for part in parts) for place in ("", "benchmark_RELEASE/dataset/")]
        names, images, masks = find_layout(root, layouts, f"SBD's split {split!r}")
        _loadmat()  # a mask that cannot be read is no surprise for the first epoch
        samples = _listed(names, images, ".jpg", masks, ".mat")
        super().__init__(samples, **_CONTENT, transforms=transforms, cache=cache)

    def read_mask(self, path: Path) -> NDArray[Any]:
        """The labels in a file of MATLAB's, uint8 ``[H, W]``."""
        if not path.exists():
            raise FileNotFoundError(f"there is no mask {path}")
        load = _loadmat()
        with one_sentence(path):
            return np.asarray(load(path, simplify_cells=True)["GTcls"]["Segmentation"])


def _listed(
    names: Path, images: Path, image_ending: str, masks: Path, mask_ending: str, *, without_masks: bool = False
) -> list[Sample]:
    """The samples of a list: a name in each line, or picture and mask with folders, as DeepLab's lists have it."""
    found = [Path(line.split()[0]).stem for line in names.read_text().splitlines() if line.strip()]
    if not found:
        raise ValueError(f"{names} is empty, expected a name in each line")
    samples = [Sample(name, images / (name + image_ending), masks / (name + mask_ending)) for name in found]
    if without_masks and not any(sample.mask.exists() for sample in samples if sample.mask):
        samples = [Sample(sample.name, sample.image, None) for sample in samples]
    files = [path for sample in samples for path in (sample.image, sample.mask) if path is not None]
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        what = "1 file that {} lists is" if len(missing) == 1 else f"{len(missing)} files that {{}} lists are"
        raise FileNotFoundError(f"{what.format(names)} not there: {some_of(missing, 3)}")
    return samples


def _loadmat() -> Callable[..., Any]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError("the masks of SBD are read with SciPy, which is not installed: pip install scipy") from error
    load: Callable[..., Any] = loadmat
    return load
