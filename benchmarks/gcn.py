"""Reading AMD's assembly: main loops and classes of instructions, and the loops they are compared with."""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_LABEL = re.compile(r"([.\w$]+):")
_INSTRUCTION = re.compile(r"\t([a-z]\w*)\b\s*([^;]*)")
_PRODUCT = re.compile(r"v_mfma_(?:scale_)?\w+?_(\d+)x(\d+)x(\d+)")
_CLASSES = (("mfma", "v_mfma"), ("ds_read", "ds_read"), ("ds_write", "ds_write"), ("global", "(buffer|global)_"),
            ("shuffle", r"ds_swizzle|ds_bpermute|v_permlane|.*_dpp"), ("wait", "s_waitcnt|s_barrier|s_nop"),
            ("priority", "s_setprio"), ("scalar", "s_"),
            ("float", r"v_(pk_)?(add|sub|mul|fma|fmac|max3?|min|exp|log|rcp|ldexp|cvt|rndne|med3)\w*_(f|bf|i)(16|32)"),
            ("vector", "v_"), ("other", ""))


def main_loop(listing: str, kernel: str) -> list[str]:
    """The instructions of the smallest range from a label to a branch back to it that multiplies matrices; none for a
    kernel without one."""
    code: list[str] = []
    labels: dict[str, int] = {}
    here, best = False, list[str]()
    for line in listing.splitlines():
        if label := _LABEL.match(line):
            here = here and label[1].startswith(".L") and not label[1].startswith(".Lfunc_end") or label[1] == kernel
            labels[label[1]] = len(code)
        elif here and (found := _INSTRUCTION.match(line)):
            code.append(f"{found[1]} {found[2].strip()}".strip())
            if found[1].startswith(("s_cbranch", "s_branch")) and found[2].strip() in labels:
                body = code[labels[found[2].strip()]:]
                if products(body) and (not best or len(body) < len(best)):
                    best = body
    return best


def products(loop: Sequence[str]) -> float:
    """Matrix products of a loop, in units of 16 x 16 x 32."""
    shapes = (tuple(map(int, m.groups())) for m in map(_PRODUCT.match, loop) if m)
    return sum(m * n * k for m, n, k in shapes) / (16 * 16 * 32)


def classes(loop: Sequence[str]) -> Counter[str]:
    """How many instructions of each class there are."""
    return Counter(next(name for name, form in _CLASSES if re.match(form, i)) for i in loop)


@dataclass(frozen=True)
class Pattern:
    """What one wave executes for one block of k (of keys) in a loop of another's: counts by class.

    The loops are those of HipKittens (github.com/HazyResearch/HipKittens, commit f09e968). Nothing was compiled: what
    moves data, multiplies and synchronises was counted call by call from the source and the sizes of its tiles; a
    constant offset is free, a base that moves is one scalar addition, each copy to shared memory sets m0."""

    source: str
    counts: dict[str, int]
    products: float

    @property
    def share(self) -> float:
        """Instructions for each 16 x 16 x 32 product."""
        return sum(self.counts.values()) / self.products


PATTERNS = {
    # 128 x 64 of the result to a wave, two blocks of 64 along k in an iteration, of which this is one. mfma: 8 x 4 x
    # (64 / 32). ds_read: (128 + 64) rows x 128 bytes / (64 lanes x 16 bytes). global: 2 x 256 rows x 128 bytes /
    # (512 lanes x 16 bytes), each with m0 and an offset. Of each of the four quarters: two barriers, two priorities,
    # one wait (one has two); the counter, comparison and branch of the loop are for two.
    ("gemm", "gfx950"): Pattern("analysis/bf16_gemm/mi350x/kernel_8192.cpp", {
        "mfma": 64, "ds_read": 24, "global": 8, "wait": 8 + 5, "priority": 8, "scalar": 8 + 8 + 2}, 64),
    # 16 x 16 x 16 products: 8 x 4 x 4; registers of 8 bytes by lane and 16 columns: twice as many ds_read; copies by
    # way of registers, written by 8 bytes (`ds_write_b64`); four steps of two barriers, two priorities and one wait,
    # and the wait for what comes from global memory.
    ("gemm", "gfx942"): Pattern("analysis/bf16_gemm/mi325x/kernel_8192.cpp", {
        "mfma": 128, "ds_read": 48, "global": 8, "ds_write": 16, "wait": 8 + 4 + 1, "priority": 8,
        "scalar": 8 + 3}, 64),
    # 32 queries to a wave, two blocks of 64 keys of 128 in an iteration, of which this is one. mfma: 32 x 32 x 16, (64
    # / 32) x (128 / 16) and (128 / 32) x (64 / 16). ds_read: k 64 x 256 bytes by 16 bytes, v by 8 (transposed).
    # float, for 64 x 32 / 64 elements of a lane: subtraction, exp2, maximum, sum one each, one conversion for two; the
    # test for a new maximum (4) instead of the scaling. shuffle: maximum and sum across the halves of a wave.
    ("attention", "gfx950"): Pattern("analysis/attn/fwd/benchmark/attn_fwd_non_causal.cpp", {
        "mfma": 32, "ds_read": 16 + 32, "global": 4, "wait": 4 + 4, "priority": 2, "scalar": 4 + 4 + 2,
        "float": 32 * 4 + 16 + 4, "shuffle": 4}, 64),
    # Of the branch for CDNA3, commit 1405121. 16 queries to a wave, 64 keys of 128. What the library makes of a call
    # was not read: each count is the fewest instructions that can do it, so the ratio is at most too large. mfma: 16 x
    # 16 x 16, 2 x 4 x 8. ds_read: k and v 64 x 256 bytes each, by 8. global, ds_write: as the GEMM's, k and v. wait:
    # three barriers, and one wait for each of the four moves. float: subtraction, exp2, maximum, sum of 16 scores of a
    # lane, 32 sums rescaled two at once, for each of 4 rows four steps of maximum and of sum across 16 lanes, and
    # difference, exp2, factor. vector: two integer instructions to round a score, one to join two. shuffle: those
    # steps, and 8 registers that change lanes before the second product.
    ("attention", "gfx942"): Pattern("kernels/attn/gqa/kernel.cpp", {
        "mfma": 64, "ds_read": 32 + 32, "global": 8, "ds_write": 16, "wait": 3 + 4, "priority": 4, "scalar": 3,
        "float": 16 * 4 + 16 + 4 * 4 * 2 + 4 * 3, "vector": 16 * 2 + 8, "shuffle": 4 * 4 * 2 + 8}, 32),
}
