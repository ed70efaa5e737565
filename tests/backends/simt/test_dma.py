"""Copies that fill shared memory in order: where they put things, how they are counted, and every slip found."""
from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backends.hip.test_clang import compiles
from tests.backends.simt import kernels
from tests.layouts.test_shared import SWIZZLES
from tilelang.backends.emulator.execute import execute
from tilelang.backends.hip.compile import Lowered
from tilelang.backends.simt.dma import count_waits, undone
from tilelang.backends.thread.builder import I64, ThreadBuilder
from tilelang.errors import CheckError
from tilelang.ir import elementwise as ew
from tilelang.ir import memory as mem
from tilelang.ir import shape as sh
from tilelang.ir import simt
from tilelang.ir.control import For, Yield
from tilelang.ir.core import BufferType, Function, Op, Region, TensorType, TileType, Value
from tilelang.ir.dtypes import dtype
from tilelang.layouts import Swizzle, shared

TARGET = "hip:gfx950"


def matmul(stages: int = 3) -> Lowered:
    a, b = kernels.normal(64, 96, dtype=np.float16), kernels.normal(96, 64, dtype=np.float16)
    return kernels.matmul.lower(a, b, np.zeros((64, 64), np.float32), BM=64, BN=64, BK=32, STAGES=stages,
                                target=TARGET)


def run(code: Lowered, text: str) -> np.ndarray:
    a, b = kernels.normal(64, 96, dtype=np.float16), kernels.normal(96, 64, dtype=np.float16)
    c = np.zeros((64, 64), np.float32)
    execute(code.tile, replace(code.rendered, text=text), [a, b, c], [a.shape, b.shape, c.shape],
            [(96, 1), (64, 1), (64, 1)])
    return c


@settings(max_examples=60)
@given(SWIZZLES, st.integers(2, 6), st.integers(0, 1000))
def test_a_swizzle_is_undone(swizzle: Swizzle, columns: int, start: int) -> None:
    """Of what lies at an offset the index is found, from which the layout gives the offset again."""
    place = shared((8 * swizzle.block >> min(columns, 6), 1 << columns)).with_swizzle(swizzle)
    offset = start % (8 * swizzle.block)
    body = Region()
    b = ThreadBuilder(body)
    dim = Value(TensorType(dtype("i64"), ("N",), (True,), "in"), "x")
    at = b.pure(ew.Cast, b.pure(mem.DimSize, dim, axis=0), dtype=I64)
    index = [b.index(i) for i in undone(b, place, b.add(at, offset - offset % swizzle.block))]
    values = {at: np.asarray(offset % swizzle.block, np.int64)}
    for op in body.ops:
        if op.name == "const":
            values[op.result] = np.asarray(op.attrs["value"], np.int64)
        elif op.result not in values and op.name not in ("dim", "cast"):
            values[op.result] = op.eval(None, *(values[v] for v in op.operands))
    assert place.offset([int(values[i]) for i in index]) == offset


def test_waits_count_copies() -> None:
    """Three stages, of which one may be under way: two operands of 4 KiB, one copy of each wave for each. The second
    of the two loops goes on with the copies of the first."""
    code = matmul()
    waits = [op for op in code.thread.walk() if op.name == "wait"]
    per_group = 2 * 64 * 32 * 2 // (16 * code.rendered.threads)
    assert [op.attrs["operations"] for op in waits] == [per_group, per_group, 0]
    assert f"tl::wait_operations<{per_group}>" in code.source


def test_waits_count_the_fewest() -> None:
    """A branch that copies less, and a loop that may not run at all."""
    memory = Value(BufferType(dtype("f32"), (64,)))

    def some(count: int) -> list[Op]:
        return [*(simt.Dma([memory, memory, memory, memory], {"lanes": 4}) for _ in range(count)), mem.Commit([])]
    zero = sh.Const([], {"value": 0, "dtype": dtype("i32")})
    wait, last = mem.Wait([], {"pending": 1}), mem.Wait([], {"pending": 2})
    loop = For([zero.result] * 3, {}, [Region([Value(TileType((), dtype("i32")))], [wait, *some(3), Yield([])])])
    fn = Function("f", [], Region([], [zero, *some(5), *some(2), loop, last]), "thread")
    count_waits(fn)
    assert wait.attrs["operations"] == 2 and last.attrs["operations"] == 5


@pytest.mark.parametrize(("line", "instead", "kinds"), [
    (r"tl::wait_operations<[1-9]\d*>", "tl::wait_operations<7>", {"async-pending"}),
    (r"tl::wait_operations<[^;]*;", "", {"async-pending", "async-unwaited"}),
    (r"(tl::dma<8>\(\w+, \(int\))(\w+)", r"\1(\2 + 8 * (tl::thread() % 2))", {"divergent-collective"}),
    (r"(tl::dma<8>\(\w+, \(int\))(\w+)", r"\1(\2 + 512)", {"bounds-shared", "uninitialised-shared"}),
    (r"tl::barrier\(tl::op\(\d+\)\);", "", {"async-pending", "race-raw", "race-war", "uninitialised-shared"})])
def test_slips(line: str, instead: str, kinds: set[str]) -> None:
    code = matmul()
    text = re.sub(line, instead, code.source)
    assert text != code.source
    with pytest.raises(CheckError) as caught:
        run(code, text)
    found = {f.split(":")[0] for f in caught.value.findings}
    assert found & kinds, found


def test_the_product_is_right() -> None:
    a, b = kernels.normal(64, 96, dtype=np.float16), kernels.normal(96, 64, dtype=np.float16)
    code = matmul()
    # 96 products of order 1, summed in f32 in another order
    np.testing.assert_allclose(run(code, code.source), a.astype(np.float32) @ b.astype(np.float32),
                               atol=96 * 2.0 ** -23 * 16)


@compiles
def test_machine_code() -> None:
    code = matmul()
    listing = code.assembly
    assert re.search(r"buffer_load_dwordx4 .* offen lds", listing) and "ds_write" not in listing
    count = next(op.attrs["operations"] for op in code.thread.walk() if op.name == "wait")
    assert f"s_waitcnt vmcnt({count})" in listing


def test_other_copies_go_through_registers() -> None:
    """Of 4-byte aligned rows, and of tensors that the kernel writes."""
    x = np.zeros((64, 66), np.float16)[:, :64]
    code = kernels.matmul.lower(x, x, np.zeros((64, 64), np.float32), BM=64, BN=64, BK=32, STAGES=2, target=TARGET)
    assert "tl::dma" in matmul().source and "tl::dma" not in code.source
