"""separate: gives every use of a tile that costs nothing to make a copy of its own.

requires: TILE
ensures: an `arange`, a `broadcast` of a scalar, and what rearranges one of them, has one use: layouts that two uses
want do not bind each other
example: of `%0 = arange`, `%1 = reshape %0 {shape=(1, 64)}`, `%2 = reshape %0 {shape=(64, 1)}` the second `reshape`
gets an `arange` of its own
"""
from __future__ import annotations

from typing import Any

from tilelang.ir.core import Function, Op, Region, Value, map_regions
from tilelang.passes.driver import exact

REARRANGES = ("broadcast", "reshape", "permute")


@exact
def separate(fn: Function, target: Any = None) -> Function:
    """Copies in place, the last operations first: a copy is one more use of what it is made of."""
    uses: dict[Value, list[tuple[Op, int]]] = {}
    for op in fn.walk():
        for i, v in enumerate(op.operands):
            uses.setdefault(v, []).append((op, i))

    def step(region: Region) -> None:
        ops = []
        for op in reversed(region.ops):
            if _free(op):
                for user, i in uses.get(op.result, [])[1:]:
                    copy = op.clone({})
                    user.operands[i] = copy.result
                    for at, v in enumerate(copy.operands):
                        uses[v].append((copy, at))
                    ops.append(copy)
            ops.append(op)
        region.ops = ops[::-1]
    map_regions(fn, step)
    return fn


def _free(op: Op) -> bool:
    """Whether every thread can make its part of a result by itself, in any layout."""
    if op.name == "arange":
        return True
    source = op.operands[0] if op.name in REARRANGES else None
    return source is not None and (not source.shape or (source.owner is not None and _free(source.owner)))
