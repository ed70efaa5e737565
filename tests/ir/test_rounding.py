"""Rounding against ml_dtypes' own: at every number of a type, around every boundary between two, and far beyond.

What differs by design is stated: formats without infinity saturate here, and become NaN there where they have one.
"""
from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.ir.test_numbers import PEERS
from tilelang.ir import codec
from tilelang.ir.dtypes import DType, dtype

FLOATS = {**PEERS, "f16": "float16"}
INTEGERS = {"i4": "int4", "u4": "uint4", "i2": "int2", "u2": "uint2"}


def every(dt: DType) -> Any:
    """All numbers of a type, as f64."""
    with np.errstate(invalid="ignore"):
        return codec.decode(codec.from_bits(np.arange(1 << dt.bits, dtype=np.uint64), dt), dt).astype(np.float64)


def around_boundaries(dt: DType) -> Any:
    """As f32: every number, every midpoint of neighbours, the first beyond the largest, and what follows and precedes
    each; all numbers of f16 and bf16, infinities and NaN among them."""
    values = every(dt)
    values = np.unique(values[np.isfinite(values)])
    beyond = values[-1] + (values[-1] - values[-2]) * np.array([0.5, 1.0])
    with np.errstate(over="ignore", invalid="ignore"):
        points = np.concatenate([values, (values[1:] + values[:-1]) / 2, beyond, -beyond]).astype(np.float32)
        sides = [np.nextafter(points, np.float32(side)) for side in (np.inf, -np.inf)]
        return np.concatenate([points, *sides, *(every(dtype(n)).astype(np.float32) for n in ("f16", "bf16"))])


def peer(name: str) -> Any:
    return np.dtype(getattr(ml_dtypes, name, None) or name)


@pytest.mark.parametrize("name", FLOATS)
def test_rounding_agrees_with_ml_dtypes(name: str) -> None:
    dt = dtype(name)
    x = around_boundaries(dt)
    with np.errstate(all="ignore"):
        theirs, ours = x.astype(peer(FLOATS[name])).view(dt.storage), codec.encode(x, dt)
        values = codec.decode(theirs, dt), codec.decode(ours, dt)
    same = (codec.to_bits(theirs, dt) == codec.to_bits(ours, dt)) | (np.isnan(values[0]) & np.isnan(values[1]))
    larger = np.abs(x) > dt.max
    if not dt.has_inf:  # overflow, and NaN where the format has none, give the largest number
        saturated = codec.decode(ours, dt) == np.where(np.isnan(x), dt.max, np.copysign(dt.max, x))
        same |= saturated & (np.isnan(x) | larger) & (np.isnan(values[0]) | ~np.array(dt.has_nan))
    if dt.kind == "scale":  # has no zero: the smallest number; and f32's subnormals are not rounded to nearest there
        same |= (x == 0) & (ours == 0) | (np.abs(x) < 2.0 ** -126) & (ours == (x >= 1.5 * 2.0 ** -127)) & (x > 0)
    assert same.all(), (x[~same][:5], values[0][~same][:5], values[1][~same][:5])
    assert (~larger & np.isfinite(x)).sum() > 60_000 // 2


@pytest.mark.parametrize("name", INTEGERS)
def test_narrow_integers_agree_with_ml_dtypes(name: str) -> None:
    """Every code, and every i8 and u8 modulo 2**bits."""
    dt, theirs = dtype(name), peer(INTEGERS[name])
    codes = np.arange(1 << dt.bits)
    np.testing.assert_array_equal(codes.astype(np.int8).astype(theirs).astype(np.int64),
                                  codec.decode(codec.from_bits(codes.astype(np.uint64), dt), dt))
    for wide in (np.int8, np.uint8):
        x = np.arange(256).astype(wide)
        np.testing.assert_array_equal(codec.decode(codec.wrap(x, dt), dt), x.astype(theirs).astype(np.int64))
    inside = np.arange(4 * int(dt.min), 4 * int(dt.max) + 1) / 4  # floats truncate
    np.testing.assert_array_equal(codec.decode(codec.encode(inside, dt), dt),
                                  inside.astype(np.float32).astype(theirs).astype(np.int64))
