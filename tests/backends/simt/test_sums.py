"""Sums that instructions of four warps add to in place, in loops of every form: what they compute on sm_90a."""
from __future__ import annotations

import numpy as np
import pytest

import tilelang as tile
from tilelang.jit import Kernel

TARGET = "cuda:sm_90a"
A, B = tile.Tensor[tile.f16, "M K"], tile.Tensor[tile.f16, "K N"]
C = tile.Out[tile.f32, "M N"]
TILE = (64, 64)


@tile.kernel
def used_inside(a: A, b: B, c: C):
    """Sum is read in each iteration."""
    acc = tile.zeros(TILE, tile.f32)
    other = tile.zeros(TILE, tile.f32)
    for k in tile.range(0, a.shape[1], 64, stages=2):
        acc += tile.dot(tile.load(a, (0, k), TILE), tile.load(b, (k, 0), TILE))
        other = other + acc
    tile.store(c, (0, 0), other)


@tile.kernel
def swapped(a: A, b: B, c: C):
    """Two sums take turns."""
    x = tile.zeros(TILE, tile.f32)
    y = tile.full(TILE, 1.0, tile.f32)
    for k in tile.range(0, a.shape[1], 64, stages=3):
        z = tile.dot(tile.load(a, (0, k), TILE), tile.load(b, (k, 0), TILE), x)
        x = y
        y = z
    tile.store(c, (0, 0), x + 2.0 * y)


@tile.kernel
def conditional(a: A, b: B, c: C):
    """Every other block."""
    acc = tile.zeros(TILE, tile.f32)
    for k in tile.range(0, a.shape[1], 64, stages=2):
        if k // 64 % 2 == 0:
            acc += tile.dot(tile.load(a, (0, k), TILE), tile.load(b, (k, 0), TILE))
    tile.store(c, (0, 0), acc)


@tile.kernel
def nested(a: A, b: B, c: C):
    """A loop in a loop."""
    total = tile.zeros(TILE, tile.f32)
    for m in tile.range(0, a.shape[0], 64):
        acc = tile.zeros(TILE, tile.f32)
        for k in tile.range(0, a.shape[1], 64, stages=2):
            acc += tile.dot(tile.load(a, (m, k), TILE), tile.load(b, (k, 0), TILE))
        total = total + acc
    tile.store(c, (0, 0), total)


@tile.kernel
def twice(a: A, b: B, c: C):
    """Two products on one sum, two sums."""
    acc = tile.zeros(TILE, tile.f32)
    acc2 = tile.zeros(TILE, tile.f32)
    for k in tile.range(0, a.shape[1], 128, stages=2):
        x = tile.load(a, (0, k), TILE)
        y = tile.load(b, (k, 0), TILE)
        u = tile.load(a, (0, k + 64), TILE)
        v = tile.load(b, (k + 64, 0), TILE)
        acc = tile.dot(x, y, acc)
        acc2 = tile.dot(u, y, acc2)
        acc = tile.dot(u, v, acc)
    tile.store(c, (0, 0), acc + acc2)


@tile.kernel
def kept(a: A, b: B, c: C):
    """The sum before and the one after are used."""
    acc = tile.zeros(TILE, tile.f32)
    old = tile.zeros(TILE, tile.f32)
    for k in tile.range(0, a.shape[1], 64, stages=2):
        new = tile.dot(tile.load(a, (0, k), TILE), tile.load(b, (k, 0), TILE), acc)
        old = tile.maximum(acc, old)
        acc = new
    tile.store(c, (0, 0), acc + old)


@tile.kernel
def whiles(a: A, b: B, c: C):
    """A while loop."""
    acc = tile.zeros(TILE, tile.f32)
    k = 0
    while k < a.shape[1]:
        acc += tile.dot(tile.load(a, (0, k), TILE), tile.load(b, (k, 0), TILE))
        k += 64
    tile.store(c, (0, 0), acc)


@tile.kernel
def inner(a: A, b: B, c: C):
    """A sum that an inner loop adds to, from the same start each time."""
    acc = tile.zeros(TILE, tile.f32)
    total = tile.zeros(TILE, tile.f32)
    for _ in tile.range(0, a.shape[1], 64):
        acc = acc + 1.0
        for j in tile.range(0, a.shape[1], 64):
            total = total + tile.dot(tile.load(a, (0, j), TILE), tile.load(b, (j, 0), TILE), acc)
    tile.store(c, (0, 0), total)


@tile.kernel
def inner2(a: A, b: B, c: C):
    """A carried sum that an inner loop starts from and never changes."""
    acc = tile.zeros(TILE, tile.f32)
    for _ in tile.range(0, a.shape[1], 64):
        top = tile.zeros(TILE, tile.f32)
        for j in tile.range(0, a.shape[1], 64):
            top = tile.maximum(top, tile.dot(tile.load(a, (0, j), TILE), tile.load(b, (j, 0), TILE), acc))
        acc = top
    tile.store(c, (0, 0), acc)


@tile.kernel
def after(a: A, b: B, c: C):
    """A sum goes on after the loop."""
    acc = tile.zeros(TILE, tile.f32)
    for k in tile.range(0, a.shape[1], 64, stages=2):
        acc = tile.dot(tile.load(a, (0, k), TILE), tile.load(b, (k, 0), TILE), acc)
    acc = tile.dot(tile.load(a, (0, 0), TILE), tile.load(b, (0, 0), TILE), acc)
    tile.store(c, (0, 0), acc)


@pytest.mark.parametrize("kernel", [nested, inner], ids=lambda k: k.name)
def test_loops_in_loops_are_fenced_once(kernel: Kernel) -> None:
    a = np.zeros((64, 64), np.float16)
    ops = list(kernel.lower(a, a, np.zeros(TILE, np.float32), target=TARGET).thread.walk())
    products = sum(op.name == "group_mma" for op in ops)
    assert products == sum(op.name == "fence" and op.attrs["kind"] == "registers" for op in ops)
    assert products == sum(op.name == "commit" and op.attrs["products"] for op in ops)


KERNELS = (used_inside, swapped, conditional, nested, twice, kept, whiles, inner, inner2, after)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_sums(kernel: Kernel) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-2, 3, shape).astype(np.float16) for shape in ((64, 172), (172, 64)))  # sums are exact
    here, there = np.zeros(TILE, np.float32), np.zeros(TILE, np.float32)
    assert "tl::wgmma" in kernel.lower(a, b, here, target=TARGET).source
    for target, c in ((f"emulate:{TARGET}", here), ("reference", there)):
        with tile.target(target):
            kernel(a, b, c=c)
    np.testing.assert_array_equal(here, there)
