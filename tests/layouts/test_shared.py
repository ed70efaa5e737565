"""The laws of shared layouts and swizzles, and bank conflicts against a simulation of the banks."""
from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tilelang.layouts import Banks, SharedLayout, conflicts, derive_swizzle, parse, shared
from tilelang.layouts.shared import Swizzle

NUMBERS = st.integers(1, 4), st.integers(0, 4), st.integers(1, 5)
SWIZZLES = st.recursive(st.builds(Swizzle, *NUMBERS), lambda more: st.builds(Swizzle, *NUMBERS, more), max_leaves=3)


@st.composite
def dense(draw: st.DrawFn) -> SharedLayout:
    """Digits of all dimensions stored in any order, with or without gaps after each; some layouts are swizzled."""
    dims = draw(st.lists(st.lists(st.integers(1, 5), max_size=2), max_size=3))
    digits = [(d, i) for d, dim in enumerate(dims) for i in range(len(dim))]
    strides, step = {}, 1
    for d, i in draw(st.permutations(digits)):
        strides[d, i] = step
        step = step * dims[d][i] + draw(st.integers(0, 2))
    return SharedLayout(tuple(tuple((e, strides[d, i]) for i, e in enumerate(dim)) for d, dim in enumerate(dims)),
                        draw(st.none() | SWIZZLES))


@st.composite
def accesses(draw: st.DrawFn) -> tuple[list[int], int, Banks]:
    """Addresses of some lanes, aligned or not, and a memory that serves them in phases."""
    lanes = draw(st.integers(1, 12))
    cuts = sorted(draw(st.sets(st.integers(1, lanes), max_size=3)) | {0, lanes})
    order = draw(st.permutations(range(lanes)))
    phases = tuple(tuple(order[a:b]) for a, b in zip(cuts, cuts[1:], strict=False))
    banks = Banks(draw(st.sampled_from((1, 2, 4, 8))), draw(st.sampled_from((1, 2, 4, 8))), phases)
    return draw(st.lists(st.integers(0, 100), min_size=lanes, max_size=lanes)), draw(st.integers(1, 16)), banks


def simulated(addresses: list[int], nbytes: int, banks: Banks) -> int:
    """Cycles beyond those that as many words in different banks would take: each cycle a bank serves one word."""
    extra = 0
    for phase in banks.phases:
        waiting = {byte // banks.width for lane in phase for byte in range(addresses[lane], addresses[lane] + nbytes)}
        ideal, cycles = -(-len(waiting) // banks.count), 0
        while waiting:
            served = {word % banks.count: word for word in waiting}
            waiting -= set(served.values())
            cycles += 1
        extra += cycles - ideal
    return extra


@given(SWIZZLES, st.integers(0, 3))
def test_a_swizzle_permutes_every_block(swizzle: Swizzle, block: int) -> None:
    size = swizzle.block
    offsets = np.arange(block * size, (block + 1) * size)
    assert sorted(swizzle(offsets)) == list(offsets)
    assert [swizzle(int(x)) for x in offsets[:64]] == list(swizzle(offsets)[:64])
    if swizzle.more is None and swizzle.shift >= swizzle.bits:  # what is read is not what is changed
        np.testing.assert_array_equal(swizzle(swizzle(offsets)), offsets)
    run = swizzle.vector  # vectors up to here stay whole
    assert (np.diff(swizzle(offsets).reshape(-1, run), axis=1) == 1).all()


@given(dense())
def test_every_element_has_a_place_of_its_own(s: SharedLayout) -> None:
    table = s.table()
    assert table.shape == s.shape and s.injective()
    assert table.min(initial=0) >= 0 and table.max(initial=0) < s.size
    assert len(set(table.ravel().tolist())) == prod(s.shape)


@given(dense())
def test_offsets_are_sums_of_digits(s: SharedLayout) -> None:
    plain = s.with_swizzle(None)
    for digits in product(*(range(e) for dim in s.dims for e, _ in dim)):
        rest, at, wanted = iter(digits), [], 0
        for dim in s.dims:
            index = 0
            for extent, stride in dim:
                digit = next(rest)
                index, wanted = index * extent + digit, wanted + digit * stride
            at.append(index)
        assert plain.offset(at) == wanted
        assert s.offset(at) == (s.swizzle(wanted) if s.swizzle else wanted)


def test_two_elements_in_one_place_are_found() -> None:
    assert not shared([4, 4], [2, 1]).injective() and not shared([(2, 2), 2], [(1, 1), 4]).injective()


@given(dense())
def test_text_parses_back(s: SharedLayout) -> None:
    again = parse(str(s))
    assert again == s and str(again) == str(s)


@given(dense(), st.data())
def test_permute_moves_dimensions(s: SharedLayout, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(s.rank)))
    np.testing.assert_array_equal(s.permute(order).table(), s.table().transpose(order))


@given(accesses())
def test_conflicts_are_what_the_banks_do(access: tuple[list[int], int, Banks]) -> None:
    assert conflicts(*access) == simulated(*access)


@given(st.sampled_from([(8, 8), (16, 16), (32, 8)]), st.sampled_from([1, 2, 4]), st.permutations(range(8)))
def test_a_derived_swizzle_is_no_worse(shape: tuple[int, int], vector: int, order: list[int]) -> None:
    banks, plain = Banks(8, 4, (tuple(order),)), shared(shape)
    lanes = [[(i, 0) for i in range(8)], [(0, i * vector % shape[1]) for i in range(8)]]
    best, left = derive_swizzle(plain, [(r, 4 * vector) for r in lanes], banks, 4)

    def cost(s: SharedLayout) -> int:
        return sum(simulated([4 * int(s.offset(at)) for at in r], 4 * vector, banks) for r in lanes)
    assert left == cost(best) <= cost(plain) and best.injective() and best.dims == plain.dims


@given(SWIZZLES, st.integers(0, 4095), st.integers(0, 4095), st.integers(0, 4095))
def test_a_part_of_a_constant_is_added_after_a_swizzle(swizzle: Swizzle, bits: int, constant: int, x: int) -> None:
    part, x = swizzle.apart(bits, constant), x & bits
    assert part & constant == part
    assert swizzle(x + constant) == swizzle(x + constant - part) + swizzle(part)
    assert swizzle.apart(-1, constant) == 0


def test_steps_beyond_what_a_swizzle_changes_are_added_after_it() -> None:
    """Rows of 128 elements whose chunks of 8 are permuted by the row: of eight steps of 16, four are told apart."""
    swizzle, rows = Swizzle(3, 3, 4), 15 << 7 | 8
    assert len({step - swizzle.apart(rows, step) for step in range(0, 128, 16)}) == 4
