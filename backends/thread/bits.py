"""Bits of values that stand side by side, cut anew, and pairs: what `view` is on every backend."""
from __future__ import annotations

from collections.abc import Sequence

from tilelang.backends.thread.builder import ThreadBuilder
from tilelang.ir import elementwise as ew
from tilelang.ir.core import Value
from tilelang.ir.dtypes import DType, dtype
from tilelang.ir.pairs import ODD_BYTES, Pairs


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


class Halves:
    """What pairs are made of, by operations that every machine has. Scalars, or vectors lane by lane."""

    def __init__(self, b: ThreadBuilder) -> None:
        self.b = b

    def odd_bytes(self, x: Value) -> Value:
        """Bytes 1 and 3 of a word, as its halves."""
        return self.b.pure(ew.And, _shifted(self.b, x, 8), _full(self.b, ODD_BYTES, x))

    def mad(self, x: Value, factor: int, *added: Value) -> Value:
        """Both halves of a word times a factor, plus those of another, modulo 2**16."""
        b, low, high = self.b, _full(self.b, 0xFFFF, x), _full(self.b, 0xFFFF0000, x)

        def some(of: Value) -> Value:
            out = b.pure(ew.Mul, of, _full(b, factor, x))
            return b.pure(ew.Add, out, *added) if added else out
        return b.pure(ew.Or, b.pure(ew.And, some(x), low), b.pure(ew.And, some(b.pure(ew.And, x, high)), high))

    def shift(self, x: Value, by: int, signed: bool) -> Value:
        """Both halves of a word to the right, `signed` ones with their sign."""
        b = self.b
        out = b.pure(ew.And, _shifted(b, x, by), _full(b, (0xFFFF >> by) * 0x10001, x))
        if not signed:
            return out
        sign = b.pure(ew.And, _shifted(b, x, 15), _full(b, 0x10001, x))
        return b.pure(ew.Or, out, b.pure(ew.Mul, sign, _full(b, 0xFFFF >> by ^ 0xFFFF, x)))


def unpair(b: ThreadBuilder, words: Sequence[Value], order: Pairs, halves: Halves | None = None) -> list[Value]:
    """The pairs of a block of u32 words, made by `halves`. Scalars, or vectors lane by lane."""
    halves = halves or Halves(b)
    out = []
    for i, terms in enumerate(order.steps):
        if order.sums:
            x = _sum(halves, words, order, i)
        elif i in order.in_odd_bytes:
            x = halves.odd_bytes(words[terms[0].word])
        else:
            x = _shifted(b, words[terms[0].word], terms[0].shift)
            for word, shift, _ in terms[1:]:
                x = b.pure(ew.Xor, x, _shifted(b, words[word], shift))
        mask = order.mask(i)
        out.append(x if i in order.in_odd_bytes and mask == ODD_BYTES else b.pure(ew.And, x, _full(b, mask, x)))
    return out


def _sum(halves: Halves, words: Sequence[Value], order: Pairs, pair: int) -> Value:
    """A pair that is a sum, without its mask."""
    factors = order.factors(pair)
    out: Value | None = None
    for x in [*(halves.shift(words[word], by, signed) for word, by, signed in order.shifted(pair)),
              *(words[word] for word, factor in factors.items() if factor == 1)]:
        out = x if out is None else halves.mad(x, 1, out)
    for word, factor in factors.items():
        if factor > 1:
            out = halves.mad(words[word], factor) if out is None else halves.mad(words[word], factor, out)
    assert out is not None
    return out


def _shifted(b: ThreadBuilder, x: Value, by: int) -> Value:
    """A word shifted to the right, to the left where `by` is negative."""
    return b.pure(ew.Shr if by > 0 else ew.Shl, x, _full(b, abs(by), x)) if by else x


def codes(b: ThreadBuilder, found: Sequence[Value], order: Pairs, dt: DType) -> list[Value]:
    """The codes of all pairs of a block."""
    out: list[Value] = []
    for i, pair in enumerate(found):
        for half in (0, 16):
            parts = [_moved(b, pair, place + half, bit, (1 << size) - 1) for place, bit, size in order.fields(i)]
            code = parts[0]
            for part in parts[1:]:
                code = b.pure(ew.Or, code, part)
            out.append(b.pure(ew.Bitcast, b.pure(ew.Cast, code, dtype=dtype(f"u{dt.bits}")), dtype=dt))
    return out


def _moved(b: ThreadBuilder, x: Value, start: int, to: int, mask: int) -> Value:
    return _shifted(b, b.pure(ew.And, _shifted(b, x, start), _full(b, mask, x)), -to)


def _full(b: ThreadBuilder, value: int, like: Value) -> Value:
    return b.full(value, like.dtype, like.shape[0] if like.shape else None)
