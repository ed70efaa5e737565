"""`view` as machine code: any two layouts of one number of threads and bits, any two dtypes."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

import tilelang as tile
from tests.backends.cpu.native import native
from tests.views import views
from tilelang import layouts
from tilelang.errors import DTypeMismatch
from tilelang.ir import codec
from tilelang.ir.core import Function
from tilelang.ir.pairs import pairs
from tilelang.layouts import RegisterLayout
from tilelang.passes.meaning import difference


@settings(max_examples=30)
@given(views((1, 2, 4, 6, 12)))
def test_machine_code_views_as_the_interpreter_does(fn: Function) -> None:
    assert difference(fn, native(fn), np.random.default_rng(0), exact=True) == ""


def test_a_view_undoes_another() -> None:
    """Two u4 in each u8, as prepacked weights hold them; and back."""
    a, c = tile.layouts.spatial(8, 4) * tile.layouts.local(1, 2), tile.layouts.spatial(8, 4) * tile.layouts.local(1, 4)

    @tile.kernel
    def halves(x: tile.Tensor[tile.u8, "8 8"], y: tile.Out[tile.i32, "8 16"], z: tile.Out[tile.u8, "8 8"]):
        nibbles = tile.view(tile.load(x, (0, 0), (8, 8)), tile.u4, a, c)
        tile.store(y, (0, 0), nibbles.to(tile.i32))
        tile.store(z, (0, 0), tile.view(nibbles, tile.u8, c, a))

    x = np.arange(64, dtype=np.uint8).reshape(8, 8) * 3
    y, z = halves(x)
    np.testing.assert_array_equal(y, np.stack([x & 15, x >> 4], -1).reshape(8, 16))
    np.testing.assert_array_equal(z, x)


@pytest.mark.parametrize("target", ["cpu", "emulate:cuda:sm_80", "emulate:hip:gfx942"])
@pytest.mark.parametrize(("name", "order"), [("u3", "pairs"), ("f6e3m2", "pairs"), ("f6e2m3", "sums")])
def test_words_of_pairs(name: str, order: str, target: str) -> None:
    packed = pairs(tile.dtype(name), order)
    a, c = layouts.spatial(64) * layouts.local(packed.words), layouts.spatial(64) * layouts.local(packed.elements)

    @tile.kernel
    def codes(x: tile.Tensor[tile.u32, "N"], y: tile.Out[tile.f32, "M"]):
        tile.store(y, (0,), tile.view(tile.load(x, (0,), a.shape), tile.dtype(name), a, c, order=order).to(tile.f32))

    x = np.random.default_rng(0).integers(0, 1 << 32, a.shape, np.uint32)
    y = np.zeros(c.shape, np.float32)
    with tile.target(target):
        codes(x, y)
    np.testing.assert_array_equal(y, codec.values_of(tile.dtype(name))[packed.unpack(x)])


def test_an_order_that_a_type_has_not_is_refused() -> None:
    a, c = layouts.local(1), layouts.local(8)

    @tile.kernel
    def codes(x: tile.Tensor[tile.u32, "1"], y: tile.Out[tile.i32, "8"]):
        tile.store(y, (0,), tile.view(tile.load(x, (0,), (1,)), tile.u4, a, c, order="sums").to(tile.i32))

    with pytest.raises(DTypeMismatch, match="u4 has no order"):
        codes(np.zeros(1, np.uint32))


def test_a_scalar_is_viewed() -> None:
    one, two = RegisterLayout((), (), ()), RegisterLayout(((2,),), (), (0,))

    @tile.kernel
    def words(x: tile.i32, y: tile.Out[tile.u16, "2"], z: tile.Out[tile.f32, "1"]):
        tile.store(y, (0,), tile.view(x, tile.u16, one, two))
        tile.store(z, (0,), tile.view(x, tile.f32, one, one))

    y, z = words(0x3F800001)
    assert y.tolist() == [1, 0x3F80] and z[0] == pytest.approx(1.0, abs=2e-7) and z[0] != 1
