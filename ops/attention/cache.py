"""Caches of keys and values: appending to them with rotary embedding, and storing them in few bits."""
from __future__ import annotations

from typing import Any

import tilelang as tile
from tilelang.args import empty_like
from tilelang.ops.attention.options import check_batch, made
from tilelang.ops.common import block, check_floats, dtype_of


@tile.function
def rotated(x, cos, sin, b, h, s, place, HALF, INTERLEAVED):
    """The first 2 HALF elements of row s of x [B, H, S, D] in f32, the pairs turned by the angles of a place (Su et
    al., 2021): pairs are (t, t + HALF), or neighbours where INTERLEAVED."""
    c, z = tile.load(cos, (place, 0), (HALF,)), tile.load(sin, (place, 0), (HALF,))
    if INTERLEAVED:
        pairs = tile.load(x, (b, h, s, 0), (2 * HALF,)).to(tile.f32).reshape(HALF, 2)
        one, two = pairs[:, 0], pairs[:, 1]
        return tile.stack((one * c - two * z, two * c + one * z), 1).reshape(2 * HALF)
    one = tile.load(x, (b, h, s, 0), (HALF,)).to(tile.f32)
    two = tile.load(x, (b, h, s, HALF), (HALF,)).to(tile.f32)
    return tile.concatenate((one * c - two * z, two * c + one * z), 0)


@tile.kernel
def rotate_kernel(
    x: tile.Tensor[tile.T, "B H S D"],
    cos: tile.Tensor[tile.f32, "P F"],
    sin: tile.Tensor[tile.f32, "P F"],
    y: tile.Out[tile.T, "B H S D"],
    first: tile.Tensor[tile.i32, "B"] = None,
    HALF: tile.Const = 32,
    BD: tile.Const = 64,
    INTERLEAVED: tile.Const = False,
):
    """One row for each program; row s of sequence b is at place first[b] + s."""
    b, h, s = tile.grid(x.shape[0], x.shape[1], x.shape[2])
    place = s if first is None else s + tile.load(first, (b,), ())
    assert (place >= 0) & (place < cos.shape[0]), "a place has no angles: cos and sin are too short"
    if HALF > 0:
        tile.store(y, (b, h, s, 0), rotated(x, cos, sin, b, h, s, place, HALF, INTERLEAVED).to(y.dtype))
    if BD > 2 * HALF:
        rest = tile.load(x, (b, h, s, 2 * HALF), (BD - 2 * HALF,))
        tile.store(y, (b, h, s, 2 * HALF), rest)


@tile.kernel
def append_kernel(
    k: tile.Tensor[tile.T, "B G N D"],
    v: tile.Tensor[tile.T, "B G N E"],
    k_cache: tile.InOut[tile.T, "C G L D"],
    v_cache: tile.InOut[tile.T, "C G L E"],
    used: tile.Tensor[tile.i32, "B"],
    cos: tile.Tensor[tile.f32, "P F"] = None,
    sin: tile.Tensor[tile.f32, "P F"] = None,
    table: tile.Tensor[tile.i32, "B M"] = None,
    HALF: tile.Const = 32,
    BD: tile.Const = 64,
    BE: tile.Const = 64,
    INTERLEAVED: tile.Const = False,
):
    """One row for each program."""
    b, g, n = tile.grid(k.shape[0], k.shape[1], k.shape[2])
    place = n + tile.load(used, (b,), ())
    entry, row = b, place
    if table is not None:
        page = k_cache.shape[2]
        entry, row = tile.load(table, (b, place // page), (), fill=-1), place % page
    if cos is not None:
        dropped = (entry < 0) | (row >= k_cache.shape[2])
        assert dropped | (place < cos.shape[0]), "a place has no angles: cos and sin are too short"
    if cos is None:
        tile.store(k_cache, (entry, g, row, 0), tile.load(k, (b, g, n, 0), (BD,)))
    else:
        tile.store(k_cache, (entry, g, row, 0), rotated(k, cos, sin, b, g, n, place, HALF, INTERLEAVED).to(k.dtype))
        if BD > 2 * HALF:
            tile.store(k_cache, (entry, g, row, 2 * HALF), tile.load(k, (b, g, n, 2 * HALF), (BD - 2 * HALF,)))
    tile.store(v_cache, (entry, g, row, 0), tile.load(v, (b, g, n, 0), (BE,)))


def _half(cos: Any, sin: Any, d: int) -> int:
    if tuple(cos.shape) != tuple(sin.shape) or len(cos.shape) != 2 or 2 * cos.shape[1] > d:
        raise ValueError(f"cos and sin need one shape [places, at most {d // 2}], got {list(cos.shape)} and "
                         f"{list(sin.shape)}")
    return int(cos.shape[1])


def _rotate_backward(dy: Any, cos: Any, sin: Any, first: Any = None, interleaved: bool = False) -> Any:
    """The turn back."""
    return rotate.fn(dy, cos, -sin, first, interleaved)


@tile.torch_op("tilelang::rotate", backward=_rotate_backward, outputs="y", wrt="x",
               dims="b h S D, P F, P F, b -> b h S D")
def rotate(x: Any, cos: Any, sin: Any, first: Any = None, interleaved: bool = False) -> Any:
    """Rotary embedding of x [B, H, S, D]: row s is at place first[b] + s (`first` i32 [B], 0 without), the angles of a
    place are cos, sin f32 [places, F]; the first 2 F elements of a row are turned, as pairs (t, t + F), or as
    neighbours where `interleaved`. Computed in f32. Gradient for x. Raises ValueError, AssertFailed for a
    place without angles."""
    check_floats("rotate", x, 4)
    half, y = _half(cos, sin, x.shape[3]), empty_like(x, tuple(x.shape), dtype_of(x))
    rotate_kernel(x, cos, sin, y, first=first, HALF=half, BD=max(x.shape[3], 1), INTERLEAVED=interleaved)
    return y


@tile.torch_op("tilelang::append_kv", writes="k_cache v_cache", fake=lambda **_: None)
def append_kv(k_cache: Any, v_cache: Any, k: Any, v: Any, seqused: Any, *, cos: Any = None, sin: Any = None,
              interleaved: bool = False, block_table: Any = None) -> None:
    """Writes k [B, G, N, D] and v [B, G, N, E] behind the seqused[b] (i32 [B]) valid rows of caches [B, G, L, D]
    and [B, G, L, E], or of pages as in `attention_decode`; keys turned as by `rotate` where `cos` and `sin` are given.
    Rows behind the end of a cache are dropped. `seqused` itself is left as it is. Raises ValueError, AssertFailed for
    a row without angles."""
    if (cos is None) != (sin is None):
        raise ValueError("cos and sin come together")
    if not len(k.shape) == len(v.shape) == len(k_cache.shape) == len(v_cache.shape) == 4:
        raise ValueError("append_kv takes k, v and caches of 4 dimensions, got "
                         f"{', '.join([str(list(x.shape)) for x in (k, v, k_cache, v_cache)])}")
    if block_table is None:
        check_batch(k.shape[0], k_cache)
    half = 0 if cos is None else _half(cos, sin, k.shape[3])
    cos, sin = (cos, sin) if half else (None, None)
    append_kernel(k, v, k_cache, v_cache, seqused, cos=cos, sin=sin, table=block_table, BD=max(k.shape[3], 1),
                  BE=max(v.shape[3], 1), HALF=half, INTERLEAVED=interleaved)


@tile.kernel
def quantize_keys_kernel(
    x: tile.Tensor[tile.T, "B G L D"],
    codes: tile.Out[tile.U, "B G L D"],
    scale: tile.Out[tile.f32, "B G D"],
    zero: tile.Out[tile.f32, "B G D"] = None,
    BN: tile.Const = 128,
    BD: tile.Const = 64,
    TOP: tile.Const = 127.0,
):
    """Scales for each channel: from the largest magnitude to TOP, or, with zero points, from the range to 0 .. TOP."""
    b, g = tile.grid(x.shape[0], x.shape[1])
    low, high = tile.full((BD,), float("inf")), tile.full((BD,), float("-inf"))
    for n in tile.range(0, x.shape[2], BN):
        inside = n + tile.arange(BN)[:, None] < x.shape[2]
        rows = tile.load(x, (b, g, n, 0), (BN, BD)).to(tile.f32)
        low = tile.minimum(low, tile.where(inside, rows, float("inf")).min(0))
        high = tile.maximum(high, tile.where(inside, rows, float("-inf")).max(0))
    step, offset = parameters(low, high, TOP, zero is not None)
    tile.store(scale, (b, g, 0), step)
    if zero is not None:
        tile.store(zero, (b, g, 0), offset)
    for n in tile.range(0, x.shape[2], BN):
        rows = tile.load(x, (b, g, n, 0), (BN, BD)).to(tile.f32)
        tile.store(codes, (b, g, n, 0), coded(rows, step[None, :], offset[None, :], codes.dtype))


@tile.kernel
def quantize_values_kernel(
    x: tile.Tensor[tile.T, "B G L D"],
    codes: tile.Out[tile.U, "B G L D"],
    scale: tile.Out[tile.f32, "B G L"],
    zero: tile.Out[tile.f32, "B G L"] = None,
    BN: tile.Const = 128,
    BD: tile.Const = 64,
    TOP: tile.Const = 127.0,
):
    """The same for each token."""
    b, g, m = tile.grid(x.shape[0], x.shape[1], tile.cdiv(x.shape[2], BN))
    inside = tile.arange(BD)[None, :] < x.shape[3]
    rows = tile.load(x, (b, g, m * BN, 0), (BN, BD)).to(tile.f32)
    low = tile.where(inside, rows, float("inf")).min(1)
    high = tile.where(inside, rows, float("-inf")).max(1)
    step, offset = parameters(low, high, TOP, zero is not None)
    tile.store(scale, (b, g, m * BN), step)
    if zero is not None:
        tile.store(zero, (b, g, m * BN), offset)
    tile.store(codes, (b, g, m * BN, 0), coded(rows, step[:, None], offset[:, None], codes.dtype))


@tile.function
def parameters(low, high, TOP, ZERO):
    """(scale, zero point) for values between low and high; never a scale of 0."""
    if ZERO:
        step = (high - low) * (1.0 / TOP)
        step = tile.where(step > 0.0, step, 1.0)
        return step, tile.round(-low / step)
    step = tile.maximum(abs(low), abs(high)) * (1.0 / TOP)
    return tile.where(step > 0.0, step, 1.0), tile.zeros(low.shape)


@tile.function
def coded(x, scale, zero, DTYPE):
    """x / scale + zero as codes: rounded, and limited to what there is."""
    y = x / scale + zero
    if DTYPE.kind == "float":
        return y.to(DTYPE)
    return tile.clamp(tile.round(y), float(DTYPE.min), float(DTYPE.max)).to(DTYPE)


@tile.torch_op("tilelang::quantize_kv", outputs="k_codes k_scale k_zero v_codes v_scale v_zero")
def _quantize(k: Any, v: Any, dtype: str) -> tuple[Any, Any, Any, Any, Any, Any]:
    """Codes, those of less than 8 bits as bytes, and parameters; zero points without elements where there are none."""
    check_floats("quantize_kv", k, 4)
    dt, (batch, groups, length, d) = tile.dtype(dtype), k.shape
    f32, out = tile.dtype("f32"), []
    # Floats are as fine below their largest. f8e5m2's 57344 would make scales so small that f16 queries times them
    # are no normal numbers any more.
    top = min(float(dt.max), 448.0)
    for x, kernel, shape in ((k, quantize_keys_kernel, (batch, groups, d)),
                             (v, quantize_values_kernel, (batch, groups, length))):
        codes, memory = _codes(x, dt)
        scale = empty_like(x, shape, f32)
        zero = empty_like(x, shape, f32) if dt.kind == "uint" else None
        kernel(x, codes, scale, zero, BN=block(length, 128, 16), BD=block(x.shape[3], 1 << 12, 16), TOP=top)
        out += [memory, scale, empty_like(x, (0,), f32) if zero is None else zero]
    k_codes, k_scale, k_zero, v_codes, v_scale, v_zero = out
    return k_codes, k_scale, k_zero, v_codes, v_scale, v_zero


def _codes(x: Any, dt: tile.DType) -> tuple[Any, Any]:
    """(an output for codes of x, its memory)."""
    if not dt.packed:
        codes = empty_like(x, tuple(x.shape), dt)
        return codes, codes
    row = -(-x.shape[3] * dt.bits // 8)
    memory = made(x, (x.shape[0] * x.shape[1] * x.shape[2] * row,), tile.dtype("u8"), 0)
    return tile.Packed(memory, dt, tuple(x.shape)), memory


def quantize_kv(k: Any, v: Any, dtype: Any) -> tuple[Any, Any, dict[str, Any]]:
    """(codes of k [B, G, L, D], codes of v [B, G, L, E], the parameters as arguments of `attention_decode`) in a
    number type: i8 or an fp8 type with scales alone, unsigned integers of 2 to 8 bits with zero points too. Keys have
    one scale for each channel of a sequence and head, values one for each token (KIVI, Liu et al., 2024, with one
    group). Raises ValueError."""
    dt = tile.dtype(str(dtype)) if not isinstance(dtype, tile.DType) else dtype
    unsigned = dt.kind == "uint" and 2 <= dt.bits <= 8
    if not (unsigned or dt.name == "i8" or (dt.kind == "float" and dt.bits == 8)):
        raise ValueError(f"caches are stored as i8, fp8 or u2 to u8, got {dt}")
    ks, k_scale, k_zero, vs, v_scale, v_zero = _quantize(k, v, dt.name)
    if dt.packed:
        ks, vs = tile.Packed(ks, dt, tuple(k.shape)), tile.Packed(vs, dt, tuple(v.shape))
    return ks, vs, {"k_scale": k_scale, "v_scale": v_scale, "k_zero": k_zero if unsigned else None,
                    "v_zero": v_zero if unsigned else None}
