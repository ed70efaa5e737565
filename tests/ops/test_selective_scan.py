"""The selective scan against its steps one by one in f64, and its gradients against torch's of those. Most cases run
in the interpreter, which defines what the kernels mean; the CPU, CUDA and HIP on one each."""
from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch

import tilelang as tile
from tilelang import ops

scan = import_module("tilelang.ops.selective_scan")
EPS = {torch.float32: 2.0 ** -23, torch.float16: 2.0 ** -10, torch.bfloat16: 2.0 ** -7}
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")


def draw(batch: int, d: int, s: int, n: int, groups: int, dt: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    u, delta, z = (torch.randn(batch, d, s).to(dt) for _ in range(3))
    b, c = (torch.randn(batch, groups, n, s).to(dt) for _ in range(2))
    return dict(zip(NAMES, (u, delta, -2 * torch.rand(d, n), b, c, torch.randn(d), z, torch.randn(d),
                            torch.randn(batch, d, n)), strict=True))


def steps(u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any = None, z: Any = None, delta_bias: Any = None,
          initial_state: Any = None, softplus: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, last state) by torch, in the operands' precision."""
    t = delta if delta_bias is None else delta + delta_bias[:, None]
    t = torch.nn.functional.softplus(t) if softplus else t
    B, C = (x.repeat_interleave(u.shape[1] // x.shape[1], 1) for x in (B, C))
    h = u.new_zeros(*u.shape[:2], A.shape[1]) if initial_state is None else initial_state
    ys = [torch.zeros_like(u[:, :, :0])]
    for s in range(u.shape[2]):
        h = torch.exp(t[:, :, s, None] * A) * h + (t * u)[:, :, s, None] * B[..., s]
        ys.append((C[..., s] * h).sum(-1, keepdim=True))
    y = torch.cat(ys, -1)
    y = y if D is None else y + D[:, None] * u
    return (y if z is None else y * torch.nn.functional.silu(z)), h


def sized(given: dict[str, torch.Tensor], softplus: bool) -> dict[str, torch.Tensor]:
    """Magnitudes whose sums are those of the terms of the results: step sizes and decays are positive."""
    out = {n: x.detach().double() if n in ("delta", "A", "delta_bias") else x.detach().double().abs()
           for n, x in given.items()}
    if not softplus:
        out["delta"] = out["delta"].abs()
    return out


def check(given: dict[str, torch.Tensor], softplus: bool = True) -> None:
    """Forward and backward, within S + N roundings of each term (three operations for each step it goes through, and
    the error of exp's argument), and the backward within that of its terms: gradients of magnitudes by magnitudes."""
    leaves = {n: x.requires_grad_() for n, x in given.items()}
    u, eps = leaves["u"], EPS[leaves["u"].dtype]
    y, last = ops.selective_scan(**leaves, delta_softplus=softplus, return_last_state=True)
    exact = {n: x.detach().double().requires_grad_() for n, x in leaves.items()}
    want = steps(**exact, softplus=softplus)
    numpy = {n: x.detach().numpy() for n, x in exact.items()}
    start = numpy.pop("initial_state", None)
    for r, w in zip(scan.reference(**numpy, delta_softplus=softplus, initial=start), want, strict=True):
        np.testing.assert_allclose(r, w.detach().numpy(), rtol=2.0 ** -40, atol=2.0 ** -40)
    sizes = {n: x.requires_grad_() for n, x in sized(leaves, softplus).items()}
    plain = {n: x for n, x in sizes.items() if n != "z"}  # silu(z) is at most |z|
    size, state = steps(**plain, softplus=softplus)
    gate = sizes["z"] if "z" in sizes else 1.0
    span, n = u.shape[2], leaves["A"].shape[1]
    fastest = max(abs(exact["A"]).flatten().tolist(), default=0.0)
    slowest = 2.0 * (1.0 + fastest * 6)  # exp's argument and its error, of a step size below 6
    rounds = (4 * span + n + 32) * slowest * EPS[torch.float32]
    assert (abs(y - want[0]) <= rounds * size * gate + eps * abs(want[0]) + 2.0 ** -24).all()
    assert (abs(last - want[1]) <= rounds * state).all()
    dy, dlast = torch.randn(y.shape).to(y.dtype), torch.randn(last.shape)
    got = torch.autograd.grad((y * dy).sum() + (last * dlast).sum(), list(leaves.values()))
    none = 0 * sum(x.sum() for x in exact.values())  # of no steps, every gradient
    again = torch.autograd.grad((want[0] * dy).sum() + (want[1] * dlast).sum() + none, list(exact.values()),
                                allow_unused=True, materialize_grads=True)
    # silu'(z) is at most 1.1, silu''(z) at most 1/2; a gradient is a sum over D channels, sequences or steps at most
    terms = torch.autograd.grad((size * (gate + 1.1) * dy.abs()).sum() + (state * dlast.abs()).sum() + 0 * u.sum(),
                                list(sizes.values()), allow_unused=True, materialize_grads=True)
    many = u.shape[0] * max(u.shape[1], span) * EPS[torch.float32]
    for name, g, w, t, x in zip(leaves, got, again, terms, leaves.values(), strict=True):
        t = (size * 1.6 * dy.abs()) if name == "z" else t
        largest = abs(t).max() if t.numel() else 0.0
        assert (abs(g - w) <= (4 * rounds + many) * largest + EPS[x.dtype] * abs(w) + 2.0 ** -24).all(), name


@pytest.mark.parametrize(("shape", "drop", "softplus"), [
    ((2, 20, 37, 5, 2), (), True), ((1, 3, 1, 1, 1), ("z",), True), ((1, 40, 70, 16, 1), ("D", "delta_bias"), True),
    ((1, 6, 40, 20, 3), ("z", "D", "delta_bias", "initial_state"), False), ((1, 4, 0, 4, 1), ("z",), True),
    ((0, 6, 9, 3, 2), (), True)])
def test_selective_scan(shape: tuple[int, ...], drop: tuple[str, ...], softplus: bool) -> None:
    given = {n: x for n, x in draw(*shape).items() if n not in drop}
    if not softplus:
        given["delta"] = given["delta"].abs()
    with tile.target("reference"):
        check(given, softplus)


@pytest.mark.parametrize("dt", [torch.float16, torch.bfloat16])
def test_half_precision(dt: torch.dtype) -> None:
    with tile.target("reference"):
        check(draw(1, 17, 40, 8, 1, dt))


@pytest.mark.parametrize("target", ["cpu", "emulate:cuda:sm_80", "emulate:hip:gfx942"])
def test_on_machines(target: str) -> None:
    """Two chunks of steps and two blocks of channels, neither whole."""
    with tile.target(target):
        check(draw(1, 18, 34, 3, 1) if target == "cpu" else draw(1, 9, 17, 3, 1))


@pytest.fixture
def interpreted() -> Any:
    with tile.target("reference"):
        yield


def check_steps(given: dict[str, torch.Tensor], softplus: bool = True) -> None:
    """One step at a time from the state of the first part, within the bound that two orders of sums allow."""
    given = dict(given)
    u, a = given["u"], given["A"]
    first = given.pop("initial_state", torch.zeros(*u.shape[:2], a.shape[1]))
    state = first.clone()
    want, last = ops.selective_scan(**given, delta_softplus=softplus, return_last_state=True, initial_state=first)
    with torch.no_grad():
        fixed = {n: given[n] for n in ("A", "D", "delta_bias") if n in given}
        got = torch.stack([want[:, :, :0].sum(2), *(ops.selective_scan_step(
            state, **{n: given[n][..., s].contiguous() for n in ("u", "delta", "B", "C", "z") if n in given}, **fixed,
            delta_softplus=softplus) for s in range(u.shape[2]))], -1)[..., 1:]
    size, sizes = steps(**{n: x for n, x in sized({**given, "initial_state": first}, softplus).items() if n != "z"},
                        softplus=softplus)
    gate = given["z"].abs() if "z" in given else 1.0
    rounded = (EPS[u.dtype] * want.abs() + 2.0 ** -24) if u.dtype is not torch.float32 else 0.0
    assert (abs(got.double() - want) <= 200 * EPS[torch.float32] * size * gate + rounded).all()
    assert (abs(state - last) <= 200 * EPS[torch.float32] * sizes).all()


@pytest.mark.usefixtures("interpreted")
def test_steps_are_those_of_the_scan() -> None:
    check_steps(draw(2, 20, 9, 5, 2))


@pytest.mark.usefixtures("interpreted")
def test_shared_by_all_channels_without_groups() -> None:
    given = draw(1, 4, 5, 3, 1)
    want = ops.selective_scan(**given)
    given["B"], given["C"] = given["B"][:, 0], given["C"][:, 0]
    assert torch.equal(ops.selective_scan(**given), want)


@pytest.mark.usefixtures("interpreted")
def test_operators() -> None:
    given = {n: x.requires_grad_() for n, x in draw(1, 4, 6, 3, 1).items()}
    start = given.pop("initial_state")
    assert scan._forward._ready() and scan._step._ready()
    args = (*given.values(), start, True)
    assert set(torch.library.opcheck(torch.ops.tilelang.selective_scan.default, args).values()) == {"SUCCESS"}
    compiled = torch.compile(lambda **a: ops.selective_scan(**a), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**given), ops.selective_scan(**given))
    one = [x.detach() for x in (start[:, None], *(given[n][:, None, ..., 0] for n in ("u", "delta")),
                                given["A"][None], *(given[n][..., 0] for n in "BC"))]
    result = torch.library.opcheck(torch.ops.tilelang.selective_scan_step.default, (*one, None, None, None, True))
    assert set(result.values()) == {"SUCCESS"}
    with pytest.raises(ValueError, match="for 4 channels A needs shape"):
        ops.selective_scan(**{**given, "A": torch.zeros(3, 3)})
    with pytest.raises(ValueError, match="groups that divide the channels"):
        ops.selective_scan(**{**given, "B": given["B"][:, :0], "C": given["C"][:, :0]})
