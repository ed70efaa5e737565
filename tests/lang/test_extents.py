"""Blocks of any extents: 1, 3 and 48 x 100 as well as powers of two, over tensors that they do not divide."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilelang as tile


@tile.kernel
def everything(x: tile.Tensor[tile.f32, "M N"], total: tile.Out[tile.f32, "M"], turned: tile.Out[tile.f32, "N M"],
               product: tile.Out[tile.f32, "M M"], running: tile.Out[tile.f32, "M N"], BM: tile.Const,
               BN: tile.Const):
    """Sums of rows, the transpose, running sums of the columns of each block, and x @ x.T of the rows of a block."""
    m = tile.grid(tile.cdiv(x.shape[0], BM))
    sums, own = tile.zeros((BM,)), tile.zeros((BM, BM))
    for n in tile.range(0, x.shape[1], BN, stages=2):
        block = tile.load(x, (m * BM, n), (BM, BN))
        sums += block.sum(1)
        own = tile.dot(block, block.T, own)
        tile.store(turned, (n, m * BM), block.T)
        tile.store(running, (m * BM, n), tile.cumsum(block, 0))
    tile.store(total, (m * BM,), sums)
    tile.store(product, (m * BM, m * BM), own)


@pytest.mark.parametrize(("target", "block"), [
    *(("cpu", block) for block in ((1, 1), (3, 5), (48, 100), (100, 48), (17, 128))), ("reference", (48, 100)),
    ("emulate:cuda:sm_80", (48, 20)), ("emulate:hip:gfx942", (24, 100))])
def test_any_block(target: str, block: tuple[int, int]) -> None:
    m, n = block
    x = np.random.default_rng(0).integers(-4, 5, (m + 2, 2 * n + 1)).astype(np.float32)  # sums are exact
    outs: list[Any] = [np.zeros(s, np.float32) for s in ((m + 2,), (2 * n + 1, m + 2), (m + 2, m + 2), x.shape)]
    with tile.target(target):
        everything(x, *outs, BM=m, BN=n)
    parts = [slice(i, i + m) for i in range(0, m + 2, m)]
    product = np.zeros((m + 2, m + 2), np.float32)
    for part in parts:
        product[part, part] = x[part] @ x[part].T
    for out, want in zip(outs, (x.sum(1), x.T, product, np.concatenate([np.cumsum(x[p], 0) for p in parts])),
                         strict=True):
        np.testing.assert_array_equal(out, want)
