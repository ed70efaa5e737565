"""Runs a TILE function as machine code on NumPy arrays in storage form."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tilelang.ir import codec
from tilelang.ir.core import Function, TensorType
from tilelang.ir.packed import Packed
from tilelang.native import load


def native(fn: Function) -> Callable[[list[Any]], None]:
    """Compiled code with the interpreter's calling convention: arguments are written in place."""
    code = load(fn)

    def call(args: list[Any]) -> None:
        flat: list[Any] = []
        packed: list[tuple[Packed, Any]] = []
        for p, a in zip(fn.params, args, strict=True):
            t = p.type
            if not isinstance(t, TensorType):
                flat.append(codec.decode(a, t.dtype).item())
            elif t.dtype.packed:
                stored = Packed.from_codes(codec.to_bits(a, t.dtype), t.dtype, a.shape[-1] * t.dtype.bits)
                flat += [stored.buffer, *stored.shape, *stored.strides]
                packed.append((stored, a))
            else:
                flat.append(a)
        code(*flat)
        for stored, a in packed:
            a[...] = codec.from_bits(stored.codes(), stored.dtype)
    return call


def rows(array: Any) -> Any:
    """A copy whose rows are apart in memory."""
    wide = np.zeros((*array.shape[:-1], array.shape[-1] + 3), array.dtype)
    wide[..., :array.shape[-1]] = array
    return wide[..., :array.shape[-1]]
