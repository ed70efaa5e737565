"""What is known of the bits of numbers covers all that they may have."""
from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tilelang.ir import codec
from tilelang.ir import elementwise as ew
from tilelang.ir.bits import fixed, possible_bits
from tilelang.ir.core import TileType, Value
from tilelang.ir.dtypes import dtype
from tilelang.ir.shape import Broadcast, Const

BY_CONSTANTS = (ew.And, ew.Or, ew.Xor, ew.Add, ew.Shl, ew.Shr, ew.Mul)
STEPS = st.lists(st.tuples(st.sampled_from([*BY_CONSTANTS, ew.Cast]), st.integers(0, 2 ** 31 - 1) | st.integers(0, 40),
                           st.sampled_from(["u8", "i8", "i32", "u32", "i64"])), max_size=6)


@given(st.sampled_from(["u8", "u32", "i32", "f16", "f8e4m3", "s2", "i1"]), STEPS, st.integers(0, 2 ** 32))
def test_no_other_bits_are_set(name: str, steps: list[tuple[Any, int, str]], seed: int) -> None:
    """Chains of operations with constants, on numbers of which nothing is known."""
    value = Value(TileType((64,), dtype(name)))
    bits = np.random.default_rng(seed).integers(0, 1 << value.dtype.bits, 64, np.uint64)
    numbers: Any = codec.from_bits(bits, value.dtype)
    for cls, number, of in steps if value.dtype.kind in ("int", "uint") else [(ew.Cast, 0, "i32"), *steps]:
        if cls is ew.Cast:
            op = cls([value], {"dtype": dtype(of)})
            numbers = op.eval(None, numbers)
        else:
            dt = value.dtype
            constant = Const([], {"value": number % (1 << dt.bits - (dt.kind == "int")), "dtype": dt})
            other = Broadcast([constant.result], {"shape": (64,)}).result
            assert fixed(other) == constant.attrs["value"]
            op = cls([value, other])
            with np.errstate(all="ignore"):
                numbers = op.eval(None, numbers, np.broadcast_to(constant.eval(None), (64,)))
        value = op.result
    possible = possible_bits(value)
    assert not (numbers.astype(np.int64) & ~possible).any()


def test_masks_and_shifts_are_followed() -> None:
    words = Value(TileType((8,), dtype("u32")))
    four, mask = (Broadcast([Const([], {"value": v, "dtype": dtype("u32")}).result], {"shape": (8,)}).result
                  for v in (4, 0x0F0F0F0F))
    shifted = ew.Shr([words, four]).result
    assert possible_bits(shifted) == 0x0FFFFFFF
    assert possible_bits(ew.And([shifted, mask]).result) == 0x0F0F0F0F
    assert possible_bits(Value(TileType((), dtype("i32")))) == -1
