"""What names stand for while a kernel is traced: tiles and memory. Operators on them emit operations."""
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from tilelang.errors import (
    DTypeMismatch,
    IndexOutOfRange,
    MissingAxis,
    NonConstantExtent,
    ShapeMismatch,
    UnsupportedSyntax,
)
from tilelang.ir import elementwise as ew
from tilelang.ir import shape as sh
from tilelang.ir.core import BufferType, Op, TensorType, Value
from tilelang.ir.dtypes import DType, dtype
from tilelang.lang.emitter import const, emit, emitter, here
from tilelang.lang.promote import check_fits, literal_dtype, promote, weak

Number = bool | int | float


class Tile:
    """A tile (or scalar) inside a kernel. `shape` is a tuple of ints; arithmetic follows `tilelang.lang.promote`."""

    __slots__ = ("value",)
    __array_ufunc__ = None

    def __init__(self, value: Value) -> None:
        self.value = value

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> DType:
        return self.value.dtype

    def __repr__(self) -> str:
        return f"Tile({self.value.type})"

    def __bool__(self) -> bool:
        raise UnsupportedSyntax("a tile has no truth value while the kernel is compiled", loc=here(),
                                needs="a compile-time value", got=str(self.value.type),
                                try_="use tile.where, or `if` directly on an i1 scalar")

    def __index__(self) -> int:
        raise NonConstantExtent("a value known only at run time where a constant is needed", loc=here(),
                                needs="a Python int or a tile.Const parameter", got=str(self.value.type),
                                try_="make it a tile.Const parameter")

    __hash__ = object.__hash__

    # -- operators ---------------------------------------------------------------------------------------------------
    def __add__(self, other: Any) -> Tile:
        return binary(ew.Add, self, other)

    def __radd__(self, other: Any) -> Tile:
        return binary(ew.Add, other, self)

    def __sub__(self, other: Any) -> Tile:
        return binary(ew.Sub, self, other)

    def __rsub__(self, other: Any) -> Tile:
        return binary(ew.Sub, other, self)

    def __mul__(self, other: Any) -> Tile:
        return binary(ew.Mul, self, other)

    def __rmul__(self, other: Any) -> Tile:
        return binary(ew.Mul, other, self)

    def __truediv__(self, other: Any) -> Tile:
        return divide(self, other)

    def __rtruediv__(self, other: Any) -> Tile:
        return divide(other, self)

    def __floordiv__(self, other: Any) -> Tile:
        return binary(ew.FloorDiv, self, other)

    def __rfloordiv__(self, other: Any) -> Tile:
        return binary(ew.FloorDiv, other, self)

    def __mod__(self, other: Any) -> Tile:
        return binary(ew.Mod, self, other)

    def __rmod__(self, other: Any) -> Tile:
        return binary(ew.Mod, other, self)

    def __and__(self, other: Any) -> Tile:
        return binary(ew.And, self, other)

    def __rand__(self, other: Any) -> Tile:
        return binary(ew.And, other, self)

    def __or__(self, other: Any) -> Tile:
        return binary(ew.Or, self, other)

    def __ror__(self, other: Any) -> Tile:
        return binary(ew.Or, other, self)

    def __xor__(self, other: Any) -> Tile:
        return binary(ew.Xor, self, other)

    def __rxor__(self, other: Any) -> Tile:
        return binary(ew.Xor, other, self)

    def __lshift__(self, other: Any) -> Tile:
        return binary(ew.Shl, self, other)

    def __rlshift__(self, other: Any) -> Tile:
        return binary(ew.Shl, other, self)

    def __rshift__(self, other: Any) -> Tile:
        return binary(ew.Shr, self, other)

    def __rrshift__(self, other: Any) -> Tile:
        return binary(ew.Shr, other, self)

    def __eq__(self, other: Any) -> Tile:  # type: ignore[override]
        return binary(ew.Eq, self, other)

    def __ne__(self, other: Any) -> Tile:  # type: ignore[override]
        return binary(ew.Ne, self, other)

    def __lt__(self, other: Any) -> Tile:
        return binary(ew.Lt, self, other)

    def __le__(self, other: Any) -> Tile:
        return binary(ew.Le, self, other)

    def __gt__(self, other: Any) -> Tile:
        return binary(ew.Gt, self, other)

    def __ge__(self, other: Any) -> Tile:
        return binary(ew.Ge, self, other)

    def __neg__(self) -> Tile:
        return Tile(emit(ew.Neg, self.value).result)

    def __pos__(self) -> Tile:
        return self

    def __abs__(self) -> Tile:
        return Tile(emit(ew.Abs, self.value).result)

    def __invert__(self) -> Tile:
        return Tile(emit(ew.Not, self.value).result)

    def __pow__(self, exponent: Any) -> Tile:
        from tilelang.lang import math as functions
        if isinstance(exponent, float) and exponent in (0.5, -0.5):
            return functions.sqrt(self) if exponent > 0 else functions.rsqrt(self)
        if type(exponent) is not int or not 0 < abs(exponent) <= 8:
            raise UnsupportedSyntax("`**` takes a small constant exponent", loc=here(),
                                    needs="an int from -8 to 8 but not 0, or 0.5 or -0.5", got=repr(exponent),
                                    try_="tile.exp2(y * tile.log2(x)) for a general power")
        out = self
        for _ in range(abs(exponent) - 1):
            out = out * self
        return out if exponent > 0 else 1 / out

    def __rpow__(self, base: Any) -> Tile:
        from tilelang.lang import math as functions
        if base not in (2, 2.0):
            raise UnsupportedSyntax("`**` with a tile as the exponent takes 2 as the base", loc=here(), needs="2 ** x",
                                    got=f"{base!r} ** x", try_="tile.exp2(x * math.log2(base))")
        return functions.exp2(self)

    # -- methods -----------------------------------------------------------------------------------------------------
    def to(self, dtype: DType) -> Tile:
        """The values converted to another dtype."""
        if not isinstance(dtype, DType):
            raise DTypeMismatch("`to` takes a dtype", loc=here(), needs="a dtype such as tile.f16", got=repr(dtype),
                                try_="x.to(tile.f32)")
        return self if dtype is self.dtype else Tile(emit(ew.Cast, self.value, dtype=dtype).result)

    @property
    def T(self) -> Tile:
        """The last two dimensions swapped."""
        if self.ndim < 2:
            raise MissingAxis("`.T` needs at least two dimensions", loc=here(), needs="rank 2 or more",
                              got=str(self.shape), try_="insert an axis first: x[:, None]")
        order = (*range(self.ndim - 2), self.ndim - 1, self.ndim - 2)
        return Tile(emit(sh.Permute, self.value, order=order).result)

    def reshape(self, *shape: Any) -> Tile:
        """The same elements in row-major order; one extent may be -1."""
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        extents = [e if isinstance(e, int) else extent(e) for e in wanted]
        if extents.count(-1) == 1:
            rest = 1
            for e in extents:
                rest *= e if e != -1 else 1
            extents[extents.index(-1)] = self.value.tile.size // rest if rest else 0
        extents = [extent(e) for e in extents]
        return self if tuple(extents) == self.shape else \
            Tile(emit(sh.Reshape, self.value, shape=tuple(extents)).result)

    def permute(self, *order: Any) -> Tile:
        """Dimension i of the result is dimension `order[i]`."""
        axes = order[0] if len(order) == 1 and isinstance(order[0], tuple | list) else order
        return Tile(emit(sh.Permute, self.value, order=tuple(axis_of(self, a) for a in axes)).result)

    def __getitem__(self, index: Any) -> Tile:
        return getitem(self, index)

    def __iter__(self) -> Iterator[Tile]:
        """The parts along the first dimension: `a, b = x`."""
        if not self.shape:
            raise MissingAxis("a scalar has no parts", loc=here(), needs="a tile of rank 1 or more",
                              got=str(self.value.type), try_="use it as it is")
        return (self[i] for i in range(self.shape[0]))

    def __getattr__(self, name: str) -> Any:
        # x.exp(), x.sum(axis) …: every function of the language whose first argument is a tile is a method
        from tilelang.lang import builtins
        fn = builtins.METHODS.get(name)
        if fn is None:
            raise AttributeError(f"a tile has no attribute {name!r}")

        def method(*args: Any, **kwargs: Any) -> Any:
            return fn(self, *args, **kwargs)
        method.__name__, method.__wrapped__ = name, partial(fn, self)  # type: ignore[attr-defined]
        return method


class Memory:
    """A tensor argument or a buffer; `t[i, j]` fixes leading indices. `shape` holds ints and i32 scalars."""

    __slots__ = ("value", "prefix")

    def __init__(self, value: Value, prefix: tuple[Value, ...] = ()) -> None:
        self.value, self.prefix = value, prefix

    @property
    def type(self) -> TensorType | BufferType:
        assert isinstance(self.value.type, TensorType | BufferType)
        return self.value.type

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def ndim(self) -> int:
        return self.type.rank - len(self.prefix)

    @property
    def shape(self) -> tuple[Any, ...]:
        if isinstance(self.type, BufferType):
            return self.type.shape[len(self.prefix):]
        dims = [emitter().dim(self.value, a) for a in range(len(self.prefix), self.type.rank)]
        return tuple(d if isinstance(d, int) else Tile(d) for d in dims)

    def __getitem__(self, index: Any) -> Memory:
        items = index if isinstance(index, tuple) else (index,)
        if len(items) > self.ndim or any(isinstance(i, slice) or i is None or i is ... for i in items):
            raise UnsupportedSyntax("only the leading dimensions of memory can be indexed", loc=here(),
                                    needs=f"at most {self.ndim} integers", got=repr(index),
                                    try_="tile.load(t, offsets, shape) to read a block")
        return Memory(self.value, (*self.prefix, *(offset(i) for i in items)))


# -- conversions ------------------------------------------------------------------------------------------------------
def as_tile(x: Any, dt: DType | None = None) -> Tile:
    """A tile from a tile or a Python number."""
    if isinstance(x, Tile):
        return x
    if isinstance(x, bool | int | float):
        dt = dt or literal_dtype(x)
        check_fits(x, dt, here())
        return Tile(const(x, dt))
    if isinstance(x, Memory):
        got, instead = str(x.value.type), "tile.load(tensor, offsets, shape); shape () gives a number"
    else:
        got, instead = f"{type(x).__name__} {x!r}"[:80], "numbers, tile.constant(values, dtype), or a parameter"
    raise UnsupportedSyntax("not a tile", loc=here(), needs="a tile or a number", got=got, try_=instead)


def extent(x: Any) -> int:
    """A static extent."""
    if isinstance(x, Tile):
        raise NonConstantExtent("a tile extent must be known when the kernel is compiled", loc=here(),
                                needs="a Python int or a tile.Const parameter", got=f"a run-time {x.value.type}",
                                try_="use a constant block size with tile.cdiv for the grid, or make it a tile.Const; "
                                "tile.static_range unrolls loops in which it changes")
    if isinstance(x, bool) or not isinstance(x, int) or x < 1:
        raise NonConstantExtent("a tile extent must be a positive integer", loc=here(), needs="an int of at least 1",
                                got=repr(x), try_="// divides integers" if isinstance(x, float) else
                                "pass a positive block size")
    return x


def extents(shape: Any) -> tuple[int, ...]:
    """The static extents of a tile, whose elements i32 can count."""
    out = tuple(extent(e) for e in (shape if isinstance(shape, tuple | list) else (shape,)))
    if math.prod(out) >= 1 << 31:
        raise NonConstantExtent("a tile with too many elements", loc=here(), needs="fewer than 2**31 elements",
                                got=str(list(out)), try_="smaller blocks, and more programs in tile.grid")
    return out


def offset(x: Any) -> Value:
    """An integer scalar as an i32 (or wider) value."""
    t = as_tile(x)
    if t.shape or t.dtype.kind not in ("int", "uint"):
        raise ShapeMismatch("an offset must be an integer scalar", loc=here(), needs="an i32 scalar",
                            got=str(t.value.type), try_="use tile.gather for tiles of indices")
    return t.value


def axis_of(x: Tile, axis: Any) -> int:
    """A non-negative axis."""
    if not isinstance(axis, int) or not -x.ndim <= axis < x.ndim:
        raise MissingAxis(f"axis {axis} of a tile of rank {x.ndim}", loc=here(),
                          needs=f"an axis from {-x.ndim} to {x.ndim - 1}" if x.ndim else "no axis: this is a scalar",
                          got=str(axis), try_=f"the tile's shape is {list(x.shape)}")
    return axis % x.ndim


def broadcast(x: Tile, shape: Sequence[int]) -> Tile:
    """A tile repeated to a shape that it broadcasts to."""
    return x if x.shape == tuple(shape) else Tile(emit(sh.Broadcast, x.value, shape=tuple(shape)).result)


def common_shape(tiles: Sequence[Tile]) -> tuple[int, ...]:
    """NumPy's broadcasting rule."""
    rank = max(t.ndim for t in tiles)
    out = [1] * rank
    for t in tiles:
        for i, e in enumerate(t.shape, rank - t.ndim):
            if e != 1 and out[i] not in (1, e):
                raise ShapeMismatch("tiles whose shapes do not broadcast", loc=here(),
                                    needs="extents that are equal or 1, aligned at the last dimension",
                                    got=" and ".join(str(list(x.shape)) for x in tiles),
                                    try_="insert an axis with x[:, None], or check the block sizes")
            out[i] = max(out[i], e)
    return tuple(out)


def unify(*operands: Any) -> list[Tile]:
    """Operands of one dtype and one shape."""
    tiles = [x for x in operands if isinstance(x, Tile)]
    if not tiles:
        tiles = [as_tile(operands[0])]
    dt = tiles[0].dtype
    for t in tiles[1:]:
        dt = promote(dt, t.dtype, here())
    for x in operands:
        if isinstance(x, bool | int | float):
            dt = weak(x, dt, here())
    out = [as_tile(x, dt).to(dt) for x in operands]
    shape = common_shape(out)
    return [broadcast(t, shape) for t in out]


def binary(cls: type[Op], a: Any, b: Any) -> Tile:
    """An elementwise operation on two tiles or numbers, in the dtype and shape that `unify` gives both."""
    x, y = unify(a, b)
    return Tile(emit(cls, x.value, y.value).result)


def divide(a: Any, b: Any) -> Tile:
    """True division: of integers in f32."""
    x, y = unify(a, b)
    if x.dtype.kind != "float":
        x, y = x.to(dtype("f32")), y.to(dtype("f32"))
    return Tile(emit(ew.Div, x.value, y.value).result)


def getitem(x: Tile, index: Any) -> Tile:
    """Constant slices and integers, `None` for a new axis, `...`."""
    items = list(index) if isinstance(index, tuple) else [index]
    given = sum(1 for i in items if i is not None and i is not ...)
    if ... in [i for i in items if i is ...]:
        at = next(n for n, i in enumerate(items) if i is ...)
        items[at:at + 1] = [slice(None)] * (x.ndim - given)
    else:
        items += [slice(None)] * (x.ndim - given)
    if sum(1 for i in items if i is not None) != x.ndim:
        raise MissingAxis("too many indices", loc=here(), needs=f"at most {x.ndim}", got=str(given),
                          try_=f"the tile's shape is {list(x.shape)}")
    starts, sizes, steps, shape, axis = [], [], [], [], 0
    for item in items:
        if item is None:
            shape.append(1)
            continue
        n = x.shape[axis]
        if isinstance(item, slice):
            if any(isinstance(v, Tile) for v in (item.start, item.stop, item.step)):
                raise NonConstantExtent("a slice of a tile must be constant", loc=here(), needs="Python ints",
                                        got="a run-time value", try_="tile.load the block at that offset instead")
            start, stop, step = item.indices(n)
            size = len(range(start, stop, step))
            if size == 0:
                raise IndexOutOfRange("an empty slice", loc=here(), needs="at least one element", got=str(item),
                                      try_=f"the extent is {n}")
            shape.append(size)
        else:
            if isinstance(item, Tile) or not isinstance(item, int):
                raise NonConstantExtent("an index into a tile must be constant", loc=here(), needs="a Python int",
                                        got=repr(item), try_="tile.lookup(table, index), or reduce with tile.where; "
                                        "tile.static_range counts by constants")
            if not -n <= item < n:
                raise IndexOutOfRange("a constant index outside the tile", loc=here(),
                                      needs=f"{-n} to {n - 1}", got=str(item),
                                      try_=f"the tile's shape is {list(x.shape)}")
            start, size, step = item % n, 1, 1
        starts.append(start)
        sizes.append(size)
        steps.append(step)
        axis += 1
    value = x.value
    if tuple(sizes) != x.shape or any(s != 1 for s in steps):
        value = emit(sh.Slice, value, starts=tuple(starts), shape=tuple(sizes), steps=tuple(steps)).result
    out = Tile(value)
    return out if tuple(shape) == out.shape else Tile(emit(sh.Reshape, value, shape=tuple(shape)).result)


