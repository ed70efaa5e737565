"""The fuzzer of operators: a few of its cases, that it draws what it is for, and that it tells wrong results."""
from __future__ import annotations

import random
from typing import Any
from unittest import mock

import pytest
import torch

from tests.cases import DTYPES, EMULATED, Case, simplified, verdict
from tests.fuzz_ops import HOSTS, KINDS, check, draw
from tests.near import Near
from tilelang import ops
from tilelang.ops import norm


def test_every_kind_option_size_and_target_is_drawn() -> None:
    rng = random.Random(0)
    cases = [draw(rng, 0.5) for _ in range(12_000)]
    assert {(c.kind, option) for c in cases for option in c.options} == \
        {(kind, option) for kind, (_, options) in KINDS.items() for option in options}
    assert {(c.kind, at, n) for c in cases for at, n in enumerate(c.sizes)} == \
        {(kind, at, n) for kind, (extents, _) in KINDS.items() for at, each in enumerate(extents) for n in each}
    assert {(c.kind, c.target) for c in cases} == {(kind, t) for kind in KINDS for t in (*EMULATED, *HOSTS)}
    assert {(c.kind, c.dtype, c.threads) for c in cases} == {(kind, dt, t) for kind in KINDS for dt in DTYPES for t in
                                                             (1, 2)}


@pytest.mark.parametrize("kind", KINDS)
def test_cases_pass(kind: str) -> None:
    """In the interpreter, and small."""
    rng, done = random.Random(1), 0
    while done < 3:
        case = draw(rng, 0.0)
        if case.kind == kind and case.target == "reference" and max(case.sizes) < 70:
            assert check(case) == ""
            done += 1


def test_what_is_wrong_is_found_and_simplified() -> None:
    """A norm of which a weight's gradient is twice what it should be, and attention by a window one key too wide."""
    sums, more = norm.sum_rows, ops.lowrank_attention

    def twice(x: Any, like: Any) -> Any:
        return 2 * sums(x, like)

    def wider(*args: Any, window: Any, **options: Any) -> Any:
        return more(*args, window=(window[0] + 1, window[1]) if window else None, **options)
    for place, name, wrong, case in (
            (norm, "sum_rows", twice, Case("norm", (2, 3, 33), ("backward", "residual", "strides"), "f16", "reference",
                                           2, 3)),
            (ops, "lowrank_attention", wider, Case("lowrank", (1, 1, 2, 20, 31, 8, 8), ("causal", "window", "bias"),
                                                   "bf16", "reference", 2, 7))):
        assert check(case) == ""
        with mock.patch.object(place, name, wrong):
            found = verdict(check, case)
            assert found
            smaller, _ = simplified(check, case, found)
        assert len(smaller.options) == 1 and smaller.dtype == "f32" and smaller.threads == 1, smaller


def test_errors_are_those_of_f32() -> None:
    """Sums and products lie within the bounds, which are not many times as large as what rounding does."""
    a, b = torch.randn(20, 300), torch.randn(300, 20)
    product, least = Near(a) @ Near(b), 2.0 ** -24 * (a.abs() @ b.abs())
    assert product.against(a @ b) == "" and (product.error <= 1000 * least).all()
    x = Near(a) / Near(a.abs() + 1)
    assert x.against(a / (a.abs() + 1)) == "" and (x.error <= 8 * 2.0 ** -24 * x.value.abs() + 2.0 ** -120).all()
    y = (Near(a) - Near(a).largest()).exp()
    assert y.against(torch.softmax(a, -1)) != "" and (y / y.sum()).against(torch.softmax(a, -1)) == ""
    assert "off at 3" in Near(torch.ones(5)).against(torch.tensor([1, 1, 1, 1 + 2.0 ** -22, 1]))
    beyond = torch.tensor([torch.nan, torch.inf, 1e9])
    assert Near(beyond).against(beyond.half()) == "" != Near(beyond).against(beyond.flip(0).half())
