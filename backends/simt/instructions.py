"""The form of a row in a target's table of matrix instructions."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeVar

from tilelang.ir.codec import holds
from tilelang.ir.dtypes import DType, dtype
from tilelang.layouts import LayoutError, RegisterLayout, SharedLayout, local, spatial


@dataclass(frozen=True)
class MmaRow:
    """acc[m, n] += a[m, k] @ b[k, n] by one warp.

    `name` spells it in the prelude; `a`, `b`, `acc` are dtypes in registers and `a_atom`, `b_atom`, `acc_atom` say
    which lane holds which element in which register: the row is read by inference, selection and printing. `archs`
    bounds the architectures that have it. `scales` are the same of the powers of two, one for each run of neighbours
    along k, by which the instruction multiplies a and b where it is asked to. Sums keep `fraction` bits behind the
    point, where they are fewer than acc has; no emulator knows of it, but bounds of errors do. Where it is `cut`, the
    prelude multiplies pieces of the numbers by other instructions, and makes the pieces of a fragment once.
    """

    name: str
    a: str
    b: str
    acc: str
    a_atom: RegisterLayout
    b_atom: RegisterLayout
    acc_atom: RegisterLayout
    archs: tuple[int, int]
    scales: tuple[RegisterLayout, RegisterLayout] | None = None
    fraction: int | None = None
    cut: bool = False

    @property
    def m(self) -> int:
        return self.acc_atom.shape[0]

    @property
    def n(self) -> int:
        return self.acc_atom.shape[1]

    @property
    def k(self) -> int:
        return self.a_atom.shape[1]

    @property
    def cost(self) -> int:
        """In bytes of shared memory that could be moved, beside other instructions of the same types: the cycle in
        which one of four vector units issues it, of 128 bytes, and its products of numbers, 2048 a cycle (gfx950,
        f16)."""
        return 128 + self.m * self.n * self.k // 16


@dataclass(frozen=True)
class GroupRow:
    """One instruction of a group of warps that reads `b` from shared memory, and `a` from there or from registers.

    `name` calls it in the prelude; `a`, `b`, `acc`, `a_atom` and `fraction` are as in `MmaRow`; `acc_atom` is that of
    the fewest columns, of which an instruction has one of `columns`. Operands in shared memory have runs of 128, 64 or
    32 bytes along k or, where it `transposes`, along the other dimension. Where it has `pieces`, it is that many
    instructions of `of`, one for each of the numbers, of the type of `b`, whose sum is a number of `a`.
    """

    name: str
    a: str
    b: str
    acc: str
    a_atom: RegisterLayout
    acc_atom: RegisterLayout
    columns: tuple[int, ...]
    transposes: bool
    warps: int
    archs: tuple[int, int]
    fraction: int | None = None
    pieces: int = 0
    of: str = ""

    @property
    def m(self) -> int:
        return self.acc_atom.shape[0]

    @property
    def k(self) -> int:
        return self.a_atom.shape[1]


Row = TypeVar("Row", MmaRow, GroupRow)


@dataclass(frozen=True)
class DotPlan:
    """A dot of [*batch, M, K] x [*batch, K, N] by `row`, with `wm` x `wn` warps (or groups of them) over the result.

    Layouts cover at least the tiles; an operand in a shared layout stays in memory. Where a plan is `turned` the
    instructions compute the transposed product, of b transposed and a transposed.
    """

    row: MmaRow | GroupRow
    wm: int
    wn: int
    acc: RegisterLayout
    a: RegisterLayout | SharedLayout
    b: RegisterLayout | SharedLayout
    scales: tuple[RegisterLayout, ...] = ()

    @property
    def operands(self) -> tuple[RegisterLayout | SharedLayout, ...]:
        """The layouts of a, b, and their scales where the product has them."""
        return self.a, self.b, *self.scales

    @property
    def turned(self) -> DotPlan:
        """The plan of the transposed product, turned around."""
        order = [*range(self.acc.rank - 2), self.acc.rank - 1, self.acc.rank - 2]
        return DotPlan(self.row, self.wn, self.wm, self.acc.permute(order), self.b.permute(order),
                       self.a.permute(order), tuple(f.permute(order) for f in reversed(self.scales)))


def interleaved(row: MmaRow) -> MmaRow | None:
    """An instruction whose k is in such an order that lanes hold it in runs as short as those of its accumulator,
    which can then be an operand of the next product as it is (k may be in any order if it is the same in a and b);
    None for one whose runs are no longer, or that is not square."""
    if row.m != row.n or row.a != row.b:
        return None
    each, run = row.b_atom.contiguous(0), row.acc_atom.contiguous(0)
    if each <= run or each % run:
        return None
    b = local(each // run, 1) * (row.b_atom / local(each, 1)) * local(run, 1)
    return replace(row, a_atom=b.permute((1, 0)), b_atom=b)


def plans(row: MmaRow, m: int, n: int, k: int, warps: int, batch: tuple[int, ...] = (),
          scaled: bool = False) -> list[DotPlan]:
    """The ways to do a product with so many warps, the simplest first: side by side over the result or, where there
    are several, over the first dimension of the batch. Scales fix the order of k."""
    rows, out = [row] if scaled else [row, *filter(None, [interleaved(row)])], list[DotPlan]()
    apart = [w for w in _powers(warps) if w == 1 or batch and batch[0] % w == 0]
    for wb in apart:
        for wm in _powers(warps // wb):
            wn = warps // wb // wm
            out += [plan(r, m, n, k, wm, wn, batch, scaled, wb) for r in rows]
            if row.m == row.n and row.a == row.b:
                out += [plan(r, n, m, k, wn, wm, batch, scaled, wb).turned for r in rows]
    return out


def _powers(most: int) -> list[int]:
    """Of two, up to `most`."""
    return [1 << i for i in range(most.bit_length())]


def plan(row: MmaRow, m: int, n: int, k: int, wm: int, wn: int, batch: tuple[int, ...] = (),
         scaled: bool = False, wb: int = 1) -> DotPlan:
    """The layouts of the three operands, and of their scales. `wb` warps share the first dimension of the batch."""
    def steps(extent: int, unit: int) -> int:
        return -(-extent // unit)
    rm, rn, rk = steps(m, row.m * wm), steps(n, row.n * wn), steps(k, row.k)
    lead = spatial(wb, *(1 for _ in batch[1:])) * local(batch[0] // wb, *batch[1:]) if batch else None

    def batched(f: RegisterLayout) -> RegisterLayout:
        return f if lead is None else lead.concat(f)
    acc = spatial(wm, wn) * local(rm, rn) * row.acc_atom
    def of_a(atom: RegisterLayout) -> RegisterLayout:
        return batched(RegisterLayout(((wm,), ()), (0, -wn), ()) * local(rm, rk) * atom)

    def of_b(atom: RegisterLayout) -> RegisterLayout:
        return batched(RegisterLayout(((), (wn,)), (-wm, 0), ()) * local(rk, rn) * atom)
    scales = (of_a(row.scales[0]), of_b(row.scales[1])) if scaled and row.scales else ()
    return DotPlan(row, wm, wn, batched(acc), of_a(row.a_atom), of_b(row.b_atom), scales)


@cache
def in_words(row: Row) -> Row:
    """An instruction for bits, as one for words u32 of neighbours along k."""
    word = dtype("u32")
    right: dict[str, Any] = {"b_atom": row.b_atom / local(word.bits, 1)} if isinstance(row, MmaRow) else {}
    return replace(row, a=word.name, b=word.name, a_atom=row.a_atom / local(1, word.bits), **right)


def choose(rows: Sequence[MmaRow], a: DType, b: DType, acc: DType, k: int = 0, name: str = "") -> MmaRow | None:
    """The row that computes the product exactly, of pieces where there is no other: that called `name`, else the first
    whose `k` is not more than the product's, else the one that pads it the least."""
    exact = [row for row in rows if row.acc == acc.name and holds(dtype(row.a), a) and holds(dtype(row.b), b)]
    exact = [row for row in exact if not row.cut] or exact
    named = [row for row in exact if row.name == name]
    least = sorted(exact, key=lambda row: row.k * dtype(row.a).bits)
    return next(iter([*named, *(row for row in exact if row.k <= k), *least]), None)


def sizes(rows: Sequence[MmaRow], row: MmaRow, k: int) -> list[MmaRow]:
    """`row`, and of each other size the first of the same types whose `k` is not more than the product's."""
    found = {(row.m, row.n): row}
    for other in rows:
        if (other.a, other.b, other.acc) == (row.a, row.b, row.acc) and other.k <= k:
            found.setdefault((other.m, other.n), other)
    return list(found.values())


def scaled_rows(rows: Sequence[MmaRow], a: DType, b: DType, k: int, block: int) -> list[MmaRow]:
    """The rows that multiply by scales of type e8m0, one for `block` elements along k: those whose `k` is not more
    than the product's, else the one that pads it the least."""
    found = [row for row in rows if row.scales and (row.a, row.b) == (a.name, b.name)
             and row.k == block * row.scales[0].shape[1]]
    return [row for row in found if row.k <= k] or sorted(found, key=lambda row: row.k)[:1]


def grain(row: MmaRow | GroupRow, side: int, warp: int) -> int:
    """The fewest neighbouring rows (`side` 0) or columns (1) of the result such that every register of a warp holds
    numbers of one such block, in the operand of that side as in the sum."""
    sums = row.acc_atom.table()[:warp, :, side]
    own = row.a_atom.table()[:warp, :, 0] if side == 0 else row.b_atom.table()[:warp, :, 1]  # type: ignore[union-attr]
    block = row.acc_atom.shape[side]
    while block % 2 == 0 and all((t // (block // 2) == t[0] // (block // 2)).all() for t in (own, sums)):
        block //= 2
    return block


def divides(layout: RegisterLayout, atom: RegisterLayout) -> bool:
    """Whether an instruction with this operand applies to a tile of this layout."""
    try:
        layout / atom
    except LayoutError:
        return False
    return True
