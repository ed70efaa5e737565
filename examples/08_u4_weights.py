"""Four-bit weights: numbers narrower than a byte.

`tilelang.Packed` holds elements of any number of bits, two u4 to a byte here. A kernel loads them like any other tile
and converts with `.to`; unpacking is the compiler's work. Each output row has one scale: w = (code - 8) * scale, so a
layer reads an eighth of the weight bytes that f32 would take. Change `tile.u4` to `tile.u3` and it still works.
"""
from __future__ import annotations

import torch

import tilelang as tile


@tile.kernel
def linear_u4(x: tile.Tensor[tile.f32, "M K"], w: tile.Tensor[tile.u4, "N K"], scale: tile.Tensor[tile.f32, "N"],
              y: tile.Out[tile.f32, "M N"], BM: tile.Const = 12, BN: tile.Const = 64, BK: tile.Const = 64):
    """y = x @ ((w - 8) * scale[:, None]).T; the scale is applied once, after the sum over k."""
    m, n = tile.grid(tile.cdiv(x.shape[0], BM), tile.cdiv(w.shape[0], BN))
    acc = tile.zeros((BM, BN), tile.f32)
    for k in tile.range(0, x.shape[1], BK):
        weights = tile.load(w, (n * BN, k), (BN, BK)).to(tile.f32) - 8.0
        acc += tile.dot(tile.load(x, (m * BM, k), (BM, BK)), weights.T)
    tile.store(y, (m * BM, n * BN), acc * tile.load(scale, (n * BN,), (BN,)))


def main() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(20, 256), torch.randn(100, 256)
    scale = weight.abs().amax(1) / 7
    codes = (torch.round(weight / scale[:, None]) + 8).clamp(0, 15)
    packed = tile.Packed.pack(codes.numpy(), tile.u4)
    y = linear_u4(x, packed, scale)
    w = (codes - 8).double() * scale.double()[:, None]
    bound = (256 + 1) * 2.0**-24 * (x.double().abs() @ w.abs().T)  # K roundings of the sum, one of the scale
    assert ((y.double() - x.double() @ w.T).abs() <= bound).all()
    print(f"u4 weights: {packed.nbytes} bytes instead of {weight.nbytes}; the product is exact to f32 rounding")


if __name__ == "__main__":
    main()
