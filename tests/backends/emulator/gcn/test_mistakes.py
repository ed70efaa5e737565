"""Mistakes in AMD's prelude, which the emulator's first tier cannot see, change what its assembly computes."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.backends.emulator.gcn import texts
from tests.backends.emulator.gcn.tiers import arguments, needs_clang, on_assembly, on_cpu, outputs
from tests.backends.emulator.ptx.test_mistakes import planted
from tilelang.backends.emulator.gcn.parse import GcnError
from tilelang.backends.emulator.gcn.run import run
from tilelang.backends.emulator.run import Buffer
from tilelang.backends.hip import clang

pytestmark = needs_clang
REFUSED = {"no wait for a copy": "under way when the kernel ends"}
MISTAKES = {  # file, what stands there, what a slip would make of it, the processor and the wrapper that show it
    "operands swapped": ("tl_matrix.h", "operand<OPERAND>(a, j), operand<OPERAND>(b, k)",
                         "operand<OPERAND>(b, k), operand<OPERAND>(a, j)", "gfx90a", "mfma_16x16x16_f16"),
    "registers of A only once": ("tl_matrix.h", "a, j + REGISTERS, b", "a, j, b", "gfx942", "mfma_16x16x64_i8"),
    "registers of B counted twice": ("tl_matrix.h", "TL_MFMA_TWICE(16x16x32_f16, 16x16x16_f16, 4)",
                                     "TL_MFMA_TWICE(16x16x32_f16, 16x16x16_f16, 2)", "gfx942", "mfma_16x16x32_f16"),
    "kinds of f8 exchanged": ("tl_matrix.h", "TL_MFMA_F8(e4m3_e5m2, fp8_bf8)", "TL_MFMA_F8(e4m3_e5m2, bf8_fp8)",
                              "gfx950", "mfma_16x16x32_e4m3_e5m2"),
    "f16 for bf16": ("tl_matrix.h", "float16, short4, f32_32x32x8bf16_1k", "float16, half4, f32_32x32x8f16", "gfx942",
                     "mfma_32x32x8_bf16"),
    "accumulator forgotten": ("tl_matrix.h", "operand<D>(d, i), 0, 0, 0", "D{}, 0, 0, 0", "gfx950",
                              "mfma_16x16x4_f64"),
    "scales exchanged": ("tl_matrix.h", "0, by_a, 0, by_b", "0, by_b, 0, by_a", "gfx950", "mfma_16x16x128_e4m3_e2m1"),
    "the scale of another byte": ("tl_matrix.h", "0, by_a, 0, by_b", "0, by_a, 1, by_b", "gfx950",
                                  "mfma_32x32x64_e3m2_e2m1"),
    "formats of 6 bits exchanged": ("tl_matrix.h", "TL_SMALL_OF(e2m3, 2, 6)", "TL_SMALL_OF(e2m3, 3, 6)", "gfx950",
                                    "mfma_16x16x128_e2m3_e5m2"),
    "half of f8": ("tl_matrix.h", "A_TYPE, A_WORDS, e5m2, 1, 8)", "A_TYPE, A_WORDS, e5m2, 1, 4)", "gfx950",
                   "mfma_32x32x64_e2m1_e5m2"),
    "mask 2 by the pattern of 3": ("tl.h", "within_row<0x4e>", "within_row<0x1b>", "gfx942", "shuffle_u32"),
    "mask 8 rotated by 4": ("tl.h", "within_row<0x128>", "within_row<0x124>", "gfx942", "shuffle_u32"),
    "mask 15 by half rows": ("tl.h", "within_row<0x140>", "within_row<0x141>", "gfx90a", "shuffle_u32"),
    "mask 16 swizzled by 8": ("tl.h", "swizzled<16>", "swizzled<8>", "gfx950", "shuffle_u32"),
    "rows for halves of a wave": ("tl.h", "__builtin_amdgcn_permlane32_swap(a, b,",
                                  "__builtin_amdgcn_permlane16_swap(a, b,", "gfx950", "swap_u32"),
    "halves exchanged the other way": ("tl.h", "__builtin_amdgcn_permlane32_swap(a, b,",
                                       "__builtin_amdgcn_permlane32_swap(b, a,", "gfx950", "swap_u16"),
    "an exchange without the upper words": ("tl.h", "swapped<DISTANCE>(u32(bits<u64>(a) >> 32)",
                                            "swapped<DISTANCE>(u32(bits<u64>(a))", "gfx950", "swap_double"),
    "an exchange of the wrong registers": ("tl.h", "exchange<DISTANCE>(a, b,", "exchange<DISTANCE>(b, a,", "gfx942",
                                           "swap_i64"),
    "lanes counted in words": ("tl.h", "ds_bpermute(source << 2, v)", "ds_bpermute(source << 3, v)", "gfx942",
                               "shuffle_u16"),
    "lane without the upper half": ("tl.h", "__builtin_amdgcn_mbcnt_hi(~0u, __builtin_amdgcn_mbcnt_lo(~0u, 0))",
                                    "__builtin_amdgcn_mbcnt_lo(~0u, 0)", "gfx942", "shuffle_i8"),
    "from above for below": ("tl.h", "TL_SHUFFLE(shfl_up, from_below)", "TL_SHUFFLE(shfl_up, from_above)", "gfx942",
                             "shuffle_double"),
    "upper word of 8 bytes lost": ("tl.h", "u64(FROM(u32(bits<u64>(v) >> 32), argument)) << 32",
                                   "u64(FROM(u32(bits<u64>(v)), argument)) << 32", "gfx942", "shuffle_i64"),
    "the other extreme": ("tl.h", "TL_FETCH(max, __hip_atomic_fetch_max)", "TL_FETCH(max, __hip_atomic_fetch_min)",
                          "gfx942", "atomic_i32"),
    "bits set for kept": ("tl.h", "TL_FETCH(and, __hip_atomic_fetch_and)", "TL_FETCH(and, __hip_atomic_fetch_or)",
                          "gfx942", "bits"),
    "compared for stored": ("tl.h", "strong(p, &seen, wanted,", "strong(p, &wanted, seen,", "gfx90a", "atomic_u64"),
    "windows without a mask": ("tl.h", "load(w.words, mask ? off * int(sizeof(T)) : OUTSIDE)",
                               "load(w.words, off * int(sizeof(T)))", "gfx942", "window_float_4"),
    "a window in elements": ("tl.h", "const i64 bytes = extent * i64(sizeof(T));", "const i64 bytes = extent;",
                             "gfx942", "window_u16_2"),
    "bytes transposed by pairs": ("tl_matrix.h", "ds_read_tr8_b64_v2i32((__attribute__((address_space(3))) int2",
                                  "ds_read_tr16_b64_v4i16((__attribute__((address_space(3))) short4", "gfx950",
                                  "transposed_u8"),
    "copies from the first place": ("tl.h", "start + first * int(sizeof(T))", "start", "gfx950", "dma_4"),
    "one copy too many under way": ("tl.h", '"i"(COUNT)', '"i"(COUNT + 1)', "gfx950", "dma_1"),
    "no wait for a copy": ("tl.h", 'asm volatile("s_waitcnt vmcnt(%0)" ::"i"(COUNT) : "memory");', "", "gfx950",
                           "dma_4"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_wrapper_shows(name: str, tmp_path: Path) -> None:
    file, right, wrong, arch, kernel = MISTAKES[name]
    text = texts.HEADER + {**texts.common(), **texts.own(arch)}[kernel]
    args = arguments(kernel, text, np.random.default_rng(1))
    want = outputs(on_cpu(text), kernel, args)
    tier = on_assembly(text, arch, planted(tmp_path, file, right, wrong, clang.INCLUDE))
    if name in REFUSED:
        with pytest.raises(GcnError, match=REFUSED[name]):
            outputs(tier, kernel, args)
        return
    assert not all(np.array_equal(g, w) for g, w in zip(outputs(tier, kernel, args), want, strict=True))


def listing(*code: str) -> str:
    """A kernel of these instructions, with a pointer as its argument."""
    return "\n".join(["k:", *(f"\t{line}" for line in code), "\ts_endpgm", ".amdhsa_kernel k",
                      ".amdhsa_user_sgpr_kernarg_segment_ptr 1", ".amdhsa_user_sgpr_count 2",
                      ".amdhsa_group_segment_fixed_size 256"])


@pytest.mark.parametrize(("code", "wanted"), [
    (["v_dance_b32 v0, v1"], "`v_dance_b32` is not covered"), (["s_trap 2"], "an assertion of the kernel failed"),
    (["s_load_dwordx2 s[2:3], s[0:1], 0x0", "v_lshlrev_b32_e32 v0, 3, v0", "global_store_dword v0, v0, s[2:3]"],
     "lane 32 accesses 4 bytes outside"),
    (["ds_read_b32 v1, v0 offset:200"], "lane 53 accesses 4 bytes outside"),
    (["s_mov_b64 exec, 0xff", "v_mfma_f32_16x16x16_f16 v[0:3], v[4:5], v[6:7], v[0:3]"], "needs all lanes"),
    ([".L1:", "s_branch .L1"], "still runs after")])
def test_what_must_not_be_is_refused(code: list[str], wanted: str) -> None:
    with pytest.raises(GcnError, match=wanted):
        run(listing(*code), "k", [Buffer(np.zeros(64, np.uint32))])


def test_a_block_is_one_wave() -> None:
    with pytest.raises(GcnError, match="one wave"):
        run(listing("s_nop 0"), "k", [Buffer(np.zeros(64, np.uint32))], threads=128)


def test_the_blocks_of_a_grid_have_their_numbers() -> None:
    out = np.zeros(3, np.uint32)
    run(listing("s_load_dwordx2 s[4:5], s[0:1], 0x0", "s_lshl_b32 s3, s2, 2", "v_mov_b32_e32 v1, s3",
                "v_mov_b32_e32 v2, s2", "s_mov_b64 exec, 1", "global_store_dword v1, v2, s[4:5]"), "k", [Buffer(out)],
        programs=3)
    assert out.tolist() == [0, 1, 2]
