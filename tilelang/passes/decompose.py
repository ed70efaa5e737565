"""decompose: rewrites operations that need no machine support of their own into simpler ones.

requires: TILE
ensures: no `sort`, `arg_reduce` or `philox`; of `dot_scaled` only what the target has an instruction for, and
    `lookup4` only where it has `byte_tables`
example: `arg_reduce {kind="max", axis=1}` becomes a max, a comparison and a min over positions
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tilelang.ir import elementwise as ew
from tilelang.ir import reduction, shape
from tilelang.ir.core import Builder, Function, Op, Region, Value, map_regions
from tilelang.ir.dtypes import DType, dtype

_I32, _I1 = dtype("i32"), dtype("i1")


def decompose(fn: Function, target: Any = None) -> Function:
    """Rewrites every occurrence, in place, and gives `fn`."""
    def step(region: Region) -> None:
        ops, region.ops = region.ops, []
        for op in ops:
            rule = _RULES.get(op.name)
            if rule is None or op.name == "dot_scaled" and scaled(op) \
                    or op.name == "lookup4" and byte_tables:
                region.ops.append(op)
                continue
            for old, new in zip(op.results, rule(_Expand(region, op)), strict=True):
                new.name = old.name
                replaced[old] = new
    replaced: dict[Value, Value] = {}
    scaled: Callable[[Op], bool] = getattr(target, "multiplies_scaled", lambda op: False)
    byte_tables = getattr(target, "byte_tables", False)
    map_regions(fn, step)
    for op in fn.walk():
        op.operands = [replaced.get(v, v) for v in op.operands]
    return fn


class _Expand(Builder):
    """A builder with the few shorthands the rules need."""

    def __init__(self, region: Region, op: Op) -> None:
        super().__init__(region, op.loc)
        self.op = op

    def full(self, value: Any, like: tuple[int, ...], dt: DType) -> Value:
        return self.broadcast(self.emit(shape.Const, value=value, dtype=dt), like)

    def broadcast(self, x: Value, to: tuple[int, ...]) -> Value:
        return self.emit(shape.Broadcast, x, shape=to)

    def along(self, x: Value, axis: int, rank: int) -> Value:
        """A rank-1 tile as a tile of `rank` that varies along `axis` only."""
        return self.emit(shape.Reshape, x, shape=tuple(x.shape[0] if i == axis else 1 for i in range(rank)))

    def positions(self, like: tuple[int, ...], axis: int) -> Value:
        return self.broadcast(self.along(self.emit(shape.Arange, start=0, size=like[axis]), axis, len(like)), like)

    def reduced(self, x: Value, kind: str, axis: int) -> Value:
        return self.emit(reduction.Reduce, x, kind=kind, axis=axis)


def _arg_reduce(b: _Expand) -> list[Value]:
    (x,), axis = b.op.operands, b.op.attrs["axis"]
    best = b.reduced(x, b.op.attrs["kind"], axis)
    kept = b.emit(shape.Reshape, best, shape=tuple(1 if i == axis else e for i, e in enumerate(x.shape)))
    hit = b.emit(ew.Eq, x, b.broadcast(kept, x.shape))
    if x.dtype.kind == "float":  # a NaN wins, and equals nothing
        hit = b.emit(ew.Or, hit, b.emit(ew.Ne, x, x))
    where = b.emit(ew.Where, hit, b.positions(x.shape, axis), b.full(x.shape[axis], x.shape, _I32))
    return [b.reduced(where, "min", axis)]


def _sort(b: _Expand) -> list[Value]:
    """Rank sort: the place of an element is how many must stand before it; O(n^2) but without branches."""
    (x,), axis, descending = b.op.operands, b.op.attrs["axis"], b.op.attrs["descending"]
    n = x.shape[axis]
    wide = (*x.shape[:axis], n, n, *x.shape[axis + 1:])  # axis: the element, axis + 1: the other

    def spread(v: Value, other: bool) -> Value:
        unit = (*x.shape[:axis], 1, n, *x.shape[axis + 1:]) if other else (*x.shape[:axis], n, 1, *x.shape[axis + 1:])
        return b.broadcast(b.emit(shape.Reshape, v, shape=unit), wide)

    def less(p: Value, q: Value) -> Value:
        out = b.emit(ew.Lt, p, q)
        if x.dtype.kind == "float":  # NaN is larger than every number
            q_nan, p_number = b.emit(ew.Ne, q, q), b.emit(ew.Eq, p, p)
            out = b.emit(ew.Or, out, b.emit(ew.And, q_nan, p_number))
        return out
    mine, other = spread(x, False), spread(x, True)
    first, second = (mine, other) if descending else (other, mine)
    before, after = less(first, second), less(second, first)
    index = b.positions(x.shape, axis)
    earlier = b.emit(ew.Lt, spread(index, True), spread(index, False))
    tie = b.emit(ew.And, b.emit(ew.Not, b.emit(ew.Or, before, after)), earlier)
    counted = b.emit(ew.Cast, b.emit(ew.Or, before, tie), dtype=_I32)
    place = b.reduced(counted, "sum", axis + 1)
    # element k of the result is the one whose place is k: along axis + 1 exactly one matches
    match = b.emit(ew.Eq, spread(place, True), spread(index, False))
    bits = dtype(f"u{8 * x.dtype.storage.itemsize}") if x.dtype.kind != "bool" else _I1
    code = x if bits is _I1 else b.emit(ew.Bitcast, x, dtype=bits) if x.dtype.bits == bits.bits else None
    results = []
    for value in (code if code is not None else b.emit(ew.Cast, x, dtype=bits), index):
        chosen = b.emit(ew.Where, match, spread(value, True), b.full(0, wide, value.dtype))
        results.append(b.reduced(chosen, "any" if value.dtype is _I1 else "max", axis + 1))
    values = results[0]
    if code is None:
        values = b.emit(ew.Cast, values, dtype=x.dtype)
    elif values.dtype is not x.dtype:
        values = b.emit(ew.Bitcast, values, dtype=x.dtype)
    return [values, results[1]]


def _philox(b: _Expand) -> list[Value]:
    seed, counter = b.op.operands
    u32, u64, like = dtype("u32"), dtype("u64"), counter.shape

    def low(v: Value) -> Value:
        return b.emit(ew.Cast, v, dtype=u32)

    def high(v: Value) -> Value:
        return low(b.emit(ew.Shr, v, b.full(32, v.shape, u64)))
    zero = b.full(0, like, u32)
    x = [counter, zero, zero, zero]
    keys = [low(seed), high(seed)]
    for _ in range(10):
        products = [b.emit(ew.Mul, b.emit(ew.Cast, v, dtype=u64), b.full(m, like, u64))
                    for v, m in ((x[0], 0xD2511F53), (x[2], 0xCD9E8D57))]
        k0, k1 = (b.broadcast(k, like) for k in keys)
        x = [b.emit(ew.Xor, b.emit(ew.Xor, high(products[1]), x[1]), k0), low(products[1]),
             b.emit(ew.Xor, b.emit(ew.Xor, high(products[0]), x[3]), k1), low(products[0])]
        keys = [b.emit(ew.Add, k, b.full(w, (), u32)) for k, w in zip(keys, (0x9E3779B9, 0xBB67AE85), strict=True)]
    return x


def _dot_scaled(b: _Expand) -> list[Value]:
    """The numbers by their scales are numbers of bf16."""
    def scaled(x: Value, scale: Value, axis: int) -> Value:
        shape_, groups = x.shape, scale.shape[axis]
        runs = (*shape_[:axis], groups, shape_[axis] // groups, *shape_[axis + 1:])
        x, scale = (b.emit(ew.Cast, v, dtype=dtype("bf16")) for v in (x, scale))
        one = b.emit(shape.Reshape, scale, shape=(*runs[:axis + 1], 1, *runs[axis + 2:]))
        product = b.emit(ew.Mul, b.emit(shape.Reshape, x, shape=runs), b.broadcast(one, runs))
        return b.emit(shape.Reshape, product, shape=shape_)
    x, y, x_scale, y_scale, *acc = b.op.operands
    left, right = scaled(x, x_scale, len(x.shape) - 1), scaled(y, y_scale, len(y.shape) - 2)
    return [b.emit(reduction.Dot, left, right, *acc, dtype=dtype("f32"))]


def _lookup4(b: _Expand) -> list[Value]:
    table, words = b.op.operands
    u32, like, out = dtype("u32"), words.shape, None
    for shift in (0, 8, 16, 24):
        at = b.emit(ew.And, b.emit(ew.Shr, words, b.full(shift, like, u32)), b.full(table.shape[0] - 1, like, u32))
        found = b.emit(ew.Cast, b.emit(shape.Lookup, table, at), dtype=u32)
        byte = b.emit(ew.Shl, b.emit(ew.And, found, b.full(255, like, u32)), b.full(shift, like, u32))
        out = byte if out is None else b.emit(ew.Or, out, byte)
    assert out is not None
    return [out if b.op.result.tile.dtype is u32 else b.emit(ew.Bitcast, out, dtype=_I32)]


_RULES: dict[str, Callable[[_Expand], list[Value]]] = {
    "arg_reduce": _arg_reduce, "sort": _sort, "philox": _philox, "dot_scaled": _dot_scaled, "lookup4": _lookup4}
