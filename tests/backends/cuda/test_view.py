"""`view` by the threads of a program: layouts of fewer threads are repeated, those of more bring more warps."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import tilelang as tile
from tests.backends.simt.emulated import emulated
from tests.views import views
from tilelang import layouts
from tilelang.errors import ShapeMismatch, TargetError
from tilelang.ir.core import Function
from tilelang.passes.meaning import difference


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(views((1, 2, 4, 8, 32, 128)))
def test_threads_view_as_the_interpreter_does(fn: Function) -> None:
    assert difference(fn, emulated(fn), np.random.default_rng(0), exact=True, trials=2) == ""


def _halves(a: tile.RegisterLayout, c: tile.RegisterLayout, n: int):  # type: ignore[no-untyped-def]
    @tile.kernel
    def halves(x: tile.Tensor[tile.u8, "N"], y: tile.Out[tile.i32, "M"]):
        tile.store(y, (0,), tile.view(tile.load(x, (0,), (n,)), tile.u4, a, c).to(tile.i32) + 1)

    x = np.arange(n, dtype=np.uint8) * 37
    return halves, x, np.zeros(2 * n, np.int32)


@pytest.mark.parametrize("threads", [1, 16, 64, 512])
def test_any_number_of_threads(threads: int) -> None:
    halves, x, y = _halves(layouts.spatial(threads) * layouts.local(2), layouts.spatial(threads) * layouts.local(4),
                           2 * threads)
    with tile.target("emulate:cuda:sm_80"):
        halves(x, y)
    np.testing.assert_array_equal(y, np.stack([x & 15, x >> 4], -1).reshape(-1) + 1)


def test_views_of_different_numbers_of_threads_stand_in_one_program() -> None:
    few, many = layouts.spatial(8) * layouts.local(32), layouts.local(2) * layouts.spatial(128)

    @tile.kernel
    def both(x: tile.Tensor[tile.f32, "256"], y: tile.Out[tile.i32, "256"], z: tile.Out[tile.i32, "256"]):
        v = tile.load(x, (0,), (256,))
        tile.store(y, (0,), tile.view(v, tile.i32, few, layouts.local(32) * layouts.spatial(8)))
        tile.store(z, (0,), tile.view(v, tile.i32, many, many))

    x = np.random.default_rng(0).standard_normal(256).astype(np.float32)
    assert both.lower(x, target="cuda:sm_80").rendered.threads == 128
    with tile.target("emulate:cuda:sm_80"):
        y, z = both(x)
    np.testing.assert_array_equal(y, x.view(np.int32).reshape(8, 32).T.reshape(-1))
    np.testing.assert_array_equal(z, x.view(np.int32))


@pytest.mark.parametrize("threads", [6, 2048])
def test_threads_that_no_program_has_are_refused(threads: int) -> None:
    a, c = layouts.spatial(threads) * layouts.local(2), layouts.spatial(threads) * layouts.local(4)
    halves, x, y = _halves(a, c, 2 * threads)
    with pytest.raises(TargetError) as caught:
        halves.lower(x, y, target="cuda:sm_80").source
    assert str(a) in str(caught.value) and str(c) in str(caught.value)


def test_prepacked_weights_need_no_exchange() -> None:
    """What a view makes goes into a `dot` as it lies: the layouts around are those the view asks for."""
    from tilelang.backends.cuda.target import target
    from tilelang.backends.simt.instructions import choose, plan
    row = choose(target("cuda:sm_80").mma, tile.f16, tile.f16, tile.f32)
    assert row is not None
    want = plan(row, 16, 8, 64, 1, 1, ()).b
    bytes_of = layouts.spatial(32) * layouts.local(want.local_size // 2)

    @tile.kernel
    def product(a: tile.Tensor[tile.f16, "16 64"], w: tile.Tensor[tile.u8, "256"], c: tile.Out[tile.f32, "16 8"]):
        weights = tile.view(tile.load(w, (0,), (256,)), tile.i4, bytes_of, want)
        tile.store(c, (0, 0), tile.dot(tile.load(a, (0, 0), (16, 64)), weights.to(tile.f16)))

    rng = np.random.default_rng(0)
    a, w = rng.standard_normal((16, 64)).astype(np.float16), rng.integers(0, 256, 256).astype(np.uint8)
    placed = product.lower(a, w, target="cuda:sm_80").placed
    assert not [op for op in placed.walk() if op.name == "convert_layout"]
    with tile.target("emulate:cuda:sm_80"):
        got = product(a, w)
    # Sums of 64 products below 8 * 4 in another order.
    np.testing.assert_allclose(got, product.reference(a, w), atol=64 * 32 * 2.0 ** -23)


@tile.kernel
def pinned(x: tile.Tensor[tile.f32, "16 32"], y: tile.Out[tile.f32, "16 32"], L: tile.Const):
    tile.store(y, (0, 0), tile.pin(tile.load(x, (0, 0), (16, 32)) * 2.0, L) + 1.0)


@pytest.mark.parametrize("layout", [layouts.spatial(4, 8) * layouts.local(4, 4), layouts.column_spatial(16, 2) *
                                    layouts.local(1, 16)], ids=["blocks", "rows"])
def test_a_pinned_tile_has_its_layout(layout: tile.RegisterLayout) -> None:
    x = np.random.default_rng(0).standard_normal((16, 32)).astype(np.float32)
    y = np.zeros_like(x)
    placed = pinned.lower(x, y, L=layout, target="cuda:sm_80").placed
    held = [op.result.tile.layout for op in placed.walk() if op.name == "view"]
    assert held == [layout]
    with tile.target("emulate:cuda:sm_80"):
        np.testing.assert_array_equal(pinned(x, L=layout), x * 2 + 1)
    np.testing.assert_array_equal(pinned(x, L=layout), x * 2 + 1)


def test_a_pin_of_another_shape_is_refused() -> None:
    x = np.zeros((16, 32), np.float32)
    with pytest.raises(ShapeMismatch) as caught:
        pinned.lower(x, x.copy(), L=layouts.spatial(4, 8), target="cuda:sm_80")
    assert "needs: a layout of [16, 32]" in str(caught.value) and "[4, 8]" in str(caught.value)
