"""Dots of every pair of operand types, by the instruction that has them, at shapes that do not fit it."""
from __future__ import annotations

import numpy as np
import pytest

from tests.backends.simt.emulated import emulated
from tilelang import targets
from tilelang.backends.cuda import instructions as cuda
from tilelang.backends.hip import instructions as hip
from tilelang.backends.hip.instructions import CDNA2, CDNA3, CDNA4
from tilelang.backends.hip.target import target as amd_target
from tilelang.backends.simt.instructions import MmaRow, choose
from tilelang.ir.dtypes import dtype
from tilelang.ir.parser import parse
from tilelang.passes.meaning import difference

PARAMS = "%x: tensor<in {a} align {align}, M, K:1>, %y: tensor<in {b} align {align}, K, N:1>, " \
    "%z: tensor<out {acc} align {align}, M, N:1>"
TEXT = "func @product(" + PARAMS + """) tile {{
  %0 = const {{value=0, dtype=i32}} : i32
  %1 = load %x, %0, %0 {{shape=({m}, {k}), axes=(0, 1), fill=0}} : {a}[{m}, {k}]
  %2 = load %y, %0, %0 {{shape=({k}, {n}), axes=(0, 1), fill=0}} : {b}[{k}, {n}]
  %3 = dot %1, %2 {{dtype={acc}, bias=0, instruction='{instruction}'}} : {acc}[{m}, {n}]
  store %z, %0, %0, %3 {{axes=(0, 1)}}
}}
"""
MIXED = [
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


def nvidia(a: str, archs: tuple[int, int] = (80, 80)) -> str:
    return "cuda:sm_89" if "f8" in a else "cuda:sm_80" if archs[1] >= 80 else "cuda:sm_75"


def amd(row: MmaRow) -> str:
    """A target that has the row: of those that do the one that most rows are for."""
    return next(f"hip:gfx{arch:x}" for arch in (CDNA3, CDNA4, CDNA2) if row.archs[0] <= arch <= row.archs[1])


PAIRS = [(nvidia(row.a, row.archs), row.a, row.b, row.acc) for row in cuda.ROWS] \
    + [(nvidia(a), a, b, acc) for a, b, acc in MIXED] \
    + [("cuda:sm_75", "i4", "u8", "i32"), ("cuda:sm_75", "u2", "u4", "i32")]
ROWS = [(nvidia(row.a, row.archs), row) for row in cuda.ROWS] + [(amd(row), row) for row in hip.ROWS]
SHAPES = [(16, 16, 32), (33, 20, 40), (64, 96, 64), (1, 5, 3)]


@pytest.mark.parametrize("pair", PAIRS, ids="x".join)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product(pair: tuple[str, str, str, str], shape: tuple[int, int, int]) -> None:
    target, a, b, acc = pair
    check(target, (a, b, acc), shape)


@pytest.mark.parametrize("pair", MIXED, ids="x".join)
def test_product_on_amd(pair: tuple[str, str, str]) -> None:
    check("hip:gfx942", pair, SHAPES[1])


def check(target: str, pair: tuple[str, str, str], shape: tuple[int, int, int], instruction: str = "") -> None:
    a, b, acc = pair
    m, n, k = shape
    fn = parse(TEXT.format(a=a, b=b, acc=acc, m=m, n=n, k=k, align=1, instruction=instruction))
    assert difference(fn, emulated(fn, target), np.random.default_rng(0), trials=2) == ""


@pytest.mark.parametrize(("target", "row"), ROWS, ids=lambda x: x if isinstance(x, str) else x.name)
def test_a_named_instruction_is_used(target: str, row: MmaRow) -> None:
    types = row.a, row.b, row.acc
    fn = parse(TEXT.format(a=row.a, b=row.b, acc=row.acc, m=64, n=64, k=max(64, row.k), align=16,
                           instruction=row.name))
    source = targets.lowered(fn, target).source
    assert f"tl::{row.name}(" in source
    if target.startswith("cuda"):
        assert "tl::ldmatrix<4" in source or row.a not in ("f16", "bf16")
    else:
        check(target, types, SHAPES[1], row.name)


def test_the_deepest_instruction_that_fits_is_taken() -> None:
    rows = amd_target("hip:gfx950").mma
    found = [choose(rows, dtype("f16"), dtype("f16"), dtype("f32"), k) for k in (16, 31, 32, 64, 8)]
    assert [row.k for row in found if row is not None] == [16, 16, 32, 32, 8]
