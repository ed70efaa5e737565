"""The fuzzer for users finds what is wrong, and only that."""
from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import tilelang as tile
from tilelang.ops.softmax import reference, softmax_kernel
from tilelang.testing import fuzz


@tile.kernel
def good(x: tile.Tensor[tile.T, "M N"], w: tile.Tensor[tile.u4, "N"], y: tile.Out[tile.T, "M N"], by: tile.f32,
         BM: tile.Const = 4, BN: tile.Const = 16):
    m, n = tile.grid(tile.cdiv(x.shape[0], BM), tile.cdiv(x.shape[1], BN))
    v = tile.load(x, (m * BM, n * BN), (BM, BN)).to(tile.f32)
    tile.store(y, (m * BM, n * BN), (v * by + tile.load(w, (n * BN,), (BN,)).to(tile.f32)).to(y.dtype))


@tile.kernel
def drops_the_tail(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.f32, "N"]):
    n = tile.grid(x.shape[0] // 8 + 1)
    v = tile.load(x, (n * 8,), (8,))
    tile.store(y, (n * 8,), tile.where(n * 8 + tile.arange(8) < 16, v, 0.0))


def test_a_right_kernel_passes() -> None:
    fuzz(good, lambda x, w, by: x * by + w, consts={"BM": [1, 4, 5]},
         dtypes={"T": [tile.f32, tile.f16, tile.bf16, tile.f8e4m3]})


def test_softmax_passes() -> None:
    def rows(x: Any) -> Any:
        return reference(x) if x.size else np.zeros(x.shape)
    fuzz(softmax_kernel, rows, consts={"BM": [1, 3], "BN": [128]}, dtypes={"T": [tile.f32, tile.bf16]})


def test_a_dropped_tail_is_found_and_shrunk() -> None:
    with pytest.raises(AssertionError, match=r"`drops_the_tail`: y\[16\] is 0.0") as caught:
        fuzz(drops_the_tail, lambda x: x)
    program = str(caught.value).partition("To repeat it:\n")[2]
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, (program, run.stderr)
    numbers = [float(x) for x in run.stdout.strip("[]\n").split()]
    assert len(numbers) == 33 and all(numbers[:16]) and not any(numbers[16:])  # the smallest extent that fails
