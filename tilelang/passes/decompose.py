"""decompose: rewrites operations that a target has no form of its own for into simpler ones.

requires: TILE
ensures: only operations that `expand` to nothing simpler, or that the target `performs`
example: `arg_reduce {kind="max", axis=1}` becomes a max, a comparison and a min over positions
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tilelang.ir.core import Function, Op, Region, Value, map_regions
from tilelang.ir.expansion import Expansion


def decompose(fn: Function, target: Any = None) -> Function:
    """Rewrites every occurrence, in place, and gives `fn`."""
    def step(region: Region) -> None:
        ops, region.ops = region.ops, []
        for op in ops:
            put(op, region)

    def put(op: Op, region: Region) -> None:
        simpler = Region()
        results = None if performs(op) else op.expand(Expansion(simpler, op.loc, used))
        if results is None:
            region.ops.append(op)
            return
        for inner in simpler.ops:
            put(inner, region)
        for old, new in zip(op.results, results, strict=True):
            if new is not None:
                new.name = old.name
                replaced[old] = new

    def now(v: Value) -> Value:
        while v in replaced:
            v = replaced[v]
        return v
    replaced: dict[Value, Value] = {}
    used = {v for op in fn.walk() for v in op.operands}
    performs: Callable[[Op], bool] = getattr(target, "performs", lambda op: False)
    map_regions(fn, step)
    for op in fn.walk():
        op.operands = [now(v) for v in op.operands]
    return fn
