"""State dicts as safetensors files: whole or not at all, and the same bytes for the same content."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from segzoo._files import check_writable, write_whole

__all__ = ["check_target", "standing_alone", "write_state_dict"]

_ALIGNMENT = 8  # bytes: where safetensors has its tensors begin


def write_state_dict(state: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str]) -> str:
    """Write a state dict as safetensors, whole or not at all.

    Args:
        state: Names to tensors, on any device, in any strides.
        path: Where to.
        metadata: Goes into the file's header, beside the format's own.

    Returns:
        The file's sha256, 64 hex digits: of the same content always the same.

    Examples:
        >>> import tempfile
        >>> path = f"{tempfile.mkdtemp()}/a.safetensors"
        >>> write_state_dict({"a": torch.zeros(2)}, path, {"from": "b"}) == write_state_dict(
        ...     {"a": torch.zeros(2)}, path, {"from": "b"}
        ... )
        True
    """
    from safetensors.torch import save

    content = memoryview(save(standing_alone(state), metadata={"format": "pt"}))
    length = int.from_bytes(content[:8], "little")
    header = json.loads(bytes(content[8 : 8 + length]))
    # safetensors itself writes several entries in an order that differs from run to run.
    header["__metadata__"] = dict(sorted({"format": "pt", **metadata}.items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    digest = hashlib.sha256()
    with write_whole(path) as file:
        for part in (len(text).to_bytes(8, "little"), text, content[8 + length :]):
            file.write(part)
            digest.update(part)
    return digest.hexdigest()


def check_target(out: str | os.PathLike[str], source: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """The path of a safetensors file that is to be made of another file, checked before the work.

    Args:
        out: The file that is to be written.
        source: The file that it is made of.
        overwrite: Whether a file at ``out`` is replaced.

    Raises:
        ValueError: If ``out`` does not end in ``.safetensors``, or is ``source``.
        FileExistsError: If it is there already and is not to be replaced.
        OSError: If it could not be written.

    Examples:
        >>> check_target("a.pth", "b.pth", overwrite=False)
        Traceback (most recent call last):
        ValueError: a.pth: what is written is a safetensors file and must end in .safetensors
    """
    target = Path(out)
    if target.suffix != ".safetensors":
        raise ValueError(f"{target}: what is written is a safetensors file and must end in .safetensors")
    if target.exists():
        if Path(source).exists() and target.samefile(source):
            raise ValueError(f"{target} is the file that is to be converted: name another for the result")
        if not overwrite and not target.is_dir():
            raise FileExistsError(f"{target} is there already: name another file, or replace it with overwrite=True")
    check_writable(target)
    return target


def standing_alone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each with values of its own: views and second names cannot be in a safetensors file."""
    seen: set[int] = set()
    alone = {}
    for key, value in state.items():
        value = value.detach().cpu()
        storage = value.untyped_storage()
        shared = storage.data_ptr() in seen or storage.nbytes() != value.numel() * value.element_size()
        seen.add(storage.data_ptr())
        alone[key] = value.clone(memory_format=torch.contiguous_format) if shared else value.contiguous()
    return alone
