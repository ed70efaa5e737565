"""Planted mistakes where both blocks of a cluster read the same blocks of a tensor, of which each fetches a half for
both."""
from __future__ import annotations

from typing import Any

from tests.backends.emulator.texts import F, Template, output, values
from tilelang.backends.emulator.run import TensorMap

HEAD = "#define TL_CLUSTER 2\n#define TL_BULK"
PARAMS = F + ", TL_TENSOR_MAP m"
# Eight blocks of 8 x 32 floats go through a ring of two: barriers 0 and 1 tell that one is full, 2 and 3 that both
# warps of both blocks have read it.
PARTS = {
    "init": "tl::mbarrier_init(bars, i, 1, tl::op(1)); tl::mbarrier_init(bars, 2 + i, 4, tl::op(2));",
    "synced": "tl::cluster_barrier(tl::op(4));",
    "empty": "if (k > 1) tl::mbarrier_wait(bars, 2 + k % 2, k / 2 + 1 & 1, tl::op(5));",
    "expect": "tl::mbarrier_expect(bars, k % 2, 1024, tl::op(6));",
    "copy": "tl::tensor_multicast(s, k % 2 * 256 + r * 128, m, tl::vec<tl::i32, 2>{0, 8 * k + 4 * r}, bars, k % 2, 3, "
            "tl::op(7));",
    "full": "tl::mbarrier_wait(bars, k % 2, k / 2 & 1, tl::op(8));",
    "arrive": "tl::mbarrier_arrive_at(bars, 2 + k % 2, 3, tl::op(11));",
    "end": "tl::cluster_barrier(tl::op(12));",
}
RING = """
  TL_SHARED(smem, 4096);
  const tl::sptr<float> s = tl::shared<float>(smem, 1024, 512);
  const tl::sptr<tl::u64> bars = tl::shared<tl::u64>(smem, 0, 4);
  const int r = tl::cluster_rank();
  if (t == 0) {{
    for (int i = 0; i < 2; i++) {{ {init} }}
    tl::fence_memory(tl::op(3));
  }}
  {synced}
  for (int k = 0; k < 8; k++) {{
    if (t == 0) {{
      {empty}
      {expect}
      {copy}
    }}
    {full}
    tl::st<1>(o, p * 512 + k * 64 + t, tl::ld<1>(s, k % 2 * 256 + t * 4, tl::op(9)), tl::op(10));
    {arrive}
  }}
  {end}
"""


def arguments() -> list[Any]:
    return [values(64 * 32), output(1024), TensorMap(0, (32, 64), (4, 128), (32, 4), 0)]


wrong = Template(RING, PARTS, arguments, PARAMS, shared=4096, programs=2, head=HEAD).wrong


FOLLOW = ("async-pending", "async-unwaited", "race-war", "deadlock", "mbarrier", "uninitialised-shared", "transaction",
          "cluster-lifetime", "race-raw", "missing-fence", "divergent-barrier")
"""What blocks that are out of step may meet as well."""
CASES = [
    wrong("a copy to a block that nobody waited to begin", "synced", PARTS["synced"].replace("cluster_", ""),
          ("cluster-lifetime", 7, -1), *FOLLOW, always=False),
    wrong("a copy over what another block still reads", "empty", "", ("race-war", 7, 9), *FOLLOW, always=False),
    wrong("barriers that count the arrivals of one block only", "init", PARTS["init"].replace("2 + i, 4", "2 + i, 2"),
          ("mbarrier", 5, -1), *FOLLOW),
    wrong("a block gives back its own copy only", "arrive",
          "tl::mbarrier_arrive_at(bars, 2 + k % 2, 1u << r, tl::op(11));", ("deadlock", 8, 5), *FOLLOW),
    wrong("bytes that another block sends are not expected", "expect", PARTS["expect"].replace("1024", "512"),
          ("transaction", 7, 6), *FOLLOW, always=False),
    wrong("a copy that does not go to the other block", "copy", PARTS["copy"].replace(", 3, ", ", 1u << r, "),
          ("deadlock", 8, -1), *FOLLOW),
    wrong("a block exits while another arrives at its barriers", "end", "", ("cluster-lifetime", 11, -1), *FOLLOW,
          always=False),
    wrong("a copy to a block that the cluster does not have", "copy", PARTS["copy"].replace(", 3, ", ", 7, "),
          ("bounds-shared", 7, -1), *FOLLOW),
]
