"""Gradients of attention against torch's in f64: errors at most three times those of torch's own in the same dtype."""
from __future__ import annotations

from typing import Any

import pytest
import torch

import tilelang as tile
from tests.ops.attention.oracle import attention, two_of_three
from tests.ops.attention.test_forward import OPTIONS, SHAPES
from tilelang import ops
from tilelang.errors import UnsupportedSyntax


def gradients(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, do: torch.Tensor, dlse: torch.Tensor,
              options: dict[str, Any], dt: torch.dtype) -> list[torch.Tensor]:
    """By torch, in a dtype."""
    inputs = [x.to(dt, copy=True).requires_grad_() for x in (q, k, v)]
    options = dict(options)
    if "sinks" in options:
        options["sinks"] = options["sinks"].to(dt, copy=True).requires_grad_()
        inputs.append(options["sinks"])
    o, lse = attention(*inputs[:3], **options)
    return list(torch.autograd.grad((o * do.to(dt)).sum() + (lse * dlse.to(dt)).sum(), inputs))


def check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> None:
    """The rule of flash-attn's tests: three times the error of the same computation in the operands' dtype. Where that
    error is small by luck, eight units of the largest gradient."""
    o, lse = ops.attention(q, k, v, return_lse=True, **options)
    do, dlse = torch.randn(o.shape).to(q.dtype), torch.randn(lse.shape)
    got, again = (ops.attention_backward(do, q, k, v, o, lse, dlse=dlse, **options) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
    want, same = (gradients(q, k, v, do, dlse, options, dt) for dt in (torch.float64, q.dtype))
    assert len(got) == len(want)
    for name, a, b, c in zip(("dq", "dk", "dv", "dsinks"), got, want, same, strict=False):
        error, theirs = (a.double() - b).abs().max(), (c.double() - b).abs().max()
        units = torch.finfo(a.dtype).eps * b.abs().max()
        assert error <= 3 * theirs + 8 * units, f"{name}: {error} beside {theirs}"


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str) -> None:
    torch.manual_seed(0)
    for h, g, s, n in SHAPES:
        q, k, v = torch.randn(2, h, s, 24), torch.randn(2, g, n, 24), torch.randn(2, g, n, 40)
        check(q, k, v, OPTIONS[name](h, s, n))


def test_half_precision() -> None:
    torch.manual_seed(1)
    check(*(torch.randn(2, n, 130, 32).bfloat16() for n in (4, 2, 2)), {"causal": True})


@pytest.mark.parametrize("target", ["emulate:cuda:sm_80", "emulate:hip:gfx942"])
def test_emulated(target: str) -> None:
    torch.manual_seed(3)
    q, k, v = (torch.randn(1, h, s, d).half() for h, s, d in ((2, 20, 32), (1, 40, 32), (1, 40, 16)))
    with tile.target(target):
        check(q, k, v, {"window": (9, 3), "softcap": 3.0, "sinks": torch.randn(2), "mask_mod": two_of_three})


def test_scores_without_a_derivative_are_refused() -> None:
    @tile.function
    def running(s, b, h, i, j):
        return tile.cumsum(s, 1)
    x = torch.randn(1, 1, 8, 16)
    with pytest.raises(UnsupportedSyntax, match="has no derivative"):
        ops.attention_backward(x, x, x, x, x, x[..., 0], score_mod=running)
