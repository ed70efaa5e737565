"""Timing a call: as `triton.testing.do_bench` does, and beside a peer by turns."""
from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

_COLD_BYTES = 256 << 20
"""More than any cache holds."""
_REDUCE: dict[str, Callable[[Sequence[float]], Any]] = {
    "min": min, "max": max, "mean": statistics.fmean, "median": statistics.median, "all": list}


class Comparison(NamedTuple):
    """Milliseconds of both sides, and the median over pairs of runs of theirs / ours: above 1 we are faster."""

    ours: float
    theirs: float
    ratio: float


def bench(fn: Callable[[], Any], warmup: float = 25, rep: float = 100, grad_to_none: Iterable[Any] | None = None,
          quantiles: Sequence[float] | None = None, return_mode: str = "mean", *, mode: str = "auto",
          cold: bool | None = None, against: Callable[[], Any] | None = None) -> Any:
    """Milliseconds of one call of `fn`, from calls for about `warmup` and then `rep` milliseconds.

    `return_mode` is "min", "max", "mean", "median" or "all" (every time, a list); `quantiles` instead gives a list of
    those (one number for one quantile). Gradients of `grad_to_none` are dropped before each call. With `against` the
    two take turns, and the result is a `Comparison` of medians.

    `mode` is "wall" (the host's clock around a call and what it left running), "event" (the GPU's own clock),
    "graph" (the GPU's clock around replays of a CUDA graph of the call: no launch from Python is in it) or "auto",
    which is "event" where torch has a GPU in use, else "wall". `cold` overwrites the caches before each call: the
    default on GPUs, as in Triton. Raises ValueError for an unknown mode, TypeError for what is no function,
    TargetError for a GPU's mode where there is none.
    """
    if return_mode not in _REDUCE:
        raise ValueError(f"return_mode must be one of {', '.join(_REDUCE)}, got {return_mode!r}")
    functions = (fn,) if against is None else (fn, against)
    for side in functions:
        if not callable(side):
            raise TypeError(f"bench needs a function to call, such as lambda: kernel(x, y), got {type(side).__name__}")
    timer = clock(mode)
    flush = timer.flush if (timer.on_gpu if cold is None else cold) else None
    sides = [timer.prepared(f) for f in functions]
    grads = list(grad_to_none or ())

    def once(side: Callable[[], Any]) -> float:
        for x in grads:
            x.grad = None
        if flush is not None:
            flush()
        return timer.milliseconds(side)

    for side in sides:
        once(side)
    each = max(min(sum(once(side) for side in sides) for _ in range(3)), 1e-4)
    for _ in range(int(warmup / each)):
        for side in sides:
            once(side)
    times = [[once(side) for side in sides] for _ in range(max(1, int(rep / each)))]
    ours = [t[0] for t in times]
    if against is not None:
        theirs = [t[1] for t in times]
        return Comparison(statistics.median(ours), statistics.median(theirs),
                          statistics.median(b / a for a, b in zip(ours, theirs, strict=True)))
    if quantiles is not None:
        found = [float(q) for q in np.quantile(ours, list(quantiles))]
        return found[0] if len(found) == 1 else found
    return _REDUCE[return_mode](ours)


def clock(mode: str = "auto") -> _Wall:
    """What takes the time of calls, for a `mode` of `bench`. Raises ValueError and TargetError."""
    torch = sys.modules.get("torch")
    if mode == "auto":
        mode = "event" if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized() else "wall"
    clocks = {"wall": _Wall, "event": _Event, "graph": _Graph}
    if mode not in clocks:
        raise ValueError(f"mode must be one of auto, {', '.join(clocks)}, got {mode!r}")
    return clocks[mode]()


class _Wall:
    """The host's clock."""

    on_gpu = False

    def __init__(self) -> None:
        torch = sys.modules.get("torch")
        self._wait = torch.cuda.synchronize if torch is not None and torch.cuda.is_initialized() else None
        self._memory: Any = None

    def prepared(self, fn: Callable[[], Any]) -> Callable[[], Any]:
        return fn

    def flush(self) -> None:
        if self._memory is None:
            self._memory = np.ones(_COLD_BYTES // 8)
        self._memory += 1.0

    def milliseconds(self, fn: Callable[[], Any]) -> float:
        if self._wait is not None:
            self._wait()
        start = time.perf_counter()
        fn()
        if self._wait is not None:
            self._wait()
        return (time.perf_counter() - start) * 1e3


class _Event(_Wall):
    """The clock of torch's current GPU."""

    on_gpu = True

    def __init__(self) -> None:
        from tilelang.errors import TargetError
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_available():
            raise TargetError("there is no GPU to time", needs="torch with a GPU", got="none",
                              try_='mode="wall"')
        self._cuda, self._memory = torch.cuda, None
        self._zeros = torch.zeros

    def flush(self) -> None:
        if self._memory is None:
            self._memory = self._zeros(_COLD_BYTES // 4, device="cuda")
        self._memory.zero_()

    def milliseconds(self, fn: Callable[[], Any]) -> float:
        start, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        fn()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))


class _Graph(_Event):
    """The same around a captured graph."""

    def prepared(self, fn: Callable[[], Any]) -> Callable[[], Any]:
        side = self._cuda.Stream()
        side.wait_stream(self._cuda.current_stream())
        with self._cuda.stream(side):
            fn()  # what the first call compiles and allocates cannot be captured
        self._cuda.current_stream().wait_stream(side)
        graph = self._cuda.CUDAGraph()
        with self._cuda.graph(graph):
            fn()
        return graph.replay  # type: ignore[no-any-return]
