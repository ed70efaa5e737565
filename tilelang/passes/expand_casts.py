"""expand_casts: number types that a machine lacks, in terms of those that every machine has.

requires: THREAD
ensures: arithmetic, comparisons, functions and reductions only on i1, integers, f32 and f64; a `cast` only
- between i1 and integers of any width (wraps), and from them to f32 and f64 (rounds once),
- from f32 and f64 to i32, u32, i64 and u64 (truncates, saturates, NaN gives 0), and between f32 and f64,
- between the pairs (source, result) of names in `target.native_casts`, which round once as `codec` does;
atomic updates of f16 and bf16 are loops of compare and swap, but where the target has them (`half_atomics`)
example:
    func @f(%x: tensor<in bf16, 4:1>, %y: tensor<out i1, 4:1>) thread {
      %at = const {value=0, dtype=i64} : i64
      %a = ld %x, %at {lanes=4} : bf16[4]
      %b = ld %x, %at {lanes=4} : bf16[4]
      %c = lt %a, %b : i1[4]
      st %y, %at, %c {stream=False}
    }
becomes:
    func @f(%x: tensor<in bf16, 4:1>, %y: tensor<out i1, 4:1>) thread {
      %at = const {value=0, dtype=i64} : i64
      %a = ld %x, %at {lanes=4, phase=0} : bf16[4]
      %b = ld %x, %at {lanes=4, phase=0} : bf16[4]
      %0 = bitcast %a {dtype=u16} : u16[4]
      %1 = cast %0 {dtype=u32} : u32[4]
      %2 = const {value=16, dtype=u32} : u32
      %3 = broadcast %2 {shape=(4,)} : u32[4]
      %4 = shl %1, %3 : u32[4]
      %5 = bitcast %4 {dtype=f32} : f32[4]
      %6 = bitcast %b {dtype=u16} : u16[4]
      %7 = cast %6 {dtype=u32} : u32[4]
      %8 = shl %7, %3 : u32[4]
      %9 = bitcast %8 {dtype=f32} : f32[4]
      %c = lt %5, %9 : i1[4]
      st %y, %at, %c {stream=False, phase=0}
    }
Bits are read and written by `bitcast`; the rest is arithmetic on u32, u64, f32 and f64, one operation a step for a
whole vector. The values are those of `tilelang.ir.codec`. No step computes with subnormal f32 numbers where source and
result are none: that is slow on some machines, and others flush them.
"""
from __future__ import annotations

from collections import ChainMap
from collections.abc import MutableMapping
from typing import Any

import numpy as np

from tilelang.errors import Loc
from tilelang.ir import codec
from tilelang.ir import elementwise as ew
from tilelang.ir import shape as sh
from tilelang.ir.control import While, Yield
from tilelang.ir.core import Function, Op, Region, Value
from tilelang.ir.dtypes import DType, dtype
from tilelang.ir.reduction import Reduce
from tilelang.ir.thread import AtomicRmw, TableEntry
from tilelang.passes.driver import exact

_I1, _I32, _U32, _U64, _F32, _F64 = map(dtype, ("i1", "i32", "u32", "u64", "f32", "f64"))
_UPDATES: dict[str, type[Op]] = {"add": ew.Add, "max": ew.Max, "min": ew.Min}
_WHOLE, _WIDE = ("bool", "int", "uint"), (_F32, _F64)
_INFINITY, _NAN = 0x7F800000, 0x7FC00000  # as bits of an f32


@exact
def expand_casts(fn: Function, target: Any = None) -> Function:
    """Rewrites in place. What a region computes is shared with the regions in it. Types of few values are looked up
    in vectors where the target says that a table of `register_table` f32 fits into registers; other small floats are
    read by way of f16 where it says that this takes the fewest instructions (`by_half`)."""
    _Expander(getattr(target, "native_casts", frozenset()), getattr(target, "register_table", 0),
              getattr(target, "by_half", False), getattr(target, "half_atomics", False)).region(fn.body)
    return fn


class _Expander:
    """The steps of a rule are methods on values; a number among the operands stands for a vector of it."""

    def __init__(self, native: frozenset[tuple[str, str]], table: int, by_half: bool, half_atomics: bool) -> None:
        self.native, self.table, self.by_half, self.half_atomics = native, table, by_half, half_atomics
        self.loc: Loc | None = None
        self.ops: list[Op] = []
        self.known: MutableMapping[Any, Value] = {}
        self.replaced: dict[Value, Value] = {}

    def region(self, region: Region) -> None:
        outer = self.ops, self.known
        self.ops, self.known = [], ChainMap({}, self.known)
        for op in region.ops:
            op.operands = [self.replaced.get(v, v) for v in op.operands]
            for inner in op.regions:
                self.region(inner)
            self.loc = op.loc
            new = self.expanded(op)
            if new is None:
                self.ops.append(op)
            else:
                new.name = new.name or op.result.name
                self.replaced[op.result] = new
        region.ops = self.ops
        self.ops, self.known = outer

    def expanded(self, op: Op) -> Value | None:
        """The value of the only result, or None where the operation stays."""
        if isinstance(op, ew.Cast):
            return self.cast(op.operands[0], op.attrs["dtype"])
        if isinstance(op, ew.Elementwise | Reduce) and not op.regions and op.operands[0].dtype.name in ("f16", "bf16"):
            out = self.op(type(op), *(self.cast(v, _F32) for v in op.operands), **op.attrs)
            return self.cast(out, op.result.dtype)
        if isinstance(op, AtomicRmw) and op.result.dtype.name in ("f16", "bf16") and op.attrs["kind"] in _UPDATES \
                and not self.half_atomics:
            return self.swapped(op)
        return None

    def swapped(self, op: Op) -> Value:
        """An atomic update by compare and swap, from the guess on that 0 is there, until nobody came in between. No
        load begins it: it would be no atomic operation."""
        memory, offset, value, *mask = op.operands
        dt, going = value.dtype, mask[0] if mask else self.emit(sh.Const, value=True, dtype=_I1)
        seen, again = Value(value.type, "seen"), Value(going.type)
        test = Region([Value(value.type), again], [Yield([again], loc=self.loc)])
        start = [self.full(0, dt, ()), going]
        outer = self.ops, self.known
        self.ops, self.known = [], ChainMap({}, self.known)
        new = self.cast(self.op(_UPDATES[op.attrs["kind"]], *(self.cast(v, _F32) for v in (seen, value))), dt)
        swap = AtomicRmw([memory, offset, seen, new], {"kind": "cas", "phase": op.attrs["phase"]}, loc=self.loc)
        self.ops.append(swap)
        changed = self.op(ew.Ne, self.bits(swap.result), self.bits(seen))
        body = Region([seen, Value(going.type)], [*self.ops, Yield([swap.result, changed], loc=self.loc)])
        self.ops, self.known = outer
        self.ops.append(While(start, {}, [test, body], loc=self.loc))
        return self.ops[-1].results[0]

    # -- steps --------------------------------------------------------------------------------------------------------
    def op(self, cls: type[Op], *operands: Value | float, **attrs: Any) -> Value:
        """An operation; numbers among the operands become constants like the last value."""
        like = next(v for v in reversed(operands) if isinstance(v, Value))
        values = (v if isinstance(v, Value) else self.full(v, like.dtype, like.shape) for v in operands)
        return self.emit(cls, *values, **attrs)

    def full(self, value: float, dt: DType, shape: tuple[int, ...]) -> Value:
        if dt.kind == "uint":
            value = int(value) % (1 << dt.bits)
        one = self.emit(sh.Const, value=value, dtype=dt)
        return self.emit(sh.Broadcast, one, shape=shape) if shape else one

    def emit(self, cls: type[Op], *operands: Value, **attrs: Any) -> Value:
        key = cls, operands, repr(attrs)  # as text: 0.0 and -0.0 are equal in Python
        found = self.known.get(key)
        if found is None:
            op = cls(operands, attrs, loc=self.loc)
            self.ops.append(op)
            found = self.known[key] = op.result
        return found

    def where(self, condition: Value, x: Value | float, y: Value | float) -> Value:
        return self.op(ew.Where, condition, x, y)

    def left(self, x: Value, by: int) -> Value:
        return self.op(ew.Shl, x, by) if by else x

    def bits(self, x: Value) -> Value:
        """The bits of a value of at most 32 bits, as u32."""
        return self.cast(self.op(ew.Bitcast, x, dtype=dtype(f"u{x.dtype.bits}")), _U32)

    def from_bits(self, bits: Value, dt: DType) -> Value:
        """The inverse, of an integer whose low bits these are."""
        return self.op(ew.Bitcast, self.cast(bits, dtype(f"u{dt.bits}")), dtype=dt)

    # -- every pair ---------------------------------------------------------------------------------------------------
    def stays(self, src: DType, dst: DType) -> bool:
        if src.kind in _WHOLE:
            return dst.kind in _WHOLE or dst in _WIDE
        if src in _WIDE and (dst in _WIDE or dst.kind in ("int", "uint") and dst.bits in (32, 64)):
            return True
        return (src.name, dst.name) in self.native

    def cast(self, x: Value, dst: DType) -> Value:
        """`codec.cast`: by way of a type that holds every value of the source and is closer to the result."""
        src = x.dtype
        if src is dst:
            return x
        if self.stays(src, dst):
            return self.op(ew.Cast, x, dtype=dst)
        if src.kind in _WHOLE:
            near = self.odd_f64(x) if src.bits > 53 else self.op(ew.Cast, x, dtype=_F64 if src.bits > 24 else _F32)
            return self.cast(near, dst)
        if src not in _WIDE:
            return self.cast(self.decoded(x), dst)
        if dst.kind == "bool":
            return self.op(ew.Ne, x, 0.0)
        if dst.kind in ("int", "uint"):
            return self.saturated(x, dst)
        if dst.kind == "codebook":
            return self.nearest(x, dst)
        if dst.kind in ("bipolar", "ternary"):
            return self.rounded(x, dst)
        if src is _F64:
            return self.cast(self.odd_f32(x), dst)
        return self.from_bits(self.power_of_two(x) if dst.kind == "scale" else self.small_float(x, dst), dst)

    # -- exact values -------------------------------------------------------------------------------------------------
    def decoded(self, x: Value) -> Value:
        """Bipolar and ternary as i32, the others as f32."""
        dt, code = x.dtype, self.bits(x)
        if dt.kind in ("bipolar", "ternary"):
            number = self.cast(code, _I32)
            if dt.kind == "bipolar":
                return self.op(ew.Sub, self.op(ew.Shl, number, 1), (1 << dt.bits) - 1)
            return self.where(self.op(ew.Eq, number, 3), 0, self.op(ew.Sub, number, 1))
        if dt.kind in ("codebook", "float") and dt.bits <= 6 and 1 << dt.bits <= self.table and x.shape:
            return self.emit(TableEntry, code, values=tuple(float(v) for v in codec.values_of(dt)))
        if dt.kind == "codebook":
            return self.entry(code, dt)
        if dt.kind == "scale":
            value = self.where(self.op(ew.Eq, code, 0), 0x400000, self.op(ew.Shl, code, 23))
            value = self.where(self.op(ew.Eq, code, 255), _NAN, value)
        elif _like_f32(dt):
            value = self.left(code, 32 - dt.bits)
        elif self.by_half and _fits_half(dt):
            return self.from_half(x)
        else:
            value = self.magnitude(code, dt)
            value = self.op(ew.Or, value, self.op(ew.Shl, self.op(ew.Shr, code, dt.bits - 1), 31))
            if dt.nonfinite == "fnuz":
                value = self.where(self.op(ew.Eq, code, 1 << dt.bits - 1), _NAN, value)
        return self.from_bits(value, _F32)

    def from_half(self, x: Value) -> Value:
        """A small float as f32: sign, exponent and mantissa moved to where f16 has them, which has another bias."""
        dt, m = x.dtype, x.dtype.mantissa_bits
        top = (1 << dt.bits - 1) - 1
        wide = self.cast(self.op(ew.Bitcast, x, dtype=dtype(f"i{dt.bits}")), dtype("i16"))  # repeats the sign
        fields = self.op(ew.And, self.op(ew.Shl, wide, 10 - m), (top << 10 - m) - (1 << 15))
        value = self.op(ew.Cast, self.op(ew.Bitcast, fields, dtype=dtype("f16")), dtype=_F32)
        if dt.bias != 15:
            value = self.op(ew.Mul, value, 2.0 ** (15 - dt.bias))
        code = {"fn": top, "fnuz": top + 1}.get(dt.nonfinite)
        if code is None:
            return value
        size = self.op(ew.And, self.bits(x), top) if dt.nonfinite == "fn" else self.bits(x)
        return self.where(self.op(ew.Eq, size, code), float("nan"), value)

    def magnitude(self, code: Value, dt: DType) -> Value:
        """The bits of |value| of a small float: its fields, moved to where f32 has them, with the other bias."""
        m, top = dt.mantissa_bits, (1 << dt.bits - 1) - 1
        size = self.op(ew.And, code, top)
        moved = self.op(ew.Shl, size, 23 - m)
        normal = self.op(ew.Add, moved, 127 - dt.bias << 23)
        # A subnormal lacks the leading one: as a normal number of the smallest exponent it is that much too large.
        above = self.from_bits(self.op(ew.Add, moved, 128 - dt.bias << 23), _F32)
        value = self.where(self.op(ew.Lt, size, 1 << m), self.bits(self.op(ew.Sub, above, dt.smallest_normal)), normal)
        if dt.nonfinite == "ieee":
            infinite = self.op(ew.Ge, size, top >> m << m)
            return self.where(infinite, self.op(ew.Or, moved, _INFINITY), value)
        return self.where(self.op(ew.Eq, size, top), _NAN, value) if dt.nonfinite == "fn" else value

    def entry(self, code: Value, dt: DType) -> Value:
        """An entry of a codebook, by a tree of choices: one level for each bit of the code."""
        choices = [self.full(float(v), _F32, code.shape) for v in codec.values_of(dt).astype(np.float32)]
        for bit in range(dt.bits):
            is_set = self.op(ew.Ne, self.op(ew.And, code, 1 << bit), 0)
            choices = [a if a is b else self.where(is_set, b, a)
                       for a, b in zip(choices[::2], choices[1::2], strict=True)]
        return choices[0]

    # -- rounding to odd: a second rounding, to a narrower type, is then correct --------------------------------------
    def odd_f32(self, x: Value) -> Value:
        """f64 to f32: where inexact, the neighbour towards zero, its last bit set."""
        near = self.op(ew.Cast, x, dtype=_F32)
        bits, back = self.bits(near), self.op(ew.Cast, near, dtype=_F64)
        above = self.op(ew.Gt, self.op(ew.Abs, back), self.op(ew.Abs, x))
        odd = self.op(ew.Or, self.op(ew.Sub, bits, self.cast(above, _U32)), 1)
        return self.from_bits(self.where(self.op(ew.Ne, back, x), odd, bits), _F32)

    def odd_f64(self, x: Value) -> Value:
        """A 64-bit integer to f64: bits beyond the significand only leave a mark."""
        number = self.cast(x, _U64)
        negative = self.op(ew.Lt, x, 0) if x.dtype.kind == "int" else None
        size = self.where(negative, self.op(ew.Neg, number), number) if negative is not None else number
        lost = self.cast(self.op(ew.Ne, self.op(ew.And, size, 0x7FF), 0), _U64)
        marked = self.op(ew.Or, self.op(ew.And, size, ~0x7FF), self.op(ew.Shl, lost, 11))
        value = self.cast(self.where(self.op(ew.Ge, size, 1 << 53), marked, size), _F64)
        return self.where(negative, self.op(ew.Neg, value), value) if negative is not None else value

    # -- from f32 and f64 ---------------------------------------------------------------------------------------------
    def saturated(self, x: Value, dt: DType) -> Value:
        """To an integer of another width than 32 and 64, through one of these."""
        wide = self.op(ew.Cast, x, dtype=_I32 if dt.bits < 32 else dtype("i64" if dt.kind == "int" else "u64"))
        wide = self.op(ew.Min, wide, dt.max)
        return self.cast(wide if wide.dtype.kind == "uint" else self.op(ew.Max, wide, dt.min), dt)

    def nearest(self, x: Value, dt: DType) -> Value:
        """The first of the nearest entries of a codebook."""
        values = codec.values_of(dt)
        x = self.cast(x, _F64)
        x = self.where(self.op(ew.Ne, x, x), float(values[0]), x)
        x = self.op(ew.Max, self.op(ew.Min, x, float(values.max())), float(values.min()))
        distances = [self.op(ew.Abs, self.op(ew.Sub, x, float(v))) for v in values]
        best, code = distances[0], self.full(0, _U32, x.shape)
        for i, distance in enumerate(distances[1:], 1):
            nearer = self.op(ew.Lt, distance, best)
            best, code = self.where(nearer, distance, best), self.where(nearer, i, code)
        return self.from_bits(code, dt)

    def rounded(self, x: Value, dt: DType) -> Value:
        """To bipolar and ternary; f64 holds the halves between bipolar values."""
        top = float((1 << dt.bits) - 1) if dt.kind == "bipolar" else 1.0
        x = self.where(self.op(ew.Ne, x, x), 0.0, x)
        x = self.op(ew.Max, self.op(ew.Min, x, top), -top)
        if dt.kind == "bipolar":
            x = self.op(ew.Round, self.op(ew.Mul, self.op(ew.Add, self.cast(x, _F64), top), 0.5))
        else:
            x = self.op(ew.Add, self.op(ew.Round, x), 1.0)
        return self.from_bits(self.cast(x, _I32), dt)

    def power_of_two(self, x: Value) -> Value:
        """e8m0, from f32: the nearest power of two, ties upwards. The significand 1.5 carries into the exponent."""
        bits = self.bits(x)
        code = self.op(ew.Shr, self.op(ew.Add, bits, 0x400000), 23)
        smallest = self.cast(self.op(ew.Ge, bits, 0x600000), _U32)  # at least 0.75 * 2**-126
        code = self.op(ew.Min, self.where(self.op(ew.Lt, bits, 0x800000), smallest, code), 254)
        code = self.where(self.op(ew.Ge, bits, _INFINITY), 255, code)  # negative, too
        return self.where(self.op(ew.Eq, bits, 1 << 31), 0, code)

    def small_float(self, x: Value, dt: DType) -> Value:
        """To a float of fewer bits, from f32: rounds the significand to nearest even in integer arithmetic."""
        bits, m, cut = self.bits(x), dt.mantissa_bits, 23 - dt.mantissa_bits
        half = (1 << cut - 1) - 1
        if _like_f32(dt):  # the same exponent: subnormals, infinities and the sign round alike
            odd = self.op(ew.And, self.op(ew.Shr, bits, cut), 1)
            code = self.op(ew.Shr, self.op(ew.Add, bits, self.op(ew.Add, odd, half)), cut)
            code = self.where(self.op(ew.Ne, x, x), dt.nan_code, code)
            return self.left(code, dt.bits - dt.exponent_bits - m - 1)
        size = self.op(ew.And, bits, 0x7FFFFFFF)
        # Without a mantissa a tie goes up; the change of the bias is part of the same addition.
        odd = self.op(ew.And, self.op(ew.Shr, size, cut), 1) if m else self.full(1, _U32, x.shape)
        high = self.op(ew.Add, self.op(ew.Add, size, odd), half - (127 - dt.bias << 23))
        # Below the smallest normal number the quantum is constant: let an f32 addition round.
        anchor = 2.0 ** (24 - dt.bias - m)
        shifted = self.op(ew.Add, self.from_bits(size, _F32), anchor)
        low = self.op(ew.Sub, self.bits(shifted), int(np.float32(anchor).view(np.uint32)))
        smallest = int(np.float32(dt.smallest_normal).view(np.uint32))
        code = self.where(self.op(ew.Lt, size, smallest), low, self.op(ew.Shr, high, cut))
        code = self.op(ew.Min, code, dt.overflow_code)
        sign = self.op(ew.Shl, self.op(ew.Shr, bits, 31), dt.bits - 1)
        if dt.nonfinite == "fnuz":
            sign = self.where(self.op(ew.Eq, code, 0), 0, sign)
        return self.where(self.op(ew.Ne, x, x), dt.nan_code, self.op(ew.Or, code, sign))


def _fits_half(dt: DType) -> bool:
    """Whether f16 holds every value of a float, scaled, and its infinities."""
    most = 5 if dt.nonfinite == "ieee" and dt.bias == 15 else 4 if dt.nonfinite != "ieee" else 0
    return dt.kind == "float" and dt.exponent_bits <= most and dt.mantissa_bits <= 10 and dt.bits < 16


def _like_f32(dt: DType) -> bool:
    """Whether the bits are the upper bits of an f32: bf16 and tf32."""
    return dt.exponent_bits == 8 and dt.bias == 127 and dt.kind == "float"
