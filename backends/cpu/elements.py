"""Values of a nest at one position: each operation computed where it is used, vectors along one dimension."""
from __future__ import annotations

import math
from collections.abc import Sequence

from tilelang.backends.cpu.ahead import Ahead
from tilelang.backends.cpu.buffers import ZERO, Buffer, Ix, lanes_of
from tilelang.backends.cpu.machine import LINE
from tilelang.backends.cpu.runs import row_run
from tilelang.backends.thread.builder import I32, I64, Index, Level, ThreadBuilder
from tilelang.ir import elementwise as ew
from tilelang.ir import shape as sh
from tilelang.ir import thread as th
from tilelang.ir.core import BufferType, Op, TensorType, Value
from tilelang.ir.dtypes import dtype
from tilelang.ir.memory import U32, WORD

Position = tuple[Ix, ...]
AHEAD = 16384
"""Bytes from what is read to what is asked for: some pages, because those that follow them in order lie elsewhere in
memory, and less than the first level of the caches holds."""


class Elements:
    """Emits the values of a region; `stored` maps values in memory to buffers, `scalars` the others. `ahead`: loads
    that ask for elements that are needed later, too."""

    def __init__(self, b: ThreadBuilder, stored: dict[Value, Buffer], scalars: dict[Value, Value],
                 local: set[Value], vector_bytes: int, ahead: dict[Op, Ahead]) -> None:
        self.b, self.stored, self.scalars, self.local = b, stored, scalars, local
        self.vector_bytes, self.ahead = vector_bytes, ahead
        self.asked: Sequence[Op] = ()  # loads of which the nest asks for later blocks as a whole
        self.masked = False
        self.before: Index | None = None  # where masks end, if not with a tensor
        self.registers: dict[tuple[Value, Position], Value] = {}  # vectors of tiles that are not in memory
        self.made: dict[tuple[Value, Position], tuple[Level, Value]] = {}  # of the position that is being written
        self.parts: dict[tuple[Value, Position], Value] | None = None  # of the value that is being computed

    def scalar(self, v: Value) -> Value:
        """A scalar, from outside the nest or computed in it."""
        return self.at(v, ()) if v in self.local else self.scalars.get(v, v)

    def memory(self, op: Op) -> Value:
        """The tensor or buffer an operation accesses."""
        return self.scalars.get(op.operands[0], op.operands[0])

    def at(self, v: Value, where: Position) -> Value:
        """The value at a position: a vector where the position has one, or a scalar where it does not matter."""
        if v not in self.local:
            if (v, where) in self.registers:
                return self.registers[v, where]
            return self.stored[v].load(self.b, where) if v.shape else self.scalar(v)
        home, made = self.made.get((v, where), (None, v))
        if home in self.b.levels:  # else it stands in another branch
            return made
        if self.parts is None:
            self.parts = {}
            out = self._compute(v, where if v.shape else ())
            self.parts = None
            return out
        if (v, where) not in self.parts:
            self.parts[v, where] = self._compute(v, where if v.shape else ())
        return self.parts[v, where]

    def keep(self, v: Value, where: Position, value: Value) -> None:
        """`at` gives this `value`, in the region that it stands in."""
        self.made[v, where] = self.b.levels[self.b.level_of.get(value, 0)], value

    def _compute(self, v: Value, where: Position) -> Value:
        op = v.owner
        assert op is not None
        rule = getattr(self, f"_at_{op.name}", None)
        if rule is not None:
            return rule(op, where)
        return self.b.apply(type(op), [self.at(o, where) for o in op.operands], op.attrs)

    def _at_convert_layout(self, op: Op, where: Position) -> Value:
        return self.at(op.operands[0], where)

    def _at_broadcast(self, op: Op, where: Position) -> Value:
        src = op.operands[0]
        tail = where[len(where) - len(src.shape):]
        return self.at(src, tuple(ZERO if e == 1 else ix for e, ix in zip(src.shape, tail, strict=True)))

    def _at_permute(self, op: Op, where: Position) -> Value:
        inner = [ZERO] * len(where)
        for i, ix in zip(op.attrs["order"], where, strict=True):
            inner[i] = ix
        return self.at(op.operands[0], tuple(inner))

    def _at_reshape(self, op: Op, where: Position) -> Value:
        it = iter([ix for ix, e in zip(where, op.result.shape, strict=True) if e != 1])
        return self.at(op.operands[0], tuple(ZERO if e == 1 else next(it) for e in op.operands[0].shape))

    def _at_slice(self, op: Op, where: Position) -> Value:
        full = where if where or not op.operands[0].shape else (ZERO,) * len(op.operands[0].shape)
        return self.at(op.operands[0], tuple(ix.shifted(self.b, s, t) for ix, s, t in
                                             zip(full, op.attrs["starts"], op.attrs["steps"], strict=True)))

    def _at_concat(self, op: Op, where: Position) -> Value:
        """Of tiles of extent 1 the one at a known place, or a choice."""
        b, axis = self.b, op.attrs["axis"]
        ix, there = where[axis], (*where[:axis], ZERO, *where[axis + 1:])
        if ix.lanes is None and isinstance(ix.base, int):
            return self.at(op.operands[ix.base], there)
        place = b.index(ix.base) if ix.lanes is None else b.offsets(ix.base, ix.lanes, ix.step)
        out = self.at(op.operands[-1], there)
        for i, v in reversed(list(enumerate(op.operands[:-1]))):
            here = b.apply(ew.Eq, [place, b.const(i, I64)], {})
            out = b.apply(ew.Where, [here, self.at(v, there), out], {})
        return out

    def _at_arange(self, op: Op, where: Position) -> Value:
        b, (ix,) = self.b, where
        base = b.index(b.add(ix.base, op.attrs["start"]))
        first = b.pure(ew.Cast, base, dtype=I32) if not isinstance(base.owner, sh.Const) else \
            b.const(base.owner.attrs["value"], I32)
        if ix.lanes is None:
            return first
        lane = b.iota(ix.lanes)
        if ix.step != 1:
            lane = b.pure(ew.Mul, lane, b.full(ix.step, I32, ix.lanes))
        return b.pure(ew.Add, lane, b.splat(first, ix.lanes))

    def _at_lookup(self, op: Op, where: Position) -> Value:
        b, index = self.b, self.at(op.operands[1], where)
        lanes = index.shape[0] if index.shape else None
        if lanes is not None and self.in_register(op):
            entries = self.at(op.operands[0], (Ix(0, op.operands[0].shape[0]),))
            return b.pure(th.LaneLookup, entries, b.pure(ew.Cast, index, dtype=dtype("u32")))
        table = self.stored[op.operands[0]]
        wide = b.apply(ew.Cast, [index], {"dtype": I64})
        limit = b.full(table.shape[0], I64, lanes)
        inside = b.pure(ew.And, b.pure(ew.Ge, wide, b.full(0, I64, lanes)), b.pure(ew.Lt, wide, limit))
        if lanes is None:
            return b.load(table.memory, wide, None, 1, inside)
        return b.read(th.LdGather, table.memory, wide, inside)

    def _at_lookup4(self, op: Op, where: Position) -> Value:
        words = self.at(op.operands[1], where)
        table = self.at(op.operands[0], (Ix(0, op.operands[0].shape[0]),))
        return self.b.pure(sh.Lookup4, table, words)

    def in_register(self, op: Op) -> bool:
        """Whether a table is one register of AVX-512, and no index can lie outside of it."""
        table, index = (v.tile for v in op.operands)
        return (self.vector_bytes == 64 and table.dtype.name in ("f32", "i32", "u32") and table.shape[0] == 16
                and index.dtype.kind == "uint" and index.dtype.bits <= 4)

    def _at_load(self, op: Op, where: Position) -> Value:
        b, lanes = self.b, lanes_of(where)
        offset, stride, mask = self._window(op, op.operands[1:], where)
        mask = self._as_mask(mask, lanes)
        value = b.load(self.memory(op), offset, lanes, stride, mask)
        if op in self.ahead and lanes is not None and isinstance(stride, int) and stride == 1 and not self.masked:
            if op not in self.asked:
                self._fetch(op, offset, where)
            self.keep(op.result, where, value)
        return b.filled(value, mask, op.attrs["fill"], lanes)

    def _fetch(self, op: Op, offset: Index, where: Position) -> None:
        """Asks for what will be needed where this position reads the elements at `offset`: where the block is large
        and read row by row, that many rows on, else what a later block has there."""
        b, ahead, axes, shape = self.b, self.ahead[op], list(op.attrs["axes"]), op.attrs["shape"]
        dt, lanes, axis = op.result.dtype, lanes_of(where) or 1, ahead.axis
        row = -(-math.prod(shape[1:]) * dt.memory_bits // 8)
        on = -(-AHEAD // row)
        near = len(shape) > 1 and where[0].lanes is None and axis in (None, axes[0]) and \
            (ahead.blocks * self._block(op) if axis is not None else shape[0]) * row > AHEAD
        if not near:
            later = self.later(op, where)
        elif axis is not None:
            later = b.add(offset, b.mul(self._stride(op.operands[0], axis), on))
        else:  # rows on in the block, or in the next one
            beyond = b.sub(b.add(where[0].base, on), shape[0])
            there = b.add(offset, b.mul(self._stride(op.operands[0], axes[0]), on))
            behind = self.later(op, (Ix(beyond), *where[1:]))
            later = b.pure(ew.Where, b.pure(ew.Lt, b.index(beyond), b.index(0)), b.index(there), b.index(behind))
        for bit in range(0, lanes * dt.memory_bits, 8 * LINE):
            at = b.add(later, bit if dt.packed else bit // dt.memory_bits)
            b.hint(th.Prefetch, self.memory(op), b.index(at), near=near)

    def later(self, op: Op, where: Position) -> Index:
        """The offset of what a later block has at a position of a load that asks ahead."""
        b, ahead = self.b, self.ahead[op]
        if ahead.axis is None:
            return self._window(op, ahead.offsets, where)[0]
        offset, *_ = self._window(op, op.operands[1:], where)
        return b.add(offset, b.mul(self._stride(op.operands[0], ahead.axis), ahead.blocks * self._block(op)))

    def _block(self, op: Op) -> int:
        """What a load that asks ahead reads along the axis of the blocks."""
        axes, axis = op.attrs["axes"], self.ahead[op].axis
        return op.attrs["shape"][axes.index(axis)] if axis in axes else 1

    def _at_gather(self, op: Op, where: Position) -> Value:
        b, lanes = self.b, lanes_of(where)
        offsets, mask = self.places(op, where)
        if lanes is None or not offsets.shape:
            value = b.load(self.memory(op), offsets, lanes, 1, mask)
        else:
            value = b.read(th.LdGather, self.memory(op), offsets, mask)
        return b.filled(value, mask, op.attrs["fill"], lanes)

    def places(self, op: Op, where: Position) -> tuple[Value, Value]:
        """(offsets, mask) of a gather or scatter: one offset for each lane, or that of the first where all touch
        neighbours."""
        b, lanes = self.b, lanes_of(where)
        _, indices, _, extra = op.split()  # type: ignore[attr-defined]
        run = row_run(op, self.local) if lanes is not None else None
        if run is None or where[run[0]].lanes != lanes or where[run[0]].step != 1:
            offsets, mask = self._element(self.memory(op), indices, extra, where)
            return b.splat(offsets, lanes), b.splat(mask, lanes)
        d, axis = run
        first = (*where[:d], Ix(where[d].base), *where[d + 1:])
        offset, inside = self._element(self.memory(op), indices, None, first, axis)
        at = b.pure(ew.Cast, self.at(indices[axis], first), dtype=I64)
        mask = self._lane_mask(at, b.extent(self.memory(op), axis), Ix(at, lanes))
        mask = b.pure(ew.And, mask, b.splat(inside, lanes))
        return offset, mask if extra is None else b.pure(ew.And, mask, b.splat(self.at(extra, where), lanes))

    def _at_expand_load(self, op: Op, where: Position) -> Value:
        """Along a row by words, a register of whose values is permuted; else element by element."""
        b, (*rows, column) = self.b, where
        if column.lanes is None:
            return self._expanded(op, rows, column.base, None)
        lanes = math.gcd(self._span, column.lanes, b.multiple(column.base)) if column.step == 1 else 1
        parts = [self._expanded(op, rows, b.add(column.base, i * column.step), lanes)
                 for i in range(0, column.lanes, lanes)]
        return b.pure(sh.Concat, *parts, axis=0) if len(parts) > 1 else parts[0]

    @property
    def _span(self) -> int:
        """How many elements of a packed row are expanded at once, out of as many values: a word's, or on AVX2, where a
        permutation takes one register, as many as that has lanes."""
        return WORD if self.vector_bytes == 64 else self.vector_bytes // 4

    def _expanded(self, op: Op, rows: Sequence[Ix], column: Index, lanes: int | None) -> Value:
        """Some columns of a row that share a word, or one column, maybe of several rows."""
        b, dt, memory = self.b, op.result.dtype, self.memory(op)
        index, axis = (*rows, Ix(b.div(column, WORD))), op.attrs["axes"][-1]
        word, start = (self.at(v, index) for v in op.operands[-2:])
        first: Index = b.to_index(start)
        if lanes is not None and self._span < WORD:  # the lower bits of the word tell where the part's values begin
            part = b.pure(ew.Cast, b.index(b.sub(b.mod(column, WORD), b.mod(column, self._span))), dtype=U32)
            one = b.const(1, U32)
            low = b.pure(ew.And, word, b.pure(ew.Sub, b.pure(ew.Shl, one, part), one))
            first, word = b.add(first, b.to_index(b.pure(ew.Popcount, low))), b.pure(ew.Shr, word, part)
            column = b.mod(column, self._span)
        bit = b.pure(ew.Cast, b.index(b.mod(column, WORD)), dtype=U32)
        if lanes is not None:
            bit = b.apply(ew.Add, [b.pure(ew.Cast, b.iota(lanes), dtype=U32), bit], {})
        one = b.const(1, U32)
        mask = b.apply(ew.Shl, [one, bit], {})
        there = b.apply(ew.Ne, [b.apply(ew.And, [word, mask], {}), b.const(0, U32)], {})
        lower = b.apply(ew.Popcount, [b.apply(ew.And, [word, b.apply(ew.Sub, [mask, one], {})], {})], {})
        offset, stride, inside = self._window(op, op.operands[1:-2], (*rows, ZERO))
        zero = b.const(0, dt)
        room = b.index(b.sub(b.extent(memory, axis), self._from(op, axis)))
        if lanes is None:
            place = b.apply(ew.Add, [b.apply(ew.Cast, [x], {"dtype": I64}) for x in (start, lower)], {})
            there = b.apply(ew.And, [there, b.apply(ew.Lt, [place, room], {})], {})
            if inside is not None:
                there = b.apply(ew.And, [there, inside], {})
            if there.shape:
                places = b.apply(ew.Add, [b.offsets(offset, there.shape[0], stride), place], {})
                value = b.read(th.LdGather, memory, places, there)
            else:
                value = b.load(memory, b.add(offset, place), None, 1, there)
            return b.apply(ew.Where, [there, value, zero], {})
        begin = b.pure(ew.Min, b.index(first), room)
        left = b.sub(room, begin)
        if inside is not None:
            left = b.pure(ew.Where, inside, b.index(left), b.index(0))
        left = b.pure(ew.Cast, b.index(left), dtype=U32)
        held = b.pure(ew.Lt, b.pure(ew.Cast, b.iota(self._span), dtype=U32), b.splat(left, self._span)) \
            if self.masked else None
        there = b.pure(ew.And, there, b.pure(ew.Lt, lower, b.splat(left, lanes)))
        values = b.load(memory, b.add(offset, begin), self._span, 1, held)
        if op in self.ahead and not self.masked:
            later = b.add(b.add(offset, begin), AHEAD // dt.storage.itemsize)
            b.hint(th.Prefetch, memory, b.index(later), near=True)
        code = dtype(f"u{dt.bits}")

        def wide(x: Value) -> Value:
            return b.pure(ew.Cast, b.pure(ew.Bitcast, x, dtype=code), dtype=U32)
        # As words until the end, so that a cast to wider numbers takes these.
        found = b.apply(ew.Where, [there, b.pure(th.LaneLookup, wide(values), lower), wide(zero)], {})
        return b.pure(ew.Bitcast, b.pure(ew.Cast, found, dtype=code), dtype=dt)

    def _from(self, op: Op, axis: int) -> Index:
        """Where an access begins along a dimension of its tensor."""
        return self.b.to_index(self.scalar(op.operands[1 + axis]))

    def _whole_words(self, op: Op) -> Value:
        """Whether there is memory of the tensor behind the end of each row that an `expand_load` reads, for as many
        elements as a word has bits: then words may be expanded without masks."""
        b, memory, (*axes, last) = self.b, self.memory(op), op.attrs["axes"]
        assert isinstance(memory.type, TensorType)
        extents, others = dict(zip(axes, op.result.shape, strict=False)), {*range(memory.type.rank)} - {last}
        after: Index = 0  # elements behind the last row
        for axis in sorted(others):
            left = b.sub(b.index(b.sub(b.extent(memory, axis), extents.get(axis, 1))), b.index(self._from(op, axis)))
            after = b.add(after, b.mul(left, self._stride(memory, axis)))
        least = [(self._stride(memory, axis), 0) for axis in sorted(others)]
        return b.all_of([b.pure(ew.Ge, b.index(x), b.index(n)) for x, n in [*least, (after, WORD)]])

    def _as_mask(self, mask: Value | None, lanes: int | None) -> Value | None:
        return None if mask is None else self.b.splat(mask, lanes)

    def _stride(self, memory: Value, axis: int) -> Index:
        t = memory.type
        if isinstance(t, BufferType):
            return math.prod(t.shape[axis + 1:])
        return self.b.stride(memory, axis)

    def _window(self, op: Op, offsets: Sequence[Value], where: Position) -> tuple[Index, Index, Value | None]:
        """(offset, stride between lanes, mask or None) of a block access at a position."""
        b, memory, axes = self.b, self.memory(op), list(op.attrs["axes"])
        offset: Index = 0
        lane_stride: Index = 1
        scalars: list[Value] = []
        mask: Value | None = None
        for a, off in enumerate(offsets):
            ix = where[axes.index(a)] if a in axes else ZERO
            at = b.add(b.to_index(self.scalar(off)), ix.base)
            stride = self._stride(memory, a)
            dim = self.b.extent(memory, a)
            if ix.lanes is not None:
                lane_stride = b.mul(stride, ix.step)
                if self.masked:
                    mask = self._lane_mask(at, dim, ix) if self.before is None else \
                        self._lane_mask(ix.base, self.before, ix)
            elif self.masked:
                scalars += [b.pure(ew.Ge, b.index(at), b.index(0)), b.pure(ew.Lt, b.index(at), b.index(dim))]
                # Masked lanes take processors long where there is no memory behind them.
                at = b.clamp(at, 0, b.sub(dim, 1))
            offset = b.add(offset, b.mul(at, stride))
        if scalars:
            every = b.all_of(scalars)
            mask = every if mask is None else b.pure(ew.And, mask, b.splat(every, mask.shape[0]))
        return offset, self._element_stride(memory, lane_stride), mask

    def _element_stride(self, memory: Value, stride: Index) -> Index:
        """1 for neighbours in a sub-byte tensor, whose strides count bits."""
        t = memory.type
        packed = isinstance(t, TensorType) and t.dtype.packed
        return 1 if packed and isinstance(stride, int) and stride == t.dtype.bits else stride

    def _lane_mask(self, at: Index, dim: Index, ix: Ix) -> Value:
        b, lanes = self.b, ix.lanes
        assert lanes is not None
        if ix.step != 1:
            position = b.offsets(at, lanes, ix.step)
            return b.pure(ew.And, b.pure(ew.Ge, position, b.full(0, I64, lanes)),
                          b.pure(ew.Lt, position, b.splat(b.index(dim), lanes)))
        lane = b.iota(lanes)
        low = b.pure(ew.Cast, b.index(b.clamp(b.mul(at, -1), 0, lanes)), dtype=I32)
        high = b.pure(ew.Cast, b.index(b.clamp(b.sub(b.index(dim), b.index(at)), 0, lanes)), dtype=I32)
        return b.pure(ew.And, b.pure(ew.Ge, lane, b.splat(low, lanes)), b.pure(ew.Lt, lane, b.splat(high, lanes)))

    def _element(self, memory: Value, indices: Sequence[Value], extra: Value | None, where: Position,
                 free: int | None = None) -> tuple[Value, Value]:
        """(offsets, mask) of element accesses at index tiles; the mask leaves axis `free` out."""
        b = self.b
        values = [b.apply(ew.Cast, [self.at(i, where)], {"dtype": I64}) for i in indices]
        mask = self.at(extra, where) if extra is not None else None
        total: Value | None = None
        for a, v in enumerate(values):
            width = v.shape[0] if v.shape else None
            if a != free:
                inside = b.pure(ew.And, b.pure(ew.Ge, v, b.full(0, I64, width)),
                                b.pure(ew.Lt, v, b.splat(b.index(self.b.extent(memory, a)), width)))
                mask = inside if mask is None else b.apply(ew.And, [mask, inside], {})
            term = b.pure(ew.Mul, v, b.splat(b.index(self._stride(memory, a)), width))
            total = term if total is None else b.apply(ew.Add, [total, term], {})
        assert total is not None
        mask = b.const(1, ew.I1) if mask is None else mask
        if total.shape and not mask.shape:
            mask = b.splat(mask, total.shape[0])
        elif mask.shape and not total.shape:
            total = b.splat(total, mask.shape[0])
        return total, mask
