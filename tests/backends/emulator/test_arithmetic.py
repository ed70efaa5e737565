"""Scalar functions of the emulator's prelude against NumPy; the integer ones are those of the CUDA prelude too."""
from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.backends.cuda.wrappers import INTEGERS
from tests.backends.emulator.test_collectives import C_TYPES
from tests.backends.emulator.texts import kernel, run
from tilelang.backends.emulator.run import Buffer


def _map(expression: str, c_in: str, c_out: str, *inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The expression over `x` (and `y`) for each element."""
    n = len(inputs[0])
    names = "xy"[:len(inputs)]
    params = ", ".join(f"tl::gptr<const {c_in}> {name}s" for name in names)
    reads = "\n".join(f"  const {c_in} {name} = tl::ld<1>({name}s, i, i < n, tl::op(1))[0];" for name in names)
    out = Buffer(np.zeros(n, C_TYPES[c_out]), False)
    text = kernel(f"{params}, tl::gptr<{c_out}> o, tl::i64 n", f"""  const tl::i64 i = p * 1024 + t;
{reads}
  tl::st<1>(o, i, tl::vec<{c_out}, 1>{{({c_out})({expression})}}, i < n, tl::op(2));""", 1024)
    result = run(text, [*map(Buffer, inputs), out, n], 1024, programs=-(-n // 1024))
    assert not result.findings
    return out.array


@pytest.mark.parametrize("c_type", INTEGERS)
def test_integers(c_type: str) -> None:
    dtype = C_TYPES[c_type]
    info = np.iinfo(dtype)
    edges = np.array([info.min, info.min + 1, info.max - 1, info.max, 0, 1, 2, 3, 7, 8, 31, 63, 64], object)
    if info.min < 0:
        edges = np.concatenate([edges, np.array([-1, -2, -3, -7, -8], object)])
    x, y = (np.array(list(g.ravel()), object) for g in np.meshgrid(edges, edges))
    quotient = [int(a) // int(b) if b else 0 for a, b in zip(x, y, strict=True)]
    remainder = [int(a) % int(b) if b else 0 for a, b in zip(x, y, strict=True)]
    left = [int(a) << int(b) if 0 <= b < info.bits else 0 for a, b in zip(x, y, strict=True)]
    right = [int(a) >> int(b) if 0 <= b < info.bits else -(a < 0) for a, b in zip(x, y, strict=True)]
    xs, ys = x.astype(dtype), y.astype(dtype)
    for expression, expected in (("tl::floordiv(x, y)", quotient), ("tl::mod(x, y)", remainder),
                                 ("tl::shl(x, y)", left), ("tl::shr(x, y)", right),
                                 ("tl::max(x, y)", np.maximum(x, y)), ("tl::min(x, y)", np.minimum(x, y)),
                                 ("tl::abs(x)", [abs(int(a)) for a in x])):
        wrapped = [(int(e) - info.min) % (1 << info.bits) + info.min for e in expected]
        np.testing.assert_array_equal(_map(expression, c_type, c_type, xs, ys), np.array(wrapped, dtype), expression)


@pytest.mark.parametrize("c_type", ["float", "double"])
def test_functions(c_type: str) -> None:
    import math
    dtype = C_TYPES[c_type]
    x = np.linspace(-4, 4, 1001).astype(dtype)
    tolerance = 4 * np.finfo(dtype).eps
    wide = x.astype(np.float64)
    expected = {"exp": np.exp, "exp2": np.exp2, "sin": np.sin, "cos": np.cos, "tanh": np.tanh, "abs": np.abs,
                "floor": np.floor, "ceil": np.ceil, "round": np.rint, "erf": np.vectorize(math.erf),
                "sigmoid": lambda v: 1 / (1 + np.exp(-v))}
    for name, f in expected.items():
        got = _map(f"tl::{name}(x)", c_type, c_type, x)
        np.testing.assert_allclose(got, f(wide), tolerance, tolerance, err_msg=name)
    for name, g in {"log": np.log, "log2": np.log2, "sqrt": np.sqrt, "rsqrt": lambda v: 1 / np.sqrt(v)}.items():
        positive = np.abs(x) + dtype(0.01)
        np.testing.assert_allclose(_map(f"tl::{name}(x)", c_type, c_type, positive), g(positive.astype(np.float64)),
                                   tolerance, tolerance, err_msg=name)


@pytest.mark.parametrize("c_type", ["float", "double"])
def test_nan_wins(c_type: str) -> None:
    edges = np.array([np.nan, -np.inf, -1, 0, 2, np.inf], C_TYPES[c_type])
    x, y = (g.ravel() for g in np.meshgrid(edges, edges))
    np.testing.assert_array_equal(_map("tl::max(x, y)", c_type, c_type, x, y), np.maximum(x, y))
    np.testing.assert_array_equal(_map("tl::min(x, y)", c_type, c_type, x, y), np.minimum(x, y))


@pytest.mark.parametrize("target", INTEGERS)
@pytest.mark.parametrize("c_type", ["float", "double"])
def test_conversions_saturate(c_type: str, target: str) -> None:
    info = np.iinfo(C_TYPES[target])
    x = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 0.9, -0.9, -1.5, 1e30, -1e30, 126.9, 127.5, 128, 255.9, 256,
                  -128.9, 65535.5, 2.0 ** 31, 2.0 ** 31 - 200, -2.0 ** 31, 2.0 ** 63, 2.0 ** 64, -2.0 ** 63],
                 C_TYPES[c_type])
    expected = [0 if np.isnan(v) else info.max if v > 1e25 else info.min if v < -1e25
                else min(max(int(v), info.min), info.max) for v in x]
    got = _map(f"tl::to_int<{target}>(x)", c_type, target, x)
    np.testing.assert_array_equal(got, np.array(expected, info.dtype))


def _interesting_floats() -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 40000, dtype=np.uint64).astype(np.uint32)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = np.sort(halves[np.isfinite(halves)])
    ties = (finite[1:] + finite[:-1]) / 2
    return np.concatenate([bits.view(np.float32), halves, ties, np.nextafter(ties, np.float32(np.inf))])


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize(("name", "dtype"), [("f16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_sixteen_bit_floats(name: str, dtype: Any) -> None:
    x = _interesting_floats()
    got = _map(f"tl::f32_to_{name}(x)", "float", "tl::u16", x).view(dtype).astype(np.float32)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(got, x.astype(dtype).astype(np.float32))
    codes = np.arange(1 << 16, dtype=np.uint16)
    got = _map(f"tl::{name}_to_f32(x)", "tl::u16", "float", codes)
    np.testing.assert_array_equal(got, codes.view(dtype).astype(np.float32))


def test_bits() -> None:
    x = np.array([0, 1, 0xff, 1 << 31, (1 << 32) - 1], np.uint32)
    np.testing.assert_array_equal(_map("tl::popcount(x)", "tl::u32", "tl::i32", x), [bin(v).count("1") for v in x])
    wide = np.array([0, 1 << 63, (1 << 64) - 1], np.uint64)
    np.testing.assert_array_equal(_map("tl::popcount(x)", "tl::u64", "tl::i32", wide), [0, 1, 64])
    np.testing.assert_array_equal(_map("tl::bits<float>(x)", "tl::u32", "float", x), x.view(np.float32))


@pytest.mark.parametrize("width", [*range(1, 9), 12, 31, 33, 57, 58, 63])
def test_bit_streams(width: int) -> None:
    """Copies codes from one place of a stream to another; what lies around them stays."""
    rng = np.random.default_rng(width)
    n, source, target = 50, 3, 5
    x, before = (rng.integers(0, 256, 8 * width + 64).astype(np.uint8) for _ in range(2))
    out = Buffer(before.copy())
    result = run(kernel("tl::gptr<const tl::u8> x, tl::gptr<tl::u8> o", f"""
  const auto code = tl::ld_bits<{width}>(x, {source} + t * {width}, t < {n}, tl::op(1));
  tl::st_bits<{width}>(o, {target} + t * {width}, code | ~tl::all_ones<{width}>, t < {n}, tl::op(2));"""),
                 [Buffer(x), out])
    assert not result.findings
    bits, expected = np.unpackbits(x, bitorder="little"), np.unpackbits(before, bitorder="little")
    expected[target:target + n * width] = bits[source:source + n * width]
    np.testing.assert_array_equal(out.array, np.packbits(expected, bitorder="little"))
