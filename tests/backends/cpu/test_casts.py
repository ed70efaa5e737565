"""Casts between every pair of types, over every bit pattern of the source: machine code equals the codec."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.backends.cpu.native import native
from tests.ir.op_examples import tiles
from tilelang.ir import codec
from tilelang.ir.dtypes import DType, codebook, dtype
from tilelang.ir.parser import parse

TYPES = [*(dtype(n) for n in (
    "i1 u1 u3 i4 i8 u8 i16 i32 u32 i64 u64 s4 ternary f3e1m1 f4e2m1 f6e3m2 f6e2m3 f8e4m3 f8e5m2 f8e4m3fnuz f8e7m0 "
    "e8m0 f16 bf16 tf32 f32 f64").split()), codebook(2, [-1.0, -0.25, 0.5, 1.0])]
LANES = 64


def patterns(dt: DType) -> Any:
    """Every code of at most 16 bits; random and extreme ones of wider types."""
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


@pytest.mark.parametrize("src", TYPES, ids=str)
def test_casts_equal_the_codec(src: DType) -> None:
    x = patterns(src)
    x = np.concatenate([x, np.zeros(-len(x) % LANES, x.dtype)])
    names = {f"r{i}": f"{dst}[{len(x)}]" for i, dst in enumerate(TYPES)}
    body = "\n".join(f"%r{i} = cast %a {{dtype={dst}}} : {dst}[{len(x)}]" for i, dst in enumerate(TYPES))
    outs = [np.zeros(len(x), dst.storage) for dst in TYPES]
    native(parse(tiles("c", body, {"a": f"{src}[{len(x)}]"}, names)))([x.copy(), *outs])
    for dst, out in zip(TYPES, outs, strict=True):
        want = codec.cast(x, src, dst)
        same = codec.to_bits(out, dst) == codec.to_bits(want, dst)
        if dst.kind in ("float", "scale"):
            with np.errstate(invalid="ignore"):
                same |= np.isnan(codec.decode(out, dst)) & np.isnan(codec.decode(want, dst))
        bad = np.flatnonzero(~same)
        assert len(bad) == 0, (f"{src} -> {dst}: {len(bad)} wrong, first {codec.decode(x, src)[bad[0]]!r} gave "
                               f"{codec.decode(out, dst)[bad[0]]!r}, not {codec.decode(want, dst)[bad[0]]!r}")
