"""Elementary functions on f32 vectors as polynomials, on f64 and for sine and cosine through the C library.

The polynomials interpolate at Chebyshev nodes on the reduced range, computed with 40 digits. They assume hardware FMA.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from tilelang.backends.cpu.numbers import intrinsic

ULP = {"exp": 2.0, "exp2": 2.0, "log": 2.0, "log2": 3.0, "tanh": 4.0, "erf": 4.0, "sigmoid": 4.0, "rsqrt": 1.5,
       "sqrt": 0.5, "sin": 1.0, "cos": 1.0}
"""Largest error of the f32 functions in units in the last place, as the tests measure it."""

I32, F32, F64 = ir.IntType(32), ir.FloatType(), ir.DoubleType()
_LN2_HI, _LN2_LO = 0.693145751953125, 1.4286068203094172e-06  # ln 2 split so that n * _LN2_HI is exact
_EXP = (0.5, 0.1666657702559799, 0.041666554662050534, 0.008363173074513711, 0.001392617611993558)
_LOG = (0.33333331180030046, -0.24999996957950882, 0.200007157488921, -0.16667802319501254, 0.1424905764569748,
        -0.12425687331451106, 0.1168541992348674, -0.11479733846637635, 0.06971611471451178)
_TANH = (-0.3333333317214009, 0.13333303556902035, -0.053959259575253854, 0.021768918639675394,
         -0.008343945486897208, 0.002292744789325476)
_ERF = (1.1283791670615435, -0.3761263846802871, 0.11283782495236828, -0.026865430727669472, 0.005221031807856146,
        -0.0008484080405510591, 0.00011265959025443484, -9.66704457105271e-06)
_LOG_ERFC = (0.00040298877368102225, -1.1306188758306144, -0.6310554274385524, -0.11094937800496762,
             0.027031343866818647, -0.005036356984221061, 0.0006780351655822, -6.0960429780364616e-05,
             3.1906371163040378e-06, -7.023312594831478e-08)
_MAGIC = 12582912.0  # 1.5 * 2**23: adding it rounds an f32 to an integer in its low bits


class Vec:
    """Short names for f32 arithmetic on one vector (or scalar) type."""

    def __init__(self, builder: ir.IRBuilder, like: ir.Value) -> None:
        self.b, self.type = builder, like.type
        self.lanes = like.type.count if isinstance(like.type, ir.VectorType) else None

    def itype(self) -> ir.Type:
        return ir.VectorType(I32, self.lanes) if self.lanes else I32

    def c(self, value: float) -> ir.Value:
        return ir.Constant(self.type, [value] * self.lanes if self.lanes else value)

    def i(self, value: int) -> ir.Value:
        return ir.Constant(self.itype(), [value] * self.lanes if self.lanes else value)

    def call(self, name: str, *args: ir.Value) -> ir.Value:
        fn = intrinsic(self.b.module, name, [self.type], ir.FunctionType(self.type, [self.type] * len(args)))
        return self.b.call(fn, args)

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        return self.call("llvm.fma", a, b, c)

    def poly(self, x: ir.Value, coefficients: Sequence[float]) -> ir.Value:
        """Horner's rule, the constant first."""
        acc = self.c(coefficients[-1])
        for value in reversed(coefficients[:-1]):
            acc = self.fma(acc, x, self.c(value))
        return acc

    def bits(self, x: ir.Value) -> ir.Value:
        return self.b.bitcast(x, self.itype())

    def float(self, x: ir.Value) -> ir.Value:
        return self.b.bitcast(x, self.type)

    def less(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.fcmp_ordered("<", a, b)


def _exp_of(v: Vec, n: ir.Value, r: ir.Value) -> ir.Value:
    """2**n * exp(r) for n + _MAGIC in f32 and |r| <= ln(2) / 2; the scale goes in two steps to reach subnormals."""
    b = v.b
    p = v.fma(v.b.fmul(r, r), v.poly(r, _EXP), r)
    p = b.fadd(p, v.c(1.0))
    k = b.sub(v.bits(n), v.i(0x4B400000))
    half = b.ashr(k, v.i(1))
    for part in (half, b.sub(k, half)):
        p = b.fmul(p, v.float(b.shl(b.add(part, v.i(127)), v.i(23))))
    return p


def _bounded(v: Vec, x: ir.Value, lo: float, hi: float) -> ir.Value:
    """x limited to [lo, hi]; NaN stays."""
    x = v.b.select(v.less(v.c(hi), x), v.c(hi), x)
    return v.b.select(v.less(x, v.c(lo)), v.c(lo), x)


def _exp(v: Vec, x: ir.Value) -> ir.Value:
    b, x = v.b, _bounded(v, x, -105.0, 89.0)
    n = v.fma(x, v.c(1.4426950408889634), v.c(_MAGIC))
    whole = b.fsub(n, v.c(_MAGIC))
    r = v.fma(whole, v.c(-_LN2_HI), x)
    return _exp_of(v, n, v.fma(whole, v.c(-_LN2_LO), r))


def _exp2(v: Vec, x: ir.Value) -> ir.Value:
    b, x = v.b, _bounded(v, x, -151.0, 129.0)
    n = b.fadd(x, v.c(_MAGIC))
    return _exp_of(v, n, b.fmul(b.fsub(x, b.fsub(n, v.c(_MAGIC))), v.c(0.6931471805599453)))


def _log_parts(v: Vec, x: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """(e, f, log(1 + f) - f) with x = 2**e * (1 + f), 1 + f in [sqrt(1/2), sqrt(2))."""
    b = v.b
    tiny = v.less(x, v.c(1.1754943508222875e-38))
    x = b.select(tiny, b.fmul(x, v.c(8388608.0)), x)
    shifted = b.sub(v.bits(x), v.i(0x3F3504F3))  # sqrt(1/2)
    e = b.sitofp(b.ashr(shifted, v.i(23)), v.type)
    e = b.fsub(e, b.select(tiny, v.c(23.0), v.c(0.0)))
    m = v.float(b.add(b.and_(shifted, v.i(0x7FFFFF)), v.i(0x3F3504F3)))
    f = b.fsub(m, v.c(1.0))
    square = b.fmul(f, f)
    tail = v.fma(b.fmul(square, f), v.poly(f, _LOG), b.fmul(square, v.c(-0.5)))
    return e, f, tail


def _log_edges(v: Vec, x: ir.Value, y: ir.Value) -> ir.Value:
    b = v.b
    inf, nan = v.c(float("inf")), v.c(float("nan"))
    y = b.select(b.fcmp_ordered("==", x, inf), inf, y)
    y = b.select(b.fcmp_ordered("==", x, v.c(0.0)), v.c(float("-inf")), y)
    return b.select(b.fcmp_unordered("<", x, v.c(0.0)), nan, y)


def _log(v: Vec, x: ir.Value) -> ir.Value:
    e, f, tail = _log_parts(v, x)
    low = v.fma(e, v.c(_LN2_LO), tail)
    return _log_edges(v, x, v.fma(e, v.c(_LN2_HI), v.b.fadd(f, low)))


def _log2(v: Vec, x: ir.Value) -> ir.Value:
    e, f, tail = _log_parts(v, x)
    hi, lo = 1.44269502162933349609, 1.92596299112661746887e-08  # 1 / ln 2 in two f32 parts
    y = v.fma(f, v.c(lo), v.fma(tail, v.c(hi), v.fma(f, v.c(hi), v.c(0.0))))
    return _log_edges(v, x, v.b.fadd(e, y))


def _tanh(v: Vec, x: ir.Value) -> ir.Value:
    b = v.b
    size = v.call("llvm.fabs", x)
    u = b.fmul(x, x)
    small = v.fma(b.fmul(x, u), v.poly(u, _TANH), x)
    e = _exp(v, b.fmul(size, v.c(2.0)))
    large = b.fsub(v.c(1.0), b.fdiv(v.c(2.0), b.fadd(e, v.c(1.0))))
    return b.select(v.less(size, v.c(0.625)), small, _signed(v, large, x))


def _signed(v: Vec, size: ir.Value, sign: ir.Value) -> ir.Value:
    fn = intrinsic(v.b.module, "llvm.copysign", [v.type], ir.FunctionType(v.type, [v.type] * 2))
    return v.b.call(fn, [size, sign])


def _erf(v: Vec, x: ir.Value) -> ir.Value:
    b = v.b
    size = v.call("llvm.fabs", x)
    small = b.fmul(x, v.poly(b.fmul(x, x), _ERF))
    bounded = b.select(v.less(v.c(4.0), size), v.c(4.0), size)
    large = b.fsub(v.c(1.0), _exp(v, v.poly(bounded, _LOG_ERFC)))
    return b.select(v.less(size, v.c(1.0)), small, _signed(v, large, x))


def _sigmoid(v: Vec, x: ir.Value) -> ir.Value:
    return v.b.fdiv(v.c(1.0), v.b.fadd(v.c(1.0), _exp(v, v.b.fneg(x))))


def _rsqrt(v: Vec, x: ir.Value) -> ir.Value:
    return v.b.fdiv(v.c(1.0), v.call("llvm.sqrt", x))


_F32: dict[str, Callable[[Vec, ir.Value], ir.Value]] = {
    "exp": _exp, "exp2": _exp2, "log": _log, "log2": _log2, "tanh": _tanh, "erf": _erf, "sigmoid": _sigmoid,
    "rsqrt": _rsqrt}
_INTRINSICS = {"sqrt": "llvm.sqrt", "floor": "llvm.floor", "ceil": "llvm.ceil", "round": "llvm.roundeven",
               "trunc": "llvm.trunc", "abs": "llvm.fabs", "fma": "llvm.fma", "min": "llvm.minimum",
               "max": "llvm.maximum"}
LIBM = ("exp", "exp2", "log", "log2", "sin", "cos", "tanh", "erf")


def emit(builder: ir.IRBuilder, name: str, args: Sequence[ir.Value]) -> ir.Value:
    """The function `name` of f32 or f64 scalars or vectors."""
    v = Vec(builder, args[0])
    element = args[0].type.element if v.lanes else args[0].type
    if name in _INTRINSICS:
        return v.call(_INTRINSICS[name], *args)
    if element == F32 and name in _F32:
        return _F32[name](v, args[0])
    if name == "sigmoid":
        one = v.c(1.0)
        return builder.fdiv(one, builder.fadd(one, emit(builder, "exp", [builder.fneg(args[0])])))
    if name == "rsqrt":
        return _rsqrt(v, args[0])
    return _per_lane(builder, name, args[0], v.lanes)


def _per_lane(b: ir.IRBuilder, name: str, x: ir.Value, lanes: int | None) -> ir.Value:
    """The C library's f64 function on every element (f32 results are rounded once more)."""
    module: Any = b.module
    fn = module.globals.get(name) or ir.Function(module, ir.FunctionType(F64, [F64]), name)

    def one(value: ir.Value) -> ir.Value:
        if value.type == F64:
            return b.call(fn, [value])
        return b.fptrunc(b.call(fn, [b.fpext(value, F64)]), F32)
    if lanes is None:
        return one(x)
    out = ir.Constant(x.type, ir.Undefined)
    for i in range(lanes):
        out = b.insert_element(out, one(b.extract_element(x, I32(i))), I32(i))
    return out
