"""How many blocks of a kernel a multiprocessor holds at once.

The limits are those of the table "Technical Specifications per Compute Capability" of the CUDA C++ Programming Guide;
the rules of allocation those of `cuda_occupancy.h` in the CUDA toolkit.
"""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Multiprocessor:
    """What the blocks on one multiprocessor share. Every block of shared memory costs `reserved` bytes more."""

    blocks: int
    warps: int
    shared_bytes: int
    reserved: int
    shared_unit: int


MULTIPROCESSORS = {
    75: Multiprocessor(16, 32, 64 << 10, 0, 256),
    80: Multiprocessor(32, 64, 164 << 10, 1 << 10, 128),
    86: Multiprocessor(16, 48, 100 << 10, 1 << 10, 128),
    89: Multiprocessor(24, 48, 100 << 10, 1 << 10, 128),
    90: Multiprocessor(32, 64, 228 << 10, 1 << 10, 128),
    100: Multiprocessor(32, 64, 228 << 10, 1 << 10, 128),
    120: Multiprocessor(24, 48, 100 << 10, 1 << 10, 128),
}
REGISTERS = 1 << 16
"""Registers of a multiprocessor, in `PARTITIONS` equal parts; a warp takes whole `REGISTER_UNIT`s of one part."""
PARTITIONS, REGISTER_UNIT = 4, 256


def resident_blocks(arch: int, threads: int, registers: int, shared_bytes: int) -> tuple[int, str]:
    """How many blocks fit, and what keeps more out: "blocks", "warps", "registers" or "shared memory"."""
    m = MULTIPROCESSORS[arch]
    warps = -(-threads // 32)
    of_warp = _whole(max(registers, 1) * 32, REGISTER_UNIT)
    fitting = REGISTERS // PARTITIONS // of_warp * PARTITIONS
    # A block must also fit when its warps are spread over the parts evenly.
    by_registers = fitting // warps if _whole(warps, PARTITIONS) * of_warp <= REGISTERS else 0
    shared = _whole(shared_bytes + m.reserved, m.shared_unit) if shared_bytes + m.reserved else 0
    limits = {"blocks": m.blocks, "warps": m.warps // warps, "registers": by_registers,
              "shared memory": m.shared_bytes // shared if shared else m.blocks}
    name = min(limits, key=lambda k: limits[k])
    return limits[name], name


def occupancy(arch: int, threads: int, blocks: int) -> float:
    """The share of a multiprocessor's warps that `blocks` blocks fill."""
    return -(-threads // 32) * blocks / MULTIPROCESSORS[arch].warps


def _whole(n: int, unit: int) -> int:
    return -(-n // unit) * unit
