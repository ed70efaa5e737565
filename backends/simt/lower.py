"""lower: turns tiles in registers into the code of one thread.

requires: PLACED as `backends.simt.place` makes it
ensures: THREAD: one vector per tile and thread, shared buffers, shuffles, matrix instructions; no barriers yet
example: a tile of 128 elements of 32 threads is a vector of 4 lanes
"""
from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np

from tilelang.backends.simt import bulk
from tilelang.backends.simt.access import Access, address, block_of, join
from tilelang.backends.simt.collect import Collect
from tilelang.backends.simt.costs import conversion_cost
from tilelang.backends.simt.dots import Dots
from tilelang.backends.simt.exchange import Exchange
from tilelang.backends.simt.facts import Facts
from tilelang.backends.simt.infer import reshaped
from tilelang.backends.simt.paired import Paired, cut, take, to_f16, view
from tilelang.backends.simt.registers import Threads, is_tile, local_offsets, repeated, thread_count
from tilelang.backends.simt.sorting import Sorting
from tilelang.backends.simt.stage import leading, slices
from tilelang.backends.simt.target import SimtTarget
from tilelang.backends.simt.transposed import load_transposed
from tilelang.backends.simt.window import windowed
from tilelang.backends.thread.builder import Index, ThreadBuilder
from tilelang.errors import TargetError
from tilelang.ir import elementwise as ew
from tilelang.ir import reduction, simt
from tilelang.ir import thread as th
from tilelang.ir.bulk import BulkWait, CopyBulk, Elected, StoreBulk
from tilelang.ir.cluster import cluster_of, refuse_clusters
from tilelang.ir.control import Assert, For, Grid, If, While
from tilelang.ir.core import BufferType, Function, Op, Region, TensorType, TileType, Value
from tilelang.ir.memory import CopyAsync
from tilelang.ir.pairs import ORDERS, pairs
from tilelang.ir.roles import Roles
from tilelang.layouts import RegisterLayout, SharedLayout, conversion, shared


def lower(fn: Function, target: SimtTarget) -> Function:
    """A new function at level THREAD."""
    if not target.clusters:
        refuse_clusters(fn, target.name)
    out = Function(fn.name, fn.params, Region(), "thread", fn.loc)
    _Lowering(fn, ThreadBuilder(out.body), target).region(fn.body)
    return out


def layout_of(v: Value) -> RegisterLayout:
    layout = v.tile.layout
    assert isinstance(layout, RegisterLayout), v
    return layout


class _Lowering:
    def __init__(self, fn: Function, b: ThreadBuilder, target: SimtTarget) -> None:
        self.b, self.target = b, target
        self.of: dict[Value, Value] = {}
        self.cluster = cluster_of(fn, sharing=True)
        count = thread_count(fn, target)
        self.threads = Threads(b, b.pure(simt.ThreadId, count=count), count)
        self.exchange = Exchange(b, self.threads, target)
        self.facts = Facts({op.regions[0].args[0]: (op.operands[0], op.operands[2])
                            for op in fn.walk() if op.name == "for"})
        self.access = Access(
            b,
            self.threads,
            self.facts,
            self.of,
            {
                op.operands[0]
                for op in fn.walk()
                if op.effects == "write" and isinstance(op.operands[0].type, TensorType)
                and not isinstance(op, CopyAsync)
            },
            self.exchange.begin,
            target,
            windowed(fn) if target.windows else set(),
        )
        self.consumers = 0  # the warps before those that copy blocks, where these are others
        self.collect = Collect(b, self.threads, self.exchange, self.of, target)
        self.sorting = Sorting(b, self.threads, self.exchange, target.warp)
        self.paired: dict[Value, Paired] = {}  # THREAD values that are known as pairs, too
        self.words: dict[Value, Value] = {}  # and the u32 that a view has cut into them
        self.dots = Dots(b, self.threads, self.exchange, self.of, self.paired, self.words, self.access.managed, target)

    def region(self, region: Region) -> None:
        for op in region.ops:
            self.b.loc = op.loc
            rule = getattr(self, f"_lower_{op.name}", None)
            if rule is not None:
                rule(op)
            elif not any(map(is_tile, [*op.operands, *op.results])) or \
                    isinstance(op, ew.Elementwise | ew.Where | ew.Cast | ew.Bitcast):
                self._plain(op)
            else:
                raise TargetError(f"`{op.name}` cannot be compiled for {self.target.name} yet", loc=op.loc,
                                  needs="an operation this target lowers", got=op.name,
                                  try_='run the kernel with tile.target("cpu")')

    def _plain(self, op: Op) -> None:
        """An operation on scalars, or the same on every register."""
        operands = [self.of.get(v, v) for v in op.operands]
        if op.effects or op.name == "alloc":
            results = self.b.effect(type(op), *operands, **op.attrs).results
        else:
            results = self.b.pure_op(type(op), *operands, **op.attrs).results
        self.of.update(zip(op.results, results, strict=True))
    _lower_piece = _plain

    # -- making tiles -------------------------------------------------------------------------------------------------
    def _lower_arange(self, op: Op) -> None:
        layout = layout_of(op.result)
        index, start = self.threads.index(layout, 0), op.attrs["start"]
        full = self.b.full(start, index.dtype, layout.local_size)
        self.of[op.result] = self.b.pure(ew.Add, index, full) if start else index

    def _lower_broadcast(self, op: Op) -> None:
        (src,), layout = op.operands, layout_of(op.result)
        value = self.of.get(src, src)
        if not src.shape:
            self.of[op.result] = self.b.splat(value, layout.local_size)
            return
        # Registers of the result that differ only along dimensions of one element come from one register.
        source = layout_of(src)
        lead = layout.rank - source.rank
        have = {tuple(map(int, o)): i for i, o in enumerate(local_offsets(source))}
        lanes = []
        for o in local_offsets(layout):
            lanes.append(have[tuple(0 if n == 1 else int(o[lead + d]) for d, n in enumerate(src.shape))])
        self.of[op.result] = self._take(value, lanes)

    def _lower_const_tile(self, op: Op) -> None:
        """A table: every thread writes its part, then reads its elements."""
        x, b, layout, n = self.exchange, self.b, layout_of(op.result), len(op.attrs["values"])
        memory = x.alloc(op.result.dtype, n)
        x.begin()
        values = op.attrs["values"]
        count = self.threads.count
        thread = b.to_index(self.threads.thread)
        for first in range(0, n, count):
            chunk = values[first:first + count]
            at = b.add(thread, first)
            value = b.const(chunk[0], op.result.dtype)
            for i, v in enumerate(chunk[1:], 1):  # a thread selects its own constant
                mine = b.pure(ew.Eq, self.threads.thread, b.const(i, simt.I32))
                value = b.pure(ew.Where, mine, b.const(v, op.result.dtype), value)
            inside = b.pure(ew.Lt, self.threads.thread, b.const(len(chunk), simt.I32))
            x.note(b.effect(th.St, memory, b.index(at), value, inside))
        x.begin()
        self.of[op.result] = x.read(op.result.dtype, layout, (n,), memory, shared((n,)))

    # -- rearranging --------------------------------------------------------------------------------------------------
    def _lower_convert_layout(self, op: Op) -> None:
        (v,), dst = op.operands, layout_of(op.result)
        src = layout_of(v)
        how = conversion(src, dst, v.shape, self.target.warp)
        if how.kind == "shuffle" and how.shuffles * self.threads.count * 4 < \
                conversion_cost(None, dst, v.shape, v.dtype.storage.itemsize, self.target.warp):
            self.of[op.result] = self.exchange.shuffle(self.of[v], how.moves, self.target.warp)
        elif how.kind in ("shared", "shuffle"):
            self.of[op.result] = self.exchange.pass_through(self.of[v], v.dtype, src, dst, v.shape)
        elif how.kind == "registers":
            self.of[op.result] = self._take(self.of[v], how.take)
        else:
            self.of[op.result] = self.of[v]

    def _take(self, value: Value, lanes: Sequence[int]) -> Value:
        """Lanes of a vector, in this order."""
        out = take(self.b, value, lanes)
        if value in self.paired:
            self.paired[out] = self.paired[value].taken(lanes)
        return out

    def _lower_cast(self, op: Op) -> None:
        (v,), dt = op.operands, op.attrs["dtype"]
        paired = self.paired.get(self.of.get(v, v)) if dt.name == "f16" else None
        value = to_f16(self.b, paired) if paired is not None else None
        if paired is None or value is None:
            self._plain(op)
            return
        self.of[op.result], self.paired[value] = value, paired

    def _lower_permute(self, op: Op) -> None:
        self.of[op.result] = self.of[op.operands[0]]

    def _lower_view(self, op: Op) -> None:
        """Registers are cut anew; copies that come to differ take the value of the last thread, as the interpreter."""
        (v,), out, b, target = op.operands, op.result, self.b, op.attrs["layout"]
        value = b.splat(self.of.get(v, v), 1)
        if op.attrs["order"] in ORDERS:
            value, paired = view(b, value, out.dtype, pairs(out.dtype, op.attrs["order"]))
            self.paired[value] = paired
        else:
            value, words = cut(b, value, out.dtype), value
            if words.dtype.name == "u32":
                self.words[value] = words
        if not _same_copies(op.attrs["source"], target):
            held = repeated(target, self.threads.count)
            value = self.exchange.pass_through(value, out.dtype, held, held, out.shape, last=True)
        self.of[out] = value if out.shape else b.pure(th.Extract, value, lane=0)

    def _stage(self, v: Value) -> Value:
        """A tile in shared memory, row-major; opens the phase of its readers."""
        x, value = self.exchange, self.of.get(v, v)
        memory = x.alloc(v.dtype, v.shape)
        x.begin()
        if v.shape:
            x.write(value, v.dtype, layout_of(v), v.shape, memory, shared(v.shape))
        else:
            first = self.b.pure(ew.Eq, self.threads.thread, self.b.const(0, simt.I32))
            x.note(self.b.effect(th.St, memory, self.b.index(0), value, first))
        x.begin()
        return memory

    def _lower_reshape(self, op: Op) -> None:
        (v,), out = op.operands, op.result
        if not v.shape:
            self.of[out] = self.b.splat(self.of.get(v, v), layout_of(out).local_size) if out.shape else self.of[v]
        elif not out.shape:
            self.of[out] = self.exchange.read_one(self._stage(v), 0)
        else:
            src, dst = layout_of(v), layout_of(out)
            wanted = reshaped(dst, out.shape, v.shape)
            how = conversion(src, wanted, v.shape) if wanted is not None else None
            if how is not None and how.kind in ("none", "registers"):
                self.of[out] = self.of[v] if how.kind == "none" else self._take(self.of[v], how.take)
            else:
                self.of[out] = self.exchange.read(v.dtype, dst, out.shape, self._stage(v), shared(out.shape))

    def _lower_slice(self, op: Op) -> None:
        (v,), out, b = op.operands, op.result, self.b
        starts, steps, place = op.attrs["starts"], op.attrs["steps"], shared(v.shape)
        memory = self._stage(v)
        if not out.shape:
            self.of[out] = self.exchange.read_one(memory, address(b, place, starts))
            return
        self.of[out] = self.exchange.read(
            v.dtype, layout_of(out), out.shape, memory, place,
            lambda i: tuple(b.add(b.mul(at, step), start) for at, step, start in zip(i, steps, starts, strict=True)))

    def _lower_concat(self, op: Op) -> None:
        x, b, out, axis = self.exchange, self.b, op.result, op.attrs["axis"]
        place, start = shared(out.shape), 0
        memory = x.alloc(out.dtype, out.tile.size)
        x.begin()
        for v in op.operands:
            def moved(i: tuple[Value | int, ...], start: int = start) -> tuple[Value | int, ...]:
                return tuple(b.add(at, start) if d == axis else at for d, at in enumerate(i))
            x.write(self.of[v], v.dtype, layout_of(v), v.shape, memory, place, moved)
            start += v.shape[axis]
        x.begin()
        self.of[out] = x.read(out.dtype, layout_of(out), out.shape, memory, place)

    def _lower_lookup(self, op: Op) -> None:
        table, index = op.operands
        b, x = self.b, self.exchange
        memory = self._stage(table)
        value = self.of.get(index, index)
        parts = []
        for i in range(value.shape[0] if value.shape else 1):
            at = b.pure(th.Extract, value, lane=i) if value.shape else value
            wide = b.index(b.to_index(at))
            inside = b.pure(ew.And, b.pure(ew.Ge, wide, b.index(0)), b.pure(ew.Lt, wide, b.index(table.shape[0])))
            parts.append(x.note(b.effect(th.Ld, memory, wide, inside, lanes=None)).result)
        self.of[op.result] = join(b, parts) if index.shape else parts[0]

    # -- collecting ---------------------------------------------------------------------------------------------------
    def _lower_reduce(self, op: Op) -> None:
        for r, value in zip(op.results, self.collect.reduce(op), strict=True):
            self.of[r] = value if r.shape else self.b.pure(th.Extract, value, lane=0)

    def _lower_sort_keys(self, op: Op) -> None:
        values = self.sorting.sort(op, tuple(self.of[v] for v in op.operands))
        self.of.update(zip(op.results, values, strict=True))

    def _lower_scan(self, op: Op) -> None:
        self.of.update(zip(op.results, self.collect.scan(op), strict=True))

    def _lower_dot(self, op: Op) -> None:
        self.of[op.result] = self.dots.lower(op)
    _lower_dot_bits = _lower_dot

    def _lower_dot_scaled(self, op: Op) -> None:
        self.of[op.result] = self.dots.lower_scaled(op)

    # -- memory -------------------------------------------------------------------------------------------------------
    def _lower_alloc(self, op: Op) -> None:
        """Stands before everything else, wherever the program asks for it."""
        self.of[op.result] = memory = self.exchange.alloc(op.attrs["dtype"], 0, op.result.name, op)
        if op.attrs["managed"]:
            self.access.managed[op.result] = self.access.managed[memory] = self.exchange.begin()

    def _lower_load(self, op: Op) -> None:
        memory = self.of.get(op.operands[0], op.operands[0])
        if not (memory in self.access.managed or slices(op)):
            self.of[op.result] = self.access.load(op)
            return
        b, t, (lead, inside) = self.b, memory.type, self._slice(op)
        assert isinstance(t, BufferType)
        place, phase = t.layout or shared(t.shape), self.access.managed.get(memory, 0)
        if isinstance(op.result.tile.layout, SharedLayout):  # who uses it reads it there
            self.of[op.result] = block = block_of(b, memory, place, lead)
            self.access.managed[block] = phase
            return
        layout = layout_of(op.result)
        value = load_transposed(b, self.threads, memory, place, layout, lead, phase) \
            if self.target.transposed_loads else None
        if value is None:
            value = self.exchange.read(t.dtype, layout, op.result.shape, memory, place, phase=phase, lead=lead)
        if inside is not None:
            n = layout.local_size
            value = b.pure(ew.Where, b.splat(inside, n), value, b.full(op.attrs["fill"], t.dtype, n))
        self.of[op.result] = value

    def _lower_store(self, op: Op) -> None:
        memory, src = self.of.get(op.operands[0], op.operands[0]), op.operands[-1]
        if not (memory in self.access.managed or slices(op)):
            self.access.store(op)
            return
        t, (lead, inside) = memory.type, self._slice(op)
        assert isinstance(t, BufferType)
        place = t.layout or shared(t.shape)
        with self.b.branch(inside) if inside is not None else nullcontext():
            self.exchange.write(self.of[src], src.dtype, layout_of(src), src.shape,
                                block_of(self.b, memory, place, lead), place.inner(len(lead)),
                                phase=self.access.managed.get(memory, 0))

    def _slice(self, op: Op) -> tuple[list[Index], Value | None]:
        """The index of the slice of a buffer that `op` accesses, and the condition for it to exist, if that is to be
        asked: the index is 0 where it does not."""
        b, memory = self.b, self.of[op.operands[0]]
        values = leading(op)
        lead = [b.to_index(self.of.get(v, v)) for v in values]
        conditions = self.access.has_slice(memory, values) if memory not in self.access.managed else []
        if not conditions:
            return lead, None
        inside = b.all_of(conditions)
        return [b.pure(ew.Where, inside, b.index(at), b.index(0)) for at in lead], inside

    def _lower_copy_async(self, op: Op) -> None:
        self.access.copy_async(op)

    def _lower_copy_bulk(self, op: Op) -> None:
        assert isinstance(op, CopyBulk)
        bulk.load(self.b, op, lambda v: self.of.get(v, v), self.access.managed[op.operands[op.buffer]])
    _lower_copy_shared = _lower_copy_bulk

    def _lower_store_bulk(self, op: Op) -> None:
        assert isinstance(op, StoreBulk)
        bulk.store(self.b, op, lambda v: self.of.get(v, v), self.exchange.begin())

    def _lower_bulk_wait(self, op: Op) -> None:
        """Until there the buffers are read: in another phase than that of the stores to them."""
        self.b.effect(BulkWait, *(self.of[v] for v in op.operands), read=op.attrs["read"], phase=self.exchange.begin())

    def _lower_roles(self, op: Op) -> None:
        self.consumers = op.attrs["consumers"]
        self.b.effect(Roles, **op.attrs)

    def _lower_once(self, op: Op) -> None:
        warp = self.consumers if op.attrs["producer"] else 0
        with self.b.branch(self.b.effect(Elected, warp=warp).result):
            self.region(op.regions[0])

    def _lower_gather(self, op: Op) -> None:
        values = self.access.elements(op)
        self.of[op.result] = join(self.b, values) if op.result.shape else values[0]

    def _lower_scatter(self, op: Op) -> None:
        self.access.elements(op)

    def _lower_atomic(self, op: Op) -> None:
        values, x = self.access.elements(op), self.exchange
        value = join(self.b, values) if op.result.shape else values[0]
        if not op.result.shape:
            self.of[op.result] = value
            value = x.read_one(self._stage(op.result), 0)
        elif self.threads.leader(layout_of(op.result)) is not None:  # the copies learn what the leader got
            layout = layout_of(op.result)
            value = x.pass_through(value, value.dtype, layout, layout, op.result.shape)
        self.of[op.result] = value

    def _lower_assert(self, op: Op) -> None:
        (v,), b = op.operands, self.b
        ok = self.of.get(v, v)
        if v.shape:
            inside = self.threads.inside(layout_of(v), v.shape)
            if inside is not None:
                ok = b.pure(ew.Or, ok, b.pure(ew.Not, inside))
            ok = b.pure(reduction.Reduce, ok, kind="all", axis=0)
        b.effect(Assert, ok, **op.attrs)

    def _lower_print(self, op: Op) -> None:
        memories = [self._stage(v) for v in op.operands]
        self.exchange.note(self.b.effect(simt.PrintShared, *memories, text=op.attrs["text"]))

    def _lower_grid(self, op: Op) -> None:
        """Programs that do not know of each other need no cluster."""
        grid = self.b.effect(Grid, *(self.of.get(v, v) for v in op.operands), **{**op.attrs, "cluster": self.cluster})
        self.of.update(zip(op.results, grid.results, strict=True))

    # -- control flow -------------------------------------------------------------------------------------------------
    def _args(self, args: Sequence[Value]) -> list[Value]:
        out = []
        for a in args:
            t = a.tile
            new = Value(TileType((layout_of(a).local_size,) if t.shape else (), t.dtype), a.name)
            self.of[a] = new
            out.append(new)
        return out

    def _values(self, values: Sequence[Value]) -> list[Value]:
        return [self.b.splat(self.of.get(v, v), layout_of(v).local_size if v.shape else None) for v in values]

    def _block(self, region: Region) -> Region:
        opened = self.b.open(self._args(region.args))
        self.region(Region([], [op for op in region.ops if op.name != "yield"]))
        self.b.close(self._values(region.yields))
        return opened

    def _lower_for(self, op: Op) -> None:
        starts = [*(self.of.get(v, v) for v in op.operands[:3]), *self._values(op.operands[3:])]
        body = self._block(op.regions[0])
        self.b.loc = op.loc
        self.of.update(zip(op.results, self.b.effect(For, *starts, regions=[body], **op.attrs).results, strict=True))

    def _lower_while(self, op: Op) -> None:
        starts = self._values(op.operands)
        regions = [self._block(r) for r in op.regions]
        self.of.update(zip(op.results, self.b.effect(While, *starts, regions=regions).results, strict=True))

    def _lower_if(self, op: Op) -> None:
        condition = self.of.get(op.operands[0], op.operands[0])
        regions = [self._block(r) for r in op.regions]
        self.of.update(zip(op.results, self.b.effect(If, condition, regions=regions).results, strict=True))


def _same_copies(source: RegisterLayout, target: RegisterLayout) -> bool:
    """Whether threads that hold the same elements under `target` do so under `source`."""
    have, want = (f.table().reshape(f.num_threads, -1) for f in (source, target))
    both = np.concatenate([have, want], 1)
    return len(np.unique(both, axis=0)) == len(np.unique(want, axis=0))

