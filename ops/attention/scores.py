"""What all kernels of attention share: where sequences lie, which keys a query sees, and what a score becomes."""
from __future__ import annotations

import math

import tilelang as tile

LOG2E = math.log2(math.e)


@tile.function
def span(b, extent, cumulative, used):
    """(first position, length) of sequence `b`: `cumulative` [N + 1] says where packed sequences begin, `used` [N] how
    much of each is valid; without them a sequence is `extent` long."""
    first, count = 0, extent
    if cumulative is not None:
        first = tile.load(cumulative, (b,), ())
        count = tile.load(cumulative, (b + 1,), ()) - first
    if used is not None:
        count = tile.minimum(tile.load(used, (b,), ()), count)
    return first, count


@tile.function
def check_span(first, count, extent, longest):
    """Stops where a packed sequence does not lie within `extent` rows, or has more than there are programs for."""
    assert (first >= 0) & (count <= longest) & (first + count <= extent), \
        "a sequence of cu_seqlens is longer than max_seqlen, or not within the rows"


@tile.function
def key_range(first, rows, length, shift, LEFT, RIGHT, BLOCK):
    """The keys [lo, hi) that any of queries first .. first + rows - 1 sees; lo is a multiple of BLOCK."""
    lo = 0 if LEFT is None else tile.maximum(first + shift - LEFT, 0) // BLOCK * BLOCK
    hi = length if RIGHT is None else tile.minimum(length, first + rows + shift + RIGHT)
    return lo, hi


@tile.function
def query_range(first, columns, length, shift, LEFT, RIGHT, BLOCK):
    """The queries [lo, hi) that see any of keys first .. first + columns - 1; lo is a multiple of BLOCK."""
    lo = 0 if RIGHT is None else tile.maximum(first - shift - RIGHT, 0) // BLOCK * BLOCK
    hi = length if LEFT is None else tile.minimum(length, first + columns - shift + LEFT)
    return lo, hi


@tile.function
def visible(b, h, i, j, rows, length, shift, LEFT, RIGHT, MASK, until=None):
    """Which of the queries i [M, 1] see which of the keys j [1, N]: at most LEFT before and RIGHT behind their own
    place, which is i + shift, and what MASK(b, h, i, j) allows, from places before `until`, of j's shape. `rows` is
    None where queries beyond the last do no harm."""
    seen = j < length
    if rows is not None:
        seen = seen & (i < rows)
    if RIGHT is not None:
        seen = seen & (j <= i + (shift + RIGHT))
    if LEFT is not None:
        seen = seen & (j >= i + (shift - LEFT))
    if MASK is not None:
        seen = seen & MASK(b, h, i, j)
    if until is not None:
        seen = seen & (i + shift < until)
    return seen


@tile.function
def per_key(x, b, g, n, j, CHOSEN=False):
    """What x [C, G, L] has for keys n, n + 1, … (CHOSEN: for any), in the shape of their numbers j; or None."""
    if x is None:
        return None
    if CHOSEN:
        return tile.gather(x, (b, g, j))
    return tile.load(x, (b, g, n), (j.shape[0] * j.shape[1],)).reshape(j.shape)


@tile.function
def chosen_rows(x, b, g, j, COLUMNS):
    """[ROWS, COLUMNS] of x [C, G, L, D]: the rows of keys j [1, ROWS], 0 where there is no such key."""
    return tile.gather(x, (b, g, j.T, tile.arange(COLUMNS)[None, :]))


@tile.function
def score(x, b, h, i, j, shift, slope, CAP, MOD):
    """What the softmax is taken of: the scaled products x, limited smoothly to (-CAP, CAP), less `slope` for each step
    between the query's place and the key, and changed by MOD(x, b, h, i, j)."""
    if CAP is not None:
        x = tile.tanh(x * (1.0 / CAP)) * CAP
    if slope is not None:
        x = x - slope * tile.abs(i + shift - j).to(tile.f32)
    if MOD is not None:
        x = MOD(x, b, h, i, j)
    return x


@tile.function
def rescale(top, largest):
    """(new maximum, what is taken off scores, factor of sums so far) when rows whose maximum was `top` meet scores
    of at most `largest`, to base 2 (Milakov and Gimelshein, 2018). A row that has seen nothing stays at zero."""
    new = tile.maximum(top, largest)
    base = tile.where(new == float("-inf"), 0.0, new)
    return new, base, tile.exp2(top - base)


@tile.function
def weigh(x, top, total, acc, factor=None):
    """(weights, new maximum, sum of weights, sum of weighted values before this block) for scores x to base 2; with a
    `factor` > 0 for scores that it is yet to multiply, which then takes no operation of its own. That is exact, and
    `base` is rounded, so that the largest weight is 2^r for a remainder r of at most 2^-24 |base|: the sum of weights
    has it, too, but from |base| = 2^31 on (2^28 for weights in f16) it leaves their range. Nothing that is done once
    for each row mends that, as no f32 is nearer to the score."""
    top, base, keep = rescale(top, x.max(1) if factor is None else x.max(1) * factor)
    p = tile.exp2(x - base[:, None] if factor is None else tile.fma(x, factor, -base[:, None]))
    return p, top, total * keep + p.sum(1), acc * keep[:, None]


@tile.function
def normalised(acc, total):
    """acc / total by rows; 0 for a row that has seen nothing."""
    return acc * tile.where(total == 0.0, 0.0, 1.0 / total)[:, None]


@tile.function
def biased(x, seen, bias, b, h, i, j):
    """Scores with a block of `bias` [B, H, S, L] added, or what is visible limited to where it is true."""
    if bias is not None:
        block = tile.load(bias, (b, h, i, j), x.shape)
        if bias.dtype is tile.i1:
            seen = seen & block
        else:
            x = x + block.to(tile.f32)
    return x, seen


@tile.function
def key_block(x, b, g, n, first, length, table, ROWS, COLUMNS, ZERO):
    """[ROWS, COLUMNS] of x [C, G, L, D] from key n of sequence b; with a `table` [B, pages] C counts pages and n lies
    in one. ZERO: rows from `length` on are 0, whatever memory holds there."""
    if table is not None:
        page = x.shape[2]
        block = tile.load(x, (tile.load(table, (b, n // page), ()), g, n % page, 0), (ROWS, COLUMNS))
    else:
        block = tile.load(x, (b, g, first + n, 0), (ROWS, COLUMNS))
    if ZERO:
        block = tile.where(n + tile.arange(ROWS)[:, None] < length, block, tile.zeros((), block.dtype))
    return block


@tile.function
def put(x, b, h, first, row, length, value, MASKED):
    """Writes rows `row`, row + 1, … of a sequence that begins at `first` to x [B, H, S, E] or [B, H, S]; MASKED: only
    those below `length`, because others belong to other sequences."""
    if MASKED:
        rows = row + tile.arange(value.shape[0])
        zero = tile.zeros(value.shape, tile.i32)
        if len(value.shape) == 2:
            rows = rows[:, None]
            tile.scatter(x, (zero + b, zero + h, zero + first + rows, zero + tile.arange(value.shape[1])[None, :]),
                         value, (zero + rows) < length)
        else:
            tile.scatter(x, (zero + b, zero + h, zero + first + rows), value, rows < length)
    elif len(value.shape) == 2:
        tile.store(x, (b, h, row, 0), value)
    else:
        tile.store(x, (b, h, row), value)
