"""fold: evaluates operations on constants and removes those that change nothing.

requires: TILE
ensures: no operation has only constant scalar operands; no identity such as x * 1; no chain of broadcasts, reshapes,
permutes, slices or widening casts
example:
    func @f(%x: tensor<in f32, M, N:1>, %y: tensor<out f32, M, N:1>, %n: i32) tile {
      %two = const {value=2, dtype=i32} : i32
      %three = const {value=3, dtype=i32} : i32
      %six = mul %two, %three : i32
      %at = sub %six, %six : i32
      %a = load %x, %at, %n {shape=(4, 8), axes=(0, 1), fill=0} : f32[4, 8]
      %t = permute %a {order=(1, 0)} : f32[8, 4]
      %u = permute %t {order=(1, 0)} : f32[4, 8]
      %one = const {value=1.0, dtype=f32} : f32
      %ones = broadcast %one {shape=(4, 8)} : f32[4, 8]
      %v = mul %u, %ones : f32[4, 8]
      store %y, %at, %six, %v {axes=(0, 1)}
    }
becomes, after dce:
    func @f(%x: tensor<in f32, M, N:1>, %y: tensor<out f32, M, N:1>, %n: i32) tile {
      %six = const {value=6, dtype=i32} : i32
      %at = const {value=0, dtype=i32} : i32
      %a = load %x, %at, %n {shape=(4, 8), axes=(0, 1), fill=0} : f32[4, 8]
      store %y, %at, %six, %a {axes=(0, 1)}
    }
Every rule holds to the bit for floats too (but for the payload of a NaN): x + 0.0 stays, because -0.0 + 0.0 is 0.0.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tilelang.ir import codec
from tilelang.ir import elementwise as ew
from tilelang.ir import shape as sh
from tilelang.ir.core import Function, Op, Region, TileType, Value
from tilelang.ir.dtypes import DType
from tilelang.passes.driver import exact

_NO_FRAME: Any = None
"""Pure operations on scalars ask nothing of the program around them."""


@exact
def fold(fn: Function, target: Any = None) -> Function:
    """Simplifies in place, in one pass in program order. What is no longer used is left to `dce`."""
    with np.errstate(all="ignore"):
        _Folder().region(fn.body)
    return fn


class _Folder:
    def __init__(self) -> None:
        self.out: list[Op] = []
        self.replaced: dict[Value, Value] = {}

    def region(self, region: Region) -> None:
        outer, self.out = self.out, []
        for op in region.ops:
            op.operands = [self.replaced.get(v, v) for v in op.operands]
            for inner in op.regions:
                self.region(inner)
            self.visit(op)
        region.ops, self.out = self.out, outer

    def visit(self, op: Op) -> None:
        values = self.simplify(op)
        # A rule knows nothing of layouts: where a pass has chosen one, the operation stays.
        if values is None or [v.type for v in values] != [r.type for r in op.results]:
            self.out.append(op)
            return
        for old, new in zip(op.results, values, strict=True):
            new.name = new.name or old.name
            self.replaced[old] = new

    def emit(self, like: Op, cls: type[Op], *operands: Value, **attrs: Any) -> Value:
        """A new operation, itself simplified, with the place of `like`."""
        op = cls(operands, attrs, loc=like.loc)
        self.visit(op)
        return self.replaced.get(op.result, op.result)

    def splat(self, like: Op, value: Any) -> Value:
        """A constant in the type of `like`'s result."""
        t = like.result.tile
        scalar = self.emit(like, sh.Const, value=value, dtype=t.dtype)
        return self.emit(like, sh.Broadcast, scalar, shape=t.shape) if t.shape else scalar

    def simplify(self, op: Op) -> list[Value] | None:
        """The values that replace the results, or None."""
        if op.name == "if" and (taken := constant(op.operands[0])) is not None:
            region = op.regions[0 if taken else 1]
            if [v.type for v in region.yields] == [r.type for r in op.results]:
                self.out += [o for o in region.ops if o.name != "yield"]
                return list(region.yields)
        if op.name == "const" and op.attrs["dtype"].is_float:
            op.attrs["value"] = float(op.attrs["value"])  # one spelling, so that `cse` sees that 0 and 0.0 are equal
        if op.effects or op.regions or not op.operands:
            return None
        if all(v.owner is not None and v.owner.name == "const" for v in op.operands):
            if (values := self.evaluate(op)) is not None:
                return values
        elif isinstance(op, ew.Elementwise | ew.Where | ew.Cast | ew.Bitcast) and op.result.shape:
            scalars = [_splatted(v) for v in op.operands]
            if all(v is not None for v in scalars):
                one = self.emit(op, type(op), *scalars, **op.attrs)  # type: ignore[arg-type]
                return [self.emit(op, sh.Broadcast, one, shape=op.result.shape)]
        rule = _RULES.get(op.name)
        value = rule(self, op) if rule is not None else None
        return None if value is None else [value]

    def evaluate(self, op: Op) -> list[Value] | None:
        """Constants for the results, where they are scalars that a constant holds to the bit."""
        if any(r.type != TileType((), r.dtype) for r in op.results):
            return None
        results = op.eval(_NO_FRAME, *(v.owner.eval(_NO_FRAME) for v in op.operands if v.owner is not None))
        values = []
        for r, stored in zip(op.results, results if isinstance(results, tuple) else (results,), strict=True):
            const = sh.Const([], {"value": number(stored, r.dtype), "dtype": r.dtype}, loc=op.loc)
            if np.asarray(const.eval(_NO_FRAME)).tobytes() != np.asarray(stored).tobytes():
                return None  # a NaN with a payload
            values.append(const)
        self.out += values
        return [c.result for c in values]


def number(stored: Any, dt: DType) -> bool | int | float:
    """The Python value of one stored element."""
    value = codec.decode(stored, dt).item()
    if isinstance(value, float) and math.isnan(value):
        return math.copysign(math.nan, value)
    return value  # type: ignore[no-any-return]


def _splatted(v: Value) -> Value | None:
    """The scalar that `v` repeats in every element, if it is known to."""
    while v.shape and v.owner is not None and v.owner.name in ("broadcast", "reshape", "permute", "slice"):
        v = v.owner.operands[0]
    return None if v.shape else v


def constant(v: Value) -> bool | int | float | None:
    """The number that every element of `v` is known to be."""
    scalar = _splatted(v)
    if scalar is None or scalar.owner is None or scalar.owner.name != "const":
        return None
    return number(scalar.owner.eval(_NO_FRAME), scalar.dtype)


def _is(v: Value, wanted: float) -> bool:
    """Whether `v` is the constant `wanted`, the sign of zero included (for integers 0 is 0)."""
    value = constant(v)
    if value is None or value != wanted:
        return False
    return v.dtype.is_integer or math.copysign(1.0, value) == math.copysign(1.0, wanted)


# -- arithmetic -------------------------------------------------------------------------------------------------------
def _ones(dt: DType) -> int:
    return -1 if dt.kind == "int" else (1 << dt.bits) - 1


def _add(f: _Folder, op: Op) -> Value | None:
    zero = 0 if op.result.dtype.is_integer else -0.0
    a, b = op.operands
    return a if _is(b, zero) else b if _is(a, zero) else None


def _sub(f: _Folder, op: Op) -> Value | None:
    a, b = op.operands
    if a is b and a.dtype.is_integer:
        return f.splat(op, 0)
    return a if _is(b, 0) else None


def _mul(f: _Folder, op: Op) -> Value | None:
    for a, b in (op.operands, op.operands[::-1]):
        if _is(b, 1):
            return a
        if a.dtype.is_integer and _is(b, 0):  # not for floats: inf * 0, and the sign of -1 * 0
            return b
    return None


def _div(f: _Folder, op: Op) -> Value | None:
    return op.operands[0] if _is(op.operands[1], 1) else None


def _floordiv(f: _Folder, op: Op) -> Value | None:
    return _div(f, op) if op.result.dtype.is_integer else None


def _mod(f: _Folder, op: Op) -> Value | None:
    return f.splat(op, 0) if op.result.dtype.is_integer and _is(op.operands[1], 1) else None


def _same(f: _Folder, op: Op) -> Value | None:
    return op.operands[0] if op.operands[0] is op.operands[1] else None


def _bits(f: _Folder, op: Op) -> Value | None:
    """and, or: one constant leaves the other operand, the other constant wins."""
    keeps, wins = (_ones(op.result.dtype), 0) if op.name == "and" else (0, _ones(op.result.dtype))
    for a, b in (op.operands, op.operands[::-1]):
        if _is(b, keeps) or _is(b, wins):
            return a if _is(b, keeps) else b
    return _same(f, op)


def _xor(f: _Folder, op: Op) -> Value | None:
    a, b = op.operands
    return f.splat(op, 0) if a is b else a if _is(b, 0) else b if _is(a, 0) else None


def _shift(f: _Folder, op: Op) -> Value | None:
    return op.operands[0] if _is(op.operands[1], 0) else None


def _involution(f: _Folder, op: Op) -> Value | None:
    inner = op.operands[0].owner
    return inner.operands[0] if inner is not None and inner.name == op.name else None


def _compare(f: _Folder, op: Op) -> Value | None:
    a, b = op.operands
    return f.splat(op, op.name in ("eq", "le", "ge")) if a is b and a.dtype.is_integer else None


def _where(f: _Folder, op: Op) -> Value | None:
    cond, a, b = op.operands
    known = constant(cond)
    return a if a is b or known is not None and known else b if known is not None else None


# -- conversion and shape ---------------------------------------------------------------------------------------------
def _holds(wide: DType, narrow: DType) -> bool:
    """Whether `wide` has every value of `narrow`, in the same family, so that a cast through it changes nothing."""
    if wide.kind in ("int", "uint") and narrow.kind in ("int", "uint", "bool"):
        return wide.min <= narrow.min and narrow.max <= wide.max  # type: ignore[no-any-return]
    return wide.kind == narrow.kind == "float" and wide.nonfinite == "ieee" and narrow.max <= wide.max \
        and narrow.mantissa_bits <= wide.mantissa_bits and narrow.smallest_subnormal >= wide.smallest_subnormal


def _cast(f: _Folder, op: Op) -> Value | None:
    (x,), dt = op.operands, op.attrs["dtype"]
    if x.dtype is dt:
        return x
    inner = x.owner
    if inner is not None and inner.name == "cast":
        source = inner.operands[0].dtype
        if _holds(x.dtype, source) and (dt.kind in ("int", "uint") if source.is_integer else dt.kind == "float"):
            return f.emit(op, ew.Cast, inner.operands[0], dtype=dt)
    return None


def _bitcast(f: _Folder, op: Op) -> Value | None:
    (x,), dt = op.operands, op.attrs["dtype"]
    if x.dtype is dt:
        return x
    inner = x.owner
    return f.emit(op, ew.Bitcast, inner.operands[0], dtype=dt) if inner is not None and inner.name == "bitcast" \
        else None


def _rearrange(f: _Folder, op: Op) -> Value | None:
    """broadcast, reshape, permute, slice: nothing to do, of a splat, or two of a kind."""
    (x,), shape = op.operands, op.result.shape
    inner = x.owner
    if op.name == "permute":
        if op.attrs["order"] == tuple(range(x.tile.rank)):
            return x
    elif shape == x.shape and all(step > 0 for step in op.attrs.get("steps", ())):
        return x  # a slice of every element in order
    scalar = _splatted(x)
    if scalar is not None and x.shape:
        return f.emit(op, sh.Broadcast, scalar, shape=shape) if shape else scalar
    if inner is None or inner.name != op.name:
        return None
    source = inner.operands[0]
    match op.name:
        case "broadcast" | "reshape":
            return f.emit(op, type(op), source, shape=shape)
        case "permute":
            return f.emit(op, type(op), source, order=tuple(inner.attrs["order"][i] for i in op.attrs["order"]))
    pairs = list(zip(inner.attrs["starts"], inner.attrs["steps"], op.attrs["starts"], op.attrs["steps"], strict=True))
    return f.emit(op, sh.Slice, source, starts=tuple(a + s * b for a, s, b, _ in pairs), shape=shape,
                  steps=tuple(s * t for _, s, _, t in pairs))


def _concat(f: _Folder, op: Op) -> Value | None:
    return op.operands[0] if len(op.operands) == 1 else None


_RULES: dict[str, Callable[[_Folder, Op], Value | None]] = {
    "add": _add, "sub": _sub, "mul": _mul, "div": _div, "floordiv": _floordiv, "mod": _mod, "min": _same, "max": _same,
    "and": _bits, "or": _bits, "xor": _xor, "shl": _shift, "shr": _shift, "neg": _involution, "not": _involution,
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge"), _compare), "where": _where, "cast": _cast,
    "bitcast": _bitcast, **dict.fromkeys(("broadcast", "reshape", "permute", "slice"), _rearrange), "concat": _concat,
}
