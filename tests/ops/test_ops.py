"""The library against its references, on ragged shapes."""
from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tilelang as tile
from tilelang import ops
from tilelang.ops import norm
from tilelang.targets import cpu_registers

activation, linear, matmul, softmax = (import_module(f"tilelang.ops.{n}") for n in (
    "activation", "linear", "matmul", "softmax"))

EPS = {torch.float32: 2.0 ** -23, torch.float16: 2.0 ** -10, torch.bfloat16: 2.0 ** -7}
TINY = {torch.float32: 2.0 ** -149, torch.float16: 2.0 ** -24, torch.bfloat16: 2.0 ** -133}
FLOATS = list(EPS)


def close(got: torch.Tensor, want: Any, bound: Any) -> None:
    """|got - want| <= bound, or half a step of the subnormal numbers, elementwise."""
    error = np.abs(got.double().numpy() - want)
    bound = bound + TINY[got.dtype]
    assert (error <= bound).all(), f"error {error.max()} over {np.max(bound)}"


@pytest.mark.parametrize("dt", FLOATS)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (17, 33, 65), (200, 70, 300), (3, 257, 40)])
def test_matmul(dt: torch.dtype, m: int, n: int, k: int) -> None:
    a, b = torch.randn(m, k).to(dt), torch.randn(k, n).to(dt)
    x, y = a.double().numpy(), b.double().numpy()
    want = matmul.reference(x, y)
    close(ops.matmul(a, b), want, k * 2.0 ** -23 * (abs(x) @ abs(y)) + EPS[dt] * abs(want) + 1e-30)


@pytest.mark.parametrize("dt", [torch.int8, torch.uint8, torch.int16])
def test_integer_matmul_is_exact(dt: torch.dtype) -> None:
    info = torch.iinfo(dt)
    for k in (1, 4, 63, 256):
        a, b = (torch.randint(info.min, info.max + 1, s, dtype=dt) for s in ((33, k), (k, 65)))
        a[0], b[:, 0] = info.min, info.min  # the extremes, where saturating instructions break
        want = a.numpy().astype(np.int64) @ b.numpy().astype(np.int64)
        np.testing.assert_array_equal(ops.matmul(a, b).numpy(), want.astype(np.int32))


@pytest.mark.parametrize("form", [activation.gelu_exact, activation.gelu_quotient])
def test_forms_of_gelu(form: Any) -> None:
    x = torch.cat([torch.linspace(-9, 9, 100_001), torch.randn(1000) * 1e-3, torch.tensor([-100.0, 100, 1e30])])
    close(activation.gelu_kernel(x, ACT=form), activation.reference(x), 3 * 2.0 ** -24 * abs(x.double().numpy()))
    assert activation.gelu_kernel(torch.full((1,), float("nan")), ACT=form).isnan().all()


@pytest.mark.parametrize("dt", FLOATS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 100), (2, 1000), (1, 20000), (1, 20032)])
def test_rowwise(dt: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape).to(dt)
    w, b = torch.randn(shape[-1]).to(dt), torch.randn(shape[-1]).to(dt)
    v, n = x.double().numpy(), shape[-1]
    want = softmax.reference(v)
    close(ops.softmax(x), want, (n + 16) * 2.0 ** -23 * want + EPS[dt] * want + 2.0 ** -24)
    want = activation.reference(v)
    close(ops.gelu(x), want, (8 * 2.0 ** -23 + EPS[dt]) * (abs(v) + 1e-6))
    want = norm.rms_norm_reference(v, w.double().numpy())
    close(ops.rms_norm(x, w), want, (n * 2.0 ** -23 + EPS[dt]) * (abs(want) + 1e-6))
    if n > 1:
        want = norm.layer_norm_reference(v, w.double().numpy(), b.double().numpy())
        size = abs(want - b.double().numpy()) + abs(w.double().numpy()) + abs(b.double().numpy())
        close(ops.layer_norm(x, w, b), want, (n * 2.0 ** -22 + EPS[dt]) * (size + 1e-6))


@pytest.mark.parametrize("dt", FLOATS)
@pytest.mark.parametrize("target", ["cpu", "emulate:cuda:sm_80", "emulate:hip:gfx942"])
def test_norms_of_sums(dt: torch.dtype, target: str) -> None:
    """The sum is rounded once, and its norm is that of the rounded sum, to the bit."""
    shape = (3, 5, 100) if target == "cpu" else (3, 33)
    x, r = torch.randn(shape).to(dt), torch.randn(shape).to(dt)
    w, b = torch.randn(shape[-1]).to(dt), torch.randn(shape[-1]).to(dt)
    with tile.target(target):
        for add, plain, weights in ((ops.add_layer_norm, ops.layer_norm, (w, b)),
                                    (ops.add_rms_norm, ops.rms_norm, (w,))):
            y, h = add(x, r, *weights)
            assert torch.equal(h, x + r) and torch.equal(y, plain(h, *weights))


def test_linear() -> None:
    x, w, b = torch.randn(2, 19, 70), torch.randn(45, 70), torch.randn(45)
    want = linear.reference(x.numpy(), w.numpy(), b.numpy())
    bound = 72 * 2.0 ** -23 * (abs(x.double().numpy()) @ abs(w.double().numpy()).T + abs(b.double().numpy()))
    close(ops.linear(x, w, b), want, bound)
    close(ops.linear(x, w, b, "gelu"), activation.reference(want), 2 * bound + 1e-6)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([1, 2, 4]))
def test_blocks_of_products(m: int, n: int, k: int, size: int) -> None:
    bm, bn, bk = matmul.blocks(m, n, k, size)
    widest = 512 if cpu_registers() == 16 else 256
    assert min(m, 4) <= bm <= max(widest, 512 // size) and 32 <= bn <= widest and 8 <= bk <= max(1024 // size, widest)
    assert -(-m // bm) * -(-n // bn) >= min(tile.get_num_threads(), -(-m // 64) * -(-n // widest))
    for extent, made, step in ((m, bm, 4), (n, bn, 32), (k, bk, 8)):  # no block is mostly empty
        assert made - step < extent and -(-extent // made) * made - extent < made


@pytest.mark.parametrize("shape", [(0,), (2, 3, 0), (0, 3, 4)], ids=str)
def test_rows_of_nothing_and_no_rows(shape: tuple[int, ...]) -> None:
    """Several dimensions became one of -1, of which nothing tells the extent."""
    x, w = torch.randn(shape, requires_grad=True), torch.randn(5, shape[-1], requires_grad=True)
    with tile.target("reference"):
        for y in (ops.softmax(x), ops.rms_norm(x, w[0]), ops.linear(x, w)):
            grads = torch.autograd.grad(y.sum(), (x, w), allow_unused=True, materialize_grads=True)
            assert y.shape[:-1] == shape[:-1] and all(not g.any() for g in grads)


def test_softmax_of_long_rows_that_begin_masked() -> None:
    """Blocks without any finite number, before those with some: one less another was NaN."""
    x = torch.randn(1, 20000)
    x[:, :9000] = -torch.inf
    y = ops.softmax(x)
    assert torch.equal(y[:, :9000], torch.zeros(1, 9000))
    close(y, softmax.reference(x.double().numpy()), 11016 * 2.0 ** -23 * y.numpy())


@pytest.mark.parametrize("target", ["emulate:cuda:sm_80", "emulate:hip:gfx942"])
def test_rows_of_one_element(target: str) -> None:
    """Blocks had 2048 of them, of 64 columns each, for which a GPU of NVIDIA has no memory."""
    x, w = torch.randn(5, 1), torch.randn(1)
    with tile.target(target):
        assert torch.equal(ops.softmax(x), torch.ones(5, 1)) and torch.equal(ops.layer_norm(x, w, w), w.expand(5, 1))
        want = norm.rms_norm_reference(x.double().numpy(), w.double().numpy())
        close(ops.rms_norm(x, w), want, 2.0 ** -21 * abs(want))
