"""Pairs in the registers of a thread: their codes and their numbers as f16, for every type and bit pattern."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.ir.test_pairs import ORDERED
from tilelang.backends.simt import paired
from tilelang.backends.thread.builder import ThreadBuilder
from tilelang.ir import codec, interpreter
from tilelang.ir import thread as th
from tilelang.ir.core import Function, Region, TensorType, Value
from tilelang.ir.dtypes import DType, dtype
from tilelang.ir.pairs import Pairs, exponents, pairs, representable

F16 = dtype("f16")


def run(words: Any, dt: DType, order: Pairs, lanes: Any) -> tuple[Any, Any, Any, tuple[int, ...] | None]:
    """(codes, f16, f16 without powers of two, those powers) of a thread's words, in an order of its elements."""
    n = len(lanes)
    x = Value(TensorType(dtype("u32"), ("W",), "in", (True,)), "x")
    outs = [Value(TensorType(t, ("N",), "out", (True,)), name) for t, name in ((dt, "c"), (F16, "y"), (F16, "z"))]
    body = Region()
    b = ThreadBuilder(body)
    codes, made = paired.view(b, b.effect(th.Ld, x, b.index(0), lanes=len(words)).result, dt, order)
    made = made.taken(lanes)
    found = [paired.take(b, codes, lanes), paired.to_f16(b, made), paired.unscaled(b, made, False, False)]
    for out, value in zip(outs, found, strict=True):
        if value is not None:
            b.effect(th.St, out, b.index(0), value)
    arrays = [np.zeros(n, out.dtype.storage) for out in outs]
    interpreter.run(Function("paired", [x, *outs], body, "thread"), [words, *arrays])
    assert len(words) % order.words == 0
    return (*arrays, made.exponents)


@pytest.mark.parametrize(("dt", "name"), ORDERED)
def test_every_code_beside_any_other(dt: DType, name: str) -> None:
    order, rng = pairs(dt, name), np.random.default_rng(0)
    known = np.flatnonzero(representable(dt)) if exponents(dt) else np.arange(1 << dt.bits)
    blocks = max(1, 512 // order.elements)
    codes = rng.choice(known, blocks * order.elements).astype(np.uint8)
    whole = rng.permutation(len(codes) // 2)  # halves that stay together, and such that do not
    for lanes in ((2 * whole[:, None] + [0, 1]).reshape(-1), rng.permutation(len(codes))):
        got, values, raw, powers = run(order.pack(codes), dt, order, [int(i) for i in lanes])
        np.testing.assert_array_equal(codec.to_bits(got, dt), codes[lanes])
        if powers is None:
            continue
        want = codec.values_of(dt)[codes[lanes]]
        np.testing.assert_array_equal(values.view(np.uint16), want.astype(np.float16).view(np.uint16))  # -0, too
        np.testing.assert_array_equal(raw.astype(np.float64) * np.exp2(powers), want)
