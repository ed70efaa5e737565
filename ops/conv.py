"""Causal depthwise convolution over time, as in Mamba (Gu and Dao, 2023)."""
from __future__ import annotations

from typing import Any

import numpy as np

import tilelang as tile
from tilelang.args import empty_like
from tilelang.ops.activation import silu
from tilelang.ops.common import block, check_floats, dtype_of


@tile.function
def convolved(x, weight, bias, b, d, s, TAPS, BD, BS):
    """bias + sum_t weight[t] x[s - (TAPS - 1) + t], in f32; before the first step everything is 0."""
    z = tile.zeros((BD, BS), tile.f32)
    for t in tile.static_range(TAPS):
        w = tile.load(weight, (d, t), (BD, None)).to(tile.f32)[:, None]
        z += w * tile.load(x, (b, d, s - (TAPS - 1) + t), (BD, BS)).to(tile.f32)
    return z if bias is None else z + tile.load(bias, (d,), (BD,)).to(tile.f32)[:, None]


@tile.kernel
def conv_kernel(x: tile.Tensor[tile.T, "B D S"], weight: tile.Tensor[tile.T, "D W"], y: tile.Out[tile.T, "B D S"],
                TAPS: tile.Const, SILU: tile.Const, BD: tile.Const, BS: tile.Const,
                bias: tile.Tensor[tile.T, "D"] = None):
    """One block of channels and steps for each program."""
    B, D, S = x.shape
    b, d, s = tile.grid(B, tile.cdiv(D, BD), tile.cdiv(S, BS))
    z = convolved(x, weight, bias, b, d * BD, s * BS, TAPS, BD, BS)
    tile.store(y, (b, d * BD, s * BS), (silu(z) if SILU else z).to(y.dtype))


@tile.kernel
def conv_slope_kernel(x: tile.Tensor[tile.T, "B D S"], weight: tile.Tensor[tile.T, "D W"],
                      dy: tile.Tensor[tile.T, "B D S"], dz: tile.Out[tile.f32, "B D S"], TAPS: tile.Const,
                      BD: tile.Const, BS: tile.Const, bias: tile.Tensor[tile.T, "D"] = None):
    """dz = dy silu'(z), where the convolution z is computed again."""
    B, D, S = x.shape
    b, d, s = tile.grid(B, tile.cdiv(D, BD), tile.cdiv(S, BS))
    z = convolved(x, weight, bias, b, d * BD, s * BS, TAPS, BD, BS)
    grad = tile.load(dy, (b, d * BD, s * BS), (BD, BS)).to(tile.f32)
    tile.store(dz, (b, d * BD, s * BS), grad * tile.derivative(silu(z), z))


@tile.kernel
def conv_dx_kernel(weight: tile.Tensor[tile.T, "D W"], dz: tile.Tensor[tile.U, "B D S"],
                   dx: tile.Out[tile.T, "B D S"], TAPS: tile.Const, BD: tile.Const, BS: tile.Const):
    """dx[s] = sum_t weight[t] dz[s + (TAPS - 1) - t]."""
    B, D, S = dz.shape
    b, d, s = tile.grid(B, tile.cdiv(D, BD), tile.cdiv(S, BS))
    total = tile.zeros((BD, BS), tile.f32)
    for t in tile.static_range(TAPS):
        w = tile.load(weight, (d * BD, t), (BD, None)).to(tile.f32)[:, None]
        total += w * tile.load(dz, (b, d * BD, s * BS + (TAPS - 1) - t), (BD, BS)).to(tile.f32)
    tile.store(dx, (b, d * BD, s * BS), total.to(dx.dtype))


@tile.kernel
def conv_dw_kernel(x: tile.Tensor[tile.T, "B D S"], dz: tile.Tensor[tile.U, "B D S"],
                   dweight: tile.Out[tile.T, "D W"], dbias: tile.Out[tile.T, "D"], BD: tile.Const, BS: tile.Const):
    """dweight[t] = sum of dz[s] x[s - (W - 1) + t], dbias = sum of dz, over all sequences and steps, always in one
    order; one tap and block of channels for each program."""
    B, D, S = x.shape
    W = dweight.shape[1]
    d, t = tile.grid(tile.cdiv(D, BD), tile.maximum(W, 1))
    dw, db = tile.zeros((BD,), tile.f32), tile.zeros((BD,), tile.f32)
    for b in tile.range(0, B):
        for s in tile.range(0, S, BS):
            grad = tile.load(dz, (b, d * BD, s), (BD, BS)).to(tile.f32)
            dw += (grad * tile.load(x, (b, d * BD, s - (W - 1) + t), (BD, BS)).to(tile.f32)).sum(1)
            db += grad.sum(1)
    tile.store(dweight, (d * BD, t), dw.to(dweight.dtype), (BD, None))
    if t == 0:
        tile.store(dbias, (d * BD,), db.to(dbias.dtype))


def _blocks(x: Any) -> dict[str, int]:
    return {"BD": block(x.shape[1], 8, 1), "BS": block(x.shape[2], 256, 16)}


def _backward(x: Any, weight: Any, dy: Any, bias: Any = None, activation: str | None = None) -> tuple[Any, Any, Any]:
    """(dx, dweight, dbias)"""
    sizes, taps, dz = _blocks(x), weight.shape[1], dy
    if activation == "silu":
        dz = conv_slope_kernel(x, weight, dy, bias=bias, TAPS=taps, **sizes)
    dx = conv_dx_kernel(weight, dz, TAPS=taps, **sizes)
    dweight = empty_like(weight, tuple(weight.shape), dtype_of(weight))
    return dx, *conv_dw_kernel(x, dz, dweight=dweight, **sizes)


@tile.torch_op("tilelang::causal_conv1d", backward=_backward, outputs="y", autocast="widest",
               dims="b d S, d W, d -> b d S")
def causal_conv1d(x: Any, weight: Any, bias: Any = None, activation: str | None = None) -> Any:
    """act(bias [D] + sum_t weight[d, t] x[b, d, s - (W - 1) + t]) of x [B, D, S], weight [D, W], where x is 0 before
    its first step; activation None or "silu". In f32, in the dtype of x. Raises ValueError for another activation,
    and for other than f32, f16 and bf16."""
    if activation not in (None, "silu"):
        raise ValueError(f"activation must be None or 'silu', got {activation!r}")
    check_floats("causal_conv1d", x, 3)
    return conv_kernel(x, weight, bias=bias, TAPS=weight.shape[1], SILU=activation == "silu", **_blocks(x))


def reference(x: Any, weight: Any, bias: Any = None, activation: str | None = None) -> Any:
    """f64."""
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    taps, steps = weight.shape[1], x.shape[2]
    before = np.concatenate([np.zeros((*x.shape[:2], taps - 1)), x], 2)
    z = sum(weight[:, t, None] * before[:, :, t:t + steps] for t in range(taps))
    z = z if bias is None else z + np.asarray(bias, np.float64)[:, None]
    return z / (1.0 + np.exp(-z)) if activation == "silu" else z
