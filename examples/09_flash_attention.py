"""Flash attention: an online softmax between two products.

softmax(q k^T) v without the matrix of scores (Dao et al., 2022). A program keeps BM queries and walks over the keys in
blocks. It carries the largest score so far, the sum of exponentials, and the weighted sum of values; when a larger
score turns up, what was summed before is scaled down by exp(old - new). `tilelang.ops.attention` is this kernel with
causal masks, shared heads and shapes of any head size.
"""
from __future__ import annotations

import torch

import tilelang as tile


@tile.kernel
def attention(q: tile.Tensor[tile.f32, "H S D"], k: tile.Tensor[tile.f32, "H L D"], v: tile.Tensor[tile.f32, "H L D"],
              o: tile.Out[tile.f32, "H S D"], scale: tile.f32, D: tile.Const, BM: tile.Const = 24,
              BN: tile.Const = 64):
    """One block of queries of one head for each program; D is the head size."""
    H, S, _ = q.shape
    L = k.shape[1]
    h, m = tile.grid(H, tile.cdiv(S, BM))
    query = tile.load(q, (h, m * BM, 0), (BM, D)) * scale
    top = tile.full((BM, 1), float("-inf"), tile.f32)
    total = tile.zeros((BM, 1), tile.f32)
    acc = tile.zeros((BM, D), tile.f32)
    for n in tile.range(0, L, BN):
        score = tile.dot(query, tile.load(k, (h, n, 0), (BN, D)).T)
        score = tile.where(n + tile.arange(BN)[None, :] < L, score, float("-inf"))  # keys past the end count nothing
        new = tile.maximum(top, score.max(1, keepdims=True))
        p, keep = tile.exp(score - new), tile.exp(top - new)
        total = total * keep + p.sum(1, keepdims=True)
        acc = tile.dot(p, tile.load(v, (h, n, 0), (BN, D)), acc * keep)
        top = new
    tile.store(o, (h, m * BM, 0), acc / total)


def main() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(4, 100, 32), torch.randn(4, 150, 32), torch.randn(4, 150, 32)
    o = attention(q, k, v, scale=32**-0.5, D=32)
    exact = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    # Weights are positive and sum to one: the error is relative to the largest value. Scores (|s| < 8) are off by up
    # to 32 roundings, the two sums by up to 150 each: (8 * 32 + 2 * 150) * 2**-24 = 3.3e-5.
    torch.testing.assert_close(o.double(), exact, rtol=0, atol=3.3e-5 * float(v.abs().max()))
    print(f"flash attention: 4 heads, 100 queries, 150 keys, within {float((o - exact).abs().max()):.1e} of f64")


if __name__ == "__main__":
    main()
