"""Products of few rows with quantised weights on a GPU: each warp of a program multiplies columns of its own.

The blocks of weights are those of `gpu`. A program has a few rows of W and all of their columns, its warps every so
many blocks of columns each, so that there are many programs without parts that another kernel would have to add up:
the warps' sums are added at the end, in a fixed order. Multiplication stays with the matrix instructions. Their
operand is f16 by half an instruction for a weight; to multiply by f32 instructions instead would take a conversion to
f32 and a multiplication and addition for every row: more than matrix instructions that are seven eighths idle.
"""
from __future__ import annotations

import tilelang as tile
from tilelang.ops.activation import finished


@tile.function
def operand(words, x, DTYPE, ORDER, SOURCE, LAYOUT):
    """Codes as numbers of the type of x: as they are, or as f16."""
    codes = tile.view(words, DTYPE, SOURCE, LAYOUT, order=ORDER)
    return codes if x.dtype == DTYPE else codes.to(tile.f16)


@tile.function
def of_blocks(parameter, k, n, GROUP, WARPS, BN):
    """[WARPS, BN, 1] parameters of blocks k, k + 1, …, of which each GROUP have the same."""
    rows = max(WARPS // GROUP, 1)
    found = tile.load(parameter, (k // GROUP, n * BN), (rows, BN))
    if rows < WARPS:
        found = tile.broadcast_to(found.reshape(rows, 1, BN), (rows, WARPS // rows, BN)).reshape(WARPS, BN)
    return found[:, :, None]


@tile.kernel
def gemv_kernel(
    x: tile.Tensor[tile.X, "M K"], words: tile.Tensor[tile.u32, "KT NT L"], scale: tile.Tensor[tile.f32, "G N"],
    y: tile.Out[tile.Y, "M N"],
    DTYPE: tile.Const, ORDER: tile.Const, SOURCE: tile.Const, LAYOUT: tile.Const, ROWS: tile.Const, BM: tile.Const,
    GROUP: tile.Const, STAGES: tile.Const, ACT: tile.Const = None, shift: tile.Tensor[tile.f32, "G N"] = None,
    sums: tile.Tensor[tile.f32, "KT M"] = None, bias: tile.Tensor[tile.C, "N"] = None,
    residual: tile.Tensor[tile.R, "M N"] = None, added: tile.Tensor[tile.f32, "M N"] = None,
    low: tile.Tensor[tile.f16, "M K"] = None, xscale: tile.Tensor[tile.f32, "KT M"] = None,
):
    """What `gpu.product_kernel` is, a block of rows of W for a program. LAYOUT: [WARPS, BN, BK] codes, of which each
    warp has one matrix; ROWS: how it holds what of x it multiplies by them, [BM, WARPS * BK]."""
    WARPS, BN, BK = LAYOUT.shape
    m, n = tile.grid(tile.cdiv(y.shape[0], BM), words.shape[1])
    acc = tile.zeros((WARPS, BN, BM), tile.f32)
    for k in tile.range(0, words.shape[0], WARPS, stages=STAGES):
        by = of_blocks(scale, k, n, GROUP, WARPS, BN)
        codes = operand(tile.load(words, (k, n, 0), SOURCE.shape), x, DTYPE, ORDER, SOURCE, LAYOUT)
        part = multiplied(codes, x, m, k, ROWS, WARPS, BM, BK)
        if low is not None:
            part += multiplied(codes, low, m, k, ROWS, WARPS, BM, BK) * 2.0 ** -11
        if xscale is not None:
            part = part * tile.load(xscale, (k, m * BM), (WARPS, BM))[:, None, :]
        acc += part * by
        if shift is not None:
            acc += tile.load(sums, (k, m * BM), (WARPS, BM))[:, None, :] * of_blocks(shift, k, n, GROUP, WARPS, BN)
    out = finished(acc.sum(0).T, bias, residual, added, m * BM, n * BN, ACT, BM, BN)
    tile.store(y, (m * BM, n * BN), out.to(y.dtype))


@tile.function
def multiplied(codes, x, m, k, ROWS, WARPS, BM, BK):
    """[WARPS, BN, BM]: each warp's codes times its columns of x."""
    rows = tile.pin(tile.load(x, (m * BM, k * BK), (BM, WARPS * BK)), ROWS)
    return tile.dot(codes, rows.reshape(BM, WARPS, BK).permute((1, 2, 0)))
