"""Lowers one `nest`: loops over its shape, vectors along one dimension, every value computed where it is used.

Blocks that may cross the edge of a tensor are written twice: without masks where the whole block lies inside, with
masks otherwise.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

from tilelang.backends.cpu.buffers import ZERO, Buffer, Ix, lanes_of, new_buffer
from tilelang.backends.cpu.builder import I32, I64, Index, ThreadBuilder
from tilelang.ir import control
from tilelang.ir import elementwise as ew
from tilelang.ir import shape as sh
from tilelang.ir import thread as th
from tilelang.ir.core import BufferType, Op, Region, TensorType, TileType, Value
from tilelang.ir.reduction import Reduce, identity

COMBINE: dict[str, type[Op]] = {
    "sum": ew.Add,
    "prod": ew.Mul,
    "max": ew.Max,
    "min": ew.Min,
    "any": ew.Or,
    "all": ew.And,
}
Position = tuple[Ix, ...]


class NestLowering:
    """State of the lowering of one nest; `stored` maps values in memory to buffers, `scalars` the others."""

    def __init__(self, b: ThreadBuilder, op: th.Nest, stored: dict[Value, Buffer], scalars: dict[Value, Value],
                 wanted: Callable[[Value], Buffer | None], vector_bytes: int) -> None:
        self.b, self.stored, self.scalars = b, stored, scalars
        self.region = op.regions[0]
        self.shape: tuple[int, ...] = tuple(op.attrs["shape"])
        self.local = {r for o in self.region.ops for r in o.results}
        self.yields = list(zip(self.region.yields, op.results, strict=True))
        self.reduces = [o for o in self.region.ops if o.name == "reduce"]
        self.effects = [o for o in self.region.ops if o.name in ("store", "scatter", "atomic", "assert")]
        self.axis = self.reduces[0].attrs["axis"] if self.reduces else None
        self.custom = any(o.attrs["kind"] == "custom" for o in self.reduces)
        self.masked = False
        self.vector_bytes = vector_bytes
        self.values: dict[Value, Value] = {}
        self.targets: dict[Value, Buffer] = {}
        for inner, outer in self.yields:
            t = outer.tile
            layout = t.layout
            self.targets[inner] = wanted(outer) or new_buffer(b, t.shape, t.dtype, layout)  # type: ignore[arg-type]
            if t.shape:
                stored[outer] = self.targets[inner]

    # -- shape of the loops -------------------------------------------------------------------------------------------
    def run(self) -> None:
        b = self.b
        b.epoch += 1
        floor, b.floor = b.floor, len(b.levels) - 1
        self.vector = self._vector_dim()
        inside = self._inside()
        if inside:
            with b.branch(b.all_of(inside)) as branch:
                b.floor = len(b.levels) - 1
                self._loops()
                branch.otherwise()
                b.epoch += 1
                self.masked = True
                self._loops()
        else:
            self._loops()
        b.floor = floor
        b.epoch += 1
        for inner, outer in self.yields:
            if not outer.shape:  # a scalar result comes back from memory
                self.scalars[outer] = b.load(self.targets[inner].memory, 0, None)
        b.epoch += 1

    def _vector_dim(self) -> int | None:
        """The dimension vectors run along: the one the tensors are contiguous in, else the last."""
        free = [d for d, e in enumerate(self.shape) if e > 1]
        if not free or any(o.name == "atomic" for o in self.effects):
            return None
        wanted = self._contiguous()
        last = free[-1]
        self.transposed = None
        if self.custom:
            others = [d for d in free if d != self.axis]
            return others[-1] if others else None
        if last in wanted or not wanted:
            return last
        best = max(wanted)
        if self.reduces or self.effects or min(self.shape[best], self.shape[last]) < 4:
            return best
        if all(self.targets[v].layout.dims[last][-1][1] == 1 for v, _ in self.yields):
            self.transposed = best
        return last

    def _contiguous(self) -> set[int]:
        """Dimensions of the nest along which loads and stores of tensors touch neighbours."""
        out: set[int] = set()

        def walk(v: Value, dims: tuple[int | None, ...]) -> None:
            op = v.owner
            if v not in self.local or op is None:
                return
            if op.name == "load":
                self._unit_dim(op, dims, out)
            for o in op.operands:
                if o in self.local and o.tile.shape:
                    walk(o, self._dims(op, dims, o))
        here = tuple(range(len(self.shape)))
        for op in [*self.reduces, *self.effects]:
            if op.name == "store":
                self._unit_dim(op, here, out)
            for o in op.operands:
                if isinstance(o.type, TileType) and o.shape:
                    walk(o, here)
        for v, _ in self.yields:
            if v.owner not in self.reduces:
                walk(v, here)
        return out

    def _unit_dim(self, op: Op, dims: tuple[int | None, ...], out: set[int]) -> None:
        t = op.operands[0].type
        last = t.rank - 1
        unit = isinstance(t, BufferType) or (isinstance(t, TensorType) and len(t.unit) > last and t.unit[last])
        axes = list(op.attrs["axes"])
        if unit and last in axes:
            d = dims[axes.index(last)]
            if d is not None and self.shape[d] > 1:
                out.add(d)

    def _dims(self, op: Op, dims: tuple[int | None, ...], operand: Value) -> tuple[int | None, ...]:
        """Dimensions of the nest that the operand's dimensions walk."""
        if op.name == "permute":
            out: list[int | None] = [None] * len(dims)
            for i, d in zip(op.attrs["order"], dims, strict=True):
                out[i] = d
            return tuple(out)
        if op.name == "broadcast":
            tail = dims[len(dims) - len(operand.shape):]
            return tuple(None if e == 1 else d for e, d in zip(operand.shape, tail, strict=True))
        if op.name == "reshape":
            it = iter([d for d, e in zip(dims, op.result.shape, strict=True) if e != 1])
            return tuple(None if e == 1 else next(it) for e in operand.shape)
        return dims

    def _lanes(self, extent: int) -> int:
        """Vector width along the vector dimension: a few registers, so that chains of operations overlap."""
        panels = [d[self.vector][-1][0] for t in self.targets.values() if self.vector is not None
                  for d in [t.layout.dims] if len(d) == len(self.shape) and len(d[self.vector]) > 1]
        if panels:
            return min(extent, *panels)
        widest = max((o.result.dtype.storage.itemsize for o in self.region.ops
                      if o.results and isinstance(o.results[0].type, TileType)), default=4)
        heavy = any(o.name in ("exp", "exp2", "log", "log2", "tanh", "erf", "sin", "cos", "sigmoid")
                    for o in self.region.ops)
        return min(extent, (2 if heavy else 4) * self.vector_bytes // widest)

    def _inside(self) -> list[Value]:
        """Conditions under which no access of the nest crosses an edge."""
        out: list[Value] = []
        for op in self.region.ops:
            if op.name not in ("load", "store"):
                continue
            axes, shape = list(op.attrs["axes"]), op.attrs.get("shape", None) or op.operands[-1].shape
            offsets = op.operands[1:] if op.name == "load" else op.operands[1:-1]
            for a, off in enumerate(offsets):
                size = shape[axes.index(a)] if a in axes else 1
                at, dim = self.b.to_index(self.scalar(off)), self._dim(op.operands[0], a)
                if isinstance(at, int) and isinstance(dim, int):
                    if not 0 <= at <= dim - size:
                        out.append(self.b.const(0, ew.I1))
                    continue
                if not (isinstance(at, int) and at >= 0):
                    out.append(self.b.pure(ew.Ge, self.b.index(at), self.b.index(0)))
                out.append(self.b.pure(ew.Le, self.b.index(self.b.add(at, size)), self.b.index(dim)))
        return out

    def _dim(self, memory: Value, axis: int) -> Index:
        t = memory.type
        assert isinstance(t, TensorType | BufferType)
        if isinstance(t, BufferType):
            return t.shape[axis]
        dim = t.dims[axis]
        return dim if isinstance(dim, int) else self.b.to_index(self.b.pure(Op.registry["dim"], memory, axis=axis))

    def _loops(self) -> None:
        self.values.clear()
        if self.transposed is not None:
            self._transposed_loops(self.transposed)
            return
        inner = [d for d in (self.vector, self.axis) if d is not None]
        self._outer([d for d, e in enumerate(self.shape) if d not in inner and e > 1], {})

    transposed: int | None = None

    def _outer(self, dims: list[int], at: dict[int, Ix]) -> None:
        if dims:
            with self.b.loop(0, self.shape[dims[0]]) as loop:
                self._outer(dims[1:], {**at, dims[0]: Ix(loop.i)})
        elif self.custom:
            self._chunks(at, lambda where: self._custom(where))
        elif self.axis is None:
            self._chunks(at, self._body)
        elif self.axis == self.vector:
            self._reduce_along_vector(at)
        else:
            self._chunks(at, self._reduce_across)

    def _position(self, at: dict[int, Ix]) -> Position:
        return tuple(at.get(d, ZERO) for d in range(len(self.shape)))

    def _chunks(self, at: dict[int, Ix], body: Callable[[dict[int, Ix]], None]) -> None:
        """`body` for each vector along the vector dimension."""
        d = self.vector
        if d is None:
            body(at)
            return
        extent = self.shape[d]
        lanes = self._lanes(extent)
        full = extent // lanes * lanes
        if full > lanes:
            with self.b.loop(0, full, lanes) as loop:
                body({**at, d: Ix(loop.i, lanes)})
        elif full:
            body({**at, d: Ix(0, lanes)})
        if extent > full:
            body({**at, d: Ix(full, extent - full)})

    # -- roots --------------------------------------------------------------------------------------------------------
    def _body(self, at: dict[int, Ix]) -> None:
        """Everything at one position: values to store, then effects."""
        where = self._position(at)
        for v, _ in self.yields:
            if v.owner not in self.reduces and v.owner not in self.effects:
                target = self.targets[v]
                self.store(target, where if target.shape else (), self.at(v, where))
        for op in self.effects:
            self._effect(op, where)

    def store(self, target: Buffer, where: Position, value: Value) -> None:
        target.store(self.b, where, value)

    def _transposed_loops(self, along: int) -> None:
        """Reads vectors along dimension `along`, writes them transposed along the last."""
        b, d = self.b, self.vector
        assert d is not None
        side = self.vector_bytes // 4

        def block(at: dict[int, Ix], i: Ix, j: Ix) -> None:
            assert i.lanes is not None and j.lanes is not None
            for v, _ in self.yields:
                rows = [b.splat(self.at(v, self._position({**at, along: i, d: Ix(b.add(j.base, n))})), i.lanes)
                        for n in range(j.lanes)]
                columns = b.pure_op(th.Transpose, *rows).results
                for n, column in enumerate(columns):
                    self.store(self.targets[v], self._position({**at, along: Ix(b.add(i.base, n)), d: j}), column)

        def split(extent: int, body: Callable[[Ix], None]) -> None:
            full = extent // side * side
            if full:
                with b.loop(0, full, side) as loop:
                    body(Ix(loop.i, side))
            if extent > full:
                body(Ix(full, extent - full))

        def outer(dims: list[int], at: dict[int, Ix]) -> None:
            if dims:
                with b.loop(0, self.shape[dims[0]]) as loop:
                    outer(dims[1:], {**at, dims[0]: Ix(loop.i)})
            else:
                split(self.shape[d], lambda j: split(self.shape[along], lambda i: block(at, i, j)))
        outer([x for x, e in enumerate(self.shape) if x not in (along, d) and e > 1], {})

    def _effect(self, op: Op, where: Position) -> None:
        b, memory, lanes = self.b, op.operands[0], lanes_of(where)
        if op.name == "assert":
            ok = self.at(op.operands[0], where)
            b.effect(control.Assert, b.pure(Reduce, ok, kind="all", axis=0) if ok.shape else ok, **op.attrs)
            return
        if op.name == "store":
            value = b.splat(self.at(op.operands[-1], where), lanes)
            offset, stride, mask = self._window(op, op.operands[1:-1], where)
            b.store(memory, offset, value, stride, self._as_mask(mask, lanes))
            return
        _, indices, others, extra = op.split()  # type: ignore[attr-defined]
        values = [b.splat(self.at(o, where), lanes) for o in others]
        offsets, mask = self._element(memory, indices, extra, where)
        if op.name == "scatter":
            if lanes is None:
                b.store(memory, offsets, values[0], 1, mask)
            else:
                b.effect(th.StScatter, memory, b.splat(offsets, lanes), values[0], b.splat(mask, lanes))
            return
        target = self.targets[op.result]
        with b.branch(mask) as branch:
            old = b.effect(th.AtomicRmw, memory, offsets, *values, kind=op.attrs["kind"]).result
            self.store(target, where, old)
            branch.otherwise()
            self.store(target, where, b.const(0, old.dtype))

    # -- reductions ---------------------------------------------------------------------------------------------------
    def _init(self, op: Op, lanes: int | None) -> Value:
        dt = op.result.dtype
        return self.b.full(identity(op.attrs["kind"], dt), dt, lanes)

    def _reduce_along_vector(self, at: dict[int, Ix]) -> None:
        b, d = self.b, self.vector
        assert d is not None
        extent = self.shape[d]
        lanes = self._lanes(extent)
        full = extent // lanes * lanes
        parts: list[list[Value]] = [[] for _ in self.reduces]

        def step(accs: Sequence[Value | None], ix: Ix) -> list[Value]:
            here = {**at, d: ix}
            self._body(here)
            out = []
            for op, acc in zip(self.reduces, accs, strict=True):
                x = b.splat(self.at(op.operands[0], self._position(here)), ix.lanes)
                out.append(x if acc is None else b.pure(COMBINE[op.attrs["kind"]], acc, x))
            return out
        if full > lanes:
            with b.loop(0, full, lanes, [self._init(op, lanes) for op in self.reduces]) as loop:
                loop.yield_(step(loop.carried, Ix(loop.i, lanes)))
            for part, acc in zip(parts, loop.results, strict=True):
                part.append(acc)
        elif full:
            for part, acc in zip(parts, step([None] * len(parts), Ix(0, lanes)), strict=True):
                part.append(acc)
        if extent > full:
            for part, acc in zip(parts, step([None] * len(parts), Ix(full, extent - full)), strict=True):
                part.append(acc)
        where = self._position({**at, d: ZERO})
        for op, part in zip(self.reduces, parts, strict=True):
            folded = [b.pure(Reduce, v, kind=op.attrs["kind"], axis=0) if v.shape else v for v in part]
            total = folded[0]
            for v in folded[1:]:
                total = b.pure(COMBINE[op.attrs["kind"]], total, v)
            self._reduced(op, where, [total])

    def _reduced(self, op: Op, where: Position, totals: Sequence[Value]) -> None:
        axis = op.attrs["axis"]
        for result, total in zip(op.results, totals, strict=True):
            self.store(self.targets[result], (*where[:axis], *where[axis + 1:]), total)

    def _reduce_across(self, at: dict[int, Ix]) -> None:
        b, axis = self.b, self.axis
        assert axis is not None
        lanes = lanes_of(self._position(at))
        with b.loop(0, self.shape[axis], 1, [self._init(op, lanes) for op in self.reduces]) as loop:
            here = {**at, axis: Ix(loop.i)}
            self._body(here)
            loop.yield_([b.pure(COMBINE[op.attrs["kind"]], acc,
                                b.splat(self.at(op.operands[0], self._position(here)), lanes))
                         for op, acc in zip(self.reduces, loop.carried, strict=True)])
        for op, total in zip(self.reduces, loop.results, strict=True):
            self._reduced(op, self._position(at), [total])

    def _custom(self, at: dict[int, Ix]) -> None:
        b, axis = self.b, self.axis
        assert axis is not None
        (op,), lanes = self.reduces, lanes_of(self._position(at))

        def elements(i: Index) -> list[Value]:
            where = self._position({**at, axis: Ix(i)})
            return [b.splat(self.at(o, where), lanes) for o in op.operands]
        with b.loop(1, self.shape[axis], 1, elements(0)) as loop:
            loop.yield_([b.splat(v, lanes) for v in
                         inline_region(b, op.regions[0], [*loop.carried, *elements(loop.i)], self.scalars)])
        self._reduced(op, self._position(at), loop.results)

    # -- values -------------------------------------------------------------------------------------------------------
    def scalar(self, v: Value) -> Value:
        """A scalar from outside the nest (or a constant inside it)."""
        if v in self.local and v.owner is not None:
            return self.b.apply(type(v.owner), [self.scalar(o) for o in v.owner.operands], v.owner.attrs)
        return self.scalars.get(v, v)

    def at(self, v: Value, where: Position) -> Value:
        """The value at a position: a vector where the position has one, or a scalar where it does not matter."""
        if not v.shape:
            return self.scalar(v)
        if v not in self.local:
            return self.stored[v].load(self.b, where)
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
        b, table = self.b, self.stored[op.operands[0]]
        index = self.at(op.operands[1], where)
        lanes = index.shape[0] if index.shape else None
        wide = b.apply(ew.Cast, [index], {"dtype": I64})
        limit = b.full(table.shape[0], I64, lanes)
        inside = b.pure(ew.And, b.pure(ew.Ge, wide, b.full(0, I64, lanes)), b.pure(ew.Lt, wide, limit))
        if lanes is None:
            return b.load(table.memory, wide, None, 1, inside)
        return b.read(th.LdGather, table.memory, wide, inside)

    def _at_load(self, op: Op, where: Position) -> Value:
        b, lanes = self.b, lanes_of(where)
        offset, stride, mask = self._window(op, op.operands[1:], where)
        mask = self._as_mask(mask, lanes)
        value = b.load(op.operands[0], offset, lanes, stride, mask)
        return self._filled(op, value, mask, lanes)

    def _at_gather(self, op: Op, where: Position) -> Value:
        b, lanes = self.b, lanes_of(where)
        _, indices, _, extra = op.split()  # type: ignore[attr-defined]
        offsets, mask = self._element(op.operands[0], indices, extra, where)
        if lanes is None:
            value = b.load(op.operands[0], offsets, None, 1, mask)
        else:
            mask = b.splat(mask, lanes)
            value = b.read(th.LdGather, op.operands[0], b.splat(offsets, lanes), mask)
        return self._filled(op, value, mask, lanes)

    def _filled(self, op: Op, value: Value, mask: Value | None, lanes: int | None) -> Value:
        fill = op.attrs["fill"]
        if mask is None or (fill == 0 and value.dtype.kind in ("int", "uint", "float", "bool")):
            return value
        return self.b.pure(ew.Where, mask, value, self.b.full(fill, value.dtype, lanes))

    def _as_mask(self, mask: Value | None, lanes: int | None) -> Value | None:
        return None if mask is None else self.b.splat(mask, lanes)

    def _stride(self, memory: Value, axis: int) -> Index:
        t = memory.type
        if isinstance(t, BufferType):
            step = 1
            for e in t.shape[axis + 1:]:
                step *= e
            return step
        assert isinstance(t, TensorType)
        bits = t.dtype.bits
        if axis < len(t.unit) and t.unit[axis]:
            return bits if bits % 8 else 1
        return self.b.pure(th.StrideOf, memory, axis=axis)

    def _window(self, op: Op, offsets: Sequence[Value], where: Position) -> tuple[Index, Index, Value | None]:
        """(offset, stride between lanes, mask or None) of a block access at a position."""
        b, memory, axes = self.b, op.operands[0], list(op.attrs["axes"])
        offset: Index = 0
        lane_stride: Index = 1
        scalars: list[Value] = []
        mask: Value | None = None
        for a, off in enumerate(offsets):
            ix = where[axes.index(a)] if a in axes else ZERO
            at = b.add(b.to_index(self.scalar(off)), ix.base)
            stride = self._stride(memory, a)
            offset = b.add(offset, b.mul(at, stride))
            dim = self._dim(memory, a)
            if ix.lanes is not None:
                lane_stride = b.mul(stride, ix.step)
                if self.masked:
                    mask = self._lane_mask(at, dim, ix)
            elif self.masked:
                scalars += [b.pure(ew.Ge, b.index(at), b.index(0)), b.pure(ew.Lt, b.index(at), b.index(dim))]
        if scalars:
            every = b.all_of(scalars)
            mask = every if mask is None else b.pure(ew.And, mask, b.splat(every, mask.shape[0]))
        return offset, self._element_stride(memory, lane_stride), mask

    def _element_stride(self, memory: Value, stride: Index) -> Index:
        """1 for neighbours in a sub-byte tensor, whose strides count bits."""
        t = memory.type
        packed = isinstance(t, TensorType) and t.dtype.bits % 8
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

    def _element(self, memory: Value, indices: Sequence[Value], extra: Value | None, where: Position) -> \
            tuple[Value, Value]:
        """(offsets, mask) of element accesses at index tiles."""
        b = self.b
        values = [b.apply(ew.Cast, [self.at(i, where)], {"dtype": I64}) for i in indices]
        mask = self.at(extra, where) if extra is not None else None
        total: Value | None = None
        for a, v in enumerate(values):
            width = v.shape[0] if v.shape else None
            inside = b.pure(ew.And, b.pure(ew.Ge, v, b.full(0, I64, width)),
                            b.pure(ew.Lt, v, b.splat(b.index(self._dim(memory, a)), width)))
            mask = inside if mask is None else b.apply(ew.And, [mask, inside], {})
            term = b.pure(ew.Mul, v, b.splat(b.index(self._stride(memory, a)), width))
            total = term if total is None else b.apply(ew.Add, [total, term], {})
        assert total is not None and mask is not None
        if total.shape and not mask.shape:
            mask = b.splat(mask, total.shape[0])
        elif mask.shape and not total.shape:
            total = b.splat(total, mask.shape[0])
        return total, mask


def inline_region(b: ThreadBuilder, region: Region, args: Sequence[Value], scalars: dict[Value, Value]) -> list[Value]:
    """A user's combine on vectors: its scalar operations applied lane by lane."""
    known = dict(zip(region.args, args, strict=True))
    for op in region.ops:
        if op.name == "yield":
            return [known.get(v, scalars.get(v, v)) for v in op.operands]
        operands = [known.get(v, scalars.get(v, v)) for v in op.operands]
        known[op.result] = b.apply(type(op), operands, op.attrs)
    raise AssertionError("a combine region yields")


