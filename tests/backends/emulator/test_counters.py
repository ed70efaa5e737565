"""Counts that follow from the access patterns."""
from __future__ import annotations

import numpy as np
import pytest

from tests.backends.emulator.texts import kernel, output, run, values
from tilelang.backends.emulator.run import POLICIES, Buffer, Counter, Policy


def _load(index: str, width: int = 1, mask: str = "true") -> Counter:
    result = run(kernel("tl::gptr<const float> a", f"  tl::ld<{width}>(a, {index}, {mask}, tl::op(1));", 32),
                 [values(4096)], 32)
    return result.counters[1]


def test_coalesced_and_strided() -> None:
    assert _load("t") == Counter(1, 128, 4, 4, 0, 0, {"load": 1})
    assert _load("t * 4", 4) == Counter(1, 512, 16, 16, 0, 0, {"load": 1})
    assert _load("t * 8") == Counter(1, 128, 32, 4, 0, 0, {"load": 1})
    assert _load("t + 1") == Counter(1, 128, 5, 4, 0, 0, {"load": 1})
    assert _load("7") == Counter(1, 128, 1, 1, 0, 0, {"load": 1})
    assert _load("31 - t") == Counter(1, 128, 4, 4, 0, 0, {"load": 1})
    assert _load("t", mask="t < 9") == Counter(1, 36, 2, 2, 0, 0, {"load": 1})
    assert _load("t", mask="false") == Counter(0, 0, 0, 0, 0, 0, {"load": 1})


def test_a_view_keeps_its_place_in_the_allocation() -> None:
    view = values(64).array[1:33]
    result = run(kernel("tl::gptr<const float> a", "  tl::ld<1>(a, t, tl::op(1));", 32), [Buffer(view)], 32)
    assert result.counters[1].sectors == 5


@pytest.mark.parametrize(("pitch", "wavefronts"), [(32, 32), (33, 1), (34, 2), (36, 4)])
def test_bank_conflicts_of_a_column(pitch: int, wavefronts: int) -> None:
    text = kernel("tl::gptr<float> o", f"""
  TL_SHARED(smem, {pitch * 128});
  const tl::sptr<float> s = tl::shared<float>(smem, 0, {pitch * 32});
  for (int i = 0; i < 32; i++) tl::st<1>(s, i * {pitch} + t, tl::vec<float, 1>{{1}}, tl::op(1));
  tl::barrier(tl::op(2));
  float x = 0;
  for (int i = 0; i < 32; i++) x += tl::ld<1>(s, t * {pitch} + i, tl::op(3))[0];
  tl::st<1>(o, t, tl::vec<float, 1>{{x}}, tl::op(4));""", 32)
    for policy in POLICIES:
        counters = run(text, [output(32)], 32, pitch * 128, policy=policy).counters
        assert counters[1] == Counter(32, 4096, 0, 0, 32, 32, {"shared_store": 32}, (32,) * 32, (0,) * 32)
        assert counters[2].instructions == {"barrier": 1}
        assert counters[3] == Counter(32, 4096, 0, 0, 32 * wavefronts, 32, {"shared_load": 32}, (32,) * 32,
                                      (32 - 32 // wavefronts,) * 32)


@pytest.mark.parametrize(("pitch", "wavefronts"), [(64, 32), (72, 4)])
def test_bank_conflicts_of_matrix_rows(pitch: int, wavefronts: int) -> None:
    text = kernel("tl::gptr<const tl::u16> a", f"""
  TL_SHARED(smem, {pitch * 64});
  const tl::sptr<tl::u16> s = tl::shared<tl::u16>(smem, 0, {pitch * 32});
  tl::cp_async<8>(s, t * {pitch}, a, t * 8, true, tl::op(1));
  tl::cp_commit(tl::op(2));
  tl::cp_wait<0>(tl::op(2));
  tl::barrier(tl::op(3));
  tl::vec<tl::u16, 8> r;
  tl::ldmatrix<4, true>(r, 0, s, t * {pitch}, tl::op(4));""", 32)
    counters = run(text, [Buffer(np.zeros(256, np.uint16))], 32, pitch * 64).counters
    banks = (32, 28) if pitch == 64 else (4, 0)  # rows that begin at bank 0, or four banks further on each
    words, waits = ((n,) * 4 + (0,) * 28 if pitch == 64 else (n,) * 32 for n in banks)
    assert counters[1] == Counter(1, 512, 16, 16, wavefronts, 4, {"copy_async": 1}, words, waits)
    assert counters[4] == Counter(1, 512, 0, 0, wavefronts, 4, {"ldmatrix": 1}, words, waits)


@pytest.mark.parametrize("policy", POLICIES)
def test_long_loops_are_counted_in_parts(policy: Policy) -> None:
    """A lane far ahead waits for the others; its log does not grow without end."""
    text = kernel("tl::gptr<const float> a", """
  for (int i = 0; i < 20000; i++) tl::ld<1>(a, t, tl::op(1));
  if (t < 32) tl::shfl_xor(t, 1, tl::op(2));
  for (int i = 0; i < 20000; i++) tl::ld<1>(a, t, t > 8, tl::op(3));
  tl::barrier(tl::op(4));""")
    counters = run(text, [values(64)], policy=policy).counters
    assert counters[1] == Counter(40000, 40000 * 128, 160000, 160000, 0, 0, {"load": 40000})
    assert counters[3].instructions == {"load": 40000}


def test_lanes_that_part_are_counted_together() -> None:
    """In a loop of different lengths the k-th access of each lane belongs to one request."""
    text = kernel("tl::gptr<const float> a, tl::gptr<float> o", """
  for (int i = 0; i < t; i++) tl::ld<1>(a, i * 32 + t, tl::op(1));
  tl::st<1>(o, t, tl::vec<float, 1>{}, tl::op(2));""", 32)
    counters = run(text, [values(1024), output(32)], 32).counters
    assert counters[1].requests == 31
    assert counters[1].bytes == 4 * sum(range(32))
    assert counters[2] == Counter(1, 128, 4, 4, 0, 0, {"store": 1})
