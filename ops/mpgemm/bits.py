"""Kernels of `mpgemm` for a CPU that take weights bit by bit: look-ups in sums of activations, and counted bits.

Both read `Panels.planes`: of a word, bits 4 t to 4 t + 3 belong to the columns {16 (t % 2) + 4 c + t // 2, c = 0…3} of
a block.
"""
from __future__ import annotations

import tilelang as tile
from tilelang.ops.mpgemm.cpu import finished, folded

SUBSETS = tuple(tuple(float(entry >> c & 1) for entry in range(16)) for c in range(4))


@tile.kernel
def tables_kernel(x: tile.Tensor[tile.f32, "M B 32"], tables: tile.Out[tile.f32, "M B 8 16"]):
    """For every four columns that share four neighbouring bits: the sums of the 16 subsets of their activations."""
    m = tile.grid(x.shape[0])
    for b in tile.range(0, x.shape[1]):
        columns = tile.load(x, (m, b, 0), (32,)).reshape(2, 4, 4).permute((2, 0, 1)).reshape(8, 4)
        sums = tile.zeros((8, 16), tile.f32)
        for c in tile.static_range(4):
            sums = sums + columns[:, c:c + 1] * tile.constant(SUBSETS[c], tile.f32)
        tile.store(tables, (m, b, 0, 0), sums)


@tile.kernel
def lut_gemv_kernel(
    tables: tile.Tensor[tile.f32, "M B 8 16"], sums: tile.Tensor[tile.f32, "M G"],
    planes: tile.Tensor[tile.u32, "P B b 64"], scale: tile.Tensor[tile.S, "P G 64"],
    y: tile.Out[tile.Y, "M N"],
    zero: tile.Tensor[tile.Z, "P G 64"] = None, minimum: tile.Tensor[tile.L, "P G 64"] = None,
    bias: tile.Tensor[tile.C, "N"] = None, residual: tile.Tensor[tile.R, "M N"] = None,
    added: tile.Tensor[tile.f32, "M N"] = None, *,
    BITS: tile.Const, DEPTH: tile.Const, ROWS: tile.Const, ZERO: tile.Const,
    ACT: tile.Const,
):
    """Four bits of a row choose one of 16 sums (T-MAC, 2407.00088, with tables in f32 and in registers); bit r of a
    code counts 2**r. One row of y and one panel of columns for each program."""
    p, m = tile.grid(planes.shape[0], y.shape[0])
    B, HALVES = tile.cdiv(DEPTH, 32), 2 if DEPTH == 16 else 1
    acc = tile.zeros((64,), tile.f32)
    for g in tile.range(0, scale.shape[1], HALVES):
        part = tuple([tile.zeros((64,), tile.f32) for _ in tile.static_range(HALVES)])
        for b in tile.range(g // HALVES * B, g // HALVES * B + B):
            table = tile.load(tables, (m, b, 0, 0), (8, 16))
            words = tile.load(planes, (p, b, 0, 0), (BITS, 64))
            for t in tile.static_range(8):
                entries, h = table[t, :], t % HALVES
                for r in tile.static_range(BITS):
                    index = (words[r, :] >> (4 * t)).to(tile.u4) if t else words[r, :].to(tile.u4)
                    found = tile.lookup(entries, index)
                    part = tuple([tile.fma(found, float(1 << r), part[s]) if s == h else part[s]
                                  for s in tile.static_range(HALVES)])
        for h in tile.static_range(HALVES):
            acc = acc + folded(part[h], tile.load(sums, (m, g + h), (1,)), p, g + h, scale, zero, minimum, ZERO)
    out = finished(acc.reshape(1, 64), bias, residual, added, m, p * 64, ACT, 1, 64)
    tile.store(y, (m, p * 64), out.to(y.dtype))


@tile.kernel
def planes_kernel(q: tile.Tensor[tile.i8, "M B 32"], planes: tile.Out[tile.u32, "M B X"], XBITS: tile.Const):
    """The bits of whole numbers in two's complement, in the order of `Panels.planes`."""
    m = tile.grid(q.shape[0])
    place = tile.arange(8)[:, None] + 8 * tile.arange(4)[None, :]
    for b in tile.range(0, q.shape[1]):
        v = tile.load(q, (m, b, 0), (32,)).to(tile.i32).reshape(8, 4)
        for s in tile.static_range(XBITS):
            word = (((v >> s) & 1) << place).sum(0).sum(0, keepdims=True)
            tile.store(planes, (m, b, s), word.bitcast(tile.u32))


@tile.kernel
def popcount_gemv_kernel(
    x: tile.Tensor[tile.u32, "M B X"], xscale: tile.Tensor[tile.f32, "M G"], sums: tile.Tensor[tile.f32, "M G"],
    planes: tile.Tensor[tile.u32, "P B b 64"], scale: tile.Tensor[tile.S, "P G 64"],
    y: tile.Out[tile.Y, "M N"],
    zero: tile.Tensor[tile.Z, "P G 64"] = None, minimum: tile.Tensor[tile.L, "P G 64"] = None,
    bias: tile.Tensor[tile.C, "N"] = None, residual: tile.Tensor[tile.R, "M N"] = None,
    added: tile.Tensor[tile.f32, "M N"] = None, *,
    BITS: tile.Const, XBITS: tile.Const, DEPTH: tile.Const, ROWS: tile.Const, ZERO: tile.Const,
    ACT: tile.Const,
):
    """Bit r of a code and bit s of an activation count 2**(r + s) where both are set, taken off where s is the sign:
    the sums of `integer_gemv_kernel`, by `and` and counting (ABQ-LLM, 2408.08554)."""
    p, m = tile.grid(planes.shape[0], tile.cdiv(y.shape[0], ROWS))
    B, HALVES = tile.cdiv(DEPTH, 32), 2 if DEPTH == 16 else 1
    acc = tuple([tile.zeros((64,), tile.f32) for _ in tile.static_range(ROWS)])
    for g in tile.range(0, scale.shape[1], HALVES):
        words = tile.load(planes, (p, g // HALVES * B, 0, 0), (B, BITS, 64))
        rows = tuple([tile.load(x, (m * ROWS + r, g // HALVES * B, 0), (B, XBITS)) for r in tile.static_range(ROWS)])
        for h in tile.static_range(HALVES):
            part = tuple([tile.zeros((B, 64), tile.i32) for _ in tile.static_range(ROWS)])
            for b in tile.static_range(BITS):
                word = words[:, b, :] & 0x0F0F0F0F << 4 * h if HALVES == 2 else words[:, b, :]
                for s in tile.static_range(XBITS):
                    weight = -(1 << b + s) if s == XBITS - 1 else 1 << b + s
                    part = tuple([part[r] + tile.popcount(word & rows[r][:, s:s + 1]).bitcast(tile.i32) * weight
                                  for r in tile.static_range(ROWS)])
            total = tuple([part[r].sum(0) for r in tile.static_range(ROWS)])
            acc = tuple([acc[r] + tile.load(xscale, (m * ROWS + r, g + h), (1,)) * folded(
                total[r].to(tile.f32), tile.load(sums, (m * ROWS + r, g + h), (1,)), p, g + h, scale, zero, minimum,
                ZERO) for r in tile.static_range(ROWS)])
    for r in tile.static_range(ROWS):
        out = finished(acc[r].reshape(1, 64), bias, residual, added, m * ROWS + r, p * 64, ACT, 1, 64)
        tile.store(y, (m * ROWS + r, p * 64), out.to(y.dtype))
