"""`view` as machine code: any two layouts of one number of threads and bits, any two dtypes."""
from __future__ import annotations

from math import lcm
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tilelang as tile
from tests.backends.cpu.native import native
from tilelang.ir import memory, shape
from tilelang.ir.core import Builder, Function, Region, TensorType, Value
from tilelang.ir.dtypes import dtype
from tilelang.layouts import RegisterLayout
from tilelang.passes.meaning import difference

DTYPES = [dtype(n) for n in "i1 ternary u3 i4 i5 f6e3m2 f8e4m3 u8 bf16 f16 i32 f32 i64".split()]


def factors(draw: Any, n: int) -> list[int]:
    """A random factorisation into divisors above 1."""
    out = []
    while n > 1:
        out.append(draw(st.sampled_from([d for d in range(2, n + 1) if n % d == 0])))
        n //= out[-1]
    return out


def layouts(draw: Any, threads: int, registers: int, copies: bool) -> RegisterLayout:
    """Any layout of these sizes and rank 2; `copies` lets some threads hold the same."""
    spatial, local = factors(draw, threads), factors(draw, registers)
    held = [spatial.pop()] if copies and spatial and draw(st.booleans()) else []
    extents = [*spatial, *local]
    order = list(draw(st.permutations(range(len(extents)))))
    place = {mode: order.index(mode) for mode in order}
    cut = draw(st.integers(0, len(order)))
    sides = [place[m] for m in range(len(spatial))] + [-n for n in held]
    modes = tuple(tuple(extents[m] for m in part) for part in (order[:cut], order[cut:]))
    return RegisterLayout(modes, tuple(draw(st.permutations(sides))),
                          tuple(place[m] for m in range(len(spatial), len(extents))))


@st.composite
def views(draw: Any) -> Function:
    src, dst = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(DTYPES))
    threads, bits = draw(st.sampled_from((1, 2, 4, 6, 12))), lcm(src.bits, dst.bits) * draw(st.integers(1, 3))
    a, c = layouts(draw, threads, bits // src.bits, True), layouts(draw, threads, bits // dst.bits, True)
    x = Value(TensorType(src, ("A", "B"), "in", (False, True)), "x")
    y = Value(TensorType(dst, ("C", "D"), "out", (False, True)), "y")
    b = Builder(Region())
    zero = b.emit(shape.Const, value=0, dtype=dtype("i32"))
    loaded = b.emit(memory.Load, x, zero, zero, shape=a.shape, axes=(0, 1))
    b.add(memory.Store, y, zero, zero, b.emit(shape.View, loaded, dtype=dst, source=a, layout=c), axes=(0, 1))
    return Function("viewed", [x, y], b.region)


@settings(max_examples=30)
@given(views())
def test_machine_code_views_as_the_interpreter_does(fn: Function) -> None:
    assert difference(fn, native(fn), np.random.default_rng(0), exact=True) == ""


def test_a_view_undoes_another() -> None:
    """Two u4 in each u8, as prepacked weights hold them; and back."""
    a, c = tile.layouts.spatial(8, 4) * tile.layouts.local(1, 2), tile.layouts.spatial(8, 4) * tile.layouts.local(1, 4)

    @tile.kernel
    def halves(x: tile.Tensor[tile.u8, "8 8"], y: tile.Out[tile.i32, "8 16"], z: tile.Out[tile.u8, "8 8"]):
        nibbles = tile.view(tile.load(x, (0, 0), (8, 8)), tile.u4, a, c)
        tile.store(y, (0, 0), nibbles.to(tile.i32))
        tile.store(z, (0, 0), tile.view(nibbles, tile.u8, c, a))

    x = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
    y, z = halves(x)
    np.testing.assert_array_equal(y, np.stack([x & 15, x >> 4], -1).reshape(8, 16))
    np.testing.assert_array_equal(z, x)


def test_a_scalar_is_viewed() -> None:
    one, two = RegisterLayout((), (), ()), RegisterLayout(((2,),), (), (0,))

    @tile.kernel
    def words(x: tile.i32, y: tile.Out[tile.u16, "2"], z: tile.Out[tile.f32, "1"]):
        tile.store(y, (0,), tile.view(x, tile.u16, one, two))
        tile.store(z, (0,), tile.view(x, tile.f32, one, one))

    y, z = words(0x3F800001)
    assert y.tolist() == [1, 0x3F80] and z[0] == pytest.approx(1.0, abs=2e-7) and z[0] != 1
