"""Attention behind other libraries' signatures, over grids as their tests have them, by flash-attn's rule: errors at
most twice (gradients: three times) those of the same computation by torch in the operands' dtype.

The suite runs a few points of each grid; `python -m tests.test_peers` runs all of it.
"""
from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.ops.attention.oracle import attention
from tilelang import peers

SIZES = [(113, 203), (128, 217), (113, 211), (108, 256), (256, 128), (64, 64), (1, 147), (3, 99)]
HALVES = [torch.float16, torch.bfloat16]


def near(name: str, got: torch.Tensor, exact: torch.Tensor, same: torch.Tensor, times: int) -> None:
    error, theirs = (got.double() - exact).abs().max(), (same.double() - exact).abs().max()
    assert error <= times * theirs + 1e-5, f"{name}: {error} beside {theirs}"  # the rule's own constant


def flash(dt: torch.dtype, d: int, size: tuple[int, int], heads: tuple[int, int], causal: bool, local: bool,
          softcap: float, alibi: bool) -> None:
    (s, n), (h, g) = size, heads
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, length, many, d).to(dt).requires_grad_() for length, many in ((s, h), (n, g), (n, g)))
    options = {"causal": causal, "window": (n // 3, n // 5) if local else (-1, -1), "softcap": softcap,
               "alibi": torch.rand(2, h) * 0.3 if alibi else None}
    got = peers.flash_attn_func(q, k, v, causal=causal, window_size=options["window"], softcap=softcap,
                                alibi_slopes=options["alibi"])
    do = torch.randn(got.shape).to(dt)
    grads = torch.autograd.grad(got, (q, k, v), do)
    wants = []
    for precision in (torch.float64, dt):
        leaves = [x.detach().to(precision).requires_grad_() for x in (q, k, v)]
        o = attention(*(x.transpose(1, 2) for x in leaves), **options)[0].transpose(1, 2)
        wants.append([o, *torch.autograd.grad(o, leaves, do.to(precision))])
    for name, a, b, c in zip(("o", "dq", "dk", "dv"), (got, *grads), *wants, strict=True):
        near(name, a, b, c, 2 if name == "o" else 3)


FLASH = (HALVES, [32, 64, 96, 128], SIZES, [(6, 6), (6, 2), (6, 1)], [False, True], [False, True], [0.0, 3.0],
         [False, True])


@pytest.mark.parametrize("case", [
    (torch.float16, 64, (113, 203), (6, 2), True, False, 0.0, False),
    (torch.bfloat16, 32, (108, 256), (6, 6), False, True, 3.0, True)], ids=str)
def test_flash_attn_func(case: tuple[Any, ...]) -> None:
    flash(*case)


def test_mistakes() -> None:
    x = torch.zeros(1, 4, 8, 16)
    with pytest.raises(ValueError, match="`dropout_p` is not supported"):
        peers.flash_attn_func(x, x, x, 0.1)
    with pytest.raises(ValueError, match="4 query heads and 2 key heads need enable_gqa=True"):
        peers.scaled_dot_product_attention(x, x[:, :2], x[:, :2])
    with pytest.raises(ValueError, match="exclude each other"):
        peers.scaled_dot_product_attention(x, x, x, torch.ones(8, 8, dtype=torch.bool), is_causal=True)


def sdpa(dt: torch.dtype, d: int, size: tuple[int, int], heads: tuple[int, int], mask: str) -> None:
    (s, n), (h, g) = size, heads
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, many, length, d).to(dt) for length, many in ((s, h), (n, g), (n, g)))
    given = {"none": {}, "causal": {"is_causal": True}, "boolean": {"attn_mask": torch.rand(2, 1, s, n) < 0.8},
             "added": {"attn_mask": torch.randn(s, n).to(dt)}}[mask]
    got, *wants = (f(*(x.to(p) for x in (q, k, v)), enable_gqa=h != g, **{
        name: x.to(p) if mask == "added" else x for name, x in given.items()}) for f, p in (
            (peers.scaled_dot_product_attention, dt),
            *((torch.nn.functional.scaled_dot_product_attention, p) for p in (torch.float64, dt))))
    near("o", got, *wants, 2)


SDPA = (HALVES, [8, 64, 160], SIZES, [(4, 4), (4, 2)], ["none", "causal", "boolean", "added"])


@pytest.mark.parametrize("case", [
    (torch.float16, 64, (113, 203), (4, 2), "causal"), (torch.bfloat16, 8, (256, 128), (4, 4), "causal"),
    (torch.bfloat16, 64, (108, 256), (4, 2), "boolean"), (torch.float16, 8, (3, 99), (4, 4), "added")], ids=str)
def test_scaled_dot_product_attention(case: tuple[Any, ...]) -> None:
    sdpa(*case)


GRIDS: list[tuple[Callable[..., None], tuple[Any, ...]]] = [(flash, FLASH), (sdpa, SDPA)]


def main() -> None:
    for run, axes in GRIDS:
        cases = list(itertools.product(*axes))
        for case in cases:
            run(*case)
        print(f"{run.__name__}: {len(cases)} cases")


if __name__ == "__main__":
    main()
