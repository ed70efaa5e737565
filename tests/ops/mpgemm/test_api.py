"""Products with quantised weights against the f64 meaning of the weight, and whole numbers to the bit."""
from __future__ import annotations

import gc
import platform
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tilelang as tile
from tests.backends.cpu.processors import level
from tilelang import ops
from tilelang.backends.cpu import machine
from tilelang.errors import TargetError
from tilelang.ir import codec
from tilelang.ops.mpgemm import api
from tilelang.ops.mpgemm.blocks import source
from tilelang.ops.mpgemm.on_cpu import LITTLE
from tilelang.ops.mpgemm.pack import BLOCK, LANES, Panels, panels, ranks, repackable
from tilelang.ops.mpgemm.plan import RAPTOR_COVE, ZEN3, ZEN5, Core, core, plan
from tilelang.quant import LowRank, Parameter, QuantTensor, RowParts, Sparse

activation = import_module("tilelang.ops.activation")

WHOLE = [f"u{b}" for b in range(1, 9)]
OTHER = ["f4e2m1", "f5e2m2", "f6e3m2", "f7e3m3", "f8e4m3", tile.codebook(4, [float(v) ** 3 for v in range(-8, 8)])]
"""Types whose values are not evenly spaced; all others are packed as one of `WHOLE`."""
EVERY = [*WHOLE, *(f"i{b}" for b in range(2, 9)), *(f"s{b}" for b in range(1, 9)), "ternary",
         *(f"f{b}e{e}m{b - 1 - e}" for b in range(3, 8) for e in range(1, b))]


def named(name: Any) -> tile.DType:
    return tile.dtype(name) if isinstance(name, str) else name


def weight(rng: np.random.Generator, name: Any, n: int, k: int, group: int, zeros: bool = False,
           minimum: bool = False) -> QuantTensor:
    """Random codes and parameters; codes of f8 types are finite."""
    dt = named(name)
    finite = np.flatnonzero(np.isfinite(codec.values_of(dt)))
    codes = tile.Packed.from_codes(finite[rng.integers(0, len(finite), (n, k))], dt)
    shape = n, -(-k // group)

    def parameter(values: Any) -> Parameter:
        return Parameter(values, (1, group))
    return QuantTensor(codes, parameter(rng.uniform(0.5, 2.0, shape).astype(np.float16)),
                       parameter(rng.integers(0, 1 << min(dt.bits, 8), shape).astype(np.uint8)) if zeros else None,
                       parameter(rng.standard_normal(shape).astype(np.float32)) if minimum else None)


def bound(x: Any, w: QuantTensor) -> Any:
    """What the f32 roundings of a product can amount to: each column passes through at most K + 16 of them, at the
    size of its part of the sum before zeros are taken off."""
    packed, k = panels(w), w.shape[1]
    values = codec.values_of(w.codes.dtype)
    _, step, offset = ranks(w.codes.dtype)
    zero = 0.0 if w.zero is None else abs(w.zero.expand(w.shape))
    size = (np.nanmax(np.abs(values[np.isfinite(values)])) + zero + 2 * offset * step) * abs(w.scale.expand(w.shape))
    size = size + (0.0 if w.minimum is None else abs(w.minimum.expand(w.shape)))
    return (k + packed.groups + 16) * 2.0 ** -24 * (np.abs(np.asarray(x, np.float64)) @ size.T)


@pytest.mark.parametrize("name", EVERY)
def test_evenly_spaced_values_are_ranks(name: str) -> None:
    dt = tile.dtype(name)
    rank, step, offset = ranks(dt)
    if dt.kind in ("uint", "int", "bipolar", "ternary"):
        assert rank is not None
    if rank is not None:
        np.testing.assert_array_equal(step * (rank - offset), codec.values_of(dt))


@pytest.mark.parametrize("bits", range(1, 9))
def test_panels_hold_every_code_once(bits: int) -> None:
    """By the definition in the module's text, bit by bit."""
    rng = np.random.default_rng(bits)
    w = weight(rng, f"u{bits}", 70, 100, 48)
    packed, codes = panels(w), w.codes.codes()
    data = packed.words.view(np.uint8).reshape(*packed.words.shape, 4)
    for n, k in zip(rng.integers(0, 70, 200), rng.integers(0, 100, 200), strict=True):
        group, at = divmod(int(k), 48)
        block, column = divmod(group * packed.depth + at, BLOCK)
        i, j = divmod(column, 4)
        code, low = 0, 0
        for width in (8, 4, 2, 1):
            if bits & width:
                stream = int.from_bytes(bytes(data[n // LANES, block, low:low + width, n % LANES, j]), "little")
                code |= (stream >> width * i & (1 << width) - 1) << low
                low += width
        assert code == codes[n, k]


@pytest.mark.parametrize(("name", "how"), [
    *((name, "dequant_fma") for name in ("u1", "u3", "s4", "i5", "u8", *OTHER)), ("f3e1m1", "lut_act"),
    ("u2", "bucket_sum"), *((name, "bucket_sum") for name in (OTHER[0], OTHER[-1]))],
    ids=str)
def test_sums_of_floats(name: Any, how: str) -> None:
    rng = np.random.default_rng(0)
    w = weight(rng, name, 70, 100, 64)
    x = rng.standard_normal((1, 100)).astype(np.float32)
    error = abs(ops.mpgemm(x, w, decomposition=how) - x.astype(np.float64) @ w.dequantize().T)
    assert (error <= bound(x, w)).all()


def pairs_bound(x: Any, w: QuantTensor) -> Any:
    """That of sums in which codes of up to n count up to 2 n + 1 more, at most three times as much (of one bit)."""
    return 3 * bound(x, w)


@pytest.mark.parametrize("name", ["u1", "u4", "u7", "i8", "f4e2m1", "f6e3m2", "f8e4m3"])
def test_pairs_of_bf16(name: str) -> None:
    rng = np.random.default_rng(0)
    w = weight(rng, name, 70, 100, 32, zeros=True)
    x = torch.from_numpy(rng.standard_normal((1, 100))).bfloat16()
    got = ops.mpgemm(x, w, out_dtype="f32", decomposition="bf16_dot").double().numpy()
    assert (abs(got - x.double().numpy() @ w.dequantize().T) <= pairs_bound(x.double(), w)).all()


@settings(max_examples=4)
@given(st.sampled_from((1, 2)), st.sampled_from((1, 65)), st.sampled_from((31, 130)),
       st.sampled_from((8, 24)), st.booleans(), st.sampled_from(("u4", "f6e3m2")),
       st.sampled_from((None, "i8", "f8e5m2")))
def test_pairs_of_any_shape(m: int, n: int, k: int, group: int, token: bool, name: str, x_dtype: str | None) -> None:
    """Groups of half a block and more, and activations quantised to what bf16 holds."""
    rng = np.random.default_rng(n + k)
    w = weight(rng, name, n, k, group, minimum=token)
    x = torch.from_numpy(rng.standard_normal((m, k))).bfloat16().float()
    got = ops.mpgemm(x if x_dtype else x.bfloat16(), w, x_dtype=x_dtype, x_group="token" if token else "group",
                     out_dtype="f32", decomposition="bf16_dot").double().numpy()
    taken = x.numpy()
    if x_dtype:
        q, scale = quantised(taken, w, x_dtype, token)
        taken = (q * scale[..., None]).reshape(m, -1)[:, :k]
    error = abs(got - taken.astype(np.float64) @ w.dequantize().T)
    assert (error <= (2 if x_dtype else 1) * pairs_bound(taken, w)).all()


def test_pairs_need_numbers_that_bf16_holds() -> None:
    w = weight(np.random.default_rng(0), tile.codebook(4, [float(v) / 3 for v in range(16)]), 8, 32, 32)
    with pytest.raises(TargetError, match="needs: values that bf16 holds"):
        plan("i8", w, 1, "bf16_dot")
    with pytest.raises(TargetError, match="needs: activations that bf16 holds"):
        plan("f16", w, 1, "bf16_dot")


@settings(max_examples=5)
@given(st.sampled_from((1, 3)), st.sampled_from((1, 64, 65)), st.sampled_from((1, 31, 130)),
       st.sampled_from((8, 24, 1000)), st.booleans(), st.booleans(), st.sampled_from(("dequant_fma", "lut_act")))
def test_any_shape(m: int, n: int, k: int, group: int, zeros: bool, minimum: bool, how: str) -> None:
    rng = np.random.default_rng(n + k)
    w = weight(rng, "u4", n, k, group, zeros, minimum)
    x = rng.standard_normal((m, k)).astype(np.float32)
    error = abs(ops.mpgemm(x, w, decomposition=how) - x.astype(np.float64) @ w.dequantize().T)
    assert (error <= bound(x, w)).all()


def quantised(x: Any, w: QuantTensor, name: str, token: bool) -> tuple[Any, Any]:
    """(q [M, groups, columns], scale f32 [M, groups]) of activations, operation by operation in f32; beyond K q is
    0."""
    dt, k = tile.dtype(name), w.shape[1]
    group = panels(w).group if repackable(w) else min(source(w).group, k)
    groups = -(-k // group)
    padded = np.zeros((len(x), groups * group), np.float32)
    padded[:, :k] = x
    padded = padded.reshape(len(x), groups, group)
    if name == "s1":  # exact for few bits
        scale = np.abs(padded).sum(2) / np.minimum(k - group * np.arange(groups), group).astype(np.float32)
        whole = np.abs(x).sum(1, keepdims=True) / np.float32(k)
    else:
        scale = np.abs(padded).max(2) / np.float32(dt.max)
        whole = np.abs(x).max(1, keepdims=True) / np.float32(dt.max)
    scale = np.broadcast_to(whole, scale.shape) if token else scale
    t = padded / np.where(scale == 0, np.float32(1), scale)[..., None]
    if dt.kind == "bipolar":
        q = np.clip(2 * np.floor(t / 2) + 1, -dt.max, dt.max)
        q.reshape(len(x), -1)[:, k:] = 0
        return q, scale
    return np.rint(t) if dt.kind == "int" else codec.decode(codec.encode(t, dt), dt), scale


def exact(x: Any, w: QuantTensor, name: str, token: bool) -> Any:
    """What `int_dot` promises, operation by operation in f32; the inner sums in whole numbers."""
    p, (n, k) = panels(w), w.shape
    groups = -(-k // p.group)
    q, scale = quantised(x, w, name, token)
    q = q.astype(np.int64)
    rank, _, _ = ranks(w.codes.dtype)
    codes = np.zeros((n, groups * p.group), np.int64)
    codes[:, :k] = rank[w.codes.codes()]
    inner = np.einsum("mgd,ngd->mgn", q, codes.reshape(n, groups, p.group)).astype(np.float32)
    total = q.sum(2).astype(np.float32)[..., None]

    def of(parameter: Any) -> Any:
        return parameter.transpose(1, 0, 2).reshape(parameter.shape[1], -1)[:groups, :n].astype(np.float32)
    acc = np.zeros((len(x), n), np.float32)
    for g in range(groups):
        zero = of(p.zero)[g] if p.zeros else np.float32(p.zero)
        part = (inner[:, g] - zero * total[:, g]) * of(p.scale)[g]
        if p.minimum is not None:
            part = part + of(p.minimum)[g] * total[:, g]
        acc = acc + scale[:, g, None] * part
    return acc


@pytest.mark.parametrize(("name", "x_dtype", "how"), [
    ("ternary", "i8", "int_dot"), ("u6", "i8", "int_dot"), ("i7", "i8", "int_dot"),
    ("s1", "i8", "bitplane_popc"), ("u4", "i4", "bitplane_popc"), ("s1", "s1", "bitplane_popc"),
    ("u3", "s2", "bitplane_popc"), ("u5", "s7", "int_dot"), ("i2", "s5", "lut_act_i8"), ("u8", "i6", "lut_act_i8"),
    ("u3", "i4", "lut_weight"), ("ternary", "s3", "lut_weight")])
def test_integer_sums_are_exact(name: str, x_dtype: str, how: str) -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(-64, 64, (2, 100)).astype(np.float32) / 8
    x[1] = 0.0
    w = weight(rng, name, 70, 100, 64)
    got = ops.mpgemm(x, w, x_dtype=x_dtype, decomposition=how)
    np.testing.assert_array_equal(got, exact(x, w, x_dtype, True))


def table_bound(x: Any, w: QuantTensor) -> Any:
    """What tables of bytes round: half a step of at most 4 max |x| / 127 of a group, in a quarter as many look-ups as
    there are columns, each times at most half of 2**bits - 1 and the scale."""
    p, n = panels(w), w.shape[0]
    padded = np.zeros((len(x), -(-w.shape[1] // p.group) * p.group))
    padded[:, :w.shape[1]] = np.abs(x)
    largest = padded.reshape(len(x), -1, p.group).max(2)
    scale = np.abs(p.scale.astype(np.float64)).transpose(1, 0, 2).reshape(p.groups, -1)[:largest.shape[1], :n]
    return 4 / 127 / 2 * (p.depth / 4) * ((1 << p.bits) - 1) / 2 * (largest @ scale)


@pytest.mark.parametrize(("name", "group"), [("u4", 64), ("i3", 16)])
def test_tables_of_bytes_are_off_by_half_a_step(name: str, group: int) -> None:
    rng = np.random.default_rng(0)
    w = weight(rng, name, 70, 100, group, zeros=True)
    x = rng.standard_normal((3, 100)).astype(np.float32)
    x[1] = 0.0
    error = abs(ops.mpgemm(x, w, decomposition="lut_act_i8") - x.astype(np.float64) @ w.dequantize().T)
    assert (error <= table_bound(x, w) + 2 * bound(x, w)).all() and (error[1] == 0).all()
    assert plan(tile.f32, weight(rng, "u1", 8, 64, 64), 1).decomposition != "lut_act_i8"  # it is asked for


@pytest.mark.parametrize("name", ["f8e4m3", "f6e3m2"])
def test_activations_in_small_floats(name: str) -> None:
    rng = np.random.default_rng(0)
    w = weight(rng, "u4", 70, 100, 32)
    x = rng.standard_normal((2, 100)).astype(np.float32)
    for token in (False, True):
        q, scale = quantised(x, w, name, token)
        taken = (q * scale[..., None]).reshape(2, -1)[:, :100]
        error = abs(ops.mpgemm(x, w, x_dtype=name, x_group="token" if token else "group")
                    - taken.astype(np.float64) @ w.dequantize().T)
        assert (error <= 2 * bound(taken, w)).all()
    error = abs(ops.mpgemm(x, w, x_dtype=name, decomposition="lut_act_i8")
                - taken.astype(np.float64) @ w.dequantize().T)
    assert (error <= 4 * bound(taken, w) + table_bound(taken, w)).all()


@settings(max_examples=5)
@given(st.sampled_from((1, 3)), st.sampled_from((1, 70)), st.sampled_from((1, 33, 130)),
       st.sampled_from((16, 40)), st.booleans(), st.booleans(), st.sampled_from(("int_dot", "bitplane_popc")))
def test_integer_sums_of_any_shape(m: int, n: int, k: int, group: int, zeros: bool, token: bool, how: str) -> None:
    rng = np.random.default_rng(n + k)
    w, name = weight(rng, "u3", n, k, group, zeros, minimum=zeros), "i6" if n > 1 else "i4"
    x = rng.standard_normal((m, k)).astype(np.float32)
    got = ops.mpgemm(x, w, x_dtype=name, x_group="token" if token else "group", decomposition=how)
    np.testing.assert_array_equal(got, exact(x, w, name, token))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_sums_that_a_plan_allows(sign: float) -> None:
    """255 * 127 * 66311 is just below 2**31; one group more columns than that is refused."""
    k = plan("i8", weight(np.random.default_rng(0), "u8", 1, 32, 32), 1).limit
    assert k == (2 ** 31 - 1) // (255 * 127)
    codes = tile.Packed.from_codes(np.full((2, k), 255), tile.u8)
    w = QuantTensor(codes, Parameter(np.ones((2, 1), np.float16), (1, k)))
    x = np.full((1, k), sign * 127, np.float32)
    with tile.target("cpu"):
        got = ops.mpgemm(x, w, x_dtype="i8", decomposition="int_dot")
    np.testing.assert_array_equal(got, np.full((1, 2), np.float32(sign * 127 * 255 * k)))
    longer = QuantTensor(tile.Packed.from_codes(np.zeros((2, k + 1), int), tile.u8),
                         Parameter(np.ones((2, 1), np.float16), (1, k + 1)))
    with pytest.raises(TargetError, match="int_dot cannot compute"):
        plan("i8", longer, 1, "int_dot")


def test_columns_in_another_order() -> None:
    """A permutation, and groups by index (GPTQ's act-order)."""
    rng = np.random.default_rng(2)
    w, x = weight(rng, "u4", 20, 96, 32), rng.standard_normal((2, 96)).astype(np.float32)
    index = rng.permutation(np.arange(96) // 32)
    for other in (QuantTensor(w.codes, w.scale, permutation=rng.permutation(96)),
                  QuantTensor(w.codes, Parameter(w.scale.values, (1, 32), index))):
        error = abs(ops.mpgemm(x, other) - x.astype(np.float64) @ other.dequantize().T)
        assert (error <= bound(x, other)).all()


@pytest.mark.parametrize("dt", [torch.float32, torch.float16, torch.bfloat16])
def test_what_follows_the_product(dt: torch.dtype) -> None:
    rng = np.random.default_rng(3)
    w = weight(rng, "u4", 70, 64, 32)
    x, bias, residual = torch.randn(2, 3, 64).to(dt), torch.randn(70).to(dt), torch.randn(2, 3, 70).to(dt)
    got = ops.mpgemm(x, w, bias, "gelu", residual)
    assert got.dtype == dt and got.shape == (2, 3, 70)
    flat = x.double().numpy().reshape(6, 64)
    before = flat @ w.dequantize().T + bias.double().numpy()
    want = activation.reference(before) + residual.double().numpy().reshape(6, 70)
    eps = {torch.float32: 2.0 ** -24, torch.float16: 2.0 ** -11, torch.bfloat16: 2.0 ** -8}[dt]
    slack = 2 * bound(flat, w) + 8 * 2.0 ** -23 * abs(before) + (eps + 2.0 ** -23) * (abs(want) + 2) + 2.0 ** -20
    assert (abs(got.double().numpy().reshape(6, 70) - want) <= slack).all()
    assert ops.mpgemm(x, w, out_dtype=tile.f32).dtype == torch.float32


@pytest.mark.parametrize("like", [RAPTOR_COVE, ZEN5, ZEN3], ids=["AVX-512", "with bf16", "AVX2"])
def test_a_plan_is_the_cheapest_that_can(like: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("tilelang.ops.mpgemm.plan"), "core", lambda: like)
    rng = np.random.default_rng(4)
    one, three, four, table = (weight(rng, name, 512, 512, 128) for name in ("u1", "u3", "u4", "f4e2m1"))
    assert plan(tile.f32, one, 64).decomposition == ("lut_act" if like.registers else "dequant_fma")
    assert plan(tile.f32, three, 32).decomposition == "dequant_fma"
    assert plan(tile.f32, four, 1).decomposition == plan(tile.f32, table, 1).decomposition == "dequant_fma"
    pairs = "dequant_fma" if like.halves else "bf16_dot"
    assert plan("bf16", four, 32).decomposition == plan("i8", table, 1).decomposition == pairs
    assert plan("i8", four, 1).decomposition == plan("i8", four, 256).decomposition == "int_dot"
    assert plan("i8", four, 1).bound == 128 * 127 * 15
    if like != ZEN5:  # blocks of W are worth their while
        assert plan(tile.f32, four, 256).decomposition == "dequant_dot"


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="levels of x86")
def test_costs_are_those_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes take what the instructions for them take, by whatever registers."""
    def bytes_of(core: Core) -> tuple[float, ...]:
        return core.fours, core.widened, core.eights
    found = {}
    for name in "x86-64-v3", "avx-vnni", "x86-64-v4", "newest":
        monkeypatch.setattr(machine, "host", partial(level, name))
        found[name] = core.__wrapped__()
    assert found["x86-64-v3"] == ZEN3 and found["newest"] == ZEN5
    for name, other, like in ("avx-vnni", ZEN3, RAPTOR_COVE), ("x86-64-v4", RAPTOR_COVE, ZEN3):
        assert bytes_of(found[name]) == bytes_of(like) and found[name].sums == other.sums


def test_mistakes() -> None:
    w = weight(np.random.default_rng(0), "f4e2m1", 8, 32, 32)
    x, t = np.zeros((1, 32), np.float32), torch.zeros(1, 32)
    for call, error, text in (
            (lambda: ops.mpgemm(x[:, 1:], w), ValueError, r"x must be \[..., 32\]"),
            (lambda: ops.mpgemm(x, w, activation="tanh"), ValueError, "activation must be"),
            (lambda: ops.mpgemm(x, w, x_dtype="u8"), ValueError, "x_dtype must be a float of at most 8 bits, i2, "),
            (lambda: ops.mpgemm(x, w, x_dtype="f32"), ValueError, "or None for x as it is; got f32"),
            (lambda: ops.mpgemm(tile.quantize(x, "i8", group=32), w), TypeError, "QuantTensor of i8: .* x_dtype="),
            (lambda: ops.mpgemm(w.codes, w), TypeError, "got Packed of f4e2m1: activations are quantised on the way"),
            (lambda: ops.mpgemm(x.tolist(), w), TypeError, "x must be a NumPy array or a torch tensor, got list"),
            (lambda: ops.mpgemm(x, x), TypeError, "w must be a QuantTensor, got ndarray; quantise it by tile"),
            (lambda: ops.mpgemm(w, x), TypeError, "x comes first, the weight second"),
            (lambda: ops.mpgemm(x, w.codes), TypeError, r"QuantTensor\(codes, scale\)"),
            (lambda: ops.mpgemm(t, x), TypeError, "w must be a QuantTensor, got ndarray"),
            (lambda: ops.mpgemm(x.astype(np.int8), w), ValueError, "x must be f32, f16 or bf16, got i8"),
            (lambda: ops.mpgemm(t.double(), w), ValueError, "x must be f32, f16 or bf16, got f64"),
            (lambda: ops.mpgemm(np.float32(1), w), ValueError, r"x must be \[..., 32\] .* got \(\)"),
            (lambda: ops.mpgemm(x, w, [0.0] * 8), TypeError, "bias must be a NumPy array or a torch tensor, got list"),
            (lambda: ops.mpgemm(t, w, np.zeros(8)), TypeError, r"pass torch.from_numpy\(bias\)"),
            (lambda: ops.mpgemm(x, w, out_dtype="u4"), ValueError, "out_dtype must be f16, bf16, f32 or f64, got u4"),
            (lambda: ops.mpgemm(x, w, x_group="row"), ValueError, "x_group must be 'token' or 'group', got 'row'"),
            (lambda: ops.mpgemm(x, w, decomposition="f8_mma"), TargetError, "`f8_mma` is a decomposition for GPUs"),
            (lambda: ops.mpgemm(x, w, np.zeros(7, np.float32)), ValueError, r"bias must be \[8\]"),
            (lambda: ops.mpgemm(x, w, decomposition="magic"), ValueError, "decomposition must be"),
            (lambda: ops.mpgemm(x, w, decomposition="int_dot"), TargetError, "int_dot cannot compute")):
        with tile.target("cpu"), pytest.raises(error, match=text):
            call()
    assert ops.mpgemm(x, w, out_dtype=np.float16, x_dtype=tile.i8).dtype == np.float16


def test_repacked_weights_do_not_outlive_their_weight() -> None:
    pack = import_module("tilelang.ops.mpgemm.pack")
    before, products = len(pack._packed), len(api._products)
    w = weight(np.random.default_rng(0), "u2", 4, 32, 32)
    assert isinstance(panels(w), Panels) and panels(w) is panels(w) and len(pack._packed) == before + 1
    for many in range(2 * api.MANY):  # of the shapes that a program calls it with, not all are kept
        assert ops.mpgemm(np.ones((many, 0, 32), np.float32), w).shape == (many, 0, 4)
    assert len(api._products) == products + 1 and len(api._products[id(w)]) <= api.MANY
    del w
    assert len(pack._packed) == before and len(api._products) == products


@pytest.mark.parametrize("how, x_dtype", [("dequant_fma", None), ("dequant_fma", "i8"), ("bf16_dot", "i4"),
                                          ("int_dot", "i8"), ("lut_act", "i8"), ("lut_act_i8", None),
                                          ("lut_act_i8", "i4"), ("lut_weight", "i4"), ("bitplane_popc", "i4"),
                                          ("bucket_sum", None)])
def test_products_share_memory_one_after_the_other(how: str, x_dtype: str | None) -> None:
    """Those of two weights of a kind, in turn and by several threads at once; and none of it keeps a weight."""
    rng = np.random.default_rng(7)
    ws = [weight(rng, "u4", 64, 96, 32) for _ in range(2)]
    calls = [(np.float32(rng.standard_normal((m, 96))), w) for w in ws for m in (1, 2, 1, LITTLE // 96 + 1)]

    def product(call: tuple[Any, QuantTensor]) -> Any:
        return ops.mpgemm(*call, x_dtype=x_dtype, decomposition=how)
    want = [ops.mpgemm(x, replace(w), x_dtype=x_dtype, decomposition=how) for x, w in calls]
    with ThreadPoolExecutor(4) as threads:
        for found in (map(product, calls), threads.map(product, calls * 8)):
            for i, y in enumerate(found):
                assert np.array_equal(y, want[i % len(calls)])
    kept = [weakref.ref(panels(w)) for w in ws]
    del ws, calls, found
    gc.collect()
    assert not any(ref() for ref in kept)


def test_corrections_and_rows_of_several_kinds() -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((1, 64)).astype(np.float32)
    starts = np.array([0, 0, 70, 70, 71, 100], np.int64)
    starts = np.minimum(np.concatenate([starts, np.full(15, 100)]), 100)
    columns = np.concatenate([np.arange(64), np.arange(6), [63], rng.permutation(64)[:29]])[:100]
    entries = rng.standard_normal(100).astype(np.float32)
    rank = LowRank(rng.standard_normal((20, 3)).astype(np.float32), rng.standard_normal((3, 64)).astype(np.float32))
    base = weight(rng, "u3", 20, 64, 32)
    add = Sparse(starts, columns, entries)
    single = Sparse(np.arange(21), np.arange(20) * 3, entries[:20], "replace")
    for w in (QuantTensor(base.codes, base.scale, corrections=(add, rank)),
              QuantTensor(base.codes, base.scale, corrections=(rank, single))):
        error = abs(ops.mpgemm(x, w) - x.astype(np.float64) @ w.dequantize().T)
        size = abs(x) @ (abs(base.dequantize()) + abs(rank.a) @ abs(rank.b) + abs(w.dequantize()) + 4).T
        assert (error <= bound(x, base) + 100 * 2.0 ** -24 * size).all()
    bias, order = rng.standard_normal(20).astype(np.float32), rng.permutation(20)
    mixed = QuantTensor(RowParts((weight(rng, "i8", 6, 64, 64), weight(rng, "f4e2m1", 14, 64, 16)), order))
    error = abs(ops.mpgemm(x, mixed, bias) - (x.astype(np.float64) @ mixed.dequantize().T + bias))
    slack = np.concatenate([bound(x, p) for p in mixed.codes.parts], 1)[:, np.argsort(order)]
    assert (error <= slack + 2.0 ** -23 * abs(bias)).all()
