"""Dots of every pair of operand types, by the instruction that has them, at shapes that do not fit it."""
from __future__ import annotations

import numpy as np
import pytest

from tests.backends.cuda.emulated import emulated
from tilelang import targets
from tilelang.backends.cuda.instructions import ROWS
from tilelang.ir.parser import parse
from tilelang.passes.meaning import difference

PARAMS = "%x: tensor<in {a} align {align}, M, K:1>, %y: tensor<in {b} align {align}, K, N:1>, " \
    "%z: tensor<out {acc} align {align}, M, N:1>"
TEXT = "func @product(" + PARAMS + """) tile {{
  %0 = const {{value=0, dtype=i32}} : i32
  %1 = load %x, %0, %0 {{shape=({m}, {k}), axes=(0, 1), fill=0}} : {a}[{m}, {k}]
  %2 = load %y, %0, %0 {{shape=({k}, {n}), axes=(0, 1), fill=0}} : {b}[{k}, {n}]
  %3 = dot %1, %2 {{dtype={acc}, bias=0}} : {acc}[{m}, {n}]
  store %z, %0, %0, %3 {{axes=(0, 1)}}
}}
"""
PAIRS = [(row.a, row.b, row.acc) for row in ROWS if row.archs[1] >= 80] + [
    ("f16", "u4", "f32"),
    ("bf16", "i4", "f32"),
    ("f16", "bf16", "f32"),
    ("f6e3m2", "f16", "f32"),
    ("f32", "f32", "f32"),
    ("i4", "u8", "i32"),
    ("i16", "i16", "i32"),
    ("i32", "i32", "i64"),
    ("f16", "f16", "f64"),
    ("ternary", "i8", "i32"),
    ("f8e4m3", "f8e5m2", "f32"),
    ("s2", "f16", "f32"),
]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: "x".join(p))
@pytest.mark.parametrize("shape", [(16, 16, 32), (33, 20, 40), (64, 96, 64), (1, 5, 3)], ids=str)
def test_product(pair: tuple[str, str, str], shape: tuple[int, int, int]) -> None:
    a, b, acc = pair
    m, n, k = shape
    fn = parse(TEXT.format(a=a, b=b, acc=acc, m=m, n=n, k=k, align=1))
    target = "cuda:sm_89" if "f8" in a else "cuda:sm_80"
    assert difference(fn, emulated(fn, target), np.random.default_rng(0), trials=2) == ""


@pytest.mark.parametrize("row", [row for row in ROWS if row.archs[1] >= 80], ids=lambda r: r.name)
def test_the_instruction_is_used(row) -> None:  # type: ignore[no-untyped-def]
    fn = parse(TEXT.format(a=row.a, b=row.b, acc=row.acc, m=64, n=64, k=max(64, row.k), align=16))
    source = targets.lowered(fn, "cuda:sm_89").source
    assert f"tl::{row.name}(" in source
    assert "tl::ldmatrix<4" in source or row.a not in ("f16", "bf16")
