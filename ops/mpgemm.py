"""Products with quantised weights: y = act(x @ W.T + bias) + residual, where W never lies in memory as floats."""
from __future__ import annotations

from typing import Any

import numpy as np

import tilelang as tile
from tilelang.args import describe, empty_like
from tilelang.errors import TargetError
from tilelang.ops.common import rows
from tilelang.ops.mpgemm_cpu import dequant_gemv_kernel, integer_gemv_kernel, quantize_kernel, spread_kernel
from tilelang.ops.mpgemm_pack import Panels, panels
from tilelang.ops.mpgemm_plan import Plan, plan
from tilelang.quant import QuantTensor

ACTIVATIONS = (None, "gelu", "relu", "silu")


def mpgemm(x: Any, w: QuantTensor, bias: Any = None, activation: str | None = None, residual: Any = None,
           out_dtype: Any = None, x_dtype: str | None = None, x_group: str = "token",
           decomposition: str | None = None) -> Any:
    """act(x [..., K] @ w [N, K].T + bias [N]) + residual [..., N].

    `x` (f32, f16 or bf16) takes part as it is, in f32; with `x_dtype` "i8", "i6" or "i4" it is quantised on the way
    in: q = round(x / s), s = max |x| / (2**(b-1) - 1) of each token, or of each group of the weight's columns where
    `x_group` is "group". Sums of q times whole-numbered codes are then exact within a group. `activation` is None,
    "gelu", "relu" or "silu". The result has `out_dtype`, or that of x. `decomposition` overrides the choice of
    `tilelang.ops.mpgemm_plan.plan`. The first product with a weight repacks it; that is kept as long as `w` lives.

    Raises ValueError for arguments that do not fit, TargetError for compositions without a kernel."""
    flat, (n, k) = rows(x), w.shape
    if flat.shape[1] != k:
        raise ValueError(f"x must be [..., {k}] for a weight {w.shape}, got {tuple(x.shape)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, got {activation!r}")
    if x_group not in ("token", "group"):
        raise ValueError(f"x_group must be 'token' or 'group', got {x_group!r}")
    if bias is not None and tuple(bias.shape) != (n,):
        raise ValueError(f"bias must be [{n}], got {tuple(bias.shape)}")
    if residual is not None and tuple(residual.shape) != (*x.shape[:-1], n):
        raise ValueError(f"residual must be {(*x.shape[:-1], n)}, got {tuple(residual.shape)}")
    if tile.on_gpu(x):
        raise TargetError("`mpgemm` has no kernel for a GPU yet", needs="x on the CPU", got="x on a GPU",
                          try_="x.cpu()")
    if w.corrections:
        raise TargetError("`mpgemm` has no kernel for corrections yet", needs="a weight without corrections",
                          got=str(w), try_="apply them to the result: x @ (a @ b).T is (x @ b.T) @ a.T")
    dt = describe("x", x, None).dtype
    out = dt if out_dtype is None else tile.dtype(str(out_dtype).removeprefix("torch."))
    y = empty_like(x, (flat.shape[0], n), out)
    chosen = plan(x_dtype or dt, w, flat.shape[0], decomposition)
    if flat.shape[0]:
        _run(chosen, flat, panels(w), y, bias, None if residual is None else rows(residual), activation, x_dtype,
             x_group == "token")
    return y.reshape(*x.shape[:-1], n)


def _run(chosen: Plan, x: Any, w: Panels, y: Any, bias: Any, residual: Any, activation: str | None,
         x_dtype: str | None, token: bool) -> None:
    """Runs a plan on x [M, K] into y [M, N]."""
    m, blocks, g = x.shape[0], w.words.shape[1], w.groups
    if w.permutation is not None:
        x = x[:, w.permutation]
    spread, sums = np.zeros((m, blocks, 32), np.float32), np.empty((m, g), np.float32)
    spread_kernel(x, spread, sums, GROUP=w.group, DEPTH=w.depth)
    q = scale = None
    if x_dtype is not None:
        q, scale = np.empty((m, g, w.depth), np.int8), np.empty((m, g), np.float32)
        quantize_kernel(spread.reshape(m, g, w.depth), q, scale, sums, G=g, D=w.depth,
                        TOP=2.0 ** (tile.dtype(x_dtype).bits - 1) - 1, TOKEN=token)
    weight = (w.words, w.scale, w.zero if w.zeros else NOTHING, NOTHING if w.minimum is None else w.minimum,
              NOTHING[0, 0] if bias is None else bias, NOTHING[0] if residual is None else residual, y)
    consts = {"BITS": w.bits, "DEPTH": w.depth, "ROWS": chosen.rows, "ZERO": None if w.zeros else w.zero,
              "MINIMUM": w.minimum is not None, "HAS_BIAS": bias is not None, "HAS_RESIDUAL": residual is not None,
              "ACT": activation}
    if chosen.decomposition == "int_dot":
        assert q is not None and scale is not None
        integer_gemv_kernel(q.view(np.int32).reshape(m, blocks, 8), scale, sums, *weight, **consts)
        return
    if q is not None and scale is not None:
        spread, sums = (q * scale[..., None]).reshape(spread.shape), sums * scale
    dequant_gemv_kernel(spread, sums, *weight, DTYPE=w.dtype, **consts)


NOTHING = np.zeros((1, 1, 64), np.float32)
"""Stands for a tensor that a kernel does not read."""
