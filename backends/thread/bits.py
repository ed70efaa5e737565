"""Bits of values that stand side by side, cut anew: what `view` is on every backend."""
from __future__ import annotations

from collections.abc import Sequence

from tilelang.backends.thread.builder import ThreadBuilder
from tilelang.ir import elementwise as ew
from tilelang.ir.core import Value
from tilelang.ir.dtypes import DType, dtype


def recut(b: ThreadBuilder, values: Sequence[Value], dt: DType) -> list[Value]:
    """The values of `dt` whose bits are those of `values`, the lowest bits first. Scalars, or vectors lane by lane."""
    wide, narrow = values[0].dtype.bits, dt.bits
    word = dtype("u64" if max(wide, narrow) > 32 else "u32")
    codes = [b.pure(ew.Cast, b.pure(ew.Bitcast, x, dtype=dtype(f"u{wide}")), dtype=word) for x in values]
    out = []
    for start in range(0, len(values) * wide, narrow):
        bits = b.pure(ew.Cast, _cut(b, codes, wide, start, narrow), dtype=dtype(f"u{narrow}"))
        out.append(b.pure(ew.Bitcast, bits, dtype=dt))
    return out


def _cut(b: ThreadBuilder, codes: Sequence[Value], width: int, start: int, size: int) -> Value:
    """Bits [start, start + size) of a word whose parts of `width` bits are `codes`; more may stand above them."""
    out: Value | None = None
    for i in range(start // width, (start + size - 1) // width + 1):
        by, part = i * width - start, codes[i]
        if by:
            count = b.full(abs(by), part.dtype, part.shape[0] if part.shape else None)
            part = b.pure(ew.Shl if by > 0 else ew.Shr, part, count)
        out = part if out is None else b.pure(ew.Or, out, part)
    assert out is not None
    return out
