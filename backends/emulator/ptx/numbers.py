"""Arithmetic of PTX types on NumPy arrays, where NumPy's differs: rounding, conversion, approximations."""
from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Collection
from functools import lru_cache
from typing import Any

import numpy as np

from tilelang.ir.elementwise import odd_fma

Array = np.ndarray[Any, Any]
DTYPES: dict[str, type[np.generic]] = {
    "pred": np.bool_, "f16": np.float16, "bf16": np.uint16, "tf32": np.uint32, "f32": np.float32, "f64": np.float64,
    "f16x2": np.uint32, "bf16x2": np.uint32, "b8": np.uint8, "b16": np.uint16, "b32": np.uint32, "b64": np.uint64,
    "u8": np.uint8, "u16": np.uint16, "u32": np.uint32, "u64": np.uint64,
    "s8": np.int8, "s16": np.int16, "s32": np.int32, "s64": np.int64,
}  # bf16, tf32 and pairs are kept as their bits
FLOATS = ("f16", "bf16", "tf32", "f32", "f64")
WIDE = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
NAN16 = np.uint16(0x7FFF)


# -- rounding to f32 --------------------------------------------------------------------------------------------------
def to_f32(x: Array, mode: str) -> Array:
    """f64 to f32 by `rn`, `rz`, `rm` or `rp`."""
    near = x.astype(np.float32)
    if mode == "rn":
        return near
    back, finite = near.astype(np.float64), np.isfinite(x)
    toward = np.float32({"rz": 0, "rm": -np.inf, "rp": np.inf}[mode])
    beyond = {"rz": abs(back) > abs(x), "rm": back > x, "rp": back < x}[mode] & finite
    return np.where(beyond, np.nextafter(near, toward), near)


@lru_cache(maxsize=1)
def _fma() -> Any:
    """C's fma, one element at a time: kernels in f64 are few."""
    f = ctypes.CDLL(ctypes.util.find_library("m")).fma
    f.restype, f.argtypes = ctypes.c_double, (ctypes.c_double,) * 3
    return np.frompyfunc(f, 3, 1)


def fma_halves(a: Array, b: Array, c: Array) -> Array:
    """Both f16 numbers of each word."""
    a, b, c = (x.view(np.float16).astype(np.float32) for x in (a, b, c))
    return odd_fma(a, b, c).astype(np.float16).view(np.uint32)


def fma_f64(a: Array, b: Array, c: Array) -> Array:
    return np.asarray(_fma()(a, b, c), np.float64)


def flush(x: Array) -> Array:
    """Subnormal numbers become zeros of their sign."""
    return np.where(abs(x) < np.finfo(x.dtype).tiny, np.copysign(x.dtype.type(0), x), x)


# -- conversions ------------------------------------------------------------------------------------------------------
def decode(x: Array, t: str) -> Array:
    """The values of any float type, as f32 or f64."""
    if t == "bf16":
        return (x.astype(np.uint32) << 16).view(np.float32)
    if t == "tf32":  # the low bits are not read
        return (x & np.uint32(0xFFFFE000)).view(np.float32)
    return x.astype(np.float32) if t == "f16" else x


def encode(x: Array, t: str, mode: str = "rn") -> Array:
    """Values in f32 or f64, rounded to a float type. NaN becomes the one that the hardware makes."""
    if t == "f64":
        return x.astype(np.float64)
    if t == "f32":
        return to_f32(x, mode)
    if t == "f16" and mode == "rn":
        return np.where(np.isnan(x), NAN16, x.astype(np.float16).view(np.uint16)).view(np.float16)
    bits = x.astype(np.float32).view(np.uint32)
    if t == "bf16" and mode == "rn":
        rounded = (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)
        return np.where(np.isnan(x), NAN16, rounded)
    if t == "tf32" and mode == "rna":
        return np.where(np.isfinite(x), bits + 0x1000 & 0xFFFFE000, bits)
    raise NotImplementedError(f"rounding {mode} to {t}")


def to_integer(x: Array, t: str, mode: str) -> Array:
    """Rounded by `rni`, `rzi`, `rmi` or `rpi` and clamped to an integer type; NaN is 0."""
    x = integral(x.astype(np.float64), mode)
    info: Any = np.iinfo(DTYPES[t])
    low, high = x <= float(info.min), x >= float(info.max)
    out: Array = np.where(low | high | np.isnan(x), 0, x).astype(info.dtype)
    out[low], out[high] = info.min, info.max
    return out


def integral(x: Array, mode: str) -> Array:
    out: Array = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[mode](x)
    return out


def convert(x: Array, source: str, result: str, mods: Collection[str]) -> Array:
    """`cvt.MODS.RESULT.SOURCE`."""
    whole = next((m for m in mods if m in ("rni", "rzi", "rmi", "rpi")), "")
    mode = next((m for m in mods if m in ("rn", "rz", "rm", "rp", "rna")), "rn")
    dtype = DTYPES[result]
    if source in FLOATS:
        x = decode(x, source)
        if result not in FLOATS:
            return to_integer(x, result, whole)
        return encode(integral(x, whole) if whole else x, result, mode)
    if result in FLOATS:
        if mode != "rn" and x.dtype.itemsize == 8:
            raise NotImplementedError(f"rounding {mode} from {source}")
        return encode(x.astype(np.float64), result, mode) if mode != "rn" else x.astype(dtype)
    if "sat" in mods:
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max  # type: ignore[type-var]
        own: Any = np.iinfo(x.dtype)
        x = np.clip(x, max(low, own.min), min(high, own.max))
    return x.astype(dtype)


def pair(high: Array, low: Array, t: str, finite: bool) -> Array:
    """`cvt.rn.bf16x2.f32`: two f32 as bf16 of one word, with `satfinite` the largest where they are beyond."""
    def one(x: Array) -> Array:
        most = decode(np.asarray(0x7F7F, np.uint16), t)
        return encode(np.clip(x, -most, most) if finite else x, t).astype(np.uint32)
    return one(high) << 16 | one(low)


# -- integers ---------------------------------------------------------------------------------------------------------
def shift_left(x: Array, n: Array) -> Array:
    """Counts beyond the width shift everything out."""
    bits = 8 * x.dtype.itemsize
    return np.where(n < bits, x << np.minimum(n, bits - 1).astype(x.dtype), x.dtype.type(0))


def shift_right(x: Array, n: Array) -> Array:
    bits = 8 * x.dtype.itemsize
    out = x >> np.minimum(n, bits - 1).astype(x.dtype)
    return out if x.dtype.kind == "i" else np.where(n < bits, out, x.dtype.type(0))


def divide(a: Array, b: Array) -> Array:
    """Toward zero."""
    out: Array = (a - np.fmod(a, b)) // b
    return out


def multiply_high(a: Array, b: Array) -> Array:
    """The upper half of the product."""
    n = 8 * a.dtype.itemsize
    if n < 64:
        wide = np.int64 if a.dtype.kind == "i" else np.uint64
        return (a.astype(wide) * b.astype(wide) >> wide(n)).astype(a.dtype)
    x, y, low, half = a.view(np.uint64), b.view(np.uint64), np.uint64(0xFFFFFFFF), np.uint64(32)
    middle = (x >> half) * (y & low) + ((x & low) * (y & low) >> half)
    other = (x & low) * (y >> half) + (middle & low)
    high = (x >> half) * (y >> half) + (middle >> half) + (other >> half)
    if a.dtype.kind == "i":
        high -= np.where(a < 0, y, np.uint64(0)) + np.where(b < 0, x, np.uint64(0))
    return high.view(a.dtype)


def mask(n: Array, dtype: Any) -> Array:
    """The lowest n bits set."""
    return shift_left(np.ones_like(n, dtype), n) - dtype.type(1)


def extract(a: Array, at: Array, n: Array) -> Array:
    """`bfe`: n bits from bit `at`; signed types repeat the highest of them."""
    at, n, bits = at & 255, n & 255, 8 * a.dtype.itemsize
    u = a.view(UNSIGNED[a.dtype.itemsize])
    field = shift_right(u, at) & mask(n, u.dtype)
    if a.dtype.kind == "i":
        sign = u >> np.minimum(at + n - 1, bits - 1).astype(u.dtype) & u.dtype.type(1)
        field |= np.where((sign == 1) & (n > 0), ~mask(n, u.dtype), u.dtype.type(0))
    return field.view(a.dtype)


def insert(a: Array, b: Array, at: Array, n: Array) -> Array:
    """`bfi`: b with the lowest n bits of a at bit `at`."""
    at, n = at & 255, n & 255
    field = shift_left(mask(n, a.dtype), at)
    return b & ~field | shift_left(a, at) & field


def permute(a: Array, b: Array, selector: Array) -> Array:
    """`prmt`: any four of the bytes of a, then b; the highest bit of a selector repeats that byte's sign."""
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    out = np.zeros_like(a)
    for i in range(4):
        s = selector >> 4 * i & 15
        byte = (both >> (8 * (s & 7)).astype(np.uint64) & np.uint64(255)).astype(np.uint32)
        byte = np.where(s & 8, np.where(byte & 128, np.uint32(255), np.uint32(0)), byte)
        out |= byte << np.uint32(8 * i)
    return out


def lookup(a: Array, b: Array, c: Array, table: Array) -> Array:
    """`lop3`: any function of three bits."""
    out = np.zeros_like(a)
    for i in range(8):
        if table[0] >> i & 1:
            out |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    return out


def dot4(a: Array, b: Array, c: Array) -> Array:
    """`dp4a`: c + the products of the four bytes, which have the signs of their words' types."""
    total = c.astype(np.int64)
    for i in range(4):
        x, y = (v.view(np.int8 if v.dtype.kind == "i" else np.uint8)[..., i::4].astype(np.int64) for v in (a, b))
        total += x * y
    return total.astype(np.uint32)


def leading_zeros(x: Array) -> Array:
    bits = 8 * x.dtype.itemsize
    out = np.zeros(x.shape, np.uint32)
    for i in range(bits - 1, -1, -1):
        out += x >> x.dtype.type(i) == 0
    return out
