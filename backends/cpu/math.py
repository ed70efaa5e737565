"""Elementary functions of f32 and f64 scalars and vectors of any length, as LLVM IR.

f32 is computed lane by lane without branches: reduce the argument, evaluate a polynomial, undo the reduction. Only
sin and cos branch, when some |x| > 2**20. f64 calls the C library for each lane, in a loop. The IR serves AVX2 and
NEON alike, but `llvm.fma` must be an instruction there (a call otherwise: right, and slow). AVX-512 and AVX2 get forms
of their own of erf, as they look up tables in registers, AVX-512 of exp and exp2, as it scales by powers of two, and
AVX2 of all polynomials (`_Lanes.poly`).
Nothing here is fast-math, so no compiler may drop the handling of infinities, NaN, signed zeros and subnormals.

Coefficients are weighted minimax fits: least squares in a Chebyshev basis of the reduced range, reweighted by the
errors until these level out (Lawson's iteration), the function in 40 digits, then rounded to f32. Each comment gives
the largest relative error the fit itself (before rounding in f32) causes in the function; half an f32 ulp is 6e-8.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from tilelang.backends.cpu.access import Access
from tilelang.backends.cpu.machine import CpuTarget
from tilelang.backends.cpu.numbers import F32, F64, I1, I32, constant, intrinsic, type_name, with_lanes
from tilelang.errors import TargetError

ULP: dict[str, float] = {
    "exp": 1.25, "exp2": 1.0, "log": 1.0, "log2": 1.25, "sqrt": 0.5, "rsqrt": 1.5, "sin": 2.0, "cos": 2.0,
    "tanh": 2.75, "erf": 1.5, "sigmoid": 2.5}
"""Largest error of the f32 functions in units in the last place of the exact result, over all f32."""

ULP_F64: dict[str, float] = {
    "exp": 1.0, "exp2": 1.0, "log": 1.0, "log2": 1.0, "sqrt": 0.5, "rsqrt": 1.5, "sin": 1.0, "cos": 1.0, "tanh": 2.5,
    "erf": 1.5, "sigmoid": 3.0}
"""The same of the f64 functions: the bounds documented for glibc, and what sigmoid and rsqrt add to them."""

_INTRINSICS = {"sqrt": "llvm.sqrt", "floor": "llvm.floor", "ceil": "llvm.ceil", "round": "llvm.roundeven",
               "trunc": "llvm.trunc", "abs": "llvm.fabs", "fma": "llvm.fma"}
_NAN_WINS = {"min": "llvm.minimum", "max": "llvm.maximum"}

# Adding 1.5 * 2**23 to an f32 rounds it to an integer n, which the low bits of the sum then hold. Adding _MAGIC + k
# leaves n + k there, so with k = 127 a shift by 23 gives the bits of 2**n.
_MAGIC, _MAGIC_BITS = 12582912.0, 0x4B400000
_LOG2E_HI, _LOG2E_LO = 1.4426950216293335, 1.925963033500011e-08  # log2(e) as the sum of two f32
_LN2_HI, _LN2_LO = 0.6931471824645996, -1.904654323148236e-09  # ln 2 likewise
_PIO2 = (1.5707963705062866, -4.371138828673793e-08, -1.7151245100058819e-15)  # pi / 2 as the sum of three
_TWO_OVER_PI = 0.6366197466850281
_SQRT_HALF = 0x3F3504F3  # the bits of sqrt(1/2)
_SIN_LIMIT = 1048576.0  # up to here |x - n pi/2| stays below the range of the fits of sin and cos

# 2**f = 1 + f P(f), |f| <= 1/2; error 2.0e-9.
_EXP2 = (1.0, 0.693147203, 0.240226479, 0.0555033247, 0.00961843737, 0.00133988749, 0.000153533606)
# (exp(2 r) - 1) / 2 = r + r**2 P(r), |r| <= ln(2) / 4; error 1.3e-8.
_EXPM1 = (0.999999963, 0.666661727, 0.333337615, 0.133865288, 0.0444240243)
# log(1 + f) = f + f**2 P(f), sqrt(1/2) <= 1 + f <= sqrt(2); error 4.1e-9.
_LOG = (-0.499999883, 0.333333255, -0.250015848, 0.200019846, -0.166090567, 0.141816349, -0.132429811, 0.12905503,
        -0.0762306077)
# log2(1 + f) = f log2(e) + f**2 P(f), same range; error 4.1e-9. The constant in front is the low part of log2(e).
_LOG2 = (_LOG2E_LO, -0.721347352, 0.480898234, -0.360696624, 0.28856764, -0.239618037, 0.204597744, -0.191055832,
         0.186187053, -0.10997752)
# erf(x) = x + x P(x**2), |x| <= 0.9; error 1.2e-8.
_ERF = (0.128379154, -0.376125232, 0.1128214, -0.0267788793, 0.00501191645, -0.000609010824)
# log2(1 - erf(x)) = x P(x), 0.89 <= x <= 4; error 3.1e-9.
_LOG2_ERFC = (-1.6281136, -0.917108511, -0.151912522, 0.0330565623, -0.00464862918, 0.000309984281)
# erf(x) = y + d (c1 + d (c2 + d (c3 + ...))) with d = x - c, on pieces of [0, limit], whose number is `scale` * x
# rounded: by the number of pieces, limit (1 - erf(limit) < 2**-25), scale, and the rows c, y = erf(c), c1, c2 and so
# on. Each c was chosen so that an f32 holds its erf almost exactly. On piece 0, where c = 0, the y to take is x, as
# y's sign says. Error 3.6e-8 on 16 pieces, 2.1e-8 on 4.
_ERF_PIECES: dict[int, tuple[float, float, tuple[tuple[float, ...], ...]]] = {16: (3.99, 3.875, (
    (0.0, 0.258415073, 0.517664611, 0.772952676, 1.02971268, 1.28761041, 1.54836416, 1.80362344, 2.06315303,
     2.32476163, 2.58287573, 2.83808899, 3.09414506, 3.35514331, 3.62374425, 3.83253121),
    (-0.0, 0.285227537, 0.535885334, 0.725658953, 0.854671955, 0.931386471, 0.971455276, 0.989249587, 0.996474206,
     0.99898994, 0.999740541, 0.999940217, 0.9999879, 0.999997914, 0.999999702, 0.99999994),
    (0.128379166, 1.05548882, 0.863126338, 0.620845139, 0.390813053, 0.214991182, 0.102627501, 0.0436184406,
     0.0159895774, 0.00507345051, 0.00142945279, 0.000358362187, 7.84575677e-05, 1.45750037e-05, 2.23618281e-06,
     4.71420918e-07),
    (0.0, -0.272749364, -0.446804255, -0.479881108, -0.402425975, -0.276827484, -0.158906817, -0.0786720365,
     -0.0329888165, -0.0117941964, -0.00369181065, -0.0010169067, -0.000242712966, -4.88952101e-05, -8.0542859e-06,
     -1.79687504e-06),
    (-0.37612316, -0.304865122, -0.133553624, 0.0403346904, 0.145980015, 0.165958732, 0.129820198, 0.0800560713,
     0.0400448106, 0.0165879857, 0.00588029251, 0.00180479791, 0.000474639586, 0.000104493483, 1.88677495e-05,
     4.43924455e-06),
    (0.0, 0.129356086, 0.182375163, 0.143822476, 0.0591503792, -0.0140663972, -0.0471300706, -0.0458160155,
     -0.0303329658, -0.0154220713, -0.00642038509, -0.00225211843, -0.000664455583, -0.000162088385, -3.51670824e-05,
     -9.08321545e-06),
    (0.112226173, 0.0788699165, 0.00431338511, -0.0563466921, -0.0676004738, -0.0418716557, -0.00966111291,
     0.00907912198, 0.0129274568, 0.00933278166, 0.00486497954, 0.00199456164, 0.000667292916, 0.000185643468,
     3.51981544e-05, 1.49645066e-05))), 4: (3.95, 0.886, (
    (0.0, 1.1288956, 2.256945, 3.3867197),
    (-0.0, 0.8896227, 0.9985861, 0.99999833),
    (0.12837917, 0.3154917, 0.006922338, 1.17733607e-05),
    (1.89747439e-07, -0.35615847, -0.015623048, -3.98907978e-05),
    (-0.37613374, 0.16287406, 0.0211947, 8.64492031e-05),
    (0.000108735076, 0.026817003, -0.018716197, -0.00013272409),
    (0.11203989, -0.06089577, 0.0105920015, 0.00015034713),
    (0.0032284553, 0.015512298, -0.0029296428, -0.00013712555),
    (-0.03428766, 0.009153735, -0.0008582132, 0.00011167797),
    (0.009305265, -0.0050996975, 0.0009600717, -5.6324101e-05)))}
# sin(r) = r + r**3 P(r**2), |r| <= 1.06 pi / 4; error 6.1e-9.
_SIN = (-0.166666495, 0.00833185216, -0.000194750613)
# cos(r) = 1 - r**2 / 2 + r**4 P(r**2), same range; error 2.1e-10.
_COS = (1.0, -0.5, 0.0416666367, -0.00138868965, 2.43871327e-05)


class _Lanes:
    """Short names for arithmetic on one float type: a scalar or a vector. Of AVX-512 and AVX2 `target` is None if the
    code is for any processor."""

    def __init__(self, builder: ir.IRBuilder, x: ir.Value, target: CpuTarget | None) -> None:
        self.b, self.type, self.target = builder, x.type, target
        self.avx512 = target is not None and target.vector_bytes == 64
        self.avx2 = target is not None and target.vector_bytes == 32
        self.element = x.type.element if isinstance(x.type, ir.VectorType) else x.type
        self.integer = with_lanes(I32, x)

    def c(self, value: float) -> ir.Constant:
        return constant(self.type, value)

    def i(self, value: int) -> ir.Constant:
        return constant(self.integer, value)

    def call(self, name: str, *args: ir.Value, flags: Sequence[str] = ()) -> ir.Value:
        signature = ir.FunctionType(self.type, [self.type] * len(args))
        return self.b.call(intrinsic(self.b.module, name, [self.type], signature), args, fastmath=flags)

    def fma(self, x: ir.Value, y: ir.Value | float, z: ir.Value | float) -> ir.Value:
        """x * y + z, rounded once."""
        return self.call("llvm.fma", x, *(self.c(v) if isinstance(v, float) else v for v in (y, z)))

    def poly(self, x: ir.Value, coefficients: Sequence[ir.Value | float]) -> ir.Value:
        """The constant first. By Horner's rule; on AVX2 all but the last step, whose rounding counts, by Estrin's
        scheme: those processors have few vectors in flight, and these would wait for chains of products."""
        terms = [self.c(value) if isinstance(value, float) else value for value in coefficients]
        if self.avx2:
            return self.fma(self.tree(x, terms[1:]), x, terms[0])
        out = terms.pop()
        while terms:
            out = self.fma(out, x, terms.pop())
        return out

    def tree(self, x: ir.Value, terms: Sequence[ir.Value]) -> ir.Value:
        """The polynomial of these coefficients, neighbours first, then neighbouring pairs (Estrin, 1960)."""
        while len(terms) > 1:
            pairs = [self.fma(high, x, low) for low, high in zip(terms[::2], terms[1::2], strict=False)]
            terms = [*pairs, *terms[2 * len(pairs):]]
            x = self.b.fmul(x, x)
        return terms[0]

    def at_least(self, x: ir.Value, low: float) -> ir.Value:
        """max(x, low), NaN for NaN: this operand order is one x86 instruction."""
        return self.b.select(self.b.fcmp_ordered(">", self.c(low), x), self.c(low), x)

    def at_most(self, x: ir.Value, high: float) -> ir.Value:
        """min(x, high), NaN for NaN."""
        return self.b.select(self.b.fcmp_ordered("<", self.c(high), x), self.c(high), x)

    def bits(self, x: ir.Value) -> ir.Value:
        return self.b.bitcast(x, self.integer)

    def from_bits(self, bits: ir.Value) -> ir.Value:
        return self.b.bitcast(bits, self.type)

    def entry(self, table: Sequence[float], index: ir.Value) -> ir.Value:
        """The entry that the index's low bits name, of a table that fills a register, or half of one on AVX2."""
        b, scalar = self.b, not isinstance(self.type, ir.VectorType)
        if scalar:
            index = b.insert_element(constant(ir.VectorType(I32, 1), ir.Undefined), index, I32(0))
        row = ir.Constant(ir.VectorType(self.element, len(table)), list(table))
        out = Access(b, self.target).table_entry([row], index)
        return b.extract_element(out, I32(0)) if scalar else out

    def less(self, x: ir.Value, y: float) -> ir.Value:
        return self.b.fcmp_ordered("<", x, self.c(y))

    def is_equal(self, x: ir.Value, y: float) -> ir.Value:
        return self.b.fcmp_ordered("==", x, self.c(y))


# -- exponentials -----------------------------------------------------------------------------------------------------
def _power(v: _Lanes, n: ir.Value) -> ir.Value:
    """2**n from n + _MAGIC + 127, for the exponents of normal numbers."""
    return v.from_bits(v.b.shl(v.bits(n), v.i(23)))


def _exp2_scaled(v: _Lanes, f: ir.Value, n: ir.Value) -> ir.Value:
    """2**(f + n) from n + _MAGIC + 254. Two factors reach from the subnormals to infinity: 254 = 127 + 127."""
    b, bits = v.b, v.bits(n)
    if v.avx512:
        signature = ir.FunctionType(v.type, [v.type, v.integer])
        scale = intrinsic(b.module, "llvm.ldexp", [v.type, v.integer], signature)
        return b.call(scale, [v.poly(f, _EXP2), b.sub(bits, v.i(_MAGIC_BITS + 254))])
    half = b.shl(b.lshr(bits, v.i(1)), v.i(23))
    rest = b.sub(b.shl(bits, v.i(23)), half)
    factor = v.from_bits(half)
    scaled = v.fma(v.poly(f, _EXP2[1:]), b.fmul(f, factor), factor)
    return b.fmul(scaled, v.from_bits(rest))


def _down_to(v: _Lanes, low: float, x: ir.Value, power: Callable[[ir.Value], ir.Value]) -> ir.Value:
    """`power` of x, 0 below `low`. On Intel's processors `vscalefps` takes 70 ns for a result that is not normal, but
    none for what a mask leaves out."""
    if not v.avx512:
        return power(v.at_least(x, low))
    return v.b.select(v.less(x, low), v.c(0.0), power(x))


def _exp2(v: _Lanes, x: ir.Value) -> ir.Value:
    def power(x: ir.Value) -> ir.Value:
        x = v.at_most(x, 129.0)
        n = v.b.fadd(x, v.c(_MAGIC + 254))
        return _exp2_scaled(v, v.b.fsub(x, v.b.fsub(n, v.c(_MAGIC + 254))), n)
    return _down_to(v, -151.0, x, power)


def _times_log2e(v: _Lanes, x: ir.Value, sign: float, offset: float) -> tuple[ir.Value, ir.Value]:
    """sign * x * log2(e) as (fraction, integer + _MAGIC + offset), the fraction within [-1/2, 1/2]."""
    n = v.fma(x, sign * _LOG2E_HI, _MAGIC + offset)
    whole = v.b.fsub(n, v.c(_MAGIC + offset))
    return v.fma(x, sign * _LOG2E_LO, v.fma(x, sign * _LOG2E_HI, v.b.fneg(whole))), n


def _exp(v: _Lanes, x: ir.Value) -> ir.Value:
    return _down_to(v, -105.0, x, lambda x: _exp2_scaled(v, *_times_log2e(v, v.at_most(x, 89.0), 1.0, 254)))


def _sigmoid(v: _Lanes, x: ir.Value) -> ir.Value:
    """1 / (1 + exp(-x)) as c / (c + c exp(-x)): c = 2**-32 keeps exp(-x) finite where the result is subnormal."""
    f, n = _times_log2e(v, v.at_most(v.at_least(x, -104.0), 40.0), -1.0, 127 - 32)
    return v.b.fdiv(v.c(2.0**-32), v.fma(v.poly(f, _EXP2), _power(v, n), 2.0**-32))


def _tanh(v: _Lanes, x: ir.Value) -> ir.Value:
    """m / (m + 1) with m = (exp(2 x) - 1) / 2, which keeps the relative accuracy of small x.

    m = 2**n (exp(2 r) - 1) / 2 + (2**n - 1) / 2 with r = x - n ln(2) / 2, for x >= 0. At 10 the quotient is exactly 1.
    """
    b, size = v.b, v.at_most(v.call("llvm.fabs", x), 10.0)
    n = v.fma(size, 2 * _LOG2E_HI, _MAGIC + 127)
    r = v.fma(b.fsub(n, v.c(_MAGIC + 127)), -_LN2_HI / 2, size)
    m = v.fma(b.fmul(r, r), v.poly(r, _EXPM1), r)
    scale = _power(v, n)
    m = v.fma(m, scale, v.fma(scale, 0.5, -0.5))
    return v.call("llvm.copysign", b.fdiv(m, b.fadd(m, v.c(1.0))), x)


def _erf(v: _Lanes, x: ir.Value) -> ir.Value:
    b, size = v.b, v.call("llvm.fabs", x)
    if v.avx512 or v.avx2:
        return v.call("llvm.copysign", _erf_by_pieces(v, size, *_ERF_PIECES[16 if v.avx512 else 4]), x)
    small = v.fma(x, v.poly(b.fmul(x, x), _ERF), x)
    t = v.at_most(size, 4.0)  # 1 - erf(4) < 2**-25
    log2_erfc = b.fmul(t, v.poly(t, _LOG2_ERFC))
    n = b.fadd(log2_erfc, v.c(_MAGIC + 127 + 256))  # 256 sets the sign: the power is -2**n
    f = b.fsub(log2_erfc, b.fsub(n, v.c(_MAGIC + 127 + 256)))
    large = v.fma(v.poly(f, _EXP2), _power(v, n), 1.0)
    return b.select(v.less(size, 0.9), small, v.call("llvm.copysign", large, x))


def _erf_by_pieces(v: _Lanes, size: ir.Value, limit: float, scale: float, rows: Sequence[Sequence[float]]) -> ir.Value:
    """erf of the absolute values."""
    b, t = v.b, v.at_most(size, limit)
    piece = v.bits(v.fma(t, scale, _MAGIC))
    centre, y, *coefficients = (v.entry(row, piece) for row in rows)
    first = b.icmp_signed("<", v.bits(y), v.i(0))
    d = b.fsub(t, centre)
    return v.fma(v.poly(d, coefficients), d, b.select(first, t, y))


# -- logarithms -------------------------------------------------------------------------------------------------------
def _log_parts(v: _Lanes, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """(e, f) with x = 2**e (1 + f), sqrt(1/2) <= 1 + f < sqrt(2), for positive finite x."""
    b, tiny = v.b, v.less(x, 2.0**-126)
    bits = v.bits(b.select(tiny, b.fmul(x, v.c(2.0**23)), x))
    shifted = b.sub(bits, v.i(_SQRT_HALF))
    e = b.sitofp(b.ashr(shifted, v.i(23)), v.type)
    m = v.from_bits(b.add(b.and_(shifted, v.i(0x7FFFFF)), v.i(_SQRT_HALF)))
    return b.select(tiny, b.fsub(e, v.c(23.0)), e), b.fsub(m, v.c(1.0))


def _log_edges(v: _Lanes, x: ir.Value, y: ir.Value) -> ir.Value:
    """The logarithm y, or what belongs to infinity, zero, and negative x or NaN."""
    b, inf = v.b, float("inf")
    y = b.select(v.is_equal(x, inf), v.c(inf), y)
    pole = b.select(v.is_equal(x, 0.0), v.c(-inf), v.c(float("nan")))
    return b.select(b.fcmp_ordered(">", x, v.c(0.0)), y, pole)


def _log(v: _Lanes, x: ir.Value) -> ir.Value:
    b, (e, f) = v.b, _log_parts(v, x)
    tail = v.fma(f, b.fmul(f, v.poly(f, _LOG)), b.fmul(e, v.c(_LN2_LO)))
    return _log_edges(v, x, v.fma(e, _LN2_HI, b.fadd(f, tail)))


def _log2(v: _Lanes, x: ir.Value) -> ir.Value:
    b, (e, f) = v.b, _log_parts(v, x)
    return _log_edges(v, x, b.fadd(e, v.fma(f, _LOG2E_HI, b.fmul(f, v.poly(f, _LOG2)))))


# -- sine and cosine --------------------------------------------------------------------------------------------------
def _sin(v: _Lanes, x: ir.Value) -> ir.Value:
    b, size = v.b, v.call("llvm.fabs", x)
    y = _sin_of_quadrant(v, size, 0)
    sign = b.and_(v.bits(x), v.i(-2**31))
    return _far(v, "sin", x, size, v.from_bits(b.xor(v.bits(y), sign)))


def _cos(v: _Lanes, x: ir.Value) -> ir.Value:
    size = v.call("llvm.fabs", x)
    return _far(v, "cos", x, size, _sin_of_quadrant(v, size, 1))


def _sin_of_quadrant(v: _Lanes, x: ir.Value, ahead: int) -> ir.Value:
    """sin(x + ahead * pi / 2) for 0 <= x <= _SIN_LIMIT, by the reduction of Cody and Waite with fused products.

    The first difference is exact (a multiple of 2**-23, or of ulp(x), below 1), the others are rounded once each.
    """
    b, n = v.b, v.fma(x, _TWO_OVER_PI, _MAGIC + ahead)
    whole = b.fsub(n, v.c(_MAGIC + ahead))
    r = x
    for part in _PIO2:
        r = v.fma(whole, -part, r)
    square = b.fmul(r, r)
    sine, cosine = v.fma(b.fmul(r, square), v.poly(square, _SIN), r), v.poly(square, _COS)
    quadrant = v.bits(n)
    even = b.icmp_signed("==", b.and_(quadrant, v.i(1)), v.i(0))
    sign = b.shl(b.and_(quadrant, v.i(2)), v.i(30))
    return v.from_bits(b.xor(v.bits(b.select(even, sine, cosine)), sign))


def _far(v: _Lanes, name: str, x: ir.Value, size: ir.Value, near: ir.Value) -> ir.Value:
    """`near`, except the C library's result in lanes beyond the reduction's range: a branch that is rarely taken."""
    b = v.b
    far = b.fcmp_ordered(">", size, v.c(_SIN_LIMIT))
    some = far
    if far.type != I1:
        some = b.call(intrinsic(b.module, "llvm.vector.reduce.or", [far.type], ir.FunctionType(I1, [far.type])), [far])
    start = b.block
    with b.if_then(some, likely=False):
        exact = b.select(far, _library(v, name, x), near)
        branch = b.block
    out = b.phi(v.type)
    out.add_incoming(near, start)
    out.add_incoming(exact, branch)
    return out


# -- both widths ------------------------------------------------------------------------------------------------------
def _rsqrt(v: _Lanes, x: ir.Value) -> ir.Value:
    return v.b.fdiv(v.c(1.0), v.call("llvm.sqrt", x))


def _sigmoid_f64(v: _Lanes, x: ir.Value) -> ir.Value:
    """1 / (1 + e) or e / (1 + e), whichever has e = exp(-|x|) <= 1."""
    b, one = v.b, v.c(1.0)
    e = _library(v, "exp", b.fneg(v.call("llvm.fabs", x)))
    return b.fdiv(b.select(v.less(x, 0.0), e, one), b.fadd(one, e))


def _library(v: _Lanes, name: str, x: ir.Value) -> ir.Value:
    """The C library's f64 function of every lane. Vectors go through one loop for each module, name and type."""
    module: Any = v.b.module
    scalar = module.globals.get(name) or ir.Function(module, ir.FunctionType(F64, [F64]), name)

    def one(b: ir.IRBuilder, value: ir.Value) -> ir.Value:
        return b.call(scalar, [value]) if v.element == F64 else \
            b.fptrunc(b.call(scalar, [b.fpext(value, F64)]), F32)
    if not isinstance(v.type, ir.VectorType):
        return one(v.b, x)
    full = f"tl.{name}.{type_name(v.type)}"
    return v.b.call(module.globals.get(full) or _lane_loop(module, full, v.type, one), [x])


def _lane_loop(module: ir.Module, name: str, t: ir.VectorType, one: Callable[[ir.IRBuilder, ir.Value], ir.Value]
               ) -> ir.Function:
    """A function of the module that applies `one` to the lanes in turn, in memory."""
    fn = ir.Function(module, ir.FunctionType(t, [t]), name)
    fn.linkage = "internal"
    fn.attributes.add("noinline")
    entry, loop, done = (fn.append_basic_block(block) for block in ("entry", "lane", "done"))
    b = ir.IRBuilder(entry)
    lanes = b.alloca(t)
    lanes.type = ir.PointerType()  # llvmlite gives a typed pointer; everything here is opaque
    b.store(fn.args[0], lanes)
    b.branch(loop)
    b.position_at_end(loop)
    lane = b.phi(I32)
    lane.add_incoming(I32(0), entry)
    at = b.gep(lanes, [lane], source_etype=t.element)
    b.store(one(b, b.load(at, typ=t.element)), at)
    following = b.add(lane, I32(1))
    lane.add_incoming(following, loop)
    b.cbranch(b.icmp_unsigned("<", following, I32(t.count)), loop, done)
    b.position_at_end(done)
    b.ret(b.load(lanes, typ=t))
    return fn


def _by_library(name: str) -> Callable[[_Lanes, ir.Value], ir.Value]:
    return lambda v, x: _library(v, name, x)


_FUNCTIONS: dict[ir.Type, dict[str, Callable[[_Lanes, ir.Value], ir.Value]]] = {
    F32: {"exp": _exp, "exp2": _exp2, "log": _log, "log2": _log2, "sin": _sin, "cos": _cos, "tanh": _tanh,
          "erf": _erf, "sigmoid": _sigmoid, "rsqrt": _rsqrt},
    F64: {**{name: _by_library(name) for name in ("exp", "exp2", "log", "log2", "sin", "cos", "tanh", "erf")},
          "sigmoid": _sigmoid_f64, "rsqrt": _rsqrt}}


def emit(builder: ir.IRBuilder, name: str, args: Sequence[ir.Value], target: CpuTarget | None) -> ir.Value:
    """Emits the function `name` of f32 or f64 scalars, or of vectors lane by lane; gives the result, of their type.
    The code is for `target`, or for any processor where that is None.

    Names: the keys of `ULP`, whose bounds hold, and the exact floor, ceil, round (ties to even), trunc, abs, fma, min
    and max (NaN if either is NaN). A lane's result does not depend on the number of lanes or on its neighbours.
    sin and cos of f32 end the current block; the builder continues in the block after.
    Raises TargetError for another name or element type.
    """
    v = _Lanes(builder, args[0], target)
    functions = _FUNCTIONS.get(v.element)
    if functions is None:
        raise TargetError(f"`{name}` of {v.element} has no CPU code", needs="f32 or f64", got=str(v.element),
                          try_="cast to f32 first")
    if name in _INTRINSICS:
        return v.call(_INTRINSICS[name], *args)
    if name in _NAN_WINS:  # three instructions on x86; ordering signed zeros, too, which NumPy does not, takes six
        return v.call(_NAN_WINS[name], *args, flags=("nsz",))
    if name not in functions:
        raise TargetError(
            f"`{name}` is not an elementary function of the CPU backend",
            needs=", ".join(sorted({*ULP, *_INTRINSICS, *_NAN_WINS})),
            got=name,
            try_="compose it from these",
        )
    return functions[name](v, args[0])
