"""The laws of the layout algebra, on random mixed-radix layouts."""
from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilelang.layouts import (
    Banks,
    LayoutError,
    RegisterLayout,
    ascii,
    column_spatial,
    conflicts,
    derive_swizzle,
    local,
    parse,
    replicated,
    shared,
    spatial,
    svg,
)


@st.composite
def register(draw: st.DrawFn, rank: int = 2) -> RegisterLayout:
    modes = tuple(tuple(draw(st.lists(st.integers(1, 4), max_size=2))) for _ in range(rank))
    order = draw(st.permutations(range(sum(map(len, modes)))))
    cut = draw(st.integers(0, len(order)))
    sides = list(order[:cut])
    if draw(st.booleans()):
        sides.insert(draw(st.integers(0, len(sides))), -draw(st.integers(2, 3)))
    return RegisterLayout(modes, tuple(sides), tuple(order[cut:]))


def as_map(f: RegisterLayout) -> list[list[tuple[int, ...]]]:
    return [[tuple(map(int, at)) for at in row] for row in f.table()]


@given(register(), register())
def test_product_means_blocks(f: RegisterLayout, g: RegisterLayout) -> None:
    h = f * g
    for (t1, l1), (t2, l2) in product(product(range(f.num_threads), range(f.local_size)),
                                      product(range(g.num_threads), range(g.local_size))):
        outer, inner = f.index(t1, l1), g.index(t2, l2)
        got = h.index(t1 * g.num_threads + t2, l1 * g.local_size + l2)
        assert [int(x) for x in got] == [int(a) * s + int(b) for a, b, s in zip(outer, inner, g.shape, strict=True)]


@given(register(), register(), register())
def test_product_is_associative(f: RegisterLayout, g: RegisterLayout, h: RegisterLayout) -> None:
    assert (f * g) * h == f * (g * h)


@given(register())
def test_one_element_is_neutral(f: RegisterLayout) -> None:
    assert f * local(1, 1) == f == local(1, 1) * f


@given(register(), register())
def test_division_undoes_the_product(f: RegisterLayout, g: RegisterLayout) -> None:
    assert ((f * g) / g) * g == f * g
    assert f * (f * g).divide_left(f) == f * g


def test_failing_division_shows_both() -> None:
    with pytest.raises(LayoutError, match=r"local\(2, 4\) cannot be divided by spatial\(2, 2\)"):
        local(2, 4) / spatial(2, 2)


@given(register())
def test_equality_is_meaning(f: RegisterLayout) -> None:
    assert f.canonical == f and as_map(f.canonical) == as_map(f) and hash(f) == hash(f.canonical)


@given(register())
def test_inverse_finds_every_owner(f: RegisterLayout) -> None:
    owners = f.inverse()
    assert set(owners) == set(product(*map(range, f.shape)))
    assert all(len(held) == f.replication for held in owners.values())
    assert all(tuple(map(int, f.index(t, i))) == at for at, held in owners.items() for t, i in held)


@given(register(), st.sampled_from([(0,), (1,), (0, 1)]))
def test_reduction_forgets_dimensions(f: RegisterLayout, dims: tuple[int, ...]) -> None:
    g = f.reduce(dims)
    assert g.num_threads == f.num_threads
    kept = [d for d in range(f.rank) if d not in dims]
    for t in range(f.num_threads):
        held = {tuple(at[d] for d in kept) for at in as_map(f)[t]}
        assert {at for at in as_map(g)[t]} == held


@given(register())
def test_permute_permutes(f: RegisterLayout) -> None:
    assert as_map(f.permute([1, 0])) == [[(b, a) for a, b in row] for row in as_map(f)]


@given(register())
def test_reshape_keeps_the_linear_index(f: RegisterLayout) -> None:
    rows, columns = f.shape
    g = f.reshape([rows * columns])
    assert as_map(g) == [[(a * columns + b,) for a, b in row] for row in as_map(f)]
    assert g.reshape([rows, columns]) == f


def test_reshape_across_a_digit_is_refused() -> None:
    with pytest.raises(LayoutError, match="no digit boundary"):
        (spatial(3, 1) * local(1, 2)).reshape([2, 3])


@given(register())
def test_text_parses_back(f: RegisterLayout) -> None:
    assert parse(str(f)) == f


def test_mma_fragments_are_expressions() -> None:
    """PTX ISA, mma.m16n8k16: the accumulator holds row g + 8 * (i // 2), column 2 * (lane % 4) + i % 2."""
    c = local(2, 1) * spatial(8, 4) * local(1, 2)
    for lane, i in product(range(32), range(4)):
        assert tuple(map(int, c.index(lane, i))) == (lane // 4 + 8 * (i // 2), 2 * (lane % 4) + i % 2)
    b = local(2, 1) * column_spatial(4, 8) * local(2, 1)
    for lane, i in product(range(32), range(4)):
        assert tuple(map(int, b.index(lane, i))) == (2 * (lane % 4) + i % 2 + 8 * (i // 2), lane // 4)


def test_vector_width_is_the_contiguous_run() -> None:
    assert (spatial(8, 4) * local(1, 8)).contiguous(1) == 8
    assert (local(1, 8) * spatial(8, 4)).contiguous(1) == 1


def test_panels_are_shared_layouts() -> None:
    panels = shared([4, (2, 3)], [3, (12, 1)])
    want = np.concatenate([np.arange(12).reshape(4, 3), 12 + np.arange(12).reshape(4, 3)], 1)
    np.testing.assert_array_equal(panels.table(), want)
    assert panels.injective() and parse(str(panels)) == panels


def test_the_swizzle_is_derived() -> None:
    """128 x 32 f16, stored by rows and read by columns of 8 x 16 bytes: conflict-free for both."""
    banks = Banks(32, 4, tuple(tuple(range(8 * i, 8 * i + 8)) for i in range(4)))
    write = [((lane // 4, lane % 4 * 8), 16) for lane in range(32)]
    read = [((lane, 8), 16) for lane in range(32)]
    requests = [([at for at, _ in r], 16) for r in (write, read)]
    plain = shared([128, 32])
    assert sum(conflicts([int(plain.offset(at)) * 2 for at in lanes], n, banks) for lanes, n in requests) > 0
    best, left = derive_swizzle(plain, requests, banks, 2)
    assert left == 0 and best.injective() and parse(str(best)) == best


def test_pictures() -> None:
    assert ascii(local(2, 1) * spatial(1, 2)) == "T0:0 T1:0\nT0:1 T1:1"
    assert svg(spatial(2, 2)).count("<rect") == 5
    assert "T0,1:0" in ascii(replicated(2, 2))
