"""Tensor arguments and memory: dimensions, block and element access, atomics, program memory."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tilelang.errors import DTypeMismatch, ShapeMismatch, VerifyError
from tilelang.ir import codec
from tilelang.ir import elementwise as ew
from tilelang.ir import shape as sh
from tilelang.ir.core import MAX_EXTENT, BufferType, Op, TensorType, TileType, Type, Value
from tilelang.ir.dtypes import dtype
from tilelang.ir.elementwise import ALL_LEVELS, I1, from_compute, to_compute
from tilelang.ir.shape import I32

if TYPE_CHECKING:
    from tilelang.ir.expansion import Expansion

READS = "load", "gather", "expand_load"
"""Operations that read elements of memory into a tile; they check bounds."""
U32, I64 = dtype("u32"), dtype("i64")
WORD = 32


def memory_type(op: Op, value: Value) -> TensorType | BufferType:
    if not isinstance(value.type, TensorType | BufferType):
        raise VerifyError(f"`{op.name}` needs memory", op=op.name, loc=op.loc, needs="a tensor or a buffer",
                          got=str(value.type), try_="pass a tensor argument")
    return value.type


def check_writable(op: Op, memory: TensorType | BufferType) -> None:
    if isinstance(memory, TensorType) and not memory.writable:
        raise DTypeMismatch(f"`{op.name}` writes an input tensor", loc=op.loc, needs="tile.Out or tile.InOut",
                            got="tile.Tensor", try_="annotate the parameter as tile.Out[...] or tile.InOut[...]")


def check_offsets(op: Op, memory: TensorType | BufferType, offsets: Sequence[Value]) -> None:
    if len(offsets) != memory.rank:
        raise ShapeMismatch(f"`{op.name}` needs one offset for each dimension", loc=op.loc,
                            needs=f"{memory.rank} offsets", got=str(len(offsets)), try_="index every dimension")
    for value in offsets:
        if value.dtype.kind not in ("int", "uint"):
            raise DTypeMismatch(f"`{op.name}` needs integer offsets", loc=op.loc, needs="integers",
                                got=str(value.type), try_="cast it: x.to(tile.i32)")


class DimSize(Op):
    """Extent of dimension `axis` of a tensor argument, as i32."""
    name, levels, attributes = "dim", ALL_LEVELS, {"axis": ...}

    def infer(self) -> Sequence[Type]:
        memory_type(self, self.operands[0])
        return [TileType((), I32)]

    def eval(self, frame: Any, *args: Any) -> Any:
        return np.asarray(args[0].shape[self.attrs["axis"]], np.int32)


def _window(array: Any, offsets: Sequence[Any], shape: Sequence[int], axes: Sequence[int]) -> tuple[Any, Any]:
    """(index, inside) of a block: clipped indices that broadcast to `shape`, and which of them are in bounds. Of one
    that is in bounds as a whole, and not turned: slices, and True."""
    extents = dict(zip(axes, shape, strict=True))
    first = [int(offset) for offset in offsets]
    if list(extents) == sorted(extents) and all(
            0 <= at <= array.shape[d] - extents.get(d, 1) for d, at in enumerate(first)):
        return tuple(slice(at, at + extents[d]) if d in extents else at for d, at in enumerate(first)), True
    return _clipped(array, first, shape, axes)


def _clipped(array: Any, first: Sequence[int], shape: Sequence[int], axes: Sequence[int]) -> tuple[Any, Any]:
    """The indices of a block, clipped, which broadcast to `shape`, and which of them are in bounds."""
    index: list[Any] = []
    inside: Any = np.ones(shape, bool)
    for d, at in enumerate(first):
        where = np.asarray(at)
        if d in axes:
            t = axes.index(d)
            where = (at + np.arange(shape[t])).reshape([-1 if i == t else 1 for i in range(len(shape))])
        inside = inside & (where >= 0) & (where < array.shape[d])
        index.append(np.clip(where, 0, max(array.shape[d] - 1, 0)))
    return tuple(index), inside


def in_bounds(array: Any, offsets: Sequence[Any], tile: Any, axes: Sequence[int]) -> tuple[Any, Any]:
    """Where a block goes in an array, and what goes there: its elements in bounds."""
    index, inside = _window(array, offsets, tile.shape, axes)
    return (index, tile) if inside is True else (
        tuple(np.broadcast_to(i, tile.shape)[inside] for i in index), tile[inside])


class Load(Op):
    """Block read: tile dimension t walks tensor dimension `axes[t]` from its offset, in any order; other dimensions
    are indexed. Elements outside the tensor are `fill`."""
    name, effects, attributes = "load", "read", {"shape": ..., "axes": ..., "fill": 0}

    def infer(self) -> Sequence[Type]:
        memory = memory_type(self, self.operands[0])
        check_offsets(self, memory, self.operands[1:])
        shape, axes = tuple(self.attrs["shape"]), tuple(self.attrs["axes"])
        if len(axes) != len(shape) or len(set(axes)) != len(axes) or any(a >= memory.rank for a in axes):
            raise ShapeMismatch("the block does not fit the tensor's dimensions", loc=self.loc,
                                needs=f"at most {memory.rank} extents", got=str(list(shape)),
                                try_="give an extent, or None, for each trailing dimension")
        return [TileType(shape, memory.dtype)]

    def eval(self, frame: Any, *args: Any) -> Any:
        array, dt = args[0], self.result.dtype
        fill = codec.encode(np.asarray(self.attrs["fill"], np.float64), dt)
        if array.size == 0:
            return np.full(self.attrs["shape"], fill, dt.storage)
        index, inside = _window(array, args[1:], self.attrs["shape"], self.attrs["axes"])
        frame.check_initialised(self, array, index, inside)
        return np.where(inside, array[index], fill)


class Store(Op):
    """Block write: operands (tensor, offsets…, tile); the inverse of `load`. Elements outside are dropped."""
    name, effects, attributes = "store", "write", {"axes": ...}

    def infer(self) -> Sequence[Type]:
        memory = memory_type(self, self.operands[0])
        check_writable(self, memory)
        check_offsets(self, memory, self.operands[1:-1])
        src, axes = self.operands[-1].tile, tuple(self.attrs["axes"])
        if src.dtype != memory.dtype:
            raise DTypeMismatch("the stored tile and the tensor differ in dtype", loc=self.loc,
                                needs=str(memory.dtype), got=str(src.dtype),
                                try_=f"cast it: x.to(tile.{memory.dtype})")
        if len(axes) != src.rank or sorted(set(axes)) != list(axes) or any(a >= memory.rank for a in axes):
            raise ShapeMismatch("the block does not fit the tensor's dimensions", loc=self.loc,
                                needs=f"a tile of rank at most {memory.rank}", got=str(list(src.shape)),
                                try_="reshape the tile")
        return []

    def eval(self, frame: Any, *args: Any) -> Any:
        array, tile = args[0], args[-1]
        if array.size:
            where, value = in_bounds(array, args[1:-1], tile, self.attrs["axes"])
            array[where] = value
            frame.mark_written(self, array, where)
        return ()


class _Indexed(Op):
    """Shared by gather, scatter and atomics: operands (tensor, index tile per dimension, others…, [mask])."""

    others = 0

    def split(self) -> tuple[TensorType | BufferType, list[Value], list[Value], Value | None]:
        memory = memory_type(self, self.operands[0])
        rest = self.operands[1:]
        mask = rest.pop() if self.attrs["masked"] else None
        count = len(rest) - self.others
        return memory, rest[:count], rest[count:], mask

    def infer(self) -> Sequence[Type]:
        memory, indices, others, mask = self.split()
        check_offsets(self, memory, indices)
        shape = indices[0].shape
        for value in [*indices, *others, *([mask] if mask else [])]:
            if value.shape != shape:
                raise ShapeMismatch(f"`{self.name}` needs operands of one shape", loc=self.loc,
                                    needs=str(list(shape)), got=str(list(value.shape)), try_="broadcast them")
        for value in others:
            if value.dtype != memory.dtype:
                raise DTypeMismatch(f"`{self.name}` of a tile whose dtype differs from the tensor's", loc=self.loc,
                                    needs=str(memory.dtype), got=str(value.dtype),
                                    try_=f"cast it: x.to(tile.{memory.dtype})")
        if mask is not None and mask.dtype != I1:
            raise DTypeMismatch(f"the mask of `{self.name}` must be i1", loc=self.loc, needs="i1",
                                got=str(mask.dtype), try_="compare it, for example mask != 0")
        return self.outputs(memory, shape)

    def outputs(self, memory: TensorType | BufferType, shape: tuple[int, ...]) -> Sequence[Type]:
        raise NotImplementedError

    def active(self, args: Sequence[Any]) -> tuple[Any, Any, list[Any], Any]:
        """(array, clipped indices, other operands, which elements take part)."""
        array, rest = args[0], list(args[1:])
        inside = rest.pop().copy() if self.attrs["masked"] else np.ones(rest[0].shape, bool)
        indices, others = rest[:array.ndim], rest[array.ndim:]
        for d, index in enumerate(indices):
            inside &= (index >= 0) & (index < array.shape[d])
        return array, tuple(np.where(inside, i, 0) for i in indices), others, inside


class Gather(_Indexed):
    """Element reads at index tiles; an index outside the tensor, or a false mask, gives `fill`."""
    name, effects, attributes = "gather", "read", {"masked": False, "fill": 0}

    def outputs(self, memory: TensorType | BufferType, shape: tuple[int, ...]) -> Sequence[Type]:
        return [TileType(shape, memory.dtype)]

    def eval(self, frame: Any, *args: Any) -> Any:
        array, index, _, inside = self.active(args)
        dt = self.result.dtype
        fill = codec.encode(np.asarray(self.attrs["fill"], np.float64), dt)
        if array.size == 0:
            return np.full(inside.shape, fill, dt.storage)
        frame.check_initialised(self, array, index, inside)
        return np.where(inside, array[index], fill)


class ExpandLoad(Op):
    """Packed rows in full: operands (tensor, offsets…, bits u32 [..., W], starts u32 [..., W]) to [..., 32 W]. Where
    bit c % 32 of word c // 32 of a row is set, element c is that of the tensor's dimension `axes[-1]` as many places
    behind its offset as the word's start and the lower set bits of the word make; elsewhere, and outside the tensor,
    0. The other `axes` are walked as by `load`. AVX-512's VPEXPAND and LLVM's `llvm.masked.expandload`, word by word.
    """
    name, effects, attributes = "expand_load", "read", {"axes": ...}

    def infer(self) -> Sequence[Type]:
        memory, axes = memory_type(self, self.operands[0]), tuple(self.attrs["axes"])
        check_offsets(self, memory, self.offsets)
        bits, starts = (v.tile for v in self.operands[-2:])
        if bits != starts or bits.dtype is not U32 or not bits.rank:
            raise DTypeMismatch("`expand_load` takes words of bits, and where the values of each begin", loc=self.loc,
                                needs="two tiles of u32 of one shape, [..., W]", got=f"{bits} and {starts}",
                                try_="bitcast or cast them to tile.u32")
        if len(axes) != bits.rank or sorted(set(axes)) != list(axes) or any(a >= memory.rank for a in axes):
            raise ShapeMismatch("the block does not fit the tensor's dimensions", loc=self.loc,
                                needs=f"bits of rank at most {memory.rank}", got=str(list(bits.shape)),
                                try_="reshape the bits")
        return [TileType((*bits.shape[:-1], WORD * bits.shape[-1]), memory.dtype)]

    @property
    def offsets(self) -> list[Value]:
        return self.operands[1:-2]

    def eval(self, frame: Any, *args: Any) -> Any:
        array, dt, shape = args[0], self.result.dtype, self.result.shape
        zero = codec.encode(np.zeros((), np.float64), dt)
        bit = np.arange(WORD, dtype=np.uint32)
        bits, starts = (np.asarray(x)[..., None] for x in args[-2:])
        lower = np.bitwise_count(bits & ((np.uint32(1) << bit) - np.uint32(1)))
        *leading, last = self.attrs["axes"]
        places = int(args[1 + last]) + starts.astype(np.int64) + lower
        there = ((bits >> bit & 1) != 0) & (places >= 0) & (places < array.shape[last])
        there, places = there.reshape(shape), places.reshape(shape)
        if array.size == 0:
            return np.full(shape, zero, dt.storage)
        first = [0 if d == last else int(x) for d, x in enumerate(args[1:-2])]
        where, inside = _clipped(array, first, (*shape[:-1], 1), (*leading, last))
        index = list(np.broadcast_arrays(*where, places)[:-1])
        index[last] = np.where(there, places, 0)
        there = there & inside
        frame.check_initialised(self, array, tuple(index), there)
        return np.where(there, array[tuple(index)], zero)

    def expand(self, b: Expansion) -> Sequence[Value]:
        """A gather. Where a sum of places wraps it is negative, and outside."""
        bits, starts = self.operands[-2:]
        *leading, last = self.attrs["axes"]
        somewhere = b.emit(ew.Lt, starts, b.full(MAX_EXTENT, starts.shape, U32))
        bits = b.emit(ew.Where, somewhere, bits, b.full(0, bits.shape, U32))
        wide = (*bits.shape, WORD)

        def spread(v: Value) -> Value:
            return b.broadcast(b.emit(sh.Reshape, v, shape=(*v.shape, 1)), wide)

        def flat(v: Value) -> Value:
            return b.emit(sh.Reshape, v, shape=self.result.shape)
        one, bit = b.full(1, wide, U32), b.emit(ew.Cast, b.positions(wide, len(wide) - 1), dtype=U32)
        each = spread(bits)
        lower = b.emit(ew.And, each, b.emit(ew.Sub, b.emit(ew.Shl, one, bit), one))
        place = flat(b.emit(ew.Bitcast, b.emit(ew.Add, spread(starts), b.emit(ew.Popcount, lower)), dtype=I32))
        there = flat(b.emit(ew.Ne, b.emit(ew.And, b.emit(ew.Shr, each, bit), one), b.full(0, wide, U32)))
        indices = []
        for d, offset in enumerate(self.offsets):
            near = isinstance(offset.owner, sh.Const) and 0 <= offset.owner.attrs["value"] < 1 << 30
            dt = I32 if near or d != last and (offset.dtype.bits < 32 or offset.dtype is I32) else I64
            index = b.broadcast(b.emit(ew.Cast, offset, dtype=dt), self.result.shape)
            if d in self.attrs["axes"]:
                more = place if d == last else b.positions(self.result.shape, leading.index(d))
                index = b.emit(ew.Add, index, b.emit(ew.Cast, more, dtype=dt))
            indices.append(index)
        return [b.emit(Gather, self.operands[0], *indices, there, masked=True, fill=0)]


class Scatter(_Indexed):
    """Element writes at index tiles: (tensor, indices…, value, [mask]). Equal indices: one of the values wins."""
    name, effects, attributes, others = "scatter", "write", {"masked": False}, 1

    def outputs(self, memory: TensorType | BufferType, shape: tuple[int, ...]) -> Sequence[Type]:
        check_writable(self, memory)
        return []

    def eval(self, frame: Any, *args: Any) -> Any:
        array, index, (value,), inside = self.active(args)
        where = tuple(i[inside] for i in index)
        if array.size:
            array[where] = value[inside]
            frame.mark_written(self, array, where)
        return ()


class Atomic(_Indexed):
    """Atomic update at index tiles, giving the old values: `kind` is "add", "max", "min" or "cas".

    Operands (tensor, indices…, value, [mask]); "cas" takes (…, compare, value, [mask]) and writes value where the
    memory equals compare, bit for bit. Elements that take no part give 0.
    """
    name, effects, attributes = "atomic", "write", {"kind": ..., "masked": False}

    @property
    def others(self) -> int:  # type: ignore[override]
        return 2 if self.attrs["kind"] == "cas" else 1

    def outputs(self, memory: TensorType | BufferType, shape: tuple[int, ...]) -> Sequence[Type]:
        check_writable(self, memory)
        dt, kind = memory.dtype, self.attrs["kind"]
        wanted = ("i32", "u32", "i64", "u64", "f16", "bf16", "f32", "f64")
        if dt.name not in wanted:
            raise DTypeMismatch(f"atomic {kind} is not defined on {dt}", loc=self.loc,
                                needs=", ".join(wanted), got=str(dt), try_="use a tensor of one of these dtypes")
        return [TileType(shape, dt)]

    def eval(self, frame: Any, *args: Any) -> Any:
        array, index, others, inside = self.active(args)
        dt, kind = self.result.dtype, self.attrs["kind"]
        old = np.zeros(inside.shape, dt.storage)
        for at in np.argwhere(inside):  # one by one: equal indices accumulate
            place, here = tuple(i[tuple(at)] for i in index), tuple(at)
            old[here] = array[place]
            if kind == "cas":
                if array[place].tobytes() == others[0][here].tobytes():
                    array[place] = others[1][here]
            else:
                fn = {"add": np.add, "max": np.maximum, "min": np.minimum}[kind]
                array[place] = from_compute(fn(to_compute(old[here], dt), to_compute(others[0][here], dt)), dt)
            frame.mark_written(self, array, place)
        return old


# -- memory of a program (tier 2) -------------------------------------------------------------------------------------
class Alloc(Op):
    """Memory of this program, uninitialised; reading an element never written is an error in the interpreter.
    `offset` is its place in bytes, once a pass has chosen one, of which `align` is a divisor; `managed`: the compiler
    uses it and sees to barriers."""
    name, levels = "alloc", ALL_LEVELS
    attributes = {"dtype": ..., "shape": ..., "space": "shared", "layout": None, "offset": None, "managed": False,
                  "align": 1}

    def infer(self) -> Sequence[Type]:
        return [BufferType(self.attrs["dtype"], tuple(self.attrs["shape"]), self.attrs["space"],
                           self.attrs["layout"])]

    def eval(self, frame: Any, *args: Any) -> Any:
        return frame.allocate(self.attrs["shape"], self.attrs["dtype"])


class CopyAsync(Op):
    """Starts copying a block of a tensor into a buffer: operands (tensor, offsets…, buffer, index…). The block is the
    whole of the buffer, or of its last dimensions at the index of the first ones; nothing is copied where that is
    outside. Elements outside the tensor are 0, as those of a `load`. The data is there after the `wait` that covers
    its group. `fallback` says why it is no copy by one thread, where the target has those."""
    name, effects, attributes = "copy_async", "write", {"axes": ..., "fallback": ""}
    after = 0
    """How many operands follow the index of the buffer's first dimensions."""

    def infer(self) -> Sequence[Type]:
        at = self.buffer
        memory, buffer = memory_type(self, self.operands[0]), memory_type(self, self.operands[at])
        check_offsets(self, memory, self.operands[1:at])
        rest = len(self.index)
        if len(self.attrs["axes"]) + rest != buffer.rank or memory.dtype != buffer.dtype:
            raise ShapeMismatch("`copy_async` between memories that do not fit", loc=self.loc,
                                needs=str(buffer), got=str(memory), try_="give the buffer the block's shape and dtype")
        return []

    def eval(self, frame: Any, *args: Any) -> Any:
        started = self.block(args)
        if started is not None:
            frame.start_copy(self, *started)
        return ()

    def block(self, args: Sequence[Any]) -> tuple[Any, tuple[int, ...], Any] | None:
        """(the buffer's array, the index of its part, what is copied to there); None where it has no such part."""
        first = self.buffer + 1
        array, buffer, where = args[0], args[first - 1], tuple(map(int, args[first:len(args) - self.after]))
        if not all(0 <= i < n for i, n in zip(where, buffer.shape, strict=False)):
            return None
        index, inside = _window(array, args[1:self.buffer], buffer[where].shape, self.attrs["axes"])
        zero = codec.encode(0.0, self.operands[0].dtype)
        data = np.where(inside, array[index], zero) if array.size else np.full(buffer[where].shape, zero, buffer.dtype)
        return buffer, where, data

    @property
    def index(self) -> list[Value]:
        """The index of the part of the buffer."""
        return self.operands[self.buffer + 1:len(self.operands) - self.after]

    @property
    def buffer(self) -> int:
        """Position of the buffer among the operands."""
        last = len(self.operands) - 1
        return next((i for i, v in enumerate(self.operands) if isinstance(v.type, BufferType)), last)


class Commit(Op):
    """Closes the group of asynchronous copies, or at THREAD of `products`, started since the last such `commit`."""
    name, levels, effects, attributes = "commit", ALL_LEVELS, "control", {"products": False}

    def infer(self) -> Sequence[Type]:
        return []

    def eval(self, frame: Any, *args: Any) -> Any:
        frame.commit_copies()
        return ()


class Wait(Op):
    """Waits until at most `pending` of the latest groups are unfinished. At THREAD `operations`, where it is known, is
    how many copies these are; of `products` the operands are the sums that are there from now on."""
    name, levels, effects = "wait", ALL_LEVELS, "control"
    attributes = {"pending": 0, "operations": None, "products": False}

    def infer(self) -> Sequence[Type]:
        return []

    def eval(self, frame: Any, *args: Any) -> Any:
        frame.wait_copies(self.attrs["pending"])
        return ()


class Barrier(Op):
    """Every thread of the program reaches this point before any goes on; shared memory written before is visible."""
    name, levels, effects = "barrier", ALL_LEVELS, "control"

    def infer(self) -> Sequence[Type]:
        return []

    def eval(self, frame: Any, *args: Any) -> Any:
        return ()
