"""A kernel that begins before the one before it has ended; the exported one is called by `exported.py`, too."""
from __future__ import annotations

import tilelang as tile


def overlap_fn(x: tile.Tensor[tile.f32, "N"], w: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"],
               EARLY: tile.Const = True):
    """y = x * w, where x may come from the kernel before, and w too unless `EARLY`."""
    tile.start_next()
    at = tile.grid(tile.cdiv(x.shape[0], 128)) * 128
    if EARLY:
        weight = tile.load(w, at, 128)
        tile.wait_previous()
    else:
        tile.wait_previous()
        weight = tile.load(w, at, 128)
    tile.store(y, at, tile.load(x, at, 128) * weight)
