"""Accumulators that go from registers through the end of a kernel to a tensor, without a tile in memory between."""
from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tilelang as tile
from tilelang.backends.cpu import machine
from tilelang.ir import thread as th
from tilelang.ir.core import Op, Region

HOST = machine.host()
I32 = tile.i32


@tile.kernel
def plain(a: tile.Tensor[tile.i8, "M K"], b: tile.Tensor[tile.i8, "K N"], c: tile.Out[tile.i32, "M N"],
          BM: tile.Const = 16, BN: tile.Const = 40, BK: tile.Const = 8):
    m, n = tile.grid(tile.cdiv(a.shape[0], BM), tile.cdiv(b.shape[1], BN))
    acc = tile.zeros((BM, BN), I32)
    for k in tile.range(0, a.shape[1], BK):
        acc += tile.dot(tile.load(a, (m * BM, k), (BM, BK)), tile.load(b, (k, n * BN), (BK, BN)), dtype=I32)
    tile.store(c, (m * BM, n * BN), acc)


@tile.kernel
def with_bias(a: tile.Tensor[tile.i8, "M K"], b: tile.Tensor[tile.i8, "K N"], x: tile.Tensor[tile.i32, "N"],
              c: tile.Out[tile.i16, "M N"], BM: tile.Const = 16, BN: tile.Const = 40, BK: tile.Const = 8):
    """The end reads a tensor, computes and converts; the loop begins with ones."""
    m, n = tile.grid(tile.cdiv(a.shape[0], BM), tile.cdiv(b.shape[1], BN))
    acc = tile.full((BM, BN), 1, I32)
    for k in tile.range(0, a.shape[1], BK):
        acc += tile.dot(tile.load(a, (m * BM, k), (BM, BK)), tile.load(b, (k, n * BN), (BK, BN)), dtype=I32)
    tile.store(c, (m * BM, n * BN), tile.maximum(acc + tile.load(x, (n * BN,), (BN,)), 0).to(tile.i16))


@tile.kernel
def one_step(a: tile.Tensor[tile.i8, "M K"], b: tile.Tensor[tile.i8, "K N"], c: tile.Out[tile.i32, "M N"],
             BM: tile.Const = 16, BN: tile.Const = 40):
    """No loop at all."""
    m, n = tile.grid(tile.cdiv(a.shape[0], BM), tile.cdiv(b.shape[1], BN))
    x, y = tile.load(a, (m * BM, 0), (BM, 24)), tile.load(b, (0, n * BN), (24, BN))
    tile.store(c, (m * BM, n * BN), tile.dot(x, y, dtype=I32) * 3)


@tile.kernel
def running(a: tile.Tensor[tile.i8, "M K"], b: tile.Tensor[tile.i8, "K N"], c: tile.Out[tile.i32, "M N"],
            BM: tile.Const = 16, BN: tile.Const = 40, BK: tile.Const = 8):
    """Every iteration writes to the tensor that the end writes to."""
    m, n = tile.grid(tile.cdiv(a.shape[0], BM), tile.cdiv(b.shape[1], BN))
    acc = tile.zeros((BM, BN), I32)
    for k in tile.range(0, a.shape[1], BK):
        acc += tile.dot(tile.load(a, (m * BM, k), (BM, BK)), tile.load(b, (k, n * BN), (BK, BN)), dtype=I32)
        tile.store(c, (m * BM, n * BN), tile.full((BM, BN), 7, I32))
    tile.store(c, (m * BM, n * BN), acc)


@tile.kernel
def both(a: tile.Tensor[tile.i8, "M K"], b: tile.Tensor[tile.i8, "K N"], c: tile.Out[tile.i32, "M N"],
         d: tile.Out[tile.i32, "M"], BM: tile.Const = 16, BN: tile.Const = 40, BK: tile.Const = 8):
    """Two readers of the sums."""
    m = tile.grid(tile.cdiv(a.shape[0], BM))
    acc = tile.zeros((BM, BN), I32)
    for k in tile.range(0, a.shape[1], BK):
        acc += tile.dot(tile.load(a, (m * BM, k), (BM, BK)), tile.load(b, (k, 0), (BK, BN)), dtype=I32)
    tile.store(c, (m * BM, 0), acc)
    tile.store(d, (m * BM,), acc.sum(1))


KERNELS: dict[Any, Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, ...]]] = {
    plain: lambda a, b, x: (a @ b,),
    with_bias: lambda a, b, x: (np.maximum(a @ b + x + 1, 0),),
    one_step: lambda a, b, x: (3 * a[:, :24] @ b[:24],),
    running: lambda a, b, x: (a @ b,),
    both: lambda a, b, x: ((a @ b)[:, :40], (a @ b)[:, :40].sum(1)),
}
SHAPES = ((16, 40, 8), (48, 80, 24), (33, 81, 17), (16, 40, 0), (5, 7, 9), (32, 3, 64))


@pytest.mark.parametrize(("kernel", "stream"), [*((k, False) for k in KERNELS), (with_bias, True)])
def test_values(kernel: Any, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole blocks and blocks across every edge, loops that never run, outputs that are contiguous the other way."""
    if stream:
        monkeypatch.setattr(machine, "host", lambda: replace(HOST, cache_bytes=0))
    monkeypatch.setattr(kernel, "_compiled", {})
    for (m, n, k), order in itertools.product(SHAPES, "CF" if kernel is plain else "C"):
        rng = np.random.default_rng(m + n + k)
        a, b = rng.integers(-9, 9, (m, k), np.int8), rng.integers(-9, 9, (k, n), np.int8)
        x = rng.integers(-9, 9, n, np.int32)
        want = KERNELS[kernel](a.astype(np.int64), b.astype(np.int64), x)
        outs = [np.full(w.shape if w.ndim == 1 else (m, n), 5, np.int16 if kernel is with_bias else np.int32,
                        order) for w in want]  # type: ignore[call-overload]
        kernel(a, b, *([x] if kernel is with_bias else []), *outs)
        for out, w in zip(outs, want, strict=True):
            np.testing.assert_array_equal(out if w.ndim == 1 else out[:, :w.shape[1]], w)


def _stores(region: Region, depth: int = 0) -> Iterator[tuple[Op, int]]:
    """Stores without a mask, and how many loops are around them."""
    for op in region.ops:
        if isinstance(op, th.St) and len(op.operands) == 3:
            yield op, depth
        for inner in op.regions:
            yield from _stores(inner, depth + (op.name == "for"))


@pytest.mark.parametrize(("kernel", "taken"), [(plain, True), (one_step, True), (running, False), (both, False)])
def test_taken_where_the_block_is_complete(kernel: Any, taken: bool) -> None:
    """What is taken is stored from inside the loops over register blocks, and nowhere else without masks."""
    a, b = np.zeros((16, 24), np.int8), np.zeros((24, 40), np.int8)
    fn = kernel.lower(a, b, np.zeros((16, 40), np.int32), *([np.zeros(16, np.int32)] if kernel is both else [])).thread
    c = next(p for p in fn.params if p.name == "c")
    values = [s.operands[2] for s, _ in _stores(fn.body) if s.operands[0] is c]
    assert any(v.owner is not None and v.owner.name == "ld" for v in values) != taken
