"""How much memory this machine, or the container around this process, has and has left."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["address_space_left", "memory_left", "memory_size"]

_PROC, _GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_ENDLESS = 1 << 62
# A control group's files: its limit, what it uses, and, in its statistics, what of that are files that can go.
_SECOND = "memory.max", "memory.current", ("active_file", "inactive_file")
_FIRST = "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")


def memory_size() -> int:
    """Bytes of memory, or of the smallest of the limits of the groups that this process is in."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    return min([*sizes, *(limit for _, _, limit in _limits())])


def memory_left() -> int:
    """Bytes that the machine, and each of the groups, can still give; those that cached files take count as free."""
    left = [_ENDLESS]
    with contextlib.suppress(OSError, KeyError, ValueError):  # elsewhere than on Linux
        left.append(1024 * _numbers(_PROC / "meminfo")["MemAvailable:"])
    for group, (_, used, files), limit in _limits():
        with contextlib.suppress(OSError, ValueError):
            known = _numbers(group / "memory.stat")
            left.append(limit - int((group / used).read_text()) + sum(known.get(name, 0) for name in files))
    return max(0, min(left))


def address_space_left() -> int:
    """Bytes that this process may still map, as ``ulimit -v`` has it."""
    import resource  # not on Windows

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return _ENDLESS
    used = 0
    with contextlib.suppress(OSError):
        used = int((_PROC / "self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return max(0, limit - used)


def _limits() -> Iterator[tuple[Path, tuple[str, str, tuple[str, str]], int]]:
    """Each control group with a limit that this process is in, from its own outwards: folder, files, bytes."""
    places = {_GROUPS: _SECOND, _GROUPS / "memory": _FIRST}
    with contextlib.suppress(OSError):
        for line in (_PROC / "self/cgroup").read_text().splitlines():
            number, kinds, path = line.split(":", 2)
            if number == "0" or "memory" in kinds.split(","):
                top, files = (_GROUPS, _SECOND) if number == "0" else (_GROUPS / "memory", _FIRST)
                inside = top / path.lstrip("/")
                places.update((place, files) for place in (inside, *inside.parents) if place.is_relative_to(top))
    for place, files in places.items():
        with contextlib.suppress(OSError, ValueError):  # "max": none
            yield place, files, int((place / files[0]).read_text())


def _numbers(path: Path) -> dict[str, int]:
    """The first number of each line, by the word before it."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}
