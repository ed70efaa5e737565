"""The fuzzer of the language: a few of its programs, and that it draws what it is for."""
from __future__ import annotations

from random import Random

import pytest

from tests.fuzz_language import Writer, check
from tilelang.lang.statements import Statements

TEXTS = [Writer(Random(seed)).text() for seed in range(60)]


@pytest.mark.parametrize("seed", range(8))
def test_programs_mean_what_they_mean_in_python(seed: int) -> None:
    assert check(TEXTS[seed]) == ""


@pytest.mark.parametrize("part", ["elif ", "while ", "tile.range(", "static_range(", "enumerate(", "return\n", " := ",
                                  "lambda ", " %= ", "*_", " if ", " or ", "(not ", "*, ", "=f", "assert "])
def test_all_is_drawn(part: str) -> None:
    assert any(part in text for text in TEXTS)


def test_a_mistake_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unrolled loops that leave out their last iteration."""
    unrolled = Statements.unrolled
    monkeypatch.setattr(Statements, "unrolled", lambda self, node: unrolled(self, node)[:-len(node.body) - 1])
    assert any(check(text) for text in TEXTS)
