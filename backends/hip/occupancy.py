"""How many work groups of a kernel a compute unit holds at once (AMD's instruction set manuals, and the rules of
allocation in LLVM's `AMDGPUBaseInfo.cpp`)."""
from __future__ import annotations

SIMDS, WAVES, BARRIERS = 4, 8, 16
"""Vector units of a compute unit, waves each holds at most, and groups of more than one wave."""
REGISTERS, REGISTER_UNIT = 512, 8
"""Vector registers that a lane of a vector unit has for all its waves; a wave takes whole units."""


def resident_blocks(shared_memory: int, threads: int, registers: int, shared_bytes: int) -> tuple[int, str]:
    """How many blocks fit where there are `shared_memory` bytes, and what keeps more out."""
    waves = -(-threads // 64)
    per_simd = REGISTERS // (-(-max(registers, 1) // REGISTER_UNIT) * REGISTER_UNIT)
    most = SIMDS * WAVES // waves
    limits = {"warps": most, "registers": per_simd * SIMDS // waves, "blocks": BARRIERS if waves > 1 else most,
              "shared memory": shared_memory // shared_bytes if shared_bytes else most}
    name = min(limits, key=lambda k: limits[k])
    return limits[name], name


def occupancy(threads: int, blocks: int) -> float:
    """The share of a compute unit's waves that `blocks` blocks fill."""
    return -(-threads // 64) * blocks / (SIMDS * WAVES)
