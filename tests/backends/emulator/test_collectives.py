"""Shuffles, atomics and matrix instructions against NumPy, from the fragments of the PTX manual."""
from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.backends.cuda import wrappers
from tests.backends.cuda.wrappers import ATOMIC_TYPES, INTEGERS
from tests.backends.emulator.texts import kernel, output, run, values
from tilelang.backends.emulator.run import POLICIES, Buffer, load

C_TYPES = {"tl::i8": np.int8, "tl::i16": np.int16, "tl::i32": np.int32, "tl::i64": np.int64, "tl::u8": np.uint8,
           "tl::u16": np.uint16, "tl::u32": np.uint32, "tl::u64": np.uint64, "float": np.float32, "double": np.float64,
           "bool": np.bool_}


@pytest.mark.parametrize("c_type", [*INTEGERS, "float", "double", "bool"])
@pytest.mark.parametrize("policy", POLICIES)
def test_shuffles(c_type: str, policy: Any) -> None:
    lane = np.arange(32)
    x = np.random.default_rng(0).integers(0, 2 if c_type == "bool" else 100, 64).astype(C_TYPES[c_type])
    moves = {"shfl_xor": (5, lane ^ 5), "shfl": (35, np.full(32, 3)),
             "shfl_up": (3, np.where(lane < 3, lane, lane - 3)), "shfl_down": (4, np.where(lane > 27, lane, lane + 4))}
    body = "".join(f"""
  y = tl::{name}(x, {n}, tl::op({i + 2}));
  tl::st<1>(o, {i * 64} + t, tl::vec<{c_type}, 1>{{y}}, tl::op(9));"""
                   for i, (name, (n, _)) in enumerate(moves.items()))
    out = output(256, C_TYPES[c_type])
    result = run(kernel(f"tl::gptr<const {c_type}> a, tl::gptr<{c_type}> o",
                        f"  {c_type} y, x = tl::ld<1>(a, t, tl::op(1))[0];\n{body}"), [Buffer(x), out], policy=policy)
    assert not result.findings
    assert result.counters[2].instructions == {"shuffle": 2}
    for got, (_, source) in zip(out.array.reshape(4, 64), moves.values(), strict=True):
        np.testing.assert_array_equal(got, x.reshape(2, 32)[:, source].reshape(-1))


@pytest.mark.parametrize("c_type", ATOMIC_TYPES)
@pytest.mark.parametrize("shared", [False, True])
def test_atomics(c_type: str, shared: bool) -> None:
    dtype = C_TYPES[c_type]
    x = np.random.default_rng(1).integers(0, 100, 64).astype(dtype)
    where = "s" if shared else "o"
    text = kernel(f"tl::gptr<const {c_type}> a, tl::gptr<{c_type}> o", f"""
  TL_SHARED(smem, 64);
  const tl::sptr<{c_type}> s = tl::shared<{c_type}>(smem, 0, 4);
  if (t < 4) tl::st<1>({where}, t, tl::vec<{c_type}, 1>{{5}}, tl::op(1));
  tl::barrier(tl::op(2));
  const {c_type} x = tl::ld<1>(a, t, tl::op(3))[0];
  tl::atomic_add({where}, 0, x, t != 3, tl::op(4));
  tl::atomic_max({where}, 1, x, true, tl::op(5));
  tl::atomic_min({where}, 2, x, true, tl::op(6));
  tl::atomic_cas({where}, 3, 5, x, t == 9, tl::op(7));
  tl::barrier(tl::op(8));
  if (t < 4) tl::st<1>(o, t, tl::ld<1>({where}, t, tl::op(9)), tl::op(10));""")
    for policy in POLICIES:
        out = output(4, dtype)
        assert not run(text, [Buffer(x), out], shared=64, policy=policy).findings
        np.testing.assert_array_equal(out.array, [5 + x.sum() - x[3], max(5, x.max()), min(5, x.min()), x[9]])


def test_nan_wins_in_atomic_maximum() -> None:
    out = Buffer(np.zeros(2, np.float32))
    run(kernel("tl::gptr<float> o", """
  const float x = t == 40 ? __builtin_nanf("") : t;
  tl::atomic_max(o, 0, x, true, tl::op(1));
  tl::atomic_min(o, 1, x, true, tl::op(2));"""), [out])
    assert np.isnan(out.array).all()


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("element", ["tl::u16", "tl::u8"])
def test_matrix_rows(count: int, trans: bool, element: str) -> None:
    """Loads 8x8 matrices from rows in a scattered order and stores them elsewhere in order."""
    data = np.random.default_rng(2).integers(0, 1 << 16, (32, 8)).astype(np.uint16)
    order = np.random.default_rng(3).permutation(32).astype(np.int32)
    out, fragment = Buffer(np.zeros((32, 8), np.uint16), False), Buffer(np.zeros((32, count, 2), np.uint16), False)
    program = load(wrappers.including(wrappers.rows(count, trans, element)))
    result = program.launch(f"rows_{count}_{str(trans).lower()}_{element[4:]}",
                            [Buffer(data), Buffer(order), out, fragment], threads=32, shared_bytes=1024)
    assert not result.findings
    assert result.counters[6].instructions == {"ldmatrix": 1}
    rows = data[order[:8 * count]]
    np.testing.assert_array_equal(out.array[:8 * count], rows)
    matrices = rows.reshape(count, 8, 8)
    if trans:
        matrices = matrices.transpose(0, 2, 1)
    np.testing.assert_array_equal(fragment.array.transpose(1, 0, 2).reshape(count, 8, 8), matrices)


def _pack(codes: np.ndarray[Any, Any], width: int) -> np.ndarray[Any, Any]:
    """Codes of `width` bits in bytes, the first one lowest."""
    bits = (codes[..., None].astype(np.uint8) >> np.arange(width)) & 1
    return np.packbits(bits.reshape(*codes.shape[:-1], -1), axis=-1, bitorder="little")


def _fragments(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], per: int) -> tuple[Any, Any]:
    """What each lane holds of A (16, K) and B (K, 8), in the manual's order; `per` elements in a register."""
    k = a.shape[1]
    # Lane = 4 * group + t. A: registers go through the row halves, then the halves of k.
    in_a = a.reshape(2, 8, k // (4 * per), 4, per).transpose(1, 3, 2, 0, 4).reshape(32, -1)
    in_b = b.reshape(k // (4 * per), 4, per, 8).transpose(3, 1, 0, 2).reshape(32, -1)
    return in_a, in_b


def _multiply(name: str, acc: np.ndarray[Any, Any], a: np.ndarray[Any, Any], b: np.ndarray[Any, Any],
              instructions: int = 1) -> Any:
    """Runs one m16n8 product on the fragments of all lanes; gives D as (16, 8)."""
    c = np.ascontiguousarray(acc.reshape(2, 8, 4, 2).transpose(1, 2, 0, 3))  # group, t, row half, pair
    program = load(wrappers.including(wrappers.mma(name)))
    result = program.launch(f"mma_{name}", [Buffer(a), Buffer(b), Buffer(c)], threads=32)
    assert not result.findings
    assert result.counters[4].mma == instructions
    return c.transpose(2, 0, 1, 3).reshape(16, 8)


@pytest.mark.parametrize(("name", "dtype", "k"), [
    ("m16n8k16_f16", np.float16, 16), ("m16n8k8_f16", np.float16, 8), ("m16n8k16_bf16", ml_dtypes.bfloat16, 16),
    ("m16n8k8_tf32", np.float32, 8), ("m16n8k32_e4m3", ml_dtypes.float8_e4m3fn, 32),
    ("m16n8k32_e5m2", ml_dtypes.float8_e5m2, 32)])
def test_float_products(name: str, dtype: Any, k: int) -> None:
    rng = np.random.default_rng(4)
    a, b = (rng.integers(-8, 8, shape).astype(dtype) for shape in ((16, k), (k, 8)))  # sums are exact
    acc = rng.integers(-100, 100, (16, 8)).astype(np.float32)
    per = 4 // np.dtype(dtype).itemsize
    carrier = {1: np.uint8, 2: np.uint16, 4: np.float32}[np.dtype(dtype).itemsize]
    fa, fb = (np.ascontiguousarray(x).view(carrier) for x in _fragments(a, b, per))
    got = _multiply(name, acc, fa, fb)
    np.testing.assert_array_equal(got, acc + a.astype(np.float32) @ b.astype(np.float32))


def test_tf32_drops_the_low_bits() -> None:
    a, b = np.zeros((16, 8), np.float32), np.zeros((8, 8), np.float32)
    a[:, 0], b[0] = 1 + 2.0 ** -10 + 2.0 ** -11, 1
    got = _multiply("m16n8k8_tf32", np.zeros((16, 8), np.float32), *map(np.ascontiguousarray, _fragments(a, b, 1)))
    assert (got == 1 + 2.0 ** -10).all()


PIECES = [("m16n8k16_f32", np.float32, np.float32, 16), ("m16n8k8_f32_f16", np.float32, np.float16, 8),
          ("m16n8k8_f16_f32", np.float16, np.float32, 8), ("m16n8k16_f32_bf16", np.float32, ml_dtypes.bfloat16, 16),
          ("m16n8k16_bf16_f32", ml_dtypes.bfloat16, np.float32, 16)]


def _multiply_pieces(name: str, a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> Any:
    """Lanes hold neighbours along k of numbers of any size as they do of two bytes."""
    parts = [np.ascontiguousarray(x).view(np.float32 if x.itemsize == 4 else np.uint16) for x in _fragments(a, b, 2)]
    return _multiply(name, np.zeros((16, 8), np.float32), *parts,
                     2 if "k8" in name else 6 if name == "m16n8k16_f32" else 3)


@pytest.mark.parametrize(("name", "of_a", "of_b", "k"), PIECES)
def test_products_of_pieces(name: str, of_a: Any, of_b: Any, k: int) -> None:
    """Two tf32 differ from an f32 by 2^-23 of it, and 2^-24 of the product of two f32 is left out. What is added
    first is below 2^-7 of the sum, and `k` products of first pieces are then added with a rounding each."""
    rng = np.random.default_rng(9)
    a, b = ((rng.standard_normal(shape) * 2.0 ** rng.integers(-6, 7, shape)).astype(t)
            for shape, t in (((16, k), of_a), ((k, 8), of_b)))
    x, y = a.astype(np.float64), b.astype(np.float64)
    cut = 2.0 ** -23 if k == 8 else 2.0 ** -24 if of_a == of_b else 0
    assert (abs(_multiply_pieces(name, a, b) - x @ y) <= (cut + (k + 1) * 2.0 ** -24) * (abs(x) @ abs(y))).all()


@pytest.mark.parametrize(("name", "of_a", "of_b", "k"), PIECES)
def test_pieces_of_what_is_infinite_or_no_number(name: str, of_a: Any, of_b: Any, k: int) -> None:
    """Each as the only term of a sum; the largest number (off by 2^-22, because the nearest tf32 is infinite), and NaN
    with a payload in its low bits, too."""
    strange = np.array([np.inf, -np.inf, np.nan, np.finfo(np.float32).max, 0], np.float32)
    strange[4:].view(np.uint32)[0] = 0x7f800001
    a, b = np.zeros((16, k), of_a), np.zeros((k, 8), of_b)
    if of_a is np.float32:
        a[:5, 0], b[0] = strange, 0.5
    else:
        a[:, 0], b[0, :5] = 0.5, strange
    got = _multiply_pieces(name, a, b)
    for want, sums in zip((np.inf, -np.inf, np.nan, 2.0 ** 127, np.nan), got if of_a is np.float32 else got.T,
                          strict=False):
        np.testing.assert_allclose(sums, np.full(len(sums), want), rtol=2.0 ** -22, atol=0)


@pytest.mark.parametrize(("name", "low_a", "low_b"), [("s8", -128, -128), ("u8", 0, 0), ("su8", -128, 0),
                                                      ("us8", 0, -128)])
def test_byte_products(name: str, low_a: int, low_b: int) -> None:
    rng = np.random.default_rng(5)
    a, b = rng.integers(low_a, low_a + 256, (16, 32)), rng.integers(low_b, low_b + 256, (32, 8))
    acc = rng.integers(-2 ** 31, 2 ** 31, (16, 8)).astype(np.int32)
    fa, fb = (np.ascontiguousarray(x).astype(np.uint8) for x in _fragments(a, b, 4))
    np.testing.assert_array_equal(_multiply(f"m16n8k32_{name}", acc, fa, fb), (acc + a @ b).astype(np.int32))


@pytest.mark.parametrize(("name", "low", "carrier"), [("s4", -8, np.uint32), ("u4", 0, np.uint8)])
def test_nibble_products(name: str, low: int, carrier: Any) -> None:
    rng = np.random.default_rng(6)
    a, b = rng.integers(low, low + 16, (16, 64)), rng.integers(low, low + 16, (64, 8))
    acc = rng.integers(-1000, 1000, (16, 8)).astype(np.int32)
    fa, fb = (_pack(x & 15, 4).view(carrier) for x in _fragments(a, b, 8))
    np.testing.assert_array_equal(_multiply(f"m16n8k64_{name}", acc, fa, fb), acc + a @ b)


@pytest.mark.parametrize(("name", "k"), [("and", 256), ("and", 128), ("xor", 256)])
def test_bit_products(name: str, k: int) -> None:
    rng = np.random.default_rng(7)
    a, b = rng.integers(0, 2, (16, k)), rng.integers(0, 2, (k, 8))
    acc = rng.integers(-1000, 1000, (16, 8)).astype(np.int32)
    fa, fb = (_pack(x, 1).view(np.uint32) for x in _fragments(a, b, 32))
    expected = a @ b if name == "and" else (a[:, :, None] ^ b[None]).sum(1)
    np.testing.assert_array_equal(_multiply(f"m16n8k{k}_b1_{name}", acc, fa, fb), acc + expected)


def test_double_products() -> None:
    rng = np.random.default_rng(8)
    a, b, c = rng.standard_normal((8, 4)), rng.standard_normal((4, 8)), rng.standard_normal((8, 8))
    out = Buffer(c.copy())
    run(kernel("tl::gptr<const double> a, tl::gptr<const double> b, tl::gptr<double> c", """
  tl::vec<double, 1> x = tl::ld<1>(a, t, tl::op(1)), y = tl::ld<1>(b, t % 4 * 8 + t / 4, tl::op(2));
  tl::vec<double, 2> z = tl::ld<2>(c, t * 2, tl::op(3));
  tl::mma_m8n8k4_f64(z, 0, x, 0, y, 0, tl::op(4));
  tl::st<2>(c, t * 2, z, tl::op(5));""", 32), [Buffer(a), Buffer(b), out], 32)
    np.testing.assert_allclose(out.array, a @ b + c, rtol=1e-14, atol=1e-14)


def test_assertions_that_hold_are_silent() -> None:
    assert not run(kernel("tl::gptr<const float> a", "  tl::check(tl::ld<1>(a, t, tl::op(1))[0] == t, tl::op(2));"),
                   [values(64)]).findings
