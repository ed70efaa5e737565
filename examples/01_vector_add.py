"""Vector addition: programs, blocks and ragged edges.

A kernel says what happens to one block. `tile.grid(n)` asks for n copies of the program, run in parallel, and tells
each its number. Blocks need not divide the data: what `tile.load` reads past the end is 0, what `tile.store` writes
past the end is dropped. So 1000 elements in blocks of 256 are four programs, and no line of the kernel minds that the
last has only 232 elements.
"""
from __future__ import annotations

import torch

import tilelang as tile


@tile.kernel
def add(x: tile.Tensor[tile.f32, "N"], y: tile.Tensor[tile.f32, "N"], z: tile.Out[tile.f32, "N"],
        BLOCK: tile.Const = 256):
    """z = x + y. Both inputs are of extent N: other lengths are refused. The call allocates z."""
    i = tile.grid(tile.cdiv(x.shape[0], BLOCK)) * BLOCK
    tile.store(z, (i,), tile.load(x, (i,), (BLOCK,)) + tile.load(y, (i,), (BLOCK,)))


def main() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(1000), torch.randn(1000)
    z = add(x, y)
    assert torch.equal(z, x + y)  # one rounded addition for each element, here and there: the same bits
    print(f"vector add: {len(z)} elements in blocks of 256, equal to torch bit for bit")


if __name__ == "__main__":
    main()
