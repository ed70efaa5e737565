"""Attention behind other libraries' signatures, over grids as their tests have them, by flash-attn's rule: errors at
most twice (gradients: three times) those of the same computation by torch in the operands' dtype.

The suite runs a few points of each grid; `python -m tests.test_peers` runs all of it, and with a number one case of so
many.
"""
from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.ops.attention.oracle import attention
from tests.ops.attention.test_decode import turned
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
    (torch.bfloat16, 32, (108, 256), heads, False, True, 3.0, True) for heads in ((6, 6), (6, 1))], ids=str)
def test_flash_attn_func(case: tuple[Any, ...]) -> None:
    flash(*case)


def varlen(dt: torch.dtype, d: int, size: tuple[int, int], heads: tuple[int, int], causal: bool, local: bool,
           softcap: float, alibi: bool, lengths: str) -> None:
    (s, n), (h, g) = size, heads
    torch.manual_seed(0)
    counts = [{"full": [m] * 3, "random": torch.randint(max(1, m - 20), m + 1, (3,)).tolist(),
               "empty": [0, m, m // 2] if m == n else [m, 0, m]}[lengths] for m in (s, n)]
    q, k, v = (torch.randn(sum(c), many, d).to(dt).requires_grad_()
               for c, many in ((counts[0], h), (counts[1], g), (counts[1], g)))
    options = {"causal": causal, "window": (n // 3, n // 5) if local else (-1, -1), "softcap": softcap}
    slopes = torch.rand(3, h) * 0.3 if alibi else None
    ends = [torch.tensor([0, *c]).cumsum(0).int() for c in counts]
    got = peers.flash_attn_varlen_func(q, k, v, *ends, max(counts[0]), max(counts[1]), causal=causal, softcap=softcap,
                                       window_size=options["window"], alibi_slopes=slopes)
    do = torch.randn(got.shape).to(dt)
    grads = torch.autograd.grad(got, (q, k, v), do)
    wants = []
    for precision in (torch.float64, dt):
        leaves = [x.detach().to(precision).requires_grad_() for x in (q, k, v)]
        parts = zip(*(x.split(c) for x, c in zip(leaves, (*counts, counts[1]), strict=True)), strict=True)
        o = torch.cat([attention(*(x.transpose(0, 1)[None] for x in part), **options,
                                 alibi=None if slopes is None else slopes[b])[0][0].transpose(0, 1)
                       for b, part in enumerate(parts)])
        wants.append([o, *torch.autograd.grad(o, leaves, do.to(precision))])
    for name, a, b, c in zip(("o", "dq", "dk", "dv"), (got, *grads), *wants, strict=True):
        near(name, a, b, c, 2 if name == "o" else 3)


VARLEN = (*FLASH, ["full", "random", "empty"])


@pytest.mark.parametrize("case", [
    (torch.float16, 64, (113, 203), (6, 2), True, False, 0.0, False, lengths) for lengths in ("random", "empty")],
    ids=str)
def test_flash_attn_varlen_func(case: tuple[Any, ...]) -> None:
    varlen(*case)


def cache(dt: torch.dtype, d: int, size: tuple[int, int], heads: tuple[int, int], causal: bool, local: bool,
          alibi: bool, new: int, fraction: float, interleaved: bool, where: str, splits: int) -> None:
    """`new` keys are appended to sequences of random lengths, in caches that are NaN behind them."""
    (s, n), (h, g) = size, heads
    torch.manual_seed(0)
    lengths = torch.randint(1, n - new + 1, (2,)).int()
    q, k, v = torch.randn(2, s, h, d).to(dt), torch.randn(2, n, g, d).to(dt), torch.randn(2, n, g, d).to(dt)
    fresh = [torch.randn(2, new, g, d).to(dt) for _ in range(2)]
    angle = torch.rand(n + s, int(fraction * d / 2) // 8 * 8) * 6
    cos, sin = (angle.cos().to(dt), angle.sin().to(dt)) if fraction else (None, None)
    options = {"causal": causal, "window": (n // 3, n // 5) if local else (-1, -1)}
    slopes = torch.rand(2, h) * 0.3 if alibi else None
    for b, used in enumerate(lengths.tolist()):
        k[b, used:], v[b, used:] = torch.nan, torch.nan
    pools: list[torch.Tensor] = [k.clone(), v.clone()]
    at: dict[str, torch.Tensor] = {}
    if where == "pages":
        at = {"block_table": torch.randperm(2 * -(-n // 64)).int().reshape(2, -1)}
    elif where == "entries":
        at = {"cache_batch_idx": torch.tensor([2, 0])}
    for i, x in enumerate((k, v)):
        if where == "pages":
            padded = torch.cat([x, torch.full((2, -n % 64, g, d), torch.nan, dtype=dt)], 1)
            pools[i] = torch.empty(at["block_table"].numel(), 64, g, d, dtype=dt)
            pools[i][at["block_table"].long()] = padded.reshape(2, -1, 64, g, d)
        elif where == "entries":
            pools[i] = torch.full((4, n, g, d), torch.nan, dtype=dt)
            pools[i][at["cache_batch_idx"]] = x
    more = fresh if new else (None, None)
    got = peers.flash_attn_with_kvcache(q, *pools, *more, cos, sin, lengths, **at, causal=causal,
                                        window_size=options["window"], rotary_interleaved=interleaved,
                                        alibi_slopes=slopes, num_splits=splits)

    def spun(x: torch.Tensor, together: bool = False) -> torch.Tensor:
        """[B, S, H, D] turned, in f64."""
        if cos is None:
            return x.double()
        y = x.flatten(1, 2)[:, :, None] if together else x.transpose(1, 2)
        y = turned(y, cos, sin, lengths, interleaved)
        return y.reshape(x.shape) if together else y.transpose(1, 2)
    queries = spun(q, not causal and not local)
    stored = [p[at["block_table"].long()].flatten(1, 2) if where == "pages" else
              p[at["cache_batch_idx"]] if where == "entries" else p for p in pools]
    for b, used in enumerate(lengths.tolist()):
        valid = used + new
        exact = [x[b:b + 1, :valid].double() for x in (k, v)]
        if new:
            exact[0][:, used:], exact[1][:, used:] = spun(fresh[0])[b:b + 1], fresh[1][b:b + 1].double()
            for name, a, c in zip("kv", stored, exact, strict=True):
                near(f"cache of {name}", a[b:b + 1, :valid], c, c.to(dt), 2)
                assert a[b, valid:n].isnan().all()
        slope = None if slopes is None else slopes[b]
        want, same = (attention(*(x.to(p).transpose(1, 2) for x in (queries[b:b + 1], *exact)), **options,
                                alibi=slope)[0].transpose(1, 2) for p in (torch.float64, dt))
        near("o", got[b:b + 1], want, same, 2)


CACHE = (HALVES, [64, 96, 128], [(1, 128), (1, 339), (3, 1024), (64, 800), (16, 250)], [(6, 6), (6, 2), (6, 1)],
         [False, True], [False, True], [False, True], [0, 1, 5], [0.0, 0.5, 1.0], [False, True],
         ["rows", "pages", "entries"], [1, 0])


@pytest.mark.parametrize("case", [
    (torch.float16, 64, (1, 339), (6, 2), True, False, False, 1, 1.0, False, "pages", 0),
    (torch.bfloat16, 64, (3, 128), (6, 6), False, True, True, 5, 0.5, True, "entries", 1),
    (torch.float16, 64, (16, 250), (6, 1), False, False, False, 0, 0.5, True, "rows", 1)], ids=str)
def test_flash_attn_with_kvcache(case: tuple[Any, ...]) -> None:
    cache(*case)


def test_mistakes() -> None:
    x = torch.zeros(1, 4, 8, 16)
    with pytest.raises(ValueError, match="`dropout_p` is not supported"):
        peers.flash_attn_func(x, x, x, 0.1)
    with pytest.raises(ValueError, match="`cache_leftpad` is not supported"):
        peers.flash_attn_with_kvcache(x, x, x, cache_leftpad=torch.zeros(1))
    with pytest.raises(ValueError, match="exclude each other"):
        peers.flash_attn_with_kvcache(x, x, x, cache_batch_idx=torch.zeros(1), block_table=torch.zeros(1, 1))
    with pytest.raises(ValueError, match="pass i32 .B. or a number"):
        peers.flash_attn_with_kvcache(x, x, x, x, x)
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
    got, want, same = (f(*(x.to(p) for x in (q, k, v)), enable_gqa=h != g, **{
        name: x.to(p) if mask == "added" else x for name, x in given.items()}) for f, p in (
            (peers.scaled_dot_product_attention, dt),
            *((torch.nn.functional.scaled_dot_product_attention, p) for p in (torch.float64, dt))))
    near("o", got, want, same, 2)


SDPA = (HALVES, [8, 64, 160], SIZES, [(4, 4), (4, 2)], ["none", "causal", "boolean", "added"])


@pytest.mark.parametrize("case", [
    (torch.float16, 64, (113, 203), (4, 2), "causal"), (torch.bfloat16, 8, (256, 128), (4, 4), "causal"),
    (torch.bfloat16, 64, (108, 256), (4, 2), "boolean"), (torch.float16, 8, (3, 99), (4, 4), "added")], ids=str)
def test_scaled_dot_product_attention(case: tuple[Any, ...]) -> None:
    sdpa(*case)


GRIDS: list[tuple[Callable[..., None], tuple[Any, ...]]] = [(flash, FLASH), (varlen, VARLEN), (cache, CACHE),
                                                            (sdpa, SDPA)]


def main() -> None:
    part = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    for run, axes in GRIDS:
        grid = list(itertools.product(*axes))
        cases = random.Random(0).sample(grid, -(-len(grid) // part))
        for case in cases:
            try:
                run(*case)
            except AssertionError as error:
                error.add_note(f"{run.__name__}{case}")
                raise
        print(f"{run.__name__}: {len(cases)} of {len(grid)} cases")


if __name__ == "__main__":
    main()
