"""Packed caches: which channels are kept, and that attention to them is attention to the pruned cache."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tilelang as tile
from tests.ops.attention.test_decode import check
from tilelang import ops
from tilelang.ops.attention import sparse


def unpacked(values: Any, bits: Any, d: int) -> Any:
    """Bit by bit."""
    out = np.zeros((*values.shape[:-1], d), values.dtype)
    for at in np.ndindex(*values.shape[:-1]):
        place = 0
        for c in range(d):
            if int(bits[at][c // 32]) >> c % 32 & 1:
                out[*at, c] = values[at][place]
                place += 1
    return out


@pytest.mark.parametrize("target", ["reference", "cpu", "emulate:cuda:sm_80", "emulate:hip:gfx942"])
@pytest.mark.parametrize("keep", [0.3, 0.01])
def test_the_largest_of_each_row_are_kept(keep: float, target: str) -> None:
    """Ties go to the first; a whole row of them, too."""
    rng = np.random.default_rng(0)
    k, v = (x.astype(np.float32) for x in (rng.integers(-4, 5, (1, 2, 19, 64)), rng.standard_normal((1, 2, 19, 32))))
    k[0, 0, 3] = 0
    with tile.target(target):
        packed_k, packed_v, bits = ops.compress_kv(k, v, keep)
    for x, values, name in ((k, packed_k, "k_bits"), (v, packed_v, "v_bits")):
        assert values.shape[3] == max(1, round(keep * x.shape[3]))
        np.testing.assert_array_equal(unpacked(values, bits[name], x.shape[3]), sparse.pruned(x, keep))


@pytest.mark.parametrize(("heads", "queries"), [((4, 4), 1), ((12, 2), 3)])
def test_attention_to_the_pruned_cache(heads: tuple[int, int], queries: int) -> None:
    h, g = heads
    q, k, v = (torch.randn(2, *shape) for shape in ((h, queries, 64), (g, 300, 64), (g, 300, 32)))
    options: dict[str, Any] = {"causal": True, "sinks": torch.randn(h)}
    keys, values, bits = ops.compress_kv(k, v, 0.3)
    got = ops.attention_decode(q, keys, values, splits=2, return_lse=True, **bits, **options)
    dense = [torch.tensor(sparse.pruned(x.numpy(), 0.3)) for x in (k, v)]
    check(q, *dense, got, options)


@pytest.mark.parametrize("target", ["emulate:cuda:sm_80", "emulate:hip:gfx942"])
def test_pages_and_lengths(target: str) -> None:
    """In f16, with NaN and set bits behind the length."""
    q, k, v = torch.randn(1, 2, 1, 32).half(), torch.randn(1, 1, 48, 32).half(), torch.randn(1, 1, 48, 32).half()
    keys, values, bits = ops.compress_kv(k, v, 0.5)
    keys[:, :, 33:], values[:, :, 33:] = torch.nan, torch.nan
    table, length = torch.tensor([[2, 0, 1]], dtype=torch.int32), torch.tensor([33], dtype=torch.int32)

    def pages(x: torch.Tensor) -> torch.Tensor:
        pool = torch.empty(3, 1, 16, x.shape[3], dtype=x.dtype)
        pool[table[0].long()] = x.reshape(1, 3, 16, -1).transpose(0, 1)
        return pool
    with tile.target(target):
        got = ops.attention_decode(q, pages(keys), pages(values), seqused_k=length, block_table=table, return_lse=True,
                                   **{n: pages(x) for n, x in bits.items()})
    dense = [torch.tensor(sparse.pruned(x.numpy(), 0.5))[:, :, :33] for x in (k, v)]
    check(q, *dense, got, {"causal": True}, products=2.0 ** -11)


def test_mistakes() -> None:
    x = torch.zeros(1, 1, 4, 48)
    with pytest.raises(ValueError, match="multiples of 32"):
        ops.compress_kv(x, x)
    x = torch.zeros(1, 1, 4, 64)
    keys, values, bits = ops.compress_kv(x, x)
    with pytest.raises(ValueError, match="come together"):
        ops.attention_decode(x, keys, values, k_bits=bits["k_bits"])
    with pytest.raises(ValueError, match="equally many channels, got 64 and 32"):
        ops.attention_decode(x, keys, values)
