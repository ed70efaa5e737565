"""Every checker: a planted mistake is found under every policy with its ops; the kernel without it is silent."""
from __future__ import annotations

import numpy as np
import pytest

from tests.backends.emulator import bulk, clusters, multicast, stores
from tests.backends.emulator.texts import Case, F, found, kernel, output, run, values
from tilelang.backends.emulator.run import KINDS, Buffer

SHARED = """  TL_SHARED(smem, 1024);
  const tl::sptr<float> s = tl::shared<float>(smem, 0, 64);
"""
PRODUCT = """  TL_SHARED(smem, 1024);
  const tl::sptr<tl::u16> s = tl::shared<tl::u16>(smem, 0, 128);
  tl::vec<tl::u16, 8> x{};
  tl::vec<float, 4> d{};
  tl::st<1>(s, t, tl::vec<tl::u16, 1>{tl::u16(t)}, tl::op(1));
  %s
  tl::barrier(tl::op(3));
  %s
  tl::wgmma_m64k16_f16<8>(d, 0, x, 0, tl::operand<32, 32, 256, false>(s), 0, tl::op(5));
  tl::group_commit(tl::op(6));
  %s
  tl::arrived(d, tl::op(8));
  tl::st<4>(o, t * 4, d, tl::op(9));
"""
FENCE, START, DONE = "tl::fence_memory(tl::op(2));", "tl::fence_registers(tl::op(4));", "tl::group_wait<0>(tl::op(7));"


CASES = [
    Case("no barrier between write and read", SHARED + """
  tl::st<1>(s, t, tl::ld<1>(a, t, tl::op(1)), tl::op(2));
  $
  tl::st<1>(o, t, tl::ld<1>(s, t ^ 32, tl::op(4)), tl::op(5));""",
         "", "tl::barrier(tl::op(3));", ("race-raw", 4, 2), also=("race-war", "uninitialised-shared")),
    Case("no barrier before the next write", SHARED + """
  tl::st<1>(s, t, tl::ld<1>(a, t, tl::op(1)), tl::op(2));
  tl::barrier(tl::op(3));
  tl::st<1>(o, t, tl::ld<1>(s, t ^ 32, tl::op(4)), tl::op(5));
  $
  tl::st<1>(s, t, tl::ld<1>(a, t, tl::op(7)), tl::op(8));""",
         "", "tl::barrier(tl::op(6));", ("race-war", 8, 4), also=("race-raw",)),
    Case("two threads write one element", SHARED + "  tl::st<1>(s, $, tl::ld<1>(a, t, tl::op(1)), tl::op(2));",
         "t / 2", "t", ("race-waw", 2, 2)),
    Case("lanes are not ordered", SHARED + """
  tl::st<1>(s, t, tl::ld<1>(a, t, tl::op(1)), tl::op(2));
  $
  tl::st<1>(o, t, tl::ld<1>(s, t ^ 1, tl::op(4)), tl::op(5));""",
         "tl::shfl_xor(t, 1, tl::op(3));", "tl::syncwarp(tl::op(3));", ("race-raw", 4, 2), also=("race-war",)),
    Case("a plain read beside atomics", SHARED + """
  tl::st<1>(s, t, tl::vec<float, 1>{0}, tl::op(1));
  tl::barrier(tl::op(2));
  tl::atomic_add(s, 3, 1.0f, true, tl::op(3));
  $
  tl::st<1>(o, t, tl::ld<1>(s, 3, tl::op(5)), tl::op(6));""",
         "", "tl::barrier(tl::op(4));", ("race-raw", 5, 3), also=("race-war",)),
    Case("ldmatrix of rows under construction", """
  TL_SHARED(smem, 1024);
  const tl::sptr<tl::u16> s = tl::shared<tl::u16>(smem, 0, 512);
  tl::st<8>(s, t * 8, tl::vec<tl::u16, 8>{}, tl::op(1));
  $
  tl::vec<tl::u16, 8> r;
  tl::ldmatrix<4, false>(r, 0, s, t * 8, tl::op(3));""",
         "", "tl::syncwarp(tl::op(2));", ("race-raw", 3, 1)),
    Case("async copy read before the wait", SHARED + """
  tl::cp_async<4>(s, t * 4, a, t * 4, true, tl::op(1));
  tl::cp_commit(tl::op(2));
  $
  tl::barrier(tl::op(4));
  tl::st<1>(o, t, tl::ld<1>(s, t, tl::op(5)), tl::op(6));
  tl::cp_wait<0>(tl::op(7));""",
         "", "tl::cp_wait<0>(tl::op(3));", ("async-pending", 5, 1), threads=16, also=("race-raw",)),
    Case("the wait leaves the wrong group under way", SHARED + """
  for (int i = 0; i < 2; i++) {
    tl::cp_async<1>(s, i * 32 + t, a, i * 32 + t, true, tl::op(1));
    tl::cp_commit(tl::op(2));
  }
  $
  tl::st<1>(o, t, tl::ld<1>(s, 32 + t, tl::op(4)), tl::op(5));
  tl::cp_wait<0>(tl::op(6));""",
         "tl::cp_wait<1>(tl::op(3));", "tl::cp_wait<0>(tl::op(3));", ("async-pending", 4, 1), threads=32),
    Case("async copy not visible to others without a barrier", SHARED + """
  tl::cp_async<1>(s, t, a, t, true, tl::op(1));
  tl::cp_commit(tl::op(2));
  tl::cp_wait<0>(tl::op(3));
  $
  tl::st<1>(o, t, tl::ld<1>(s, t ^ 32, tl::op(5)), tl::op(6));""",
         "", "tl::barrier(tl::op(4));", ("race-raw", 5, 1),
         also=("async-pending", "race-war", "uninitialised-shared")),
    Case("async copy over what is being read", SHARED + """
  tl::st<1>(s, t, tl::ld<1>(a, t, tl::op(1)), tl::op(2));
  tl::barrier(tl::op(3));
  tl::st<1>(o, t, tl::ld<1>(s, t ^ 32, tl::op(4)), tl::op(5));
  $
  tl::cp_async<1>(s, t, a, t, true, tl::op(7));
  tl::cp_commit(tl::op(8));
  tl::cp_wait<0>(tl::op(9));""",
         "", "tl::barrier(tl::op(6));", ("race-war", 7, 4), also=("async-pending", "race-raw")),
    Case("async copies never waited for", SHARED + """
  tl::cp_async<1>(s, t, a, t, true, tl::op(1));
  tl::cp_commit(tl::op(2));
  $""", "", "tl::cp_wait<0>(tl::op(3));", ("async-unwaited", 1, -1)),
    Case("a copy that was not committed", SHARED + """
  tl::cp_async<1>(s, t, a, t, true, tl::op(1));
  $
  tl::cp_wait<0>(tl::op(3));""", "", "tl::cp_commit(tl::op(2));", ("async-unwaited", 1, -1)),
    Case("shared memory without a value", SHARED + """
  $
  tl::st<1>(o, t, tl::ld<1>(s, t, tl::op(2)), tl::op(3));""",
         "", "tl::st<1>(s, t, tl::ld<1>(a, t, tl::op(1)), tl::op(4));", ("uninitialised-shared", 2, -1)),
    Case("an output read before it is written", """
  $
  tl::st<1>(o, 64 + t, tl::ld<1>(o, t, tl::op(1)), tl::op(2));""",
         "", "tl::st<1>(o, t, tl::ld<1>(a, t, tl::op(3)), tl::op(4));", ("uninitialised-global", 1, -1)),
    Case("a register that is its own value", """
  const tl::vec<float, 1> x = $;
  tl::st<1>(o, t, x, tl::op(2));""", "x", "tl::ld<1>(a, t, tl::op(1))", ("uninitialised-register", 2, -1)),
    Case("a vector of which a part is written", """
  tl::vec<float, 4> x;
  TL_UNROLL for (int i = 0; i < $; ++i) x[i] = t;
  tl::st<4>(o, t * 4, x, t < 16, tl::op(2));""", "3", "4", ("uninitialised-register", 2, -1)),
    Case("a number that only one branch writes", """
  float x;
  if (t < 5) {
    x = 1;
  } else { $ }
  tl::st<1>(o, t, tl::vec<float, 1>{x}, tl::op(2));""", "", "x = 2;", ("uninitialised-register", 2, -1)),
    Case("operands of a product", """
  tl::vec<float, 4> c $;
  const tl::vec<tl::u16, 8> x{};
  for (int k = 0; k < t; k++) tl::mma_m16n8k16_f16(c, 0, x, 0, x, 0, tl::op(1));
  tl::st<4>(o, t * 4, c, tl::op(2));""".replace("k < t", "k < 2"), "", "{}", ("uninitialised-register", 1, -1),
         threads=32),
    Case("a load past the end", "  tl::st<1>(o, t, tl::ld<1>(a, t + 200, $ tl::op(1)), tl::op(2));",
         "", "t < 56,", ("bounds-global", 1, -1)),
    Case("a load before the start", "  tl::st<1>(o, t, tl::ld<1>(a, t - 1, $ tl::op(1)), tl::op(2));",
         "", "t > 0,", ("bounds-global", 1, -1)),
    Case("an offset that overflows", "  tl::st<1>(o, t, tl::ld<1>(a, (1LL << 62) + t, $ tl::op(1)), tl::op(2));",
         "", "false,", ("bounds-global", 1, -1)),
    Case("a store past the end", "  tl::st<2>(o, t * 8, tl::vec<float, 2>{}, $ tl::op(2));",
         "", "t < 32,", ("bounds-global", 2, -1)),
    Case("a store into the next shared buffer", """
  TL_SHARED(smem, 1024);
  const tl::sptr<float> s = tl::shared<float>(smem, 0, 63), n = tl::shared<float>(smem, 256, 64);
  tl::st<1>(s, t, tl::vec<float, 1>{}, $ tl::op(1));
  tl::st<1>(n, t, tl::vec<float, 1>{}, tl::op(2));""", "", "t < 63,", ("bounds-shared", 1, -1)),
    Case("more shared memory than the launch gave", "  TL_SHARED(smem, $);", "1025", "1024",
         ("bounds-shared", -1, -1)),
    Case("ldmatrix past the buffer", """
  TL_SHARED(smem, 1024);
  const tl::sptr<tl::u16> s = tl::shared<tl::u16>(smem, 0, 256);
  for (int i = 0; i < 8; i++) tl::st<1>(s, t * 8 + i, tl::vec<tl::u16, 1>{}, tl::op(1));
  tl::barrier(tl::op(2));
  tl::vec<tl::u16, 8> r;
  tl::ldmatrix<4, false>(r, 0, s, $, tl::op(3));""", "t * 8 + 8", "t * 8", ("bounds-shared", 3, -1), threads=32),
    Case("registers past the vector", """
  tl::vec<float, 6> c{};
  tl::vec<tl::u16, 8> x{};
  tl::mma_m16n8k16_f16(c, $, x, 0, x, 0, tl::op(1));""", "3", "2", ("bounds-register", 1, -1)),
    Case("a misaligned global vector", "  tl::st<4>(o, t * 2 $, tl::vec<float, 4>{}, t == 1, tl::op(1));",
         "", "+ 2", ("misaligned", 1, -1)),
    Case("a misaligned shared vector", SHARED + "  tl::st<2>(s, 5 - $, tl::vec<float, 2>{}, t == 0, tl::op(1));",
         "0", "1", ("misaligned", 1, -1)),
    Case("a barrier that one warp skips", """
  if (t < $) tl::barrier(tl::op(1));
  tl::st<1>(o, t, tl::ld<1>(a, t, tl::op(2)), tl::op(3));""", "32", "64", ("divergent-barrier", 1, -1)),
    Case("two barriers at once", """
  if (t < $) tl::barrier(tl::op(1));
  else tl::barrier(tl::op(2));""", "32", "64", ("divergent-barrier", 2, 1)),
    Case("a shuffle that some lanes skip", "  if (t % 32 < $) tl::shfl_xor(t, 1, tl::op(1));",
         "16", "32", ("divergent-collective", 1, -1)),
    Case("two shuffles at once", """
  if (t % 32 < $) tl::shfl_xor(t, 1, tl::op(1));
  else tl::shfl_xor(t, 1, tl::op(2));""", "16", "32", ("divergent-collective", 2, 1)),
    Case("a matrix instruction of half a warp", """
  tl::vec<float, 4> c{};
  tl::vec<tl::u16, 8> x{};
  tl::mma_m16n8k16_f16(c, 0, x, 0, x, 0, tl::op(1));""", "", "", ("divergent-collective", 1, -1), threads=16),
    Case("lanes at a barrier, others at a shuffle", """
  if (t % 32 < $) tl::shfl_xor(t, 1, tl::op(1));
  else tl::barrier(tl::op(2));""", "16", "32", ("deadlock", 1, 2)),
    Case("two blocks write one element", "  tl::st<1>(o, t $, tl::ld<1>(a, t, tl::op(1)), tl::op(2));",
         "", "+ p * 64", ("race-global", 2, 2), programs=4),
    Case("a block reads what another wrote", """
  tl::st<1>(o, p * 64 + t, tl::vec<float, 1>{}, tl::op(1));
  tl::ld<1>(o, t + 64 * $, tl::op(2));""",
         "(p ^ 1)", "p", ("race-global", 2, 1), programs=4, also=("race-global", "uninitialised-global")),
    Case("a thread reads what another of its block wrote to global memory", """
  tl::st<1>(o, t, tl::vec<float, 1>{}, tl::op(1));
  $
  tl::ld<1>(o, t ^ 32, tl::op(3));""",
         "", "tl::barrier(tl::op(2));", ("race-global", 3, 1), also=("uninitialised-global",)),
    Case("a thread writes what another of its block reads from global memory", """
  const float x = tl::ld<1>(a, t ^ 1, tl::op(1))[0];
  $
  tl::st<1>(a, t, tl::vec<float, 1>{x}, tl::op(3));""",
         "", "tl::syncwarp(tl::op(2));", ("race-global", 3, 1), params=F.replace("const ", "")),
    Case("an addition that should be atomic", """
  tl::st<1>(o, 0, tl::vec<float, 1>{}, p < 0, tl::op(1));
  $""", "if (t == 0) tl::st<1>(a, 0, tl::ld<1>(a, 0, tl::op(2)), tl::op(3));",
         "tl::atomic_add(a, 0, 1.0f, t == 0, tl::op(3));", ("race-global", 2, 3), programs=4,
         params=F.replace("const ", ""), also=("race-global",)),
    Case("a product of what was written without a fence of memory", PRODUCT % ("$", START, DONE), "", FENCE,
         ("missing-fence", 5, 1), threads=128, args=[values(256), output(512)]),
    Case("a fence of memory after the barrier", PRODUCT % ("$", FENCE + START, DONE), "", FENCE,
         ("missing-fence", 5, 1), threads=128, args=[values(256), output(512)]),
    Case("a product without a fence of registers", PRODUCT % (FENCE, "$", DONE), "", START,
         ("missing-fence", 5, -1), threads=128, args=[values(256), output(512)]),
    Case("sums of a product under way", PRODUCT % (FENCE, START, "$"), "", DONE, ("product-pending", 8, 5),
         threads=128, args=[values(256), output(512)]),
    Case("a product that nothing waits for", PRODUCT.replace("tl::arrived(d, tl::op(8));", "")
         .replace("tl::st<4>(o, t * 4, d, tl::op(9));", "tl::st<1>(o, t, tl::vec<float, 1>{}, tl::op(9));")
         % (FENCE, START, "$"), "", DONE, ("product-pending", 5, -1), threads=128, args=[values(256), output(512)]),
    Case("operands of a product under way written over", PRODUCT % (FENCE, START, "$"),
         "tl::st<1>(s, t, tl::vec<tl::u16, 1>{}, tl::op(10));" + DONE, DONE, ("product-pending", 10, 5),
         threads=128, args=[values(256), output(512)]),
    Case("a false assertion", "  tl::check(t < $, tl::op(1));", "63", "64", ("assertion", 1, -1)),
    *bulk.CASES,
    *clusters.CASES,
    *multicast.CASES,
    *stores.CASES,
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_planted_mistake_is_found_and_its_repair_is_silent(case: Case) -> None:
    wrong, right = (kernel(case.params, case.body.replace("$", part), case.threads, case.head)
                    for part in (case.wrong, case.right))
    runs = found(wrong, case.args, case.threads, case.shared, case.programs)
    wanted = (case.finds[0], set(case.finds[1:]))
    met = [any((kind, {op, other}) == wanted for kind, op, other in findings) for findings in runs]
    assert all(met) if case.always else any(met), runs
    assert {kind for findings in runs for kind, _, _ in findings} <= {case.finds[0], *case.also}
    if case.wrong == case.right:
        return
    assert found(right, case.args, case.threads, case.shared, case.programs) == [set()] * 5


def test_every_kind_is_planted() -> None:
    assert {case.finds[0] for case in CASES} == set(KINDS) - {"overlap"}  # which takes two launches


def test_a_report_names_thread_block_and_place() -> None:
    text = kernel(F, "  tl::st<1>(o, t + p * 64, tl::vec<float, 1>{}, tl::op(9));")
    result = run(text, [values(1), output(100)], 64, programs=2)
    assert not result.completed
    assert str(result.findings[0]) == ("bounds-global: op 9: thread 36 of block 1: element 100 (4 bytes) of argument "
                                       "1, whose memory ends after 400 bytes")


def test_a_report_of_a_race_names_the_other_block_where_there_is_one() -> None:
    for programs, who in (2, "another block (0)"), (3, "other blocks"):
        last = programs - 1
        text = kernel(F, f"  tl::st<1>(o, 0, tl::ld<1>(a, 0, tl::op(1)), p == {last} && t == 0, tl::op(2));\n"
                         f"  tl::ld<1>(o, 0, p < {last} && t == 0, tl::op(3));")
        findings = run(text, [values(1), values(1)], 64, programs=programs).findings
        assert any(f"which {who} read" in f.message for f in findings), findings


def test_a_loop_that_waits_for_another_block_ends() -> None:
    text = kernel("tl::gptr<tl::i32> a", "  while (tl::atomic_add(a, 0, 0, true, tl::op(1)) == 0) {}", 1)
    assert [f.kind for f in run(text, [Buffer(np.zeros(1, np.int32))], 1).findings] == ["deadlock"]


def test_a_loop_that_waits_for_another_block_ends_with_barriers_in_it() -> None:
    text = kernel("tl::gptr<tl::i32> a", """  TL_SHARED(smem, 16);
  const tl::sptr<tl::i32> s = tl::shared<tl::i32>(smem, 0, 1);
  for (tl::i32 v = 0; v == 0;) {
    if (t == 0) tl::st<1>(s, 0, tl::vec<tl::i32, 1>{tl::atomic_add(a, 0, 0, true, tl::op(1))}, true, tl::op(2));
    tl::barrier(tl::op(3));
    v = tl::ld<1>(s, 0, tl::op(4))[0];
    tl::barrier(tl::op(5));
  }""", 32)
    assert [f.kind for f in run(text, [Buffer(np.zeros(1, np.int32))], 32, 16).findings] == ["deadlock"]


def test_a_loop_that_a_mistake_makes_endless_ends() -> None:
    text = kernel("tl::gptr<float> a", """  TL_SHARED(smem, 16);
  const tl::sptr<float> s = tl::shared<float>(smem, 0, 1);
  while (tl::ld<1>(s, 0, tl::op(1))[0] != 1.0f) {}
  tl::st<1>(s, 0, tl::vec<float, 1>{1.0f}, t == 0, tl::op(2));""")
    assert [f.kind for f in run(text, [values(1)], 32, 16).findings] == ["uninitialised-shared"]


def test_many_atomics_that_change_something_are_no_deadlock() -> None:
    text = kernel("tl::gptr<tl::i32> a", """
  for (int i = 0; i < 5000000; i++) tl::atomic_add(a, 0, 1, true, tl::op(1));""", 1)
    total = np.zeros(1, np.int32)
    assert run(text, [Buffer(total)], 1).findings == [] and total[0] == 5000000


def test_a_loop_may_wait_for_another_thread() -> None:
    text = kernel("tl::gptr<tl::i32> a", """
  if (t == 40) tl::atomic_add(a, 0, 1, true, tl::op(1));
  while (tl::atomic_add(a, 0, 0, true, tl::op(2)) == 0) {}""")
    assert found(text, [Buffer(np.zeros(1, np.int32))]) == [set()] * 5


def test_bit_fields_of_two_blocks_may_share_a_byte() -> None:
    text = kernel("tl::gptr<tl::u8> o",
                  "  tl::st_bits<3>(o, (p * 5 + t) * 3, (tl::u32)(p * 5 + t), t < 5, tl::op(1));", 32)
    out = output(4, np.uint8)
    assert found(text, [out], 32, 0, 2) == [set()] * 5
    assert int.from_bytes(out.array.tobytes(), "little") == sum((i & 7) << 3 * i for i in range(10))
