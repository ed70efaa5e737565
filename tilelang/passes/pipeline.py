"""The passes on TILE that every backend begins with."""
from __future__ import annotations

from tilelang.passes.cse import cse
from tilelang.passes.dce import dce
from tilelang.passes.decompose import decompose
from tilelang.passes.driver import Pass
from tilelang.passes.fold import fold
from tilelang.passes.licm import licm

TILE_PASSES: tuple[Pass, ...] = (fold, cse, licm, dce, decompose, fold, cse)
