"""Dynamic mask attention: the mask against sorting, results and gradients against those of the same mask as a bias."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tilelang as tile
from tests.ops.attention.oracle import EPS, attention, bounds
from tilelang import ops
from tilelang.ops.attention import dynamic


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("keep", [1, 7, 64, 500])
def test_mask_is_that_of_sorting(keep: int, causal: bool) -> None:
    """With many ties, infinite biases and the order reversed, at sizes around those of blocks."""
    rng = np.random.default_rng(0)
    for length in (1, 15, 64, 130):
        rising = np.arange(length) // 2
        holes = np.where(rising % 3, rng.random(length), -np.inf)
        rows = rng.integers(0, 9, length), rising, -rising, holes, np.zeros(length)
        bias = np.stack(rows)[None].astype(np.float32)
        until = np.zeros(bias.shape, np.int32)
        dynamic.until_kernel(bias, until, keep, CAUSAL=causal, BI=32, BN=48)
        place, j = np.arange(length)[:, None], np.arange(length)[None, :]
        got = (place < until[:, :, None, :]) & ((j <= place) | (not causal))
        np.testing.assert_array_equal(got, dynamic.kept(bias, length, keep, causal))


def check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, keep: int, causal: bool = True,
          products: float = 2.0 ** -24) -> None:
    """Results within the bound of attention with this bias; gradients by the rule of flash-attn's tests."""
    leaves = [x.requires_grad_() for x in (q, k, v, bias)]
    o, lse = ops.dynamic_mask_attention(*leaves, keep, causal, return_lse=True)
    mask = torch.tensor(dynamic.kept(bias.detach().double().numpy(), q.shape[2], keep, causal))
    repeat = q.shape[1] // k.shape[1]

    def dense(dt: torch.dtype) -> Any:
        """(inputs, options, results) of attention with the mask and the bias, in a dtype."""
        ours = [x.detach().to(dt, copy=True).requires_grad_() for x in leaves]
        each = ours[3][:, :, None, :].repeat_interleave(repeat, 1)
        options: dict[str, Any] = {"score_mod": lambda s, *_: s + each, "bias": mask.repeat_interleave(repeat, 1)}
        return ours, options, attention(*ours[:3], **options)
    inputs, options, (want, sums) = dense(torch.float64)
    numpy = [x.detach().double().numpy() for x in leaves]
    np.testing.assert_allclose(dynamic.reference(*numpy, keep, causal), want.detach().numpy(), rtol=0, atol=2.0 ** -40)
    bound, near = bounds(*(x.detach() for x in leaves[:3]), want.detach(), products, **options)
    seen = lse != torch.inf
    assert ((o.double() - want).abs() <= bound + EPS[q.dtype] * want.abs() + 2.0 ** -24).all()
    assert ((lse - sums).abs() <= near + 2.0 ** -22 * sums.abs())[seen].all() and (o[~seen] == 0).all()
    do, dlse = torch.randn(o.shape).to(q.dtype), torch.randn(lse.shape)
    got = torch.autograd.grad((o * do).sum() + (lse[seen] * dlse[seen]).sum(), leaves)
    exact = torch.autograd.grad((want * do).sum() + (sums[seen] * dlse[seen]).sum(), inputs)
    same_inputs, _, (same, low) = dense(q.dtype)
    same_grads = torch.autograd.grad((same * do).sum() + (low[seen] * dlse.to(low.dtype)[seen]).sum(), same_inputs)
    cancel = largest(do.double().abs() @ v.double().repeat_interleave(repeat, 1).abs().mT) * \
        max(1.0, largest(q), largest(k))  # to nothing for a query of one key
    for g, e, s in zip(got, exact, same_grads, strict=True):
        error, theirs = largest(g.double() - e), largest(s.double() - e)
        assert error <= 3 * theirs + 8 * torch.finfo(g.dtype).eps * (largest(e) + cancel)


def largest(x: torch.Tensor) -> float:
    """Magnitude; of nothing 0."""
    return float(x.detach().abs().max()) if x.numel() else 0.0


@pytest.mark.parametrize(("h", "g", "s", "length", "keep", "causal"), [
    (4, 2, 97, 150, 20, True), (2, 2, 150, 130, 9, True), (3, 1, 130, 260, 300, True), (2, 1, 100, 140, 5, False),
    (1, 1, 228, 228, 40, True)])
def test_as_attention_with_that_mask(h: int, g: int, s: int, length: int, keep: int, causal: bool) -> None:
    torch.manual_seed(0)
    check(torch.randn(2, h, s, 24), torch.randn(2, g, length, 24), torch.randn(2, g, length, 40),
          torch.randn(2, g, length), keep, causal)


@pytest.mark.parametrize("target", ["emulate:cuda:sm_80", "emulate:hip:gfx942"])
def test_emulated(target: str) -> None:
    torch.manual_seed(1)
    q, k, v = (torch.randn(1, n, 40, 16).half() for n in (2, 1, 1))
    with tile.target(target):
        check(q, k, v, torch.randn(1, 1, 40), 6, products=2.0 ** -11)


def test_operator() -> None:
    q, k, v = (torch.randn(1, n, 9, 16, requires_grad=True) for n in (2, 1, 1))
    bias = torch.randn(1, 1, 9, requires_grad=True)
    assert dynamic._forward._ready()
    result = torch.library.opcheck(torch.ops.tilelang.dynamic_mask_attention.default, (q, k, v, bias, 3, True, 0.25))
    assert set(result.values()) == {"SUCCESS"}
    compiled: Any = torch.compile(lambda *a: ops.dynamic_mask_attention(*a, 3), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k, v, bias), ops.dynamic_mask_attention(q, k, v, bias, 3))
    with pytest.raises(ValueError, match="keep a count of at least 1"):
        ops.dynamic_mask_attention(q, k, v, bias, 0)
