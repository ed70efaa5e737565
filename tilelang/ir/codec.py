"""Codecs: bit patterns to values and back, and the conversion between every pair of types.

Rounding is to nearest even, once, from the exact value. Out of range: formats with infinity overflow to it as IEEE
754 rounds, others saturate. NaN stays NaN where the format has one; otherwise it becomes the largest positive value
(0 for integers, bipolar, ternary; the first entry of a codebook). Float to integer truncates towards zero and
saturates; integer to integer wraps modulo 2**bits.
"""
from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from tilelang.ir.dtypes import DType


def wrap(values: Any, dt: DType) -> Any:
    """Integers (any width, Python ones too) modulo 2**bits, into storage."""
    values = np.asarray(values)
    if dt.kind == "bool":
        return values.astype(bool)
    if dt.native and values.dtype != object:
        return values.astype(dt.storage)
    if values.dtype == object:
        full = np.frompyfunc(lambda v: int(v) & ((1 << dt.bits) - 1), 1, 1)(values)
        codes = np.asarray(full, object).astype(np.uint64)
    else:
        codes = values.astype(np.int64).view(np.uint64) if values.dtype.kind == "i" else values.astype(np.uint64)
    return from_bits(codes, dt)


def to_bits(array: Any, dt: DType) -> Any:
    """Bit patterns of stored elements, as unsigned integers of at least `bits` bits."""
    array = np.asarray(array)
    unsigned = np.dtype(f"u{array.dtype.itemsize}")
    codes = array.view(unsigned) if array.dtype.kind != "b" else array.astype(np.uint8)
    return codes if dt.bits >= 8 * unsigned.itemsize else codes & unsigned.type((1 << dt.bits) - 1)


def from_bits(codes: Any, dt: DType) -> Any:
    """Stored elements of bit patterns (bits above `dt.bits` are ignored)."""
    codes = np.asarray(codes)
    if dt.kind == "bool":
        return (codes & codes.dtype.type(1)).astype(bool)
    unsigned = np.dtype(f"u{dt.storage.itemsize}")
    codes = codes.astype(np.uint64) & np.uint64((1 << dt.bits) - 1)
    if dt.kind == "int":
        shift = np.int64(64 - dt.bits)
        return ((codes.view(np.int64) << shift) >> shift).astype(dt.storage)
    return codes.astype(unsigned).view(dt.storage)


@cache
def values_of(dt: DType) -> Any:
    """f64 value of every code of a type of at most 16 bits."""
    codes = np.arange(1 << dt.bits, dtype=np.int64)
    if dt.kind in ("int", "uint", "bool"):
        return from_bits(codes.astype(np.uint64), dt).astype(np.float64)
    if dt.kind == "bipolar":
        return (2 * codes - ((1 << dt.bits) - 1)).astype(np.float64)
    if dt.kind == "ternary":
        return np.array([-1.0, 0.0, 1.0, 0.0])
    if dt.kind == "codebook":
        return np.asarray(dt.table)
    if dt.kind == "scale":
        return np.where(codes == 255, np.nan, np.exp2(codes - 127.0))
    e_bits, m_bits = dt.exponent_bits, dt.mantissa_bits
    sign = np.where(codes >> (dt.bits - 1), -1.0, 1.0)
    e, m = (codes >> m_bits) & ((1 << e_bits) - 1), codes & ((1 << m_bits) - 1)
    fraction = m / float(1 << m_bits)
    value = sign * np.where(e == 0, fraction * 2.0 ** (1 - dt.bias), (1 + fraction) * np.exp2(e - float(dt.bias)))
    top = e == (1 << e_bits) - 1
    if dt.nonfinite == "ieee":
        value = np.where(top, np.where(m == 0, sign * np.inf, np.nan), value)
    elif dt.nonfinite == "fn":
        value = np.where(top & (m == (1 << m_bits) - 1), np.nan, value)
    elif dt.nonfinite == "fnuz":
        value = np.where(codes == 1 << (dt.bits - 1), np.nan, value)
    return value


def decode(array: Any, dt: DType) -> Any:
    """Exact values of stored elements: the array itself for native types, int64 for other integers, bipolar and
    ternary, f32 for the rest."""
    array = np.asarray(array)
    if dt.native or dt.kind in ("int", "uint"):
        return array if dt.native else array.astype(np.int64)
    if dt.name == "tf32":
        return array.view(np.float32)
    if dt.name == "bf16":
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    kind = np.int64 if dt.kind in ("bipolar", "ternary") else np.float32
    return values_of(dt).astype(kind)[array & array.dtype.type((1 << dt.bits) - 1)]


def encode(values: Any, dt: DType) -> Any:
    """Stored elements nearest to real (or integer) values; see the module's rules."""
    with np.errstate(all="ignore"):  # overflow and NaN are values here, not mishaps
        return _encode(np.asarray(values), dt)


def _encode(values: Any, dt: DType) -> Any:
    if dt.kind in ("int", "uint", "bool"):
        if values.dtype.kind in "iub":
            return wrap(values, dt) if dt.kind != "bool" else values != 0
        if dt.kind == "bool":
            return values != 0
        return _float_to_int(values, dt)
    if dt.name in ("f16", "f32", "f64"):
        with np.errstate(all="ignore"):
            return _int_to_float(values, dt) if values.dtype.kind in "iub" else values.astype(dt.storage)
    with np.errstate(all="ignore"):
        real = values.astype(np.float64)
    if values.dtype.kind in "iu" and values.dtype.itemsize == 8:
        real = _odd_f64(values)
    if dt.kind == "bipolar":
        top = (1 << dt.bits) - 1
        clean = np.nan_to_num(np.clip(real, -top, top), nan=0.0)
        return np.clip(np.rint((clean + top) / 2), 0, top).astype(dt.storage)
    if dt.kind == "ternary":
        return (np.clip(np.rint(np.nan_to_num(np.clip(real, -1, 1), nan=0.0)), -1, 1) + 1).astype(dt.storage)
    if dt.kind == "codebook":
        # The first of the nearest entries. Within the table's range: far outside it all distances round alike.
        table, first = np.unique(np.asarray(dt.table), return_index=True)
        bounded = np.clip(np.where(np.isnan(real), dt.table[0], real), table[0], table[-1])
        high = np.searchsorted(table, bounded)
        low = np.maximum(high - 1, 0)
        above, below = table[high] - bounded, bounded - table[low]
        take_low = (below < above) | (below == above) & (first[low] < first[high])
        return np.where(take_low, first[low], first[high]).astype(dt.storage)
    if dt.kind == "scale":
        return _encode_scale(real, dt)
    return _encode_float(real, dt)


@cache
def blank_is_zero(dt: DType) -> bool:
    """Whether the bits of 0, or of what 0 becomes, are all zero: what memory reads and copies leave where they are
    masked. Not so for bipolar, ternary and some codebooks."""
    return not to_bits(encode(0.0, dt), dt).any()


def _float_to_int(values: Any, dt: DType) -> Any:
    real = np.nan_to_num(np.trunc(values.astype(np.float64)), nan=0.0, posinf=np.inf, neginf=-np.inf)
    high, low = real >= float(dt.max), real <= float(dt.min)
    inside = np.where(high | low, 0.0, real)
    whole = inside.astype(np.uint64 if dt.kind == "uint" else np.int64)
    limit = whole.dtype.type
    return np.where(high, limit(dt.max), np.where(low, limit(dt.min), whole)).astype(dt.storage)


def _odd_f64(values: Any) -> Any:
    """64-bit integers to f64 rounded to odd, so that a second rounding to a narrower format is correct."""
    near = values.astype(np.float64)
    exact = np.frompyfunc(int, 1, 1)(np.atleast_1d(values))
    bits = np.atleast_1d(near).view(np.int64).copy()
    for i, v in np.ndenumerate(exact):
        got = int(np.atleast_1d(near)[i])
        if got != v:
            if abs(got) > abs(v):
                bits[i] -= 1
            bits[i] |= 1
    return bits.view(np.float64).reshape(values.shape)


def _int_to_float(values: Any, dt: DType) -> Any:
    wide = values.dtype.kind in "iu" and values.dtype.itemsize == 8 and dt.name != "f64"
    return (_odd_f64(values) if wide else values.astype(np.float64)).astype(dt.storage)


def _encode_scale(real: Any, dt: DType) -> Any:
    with np.errstate(all="ignore"):
        fraction, exponent = np.frexp(real)  # real = fraction * 2**exponent, fraction in [.5, 1)
        up = fraction >= 0.75  # a tie has no even neighbour (the significand is always 1): away from zero
        code = np.clip(exponent - 1 + up + 127, 0, 254)
    bad = ~np.isfinite(real) | (real < 0)
    return np.where(bad, 255, np.where(real == 0, 0, code)).astype(dt.storage)


def _encode_float(real: Any, dt: DType) -> Any:
    m_bits = dt.mantissa_bits
    sign = np.signbit(real)
    with np.errstate(all="ignore"):
        size = np.abs(real)
        _, exponent = np.frexp(size)
        e = np.maximum(exponent - 1, 1 - dt.bias)
        step = np.ldexp(1.0, e - m_bits)
        quotient = np.rint(size / step)
        finite = np.isfinite(size)
        quotient = np.where(finite, quotient, 0)
        carry = quotient >= 2.0 ** (m_bits + 1)
        e = e + carry
        quotient = np.where(carry, quotient / 2, quotient).astype(np.int64)
        normal = quotient >= 1 << m_bits
        code = np.where(
            normal, ((e + dt.bias).astype(np.int64) << m_bits) | (quotient & ((1 << m_bits) - 1)), quotient
        )
    code = np.where(size == np.inf, dt.overflow_code, np.minimum(code, dt.overflow_code))
    signed = code | (sign.astype(np.int64) << dt.exponent_bits + m_bits)
    if dt.nonfinite == "fnuz":
        signed = np.where(code == 0, 0, signed)
    signed = np.where(np.isnan(real), dt.nan_code, signed)
    if dt.name == "tf32":
        signed = signed << 13
    return signed.astype(dt.storage)


def cast(array: Any, src: DType, dst: DType) -> Any:
    """Stored elements of `src` converted to `dst` by the module's rules."""
    return np.asarray(array) if src is dst else encode(decode(array, src), dst)


def holds(wide: DType, narrow: DType, bias: int = 0) -> bool:
    """Whether `wide` has every value of `narrow`, with `bias` added to integers."""
    if wide is narrow and not bias:
        return True
    if narrow.kind in ("int", "uint", "bool", "bipolar", "ternary"):
        if wide.kind == "float":
            return narrow.bits <= wide.mantissa_bits + 1
        return bool(wide.min <= narrow.min + bias and narrow.max + bias <= wide.max)
    if wide.kind != "float" or wide.bits <= 8:
        return False
    if narrow.kind == "float" and narrow.bits > 8:
        return narrow.exponent_bits <= wide.exponent_bits and narrow.mantissa_bits <= wide.mantissa_bits
    values = values_of(narrow)
    there = decode(encode(values, wide), wide)
    return bool(np.array_equal(np.asarray(values, np.float64), np.asarray(there, np.float64), equal_nan=True))
