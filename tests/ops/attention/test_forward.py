"""Forward attention with every option, against f64."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tilelang as tile
from tests.ops.attention.oracle import EPS, attention, bounds, doubled, two_of_three, wavy
from tilelang import ops
from tilelang.errors import ArgumentDType
from tilelang.ops.attention import api, options, reference
from tilelang.ops.attention.options import blocks

OPTIONS: dict[str, Any] = {
    "causal, sinks": lambda h, s, n: {"causal": True, "sinks": torch.randn(h)},
    "window, softcap, alibi, mask": lambda h, s, n: {"window": (50, 9), "softcap": 3.0, "alibi": torch.rand(2, h),
                                                     "scale": 0.3, "bias": torch.rand(1, h, 1, n) > 0.3},
    "mods, left window, bias": lambda h, s, n: {"score_mod": wavy, "mask_mod": two_of_three, "window": (70, -1),
                                                "bias": torch.randn(2, 1, s, n)},
}
SHAPES = [(4, 2, 97, 150), (2, 2, 150, 97), (3, 1, 300, 301)]
"""(H, G, S, L); above the largest blocks, so that one compilation serves all."""


def check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any],
          products: float = 2.0 ** -24) -> None:
    got, lse = ops.attention(q, k, v, return_lse=True, **options)
    want, sums = attention(q.double(), k.double(), v.double(), **doubled(options))
    bound, near = bounds(q, k, v, want, products, **options)
    error = (got.double() - want).abs()
    assert (error <= bound + EPS[q.dtype] * want.abs() + 2.0 ** -25).all(), f"{error.max()} over {bound.max()}"
    empty = lse == torch.inf
    assert (got[empty] == 0).all() and (want[empty] == 0).all()
    assert ((lse - sums).abs() <= near + 2.0 ** -22 * sums.abs())[~empty].all()


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str) -> None:
    torch.manual_seed(0)
    for h, g, s, n in SHAPES:
        q, k, v = torch.randn(2, h, s, 24), torch.randn(2, g, n, 24), torch.randn(2, g, n, 40)
        check(q, k, v, OPTIONS[name](h, s, n))


@pytest.mark.parametrize("name", OPTIONS)
def test_few_queries_take_the_kernels_of_decoding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    monkeypatch.setattr(api, "forward", None)
    for h, g, s, n in [(4, 2, 7, 150), (2, 2, 3, 97), (3, 1, 1, 2)]:
        q, k, v = torch.randn(2, h, s, 24), torch.randn(2, g, n, 24), torch.randn(2, g, n, 40)
        check(q, k, v, OPTIONS[name](h, s, n))


@pytest.mark.parametrize("dt", [torch.float16, torch.bfloat16])
def test_half_precision(dt: torch.dtype) -> None:
    torch.manual_seed(1)
    q, k, v = (torch.randn(2, n, 130, 32).to(dt) for n in (4, 2, 2))
    rounded = dt is torch.bfloat16 or tile.on_gpu(q, k, v)
    check(q, k, v, {"causal": True}, products=EPS[dt] if rounded else 2.0 ** -24)


@pytest.mark.parametrize(("d", "e"), [(16, 16), (192, 128), (256, 256), (576, 512)])
def test_head_dimensions(d: int, e: int) -> None:
    torch.manual_seed(2)
    check(torch.randn(1, 2, 40, d), torch.randn(1, 1, 30, d), torch.randn(1, 1, 30, e), {})


@pytest.mark.parametrize("target", ["emulate:cuda:sm_80", "emulate:hip:gfx942"])
def test_emulated(target: str) -> None:
    torch.manual_seed(3)
    q, k, v = (torch.randn(1, h, s, d).half() for h, s, d in ((2, 20, 32), (1, 40, 32), (1, 40, 16)))
    with tile.target(target):
        check(q, k, v, {"window": (9, 3), "softcap": 3.0, "alibi": torch.rand(2), "sinks": torch.randn(2),
                        "mask_mod": two_of_three}, products=2.0 ** -11)


def test_no_keys() -> None:
    got, lse = ops.attention(torch.randn(1, 3, 20, 16), torch.randn(1, 1, 0, 16), torch.randn(1, 1, 0, 16),
                             return_lse=True)
    assert (got == 0).all() and (lse == torch.inf).all()


def test_strides() -> None:
    """[B, S, H, D] as models hold it, and a result of that kind."""
    q, k, v = (torch.randn(2, 130, h, 32).half() for h in (4, 2, 2))
    store = torch.zeros(2, 130, 4, 32).half()
    got, _ = ops.attention(*(x.transpose(1, 2) for x in (q, k, v)), True, out=store.transpose(1, 2), return_lse=True)
    same, _ = ops.attention(*(x.transpose(1, 2).contiguous() for x in (q, k, v)), True, return_lse=True)
    assert got.data_ptr() == store.data_ptr() and torch.equal(got, same) and torch.equal(store.transpose(1, 2), same)


def test_lengths_and_what_lies_beyond() -> None:
    torch.manual_seed(4)
    q, k, v = (torch.randn(3, h, 50, 16) for h in (2, 1, 1))
    lengths = torch.tensor([0, 17, 50], dtype=torch.int32)
    for b, n in enumerate(lengths.tolist()):
        k[b, :, n:], v[b, :, n:] = torch.nan, torch.nan
    got, lse = ops.attention(q, k, v, seqused_k=lengths, return_lse=True)
    assert (got[0] == 0).all() and (lse[0] == torch.inf).all()
    for b, n in ((1, 17), (2, 50)):
        alone = ops.attention(q[b:b + 1], k[b:b + 1, :, :n], v[b:b + 1, :, :n])
        assert torch.isfinite(got[b]).all() and torch.allclose(got[b:b + 1], alone, rtol=0, atol=2.0 ** -20)


def test_the_reference_says_the_same() -> None:
    torch.manual_seed(5)
    q, k, v = (torch.randn(2, h, n, 8, dtype=torch.float64) for h, n in ((2, 9), (1, 12), (1, 12)))
    options: dict[str, Any] = {"window": (3, 1), "softcap": 2.0, "alibi": torch.rand(2), "sinks": torch.randn(2)}
    want = attention(q, k, v, **doubled(options))
    got = reference(q, k, v, return_lse=True, **options)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=64 * 2.0 ** -52)


@pytest.mark.parametrize(("options", "words"), [
    ({"window": (3,)}, "window must be"), ({"window": 3}, "window must be"),
    ({"softcap": float("inf")}, "softcap must be positive and finite"),
    ({"seqused_k": torch.tensor([8, 8], dtype=torch.int32)}, "1 sequences need lengths of as many, got those of 2"),
    ({"seqused_q": torch.zeros(0, dtype=torch.int32)}, "1 sequences need lengths of as many, got those of 0"),
    ({"window": (-2, 0)}, "window must be"), ({"softcap": -1.0}, "softcap"),
    ({"alibi": torch.ones(3)}, r"alibi needs shape \[2\]"), ({"sinks": torch.ones(3)}, r"sinks needs shape \[2\]"),
    ({"score_mod": lambda s, b, h, i, j: s}, "@tile.function"), ({"bias": torch.ones(3, 3)}, "bias"),
])
def test_mistakes(options: dict[str, Any], words: str) -> None:
    x = torch.zeros(1, 2, 8, 16)
    with pytest.raises(ValueError, match=words):
        ops.attention(x, x, x, **options)


def test_mistaken_tensors() -> None:
    x = torch.zeros(1, 2, 8, 16)
    with pytest.raises(ValueError, match="f32, f16 or bf16"):
        ops.attention(x.double(), x.double(), x.double())
    with pytest.raises(ValueError, match="multiple of the"):
        ops.attention(torch.zeros(1, 3, 8, 16), x, x)


@pytest.mark.parametrize("queries", [1, 40])
def test_keys_of_other_batches_are_refused(queries: int) -> None:
    """Kernels took those that are missing for 0, and left out the others."""
    q, x, bias = torch.zeros(2, 2, queries, 16), torch.zeros(1, 2, 8, 16), torch.zeros(1, 2, 8)
    none = torch.zeros(2, dtype=torch.int32)
    for call in (lambda: ops.attention(q, x, x), lambda: ops.attention_decode(q, x, x), lambda: ops.lla(q, x, x),
                 lambda: ops.attention_backward(q, q, x, x, q, q[..., 0]),
                 lambda: ops.mla_decode(q, x[:, 0], columns=9), lambda: ops.append_kv(x, x, q, q, none),
                 lambda: ops.dynamic_mask_attention(q, x, x, bias, 3)):
        with pytest.raises(ValueError, match="2 sequences need keys of as many, got those of 1"):
            call()


def test_few_queries_take_keys_of_their_dtype_as_many_do() -> None:
    q, x = torch.zeros(1, 2, 1, 16), torch.zeros(1, 2, 8, 16)
    with pytest.raises(ArgumentDType):
        ops.attention(q, x.double(), x.double())


def test_tensors_of_other_ranks_are_refused() -> None:
    x, y = torch.zeros(2, 8, 16), torch.zeros(1, 2, 8, 16)
    for call in (lambda: ops.lla(x, y, y), lambda: ops.lla_decode(y, y, y), lambda: ops.mla_decode(x, x),
                 lambda: ops.dynamic_mask_attention(x, y, y, x[:1], 3),
                 lambda: ops.append_kv(y, y, x, x, torch.zeros(2, dtype=torch.int32))):
        with pytest.raises(ValueError, match="dimensions"):
            call()


@pytest.mark.parametrize(("target", "dt"), [("cpu", torch.float32), ("cpu", torch.bfloat16),
                                            ("emulate:cuda:sm_80", torch.float16)])
def test_scores_may_be_as_large_as_documented(target: str, dt: torch.dtype) -> None:
    """Products are integers, so that none is rounded, and the factor is no power of two."""
    torch.manual_seed(9)
    q, k = (torch.randint(-3, 4, (1, 2, n, 16)).to(dt) for n in (33, 40))
    v = torch.randint(-8, 9, (1, 2, 40, 8)).to(dt)
    products = q.double() @ k.double().mT
    want = torch.softmax(products * 1e9, -1) @ v.double()
    with tile.target(target):
        got, lse = ops.attention(q, k, v, scale=2.0 ** 27 / float(products.abs().max()), return_lse=True)
    assert torch.isfinite(lse).all() and ((got.double() - want).abs() <= 8 * 2.0 ** (-20 if dt.itemsize == 4 else -7)
                                          ).all()


def test_queries_and_keys_of_no_elements() -> None:
    """Python divided by zero."""
    x, y, z = torch.zeros(1, 2, 8, 0), torch.zeros(1, 2, 8, 4), torch.zeros(8, 2, 0)
    cu, nothing = torch.tensor([0, 8], dtype=torch.int32), torch.zeros(1, 2, 8)
    for call in (lambda: ops.attention(x, x, y), lambda: ops.attention(x.numpy(), x.numpy(), y.numpy(), scale=1.0),
                 lambda: ops.attention_decode(x, x, y), lambda: ops.attention_varlen(z, z, z, cu, cu, 8, 8),
                 lambda: ops.lla(x, x, y), lambda: ops.lla_varlen(z, z, z, cu, cu, 8, 8),
                 lambda: ops.lla_decode(x[:, :, 0], x, y), lambda: ops.mla_decode(x, x[0], 4),
                 lambda: ops.based(x, x, y), lambda: ops.dynamic_mask_attention(x, x, y, nothing, 4)):
        with pytest.raises(ValueError, match="D must be at least 1, got 0"):
            call()


def test_blocks_that_other_warps_copy_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """On sm_90a, where every processor has one: two groups of warps multiply. Neither the last queries nor the last
    keys fill their blocks."""
    torch.manual_seed(3)
    q, k, v = (torch.randn(1, 1, n, 128, dtype=torch.float16) for n in (200, 264, 264))
    with tile.target("emulate:cuda:sm_90a"):
        assert blocks(q, k, v, 200, 264, "forward")["BM"] == 64
        monkeypatch.setattr(options, "PROCESSORS", 2)
        assert blocks(q, k, v, 200, 264, "forward")["BM"] == blocks(q, k, v, 200, 264, "forward")["BN"] == 128
        check(q, k, v, {"causal": True}, 2.0 ** -11)
