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
from tilelang.ops.matmul import FLOPS, Plan, group_blocks, matmul_kernel, nanoseconds, plan, product
from tilelang.ops.streamk import CACHE, PROCESSORS, finish_kernel


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
    shapes = (128, 128, 1 << 16), (128 * 7, 128 * 20, 4096), (128, 128, 512), (8192, 8192, 4096), (0, 128, 4096)
    assert [plan(*s, ((128, 128, 32),)).programs for s in shapes] == [PROCESSORS, PROCESSORS, 0, 0, 0]


def test_pairs_of_programs_copy_for_each_other_where_the_cache_would_hold_products_up() -> None:
    """By the bytes that they read of it: a block of the wider operand is read once for two. Not where the grid is not
    made of pairs, steps are few, or sharing steps gains more."""
    def of(*shape: int) -> Plan:
        return plan(*shape, group_blocks(*shape), 2)
    assert of(4096, 4096, 4096) == (128, 256, 64, (2, 1), 0)
    assert of(128 * 17, 256 * 15, 4096).CLUSTER == (1, 1)
    assert of(4096, 4096, 256).CLUSTER == (1, 1)
    assert of(1024, 1024, 8192)[3:] == ((1, 1), PROCESSORS)
    each = [nanoseconds(Plan(128, 256, 64, c), 4096, 4096, 4096, 2) * (0.9 if c != (1, 1) else 1)
            for c in ((1, 1), (1, 2), (2, 1))]
    read = [128 + 256, 64 + 256, 2 * 128 * 256 / FLOPS / (2 * PROCESSORS / CACHE)]  # not 128 + 128
    np.testing.assert_allclose(np.array(each) / each[0], np.array(read) / read[0])


@pytest.mark.parametrize("how", [Plan(16, 16, 32, programs=5), Plan(16, 32, 32)], ids=str)
def test_matmul_goes_by_the_plan(how: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, asked = np.random.default_rng(0), []

    def planned(*of: Any) -> Plan:
        asked.append(of)
        return how
    monkeypatch.setattr(importlib.import_module("tilelang.ops.matmul"), "plan", planned)
    a, b = (rng.integers(-8, 8, shape).astype(np.float16) for shape in ((20, 100), (100, 20)))
    with tile.target("emulate:cuda:sm_80"):
        np.testing.assert_array_equal(ops.matmul(a, b), (a.astype(np.float64) @ b).astype(np.float16))
    assert asked


@pytest.mark.parametrize(("m", "how"), [(200, Plan(128, 256, 64)), (128, Plan(128, 256, 64)),
                                        (250, Plan(64, 64, 64, (2, 1))), (184, Plan(64, 128, 64, (1, 2)))], ids=str)
def test_products_by_groups_of_warps(m: int, how: Plan) -> None:
    """Blocks that other warps copy, or other programs; integers in floats are exact."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-3, 4, shape).astype(np.float16) for shape in ((m, 200), (200, 232)))
    c = np.full((m, 232), np.nan, np.float16)
    code = matmul_kernel.lower(a, b, c, target="cuda:sm_90a", **dict(zip(("BM", "BN", "BK", "CLUSTER"), how[:4],
                                                                         strict=True)), ACC=tile.f32)
    assert ("TMA multicast to 2 programs" in code.copies) == (how.CLUSTER != (1, 1)) != bool(code.roles)
    with tile.target("emulate:cuda:sm_90a"):
        product(a, b, c, how)
    np.testing.assert_array_equal(c, (a.astype(np.float64) @ b).astype(np.float16))


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
