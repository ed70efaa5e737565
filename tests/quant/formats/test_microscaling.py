"""MX and NVFP4 against their definitions."""
from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import tilelang as tile
from tests.quant.test_tensor import value
from tilelang.errors import CheckpointError, QuantError
from tilelang.ir.dtypes import dtype
from tilelang.quant import from_mx, from_nvfp4, quantize_mx, to_mx, to_nvfp4

EMAX = {"f4e2m1": 2, "f6e2m3": 2, "f6e3m2": 4, "f8e4m3": 8, "f8e5m2": 15, "i8": 0}  # MX 1.0, table 1
RNG = np.random.default_rng(0)


def same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert sorted(a) == sorted(b)
    for name in a:
        x, y = (np.asarray(getattr(v, "buffer", v)) for v in (a[name], b[name]))
        assert x.tobytes() == y.tobytes(), name


@pytest.mark.parametrize("name", EMAX)
def test_mx(name: str) -> None:
    dt, n, k = dtype(name), 3, 64
    c = RNG.integers(0, 1 << dt.bits, (n, k))
    e = RNG.integers(100, 150, (n, k // 32)).astype(np.uint8)
    e[0, 0] = 255
    if dt.bits == 8:
        elements = c.astype(np.uint8).view(np.int8) if name == "i8" else c.astype(np.uint8)
        state = {"weight": elements, "weight_scale": e}
    else:
        streams = [sum(int(x) << dt.bits * i for i, x in enumerate(row)) for row in c]
        data = b"".join(stream.to_bytes(k * dt.bits // 8, "little") for stream in streams)
        state = {"weight_packed": np.frombuffer(data, np.uint8).reshape(n, -1), "weight_scale": e}
    q = from_mx({f"p.{key}": torch.tensor(x) for key, x in state.items()}, "p", name)
    got = q.dequantize()
    assert np.isnan(got[0, :32]).all()
    for i in range(n):
        for j in range(k):
            if e[i, j // 32] != 255 and not math.isnan(value(int(c[i, j]), dt)):
                unit = 1 / 64 if name == "i8" else 1
                assert got[i, j] == value(int(c[i, j]), dt) * unit * 2.0 ** (int(e[i, j // 32]) - 127)
    same(to_mx(q), state)


def test_e2m1_pairs_begin_in_the_low_half() -> None:
    """0.5, -6 and 1.5, 0 as compressed-tensors and gpt-oss store them."""
    q = from_mx({"weight_packed": np.array([[0xF1, 0x03]], np.uint8), "weight_scale": np.array([[128]], np.uint8)})
    assert q.dequantize().tolist() == [[1.0, -12.0, 3.0, 0.0]]


@pytest.mark.parametrize("name", EMAX)
@pytest.mark.parametrize("size", [1.0, 1e-6, 1e5])
def test_the_conversion_of_the_specification(name: str, size: float) -> None:
    w = (RNG.standard_normal((4, 80)) ** 3 * size).astype(np.float32)
    w[1, :32], w[2, 0] = 0, 2.0**7
    q, dt = quantize_mx(w, name), dtype(name)
    exponents = q.scale.dense() * (64 if name == "i8" else 1)
    for i in range(4):
        for g in range(0, 80, 32):
            x = w[i, g:g + 32].astype(np.float64)
            shared = 2.0 ** (math.floor(math.log2(max(abs(x)))) - EMAX[name]) if x.any() else 2.0**-127
            assert exponents[i, g // 32] == shared
            unit = shared / 64 if name == "i8" else shared
            if name == "i8":
                want = np.clip(np.rint(x / unit), -128, 127)
            else:
                peer = {"f4e2m1": "float4_e2m1fn", "f6e2m3": "float6_e2m3fn", "f6e3m2": "float6_e3m2fn",
                        "f8e4m3": "float8_e4m3fn", "f8e5m2": "float8_e5m2"}[name]
                want = np.clip(x / unit, dt.min, dt.max).astype(getattr(ml_dtypes, peer)).astype(np.float64)
            np.testing.assert_array_equal(q.dequantize()[i, g:g + 32], want * unit)
    if 80 * dt.bits % 8 == 0:
        assert from_mx(to_mx(q), dtype=name) == q


def test_scales_rounded_up_saturate_nothing() -> None:
    w = RNG.standard_normal((4, 64))
    q = tile.quantize(w, "f4e2m1", 32, scale_dtype="e8m0")
    assert (np.abs(w) <= 6 * q.scale.expand(q.shape)).all() and from_mx(to_mx(q)) == q


NVFP4: dict[str, Any] = {
    "weight": RNG.integers(0, 256, (2, 32)).astype(np.uint8),
    "weight_scale": RNG.integers(0, 126, (2, 4)).astype(np.uint8),
    "weight_scale_2": np.array(0.0123, np.float32)}


def test_nvfp4() -> None:
    q = from_nvfp4({f"x.{k}": v for k, v in NVFP4.items()}, "x")
    for i in range(2):
        for j in range(64):
            byte = int(NVFP4["weight"][i, j // 2])
            element = value(byte & 15 if j % 2 == 0 else byte >> 4, dtype("f4e2m1"))
            scale = value(int(NVFP4["weight_scale"][i, j // 16]), dtype("f8e4m3"))
            assert q.dequantize()[i, j] == element * (scale * float(NVFP4["weight_scale_2"]))
    same(to_nvfp4(q), NVFP4)
    assert to_nvfp4(q)["weight_scale_2"].shape == ()
    assert from_nvfp4({**{k: torch.tensor(v) for k, v in NVFP4.items()},
                       "weight_scale": torch.tensor(NVFP4["weight_scale"]).view(torch.float8_e4m3fn)}) == q


def test_nvfp4_of_compressed_tensors_divides() -> None:
    divisor = np.array([137.3], np.float32)
    state = {"weight_packed": NVFP4["weight"], "weight_scale": NVFP4["weight_scale"], "weight_global_scale": divisor}
    q = from_nvfp4(state)
    np.testing.assert_allclose(q.dequantize() * float(divisor[0]) * float(NVFP4["weight_scale_2"]),
                               from_nvfp4(NVFP4).dequantize(), rtol=2.0**-50)  # a few f64 roundings
    same(to_nvfp4(q, "compressed-tensors"), state)


def test_our_nvfp4() -> None:
    w = RNG.standard_normal((8, 64)).astype(np.float32)
    q = tile.quantize(w, "f4e2m1", 16, scale_dtype="f8e4m3")
    assert from_nvfp4(to_nvfp4(q)) == q
    largest = np.abs(w).max() / (448 * 6)
    assert largest <= q.scale.values.scale.values[0, 0] <= np.nextafter(np.float32(largest), np.float32(np.inf))


@pytest.mark.parametrize(("message", "read"), [
    ("`weight_scale` has the wrong shape", lambda: from_nvfp4({**NVFP4, "weight_scale": np.zeros((2, 5), np.uint8)})),
    ("`weight_scale_2` is missing", lambda: from_nvfp4({k: v for k, v in NVFP4.items() if k != "weight_scale_2"})),
    ("`weight` has the wrong dtype", lambda: from_nvfp4({**NVFP4, "weight": np.zeros((2, 32), np.int32)})),
    ("`weight_global_scale` is not a divisor", lambda: from_nvfp4({
        "weight_packed": NVFP4["weight"], "weight_scale": NVFP4["weight_scale"],
        "weight_global_scale": np.zeros(1, np.float32)})),
    ("`p.weight_packed` is missing", lambda: from_mx({}, "p")),
    ("`weight_packed` has the wrong shape", lambda: from_mx({"weight_packed": np.zeros((2, 31), np.uint8)},
                                                            dtype="f6e3m2")),
    ("`weight_scale` has the wrong dtype", lambda: from_mx({"weight_packed": np.zeros((2, 32), np.uint8),
                                                            "weight_scale": np.zeros((2, 2), np.float32)})),
])
def test_broken(message: str, read: Any) -> None:
    with pytest.raises(CheckpointError) as error:
        read()
    assert str(error.value).startswith(message) and "needs:" in str(error.value)


def test_what_they_cannot_hold() -> None:
    w = RNG.standard_normal((4, 64))
    for q in (tile.quantize(w, "u4", 32), tile.quantize(w, "f4e2m1", 32), tile.quantize(w, "f4e2m1", 16,
                                                                                    scale_dtype="e8m0")):
        with pytest.raises(QuantError, match="cannot be written as MX"):
            to_mx(q)
    ours = tile.quantize(w, "f4e2m1", 16, scale_dtype="f8e4m3")
    for q, layout in ((tile.quantize(w, "f4e2m1", 16), "modelopt"), (ours, "cublas"), (ours, "compressed-tensors")):
        with pytest.raises(QuantError, match="cannot be written as NVFP4"):
            to_nvfp4(q, layout)  # type: ignore[arg-type]
    with pytest.raises(QuantError, match="`dtype` is not an MX element"):
        quantize_mx(w, "f5e2m2")
