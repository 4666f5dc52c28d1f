"""Cityscapes and its small relative MiniCity: street scenes of German cities in 19 classes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segzoo._decoding import PictureError
from segzoo._errors import unknown_name
from segzoo.datasets._layout import check_split, find_layout, named_files, paired
from segzoo.datasets.base import Sample, SegmentationDataset, Transforms

__all__ = ["Cityscapes", "CityscapesLabel", "MiniCity"]

Labels = TypeVar("Labels", NDArray[Any], Tensor)
_IGNORED = 255


class CityscapesLabel(NamedTuple):
    """A label of Cityscapes.

    Attributes:
        raw_id: In ``*_labelIds.png``, and what the test server takes. -1: in no file.
        train_id: 0 to 18, or 255 for what does not count.
        name: Such as ``"traffic light"``.
        category: One of ``Cityscapes.categories``.
        has_instances: Whether objects of it are told apart in ``*_instanceIds.png``.
        colour: In ``*_color.png``.
    """

    raw_id: int
    train_id: int
    name: str
    category: str
    has_instances: bool
    colour: tuple[int, int, int]


_TABLE = (
    (0, 255, "unlabeled", "void", False, (0, 0, 0)),
    (1, 255, "ego vehicle", "void", False, (0, 0, 0)),
    (2, 255, "rectification border", "void", False, (0, 0, 0)),
    (3, 255, "out of roi", "void", False, (0, 0, 0)),
    (4, 255, "static", "void", False, (0, 0, 0)),
    (5, 255, "dynamic", "void", False, (111, 74, 0)),
    (6, 255, "ground", "void", False, (81, 0, 81)),
    (7, 0, "road", "flat", False, (128, 64, 128)),
    (8, 1, "sidewalk", "flat", False, (244, 35, 232)),
    (9, 255, "parking", "flat", False, (250, 170, 160)),
    (10, 255, "rail track", "flat", False, (230, 150, 140)),
    (11, 2, "building", "construction", False, (70, 70, 70)),
    (12, 3, "wall", "construction", False, (102, 102, 156)),
    (13, 4, "fence", "construction", False, (190, 153, 153)),
    (14, 255, "guard rail", "construction", False, (180, 165, 180)),
    (15, 255, "bridge", "construction", False, (150, 100, 100)),
    (16, 255, "tunnel", "construction", False, (150, 120, 90)),
    (17, 5, "pole", "object", False, (153, 153, 153)),
    (18, 255, "polegroup", "object", False, (153, 153, 153)),
    (19, 6, "traffic light", "object", False, (250, 170, 30)),
    (20, 7, "traffic sign", "object", False, (220, 220, 0)),
    (21, 8, "vegetation", "nature", False, (107, 142, 35)),
    (22, 9, "terrain", "nature", False, (152, 251, 152)),
    (23, 10, "sky", "sky", False, (70, 130, 180)),
    (24, 11, "person", "human", True, (220, 20, 60)),
    (25, 12, "rider", "human", True, (255, 0, 0)),
    (26, 13, "car", "vehicle", True, (0, 0, 142)),
    (27, 14, "truck", "vehicle", True, (0, 0, 70)),
    (28, 15, "bus", "vehicle", True, (0, 60, 100)),
    (29, 255, "caravan", "vehicle", True, (0, 0, 90)),
    (30, 255, "trailer", "vehicle", True, (0, 0, 110)),
    (31, 16, "train", "vehicle", True, (0, 80, 100)),
    (32, 17, "motorcycle", "vehicle", True, (0, 0, 230)),
    (33, 18, "bicycle", "vehicle", True, (119, 11, 32)),
    (-1, 255, "license plate", "vehicle", False, (0, 0, 142)),
)
_LABELS = tuple(CityscapesLabel(*row) for row in _TABLE)
_CLASSES = tuple(label for label in _LABELS if label.train_id != _IGNORED)  # their order is that of the train ids
_HIGHEST_RAW = 33
# Every byte, so that a look-up never fails: -1 is 255 in a byte, and what is no id is refused before.
_ENCODED = bytes({label.raw_id % 256: label.train_id for label in _LABELS}.get(byte, _IGNORED) for byte in range(256))
_DECODED = bytes({label.train_id: label.raw_id for label in _CLASSES}.get(byte, 0) for byte in range(256))


class Cityscapes(SegmentationDataset):
    """Cityscapes: 2975, 500 and 1525 pictures of 2048 × 1024, 19 classes.

    The files' ids (0 to 33) become the 19 train ids 0 to 18, and 255, the ``ignore_index``, where a pixel does not
    count. The masks of the test set are not public: where there are files they ignore every pixel, and where
    there are none every pixel is ignored just as well.

    Args:
        root: The folder that has ``leftImg8bit`` and ``gtFine`` (or ``gtCoarse``).
        split: ``"train"``, ``"val"`` or ``"test"``; with coarse masks ``"train"``, ``"train_extra"`` or ``"val"``.
        mode: ``"fine"`` or ``"coarse"``.
        labels: ``"labelIds"``, the files that are published, or ``"labelTrainIds"``, which Cityscapes' scripts make.
        transforms: Called with picture and mask. See `SegmentationDataset`.
        cache: ``"memory"``, a folder, or None. See `SegmentationDataset`. 8 MB a picture.

    Attributes:
        table: All 35 labels with raw id, train id, name, category and colour.
        categories: The categories' names, from 0 on.
        category_ids: The category of each of the 19 classes, an index into ``categories``.

    Raises:
        FileNotFoundError: The folders are not there.
        ValueError: For an unknown split, mode or kind of labels, or a picture or mask without its partner.

    Source:
        Cordts et al.: The Cityscapes Dataset for Semantic Urban Scene Understanding, CVPR 2016.

    Examples:
        >>> Cityscapes.encode(np.array([7, 26, 0, 33]))
        array([  0,  13, 255,  18], dtype=uint8)
        >>> Cityscapes.decode(np.array([0, 13, 255, 18]))
        array([ 7, 26,  0, 33], dtype=uint8)
    """

    table: ClassVar[tuple[CityscapesLabel, ...]] = _LABELS
    categories: ClassVar[tuple[str, ...]] = tuple(dict.fromkeys(label.category for label in _CLASSES))
    category_ids: ClassVar[tuple[int, ...]] = tuple(
        tuple(dict.fromkeys(label.category for label in _CLASSES)).index(label.category) for label in _CLASSES
    )
    _title = "Cityscapes"

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        *,
        mode: Literal["fine", "coarse"] = "fine",
        labels: Literal["labelIds", "labelTrainIds"] = "labelIds",
        transforms: Transforms | None = None,
        cache: Literal["memory"] | str | os.PathLike[str] | None = None,
    ) -> None:
        if mode not in ("fine", "coarse"):
            raise unknown_name("mode", mode, ("fine", "coarse"))
        if labels not in ("labelIds", "labelTrainIds"):
            raise unknown_name("kind of labels", labels, ("labelIds", "labelTrainIds"))
        check_split(split, ("train", "train_extra", "val") if mode == "coarse" else ("train", "val", "test"))
        self.label_files = labels
        super().__init__(
            self._find(root, split, "gtFine" if mode == "fine" else "gtCoarse"),
            classes=[label.name for label in _CLASSES],
            ignore_index=_IGNORED,
            colours=[label.colour for label in _CLASSES],
            transforms=transforms,
            cache=cache,
        )

    def _find(self, root: str | os.PathLike[str], split: str, truth: str) -> list[Sample]:
        images_of, masks_of = f"leftImg8bit/{split}", f"{truth}/{split}"
        name = f"{self._title}'s split {split!r}"
        if split == "test" and not (Path(root) / masks_of).exists():
            (folder,) = find_layout(root, [(images_of,)], name)
            return [Sample(key, path, None) for key, path in self._images(folder).items()]
        images, masks = find_layout(root, [(images_of, masks_of)], name)
        return paired(self._images(images), named_files(masks, f"_{truth}_{self.label_files}", recursive=True), name)

    def _images(self, folder: Path) -> dict[str, Path]:
        return named_files(folder, "_leftImg8bit", recursive=True)

    def read_mask(self, path: Path) -> NDArray[Any]:
        """The train ids in a mask file, uint8 ``[H, W]``, with 255 where a pixel does not count."""
        ids = super().read_mask(path)
        if self.label_files == "labelTrainIds":
            return ids
        if ids.dtype != np.uint8 or ids.max() > _HIGHEST_RAW:
            strange = ids[((ids > _HIGHEST_RAW) & (ids != _IGNORED)) | (ids < 0)]
            if strange.size:
                raise PictureError(f"{path} holds {strange[0]}, expected the ids of Cityscapes, 0 … {_HIGHEST_RAW}")
            ids = ids.astype(np.uint8)
        # bytes.translate: NumPy would first make an index of 8 bytes of each pixel.
        return np.frombuffer(ids.tobytes().translate(_ENCODED), np.uint8).reshape(ids.shape)

    @staticmethod
    def encode(ids: Labels) -> Labels:
        """Raw ids, as in ``*_labelIds.png``, to train ids, uint8 of any shape.

        Args:
            ids: Integers, -1 to 33 or 255 (which is -1 in a byte).

        Raises:
            ValueError: For any other.
        """
        return _translated(ids, _ENCODED, {label.raw_id for label in _LABELS} | {_IGNORED}, "raw id")

    @staticmethod
    def decode(train_ids: Labels) -> Labels:
        """Train ids to raw ids, as the test server takes them, uint8 of any shape; 255 becomes 0, unlabeled.

        Args:
            train_ids: Integers, 0 to 18 or 255.

        Raises:
            ValueError: For any other.
        """
        return _translated(train_ids, _DECODED, {label.train_id for label in _LABELS}, "train id")


class MiniCity(Cityscapes):
    """MiniCity, of the VIPriors challenges: 200 pictures of Cityscapes to train on, 100 to validate and 200 to test.

    Training and validation are from Cityscapes' training set, the test from its validation set, under numbers for
    names and without masks: every pixel is ignored. The challenge's own loader calls what is ignored class 19: here it
    is 255, as in `Cityscapes`, which this is otherwise.

    Args:
        root: The folder ``minicity`` that the challenge's ``arrange_images.py`` makes: it has ``leftImg8bit`` and
            ``gtFine``, in these ``train``, ``val`` and ``test``, in these the files (or folders of cities).
        split: ``"train"``, ``"val"`` or ``"test"``.
        labels: ``"labelIds"`` or ``"labelTrainIds"``. See `Cityscapes`.
        transforms: Called with picture and mask. See `SegmentationDataset`.
        cache: ``"memory"``, a folder, or None. See `SegmentationDataset`.

    Raises:
        FileNotFoundError: The folders are not there.
        ValueError: For an unknown split or kind of labels, or a picture or mask without its partner.

    Source:
        Bruintjes et al.: VIPriors 1: Visual Inductive Priors for Data-Efficient Deep Learning Challenges, 2021.

    Examples:
        >>> minicity = MiniCity("data/minicity", "val")  # doctest: +SKIP
        >>> image, mask = minicity[0]  # doctest: +SKIP
    """

    _title = "MiniCity"

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        *,
        labels: Literal["labelIds", "labelTrainIds"] = "labelIds",
        transforms: Transforms | None = None,
        cache: Literal["memory"] | str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(root, split, labels=labels, transforms=transforms, cache=cache)

    def _images(self, folder: Path) -> dict[str, Path]:
        found = named_files(folder, recursive=True)
        return {name.removesuffix("_leftImg8bit"): path for name, path in found.items()}


def _translated(values: Labels, table: bytes, known: set[int], kind: str) -> Labels:
    numbers = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if numbers.dtype.kind not in "iu":
        raise TypeError(f"expected integers, each a {kind}, got {numbers.dtype}")
    strange = set(np.unique(numbers).tolist()) - known
    if strange:
        raise ValueError(f"{min(strange)} is no {kind} of Cityscapes")
    found = np.frombuffer(table, np.uint8)[numbers.astype(np.uint8)]
    return torch.from_numpy(found).to(values.device) if isinstance(values, Tensor) else found
