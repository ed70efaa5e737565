"""The reductions of a nest: along its vectors or across them, several rows at once where they share what is loaded."""
from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import gcd, prod

from tilelang.backends.cpu.ahead import Ahead
from tilelang.backends.cpu.buffers import ZERO, Buffer, Ix, lanes_of
from tilelang.backends.cpu.elements import Elements, Position
from tilelang.backends.cpu.machine import LINE, CpuTarget
from tilelang.backends.cpu.place import COSTLY, weight
from tilelang.backends.cpu.runs import Dims, walked
from tilelang.backends.thread.builder import Index, ThreadBuilder
from tilelang.backends.thread.combine import COMBINE, inline_region
from tilelang.ir import elementwise as ew
from tilelang.ir import thread as th
from tilelang.ir.core import Op, TileType, Value
from tilelang.ir.reduction import Reduce, identity

STREAMS = 4
"""Rows that are read at once where each has one sum, of short vectors if need be: memory gives one row after the other
more slowly."""
PASSES = 4
"""How many passes at least lie between asking for rows and reading them: a row of a kilobyte takes some 0.1 us."""
STEPS = 8
"""Of a strip of columns at most, that are written out one after the other and ask for neighbouring lines."""
At = dict[int, Ix]
"""A position along some dimensions of the nest."""


@dataclass(frozen=True)
class Passes:
    """What several passes read, each of `step` positions along dimension `over`: the same rows, along `row`, of some
    loads. Each pass asks for `share` of those that come `on` rows later."""

    loads: Sequence[tuple[Op, Dims]]
    over: int
    step: int
    row: int
    on: int
    share: int


class Reductions(Elements):
    """A nest; `NestLowering` chooses `vector`, the dimension vectors run along, and `targets`, where results go."""

    def __init__(self, b: ThreadBuilder, op: th.Nest, stored: dict[Value, Buffer], scalars: dict[Value, Value],
                 target: CpuTarget, ahead: dict[Op, Ahead]) -> None:
        self.region = op.regions[0]
        local = {r for o in self.region.ops for r in o.results}
        super().__init__(b, stored, scalars, local, target.vector_bytes, ahead)
        self.cpu = target
        self.shape: tuple[int, ...] = tuple(op.attrs["shape"])
        self.reduces = [o for o in self.region.ops if o.name == "reduce"]
        self.axis: int | None = self.reduces[0].attrs["axis"] if self.reduces else None
        self.custom = any(o.attrs["kind"] == "custom" for o in self.reduces)
        self.vector: int | None = None
        self.together = 0  # positions that are reduced at once, but for those left over; 0: not known yet
        self.passes: Passes | None = None
        self.limit: Index | None = None  # of vectors below it no lane is masked, where others are
        self.targets: dict[Value, Buffer] = {}

    @abstractmethod
    def store(self, target: Buffer, where: Position, value: Value) -> None:
        """Stores a result of the nest."""

    @abstractmethod
    def _body(self, at: At) -> None:
        """What else the nest does at a position."""

    @abstractmethod
    def _outer(self, dims: Sequence[int], at: At, body: Callable[[At], None]) -> None:
        """`body` for each position along `dims`."""

    # -- positions ----------------------------------------------------------------------------------------------------
    def _position(self, at: At) -> Position:
        return tuple(at.get(d, ZERO) for d in range(len(self.shape)))

    def _lanes(self, extent: int) -> int:
        """Vector width along the vector dimension: a few registers, so that chains of operations overlap."""
        panels = [d[self.vector][-1][0] for t in self.targets.values() if self.vector is not None
                  for d in [t.layout.dims] if len(d) == len(self.shape) and len(d[self.vector]) > 1]
        if panels:
            return min(extent, *panels)
        widest = max((o.results[0].dtype.storage.itemsize for o in self.region.ops
                      if o.results and isinstance(o.results[0].type, TileType)), default=4)
        heavy = any(o.name in ("exp", "exp2", "log", "log2", "tanh", "erf", "sin", "cos", "sigmoid")
                    for o in self.region.ops)
        across = self.axis not in (None, self.vector)
        sums = self.cpu.registers // 4 // len(self.reduces) if across and self.together == 1 else 0
        rows = self.together if across else 0
        # Sums of several rows leave registers for what they are made of.
        least = 4 if 4 * max(len(self.reduces), rows) <= self.cpu.registers * 5 // 8 else 2
        return min(extent, (self.cpu.registers // 8 if heavy else max(sums, least)) * self.vector_bytes // widest)

    def _chunks(self, at: At, body: Callable[[At], None]) -> None:
        """`body` for each vector along the vector dimension."""
        d = self.vector
        if d is None:
            body(at)
            return
        extent = self.shape[d]
        lanes = self._lanes(extent)
        full = extent // lanes * lanes
        if full > lanes:
            for start, end in self._runs(full, lanes):
                with self.b.loop(start, end, lanes) as loop:
                    body({**at, d: Ix(loop.i, lanes)})
        elif full:
            body({**at, d: Ix(0, lanes)})
        if extent > full:
            body({**at, d: Ix(full, extent - full)})

    def _runs(self, full: int, lanes: int) -> Iterator[tuple[Index, Index]]:
        """Where vectors of so many lanes lie along the vector dimension: those without masks, then the others."""
        if self.limit is None:
            yield 0, full
            return
        edge = self.b.mul(self.b.div(self.limit, lanes), lanes)
        self.masked = False
        yield 0, edge
        self.masked = True
        yield edge, full

    # -- several rows at once -----------------------------------------------------------------------------------------
    def _reductions(self, outer: Sequence[int]) -> None:
        """All reductions, at each position along the dimensions `outer`."""
        if self.custom:
            self._outer(outer, {}, lambda at: self._chunks(at, self._custom))
            return
        at_once = self._at_once(outer)
        self.together = prod(at_once.values())
        self.passes = self.passes or self._passes(at_once)
        shared = self._shared_dim(outer)  # what stays the same along it is then still in the first level of the caches
        order = sorted(outer, key=lambda d: (d in at_once, d == shared))  # single positions are the outer loops

        def blocks(dims: Sequence[int], rows: list[At]) -> None:
            if not dims:
                self._rows(rows)
                return
            d, extent, count = dims[0], self.shape[dims[0]], at_once.get(dims[0], 1)
            full = extent // count * count
            with self.b.loop(0, full, count) as loop:
                blocks(dims[1:], [{**at, d: Ix(self.b.add(loop.i, i))} for at in rows for i in range(count)])
            if extent > full:
                blocks(dims[1:], [{**at, d: Ix(i)} for at in rows for i in range(full, extent)])
        blocks(order, [{}])

    def _rows(self, rows: Sequence[At]) -> None:
        if self.axis == self.vector:
            self._along_vector(rows)
        else:
            self._chunks({}, lambda chunk: self._across([{**at, **chunk} for at in rows]))

    def _at_once(self, outer: Sequence[int]) -> dict[int, int]:
        """How many positions along dimensions of `outer` are reduced at once: more than one where they share vectors
        loaded from tensors, as many as leave half of the registers to other things than their sums, and so many that
        memory is read in several places. Sums along the vectors are also made as many at once as a vector has lanes,
        in which they end."""
        shared = self._shared_dim(outer)
        if shared is None or self.vector is None or sum(map(weight, self.region.ops[:-1])) > COSTLY:
            return {}  # the code is repeated for each
        lanes = self._square(self.shape[self.vector])
        if lanes:
            last = max((d for d in outer if d != shared), default=None)
            side = 1 << lanes.bit_length() // 2  # of a block that is about as high as wide, for the fewest loads:
            if self.shape[shared] % side:  # what is shared is loaded, and converted, least often by the higher ones
                side = lanes // side
            rows = 1 << (min(self.shape[shared], lanes if last is None else side).bit_length() - 1)
            if last is not None and self.shape[last] >= lanes // rows:
                return {shared: rows, last: lanes // rows}
            if self.shape[shared] >= lanes:
                return {shared: lanes}
        size = max(op.operands[0].dtype.storage.itemsize for op in self.reduces)
        registers = -(-self._lanes(self.shape[self.vector]) * size // self.vector_bytes) * len(self.reduces)
        one = len(self.reduces) == 1 and (self.axis == self.vector or self.shape[shared] % STREAMS == 0)
        least = STREAMS if one else 1
        count = min(self.shape[shared], max(self.cpu.registers // 2 // registers, least))
        return {shared: count} if count > 1 else {}

    def _passes(self, at_once: dict[int, int]) -> Passes | None:
        """The passes of sums that are made as a block of rows and columns, with 16 registers: a step is as short there
        as its loads, so that it asks for one line, and the passes together for each line once."""
        if len(at_once) != 2 or self.cpu.registers > 16:
            return None
        (over, step), (row, columns) = at_once.items()
        loads = [(op, dims) for op, dims in self._loads() if over not in dims and
                 (ahead := self.ahead.get(op)) is not None and ahead.axis is not None and
                 {row, self.vector} <= {*dims}]
        self.asked = [op for op, _ in loads]
        count = -(-self.shape[over] // step)
        return Passes(loads, over, step, row, columns * -(-PASSES // count), -(-columns // count))

    def _ask(self, at: At, i: Index, lanes: int) -> None:
        """The part of a pass that begins at `at` of what later ones read, at position i of so many lanes along its
        vectors: the rows one after the other, as memory gives them fastest."""
        b, passes = self.b, self.passes
        if passes is None or self.masked:
            return
        assert self.vector is not None
        width = self.shape[self.vector]
        first = b.add(at[passes.row].base, b.mul(b.div(at[passes.over].base, passes.step), passes.share))
        for op, dims in passes.loads:
            for n in range(0, lanes * passes.share, 8 * LINE // op.result.dtype.memory_bits):
                place = b.add(b.mul(i, passes.share), n)
                row = b.add(b.add(first, b.div(place, width)), passes.on)
                there = {**at, passes.row: Ix(row), self.vector: Ix(b.mod(place, width))}
                offset, *_ = self._window(op, op.operands[1:], tuple(ZERO if d is None else there[d] for d in dims))
                b.hint(th.Prefetch, self.memory(op), b.index(offset), near=True)

    def _loads(self) -> list[tuple[Op, Dims]]:
        """The loads that reductions read, with the dimensions of the nest that walk them."""
        out: dict[tuple[Value, Dims], Op] = {}

        def walk(v: Value, dims: Dims) -> None:
            op = v.owner
            if v not in self.local or op is None or (v, dims) in out:
                return
            out[v, dims] = op
            for o in op.operands:
                if isinstance(o.type, TileType) and o.shape:
                    walk(o, walked(op, dims, o))
        for op in self.reduces:
            for o in op.operands:
                walk(o, tuple(range(len(self.shape))))
        return [(op, dims) for (_, dims), op in out.items() if op.name in ("load", "expand_load")]

    def _shared_dim(self, outer: Sequence[int]) -> int | None:
        """The dimension of `outer` along which most vectors loaded from tensors stay the same, if any does."""
        loads = [dims for _, dims in self._loads() if self.vector in dims]
        gain = {d: sum(d not in dims for dims in loads) for d in outer}
        best = max(outer, key=lambda d: gain[d], default=None)
        return best if best is not None and gain[best] else None

    def _square(self, extent: int) -> int:
        """Lanes of a register, if the nest does nothing but one sum along vectors of so many, and its rows are short
        enough for the caches to hold as many of them; else 0."""
        lanes = self.vector_bytes // 4
        only = self.axis == self.vector and len(self.reduces) == 1 and \
            self.reduces[0].operands[0].dtype.name == "f32" and \
            not any(o.effects == "write" for o in self.region.ops) and \
            all(v.owner in self.reduces for v in self.region.yields)
        return lanes if only and lanes <= extent <= 512 and extent % lanes == 0 else 0

    # -- sums ---------------------------------------------------------------------------------------------------------
    def _initial(self, rows: Sequence[At], lanes: int | None) -> list[Value]:
        """What each reduction of each row begins with."""
        return [self.b.full(identity(op.attrs["kind"], op.result.dtype), op.result.dtype, lanes)
                for _ in rows for op in self.reduces]

    def _step(self, accs: Sequence[Value | None], rows: Sequence[At]) -> list[Value]:
        """Each reduction of each row, one step on."""
        for at in rows:
            self._body(at)
        each = [(op, self._position(at)) for at in rows for op in self.reduces]
        return [self._combined(op, acc, where) for (op, where), acc in zip(each, accs, strict=True)]

    def _combined(self, op: Op, acc: Value | None, where: Position) -> Value:
        """The sum of products of floats is fused: one instruction and one rounding less."""
        b, (x,), kind = self.b, op.operands, op.attrs["kind"]
        lanes = lanes_of(where)
        if acc is not None and kind == "sum" and x in self.local and isinstance(x.owner, ew.Mul) \
                and x.dtype.name in ("f32", "f64") and self.cpu.fused:
            return b.apply(ew.Fma, [*(self.at(o, where) for o in x.owner.operands), acc], {})
        value = b.splat(self.at(x, where), lanes)
        # Of `max` and `min` the first operand is tested for NaN: not the one that each step waits for.
        return value if acc is None else b.pure(COMBINE[kind], value, acc)

    def _along_vector(self, rows: Sequence[At]) -> None:
        b, d = self.b, self.vector
        assert d is not None
        extent = self.shape[d]
        lanes = self._lanes(extent)
        if self.together > 1:  # sums of all rows in half of the registers; those left over are added up as the others
            size = self.reduces[0].operands[0].dtype.storage.itemsize
            lanes = min(lanes, max(self.cpu.registers // 2 // self.together, 1) * self.vector_bytes // size)
        full = extent // lanes * lanes
        parts: list[list[Value]] = []

        def at(ix: Ix) -> list[At]:
            return [{**row, d: ix} for row in rows]
        none = [None] * (len(rows) * len(self.reduces))
        if full > lanes:
            sums = self._initial(rows, lanes)
            for start, end in self._runs(full, lanes):
                with b.loop(start, end, lanes, sums) as loop:
                    self._ask(rows[0], loop.i, lanes)
                    loop.yield_(self._step(loop.carried, at(Ix(loop.i, lanes))))
                sums = loop.results
            parts.append(sums)
        elif full:
            parts.append(self._step(none, at(Ix(0, lanes))))
        if extent > full:
            parts.append(self._step(none, at(Ix(full, extent - full))))
        if len(self.reduces) == 1 and len(rows) == lanes and extent == full:
            folded = b.pure(th.ReduceEach, *parts[0], kind=self.reduces[0].attrs["kind"])
            self._reduced(at(ZERO), [b.pure(th.Extract, folded, lane=i) for i in range(lanes)])
            return
        totals = []
        for op, part in zip(self.reduces * len(rows), zip(*parts, strict=True), strict=True):
            each = [b.pure(Reduce, v, kind=op.attrs["kind"], axis=0) if v.shape else v for v in part]
            totals.append(each[0])
            for v in each[1:]:
                totals[-1] = b.pure(COMBINE[op.attrs["kind"]], totals[-1], v)
        self._reduced(at(ZERO), totals)

    def _across(self, rows: Sequence[At]) -> None:
        """Sums of one strip of columns. Each strip of a block that a loop reads asks for its part of the next block,
        in the order of memory: lines a row apart, as it reads them itself, arrive more slowly."""
        b, axis = self.b, self.axis
        assert axis is not None
        ix = ZERO if self.vector is None else rows[0][self.vector]
        lanes, height, width = ix.lanes or 1, self.shape[axis], self.shape[self.vector or 0]
        self.asked = self._strips(lanes)
        steps = gcd(STEPS, width // lanes, height) if self.asked else 1
        with b.loop(0, height, steps, self._initial(rows, ix.lanes)) as loop:
            sums: Sequence[Value] = loop.carried
            place = b.add(b.mul(ix.base, height), b.mul(loop.i, lanes))
            first = b.mod(place, width) if steps * lanes < width else 0
            for step in range(steps):
                sums = self._step(sums, [{**at, axis: Ix(b.add(loop.i, step))} for at in rows])
                for op in self.asked:
                    line = 8 * LINE // op.result.dtype.memory_bits
                    for column in range(-(-step * lanes // line) * line, (step + 1) * lanes, line):
                        later = self.later(op, (Ix(b.div(place, width)), Ix(b.add(first, column))))
                        b.hint(th.Prefetch, self.memory(op), b.index(later), near=False)
            loop.yield_(sums)
        self.asked = ()
        self._reduced(rows, loop.results)

    def _strips(self, lanes: int) -> Sequence[Op]:
        """Loads of blocks that sums of `lanes` columns read from top to bottom, where later blocks are asked for."""
        if self.vector is None or self.masked or self.cpu.registers > 16 or \
                self.shape[self.vector] % lanes or self.shape[self.vector] == lanes:
            return ()
        return [op for op, dims in self._loads() if op.name == "load" and op in self.ahead and
                dims == (self.axis, self.vector) and self._stride(self.memory(op), op.attrs["axes"][-1]) == 1]

    def _reduced(self, rows: Sequence[At], totals: Sequence[Value]) -> None:
        """Stores what the reductions of each row came to."""
        results = [(op, self._position(at)) for at in rows for op in self.reduces]
        for (op, where), total in zip(results, totals, strict=True):
            axis = op.attrs["axis"]
            self.store(self.targets[op.result], (*where[:axis], *where[axis + 1:]), total)

    def _custom(self, at: At) -> None:
        """The user's combination, of one or several tiles."""
        b, axis = self.b, self.axis
        assert axis is not None
        (op,), lanes = self.reduces, lanes_of(self._position(at))

        def elements(i: Index) -> list[Value]:
            where = self._position({**at, axis: Ix(i)})
            return [b.splat(self.at(o, where), lanes) for o in op.operands]
        with b.loop(1, self.shape[axis], 1, elements(0)) as loop:
            loop.yield_([b.splat(v, lanes) for v in
                         inline_region(b, op.regions[0], [*loop.carried, *elements(loop.i)], self.scalars)])
        where = self._position(at)
        for result, total in zip(op.results, loop.results, strict=True):
            self.store(self.targets[result], (*where[:axis], *where[axis + 1:]), total)
