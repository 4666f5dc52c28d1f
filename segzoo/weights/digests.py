"""Whether a file is the one that was published: its digests, computed once for as long as it stays as it is."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import BinaryIO

import torch

from segzoo._files import write_whole
from segzoo.weights.record import Source

__all__ = ["WrongFile", "cache_folder", "check_file", "check_open", "check_source", "sha256_of"]

_SMALL = 16 << 20  # bytes, of files that are read so soon that nothing needs to be remembered of them
_SETTLED = 2.0  # seconds after a change in which a second change could leave the file's times as they are


class WrongFile(ValueError):
    """A file that is not the published one: damaged, cut short, or another."""


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where converted checkpoints are kept: ``segzoo`` in ``cache_dir``, or in torch's hub folder (``TORCH_HOME``)."""
    return Path(torch.hub.get_dir() if cache_dir is None else cache_dir).expanduser() / "segzoo"


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file: 64 hex digits."""
    with Path(path).open("rb") as file:
        return _digest(file, "sha256")


def _digest(file: BinaryIO, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    file.seek(0)
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def check_source(path: str | os.PathLike[str], source: Source) -> str:
    """Raise unless a downloaded file is its source's, by whatever its publisher tells of it; its sha256.

    Args:
        path: The file.
        source: Where it came from.

    Raises:
        WrongFile: If its sha256 or md5 is another; it says both, and the path.
    """
    path = Path(path)
    sha256 = sha256_of(path)
    if source.sha256 is not None and not sha256.startswith(source.sha256):
        size = path.stat().st_size
        of = "" if source.size in (None, size) else f" ({size:,} bytes of {source.size:,})"
        raise WrongFile(f"{path} has sha256 {sha256}{of}, expected {source.sha256}")
    if source.md5 is not None:
        with path.open("rb") as file:
            md5 = _digest(file, "md5")
        if md5 != source.md5:
            raise WrongFile(f"{path} has md5 {md5}, expected {source.md5}")
    return sha256


def check_file(path: str | os.PathLike[str], sha256: str, cache_dir: str | os.PathLike[str] | None = None) -> None:
    """Raise unless the file at a path has this sha256: see ``check_open``.

    Raises:
        WrongFile: If it has another; it says both, and the path.
    """
    with Path(path).open("rb") as file:
        check_open(file, sha256, cache_dir)


def check_open(file: BinaryIO, sha256: str, cache_dir: str | os.PathLike[str] | None = None) -> None:
    """Raise unless an open file has this sha256, which of a large one is computed on its first use only.

    That it was checked is remembered beside the cached checkpoints, with the file's size, place on the disk and times
    to the nanosecond; any change of them has it checked again.

    Args:
        file: The file, so that what is checked is what is read afterwards, whatever takes its place meanwhile.
        sha256: 64 hex digits.
        cache_dir: Where that is remembered: as of ``cache_folder``.

    Raises:
        WrongFile: If it has another; it says both, and the path.
    """
    before = _identity(file)
    path = os.path.realpath(file.name)
    note = cache_folder(cache_dir) / "checked" / hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    status = os.fstat(file.fileno())
    if status.st_size > _SMALL and _read(note) == f"{sha256} {before}":
        return
    found = _digest(file, "sha256")
    if found != sha256:
        raise WrongFile(f"{file.name} has sha256 {found}, expected {sha256}")
    settled = time.time() - status.st_ctime > _SETTLED
    if status.st_size > _SMALL and settled and _identity(file) == before:
        _write(note, f"{sha256} {before}")


def _identity(file: BinaryIO) -> str:
    status = os.fstat(file.fileno())
    return " ".join(
        str(x) for x in (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    )


def _read(note: Path) -> str:
    try:
        return note.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _write(note: Path, text: str) -> None:
    """Best effort: where nothing can be remembered, the file is checked each time."""
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(note) as file:
            file.write(text.encode())
    except OSError:
        pass
