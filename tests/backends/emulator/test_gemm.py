"""A pipelined matrix product with everything at once: right under every policy, and each slip in it is found."""
from __future__ import annotations

import numpy as np
import pytest

from tests.backends.emulator.texts import run
from tilelang.backends.emulator.run import POLICIES, Buffer, Policy, Result

SHARED = 2 * (64 * 40 + 32 * 72) * 2
TEXT = """
#include "tl.h"
TL_KERNEL(k, 128)(tl::gptr<const tl::u16> a, tl::gptr<const tl::u16> b, tl::gptr<float> c, tl::i64 m, tl::i64 n,
                  tl::i64 k) {
  TL_SHARED(smem, 19456);
  const tl::sptr<tl::u16> sa = tl::shared<tl::u16>(smem, 0, 5120);
  const tl::sptr<tl::u16> sb = tl::shared<tl::u16>(smem, 10240, 4608);
  const int t = tl::thread(), lane = t % 32, warp = t / 32;
  const tl::i64 columns = (n + 63) / 64, m0 = tl::program() / columns * 64, n0 = tl::program() % columns * 64;
  const int wm = warp / 2 * 32, wn = warp % 2 * 32, steps = int((k + 31) / 32);
  tl::vec<float, 32> acc{};
  auto fetch = [&](int step) {
    const int stage = step % 2;
    for (int i = 0; i < 2; i++) {
      const int row = t / 4 + i * 32, col = t % 4 * 8;
      const tl::i64 kk = step * 32 + col;
      tl::cp_async<8>(sa, stage * 2560 + row * 40 + col, a, (m0 + row) * k + kk, m0 + row < m && kk < k, tl::op(1));
    }
    for (int i = 0; i < 2; i++) {
      const int row = t / 8 + i * 16, col = t % 8 * 8;
      const tl::i64 kk = step * 32 + row;
      tl::cp_async<8>(sb, stage * 2304 + row * 72 + col, b, kk * n + n0 + col, kk < k && n0 + col < n, tl::op(2));
    }
    tl::cp_commit(tl::op(3));
  };
  fetch(0);
  for (int step = 0; step < steps; step++) {
    if (step + 1 < steps) {
      fetch(step + 1);
      tl::cp_wait<1>(tl::op(4));
    } else {
      tl::cp_wait<0>(tl::op(4));
    }
    tl::barrier(tl::op(5));
    const int stage = step % 2;
    for (int kk = 0; kk < 32; kk += 16) {
      tl::vec<tl::u16, 16> x, y;
      for (int i = 0; i < 2; i++)
        tl::ldmatrix<4, false>(x, i * 8, sa, stage * 2560 + (wm + i * 16 + lane % 16) * 40 + kk + lane / 16 * 8,
                               tl::op(6));
      for (int j = 0; j < 2; j++)
        tl::ldmatrix<4, true>(y, j * 8, sb, stage * 2304 + (kk + lane % 16) * 72 + wn + j * 16 + lane / 16 * 8,
                              tl::op(7));
      for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++) tl::mma_m16n8k16_f16(acc, (i * 4 + j) * 4, x, i * 8, y, j * 4, tl::op(8));
    }
    tl::barrier(tl::op(9));
  }
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 4; j++)
      for (int h = 0; h < 2; h++) {
        const tl::i64 row = m0 + wm + i * 16 + h * 8 + lane / 4, col = n0 + wn + j * 8 + lane % 4 * 2;
        const int at = (i * 4 + j) * 4 + h * 2;
        tl::st<2>(c, row * n + col, tl::vec<float, 2>{acc[at], acc[at + 1]}, row < m && col < n, tl::op(10));
      }
}
TL_EXPORT(k)
"""


def _product(text: str, m: int, n: int, k: int, policy: Policy) -> tuple[Result, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-4, 5, (m, k)).astype(np.float16), rng.integers(-4, 5, (k, n)).astype(np.float16)
    c = np.full((m, n), np.nan, np.float32)
    blocks = -(-m // 64) * -(-n // 64)
    result = run(text, [Buffer(a), Buffer(b), Buffer(c, False), m, n, k], 128, SHARED, blocks, policy)
    return result, c, a.astype(np.float32) @ b.astype(np.float32)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("shape", [(64, 64, 32), (100, 72, 88), (1, 8, 8), (128, 128, 128)])
def test_the_product_is_right(shape: tuple[int, int, int], policy: Policy) -> None:
    result, got, expected = _product(TEXT, *shape, policy)
    assert result.findings == []
    np.testing.assert_array_equal(got, expected)


def test_counts() -> None:
    counters = _product(TEXT, 256, 256, 256, "forward")[0].counters
    assert counters[8].mma == 256 ** 3 // (16 * 8 * 16)
    assert (counters[1].bytes, counters[2].bytes) == (256 * 256 * 2 * 4,) * 2  # four column or row blocks read each
    assert counters[1].sectors == counters[1].ideal_sectors == 256 * 256 * 2 * 4 // 32
    assert counters[6].wavefronts == counters[6].ideal_wavefronts == 16 * 4 * 8 * 2 * 2 * 4
    assert counters[10].sectors == counters[10].ideal_sectors == 256 * 256 * 4 // 32


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("line", "instead", "kinds"), [
    ("      tl::cp_wait<1>(tl::op(4));", "", {"async-pending"}),
    ("      tl::cp_wait<0>(tl::op(4));", "tl::cp_wait<1>(tl::op(4));", {"async-pending", "async-unwaited"}),
    ("    tl::barrier(tl::op(5));", "", {"race-raw", "race-war", "async-pending", "uninitialised-shared"}),
    ("    tl::barrier(tl::op(9));", "", {"race-war", "race-raw", "async-pending"}),
    ("    tl::cp_commit(tl::op(3));", "", {"async-pending", "async-unwaited"}),
    ("    const int stage = step % 2;\n    for (int i", "    const int stage = 0;\n    for (int i",
     {"async-pending", "uninitialised-shared", "race-war"}),
    ("row < m && col < n", "row < m", {"bounds-global", "race-global"}),
    ("kk < k && n0 + col < n", "n0 + col < n", {"bounds-global"}),
])
def test_each_slip_is_found(line: str, instead: str, kinds: set[str], policy: Policy) -> None:
    assert line in TEXT
    found = {f.kind for f in _product(TEXT.replace(line, instead), 72, 72, 72, policy)[0].findings}
    assert found and found <= kinds
