"""Carried tiles: copied and cleared only where something reads them."""
from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

import tilelang as tile
from tilelang.ops.matmul import matmul_kernel


@tile.kernel
def product(a: tile.Tensor[tile.i32, "M K"], b: tile.Tensor[tile.i32, "K N"], c: tile.Out[tile.i32, "M N"]):
    """Accumulates from zero."""
    acc = tile.zeros((6, 10), tile.i32)
    for k in tile.range(0, a.shape[1], 4):
        acc = tile.dot(tile.load(a, (0, k), (6, 4)), tile.load(b, (k, 0), (4, 10)), acc)
    tile.store(c, (0, 0), acc)


@tile.kernel
def from_one(a: tile.Tensor[tile.i32, "M K"], b: tile.Tensor[tile.i32, "K N"], c: tile.Out[tile.i32, "M N"]):
    """Accumulates from what is not zero."""
    acc = tile.full((6, 10), 1, tile.i32)
    for k in tile.range(0, a.shape[1], 4):
        acc = tile.dot(tile.load(a, (0, k), (6, 4)), tile.load(b, (k, 0), (4, 10)), acc)
    tile.store(c, (0, 0), acc)


@tile.kernel
def read_before(a: tile.Tensor[tile.i32, "M K"], b: tile.Tensor[tile.i32, "K N"], c: tile.Out[tile.i32, "M N"]):
    """Reads the accumulator besides accumulating."""
    acc = tile.zeros((6, 10), tile.i32)
    total = tile.zeros((6, 10), tile.i32)
    for k in tile.range(0, a.shape[1], 4):
        total = total + acc
        acc = tile.dot(tile.load(a, (0, k), (6, 4)), tile.load(b, (k, 0), (4, 10)), acc)
    tile.store(c, (0, 0), acc + total)


@tile.kernel
def twice(a: tile.Tensor[tile.i32, "M K"], b: tile.Tensor[tile.i32, "K N"], c: tile.Out[tile.i32, "M N"]):
    """Two loops begin with the same zeros, one of them inside a loop."""
    zero = tile.zeros((6, 10), tile.i32)
    total = tile.zeros((6, 10), tile.i32)
    for _ in tile.range(0, 2):
        acc = zero
        for k in tile.range(0, a.shape[1], 4):
            acc = tile.dot(tile.load(a, (0, k), (6, 4)), tile.load(b, (k, 0), (4, 10)), acc)
        total = total + acc
    tile.store(c, (0, 0), total)


@tile.kernel
def nested(a: tile.Tensor[tile.i32, "M K"], b: tile.Tensor[tile.i32, "K N"], c: tile.Out[tile.i32, "M N"]):
    """Carried by three loops, the inner two of which are all that the next outer one holds."""
    total = tile.zeros((6, 10), tile.i32)
    for _ in tile.range(0, 2):
        for _ in tile.range(0, 1):
            for k in tile.range(0, a.shape[1], 4):
                total = total + tile.dot(tile.load(a, (0, k), (6, 4)), tile.load(b, (k, 0), (4, 10)))
    tile.store(c, (0, 0), total)


@pytest.mark.parametrize("k", [0, 3, 4, 17])
@pytest.mark.parametrize("kernel", [product, from_one, read_before, twice, nested])
def test_values(kernel: Callable[..., object], k: int) -> None:
    """A loop that never runs leaves the initial value; one that runs does not add to what lay in memory before."""
    rng = np.random.default_rng(k)
    a, b = rng.integers(-9, 9, (6, k), np.int32), rng.integers(-9, 9, (k, 10), np.int32)
    blocks = [a[:, i:i + 4] @ b[i:i + 4] for i in range(0, k, 4)]
    sums = np.cumsum([np.zeros((6, 10), np.int32), *blocks], 0)
    want = {"product": sums[-1], "from_one": sums[-1] + 1, "read_before": sums[-1] + sums[:-1].sum(0),
            "twice": 2 * sums[-1], "nested": 2 * sums[-1]}[kernel.__name__]
    for _ in range(2):  # the second call finds the scratch memory of the first
        np.testing.assert_array_equal(kernel(a, b), want)


def test_an_accumulator_has_one_buffer() -> None:
    a = np.zeros((64, 64), np.float32)
    text = str(matmul_kernel.lower(a, a, a.copy(), BM=32, BN=32, BK=32, ACC=tile.f32).thread)
    assert text.count(" = alloc ") == 3  # a, b and the accumulator


@tile.kernel
def recurrence(x: tile.Tensor[tile.i32, "T M N"], y: tile.Out[tile.i32, "T P"], AXIS: tile.Const):
    """The state of a step and a sum, a maximum, of it and of the state before: all in one walk over it."""
    (M, N), state = (5, 70), tile.zeros((5, 70), tile.i32)
    for t in tile.range(x.shape[0]):
        old, state = state, state * 3 + tile.load(x, (t, 0, 0), (None, M, N))
        both = tile.concatenate([state.sum(AXIS), (old - state).max(AXIS)])
        tile.store(y, (t, 0), both, (None, both.shape[0]))


@tile.function
def either(a, b):
    return a ^ b


@tile.kernel
def combined(x: tile.Tensor[tile.i32, "T M N"], y: tile.Out[tile.i32, "T N"]):
    """A combination of one's own reads the state twice."""
    state = tile.zeros((5, 70), tile.i32)
    for t in tile.range(x.shape[0]):
        state = state * 3 + tile.load(x, (t, 0, 0), (None, 5, 70))
        tile.store(y, (t, 0), tile.reduce(state, 0, either), (None, 70))


@pytest.mark.parametrize("axis", [0, 1])
def test_sums_beside_a_carried_tile(axis: int) -> None:
    x = np.random.default_rng(axis).integers(-9, 9, (6, 5, 70), np.int32)
    states = [np.zeros((5, 70), np.int32)]
    for block in x:
        states.append(states[-1] * 3 + block)
    want = [np.concatenate([new.sum(axis), (old - new).max(axis)]) for old, new in pairwise(states)]
    y = np.empty((6, 2 * (70 if axis == 0 else 5)), np.int32)
    for _ in range(2):
        np.testing.assert_array_equal(recurrence(x, y, AXIS=axis), want)
    text = str(recurrence.lower(x, y, AXIS=axis).thread)
    assert text.count("shape=(350,)") == 1
    np.testing.assert_array_equal(combined(x), [np.bitwise_xor.reduce(s) for s in states[1:]])


@tile.kernel
def both_ways(a: tile.Tensor[tile.f32, "M K"], b: tile.Tensor[tile.f32, "K N"], c: tile.Out[tile.f32, "M N"],
              d: tile.Out[tile.f32, "M"]):
    """A left operand with padded rows, too many to be few, that a sum reads, too, and a product that is one."""
    x = tile.exp(tile.load(a, (0, 0), (13, 64)))
    y = tile.dot(x, tile.load(b, (0, 0), (64, 20)))
    tile.store(d, (0,), x.sum(1) + x.max(1))
    tile.store(c, (0, 0), tile.dot(y, tile.load(b, (0, 0), (20, 20))))


def test_left_operands_are_made_where_products_want_them() -> None:
    a, b = (np.random.default_rng(7).standard_normal(shape).astype(np.float32) for shape in ((13, 64), (64, 20)))
    got = both_ways(a, b)
    for x, y in zip(got, both_ways.reference(a, b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4)
    text = str(both_ways.lower(a, b, *got).thread)
    assert text.count("alloc") == 7  # x, y, the second product, two right operands, the sum and the maximum
