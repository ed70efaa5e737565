"""Found by the fuzzer: cuda:sm_80: %y0[0, 1] was True and is False; 1 of 12 elements differ (inputs x0: [4, 2], y0: [3, 4])"""
from tests.fuzz import check
from tilelang.ir.parser import parse

TEXT = """
func @fuzzed(%x0: tensor<in i1, x00, x01>, %y0: tensor<out i1, y00, y01>) tile {
  %0 = const {value=0, dtype=i32} : i32
  %1 = load %x0, %0, %0 {shape=(2, 1), axes=(0, 1), fill=0} : i1[2, 1]
  %2 = cast %1 {dtype=f32} : f32[2, 1]
  %3 = exp %2 : f32[2, 1]
  %4 = exp %3 : f32[2, 1]
  %5 = permute %1 {order=(1, 0)} : i1[1, 2]
  %6 = dot %1, %5 {dtype=i32, bias=0, instruction=''} : i32[2, 2]
  %7 = exp %3 : f32[2, 1]
  %8 = exp %3 : f32[2, 1]
  %9 = exp %3 : f32[2, 1]
  %10 = exp %3 : f32[2, 1]
  %11 = reshape %1 {shape=(2,)} : i1[2]
  %12 = cast %6 {dtype=i32} : i32[2, 2]
  %13 = lookup %11, %12 : i1[2, 2]
  %14 = const {value=0, dtype=i32} : i32
  store %y0, %14, %14, %13 {axes=(0, 1)}
}
"""


def test_reproducer() -> None:
    assert check(parse(TEXT), "cuda:sm_80") == ""


if __name__ == "__main__":
    test_reproducer()
