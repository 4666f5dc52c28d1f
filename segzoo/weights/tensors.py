"""Tensors from a safetensors file, in one piece of memory that is the process's own."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["read_metadata", "read_tensors"]

_LONGEST_HEADER = 100_000_000  # bytes, as safetensors has it
_ALIGNMENT = 64  # bytes, as torch allocates, so that kernels do the same with these tensors as with any
_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool},
    **{"C64": torch.complex64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
}


def read_tensors(source: str | os.PathLike[str] | BinaryIO) -> dict[str, Tensor]:
    """The tensors of a safetensors file, read as fast as the file itself.

    safetensors' own ``load_file`` maps the file: whoever changes it changes the model, and on Windows nobody can. Here
    every tensor is read to its place, in one aligned allocation of the process's own, which lives as long as any of
    them. Each has a storage of its own, as ``torch.save`` needs it.

    Args:
        source: The file's path, or the open file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is no whole safetensors file.

    Source: https://github.com/huggingface/safetensors, "Format".

    Examples:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> path = Path(tempfile.mkdtemp()) / "a.safetensors"
        >>> save_file({"a": torch.tensor([1.0, 2.0])}, path)
        >>> read_tensors(path)
        {'a': tensor([1., 2.])}
    """
    if isinstance(source, (str, os.PathLike)):
        with Path(source).open("rb") as file:
            return read_tensors(file)
    try:
        start, entries = _read_header(source)
        return _read(source, start, entries)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        name = getattr(source, "name", "it")
        raise ValueError(f"{name} is not a safetensors file that can be read ({_words(error)})") from error


class _Entry(NamedTuple):
    name: str
    dtype: torch.dtype
    shape: list[int]
    begin: int
    end: int


def _read_header(file: BinaryIO) -> tuple[int, list[_Entry]]:
    """Where the data begin, and each tensor's place in them; they lie without gaps, to the end of the file."""
    whole = file.seek(0, os.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if whole < 8 or length > min(whole - 8, _LONGEST_HEADER):
        raise ValueError("its header is longer than the file")
    header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    entries = []
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        entries.append(_Entry(name, _DTYPES[entry["dtype"]], entry["shape"], begin, end))
    at = 0
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        sizes = [at, entry.begin, entry.end, *entry.shape]
        if not all(type(size) is int and size >= 0 for size in sizes) or entry.begin != at:
            raise ValueError(f"{entry.name} has no place of its own in it")
        if entry.end - entry.begin != math.prod(entry.shape) * entry.dtype.itemsize:
            raise ValueError(f"{entry.name} has another shape than place")
        at = entry.end
    if 8 + length + at != whole:
        raise ValueError(f"it has {whole:,} bytes, its header tells of {8 + length + at:,}")
    return 8 + length, entries


def _read(file: BinaryIO, start: int, entries: list[_Entry]) -> dict[str, Tensor]:
    sizes = [entry.end - entry.begin for entry in entries]
    places = np.cumsum([0, *(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)]).tolist()
    memory = np.empty(places[-1] + _ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % _ALIGNMENT
    view = memoryview(memory)  # type: ignore[arg-type]
    tensors = {}
    for entry, size, place in zip(entries, sizes, places):
        at = first + place
        file.seek(start + entry.begin)
        if size and file.readinto(view[at : at + size]) != size:  # type: ignore[attr-defined]
            raise ValueError("it was cut short while it was read")
        count = math.prod(entry.shape)
        flat = torch.frombuffer(memory, dtype=entry.dtype, count=count, offset=at) if count else torch.empty(0)
        tensors[entry.name] = flat.to(entry.dtype).reshape(entry.shape)
    return tensors


def _words(error: Exception) -> str:
    return f"unknown {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """What a safetensors file says of itself beside its tensors; {} for any other file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):  # another kind of file
        return {}
