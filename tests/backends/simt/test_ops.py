"""Every operation, in every example: emulated text means what the interpreter says, under all checks."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from tests.backends.simt.emulated import emulated
from tests.ir.op_examples import everywhere, example
from tests.strategies import functions
from tilelang.ir.core import Function
from tilelang.ir.parser import parse
from tilelang.passes.meaning import difference

TARGETS = ("cuda:sm_80", "hip:gfx942")
FOUND = {
    "a layout of the result of a reduction was tried for its operand": """\
func @fuzzed(%x: tensor<in u32, M, N:1>, %y: tensor<out u32, M, N>, %z: tensor<out i32, N>) tile {
  %0 = const {value=0, dtype=i32} : i32
  %1 = load %x, %0, %0 {shape=(16, 33), axes=(0, 1), fill=0} : u32[16, 33]
  %2 = arg_reduce %1 {kind='min', axis=0} : i32[33]
  %3 = reduce %1 {kind='min', axis=1} : u32[16]
  %4 = reshape %3 {shape=(16, 1)} : u32[16, 1]
  %5 = broadcast %4 {shape=(16, 33)} : u32[16, 33]
  store %y, %0, %0, %5 {axes=(0, 1)}
  store %z, %0, %2 {axes=(0,)}
}
""",
    "the result of a look-up was laid out otherwise than its index": """\
func @fuzzed(%x: tensor<in i1, M, N>, %y: tensor<out i1, K, L>) tile {
  %0 = const {value=0, dtype=i32} : i32
  %1 = load %x, %0, %0 {shape=(2, 1), axes=(0, 1), fill=0} : i1[2, 1]
  %2 = permute %1 {order=(1, 0)} : i1[1, 2]
  %3 = dot %1, %2 {dtype=i32, bias=0, instruction=''} : i32[2, 2]
  %4 = reshape %1 {shape=(2,)} : i1[2]
  %5 = lookup %4, %3 : i1[2, 2]
  store %y, %0, %0, %5 {axes=(0, 1)}
}
""",
    "a number was spread along a column in a layout wider than it": """\
func @fuzzed(%x: tensor<in i8, M, K:1>, %s: tensor<inout i32, N, L>) tile {
  %0 = const {value=0, dtype=i32} : i32
  %1 = load %x, %0, %0 {shape=(3, 2), axes=(0, 1), fill=0} : i8[3, 2]
  %2 = slice %1 {starts=(0, 0), shape=(2, 1), steps=(1, 1)} : i8[2, 1]
  %3 = dot %1, %2 {dtype=i32, bias=0, instruction=''} : i32[3, 1]
  %4 = arange {start=0, size=3} : i32[3]
  %5 = reshape %4 {shape=(3, 1)} : i32[3, 1]
  %6 = arange {start=1, size=1} : i32[1]
  %7 = reshape %6 {shape=(1, 1)} : i32[1, 1]
  %8 = broadcast %7 {shape=(3, 1)} : i32[3, 1]
  scatter %s, %5, %8, %3 {masked=False}
}
""",
    "a program reads what another of its threads has written": """\
func @fuzzed(%x: tensor<in i32, M:1>, %t: tensor<inout i64, N:1>, %y: tensor<out i64, K>) tile {
  %0 = const {value=0, dtype=i32} : i32
  %1 = load %x, %0 {shape=(64,), axes=(0,), fill=0} : i32[64]
  %2 = cast %1 {dtype=i64} : i64[64]
  %3 = arange {start=0, size=64} : i32[64]
  %4 = atomic %t, %3, %2 {kind='add', masked=False} : i64[64]
  %5 = slice %4 {starts=(63,), shape=(1,), steps=(1,)} : i64[1]
  %6 = load %t, %0 {shape=(3,), axes=(0,), fill=0} : i64[3]
  store %y, %0, %6 {axes=(0,)}
}
""",
    "elements of more than 8 bits that are no number of NumPy's": """\
func @fuzzed(%x: tensor<in i41, M, N:1>, %z: tensor<in u12, M, N:1>, %y: tensor<out i59, K, L:1>) tile {
  %0 = const {value=0, dtype=i32} : i32
  %1 = load %x, %0, %0 {shape=(8, 5), axes=(0, 1), fill=0} : i41[8, 5]
  %2 = load %z, %0, %0 {shape=(8, 5), axes=(0, 1), fill=0} : u12[8, 5]
  %3 = cast %1 {dtype=i59} : i59[8, 5]
  %4 = cast %2 {dtype=i59} : i59[8, 5]
  %5 = mul %3, %4 : i59[8, 5]
  store %y, %0, %0, %5 {axes=(0, 1)}
}
""",
    "accesses of two elements by threads that hold nine of a row": """\
func @f(%x: tensor<in u8 align 16, M, N:1>, %y: tensor<out u8 align 16, K, L:1>, %z: tensor<out u8, A:1, B>) tile {
  %0 = const {value=0, dtype=i32} : i32
  %1 = load %x, %0, %0 {shape=(2, 72), axes=(0, 1), fill=0} : u8[2, 72]
  %2 = view %1 {dtype=u8, source=<spatial(1, 8).local(2, 9)>, layout=<spatial(1, 8).local(2, 9)>} : u8[2, 72]
  store %y, %0, %0, %2 {axes=(0, 1)}
  store %z, %0, %0, %2 {axes=(0, 1)}
}
""",
    "shifts and set bits of i1": """\
func @f(%x: tensor<in i1, M:1>, %y: tensor<out i1, K:1>, %z: tensor<out i1, L:1>) tile {
  %0 = const {value=0, dtype=i32} : i32
  %1 = load %x, %0 {shape=(9,), axes=(0,), fill=0} : i1[9]
  %2 = load %x, %0 {shape=(9,), axes=(0,), fill=1} : i1[9]
  %3 = popcount %1 : i1[9]
  %4 = shl %3, %2 : i1[9]
  %5 = shr %1, %2 : i1[9]
  store %y, %0, %4 {axes=(0,)}
  store %z, %0, %5 {axes=(0,)}
}
""",
    "a sigmoid was 0 where the exponential of the other sign overflows": """\
func @fuzzed(%x: tensor<in f32, M:1>, %y: tensor<out f32, N:1>) tile {
  %0 = const {value=0, dtype=i32} : i32
  %1 = load %x, %0 {shape=(4,), axes=(0,), fill=0} : f32[4]
  %2 = const {value=-95.0, dtype=f32} : f32
  %3 = broadcast %2 {shape=(4,)} : f32[4]
  %4 = min %1, %3 : f32[4]
  %5 = sigmoid %4 : f32[4]
  store %y, %0, %5 {axes=(0,)}
}
""",
    "a layout wider than its tile reads past a window that holds the tile": """\
func @fuzzed(%a: tensor<in f16, A:1, K>, %b: tensor<in f16, L:1, B>, %y: tensor<out f32, M, N:1>) tile {
  %0 = const {value=0, dtype=i32} : i32
  %1 = const {value=33, dtype=i32} : i32
  %2 = const {value=0, dtype=f32} : f32
  %3 = broadcast %2 {shape=(8, 8)} : f32[8, 8]
  %4 = dim %a {axis=1} : i32
  %5 = for %0, %4, %1, %3 {stages=1, schedule=''} : f32[8, 8] (%k: i32, %acc: f32[8, 8]) {
    %6 = load %a, %0, %k {shape=(8, 33), axes=(0, 1), fill=0} : f16[8, 33]
    %7 = load %b, %k, %0 {shape=(33, 8), axes=(0, 1), fill=0} : f16[33, 8]
    %8 = dot %6, %7, %acc {dtype=f32, bias=0, instruction='', fallback=''} : f32[8, 8]
    yield %8
  }
  store %y, %0, %0, %5 {axes=(0, 1)}
}
""",
    "what is outside of a tensor is 1 where a number cannot be 0": """\
func @fuzzed(%x: tensor<in s8, M, N:1>, %y: tensor<out s8, K, L:1>, %z: tensor<out s8, A, B:1>) tile {
  %0 = const {value=0, dtype=i32} : i32
  %1 = const {value=1, dtype=i32} : i32
  %2 = alloc {dtype=s8, shape=(8, 16), space='shared'} : buffer<shared s8, 8, 16>
  copy_async %x, %1, %1, %2 {axes=(0, 1)}
  commit
  wait
  barrier
  %3 = load %2, %0, %0 {shape=(8, 16), axes=(0, 1), fill=0} : s8[8, 16]
  %4 = load %x, %1, %0 {shape=(8, 16), axes=(0, 1), fill=0} : s8[8, 16]
  store %y, %0, %0, %3 {axes=(0, 1)}
  store %z, %0, %0, %4 {axes=(0, 1)}
}
""",
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("key", everywhere())
def test_emulated_text_means_what_the_interpreter_says(key: str, target: str) -> None:
    fn = example(key)
    assert difference(fn, emulated(fn, target), np.random.default_rng(1), trials=2 if "cuda" in target else 1) == ""


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("text", FOUND.values(), ids=FOUND)
def test_found_before(text: str, target: str) -> None:
    fn = parse(text)
    assert difference(fn, emulated(fn, target), np.random.default_rng(0)) == ""


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(fn=functions(old_values=False))
def test_random_functions(target: str, fn: Function) -> None:
    assert difference(fn, emulated(fn, target), np.random.default_rng(0), trials=1) == ""
