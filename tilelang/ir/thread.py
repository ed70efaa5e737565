"""Operations of the THREAD level: addresses, vector memory access, and instructions of the machine.

Values are scalars and rank-1 vectors. Offsets are i64 and count elements from the first element of the tensor or
buffer; for tensors of sub-byte dtypes they count bits, because rows need not begin on an element boundary.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilelang.errors import VerifyError
from tilelang.ir import codec
from tilelang.ir.core import Op, TensorType, TileType, Type
from tilelang.ir.dtypes import dtype
from tilelang.ir.elementwise import Fma, from_compute, to_compute
from tilelang.ir.memory import memory_type
from tilelang.ir.reduction import reduced

I64, I32, BF16 = dtype("i64"), dtype("i32"), dtype("bf16")
THREAD = frozenset({"thread"})
PLACED = frozenset({"placed"})


class Nest(Op):
    """A loop nest over `shape` that computes its region element by element; only what it yields is stored.

    PLACED level: the region's tiles are never materialised, each is computed where it is used.
    """
    name, levels, effects, attributes = "nest", PLACED, "control", {"shape": ...}

    def infer(self) -> Sequence[Type]:
        return [v.type for v in self.regions[0].yields]

    def eval(self, frame: Any, *args: Any) -> Any:
        return tuple(frame.run_region(self.regions[0], []))


class ConvertLayout(Op):
    """The same tile with another layout of its elements in memory or registers."""
    name, levels, attributes = "convert_layout", PLACED, {"layout": ...}

    def infer(self) -> Sequence[Type]:
        src = self.operands[0].tile
        return [TileType(src.shape, src.dtype, self.attrs["layout"])]

    def eval(self, frame: Any, *args: Any) -> Any:
        return args[0]


class StrideOf(Op):
    """Distance between neighbours along `axis` of a tensor, as i64 (elements; bits for sub-byte dtypes)."""
    name, levels, attributes = "stride", THREAD, {"axis": ...}

    def infer(self) -> Sequence[Type]:
        memory_type(self, self.operands[0])
        return [TileType((), I64)]

    def eval(self, frame: Any, *args: Any) -> Any:
        return np.asarray(_unit(self, 0) * _strides(args[0])[self.attrs["axis"]], np.int64)


def _unit(op: Op, index: int) -> int:
    """What one element counts in an offset: 1, or the element's bits in a tensor of a sub-byte dtype."""
    t = op.operands[index].type
    return t.dtype.bits if isinstance(t, TensorType) and t.dtype.packed else 1


def _strides(array: Any) -> list[int]:
    return [s // array.itemsize for s in array.strides]


def flat(array: Any, offsets: Any, unit: int) -> tuple[Any, Any]:
    """(a flat view of the array's memory, positions in it) for element offsets from the first element."""
    strides = _strides(array)
    low = sum((n - 1) * s for n, s in zip(array.shape, strides, strict=True) if s < 0 and n)
    high = sum((n - 1) * s for n, s in zip(array.shape, strides, strict=True) if s > 0 and n)
    base = array[tuple(slice(-1, None) if s < 0 else slice(0, 1) for s in strides)] if array.ndim else array
    view = np.lib.stride_tricks.as_strided(base, (high - low + 1,), (array.itemsize,)) if array.size else array.ravel()
    at = np.asarray(offsets, np.int64) // unit - low
    if np.any((at < 0) | (at >= len(view))):
        raise IndexError(f"address outside the tensor: {np.asarray(offsets)} of {array.shape}")
    return view, at


class _Access(Op):
    """Shared by the vector loads and stores: (memory, offset, [value], [mask])."""
    levels = THREAD

    def positions(self, offset: Any, lanes: int | None) -> Any:
        unit = _unit(self, 0)
        return np.asarray(offset) if lanes is None else int(offset) + unit * np.arange(lanes)

    def read(self, args: Sequence[Any], positions: Any, dt: Any) -> Any:
        mask = np.broadcast_to(args[2] if len(args) > 2 else True, positions.shape)
        out = np.zeros(positions.shape, dt.storage)
        if np.any(mask):
            view, at = flat(args[0], positions[mask], _unit(self, 0))
            out[mask] = view[at]
        return out

    def write(self, args: Sequence[Any], positions: Any) -> None:
        mask = np.broadcast_to(args[3] if len(args) > 3 else True, positions.shape)
        if np.any(mask):
            view, at = flat(args[0], positions[mask], _unit(self, 0))
            view[at] = np.asarray(args[2])[mask]


class Ld(_Access):
    """`lanes` consecutive elements (a scalar where None) from an offset; lanes whose mask is false are 0 and are not
    touched; one mask may stand for all lanes. Operands (memory, offset, [mask]). Accesses to shared
    memory of one non-zero `phase` never touch the same element from two threads, unless all of them read."""
    name, effects, attributes = "ld", "read", {"lanes": None, "phase": 0}

    def infer(self) -> Sequence[Type]:
        lanes = self.attrs["lanes"]
        return [TileType(() if lanes is None else (lanes,), memory_type(self, self.operands[0]).dtype)]

    def eval(self, frame: Any, *args: Any) -> Any:
        return self.read(args, self.positions(args[1], self.attrs["lanes"]), self.result.dtype)


class LdGather(_Access):
    """Elements at a vector of offsets. Operands (memory, offsets, [mask])."""
    name, effects = "ld_gather", "read"

    def infer(self) -> Sequence[Type]:
        return [TileType(self.operands[1].shape, memory_type(self, self.operands[0]).dtype)]

    def eval(self, frame: Any, *args: Any) -> Any:
        return self.read(args, self.positions(args[1], None), self.result.dtype)


class St(_Access):
    """Writes consecutive elements from an offset. Operands (memory, offset, value, [mask]). `stream` says that the
    data will not be read again soon, and promises whole vectors at addresses that `streams` agreed to; `phase` as in
    `ld`."""
    name, effects, attributes = "st", "write", {"stream": False, "phase": 0}

    def infer(self) -> Sequence[Type]:
        return []

    def eval(self, frame: Any, *args: Any) -> Any:
        shape = self.operands[2].shape
        self.write(args, self.positions(args[1], shape[0] if shape else None))
        return ()


class Prefetch(Op):
    """Asks for the cache line at an offset, which may lie outside of the tensor. Operands (tensor, offset). `near`:
    into the first level of the caches, else the second."""
    name, levels, attributes = "prefetch", THREAD, {"near": False}
    effects = "write"  # keeps its place among the accesses to memory

    def infer(self) -> Sequence[Type]:
        memory_type(self, self.operands[0])
        return []

    def eval(self, frame: Any, *args: Any) -> Any:
        return ()


class Streams(Op):
    """Whether stores to a tensor, from an offset on, should pass by the caches: the tensor does not fit into them, and
    an element, or with `lines` a cache line, begins at the offset and at every step between rows from there. Operands
    (tensor, offset)."""
    name, levels, attributes = "streams", THREAD, {"lines": True}

    def infer(self) -> Sequence[Type]:
        memory_type(self, self.operands[0])
        return [TileType((), dtype("i1"))]

    def eval(self, frame: Any, *args: Any) -> Any:
        return np.asarray(True)  # a hint: both answers give the same results


class ToLine(Op):
    """How many elements lie between an offset into a tensor, whose elements divide a cache line, and the next line's
    beginning. Operands (tensor, offset)."""
    name, levels = "to_line", THREAD

    def infer(self) -> Sequence[Type]:
        memory_type(self, self.operands[0])
        return [TileType((), dtype("i64"))]

    def eval(self, frame: Any, *args: Any) -> Any:
        return np.asarray(0, np.int64)  # tensors have no addresses here: each begins a line


class StScatter(_Access):
    """Writes elements at a vector of offsets, the first lane first. Operands (memory, offsets, value, [mask])."""
    name, effects = "st_scatter", "write"

    def infer(self) -> Sequence[Type]:
        return []

    def eval(self, frame: Any, *args: Any) -> Any:
        self.write(args, self.positions(args[1], None))
        return ()


class AtomicRmw(_Access):
    """One atomic update of one element, giving its old value: (memory, offset, value, [mask]) with `kind` add, max or
    min; (memory, offset, compare, value, [mask]) with cas. Where the mask is false nothing happens and 0 is given."""
    name, effects, attributes = "atomic_rmw", "write", {"kind": ..., "masked": False, "phase": 0}

    def infer(self) -> Sequence[Type]:
        return [TileType((), memory_type(self, self.operands[0]).dtype)]

    def eval(self, frame: Any, *args: Any) -> Any:
        if self.attrs["masked"] and not args[-1]:
            return np.zeros((), self.result.dtype.storage)
        view, at = flat(args[0], args[1], 1)
        old, dt, kind = view[at].copy(), self.result.dtype, self.attrs["kind"]
        if kind == "cas":
            view[at] = args[3] if old.tobytes() == np.asarray(args[2]).tobytes() else old
        else:
            fn = {"add": np.add, "max": np.maximum, "min": np.minimum}[kind]
            view[at] = from_compute(fn(to_compute(old, dt), to_compute(args[2], dt)), dt)
        return old


class Extract(Op):
    """One lane of a vector, as a scalar."""
    name, levels, attributes = "extract", THREAD, {"lane": ...}

    def infer(self) -> Sequence[Type]:
        return [TileType((), self.operands[0].dtype)]

    def eval(self, frame: Any, *args: Any) -> Any:
        return args[0][self.attrs["lane"]]


class Transpose(Op):
    """n vectors of m * group lanes to m vectors of n * group lanes: result j holds group j of every operand."""
    name, levels, attributes = "transpose", THREAD, {"group": 1}

    def infer(self) -> Sequence[Type]:
        first = self.operands[0].tile
        if any(v.type != first for v in self.operands):
            raise VerifyError("`transpose` of unequal vectors", op=self.name, loc=self.loc, needs=str(first),
                              got=str([str(v.type) for v in self.operands]), try_="pass equal vectors")
        group = self.attrs["group"]
        return [TileType((len(self.operands) * group,), first.dtype)] * (first.shape[0] // group)

    def eval(self, frame: Any, *args: Any) -> Any:
        groups = np.stack(args).reshape(len(args), -1, self.attrs["group"])
        return tuple(groups.swapaxes(0, 1).reshape(groups.shape[1], -1))


class ReduceEach(Op):
    """n vectors of n lanes, n = 4, 8, …, to one: lane i is all lanes of operand i combined, in unspecified order."""
    name, levels, attributes = "reduce_each", THREAD, {"kind": ...}

    def infer(self) -> Sequence[Type]:
        first, n = self.operands[0].tile, len(self.operands)
        if any(v.type != first for v in self.operands) or first.shape != (n,) or n < 4 or n & (n - 1):
            raise VerifyError("`reduce_each` needs as many vectors as they have lanes", op=self.name, loc=self.loc,
                              needs="n vectors of n lanes, n = 4, 8, …", got=str([str(v.type) for v in self.operands]),
                              try_="use `reduce`")
        return [first]

    def eval(self, frame: Any, *args: Any) -> Any:
        return reduced(self.attrs["kind"], np.stack(args), 1, self.operands[0].dtype)


class TableEntry(Op):
    """values[i] for each lane i of a vector of u32, all of them below the number of values: f32 held in registers."""
    name, levels, attributes = "table_entry", THREAD, {"values": ...}

    def infer(self) -> Sequence[Type]:
        return [TileType(self.operands[0].shape, dtype("f32"))]

    def eval(self, frame: Any, *args: Any) -> Any:
        return np.asarray(self.attrs["values"], np.float32)[args[0]]


class LaneLookup(Op):
    """Lane index[i] of `table`, whole registers of 32-bit lanes, for each lane i of a vector of u32, all below the
    lanes of the table."""
    name, levels = "lane_lookup", THREAD

    def infer(self) -> Sequence[Type]:
        return [TileType(self.operands[1].shape, self.operands[0].dtype)]

    def eval(self, frame: Any, *args: Any) -> Any:
        return args[0][args[1]]


class DotGroups(Op):
    """acc[i] + sum over j < g of a[g*i + j] * b[g*i + j]: the dot-product instructions of CPUs (operands acc[n], a and
    b of n*g lanes). Of integers, acc i32, exact modulo 2**32. Of bf16, acc f32: the last product of a group is added
    first, each by one rounding to nearest; numbers below 2^-126, operands as well as sums, are zeros of their sign.
    Source: Intel 64 and IA-32 Architectures Software Developer's Manual, VDPBF16PS; a test compares the machine."""
    name, levels = "dot_groups", THREAD

    def infer(self) -> Sequence[Type]:
        return [self.operands[0].type]

    def eval(self, frame: Any, *args: Any) -> Any:
        acc, a, b = args
        if acc.dtype.kind == "f":
            return self._rounded(acc, *(codec.decode(x, BF16).reshape(len(acc), -1) for x in (a, b)))
        a, b = (codec.decode(x, v.dtype).astype(np.int64) for x, v in zip((a, b), self.operands[1:], strict=True))
        return from_compute(acc.astype(np.int64) + (a * b).reshape(len(acc), -1).sum(1), I32)

    def _rounded(self, acc: Any, a: Any, b: Any) -> Any:
        def flushed(x: Any) -> Any:
            return np.where(abs(x) < BF16.smallest_normal, np.copysign(np.float32(0), x), x)
        a, b, acc = flushed(a), flushed(b), flushed(acc)
        for j in reversed(range(a.shape[1])):
            acc = flushed(Fma.fn(a[:, j], b[:, j], acc))
        return acc


class Interleave(Op):
    """g vectors of n lanes to one of n*g: lane i*g + j is lane i of operand j."""
    name, levels = "interleave", THREAD

    def infer(self) -> Sequence[Type]:
        first = self.operands[0].tile
        return [TileType((first.shape[0] * len(self.operands),), first.dtype)]

    def eval(self, frame: Any, *args: Any) -> Any:
        return np.stack(args, -1).reshape(-1)


class Lanes(Op):
    """Lanes of vectors of one type, joined, in the given order."""
    name, levels, attributes = "lanes", THREAD, {"lanes": ...}

    def infer(self) -> Sequence[Type]:
        first, lanes = self.operands[0].tile, self.attrs["lanes"]
        count = len(self.operands) * first.shape[0]
        if any(v.type != first for v in self.operands) or len(self.operands) > 2 or \
                not all(0 <= i < count for i in lanes):
            raise VerifyError("`lanes` needs lanes that its vectors have", op=self.name, loc=self.loc,
                              needs=f"one or two {first} and lanes below {count}",
                              got=f"{[str(v.type) for v in self.operands]}, {lanes}", try_="check the table")
        return [TileType((len(lanes),), first.dtype)]

    def eval(self, frame: Any, *args: Any) -> Any:
        return np.concatenate(args)[list(self.attrs["lanes"])]


class Repeat(Op):
    """A vector of g lanes repeated to `times` * g lanes."""
    name, levels, attributes = "repeat", THREAD, {"times": ...}

    def infer(self) -> Sequence[Type]:
        src = self.operands[0].tile
        return [TileType((src.shape[0] * self.attrs["times"],), src.dtype)]

    def eval(self, frame: Any, *args: Any) -> Any:
        return np.tile(args[0], self.attrs["times"])
