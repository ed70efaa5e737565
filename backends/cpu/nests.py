"""Lowers one `nest`: loops over its shape, vectors along one dimension, every value computed where it is used.

Blocks that may cross the edge of a tensor are written twice: without masks where the whole block lies inside, with
masks otherwise. Blocks of long rows are written once more: with masks behind the edge alone.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set

from tilelang.backends.cpu.ahead import Ahead
from tilelang.backends.cpu.buffers import Buffer, Ix, lanes_of, new_buffer
from tilelang.backends.cpu.elements import Position
from tilelang.backends.cpu.machine import LINE, CpuTarget
from tilelang.backends.cpu.narrow import Narrow
from tilelang.backends.cpu.place import LOOKUPS
from tilelang.backends.cpu.reductions import At
from tilelang.backends.cpu.runs import row_run, walked
from tilelang.backends.thread.builder import Index, ThreadBuilder
from tilelang.ir import control
from tilelang.ir import elementwise as ew
from tilelang.ir import thread as th
from tilelang.ir.core import BufferType, Op, TensorType, TileType, Value
from tilelang.ir.reduction import Reduce

MANY = 8
"""How many vectors a row has at least where its last ones get code of their own."""


class NestLowering(Narrow):
    """State of the lowering of one nest; `stored` maps values in memory to buffers, `scalars` the others.

    `unread` are the tensors that the kernel only writes; `ahead` as for `Elements`.
    """

    def __init__(self, b: ThreadBuilder, op: th.Nest, stored: dict[Value, Buffer], scalars: dict[Value, Value],
                 wanted: Callable[[Value], Buffer | None], target: CpuTarget, unread: Set[Value],
                 ahead: dict[Op, Ahead]) -> None:
        super().__init__(b, op, stored, scalars, target, ahead)
        self.yields = list(zip(self.region.yields, op.results, strict=True))
        self.effects = [o for o in self.region.ops if o.name in ("store", "scatter", "atomic", "assert")]
        self.unread = unread
        self.direct = self._direct()
        self.streamed = False
        self.cut: Index | None = None  # where rows end whose lines are written past the caches
        for inner, outer in self.yields:
            t = outer.tile
            layout = t.layout
            self.targets[inner] = wanted(outer) or new_buffer(b, t.shape, t.dtype, layout)  # type: ignore[arg-type]
            if t.shape:
                stored[outer] = self.targets[inner]

    def _direct(self) -> list[Op]:
        """Elementwise operations needed where the roots are, in the program's order."""
        found: set[Op] = set()
        left = [v for v, _ in self.yields] + [o for op in (*self.reduces, *self.effects) for o in op.operands]
        while left and self.shape:
            v = left.pop()
            if v in self.local and v.owner not in found and v.shape == self.shape and isinstance(
                    v.owner, ew.Elementwise | ew.Where | ew.Cast | ew.Bitcast):
                found.add(v.owner)
                left += v.owner.operands
        return [op for op in self.region.ops if op in found]

    # -- shape of the loops -------------------------------------------------------------------------------------------
    def run(self) -> None:
        b = self.b
        b.epoch += 1
        floor, b.floor = b.floor, len(b.levels) - 1
        self.vector = self._vector_dim()
        ends = self._ends()
        streams = self._cuttable(ends)
        if streams:
            with b.branch(b.all_of([*streams, *self.inside(ends)])) as branch:
                b.floor = len(b.levels) - 1
                self.cut = self._first_outside(ends)
                self._loops()
                self.cut = None
                branch.otherwise()
                b.epoch += 1
                self._in_parts(ends, self._loops)
        else:
            self._in_parts(ends, lambda: self.maybe_narrow(lambda: self._maybe_streamed(self._loops)))
        b.floor = floor
        b.epoch += 1
        for inner, outer in self.yields:
            if not outer.shape:  # a scalar result comes back from memory
                self.scalars[outer] = b.load(self.targets[inner].memory, 0, None)
        b.epoch += 1

    def _in_parts(self, ends: Mapping[Op, int | None], write: Callable[[], None]) -> None:
        """The nest by where it lies: inside of all tensors, across the `ends` of long rows, of which the last vectors
        alone are masked, or elsewhere."""
        b, inside = self.b, self.inside()
        b.floor = len(b.levels) - 1
        if not inside:
            write()
            return
        with b.branch(b.all_of(inside)) as branch:
            b.floor = len(b.levels) - 1
            write()
            branch.otherwise()
            b.epoch += 1
            if not ends:
                self._masked_loops()
                return
            with b.branch(b.all_of([b.const(1, ew.I1), *self.inside(ends)])) as across:
                b.floor = len(b.levels) - 1
                self.limit = self._first_outside(ends)
                write()
                self.limit = None
                across.otherwise()
                b.epoch += 1
                self._masked_loops()

    def _masked_loops(self) -> None:
        self.b.floor = len(self.b.levels) - 1
        self.masked = True
        self._loops()

    def _ends(self) -> dict[Op, int | None]:
        """For each load and store the dimension of its tensor that vectors run along; nothing where masking the last
        vectors alone is not possible, or not worth the code."""
        d, out = self.vector, dict[Op, int | None]()
        if d is None or self.custom or self.transposed is not None or self._grouped() > 1 or \
                self.shape[d] < MANY * self._lanes(self.shape[d]):
            return {}
        seen: set[tuple[Value, tuple[int | None, ...]]] = set()

        def known(op: Op, dims: tuple[int | None, ...]) -> bool:
            axis = op.attrs["axes"][dims.index(d)] if d in dims else None
            return out.setdefault(op, axis) == axis

        def walk(v: Value, dims: tuple[int | None, ...]) -> bool:
            op = v.owner
            if v not in self.local or op is None or (v, dims) in seen:
                return True
            seen.add((v, dims))
            if op.name in ("slice", "expand_load", *LOOKUPS) or op.name == "load" and not known(op, dims):
                return False
            tiles = [o for o in op.operands if isinstance(o.type, TileType) and o.shape]
            return all(walk(o, walked(op, dims, o)) for o in tiles)
        here = tuple(range(len(self.shape)))
        roots = [*(v for v, _ in self.yields if v.owner not in self.reduces),
                 *(o for op in (*self.reduces, *self.effects) for o in op.operands)]
        fit = all(walk(v, here) for v in roots if isinstance(v.type, TileType) and v.shape == self.shape) and \
            all(known(op, here) for op in self.effects if op.name == "store")
        return out if fit and any(axis is not None for axis in out.values()) else {}

    def _first_outside(self, ends: Mapping[Op, int | None]) -> Index:
        """The first position along the vectors at which an access lies outside, at most the nest's extent."""
        b, d = self.b, self.vector
        assert d is not None
        first: Index = self.shape[d]
        for op, axis in ends.items():
            if axis is not None:
                at = b.to_index(self.scalar(op.operands[1 + axis]))
                first = b.clamp(b.sub(b.index(b.extent(op.operands[0], axis)), b.index(at)), 0, first)
        return first

    # -- past the caches ----------------------------------------------------------------------------------------------
    def _cuttable(self, ends: Mapping[Op, int | None]) -> list[Value]:
        """Conditions under which rows are written past the caches from the first line on that begins in them: none
        where the nest does anything but one such store, the vectors are no whole lines, or elements share bytes."""
        d = self.vector
        if d is None or self.yields or len(self.effects) != 1 or ends.get(self.effects[0]) is None or \
                any(op.operands[0].dtype.packed for op in ends):
            return []
        lanes, streams = self._lanes(self.shape[d]), self._streams(lines=False)
        if not streams or lanes * self.effects[0].operands[-1].dtype.storage.itemsize % LINE:
            return []
        return [*streams, self.b.pure(ew.Ge, self.b.index(self._first_outside(ends)), self.b.index(lanes))]

    def _chunks(self, at: At, body: Callable[[At], None]) -> None:
        """Of a row that is `cut` what lies before its first line and behind its last whole one goes through the
        caches, behind masks. Streamed stores do not pass one that waits for its line: the last is asked for early."""
        if self.cut is None:
            super()._chunks(at, body)
            return
        b, d, (op,), end = self.b, self.vector, self.effects, self.cut
        assert d is not None
        offset, *_ = self._window(op, op.operands[1:-1], self._position({**at, d: Ix(0, 1)}))
        first: Index = b.pure(th.ToLine, self.memory(op), b.index(offset))
        b.effect(th.Prefetch, self.memory(op), b.index(b.add(offset, end)), near=True)
        line = LINE // op.operands[-1].dtype.storage.itemsize

        def run(start: Index, stop: Index, lanes: int) -> None:
            with b.loop(start, stop, lanes) as loop:
                body({**at, d: Ix(loop.i, lanes)})
        self.masked, self.before = True, first
        run(0, first, line)
        self.masked, self.before, self.streamed = False, None, True
        for lanes in (self._lanes(self.shape[d]), line):
            start, first = first, b.add(first, b.mul(b.div(b.sub(end, first), lanes), lanes))
            run(start, first, lanes)
        self.masked, self.streamed = True, False
        run(first, end, line)
        self.masked = False

    def _maybe_streamed(self, write: Callable[[], None]) -> None:
        """`write`, once more with streaming stores where the nest only writes tensors."""
        b, streams = self.b, self._streams(lines=True)
        if not streams:
            write()
            return
        floor = b.floor
        with b.branch(b.all_of(streams)) as branch:
            b.floor = len(b.levels) - 1
            self.streamed = True
            write()
            branch.otherwise()
            b.epoch += 1
            self.streamed = False
            write()
        b.floor = floor

    def _streams(self, lines: bool) -> list[Value]:
        """Conditions under which the nest's stores stream, of rows that begin with `lines` or anywhere; none where one
        of them cannot."""
        out = []
        for op in self.effects:
            memory = self.memory(op)
            if op.name != "store" or op.operands[0] not in self.unread or self.vector is None or \
                    memory.dtype.packed or lines and self.shape[self.vector] * memory.dtype.storage.itemsize % LINE:
                return []
            offset, stride, _ = self._window(op, op.operands[1:-1], self._position({self.vector: Ix(0, 1)}))
            if not isinstance(stride, int) or stride != 1:
                return []
            out.append(self.b.pure(th.Streams, memory, self.b.index(offset), lines=lines))
        return out

    # -- out of registers ---------------------------------------------------------------------------------------------
    def takes_registers(self) -> bool:
        """Whether vectors of the nest run along the last dimension, as those of a register block do."""
        self.vector = self._vector_dim()
        return self.vector == len(self.shape) - 1 and self.transposed is None

    def take(self, tile: Value, vectors: Mapping[Position, Value]) -> None:
        """What the nest does at some positions inside of all tensors, where `tile` has these vectors."""
        b, floor = self.b, self.b.floor
        b.floor = len(b.levels) - 1

        def write() -> None:
            for where in vectors:
                self._body(dict(enumerate(where)))
        b.epoch += 1
        self.registers = {(tile, where): vector for where, vector in vectors.items()}
        self._maybe_streamed(write)
        self.registers = {}
        b.epoch += 1
        b.floor = floor

    def leave(self, taken: Value) -> None:
        """The whole nest, unless `taken` from registers."""
        b, floor = self.b, self.b.floor
        self.masked = True
        with b.branch(taken) as branch:
            branch.otherwise()
            b.epoch += 1
            b.floor = len(b.levels) - 1
            self._loops()
        b.epoch += 1
        b.floor = floor

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
        if all(self.targets[v].layout.dims[last][-1][1] == 1 for v, _ in self.yields) or \
                self._grouped() > 1 and best == last - 1:
            self.transposed = best
        return last

    def _contiguous(self) -> set[int]:
        """Dimensions of the nest along which loads and stores of tensors touch neighbours. Accesses that are the same
        all along some dimension count only where no other says how to walk the whole nest."""
        out: dict[bool, set[int]] = {True: set(), False: set()}  # by whether an access covers the nest
        stored = any(v.owner not in self.reduces for v, _ in self.yields)

        def covers(dims: tuple[int | None, ...]) -> bool:
            return all(d in dims for d, e in enumerate(self.shape) if e > 1)

        seen: set[tuple[Value, tuple[int | None, ...]]] = set()

        def walk(v: Value, dims: tuple[int | None, ...]) -> None:
            nonlocal stored
            op = v.owner
            if (v, dims) in seen:
                return
            seen.add((v, dims))
            if v not in self.local or op is None:
                stored = stored or covers(dims)
                return
            if op.name in ("load", "expand_load"):
                out[covers(dims)] |= self._unit_dims(op, dims)
            elif op.name == "gather" and (run := row_run(op, self.local)):
                out[covers(dims)] |= {d for d in (dims[run[0]],) if d is not None and self.shape[d] > 1}
            for o in op.operands:
                if isinstance(o.type, TileType) and o.shape:
                    walk(o, walked(op, dims, o))
        here = tuple(range(len(self.shape)))
        for op in [*self.reduces, *self.effects]:
            if op.name == "store":
                out[True] |= self._unit_dims(op, here)
            elif op.name == "scatter" and (run := row_run(op, self.local)):
                out[True].add(run[0])
            for o in op.operands:
                if isinstance(o.type, TileType) and o.shape:
                    walk(o, here)
        for v, _ in self.yields:
            if v.owner not in self.reduces:
                walk(v, here)
        return out[True] or (set() if stored else out[False])

    def _unit_dims(self, op: Op, dims: tuple[int | None, ...]) -> set[int]:
        """The dimensions along which a load or store touches neighbours."""
        t, axes = op.operands[0].type, list(op.attrs["axes"])
        assert isinstance(t, BufferType | TensorType)
        unit = [t.rank - 1] if isinstance(t, BufferType) else [axis for axis, one in enumerate(t.unit) if one]
        found = {dims[axes.index(axis)] for axis in unit if axis in axes}
        return {d for d in found if d is not None and self.shape[d] > 1}

    def inside(self, ends: Mapping[Op, int | None] | None = None) -> list[Value]:
        """Conditions under which no access of the nest crosses an edge, the far ends of these dimensions excepted."""
        out: list[Value] = []
        for op in self.region.ops:
            if op.name not in ("load", "store", "expand_load"):
                continue
            axes, memory = list(op.attrs["axes"]), op.operands[0].type
            assert isinstance(memory, BufferType | TensorType)
            shape = op.operands[-1].shape if op.name == "store" else op.result.shape
            if op.name == "expand_load":
                shape = (*shape[:-1], 1)
                out.append(self._whole_words(op))
            for a, off in enumerate(op.operands[1:1 + memory.rank]):
                size = shape[axes.index(a)] if a in axes else 1
                at, dim = self.b.to_index(self.scalar(off)), self.b.extent(op.operands[0], a)
                if isinstance(at, int) and isinstance(dim, int):
                    if not 0 <= at <= dim - size:
                        out.append(self.b.const(0, ew.I1))
                    continue
                if not (isinstance(at, int) and at >= 0):
                    out.append(self.b.pure(ew.Ge, self.b.index(at), self.b.index(0)))
                if ends and ends.get(op) == a:
                    continue
                # The size is taken off the extent, not added to the offset, which may be as large as its type.
                out.append(self.b.pure(ew.Le, self.b.index(at), self.b.index(self.b.sub(dim, size))))
        return out

    def _loops(self) -> None:
        if self.transposed is not None:
            self._transposed_loops(self.transposed)
            return
        group = self._grouped()
        if group > 1 and self.vector == len(self.shape) - 1:
            self._interleaved_loops(group)
            return
        inner = [d for d in (self.vector, self.axis) if d is not None]
        outer = [d for d, e in enumerate(self.shape) if d not in inner and e > 1]
        if self.axis is None:
            self._outer(outer, {}, lambda at: self._chunks(at, self._body))
        else:
            self._reductions(outer)

    transposed: int | None = None

    def _outer(self, dims: Sequence[int], at: dict[int, Ix], body: Callable[[dict[int, Ix]], None]) -> None:
        """`body` for each position along `dims`."""
        if dims:
            with self.b.loop(0, self.shape[dims[0]]) as loop:
                self._outer(dims[1:], {**at, dims[0]: Ix(loop.i)}, body)
        else:
            body(at)

    # -- roots --------------------------------------------------------------------------------------------------------
    def _body(self, at: dict[int, Ix]) -> None:
        """Everything at one position: values to store, then effects."""
        where = self._position(at)
        self.made = {}
        for op in self.direct:  # a chain's operands would else be read from its end
            self.keep(op.result, where, self.at(op.result, where))
        for v, _ in self.yields:
            if v.owner not in self.reduces and v.owner not in self.effects:
                target = self.targets[v]
                self.store(target, where if target.shape else (), self.at(v, where))
        for op in self.effects:
            self._effect(op, where)

    def store(self, target: Buffer, where: Position, value: Value) -> None:
        target.store(self.b, where, value)

    def _transposed_loops(self, along: int) -> None:
        """Reads vectors along dimension `along`, writes them transposed along the last: groups of neighbours, where
        they stay together in the packed tile."""
        b, d, group = self.b, self.vector, self._grouped()
        assert d is not None
        side = self.vector_bytes // 4

        def block(at: dict[int, Ix], i: Ix, j: Ix) -> None:
            assert i.lanes is not None and j.lanes is not None
            for v, _ in self.yields:
                rows = [b.splat(self.at(v, self._position({**at, along: i, d: Ix(b.add(j.base, n))})), i.lanes)
                        for n in range(j.lanes)]
                columns = b.pure_op(th.Transpose, *rows, group=group).results
                for n, column in enumerate(columns):
                    where = self._position({**at, along: Ix(b.add(i.base, n * group)), d: j})
                    if group == 1:
                        self.store(self.targets[v], where, column)
                    else:
                        b.store(self.targets[v].memory, self.targets[v].address(b, where)[0], column)

        def split(extent: int, step: int, body: Callable[[Ix], None]) -> None:
            full = extent // step * step
            if full:
                with b.loop(0, full, step) as loop:
                    body(Ix(loop.i, step))
            if extent > full:
                body(Ix(full, extent - full))

        self._outer([x for x, e in enumerate(self.shape) if x not in (along, d) and e > 1], {},
                    lambda at: split(self.shape[d], side, lambda j: split(
                        self.shape[along], side * group, lambda i: block(at, i, j))))

    def _grouped(self) -> int:
        """How many rows stand interleaved in the packed tile that the nest writes: 1 in all others."""
        if self.reduces or self.effects or len(self.yields) != 1 or len(self.shape) < 2:
            return 1
        *_, rows, columns = self.targets[self.yields[0][0]].layout.dims
        group, unit = rows[-1]
        return group if len(rows) > 1 and (unit, columns[-1][1]) == (1, group) else 1

    def _interleaved_loops(self, group: int) -> None:
        """Writes `group` rows at once, as one vector of neighbours in the packed tile."""
        b, d = self.b, len(self.shape) - 1
        ((v, _),) = self.yields
        target = self.targets[v]

        def body(at: dict[int, Ix]) -> None:
            rows = [b.splat(self.at(v, self._position({**at, d - 1: Ix(b.add(at[d - 1].base, i))})), at[d].lanes)
                    for i in range(group)]
            offset, _ = target.address(b, self._position(at))
            b.store(target.memory, offset, b.pure(th.Interleave, *rows))

        def outer(dims: list[int], at: dict[int, Ix]) -> None:
            if dims:
                with b.loop(0, self.shape[dims[0]], group if dims[0] == d - 1 else 1) as loop:
                    outer(dims[1:], {**at, dims[0]: Ix(loop.i)})
            else:
                self._chunks(at, body)
        outer(list(range(d)), {})

    def _effect(self, op: Op, where: Position) -> None:
        b, memory, lanes = self.b, self.memory(op), lanes_of(where)
        if op.name == "assert":
            ok = self.at(op.operands[0], where)
            b.effect(control.Assert, b.pure(Reduce, ok, kind="all", axis=0) if ok.shape else ok, **op.attrs)
            return
        if op.name == "store":
            value = b.splat(self.at(op.operands[-1], where), lanes)
            offset, stride, mask = self._window(op, op.operands[1:-1], where)
            whole = lanes is not None and lanes * value.dtype.storage.itemsize % self.vector_bytes == 0
            b.store(memory, offset, value, stride, self._as_mask(mask, lanes),
                    self.streamed and whole and mask is None)
            return
        _, indices, others, extra = op.split()  # type: ignore[attr-defined]
        values = [b.splat(self.at(o, where), lanes) for o in others]
        if op.name == "scatter":
            offsets, mask = self.places(op, where)
            if offsets.shape:
                b.effect(th.StScatter, memory, offsets, values[0], mask)
            elif lanes is None:
                b.store(memory, offsets, values[0], 1, mask)
            else:  # stores under a mask take processors without AVX-512 as long as those of many elements
                with b.branch(b.pure(Reduce, mask, kind="all", axis=0)) as branch:
                    b.store(memory, offsets, values[0])
                    branch.otherwise()
                    b.store(memory, offsets, values[0], 1, mask)
            return
        offsets, mask = self._element(memory, indices, extra, where)
        target = self.targets[op.result]
        with b.branch(mask) as branch:
            old = b.effect(th.AtomicRmw, memory, offsets, *values, kind=op.attrs["kind"]).result
            self.store(target, where, old)
            branch.otherwise()
            self.store(target, where, b.const(0, old.dtype))
