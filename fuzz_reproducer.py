"""Found by the fuzzer: KeyError: %?: u3[1]"""
import numpy as np

from tests.backends.cpu.native import native
from tilelang.ir.parser import parse
from tilelang.passes.meaning import difference

TEXT = """
func @fuzzed(%x0: tensor<in u3, x00:1>, %y0: tensor<out u3, y00:1>) tile {
  %0 = const {value=0, dtype=i32} : i32
  %1 = load %x0, %0 {shape=(1,), axes=(0,), fill=0} : u3[1]
  %2 = cast %1 {dtype=i32} : i32[1]
  %3 = lookup %1, %2 : u3[1]
  %4 = const {value=0, dtype=i32} : i32
  %5 = const {value=0, dtype=i32} : i32
  %6 = const {value=0, dtype=i32} : i32
  %7 = const {value=1, dtype=i32} : i32
  %8 = for %5, %6, %7, %3 {stages=1} : u3[1] (%9: i32, %10: u3[1]) {
    %11 = add %10, %3 : u3[1]
    yield %11
  }
  %12 = const {value=0, dtype=i32} : i32
  store %y0, %12, %8 {axes=(0,)}
}
"""


def test_reproducer() -> None:
    fn = parse(TEXT)
    assert difference(fn, native(fn), np.random.default_rng(0)) == ""


if __name__ == "__main__":
    test_reproducer()
