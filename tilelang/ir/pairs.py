"""Numbers of at most 8 bits in 32-bit words, in an order from which few instructions make registers of f16.

A *pair* is one word with two codes whose bits stand where f16 wants them, one in each half. The words of a block are
such that every pair is made of a few of them under one mask, in one of two ways (`ORDERS`): "pairs" are the exclusive
or of one, two or three shifted words, one `lop3` and the shifts, which pairs share; of "sums" both halves are shifted
on their own and added up, for which AMD's processors have instructions: a product by a sum of powers of two is several
shifts at once. `cheapest` says which takes fewer instructions on a machine. As f16 numbers the halves are the codes'
values by a power of two, exactly: unsigned integers as subnormal numbers, floats with the exponent's bias left to
correct (FP6-LLM, arXiv 2401.14112).

Which bit of a block's words holds what follows from the steps: without carries they are an invertible matrix over F2,
and packing multiplies by its inverse. What a carry depends on never depends on the bit it goes into, so that packing
again what is still wrong ends. The steps of each format were found by annealing, for the fewest instructions.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

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
_SUMS = {  # (exponent bits, mantissa bits): steps; "s": the sign is kept
    (2, 0): (
        "2:3s+1:-13 1:-10+2:0 2:0 2:-3+0:-6 1:-4 1:-1 1:2s 0:-10+0:-7+0:-13+0:-1 2:-10+2:-6 2:-7 0:-9 0:-2 "
        "0:0 2:-9 0:-3+0:-11 1:-7+1:-10+1:-9"),
    (2, 1): "0:-1+0:-15+0:-14 0:-4+0:-14 0:3s 0:-15+0:-7",
    (3, 0): "0:-1+0:-8 0:0 0:-5+0:-14+0:-15 0:-12+0:-2+0:-14",
    (2, 2): (
        "0:3s 1:-2+1:-7 2:-6 2:-1+2:-10 0:-15+0:-1 3:-1+3:-9+3:-10 4:-1+4:-15 3:3s 2:2s 3:-7 4:-7+2:-9+4:-11 "
        "1:-1+1:-13 1:-3+0:-9+1:-10 0:-5+0:-14 1:0+3:-5+4:-3+4:-11 4:3s"),
    (3, 1): (
        "0:2s 0:-8 0:-2+0:-9 1:2s 1:-8 1:-2+1:-9 2:2s 2:-8 2:-2+2:-9 3:2s 3:-8 3:-2+3:-9 4:2s 4:-8 4:-2+4:-9 "
        "0:-4+1:-5+2:-6+3:-7+4:-10"),
    (4, 0): (
        "3:0 4:-1+4:-10 3:-10 4:-5+4:-11 4:0+0:-7 0:-1 2:-3+3:-1+2:-6 1:-7+1:-8+1:-13 1:0 2:-10 0:-10+1:-6 "
        "0:0+4:-10 2:1s 1:-11+1:-1 0:-4+2:-9 3:-11+3:-4"),
    (2, 3): "2:0 1:-7+2:-2+2:-9 0:3+2:-9+2:-3 1:5+0:-15+1:-5 1:0 2:-8+2:-1+2:-12 0:0 0:-5+0:-14",
    (3, 2): "0:-1 2:5+1:-10 1:-5+0:-10+0:-2+0:-11 2:0 1:0 2:-8 1:5+0:0+2:-5 0:-6+0:-14",
    (4, 1): "0:0+2:-5 1:0+0:-5+0:-11+0:-14 2:-10+2:-1+2:-13 1:-5 2:0 0:-9 0:-1+0:-9 1:-9+1:-1+1:-10",
    (2, 4): (
        "0:3s 0:-13+0:-3 1:3s 1:-13+1:-3 2:3s 2:-13+2:-3 3:3s 3:-13+3:-3 4:3s 4:-13+4:-3 5:3s 5:-13+5:-3 6:3s "
        "6:-13+6:-3 0:-10+1:-8+2:-6+3:-15 4:-10+5:-8+6:-6+3:-14"),
    (3, 3): (
        "0:2s 0:-13+0:-4 1:2s 1:-13+1:-4 2:2s 2:-13+2:-4 3:2s 3:-13+3:-4 4:2s 4:-13+4:-4 5:2s 5:-13+5:-4 6:2s "
        "6:-13+6:-4 0:-11+1:-9+2:-7+3:-15 4:-11+5:-9+6:-7+3:-14"),
    (4, 2): (
        "0:1s 0:-13+0:-5 1:1s 1:-13+1:-5 2:1s 2:-13+2:-5 3:1s 3:-13+3:-5 4:1s 4:-13+4:-5 5:1s 5:-13+5:-5 6:1s "
        "6:-13+6:-5 0:-12+1:-10+2:-8+3:-15 4:-12+5:-10+6:-8+3:-14"),
    (2, 5): "0:-1+0:-8+0:-10 0:2s",
    (3, 4): "0:2s 0:-5+0:-15",
    (4, 3): "0:0 0:-1+0:-8+0:-15",
}


ORDERS = "pairs", "sums"
ODD_BYTES = 0x00FF00FF
"""Of a word shifted by 8: its odd bytes, which one instruction of GPUs takes out without a mask."""


class Term(NamedTuple):
    """A word by its number, shifted: to the right where `shift` is positive, `signed` halves then keep their sign."""

    word: int
    shift: int
    signed: bool = False


@dataclass(frozen=True)
class Pairs:
    """How codes of `bits` bits stand in blocks of `words` words.

    `places[c][i]` is the bit of a half in which bit i of a code of class c stands; pair j has class j % len(places).
    `steps[j]` lists the terms whose exclusive or is pair j; where `sums`, both halves are shifted on their own and
    added up, modulo 2**16. Code 2 * j + h of a block is half h of pair j.
    """

    bits: int
    places: tuple[tuple[int, ...], ...]
    steps: tuple[tuple[Term, ...], ...]
    sums: bool = False

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
        return frozenset(i for i, terms in enumerate(self.steps) if not self.sums
                         and len(terms) == 1 and terms[0].shift == 8 and not self.mask(i) & ~ODD_BYTES)

    @cached_property
    def beneath(self) -> dict[int, int]:
        """Pairs that fill odd bytes together with one other, beneath them: as numbers, bytes with both codes are the
        upper code and a power of two times the lower one, so that sums need no mask for the upper one."""
        return {i: j for i in self.in_odd_bytes for j in self.in_odd_bytes if self.steps[i] == self.steps[j]
                and self.mask(i) > self.mask(j) and self.mask(i) ^ self.mask(j) == ODD_BYTES}

    def factors(self, pair: int) -> dict[int, int]:
        """Of a sum: what it has of each word that it has shifted to the left, or as it is."""
        out: dict[int, int] = {}
        for word, shift, _ in self.steps[pair]:
            if shift <= 0:
                out[word] = out.get(word, 0) + (1 << -shift)
        return out

    def shifted(self, pair: int) -> list[Term]:
        """Of a sum: its terms that are shifted to the right."""
        return [term for term in self.steps[pair] if term.shift > 0]

    def instructions(self, ternary: bool, halves: bool) -> int:
        """How many a block takes: `ternary` machines have one for any function of three words, `halves` ones multiply
        and add, or shift, both halves of a word by one; others take about four for that."""
        if self.sums:
            count = len({term for pair in range(len(self.steps)) for term in self.shifted(pair)})
            for pair in range(len(self.steps)):
                products = [factor for factor in self.factors(pair).values() if factor > 1]
                terms = len(self.factors(pair)) + len(self.shifted(pair))
                count += max(len(products), terms - 1)
            return count * (1 if halves else 4) + len(self.steps)
        shifts = {term for terms in self.steps for term in terms if term.shift}
        whole = sum(self.mask(pair) == ODD_BYTES for pair in self.in_odd_bytes) + len(self.beneath)
        return len(shifts) - whole + sum(-(-len(terms) // 2) if ternary else len(terms) for terms in self.steps)

    @cached_property
    def matrix(self) -> Any:
        """u8 array [bits of the codes of a block, bits of its words] over F2: what `unpack` does, but for carries."""
        out = np.zeros((self.elements, self.bits, 32 * self.words), np.uint8)
        for pair, terms in enumerate(self.steps):
            for half in (0, 1):
                for bit, place in enumerate(self.place(pair)):
                    for at in _sources(terms, place + 16 * half, self.sums):
                        out[2 * pair + half, bit, at] ^= 1
        return out.reshape(-1, 32 * self.words)

    @cached_property
    def carries(self) -> Any:
        """bool array like `matrix`: the bits of words on which carries into a bit of a code depend. They come from
        lower places in which two bits, or one and a carry, are added up."""
        out = np.zeros((self.elements, self.bits, 32 * self.words), bool)
        for pair, terms in enumerate(self.steps if self.sums else ()):
            for half in (0, 1):
                known: set[int] = set()
                for place in range(16):
                    if place in self.place(pair):
                        out[2 * pair + half, self.place(pair).index(place), list(known)] = True
                    added = _sources(terms, place + 16 * half, True)
                    known = known.union(added) if len(added) + bool(known) > 1 else set()
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

    @cached_property
    def alone(self) -> Any:
        """u32 [elements, 2**bits, words]: the words of a block in which all codes but one are zero."""
        column = self.inverse.T.reshape(self.elements, self.bits, self.words, 32).astype(np.uint32)
        ones = (column << np.arange(32, dtype=np.uint32)).sum(-1, dtype=np.uint32)
        out = np.zeros((self.elements, 1, self.words), np.uint32)
        for bit in range(self.bits):
            out = np.concatenate([out, out ^ ones[:, bit:bit + 1]], 1)
        return out

    def unpack(self, words: Any) -> Any:
        """u8 codes [..., n * elements] of words [..., n * words]."""
        words = np.asarray(words, np.uint32)
        blocks = words.reshape(-1, self.words)
        out = np.zeros((len(blocks), self.elements), np.uint8)
        for pair in range(len(self.steps)):
            made = self._sum(blocks, pair) if self.sums else self._exclusive(blocks, pair)
            for place, bit, size in self.fields(pair):
                for half in (0, 1):
                    field = made >> np.uint32(place + 16 * half) & np.uint32((1 << size) - 1)
                    out[:, 2 * pair + half] |= (field << np.uint32(bit)).astype(np.uint8)
        return out.reshape(*words.shape[:-1], words.shape[-1] // self.words * self.elements)

    def _exclusive(self, blocks: Any, pair: int) -> Any:
        terms = [blocks[:, word] >> np.uint32(shift) if shift > 0 else blocks[:, word] << np.uint32(-shift)
                 for word, shift, _ in self.steps[pair]]
        return np.bitwise_xor.reduce(terms)

    def _sum(self, blocks: Any, pair: int) -> Any:
        halves = np.ascontiguousarray(blocks.T).view(np.uint16)
        out = np.zeros(halves.shape[1], np.uint16)
        for word, factor in self.factors(pair).items():
            out += halves[word] * np.uint16(factor)
        for word, shift, signed in self.shifted(pair):
            out += (halves[word].view(np.int16) >> shift).view(np.uint16) if signed else halves[word] >> shift
        return out.view(np.uint32)

    def pack(self, codes: Any) -> Any:
        """u32 words [..., n * words] of codes [..., n * elements]."""
        codes = np.asarray(codes, np.uint8)
        want = codes.reshape(-1, self.elements)
        held = self._packed(want)
        wrong = np.arange(len(want) if self.sums else 0)
        while len(wrong):  # each time more of what carries depend on is right
            rest = self.unpack(held[wrong]) ^ want[wrong]
            off = rest.any(1)
            wrong, rest = wrong[off], rest[off]
            held[wrong] ^= self._packed(rest)
        return held.reshape(*codes.shape[:-1], codes.shape[-1] // self.elements * self.words)

    def _packed(self, codes: Any) -> Any:
        """u32 [blocks, words] of codes [blocks, elements], without carries."""
        out = np.zeros((len(codes), self.words), np.uint32)
        for i, words in enumerate(self.alone):
            out ^= words[codes[:, i]]
        return out


def _sources(terms: Sequence[Term], place: int, halves: bool) -> list[int]:
    """The bits of a block's words that terms bring to a bit of a word; `halves` are shifted on their own."""
    out = []
    for word, shift, signed in terms:
        at, low, high = place + shift, 16 * (place // 16) if halves else 0, 16 * (place // 16) + 16 if halves else 32
        if signed:
            at = min(at, high - 1)
        if low <= at < high:
            out.append(32 * word + at)
    return out


@cache
def pairs(dt: DType, order: str = "pairs") -> Pairs:
    """The order of a type's codes: that of its floats, where f16 has their exponents, else that of unsigned integers.
    Raises ValueError for a type of more than 8 bits, or without sums."""
    if dt.bits > 8:
        raise ValueError(f"pairs are of types of at most 8 bits, not {dt}")
    if order not in orders(dt):
        raise ValueError(f"{dt} has no order {order!r}, only {', '.join(orders(dt))}")
    if _fits(dt):
        low = 10 - dt.mantissa_bits
        places: Sequence[tuple[int, ...]] = [(*range(low, low + dt.bits - 1), 15)]
        text = (_FLOATS if order == "pairs" else _SUMS)[dt.exponent_bits, dt.mantissa_bits]
    else:
        offsets, text = _INTEGERS[dt.bits]
        places = [tuple(range(o, o + dt.bits)) for o in offsets]
    steps = tuple(tuple(map(_term, step.replace("+", "^").split("^"))) for step in text.split())
    return Pairs(dt.bits, tuple(places), steps, order == "sums")


def _term(text: str) -> Term:
    word, shift = text.removesuffix("s").split(":")
    return Term(int(word), int(shift), text.endswith("s"))


def orders(dt: DType) -> tuple[str, ...]:
    """Those in which a type of at most 8 bits can be packed."""
    return ORDERS if _fits(dt) and (dt.exponent_bits, dt.mantissa_bits) in _SUMS else ORDERS[:1]


def cheapest(dt: DType, ternary: bool, halves: bool) -> str:
    """The order of a type that takes the fewest instructions on a machine (`Pairs.instructions`)."""
    return min(orders(dt), key=lambda order: pairs(dt, order).instructions(ternary, halves))


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
