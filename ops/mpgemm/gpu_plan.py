"""How a product with quantised weights runs on a GPU, by a model of its cost.

| decomposition | a program has | its warps share | another kernel |
|---|---|---|---|
| dequant_mma | rows of four or eight blocks of W, a block of x | the rows | |
| the same, shared | as many steps as any other, block after block | the rows | adds up parts of blocks |
| dequant_gemv | rows of one block of W, as many rows of x as an instruction takes | the columns | |
| bitplane_popc | rows of four or eight blocks of W, a block of x | the rows | |

The first ones multiply the same words by matrix instructions, the last one planes of bits. A product of few rows takes
as long as its weights need to come from memory, if enough programs ask for them, and each kernel that must wait for
another one costs as much as some hundred thousand weights.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from tilelang.errors import TargetError
from tilelang.ops.streamk import BANDWIDTH, CACHE, LAUNCH, OF_ONE, PROCESSORS

ISSUE = 6.5
"""Instructions of warps that it starts in one."""
BLOCK, COLUMNS = 200.0, 32.0
"""Instructions of a warp for a block of 4096 weights, and for every eight rows of x that they are multiplied by."""
COUNT = 8.0
"""Turns of a warp's matrix unit that 16 x 256 bits times 8 columns take (4992 TOPS in NVIDIA's A100 whitepaper); half
of them where four warps multiply together, as of other types (H100's whitepaper has none of bits)."""
FOLD = 28.0
"""Instructions of a warp that scale sums of a group, 16 x 8 of them."""
SHARED = 32768
"""Bytes of words and x that one iteration of a program may take: more than one of them fit at once."""
LEAST = 4
"""Steps of a program that shares blocks with others."""
DECOMPOSITIONS = ("dequant_mma", "dequant_gemv")


@dataclass(frozen=True)
class Shape:
    """A product: rows of x and of W; blocks of W along its columns and rows, bytes of one and how many of them share a
    scale; columns of a block, rows of x that an instruction takes, and that a program's sums have room for; the most
    warps of such a program."""

    m: int
    n: int
    deep: int
    high: int
    bytes: int
    group: int
    bk: int
    few: int
    most: int
    warps: int


@dataclass(frozen=True)
class GpuPlan:
    """`rows` of x and `warps` of a program; so many `programs` share the steps of all blocks evenly (0: each block has
    one of its own). `nanoseconds` is what the model expects of an H200."""

    decomposition: str
    rows: int
    warps: int
    programs: int
    nanoseconds: float


@lru_cache(maxsize=4096)
def plan(shape: Shape, decomposition: str | None = None) -> GpuPlan:
    """The cheapest plan, or the cheapest of a decomposition. Raises ValueError for unknown names and TargetError where
    that one has no kernel for the product."""
    if decomposition not in (None, *DECOMPOSITIONS):
        raise ValueError(f"decomposition must be one of {', '.join(DECOMPOSITIONS)}, got {decomposition!r}")
    found = [p for p in (*_gemv(shape), *_mma(shape)) if decomposition in (None, p.decomposition)]
    if not found:
        raise TargetError(f"`{decomposition}` has no kernel for this product", got=str(shape),
                          needs="two blocks of columns or more, and groups of a power of two of them",
                          try_='use decomposition="dequant_mma"')
    return min(found, key=lambda p: p.nanoseconds)


def _mma(s: Shape) -> Iterator[GpuPlan]:
    rows = min(s.most, -(-s.m // 16) * 16)
    for warps in range(4, s.warps + 1, 4):
        tiles = -(-s.m // rows) * -(-s.high // warps)
        yield GpuPlan("dequant_mma", rows, warps, 0, _time(s, tiles, s.deep, warps, rows))
        for resident in (1, 2):
            programs = min(resident * PROCESSORS, tiles * s.deep // LEAST)
            if programs > 1:
                parts = 2 * min(2 * programs, programs + tiles) * rows * warps * s.n // s.high * 4 / BANDWIDTH
                each = -(-tiles * s.deep // programs)
                yield GpuPlan("dequant_mma", rows, warps, programs,
                              LAUNCH + parts + _time(s, programs, each, warps, rows))


def _gemv(s: Shape) -> Iterator[GpuPlan]:
    for warps in (2, 4, 8):
        fits = warps * (s.bytes + s.few * s.bk * 2) <= SHARED
        if warps <= s.deep and fits and (warps % s.group == 0 or s.group % warps == 0):
            programs = -(-s.m // s.few) * s.high
            yield GpuPlan("dequant_gemv", s.few, warps, 0, _time(s, programs, -(-s.deep // warps), warps, s.few))


def _time(s: Shape, programs: int, steps: int, warps: int, rows: int) -> float:
    """Of programs whose warps multiply a block each in every step, by the same rows of x or columns of their own."""
    return _longest(programs, s.deep * s.high * s.bytes, programs * steps * (warps * s.bytes + rows * s.bk * 2),
                    steps * warps * (BLOCK + COLUMNS * (rows // 8)))


def _longest(programs: int, weights: float, read: float, issued: float) -> float:
    """What memory takes that weights come from, the cache that everything is read from, and processors in turns, of
    programs that have so many instructions."""
    busy = min(programs, PROCESSORS)
    return max(weights / min(BANDWIDTH, busy * OF_ONE), read / min(CACHE, busy * OF_ONE),
               -(-programs // PROCESSORS) * issued / ISSUE)


@dataclass(frozen=True)
class Bits:
    """A product by planes of bits: rows of x and of W, planes of each; `groups` of columns, each of so many `steps` of
    so many `columns`; warps that multiply `together`."""

    m: int
    n: int
    xbits: int
    bits: int
    groups: int
    steps: int
    columns: int
    together: int = 1

    @property
    def turns(self) -> float:
        """`COUNT`, by how many warps multiply together."""
        return COUNT / 2 if self.together > 1 else COUNT

    @property
    def high(self) -> int:
        """Rows of W that a warp has."""
        return max(4096 // self.columns, 16)

    def registers(self, rows: int) -> int:
        """That a thread takes for so many rows of x: sums three times, words of W and of x."""
        return rows // 8 * (12 * self.high // 16 + self.xbits * self.columns // 128) + \
            self.bits * self.high * self.columns // 1024


@lru_cache(maxsize=4096)
def bit_plan(s: Bits) -> GpuPlan:
    """The cheapest plan for such a product."""
    found, area = list[GpuPlan](), s.high * s.columns / 8
    for warps in (4, 8):
        for rows in (8, 16, 32, 64):
            if s.registers(rows) <= 200:
                programs, eights = -(-s.m // rows) * -(-s.n // (warps * s.high)), rows // 8
                steps, sums = s.groups * s.steps, s.high // 16 * eights
                issued = steps * (s.bits * s.xbits * s.turns * area * eights / 512 + 4 * (s.bits + s.xbits - 1) * sums
                                  + 2 * (s.bits + s.xbits * eights) + 40) + s.groups * FOLD * sums
                read = programs * steps * (warps * area * s.bits + rows * s.columns / 8 * s.xbits)
                weights = s.n * steps * s.columns * s.bits / 8
                time = _longest(programs, weights, read, warps * issued)
                found.append(GpuPlan("bitplane_popc", rows, warps, 0, time))
    return min(found, key=lambda p: p.nanoseconds)
