"""Gradients of `mpgemm` by what is not the weight."""
from __future__ import annotations

from typing import Any

import numpy as np

import tilelang as tile
from tilelang.args import empty_like
from tilelang.ops.activation import gelu_exact, silu
from tilelang.ops.common import block
from tilelang.ops.mpgemm import blocks
from tilelang.ops.mpgemm.corrections import added
from tilelang.quant import QuantTensor, RowParts
from tilelang.quant.nodes import integers_of


@tile.kernel
def activation_backward_kernel(z: tile.Tensor[tile.f32, "M N"], dy: tile.Tensor[tile.T, "M N"],
                               dz: tile.Out[tile.T, "M N"], BM: tile.Const, BN: tile.Const, ACT: tile.Const):
    """dz = dy * act'(z)."""
    m, n = tile.grid(tile.cdiv(z.shape[0], BM), tile.cdiv(z.shape[1], BN))
    v = tile.load(z, (m * BM, n * BN), (BM, BN))
    if ACT == "relu":
        slope = tile.where(v > 0.0, 1.0, 0.0)
    else:
        slope = tile.derivative(gelu_exact(v) if ACT == "gelu" else silu(v), v)
    g = tile.load(dy, (m * BM, n * BN), (BM, BN)).to(tile.f32) * slope
    tile.store(dz, (m * BM, n * BN), g.to(dz.dtype))


def through(activation: str, z: Any, dy: Any) -> Any:
    """The gradient by z f32 [M, N] of act(z), in the dtype of dy [M, N]."""
    sizes = {"BM": block(z.shape[0], 16, 1), "BN": block(z.shape[1], 256, 16)}
    return activation_backward_kernel(z, dy, ACT=activation, **sizes)


def by_x(dz: Any, w: QuantTensor) -> Any:
    """dz [M, N] @ W, f32 [M, K]: blocks of W are made where they are used."""
    dx = empty_like(dz, (dz.shape[0], w.shape[1]), tile.f32)
    if not dz.shape[0]:
        return dx
    if isinstance(w.codes, RowParts):
        dx[...] = 0
        rows, start = np.arange(w.shape[0]) if w.codes.rows is None else integers_of(w.codes.rows), 0
        for part in w.codes.parts:
            dx += by_x(dz[:, rows[start:start + part.shape[0]]], part)
            start += part.shape[0]
        return dx
    blocks.backward(dz, w, dx)
    if w.permutation is not None:
        stored, dx = dx, empty_like(dx, dx.shape, tile.f32)
        dx[:, w.permutation] = stored
    return dx + added(dz, w, transposed=True) if w.corrections else dx
