"""Products of groups of warps with operands in shared memory (NVIDIA's `wgmma`): the layouts they ask for, the ways to
do a `dot` with them, and where each instruction finds its operand.

A matrix lies in panels of rows of 128, 64 or 32 bytes, whose pieces of 16 bytes are permuted by three, two or one bits
of the address above its lowest 7 (PTX ISA 8.7, section 9.7.15.5.1: canonical layouts). The bits are those of the
address itself, so that a buffer begins where the pattern does: `ALIGN` bytes.
"""
from __future__ import annotations

from dataclasses import dataclass

from tilelang.backends.simt.instructions import DotPlan, GroupRow
from tilelang.ir.dtypes import DType, dtype
from tilelang.layouts import LayoutError, RegisterLayout, SharedLayout, Swizzle, local, spatial

ALIGN = 1024
PIECE = 16
"""Bytes that stay together."""


@dataclass(frozen=True)
class Descriptor:
    """How an instruction walks an operand: bytes of a panel's row; from panel to panel (`leading`, where rows run
    along the other dimension than k) and from eight rows to the next eight (`stride`)."""

    width: int
    leading: int
    stride: int
    transposed: bool


def panels(rows: int, columns: int, size: int, run: int, widest: bool = False) -> SharedLayout | None:
    """The layout of a matrix of `rows` with neighbours along its columns, of which an instruction takes `run`; None
    where no panel is as narrow, or not the `widest` one, which several products would agree on."""
    for width in (128, 64, 32):
        per = width // size
        if columns % per or rows % 8:
            continue
        if run % per and widest:
            return None
        if run % per == 0:
            inner = ((columns // per, rows * per), (per, 1)) if columns > per else ((per, 1),)
            bits, base = (width // PIECE).bit_length() - 1, (PIECE // size).bit_length() - 1
            return SharedLayout((((rows, per),), inner), Swizzle(bits, base, 3))
    return None


def descriptor(place: SharedLayout, size: int, along: int) -> Descriptor:
    """What `panels` made, of a matrix whose dimension `along` is k."""
    inner = next(d for d in range(2) if place.dims[d][-1][1] == 1)
    digits = place.dims[inner]
    width = digits[-1][0] * size
    return Descriptor(width, digits[0][1] * size if len(digits) > 1 else width, 8 * width, inner != along)


def choose_group(rows: tuple[GroupRow, ...], a: DType, b: DType, acc: DType, name: str = "") -> GroupRow | None:
    """The row called `name`, or the one of just these types: operands in memory cannot be converted."""
    exact = [row for row in rows if (row.a, row.b, row.acc) == (a.name, b.name, acc.name)]
    return next((row for row in exact if name in ("", row.name)), None)


def group_plans(row: GroupRow, m: int, n: int, k: int, warps: int,
                inner: tuple[int | None, int | None],
                common: tuple[bool, bool] = (False, False)) -> tuple[list[DotPlan], str]:
    """The ways to do a product with `warps` warps, and where there are none the reason. `inner` says of each operand
    along which of its dimensions it is contiguous in shared memory, None where it is in registers; `common`, whether
    other products read it there, too."""
    size = dtype(row.b).storage.itemsize
    if row.pieces and inner[0] is not None:
        return [], f"its left operand, of {row.a}, is cut into pieces in registers"
    if inner[1] is None:
        return [], "its right operand does not come straight from a tensor"
    if not row.transposes and (inner[0] == 0 or inner[1] == 1):
        return [], f"operands of {row.a} are contiguous along k"
    if m % row.m or k % row.k:
        return [], f"{m} rows and {k} steps of k are no multiples of {row.m} and {row.k}"
    if warps % row.warps:
        return [], f"{warps} warps are no groups of {row.warps}"
    out = []
    gm = 1
    while gm <= warps // row.warps:
        gn = warps // row.warps // gm
        out += _plans(row, (m, n, k), (gm, gn), inner, common, size)
        gm *= 2
    out.sort(key=lambda p: -grid_of_groups(p.acc, row)[2])  # wide ones read their left operand less often
    return out, "" if out else f"no {row.m} x {row.columns} of {warps // row.warps} groups make up {m} x {n}"


def _plans(row: GroupRow, shape: tuple[int, int, int], groups: tuple[int, int],
           inner: tuple[int | None, int | None], common: tuple[bool, bool], size: int) -> list[DotPlan]:
    """At most one where the left operand is in memory. In registers each warp may hold any rows: those of its place in
    every instruction, or a run of neighbours, as products of single warps have them."""
    (m, n, k), (gm, gn) = shape, groups
    columns = max((c for c in row.columns if n % (gn * c) == 0), default=0)
    if m % (row.m * gm) or not columns:
        return []
    rm, rn, rk = m // (row.m * gm), n // (columns * gn), k // row.k
    warps, steps = spatial(row.warps, 1), (local(rm, rn), local(rm, rk))
    orders = [lambda of: of * warps, *([lambda of: warps * of] if inner[0] is None and rm > 1 else [])]
    b = panels(n, k, size, k, common[1]) if inner[1] == 0 else panels(k, n, size, columns, common[1])
    b = b.permute((1, 0)) if b is not None and inner[1] == 0 else b
    out = []
    for order in orders:
        acc = spatial(gm, gn) * order(steps[0]) * of_a_warp(row, columns)
        a: RegisterLayout | SharedLayout | None
        if inner[0] is None:
            a = RegisterLayout(((gm,), ()), (0, -gn), ()) * order(steps[1]) * row.a_atom.divide_left(warps)
        else:
            a = panels(m, k, size, k, common[0]) if inner[0] == 1 else panels(k, m, size, row.m, common[0])
            a = a.permute((1, 0)) if a is not None and inner[0] == 0 else a
        if a is not None and b is not None:
            out.append(DotPlan(row, gm, gn, acc, a, b))
    return out


def of_a_warp(row: GroupRow, columns: int) -> RegisterLayout:
    """What each warp holds of the accumulator of an instruction with so many columns."""
    return local(1, columns // row.acc_atom.shape[1]) * row.acc_atom.divide_left(spatial(row.warps, 1))


def grid_of_groups(layout: RegisterLayout, row: GroupRow) -> tuple[int, int, int]:
    """The groups along m and n over an accumulator of `row`, and the columns of each instruction."""
    for columns in reversed(row.columns):
        try:
            rest = layout / of_a_warp(row, columns)
        except LayoutError:
            continue
        gn = rest.reduce([1]).replication
        return rest.num_threads // row.warps // gn, gn, columns
    raise LayoutError(f"{layout} is no accumulator of {row.name}")
