"""Elementwise functions of the language. Every argument is a tile or a number; shapes broadcast as in NumPy."""
from __future__ import annotations

import math as pymath
from collections.abc import Callable
from typing import Any

from tilelang.ir import elementwise as ew
from tilelang.ir import words
from tilelang.ir.core import Op
from tilelang.ir.dtypes import DType, dtype
from tilelang.lang.emitter import emit
from tilelang.lang.values import Tile, as_tile, binary, broadcast, common_shape, unify

_F32 = dtype("f32")


def _float_unary(cls: type[Op]) -> Callable[[Any], Tile]:
    def apply(x: Any) -> Tile:
        tile = as_tile(x)
        if tile.dtype.kind != "float":
            tile = tile.to(_F32)
        return Tile(emit(cls, tile.value).result)
    apply.__name__ = apply.__qualname__ = cls.name
    apply.__doc__ = f"{cls.__doc__} Integers are converted to f32 first."
    return apply


exp, exp2, log, log2 = (_float_unary(c) for c in (ew.Exp, ew.Exp2, ew.Log, ew.Log2))
sqrt, rsqrt, sin, cos = (_float_unary(c) for c in (ew.Sqrt, ew.Rsqrt, ew.Sin, ew.Cos))
tanh, erf, sigmoid = (_float_unary(c) for c in (ew.Tanh, ew.Erf, ew.Sigmoid))
floor, ceil, round, trunc = (_float_unary(c) for c in (ew.Floor, ew.Ceil, ew.Round, ew.Trunc))


def abs(x: Any) -> Tile:
    """|x|."""
    return Tile(emit(ew.Abs, as_tile(x).value).result)


def fma(a: Any, b: Any, c: Any) -> Tile:
    """a * b + c, rounded once."""
    x, y, z = unify(a, b, c)
    return Tile(emit(ew.Fma, x.value, y.value, z.value).result)


def dot4(a: Any, b: Any, c: Any) -> Tile:
    """c + the dot product of the four bytes in each word of `a` and of `b`. The bytes of a u32 are unsigned, those of
    an i32 signed; c and the result are i32. Operands broadcast."""
    tiles = [as_tile(x) for x in (a, b, c)]
    shape = common_shape(tiles)
    return Tile(emit(words.Dot4, *(broadcast(t, shape).value for t in tiles)).result)


def dot2(a: Any, b: Any, c: Any) -> Tile:
    """c + the dot product of the two bf16 in each u32 word of `a` and of `b`; c and the result are f32. Numbers below
    2^-126 may be flushed to zero. Operands broadcast."""
    tiles = [as_tile(x) for x in (a, b, c)]
    shape = common_shape(tiles)
    return Tile(emit(words.Dot2, *(broadcast(t, shape).value for t in tiles)).result)


def minimum(a: Any, b: Any) -> Any:
    """The smaller of two; NaN if either is NaN."""
    return binary(ew.Min, a, b) if isinstance(a, Tile) or isinstance(b, Tile) else a if a <= b else b


def maximum(a: Any, b: Any) -> Any:
    """The larger of two; NaN if either is NaN."""
    return binary(ew.Max, a, b) if isinstance(a, Tile) or isinstance(b, Tile) else a if a >= b else b


def clamp(x: Any, lo: Any, hi: Any) -> Tile:
    """x limited to [lo, hi]."""
    return as_tile(minimum(maximum(x, lo), hi))


def where(condition: Any, a: Any, b: Any) -> Tile:
    """`a` where the condition holds, else `b`."""
    cond = as_tile(condition)
    x, y = unify(a, b)
    shape = common_shape([cond, x])
    return Tile(emit(ew.Where, *(broadcast(t, shape).value for t in (cond, x, y))).result)


def popcount(x: Any) -> Tile:
    """Number of set bits."""
    return Tile(emit(ew.Popcount, as_tile(x).value).result)


def logical_not(x: Any) -> Any:
    """`not x`."""
    if not isinstance(x, Tile):
        return not x
    flag = x if x.dtype.kind == "bool" else x != 0
    return Tile(emit(ew.Not, flag.value).result)


def isnan(x: Any) -> Tile:
    """Whether x is NaN."""
    tile = as_tile(x)
    return binary(ew.Ne, tile, tile)


def cast(x: Any, dtype: DType) -> Tile:
    """The values of `x` converted to a dtype."""
    return as_tile(x).to(dtype)


def bitcast(x: Any, dtype: DType) -> Tile:
    """The same bits as a dtype of the same width."""
    return Tile(emit(ew.Bitcast, as_tile(x).value, dtype=dtype).result)


def cdiv(a: Any, b: Any) -> Any:
    """ceil(a / b) for integers."""
    if isinstance(a, Tile) or isinstance(b, Tile):
        return (a + (b - 1)) // b
    return -(-a // b)


# -- random numbers ---------------------------------------------------------------------------------------------------
def philox(seed: Any, counter: Any) -> tuple[Tile, Tile, Tile, Tile]:
    """Four tiles of random u32 words from Philox4x32-10 (Salmon et al., SC 2011): a pure function of the seed (u64)
    and the counter (an integer tile, taken modulo 2**32)."""
    key = as_tile(seed).to(dtype("u64")) if isinstance(seed, Tile) else as_tile(seed, dtype("u64"))
    words = emit(ew.Philox, key.value, as_tile(counter).to(dtype("u32")).value).results
    return Tile(words[0]), Tile(words[1]), Tile(words[2]), Tile(words[3])


def _unit(words: Tile) -> Tile:
    return (words >> 8).to(_F32) * 5.9604644775390625e-08  # 2**-24


def rand(seed: Any, counter: Any) -> Tile:
    """f32 numbers, uniform in [0, 1): one for each element of the counter."""
    return _unit(philox(seed, counter)[0])


def randn(seed: Any, counter: Any) -> Tile:
    """Standard normal f32 numbers by the Box-Muller transform: one for each element of the counter."""
    a, b, _, _ = philox(seed, counter)
    radius = sqrt(-2.0 * log(1.0 - _unit(a)))
    return radius * cos(_unit(b) * (2.0 * pymath.pi))


