"""Work counted from TILE functions, against counts by hand."""
from __future__ import annotations

import numpy as np

import tilelang as tile
from tilelang.ops.matmul import matmul_kernel
from tilelang.passes.work import work


def test_a_product_in_whole_blocks() -> None:
    fn = matmul_kernel.lower(*(np.empty(shape, np.float16) for shape in ((100, 40), (40, 50), (100, 50))),
                             BM=64, BN=32, BK=16, ACC=tile.f32).tile
    got = work(fn, [(100, 40), (40, 50), (100, 50)])
    blocks, turns = 2 * 2, 3
    assert got.programs == blocks
    assert got.products == blocks * turns * 2 * 64 * 32 * 16
    assert got.loaded == blocks * turns * 2 * (64 * 16 + 16 * 32) and got.stored == blocks * 2 * 64 * 32
    assert work(fn, [(0, 40), (40, 50), (0, 50)]).products == 0


@tile.kernel
def triangle(x: tile.Tensor[tile.f32, "M N"], y: tile.Out[tile.f32, "M"], steps: tile.i32, B: tile.Const = 8):
    m = tile.grid(x.shape[0])
    total = tile.zeros((B,), tile.f32)
    for n in tile.range(0, m * B, B):
        total += tile.exp(tile.load(x, (m, n), (B,)))
    for _ in tile.range(0, steps):
        total += 1.0
    tile.store(y, (m,), total.sum(0).reshape(1))


def test_loops_count_as_often_as_they_run() -> None:
    fn = triangle.trace(triangle.types({}), {"B": 8})
    shapes = [(9, 64), (9,), ()]
    got = work(fn, shapes, [None, None, 5])
    turns = 9 * (0 + 4 + 8) / 3  # programs 0, 4 and 8 stand for all nine
    assert got.loaded == turns * 8 * 4
    assert got.simple == turns * (8 * 8 + 8) + 9 * 5 * 8 + 9 * 8
    unknown = work(fn, shapes)  # such a loop counts once
    assert unknown.simple == got.simple - 9 * 4 * 8
