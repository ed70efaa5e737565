"""Quantisation by rounding to nearest, with a scale for each block of a matrix."""
from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal

import numpy as np

from tilelang.args import describe, is_tensor, is_torch
from tilelang.ir import codec
from tilelang.ir.dtypes import DType
from tilelang.ir.dtypes import dtype as dtype_named
from tilelang.ir.packed import Packed
from tilelang.quant.nodes import leaf_of, need, on_host
from tilelang.quant.tensor import Parameter, QuantTensor

RATIOS = tuple(1 - 0.02 * i for i in range(46))
"""Of the full range: the clips that `method="mse"` tries."""
_CHUNK = 1 << 20  # elements worked on at a time


def quantize(w: Any, dtype: DType | str, group: int | tuple[int, int] | None = 128, symmetric: bool | None = None,
             scale_dtype: DType | str = "f16", method: Literal["rtn", "mse"] = "rtn",
             scale_group: int | None = None) -> QuantTensor:
    """Quantises a weight matrix `w` (N, K): NumPy, torch or DLPack, any float dtype, finite.

    `group`: elements along K that share a scale (None: all of K; the last group may be shorter), or a block (bn, bk).
    With lo and hi the least and greatest of a block and 0, and v the values of the dtype:

    - symmetric (default, except for unsigned integers): W = s v with s = max(hi / max v, lo / min v), the least scale
      whose range covers the block; each element takes the nearest value, ties to even. Unsigned integers of b bits
      have a fixed zero: W = s (c - 2**(b-1)).
    - asymmetric (integers and bipolar, default for unsigned): W = s (c - z) with s = (hi - lo) / (max v - min v), z
      the code nearest to min v - lo / s, c nearest to w / s + z. Bipolar is the same code seen as odd numbers.
    - ternary and s1: s = mean |w| (BitNet b1.58, 2402.17764; XNOR-Net, 1603.05279).

    Scales are rounded up to `scale_dtype`, so nothing that was covered is clipped: the error is at most half a step
    (except for ternary, s1, and codebooks whose range or gaps forbid it). A `scale_dtype` that is an unsigned integer
    or a float of 8 bits or fewer is itself scaled by an f32: one for the tensor (NVFP4: f4e2m1, group 16, f8e4m3), or
    one for each `scale_group` scales along K.

    `method="mse"` also tries smaller ranges (`RATIOS` of lo and hi) and keeps, for each block, the least sum of
    squares. Returns memory of the kind of `w`, on its device. Raises QuantError.
    """
    dt = dtype_named(dtype) if isinstance(dtype, str) else dtype
    sdt = dtype_named(scale_dtype) if isinstance(scale_dtype, str) else scale_dtype
    for name, of in (("dtype", dt), ("scale_dtype", sdt)):
        need(isinstance(of, DType), f"`{name}` is no number type", "a name such as 'u4', or a tile.DType", repr(of))
    need(is_tensor(w), "`w` cannot be quantised", "a tensor", type(w).__name__)
    if is_torch(w):
        need(w.layout is sys.modules["torch"].strided, "`w` cannot be quantised", "a dense tensor", w.layout,
             "w.to_dense()")
        need(not w.is_meta, "`w` cannot be quantised", "numbers", "a tensor on the device meta, which has none",
             "load the weights first; quantised ones can be moved to meta and loaded into")
    source = describe("w", on_host(w), None)
    need(len(source.shape) == 2 and 0 not in source.shape, "`w` cannot be quantised", "shape (N, K), not empty",
         tuple(source.shape), "w.reshape(w.shape[0], -1)")
    need(source.dtype.is_float, "`w` cannot be quantised", "a float dtype", source.dtype)
    need(method in ("rtn", "mse"), "`method` is unknown", "rtn or mse", repr(method))
    n, k = source.shape
    block = group if isinstance(group, tuple) else (1, k if group is None else group)
    need(len(block) == 2 and all(isinstance(x, int | np.integer) and x > 0 for x in block), "`group` is impossible",
         "a positive count, a pair of them, or None for all of K", group)
    need(scale_group is None or scale_group > 0, "`scale_group` is impossible", "a positive count", scale_group)
    bn, bk = min(block[0], n), min(block[1], k)
    code = _Code(dt, dt.kind != "uint" if symmetric is None else symmetric)
    storage, rows = source.storage(), max(_CHUNK // k // bn, 1) * bn

    def chunks() -> Any:
        for i in range(0, n, rows):
            yield slice(i // bn, -(-min(i + rows, n) // bn)), codec.decode(storage[i:i + rows],
                                                                         source.dtype).astype(np.float64)

    need(all(np.isfinite(x).all() for _, x in chunks()), "`w` cannot be quantised", "finite numbers",
         "infinity or NaN")
    largest = np.concatenate([code.cover(*_range(x, bn, bk)) for _, x in chunks()])
    scales = _Scales(sdt, largest, scale_group)
    codes, zeros, kept = [], [], np.zeros(largest.shape, np.uint64)
    for at, x in chunks():
        c, z, kept[at] = _fit(x, bn, bk, code, partial(scales.round_up, at=at), method)
        codes.append(c)
        zeros.append(z)
    zero = None
    if not code.symmetric:
        zero = Parameter(leaf_of(np.concatenate(zeros), dt), (bn, bk))
    elif dt.kind == "uint":
        zero = Parameter(leaf_of(np.full((1, 1), 1 << dt.bits - 1, np.uint64), dt), (n, k))
    result = QuantTensor(Packed.from_codes(np.concatenate(codes), dt), Parameter(scales.stored(kept), (bn, bk)), zero)
    return result.torch(w.device) if is_torch(w) else result


def _fit(x: Any, bn: int, bk: int, code: _Code, round_up: Callable[[Any], tuple[Any, Any]], method: str) -> Any:
    """The best of the ranges tried: codes, zeros by block, scale codes by block."""
    least: Any = None
    for s, lo, hi in code.candidates(x, bn, bk, RATIOS if method == "mse" else (1.0,)):
        scale_codes, scale = round_up(s)
        codes, zeros, values = code.apply(x, scale, lo, hi, bn, bk)
        if method == "rtn":
            return codes, zeros, scale_codes
        error = _blocks(np.add, (values - x) ** 2, bn, bk)
        if least is None:
            least, best = error, (codes, zeros, scale_codes)
            continue
        better = error < least
        least = np.where(better, error, least)
        best = (np.where(_spread(better, x.shape, bn, bk), codes, best[0]), np.where(better, zeros, best[1]),
                np.where(better, scale_codes, best[2]))
    return best


class _Code:
    """How numbers become codes of a dtype."""

    def __init__(self, dt: DType, symmetric: bool) -> None:
        self.dt, self.symmetric = dt, symmetric
        integer = dt.kind in ("int", "uint")
        need((integer and dt.bits <= 16) or dt.kind in ("bipolar", "ternary", "codebook")
             or (dt.kind == "float" and dt.bits <= 8), f"weights cannot be quantised to {dt}",
             "u1 to u16, i2 to i16, s1 to s8, a float of 3 to 8 bits, ternary or a codebook", dt)
        need(symmetric or integer or dt.kind == "bipolar", f"{dt} has no zero points",
             "an integer or bipolar dtype, or symmetric=True", "symmetric=False")
        need(not (symmetric and dt.name == "u1"), "u1 cannot be symmetric: its values are -1 and 0", "2 bits or more",
             "u1", "'s1', which is -1 and 1, or symmetric=False")
        need(not (dt.kind == "codebook" and not any(dt.table)), "the codebook is all zeros", "an entry other than 0",
             dt)
        offset = 1 << dt.bits - 1 if dt.kind == "uint" and symmetric else 0
        self.low, self.high = dt.min - offset, dt.max - offset
        self.by_mean = dt.kind == "ternary" or dt.name == "s1" and symmetric

    def cover(self, lo: Any, hi: Any) -> Any:
        """The least scale whose range covers lo to hi, as far as one can."""
        if not self.symmetric:
            return (hi - lo) / (self.high - self.low)
        sides = [x / limit for x, limit in ((hi, self.high), (lo, self.low)) if limit and (limit > 0) == (x is hi)]
        return np.maximum.reduce(sides)

    def candidates(self, x: Any, bn: int, bk: int, ratios: tuple[float, ...]) -> Any:
        """Scales, lower and upper ends of ranges to try, by block."""
        lo, hi = _range(x, bn, bk)
        if self.by_mean:
            count = _blocks(np.add, np.ones_like(x), bn, bk)
            yield _blocks(np.add, np.abs(x), bn, bk) / count, lo, hi
            if len(ratios) == 1:
                return
        for r in ratios:
            yield self.cover(lo * r, hi * r), lo * r, hi * r

    def apply(self, x: Any, scale: Any, lo: Any, hi: Any, bn: int, bk: int) -> Any:
        """Codes by element, zeros by block, and the values they stand for."""
        dt, wide = self.dt, _spread(scale, x.shape, bn, bk)
        divisor = np.where(wide > 0, wide, 1)
        if not self.symmetric:
            # Bipolar numbers are 2 c - (2**b - 1): steps of 2.
            step, low, high = (2, 0, (1 << dt.bits) - 1) if dt.kind == "bipolar" else (1, dt.min, dt.max)
            zeros = np.clip(np.rint(low - lo / np.where(scale > 0, step * scale, 1)), low, high)
            z = _spread(zeros, x.shape, bn, bk)
            q = np.clip(np.rint(x / (step * divisor)) + z, low, high)
            return _bits(q, dt), _bits(zeros, dt), step * wide * (q - z)
        if dt.kind in ("int", "uint"):
            q = np.clip(np.rint(x / divisor), self.low, self.high)
            return _bits(q - self.low + dt.min, dt), np.zeros(scale.shape, np.uint64), wide * q
        stored = codec.encode(np.clip(x / divisor, dt.min, dt.max), dt)  # beyond the range tried: never infinity
        return codec.to_bits(stored, dt).astype(np.uint64), np.zeros(scale.shape, np.uint64), \
            wide * codec.decode(stored, dt)


class _Scales:
    """Rounds scales up to numbers of a dtype; narrow ones are multiples of scales of their own."""

    def __init__(self, dt: DType, largest: Any, group: int | None) -> None:
        need(dt.kind in ("float", "scale", "uint"), f"scales cannot be {dt}", "a float dtype, e8m0 or u1 to u16", dt)
        need(dt.kind != "uint" or dt.bits <= 16, f"scales cannot be {dt}", "u1 to u16", dt)
        self.dt, self.second = dt, None
        nested = dt.kind == "uint" or dt.kind == "float" and dt.bits <= 8
        need(nested or group is None, "`scale_group` has no meaning", "a scale_dtype of u1 to u16, or a float of at "
             "most 8 bits", dt)
        self.factor = np.ones_like(largest)
        if nested:
            block = largest.shape if group is None else (1, min(group, largest.shape[1]))
            second = _round_up(_blocks(np.maximum, largest, *block) / dt.max, dtype_named("f32"))
            values = codec.decode(codec.from_bits(second, dtype_named("f32")), dtype_named("f32"))
            self.second = Parameter(values, block)
            self.factor = self.second.expand(largest.shape)

    def round_up(self, s: Any, at: slice) -> tuple[Any, Any]:
        """Codes, and the values that are at least s, of the blocks in rows `at`."""
        factor = self.factor[at]
        codes = _round_up(s / np.where(factor > 0, factor, 1), self.dt)
        return codes, codec.decode(codec.from_bits(codes, self.dt), self.dt).astype(np.float64) * factor

    def stored(self, codes: Any) -> Any:
        """What a Parameter holds."""
        if self.second is None:
            return leaf_of(codes, self.dt)
        return QuantTensor(Packed.from_codes(codes, self.dt), self.second)


def _round_up(x: Any, dt: DType) -> Any:
    """Codes of the least numbers of a dtype that are not below x >= 0."""
    if dt.bits <= 16:
        values, codes = _ascending(dt)
        at = np.searchsorted(values, x)
        need(bool((at < len(values)).all()), f"scales do not fit into {dt}", f"scales of at most {dt.max}", x.max(),
             "scale_dtype='f32'")
        return codes[at]
    stored = codec.encode(x, dt)
    value = codec.decode(stored, dt).astype(np.float64)
    codes = codec.to_bits(stored, dt).astype(np.uint64) + (value < x) * np.uint64(1 << 13 if dt.name == "tf32" else 1)
    need(bool((x <= dt.max).all()), f"scales do not fit into {dt}", f"scales of at most {dt.max}", x.max(),
         "scale_dtype='f64'")
    return codes


@cache
def _ascending(dt: DType) -> tuple[Any, Any]:
    """The finite numbers from 0 on, rising, and their codes."""
    values = codec.values_of(dt)
    codes = np.flatnonzero(np.isfinite(values) & ~np.signbit(values))
    order = np.argsort(values[codes], kind="stable")
    return values[codes][order], codes[order].astype(np.uint64)


def _bits(q: Any, dt: DType) -> Any:
    return q.astype(np.int64).view(np.uint64) & np.uint64((1 << dt.bits) - 1)


def _blocks(combine: Any, x: Any, bn: int, bk: int) -> Any:
    """A reduction of each block; the last ones may be smaller."""
    rows = combine.reduceat(x, range(0, x.shape[1], bk), axis=1)
    return combine.reduceat(rows, range(0, x.shape[0], bn), axis=0) if bn > 1 else rows


def _range(x: Any, bn: int, bk: int) -> tuple[Any, Any]:
    return np.minimum(_blocks(np.minimum, x, bn, bk), 0), np.maximum(_blocks(np.maximum, x, bn, bk), 0)


def _spread(blocks: Any, shape: tuple[int, int], bn: int, bk: int) -> Any:
    """Each block's number at each of its elements."""
    return blocks.repeat(bk, 1)[:, :shape[1]].repeat(bn, 0)[:shape[0]]


