"""The delta rule by chunks: a recurrence as products of matrices.

Linear attention that overwrites what a key has stored (Schlag et al., 2021): S += k (beta (v - S^T k))^T after each
token, and the output is S^T q. One token at a time that is a product of a matrix with a vector. Of C tokens at once
the writes u = beta (v - S^T k) depend on each other only through the small matrix k k^T below its diagonal: they are
found by substitution, and the rest is products of tiles (Yang et al., 2024).
"""
from __future__ import annotations

import torch

import tilelang as tile


@tile.kernel
def delta_rule(q: tile.Tensor[tile.f32, "H T D"], k: tile.Tensor[tile.f32, "H T D"], v: tile.Tensor[tile.f32, "H T E"],
               beta: tile.Tensor[tile.f32, "H T"], o: tile.Out[tile.f32, "H T E"], D: tile.Const, E: tile.Const,
               C: tile.Const = 16):
    """One program walks over the tokens of a head, C at a time, and carries the state [D, E]."""
    h, i = tile.grid(q.shape[0]), tile.arange(C)
    state = tile.zeros((D, E))
    for t in tile.range(0, q.shape[1], C):
        query, key = tile.load(q, (h, t, 0), (C, D)), tile.load(k, (h, t, 0), (C, D))
        b = tile.load(beta, (h, t), (C,))[:, None]
        write = b * (tile.load(v, (h, t, 0), (C, E)) - tile.dot(key, state))
        before = tile.where(i[:, None] > i, b * tile.dot(key, key.T), 0)
        for j in tile.static_range(C - 1):
            write -= before[:, j, None] * write[j]  # which row j, final now, has stored under the keys behind it
        seen = tile.where(i[:, None] >= i, tile.dot(query, key.T), 0)
        tile.store(o, (h, t, 0), tile.dot(query, state) + tile.dot(seen, write))
        state += tile.dot(key.T, write)


def main() -> None:
    torch.manual_seed(0)
    heads, tokens, d, e = 3, 100, 16, 24
    key = torch.randint(0, d, (heads, tokens))
    k = torch.nn.functional.one_hot(key, d).float()
    q, v = torch.randint(-3, 4, (heads, tokens, d)).float(), torch.randint(-8, 9, (heads, tokens, e)).float()
    beta = torch.randint(0, 3, (heads, tokens)) / 2  # leave it, take the mean of old and new, overwrite
    o = delta_rule(q, k, v, beta)
    memory, exact = torch.zeros(heads, d, e), torch.zeros(heads, tokens, e)
    for t in range(tokens):
        for h in range(heads):
            memory[h, key[h, t]] = (1 - beta[h, t]) * memory[h, key[h, t]] + beta[h, t] * v[h, t]
        exact[:, t] = torch.einsum("hd,hde->he", q[:, t], memory)
    assert torch.equal(o, exact)  # halves of small integers: nothing is rounded
    print(f"delta rule: {heads} heads, {tokens} tokens in chunks of 16, each key read back what was stored last")


if __name__ == "__main__":
    main()
