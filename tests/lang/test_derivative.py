"""Derivatives of every elementwise operation, against torch's in f64."""
from __future__ import annotations

import numpy as np
import pytest
import torch

import tilelang as tile
from tilelang.errors import UnsupportedSyntax

F64 = 2.0 ** -50
"""Relative error allowed: a dozen roundings of f64, and functions of a few units."""


def pair(name, ours, theirs):
    return pytest.param(tile.function(ours), theirs, id=name)


def smooth(x):
    return tile.exp(x) * tile.sin(x) / (tile.cos(x) * tile.cos(x) + 2.0) - tile.tanh(x * 0.5) + tile.erf(x)


def roots(x):
    positive = x * x + 1.0
    return tile.sqrt(positive) * tile.rsqrt(positive + 1.0) + tile.log(positive) - tile.log2(positive) + tile.exp2(-x)


def pieces(x):
    return tile.where(x > 0.5, abs(x) * tile.sigmoid(x), tile.maximum(x, -1.0) + tile.minimum(2.0 * x, 0.25 - x))


def steps(x):
    return tile.fma(x, x + tile.floor(x), 3.0) + x.to(tile.i32).to(tile.f64) + tile.round(x)


@tile.kernel
def slope(x: tile.Tensor[tile.f64, "N"], y: tile.Out[tile.f64, "N"], F: tile.Const):
    v = tile.load(x, (0,), (64,))
    tile.store(y, (0,), tile.derivative(F(v), v))


@pytest.mark.parametrize(("ours", "theirs"), [
    pair("smooth", smooth, lambda x: x.exp() * x.sin() / (x.cos() ** 2 + 2) - (x * 0.5).tanh() + x.erf()),
    pair("roots", roots, lambda x: (x * x + 1).sqrt() * (x * x + 2).rsqrt() + (x * x + 1).log() - (x * x + 1).log2()
         + torch.exp2(-x)),
    pair("pieces", pieces, lambda x: torch.where(x > 0.5, x.abs() * x.sigmoid(), torch.clamp(x, min=-1)
                                                 + torch.minimum(2 * x, 0.25 - x))),
    pair("steps", steps, lambda x: x * (x + x.floor().detach()) + 3),
])
def test_derivative(ours: tile.Const, theirs: tile.Const) -> None:
    x = torch.linspace(-2.99, 3.01, 64, dtype=torch.float64, requires_grad=True)
    theirs(x).sum().backward()
    assert x.grad is not None
    want = x.grad.numpy()
    got = slope.reference(x.detach().numpy(), F=ours)
    assert (abs(got - want) <= F64 * (1 + abs(want)) * 16).all()


def test_what_does_not_depend_on_it_is_zero() -> None:
    @tile.function
    def other(x):
        return tile.arange(64).to(tile.f64)
    assert not slope(np.ones(64), F=other).any()


def test_other_operations_are_refused() -> None:
    @tile.function
    def running(x):
        return tile.cumsum(x, 0)
    with pytest.raises(UnsupportedSyntax, match="`scan` has no derivative"):
        slope(np.ones(64), F=running)
