"""Repeated calls: short where nothing changed, and never another result or another error than the first."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import tilelang as tile
from tilelang import errors, jit


@tile.kernel
def outer(x: tile.Tensor[tile.T, "M"], y: tile.Tensor[tile.T, "N"], z: tile.Out[tile.T, "M N"],
          first: tile.Out[tile.i32, "M 2"], by: tile.f32 = 1.0, B: tile.Const = 8):
    m, n = tile.grid(tile.cdiv(x.shape[0], B), tile.cdiv(y.shape[0], B))
    a, b = tile.load(x, (m * B,), (B,)), tile.load(y, (n * B,), (B,))
    tile.store(z, (m * B, n * B), (a[:, None].to(tile.f32) * b[None, :].to(tile.f32) * by).to(z.dtype))
    tile.store(first, (m * B, 0), tile.zeros((B, 2), tile.i32) + B)


def vectors(m: int, n: int, dt: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(m).to(dt), torch.arange(n).to(dt)


def check(x: Any, y: Any, *args: Any, by: float = 1.0, B: int = 8, **kwargs: Any) -> Any:
    """Calls, and compares with torch; gives the outputs."""
    given = {} if args or by == 1.0 else {"by": by}
    z, first = outer(x, y, *args, **given, **kwargs, **({} if B == 8 else {"B": B}))
    wanted = torch.outer(torch.as_tensor(x), torch.as_tensor(y)) * by
    assert type(z) is type(first) is type(x) and z.dtype == x.dtype
    np.testing.assert_array_equal(np.asarray(z), wanted.to(torch.as_tensor(x).dtype).numpy())
    np.testing.assert_array_equal(np.asarray(first), np.full((len(x), 2), B))
    return z, first


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Called, it lets every later call that takes the long way fail."""
    def refuse(*args: Any) -> None:
        raise AssertionError("the call took the long way")
    return lambda: monkeypatch.setattr(jit, "Bound", refuse)


@pytest.mark.parametrize("call", [
    lambda x, y: check(x, y), lambda x, y: check(x, y, by=2.0), lambda x, y: check(x, y, z=None, B=4),
    lambda x, y: check(x, y, first=torch.empty(len(x), 2, dtype=torch.int32), by=0.5),
    lambda x, y: check(x, y, None, torch.empty(len(x), 2, dtype=torch.int32))],
    ids=["allocated", "scalar by name", "None and a constant", "one of two given", "given by place"])
def test_the_second_call_is_short(call: Any, forbidden: Any) -> None:
    call(*vectors(3, 20))
    forbidden()
    call(*vectors(9, 5))
    call(*vectors(0, 5))


def test_parameters_are_short_where_no_gradient_is_recorded(forbidden: Any) -> None:
    x, y = map(torch.nn.Parameter, vectors(3, 20))
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            first = outer(x, y)
    forbidden()
    with torch.no_grad():
        assert all(map(torch.equal, outer(x, y), first))
    with pytest.raises(AssertionError, match="the long way"):  # which says that a gradient is wanted
        outer(x, y)


@tile.kernel
def tabled(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"], TABLE: tile.Const):
    tile.store(y, 0, tile.load(x, 0, 2) * tile.constant(TABLE, tile.f32))


@pytest.mark.parametrize("table", [(2.0, -0.0), (2, 3)], ids=["floats", "ints"])
def test_calls_with_tuples_are_short(table: tuple[Any, ...], forbidden: Any) -> None:
    x = torch.ones(2)
    for first in (table, (*table[:1], 0.0)):
        tabled(x, TABLE=first)
    forbidden()
    got = tabled(x, TABLE=(*table,))  # another tuple of the same numbers
    assert got.tolist() == list(table) and torch.signbit(got).tolist() == [False, table[1] == 0.0]


def test_numpy_is_short_too(forbidden: Any) -> None:
    for m, n in ((3, 20), (9, 5)):
        check(*(v.numpy() for v in vectors(m, n)))
        forbidden()


def test_kinds_of_arguments_take_turns(forbidden: Any) -> None:
    """Contiguous vectors are not left to the code for strided ones, which may be the first that was compiled."""
    x, y = vectors(5, 7)
    kinds = [(torch.stack([x, x], 1)[:, 0], y), (x, y), (x.half(), y.half()), (x.numpy(), y.numpy())]
    outer._prepare()
    for kind in kinds:
        check(*kind)
    assert len(outer._compiled) == 3  # NumPy's share torch's
    forbidden()
    for kind in kinds + kinds[::-1]:
        check(*kind)
        (plans,) = outer._plans.values()
        assert len(plans) == 4 and plans[0].values(kind, {}) and plans[0].fn(*plans[0].values(kind, {})) is None


def test_views_that_negate_are_refused_again_and_again() -> None:
    x, y = vectors(2, 3)
    kernel = outer.bind()
    for _ in range(2):
        kernel(torch.stack([x, x], 1)[:, 0], y)
        with pytest.raises(errors.ArgumentLayout, match="conjugates or negates"):
            kernel(torch.complex(x, x).conj().imag, y)


def test_what_changes_is_noticed() -> None:
    x, y = vectors(5, 7)
    out = torch.empty(5, 7)
    for _ in range(2):
        check(x, y)
        check(x.numpy(), y.numpy())  # the outputs follow the inputs' kind
        check(x.half(), y.half())
        check(*vectors(12, 1))
        check(torch.stack([x, x], 1)[:, 0], y)  # another stride
        assert check(x, y, z=out)[0] is out and check(x, y, z=None)[0] is not out
        assert check(x, y, out)[0] is out and check(x, y, None)[0] is not out
        for by in (0.5, 2, np.float32(4)):
            check(x, y, by=by)  # type: ignore[arg-type]


@pytest.mark.parametrize(("call", "error", "text"), [
    (lambda x, y: outer(x[None], y), errors.ArgumentRank, '1 dimensions "M"'),
    (lambda x, y: outer(x[0], y), errors.ArgumentRank, '1 dimensions "M"'),
    (lambda x, y: outer(x, y.half()), errors.ArgumentDType, "f32 (as 'T' of an earlier argument)"),
    (lambda x, y: outer(x, 3), errors.ArgumentDType, "is not a tensor"),
    (lambda x, y: outer(x, y.tolist()), errors.ArgumentDType, "is not a tensor"),
    (lambda x, y: outer(None, y), errors.ArgumentDType, "is not a tensor"),
    (lambda x, y: outer(x.to("meta"), y), errors.ArgumentDevice, "all tensors on one device"),
    (lambda x, y: outer(x, y.to("meta"), torch.empty(3, 4)), errors.ArgumentDevice, "all tensors on one device"),
])
def test_mistakes_are_explained_as_at_the_first_call(call: Any, error: type[Exception], text: str) -> None:
    x, y = vectors(3, 4)
    check(x, y)
    with pytest.raises(error) as caught:
        call(x, y)
    assert text in str(caught.value)


def test_assertions_and_targets_still_count() -> None:
    @tile.kernel
    def positive(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"]):
        v = tile.load(x, (0,), (8,))
        assert v >= 0.0, "x is negative"
        tile.store(y, (0,), v)

    for _ in range(2):
        positive(torch.ones(8))
        with pytest.raises(errors.AssertFailed, match="x is negative"):
            positive(-torch.ones(8))
    with tile.target("reference"), pytest.raises(errors.AssertFailed, match="run kernel.reference|inspect the values"):
        positive(-torch.ones(8))


def test_zero_and_minus_zero_are_other_constants() -> None:
    @tile.kernel
    def sign(y: tile.Out[tile.f32, "1"], C: tile.Const):
        tile.store(y, (0,), tile.full((1,), C, tile.f32))

    for value in (0.0, -0.0) * 2:
        assert bool(sign(torch.zeros(1), C=value).signbit()) == np.signbit(value)


@tile.kernel
def scaled(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"], B: tile.Const,
           bias: tile.Tensor[tile.f32, "N"] = None):
    i = tile.grid(tile.cdiv(x.shape[0], B))
    value = tile.load(x, (i * B,), (B,)) * B
    tile.store(y, (i * B,), value if bias is None else value + tile.load(bias, (i * B,), (B,)))


@pytest.mark.parametrize("call", [
    lambda x, y, bias: scaled(x, y, B=4, bias=bias), lambda x, y, bias: scaled(x, y, 4, bias),
    lambda x, y, bias: scaled(x, y, 4, bias=bias)], ids=["by name", "by place", "the constant by place"])
def test_optional_tensors_behind_constants_and_constants_by_place(call: Any, forbidden: Any) -> None:
    x, y, bias = torch.arange(9.0), torch.zeros(9), torch.ones(9)
    call(x, y, bias)
    call(x, y, None)
    scaled(x, y, 3)
    forbidden()
    assert torch.equal(call(x, y, bias), 4 * x + 1) and torch.equal(y, 4 * x + 1)
    assert torch.equal(call(x, y, None), 4 * x) and torch.equal(scaled(x, y, 3), 3 * x)
