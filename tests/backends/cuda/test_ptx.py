"""The inline assembly of the CUDA prelude does what the emulator does: operand order, packing, rows."""
from __future__ import annotations

import numpy as np
import pytest

from tests.backends.cuda import wrappers
from tests.backends.cuda.ptx import Warp
from tilelang.backends.cuda import nvrtc
from tilelang.backends.emulator.run import Buffer, load

pytestmark = pytest.mark.skipif(nvrtc.find() is None, reason="nvidia-cuda-nvrtc is not installed")
TYPES = {"float": np.float32, "double": np.float64, "tl::i32": np.int32, "tl::u32": np.uint32, "tl::u16": np.uint16,
         "tl::u8": np.uint8}


def _values(name: str, t: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Operands whose products are exact."""
    if t in ("float", "double"):
        return rng.integers(-8, 8, n).astype(TYPES[t])
    if name.endswith(("f16", "e4m3", "e5m2")):
        import ml_dtypes
        dtype = {"_f16": np.float16, "bf16": ml_dtypes.bfloat16, "e4m3": ml_dtypes.float8_e4m3fn,
                 "e5m2": ml_dtypes.float8_e5m2}[name[-4:]]
        return rng.integers(-8, 8, n).astype(dtype).view(TYPES[t])
    return rng.integers(0, np.iinfo(TYPES[t]).max, n, endpoint=True, dtype=TYPES[t])


@pytest.mark.parametrize("arch", [75, 80, 89, 90])
def test_products(arch: int) -> None:
    names = [name for name, (*_, since) in wrappers.MMA.items() if arch >= since]
    text = wrappers.including(*map(wrappers.mma, names))
    ptx, program, rng = nvrtc.ptx(text, f"sm_{arch}"), load(text), np.random.default_rng(0)
    for name in names:
        d, nd, t, na, nb, _ = wrappers.MMA[name]
        a, b = (_values(name, t, 32 * n, rng) for n in (na, nb))
        c = rng.integers(-1000, 1000, 32 * nd).astype(TYPES[d])
        expected, got = c.copy(), c.copy()
        assert not program.launch(f"mma_{name}", [Buffer(a), Buffer(b), Buffer(expected)], threads=32).findings
        Warp([a, b, got], 0).run(ptx, f"mma_{name}")
        np.testing.assert_array_equal(got, expected, name)
        assert not np.array_equal(got, c)


@pytest.mark.parametrize("arch", [75, 90])
def test_rows(arch: int) -> None:
    """Before sm_90 the prelude stores matrices by shuffled addresses."""
    cases = [(x, trans, t) for x in (1, 2, 4) for trans in (False, True) for t in ("tl::u16", "tl::u8")]
    text = wrappers.including(*(wrappers.rows(*case) for case in cases))
    ptx, program, rng = nvrtc.ptx(text, f"sm_{arch}"), load(text), np.random.default_rng(0)
    for x, trans, t in cases:
        data, order = rng.integers(0, 256, 512, dtype=np.uint8), rng.permutation(32).astype(np.int32)
        name = f"rows_{x}_{str(trans).lower()}_{t[4:]}"
        expected, got = ([np.zeros(512, np.uint8), np.zeros(128 * x, np.uint8)] for _ in range(2))
        args = [Buffer(data), Buffer(order), *map(Buffer, expected)]
        assert not program.launch(name, args, threads=32, shared_bytes=1024).findings
        Warp([data, order, *got], 1024).run(ptx, name)
        for g, e in zip(got, expected, strict=True):
            np.testing.assert_array_equal(g, e, name)


@pytest.mark.parametrize(("t", "n"), [("float", 1), ("float", 2), ("float", 4), ("tl::u16", 8)])
def test_async_copies(t: str, n: int) -> None:
    text = wrappers.including(wrappers.copy(t, n))
    a = np.arange(1, 32 * n + 1).astype(TYPES[t])
    expected, got = np.zeros_like(a), np.zeros_like(a)
    assert not load(text).launch(f"copy_{n}", [Buffer(a), Buffer(expected)], threads=32, shared_bytes=1024).findings
    Warp([a, got], 1024).run(nvrtc.ptx(text, "sm_80"), f"copy_{n}")
    np.testing.assert_array_equal(got, expected)
    assert (expected.reshape(32, n)[31] == a.reshape(32, n)[3]).all() and not expected[:9 * n].any()


@pytest.mark.parametrize("t", ["float", "double", "tl::u8", "tl::u16", "tl::i32"])
def test_shuffles(t: str) -> None:
    text, name = wrappers.including(wrappers.shuffle(t)), f"shuffles_{t.removeprefix('tl::')}"
    a = np.random.default_rng(0).integers(0, 250, 32).astype(TYPES[t])
    expected, got = np.zeros(128, a.dtype), np.zeros(128, a.dtype)
    assert not load(text).launch(name, [Buffer(a), Buffer(expected)], threads=32).findings
    Warp([a, got], 0).run(nvrtc.ptx(text, "sm_80"), name)
    np.testing.assert_array_equal(got, expected)
