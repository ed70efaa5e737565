"""Bits of values that stand side by side, cut anew, and pairs: what `view` is on every backend."""
from __future__ import annotations

from collections.abc import Callable, Sequence

from tilelang.backends.thread.builder import ThreadBuilder
from tilelang.ir import elementwise as ew
from tilelang.ir.core import Value
from tilelang.ir.dtypes import DType, dtype
from tilelang.ir.pairs import ODD_BYTES, Pairs, pairs


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


def unpair(b: ThreadBuilder, words: Sequence[Value], order: Pairs,
           odd_bytes: Callable[[Value], Value] | None = None) -> list[Value]:
    """The pairs of a block of u32 words. Scalars, or vectors lane by lane. `odd_bytes` gives (x >> 8) & 0x00ff00ff."""
    def shifted(word: int, by: int) -> Value:
        x = words[word]
        return b.pure(ew.Shr if by > 0 else ew.Shl, x, _full(b, abs(by), x)) if by else x
    out = []
    for i, terms in enumerate(order.steps):
        mask = order.mask(i)
        if odd_bytes is not None and i in order.in_odd_bytes:
            x = odd_bytes(words[terms[0][0]])
        else:
            x = shifted(*terms[0])
            for term in terms[1:]:
                x = b.pure(ew.Xor, x, shifted(*term))
        out.append(x if odd_bytes is not None and i in order.in_odd_bytes and mask == ODD_BYTES else
                   b.pure(ew.And, x, _full(b, mask, x)))
    return out


def codes(b: ThreadBuilder, found: Sequence[Value], dt: DType) -> list[Value]:
    """The codes of all pairs of a block."""
    order, out = pairs(dt), list[Value]()
    for i, pair in enumerate(found):
        for half in (0, 16):
            parts = [_moved(b, pair, place + half, bit, (1 << size) - 1) for place, bit, size in order.fields(i)]
            code = parts[0]
            for part in parts[1:]:
                code = b.pure(ew.Or, code, part)
            out.append(b.pure(ew.Bitcast, b.pure(ew.Cast, code, dtype=dtype(f"u{dt.bits}")), dtype=dt))
    return out


def _moved(b: ThreadBuilder, x: Value, start: int, to: int, mask: int) -> Value:
    x = b.pure(ew.Shr, x, _full(b, start, x)) if start else x
    x = b.pure(ew.And, x, _full(b, mask, x))
    return b.pure(ew.Shl, x, _full(b, to, x)) if to else x


def _full(b: ThreadBuilder, value: int, like: Value) -> Value:
    return b.full(value, like.dtype, like.shape[0] if like.shape else None)
