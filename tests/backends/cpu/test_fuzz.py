"""A short campaign of the differential fuzzer; `make fuzz` runs longer ones."""
from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz import check
from tests.strategies import functions
from tilelang.backends.cpu import arithmetic
from tilelang.ir.core import Function
from tilelang.ir.parser import parse
from tilelang.targets import lowered

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
    "an element of 62 bits may lie in nine bytes": """\
func @fuzzed(%x: tensor<in u62, M, N:1>, %y: tensor<out u62, K, L:1>) tile {
  %0 = const {value=0, dtype=i32} : i32
  %1 = load %x, %0, %0 {shape=(8, 3), axes=(0, 1), fill=1} : u62[8, 3]
  store %y, %0, %0, %1 {axes=(0, 1)}
}
""",
    "tensors of whole bytes that are no number of NumPy's were read as wider ones": """\
func @fuzzed(%x: tensor<in i24, M, N:1>, %y: tensor<out i40, K, L:1>) tile {
  %0 = const {value=0, dtype=i32} : i32
  %1 = load %x, %0, %0 {shape=(8, 8), axes=(0, 1), fill=0} : i24[8, 8]
  %2 = cast %1 {dtype=i40} : i40[8, 8]
  store %y, %0, %0, %2 {axes=(0, 1)}
}
""",
    "a nest behind the memory it reads was taken for the end of a product": """\
func @fuzzed(%x: tensor<in i50, M, N:1>, %y: tensor<out i50, K, L:1>) tile {
  %0 = const {value=0, dtype=i32} : i32
  %1 = load %x, %0, %0 {shape=(3, 3), axes=(0, 1), fill=0} : i50[3, 3]
  %2 = alloc {dtype=i50, shape=(3, 3), space='shared'} : buffer<shared i50, 3, 3>
  store %2, %0, %0, %1 {axes=(0, 1)}
  barrier
  %3 = load %2, %0, %0 {shape=(3, 3), axes=(0, 1), fill=0} : i50[3, 3]
  store %y, %0, %0, %3 {axes=(0, 1)}
}
""",
}
"""What campaigns have found, and stays found."""


@settings(max_examples=15, derandomize=True, suppress_health_check=list(HealthCheck))
@given(functions())
def test_machine_code_equals_the_interpreter(fn: Function) -> None:
    assert check(fn) == ""


@pytest.mark.parametrize("text", FOUND.values(), ids=FOUND)
def test_found(text: str) -> None:
    assert check(parse(text)) == ""


def test_elements_of_a_stream_are_a_loop() -> None:
    """Code for each lane took LLVM 14 seconds for a block of 256, and half a minute where it followed a view."""
    text = """func @f(%x: tensor<in u3, M, N:1>, %y: tensor<out u3, K, L:1>) tile {{
  %0 = const {{value=0, dtype=i32}} : i32
  %1 = load %x, %0, %0 {{shape=(1, {n}), axes=(0, 1), fill=0}} : u3[1, {n}]
  store %y, %0, %0, %1 {{axes=(0, 1)}}
}}
"""
    small, large = (len(lowered(parse(text.format(n=n)), "cpu").source) for n in (8, 64))
    assert large < 2 * small


def test_a_planted_mistake_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic.math, "emit", lambda b, name, args, target: args[0])  # every function
    monkeypatch.setattr("tilelang.cache.compiler_key", lambda: "planted")

    @settings(max_examples=100, derandomize=True, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))
    @given(functions(count=2, steps=("elementwise",)))
    def campaign(fn: Function) -> None:
        assert check(fn) == ""
    with pytest.raises(AssertionError):
        campaign()


def test_a_planted_mistake_of_passes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read is taken to stay as it is whatever is written."""
    monkeypatch.setattr("tilelang.passes.effects.Writes.may_change", lambda self, read: False)

    @settings(max_examples=300, derandomize=True, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))
    @given(functions(count=3, steps=("update", "loop")))
    def campaign(fn: Function) -> None:
        assert check(fn, "passes") == ""
    with pytest.raises(AssertionError, match=r"%.* was .* and is"):
        campaign()
