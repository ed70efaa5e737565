"""cse: what is merged, and the writes, regions and attributes that prevent it."""
from __future__ import annotations

import pytest

from tests.passes.helpers import apply, body, names
from tilelang.passes.cse import cse
from tilelang.passes.dce import dce

HEAD = "func @f(%x: tensor<in f32, N:1>, %y: tensor<inout f32, N:1>, %z: tensor<inout f32, N:1>, %n: i32) tile {\n"
LOAD = "load %x, %n {shape=(4,), axes=(0,), fill=0} : f32[4]\n"


def count(text: str, name: str) -> int:
    return names(apply(HEAD + text + "}", cse)).count(name)


@pytest.mark.parametrize("between, loads", [
    ("", 1),
    ("print %a {text='{}'}\n", 1),
    ("%s = alloc {dtype=f32, shape=(4,), space='shared', layout=None} : buffer<shared f32, 4>\n"
     "store %s, %n, %a {axes=(0,)}\n", 1),  # program memory is no tensor
    ("store %y, %n, %a {axes=(0,)}\n", 2),  # tensors may overlap
    ("barrier\n", 2),
    ("wait {pending=0}\n", 2),
    ("%old = atomic %z, %n, %v {kind='add', masked=False} : f32\n", 2),
    ("%c = eq %n, %n : i1\nif %c () {\n  store %y, %n, %a {axes=(0,)}\n  yield\n} () {\n  yield\n}\n", 2),
    ("%c = eq %n, %n : i1\nif %c () {\n  print %n {text='{}'}\n  yield\n} () {\n  yield\n}\n", 1),
])
def test_reads(between: str, loads: int) -> None:
    text = "%v = const {value=1.0, dtype=f32} : f32\n%a = " + LOAD + between + "%b = " + LOAD + \
        "%c0 = sub %a, %b : f32[4]\nstore %z, %n, %c0 {axes=(0,)}\n"
    assert count(text, "load") == loads


def test_a_loop_that_writes_is_not_seen_through() -> None:
    text = ("%one = const {value=1, dtype=i32} : i32\n%a = " + LOAD + """
%r = for %one, %n, %one, %a {stages=1} : f32[4] (%i: i32, %c: f32[4]) {
  %b = """ + LOAD + """
  %d = add %b, %c : f32[4]
  store %y, %n, %d {axes=(0,)}
  %e = """ + LOAD + """
  yield %e
}
store %z, %n, %r {axes=(0,)}
""")
    assert count(text, "load") == 3
    assert count(text.replace("  store %y, %n, %d {axes=(0,)}\n", ""), "load") == 1


def test_buffers() -> None:
    alloc = "alloc {dtype=f32, shape=(4,), space='shared', layout=None} : buffer<shared f32, 4>\n"
    read = "load %s, %zero {shape=(4,), axes=(0,), fill=0} : f32[4]\n"
    text = ("%zero = const {value=0, dtype=i32} : i32\n%x0 = " + LOAD + "%s = " + alloc + "%t = " + alloc
            + "store %s, %zero, %x0 {axes=(0,)}\nstore %t, %zero, %x0 {axes=(0,)}\n%a = " + read
            + "store %t, %zero, %a {axes=(0,)}\n%b = " + read + "store %s, %zero, %a {axes=(0,)}\n%c = " + read
            + "%d = add %a, %b : f32[4]\n%e = add %d, %c : f32[4]\nstore %y, %n, %e {axes=(0,)}\n")
    fn = apply(HEAD + text + "}", cse)
    assert names(fn).count("alloc") == 2  # each is a memory of its own
    assert names(fn).count("load") == 3  # %x0, %a (which %b repeats: only the other buffer changed), and %c


@pytest.mark.parametrize("a, b", [("0.0", "-0.0"), ("1", "1.0"), ("nan", "-nan"), ("0", "False")])
def test_attributes_that_python_calls_equal(a: str, b: str) -> None:
    text = "".join(f"%{n} = const {{value={v}, dtype=f32}} : f32\n" for n, v in (("a", a), ("b", b)))
    assert count(text, "const") == 2
    assert count(text.replace(b, a), "const") == 1


def test_regions_see_outwards_only() -> None:
    lines = body(HEAD + """
  %c = eq %n, %n : i1
  %m = neg %n : i32
  %r = if %c : i32 () {
    %o = neg %n : i32
    %a = mul %o, %o : i32
    yield %a
  } () {
    %b = mul %m, %m : i32
    yield %b
  }
  %d = mul %m, %m : i32
  %e = add %r, %d : i32
  print %e {text='{}'}
}""", cse)
    assert "\n".join(lines).count("neg") == 1 and "\n".join(lines).count("mul %m, %m") == 3


def test_reads_of_a_region_end_with_it() -> None:
    branch = ("%c = eq %n, %n : i1\nif %c () {\n  %a = " + LOAD + "  print %a {text='{}'}\n  yield\n} () {\n"
              + "  %b = " + LOAD + "  print %b {text='b {}'}\n  yield\n}\n%d = " + LOAD + "print %d {text='d {}'}\n")
    assert count(branch, "load") == 3
    assert count("%e = " + LOAD + "print %e {text='e {}'}\n" + branch, "load") == 1


def test_chains_and_many_results() -> None:
    sort = "sort %a {axis=0, descending=False} : f32[4], i32[4]\n"
    text = ("%a = " + LOAD + "%p, %q = " + sort + "%r, %s = " + sort + "%t = add %q, %s : i32[4]\n"
            "%u = add %s, %q : i32[4]\n%v = sub %t, %u : i32[4]\nprint %v {text='{}'}\n")
    fn = apply(HEAD + text + "}", cse, dce)
    assert names(fn) == ["load", "sort", "add", "sub", "print"]


def test_carried_buffers_may_be_the_same() -> None:
    alloc = "alloc {dtype=f32, shape=(4,), space='shared', layout=None} : buffer<shared f32, 4>\n"
    read = "load %p, %zero {shape=(4,), axes=(0,), fill=0} : f32[4]\n"
    text = ("%zero = const {value=0, dtype=i32} : i32\n%one = const {value=1, dtype=i32} : i32\n%a = " + LOAD
            + "%s = " + alloc + "%t = " + alloc + "store %s, %zero, %a {axes=(0,)}\nstore %t, %zero, %a {axes=(0,)}\n"
            + "%u, %v = for %zero, %n, %one, %s, %t {stages=1} : buffer<shared f32, 4>, buffer<shared f32, 4> "
              "(%i: i32, %p: buffer<shared f32, 4>, %q: buffer<shared f32, 4>) {\n%b = " + read
            + "%c = exp %b : f32[4]\nstore %q, %zero, %c {axes=(0,)}\n%d = " + read
            + "store %y, %i, %d {axes=(0,)}\nyield %q, %p\n}\n")
    assert count(text, "load") == 3
