"""What random functions are made of: types of numbers, tiles, tensors, and places of a grid."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from tilelang.ir import memory
from tilelang.ir.core import Builder, Op, Region, TensorType, TileType, Value
from tilelang.ir.dtypes import DType, codebook, dtype, names

EXTENTS = (1, 2, 3, 5, 8, 16, 17, 33)
COMMON = [dtype(n) for n in ("i1 u3 i4 u4 i8 u8 i16 i32 u32 i64 s2 ternary f4e2m1 f6e3m2 f8e4m3 f8e5m2 e8m0 f16 bf16 "
                             "f32 f64").split()]
NAMED = [dtype(n) for n in names()]
I32 = dtype("i32")


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
    depends on the order in which equal indices are served. `ids` are the program's numbers in a grid."""

    draw: Any
    old_values: bool = True
    body: Region = field(default_factory=Region)
    params: list[Value] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    ids: list[Value] = field(default_factory=list)

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
        return self.const(self.number(0, 3), v)

    @contextmanager
    def inside(self, args: Sequence[Value] = ()) -> Iterator[Region]:
        """Steps go to a new region; its tiles are not seen behind it."""
        outer = self.b, self.values
        region = Region(args)
        self.b, self.values = Builder(region), [*self.values, *(a for a in args if a.shape)]
        yield region
        self.b, self.values = outer

    # -- ends ---------------------------------------------------------------------------------------------------------
    def tensor(self, name: str, dt: DType, rank: int, mode: str) -> Value:
        """A tensor parameter whose elements are neighbours along one dimension, or none."""
        name = f"{name}{len(self.params)}"
        line = rank - 1 if dt.packed or self.flag() else self.number(-1, rank - 1)
        align = self.one_of((1, 16)) if line == rank - 1 and not dt.packed else 1
        unit = tuple(d == line for d in range(rank))
        self.params.append(Value(TensorType(dt, tuple(f"{name}{d}" for d in range(rank)), mode, unit, align), name))
        return self.params[-1]

    def scalar(self, name: str) -> Value:
        self.params.append(Value(TileType((), dtype(name)), f"n{len(self.params)}"))
        return self.params[-1]

    def place(self, extents: Sequence[int]) -> tuple[list[Value], tuple[int, ...]]:
        """Offsets of this program's block in a tensor whose leading dimensions the grid walks, and its axes."""
        more = max(len(self.ids) - len(extents), 0)
        offsets = self.ids[:more] + [
            self.emit("mul", self.ids[more + d], self.const(e)) if more + d < len(self.ids) else self.const(0)
            for d, e in enumerate(extents)]
        return offsets, tuple(range(more, more + len(extents)))

    def load(self, dt: DType, extents: tuple[int, ...], fill: int | None = None) -> Value:
        """This program's block of a new tensor, perhaps a little beside it."""
        offsets, axes = self.place(extents)
        if self.flag():
            offsets = [self.emit("add", o, self.const(self.number(-1, 2))) for o in offsets]
        return self.emit("load", self.tensor("x", dt, len(offsets), "in"), *offsets, shape=extents, axes=axes,
                         fill=self.number(0, 1) if fill is None else fill)

    def store(self, v: Value) -> None:
        offsets, axes = self.place(v.shape)
        self.b.add(memory.Store, self.tensor("y", v.dtype, len(offsets), "out"), *offsets, v, axes=axes)
