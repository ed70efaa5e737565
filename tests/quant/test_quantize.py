"""tilelang.quantize: every dtype within half a step, at every group size; the definitions in loops."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tilelang as tile
from tilelang.errors import QuantError
from tilelang.ir import codec
from tilelang.ir.dtypes import DType, codebook, dtype, names
from tilelang.quant import QuantTensor

WEIGHTS = [d for d in map(dtype, names()) if d.kind in ("int", "uint", "bipolar") and d.bits <= 8
           or d.kind == "float" and d.bits <= 8] + [codebook(2, [-1.5, -0.5, 0, 1.0])]
ULP = 2.0**-50  # of the few f64 operations between the definition and its test


def half_steps(q: QuantTensor, w: Any) -> Any:
    """Half the distance of the two neighbours that w / scale + zero lies between, times the scale."""
    dt, scale = q.codes.dtype, q.scale.expand(q.shape)
    if dt.kind in ("int", "uint"):
        return scale / 2
    if dt.kind == "bipolar":
        return scale
    values = np.unique(codec.values_of(dt)[np.isfinite(codec.values_of(dt))])
    x = np.divide(w, scale, out=np.zeros_like(w), where=scale > 0)
    at = np.clip(np.searchsorted(values, x), 1, len(values) - 1)
    return scale * (values[at] - values[at - 1]) / 2


@pytest.mark.parametrize("dt", WEIGHTS, ids=lambda d: d.name[:8])
@settings(max_examples=30)
@given(data=st.data())
def test_error_is_at_most_half_a_step(dt: DType, data: st.DataObject) -> None:
    n, k = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 70))
    group = data.draw(st.sampled_from([16, 17, 32, 64, 128, None, (2, 16)]))
    choices = {"int": [True, False], "uint": [True, False], "bipolar": [True, False]}.get(dt.kind, [True])
    symmetric = data.draw(st.sampled_from(choices))
    scale_dtype = data.draw(st.sampled_from(["f32", "f16", "bf16", "e8m0", "f8e4m3", "u6"]))
    scale_group = data.draw(st.sampled_from([None, 1, 3])) if scale_dtype in ("f8e4m3", "u6") else None
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    w = rng.standard_normal((n, k)) * 10.0 ** rng.integers(-3, 3) + data.draw(st.sampled_from([0, 2, -2]))
    w[0] *= data.draw(st.sampled_from([0, 1]))
    if dt.name == "u1" and symmetric or dt.name == "s1" and symmetric:
        return  # refused, and by the mean
    q = tile.quantize(w, dt, group, symmetric, scale_dtype, scale_group=scale_group)
    assert q.shape == (n, k) and q.codes.dtype is dt
    error, bound = np.abs(q.dequantize() - w), half_steps(q, w)
    assert (error <= bound * (1 + ULP) + np.abs(w) * ULP).all(), (error - bound).max()


def least_scale(x: Any, high: float, low: float) -> float:
    return max([v / high for v in x if v > 0 and high > 0] + [v / low for v in x if v < 0 and low < 0] + [0.0])


@pytest.mark.parametrize("name", ["i4", "i2", "u4", "u3", "s3", "f4e2m1", "f6e3m2", "ternary", "s1"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_definition_in_loops(name: str, symmetric: bool) -> None:
    dt = dtype(name)
    if not symmetric and name[0] not in "iu":
        return
    w = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)
    q = tile.quantize(w, name, 16, symmetric, "f64")
    values = codec.values_of(dt).tolist()
    for n in range(3):
        for g in range(0, 50, 16):
            x = w[n, g:g + 16].astype(np.float64).tolist()
            s, shift = q.scale.values[n, g // 16], 0.0
            if name in ("ternary", "s1"):
                assert s == pytest.approx(sum(map(abs, x)) / len(x), rel=ULP)
            elif symmetric:
                shift = 2.0 ** (dt.bits - 1) if name[0] == "u" else 0.0
                assert s == least_scale(x, dt.max - shift, dt.min - shift)
            else:
                lo, hi = min(0, *x), max(0, *x)
                assert s == (hi - lo) / (dt.max - dt.min)
                shift = min(range(dt.min, dt.max + 1), key=lambda z: abs(z - (dt.min - lo / s)))
                assert q.zero.dense()[n, g // 16] == shift
            for v, got in zip(x, q.dequantize()[n, g:g + 16], strict=True):
                assert got == s * (min(values, key=lambda c: abs(s * (c - shift) - v)) - shift)


@pytest.mark.parametrize("name", ["u4", "i4", "i2", "u2", "s1", "s2", "ternary", "f4e2m1", "f3e1m1", "f8e5m2"])
def test_mse_is_never_worse_in_any_group(name: str) -> None:
    w = np.random.default_rng(0).standard_normal((6, 100)) ** 3
    def errors(method: Any) -> Any:
        return np.add.reduceat((tile.quantize(w, name, 32, method=method).dequantize() - w) ** 2, [0, 32, 64, 96], 1)
    plain, searched = errors("rtn"), errors("mse")
    assert (searched <= plain).all() and ((searched < plain).any() or name == "s1")  # there the mean is the best


def test_many_rows_are_the_same_as_few(monkeypatch: pytest.MonkeyPatch) -> None:
    w = np.random.default_rng(0).standard_normal((37, 40))
    want = [tile.quantize(w, "u4", group, scale_dtype=s, method="mse") for group, s in ((16, "u6"), ((4, 8), "f16"))]
    monkeypatch.setattr("tilelang.quant.rounding._CHUNK", 100)
    assert want == [tile.quantize(w, "u4", group, scale_dtype=s, method="mse") for group, s in ((16, "u6"),
                                                                                             ((4, 8), "f16"))]


def test_torch_weights_give_torch_memory() -> None:
    w = torch.randn(8, 64, dtype=torch.bfloat16)
    q = tile.quantize(w, "f4e2m1", 16, scale_dtype="f8e4m3")
    assert isinstance(q.codes.buffer, torch.Tensor) and q == tile.quantize(w.double().numpy(), "f4e2m1", 16,
                                                                          scale_dtype="f8e4m3")
    assert q.scale.values.codes.dtype is dtype("f8e4m3") and q.scale.values.scale.values.dtype is torch.float32


def test_second_scales_by_groups() -> None:
    w = np.random.default_rng(0).standard_normal((4, 256))
    q = tile.quantize(w, "u4", 16, scale_dtype="u6", scale_group=8)
    assert q.scale.values.shape == (4, 16) and q.scale.values.scale.values.shape == (4, 2)


W = np.ones((2, 8), np.float32)


@pytest.mark.parametrize(("message", "arguments", "options"), [
    ("`w` cannot be quantised", (np.ones(3), "u4"), {}),
    ("`w` cannot be quantised", (np.ones((2, 8), int), "u4"), {}),
    ("`w` cannot be quantised", (W * np.inf, "u4"), {}),
    ("`w` cannot be quantised", (W * np.nan, "ternary"), {}),
    ("`w` cannot be quantised", (W * -np.inf, codebook(1, [0, 1])), {}),
    ("`w` cannot be quantised", ([[1.0]], "u4"), {}),
    ("weights cannot be quantised to f16", (W, "f16"), {}),
    ("weights cannot be quantised to i1", (W, "i1"), {}),
    ("weights cannot be quantised to e8m0", (W, "e8m0"), {}),
    ("f4e2m1 has no zero points", (W, "f4e2m1"), {"symmetric": False}),
    ("u1 cannot be symmetric", (W, "u1"), {"symmetric": True}),
    ("`group` is impossible", (W, "u4", 0), {}),
    ("`method` is unknown", (W, "u4"), {"method": "gptq"}),
    ("scales do not fit into f16", (W * 1e7, "u4"), {}),
    ("scales cannot be i8", (W, "u4"), {"scale_dtype": "i8"}),
    ("`scale_group` has no meaning", (W, "u4"), {"scale_group": 2}),
])
def test_mistakes(message: str, arguments: Any, options: Any) -> None:
    with pytest.raises(QuantError) as error:
        tile.quantize(*arguments, **options)
    assert str(error.value).startswith(message) and "needs:" in str(error.value)


def test_what_has_no_numbers_is_refused() -> None:
    torch = pytest.importorskip("torch")
    for w, got in ((torch.ones(4, 32, device="meta"), "device meta"), (torch.ones(4, 32).to_sparse(), "sparse_coo")):
        with pytest.raises(QuantError, match=f"`w` cannot be quantised(.|\n)*{got}"):
            tile.quantize(w, "u4")
    for options in ({"dtype": 4}, {"dtype": "u4", "scale_dtype": np.float16}):
        with pytest.raises(QuantError, match="dtype` is no number type"):
            tile.quantize(np.ones((4, 32), np.float32), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"group": 32.0}, {"group": [1, 32]}, {"group": (1, 2, 3)}, {"group": "all"},
                                     {"scale_dtype": "u6", "scale_group": 0}])
def test_impossible_groups(options: Any) -> None:
    with pytest.raises(QuantError, match="group` is impossible"):
        tile.quantize(np.ones((4, 64), np.float32), "u4", **options)
