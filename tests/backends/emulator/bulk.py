"""Planted mistakes with barriers in shared memory and copies of blocks that they wait for."""
from __future__ import annotations

from typing import Any

from tests.backends.emulator.texts import F, Template, output, values
from tilelang.backends.emulator.run import TensorMap

PARAMS = F + ", TL_TENSOR_MAP m"
# Eight blocks of 8 x 32 floats go through a ring of two: barriers 0 and 1 tell that one is full, 2 and 3 that both
# warps have read it.
PARTS = {
    "init": "tl::mbarrier_init(bars, i, 1, tl::op(1)); tl::mbarrier_init(bars, 2 + i, 2, tl::op(2));",
    "fence": "tl::fence_memory(tl::op(3));",
    "synced": "tl::barrier(tl::op(4));",
    "empty": "if (k > 1) tl::mbarrier_wait(bars, 2 + k % 2, k / 2 + 1 & 1, tl::op(5));",
    "expect": "tl::mbarrier_expect(bars, k % 2, 1024, tl::op(6));",
    "copy": "tl::tensor_load(s, k % 2 * 256, m, tl::vec<tl::i32, 2>{0, 8 * k}, bars, k % 2, tl::op(7));",
    "full": "tl::mbarrier_wait(bars, k % 2, k / 2 & 1, tl::op(8));",
    "arrive": "tl::mbarrier_arrive(bars, 2 + k % 2, tl::op(11));",
}
RING = """
  TL_SHARED(smem, 8192);
  const tl::sptr<float> s = tl::shared<float>(smem, 1024, 768);
  const tl::sptr<tl::u64> bars = tl::shared<tl::u64>(smem, 0, 4);
  if (t == 0) {{
    for (int i = 0; i < 2; i++) {{ {init} }}
    {fence}
  }}
  {synced}
  for (int k = 0; k < 8; k++) {{
    if (t == 0) {{
      {empty}
      {expect}
      {copy}
    }}
    {full}
    tl::st<1>(o, k * 64 + t, tl::ld<1>(s, k % 2 * 256 + t * 4, tl::op(9)), tl::op(10));
    {arrive}
  }}
"""


def arguments() -> list[Any]:
    return [values(64 * 32), output(512), TensorMap(0, (32, 64), (4, 128), (32, 8), 128)]


wrong = Template(RING, PARTS, arguments, PARAMS, shared=8192).wrong


FOLLOW = ("async-pending", "async-unwaited", "race-war", "deadlock", "mbarrier", "uninitialised-shared")
"""What a ring whose blocks are not waited for may meet as well."""
CASES = [
    wrong("a block read before its copy is waited for", "full", "", ("async-pending", 9, 7), *FOLLOW),
    wrong("one warp does not wait for the copy", "full", "if (t >= 32) " + PARTS["full"], ("async-pending", 9, 7),
          *FOLLOW),
    wrong("a copy over a block that is still read", "empty", "", ("race-war", 7, 9), *FOLLOW, always=False),
    wrong("a barrier that nothing keeps from going on", "empty", "", ("mbarrier", 8, 7), *FOLLOW, always=False),
    wrong("a block given back twice", "full", PARTS["full"] + "if (k == 0) " + PARTS["arrive"], ("mbarrier", 5, -1),
          *FOLLOW),
    wrong("more bytes expected than come", "expect", PARTS["expect"].replace("1024", "1040"), ("deadlock", 8, -1),
          "async-unwaited"),
    wrong("fewer bytes expected than come", "copy",
          PARTS["copy"] + "tl::tensor_load(s, 512, m, tl::vec<tl::i32, 2>{0, 0}, bars, k % 2, tl::op(12));",
          ("transaction", 12, 6), *FOLLOW, always=False),
    wrong("the wait is for the phase before", "full", PARTS["full"].replace("k / 2", "k / 2 + 1"),
          ("async-pending", 9, 7), *FOLLOW, always=False),
    wrong("the wait is always for the first phase", "full", PARTS["full"].replace("k / 2 & 1", "0"),
          ("async-pending", 9, 7), *FOLLOW, always=False),
    wrong("nobody gives the blocks back", "arrive", "", ("deadlock", 8, 5), "async-unwaited"),
    wrong("one of two warps gives the blocks back", "arrive", "if (t < 32) " + PARTS["arrive"], ("deadlock", 8, 5),
          "async-unwaited"),
    wrong("a barrier initialised without a fence of memory", "fence", "", ("missing-fence", 7, 1)),
    wrong("a barrier used by threads that have not seen its initialisation", "synced", "",
          ("race-raw", 8, 1), "missing-fence", *FOLLOW, always=False),
    wrong("a copy over what was written without a fence of memory", "synced",
          "tl::st<1>(s, t, tl::vec<float, 1>{}, tl::op(12));" + PARTS["synced"], ("missing-fence", 7, 12)),
    wrong("a copy to a place where swizzled rows may not begin", "copy", PARTS["copy"].replace("256", "64"),
          ("misaligned", 7, -1), *FOLLOW),
    wrong("a copy past the end of its buffer", "copy", PARTS["copy"].replace("256,", "256 + 768,"),
          ("bounds-shared", 7, -1)),
    wrong("a copy that nobody waits for", "arrive",
          PARTS["arrive"] + "if (t == 0 && k == 7) { tl::mbarrier_wait(bars, 2, 1, tl::op(12)); "
          "tl::mbarrier_expect(bars, 0, 1024, tl::op(13)); tl::tensor_load(s, 0, m, tl::vec<tl::i32, 2>{0, 0}, bars, "
          "0, tl::op(14)); }", ("async-unwaited", 14, -1)),
    wrong("an arrival more than the phase has", "expect", PARTS["expect"] + "tl::mbarrier_expect(bars, k % 2, 0, "
          "tl::op(12));", ("mbarrier", 12, 6)),
    wrong("what is no barrier is used as one", "full", PARTS["full"].replace("bars, k % 2", "bars, 0 * k")
          .replace("bars", "tl::shared<tl::u64>(smem, 64, 2)"), ("mbarrier", 8, -1), *FOLLOW),
]
