"""Instructions of AMD's that move data: which of them kernels become, and what the emulator makes of them."""
from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest

from tests.backends.emulator.texts import output
from tests.backends.hip.test_clang import compiles
from tests.backends.simt import kernels
from tilelang.backends.emulator.run import POLICIES, Buffer, Policy, Result, load
from tilelang.backends.hip import clang
from tilelang.backends.hip.compile import Lowered
from tilelang.backends.hip.target import target
from tilelang.backends.simt.exchange import wavefronts
from tilelang.backends.simt.instructions import plan
from tilelang.backends.simt.stage import buffer_layout
from tilelang.backends.simt.transposed import reader
from tilelang.ir.dtypes import dtype

BYTES = """
#define TL_WARP 64
#include "tl.h"
TL_KERNEL(k, 64)(tl::gptr<const tl::u16> a, tl::gptr<tl::u16> o) {
  TL_SHARED(smem, 512);
  const int t = tl::thread();
  const tl::sptr<tl::u8> s = tl::shared<tl::u8>(smem, 0, 512);
  tl::st<8>(s, t * 8, tl::recast<tl::u8>(tl::ld<4>(a, t * 4, tl::op(1))), tl::op(2));
  tl::barrier(tl::op(3));
  tl::st<4>(o, t * 4, tl::recast<tl::u16>(tl::ld_transposed(s, t * 8, tl::op(4))), tl::op(5));
}
TL_EXPORT(k)
"""
TRANSPOSED = """
#define TL_WARP 64
#include "tl.h"
TL_KERNEL(k, 64)(tl::gptr<const tl::u16> a, tl::gptr<tl::u16> o) {
  TL_SHARED(smem, 512);
  const int t = tl::thread();
  const tl::sptr<tl::u16> s = tl::shared<tl::u16>(smem, 0, 256);
  tl::st<4>(s, t * 4, tl::ld<4>(a, t * 4, tl::op(1)), tl::op(2));
  tl::barrier(tl::op(3));
  const tl::vec<tl::u16, 4> v = tl::ld_transposed(s, t * 4 ADD, tl::op(4));
  tl::st<4>(o, t * 4, v, tl::op(5));
}
TL_EXPORT(k)
"""


def launched(text: str, policy: Policy = "forward") -> tuple[Result, np.ndarray]:
    out = output(256, np.uint16)
    result = load(text).launch("k", [Buffer(np.arange(256, dtype=np.uint16)), out], threads=64, shared_bytes=512,
                               policy=policy)
    return result, out.array.reshape(64, 4)


def test_a_transposed_load() -> None:
    """The formula of ROCm's own instruction tests: rocm-systems, pull request 10175."""
    result, got = launched(TRANSPOSED.replace(" ADD", ""))
    assert not result.findings and result.counters[4].instructions == {"ld_transposed": 1}
    for lane in range(64):
        for n in range(4):
            assert got[lane, n] == ((lane & ~15 | lane >> 2 & 3) + 4 * n) * 4 + (lane & 3)


def test_a_transposed_load_of_bytes() -> None:
    """By Triton's lowering of it (pull request 8525), with eight rows of two lanes each."""
    result, got = launched(BYTES)
    given, found = (x.view(np.uint8).reshape(64, 8) for x in (np.arange(256, dtype=np.uint16), got))
    assert not result.findings
    for lane in range(64):
        for n in range(8):
            assert found[lane, n] == given[(lane & ~15 | lane >> 3 & 1) + 2 * n, lane & 7]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("text", "kinds"), [
    (TRANSPOSED.replace("ADD", "+ 1"), {"misaligned"}), (TRANSPOSED.replace("ADD", "+ 4"), {"bounds-shared"}),
    (TRANSPOSED.replace(" ADD", "").replace("  tl::barrier(tl::op(3));\n", ""), {"race-raw", "uninitialised-shared"})])
def test_slips_of_a_transposed_load(text: str, kinds: set[str], policy: Policy) -> None:
    found = {f.kind for f in launched(text, policy)[0].findings}
    assert found and found <= kinds


def test_staged_operands_are_read_without_bank_conflicts() -> None:
    """Whatever the product and the block, with the reader the layout of the block was searched for."""
    machine = target("hip:gfx950")
    for row in machine.mma:
        size = dtype(row.b).storage.itemsize
        if size > 2 or row.b_atom.contiguous(0) < 8 // size:
            continue
        for shape in ((64, 256), (32, 64), (64, 128), (32, 32)):
            operand = plan(row, 256, shape[1], shape[0], 2, 4).b
            named = reader(operand, size)
            assert named is not None
            place = buffer_layout(operand.shape, size, 512, machine, [operand])
            assert wavefronts(named, place, size, machine.ports, False) == 0, (row.name, shape)


def matmul(arch: str, t: type = np.float16, **consts: int) -> Lowered:
    a, c = np.zeros((256, 256), t), np.zeros((256, 256), np.float32)
    return kernels.matmul.lower(a, a, c, target=f"hip:{arch}", **{"BM": 128, "BN": 128, "BK": 64, **consts})


@compiles
@pytest.mark.parametrize(("t", "load"), [(np.float16, "ds_read_b64_tr_b16"),
                                         (ml_dtypes.float8_e4m3fn, "ds_read_b64_tr_b8")])
def test_a_row_major_operand_is_transposed_by_loads(t: type, load: str) -> None:
    lowered = matmul("gfx950", t)
    loads = re.findall(r"^\tds_read\w+", lowered.assembly, re.MULTILINE)
    assert {x.strip() for x in loads} == {"ds_read_b128", load}
    assert "ds_read_b64_tr_b16" in clang.assembly(TRANSPOSED.replace(" ADD", ""), "gfx950")
