"""AMD's matrix instructions, one row each (AMD's "CDNA3" and "CDNA4" instruction set manuals, section "Matrix
Arithmetic Instructions").

Of an M x M product, lane l of the 64 holds row l % M of A, and column l % M of B: neighbours along k, those of group
l / M. Of the result it holds column l % M, in runs of four rows (of one for f64).
"""
from __future__ import annotations

from tilelang.backends.simt.instructions import MmaRow
from tilelang.layouts import column_spatial, local, spatial

_EVER = 0xfff
CDNA2, CDNA3, CDNA4 = 0x90a, 0x942, 0x950


def _row(m: int, each: int, a: str, b: str, acc: str, archs: tuple[int, int]) -> MmaRow:
    """m x m, `each` elements of A and of B in a lane."""
    parts, run = 64 // m, 1 if acc == "f64" else 4
    kinds = a if a == b and not a.startswith("f8") else f"{a}_{b}".replace("f8", "")
    return MmaRow(f"mfma_{m}x{m}x{parts * each}_{kinds}", a, b, acc, column_spatial(m, parts) * local(1, each),
                  spatial(parts, m) * local(each, 1),
                  local(m // parts // run, 1) * spatial(parts, m) * local(run, 1), archs)


def _pair(each: int, a: str, b: str, acc: str, archs: tuple[int, int]) -> tuple[MmaRow, MmaRow]:
    """The two sizes: the smaller one stands first, for it fits more tiles and is as fast."""
    return _row(16, each, a, b, acc, archs), _row(32, each, a, b, acc, archs)


# The first row that holds both operands exactly is taken, of the same types the first not deeper than the product.
ROWS = (
    *(row for a in ("f8e4m3", "f8e5m2") for b in ("f8e4m3", "f8e5m2")
      for row in (*_pair(8, a + "fnuz", b + "fnuz", "f32", (CDNA3, CDNA3)), *_pair(8, a, b, "f32", (CDNA4, _EVER)))),
    *(row for t in ("f16", "bf16")
      for row in (*_pair(8, t, t, "f32", (CDNA4, _EVER)), *_pair(4, t, t, "f32", (CDNA2, _EVER)))),
    *_pair(1, "f32", "f32", "f32", (CDNA2, _EVER)),
    *_pair(8, "i8", "i8", "i32", (CDNA3, _EVER)),
    *_pair(4, "i8", "i8", "i32", (CDNA2, CDNA2)),
    _row(16, 1, "f64", "f64", "f64", (CDNA2, _EVER)),
)
