"""The weights of other projects need no kernels of their own: each is a composition that `mpgemm` multiplies by."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import tilelang as tile
from tests.ops.mpgemm.test_api import bound
from tests.quant.formats.test_gguf import random_bytes
from tilelang import ops, quant
from tilelang.quant import QuantTensor
from tilelang.quant.formats.gguf import FORMATS

RNG = np.random.default_rng(0)
N, K = 40, 256
W = RNG.standard_normal((N, K)).astype(np.float32)


def gguf(format: str) -> QuantTensor:
    return quant.from_gguf(random_bytes(format, N, K // FORMATS[format].block), format, (N, K))


def gptq(bits: int) -> QuantTensor:
    state = quant.to_gptq(tile.quantize(W, f"u{bits}", 64, True))
    return quant.from_gptq({**state, "g_idx": RNG.permutation(state["g_idx"])})


WEIGHTS: dict[str, Callable[[], QuantTensor]] = {
    "Q2_K": lambda: gguf("Q2_K"), "Q6_K": lambda: gguf("Q6_K"), "IQ4_XS": lambda: gguf("IQ4_XS"),
    "GPTQ with activation order": lambda: gptq(3), "NF4": lambda: tile.quantize(W, quant.NF4, 64, scale_dtype="f32"),
    "MXINT8": lambda: quant.quantize_mx(W, "i8"),
    "NVFP4": lambda: tile.quantize(W, "f4e2m1", 16, scale_dtype="f8e4m3"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_formats_multiply(name: str) -> None:
    w = WEIGHTS[name]()
    x = RNG.standard_normal((3, K)).astype(np.float32)
    error = np.abs(ops.mpgemm(x, w) - x.astype(np.float64) @ w.dequantize().T)
    assert (error <= bound(x, w)).all(), (error / bound(x, w)).max()
