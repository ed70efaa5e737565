"""Layer norm and RMS norm over the last dimension, with statistics in f32."""
from __future__ import annotations

from typing import Any

import numpy as np

import tilelang as tile
from tilelang.ops.common import block, rows


@tile.kernel
def layer_norm_kernel(x: tile.Tensor[tile.T, "M N"], weight: tile.Tensor[tile.T, "N"], bias: tile.Tensor[tile.T, "N"],
                      y: tile.Out[tile.T, "M N"], eps: tile.f32, BM: tile.Const, BN: tile.Const):
    """(x - mean) / sqrt(var + eps) * weight + bias (Ba et al., 2016); BN >= N."""
    (M, N) = x.shape
    m = tile.grid(tile.cdiv(M, BM))
    v = tile.load(x, (m * BM, 0), (BM, BN)).to(tile.f32)
    count = N.to(tile.f32)
    mean = v.sum(1, keepdims=True) / count
    centred = tile.where(tile.arange(BN)[None, :] < N, v - mean, 0.0)
    scale = tile.rsqrt((centred * centred).sum(1, keepdims=True) / count + eps)
    w, b = tile.load(weight, (0,), (BN,)).to(tile.f32), tile.load(bias, (0,), (BN,)).to(tile.f32)
    tile.store(y, (m * BM, 0), (centred * scale * w + b).to(y.dtype))


@tile.kernel
def rms_norm_kernel(
    x: tile.Tensor[tile.T, "M N"],
    weight: tile.Tensor[tile.T, "N"],
    y: tile.Out[tile.T, "M N"],
    eps: tile.f32,
    BM: tile.Const,
    BN: tile.Const,
):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, 2019); BN >= N."""
    (M, N) = x.shape
    m = tile.grid(tile.cdiv(M, BM))
    v = tile.load(x, (m * BM, 0), (BM, BN)).to(tile.f32)
    scale = tile.rsqrt((v * v).sum(1, keepdims=True) / N.to(tile.f32) + eps)
    tile.store(y, (m * BM, 0), (v * scale * tile.load(weight, (0,), (BN,)).to(tile.f32)).to(y.dtype))


def _shape(x: Any) -> tuple[Any, dict[str, int]]:
    flat = rows(x)
    n = flat.shape[1]
    return flat, {"BM": max(1, 2048 // max(n, 1)), "BN": block(n, 1 << 20, 64)}


def layer_norm(x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> Any:
    """Layer norm of [..., N] with weight and bias [N], in the dtype of `x`."""
    flat, consts = _shape(x)
    return layer_norm_kernel(flat, weight, bias, eps=eps, **consts).reshape(x.shape)


def rms_norm(x: Any, weight: Any, eps: float = 1e-6) -> Any:
    """RMS norm of [..., N] with weight [N], in the dtype of `x`."""
    flat, consts = _shape(x)
    return rms_norm_kernel(flat, weight, eps=eps, **consts).reshape(x.shape)


def layer_norm_reference(x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> Any:
    """f64."""
    x = np.asarray(x, np.float64)
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred ** 2).mean(-1, keepdims=True) + eps) * weight + bias


def rms_norm_reference(x: Any, weight: Any, eps: float = 1e-6) -> Any:
    """f64."""
    x = np.asarray(x, np.float64)
    return x / np.sqrt((x ** 2).mean(-1, keepdims=True) + eps) * weight
