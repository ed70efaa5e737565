"""Marlin's packing of u4 and u8 weights for tensor cores: `W = scale * (code - 2**(bits-1))`, or with zero points.

Source: the permutations of IST-DASLab/marlin and vLLM. Four 16 x 16 tiles (K x N) side by side are one record. Lane i
of 32 takes from each tile rows 2 (i mod 4) + {0, 1, 8, 9} of columns i / 4 + {0, 8}; its numbers are interleaved so
that pairs come out of one shift.
"""
from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from tilelang.ir.dtypes import dtype
from tilelang.ir.packed import Packed
from tilelang.quant.formats.record import Field, Record
from tilelang.quant.formats.state import State, from_words, require, scale_leaf, to_words, transposed, unsigned_codes
from tilelang.quant.nodes import bits_of, dtype_of, leaf_of
from tilelang.quant.tensor import Parameter, QuantTensor

INTERLEAVE = {4: (0, 2, 4, 6, 1, 3, 5, 7), 8: (0, 2, 1, 3)}
GROUPED = np.arange(64).reshape(8, 8).T.reshape(-1)
"""Columns of scales where there are several groups: stored column j is column GROUPED[j] of its 64."""
SINGLE = (2 * np.arange(4)[:, None] + [0, 1, 8, 9, 16, 17, 24, 25]).reshape(-1)
"""The same where one group is all of K, in runs of 32."""


@cache
def record(bits: int) -> Record:
    """Elements in the order (tile, row, column)."""
    lane, tile, block, row = np.ix_(np.arange(32), np.arange(4), np.array([0, 8]), np.array([0, 1, 8, 9]))
    order = (256 * tile + 16 * (2 * (lane % 4) + row) + lane // 4 + block).reshape(-1, len(INTERLEAVE[bits]))
    at = np.empty((1024, bits), int)
    at[order[:, INTERLEAVE[bits]].reshape(-1)] = np.arange(1024 * bits).reshape(1024, bits)
    return Record(128 * bits, codes=Field(dtype(f"u{bits}"), at))


def from_marlin(state: Mapping[str, Any], prefix: str = "") -> QuantTensor:
    """The weight of one layer: `prefix.B` i32 (K / 16, N * bits / 2), `prefix.s` f16 or bf16 (groups, N), and with
    zero points `prefix.qzeros` i32 (groups, N * bits / 32) as vLLM lays them out. Raises CheckpointError."""
    t = State(state, prefix)
    scales = t.take("s", ("f16", "bf16"), (None, None))
    groups, n = scales.shape
    b = t.take("B", ("i32",), (None, None))
    bits, k = 2 * b.shape[1] // n if n else 0, 16 * len(b)
    if bits not in INTERLEAVE or n % 64 or bits * n != 2 * b.shape[1]:
        t.fail("B", "has the wrong shape", f"(K / 16, N * bits / 2) with 4 or 8 bits and N in 64s, N = {n}", b.shape)
    if k % (16 * groups):
        t.fail("s", "has the wrong shape", f"groups of whole tiles that divide K = {k}", scales.shape)
    tiles = record(bits).unpack(np.ascontiguousarray(b, "<i4").view(np.uint8).reshape(-1, 128 * bits))["codes"]
    codes = tiles.reshape(k // 16, n // 16, 16, 16).transpose(1, 3, 0, 2).reshape(n, k)
    block, scale = (1, k // groups), leaf_of(_columns(bits_of(scales), groups, True).T, dtype_of(scales))
    if "qzeros" not in t:
        return QuantTensor(Packed.from_codes(codes ^ (1 << bits - 1), dtype(f"i{bits}")), Parameter(scale, block))
    words = from_words(t.take("qzeros", ("i32",), (groups, n * bits // 32)), bits, n)
    undone = words.reshape(-1, len(INTERLEAVE[bits]))[:, np.argsort(INTERLEAVE[bits])].reshape(groups, n)
    zero = undone.reshape(-1, 64)[:, np.argsort(GROUPED)].reshape(groups, n)
    return QuantTensor(Packed.from_codes(codes, dtype(f"u{bits}")), Parameter(scale, block),
                       Parameter(Packed.from_codes(zero.T, dtype(f"u{bits}")), block))


def to_marlin(q: QuantTensor) -> dict[str, Any]:
    """`B` and `s`, and for unsigned codes `qzeros`, as NumPy leaves: what `from_marlin` reads. Needs codes of 4 or 8
    bits, K in 16s, N in 64s, f16 or bf16 scales of groups that divide K. Raises QuantError."""
    codes, zeros = unsigned_codes(q, "Marlin", (4, 8))
    scales, bits = scale_leaf(q, "Marlin", ("f16", "bf16"), True), q.dtype.bits
    (n, k), groups = q.shape, zeros.shape[1]
    require(n % 64 == 0 and k % 16 == 0, "Marlin", "codes", "N in 64s and K in 16s", q.shape)
    require(k % (16 * groups) == 0, "Marlin", "scale", "groups of whole tiles, in 16s", f"{groups} of K = {k}")
    require(bool(((zeros >= 0) & (zeros < 1 << bits)).all()), "Marlin", "zero", f"0 to {(1 << bits) - 1}", zeros.max())
    tiles = codes.reshape(n // 16, 16, k // 16, 16).transpose(2, 0, 3, 1)
    out = {"B": record(bits).pack({"codes": tiles.reshape(-1, 1024)}).view("<i4").reshape(k // 16, -1),
           "s": leaf_of(_columns(transposed(bits_of(scales)), groups, False), dtype_of(scales))}
    if (zeros != 1 << bits - 1).any() or q.dtype.kind == "uint":
        moved = zeros.T.reshape(-1, 64)[:, GROUPED].reshape(-1, len(INTERLEAVE[bits]))[:, INTERLEAVE[bits]]
        out["qzeros"] = to_words(moved.reshape(groups, n), bits)
    return out


def _columns(scales: Any, groups: int, back: bool) -> Any:
    """Scales (groups, N) with their columns in Marlin's order, or back in theirs."""
    order = GROUPED if groups > 1 else SINGLE
    columns = np.argsort(order) if back else order
    return np.ascontiguousarray(scales).reshape(-1, len(order))[:, columns].copy().reshape(scales.shape)


