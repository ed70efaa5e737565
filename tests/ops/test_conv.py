"""Causal depthwise convolution against its f64 reference, and its gradients against torch's in f64."""
from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch

from tilelang import ops

conv = import_module("tilelang.ops.conv")
EPS = 2.0 ** -23


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize(("b", "d", "s", "w", "biased"), [
    (1, 1, 1, 1, True), (2, 11, 300, 4, True), (2, 3, 2, 4, False)])
def test_causal_conv1d(b: int, d: int, s: int, w: int, biased: bool, activation: str | None) -> None:
    x, weight = torch.randn(b, d, s, requires_grad=True), torch.randn(d, w, requires_grad=True)
    bias = torch.randn(d, requires_grad=True) if biased else None
    leaves = [t for t in (x, weight, bias) if t is not None]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    z = torch.nn.functional.conv1d(torch.nn.functional.pad(exact[0], (w - 1, 0)), exact[1][:, None],
                                   exact[2] if biased else None, groups=d)
    want = torch.nn.functional.silu(z) if activation else z
    np.testing.assert_allclose(conv.reference(*(t.detach().numpy() for t in exact), *([] if biased else [None]),
                                              activation), want.detach().numpy(), rtol=0, atol=64 * 2.0 ** -52 * 8)
    got = ops.causal_conv1d(x, weight, bias, activation)
    terms = conv.reference(x.detach().abs(), weight.detach().abs(), bias.detach().abs() if biased else None)
    assert (abs(got.detach() - want) <= 2 * (w + 8) * EPS * torch.tensor(terms)).all()
    dy = torch.randn(b, d, s)
    # silu' is at most 1.1, silu'' at most 1/2: what an error of z may change of dz, and dz itself
    dz = dy.abs() * (1.1 + (w + 8) * torch.tensor(terms))
    sizes = [w * dz.max() * weight.detach().abs().max(), (dz.sum((0, 2)) * x.detach().abs().max())[:, None],
             dz.sum((0, 2))]
    for g, e, size in zip(torch.autograd.grad(got, leaves, dy), torch.autograd.grad(want, exact, dy.double()), sizes,
                          strict=False):
        assert (abs(g - e) <= 8 * EPS * size).all()
    assert conv.causal_conv1d._ready()
    assert set(torch.library.opcheck(torch.ops.tilelang.causal_conv1d.default, (x, weight, bias, activation)).values()
               ) == {"SUCCESS"}


def test_it_names_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="activation must be None or 'silu'"):
        ops.causal_conv1d(np.zeros((1, 1, 1)), np.zeros((1, 1)), activation="gelu")


def test_no_taps() -> None:
    """The bias is all there is, and has a gradient: it was whatever memory held."""
    x, weight, bias = torch.randn(2, 3, 5), torch.zeros(3, 0), torch.randn(3, requires_grad=True)
    y = ops.causal_conv1d(x, weight, bias)
    assert torch.equal(y, bias[None, :, None].expand(2, 3, 5))
    assert torch.equal(torch.autograd.grad(y.sum(), bias)[0], torch.full((3,), 10.0))
