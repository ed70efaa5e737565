"""A few queries against a cache: split, paged, in few bits; and what fills the cache."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tilelang as tile
from tests.ops.attention.oracle import EPS, attention, bounds, doubled, two_of_three, wavy
from tilelang import ops

U = 2.0 ** -24


def check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, got: Any, options: dict[str, Any], products: float = U,
          sizes: Any = None) -> None:
    o, lse = got
    want, sums = attention(q.double(), k.double(), v.double(), **doubled(options))
    bound, near = bounds(q, k, v, want, products, sizes, **options)
    assert ((o.double() - want).abs() <= bound + EPS[q.dtype] * want.abs() + 2.0 ** -24).all()
    seen = lse != torch.inf
    assert ((lse - sums).abs() <= near + 2.0 ** -22 * sums.abs())[seen].all() and (o[~seen] == 0).all()


@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (9, 1)])
@pytest.mark.parametrize("splits", [1, 3, None])
def test_splits(heads: tuple[int, int], splits: int | None) -> None:
    torch.manual_seed(0)
    h, g = heads
    q, k, v = torch.randn(2, h, 1, 24), torch.randn(2, g, 1200, 24), torch.randn(2, g, 1200, 40)
    options: dict[str, Any] = {"causal": True, "sinks": torch.randn(h), "window": (900, 0)}
    check(q, k, v, ops.attention_decode(q, k, v, splits=splits, return_lse=True, **options), options)


def test_several_queries() -> None:
    torch.manual_seed(1)
    q, k, v = torch.randn(2, 4, 5, 24), torch.randn(2, 2, 300, 24), torch.randn(2, 2, 300, 24)
    options: dict[str, Any] = {"causal": True, "softcap": 2.0, "alibi": torch.rand(4), "score_mod": wavy,
                               "mask_mod": two_of_three}
    check(q, k, v, ops.attention_decode(q, k, v, splits=2, return_lse=True, **options), options)


@pytest.mark.parametrize("target", ["cpu", "emulate:cuda:sm_80", "emulate:hip:gfx942"])
def test_pages_and_lengths(target: str) -> None:
    """Sequences of several lengths in pages; rows beyond them hold NaN, pages beyond them do not exist."""
    torch.manual_seed(2)
    lengths = torch.tensor([33, 0, 70], dtype=torch.int32)
    q, k, v = torch.randn(3, 4, 1, 16).half(), torch.randn(3, 2, 80, 16).half(), torch.randn(3, 2, 80, 16).half()
    for b, n in enumerate(lengths.tolist()):
        k[b, :, n:], v[b, :, n:] = torch.nan, torch.nan
    table = torch.randperm(15).int().reshape(3, 5)
    pools = []
    for x in (k, v):
        pool = torch.empty(15, 2, 16, 16).half()
        pool[table.long()] = x.reshape(3, 2, 5, 16, 16).transpose(1, 2)
        pools.append(pool)
    for b, n in enumerate(lengths.tolist()):
        table[b, -(-n // 16):] = 10 ** 6
    with tile.target(target):
        got = ops.attention_decode(q, *pools, seqused_k=lengths, block_table=table, splits=2, return_lse=True)
    assert (got[0][1] == 0).all() and (got[1][1] == torch.inf).all()
    for b, n in ((0, 33), (2, 70)):
        one = q[b:b + 1], k[b:b + 1, :, :n], v[b:b + 1, :, :n]
        check(*one, (got[0][b:b + 1], got[1][b:b + 1]), {"causal": True}, products=2.0 ** -11)


def values(codes: Any, scale: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
    """The numbers that codes stand for, in f64."""
    x = torch.tensor(codes.values()).double() if isinstance(codes, tile.Packed) else codes.double()
    return (x - (0 if zero is None else zero.double())) * scale.double()


@pytest.mark.parametrize("dt", [tile.i8, tile.u8, tile.u4, tile.u2, tile.f8e4m3, tile.f8e5m2], ids=str)
def test_few_bits(dt: tile.DType) -> None:
    torch.manual_seed(3)
    q, k, v = torch.randn(2, 4, 1, 32), torch.randn(2, 2, 70, 32) + 1, torch.randn(2, 2, 70, 40)
    k[:, 0, :, 3] = 0  # a channel that is constant
    ks, vs, parameters = ops.quantize_kv(k, v, dt)
    zeros = [None if z is None else z[..., None] for z in (parameters["k_zero"], parameters["v_zero"])]
    keys = values(ks, parameters["k_scale"][:, :, None], None if zeros[0] is None else zeros[0].swapaxes(2, 3))
    tokens = values(vs, parameters["v_scale"][..., None], zeros[1])
    for near, exact, axis in ((keys, k, 2), (tokens, v, 3)):  # half a step, and half of one for the zero point
        high, low = exact.amax(axis, True), exact.amin(axis, True)
        reach = high - low if dt.kind == "uint" else torch.maximum(high, -low)
        step = reach.double() / float(dt.max) if dt.kind != "float" else exact.abs().double() / 8 + reach / 2 ** 15
        assert ((near - exact).abs() <= step * (1 + 2.0 ** -20)).all()
    got = ops.attention_decode(q, ks, vs, return_lse=True, **parameters)
    sizes = [keys.abs(), tokens.abs()]
    if dt.kind == "uint":  # codes and zero points are larger than what they stand for
        sizes[0] += 2 * (zeros[0].swapaxes(2, 3) * parameters["k_scale"][:, :, None]).abs()
        sizes[1] += 2 * (zeros[1] * parameters["v_scale"][..., None]).abs()
    check(q, keys.float(), tokens.float(), got, {"causal": True}, sizes=sizes)
    lengths = torch.full((2,), 70, dtype=torch.int32)  # of fp8 they were refused
    assert torch.equal(ops.attention_decode(q, ks, vs, seqused_k=lengths, **parameters), got[0])


@pytest.mark.parametrize("dt", [tile.i8, tile.f8e4m3, tile.f8e5m2], ids=str)
def test_scaled_queries_keep_their_digits(dt: tile.DType) -> None:
    """Queries of f16 times scales of f8e5m2 were no normal numbers; the LSE of one key is its score."""
    torch.manual_seed(5)
    q, k = torch.randn(1, 1, 1, 64).half(), 0.05 * torch.randn(1, 1, 1, 64)
    codes, others, parameters = ops.quantize_kv(k, k, dt)
    _, lse = ops.attention_decode(q, codes, others, scale=1.0, return_lse=True, **parameters)
    terms = q.double() * values(codes, parameters["k_scale"][:, :, None], None)
    assert ((lse - terms.sum(3)).abs() <= 2.0 ** -10 * terms.abs().sum(3)).all()


@pytest.mark.parametrize("dt", [tile.i8, tile.f8e5m2], ids=str)
def test_few_bits_emulated(dt: tile.DType) -> None:
    torch.manual_seed(4)
    q, k, v = torch.randn(1, 2, 1, 16).half(), torch.randn(1, 1, 40, 16), torch.randn(1, 1, 40, 16)
    codes, others, parameters = ops.quantize_kv(k, v, dt)
    want = ops.attention_decode(q, codes, others, **parameters)
    with tile.target("emulate:cuda:sm_80"):
        got = ops.attention_decode(q, codes, others, seqused_k=torch.tensor([40], dtype=torch.int32), **parameters)
    assert ((got - want).abs() <= 4 * 2.0 ** -11 * v.abs().max()).all()  # scaled queries and weights round to f16


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, first: torch.Tensor, interleaved: bool) -> Any:
    half = cos.shape[1]
    place = first[:, None, None].long() + torch.arange(x.shape[2])[None, None]
    c, s = cos[place].double(), sin[place].double()
    head, rest = x[..., :2 * half].double(), x[..., 2 * half:].double()
    one, two = (head[..., ::2], head[..., 1::2]) if interleaved else (head[..., :half], head[..., half:])
    a, b = one * c - two * s, two * c + one * s
    return torch.cat([torch.stack([a, b], -1).flatten(-2) if interleaved else torch.cat([a, b], -1), rest], -1)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("target", ["cpu", "emulate:cuda:sm_80"])
def test_append(interleaved: bool, target: str) -> None:
    torch.manual_seed(5)
    k, v = torch.randn(2, 2, 3, 24), torch.randn(2, 2, 3, 8)
    angle = torch.rand(64, 8) * 6
    cos, sin = angle.cos(), angle.sin()
    used = torch.tensor([14, 30], dtype=torch.int32)
    keys, tokens = torch.zeros(2, 2, 32, 24), torch.zeros(2, 2, 32, 8)
    with tile.target(target):
        ops.append_kv(keys, tokens, k, v, used, cos=cos, sin=sin, interleaved=interleaved)
        spun = ops.rotate(k, cos, sin, used, interleaved)
    want = turned(k, cos, sin, used, interleaved)
    assert ((spun.double() - want).abs() <= 4 * U * (k.abs().max() * 2)).all()
    for b, n in enumerate(used.tolist()):
        there = min(3, 32 - n)
        assert torch.equal(keys[b, :, n:n + there], spun[b, :, :there])
        assert torch.equal(tokens[b, :, n:n + there], v[b, :, :there])
        keys[b, :, n:n + there], tokens[b, :, n:n + there] = 0, 0
    assert not keys.any() and not tokens.any()


def test_append_to_pages() -> None:
    k, v = torch.randn(2, 1, 3, 8), torch.randn(2, 1, 3, 8)
    keys, tokens = torch.zeros(4, 1, 4, 8), torch.zeros(4, 1, 4, 8)
    table = torch.tensor([[2, 0], [1, 3]], dtype=torch.int32)
    ops.append_kv(keys, tokens, k, v, torch.tensor([2, 6], dtype=torch.int32), block_table=table)
    assert torch.equal(keys[2, 0, 2:], k[0, 0, :2]) and torch.equal(keys[0, 0, 0], k[0, 0, 2])
    assert torch.equal(tokens[3, 0, 2:], v[1, 0, :2]) and np.count_nonzero(tokens) == 5 * 8  # the sixth had no room


def test_operators() -> None:
    """A step of a decoder in one graph: keys and values are appended, stored in few bits, and attended to."""
    torch.manual_seed(6)
    q, k, v, new = torch.randn(2, 4, 1, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 1, 8)
    used = torch.tensor([3, 8], dtype=torch.int32)

    def step(k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        ops.append_kv(k, v, new, new, used)
        codes, others, parameters = ops.quantize_kv(k, v, tile.u4)
        few = ops.attention_decode(q, codes, others, seqused_k=used + 1, **parameters)
        return few + ops.attention_decode(q, k, v, seqused_k=used + 1, mask_mod=two_of_three)
    want = step(k.clone(), v.clone())
    torch._dynamo.reset()
    assert torch.equal(torch.compile(step, fullgraph=True, backend="aot_eager")(k, v), want)
    assert torch.equal(k[0, :, 3], new[0, :, 0]) and torch.equal(v[1, :, 8], new[1, :, 0])
    found = torch.ops.tilelang
    for op, args in ((found.append_kv, (k, v, new, new, used)), (found.quantize_kv, (k, v, "u2")),
                     (found.attention_decode, (q, k, v, "", "", True, 0.3, -1, -1, 0.0, used))):
        checks = ("test_schema", "test_faketensor")  # none has gradients
        assert set(torch.library.opcheck(op.default, args, test_utils=checks).values()) == {"SUCCESS"}
    assert torch.equal(torch.vmap(ops.attention_decode)(q[:, None], k[:, None], v[:, None])[:, 0],
                       ops.attention_decode(q, k, v))


def test_mistakes() -> None:
    x = torch.zeros(1, 2, 8, 16)
    with pytest.raises(ValueError, match="must give the lengths"):
        ops.attention_decode(x, x, x, block_table=torch.zeros(1, 1, dtype=torch.int32))
    with pytest.raises(ValueError, match="block_table needs shape"):
        ops.attention_decode(x, x, x, block_table=torch.zeros(1, dtype=torch.int32), seqused_k=torch.ones(1).int())
    with pytest.raises(ValueError, match="a page must hold a key"):
        ops.attention_decode(x, x[:, :, :0], x[:, :, :0], block_table=torch.zeros(1, 1, dtype=torch.int32),
                             seqused_k=torch.zeros(1, dtype=torch.int32))
    with pytest.raises(ValueError, match="splits must be a count"):
        ops.attention_decode(x, x, x, splits=-1)
    with pytest.raises(ValueError, match="needs a scale"):
        ops.attention_decode(x, x, x, k_zero=torch.zeros(1, 2, 16))
    with pytest.raises(ValueError, match="cos and sin"):
        ops.append_kv(x, x, x, x, torch.zeros(1, dtype=torch.int32), cos=torch.zeros(8, 4))
    with pytest.raises(ValueError, match="u2 to u8"):
        ops.quantize_kv(x, x, tile.i16)
