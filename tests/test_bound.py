"""Arguments that a call refuses: what torch would not notice, what has no plain memory, what stands elsewhere."""
from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import tilelang as tile
from tilelang import errors


@tile.kernel
def double(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"], by: tile.f32 = 2.0, B: tile.Const = 64):
    n = tile.grid(tile.cdiv(x.shape[0], B)) * B
    tile.store(y, n, tile.load(x, n, B) * by)


@tile.kernel
def shift(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"], by: tile.f32):
    tile.store(y, 0, tile.load(x, 0, 64) + by)


def test_gradients_are_not_dropped() -> None:
    x = torch.ones(100)
    wants = torch.ones(100, requires_grad=True)
    out = torch.empty(100)
    for call in (double, double.reference):
        for args in ((wants,), (x, wants), (torch.nn.Parameter(x),), (wants, out)):
            double(*[torch.empty(100) for _ in args])  # which makes the next call a short one
            with pytest.raises(errors.ArgumentGradient, match=r"requires a gradient(.|\n)*tile\.torch_op"):
                call(*args)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert torch.equal(double(wants), 2 * x)
    assert torch.equal(double(wants.detach()), 2 * x)
    assert "func @double" in str(double.lower(wants).tile)  # nothing is computed


def test_a_plan_of_arrays_sees_tensors_that_want_gradients() -> None:
    x = np.ones(100, np.float32)
    double(x)
    with pytest.raises(errors.ArgumentGradient):
        double(torch.ones(100, requires_grad=True))
    assert np.array_equal(double(x), 2 * x)


def _fake() -> Any:
    with FakeTensorMode():
        return double(torch.ones(100))


@pytest.mark.parametrize("call", [
    _fake, lambda: torch.vmap(double)(torch.ones(3, 100)),
    lambda: torch.func.grad(lambda x: double(x).sum())(torch.ones(100))], ids=["fake", "vmap", "grad"])
def test_transforms_of_torch_are_refused(call: Any) -> None:
    with warnings.catch_warnings(), pytest.raises(errors.ArgumentLayout, match=r"transforms(.|\n)*tile\.torch_op"):
        warnings.simplefilter("error")
        call()


@pytest.mark.parametrize(("make", "text"), [
    (lambda x: torch.nested.nested_tensor([x], layout=torch.jagged), "x.values()"),
    (lambda x: x.to_sparse(), "x.to_dense()"),
    (lambda x: torch.complex(x, x).conj().imag, "resolve_neg()")], ids=["nested", "sparse", "negative"])
def test_tensors_without_plain_memory(make: Any, text: str) -> None:
    with pytest.raises(errors.ArgumentLayout) as caught:
        double(make(torch.ones(100)))
    assert text in str(caught.value)


def test_a_scalar_where_an_output_stands() -> None:
    with pytest.raises(errors.ArgumentCount) as caught:
        shift(np.ones(4, np.float32), 2.0)
    assert "needs: by\n  got:   x, y\n  try:   pass by=...; by position, output `y` comes first" in str(caught.value)


def test_torch_compile_breaks_the_graph_at_a_kernel() -> None:
    """It once compiled thousands of frames below the first call."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(lambda x: double(x + 1, by=3.0) * 2, backend="eager")
    for n in (100, 101):
        assert torch.equal(compiled(torch.ones(n)), torch.full((n,), 12.0))
    assert 0 < torch._dynamo.utils.counters["frames"]["total"] < 10
    with pytest.raises(torch._dynamo.exc.Unsupported, match="tile.torch_op"):
        torch.compile(lambda x: double(x) + 1, backend="eager", fullgraph=True)(torch.ones(100))


def test_whole_numbers_of_64_bits_are_taken_whole() -> None:
    """tvm-ffi's integers are i64: the upper half of u64 is passed in another way, and -1 is none of them."""
    @tile.kernel
    def low(n: tile.u64, y: tile.Out[tile.u64, "N"]):
        tile.store(y, 0, tile.full((4,), 1, tile.u64) * n)
    y = np.zeros(4, np.uint64)
    for n in (5, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, np.uint64(1 << 63), 6):
        low(n, y)
        assert (y == int(n)).all()
    for n in (-1, 1 << 64):
        with pytest.raises(errors.ArgumentDType, match="is not a valid u64"):
            low(n, y)


def test_numbers_of_small_floats() -> None:
    @tile.kernel
    def wide(x: tile.f6e3m2, y: tile.Out[tile.f32, "N"]):
        tile.store(y, 0, tile.full((4,), 1.0, tile.f32) * x.to(tile.f32))
    y = np.zeros(4, np.float32)
    for given, value in ((1.5, 1.5), (1, 1), (-100.0, -28)):
        wide(given, y)
        assert (y == value).all()
    with pytest.raises(errors.UnsupportedSyntax, match="a dtype that no number is passed as"):
        @tile.kernel
        def scaled(x: tile.e8m0, y: tile.Out[tile.f32, "N"]):
            tile.store(y, 0, x.to(tile.f32))
