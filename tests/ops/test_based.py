"""BASED linear attention against its whole matrix of weights in f64, forward, backward and step by step. Most cases
run in the interpreter; the CPU, CUDA and HIP on one each."""
from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch

import tilelang as tile
from tests.ops.attention.test_dynamic import largest
from tilelang import ops

based = import_module("tilelang.ops.based")
U = {torch.float32: 2.0 ** -24, torch.float16: 2.0 ** -11, torch.bfloat16: 2.0 ** -8}


def draw(b: int, h: int, s: int, d: int, e: int, dt: torch.dtype = torch.float32, size: float = 1.0
         ) -> list[torch.Tensor]:
    return [(size * torch.randn(b, h, s, n)).to(dt).requires_grad_() for n in (d, d, e)]


def weights(q: torch.Tensor, k: torch.Tensor, window: int) -> torch.Tensor:
    s = q @ k.mT * q.shape[-1] ** -0.5
    away = torch.arange(s.shape[-2])[:, None] - torch.arange(s.shape[-1])
    return torch.where(away < window, s.exp(), 1 + s + s * s / 2).masked_fill(away < 0, 0)


def check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int) -> None:
    """Errors are those of sums of at most S, D * D and E terms, of scores as large as their terms: of each result the
    same sums of magnitudes, by weights of magnitudes."""
    o = ops.based(q, k, v, window)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    w = weights(*exact[:2], window)
    total = w.sum(-1, keepdim=True)
    want = w @ exact[2] / total
    np.testing.assert_allclose(based.reference(*(x.detach().numpy() for x in exact), window), want.detach().numpy(),
                               rtol=0, atol=2.0 ** -40)
    do = torch.randn(o.shape).to(o.dtype)
    x, y, z, g, a = (t.detach().double().abs() for t in (q, k, v, do, want))
    p = weights(x, y, window) / total.detach()
    ds = p * (g @ z.mT + (g * a).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
    deep = (1 + largest(x @ y.mT) * q.shape[-1] ** -0.5) * (q.shape[2] + q.shape[3] ** 2 + v.shape[3] + 32)
    sizes = [p @ z + a, ds @ y, ds.mT @ x, p.mT @ g]
    got = [o, *torch.autograd.grad(o, (q, k, v), do)]
    for r, e, size in zip(got, [want, *torch.autograd.grad(want, exact, do.double())], sizes, strict=True):
        # the backward takes the rounded result for the exact one
        step = U[o.dtype] * (e.abs() + (size if r is not o else 0.0)) + 2.0 ** -24
        assert ((r.double() - e).abs() <= 8 * U[torch.float32] * deep * size + step).all()


@pytest.mark.parametrize(("shape", "window"), [
    ((1, 2, 150, 8, 10), 0), ((2, 1, 150, 5, 3), 5), ((1, 1, 200, 4, 8), 130), ((1, 1, 1, 1, 1), 1),
    ((1, 2, 64, 16, 7), 64)])
def test_as_the_matrix_of_weights(shape: Any, window: int) -> None:
    """Several chunks and one, windows within a chunk, over several and of all."""
    with tile.target("reference"):
        check(*draw(*shape), window)


@pytest.mark.parametrize("target", ["cpu", "emulate:cuda:sm_80", "emulate:hip:gfx942"])
def test_on_machines(target: str) -> None:
    with tile.target(target):
        if target == "cpu":
            check(*draw(1, 2, 150, 16, 20), 20)
        else:
            check(*draw(1, 1, 40, 3, 4, torch.float16), 3)


def test_large_scores_within_the_window() -> None:
    """Exponentials that f32 cannot hold are taken relative to the largest of their row."""
    with tile.target("reference"):
        q, k, v = (x.detach() for x in draw(1, 1, 40, 8, 4, size=12.0))
        o = ops.based(q, k, v, 40)
        assert (weights(q, k, 40) == torch.inf).any() and torch.isfinite(o).all()
        want = torch.nn.functional.scaled_dot_product_attention(*(x.double() for x in (q, k, v)), is_causal=True)
        t = 16 * (8 + 32) * U[torch.float32] * (q.abs().double() @ k.abs().double().mT).max() * 8 ** -0.5
        assert ((o - want).abs() <= torch.expm1(t) * v.abs().max()).all()


def check_steps(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int) -> None:
    """One step at a time, with a result for each."""
    b, h, steps, d = q.shape
    with torch.no_grad():
        state = ops.based_state(q, b, h, d, v.shape[3], window)
        got = [ops.based_step(state, torch.full((b,), t, dtype=torch.int32), q[:, :, t], k[:, :, t], v[:, :, t],
                              window) for t in range(steps)]
    if not got:
        return
    q, k, v = (x.double() for x in (q, k, v))
    want = torch.tensor(based.reference(*(x.numpy() for x in (q, k, v)), window))
    p = weights(q.abs(), k.abs(), window) / weights(q, k, window).sum(-1, keepdim=True)
    deep = (1 + largest(q.abs() @ k.abs().mT) * d ** -0.5) * (steps + d * d + v.shape[3] + 32)
    size = p @ v.abs() + want.abs()
    step = (U[got[0].dtype] * want.abs() + 2.0 ** -24) if got[0].dtype is not torch.float32 else 0.0
    assert ((torch.stack(got, 2) - want).abs() <= 8 * U[torch.float32] * deep * size + step).all()


@pytest.mark.parametrize(("window", "target"), [(0, "reference"), (1, "reference"), (6, "reference"), (6, "cpu")])
def test_steps(window: int, target: str) -> None:
    with tile.target(target):
        check_steps(*(x.detach() for x in draw(2, 2, 14, 4, 5)), window)


def test_steps_of_arrays() -> None:
    """The scale was taken for the result that kernels write to."""
    q, k, v = (x.detach()[:, :, 0] for x in draw(2, 2, 1, 4, 5))
    used = torch.zeros(2, dtype=torch.int32)
    with tile.target("reference"):
        want = ops.based_step(ops.based_state(q, 2, 2, 4, 5, 3), used, q, k, v, 3)
        arrays = [x.numpy() for x in (q, k, v)]
        state = ops.based_state(arrays[0], 2, 2, 4, 5, 3)
        np.testing.assert_array_equal(ops.based_step(state, used.numpy(), *arrays, 3), want)
        with pytest.raises(ValueError, match="the state has the last 3 keys, the window is 5"):
            ops.based_step(state, used.numpy(), *arrays, 5)


def test_operators() -> None:
    q, k, v = draw(1, 1, 9, 4, 4)
    with tile.target("reference"):
        want = ops.based(q, k, v, 2)
        compiled: Any = torch.compile(lambda *a: ops.based(*a, 2), fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(q, k, v), want)
        result = torch.library.opcheck(torch.ops.tilelang.based.default, (q, k, v, 2, 0.5))
        assert set(result.values()) == {"SUCCESS"}
        assert based._step._ready()
        one = [x.detach()[:, :, 0] for x in (q, k, v)]
        state = ops.based_state(q, 1, 1, 4, 4, 2)
        result = torch.library.opcheck(torch.ops.tilelang.based_step.default,
                                       (*state, torch.zeros(1, dtype=torch.int32), *one, 0.5, 2, 16, 4, 16))
        assert set(result.values()) == {"SUCCESS"}
    with pytest.raises(ValueError, match="D at most 64"):
        ops.based(*(torch.zeros(1, 1, 4, n) for n in (65, 65, 4)))
