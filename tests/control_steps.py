"""Steps by which a random function branches, repeats, and says what it does."""
from __future__ import annotations

from collections.abc import Sequence

from tests.growing import COMPARE, I32, NUMBER, Grower
from tilelang.ir import control
from tilelang.ir.core import Value
from tilelang.ir.dtypes import dtype

DEEPEST = 2
"""Regions around a step."""


class ControlSteps(Grower):
    """Loops and conditions carry several values, which may change places, and contain any steps."""

    def grow(self, count: int) -> None:
        """Up to `count` steps of any kind."""
        raise NotImplementedError

    def nested(self) -> None:
        """What else a region does."""
        if self.depth <= DEEPEST:
            self.grow(self.number(0, 2))

    def carried(self) -> list[Value]:
        """What goes into a region, perhaps the same more than once."""
        first = self.pick(*NUMBER)
        return [first, *(self.like(first) if self.flag() else self.any() for _ in range(self.one_of((0, 1, 1, 2))))]

    def small(self) -> Value:
        """An i32 of 0 to 3: known, of a tensor's extent, a parameter, or out of tiles."""
        match self.number(0, 3):
            case 0:
                v = self.emit("dim", self.one_of(self.tensors()), axis=0)
            case 1:
                v = self.scalar("i32")
            case 2:
                v = self.emit("cast", self.total(self.pick("int", "uint")), dtype=I32)
            case _:
                return self.const(self.one_of((0, 1, 2, 3, 3)))
        return self.emit("mod", v, self.const(self.number(1, 4)))

    def total(self, v: Value) -> Value:
        """One number of a tile."""
        if not v.shape:
            return v
        flat = self.emit("reshape", v, shape=(v.tile.size,))
        return self.emit("reduce", flat, kind=self.one_of(("max", "min")), axis=0)

    def condition(self) -> Value:
        """One i1: of a comparison, or of those of some elements."""
        v = self.pick("int", "uint")
        if v.shape and self.flag():
            test = self.emit(self.one_of(COMPARE), v, self.const(self.number(0, 5), v))
            flat = self.emit("reshape", test, shape=(v.tile.size,))
            return self.emit("reduce", flat, kind=self.one_of(("any", "all")), axis=0)
        one = self.total(v)
        return self.emit(self.one_of(COMPARE), one, self.const(self.number(0, 5), one))

    def loop(self) -> Sequence[Value]:
        """A few turns, from anywhere on, counted by what type ever."""
        held, dt = self.carried(), dtype(self.one_of(("i32", "i32", "i32", "i64", "u32", "i16")))
        far = {"u32": 2**31 - 2, "i64": -2**40}.get(dt.name, -2)
        lo = self.const(self.one_of((far, 0, 1, 2)), dt)
        count, step = self.small(), self.const(self.one_of((1, 1, 1, 2, 3)), dt)
        hi = self.emit("add", lo, count if dt is I32 else self.emit("cast", count, dtype=dt))
        with self.inside([Value(lo.type), *(Value(v.type) for v in held)]) as body:
            self.nested()
            self.b.add(control.Yield, *map(self.turn, body.args[1:]))
        return self.b.add(control.For, lo, hi, step, *held, regions=[body], stages=self.one_of((1, 1, 2, 3))).results

    def branch(self) -> Sequence[Value]:
        """Some of two tiles each, by what a reduction or a scalar says."""
        test, held = self.condition(), self.carried()
        with self.inside() as then:
            self.nested()
            self.b.add(control.Yield, *map(self.turn, held))
        with self.inside() as otherwise:
            if self.flag():
                self.nested()
                held = [self.turn(v) for v in held]
            self.b.add(control.Yield, *held)
        return self.b.add(control.If, test, regions=[then, otherwise]).results

    def until(self) -> Sequence[Value]:
        """Turns while a counter is small and maybe something else holds."""
        held, limit = self.carried(), self.small()
        i, one = self.const(0), self.const(1)
        kinds = [i.type, *(v.type for v in held)]
        with self.inside([Value(t) for t in kinds]) as test:
            more = self.emit("lt", test.args[0], limit)
            if self.flag():
                more = self.emit("and", more, self.condition())
            self.b.add(control.Yield, more)
        with self.inside([Value(t) for t in kinds]) as body:
            self.nested()
            following = self.emit("add", body.args[0], one)
            self.b.add(control.Yield, following, *map(self.turn, body.args[1:]))
        return self.b.add(control.While, i, *held, regions=[test, body]).results

    def write(self) -> Sequence[Value]:
        """A result in a tensor of its own, from wherever this stands."""
        self.store(self.ranked(self.any()))
        return ()

    def output(self) -> Sequence[Value]:
        """Prints a few integers: how floats are written, and how many lines they take, depends on their rounding."""
        v = self.ranked(self.pick("int", "uint"))
        few = self.emit("slice", v, starts=(0,) * len(v.shape), shape=(1,) * len(v.shape), steps=(1,) * len(v.shape))
        self.b.add(control.Print, few, text=self.one_of(("{}", "x = {}")))
        return ()

    def asserted(self) -> Sequence[Value]:
        v = self.pick("int", "uint")
        odd = self.emit("and", v, self.const(1, v)) if v.dtype.bits > 1 else v
        self.b.add(control.Assert, self.emit("le", odd, self.const(v.dtype.max, v)), message="a bit is a bit")
        return ()
