"""What operations expand to, where a target does not perform them."""
from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from tests.ir.op_examples import EXAMPLES, example
from tilelang.ir import elementwise as ew
from tilelang.ir.core import Op, Value
from tilelang.ir.expansion import Expansion
from tilelang.ir.parser import parse
from tilelang.ir.specs import verify
from tilelang.passes.decompose import decompose


@pytest.mark.parametrize("key", [key for key in EXAMPLES
                                 if Op.registry[key.partition(".")[0]].expand is not Op.expand])
def test_an_operation_gives_way_unless_the_target_performs_it(key: str) -> None:
    name = key.partition(".")[0]
    for performs in (False, True):
        fn = decompose(example(key), SimpleNamespace(performs=lambda op, answer=performs: answer))
        verify(fn)
        assert (name in {op.name for op in fn.walk()}) == performs


def test_what_expands_to_something_that_expands(monkeypatch: pytest.MonkeyPatch) -> None:
    def negated(self: Op, b: Expansion) -> Sequence[Value]:
        (x,) = self.operands
        return [b.emit(ew.Sub, b.full(0, x.shape, x.dtype), x)]

    def absolute(self: Op, b: Expansion) -> Sequence[Value]:
        (x,) = self.operands
        return [b.emit(ew.Max, x, b.emit(ew.Neg, x))]
    monkeypatch.setattr(ew.Neg, "expand", negated)
    monkeypatch.setattr(ew.Abs, "expand", absolute)
    fn = decompose(example("abs.i32"))
    verify(fn)
    assert [op.name for op in fn.walk() if op.name in ("abs", "neg", "sub", "max")] == ["sub", "max"]
    assert str(parse(str(fn))) == str(fn)
