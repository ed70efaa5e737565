"""Tracing: products that take what they are added to as their accumulator."""
from __future__ import annotations

import numpy as np
import pytest

import tilelang as tile


@tile.kernel
def sums(a: tile.Tensor[tile.f16, "N N"], c: tile.Out[tile.f32, "N N"], d: tile.Out[tile.f32, "N"],
         ONCE: tile.Const):
    """c = 1 + a a, and the sums of rows of a a, or of c."""
    x = tile.load(a, (0, 0), (16, 16))
    product = tile.dot(x, x)
    total = tile.ones((16, 16)) if ONCE else product + 1.0
    if ONCE:
        total += tile.dot(x, x)
    tile.store(c, (0, 0), total)
    tile.store(d, (0,), (total if ONCE else product).sum(1))


@pytest.mark.parametrize(("once", "operands"), [(True, [2, 3]), (False, [2])])
def test_a_sum_is_the_accumulator_of_a_product_of_its_own(once: bool, operands: list[int]) -> None:
    a, c, d = np.zeros((16, 16), np.float16), np.zeros((16, 16), np.float32), np.zeros(16, np.float32)
    fn = sums.lower(a, c, d, ONCE=once, target="cuda:sm_80").tile
    assert [len(op.operands) for op in fn.walk() if op.name == "dot"] == operands


@pytest.mark.parametrize("target", ["reference", "cpu", "emulate:cuda:sm_80"])
def test_a_product_that_is_added_and_used_again(target: str) -> None:
    """Its accumulation once left the other use without a value."""
    a = np.random.default_rng(0).integers(-3, 4, (16, 16)).astype(np.float16)  # sums are exact
    with tile.target(target):
        c, d = sums(a, ONCE=False)
    exact = a.astype(np.float32) @ a.astype(np.float32)
    np.testing.assert_array_equal(c, exact + 1)
    np.testing.assert_array_equal(d, exact.sum(1))


@tile.kernel
def of_scalars(table: tile.Tensor[tile.f32, "N"], at: tile.Tensor[tile.i32, ""], y: tile.Out[tile.f32, ""],
               SIZE: tile.Const = 8):
    for _ in tile.static_range(SIZE.bit_length()):  # a method of a constant
        found = tile.lookup(tile.load(table, 0, SIZE), tile.load(at, (), ()))
    tile.store(y, (), found)


@pytest.mark.parametrize("target", ["reference", "cpu", "emulate:cuda:sm_80"])
def test_tensors_without_dimensions(target: str) -> None:
    """Neither they, nor one look-up in a table, compiled for the CPU."""
    table = np.arange(8, dtype=np.float32) + 1
    with tile.target(target):
        for at, wanted in ((3, 4.0), (0, 1.0), (8, 0.0), (-1, 0.0)):
            assert of_scalars(table, np.array(at, np.int32)) == wanted
