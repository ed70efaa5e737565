"""The instructions that compute registers from registers: one row for each family, with types as data.

A form's signature has a letter for each result and operand: `t` and `d` are the last and the first type in the
instruction's name, `w` twice the width of `t`, `u` u32, `p` a predicate, `c` the carry.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tilelang.backends.emulator.ptx import numbers as n
from tilelang.backends.emulator.ptx.numbers import Array
from tilelang.backends.emulator.ptx.parse import TYPES, uncovered
from tilelang.ir.elementwise import odd_fma

Function = Callable[..., Any]


@dataclass(frozen=True)
class Mnemonic:
    """The parts of an instruction's name."""

    name: str
    mods: tuple[str, ...]
    types: tuple[str, ...]

    @property
    def type(self) -> str:
        return self.types[-1]

    @property
    def is_float(self) -> bool:
        return self.type in n.FLOATS

    def one_of(self, *names: str) -> str:
        """The modifier among `names` that stands in the name, or none."""
        return next((m for m in self.mods if m in names), "")


def mnemonic(text: str) -> Mnemonic:
    first, *parts = text.split(".")
    return Mnemonic(first, tuple(p for p in parts if p not in TYPES), tuple(p for p in parts if p in TYPES))


class Form(NamedTuple):
    make: Callable[[Mnemonic], Function]
    signature: str
    modifiers: frozenset[str]


def _rounded(m: Mnemonic, native: Function, parts: Callable[..., tuple[Array, Array, Array]]) -> Function:
    """An operation on floats: NumPy's, or through f64 for another rounding than to nearest."""
    mode = m.one_of("rz", "rm", "rp")
    if not mode:
        return native
    if m.type != "f32":
        raise NotImplementedError(f"{m.name}.{mode} of {m.type}")
    return lambda *args: n.to_f32(odd_fma(*parts(*args)), mode)


def _add(m: Mnemonic) -> Function:
    return _rounded(m, np.add, lambda a, b: (a, np.ones_like(a), b)) if m.is_float else np.add


def _sub(m: Mnemonic) -> Function:
    return _rounded(m, np.subtract, lambda a, b: (b, -np.ones_like(b), a)) if m.is_float else np.subtract


def _mul(m: Mnemonic) -> Function:
    if m.is_float:
        return _rounded(m, np.multiply, lambda a, b: (a, b, np.copysign(np.zeros_like(a), -1)))
    if "wide" in m.mods:
        wide = n.DTYPES[n.WIDE[m.type]]
        return lambda a, b: a.astype(wide) * b.astype(wide)
    return n.multiply_high if "hi" in m.mods else np.multiply


def _mad(m: Mnemonic) -> Function:
    if m.is_float:
        return _fma(m)
    product = _mul(m)
    return lambda a, b, c: product(a, b) + c


def _fma(m: Mnemonic) -> Function:
    if m.type == "f64" and not m.one_of("rz", "rm", "rp"):
        return n.fma_f64
    if m.type == "f16x2" and m.mods == ("rn",):
        return n.fma_halves
    if m.type == "f32":
        mode = m.one_of("rz", "rm", "rp") or "rn"
        return lambda a, b, c: n.to_f32(odd_fma(a, b, c), mode)
    raise NotImplementedError(f"fma of {m.type}")


def _carrying(m: Mnemonic, use: bool, give: bool) -> Function:
    """Arithmetic of 32 bits in 64, where the carry is bit 32, and the borrow the sign."""
    if TYPES[m.type] != 4:
        raise NotImplementedError(f"{m.name} with carry of {m.type}")
    kind = m.name.removesuffix("c")

    def run(*args: Array) -> Any:
        *values, carry = args if use else (*args, np.zeros(1, bool))
        a, b, *c = (v.view(np.uint32).astype(np.int64) for v in values)
        if kind == "mad":
            product = a.view(np.uint64) * b.view(np.uint64)
            part = product >> np.uint64(32) if "hi" in m.mods else product & np.uint64(0xFFFFFFFF)
            total = part.view(np.int64) + c[0] + carry
        else:
            total = a + b + carry if kind == "add" else a - b - carry
        low = total.astype(np.uint32)
        return (low, total >> 32 != 0) if give else low
    return run


def _extreme(m: Mnemonic) -> Function:
    """Without `.NaN` a number wins over NaN; of two zeros the sign decides."""
    largest = m.name == "max"
    if not m.is_float or "NaN" in m.mods:
        return np.maximum if largest else np.minimum
    if largest:
        return lambda a, b: np.where((a == 0) & (b == 0), a + b, np.fmax(a, b))
    return lambda a, b: np.where((a == 0) & (b == 0), -(-a - b), np.fmin(a, b))


_ORDER: dict[str, Function] = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
                               "gt": np.greater, "ge": np.greater_equal, "lo": np.less, "ls": np.less_equal,
                               "hi": np.greater, "hs": np.greater_equal}
_JOIN: dict[str, Function] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
COMPARISONS = (*_ORDER, "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan")


def _compare(m: Mnemonic) -> Function:
    """Comparisons of floats are false for NaN, those that end in u true."""
    name = m.one_of(*COMPARISONS)

    def compare(a: Array, b: Array) -> Array:
        if name in ("num", "nan"):
            unordered = np.isnan(a) | np.isnan(b)
            return unordered if name == "nan" else ~unordered
        if name in _ORDER:
            out: Array = _ORDER[name](a, b)
            return out & ~(np.isnan(a) | np.isnan(b)) if name == "ne" and m.is_float else out
        return _ORDER[name[:-1]](a, b) | np.isnan(a) | np.isnan(b)
    join = m.one_of(*_JOIN)

    def run(a: Array, b: Array, *other: Array) -> tuple[Array, Array]:
        out = compare(a, b)
        if not other:
            return out, ~out
        return _JOIN[join](out, other[0]), _JOIN[join](~out, other[0])
    return run


def _approximate(f: Function) -> Callable[[Mnemonic], Function]:
    """In f64, rounded: better than the hardware, whose error the tests allow for."""
    def make(m: Mnemonic) -> Function:
        if m.type == "f32":
            return lambda x: f(x.astype(np.float64)).astype(np.float32)
        if "approx" in m.mods and "ftz" in m.mods:  # gives the upper word only
            return lambda x: (f(x).view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(np.float64)
        return f
    return make


def _native(f: Function) -> Callable[[Mnemonic], Function]:
    def make(m: Mnemonic) -> Function:
        if m.one_of("rz", "rm", "rp"):
            raise NotImplementedError(f"{m.name} rounded other than to nearest")
        return f
    return make


def _divide(m: Mnemonic) -> Function:
    return _native(np.divide)(m) if m.is_float else n.divide


def _funnel(m: Mnemonic) -> Function:
    left, wrap = "l" in m.mods, "wrap" in m.mods

    def run(low: Array, high: Array, count: Array) -> Array:
        both = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
        by = (count & 31 if wrap else np.minimum(count, 32)).astype(np.uint64)
        return (both << by >> np.uint64(32) if left else both >> by).astype(np.uint32)
    return run


def _cvta(m: Mnemonic) -> Function:
    """Global addresses are generic ones; the other spaces have windows among them."""
    window = np.uint64(WINDOWS.get(m.one_of("shared", "local"), 0))
    return (lambda a: a - window) if "to" in m.mods else (lambda a: a + window)


def _same(f: Function) -> Callable[[Mnemonic], Function]:
    return lambda m: f


WINDOWS = {"shared": 1 << 60, "local": 1 << 61}
"""Where the addresses of a space lie among generic ones."""

_ROUND = "rn rz rm rp ftz sat"
_TABLE: tuple[tuple[str, str, Callable[[Mnemonic], Function], str], ...] = (
    ("mov", "t=t", _same(lambda a: a), ""),
    ("add", "t=tt", _add, _ROUND),
    ("sub", "t=tt", _sub, _ROUND),
    ("mul", "t=tt", _mul, _ROUND + " lo hi"),
    ("mul.wide", "w=tt", _mul, "wide"),
    ("mad", "t=ttt", _mad, _ROUND + " lo hi"),
    ("mad.wide", "w=ttw", _mad, "wide"),
    ("fma", "t=ttt", _fma, _ROUND),
    *((f"{name}.cc", f"tc={'ttt' if name == 'mad' else 'tt'}", lambda m: _carrying(m, False, True), "cc lo hi")
      for name in ("add", "sub", "mad")),
    *((f"{name}c.cc", f"tc={'ttt' if name == 'mad' else 'tt'}c", lambda m: _carrying(m, True, True), "cc lo hi")
      for name in ("add", "sub", "mad")),
    *((f"{name}c", f"t={'ttt' if name == 'mad' else 'tt'}c", lambda m: _carrying(m, True, False), "lo hi")
      for name in ("add", "sub", "mad")),
    ("div", "t=tt", _divide, _ROUND + " approx full"),
    ("rem", "t=tt", _same(np.fmod), ""),
    ("min", "t=tt", _extreme, "NaN ftz"),
    ("max", "t=tt", _extreme, "NaN ftz"),
    ("abs", "t=t", _same(np.abs), "ftz"),
    ("neg", "t=t", _same(np.negative), "ftz"),
    ("copysign", "t=tt", _same(lambda a, b: np.copysign(b, a)), ""),
    ("and", "t=tt", _same(np.bitwise_and), ""),
    ("or", "t=tt", _same(np.bitwise_or), ""),
    ("xor", "t=tt", _same(np.bitwise_xor), ""),
    ("not", "t=t", _same(np.invert), ""),
    ("shl", "t=tu", _same(n.shift_left), ""),
    ("shr", "t=tu", _same(n.shift_right), ""),
    ("shf", "t=ttu", _funnel, "l r wrap clamp"),
    ("bfe", "t=tuu", _same(n.extract), ""),
    ("bfi", "t=ttuu", _same(n.insert), ""),
    ("prmt", "t=ttt", _same(n.permute), ""),
    ("lop3", "t=tttu", _same(n.lookup), ""),
    ("dp4a", "u=dtu", _same(n.dot4), ""),
    ("popc", "u=t", _same(lambda a: np.bitwise_count(a).astype(np.uint32)), ""),
    ("clz", "u=t", _same(n.leading_zeros), ""),
    ("selp", "t=ttp", _same(lambda a, b, p: np.where(p, a, b)), ""),
    ("setp", "pp=tt", _compare, " ".join((*COMPARISONS, *_JOIN)) + " ftz"),
    ("cvt", "d=t", lambda m: lambda x: n.convert(x, m.types[1], m.types[0], m.mods),
     "rn rz rm rp rna rni rzi rmi rpi ftz sat"),
    ("cvt.bf16x2", "d=tt", lambda m: lambda a, b: n.pair(a, b, "bf16", "satfinite" in m.mods), "rn satfinite"),
    ("cvta", "t=t", _cvta, "to global shared local param"),
    ("rcp", "t=t", lambda m: (_approximate if "approx" in m.mods else _native)(lambda x: 1 / x)(m), "approx rn ftz"),
    ("sqrt", "t=t", lambda m: (_approximate if "approx" in m.mods else _native)(np.sqrt)(m), "approx rn ftz"),
    ("rsqrt", "t=t", _approximate(lambda x: 1 / np.sqrt(x)), "approx ftz"),
    ("ex2", "t=t", _approximate(np.exp2), "approx ftz"),
    ("lg2", "t=t", _approximate(np.log2), "approx ftz"),
    ("sin", "t=t", _approximate(np.sin), "approx ftz"),
    ("cos", "t=t", _approximate(np.cos), "approx ftz"),
    ("tanh", "t=t", _approximate(np.tanh), "approx ftz"),
)
FORMS = {name: Form(make, signature, frozenset(mods.split())) for name, signature, make, mods in _TABLE}


def find(m: Mnemonic) -> Form | None:
    """The form of an instruction; None where it is none of these. Raises PtxError for a modifier it lacks."""
    marked = next((f"{m.name}.{mod}" for mod in ("cc", "wide", "bf16x2") if mod in (*m.mods, *m.types)), m.name)
    form = FORMS.get(marked)
    if form is not None and (unknown := set(m.mods) - form.modifiers):
        raise uncovered(f"`{m.name}` with `.{sorted(unknown)[0]}`")
    return form


def function(form: Form, m: Mnemonic) -> Function:
    """What the form computes; flushes and saturates where the name says so. Raises PtxError."""
    try:
        f = form.make(m)
    except NotImplementedError as e:
        raise uncovered(str(e)) from None
    if not {"ftz", "sat"} & set(m.mods) or m.types[0] not in ("f32", "f64"):
        return f
    flush, clamp = "ftz" in m.mods and m.name != "setp", "sat" in m.mods

    def run(*args: Array) -> Any:
        if "ftz" in m.mods:
            args = tuple(n.flush(a) if a.dtype.kind == "f" else a for a in args)
        out = f(*args)
        if clamp:
            out = np.where(np.isnan(out), 0, np.clip(out, 0, 1)).astype(out.dtype)
        return n.flush(out) if flush else out
    return run
