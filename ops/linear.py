"""Linear layer: y = act(x @ w.T + bias)."""
from __future__ import annotations

from typing import Any

import numpy as np

import tilelang as tile
from tilelang.ops.activation import gelu_exact
from tilelang.ops.common import dtype_of, rows
from tilelang.ops.matmul import blocks, even, matmul, packed_size
from tilelang.ops.reduction import sum_rows
from tilelang.targets import cpu_registers

FEW = 12
"""Rows up to which blocks have as many as x, on CPUs with 16 registers."""


@tile.function
def linear_block(x, w, bias, m, n, BM, BN, BK):
    """The block (m, n) of x @ w.T + bias, in f32."""
    acc = tile.zeros((BM, BN), tile.f32)
    for k in tile.range(0, x.shape[1], BK, stages=3):
        acc += tile.dot(tile.load(x, (m * BM, k), (BM, BK)), tile.load(w, (n * BN, k), (BN, BK)).T)
    return acc if bias is None else acc + tile.load(bias, (n * BN,), (BN,)).to(tile.f32)


@tile.kernel
def linear_kernel(x: tile.Tensor[tile.T, "M K"], w: tile.Tensor[tile.T, "N K"], y: tile.Out[tile.T, "M N"],
                  BM: tile.Const, BN: tile.Const, BK: tile.Const, GELU: tile.Const,
                  bias: tile.Tensor[tile.T, "N"] = None):
    """One block of y for each program; weights are stored by output feature, as torch stores them."""
    m, n = tile.grid(tile.cdiv(x.shape[0], BM), tile.cdiv(w.shape[0], BN), group=8)
    acc = linear_block(x, w, bias, m, n, BM, BN, BK)
    if GELU:
        acc = gelu_exact(acc)
    tile.store(y, (m * BM, n * BN), acc.to(y.dtype))


@tile.kernel
def linear_gelu_backward_kernel(x: tile.Tensor[tile.T, "M K"], w: tile.Tensor[tile.T, "N K"],
                                dy: tile.Tensor[tile.T, "M N"], dz: tile.Out[tile.T, "M N"], BM: tile.Const,
                                BN: tile.Const, BK: tile.Const, bias: tile.Tensor[tile.T, "N"] = None):
    """dz = dy * gelu'(z), where z = x @ w.T + bias is computed again."""
    m, n = tile.grid(tile.cdiv(x.shape[0], BM), tile.cdiv(w.shape[0], BN), group=8)
    z = linear_block(x, w, bias, m, n, BM, BN, BK)
    dz_block = tile.load(dy, (m * BM, n * BN), (BM, BN)).to(tile.f32) * tile.derivative(gelu_exact(z), z)
    tile.store(dz, (m * BM, n * BN), dz_block.to(dz.dtype))


def _blocks(x: Any, w: Any) -> dict[str, int]:
    (m, k), n, gpu = x.shape, w.shape[0], tile.on_gpu(x, w)
    return dict(zip(("BM", "BN", "BK"), few_rows(max(m, 1), k) if m <= FEW and not gpu and cpu_registers() == 16 else
                    blocks(m, n, k, packed_size(dtype_of(x), gpu), gpu), strict=True))


def few_rows(m: int, k: int) -> tuple[int, int, int]:
    """(BM, BN, BK) of a product of few rows with 16 registers: few rows of w at a time, where they are pages long, for
    memory to read along them; else so many that x stays in the first level of the caches with them."""
    return (m, 8, even(k, 4096, 8)) if m <= 2 and k >= 1024 else (m, 64, even(k, 384, 8))


def linear_backward(x: Any, w: Any, dy: Any, bias: Any = None, activation: str | None = None) -> tuple[Any, Any, Any]:
    """Gradients of `linear` by x [..., K], w [N, K] and bias [N], for the gradient dy [..., N] of its result."""
    flat, dz = rows(x), rows(dy)
    if activation == "gelu":
        dz = linear_gelu_backward_kernel(flat, w, dz, bias=bias, **_blocks(flat, w))
    return matmul.fn(dz, w).reshape(x.shape), matmul.fn(dz.T, flat), sum_rows(dz, w)


@tile.torch_op("tilelang::linear", backward=linear_backward, outputs="y", dims="... K, n K, n -> ... n",
               autocast="lower")
def linear(x: Any, w: Any, bias: Any = None, activation: str | None = None) -> Any:
    """act(x [..., K] @ w[N, K].T + bias [N]) with activation None or "gelu"; f32 accumulation. Raises ValueError for
    another activation."""
    if activation not in (None, "gelu"):
        raise ValueError(f"activation must be None or 'gelu', got {activation!r}")
    flat = rows(x)
    out = linear_kernel(flat, w, bias=bias, GELU=activation == "gelu", **_blocks(flat, w))
    return out.reshape(*x.shape[:-1], w.shape[0])


def reference(x: Any, w: Any, bias: Any) -> Any:
    """f64 without activation."""
    return np.asarray(x, np.float64) @ np.asarray(w, np.float64).T + np.asarray(bias, np.float64)
