"""Block and element access to tensors and buffers by the threads of a program."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tilelang.backends.cpu.builder import I64, Index, ThreadBuilder
from tilelang.backends.simt.facts import Facts
from tilelang.backends.simt.registers import Threads, local_offsets
from tilelang.ir import elementwise as ew
from tilelang.ir import shape as sh
from tilelang.ir import thread as th
from tilelang.ir.core import BufferType, Op, TensorType, Value
from tilelang.layouts import RegisterLayout


class Access:
    """Lowers loads, stores, gathers, scatters and atomics; `of` maps PLACED values to THREAD values."""

    def __init__(self, b: ThreadBuilder, threads: Threads, facts: Facts, of: dict[Value, Value]) -> None:
        self.b, self.threads, self.facts, self.of = b, threads, facts, of

    def dim(self, memory: Value, axis: int) -> Index:
        t = memory.type
        assert isinstance(t, TensorType | BufferType)
        if isinstance(t, BufferType):
            return t.shape[axis]
        dim = t.dims[axis]
        return dim if isinstance(dim, int) else self.b.to_index(self.b.pure(Op.registry["dim"], memory, axis=axis))

    def stride(self, memory: Value, axis: int) -> Index:
        t = memory.type
        if isinstance(t, BufferType):
            step = 1
            for e in t.shape[axis + 1:]:
                step *= e
            return step
        assert isinstance(t, TensorType)
        if axis < len(t.unit) and t.unit[axis]:
            return t.dtype.bits if t.dtype.packed else 1
        return self.b.pure(th.StrideOf, memory, axis=axis)

    def vector(self, op: Op, memory: Value, offsets: Sequence[Value], layout: RegisterLayout | None,
               shape: Sequence[int]) -> int:
        """How many neighbouring registers one access may carry."""
        t, axes = memory.type, list(op.attrs["axes"])
        assert isinstance(t, TensorType | BufferType)
        if layout is None or t.dtype.packed or isinstance(t, BufferType):
            return 1
        unit = next((i for i, u in enumerate(t.unit) if u), None)
        if unit is None or unit not in axes:
            return 1
        size, at = t.dtype.storage.itemsize, axes.index(unit)
        width = min(layout.contiguous(at), max(min(t.align, 16) // size, 1))
        while width > 1 and (self.facts.divisor(offsets[unit]) % width or shape[at] % width or width & (width - 1)):
            width -= 1
        return width

    # -- blocks -------------------------------------------------------------------------------------------------------
    def _groups(self, op: Op, memory: Value, offsets: Sequence[Value], layout: RegisterLayout | None,
                shape: Sequence[int], store: bool) -> list[tuple[int, int, Index, Value | None]]:
        """(first register, registers, offset, mask) of every access of a thread."""
        b, axes = self.b, list(op.attrs["axes"])
        rank = len(offsets)
        width = self.vector(op, memory, offsets, layout, shape)
        local = local_offsets(layout) if layout is not None else [()]
        always: list[Value] = []
        if store:  # one of the copies writes
            leader = self.threads.leader(layout) if layout is not None else \
                b.pure(ew.Eq, self.threads.thread, b.const(0, self.threads.thread.dtype))
            always = [leader] if leader is not None else []
        starts: list[Index] = []
        base: Index = 0
        strides = [self.stride(memory, a) for a in range(rank)]
        for a in range(rank):
            start = b.to_index(self.of.get(offsets[a], offsets[a]))
            if a in axes and layout is not None:
                start = b.add(start, self.threads.part(layout, axes.index(a)))
            starts.append(start)
            base = b.add(base, b.mul(start, strides[a]))
        out = []
        for first in range(0, len(local), width):
            offset, conditions = base, list(always)
            for a in range(rank):
                step = int(local[first][axes.index(a)]) if a in axes and layout is not None else 0
                offset = b.add(offset, b.mul(strides[a], step))
                conditions += self._within(memory, a, offsets[a], b.add(starts[a], step), step)
                if store and a in axes and layout is not None:
                    t = axes.index(a)
                    if layout.shape[t] > shape[t]:
                        part = b.add(self.threads.part(layout, t), step)
                        conditions.append(b.pure(ew.Lt, b.index(part), b.index(shape[t])))
            mask = b.all_of(list(dict.fromkeys(conditions))) if conditions else None
            out.append((first, width, offset, mask))
        return out

    def _within(self, memory: Value, axis: int, offset: Value, at: Index, step: int) -> list[Value]:
        """Conditions for an index to lie in the tensor, without those known to hold."""
        b, dim = self.b, self.dim(memory, axis)
        out = []
        if isinstance(at, int):
            if at < 0:
                return [b.const(0, ew.I1)]
        elif not self.facts.nonnegative(offset):
            out.append(b.pure(ew.Ge, at, b.index(0)))
        if not (isinstance(at, int) and isinstance(dim, int) and at < dim):
            out.append(b.pure(ew.Lt, b.index(at), b.index(dim)))
        return out

    def load(self, op: Op) -> Value:
        b, result = self.b, op.result
        layout = result.tile.layout
        assert layout is None or isinstance(layout, RegisterLayout)
        memory = self.of.get(op.operands[0], op.operands[0])
        parts, fill = [], op.attrs["fill"]
        for _, width, offset, mask in self._groups(op, memory, op.operands[1:], layout, op.attrs["shape"], False):
            lanes = width if result.shape else None
            value = b.effect(th.Ld, memory, b.index(offset), *([mask] if mask is not None else []),
                             lanes=lanes if width > 1 else None).result
            if mask is not None and not (fill == 0 and value.dtype.kind in ("int", "uint", "float", "bool")):
                lanes = width if width > 1 else None
                value = b.pure(ew.Where, b.splat(mask, lanes), value, b.full(fill, value.dtype, lanes))
            parts.append(value)
        return join(b, parts) if result.shape else parts[0]

    def store(self, op: Op) -> None:
        b = self.b
        src, memory = op.operands[-1], self.of.get(op.operands[0], op.operands[0])
        layout = src.tile.layout
        assert layout is None or isinstance(layout, RegisterLayout)
        value = self.of.get(src, src)
        for first, width, offset, mask in self._groups(op, memory, op.operands[1:-1], layout, src.shape, True):
            piece = lanes_of(b, value, first, width) if src.shape else value
            b.effect(th.St, memory, b.index(offset), piece, *([mask] if mask is not None else []))

    # -- elements -----------------------------------------------------------------------------------------------------
    def elements(self, op: Op) -> list[Value]:
        """Gather, scatter or atomic, one register after the other; gives the registers of the result."""
        b = self.b
        memory, indices, others, extra = op.split()  # type: ignore[attr-defined]
        target = self.of.get(op.operands[0], op.operands[0])
        assert isinstance(memory, TensorType | BufferType)
        tile = indices[0].tile
        layout = tile.layout if tile.shape else None
        assert layout is None or isinstance(layout, RegisterLayout)
        always: list[Value] = []
        if op.name != "gather":
            leader = self.threads.leader(layout) if layout is not None else \
                b.pure(ew.Eq, self.threads.thread, b.const(0, self.threads.thread.dtype))
            always = [leader] if leader is not None else []
        inside = self.threads.inside(layout, tile.shape) if layout is not None else None
        out = []
        for i in range(layout.local_size if layout is not None else 1):
            def lane(v: Value, i: int = i) -> Value:
                x = self.of.get(v, v)
                return b.pure(th.Extract, x, lane=i) if x.shape else x
            conditions = list(always)
            if inside is not None and op.name != "gather":
                conditions.append(b.pure(th.Extract, inside, lane=i))
            if extra is not None:
                conditions.append(lane(extra))
            offset: Index = 0
            for a, v in enumerate(indices):
                at = b.pure(ew.Cast, lane(v), dtype=I64) if v.dtype is not I64 else lane(v)
                conditions.append(b.pure(ew.Ge, at, b.index(0)))
                conditions.append(b.pure(ew.Lt, at, b.index(self.dim(target, a))))
                offset = b.add(offset, b.mul(at, self.stride(target, a)))
            mask, where = b.all_of(conditions), b.index(offset)
            if op.name == "gather":
                value = b.effect(th.Ld, target, where, mask, lanes=None).result
                fill = op.attrs["fill"]
                if not (fill == 0 and value.dtype.kind in ("int", "uint", "float", "bool")):
                    value = b.pure(ew.Where, mask, value, b.full(fill, value.dtype, None))
                out.append(value)
            elif op.name == "scatter":
                b.effect(th.St, target, where, lane(others[0]), mask)
            else:
                out.append(b.effect(th.AtomicRmw, target, where, *map(lane, others), mask, kind=op.attrs["kind"],
                                    masked=True).result)
        return out


def join(b: ThreadBuilder, parts: Sequence[Value]) -> Value:
    """Scalars and vectors side by side in one vector."""
    vectors = [b.splat(p, 1) if not p.shape else p for p in parts]
    return vectors[0] if len(vectors) == 1 else b.pure(sh.Concat, *vectors, axis=0)


def lanes_of(b: ThreadBuilder, value: Value, first: int, count: int) -> Value:
    """`count` lanes from `first`, a scalar where that is one."""
    if count == 1:
        return b.pure(th.Extract, value, lane=first)
    if count == value.shape[0]:
        return value
    return b.pure(sh.Slice, value, starts=(first,), shape=(count,), steps=(1,))


def constants(b: ThreadBuilder, values: Sequence[int], dt: Any) -> Value:
    return b.pure(sh.ConstTile, values=tuple(map(int, values)), dtype=dt)
