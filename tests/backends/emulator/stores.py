"""Planted mistakes with copies of blocks from shared memory to tensors."""
from __future__ import annotations

from typing import Any

from tests.backends.emulator.texts import F, Template, output, values
from tilelang.backends.emulator.run import TensorMap

PARAMS = F + ", TL_TENSOR_MAP m"
# Both warps write blocks of 2 x 32 floats, one after the other by way of one buffer; thread 0 copies each.
PARTS = {
    "write": "tl::st<1>(s, t, tl::ld<1>(a, k * 64 + t, tl::op(1)), tl::op(2));",
    "fence": "tl::fence_memory(tl::op(3));",
    "synced": "tl::barrier(tl::op(4));",
    "copy": "tl::tensor_store(s, 0, m, tl::vec<tl::i32, 2>{0, 2 * k}, tl::op(5));",
    "commit": "tl::bulk_commit(tl::op(6));",
    "read": "tl::bulk_wait<0, true>(tl::op(7));",
    "again": "tl::barrier(tl::op(8));",
    "after": "",
}
COPIES = """
  TL_SHARED(smem, 1024);
  const tl::sptr<float> s = tl::shared<float>(smem, 0, 128);
  for (int k = 0; k < 4; k++) {{
    {write}
    {fence}
    {synced}
    if (t == 0) {{
      {copy}
      {commit}
      {read}
    }}
    {again}
  }}
  {after}
"""


def arguments() -> list[Any]:
    return [values(256), output(256), TensorMap(1, (32, 8), (4, 128), (32, 2), 0)]


wrong = Template(COPIES, PARTS, arguments, PARAMS, shared=1024).wrong


LOAD = "if (t == 0) {{ {} tl::check(tl::ld<1>(o, 0, tl::op(10))[0] == 0, tl::op(11)); }}"
CASES = [
    wrong("a block copied without a fence of memory after it was written", "fence", "", ("missing-fence", 5, 2)),
    wrong("a block copied before others have written it", "synced", "", ("race-raw", 5, 2), "missing-fence",
          "async-pending", "race-waw", "race-war", "uninitialised-shared", always=False),
    wrong("a buffer written again before it has been read", "read", "", ("async-pending", 2, 5), "async-unwaited"),
    wrong("a wait that lets one copy go on", "read", PARTS["read"].replace("0, true", "1, true"),
          ("async-pending", 2, 5), "async-unwaited"),
    wrong("a wait for copies of no group", "commit", "", ("async-pending", 2, 5), "async-unwaited"),
    wrong("a buffer written again by threads that nobody told", "again", "", ("async-pending", 2, 5), "race-war",
          "race-waw", "missing-fence", "race-raw", "divergent-barrier", always=False),
    wrong("a kernel that ends before a buffer has been read", "after",
          "if (t == 0) { " + PARTS["copy"].replace("2 * k", "0").replace("5", "9") + PARTS["commit"] + "}",
          ("async-unwaited", 9, -1), "async-pending"),
    wrong("a tensor read before it has been written", "after", LOAD.format(""), ("async-pending", 10, 5),
          right=LOAD.format("tl::bulk_wait<0, false>(tl::op(9));")),
    wrong("a tensor written twice at once", "copy", PARTS["copy"].replace("2 * k", "0"), ("async-pending", 5, 5),
          right="tl::bulk_wait<0, false>(tl::op(9));" + PARTS["copy"].replace("2 * k", "0")),
    wrong("a copy from a place where boxes may not begin", "copy", PARTS["copy"].replace("s, 0", "s, 8"),
          ("misaligned", 5, -1)),
    wrong("a copy from beyond the end of a buffer", "copy", PARTS["copy"].replace("s, 0", "s, 96"),
          ("bounds-shared", 5, -1)),
]
