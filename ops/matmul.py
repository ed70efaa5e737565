"""Matrix product."""
from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

import tilelang as tile
from tilelang.args import empty_like
from tilelang.jit import architecture, only_allocates
from tilelang.ops.common import block, dtype_of, even
from tilelang.ops.streamk import BANDWIDTH, CACHE, LAUNCH, OF_ONE, PROCESSORS, finish_kernel, part, share, slot
from tilelang.targets import cpu_features, cpu_registers

FLOPS = 5000.0
"""Of f16, of one processor in a nanosecond."""
PACKED = 100 << 10
"""Numbers of a packed block that a second level of 512 KiB holds beside what streams through it."""
LEAST = 8
"""Steps of a program that shares blocks, or their copies, with others."""


@tile.kernel
def matmul_kernel(a: tile.Tensor[tile.T, "M K"], b: tile.Tensor[tile.T, "K N"], c: tile.Out[tile.U, "M N"],
                  BM: tile.Const, BN: tile.Const, BK: tile.Const, ACC: tile.Const,
                  CLUSTER: tile.Const = (1, 1), parts: tile.Out[tile.f32, "P H W"] = None):
    """c = a @ b, one block of c for each program, of which those of a CLUSTER copy for each other; with `parts` the
    programs share the steps of all blocks evenly (`ops.streamk`)."""
    (M, K), N = a.shape, b.shape[1]
    wide, high, deep = tile.cdiv(M, BM), tile.cdiv(N, BN), tile.cdiv(K, BK)
    if parts is None:
        m, n = tile.grid(wide, high, group=8, cluster=CLUSTER)
        tile.store(c, (m * BM, n * BN), of_steps(a, b, m, n, 0, deep, BM, BN, BK, ACC).to(c.dtype))
    else:
        p = tile.grid(parts.shape[0])
        start, end = share(p, parts.shape[0], wide * high * deep)
        for t in tile.range(start // deep, tile.cdiv(end, deep)):
            m, n = t % wide, t // wide
            first, last = part(t, start, end, deep)
            acc = of_steps(a, b, m, n, first, last, BM, BN, BK, ACC)
            if last - first == deep:
                tile.store(c, (m * BM, n * BN), acc.to(c.dtype))
            else:
                tile.store(parts, (p, slot(t, start, deep) * BM, 0), acc)


@tile.function
def of_steps(a, b, m, n, first, last, BM, BN, BK, ACC):
    """The sum over blocks of k from `first` to `last`."""
    acc = tile.zeros((BM, BN), ACC)
    for k in tile.range(first * BK, tile.minimum(last * BK, a.shape[1]), BK, stages=3):
        acc += tile.dot(tile.load(a, (m * BM, k), (BM, BK)), tile.load(b, (k, n * BN), (BK, BN)))
    return acc


def blocks(m: int, n: int, k: int, size: int = 4, gpu: bool = False) -> tuple[int, int, int]:
    """(BM, BN, BK). On a CPU the accumulator and both operand blocks stay in a 1 MiB second-level cache, blocks are of
    one size where that divides, so that none is masked or mostly empty, and every thread has one. Operands of `size`
    2 bytes leave room for blocks of twice the depth, those of 1 byte for twice the height and depth, so that packing
    them takes a smaller share of the time, or even four times the depth where the sums then never leave registers
    before they are complete. On a `gpu` blocks fill registers and shared memory."""
    if only_allocates():
        return 1, 1, 1
    if gpu:
        return block(m, 128, 16), block(n, 128, 16), block(k, 64 if size == 1 else 32, 16)
    if cpu_registers() == 16:
        return _high_blocks(m, n, k)
    rows, columns = 512 if size == 1 else 256, even(n, 256, 32)
    while rows > 64 and -(-m // rows) * -(-n // columns) < tile.get_num_threads():
        rows //= 2
    deepest = 1024 if size == 1 and k <= 1024 else 1024 // max(size, 2)
    return even(m, rows, 4 if m > 4 else 1), columns, even(k, deepest, 8)


def _high_blocks(m: int, n: int, k: int) -> tuple[int, int, int]:
    """`blocks` with 16 registers, where a block asks for what it reads next, from whatever cache: they are high and
    wide, for half the packing, and low ones are deep. Of few blocks all threads have equally many, two each where they
    are not small, of which a faster one takes three."""
    rows, columns, threads = even(m, 512, 4), even(n, 512, 32), tile.get_num_threads()
    while threads > 1 and max(rows, columns) > 64:
        count = -(-m // rows) * -(-n // columns)
        least = 2 * threads if rows * columns > 1 << 14 else threads
        if count >= 8 * threads or count >= least and count % threads == 0:
            break
        if rows > columns:
            rows = even(m, rows - 4, 4)
        else:
            columns = even(n, columns - 32, 32)
    high = even(m, rows, 4 if m > 4 else 1)
    return high, columns, even(k, min(max(PACKED // high, 256), 512), 8)


class Plan(NamedTuple):
    """How a product is divided on a GPU: blocks, programs of a cluster along m and n, and how many programs share the
    steps of all blocks (0: each block is one program's)."""

    BM: int
    BN: int
    BK: int
    CLUSTER: tuple[int, int] = (1, 1)
    programs: int = 0


def plans(m: int, n: int, k: int, blocks: Sequence[tuple[int, int, int]], pairs: bool = False) -> list[Plan]:
    """The ways to divide a product into some of these blocks, the simplest first. `pairs`: programs of a cluster may
    copy for each other (sm_90a); two of them, for processors come in pairs, where they divide the grid."""
    out = []
    for bm, bn, bk in blocks:
        wide, high, deep = -(-m // bm), -(-n // bn), -(-k // bk)
        out.append(Plan(bm, bn, bk))
        if pairs and deep >= LEAST:
            out += [Plan(bm, bn, bk, c) for c in ((2, 1), (1, 2)) if not (wide % c[0] or high % c[1])]
        if (programs := min(PROCESSORS, wide * high * deep // LEAST)) > 1:
            out.append(Plan(bm, bn, bk, programs=programs))
    return out


def nanoseconds(p: Plan, m: int, n: int, k: int, size: int = 0) -> float:
    """What a model expects of a plan: processors do blocks in turns, and sharing steps asks for another kernel and for
    memory. Numbers of `size` bytes come from the second-level cache, a block that programs of a cluster have in common
    once for all of them; 0: that is not counted. A plan that is not simple has to gain a tenth."""
    tiles, deep = -(-m // p.BM) * -(-n // p.BN), -(-k // p.BK)
    count = p.programs or tiles
    read = size * p.BK * (p.BM / p.CLUSTER[1] + p.BN / p.CLUSTER[0])
    step = max(2 * p.BM * p.BN * p.BK / FLOPS, read / min(OF_ONE, CACHE / min(max(count, 1), PROCESSORS)))
    if not p.programs:
        time = -(-tiles // PROCESSORS) * deep * step
    else:
        parts = 2 * min(2 * count, count + tiles) * p.BM * p.BN * 4 / BANDWIDTH
        time = -(-tiles * deep // count) * step + parts + LAUNCH
    return time if not p.programs and p.CLUSTER == (1, 1) else time / 0.9


@lru_cache(maxsize=4096)
def plan(m: int, n: int, k: int, blocks: tuple[tuple[int, int, int], ...], size: int = 0) -> Plan:
    """The plan that the model takes to be fastest; with a `size`, for sm_90a."""
    return min(plans(m, n, k, blocks, size > 0), key=lambda p: nanoseconds(p, m, n, k, size))


def group_blocks(m: int, n: int, k: int) -> tuple[tuple[int, int, int], ...]:
    """(BM, BN, BK) of products of 16-bit floats by groups of four warps (sm_90a), two ways. 128 x 256 sums are
    registers of two groups, and three stages of blocks 147 of 227 KB: such a block is alone on its multiprocessor, so
    other warps copy for it, its loop has a sixth of the instructions for a product that blocks of 128 x 128 x 32 take
    (0.4 of 2.6), and it reads three quarters of what 128 x 128 read for a product, of which there are more."""
    widths = (256, 128) if m >= 128 and n >= 256 else (128,)
    return tuple((block(m, 128, 16), block(n, width, 16), block(k, 64, 16)) for width in widths)


def packed_size(dt: tile.DType, gpu: bool = False) -> int:
    """Bytes of a number as a product takes it, on this CPU where that has instructions for small ones."""
    features = cpu_features()
    if dt.is_integer and dt.max <= 127:
        return 1 if gpu or "vnni" in features else 2 if "avx2" in features else 4
    return 2 if dt is tile.bf16 and "bf16" in features else 4


def matmul_backward(a: Any, b: Any, dc: Any) -> tuple[Any, Any]:
    """(dc b^T, a^T dc). Raises TypeError for integers."""
    if dtype_of(a).is_integer:
        raise TypeError(f"a product of integers has no gradient: needs a float dtype, got {a.dtype}")
    return matmul.fn(dc, b.T), matmul.fn(a.T, dc)


@tile.torch_op("tilelang::matmul", backward=matmul_backward, outputs="c", dims="m k, k n -> m n", autocast="lower")
def matmul(a: Any, b: Any, out: Any = None) -> Any:
    """a [M, K] @ b [K, N] in the operands' dtype, accumulated in f32 (f64, or i32 for integers, whose result is i32).

    Raises ValueError for other ranks, and the errors of a kernel call."""
    if not len(a.shape) == len(b.shape) == 2:
        raise ValueError(f"matmul takes a [M, K] and b [K, N], got {list(a.shape)} and {list(b.shape)}")
    dt = dtype_of(a)
    acc = tile.dtype("i32") if dt.is_integer else tile.dtype("f64" if dt.name == "f64" else "f32")
    if out is None:
        result = empty_like(a, (a.shape[0], b.shape[1]), acc if dt.is_integer else dt)
    else:
        result = out
    gpu = tile.on_gpu(a, b) and not only_allocates()
    sizes = a.shape[0], b.shape[1], a.shape[1]
    by_groups = gpu and dt.name in ("f16", "bf16") and architecture(a, b) == "cuda:sm_90a"
    if by_groups:
        how = plan(*sizes, group_blocks(*sizes), 2)
    elif gpu and acc is tile.f32:
        how = plan(*sizes, (blocks(*sizes, packed_size(dt, gpu), gpu),))
    else:
        how = Plan(*blocks(*sizes, packed_size(dt, gpu), gpu))
    product(a, b, result, how, acc)
    return result


def product(a: Any, b: Any, c: Any, how: Plan, acc: tile.DType = tile.f32) -> None:
    """a @ b into c, accumulated in `acc`, in this way."""
    sizes = {"BM": how.BM, "BN": how.BN}
    if not how.programs:
        matmul_kernel(a, b, c, **sizes, BK=how.BK, ACC=acc, CLUSTER=how.CLUSTER)
        return
    parts = empty_like(a, (how.programs, 2 * how.BM, how.BN), tile.f32)
    matmul_kernel(a, b, c, **sizes, BK=how.BK, ACC=acc, parts=parts)
    finish_kernel(parts, c, -(-a.shape[1] // how.BK), **sizes)


def reference(a: Any, b: Any) -> Any:
    """f64 product."""
    return np.asarray(a, np.float64) @ np.asarray(b, np.float64)
