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
from tilelang.ops.lla.forward import forward_kernel

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
    loop = next(op for op in code.placed.walk() if op.name == "while")
    assert not any(v.shape for v in loop.results)  # memory carries the total
    with tile.target(f"emulate:cuda:{arch}"):
        rounds(x, y, z, B=32, ROUNDS=2)
    first = np.zeros((40, 30))
    first[:32], first[32:] = x[:32, :30], x[32:, :30]
    once = x.astype(float) @ y.astype(float) + first
    # 70 products and 3 more terms, in f32, twice over
    size = abs(x.astype(float)) @ abs(y.astype(float)) + abs(first)
    assert (abs(z - 1.5 * once) <= 2 * 73 * 2.0 ** -23 * size).all()


def test_wide_heads_have_no_idle_warps() -> None:
    """Eight warps would hold as much each as four, of 64 rows padded to 128: and padded tiles have no place."""
    q, lam = np.zeros((1, 1, 64, 128), np.float16), np.zeros((1, 1, 64), np.float32)
    code = forward_kernel.lower(q, q, q, lam, q.copy(), 1.0, 0.0, target="cuda:sm_80", BM=64, BN=16, BD=128, BE=128)
    assert code.rendered.threads == 128
    assert str(code.placed).count("_aside = alloc") == 3  # the solution, the residual and the queries in f32


@tile.kernel
def chain(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"]):
    """y = 3 x (x + 1)"""
    a = tile.load(x, (0,), (256,))
    tile.store(y, (0,), (a + 1.0) * (3.0 * a))


def test_nothing_whole_waits_between_steps() -> None:
    """NVIDIA's compilers keep to the order of the text: it goes through all steps lane by lane."""
    x = np.zeros(256, np.float32)
    assert chain.lower(x, x.copy(), target="cuda:sm_80").source.count("TL_UNROLL for") == 1


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
