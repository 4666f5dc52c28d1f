"""Memory that is freed and asked for again at each step, kept instead of given back: glibc's malloc on the CPU."""

from __future__ import annotations

import ctypes
import platform

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of malloc.h
_KEEP = {_MMAP_THRESHOLD: 1 << 30, _TRIM_THRESHOLD: (1 << 31) - 1, _TOP_PAD: 64 << 20}
_DEFAULT = 128 << 10  # of all three


def keep_freed_memory(enable: bool = True) -> bool:
    """Let the whole process keep what it frees, up to 2 GiB, so that the system need not clear it page by page again.

    A training step allocates the same large tensors each time; a tenth of its time on the CPU can go into their pages.
    It is for programs that own their process, not for libraries.

    Args:
        enable: False: as it is by default, but for malloc's own adaptation to what was freed.

    Returns:
        Whether it could be done: on Linux with glibc.

    Source: mallopt(3).

    Examples:
        >>> kept = keep_freed_memory()
        >>> _ = keep_freed_memory(False)
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    results = [libc.mallopt(option, value if enable else _DEFAULT) for option, value in _KEEP.items()]
    if not enable:
        libc.malloc_trim(0)
    return all(result == 1 for result in results)
