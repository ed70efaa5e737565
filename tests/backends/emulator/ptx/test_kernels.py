"""Kernels through the whole pipeline, NVRTC included: the PTX computes what the interpreter does."""
from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import pytest

import tilelang as tile
from tests.backends.emulator.ptx.tiers import needs_nvrtc, ptx
from tests.backends.simt import kernels
from tests.backends.simt.emulated import emulated
from tests.ir.op_examples import everywhere, example
from tilelang import targets
from tilelang.backends.clike.rendered import Rendered
from tilelang.backends.emulator.execute import arguments
from tilelang.backends.emulator.ptx.run import run
from tilelang.bound import Bound
from tilelang.errors import TargetError
from tilelang.ir import interpreter
from tilelang.ir.core import Function, TensorType
from tilelang.jit import Kernel
from tilelang.ops.attention.forward import forward_kernel
from tilelang.ops.matmul import matmul_kernel
from tilelang.ops.mpgemm.gpu import below, product_kernel, tiles
from tilelang.ops.norm import layer_norm_kernel
from tilelang.ops.softmax import softmax_kernel
from tilelang.passes.meaning import difference, explained, noise
from tilelang.quant import Parameter, QuantTensor

pytestmark = needs_nvrtc


def execute(fn: Function, code: Rendered, arrays: Sequence[Any], shapes: Sequence[Sequence[int]],
            strides: Sequence[Sequence[int]], arch: str = "compute_80") -> None:
    """What the emulator's function of this name does, by PTX."""
    programs = int(np.prod(interpreter.grid_extents(fn, arrays, shapes), dtype=np.int64))
    run(ptx(code.text, arch), code.name, arguments(fn, code, arrays, shapes, strides), programs=programs,
        threads=code.threads, shared_bytes=code.shared_bytes)


RNG = np.random.default_rng(2)


def draw(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(dtype)


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.zeros(shape, dtype)


CASES: dict[str, tuple[Kernel, dict[str, Any], tuple[str, ...]]] = {  # with instructions that the PTX must have
    "matmul": (matmul_kernel, {"a": draw(80, 64, dtype=np.float16), "b": draw(64, 72, dtype=np.float16),
                               "c": zeros(80, 72, dtype=np.float16), "BM": 64, "BN": 64, "BK": 32, "ACC": tile.f32},
               ("mma.sync",)),
    "softmax": (softmax_kernel, {"x": draw(5, 100), "y": zeros(5, 100), "BM": 4, "BN": 128}, ("shfl.sync.bfly",)),
    "layer norm": (layer_norm_kernel, {"x": draw(5, 100), "weight": draw(100), "bias": draw(100), "y": zeros(5, 100),
                                       "eps": 1e-5, "BM": 4, "BN": 128}, ("shfl.sync.bfly", "rsqrt.approx")),
    "attention": (forward_kernel, {"q": draw(1, 2, 20, 16), "k": draw(1, 1, 24, 16), "v": draw(1, 1, 24, 16),
                                     "o": zeros(1, 2, 20, 16), "scale": 0.25, "RIGHT": 0, "BM": 16, "BN": 16,
                                     "BD": 16, "BE": 16}, ("ex2.approx", "bar.sync")),
    "attention f16": (forward_kernel, {
        "q": draw(1, 2, 20, 16, dtype=np.float16), "k": draw(1, 1, 24, 16, dtype=np.float16),
        "v": draw(1, 1, 24, 16, dtype=np.float16), "o": zeros(1, 2, 20, 16, dtype=np.float16), "scale": 0.25,
        "RIGHT": 0, "BM": 16, "BN": 16, "BD": 16, "BE": 16, "ROUND": True},
        ("ex2.approx", "mma.sync", "ldmatrix", "cp.async")),
    "attention with warps that only copy": (kernels.attention, {
        "q": draw(128, 64, dtype=np.float16), "k": draw(72, 64, dtype=np.float16), "v": draw(72, 64, dtype=np.float16),
        "o": zeros(128, 64), "BM": 128, "BN": 64, "BD": 64, "STAGES": 2, "SCHEDULE": "producer"},
        ("setmaxnreg.dec", "setmaxnreg.inc", "bar.sync 1, 256", "wgmma.mma_async", "mbarrier.try_wait")),
    "matmul of a cluster": (kernels.matmul, {
        "a": draw(128, 264, dtype=np.float16), "b": draw(264, 64, dtype=np.float16), "c": zeros(128, 64), "BM": 64,
        "BN": 64, "BK": 64, "STAGES": 3, "SCHEDULE": "plain", "CLUSTER": (2, 1)},
        ("multicast::cluster", "mapa.shared::cluster", "barrier.cluster.arrive", "wgmma.mma_async")),
}


@pytest.mark.parametrize("name", CASES)
def test_kernel(name: str) -> None:
    """Both tiers, within what rounding can do."""
    kernel, given, instructions = CASES[name]
    arch = "sm_90a" if "SCHEDULE" in given else "sm_80"
    bound = Bound(kernel, (), given)
    fn = bound.kernel.trace(bound.types(aligned=True), bound.consts)
    values = [bound.tensors[p.name].storage() if p.kind == "tensor" else bound.scalar(p)
              for p in bound.kernel.params if p.kind != "const"]
    samples = list(islice(noise(fn, values, np.random.default_rng(3)), 6))
    want, here, there = ([np.copy(v) for v in values] for _ in range(3))
    interpreter.run(fn, want)
    emulated(fn, f"cuda:{arch}", lambda *of: execute(*of, arch=f"compute_{arch[3:]}"))(here)
    emulated(fn, f"cuda:{arch}")(there)
    for i, p in enumerate(fn.params):
        if isinstance(p.type, TensorType):
            for got in (here, there):
                assert explained(want[i], got[i], [s[i] for s in samples], p.type.dtype).all()
    text = ptx(targets.lowered(fn, f"cuda:{arch}").rendered.text, f"compute_{arch[3:]}")
    assert all(i in text for i in instructions)


@pytest.mark.parametrize("target", ["cuda:sm_80", "cuda:sm_90a"])
def test_product_with_quantised_weights(target: str) -> None:
    """W is the left operand, on sm_90a of `wgmma` from registers; whole numbers, so every bit is known."""
    rng = np.random.default_rng(4)
    codes, x = rng.integers(0, 16, (140, 256)), rng.integers(-8, 8, (16, 256)).astype(np.float16)
    w = tiles(QuantTensor(tile.Packed.from_codes(codes, tile.u4), Parameter(np.ones((140, 2), np.float32), (1, 128))),
              target)
    y = np.zeros((16, 140), np.float32)
    given = {"x": x, "words": w.words, "scale": w.scale, "y": y, "DTYPE": w.dtype, "BM": 16, "GROUP": 1, "STAGES": 3,
             **below(w.blocks, 4)}
    bound = Bound(product_kernel, (), given)
    fn = bound.kernel.trace(bound.types(aligned=True), bound.consts)
    emulated(fn, target, lambda *of: execute(*of, arch=f"compute_{target[8:]}"))([x, w.words, w.scale, y])
    np.testing.assert_array_equal(y, x.astype(np.float64) @ codes.T)
    assert ("tl::wgmma" in targets.lowered(fn, target).rendered.text) == (target == "cuda:sm_90a")


@pytest.mark.parametrize("key", everywhere())
def test_operation(key: str) -> None:
    """Every operation that the CUDA pipeline takes."""
    fn = example(key)
    try:
        call = emulated(fn, runs=execute)
        targets.lowered(fn, "cuda:sm_80").rendered
    except TargetError as e:
        assert "cannot be compiled for cuda" in str(e)
        return
    assert not difference(fn, call, np.random.default_rng(5), trials=1)
