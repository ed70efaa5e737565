"""Decoding with a latent cache whose rows are keys and values at once."""
from __future__ import annotations

from typing import Any

import pytest
import torch

import tilelang as tile
from tests.ops.attention.test_decode import U, check
from tilelang import ops


def test_absorbed_projections_give_the_attention_of_all_heads() -> None:
    """Keys and values of every head made from the cache, in f64: what absorption saves."""
    torch.manual_seed(0)
    h, nope, rope, latent, length = 6, 24, 8, 40, 130
    up_k, up_v = torch.randn(h, nope, latent) / latent ** 0.5, torch.randn(h, 20, latent) / latent ** 0.5
    q, cache = torch.randn(2, h, 1, nope + rope), torch.randn(2, length, latent + rope)
    c, turned = cache.double()[:, None, :, :latent], cache.double()[:, None, :, latent:]
    k = torch.cat([c @ up_k.double().mT, turned.expand(-1, h, -1, -1)], -1)
    s = q.double() @ k.mT * (nope + rope) ** -0.5
    want = s.softmax(-1) @ (c @ up_v.double().mT)
    absorbed = torch.cat([q[..., :nope] @ up_k, q[..., nope:]], -1)
    got = ops.mla_decode(absorbed, cache, scale=(nope + rope) ** -0.5, columns=latent) @ up_v.mT
    # scores: sums of 24 and 48 products; results: sums of 130 and 40, of terms below the largest of the cache
    t = 4 * (nope + latent + rope) * U * (absorbed.abs().double() @ cache.abs().double()[:, None].mT).max()
    size = (cache.abs().amax((1, 2))[:, None, None, None].double() * up_v.abs().sum(-1)[None, :, None])
    assert ((got - want).abs() <= (torch.expm1(t) + 4 * (length + latent) * U) * size).all()


@pytest.mark.parametrize("heads", [1, 3, 16, 100])
@pytest.mark.parametrize("splits", [1, 3, None])
def test_heads_and_splits(heads: int, splits: int | None) -> None:
    """Heads below and above what a CPU multiplies by rows."""
    q, cache = torch.randn(2, heads, 2, 36), torch.randn(2, 700, 36)
    got = ops.mla_decode(q, cache, splits=splits, columns=20, return_lse=True)
    check(q, cache[:, None], cache[:, None, :, :20], got, {"causal": True})


@pytest.mark.parametrize("target", ["cpu", "emulate:cuda:sm_80", "emulate:hip:gfx942"])
def test_pages_and_lengths(target: str) -> None:
    """In f16, with NaN behind the lengths and no pages there."""
    lengths = torch.tensor([33, 0, 70], dtype=torch.int32)
    q, cache = torch.randn(3, 4, 1, 48).half(), torch.randn(3, 80, 48).half()
    for b, n in enumerate(lengths.tolist()):
        cache[b, n:] = torch.nan
    table = torch.randperm(15).int().reshape(3, 5)
    pool = torch.empty(15, 16, 48).half()
    pool[table.long()] = cache.reshape(3, 5, 16, 48)
    for b, n in enumerate(lengths.tolist()):
        table[b, -(-n // 16):] = 10 ** 6
    with tile.target(target):
        o, lse = ops.mla_decode(q, pool, seqused=lengths, block_table=table, columns=32, splits=2, return_lse=True)
    assert (o[1] == 0).all() and (lse[1] == torch.inf).all()
    for b, n in ((0, 33), (2, 70)):
        k = cache[b:b + 1, None, :n]
        check(q[b:b + 1], k, k[..., :32], (o[b:b + 1], lse[b:b + 1]), {"causal": True}, products=2.0 ** -11)


def test_operator() -> None:
    q, cache = torch.randn(1, 3, 1, 24), torch.randn(1, 9, 24)
    want = ops.mla_decode(q, cache, columns=16)
    result = torch.library.opcheck(torch.ops.tilelang.mla_decode.default, (q, cache, None, None, 16, True, 0.2, 2))
    assert set(result.values()) == {"SUCCESS"}
    compiled: Any = torch.compile(lambda *a: ops.mla_decode(*a, columns=16), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, cache), want)
    with pytest.raises(ValueError, match="the cache needs as many columns"):
        ops.mla_decode(q, cache[..., :20], columns=16)
    with pytest.raises(ValueError, match="seqused must give"):
        ops.mla_decode(q, cache, columns=16, block_table=torch.zeros(1, 1, dtype=torch.int32))
