"""The fuzzer of attention: a few of its cases, that it draws what it is for, and that it tells wrong results."""
from __future__ import annotations

import random
from typing import Any
from unittest import mock

import pytest

from tests.attention_cases import HOSTS, OPTIONS, draw
from tests.cases import EMULATED, Case, simplified, verdict
from tests.fuzz_attention import check
from tilelang.ops.attention import api


def test_every_kind_option_and_target_is_drawn() -> None:
    rng = random.Random(0)
    cases = [draw(rng, 0.5) for _ in range(3000)]
    assert {(c.kind, option) for c in cases for option in c.options} == \
        {(kind, option) for kind, options in OPTIONS.items() for option in options}
    assert {(c.kind, c.target) for c in cases} == {(kind, t) for kind in OPTIONS for t in (*EMULATED, *HOSTS)}
    assert {c.dtype for c in cases} == {"f32", "f16", "bf16"}
    for at in range(5):
        assert 0 in {c.sizes[at] for c in cases} or at in (1, 2)


@pytest.mark.parametrize("kind", OPTIONS)
def test_cases_pass(kind: str) -> None:
    """In the interpreter, and small."""
    rng, done = random.Random(1), 0
    while done < 3:
        case = draw(rng, 0.0)
        if case.kind == kind and case.target == "reference" and max(case.sizes) < 100:
            assert check(case) == ""
            done += 1


def test_what_is_wrong_is_found_and_simplified() -> None:
    """A window that is one key too wide."""
    case = Case("whole", (1, 1, 2, 20, 31, 8, 8), ("causal", "window", "sinks", "scale", "backward"), "f16",
                "reference", 2, 11)
    whole = api.options

    def wider(*args: Any, **kwargs: Any) -> Any:
        given = whole(*args, **kwargs)
        given.consts["RIGHT"] = None if given.consts["RIGHT"] is None else given.consts["RIGHT"] + 1
        return given
    assert check(case) == ""
    with mock.patch.object(api, "options", wider):
        found = verdict(check, case)
        assert "result off by" in found
        smaller, _ = simplified(check, case, found)
    assert smaller.options == ("causal",) and smaller.dtype == "f32" and smaller.threads == 1 and smaller.sizes[2] == 1
