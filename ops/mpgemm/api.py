"""Products with quantised weights: y = act(x @ W.T + bias) + residual, where W never lies in memory as floats."""
from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import numpy as np

import tilelang as tile
from tilelang.args import empty_like, is_torch
from tilelang.errors import TargetError
from tilelang.ir import codec
from tilelang.jit import architecture
from tilelang.ops.common import rows
from tilelang.ops.mpgemm import blocks, gpu_bits, gpu_plan
from tilelang.ops.mpgemm.bits import planes_kernel, popcount_gemv_kernel
from tilelang.ops.mpgemm.corrections import added
from tilelang.ops.mpgemm.cpu import WEIGHTS, dot_gemv_kernel, pairs_kernel, quantize_kernel, spread_kernel
from tilelang.ops.mpgemm.gpu import product, tiles
from tilelang.ops.mpgemm.lut import (
    bucket_kernel,
    byte_tables_kernel,
    lut_bytes_kernel,
    lut_gemv_kernel,
    lut_weight_kernel,
    nibbles_kernel,
    tables_kernel,
)
from tilelang.ops.mpgemm.pack import LANES, Panels, depth_of, panels, repackable
from tilelang.ops.mpgemm.plan import BLOCKS, DECOMPOSITIONS, QUANTISED, Plan, by_bytes, plan
from tilelang.quant import QuantTensor, RowParts

ACTIVATIONS = (None, "gelu", "relu", "silu")
BY_BITS = ("bitplane_popc", "lut_act", "lut_act_i8")
"""Decompositions that read `Panels.planes`."""
GPU = (*gpu_plan.DECOMPOSITIONS, "bitplane_popc", "f8_mma")
"""Decompositions of GPUs."""
WHOLE = ("bitplane_popc", "int_dot", "lut_act_i8", "lut_weight")
"""Decompositions that sum whole numbers exactly where x is quantised to such."""


def mpgemm(x: Any, w: QuantTensor, bias: Any = None, activation: str | None = None, residual: Any = None,
           out_dtype: Any = None, x_dtype: str | None = None, x_group: str = "token",
           decomposition: str | None = None) -> Any:
    """act(x [..., K] @ w [N, K].T + bias [N]) + residual [..., N].

    `x` is f32, f16 or bf16. Without `x_dtype` its values are multiplied in f32. With `x_dtype` ("i2" to "i8", bipolar
    "s1" to "s7", floats of 3 to 8 bits such as "f8e4m3") it is quantised on the way in: q = x / s rounded, with
    s = max |x| / (the largest q) of each token, or of each group of the weight's columns where `x_group` is "group";
    "s1" takes the mean of |x| instead. Decompositions of integers ("int_dot", "bitplane_popc", "lut_act_i8",
    "lut_weight") sum integer q times codes exactly within a group; others, which the model may take to be faster, in
    f32. Corrections of `w` still multiply x itself. `activation` is None, "gelu", "relu" or "silu". The result has
    `out_dtype`, by default that of x.

    `decomposition` overrides the choice of `tilelang.ops.mpgemm.plan.plan`. The first product with a weight repacks
    it, except for "dequant_dot"; the repacked weight is kept as long as `w` lives. "dequant_dot" runs everywhere and
    is the only one for vectors of a codebook and for codes of more than 8 bits; it multiplies in f32, or on a GPU in
    f16 or bf16 where x has that type.

    On a GPU the decompositions are those of `tilelang.ops.mpgemm.gpu_plan`: weights become f16 in registers (entries
    of codebooks are rounded to it), and x becomes f16 with a scale for each row (f32 x becomes two f16).
    "bitplane_popc" multiplies bit planes of integers, exactly; it is chosen for bipolar x, and where it is cheap
    (sm_80 to sm_90a). "f8_mma", which must be named, multiplies x and W of the same f8 type as they are (sm_89,
    sm_90a, gfx950): the sum of a group has as few bits as these instructions keep, sums of groups are f32.

    Under autograd x, bias and residual have gradients: dx = dz @ w in the same blocks as "dequant_dot", where
    quantised x counts as x itself. The weight has none.

    Raises TypeError for arguments of another kind, ValueError for those that do not fit, TargetError for compositions
    without a kernel."""
    check_weight(x, w)
    check(x, w.shape, bias, residual, activation, out_dtype)
    x_dtype = check_options(x_dtype, x_group, decomposition)
    flat, n = rows(x), w.shape[0]
    device = str(getattr(x, "device", "cpu"))
    if isinstance(w.codes, RowParts):
        return _parts(x, w, bias, residual, y_dtype=out_dtype, activation=activation, x_dtype=x_dtype,
                      x_group=x_group, decomposition=decomposition)
    dt = dtype_named(x.dtype)
    out = dt if out_dtype is None else dtype_named(out_dtype)
    y = empty_like(x, (flat.shape[0], n), out)
    if residual is not None:
        residual = rows(residual)
    if tile.on_gpu(x) and (decomposition in GPU or decomposition is None and repackable(w)):
        _on_gpu(flat, w, y, x_dtype, x_group == "token", decomposition, device, bias=bias, residual=residual,
                activation=activation, added=added(flat, w) if w.corrections else None)
        return y.reshape(*x.shape[:-1], n)
    if device != "cpu" and decomposition not in (None, BLOCKS):
        raise TargetError("`mpgemm` on a GPU does not have this decomposition", needs=", ".join((*GPU, BLOCKS)),
                          got=str(decomposition), try_="leave it out, or put x on the CPU")
    if decomposition in GPU and decomposition not in DECOMPOSITIONS:
        raise TargetError(f"`{decomposition}` is a decomposition for GPUs", got=decomposition,
                          needs=f"one of {', '.join(DECOMPOSITIONS)}", try_="leave it out, or put x on a GPU")
    chosen = plan(x_dtype or dt, w, flat.shape[0], decomposition)
    if flat.shape[0] and chosen.decomposition == BLOCKS:
        stored = flat if w.permutation is None else flat[:, w.permutation]
        if x_dtype is not None:
            stored = _rounded(stored, w, tile.dtype(x_dtype), x_group == "token")
        blocks.product(stored, w, y, ACT=activation, bias=bias, residual=residual,
                       added=added(flat, w) if w.corrections else None)
    elif flat.shape[0]:
        _run(chosen, flat, panels(w), y, activation, x_dtype, x_group == "token", bias=bias,
             residual=residual, added=added(flat, w) if w.corrections else None)
    return y.reshape(*x.shape[:-1], n)


def check_weight(x: Any, w: Any) -> None:
    """Raises TypeError for a weight that is none."""
    if not isinstance(w, QuantTensor):
        raise TypeError(f"w must be a QuantTensor, got {type(w).__name__}; " + (
            "x comes first, the weight second" if isinstance(x, QuantTensor) else
            'put Packed codes into QuantTensor(codes, scale)' if isinstance(w, tile.Packed) else
            'quantise it by tile.quantize(w, "u4", group=128)'))


def check_options(x_dtype: Any, x_group: str, decomposition: str | None) -> str | None:
    """The name of `x_dtype`. Raises ValueError for options that no product has."""
    if x_group not in ("token", "group"):
        raise ValueError(f"x_group must be 'token' or 'group', got {x_group!r}")
    if decomposition not in (None, *GPU, *DECOMPOSITIONS):
        raise ValueError(f"decomposition must be one of {', '.join((*DECOMPOSITIONS, *GPU))}, got {decomposition!r}")
    if x_dtype is None:
        return None
    dt = tile.dtype(str(x_dtype))
    if dt.name not in QUANTISED and not (dt.kind == "float" and dt.bits <= 8):
        raise ValueError(f"x_dtype must be a float of at most 8 bits, {', '.join(QUANTISED)}, or None for x as it is; "
                         f"got {dt}")
    return dt.name


def check(x: Any, shape: tuple[int, int], bias: Any, residual: Any, activation: str | None,
          out_dtype: Any = None) -> None:
    """Raises TypeError or ValueError for arguments that do not fit a weight of that shape."""
    n, k = shape
    if isinstance(x, QuantTensor | tile.Packed):
        codes = x.codes if isinstance(x, QuantTensor) else x
        raise TypeError(f"x must be an array [..., {k}] of f32, f16 or bf16, got {type(x).__name__} of "
                        f"{getattr(codes, 'dtype', 'vectors')}: activations are quantised on the way in; pass them as "
                        'they were and x_dtype="i8", for a scale of each group of columns with x_group="group"')
    for name, a in (("x", x), ("bias", bias), ("residual", residual)):
        if a is not None and not (hasattr(a, "shape") and hasattr(a, "dtype")):
            raise TypeError(f"{name} must be a NumPy array or a torch tensor, got {type(a).__name__}")
        if a is not None and is_torch(x) and not is_torch(a):
            raise TypeError(f"{name} must be a torch tensor, as x is, got {type(a).__name__}; "
                            f"pass torch.from_numpy({name})")
    if dtype_named(x.dtype).name not in ("f32", "f16", "bf16"):
        raise ValueError(f"x must be f32, f16 or bf16, got {dtype_named(x.dtype)}; convert it, to f32 for example")
    if out_dtype is not None and dtype_named(out_dtype).name not in ("f16", "bf16", "f32", "f64"):
        raise ValueError(f"out_dtype must be f16, bf16, f32 or f64, got {dtype_named(out_dtype)}")
    if not x.shape or x.shape[-1] != k:
        raise ValueError(f"x must be [..., {k}] for a weight {shape}, got {tuple(x.shape)}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, got {activation!r}")
    if bias is not None and tuple(bias.shape) != (n,):
        raise ValueError(f"bias must be [{n}], got {tuple(bias.shape)}")
    if residual is not None and tuple(residual.shape) != (*x.shape[:-1], n):
        raise ValueError(f"residual must be {(*x.shape[:-1], n)}, got {tuple(residual.shape)}")


def _on_gpu(x: Any, w: QuantTensor, y: Any, x_dtype: str | None, token: bool, decomposition: str | None, device: str,
            **after: Any) -> None:
    """The product by f16, by f8, or by bits where those were asked for or are cheaper."""
    target, as_is = architecture(x), decomposition == "f8_mma"
    by_bits = None
    if decomposition == "bitplane_popc" or decomposition is None and x_dtype in QUANTISED:
        by_bits = gpu_bits.chosen(w, target, x_dtype, x.shape[0], decomposition is not None)
    if as_is:
        _both_f8(x_dtype, w)
    elif x_dtype is not None and by_bits is None:
        _fits_f16(tile.dtype(x_dtype))
    if not x.shape[0]:
        return
    if by_bits is not None:
        assert x_dtype is not None
        held = gpu_bits.planes(w, target, device)
        gpu_bits.product(x, held, y, target, by_bits, tile.dtype(x_dtype), token, **after)
    else:
        product(x, tiles(w, target, device, as_is), y, x_dtype=x_dtype, token=token,
                decomposition=None if as_is else decomposition, **after)


def _both_f8(x_dtype: str | None, w: QuantTensor) -> None:
    of = str(w.codes.dtype) if isinstance(w.codes, tile.Packed) else type(w.codes).__name__
    if x_dtype not in ("f8e4m3", "f8e5m2") or of != x_dtype:
        raise TargetError('"f8_mma" multiplies f8 by f8 of the same type', needs="x_dtype and codes f8e4m3 or f8e5m2",
                          got=f"x_dtype {x_dtype} and codes {of}", try_='x_dtype="f8e4m3" with such weights')


def _fits_f16(x: tile.DType) -> None:
    if not (x.kind == "int" and x.bits <= 8 or x.kind == "float" and x.bits <= 8 and x.exponent_bits <= 5):
        raise TargetError("`mpgemm` on a GPU multiplies activations as f16", got=str(x),
                          needs="i2 to i8, or floats of at most 8 bits and 5 of exponent",
                          try_='x_dtype="i8", or x on the CPU')


@cache
def dtype_named(of: Any) -> tile.DType:
    """The number type of a dtype of NumPy's, torch's or ours, or of its name."""
    return tile.dtype(str(np.dtype(of) if isinstance(of, type) else of).removeprefix("torch."))


def _parts(x: Any, w: QuantTensor, bias: Any, residual: Any, y_dtype: Any, **how: Any) -> Any:
    """The product with each kind of rows, put in its place."""
    assert isinstance(w.codes, RowParts)
    if w.parameters() or w.permutation is not None or w.corrections:
        raise TargetError("`mpgemm` cannot scale or correct rows of several kinds together", needs="only `codes`",
                          got=str(w), try_="give each part its own parameters and corrections")
    y = empty_like(x, (*x.shape[:-1], w.shape[0]), dtype_named(x.dtype) if y_dtype is None else dtype_named(y_dtype))
    stored = np.arange(w.shape[0]) if w.codes.rows is None else np.asarray(w.codes.rows)
    start = 0
    for part in w.codes.parts:
        at = stored[start:start + part.shape[0]]
        y[..., at] = mpgemm(x, part, None if bias is None else bias[at], how["activation"],
                            None if residual is None else residual[..., at], y_dtype, how["x_dtype"], how["x_group"],
                            how["decomposition"])
        start += part.shape[0]
    return y


def _rounded(x: Any, w: QuantTensor, dt: tile.DType, token: bool) -> Any:
    """x [M, K] in f32 as values of `dt` times the scales of tokens, or of the groups of columns that `w` has."""
    (m, k), group = x.shape, blocks.source(w, str(getattr(x, "device", "cpu"))).group
    group = k if token or not group else min(group, k)
    groups, depth = -(-k // group), depth_of(group)
    spread = empty_like(x, (m, -(-groups * depth // 32), 32), tile.f32)
    q = empty_like(x, (m, groups, depth), tile.f32 if dt.kind == "float" else tile.i8)
    scale, sums = (empty_like(x, (m, groups), tile.f32) for _ in range(2))
    spread[...] = 0
    spread_kernel(x, spread, sums, GROUP=group, DEPTH=depth, BITS=0)
    spread = spread.reshape(m, -1)[:, :groups * depth].reshape(m, groups, depth)
    quantize_kernel(spread, q, scale, sums, G=groups, D=depth, GROUP=group, K=k, DTYPE=dt, TOKEN=token)
    return (q * scale[..., None])[:, :, :group].reshape(m, -1)[:, :k]


@lru_cache(maxsize=None, typed=True)
def _of(kernel: tile.Kernel, **consts: Any) -> tile.Kernel:
    """A kernel with these constants, which its calls then need not be told apart by."""
    return kernel.bind(**consts)


def _run(chosen: Plan, x: Any, w: Panels, y: Any, activation: str | None, x_dtype: str | None, token: bool,
         **after: Any) -> None:
    """Runs a plan on x [M, K] into y [M, N]; `after`: what the kernels add, bias, residual and added."""
    m, blocks, g, how = x.shape[0], w.words.shape[1], w.groups, chosen.decomposition
    if w.permutation is not None:
        x = x[:, w.permutation]
    shifted = how == "dequant_fma" and w.dtype is None  # codes stay where they stand in their words
    sums = np.empty((m, g), np.float32)
    weight = (w.planes if how in BY_BITS else w.words, w.scale, y)
    one = {"BITS": w.bits, "DEPTH": w.depth, "ZERO": None if w.zeros else w.zero, "ACT": activation}
    consts = {**one, "ROWS": chosen.rows}
    also = {"zero": w.zero if w.zeros else None, "minimum": w.minimum, **after}
    also = {name: array for name, array in also.items() if array is not None}
    if how == "bf16_dot" and x_dtype is None:
        _by_pairs(x, w.group, sums, weight, w, consts, also)
        return
    spread = np.zeros((m, blocks, 32), np.float32)
    placed = w.bits if shifted and x_dtype is None else 0
    _of(spread_kernel, GROUP=w.group, DEPTH=w.depth, BITS=placed)(x, spread, sums)
    if x_dtype is not None:
        dt = tile.dtype(x_dtype)
        q = np.empty((m, g, w.depth), np.float32 if dt.kind == "float" else np.int8)
        scale = np.empty((m, g), np.float32)
        _of(quantize_kernel, G=g, D=w.depth, GROUP=w.group, K=w.shape[1], DTYPE=dt, TOKEN=token)(
            spread.reshape(m, g, w.depth), q, scale, sums)
        if how == "bf16_dot":
            _by_pairs(q.reshape(m, g * w.depth), w.depth, sums, weight, w, consts, {"xscale": scale, **also})
            return
        if how in WHOLE and dt.kind != "float":
            _whole(how, dt, q.reshape(m, blocks, 32), (scale, sums, *weight), w, consts, also)
            return
        spread, sums = (q * scale[..., None]).reshape(spread.shape), sums * scale
        if shifted:
            spread *= np.array(WEIGHTS[w.bits], np.float32)
    if how == "lut_act_i8":
        bytes_, steps = np.empty((m, blocks, 2, 64), np.int8), np.empty((m, g), np.float32)
        _of(byte_tables_kernel, DEPTH=w.depth, EXACT=False)(spread, bytes_, steps)
        _of(lut_bytes_kernel, EXACT=False, **consts)(bytes_, steps, sums, *weight, **also)
    elif how == "lut_act":
        tables = np.empty((m, blocks, 8, 16), np.float32)
        tables_kernel(spread, tables)
        _of(lut_gemv_kernel, **one)(tables, sums, *weight, **also)
    elif how == "bucket_sum":
        values = np.arange(1 << w.bits) if w.dtype is None else codec.values_of(w.dtype)
        _of(bucket_kernel, **one)(spread, sums, values.astype(np.float32), *weight, **also)
    else:
        _of(dot_gemv_kernel, DTYPE=w.dtype, TABLES=by_bytes(w), **consts)(spread, sums, *weight, **also)


def _by_pairs(x: Any, group: int, sums: Any, weight: tuple[Any, ...], w: Panels, consts: dict[str, Any],
              also: dict[str, Any]) -> None:
    """A product of numbers x [M, groups of so many columns] that bf16 holds."""
    pairs = np.zeros((len(x), w.words.shape[1], 8, 2), np.uint32)
    _of(pairs_kernel, GROUP=group, DEPTH=w.depth)(x, pairs, sums)
    _of(dot_gemv_kernel, DTYPE=w.dtype, TABLES=w.dtype is not None, **consts)(
        pairs.reshape(len(x), -1, 16), sums, *weight, **also)


def _whole(how: str, dt: tile.DType, q: Any, of: tuple[Any, ...], w: Panels, consts: dict[str, Any],
           also: dict[str, Any]) -> None:
    """A product of whole numbers q i8 [M, blocks, 32] of `dt`; `of`: their scales and sums, then weights and y."""
    (m, blocks, _), bipolar = q.shape, dt.kind == "bipolar"
    bits = {"XBITS": dt.bits, "BIPOLAR": bipolar}
    if how == "int_dot":
        scale, *rest = of
        _of(dot_gemv_kernel, DTYPE=None, TABLES=False, **consts)(q.view(np.int32), *rest, xscale=scale, **also)
    elif how == "lut_act_i8":
        tables = np.empty((m, blocks, 2, 64), np.int8)
        _of(byte_tables_kernel, DEPTH=w.depth, EXACT=True)(q.astype(np.float32), tables)
        _of(lut_bytes_kernel, EXACT=True, **consts)(tables, *of, **also)
    elif how == "bitplane_popc":
        planes = np.empty((m, blocks, dt.bits), np.uint32)
        _of(planes_kernel, **bits)(q, planes)
        _of(popcount_gemv_kernel, GROUP=w.group, K=w.shape[1], **bits, **consts)(planes, *of, **also)
    else:
        nibbles = np.empty((m, blocks, 8, dt.bits), np.int32)
        _of(nibbles_kernel, **bits)(q, nibbles)
        room = np.zeros((len(w.words), -(-m // consts["ROWS"]), 16, LANES), np.int32)
        _of(lut_weight_kernel, **bits, **consts)(nibbles, *of[:2], room, *of[2:], **also)
