"""Gated units, cross entropy and the gradient of rotary embedding, within derived bounds of f64 references."""
from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch

import tilelang as tile
from tilelang import ops
from tilelang.errors import AssertFailed
from tilelang.testing import fuzz

cross_entropy, glu = (import_module(f"tilelang.ops.{n}") for n in ("cross_entropy", "glu"))
EPS = 2.0 ** -23


def opcheck(op: Any, *args: Any) -> None:
    assert op._ready() and set(torch.library.opcheck(op._op, args).values()) == {"SUCCESS"}


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotate_turns_gradients_back(interleaved: bool) -> None:
    """A turn is orthogonal: <turn(x), dy> = <x, turn back(dy)>, and the operator knows it."""
    x, dy = torch.randn(2, 3, 7, 20, requires_grad=True), torch.randn(2, 3, 7, 20)
    angle, first = torch.randn(16, 8), torch.tensor([0, 9], dtype=torch.int32)
    y = ops.rotate(x, angle.cos(), angle.sin(), first, interleaved)
    back, = torch.autograd.grad(y, x, dy)
    assert torch.equal(back, ops.rotate(dy, angle.cos(), -angle.sin(), first, interleaved))
    left, right = (y.double() * dy).sum(), (x.double() * back).sum()
    assert abs(left - right) <= 4 * EPS * (x.norm() * dy.norm())  # each turn: two products and a sum
    opcheck(ops.rotate, x, angle.cos(), angle.sin(), first, interleaved)


@pytest.mark.parametrize("act", ["silu", "gelu"])
def test_glu(act: str) -> None:
    g, u, dy = np.random.default_rng(0).standard_normal((3, 5, 33))
    leaves = [torch.tensor(x, requires_grad=True) for x in (g, u)]
    f = torch.nn.functional.silu if act == "silu" else torch.nn.functional.gelu
    want = torch.autograd.grad(f(leaves[0]) * leaves[1], leaves, torch.tensor(dy))
    for a, b in zip(glu.backward_reference(g, u, dy, act), want, strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=0, atol=64 * 2.0 ** -52 * abs(a).max())
    consts, small = {"ACT": [glu.ACTIVATIONS[act]], "BN": [16]}, {"M": (3,), "N": (1, 33)}
    fuzz(glu.glu_kernel, lambda g, u: glu.reference(g, u, act), consts=consts, extents=small)
    fuzz(glu.glu_backward_kernel, lambda g, u, d: glu.backward_reference(g, u, d, act), consts=consts, extents=small)
    x = torch.randn(4, 66, requires_grad=True)
    assert torch.equal(ops.glu(*x.chunk(2, -1), act), ops.glu(*(h.contiguous() for h in x.chunk(2, -1)), act))
    opcheck(ops.glu, *(h.detach().requires_grad_() for h in x.chunk(2, -1)), act)


def test_glu_names_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="activation must be one of"):
        ops.glu(np.zeros((1, 1)), np.zeros((1, 1)), "relu")


def test_cross_entropy_kernels() -> None:
    """Targets below the fewest columns drawn, one of them ignored."""
    def loss(x: Any, target: Any, ignore: Any) -> Any:
        top = x.max(1, initial=-np.inf)
        return cross_entropy.reference(x, target, ignore), np.log(np.exp(x - top[:, None]).sum(1)) + top

    def check(m: int, n: int, bm: int, bn: int) -> None:
        rng = np.random.default_rng(0)
        x, target = rng.standard_normal((m, n)).astype(np.float32) * 4, rng.integers(0, n, m)
        target[::3] = -100
        got = cross_entropy.cross_entropy_kernel(x, target, ignore=-100, BM=bm, BN=bn)
        for g, w in zip(got, loss(x.astype(np.float64), target, -100), strict=True):
            assert (abs(g - w) <= (n + 16) * 2.0 ** -23 * (abs(x).max() + 1)).all()
        dloss = rng.standard_normal(m).astype(np.float32)
        dx = cross_entropy.cross_entropy_backward_kernel(x, target, got[1], dloss, ignore=-100, BM=bm, BN=bn)
        p = np.exp(x.astype(np.float64) - loss(x.astype(np.float64), target, -100)[1][:, None])
        p[np.arange(m), np.maximum(target, 0)] -= 1
        want = p * np.where(target == -100, 0, dloss)[:, None]
        assert (abs(dx - want) <= (n + 16) * 2.0 ** -23 * (abs(x).max() + 1) * abs(dloss)[:, None]).all()
    for shape in ((1, 1, 1, 64), (7, 100, 4, 32), (33, 64, 8, 64)):
        check(*shape)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_linear_cross_entropy_is_a_linear_layer_and_cross_entropy(reduction: str, monkeypatch: pytest.MonkeyPatch
                                                                  ) -> None:
    """In chunks of 16 rows: to the bit what is had with all logits at once, but for the sum of dw over chunks."""
    monkeypatch.setattr(cross_entropy, "CHUNK", 16 * 50)
    x, w = torch.randn(45, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    target = torch.randint(0, 50, (45,))
    target[3] = -100
    got = ops.linear_cross_entropy(x, w, target, reduction=reduction)
    plain = ops.cross_entropy(ops.matmul(x, w.T), target, reduction=reduction)
    assert torch.equal(got, plain)
    want = torch.nn.functional.cross_entropy(x.double() @ w.double().T, target, reduction=reduction)
    assert (abs(got - want) <= 64 * EPS * 32).all()
    grads = [torch.autograd.grad(y.sum(), (x, w)) for y in (got, plain)]
    assert torch.equal(grads[0][0], grads[1][0])
    assert (abs(grads[0][1] - grads[1][1]) <= 45 * EPS * x.abs().sum(0)).all()


def test_cross_entropy_operators() -> None:
    x, w = torch.randn(5, 16, requires_grad=True), torch.randn(7, 16, requires_grad=True)
    target = torch.tensor([0, 6, -100, 3, 2])
    opcheck(cross_entropy._forward, x, target)
    opcheck(cross_entropy._linear_forward, x, w, target)
    with pytest.raises(tile.errors.AssertFailed, match="a target is no class"):
        ops.cross_entropy(x, target + 12)
    with pytest.raises(ValueError, match=r"4 rows need as many targets, got \[5\]"):
        ops.linear_cross_entropy(x[:4], w, target)
    with pytest.raises(ValueError, match="reduction must be"):
        ops.cross_entropy(x, target, reduction="max")


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.bool])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    """They would be computed in f32."""
    x, w, target, where = (torch.ones(shape, dtype=t) for shape, t in (
        ((4, 4), dtype), (4, dtype), (4, torch.int64), (1, torch.int32)))
    wide, delta = x[None], torch.ones(4, 4)
    for call in (lambda: ops.softmax(x), lambda: ops.gelu(x), lambda: ops.glu(x, x), lambda: ops.rms_norm(x, w),
                 lambda: ops.layer_norm(x, w, w), lambda: ops.add_rms_norm(x, x, w), lambda: ops.linear(x, x),
                 lambda: ops.cross_entropy(x, target), lambda: ops.linear_cross_entropy(x, x, target),
                 lambda: ops.causal_conv1d(wide, x), lambda: ops.selective_scan(wide, wide, delta, wide, wide),
                 lambda: ops.rotate(wide[None], delta, delta), lambda: ops.quantize_kv(wide[None], wide[None], "i8"),
                 lambda: ops.grouped_matmul(x, wide, torch.cat([where - 1, where + 3]))):
        with pytest.raises(ValueError, match="takes f32, f16 or bf16, got "):
            call()


def test_shapes_that_only_agree_in_the_number_of_rows() -> None:
    x, y = torch.ones(2, 3, 4), torch.ones(3, 2, 4)
    for call in (lambda: ops.glu(x, y), lambda: ops.add_rms_norm(x, y, torch.ones(4)),
                 lambda: ops.add_layer_norm(x, y, torch.ones(4), torch.ones(4))):
        with pytest.raises(ValueError, match=r"need one shape, got \[2, 3, 4\] and \[3, 2, 4\]"):
            call()
    with pytest.raises(ValueError, match="softmax takes 1 dimensions or more, got "):
        ops.softmax(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"matmul takes a \[M, K\] and b \[K, N\], got \[4\]"):
        ops.matmul(torch.ones(4), torch.ones(4, 2))
    with pytest.raises(ValueError, match="needs q, k and v of 4 dimensions"):
        ops.attention(x, x, x)


def test_places_without_angles() -> None:
    """They would be multiplied with 0."""
    x, angles, cache = torch.ones(2, 1, 5, 8), torch.ones(10, 4), torch.zeros(2, 1, 12, 8)
    for first in ([0, 6], [-1, 0]):
        with pytest.raises(AssertFailed, match="a place has no angles"):
            ops.rotate(x, angles, angles, torch.tensor(first, dtype=torch.int32))
    with pytest.raises(AssertFailed, match="a place has no angles"):
        ops.rotate(x, angles[:4], angles[:4])
    used = torch.tensor([0, 6], dtype=torch.int32)
    with pytest.raises(AssertFailed, match="a place has no angles"):
        ops.append_kv(cache, cache.clone(), x, x, used, cos=angles, sin=angles)
    ops.append_kv(cache[:, :, :10], cache.clone()[:, :, :10], x, x, used, cos=angles, sin=angles)  # drops the last


def test_cross_entropy_of_arrays_is_of_f32() -> None:
    x, target = np.zeros((3, 4), np.float32), np.array([0, -100, 3])
    loss = ops.cross_entropy(x, target)
    assert loss.dtype == np.float32 and abs(loss - np.log(4)) < 4 * EPS


def test_cross_entropy_of_no_classes() -> None:
    """All targets are ignored; rows behind the last were of class 0."""
    x, target = torch.zeros(3, 0), torch.full((3,), -100)
    assert torch.equal(ops.cross_entropy(x, target, reduction="none"), torch.zeros(3))


def test_rotary_embedding_by_no_angles() -> None:
    """Of rows with elements, and without."""
    none, used = torch.zeros(9, 0), torch.zeros(1, dtype=torch.int32)
    for d, e in ((3, 2), (0, 2), (3, 0)):
        k, v = torch.randn(1, 2, 4, d), torch.randn(1, 2, 4, e)
        assert torch.equal(ops.rotate(k, none, none), k)
        for angles in ({}, {"cos": none, "sin": none}):
            caches = torch.zeros(1, 2, 5, d), torch.zeros(1, 2, 5, e)
            ops.append_kv(*caches, k, v, used, **angles)
            assert torch.equal(caches[0][:, :, :4], k) and torch.equal(caches[1][:, :, :4], v)
