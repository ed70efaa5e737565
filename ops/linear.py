"""Linear layer: y = act(x @ w.T + bias)."""
from __future__ import annotations

from typing import Any

import numpy as np

import tilelang as tile
from tilelang.ops.activation import gelu_exact
from tilelang.ops.common import rows
from tilelang.ops.matmul import blocks


@tile.kernel
def linear_kernel(x: tile.Tensor[tile.T, "M K"], w: tile.Tensor[tile.T, "N K"], bias: tile.Tensor[tile.T, "N"],
                  y: tile.Out[tile.T, "M N"], BM: tile.Const, BN: tile.Const, BK: tile.Const, GELU: tile.Const):
    """One block of y for each program; weights are stored by output feature, as torch stores them."""
    (M, K), N = x.shape, w.shape[0]
    m, n = tile.grid(tile.cdiv(M, BM), tile.cdiv(N, BN))
    acc = tile.zeros((BM, BN), tile.f32)
    for k in tile.range(0, K, BK, stages=3):
        acc += tile.dot(tile.load(x, (m * BM, k), (BM, BK)), tile.load(w, (n * BN, k), (BN, BK)).T)
    acc = acc + tile.load(bias, (n * BN,), (BN,)).to(tile.f32)
    if GELU:
        acc = gelu_exact(acc)
    tile.store(y, (m * BM, n * BN), acc.to(y.dtype))


def linear(x: Any, w: Any, bias: Any, activation: str | None = None) -> Any:
    """act(x [..., K] @ w[N, K].T + bias [N]) with activation None or "gelu"; f32 accumulation."""
    if activation not in (None, "gelu"):
        raise ValueError(f"activation must be None or 'gelu', got {activation!r}")
    flat = rows(x)
    bm, bn, bk = blocks(flat.shape[0], w.shape[0], flat.shape[1], gpu=tile.on_gpu(x, w))
    out = linear_kernel(flat, w, bias, BM=bm, BN=bn, BK=bk, GELU=activation == "gelu")
    return out.reshape(*x.shape[:-1], w.shape[0])


def reference(x: Any, w: Any, bias: Any) -> Any:
    """f64 without activation."""
    return np.asarray(x, np.float64) @ np.asarray(w, np.float64).T + np.asarray(bias, np.float64)
