"""Kernels of `mpgemm` for a CPU that count bits.

They read `Panels.planes`: of a word, bits 4 t to 4 t + 3 belong to the columns {16 (t % 2) + 4 c + t // 2, c = 0…3} of
a block.
"""
from __future__ import annotations

import tilelang as tile
from tilelang.ops.mpgemm.cpu import store_rows, with_group
from tilelang.ops.mpgemm.pack import LANES, PARAMETERS, WORDS


@tile.kernel
def planes_kernel(q: tile.Tensor[tile.i8, "M B 32"], planes: tile.Out[tile.u32, "M B X"], XBITS: tile.Const,
                  BIPOLAR: tile.Const):
    """The bits of whole numbers, in two's complement or bipolar (0 in `q`, which pads groups, has none), in the order
    of `Panels.planes`."""
    m = tile.grid(q.shape[0])
    place = tile.arange(8)[:, None] + 8 * tile.arange(4)[None, :]
    for b in tile.range(0, q.shape[1]):
        v = tile.load(q, (m, b, 0), (32,)).to(tile.i32).reshape(8, 4)
        v = tile.where(v == 0, 0, (v + ((1 << XBITS) - 1)) >> 1) if BIPOLAR else v
        for s in tile.static_range(XBITS):
            word = (((v >> s) & 1) << place).sum(0).sum(0, keepdims=True)
            tile.store(planes, (m, b, s), word.bitcast(tile.u32))


@tile.function
def together(word, x, h, HALVES, BIPOLAR):
    """What is counted; of half words `word` has only the bits of half h."""
    if not BIPOLAR:
        return word & x
    return word ^ (x & 0x0F0F0F0F << 4 * h if HALVES == 2 else x)


@tile.function
def of_differences(found, n, total, BITS, XBITS):
    """The sum of x * code over n columns, where both as signs differ by `found` and x sums up to `total`."""
    every = n * ((1 << BITS) - 1) * ((1 << XBITS) - 1)
    return ((every - 2 * found + (total * float((1 << BITS) - 1)).to(tile.i32)) >> 1).reshape(1, LANES)


@tile.kernel
def popcount_gemv_kernel(
    x: tile.Tensor[tile.u32, "M B X"], xscale: tile.Tensor[tile.f32, "M G"], sums: tile.Tensor[tile.f32, "M G"],
    planes: tile.Tensor[tile.u32, WORDS], scale: tile.Tensor[tile.S, PARAMETERS],
    y: tile.Out[tile.Y, "M N"],
    zero: tile.Tensor[tile.Z, PARAMETERS] = None, minimum: tile.Tensor[tile.L, PARAMETERS] = None,
    bias: tile.Tensor[tile.C, "N"] = None, residual: tile.Tensor[tile.R, "M N"] = None,
    added: tile.Tensor[tile.f32, "M N"] = None, *,
    BITS: tile.Const, XBITS: tile.Const, DEPTH: tile.Const, ROWS: tile.Const, ZERO: tile.Const,
    ACT: tile.Const, BIPOLAR: tile.Const, GROUP: tile.Const, K: tile.Const,
):
    """Bit r of a code and bit s of an activation count 2**(r + s) where both are set, taken off where s is the sign:
    the sums of `dot_gemv_kernel`, by `and` and counting (ABQ-LLM, 2408.08554). BIPOLAR: with bits as signs they
    agree in n columns less those that `xor` finds, and differ there, which is 2 code - (2**BITS - 1) times x
    (APT-LLM, 2409.17870); GROUP columns to a group, K in all."""
    p, m = tile.grid(planes.shape[0], tile.cdiv(y.shape[0], ROWS))
    B, HALVES = tile.cdiv(DEPTH, 32), 2 if DEPTH == 16 else 1
    acc = tuple([tile.zeros((LANES,), tile.f32) for _ in tile.static_range(ROWS)])
    for g in tile.range(0, scale.shape[1], HALVES):
        words = tile.load(planes, (p, g // HALVES * B, 0, 0), (B, BITS, LANES))
        rows = tuple([tile.load(x, (m * ROWS + r, g // HALVES * B, 0), (B, XBITS)) for r in tile.static_range(ROWS)])
        for h in tile.static_range(HALVES):
            part = tuple([tile.zeros((B, LANES), tile.i32) for _ in tile.static_range(ROWS)])
            for b in tile.static_range(BITS):
                word = words[:, b, :] & 0x0F0F0F0F << 4 * h if HALVES == 2 else words[:, b, :]
                for s in tile.static_range(XBITS):
                    weight = -(1 << b + s) if s == XBITS - 1 and not BIPOLAR else 1 << b + s
                    part = tuple([part[r] + tile.popcount(together(word, rows[r][:, s:s + 1], h, HALVES, BIPOLAR))
                                  .bitcast(tile.i32) * weight for r in tile.static_range(ROWS)])
            if BIPOLAR:
                n = tile.minimum(K - (g + h) * GROUP, GROUP)
                part = tuple([of_differences(part[r].sum(0), n, tile.load(sums, (m * ROWS + r, g + h), (1,)), BITS,
                                             XBITS)
                              for r in tile.static_range(ROWS)])
            acc = with_group(acc, part, xscale, sums, m, p, g + h, scale, zero, minimum, ZERO, ROWS)
    store_rows(y, acc, bias, residual, added, m, p, ACT, ROWS)
