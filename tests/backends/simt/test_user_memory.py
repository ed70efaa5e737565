"""Memory that a kernel manages itself: whole slices move by matrices, without bank conflicts, and under checks."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilelang as tile
from tests.backends.simt import kernels
from tilelang.errors import CheckError

TARGETS = ("cuda:sm_75", "cuda:sm_80", "cuda:sm_90a", "hip:gfx942", "hip:gfx950")


@tile.kernel
def ring(a: tile.Tensor[tile.f16, "M K"], b: tile.Tensor[tile.f16, "K N"], c: tile.Out[tile.f32, "M N"],
         STAGES: tile.Const = 3, BM: tile.Const = 64, BN: tile.Const = 64, BK: tile.Const = 32,
         MISTAKE: tile.Const = ""):
    """A product whose pipeline is written by hand."""
    m, n = tile.grid(tile.cdiv(a.shape[0], BM), tile.cdiv(b.shape[1], BN))
    left, right = tile.shared((STAGES, BM, BK), tile.f16), tile.shared((STAGES, BK, BN), tile.f16)
    acc = tile.zeros((BM, BN), tile.f32)
    for i in tile.static_range(STAGES - 1):
        tile.copy_async(a, left[i], (m * BM, i * BK))
        tile.copy_async(b, right[i], (i * BK, n * BN))
        tile.commit()
    for i in tile.range(tile.cdiv(a.shape[1], BK)):
        if MISTAKE != "no wait":
            tile.wait(STAGES - 2)
        if MISTAKE != "no barrier":
            tile.barrier()
        ahead = i + STAGES - 1
        slot = (i if MISTAKE == "slot in use" else ahead) % STAGES
        tile.copy_async(a, left[slot], (m * BM, ahead * BK))
        tile.copy_async(b, right[slot], (ahead * BK, n * BN))
        tile.commit()
        at = (i % STAGES, 0, 0)
        acc += tile.dot(tile.load(left, at, (BM, BK)), tile.load(right, at, (BK, BN)))
    tile.wait()
    tile.store(c, (m * BM, n * BN), acc)


@tile.kernel
def through(a: tile.Tensor[tile.f16, "N N"], c: tile.Out[tile.f16, "N N"]):
    """(a a)^T a with a product kept in memory of the kernel's own."""
    x, memory = tile.load(a, (0, 0), (64, 64)), tile.shared((64, 64), tile.f16)
    tile.store(memory, (0, 0), tile.dot(x, x).to(tile.f16))
    tile.barrier()
    tile.store(c, (0, 0), tile.dot(tile.load(memory, (0, 0), (64, 64)).T, x).to(tile.f16))


@tile.kernel
def slots(x: tile.Tensor[tile.f16, "M"], into: tile.Tensor[tile.i32, "K"], out_of: tile.Tensor[tile.i32, "K"],
          y: tile.Out[tile.f16, "K 16 16"]):
    """Slices at any index: those that the memory lacks are not written, and read as 7."""
    memory = tile.shared((3, 16, 16), tile.f16)
    tile.store(memory, (0, 0, 0), tile.zeros((3, 16, 16), tile.f16))
    for k in tile.range(into.shape[0]):
        tile.barrier()
        tile.store(memory, (tile.load(into, (k,), ()), 0, 0), tile.load(x, k, 256).reshape(16, 16))
        tile.barrier()
        tile.store(y, (k, 0, 0), tile.load(memory, (tile.load(out_of, (k,), ()), 0, 0), (16, 16), fill=7.0))


@tile.kernel
def beside(x: tile.InOut[tile.i32, "M N"], N: tile.Const = 30):
    """x + 7 in place, by four ways to read blocks beside which others write: each reads its block and no more."""
    m = tile.grid(tile.cdiv(x.shape[0], 3)) * 3
    memory, copied = tile.shared((8, 12), tile.i32), tile.shared((3, 10), tile.i32)
    for n in tile.range(0, N, 10):
        tile.store(x, (m, n), tile.load(x, (m, n), (3, 10)) + 1)
        rows, columns = m + tile.arange(3)[:, None], n + tile.arange(10)[None, :]
        tile.scatter(x, (rows, columns), tile.gather(x, (rows, columns)) + 1)
        tile.copy_async(x, copied, (m, n))
        tile.commit()
        tile.wait()
        tile.barrier()
        tile.store(memory, (0, 0), tile.load(copied, (0, 0), (3, 10)) + 2)
        tile.barrier()
        tile.store(memory, (3, 0), tile.load(memory, (0, 0), (3, 10)) + 3)
        tile.barrier()
        tile.store(x, (m, n), tile.load(memory, (3, 0), (3, 10)))


def whole(*shape: int) -> Any:
    """Numbers whose sums of products are exact."""
    return np.random.default_rng(0).integers(-3, 4, shape).astype(np.float16)


@pytest.mark.parametrize("target", TARGETS)
def test_a_pipeline_by_hand(target: str) -> None:
    a, b = whole(70, 136), whole(136, 72)
    with tile.target(f"emulate:{target}"):
        c = ring(a, b)
    np.testing.assert_array_equal(c, a.astype(np.float32) @ b.astype(np.float32))
    counts = tile.last_counters().values()
    assert sum(c.wavefronts for c in counts) == sum(c.ideal_wavefronts for c in counts)
    if "cuda" in target:
        loads = [sum(c.instructions.get(kind, 0) for c in counts) for kind in ("ldmatrix", "shared_load")]
        assert loads[0] > 0 == loads[1]


@pytest.mark.parametrize(("mistake", "kind"), [("no wait", "async-pending"), ("no barrier", "uninitialised-shared"),
                                               ("slot in use", "race-war")])
def test_a_mistake_in_it_is_found(mistake: str, kind: str) -> None:
    with tile.target("emulate:cuda:sm_80"), pytest.raises(CheckError) as error:
        ring(whole(70, 136), whole(136, 72), MISTAKE=mistake)
    kinds = {f.split(":")[0] for f in error.value.findings}
    assert kind in kinds <= {"async-pending", "uninitialised-shared", "race-raw", "race-war"}


@pytest.mark.parametrize(("target", "store"), [("cuda:sm_80", "shared_store"), ("cuda:sm_90a", "stmatrix")])
def test_a_result_kept_in_it(target: str, store: str) -> None:
    a = whole(64, 64)
    with tile.target(f"emulate:{target}"):
        c = through(a)
    counts = tile.last_counters().values()
    first = (a.astype(np.float32) @ a.astype(np.float32)).astype(np.float16)  # at most 576: exact
    exact = first.astype(np.float32).T @ a.astype(np.float32)
    np.testing.assert_array_equal(c, exact.astype(np.float16))
    assert any(c.instructions.get(store) for c in counts) and any(c.instructions.get("ldmatrix") for c in counts)
    assert sum(c.wavefronts for c in counts) == sum(c.ideal_wavefronts for c in counts)


@pytest.mark.parametrize("target", ["cpu", "emulate:cuda:sm_75", "emulate:cuda:sm_90a", "emulate:hip:gfx942"])
def test_slices_that_do_not_exist(target: str) -> None:
    args = whole(300), np.array([2, -1, 0, 3, 1 << 30], np.int32), np.array([2, 2, -5, 0, 3], np.int32)
    with tile.target(target):
        np.testing.assert_array_equal(slots(*args), slots.reference(*args))


@pytest.mark.parametrize(("target", "copy"), [("hip:gfx90a", "tl::dma<2>"), ("hip:gfx942", "tl::dma<2>"),
                                              ("hip:gfx950", "tl::dma<8>")])
def test_copies_that_are_asked_for_are_by_the_units_there_are(target: str, copy: str) -> None:
    """Of 4 bytes for each lane where pipelined loops go through registers."""
    a, b, c = np.zeros((64, 96), np.float16), np.zeros((96, 64), np.float16), np.zeros((64, 64), np.float32)
    source = ring.lower(a, b, c, target=target).source
    assert copy in source and source.count("tl::dma<") == source.count(copy) and "tl::wait_operations<" in source
    assert (copy in kernels.matmul.lower(a, b, c, STAGES=2, target=target).source) == (target == "hip:gfx950")


@pytest.mark.parametrize("target", TARGETS)
def test_blocks_are_read_without_what_others_write_beside_them(target: str) -> None:
    """Tiles of 3 x 10, of which threads hold 4 x 16: what is beyond them belongs to other programs and threads."""
    x = np.arange(8 * 30, dtype=np.int32).reshape(8, 30)
    y = x.copy()
    with tile.target(f"emulate:{target}"):
        beside(y)
    assert np.array_equal(y, x + 7)
