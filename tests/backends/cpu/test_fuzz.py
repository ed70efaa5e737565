"""A short campaign of the differential fuzzer; `make fuzz` runs longer ones."""
from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz import check
from tests.strategies import functions
from tilelang.backends.cpu import arithmetic
from tilelang.ir.core import Function


@settings(max_examples=40, derandomize=True, suppress_health_check=list(HealthCheck))
@given(functions())
def test_machine_code_equals_the_interpreter(fn: Function) -> None:
    assert check(fn) == ""


def test_a_planted_mistake_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(arithmetic._ARITHMETIC, "add", ("add", "fsub"))  # floats only: indices stay right
    monkeypatch.setattr("tilelang.jit._compiler_key", lambda: "planted")

    @settings(max_examples=200, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(functions())
    def campaign(fn: Function) -> None:
        assert check(fn) == ""
    with pytest.raises(AssertionError):
        campaign()
