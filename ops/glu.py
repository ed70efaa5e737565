"""Gated linear units: SwiGLU and GEGLU (Shazeer, 2020)."""
from __future__ import annotations

from typing import Any

import numpy as np

import tilelang as tile
from tilelang.ops import activation
from tilelang.ops.common import check_floats, rows

ACTIVATIONS = {"silu": activation.silu, "gelu": activation.gelu_exact}


@tile.kernel
def glu_kernel(gate: tile.Tensor[tile.T, "M N"], up: tile.Tensor[tile.T, "M N"], y: tile.Out[tile.T, "M N"],
               ACT: tile.Const, BN: tile.Const = 2048):
    """y = ACT(gate) * up, in f32."""
    m, n = tile.grid(gate.shape[0], tile.cdiv(gate.shape[1], BN))
    g, u = tile.load(gate, (m, n * BN), (BN,)).to(tile.f32), tile.load(up, (m, n * BN), (BN,)).to(tile.f32)
    tile.store(y, (m, n * BN), (ACT(g) * u).to(y.dtype))


@tile.kernel
def glu_backward_kernel(gate: tile.Tensor[tile.T, "M N"], up: tile.Tensor[tile.T, "M N"],
                        dy: tile.Tensor[tile.T, "M N"], dgate: tile.Out[tile.T, "M N"], dup: tile.Out[tile.T, "M N"],
                        ACT: tile.Const, BN: tile.Const = 2048):
    """dgate = dy * up * ACT'(gate), dup = dy * ACT(gate), in f32."""
    m, n = tile.grid(gate.shape[0], tile.cdiv(gate.shape[1], BN))
    g, u = tile.load(gate, (m, n * BN), (BN,)).to(tile.f32), tile.load(up, (m, n * BN), (BN,)).to(tile.f32)
    d, a = tile.load(dy, (m, n * BN), (BN,)).to(tile.f32), ACT(g)
    tile.store(dgate, (m, n * BN), (d * u * tile.derivative(a, g)).to(dgate.dtype))
    tile.store(dup, (m, n * BN), (d * a).to(dup.dtype))


def _backward(gate: Any, up: Any, dy: Any, activation: str = "silu") -> tuple[Any, Any]:
    dgate, dup = glu_backward_kernel(rows(gate), rows(up), rows(dy), ACT=ACTIVATIONS[activation])
    return dgate.reshape(gate.shape), dup.reshape(gate.shape)


@tile.torch_op("tilelang::glu", backward=_backward, outputs="y", dims="... n, ... n -> ... n", autocast="widest")
def glu(gate: Any, up: Any, activation: str = "silu") -> Any:
    """act(gate) * up of [..., N], with activation "silu" (SwiGLU) or "gelu" (GEGLU); in f32, in the dtype of `gate`.
    The halves of one product may be passed as they are: `glu(*x.chunk(2, -1))`. Raises ValueError for another
    activation, and for tensors of two shapes or other than f32, f16 and bf16."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}")
    check_floats("glu", gate)
    if gate.shape != up.shape:
        raise ValueError(f"gate and up need one shape, got {list(gate.shape)} and {list(up.shape)}")
    return glu_kernel(rows(gate), rows(up), ACT=ACTIVATIONS[activation]).reshape(gate.shape)


def reference(gate: Any, up: Any, act: str = "silu") -> Any:
    """f64."""
    g = np.asarray(gate, np.float64)
    return (g / (1.0 + np.exp(-g)) if act == "silu" else activation.reference(g)) * np.asarray(up, np.float64)


def backward_reference(gate: Any, up: Any, dy: Any, act: str = "silu") -> tuple[Any, Any]:
    """f64."""
    g, u, dy = (np.asarray(x, np.float64) for x in (gate, up, dy))
    s = 1.0 / (1.0 + np.exp(-g))
    slope = s * (1.0 + g * (1.0 - s)) if act == "silu" else activation.backward_reference(g, 1.0)
    return dy * u * slope, dy * reference(g, 1.0, act)
