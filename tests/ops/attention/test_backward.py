"""Gradients of attention against torch's in f64: errors at most three times those of torch's own in the same dtype."""
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

import tilelang as tile
from tests.ops.attention.oracle import attention, two_of_three
from tests.ops.attention.test_forward import OPTIONS, SHAPES
from tilelang import ops, targets
from tilelang.backends.simt.compile import Lowered
from tilelang.errors import UnsupportedSyntax
from tilelang.ops.attention import api


def gradients(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, do: torch.Tensor, dlse: torch.Tensor,
              options: dict[str, Any], dt: torch.dtype) -> list[torch.Tensor]:
    """By torch, in a dtype."""
    inputs = [x.to(dt, copy=True).requires_grad_() for x in (q, k, v)]
    options = dict(options)
    for name in ("sinks", "bias", "alibi"):
        if name in options and options[name].dtype != torch.bool:
            options[name] = options[name].to(dt, copy=True).requires_grad_()
            inputs.append(options[name])
    o, lse = attention(*inputs[:3], **options)
    return list(torch.autograd.grad((o * do.to(dt)).sum() + (lse * dlse.to(dt)).sum(), inputs))


def check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]) -> None:
    """The rule of flash-attn's tests: three times the error of the same computation in the operands' dtype. Where that
    error is small by luck, eight units of the largest gradient."""
    o, lse = ops.attention(q, k, v, return_lse=True, **options)
    do, dlse = torch.randn(o.shape).to(q.dtype), torch.randn(lse.shape)
    needs = {"needs_bias": options.get("bias", do).dtype != torch.bool and "bias" in options,
             "needs_alibi": "alibi" in options}
    got, again = (ops.attention_backward(do, q, k, v, o, lse, dlse=dlse, **needs, **options) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
    want, same = (gradients(q, k, v, do, dlse, options, dt) for dt in (torch.float64, q.dtype))
    assert len(got) == len(want)
    names = ["dq", "dk", "dv", *(f"d{n}" for n in ("sinks", "bias", "alibi") if n in options)]
    for name, a, b, c in zip(names, got, want, same, strict=False):
        a = a.sum(0) if name == "dalibi" and b.ndim == 1 else a
        error, theirs = (a.double() - b).abs().max(), (c.double() - b).abs().max()
        units = torch.finfo(a.dtype).eps * b.abs().max()
        assert error <= 3 * theirs + 8 * units, f"{name}: {error} beside {theirs}"


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str) -> None:
    torch.manual_seed(0)
    for h, g, s, n in SHAPES:
        q, k, v = torch.randn(2, h, s, 24), torch.randn(2, g, n, 24), torch.randn(2, g, n, 40)
        check(q, k, v, OPTIONS[name](h, s, n))


@pytest.mark.parametrize(("batch", "queries", "keys"), [(0, 8, 8), (2, 0, 8), (2, 8, 0)])
def test_nothing_to_do(batch: int, queries: int, keys: int) -> None:
    q, k = torch.zeros(batch, 2, queries, 16), torch.zeros(batch, 2, keys, 16)
    o, lse = ops.attention(q, k, k, return_lse=True)
    options: dict[str, Any] = {"alibi": torch.ones(2), "needs_alibi": True}
    like = q, k, k, torch.zeros(batch, 2)
    for more, some in ({}, like[:3]), (options, like):
        for got, x in zip(ops.attention_backward(torch.ones_like(o), q, k, k, o, lse, **more), some, strict=True):
            assert torch.equal(got, torch.zeros_like(x))


@pytest.mark.parametrize("threads", [1, 3])
def test_one_pass_equals_two(threads: int) -> None:
    """Gradients of slopes take kernels of their own, so these are two ways to the other gradients. 3 threads share the
    two key heads: the gradient of the queries is a sum of three parts, of which the last has one block of keys."""
    torch.manual_seed(5)
    q, k, v = torch.randn(1, 4, 70, 24), torch.randn(1, 2, 400, 24), torch.randn(1, 2, 400, 40)
    alibi, before = torch.rand(4) * 0.2, tile.get_num_threads()
    o, lse = ops.attention(q, k, v, True, alibi=alibi, return_lse=True)
    call = partial(ops.attention_backward, torch.randn_like(o), q, k, v, o, lse, True, alibi=alibi)
    tile.set_num_threads(threads)
    try:
        got, want = call(), call(needs_alibi=True)
    finally:
        tile.set_num_threads(before)
    for a, b in zip(got, want, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("threads", "parts"), [(2, 4), (4, 0)])
def test_parts_are_few(threads: int, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One key head, to which twice as many programs as there are threads would belong."""
    made: list[tuple[int, ...]] = []
    monkeypatch.setattr(api, "dq_sum_kernel", lambda given, *args, **kwargs: made.append(given.shape))
    q, k = torch.randn(1, 2, 9, 16), torch.randn(1, 1, 700, 16)
    o, lse = ops.attention(q, k, k, return_lse=True)
    before = tile.get_num_threads()
    tile.set_num_threads(threads)
    try:
        with tile.target("cpu"):
            ops.attention_backward(torch.ones_like(o), q, k, k, o, lse)
    finally:
        tile.set_num_threads(before)
    assert made == ([(parts, 1, 2, 16, 9)] if parts else [])


@pytest.mark.parametrize("shape", [(2, 1, 1, 150), (1, 4, 50, 1)], ids=str)
def test_learned_biases(shape: tuple[int, ...]) -> None:
    """Gradients of what is broadcast."""
    torch.manual_seed(2)
    q, k, v = (torch.randn(2, n, s, 16) for n, s in ((4, 50), (2, 150), (2, 150)))
    check(q, k, v, {"bias": torch.randn(shape), "alibi": torch.rand(4) * 0.2, "sinks": torch.randn(4), "causal": True})


def test_learned_biases_through_torch() -> None:
    torch.manual_seed(2)
    q, k, v = (torch.randn(2, n, 9, 16, requires_grad=True) for n in (4, 2, 2))
    bias, alibi = torch.randn(4, 1, 9, requires_grad=True), torch.rand(2, 4, requires_grad=True)
    leaves = (q, k, v, bias, alibi)
    call = partial(ops.attention, causal=True, bias=bias, alibi=alibi, return_lse=True)
    o, lse = call(q, k, v)
    do = torch.randn_like(o)
    got = torch.autograd.grad(o, leaves, do)
    plain = [x.detach() for x in (do, q, k, v, o, lse)]
    want = ops.attention_backward(*plain, True, bias=bias.detach(), alibi=alibi.detach(), dlse=torch.zeros_like(lse),
                                  needs_bias=True, needs_alibi=True)
    assert all(map(torch.equal, got, want))
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, got, torch.autograd.grad(compiled(q, k, v)[0], leaves, do)))
    assert set(torch.library.opcheck(torch.ops.tilelang.attention.default, (
        q, k, v, True, 0.25, -1, -1, 0.0, alibi, None, bias.detach()[None].requires_grad_())).values()) == {"SUCCESS"}


def test_slopes_of_packed_sequences() -> None:
    torch.manual_seed(4)
    q, k, v = torch.randn(60, 4, 16), torch.randn(90, 2, 16), torch.randn(90, 2, 16)
    slopes = (torch.rand(4) * 0.2).requires_grad_()
    ends = [torch.tensor(x).int() for x in ([0, 20, 60], [0, 20, 90])]
    o = ops.attention_varlen(q, k, v, *ends, 40, 70, True, alibi=slopes)
    got, = torch.autograd.grad(o, slopes, torch.ones_like(o))
    wants = []
    for dt in (torch.float64, torch.float32):
        s = slopes.detach().to(dt).requires_grad_()
        total = sum(attention(*(x.to(dt).transpose(0, 1)[None] for x in (q[a:b], k[c:d], v[c:d])), causal=True,
                              alibi=s)[0].sum() for a, b, c, d in ((0, 20, 0, 20), (20, 60, 20, 90)))
        wants.append(torch.autograd.grad(total, s)[0])
    exact, same = wants
    assert ((got - exact).abs().max() <= 3 * (same - exact).abs().max()
            + 8 * torch.finfo(torch.float32).eps * exact.abs().max())


def test_half_precision() -> None:
    torch.manual_seed(1)
    check(*(torch.randn(2, n, 130, 32).bfloat16() for n in (4, 2, 2)), {"causal": True})


@pytest.mark.parametrize("target", ["emulate:cuda:sm_80", "emulate:hip:gfx942"])
def test_emulated(target: str) -> None:
    torch.manual_seed(3)
    q, k, v = (torch.randn(1, h, s, d).half() for h, s, d in ((2, 20, 32), (1, 40, 32), (1, 40, 16)))
    with tile.target(target):
        check(q, k, v, {"window": (9, 3), "softcap": 3.0, "sinks": torch.randn(2), "mask_mod": two_of_three,
                        "alibi": torch.rand(2), "bias": torch.randn(2, 1, 40).half()})


def gradient(function: Any, *tensors: torch.Tensor) -> None:
    function(*(x.requires_grad_() for x in tensors)).sum().backward()


def zeros(*widths: int, dt: torch.dtype) -> list[torch.Tensor]:
    return [torch.zeros(1, 1, 64, n, dtype=dt) for n in widths]


WIDE: dict[str, Callable[[], None]] = {
    "attention f32 128": lambda: gradient(ops.attention, *zeros(128, 128, 128, dt=torch.float32)),
    "attention f16 576": lambda: gradient(ops.attention, *zeros(576, 576, 512, dt=torch.float16)),
    "dynamic f32 128": lambda: gradient(lambda *x: ops.dynamic_mask_attention(*x, 7),
                                        *zeros(128, 128, 128, dt=torch.float32), torch.zeros(1, 1, 64)),
    "lla f16 256": lambda: gradient(ops.lla, *zeros(256, 256, 256, dt=torch.float16)),
    "lla bf16 64": lambda: gradient(ops.lla, *zeros(64, 64, 64, dt=torch.bfloat16)),
    "lla f32 128": lambda: gradient(ops.lla, *zeros(128, 128, 128, dt=torch.float32)),
    "mla f16": lambda: ops.mla_decode(torch.zeros(1, 16, 1, 576).half(), torch.zeros(1, 256, 576).half())}


@pytest.mark.parametrize(("target", "name"), [
    ("hip:gfx942", "attention f32 128"), ("cuda:sm_75", "attention f16 576"), ("hip:gfx942", "dynamic f32 128"),
    ("hip:gfx942", "lla f16 256"), ("cuda:sm_89", "lla f16 256"), ("cuda:sm_75", "lla bf16 64"),
    ("hip:gfx942", "lla f32 128"), ("hip:gfx942", "mla f16"), ("cuda:sm_75", "mla f16")])
def test_wide_rows_fit_into_shared_memory(target: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Lowered] = []
    monkeypatch.setattr(targets, "emulate", lambda code, *arguments: seen.append(code))
    with tile.target("emulate:" + target):
        WIDE[name]()
    assert seen and all(code.rendered.shared_bytes <= targets.shared_bytes(target) for code in seen)


def test_scores_without_a_derivative_are_refused() -> None:
    @tile.function
    def running(s, b, h, i, j):
        return tile.cumsum(s, 1)
    x = torch.randn(1, 1, 8, 16)
    with pytest.raises(UnsupportedSyntax, match="has no derivative"):
        ops.attention_backward(x, x, x, x, x, x[..., 0], score_mod=running)


def test_what_lies_behind_the_used_queries_is_not_read() -> None:
    q, k, v = (torch.randn(2, 2, 40, 16, requires_grad=True) for _ in range(3))
    sinks, do = torch.randn(2, requires_grad=True), torch.randn(2, 2, 40, 16)
    out = ops.attention(q, k, v, seqused_q=torch.tensor([30, 40], dtype=torch.int32), sinks=sinks)
    do[0, :, 30:] = 0.0
    want = torch.autograd.grad(out, (q, k, v, sinks), do, retain_graph=True)
    do[0, :, 30:] = torch.nan
    for g, w in zip(torch.autograd.grad(out, (q, k, v, sinks), do), want, strict=True):
        assert torch.equal(g, w)
