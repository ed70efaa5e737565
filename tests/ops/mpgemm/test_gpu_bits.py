"""Products by planes of bits, by the text emitted for NVIDIA's GPUs, to the bit."""
from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import tilelang as tile
from benchmarks import sass
from tests.ops.mpgemm.test_api import exact, weight
from tilelang import ops
from tilelang.backends.cuda import nvrtc
from tilelang.backends.hip import clang
from tilelang.errors import TargetError
from tilelang.ops.mpgemm.gpu_bits import bitplane_kernel, chosen, held, lanes, planes, stages, steps
from tilelang.quant import Parameter, QuantTensor


@pytest.mark.parametrize(("target", "name", "x_dtype", "m", "k", "group", "token"), [
    ("cuda:sm_80", "u1", "s1", 3, 300, 1000, True), ("cuda:sm_80", "ternary", "i8", 9, 300, 64, True),
    ("cuda:sm_90a", "i3", "s2", 33, 600, 1000, False), ("hip:gfx942", "u2", "s2", 3, 300, 160, False)])
def test_sums_are_exact(target: str, name: str, x_dtype: str, m: int, k: int, group: int, token: bool) -> None:
    """One group for each row and several, of one step and of several, ragged rows and columns, zeros and minima."""
    rng = np.random.default_rng(0)
    x = (rng.integers(-64, 64, (m, k)) / 8).astype(np.float32)
    x[1] = 0.0
    w = weight(rng, name, 70, k, group, zeros=group < 100, minimum=not token)
    with tile.target(f"emulate:{target}"):
        y = ops.mpgemm(x, w, x_dtype=x_dtype, x_group="token" if token else "group", decomposition="bitplane_popc")
    np.testing.assert_array_equal(y, exact(x, w, x_dtype, token))
    counters = tile.last_counters().values()
    assert sum(c.wavefronts for c in counters) == sum(c.ideal_wavefronts for c in counters)  # no bank conflicts


@pytest.mark.parametrize("group", [64, 1000])
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_words_hold_every_bit_where_its_thread_reads_it(bits: int, group: int) -> None:
    rng = np.random.default_rng(0)
    w = weight(rng, f"u{bits}", 70, 300, group)
    made, codes = planes(w, "cuda:sm_80"), w.codes.codes()
    of, groups = lanes("cuda:sm_80", made.columns), -(-300 // made.group)
    source, layout = of.words, of.codes
    assert source.contiguous(1) == 4  # 16 bytes
    spread = np.zeros((70, groups, made.depth), np.uint8)
    for g in range(groups):
        part = codes[:, g * made.group:(g + 1) * made.group]
        spread[:, g, :part.shape[1]] = part
        np.testing.assert_array_equal(made.codes[g], part.sum(1))
    spread = spread.reshape(70, -1)
    for r, step, block in np.ndindex(made.words.shape[:3]):
        held_bits = np.unpackbits(made.words[r, step, block][source.table()[..., 1]].view(np.uint8), axis=-1,
                                  bitorder="little")
        n, k = (layout.table() + np.array([block * layout.shape[0], step * layout.shape[1]])).transpose(2, 0, 1)
        inside = n < 70
        np.testing.assert_array_equal(held_bits[inside], spread[n[inside], k[inside]] >> r & 1)
        assert not held_bits[~inside].any()


@pytest.mark.parametrize(("group", "columns"), [(16, 128), (128, 128), (130, 256), (384, 512), (8192, 512)])
def test_steps_are_deep_but_not_for_zeros(group: int, columns: int) -> None:
    depth, found = steps(group, 2, "cuda:sm_80")
    assert found == columns and depth % columns == 0 and group <= depth < group + columns


def large(bits: int) -> QuantTensor:
    codes = tile.Packed.empty((4096, 4096), tile.dtype(f"u{bits}"))
    return QuantTensor(codes, Parameter(np.ones((4096, 1), np.float16), (1, 4096)))


def test_few_bits_are_counted_and_many_are_multiplied() -> None:
    """On processors that count them; at few rows, which wait for weights, up to more of them."""
    for target, m, most in (("cuda:sm_80", 16, 4), ("cuda:sm_90a", 4096, 2), ("cuda:sm_120a", 16, 0)):
        for bits in (1, 2, 3, 4, 8):
            found = chosen(large(bits), target, f"i{max(bits, 2)}", m, False)
            assert (found is not None) == (bits <= most), (target, m, bits)
    assert chosen(large(8), "cuda:sm_90a", "s7", 4096, False)  # f16 has no kernel for it


def test_what_cannot_be_counted_is_said() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 64)).astype(np.float16), weight(rng, "u2", 16, 64, 32)
    for target, of, x_dtype, message in (
            ("cuda:sm_80", w, None, "whole numbers"), ("hip:gfx942", w, "f8e4m3", "whole numbers"),
            ("cuda:sm_80", weight(rng, "f6e3m2", 16, 64, 32), "i4", "multiples of a step")):
        with tile.target(f"emulate:{target}"), pytest.raises(TargetError, match=message):
            ops.mpgemm(x, of, x_dtype=x_dtype, decomposition="bitplane_popc")
    long = QuantTensor(tile.Packed.empty((1, 70000), tile.dtype("u8")))
    with pytest.raises(TargetError, match="groups of 70000"):
        chosen(long, "cuda:sm_80", "i8", 1, True)


@pytest.mark.skipif(clang.version() is None, reason="ziglang is not installed")
def test_words_are_counted_by_one_instruction_each() -> None:
    """AMD's adds what it counts, for one plane of x after the other: all pairs of planes took clang too long. Words
    come 16 bytes at a time, nothing goes through local memory."""
    code = lowered("hip:gfx942", 8, 8)
    assert len(re.findall(r"\bv_bcnt_u32_b32", code.assembly)) == 8 * 4 * 128 * 8 // 64
    assert "buffer_load_dwordx4" in code.assembly and "ds_" not in code.assembly
    assert code.report["spills"] == 0 and code.report["stack_bytes"] == 0


def lowered(target: str, bits: int, m: int) -> Any:
    """The kernel for planes of so many bits on either side, of long groups."""
    w = planes(weight(np.random.default_rng(0), f"u{bits}", 256, 1024, 1024), target)
    ones = np.ones((1, m), np.float32)
    return bitplane_kernel.lower(np.zeros((bits, m, 32), np.uint32), w.words, w.codes, ones, ones, w.scale,
                                 np.empty((m, 256), np.float32), **held(target, w.columns, 4, min(m, 64)), XBITS=bits,
                                 BITS=bits, GROUP=w.depth // w.columns, STAGES=stages(2 * bits), BIPOLAR=False,
                                 ZERO=0.0, ACT=None, target=target)


@pytest.mark.skipif(nvrtc.find() is None or sass.find() is None, reason="NVRTC or nvdisasm is not installed")
@pytest.mark.parametrize("target", ["cuda:sm_80", "cuda:sm_90a"])
def test_bits_go_into_products_as_they_lie(target: str) -> None:
    """Nothing is taken apart, exchanged or spilled, and words are copied 16 bytes at a time."""
    code = lowered(target, 2, 64)
    assert code.report["spills"] == 0 and code.report["stack_bytes"] == 0
    loop = sass.classes(sass.main_loop(code.assembly, code.rendered.name))
    products = {"BGMMA": 8} if target == "cuda:sm_90a" else {"BMMA": 64}  # by four warps, 64 rows of x at once
    assert products.items() <= loop.items() and not {"POPC", "STS", "PRMT", "LDG"} & loop.keys()
    words = code.thread.params[1]
    copies = [op.attrs["lanes"] for op in code.thread.walk() if op.name == "st_async" and words in op.operands]
    assert set(copies) == set() if target == "cuda:sm_90a" else set(copies) == {4}
