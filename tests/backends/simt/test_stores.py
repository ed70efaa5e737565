"""Tiles that one thread copies to tensors as whole blocks: which, what comes of it, and what the emulator says of
mistakes in it."""
from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tilelang as tile
from tests.backends.simt import kernels
from tests.backends.simt.test_bulk import written
from tests.backends.simt.test_group_products import findings
from tests.backends.simt.test_roles import persistent
from tilelang.backends.simt import bulk
from tilelang.backends.simt import compile as simt
from tilelang.backends.simt.compile import Lowered
from tilelang.backends.simt.stores import layouts, store_blocks
from tilelang.ir.parser import parse
from tilelang.ir.text import print_function
from tilelang.passes.driver import run_passes

TARGET = "cuda:sm_90a"
CONSTS = {"BM": 64, "BN": 128, "BK": 64, "STAGES": 3}


@given(st.sampled_from([1, 2, 4, 8]), st.lists(st.sampled_from([1, 3, 8, 16, 64]), min_size=1, max_size=2), st.data())
def test_layouts_have_boxes_where_their_rows_are_pieces(size: int, extents: list[int], data: st.DataObject) -> None:
    inner = data.draw(st.sampled_from([d for d, n in enumerate(extents) if n > 1] or [0]))
    found = layouts(tuple(extents), inner, size)
    for place in found:
        assert place.shape == tuple(extents)
        boxes = bulk.boxes(place, size)
        if isinstance(boxes, bulk.Boxes):
            assert boxes.order[0] == inner or extents[inner] == 1
            np.testing.assert_array_equal(written(boxes, size, place.shape), place.table())
    if extents[inner] * size % 16 == 0 and extents[inner] > 1:
        assert any(isinstance(bulk.boxes(place, size), bulk.Boxes) for place in found)


def product(shape: tuple[int, int, int]) -> tuple[Lowered, list[Any]]:
    """c = a @ b.T of f16, and its arguments."""
    m, n, k = shape
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-3, 4, s).astype(np.float16) for s in ((m, k), (n, k)))
    c = np.zeros((m, n), np.float16)
    return kernels.matmul_t.lower(a, b, c, target=TARGET, **CONSTS), [a, b, c]


@pytest.mark.parametrize("shape", [(64, 128, 64), (100, 200, 72), (8, 8, 8)], ids=str)
def test_products(shape: tuple[int, int, int]) -> None:
    code, (a, b, c) = product(shape)
    assert "TMA store" in code.copies and code.source.count("tl::tensor_store(") == 2  # panels of 128 bytes
    assert "tl::stmatrix<4, false>" in code.source and not re.search(r"tl::st<\d>\(c,", code.source)
    with tile.target(f"emulate:{TARGET}"):
        kernels.matmul_t(a, b, c, **CONSTS)
    np.testing.assert_array_equal(c, a.astype(np.float64) @ b.astype(np.float64).T)
    counters = tile.last_counters().values()
    assert sum(x.wavefronts for x in counters) == sum(x.ideal_wavefronts for x in counters)


def whole() -> tuple[Lowered, list[Any]]:
    return product((64, 128, 64))


def loop() -> tuple[Lowered, list[Any]]:
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-3, 4, shape).astype(np.float16) for shape in ((3, 128, 72), (3, 72, 128)))
    c = np.zeros((3, 128, 128), np.float16)
    return kernels.rows_of_products.lower(a, b, c, target=TARGET, BM=128), [a, b, c]


def beside() -> tuple[Lowered, list[Any]]:
    """Matrix after matrix, with warps that only copy."""
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-3, 4, shape).astype(np.float16) for shape in ((3, 128, 136), (3, 136, 64)))
    c = np.zeros((3, 128, 64), np.float16)
    return persistent.lower(a, b, c, target=TARGET), [a, b, c]


def test_copies_beside_the_next_iteration() -> None:
    """Who writes to the buffer again waits for the copy of the iteration before; the last is waited for at the end."""
    code, (a, b, c) = beside()
    wanted = [r"tl::wgmma", r"tl::bulk_wait<0, true>", r"tl::stmatrix", r"tl::tensor_store", r"tl::bulk_wait<0, true>"]
    assert re.search(r"[\s\S]*".join(wanted), code.source) and code.source.count("bulk_wait<0, true>") == 2
    with tile.target(f"emulate:{TARGET}"):
        persistent(a, b, c)
    np.testing.assert_array_equal(c, a.astype(np.float64) @ b.astype(np.float64))


def test_a_buffer_in_a_loop() -> None:
    code, (a, b, c) = loop()
    assert "TMA store" in code.copies
    with tile.target(f"emulate:{TARGET}"):
        kernels.rows_of_products(a, b, c, BM=128)
    np.testing.assert_array_equal(c, a.astype(np.float64) @ b.astype(np.float64))


@tile.kernel
def turned(a: tile.Tensor[tile.f16, "M K"], b: tile.Tensor[tile.f16, "K N"], c: tile.InOut[tile.f16, "M N"],
           d: tile.Out[tile.f32, "M N"], e: tile.Out[tile.f16, "N"], BM: tile.Const = 64):
    """c += a @ b, d = a @ b and the sums of its columns."""
    acc = tile.dot(tile.load(a, (0, 0), (BM, BM)), tile.load(b, (0, 0), (BM, BM)))
    tile.store(c, (0, 0), (tile.load(c, (0, 0), (BM, BM)).to(tile.f32) + acc).to(tile.f16))
    tile.store(d, (0, 0), acc)
    tile.store(e, (0,), acc.sum(0).to(tile.f16))


@tile.kernel
def split(a: tile.Tensor[tile.f16, "M K"], b: tile.Tensor[tile.f16, "K N"], c: tile.InOut[tile.f32, "M N"],
          BM: tile.Const = 128, BK: tile.Const = 64):
    """c += a @ b: programs of one block of c add to it."""
    m, n, k = tile.grid(tile.cdiv(a.shape[0], BM), tile.cdiv(b.shape[1], BM), tile.cdiv(a.shape[1], BK))
    acc = tile.dot(tile.load(a, (m * BM, k * BK), (BM, BK)), tile.load(b, (k * BK, n * BM), (BK, BM)))
    tile.atomic_add(c, (tile.arange(BM)[:, None] + m * BM, n * BM + tile.arange(BM)[None, :]), acc)


@pytest.mark.parametrize("block", [128, 16])
def test_sums_of_several_programs(block: int) -> None:
    rng = np.random.default_rng(2)
    a, b = (rng.integers(-3, 4, shape).astype(np.float16) for shape in ((72, 136), (136, 136)))
    c = np.ones((72, 136), np.float32)
    code = split.lower(a, b, c, target=TARGET, BM=block)
    assert ("TMA add" if block == 128 else "atomics (stores by all threads cost less)") in code.copies
    with tile.target(f"emulate:{TARGET}"):
        split(a, b, c, BM=block)
    np.testing.assert_array_equal(c, 1 + a.astype(np.float64) @ b.astype(np.float64))


@tile.kernel
def indexed(x: tile.InOut[tile.f32, "M N"], y: tile.InOut[tile.f32, "M N"], z: tile.InOut[tile.f32, "M N"],
            BM: tile.Const = 256):
    """Additions at indices that name no block, or whose results are used."""
    i, j, v = tile.arange(BM)[:, None], tile.arange(BM)[None, :], tile.full((BM, BM), 1.0, tile.f32)
    tile.atomic_add(x, (i, 2 * j), v)
    tile.atomic_add(y, (i, i + j), v)
    tile.store(z, (0, 0), tile.atomic_add(z, (i, j), v))


def test_where_it_does_not_apply_the_report_says_why() -> None:
    a, c = np.zeros((64, 64), np.float16), np.zeros((64, 64), np.float16)
    code = turned.lower(a, a, c, np.zeros((64, 64), np.float32), np.zeros(64, np.float16), target=TARGET)
    for why in ("the program accesses the tensor elsewhere", "stores by all threads cost less"):
        assert f"stores ({why}" in code.copies
    assert "TMA" not in indexed.lower(*np.zeros((3, 256, 256), np.float32), target=TARGET).copies
    odd = np.zeros((64, 65), np.float16)[:, :64]
    assert "not known to be multiples of 16" in kernels.matmul_t.lower(a, a, odd, target=TARGET, **CONSTS).copies
    assert "stores" not in kernels.matmul_t.lower(a, a, c, target="cuda:sm_80", **CONSTS).copies


def test_every_level_means_the_same_and_reads_back() -> None:
    code, _ = product((64, 128, 64))
    passes = (*simt.TILE_PASSES, *simt.PLACED_PASSES)
    at = passes.index(store_blocks)
    run_passes(run_passes(code.tile, code.target, passes[:at]), code.target, passes[at:], check=2, dump="")
    for text in map(print_function, (code.placed, code.thread)):
        assert print_function(parse(text)) == text


# -- mistakes ---------------------------------------------------------------------------------------------------------
MISTAKES = {  # what is taken out of the text, of which kernel: what the emulator calls that, and the operation
    "no fence before the copy": (r"tl::fence_memory\(.*\n( *tl::barrier\(.*(?=(\n.*){1,4}tensor_store))", r"\1", whole,
                                 "missing-fence", "tensor_store"),
    "a copy before all have written": (r"tl::barrier\(.*(?=(\n.*){1,4}tensor_store)", "", whole, "race-raw",
                                       "tensor_store"),
    "the kernel ends before the buffer was read": (r"tl::bulk_wait<0, true>.*", "", whole, "async-unwaited",
                                                   "tensor_store"),
    "the buffer is written before it was read": (r"tl::bulk_wait<0, (true|false)>.*", "", loop, "async-pending",
                                                 "stmatrix"),
    "the buffer is written beside the copy of the iteration before": (
        r"tl::bulk_wait<0, true>.*(?=[\s\S]*tl::bulk_wait<0, true>)", "", beside, "async-pending", "stmatrix"),
    "the kernel ends before the last iteration's buffer was read": (
        r"tl::bulk_wait<0, true>.*(?![\s\S]*tl::bulk_wait<0, true>)", "", beside, "async-unwaited", "tensor_store"),
    "nobody closes the group": (r"tl::bulk_commit.*", "", loop, "async-pending", "stmatrix"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_by_line(name: str) -> None:
    pattern, instead, made, kind, op = MISTAKES[name]
    code, arrays = made()
    broken = re.sub(pattern, instead, code.rendered.text)
    assert broken != code.rendered.text
    found = findings(code, broken, arrays)
    named = [code.rendered.ops[n] for f in found if f.kind == kind for n in (f.op, f.other_op)]
    assert any(o.name == op and o.loc is not None and o.loc.line for o in named), found


def test_the_stores_themselves_are_right() -> None:
    for code, arrays in (loop(), beside(), whole()):
        assert not findings(code, code.rendered.text, arrays)
