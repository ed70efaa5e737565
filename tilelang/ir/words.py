"""Products of the small numbers in words, added up."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tilelang.errors import DTypeMismatch, ShapeMismatch
from tilelang.ir import elementwise as ew
from tilelang.ir.core import Type, Value
from tilelang.ir.dtypes import dtype

if TYPE_CHECKING:
    from tilelang.ir.expansion import Expansion


class _Words(ew.Elementwise):
    """c + products of what the words `a` and `b` hold."""

    arity = 3
    takes: ClassVar[tuple[tuple[str, ...], str]]
    """Dtypes of the words, and of c."""

    def infer(self) -> Sequence[Type]:
        (a, b, c), (words, sums) = (v.tile for v in self.operands), self.takes
        got = [t.dtype.name for t in (a, b, c)]
        if not {*got[:2]} <= {*words} or got[2] != sums:
            raise DTypeMismatch(f"`{self.name}` of unsupported dtypes", loc=self.loc, got=", ".join(got),
                                needs=f"words ({' or '.join(words)}) and a sum of {sums}",
                                try_=f"bitcast the words to tile.{words[0]}")
        if not a.shape == b.shape == c.shape:
            raise ShapeMismatch(f"`{self.name}` of tiles of different shapes", loc=self.loc,
                                needs="three equal shapes", try_="reshape or broadcast them",
                                got=f"{list(a.shape)}, {list(b.shape)}, {list(c.shape)}")
        return [c]


class Dot4(_Words):
    """c + the sum of the four products of the bytes of `a` and `b`, i32 modulo 2**32: the integer dot product of GPUs
    (`dp4a`) and CPUs (`vpdpbusd`). The bytes of an u32 operand are unsigned, those of an i32 operand signed."""
    name, takes = "dot4", (("u32", "i32"), "i32")

    def eval(self, frame: Any, *args: Any) -> Any:
        total = np.asarray(args[2]).astype(np.int64)
        for shift in (0, 8, 16, 24):
            a, b = ((np.asarray(x).astype(np.int64) >> shift) & 255 for x in args[:2])
            a, b = (x - 256 * (x > 127) * (v.dtype.name == "i32") for x, v in zip((a, b), self.operands, strict=False))
            total = total + a * b
        return ew.from_compute(total, dtype("i32"))


class Dot2(_Words):
    """c + the products of the two bf16 in each word (u32) of `a` and `b`, f32: that of the high halves is added first,
    each by one rounding to nearest. Numbers below 2^-126, operands as well as sums, may count as zeros: x86's
    VDPBF16PS, of one lane (`DotGroups`)."""
    name, takes = "dot2", (("u32",), "f32")

    def eval(self, frame: Any, *args: Any) -> Any:
        a, b = (halves_of(x) for x in args[:2])
        return ew.fused(a[0], b[0], ew.fused(a[1], b[1], np.asarray(args[2])))

    def expand(self, b: Expansion) -> Sequence[Value]:
        *words, total = self.operands
        for half, by in ((ew.And, 0xFFFF0000), (ew.Shl, 16)):
            by_ = b.full(by, total.shape, dtype("u32"))
            x, y = (b.emit(ew.Bitcast, b.emit(half, v, by_), dtype=dtype("f32")) for v in words)
            total = b.emit(ew.Fma, x, y, total)
        return [total]


def halves_of(words: Any) -> tuple[Any, Any]:
    """The bf16 in the low and in the high halves of words, as f32."""
    words = np.asarray(words).astype(np.uint32)
    return (words << np.uint32(16)).view(np.float32), (words & np.uint32(0xFFFF0000)).view(np.float32)
