"""Decoded pictures in memory that all workers of a loader share."""

from __future__ import annotations

import contextlib
import logging
import mmap
import multiprocessing.context
import os
import tempfile
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segzoo.datasets._entries import HEADER, MOST_DIMENSIONS, Decode, Entry, entry_for, words_of
from segzoo.datasets._room import address_space_left, memory_left, memory_size

__all__ = ["MemoryCache", "PrivateCache"]

logger = logging.getLogger("segzoo.datasets")
_FIRST = 64  # where the first entry begins
_LOOK_EVERY = 1 << 24  # bytes; to ask what is left costs as much as to write a tenth of it
_SPARED = 10  # a cache leaves this part of the memory to others, other caches among them
_LEAST = 1 << 20


class MemoryCache:
    """Entries one after the other in a nameless file in memory, which forked and spawned workers map.

    Nothing has to be cleaned up: the kernel frees the memory when the last process that knows it ends. No process has
    to tell another what it decoded: one that misses an entry reads on where it stopped reading the headers. The first
    word of the file says where the last entry ends and is written last, so that a killed writer leaves nothing behind.

    Args:
        limit: Bytes that it may hold; None: half of what this machine or container has. It takes no more before that
            where less than a tenth of the memory would be left.

    Raises:
        OSError: So much cannot be mapped.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._attach(_nameless_file(), limit or _half_of_memory())

    def _attach(self, file: int, limit: int | None = None) -> None:
        self._file = file
        weakref.finalize(self, os.close, file).atexit = False
        # Copying from a mapping is twice as fast as reading; writing goes through the file, which can be full.
        self._bytes = _mapped(file, limit)
        self._limit = self._bytes.size
        self._index: dict[bytes, tuple[Entry, int]] = {}
        self._seen = _FIRST
        self._full = False
        self._looked = 0  # up to where there was memory enough
        self._lock, self._lock_of = threading.Lock(), os.getpid()

    def get(self, path: Path, reading: object, decode: Decode) -> Tensor:
        """The decoded file, from memory if any of the processes has decoded it."""
        wanted = entry_for(path, reading)
        found = self._index.get(wanted.key)
        if found is None or not found[0].of(wanted):
            with self._alone():
                self._read_on()
            found = self._index.get(wanted.key)
        if found is not None and found[0].of(wanted):
            entry, start = found
            words = torch.empty(entry.padded, dtype=torch.uint8)
            np.copyto(words.numpy(), self._bytes[start : start + entry.padded])
            return entry.tensor(words)
        array = decode(path)
        if not self._full and array.ndim <= MOST_DIMENSIONS:
            self._append(wanted.holding(array), array)
        return torch.from_numpy(array)

    def _append(self, entry: Entry, array: NDArray[Any]) -> None:
        with self._alone():
            self._read_on()
            known = self._index.get(entry.key)
            if known is not None and known[0].of(entry):
                return
            end = self._seen + HEADER.size + entry.padded
            try:
                if end > self._limit:
                    raise OSError(f"it holds {self._seen / 2**30:.1f} GiB of the {self._limit / 2**30:.1f} it may")
                if end > self._looked:
                    self._looked = end + _LOOK_EVERY
                    left = memory_left() - (self._looked - self._seen)
                    if left < memory_size() // _SPARED:
                        raise OSError(f"it holds {self._seen / 2**30:.1f} GiB, and little memory is left")
                _write_at(self._file, self._seen, entry.pack())
                _write_at(self._file, self._seen + HEADER.size, words_of(array).data)
                _write_at(self._file, 0, end.to_bytes(8, "little"))
            except OSError as error:
                self._full = True
                logger.warning("the cache in memory takes no more entries: %s", error)

    def _read_on(self) -> None:
        """Take in the headers that other processes have written."""
        end = int.from_bytes(self._bytes[:8].tobytes(), "little")
        while self._seen < end:
            entry = Entry.unpack(self._bytes[self._seen : self._seen + HEADER.size].tobytes())
            if entry is None:
                raise RuntimeError("the cache in memory was overwritten")
            start = self._seen + HEADER.size
            self._index[entry.key] = entry, start
            self._seen = start + entry.padded

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process, and no other thread, reads headers or writes meanwhile; a lock dies with its process."""
        import fcntl  # not on Windows

        if self._lock_of != os.getpid():  # a thread of the process that forked may have held it
            self._lock, self._lock_of = threading.Lock(), os.getpid()
        with self._lock:
            fcntl.lockf(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN)

    def __reduce__(self) -> tuple[Any, ...]:
        if multiprocessing.context.get_spawning_popen() is None:  # pickled into a file, say: there it starts empty
            return MemoryCache, (self._limit,)
        from multiprocessing import reduction

        return _attached, (reduction.DupFd(self._file),)

    def __str__(self) -> str:
        return "memory"


def _attached(file: Any) -> MemoryCache:
    """The cache of the process that started this one."""
    cache = MemoryCache.__new__(MemoryCache)
    cache._attach(file.detach())
    return cache


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("segzoo-cache")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _mapped(file: int, limit: int | None) -> NDArray[np.uint8]:
    """All of a file; of a new one so many bytes, or fewer where there are no addresses for them."""
    size = os.fstat(file).st_size if limit is None else limit
    while True:
        if limit is not None:
            os.ftruncate(file, size)  # reserves addresses; memory is taken as it is written
        try:
            return np.frombuffer(mmap.mmap(file, size, access=mmap.ACCESS_READ), np.uint8)
        except OSError as error:
            if limit is None or size < _LEAST:
                raise OSError(
                    f"cache='memory' cannot map {size / 2**20:.0f} MiB ({error.strerror}): raise the limit of "
                    "addresses (ulimit -v), or let cache= be a folder or None"
                ) from error
        size //= 2


def _write_at(file: int, place: int, data: bytes | memoryview) -> None:
    left = memoryview(data).cast("B")
    while left:
        done = os.pwrite(file, left, place)
        left, place = left[done:], place + done


def _half_of_memory() -> int:
    return max(_LEAST, min(memory_size(), address_space_left()) // 2)


class PrivateCache:
    """Tensors of this process alone, where processes cannot share a nameless file (Windows)."""

    def __init__(self) -> None:
        self._kept: dict[bytes, tuple[Entry, Tensor]] = {}

    def get(self, path: Path, reading: object, decode: Decode) -> Tensor:
        """The decoded file, if this process has decoded it."""
        wanted = entry_for(path, reading)
        found = self._kept.get(wanted.key)
        if found is None or not found[0].of(wanted):
            found = wanted, torch.from_numpy(decode(path))
            self._kept[wanted.key] = found
        return found[1].clone()

    def __reduce__(self) -> tuple[Any, ...]:
        return PrivateCache, ()

    def __str__(self) -> str:
        return "memory"
