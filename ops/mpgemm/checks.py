"""What `mpgemm` takes, checked before anything is repacked or compiled."""
from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

import tilelang as tile
from tilelang.args import is_torch
from tilelang.ops.mpgemm import gpu_plan
from tilelang.ops.mpgemm.plan import DECOMPOSITIONS, QUANTISED
from tilelang.quant import QuantTensor

ACTIVATIONS = (None, "gelu", "relu", "silu")
GPU = (*gpu_plan.DECOMPOSITIONS, "bitplane_popc", "f8_mma")
"""Decompositions of GPUs."""


def check_weight(x: Any, w: Any) -> None:
    """Raises TypeError for a weight that is none."""
    if not isinstance(w, QuantTensor):
        raise TypeError(f"w must be a QuantTensor, got {type(w).__name__}; " + (
            "x comes first, the weight second" if isinstance(x, QuantTensor) else
            'put Packed codes into QuantTensor(codes, scale)' if isinstance(w, tile.Packed) else
            'quantise it by tile.quantize(w, "u4", group=128)'))


def check_options(x_dtype: Any, x_group: str, decomposition: str | None) -> str | None:
    """The name of `x_dtype`. Raises ValueError for options that no product has."""
    if x_group not in ("token", "group"):
        raise ValueError(f"x_group must be 'token' or 'group', got {x_group!r}")
    if decomposition not in (None, *GPU, *DECOMPOSITIONS):
        raise ValueError(f"decomposition must be one of {', '.join((*DECOMPOSITIONS, *GPU))}, got {decomposition!r}")
    if x_dtype is None:
        return None
    dt = tile.dtype(str(x_dtype))
    if dt.name not in QUANTISED and not (dt.kind == "float" and dt.bits <= 8):
        raise ValueError(f"x_dtype must be a float of at most 8 bits, {', '.join(QUANTISED)}, or None for x as it is; "
                         f"got {dt}")
    return dt.name


def check(x: Any, shape: tuple[int, int], bias: Any, residual: Any, activation: str | None,
          out_dtype: Any = None) -> None:
    """Raises TypeError or ValueError for arguments that do not fit a weight of that shape."""
    n, k = shape
    if isinstance(x, QuantTensor | tile.Packed):
        codes = x.codes if isinstance(x, QuantTensor) else x
        raise TypeError(f"x must be an array [..., {k}] of f32, f16 or bf16, got {type(x).__name__} of "
                        f"{getattr(codes, 'dtype', 'vectors')}: activations are quantised on the way in; pass them as "
                        'they were and x_dtype="i8", for a scale of each group of columns with x_group="group"')
    for name, a in (("x", x), ("bias", bias), ("residual", residual)):
        if (a is not None or name == "x") and not (hasattr(a, "shape") and hasattr(a, "dtype")):
            raise TypeError(f"{name} must be a NumPy array or a torch tensor, got {type(a).__name__}")
        if a is not None and is_torch(x) and not is_torch(a):
            raise TypeError(f"{name} must be a torch tensor, as x is, got {type(a).__name__}; "
                            f"pass torch.from_numpy({name})")
    if dtype_named(x.dtype).name not in ("f32", "f16", "bf16"):
        raise ValueError(f"x must be f32, f16 or bf16, got {dtype_named(x.dtype)}; convert it, to f32 for example")
    if out_dtype is not None and dtype_named(out_dtype).name not in ("f16", "bf16", "f32", "f64"):
        raise ValueError(f"out_dtype must be f16, bf16, f32 or f64, got {dtype_named(out_dtype)}")
    if not x.shape or x.shape[-1] != k:
        raise ValueError(f"x must be [..., {k}] for a weight {shape}, got {tuple(x.shape)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, got {activation!r}")
    if bias is not None and tuple(bias.shape) != (n,):
        raise ValueError(f"bias must be [{n}], got {tuple(bias.shape)}")
    if residual is not None and tuple(residual.shape) != (*x.shape[:-1], n):
        raise ValueError(f"residual must be {(*x.shape[:-1], n)}, got {tuple(residual.shape)}")


@cache
def dtype_named(of: Any) -> tile.DType:
    """The number type of a dtype of NumPy's, torch's or ours, or of its name."""
    return tile.dtype(str(np.dtype(of) if isinstance(of, type) else of).removeprefix("torch."))
