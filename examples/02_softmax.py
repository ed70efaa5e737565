"""Softmax: reductions along a row.

A tile has a shape and methods as a NumPy array has: `max(1, keepdims=True)` reduces a row to one number, arithmetic
broadcasts it back. Here a program holds four whole rows. The tile is wider than the rows; filling the surplus with
-inf on load makes it vanish: it is never the maximum, and exp(-inf) = 0 adds nothing to the sum.
"""
from __future__ import annotations

import torch

import tilelang as tile


@tile.kernel
def softmax(x: tile.Tensor[tile.f32, "M N"], y: tile.Out[tile.f32, "M N"], BM: tile.Const, BN: tile.Const):
    """Rows of y are exp(row) / sum(exp(row)); subtracting the maximum first keeps exp from overflowing. BN >= N."""
    m = tile.grid(tile.cdiv(x.shape[0], BM)) * BM
    row = tile.load(x, (m, 0), (BM, BN), fill=float("-inf"))
    e = tile.exp(row - row.max(1, keepdims=True))
    tile.store(y, (m, 0), e / e.sum(1, keepdims=True))


def main() -> None:
    torch.manual_seed(0)
    x = 10 * torch.randn(37, 300)
    y = softmax(x, BM=4, BN=320)
    # f64 is the truth. The argument x - max is rounded (2**-24 of up to ~80, so ~5e-6 relative in exp where that is
    # tiny), exp, sum and quotient add a few roundings of 2**-24 = 6e-8.
    torch.testing.assert_close(y.double(), x.double().softmax(1), rtol=1e-5, atol=1e-7)
    print(f"softmax: {x.shape[0]} rows of {x.shape[1]}, sums to one within {float((y.sum(1) - 1).abs().max()):.1e}")


if __name__ == "__main__":
    main()
