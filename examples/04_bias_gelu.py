"""Fused bias and GELU: functions on tiles.

`@tile.function` marks a Python function that kernels may call; it is inlined, so splitting a kernel into named parts
costs nothing. Everything between the load and the store becomes one pass over memory, however many steps it has.
"""
from __future__ import annotations

import torch

import tilelang as tile


@tile.function
def gelu(x):
    """The tanh form of GELU (Hendrycks and Gimpel, 2016)."""
    return 0.5 * x * (1.0 + tile.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))  # sqrt(2 / pi)


@tile.kernel
def bias_gelu(x: tile.Tensor[tile.f32, "M N"], bias: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "M N"],
              BM: tile.Const = 8, BN: tile.Const = 128):
    """y = gelu(x + bias): a bias of shape [BN] broadcasts over the rows of [BM, BN]."""
    m, n = tile.grid(tile.cdiv(x.shape[0], BM), tile.cdiv(x.shape[1], BN))
    v = tile.load(x, (m * BM, n * BN), (BM, BN)) + tile.load(bias, (n * BN,), (BN,))
    tile.store(y, (m * BM, n * BN), gelu(v))


def main() -> None:
    torch.manual_seed(0)
    x, bias = torch.randn(50, 300), torch.randn(300)
    y = bias_gelu(x, bias)
    exact = torch.nn.functional.gelu((x + bias).double(), approximate="tanh")
    # 1 + tanh cancels for negative x, so the error is a few roundings (2**-24) of |x| < 10 rather than of y.
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=10 * 8 * 2.0**-24)
    print(f"bias + gelu: one pass over {tuple(x.shape)}, within {float((y - exact).abs().max()):.1e} of f64")


if __name__ == "__main__":
    main()
