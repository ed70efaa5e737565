"""Rings that one thread fills by copies of blocks: which blocks, what comes of it, and what the emulator says of
mistakes in them."""
from __future__ import annotations

import re
from itertools import product
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tilelang as tile
from tests.backends.simt import kernels
from tests.backends.simt.test_group_products import findings
from tilelang.backends.cuda import nvrtc
from tilelang.backends.simt import bulk
from tilelang.backends.simt.compile import Lowered
from tilelang.backends.simt.group_products import panels
from tilelang.backends.simt.pipeline import pipeline
from tilelang.backends.simt.place import place
from tilelang.backends.simt.separate import separate
from tilelang.ir.parser import parse
from tilelang.ir.text import print_function
from tilelang.layouts import SharedLayout, Swizzle, shared
from tilelang.passes.driver import run_passes
from tilelang.passes.pipeline import TILE_PASSES

TARGET = "cuda:sm_90a"


# -- which blocks -----------------------------------------------------------------------------------------------------
def written(found: bulk.Boxes, size: int, shape: tuple[int, ...]) -> Any:
    """Where copies of the boxes put each element of a block, by the words of the PTX manual."""
    out = np.full(shape, -1)
    for start, offset in found.starts:
        for count, at in enumerate(product(*(range(n) for n in reversed(found.extents)))):
            index = list(start)
            for d, i in zip(found.order, reversed(at), strict=True):
                index[d] += i
            byte = (offset + count) * size
            if found.swizzle:
                byte ^= (byte >> 7 & (found.swizzle // 16 - 1)) << 4
            assert out[tuple(index)] == -1
            out[tuple(index)] = byte // size
    return out


@given(st.sampled_from([1, 2, 4]), st.sampled_from([32, 64, 128]), st.integers(1, 4), st.integers(1, 40),
       st.booleans())
def test_boxes_fill_panels(size: int, width: int, count: int, groups: int, turned: bool) -> None:
    layout = panels(8 * groups, count * width // size, size, width // size)
    assert layout is not None
    layout = layout.permute((1, 0)) if turned else layout
    found = bulk.boxes(layout, size)
    assert isinstance(found, bulk.Boxes) and found.align <= 1024 and max(found.extents) <= bulk.EXTENT
    np.testing.assert_array_equal(written(found, size, layout.shape), layout.table())


@given(st.sampled_from([2, 4, 8]),
       st.lists(st.sampled_from([1, 2, 3, 4, 8, 16, 64]), min_size=1, max_size=4).filter(lambda n: prod(n) <= 1 << 14))
def test_boxes_fill_rows(size: int, extents: list[int]) -> None:
    layout = shared(tuple(extents))
    found = bulk.boxes(layout, size)
    if isinstance(found, bulk.Boxes):
        np.testing.assert_array_equal(written(found, size, layout.shape), layout.table())
    else:
        run = next((n for n in reversed(extents) if n > 1), 0)
        assert not run or run * size % 16 or run > 256 or len(extents) > 1


@pytest.mark.parametrize(("layout", "why"), [
    (shared((64, 64), swizzle=(3, 3, 4)), "permutes"), (shared((64, 32), swizzle=(3, 3, 3)), "permutes"),
    (shared((64, 6)), "rows of 6 elements"), (shared((4, 512)), "at most 256"), (shared((1, 1)), "no neighbours"),
    (SharedLayout((((64, 64),), ((64, 1),)), Swizzle(3, 3, 3, Swizzle(1, 3, 4))), "permutes"),
])
def test_other_layouts_have_no_boxes(layout: SharedLayout, why: str) -> None:
    assert why in str(bulk.boxes(layout, 2))


# -- what comes of it -------------------------------------------------------------------------------------------------
CASES = [  # extents of the matrices and of blocks, stages
    (200, 136, 72, 128, 128, 64, 3), (64, 64, 320, 64, 64, 64, 3), (128, 64, 40, 64, 64, 64, 2),
    (64, 64, 328, 64, 64, 32, 4), (192, 64, 64, 64, 64, 64, 6),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", ["matmul", "matmul_t"])
def test_products(name: str, case: tuple[int, ...]) -> None:
    m, n, k, *blocks = case
    consts = dict(zip(("BM", "BN", "BK", "STAGES"), blocks, strict=True))
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-3, 4, shape).astype(np.float16) for shape in ((m, k), (k, n)))
    kernel, right = getattr(kernels, name), b if name == "matmul" else np.ascontiguousarray(b.T)
    assert f"TMA, {blocks[-1]} stages" in kernel.lower(a, right, target=TARGET, **consts).copies
    with tile.target(f"emulate:{TARGET}"):
        c = kernel(a, right, **consts)
    np.testing.assert_array_equal(c, a.astype(np.float64) @ b.astype(np.float64))


@pytest.mark.parametrize("arch", ["sm_100a", "sm_120a"])
def test_rings_that_single_warps_read(arch: str) -> None:
    """Without products of four warps, blocks lie in panels, too, which `ldmatrix` reads without conflicts."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-3, 4, shape).astype(np.float16) for shape in ((100, 136), (72, 136)))
    consts = {"BM": 64, "BN": 128, "BK": 64, "STAGES": 3}
    code = kernels.matmul_t.lower(a, b, target=f"cuda:{arch}", **consts)
    assert "TMA, 3 stages" in code.copies and "TMA store" in code.copies and "mma_m16n8k16" in code.products
    if nvrtc.find() is not None:
        assert code.report["spills"] == 0
    with tile.target(f"emulate:cuda:{arch}"):
        c = kernels.matmul_t(a, b, **consts)
    np.testing.assert_array_equal(c, a.astype(np.float64) @ b.astype(np.float64).T)
    counters = tile.last_counters().values()
    assert sum(x.wavefronts for x in counters) == sum(x.ideal_wavefronts for x in counters)


@pytest.mark.parametrize("k", [64, 200, 448])
def test_a_ring_in_a_loop(k: int) -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-3, 4, shape).astype(np.float16) for shape in ((3, 64, k), (3, k, 64)))
    c = np.zeros((3, 64, 64), np.float32)
    assert "TMA" in kernels.rows_of_products.lower(a, b, c, target=TARGET).copies
    with tile.target(f"emulate:{TARGET}"):
        kernels.rows_of_products(a, b, c)
    np.testing.assert_array_equal(c, a.astype(np.float64) @ b.astype(np.float64))


def test_keys_and_values_of_attention() -> None:
    rng = np.random.default_rng(2)
    q, k, v = (rng.standard_normal((n, 64)).astype(np.float16) for n in (64, 328, 328))
    consts = {"BM": 64, "BN": 64, "BD": 64, "STAGES": 3}
    code = kernels.attention.lower(q, k, v, target=TARGET, **consts)
    assert code.copies.count("TMA, 3 stages") == 2
    with tile.target(f"emulate:{TARGET}"):
        o = kernels.attention(q, k, v, **consts)
    s = q.astype(np.float64) @ k.T.astype(np.float64)
    p = np.exp(s - s.max(1, keepdims=True))
    np.testing.assert_allclose(o, p @ v.astype(np.float64) / p.sum(1, keepdims=True), atol=4e-3)


def test_strides_that_no_map_can_say_take_copies_by_all_threads() -> None:
    a, b = np.ones((64, 64), np.float16), np.eye(64, dtype=np.float16)
    consts = {"BM": 64, "BN": 64, "BK": 64, "STAGES": 3}
    for x in (np.broadcast_to(a[:1], a.shape), a[::-1]):
        code = kernels.matmul.lower(x, b, target=TARGET, **consts)
        shapes, strides = [x.shape, b.shape, a.shape], [[s // y.itemsize for s in y.strides] for y in (x, b, a)]
        assert "tensor_load" in code.source and "tensor_load" not in code.suited([x, b, a], shapes, strides).source
        with tile.target(f"emulate:{TARGET}"):
            np.testing.assert_array_equal(kernels.matmul(x, b, **consts), a.astype(np.float32))


REASONS = {
    "rows apart by an odd number": (np.zeros((64, 129), np.float16)[:, :128], {}, "not known to be multiples of 16"),
    "small blocks": (np.zeros((64, 128), np.float16), {"BM": 64, "BN": 16, "BK": 16}, "too small"),
}


@pytest.mark.parametrize("name", REASONS)
def test_where_it_does_not_apply_the_report_says_why(name: str) -> None:
    a, consts, why = REASONS[name]
    b = np.zeros((128, 64), np.float16)
    code = kernels.matmul.lower(a, b, target=TARGET, **{"BM": 64, "BN": 64, "BK": 64, "STAGES": 3, **consts})
    assert "cp.async" in code.copies and why in code.copies and "TL_TENSOR_MAP" not in code.source


def test_every_level_means_the_same_and_reads_back() -> None:
    code, _ = ring()
    run_passes(code.tile, code.target, (*TILE_PASSES, separate, place, pipeline), check=2, dump="")
    for text in map(print_function, (code.placed, code.thread)):
        assert print_function(parse(text)) == text


# -- mistakes ---------------------------------------------------------------------------------------------------------
def ring() -> tuple[Lowered, list[Any]]:
    """A product whose operands come by a ring of three blocks, and its arguments."""
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-3, 4, shape).astype(np.float16) for shape in ((64, 448), (448, 64)))
    c = np.zeros((64, 64), np.float32)
    return kernels.matmul.lower(a, b, c, BM=64, BN=64, BK=64, STAGES=3, target=TARGET), [a, b, c]


MISTAKES = {  # what becomes of a line of the loop: what the emulator calls that, and the operation that it names
    "no wait for full blocks": (r"tl::mbarrier_wait\(barriers, stage,.*", "", "async-pending", "group_mma"),
    "no wait for empty blocks": (r"tl::mbarrier_wait\(barriers, x.*", "", "race-war", "tensor_load"),
    "the wrong phase": (r"(tl::mbarrier_wait\(barriers, stage, )parity", r"\1(parity ^ 1)", "async-pending",
                        "group_mma"),
    "nobody gives blocks back": (r"tl::mbarrier_arrive\(.*", "", "deadlock", "mbarrier_wait"),
    "blocks given back too early": (r"tl::group_wait<1>\(.*", "", "product-pending", "tensor_load"),
    "bytes that never come": (r"(tl::mbarrier_expect\(barriers, x\d+, )\d+", r"\g<1>20000", "deadlock",
                              "mbarrier_wait"),
    "no fence after barriers were made": (r"tl::fence_memory\(.*", "", "missing-fence", "tensor_load"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_by_line(name: str) -> None:
    code, arrays = ring()
    pattern, instead, kind, op = MISTAKES[name]
    text = code.rendered.text
    broken = re.sub(pattern, instead, text)
    assert broken != text
    found = findings(code, broken, arrays)
    named = [code.rendered.ops[f.op] for f in found if f.kind == kind]
    assert any(o.name == op and o.loc is not None and o.loc.file == kernels.__file__ for o in named), found


def test_the_ring_itself_is_right() -> None:
    code, arrays = ring()
    assert not findings(code, code.rendered.text, arrays)


# -- keys and values: who needs the first does not wait for the others ------------------------------------------------
def keys_and_values() -> tuple[Lowered, list[Any], dict[str, list[int]]]:
    """Attention, its arguments, and the numbers of its operations on values alone, by name, in the text's order."""
    arrays = [*(kernels.normal(n, 64, dtype=np.float16) for n in (64, 192, 192)), np.zeros((64, 64), np.float32)]
    code = kernels.attention.lower(*arrays, BM=64, BN=64, BD=64, STAGES=2, target=TARGET)
    lines = {op.loc.line for op in code.placed.walk() if op.loc and op.name == "copy_bulk"
             and op.operands[0].name == "v"}
    numbers: dict[str, list[int]] = {}
    for i, op in enumerate(code.rendered.ops):
        if op.loc and op.loc.line in lines:
            numbers.setdefault(op.name, []).append(i)
    return code, arrays, numbers


def without(text: str, numbers: list[int]) -> str:
    """The text without the lines of these operations."""
    return "".join(line for line in text.splitlines(True) if not any(f"tl::op({n})" in line for n in numbers))


def test_products_with_keys_do_not_wait_for_values() -> None:
    """If no values ever come, that is where all stop."""
    code, arrays, numbers = keys_and_values()
    assert not findings(code, code.rendered.text, arrays)
    found = findings(code, without(code.rendered.text, numbers["tensor_load"]), arrays)
    assert {f.op for f in found if f.kind == "deadlock"} <= set(numbers["mbarrier_wait"]) and found
    first = next(i for i, op in enumerate(code.rendered.ops) if op.name == "group_mma")
    assert first < min(numbers["mbarrier_wait"]) < min(numbers["group_mma"])


def test_products_with_values_wait_for_them() -> None:
    code, arrays, numbers = keys_and_values()
    found = findings(code, without(code.rendered.text, numbers["mbarrier_wait"]), arrays)
    assert any(f.kind == "async-pending" and f.op in numbers["group_mma"] for f in found)


@tile.kernel
def sometimes(a: tile.Tensor[tile.f16, "M K"], b: tile.Tensor[tile.f16, "K N"], c: tile.Out[tile.f32, "M N"]):
    """The sum of products of every other block of k, all of which are copied."""
    acc = tile.zeros((64, 64), tile.f32)
    for k in tile.range(0, a.shape[1], 64, stages=3):
        x, y = tile.load(a, (0, k), (64, 64)), tile.load(b, (k, 0), (64, 64))
        if k // 64 % 2 == 0:
            acc += tile.dot(x, y)
    tile.store(c, (0, 0), acc)


@pytest.mark.parametrize("target", ["cuda:sm_80", TARGET])
def test_blocks_that_are_read_under_a_condition(target: str) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-3, 4, shape).astype(np.float16) for shape in ((64, 320), (320, 64)))
    with tile.target(f"emulate:{target}"):
        c = sometimes(a, b)
    a.reshape(64, 5, 64)[:, 1::2] = 0
    np.testing.assert_array_equal(c, a.astype(np.float64) @ b.astype(np.float64))
