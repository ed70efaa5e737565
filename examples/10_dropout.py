"""Dropout: random numbers without state.

`tile.rand(seed, counter)` is a pure function (Philox4x32-10, Salmon et al., 2011): the same seed and counter give the
same number on every machine, whatever the block size and the number of threads. With an element's position as the
counter, the backward pass can draw the same mask again instead of storing it.
"""
from __future__ import annotations

import torch

import tilelang as tile


@tile.kernel
def dropout(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"], seed: tile.u64, p: tile.f32,
            BLOCK: tile.Const = 1024):
    """Each element becomes 0 with probability p, else x / (1 - p), which keeps the mean."""
    i = tile.grid(tile.cdiv(x.shape[0], BLOCK)) * BLOCK
    keep = tile.rand(seed, i + tile.arange(BLOCK)) >= p
    tile.store(y, (i,), tile.where(keep, tile.load(x, (i,), (BLOCK,)) / (1.0 - p), 0.0))


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(100_000)
    y = dropout(x, seed=1, p=0.25)
    kept = y != 0
    assert torch.equal(y, dropout(x, seed=1, p=0.25, BLOCK=77))  # blocks do not matter
    assert not torch.equal(kept, dropout(x, seed=2, p=0.25) != 0)  # the seed does
    assert torch.equal(y[kept], x[kept] / 0.75)  # 0.75 is exact, one rounded division
    share = float(kept.float().mean())
    assert abs(share - 0.75) < 6 * (0.75 * 0.25 / len(x)) ** 0.5  # six standard deviations
    print(f"dropout: kept {share:.2%} of {len(x)} elements at p = 0.25, the same mask for every block size")


if __name__ == "__main__":
    main()
