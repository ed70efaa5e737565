"""lower: turns nests, dots and loops over stored tiles into THREAD code for one core.

requires: PLACED as `place` makes it
ensures: THREAD: scalars, vectors, scratch buffers and loops
example: `for … carrying a tile` becomes a loop that updates one buffer in place where no read is in the way
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

from tilelang.backends.cpu import dots
from tilelang.backends.cpu.ahead import Ahead, read_again, read_ahead
from tilelang.backends.cpu.buffers import Buffer, Ix, new_buffer
from tilelang.backends.cpu.elements import Elements
from tilelang.backends.cpu.inplace import is_tile, plan
from tilelang.backends.cpu.microkernel import Dot, Vectors
from tilelang.backends.cpu.nests import NestLowering
from tilelang.backends.cpu.scans import scan
from tilelang.backends.cpu.sorting import sort
from tilelang.backends.cpu.views import emit_view
from tilelang.backends.thread.builder import Index, ThreadBuilder
from tilelang.errors import TargetError
from tilelang.ir import elementwise as ew
from tilelang.ir import shape as sh
from tilelang.ir import thread as th
from tilelang.ir.control import For, If, Print, While
from tilelang.ir.core import Function, Op, Region, TensorType, Value
from tilelang.layouts import shared


def lower(fn: Function, target: Any) -> Function:
    """A new function at level THREAD."""
    out = Function(fn.name, fn.params, Region(), "thread", fn.loc)
    read = {v for op in fn.walk() if op.name not in ("store", "scatter", "dim") for v in op.operands}
    lowering = _Lowering(fn, ThreadBuilder(out.body), target, set(fn.params) - read)
    lowering.region(fn.body)
    return out


class _Lowering:
    def __init__(self, fn: Function, b: ThreadBuilder, target: Any, unread: set[Value]) -> None:
        self.b, self.target, self.unread = b, target, unread
        self.stored: dict[Value, Buffer] = {}
        self.scalars: dict[Value, Value] = {}
        self.nest_of = {r: op for op in fn.walk() if isinstance(op, th.Nest) for r in op.results}
        self.used = {v for op in fn.walk() for v in op.operands}
        self.inplace, self.ahead = plan(fn), {**read_again(fn), **read_ahead(fn)}
        self.clear: dict[Value, NestLowering] = {}  # an accumulator that is not cleared yet -> what clears it
        self.later: dict[Op, Value] = {}  # a dot -> whether its accumulator has been written before
        self.takes: dict[Op, tuple[NestLowering, Value]] = {}  # nests that take accumulators of a dot, and whether
        self.ends: dict[Op, tuple[Value, Callable[[Vectors], None]]] = {}  # a dot -> when they are taken, and how

    # -- regions ------------------------------------------------------------------------------------------------------
    def wanted(self, v: Value) -> Buffer | None:
        arg, layout = self.inplace.home.get(v), self.inplace.packed.get(v)
        if layout is not None:
            return new_buffer(self.b, v.shape, v.dtype, layout)
        return self.stored[arg] if arg is not None else None

    def region(self, region: Region) -> None:
        for op in region.ops:
            self.b.loc = op.loc
            self.b.floor = len(self.b.levels) - 1
            self.b.epoch += 1
            if isinstance(op, th.Nest):
                if op in self.inplace.copies:
                    self.stored[op.result] = self.stored[op.regions[0].ops[0].operands[0]]
                elif op in self.inplace.unwritten:
                    self.clear[op.result] = self._nest(op)
                elif op in self.takes:
                    nest, taken = self.takes[op]
                    nest.leave(taken)
                else:
                    self._nest(op).run()
                continue
            rule = getattr(self, f"_lower_{op.name}", None)
            if rule is not None:
                rule(op)
            elif any(map(is_tile, [*op.operands, *op.results])):
                raise TargetError(f"`{op.name}` cannot be compiled for the CPU yet", loc=op.loc,
                                  needs="an operation the CPU backend lowers", got=op.name,
                                  try_="run the kernel with kernel.reference(...)")
            else:
                self._scalar(op)

    def _nest(self, op: th.Nest) -> NestLowering:
        for load, ahead in [(o, self.ahead[o]) for o in op.regions[0].ops if o in self.ahead]:
            if ahead.loop is not None:
                self.ahead[load] = replace(ahead, offsets=[self._later(v, ahead) for v in load.operands[1:]])
        return NestLowering(self.b, op, self.stored, self.scalars, self.wanted, self.target, self.unread, self.ahead)

    def _later(self, v: Value, ahead: Ahead) -> Value:
        """A scalar as it will be some iterations on."""
        b, loop, op = self.b, ahead.loop, v.owner
        assert loop is not None
        if v is loop.regions[0].args[0]:
            step = self.scalars.get(loop.operands[2], loop.operands[2])
            return b.pure(ew.Add, self.scalars[v], b.pure(ew.Mul, step, b.const(ahead.blocks, step.dtype)))
        if op is None or op not in loop.regions[0].ops:
            return self.scalars.get(v, v)
        if isinstance(op, th.Nest):
            (load,) = op.regions[0].ops[:-1]
            scalars = {**self.scalars, **{o: self._later(o, ahead) for o in load.operands[1:]}}
            element = Elements(b, self.stored, scalars, {load.result}, self.target.vector_bytes, {})
            element.masked = True
            return element.at(load.result, ())
        return b.pure(type(op), *[self._later(o, ahead) for o in op.operands], **op.attrs)

    def _scalar(self, op: Op) -> None:
        operands = [self.scalars.get(v, v) for v in op.operands]
        if op.effects or op.name in ("alloc",):
            new = self.b.effect(type(op), *operands, **op.attrs)
        else:
            new = self.b.pure_op(type(op), *operands, **op.attrs)
        self.scalars.update(zip(op.results, new.results, strict=True))

    def _lower_alloc(self, op: Op) -> None:
        self.scalars[op.result] = self.b.alloc(op.attrs["dtype"], tuple(op.attrs["shape"]))

    def _lower_const_tile(self, op: Op) -> None:
        buffer = new_buffer(self.b, op.result.shape, op.result.dtype)
        self.stored[op.result] = buffer
        buffer.store(self.b, (Ix(0, op.result.shape[0]),), self.b.pure(sh.ConstTile, **op.attrs))

    def _lower_print(self, op: Op) -> None:
        """Values are printed from row-major memory of their own."""
        memories = []
        for v in op.operands:
            memories.append(self.b.alloc(v.dtype, v.shape))
            self._copy(self._in_memory(v), Buffer(memories[-1], v.shape, v.dtype, shared(v.shape)))
        self.b.effect(Print, *memories, **op.attrs)

    def _lower_barrier(self, op: Op) -> None:
        """One worker runs a whole program, and one call at a time: nothing waits for threads, copies or launches."""

    _lower_commit = _lower_wait = _lower_wait_previous = _lower_start_next = _lower_barrier

    def _lower_reshape(self, op: Op) -> None:
        source = self.stored[op.operands[0]]
        if not source.row_major:
            raise TargetError(
                "a packed tile is reshaped",
                loc=op.loc,
                needs="a row-major tile",
                got=str(source.layout),
                try_="report this: the CPU backend placed it wrongly",
            )
        self.stored[op.result] = source.reshaped(op.result.shape)

    def _lower_view(self, op: Op) -> None:
        b, v = self.b, op.operands[0]
        source = self._in_memory(v)
        target = new_buffer(b, op.result.shape, op.result.dtype)
        emit_view(b, source, op.attrs["source"], target, op.attrs["layout"], op.attrs["order"])
        if op.result.shape:
            self.stored[op.result] = target
        else:
            b.epoch += 1
            self.scalars[op.result] = target.load(b, ())

    def _in_memory(self, v: Value) -> Buffer:
        """The buffer of a tile; a scalar gets one."""
        if v.shape:
            return self.stored[v]
        buffer = new_buffer(self.b, (), v.dtype)
        buffer.store(self.b, (), self.scalars.get(v, v))
        return buffer

    def _lower_concat(self, op: Op) -> None:
        target, axis, start = new_buffer(self.b, op.result.shape, op.result.dtype), op.attrs["axis"], 0
        for v in op.operands:
            self._copy(self.stored[v], target, axis, start)
            start += v.shape[axis]
        self.stored[op.result] = target

    def _copy(self, source: Buffer, target: Buffer, axis: int = 0, start: int = 0) -> None:
        """Copies a tile into (a window of) another."""
        b = self.b
        b.epoch += 1
        b.floor = len(b.levels) - 1  # behind a loop it is still that of the loop's body

        def over(dims: Sequence[int], at: tuple[Ix, ...]) -> None:
            if not dims:
                target.store(b, (), source.load(b, ()))
                return
            if len(dims) > 1:
                with b.loop(0, dims[0]) as loop:
                    over(dims[1:], (*at, Ix(loop.i)))
                return
            lanes = min(dims[0], 4 * self.target.vector_bytes // source.dtype.storage.itemsize)
            lanes = min([lanes, *(d[-1][0] for d in (source.layout.dims[-1], target.layout.dims[-1]) if len(d) > 1)])
            full = dims[0] // lanes * lanes

            def move(ix: Ix) -> None:
                where = (*at, ix)
                shifted = tuple(x.shifted(b, start, 1) if d == axis else x for d, x in enumerate(where))
                target.store(b, shifted, source.load(b, where))
            with b.loop(0, full, lanes) as loop:
                move(Ix(loop.i, lanes))
            if dims[0] > full:
                move(Ix(full, dims[0] - full))
        over(source.shape, ())

    # -- dot ----------------------------------------------------------------------------------------------------------
    def _lower_dot(self, op: Op) -> None:
        b = self.b
        a, p = self.stored[op.operands[0]], self.stored[op.operands[1]]
        row = next(r for r in dots.ROWS if (r.a, r.b, r.acc) == (a.dtype.name, p.dtype.name, op.attrs["dtype"].name)
                   and r.bias == op.attrs["bias"])
        target = self.wanted(op.result) or new_buffer(b, op.result.shape, op.result.dtype)
        if len(op.operands) == 3 and self.stored[op.operands[2]] != target:
            self._copy(self.stored[op.operands[2]], target)
        add = self.later.get(op, len(op.operands) == 3)
        self._take(op, [])
        taken, take = self.ends.get(op, (None, None))
        block = dots.blocking(row, self.target).within(a.shape[-1] // row.group)
        Dot(b, row, block, a, p, target, add, self._depth(op, row.group * block.steps), taken, take).emit()
        self.stored[op.result] = target

    def _take(self, op: Op, runs: Sequence[Value]) -> None:
        """Lets the nest behind a dot, or behind a loop that `runs`, take accumulators where it crosses no edge."""
        if op not in self.inplace.finishes:
            return
        dot, nest, tile = self.inplace.finishes[op]
        lowering = self._nest(nest)
        if lowering.takes_registers():
            taken = self.b.all_of([self.b.const(1, ew.I1), *runs, *lowering.inside()])
            self.takes[nest] = lowering, taken
            self.ends[dot] = taken, partial(lowering.take, tile)

    def _depth(self, op: Op, group: int) -> Index:
        """How far k must run, a multiple of `group`: both operands are zero beyond their tensors' edges."""
        b, limits = self.b, []
        for v, dim in ((op.operands[0], -1), (op.operands[1], -2)):
            limit = _zero_beyond(v, len(v.shape) + dim, self.nest_of)
            if limit is None:
                return op.operands[0].shape[-1]
            memory, off, axis = limit
            at = b.to_index(self.scalars.get(off, off))
            limits.append(b.sub(b.index(b.extent(memory, axis)), b.index(at)))
        k = op.operands[0].shape[-1]
        depth = b.pure(ew.Max, b.index(limits[0]), b.index(limits[1]))
        return b.mul(b.div(b.add(b.clamp(depth, 0, k), group - 1), group), group)

    # -- along an axis ------------------------------------------------------------------------------------------------
    def _lower_scan(self, op: Op) -> None:
        targets = {i: new_buffer(self.b, r.shape, r.dtype) for i, r in enumerate(op.results) if r in self.used}
        self.stored.update({op.results[i]: t for i, t in targets.items()})
        scan(self.b, op, [self.stored[v] for v in op.operands], targets, self.scalars, self.target.vector_bytes)

    def _lower_sort_keys(self, op: Op) -> None:
        for r, buffer in zip(op.results, sort(self.b, [self.stored[v] for v in op.operands], op.attrs["axis"],
                                              self.target.vector_bytes, self._copy), strict=True):
            self.stored[r] = buffer

    # -- control flow -------------------------------------------------------------------------------------------------
    def _split(self, values: Sequence[Value]) -> tuple[list[int], list[int]]:
        """Positions of the tiles and of the scalars."""
        tiles = [i for i, v in enumerate(values) if is_tile(v)]
        return tiles, [i for i in range(len(values)) if i not in tiles]

    def _carry_in(self, inits: Sequence[Value], arg_lists: Sequence[Sequence[Value]]) -> None:
        """Gives carried tiles their own buffers, filled with the initial values."""
        for i, init in enumerate(inits):
            if is_tile(init):
                buffer = self.stored[init]
                if init not in self.inplace.adopted:
                    buffer = new_buffer(self.b, init.shape, init.dtype)
                    self._copy(self.stored[init], buffer)
                for args in arg_lists:
                    self.stored[args[i]] = buffer

    def _carry_out(self, args: Sequence[Value], values: Sequence[Value]) -> None:
        """Writes the next carried tiles into their buffers; old values are read before any is overwritten."""
        moves = [(self.stored[v], self.stored[a]) for a, v in zip(args, values, strict=True)
                 if is_tile(a) and self.stored[v] != self.stored[a]]
        targets = [t for _, t in moves]
        safe = []
        for source, target in moves:
            if len(moves) > 1 and source in targets:
                copy = new_buffer(self.b, source.shape, source.dtype)
                self._copy(source, copy)
                source = copy
            safe.append((source, target))
        for source, target in safe:
            self._copy(source, target)

    def _body(self, region: Region, args: Sequence[Value], scalars: Sequence[int]) -> None:
        """The operations of a loop's body, and its yield."""
        self.region(Region([], [op for op in region.ops if op.name != "yield"]))
        self._carry_out(args, region.yields)
        self.b.close([self.scalars.get(region.yields[i], region.yields[i]) for i in scalars])

    def _finish(self, op: Op, new: Op, args: Sequence[Value], tiles: Sequence[int], scalars: Sequence[int]) -> None:
        for i in tiles:
            self.stored[op.results[i]] = self.stored[args[i]]
        for i, value in zip(scalars, new.results, strict=True):
            self.scalars[op.results[i]] = value

    def _new_args(self, args: Sequence[Value], scalars: Sequence[int]) -> list[Value]:
        out = [Value(args[i].type, args[i].name) for i in scalars]
        self.scalars.update(zip((args[i] for i in scalars), out, strict=True))
        return out

    def _lower_for(self, op: Op) -> None:
        inits, region = op.operands[3:], op.regions[0]
        args = region.args[1:]
        tiles, scalars = self._split(inits)
        self._carry_in(inits, [args])
        index = Value(region.args[0].type, region.args[0].name)
        self.scalars[region.args[0]] = index
        bounds = [self.scalars.get(v, v) for v in op.operands[:3]]
        starts = [self.scalars.get(inits[i], inits[i]) for i in scalars]
        for nest in [self.clear.pop(v) for v in inits if v in self.clear]:
            with self.b.branch(self.b.pure(ew.Ge, bounds[0], bounds[1])):
                nest.run()
        self._take(op, [self.b.pure(ew.Lt, bounds[0], bounds[1])])
        opened = self.b.open([index, *self._new_args(args, scalars)])
        if op in self.inplace.finishes and self.inplace.finishes[op].dot in self.ends:
            dot = self.inplace.finishes[op].dot
            taken, take = self.ends[dot]
            i, hi, step = (self.b.to_index(x) for x in (index, *bounds[1:]))
            last = self.b.pure(ew.Ge, self.b.index(i), self.b.index(self.b.sub(hi, step)))
            self.ends[dot] = self.b.pure(ew.And, taken, last), take
        for dot in [d for d, loop in self.inplace.begun.items() if loop is op]:
            self.later[dot] = self.b.pure(ew.Gt, index, bounds[0])
        self._body(region, args, scalars)
        self.b.loc = op.loc
        self._finish(op, self.b.effect(For, *bounds, *starts, regions=[opened], **op.attrs), args, tiles, scalars)

    def _lower_while(self, op: Op) -> None:
        test, body = op.regions
        tiles, scalars = self._split(op.operands)
        self._carry_in(op.operands, [test.args, body.args])
        starts = [self.scalars.get(op.operands[i], op.operands[i]) for i in scalars]
        first = self.b.open(self._new_args(test.args, scalars))
        self.region(Region([], test.ops[:-1]))
        self.b.close([self.scalars.get(v, v) for v in test.yields])
        second = self.b.open(self._new_args(body.args, scalars))
        self._body(body, body.args, scalars)
        self._finish(op, self.b.effect(While, *starts, regions=[first, second]), body.args, tiles, scalars)

    def _lower_if(self, op: Op) -> None:
        tiles, scalars = self._split(op.results)
        outs = [Value(r.type) for r in op.results]
        for i in tiles:
            self.stored[outs[i]] = new_buffer(self.b, op.results[i].shape, op.results[i].dtype)
        opened = []
        for region in op.regions:
            opened.append(self.b.open())
            self._body(region, outs, scalars)
        new = self.b.effect(If, self.scalars.get(op.operands[0], op.operands[0]), regions=opened)
        self._finish(op, new, outs, tiles, scalars)


def _packed(v: Value, nest_of: dict[Value, th.Nest]) -> Value:
    """What a packed operand was before packing."""
    nest = nest_of[v]
    inner = nest.regions[0].yields[nest.results.index(v)]
    assert inner.owner is not None
    return inner.owner.operands[0]


def _zero_beyond(v: Value, dim: int, nest_of: dict[Value, th.Nest]) -> tuple[Value, Value, int] | None:
    """(tensor, offset, axis) where the tile is a block of a tensor, zero beyond its edge along `dim`."""
    if v not in nest_of:
        return None
    op = _packed(v, nest_of).owner
    while op is not None:
        if op.name == "load":
            t = op.operands[0].type
            if not isinstance(t, TensorType) or op.attrs["fill"] != 0 or t.dtype.kind not in ("int", "uint", "float"):
                return None
            axis = op.attrs["axes"][dim]
            return op.operands[0], op.operands[1 + axis], axis
        if op.name == "permute":
            dim = op.attrs["order"][dim]
        elif op.name == "reshape":
            kept = [i for i in range(len(op.operands[0].shape))
                    if op.operands[0].shape[i] == op.result.shape[dim] != 1
                    and prod(op.operands[0].shape[i + 1:]) == prod(op.result.shape[dim + 1:])]
            if not kept:  # its places are not those of one dimension before
                return None
            dim = kept[0]
        elif op.name != "cast":
            return None
        op = op.operands[0].owner
    return None


