"""What a class's own methods do, as a value that changes with their code: part of a cache's keys."""

from __future__ import annotations

import hashlib
import inspect
from types import CodeType, FunctionType
from typing import Any

__all__ = ["code_of"]


def code_of(kind: type, package: str) -> str:
    """A sum of the methods that a class and its parents define, without those of ``package``; "": there are none.

    What these call outside the class, and what they close over, is not in it; nor are methods such as ``__init__``.

    Examples:
        >>> class Mine:
        ...     def read_mask(self, path):
        ...         return path
        >>> len(code_of(Mine, "torch")), code_of(Mine, "segzoo")  # which this example is of
        (16, '')
    """
    found = []
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] not in (package, "builtins", "typing", "torch"):
            methods = ((name, _function(value)) for name, value in sorted(vars(base).items()) if name[:2] != "__")
            found += [(base.__qualname__, name, _content(method.__code__)) for name, method in methods if method]
    return hashlib.blake2b(repr(found).encode(), digest_size=8).hexdigest() if found else ""


def _function(value: Any) -> FunctionType | None:
    """The function under a method of any kind, without its decorators."""
    value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    value = inspect.unwrap(value) if callable(value) else value
    return value if isinstance(value, FunctionType) else None


def _content(code: CodeType) -> tuple[Any, ...]:
    """Instructions, names and constants: without the lines that they stand on."""
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, _plain(code.co_consts)


def _plain(constant: Any) -> Any:
    """As a value whose ``repr`` is the same in each process: code has an address, and sets have no order."""
    if isinstance(constant, CodeType):
        return _content(constant)
    if isinstance(constant, tuple):
        return tuple(map(_plain, constant))
    if isinstance(constant, frozenset):
        return "set", sorted(repr(_plain(value)) for value in constant)
    return constant
