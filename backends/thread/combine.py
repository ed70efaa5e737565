"""Combinations of reductions and scans, on vectors."""
from __future__ import annotations

from collections.abc import Sequence

from tilelang.backends.thread.builder import ThreadBuilder
from tilelang.ir import elementwise as ew
from tilelang.ir.core import Op, Region, Value

COMBINE: dict[str, type[Op]] = {
    "sum": ew.Add,
    "prod": ew.Mul,
    "max": ew.Max,
    "min": ew.Min,
    "any": ew.Or,
    "all": ew.And,
}


def inline_region(b: ThreadBuilder, region: Region, args: Sequence[Value], scalars: dict[Value, Value]) -> list[Value]:
    """A user's combine on vectors: its scalar operations applied lane by lane."""
    known = dict(zip(region.args, args, strict=True))
    for op in region.ops:
        if op.name == "yield":
            return [known.get(v, scalars.get(v, v)) for v in op.operands]
        operands = [known.get(v, scalars.get(v, v)) for v in op.operands]
        known[op.result] = b.apply(type(op), operands, op.attrs)
    raise AssertionError("a combine region yields")
