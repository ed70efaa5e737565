"""Copies of boxes of tensors: what they leave in shared memory, and in tensors, in both tiers."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.backends.emulator import multicast
from tests.backends.emulator.bulk import PARTS, RING, arguments
from tests.backends.emulator.ptx.test_mistakes import planted
from tests.backends.emulator.ptx.tiers import needs_nvrtc, on_ptx
from tests.backends.emulator.texts import F, found, kernel, run
from tilelang.backends.cuda import nvrtc
from tilelang.backends.emulator.ptx.parse import PtxError
from tilelang.backends.emulator.run import POLICIES, Buffer, TensorMap

TEXT = """
#define TL_BULK
#include "tl.h"
TL_KERNEL(k, 32)(tl::gptr<const {t}> a, tl::gptr<{t}> o, TL_TENSOR_MAP m, {parameters}) {{
  TL_SHARED(smem, {shared});
  const tl::sptr<{t}> s = tl::shared<{t}>(smem, 1024, {count});
  const tl::sptr<tl::u64> bars = tl::shared<tl::u64>(smem, 0, 1);
  const int t = tl::thread();
  if (t == 0) tl::mbarrier_init(bars, 0, 1, tl::op(1));
  tl::fence_memory(tl::op(2));
  tl::barrier(tl::op(3));
  if (tl::elected(tl::op(9))) {{
    tl::mbarrier_expect(bars, 0, {bytes}, tl::op(4));
    tl::tensor_load(s, 0, m, tl::vec<tl::i32, {rank}>{{{at}}}, bars, 0, tl::op(5));
  }}
  tl::mbarrier_wait(bars, 0, 0, tl::op(6));
  for (int i = t; i < {count}; i += 32) tl::st<1>(o, i, tl::ld<1>(s, i, tl::op(7)), tl::op(8));
}}
TL_EXPORT(k)
"""
CASES = [  # type, extents, extents of the box, start, bytes of rows that are permuted; neighbours last
    ("tl::u8", (70,), (32,), (40,), 0),
    ("float", (9, 20), (4, 8), (7, -3), 32),
    ("tl::u16", (40, 72), (16, 32), (-5, 48), 64),
    ("tl::u16", (12, 3, 80), (3, 2, 64), (2, 2, 8), 128),
    ("double", (4, 3, 5, 6), (2, 3, 1, 4), (3, -1, 4, 1), 32),
    ("tl::u32", (3, 2, 3, 2, 16), (2, 1, 3, 2, 8), (0, 1, 1, -1, 5), 0),
]


def case(t: str, extents: tuple[int, ...], box: tuple[int, ...], start: tuple[int, ...],
         swizzle: int) -> tuple[str, list[Any], np.ndarray[Any, Any]]:
    """The text, its arguments, and what shared memory holds."""
    dtype = np.dtype({"float": np.float32, "double": np.float64}.get(t) or t.removeprefix("tl::").replace("u", "uint"))
    rank, count, size = len(box), int(np.prod(box)), dtype.itemsize
    pitch = -(-extents[-1] * size // 16) * 16 // size  # rows have gaps between them
    whole = np.arange(int(np.prod((*extents[:-1], pitch)))).astype(dtype).reshape(*extents[:-1], pitch)
    a = whole[..., :extents[-1]]
    index = [s + i for s, i in zip(start, np.ogrid[tuple(map(slice, box))], strict=True)]
    inside = np.logical_and.reduce(np.broadcast_arrays(*((i >= 0) & (i < n)
                                                         for i, n in zip(index, extents, strict=True))))
    clipped = tuple(np.clip(i, 0, n - 1) for i, n in zip(index, extents, strict=True))
    block = np.where(inside, a[clipped], 0).reshape(-1)
    wanted, place = np.empty(count, dtype), np.arange(count) * size
    wanted[(place ^ (place >> 7 & max(swizzle // 16 - 1, 0)) << 4) // size] = block
    text = TEXT.format(t=t, parameters=", ".join(f"int x{i}" for i in range(rank)), shared=1024 + count * size,
                       count=count, bytes=count * size, rank=rank, at=", ".join(f"x{i}" for i in range(rank)))
    tensor = TensorMap(0, extents[::-1], a.strides[::-1], box[::-1], swizzle)
    return text, [Buffer(a), Buffer(np.zeros(count, dtype)), tensor, *map(np.int32, start[::-1])], wanted


@pytest.mark.parametrize("which", range(len(CASES)))
def test_a_box_lands_where_it_should(which: int) -> None:
    text, args, wanted = case(*CASES[which])
    assert found(text, args, 32, 8192) == [set()] * 5
    np.testing.assert_array_equal(args[1].array, wanted)


BACK = """
#define TL_BULK
#include "tl.h"
TL_KERNEL(k, 32)(tl::gptr<{t}> a, tl::gptr<const {t}> o, TL_TENSOR_MAP m, {parameters}) {{
  TL_SHARED(smem, {shared});
  const tl::sptr<{t}> s = tl::shared<{t}>(smem, 1024, {count});
  const int t = tl::thread();
  for (int i = t; i < {count}; i += 32) tl::st<1>(s, i, tl::ld<1>(o, i, tl::op(1)), tl::op(2));
  tl::fence_memory(tl::op(3));
  tl::barrier(tl::op(4));
  if (tl::elected(tl::op(5))) {{
    tl::tensor_store(s, 0, m, tl::vec<tl::i32, {rank}>{{{at}}}, tl::op(6));
    tl::bulk_commit(tl::op(7));
    tl::bulk_wait<0, true>(tl::op(8));
  }}
}}
TL_EXPORT(k)
"""


def back(t: str, extents: tuple[int, ...], box: tuple[int, ...], start: tuple[int, ...],
         swizzle: int) -> tuple[str, list[Any], np.ndarray[Any, Any]]:
    """The text of the copy the other way, its arguments, and what the tensor holds: all of `case`'s but what lies
    outside of the box."""
    text, (a, _, tensor, *at), memory = case(t, extents, box, start, swizzle)
    text = BACK.format(t=t, parameters=", ".join(f"int x{i}" for i in range(len(box))), count=memory.size,
                       shared=1024 + memory.nbytes, rank=len(box), at=", ".join(f"x{i}" for i in range(len(box))))
    wanted = np.zeros_like(a.array)
    where = tuple(slice(max(s, 0), max(s + n, 0)) for s, n in zip(start, box, strict=True))
    wanted[where] = a.array[where]
    written = np.zeros((*extents[:-1], a.array.strides[-2] // a.array.itemsize if len(extents) > 1 else extents[-1]),
                       a.array.dtype)[..., :extents[-1]]
    return text, [Buffer(written), Buffer(memory), tensor, *at], wanted


@pytest.mark.parametrize("which", range(len(CASES)))
def test_a_box_goes_where_it_should(which: int) -> None:
    text, args, wanted = back(*CASES[which])
    for policy in POLICIES:
        args[0].array[...] = 0
        assert not run(text, args, 32, 8192, policy=policy).findings
        np.testing.assert_array_equal(args[0].array, wanted)


@needs_nvrtc
@pytest.mark.parametrize("which", range(len(CASES)))
@pytest.mark.parametrize(("copy", "written"), [(case, 1), (back, 0)])
def test_the_prelude_of_the_gpu_agrees(copy: Callable[..., Any], written: int, which: int) -> None:
    text, args, wanted = copy(*CASES[which])
    on_ptx(text, "compute_90a")("k", args, threads=32, shared_bytes=8192)
    np.testing.assert_array_equal(args[written].array, wanted)


@pytest.mark.parametrize("which", [1, 5])
@pytest.mark.parametrize("tier", ["emulator", pytest.param("ptx", marks=needs_nvrtc)])
def test_a_box_is_added_to_what_is_there(which: int, tier: str) -> None:
    text, args, added = back(*CASES[which])
    text = text.replace("tl::tensor_store", "tl::tensor_add")
    rng = np.random.default_rng(0)
    args[0].array[...] = before = rng.integers(0, 9, args[0].array.shape).astype(args[0].array.dtype)
    if tier == "ptx":
        on_ptx(text, "compute_90a")("k", args, threads=32, shared_bytes=8192)
    else:
        assert not run(text, args, 32, 8192).findings
    np.testing.assert_array_equal(args[0].array, before + added)


@needs_nvrtc
def test_a_ring_runs_as_ptx() -> None:
    """Waits spin until others arrive: threads at the lowest instruction must not keep those from going on."""
    text = "#define TL_BULK\n" + kernel(F + ", TL_TENSOR_MAP m", RING.format(**PARTS))
    args, again = arguments(), arguments()
    on_ptx(text, "compute_90a")("k", args, threads=64, shared_bytes=8192)
    run(text, again, 64, 8192)
    np.testing.assert_array_equal(args[1].array, again[1].array)


def test_a_copy_counts_its_bytes() -> None:
    text, args, _ = case("float", (8, 32), (8, 32), (0, 0), 128)
    counter = run(text, args, 32, 8192).counters[5]
    assert counter.instructions == {"bulk": 1}
    assert (counter.bytes, counter.sectors, counter.ideal_sectors) == (1024, 32, 32)


def test_blocks_of_a_cluster_fetch_halves_for_each_other() -> None:
    text = kernel(multicast.PARAMS, multicast.RING.format(**multicast.PARTS), 64, multicast.HEAD)
    args = multicast.arguments()
    result = run(text, args, 64, 4096, programs=2)
    blocks = args[0].array.reshape(8, 256)[:, ::4]
    np.testing.assert_array_equal(args[1].array.reshape(2, 8, 64), [blocks, blocks])
    assert result.counters[7].bytes == args[0].array.nbytes  # each byte is read once for both


@needs_nvrtc
def test_a_cluster_runs_as_ptx() -> None:
    text = kernel(multicast.PARAMS, multicast.RING.format(**multicast.PARTS), 64, multicast.HEAD)
    args, again = multicast.arguments(), multicast.arguments()
    on_ptx(text, "compute_90a")("k", args, threads=64, shared_bytes=4096, programs=2)
    run(text, again, 64, 4096, programs=2)
    np.testing.assert_array_equal(args[1].array, again[1].array)


@needs_nvrtc
@pytest.mark.parametrize(("right", "wrong"), [('"r"(lane));', '"r"(0));'), ('"h"(u16(ranks))', '"h"(u16(1))')])
def test_a_mistake_in_the_prelude_of_clusters_shows(right: str, wrong: str, tmp_path: Path) -> None:
    text = kernel(multicast.PARAMS, multicast.RING.format(**multicast.PARTS), 64, multicast.HEAD)
    tier = on_ptx(text, "compute_90a", planted(tmp_path, "tl_bulk.h", right, wrong))
    with pytest.raises(PtxError, match="wait for others that never come|more arrivals than"):
        tier("k", multicast.arguments(), threads=64, shared_bytes=4096, programs=2)


@needs_nvrtc
def test_the_instructions_of_multicast() -> None:
    text = kernel(multicast.PARAMS, multicast.RING.format(**multicast.PARTS), 64, multicast.HEAD)
    ptx = nvrtc.ptx(text, "sm_90a")
    for name in ("shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster", ".reqnctapercluster 2",
                 "mapa.shared::cluster.u32", "mbarrier.arrive.shared::cluster.b64"):
        assert name in ptx
    assert nvrtc.compile(text, "sm_90a").report["k"]["spill_bytes"] == 0
