"""What a cache keeps of a decoded file: a header that says which file in which state, and the array's bytes."""

from __future__ import annotations

import hashlib
import math
import os
import struct
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["HEADER", "MOST_DIMENSIONS", "Decode", "Entry", "entry_for", "sum_of", "words_of"]

Decode = Callable[[Path], NDArray[Any]]

# An entry is a header of one fixed size and the array's bytes, filled up with zeros to whole 8-byte words.
_MAGIC = b"szcache2"
HEADER = struct.Struct("<8s16sQqQ8s5QQ")  # magic, key, size, mtime_ns, sum, dtype, dimensions, shape (4), crc32
MOST_DIMENSIONS = 4


class Entry(NamedTuple):
    """What a header says: which file, in which state, gave which array."""

    key: bytes
    size: int
    mtime_ns: int
    dtype: str
    shape: tuple[int, ...]
    total: int = 0  # of the array's words

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * int(self.dtype[2:])

    @property
    def padded(self) -> int:
        return -(-self.nbytes // 8) * 8

    def pack(self) -> bytes:
        shape = (*self.shape, *[0] * (MOST_DIMENSIONS - len(self.shape)))
        fields = (_MAGIC, self.key, self.size, self.mtime_ns, self.total, self.dtype.encode(), len(self.shape), *shape)
        return HEADER.pack(*fields, zlib.crc32(HEADER.pack(*fields, 0)))

    @classmethod
    def unpack(cls, data: bytes) -> Entry | None:
        """None: these bytes are no header."""
        if len(data) != HEADER.size:
            return None
        magic, key, size, mtime_ns, total, dtype, dimensions, *shape, crc = HEADER.unpack(data)
        if magic != _MAGIC or crc != zlib.crc32(data[:-8] + bytes(8)):
            return None
        return cls(key, size, mtime_ns, dtype.rstrip(b"\0").decode(), tuple(shape[:dimensions]), total)

    def holding(self, array: NDArray[Any]) -> Entry:
        """The same with this array."""
        return self._replace(dtype=array.dtype.str, shape=array.shape)

    def tensor(self, words: Tensor) -> Tensor:
        """The array in the bytes of an entry, uint8 ``[padded]``."""
        return words[: self.nbytes].view(_torch_dtype(self.dtype)).view(self.shape)

    def of(self, other: Entry) -> bool:
        """Whether both are of one file in one state."""
        return self[:3] == other[:3]


@lru_cache
def _torch_dtype(dtype: str) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype


def entry_for(path: Path, reading: object) -> Entry:
    """Of a file as it is now, with no array yet. Taken before decoding: a change meanwhile is seen the next time."""
    where = os.path.abspath(path)  # noqa: PTH100 — a hit must not pay for a Path
    key = hashlib.blake2b(f"{where}\0{reading!r}".encode("utf-8", "surrogateescape"), digest_size=16).digest()
    state = os.stat(where)  # noqa: PTH116
    return Entry(key, state.st_size, state.st_mtime_ns, "|u1", ())


def words_of(array: NDArray[Any]) -> NDArray[np.uint64]:
    """An array's bytes as whole words."""
    flat = array.reshape(-1).view(np.uint8)
    return (
        np.append(flat, np.zeros(-flat.size % 8, np.uint8)).view(np.uint64) if flat.size % 8 else flat.view(np.uint64)
    )


def sum_of(words: NDArray[np.uint64]) -> int:
    """Costs a tenth of reading the bytes and shows what happens to files: a lost page, a torn end, a flipped bit."""
    return int(np.add.reduce(words, dtype=np.uint64))
