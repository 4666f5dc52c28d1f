"""PairedFolder: one's own pictures and masks, paired by their names."""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from numpy.typing import NDArray

from segzoo._decoding import PictureError
from segzoo._errors import some_of, unknown_name
from segzoo._pairs import named_pictures
from segzoo.datasets._palette import ColourLabels
from segzoo.datasets._reading import ARRAY_ENDING, read_bands, read_foreground, read_indices, read_soft, reduce_zero
from segzoo.datasets.base import Sample, SegmentationDataset, Transforms

__all__ = ["PairedFolder", "Unpaired"]

logger = logging.getLogger("segzoo.datasets")
Place: TypeAlias = str | os.PathLike[str]
_TASKS = "semantic", "salient"
_MISSING = "error", "skip", "allow"


class Unpaired(NamedTuple):
    """The files that have no partner."""

    images: list[Path]
    masks: list[Path]


class PairedFolder(SegmentationDataset):
    """Pictures in one folder and masks in another, or in the same, paired by their names without the endings.

    Pictures are RGB uint8 ``[3, H, W]``, upright by their EXIF orientation, transparent ones on white. TIFF and
    ``.npy`` files keep their bands as they are stored, ``[bands, H, W]`` in uint8, uint16, int16 or float32, and so do
    greys of 16 bits. Pillow reads few TIFFs with other than 1, 3 or 4 bands or more than 8 bits: for those, install
    tifffile.

    Masks are label maps ``[H, W]``: greys and palette pictures as their indices, with ``palette`` by their colours; or,
    for salient objects, 1 where the mask is above half of its range and 0 elsewhere: of 0 and 1, or of greys up to 255.
    A label that is neither a class nor ignored is an error, and so is a mask of labels where a grey one is expected.

    Args:
        images: The folder of pictures, or one picture.
        masks: The folder of masks, or one mask; None: there are none, and every pixel is ignored.
        classes: A name for each label from 0 on. None: labels are not checked; of salient objects ``("object",)``.
        palette: Masks are coded as colours: these, in the order of the classes, or a mapping from colours to labels, or
            to names of ``classes``. Several colours may have one label, that of ``ignore_index`` too. A colour is three
            numbers 0…255 or a string such as ``"#ff8000"``; a mask with any other is an error.
        ignore_index: The label that does not count. ``"auto"``: 255, and None for salient objects. Given for salient
            objects, it is the grey 2…255, such as 128, that is kept as it is; with 255 the object is 1.
        reduce_zero_label: The files' label 0 becomes ``ignore_index``, k becomes k − 1, as ADE20K needs it.
        soft: Masks of salient objects are float32 0…1.
        task: ``"semantic"`` or ``"salient"``.
        image_suffix: What follows the shared name in the pictures' names, before the ending; others are left out.
        mask_suffix: The same for masks, such as ``"_gtFine_labelTrainIds"``.
        recursive: Whether folders in the folders are followed; they are part of the names.
        missing: What a picture without a mask, or a mask without a picture, is: ``"error"``; ``"skip"``: left out;
            ``"allow"``: pictures without a mask have every pixel ignored. All are in ``unpaired``.
        bands: Which bands of the pictures are used, from 0, in this order. None: all.
        channels_first: Whether pictures in ``.npy`` files are ``[bands, H, W]`` instead of ``[H, W, bands]``.
        transforms: Called with picture and mask. See `SegmentationDataset`.
        cache: ``"memory"``, a folder, or None. See `SegmentationDataset`.

    Attributes:
        unpaired: The files that have no partner: ``images`` and ``masks``.

    Raises:
        FileNotFoundError: A folder is not there.
        ValueError: Files without a partner, no pair at all, two files of one name, or arguments that do not fit.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (4, 3)).save(folder / "a.jpg")
        >>> Image.new("RGB", (4, 3), "red").save(folder / "a_labels.png")
        >>> dataset = PairedFolder(folder, folder, mask_suffix="_labels", palette=["black", "red"])
        >>> dataset[0][1].unique()
        tensor([1], dtype=torch.uint8)
    """

    def __init__(
        self,
        images: Place,
        masks: Place | None,
        *,
        classes: Sequence[str] | None = None,
        palette: Sequence[Any] | Mapping[Any, int | str] | None = None,
        ignore_index: int | Literal["auto"] | None = "auto",
        reduce_zero_label: bool = False,
        soft: bool = False,
        task: Literal["semantic", "salient"] = "semantic",
        image_suffix: str = "",
        mask_suffix: str = "",
        recursive: bool = False,
        missing: Literal["error", "skip", "allow"] = "error",
        bands: Sequence[int] | None = None,
        channels_first: bool = False,
        transforms: Transforms | None = None,
        cache: Place | None = None,
    ) -> None:
        if task not in _TASKS:
            raise unknown_name("task", task, _TASKS)
        if missing not in _MISSING:
            raise unknown_name("missing", missing, _MISSING)
        if "" in (os.fspath(images), "." if masks is None else os.fspath(masks)):
            raise ValueError("a path is empty, expected a folder of pictures, and one of masks or None")
        salient = task == "salient"
        ignore_index_given = ignore_index
        if ignore_index == "auto":
            ignore_index = None if salient else 255
        if salient and (palette is not None or reduce_zero_label):
            raise ValueError("palette and reduce_zero_label are for label maps, expected neither with task='salient'")
        if salient and ignore_index is not None and not 2 <= ignore_index <= 255:
            raise ValueError(f"ignore_index is {ignore_index}, expected a grey 2 … 255 with task='salient', or None")
        if soft and (not salient or ignore_index is not None):
            raise ValueError("soft masks are those of task='salient' without ignore_index")
        if reduce_zero_label and (palette is not None or ignore_index is None):
            raise ValueError("reduce_zero_label makes 0 the ignore_index of index maps: expected one, and no palette")
        self.task, self.soft, self.reduce_zero_label = task, soft, reduce_zero_label
        self._first_label = int(reduce_zero_label)
        self.bands = None if bands is None else _checked_bands(bands)
        self.channels_first = channels_first
        if salient and classes is None:
            classes = ("object",)
        self._palette = None if palette is None else ColourLabels(_by_index(palette, classes))
        samples, self.unpaired = _pair(
            Path(images), None if masks is None else Path(masks), image_suffix, mask_suffix, recursive, missing
        )
        if self._palette is not None and classes is not None:
            wrong = set(self._palette.labels.values()) - {*range(len(classes)), ignore_index}
            if wrong:
                raise ValueError(
                    f"palette has the label {max(wrong)}, expected those of {len(classes)} classes"
                    + (f", or {ignore_index}" if ignore_index is not None else "")
                )
        if ignore_index_given == "auto" and not salient:
            _check_automatic(len(classes or ()), self._palette, isinstance(palette, Mapping))
        colours = None if self._palette is None else self._palette.colours(ignore_index)
        if colours is not None and classes is not None and len(colours) < len(classes):
            colours = None  # some classes have no colour of their own
        super().__init__(
            samples,
            classes=classes,
            ignore_index=ignore_index,
            colours=colours,
            transforms=transforms,
            cache=cache,
        )
        if salient and self.num_classes != 1:
            raise ValueError(f"classes has {self.num_classes} names, expected one with task='salient'")
        read = sorted(self._palette.labels.items()) if self._palette else None
        self._reading = task, soft, reduce_zero_label, self.bands, channels_first, zlib.crc32(repr(read).encode())

    def read_image(self, path: Path) -> NDArray[Any]:
        """The pixels of a picture file, ``[H, W, C]``: RGB, or the bands of a TIFF or ``.npy`` file."""
        pixels = read_bands(path, channels_first=self.channels_first)
        if self.bands is None:
            return pixels
        if max(self.bands) >= pixels.shape[2]:
            raise PictureError(f"{path} has {pixels.shape[2]} bands, expected band {max(self.bands)} (from 0) in it")
        return pixels[:, :, self.bands]

    def read_mask(self, path: Path) -> NDArray[Any]:
        """The labels in a mask file, ``[H, W]``."""
        if self.task == "salient":
            return read_soft(path) if self.soft else read_foreground(path, self.ignore_index)
        if self._palette is not None:
            return self._palette.read(path)
        labels = read_indices(path)
        if self.reduce_zero_label and self.ignore_index is not None:
            labels = reduce_zero(labels, self.ignore_index)
        return labels

    def reading(self) -> tuple[object, ...]:
        """What decides, beside the files, what is read."""
        return *super().reading(), *self._reading


def _check_automatic(count: int, palette: ColourLabels | None, mapped: bool) -> None:
    """Refuse 255 for ignored where it is a class; a mapping from colours may have it for those that are ignored."""
    if palette is not None:
        highest = max(palette.labels.values())
        count = max(count, 0 if mapped and highest == 255 else highest + 1)
    if count > 255:
        raise ValueError(
            f"ignore_index is 255 unless given, which is one of the {count} classes: expected another, such as -1, or "
            "None"
        )


def _checked_bands(bands: Sequence[int]) -> list[int]:
    chosen = [int(band) for band in bands]
    if not chosen or min(chosen) < 0:
        raise ValueError(f"bands is {list(bands)}, expected at least one index from 0")
    return chosen


def _by_index(palette: Sequence[Any] | Mapping[Any, int | str], classes: Sequence[str] | None) -> Any:
    """The palette with labels for names of classes."""
    if not isinstance(palette, Mapping):
        return palette
    known = {name: i for i, name in enumerate(classes or ())}
    for label in palette.values():
        if isinstance(label, str) and label not in known:
            raise unknown_name("class in palette", label, known)
    return {colour: known[label] if isinstance(label, str) else label for colour, label in palette.items()}


def _pair(
    images: Path, masks: Path | None, image_suffix: str, mask_suffix: str, recursive: bool, missing: str
) -> tuple[list[Sample], Unpaired]:
    for path, kind in ((images, "picture"), (masks, "mask")):
        if path is not None and not path.exists():
            raise FileNotFoundError(f"there is no folder or {kind} {path}")
    if masks is not None and images.is_dir() != masks.is_dir():
        kinds = ["folder" if path.is_dir() else "file" for path in (images, masks)]
        raise ValueError(f"{images} is a {kinds[0]} and {masks} a {kinds[1]}, expected two folders or two files")
    if not images.is_dir():
        return [Sample(images.stem, images, masks)], Unpaired([], [])
    same = masks is not None and images.resolve() == masks.resolve()
    if same and image_suffix == mask_suffix:
        raise ValueError(f"pictures and masks are both in {images}: expected an image_suffix or a mask_suffix")
    named = partial(named_pictures, recursive=recursive, more={ARRAY_ENDING})
    found = named(images, suffix=image_suffix, other=mask_suffix if same else "")
    if masks is None:
        return [Sample(name, path, None) for name, path in found.items()], Unpaired([], [])
    labels = named(masks, suffix=mask_suffix, other=image_suffix if same else "")
    unpaired = Unpaired(
        [path for name, path in found.items() if name not in labels],
        [path for name, path in labels.items() if name not in found],
    )
    if len(unpaired.images) == len(found) and missing != "allow":
        one, other = next(iter(found)), next(iter(labels))
        raise ValueError(
            f"no picture has the name of a mask: {found[one]} and {labels[other]}, for example, would both have to be "
            f"called {other!r}, but for endings and suffixes"
        )
    said = "; ".join(
        f"{len(paths)} {kind}{'s have' if len(paths) > 1 else ' has'} no {partner}: {some_of([str(p) for p in paths])}"
        for paths, kind, partner in ((unpaired.images, "picture", "mask"), (unpaired.masks, "mask", "picture"))
        if paths
    )
    if said and missing == "error":
        raise ValueError(f"{said} (missing='skip' leaves them out)")
    if said:
        logger.warning("%s", said)
    kept = [name for name in found if name in labels or missing == "allow"]
    return [Sample(name, found[name], labels.get(name)) for name in kept], unpaired
