"""Planted mistakes in clusters of two blocks that access each other's shared memory."""
from __future__ import annotations

from tests.backends.emulator.texts import Case, output, values

HEAD = "#define TL_CLUSTER 2"
# Each block hands the other its 64 numbers, which that one writes to the tensor.
READ = """
  TL_SHARED(smem, 1024);
  const int r = tl::cluster_rank();
  const tl::sptr<float> s = tl::shared<float>(smem, 0, 64);
  const tl::rptr<float> other = tl::peer(s, {rank}, tl::op(1));
  tl::st<1>(s, t, tl::ld<1>(a, p * 64 + t, tl::op(2)), tl::op(3));
  {ready}
  tl::st<1>(o, p * 64 + t, tl::ld<1>(other, 63 - t, tl::op(5)), tl::op(6));
  {done}
"""
# Each block writes into the other's shared memory, twice.
WRITE = """
  TL_SHARED(smem, 1024);
  const int r = tl::cluster_rank();
  const tl::sptr<float> s = tl::shared<float>(smem, 0, 64);
  const tl::rptr<float> other = tl::peer(s, r ^ 1, tl::op(1));
  {begun}
  for (int k = 0; k < 2; k++) {{
    tl::st<1>(other, t, tl::ld<1>(a, p * 64 + t, tl::op(3)), tl::op(4));
    {written}
    tl::st<1>(o, p * 128 + k * 64 + t, tl::ld<1>(s, 63 - t, tl::op(6)), tl::op(7));
    {read}
  }}
"""
READY, DONE = (f"tl::cluster_barrier(tl::op({i}));" for i in (4, 7))
BEGUN, WRITTEN, READ_OUT = (f"tl::cluster_barrier(tl::op({i}));" for i in (2, 5, 8))


def case(name: str, text: str, parts: dict[str, str], part: str, wrong: str, finds: tuple[str, int, int], *also: str,
         always: bool = True) -> Case:
    return Case(name, text.format(**{**parts, part: "$"}), wrong, parts[part], finds, programs=4,
                args=[values(256), output(512)], also=also, always=always, head=HEAD)


def read(name: str, part: str, wrong: str, finds: tuple[str, int, int], *also: str, always: bool = True) -> Case:
    parts = {"rank": "r ^ 1", "ready": READY, "done": DONE}
    return case(name, READ, parts, part, wrong, finds, *also, always=always)


def write(name: str, part: str, wrong: str, finds: tuple[str, int, int], *also: str, always: bool = True) -> Case:
    parts = {"begun": BEGUN, "written": WRITTEN, "read": READ_OUT}
    return case(name, WRITE, parts, part, wrong, finds, *also, always=always)


CASES = [
    read("a peer's shared memory read without a barrier of the cluster", "ready", "", ("race-raw", 5, 3),
         "cluster-lifetime", "uninitialised-shared", "race-war"),
    read("a barrier of the block where one of the cluster is needed", "ready", READY.replace("cluster_", ""),
         ("race-raw", 5, 3), "cluster-lifetime", "uninitialised-shared", "race-war"),
    read("a block exits while its shared memory is still read", "done", "", ("cluster-lifetime", 5, -1)),
    read("a barrier of the block before an exit", "done", DONE.replace("cluster_", ""), ("cluster-lifetime", 5, -1)),
    read("a block that the cluster does not have", "rank", "r + 1", ("bounds-shared", 1, -1)),
    read("a barrier of the cluster that one block does not come to", "done", "if (r == 0) " + DONE,
         ("divergent-barrier", 7, -1), "cluster-lifetime", "deadlock"),
    read("blocks of a cluster at different barriers", "done",
         "if (r == 0) " + DONE + " else " + DONE.replace("7", "8"), ("divergent-barrier", 7, 8)),
    write("a write to a block that may not have begun", "begun", "", ("cluster-lifetime", 4, -1)),
    write("a block read before another's write is waited for", "written", "", ("race-raw", 6, 4),
          "race-war", "uninitialised-shared", "race-waw", always=False),
    write("a write over what another block still reads", "read", "", ("race-war", 4, 6), "cluster-lifetime",
          "race-raw"),
]
