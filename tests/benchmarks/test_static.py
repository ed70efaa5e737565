"""What the static benchmark says of the GEMM on sm_80 keeps holding."""
from __future__ import annotations

from functools import cache

import pytest

from benchmarks import sass, static
from tilelang.backends.cuda import nvrtc

needs_tools = pytest.mark.skipif(nvrtc.find() is None or sass.find() is None,
                                 reason="nvidia-cuda-nvrtc or nvidia-cuda-nvdisasm is not installed")
GEMM = "GEMM f16 128x128x32"
TEXT = """
.text.other:
.L_x_0:
        /*0000*/                   HMMA.16816.F32 R0, R4, R8, R0 ;
        /*0010*/                   BRA `(.L_x_0);
.text.kernel:
.L_x_1:
        /*0000*/                   FADD R1, R1, R2 ;
.L_x_2:
        /*0010*/              @!P0 BRA `(.L_x_3) ;
        /*0020*/                   LDSM.16.M88.4 R4, [R3] ;
.L_x_3:
        /*0030*/                   HMMA.16816.F32 R0, R4, R8, R0 ;
        /*0040*/                   SHF.L.U32 R4, R4, 0x17, RZ ;
        /*0050*/                   MUFU.EX2 R5, R5 ;
        /*0060*/               @P2 CALL.REL.NOINC `(.L_x_4) ;
        /*0070*/                   BRA `(.L_x_2) ;
.L_x_4:
        /*0080*/               @P0 BRA `(.L_x_1) ;
.L_x_5:
        /*0090*/                   BRA `(.L_x_5);
"""


def test_the_main_loop_is_the_innermost_with_products() -> None:
    loop = sass.main_loop(TEXT, "kernel")
    assert [*map(sass.opcode, loop)] == ["BRA", "LDSM", "HMMA", "SHF", "MUFU", "CALL", "BRA"]
    assert [*map(sass.opcode, sass.matrix_work(loop))] == ["BRA", "LDSM", "HMMA", "CALL", "BRA"]
    assert not sass.main_loop(TEXT, "absent")


@cache
def gemm() -> static.Measured:
    return static.measure(static.cases()[GEMM], "sm_80")


@needs_tools
def test_the_goals_hold() -> None:
    row = gemm()
    assert not static.missed(row)
    assert row.conversions == 0 and row.ratio is not None and row.ratio <= 1.3 and row.wide == 1
    assert row.threads == 128 and row.shared_bytes == 3 * 2 * (128 * 32 + 32 * 128)


@needs_tools
def test_the_hand_written_loop_does_the_same_products() -> None:
    counted = sass.classes(static.reference_loop("gemm", "sm_80"))
    assert counted["HMMA"] == 64 and counted["LDSM"] == 16 and counted["LDGSTS"] == 8


@needs_tools
def test_hopper_multiplies_from_shared_memory() -> None:
    """Four stages and their barriers, nothing spilled; in the main loop no operand passes through registers, other
    warps copy, and no barrier stops the block."""
    code = static.cases()["GEMM f16 128x256x64"].lower("sm_90a")
    assert code.report["spills"] == 0 and code.report["shared_bytes"] == 4 * 2 * (128 * 64 + 64 * 256) + 128
    loop = sass.main_loop(sass.disassemble(code.cubin), code.rendered.name)
    found = sass.classes(loop)
    assert found["HGMMA"] == 4 and found["SYNCS"] == 2 and found["WARPGROUP"] == 2 and found.total() <= 56
    assert not {"HMMA", "LDSM", "STS", "LDL", "STL", "LDGSTS", "LDG", "BAR", "UTMALDG", "ELECT"} & found.keys()
    assert sass.products(loop) == 4 * 64 * 256 * 16 / 4 / (16 * 8 * 16)


def test_a_store_in_the_loop_is_a_conversion() -> None:
    """Without copies by the hardware (before sm_80) operands come through registers."""
    case = static.cases()[GEMM]
    assert static.conversions(case.lower("sm_80")) == 0
    assert static.conversions(case.lower("sm_75")) > 0
