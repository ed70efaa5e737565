"""Matrix product: a loop inside the kernel, and an accumulator.

Each program makes one BM x BN block of the result. `tile.range` is a loop that runs in the kernel and carries the
tile `acc` from one turn to the next. `tile.dot` multiplies two tiles; f16 operands accumulate in f32. Vector
instructions, packing of operands and the threads are the compiler's work, and M, N and K may be any numbers.
"""
from __future__ import annotations

import torch

import tilelang as tile


@tile.kernel
def matmul(a: tile.Tensor[tile.T, "M K"], b: tile.Tensor[tile.T, "K N"], c: tile.Out[tile.T, "M N"],
           BM: tile.Const = 96, BN: tile.Const = 128, BK: tile.Const = 64):
    """c = a @ b. `tile.T` is a type variable: f16, f32, … but the same for all three."""
    (M, K), N = a.shape, b.shape[1]
    m, n = tile.grid(tile.cdiv(M, BM), tile.cdiv(N, BN))
    acc = tile.zeros((BM, BN), tile.f32)
    for k in tile.range(0, K, BK, stages=2):
        acc += tile.dot(tile.load(a, (m * BM, k), (BM, BK)), tile.load(b, (k, n * BN), (BK, BN)))
    tile.store(c, (m * BM, n * BN), acc.to(c.dtype))


def main() -> None:
    torch.manual_seed(0)
    for dtype, unit in ((torch.float32, 2.0**-24), (torch.float16, 2.0**-11)):
        a, b = torch.randn(200, 333).to(dtype), torch.randn(333, 150).to(dtype)
        exact = a.double() @ b.double()
        # A sum of K products is off by at most about K roundings in f32 of sum(|a| |b|); then c rounds once.
        bound = 333 * 2.0**-24 * (a.double().abs() @ b.double().abs()) + unit * exact.abs()
        error = (matmul(a, b).double() - exact).abs()
        assert (error <= bound).all()
    print(f"matmul: (200, 333) @ (333, 150) in f32 and f16, worst f16 error {float(error.max()):.1e}")


if __name__ == "__main__":
    main()
