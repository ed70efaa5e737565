"""Packed sequences and pages: each sequence is what `attention` makes of it alone, and nothing leaks between them."""
from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

import tilelang as tile
from tests.ops.attention.oracle import attention as oracle
from tests.ops.attention.oracle import bounds, doubled, wavy
from tests.ops.attention.test_backward import gradients
from tilelang.errors import AssertFailed
from tilelang.ops import lla_varlen
from tilelang.ops.attention import attention_varlen, attention_varlen_backward

QUERIES, KEYS = (100, 0, 7, 130, 3), (150, 20, 0, 128, 40)


def starts(lengths: Any) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def one(x: torch.Tensor, cu: torch.Tensor, b: int) -> torch.Tensor:
    """Sequence b of [T, H, D] as [1, H, S, D]."""
    return x[cu[b]:cu[b + 1]].transpose(0, 1)[None]


def test_forward_and_backward() -> None:
    torch.manual_seed(0)
    cu_q, cu_k = starts(QUERIES), starts(KEYS)
    q, k, v = torch.randn(240, 4, 24), torch.randn(338, 2, 24), torch.randn(338, 2, 40)
    options: dict[str, Any] = {"causal": True, "window": (60, 0), "sinks": torch.randn(4), "score_mod": wavy}
    sizes = (cu_q, cu_k, max(QUERIES), max(KEYS))
    o, lse = attention_varlen(q, k, v, *sizes, return_lse=True, **options)
    do, dlse = torch.randn(o.shape), torch.randn(lse.shape)
    dq, dk, dv, dsinks = attention_varlen_backward(do, q, k, v, o, lse, *sizes, dlse=dlse, **options)
    total = torch.zeros(4, dtype=torch.float64)
    for b in range(len(QUERIES)):
        part, keys, values = one(q, cu_q, b), one(k, cu_k, b), one(v, cu_k, b)
        moved = {**options, "score_mod": (lambda s, _, h, i, j, b=b: wavy_at(s, b, h, i, j))}
        want, sums = oracle(part.double(), keys.double(), values.double(), **doubled(moved))
        bound, _ = bounds(part, keys, values, want, **moved)
        assert ((one(o, cu_q, b).double() - want).abs() <= bound + 2.0 ** -24).all()
        assert ((lse[:, cu_q[b]:cu_q[b + 1]] - sums[0]).abs() <= 2.0 ** -16).all()
        inside = one(do, cu_q, b), dlse[None, :, cu_q[b]:cu_q[b + 1]]
        exact, same = (gradients(part, keys, values, *inside, moved, dt) for dt in (torch.float64, torch.float32))
        total += exact[3]
        got = one(dq, cu_q, b), one(dk, cu_k, b), one(dv, cu_k, b)
        for x, y, z in zip(got, exact, same, strict=False):
            if x.numel():
                limit = 3 * (z.double() - y).abs().max() + 8 * 2.0 ** -23 * y.abs().max()
                assert (x.double() - y).abs().max() <= limit
    assert ((dsinks - total).abs() <= 2.0 ** -23 * 240 * (1 + total.abs())).all()


def wavy_at(s: torch.Tensor, b: int, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
    """`wavy` of sequence b."""
    return s + 0.1 * torch.sin(s) * (h + 1) - 0.01 * (i + b)


@pytest.mark.parametrize(("page", "target"), [(16, "cpu"), (48, "cpu"), (16, "emulate:cuda:sm_80"),
                                              (16, "emulate:hip:gfx942")])
def test_pages(page: int, target: str) -> None:
    """Rows of pages that no sequence reaches hold NaN. With lengths as `cu_seqlens_k` all read the first's pages."""
    torch.manual_seed(1)
    lengths = torch.tensor([33, 0, 70], dtype=torch.int32)
    cu_q = starts((5, 4, 20))
    q = torch.randn(29, 4, 16)
    needed = [-(-n // page) for n in lengths.tolist()]
    table = torch.full((3, max(needed)), 10 ** 6, dtype=torch.int32)  # pages beyond the length lie outside
    order = torch.randperm(sum(needed)).int()
    k, v = (torch.full((sum(needed), page, 2, 16), torch.nan) for _ in range(2))
    alone = []
    for b, (first, end) in enumerate(pairwise(torch.tensor([0, *needed]).cumsum(0).tolist())):
        n = int(lengths[b])
        table[b, :end - first] = order[first:end]
        keys, values = torch.randn(n, 2, 16), torch.randn(n, 2, 16)
        alone.append((keys, values))
        for at in range(n):
            where = order[first + at // page]
            k[where, at % page], v[where, at % page] = keys[at], values[at]
    with tile.target(target):
        got = attention_varlen(q, k, v, cu_q, None, 20, 0, causal=True, seqused_k=lengths, block_table=table)
        same = attention_varlen(q, k, v, cu_q, starts(lengths.tolist()), 20, 0, causal=True, block_table=table)
    assert torch.equal(got, same)
    for b, (keys, values) in enumerate(alone):
        args = one(q, cu_q, b), keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
        want, _ = oracle(*(x.double() for x in args), causal=True)
        bound, _ = bounds(*args, want, causal=True)
        assert torch.isfinite(got).all() and ((one(got, cu_q, b).double() - want).abs() <= bound + 2.0 ** -24).all()


@pytest.mark.parametrize(("name", "longest"), [("max_seqlen_q", (0, 8)), ("max_seqlen_q", (-8, 8)),
                                               ("max_seqlen_k", (8, 0)), ("max_seqlen_k", (8, -1))])
def test_rows_without_a_longest_sequence_are_refused(name: str, longest: tuple[int, int]) -> None:
    """No program ran, and the results were 0; of `lla_varlen`, what memory held."""
    x, lse, cu = torch.ones(8, 2, 16), torch.ones(2, 8), starts([8])
    for call in (lambda: attention_varlen(x, x, x, cu, cu, *longest), lambda: lla_varlen(x, x, x, cu, cu, *longest),
                 lambda: attention_varlen(x, x, x, cu, cu, *longest, out=torch.ones(8, 2, 16)),
                 lambda: attention_varlen_backward(x, x, x, x, x, lse, cu, cu, *longest)):
        with pytest.raises(ValueError, match=f"{name} must be at least the longest sequence, got .* for 8 rows"):
            call()
    none, nothing = torch.zeros(0, 2, 16), starts([0])
    assert attention_varlen(none, none, none, nothing, nothing, 0, 0).shape == none.shape


def test_mistakes() -> None:
    x, cu = torch.zeros(8, 2, 16), torch.tensor([0, 8], dtype=torch.int32)
    with pytest.raises(ValueError, match="cu_seqlens_k is needed"):
        attention_varlen(x, x, x, cu, None, 8, 8)
    with pytest.raises(ValueError, match=r"alibi needs shape \[2\] or \[1, 2\]"):
        attention_varlen(x, x, x, cu, cu, 8, 8, alibi=torch.zeros(3, 2))
    with pytest.raises(ValueError, match="1 sequences need lengths of as many, got those of 2"):
        attention_varlen(x, x, x, cu, cu, 8, 8, seqused_k=cu)
    with pytest.raises(ValueError, match="must give the lengths"):
        attention_varlen(x, x[None], x[None], cu, None, 8, 8, block_table=torch.zeros(1, 1, dtype=torch.int32))


@pytest.mark.parametrize(("ends", "longest"), [((0, 8, 20), 20), ((0, 30, 12), 30), ((-4, 8, 12), 20), ((0, 12), 8)])
def test_sequences_that_no_program_would_write(ends: tuple[int, ...], longest: int) -> None:
    x, inside = torch.zeros(12, 2, 16), [0, 4, 12] if len(ends) == 3 else ends
    right, wrong = (torch.tensor(places, dtype=torch.int32) for places in (inside, ends))
    for cu in ((wrong, wrong), (right, wrong)) if longest > 8 else ((wrong, right),):
        for function in (attention_varlen, lla_varlen):
            with pytest.raises(AssertFailed, match="longer than max_seqlen, or not within the rows"):
                function(x, x, x, *cu, longest, longest)
