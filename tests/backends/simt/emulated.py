"""Runs a TILE function's CUDA text in the emulator on NumPy arrays in storage form."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tilelang import targets
from tilelang.backends.emulator.execute import execute
from tilelang.ir import codec
from tilelang.ir.core import Function, TensorType
from tilelang.ir.packed import Packed

GPUS = ("cuda:sm_75", "cuda:sm_80", "cuda:sm_89", "cuda:sm_90a", "hip:gfx90a", "hip:gfx942", "hip:gfx950")
"""Targets whose text must mean what the interpreter says."""


def emulated(fn: Function, target: str = "cuda:sm_80",
             runs: Callable[..., Any] = execute) -> Callable[[list[Any]], None]:
    """Emulated code with the interpreter's calling convention: arguments are written in place. Raises CheckError.
    `runs` takes what `execute` does."""
    code = targets.lowered(fn, target)

    def call(args: list[Any]) -> None:
        arrays, shapes, strides = [], [], []
        packed: list[tuple[Packed, Any]] = []
        for p, a in zip(fn.params, args, strict=True):
            t = p.type
            if isinstance(t, TensorType) and t.dtype.packed:
                stored = Packed.from_codes(codec.to_bits(a, t.dtype), t.dtype, a.shape[-1] * t.dtype.bits)
                arrays.append(stored.buffer)
                strides.append(stored.strides)
                packed.append((stored, a))
            else:
                arrays.append(a)
                strides.append(tuple(s // a.itemsize for s in a.strides))
            shapes.append(a.shape)
        suited = code.suited(arrays, shapes, strides)
        runs(suited.tile, suited.rendered, arrays, shapes, strides)
        for stored, a in packed:
            a[...] = codec.from_bits(stored.codes(), stored.dtype)
    return call
