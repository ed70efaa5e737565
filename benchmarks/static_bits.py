"""What can be said of products by planes of bits on a GPU without one: `python -m benchmarks.static_bits` prints what
NVRTC and clang made of the kernel of `ops.mpgemm` for rows of x as planned, and what the emulator counted. Needs
nvidia-cuda-nvrtc, nvidia-cuda-nvdisasm and ziglang."""
from __future__ import annotations

import datetime
import re
from itertools import product

import numpy as np

import tilelang as tile
from benchmarks import sass
from benchmarks.static import counted
from tilelang.backends.cuda import nvrtc
from tilelang.backends.hip import clang
from tilelang.ops.mpgemm.gpu_bits import bitplane_kernel, held, planes, stages, together
from tilelang.ops.mpgemm.gpu_plan import Bits, bit_plan
from tilelang.quant import Parameter, QuantTensor

TARGETS = ("cuda:sm_80", "cuda:sm_90a", "hip:gfx942")
BITS = (1, 2, 4, 8)
GROUPS = (1024, 128)
ROWS = (1, 64)
N, K = 256, 1024


def measure(target: str, bits: int, group: int, m: int) -> tuple[object, ...]:
    """A row of the table: W and x of `bits` planes."""
    codes = tile.Packed.empty((N, K), tile.dtype(f"u{bits}"))
    w = planes(QuantTensor(codes, Parameter(np.ones((N, K // group), np.float16), (1, group))), target)
    steps, groups = w.depth // w.columns, w.scale.shape[0]
    how = bit_plan(Bits(m, 8192, bits, bits, 8 * groups, steps, w.columns, together(target, w.columns)))
    of = held(target, w.columns, how.warps, how.rows)
    x, ones = np.zeros((bits, m, groups * w.depth // 32), np.uint32), np.ones((groups, m), np.float32)
    arguments = x, w.words, w.codes, ones, ones, w.scale, np.empty((m, N), np.float32)
    code = bitplane_kernel.lower(*arguments, **of, XBITS=bits, BITS=bits, GROUP=steps, STAGES=stages(2 * bits),
                                 BIPOLAR=False, ZERO=0.0, ACT=None, target=target)
    report, words = code.report, code.thread.params[1]
    memory = {words, *(op.result for op in code.thread.walk() if op.name == "window" and words in op.operands)}
    widths = {4 * (op.attrs["lanes"] or 1) for op in code.thread.walk() if op.name in ("ld", "st_async")
              and memory & set(op.operands)}
    loop = re.findall(r"^\s+(v_bcnt_u32_b32)", code.assembly, re.M) if target.startswith("hip") else \
        [sass.opcode(i) for i in sass.main_loop(code.assembly, code.rendered.name)]
    counts = loop.count("BMMA") + loop.count("BGMMA") or len(loop)
    others = (len(loop) - counts) / counts
    return (f"W{bits}A{bits}", target, group, of["BM"], report["registers"], report["spills"] + report["stack_bytes"],
            report["shared_bytes"], counts, f"{others:.1f}" if others else "", ", ".join(map(str, widths)) or "TMA",
            f"{counted(arguments, code)[1]:.2f}")


def main() -> None:
    """Prints the table."""
    print(f"NVRTC {'.'.join(map(str, nvrtc.version()))}, nvdisasm {sass.version()}, clang of ziglang "
          f"{clang.version()}, {datetime.date.today()}\n")
    head = ("planes", "target", "group", "rows of x", "registers", "spilled bytes", "shared bytes", "products, v_bcnt",
            "others of the loop for each", "bytes of a load of words", "wavefronts / ideal")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for target, bits, group, m in product(TARGETS, BITS, GROUPS, ROWS):
        if m == ROWS[0] or target.startswith("cuda"):
            print(f"| {' | '.join(map(str, measure(target, bits, group, m)))} |", flush=True)


if __name__ == "__main__":
    main()
