"""A conversion brings every element to where the other layout has it."""
from __future__ import annotations

from math import prod

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tilelang.layouts import (
    Conversion,
    RegisterLayout,
    blocked,
    column_spatial,
    conversion,
    flat_table,
    local,
    spatial,
)

WARP = 32


@st.composite
def spread(draw: st.DrawFn, shape: tuple[int, int], threads: int) -> RegisterLayout:
    """A layout of power-of-two extents whose digits are dealt out at random."""
    bits = [(d, 2) for d, e in enumerate(shape) for _ in range(e.bit_length() - 1)]
    modes = tuple((2,) * (e.bit_length() - 1) for e in shape)
    order = draw(st.permutations(range(len(bits))))
    across = threads.bit_length() - 1
    return RegisterLayout(modes, tuple(order[:across]), tuple(order[across:]))


def applied(how: Conversion, values: np.ndarray) -> np.ndarray:
    """The registers after the conversion, as its description says."""
    if how.kind in ("none", "registers"):
        return values[:, list(how.take)]
    lane, first = np.arange(len(values)) % WARP, np.arange(len(values)) // WARP * WARP
    out = []
    for m in how.moves:
        source = m.base + sum(w * (lane >> b & 1) for b, w in enumerate(m.weights))
        assert m.xor is None or np.array_equal(source, lane ^ m.xor)
        register = np.where(lane >> m.bit & 1, m.register if m.other is None else m.other, m.register)
        out.append(values[first + source, register])
    return np.stack(out, 1)


@given(st.data())
def test_every_element_arrives(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(8, 16), (16, 16), (32, 4), (64, 8)]))
    src, dst = data.draw(spread(shape, 64)), data.draw(spread(shape, 64))
    tile = tuple(e - data.draw(st.sampled_from([0, 1])) for e in shape)
    how, have, want = conversion(src, dst, tile, WARP), flat_table(src, tile), flat_table(dst, tile)
    if how.kind != "shared":
        assert np.array_equal(np.where(want < 0, -1, applied(how, have)), want)
    elif tile == shape:  # no register of some threads' own would have done
        assert not all((have == want[:, i:i + 1]).all(0).any() for i in range(want.shape[1]))


@given(st.data())
def test_a_shuffle_is_found_wherever_there_is_one(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(8, 16), (16, 16), (64, 8)]))
    layout = data.draw(spread(shape, 64))
    turned = data.draw(st.permutations(range(5)))  # digits of the lane, dealt out anew
    other = RegisterLayout(layout.modes, (layout.spatial[0], *(layout.spatial[1 + i] for i in turned)), layout.local)
    for dst in (other, data.draw(spread(shape, 64))):
        have, want = flat_table(layout, shape), flat_table(dst, shape)
        owners = [{int(e): divmod(i, have.shape[1]) for i, e in enumerate(have[first:first + WARP].reshape(-1))}
                  for first in (0, WARP)]

        def moves(register: int, want: np.ndarray = want, owners: list = owners) -> bool:
            """Whether all warps find it in the same lanes, sums over the bits of the lane number, and in one register
            or in two that a bit of it chooses between."""
            one, two = ([owners[w].get(int(want[w * WARP + lane, register])) for lane in range(WARP)] for w in (0, 1))
            if one != two or None in one:
                return False
            there = [lane for lane, _ in one]
            sums = [there[0] + sum(there[1 << b] - there[0] for b in range(5) if lane >> b & 1)
                    for lane in range(WARP)]
            halves = [[{r for lane, (_, r) in enumerate(one) if lane >> b & 1 == v} for v in (0, 1)] for b in range(5)]
            return there == sums and any(len(low) == len(high) == 1 for low, high in halves)
        how, count = conversion(layout, dst, shape, WARP), want.shape[1]
        assert how.kind in ("none", "registers") or (how.kind == "shuffle") == all(map(moves, range(count)))


def test_the_nearest_way_is_found() -> None:
    fragment = local(2, 1) * spatial(8, 4) * local(1, 2)
    assert conversion(fragment, fragment, (16, 8)).kind == "none"
    assert conversion(local(2, 2) * spatial(4, 8), local(2, 1) * local(1, 2) * spatial(4, 8), (8, 16)).kind == "none"
    assert conversion(local(2, 1) * spatial(4, 8) * local(1, 2), spatial(4, 8) * local(2, 2), (8, 16)).kind != "none"
    turned = conversion(spatial(4, 8), column_spatial(4, 8), (4, 8))
    assert turned.kind == "shuffle" and turned.shuffles == 1
    assert conversion(spatial(8, 8), column_spatial(8, 8), (8, 8)).kind == "shared"  # across warps


@given(st.lists(st.integers(1, 40), min_size=1, max_size=3), st.sampled_from([32, 64, 128]),
       st.sampled_from([1, 2, 4, 8]))
def test_blocked_layouts_cover_their_tile(shape: list[int], threads: int, vector: int) -> None:
    layout = blocked(tuple(shape), threads, tuple(reversed(range(len(shape)))), vector)
    assert layout.num_threads == threads
    assert all(have >= want for have, want in zip(layout.shape, shape, strict=True))
    held = flat_table(layout, tuple(shape))
    assert set(held[held >= 0]) == set(range(prod(shape)))
    assert shape[-1] % layout.contiguous(len(shape) - 1) == 0 or layout.contiguous(len(shape) - 1) == 1
