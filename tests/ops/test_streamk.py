"""Products whose programs share the steps of all blocks: `ops.matmul`; `ops.mpgemm` has its own tests."""
from __future__ import annotations

import importlib
import re
from typing import Any

import numpy as np
import pytest

import tilelang as tile
from benchmarks import sass
from tests.backends.simt.test_group_products import findings
from tilelang import ops
from tilelang.backends.cuda import nvrtc
from tilelang.backends.simt.compile import Lowered
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


# -- warps that only copy ---------------------------------------------------------------------------------------------
def hopper(bn: int = 128) -> tuple[Lowered, list[Any]]:
    """Five blocks of two steps by two programs, each of which does two whole blocks and shares the third; a block is
    alone on its multiprocessor."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-3, 4, shape).astype(np.float16) for shape in ((600, 104), (104, bn)))
    c, parts = np.zeros((600, bn), np.float16), np.zeros((2, 256, bn), np.float32)
    code = matmul_kernel.lower(a, b, c, target="cuda:sm_90a", BM=128, BN=bn, BK=64, ACC=tile.f32, parts=parts)
    return code, [a, b, c, parts]


MISTAKES = {  # what becomes of a line: what the emulator calls that
    "copies begin with the ring anew at each block": (r"stage = stage_1;", "", ("deadlock", "mbarrier")),
    "consumers begin with the ring anew": (
        r"stage_2 = stage_3;", "", ("deadlock", "product-pending", "async-pending")),
    "the phase of the ring is not carried on": (r"parity_2 = parity_3;", "", ("deadlock", "async-pending")),
    "sums are used under way": (r"tl::group_wait<0>\(.*", "", ("product-pending",)),
    "a result is written over while it is copied": (
        r"tl::bulk_wait<0, true>\((?=[^}]*}\s*tl::fence)", "tl::bulk_wait<1, true>(", ("async-pending", "race-war")),
}


@pytest.mark.parametrize("name", ["", *MISTAKES])
def test_copies_of_the_next_block_run_beside_the_end_of_this_one(name: str) -> None:
    code, arrays = hopper()
    assert "8 of 240 registers do the rest" in code.roles and "TMA, 3 stages;" in code.copies
    pattern, instead, kinds = MISTAKES.get(name, ("", "", ()))
    text = re.sub(pattern, instead, code.rendered.text) if name else code.rendered.text
    assert (text == code.rendered.text) == (not name)
    found = findings(code, text, arrays)
    assert any(f.kind in kinds for f in found) if name else not found, found


@pytest.mark.skipif(nvrtc.find() is None or sass.find() is None, reason="NVRTC or nvdisasm is not installed")
def test_machine_code() -> None:
    """The loop has products, waits and descriptors alone, and no product waits for the one before."""
    code, _ = hopper(256)
    report = code.report
    assert report["spills"] == report["stack_bytes"] == report["serialized"] == 0
    text = sass.disassemble(code.cubin)  # type: ignore[attr-defined]
    loop = sass.classes(sass.main_loop(text, code.rendered.name))
    assert loop["HGMMA"] == 4 and loop["SYNCS"] == 2 and not {"UTMALDG", "BAR", "ELECT", "R2UR"} & loop.keys()
    assert loop["WARPGROUP"] == 2 and sum(loop.values()) <= 56
