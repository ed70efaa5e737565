"""The fuzzer draws everything: each operation of level TILE, each choice of its attributes, each type of the table."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests import strategies
from tests.growing import ATOMIC, ELEMENTWISE
from tests.strategies import EXCLUDED, functions
from tilelang.ir.core import Function, Op, TensorType
from tilelang.ir.dtypes import DType, names
from tilelang.ir.reduction import REDUCTIONS
from tilelang.ir.specs import verify

CHOICES = {
    *((op, "kind", kind) for op in ("reduce", "scan") for kind in (*REDUCTIONS, "custom")),
    *(("arg_reduce", "kind", kind) for kind in ("max", "min")),
    *(("atomic", "kind", kind) for kind in ("add", "max", "min", "cas")),
    *(("atomic", "of", dt) for dt in ATOMIC),
    *(("dot", "dtype", acc) for acc in ("i32", "i64", "f32", "f64")),
    *((op, "masked", flag) for op in ("gather", "scatter", "atomic") for flag in (False, True)),
    *((op, key, flag) for op, key in (("sort", "descending"), ("scan", "reverse")) for flag in (False, True)),
    *(("grid", "group", n) for n in (1, 3)), *(("for", "stages", n) for n in (1, 3)),
    *((op, "operands", n) for op, n in (("dot", 2), ("dot", 3), ("reduce", 2), ("scan", 2), ("grid", 2))),
    *(("tensor", "mode", mode) for mode in ("in", "out", "inout")), *(("tensor", "rank", n) for n in (1, 2, 3)),
}
"""Attributes, and other properties, whose values mean something else."""
CHOOSING = ("reduce", "scan", "position", "atomic", "dot", "gather", "scatter", "sort", "product")
"""The steps that choose most of them."""


def until(missing: Callable[[], set[Any]], drawn: st.SearchStrategy[Any], note: Callable[[Any], None],
          count: int = 250) -> set[Any]:
    """Draws samples, always the same ones, until nothing is missing, but not for ever; gives what is."""
    for number in range(12):
        if missing():
            @seed(number)
            @settings(max_examples=count, database=None, deadline=None, derandomize=False, phases=[Phase.generate],
                      suppress_health_check=list(HealthCheck))
            @given(drawn)
            def sample(x: Any) -> None:
                note(x)
            sample()
    return missing()


def test_every_type_is_drawn() -> None:
    drawn = set[str]()
    assert not until(lambda: set(names()) - drawn, strategies.dtypes(), lambda dt: drawn.add(dt.name), 2000)
    assert any(name.startswith("codebook") for name in drawn)


def test_every_operation_is_drawn() -> None:
    ops, choices = set[str](), set[Any]()

    def draw(fn: Function) -> None:
        verify(fn)
        for p in fn.params:
            if isinstance(p.type, TensorType):
                choices.update({("tensor", "mode", p.type.mode), ("tensor", "rank", p.type.rank)})
        for op in fn.walk():
            ops.add(op.name)
            choices.update({(op.name, "operands", len(op.operands)),
                            *((op.name, "of", str(r.dtype)) for r in op.results),
                            *((op.name, key, str(v) if key == "dtype" else v) for key, v in op.attrs.items()
                              if isinstance(v, str | int | DType))})
    known = {name for name, cls in Op.registry.items() if "tile" in cls.levels} - EXCLUDED.keys()
    until(lambda: known - ops - {c.name for c in ELEMENTWISE}, functions(), draw)
    assert not until(lambda: known - ops, functions(count=4, steps=("elementwise",)), draw)
    assert not ops & EXCLUDED.keys()
    assert not until(lambda: CHOICES - choices, functions(count=4, steps=CHOOSING), draw)
