"""What every data set here is: a list of samples, and pictures with their masks as tv_tensors."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision import tv_tensors

from segzoo._decoding import PictureError
from segzoo.datasets._cache import Cache, open_cache
from segzoo.datasets._code import code_of
from segzoo.datasets._reading import ARRAY_ENDING, read_indices, read_picture
from segzoo.datasets._tiff import TIFF_ENDINGS

__all__ = ["Sample", "SegmentationDataset", "Transforms", "pictures_of"]

Transforms = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Sample:
    """One picture and its mask.

    Attributes:
        name: What reports call it.
        image: The picture's file; a string becomes a path.
        mask: The mask's file, or None where there is none: every pixel is then ignored.
    """

    name: str
    image: Path
    mask: Path | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "image", Path(self.image))
        object.__setattr__(self, "mask", None if self.mask is None else Path(self.mask))


class SegmentationDataset(Dataset[tuple[tv_tensors.Image, tv_tensors.Mask]]):
    """Pictures and their masks, each at its own size, as uint8 tensors that belong to whoever asked for them.

    An item is ``transforms(image, mask)``: a ``tv_tensors.Image``, uint8 ``[3, H, W]`` unless the data set says
    otherwise, and a ``tv_tensors.Mask`` ``[H, W]``, uint8 (int64 where labels do not fit, float32 where masks are
    soft). A sample without a mask gets one of ``ignore_index`` everywhere.

    A data set of one's own hands its samples to this class and overrides ``read_image`` or ``read_mask`` where its
    files need it. The code of such methods is part of the cache's keys; what else they depend on (an attribute, a
    function outside the class) belongs into ``reading``.

    Args:
        samples: The files, in order.
        classes: A name for each label from 0 on; one name: salient objects, labels 0 and 1. None: not known.
        ignore_index: The label that does not count, or None.
        colours: One RGB colour for each class, ``[num_classes, 3]``, 0…255, or None.
        transforms: Called with picture and mask; what it returns is the item. None: they are the item.
        cache: Where decoded pictures are kept: ``"memory"``, one copy for all workers of a loader, freed with them; a
            folder, which lasts; None: nowhere. A file that has changed (its size or time of modification) is decoded
            anew. Decoded pictures are large: 0.7 MB with the mask at 480 × 360, 8 MB at 2048 × 1024.

    Raises:
        ValueError: There are no samples, colours that do not fit the classes, or samples without a mask and no
            ``ignore_index``.
        OSError: The cache's folder cannot be written.

    Examples:
        >>> from PIL import Image
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (4, 3), "red").save(folder / "a.png")
        >>> Image.new("L", (4, 3), 1).save(folder / "a_mask.png")
        >>> dataset = SegmentationDataset(
        ...     [Sample("a", folder / "a.png", folder / "a_mask.png")], classes=("road", "car"), ignore_index=255
        ... )
        >>> image, mask = dataset[0]
        >>> image.shape, mask.unique()
        (torch.Size([3, 3, 4]), tensor([1], dtype=torch.uint8))
    """

    _first_label = 0  # in the files, of the classes

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        classes: Sequence[str] | None,
        ignore_index: int | None,
        colours: Sequence[Sequence[int]] | NDArray[Any] | None = None,
        transforms: Transforms | None = None,
        cache: Literal["memory"] | str | os.PathLike[str] | None = None,
    ) -> None:
        if not samples:
            raise ValueError("samples is empty, expected at least one picture")
        self.samples = list(samples)
        self.classes = None if classes is None else _checked_names(classes)
        self.colours: NDArray[np.uint8] | None = None
        if colours is not None:
            self.colours = _checked_colours(colours, self.num_classes)
        self.ignore_index = None if ignore_index is None else operator.index(ignore_index)
        alone = next((sample for sample in self.samples if sample.mask is None), None)
        if alone is not None and self.ignore_index is None:
            raise ValueError(f"{alone.image} has no mask, and there is no ignore_index to stand for it")
        self.transforms = transforms
        self._cache: Cache | None = open_cache(cache)
        self._code = code_of(type(self), "segzoo")

    @property
    def num_classes(self) -> int | None:
        """How many classes there are, or None where that is not known."""
        known = self.colours if self.classes is None else self.classes
        return None if known is None else len(known)

    @property
    def names(self) -> list[str]:
        """The samples' names, in order."""
        return [sample.name for sample in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        image, mask = self.read(index)
        return (image, mask) if self.transforms is None else self.transforms(image, mask)

    def read(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """Picture and mask of a sample, without the transforms.

        Raises:
            IndexError: There is no such sample.
            FileNotFoundError: A file is not there any more.
            ValueError: A file is broken, or the mask has another size than the picture.
        """
        sample = self.samples[operator.index(index)]
        image = self.image(index)
        if sample.mask is None:
            return image, self._ignored(image.shape[-2:])
        mask = self.mask(index)
        if image.shape[-2:] != mask.shape:
            sizes = [f"{shape[-1]} × {shape[-2]}" for shape in (image.shape, mask.shape)]
            hint = _size_hint(image.shape, mask.shape, sample.image.suffix.lower())
            raise ValueError(f"{sample.image} has {sizes[0]} pixels and its mask {sample.mask} {sizes[1]}{hint}")
        return image, mask

    def image(self, index: int) -> tv_tensors.Image:
        """The picture of a sample alone, ``[C, H, W]``, without the transforms."""
        path = self.samples[index].image
        return tv_tensors.Image(self._pixels(path, "image", self._decode_image))

    def mask(self, index: int) -> tv_tensors.Mask:
        """The mask of a sample alone, ``[H, W]``, without the transforms."""
        sample = self.samples[index]
        if sample.mask is None:
            return self._ignored(self.image(index).shape[-2:])
        try:
            return tv_tensors.Mask(self._pixels(sample.mask, "mask", self._decode_mask))
        except PictureError as error:
            raise PictureError(f"{error} (the mask of {sample.image})") from error

    def read_image(self, path: Path) -> NDArray[Any]:
        """The pixels of a picture file, ``[H, W, C]``: RGB, upright."""
        return read_picture(path)

    def read_mask(self, path: Path) -> NDArray[Any]:
        """The labels in a mask file, ``[H, W]``: the indices it holds."""
        return read_indices(path)

    def reading(self) -> tuple[object, ...]:
        """What decides, beside the files, what ``read_image`` and ``read_mask`` return: part of the cache's keys."""
        kind = type(self)
        return kind.__module__, kind.__qualname__, self.num_classes, self.ignore_index

    def _pixels(self, path: Path, kind: str, decode: Callable[[Path], NDArray[Any]]) -> Tensor:
        if self._cache is None:
            return torch.from_numpy(decode(path))
        return self._cache.get(path, (kind, self._code, *self.reading()), decode)

    def _decode_image(self, path: Path) -> NDArray[Any]:
        """Planes ``[C, H, W]``, as batches want them: the copy is made once, before the cache."""
        pixels = self.read_image(path)
        return _own(np.moveaxis(pixels, -1, 0))

    def _decode_mask(self, path: Path) -> NDArray[Any]:
        labels = self.read_mask(path)
        if labels.dtype.kind in "biu":
            labels = self._checked_labels(labels, path)
        return _own(labels)

    def _checked_labels(self, labels: NDArray[Any], path: Path) -> NDArray[Any]:
        """As uint8, or int64 where labels may not fit, once each is a class or ignored."""
        if self.num_classes is None:
            fits = labels.dtype in (np.uint8, np.bool_)
        else:
            known = max(self.num_classes, 2)  # one class is 0 and 1
            fits = known <= 256 and (self.ignore_index is None or 0 <= self.ignore_index <= 255)
            if labels.max() >= known or labels.min() < 0:
                bad = (labels >= known) | (labels < 0)
                if self.ignore_index is not None:
                    bad &= labels != self.ignore_index
                if bad.any():
                    y, x = map(int, np.argwhere(bad)[0])
                    first = self._first_label
                    raise PictureError(
                        f"{path} has the label {int(labels[y, x]) + first} at row {y}, column {x}, "
                        f"expected {first} … {known - 1 + first}"
                        + (f", or {self.ignore_index} for ignored" if self.ignore_index is not None else "")
                    )
        return labels.astype(np.uint8 if fits else np.int64, copy=False)

    def _ignored(self, size: Sequence[int]) -> tv_tensors.Mask:
        ignore_index, known = operator.index(self.ignore_index or 0), max(self.num_classes or 0, 2)
        dtype = torch.uint8 if known <= 256 and 0 <= ignore_index <= 255 else torch.int64
        return tv_tensors.Mask(torch.full(tuple(size), ignore_index, dtype=dtype))

    def __repr__(self) -> str:
        folders = {sample.image.parent for sample in self.samples}
        if len({folder.is_absolute() for folder in folders}) > 1:
            folders = {folder.absolute() for folder in folders}
        folder = os.path.commonpath(folders) or "."
        lines = [f"{len(self)} picture{'s' * (len(self) != 1)} in {folder}"]
        if self.classes is not None:
            shown = ", ".join(self.classes[:8]) + (" …" if len(self.classes) > 8 else "")
            lines.append(f"{len(self.classes)} {'class' if len(self.classes) == 1 else 'classes'}: {shown}")
        lines.append(f"ignore_index={self.ignore_index}, cache={self._cache}")
        return "\n    ".join([type(self).__name__, *lines])


def pictures_of(dataset: Dataset[Any]) -> Iterator[tuple[SegmentationDataset, int]]:
    """Each picture of a data set as the data set it is of and its index there, through Subset and ConcatDataset.

    Raises:
        TypeError: It is none, or none of such.
    """
    if isinstance(dataset, SegmentationDataset):
        yield from ((dataset, index) for index in range(len(dataset)))
    elif isinstance(dataset, Subset):
        whole = list(pictures_of(dataset.dataset))
        yield from (whole[index] for index in dataset.indices)
    elif isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            yield from pictures_of(part)
    else:
        kind = type(dataset).__name__
        raise TypeError(f"expected a SegmentationDataset, or a Subset or ConcatDataset of such, got {kind}")


def _own(values: NDArray[Any]) -> NDArray[Any]:
    """Contiguous and writable: read-only pixels would tie a tensor to memory that is not its own."""
    return np.require(values, requirements=["C", "W"])


def _size_hint(image: Sequence[int], mask: Sequence[int], ending: str) -> str:
    """Why a picture ``[C, H, W]`` may have another size than its mask."""
    channels, height, width = image
    if (height, width) == tuple(mask[::-1]):
        return ", turned: pictures are read upright, by their EXIF orientation"
    if ending in TIFF_ENDINGS and (channels, height) == tuple(mask):
        return (
            f": are its {channels} pages rows of {width} bands? (tifffile.imwrite has planarconfig='contig' for those)"
        )
    if ending == ARRAY_ENDING and (width, channels) == tuple(mask):
        return ": is it [bands, H, W]? (PairedFolder has channels_first=True for those)"
    return ""


def _checked_names(classes: Sequence[str]) -> tuple[str, ...]:
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise TypeError(f"classes is {classes!r}, expected a sequence of names")
    names = tuple(classes)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"classes is {names!r}, expected at least one name, each of them once")
    return names


def _checked_colours(colours: Sequence[Sequence[int]] | NDArray[Any], num_classes: int | None) -> NDArray[np.uint8]:
    values = np.asarray(colours)
    if values.ndim != 2 or values.shape[1] != 3 or values.dtype.kind not in "iu":
        raise ValueError(f"colours is {values.dtype} {list(values.shape)}, expected integers [num_classes, 3]")
    if values.min() < 0 or values.max() > 255:
        raise ValueError(f"colours has values {values.min()} to {values.max()}, expected 0 … 255")
    if num_classes is not None and len(values) != num_classes:
        raise ValueError(f"colours has {len(values)} rows, expected one for each of the {num_classes} classes")
    return values.astype(np.uint8)
