"""A product of matrices written by hand: async copies in three stages, ldmatrix, mma."""
from __future__ import annotations

from typing import Any

import numpy as np

STAGES = 3
SHARED = STAGES * 2 * (64 * 40 + 32 * 72)
TEXT = f"""
#include "tl.h"
TL_KERNEL(gemm, 128)(tl::gptr<const tl::u16> a, tl::gptr<const tl::u16> b, tl::gptr<float> c, tl::i64 N, tl::i64 K) {{
  TL_SHARED(smem, {SHARED});
  const tl::sptr<tl::u16> sa = tl::shared<tl::u16>(smem, 0, {STAGES * 2560});
  const tl::sptr<tl::u16> sb = tl::shared<tl::u16>(smem, {STAGES * 5120}, {STAGES * 2304});
  const int t = tl::thread(), lane = t % 32, down = t / 64 * 32, across = t / 32 % 2 * 32;
  const tl::i64 row = tl::program() / (N / 64) * 64, column = tl::program() % (N / 64) * 64;
  tl::vec<float, 32> acc{{}};
  // A is 64 by 32 in rows of 40, B is 32 by 64 in rows of 72: no two rows of a matrix start in the same bank.
  auto copy = [&](tl::i64 k, int stage) {{
    for (int i = t; i < 256; i += 128) {{
      tl::cp_async<8>(sa, stage * 2560 + i / 4 * 40 + i % 4 * 8, a, (row + i / 4) * K + k + i % 4 * 8, k < K,
                      tl::op(1));
      tl::cp_async<8>(sb, stage * 2304 + i / 8 * 72 + i % 8 * 8, b, (k + i / 8) * N + column + i % 8 * 8, k < K,
                      tl::op(2));
    }}
    tl::cp_commit(tl::op(3));
  }};
  for (int i = 0; i < {STAGES - 1}; i++) copy(i * 32, i);
  for (int i = 0; i * 32 < K; i++) {{
    tl::cp_wait<{STAGES - 2}>(tl::op(4));
    tl::barrier(tl::op(5));
    copy((i + {STAGES - 1}) * 32, (i + {STAGES - 1}) % {STAGES});
    const int stage = i % {STAGES};
    TL_UNROLL for (int k = 0; k < 32; k += 16) {{
      tl::vec<tl::u16, 16> x, y;
      TL_UNROLL for (int j = 0; j < 2; j++) {{
        tl::ldmatrix<4, false>(x, j * 8, sa, stage * 2560 + (down + j * 16 + lane % 16) * 40 + k + lane / 16 * 8,
                               tl::op(6));
        tl::ldmatrix<4, true>(y, j * 8, sb, stage * 2304 + (k + lane % 16) * 72 + across + j * 16 + lane / 16 * 8,
                              tl::op(7));
      }}
      TL_UNROLL for (int j = 0; j < 8; j++)
        tl::mma_m16n8k16_f16(acc, j * 4, x, j / 4 * 8, y, j % 4 * 4, tl::op(8));
    }}
  }}
  tl::cp_wait<0>(tl::op(9));
  TL_UNROLL for (int j = 0; j < 16; j++) {{
    const tl::i64 at = (row + down + j / 8 * 16 + j % 2 * 8 + lane / 4) * N + column + across + j / 2 % 4 * 8;
    tl::st<2>(c, at + lane % 4 * 2, tl::vec<float, 2>{{acc[j * 2], acc[j * 2 + 1]}}, tl::op(10));
  }}
}}
TL_EXPORT(gemm)
"""


def arguments(m: int, n: int, k: int) -> list[Any]:
    """Of small integers: the product is exact in any order."""
    rng = np.random.default_rng(4)
    a, b = (rng.integers(-4, 5, s).astype(np.float16).view(np.uint16) for s in ((m, k), (k, n)))
    return [a, b, np.zeros((m, n), np.float32), np.int64(n), np.int64(k)]


def product(args: list[Any]) -> np.ndarray[Any, Any]:
    a, b = (x.view(np.float16).astype(np.float32) for x in args[:2])
    return np.asarray(a @ b)


def launch(args: list[Any]) -> dict[str, int]:
    """The grid for the arguments."""
    return {"programs": args[2].size // 4096, "threads": 128, "shared_bytes": SHARED}
