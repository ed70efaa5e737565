"""Products whose programs share the steps of all blocks: `ops.matmul`; `ops.mpgemm` has its own tests."""
from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

import tilelang as tile
from tilelang import ops
from tilelang.ops.matmul import matmul_kernel, shared_by
from tilelang.ops.streamk import PROCESSORS, finish_kernel


@pytest.mark.parametrize("target", ["cuda:sm_80", "cuda:sm_90a", "hip:gfx942"])
def test_ragged_products_of_whole_numbers(target: str) -> None:
    """Fewer programs than blocks, more, and some without a step; every sum is exact in f32."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-8, 8, shape).astype(np.float16) for shape in ((130, 200), (200, 70)))
    with tile.target(f"emulate:{target}"):
        for programs in (2, 5, 13, 70):
            c, parts = np.full((130, 70), np.nan, np.float32), np.full((programs, 128, 64), np.nan, np.float32)
            matmul_kernel(a, b, c, BM=64, BN=64, BK=32, ACC=tile.f32, parts=parts)
            finish_kernel(parts, c, 7, BM=64, BN=64)
            np.testing.assert_array_equal(c, a.astype(np.float64) @ b)


def test_the_order_of_additions_is_fixed() -> None:
    """Programs run in three orders in the emulator, and twice over."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float16) for shape in ((64, 640), (640, 64)))
    found = []
    with tile.target("emulate:cuda:sm_80"):
        for _ in range(2):
            c, parts = np.empty((64, 64), np.float32), np.empty((3, 128, 64), np.float32)
            matmul_kernel(a, b, c, BM=64, BN=64, BK=32, ACC=tile.f32, parts=parts)
            found.append(finish_kernel(parts, c, 20, BM=64, BN=64))
    np.testing.assert_array_equal(*found)


def test_blocks_are_shared_where_that_is_quicker() -> None:
    """Few deep blocks, or a few more than processors; not short products, nor many blocks."""
    assert shared_by(128, 128, 1 << 16, 128, 128, 32) == PROCESSORS
    assert shared_by(128 * 7, 128 * 20, 4096, 128, 128, 32) == PROCESSORS
    assert not shared_by(128, 128, 512, 128, 128, 32)
    assert not shared_by(8192, 8192, 4096, 128, 128, 32)
    assert not shared_by(0, 128, 4096, 128, 128, 32)


def test_matmul_shares_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, asked = np.random.default_rng(0), []

    def five(*of: Any) -> int:
        asked.append(of)
        return 5
    monkeypatch.setattr(importlib.import_module("tilelang.ops.matmul"), "shared_by", five)
    a, b = (rng.integers(-8, 8, shape).astype(np.float16) for shape in ((20, 100), (100, 20)))
    with tile.target("emulate:cuda:sm_80"):
        np.testing.assert_array_equal(ops.matmul(a, b), (a.astype(np.float64) @ b).astype(np.float16))
    assert asked


@pytest.mark.parametrize("m", [200, 128])
def test_products_by_groups_of_warps(m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every processor has such a block, those that other warps copy for; integers in floats are exact."""
    module = importlib.import_module("tilelang.ops.matmul")
    assert module.group_blocks(128 * 12, 256 * 11, 4096) == (128, 256, 64)
    assert module.group_blocks(128 * 12, 256 * 10, 4096) == (128, 128, 64)
    monkeypatch.setattr(module, "PROCESSORS", 1)
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-3, 4, shape).astype(np.float16) for shape in ((m, 200), (200, 264)))
    with tile.target("emulate:cuda:sm_90a"):
        np.testing.assert_array_equal(ops.matmul(a, b), (a.astype(np.float64) @ b).astype(np.float16))
