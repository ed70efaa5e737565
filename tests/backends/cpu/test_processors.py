"""Kernels for older and for newer processors than this one, which are run."""
from __future__ import annotations

import ctypes
import platform
import re
from collections.abc import Iterator
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest

import tilelang as tile
from tests.backends.cpu.processors import INSTRUCTIONS, LEVELS, NEWEST, V3, assembly, in_software, level, take_for
from tilelang.backends.cpu import machine

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="levels of x86")


@tile.kernel
def products(a: tile.Tensor[tile.T, "M K"], b: tile.Tensor[tile.T, "K N"], y: tile.Out[tile.A, "M N"]):
    m, n = tile.grid(tile.cdiv(a.shape[0], 24), tile.cdiv(b.shape[1], 32))
    acc = tile.zeros((24, 32), y.dtype)
    for k in tile.range(0, a.shape[1], 64):
        acc = tile.dot(tile.load(a, (m * 24, k), (24, 64)), tile.load(b, (k, n * 32), (64, 32)), acc)
    tile.store(y, (m * 24, n * 32), acc)


@tile.kernel
def softmax(x: tile.Tensor[tile.f32, "M N"], y: tile.Out[tile.f32, "M N"]):
    m = tile.grid(x.shape[0])
    row = tile.load(x, (m, 0), (1, 256))
    row = tile.where(tile.arange(256)[None, :] < x.shape[1], row, float("-inf"))
    p = tile.exp(row - row.max(1)[:, None])
    tile.store(y, (m, 0), p / p.sum(1)[:, None])


@tile.kernel
def widened(x: tile.Tensor[tile.T, "N"], y: tile.Out[tile.f32, "N"]):
    n = tile.grid(tile.cdiv(x.shape[0], 64)) * 64
    tile.store(y, n, tile.load(x, n, 64).to(tile.f32))


@tile.kernel
def narrowed(x: tile.Tensor[tile.f32, "N"], y: tile.Out[tile.T, "N"]):
    n = tile.grid(tile.cdiv(x.shape[0], 64)) * 64
    tile.store(y, n, tile.load(x, n, 64).to(y.dtype))


@tile.kernel
def looked_up(x: tile.Tensor[tile.u8, "N"], y: tile.Out[tile.u8, "N"]):
    """Where no register holds the table, it is in memory, which was refused before the grid."""
    table = (tile.arange(16) * 37 % 251).to(tile.u8)
    n = tile.grid(tile.cdiv(x.shape[0], 64)) * 64
    tile.store(y, n, tile.lookup(table, tile.load(x, n, 64) & 15))


KERNELS = products, softmax, widened, narrowed, looked_up


@pytest.fixture(params=LEVELS)
def runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    take_for(request.param, monkeypatch, *KERNELS)


def test_registers() -> None:
    """Processors without AVX2 were taken to have 32."""
    made = [level(name) for name in LEVELS]
    assert [(t.vector_bytes, t.registers) for t in made] == [
        (16, 16), (16, 16), (32, 16), (32, 16), (64, 32), (64, 32)]
    assert [t.by_half for t in made] == [False, False, True, True, True, True]
    assert level("newest").features == {"avx2", "vnni", "vbmi", "bf16"}
    assert level("avx-vnni").features == {"avx2", "vnni"}
    assert not machine.processor("x86-64-v3", "-fma", V3 - {"fma"}).fused


def test_slow_products_of_pairs_are_left() -> None:
    """Intel's `vdpbf16ps` took twice the time of products of f32, which every product of bf16 then took."""
    assert "bf16" in machine.processor("znver4", "", NEWEST).features
    for name in ("sapphirerapids", "emeraldrapids", "graniterapids"):
        assert machine.processor(name, "", NEWEST).features == {"avx2", "vnni", "vbmi"}


def test_powers_that_are_not_normal_are_masked() -> None:
    """`vscalefps` took 70 ns on Intel's processors for every vector with a masked score."""
    code = assembly("x86-64-v4", softmax, np.zeros((4, 200), np.float32), np.zeros((4, 200), np.float32))
    scaled = re.findall(r"vscalefps.*", code)
    assert scaled and all("{z}" in line for line in scaled)


def inputs() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Kernels with arguments; products of floats are sums of small integers, which no order rounds."""
    rng = np.random.default_rng(0)
    for dt, acc in (np.float32, np.float32), (np.float16, np.float32), (np.int8, np.int32):
        a, b = (rng.integers(-8, 9, shape).astype(dt) for shape in ((50, 130), (130, 70)))
        yield products, (a, b, np.zeros((50, 70), acc))
    yield looked_up, (rng.integers(0, 256, 200, dtype=np.uint8), np.zeros(200, np.uint8))
    numbers = (rng.standard_normal(1000) * 2.0 ** rng.integers(-20, 13, 1000)).astype(np.float32)
    numbers[:5] = 0.0, -0.0, np.inf, -np.inf, np.nan
    yield widened, (numbers.astype(np.float16), np.zeros(1000, np.float32))
    yield narrowed, (numbers, np.zeros(1000, np.float16))
    for name in "u1", "u4", "i3", "i7", "f4e2m1", "f6e3m2", "f8e4m3", "f8e5m2", "bf16":
        dt = tile.dtype(name)
        packed = tile.Packed.from_codes(rng.integers(0, 1 << dt.bits, 1000, dtype=np.uint16), dt)
        yield widened, (packed, np.zeros(1000, np.float32))


@pytest.mark.usefixtures("runs")
def test_results() -> None:
    for kernel, args in inputs():
        got, want = args[-1].copy(), args[-1].copy()
        kernel(*args[:-1], got)
        kernel.reference(*args[:-1], want)
        np.testing.assert_array_equal(got, want, err_msg=f"{kernel.name} of {args[0].dtype}")
    x = np.random.default_rng(1).standard_normal((7, 250)).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    np.testing.assert_allclose(softmax(x), exact / exact.sum(1, keepdims=True), rtol=64 * 2.0 ** -24)


THERE = {"TVMFFIErrorSetRaisedFromCStr", "memset", "memcpy"}
"""What code may call beside the pool: the launch's errors, and the C library."""


@pytest.mark.parametrize("name", ["avx-vnni", "x86-64-v4", "newest"])
def test_code_for_newer_processors_calls_nothing_but_what_is_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLVM verifies the intrinsics' types, and where it cannot select one it says so or leaves a call."""
    target = level(name)
    monkeypatch.setattr(machine, "host", lambda: target)
    for kernel, args in inputs():
        lowered = kernel.lower(*args)
        assert lowered.target is target
        called = set(re.findall(r"\bcallq?\s+([^\s#@]+)", lowered.assembly))
        assert not {name for name in called if not name.startswith(("*", "%", "tl_"))} - THERE, kernel.name
        assert ("%zmm" if target.vector_bytes == 64 else "%ymm") in lowered.assembly or kernel is looked_up
        bytes_ = kernel is products and args[0].dtype == np.int8
        few = kernel is widened and args[0].dtype in map(tile.dtype, ("u1", "u4", "i3", "i7", "f4e2m1", "f6e3m2"))
        assert ("vpmultishiftqb" in lowered.assembly) == (few and name == "newest")
        assert ("vpdpbusd" in lowered.assembly) == (bytes_ and "vnni" in target.features)


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_software_does_what_the_instruction_does(name: str) -> None:
    feature = INSTRUCTIONS[name].feature
    if not llvm.get_host_cpu_features().get(feature):
        pytest.skip(f"needs a processor with {feature}")
    operands = len(INSTRUCTIONS[name].takes)
    header = INSTRUCTIONS[name].defined(name).partition("\n")[0]
    result, *takes = re.findall(r"<\d+ x \w+>", header)
    body = "".join(f"%x{i} = load {t}, ptr %p{i}, align 1\n" for i, t in enumerate(takes))
    call = f'call {result} @"llvm.x86.{name}"({", ".join(f"{t} %x{i}" for i, t in enumerate(takes))})'
    text = f"""target triple = "{machine.host().triple}"
declare {result} @"llvm.x86.{name}"({", ".join(takes)})
define void @"run"(ptr %y, {", ".join(f"ptr %p{i}" for i in range(operands))}) {{
{body}%z = {call}
store {result} %z, ptr %y, align 1
ret void
}}"""
    numbers = np.random.default_rng(0).integers(0, 256, (400, operands, 64), np.uint8)
    made = []
    for code in text, in_software(text):
        loaded = machine.Loaded(machine.object_code(code, machine.host()), "run")
        call_ = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (operands + 1))(loaded.address("run"))
        y = np.zeros((len(numbers), 64), np.uint8)
        for row, out in zip(numbers, y, strict=True):
            call_(out.ctypes.data, *(x.ctypes.data for x in row))
        made.append(y.view(np.float32) if result.endswith("float>") else y)
    np.testing.assert_array_equal(*made)
