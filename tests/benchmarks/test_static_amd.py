"""What the static benchmark says of AMD's machine code keeps holding."""
from __future__ import annotations

import pytest

from benchmarks import gcn, static_amd
from tilelang.backends.hip import clang

compiles = pytest.mark.skipif(clang.version() is None, reason="ziglang is not installed")
TEXT = """
other:
.LBB0_1:
\tv_mfma_f32_16x16x32_bf16 a[0:3], v[0:3], v[4:7], a[0:3]
\ts_cbranch_scc0 .LBB0_1
.Lfunc_end0:
kernel:                                 ; @kernel
\tv_mov_b32_e32 v0, 0                   ; a comment
.LBB1_1:                                ; =>This Inner Loop Header: Depth=1
\ts_waitcnt vmcnt(0)
\tds_read_b128 v[0:3], v4
.LBB1_2:
\tv_mfma_f32_32x32x16_bf16 a[0:15], v[0:3], v[4:7], a[0:15]
\tv_exp_f32_e32 v5, v5
\ts_cbranch_scc1 .LBB1_2
\ts_branch .LBB1_1
.Lfunc_end1:
"""


def test_the_main_loop_is_the_innermost_with_products() -> None:
    loop = gcn.main_loop(TEXT, "kernel")
    assert [i.split()[0] for i in loop] == ["v_mfma_f32_32x32x16_bf16", "v_exp_f32_e32", "s_cbranch_scc1"]
    assert gcn.products(loop) == 2
    assert gcn.classes(loop) == {"mfma": 1, "float": 1, "scalar": 1}
    assert not gcn.main_loop(TEXT, "absent")


@compiles
@pytest.mark.parametrize("arch", static_amd.ARCHS)
@pytest.mark.parametrize("name", ["GEMM bf16 256x256x64, b transposed", "GEMM bf16 256x256x64"])
def test_the_loop_of_a_matmul(name: str, arch: str) -> None:
    """The goals: nothing spills, and at most 1.3 times as many instructions as HipKittens' loop."""
    code = static_amd.cases()[name].lower(arch)
    loop = static_amd.main_loop(code)
    assert code.report["spills"] == code.report["stack_bytes"] == 0 and gcn.products(loop) == 64
    assert len(loop) / gcn.products(loop) <= 1.3 * gcn.PATTERNS["gemm", arch].share
    if "transposed" in name:
        assert gcn.classes(loop)["ds_read"] == gcn.PATTERNS["gemm", "gfx950"].counts["ds_read"]


@compiles
def test_the_loop_of_attention_by_way_of_registers() -> None:
    code = static_amd.cases()["attention bf16 d=128"].lower("gfx942")
    loop = static_amd.main_loop(code)
    assert code.report["spills"] == code.report["stack_bytes"] == 0
    assert len(loop) / gcn.products(loop) <= 1.3 * gcn.PATTERNS["attention", "gfx942"].share


@compiles
def test_the_loop_of_attention() -> None:
    """As for matmul; exponentials are one instruction each, sums and products of f32 two at once."""
    code = static_amd.cases()["attention bf16 d=128"].lower("gfx950")
    loop = static_amd.main_loop(code)
    assert code.report["spills"] == code.report["stack_bytes"] == 0 and gcn.products(loop) == 64
    assert len(loop) / gcn.products(loop) <= 1.3 * gcn.PATTERNS["attention", "gfx950"].share
    assert sum(i.startswith("v_exp_f32") for i in loop) == 64 * 32 / 64 + 1
    assert sum(i.startswith("v_mfma_f32_32x32x16_bf16") for i in loop) == 32
