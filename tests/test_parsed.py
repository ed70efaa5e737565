"""Kernels made of TILE text."""
from __future__ import annotations

import numpy as np
import pytest
import torch

import tilelang as tile
from tilelang import errors, ops
from tilelang.ops.matmul import matmul_kernel
from tilelang.parsed import parsed

CONSTS = {"BM": 16, "BN": 32, "BK": 8, "ACC": tile.f32}


def test_a_kernel_made_of_its_text_computes_the_same() -> None:
    a, b = torch.randn(33, 20), torch.randn(20, 41)
    tile_ = matmul_kernel.lower(a, b, torch.empty(33, 41), **CONSTS).tile
    locs = [op.loc for op in tile_.walk()]
    kernel = parsed(str(tile_), locs)
    want = matmul_kernel(a, b, torch.empty(33, 41), **CONSTS)
    assert torch.equal(kernel(a, b), want)
    assert np.array_equal(kernel(a.numpy(), b.numpy(), c=np.empty((33, 41), np.float32)), want)
    assert [op.loc for op in kernel.tile.walk()] == locs
    assert np.allclose(kernel.reference(a, b), ops.matmul(a, b), atol=1e-4)
    with tile.target("emulate:cuda:sm_80"):
        assert np.allclose(kernel(a, b), want, atol=1e-4)


def test_arguments_that_lie_otherwise_are_refused() -> None:
    a, b = torch.randn(33, 20), torch.randn(20, 41)
    kernel = parsed(str(matmul_kernel.lower(a, b, torch.empty(33, 41), **CONSTS).tile))
    with pytest.raises(errors.ArgumentLayout, match="`b` is not laid out in memory as the text of `matmul_kernel`"):
        kernel(a, torch.randn(41, 20).T)
    with pytest.raises(errors.ArgumentDType):
        kernel(a.double(), b)
    with pytest.raises(errors.VerifyError):
        parsed("func @x(")
