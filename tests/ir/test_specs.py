"""The verifier: every example is accepted at its level, and each broken rule is named."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.ir.op_examples import EXAMPLES, example
from tilelang.errors import Loc, VerifyError
from tilelang.ir.core import BufferType, Function, Op, TensorType, TileType, Value
from tilelang.ir.dtypes import dtype
from tilelang.ir.parser import parse
from tilelang.ir.specs import SPECS, verify
from tilelang.layouts import spatial

F32, I32 = dtype("f32"), dtype("i32")


@pytest.mark.parametrize("key", EXAMPLES)
def test_examples_are_valid(key: str) -> None:
    fn = example(key)
    verify(fn)
    for op in fn.walk():
        assert fn.level in op.levels
    for level in SPECS:
        if level != fn.level:
            with pytest.raises(VerifyError, match="at another level"):
                verify(fn, level)


TEXT = """func @f(%x: tensor<in f32, N:1>, %y: tensor<inout f32, N:1>) tile {
  %n = dim %x {axis=0} : i32
  %i = grid %n : i32
  %a = load %x, %i {shape=(4,), axes=(0,), fill=0} : f32[4]
  %r = for %i, %n, %n, %a {stages=1} : f32[4] (%k: i32, %c: f32[4]) {
    %d = add %c, %a : f32[4]
    yield %d
  }
  %s = reduce %r {kind='custom', axis=0} : f32 (%p: f32, %q: f32) {
    %t = add %p, %q : f32
    yield %t
  }
  store %y, %i, %r {axes=(0,)}
}
"""


class Named:
    """The function above with its values and operations by name."""

    def __init__(self) -> None:
        self.fn = parse(TEXT)
        self.ops = self.fn.body.ops
        self.values: dict[str, Value] = {p.name: p for p in self.fn.params}
        for op in self.fn.walk():
            self.values |= {v.name: v for v in [*op.results, *(a for r in op.regions for a in r.args)]}

    def op(self, name: str) -> Op:
        return next(op for op in self.fn.walk() if op.name == name)

    def make(self, name: str, *operands: str, **attrs: Any) -> Op:
        return Op.registry[name]([self.values[o] for o in operands], attrs, loc=Loc("kernel.py", 7))


def _set(op: Op, operand: int, value: Value) -> None:
    op.operands[operand] = value


BROKEN: dict[str, tuple[Callable[[Named], Any], str, str]] = {
    "use before definition": (lambda f: f.ops.insert(2, f.make("neg", "a")), "neg", "defined later"),
    "use of an inner value": (lambda f: f.ops.append(f.make("neg", "d")), "neg", "does not enclose"),
    "value defined twice": (lambda f: f.ops.append(f.ops[1]), "grid", "defined twice"),
    "argument defined twice": (lambda f: f.op("for").regions[0].args.append(f.values["k"]), "for", "defined twice"),
    "changed type": (lambda f: setattr(f.values["d"], "type", TileType((5,), F32)), "", "other types|changed type"),
    "changed dtype attribute": (lambda f: f.op("load").attrs.update(shape=(5,)), "load", "infers"),
    "layout of another shape": (lambda f: setattr(f.values["a"], "type", TileType((4,), F32, spatial(3))), "load",
                                "not of level"),
    "layout of another rank": (lambda f: setattr(f.values["a"], "type", TileType((4,), F32, spatial(2, 2))), "load",
                               "not of level"),
    "lost attribute": (lambda f: f.op("load").attrs.pop("fill"), "load", "other attributes"),
    "list attribute": (lambda f: f.op("load").attrs.update(shape=[4]), "load", "attribute `shape`"),
    "dtype by name": (lambda f: f.ops.append(_with(f.make("cast", "a", dtype=I32), dtype="i32")), "cast", "`dtype`"),
    "yield in the middle": (lambda f: f.op("for").regions[0].ops.insert(0, f.make("yield")), "yield", "middle"),
    "missing yield": (lambda f: f.op("for").regions[0].ops.pop(), "for", "results of its body"),
    "yield at the top": (lambda f: f.ops.append(f.make("yield", "a")), "", "takes or yields"),
    "operand too few": (lambda f: f.op("add").operands.pop(), "add", "takes 2 operands"),
    "operand missing": (lambda f: f.op("load").operands.clear(), "load", "malformed"),
    "another level": (lambda f: f.ops.append(_placed(f)), "convert_layout", "level tile"),
    "two grids": (lambda f: f.ops.insert(3, f.make("grid", "n")), "grid", "second grid"),
    "grid in a region": (lambda f: _inner_grid(f), "grid", "in a loop or a branch"),
    "grid from memory": (lambda f: _grid_from_memory(f), "grid", "`load`"),
    "write before grid": (lambda f: _write_first(f), "store", "write before the grid"),
    "effect in a combination": (lambda f: f.op("reduce").regions[0].ops.insert(
        0, f.make("print", "p", text="{}")), "reduce", "contains `print`"),
    "foreign result": (lambda f: setattr(f.values["a"], "owner", f.ops[0]), "load", "belongs to another"),
    "owned argument": (lambda f: setattr(f.values["k"], "owner", f.ops[0]), "for", "claims to be a result"),
    "buffer parameter": (lambda f: f.fn.params.append(Value(BufferType(F32, (4,)), "b")), "", "parameter %b"),
    "tile parameter": (lambda f: f.fn.params.append(Value(TileType((4,), F32), "b")), "", "parameter %b"),
}


def _with(op: Op, **attrs: Any) -> Op:
    op.attrs.update(attrs)
    return op


def _placed(f: Named) -> Op:
    return f.make("convert_layout", "a", layout=spatial(4))


def _grid_from_memory(f: Named) -> None:
    load = f.make("load", "x", "n", shape=(), axes=(), fill=0)
    cast = Op.registry["cast"]([load.result], {"dtype": I32})
    f.ops[1:1] = [load, cast]
    _set(f.op("grid"), 0, cast.result)


def _inner_grid(f: Named) -> None:
    f.ops.pop(1)
    for op in f.fn.walk():
        op.operands = [f.values["n"] if v is f.values["i"] else v for v in op.operands]
    f.op("for").regions[0].ops.insert(0, f.make("grid", "n"))


def _write_first(f: Named) -> None:
    f.ops[1:1] = [zero := Op.registry["const"]([], {"value": 0, "dtype": F32}),
                  Op.registry["store"]([f.values["y"], f.values["n"], zero.result], {"axes": ()},
                                             loc=Loc("kernel.py", 7))]


@pytest.mark.parametrize("what", BROKEN)
def test_broken_rules_are_named(what: str) -> None:
    breakage, op, message = BROKEN[what]
    named = Named()
    verify(named.fn)
    breakage(named)
    with pytest.raises(VerifyError, match=message) as caught:
        verify(named.fn, pass_name="careless")
    error = caught.value
    assert error.pass_name == "careless" and "after pass `careless`" in str(error)
    assert error.needs and error.got
    if op:
        assert error.op == op and f"`{op}`" in error.message and error.loc is not None
    assert "kernel.py:7" in str(error) or error.loc is None or error.loc.file == "<ir>"


def test_levels() -> None:
    tiles = Function("f", [Value(TensorType(F32, ("N",)), "x")], level="thread")
    const = Op.registry["const"]([], {"value": 0.0, "dtype": F32})
    tiles.body.ops = [const, Op.registry["broadcast"]([const.result], {"shape": (4, 8)})]
    with pytest.raises(VerifyError, match="not of level thread") as caught:
        verify(tiles)
    assert "rank at most 1" in caught.value.needs
    tiles.level = "tile"
    verify(tiles)
    tiles.body.ops.append(Op.registry["stride"]([tiles.params[0]], {"axis": 0}))
    with pytest.raises(VerifyError, match="`stride`: is not an operation of level tile"):
        verify(tiles)


def test_a_chosen_layout_is_accepted() -> None:
    named = Named()
    named.values["a"].type = TileType((4,), F32, spatial(4))
    with pytest.raises(VerifyError):  # a carried value has one type on every path
        verify(named.fn)
    for name in ("c", "d", "r"):
        named.values[name].type = TileType((4,), F32, spatial(4))
    verify(named.fn)
    for name in ("a", "c", "d", "r"):
        named.values[name].type = TileType((4,), F32, spatial(8))  # padded
    verify(named.fn)
