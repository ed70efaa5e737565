"""Index tiles that name a block of a tensor: a sum of scalars and one `arange` along each dimension of the tile."""
from __future__ import annotations

from collections.abc import Sequence

from tilelang.ir.core import Value
from tilelang.ir.dtypes import dtype

I32 = dtype("i32")
Sum = tuple[tuple[Value, ...], int]
"""Scalars and a constant, to be added up."""


def block_of(indices: Sequence[Value]) -> tuple[list[Sum], tuple[int, ...]] | None:
    """(where a block begins along each dimension of the tensor, which of these its dimensions walk) for the index
    tiles of an access; None where they name no block."""
    shape, starts, axes = indices[0].shape, list[Sum](), dict[int, int]()
    for axis, v in enumerate(indices):
        found = _walk(v)
        if found is None:
            return None
        terms, constant, along = found
        starts.append((terms, constant))
        if along is not None:
            if along in axes:
                return None
            axes[along] = axis
    order = tuple(axes[d] for d in sorted(axes))
    return (starts, order) if len(order) == len(shape) and list(order) == sorted(order) else None


def _walk(v: Value) -> tuple[tuple[Value, ...], int, int | None] | None:
    """(scalars, constant, the dimension along which it counts up by one) of a tile of i32."""
    op = v.owner
    if v.dtype is not I32:
        return None
    if not v.shape:
        return ((), int(op.attrs["value"]), None) if op is not None and op.name == "const" else ((v,), 0, None)
    if op is None:
        return None
    if op.name == "arange":
        return (), op.attrs["start"], 0
    if op.name == "add":
        a, b = map(_walk, op.operands)
        if a is None or b is None or a[2] is not None and b[2] is not None:
            return None
        return a[0] + b[0], a[1] + b[1], b[2] if a[2] is None else a[2]
    if op.name not in ("broadcast", "reshape", "convert_layout") or (inner := _walk(op.operands[0])) is None:
        return None
    src, (terms, constant, along) = op.operands[0].shape, inner
    if along is None or op.name == "convert_layout":
        return inner
    if op.name == "broadcast":
        return terms, constant, len(v.shape) - len(src) + along
    long = [d for d, n in enumerate(v.shape) if n > 1]
    return (terms, constant, long[0]) if len(long) == 1 and v.shape[long[0]] == src[along] else None
