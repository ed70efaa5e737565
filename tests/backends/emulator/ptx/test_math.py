"""The GPU prelude's arithmetic: exact where IEEE says so, else within the errors that NVIDIA documents."""
from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.backends.cuda.wrappers import INTEGERS, UNARY, kernel
from tests.backends.emulator.ptx.tiers import HEADER, TYPES, needs_nvrtc, on_cpu, on_ptx, outputs

pytestmark = needs_nvrtc
# Units in the last place, from "Mathematical Functions" of the CUDA C++ Programming Guide; sigmoid is ours, from exp.
ULPS = {"float": {"exp": 2, "exp2": 2, "log": 1, "log2": 1, "sqrt": 0, "rsqrt": 2, "sin": 2, "cos": 2, "tanh": 2,
                  "erf": 2, "sigmoid": 4},
        "double": {"exp": 1, "exp2": 1, "log": 1, "log2": 1, "sqrt": 0, "rsqrt": 1, "sin": 2, "cos": 2, "tanh": 2,
                   "erf": 2, "sigmoid": 4}}
SPECIAL = (0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 100.0, -100.0, 1e5, 3e9,
           -3e9, 1e30, 127.5, 255.5, 65504.0, 65520.0, 2.0 ** 31, 2.0 ** 63, -2.0 ** 63, 2.0 ** 64)
TRUTH: dict[str, Any] = {
    "rsqrt": lambda x: 1 / np.sqrt(x), "erf": np.vectorize(math.erf, otypes=[float]), "ceil": np.ceil,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "round": np.rint}


def numbers(dtype: Any, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """1024 values: the special ones, small and large."""
    x = rng.standard_normal(1024) * np.exp2(rng.integers(-12, 7, 1024))
    x[:len(SPECIAL)] = SPECIAL
    with np.errstate(over="ignore"):
        return x.astype(dtype)


def each(t: str, functions: list[str], result: str) -> str:
    """A kernel whose row i of output has function i of the 1024 inputs."""
    body = "\n".join(f"  tl::st<1>(o, {i * 1024}ll + t, tl::vec<{result}, 1>{{{f}}}, tl::op({i}));"
                     for i, f in enumerate(functions))
    return HEADER + kernel("k", f"tl::gptr<const {t}> a, tl::gptr<{result}> o", f"""
  const int t = tl::thread();
  const {t} x = tl::ld<1>(a, t, tl::op(0))[0];
{body}""", 1024)


def rows(text: str, x: np.ndarray[Any, Any], count: int, dtype: Any) -> tuple[np.ndarray[Any, Any], ...]:
    """What tier C and tier A give."""
    args = [x, np.zeros((count, 1024), dtype)]
    return tuple(outputs(tier, "k", args, threads=1024)[1] for tier in (on_ptx(text), on_cpu(text)))


@pytest.mark.parametrize("t", ["float", "double"])
def test_functions(t: str, rng: np.random.Generator) -> None:
    dtype = TYPES[t]
    x = numbers(dtype, rng)
    got, emulated = rows(each(t, [f"tl::{f}(x)" for f in (*UNARY, "trunc")], t), x, len(UNARY) + 1, dtype)
    with np.errstate(all="ignore"):
        for i, f in enumerate((*UNARY, "trunc")):
            # For f32 the truth is f64's; for f64 the emulator's C library, which may be off by one itself.
            want = TRUTH.get(f, getattr(np, f, None))(x.astype(np.float64)) if t == "float" else emulated[i]
            step = np.maximum(np.spacing(abs(want.astype(dtype))), np.finfo(dtype).tiny).astype(np.float64)
            allowed = (ULPS[t].get(f, 0) + (1 if t == "double" and ULPS[t].get(f) else 0.5)) * step
            same = (got[i] == want.astype(dtype)) | (np.isnan(got[i]) & np.isnan(want))
            good = same | (abs(got[i].astype(np.float64) - want) <= allowed)
            assert good.all(), (f, x[~good][:4], got[i][~good][:4], want[~good][:4])


@pytest.mark.parametrize("t", ["float", "double"])
def test_integers_of_floats(t: str, rng: np.random.Generator) -> None:
    got, want = rows(each(t, [f"tl::i64(tl::to_int<{i}>(x))" for i in INTEGERS], "tl::i64"), numbers(TYPES[t], rng),
                     len(INTEGERS), np.int64)
    np.testing.assert_array_equal(got, want)


def test_sixteen_bits(rng: np.random.Generator) -> None:
    """Conversions of any bits, NaN aside, whose payload the hardware drops."""
    x = rng.integers(0, 1 << 32, 1024, np.uint32).view(np.float32)
    x[512:] = rng.standard_normal(512) * np.exp2(rng.integers(-30, 20, 512))
    x[:len(SPECIAL)] = SPECIAL
    pair = "tl::bf16_to_f32(tl::finite_bf16(%s) >> 16)"
    texts = [*(f"tl::{to}_to_f32(tl::f32_to_{to}(x))" for to in ("f16", "bf16")), pair % "1.0f, x", pair % "x, -x"]
    for text in texts:
        got, want = rows(each("float", [text], "float"), x, 1, np.float32)
        np.testing.assert_array_equal(got, want)  # NaN equals NaN


def test_fused_halves(rng: np.random.Generator) -> None:
    """Both numbers of a word; ties of which the term decides, and subnormal numbers, are among them."""
    x = rng.integers(0, 1 << 32, 1024, np.uint32)
    x[:512] = np.stack([1 + rng.integers(0, 1024, 512) / 1024, np.exp2(rng.integers(-24, 14, 512))],
                       -1).astype(np.float16).view(np.uint32)[:, 0]
    swapped = ["(x << 16 | x >> 16)", "0x3c003c00u", "(x * 3u)"]
    functions = [f"tl::fma_halves({a}, {b}, {c})" for a in ("x", swapped[0]) for b in swapped for c in ("x", "~x")]
    finite = "[](tl::u32 y) { return (y & 0x7c00) == 0x7c00 || (y >> 16 & 0x7c00) == 0x7c00 ? 0u : y; }(%s)"
    got, want = rows(each("tl::u32", [finite % f for f in functions], "tl::u32"), x, len(functions), np.uint32)
    np.testing.assert_array_equal(got, want)  # without NaN, whose payload the hardware drops
    a, c = x.view(np.float16).astype(np.float64), (~x).view(np.float16)
    with np.errstate(all="ignore"):
        exact = (a * 1 + c).astype(np.float16)
    sure = np.isfinite(exact).reshape(-1, 2).all(1)
    np.testing.assert_array_equal(got[3][sure], exact.view(np.uint32)[sure])


def test_odd_bytes(rng: np.random.Generator) -> None:
    x = rng.integers(0, 1 << 32, 1024, np.uint32)
    got, want = rows(each("tl::u32", ["tl::odd_bytes(x)"], "tl::u32"), x, 1, np.uint32)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(got[0], x >> 8 & 0x00FF00FF)


def test_products_and_shifts_of_halves(rng: np.random.Generator) -> None:
    x = rng.integers(0, 1 << 32, 1024, np.uint32)
    functions = [f"tl::{f}" for f in ("mad_halves<258>(x)", "mad_halves<32768>(x, x * 3u)",
                                      "shift_halves<tl::i16>(x, 3)", "shift_halves<tl::u16>(x, 5)")]
    got, want = rows(each("tl::u32", functions, "tl::u32"), x, 4, np.uint32)
    halves = x.view(np.uint16)
    exact = (halves * np.uint16(258), halves * np.uint16(32768) + (x * np.uint32(3)).view(np.uint16),
             halves.view(np.int16) >> 3, halves >> 5)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(got, [part.view(np.uint32) for part in exact])


@pytest.mark.parametrize("t", ["float", "double"])
def test_two_operands(t: str, rng: np.random.Generator) -> None:
    """Products, quotients, extremes and fused sums round as IEEE says; NaN wins."""
    text = each(t, ["x * y", "x / y", "x + y", "tl::max(x, y)", "tl::min(x, y)", "tl::fma(x, y, -x)",
                    f"x < y ? x : {t}(7)", "x != y ? x : y"], t)
    text = text.replace(f"const {t} x =", f"const {t} y = tl::ld<1>(a, t * 7 % 1024, tl::op(0))[0];\n  const {t} x =")
    got, want = rows(text, numbers(TYPES[t], rng), 8, TYPES[t])
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("t", INTEGERS)
def test_integers(t: str, rng: np.random.Generator) -> None:
    info = np.iinfo(TYPES[t])
    x = rng.integers(info.min, info.max, 1024, TYPES[t], endpoint=True)
    x[:512:3] = rng.integers(max(info.min, -70), 70, 171)
    x[1:64:4], x[:2] = info.min, info.max
    text = each(t, [f"tl::{f}(x, y)" for f in ("floordiv", "mod", "shl", "shr", "min", "max", "mul", "add", "sub")]
                + ["tl::abs(x)", "tl::neg(x)", f"{t}(~x ^ y & x | y)", f"{t}(float(x) / 2.0f > 3.0f)",
                   f"tl::wrap<{t}, 5>(x)", f"{t}(x / 7)" if t[4] == "i" else f"{t}(x % 10)"], t)
    text = text.replace(f"const {t} x =", f"const {t} y = tl::ld<1>(a, t * 5 % 1024, tl::op(0))[0];\n  const {t} x =")
    got, want = rows(text, x, 15, TYPES[t])
    np.testing.assert_array_equal(got, want)
