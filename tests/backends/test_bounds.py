"""Blocks at offsets that no tensor has: reads give the fill value and writes are dropped, whatever wraps around."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.backends.cpu.native import native
from tests.backends.simt.emulated import emulated
from tilelang.ir import interpreter
from tilelang.ir.core import Function
from tilelang.ir.parser import parse

TEXT = """\
func @at(%x: tensor<in f32, N:1>, %o: {dt}, %y: tensor<inout f32, 16:1>, %z: tensor<inout f32, N:1>) tile {{
  %0 = const {{value=0, dtype=i32}} : i32
  %1 = load %x, %o {{shape=(16,), axes=(0,), fill=7}} : f32[16]
  store %y, %0, %1 {{axes=(0,)}}
  store %z, %o, %1 {{axes=(0,)}}
}}
"""
OFFSETS = [0, -3, 30, 40,
           *(sign * (1 << bits) + d for bits in (31, 32, 63) for sign in (-1, 1) for d in (-16, -1, 0, 5))]
CASES = [(dt, o) for dt, low, high in (("i32", -(1 << 31), 1 << 31), ("u32", 0, 1 << 32), ("i64", -(1 << 63), 1 << 63))
         for o in OFFSETS if low <= o < high]


@pytest.mark.parametrize("backend", ["cpu", "cuda:sm_80", "hip:gfx942"])
@pytest.mark.parametrize("dt", ["i32", "u32", "i64"])
def test_offsets_outside_a_tensor(backend: str, dt: str) -> None:
    fn: Function = parse(TEXT.format(dt=dt))
    code: Callable[[list[Any]], None] = native(fn) if backend == "cpu" else emulated(fn, backend)
    for offset in [o for t, o in CASES if t == dt]:
        value = np.asarray(offset, {"i32": np.int32, "u32": np.uint32, "i64": np.int64}[dt])
        x = np.arange(1, 38, dtype=np.float32)
        want, got = ([x, value, np.zeros(16, np.float32), np.zeros(37, np.float32)] for _ in range(2))
        interpreter.run(fn, want)
        code(got)
        for w, g in zip(want, got, strict=True):
            np.testing.assert_array_equal(g, w, err_msg=str(offset))
