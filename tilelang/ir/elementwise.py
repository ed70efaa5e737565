"""Elementwise operations: one result element from the operands' elements at the same index.

Operands have equal shapes (broadcasting is explicit, see `broadcast`). Arithmetic is defined on integers of any
width (modulo 2**bits) and on f16, bf16, f32 and f64; each operation on f16 and bf16 is computed in f32 and rounded
once. Every other type must be cast first.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tilelang.errors import DTypeMismatch, ShapeMismatch, VerifyError
from tilelang.ir import codec
from tilelang.ir.core import Op, TileType, Type, Value
from tilelang.ir.dtypes import DType, dtype

if TYPE_CHECKING:
    from tilelang.ir.expansion import Expansion

I1 = dtype("i1")
ALL_LEVELS = frozenset({"tile", "placed", "thread"})

_NUMBER = ("int", "uint", "float")
DOMAINS: dict[str, tuple[tuple[str, ...], str]] = {
    "number": (_NUMBER, "an integer, f16, bf16, f32 or f64"),
    "integer": (("int", "uint", "bool"), "an integer or i1"),
    "ordered": ((*_NUMBER, "bool"), "an integer, i1, f16, bf16, f32 or f64"),
    "float": (("float",), "f16, bf16, f32 or f64"),
}


def to_compute(array: Any, dt: DType) -> Any:
    """Storage to the NumPy array arithmetic happens in: f32 for f16 and bf16, the storage itself otherwise."""
    if dt.kind == "float" and dt.name not in ("f32", "f64"):
        return np.asarray(codec.decode(array, dt), np.float32)
    return array


def from_compute(array: Any, dt: DType) -> Any:
    """The inverse: rounds to nearest even (floats) or wraps (integers) into storage."""
    if dt.kind in ("int", "uint"):
        return codec.wrap(array, dt)
    if dt.name in ("i1", "f32", "f64"):
        return np.asarray(array, dt.storage)
    return codec.encode(array, dt)


class Elementwise(Op):
    """Base: `arity` operands of one type; `fn` is the NumPy meaning; `domain` the dtypes it is defined on."""

    levels = ALL_LEVELS
    arity: ClassVar[int] = 2
    domain: ClassVar[str] = "number"
    predicate: ClassVar[bool] = False
    fn: ClassVar[Callable[..., Any]]

    def infer(self) -> Sequence[Type]:
        types = [v.tile for v in self.operands]
        if len(types) != self.arity:
            raise VerifyError(f"`{self.name}` takes {self.arity} operands", op=self.name, loc=self.loc,
                              needs=f"{self.arity} operands", got=str(len(types)), try_="pass that many")
        first = types[0]
        for other in types[1:]:
            if other.shape != first.shape:
                raise ShapeMismatch(f"`{self.name}` of tiles of different shapes", loc=self.loc,
                                    needs=f"shapes equal to {list(first.shape)}", got=str(list(other.shape)),
                                    try_="reshape or broadcast one of them")
            if other.dtype != first.dtype:
                raise DTypeMismatch(f"`{self.name}` of tiles of different dtypes", loc=self.loc,
                                    needs=f"both {first.dtype}", got=str(other.dtype),
                                    try_=f"cast one of them: x.to(tile.{first.dtype})")
        kinds, wanted = DOMAINS[self.domain]
        dt = first.dtype
        if dt.kind not in kinds or (dt.kind == "float" and not dt.arithmetic):
            suitable = "i32" if self.domain == "integer" else "f32"
            raise DTypeMismatch(f"`{self.name}` is not defined on {dt}", loc=self.loc, needs=wanted, got=str(dt),
                                try_=f"cast first, for example x.to(tile.{suitable})")
        return [TileType(first.shape, I1 if self.predicate else dt)]

    def eval(self, frame: Any, *args: Any) -> Any:
        dt = self.operands[0].dtype
        out = type(self).fn(*(to_compute(a, dt) for a in args))
        return np.asarray(out, np.bool_) if self.predicate else from_compute(out, dt)


class _Unary(Elementwise):
    arity = 1


class _FloatUnary(_Unary):
    domain = "float"


class _Compare(Elementwise):
    domain, predicate = "ordered", True


class _Integer(Elementwise):
    domain = "integer"


# -- arithmetic -------------------------------------------------------------------------------------------------------
class Add(Elementwise):
    """a + b."""
    name, fn = "add", np.add


class Sub(Elementwise):
    """a - b."""
    name, fn = "sub", np.subtract


class Mul(Elementwise):
    """a * b."""
    name, fn = "mul", np.multiply


class Div(Elementwise):
    """a / b, correctly rounded; floats only."""
    name, domain, fn = "div", "float", np.divide


def _floordiv(a: Any, b: Any) -> Any:
    if np.asarray(a).dtype.kind == "f":
        return np.floor(a / b)
    return np.floor_divide(a, b, out=np.zeros_like(a), where=np.asarray(b) != 0)


def _mod(a: Any, b: Any) -> Any:
    if np.asarray(a).dtype.kind == "f":
        return a - b * np.floor(a / b)
    return np.remainder(a, b, out=np.zeros_like(a), where=np.asarray(b) != 0)


class FloorDiv(Elementwise):
    """floor(a / b) as Python's `//`; an integer divided by zero gives 0, never a trap."""
    name, fn = "floordiv", _floordiv


class Mod(Elementwise):
    """a - floor(a / b) * b as Python's `%` (the sign of b); an integer modulo zero gives 0."""
    name, fn = "mod", _mod


class Min(Elementwise):
    """The smaller; NaN if either is NaN."""
    name, domain, fn = "min", "ordered", np.minimum


class Max(Elementwise):
    """The larger; NaN if either is NaN."""
    name, domain, fn = "max", "ordered", np.maximum


class Neg(_Unary):
    """-a."""
    name, fn = "neg", np.negative


class Abs(_Unary):
    """|a|; the most negative integer stays itself."""
    name, fn = "abs", np.abs


def odd_fma(a: Any, b: Any, c: Any) -> Any:
    """a * b + c of f32 in f64, rounded to odd: rounding that to f32 in any direction is rounding the exact value
    (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd")."""
    product, c = np.asarray(a, np.float64) * b, np.asarray(c, np.float64)  # 48 bits: the product is exact
    total = np.asarray(product + c)
    part = total - product
    error = (product - (total - part)) + (c - part)
    bits = total.view(np.int64)
    even = (abs(error) > 0) & (bits & 1 == 0)  # NaN compares false: infinities stay
    return (bits + np.where(even, np.where((error > 0) == (total > 0), 1, -1), 0)).view(np.float64)


def fused(a: Any, b: Any, c: Any) -> Any:
    return odd_fma(a, b, c).astype(np.float32) if np.asarray(a).dtype == np.float32 else a * b + c


class Fma(Elementwise):
    """a * b + c, rounded once for f32 (and in f64 twice: NumPy has no more bits)."""
    name, arity, fn = "fma", 3, fused


# -- functions --------------------------------------------------------------------------------------------------------
def _via_f64(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """f32 results rounded once from f64: the reference is closer than any backend's polynomial."""
    def apply(a: Any) -> Any:
        a = np.asarray(a)
        return np.asarray(fn(a.astype(np.float64)), a.dtype)
    return apply


_erf = np.frompyfunc(math.erf, 1, 1)


class Exp(_FloatUnary):
    """e ** x."""
    name, fn = "exp", _via_f64(np.exp)


class Exp2(_FloatUnary):
    """2 ** x."""
    name, fn = "exp2", _via_f64(np.exp2)


class Log(_FloatUnary):
    """Natural logarithm."""
    name, fn = "log", _via_f64(np.log)


class Log2(_FloatUnary):
    """Binary logarithm."""
    name, fn = "log2", _via_f64(np.log2)


class Sqrt(_FloatUnary):
    """Square root, correctly rounded."""
    name, fn = "sqrt", np.sqrt


class Rsqrt(_FloatUnary):
    """1 / sqrt(x)."""
    name, fn = "rsqrt", _via_f64(lambda a: 1.0 / np.sqrt(a))


class Sin(_FloatUnary):
    """Sine of radians."""
    name, fn = "sin", _via_f64(np.sin)


class Cos(_FloatUnary):
    """Cosine of radians."""
    name, fn = "cos", _via_f64(np.cos)


class Tanh(_FloatUnary):
    """Hyperbolic tangent."""
    name, fn = "tanh", _via_f64(np.tanh)


class Erf(_FloatUnary):
    """The error function."""
    name, fn = "erf", _via_f64(lambda a: np.asarray(_erf(a), np.float64))


class Sigmoid(_FloatUnary):
    """1 / (1 + exp(-x))."""
    name, fn = "sigmoid", _via_f64(lambda a: 1.0 / (1.0 + np.exp(-a)))


class Floor(_FloatUnary):
    """Rounds towards minus infinity."""
    name, fn = "floor", np.floor


class Ceil(_FloatUnary):
    """Rounds towards plus infinity."""
    name, fn = "ceil", np.ceil


class Round(_FloatUnary):
    """Rounds to the nearest integer, ties to even."""
    name, fn = "round", np.rint


class Trunc(_FloatUnary):
    """Rounds towards zero."""
    name, fn = "trunc", np.trunc


# -- bits and logic ---------------------------------------------------------------------------------------------------
class And(_Integer):
    """Bitwise (logical on i1) and."""
    name, fn = "and", np.bitwise_and


class Or(_Integer):
    """Bitwise (logical on i1) or."""
    name, fn = "or", np.bitwise_or


class Xor(_Integer):
    """Bitwise (logical on i1) exclusive or."""
    name, fn = "xor", np.bitwise_xor


class Not(_Integer):
    """Bitwise (logical on i1) complement."""
    name, arity, fn = "not", 1, np.invert


class Popcount(_Integer):
    """Number of set bits, in the operand's own type (modulo 2**bits)."""
    name, arity = "popcount", 1

    def eval(self, frame: Any, *args: Any) -> Any:
        dt = self.operands[0].dtype
        return codec.wrap(np.bitwise_count(codec.to_bits(args[0], dt)).astype(np.int64), dt)


def _shift(args: Sequence[Any], dt: DType, fn: Callable[[Any, Any], Any], filled: bool) -> Any:
    a, count = np.asarray(args[0]), np.asarray(args[1])
    inside = (count >= 0) & (count < dt.bits)
    safe = np.where(inside, count, 0)
    over = np.where(a < 0, -1, 0).astype(a.dtype) if filled else np.zeros_like(a)
    return codec.wrap(np.where(inside, fn(a, safe), over), dt)


class Shl(_Integer):
    """a << b; a count outside [0, bits) gives 0."""
    name = "shl"

    def eval(self, frame: Any, *args: Any) -> Any:
        return _shift(args, self.operands[0].dtype, np.left_shift, filled=False)


class Shr(_Integer):
    """a >> b: arithmetic for signed, logical for unsigned; a count outside [0, bits) gives 0, or -1 where a < 0."""
    name = "shr"

    def eval(self, frame: Any, *args: Any) -> Any:
        dt = self.operands[0].dtype
        return _shift(args, dt, np.right_shift, filled=dt.kind == "int")


# -- comparison and selection -----------------------------------------------------------------------------------------
class Eq(_Compare):
    """a == b."""
    name, fn = "eq", np.equal


class Ne(_Compare):
    """a != b (true where either is NaN)."""
    name, fn = "ne", np.not_equal


class Lt(_Compare):
    """a < b."""
    name, fn = "lt", np.less


class Le(_Compare):
    """a <= b."""
    name, fn = "le", np.less_equal


class Gt(_Compare):
    """a > b."""
    name, fn = "gt", np.greater


class Ge(_Compare):
    """a >= b."""
    name, fn = "ge", np.greater_equal


class Where(Op):
    """`a` where the condition holds, else `b`; defined on every dtype."""
    name, levels = "where", ALL_LEVELS

    def infer(self) -> Sequence[Type]:
        cond, a, b = (v.tile for v in self.operands)
        if cond.dtype != I1:
            raise DTypeMismatch("the condition of `where` must be i1", loc=self.loc, needs="i1", got=str(cond.dtype),
                                try_="compare it, for example cond != 0")
        if not cond.shape == a.shape == b.shape:
            raise ShapeMismatch("`where` of tiles of different shapes", loc=self.loc, needs="three equal shapes",
                                got=f"{list(cond.shape)}, {list(a.shape)}, {list(b.shape)}",
                                try_="reshape or broadcast them")
        if a.dtype != b.dtype:
            raise DTypeMismatch("`where` of tiles of different dtypes", loc=self.loc, needs=f"both {a.dtype}",
                                got=str(b.dtype), try_=f"cast one of them: x.to(tile.{a.dtype})")
        return [TileType(a.shape, a.dtype)]

    def eval(self, frame: Any, *args: Any) -> Any:
        return np.where(*args)


# -- conversion -------------------------------------------------------------------------------------------------------
class Cast(Op):
    """Converts values to `dtype`: floats round to nearest even; float to integer truncates and saturates, NaN gives
    0; integer to integer wraps. See `tilelang.ir.codec.cast` for every pair."""
    name, levels, attributes = "cast", ALL_LEVELS, {"dtype": ...}

    def infer(self) -> Sequence[Type]:
        return [TileType(self.operands[0].shape, self.attrs["dtype"])]

    def eval(self, frame: Any, *args: Any) -> Any:
        return codec.cast(args[0], self.operands[0].dtype, self.attrs["dtype"])


class Bitcast(Op):
    """The same bits read as another dtype of the same width."""
    name, levels, attributes = "bitcast", ALL_LEVELS, {"dtype": ...}

    def infer(self) -> Sequence[Type]:
        src, dst = self.operands[0].tile, self.attrs["dtype"]
        if src.dtype.bits != dst.bits:
            raise DTypeMismatch("`bitcast` between dtypes of different widths", loc=self.loc,
                                needs=f"a dtype of {src.dtype.bits} bits", got=f"{dst} of {dst.bits} bits",
                                try_="use x.to(...) to convert values, or view(...) to regroup bits")
        return [TileType(src.shape, dst)]

    def eval(self, frame: Any, *args: Any) -> Any:
        return codec.from_bits(codec.to_bits(args[0], self.operands[0].dtype), self.attrs["dtype"])


class Philox(Op):
    """Philox4x32-10 (Salmon et al., 2011): (seed u64 scalar, counter u32 tile) to four u32 tiles.

    The key is the seed's two words; the counter is (c, 0, 0, 0).
    """
    name = "philox"

    def infer(self) -> Sequence[Type]:
        seed, counter = (v.tile for v in self.operands)
        if seed.shape or seed.dtype.name != "u64" or counter.dtype.name != "u32":
            raise DTypeMismatch("`philox` takes a u64 seed and a u32 counter", loc=self.loc,
                                needs="u64, u32 tile", got=f"{seed}, {counter}", try_="cast them")
        return [TileType(counter.shape, counter.dtype)] * 4

    def eval(self, frame: Any, *args: Any) -> Any:
        mask = np.uint64(0xFFFFFFFF)
        k0, k1 = np.uint64(args[0]) & mask, np.uint64(args[0]) >> np.uint64(32)
        x = [np.asarray(args[1]).astype(np.uint64)] + [np.zeros_like(args[1], np.uint64) for _ in range(3)]
        for _ in range(10):
            p0, p1 = x[0] * np.uint64(0xD2511F53), x[2] * np.uint64(0xCD9E8D57)
            x = [(p1 >> np.uint64(32)) ^ x[1] ^ k0, p1 & mask, (p0 >> np.uint64(32)) ^ x[3] ^ k1, p0 & mask]
            k0, k1 = (k0 + np.uint64(0x9E3779B9)) & mask, (k1 + np.uint64(0xBB67AE85)) & mask
        return tuple(word.astype(np.uint32) for word in x)

    def expand(self, b: Expansion) -> Sequence[Value]:
        seed, counter = self.operands
        u32, u64, like = dtype("u32"), dtype("u64"), counter.shape

        def low(v: Value) -> Value:
            return b.emit(Cast, v, dtype=u32)

        def high(v: Value) -> Value:
            return low(b.emit(Shr, v, b.full(32, v.shape, u64)))
        zero = b.full(0, like, u32)
        x = [counter, zero, zero, zero]
        keys = [low(seed), high(seed)]
        for _ in range(10):
            products = [b.emit(Mul, b.emit(Cast, v, dtype=u64), b.full(m, like, u64))
                        for v, m in ((x[0], 0xD2511F53), (x[2], 0xCD9E8D57))]
            k0, k1 = (b.broadcast(k, like) for k in keys)
            x = [b.emit(Xor, b.emit(Xor, high(products[1]), x[1]), k0), low(products[1]),
                 b.emit(Xor, b.emit(Xor, high(products[0]), x[3]), k1), low(products[0])]
            keys = [b.emit(Add, k, b.full(w, (), u32)) for k, w in zip(keys, (0x9E3779B9, 0xBB67AE85), strict=True)]
        return x
