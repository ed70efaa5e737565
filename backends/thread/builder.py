"""Builds THREAD code inside open loops: pure operations are shared and hoisted to the outermost loop they allow."""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tilelang.errors import Loc
from tilelang.ir import elementwise as ew
from tilelang.ir import memory as mem
from tilelang.ir import shape as sh
from tilelang.ir import thread as th
from tilelang.ir.codec import blank_is_zero
from tilelang.ir.control import For, If, Yield
from tilelang.ir.core import BufferType, Op, Region, TensorType, TileType, Value
from tilelang.ir.dtypes import DType, dtype

I1, I32, I64 = dtype("i1"), dtype("i32"), dtype("i64")
Index = Value | int
"""An i64 scalar, or a constant one."""


class Level:
    """One open region: what has been computed in it."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.known: dict[Any, Op] = {}
        self.memo: dict[Any, Value] = {}


class ThreadBuilder:
    """Open regions from the function's body (level 0) to the innermost loop."""

    def __init__(self, body: Region) -> None:
        self.levels = [Level(body)]
        self.level_of: dict[Value, int] = {}
        self.loc: Loc | None = None
        self.floor = 0  # reads of memory are not hoisted above this level
        self.sums: dict[Value, tuple[Index, int]] = {}
        self.steps: dict[Value, int] = {}  # what the index of a loop is a multiple of
        self.epoch = 0  # reads are shared within one nest only

    # -- emitting ----------------------------------------------------------------------------------------------------
    def _place(self, cls: type[Op], operands: Sequence[Value], attrs: dict[str, Any], level: int,
               regions: Sequence[Region] = ()) -> Op:
        op = cls(operands, attrs, regions, self.loc)
        self.levels[level].region.ops.append(op)
        for r in op.results:
            self.level_of[r] = level
        return op

    def pure(self, cls: type[Op], *operands: Value, **attrs: Any) -> Value:
        """An operation without effects, at the outermost level where its operands exist."""
        return self.pure_op(cls, *operands, **attrs).result

    def pure_op(self, cls: type[Op], *operands: Value, **attrs: Any) -> Op:
        level = max((self.level_of.get(v, 0) for v in operands), default=0)
        return self._shared(cls, operands, attrs, level, ())

    def read(self, cls: type[Op], *operands: Value, **attrs: Any) -> Value:
        """A read of memory that nothing writes before the end of the nest."""
        level = max(self.floor, *(self.level_of.get(v, 0) for v in operands))
        return self._shared(cls, operands, attrs, level, (self.epoch,)).result

    def hint(self, cls: type[Op], *operands: Value, **attrs: Any) -> None:
        """An operation without results, once where a read of the same operands would stand."""
        level = max(self.floor, *(self.level_of.get(v, 0) for v in operands))
        self._shared(cls, operands, attrs, level, (self.epoch,))

    def _shared(self, cls: type[Op], operands: Sequence[Value], attrs: dict[str, Any], level: int, salt: Any) -> Op:
        value = attrs.get("value")
        key = (cls, tuple(map(id, operands)), repr(value) if value is not None else None,
               tuple(sorted((k, v) for k, v in attrs.items() if k not in ("value", "dtype"))),
               attrs.get("dtype"), salt)
        known = self.levels[level].known.get(key)
        if known is None:
            known = self.levels[level].known[key] = self._place(cls, operands, attrs, level)
        return known

    def effect(self, cls: type[Op], *operands: Value, regions: Sequence[Region] = (), **attrs: Any) -> Op:
        """An operation that stays where it is."""
        return self._place(cls, operands, attrs, len(self.levels) - 1, regions)

    # -- loops and branches -------------------------------------------------------------------------------------------
    def open(self, args: Sequence[Value] = ()) -> Region:
        region = Region(args)
        self.levels.append(Level(region))
        for a in args:
            self.level_of[a] = len(self.levels) - 1
        return region

    def close(self, yields: Sequence[Value] = ()) -> Region:
        region = self.levels[-1].region
        region.ops.append(Yield(list(yields)))
        self.levels.pop()
        return region

    def loop(self, lo: Index, hi: Index, step: Index = 1, inits: Sequence[Value] = ()) -> Loop:
        return Loop(self, lo, hi, step, inits)

    def branch(self, condition: Value) -> Branch:
        return Branch(self, condition)

    # -- scalars -----------------------------------------------------------------------------------------------------
    def const(self, value: Any, dt: DType) -> Value:
        return self.pure(sh.Const, value=value, dtype=dt)

    def index(self, x: Index) -> Value:
        return self.const(x, I64) if isinstance(x, int) else x

    def to_index(self, x: Value) -> Index:
        """An integer scalar as i64."""
        if isinstance(x.owner, sh.Const):
            return int(x.owner.attrs["value"])
        return x if x.dtype is I64 else self.pure(ew.Cast, x, dtype=I64)

    def extent(self, memory: Value, axis: int) -> Index:
        """Extent of a dimension of a tensor or buffer."""
        t = memory.type
        assert isinstance(t, TensorType | BufferType)
        size = t.shape[axis] if isinstance(t, BufferType) else t.dims[axis]
        return size if isinstance(size, int) else self.to_index(self.pure(mem.DimSize, memory, axis=axis))

    def stride(self, memory: Value, axis: int) -> Index:
        """Elements (bits of a packed tensor) from one index of a dimension of a tensor to the next."""
        t = memory.type
        assert isinstance(t, TensorType)
        if axis < len(t.unit) and t.unit[axis]:
            return t.dtype.bits if t.dtype.packed else 1
        return self.pure(th.StrideOf, memory, axis=axis)

    def _fold(self, cls: type[Op], a: Index, b: Index) -> Index:
        if isinstance(a, int) and isinstance(b, int):
            return {ew.Add: a + b, ew.Sub: a - b, ew.Mul: a * b}[cls]  # type: ignore[index]
        return self.pure(cls, self.index(a), self.index(b))

    def split(self, x: Index) -> tuple[Index, int]:
        """x as (value, constant): constants are kept outermost, so that they end in the address of an access."""
        return (0, x) if isinstance(x, int) else self.sums.get(x, (x, 0))

    def _plus(self, x: Index, constant: int) -> Index:
        if isinstance(x, int):
            return x + constant
        if constant == 0:
            return x
        out = self.pure(ew.Add, x, self.index(constant))
        self.sums[out] = x, constant
        return out

    def add(self, a: Index, b: Index) -> Index:
        (x, i), (y, j) = self.split(a), self.split(b)
        if isinstance(x, int) or isinstance(y, int):
            return self._plus(y if isinstance(x, int) else x, i + j)
        return self._plus(self.pure(ew.Add, x, y), i + j)

    def sub(self, a: Index, b: Index) -> Index:
        return self.add(a, -b) if isinstance(b, int) else self._fold(ew.Sub, a, b)

    def mul(self, a: Index, b: Index) -> Index:
        if isinstance(a, int):
            a, b = b, a
        if not isinstance(b, int):
            assert isinstance(a, Value)
            return self.pure(ew.Mul, a, b)
        x, constant = self.split(a)
        if b == 0 or isinstance(x, int):
            return constant * b
        return self._plus(x if b == 1 else self.pure(ew.Mul, x, self.index(b)), constant * b)

    def multiple(self, x: Index) -> int:
        """A number that divides x in any case; 0 where x is 0."""
        value, constant = self.split(x)
        if isinstance(value, int):
            return constant
        factor = next((o.owner.attrs["value"] for o in value.owner.operands if isinstance(o.owner, sh.Const)), 1) \
            if isinstance(value.owner, ew.Mul) else 1
        return math.gcd(self.steps.get(value, factor), constant)

    def div(self, a: Index, b: int) -> Index:
        return a // b if isinstance(a, int) else a if b == 1 else self.pure(ew.FloorDiv, a, self.index(b))

    def mod(self, a: Index, b: int) -> Index:
        return a % b if isinstance(a, int) else 0 if b == 1 else self.pure(ew.Mod, a, self.index(b))

    def clamp(self, x: Index, lo: int, hi: Index) -> Index:
        if isinstance(x, int) and isinstance(hi, int):
            return min(max(x, lo), hi)
        return self.pure(ew.Min, self.pure(ew.Max, self.index(x), self.index(lo)), self.index(hi))

    def all_of(self, conditions: Sequence[Value]) -> Value:
        out = conditions[0]
        for c in conditions[1:]:
            out = self.pure(ew.And, out, c)
        return out

    # -- vectors -----------------------------------------------------------------------------------------------------
    def splat(self, x: Value, lanes: int | None) -> Value:
        """A scalar repeated over `lanes` (a vector, or any value where lanes is None, stays as it is)."""
        return x if lanes is None or x.shape else self.pure(sh.Broadcast, x, shape=(lanes,))

    def full(self, value: Any, dt: DType, lanes: int | None) -> Value:
        return self.splat(self.const(value, dt), lanes)

    def filled(self, value: Value, mask: Value | None, fill: Any, lanes: int | None = None) -> Value:
        """What was loaded under a mask, with `fill` where that does not hold: a masked load leaves zero bits there."""
        if mask is None or fill == 0 and blank_is_zero(value.dtype):
            return value
        return self.pure(ew.Where, self.splat(mask, lanes), value, self.full(fill, value.dtype, lanes))

    def iota(self, lanes: int) -> Value:
        return self.pure(sh.Arange, start=0, size=lanes)

    def apply(self, cls: type[Op], operands: Sequence[Value], attrs: dict[str, Any]) -> Value:
        """An elementwise operation on scalars and vectors mixed."""
        lanes = next((v.shape[0] for v in operands if v.shape), None)
        return self.pure(cls, *(self.splat(v, lanes) for v in operands), **attrs)

    def alloc(self, dt: DType, shape: tuple[int, ...]) -> Value:
        """Scratch memory of the worker, for the whole program."""
        return self.begin_with(mem.Alloc([], {"dtype": dt, "shape": shape, "space": "scratch"}, loc=self.loc))

    def begin_with(self, op: Op) -> Value:
        """The result of an operation without operands that is put at the beginning of the program."""
        self.levels[0].region.ops.insert(0, op)
        self.level_of[op.result] = 0
        return op.result

    def load(self, memory: Value, offset: Index, lanes: int | None, stride: Index = 1,
             mask: Value | None = None) -> Value:
        """`lanes` elements from an offset, `stride` apart."""
        masks = [] if mask is None else [mask]
        if lanes is None or stride == 1 if isinstance(stride, int) else lanes is None:
            return self.read(th.Ld, memory, self.index(offset), *masks, lanes=lanes)
        assert lanes is not None
        return self.read(th.LdGather, memory, self.offsets(offset, lanes, stride), *masks)

    def store(self, memory: Value, offset: Index, value: Value, stride: Index = 1, mask: Value | None = None,
              stream: bool = False) -> None:
        masks = [] if mask is None else [mask]
        if not value.shape or (isinstance(stride, int) and stride == 1):
            self.effect(th.St, memory, self.index(offset), value, *masks, stream=stream)
        else:
            self.effect(th.StScatter, memory, self.offsets(offset, value.shape[0], stride), value, *masks)

    def offsets(self, base: Index, lanes: int, stride: Index) -> Value:
        """base + i * stride for each lane i."""
        lane = self.pure(ew.Cast, self.iota(lanes), dtype=I64)
        step = self.pure(ew.Mul, lane, self.splat(self.index(stride), lanes))
        return self.pure(ew.Add, step, self.splat(self.index(base), lanes))


class Loop:
    """`with b.loop(...) as loop:` opens a loop; `loop.yield_(...)` names the carried values."""

    def __init__(self, builder: ThreadBuilder, lo: Index, hi: Index, step: Index, inits: Sequence[Value]) -> None:
        self.b, self.bounds, self.inits = builder, [builder.index(x) for x in (lo, hi, step)], list(inits)
        self.carried = [Value(v.type) for v in inits]
        self.i = Value(TileType((), I64))
        builder.steps[self.i] = math.gcd(builder.multiple(lo), builder.multiple(step))
        self.next: Sequence[Value] = ()
        self.results: list[Value] = []

    def __enter__(self) -> Loop:
        self.b.open([self.i, *self.carried])
        return self

    def yield_(self, values: Sequence[Value]) -> None:
        self.next = values

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            region = self.b.close(self.next)
            self.results = self.b.effect(For, *self.bounds, *self.inits, regions=[region]).results


class Branch:
    """`with b.branch(c) as branch: …; branch.otherwise(); …` writes both sides of an `if`; `branch.yield_(…)` names
    the values that a side gives."""

    def __init__(self, builder: ThreadBuilder, condition: Value) -> None:
        self.b, self.condition, self.regions = builder, condition, list[Region]()
        self.next: Sequence[Value] = ()
        self.results: list[Value] = []

    def __enter__(self) -> Branch:
        self.b.open()
        return self

    def yield_(self, values: Sequence[Value]) -> None:
        self.next = values

    def otherwise(self) -> None:
        self.regions.append(self.b.close(self.next))
        self.b.open()

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self.regions.append(self.b.close(self.next))
            if len(self.regions) == 1:
                self.regions.append(Region([], [Yield([])]))
            self.results = self.b.effect(If, self.condition, regions=self.regions).results
