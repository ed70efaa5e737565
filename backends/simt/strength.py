"""reduce_strength: multiplications by a loop's index become additions from one iteration to the next.

requires: THREAD
ensures: in a `for`, a product of a non-constant that the loop does not change and a value that grows with the loop's
index is carried, and grows by a constant amount
example: `mul (k + c), stride` is carried and grows by `step * stride`
"""
from __future__ import annotations

from typing import Any

from tilelang.ir import elementwise as ew
from tilelang.ir.control import For, Yield
from tilelang.ir.core import Function, Op, Region, TileType, Value
from tilelang.ir.dtypes import dtype

I64 = dtype("i64")


def reduce_strength(fn: Function, target: Any = None) -> Function:
    """Rewrites every loop, in place."""
    def visit(region: Region) -> None:
        for op in list(region.ops):
            for inner in op.regions:
                visit(inner)
            if op.name == "for":
                _Loop(region, op).run()
    visit(fn.body)
    return fn


class _Loop:
    def __init__(self, around: Region, op: Op) -> None:
        self.around, self.op, self.body = around, op, op.regions[0]
        self.inside = {v for inner in self.body.walk() for v in inner.results} | set(self.body.args)
        for inner in self.body.walk():
            for r in inner.regions:
                self.inside |= set(r.args)

    def invariant(self, v: Value) -> bool:
        return v not in self.inside

    def grows(self, v: Value) -> bool:
        """Whether `v` is the loop's index plus something that does not change."""
        if v is self.body.args[0]:
            return True
        op = v.owner
        if op is None or self.invariant(v) or op.results[0].shape:
            return False
        if op.name == "cast" and op.operands[0].dtype.kind == "int" and v.dtype.kind == "int":
            return self.grows(op.operands[0])
        if op.name == "add":
            a, b = op.operands
            return (self.grows(a) and self.invariant(b)) or (self.grows(b) and self.invariant(a))
        return False

    def linear(self) -> bool:
        """Whether sums with the index, which wrap around in their own width, lie in a tensor only where the carried
        ones are the same: the index runs over less than half of its type's range."""
        first = self.op.operands[0].owner
        return self.body.args[0].dtype is I64 or \
            (first is not None and first.name == "const" and first.attrs["value"] >= 0)

    def run(self) -> None:
        if not self.linear():
            return
        products = []
        for op in self.body.ops:
            if op.name == "mul" and op.result.dtype is I64 and not op.result.shape:
                for x, m in (op.operands, op.operands[::-1]):
                    if self.grows(x) and self.invariant(m) and not (m.owner is not None and m.owner.name == "const"):
                        products.append((op, x, m))
                        break
        if products:
            self._carry(products)

    def _carry(self, products: list[tuple[Op, Value, Value]]) -> None:
        before: list[Op] = []
        lo, _, step = self.op.operands[:3]

        def emit(cls: type[Op], *operands: Value, **attrs: Any) -> Value:
            before.append(cls(operands, attrs, loc=self.op.loc))
            return before[-1].result

        def at_start(v: Value) -> Value:
            """The value in the first iteration."""
            if v is self.body.args[0]:
                return lo
            if self.invariant(v):
                return v
            assert v.owner is not None
            return emit(type(v.owner), *map(at_start, v.owner.operands), **v.owner.attrs)
        starts, args, nexts, tail = [], [], [], list[Op]()
        wide = step if step.dtype is I64 else emit(ew.Cast, step, dtype=I64)
        replaced: dict[Value, Value] = {}
        for op, x, m in products:
            start = at_start(x)
            starts.append(emit(ew.Mul, start if start.dtype is I64 else emit(ew.Cast, start, dtype=I64), m))
            arg = Value(TileType((), I64), op.result.name)
            args.append(arg)
            replaced[op.result] = arg
            tail.append(ew.Add([arg, emit(ew.Mul, wide, m)], loc=op.loc))
            nexts.append(tail[-1].result)
        gone = {op for op, _, _ in products}
        *body, last = self.body.ops
        region = Region([*self.body.args, *args], [*(op for op in body if op not in gone), *tail,
                                                   Yield([*last.operands, *nexts], loc=last.loc)])
        for op in region.walk():
            op.operands = [replaced.get(v, v) for v in op.operands]
        new = For([*self.op.operands, *starts], self.op.attrs, [region], self.op.loc)
        self.around.replace(self.op, [*before, new], new.results[:len(self.op.results)])
