"""The table of number types. One row per family; limits, storage and names are derived from bits and codec.

Sources: OCP 8-bit floating point (OFP8) 1.0, OCP microscaling (MX) 1.0, IEEE 754-2019; sub-byte floats have bias
2**(e-1) - 1 (0 for e = 1) and neither infinity nor NaN.
"""
from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class DType:
    """A number type: `bits` and a codec (see `tilelang.ir.codec`).

    `kind` is bool, int, uint, float, bipolar ({-1, +1}-weighted bits), ternary, scale (e8m0) or codebook. Instances
    are interned: equal types are the same object.
    """

    name: str
    bits: int
    kind: str
    exponent_bits: int = 0
    mantissa_bits: int = 0
    bias: int = 0
    nonfinite: str = "none"
    """Floats: "ieee" (inf and NaN), "fn" (NaN is S.11…1 only), "fnuz" (NaN is the code of -0), or "none"."""
    table: tuple[float, ...] = field(default=(), repr=False)

    def __repr__(self) -> str:
        return self.name

    __str__ = __repr__

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return dtype, (self.name,)

    @property
    def is_float(self) -> bool:
        return self.kind in ("float", "scale", "codebook")

    @property
    def is_integer(self) -> bool:
        return self.kind in ("int", "uint", "bool")

    @property
    def is_signed(self) -> bool:
        return self.kind not in ("uint", "bool", "scale")

    @property
    def has_inf(self) -> bool:
        return self.nonfinite == "ieee"

    @property
    def has_nan(self) -> bool:
        return self.nonfinite != "none"

    @property
    def arithmetic(self) -> bool:
        """Whether + - * are defined on the type itself; the others must be cast first."""
        return self.kind in ("int", "uint", "bool") or self.name in ("f16", "bf16", "f32", "f64")

    @cached_property
    def packed(self) -> bool:
        """Whether tensors of the type are bit streams: of every width that NumPy's numbers lack, 24 bits for instance.
        i1 is stored by bytes, as NumPy and torch do."""
        return self.bits != 8 * self.storage.itemsize and self.kind != "bool"

    @cached_property
    def native(self) -> bool:
        """Whether NumPy has the type."""
        return self.name in _NUMPY

    @cached_property
    def storage(self) -> Any:
        """NumPy dtype that holds one element: the value itself for native types and for integers of odd widths
        (in the next wider integer), the code (bit pattern) for every other type."""
        if self.native:
            return np.dtype(_NUMPY[self.name])
        if self.kind in ("int", "uint"):
            width = next(w for w in (8, 16, 32, 64) if w >= self.bits)
            return np.dtype(f"{'i' if self.kind == 'int' else 'u'}{width // 8}")
        return np.dtype(f"u{next(w for w in (8, 16, 32, 64) if w >= self.bits) // 8}")

    @property
    def memory_bits(self) -> int:
        """Bits from one element of a tensor to the next."""
        return self.bits if self.packed else 8 * int(self.storage.itemsize)

    @property
    def compute(self) -> DType:
        """The type whose arithmetic represents every value: f32 or f64 for floats, itself for integers."""
        if self.kind in ("int", "uint", "bool"):
            return self
        if self.kind in ("bipolar", "ternary"):
            return dtype("i32")
        return dtype("f64" if self.name == "f64" else "f32")

    @property
    def min(self) -> Any:
        """The smallest finite value."""
        match self.kind:
            case "bool" | "uint":
                return 0
            case "int":
                return -(1 << self.bits - 1)
            case "bipolar":
                return 1 - (1 << self.bits)
            case "ternary":
                return -1
            case "codebook":
                return min(self.table)
            case "scale":
                return 2.0 ** -127
        return -self.max

    @property
    def max(self) -> Any:
        """The largest finite value."""
        match self.kind:
            case "bool":
                return 1
            case "uint" | "bipolar":
                return (1 << self.bits) - 1
            case "int":
                return (1 << self.bits - 1) - 1
            case "ternary":
                return 1
            case "codebook":
                return max(self.table)
            case "scale":
                return 2.0 ** 127
        top, fraction = (1 << self.exponent_bits) - 1, (1 << self.mantissa_bits) - 1
        if self.nonfinite == "ieee":
            top -= 1
        elif self.nonfinite == "fn":
            fraction -= 1
        if top == 0:
            return fraction * self.smallest_subnormal
        return (1 + fraction / (1 << self.mantissa_bits)) * 2.0 ** (top - self.bias)

    @property
    def overflow_code(self) -> int:
        """The code, without its sign, that a float too large for the type becomes: infinity, or the largest value."""
        top = (1 << self.exponent_bits + self.mantissa_bits) - 1
        inf = top >> self.mantissa_bits << self.mantissa_bits
        return {"ieee": inf, "fn": top - 1, "fnuz": top, "none": top}[self.nonfinite]

    @property
    def nan_code(self) -> int:
        """The code that NaN becomes; that of the largest value where the type has none."""
        top, m_bits = (1 << self.exponent_bits + self.mantissa_bits) - 1, self.mantissa_bits
        quiet = self.overflow_code | (1 << m_bits - 1 if m_bits else 0)
        return {"ieee": quiet, "fn": top, "fnuz": top + 1, "none": top}[self.nonfinite]

    @property
    def smallest_normal(self) -> float:
        return float(2.0 ** (1 - self.bias))

    @property
    def smallest_subnormal(self) -> float:
        return float(2.0 ** (1 - self.bias - self.mantissa_bits))


_NUMPY = {
    "i1": "?",
    "i8": "i1",
    "i16": "i2",
    "i32": "i4",
    "i64": "i8",
    "u8": "u1",
    "u16": "u2",
    "u32": "u4",
    "u64": "u8",
    "f16": "f2",
    "f32": "f4",
    "f64": "f8",
}
_FLOATS = {  # name: (bits, exponent bits, mantissa bits, bias, non-finite values)
    "f16": (16, 5, 10, 15, "ieee"), "bf16": (16, 8, 7, 127, "ieee"), "tf32": (32, 8, 10, 127, "ieee"),
    "f32": (32, 8, 23, 127, "ieee"), "f64": (64, 11, 52, 1023, "ieee"),
    "f8e4m3": (8, 4, 3, 7, "fn"), "f8e5m2": (8, 5, 2, 15, "ieee"),
    "f8e4m3fnuz": (8, 4, 3, 8, "fnuz"), "f8e5m2fnuz": (8, 5, 2, 16, "fnuz"),
}
ALIASES = {"bool": "i1", "bool_": "i1", "float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64",
            "float8_e4m3fn": "f8e4m3", "float8_e5m2": "f8e5m2", "float8_e4m3fnuz": "f8e4m3fnuz",
            "float8_e5m2fnuz": "f8e5m2fnuz", "float8_e8m0fnu": "e8m0", "float6_e3m2fn": "f6e3m2",
            "float6_e2m3fn": "f6e2m3", "float4_e2m1fn": "f4e2m1"}


_interned: dict[str, DType] = {}


@cache
def dtype(name: str) -> DType:
    """The type of that name. Raises ValueError for an unknown one."""
    made = _made(ALIASES.get(name, name))
    return _interned.setdefault(made.name, made)  # one object, whichever thread and name came first


def _made(name: str) -> DType:
    if name == "i1":
        return DType(name, 1, "bool")
    if m := re.fullmatch(r"([ius])(\d+)", name):
        bits, kind = int(m[2]), {"i": "int", "u": "uint", "s": "bipolar"}[m[1]]
        if 1 <= bits <= (8 if kind == "bipolar" else 64):
            return DType(name, bits, kind)
    if m := re.fullmatch(r"(u?)int(\d+)", name):
        return dtype(f"{'u' if m[1] else 'i'}{m[2]}")
    if name in _FLOATS:
        bits, e, m_bits, bias, nonfinite = _FLOATS[name]
        return DType(name, bits, "float", e, m_bits, bias, nonfinite)
    if m := re.fullmatch(r"f([3-8])e(\d)m(\d)", name):
        bits, e, mant = int(m[1]), int(m[2]), int(m[3])
        if e >= 1 and 1 + e + mant == bits:
            return DType(name, bits, "float", e, mant, (1 << e - 1) - 1)
    if name == "e8m0":
        return DType(name, 8, "scale", 8, 0, 127, "fn")
    if name == "ternary":
        return DType(name, 2, "ternary")
    if m := re.fullmatch(r"codebook\((\d+), \[(.*)\]\)", name):
        return codebook(int(m[1]), [float(x) for x in m[2].split(",")])
    raise ValueError(f"unknown dtype {name!r}: needs i1..i64, u1..u64, s1..s8, f16, bf16, tf32, f32, f64, "
                     f"f<bits>e<e>m<m> of 3 to 8 bits, e8m0, ternary or codebook(bits, [...])")


def codebook(bits: int, table: Any) -> DType:
    """A type of `bits` bits whose code c means `table[c]`; the table has 2**bits finite entries."""
    values = tuple(float(x) for x in table)
    if not 1 <= bits <= 8 or len(values) != 1 << bits or not np.all(np.isfinite(values)):
        raise ValueError(f"a codebook of {bits} bits needs 1 to 8 bits and {1 << bits} finite entries, "
                         f"got {len(values)}")
    name = f"codebook({bits}, [{', '.join(map(repr, values))}])"
    return _interned.setdefault(name, DType(name, bits, "codebook", table=values))


def names() -> list[str]:
    """Every fixed name in the table (codebooks excepted)."""
    ints = [f"{k}{n}" for k in "iu" for n in range(1, 65)] + [f"s{n}" for n in range(1, 9)]
    small = [f"f{b}e{e}m{b - 1 - e}" for b in range(3, 9) for e in range(1, b)]
    return [*ints, *_FLOATS, *(n for n in small if n not in _FLOATS), "e8m0", "ternary"]


def from_external(obj: Any) -> DType:
    """The type of a NumPy (ml_dtypes included) or torch dtype. Raises ValueError for one without a counterpart."""
    text = obj.name if isinstance(obj, np.dtype) else str(obj)
    return dtype(text.removeprefix("torch."))
