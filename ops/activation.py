"""Elementwise activations."""
from __future__ import annotations

import math
from typing import Any

import numpy as np

import tilelang as tile
from tilelang.ops.common import check_floats
from tilelang.targets import cpu_registers

ERF = ((0.797884524, 0.0675155595, 0.00934206601, 0.000335574005, 1.26765963e-05, 4.55703386e-08),
       (1.0, 0.251284301, 0.028590424, 0.00187868846, 7.32766057e-05, 1.19750473e-06))
"""P and Q of erf(x / sqrt(2)) = x P(x**2) / Q(x**2), |x| <= 5.5: a minimax fit, off by 1.5e-8 before rounding, and 1
at the end."""


@tile.function
def gelu_exact(x):
    """x * Phi(x), Phi the normal distribution (Hendrycks and Gimpel, 2016)."""
    return 0.5 * x * (1.0 + tile.erf(x * math.sqrt(0.5)))


@tile.function
def gelu_quotient(x):
    """The same where tables of `erf` do not fit into registers: wrong by up to 3 * 2**-24 |x| for 1.7, in half the
    instructions."""
    v = tile.where(5.5 < x, 5.5, x)
    v = tile.where(-5.5 > v, -5.5, v)
    square = v * v
    return tile.fma(0.5 * x, v * polynomial(square, ERF[0]) / polynomial(square, ERF[1]), 0.5 * x)


@tile.function
def polynomial(x, coefficients):
    """The constant first, by Horner's rule."""
    y = coefficients[-1]
    for i in tile.static_range(len(coefficients) - 2, -1, -1):
        y = tile.fma(x, y, coefficients[i])
    return y


def gelu_form(*tensors: Any) -> Any:
    """The function of GELU that suits these tensors' processor."""
    return gelu_quotient if cpu_registers() == 16 and not tile.on_gpu(*tensors) else gelu_exact


@tile.function
def silu(x):
    """x * sigmoid(x) (Elfwing et al., 2017)."""
    return x * tile.sigmoid(x)


@tile.function
def softplus(x):
    """log(1 + exp(x)), accurate to a few units wherever x lies: log(1 + e) of a small e is corrected by how much of e
    the sum lost (Kahan)."""
    e = tile.exp(-tile.abs(x))
    sum = 1.0 + e
    return tile.maximum(x, 0.0) + tile.where(sum == 1.0, e, tile.log(sum) * (e / (sum - 1.0)))


@tile.function
def finished(acc, bias, residual, added, m, n, ACT, ROWS, COLUMNS):
    """act(acc + added + bias) + residual of the block [ROWS, COLUMNS] at (m, n), in f32; None is absent."""
    if added is not None:
        acc = acc + tile.load(added, (m, n), (ROWS, COLUMNS))
    if bias is not None:
        acc = acc + tile.load(bias, (n,), (COLUMNS,)).to(tile.f32)
    if ACT == "gelu":
        acc = gelu_exact(acc)
    elif ACT == "relu":
        acc = tile.maximum(acc, 0.0)
    elif ACT == "silu":
        acc = silu(acc)
    if residual is not None:
        acc = acc + tile.load(residual, (m, n), (ROWS, COLUMNS)).to(tile.f32)
    return acc


@tile.kernel
def gelu_kernel(x: tile.Tensor[tile.T, "N"], y: tile.Out[tile.T, "N"], ACT: tile.Const = gelu_exact,
                BN: tile.Const = 8192):
    """y = ACT(x), in f32."""
    n = tile.grid(tile.cdiv(x.shape[0], BN))
    tile.store(y, (n * BN,), ACT(tile.load(x, (n * BN,), (BN,)).to(tile.f32)).to(y.dtype))


@tile.kernel
def gelu_backward_kernel(x: tile.Tensor[tile.T, "N"], dy: tile.Tensor[tile.T, "N"], dx: tile.Out[tile.T, "N"],
                         BN: tile.Const = 8192):
    """Works in f32."""
    n = tile.grid(tile.cdiv(x.shape[0], BN))
    v = tile.load(x, (n * BN,), (BN,)).to(tile.f32)
    slope = tile.derivative(gelu_exact(v), v)
    tile.store(dx, (n * BN,), (tile.load(dy, (n * BN,), (BN,)).to(tile.f32) * slope).to(dx.dtype))


def gelu_backward(x: Any, dy: Any) -> Any:
    """The gradient of `gelu` at `x`, times `dy` of its shape and dtype."""
    return gelu_backward_kernel(x.reshape(-1), dy.reshape(-1)).reshape(x.shape)


@tile.torch_op("tilelang::gelu", backward=gelu_backward, outputs="y", dims="... -> ...")
def gelu(x: Any) -> Any:
    """GELU of every element, in the dtype of `x` (f32, f16 or bf16), computed in f32. Raises ValueError for others."""
    check_floats("gelu", x, 0)
    return gelu_kernel(x.reshape(-1), ACT=gelu_form(x)).reshape(x.shape)


def reference(x: Any) -> Any:
    """f64."""
    x = np.asarray(x, np.float64)
    return 0.5 * x * (1.0 + np.vectorize(math.erf, otypes=[np.float64])(x * math.sqrt(0.5)))


def backward_reference(x: Any, dy: Any) -> Any:
    """f64."""
    x = np.asarray(x, np.float64)
    phi = 0.5 * (1.0 + np.vectorize(math.erf, otypes=[np.float64])(x * math.sqrt(0.5)))
    return dy * (phi + x * np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi))
