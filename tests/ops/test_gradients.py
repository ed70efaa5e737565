"""Backward kernels against f64 references within derived bounds, and those references against torch's gradients."""
from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch

from tilelang.ops import norm, reduction
from tilelang.testing import fuzz

activation, linear, matmul, softmax = (import_module(f"tilelang.ops.{n}") for n in (
    "activation", "linear", "matmul", "softmax"))


def _grads(f: Any, *inputs: Any) -> tuple[Any, list[Any]]:
    """(the result's gradient drawn at random, gradients of the inputs) by torch in f64."""
    leaves = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in inputs]
    y = f(*leaves)
    dy = torch.randn_like(y)
    return dy.numpy(), [g.numpy() for g in torch.autograd.grad(y, leaves, dy)]


def _same(got: Any, want: Any) -> None:
    """f64 on both sides: sums of at most 64 terms of magnitude 1."""
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=0, atol=64 * 64 * 2.0 ** -52 * max(1.0, abs(w).max()))


def test_references_are_the_gradients() -> None:
    rng = np.random.default_rng(0)
    x, w, b = rng.standard_normal((5, 33)), rng.standard_normal(33), rng.standard_normal(33)
    functional = torch.nn.functional
    dy, want = _grads(lambda x: x.softmax(-1), x)
    _same([softmax.backward_reference(softmax.reference(x), dy)], want)
    dy, want = _grads(functional.gelu, x)
    _same([activation.backward_reference(x, dy)], want)
    dy, want = _grads(lambda x, w: functional.rms_norm(x, (33,), w, 1e-6), x, w)
    _same(norm.backward_reference(x, w, dy, 1e-6, False)[:2], want)
    dy, want = _grads(lambda x, w, b: functional.layer_norm(x, (33,), w, b, 1e-5), x, w, b)
    _same(norm.backward_reference(x, w, dy, 1e-5, True), want)


def test_kernels_fuzzed() -> None:
    small = {"M": (0, 1, 3, 17), "N": (1, 2, 33, 64)}
    fuzz(softmax.softmax_backward_kernel, softmax.backward_reference, consts={"BM": [1, 4], "BN": [16, 64]},
         extents=small)
    fuzz(activation.gelu_backward_kernel, activation.backward_reference)


@pytest.mark.parametrize(("m", "n"), [(0, 3), (1, 1), (7, 33), (200, 300)])
def test_sum_rows(m: int, n: int) -> None:
    x = np.random.default_rng(0).integers(-9, 9, (m, n)).astype(np.float32)  # sums of integers are exact
    np.testing.assert_array_equal(reduction.sum_rows(x, x), reduction.reference(x))


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (7, 33), (100, 64)])
def test_norm_backward(m: int, n: int, centred: bool, more: bool) -> None:
    """Against f64, within the error of n additions and the rounding of every factor."""
    rng = np.random.default_rng(0)
    x, dy, extra = (rng.standard_normal((m, n)).astype(np.float32) for _ in range(3))
    w = rng.standard_normal(n).astype(np.float32)
    want = norm.backward_reference(x, w, dy, 1e-3, centred)
    dx, dw, *db = norm._backward(x, w, dy, 1e-3, centred, extra if more else None)
    scale = 1 / np.sqrt(((x - x.mean(1, keepdims=True) * centred) ** 2).mean(1, keepdims=True) + 1e-3)
    unit = abs(x - x.mean(1, keepdims=True) * centred) * scale
    size = (1 + unit * unit.mean(1, keepdims=True)) * (abs(dy * w) + abs(dy * w).mean(1, keepdims=True)) * scale
    grow = 1 + abs(x).max() * scale.max() if centred else 1  # what taking off the mean may cancel
    error = (n + 16) * 2.0 ** -23 * grow
    assert (abs(dx - want[0] - (extra if more else 0)) <= error * (size + abs(extra) * more)).all()
    assert (abs(dw - want[1]) <= (m * 2.0 ** -23 + error) * (abs(dy) * (unit + 1)).sum(0)).all()
    if centred:
        assert (abs(db[0] - want[2]) <= m * 2.0 ** -23 * abs(dy).sum(0)).all()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [None, "gelu"])
def test_linear_backward(bias: bool, kind: str | None) -> None:
    x, w, b, dy = torch.randn(2, 19, 70), torch.randn(45, 70), torch.randn(45), torch.randn(2, 19, 45)
    given = b if bias else None
    leaves = [t.double().requires_grad_() for t in (x, w, b)]
    z = torch.nn.functional.linear(leaves[0], leaves[1], leaves[2] if bias else None)
    want = torch.autograd.grad(torch.nn.functional.gelu(z) if kind else z, leaves, dy.double(), allow_unused=True)
    got = linear.linear_backward(x, w, dy, given, kind)
    size = 2 * (1 + 72 * (abs(x) @ abs(w).T + abs(b)) if kind else 1) * abs(dy)  # gelu's second derivative is below 2
    bounds = (size @ abs(w), size.flatten(0, 1).T @ abs(x).flatten(0, 1), size.sum((0, 1)))
    for g, e, s, n in zip(got, want, bounds, (45, 38, 38), strict=True):
        assert e is None or (abs(g - e) <= (n + 4) * 2.0 ** -23 * s).all()


def test_integers_have_no_gradient() -> None:
    a = np.zeros((2, 2), np.int8)
    with pytest.raises(TypeError, match="needs a float dtype, got int8"):
        matmul.matmul_backward(a, a, np.zeros((2, 2), np.int32))
