"""Functions that make, rearrange and combine tiles: constants, shapes, reductions, scans, sorting, dot."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from tilelang.errors import IndexOutOfRange, ShapeMismatch
from tilelang.ir import control, reduction, sorting
from tilelang.ir import shape as sh
from tilelang.ir.core import Region, TileType, Value
from tilelang.ir.dtypes import DType, dtype
from tilelang.lang import math
from tilelang.lang.emitter import emit, emitter, here
from tilelang.lang.values import Tile, as_tile, axis_of, broadcast, common_shape, extents

_I32, _U32, _F32 = dtype("i32"), dtype("u32"), dtype("f32")


# -- making -----------------------------------------------------------------------------------------------------------
def arange(start: int, stop: int | None = None) -> Tile:
    """The i32 tile start, start + 1, … stop - 1 (0 … start - 1 with one argument)."""
    lo, hi = (0, start) if stop is None else (start, stop)
    (size,) = extents(hi - lo)
    return Tile(emit(sh.Arange, start=lo, size=size).result)


def full(shape: Any, value: Any, dtype: DType | None = None) -> Tile:
    """A tile of one value. Raises DTypeMismatch for an int outside of an integer `dtype`."""
    scalar = as_tile(value, dtype)
    return broadcast(scalar.to(dtype) if dtype else scalar, extents(shape))


def zeros(shape: Any, dtype: DType = _F32) -> Tile:
    """A tile of zeros."""
    return full(shape, 0, dtype)


def ones(shape: Any, dtype: DType = _F32) -> Tile:
    """A tile of ones."""
    return full(shape, 1, dtype)


def zeros_like(x: Tile) -> Tile:
    """Zeros of the shape and dtype of `x`."""
    return zeros(x.shape, x.dtype)


def full_like(x: Tile, value: Any) -> Tile:
    """One value in the shape and dtype of `x`."""
    return full(x.shape, value, x.dtype)


def constant(values: Sequence[float], dtype: DType) -> Tile:
    """A rank-1 tile of constants, for instance a look-up table: numbers of a list or NumPy array that is made outside
    of the kernel, or by a function of your own that the kernel calls."""
    items = [v.item() if isinstance(v, np.generic) else v for v in values]
    return Tile(emit(sh.ConstTile, values=tuple(items), dtype=dtype).result)


# -- rearranging ------------------------------------------------------------------------------------------------------
def reshape(x: Tile, shape: Any) -> Tile:
    """The same elements in row-major order; one extent may be -1."""
    return x.reshape(shape)


def permute(x: Tile, order: Sequence[int]) -> Tile:
    """Dimension i of the result is dimension `order[i]`."""
    return x.permute(order)


def transpose(x: Tile) -> Tile:
    """The last two dimensions swapped."""
    return x.T


def broadcast_to(x: Any, shape: Any) -> Tile:
    """Repeats dimensions of extent 1 to reach `shape`."""
    return broadcast(as_tile(x), extents(shape))


def expand_dims(x: Tile, axis: int) -> Tile:
    """Inserts a dimension of extent 1."""
    at = axis % (x.ndim + 1)
    return x.reshape((*x.shape[:at], 1, *x.shape[at:]))


def squeeze(x: Tile, axis: int) -> Tile:
    """Removes a dimension of extent 1."""
    at = axis_of(x, axis)
    if x.shape[at] != 1:
        raise ShapeMismatch("`squeeze` of a dimension that is not 1", loc=here(), needs="extent 1",
                            got=str(x.shape[at]), try_=f"the tile's shape is {list(x.shape)}")
    return x.reshape((*x.shape[:at], *x.shape[at + 1:])) if x.ndim > 1 else \
        Tile(emit(sh.Reshape, x.value, shape=()).result)


def concatenate(tiles: Sequence[Tile], axis: int = 0) -> Tile:
    """Joins tiles along an axis."""
    return Tile(emit(sh.Concat, *(t.value for t in tiles), axis=axis_of(tiles[0], axis)).result)


def stack(tiles: Sequence[Tile], axis: int = 0) -> Tile:
    """Joins tiles along a new axis."""
    return concatenate([expand_dims(t, axis) for t in tiles], axis)


def lookup(table: Any, index: Tile, dtype: DType = _F32) -> Tile:
    """table[index], where `table` is a rank-1 tile or a tuple of numbers (of dtype `dtype`); an index outside of it
    gives 0."""
    entries = table if isinstance(table, Tile) else constant(table, dtype)
    return Tile(emit(sh.Lookup, entries.value, index.value).result)


def lookup4(table: Tile, words: Tile) -> Tile:
    """Looks up each byte of the u32 `words` in a table of 16, 32, 64, 128 or 256 i8 or u8 entries, by the lowest 4 to
    8 bits of the byte. The result is words of four entries, as `dot4` takes them: i32 for i8 entries, u32 for u8."""
    return Tile(emit(sh.Lookup4, table.value, words.value).result)


def view(x: Tile, dtype: DType, source: Any, layout: Any,
         order: Literal["stream", "pairs", "sums"] = "stream") -> Tile:
    """Reinterprets the bits of each thread's registers: `x`, held in the layout `source`, becomes a tile of another
    dtype in `layout`.

    A thread's elements follow one another bit by bit, the lowest bit first ("stream"). `order="pairs"` and "sums" read
    u32 words into which `tilelang.ir.pairs` has packed numbers of at most 8 bits in an order that a GPU converts to
    f16 by few instructions; `tilelang.targets.order` names the one that takes the fewest."""
    return Tile(emit(sh.View, x.value, dtype=dtype, source=source, layout=layout, order=order).result)


def pin(x: Tile, layout: Any) -> Tile:
    """The same tile in the register layout `layout`, which has its shape. On a GPU the layouts around it are chosen to
    match, and where they cannot, the tile is converted; a layout whose number of threads no program has is refused. On
    a CPU, where a tile has no threads, nothing changes."""
    return view(x, x.dtype, layout, layout)


# -- reductions -------------------------------------------------------------------------------------------------------
def _accumulate(x: Tile, kind: str) -> tuple[Tile, DType | None]:
    """(operand in the dtype the reduction runs in, dtype to round the result to)."""
    dt = x.dtype
    if kind in ("any", "all"):
        return (x if dt.kind == "bool" else x != 0), None
    if kind in ("sum", "prod"):
        if dt.kind in ("bool", "int", "uint") and dt.bits < 32:
            return x.to(_U32 if dt.kind == "uint" else _I32), None
        if dt.kind == "float" and dt.bits < 32 and dt.arithmetic:
            return x.to(_F32), dt
    return x, None


def _axes(x: Tile, axis: Any) -> list[int]:
    if axis is None:
        return list(range(x.ndim))
    return sorted({axis_of(x, a) for a in (axis if isinstance(axis, tuple | list) else (axis,))})


def _reduce(x: Any, kind: str, axis: Any, keepdims: bool) -> Tile:
    tile = as_tile(x)
    shape, axes = tile.shape, _axes(tile, axis)
    tile, final = _accumulate(tile, kind)
    for a in reversed(axes):
        tile = Tile(emit(reduction.Reduce, tile.value, kind=kind, axis=a).result)
    if final is not None:
        tile = tile.to(final)
    return _keep(tile, shape, axes) if keepdims else tile


def _keep(x: Tile, shape: tuple[int, ...], axes: Sequence[int]) -> Tile:
    kept = tuple(1 if i in axes else e for i, e in enumerate(shape))
    return Tile(emit(sh.Reshape, x.value, shape=kept).result)


def sum(x: Any, axis: Any = None, keepdims: bool = False) -> Tile:
    """Sum over one axis, several, or all. f16 and bf16 accumulate in f32 and are rounded once; integers narrower than
    32 bits accumulate in 32 bits."""
    return _reduce(x, "sum", axis, keepdims)


def prod(x: Any, axis: Any = None, keepdims: bool = False) -> Tile:
    """Product; accumulates as `sum` does."""
    return _reduce(x, "prod", axis, keepdims)


def max(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """The largest along an axis; `max(a, b)` of two operands is `maximum`."""
    if isinstance(axis, Tile | float) or not isinstance(x, Tile):
        return math.maximum(x, axis)
    return _reduce(x, "max", axis, keepdims)


def min(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """The smallest along an axis; `min(a, b)` of two operands is `minimum`."""
    if isinstance(axis, Tile | float) or not isinstance(x, Tile):
        return math.minimum(x, axis)
    return _reduce(x, "min", axis, keepdims)


def any(x: Any, axis: Any = None, keepdims: bool = False) -> Tile:
    """Whether any element is true (not zero)."""
    return _reduce(x, "any", axis, keepdims)


def all(x: Any, axis: Any = None, keepdims: bool = False) -> Tile:
    """Whether all elements are true (not zero)."""
    return _reduce(x, "all", axis, keepdims)


def _arg(x: Tile, kind: str, axis: int, keepdims: bool) -> Tile:
    at = axis_of(x, axis)
    out = Tile(emit(reduction.ArgReduce, x.value, kind=kind, axis=at).result)
    return _keep(out, x.shape, [at]) if keepdims else out


def argmax(x: Tile, axis: int = -1, keepdims: bool = False) -> Tile:
    """i32 position of the first largest element."""
    return _arg(x, "max", axis, keepdims)


def argmin(x: Tile, axis: int = -1, keepdims: bool = False) -> Tile:
    """i32 position of the first smallest element."""
    return _arg(x, "min", axis, keepdims)


def _combine_region(tiles: Sequence[Tile], combine: Callable[..., Any]) -> Region:
    """Traces a user's combine(a, b) (or of tuples) over scalars."""
    args = [Value(TileType((), t.dtype), name) for name in "ab" for t in tiles]
    region = Region(args)
    n = len(tiles)
    with emitter().open(region):
        first, second = [Tile(v) for v in args[:n]], [Tile(v) for v in args[n:]]
        out = combine(first[0], second[0]) if n == 1 else combine(tuple(first), tuple(second))
        results = [as_tile(o, t.dtype) for o, t in zip(out if isinstance(out, tuple) else (out,), tiles, strict=True)]
        for o, t in zip(results, tiles, strict=True):
            if o.shape or o.dtype is not t.dtype:
                raise ShapeMismatch("combine must return elements of the dtype it takes", loc=here(),
                                    needs=str(t.dtype), got=str(o.value.type), try_="cast the result with .to")
        emit(control.Yield, *(o.value for o in results))
    return region


def _combined(cls: Any, x: Any, axis: int, combine: Any, **attrs: Any) -> Any:
    tiles = list(x) if isinstance(x, tuple | list) else [x]
    shape = common_shape(tiles)
    tiles = [broadcast(t, shape) for t in tiles]
    op = emit(cls, *(t.value for t in tiles), regions=[_combine_region(tiles, combine)], kind="custom",
              axis=axis_of(tiles[0], axis), **attrs)
    out = tuple(Tile(r) for r in op.results)
    return out if isinstance(x, tuple | list) else out[0]


def reduce(x: Any, axis: int, combine: Callable[..., Any]) -> Any:
    """Reduces along an axis with an associative `combine(a, b)`, a `@tile.function` of scalars (of tuples of scalars
    where `x` is a tuple of tiles)."""
    return _combined(reduction.Reduce, x, axis, combine)


def associative_scan(x: Any, axis: int, combine: Callable[..., Any], reverse: bool = False) -> Any:
    """Inclusive scan along an axis with an associative `combine(a, b)`, as `reduce` takes it."""
    return _combined(reduction.Scan, x, axis, combine, reverse=reverse)


def _scan(x: Tile, kind: str, axis: int, reverse: bool) -> Tile:
    tile, final = _accumulate(x, kind)
    out = Tile(emit(reduction.Scan, tile.value, kind=kind, axis=axis_of(tile, axis), reverse=reverse).result)
    return out if final is None else out.to(final)


def cumsum(x: Tile, axis: int = -1, reverse: bool = False) -> Tile:
    """Inclusive prefix sums; accumulates as `sum` does."""
    return _scan(x, "sum", axis, reverse)


def cumprod(x: Tile, axis: int = -1, reverse: bool = False) -> Tile:
    """Inclusive prefix products; accumulates as `sum` does."""
    return _scan(x, "prod", axis, reverse)


def sort(x: Tile, axis: int = -1, descending: bool = False) -> Tile:
    """Stable sort along an axis; NaN counts as the largest."""
    return Tile(emit(sorting.Sort, x.value, axis=axis_of(x, axis), descending=descending).results[0])


def argsort(x: Tile, axis: int = -1, descending: bool = False) -> Tile:
    """i32 positions that sort `x` stably."""
    return Tile(emit(sorting.Sort, x.value, axis=axis_of(x, axis), descending=descending).results[1])


def topk(x: Tile, k: int, axis: int = -1) -> tuple[Tile, Tile]:
    """The k largest along an axis, largest first, and their i32 positions."""
    at = axis_of(x, axis)
    if not 1 <= k <= x.shape[at]:
        raise IndexOutOfRange("`topk` of more elements than there are", loc=here(), needs=f"k from 1 to {x.shape[at]}",
                              got=str(k), try_="use a smaller k")
    from tilelang.lang.largest import rounds, takes
    if 4 * k <= x.shape[at] and takes(x.dtype):
        return rounds(x, k, at)  # type: ignore[no-any-return]
    op = emit(sorting.Sort, x.value, axis=at, descending=True)
    index = (slice(None),) * at + (slice(0, k),)
    return Tile(op.results[0])[index], Tile(op.results[1])[index]


def dot(a: Tile, b: Tile, acc: Tile | None = None, dtype: DType | None = None) -> Tile:
    """acc + a @ b for a [..., M, K] and b [..., K, N]. Operands may have any dtypes and are multiplied exactly;
    products accumulate in f32 (f64 with an f64 operand, i32 for two integers) unless `dtype` says otherwise. CPUs that
    multiply by AVX512-BF16 flush bf16 operands below 2^-126, and sums of their products below it, to zero."""
    from tilelang.ir.dtypes import dtype as named
    dt = dtype or (acc.dtype if acc is not None else named(reduction.dot_dtype(a.dtype, b.dtype)))
    operands = [a.value, b.value] + ([acc.value] if acc is not None else [])
    return Tile(emit(reduction.Dot, *operands, dtype=dt).result)


def dot_scaled(a: Tile, a_scale: Tile, b: Tile, b_scale: Tile, acc: Tile | None = None) -> Tile:
    """acc + (a * a_scale) @ (b * b_scale) in f32, for a [..., M, K] and b [..., K, N] of at most 8 bits. Each entry of
    a_scale [..., M, G] and b_scale [..., G, N] scales K / G neighbours along k; scales are `e8m0` (OCP microscaling,
    32 neighbours) or floats of 8 bits. gfx950 has instructions for f8e4m3, f8e5m2, f6 and f4 with one `e8m0` for 32
    neighbours. Elsewhere the scaled numbers are multiplied as bf16, which represents them exactly but for its range:
    what exceeds it becomes infinite, and what is below it is rounded. Raises ShapeMismatch and DTypeMismatch."""
    operands = [a.value, b.value, a_scale.value, b_scale.value] + ([acc.value] if acc is not None else [])
    return Tile(emit(reduction.DotScaled, *operands).result)


def dot_bits(a: Tile, b: Tile, acc: Tile | None = None) -> Tile:
    """acc + the number of set bits that each row of a and each column of b have in common, in i32, for u32 words a
    [..., M, W] and b [..., W, N]. NVIDIA GPUs from sm_80 on have instructions for it, which take 8 words along W; on
    sm_90a those of four warps take 64 rows and read their operands from shared memory. Elsewhere the bits are counted
    word by word. Raises ShapeMismatch and DTypeMismatch."""
    operands = [a.value, b.value] + ([acc.value] if acc is not None else [])
    return Tile(emit(reduction.DotBits, *operands).result)
