"""Products with quantised weights, N = K = 4096, groups of 128: beside torch's int4 kernel, the floor of memory, and
by bits. `python -m benchmarks.quantised ["part of a name" ["numbers of threads"]]`.

Each side walks through copies of its weight that together are larger than the last-level cache, so every product reads
its weight from memory. Both take turns with `read`, a kernel that only reads memory: the floor is the weight's bytes
(with scales) at its speed. On one thread times are those of the calling thread's CPU clock, which does not count what
other processes take, on two they are those of the wall clock. Medians, and minima in brackets: beside other work on
the machine these say more.
"""
from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

import tilelang as tile
from tilelang import ops
from tilelang.ir.packed import Packed
from tilelang.ops.mpgemm.pack import panels

SIZE, GROUP, AWAY = 4096, 128, 96 << 20


@tile.kernel
def read_kernel(x: tile.Tensor[tile.i32, "M N"], y: tile.Out[tile.i32, "M N4"], N: tile.Const = 4096):
    """Reads everything, writes next to nothing."""
    m = tile.grid(x.shape[0])
    tile.store(y, (m, 0), tile.load(x, (m, 0), (N,)).sum(0, keepdims=True))


def turns(clock: Callable[[], float], *fns: Callable[[], Any], seconds: float = 0.8) -> list[list[float]]:
    """[medians, minima] of the seconds of a call of each; they take turns of five calls, the first is left out."""
    times: list[list[float]] = [[] for _ in fns]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 12:
        for fn, out in zip(fns, times, strict=True):
            fn()
            for _ in range(4):
                start = clock()
                fn()
                out.append(clock() - start)
    return [[statistics.median(t) for t in times], [min(t) for t in times]]


@dataclasses.dataclass
class Row:
    """What makes the calls of both sides; the type of our weight; `goal` of theirs / ours."""

    name: str
    ours: Callable[[], Callable[[], Any]]
    theirs: Callable[[], Callable[[], Any]]
    weight: str
    goal: float


@functools.cache
def weights(name: str) -> tuple[Any, ...]:
    """Copies of a random weight in memory of their own: of the same memory products share what is repacked."""
    first = tile.quantize(torch.randn(SIZE, SIZE), name, group=GROUP)
    count = AWAY // panels(first).nbytes + 1
    return first, *(first.map(lambda leaf: Packed(leaf.buffer.clone(), leaf.dtype, leaf.shape) if isinstance(
        leaf, Packed) else leaf.clone()) for _ in range(count - 1))


def ours(name: str, m: int, of: str, how: str | None = None) -> Callable[[], Any]:
    """`of`: what x is, f32 or bf16, or f32 quantised to on the way in."""
    x, turn = torch.randn(m, SIZE), itertools.cycle(weights(name))
    x_dtype = None if of in ("f32", "bf16") else of
    if of == "bf16":
        x = x.bfloat16()
    for w in weights(name):
        ops.mpgemm(x, w, x_dtype=x_dtype, decomposition=how)  # repacks
    return lambda: ops.mpgemm(x, next(turn), x_dtype=x_dtype, decomposition=how)


@functools.cache
def theirs(m: int) -> Callable[[], Any]:
    """torch's bf16 activations and int4 weights, as its own quantisation uses them on a CPU."""
    codes = torch.randint(0, 16, (SIZE, SIZE), dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    copies = itertools.cycle([packed.clone() for _ in range(AWAY // packed.nbytes + 1)])
    scales, x = torch.randn(SIZE // GROUP, SIZE, 2).bfloat16(), torch.randn(m, SIZE).bfloat16()
    return lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(x, next(copies), GROUP, scales)


def rows() -> Iterator[Row]:
    for m, goal in ((1, 3.0), (4, 2.0), (16, 2.0), (64, 2.0), (256, 2.0)):
        for of in ("bf16", "f32", "i8"):
            yield Row(f"u4, M={m}, x {of} (beside torch's int4, bf16)", partial(ours, "u4", m, of), partial(theirs, m),
                      "u4", goal)
    for name in ("u8", "u6", "u4", "u3", "u2", "ternary", "u1"):
        goal = 1.6 if name in ("u2", "ternary", "u1") else 0.0
        yield Row(f"{name}, M=1, tables of bytes (beside our u4, x i8)", partial(ours, name, 1, "f32", "lut_act_i8"),
                  partial(ours, "u4", 1, "i8"), name, goal)
    for of in ("bf16", "f32", "i8"):
        for name in ("u8", "u7", "u6", "u5", "u3", "u2", "ternary", "u1", "f4e2m1", "f6e3m2", "f8e4m3"):
            if of != "i8" or name[0] != "f":
                goal = {"u2": 1.6, "ternary": 1.6, "u3": 1.0, "u1": 1.6}.get(name, 0.0)
                yield Row(f"{name}, M=1, x {of} (beside our u4)", partial(ours, name, 1, of),
                          partial(ours, "u4", 1, of), name, goal)


def main(pattern: str = "", threads: str = "1 2") -> None:
    """Prints the table."""
    print("| case | threads | ours | beside | ratio | goal | floor / ours |\n|---|---|---|---|---|---|---|")
    big, sums, turn = np.ones((16384, 4096), np.int32), np.empty((16384, 1), np.int32), itertools.cycle(range(16))
    for count in map(int, threads.split()):
        clock = time.thread_time if count == 1 else time.perf_counter
        torch.set_num_threads(count)
        tile.set_num_threads(count)

        def read() -> None:
            i = next(turn) * 1024
            read_kernel(big[i:i + 1024], sums[i:i + 1024])
        for row in rows():
            if pattern in row.name:
                middle, least = turns(clock, row.ours(), row.theirs(), read)
                part = panels(weights(row.weight)[0]).nbytes / (big.nbytes / 16)
                cells = [(f"{mine * 1e3:.3f}", f"{other * 1e3:.3f}", f"{other / mine:.2f}",
                          f"{floor * part / mine:.2f}") for mine, other, floor in (middle, least)]
                mine_, other_, ratio, share = (f"{a} ({b})" for a, b in zip(*cells, strict=True))
                print(f"| {row.name} | {count} | {mine_} ms | {other_} ms | {ratio} | {row.goal or ''} | {share} |",
                      flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:3])
