"""Whole kernels on every target: results, and barriers that are enough and of which none can be left out."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilelang as tile
from tests.backends.simt import kernels
from tests.backends.simt.barriers import barriers, needless
from tests.backends.simt.emulated import GPUS
from tilelang import ops, targets

CALLS = kernels.calls()


@pytest.mark.parametrize("target", GPUS)
@pytest.mark.parametrize("name", CALLS)
def test_same_result_as_on_the_cpu(name: str, target: str) -> None:
    wanted = CALLS[name]()
    with tile.target("emulate:" + target):
        got = CALLS[name]()
    for g, w in zip(*(x if isinstance(x, tuple) else (x,) for x in (got, wanted)), strict=True):
        # Sums of at most 256 terms of order 1 in two orders of f32, or one rounding of f16.
        np.testing.assert_allclose(g, w, rtol=2.0 ** -10, atol=256 * 2.0 ** -23)


# Calls that run the other part of a loop that was split: no block is whole, or, of `ops.linear`, all are.
OTHERS = {
    "every other block f16": lambda: kernels.every_other(kernels.normal(32, 24, dtype=np.float16),
                                                         kernels.normal(24, 32, dtype=np.float16)),
    "attention f16": lambda: kernels.attention(*(kernels.normal(24, 32, dtype=np.float16) for _ in range(3))),
    "ops.linear": lambda: ops.linear(kernels.normal(48, 260), kernels.normal(48, 260), kernels.normal(48)),
}


@pytest.mark.parametrize("target", ["cuda:sm_80", "hip:gfx942"])
@pytest.mark.parametrize(
    "name",
    [
        "matmul f16",
        "matmul f16, 3 stages",
        "every other block f16",
        "attention f16",
        "attention f16, 2 stages",
        "reread f16, 2 stages",
        "rows",
        "matmul f32",
        "ops.linear",
    ],
)
def test_no_barrier_can_be_left_out(name: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    run = targets.emulate

    def spy(code, arrays, shapes, strides):  # type: ignore[no-untyped-def]
        seen.append((code, [np.array(a) for a in arrays], shapes, strides))
        run(code, arrays, shapes, strides)
    monkeypatch.setattr(targets, "emulate", spy)
    with tile.target("emulate:" + target):
        for call in filter(None, [CALLS[name], OTHERS.get(name)]):
            call()
    code, *_ = codes = [other.suited(arrays, shapes, strides) for other, arrays, shapes, strides in seen]
    assert all(other.source == code.source for other in codes)
    assert barriers(code)
    assert needless(code, [arguments for _, *arguments in seen], monkeypatch) == []


def test_a_loop_repeats_no_barrier_for_nothing() -> None:
    """The operands of a product without an instruction are read along k: one barrier before, one after."""
    x, c = kernels.normal(33, 100), np.empty((33, 33), np.float32)
    y = np.ascontiguousarray(x.T)
    warps = kernels.matmul.lower(x, y, c, target="cuda:sm_80").rendered.threads // 32
    with tile.target("emulate:cuda:sm_80"):
        kernels.matmul(x, y, c=c)
    met = sum(counts.instructions.get("barrier", 0) for counts in tile.last_counters().values())
    assert met == 2 * 2 * 4 * 2 * warps  # programs, blocks of k, before and after


@pytest.mark.parametrize(("target", "product"), [("cuda:sm_80", 16 * 8 * 16), ("hip:gfx942", 32 * 32 * 16),
                                                 ("hip:gfx950", 32 * 32 * 16)])
def test_counters_of_a_matmul(target: str, product: int) -> None:
    """Matrix instructions, no bank conflicts, whole sectors, 16 bytes at a time."""
    a, b = kernels.normal(128, 64, dtype=np.float16), kernels.normal(64, 128, dtype=np.float16)
    with tile.target("emulate:" + target):
        kernels.matmul(a, b, BM=64, BN=64, BK=32, STAGES=3)
    total = sum(tile.last_counters().values(), start=next(iter(tile.last_counters().values())).__class__())
    assert total.mma == 128 * 128 * 64 // product
    assert total.wavefronts == total.ideal_wavefronts
    assert total.sectors == total.ideal_sectors


@pytest.mark.parametrize(("target", "op", "stored"), [("cuda:sm_80", "shared_store", 256),
                                                      ("cuda:sm_90a", "stmatrix", 64)])
def test_results_pass_through_shared_memory_by_whole_matrices(target: str, op: str, stored: int) -> None:
    """An accumulator of f16 on its way to whole sectors: four registers of a lane at a time where there is `stmatrix`,
    and no bank conflicts in either way."""
    a, b = kernels.normal(128, 64, dtype=np.float16), kernels.normal(64, 128, dtype=np.float16)
    want = ops.matmul(a, b)
    with tile.target("emulate:" + target):
        got = ops.matmul(a, b)
    # Sums of 64 products in f32 in two orders, then one rounding to f16 each.
    np.testing.assert_allclose(got, want, rtol=2.0 ** -10, atol=64 * 2.0 ** -20)
    counters = tile.last_counters().values()
    assert sum(c.instructions.get(op, 0) for c in counters) == stored
    assert sum(c.wavefronts for c in counters) == sum(c.ideal_wavefronts for c in counters)


@pytest.mark.parametrize("dt", [np.int8, np.float16])
@pytest.mark.parametrize("turned", [False, True])
def test_conversions_by_whole_matrices(dt: Any, turned: bool) -> None:
    """Accumulators become operands of a transposed product: through shared memory, by `stmatrix`, `ldmatrix` or what
    fits."""
    a, b = (np.random.default_rng(i).integers(-4, 5, (64, 64)).astype(dt) for i in range(2))
    with tile.target("cpu"):
        want = kernels.twice(a, b, TURNED=turned)
    with tile.target("emulate:cuda:sm_90a"):
        np.testing.assert_array_equal(kernels.twice(a, b, TURNED=turned), want)


@pytest.mark.parametrize("target", ["cpu", "emulate:cuda:sm_75", "emulate:cuda:sm_80", "emulate:hip:gfx942"])
def test_copies_into_slices_of_a_buffer(target: str) -> None:
    x, at = kernels.normal(7, 60, dtype=np.float16), np.array([2, 0, 9, 3, -1, 2, 1], np.int32)
    ring, want = np.zeros((4, 60), np.float16), np.zeros((7, 4, 60), np.float16)
    for k, slot in enumerate(at):
        if 0 <= slot < 4:
            ring[slot] = x[k]
        want[k] = ring
    np.testing.assert_array_equal(kernels.slots.reference(x, at), want)
    with tile.target(target):
        np.testing.assert_array_equal(kernels.slots(x, at), want)
