"""Methods of the literature are compositions: each against its own formula."""
from __future__ import annotations

from typing import Any

import numpy as np

import tilelang as tile
from tilelang.ir.dtypes import dtype
from tilelang.ir.packed import Packed
from tilelang.quant import LowRank, Parameter, QuantTensor, RowParts, Sparse, VectorCodes

RNG = np.random.default_rng(0)
N, K = 48, 64


def codes(name: str, shape: tuple[int, int]) -> tuple[Packed, Any]:
    c = RNG.integers(0, 1 << dtype(name).bits, shape)
    return Packed.from_codes(c, dtype(name)), c


def test_spqr() -> None:
    """2306.03078: u3 in groups of 16, scales and zeros quantised to u3 in groups of 16 of them, outliers replaced."""
    packed, c = codes("u3", (N, K))

    def second(count: int = K // 16) -> tuple[Parameter, Any]:
        inner, i = codes("u3", (N, count))
        scale, zero = RNG.standard_normal((2, N // 16, count))
        q = QuantTensor(inner, Parameter(scale, (16, 1)), Parameter(zero, (16, 1)))
        return Parameter(q, (1, 16)), scale.repeat(16, 0) * (i - zero.repeat(16, 0))

    (scale, s), (zero, z) = second(), second()
    at = np.sort(RNG.choice(N * K, 30, replace=False))
    rows, columns, values = at // K, at % K, RNG.standard_normal(30).astype(np.float16)
    starts = np.searchsorted(rows, np.arange(N + 1)).astype(np.int32)
    got = QuantTensor(packed, scale, zero, corrections=(Sparse(starts, columns, values, "replace"),))
    want = s.repeat(16, 1) * (c - z.repeat(16, 1))
    want[rows, columns] = values
    np.testing.assert_array_equal(got.dequantize(), want)


def test_vptq() -> None:
    """2409.17066: vectors of 8 along the outputs, a main and a residual table, scale and bias of each column."""
    (main, m), (rest, r) = codes("u12", (N // 8, K)), codes("u8", (N // 8, K))
    tables = RNG.standard_normal((4096, 8)).astype(np.float16), RNG.standard_normal((256, 8)).astype(np.float16)
    scale, bias = RNG.standard_normal((2, 1, K))
    got = QuantTensor(VectorCodes((main, rest), tables, (N, K), 0), Parameter(scale, (N, 1)),
                      minimum=Parameter(bias, (N, 1)))
    w = np.zeros((N, K))
    for n in range(N):
        for k in range(K):
            w[n, k] = float(tables[0][m[n // 8, k], n % 8]) + float(tables[1][r[n // 8, k], n % 8])
    np.testing.assert_array_equal(got.dequantize(), w * scale + bias)


def test_mixllm() -> None:
    """2412.14590: the salient outputs in i8, the others in u4 with zeros."""
    w = RNG.standard_normal((N, K))
    salient = RNG.permutation(N)
    parts = tile.quantize(w[salient[:16]], "i8", 32), tile.quantize(w[salient[16:]], "u4", 32)
    got = QuantTensor(RowParts(parts, salient.astype(np.int32)))
    want = np.empty_like(w)
    want[salient[:16]], want[salient[16:]] = (p.dequantize() for p in parts)
    np.testing.assert_array_equal(got.dequantize(), want)


def test_palettes() -> None:
    """eDKM (2309.00964): scalar codes, a table for each 16 outputs."""
    packed, c = codes("u3", (N, K))
    table = RNG.standard_normal((N // 16, 1, 8, 1)).astype(np.float16)
    got = QuantTensor(VectorCodes((packed,), (table,), (N, K), 1, (16, K)))
    np.testing.assert_array_equal(got.dequantize(), table[np.arange(N)[:, None] // 16, 0, c, 0])


def test_low_rank_residuals() -> None:
    """INT2.1 (2306.08162): 2-bit weights and X A^T B^T: W gains B A."""
    w = RNG.standard_normal((N, K))
    q = tile.quantize(w, "u2", 16)
    u, s, v = np.linalg.svd(w - q.dequantize())
    got = QuantTensor(q.codes, q.scale, q.zero, corrections=(LowRank(u[:, :8] * s[:8], v[:8]),))
    np.testing.assert_array_equal(got.dequantize(), q.dequantize() + (u[:, :8] * s[:8]) @ v[:8])
    assert np.linalg.norm(got.dequantize() - w) < np.linalg.norm(q.dequantize() - w)


def test_block_floating_point() -> None:
    """2403.20137: a shared exponent for each block of mantissas, columns sorted by norm."""
    w = RNG.standard_normal((N, K)) * np.exp2(RNG.integers(-4, 4, K))
    order = np.argsort(np.linalg.norm(w, axis=0))
    stored = tile.quantize(w[:, order], "i6", 16, scale_dtype="e8m0")
    got = QuantTensor(stored.codes, stored.scale, permutation=order)
    np.testing.assert_array_equal(got.dequantize()[:, order], stored.dequantize())
    unsorted = tile.quantize(w, "i6", 16, scale_dtype="e8m0")
    assert np.linalg.norm(got.dequantize() - w) < np.linalg.norm(unsorted.dequantize() - w)


def test_bipolar_is_affine() -> None:
    """2409.17870, 2408.06003: s (u - z) = s/2 (B - z'), z' = 2 z + 1 - 2**b."""
    w = RNG.standard_normal((N, K))
    affine, bipolar = tile.quantize(w, "u4", 16, scale_dtype="f64"), tile.quantize(w, "s4", 16, False, "f64")
    assert (affine.codes.codes() == bipolar.codes.codes()).all()
    np.testing.assert_array_equal(bipolar.scale.values, affine.scale.values / 2)
    np.testing.assert_array_equal(bipolar.zero.dense(), 2 * affine.zero.dense() + 1 - 16)
    np.testing.assert_allclose(bipolar.dequantize(), affine.dequantize(), rtol=2.0**-52)
