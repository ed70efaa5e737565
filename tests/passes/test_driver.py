"""The driver: planted mistakes are caught and named, correct rewrites pass, dumps read back."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilelang as tile
from tests.ir.op_examples import tiles
from tests.passes.helpers import names
from tilelang.errors import ConfigError, Loc, VerifyError
from tilelang.ir import elementwise as ew
from tilelang.ir import reduction
from tilelang.ir.core import Builder, Function, Op, Region, TensorType
from tilelang.ir.dtypes import dtype
from tilelang.ir.parser import parse
from tilelang.ir.shape import Const, Slice
from tilelang.ir.text import print_function
from tilelang.passes.cse import cse
from tilelang.passes.dce import dce
from tilelang.passes.driver import Pass, exact, run_passes
from tilelang.passes.fold import fold
from tilelang.passes.licm import licm
from tilelang.passes.meaning import difference, random_inputs

TEXT = tiles("dotted", """
%p = mul %a, %b : f32[4, 64]
%s = reduce %p {kind='sum', axis=1} : f32[4]
%e = exp %s : f32[4]
%r = add %e, %c : f32[4]
%q = cast %s {dtype=f16} : f16[4]
%i = arg_reduce %p {kind='max', axis=1} : i32[4]
""", {"a": "f32[4, 64]", "b": "f32[4, 64]", "c": "f32[4]"}, {"r": "f32[4]", "q": "f16[4]", "i": "i32[4]"})


def function() -> Function:
    """The function of TEXT, each operation with a line in the user's file."""
    fn = parse(TEXT)
    for i, op in enumerate(fn.walk()):
        op.loc = Loc("kernel.py", 10 + i)
    return fn


def find(fn: Function, name: str) -> tuple[Region, int, Op]:
    for i, op in enumerate(fn.body.ops):
        if op.name == name:
            return fn.body, i, op
    raise AssertionError(name)


def replace(fn: Function, name: str, cls: type[Op], **attrs: Any) -> Function:
    """Puts an operation of another class, with the same operands, in the place of the first `name`."""
    region, i, op = find(fn, name)
    new = cls(op.operands, attrs, loc=op.loc)
    for user in fn.walk():
        user.operands = [new.result if v is op.result else v for v in user.operands]
    region.ops[i] = new
    return fn


# -- what is wrong with the IR itself: CHECK=1 ------------------------------------------------------------------------
def forgets_a_definition(fn: Function, target: Any) -> Function:
    region, i, _ = find(fn, "reduce")
    del region.ops[i]
    return fn


def forgets_the_type(fn: Function, target: Any) -> Function:
    find(fn, "reduce")[2].attrs["axis"] = 0
    return fn


def forgets_the_order(fn: Function, target: Any) -> Function:
    region, i, op = find(fn, "exp")
    region.ops.insert(0, region.ops.pop(i))
    return fn


def claims_another_level(fn: Function, target: Any) -> Function:
    fn.level = "thread"
    return fn


@pytest.mark.parametrize("step, op, line", [
    (forgets_a_definition, "exp", "kernel.py:16"), (forgets_the_type, "reduce", "kernel.py:15"),
    (forgets_the_order, "exp", "kernel.py:16"), (claims_another_level, "load", "kernel.py:11")])
def test_check_1_names_the_pass_the_operation_and_the_line(step: Pass, op: str, line: str) -> None:
    with pytest.raises(VerifyError) as caught:
        run_passes(function(), None, [fold, step, dce], check=1, dump="")
    report = str(caught.value)
    assert caught.value.pass_name == step.__name__ and f"`{step.__name__}`" in report
    assert caught.value.op == op and f"`{op}`" in report and line in report


def test_the_input_is_verified_too() -> None:
    fn = forgets_the_type(function(), None)
    with pytest.raises(VerifyError) as caught:
        run_passes(fn, None, [dce], check=1, dump="")
    assert caught.value.pass_name == ""
    assert names(run_passes(fn, None, [], check=0, dump="")) == names(fn)


# -- what is valid and means something else: CHECK=2 ------------------------------------------------------------------
def adds_instead(fn: Function, target: Any) -> Function:
    return replace(fn, "mul", ew.Add)


def takes_the_maximum(fn: Function, target: Any) -> Function:
    return replace(fn, "reduce", reduction.Reduce, kind="max", axis=1)


def drops_the_last_column(fn: Function, target: Any) -> Function:
    region, i, op = find(fn, "reduce")
    short = Slice([op.operands[0]], {"starts": (0, 0), "shape": (4, 63), "steps": (1, 1)}, loc=op.loc)
    region.ops.insert(i, short)
    op.operands = [short.result]
    return fn


def rounds_early(fn: Function, target: Any) -> Function:
    region, i, op = find(fn, "reduce")
    half = ew.Cast(op.operands, {"dtype": dtype("f16")}, loc=op.loc)
    back = ew.Cast([half.result], {"dtype": dtype("f32")}, loc=op.loc)
    region.ops[i:i] = [half, back]
    op.operands = [back.result]
    return fn


def takes_the_minimum(fn: Function, target: Any) -> Function:
    return replace(fn, "arg_reduce", reduction.ArgReduce, kind="min", axis=1)


def forgets_a_store(fn: Function, target: Any) -> Function:
    region, i, _ = find(fn, "store")
    del region.ops[i]
    return fn


def ignores_the_edge(fn: Function, target: Any) -> Function:
    find(fn, "load")[2].attrs["fill"] = 1
    return fn


@pytest.mark.parametrize("step, output", [
    (adds_instead, "r"), (takes_the_maximum, "r"), (drops_the_last_column, "r"), (rounds_early, "r"),
    (takes_the_minimum, "i"), (forgets_a_store, "r"), (ignores_the_edge, "r")])
def test_check_2_names_the_pass_and_shows_the_difference(step: Pass, output: str) -> None:
    fn = function()
    run_passes(fn, None, [step], check=1, dump="")  # valid, only wrong
    with pytest.raises(VerifyError, match="changed its meaning") as caught:
        run_passes(fn, None, [fold, step, dce], check=2, dump="")
    error = caught.value
    assert error.pass_name == step.__name__ and error.got.startswith(f"%{output}_out[")
    stores = {op.operands[0].name: op.loc for op in fn.walk() if op.name == "store"}
    assert error.loc == stores[f"{output}_out"] and "kernel.py" in str(error)
    assert print_function(fn) == print_function(function())


# -- rewrites that round elsewhere ------------------------------------------------------------------------------------
def splits_the_sum(fn: Function, target: Any) -> Function:
    """Sums 64 columns as eight times eight, the last first."""
    region, i, op = find(fn, "reduce")
    inner = Region()
    b = Builder(inner, op.loc)
    flipped = b.emit(Slice, op.operands[0], starts=(0, 63), shape=(4, 64), steps=(1, -1))
    parts = b.emit(Op.registry["reshape"], flipped, shape=(4, 8, 8))
    rows = b.emit(Op.registry["reduce"], parts, kind="sum", axis=1)
    total = b.emit(Op.registry["reduce"], rows, kind="sum", axis=1)
    region.ops[i:i + 1] = inner.ops
    for user in fn.walk():
        user.operands = [total if v is op.result else v for v in user.operands]
    return fn


def exponentiates_by_powers_of_two(fn: Function, target: Any) -> Function:
    region, i, op = find(fn, "exp")
    log2e = Const([], {"value": 1.4426950408889634, "dtype": dtype("f32")}, loc=op.loc)
    full = Op.registry["broadcast"]([log2e.result], {"shape": (4,)}, loc=op.loc)
    scaled = ew.Mul([op.operands[0], full.result], loc=op.loc)
    region.ops[i:i] = [log2e, full, scaled]
    op.operands = [scaled.result]
    return replace(fn, "exp", ew.Exp2)


@pytest.mark.parametrize("step", [splits_the_sum, exponentiates_by_powers_of_two])
def test_rounding_is_allowed_unless_a_pass_is_exact(step: Pass) -> None:
    out = run_passes(function(), None, [step], check=2, dump="")
    inputs = random_inputs(out, np.random.default_rng(1))
    assert inputs[0].dtype == np.float32

    @exact
    def claims_to_be_exact(fn: Function, target: Any) -> Function:
        return step(fn, target)

    with pytest.raises(VerifyError, match="after pass `claims_to_be_exact`") as caught:
        run_passes(function(), None, [claims_to_be_exact], check=2, dump="")
    assert "to the bit" in caught.value.needs


def test_an_exact_pass_must_keep_the_sign_of_zero() -> None:
    text = tiles("zero", "%z = const {value=0.0, dtype=f32} : f32\n%k = broadcast %z {shape=(64,)} : f32[64]\n"
                         "%r = add %a, %k : f32[64]", {"a": "f32[64]"}, {"r": "f32[64]"})

    @exact
    def removes_plus_zero(fn: Function, target: Any) -> Function:
        find(fn, "store")[2].operands[-1] = find(fn, "load")[2].result
        return fn

    with pytest.raises(VerifyError, match="removes_plus_zero"):
        run_passes(parse(text), None, [removes_plus_zero], check=2, dump="")


def test_integers_must_be_exact() -> None:
    text = tiles("count", "%s = reduce %a {kind='sum', axis=0} : i32", {"a": "i32[64]"}, {"s": "i32"})

    def off_by_one(fn: Function, target: Any) -> Function:
        return replace(fn, "reduce", reduction.Reduce, kind="max", axis=0)

    with pytest.raises(VerifyError, match="off_by_one"):
        run_passes(parse(text), None, [off_by_one], check=2, dump="")


def test_a_comparison_of_rounded_values_may_move() -> None:
    """The position of the largest of equal sums is decided by rounding."""
    text = tiles("ties", """
%s = reduce %a {kind='sum', axis=1} : f32[4]
%f = slice %a {starts=(0, 7), shape=(4, 8), steps=(1, -1)} : f32[4, 8]
%t = reduce %f {kind='sum', axis=1} : f32[4]
%r = lt %s, %t : i1[4]""", {"a": "f32[4, 8]"}, {"r": "i1[4]"})
    before, after = parse(text), parse(text.replace("lt %s, %t", "lt %t, %s"))
    assert difference(before, after, np.random.default_rng(0)) == ""


@pytest.mark.parametrize("wrong", [1.0, -np.inf, np.nan])
def test_an_infinity_is_no_rounding_error(wrong: float) -> None:
    text = tiles("inverse", "%r = div %a, %b : f32[4]", {"a": "f32[4]", "b": "f32[4]"}, {"r": "f32[4]"})
    one, nothing = np.ones(4, np.float32), np.zeros(4, np.float32)

    def other(args: list[Any]) -> None:
        args[2][...] = wrong
    found = difference(parse(text), other, np.random.default_rng(0), trials=1, inputs=[one, nothing, one.copy()])
    assert found.startswith(f"%r_out[0] was inf and is {wrong}")


def test_where_nothing_is_rounded_every_bit_counts() -> None:
    text = tiles("copies", "%r = abs %a : f32[4]", {"a": "f32[4]"}, {"r": "f32[4]"})

    def beside(args: list[Any]) -> None:
        args[1][...] = np.nextafter(np.abs(args[0]), np.float32(np.inf))
    ones = [np.ones(4, np.float32), np.zeros(4, np.float32)]
    assert difference(parse(text), beside, np.random.default_rng(0), trials=1, inputs=ones)


def test_sums_that_overflow_on_the_way_have_no_order() -> None:
    text = tiles("total", "%s = reduce %a {kind='sum', axis=0} : f32", {"a": "f32[4]"}, {"s": "f32"})
    large = np.finfo(np.float32).max
    inputs = [np.array([large, large, -np.inf, 0], np.float32), np.zeros(1, np.float32)]
    for terms, same in ((np.array([large, large, -np.inf, 0], np.float32), True), (np.ones(4, np.float32), False)):
        def to_nan(args: list[Any]) -> None:
            args[1][...] = np.nan
        inputs[0] = terms
        assert (difference(parse(text), to_nan, np.random.default_rng(0), trials=1, inputs=inputs) == "") == same


def test_exceptions_and_printing_count() -> None:
    text = tiles("p", "print %n {text='n = {}'}", {"n": "i32"}, {})
    quiet = parse(text)
    quiet.body.ops = quiet.body.ops[:1]
    assert "it printed" in difference(parse(text), quiet, np.random.default_rng(0))
    broken = parse(text)
    broken.body.ops[1].attrs["text"] = 5
    assert "Error" in difference(parse(text), broken, np.random.default_rng(0))


def test_rejected_inputs_are_drawn_again() -> None:
    text = tiles("even", """
%two = const {value=2, dtype=i32} : i32
%left = mod %n, %two : i32
%ok = eq %left, %zero : i1
assert %ok {message='n is even'}
%r = mul %n, %two : i32""", {"n": "i32"}, {"r": "i32"})
    fn = parse(text)
    assert difference(fn, fn, np.random.default_rng(0)) == ""
    assert "%r_out" in difference(fn, replace(fn.clone(), "mul", ew.Add), np.random.default_rng(0))


def test_an_exception_in_a_pass_names_the_pass() -> None:
    def stumbles(fn: Function, target: Any) -> Function:
        raise KeyError("x")

    with pytest.raises(KeyError) as caught:
        run_passes(function(), None, [stumbles], check=0, dump="")
    assert caught.value.__notes__ == ["in pass `stumbles` on `dotted`"]


def test_a_place_that_no_dump_can_be_written_to(tmp_path: Path) -> None:
    """The user's mistake, not the compiler's."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="(?s)the IR after a pass cannot be written.*file.*unset TILELANG_DUMP"):
        run_passes(function(), None, [fold], check=0, dump=str(tmp_path / "file"))


def test_dump(tmp_path: Path) -> None:
    out = run_passes(function(), None, [fold, cse, dce], check=0, dump=str(tmp_path))
    files = sorted(p.name for p in (tmp_path / "dotted").iterdir())
    assert files == ["00_input.tile", "01_fold.tile", "02_cse.tile", "03_dce.tile"]
    text = (tmp_path / "dotted" / "03_dce.tile").read_text()
    assert "# kernel.py:14" in text and print_function(parse(text)) == print_function(out)


def test_the_environment_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tilelang.config import Config
    monkeypatch.setattr("tilelang.passes.driver.config", lambda: Config(check=1, dump=str(tmp_path)))
    with pytest.raises(VerifyError):
        run_passes(function(), None, [forgets_the_type])
    assert (tmp_path / "dotted" / "01_forgets_the_type.tile").exists()


# -- inputs -----------------------------------------------------------------------------------------------------------
def test_random_inputs_respect_the_types() -> None:
    fn = parse("""func @f(%a: tensor<in f32, M, K:1>, %b: tensor<in i8, K, N>, %c: tensor<out u4, M:1, 3>, %s: i32,
""".rstrip() + """ %t: tensor<in f8e4m3>) tile {
  %zero = const {value=0, dtype=i32} : i32
  %x = load %a, %zero, %zero {shape=(16, 8), axes=(0, 1), fill=0} : f32[16, 8]
}""")
    seen = set()
    for seed in range(40):
        a, b, c, s, t = random_inputs(fn, np.random.default_rng(seed), special=True)
        assert a.shape[1] == b.shape[0] and a.shape[0] == c.shape[0] and c.shape[1] == 3 and t.shape == ()
        assert a.strides[1] == a.itemsize and c.strides[0] == c.itemsize or 1 in a.shape or c.shape[0] == 1
        assert b.shape[1] == 1 or b.strides[1] == 2  # nothing is promised, so the elements have gaps
        assert [x.dtype for x in (a, b, c, np.asarray(s))] == [np.float32, np.int8, np.uint8, np.int32]
        assert 0 <= int(s) < 9 and c.max() < 16
        seen.add(a.shape[0])
    assert seen == {1, 3, 8, 15, 16, 17, 32}
    assert {random_inputs(fn, np.random.default_rng(i), full=True)[0].shape[0] for i in range(20)} == {16, 17, 32}


def test_wild_inputs_lie_as_their_types_allow() -> None:
    fn = parse("""func @f(%a: tensor<in f32 align 16, M, N:1>, %b: tensor<in i64, K, L, N>, %n: i32) tile {
  for %n, %n, %n {stages=1, schedule=''} (%i: i32) {
    yield
  }
}""")
    seen = set[str]()
    for seed in range(60):
        a, b, _ = random_inputs(fn, np.random.default_rng(seed), special=True, wild=True)
        assert a.size == 0 or a.strides[1] == 4 and a.strides[0] % 16 == 0 and a.shape[1] % 4 == 0
        seen |= {"empty"} if not a.size else {"backwards"} if a.strides[0] < 0 else set()
        seen |= {"turned"} if abs(b.strides[0]) < abs(b.strides[1]) else set()
        seen |= {"huge"} if np.abs(b).max(initial=0) > 2**60 else set()
        seen |= {"least"} if (b == -2**63).any() else set()
        seen |= {"apart"} if abs(a.strides[0]) > 4 * a.shape[1] else set()
    assert seen == {"empty", "backwards", "turned", "huge", "least", "apart"}


def test_strided_arguments_are_copied_with_their_strides() -> None:
    fn = parse("""func @f(%x: tensor<in i32, M, N>, %y: tensor<out i32, 1:1>) thread {
  %s = stride %x {axis=1} : i64
  %zero = const {value=0, dtype=i64} : i64
  %n = cast %s {dtype=i32} : i32
  st %y, %zero, %n {stream=False}
}""")
    two = fn.clone()
    replaced = Const([], {"value": 2, "dtype": dtype("i32")})
    two.body.ops[2] = replaced
    two.body.ops[3].operands[2] = replaced.result
    assert difference(fn, two, np.random.default_rng(0)) == ""
    assert all(isinstance(p.type, TensorType) for p in fn.params)


def test_the_whole_pipeline_on_a_loop() -> None:
    fn = parse("""func @mm(%a: tensor<in f16, M, K:1>, %b: tensor<in f16, K, N:1>, %c: tensor<out f16, M, N:1>) tile {
  %K = dim %a {axis=1} : i32
  %M = dim %a {axis=0} : i32
  %bm = const {value=8, dtype=i32} : i32
  %seven = const {value=7, dtype=i32} : i32
  %zero = const {value=0, dtype=i32} : i32
  %up = add %M, %seven : i32
  %count = floordiv %up, %bm : i32
  %m = grid %count : i32
  %z = const {value=0.0, dtype=f32} : f32
  %acc = broadcast %z {shape=(8, 16)} : f32[8, 16]
  %r = for %zero, %K, %bm, %acc {stages=3} : f32[8, 16] (%k: i32, %t: f32[8, 16]) {
    %at = mul %m, %bm : i32
    %x = load %a, %at, %k {shape=(8, 8), axes=(0, 1), fill=0} : f16[8, 8]
    %y = load %b, %k, %zero {shape=(8, 16), axes=(0, 1), fill=0} : f16[8, 16]
    %d = dot %x, %y, %t {dtype=f32} : f32[8, 16]
    yield %d
  }
  %at2 = mul %m, %bm : i32
  %h = cast %r {dtype=f16} : f16[8, 16]
  store %c, %at2, %zero, %h {axes=(0, 1)}
}""")
    out = run_passes(fn, None, [fold, cse, licm, cse, dce], check=2, dump="")
    assert names(out).count("mul") == 1 and names(out)[-7:] == ["for", "load", "load", "dot", "yield", "cast", "store"]


@tile.kernel
def taps(x: tile.Tensor[tile.f32, "H W"], w: tile.Tensor[tile.f32, "R S"], table: tile.Tensor[tile.f32, "T"],
         y: tile.Out[tile.f32, "H W"]):
    """R and S are walked one by one, T by a tile of indices."""
    h = tile.grid(x.shape[0])
    acc = tile.gather(table, tile.arange(64))
    for r in tile.range(w.shape[0]):
        for s in tile.range(w.shape[1]):
            acc += tile.load(x, (h + r, s), (64,)) * tile.load(w, (r, s), ())
    tile.store(y, (h, 0), acc)


def test_what_is_walked_one_by_one_is_short() -> None:
    x = np.zeros((4, 64), np.float32)
    fn = taps.lower(x, x, x[0], x).tile
    drawn = [random_inputs(fn, np.random.default_rng(seed), full=True) for seed in range(20)]
    assert max(n for _, w, _, _ in drawn for n in w.shape) == 8
    assert max(x.shape[0] for x, *_ in drawn) == 8 and min(table.shape[0] for _, _, table, _ in drawn) >= 64
