"""licm: what leaves a loop, and what may not."""
from __future__ import annotations

import pytest

from tests.passes.helpers import apply
from tilelang.ir.core import Function
from tilelang.passes.licm import licm

HEAD = """func @f(%x: tensor<in f32, N:1>, %y: tensor<inout f32, N:1>, %n: i32) tile {
  %zero = const {value=0, dtype=i32} : i32
  %one = const {value=1, dtype=i32} : i32
  %s = alloc {dtype=f32, shape=(4,), space='shared', layout=None} : buffer<shared f32, 4>
  %a = load %x, %zero {shape=(4,), axes=(0,), fill=0} : f32[4]
  store %s, %zero, %a {axes=(0,)}
"""


def loop(body: str) -> str:
    return HEAD + """
  %r = for %zero, %n, %one, %a {stages=1} : f32[4] (%i: i32, %c: f32[4]) {
""" + body + """
    %next = add %c, %t : f32[4]
    yield %next
  }
  store %y, %n, %r {axes=(0,)}
}"""


def inside(fn: Function, name: str = "for") -> list[str]:
    """The operations directly in the regions of the first loop."""
    found = next(op for op in fn.walk() if op.name == name)
    return [op.name for region in found.regions for op in region.ops if op.name not in ("yield", "add")]


LOAD = "%t = load %x, %n {shape=(4,), axes=(0,), fill=0} : f32[4]"
SHARED = "%t = load %s, %zero {shape=(4,), axes=(0,), fill=0} : f32[4]"


@pytest.mark.parametrize("body, left", [
    ("%t = exp %a : f32[4]", []),
    ("%m = mul %n, %n : i32\n%o = cast %m {dtype=f32} : f32\n%t = broadcast %o {shape=(4,)} : f32[4]", []),
    ("%m = mul %n, %i : i32\n%o = cast %m {dtype=f32} : f32\n%t = broadcast %o {shape=(4,)} : f32[4]",
     ["mul", "cast", "broadcast"]),
    ("%t = exp %c : f32[4]", ["exp"]),
    (LOAD, []),
    (LOAD + "\nprint %i {text='{}'}", ["print"]),
    (LOAD + "\nstore %y, %n, %t {axes=(0,)}", ["load", "store"]),  # %y may overlap %x
    (LOAD + "\nstore %s, %zero, %t {axes=(0,)}", ["store"]),  # program memory does not
    (LOAD + "\nbarrier", ["load", "barrier"]),
    (SHARED, ["load"]),  # the program may not have written it where the loop never runs
    (SHARED + "\nstore %s, %zero, %t {axes=(0,)}", ["load", "store"]),
    ("%b = alloc {dtype=f32, shape=(4,), space='shared', layout=None} : buffer<shared f32, 4>\n"
     "store %b, %zero, %a {axes=(0,)}\n%t = load %b, %zero {shape=(4,), axes=(0,), fill=0} : f32[4]",
     ["alloc", "store", "load"]),
    ("%k = gt %n, %i : i1\n%t = if %k : f32[4] () {\n%e = exp %a : f32[4]\nyield %e\n} () {\nyield %a\n}",
     ["gt", "if"]),
    ("%k = scan %a {kind='custom', axis=0, reverse=False} : f32[4] (%p: f32, %q: f32) {\n%e = mul %p, %q : f32\n"
     "yield %e\n}\n%t = neg %k : f32[4]", []),
    ("%w = cast %i {dtype=f32} : f32\n%t = scan %a {kind='custom', axis=0, reverse=False} : f32[4] (%p: f32, %q: f32)"
     " {\n%e = max %p, %q : f32\n%g = max %e, %w : f32\nyield %g\n}", ["cast", "scan"]),
])
def test_what_stays_in_a_loop(body: str, left: list[str]) -> None:
    assert inside(apply(loop(body), licm)) == left


def test_out_of_several_loops() -> None:
    fn = apply(loop("""
    %t = for %zero, %one, %one, %c {stages=1} : f32[4] (%j: i32, %d: f32[4]) {
      %e = exp %a : f32[4]
      %m = mul %i, %n : i32
      %w = cast %m {dtype=f32} : f32
      %v = broadcast %w {shape=(4,)} : f32[4]
      %p = mul %e, %v : f32[4]
      %q = add %p, %d : f32[4]
      yield %q
    }"""), licm)
    assert inside(fn) == ["mul", "cast", "broadcast", "mul", "for"]
    assert fn.body.ops[5].name == "exp"


def test_while() -> None:
    fn = apply(HEAD + """
  %r = while %n : i32 (%k: i32) {
    %two = add %one, %one : i32
    %more = gt %k, %two : i1
    yield %more
  } (%l: i32) {
    %three = sub %n, %one : i32
    %less = sub %l, %one : i32
    print %three {text='{}'}
    yield %less
  }
  print %r {text='{}'}
}""", licm)
    assert inside(fn, "while") == ["gt", "sub", "print"]
