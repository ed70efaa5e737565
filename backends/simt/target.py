"""What the SIMT half of the compiler must know about a machine."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tilelang.backends.simt.group_products import choose_group
from tilelang.backends.simt.instructions import GroupRow, MmaRow, choose, in_words, scaled_rows
from tilelang.ir.core import Op
from tilelang.ir.reduction import DOTS
from tilelang.layouts import Ports


@dataclass(frozen=True)
class SimtTarget:
    """A machine of warps of `warp` lanes. `shared_bytes` is the largest shared memory of a block, `ports` how it
    serves requests; `subnormals` says that its products of f16 take subnormal numbers for what they are,
    `word_operands` that they take their operands as words, too. It may have
    products of groups of warps (`group_mma`),
    loads that transpose (`transposed.py`), accesses that check ranges (`window.py`) and units that copy `dma` bytes
    for each lane (`dma.py`); `async_copy` says that pipelined loops copy without registers. `dies` says how many
    chips, each with a cache of its own, take a grid's programs in turn, and of how many neighbours each is to have a
    run. `turns` are the warps of a program of which one half may multiply
    while the other moves data (`schedule.py`), 0 where there are no such schedules; `multiplied` is what one of its
    vector units multiplies in a cycle, in numbers by their bits. Where `two_f32`, one instruction
    adds or multiplies two f32; where `ternary`, one is any function of the bits of three words; where `halves`, one
    shifts, or multiplies and adds, both halves of a word; where `bulk`, one thread may copy blocks (`bulk.py`); where
    `overlap`, a kernel may begin before the one before it has ended (`overlap.py`); where `clusters`, programs of a
    cluster run together and reach each other's shared memory; where `multicast`, they copy blocks for each other
    (`multicast.py`); where `counts_bits`, products of bits are instructions (after sm_90 an assembler makes eight
    products of bytes of each). Lanes that are one of `swaps` apart exchange values by one instruction of the vector
    unit. `registers` are the most a thread may have, where tiles are set aside for want of them (`aside.py`)."""

    name: str
    arch: int
    warp: int
    shared_bytes: int
    ports: Ports
    mma: tuple[MmaRow, ...]
    async_copy: bool
    ldmatrix: bool
    stmatrix: bool = False
    native_casts: frozenset[tuple[str, str]] = frozenset()
    half_atomics: ClassVar[bool] = True  # of the preludes
    transposed_loads: bool = False
    subnormals: bool = True
    windows: bool = False
    dma: int = 0
    dies: tuple[int, int] = (1, 1)
    word_operands: bool = False
    turns: int = 0
    multiplied: int = 0
    two_f32: bool = False
    ternary: bool = False
    halves: bool = False
    bulk: bool = False
    overlap: bool = False
    clusters: bool = False
    multicast: bool = False
    counts_bits: bool = False
    swaps: frozenset[int] = frozenset()
    group_mma: tuple[GroupRow, ...] = ()
    registers: int = 0

    def fraction(self, op: Op) -> int:
        """How many bits behind the point sums of a `dot` keep, by the instruction that keeps the fewest."""
        a, b, acc = (v.dtype for v in (*op.operands[:2], op.result))
        rows = choose(self.mma, a, b, acc), choose_group(self.group_mma, a, b, acc)
        return min([row.fraction for row in rows if row and row.fraction], default=acc.mantissa_bits)

    def rows(self, op: Op) -> tuple[tuple[MmaRow, ...], tuple[GroupRow, ...]]:
        """The instructions among which a product chooses, of one warp and of several. In shared memory bits are words:
        a `dot` of u1 has none of several."""
        if op.name == "dot_bits":
            return (tuple(in_words(row) for row in self.mma if row.a == "u1"),
                    tuple(in_words(row) for row in self.group_mma if row.a == "u1"))
        return self.mma, tuple(row for row in self.group_mma if row.a != "u1")

    def group_row(self, op: Op) -> GroupRow | None:
        """The instruction of several warps for just the types of a product, or the one that it names."""
        a, b = op.operands[:2]
        return choose_group(self.rows(op)[1], a.dtype, b.dtype, op.result.dtype, op.attrs["instruction"])

    def performs(self, op: Op) -> bool:
        """Whether there is an instruction for an operation that `decompose` would expand."""
        if op.name != "dot_scaled":
            return op.name in DOTS
        a, b, *scales = op.operands[:4]
        return {v.dtype.name for v in scales} == {"e8m0"} and \
            bool(scaled_rows(self.mma, a.dtype, b.dtype, a.shape[-1], a.shape[-1] // scales[0].shape[-1]))
