"""Casts from one type to many in one kernel, compared with the codec; for tests and `make fuzz`."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.ir.op_examples import tiles
from tilelang.ir import codec
from tilelang.ir.core import Function
from tilelang.ir.dtypes import DType, codebook, dtype, names
from tilelang.ir.parser import parse

TYPES = [*(dtype(n) for n in (
    "i1 u1 u3 i4 i8 u8 i16 i32 u32 i64 u64 s4 ternary f3e1m1 f4e2m1 f6e3m2 f6e2m3 f8e4m3 f8e5m2 f8e4m3fnuz f8e7m0 "
    "e8m0 f16 bf16 tf32 f32 f64").split()), codebook(2, [-1.0, -0.25, 0.5, 1.0])]
"""One of each class, and more."""
EVERY = [dtype(n) for n in names()]
LANES = 64


def patterns(dt: DType, most: int | None = None) -> Any:
    """Every code of at most 16 bits; random and extreme ones of wider types. At most `most` of them, if given."""
    x = _patterns(dt)
    if most is None or len(x) <= most:
        return x
    return x[np.sort(np.random.default_rng(dt.bits).permutation(len(x))[:most])]


def _patterns(dt: DType) -> Any:
    if dt.bits <= 16:
        return codec.from_bits(np.arange(1 << dt.bits, dtype=np.uint64), dt)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2**64, 4096, np.uint64) >> rng.integers(0, 64, 4096, np.uint64)
    if dt.kind == "float":
        near = [codec.decode(patterns(d), d).astype(np.float64) for d in TYPES if d.bits <= 8 and d.is_float]
        real = np.concatenate([*near, *(n * (1 + 2.0 ** -20) for n in near), *((n[1:] + n[:-1]) / 2 for n in near),
                               [0.0, -0.0, np.inf, -np.inf, np.nan, 1e300, 65519.99, 65520.0, 2.0 ** 63, 2.0 ** 31]])
        with np.errstate(all="ignore"):
            extra = codec.encode(real, dt)
        ordinary = codec.encode(rng.standard_normal(2048) * 10.0 ** rng.uniform(-9, 9, 2048), dt)
        raw = codec.from_bits(codes, dt)
        if dt.name == "tf32":
            raw = raw & ~np.uint32(0x1FFF)
        return np.concatenate([extra, ordinary, raw])
    edges = np.array([0, 1, 2**63, 2**64 - 1, 2**31, 2**24 + 1], np.uint64)
    return codec.from_bits(np.concatenate([codes, edges]), dt)


def casts(pairs: Sequence[tuple[DType, DType]], lanes: int) -> Function:
    """A function that loads a tile of each source, and stores a tile of each pair's result."""
    sources = list(dict.fromkeys(src for src, _ in pairs))
    body = [f"%r{i} = cast %a{sources.index(src)} {{dtype={dst}}} : {dst}[{lanes}]" for i, (src, dst) in
            enumerate(pairs)]
    return parse(tiles("c", "\n".join(body), {f"a{i}": f"{src}[{lanes}]" for i, src in enumerate(sources)},
                       {f"r{i}": f"{dst}[{lanes}]" for i, (_, dst) in enumerate(pairs)}))


def check(pairs: Sequence[tuple[DType, DType]], compiled: Callable[[Function], Callable[[list[Any]], None]],
          most: int | None = None) -> None:
    """Casts every pattern of the sources, or `most` of each, by compiled code."""
    sources = {src: patterns(src, most) for src, _ in pairs}
    lanes = -(-max(map(len, sources.values())) // LANES) * LANES
    sources = {src: np.concatenate([x, np.zeros(lanes - len(x), x.dtype)]) for src, x in sources.items()}
    outs = [np.zeros(lanes, dst.storage) for _, dst in pairs]
    compiled(casts(pairs, lanes))([*(x.copy() for x in sources.values()), *outs])
    for (src, dst), out in zip(pairs, outs, strict=True):
        compare(src, dst, sources[src], out)


def compare(src: DType, dst: DType, x: Any, out: Any) -> None:
    """Whether `out` is the codec's cast of `x`, to the bit; a NaN is a NaN."""
    want = codec.cast(x, src, dst)
    same = codec.to_bits(out, dst) == codec.to_bits(want, dst)
    if dst.kind in ("float", "scale"):
        with np.errstate(invalid="ignore"):
            same |= np.isnan(codec.decode(out, dst)) & np.isnan(codec.decode(want, dst))
    bad = np.flatnonzero(~same)
    assert len(bad) == 0, (f"{src} -> {dst}: {len(bad)} wrong, first {codec.decode(x, src)[bad[0]]!r} gave "
                           f"{codec.decode(out, dst)[bad[0]]!r}, not {codec.decode(want, dst)[bad[0]]!r}")
