"""Matrix product."""
from __future__ import annotations

from typing import Any

import numpy as np

import tilelang as tile
from tilelang.args import empty_like
from tilelang.jit import architecture
from tilelang.ops.common import block, dtype_of
from tilelang.ops.streamk import BANDWIDTH, LAUNCH, PROCESSORS, finish_kernel, part, share, slot

FLOPS = 5000.0
"""Of f16, of one processor in a nanosecond."""
LEAST = 8
"""Steps of a program that shares blocks with others."""


@tile.kernel
def matmul_kernel(a: tile.Tensor[tile.T, "M K"], b: tile.Tensor[tile.T, "K N"], c: tile.Out[tile.U, "M N"],
                  BM: tile.Const, BN: tile.Const, BK: tile.Const, ACC: tile.Const,
                  parts: tile.Out[tile.f32, "P H W"] = None):
    """c = a @ b, one block of c for each program; with `parts` the programs share the steps of all blocks evenly
    (`ops.streamk`)."""
    (M, K), N = a.shape, b.shape[1]
    wide, high, deep = tile.cdiv(M, BM), tile.cdiv(N, BN), tile.cdiv(K, BK)
    if parts is None:
        m, n = tile.grid(wide, high, group=8)
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
    if gpu:
        return block(m, 128, 16), block(n, 128, 16), block(k, 64 if size == 1 else 32, 16)

    def even(extent: int, largest: int, multiple: int) -> int:
        count = -(-extent // largest)
        return block(-(-extent // count), largest, multiple)
    rows, columns = 512 if size == 1 else 256, even(n, 256, 32)
    while rows > 64 and -(-m // rows) * -(-n // columns) < tile.get_num_threads():
        rows //= 2
    deepest = 1024 if size == 1 and k <= 1024 else 1024 // max(size, 2)
    return even(m, rows, 4 if m > 4 else 1), columns, even(k, deepest, 8)


def group_blocks(m: int, n: int, k: int) -> tuple[int, int, int]:
    """(BM, BN, BK) of products of 16-bit floats by groups of four warps (sm_90a). 128 x 256 sums are registers of two
    groups, and three stages of blocks 147 of 227 KB: such a block is alone on its multiprocessor, so other warps copy
    for it, and its loop has a sixth of the instructions for a product that blocks of 128 x 128 x 32 take (0.4 of
    2.6). Where not every processor has one, blocks of 128 x 128, two to a processor."""
    wide = n >= 256 and -(-m // 128) * -(-n // 256) >= PROCESSORS
    return block(m, 128, 16), block(n, 256 if wide else 128, 16), block(k, 64, 16)


def packed_size(dt: tile.DType) -> int:
    """Bytes of a number as a product on a CPU takes it, where that has instructions for small ones."""
    return 1 if dt.is_integer and dt.max <= 127 else 2 if dt is tile.bf16 else 4


def matmul_backward(a: Any, b: Any, dc: Any) -> tuple[Any, Any]:
    """(dc b^T, a^T dc). Raises TypeError for integers."""
    if dtype_of(a).is_integer:
        raise TypeError(f"a product of integers has no gradient: needs a float dtype, got {a.dtype}")
    return matmul.fn(dc, b.T), matmul.fn(a.T, dc)


@tile.torch_op("tilelang::matmul", backward=matmul_backward, outputs="c", dims="m k, k n -> m n", autocast="lower")
def matmul(a: Any, b: Any, out: Any = None) -> Any:
    """a [M, K] @ b [K, N] in the operands' dtype, accumulated in f32 (f64, or i32 for integers, whose result is i32).

    Raises the errors of a kernel call."""
    dt = dtype_of(a)
    acc = tile.dtype("i32") if dt.is_integer else tile.dtype("f64" if dt.name == "f64" else "f32")
    if out is None:
        result = empty_like(a, (a.shape[0], b.shape[1]), acc if dt.is_integer else dt)
    else:
        result = out
    gpu, sizes = tile.on_gpu(a, b), (a.shape[0], b.shape[1], a.shape[1])
    by_groups = gpu and dt.name in ("f16", "bf16") and architecture(a, b) == "cuda:sm_90a"
    bm, bn, bk = group_blocks(*sizes) if by_groups else blocks(*sizes, packed_size(dt), gpu)
    programs = 0
    if gpu and acc is tile.f32:
        programs = shared_by(*sizes, bm, bn, bk)
    if not programs:
        return matmul_kernel(a, b, result, BM=bm, BN=bn, BK=bk, ACC=acc)
    parts = empty_like(a, (programs, 2 * bm, bn), tile.f32)
    matmul_kernel(a, b, result, BM=bm, BN=bn, BK=bk, ACC=acc, parts=parts)
    finish_kernel(parts, result, -(-a.shape[1] // bk), BM=bm, BN=bn)
    return result


def shared_by(m: int, n: int, k: int, bm: int, bn: int, bk: int) -> int:
    """How many programs are to share the steps of a product on a GPU, 0 where that gains less than a tenth by a model
    of time: the processors do blocks in turns, and sharing asks for another kernel and for memory."""
    tiles, deep, step = -(-m // bm) * -(-n // bn), -(-k // bk), 2 * bm * bn * bk / FLOPS
    programs = min(PROCESSORS, tiles * deep // LEAST)
    if programs < 2 or not tiles:
        return 0
    alone = -(-tiles // PROCESSORS) * deep * step
    parts = 2 * min(2 * programs, programs + tiles) * bm * bn * 4 / BANDWIDTH
    return programs if -(-tiles * deep // programs) * step + parts + LAUNCH < 0.9 * alone else 0


def reference(a: Any, b: Any) -> Any:
    """f64 product."""
    return np.asarray(a, np.float64) @ np.asarray(b, np.float64)
