"""Pairs: words that few steps make registers of f16, for every type of at most 8 bits."""
from __future__ import annotations

import numpy as np
import pytest

from tilelang.ir import codec
from tilelang.ir.dtypes import DType, codebook, dtype, names
from tilelang.ir.pairs import ODD_BYTES, exponents, pairs, representable

NARROW = [dtype(n) for n in names() if dtype(n).bits <= 8] + [codebook(4, np.linspace(-1, 1, 16) ** 3)]


@pytest.mark.parametrize("dt", NARROW, ids=lambda dt: dt.name[:11])
def test_packing_is_undone(dt: DType) -> None:
    order, rng = pairs(dt), np.random.default_rng(0)
    codes = rng.integers(0, 1 << dt.bits, (3, 40 * order.elements)).astype(np.uint8)
    words = order.pack(codes)
    assert words.size * 32 == codes.size * dt.bits
    np.testing.assert_array_equal(order.unpack(words), codes)
    words = rng.integers(0, 1 << 32, (2, 5 * order.words), dtype=np.uint32)
    np.testing.assert_array_equal(order.pack(order.unpack(words)), words)


@pytest.mark.parametrize("dt", [dt for dt in NARROW if exponents(dt)], ids=lambda dt: dt.name[:11])
def test_halves_are_numbers_by_a_power_of_two(dt: DType) -> None:
    order, powers, codes = pairs(dt), exponents(dt), np.arange(1 << dt.bits)
    assert powers is not None
    known = representable(dt)
    assert known.sum() >= 3 / 4 * len(codes)
    for pair in range(len(order.steps)):
        halves = sum((codes >> bit & (1 << size) - 1) << place for place, bit, size in order.fields(pair))
        numbers = np.asarray(halves, np.uint16).view(np.float16)[known].astype(np.float64)
        np.testing.assert_array_equal(numbers * 2.0 ** powers[pair % len(powers)], codec.values_of(dt)[known])


@pytest.mark.parametrize("dt", NARROW, ids=lambda dt: dt.name[:11])
def test_codes_take_few_steps(dt: DType) -> None:
    """Instructions that combine three registers, and shifts, for each number; odd bytes need no mask where they are
    one code, or one above another."""
    order = pairs(dt)
    shifts = {term for terms in order.steps for term in terms if term[1]}
    count = (len(shifts) + sum(-(-len(terms) // 2) for terms in order.steps)) / order.elements
    count -= (sum(order.mask(i) == ODD_BYTES for i in order.in_odd_bytes) + len(order.beneath)) / order.elements
    assert count <= {1: 0.6, 2: 0.6, 4: 0.5}[dt.bits] if dt.kind == "uint" and dt.bits in (1, 2, 4) else count <= 1.2
