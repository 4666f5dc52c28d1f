"""Which picture or prediction belongs to which mask: files by their names."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from segzoo._decoding import picture_suffixes

__all__ = ["Pair", "Pairs", "files_by_name", "named_pictures", "natural_key", "pair_files", "pictures_in"]


@dataclass(frozen=True)
class Pair:
    """A picture, or a prediction, and its mask, under the name they share."""

    name: str
    source: Path
    mask: Path


@dataclass
class Pairs:
    """What was found: pairs in natural order, and the files that have no partner."""

    pairs: list[Pair]
    lonely_sources: list[Path] = field(default_factory=list)
    lonely_masks: list[Path] = field(default_factory=list)


def pair_files(
    sources: str | os.PathLike[str], masks: str | os.PathLike[str], *, recursive: bool, what: str = "prediction"
) -> Pairs:
    """Pair the files of two folders by their paths in them without the ending; or two files, whatever their names.

    Args:
        sources: A folder, or a file.
        masks: The same.
        recursive: Whether folders in the folders are followed.
        what: What ``sources`` are, for messages.

    Raises:
        FileNotFoundError: Something is not there.
        ValueError: A file and a folder, a name twice in one folder, or no pair.
    """
    if "" in (os.fspath(sources), os.fspath(masks)):
        raise ValueError(f"a path is empty: expected a folder of {what}s and one of masks, or a {what} and its mask")
    first, second = Path(sources), Path(masks)
    for path, kind in ((first, what), (second, "mask")):
        if not path.exists():
            raise FileNotFoundError(f"there is no folder or {kind} {path}")
    if first.is_dir() != second.is_dir():
        words = ["folder" if path.is_dir() else "file" for path in (first, second)]
        raise ValueError(f"{first} is a {words[0]} and {second} a {words[1]}, expected two folders or two files")
    if not first.is_dir():
        return Pairs([Pair(first.stem, first, second)])
    mine, theirs = (named_pictures(folder, recursive=recursive) for folder in (first, second))
    names = sorted(mine.keys() | theirs.keys(), key=natural_key)
    both = [name for name in names if name in mine and name in theirs]
    if not both:
        one, other = (min(files, key=natural_key) for files in (mine, theirs))
        raise ValueError(
            f"no {what} has the name of a mask: {mine[one]} and {theirs[other]}, for example, would both have to be "
            f"called {other!r}, whatever their endings"
        )
    return Pairs(
        [Pair(name, mine[name], theirs[name]) for name in both],
        [mine[name] for name in names if name not in theirs],
        [theirs[name] for name in names if name not in mine],
    )


def natural_key(name: str) -> tuple[str | int, ...]:
    """To sort as people count.

    Examples:
        >>> sorted(["b10", "b9", "a"], key=natural_key)
        ['a', 'b9', 'b10']
    """
    return tuple(int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name)))


def named_pictures(
    folder: Path, *, recursive: bool, suffix: str = "", other: str = "", more: Collection[str] = ()
) -> dict[str, Path]:
    """``files_by_name``, or a ValueError where there is none."""
    found = files_by_name(folder, recursive=recursive, suffix=suffix, other=other, more=more)
    if not found:
        deeper = not recursive and any(path.is_dir() for path in folder.iterdir())
        ending = f"whose name ends in {suffix!r} " if suffix else ""
        raise ValueError(
            f"there is no picture {ending}in the folder {folder}{'; recursive follows its folders' * deeper}"
        )
    return found


def files_by_name(
    folder: Path, *, recursive: bool, suffix: str = "", other: str = "", more: Collection[str] = ()
) -> dict[str, Path]:
    """The pictures of a folder by their paths in it without suffix and ending, in natural order.

    Args:
        folder: Where they are.
        recursive: Whether its folders are followed.
        suffix: With what their names end before the ending; others are left out.
        other: The longer suffix of what lies in the same folder and is to be left out; "": nothing is.
        more: Endings of files that are pictures, too.

    Raises:
        ValueError: Two files have one name.
    """
    found: dict[str, Path] = {}
    for path in pictures_in(folder, folder, recursive, more=more):
        name = path.with_suffix("").as_posix()
        if not name.endswith(suffix) or (len(other) > len(suffix) and name.endswith(other)):
            continue
        name = name.removesuffix(suffix)
        if name in found:
            raise ValueError(f"{found[name]} and {folder / path} have one name: which of them is {name!r}?")
        found[name] = folder / path
    return {name: found[name] for name in sorted(found, key=natural_key)}


def pictures_in(folder: Path, destination: Path, recursive: bool, more: Collection[str] = ()) -> list[Path]:
    """Picture files by their endings, relative to the folder, sorted; hidden files and the results are left out.

    Args:
        folder: Where they are.
        destination: The folder of results.
        recursive: Whether its folders are followed.
        more: Endings, in lower case, of other files that are pictures too.
    """
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder {folder}")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder; single pictures go in as a list")
    endings = picture_suffixes().union(more)
    found: list[Path] = []
    results = destination.resolve()

    def refuse(error: OSError) -> None:
        raise PermissionError(f"the folder {error.filename} cannot be read: {error.strerror}") from error

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [f for f in folders if not f.startswith(".") and Path(place, f).resolve() != results]
        found += [
            Path(place, f).relative_to(folder)
            for f in files
            if not f.startswith(".") and Path(f).suffix.lower() in endings and Path(place, f).is_file()
        ]
        if not recursive:
            break
    return sorted(found)
