"""Digits of the thread number say where registers lie, for every way to write a layout."""
from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tilelang.backends.simt.registers import local_offsets, thread_digits
from tilelang.layouts import RegisterLayout, local, replicated, spatial


@st.composite
def layouts(draw: st.DrawFn) -> RegisterLayout:
    f = local(1, 1)
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["local", "spatial", "copies"]))
        a, b = draw(st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 4), (1, 3)]))
        f = f * (local(a, b) if kind == "local" else spatial(a, b) if kind == "spatial" else replicated(a * b, 2))
    return f


@given(layouts())
def test_index_is_the_sum_of_thread_and_register_parts(layout: RegisterLayout) -> None:
    thread = np.arange(layout.num_threads)
    for form in (layout, layout.canonical):  # equal layouts share what is remembered of them
        for d in range(layout.rank):
            part = sum((thread // g.stride % g.extent * g.adds[1] for g in thread_digits(form)
                        if g.adds is not None and g.adds[0] == d), start=np.zeros_like(thread))
            assert np.array_equal(part[:, None] + local_offsets(form)[None, :, d], layout.table()[..., d])


def test_digits_do_not_depend_on_how_a_layout_is_written() -> None:
    """Found by the fuzzer: a reduction looked for a digit by its place in another way to write the layout."""
    plain, padded = spatial(1, 4), RegisterLayout(((1,), (1, 4, 1)), (0, 1, 2, 3), ())
    assert plain == padded
    assert thread_digits(padded) == thread_digits(plain)
