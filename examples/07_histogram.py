"""Histogram: atomics, and an output that is updated.

Programs run at the same time and count into the same bins. `tile.atomic_add` makes each increment indivisible, also
when one tile names a bin twice. The bins are `tile.InOut`: the kernel adds to what the caller passed, so the call
allocates nothing. A mask keeps the padding of the last block from being counted.
"""
from __future__ import annotations

import torch

import tilelang as tile


@tile.kernel
def histogram(x: tile.Tensor[tile.f32, "N"], bins: tile.InOut[tile.i32, "B"], BLOCK: tile.Const = 512):
    """bins[b] += the number of x in [b / B, (b + 1) / B); numbers outside [0, 1) fall in no bin."""
    i = tile.grid(tile.cdiv(x.shape[0], BLOCK)) * BLOCK
    place = tile.floor(tile.load(x, (i,), (BLOCK,)) * bins.shape[0].to(tile.f32)).to(tile.i32)
    tile.atomic_add(bins, place, 1, mask=i + tile.arange(BLOCK) < x.shape[0])


def main() -> None:
    torch.manual_seed(0)
    x, bins = torch.rand(10_000), torch.zeros(32, dtype=torch.int32)
    histogram(x, bins)
    assert torch.equal(bins, torch.bincount((x * 32).int(), minlength=32).int())  # 32 * x is exact, counts are whole
    histogram(x, bins)
    assert bins.sum() == 20_000  # InOut: a second call adds
    print(f"histogram: 2 x {len(x)} numbers in {len(bins)} bins, from {bins.min()} to {bins.max()}")


if __name__ == "__main__":
    main()
