"""Number types: every code of every type against ml_dtypes or an independent definition."""
from __future__ import annotations

import pickle
from fractions import Fraction
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tilelang.ir import codec
from tilelang.ir.dtypes import DType, codebook, dtype, names
from tilelang.ir.packed import Packed, pack_bits, unpack_bits

PEERS = {"f8e4m3": "float8_e4m3fn", "f8e5m2": "float8_e5m2", "f8e4m3fnuz": "float8_e4m3fnuz",
         "f8e5m2fnuz": "float8_e5m2fnuz", "f6e3m2": "float6_e3m2fn", "f6e2m3": "float6_e2m3fn",
         "f4e2m1": "float4_e2m1fn", "bf16": "bfloat16", "e8m0": "float8_e8m0fnu"}
SMALL = [dtype(n) for n in names() if dtype(n).bits <= 16] + [codebook(2, [-1.0, -0.25, 0.5, 1.0])]
FLOATS = [d for d in SMALL if d.kind == "float"]


def all_codes(dt: DType) -> Any:
    return codec.from_bits(np.arange(1 << dt.bits, dtype=np.uint64), dt)


def define(code: int, dt: DType) -> Fraction | float:
    """The value of a float's code, from the formula."""
    sign = -1 if code >> (dt.bits - 1) else 1
    e, m = code >> dt.mantissa_bits & ((1 << dt.exponent_bits) - 1), code & ((1 << dt.mantissa_bits) - 1)
    top = e == (1 << dt.exponent_bits) - 1
    if dt.nonfinite == "ieee" and top:
        return float("nan") if m else sign * float("inf")
    if dt.nonfinite == "fn" and top and m == (1 << dt.mantissa_bits) - 1:
        return float("nan")
    if dt.nonfinite == "fnuz" and code == 1 << (dt.bits - 1):
        return float("nan")
    fraction = Fraction(m, 1 << dt.mantissa_bits)
    scale = Fraction(2) ** ((e or 1) - dt.bias)
    return sign * (fraction + (1 if e else 0)) * scale


@pytest.mark.parametrize("name", PEERS)
def test_decoding_agrees_with_ml_dtypes(name: str) -> None:
    dt = dtype(name)
    codes = np.arange(1 << dt.bits).astype(dt.storage)
    want = codes.view(getattr(ml_dtypes, PEERS[name])).astype(np.float32)
    np.testing.assert_array_equal(codec.decode(codes, dt), want)


@cache
def definitions(dt: DType) -> list[Fraction | float]:
    """The values of all codes."""
    return [define(c, dt) for c in range(1 << dt.bits)]


@pytest.mark.parametrize("dt", FLOATS, ids=str)
def test_decoding_is_the_definition(dt: DType) -> None:
    with np.errstate(invalid="ignore"):  # signalling NaN
        got = codec.decode(all_codes(dt), dt).astype(np.float64)
    np.testing.assert_array_equal(got, np.array([float(x) for x in definitions(dt)]))


@pytest.mark.parametrize("dt", FLOATS, ids=str)
def test_encoding_is_nearest_even(dt: DType) -> None:
    """At every value, every midpoint between neighbours, and a little to each side of it."""
    even = {x: c for c, x in reversed(list(enumerate(definitions(dt)))) if isinstance(x, Fraction)}
    finite = sorted(even)
    lows, highs = (np.array([float(x) for x in values]) for values in (finite[:-1], finite[1:]))
    middles, ties = (lows + highs) / 2, []
    for low, high, middle in zip(finite, finite[1:], middles, strict=False):
        assert Fraction(middle) == (low + high) / 2
        tie = low if even[low] % 2 == 0 else high
        if dt.mantissa_bits == 0:  # 1 x 2**e or 2 x 2**e: the even multiple is the larger
            tie = Fraction(0) if 0 in (low, high) else max(low, high, key=abs)
        ties.append(float(tie))
    for points, want in ((lows, lows), (middles, ties), (np.nextafter(middles, -np.inf), lows),
                         (np.nextafter(middles, np.inf), highs)):
        got = codec.decode(codec.encode(points, dt), dt).astype(np.float64)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dt", FLOATS, ids=str)
def test_out_of_range_follows_the_policy(dt: DType) -> None:
    big, inf, nan = codec.decode(codec.encode(np.array([1e300, np.inf, np.nan]), dt), dt)
    assert big == inf == (np.inf if dt.has_inf else dt.max)
    assert np.isnan(nan) if dt.has_nan else nan == dt.max


@pytest.mark.parametrize("src", SMALL, ids=str)
def test_every_code_survives_a_round_trip(src: DType) -> None:
    codes = all_codes(src)
    values = codec.decode(codes, src)
    again = codec.decode(codec.encode(values, src), src)
    np.testing.assert_array_equal(again, values)
    np.testing.assert_array_equal(codec.from_bits(codec.to_bits(codes, src), src), codes)


def test_floats_truncate_and_saturate_to_integers() -> None:
    x = np.array([1.9, -1.9, 300.0, -300.0, np.nan, np.inf, -np.inf, 127.5])
    assert codec.encode(x, dtype("i8")).tolist() == [1, -1, 127, -128, 0, 127, -128, 127]
    assert codec.encode(x, dtype("u4")).tolist() == [1, 0, 15, 0, 0, 15, 0, 15]


def test_integers_wrap() -> None:
    assert codec.wrap(np.array([7, 8, -9, 16]), dtype("i4")).tolist() == [7, -8, 7, 0]
    assert codec.wrap(np.array([-1], object), dtype("u64")).tolist() == [2**64 - 1]


def test_bipolar_and_ternary_have_their_meaning() -> None:
    assert codec.decode(all_codes(dtype("s2")), dtype("s2")).tolist() == [-3, -1, 1, 3]
    assert codec.decode(all_codes(dtype("ternary")), dtype("ternary")).tolist() == [-1, 0, 1, 0]


def test_names_are_interned_and_pickle() -> None:
    for name in [*names(), "codebook(1, [-1.0, 1.0])"]:
        assert dtype(name) is dtype(name)
        assert pickle.loads(pickle.dumps(dtype(name))) is dtype(name)
    with pytest.raises(ValueError, match="unknown dtype 'f9e4m4'"):
        dtype("f9e4m4")


@given(st.data())
def test_packing_round_trips(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    bits = data.draw(st.integers(1, 12) | st.sampled_from([16, 32, 64]))
    extra = data.draw(st.integers(0, 11) | st.just(bits) | st.just(-columns * bits % 8))
    codes = np.array(data.draw(st.lists(st.integers(0, (1 << bits) - 1), min_size=rows * columns,
                                        max_size=rows * columns)), np.uint64).reshape(rows, columns)
    buffer = pack_bits(codes, bits, columns * bits + extra)
    np.testing.assert_array_equal(unpack_bits(buffer, bits, codes.shape, columns * bits + extra), codes)
    stream = int.from_bytes(buffer.tobytes(), "little")  # the definition: element (r, c) at bit r * row + c * bits
    for r in range(rows):
        for c in range(columns):
            assert stream >> (r * (columns * bits + extra) + c * bits) & ((1 << bits) - 1) == codes[r, c]


def test_packed_refuses_short_buffers() -> None:
    with pytest.raises(ValueError, match="need rows of 12 bits and 3 bytes, got rows of 12 bits and 2 bytes"):
        Packed(np.zeros(2, np.uint8), dtype("u4"), (2, 3), 12)


def test_numbers_beyond_a_codebook_become_its_extremes() -> None:
    far = np.array([np.inf, -np.inf, 1e300, -1e300, np.nan])
    assert codec.encode(far, codebook(2, [0.5, -1.0, 1.0, -0.25])).tolist() == [2, 1, 2, 1, 0]


def test_codebooks_keep_the_sign_of_zero() -> None:
    plain, signed = codebook(1, [0.0, 1.0]), codebook(1, [-0.0, 1.0])
    assert plain is not signed and np.signbit(signed.table[0]) and not np.signbit(plain.table[0])


def test_codebooks_take_the_first_of_the_nearest() -> None:
    rng = np.random.default_rng(0)
    for bits in range(1, 6):
        table = np.round(rng.standard_normal(1 << bits) * 4) / 4
        x = np.concatenate([np.round(rng.standard_normal(200) * 8) / 8, [1e300, -1e300, np.inf, -np.inf, np.nan]])
        inside = np.clip(np.where(np.isnan(x), table[0], x), table.min(), table.max())
        want = np.argmin(np.abs(inside[:, None] - table), 1)
        np.testing.assert_array_equal(codec.encode(x, codebook(bits, table)), want)


@pytest.mark.parametrize("buffer", [
    np.zeros(32, np.uint8)[::2], np.zeros(16, np.uint8)[::-1], np.zeros((4, 4), np.uint8), np.zeros(16, np.float32),
    torch.zeros(32, dtype=torch.uint8)[::2]])
def test_memory_of_packed_tensors_has_no_gaps(buffer: Any) -> None:
    """Kernels would read what lies in them, and what lies outside."""
    with pytest.raises(ValueError, match="one byte behind the other"):
        Packed(buffer, dtype("u4"), (4, 4))


def test_extents_of_packed_tensors_are_counts() -> None:
    with pytest.raises(ValueError, match="extents from 0 on"):
        Packed(np.zeros(16, np.uint8), dtype("u4"), (-4, 4))


@pytest.mark.parametrize("codes", [[[3, 16]], [[-1, 2]], [[1.0, 2.0]]])
def test_codes_are_bit_patterns(codes: Any) -> None:
    """Of others the lowest bits were kept."""
    with pytest.raises(ValueError, match="codes of u4 are integers from 0 to 15, got (int|float)64 from"):
        Packed.from_codes(codes, dtype("u4"))
    assert Packed.from_codes([[0, 15]], dtype("i4")).values().tolist() == [[0, -1]]
