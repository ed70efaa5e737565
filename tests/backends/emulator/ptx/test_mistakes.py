"""Mistakes in the GPU's prelude, which the emulator's other tier cannot see, change what its PTX computes."""
from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.backends.emulator.ptx import gemm
from tests.backends.emulator.ptx.tiers import arguments, needs_nvrtc, on_cpu, on_ptx, outputs, wrapper
from tilelang.backends.cuda import nvrtc
from tilelang.backends.emulator.ptx.parse import PtxError

pytestmark = needs_nvrtc
REFUSED = {  # mistakes that the interpreter itself meets; the others change the result
    "half of the lanes shuffle": "lane 16 is not in its own member mask", "no count of groups": "copies are under way",
    "one group too many pending": "copies are under way", "no commit": "copies are under way",
}
MISTAKES = {  # file, what stands there, what a slip would make of it, the wrapper that shows it
    "operands of A swapped": ("tl_matrix.h", '"r"(reg(a, j)), "r"(reg(a, j + ea)), "r"(reg(a, j + 2 * ea))',
                              '"r"(reg(a, j)), "r"(reg(a, j + 2 * ea)), "r"(reg(a, j + ea))', "mma_m16n8k16_f16"),
    "operands of B swapped": ("tl_matrix.h", '"r"(reg(b, k)), "r"(reg(b, k + eb))',
                              '"r"(reg(b, k + eb)), "r"(reg(b, k))', "mma_m16n8k32_su8"),
    "bf16 for f16": ("tl_matrix.h", "m16n8k16.row.col.f32.f16.f16.f32", "m16n8k16.row.col.f32.bf16.bf16.f32",
                     "mma_m16n8k16_f16"),
    "signs exchanged": ("tl_matrix.h", '"m16n8k32.row.col.s32.s8.u8.s32"', '"m16n8k32.row.col.s32.u8.s8.s32"',
                        "mma_m16n8k32_su8"),
    "accumulators exchanged": ("tl_matrix.h", '{%0, %1}, {%2}, {%3}, {%0, %1};', '{%0, %1}, {%2}, {%3}, {%1, %0};',
                               "mma_m8n8k4_f64"),
    "registers of ldmatrix in another order": ("tl_matrix.h", '"x2", "=r"(w[0]), "=r"(w[1])',
                                               '"x2", "=r"(w[1]), "=r"(w[0])', "rows_2_false_u16"),
    "ldmatrix not transposed": ("tl_matrix.h", '".trans.shared.b16 " LIST ", ["', '".shared.b16 " LIST ", ["',
                                "rows_4_true_u16"),
    "rows of stmatrix": ("tl_matrix.h", "8 * i + (lane >> 2)) + 4", "8 * i + (lane & 7)) + 4", "rows_1_false_u8"),
    "half of the lanes shuffle": ("tl.h", "BUILTIN(0xffffffffu, bits<u32>(v), argument)",
                                  "BUILTIN(0x0000ffffu, bits<u32>(v), argument)", "shuffle_float"),
    "another shuffle": ("tl.h", "TL_SHUFFLE(shfl_xor, __shfl_xor_sync)", "TL_SHUFFLE(shfl_xor, __shfl_down_sync)",
                        "shuffle_i64"),
    "no count of groups": ("tl.h", '"n"(PENDING)', '"n"(7)', "memory_float_4"),
    "one group too many pending": ("tl.h", '"n"(PENDING)', '"n"(PENDING + 1)', "memory_double_2"),
    "no commit": ("tl.h", 'asm volatile("cp.async.commit_group;" ::: "memory");', "", "memory_float_1"),
    "async copy of everything": ("tl.h", "mask ? bytes : 0", "bytes", "memory_u16_8"),
    "unordered maximum": ("tl_math.h", "max.NaN.f32 %0, %1, %2", "min.NaN.f32 %0, %1, %2", "atomic_float"),
    "bits cleared by or": ("tl.h", "return atomicAnd(p, v)", "return atomicOr(p, ~v)", "bits"),
    "the other extreme": ("tl.h", "return atomicMax(p, v)", "return atomicMin(p, v)", "atomic_u32"),
}


def planted(folder: Path, file: str, right: str, wrong: str, prelude: Path = nvrtc.INCLUDE) -> Path:
    """A copy of the prelude with a mistake."""
    copy = Path(shutil.copytree(prelude, folder / "include"))
    text = (copy / file).read_text()
    assert right in text, f"{file} has no longer: {right}"
    (copy / file).write_text(text.replace(right, wrong))
    return copy


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_wrapper_shows(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    file, right, wrong, kernel = MISTAKES[name]
    text = wrapper(kernel)
    args, launch = arguments(kernel, text, rng), {"threads": 32, "shared_bytes": 2048}
    tier = on_ptx(text, include=planted(tmp_path, file, right, wrong))
    want = outputs(on_cpu(text), kernel, args, **launch)
    if name in REFUSED:
        with pytest.raises(PtxError, match=REFUSED[name]):
            outputs(tier, kernel, args, **launch)
        return
    got = outputs(tier, kernel, args, **launch)
    assert not all(np.array_equal(g, w) for g, w in zip(got, want, strict=True))


def test_a_pipelined_product() -> None:
    args = gemm.arguments(128, 64, 160)
    for tier in (on_ptx(gemm.TEXT), on_cpu(gemm.TEXT)):
        np.testing.assert_array_equal(outputs(tier, "gemm", args, **gemm.launch(args))[2], gemm.product(args))


def test_a_pipelined_product_that_waits_too_little(tmp_path: Path) -> None:
    args = gemm.arguments(64, 64, 96)
    tier = on_ptx(gemm.TEXT, include=planted(tmp_path, "tl.h", '"n"(PENDING)', '"n"(PENDING ? PENDING + 1 : 0)'))
    assert not np.array_equal(outputs(tier, "gemm", args, **gemm.launch(args))[2], gemm.product(args))
