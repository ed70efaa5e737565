"""Kernels of the library through the whole pipeline: the PTX computes what the interpreter does."""
from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import tilelang as tile
from tests.backends.emulator.ptx.tiers import needs_nvrtc, on_cpu, on_ptx, outputs, ptx
from tilelang import targets
from tilelang.ir.interpreter import grid_extents, run
from tilelang.jit import Bound, Kernel
from tilelang.ops.attention import attention_kernel
from tilelang.ops.matmul import matmul_kernel
from tilelang.ops.norm import layer_norm_kernel
from tilelang.ops.softmax import softmax_kernel
from tilelang.passes.meaning import explained, noise

pytestmark = needs_nvrtc
RNG = np.random.default_rng(2)


def draw(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(dtype)


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.zeros(shape, dtype)


HALF = {"BM": 64, "BN": 64, "BK": 32, "ACC": tile.f32}
CASES: dict[str, tuple[Kernel, dict[str, Any], tuple[str, ...]]] = {  # with instructions that the text must contain
    "matmul": (matmul_kernel, {"a": draw(80, 64, dtype=np.float16), "b": draw(64, 72, dtype=np.float16),
                               "c": zeros(80, 72, dtype=np.float16), **HALF}, ("mma.sync",)),
    "softmax": (softmax_kernel, {"x": draw(5, 100), "y": zeros(5, 100), "BM": 4, "BN": 128}, ("shfl.sync.bfly",)),
    "layer norm": (layer_norm_kernel, {"x": draw(5, 100), "weight": draw(100), "bias": draw(100), "y": zeros(5, 100),
                                       "eps": 1e-5, "BM": 4, "BN": 128}, ("shfl.sync.bfly", "rsqrt.approx")),
    "attention": (attention_kernel, {"q": draw(1, 2, 20, 16), "k": draw(1, 1, 24, 16), "v": draw(1, 1, 24, 16),
                                     "o": zeros(1, 2, 20, 16), "scale": 0.25, "CAUSAL": True, "BM": 16, "BN": 16,
                                     "BD": 16, "BE": 16}, ("ex2.approx", "bar.sync")),
}


@pytest.mark.parametrize("name", CASES)
def test_kernel(name: str) -> None:
    kernel, given, instructions = CASES[name]
    bound = Bound(kernel, (), given)
    fn = kernel.trace(bound.types(aligned=True), bound.consts)
    code = targets.lowered(fn, "cuda:sm_80").rendered
    params = [p for p in kernel.params if p.kind != "const"]
    values = [bound.tensors[p.name].storage() if p.kind == "tensor" else bound.scalar(p) for p in params]
    shapes = [np.shape(v) for v in values]
    args: list[Any] = []
    for p in code.parameters:
        v = values[p.index]
        args.append({"data": lambda v=v: v, "shape": lambda v=v, p=p: np.int64(v.shape[p.axis]),
                     "stride": lambda v=v, p=p: np.int64(v.strides[p.axis] // v.itemsize),
                     "value": lambda v=v: np.asarray(v)[()], "workers": lambda: np.int32(2)}[p.kind]())
    launch = {"programs": math.prod(grid_extents(fn, values, shapes)), "threads": code.threads,
              "shared_bytes": code.shared_bytes}
    tier = on_ptx(code.text)
    want = [np.copy(v) for v in values]
    run(fn, want)
    samples = noise(fn, [np.copy(v) for v in values], np.random.default_rng(3))
    tensors = [i for i, p in enumerate(params) if p.kind == "tensor"]
    for got in (outputs(tier, code.name, args, **launch), outputs(on_cpu(code.text), code.name, args, **launch)):
        for i, result in zip(tensors, got, strict=True):
            dt = bound.tensors[params[i].name].dtype
            assert explained(want[i], result, [s[i] for s in samples], dt, want[i]).all()
    for instruction in instructions:
        assert instruction in ptx(code.text)
