"""Layer norm and RMS norm over the last dimension, with statistics in f32; alone or of a sum with a residual."""
from __future__ import annotations

from typing import Any

import numpy as np

import tilelang as tile
from tilelang.args import empty_like
from tilelang.ops.common import check_floats, dtype_of, rows, rowwise
from tilelang.ops.reduction import sum_rows

PARTS = 32
"""Into how many sums of rows the gradients of weights are cut at most: programs that run at once."""


@tile.function
def standardise(v, N, eps, BN, CENTRED):
    """(rows of v with mean square 1, after their mean is taken off if CENTRED; what they were multiplied with)."""
    count = N.to(tile.f32)
    if CENTRED:
        v = tile.where(tile.arange(BN)[None, :] < N, v - v.sum(1, keepdims=True) / count, 0.0)
    scale = tile.rsqrt((v * v).sum(1, keepdims=True) / count + eps)
    return v * scale, scale


@tile.function
def standardise_backward(unit, scale, g, N, BN, CENTRED):
    """The gradient of `standardise` for the gradient g of its result `unit`."""
    count = N.to(tile.f32)
    out = g - unit * ((g * unit).sum(1, keepdims=True) / count)
    if CENTRED:
        out = out - g.sum(1, keepdims=True) / count
    return out * scale


@tile.kernel
def layer_norm_kernel(x: tile.Tensor[tile.T, "M N"], weight: tile.Tensor[tile.T, "N"], bias: tile.Tensor[tile.T, "N"],
                      y: tile.Out[tile.T, "M N"], eps: tile.f32, BM: tile.Const, BN: tile.Const):
    """(x - mean) / sqrt(var + eps) * weight + bias (Ba et al., 2016); BN >= N."""
    m = tile.grid(tile.cdiv(x.shape[0], BM))
    unit, _ = standardise(tile.load(x, (m * BM, 0), (BM, BN)).to(tile.f32), x.shape[1], eps, BN, True)
    w, b = tile.load(weight, (0,), (BN,)).to(tile.f32), tile.load(bias, (0,), (BN,)).to(tile.f32)
    tile.store(y, (m * BM, 0), (unit * w + b).to(y.dtype))


@tile.kernel
def rms_norm_kernel(x: tile.Tensor[tile.T, "M N"], weight: tile.Tensor[tile.T, "N"], y: tile.Out[tile.T, "M N"],
                    eps: tile.f32, BM: tile.Const, BN: tile.Const):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, 2019); BN >= N."""
    m = tile.grid(tile.cdiv(x.shape[0], BM))
    unit, _ = standardise(tile.load(x, (m * BM, 0), (BM, BN)).to(tile.f32), x.shape[1], eps, BN, False)
    tile.store(y, (m * BM, 0), (unit * tile.load(weight, (0,), (BN,)).to(tile.f32)).to(y.dtype))


@tile.kernel
def add_norm_kernel(x: tile.Tensor[tile.T, "M N"], residual: tile.Tensor[tile.T, "M N"],
                    weight: tile.Tensor[tile.T, "N"], y: tile.Out[tile.T, "M N"], h: tile.Out[tile.T, "M N"],
                    eps: tile.f32, BM: tile.Const, BN: tile.Const, bias: tile.Tensor[tile.T, "N"] = None):
    """h = x + residual, rounded to its dtype; y its layer norm where there is a bias, else its RMS norm; BN >= N."""
    m = tile.grid(tile.cdiv(x.shape[0], BM))
    v = tile.load(x, (m * BM, 0), (BM, BN)) + tile.load(residual, (m * BM, 0), (BM, BN))
    tile.store(h, (m * BM, 0), v)
    unit, _ = standardise(v.to(tile.f32), x.shape[1], eps, BN, bias is not None)
    out = unit * tile.load(weight, (0,), (BN,)).to(tile.f32)
    if bias is not None:
        out = out + tile.load(bias, (0,), (BN,)).to(tile.f32)
    tile.store(y, (m * BM, 0), out.to(y.dtype))


@tile.kernel
def norm_backward_kernel(x: tile.Tensor[tile.T, "M N"], weight: tile.Tensor[tile.T, "N"],
                         dy: tile.Tensor[tile.T, "M N"], dx: tile.Out[tile.T, "M N"],
                         dweight: tile.Out[tile.f32, "P N"], eps: tile.f32, BM: tile.Const, BN: tile.Const,
                         CENTRED: tile.Const, dbias: tile.Out[tile.f32, "P N"] = None,
                         more: tile.Tensor[tile.T, "M N"] = None):
    """dx (to which `more` is added), and sums of the weights' gradients over P runs of rows, which are to be added up:
    always in one order. BN >= N."""
    (M, N), P = x.shape, dweight.shape[0]
    p = tile.grid(P)
    each = tile.cdiv(tile.cdiv(M, BM), P) * BM  # rows of one program
    w = tile.load(weight, (0,), (BN,)).to(tile.f32)
    dw, db = tile.zeros((BN,), tile.f32), tile.zeros((BN,), tile.f32)
    for m in tile.range(p * each, tile.minimum(M, (p + 1) * each), BM):
        unit, scale = standardise(tile.load(x, (m, 0), (BM, BN)).to(tile.f32), N, eps, BN, CENTRED)
        g = tile.load(dy, (m, 0), (BM, BN)).to(tile.f32)
        out = standardise_backward(unit, scale, g * w, N, BN, CENTRED)
        if more is not None:
            out = out + tile.load(more, (m, 0), (BM, BN)).to(tile.f32)
        tile.store(dx, (m, 0), out.to(dx.dtype))
        dw += (g * unit).sum(0)
        if dbias is not None:
            db += g.sum(0)
    tile.store(dweight, (p, 0), dw)
    if dbias is not None:
        tile.store(dbias, (p, 0), db)


def _consts(flat: Any) -> dict[str, int]:
    return rowwise(flat.shape[1], 1 << 20)


def _backward(x: Any, weight: Any, dy: Any, eps: float, bias: bool = False, more: Any = None) -> list[Any]:
    """Gradients by x and weight, and by the bias of a layer norm where `bias`; dx with `more` added."""
    flat = rows(x)
    (m, n), consts = flat.shape, _consts(flat)
    parts = max(1, min(PARTS, -(-m // consts["BM"])))
    sums = [empty_like(x, (parts, n), tile.dtype("f32")) for _ in range(1 + bias)]
    dx = empty_like(x, (m, n), dtype_of(x))
    norm_backward_kernel(flat, weight, rows(dy), dx, sums[0], eps=eps, CENTRED=bias, dbias=sums[1] if bias else None,
                         more=None if more is None else rows(more), **consts)
    return [dx.reshape(x.shape), *(sum_rows(s, weight) for s in sums)]


def layer_norm_backward(x: Any, weight: Any, dy: Any, eps: float = 1e-5) -> tuple[Any, Any, Any]:
    """Gradients of `layer_norm` by x, weight and bias, for the gradient dy of its result."""
    dx, dweight, dbias = _backward(x, weight, dy, eps, True)
    return dx, dweight, dbias


def rms_norm_backward(x: Any, weight: Any, dy: Any, eps: float = 1e-6) -> tuple[Any, Any]:
    """Gradients of `rms_norm` by x and weight, for the gradient dy of its result."""
    dx, dweight = _backward(x, weight, dy, eps)
    return dx, dweight


def add_layer_norm_backward(h: Any, weight: Any, dy: Any, dh: Any, eps: float = 1e-5) -> tuple[Any, Any, Any]:
    """Gradients of `add_layer_norm` by x (that by residual is the same), weight and bias, for those of its results."""
    dx, dweight, dbias = _backward(h, weight, dy, eps, True, dh)
    return dx, dweight, dbias


def add_rms_norm_backward(h: Any, weight: Any, dy: Any, dh: Any, eps: float = 1e-6) -> tuple[Any, Any]:
    """Gradients of `add_rms_norm` by x (that by residual is the same) and weight, for those of its results."""
    dx, dweight = _backward(h, weight, dy, eps, more=dh)
    return dx, dweight


@tile.torch_op("tilelang::layer_norm", backward=layer_norm_backward, outputs="y", dims="... N, N, N -> ... N",
               autocast="widest")
def layer_norm(x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> Any:
    """Layer norm of [..., N] with weight and bias [N], in the dtype of `x`. Raises ValueError for other than f32, f16
    and bf16."""
    check_floats("layer_norm", x)
    flat = rows(x)
    return layer_norm_kernel(flat, weight, bias, eps=eps, **_consts(flat)).reshape(x.shape)


@tile.torch_op("tilelang::rms_norm", backward=rms_norm_backward, outputs="y", dims="... N, N -> ... N",
               autocast="widest")
def rms_norm(x: Any, weight: Any, eps: float = 1e-6) -> Any:
    """RMS norm of [..., N] with weight [N], in the dtype of `x`. Raises ValueError for other than f32, f16 and
    bf16."""
    check_floats("rms_norm", x)
    flat = rows(x)
    return rms_norm_kernel(flat, weight, eps=eps, **_consts(flat)).reshape(x.shape)


@tile.torch_op("tilelang::add_rms_norm", backward=add_rms_norm_backward, outputs="y h", wrt="x+residual weight",
               dims="... N, ... N, N -> ... N, ... N", autocast="widest")
def add_rms_norm(x: Any, residual: Any, weight: Any, eps: float = 1e-6) -> tuple[Any, Any]:
    """(RMS norm of h with weight [N], h), where h = x + residual, both [..., N]; in the dtype of `x`.
    Raises ValueError for tensors of two shapes or other than f32, f16 and bf16."""
    return _add_norm(x, residual, weight, None, eps)


@tile.torch_op("tilelang::add_layer_norm", backward=add_layer_norm_backward, outputs="y h",
               wrt="x+residual weight bias", dims="... N, ... N, N, N -> ... N, ... N", autocast="widest")
def add_layer_norm(x: Any, residual: Any, weight: Any, bias: Any, eps: float = 1e-5) -> tuple[Any, Any]:
    """(layer norm of h with weight and bias [N], h), where h = x + residual, both [..., N]; in the dtype of `x`.
    Raises ValueError for tensors of two shapes or other than f32, f16 and bf16."""
    return _add_norm(x, residual, weight, bias, eps)


def _add_norm(x: Any, residual: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, Any]:
    check_floats("a norm", x)
    if x.shape != residual.shape:
        raise ValueError(f"x and residual need one shape, got {list(x.shape)} and {list(residual.shape)}")
    flat = rows(x)
    y, h = add_norm_kernel(flat, rows(residual), weight, eps=eps, bias=bias, **_consts(flat))
    return y.reshape(x.shape), h.reshape(x.shape)


def layer_norm_reference(x: Any, weight: Any, bias: Any, eps: float = 1e-5) -> Any:
    """f64."""
    x = np.asarray(x, np.float64)
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred ** 2).mean(-1, keepdims=True) + eps) * weight + bias


def rms_norm_reference(x: Any, weight: Any, eps: float = 1e-6) -> Any:
    """f64."""
    x = np.asarray(x, np.float64)
    return x / np.sqrt((x ** 2).mean(-1, keepdims=True) + eps) * weight


def backward_reference(x: Any, weight: Any, dy: Any, eps: float, centred: bool) -> tuple[Any, Any, Any]:
    """(dx, dweight, dbias) of [M, N] in f64."""
    x, dy = np.asarray(x, np.float64), np.asarray(dy, np.float64)
    v = x - x.mean(1, keepdims=True) if centred else x
    scale = 1.0 / np.sqrt((v ** 2).mean(1, keepdims=True) + eps)
    unit, g = v * scale, dy * weight
    dx = (g - unit * (g * unit).mean(1, keepdims=True) - (g.mean(1, keepdims=True) if centred else 0.0)) * scale
    return dx, (dy * unit).sum(0), dy.sum(0)
