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
    """Seconds by `clock` of calls of each; they take turns of up to five calls for about `seconds` in all."""
    times: list[list[float]] = [[] for _ in fns]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 10:
        for fn, out in zip(fns, times, strict=True):
            time.sleep(PAUSE)
            fn()
            for _ in range(5):
                start = clock()
                fn()
                out.append(clock() - start)
    return times


def compare(ours: Callable[[], Any], theirs: Callable[[], Any], seconds: float = 1.0) -> tuple[float, float]:
    """Median seconds of one call of each, by turns."""
    mine, others = turns(ours, theirs, seconds=seconds)
    return statistics.median(mine), statistics.median(others)
