"""Timing: what `bench` gives, and how often it calls."""
from __future__ import annotations

import time

import pytest
import torch

import tilelang as tile
from tilelang import errors


def pause() -> None:
    time.sleep(0.002)


def test_what_is_given() -> None:
    times = tile.bench(pause, 2, 20, return_mode="all")
    assert 1 <= len(times) <= 10 and all(2.0 <= t for t in times)
    assert tile.bench(pause, 0, 4, quantiles=[0.5]) >= 2.0
    low, high = tile.bench(pause, 0, 10, quantiles=[0.0, 1.0])
    assert low <= high
    for mode in ("min", "max", "mean", "median"):
        assert tile.bench(pause, 0, 4, return_mode=mode) >= 2.0


def test_a_result_is_not_a_function() -> None:
    with pytest.raises(TypeError, match="bench needs a function to call, such as lambda: kernel"):
        tile.bench(pause())  # type: ignore[arg-type, func-returns-value]


def test_sides_take_turns() -> None:
    order: list[str] = []
    ours, theirs, ratio = tile.bench(lambda: (order.append("a"), pause()), 0, 20,
                                     against=lambda: (order.append("b"), pause(), pause()))
    assert order == ["a", "b"] * (len(order) // 2) and theirs >= 4.0 and ours >= 2.0 and 1.0 < ratio < 20.0


def test_gradients_are_dropped_and_caches_emptied() -> None:
    x = torch.ones(2, requires_grad=True)
    seen = []
    tile.bench(lambda: (seen.append(x.grad), x.sum().backward()), 0, 0, grad_to_none=[x], cold=True)
    assert seen == [None] * len(seen) and len(seen) >= 5


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="return_mode must be one of min, max, mean, median, all, got 'best'"):
        tile.bench(pause, return_mode="best")
    with pytest.raises(ValueError, match="mode must be one of auto, wall, event, graph, got 'clock'"):
        tile.bench(pause, mode="clock")
    if not torch.cuda.is_available():
        with pytest.raises(errors.TargetError, match="no GPU to time"):
            tile.bench(pause, mode="event")
