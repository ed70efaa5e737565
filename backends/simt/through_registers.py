"""through_registers: copies into shared memory by way of registers, where no unit of the target copies them.

requires: PLACED after `pipeline`
ensures: no `copy_async` into managed shared memory that the target does not do by itself: what it would copy is
loaded there, and stored as late as the meaning of a copy allows, right before the next `wait` in its region or at the
region's end. What lies between hides the latency of the load
example: `copy_async %a, %k, %s; … dot …; yield` becomes `%t = load %a, %k; … dot …; store %s, %t; yield`
"""
from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import prod

from tilelang.backends.simt.dma import copies_in_order
from tilelang.backends.simt.facts import Facts
from tilelang.backends.simt.registers import thread_count
from tilelang.backends.simt.target import SimtTarget
from tilelang.backends.simt.window import windowed
from tilelang.ir import memory as mem
from tilelang.ir import shape as sh
from tilelang.ir.core import BufferType, Function, Op, Region, TileType
from tilelang.ir.dtypes import dtype
from tilelang.ir.thread import ConvertLayout
from tilelang.layouts import RegisterLayout, SharedLayout, blocked, column_local, local, spatial


def power_of_two(x: int) -> int:
    """The largest that divides x."""
    return x & -x


@lru_cache(maxsize=1024)
def turned_layouts(shape: tuple[int, ...], size: int, threads: int) -> tuple[RegisterLayout, RegisterLayout] | None:
    """(as loaded, as stored) of a row-major block whose threads hold neighbours along both dimensions, so that what
    was loaded along the last one is stored along the first; None where a thread has too little for that."""
    rows, columns = shape
    vector = min(16 // size, power_of_two(columns))
    high = min(vector, power_of_two(rows), prod(shape) // (threads * vector))
    if size > 4 or vector < 2 or high < 2 or high & (high - 1):
        return None
    near = min(8, power_of_two(columns // vector), threads)
    down = min(power_of_two(rows // high), threads // near)
    far = threads // (near * down)
    if columns % (far * near * vector):
        return None
    repeats = local(rows // (down * high), columns // (far * near * vector))
    outer = repeats * spatial(1, far) * spatial(down, 1) * spatial(1, near)
    return outer * local(high, vector), outer * column_local(high, vector)


def block_layouts(shape: tuple[int, ...], size: int, threads: int,
                  place: SharedLayout) -> tuple[RegisterLayout, RegisterLayout]:
    """(as loaded, as stored) of a block on its way to `place`; each thread holds the same elements in both."""
    turned = turned_layouts(shape, size, threads) if place.dims[-1] and place.dims[-1][-1][1] != 1 else None
    plain = blocked(shape, threads, tuple(reversed(range(len(shape)))), 16 // size)
    return turned or (plain, plain)


def split(copy: Op, threads: int) -> tuple[list[Op], list[Op]]:
    """The operations that load what `copy` copies, and those that store it."""
    at = copy.buffer  # type: ignore[attr-defined]
    tensor, offsets, buffer, index = copy.operands[0], copy.operands[1:at], copy.operands[at], copy.operands[at + 1:]
    assert isinstance(buffer.type, BufferType) and buffer.type.layout is not None
    shape = buffer.type.shape[len(index):]
    place = SharedLayout(buffer.type.layout.dims[len(index):], buffer.type.layout.swizzle)
    loaded, stored = block_layouts(shape, buffer.dtype.storage.itemsize, threads, place)
    load = mem.Load([tensor, *offsets], {"shape": shape, "axes": copy.attrs["axes"]}, loc=copy.loc)
    load.result.type = TileType(shape, buffer.dtype, loaded)
    after: list[Op] = []
    value = load.result
    if stored != loaded:
        after.append(ConvertLayout([value], {"layout": stored}, loc=copy.loc))
        value = after[-1].result
    zero = sh.Const([], {"value": 0, "dtype": dtype("i32")}, loc=copy.loc)
    axes = tuple(range(len(index), len(index) + len(shape)))
    after += [zero, mem.Store([buffer, *index, *[zero.result] * len(shape), value], {"axes": axes}, loc=copy.loc)]
    return [load], after


def through_registers(fn: Function, target: SimtTarget) -> Function:
    """Rewrites every such copy, in place."""
    if target.async_copy and not target.dma:
        return fn
    managed = {op.result for op in fn.walk() if op.name == "alloc" and op.attrs["managed"]}
    threads, windows = thread_count(fn, target), windowed(fn) if target.windows else set()
    facts = Facts({op.regions[0].args[0]: (op.operands[0], op.operands[2]) for op in fn.walk() if op.name == "for"})

    def goes(copy: Op) -> bool:
        """Whether a copy goes through registers."""
        buffer = copy.operands[copy.buffer]  # type: ignore[attr-defined]
        return buffer in managed and not (
            target.async_copy and copies_in_order(copy, facts, target.dma, threads, windows))
    _rewrite(fn.body, goes, threads)
    return fn


def _waits(op: Op) -> bool:
    return op.name == "wait" or any(_waits(o) for r in op.regions for o in r.ops)


def _rewrite(region: Region, goes: Callable[[Op], bool], threads: int) -> None:
    out: list[Op] = []
    pending: list[Op] = []
    for op in region.ops:
        if op.name == "copy_async" and goes(op):
            before, after = split(op, threads)
            out += before
            pending += after
            continue
        if pending and (op.name == "yield" or _waits(op)):
            out += pending
            pending = []
        for inner in op.regions:
            _rewrite(inner, goes, threads)
        out.append(op)
    region.ops = out + pending
