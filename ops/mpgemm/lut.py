"""Kernels of `mpgemm` for a CPU that look sums up in tables, of activations or of weights, and one that collects
activations by code.

Tables of activations are indexed by bits of `Panels.planes`: of a word, bits 4 t to 4 t + 3 belong to the columns
{16 (t % 2) + 4 c + t // 2, c = 0…3} of a block.
"""
from __future__ import annotations

import tilelang as tile
from tilelang.ops.mpgemm.cpu import bytes_at, folded, stages_of, store_rows, with_group
from tilelang.ops.mpgemm.pack import LANES, PARAMETERS, WORDS

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
    planes: tile.Tensor[tile.u32, WORDS], scale: tile.Tensor[tile.S, PARAMETERS],
    y: tile.Out[tile.Y, "M N"],
    zero: tile.Tensor[tile.Z, PARAMETERS] = None, minimum: tile.Tensor[tile.L, PARAMETERS] = None,
    bias: tile.Tensor[tile.C, "N"] = None, residual: tile.Tensor[tile.R, "M N"] = None,
    added: tile.Tensor[tile.f32, "M N"] = None, *,
    BITS: tile.Const, DEPTH: tile.Const, ZERO: tile.Const, ACT: tile.Const,
):
    """Four bits of a row choose one of 16 sums (T-MAC, 2407.00088, with tables in f32 and in registers); bit r of a
    code counts 2**r. One row of y and one panel of columns for each program."""
    p, m = tile.grid(planes.shape[0], y.shape[0])
    B, HALVES = tile.cdiv(DEPTH, 32), 2 if DEPTH == 16 else 1
    acc = tile.zeros((LANES,), tile.f32)
    for g in tile.range(0, scale.shape[1], HALVES):
        part = tuple([tile.zeros((LANES,), tile.f32) for _ in tile.static_range(HALVES)])
        for b in tile.range(g // HALVES * B, g // HALVES * B + B, stages=stages_of(BITS, 32)):
            table = tile.load(tables, (m, b, 0, 0), (8, 16))
            words = tile.load(planes, (p, b, 0, 0), (BITS, LANES))
            for t in tile.static_range(8):
                entries, h = table[t, :], t % HALVES
                for r in tile.static_range(BITS):
                    index = (words[r, :] >> (4 * t)).to(tile.u4) if t else words[r, :].to(tile.u4)
                    found = tile.lookup(entries, index)
                    part = tuple([tile.fma(found, float(1 << r), part[s]) if s == h else part[s]
                                  for s in tile.static_range(HALVES)])
        for h in tile.static_range(HALVES):
            acc = acc + folded(part[h], tile.load(sums, (m, g + h), (1,)), p, g + h, scale, zero, minimum, ZERO)
    store_rows(y, (acc,), bias, residual, added, m, p, ACT, 1)


SIGNS = tuple(tuple(2.0 * set_ - 1.0 for set_ in subset) for subset in SUBSETS)


@tile.kernel
def byte_tables_kernel(x: tile.Tensor[tile.f32, "M B 32"], tables: tile.Out[tile.i8, "M B 2 64"],
                       steps: tile.Out[tile.f32, "M G"] = None, *, DEPTH: tile.Const, EXACT: tile.Const):
    """For the same four columns the 16 sums with signs, bytes: tables of even words of four bits, then of odd ones.
    Entry 15 - e is minus entry e (T-MAC, 2407.00088), so a sum with signs needs no bias, and its range is used whole.
    Sums of floats are rounded to multiples of a group's `steps`, the largest sum of four |x| / 127; EXACT: whole
    numbers whose sums fit into bytes."""
    m = tile.grid(x.shape[0])
    B, HALVES = tile.cdiv(DEPTH, 32), 2 if DEPTH == 16 else 1
    for g in tile.range(0, x.shape[1] // B):
        columns = tile.load(x, (m, g * B, 0), (B, 32)).reshape(B, 2, 4, 4).permute((0, 1, 3, 2)).reshape(B * 8, 4)
        sums = tile.zeros((B * 8, 16), tile.f32)
        for c in tile.static_range(4):
            sums = sums + columns[:, c:c + 1] * tile.constant(SIGNS[c], tile.f32)
        if not EXACT:
            s = tile.abs(columns).sum(1).reshape(HALVES, B * 8 // HALVES).max(1) / 127.0
            tile.store(steps, (m, g * HALVES), s)
            s = tile.where(s == 0.0, 1.0, s).reshape(HALVES, 1, 1)
            sums = tile.round(sums.reshape(HALVES, B * 8 // HALVES, 16) / s)
        tile.store(tables, (m, g * B, 0, 0), sums.reshape(B, 2, 64).to(tile.i8))


@tile.kernel
def lut_bytes_kernel(
    tables: tile.Tensor[tile.i8, "M B 2 64"], xscale: tile.Tensor[tile.f32, "M G"],
    sums: tile.Tensor[tile.f32, "M G"], planes: tile.Tensor[tile.u32, WORDS],
    scale: tile.Tensor[tile.S, PARAMETERS], y: tile.Out[tile.Y, "M N"],
    zero: tile.Tensor[tile.Z, PARAMETERS] = None, minimum: tile.Tensor[tile.L, PARAMETERS] = None,
    bias: tile.Tensor[tile.C, "N"] = None, residual: tile.Tensor[tile.R, "M N"] = None,
    added: tile.Tensor[tile.f32, "M N"] = None, *,
    BITS: tile.Const, DEPTH: tile.Const, ROWS: tile.Const, ZERO: tile.Const, ACT: tile.Const, EXACT: tile.Const,
):
    """The same with tables of bytes: sixteen rows' look-ups of four tables are one byte shuffle, their sum with what
    bit r counts one `dot4`. Bits as signs add up to 2 code - (2**BITS - 1). With EXACT `xscale` is that of whole
    numbers x, and sums are those of `dot_gemv_kernel`; else it is the step of the tables."""
    p, m = tile.grid(planes.shape[0], tile.cdiv(y.shape[0], ROWS))
    B, HALVES = tile.cdiv(DEPTH, 32), 2 if DEPTH == 16 else 1
    acc = tuple([tile.zeros((LANES,), tile.f32) for _ in tile.static_range(ROWS)])
    for g in tile.range(0, scale.shape[1], HALVES):
        part = tuple([tile.zeros((LANES,), tile.i32) for _ in tile.static_range(HALVES * ROWS)])
        for b in tile.range(g // HALVES * B, g // HALVES * B + B, stages=stages_of(BITS, 32)):
            words = tile.load(planes, (p, b, 0, 0), (BITS, LANES))
            for t in tile.static_range(2):
                entries = tuple([tile.load(tables, (m * ROWS + i, b, t, 0), (1, 1, 1, 64)).reshape(64)
                                 for i in tile.static_range(ROWS)])
                first = t % HALVES * ROWS
                for r in tile.static_range(BITS):
                    index = ((words[r, :] >> 4 * t if t else words[r, :]) & 0x0F0F0F0F) | 0x30201000
                    part = tuple([tile.dot4(tile.full((LANES,), 0x01010101 << r, tile.u32),
                                            tile.lookup4(entries[i - first], index), part[i])
                                  if first <= i < first + ROWS else part[i]
                                  for i in tile.static_range(HALVES * ROWS)])
        for h in tile.static_range(HALVES):
            doubled = part[h * ROWS:h * ROWS + ROWS]
            total = tuple([tile.load(sums, (m * ROWS + i, g + h), (1,)) * float((1 << BITS) - 1)
                           for i in tile.static_range(ROWS)])
            if EXACT:
                whole = tuple([((doubled[i] + total[i].to(tile.i32)) >> 1).reshape(1, LANES)
                               for i in tile.static_range(ROWS)])
                acc = with_group(acc, whole, xscale, sums, m, p, g + h, scale, zero, minimum, ZERO, ROWS)
            else:
                real = tuple([((doubled[i].to(tile.f32) * tile.load(xscale, (m * ROWS + i, g + h), (1,)) + total[i])
                               * 0.5).reshape(1, LANES) for i in tile.static_range(ROWS)])
                acc = with_group(acc, real, None, sums, m, p, g + h, scale, zero, minimum, ZERO, ROWS)
    store_rows(y, acc, bias, residual, added, m, p, ACT, ROWS)


@tile.kernel
def nibbles_kernel(q: tile.Tensor[tile.i8, "M B 32"], nibbles: tile.Out[tile.i32, "M B 8 X"], XBITS: tile.Const,
                   BIPOLAR: tile.Const):
    """The bits of four neighbours: of whole numbers in two's complement, or bipolar (0 in `q` has none)."""
    m = tile.grid(q.shape[0])
    for b in tile.range(0, q.shape[1]):
        v = tile.load(q, (m, b, 0), (32,)).to(tile.i32).reshape(8, 4)
        v = tile.where(v == 0, 0, (v + ((1 << XBITS) - 1)) >> 1) if BIPOLAR else v
        for s in tile.static_range(XBITS):
            tile.store(nibbles, (m, b, 0, s), (((v >> s) & 1) << tile.arange(4)[None, :]).sum(1).reshape(8, 1))


@tile.function
def chosen_sum(tables, nibbles, p, m, row, b, i, s):
    """The entry [LANES] that bit s of four activations chooses."""
    at = tile.load(nibbles, (row, b, i, s), (1, 1, 1, 1)).reshape(1).sum(0)
    return tile.load(tables, (p, m, at, 0), (1, 1, 1, LANES)).reshape(LANES)


@tile.kernel
def lut_weight_kernel(
    nibbles: tile.Tensor[tile.i32, "M B 8 X"], xscale: tile.Tensor[tile.f32, "M G"],
    sums: tile.Tensor[tile.f32, "M G"], tables: tile.InOut[tile.i32, f"P m 16 {LANES}"],
    words: tile.Tensor[tile.u32, WORDS], scale: tile.Tensor[tile.S, PARAMETERS], y: tile.Out[tile.Y, "M N"],
    zero: tile.Tensor[tile.Z, PARAMETERS] = None, minimum: tile.Tensor[tile.L, PARAMETERS] = None,
    bias: tile.Tensor[tile.C, "N"] = None, residual: tile.Tensor[tile.R, "M N"] = None,
    added: tile.Tensor[tile.f32, "M N"] = None, *,
    BITS: tile.Const, XBITS: tile.Const, DEPTH: tile.Const, ROWS: tile.Const, ZERO: tile.Const, ACT: tile.Const,
    BIPOLAR: tile.Const,
):
    """The other way round (SAIL, 2509.25853): a table holds the sums of the 16 subsets of four codes of a row of W,
    one bit of four activations chooses, and all rows of x share the table. The sums are those of
    `dot_gemv_kernel`. Bipolar activations are twice their bits less 2**XBITS - 1, times all four codes."""
    p, m = tile.grid(words.shape[0], tile.cdiv(y.shape[0], ROWS))
    B, HALVES = tile.cdiv(DEPTH, 32), 2 if DEPTH == 16 else 1
    acc = tuple([tile.zeros((LANES,), tile.f32) for _ in tile.static_range(ROWS)])
    for g in tile.range(0, scale.shape[1]):
        part = tuple([tile.zeros((LANES,), tile.i32) for _ in tile.static_range(ROWS)])
        for b in tile.range(g // HALVES * B, g // HALVES * B + B):
            block = tile.load(words, (p, b, 0, 0), (1, BITS, LANES))
            for i in tile.static_range(8):
                if HALVES == 1 or g % 2 == i // 4:
                    four = bytes_at(block, i, BITS).reshape(1, LANES)
                    table = tile.zeros((16, LANES), tile.i32)
                    for c in tile.static_range(4):
                        code = ((four >> 8 * c) & 255).bitcast(tile.i32)
                        chosen = ((tile.arange(16) >> c) & 1).reshape(16, 1)
                        table = table + code * chosen
                    tile.store(tables, (p, m, 0, 0), table)
                    for s in tile.range(XBITS if BIPOLAR else XBITS - 1):
                        part = tuple([part[r] + (chosen_sum(tables, nibbles, p, m, m * ROWS + r, b, i, s)
                                                 << s + BIPOLAR) for r in tile.static_range(ROWS)])
                    if BIPOLAR:
                        every = tile.load(tables, (p, m, 15, 0), (1, 1, 1, LANES)).reshape(LANES) * ((1 << XBITS) - 1)
                        part = tuple([part[r] - every for r in tile.static_range(ROWS)])
                    else:
                        part = tuple([part[r] - (chosen_sum(tables, nibbles, p, m, m * ROWS + r, b, i, XBITS - 1)
                                                 << XBITS - 1) for r in tile.static_range(ROWS)])
        part = tuple([part[r].reshape(1, LANES) for r in tile.static_range(ROWS)])
        acc = with_group(acc, part, xscale, sums, m, p, g, scale, zero, minimum, ZERO, ROWS)
    store_rows(y, acc, bias, residual, added, m, p, ACT, ROWS)


@tile.kernel
def bucket_kernel(
    x: tile.Tensor[tile.f32, "M B 32"], sums: tile.Tensor[tile.f32, "M G"], values: tile.Tensor[tile.f32, "V"],
    words: tile.Tensor[tile.u32, WORDS], scale: tile.Tensor[tile.S, PARAMETERS], y: tile.Out[tile.Y, "M N"],
    zero: tile.Tensor[tile.Z, PARAMETERS] = None, minimum: tile.Tensor[tile.L, PARAMETERS] = None,
    bias: tile.Tensor[tile.C, "N"] = None, residual: tile.Tensor[tile.R, "M N"] = None,
    added: tile.Tensor[tile.f32, "M N"] = None, *,
    BITS: tile.Const, DEPTH: tile.Const, ZERO: tile.Const, ACT: tile.Const,
):
    """For every code the sum of the activations that meet it, times its value: one product for each entry of a
    codebook and group. One row of y and one panel of columns for each program."""
    p, m = tile.grid(words.shape[0], y.shape[0])
    B, HALVES = tile.cdiv(DEPTH, 32), 2 if DEPTH == 16 else 1
    acc = (tile.zeros((LANES,), tile.f32),)
    for g in tile.range(0, scale.shape[1], HALVES):
        for h in tile.static_range(HALVES):
            part = tile.zeros((LANES,), tile.f32)
            for code in tile.range(0, values.shape[0]):
                block = tile.load(words, (p, g // HALVES * B, 0, 0), (B, BITS, LANES))
                row = tile.load(x, (m, g // HALVES * B, 0), (B, 32))
                bucket = tile.zeros((B, LANES), tile.f32)
                for i in tile.static_range(h * 4, h * 4 + 8 // HALVES):
                    four = bytes_at(block, i, BITS)
                    for j in tile.static_range(4):
                        meets = ((four >> 8 * j) & 255).bitcast(tile.i32) == code
                        bucket = bucket + tile.where(meets, row[:, 4 * i + j:4 * i + j + 1], 0.0)
                part = tile.fma(bucket.sum(0), tile.load(values, (code,), (1,)), part)
            acc = with_group(acc, (part.reshape(1, LANES),), None, sums, m, p, g + h, scale, zero, minimum, ZERO, 1)
    store_rows(y, acc, bias, residual, added, m, p, ACT, 1)
