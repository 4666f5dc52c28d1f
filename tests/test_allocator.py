"""Freed memory that is kept: fewer page faults, and as before when it is switched off."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from segzoo import _allocator

FAULTS = """
import resource
import numpy as np
from segzoo._allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.ones(50_000_000, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plain = faults()
done = keep_freed_memory()
faults()
kept = faults()
keep_freed_memory(False)
print(done, plain, kept, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's malloc that is told")
def test_freed_memory_is_kept_and_given_back() -> None:
    out = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True).stdout.split()
    plain, kept, after = map(int, out[1:])
    assert out[0] == "True"
    assert kept < plain / 10  # 50 MB a time are 12,000 pages of 4 KiB, or 24 huge ones
    assert after > 5 * kept


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(_allocator.ctypes, "CDLL", lambda name: pytest.fail("asked for malloc"))
    assert not _allocator.keep_freed_memory()
