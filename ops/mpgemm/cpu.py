"""Kernels of `mpgemm` for a CPU, on weights repacked by `pack` and activations spread over their groups."""
from __future__ import annotations

import tilelang as tile
from tilelang.ops.activation import finished
from tilelang.ops.mpgemm.pack import FIELDS, LANES, PARAMETERS, WORDS


def _place(bits: int, i: int, j: int) -> int:
    """The bit of a word where code i of stream j begins, once `bytes_at` has joined the fields of it."""
    place = 8 * j + (i * bits % 8 if len(FIELDS[bits]) == 1 else 0)
    return 0 if place + bits == 32 else place  # at the top a shift does what a mask does, and a sign bit stays clear


WEIGHTS = ((), *(tuple(2.0 ** -_place(bits, i, j) for i in range(8) for j in range(4)) for bits in range(1, 9)))
"""By bits of a code, of each column of a block: 1 / (what a code counts where it stands in its word)."""


@tile.function
def columns_of(x, m, g, GROUP, DEPTH):
    """The GROUP columns of group g of row m as f32 [DEPTH]; behind them, and behind those of x, are zeros."""
    v = tile.load(x, (m, g * GROUP), (DEPTH,)).to(tile.f32)
    return tile.where(tile.arange(DEPTH) < GROUP, v, 0.0) if DEPTH > GROUP else v


@tile.kernel
def spread_kernel(x: tile.Tensor[tile.T, "M K"], y: tile.Out[tile.f32, "M B 32"], sums: tile.Out[tile.f32, "M G"],
                  GROUP: tile.Const, DEPTH: tile.Const, BITS: tile.Const):
    """Each group of GROUP columns of `x`, with zeros up to DEPTH, and its sum; DEPTH >= GROUP. Columns are divided by
    what codes of BITS bits count where they stand, so that those need not be shifted; BITS = 0: left as they are."""
    m = tile.grid(x.shape[0])  # a row is too little to share among threads
    for g in tile.range(0, sums.shape[1]):
        v = columns_of(x, m, g, GROUP, DEPTH)
        tile.store(sums, (m, g), v.sum(0, keepdims=True))
        if DEPTH == 16:
            if BITS:
                table = tile.constant(WEIGHTS[BITS], tile.f32)
                v = v * tile.where(g % 2 == 0, table[:16], table[16:])
            tile.store(y, (m, g // 2, g % 2 * 16), v)
        else:
            v = v.reshape(DEPTH // 32, 32)
            if BITS:
                v = v * tile.constant(WEIGHTS[BITS], tile.f32)
            tile.store(y, (m, g * (DEPTH // 32), 0), v)


@tile.kernel
def pairs_kernel(x: tile.Tensor[tile.T, "M K"], pairs: tile.Out[tile.u32, "M B 8 2"], sums: tile.Out[tile.f32, "M G"],
                 GROUP: tile.Const, DEPTH: tile.Const):
    """Each group of GROUP columns of `x`, with zeros up to DEPTH, as bf16 in words as `pairs_at` has codes: of every
    four columns the first and third, then the second and fourth. And the group's sum."""
    m = tile.grid(x.shape[0])
    for g in tile.range(0, sums.shape[1]):
        v = columns_of(x, m, g, GROUP, DEPTH)
        tile.store(sums, (m, g), v.sum(0, keepdims=True))
        bits = (v.bitcast(tile.u32) >> 16).reshape(DEPTH // 4, 2, 2)
        words = bits[:, 0, :] | bits[:, 1, :] << 16
        if DEPTH == 16:
            tile.store(pairs, (m, g // 2, g % 2 * 4, 0), words, (None, None, 4, 2))
        else:
            tile.store(pairs, (m, g * (DEPTH // 32), 0, 0), words.reshape(DEPTH // 32, 8, 2))


@tile.function
def scale_of(size, columns, DTYPE):
    """The scale [1] of activations whose |x| were summed up, for s1, or whose largest were kept, in `size`."""
    if DTYPE.kind == "bipolar" and DTYPE.bits == 1:
        return size.sum(0, keepdims=True) / tile.maximum(columns, 1).to(tile.f32)
    return size.max(0, keepdims=True) / tile.full((1,), DTYPE.max, tile.f32)


@tile.kernel
def quantize_kernel(x: tile.Tensor[tile.T, "M K"], q: tile.Out[tile.Q, "M G D"], scale: tile.Out[tile.f32, "M G"],
                    sums: tile.Out[tile.f32, "M G"], GROUP: tile.Const, DEPTH: tile.Const, DTYPE: tile.Const,
                    TOKEN: tile.Const):
    """Each group of GROUP columns of `x` as values of DTYPE times s = max |x| / (its largest value) of the token or
    the group; of s1 the mean of |x|. `sums` are those of q. Values are rounded to the nearest; columns beyond GROUP
    and K are 0 and count for nothing, and of zeros alone s = 0."""
    m = tile.grid(x.shape[0])
    bipolar = DTYPE.kind == "bipolar"
    if TOKEN:
        size = tile.zeros((DEPTH,), tile.f32)
        for g in tile.range(0, scale.shape[1]):
            v = tile.abs(columns_of(x, m, g, GROUP, DEPTH))
            size = size + v if bipolar and DTYPE.bits == 1 else tile.maximum(size, v)
        s = scale_of(size, x.shape[1], DTYPE)
    for g in tile.range(0, scale.shape[1]):
        v, columns = columns_of(x, m, g, GROUP, DEPTH), tile.minimum(x.shape[1] - g * GROUP, GROUP)
        if not TOKEN:
            s = scale_of(tile.abs(v), columns, DTYPE)
        t = v / tile.where(s == 0.0, 1.0, s)
        if bipolar:  # odd numbers
            whole = tile.clamp(2.0 * tile.floor(t * 0.5) + 1.0, -DTYPE.max, DTYPE.max)
            whole = tile.where(tile.arange(DEPTH) < columns, whole, 0.0)
        elif DTYPE.kind == "float":
            whole = t.to(DTYPE).to(tile.f32)
        else:
            whole = tile.round(t)
        tile.store(q, (m, g, 0), whole.to(q.dtype))
        tile.store(scale, (m, g), s)
        tile.store(sums, (m, g), whole.sum(0, keepdims=True))


@tile.function
def bytes_at(words, i, BITS):
    """Code i of each of the four streams of a row, one to a byte: words [B, BITS, n] to [B, n]."""
    fields, code = FIELDS[BITS], None
    for f in tile.static_range(len(fields)):
        width, low = fields[f]
        at, v = i * width % 8 - low, words[:, low + i * width // 8, :]
        v = v >> at if at > 0 else v << -at if at < 0 else v
        part = v if width == 8 else v & ((1 << width) - 1 << low) * 0x01010101
        code = part if code is None else code | part
    return code


@tile.function
def value_at(words, i, j, BITS, DTYPE):
    """Code i of stream j as f32: words [B, BITS, n] to [B, n]. The value of its bits as DTYPE; where that is None the
    whole number, times what it counts where it stands in the word."""
    whole = len(FIELDS[BITS]) == 1
    v, s = words[:, i * BITS // 8, :] if whole else bytes_at(words, i, BITS), i * BITS % 8 if whole else 0
    if DTYPE is None:
        return (v >> 32 - BITS if 8 * j + s + BITS == 32 else v & ((1 << BITS) - 1) << 8 * j + s).to(tile.f32)
    v = v >> (8 * j + s) if 8 * j + s else v
    return (v & ((1 << BITS) - 1)).to(tile.dtype(f"u{BITS}")).bitcast(DTYPE).to(tile.f32)


@tile.function
def bf16_tables(BITS, DTYPE):
    """The low and the high bytes of the bf16 of every code, repeated to a length that `lookup4` takes. (As constants
    of the kernel they would be compared at each call.)"""
    codes = tile.arange(max(16, 1 << BITS)) & ((1 << BITS) - 1)
    bits = codes.to(tile.dtype(f"u{BITS}")).bitcast(DTYPE).to(tile.bf16).bitcast(tile.u16).to(tile.i32)
    return (bits & 255).to(tile.u8), (bits >> 8).to(tile.u8)


def extra(bits: int) -> float:
    """What `pairs_at` counts too much of every whole number."""
    return float(1 << bits) if bits < 8 else 0.0


@tile.function
def pairs_at(words, i, BITS, tables):
    """Codes i of the four streams as bf16 in the halves of two words, those of streams 0 and 2, then of 1 and 3: words
    [B, BITS, n] to [B, n] each. `tables` are their values' bytes. Whole numbers of less than 8 bits are the first bits
    behind the point of a number that begins with 2**BITS, which they count too much."""
    if len(FIELDS[BITS]) == 1:
        v, at = words[:, i * BITS // 8, :], i * BITS % 8
    else:
        v, at = bytes_at(words, i, BITS), 0
    if tables is not None:
        v = v >> at if at else v
        low, high = tuple([tile.lookup4(table, v) for table in tables])
        return low & 0x00FF00FF | high << 8 & 0xFF00FF00, low >> 8 & 0x00FF00FF | high & 0xFF00FF00
    if BITS == 8:
        codes = tuple([(v >> 8 * j & 255 if j else v & 255).to(tile.f32).bitcast(tile.u32)
                       for j in tile.static_range(4)])
        return codes[0] >> 16 | codes[2], codes[1] >> 16 | codes[3]
    both = tuple([v >> by if by > 0 else v << -by if by < 0 else v for by in (at + BITS - 7, at + BITS + 1)])
    return tuple([b & ((1 << BITS) - 1 << 7 - BITS) * 0x00010001 | (127 + BITS << 7) * 0x00010001 for b in both])


@tile.function
def half(words, high):
    """The bf16 in the low or high halves of words, as f32."""
    return (words & 0xFFFF0000 if high else words << 16).bitcast(tile.f32)


@tile.function
def folded(part, total, p, g, scale, zero, minimum, ZERO, EXTRA=0.0):
    """What one group adds to a row: part [LANES] is the sum of x * (code + EXTRA), total [1] that of x."""
    s = tile.load(scale, (p, g, 0), (LANES,)).to(tile.f32)
    if EXTRA:
        part = part - EXTRA * total
    if zero is not None:
        part = part - tile.load(zero, (p, g, 0), (LANES,)).to(tile.f32) * total
    elif ZERO != 0:
        part = part - ZERO * total
    out = part * s
    return out + tile.load(minimum, (p, g, 0), (LANES,)).to(tile.f32) * total if minimum is not None else out


@tile.function
def store_rows(y, acc, bias, residual, added, m, p, ACT, ROWS):
    """Finishes rows m * ROWS and following of panel p: one accumulator [LANES] for each."""
    for r in tile.static_range(ROWS):
        out = finished(acc[r].reshape(1, LANES), bias, residual, added, m * ROWS + r, p * LANES, ACT, 1, LANES)
        tile.store(y, (m * ROWS + r, p * LANES), out.to(y.dtype))


@tile.function
def with_group(acc, parts, xscale, sums, m, p, g, scale, zero, minimum, ZERO, ROWS, EXTRA=0.0):
    """`acc` and what group g adds to each row; `parts` [B, LANES] are the sums of its blocks, in whole numbers where
    x is (times `xscale`) or not, of codes that count EXTRA too much."""
    total = tuple([parts[r].sum(0) for r in tile.static_range(ROWS)])  # of all rows, in one pass over the words
    out = tuple([folded(total[r].to(tile.f32), tile.load(sums, (m * ROWS + r, g), (1,)), p, g, scale, zero, minimum,
                        ZERO, EXTRA) for r in tile.static_range(ROWS)])
    if xscale is not None:
        out = tuple([tile.load(xscale, (m * ROWS + r, g), (1,)) * out[r] for r in tile.static_range(ROWS)])
    return tuple([acc[r] + out[r] for r in tile.static_range(ROWS)])


@tile.function
def stages_of(rows, many):
    """How many iterations that read so many rows of words are under way at once, so that `many` rows are: what hides
    the way to memory, more where a byte takes longer."""
    return 1 + tile.cdiv(many, rows)


@tile.function
def joined(parts, ROWS):
    """The sums of each row, which are added up in two chains where one row alone would wait for its additions."""
    return parts if len(parts) == ROWS else tuple([parts[r] + parts[ROWS + r] for r in tile.static_range(ROWS)])


@tile.kernel
def dot_gemv_kernel(
    x: tile.Tensor[tile.X, "M B x"], sums: tile.Tensor[tile.f32, "M G"],
    words: tile.Tensor[tile.u32, WORDS], scale: tile.Tensor[tile.S, PARAMETERS],
    y: tile.Out[tile.Y, "M N"], xscale: tile.Tensor[tile.f32, "M G"] = None,
    zero: tile.Tensor[tile.Z, PARAMETERS] = None, minimum: tile.Tensor[tile.L, PARAMETERS] = None,
    bias: tile.Tensor[tile.C, "N"] = None, residual: tile.Tensor[tile.R, "M N"] = None,
    added: tile.Tensor[tile.f32, "M N"] = None, *,
    BITS: tile.Const, DEPTH: tile.Const, ROWS: tile.Const, DTYPE: tile.Const, TABLES: tile.Const, ZERO: tile.Const,
    ACT: tile.Const,
):
    """ROWS rows of y and one panel of columns for each program: codes become numbers in registers, with TABLES by
    looking up the bytes of a bf16, and meet a block's 32 activations, which are f32, u32 of two bf16 each, as
    `pairs_kernel` has them, or i32 of four i8, whose products are summed exactly within a group. ZERO is the number
    taken off every code where there is no array of them."""
    p, m = tile.grid(words.shape[0], tile.cdiv(y.shape[0], ROWS))
    PER = 4 if x.dtype == tile.i32 else 2 if x.dtype == tile.u32 else 1
    product = tile.dot4 if PER == 4 else tile.dot2 if PER == 2 else tile.fma
    B, HALVES, CHAINS = tile.cdiv(DEPTH, 32), 2 if DEPTH == 16 else 1, 2 if ROWS == 1 and PER < 4 else 1
    tables = bf16_tables(BITS, DTYPE) if TABLES else None
    many = extra(BITS) if PER == 2 and not TABLES else 0.0
    acc = tuple([tile.zeros((LANES,), tile.f32) for _ in tile.static_range(ROWS)])
    for g in tile.range(0, scale.shape[1], HALVES, stages=stages_of(B * BITS, 128)):
        block = tile.load(words, (p, g // HALVES * B, 0, 0), (B, BITS, LANES))
        rows = tuple([tile.load(x, (m * ROWS + r, g // HALVES * B, 0), (B, 32 // PER))
                      for r in tile.static_range(ROWS)])
        for h in tile.static_range(HALVES):
            part = tuple([tile.zeros((B, LANES), tile.i32 if PER == 4 else tile.f32)
                          for _ in tile.static_range(ROWS * CHAINS)])
            for i in tile.static_range(h * 4, h * 4 + 8 // HALVES):
                both = pairs_at(block, i, BITS, tables) if TABLES or PER == 2 else ()
                for j in tile.static_range(4 // PER):
                    if PER == 1:
                        v = half(both[j % 2], j // 2) if TABLES else value_at(block, i, j, BITS, DTYPE)
                    else:
                        v = both[j] if PER == 2 else bytes_at(block, i, BITS)
                    at, chain = 4 // PER * i + j, j % CHAINS
                    part = tuple([product(v, rows[r % ROWS][:, at:at + 1], part[r])
                                  if r // ROWS == chain else part[r] for r in tile.static_range(ROWS * CHAINS)])
            part = joined(part, ROWS)
            acc = with_group(acc, part, xscale, sums, m, p, g + h, scale, zero, minimum, ZERO, ROWS, many)
    store_rows(y, acc, bias, residual, added, m, p, ACT, ROWS)
