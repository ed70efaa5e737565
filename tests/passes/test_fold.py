"""fold: constants, identities that hold to the bit, chains. Every case also runs before and after on random inputs."""
from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tests.ir.op_examples import tiles
from tests.passes.helpers import apply, body, names
from tilelang.ir import codec
from tilelang.ir.dtypes import dtype
from tilelang.ir.parser import parse
from tilelang.ir.shape import Const
from tilelang.passes.dce import dce
from tilelang.passes.fold import _holds, fold, number


def folded(text: str, inputs: dict[str, str], result: str) -> list[str]:
    """The operations left between the loads of `inputs` and the store of %r."""
    lines = body(tiles("f", text, inputs, {"r": result}), fold, dce)
    return [line for line in lines if not any(f" {op} " in f" {line}" for op in ("load", "store"))
            and not line.startswith("%zero")]


def const(name: str, value: object, dt: str, shape: str = "") -> str:
    text = f"%{name}{'_s' if shape else ''} = const {{value={value}, dtype={dt}}} : {dt}\n"
    return text + (f"%{name} = broadcast %{name}_s {{shape=({shape},)}} : {dt}[{shape}]\n" if shape else "")


@pytest.mark.parametrize("text, result", [
    (const("a", 6, "i32") + const("b", 7, "i32") + "%r = mul %a, %b : i32", "value=42, dtype=i32"),
    (const("a", 127, "i8") + const("b", 1, "i8") + "%r = add %a, %b : i8", "value=-128, dtype=i8"),
    (const("a", 7, "i4") + const("b", 1, "i4") + "%r = add %a, %b : i4", "value=-8, dtype=i4"),
    (const("a", -7, "i32") + const("b", 2, "i32") + "%r = floordiv %a, %b : i32", "value=-4, dtype=i32"),
    (const("a", -7, "i32") + const("b", 0, "i32") + "%r = mod %a, %b : i32", "value=0, dtype=i32"),
    (const("a", 0.1, "f16") + const("b", 0.2, "f16") + "%r = add %a, %b : f16", "value=0.2998046875, dtype=f16"),
    (const("a", 1.0, "f32") + const("b", 0.0, "f32") + "%r = div %a, %b : f32", "value=inf, dtype=f32"),
    (const("a", -0.0, "f32") + "%r = sqrt %a : f32", "value=-0.0, dtype=f32"),
    (const("a", 3.7, "f64") + "%r = cast %a {dtype=i32} : i32", "value=3, dtype=i32"),
    (const("a", 2, "i32") + const("b", 3, "i32") + "%r = lt %a, %b : i1", "value=True, dtype=i1"),
    (const("a", 2**63, "u64") + "%r = bitcast %a {dtype=f64} : f64", "value=-0.0, dtype=f64"),
    (const("a", 5, "i64") + "%b = cast %a {dtype=f8e4m3} : f8e4m3\n%r = cast %b {dtype=f32} : f32",
     "value=5.0, dtype=f32"),
])
def test_constants(text: str, result: str) -> None:
    (line,) = folded(text, {}, result.rpartition("=")[2])
    assert line.startswith(f"%r = const {{{result}}}")


def test_one_spelling_of_a_float() -> None:
    (line,) = folded(const("r", 3, "f16"), {}, "f16")
    assert line == "%r = const {value=3.0, dtype=f16} : f16"


def test_a_nan_with_a_payload_is_kept() -> None:
    text = const("a", 0x7FC00001, "u32") + "%r = bitcast %a {dtype=f32} : f32"
    assert len(folded(text, {}, "f32")) == 2
    assert "value=-nan" in folded(const("a", 0xFFC00000, "u32") + "%r = bitcast %a {dtype=f32} : f32", {}, "f32")[0]


def _binary(op: str, value: object, dt: str, left: bool = False) -> str:
    return const("k", value, dt, "4") + f"%r = {op} {'%k, %x' if left else '%x, %k'} : {dt}[4]"


@pytest.mark.parametrize("op, value, dt, left", [
    *[("mul", v, dt, left) for v, dt in ((1.0, "f32"), (1.0, "bf16"), (1, "i8"), (1, "u64")) for left in (0, 1)],
    *[("add", v, dt, left) for v, dt in ((-0.0, "f32"), (0, "i32"), (0, "u4")) for left in (0, 1)],
    *[("sub", v, dt, 0) for v, dt in ((0.0, "f32"), (0.0, "f16"), (0, "i32"))],
    ("div", 1.0, "f32", 0), ("floordiv", 1, "i32", 0), ("shl", 0, "i32", 0), ("shr", 0, "u8", 0),
    *[(op, v, dt, left) for op, v, dt in (("and", -1, "i32"), ("and", 15, "u4"), ("and", True, "i1"), ("or", 0, "u8"),
                                          ("or", False, "i1"), ("xor", 0, "i16")) for left in (0, 1)],
])
def test_identities(op: str, value: object, dt: str, left: int) -> None:
    assert folded(_binary(op, value, dt, bool(left)), {"x": f"{dt}[4]"}, f"{dt}[4]") == []


@pytest.mark.parametrize("op, value, dt, left", [
    ("add", 0.0, "f32", 0), ("add", 0.0, "f16", 1), ("sub", -0.0, "f32", 0), ("sub", 0, "i32", 1),
    ("mul", 0.0, "f32", 0), ("mul", -1.0, "f32", 0), ("div", 1.0, "f32", 1), ("floordiv", 1.0, "f32", 0),
    ("mod", 1.0, "f32", 0), ("mod", -1, "i32", 0), ("min", 0, "u8", 0), ("and", 7, "u4", 0), ("shl", 0, "i32", 1),
])
def test_what_is_no_identity_stays(op: str, value: object, dt: str, left: int) -> None:
    assert len(folded(_binary(op, value, dt, bool(left)), {"x": f"{dt}[4]"}, f"{dt}[4]")) == 3


@pytest.mark.parametrize("text, dt, value", [
    (_binary("mul", 0, "i32"), "i32", 0), (_binary("and", 0, "i32", True), "i32", 0),
    (_binary("mod", 1, "u8"), "u8", 0),
    (_binary("or", -1, "i8"), "i8", -1), (_binary("or", True, "i1"), "i1", True),
    ("%r = sub %x, %x : i32[4]", "i32", 0), ("%r = xor %x, %x : u4[4]", "u4", 0),
])
def test_absorbed(text: str, dt: str, value: object) -> None:
    lines = folded(text, {"x": f"{dt}[4]"}, f"{dt}[4]")
    assert len(lines) == 2 and f"value={value}," in lines[0] and "broadcast" in lines[1]


@pytest.mark.parametrize("op, dt, value", [
    *[(op, dt, op in ("eq", "le", "ge")) for op in ("eq", "ne", "lt", "le", "gt", "ge") for dt in ("i32", "i1")],
    ("eq", "f32", None), ("ne", "f32", None), ("le", "bf16", None)])
def test_comparison_with_itself(op: str, dt: str, value: bool | None) -> None:
    lines = folded(f"%r = {op} %x, %x : i1[4]", {"x": f"{dt}[4]"}, "i1[4]")
    assert len(lines) == 1 if value is None else f"value={value}," in lines[0]  # NaN differs from itself


@pytest.mark.parametrize("text", [
    "%n = neg %x : f32[4]\n%r = neg %n : f32[4]",
    "%r = max %x, %x : f32[4]",
    const("c", True, "i1", "4") + "%n = exp %x : f32[4]\n%r = where %c, %x, %n : f32[4]",
    const("c", False, "i1", "4") + "%n = exp %x : f32[4]\n%r = where %c, %n, %x : f32[4]",
    "%n = exp %x : f32[4]\n%c = lt %x, %n : i1[4]\n%r = where %c, %x, %x : f32[4]",
    "%r = cast %x {dtype=f32} : f32[4]",
    "%n = cast %x {dtype=f64} : f64[4]\n%r = cast %n {dtype=f32} : f32[4]",
    "%n = bitcast %x {dtype=i32} : i32[4]\n%r = bitcast %n {dtype=f32} : f32[4]",
    "%r = broadcast %x {shape=(4,)} : f32[4]",
    "%n = reshape %x {shape=(2, 2)} : f32[2, 2]\n%r = reshape %n {shape=(4,)} : f32[4]",
    "%r = permute %x {order=(0,)} : f32[4]",
    "%r = slice %x {starts=(0,), shape=(4,), steps=(1,)} : f32[4]",
    "%n = slice %x {starts=(3,), shape=(4,), steps=(-1,)} : f32[4]\n"
    "%r = slice %n {starts=(3,), shape=(4,), steps=(-1,)} : f32[4]",
    "%r = concat %x {axis=0} : f32[4]",
])
def test_nothing_is_left(text: str) -> None:
    assert folded(text, {"x": "f32[4]"}, "f32[4]") == []


@pytest.mark.parametrize("text, left, result", [
    ("%n = permute %x {order=(1, 2, 0)} : f32[3, 4, 2]\n%r = permute %n {order=(1, 0, 2)} : f32[4, 3, 2]",
     "permute %x {order=(2, 1, 0)}", "f32[4, 3, 2]"),
    ("%n = reshape %x {shape=(24,)} : f32[24]\n%r = reshape %n {shape=(4, 6)} : f32[4, 6]",
     "reshape %x {shape=(4, 6)}", "f32[4, 6]"),
    ("%n = broadcast %x {shape=(5, 2, 3, 4)} : f32[5, 2, 3, 4]\n"
     "%r = broadcast %n {shape=(2, 5, 2, 3, 4)} : f32[2, 5, 2, 3, 4]",
     "broadcast %x {shape=(2, 5, 2, 3, 4)}", "f32[2, 5, 2, 3, 4]"),
    ("%n = slice %x {starts=(1, 2, 3), shape=(1, 1, 4), steps=(1, 1, -1)} : f32[1, 1, 4]\n"
     "%r = slice %n {starts=(0, 0, 1), shape=(1, 1, 2), steps=(1, 1, 2)} : f32[1, 1, 2]",
     "slice %x {starts=(1, 2, 2), shape=(1, 1, 2), steps=(1, 1, -2)}", "f32[1, 1, 2]"),
    ("%n = cast %x {dtype=f64} : f64[2, 3, 4]\n%r = cast %n {dtype=f16} : f16[2, 3, 4]",
     "cast %x {dtype=f16}", "f16[2, 3, 4]"),
])
def test_chains(text: str, left: str, result: str) -> None:
    (line,) = folded(text, {"x": "f32[2, 3, 4]"}, result)
    assert line == f"%r = {left} : {result}"


@pytest.mark.parametrize("text", [
    "%n = cast %x {dtype=f16} : f16[4]\n%r = cast %n {dtype=f32} : f32[4]",  # rounds
    "%n = bitcast %x {dtype=i32} : i32[4]\n%r = cast %n {dtype=f32} : f32[4]",
])
def test_conversions_that_do_something_stay(text: str) -> None:
    assert len(folded(text, {"x": "f32[4]"}, "f32[4]")) == 2


def test_a_reversal_stays() -> None:
    text = "%r = slice %x {starts=(3,), shape=(4,), steps=(-1,)} : f32[4]"
    assert folded(text, {"x": "f32[4]"}, "f32[4]") == [text]


def test_integer_casts_through_floats_stay() -> None:
    text = "%n = cast %x {dtype=f64} : f64[4]\n%r = cast %n {dtype=i8} : i8[4]"
    assert len(folded(text, {"x": "i16[4]"}, "i8[4]")) == 2  # a float saturates, an integer wraps


def test_elementwise_of_splats_is_computed_once() -> None:
    text = ("%p = broadcast %s {shape=(4, 8)} : f32[4, 8]\n" + const("h", 0.5, "f32")
            + "%q = broadcast %h {shape=(4, 8)} : f32[4, 8]\n%m = mul %p, %q : f32[4, 8]\n%r = exp %m : f32[4, 8]")
    lines = folded(text, {"s": "f32"}, "f32[4, 8]")
    assert [line.split(" = ")[1].split()[0] for line in lines] == ["const", "mul", "exp", "broadcast"]


def test_splats_keep_their_element_through_every_rearrangement() -> None:
    text = ("%p = broadcast %s {shape=(4, 8)} : f32[4, 8]\n%q = permute %p {order=(1, 0)} : f32[8, 4]\n"
            "%t = reshape %q {shape=(32,)} : f32[32]\n%u = slice %t {starts=(5,), shape=(1,), steps=(1,)} : f32[1]\n"
            "%r = reshape %u {shape=()} : f32")
    assert folded(text, {"s": "f32"}, "f32") == []


@pytest.mark.parametrize("value", [True, False])
def test_constant_branches_are_taken(value: bool) -> None:
    fn = apply(tiles("f", const("c", value, "i1") + """
%r, %s = if %c : f32[4], f32[4] () {
  %a = exp %x : f32[4]
  yield %a, %x
} () {
  %b = neg %x : f32[4]
  yield %x, %b
}""", {"x": "f32[4]"}, {"r": "f32[4]", "s": "f32[4]"}), fold, dce)
    assert [n for n in names(fn) if n not in ("load", "store", "const")] == (["exp"] if value else ["neg"])


def test_inside_loops() -> None:
    fn = apply(tiles("f", const("lo", 0, "i32") + const("two", 2, "i32") + const("one", 1.0, "f32") + """
%r = for %lo, %n, %two, %x {stages=1} : f32[4] (%i: i32, %c: f32[4]) {
  %k = mul %two, %two : i32
  %o = broadcast %one {shape=(4,)} : f32[4]
  %d = div %c, %o : f32[4]
  %t = load %x_in, %k {shape=(4,), axes=(0,), fill=0} : f32[4]
  %e = add %d, %t : f32[4]
  yield %e
}""", {"x": "f32[4]", "n": "i32"}, {"r": "f32[4]"}), fold, dce)
    (loop,) = (op for op in fn.walk() if op.name == "for")
    assert [op.name for op in loop.regions[0].ops] == ["const", "load", "add", "yield"]


def test_chosen_layouts_are_not_lost() -> None:
    text = tiles("f", "%n = permute %x {order=(1, 0)} : f32[4, 4]@<spatial(4, 4)>\n"
                      "%r = permute %n {order=(1, 0)} : f32[4, 4]@<spatial(4, 4)>",
                 {"x": "f32[4, 4]"}, {"r": "f32[4, 4]"})
    assert names(parse(text)) == names(apply(text, fold))


SMALL = [dtype(n) for n in ("i1", "i3", "u3", "i8", "u8", "i16", "u16", "f4e2m1", "f6e3m2", "f8e4m3", "f8e5m2",
                            "f8e4m3fnuz", "f8e5m2fnuz", "f16", "bf16")]
WIDE = [dtype(n) for n in ("i8", "u8", "i16", "i32", "u32", "f8e4m3", "f8e4m3fnuz", "f8e5m2", "f16", "bf16",
                           "f32", "f64")]


def test_widening_casts_are_transparent() -> None:
    """Every value of the narrow type, cast through the wide one or not, gives the same."""
    pairs = [(a, b) for a, b in itertools.product(SMALL, WIDE) if _holds(b, a)]
    assert len(pairs) > 40 and not _holds(dtype("f16"), dtype("bf16")) and not _holds(dtype("u8"), dtype("i8"))
    for source, wide in pairs:
        codes = codec.from_bits(np.arange(1 << source.bits, dtype=np.uint64), source)
        for target in (d for d in SMALL if d.kind in (("int", "uint") if source.is_integer else ("float",))):
            direct = codec.cast(codes, source, target)
            through = codec.cast(codec.cast(codes, source, wide), wide, target)
            nan = np.isnan(codec.decode(codes, source)) if source.kind == "float" else np.zeros(codes.shape, bool)
            same = codec.to_bits(direct, target) == codec.to_bits(through, target)
            assert np.all(same | nan), (source, wide, target)


@pytest.mark.parametrize("name", ["f32", "bf16", "f8e4m3", "e8m0", "s3", "ternary", "codebook(1, [0.25, 4.0])", "u4"])
def test_number_reads_back(name: str) -> None:
    dt = dtype(name)
    for code in range(3 if name == "ternary" else min(1 << dt.bits, 256)):
        stored = codec.from_bits(np.asarray(code, np.uint64), dt)
        value = number(stored, dt)
        again = Const([], {"value": value, "dtype": dt}).eval(None)
        assert isinstance(value, float) and math.isnan(value) or codec.to_bits(again, dt) == codec.to_bits(stored, dt)
