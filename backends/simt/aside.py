"""set_aside: keeps in shared memory what a loop with products has no registers for.

requires: PLACED, with pipelined loops
ensures: where the tiles alive in an innermost loop with products take more registers than a thread has, some that the
loop does not use are written to shared memory where they are made, and read back where they are used: by each thread
what it wrote itself, so without a barrier, and without bank conflicts; what an outer loop carries is carried there
example: of the solver's loop in Local Linear Attention, the solution and the residual, which change between its sums
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from tilelang.backends.simt.shared_memory import size_of
from tilelang.backends.simt.target import SimtTarget
from tilelang.ir import elementwise as ew
from tilelang.ir import memory as mem
from tilelang.ir import shape as sh
from tilelang.ir.core import Function, Op, Region, TileType, Value
from tilelang.ir.dtypes import dtype
from tilelang.layouts import RegisterLayout, SharedLayout
from tilelang.passes.driver import exact

OTHERS = 100
"""Registers for addresses, indices, sums of rows, and fragments of operands."""
LEAST = 16
"""A tile of fewer registers is not worth it."""
LOOPS = ("for", "while")
MADE_AGAIN = ("arange", "broadcast", "const", "reshape", "permute")


@exact
def set_aside(fn: Function, target: SimtTarget) -> Function:
    """Rewrites the function, in place."""
    if not target.registers:
        return fn
    room = target.shared_bytes - sum(size_of(op) for op in fn.walk() if op.name == "alloc")
    for path in list(_innermost(fn.body, ())):
        loop = path[-1][1]
        across, inside = _across(path), _used([loop])
        missing = sum(map(_registers, across)) + _peak(loop.regions[0]) + OTHERS - target.registers
        around = Counter(v for _, op in path[:-1] for o in Region([], [op]).walk() for v in o.operands)
        made = (v for op in fn.walk() for v in (*(a for r in op.regions for a in r.args), *op.results))
        unused = [v for v in made if v in across - inside and _registers(v) >= LEAST]
        for v in sorted(unused, key=lambda v: (around[v], -_registers(v))):  # first what is read back least often
            place = _own_place(v.tile)
            size = 0 if place is None else place.size * v.dtype.storage.itemsize
            if missing > 0 and place is not None and size <= room:
                _Aside(fn, v, place).run()
                room, missing = room - size, missing - _registers(v)
    return fn


# -- what is alive ----------------------------------------------------------------------------------------------------
Path = tuple[tuple[Region, Op], ...]
"""An operation after those that it stands in, the outermost first, each with its region."""


def _innermost(region: Region, around: Path) -> Iterator[Path]:
    """The loops with products that no other is in."""
    for op in region.ops:
        here = (*around, (region, op))
        inner = [path for r in op.regions for path in _innermost(r, here)]
        yield from inner
        if op.name == "for" and not inner and any(o.name == "dot" for o in op.regions[0].walk()):
            yield here


def _used(ops: Sequence[Op]) -> set[Value]:
    return {v for op in Region([], ops).walk() for v in op.operands if isinstance(v.type, TileType)}


def _made(ops: Sequence[Op]) -> set[Value]:
    return {v for op in Region([], ops).walk() for v in (*(a for r in op.regions for a in r.args), *op.results)}


def _across(path: Path) -> set[Value]:
    """The tiles made outside of a loop that are alive in all of it."""
    loop = path[-1][1]
    alive = _used(loop.regions[0].ops) - _made([loop])
    for region, op in reversed(path):
        after = region.ops[region.ops.index(op) + 1:]
        alive |= _used(after) - _made(after) - _made([op])
        around = next((o for r, o in path if any(inner is region for inner in o.regions)), None)
        if around is not None and around.name in LOOPS:
            alive |= _used([around]) - set(around.operands) - _made([around])
    return alive


def _peak(body: Region) -> int:
    """Registers of what the body makes, and of what the loop carries, where they are most."""
    mine = {*body.args, *(v for op in body.ops for v in op.results)}
    alive: set[Value] = set()
    most = 0
    for op in reversed(body.ops):
        alive = (alive - set(op.results)) | (_used([op]) & mine)
        most = max(most, sum(map(_registers, alive)))
    return most


def _registers(v: Value) -> int:
    """32-bit registers of a thread; none of what costs nothing to make again."""
    t = v.type
    if not isinstance(t, TileType) or not isinstance(t.layout, RegisterLayout) or _again(v):
        return 0
    return t.layout.local_size * (1 if t.dtype.kind == "bool" else 8 * t.dtype.storage.itemsize) // 32


def _again(v: Value) -> bool:
    op = v.owner
    return op is not None and (op.name in MADE_AGAIN
                               or isinstance(op, ew.Elementwise) and all(map(_again, op.operands)))


# -- moving a tile ----------------------------------------------------------------------------------------------------
def _own_place(t: TileType) -> SharedLayout | None:
    """A buffer where each thread has a place for what it holds, neighbours of a register side by side; None where
    threads hold copies."""
    layout = t.layout
    assert isinstance(layout, RegisterLayout)
    layout = layout.canonical
    if layout.replication > 1 or layout.shape != t.shape:
        return None
    run = next(n for n in (4, 2, 1) if max(map(layout.contiguous, range(layout.rank))) % n == 0
               and layout.local_size % n == 0 and n * t.dtype.storage.itemsize <= 16)
    strides: dict[int, list[tuple[int, int]]] = {}
    step = run
    for m in reversed(layout.spatial):
        strides[m] = [(layout.extents[m], step)]
        step *= layout.extents[m]
    at = 1
    for m in reversed(layout.local):
        extent = layout.extents[m]
        low = min(extent, max(run // at, 1))
        strides[m] = [(extent // low, max(at * low // run, 1) * step), (low, at)] if at < run else \
            [(extent, at // run * step)]
        at *= extent
    mode, dims = 0, []
    for dim in layout.modes:
        digits = [d for m in range(mode, mode + len(dim)) for d in strides[m] if d[0] > 1]
        dims.append(tuple(digits) or ((1, 1),))
        mode += len(dim)
    return SharedLayout(tuple(dims))


class _Aside:
    """Everything that is done with one tile. Where an outer loop carries it, that carries the memory, if what is to be
    there next is made after the last use of what was."""

    def __init__(self, fn: Function, v: Value, place: SharedLayout) -> None:
        self.fn, self.v, self.names = fn, v, {v}
        self.uses = Counter(x for op in fn.walk() for x in op.operands)
        attrs = {"dtype": v.dtype, "shape": v.shape, "layout": place, "managed": True}
        self.alloc = mem.Alloc([], attrs, loc=v.owner.loc if v.owner else None)
        self.alloc.result.name = f"{v.name or 'tile'}_aside"

    def run(self) -> None:
        for around in [self.fn.body, *(r for op in self.fn.walk() for r in op.regions)]:
            for op in around.ops:
                if op.name in LOOPS and self.v in op.regions[-1].args:
                    self.carry(op, around)
        self.fn.body.ops.insert(0, self.alloc)
        self.visit(self.fn.body, None)

    def carry(self, loop: Op, around: Region) -> None:
        body, v = loop.regions[-1], self.v
        k = body.args.index(v) - len(body.args)
        later = body.yields[k]
        if later.owner not in body.ops or later.type != v.type or any(
                v in _used([op]) for op in body.ops[body.ops.index(later.owner) + 1:]) or any(
                r.args[k] in _used(r.ops) for r in loop.regions[:-1]):
            return
        at = around.ops.index(loop)
        around.ops[at:at] = self.access(loop, mem.Store, loop.operands.pop(k))
        self.names.add(loop.results.pop(k))
        body.yields.pop(k)
        for r in loop.regions:
            r.args.pop(k)
        self.v = later

    def access(self, like: Op | None, cls: type[Op], *tile: Value, **attrs: object) -> list[Op]:
        loc = like.loc if like is not None else None
        zero = sh.Const([], {"value": 0, "dtype": dtype("i32")}, loc=loc)
        axes = tuple(range(len(self.v.shape)))
        return [zero, cls([self.alloc.result, *[zero.result] * len(axes), *tile], {"axes": axes, **attrs}, loc=loc)]

    def visit(self, region: Region, held: Value | None) -> None:
        """Rewrites a region that begins with the tile in registers as `held`, or not."""
        ops, region.ops = region.ops, []
        if self.v in region.args:
            held = self.v
            region.ops += self.access(None, mem.Store, held)
        for op in ops:
            if held is None and self.names & set(op.operands):
                at = self.before(region.ops, op)
                region.ops[at:at] = self.access(op, mem.Load, shape=self.v.shape)
                held = region.ops[at + 1].result
                held.type = self.v.type
            op.operands = [held if x in self.names and held is not None else x for x in op.operands]
            for inner in op.regions:
                if op.name not in ("reduce", "scan"):
                    self.visit(inner, None if op.name in LOOPS else held)
            held = None if op.name in LOOPS else held
            region.ops.append(op)
            if self.v in op.results:
                held = self.v
                region.ops += self.access(op, mem.Store, held)

    def before(self, ops: Sequence[Op], user: Op) -> int:
        """Where before its user: also before what that alone combines it with, of which then no whole tile waits."""
        at = len(ops)
        while at and isinstance(ops[at - 1], ew.Elementwise) and ops[at - 1].result in user.operands and \
                self.uses[ops[at - 1].result] == 1:
            at -= 1
        return at
