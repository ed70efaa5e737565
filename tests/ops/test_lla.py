"""Local Linear Attention: the reference against a literal fit, kernels against it, and every invariant of the method.

Most cases run in the interpreter, which defines what the kernels mean; the CPU, CUDA and HIP are compared on one each.
Bounds on errors are those of the same formulas in f32: our error may be twice theirs (and half a step of the result).
"""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tilelang as tile
from tilelang import targets
from tilelang.ops import lla, lla_decode, lla_varlen
from tilelang.ops.lla import api, reference
from tilelang.ops.lla.forward import forward_kernel

EPS = {torch.float32: 2.0 ** -23, torch.float16: 2.0 ** -10, torch.bfloat16: 2.0 ** -7}
Case = dict[str, Any]


def draw(b: int = 1, h: int = 2, g: int = 1, s: int = 20, length: int = 20, d: int = 8, e: int = 8, unit: bool = True,
         dt: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """q, k, v; queries and keys of length 1 if `unit`."""
    q, k, v = torch.randn(b, h, s, d), torch.randn(b, g, length, d), torch.randn(b, g, length, e)
    if unit:
        q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
    return [x.to(dt) for x in (q, k, v)]


def exact(*xs: Any) -> list[Any]:
    return [x.detach().double().numpy() for x in xs]


def within(got: Any, want: Any, low: Any, step: float = EPS[torch.float32], factor: float = 2.0,
           terms: float = 0.0) -> None:
    """The rule of the file's head; `low` is what f32 gives. `terms`: the size of what cancels in f32 before the
    end, to nothing for a query of one key; the reference may be lucky there."""
    got = got.detach().double().numpy() if isinstance(got, torch.Tensor) else got
    error, allowed = abs(got - want).max(initial=0), abs(low - want).max(initial=0)
    assert error <= factor * allowed + step * max(1.0, abs(want).max(initial=0)) + terms * EPS[torch.float32], (
        f"{error} over {allowed}")


# -- the reference ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("ridge", ["rel", "abs"])
def test_reference_is_the_weighted_least_squares_fit(ridge: str) -> None:
    """b of f(x) = b + W(x - q) minimising sum w |v - f(k)|^2 + ridge |W|^2, found by stacking rows: in f64 with
    condition numbers below 1e3."""
    q, k, v = exact(*draw(1, 1, 1, 9, 14, 5, 3))
    got = reference.forward(q, k, v, 0.3, causal=True, ridge=ridge)[0, 0]
    seen = reference.seen(9, 14, causal=True)
    for i in range(9):
        keys, values = k[0, 0, seen[i]], v[0, 0, seen[i]]
        w = np.exp(keys @ q[0, 0, i] / np.sqrt(5))
        root = np.sqrt(0.3 * (w.sum() if ridge == "rel" else 1.0))
        rows = np.sqrt(w)[:, None] * np.concatenate([np.ones((len(w), 1)), keys - q[0, 0, i]], 1)
        rows = np.concatenate([rows, np.eye(6)[1:] * root])
        b = np.linalg.lstsq(rows, np.concatenate([np.sqrt(w)[:, None] * values, np.zeros((5, 3))]), rcond=None)[0][0]
        np.testing.assert_allclose(got[i], b, rtol=0, atol=1e3 * 64 * 2.0 ** -52)


@pytest.mark.parametrize("ridge", ["rel", "abs"])
def test_reference_gradient_is_that_of_the_definition(ridge: str) -> None:
    """Against torch's gradients of the definition, all in f64."""
    q, k, v = (x.double().requires_grad_() for x in draw(1, 2, 1, 7, 9, 4, 3))
    lam = torch.full((1, 2, 7), 0.5, dtype=torch.float64, requires_grad=True)
    scores = (q @ k.transpose(-1, -2) / 2).masked_fill(~torch.tensor(reference.seen(7, 9, True)), -torch.inf)
    w, z = scores.exp(), k[:, :, None] - q[:, :, :, None]
    mu = (w[..., None] * z).sum(-2)
    unit = w.sum(-1) if ridge == "rel" else torch.ones(())
    sigma = torch.einsum("bhij,bhijd,bhije->bhide", w, z, z) + (lam * unit)[..., None, None] * torch.eye(4)
    num = w * (1 - torch.einsum("bhijd,bhid->bhij", z, torch.linalg.solve(sigma, mu)))
    o = num / num.sum(-1, keepdim=True) @ v
    do = torch.randn_like(o)
    want = torch.autograd.grad(o, (q, k, v, lam), do)
    got = reference.backward(*exact(do, q, k, v), 0.5, True, ridge=ridge)
    for g, w_ in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w_.numpy(), rtol=0, atol=1e3 * 64 * 2.0 ** -52 * max(1, abs(g).max()))


# -- forward and backward ---------------------------------------------------------------------------------------------
CASES: list[tuple[Case, Case]] = [
    ({}, {"causal": True}), ({"s": 1, "length": 1, "d": 3, "e": 5}, {}), ({"b": 2, "h": 6, "g": 2}, {"lam": 10.0}),
    ({"s": 100, "length": 140, "d": 16}, {"causal": True}), ({"s": 30, "length": 11}, {"causal": True}),
    ({"s": 5, "length": 0}, {}), ({"d": 20, "e": 33}, {"ridge": "abs", "causal": True}),
    ({"s": 110, "length": 110}, {"window": (9, 0)}), ({"s": 40, "length": 150}, {"window": (5, 30)}),
    ({"s": 30, "length": 30}, {"window": (4, -1), "causal": True, "ridge": "abs", "lam": 2.0}), ({}, {"scale": 2.0}),
    ({"unit": False}, {"lam": 10.0, "causal": True}), ({}, {"lam": 0.1}), ({"dt": torch.bfloat16}, {"causal": True}),
    ({"dt": torch.float16}, {"lam": 10.0})]


def check(sizes: Case, options: Case) -> None:
    """Forward and backward on the active target."""
    q, k, v = draw(**sizes)
    lam = torch.full(q.shape[:3], options.get("lam", 1.0))
    compared(q, k, v, lam, {n: x for n, x in options.items() if n != "lam"}, 2.0 if sizes.get("unit", True) else 5.0)


def compared(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lam: torch.Tensor, given: Case, factor: float) -> None:
    """The same for these tensors."""
    for x in (q, k, v, lam):
        x.requires_grad_()
    o = lla(q, k, v, lam, **given)
    do = torch.randn(o.shape).to(o.dtype)
    judged(o, torch.autograd.grad(o, (q, k, v, lam), do), do, (q, k, v, lam), given, factor)


def judged(o: torch.Tensor, grads: Any, do: torch.Tensor, inputs: Any, given: Case, factor: float) -> None:
    """A result and its gradients by q, k, v and lam for that of the result."""
    q, _, v, _ = inputs
    args, step = exact(*inputs), EPS[q.dtype]
    within(o, reference.forward(*args, **given), reference.forward(*args, **given, dtype=np.float32), step, factor)
    want, low = (reference.backward(*exact(do), *args, **given, dtype=d) for d in (np.float64, np.float32))
    terms = abs(exact(do)[0] @ np.repeat(args[2], q.shape[1] // v.shape[1], 1).swapaxes(-1, -2)).max(initial=0)
    for g, w, f in zip(grads, want, low, strict=True):
        within(g, w, f, step, factor, terms)


@pytest.mark.parametrize(("sizes", "options"), CASES)
def test_as_the_reference(sizes: Case, options: Case) -> None:
    with tile.target("reference"):
        check(sizes, options)


@pytest.mark.parametrize("target", ["cpu", "emulate:cuda:sm_80", "emulate:hip:gfx942"])
def test_on_machines(target: str) -> None:
    """Two blocks of rows and of columns, neither whole."""
    small = target != "cpu"
    with tile.target(target):
        check({"b": 1, "h": 2, "g": 1, "s": 40 if small else 110, "length": 70 if small else 150, "d": 12, "e": 20},
              {"causal": True})


@pytest.mark.parametrize("d", [64, 128])
def test_products_are_by_groups_of_warps_on_hopper(d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(targets, "emulate", lambda code, *arguments: seen.append(code))
    q = torch.zeros(1, 1, 64, d).bfloat16()
    with tile.target("emulate:cuda:sm_90a"):
        lla(q, q, q)
    assert {product.split(": ")[1] for product in seen[0].products.split("; ")} == {"wgmma_m64k16_bf16"}


def test_lambda_of_a_head_gets_the_sum_of_its_queries() -> None:
    q, k, v = draw()
    heads, number = torch.tensor([[[0.5], [2.0]]], requires_grad=True), 2.0
    each = heads.detach().expand(1, 2, 20).contiguous().requires_grad_()
    with tile.target("reference"):
        sums, parts = (torch.autograd.grad(lla(q, k, v, x, True).square().sum(), x)[0] for x in (heads, each))
        assert torch.equal(sums, parts.sum(2, keepdim=True))
        assert torch.equal(lla(q, k, v, number)[:, 1], lla(q, k, v, heads)[:, 1])
        assert np.array_equal(lla(*(x.numpy() for x in (q, k, v)), number), lla(q, k, v, number).numpy())


# -- invariants -------------------------------------------------------------------------------------------------------
@pytest.fixture
def interpreted() -> Any:
    with tile.target("reference"):
        yield


@pytest.mark.usefixtures("interpreted")
def test_weights_sum_to_one_even_before_the_solver_is_done() -> None:
    q, k, v = draw(s=40, length=40)
    for iterations in (0, 1, 30):
        o = lla(q, k, torch.ones_like(v), 0.1, True, iterations=iterations)
        assert (abs(o - 1) <= 44 * EPS[torch.float32]).all()  # two sums over the same 40 terms
        shifted, plain = (lla(q, k, x, 0.1, True, iterations=iterations) for x in (v + 100, v))
        size = 44 * EPS[torch.float32] * (100 + abs(v).max()) * 8  # sum |s| is below 8 here
        assert (abs(shifted - plain - 100) <= size).all()


@pytest.mark.usefixtures("interpreted")
def test_one_visible_key_gives_its_value() -> None:
    q, k, v = draw(s=6, length=6, unit=False)
    got = lla(q, k, v, 1.0, True)[:, :, 0]
    assert (abs(got - v[:, :, 0]) <= EPS[torch.float32] * abs(v[:, :, 0])).all()  # one product and one quotient


@pytest.mark.usefixtures("interpreted")
def test_a_large_ridge_is_softmax_attention() -> None:
    """The difference is proportional to 1 / lam."""
    q, k, v = draw(s=30, length=30)
    plain = torch.nn.functional.scaled_dot_product_attention(*(x.double() for x in (q, k, v)), is_causal=True,
                                                             enable_gqa=True)
    far = [abs(lla(q, k, v, lam, True) - plain).max().item() for lam in (1e2, 1e3)]
    assert 9 < far[0] / far[1] < 11
    assert abs(lla(q, k, v, 1e9, True) - plain).max() < 32 * EPS[torch.float32] * abs(v).max()


@pytest.mark.usefixtures("interpreted")
def test_affine_values_are_reproduced_as_the_ridge_vanishes() -> None:
    q, k, _ = draw(s=30, length=60, d=4)
    a, c = torch.randn(4, 5), torch.randn(5)
    far = [abs(lla(q, k, k @ a + c, lam, iterations=40, tolerance=1e-7) - (q @ a + c)).max().item()
           for lam in (1e-2, 1e-3)]
    assert 8 < far[0] / far[1] < 10.1  # linear in lam, from below


@pytest.mark.usefixtures("interpreted")
def test_at_scale_zero_it_is_one_affine_fit() -> None:
    """With a vanishing ridge, that of all keys and values by least squares."""
    q, k, v = draw(1, 1, 1, 10, 50, 4, 3)
    rows = np.concatenate([np.ones((50, 1)), k[0, 0].double().numpy()], 1)
    fit = np.linalg.lstsq(rows, v[0, 0].double().numpy(), rcond=None)[0]
    want = fit[0] + q[0, 0].double().numpy() @ fit[1:]
    far = [abs(lla(q, k, v, lam, scale=0.0, iterations=40, tolerance=1e-7)[0, 0].numpy() - want).max()
           for lam in (1e-2, 1e-3)]
    assert 8 < far[0] / far[1] < 10.1


# -- the solver -------------------------------------------------------------------------------------------------------
def steps_of(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lam: float, iterations: int) -> torch.Tensor:
    consts = api.constants(q, k, v, None, 0, q.shape[2], k.shape[2])
    steps = torch.zeros(*q.shape[:2], -(-q.shape[2] // consts["BM"]), dtype=torch.int32)
    forward_kernel(q, k, v, torch.full(q.shape[:3], lam), torch.empty(*q.shape[:3], v.shape[3]), q.shape[3] ** -0.5,
                   1e-6, steps=steps, ITERATIONS=iterations, **consts)
    return steps


@pytest.mark.usefixtures("interpreted")
def test_it_stops_early() -> None:
    """Normalised queries and keys need few steps of the 64 allowed, and fewer the larger the ridge."""
    q, k, v = draw(s=100, length=100, d=64)
    few, fewer = (steps_of(q, k, v, lam, 64) for lam in (1.0, 10.0))
    assert few.shape == (1, 2, 2) and few.max() <= 8 and fewer.max() <= 4 and fewer.min() >= 1
    assert (steps_of(8 * q, 8 * k, v, 0.1, 64) > 8).any()


@pytest.mark.usefixtures("interpreted")
def test_rows_that_have_converged_rest() -> None:
    """What other rows of the block need has no influence on a row, to the bit."""
    q, k, v = draw(1, 1, 1, 24, 24)
    harder = q.clone()
    harder[:, :, ::2] *= 30
    a, b = (lla(x, k, v, 0.1) for x in (q, harder))
    assert torch.equal(a[:, :, 1::2], b[:, :, 1::2]) and not torch.equal(a[:, :, ::2], b[:, :, ::2])


# -- packed sequences, decode, torch ----------------------------------------------------------------------------------
def check_packed(tensors: list[torch.Tensor], rows: list[int], columns: list[int], options: Case,
                 longer: int = 0, factor: float = 2.0) -> None:
    """Of each sequence of q, k, v and lam [B, H, S] as many queries and keys, packed."""
    q, k, v, lam = tensors

    def packed(x: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        every = [x[b, :, :n] for b, n in enumerate(lengths)]
        return torch.cat([x.new_zeros(x.shape[1], 0, *x.shape[3:]), *every], 1).swapaxes(0, 1).contiguous()
    one = [packed(x, n).requires_grad_() for x, n in ((q, rows), (k, columns), (v, columns))]
    each = packed(lam, rows).T[None].requires_grad_()
    at, at_k = (torch.tensor([0, *n]).cumsum(0).int() for n in (rows, columns))
    o = lla_varlen(*one, at, at_k, max(rows, default=0) + longer, max(columns, default=0) + longer, each, **options)
    do = torch.randn(o.shape).to(o.dtype)
    dq, dk, dv, dlam = torch.autograd.grad(o, (*one, each), do)
    for b in range(len(rows)):
        ours, keys = slice(at[b], at[b + 1]), slice(at_k[b], at_k[b + 1])
        parts = [x[part].detach().swapaxes(0, 1)[None] for x, part in (
            (o, ours), (do, ours), (dq, ours), (dk, keys), (dv, keys), *zip(one, (ours, keys, keys), strict=True))]
        judged(parts[0], (*parts[2:5], dlam[:, :, ours]), parts[1], (*parts[5:], each[:, :, ours].detach()), options,
               factor)


@pytest.mark.usefixtures("interpreted")
def test_packed_sequences() -> None:
    """Of no queries, and of no keys."""
    q, k, v = draw(4, 4, 2, 23, 28)
    check_packed([q, k, v, torch.ones(4, 4, 23)], [7, 0, 23, 1], [9, 3, 0, 28], {"causal": True})


@pytest.mark.usefixtures("interpreted")
def test_packed_sequences_are_those_alone() -> None:
    rows, columns = [0, 7, 7, 30, 31], [0, 9, 12, 12, 40]  # empty queries, then empty keys
    q, k, v = (x[0].transpose(0, 1).contiguous().requires_grad_() for x in draw(1, 4, 2, 31, 40))
    cu_q, cu_k = (torch.tensor(c, dtype=torch.int32) for c in (rows, columns))
    got = lla_varlen(q, k, v, cu_q, cu_k, 23, 28, causal=True)
    do = torch.randn(got.shape)
    grads = torch.autograd.grad(got, (q, k, v), do)
    for i in range(4):
        a, b = slice(rows[i], rows[i + 1]), slice(columns[i], columns[i + 1])
        one = [x[s].detach().transpose(0, 1)[None].requires_grad_() for x, s in ((q, a), (k, b), (v, b))]
        want = lla(*one, causal=True)
        parts = torch.autograd.grad(want, one, do[a].transpose(0, 1)[None])
        torch.testing.assert_close(got[a].transpose(0, 1)[None], want)  # other blocks, other orders of sums
        for g, p, s in zip(grads, parts, (a, b, b), strict=True):
            torch.testing.assert_close(g[s].transpose(0, 1)[None], p)


def single_pass(q: Any, k: Any, v: Any, lam: float, ridge: str, last: int) -> Any:
    """The formulas of `decode.py` in f32, of the last keys; solved in f64."""
    q, k, v = (np.repeat(x[:, :, -last:] if last else x, q.shape[1] // x.shape[1], 1).astype(np.float32)
               for x in (q, k, v))
    if k.shape[2] == 0:
        return np.zeros((*q.shape[:2], v.shape[3]), np.float32)
    s = (k * q).sum(-1) * np.float32(q.shape[3] ** -0.5)
    top = s.max(-1, keepdims=True)
    w, z = np.exp(s - top)[..., None], k - q
    unit = w.sum(-2)[..., 0] if ridge == "rel" else np.exp(-top[..., 0])
    eye = np.eye(q.shape[3], dtype=np.float32)
    sigma = (w * z).swapaxes(-1, -2) @ z + np.float32(lam) * unit[..., None, None] * eye
    mu = (w * z).sum(-2)
    rho = np.linalg.solve(sigma.astype(np.float64), mu.astype(np.float64)[..., None]).astype(np.float32)
    top_of = (w * v).sum(-2) - ((w * v).swapaxes(-1, -2) @ z @ rho)[..., 0]
    return top_of / (w.sum(-2) - (mu * rho[..., 0]).sum(-1, keepdims=True))


def check_decode(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, used: list[int] | None, lam: float, ridge: str,
                 window: int | None, splits: int | None) -> None:
    """One query each, [B, H, 1, D]; keys behind the `used` ones are NaN."""
    lengths = [k.shape[2]] * k.shape[0] if used is None else used
    k, v = k.clone(), v.clone()
    for b, n in enumerate(lengths):
        k[b, :, n:], v[b, :, n:] = torch.nan, torch.nan
    seqused = None if used is None else torch.tensor(used, dtype=torch.int32)
    got = lla_decode(q[:, :, 0], k, v, lam, seqused=seqused, ridge=ridge, window=window, splits=splits)
    want, low = (np.zeros(got.shape) for _ in range(2))
    for b, n in enumerate(lengths):
        one = exact(q[b:b + 1], k[b:b + 1, :, :n], v[b:b + 1, :, :n])
        want[b] = reference.forward(*one, lam, ridge=ridge, window=(-1 if window is None else window, -1))[0, :, 0]
        low[b] = single_pass(*one, lam, ridge, n if window is None else window + 1)[0]
    within(got, want, low, max(16 * EPS[torch.float32], EPS[q.dtype]))


@pytest.mark.parametrize("ridge", ["rel", "abs"])
@pytest.mark.parametrize(("length", "splits", "window"), [(1, 1, None), (70, 3, None), (70, 1, 20), (0, 2, None)])
@pytest.mark.usefixtures("interpreted")
def test_decode(length: int, splits: int, window: int | None, ridge: str) -> None:
    """A tail filled with NaN has no effect; splits change the result by rounding only."""
    q, k, v = draw(2, 4, 2, 1, length + 9, 12, 20)
    check_decode(q, k, v, [length] * 2, 0.5, ridge, window, splits)


@pytest.mark.parametrize("target", ["cpu", "emulate:cuda:sm_80", "emulate:hip:gfx942"])
def test_decode_on_machines(target: str) -> None:
    q, k, v = draw(1, 2, 1, 1, 70, 12, 20)
    want, low = reference.forward(*exact(q, k, v))[:, :, 0], single_pass(*exact(q, k, v), 1.0, "rel", 70)
    with tile.target(target):
        within(lla_decode(q[:, :, 0], k, v, splits=2), want, low, 16 * EPS[torch.float32])


def test_operator() -> None:
    q, k, v = (x.requires_grad_() for x in draw(s=9, length=9))
    lam = torch.ones(1, 2, 9, requires_grad=True)
    with tile.target("reference"):
        result = torch.library.opcheck(api._forward._ready() and torch.ops.tilelang.lla.default,
                                       (q, k, v, lam, 0.3, "rel", None, 0, 8, 1e-6))
        assert set(result.values()) == {"SUCCESS"}
        torch._dynamo.reset()
        compiled = torch.compile(lambda *a: lla(*a, causal=True), fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(q, k, v, 1.0), lla(q, k, v, 1.0, causal=True))
        one = [x.detach() for x in (q[:, :, 0], k, v)]
        compiled = torch.compile(lambda *a: lla_decode(*a), fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(*one), lla_decode(*one))
        result = torch.library.opcheck(torch.ops.tilelang.lla_decode.default,
                                       (*one, torch.ones(1, 2), None, 0.3, "rel", None, 2))
        assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize(("change", "text"), [
    ({"ridge": "relative"}, "ridge must be 'rel' or 'abs'"), ({"window": (1.5, 0)}, "must be a pair of counts"),
    ({"k": torch.zeros(1, 3, 4, 8)}, "query heads, 2, must be a multiple of the number of key heads, 3"),
    ({"lam": -0.5}, "lam must be a number from 0 on, got -0.5"), ({"lam": float("nan")}, "from 0 on, got nan"),
    ({"iterations": -1}, "iterations must be a count, got -1"),
    ({"q": torch.zeros(1, 2, 4, 8, dtype=torch.float64)}, "takes f32, f16 or bf16, got f64")])
def test_mistakes_are_named(change: Case, text: str) -> None:
    q, k, v = draw()
    with pytest.raises(ValueError, match=text):
        lla(**{"q": q, "k": k, "v": v, **change})


def test_decoding_refuses_what_gave_zeros() -> None:
    q, k = torch.zeros(1, 2, 8), torch.zeros(1, 2, 5, 8)
    for more, text in (({"window": -1}, "window must be a count"), ({"splits": -2}, "splits must be a count"),
                       ({"lam": torch.ones(3)}, r"lam must broadcast to \[1, 2\]")):
        with pytest.raises(ValueError, match=text):
            lla_decode(q, k, k, **more)
