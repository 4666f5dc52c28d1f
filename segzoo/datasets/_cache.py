"""Decoded pictures, kept in a folder; and the choice between that and memory."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segzoo._files import write_whole
from segzoo.datasets._entries import HEADER, MOST_DIMENSIONS, Decode, Entry, entry_for, sum_of, words_of
from segzoo.datasets._memory import MemoryCache, PrivateCache

__all__ = ["Cache", "FolderCache", "open_cache"]

logger = logging.getLogger("segzoo.datasets")
_ABANDONED = 3600  # seconds after which nobody is writing a file any more
_PART = re.compile(r"\.[0-9a-f]{32}\.part")  # as write_whole names what it has not finished


class Cache(Protocol):
    """Decoded arrays by file and by how they were read."""

    def get(self, path: Path, reading: object, decode: Decode) -> Tensor:
        """The decoded file as a tensor of the caller's own; ``decode(path)`` only where nobody has done it yet.

        Args:
            path: The file. If its size or its time of modification changes, it is decoded anew.
            reading: What else decides the array, as a value with a ``repr``.
            decode: From the path to a contiguous, writable array.
        """


def open_cache(cache: Literal["memory"] | str | os.PathLike[str] | None) -> Cache | None:
    """The cache that a data set's argument names.

    Raises:
        OSError: The folder cannot be made or written.
    """
    if cache is None:
        return None
    if not isinstance(cache, (str, os.PathLike)) or not os.fspath(cache):
        raise TypeError(f"cache is {cache!r}, expected 'memory', a folder or None")
    if cache != "memory":
        return FolderCache(cache)
    return MemoryCache() if os.name == "posix" else PrivateCache()


class FolderCache:
    """Entries as files of a folder, each written whole; what is damaged is decoded again and replaced.

    Args:
        folder: Is made where it does not exist.

    Raises:
        OSError: It cannot be made or written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(os.path.abspath(folder))  # noqa: PTH100 — symbolic links stay what the user wrote
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(f"cache is {folder}, which is a file: expected a folder or 'memory'") from None
        except OSError as error:
            raise type(error)(f"cache: the folder {folder} cannot be made: {error.strerror}") from error
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise PermissionError(f"cache: the folder {folder} cannot be written: permission denied")
        self._writes = True
        self._sweep()

    def get(self, path: Path, reading: object, decode: Decode) -> Tensor:
        """The decoded file, from the folder if it is there."""
        wanted = entry_for(path, reading)
        place = f"{self._folder}/{wanted.key.hex()}.bin"
        found = _read_entry(place, wanted)
        if found is not None:
            return found
        array = decode(path)
        if self._writes and array.ndim <= MOST_DIMENSIONS:
            self._write(place, wanted, array)
        return torch.from_numpy(array)

    def _write(self, place: str, wanted: Entry, array: NDArray[Any]) -> None:
        words = words_of(array)
        try:
            with write_whole(place) as file:
                file.write(wanted.holding(array)._replace(total=sum_of(words)).pack())
                file.write(words.data)
        except OSError as error:  # a full disk must not end a training
            self._writes = False
            logger.warning("the cache in %s takes no more entries: %s", self._folder, error)

    def _sweep(self) -> None:
        """Remove what killed processes left half-written."""
        for part in self._folder.glob(".*.part"):
            with contextlib.suppress(OSError):
                if _PART.fullmatch(part.name) and time.time() - part.stat().st_mtime > _ABANDONED:
                    part.unlink()

    def __str__(self) -> str:
        return str(self._folder)


def _read_entry(place: str, wanted: Entry) -> Tensor | None:
    """None: there is no such entry, it is of another state of the file, or it is damaged."""
    try:
        with open(place, "rb", buffering=0) as file:  # noqa: PTH123 — a hit must not pay for a Path
            entry = Entry.unpack(file.read(HEADER.size))
            if entry is None or not entry.of(wanted):
                return None
            words = torch.empty(entry.padded, dtype=torch.uint8)
            into = words.numpy()
            done = 0
            while done < entry.padded:  # a single read stops at 2 GiB
                count = file.readinto(into[done:].data)
                if not count:
                    return None
                done += count
    except OSError:
        return None
    return entry.tensor(words) if sum_of(into.view(np.uint64)) == entry.total else None
