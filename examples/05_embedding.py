"""Embedding look-up: addresses that are data.

`tile.load` reads a block; `tile.gather` reads anywhere: it takes one tile of indices for each dimension of the tensor
and broadcasts them together. Ids [BM, 1] and columns [1, BN] address a [BM, BN] tile of table rows. Every index is
checked: one that lies outside reads as 0, so a bad id cannot read foreign memory.
"""
from __future__ import annotations

import torch

import tilelang as tile


@tile.kernel
def embed(ids: tile.Tensor[tile.i64, "M"], table: tile.Tensor[tile.f32, "V N"], y: tile.Out[tile.f32, "M N"],
          BM: tile.Const = 16, BN: tile.Const = 64):
    """y[m] = table[ids[m]], or zeros where the id is not in the table."""
    m, n = tile.grid(tile.cdiv(y.shape[0], BM), tile.cdiv(y.shape[1], BN))
    rows = tile.load(ids, (m * BM,), (BM,))[:, None]
    columns = n * BN + tile.arange(BN)[None, :]
    tile.store(y, (m * BM, n * BN), tile.gather(table, (rows, columns)))


def main() -> None:
    torch.manual_seed(0)
    table = torch.randn(1000, 100)
    ids = torch.randint(0, 1000, (77,))
    assert torch.equal(embed(ids, table), table[ids])  # moving numbers changes no bit
    ids[3], ids[5] = -1, 1000
    y = embed(ids, table)
    assert not y[3].any() and not y[5].any()
    print(f"embedding: {len(ids)} rows of {table.shape[1]} gathered; ids outside the table gave zeros")


if __name__ == "__main__":
    main()
