"""Printing and parsing: every operation makes the round trip; mistakes are shown with line and caret."""
from __future__ import annotations

import math

import numpy as np
import pytest

from tests.ir.op_examples import EXAMPLES, covered, example
from tilelang.errors import Loc, ShapeMismatch, TileError, VerifyError
from tilelang.ir import elementwise as ew
from tilelang.ir.core import Builder, Function, Op, TensorType, TileType, Value
from tilelang.ir.dtypes import codebook, dtype
from tilelang.ir.parser import parse
from tilelang.ir.shape import Const, ConstTile
from tilelang.ir.text import format_attribute, print_function
from tilelang.layouts import spatial

F32, I32 = dtype("f32"), dtype("i32")


def test_every_operation_has_an_example() -> None:
    # Operations of warps run in no single thread, and are registered only where a GPU target has been imported.
    of_warps = ("tilelang.ir.simt", "tilelang.ir.bulk", "tilelang.ir.roles")
    assert covered() == {name for name, op in Op.registry.items() if op.__module__ not in of_warps}


@pytest.mark.parametrize("key", EXAMPLES)
def test_round_trip(key: str) -> None:
    fn = example(key)
    text = print_function(fn)
    again = parse(text)
    assert print_function(again) == text
    assert "nan" in text or [op.attrs for op in again.walk()] == [op.attrs for op in fn.walk()]
    assert [p.type for p in again.params] == [p.type for p in fn.params]
    assert print_function(fn.clone()) == text
    assert print_function(parse(print_function(fn, locs=True))) == text  # places are comments


@pytest.mark.parametrize("value", [
    0, -7, 2**64 - 1, 0.0, -0.0, 1.0, 0.1, 1e22, 1e-300, 5e-324, -1.5e+16, math.inf, -math.inf, True, False, None, "",
    "it's", 'a "b" \\ \n\t', (), (1,), (1, 2.0, (None, "x")), F32, dtype("f6e3m2"), codebook(1, [-0.0, 1e-20]),
    spatial(8, 4), np.float64(2.5)])
def test_attribute_round_trip(value: object) -> None:
    text = format_attribute(value)
    fn = parse(f"func @f() tile {{\n  %t = const_tile {{values=({text},), dtype=f32}} : f32[1]\n}}")
    (got,) = fn.body.ops[0].attrs["values"]
    assert got == value and isinstance(value, type(got))
    assert format_attribute(got) == text


@pytest.mark.parametrize("value", [math.nan, -math.nan])
def test_nan_keeps_its_sign(value: float) -> None:
    got = ConstTile([], {"values": (value,), "dtype": F32}).attrs["values"][0]
    fn = parse(f"func @f() tile {{\n  %t = const {{value={format_attribute(got)}, dtype=f32}} : f32\n}}")
    (op,) = fn.walk()
    assert math.isnan(op.attrs["value"]) and math.copysign(1, op.attrs["value"]) == math.copysign(1, value)


@pytest.mark.parametrize("value", [[1], np.int64(3), {1: 2}, object()])
def test_what_is_no_attribute(value: object) -> None:
    with pytest.raises(VerifyError, match="cannot be an attribute"):
        format_attribute(value)


def test_names_are_unique_and_kept() -> None:
    fn = Function("f", [Value(TileType((), F32), n) for n in ("acc", "acc", "acc_1", "", "a.b", "0", "")])
    builder = Builder(fn.body)
    named = builder.emit(ew.Add, fn.params[0], fn.params[1])
    named.name = "acc"
    builder.emit(ew.Add, fn.params[3], named)
    text = print_function(fn)
    assert text == ("func @f(%acc: f32, %acc_1: f32, %acc_1_1: f32, %0: f32, %a_b: f32, %1: f32, %2: f32) tile {\n"
                    "  %acc_2 = add %acc, %acc_1 : f32\n  %3 = add %0, %acc_2 : f32\n}\n")
    assert print_function(parse(text)) == text


def test_tensor_types() -> None:
    t = "tensor<inout codebook(1, [-1.0, 1.0]), M, 4, inf:1>"
    fn = parse(f"func @f(%a: {t}, %b: tensor<in f32>) tile {{\n}}")
    a, b = (p.type for p in fn.params)
    assert a == TensorType(codebook(1, [-1, 1]), ("M", 4, "inf"), "inout", (False, False, True))
    assert b == TensorType(F32, ()) and str(a) == t


def test_locations() -> None:
    fn = Function("f", [])
    Builder(fn.body, Loc("kernel.py", 12)).emit(Const, value=1, dtype=I32)
    assert "  %0 = const {value=1, dtype=i32} : i32  # kernel.py:12\n" in print_function(fn, locs=True)
    assert "#" not in print_function(fn)
    (op,) = parse(print_function(fn)).walk()
    assert op.loc is not None and op.loc.line == 2


def test_a_broken_function_still_prints() -> None:
    fn = Function("f", [])
    Builder(fn.body).emit(ew.Neg, Value(TileType((), F32), "lost"))
    assert "neg %undefined(lost)" in print_function(fn)


GOOD = """func @f(%x: f32, %n: i32) tile {
  %a = add %x, %x : f32
  %r = for %n, %n, %n, %a {stages=1, schedule=''} : f32 (%i: i32, %c: f32) {
    %d = mul %c, %x : f32
    yield %d
  }
}
"""


@pytest.mark.parametrize("old, new, line, caret, message, needs", [
    ("func @f", "fun @f", 1, "fun", "cannot be parsed", "'func'"),
    ("mul %c, %x", "mul %c,", 4, ":", "cannot be parsed", "%value"),
    ("stages=1,", "stages=,", 3, ",", "cannot be parsed", "an integer"),
    ("yield %d\n  }", "yield %d\n", 7, "", "cannot be parsed", "'}'"),
    ("mul %c", "mull %c", 4, "mull", "unknown operation `mull`", "operation"),
    ("mul %c", "mul %e", 4, "%e", "not defined", "above"),
    ("}\n}\n", "}\n  %z = neg %d : f32\n}\n", 7, "%d", "not defined", "above"),
    ("%d = mul", "%a = mul", 4, "%a", "defined twice", "new name"),
    ("%x : f32\n    yield", "%x : f64\n    yield", 4, "f64", "other types", "f32"),
    ("%x : f32\n    yield", "%x\n    yield", 4, "%d = mul %c, %x", "other types", "f32"),
    ("mul %c, %x", "mul %c, %n", 4, "%d = mul %c, %n : f32", "different dtypes", "both f32"),
    ("mul %c, %x", "mul %c", 4, "%d = mul %c : f32", "`mul` takes", "2 operands"),
    (" {stages=1", " {stagez=1", 3, "", "no attribute", "stages"),
    ("for %n, %n, %n, %a {stages=1, schedule=''} : f32", "for %n : f32", 3, "", "arguments of its body", "i32"),
    ("(%i: i32, %c: f32)", "(%i: i32, %c: f33)", 3, "f33", "unknown dtype", "dtype"),
    ("tile {", "tiles {", 1, "tiles", "unknown level", "placed"),
])
def test_mistakes(old: str, new: str, line: int, caret: str, message: str, needs: str) -> None:
    assert print_function(parse(GOOD)) == GOOD
    text = GOOD.replace(old, new)
    assert text != GOOD
    with pytest.raises(TileError) as caught:
        parse(text)
    error = caught.value
    assert message in error.message and needs in error.needs and error.got and error.try_
    assert error.loc is not None and error.loc.line == line
    if caret:
        shown = error.loc.source_line()[error.loc.col:error.loc.end_col]
        assert shown == caret
    report = str(error).splitlines()
    assert report[1] == f"  --> <ir>:{line}" and set(report[3].split("|")[1].strip()) <= {"^"}


def test_malformed_operands_are_reported() -> None:
    with pytest.raises(VerifyError, match="malformed `sort`"):
        parse("func @f() tile {\n  sort {axis=0, descending=False}\n}")
    with pytest.raises(VerifyError, match="not a layout"):
        parse("func @f() tile {\n  %a = alloc {dtype=f32, shape=(4,), space='shared', layout=<loca(4)>} : f32\n}")
    with pytest.raises(ShapeMismatch):
        parse("func @f(%a: f32[4], %b: f32[5]) tile {\n  %c = add %a, %b : f32[4]\n}")
