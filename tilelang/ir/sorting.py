"""Sorting: what it means, and how it becomes the sorting of integers that all differ."""
from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from tilelang.errors import DTypeMismatch, ShapeMismatch
from tilelang.ir import elementwise as ew
from tilelang.ir.core import Op, TileType, Type, Value
from tilelang.ir.dtypes import DType, dtype
from tilelang.ir.elementwise import to_compute
from tilelang.ir.shape import I32, Lookup, Reshape, check_axis

if TYPE_CHECKING:
    from tilelang.ir.expansion import Expansion


class Sort(Op):
    """Stable sort along `axis`: (values, i32 positions). NaN counts as larger than everything."""
    name, attributes = "sort", {"axis": ..., "descending": False}

    def infer(self) -> Sequence[Type]:
        src = self.operands[0].tile
        check_axis(self, self.attrs["axis"], src.shape)
        return [TileType(src.shape, src.dtype), TileType(src.shape, I32)]

    def eval(self, frame: Any, *args: Any) -> Any:
        axis, keys = self.attrs["axis"], to_compute(args[0], self.operands[0].dtype)
        if self.attrs["descending"]:
            order = np.argsort(np.flip(keys, axis), axis, kind="stable")
            order = keys.shape[axis] - 1 - np.flip(order, axis)
        else:
            order = np.argsort(keys, axis, kind="stable")
        return np.take_along_axis(args[0], order, axis), order.astype(np.int32)

    def expand(self, b: Expansion) -> Sequence[Value | None]:
        """Sorts integers in the order of the elements, above their positions in one word where there is room: so all
        differ, and no order of equal ones can be lost. Integers without positions are sorted as they are."""
        (x,), axis, n = self.operands, self.attrs["axis"], self.operands[0].shape[self.attrs["axis"]]
        values, positions = (r in b.used for r in self.results)
        key = order(b, x)
        if self.attrs["descending"]:
            key = b.emit(ew.Not, key)
        if x.dtype.kind == "float" or positions:
            key, place = self._with_positions(b, key, n)
        else:
            key, place = b.emit(SortKeys, key, axis=axis), None
        if not values:
            return [None, place]
        if x.dtype.kind == "float":  # zeros of either sign are one number, and so are all NaN
            assert place is not None
            return [self._taken(b, x, place), place]
        if self.attrs["descending"]:
            key = b.emit(ew.Not, key)
        return [key if key.dtype is x.dtype else b.emit(ew.Cast, key, dtype=x.dtype), place]

    def _with_positions(self, b: Expansion, key: Value, n: int) -> tuple[Value, Value]:
        """Both sorted by the first, then by the second."""
        like, axis, places = key.shape, self.attrs["axis"], (n - 1).bit_length()
        position, bits = b.positions(like, axis), key.dtype.bits + places
        if bits > 64:
            op = b.add(SortKeys, key, position, axis=axis)
            return op.results[0], op.results[1]
        word = dtype(("u" if key.dtype.kind == "uint" else "i") + ("32" if bits <= 32 else "64"))
        shift, mask = b.full(places, like, word), b.full((1 << places) - 1, like, word)
        joined = b.emit(ew.Or, b.emit(ew.Shl, b.emit(ew.Cast, key, dtype=word), shift),
                        b.emit(ew.Cast, position, dtype=word))
        joined = b.emit(SortKeys, joined, axis=axis)
        return (b.emit(ew.Cast, b.emit(ew.Shr, joined, shift), dtype=key.dtype),
                b.emit(ew.Cast, b.emit(ew.And, joined, mask), dtype=I32))

    def _taken(self, b: Expansion, x: Value, place: Value) -> Value:
        """The elements of `x` at places along the axis."""
        at = None
        for d in range(len(x.shape)):
            index, pitch = place if d == self.attrs["axis"] else b.positions(x.shape, d), prod(x.shape[d + 1:])
            part = b.emit(ew.Mul, index, b.full(pitch, x.shape, I32)) if pitch > 1 else index
            at = part if at is None else b.emit(ew.Add, at, part)
        assert at is not None
        return b.emit(Lookup, b.emit(Reshape, x, shape=(prod(x.shape),)), at)


def order(b: Expansion, x: Value) -> Value:
    """Integers in the order of the elements of `x`, equal ones where those are equal."""
    if x.dtype.kind == "bool":
        return b.emit(ew.Cast, x, dtype=dtype("u8"))
    if x.dtype.kind != "float":
        return x
    signed = dtype(f"i{x.dtype.bits}")

    def full(value: int, dt: DType = signed) -> Value:
        return b.full(value, x.shape, dt)
    code = b.emit(ew.Bitcast, x, dtype=signed)
    turned = b.emit(ew.Xor, code, full(signed.max))  # of negative numbers a larger code is a smaller number
    number = b.emit(ew.Where, b.emit(ew.Lt, code, full(0)), turned, code)
    number = b.emit(ew.Where, b.emit(ew.Eq, x, full(0, x.dtype)), full(0), number)
    return b.emit(ew.Where, b.emit(ew.Ne, x, x), full(signed.max), number)


class SortKeys(Op):
    """Sorts integers along `axis`, by the first operand, then by the second: equal pairs cannot be told apart."""
    name, attributes = "sort_keys", {"axis": ...}

    def infer(self) -> Sequence[Type]:
        types = [v.tile for v in self.operands]
        check_axis(self, self.attrs["axis"], types[0].shape)
        for t in types:
            if t.shape != types[0].shape:
                raise ShapeMismatch("`sort_keys` of tiles of different shapes", loc=self.loc,
                                    needs=str(list(types[0].shape)), got=str(list(t.shape)),
                                    try_="broadcast them to one shape")
            if t.dtype.kind not in ("int", "uint"):
                raise DTypeMismatch("`sort_keys` needs integers", loc=self.loc, needs="an integer tile",
                                    got=str(t.dtype), try_="`sort` takes every number")
        return types

    def eval(self, frame: Any, *args: Any) -> Any:
        axis = self.attrs["axis"]
        places = np.lexsort(tuple(reversed(args)), axis)
        return tuple(np.take_along_axis(a, places, axis) for a in args)
