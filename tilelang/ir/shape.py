"""Constants and operations that make, rearrange, look up or reinterpret tiles without arithmetic."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tilelang.errors import DTypeMismatch, IndexOutOfRange, MissingAxis, ShapeMismatch
from tilelang.ir import codec
from tilelang.ir import elementwise as ew
from tilelang.ir.core import Op, TileType, Type, Value
from tilelang.ir.dtypes import dtype
from tilelang.ir.elementwise import ALL_LEVELS
from tilelang.ir.pairs import ORDERS, orders, pairs
from tilelang.layouts import RegisterLayout

if TYPE_CHECKING:
    from tilelang.ir.expansion import Expansion

I32 = dtype("i32")


def check_axis(op: Op, axis: int, shape: Sequence[int]) -> None:
    if not 0 <= axis < len(shape):
        raise MissingAxis(f"`{op.name}` over axis {axis} of a tile of rank {len(shape)}", loc=op.loc,
                          needs=f"an axis of {list(shape)}", got=str(axis),
                          try_=f"use one of {list(range(len(shape)))}" if shape else "drop it: this is a scalar")


class Const(Op):
    """A scalar constant: `value` is a Python number in the range of `dtype`."""
    name, levels, attributes = "const", ALL_LEVELS, {"value": ..., "dtype": ...}

    def infer(self) -> Sequence[Type]:
        return [TileType((), self.attrs["dtype"])]

    def eval(self, frame: Any, *args: Any) -> Any:
        dt = self.attrs["dtype"]
        if dt.kind == "bool":
            return np.asarray(bool(self.attrs["value"]))
        if dt.kind in ("int", "uint"):
            return codec.from_bits(np.asarray(int(self.attrs["value"]) % (1 << 64), np.uint64), dt)
        return codec.encode(np.asarray(self.attrs["value"], np.float64), dt)


class ConstTile(Op):
    """A rank-1 tile of constants, `values`, for instance a look-up table."""
    name, levels, attributes = "const_tile", ALL_LEVELS, {"values": ..., "dtype": ...}

    def infer(self) -> Sequence[Type]:
        return [TileType((len(self.attrs["values"]),), self.attrs["dtype"])]

    def eval(self, frame: Any, *args: Any) -> Any:
        return codec.encode(np.asarray(self.attrs["values"]), self.attrs["dtype"])


class Arange(Op):
    """start, start + 1, … start + size - 1 as i32."""
    name, levels, attributes = "arange", ALL_LEVELS, {"start": 0, "size": ...}

    def infer(self) -> Sequence[Type]:
        return [TileType((self.attrs["size"],), I32)]

    def eval(self, frame: Any, *args: Any) -> Any:
        return np.arange(self.attrs["start"], self.attrs["start"] + self.attrs["size"], dtype=np.int32)


class Broadcast(Op):
    """Repeats dimensions of extent 1, and prepends dimensions, to reach `shape` (NumPy's rule)."""
    name, levels, attributes = "broadcast", ALL_LEVELS, {"shape": ...}

    def infer(self) -> Sequence[Type]:
        src, shape = self.operands[0].tile, tuple(self.attrs["shape"])
        tail = shape[len(shape) - src.rank:] if src.rank <= len(shape) else ()
        if src.rank > len(shape) or any(s not in (1, d) for s, d in zip(src.shape, tail, strict=True)):
            raise ShapeMismatch("a tile does not broadcast to this shape", loc=self.loc,
                                needs=f"a shape that broadcasts to {list(shape)}", got=str(list(src.shape)),
                                try_="insert an axis with x[:, None], or reshape")
        return [TileType(shape, src.dtype)]

    def eval(self, frame: Any, *args: Any) -> Any:
        return np.broadcast_to(args[0], self.attrs["shape"])


class Reshape(Op):
    """The same elements in row-major order under another shape."""
    name, attributes = "reshape", {"shape": ...}

    def infer(self) -> Sequence[Type]:
        src = self.operands[0].tile
        out = TileType(tuple(self.attrs["shape"]), src.dtype)
        if out.size != src.size:
            raise ShapeMismatch("reshape changes the number of elements", loc=self.loc,
                                needs=f"{src.size} elements, as {list(src.shape)} has",
                                got=f"{list(out.shape)} with {out.size}", try_="give one extent as -1")
        return [out]

    def eval(self, frame: Any, *args: Any) -> Any:
        return np.reshape(args[0], self.attrs["shape"])


class Permute(Op):
    """Reorders dimensions: result dimension i is operand dimension `order[i]`."""
    name, attributes = "permute", {"order": ...}

    def infer(self) -> Sequence[Type]:
        src, order = self.operands[0].tile, tuple(self.attrs["order"])
        if sorted(order) != list(range(src.rank)):
            raise MissingAxis("`permute` needs every axis once", loc=self.loc,
                              needs=f"a permutation of {list(range(src.rank))}", got=str(list(order)),
                              try_="list each axis once")
        return [TileType(tuple(src.shape[i] for i in order), src.dtype)]

    def eval(self, frame: Any, *args: Any) -> Any:
        return np.transpose(args[0], self.attrs["order"])


class Concat(Op):
    """Joins tiles along `axis`."""
    name, levels, attributes = "concat", ALL_LEVELS, {"axis": ...}

    def infer(self) -> Sequence[Type]:
        types, axis = [v.tile for v in self.operands], self.attrs["axis"]
        first = types[0]
        check_axis(self, axis, first.shape)
        for other in types[1:]:
            if other.dtype != first.dtype:
                raise DTypeMismatch("`concatenate` of different dtypes", loc=self.loc, needs=str(first.dtype),
                                    got=str(other.dtype), try_=f"cast: x.to(tile.{first.dtype})")
            if other.rank != first.rank or any(
                    a != b for i, (a, b) in enumerate(zip(first.shape, other.shape, strict=True)) if i != axis):
                raise ShapeMismatch("`concatenate` of tiles that differ outside the axis", loc=self.loc,
                                    needs=f"{list(first.shape)} except along axis {axis}",
                                    got=str(list(other.shape)), try_="reshape or slice one of them")
        extent = sum(t.shape[axis] for t in types)
        return [TileType((*first.shape[:axis], extent, *first.shape[axis + 1:]), first.dtype)]

    def eval(self, frame: Any, *args: Any) -> Any:
        return np.concatenate(args, self.attrs["axis"])


class Slice(Op):
    """Elements start, start + step, … (`shape[i]` of them) along each dimension; all constant."""
    name, levels, attributes = "slice", ALL_LEVELS, {"starts": ..., "shape": ..., "steps": ...}

    def infer(self) -> Sequence[Type]:
        src = self.operands[0].tile
        starts, shape, steps = (tuple(self.attrs[k]) for k in ("starts", "shape", "steps"))
        for extent, start, n, step in zip(src.shape, starts, shape, steps, strict=True):
            last = start + (n - 1) * step
            if n < 1 or not (0 <= start < extent and 0 <= last < extent):
                raise IndexOutOfRange("a constant index outside the tile", loc=self.loc,
                                      needs=f"indices in [0, {extent})", got=f"{start} to {last}",
                                      try_="slice within the tile's extents")
        return [TileType(shape, src.dtype)]

    def eval(self, frame: Any, *args: Any) -> Any:
        index = tuple(slice(a, a + (n - 1) * s + (1 if s > 0 else -1) if a + (n - 1) * s + (1 if s > 0 else -1) >= 0
                            else None, s)
                      for a, n, s in zip(self.attrs["starts"], self.attrs["shape"], self.attrs["steps"], strict=True))
        return args[0][index]


class Lookup(Op):
    """table[index] elementwise: a rank-1 table and integer indices; an index outside the table gives 0."""
    name = "lookup"

    def infer(self) -> Sequence[Type]:
        table, index = (v.tile for v in self.operands)
        if table.rank != 1:
            raise ShapeMismatch("the table of `lookup` must have rank 1", loc=self.loc, needs="a rank-1 table",
                                got=str(list(table.shape)), try_="reshape the table")
        if index.dtype.kind not in ("int", "uint"):
            raise DTypeMismatch("`lookup` needs integer indices", loc=self.loc, needs="an integer tile",
                                got=str(index.dtype), try_="cast the index: x.to(tile.i32)")
        return [TileType(index.shape, table.dtype)]

    def eval(self, frame: Any, *args: Any) -> Any:
        table, index = args
        inside = (index >= 0) & (index < len(table))
        return np.where(inside, table[np.where(inside, index, 0)], np.zeros((), table.dtype))


class Lookup4(Op):
    """Of each of the four bytes of a word (u32) the entry of a table of 16, 32, 64, 128 or 256 bytes that its lowest 4
    to 8 bits choose, as words: i32 if the table is i8, u32 if it is u8. Byte shuffles of CPUs (`vpermb`, `pshufb`)."""
    name, levels = "lookup4", ALL_LEVELS

    def infer(self) -> Sequence[Type]:
        table, words = (v.tile for v in self.operands)
        if table.shape not in [(16 << i,) for i in range(5)] or table.dtype.name not in ("i8", "u8"):
            raise ShapeMismatch("the table of `lookup4` must be of bytes", loc=self.loc,
                                needs="i8 or u8 of 16, 32, 64, 128 or 256", got=str(table),
                                try_="reshape or cast the table")
        if words.dtype.name != "u32":
            raise DTypeMismatch("`lookup4` needs words", loc=self.loc, needs="u32, four indices in each",
                                got=str(words.dtype), try_="bitcast the words to tile.u32")
        return [TileType(words.shape, dtype("i32" if table.dtype.name == "i8" else "u32"))]

    def eval(self, frame: Any, *args: Any) -> Any:
        table, words = args
        at = np.ascontiguousarray(words).reshape(-1).view(np.uint8) & (len(table) - 1)
        return table[at].view(self.result.tile.dtype.storage).reshape(np.shape(words))

    def expand(self, b: Expansion) -> Sequence[Value]:
        table, words = self.operands
        u32, like, out = dtype("u32"), words.shape, None
        for shift in (0, 8, 16, 24):
            at = b.emit(ew.And, b.emit(ew.Shr, words, b.full(shift, like, u32)), b.full(table.shape[0] - 1, like, u32))
            found = b.emit(ew.Cast, b.emit(Lookup, table, at), dtype=u32)
            byte = b.emit(ew.Shl, b.emit(ew.And, found, b.full(255, like, u32)), b.full(shift, like, u32))
            out = byte if out is None else b.emit(ew.Or, out, byte)
        assert out is not None
        return [out if self.result.tile.dtype is u32 else b.emit(ew.Bitcast, out, dtype=I32)]


class View(Op):
    """Reinterprets each thread's register bits: element i of a thread occupies bits [i*w, (i+1)*w) of its registers.

    `source` is the operand's register layout, `layout` the result's; threads and bits per thread must agree. In
    `order` "pairs" or "sums" the operand is words of u32 that hold a type of at most 8 bits as `tilelang.ir.pairs`
    packs it; codes that f16 has no finite number for do not occur in them.
    """
    name, attributes = "view", {"dtype": ..., "source": ..., "layout": ..., "order": "stream"}

    def infer(self) -> Sequence[Type]:
        src, dt, a, b = self.operands[0].tile, self.attrs["dtype"], self.attrs["source"], self.attrs["layout"]
        for layout in (a, b):
            if not isinstance(layout, RegisterLayout):
                raise ShapeMismatch("tiles lie in register layouts", loc=self.loc, got=repr(layout),
                                    needs="a tilelang.layouts.RegisterLayout",
                                    try_="tilelang.layouts.spatial(8, 4) * tilelang.layouts.local(2, 2)")
        if tuple(a.shape) != src.shape:
            raise ShapeMismatch("a layout must have the shape of its tile", loc=self.loc,
                                needs=f"a layout of {list(src.shape)}", got=f"{a} of {list(a.shape)}",
                                try_="give every element a place")
        if a.num_threads != b.num_threads \
                or a.local_size * src.dtype.bits != b.local_size * dt.bits:
            raise ShapeMismatch("`view` must keep the threads and the bits of each thread", loc=self.loc,
                                needs=f"a layout of {a.num_threads} threads x {a.local_size * src.dtype.bits} bits",
                                got=f"{b} of {b.num_threads} threads x {b.local_size * dt.bits} bits",
                                try_="change the local part of the layout")
        if self.attrs["order"] in ORDERS:
            if dt.bits <= 8 and self.attrs["order"] not in orders(dt):
                raise DTypeMismatch(f"{dt} has no order \"{self.attrs['order']}\"", loc=self.loc,
                                    needs=f"one of {', '.join(orders(dt))}", got=self.attrs["order"],
                                    try_="the order that `tilelang.targets.order` gives")
            block = pairs(dt, self.attrs["order"]).words if dt.bits <= 8 else 0
            if src.dtype.name != "u32" or not block or a.local_size % block:
                raise DTypeMismatch("`view` of pairs reads whole blocks of words", loc=self.loc,
                                    needs=f"a multiple of {block or 1} u32 in each thread, as at most 8 bits",
                                    got=f"{a.local_size} {src.dtype} in each thread, as {dt}",
                                    try_="pack the codes with `tilelang.ir.pairs`, whole blocks for each thread")
        return [TileType(tuple(b.shape), dt)]

    def eval(self, frame: Any, *args: Any) -> Any:
        src, dt, a, b = self.operands[0].tile, self.attrs["dtype"], self.attrs["source"], self.attrs["layout"]
        bits = codec.to_bits(args[0], src.dtype)[tuple(np.moveaxis(a.table(), -1, 0))]
        held = np.broadcast_to(bits, (a.num_threads, a.local_size))
        if self.attrs["order"] in ORDERS:
            codes = pairs(dt, self.attrs["order"]).unpack(held)
        else:
            stream = held.astype(np.uint64)[..., None] >> np.arange(src.dtype.bits, dtype=np.uint64) & np.uint64(1)
            cut = stream.reshape(len(held), b.local_size, dt.bits) << np.arange(dt.bits, dtype=np.uint64)
            codes = cut.sum(-1, dtype=np.uint64)
        out = np.zeros(b.shape, np.uint64)
        where = b.table()
        for thread in range(b.num_threads):  # of copies that differ the last thread's counts
            out[tuple(where[thread].T)] = codes[thread] if b.rank else codes[thread, 0]
        return codec.from_bits(out, dt)
