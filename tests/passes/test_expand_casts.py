"""Casts and arithmetic of number types that a machine lacks: over every bit pattern, what is left is native and means
the same."""
from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.casting import EVERY, TYPES, compare, patterns
from tests.ir.op_examples import EXAMPLES, example
from tests.passes.helpers import names
from tilelang.ir import interpreter
from tilelang.ir.core import Builder, Function, Region, TensorType, TileType, Value
from tilelang.ir.dtypes import DType, codebook, dtype
from tilelang.ir.elementwise import Cast
from tilelang.ir.parser import parse
from tilelang.ir.specs import verify
from tilelang.ir.thread import Ld, St
from tilelang.passes.driver import run_passes
from tilelang.passes.expand_casts import expand_casts

HALF = SimpleNamespace(native_casts=frozenset({("f16", "f32"), ("f32", "f16")}), by_half=True)
INTEGERS = ("bool", "int", "uint")
ALL = [*TYPES, dtype("f6e5m0"), dtype("f8e5m2fnuz"), codebook(4, np.linspace(-1, 1, 16) ** 3)]


def native(src: DType, dst: DType, target: Any) -> bool:
    """The promise of the pass, in other words than its own."""
    if src.kind in INTEGERS:
        return dst.kind in INTEGERS or dst.name in ("f32", "f64")
    if src.name in ("f32", "f64") and dst.name in "f32 f64 i32 i64 u32 u64".split():
        return True
    return target is not None and (src.name, dst.name) in target.native_casts


def check(fn: Function, target: Any) -> None:
    """Verifies an expanded function, and that it holds nothing a machine may lack."""
    verify(fn)
    for op in fn.walk():
        if op.name == "cast":
            assert native(op.operands[0].dtype, op.attrs["dtype"], target), op
        elif op.name not in ("bitcast", "ld", "st", "load", "store"):
            for v in (*op.operands, *op.results):
                if isinstance(v.type, TileType):
                    assert v.dtype.kind in INTEGERS or v.dtype.name in ("f32", "f64"), op


def expanded(src: DType, dsts: Sequence[DType], lanes: int, target: Any) -> Function:
    """Casts of a vector to each of the types, in terms of what every machine has."""
    vectors = [(src, "in"), *((dst, "out") for dst in dsts)]
    params = [Value(TensorType(dt, ("N",), mode, (True,)), f"p{i}") for i, (dt, mode) in enumerate(vectors)]
    at, b = Value(TileType((), dtype("i64")), "at"), Builder(Region())
    x = b.emit(Ld, params[0], at, lanes=lanes)
    for p in params[1:]:
        b.add(St, p, at, b.emit(Cast, x, dtype=p.dtype))
    return expand_casts(Function("c", [*params, at], b.region, "thread"), target)


@pytest.mark.parametrize("target", [None, HALF], ids=["none", "half"])
@pytest.mark.parametrize("src", ALL, ids=lambda dt: dt.name[:11])
def test_casts_equal_the_codec(src: DType, target: Any) -> None:
    x = patterns(src)
    fn = expanded(src, ALL, len(x), target)
    check(fn, target)
    got = [np.zeros(len(x), dst.storage) for dst in ALL]
    interpreter.run(fn, [x, *got, np.int64(0)])
    for dst, out in zip(ALL, got, strict=True):
        compare(src, dst, x, out)


@pytest.mark.parametrize("first", range(0, len(EVERY), 40))
def test_casts_between_every_two_types(first: int) -> None:
    """All codes of at most 8 bits, and 128 of wider types."""
    for src in EVERY[first:first + 40]:
        x = patterns(src, 128)
        fn = expanded(src, EVERY, len(x), None)
        got = [np.zeros(len(x), dst.storage) for dst in EVERY]
        interpreter.run(fn, [x, *got, np.int64(0)])
        for dst, out in zip(EVERY, got, strict=True):
            compare(src, dst, x, out)


@pytest.mark.parametrize("key", [k for k in EXAMPLES if k.endswith((".f16", ".bf16"))])
def test_arithmetic_happens_in_f32(key: str) -> None:
    fn = example(key)  # at level TILE: the pass asks nothing of shapes
    run_passes(fn, None, (expand_casts,), check=2, dump="")
    check(expand_casts(fn, None), None)


def test_steps_are_shared() -> None:
    fn = parse("""func @f(%x: tensor<inout bf16, N:1>, %at: i64, %n: i64) thread {
  %a = ld %x, %at {lanes=4} : bf16[4]
  %b = add %a, %a : bf16[4]
  %c = mul %a, %b : bf16[4]
  for %at, %n, %n {stages=1} (%i: i64) {
    %d = mul %b, %a : bf16[4]
    st %x, %i, %d {stream=False}
    yield
  }
  st %x, %at, %c {stream=False}
}
""")
    assert names(expand_casts(fn)).count("shl") == 2  # %a and %b, each decoded once
