"""Combinations of reductions, scans and sorts, on vectors."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

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


def inline_region(b: ThreadBuilder, region: Region, args: Sequence[Value],
                  scalars: Mapping[Value, Value]) -> list[Value]:
    """A user's combine on vectors: its scalar operations applied lane by lane."""
    known = dict(zip(region.args, args, strict=True))
    for op in region.ops:
        if op.name == "yield":
            return [known.get(v, scalars.get(v, v)) for v in op.operands]
        operands = [known.get(v, scalars.get(v, v)) for v in op.operands]
        known[op.result] = b.apply(type(op), operands, op.attrs)
    raise AssertionError("a combine region yields")


def less(b: ThreadBuilder, x: Sequence[Value], y: Sequence[Value]) -> Value:
    """Whether one or two keys x stand before y: by the first, then by the second."""
    first = b.pure(ew.Lt, x[0], y[0])
    if len(x) == 1:
        return first
    return b.pure(ew.Or, first, b.pure(ew.And, b.pure(ew.Eq, x[0], y[0]), b.pure(ew.Lt, x[1], y[1])))


def exchanged(b: ThreadBuilder, x: Sequence[Value], y: Sequence[Value]) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
    """The smaller and the larger keys."""
    if len(x) == 1:
        return (b.pure(ew.Min, x[0], y[0]),), (b.pure(ew.Max, x[0], y[0]),)
    swap = less(b, y, x)
    return (tuple(b.pure(ew.Where, swap, q, p) for p, q in zip(x, y, strict=True)),
            tuple(b.pure(ew.Where, swap, p, q) for p, q in zip(x, y, strict=True)))
