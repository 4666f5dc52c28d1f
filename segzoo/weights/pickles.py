"""What a pickle would call, read from its opcodes. Nothing is executed, imported or built."""

from __future__ import annotations

import os
import pickletools
import zipfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import torch

from segzoo._errors import shown

__all__ = ["wanted_by"]

# How a pickle names what has another name in the programs that made it.
_MODULES = {"posix": "os", "nt": "os", "__builtin__": "builtins", "cPickle": "pickle"}
_STRINGS = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"}
_NOTHING_PUSHED = {"PROTO", "FRAME", "MARK"}
# Of what torch itself allows, enough not to name it beside what it does not: this decides a message, no more.
_PLAIN = {
    "collections.OrderedDict",
    "collections.Counter",
    "torch.nn.parameter.Parameter",
    "torch.serialization._get_layout",
    "torch._tensor._rebuild_from_type_v2",
    "torch.storage.UntypedStorage",
    "torch.storage.TypedStorage",
    "torch.Size",
    "torch.Tensor",
    "torch.device",
    "_codecs.encode",
    "builtins.bytearray",
    "builtins.set",
    "builtins.complex",
}
_MOST_PICKLES = 5  # that a file of torch before 1.6 begins with


def wanted_by(path: str | os.PathLike[str]) -> tuple[bool, list[str]]:
    """Whether a file is a pickle, bare or in a zip, and which classes and functions it would have called.

    Those of a plain state dict (tensors, their storages and dtypes) and those allowed by
    ``torch.serialization.add_safe_globals`` are left out.

    Args:
        path: A ``.pth`` file of any age, or a pickle.

    Examples:
        >>> import pickle, tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.pkl"
        >>> _ = path.write_bytes(pickle.dumps({"open": open, "weight": torch.zeros(1)}))
        >>> wanted_by(path)[1][0]
        'io.open'
    """
    found: dict[str, None] = {}
    whole = False
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if name.endswith("data.pkl"):
                        with archive.open(name) as file:
                            whole |= _scan(file, found)
        else:
            with Path(path).open("rb") as file:
                pickles = 0
                while pickles < _MOST_PICKLES and _scan(file, found):
                    pickles, whole = pickles + 1, True
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        pass  # damaged beyond reading: what was seen until there is what there is to say
    allowed = {_name(each) for each in torch.serialization.get_safe_globals()}
    return whole or bool(found), [name for name in found if name not in allowed and not _is_plain(name)]


def _scan(file: IO[bytes], found: dict[str, None]) -> bool:
    """Add the names in the next pickle of the file; whether it was whole."""
    try:
        for name in _names(file):
            found[name] = None
    except (ValueError, IndexError, KeyError, EOFError, UnicodeDecodeError, OverflowError, MemoryError):
        return False
    return True


def _names(file: IO[bytes]) -> Iterator[str]:
    pushed: deque[str | None] = deque([None, None], maxlen=2)  # the strings that a STACK_GLOBAL takes, if they are
    memo: dict[int, str | None] = {}
    for opcode, argument, _ in pickletools.genops(file):
        kind = opcode.name
        if kind in ("GLOBAL", "INST"):
            module, _, name = str(argument).partition(" ")
            yield _joined(module, name)
            pushed.append(None)
        elif kind == "STACK_GLOBAL":
            yield _joined(*pushed)
            pushed.append(None)
        elif kind.startswith("EXT"):
            yield f"extension {argument} of copyreg"
            pushed.append(None)
        elif kind == "MEMOIZE":
            memo[len(memo)] = pushed[-1]
        elif "PUT" in kind:
            memo[int(argument or 0)] = pushed[-1]
        elif kind in ("GET", "BINGET", "LONG_BINGET"):
            pushed.append(memo.get(int(argument or 0)))
        elif kind not in _NOTHING_PUSHED:
            pushed.append(str(argument) if kind in _STRINGS else None)


def _joined(module: str | None, name: str | None) -> str:
    if module is None or name is None:
        return "a name that it makes up while it is loaded"
    return shown(f"{_MODULES.get(module, module)}.{name}")


def _name(allowed: object) -> str:
    """Of what ``add_safe_globals`` took: a class or function, or a pair of one and its name."""
    if isinstance(allowed, tuple):
        return str(allowed[1])
    return f"{getattr(allowed, '__module__', '')}.{getattr(allowed, '__qualname__', '')}"


def _is_plain(name: str) -> bool:
    if name in _PLAIN or name.startswith("torch._utils._rebuild_"):
        return True
    module, _, last = name.rpartition(".")
    if module not in ("torch", "torch.cuda", "torch.sparse"):
        return False
    return last.endswith(("Storage", "Tensor")) or isinstance(vars(torch).get(last), (torch.dtype, torch.qscheme))
