"""Atomic operations on f16 and bf16, which no machine here has: loops of compare and swap."""
from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import tilelang as tile
from tilelang import errors

TARGETS = "cpu", "emulate:cuda:sm_80", "emulate:hip:gfx942"
HALVES = np.float16, ml_dtypes.bfloat16


@tile.kernel
def update(x: tile.Tensor[tile.T, "N"], i: tile.Tensor[tile.i32, "N"], add: tile.InOut[tile.T, "M"],
           high: tile.InOut[tile.T, "M"], low: tile.InOut[tile.T, "M"], swap: tile.InOut[tile.T, "N"],
           old: tile.Out[tile.T, "N"]):
    n = tile.grid(tile.cdiv(x.shape[0], 64)) * 64
    v, at = tile.load(x, n, 64), tile.load(i, n, 64, fill=-1)
    tile.atomic_add(add, at, v)
    tile.atomic_max(high, at, v)
    tile.atomic_min(low, at, v, v > -3)
    tile.store(old, n, tile.atomic_cas(swap, n + tile.arange(64), 1.0, v))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dt", HALVES)
def test_updates(target: str, dt: Any) -> None:
    """Sums of small integers are exact in any order; what begins in the middle of a word leaves its other half."""
    rng = np.random.default_rng(0)
    x, i = rng.integers(-4, 5, 150).astype(dt), rng.integers(-1, 12, 150).astype(np.int32)
    starts = [np.arange(14).astype(dt)] * 3 + [rng.integers(0, 3, 151).astype(dt)]
    results = []
    for name in "reference", target:
        memory, old = [s.copy() for s in starts], np.zeros(150, dt)
        with tile.target(name):
            update(x, i, *(m[1:12] for m in memory[:3]), memory[3][1:], old)
        results.append([m.astype(np.float32) for m in (*memory, old)])
    for got, want, start in zip(results[1], results[0], [*starts, None], strict=True):
        np.testing.assert_array_equal(got, want)
        if start is not None:
            assert got[0] == start[0] and (got != start.astype(np.float32)).any()
    np.testing.assert_array_equal(results[1][4], starts[3][1:].astype(np.float32))


@tile.kernel
def count(y: tile.InOut[tile.T, "M"], ROUNDS: tile.Const):
    n = tile.grid(ROUNDS)
    tile.atomic_add(y, (n + tile.arange(64)) % y.shape[0], 1.0)


@pytest.mark.parametrize("dt", HALVES)
def test_threads_lose_no_update_until_a_sum_is_rounded_back(dt: Any) -> None:
    """Four neighbours, of which two share a word."""
    most = 2048 if dt is np.float16 else 256
    y = np.zeros(4, dt)
    count(y, most // 32)
    assert (y.astype(np.float32) == most // 2).all()
    count(y, most // 8)
    assert (y.astype(np.float32) == most).all()


@pytest.mark.parametrize("target", ["reference", *TARGETS])
def test_numbers_that_are_none_and_the_ends_of_the_range(target: str) -> None:
    @tile.kernel
    def ends(x: tile.Tensor[tile.f16, "N"], y: tile.InOut[tile.f16, "N"], z: tile.InOut[tile.f16, "N"]):
        i = tile.arange(8)
        tile.atomic_add(y, i, tile.load(x, 0, 8))
        tile.atomic_max(z, i, tile.load(x, 0, 8))

    nan, inf = np.nan, np.inf
    x = np.array([nan, 1, inf, -inf, 60000, 2.0 ** -24, -0.0, 1], np.float16)
    y = np.array([1, nan, -inf, 1, 60000, 2.0 ** -24, -0.0, 2048], np.float16)
    z = y.copy()
    with tile.target(target):
        ends(x, y, z)
    np.testing.assert_array_equal(y, np.array([nan, nan, nan, -inf, inf, 2.0 ** -23, -0.0, 2048], np.float16))
    np.testing.assert_array_equal(z, np.array([nan, nan, inf, 1, 60000, 2.0 ** -24, -0.0, 2048], np.float16))


@pytest.mark.parametrize("dt", [tile.f16, tile.bf16])
def test_races_with_plain_stores_are_found(dt: tile.DType) -> None:
    @tile.kernel
    def mixed(y: tile.InOut[tile.T, "N"]):
        n = tile.grid(2)
        tile.atomic_add(y, 0, 1.0)
        tile.store(y, 0, n.to(y.dtype))

    y = np.zeros(4, np.float16 if dt is tile.f16 else ml_dtypes.bfloat16)
    with tile.target("emulate:cuda:sm_80"), pytest.raises(errors.CheckError, match="race-global"):
        mixed(y)
