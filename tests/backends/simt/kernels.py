"""Kernels that exercise every way in which threads of a program exchange data, and calls of them."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import tilelang as tile
from tilelang import ops


@tile.kernel
def matmul(a: tile.Tensor[tile.T, "M K"], b: tile.Tensor[tile.T, "K N"], c: tile.Out[tile.f32, "M N"],
           BM: tile.Const = 32, BN: tile.Const = 32, BK: tile.Const = 32, STAGES: tile.Const = 1,
           SCHEDULE: tile.Const = "", CLUSTER: tile.Const = ()):
    """c = a @ b"""
    (M, K), N = a.shape, b.shape[1]
    m, n = tile.grid(tile.cdiv(M, BM), tile.cdiv(N, BN), cluster=CLUSTER)
    acc = tile.zeros((BM, BN), tile.f32)
    for k in tile.range(0, K, BK, stages=STAGES, schedule=SCHEDULE):
        acc += tile.dot(tile.load(a, (m * BM, k), (BM, BK)), tile.load(b, (k, n * BN), (BK, BN)))
    tile.store(c, (m * BM, n * BN), acc)


@tile.kernel
def rows_of_products(a: tile.Tensor[tile.f16, "B M K"], b: tile.Tensor[tile.f16, "B K N"],
                     c: tile.Out[tile.U, "B M N"], BM: tile.Const = 64, BK: tile.Const = 64):
    """c = a @ b, matrix after matrix by one program: its ring and buffers are used again and again."""
    for i in tile.range(a.shape[0]):
        acc = tile.zeros((BM, BM), tile.f32)
        for k in tile.range(0, a.shape[2], BK, stages=3):
            acc += tile.dot(tile.load(a, (i, 0, k), (None, BM, BK)), tile.load(b, (i, k, 0), (None, BK, BM)))
        tile.store(c, (i, 0, 0), acc.to(c.dtype), (None, BM, BM))


@tile.kernel
def matmul_t(a: tile.Tensor[tile.T, "M K"], b: tile.Tensor[tile.T, "N K"], c: tile.Out[tile.T, "M N"],
             BM: tile.Const = 32, BN: tile.Const = 32, BK: tile.Const = 32, STAGES: tile.Const = 1):
    """c = a @ b.T"""
    (M, K), N = a.shape, b.shape[0]
    m, n = tile.grid(tile.cdiv(M, BM), tile.cdiv(N, BN))
    acc = tile.zeros((BM, BN), tile.f32)
    for k in tile.range(0, K, BK, stages=STAGES):
        acc += tile.dot(tile.load(a, (m * BM, k), (BM, BK)), tile.load(b, (n * BN, k), (BN, BK)).T)
    tile.store(c, (m * BM, n * BN), acc.to(c.dtype))


@tile.kernel
def attention(q: tile.Tensor[tile.T, "S D"], k: tile.Tensor[tile.T, "L D"], v: tile.Tensor[tile.T, "L D"],
              o: tile.Out[tile.f32, "S D"], BM: tile.Const = 64, BN: tile.Const = 32, BD: tile.Const = 32,
              STAGES: tile.Const = 1, SCHEDULE: tile.Const = "", CLUSTER: tile.Const = ()):
    """softmax(q k^T) v, dot -> cast -> dot in registers."""
    S, L = q.shape[0], k.shape[0]
    m = tile.grid(tile.cdiv(S, BM), cluster=CLUSTER)
    query = tile.load(q, (m * BM, 0), (BM, BD))
    top = tile.full((BM,), float("-inf"), tile.f32)
    total = tile.zeros((BM,), tile.f32)
    acc = tile.zeros((BM, BD), tile.f32)
    for n in tile.range(0, L, BN, stages=STAGES, schedule=SCHEDULE):
        s = tile.dot(query, tile.load(k, (n, 0), (BN, BD)).T)
        s = tile.where(n + tile.arange(BN)[None, :] < L, s, float("-inf"))
        new = tile.maximum(top, s.max(1))
        p = tile.exp(s - new[:, None])
        keep = tile.exp(top - new)
        total = total * keep + p.sum(1)
        acc = tile.dot(p.to(v.dtype), tile.load(v, (n, 0), (BN, BD)), acc * keep[:, None])
        top = new
    tile.store(o, (m * BM, 0), acc / total[:, None])


@tile.kernel
def rows(x: tile.Tensor[tile.f32, "M N"], y: tile.Out[tile.f32, "M N"], z: tile.Out[tile.f32, "M"],
         BM: tile.Const = 4, BN: tile.Const = 256):
    """Prefix sums and the sum of each row, across warps."""
    m = tile.grid(tile.cdiv(x.shape[0], BM))
    t = tile.load(x, (m * BM, 0), (BM, BN))
    tile.store(y, (m * BM, 0), tile.cumsum(t, 1))
    tile.store(z, (m * BM,), t.sum(1))


@tile.kernel
def every_other(a: tile.Tensor[tile.f16, "M K"], b: tile.Tensor[tile.f16, "K N"], c: tile.Out[tile.f32, "M N"],
                BM: tile.Const = 32, BN: tile.Const = 32, BK: tile.Const = 32):
    """A product of every other block of k: operands of a dot under a condition in a loop."""
    acc = tile.zeros((BM, BN), tile.f32)
    for k in tile.range(0, a.shape[1], BK):
        if k // BK % 2 == 0:
            acc += tile.dot(tile.load(a, (0, k), (BM, BK)), tile.load(b, (k, 0), (BK, BN)))
    tile.store(c, (0, 0), acc)


@tile.kernel
def mixed(a: tile.Tensor[tile.f16, "M K"], b: tile.Tensor[tile.f16, "K N"], c: tile.Out[tile.f32, "M N"],
          BM: tile.Const = 32, BN: tile.Const = 32, BK: tile.Const = 32):
    """A pipelined product in a loop of its own, with another under a condition, and memory of the user's."""
    acc = tile.zeros((BM, BN), tile.f32)
    turned = tile.shared((BM, BN), tile.f32)
    for _ in tile.range(0, 2):
        for k in tile.range(0, a.shape[1], BK, stages=3):
            acc += tile.dot(tile.load(a, (0, k), (BM, BK)), tile.load(b, (k, 0), (BK, BN)))
            if k // BK % 2 == 0:
                acc += tile.dot(tile.load(a, (0, k), (BM, 16)), tile.load(b, (k, 0), (16, BN)))
        tile.barrier()
        tile.store(turned, (0, 0), acc)
        tile.barrier()
        acc = tile.load(turned, (0, 0), (BM, BN)).T * 0.5
    tile.store(c, (0, 0), acc)


@tile.kernel
def chosen(a: tile.Tensor[tile.f16, "M K"], b: tile.Tensor[tile.f16, "K N"], at: tile.Tensor[tile.i32, "I"],
           c: tile.Out[tile.f32, "M N"], BM: tile.Const = 32, BN: tile.Const = 32, BK: tile.Const = 32):
    """Blocks of k that another tensor names: their copies cannot run ahead."""
    acc = tile.zeros((BM, BN), tile.f32)
    for i in tile.range(0, at.shape[0], stages=3):
        k = tile.load(at, (i,), ())
        acc += tile.dot(tile.load(a, (0, k), (BM, BK)), tile.load(b, (k, 0), (BK, BN)))
    tile.store(c, (0, 0), acc)


@tile.kernel
def twice(a: tile.Tensor[tile.T, "N N"], b: tile.Tensor[tile.T, "N N"], c: tile.Out[tile.T, "N N"],
          TURNED: tile.Const):
    """(a b) b or (a b)^T b for N = 64: a result that is an operand."""
    x, y = tile.load(a, (0, 0), (64, 64)), tile.load(b, (0, 0), (64, 64))
    acc = tile.i32 if a.dtype == tile.i8 else tile.f32
    first = tile.dot(x, y, dtype=acc).to(a.dtype)
    tile.store(c, (0, 0), tile.dot(first.T if TURNED else first, y, dtype=acc).to(a.dtype))


@tile.kernel
def reread(a: tile.Tensor[tile.T, "M K"], x: tile.Tensor[tile.T, "N K"], c: tile.Out[tile.f32, "M K"],
           BM: tile.Const = 64, BN: tile.Const = 32, BK: tile.Const = 32, STAGES: tile.Const = 1):
    """(a x^T) x: each block of x is an operand twice, once transposed."""
    m = tile.grid(tile.cdiv(a.shape[0], BM))
    rows, acc = tile.load(a, (m * BM, 0), (BM, BK)), tile.zeros((BM, BK), tile.f32)
    for n in tile.range(0, x.shape[0], BN, stages=STAGES):
        block = tile.load(x, (n, 0), (BN, BK))
        acc = tile.dot(tile.dot(rows, block.T).to(x.dtype), block, acc)
    tile.store(c, (m * BM, 0), acc)


@tile.kernel
def slots(x: tile.Tensor[tile.f16, "M N"], at: tile.Tensor[tile.i32, "K"], y: tile.Out[tile.f16, "K 4 N"],
          BN: tile.Const = 64):
    """Rows of x copied into slices of a buffer, one after the other at the index `at` names; rows named 9 or -1 fit
    nowhere."""
    ring = tile.shared((4, BN), tile.f16)
    tile.store(ring, (0, 0), tile.zeros((4, BN), tile.f16))
    for k in tile.range(at.shape[0]):
        tile.barrier()
        tile.copy_async(x, ring[tile.load(at, (k,), ())], (k, 0))
        tile.commit()
        tile.wait()
        tile.barrier()
        tile.store(y, (k, 0, 0), tile.load(ring, (0, 0), (4, BN)))


def normal(*shape: int, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def calls() -> dict[str, Callable[[], Any]]:
    """Name -> a call whose arguments are drawn once."""
    half = {name: normal(m, n, dtype=np.float16) for name, m, n in (
        ("a", 72, 80), ("b", 80, 40), ("q", 72, 32), ("k", 80, 32), ("wide", 32, 192),
        ("tall", 192, 32), ("x", 72, 184), ("y", 184, 40), ("long", 176, 32), ("odd", 32, 152),
        ("even", 152, 32))}
    x, w = normal(33, 100), normal(100)
    q, k = normal(1, 2, 40, 16), normal(1, 2, 50, 16)
    return {
        "matmul f16": lambda: matmul(half["a"], half["b"]),
        "matmul f16, 3 stages": lambda: matmul(half["x"], half["y"], STAGES=3),
        "every other block f16": lambda: every_other(half["odd"], half["even"]),
        "mixed f16": lambda: mixed(half["wide"], half["tall"]),
        "chosen f16": lambda: chosen(half["wide"], half["tall"], np.array([0, 64, 32, 160], np.int32)),
        "matmul f32": lambda: matmul(x, np.ascontiguousarray(x.T)),
        "attention f16": lambda: attention(half["q"], half["k"], half["k"]),
        "attention f16, 2 stages": lambda: attention(half["q"], half["long"], half["long"], STAGES=2),
        "reread f16": lambda: reread(half["q"], half["k"]),
        "reread f16, 2 stages": lambda: reread(half["q"], half["long"], STAGES=2),
        "rows": lambda: rows(normal(9, 256)),
        "ops.matmul": lambda: ops.matmul(half["a"], half["b"]),
        "ops.softmax": lambda: ops.softmax(x),
        "ops.layer_norm": lambda: ops.layer_norm(x, w, w),
        "ops.rms_norm": lambda: ops.rms_norm(x, w),
        "ops.gelu": lambda: ops.gelu(x),
        "ops.linear": lambda: ops.linear(x, normal(48, 100), normal(48)),
        "ops.attention": lambda: ops.attention(q, k, k, causal=True),
    }
