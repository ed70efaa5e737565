"""A short campaign of the differential fuzzer; `make fuzz` runs longer ones."""
from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz import check
from tests.strategies import functions
from tilelang.backends.cpu import arithmetic
from tilelang.ir.core import Function
from tilelang.ir.parser import parse

FOUND = {
    "the table of a look-up was placed in the nest that computes it": """\
func @fuzzed(%x: tensor<in f16, N:1>, %y: tensor<out f16, N:1>, %z: tensor<out f16, N:1>) tile {
  %0 = const {value=0, dtype=i32} : i32
  %1 = load %x, %0 {shape=(1,), axes=(0,), fill=0} : f16[1]
  %2 = exp %1 : f16[1]
  %3 = cast %2 {dtype=i32} : i32[1]
  %4 = lookup %1, %3 : f16[1]
  %5 = exp %4 : f16[1]
  store %y, %0, %5 {axes=(0,)}
  store %z, %0, %4 {axes=(0,)}
}
""",
    "the sine of a huge number moved less by two roundings than by one": """\
func @fuzzed(%x: tensor<in i8, M, N>, %y: tensor<out f32, M, N>) tile {
  %0 = const {value=0, dtype=i32} : i32
  %1 = load %x, %0, %0 {shape=(5, 1), axes=(0, 1), fill=0} : i8[5, 1]
  %2 = cast %1 {dtype=f32} : f32[5, 1]
  %3 = exp %2 : f32[5, 1]
  %4 = sin %3 : f32[5, 1]
  store %y, %0, %0, %4 {axes=(0, 1)}
}
""",
}
"""What campaigns have found, and stays found."""


@settings(max_examples=40, derandomize=True, suppress_health_check=list(HealthCheck))
@given(functions())
def test_machine_code_equals_the_interpreter(fn: Function) -> None:
    assert check(fn) == ""


@pytest.mark.parametrize("text", FOUND.values(), ids=FOUND)
def test_found(text: str) -> None:
    assert check(parse(text)) == ""


def test_a_planted_mistake_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(arithmetic._ARITHMETIC, "add", ("add", "fsub"))  # floats only: indices stay right
    monkeypatch.setattr("tilelang.cache.compiler_key", lambda: "planted")

    @settings(max_examples=200, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(functions())
    def campaign(fn: Function) -> None:
        assert check(fn) == ""
    with pytest.raises(AssertionError):
        campaign()
