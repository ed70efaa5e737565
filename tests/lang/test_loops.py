"""Loops whose last index plus their step is no number of its type."""
from __future__ import annotations

import numpy as np
import pytest

import tilelang as tile

LAST = 2 ** 31 - 1


@tile.kernel
def count(start: tile.i32, n: tile.i32, by: tile.i32, y: tile.InOut[tile.i32, "N"]):
    """How often loops run, and the exclusive or of their indices."""
    seen, rounds, bytes_, long = (tile.full((), 0, dt) for dt in (tile.i32, tile.i32, tile.i32, tile.i64))
    for i in tile.range(0, LAST, 1 << 30):
        seen ^= i
        rounds += 1
    for i in tile.range(start, n, 1 << 16):
        seen ^= i
        rounds += 1
    for i in tile.range(start, n, by):
        seen ^= i
        rounds += 1
    for b in tile.range(tile.full((), 0, tile.u8), tile.full((), 255, tile.u8), 100):
        bytes_ += b.to(tile.i32)
    for j in tile.range(0, 2 ** 63 - 1, 1 << 62):
        long += j >> 60
    for at, v in enumerate((seen, rounds, bytes_, long.to(tile.i32))):
        tile.store(y, at, v)


@pytest.mark.parametrize("target", ["cpu", "emulate:cuda:sm_80", "emulate:hip:gfx942"])
@pytest.mark.parametrize(("start", "n", "by"), [
    (LAST - (1 << 20), LAST, 1 << 30), (5 - (1 << 31), LAST, (1 << 30) + 3), (7, -9, 1 << 30)])
def test_a_loop_ends_before_its_index_wraps(target: str, start: int, n: int, by: int) -> None:
    """i + step wrapped below n, and the loop ran for ever; in C++ that is undefined, besides."""
    want, got = np.zeros((2, 4), np.int32)
    count.reference(start, n, by, want)
    with tile.target(target):
        count(start, n, by, got)
    assert want.tolist() == got.tolist()
    assert want[2] == 300


@tile.kernel
def products(a: tile.Tensor[tile.f16, "M K"], b: tile.Tensor[tile.f16, "K N"], lo: tile.i32, hi: tile.i32,
             c: tile.Out[tile.f32, "M N"]):
    acc = tile.zeros((64, 64), tile.f32)
    for k in tile.range(lo, hi, 64, stages=3, schedule="plain"):
        acc += tile.dot(tile.load(a, (0, k), (64, 64)), tile.load(b, (k, 0), (64, 64))) + 1
    tile.store(c, (0, 0), acc)


@pytest.mark.parametrize("target", ["cpu", "emulate:cuda:sm_80", "emulate:cuda:sm_90a", "emulate:hip:gfx950"])
def test_no_block_is_copied_for_an_iteration_behind_the_last_number(target: str) -> None:
    """Copies for later iterations were started where their index had wrapped, and nobody waited for them."""
    a, b = np.ones((64, 192), np.float16), np.ones((192, 64), np.float16)
    with tile.target(target):
        for lo, hi, runs, sum_ in (0, 192, 3, 192), (LAST - 140, LAST, 3, 0), (LAST - 40, LAST, 1, 0):
            assert np.all(products(a, b, lo, hi) == sum_ + runs)
