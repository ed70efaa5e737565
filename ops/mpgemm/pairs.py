"""The kernels of `mpgemm` for a CPU that multiply codes by bf16 activations two at a time (`tile.dot2`)."""
from __future__ import annotations

import tilelang as tile
from tilelang.ops.mpgemm.cpu import bf16_tables, joined, pairs_at, stages_of, store_rows, with_group


@tile.kernel
def pairs_kernel(x: tile.Tensor[tile.T, "M K"], pairs: tile.Out[tile.u32, "M B 8 2"], sums: tile.Out[tile.f32, "M G"],
                 GROUP: tile.Const, DEPTH: tile.Const):
    """Each group of GROUP columns of `x`, with zeros up to DEPTH, as bf16 in words as `pairs_at` has codes: of every
    four columns the first and third, then the second and fourth. And the group's sum."""
    m = tile.grid(x.shape[0])
    for g in tile.range(0, sums.shape[1]):
        v = tile.load(x, (m, g * GROUP), (DEPTH,)).to(tile.f32)
        v = tile.where(tile.arange(DEPTH) < GROUP, v, 0.0) if DEPTH > GROUP else v
        tile.store(sums, (m, g), v.sum(0, keepdims=True))
        bits = (v.bitcast(tile.u32) >> 16).reshape(DEPTH // 4, 2, 2)
        words = bits[:, 0, :] | bits[:, 1, :] << 16
        if DEPTH == 16:
            tile.store(pairs, (m, g // 2, g % 2 * 4, 0), words, (None, None, 4, 2))
        else:
            tile.store(pairs, (m, g * (DEPTH // 32), 0, 0), words.reshape(DEPTH // 32, 8, 2))


@tile.kernel
def pairs_gemv_kernel(
    x: tile.Tensor[tile.u32, "M B 16"], sums: tile.Tensor[tile.f32, "M G"],
    words: tile.Tensor[tile.u32, "P B b 64"], scale: tile.Tensor[tile.S, "P G 64"],
    y: tile.Out[tile.Y, "M N"], xscale: tile.Tensor[tile.f32, "M G"] = None,
    zero: tile.Tensor[tile.Z, "P G 64"] = None, minimum: tile.Tensor[tile.L, "P G 64"] = None,
    bias: tile.Tensor[tile.C, "N"] = None, residual: tile.Tensor[tile.R, "M N"] = None,
    added: tile.Tensor[tile.f32, "M N"] = None, *,
    BITS: tile.Const, DEPTH: tile.Const, ROWS: tile.Const, DTYPE: tile.Const, EXTRA: tile.Const, ZERO: tile.Const,
    ACT: tile.Const,
):
    """`dequant_gemv_kernel` for pairs of bf16; EXTRA is what `pairs_at` counts too much."""
    p, m = tile.grid(words.shape[0], tile.cdiv(y.shape[0], ROWS))
    B, HALVES, CHAINS = tile.cdiv(DEPTH, 32), 2 if DEPTH == 16 else 1, 2 if ROWS == 1 else 1
    tables = bf16_tables(BITS, DTYPE) if DTYPE is not None else None
    acc = tuple([tile.zeros((64,), tile.f32) for _ in tile.static_range(ROWS)])
    for g in tile.range(0, scale.shape[1], HALVES, stages=stages_of(B * BITS, 8192)):
        block = tile.load(words, (p, g // HALVES * B, 0, 0), (B, BITS, 64))
        rows = tuple([tile.load(x, (m * ROWS + r, g // HALVES * B, 0), (B, 16)) for r in tile.static_range(ROWS)])
        for h in tile.static_range(HALVES):
            part = tuple([tile.zeros((B, 64), tile.f32) for _ in tile.static_range(ROWS * CHAINS)])
            for i in tile.static_range(h * 4, h * 4 + 8 // HALVES):
                both = pairs_at(block, i, BITS, tables)
                for j in tile.static_range(2):
                    chain = j % CHAINS
                    part = tuple([tile.dot2(both[j], rows[r % ROWS][:, 2 * i + j:2 * i + j + 1], part[r])
                                  if r // ROWS == chain else part[r] for r in tile.static_range(ROWS * CHAINS)])
            part = joined(part, ROWS)
            if EXTRA:
                part = tuple([(part[r].sum(0) - EXTRA * tile.load(sums, (m * ROWS + r, g + h), (1,))).reshape(1, 64)
                              for r in tile.static_range(ROWS)])
            acc = with_group(acc, part, xscale, sums, m, p, g + h, scale, zero, minimum, ZERO, ROWS)
    store_rows(y, acc, bias, residual, added, m, p, ACT, ROWS)
