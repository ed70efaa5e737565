"""`mma.sync`: products of matrices whose elements lie across a warp as the PTX manual lays them out."""
from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from tilelang.backends.emulator.ptx.numbers import Array, decode

LANES = np.arange(32)
GROUP, LANE = LANES // 4, LANES % 4


def _fp8(mantissa: int) -> Array:
    """The values of an 8-bit float: e4m3 has no infinity and NaN only at all ones."""
    code = np.arange(256)
    exponent, fraction, bias = (code & 127) >> mantissa, code & (1 << mantissa) - 1, 7 if mantissa == 3 else 15
    out = np.where(exponent > 0, np.ldexp(1.0 + fraction / (1 << mantissa), exponent - bias),
                   np.ldexp(fraction / (1 << mantissa), 1 - bias))
    if mantissa == 3:
        out[(code & 127) == 127] = np.nan
    else:
        out[exponent == 31] = np.where(fraction[exponent == 31] > 0, np.nan, np.inf)
    return np.where(code & 128, -out, out)


def _nibbles(x: Array) -> Array:
    return np.stack([x & 15, x >> 4], -1).reshape(*x.shape[:-1], -1)


class Element(NamedTuple):
    bits: int
    decode: Callable[[Array], Array]  # bytes [..., n] to values, the lowest first


_E4M3, _E5M2 = _fp8(3), _fp8(2)
ELEMENTS = {
    "f16": Element(16, lambda x: x.view(np.float16).astype(np.float64)),
    "bf16": Element(16, lambda x: decode(x.view(np.uint16), "bf16").astype(np.float64)),
    "tf32": Element(32, lambda x: decode(x.view(np.uint32), "tf32").astype(np.float64)),
    "e4m3": Element(8, lambda x: _E4M3[x]),
    "e5m2": Element(8, lambda x: _E5M2[x]),
    "s8": Element(8, lambda x: x.view(np.int8).astype(np.float64)),
    "u8": Element(8, lambda x: x.astype(np.float64)),
    "s4": Element(4, lambda x: (_nibbles(x) ^ 8).astype(np.float64) - 8),
    "u4": Element(4, lambda x: _nibbles(x).astype(np.float64)),
    "b1": Element(1, lambda x: np.unpackbits(x, axis=-1, bitorder="little").astype(np.float64)),
    "f64": Element(64, lambda x: x.view(np.float64)),
}


@dataclass(frozen=True)
class Product:
    """One shape: types of the registers of D, A, B, C, and how many of each. `small` is 8 by 8, the others 16 by 8."""

    small: bool
    depth: int
    a: Element
    b: Element
    result: str
    population: str  # for bits: "and", "xor"

    @property
    def registers(self) -> tuple[str, str, str, str]:
        inner = "f64" if self.result == "f64" else "b32"
        return self.result, inner, inner, self.result

    @property
    def counts(self) -> tuple[int, int, int, int]:
        if self.small:
            return 2, 1, 1, 2
        a = 16 * self.depth * self.a.bits // 1024
        return 4, a, a // 2, 4

    def run(self, a: Array, b: Array, c: Array) -> Array:
        """[warp, lane, register] of A, B and C to that of D."""
        x, y = self._matrix(a, self.a, True), self._matrix(b, self.b, False)
        product = x @ y.swapaxes(1, 2)  # exact for integers; floats are rounded once, at the end
        if self.population == "xor":
            product = x.sum(2)[:, :, None] + y.sum(2)[:, None, :] - 2 * product
        at = np.arange(c.shape[2])
        rows, columns = GROUP[:, None] + 8 * (at // 2), 2 * LANE[:, None] + at % 2
        d = product[:, rows, columns]
        if self.result == "s32":
            return (d.astype(np.int64) + c).astype(np.int32)  # wraps
        return (d + c).astype(c.dtype)

    def _matrix(self, registers: Array, element: Element, is_a: bool) -> Array:
        """Fragments to [warp, row, k]; B's rows are its columns."""
        warps, _, count = registers.shape
        values = element.decode(np.ascontiguousarray(registers).view(np.uint8)).reshape(warps, 32, count, -1)
        rows, ks = _places(count, values.shape[3], is_a, self.small)
        out = np.zeros((warps, 8 if self.small or not is_a else 16, self.depth))
        out[:, rows, ks] = values
        return out


@lru_cache(maxsize=64)
def _places(count: int, per: int, is_a: bool, small: bool) -> tuple[Array, Array]:
    """Row and k of every [lane, register, element]. Register r of A is in the upper or lower eight rows by its lowest
    bit; the other bits, and all of B's, go along k."""
    r, e = np.arange(count)[:, None], np.arange(per)
    half, along = (r % 2, r // 2) if is_a and not small else (0 * r, r)
    return GROUP[:, None, None] + 8 * half + 0 * e, (along * 4 + LANE[:, None, None]) * per + e


_SHAPES: dict[tuple[str, str], tuple[tuple[str, ...], str]] = {  # types of A and B: shapes, accumulator
    ("f16", "f16"): (("m16n8k8", "m16n8k16"), "f32"),
    ("bf16", "bf16"): (("m16n8k16",), "f32"),
    ("tf32", "tf32"): (("m16n8k8",), "f32"),
    **{(t, t): (("m16n8k32",), "f32") for t in ("e4m3", "e5m2")},
    **{(a, b): (("m8n8k16", "m16n8k32"), "s32") for a in ("s8", "u8") for b in ("s8", "u8")},
    **{(a, b): (("m8n8k32", *(("m16n8k64",) if a == b else ())), "s32") for a in ("s4", "u4") for b in ("s4", "u4")},
    ("b1", "b1"): (("m16n8k128", "m16n8k256"), "s32"),
    ("f64", "f64"): (("m8n8k4",), "f64"),
}


def find(name: str) -> Product | None:
    """The product that an instruction's name asks for; None where it is not covered."""
    found = re.fullmatch(r"mma\.sync\.aligned\.(m\d+n8k(\d+))\.row\.col\.(\w+)\.(\w+)\.(\w+)\.(\w+)"
                         r"(?:\.(and|xor)\.popc)?", name)
    if found is None:
        return None
    shape, depth, d, a, b, c, population = found.groups(default="")
    shapes, result = _SHAPES.get((a, b), ((), ""))
    if shape not in shapes or d != result or c != result or (a == "b1") != bool(population):
        return None
    return Product(shape.startswith("m8"), int(depth), ELEMENTS[a], ELEMENTS[b], result, population)
