"""The interpreter of PTX itself: control, memory, mistakes that it reports, arithmetic against Python's."""
from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilelang.backends.emulator.ptx import numbers as n
from tilelang.backends.emulator.ptx.parse import PtxError
from tilelang.backends.emulator.ptx.run import run
from tilelang.backends.emulator.run import Buffer
from tilelang.ir.elementwise import odd_fma

U32 = st.integers(0, 2**32 - 1)
F32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def launch(body: str, threads: int = 64, size: int = 64, shared: int = 256, programs: int = 1) -> np.ndarray[Any, Any]:
    """Runs `body`, which finds its thread in %t, its own word of the output at %o, and may use %r, %p, %q."""
    text = f"""
.version 8.0
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 smem[];
.visible .entry k(.param .u64 k_param_0, .param .u32 k_param_1)
.maxntid 1024, 1, 1
{{
  .reg .pred %p<4>; .reg .b32 %r<8>; .reg .b32 %t; .reg .b64 %o; .reg .b64 %d<4>;
  ld.param.u64 %o, [k_param_0];
  cvta.to.global.u64 %o, %o;
  mov.u32 %t, %tid.x;
  mov.u32 %r7, %ctaid.x;
  mad.lo.s32 %r7, %r7, {threads}, %t;
  mul.wide.u32 %d0, %r7, 4;
  add.s64 %o, %o, %d0;
  {body}
}}
"""
    out = np.zeros(size, np.uint32)
    run(text, "k", [Buffer(out), np.uint32(7)], programs=programs, threads=threads, shared_bytes=shared)
    return out


T = np.arange(64)


def test_threads_part_and_meet() -> None:
    """A loop whose length differs by thread, with a branch inside, then a shuffle that all must reach."""
    got = launch("""
  mov.u32 %r0, 0; mov.u32 %r1, 0;
loop:
  setp.ge.u32 %p0, %r0, %t;
  @%p0 bra done;
  and.b32 %r2, %r0, 1;
  setp.eq.s32 %p1, %r2, 0;
  @!%p1 bra odd;
  add.s32 %r1, %r1, %r0;
odd:
  add.s32 %r0, %r0, 1;
  bra.uni loop;
done:
  shfl.sync.bfly.b32 %r3|%p2, %r1, 1, 31, -1;
  st.global.u32 [%o], %r3;
  ret;""")
    np.testing.assert_array_equal(got, [sum(range(0, t ^ 1, 2)) for t in T])


def test_a_collective_in_two_branches_waits_for_the_warp() -> None:
    """Half of each warp comes to the shuffle on another way; a guarded store and an early exit."""
    got = launch("""
  and.b32 %r0, %t, 1;
  setp.eq.s32 %p0, %r0, 0;
  mov.u32 %r1, %t;
  @%p0 bra join;
  add.s32 %r1, %r1, 100;
join:
  shfl.sync.idx.b32 %r2, %r1, 1, 31, -1;
  setp.lt.u32 %p1, %t, 40;
  @%p1 st.global.u32 [%o], %r2;
  @%p1 ret;
  st.global.u32 [%o], 5;
  ret;""")
    np.testing.assert_array_equal(got, np.where(T < 40, np.where(T < 32, 101, 133), 5))


def test_blocks_barriers_and_shared_memory() -> None:
    got = launch("""
  mov.u32 %r0, smem;
  shl.b32 %r1, %t, 2;
  add.s32 %r1, %r0, %r1;
  st.shared.u32 [%r1], %r7;
  bar.sync 0;
  xor.b32 %r2, %t, 33;
  shl.b32 %r2, %r2, 2;
  add.s32 %r2, %r0, %r2;
  ld.shared.u32 %r3, [%r2];
  st.global.u32 [%o], %r3;
  ret;""", programs=3, size=192)
    np.testing.assert_array_equal(got, np.concatenate([64 * p + (T ^ 33) for p in range(3)]))


def test_a_part_of_a_warp() -> None:
    got = launch("shfl.sync.down.b32 %r0, %t, 1, 31, -1;\nst.global.u32 [%o], %r0;\nret;", threads=5, size=5)
    np.testing.assert_array_equal(got, [1, 2, 3, 4, 0xA5A5A5A5])


def test_barriers_of_some_warps() -> None:
    """Two warps of four meet, one after the other of two barriers, while the others exit."""
    got = launch("""
  setp.ge.u32 %p0, %t, 64;
  @%p0 bra done;
  mov.u32 %r0, smem;
  shl.b32 %r1, %t, 2;
  add.s32 %r1, %r0, %r1;
  st.shared.u32 [%r1], %t;
  bar.sync 1, 64;
  xor.b32 %r2, %t, 33;
  shl.b32 %r2, %r2, 2;
  add.s32 %r2, %r0, %r2;
  ld.shared.u32 %r3, [%r2];
  st.global.u32 [%o], %r3;
  bar.sync 1, 64;
done:
  ret;""", threads=128, size=128)
    np.testing.assert_array_equal(got[:64], T ^ 33)


REGISTERS = """
  setp.ge.u32 %p0, %t, 128;
  @%p0 bra others;
  setmaxnreg.inc.sync.aligned.u32 {};
  st.global.u32 [%o], 1;
  ret;
others:
  setmaxnreg.dec.sync.aligned.u32 {};
  st.global.u32 [%o], 2;
  ret;"""


def test_registers_change_hands() -> None:
    """256 threads begin with 256 registers each, 512 with 128."""
    got = launch(REGISTERS.format(128, 128), threads=512, size=512)
    np.testing.assert_array_equal(got, np.where(np.arange(512) < 128, 1, 2))
    for more, least in ((248, 88), (168, 112)):  # 3 (128 - 88) = 248 - 128
        launch(REGISTERS.format(more, least), threads=512, size=512)
    with pytest.raises(PtxError, match="128 threads wait for others that never come"):
        launch(REGISTERS.format(256, 88), threads=512, size=512)


@pytest.mark.parametrize(("body", "message"), [
    ("setp.lt.u32 %p0, %t, 32; @%p0 ret; bar.sync 1, 64; ret;", "32 threads wait for others"),
    ("bar.sync 1, 32; ret;", "64 threads come to a barrier of 32"),
    ("bar.sync 1, 48; ret;", "whole warps of 32"),
    ("bar.sync 16, 64; ret;", "a number below 16"),
    ("bar.sync %t, 64; ret;", "is not covered"),
    ("setmaxnreg.dec.sync.aligned.u32 20; ret;", "a multiple of 8 from 24 to 256"),
    ("setmaxnreg.dec.sync.aligned.u32 24; ret;", "not made of whole groups of 128"),
    ("vote.sync.any.pred %p0, %p1, -1;", "`vote.sync.any.pred` is not covered"),
    ("add.rn.relu.f32 %r0, %r1, %r2;", "`.relu` is not covered"),
    ("mma.sync.aligned.m16n8k8.row.row.f32.f16.f16.f32 {%r0}, {%r1}, {%r2}, {%r3};", "is not covered"),
    ("mov.u32 %r0, %clock;", "`%clock` is not covered"),
    ("st.global.u32 [%o+256], 1; ret;", "64 threads access 4 bytes outside"),
    ("st.global.u32 [%o+-4], 1; ret;", "1 threads access 4 bytes outside"),
    ("st.global.u16 [%o+1], 1; ret;", "misaligned"),
    ("st.shared.u32 [%t], 1; ret;", "outside every buffer of shared"),
    ("setp.lt.u32 %p0, %t, 32; @%p0 ret; bar.sync 0; ret;", "32 threads wait for others"),
    ("setp.lt.u32 %p0, %t, 3; @%p0 ret; shfl.sync.idx.b32 %r0, %t, 1, 31, -1; ret;", "29 threads wait for others"),
    ("shfl.sync.idx.b32 %r0, %t, 1, 31, 1; ret;", "lane 1 is not in its own member mask"),
    ("mov.u32 %r0, smem; shl.b32 %r1, %t, 2; add.s32 %r0, %r0, %r1; cp.async.ca.shared.global [%r0], [%o], 4; ret;",
     "async copies are under way"),
])
def test_mistakes_are_named(body: str, message: str) -> None:
    with pytest.raises(PtxError) as error:
        launch(body)
    assert message in str(error.value)


@pytest.mark.parametrize(("more", "least", "message"), [
    (120, 24, "128 registers take 120"), (128, 136, "128 registers drop to 136"),
])
def test_registers_change_the_other_way(more: int, least: int, message: str) -> None:
    with pytest.raises(PtxError, match=message):
        launch(REGISTERS.format(more, least), threads=512, size=512)


def test_arguments_must_fit() -> None:
    text = ".visible .entry k(.param .u32 k_param_0)\n{ ret; }"
    for args, message in (([], "takes 1 arguments"), ([np.int64(1)], "wrong size")):
        with pytest.raises(PtxError, match=message):
            run(text, "k", args, threads=32)
    with pytest.raises(PtxError, match="no kernel `j`"):
        run(text, "j", [], threads=32)


# -- arithmetic -------------------------------------------------------------------------------------------------------
def u32(*values: int) -> list[np.ndarray[Any, Any]]:
    return [np.array([v], np.uint32) for v in values]


@given(F32, F32, F32, st.sampled_from(["rn", "rz", "rm", "rp"]))
def test_fused_sums_round_the_exact_value(a: float, b: float, c: float, mode: str) -> None:
    true = Fraction(a) * Fraction(b) + Fraction(c)
    with np.errstate(all="ignore"):
        got = n.to_f32(odd_fma(*(np.array([v], np.float32) for v in (a, b, c))), mode)[0]
        below, above = np.nextafter(got, np.float32(-np.inf)), np.nextafter(got, np.float32(np.inf))
    if not all(map(math.isfinite, (got, below, above))):
        assert abs(true) > 3.4e38
        return
    value, low, high = (Fraction(float(x)) for x in (got, below, above))
    assert {"rn": abs(value - true) <= min(true - low, high - true) or value == true,
            "rz": abs(value) <= abs(true) and low <= true <= high, "rm": value <= true < high,
            "rp": low < true <= value}[mode]


@given(U32, U32, st.integers(0, 70), st.integers(0, 70))
def test_bit_fields(a: int, b: int, at: int, length: int) -> None:
    field = (1 << length) - 1
    assert n.extract(*u32(a, at, length))[0] == a >> at & field
    assert n.insert(*u32(a, b, at, length))[0] == (b & ~(field << at) | (a & field) << at) % 2**32
    assert n.shift_left(*u32(a, at))[0] == (a << at) % 2**32 and n.shift_right(*u32(a, at))[0] == a >> at


@given(U32, U32, st.integers(0, 0x7777))
def test_permuted_bytes(a: int, b: int, selector: int) -> None:
    source = a.to_bytes(4, "little") + b.to_bytes(4, "little")
    want = bytes(source[selector >> 4 * i & 7] for i in range(4))
    assert n.permute(*u32(a, b, selector & 0x7777))[0] == int.from_bytes(want, "little")


@given(U32, U32, U32, st.integers(0, 255))
def test_any_function_of_three_bits(a: int, b: int, c: int, table: int) -> None:
    want = sum((table >> (4 * (a >> i & 1) + 2 * (b >> i & 1) + (c >> i & 1)) & 1) << i for i in range(32))
    assert n.lookup(*u32(a, b, c, table))[0] == want


@given(st.integers(-2**63, 2**63 - 1), st.integers(-2**63, 2**63 - 1))
def test_the_high_half_of_a_product(a: int, b: int) -> None:
    x, y = np.array([a]), np.array([b])
    with np.errstate(all="ignore"):
        assert n.multiply_high(x, y)[0] == a * b >> 64
        assert n.multiply_high(x.view(np.uint64), y.view(np.uint64))[0] == (a % 2**64) * (b % 2**64) >> 64
    assert n.leading_zeros(x.view(np.uint64))[0] == 64 - (a % 2**64).bit_length()
