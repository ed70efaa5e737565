"""What random functions are made of: types of numbers, tiles, tensors, and places of a grid."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from tilelang.ir import elementwise, memory, words
from tilelang.ir.core import Builder, Dim, Op, Region, TensorType, TileType, Value
from tilelang.ir.dtypes import DType, codebook, dtype, names

EXTENTS = (1, 2, 3, 5, 8, 16, 17, 33)
COMMON = [dtype(n) for n in ("i1 u3 i4 u4 i8 u8 i16 i32 u32 i64 s2 ternary f4e2m1 f6e3m2 f8e4m3 f8e5m2 e8m0 f16 bf16 "
                             "f32 f64").split()]
NAMED = [dtype(n) for n in names()]
I1, I32, U32 = dtype("i1"), dtype("i32"), dtype("u32")
NUMBER = ("float", "int", "uint")
ELEMENTWISE = [c for c in Op.registry.values() if issubclass(c, elementwise.Elementwise)
               and c not in (words.Dot2, words.Dot4)]
"""What is defined by `arity` and `domain` alone."""
ATOMIC = ("i32", "u32", "i64", "u64", "f16", "bf16", "f32", "f64")
COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")


@st.composite
def codebooks(draw: Any) -> DType:
    """Tables of 1 to 4 bits."""
    bits = draw(st.integers(1, 4))
    entries = st.lists(st.integers(-16, 16), min_size=1 << bits, max_size=1 << bits)
    return codebook(bits, [n / 4 for n in draw(entries)])


def dtypes(allowed: Callable[[DType], bool] = lambda dt: True) -> st.SearchStrategy[DType]:
    """Types of the table and codebooks that are `allowed`: mostly common ones."""
    common, named = ([dt for dt in table if allowed(dt)] for table in (COMMON, NAMED))
    kinds = [st.sampled_from(common)] * 2 if common else []
    kinds.append(st.sampled_from(named))
    if allowed(codebook(1, [0.0, 1.0])):
        kinds.append(codebooks().filter(allowed))
    return st.one_of(kinds)


def by_kind(dt: DType, kinds: Sequence[str]) -> bool:
    """Whether arithmetic of these kinds is defined on a type."""
    return dt.kind in kinds and (dt.kind != "float" or dt.arithmetic)


@dataclass
class Grower:
    """Grows one function; `values` are the tiles made so far. `old_values`: what atomics give may be used, though it
    depends on the order in which equal indices are served. `steps` are the only ones, if any. `ids` are the program's
    numbers in a grid, `depth` how many regions are around."""

    draw: Any
    old_values: bool = True
    steps: Sequence[str] = ()
    body: Region = field(default_factory=Region)
    params: list[Value] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    ids: list[Value] = field(default_factory=list)
    depth: int = 0

    def __post_init__(self) -> None:
        self.b = Builder(self.body)

    def emit(self, name: str, *operands: Value, **attrs: Any) -> Value:
        return self.b.emit(Op.registry[name], *operands, **attrs)

    def one_of(self, options: Sequence[Any]) -> Any:
        return self.draw(st.sampled_from(options))

    def flag(self) -> bool:
        return bool(self.draw(st.booleans()))

    def number(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def const(self, value: float, like: DType | Value = I32) -> Value:
        """A scalar of a dtype, or a tile of a value's type."""
        one = self.emit("const", value=value, dtype=like if isinstance(like, DType) else like.dtype)
        return one if isinstance(like, DType) or not like.shape else self.emit("broadcast", one, shape=like.shape)

    def pick(self, *kinds: str) -> Value:
        """A tile of one of the kinds on which arithmetic is defined; where there is none, a cast of any."""
        good = [v for v in self.values if by_kind(v.dtype, kinds)]
        if good:
            return self.one_of(good)
        return self.emit("cast", self.any(), dtype=self.draw(dtypes(lambda dt: by_kind(dt, kinds))))

    def any(self) -> Value:
        return self.one_of(self.values)

    def ranked(self, v: Value) -> Value:
        """`v`, with one dimension if it has none."""
        return v if v.shape else self.emit("broadcast", v, shape=(self.one_of(EXTENTS),))

    def axis(self, v: Value) -> int:
        return self.number(0, len(v.shape) - 1)

    def like(self, v: Value) -> Value:
        """Another tile of the same shape and dtype: an existing one, or a constant."""
        good = [w for w in self.values if w.type == v.type]
        if self.flag():
            return self.one_of(good) if good else v
        return self.const(self.number(-1 if v.dtype.kind in ("int", "float") else 0, 3), v)

    def changed(self, v: Value) -> Value:
        """`v` after a few elementwise operations, of its type, perhaps of elements elsewhere."""
        ops = [c for c in ELEMENTWISE if by_kind(v.dtype, elementwise.DOMAINS[c.domain][0]) and not c.predicate]
        new = self.elsewhere(v) if v.shape and self.number(0, 2) == 0 else v
        for _ in range(self.number(1, 3)):
            cls = self.one_of(ops)
            new = self.b.emit(cls, new, *(self.like(v) for _ in range(cls.arity - 1)))
        return new

    def elsewhere(self, v: Value) -> Value:
        """The elements of a tile at other places: backwards along an axis, or each at the place before."""
        axis = self.axis(v)
        n, back = v.shape[axis], self.flag()

        def part(first: int, size: int, step: int = 1) -> Value:
            def along(at: int, others: Sequence[int]) -> tuple[int, ...]:
                return tuple(at if d == axis else e for d, e in enumerate(others))
            return self.emit("slice", v, starts=along(first, (0,) * len(v.shape)), shape=along(size, v.shape),
                             steps=along(step, (1,) * len(v.shape)))
        return part(n - 1, n, -1) if back or n == 1 else self.emit("concat", part(1, n - 1), part(0, 1), axis=axis)

    def turn(self, v: Value) -> Value:
        """What becomes of a value in a region: changed, or another that stands there."""
        if by_kind(v.dtype, NUMBER) and self.number(0, 3):
            return self.changed(v)
        return self.one_of([v, *(w for w in self.values if w.type == v.type)])

    @contextmanager
    def inside(self, args: Sequence[Value] = ()) -> Iterator[Region]:
        """Steps go to a new region; its tiles are not seen behind it."""
        outer = self.b, self.values, self.depth
        region = Region(args)
        self.b, self.values, self.depth = Builder(region), [*self.values, *args], self.depth + 1
        yield region
        self.b, self.values, self.depth = outer

    # -- ends ---------------------------------------------------------------------------------------------------------
    def tensor(self, name: str, dt: DType, rank: int, mode: str) -> Value:
        """A tensor parameter whose elements are neighbours along one dimension, or none."""
        name = f"{name}{len(self.params)}"
        dims = tuple(self.dim(f"{name}{d}") for d in range(rank))
        line = rank - 1 if dt.packed or self.flag() else self.number(-1, rank - 1)
        whole = line == rank - 1 and not dt.packed and (
            isinstance(dims[-1], str) or dims[-1] * dt.storage.itemsize % 16 == 0)
        align = self.one_of((1, 16)) if whole else 1
        unit = tuple(d == line for d in range(rank))
        self.params.append(Value(TensorType(dt, dims, mode, unit, align), name))
        return self.params[-1]

    def dim(self, name: str) -> Dim:
        """An extent that is known, that of another dimension, or one by itself."""
        others = [d for p in self.tensors() for d in p.type.dims if isinstance(d, str)]
        match self.number(0, 7):
            case 0:
                return int(self.one_of((1, 8, 16, 17, 32, 48)))
            case 1 if others:
                return str(self.one_of(others))
        return name

    def tensors(self) -> list[Value]:
        """Those that may be read anywhere: what programs write is for one of them only."""
        return [p for p in self.params if isinstance(p.type, TensorType)
                and p.type.mode in (("in",) if self.ids else ("in", "inout"))]

    def scalar(self, name: str) -> Value:
        self.params.append(Value(TileType((), dtype(name)), f"n{len(self.params)}"))
        return self.params[-1]

    def place(self, extents: Sequence[int], turned: bool = False) -> tuple[list[Value], tuple[int, ...]]:
        """Offsets of this program's block in a tensor some of whose dimensions the grid walks, and its axes, which of
        reads alone may be in any order."""
        more = max(len(self.ids) - len(extents), 0)
        first = [*self.ids[:more], *(self.const(0) for _ in range(self.number(0, 9) == 0))]
        rank = len(first) + len(extents)
        order = list(range(rank)) if self.number(0, 3) else list(self.draw(st.permutations(range(rank))))
        if not turned:
            order[len(first):] = sorted(order[len(first):])
        offsets = dict(zip(order, first, strict=False))
        for i, (at, e) in enumerate(zip(order[len(first):], extents, strict=True), more):
            offsets[at] = self.emit("mul", self.ids[i], self.const(e)) if i < len(self.ids) else self.const(0)
        return [offsets[d] for d in range(rank)], tuple(order[len(first):])

    def beside(self, offsets: Sequence[Value]) -> list[Value]:
        """These, or in one program others."""
        return list(offsets) if self.ids else [self.shifted(o) for o in offsets]

    def shifted(self, offset: Value) -> Value:
        """A little beside, as far away as a parameter or a loop's index says, or out of reach."""
        scalars = [v for v in self.values if not v.shape and v.dtype is I32]
        match self.number(0, 7):
            case 0 | 1 | 2:
                by = self.const(self.number(-1, 2))
            case 3:
                by = self.one_of(scalars) if scalars else self.scalar("i32")
            case 4 if self.number(0, 2) == 0:
                by = self.const(self.one_of((2**31 - 1, -2**31, 2**31 - 8)))
            case 5 if self.number(0, 2) == 0:
                far = self.const(self.one_of((2**31, 2**33, -2**40, 1)), dtype("i64"))
                return far if self.flag() else \
                    self.emit("mul", self.emit("cast", self.scalar("i32"), dtype=far.dtype), far)
            case _:
                return offset
        return self.emit("add", offset, by)

    def load(self, dt: DType, extents: tuple[int, ...], fill: int | None = None) -> Value:
        """This program's block of a tensor, perhaps of one that is known, perhaps a little beside it."""
        offsets, axes = self.place(extents, turned=True)
        if self.flag():
            offsets = [self.shifted(o) for o in offsets]
        known = [p for p in self.tensors() if p.type.dtype is dt and p.type.rank == len(offsets)]
        source = self.one_of(known) if known and self.flag() else self.tensor("x", dt, len(offsets), "in")
        return self.emit("load", source, *offsets, shape=extents, axes=axes,
                         fill=self.number(0, 1) if fill is None else fill)

    def store(self, v: Value) -> None:
        offsets, axes = self.place(v.shape)
        self.b.add(memory.Store, self.tensor("y", v.dtype, len(offsets), "out"), *self.beside(offsets), v, axes=axes)
