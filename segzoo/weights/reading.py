"""Weights files, read by what is in them and without running any of it: safetensors, or plain tensors in a pickle."""

from __future__ import annotations

import json
import os
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from segzoo._errors import some_of
from segzoo.weights.pickles import wanted_by
from segzoo.weights.tensors import read_tensors
from segzoo.weights.unwrap import Contents, unwrap

__all__ = ["SUFFIXES", "check_weights_file", "read_contents"]

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".onnx")

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_LFS = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<error")
_OTHERS = {  # how a file begins, and what it is then
    b"\x1f\x8b": "a gzip archive: unpack it, and give the checkpoint in it",
    b"BZh": "a bzip2 archive: unpack it, and give the checkpoint in it",
    b"\xfd7zXZ": "an xz archive: unpack it, and give the checkpoint in it",
    b"7z\xbc\xaf": "a 7z archive: unpack it, and give the checkpoint in it",
    b"Rar!": "a rar archive: unpack it, and give the checkpoint in it",
    b"\x89HDF": "an HDF5 file, as Keras writes: its weights are not read here",
    b"GGUF": "a GGUF file: its weights are not read here",
}
_TAR = "a tar archive: unpack it, and give the checkpoint in it"
_LONGEST_NAME = 200  # of a class or function
_HEAD = 512  # bytes; a tar names itself at 257
_LONGEST_HEADER = 100_000_000  # of a safetensors file, as its own reader has it


def read_contents(path: str | os.PathLike[str]) -> Contents:
    """The state dict in a file that is no ONNX file, in the keys of whoever saved it.

    What a file is, its first bytes say: safetensors under any name are read as such. A pickle is loaded with
    ``weights_only=True``, and not at all if it has safetensors' name, which promises that there is none.

    Args:
        path: A ``.safetensors``, ``.pth``, ``.pt``, ``.ckpt`` or ``.bin`` file.

    Raises:
        FileNotFoundError, IsADirectoryError: If there is no such file.
        ValueError: If it cannot be read: what it is in its place, or what its pickle would have called.
    """
    path = check_weights_file(path)
    head = _head(path)
    if _is_safetensors(head):
        return unwrap(_load_safetensors(path), str(path))
    if path.suffix.lower() == ".safetensors":
        if head.startswith((_ZIP, _PICKLE)):
            raise ValueError(
                f"{path} is a PyTorch file (a pickle) under the name of a safetensors file: name it .pth, "
                "and it is loaded as plain tensors"
            )
        raise ValueError(f"{path} is not a safetensors file that can be read: it has no header of one")
    if head.startswith(_ZIP):
        _check_zip(path)
    return unwrap(_load_pickle(path, head), str(path))


def check_weights_file(path: str | os.PathLike[str]) -> Path:
    """The path of a file that has a weights file's name and is nothing else that people download in its place.

    Raises:
        FileNotFoundError, IsADirectoryError: If there is no such file.
        ValueError: For a name that no weights file has, an empty file, a web page, a Git LFS pointer, an archive.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, expected a weights file ({', '.join(SUFFIXES)})")
    if not path.is_file():
        raise FileNotFoundError(f"there is no weights file {path}")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: a weights file ends in {', '.join(SUFFIXES)}")
    head = _head(path)
    if not head:
        raise ValueError(f"{path} is empty: copy or download it again")
    if head.startswith(_LFS):
        size = re.search(rb"\nsize (\d+)", head)
        stands_for = f" of {int(size[1]):,} bytes" if size else ""
        raise ValueError(
            f"{path} is a Git LFS pointer, not the file{stands_for}: fetch that with `git lfs pull`, "
            "or download it from its page"
        )
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGES):
        raise ValueError(
            f"{path} is a web page, not a checkpoint: its address gave a page (of an error, a log-in, a warning) "
            "in the file's place; download the file itself"
        )
    others = [what for start, what in _OTHERS.items() if head.startswith(start)]
    others += [_TAR] if head[257:262] == b"ustar" else []
    if others and not _is_safetensors(head):
        raise ValueError(f"{path} is {others[0]}")
    return path


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


def _is_safetensors(head: bytes) -> bool:
    """Whether a file begins with the length of a JSON object and its brace."""
    return len(head) > 8 and head[8:9] == b"{" and 2 <= struct.unpack("<Q", head[:8])[0] <= _LONGEST_HEADER


def _load_safetensors(path: Path) -> Any:
    try:
        return read_tensors(path)
    except ValueError as error:
        size, whole = path.stat().st_size, _whole_size(path)
        if size >= whole:
            raise
        raise ValueError(
            f"{path} is not a safetensors file that can be read: it is cut short, with {size:,} of {whole:,} bytes; "
            "copy or download it again"
        ) from error


def _whole_size(path: Path) -> int:
    """How many bytes a safetensors file must have by its header, as far as there is one."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = file.read(length)
    try:
        entries = json.loads(header) if len(header) == length else {}
        ends = [int(each["data_offsets"][1]) for name, each in entries.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        ends = []
    return 8 + int(length) + max(ends, default=0)


def _check_zip(path: Path) -> None:
    """Raise ValueError unless it is a zip with a pickle of tensors in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path} is a PyTorch file that is cut short or damaged ({error}): copy or download it again"
        ) from error
    last = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in last:
        raise ValueError(
            f"{path} is a TorchScript archive, a program with its weights: where you trust it, load it with "
            "torch.jit.load and save its state_dict()"
        )
    if "archive_format" in last or "serialized_exported_program.json" in last:
        raise ValueError(
            f"{path} is an exported program of torch.export: where you trust it, load it with torch.export.load and "
            "save its state_dict"
        )
    if "data.pkl" not in last:
        raise ValueError(f"{path} is a zip archive without a PyTorch checkpoint in it: it holds {some_of(names)}")


def _load_pickle(path: Path, head: bytes) -> Any:
    is_pickle, wanted = wanted_by(path)
    try:
        if any(len(name) > _LONGEST_NAME for name in wanted):
            raise ValueError("torch searches its own message of such a name for minutes")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the broken bytes lead to
        if wanted:
            wanted.sort(key=lambda name: name.startswith(("torch.", "numpy.")))  # what is least usual comes first
            reason = (
                f"it would have called {some_of(wanted, 8)}, which plain tensors do not need; nothing of it was run"
            )
        elif is_pickle:
            reason = f"it is damaged or of an unusual form ({type(error).__name__})"
        elif (text := _text(head)) is not None:
            reason = f"it is no PyTorch file but text that begins with {text!r}"
        else:
            reason = f"it is no PyTorch file ({type(error).__name__})"
        what_to_do = (
            "; save model.state_dict(), not the model or a training's state; where you trust the file, torch.load "
        )
        what_to_do += "it yourself with weights_only=False and save the state dict in it"
        raise ValueError(
            f"{path} cannot be loaded as plain tensors: {reason}{what_to_do if is_pickle else ''}"
        ) from error


def _text(head: bytes) -> str | None:
    """The first line, if it is text."""
    try:
        line = head.decode().strip().splitlines()[0]
    except (UnicodeDecodeError, IndexError):
        return None
    return line[:60] if line.isprintable() else None
