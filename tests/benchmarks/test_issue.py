"""The model that plays machine code of AMD's, on loops of a few instructions."""
from __future__ import annotations

from benchmarks.issue import MEETING, SLOT, cycles
from tilelang.backends.simt.schedule import LATENCY, UNITS

PRODUCT = "v_mfma_f32_32x32x16_bf16 v[0:15], v[16:19], v[20:23], v[0:15]"
READ, WAIT, END = "ds_read_b128 v[16:19], v40", "s_waitcnt lgkmcnt(0)", "s_cbranch_scc0 .L"
LONG = 32 * 32 * 16 // 512
"""Cycles of the product on gfx950."""


def test_products_follow_one_another() -> None:
    assert cycles([PRODUCT] * 4 + [END], "gfx950", 1) == 4 * LONG
    assert cycles([PRODUCT] * 4 + [END], "gfx942", 1) == 8 * LONG


def test_a_read_is_waited_for_alone() -> None:
    """Served for four units, 1024 bytes by 256 in a cycle, then on its way."""
    served = 1024 // 256 * UNITS
    assert cycles([READ, WAIT, PRODUCT, END], "gfx950", 1) == served + LATENCY + 3 * SLOT + MEETING


def test_another_wave_multiplies_meanwhile() -> None:
    one, two = (cycles([READ, WAIT, *[PRODUCT] * 4, END], "gfx950", waves) for waves in (1, 2))
    assert 8 * LONG <= two < 2 * one - LATENCY


def test_halves_take_turns() -> None:
    loop = [READ, WAIT, "s_barrier", "s_setprio 1", *[PRODUCT] * 8, "s_setprio 0", "s_barrier", END]
    assert 16 * LONG <= cycles(loop, "gfx950", 2, True) < cycles(loop, "gfx950", 2)
