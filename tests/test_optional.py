"""Tensors that a call need not give, and tile functions as constants."""
from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import tilelang as tile
from tilelang.errors import ArgumentCount


@tile.function
def twice(x):
    return 2.0 * x


def times(factor: float) -> Any:
    @tile.function
    def scaled(x):
        return x * factor
    return scaled


@tile.kernel
def step(x: tile.Tensor[tile.f32, "N"], bias: tile.Tensor[tile.f32, "N"] = None, y: tile.Out[tile.f32, "N"] = None,
         z: tile.Out[tile.f32, "N"] = None, F: tile.Const = twice):
    i = tile.grid(tile.cdiv(x.shape[0], 64))
    v = F(tile.load(x, (i * 64,), (64,)))
    if bias is not None:
        v = v + tile.load(bias, (i * 64,), (64,))
    if y is not None:
        tile.store(y, (i * 64,), v)
    if z is not None:
        tile.store(z, (i * 64,), -v)


X, B = np.arange(100, dtype=np.float32), np.full(100, 7, np.float32)


@pytest.mark.parametrize("call", [step, step.reference])
def test_absent_tensors_are_none(call: Any) -> None:
    y, z = np.zeros(100, np.float32), np.zeros(100, np.float32)
    for _ in range(2):  # the second call takes the short way
        assert (call(X, y=y) == 2 * X).all()
        assert (call(X, B, y) == 2 * X + B).all()
        assert (call(X, None, z=z) == -2 * X).all() and (call(X, bias=None, z=z) == -2 * X).all()
        both = call(X, B, y, z)
        assert (both[0] == 2 * X + B).all() and (both[1] == -2 * X - B).all()


def test_which_tensors_a_kernel_takes() -> None:
    y = np.zeros(100, np.float32)
    assert (step.taking("y")(X, y) == 2 * X).all() and (step.taking("bias", "y")(X, B, y) == 2 * X + B).all()
    assert (step.bind(F=times(3.0)).taking("bias", "z")(X, B, y) == -3 * X - B).all()
    assert (pickle.loads(pickle.dumps(step.taking("y")))(X, y) == 2 * X).all()
    with pytest.raises(ArgumentCount, match=r"(?s)has no optional tensor 'x'.*bias, y, z"):
        step.taking("x")


def test_code_of_absent_tensors_is_not_compiled() -> None:
    y = np.zeros(100, np.float32)
    assert "%bias" in str(step.lower(X, B, y=y).tile) and "%bias" not in str(step.lower(X, y=y).tile)


def test_too_many_arguments_are_still_refused() -> None:
    with pytest.raises(ArgumentCount, match="too many"):
        step(X, None, None, None, twice, 1)


def test_functions_of_one_definition_and_constants_are_compiled_once() -> None:
    y = np.zeros(100, np.float32)
    for factor in (3.0, 4.0, 3.0):
        assert (step(X, y=y, F=times(factor)) == factor * X).all()
    compiled = step.given((X,), {"y": y})[0]._compiled
    before = len(compiled)
    step(X, y=y, F=times(4.0))
    assert len(compiled) == before
