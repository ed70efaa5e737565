"""Top-p sampling: sorting, prefix sums, and a choice at random.

A language model's next token is drawn from the fewest tokens whose probabilities reach p (Holtzman et al., 2020). A
program sorts one row of logits, sums probabilities from the largest on, and keeps those before which less than p was
seen. It draws from what it keeps without normalising it: where the noise has the Gumbel distribution, the largest of
`logit + noise` is each token with its probability. The random numbers are a function of the seed and the place.
"""
from __future__ import annotations

import torch

import tilelang as tile


@tile.kernel
def sample(logits: tile.Tensor[tile.f32, "B V"], token: tile.Out[tile.i32, "B"], p: tile.f32, seed: tile.u64,
           V: tile.Const):
    """One token of each row. V is the size of the vocabulary, a row of which must fit into a tile."""
    b = tile.grid(logits.shape[0])
    row = tile.load(logits, (b, 0), (V,))
    order, x = row.argsort(descending=True), row.sort(descending=True)
    e = tile.exp(x - x[0])
    seen = e.cumsum() - e  # before each token
    noise = -tile.log(-tile.log(tile.rand(seed, b * V + tile.arange(V))))
    choice = tile.where(seen < p * e.sum(), x + noise, float("-inf")).argmax()
    tile.store(token, b, tile.lookup(order, choice))


def main() -> None:
    rows, probabilities = 2000, torch.tensor([0.02, 0.4, 0.1, 0.25, 0.01, 0.2, 0.02])
    logits = probabilities.log().repeat(rows, 1)
    kept = torch.tensor([1, 3, 5])  # 0.4 + 0.25 are less than 0.75, with 0.2 they are more
    tokens = sample(logits, p=0.75, seed=1)
    counts = torch.bincount(tokens, minlength=len(probabilities))
    assert counts[kept].sum() == rows  # no other token
    share = probabilities[kept] / probabilities[kept].sum()
    assert ((counts[kept] - rows * share).abs() < 6 * (rows * share * (1 - share)).sqrt()).all()  # standard deviations
    assert torch.equal(tokens, sample(logits, p=0.75, seed=1))
    assert (sample(logits, p=0.0001, seed=2) == 1).all()  # the first is always kept
    print(f"top-p: {rows} tokens drawn at p = 0.75, all of {kept.tolist()}, as often as they should be")


if __name__ == "__main__":
    main()
