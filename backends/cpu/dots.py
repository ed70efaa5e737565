"""How `dot` runs on a CPU: one row per multiply-accumulate instruction, and the register blocking it uses."""
from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from tilelang.ir.codec import holds
from tilelang.ir.core import Op
from tilelang.ir.dtypes import DType, dtype
from tilelang.ir.reduction import columns
from tilelang.layouts import SharedLayout


@dataclass(frozen=True)
class DotRow:
    """acc[n] += sum over a group of `group` consecutive k of a[k] * b[k, n].

    `a`, `b`, `acc` are dtypes in scratch memory; `feature` is what the host must have; `bias` is added to every
    element of `a` beforehand (the instruction takes unsigned bytes) and taken off the accumulator again. `spelling` is
    what LLVM calls an instruction of groups on registers of 32 and of 64 bytes; unless it `adds`, acc is added to
    what it gives. What it computes is `DotGroups`.
    """

    name: str
    a: str
    b: str
    acc: str
    group: int = 1
    feature: str = ""
    bias: int = 0
    spelling: tuple[str, str] = ("", "")
    adds: bool = False


_VPDPBUSD = "llvm.x86.avx512.vpdpbusd.256", "llvm.x86.avx512.vpdpbusd.512"
_VDPBF16PS = "llvm.x86.avx512bf16.dpbf16ps.256", "llvm.x86.avx512bf16.dpbf16ps.512"
ROWS = (
    DotRow("vdpbf16ps", "bf16", "bf16", "f32", 2, "bf16", 0, _VDPBF16PS, adds=True),
    DotRow("fma f32", "f32", "f32", "f32"),
    DotRow("fma f64", "f64", "f64", "f64"),
    DotRow("vpdpbusd", "u8", "i8", "i32", 4, "vnni", 0, _VPDPBUSD, adds=True),
    DotRow("vpdpbusd", "u8", "i8", "i32", 4, "vnni", 128, _VPDPBUSD, adds=True),
    DotRow("vpmaddwd", "i16", "i16", "i32", 2, "avx2", 0, ("llvm.x86.avx2.pmadd.wd", "llvm.x86.avx512.pmaddw.d.512")),
    DotRow("mul i32", "i32", "i32", "i32"),
    DotRow("mul i64", "i64", "i64", "i64"),
)


def choose(a: DType, b: DType, acc: DType, k: int, features: frozenset[str]) -> DotRow:
    """The first row that computes this as `Dot` allows it."""
    for row in ROWS:
        if row.acc != acc.name or k % row.group or (row.feature and row.feature not in features):
            continue
        if row.group == 1 or holds(dtype(row.a), a, row.bias) and holds(dtype(row.b), b):
            return row
    raise AssertionError("the rows of single k take everything")


def of_groups(a: str, b: str, features: frozenset[str]) -> DotRow | None:
    """The first row whose instruction multiplies groups of these operands on such a host."""
    return next((row for row in ROWS if row.group > 1 and (row.a, row.b) == (a, b) and row.feature in features), None)


FEW = 14
"""Rows of a kilobyte and more that the first level of the caches holds beside those of the other operand."""


def few_rows(op: Op, target: Any) -> bool:
    """Whether a `dot` of floats is better made of its operands as memory holds them: packing `b` takes about as long
    as a multiplication by so many rows, fewer where an instruction multiplies groups. With 16 registers it takes as
    long as many more where `b` is packed by columns, which is transposing it; sums of long products along the columns
    are as fast as those of packed operands."""
    a, b = op.operands[:2]
    group = choose(a.dtype, b.dtype, op.attrs["dtype"], a.shape[-1], target.features).group
    turned = columns(b) is not None
    along = a.shape[-1] if turned else b.shape[-1]
    rows = a.shape[-2] * group
    most = FEW if turned and target.registers == 16 and along >= 256 else 3 * target.registers // 8
    return op.attrs["dtype"].kind == "float" and rows <= most and along >= 16


@dataclass(frozen=True)
class Blocking:
    """Register block of `rows` x (`vectors` x `lanes`) accumulators. An iteration of its loop does `steps` of k (or
    groups), fewer where that does not divide; `fetches` says whether it asks for what the next block reads."""

    rows: int
    vectors: int
    lanes: int
    steps: int = 1
    fetches: bool = False

    def within(self, depth: int) -> Blocking:
        """The same for so many k (or groups)."""
        return replace(self, steps=math.gcd(self.steps, depth))

    @property
    def columns(self) -> int:
        return self.vectors * self.lanes


def blocking(row: DotRow, target: Any) -> Blocking:
    """Fills the register file: rows * vectors accumulators, one row of `b`, and room for `a`. With 16 registers a step
    is as short as six cycles: several share what the loop itself takes, and so little is under way at a time that a
    block would wait for its first loads."""
    lanes = target.vector_bytes // dtype(row.acc).storage.itemsize
    return Blocking(12, 2, lanes) if target.registers >= 32 else Blocking(6, 2, lanes, 4, True)


def a_layout(shape: tuple[int, ...], size: int) -> SharedLayout:
    """Row-major with padded rows, so that the rows of one register block do not share a cache set."""
    k = shape[-1]
    row = -(-k * size // 64) * 64
    row += 64 if row % 256 == 0 else 0
    return _batched(shape, (((shape[-2], row // size),), ((k, 1),)), shape[-2] * row // size)


def b_layout(shape: tuple[int, ...], columns: int, group: int) -> SharedLayout:
    """Panels of `columns` columns, each stored k after k (in groups). One more k between them keeps the lines that a
    row of `b` is packed into, one in each panel, out of a few cache sets."""
    k, n = shape[-2:]
    panels, size = -(-n // columns), (k + group) * columns
    rows = ((k // group, columns * group), (group, 1)) if group > 1 else ((k, columns),)
    return _batched(shape, (rows, ((panels, size), (columns, group))), panels * size)


def _batched(shape: tuple[int, ...], matrix: tuple[Any, ...], size: int) -> SharedLayout:
    dims: list[Any] = []
    for extent in reversed(shape[:-2]):
        dims.insert(0, ((extent, size),))
        size *= extent
    return SharedLayout((*dims, *matrix))
