"""Timing that is fair to both sides: candidates in turn, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable


def interleaved(candidates: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each candidate, one after the other, over and over; the first two rounds are not counted."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for i in range(repeats + 2):
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            if i >= 2:
                times[name].append(time.perf_counter() - started)
    return times
