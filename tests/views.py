"""Random functions with one `view`: any two layouts of one number of threads and bits, any two dtypes."""
from __future__ import annotations

from collections.abc import Sequence
from math import lcm
from typing import Any

from hypothesis import strategies as st

from tilelang.ir import memory, shape
from tilelang.ir.core import Builder, Function, Region, TensorType, Value
from tilelang.ir.dtypes import dtype
from tilelang.layouts import RegisterLayout

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
def views(draw: Any, threads: Sequence[int]) -> Function:
    """A function that stores a view of what it loads; `threads` are the numbers to choose from."""
    src, dst = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(DTYPES))
    count, bits = draw(st.sampled_from(threads)), lcm(src.bits, dst.bits) * draw(st.integers(1, 3))
    a, c = layouts(draw, count, bits // src.bits, True), layouts(draw, count, bits // dst.bits, True)
    x = Value(TensorType(src, ("A", "B"), "in", (False, True)), "x")
    y = Value(TensorType(dst, ("C", "D"), "out", (False, True)), "y")
    b = Builder(Region())
    zero = b.emit(shape.Const, value=0, dtype=dtype("i32"))
    loaded = b.emit(memory.Load, x, zero, zero, shape=a.shape, axes=(0, 1))
    b.add(memory.Store, y, zero, zero, b.emit(shape.View, loaded, dtype=dst, source=a, layout=c), axes=(0, 1))
    return Function("viewed", [x, y], b.region)
