"""Prefix sums: scans, and a carry between blocks.

`tile.cumsum` scans along a row of a tile. Rows longer than a tile go block by block: the loop carries the total so
far, a tile of shape [BM, 1] that broadcasts over the next block. Any associative function scans the same way with
`tile.associative_scan(x, axis, combine)`.
"""
from __future__ import annotations

import torch

import tilelang as tile


@tile.kernel
def cumsum(x: tile.Tensor[tile.f32, "M N"], y: tile.Out[tile.f32, "M N"], BM: tile.Const = 4, BN: tile.Const = 128):
    """y[m, n] = x[m, 0] + … + x[m, n]."""
    m = tile.grid(tile.cdiv(x.shape[0], BM)) * BM
    carry = tile.zeros((BM, 1), tile.f32)
    for n in tile.range(0, x.shape[1], BN):
        block = tile.load(x, (m, n), (BM, BN))
        tile.store(y, (m, n), carry + tile.cumsum(block, 1))
        carry += block.sum(1, keepdims=True)


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(10, 1000)
    y = cumsum(x)
    # A sum of n terms in any order is off by at most n roundings (2**-24) of the sum of their sizes.
    bound = torch.arange(1, 1001) * 2.0**-24 * x.double().abs().cumsum(1)
    error = (y.double() - x.double().cumsum(1)).abs()
    assert (error <= bound).all()
    print(f"cumsum: {x.shape[0]} rows of {x.shape[1]} in blocks of 128, worst error {float(error.max()):.1e}")


if __name__ == "__main__":
    main()
