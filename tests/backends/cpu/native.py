"""Runs a TILE function as machine code on NumPy arrays in storage form, and makes kernels compile for a processor."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.backends.cpu.processors import LEVELS, take_for
from tilelang.backends.cpu import machine
from tilelang.backends.cpu.compile import Lowered
from tilelang.backends.cpu.launch import Failures
from tilelang.ir import codec
from tilelang.ir.core import Function, TensorType
from tilelang.ir.packed import Packed
from tilelang.jit import Kernel
from tilelang.native import on_cpu

HOST = machine.host()


def native(fn: Function) -> Callable[[list[Any]], None]:
    """Compiled code with the interpreter's calling convention: arguments are written in place. It takes, as exported
    code does, all that its types allow, and raises ValueError for others."""
    lowered = Lowered(fn, machine.host())
    module = lowered.module("tl_entry", Failures(("ValueError", "these are not the types of the function")))
    code = on_cpu(machine.object_code(module, lowered.target))

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


def avx2() -> machine.CpuTarget:
    """The host without AVX-512 and the instructions that came after it."""
    flags = [f"-{f[1:]}" if "avx512" in f or "vnni" in f else f for f in HOST.attributes.split(",")]
    return replace(HOST, attributes=",".join(flags), vector_bytes=32, registers=16, features=frozenset({"avx2"}))


def compile_for(processor: str, monkeypatch: pytest.MonkeyPatch, *kernels: Kernel) -> None:
    """Kernels compile for the "host", as for one with "avx2" only, or for a level, for the length of a test."""
    if processor in LEVELS:
        take_for(processor, monkeypatch, *kernels)
        return
    if processor == "avx2" and "avx2" not in HOST.features:
        pytest.skip("needs a processor with AVX2")
    made = HOST if processor == "host" else avx2()
    monkeypatch.setattr(machine, "host", lambda: made)
    for kernel in kernels:
        monkeypatch.setattr(kernel, "_compiled", {})
