"""Timing that is fair to both sides: candidates in turn, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable


def interleaved(candidates: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each candidate, one after the other, over and over; the first two rounds are not counted.

    Every second round goes through them backwards, so that none always comes after the same other one.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    order = list(candidates.items())
    for i in range(repeats + 2):
        for name, run in order if i % 2 else reversed(order):
            started = time.perf_counter()
            run()
            if i >= 2:
                times[name].append(time.perf_counter() - started)
    return times
