"""The few largest of many, one after the other: what `topk` does where sorting everything would be wasted."""
from __future__ import annotations

from typing import Any

from tilelang.ir.dtypes import DType, dtype
from tilelang.lang import math, memory, shaping
from tilelang.lang.expressions import Function
from tilelang.lang.values import Tile

I32, U32, U64, F32 = (dtype(name) for name in ("i32", "u32", "u64", "f32"))
LEAST = -(1 << 31)


def takes(dt: DType) -> bool:
    """Whether `rounds` has a number of 32 bits for each element of a dtype, in their order."""
    return dt.arithmetic and dt.kind != "bool" and dt.bits <= 32


@Function
def rounds(x: Tile, k: int, axis: int) -> Any:
    """(values, positions) of the k largest along an axis, the first of equal ones first; NaN counts as the largest.

    A key of 64 bits holds the order of an element above that of its position, so that all keys differ and one maximum
    finds both. It then becomes 0, which no other key is."""
    n = x.shape[axis]
    if x.dtype.kind == "float":
        wide = x.to(F32)
        bits = math.bitcast(wide, I32)
        order = math.bitcast(math.where(bits >= 0, bits ^ LEAST, ~bits), U32)
        order = math.where(math.isnan(wide), 0xFFFFFFFF, math.where(wide == 0, 0x80000000, order))
    elif x.dtype.kind == "uint":
        wide = order = x.to(U32)
        bits = math.bitcast(order, I32)
    else:
        wide = bits = x.to(I32)
        order = math.bitcast(bits ^ LEAST, U32)
    position = shaping.reshape(shaping.arange(n), tuple(n if d == axis else 1 for d in memory.static_range(x.ndim)))
    place = shaping.reshape(shaping.arange(k), tuple(k if d == axis else 1 for d in memory.static_range(x.ndim)))
    left = (order.to(U64) << 32) | (n - position).to(U64)
    values = shaping.zeros(tuple(k if d == axis else x.shape[d] for d in memory.static_range(x.ndim)), I32)
    positions = values
    for turn in memory.range(k):
        best = shaping.max(left, axis, keepdims=True)
        found = left == best
        here = place == turn
        values = math.where(here, shaping.max(math.where(found, bits, LEAST), axis, keepdims=True), values)
        positions = math.where(here, n - (best & 0xFFFFFFFF).to(I32), positions)
        left = math.where(found, 0, left)
    return math.bitcast(values, wide.dtype).to(x.dtype), positions
