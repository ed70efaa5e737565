"""overlap: a kernel that begins before the one before it has ended waits for it as late as it can.

requires: THREAD
ensures: each `wait_previous` stands before the first operation behind its place that accesses a tensor; where the
target cannot overlap kernels there is none, and no `start_next`
example: the indices of a program, and the barriers of its rings, are made before `wait_previous`
"""
from __future__ import annotations

from tilelang.backends.simt.target import SimtTarget
from tilelang.ir.core import Function, Op, Region, TensorType, map_regions


def overlap(fn: Function, target: SimtTarget) -> Function:
    """Moves them, in place."""
    if not target.overlap:
        map_regions(fn, _drop)
        return fn
    waits = [op for op in fn.body.ops if op.name == "wait_previous"]
    for wait in waits:
        ops = fn.body.ops
        at = ops.index(wait)
        end = next((i for i in range(at + 1, len(ops)) if _accesses(ops[i])), len(ops))
        fn.body.ops = [*ops[:at], *ops[at + 1:end], wait, *ops[end:]]
    return fn


def _drop(region: Region) -> None:
    region.ops = [op for op in region.ops if op.name not in ("wait_previous", "start_next")]


def _accesses(op: Op) -> bool:
    """Whether it, or an operation in it, reads or writes a tensor."""
    return op.effects in ("read", "write") and any(isinstance(v.type, TensorType) for v in op.operands) or \
        any(_accesses(inner) for region in op.regions for inner in region.ops)
