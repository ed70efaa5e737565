"""Medians of runs by turns, so that both sides see the same machine."""
from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

PAUSE = 0.02
"""Seconds between turns: thread pools spin for a while after their last loop and would steal the other side's core."""


def turns(*fns: Callable[[], Any], seconds: float = 1.0, clock: Callable[[], float] = time.perf_counter
          ) -> list[list[float]]:
    """Seconds by `clock` of calls of each; they take turns of six calls for about `seconds` in all, the first of which
    does not count, or of one where that takes a second."""
    times: list[list[float]] = [[] for _ in fns]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times)) < 3:
        for fn, out in zip(fns, times, strict=True):
            time.sleep(PAUSE)
            taken = [_timed(fn, clock)]
            if taken[0] < 1:
                taken = [_timed(fn, clock) for _ in range(5)]
            out += taken
    return times


def _timed(fn: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    fn()
    return clock() - start


def compare(ours: Callable[[], Any], theirs: Callable[[], Any], seconds: float = 1.0) -> tuple[float, float]:
    """Median seconds of one call of each, by turns."""
    mine, others = turns(ours, theirs, seconds=seconds)
    return statistics.median(mine), statistics.median(others)
