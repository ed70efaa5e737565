"""Numbers of at most 8 bits in 32-bit words, in an order from which few instructions make registers of f16.

A *pair* is one word with two codes whose bits stand where f16 wants them, one in each half. The words of a block are
such that every pair is the exclusive or of one, two or three of them, each shifted, under one mask: on a GPU one
`lop3` and the shifts, which pairs share. As f16 numbers the halves are the codes' values by a power of two, exactly:
unsigned integers as subnormal numbers, floats with the exponent's bias left to correct (FP6-LLM, arXiv 2401.14112).
Which bit of a block's words holds what follows from the steps: they are an invertible matrix over F2, and packing
multiplies by its inverse. The steps of each format were found by annealing, for the fewest instructions.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from tilelang.ir import codec
from tilelang.ir.dtypes import DType

_INTEGERS = {  # bits: (lowest bits of the codes, one for each class of pairs, steps)
    1: ((0, 1, 2, 3), "0:0 0:0 0:0 0:0 0:4 0:4 0:4 0:4 0:8 0:8 0:8 0:8 0:12 0:12 0:12 0:12"),
    2: ((0, 2, 4, 6), "0:0 0:0 0:0 0:0 0:8 0:8 0:8 0:8"),
    3: ((0, 3), "1:6 0:0 0:6 0:10 0:0 1:6 1:12 2:2 0:10^2:0 2:8 2:8 1:12^2:10 1:0 0:6 2:2 1:0"),
    4: ((0, 4), "0:0 0:0 0:8 0:8"),
    5: ((0, 5), "0:6^4:8 2:2^4:0 1:0 1:0 4:0 0:0 2:0 2:0 1:6^4:12 0:6 0:0 3:10^2:6 3:10 3:0 3:0 1:6"),
    6: ((0,), "2:0 1:10 2:2^1:0 2:10 0:10 0:0 2:8^0:4 1:4"),
    7: ((0,),
        "5:2^6:2 2:0^2:10 0:3^4:7 1:0 4:0^2:3 4:9^6:0 5:2^3:6 3:0 5:9 0:0 3:9 4:0^5:0 0:9 1:9 6:9 "
        "1:2^2:0"),
    8: ((0,), "0:0 0:8"),
}
_FLOATS = {  # (exponent bits, mantissa bits): steps
    (1, 1): (
        "2:-7 0:-6 1:-7 1:-9 1:4^2:-4 0:-1^1:2 2:-3^0:-1 1:-5 2:-9 0:-4 0:-15^2:4 2:0^0:0 1:0^1:-3 2:-5 "
        "0:-8 0:0^0:3"),
    (2, 0): (
        "0:-9 1:-3 2:-15^2:3 1:-6 1:-9 1:0 0:0 2:-6 2:-9 1:3^2:-12 2:-3 0:-10^0:-4 1:-8^0:-1 2:0 0:-7 "
        "1:-15^0:2"),
    (1, 2): "0:0 0:-8 0:-4 0:4^0:-12",
    (2, 1): "0:3^0:0 0:-6 0:-9 0:3^0:-2",
    (3, 0): "0:0 0:-9 0:-8^0:-2 0:2^0:-10",
    (1, 3): (
        "3:-4 2:-4 0:5^1:0 2:0 3:-1^2:-7 0:-4 3:-8^1:-1 4:-7 4:0^3:5 1:-3^2:4 4:4^1:-1 4:-3 1:-7 1:4^3:0 "
        "2:4^0:0 0:-7^4:4"),
    (2, 2): (
        "1:-8^4:3 0:-8 2:-8 0:-3^1:3 3:-8^2:0 4:-6^1:0 3:-8^0:3 3:0^2:-5 3:-5 1:0^4:3 4:-8 2:3^4:0 1:-5 "
        "4:-5^3:4 3:0^0:-4 0:0"),
    (3, 1): (
        "4:0 0:-9 3:-5^4:-7 2:-9 0:-7^0:-2 3:-9 2:0^4:2 1:4^2:-8 0:0 1:0^3:-1 1:-6^0:-1 2:-7^2:3 "
        "3:-2^1:-10 3:0 1:-3^4:-2 4:-9"),
    (4, 0): (
        "1:0^2:-11 0:-10 1:-7 2:0^1:-10 4:0^0:3 2:-4^3:-1 3:-5^1:3 3:-6^0:-7 2:-10^4:-5 4:-10 0:-4 4:-1 "
        "2:-1 4:-7^0:0 3:-10 1:-3^3:0"),
    (1, 4): "1:-6 1:3^0:-6 0:5^2:-1 2:-1^1:0 0:-4 2:-6 2:0^2:4 1:-1^0:0",
    (2, 3): "1:5^0:0 1:0^1:-9 1:-6 0:4^2:0 2:-5 0:-2 1:0^0:-7 2:-7^2:3",
    (3, 2): "2:-3^0:-5 0:0 1:-8 2:-8 2:2^2:0 0:-8 1:-3^0:3 1:2^1:0",
    (4, 1): "1:-1^1:-6 2:-1 1:0 2:-5^0:0 0:-1^1:-9 0:-9^2:0 2:-9 0:-5",
    (5, 0): "0:-10 2:-10 2:-2^0:-4 0:0 1:0 2:-4 1:-6 2:0^1:-10",
    (1, 5): (
        "0:0 2:-3^3:4 4:4^1:-4 0:-6^3:-5 4:-5 2:0 3:0^5:-7 4:0^1:4 1:0^0:-6 1:2^3:0 1:-4^6:-4 5:-4^6:7 "
        "2:6^6:-6 6:0^2:-5 5:4^5:0 0:6^1:-9"),
    (2, 4): (
        "1:3^6:0 5:-6 1:-6 4:3^4:0 6:-6 3:-3 0:4^4:-1 0:-6 4:-6 6:4^3:0 2:3^3:-6 0:0^5:2 5:-1^1:0 "
        "3:4^1:0 2:0 2:-6^5:0"),
    (3, 3): (
        "4:-7 5:-6^5:-15 6:-7 1:-2 2:3^6:-2 0:-7 3:-5 4:-6^1:-7 5:0^0:0 1:0^5:5 4:0^3:0 3:-9^6:-1 "
        "0:-1^0:4 2:-7^1:-1 4:2^2:-1 3:4^6:0"),
    (4, 2): (
        "6:-8 1:0^5:-1 1:-8^6:-2 5:0^6:-2 5:-9^2:2 5:-8 0:-9^3:1 4:0 3:-7^4:6 4:-4^1:-6 4:-10^0:6 "
        "6:2^5:-1 2:-4^3:-8 0:0^3:0 2:-8^1:-1 0:-8"),
    (5, 1): (
        "0:-2^1:-7 4:-5^3:-14 6:-9 3:0 4:0 0:-9 5:-2^2:0 2:-2^0:0 3:-7 2:-9 5:0 0:0^6:-3 1:-9^4:-10 5:-9 "
        "1:0 6:0^1:-9"),
    (1, 6): "0:0 0:-4^0:4",
    (2, 5): "0:-5 0:0^0:3",
    (3, 4): "0:-6 0:0^0:2",
    (4, 3): "0:0^0:-7 0:-1",
    (5, 2): "0:0 0:-8",
}


ODD_BYTES = 0x00FF00FF
"""Of a word shifted by 8: its odd bytes, which one instruction of GPUs takes out without a mask."""


@dataclass(frozen=True)
class Pairs:
    """How codes of `bits` bits stand in blocks of `words` words.

    `places[c][i]` is the bit of a half in which bit i of a code of class c stands; pair j has class j % len(places).
    `steps[j]` lists the (word, shift) whose exclusive or is pair j; a positive shift is to the right.
    Code 2 * j + h of a block is half h of pair j.
    """

    bits: int
    places: tuple[tuple[int, ...], ...]
    steps: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def elements(self) -> int:
        """Codes of a block."""
        return 2 * len(self.steps)

    @property
    def words(self) -> int:
        """Words of a block."""
        return self.elements * self.bits // 32

    def place(self, pair: int) -> tuple[int, ...]:
        return self.places[pair % len(self.places)]

    def mask(self, pair: int) -> int:
        """The bits of both codes of a pair."""
        return sum(0x10001 << p for p in self.place(pair))

    def fields(self, pair: int) -> list[tuple[int, int, int]]:
        """(bit of the half, bit of the code, bits) of the runs that a code consists of."""
        runs: list[tuple[int, int, int]] = []
        for bit, place in enumerate(self.place(pair)):
            if runs and place == runs[-1][0] + runs[-1][2]:
                runs[-1] = (*runs[-1][:2], runs[-1][2] + 1)
            else:
                runs.append((place, bit, 1))
        return runs

    @cached_property
    def in_odd_bytes(self) -> frozenset[int]:
        """The pairs that are some bits of the odd bytes of one word."""
        return frozenset(i for i, terms in enumerate(self.steps)
                         if len(terms) == 1 and terms[0][1] == 8 and not self.mask(i) & ~ODD_BYTES)

    @cached_property
    def beneath(self) -> dict[int, int]:
        """Pairs that fill odd bytes together with one other, beneath them: as numbers, bytes with both codes are the
        upper code and a power of two times the lower one, so that sums need no mask for the upper one."""
        return {i: j for i in self.in_odd_bytes for j in self.in_odd_bytes if self.steps[i] == self.steps[j]
                and self.mask(i) > self.mask(j) and self.mask(i) ^ self.mask(j) == ODD_BYTES}

    @cached_property
    def matrix(self) -> Any:
        """u8 array [bits of the codes of a block, bits of its words] over F2: what `unpack` does."""
        out = np.zeros((self.elements, self.bits, 32 * self.words), np.uint8)
        for pair, terms in enumerate(self.steps):
            for half in (0, 1):
                for bit, place in enumerate(self.place(pair)):
                    for word, shift in terms:
                        at = place + 16 * half + shift
                        if 0 <= at < 32:
                            out[2 * pair + half, bit, 32 * word + at] ^= 1
        return out.reshape(-1, 32 * self.words)

    @cached_property
    def inverse(self) -> Any:
        """The inverse of `matrix`. Raises ValueError where there is none."""
        n = len(self.matrix)
        rows = np.concatenate([self.matrix, np.eye(n, dtype=np.uint8)], 1)
        for i in range(n):
            found = i + int(np.argmax(rows[i:, i]))
            if not rows[found, i]:
                raise ValueError(f"words of {self.bits}-bit codes cannot be told from the pairs")
            rows[[i, found]] = rows[[found, i]]
            rows[(rows[:, i] == 1) & (np.arange(n) != i)] ^= rows[i]
        return rows[:, n:]

    def unpack(self, words: Any) -> Any:
        """u8 codes [..., n * elements] of words [..., n * words]."""
        return _multiplied(self.matrix, words, 32, self.words, self.bits, np.uint8)

    def pack(self, codes: Any) -> Any:
        """u32 words [..., n * words] of codes [..., n * elements]."""
        return _multiplied(self.inverse, codes, self.bits, self.elements, 32, np.uint32)


def _multiplied(matrix: Any, values: Any, width: int, block: int, out_width: int, out_type: Any) -> Any:
    """Integers of `width` bits, `block` of them at a time, as bits times a matrix over F2, as integers again."""
    values = np.asarray(values, np.uint32)
    blocks = values.reshape(-1, block)
    factor = matrix.T.astype(np.float32)
    parts = []
    for start in range(0, len(blocks), 1 << 14):  # sums of at most 224 ones are exact
        part = blocks[start:start + (1 << 14), :, None] >> np.arange(width, dtype=np.uint32) & 1
        bits = (part.reshape(len(part), -1).astype(np.float32) @ factor).astype(np.uint32) & 1
        parts.append((bits.reshape(len(part), -1, out_width) << np.arange(out_width, dtype=np.uint32)).sum(2))
    out = np.concatenate(parts) if parts else np.zeros((0,))
    return out.astype(out_type).reshape(*values.shape[:-1], values.shape[-1] // block * (len(matrix) // out_width))


@cache
def pairs(dt: DType) -> Pairs:
    """The order of a type's codes: that of its floats, where f16 has their exponents, else that of unsigned integers.
    Raises ValueError for a type of more than 8 bits."""
    if dt.bits > 8:
        raise ValueError(f"pairs are of types of at most 8 bits, not {dt}")
    if _fits(dt):
        low = 10 - dt.mantissa_bits
        places: Sequence[tuple[int, ...]] = [(*range(low, low + dt.bits - 1), 15)]
        text = _FLOATS[dt.exponent_bits, dt.mantissa_bits]
    else:
        offsets, text = _INTEGERS[dt.bits]
        places = [tuple(range(o, o + dt.bits)) for o in offsets]
    steps = tuple(tuple(tuple(map(int, term.split(":"))) for term in step.split("^")) for step in text.split())
    return Pairs(dt.bits, tuple(places), steps)  # type: ignore[arg-type]


def _fits(dt: DType) -> bool:
    return dt.kind == "float" and dt.exponent_bits <= 5


def exponents(dt: DType) -> tuple[int, ...] | None:
    """For each class of pairs, n such that 2**n times the half, as f16, is the number; None where that is not so."""
    if _fits(dt):
        return (15 - dt.bias,)
    return tuple(24 - place[0] for place in pairs(dt).places) if dt.kind == "uint" else None


@cache
def representable(dt: DType) -> Any:
    """bool [2**bits]: whether a code's number is finite as f16 and what its pair stands for."""
    values, codes = codec.values_of(dt), np.arange(1 << dt.bits)
    with np.errstate(all="ignore"):
        finite = np.isfinite(values.astype(np.float16))
        if not _fits(dt):
            return finite
        halves = sum((codes >> i & 1) << place for i, place in enumerate(pairs(dt).place(0)))
        stands = np.asarray(halves, np.uint16).view(np.float16).astype(np.float64) * 2.0 ** (15 - dt.bias)
        return finite & (stands == values)
