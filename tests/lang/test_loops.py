"""Loops whose last index plus their step is no number of its type, that count down, and `continue`."""
from __future__ import annotations

import numpy as np
import pytest

import tilelang as tile
from tilelang import errors

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


@tile.kernel
def countdown(x: tile.Tensor[tile.f32, "N"], hi: tile.i32, y: tile.Out[tile.f32, "N"], last: tile.Out[tile.i32, "2"]):
    total, seen = 0.0, 0
    for i in range(x.shape[0] - 1, -1, -1):
        total += tile.load(x, i, ())
        tile.store(y, i, total)
    for i in tile.range(hi, -5, -3):
        seen = seen * 10 + i
    tile.store(last, 0, seen)
    seen = 0
    for i in range(7, -1, -2):
        seen = seen * 10 + i
    tile.store(last, 1, seen)


@tile.kernel
def products_from_the_end(a: tile.Tensor[tile.f16, "M K"], b: tile.Tensor[tile.f16, "K N"],
                          c: tile.Out[tile.f32, "M N"]):
    acc = tile.zeros((32, 32))
    for k in tile.range((a.shape[1] - 1) // 32 * 32, -1, -32, stages=3):
        acc = acc * 0.5 + tile.dot(tile.load(a, (0, k), (32, 32)), tile.load(b, (k, 0), (32, 32)))
    tile.store(c, (0, 0), acc)


@pytest.mark.parametrize("target", ["cpu", "reference", "emulate:cuda:sm_80", "emulate:cuda:sm_90a",
                                    "emulate:hip:gfx942"])
def test_a_loop_counts_down(target: str) -> None:
    x, rng = np.arange(10, dtype=np.float32), np.random.default_rng(0)
    a, b = rng.integers(-3, 4, (32, 150)).astype(np.float16), rng.integers(-3, 4, (150, 32)).astype(np.float16)
    want = np.zeros((32, 32))
    for k in range(128, -1, -32):
        want = want * 0.5 + a[:, k:k + 32].astype(float) @ b[k:k + 32].astype(float)
    with tile.target(target):
        for hi in 6, -4, -5, -6:
            y, last = countdown(x, hi, last=np.zeros(2, np.int32))
            assert np.array_equal(y, x[::-1].cumsum()[::-1])
            seen = 0
            for i in range(hi, -5, -3):
                seen = seen * 10 + i
            assert last.tolist() == [seen, 7531]
        assert np.array_equal(products_from_the_end(a, b), want)  # multiples of 1/16 below 2^12: exact


@tile.kernel
def skip(x: tile.Tensor[tile.i32, "N"], y: tile.InOut[tile.i32, "4"], SOME: tile.Const = True):
    kept, i, odd, unrolled = 0, 0, 0, 0
    for n in tile.range(x.shape[0]):
        v = tile.load(x, n, ())
        if v < 0:
            if v < -5:
                kept += 1000
                continue
            kept += 100
        elif v == 0:
            continue
        for k in range(v):
            if k % 2 == 0:
                continue
            odd += 1
        kept += 1
    while i < x.shape[0]:
        i += 1
        if tile.load(x, i - 1, ()) > 3:
            continue
        tile.atomic_add(y, 3, 1)
    for c in tile.static_range(4):
        if c == 1 and SOME:
            continue
        if tile.load(x, c, ()) == 0:
            continue
        unrolled += 1 << c
    for at, value in enumerate((kept, odd, unrolled)):
        tile.store(y, at, value)


@pytest.mark.parametrize("target", ["cpu", "reference", "emulate:cuda:sm_80", "emulate:hip:gfx942"])
def test_continue_goes_on_with_the_next_iteration(target: str) -> None:
    x = np.array([3, -7, 0, -2, 9, 0, 4], np.int32)
    with tile.target(target):
        for some, unrolled in (True, 0b1001), (False, 0b1011):
            y = np.zeros(4, np.int32)
            skip(x, y, SOME=some)
            assert y.tolist() == [1104, 1 + 4 + 2, unrolled, 5]


def test_loops_that_cannot_count_down_are_refused() -> None:
    @tile.kernel
    def unsigned(n: tile.u32, y: tile.Out[tile.i32, "1"]):
        for i in tile.range(n, 0, -1):
            tile.store(y, 0, i)

    @tile.kernel
    def still(y: tile.Out[tile.i32, "1"]):
        for i in tile.range(4, 0, 0):
            tile.store(y, 0, i)

    @tile.kernel
    def growing(y: tile.Out[tile.f32, "8"]):
        h, v = 1, tile.zeros(8)
        while h < 8:
            v = v.reshape(8 // h, h).reshape(8)
            h *= 2
        tile.store(y, 0, v)

    y = np.zeros(1, np.int32)
    with pytest.raises(errors.DTypeMismatch, match="unsigned numbers cannot count down(.|\n)*cast the bounds"):
        unsigned(3, y)
    with pytest.raises(errors.TileError, match="must not be 0"):
        still(y)
    with pytest.raises(errors.NonConstantExtent, match="known when the kernel is compiled(.|\n)*static_range"):
        growing(np.zeros(8, np.float32))
