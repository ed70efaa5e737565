"""Sums over rows: what gradients of weights that all rows share end in."""
from __future__ import annotations

import math
from typing import Any

import numpy as np

import tilelang as tile
from tilelang.args import empty_like
from tilelang.ops.common import block, dtype_of


@tile.kernel
def sum_rows_kernel(x: tile.Tensor[tile.T, "M N"], y: tile.Out[tile.U, "N"], BM: tile.Const, BN: tile.Const):
    """y = sum of the rows of x in f32, rounded once; one block of columns for each program."""
    n = tile.grid(tile.cdiv(x.shape[1], BN))
    total = tile.zeros((BN,), tile.f32)
    for m in tile.range(0, x.shape[0], BM):
        total += tile.load(x, (m, n * BN), (BM, BN)).to(tile.f32).sum(0)
    tile.store(y, (n * BN,), total.to(y.dtype))


def sum_rows(x: Any, like: Any) -> Any:
    """The sum over the first dimension of [M, ...], in the dtype of `like`; always in the same order."""
    shape = tuple(x.shape[1:])
    count = math.prod(shape)
    out = empty_like(like, (count,), dtype_of(like))
    total = sum_rows_kernel(x.reshape(x.shape[0], count), out, BM=block(x.shape[0], 64, 8), BN=block(count, 256, 64))
    return total.reshape(shape)


def reference(x: Any) -> Any:
    """f64."""
    return np.asarray(x, np.float64).sum(0)
