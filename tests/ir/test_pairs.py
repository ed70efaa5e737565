"""Pairs: words that few steps make registers of f16, for every type of at most 8 bits."""
from __future__ import annotations

import numpy as np
import pytest

from tilelang.ir import codec
from tilelang.ir.dtypes import DType, codebook, dtype, names
from tilelang.ir.pairs import ORDERS, Pairs, Term, cheapest, exponents, orders, pairs, representable

NARROW = [dtype(n) for n in names() if dtype(n).bits <= 8] + [codebook(4, np.linspace(-1, 1, 16) ** 3)]
ORDERED = [pytest.param(dt, order, id=f"{dt.name[:11]}-{order}") for dt in NARROW for order in orders(dt)]


@pytest.mark.parametrize(("dt", "order"), ORDERED)
def test_packing_is_undone(dt: DType, order: str) -> None:
    packed, rng = pairs(dt, order), np.random.default_rng(0)
    codes = rng.integers(0, 1 << dt.bits, (3, 40 * packed.elements)).astype(np.uint8)
    words = packed.pack(codes)
    assert words.size * 32 == codes.size * dt.bits
    np.testing.assert_array_equal(packed.unpack(words), codes)
    words = rng.integers(0, 1 << 32, (2, 5 * packed.words), dtype=np.uint32)
    np.testing.assert_array_equal(packed.pack(packed.unpack(words)), words)


@pytest.mark.parametrize("dt", [dt for dt in NARROW if len(orders(dt)) > 1], ids=lambda dt: dt.name)
def test_no_carry_depends_on_what_it_goes_into(dt: DType) -> None:
    """So packing ends for all codes: what carries depend on, over and over, comes to nothing."""
    assert not circular(pairs(dt, "sums"))


def circular(order: Pairs) -> bool:
    needed = order.inverse.astype(np.int64) @ order.carries > 0
    left = np.ones(len(needed), bool)
    for _ in needed:
        left &= (needed & left).any(1)
    return bool(left.any())


def test_a_sum_that_cannot_be_undone_is_found() -> None:
    """w & m and (129 w + w / 64) & m: the fourth bit of the second is part of what is carried into it."""
    order = pairs(dtype("f8e4m3"), "sums")
    wrong = Pairs(8, order.places, ((Term(0, 0),), (Term(0, -1), Term(0, -7))), sums=True)
    assert not circular(order) and circular(wrong)


@pytest.mark.parametrize("dt", [dt for dt in NARROW if exponents(dt)], ids=lambda dt: dt.name[:11])
def test_halves_are_numbers_by_a_power_of_two(dt: DType) -> None:
    powers, codes = exponents(dt), np.arange(1 << dt.bits)
    assert powers is not None
    known = representable(dt)
    assert known.sum() >= 3 / 4 * len(codes)
    for order in map(lambda order: pairs(dt, order), orders(dt)):
        for pair in range(len(order.steps)):
            halves = sum((codes >> bit & (1 << size) - 1) << place for place, bit, size in order.fields(pair))
            numbers = np.asarray(halves, np.uint16).view(np.float16)[known].astype(np.float64)
            np.testing.assert_array_equal(numbers * 2.0 ** powers[pair % len(powers)], codec.values_of(dt)[known])


@pytest.mark.parametrize("machine", [(True, False), (False, True)], ids=["ternary", "halves"])
@pytest.mark.parametrize("dt", NARROW, ids=lambda dt: dt.name[:11])
def test_codes_take_few_instructions(dt: DType, machine: tuple[bool, bool]) -> None:
    """Half a one and a little for whole bits, 1.2 for any other type whose codes are the operands of products."""
    order = pairs(dt, cheapest(dt, *machine))
    each = order.instructions(*machine) / order.elements
    if dt.kind == "uint" and dt.bits in (1, 2, 4, 8):
        assert each <= {1: 0.6, 2: 0.6, 4: 0.5, 8: 0.5}[dt.bits]
    elif dt.kind == "uint" or dt.kind == "float" and 2 <= dt.exponent_bits <= 5:  # ranks are packed of other types
        assert each <= 1.2


def test_types_without_sums_say_so() -> None:
    with pytest.raises(ValueError, match="u4 has no order 'sums', only pairs"):
        pairs(dtype("u4"), "sums")
    assert {order for dt in NARROW for order in orders(dt)} == set(ORDERS)
