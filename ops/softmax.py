"""Softmax over the last dimension."""
from __future__ import annotations

from typing import Any

import numpy as np

import tilelang as tile
from tilelang.ops.common import block, rows

WIDEST = 16384
"""Rows up to this length are one tile; longer ones go through blocks with a running maximum."""


@tile.kernel
def softmax_kernel(x: tile.Tensor[tile.T, "M N"], y: tile.Out[tile.T, "M N"], BM: tile.Const, BN: tile.Const):
    """BN >= N: whole rows in a tile."""
    m = tile.grid(tile.cdiv(x.shape[0], BM))
    v = tile.load(x, (m * BM, 0), (BM, BN), fill=float("-inf")).to(tile.f32)
    e = tile.exp(v - v.max(1, keepdims=True))
    tile.store(y, (m * BM, 0), (e * (1.0 / e.sum(1, keepdims=True))).to(y.dtype))


@tile.kernel
def softmax_blocks_kernel(x: tile.Tensor[tile.T, "M N"], y: tile.Out[tile.T, "M N"], BN: tile.Const):
    """One row for each program, read twice (online softmax, Milakov and Gimelshein, 2018)."""
    m = tile.grid(x.shape[0])
    top = tile.full((1,), float("-inf"), tile.f32)
    total = tile.zeros((1,), tile.f32)
    for n in tile.range(0, x.shape[1], BN):
        v = tile.load(x, (m, n), (BN,), fill=float("-inf")).to(tile.f32)
        new = tile.maximum(top, v.max(0, keepdims=True))
        total = total * tile.exp(top - new) + tile.exp(v - new).sum(0, keepdims=True)
        top = new
    for n in tile.range(0, x.shape[1], BN):
        v = tile.load(x, (m, n), (BN,)).to(tile.f32)
        tile.store(y, (m, n), (tile.exp(v - top) / total).to(y.dtype))


def softmax(x: Any) -> Any:
    """Softmax over the last dimension of [..., N], in the dtype of `x`, computed in f32."""
    flat = rows(x)
    n = flat.shape[1]
    if n <= WIDEST:
        out = softmax_kernel(flat, BM=max(1, 2048 // max(n, 1)), BN=block(n, WIDEST, 64))
    else:
        out = softmax_blocks_kernel(flat, BN=8192)
    return out.reshape(x.shape)


def reference(x: Any) -> Any:
    """f64."""
    x = np.asarray(x, np.float64)
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)
