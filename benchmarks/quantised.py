"""Products with quantised weights, N = K = 4096, groups of 128: beside torch's int4 kernel, the floor of memory, and
by bits. `python -m benchmarks.quantised [part of a name]`.

Each side walks through copies of its weight that together are larger than the last-level cache, so every product reads
its weight from memory. The floor is the weight's bytes (with scales) at the speed of `read`, measured in the same run.
"""
from __future__ import annotations

import dataclasses
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import tilelang as tile
from benchmarks.timing import compare
from tilelang import ops
from tilelang.ops.mpgemm_pack import panels

SIZE, GROUP, AWAY = 4096, 128, 96 << 20


@tile.kernel
def read_kernel(x: tile.Tensor[tile.i32, "M N"], y: tile.Out[tile.i32, "M N4"], N: tile.Const = 4096):
    """Reads everything, writes next to nothing."""
    m = tile.grid(x.shape[0])
    tile.store(y, (m, 0), tile.load(x, (m, 0), (N,)).sum(0, keepdims=True))


@dataclasses.dataclass
class Row:
    """`nbytes` that one call reads; `goal` of theirs / ours."""

    name: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    nbytes: int
    goal: float


@functools.cache
def weights(name: str) -> tuple[Any, ...]:
    """Copies of a random weight, repacked."""
    first = tile.quantize(torch.randn(SIZE, SIZE), name, group=GROUP)
    count = AWAY // panels(first).nbytes + 1
    out = (first, *(dataclasses.replace(first) for _ in range(count - 1)))
    for w in out:
        panels(w)
    return out


def ours(name: str, m: int, x_dtype: str | None) -> Callable[[], Any]:
    x, turn = torch.randn(m, SIZE), itertools.cycle(weights(name))
    return lambda: ops.mpgemm(x, next(turn), x_dtype=x_dtype)


@functools.cache
def theirs(m: int) -> Callable[[], Any]:
    """torch's bf16 activations and int4 weights, as its own quantisation uses them on a CPU."""
    codes = torch.randint(0, 16, (SIZE, SIZE), dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    copies = itertools.cycle([packed.clone() for _ in range(AWAY // packed.nbytes + 1)])
    scales, x = torch.randn(SIZE // GROUP, SIZE, 2).bfloat16(), torch.randn(m, SIZE).bfloat16()
    return lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(x, next(copies), GROUP, scales)


def rows() -> Iterator[Row]:
    for m, goal in ((1, 3.0), (4, 2.0), (64, 2.0)):
        for x_dtype in (None, "i8"):
            yield Row(f"u4, M={m}, x {x_dtype or 'f32'} (beside torch's int4, bf16)", ours("u4", m, x_dtype),
                      theirs(m), panels(weights("u4")[0]).nbytes, goal)
    for x_dtype in (None, "i8"):
        for name in ("u8", "u6", "u3", "u2", "ternary", "u1", "f4e2m1", "f6e3m2"):
            if x_dtype is None or name[0] != "f":
                goal = {"u2": 1.6, "ternary": 1.6, "u3": 1.0, "u1": 1.6}.get(name, 0.0)
                yield Row(f"{name}, M=1, x {x_dtype or 'f32'} (beside our u4)", ours(name, 1, x_dtype),
                          ours("u4", 1, x_dtype), panels(weights(name)[0]).nbytes, goal)


def main(pattern: str = "") -> None:
    """Prints the table."""
    print("| case | threads | ours | beside | ratio | goal | floor / ours |\n|---|---|---|---|---|---|---|")
    big = np.ones((32768, 4096), np.int32)
    sums = np.empty((32768, 1), np.int32)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        tile.set_num_threads(threads)
        read, copy = compare(lambda: read_kernel(big, sums), lambda: big.sum())
        print(f"| read | {threads} | {read * 1e3:.2f} ms | {copy * 1e3:.2f} ms | - | | {big.nbytes / read / 1e9:.1f} "
              "GB/s |", flush=True)
        for row in rows():
            if pattern in row.name:
                mine, other = compare(row.ours, row.theirs)
                floor = row.nbytes / big.nbytes * read
                print(f"| {row.name} | {threads} | {mine * 1e3:.3f} ms | {other * 1e3:.3f} ms | {other / mine:.2f} | "
                      f"{row.goal or ''}{' below' if other / mine < row.goal else ''} | {floor / mine:.2f} |",
                      flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:2])
