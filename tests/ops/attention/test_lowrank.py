"""Attention of factors, within the bound of what its sums may err, against full queries, keys and values in f64."""
from __future__ import annotations

from typing import Any

import pytest
import torch

import tilelang as tile
from tests.ops.attention.oracle import EPS
from tilelang import ops
from tilelang.ops.attention import lowrank

U = 2.0 ** -24


def draw(b: int, h: int, g: int, s: int, length: int, ranks: tuple[int, int, int], d: int, e: int,
         dt: torch.dtype = torch.float32) -> list[torch.Tensor]:
    rq, rk, rv = ranks
    return [(torch.randn(*shape) / shape[-2] ** (0.5 if n % 2 else 0)).to(dt) for n, shape in enumerate(
        [(b, s, rq), (h, rq, d), (b, length, rk), (g, rk, d), (b, length, rv), (g, rv, e)])]


def check(given: list[torch.Tensor], step: float = U, **options: Any) -> None:
    """A score is a sum of products of three sums: its error is that of its depth times the sum of magnitudes, and of
    `step` for each of the four roundings where operands are rounded; weights err by twice that, relatively."""
    got = ops.lowrank_attention(*given, **options)
    exact = [x.double() for x in given]
    numbers = {n: x.double().numpy() if isinstance(x, torch.Tensor) else x for n, x in options.items()}
    want = torch.tensor(lowrank.reference(*(x.numpy() for x in exact), **numbers))
    q, up_q, k, up_k, v, up_v = (x.abs() for x in exact)
    wide, repeat = q[:, None] @ up_q, up_q.shape[0] // up_k.shape[0]
    if "bias_q" in options:
        wide = wide + options["bias_q"].double().abs()[:, None]
    terms = wide @ (k[:, None] @ up_k).repeat_interleave(repeat, 1).mT * up_q.shape[2] ** -0.5
    depth = sum(x.shape[-1] for x in (q, wide, k)) + 24
    t = (depth * U + 4 * step) * terms.amax() if terms.numel() else 0.0
    size = torch.nn.functional.pad(v[:, None] @ up_v, (0, 0, 1, 0)).repeat_interleave(repeat, 1).amax(2, keepdim=True)
    if "bias_v" in options:
        size = size + options["bias_v"].double().abs().repeat_interleave(repeat, 0)[:, None]
    error = torch.expm1(torch.as_tensor(2.0 * t)) + (k.shape[1] + v.shape[2] + 16) * U + 3 * step
    assert ((got - want).abs() <= error * size + EPS[got.dtype] * want.abs() + 2.0 ** -24).all()


@pytest.mark.parametrize(("shape", "options"), [
    ((2, 4, 4, 33, 33, (9, 12, 5), 16, 16), {}), ((1, 6, 2, 100, 140, (20, 8, 30), 24, 10), {"causal": True}),
    ((1, 1, 1, 1, 1, (1, 1, 1), 1, 1), {}), ((1, 2, 1, 40, 11, (4, 4, 4), 8, 8), {"causal": True, "window": (5, -1)})])
def test_as_full_heads(shape: Any, options: Any) -> None:
    """Sequences longer and shorter than a block, and queries that see nothing."""
    with tile.target("reference"):
        check(draw(*shape), **options)


@pytest.mark.parametrize("target", ["cpu", "emulate:cuda:sm_80", "emulate:hip:gfx942"])
def test_on_machines(target: str) -> None:
    biases = {"bias_q": torch.randn(2, 12), "bias_v": torch.randn(1, 20)}
    with tile.target(target):
        if target == "cpu":
            check(draw(1, 2, 1, 110, 150, (10, 7, 9), 12, 20), causal=True, **biases)
        else:
            check(draw(1, 2, 1, 30, 40, (10, 7, 9), 12, 20, torch.float16), 2.0 ** -11, causal=True,
                  **{n: x.half() for n, x in biases.items()})


def test_operator() -> None:
    given = draw(1, 2, 1, 9, 9, (4, 4, 4), 8, 8)
    with tile.target("reference"):
        want = ops.lowrank_attention(*given)
        result = torch.library.opcheck(torch.ops.tilelang.lowrank_attention.default, (*given, None, None, True, 0.3))
        assert set(result.values()) == {"SUCCESS"}
        compiled: Any = torch.compile(lambda *a: ops.lowrank_attention(*a), fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(*given), want)
    with pytest.raises(ValueError, match="must be a multiple"):
        ops.lowrank_attention(*given[:3], given[3].repeat(3, 1, 1), *given[4:])
