"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["check_writable", "write_whole"]


@contextlib.contextmanager
def write_whole(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open ``path`` for binary writing; the file takes its place only when the block ends without an exception.

    Until then the bytes are in a hidden ``.part`` file beside it, which an exception removes; an older file at
    ``path`` stays as it was. Symbolic links are followed. What is no regular file (a pipe, ``/dev/null``) is written
    to directly.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.bin"
        >>> with write_whole(path) as file:
        ...     _ = file.write(b"all of it")
        >>> path.read_bytes()
        b'all of it'
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        with target.open("wb") as file:  # a folder raises IsADirectoryError here, which is the right sentence
            yield file
        return
    part = target.with_name(f".{os.urandom(16).hex()}.part")
    try:
        with part.open("xb") as file:
            yield file
        if target.exists():
            part.chmod(stat.S_IMODE(target.stat().st_mode))
        part.replace(target)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(part):
            raise type(error)(error.errno, error.strerror, str(path)) from None  # nobody asked for the .part
        raise


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise now the OSError that `write_whole` would raise after the work.

    Examples:
        >>> check_writable("no such folder/a.png")
        Traceback (most recent call last):
        FileNotFoundError: no such folder/a.png cannot be written: there is no folder no such folder
    """
    given, real = Path(path), Path(os.path.realpath(path))
    if not os.fspath(path) or real.is_dir():
        raise IsADirectoryError(f"{path} is a folder, expected a file to write")
    if not given.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {given.parent}")
    if not real.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: it leads to {real}, and there is no such folder")
    # The folder too: a regular file takes its place whole, which is a change of the folder.
    whole = not real.exists() or real.is_file()
    if (whole and not os.access(real.parent, os.W_OK)) or (real.exists() and not os.access(real, os.W_OK)):
        raise PermissionError(f"{path} cannot be written: permission denied")
