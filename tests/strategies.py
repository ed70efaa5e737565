"""Random TILE functions over the whole op and dtype tables, with ragged blocks and grids: what the differential fuzzer
runs. `EXCLUDED` says what is never drawn; tests/test_strategies.py fails where anything else is not."""
from __future__ import annotations

from collections.abc import Sequence
from math import lcm
from typing import Any

from hypothesis import strategies as st

from tests.control_steps import ControlSteps
from tests.growing import COMPARE, ELEMENTWISE, EXTENTS, I1, I32, NAMED, U32, by_kind, dtypes
from tests.memory_steps import MemorySteps
from tests.views import layouts
from tilelang.ir import control, elementwise, reduction, sorting
from tilelang.ir.core import Function, Op, TileType, Value
from tilelang.ir.dtypes import DType, dtype

_ALONE = "a launch by itself means the same without: tests/backends/simt/test_overlap.py"
_CLUSTERS = "targets but NVIDIA's from sm_90 on have none: tests/backends/simt/test_clusters.py"
EXCLUDED = {"wait_previous": _ALONE, "start_next": _ALONE, "peer": _CLUSTERS, "cluster_rank": _CLUSTERS,
            "cluster_barrier": _CLUSTERS, "sort_keys": "what `sort` is made of"}
"""Operations of level TILE that are never drawn, each with the reason."""

LARGEST = 4096
"""Elements of a tile that is used any further."""
MOVES = frozenset("const const_tile broadcast reshape permute concat slice load gather expand_load where view bitcast "
                  "lookup".split())
"""Operations that keep the bits of every element."""


class Maker(ControlSteps, MemorySteps):
    """The steps by which a function grows: each gives the tiles it has made."""

    # -- steps --------------------------------------------------------------------------------------------------------
    def elementwise(self) -> Value:
        cls = self.one_of(ELEMENTWISE)
        v = self.pick(*elementwise.DOMAINS[cls.domain][0])
        return self.b.emit(cls, v, *(self.like(v) for _ in range(cls.arity - 1)))

    def select(self) -> Value:
        v = self.any()
        masks = [w for w in self.values if w.dtype is I1 and w.shape == v.shape]
        if masks and self.flag():
            return self.emit("where", self.one_of(masks), v, self.like(v))
        number = v if by_kind(v.dtype, ("float", "int", "uint", "bool")) else self.emit("cast", v, dtype=I32)
        other = self.like(number) if self.number(0, 3) else number  # of NaN, which is not itself
        test = self.emit(self.one_of(COMPARE), number, other)
        return self.emit("where", test, v, self.like(v))

    def cast(self) -> Value:
        return self.emit("cast", self.any(), dtype=self.draw(dtypes()))

    def bitcast(self) -> Value:
        """Of what was moved only: which NaN an operation gives, and how it rounds, is not defined."""
        v = self.any()
        if v.dtype.kind in ("float", "scale") and not moved(v):
            v = self.emit("cast", v, dtype=I32)
        def same(dt: DType) -> bool:  # the low bits of tf32 are no part of its value
            return dt.bits == v.dtype.bits and dt.name != "tf32"
        return self.emit("bitcast", v, dtype=self.draw(dtypes(same)))

    def dot4(self) -> Value:
        v = self.emit("cast", self.pick("int", "uint"), dtype=self.one_of((I32, U32)))
        w = self.emit("cast", self.like(v), dtype=self.one_of((I32, U32)))
        return self.emit("dot4", v, w, self.emit("cast", self.like(v), dtype=I32))

    def dot2(self) -> Value:
        """Of small whole numbers, each twice in a word."""
        v = self.pick("int", "uint")
        pairs = []
        for x in (v, self.like(v)):
            number = self.emit("cast", self.emit("cast", x, dtype=dtype("i8")), dtype=dtype("bf16"))
            half = self.emit("cast", self.emit("bitcast", number, dtype=dtype("u16")), dtype=U32)
            pairs.append(self.emit("mul", half, self.const(0x10001, half)))
        return self.emit("dot2", *pairs, self.emit("cast", self.like(v), dtype=dtype("f32")))

    def philox(self) -> Sequence[Value]:
        seed = self.scalar("u64") if self.flag() else self.const(self.number(0, 2**64 - 1), dtype("u64"))
        counter = self.emit("cast", self.pick("int", "uint"), dtype=U32)
        return self.b.add(elementwise.Philox, seed, counter).results

    def table(self) -> Value:
        """Constants of any type."""
        dt = self.draw(dtypes())
        values = tuple(self.draw(st.lists(st.integers(max(int(dt.min), -9), min(int(dt.max), 9)), min_size=1,
                                          max_size=17)))
        return self.emit("const_tile", values=values, dtype=dt)

    def view(self) -> Value:
        """A load, its bits as another type in another layout."""
        src, dst = (self.draw(dtypes(lambda dt: dt.bits <= 32 and dt.name != "tf32")) for _ in range(2))
        threads, bits = self.one_of((1, 2, 4, 8, 32)), lcm(src.bits, dst.bits) * self.number(1, 2)
        source, layout = (layouts(self.draw, threads, bits // dt.bits, copies=True) for dt in (src, dst))
        return self.emit("view", self.load(src, source.shape), dtype=dst, source=source, layout=layout)

    # -- combining elements -------------------------------------------------------------------------------------------
    def combined(self, cls: type[Op], **attrs: Any) -> Sequence[Value]:
        """A reduction or scan: named, or by a region that is associative, though not commutative."""
        v = self.ranked(self.pick("float", "int", "uint", "bool"))
        if self.number(0, 3) == 0:
            v = self.emit(self.one_of(COMPARE), v, self.like(v))
        attrs["axis"] = self.axis(v)
        if self.flag():
            kinds = ("any", "all", "max", "min") if v.dtype is I1 else ("sum", "prod", "max", "min")
            return self.b.add(cls, v, kind=self.one_of(kinds), **attrs).results
        pair = v.dtype.kind in ("int", "uint") and self.flag()
        operands = [v, self.like(v)] if pair else [v]
        args = [Value(TileType((), v.dtype)) for _ in range(2 * len(operands))]
        with self.inside(args) as region:
            self.b.add(control.Yield, *self.combination(*args))
        return self.b.add(cls, *operands, kind="custom", regions=[region], **attrs).results

    def combination(self, *args: Value) -> Sequence[Value]:
        if len(args) == 2:
            ops = {"float": ["min", "max"], "bool": ["and", "or", "xor"]}.get(
                args[0].dtype.kind, ["add", "mul", "min", "max", "and", "or", "xor"])
            return [self.emit(self.one_of(ops), *args)] if self.number(0, 3) else args[1:]
        a, b, c, d = args
        if self.flag():  # the function x -> a x + b, then x -> c x + d
            return [self.emit("mul", a, c), self.emit("fma", b, c, d)]
        less = self.emit("lt", a, c)  # the largest, and what belongs to it
        return [self.emit("where", less, c, a), self.emit("where", less, d, b)]

    def reduce(self) -> Sequence[Value]:
        return self.combined(reduction.Reduce)

    def normalise(self) -> Value:
        """A reduction, and an operation with each element it was made of."""
        v = self.ranked(self.pick("float", "int", "uint"))
        axis = self.axis(v)
        out = self.emit("reduce", v, kind=self.one_of(("sum", "max", "min")), axis=axis)
        kept = self.emit("reshape", out, shape=tuple(1 if i == axis else e for i, e in enumerate(v.shape)))
        return self.emit(self.one_of(("sub", "max")), v, self.emit("broadcast", kept, shape=v.shape))

    def scan(self) -> Sequence[Value]:
        return self.combined(reduction.Scan, reverse=self.flag())

    def position(self) -> Value:
        v = self.ranked(self.pick("float", "int", "uint"))
        return self.emit("arg_reduce", v, kind=self.one_of(("max", "min")), axis=self.axis(v))

    def sort(self) -> Sequence[Value]:
        v = self.ranked(self.pick("float", "int", "uint", "bool"))
        return self.b.add(sorting.Sort, v, axis=self.axis(v), descending=self.flag()).results

    def rearrange(self) -> Value:
        v = self.ranked(self.any())
        match self.number(0, 4):
            case 0:
                return self.emit("permute", v, order=tuple(self.draw(st.permutations(range(len(v.shape))))))
            case 1:
                size = v.tile.size
                halves = [(n, size // n) for n in (2, 3, 8) if size % n == 0]
                return self.emit("reshape", v, shape=self.one_of([(size,), (1, *v.shape), *halves]))
            case 2:
                starts = tuple(self.number(0, e - 1) for e in v.shape)
                steps = tuple(self.one_of((1, 1, 2, -1, -2)) for _ in v.shape)
                sizes = tuple(self.number(1, (e - 1 - s) // d + 1 if d > 0 else s // -d + 1)
                              for e, s, d in zip(v.shape, starts, steps, strict=True))
                return self.emit("slice", v, starts=starts, shape=sizes, steps=steps)
            case 3:
                at = self.number(0, len(v.shape))
                thin = self.emit("reshape", v, shape=(*v.shape[:at], 1, *v.shape[at:]))
                return self.emit("broadcast", thin, shape=(*v.shape[:at], self.number(1, 3), *v.shape[at:]))
        return self.emit("concat", v, *(self.like(v) for _ in range(self.number(1, 2))), axis=self.axis(v))

    def dot(self) -> Value:
        matrices = [v for v in self.values if len(v.shape) >= 2]
        a = self.one_of(matrices) if matrices else self.load(self.draw(dtypes()), (self.one_of(EXTENTS),) * 2)
        fits = [v for v in matrices if v.shape[:-2] == a.shape[:-2] and v.shape[-2] == a.shape[-1]]
        if fits and self.flag():
            other = self.one_of(fits)
        elif self.flag():
            other = self.load(self.draw(dtypes()), (*a.shape[:-2], a.shape[-1], self.one_of(EXTENTS)))
        else:
            other = self.emit("permute", a, order=(*range(len(a.shape) - 2), len(a.shape) - 1, len(a.shape) - 2))
        acc = dtype(reduction.dot_dtype(a.dtype, other.dtype))
        if self.number(0, 3) == 0:
            acc = dtype({"i32": "i64", "f32": "f64"}.get(acc.name, acc.name))
        total = Value(TileType((*a.shape[:-1], other.shape[-1]), acc))
        return self.emit("dot", a, other, *([self.like(total)] if self.flag() else []), dtype=acc) \
            if any(w.type == total.type for w in self.values) else self.emit("dot", a, other, dtype=acc)

    def scaled(self) -> Value:
        """A product of blocks of numbers, each with a scale."""
        m, n, run, runs = self.number(1, 17), self.number(1, 17), self.one_of((1, 3, 16, 32)), self.number(1, 3)

        def small(dt: DType) -> bool:
            return dt.kind in ("int", "uint", "float") and dt.bits <= 8
        a, c = (self.load(self.draw(dtypes(small)), s) for s in ((m, run * runs), (run * runs, n)))
        scales = [dtype("e8m0")] * 2
        for i, v in enumerate((a, c)):  # an exponent alone, or what the significands leave room for
            fits = [dt for dt in NAMED if dt.bits == 8 and dt.kind == "float"
                    and reduction.significand(dt) + reduction.significand(v.dtype) <= 8]
            if fits and self.flag():
                scales[i] = self.one_of(fits)
        extents = (m, runs), (runs, n)  # filled with 1: the least number of e8m0 may make products that are subnormal
        return self.emit("dot_scaled", a, c, *(self.load(dt, e, 1) for dt, e in zip(scales, extents, strict=True)))

    def common(self) -> Value:
        """Bits that words have in common."""
        m, n, words = self.number(1, 17), self.number(1, 17), self.one_of((1, 3, 8, 16))
        a, c = (self.load(dtype("u32"), shape) for shape in ((m, words), (words, n)))
        sums = [v for v in self.values if v.type == TileType((m, n), dtype("i32"))]
        return self.emit("dot_bits", a, c, *sums[:1])

    def product(self) -> Value:
        """A matrix product over blocks of k: loads that feed a dot alone, in a loop of some stages, maybe under a
        condition, maybe transposed."""
        dt = dtype(self.one_of(("f16", "bf16", "i8", "f32", "u8")))
        other = dt if self.number(0, 3) else self.draw(dtypes())
        m, n, k = (self.one_of((8, 16, 33)) for _ in range(3))
        turned, halved = self.flag(), self.flag()
        a, c = self.tensor("a", dt, 2, "in"), self.tensor("b", other, 2, "in")
        acc = dtype(reduction.dot_dtype(dt, other))
        zero, step = self.const(0), self.const(k)
        start = self.emit("broadcast", self.const(0, acc), shape=(m, n))
        end = self.emit("dim", a, axis=1)
        i, total = Value(zero.type), Value(start.type)

        def multiply() -> Value:
            x = self.emit("load", a, zero, i, shape=(m, k), axes=(0, 1))
            y = self.emit("load", c, *((zero, i) if turned else (i, zero)), shape=(n, k) if turned else (k, n),
                          axes=(0, 1))
            return self.emit("dot", x, self.emit("permute", y, order=(1, 0)) if turned else y, total, dtype=acc)
        with self.inside([i, total]) as body:
            if halved:
                odd = self.emit("mod", self.emit("floordiv", i, step), self.const(2))
                with self.inside() as then:
                    self.b.add(control.Yield, multiply())
                with self.inside() as otherwise:
                    self.b.add(control.Yield, total)
                new = self.b.add(control.If, self.emit("eq", odd, zero), regions=[then, otherwise]).result
            else:
                new = multiply()
            self.b.add(control.Yield, new)
        out = self.b.add(control.For, zero, end, step, start, regions=[body], stages=self.number(1, 3)).result
        if self.flag():  # what is made of sums before they leave their registers
            self.store(self.emit("cast", self.changed(out), dtype=self.draw(dtypes())))
        return out

    STEPS = (*("elementwise", "loop", "update") * 4,
             *("select", "cast", "rearrange", "dot", "product", "branch", "until") * 2,
             "bitcast", "dot2", "dot4", "philox", "table", "view", "reduce", "normalise", "scan", "position", "sort",
             "common", "scaled", "lookup", "lookup4", "gather", "expand_load", "shared", "write", "output", "asserted")
    WRITES = ("scatter", "atomic")
    """Steps whose memory programs would share."""

    def grow(self, count: int) -> None:
        for _ in range(count):
            made = getattr(self, self.one_of(self.steps))()
            for v in [made] if isinstance(made, Value) else made:
                if v.tile.size <= LARGEST and v not in self.values:
                    self.values.append(v)

    def extend(self, count: int) -> None:
        """Loads, computes, and stores the last results, perhaps an older one. Some functions do a few kinds of things
        only, so that these meet (Groce and others, "Swarm testing", 2012)."""
        if not self.steps:
            self.steps = self.STEPS + (() if self.ids else self.WRITES)
            if self.flag():
                self.steps = self.draw(st.lists(st.sampled_from(self.steps), min_size=2, max_size=6))
        for _ in range(self.number(1, 2)):
            rank = self.one_of((1, 2, 2, 3))
            block = tuple(self.one_of(EXTENTS[:5 if rank > 2 else 8]) for _ in range(rank))
            self.values.append(self.load(self.draw(dtypes()), block))
        self.grow(self.number(1, count))
        results = [v for v in self.values if v.shape]
        for i in range(self.number(1, 3)):
            self.store(results[-1 - i % len(results)])
        if self.flag():
            self.store(self.one_of(results))


def moved(v: Value) -> bool:
    """Whether the bits of a tile come from memory, or from integers, unchanged."""
    if v.owner is None or v.dtype.kind not in ("float", "scale"):
        return v.owner is not None
    return v.owner.name in MOVES and all(moved(w) for w in v.owner.operands if isinstance(w.type, TileType))


@st.composite
def functions(draw: Any, count: int = 8, old_values: bool = True, steps: Sequence[str] = ()) -> Function:
    """A function of up to `count` steps, any or some of `steps`, in one program, in a grid, or in a persistent grid,
    whose programs each do some of the blocks."""
    m = Maker(draw, old_values, steps)
    rank = m.one_of((0, 0, 1, 2))
    if rank == 2 or rank and m.flag():
        m.ids = list(m.b.add(control.Grid, *(m.const(m.number(1, 3)) for _ in range(rank)),
                             group=m.number(1, 3) if rank > 1 else 1).results)
        m.extend(count)
    elif rank:
        workers = m.emit("num_workers")
        first = m.b.add(control.Grid, workers).result
        m.ids = [Value(first.type)]
        with m.inside(m.ids) as body:
            m.extend(count)
        m.b.add(control.For, first, m.const(m.number(1, 4)), workers, regions=[body])
    else:
        m.extend(count)
    return Function("fuzzed", m.params, m.body)
