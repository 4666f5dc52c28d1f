"""Finding the files of a published data set: which of its known layouts is there, and is it whole."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from segzoo._errors import some_of, unknown_name
from segzoo._pairs import files_by_name
from segzoo.datasets.base import Sample

__all__ = ["check_split", "find_layout", "named_files", "paired"]

_MOST_LISTED = 2  # layouts; the others are where the same lies deeper or less deep


def check_split(split: str, known: Iterable[str]) -> None:
    if split not in (known := tuple(known)):
        raise unknown_name("split", split, known)


def find_layout(root: str | os.PathLike[str], layouts: Sequence[tuple[str, ...]], name: str) -> tuple[Path, ...]:
    """The folders or files of the first layout of which all are there.

    Args:
        root: The data set's folder.
        layouts: Paths in ``root``, each layout as many of them.
        name: Of the data set, for the error.

    Raises:
        FileNotFoundError: None of them is there: what was looked for.
    """
    if not os.fspath(root):
        raise ValueError(f"the root of {name} is empty, expected its folder")
    place = Path(root)
    for layout in layouts:
        if all((place / part).exists() for part in layout):
            return tuple(place / part for part in layout)
    expected = ", or ".join(" and ".join(layout) for layout in layouts[:_MOST_LISTED])
    nearest = max(layouts, key=lambda layout: sum((place / part).exists() for part in layout))
    missing = [part for part in nearest if not (place / part).exists()]
    found = f"{place} has no {missing[0]}" if len(missing) < len(nearest) else f"{place} has none of it"
    if not place.is_dir():
        found = f"there is no folder {place}"
    raise FileNotFoundError(f"{name} is {expected} in its root, but {found}; nothing is downloaded")


def named_files(folder: Path, ending: str = "", *, recursive: bool = False) -> dict[str, Path]:
    """The pictures of a folder by their path in it without ``ending`` and suffix, in natural order.

    Args:
        folder: Where they are.
        ending: With what a file's stem has to end, such as ``"_leftImg8bit"``; other files are left out.
        recursive: Whether its folders are followed.

    Raises:
        FileNotFoundError: There is none.
    """
    found = files_by_name(folder, recursive=recursive, suffix=ending)
    if not found:
        raise FileNotFoundError(f"there is no picture{f' *{ending}.*' if ending else ''} in {folder}")
    return found


def paired(images: Mapping[str, Path], masks: Mapping[str, Path], name: str) -> list[Sample]:
    """Pictures and masks of the same names.

    Raises:
        ValueError: Some has no partner: the data set was not unpacked as a whole.
    """
    for ours, theirs, kind, other in ((images, masks, "picture", "mask"), (masks, images, "mask", "picture")):
        lonely = [str(path) for key, path in ours.items() if key not in theirs]
        if lonely:
            what = f"1 {kind} of {name} has" if len(lonely) == 1 else f"{len(lonely)} {kind}s of {name} have"
            raise ValueError(f"{what} no {other}: {some_of(lonely, 3)}")
    return [Sample(key, image, masks[key]) for key, image in images.items()]
