"""Cross entropy of logits, and of a linear layer whose logits are never all in memory."""
from __future__ import annotations

from typing import Any

import numpy as np

import tilelang as tile
from tilelang.args import empty_like
from tilelang.ops.common import check_floats, dtype_of, rowwise
from tilelang.ops.matmul import matmul

CHUNK = 1 << 24
"""How many logits of a linear layer are in memory at once."""


@tile.kernel
def cross_entropy_kernel(x: tile.Tensor[tile.T, "M N"], target: tile.Tensor[tile.i64, "M"],
                         loss: tile.Out[tile.f32, "M"], lse: tile.Out[tile.f32, "M"], ignore: tile.i64,
                         BM: tile.Const, BN: tile.Const, STAGES: tile.Const = 1):
    """loss = lse - x[target], lse = log(sum(exp(x))) of each row; 0 where the target is `ignore`."""
    m = tile.grid(tile.cdiv(x.shape[0], BM))
    there = m * BM + tile.arange(BM) < x.shape[0]  # 0 would be no class of none
    wanted = tile.where(there, tile.load(target, (m * BM,), (BM,)), ignore)
    assert tile.all((wanted == ignore) | ((wanted >= 0) & (wanted < x.shape[1].to(tile.i64)))), "a target is no class"
    picked = tile.gather(x, (m * BM + tile.arange(BM), wanted)).to(tile.f32)
    top, total = tile.full((BM, 1), float("-inf"), tile.f32), tile.zeros((BM, 1), tile.f32)
    for n in tile.range(0, x.shape[1], BN, stages=STAGES):
        v = tile.load(x, (m * BM, n), (BM, BN), fill=float("-inf")).to(tile.f32)
        new = tile.maximum(top, v.max(1, keepdims=True))
        base = tile.where(new == float("-inf"), 0.0, new)
        total = total * tile.exp(top - base) + tile.exp(v - base).sum(1, keepdims=True)
        top = new
    sums = (top + tile.log(total)).reshape(BM)
    tile.store(lse, (m * BM,), sums)
    tile.store(loss, (m * BM,), tile.where(wanted == ignore, 0.0, sums - picked))


@tile.kernel
def cross_entropy_backward_kernel(x: tile.Tensor[tile.T, "M N"], target: tile.Tensor[tile.i64, "M"],
                                  lse: tile.Tensor[tile.f32, "M"], dloss: tile.Tensor[tile.f32, "M"],
                                  dx: tile.Out[tile.T, "M N"], ignore: tile.i64, BM: tile.Const, BN: tile.Const):
    """dx = dloss (exp(x - lse) - [column is the target]), 0 where the target is `ignore`."""
    m, n = tile.grid(tile.cdiv(x.shape[0], BM), tile.cdiv(x.shape[1], BN))
    wanted = tile.load(target, (m * BM,), (BM,))[:, None]
    d = tile.where(wanted == ignore, 0.0, tile.load(dloss, (m * BM,), (BM,))[:, None])
    v = tile.load(x, (m * BM, n * BN), (BM, BN)).to(tile.f32)
    p = tile.exp(v - tile.load(lse, (m * BM,), (BM,))[:, None])
    column = (n * BN + tile.arange(BN)[None, :]).to(tile.i64)
    tile.store(dx, (m * BM, n * BN), (d * tile.where(column == wanted, p - 1.0, p)).to(dx.dtype))


def _backward(x: Any, target: Any, lse: Any, dloss: Any, ignore_index: int = -100) -> Any:
    return cross_entropy_backward_kernel(x, target, lse, dloss, ignore=ignore_index, **rowwise(x.shape[1], 1024))


@tile.torch_op("tilelang::cross_entropy", backward=_backward, outputs="loss lse", wrt="x", autocast="widest",
               dims="m N, m -> m, m")
def _forward(x: Any, target: Any, ignore_index: int = -100) -> tuple[Any, Any]:
    check_floats("cross_entropy", x, 2)
    return cross_entropy_kernel(x, target, ignore=ignore_index, **_sizes(x))


def _sizes(x: Any) -> dict[str, int]:
    """Of the forward kernel; on a CPU the next block arrives while this one is computed."""
    return rowwise(x.shape[1], 1024) if tile.on_gpu(x) else {**rowwise(x.shape[1], 512), "STAGES": 2}


def _linear_backward(x: Any, w: Any, target: Any, lse: Any, dloss: Any, ignore_index: int = -100) -> tuple[Any, Any]:
    dx = empty_like(x, tuple(x.shape), dtype_of(x))
    dw = empty_like(w, tuple(w.shape), tile.dtype("f32"))
    dw[...] = 0
    for rows in _chunks(x, w):
        d = _backward(matmul.fn(x[rows], w.T), target[rows], lse[rows], dloss[rows], ignore_index)
        matmul.fn(d, w, out=dx[rows])
        dw += matmul.fn(d.T, x[rows])
    return dx, dw if dtype_of(w).name == "f32" else dw.to(w.dtype) if hasattr(dw, "to") else dw.astype(w.dtype)


@tile.torch_op("tilelang::linear_cross_entropy", backward=_linear_backward, outputs="loss lse", wrt="x w",
               autocast="lower", dims="m K, N K, m -> m, m")
def _linear_forward(x: Any, w: Any, target: Any, ignore_index: int = -100) -> tuple[Any, Any]:
    check_floats("linear_cross_entropy", x, 2)
    if tuple(target.shape) != (x.shape[0],):
        raise ValueError(f"{x.shape[0]} rows need as many targets, got {list(target.shape)}")
    loss, lse = (empty_like(x, (x.shape[0],), tile.dtype("f32")) for _ in range(2))
    for rows in _chunks(x, w):
        logits = matmul.fn(x[rows], w.T)
        cross_entropy_kernel(logits, target[rows], loss[rows], lse[rows], ignore=ignore_index, **_sizes(logits))
    return loss, lse


def _chunks(x: Any, w: Any) -> list[slice]:
    """Runs of rows whose logits may be in memory at once."""
    step = max(1, CHUNK // max(1, w.shape[0]))
    return [slice(at, min(at + step, x.shape[0])) for at in range(0, x.shape[0], step)]


def _reduced(loss: Any, target: Any, ignore_index: int, reduction: str) -> Any:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    return loss if reduction == "none" else loss.sum() if reduction == "sum" else \
        loss.sum() / (target != ignore_index).sum(dtype=loss.dtype)


def cross_entropy(x: Any, target: Any, ignore_index: int = -100, reduction: str = "mean") -> Any:
    """-log(softmax(x))[target] of logits x [M, N] and targets i64 [M], in f32: their "mean" over targets other than
    `ignore_index`, their "sum", or each ("none", 0 for ignored ones). Gradient for x. Raises AssertFailed for a
    target outside 0 … N - 1 that is not ignored, ValueError for another reduction."""
    return _reduced(_forward(x, target, ignore_index)[0], target, ignore_index, reduction)


def linear_cross_entropy(x: Any, w: Any, target: Any, ignore_index: int = -100, reduction: str = "mean") -> Any:
    """`cross_entropy` of x [M, K] @ w [N, K].T, a few rows of logits at a time, forward and backward: memory is that
    of CHUNK logits. Gradients for x and w; that of w is summed in f32. Raises ValueError for another number of
    targets, too."""
    return _reduced(_linear_forward(x, w, target, ignore_index)[0], target, ignore_index, reduction)


def reference(x: Any, target: Any, ignore_index: int = -100) -> Any:
    """The loss of each row, f64."""
    x = np.asarray(x, np.float64)
    lse = np.log(np.exp(x - x.max(1, keepdims=True)).sum(1)) + x.max(1)
    kept = target != ignore_index
    return np.where(kept, lse - x[np.arange(len(x)), np.where(kept, target, 0)], 0.0)
