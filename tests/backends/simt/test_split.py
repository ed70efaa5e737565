"""Loops written twice, with and without masks: the same results wherever the masks begin, wrap around or hold."""
from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.backends.simt import kernels
from tests.backends.simt.emulated import emulated
from tilelang import targets
from tilelang.backends.emulator.execute import execute
from tilelang.backends.simt.compile import Lowered
from tilelang.ir import interpreter
from tilelang.ir.core import Function
from tilelang.ir.parser import parse

TEXT = """\
func @f(%x: tensor<in i8 align 16, M, K:1>, %y: tensor<in i8 align 16, K, N:1>, %lo: i32, %row: i32, %shift: i32, \
%limit: i32, %z: tensor<inout i32 align 16, 32, 32:1>) tile {
  %0 = const {value=0, dtype=i32} : i32
  %step = const {value=32, dtype=i32} : i32
  %none = broadcast %0 {shape=(32, 32)} : i32[32, 32]
  %hi = dim %x {axis=1} : i32
  %lane = arange {start=-2, size=32} : i32[32]
  %l = reshape %lane {shape=(1, 32)} : i32[1, 32]
  %c = reshape %lane {shape=(32, 1)} : i32[32, 1]
  %shifts = broadcast %shift {shape=(32, 1)} : i32[32, 1]
  %rows = OTHER %shifts, %c : i32[32, 1]
  %rows2 = broadcast %rows {shape=(32, 32)} : i32[32, 32]
  %limits = broadcast %limit {shape=(1, 32)} : i32[1, 32]
  %zero = const {value=0, dtype=i8} : i8
  %zeros = broadcast %zero {shape=(32, 32)} : i8[32, 32]
  %r = for LOWER, %hi, %step, %none {stages=STAGES} : i32[32, 32] (%k: i32, %acc: i32[32, 32]) {
    %a = load %x, %row, %k {shape=(32, 32), axes=(0, 1), fill=0} : i8[32, 32]
    %b = load %y, %k, %0 {shape=(32, 32), axes=(0, 1), fill=0} : i8[32, 32]
    %ks = broadcast %k {shape=(1, 32)} : i32[1, 32]
    %column = add %ks, %l : i32[1, 32]
    %under = COMPARE %column, %limits : i1[1, 32]
    %u2 = broadcast %under {shape=(32, 32)} : i1[32, 32]
    %columns = broadcast %column {shape=(32, 32)} : i32[32, 32]
    %before = ORDER %rows2, %columns : i1[32, 32]
    %seen = and %u2, %before : i1[32, 32]
    %s = where %seen, %a, %zeros : i8[32, 32]
    %d = dot %s, %b, %acc {dtype=i32, bias=0, instruction=''} : i32[32, 32]
    yield %d
  }
  store %z, %0, %0, %r {axes=(0, 1)}
}
"""
VARIANTS = {"one stage": ("%0", "lt", "ge", "add", 1), "stages": ("%0", "le", "gt", "sub", 3),
            "from": ("%lo", "lt", "le", "add", 2)}
ENDS = [-(1 << 31), (1 << 31) - 1]


def function(lower: str, compare: str, order: str, other: str, stages: int) -> Function:
    return parse(TEXT.replace("LOWER", lower).replace("COMPARE", compare).replace("ORDER", order)
                 .replace("OTHER", other).replace("STAGES", str(stages)))


def near(*values: int) -> st.SearchStrategy[int]:
    return st.tuples(st.sampled_from(values), st.integers(-70, 70)).map(
        lambda t: max(ENDS[0], min(ENDS[1], t[0] + t[1])))


def arguments(m: int, k: int, n: int, *scalars: int) -> list[Any]:
    rng = np.random.default_rng(0)
    x, y = (rng.integers(-128, 128, shape, np.int8) for shape in ((m, k), (k, n)))
    return [x, y, *(np.asarray(s, np.int32) for s in scalars), np.zeros((32, 32), np.int32)]


@pytest.mark.parametrize(("target", "name"), [*((t, n) for t in ("cuda:sm_80", "cuda:sm_75") for n in VARIANTS),
                                              ("hip:gfx942", "one stage"), ("hip:gfx950", "stages")])
def test_same_result_as_the_interpreter(target: str, name: str) -> None:
    fn = function(*VARIANTS[name])
    code = emulated(fn, target)
    assert targets.lowered(fn, target).source.count("for (tl::i32 k") == 2

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(m=st.sampled_from([48, 16]), k=st.sampled_from([176, 160, 96, 16]), n=st.sampled_from([32, 16]),
           lo=st.sampled_from([0, 7, 32, -1]), row=st.sampled_from([0, 5, -1, *ENDS]),
           shift=near(ENDS[1], ENDS[0], 64), limit=near(ENDS[1], 100, ENDS[0]))
    @example(m=48, k=176, n=32, lo=0, row=0, shift=ENDS[1] - 5, limit=ENDS[1])  # rows wrap around
    @example(m=48, k=176, n=32, lo=0, row=0, shift=ENDS[0] + 1, limit=ENDS[1])
    def check(m: int, k: int, n: int, lo: int, row: int, shift: int, limit: int) -> None:
        want, got = (arguments(m, k, n, lo, row, shift, limit) for _ in range(2))
        interpreter.run(fn, want)
        code(got)
        np.testing.assert_array_equal(got[-1], want[-1])
    check()


def products(code: Lowered, *scalars: int) -> list[int]:
    """How often a warp multiplied matrices at each place in the text, in its order."""
    arrays = arguments(32, 192, 32, *scalars)
    shapes = [a.shape for a in arrays]
    counters = execute(code.tile, code.rendered, arrays, shapes, [tuple(s // a.itemsize for s in a.strides)
                                                                  for a in arrays])
    return [counters[i].mma if i in counters else 0 for i, op in enumerate(code.rendered.ops) if op.name == "mma"]


def test_whole_blocks_run_without_masks() -> None:
    """Of six iterations those whose columns and copies, two blocks ahead, lie inside."""
    code = targets.lowered(function(*VARIANTS["stages"]), "cuda:sm_80")
    four, two = products(code, 0, 0, 1 << 20, 1 << 20)
    assert four == 2 * two > 0
    assert products(code, 0, 1, 1 << 20, 1 << 20) == [0, four + two]  # a row outside
    assert products(code, 0, 0, 1 << 20, 93) == [four // 4 * 3, four // 4 * 3]  # the third block ends in column 93
    assert products(code, 0, 0, 1 << 20, 92) == [four // 4 * 2, four]
    assert products(code, 0, 0, 1 << 20, ENDS[0]) == [0, four + two]


def test_products_of_four_warps_run_without_masks() -> None:
    """Of three blocks of keys those that lie inside: two."""
    q, k, v = (kernels.normal(n, 64, dtype=np.float16) for n in (64, 176, 176))
    arrays = [q, k, abs(v), np.empty((64, 64), np.float32)]
    code = kernels.attention.lower(*arrays, BM=64, BN=64, BD=64, STAGES=2, target="cuda:sm_90a")
    want = arrays[-1].copy()
    interpreter.run(code.tile, [*arrays[:-1], want])
    counters = execute(code.tile, code.rendered, arrays, [a.shape for a in arrays],
                       [tuple(s // a.itemsize for s in a.strides) for a in arrays])
    first, *others = (counters[i].mma for i, op in enumerate(code.rendered.ops) if op.name == "group_mma")
    assert others == [first, first // 2, first // 2] and first
    assert "tl::next" not in code.source  # neither loop has to watch its index overrun
    np.testing.assert_allclose(arrays[-1], want, rtol=2.0 ** -9)  # f16 has 11 bits; sums are of one sign


def test_windows_hold_whole_blocks() -> None:
    """In the first of the two loops no access has a mask, and where a window ends is not computed."""
    a, c = np.zeros((64, 64), np.float16), np.zeros((64, 64), np.float32)
    source = kernels.matmul.lower(a, a, c, BM=64, BN=64, STAGES=3, target="hip:gfx950").source
    first, second = source.split("for (tl::i32 k")[1:]
    masks = [re.findall(r"tl::dma<8>\(.*, (\w+), tl::op", text) for text in (first, second)]
    assert masks[0][:2] == ["true", "true"] and "true" not in masks[1]
    ends = [re.findall(r"tl::window_of\(b, \w+, (\w+)\)", text)[0] for text in (first, second)]
    assert f"{ends[0]} =" not in first and f"{ends[1]} =" in second


def test_the_text_of_a_kernel_is_always_the_same() -> None:
    """What is cached by it would be made anew in every process."""
    a, b = (kernels.normal(128, 128, dtype=np.float16) for _ in range(2))
    codes = [kernels.matmul.lower(a, b, np.empty((128, 128), np.float32), BM=64, BN=64, BK=32, STAGES=3,
                                  target="cuda:sm_80") for _ in range(8)]
    assert len({code.source for code in codes}) == 1
