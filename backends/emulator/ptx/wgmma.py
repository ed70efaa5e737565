"""`wgmma`: products of four warps, B and maybe A from shared memory as a descriptor says (PTX ISA 8.7, 9.7.15).

They are done where they stand: PTX copies registers as it likes, and only ptxas knows which are under way.
"""
from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from tilelang.backends.emulator.ptx.machine import Space
from tilelang.backends.emulator.ptx.mma import ELEMENTS, Element
from tilelang.backends.emulator.ptx.numbers import Array
from tilelang.backends.emulator.ptx.parse import PtxError

WARPS, ROW = 4, 32  # ROW: bytes along k
_SUMS = {"f16": "f32", "bf16": "f32", "tf32": "f32", "e4m3": "f32", "e5m2": "f32", "s8": "s32", "u8": "s32",
         "b1": "s32"}


class Product(NamedTuple):
    """One shape. `signs` and `orders` are how many immediate operands follow for A and B each."""

    columns: int
    a: Element
    b: Element
    result: str
    signs: bool
    orders: bool

    def run(self, a: Array, b: Array, sums: Array) -> Array:
        """Bytes of A [64, 32] and B [columns, 32] and sums [128, registers] to sums."""
        x, y = self.a.decode(a), self.b.decode(b)
        rows, columns = _places(sums.shape[1])
        product = (x @ y.T)[rows, columns]  # exact for integers; floats are rounded once, at the end
        if self.result == "s32":
            return (product.astype(np.int64) + sums).astype(np.int32)  # wraps
        return (product + sums).astype(sums.dtype)


@lru_cache(maxsize=16)
def _places(count: int) -> tuple[Array, Array]:
    """Row and column of every [thread, register] of the sums."""
    t, i = np.arange(128)[:, None], np.arange(count)
    return t // 32 * 16 + t % 32 // 4 + i // 2 % 2 * 8, i // 4 * 8 + t % 4 * 2 + i % 2


def find(name: str) -> Product | None:
    """The product that an instruction's name asks for; None where it is not covered."""
    found = re.fullmatch(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k(\d+)\.(\w+)\.(\w+)\.(\w+)(\.and\.popc)?",
                         name)
    if found is None:
        return None
    columns, depth, result, a, b, counted = found.groups()
    if (a == "b1") != bool(counted) or _SUMS.get(a) != result or _SUMS.get(b) != result \
            or int(columns) not in range(8, 257, 8) or int(depth) * ELEMENTS[a].bits != 8 * ROW:
        return None
    return Product(int(columns), ELEMENTS[a], ELEMENTS[b], result, result == "f32", ELEMENTS[a].bits == 16)


def from_registers(registers: Array) -> Array:
    """[128, 4] words of A as bytes [64, 32]."""
    out = np.zeros((64, ROW // 4), np.uint32)
    t, r = np.arange(128)[:, None], np.arange(4)
    out[t // 32 * 16 + t % 32 // 4 + 8 * (r % 2), r // 2 * 4 + t % 4] = registers
    return out.view(np.uint8)


def from_memory(memory: Space, descriptor: int, rows: int, size: int, across: bool) -> Array:
    """Bytes [rows, 32] of an operand; `across`: rows of memory run along the other dimension than k."""
    start, leading, stride = ((descriptor >> at & 0x3FFF) << 4 for at in (0, 16, 32))
    pieces = {1: 8, 2: 4, 3: 2}.get(descriptor >> 62)  # of 16 bytes, in a row
    if pieces is None or descriptor >> 49 & 7:
        raise PtxError("a descriptor that the PTX interpreter does not cover", got=f"{descriptor:#018x}")
    width = 16 * pieces
    line, byte = np.ogrid[:ROW // size if across else rows, :rows * size if across else ROW]
    at = start + byte // width * leading + line // 8 * stride + line % 8 * width + byte % width
    at = at ^ (at >> 7 & pieces - 1) << 4
    found = memory.load(memory.check(at.reshape(-1), 1), 1).reshape(at.shape)
    if not across:
        return found
    return np.ascontiguousarray(found.reshape(ROW // size, rows, size).swapaxes(0, 1)).reshape(rows, ROW)
