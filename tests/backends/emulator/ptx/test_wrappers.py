"""Every wrapper of the GPU's prelude, as the PTX that NVRTC makes of it, does what the emulator's does."""
from __future__ import annotations

import numpy as np
import pytest

from tests.backends.cuda import wrappers
from tests.backends.emulator.ptx import texts
from tests.backends.emulator.ptx.tiers import arguments, needs_nvrtc, on_cpu, on_ptx, outputs, wrapper

pytestmark = needs_nvrtc
EXACT = [n for n in texts.kernels(80) if n not in ("math_float", "math_double")]  # those: test_math.py
LATER = [n for n in texts.kernels(90) if n not in texts.kernels(80) or n.startswith("rows_")]


@pytest.mark.parametrize("name", EXACT)
def test_wrapper(name: str, rng: np.random.Generator) -> None:
    text = texts.text(80)
    args = arguments(name, text, rng)
    for got, want in zip(outputs(on_ptx(text), name, args, threads=32, shared_bytes=2048),
                         outputs(on_cpu(text), name, args, threads=32, shared_bytes=2048), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", LATER)
def test_wrapper_of_a_later_processor(name: str, rng: np.random.Generator) -> None:
    text = texts.text(90)
    args = arguments(name, text, rng)
    for got, want in zip(outputs(on_ptx(text, "compute_90"), name, args, threads=32, shared_bytes=2048),
                         outputs(on_cpu(text), name, args, threads=32, shared_bytes=2048), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", ["memory_float_4", "mma_m16n8k16_f16", "rows_4_true_u16"])
def test_wrapper_before_its_instruction(name: str, rng: np.random.Generator) -> None:
    """On sm_75 other instructions stand for async copies and for the product of depth 16."""
    text = wrapper(name, 75)
    args = arguments(name, text, rng)
    for got, want in zip(outputs(on_ptx(text, "compute_75"), name, args, threads=32, shared_bytes=2048),
                         outputs(on_cpu(text), name, args, threads=32, shared_bytes=2048), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.fixture(scope="module")
def groups() -> str:
    return wrappers.including(*wrappers.groups().values(), groups=True)


@pytest.mark.parametrize("name", wrappers.groups())
def test_product_of_four_warps(name: str, groups: str, rng: np.random.Generator) -> None:
    args = arguments(name, groups, rng)
    args[2] = np.int64(24)  # times 2 kB
    for got, want in zip(outputs(on_ptx(groups, "compute_90a"), name, args, threads=128, shared_bytes=65536),
                         outputs(on_cpu(groups), name, args, threads=128, shared_bytes=65536), strict=True):
        np.testing.assert_array_equal(got, want)
