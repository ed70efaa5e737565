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


SMALL = ("f8e4m3", "f8e5m2", "f6e2m3", "f6e3m2", "f4e2m1")
"""The types whose products may be scaled, by the numbers that instructions have for them."""


def _scaled(m: int, a: str, b: str) -> MmaRow:
    """m x m, 32 elements of A and of B in a lane: of f8 two runs of 16, half of k apart. A scale is for 32 neighbours
    along k, and lane l has that of row (column) l % m, block l / m (Composable Kernel, the notes of
    `blockwise_gemm_mx_pipeline_xdlops_base.hpp`, whose tests run on MI350)."""
    parts = 64 // m
    (ra, na), (rb, nb) = ((run, 32 // run) for run in (16 if "f8" in t else 32 for t in (a, b)))
    return MmaRow(f"mfma_{m}x{m}x{32 * parts}_{a[2:]}_{b[2:]}", a, b, "f32",
                  local(1, na) * column_spatial(m, parts) * local(1, ra),
                  local(nb, 1) * spatial(parts, m) * local(rb, 1),
                  local(m // parts // 4, 1) * spatial(parts, m) * local(4, 1), (CDNA4, _EVER),
                  (column_spatial(m, parts), spatial(parts, m)))


# Of each size the first row that holds both operands exactly and is not deeper than the product may be taken, so deep
# ones stand first; layout inference chooses the size. Rows of which a processor has only a part are several
# instructions of it, one after the other along the registers: k may be in any order, if it is the same in A and in B,
# and lanes read 16 bytes at a time from shared memory.
ROWS = (
    *(_scaled(m, a, b) for m in (16, 32) for a in SMALL for b in SMALL),
    *(_row(m, each, a + kind, b + kind, "f32", archs)
      for a in ("f8e4m3", "f8e5m2") for b in ("f8e4m3", "f8e5m2")
      for kind, archs in (("fnuz", (CDNA3, CDNA3)), ("", (CDNA4, _EVER)))
      for m, each in ((16, 16), (16, 8), (32, 8))),
    *(_row(m, each, t, t, "f32", archs)
      for t in ("f16", "bf16")
      for m, each, archs in ((16, 8, (CDNA2, _EVER)), (16, 4, (CDNA2, _EVER)), (32, 8, (CDNA2, _EVER)),
                             (32, 4, (CDNA2, _EVER)))),
    *(_row(m, 2, "tf32", "tf32", "f32", (CDNA3, CDNA3)) for m in (16, 32)),  # "xf32": gfx950 has it no more
    *(_row(m, each, "f32", "f32", "f32", (CDNA2, _EVER)) for m, each in ((16, 4), (16, 1), (32, 1))),
    *(_row(m, each, "i8", "i8", "i32", archs)
      for m, each, archs in ((16, 16, (CDNA3, _EVER)), (16, 8, (CDNA2, _EVER)), (16, 4, (CDNA2, CDNA2)),
                             (32, 16, (CDNA4, _EVER)), (32, 8, (CDNA3, _EVER)), (32, 4, (CDNA2, CDNA2)))),
    *(_row(16, each, "f64", "f64", "f64", (CDNA2, _EVER)) for each in (2, 1)),
)
