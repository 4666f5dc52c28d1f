"""Memory that is not given back to the system between two predictions."""

from __future__ import annotations

import ctypes
import platform

__all__ = ["tune_allocator"]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # of malloc.h
_KEPT = 1 << 30
_AT_ONCE = 1 << 26


def tune_allocator() -> bool:
    """Let glibc's malloc keep what is freed, and take memory from the system in large pieces; for the whole process.

    By default it maps each large block afresh, and the kernel fills every page of it with zeros when it is first
    touched: of a forward pass on a CPU that is up to a quarter. Afterwards the process keeps its largest size.

    Returns:
        Whether this is a system where that can be asked for: Linux with glibc. Elsewhere nothing happens.

    Source: mallopt(3).
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_MMAP_THRESHOLD, _KEPT), (_M_TRIM_THRESHOLD, _KEPT), (_M_TOP_PAD, _AT_ONCE))
    done = [mallopt(option, value) == 1 for option, value in settings]  # all of them, whatever one says
    return all(done)
