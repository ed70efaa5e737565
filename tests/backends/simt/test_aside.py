"""Tiles that a loop of products has no registers for wait in shared memory."""
from __future__ import annotations

import numpy as np
import pytest

import tilelang as tile
from tests.backends.simt import kernels
from tilelang.backends.cuda.target import PORTS, target
from tilelang.backends.simt import aside
from tilelang.backends.simt.exchange import wavefronts
from tilelang.ir.core import TileType
from tilelang.ir.dtypes import dtype
from tilelang.layouts import RegisterLayout, local, replicated, spatial

ACC = local(2, 1) * spatial(8, 4) * local(1, 2)


@tile.kernel
def rounds(x: tile.Tensor[tile.T, "M K"], y: tile.Tensor[tile.T, "K N"], z: tile.Out[tile.f32, "M N"],
           B: tile.Const, ROUNDS: tile.Const):
    """z = (x @ y + bias) taken into account ROUNDS times: the total changes between loops that do not use it."""
    m = tile.grid(tile.cdiv(x.shape[0], B))
    first = tile.load(x, (m * B, 0), (B, B)).to(tile.f32)
    total, steps = tile.zeros((B, B), tile.f32), 0
    while steps < ROUNDS:
        acc = tile.zeros((B, B), tile.f32)
        for k in tile.range(0, x.shape[1], B, stages=2):
            acc = tile.dot(tile.load(x, (m * B, k), (B, B)), tile.load(y, (k, 0), (B, B)), acc)
        total = 0.5 * total + acc + first
        steps += 1
    tile.store(z, (m * B, 0), total)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_what_is_set_aside_comes_back(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nearly all registers were taken; the emulator checks every access. Each thread reads what it wrote, so no
    barrier is added."""
    x, y = kernels.normal(40, 70, dtype=np.float16), kernels.normal(70, 30, dtype=np.float16)
    z, found = np.empty((40, 30), np.float32), []
    for others in (0, 250):
        monkeypatch.setattr(aside, "OTHERS", others)
        code = rounds.lower(x, y, z, target=f"cuda:{arch}", B=32, ROUNDS=2)
        found.append((str(code.placed).count("_aside = alloc"), code.source.count("tl::barrier(")))
    assert found[0][0] == 0 and found[1][0] == 2 and found[0][1] == found[1][1]
    with tile.target(f"emulate:cuda:{arch}"):
        rounds(x, y, z, B=32, ROUNDS=2)
    first = np.zeros((40, 30))
    first[:32], first[32:] = x[:32, :30], x[32:, :30]
    once = x.astype(float) @ y.astype(float) + first
    # 70 products and 3 more terms, in f32, twice over
    size = abs(x.astype(float)) @ abs(y.astype(float)) + abs(first)
    assert (abs(z - 1.5 * once) <= 2 * 73 * 2.0 ** -23 * size).all()


@pytest.mark.parametrize("dt", ["f32", "f16", "f64"])
@pytest.mark.parametrize("layout", [spatial(4, 1) * local(1, 8) * ACC, spatial(2, 2) * local(4, 2) * ACC,
                                    spatial(16, 8) * local(1, 4), local(3, 1) * spatial(16, 8) * local(2, 2)])
def test_a_place_of_each_thread(layout: RegisterLayout, dt: str) -> None:
    """Every element has one, without bank conflicts."""
    t = TileType(layout.shape, dtype(dt), layout)
    place = aside._own_place(t)
    assert place is not None and place.shape == layout.shape and place.injective()
    assert place.size == layout.num_threads * layout.local_size
    assert wavefronts(layout, place, t.dtype.storage.itemsize, PORTS, True) == \
        wavefronts(layout, place, t.dtype.storage.itemsize, PORTS, False) == 0


def test_copies_have_none() -> None:
    layout = replicated(2, 2) * spatial(8, 8) * local(1, 2)
    assert aside._own_place(TileType(layout.shape, dtype("f32"), layout)) is None
    assert target("cuda:sm_80").registers == 255
