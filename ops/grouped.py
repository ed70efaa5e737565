"""Products of groups of rows, each with its own matrix: the experts of a mixture."""
from __future__ import annotations

from typing import Any

import numpy as np

import tilelang as tile
from tilelang.args import empty_like
from tilelang.ops.common import check_floats, dtype_of
from tilelang.ops.matmul import blocks, packed_size


@tile.kernel
def grouped_kernel(x: tile.Tensor[tile.T, "M K"], w: tile.Tensor[tile.T, "E K N"], offsets: tile.Tensor[tile.i32, "F"],
                   y: tile.Out[tile.T, "M N"], BM: tile.Const, BN: tile.Const, BK: tile.Const):
    """One block of rows of one group for each program, which counts blocks of the groups to find its own: with
    cdiv(M, BM) + E programs there is one for each, however the rows are distributed."""
    (M, K), E, N = x.shape, w.shape[0], w.shape[2]
    p, n = tile.grid(tile.cdiv(M, BM) + E, tile.cdiv(N, BN))
    group, row, end, before, last = -1, 0, 0, 0, 0
    for e in tile.range(0, E):
        lo, hi = tile.load(offsets, (e,), ()), tile.load(offsets, (e + 1,), ())
        assert (last <= lo) & (lo <= hi) & (hi <= M), "offsets do not ascend, or end behind the rows"
        last, count = hi, tile.cdiv(hi - lo, BM)
        mine = (p >= before) & (p < before + count)
        group, end = tile.where(mine, e, group), tile.where(mine, hi, end)
        row = tile.where(mine, lo + (p - before) * BM, row)
        before = before + count
    if group >= 0:
        acc = tile.zeros((BM, BN), tile.f32)
        for k in tile.range(0, K, BK, stages=3):
            acc += tile.dot(tile.load(x, (row, k), (BM, BK)), tile.load(w, (group, k, n * BN), (BK, BN)))
        rows = row + tile.arange(BM)[:, None]  # those from `end` on are the next group's
        tile.scatter(y, (rows, n * BN + tile.arange(BN)[None, :]), acc.to(y.dtype), rows < end)


@tile.kernel
def grouped_dw_kernel(x: tile.Tensor[tile.T, "M K"], dy: tile.Tensor[tile.T, "M N"],
                      offsets: tile.Tensor[tile.i32, "F"], dw: tile.Out[tile.T, "E K N"], BM: tile.Const,
                      BN: tile.Const, BK: tile.Const):
    """dw[e] = x[rows of e]^T dy[rows of e], one block of it for each program."""
    E, K, N = dw.shape
    e, k, n = tile.grid(E, tile.cdiv(K, BM), tile.cdiv(N, BN))
    lo, hi = tile.load(offsets, (e,), ()), tile.load(offsets, (e + 1,), ())
    acc = tile.zeros((BM, BN), tile.f32)
    for m in tile.range(lo, hi, BK):
        ours = m + tile.arange(BK)[:, None] < hi  # whatever other groups hold has no effect
        a = tile.where(ours, tile.load(x, (m, k * BM), (BK, BM)), 0.0)
        b = tile.where(ours, tile.load(dy, (m, n * BN), (BK, BN)), 0.0)
        acc += tile.dot(a.T, b)
    tile.store(dw, (e, k * BM, n * BN), acc.to(dw.dtype))


def _product(x: Any, w: Any, offsets: Any) -> Any:
    gpu, rows = tile.on_gpu(x, w), -(-x.shape[0] // max(1, w.shape[0]))
    if not gpu:  # half of each group's last block is empty: the fewer rows, the less; packing w for them takes longer
        rows = min(rows, max(64, rows // 4))
    bm, bn, bk = blocks(rows, w.shape[2], x.shape[1], packed_size(dtype_of(x)), gpu)
    y = empty_like(x, (x.shape[0], w.shape[2]), dtype_of(x))
    y[...] = 0  # rows of no group
    return grouped_kernel(x, w, offsets, y, BM=bm, BN=bn, BK=bk)


def _backward(x: Any, w: Any, offsets: Any, dy: Any) -> tuple[Any, Any]:
    bm, bn, bk = blocks(w.shape[1], w.shape[2], -(-x.shape[0] // max(1, w.shape[0])), packed_size(dtype_of(w)),
                        tile.on_gpu(x, w))
    dw = empty_like(w, tuple(w.shape), dtype_of(w))
    return _product(dy, w.swapaxes(1, 2), offsets), grouped_dw_kernel(x, dy, offsets, dw, BM=bm, BN=bn, BK=bk)


@tile.torch_op("tilelang::grouped_matmul", backward=_backward, outputs="y", wrt="x w", autocast="lower",
               dims="M K, E K n, F -> M n")
def grouped_matmul(x: Any, w: Any, offsets: Any) -> Any:
    """y[offsets[e]:offsets[e + 1]] = x[offsets[e]:offsets[e + 1]] @ w[e] of x [M, K], w [E, K, N] and ascending
    offsets i32 [E + 1]: rows sorted by expert. f32 accumulation, the dtype of x; rows of no group are 0. Gradients for
    x and w, deterministic. Raises AssertFailed for other offsets, ValueError for another number of them and for
    other than f32, f16 and bf16."""
    if len(offsets) != w.shape[0] + 1:
        raise ValueError(f"{w.shape[0]} matrices need {w.shape[0] + 1} offsets, got {len(offsets)}")
    check_floats("grouped_matmul", x, 2)
    return _product(x, w, offsets)


def reference(x: Any, w: Any, offsets: Any) -> Any:
    """f64."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    y = np.zeros((len(x), w.shape[2]))
    for e in range(len(w)):
        y[offsets[e]:offsets[e + 1]] = x[offsets[e]:offsets[e + 1]] @ w[e]
    return y
