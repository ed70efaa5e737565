"""split_loops: writes a loop that multiplies matrices twice, once for the iterations in which no mask is false.

requires: THREAD
ensures: a `for` that contains `mma` or `group_mma`, and comparisons that hold for all threads up to some iteration, is
followed by itself: the first runs up to that iteration, with those comparisons known to be true, and windows known to
hold their blocks; the second does the rest, as before. Both are one loop to everything carried: pipelines run on from
one into the other
example: `for %n = 0 … %L { … lt (add %n, %lane), %L …}` with lanes up to 63 becomes a loop up to `%L - 63` in which
the comparison is gone, and the whole loop from there on

A comparison qualifies if both sides are sums of at most the loop's index, values that all threads share and the loop
does not change, and a number between known limits (made from the thread's number by `and`, shifts, constants …). It
holds for every thread where it holds at the limits. That, and that none of the sums wraps around, is computed in i64
before the loop, once for all comparisons.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tilelang.backends.simt.target import SimtTarget
from tilelang.backends.simt.window import LIMIT
from tilelang.ir import elementwise as ew
from tilelang.ir import shape as sh
from tilelang.ir.control import For, overruns
from tilelang.ir.core import Function, Op, Region, TileType, Value, clone_region
from tilelang.ir.dtypes import DType, dtype

I1, I32, I64 = dtype("i1"), dtype("i32"), dtype("i64")
MASKED = {"ld": 2, "st": 3, "st_async": 4, "dma": 4}
"""The number of operands without a mask of the operations that take one."""
PRODUCTS = {"mma", "group_mma"}
SAME = ("broadcast", "take", "extract", "slice", "concat", "reshape", "shuffle")
"""Operations whose lanes are lanes of their operands, of any thread."""


def split_loops(fn: Function, target: SimtTarget) -> Function:
    """Rewrites every such loop, in place."""
    shared = _Shared(fn)

    def visit(region: Region) -> None:
        for op in list(region.ops):
            for inner in op.regions:
                visit(inner)
            names = {inner.name for r in op.regions for inner in r.walk()}
            if op.name == "for" and names & PRODUCTS and not names & {"for", "while"}:
                _Loop(region, op, shared).run()
    visit(fn.body)
    return fn


@dataclass(frozen=True)
class Sum:
    """`index` times the loop's index, plus the terms with their factors, plus a number from `low` to `high`."""

    index: int
    terms: frozenset[tuple[Value, int]]
    low: int
    high: int

    def plus(self, other: Sum, sign: int) -> Sum:
        factors = dict(self.terms)
        for v, factor in other.terms:
            factors[v] = factors.get(v, 0) + sign * factor
        ends = sorted((sign * other.low, sign * other.high))
        return Sum(self.index + sign * other.index, frozenset((v, f) for v, f in factors.items() if f),
                   self.low + ends[0], self.high + ends[1])

    def at_most_zero(self) -> Need:
        """What makes all of it <= 0."""
        return Need(self.index, self.terms, self.high)


@dataclass(frozen=True)
class Need:
    """index * i + terms + constant <= 0."""

    index: int
    terms: frozenset[tuple[Value, int]]
    constant: int


Needs = frozenset[Need]
ALWAYS: Needs = frozenset()


class _Shared:
    """Which values all threads of a program have in common."""

    def __init__(self, fn: Function) -> None:
        self.memo: dict[Value, bool] = {p: True for p in fn.params}
        for op in fn.walk():
            if op.name == "for":
                self.memo[op.regions[0].args[0]] = all(map(self, op.operands[:3]))

    def __call__(self, v: Value) -> bool:
        if v not in self.memo:
            op = v.owner
            self.memo[v] = op is not None and (op.name == "grid" or not op.effects and not op.regions
                                               and all(map(self, op.operands)))
        return self.memo[v]


class _Loop:
    def __init__(self, around: Region, op: Op, shared: _Shared) -> None:
        self.around, self.op, self.body, self.shared = around, op, op.regions[0], shared
        self.index = self.body.args[0]
        self.inside = {v for inner in self.body.walk() for v in inner.results}
        self.sums: dict[Value, tuple[Sum, Needs] | None] = {}
        self.truths: dict[Value, Needs | None] = {}
        self.known: dict[Value, tuple[int, int] | None] = {}

    def run(self) -> None:
        step = self.op.operands[2].owner
        if self.index.dtype is not I32 or not all(map(self.shared, self.op.operands[:2])) \
                or step is None or step.name != "const":
            return
        known = {v: needs for v in self._conditions() if (needs := self.truth(v)) is not None}
        whole = {op: needs for op in self.body.walk() if op.name == "window" and (needs := self.holds(op)) is not None}
        all_of_them = _strictest(n for needs in (*known.values(), *whole.values()) for n in needs)
        if any(n.index > 0 for n in all_of_them):
            self._split(list(known), list(whole), all_of_them, step.attrs["value"])

    def _conditions(self) -> list[Value]:
        """Every truth value the body uses, and those that `and` combines in them."""
        found: dict[Value, None] = {}
        pending = [v for op in self.body.walk() for v in op.operands if isinstance(v.type, TileType) and v.dtype is I1]
        while pending:
            v = pending.pop()
            if v not in found:
                found[v] = None
                if v.owner is not None and v.owner.name == "and":
                    pending += v.owner.operands
        return list(found)

    # -- what is known ------------------------------------------------------------------------------------------------
    def truth(self, v: Value) -> Needs | None:
        """What makes every lane of a condition true in every thread; None where nothing is known to."""
        if v not in self.truths:
            self.truths[v] = self._truth(v)
        return self.truths[v]

    def _truth(self, v: Value) -> Needs | None:
        op = v.owner
        if op is None:
            return None
        if op.name == "and" or op.name in SAME:
            parts = [self.truth(o) for o in _sources(op)]
            return None if None in parts else ALWAYS.union(*(p for p in parts if p is not None))
        if op.name not in ("lt", "le", "gt", "ge"):
            return None
        a, b = op.operands if op.name in ("lt", "le") else op.operands[::-1]
        unsigned = a.dtype.kind == "uint"
        left, right = (self.sum(_signed(x) if unsigned else x) for x in (a, b))
        if left is None or right is None:
            return None
        difference = left[0].plus(right[0], -1)
        least = difference.at_most_zero()
        strict = int(op.name in ("lt", "gt"))
        needs = left[1] | right[1] | {replace(least, constant=least.constant + strict)}
        if unsigned:  # the left side is at least 0, and then so is the right one
            needs |= {_negative(left[0], 0)}
        possible = all(n.index or n.terms or n.constant <= 0 for n in needs)
        varies = difference.index or difference.low != difference.high  # else a choice rather than a mask
        return needs if possible and varies else None

    def holds(self, window: Op) -> Needs | None:
        """What makes a window that ends with the tensor, somewhere else in each iteration, hold all of its block."""
        axis, extent = window.attrs["axis"], window.operands[2].owner
        if axis is None or window.operands[2] not in self.inside or extent is None or extent.name != "mul":
            return None
        left = next((s for v in extent.operands if v in self.inside and (s := self.sum(v)) is not None), None)
        if left is None:
            return None
        rows = dict(window.attrs["block"])[axis]
        return left[1] | {Sum(0, frozenset(), rows, rows).plus(left[0], -1).at_most_zero()}

    def sum(self, v: Value) -> tuple[Sum, Needs] | None:
        """An integer as a sum, and what keeps its parts from wrapping around."""
        if v not in self.sums:
            self.sums[v] = self._sum(v)
        return self.sums[v]

    def _sum(self, v: Value) -> tuple[Sum, Needs] | None:
        if v is self.index:
            return Sum(1, frozenset(), 0, 0), ALWAYS
        limits = self.limits(v)
        if limits is not None:
            return Sum(0, frozenset(), *limits), ALWAYS
        if not v.shape and v not in self.inside and self.shared(v) and v.dtype.kind == "int" and v.dtype.bits <= 32:
            return Sum(0, frozenset({(v, 1)}), 0, 0), ALWAYS
        op = v.owner
        if op is None:
            return None
        if op.name == "cast" and _widens(op):
            return self.sum(op.operands[0])
        if op.name in SAME and len(_sources(op)) == 1:
            return self.sum(op.operands[0])
        if op.name not in ("add", "sub") or v.dtype not in (I32, I64):
            return None
        a, b = (self.sum(o) for o in op.operands)
        if a is None or b is None:
            return None
        total, needs = a[0].plus(b[0], 1 if op.name == "add" else -1), a[1] | b[1]
        if max(-total.low, total.high) >= 1 << 62:
            return None
        if v.dtype is I32:  # sums of 64 bits are of values of 32 and less than half the range: they do not wrap around
            needs |= {_negative(total, -(1 << 31)),
                      replace(total.at_most_zero(), constant=total.high - (1 << 31) + 1)}
        return total, needs

    def limits(self, v: Value) -> tuple[int, int] | None:
        """The least and the largest value in any thread and lane, where they are known."""
        if v not in self.known:
            self.known[v] = self._limits(v)
        return self.known[v]

    def _limits(self, v: Value) -> tuple[int, int] | None:
        op = v.owner
        if op is None or v.dtype.kind not in ("int", "uint"):
            return None
        match op.name:
            case "thread_id":
                return 0, op.attrs["count"] - 1
            case "const":
                return op.attrs["value"], op.attrs["value"]
            case "const_tile":
                return min(op.attrs["values"]), max(op.attrs["values"])
            case name if name not in ("add", "sub", "mul", "and", "shr", "floordiv", "mod", "cast", *SAME):
                return None
        known = [self.limits(o) for o in _sources(op)]
        if op.name == "mod" and (known[0] is None or known[0][0] < 0) and known[1] is not None \
                and 0 < known[1][0] == known[1][1]:  # of a divisor's sign, whatever is divided
            return 0, known[1][0] - 1
        if any(k is None for k in known):
            return None
        first, *rest = [k for k in known if k is not None]
        out = _combined(op.name, first, rest)
        return out if out is not None and v.dtype.min <= out[0] and out[1] <= v.dtype.max else None

    # -- rewriting ----------------------------------------------------------------------------------------------------
    def _split(self, conditions: Sequence[Value], windows: Sequence[Op], needs: Sequence[Need], step: int) -> None:
        lo, hi, by, *inits = self.op.operands
        before: list[Op] = []
        middle = self._until(before, needs, step)
        true = self._const(before, True, I1)
        known = {v: self._emit(before, sh.Broadcast, true, shape=v.shape) if v.shape else true for v in conditions}
        mapping: dict[Value, Value] = {}
        body = clone_region(self.body, mapping)
        _simplify(body, {mapping.get(v, v): t for v, t in known.items()})
        if windows:
            limit = self._const(before, LIMIT)
            for op in windows:
                window = mapping[op.result].owner
                assert window is not None
                window.operands[2] = limit
        whole = For([lo, middle, by, *inits], self.op.attrs, [body], self.op.loc)
        rest_of = For([middle, hi, by, *whole.results], self.op.attrs, [self.body], self.op.loc)
        self.around.replace(self.op, [*before, whole, rest_of], rest_of.results)

    def _until(self, before: list[Op], needs: Sequence[Need], step: int) -> Value:
        """Where the first loop ends: so many whole iterations meet the needs."""
        emit, const = partial(self._emit, before), partial(self._const, before)
        lo, hi = self.op.operands[:2]
        met = {v: i for i, v in enumerate(self.sums)}  # sets have another order each time, and the text would, too
        needs = sorted(needs, key=lambda n: (n.index, n.constant, sorted((met[v], f) for v, f in n.terms)))
        terms = sorted({v for n in needs for v, _ in n.terms}, key=lambda v: met[v])
        wide = {v: emit(ew.Cast, v, dtype=I64) for v in dict.fromkeys([lo, hi, *terms])}
        first, end = wide[lo], wide[hi]
        runs: list[Value] = []
        for n in needs:
            rest = const(n.constant)
            for v, factor in sorted(n.terms, key=lambda t: met[t[0]]):
                rest = emit(ew.Add, rest, emit(ew.Mul, wide[v], const(factor)) if factor != 1 else wide[v])
            if n.index == 1:  # i <= -rest
                end = emit(ew.Min, end, emit(ew.Sub, const(1), rest))
            else:  # least where i is
                rest = emit(ew.Sub, rest, first) if n.index == -1 else rest
                runs.append(emit(ew.Le, rest, const(0)))
        for condition in runs:
            end = emit(ew.Where, condition, end, first)
        count = emit(ew.FloorDiv, emit(ew.Add, emit(ew.Sub, emit(ew.Max, end, first), first), const(step - 1)),
                     const(step))
        until = emit(ew.Add, first, emit(ew.Mul, count, const(step)))
        if overruns(self.op):  # a whole step behind the end may be no i32
            until = emit(ew.Min, until, wide[hi])
        narrow = emit(ew.Cast, until, dtype=I32)
        return emit(ew.Min, narrow, hi) if step > 1 else narrow  # which shows that neither loop overruns

    def _emit(self, ops: list[Op], cls: type[Op], *operands: Value, **attrs: Any) -> Value:
        ops.append(cls(operands, attrs, loc=self.op.loc))
        return ops[-1].result

    def _const(self, ops: list[Op], value: Any, dt: DType = I64) -> Value:
        return self._emit(ops, sh.Const, value=value, dtype=dt)


def _simplify(region: Region, replaced: dict[Value, Value]) -> None:
    """Puts what is known to be true in its place, and drops what masks with it."""
    true = set(replaced.values())
    for op in region.walk():
        op.operands = [replaced.get(v, v) for v in op.operands]
        if op.name == "and" and (known := [v for v in op.operands if v in true]):
            replaced[op.result] = next((v for v in op.operands if v not in true), known[0])
        elif op.name == "where" and op.operands[0] in true:
            replaced[op.result] = op.operands[1]
        elif len(op.operands) > MASKED.get(op.name, len(op.operands)) and op.operands[-1] in true:
            op.operands.pop()


def _signed(v: Value) -> Value:
    """What an unsigned value of the same width was cast from; itself where it was not, which is no `sum`."""
    op = v.owner
    if op is not None and op.name == "cast" and op.operands[0].dtype.kind == "int" \
            and op.operands[0].dtype.bits == v.dtype.bits:
        return op.operands[0]
    return v


def _sources(op: Op) -> list[Value]:
    """The operands whose lanes the result has: of a shuffle not the one that names lanes."""
    return op.operands[:1] if op.name == "shuffle" else op.operands


def _widens(op: Op) -> bool:
    a, b = op.operands[0].dtype, op.result.dtype
    return a.kind == b.kind == "int" and a.bits <= b.bits


def _negative(total: Sum, limit: int) -> Need:
    """total >= limit."""
    return Need(-total.index, frozenset((v, -f) for v, f in total.terms), limit - total.low)


def _combined(name: str, first: tuple[int, int], rest: list[tuple[int, int]]) -> tuple[int, int] | None:
    """Limits of an operation's result."""
    if name in ("cast", *SAME):
        return min(first[0], *(r[0] for r in rest), first[0]), max(first[1], *(r[1] for r in rest), first[1])
    (low, high), = rest
    match name:
        case "add":
            return first[0] + low, first[1] + high
        case "sub":
            return first[0] - high, first[1] - low
        case "mul":
            products = [x * y for x in first for y in (low, high)]
            return min(products), max(products)
    if low != high or low < 0 or first[0] < 0:
        return None
    match name:
        case "and":
            return 0, min(first[1], low)
        case "shr":
            return first[0] >> low, first[1] >> low
        case "floordiv" if low:
            return first[0] // low, first[1] // low
        case "mod" if low:
            return (0, low - 1) if first[1] >= low else first
    return None


def _strictest(needs: Iterable[Need]) -> list[Need]:
    """Of needs that differ in their constants alone the strictest; none that always holds."""
    found: dict[tuple[int, frozenset[tuple[Value, int]]], Need] = {}
    for n in needs:
        key = n.index, n.terms
        if key not in found or found[key].constant < n.constant:
            found[key] = n
    return [n for n in found.values() if n.index or n.terms or n.constant > 0]
