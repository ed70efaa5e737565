"""Linear layer: y = act(x @ w.T + bias)."""
from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

import tilelang as tile
from tilelang.jit import only_allocates
from tilelang.ops.activation import gelu_exact, gelu_form
from tilelang.ops.common import check_floats, dtype, even, rows
from tilelang.ops.matmul import blocks, matmul, packed_size
from tilelang.ops.reduction import sum_rows
from tilelang.targets import cpu_registers

FEW, ROWS = {16: 48, 32: 12}, 14
"""Rows of f32 up to which the weight is better not packed, on CPUs with so many registers, and most rows of a block
then."""


@tile.function
def linear_block(x, w, bias, m, n, BM, BN, BK):
    """The block (m, n) of x @ w.T + bias, in f32."""
    acc = tile.zeros((BM, BN), tile.f32)
    for k in tile.range(0, x.shape[1], BK, stages=3):
        acc += tile.dot(tile.load(x, (m * BM, k), (BM, BK)), tile.load(w, (n * BN, k), (BN, BK)).T)
    return acc if bias is None else acc + tile.load(bias, (n * BN,), (BN,)).to(tile.f32)


@tile.kernel
def linear_kernel(x: tile.Tensor[tile.T, "M K"], w: tile.Tensor[tile.T, "N K"], y: tile.Out[tile.T, "M N"],
                  BM: tile.Const, BN: tile.Const, BK: tile.Const, ACT: tile.Const,
                  bias: tile.Tensor[tile.T, "N"] = None):
    """One block of y for each program; weights are stored by output feature, as torch stores them."""
    m, n = tile.grid(tile.cdiv(x.shape[0], BM), tile.cdiv(w.shape[0], BN), group=8)
    acc = linear_block(x, w, bias, m, n, BM, BN, BK)
    if ACT is not None:
        acc = ACT(acc)
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
    if only_allocates():
        return {"BM": 1, "BN": 1, "BK": 1}
    return _sizes(*x.shape, w.shape[0], x.dtype, tile.on_gpu(x, w), tile.get_num_threads())


@lru_cache(maxsize=1024)
def _sizes(m: int, k: int, n: int, dt: Any, gpu: bool, threads: int) -> dict[str, int]:
    """Block extents for x [m, k] and w [n, k] of a torch or NumPy dtype; those of `blocks` go by the threads, too."""
    size = packed_size(dtype(dt), gpu)
    few = not gpu and m <= FEW[cpu_registers()] * size // 4
    found = few_rows(max(m, 1), k) if few else blocks(m, n, k, size, gpu)
    return dict(zip(("BM", "BN", "BK"), found, strict=True))


def few_rows(m: int, k: int) -> tuple[int, int, int]:
    """(BM, BN, BK) of a product of few rows: few rows of w at a time, where they are pages long, for memory to read
    along them; else so many that x stays in the first level of the caches with them."""
    if m <= 2 and k >= 1024:
        return m, 8, even(k, 4096, 8)
    return even(m, ROWS, 1), 64, next((deep for deep in range(384, 255, -8) if k % deep == 0), even(k, 384, 8))


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
    another activation, and for other than f32, f16 and bf16."""
    if activation not in (None, "gelu"):
        raise ValueError(f"activation must be None or 'gelu', got {activation!r}")
    check_floats("linear", x)
    flat = rows(x)
    out = linear_kernel(flat, w, bias=bias, ACT=gelu_form(x, w) if activation == "gelu" else None,
                        **_blocks(flat, w))
    return out if flat is x else out.reshape(*x.shape[:-1], w.shape[0])


def reference(x: Any, w: Any, bias: Any) -> Any:
    """f64 without activation."""
    return np.asarray(x, np.float64) @ np.asarray(w, np.float64).T + np.asarray(bias, np.float64)
