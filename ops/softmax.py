"""Softmax over the last dimension."""
from __future__ import annotations

from typing import Any

import numpy as np

import tilelang as tile
from tilelang.ops.common import check_floats, rows, rowwise

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
        base = tile.where(new == float("-inf"), 0.0, new)  # while all are -inf
        total = total * tile.exp(top - base) + tile.exp(v - base).sum(0, keepdims=True)
        top = new
    for n in tile.range(0, x.shape[1], BN):
        v = tile.load(x, (m, n), (BN,)).to(tile.f32)
        tile.store(y, (m, n), (tile.exp(v - top) / total).to(y.dtype))


@tile.kernel
def softmax_backward_kernel(y: tile.Tensor[tile.T, "M N"], dy: tile.Tensor[tile.T, "M N"],
                            dx: tile.Out[tile.T, "M N"], BM: tile.Const, BN: tile.Const):
    """dx = y (dy - sum(y dy)) for BM rows, in blocks of BN columns."""
    m = tile.grid(tile.cdiv(y.shape[0], BM))
    inner = tile.zeros((BM, 1), tile.f32)
    for n in tile.range(0, y.shape[1], BN):
        block = tile.load(y, (m * BM, n), (BM, BN)).to(tile.f32)
        inner += (block * tile.load(dy, (m * BM, n), (BM, BN)).to(tile.f32)).sum(1, keepdims=True)
    for n in tile.range(0, y.shape[1], BN):
        block = tile.load(y, (m * BM, n), (BM, BN)).to(tile.f32)
        out = block * (tile.load(dy, (m * BM, n), (BM, BN)).to(tile.f32) - inner)
        tile.store(dx, (m * BM, n), out.to(dx.dtype))


def softmax_backward(y: Any, dy: Any) -> Any:
    """The gradient of `softmax` where it gave `y`, times `dy`; both [..., N]."""
    flat = rows(y)
    return softmax_backward_kernel(flat, rows(dy), **rowwise(flat.shape[1], 1024)).reshape(y.shape)


@tile.torch_op("tilelang::softmax", backward=softmax_backward, outputs="y", dims="... N -> ... N", autocast="widest")
def softmax(x: Any) -> Any:
    """Softmax over the last dimension of [..., N], in the dtype of `x`, computed in f32. Raises ValueError for other
    than f32, f16 and bf16."""
    check_floats("softmax", x)
    flat = rows(x)
    n = flat.shape[1]
    if n <= WIDEST or n <= 4 * WIDEST and n % 64 == 0 and not tile.on_gpu(x):  # without edges it pays for longer
        out = softmax_kernel(flat, **rowwise(n, 4 * WIDEST))
    else:
        out = softmax_blocks_kernel(flat, BN=8192 if tile.on_gpu(x) else 4096)
    return out.reshape(x.shape)


def reference(x: Any) -> Any:
    """f64."""
    x = np.asarray(x, np.float64)
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def backward_reference(y: Any, dy: Any) -> Any:
    """f64."""
    y, dy = np.asarray(y, np.float64), np.asarray(dy, np.float64)
    return y * (dy - (y * dy).sum(-1, keepdims=True))
