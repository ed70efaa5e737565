"""dce: effects and what they need stay, with the names, types and order they had; the rest goes."""
from __future__ import annotations

from tests.passes.helpers import apply, body, names
from tilelang.ir.parser import parse
from tilelang.passes.dce import dce
from tilelang.passes.driver import run_passes

HEAD = "func @f(%x: tensor<in f32, N:1>, %y: tensor<inout f32, N:1>, %n: i32) tile {\n" \
       "  %zero = const {value=0, dtype=i32} : i32\n  %one = const {value=1, dtype=i32} : i32\n"


def left(text: str) -> list[str]:
    return body(HEAD + text + "}", dce)


def test_pure_chains_and_reads_go() -> None:
    assert left("""
  %a = load %x, %n {shape=(4,), axes=(0,), fill=0} : f32[4]
  %b = exp %a : f32[4]
  %c = reduce %b {kind='sum', axis=0} : f32
""") == []


def test_effects_stay() -> None:
    lines = left("""
  %g = grid %one : i32
  print %n {text='n {}'}
  barrier
  %ok = eq %n, %n : i1
  assert %ok {message=''}
  %v = const {value=1.0, dtype=f32} : f32
  %old = atomic %y, %zero, %v {kind='add', masked=False} : f32
""")
    assert len(lines) == 9


def test_carried_values_that_only_feed_themselves() -> None:
    lines = left("""
  %s, %t, %u = for %zero, %n, %one, %zero, %one, %n {stages=3} : i32, i32, i32 (%i: i32, %a: i32, %b: i32, %c: i32) {
    %d = add %a, %i : i32
    %e = mul %b, %c : i32
    %g = sub %c, %one : i32
    yield %d, %e, %g
  }
  print %s {text='{}'}
""")
    assert lines[2] == "%s = for %zero, %n, %one, %zero {stages=3, schedule=''} : i32 (%i: i32, %a: i32) {"
    assert lines[3:5] == ["%d = add %a, %i : i32", "yield %d"]


def test_carried_values_that_feed_others_stay() -> None:
    lines = left("""
  %s, %t = for %zero, %n, %one, %zero, %one {stages=1, schedule=''} : i32, i32 (%i: i32, %a: i32, %b: i32) {
    %d = add %a, %b : i32
    %e = mul %b, %b : i32
    yield %d, %e
  }
  print %s {text='{}'}
""")
    assert "mul" in "\n".join(lines) and "yield %d, %e" in lines


def test_carried_values_used_by_an_effect_stay() -> None:
    lines = left("""
  %s, %t = for %zero, %n, %one, %zero, %one {stages=1, schedule=''} : i32, i32 (%i: i32, %a: i32, %b: i32) {
    %d = add %a, %one : i32
    %e = add %b, %one : i32
    print %b {text='{}'}
    yield %d, %e
  }
""")
    assert lines[2] == "%t = for %zero, %n, %one, %one {stages=1, schedule=''} : i32 (%i: i32, %b: i32) {"
    assert "yield %e" in lines and not any("%d" in line for line in lines)


def test_loops_without_effects_go() -> None:
    assert left("""
  %r = while %n : i32 (%a: i32) {
    %c = gt %a, %zero : i1
    yield %c
  } (%b: i32) {
    %d = sub %b, %one : i32
    yield %d
  }
  for %zero, %n, %one {stages=1, schedule=''} (%i: i32) {
    %e = exp %one_f : f32
    yield
  }
""".replace("exp %one_f : f32", "neg %i : i32")) == []


def test_while() -> None:
    lines = left("""
  %r, %s, %t = while %n, %zero, %one : i32, i32, i32 (%a: i32, %k: i32, %p: i32) {
    %c = gt %a, %zero : i1
    yield %c
  } (%b: i32, %l: i32, %q: i32) {
    %d = sub %b, %one : i32
    %m = add %l, %b : i32
    %o = add %q, %b : i32
    yield %d, %m, %o
  }
  print %t {text='{}'}
""")
    assert lines[2] == "%r, %t = while %n, %one : i32, i32 (%a: i32, %p: i32) {"  # %r because the condition needs it
    assert "} (%b: i32, %q: i32) {" in lines and "yield %d, %o" in lines


def test_branches() -> None:
    text = """
  %c = gt %n, %zero : i1
  %r, %s = if %c : i32, i32 () {
    %a = add %n, %one : i32
    %d = mul %n, %n : i32
    print %one {text='in {}'}
    yield %a, %d
  } () {
    yield %n, %zero
  }
"""
    lines = left(text + "  print %s {text='{}'}\n")
    assert "%s = if %c : i32 () {" in lines and "yield %d" in lines and "yield %zero" in lines
    assert not any("add" in line for line in lines)
    assert "if %c () {" in left(text) and left(text).count("yield") == 2
    assert left(text.replace("    print %one {text='in {}'}\n", "")) == []


def test_nests() -> None:
    fn = parse("""func @f(%x: tensor<in f32, N:1>, %y: tensor<out f32, N:1>) placed {
  %zero = const {value=0, dtype=i32} : i32
  %r, %s = nest {shape=(4,)} : f32[4], f32[4] () {
    %a = load %x, %zero {shape=(4,), axes=(0,), fill=0} : f32[4]
    %e = exp %a : f32[4]
    %g = sin %a : f32[4]
    yield %e, %g
  }
  nest {shape=(4,)} () {
    store %y, %zero, %s {axes=(0,)}
    yield
  }
}""")
    out = run_passes(fn, None, [dce], check=2, dump="")
    assert names(out) == ["const", "nest", "load", "sin", "yield", "nest", "store", "yield"]


def test_custom_combinations_stay_whole() -> None:
    fn = apply(HEAD + """
  %a = load %x, %zero {shape=(4,), axes=(0,), fill=0} : f32[4]
  %p, %q = reduce %a, %a {kind='custom', axis=0} : f32, f32 (%k: f32, %l: f32, %m: f32, %o: f32) {
    %unused = sin %k : f32
    %s = add %k, %m : f32
    %t = max %l, %o : f32
    yield %s, %t
  }
  store %y, %zero, %q {axes=()}
}""", dce)
    assert names(fn) == ["const", "load", "reduce", "add", "max", "yield", "store"]
